//! What the loop decides from: one slot each for the configuration, our lease, the peers and news from
//! the kernel. Writers replace, the loop takes the newest; ten thousand events become one round.

use std::net::IpAddr;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use model::{IfName, Lease, NetConf};
use plan::{Key, Object, Step};
use store::{Heard, Remembered, View};

/// What the kernel's notifications said since the last round.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct News {
    /// Interfaces, addresses or routes of the host changed: read the facts again.
    pub host: bool,
    /// Something that may be ours changed, or notifications were lost: read the kernel again.
    pub ours: bool,
    /// Something in the tables of iptables changed, most likely by another program.
    pub iptables: bool,
    /// Single objects that may be ours, and what was there when the kernel said so. Most of it is the echo of
    /// our own changes; only what is not makes the kernel be read again.
    pub entries: Vec<(Key, Option<Object>)>,
    /// What became of objects that others than the kernel hold. Of a step never dropped, for it is asked for once; of
    /// what happened by itself the last of each object.
    pub outcomes: Vec<Outcome>,
    /// How often the kernel dropped notifications.
    pub lost: u64,
}

/// What a helper brought about, or found.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Of which object.
    pub key: Key,
    /// What is there now.
    pub now: Option<Object>,
    /// The step that was asked for; `None` for what happened by itself.
    pub step: Option<Step>,
    /// Why it could not be done, or what went wrong by itself: one sentence.
    pub failure: Option<String>,
}

/// More entries than this are not compared one by one.
pub const MOST_ENTRIES: usize = 16_384;

impl News {
    /// What was told before, and more.
    pub fn add(&mut self, more: News) {
        self.host |= more.host;
        self.ours |= more.ours;
        self.iptables |= more.iptables;
        self.lost += more.lost;
        self.entries.extend(more.entries);
        if !more.outcomes.is_empty() && !self.outcomes.is_empty() {
            let said_again = |old: &Outcome| more.outcomes.iter().any(|new| new.key == old.key);
            self.outcomes.retain(|old| old.step.is_some() || !said_again(old));
        }
        self.outcomes.extend(more.outcomes);
        if self.ours || self.entries.len() > MOST_ENTRIES {
            self.ours = true;
            self.entries.clear();
        }
    }
}

/// What of the inputs is not the store's word but was read from this node's disk (decision 0090).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recalled {
    /// Our own lease.
    pub own: bool,
    /// The peers.
    pub peers: bool,
}

/// Everything the loop looks at.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// The network configuration, once the store has given one that makes sense.
    pub conf: Option<NetConf>,
    /// What the registry knew of this node at the start; there when `conf` is.
    pub remembered: Remembered,
    /// Our own lease, once acquired.
    pub own: Option<Lease>,
    /// When it ends unless renewed, by `clock::uptime`; `None` where leases do not end.
    pub ends: Option<Duration>,
    /// All leases.
    pub view: View,
    /// What stands in for the store.
    pub recalled: Recalled,
    /// The subnet this node had is not its own any more, and the store does not give another one: nothing
    /// may use it.
    pub void: bool,
    /// The interface that carries the traffic between hosts, as the loop knows it.
    pub uplink: Option<IfName>,
    /// The address of `--iface-can-reach`, the way to which decides about the interface.
    pub reach: Option<IpAddr>,
    /// Which store, for people.
    pub store: String,
    /// When it last answered.
    pub heard: Heard,
    /// The fast path asks that conntrack does not judge TCP windows (decision 0218).
    pub liberal: bool,
    /// Hardware gets the checksums of packets in the tunnels wrong, as probes found (decision 0178).
    pub summed_here: bool,
    /// News from the kernel, cleared when taken.
    pub news: News,
    /// Somebody wants to know how the node is, cleared when taken.
    pub asked: bool,
    /// What came shall not wait for more of its kind, cleared when taken.
    pub soon: bool,
    /// The process shall end.
    pub stop: bool,
}

impl Inputs {
    /// Whether a burst is not waited for.
    fn is_urgent(&self) -> bool {
        self.stop || self.soon
    }
}

/// The slot between the writers and the loop.
#[derive(Debug, Default)]
pub struct Inbox {
    slot: Mutex<(Inputs, bool)>,
    wake: Condvar,
}

impl Inbox {
    /// Changes the inputs and wakes the loop. Gives what `change` gives.
    pub fn update<T>(&self, change: impl FnOnce(&mut Inputs) -> T) -> T {
        let mut slot = self.lock();
        let answer = change(&mut slot.0);
        self.wake(&mut slot);
        answer
    }

