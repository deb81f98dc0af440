//! `bandwidth`: limits what goes to and from a pod (cni.md 2.7).
//!
//! To the pod a token bucket on the host's end of the veth is enough. What comes from it is sent through an
//! `ifb` device, because only what leaves a device can be kept waiting.

use kernel::link::{LinkChange, LinkInfo, NewKind, NewLink};
use kernel::rtnl::{Rtnl, tc};
use model::IfName;
use model::cni::bandwidth::{Bandwidth, Bucket, Limit};
use model::cni::{CniResult, Error, Interface};

use crate::names;
use crate::pod::{self, internal};
use crate::record;
use crate::skel::Call;
use crate::undo::Undo;

const NAME: &str = "bandwidth";

/// Sets the limits, in place of those that are there; the `ifb` device is added to the result.
///
/// # Errors
/// The configuration, no result handed on, an interface that is no veth, the kernel's refusal; nothing stays
/// then.
pub fn add(call: &Call) -> Result<CniResult, Error> {
    let (conf, mut result) = read(call)?;
    if conf.is_zero() {
        return Ok(result);
    }
    let mut host = Rtnl::open().map_err(internal)?;
    let port = host_end(call, &mut host, &result)?;
    let name = ifb(call)?;
    let mut record = record::new(NAME, call);
    record.host_interface = name.to_string();
    record::begin(&record, call)?;
    let mut undo = Undo::default();
    undo.push(|| del(call));
    let made = (|| {
        if let Some(bucket) = conf.ingress.bucket() {
            limit(&mut host, &port, &bucket)?;
        }
        match conf.egress.bucket() {
            Some(bucket) => Ok(Some(limit_egress(&mut host, &port, name, &bucket)?)),
            None => Ok(None),
        }
    })();
    let device = undo.finish(made)?;
    record::complete(&record, call)?;
    if let Some(device) = device {
        let mac = device.link.mac.map(|mac| mac.to_string()).unwrap_or_default();
        result.interfaces.push(Interface { name: name.to_string(), mac, ..Interface::default() });
    }
    Ok(result)
}

/// Removes the `ifb` device; the rest goes with the veth.
///
/// # Errors
/// The kernel's refusal.
pub fn del(call: &Call) -> Result<(), Error> {
    remove(&mut Rtnl::open().map_err(internal)?, ifb(call)?)?;
    record::remove(NAME, call)
}

/// Compares the kernel's limits with the configuration.
///
/// # Errors
/// The first difference.
pub fn check(call: &Call) -> Result<(), Error> {
    let (conf, result) = read(call)?;
    if conf.is_zero() {
        return Ok(());
    }
    let mut host = Rtnl::open().map_err(internal)?;
    let port = host_end(call, &mut host, &result)?;
    compare(&mut host, &port, conf.ingress)?;
    if conf.egress.rate == 0 {
        return Ok(());
    }
    let name = ifb(call)?;
    let device = host.link_by_name(name).map_err(internal)?;
    let device =
        device.ok_or_else(|| Error::internal(format!("device {name} of the egress limit not found")))?;
    compare(&mut host, &device, conf.egress)
}

/// Whether the configuration is one we serve.
///
/// # Errors
/// It is not.
pub fn status(call: &Call) -> Result<(), Error> {
    parse(call).map(|_| ())
}

/// Removes the `ifb` devices of the network's attachments that are not valid.
///
/// # Errors
/// The kernel's refusal.
pub fn gc(call: &Call) -> Result<(), Error> {
    let Some(valid) = call.valid_attachments()? else { return Ok(()) };
    record::stale(NAME, call, &valid).iter().try_for_each(|record| {
        if let Ok(name) = IfName::new(&record.host_interface) {
            remove(&mut Rtnl::open().map_err(internal)?, name)?;
        }
        record::remove_record(call, record)
    })
}

fn parse(call: &Call) -> Result<Bandwidth, Error> {
    Bandwidth::parse(&call.conf())
        .map_err(|e| Error::config(format!("failed to parse network configuration: {e}")))
}

fn read(call: &Call) -> Result<(Bandwidth, CniResult), Error> {
    let conf = parse(call)?;
    let missing = || Error::config("must be called as chained plugin");
    Ok((conf, call.prev_result.clone().ok_or_else(missing)?))
}

