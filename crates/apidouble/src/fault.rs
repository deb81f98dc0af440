//! Faults on command: which requests they hit, and what happens to them.

use std::time::Duration;

use crate::call::Call;

/// Which requests a fault hits; what is empty is not asked about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pick {
    /// Verb, as in `Call::verb`.
    pub verb: String,
    /// Resource, as `nodes` or `nodes/status`.
    pub resource: String,
    /// Name of the object.
    pub name: String,
    /// User.
    pub user: String,
}

impl Pick {
    /// Every request.
    pub fn any() -> Self {
        Self::default()
    }

    /// Requests with one verb on one resource.
    pub fn of(verb: &str, resource: &str) -> Self {
        Self { verb: verb.to_owned(), resource: resource.to_owned(), ..Self::default() }
    }

    /// Only those of one user.
    #[must_use]
    pub fn by(self, user: &str) -> Self {
        Self { user: user.to_owned(), ..self }
    }

    /// Only those on the object of this name.
    #[must_use]
    pub fn named(self, name: &str) -> Self {
        Self { name: name.to_owned(), ..self }
    }

    /// Whether it hits.
    pub fn hits(&self, call: &Call, user: &str) -> bool {
        let is = |wanted: &str, held: &str| wanted.is_empty() || wanted == held;
        is(&self.verb, call.verb)
            && is(&self.resource, &call.resource())
            && is(&self.name, &call.name)
            && is(&self.user, user)
    }
}

/// What happens to a request that was hit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Refused with this code, in the form servers use for it. With `retry_after_s` the answer tells when to
    /// come again; 429 always does.
    Refuse {
        /// HTTP status.
        code: u16,
        /// Seconds.
        retry_after_s: Option<u32>,
    },
    /// No answer, not one byte, until the client gives up.
    Hang,
    /// The answer comes this much later.
    Late(Duration),
    /// The connection (for HTTP/2 the stream) breaks after so many bytes of the body.
    Cut(usize),
    /// So many bytes of the body, then nothing more, and the connection stays.
    Stall(usize),
    /// The body comes in pieces of so many bytes, with a pause after each.
    Drip(usize, Duration),
    /// The connection breaks instead of an answer.
    Drop,
    /// A read is answered from the state of this revision.
    Stale(u64),
    /// A watch answers 200 and ends at once, orderly.
    End,
    /// A watch answers 200 and its only event is `ERROR` with a 410.
    Gone,
    /// The same with the refusal of another code. 500 is what a server says to every streaming list and every
    /// watch without a revision when its etcd is too old for them.
    InStream(u16),
    /// Each event of a watch comes so many times more.
    Repeat(usize),
    /// The body is not what it should be: these bytes instead.
    Garbage(String),
    /// A write is carried out, and the connection breaks instead of an answer.
    DoneButCut,
}

/// A fault lying in wait.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Which requests.
    pub pick: Pick,
    /// What happens.
    pub effect: Effect,
    /// How many more times.
    pub left: usize,
}

/// What happens to watches that are open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stroke {
    /// They break, in the middle of nothing.
    Cut,
    /// The next event of each breaks off in the middle of its line.
    CutInLine,
    /// They end in an orderly way.
    End,
    /// `ERROR` with a 410, then the end.
    Gone,
    /// `ERROR` with a 500, then the end.
    Error,
    /// A bookmark for those that asked for such.
    Bookmark,
    /// The last events once more, so many.
    Replay(usize),
    /// A line that is no event.
    Garbage(String),
    /// Nothing more is sent; the connection stays.
    Silence,
}
