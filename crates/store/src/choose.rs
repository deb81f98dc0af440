//! What to do about the leases a store already holds: take our own again, or make which new one. The
//! rules are in `model::pool`; this hands them the raw keys and values of a store.

use model::codec::etcd_key;
use model::pool::{self, Entry, PoolError};
use model::{Lease, NetConf, Subnets};

use crate::backoff::random;
use crate::{Request, StoreError, entry};

/// A key under `subnets/`, as far as it can be read.
pub(crate) struct Candidate {
    /// Not to be given to anybody, even where the value is corrupt (F-26).
    taken: Option<Subnets>,
    lease: Option<Lease>,
    reserved: bool,
}

impl Candidate {
    /// From the last part of the key, the value, and whether it never runs out.
    pub(crate) fn new(name: &str, value: &[u8], reserved: bool) -> Candidate {
        Candidate { taken: etcd_key::read(name), lease: entry::read(name, value).ok(), reserved }
    }
}

/// What is to be written. Numbers are places in the list of candidates.
pub(crate) struct Plan {
    /// Our own leases that no longer fit the configuration: to be deleted.
    pub replaced: Vec<usize>,
    pub choice: Choice,
}

/// Which lease will be ours.
pub(crate) enum Choice {
    /// One that is ours already.
    Keep(usize, Subnets),
    /// One that nobody has.
    Create(Subnets),
}

/// Decides by flannel.md 3.4 and 3.5.
///
/// # Errors
/// `Exhausted`; `Broken` if the configuration was not validated.
pub(crate) fn choose(net: &NetConf, request: &Request, candidates: &[Candidate]) -> Result<Plan, StoreError> {
    let place = |wanted: &Lease| {
        candidates.iter().position(|c| c.lease.as_ref().is_some_and(|lease| lease.subnets == wanted.subnets))
    };
    let entries =
        candidates.iter().filter_map(|c| Some(Entry { lease: c.lease.as_ref()?, reserved: c.reserved }));
    let own = pool::own(net, entries, &request.attrs);
    let replaced: Vec<usize> = own.outdated.iter().filter_map(|lease| place(lease)).collect();
    if let Some((at, subnets)) = own.keep.and_then(|kept| Some((place(kept.lease)?, kept.lease.subnets))) {
        return Ok(Plan { replaced, choice: Choice::Keep(at, subnets) });
    }
    let taken: Vec<Subnets> = candidates
        .iter()
        .enumerate()
        .filter(|(at, _)| !replaced.contains(at))
        .filter_map(|(_, candidate)| candidate.taken)
        .collect();
    let subnets = match pool::previous(net, &request.previous, &taken) {
        Some(previous) => previous,
        None => pool::pick(net, &taken, &mut random).map_err(|error| match error {
            PoolError::Exhausted { .. } => StoreError::Exhausted(error.to_string()),
            PoolError::NoRange(_) => StoreError::Broken(error.to_string()),
        })?,
    };
    Ok(Plan { replaced, choice: Choice::Create(subnets) })
}
