//! `loopback`: brings the pod's `lo` up (cni.md 2.4).

use kernel::Netns;
use kernel::link::{LinkChange, LinkInfo};
use kernel::rtnl::Rtnl;
use model::IfName;
use model::cni::{CniResult, Error, Interface, IpConfig};

use crate::pod::{self, internal};
use crate::skel::Call;

/// Brings `lo` up and reports its addresses, or the result handed on.
///
/// # Errors
/// The namespace, or a foreign address on `lo`.
pub fn add(call: &Call) -> Result<CniResult, Error> {
    let (mut rtnl, lo) = look(&pod::open(&call.env.netns)?)?;
    set(&mut rtnl, &lo, true)?;
    let mut ips: Vec<IpConfig> = Vec::new();
    for address in rtnl.addresses(Some(lo.index)).map_err(internal)? {
        let ip = address.net.addr();
        if !ip.is_loopback() {
            let msg = format!("loopback interface found with non-loopback address {:?}", ip.to_string());
            return Err(Error::internal(msg));
        }
        if ips.iter().all(|known| known.address.addr().is_ipv4() != ip.is_ipv4()) {
            ips.push(IpConfig { interface: Some(0), address: address.net, gateway: None });
        }
    }
    if let Some(result) = &call.prev_result {
        return Ok(result.clone());
    }
    ips.sort_by_key(|ip| ip.address.addr().is_ipv6());
    let interface = Interface {
        name: "lo".to_owned(),
        mac: "00:00:00:00:00:00".to_owned(),
        sandbox: call.env.netns.clone(),
        ..Interface::default()
    };
    Ok(CniResult { interfaces: vec![interface], ips, ..CniResult::default() })
}

/// Takes `lo` down, unless the namespace is gone.
///
/// # Errors
/// The kernel's refusal.
pub fn del(call: &Call) -> Result<(), Error> {
    match pod::open_for_del(&call.env.netns)? {
        None => Ok(()),
        Some(netns) => {
            let (mut rtnl, lo) = look(&netns)?;
            set(&mut rtnl, &lo, false)
        }
    }
}

/// Fails while `lo` is down.
///
/// # Errors
/// As said.
pub fn check(call: &Call) -> Result<(), Error> {
    let (_, lo) = look(&pod::open(&call.env.netns)?)?;
    if lo.link.up { Ok(()) } else { Err(Error::internal("loopback interface is down")) }
}

fn look(netns: &Netns) -> Result<(Rtnl, LinkInfo), Error> {
    let mut rtnl = pod::rtnl(netns)?;
    let lo = rtnl.link_by_name(IfName::fixed("lo")).map_err(internal)?;
    let lo = lo.ok_or_else(|| Error::internal("failed to lookup \"lo\": no such device"))?;
    Ok((rtnl, lo))
}

fn set(rtnl: &mut Rtnl, lo: &LinkInfo, up: bool) -> Result<(), Error> {
    let change = LinkChange { up: Some(up), ..LinkChange::default() };
    rtnl.set_link(lo.index, &change).map_err(|e| internal(e).during("failed to set \"lo\" up or down"))
}
