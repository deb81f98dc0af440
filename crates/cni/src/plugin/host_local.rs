//! `host-local`: addresses out of ranges, kept as files (cni.md 2.2).
//!
//! Takes the `ipam` member of a network's document; gives addresses, routes and resolver settings. Touches
//! no interface.

mod store;

use std::net::IpAddr;

use ipnet::IpNet;
use model::cni::host_local::{HostLocal, data_dir, resolv_conf};
use model::cni::range::{Range, RangeSet};
use model::cni::{CniResult, Dns, Error, IpConfig, code};

use crate::skel::Call;
use store::{Owner, Store};

/// Gives one address out of each range set, or none at all.
///
/// # Errors
/// The configuration, an exhausted range, an address that is taken, the disk.
pub fn add(call: &Call) -> Result<CniResult, Error> {
    let conf = parse(call)?;
    let dns = read_resolv_conf(&conf.resolv_conf)?;
    let owner = Owner::of(call);
    let mut store = Store::open(&conf.data_dir, call)?;
    let taken = allocate_all(&mut store, &conf, &owner);
    let ips = store.save_or_release(taken)?;
    Ok(CniResult { interfaces: Vec::new(), ips, routes: conf.routes, dns })
}

/// Releases what the attachment holds. Needs no range, so that a document which no longer parses still
/// releases (P-3).
///
/// # Errors
/// The store cannot be locked or written.
pub fn del(call: &Call) -> Result<(), Error> {
    let Some(mut store) = Store::open_existing(&data_dir(&call.conf()), call)? else { return Ok(()) };
    store.release(&Owner::of(call))?;
    store.save();
    Ok(())
}

/// Fails unless the attachment holds an address.
///
/// # Errors
/// It holds none.
pub fn check(call: &Call) -> Result<(), Error> {
    parse(call)?;
    let owner = Owner::of(call);
    let store = Store::open_existing(&data_dir(&call.conf()), call)?;
    if store.is_some_and(|store| store.held_by(&owner).next().is_some()) {
        return Ok(());
    }
    let id = &owner.container_id;
    Err(Error::internal(format!("host-local: Failed to find address added by container {id}")))
}

/// Fails with code 50 when a range set has no address left. Takes no lock.
///
/// # Errors
/// The configuration, or a set is exhausted.
pub fn status(call: &Call) -> Result<(), Error> {
    let conf = parse(call)?;
    let Some(mut store) = Store::peek(&conf.data_dir, call)? else { return Ok(()) };
    for (n, set) in conf.sets.iter().enumerate() {
        // The next one is as good as always free; only an exhausted set is looked at as a whole.
        if set.candidates(store.last(n)).any(|(ip, _)| store.is_free(ip)) {
            continue;
        }
        store.know_all()?;
        if !set.candidates(None).any(|(ip, _)| store.is_stale(ip)) {
            let dir = format!("{}/{}", conf.data_dir, call.network);
            let details = format!("delete pods, run GC, or remove reservations of dead containers in {dir}");
            return Err(Error::new(code::NOT_READY, exhausted(set)).details(details));
        }
    }
    Ok(())
}

/// Releases what no valid attachment holds (B-06). Without a list only what is known to be garbage: of an
/// earlier boot, or for a namespace that is gone.
///
/// # Errors
/// The list is malformed, or the store cannot be written.
pub fn gc(call: &Call) -> Result<(), Error> {
    let valid = call.valid_attachments()?;
    let Some(mut store) = Store::open_existing(&data_dir(&call.conf()), call)? else { return Ok(()) };
    match valid {
        Some(valid) => store.keep_only(&valid)?,
        None => store.free_stale()?,
    }
    store.save();
    Ok(())
}

fn parse(call: &Call) -> Result<HostLocal, Error> {
    HostLocal::parse(&call.conf(), &call.env.args, call.version).map_err(Error::config)
}

fn read_resolv_conf(path: &str) -> Result<Dns, Error> {
    if path.is_empty() {
        return Ok(Dns::default());
    }
    let text = std::fs::read_to_string(path);
    text.map(|text| resolv_conf(&text))
        .map_err(|e| Error::new(code::IO, format!("read resolvConf {path}: {e}")))
}

/// The addresses taken are in the store also when this fails; the caller gives them back.
fn allocate_all(store: &mut Store, conf: &HostLocal, owner: &Owner) -> Result<Vec<IpConfig>, Error> {
    let mut requested = conf.requested.clone();
    let mut ips = Vec::new();
    for (n, set) in conf.sets.iter().enumerate() {
        let wanted = requested.iter().position(|ip| set.range_of(*ip).is_some());
        let given = match wanted.map(|at| requested.remove(at)) {
            Some(ip) => reserve(store, set, n, ip, owner),
            None => allocate(store, set, n, owner),
        };
        let (ip, range) = given.map_err(|e| e.during(format!("failed to allocate for range {n}")))?;
        let address =
            IpNet::new(ip, range.subnet.prefix_len()).map_err(|e| Error::internal(e.to_string()))?;
        ips.push(IpConfig { interface: None, address, gateway: Some(range.gateway) });
    }
    if requested.is_empty() {
        return Ok(ips);
    }
    let left: Vec<String> = requested.iter().map(IpAddr::to_string).collect();
    Err(Error::internal(format!("failed to allocate all requested IPs: {}", left.join(","))))
}

fn reserve<'a>(
    store: &mut Store,
    set: &'a RangeSet,
    n: usize,
    ip: IpAddr,
    owner: &Owner,
) -> Result<(IpAddr, &'a Range), Error> {
    let range = set.range_of(ip).ok_or_else(|| Error::internal(format!("{ip} is in no range")))?;
    if ip == range.gateway {
        return Err(Error::internal(format!("requested ip {ip} is subnet's gateway")));
    }
    if !store.take(ip, owner)? {
        let msg = format!("requested IP address {ip} is not available in range set {set}");
        return Err(Error::internal(msg));
    }
    store.set_last(n, ip)?;
    Ok((ip, range))
}

fn allocate<'a>(
    store: &mut Store,
    set: &'a RangeSet,
    n: usize,
    owner: &Owner,
) -> Result<(IpAddr, &'a Range), Error> {
    if let Some(ip) = store.held_by(owner).find(|ip| set.range_of(*ip).is_some()) {
        let id = &owner.container_id;
        let msg = format!("{ip} has been allocated to {id}, duplicate allocation is not allowed");
        return Err(Error::internal(msg));
    }
    let last = store.last(n);
    // Second round: addresses of an earlier boot or of a namespace that is gone are nobody's any more (B-02).
    for reclaim in [false, true] {
        if reclaim {
            store.know_all()?;
        }
        for (ip, range) in set.candidates(last) {
            if reclaim && !store.is_stale(ip) {
                continue;
            }
            if reclaim {
                store.free(ip)?;
            }
            if store.take(ip, owner)? {
                store.set_last(n, ip)?;
                return Ok((ip, range));
            }
        }
    }
    Err(Error::internal(exhausted(set)))
}

fn exhausted(set: &RangeSet) -> String {
    format!("no IP addresses available in range set: {set}")
}
