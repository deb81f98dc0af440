//! The pod's interface as a device: found, reported, taken away.

use std::hash::{BuildHasher, RandomState};

use kernel::link::{LinkChange, LinkInfo, NewKind, NewLink};
use kernel::rtnl::{Deleting, Rtnl};
use kernel::sysctl;
use model::IfName;
use model::cni::{Error, Interface, Version};

use crate::pod::{self, internal};
use crate::record::{self, Record};
use crate::skel::Call;
use crate::{names, nft};

/// `EEXIST`
const EXISTS: i32 = 17;

/// Whether the kernel refused because the object is there already.
pub fn is_exists(error: &kernel::Error) -> bool {
    error.code() == Some(EXISTS)
}

/// A name for a host end: `veth` and eight hex digits, which tools look for.
///
/// # Errors
/// None in practice.
pub fn random_name() -> Result<IfName, Error> {
    let random = RandomState::new().hash_one(std::process::id()) as u32;
    IfName::new(&format!("veth{random:08x}")).map_err(internal)
}

/// Both ends of a pair exist already, or one of them.
pub fn taken(name: IfName, peer: IfName) -> Error {
    let (name, peer) = (name.as_str(), peer.as_str());
    Error::internal(format!("container veth name ({name:?}) peer provided ({peer:?}) already exists"))
}

/// Makes a pair in one request: the near end as told, the far one already in the pod.
///
/// # Errors
/// The pod's interface exists, the kernel's refusal.
pub fn make_veth(rtnl: &mut Rtnl, new: &NewLink<'_>) -> Result<(), Error> {
    let peer = new.end.name;
    let far = match &new.kind {
        NewKind::Veth(far) => far.name,
        _ => peer,
    };
    rtnl.create_link(new).map_err(|e| match is_exists(&e) {
        true => taken(far, peer),
        false => Error::internal(format!("failed to make veth pair: {e}")),
    })?;
    let _ = sysctl::set(&format!("net/ipv6/conf/{peer}/accept_ra"), "0");
    Ok(())
}

/// A device as results tell of it; `sandbox` is empty on the host.
pub fn interface(call: &Call, link: &LinkInfo, sandbox: &str) -> Interface {
    Interface {
        name: link.link.name.to_string(),
        mac: link.link.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        mtu: if call.version >= Version(1, 1, 0) { link.link.mtu.unwrap_or(0).into() } else { 0 },
        sandbox: sandbox.to_owned(),
        ..Interface::default()
    }
}

/// The name a device has in the pod until it gets its own. Older kernels look for a new device's name in
/// the namespace of the asker, where `eth0` is taken. The same for every call about an attachment, so that
/// what a killed one left is found.
///
/// # Errors
/// None in practice.
pub fn temporary_name(call: &Call) -> Result<IfName, Error> {
    let mark = names::mark(&call.network, &call.env.container_id, &call.env.ifname);
    IfName::new(&format!("veth{}", &names::sha512(&mark)[..8])).map_err(internal)
}

/// A removal under way.
pub struct Removal(Option<(Rtnl, LinkInfo, Option<Deleting>)>);

/// Begins to delete the pod's interface; its address may be given away once that is finished. From the pod if its
/// namespace is there, else from the host by our record. `rules` tells whether rules of the host are deleted too.
///
/// # Errors
/// The namespace is there and cannot be entered, or the kernel's refusal.
pub fn remove(call: &Call, record: Option<&Record>, rules: bool) -> Result<Removal, Error> {
    let (rtnl, name) = match pod::open_for_del(&call.env.netns)? {
        Some(netns) => (pod::rtnl(&netns)?, call.env.ifname.as_str()),
        None => match record {
            Some(record) => (Rtnl::open().map_err(internal)?, record.host_interface.as_str()),
            None => return Ok(Removal(None)),
        },
    };
    let Ok(name) = IfName::new(name) else { return Ok(Removal(None)) };
    remove_named(rtnl, name, rules.then_some(&call.nft))
}

/// [`remove`] of a device in the namespace of a socket. One that is not there is no error.
///
/// # Errors
/// The kernel's refusal.
pub fn remove_named(mut rtnl: Rtnl, name: IfName, rules: Option<&nft::Host>) -> Result<Removal, Error> {
    let Some(link) = rtnl.link_by_name(name).map_err(internal)? else { return Ok(Removal(None)) };
    let deleting = match rules {
        Some(rules) => rules.start_deleting(&mut rtnl, link.index).ok(),
        None => rtnl.start_deleting(link.index, None).ok(),
    };
    Ok(Removal(Some((rtnl, link, deleting))))
}

impl Removal {
    /// Waits until the device is out of everybody's sight: nothing is sent or answered by it then. One that the kernel
    /// does not delete is silenced at least.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn finish(self) -> Result<(), Error> {
        let Some((mut rtnl, link, deleting)) = self.0 else { return Ok(()) };
        let deleted = match deleting {
            Some(deleting) => rtnl.await_deleted(deleting),
            // No process could be made for it.
            None => rtnl.delete_link(link.index),
        };
        deleted.map(drop).map_err(|e| {
            let down = LinkChange { up: Some(false), ..LinkChange::default() };
            let _ = rtnl.set_link(link.index, &down);
            internal(e)
        })
    }
}

/// Deletes a device of the host if it is there; both ends of a veth go together.
///
/// # Errors
/// The kernel's refusal.
pub fn delete_on_host(name: IfName) -> Result<(), Error> {
    let mut rtnl = Rtnl::open().map_err(internal)?;
    match rtnl.link_by_name(name).map_err(internal)? {
        Some(link) => rtnl.delete_link(link.index).map(drop).map_err(internal),
        None => Ok(()),
    }
}

/// What a dead attachment may have left on the host.
///
/// # Errors
/// The kernel's refusal, or the record cannot be removed.
pub fn end(call: &Call, record: &Record) -> Result<(), Error> {
    if let Ok(name) = IfName::new(&record.host_interface) {
        delete_on_host(name)?;
    }
    record::remove_record(call, record)
}
