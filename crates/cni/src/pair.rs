//! DEL, GC and comparison of the plugins whose attachment is a veth pair with masquerading: bridge and ptp.

use kernel::link::LinkInfo;
use kernel::rtnl::Rtnl;
use model::cni::{CniResult, Error};
use plan::state::LinkKind;

use crate::record;
use crate::skel::Call;
use crate::{compare, device, ipam, masquerade};

/// Takes the attachment away: the device, the address, the rules. While the kernel is at work on the
/// device, the rest is done.
///
/// # Errors
/// What could not be removed; what is missing is no error.
pub fn del(plugin: &str, call: &Call) -> Result<(), Error> {
    let removal = device::remove(call, record::read(plugin, call).as_ref(), true)?;
    let ipam = ipam::release(call);
    let rules = masquerade::remove(call);
    removal.finish()?;
    ipam.and(rules)?;
    record::remove(plugin, call)
}

/// Removes rules and records of attachments that are not valid, and has the address manager do the same.
///
/// # Errors
/// The first failure, after everything was tried.
pub fn gc(plugin: &str, call: &Call) -> Result<(), Error> {
    let mut outcome = Ok(());
    if let Some(valid) = call.valid_attachments()? {
        outcome = masquerade::keep_only(call, &valid);
        for record in record::stale(plugin, call, &valid) {
            outcome = outcome.and(device::end(call, &record));
        }
    }
    outcome.and(ipam::forward(call))
}

/// The pod's end as the result tells of it.
///
/// # Errors
/// The first difference.
pub fn check_pod(inside: &mut Rtnl, call: &Call, result: &CniResult) -> Result<LinkInfo, Error> {
    let link = compare::pod_interface(inside, call, result)?;
    if !matches!(link.link.kind, LinkKind::Veth(_)) {
        return Err(Error::internal(format!("Container interface {} not of type veth/p2p", call.env.ifname)));
    }
    Ok(link)
}