/// `bwp` and twelve digits of a hash of network and container.
fn ifb(call: &Call) -> Result<IfName, Error> {
    let hash = names::sha512(&format!("{}{}", call.network, call.env.container_id));
    IfName::new(&format!("bwp{}", &hash[..12])).map_err(internal)
}

/// The host's end of the pod's interface; the result has to name it.
fn host_end(call: &Call, host: &mut Rtnl, result: &CniResult) -> Result<LinkInfo, Error> {
    if result.interfaces.is_empty() {
        return Err(Error::config("no interfaces provided"));
    }
    let name = pod::interface(&call.env.ifname)?;
    let mut inside = pod::rtnl(&pod::open(&call.env.netns)?)?;
    let link = inside.link_by_name(name).map_err(internal)?;
    let bad = |why: &str| Error::internal(format!("container interface {name} has no veth peer: {why}"));
    let link = link.ok_or_else(|| bad("Link not found"))?;
    if !matches!(link.link.kind, plan::state::LinkKind::Veth(_)) {
        return Err(bad("it is no veth"));
    }
    let index = link.lower.ok_or_else(|| bad("its other end is not told"))?;
    let missing = || Error::internal(format!("veth peer with index {index} is not in host ns"));
    let port = host.link_by_index(index).map_err(internal)?.ok_or_else(missing)?;
    let named = result.interfaces.iter().any(|i| i.sandbox.is_empty() && i.name == port.link.name.as_str());
    match named {
        true => Ok(port),
        false => Err(Error::internal("no veth peer of container interface found in host ns")),
    }
}

fn limit(host: &mut Rtnl, device: &LinkInfo, bucket: &Bucket) -> Result<(), Error> {
    let name = device.link.name;
    host.request(&tc::put_bucket(device.index, bucket), || format!("create qdisc tbf on {name}"))
        .map_err(internal)
}

fn limit_egress(host: &mut Rtnl, port: &LinkInfo, name: IfName, bucket: &Bucket) -> Result<LinkInfo, Error> {
    // Anew, so that a second ADD does not find the first one's (B-35).
    remove(host, name)?;
    let _ = host.request(&tc::delete_ingress(port.index), || "delete qdisc ingress".to_owned());
    let mut new = NewLink::new(name, NewKind::Plain("ifb"));
    (new.end.mtu, new.end.txqlen) = (port.link.mtu, Some(0));
    host.create_link(&new).map_err(internal)?;
    let missing = || Error::internal(format!("device {name} vanished while it was set up"));
    let device = host.link_by_name(name).map_err(internal)?.ok_or_else(missing)?;
    host.set_link(device.index, &LinkChange { up: Some(true), ..LinkChange::default() }).map_err(internal)?;
    let at = port.link.name;
    host.request(&tc::add_ingress(port.index), || format!("create qdisc ingress on {at}"))
        .map_err(internal)?;
    host.request(&tc::redirect_ingress(port.index, device.index), || format!("redirect {at} to {name}"))
        .map_err(internal)?;
    limit(host, &device, bucket)?;
    Ok(device)
}

fn remove(host: &mut Rtnl, name: IfName) -> Result<(), Error> {
    match host.link_by_name(name).map_err(internal)? {
        Some(link) => host.delete_link(link.index).map(|_| ()).map_err(internal),
        None => Ok(()),
    }
}

fn compare(host: &mut Rtnl, device: &LinkInfo, limit: Limit) -> Result<(), Error> {
    let Some(want) = limit.bucket() else { return Ok(()) };
    let name = device.link.name;
    let all = host.qdiscs(device.index).map_err(internal)?;
    let have = all.iter().find_map(|qdisc| qdisc.bucket);
    let have = have.ok_or_else(|| Error::internal(format!("Failed to find qdisc tbf on {name}")))?;
    for (what, want, have) in [
        ("Rate", want.rate, have.rate),
        ("Limit", want.limit.into(), have.limit.into()),
        // The kernel turns it into nanoseconds and back.
        ("Buffer", u64::from(want.buffer) >> 1, u64::from(have.buffer) >> 1),
    ] {
        if want != have {
            return Err(Error::internal(format!(
                "{what} doesn't match on {name}: {have}, configured {want}"
            )));
        }
    }
    Ok(())
}
