//! Following the leases in etcd: list, then watch from the next revision; the watch is a hint, the list is
//! the truth and is read again now and then.

use std::future::Future;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::EtcdStore;
use super::client::{Fault, Watching};
use super::proto::{WatchCreateRequest, WatchResponse};
use crate::backoff::{Backoff, jitter};
use crate::entry;
use crate::mirror::Mirror;
use crate::{LeaseStore, StoreError, View};

const DELETE: i32 = 1;
const CREATED_LIMIT: Duration = Duration::from_secs(5);
/// A watch that held this long counts as a success for the back-off.
const HEALTHY: Duration = Duration::from_secs(5);

/// Why a watch came to its end.
enum End {
    /// The list must be read again: compacted, or the store is older than what we have seen (restored).
    Outdated,
    /// What went wrong, in one sentence.
    Failed(String),
}

impl From<StoreError> for End {
    fn from(error: StoreError) -> End {
        End::Failed(error.to_string())
    }
}

pub(super) async fn follow(store: &EtcdStore, feed: &watch::Sender<View>) {
    let mut follower = Follower { store, mirror: Mirror::new(store.name(), feed), seen: None };
    let mut backoff = Backoff::new();
    loop {
        let begun = Instant::now();
        let end = follower.session().await;
        if begun.elapsed() >= HEALTHY {
            backoff.reset();
        }
        match end {
            Ok(never) => match never {},
            Err(End::Outdated) => follower.seen = None,
            Err(End::Failed(cause)) => follower.mirror.trouble(cause),
        }
        backoff.wait().await;
    }
}

struct Follower<'a> {
    store: &'a EtcdStore,
    mirror: Mirror<'a>,
    /// Revision up to which the mirror is complete; `None` = list first.
    seen: Option<i64>,
}

impl Follower<'_> {
    async fn session(&mut self) -> Result<std::convert::Infallible, End> {
        let seen = match self.seen {
            // A cluster restored from a backup counts from an older revision: a watch would wait for ages.
            Some(seen) if self.store.revision().await? >= seen => seen,
            _ => self.list().await?,
        };
        let subnets = &self.store.subnets;
        let create = WatchCreateRequest {
            range_end: super::proto::prefix_end(subnets.as_bytes()),
            key: subnets.clone().into(),
            start_revision: seen + 1,
            progress_notify: true,
        };
        let mut watching = self.store.client.watch(create).await.map_err(StoreError::from)?;
        // Events up to here are older than the last list.
        let mut floor = seen;
        let first = timeout(CREATED_LIMIT, watching.next()).await;
        let mut response = match first.unwrap_or_else(|_| Err("no answer".to_owned())) {
            Ok(response) => response,
            Err(cause) => return Err(self.broken(&watching, cause).await),
        };
        let mut relist = Instant::now() + jitter(self.store.relist);
        let mut healthy = false;
        loop {
            check(&response, &watching.conn.endpoint)?;
            if !std::mem::replace(&mut healthy, true) {
                self.mirror.recovered();
            }
            self.apply(&response, floor);
            if let Some(more) = ready_now(watching.next()).await {
                response = match more {
                    Ok(response) => response,
                    Err(cause) => return Err(self.broken(&watching, cause).await),
                };
                continue;
            }
            self.mirror.publish();
            response = tokio::select! {
                next = watching.next() => match next {
                    Ok(response) => response,
                    Err(cause) => return Err(self.broken(&watching, cause).await),
                },
                () = sleep_until(relist) => {
                    relist = Instant::now() + jitter(self.store.relist);
                    let listed = self.list().await?;
                    if listed < floor {
                        return Err(End::Outdated);
                    }
                    floor = listed;
                    WatchResponse::default()
                }
            };
        }
    }

    /// Reads everything; the revision it is of.
    async fn list(&mut self) -> Result<i64, StoreError> {
        let listing = self.store.list().await?;
        let leases = listing.kvs.iter().map(|kv| {
            let key = self.store.lease_name(&kv.key);
            let lease = entry::read(&key, &kv.value);
            (key, lease)
        });
        self.mirror.reset(leases);
        self.mirror.publish();
        self.seen = Some(listing.revision);
        Ok(listing.revision)
    }

    /// Moves on to another member.
    async fn broken(&self, watching: &Watching, cause: String) -> End {
        self.store.client.give_up(&watching.conn).await;
        End::Failed(format!("watch leases in etcd at {}: {cause}", watching.conn.endpoint))
    }

    /// Takes over the events newer than `floor`, and notes how far we have come: to the last event, not to
    /// the store's revision in the answer, because more events of older revisions may follow.
    fn apply(&mut self, response: &WatchResponse, floor: i64) {
        let mut reached = floor;
        for event in &response.events {
            let Some(kv) = event.kv.as_ref().filter(|kv| kv.mod_revision > floor) else { continue };
            reached = reached.max(kv.mod_revision);
            let key = self.store.lease_name(&kv.key);
            if event.kind == DELETE {
                self.mirror.remove(&key);
            } else {
                self.mirror.put(&key, entry::read(&key, &kv.value));
            }
        }
        // Without events it is a progress notice: everything up to the store's revision has been sent.
        if response.events.is_empty() && !response.created {
            reached = reached.max(response.header.as_ref().map_or(0, |header| header.revision));
        }
        self.seen = self.seen.max(Some(reached));
    }
}

/// Whether the watch goes on.
fn check(response: &WatchResponse, member: &str) -> Result<(), End> {
    let reason = &response.cancel_reason;
    if response.compact_revision != 0 || reason.contains("compacted") {
        return Err(End::Outdated);
    }
    if !response.canceled {
        return Ok(());
    }
    let advice = match reason.contains("permission denied") {
        true => "; grant the user read and write on our prefix",
        false => "",
    };
    Err(End::Failed(format!("watch leases in etcd at {member}: {reason}{advice}")))
}

/// The result of `future` if it is there already: answers that came in together are published together.
async fn ready_now<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

impl From<Fault> for End {
    fn from(fault: Fault) -> End {
        StoreError::from(fault).into()
    }
}
