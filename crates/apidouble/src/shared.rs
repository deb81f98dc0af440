//! What all requests of one server share, behind one lock that is never held while waiting.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::body::Bytes;
use serde_json::Value;
use tokio::sync::watch;

use crate::access::Access;
use crate::call::Call;
use crate::fault::{Effect, Fault, Stroke};
use crate::kind::Kind;
use crate::world::{Key, World};

/// A request that came, whatever became of it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// When.
    pub at: Instant,
    /// What it asked for.
    pub call: Call,
    /// Who; empty where the token was not known.
    pub user: String,
    /// `Accept`, or empty.
    pub accept: String,
    /// `Content-Type`, or empty.
    pub content_type: String,
    /// What was sent along.
    pub body: Bytes,
    /// HTTP status; 0 while there is no answer.
    pub code: u16,
}

/// The state of a server.
#[derive(Debug)]
pub struct Inner {
    /// The objects.
    pub world: World,
    /// Who may do what.
    pub access: Access,
    /// Faults lying in wait; the first that hits is taken.
    pub faults: Vec<Fault>,
    /// Every request.
    pub seen: Vec<Seen>,
    /// What was done to open watches, and at which revision.
    pub strokes: Vec<(u64, Stroke)>,
    /// Watches that are open.
    pub watches: usize,
    /// Whether streaming lists are known.
    pub streaming: bool,
    /// Pause between bookmarks.
    pub bookmark_every: Duration,
    /// What each manager of fields applied last (server-side apply).
    pub applied: BTreeMap<(&'static Kind, Key, String), Value>,
}

/// The state, and the bell that rings when it changes.
#[derive(Debug)]
pub struct Shared {
    inner: Mutex<Inner>,
    bell: watch::Sender<u64>,
}

impl Default for Shared {
    fn default() -> Self {
        let inner = Inner {
            world: World::default(),
            access: Access::default(),
            faults: Vec::new(),
            seen: Vec::new(),
            strokes: Vec::new(),
            watches: 0,
            streaming: true,
            // Servers send one about every minute.
            bookmark_every: Duration::from_secs(60),
            applied: BTreeMap::new(),
        };
        Self { inner: Mutex::new(inner), bell: watch::Sender::new(0) }
    }
}

impl Shared {
    /// The state. A panic elsewhere leaves it as it was: each change is one step.
    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells everyone who waits that there is news.
    pub fn ring(&self) {
        self.bell.send_modify(|count| *count += 1);
    }

    /// Rings when there is news.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.bell.subscribe()
    }
}

impl Inner {
    /// The fault for this request, used up once.
    pub fn take_fault(&mut self, call: &Call, user: &str) -> Option<Effect> {
        let fault = self.faults.iter_mut().find(|fault| fault.left > 0 && fault.pick.hits(call, user))?;
        if fault.left != usize::MAX {
            fault.left -= 1;
        }
        Some(fault.effect.clone())
    }
}
