//! Sends the echoes, on a thread of its own: on the average less than one packet a second.

use std::collections::BTreeMap;
use std::net::{IpAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lab::icmp::{self, Answer, Listener, Pinger};
use model::IpNet;

use super::judge::{Heard, Observation, Outcome, Step, Verdict, classify};
use super::{Board, Finding, Plan, Target, mesh};
use crate::inputs::Inbox;

/// One packet each, on the average.
const PACE: Duration = Duration::from_millis(1200);
/// Packets that may go at once after a silence: the first look at a few nodes.
const BURST: i64 = 20;
/// Packets of one look that may go before their time, which the next look waits for: a healthy target's three need one
/// timer, for to be woken costs more than the packet.
const AHEAD: i64 = 2;
/// A node that comes is let alone for so long: until the others know of it, they drop what it sends.
const GRACE: Duration = Duration::from_secs(2);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// An agent that was heard and then not for so long is down: in a large cluster it has others to probe as well.
const FORGOTTEN: Duration = Duration::from_secs(45);
/// An agent whose own probes fail repeats them within this time.
const RECENT: Duration = Duration::from_secs(20);
/// A finding that was not confirmed for so long is no evidence of health.
pub const STALE: Duration = Duration::from_secs(180);
/// A port where hardly anybody listens; traceroute's. The next one is for datagrams without a checksum.
pub const PORT: u16 = 33_434;

/// When requests last came from an address, of [`MOST_HEARD`] at most.
type Ears = Arc<Mutex<BTreeMap<IpAddr, Instant>>>;
/// Anybody can send what looks like our requests, from any address.
const MOST_HEARD: usize = 16_384;

/// Starts probing, until the process ends. `LODEN_PROBE=off` forbids it.
pub fn start(board: &Arc<Board>, inbox: &Arc<Inbox>, said: &str) -> Result<(), String> {
    match said {
        "" | "on" => {}
        "off" => {
            board.open().off = Some("LODEN_PROBE is off".to_owned());
            return Ok(());
        }
        other => return Err(format!("LODEN_PROBE={other:?} is neither on nor off")),
    }
    let ears = Ears::default();
    let heard = ears.clone();
    let prober = Prober {
        board: board.clone(),
        inbox: inbox.clone(),
        ears,
        bucket: Bucket { tokens: BURST, filled: Instant::now() },
        failing: BTreeMap::new(),
        met: BTreeMap::new(),
    };
    let threads = [
        ("ears", Box::new(move || listen(&heard)) as Box<dyn FnOnce() + Send>),
        ("probes", Box::new(move || prober.run())),
    ];
    for (name, work) in threads {
        let started = std::thread::Builder::new().name(name.to_owned()).spawn(work);
        started.map_err(|error| format!("start a thread: {error}"))?;
    }
    Ok(())
}

/// Notes who sends echo requests like ours. Without it one direction is not told from the other.
fn listen(ears: &Ears) {
    let Ok(mut listener) = Listener::open() else { return };
    while let Ok(from) = listener.wait() {
        note(&mut ears.lock().unwrap_or_else(PoisonError::into_inner), from, Instant::now());
    }
}

/// Who is known is always noted. When there is no room, who was not heard lately makes some; else who is new is not
/// noted.
fn note(ears: &mut BTreeMap<IpAddr, Instant>, from: IpAddr, now: Instant) {
    if ears.len() >= MOST_HEARD && !ears.contains_key(&from) {
        ears.retain(|_, last| now.duration_since(*last) <= FORGOTTEN);
    }
    if ears.len() < MOST_HEARD || ears.contains_key(&from) {
        ears.insert(from, now);
    }
}

struct Prober {
    board: Arc<Board>,
    inbox: Arc<Inbox>,
    ears: Ears,
    bucket: Bucket,
    /// Since when targets have been failing.
    failing: BTreeMap<IpNet, Instant>,
    /// When targets were first met.
    met: BTreeMap<IpNet, Instant>,
}

impl Prober {
    fn run(mut self) {
        let mut turn = 0;
        loop {
            let plan = self.board.open().plan.clone();
            let targets = plan.as_ref().map_or(Vec::new(), |plan| {
                let bad: Vec<IpNet> = self.failing.keys().copied().collect();
                mesh::targets(plan, turn, &bad)
            });
            self.failing.retain(|net, _| targets.iter().any(|target| target.net == *net));
            let Some(plan) = plan.filter(|_| !targets.is_empty()) else {
                self.board.open().waiting = 0;
                self.board.wait(Duration::from_secs(60));
                continue;
            };
            self.turn(&plan, &targets);
            turn += 1;
        }
    }

    /// Everybody once; who fails is looked at again at once.
    fn turn(&mut self, plan: &Plan, targets: &[Target]) {
        let known = |board: &Board, net: IpNet| board.open().findings.contains_key(&net);
        self.met.retain(|net, _| targets.iter().any(|target| target.net == *net) || known(&self.board, *net));
        for target in targets {
            let met = *self.met.entry(target.net).or_insert_with(Instant::now);
            let unknown = targets.iter().filter(|target| !known(&self.board, target.net)).count();
            self.board.open().waiting = unknown;
            std::thread::sleep(GRACE.saturating_sub(met.elapsed()));
            for _ in 0..3 {
                match self.examine(plan, target) {
                    Ok(true) => break,
                    Ok(false) => {}
                    Err(why) => {
                        let mut inner = self.board.open();
                        if inner.off.as_ref() != Some(&why) {
                            tracing::warn!("probes are not sent: {why}");
                        }
                        (inner.off, inner.waiting) = (Some(why), 0);
                        drop(inner);
                        std::thread::sleep(Duration::from_secs(30));
                        return;
                    }
                }
            }
        }
        let mut inner = self.board.open();
        (inner.waiting, inner.off) = (0, None);
    }

    /// Gives whether it came to what is published: bad news is believed the second time.
    fn examine(&mut self, plan: &Plan, target: &Target) -> Result<bool, String> {
        let began = Instant::now();
        // Who is looked at once more gets its time: the other's requests, which are listened for, come each few seconds.
        let ahead = if self.failing.contains_key(&target.net) { 0 } else { AHEAD };
        self.wait_for_turn(0);
        let mut seen = Observation { strange_source: strange_source(plan, target), ..Observation::default() };
        if self.was_silent(target) {
            let steps = [Step::Inner, Step::Outer];
            self.wait_for_turn(AHEAD);
            for (step, outcome) in steps.into_iter().zip(send_both(target)?) {
                // Not waited for, so it counts neither as answered nor as lost.
                let unknown = step == Step::Outer && seen.rtt().is_some() && outcome == Outcome::Silence;
                if unknown {
                    continue;
                }
                self.tally(step, target, &outcome);
                seen.note(step, outcome);
            }
        } else {
            self.step(Step::Inner, plan, target, &mut seen)?;
        }
        while let Some(step) = seen.next(target, plan) {
            self.wait_for_turn(ahead);
            if step == Step::Repeated {
                std::thread::sleep(PACE);
            }
            self.step(step, plan, target, &mut seen)?;
        }
        let since = self.failing.get(&target.net).copied().unwrap_or(began);
        seen.heard = self.heard(target, since);
        let (verdict, text) = classify(&seen, target, plan);
        let failed_before = self.failing.contains_key(&target.net);
        if verdict.is_bad() {
            self.failing.insert(target.net, since);
            let again = verdict != Verdict::AgentDown && !failed_before;
            if again {
                return Ok(false);
            }
        } else {
            self.failing.remove(&target.net);
        }
        let finding = Finding {
            target: *target,
            verdict,
            text,
            rtt: seen.rtt(),
            mtu: seen.largest(plan),
            last: Instant::now(),
        };
        self.publish(finding);
        if verdict == Verdict::Checksum && plan.summed_here == Some(false) {
            self.inbox.update(|inputs| inputs.summed_here = true);
        }
        Ok(true)
    }

    fn step(&self, step: Step, plan: &Plan, target: &Target, seen: &mut Observation) -> Result<(), String> {
        let outcome = send(step, plan, target)?;
        self.tally(step, target, &outcome);
        seen.note(step, outcome);
        Ok(())
    }

    /// Whether it has been published that no echo came back through the tunnel.
    fn was_silent(&self, target: &Target) -> bool {
        let inner = self.board.open();
        inner.findings.get(&target.net).is_some_and(|known| known.target == *target && known.rtt.is_none())
    }

    /// One line for each change of verdict.
    fn publish(&self, finding: Finding) {
        let net = finding.target.net;
        let mut inner = self.board.open();
        if inner.plan.as_ref().is_none_or(|plan| plan.peers.get(&finding.target.subnets).is_none()) {
            return;
        }
        let before = inner.findings.insert(net, finding.clone()).map(|before| before.verdict);
        drop(inner);
        match (before, finding.verdict.is_bad()) {
            (before, true) if before != Some(finding.verdict) => {
                tracing::warn!("probe of {net}: {}: {}", finding.verdict.word(), finding.text);
            }
            (Some(before), false) if before.is_bad() => {
                tracing::info!("probe of {net}: packets arrive again")
            }
            _ => {}
        }
    }

    fn heard(&self, target: &Target, since: Instant) -> Heard {
        let ears = self.ears.lock().unwrap_or_else(PoisonError::into_inner);
        match ears.get(&target.inner) {
            // What was on its way when it began to fail does not count.
            Some(last) if *last > since + PATIENCE && last.elapsed() < RECENT => Heard::Now,
            Some(last) if last.elapsed() > FORGOTTEN => Heard::Before,
            Some(_) => Heard::Lately,
            None => Heard::Never,
        }
    }

    fn tally(&self, step: Step, target: &Target, outcome: &Outcome) {
        let way = match step {
            Step::Outer | Step::OuterFull => 1,
            _ => 0,
        };
        let lost = match step {
            Step::Datagram | Step::Unsummed | Step::Repeated => matches!(outcome, Outcome::Silence),
            _ => !matches!(outcome, Outcome::Answered(_)),
        };
        let mut inner = self.board.open();
        inner.tally.packets[way][usize::from(lost)] += 1;
        if step == Step::Inner {
            inner.echoes.entry(target.net).or_default().note(lost);
        }
        if let (Step::Inner | Step::Outer, Outcome::Answered(rtt)) = (step, outcome) {
            inner.tally.rtt[way].observe(*rtt);
        }
    }

    fn wait_for_turn(&mut self, ahead: i64) {
        while let Some(wait) = self.bucket.take(Instant::now(), ahead) {
            std::thread::sleep(wait);
        }
    }
}

/// Tokens, one for each packet, so that a look at a few new nodes needs no waiting.
struct Bucket {
    /// Below zero are those that went ahead.
    tokens: i64,
    filled: Instant,
}

impl Bucket {
    /// Takes a token, be it one of the `ahead` that are not there yet; else gives how long to wait for it.
    fn take(&mut self, now: Instant, ahead: i64) -> Option<Duration> {
        let since = now.saturating_duration_since(self.filled);
        let gained = u32::try_from(since.as_millis() / PACE.as_millis()).unwrap_or(u32::MAX);
        if gained > 0 {
            self.tokens = (self.tokens + i64::from(gained)).min(BURST);
            // What has been silent for days does not owe it all.
            self.filled = if i64::from(gained) > BURST + AHEAD { now } else { self.filled + PACE * gained };
        }
        let missing = u32::try_from(1 - ahead - self.tokens).unwrap_or_default();
        if missing > 0 {
            // At once: on the way there would be nothing to do.
            return Some((PACE * missing).saturating_sub(now.saturating_duration_since(self.filled)));
        }
        self.tokens -= 1;
        None
    }
}

/// The source our kernel would choose, if it is not of our subnet. Without a tunnel it is the host's own.
fn strange_source(plan: &Plan, target: &Target) -> Option<IpAddr> {
    let own = plan.own.as_ref()?.subnets.of(target.family())?;
    // Without a tunnel, and beside it, the interface's own address is right.
    plan.device.as_ref().filter(|_| !target.direct)?;
    let socket = UdpSocket::bind((unspecified(target.inner), 0)).ok()?;
    // Connecting a datagram socket sends nothing.
    socket.connect((target.inner, PORT)).ok()?;
    let source = socket.local_addr().ok()?.ip();
    (!own.contains(&source)).then_some(source)
}

fn unspecified(like: IpAddr) -> IpAddr {
    if like.is_ipv4() {
        std::net::Ipv4Addr::UNSPECIFIED.into()
    } else {
        std::net::Ipv6Addr::UNSPECIFIED.into()
    }
}

/// # Errors
/// No socket may be opened: one sentence.
fn send(step: Step, plan: &Plan, target: &Target) -> Result<Outcome, String> {
    let (to, size) = match step {
        Step::Inner | Step::Datagram | Step::Unsummed | Step::Repeated => (target.inner, None),
        Step::InnerFull => (target.inner, Some(plan.mtu)),
        Step::InnerSized(size) => (target.inner, Some(size)),
        Step::Outer => (target.public, None),
        Step::OuterFull => (target.public, Some(plan.outer_mtu)),
    };
    let answer = match step {
        Step::Datagram | Step::Repeated => icmp::knock(to, PORT, true, PATIENCE),
        Step::Unsummed => icmp::knock(to, PORT + 1, false, PATIENCE),
        _ => {
            let payload = size.map_or(icmp::MIN_PAYLOAD, |mtu| icmp::full_payload(to, mtu));
            Pinger::open(to).and_then(|mut pinger| pinger.echo(payload, PATIENCE)).map(|(answer, _)| answer)
        }
    };
    answer.map(outcome).map_err(no_socket)
}

/// The small echoes through the tunnel and beside it, to a target of which no echo came back the last time: that is
/// published already, so there is time until two packets more may go.
fn send_both(target: &Target) -> Result<[Outcome; 2], String> {
    let answers = icmp::both([target.inner, target.public], PATIENCE, PACE * 2).map_err(no_socket)?;
    Ok(answers.map(outcome))
}

fn outcome(answer: Answer) -> Outcome {
    match answer {
        Answer::Echo(took) => Outcome::Answered(took),
        Answer::Refused(why) => Outcome::Refused(why),
        Answer::Silence => Outcome::Silence,
    }
}

fn no_socket(error: std::io::Error) -> String {
    format!("open a socket for echoes: {error}; it needs CAP_NET_RAW")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The whole node, whomever it probes: less than one a second, but for a burst after a silence.
    #[test]
    fn a_node_sends_less_than_one_packet_a_second() {
        let start = Instant::now();
        for silence in [0, 3600, 86_400 * 365] {
            let mut bucket = Bucket { tokens: BURST, filled: start };
            let begin = start + Duration::from_secs(silence);
            let (mut now, mut sent, mut left) = (begin, 0_u64, 0);
            while now < begin + Duration::from_secs(3600) {
                // Looks of one to five packets.
                let ahead = if left == 0 { 0 } else { AHEAD };
                match bucket.take(now, ahead) {
                    Some(wait) => {
                        assert!(wait <= PACE * 3, "{wait:?}");
                        now += wait.max(Duration::from_millis(1));
                    }
                    None => {
                        sent += 1;
                        left = if left == 0 { sent % 5 } else { left - 1 };
                    }
                }
            }
            assert!((2990..=3023).contains(&sent), "{sent} in an hour after {silence} s of silence");
        }
    }

    #[test]
    fn strangers_cannot_fill_the_memory() {
        let address = |number: usize| IpAddr::from(u32::try_from(number).unwrap_or_default().to_be_bytes());
        let start = Instant::now();
        let mut ears = BTreeMap::new();
        for number in 0..2 * MOST_HEARD {
            note(&mut ears, address(number), start);
        }
        assert_eq!(ears.len(), MOST_HEARD);
        let later = start + FORGOTTEN + Duration::from_secs(1);
        note(&mut ears, address(7), later);
        assert_eq!((ears.len(), ears[&address(7)]), (MOST_HEARD, later), "who is known is noted");
        note(&mut ears, address(usize::MAX >> 33), later);
        assert_eq!(ears.len(), 2, "who was not heard for long makes room");
    }
}
