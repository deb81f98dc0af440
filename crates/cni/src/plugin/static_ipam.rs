//! `static`: the addresses of the document, always the same (cni.md 2.10). Keeps nothing, so nothing has
//! to be released; two pods with one document have one address.

use model::cni::static_ipam::StaticIpam;
use model::cni::{CniResult, Error};

use crate::compare;
use crate::skel::Call;

/// Gives what is configured.
///
/// # Errors
/// The configuration.
pub fn add(call: &Call) -> Result<CniResult, Error> {
    let StaticIpam { ips, routes, dns } = parse(call)?;
    Ok(CniResult { interfaces: Vec::new(), ips, routes, dns })
}

/// An address that is configured and told of has the same gateway in both. One that is not told of is no
/// fault: the runtime may have replaced it.
///
/// # Errors
/// The first difference.
pub fn check(call: &Call) -> Result<(), Error> {
    let conf = parse(call)?;
    let told = compare::told(call, "Required prevResult missing")?;
    for ip in &told.ips {
        let same = |ours: &&model::cni::IpConfig| ours.address.addr() == ip.address.addr();
        if conf.ips.iter().find(same).is_some_and(|ours| ours.gateway != ip.gateway) {
            let (name, ip) = (&call.env.ifname, ip.address);
            return Err(Error::internal(format!("static: Failed to match addr {ip} on interface {name}")));
        }
    }
    Ok(())
}

/// Fails if the configuration cannot be served.
///
/// # Errors
/// As said.
pub fn status(call: &Call) -> Result<(), Error> {
    parse(call).map(drop)
}

fn parse(call: &Call) -> Result<StaticIpam, Error> {
    StaticIpam::parse(&call.conf(), &call.env.args, call.version).map_err(Error::config)
}
