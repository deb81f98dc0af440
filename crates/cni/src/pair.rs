//! DEL, GC and comparison of the plugins whose attachment is a veth pair with masquerading: bridge and ptp.

use kernel::link::LinkInfo;
use kernel::rtnl::Rtnl;
use model::cni::{CniResult, Error};
use plan::state::LinkKind;

use crate::record::{self, Rules};
use crate::skel::Call;
use crate::{compare, device, ipam, masquerade};

/// Takes the attachment away: the device, then the rules and the address.
///
/// # Errors
/// What could not be removed; what is missing is no error.
pub fn del(plugin: &str, call: &Call) -> Result<(), Error> {
    let record = record::read(plugin, call);
    // A killed ADD may have got further than it wrote down.
    let known = record.as_ref().filter(|record| record.is_complete).and_then(|r| r.masquerade.as_ref());
    let removal = device::remove(call, record.as_ref(), known != Some(&Rules::None))?;
    let gone = removal.finish();
    let rules = masquerade::remove_known(call, known);
    ipam::release(call).and(rules).and(gone)?;
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
