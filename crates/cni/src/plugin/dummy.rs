//! `dummy`: an interface of the pod that leads nowhere, to carry addresses (cni.md 2.16).

use kernel::link::{NewKind, NewLink};
use model::cni::common::{dns, ipam_type};
use model::cni::{CniResult, Error};

use crate::attach::{self, Spec};
use crate::ipam;
use crate::pod::Dad;
use crate::skel::Call;

const NAME: &str = "dummy";

/// Makes the attachment.
///
/// # Errors
/// One sentence; everything made so far has been taken back.
pub fn add(call: &Call) -> Result<CniResult, Error> {
    let mut spec = parse(call)?;
    // Nobody else is there.
    spec.dad = Dad::Off;
    attach::add(call, &spec, &|pod, undo| {
        let new = NewLink::new(pod.name, NewKind::Plain("dummy"));
        attach::create(call, pod, new, true, undo)
    })
}

/// Takes the attachment away.
///
/// # Errors
/// What could not be removed; what is missing is no error.
pub fn del(call: &Call) -> Result<(), Error> {
    attach::del(NAME, call)
}

/// Compares the attachment with the result of its ADD.
///
/// # Errors
/// The first difference.
pub fn check(call: &Call) -> Result<(), Error> {
    let spec = parse(call)?;
    attach::check(call, &spec.ipam, "dummy: Required prevResult missing", |link| {
        attach::is_kind(link, NAME, NAME)?;
        let down = || Error::internal(format!("interface {} is down", link.link.name));
        if link.link.up { Ok(()) } else { Err(down()) }
    })
}

/// Whether ADD could be served: the address manager says.
///
/// # Errors
/// The address manager's own.
pub fn status(call: &Call) -> Result<(), Error> {
    parse(call)?;
    ipam::forward(call)
}

/// Forgets attachments that are not valid.
///
/// # Errors
/// The first failure, after everything was tried.
pub fn gc(call: &Call) -> Result<(), Error> {
    attach::gc(NAME, call)
}

fn parse(call: &Call) -> Result<Spec, Error> {
    let failed = |e: String| Error::config(format!("failed to load netconf: {e}"));
    let ipam = ipam_type(&call.conf()).map_err(failed)?;
    let dns = dns(&call.conf()).map_err(failed)?;
    if ipam.is_empty() {
        return Err(Error::config("dummy interface requires an IPAM configuration"));
    }
    Ok(Spec::shared(NAME, &ipam, dns, false))
}