    /// A loop that was woken lets a burst settle, and is not woken again for it but for what is urgent: at a hundred changes
    /// a second that was a third of its wake-ups.
    fn wake(&self, slot: &mut (Inputs, bool)) {
        if !std::mem::replace(&mut slot.1, true) || slot.0.is_urgent() {
            self.wake.notify_one();
        }
    }

    /// Looks at the inputs and wakes nobody.
    pub fn look<T>(&self, at: impl FnOnce(&Inputs) -> T) -> T {
        at(&self.lock().0)
    }

    /// Asks for a round that looks at the kernel and ends with a status.
    pub fn ask(&self) {
        self.update(|inputs| {
            inputs.news.ours = true;
            inputs.asked = true;
        });
    }

    /// Notes when our lease ends; wakes nobody.
    pub fn note_end(&self, ends: Option<Duration>) {
        self.lock().0.ends = ends;
    }

    /// Tells the listener which interface matters; wakes nobody.
    pub fn watch_uplink(&self, uplink: Option<IfName>) {
        self.lock().0.uplink = uplink;
    }

    /// Adds news from the kernel; what concerns nobody wakes nobody.
    pub fn news(&self, judge: impl FnOnce(&Inputs) -> News) {
        let mut slot = self.lock();
        let news = judge(&slot.0);
        if news != News::default() {
            slot.0.news.add(news);
            self.wake(&mut slot);
        }
    }

    /// Waits until something changed, at most until `deadline`; after a change that is not urgent `settle` longer, so that
    /// a burst is one round. Gives the inputs and clears the news.
    pub fn wait(&self, deadline: Instant, settle: Duration) -> Inputs {
        let mut slot = self.lock();
        while !slot.1 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            slot = self.wake.wait_timeout(slot, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        if slot.1 {
            let settled = Instant::now() + settle;
            loop {
                let left = settled.saturating_duration_since(Instant::now());
                if left.is_zero() || slot.0.is_urgent() {
                    break;
                }
                slot = self.wake.wait_timeout(slot, left).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
        slot.1 = false;
        let news = std::mem::take(&mut slot.0.news);
        let inputs = Inputs { news, ..slot.0.clone() };
        slot.0.asked = false;
        slot.0.soon = false;
        inputs
    }

    // A writer that panicked leaves whole values behind: each change is one assignment.
    fn lock(&self) -> MutexGuard<'_, (Inputs, bool)> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: usize) -> (Key, Option<Object>) {
        (Key::Sysctl(number.to_string()), None)
    }

    #[test]
    fn entries_are_bounded_and_then_everything_is_read() {
        let mut news = News::default();
        for number in 0..MOST_ENTRIES {
            news.add(News { entries: vec![entry(number)], ..News::default() });
        }
        assert_eq!((news.ours, news.entries.len()), (false, MOST_ENTRIES));
        for number in 0..3 {
            news.add(News { entries: vec![entry(number)], ..News::default() });
        }
        assert_eq!((news.ours, news.entries.len()), (true, 0));
    }

    #[test]
    fn what_is_urgent_waits_for_no_burst() {
        let (inbox, hour) = (Inbox::default(), Duration::from_secs(3_600));
        inbox.update(|inputs| inputs.asked = true);
        std::thread::scope(|scope| {
            let inputs = scope.spawn(|| inbox.wait(Instant::now() + hour, hour));
            inbox.update(|inputs| inputs.soon = true);
            let inputs = inputs.join().expect("the loop's side");
            assert!(inputs.asked && inputs.soon);
        });
        assert!(!inbox.wait(Instant::now(), hour).soon, "once");
    }

    #[test]
    fn of_what_happens_by_itself_the_last_word_is_kept() {
        let key = |number: usize| Key::Sysctl(number.to_string());
        let step =
            |number: usize| Step::Put(Object::Sysctl { path: number.to_string(), value: "1".to_owned() });
        let found = |number, why: &str| Outcome {
            key: key(number),
            now: None,
            step: None,
            failure: Some(why.to_owned()),
        };
        let done = |number| Outcome { step: Some(step(number)), failure: None, ..found(number, "") };
        let mut news = News::default();
        for outcome in [found(1, "a"), done(1), found(2, "a"), found(1, "b"), done(1), found(1, "c")] {
            news.add(News { outcomes: vec![outcome], ..News::default() });
        }
        assert_eq!(news.outcomes, [done(1), found(2, "a"), done(1), found(1, "c")]);
    }
}
