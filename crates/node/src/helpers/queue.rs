//! Between the loop and a helper's threads: steps one way, what stands and what happened the other.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use plan::{Key, Object, Step};

use crate::inputs::{Inbox, News, Outcome};
use crate::rights::{Need, Rights};

/// Shared by the loop and the threads of one helper.
pub struct Queue {
    inbox: Arc<Inbox>,
    slot: Mutex<Slot>,
    wake: Condvar,
}

#[derive(Default)]
struct Slot {
    /// At most one for each key: the loop asks once.
    jobs: VecDeque<Step>,
    held: BTreeMap<Key, Object>,
    silence: Option<String>,
    stop: bool,
}

/// What there is to do.
pub enum Next {
    /// This.
    Job(Step),
    /// Nothing in the time given.
    Nothing,
    /// Nothing ever again.
    Stop,
}

impl Queue {
    /// Empty; outcomes go to `inbox`.
    pub fn new(inbox: Arc<Inbox>) -> Queue {
        Queue { inbox, slot: Mutex::default(), wake: Condvar::new() }
    }

    /// Starts a thread of the helper.
    pub fn thread(name: &str, work: impl FnOnce() + Send + 'static) {
        said(name, std::thread::Builder::new().name(name.to_owned()).spawn(work).map(drop));
    }

    /// Starts one that needs more rights than the agent's other threads.
    pub fn thread_with(
        rights: &Rights,
        need: Need,
        name: &'static str,
        work: impl FnOnce() + Send + 'static,
    ) {
        said(name, rights.thread(name, need, work));
    }

    /// A step to be done.
    pub fn ask(&self, step: Step) {
        self.lock().jobs.push_back(step);
        self.wake.notify_one();
    }

    /// All threads shall end.
    pub fn stop(&self) {
        self.lock().stop = true;
        self.wake.notify_all();
    }

    /// What stands.
    pub fn held(&self) -> Vec<Object> {
        self.lock().held.values().cloned().collect()
    }

    /// Waits for a step; without a limit for ever.
    pub fn next(&self, limit: Option<Duration>) -> Next {
        let deadline = limit.map(|limit| Instant::now() + limit);
        let mut slot = self.lock();
        loop {
            if slot.stop {
                return Next::Stop;
            }
            if let Some(step) = slot.jobs.pop_front() {
                return Next::Job(step);
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            slot = match left {
                Some(Duration::ZERO) => return Next::Nothing,
                Some(left) => self.wake.wait_timeout(slot, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.wake.wait(slot).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// A step is done, or could not be. `host`: the host is another one by it.
    pub fn done(&self, step: Step, result: Result<(), String>, host: bool) {
        let key = step.key();
        let mut slot = self.lock();
        match (&result, &step) {
            (Ok(()), Step::Put(object)) => drop(slot.held.insert(key.clone(), object.clone())),
            (Ok(()), _) => drop(slot.held.remove(&key)),
            (Err(_), _) => {}
        }
        let now = slot.held.get(&key).cloned();
        drop(slot);
        self.tell(Outcome { key, now, step: Some(step), failure: result.err() }, host);
    }

    /// Something is there, or not there any more, without anybody's doing.
    pub fn found(&self, key: Key, now: Option<Object>, failure: Option<String>) {
        let mut slot = self.lock();
        match &now {
            Some(object) => drop(slot.held.insert(key.clone(), object.clone())),
            None => drop(slot.held.remove(&key)),
        }
        drop(slot);
        self.tell(Outcome { key, now, step: None, failure }, false);
    }

    /// What there is to say of peers that do not answer; the loop looks when it is something else.
    pub fn say(&self, silence: Option<String>) {
        let mut slot = self.lock();
        if slot.silence != silence {
            slot.silence = silence;
            drop(slot);
            self.inbox.news(|_| News { ours: true, ..News::default() });
        }
    }

    /// What was said last.
    pub fn silence(&self) -> Option<String> {
        self.lock().silence.clone()
    }

    fn tell(&self, outcome: Outcome, host: bool) {
        self.inbox.news(|_| News { host, outcomes: vec![outcome], ..News::default() });
    }

    fn lock(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn said(name: &str, started: io::Result<()>) {
    if let Err(error) = started {
        tracing::error!("start the thread {name}: {error}; restart the agent when there is room for threads");
    }
}
