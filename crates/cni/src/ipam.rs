//! The address manager a plugin delegates to (cni.md 1.13).

use model::cni::{CniResult, Error};

use crate::delegate;
use crate::pod;
use crate::skel::{Call, Verb};
use crate::undo::Undo;

/// Whether the manager finds its addresses with the help of the pod's interface, as dhcp does, so that it
/// has to be asked after that is made. Ours that do not are asked before: what they refuse needs no
/// undoing then. A foreign one might, so it is looked for before anything is made.
///
/// # Errors
/// There is no such manager.
pub fn needs_device(call: &Call, kind: &str) -> Result<bool, Error> {
    if matches!(kind, "" | "host-local" | "static") {
        return Ok(false);
    }
    delegate::look_for(kind, &call.env).map(|()| true)
}

/// Asks for addresses; none are an error.
///
/// # Errors
/// The manager's own.
pub fn ask<'a>(call: &'a Call, kind: &str, undo: &mut Undo<'a>) -> Result<CniResult, Error> {
    let (kind, input) = (kind.to_owned(), call.input.clone());
    let given = delegate::call(&kind, Verb::Add, &call.env, input.clone());
    // host-local takes back itself; DEL would release what an earlier ADD holds.
    let takes_back = kind == "host-local";
    // Also after a failure of its own, as the specification wants.
    let undo_ipam = move || delegate::call(&kind, Verb::Del, &call.env, input).map(|_| ());
    match given {
        Ok(result) => {
            undo.push(undo_ipam);
            let result = result.unwrap_or_default();
            let missing = || Error::internal("IPAM plugin returned missing IP config");
            if result.ips.is_empty() {
                return Err(missing());
            }
            result.ips.iter().try_for_each(|ip| pod::has_family_of(ip.address))?;
            Ok(result)
        }
        Err(error) => {
            if !takes_back {
                undo.push(undo_ipam);
            }
            Err(error)
        }
    }
}

/// DEL of the manager the document names, also when an ADD clears away what a killed one left.
///
/// # Errors
/// The manager's own.
pub fn release(call: &Call) -> Result<(), Error> {
    match delegate::ipam_type(call) {
        Some(kind) => delegate::call(&kind, Verb::Del, &call.env, call.input.clone()).map(|_| ()),
        None => Ok(()),
    }
}

/// The verb of the call, handed on to the manager the document names.
///
/// # Errors
/// The manager's own.
pub fn forward(call: &Call) -> Result<(), Error> {
    delegate::ipam_type(call).map_or(Ok(()), |kind| delegate::forward(&kind, call))
}
