//! CHECK of the bridge plugin: the kernel against the result (cni.md 2.0.8, 2.1).

use kernel::link::LinkInfo;
use kernel::rtnl::Rtnl;
use model::IfName;
use model::cni::bridge::BridgeConf;
use model::cni::{CniResult, Error};
use plan::state::LinkKind;

use crate::pod::{self, internal};
use crate::skel::Call;
use crate::{compare, ipam, masquerade, pair};

/// `IFF_PROMISC`
const PROMISCUOUS: u32 = 0x100;

/// Compares the attachment with the result of its ADD.
///
/// # Errors
/// The first difference.
pub fn check(call: &Call) -> Result<(), Error> {
    let conf = super::parse(call)?;
    ipam::forward(call)?;
    let result = compare::told(call, "Required prevResult missing")?;
    let netns = pod::open(&call.env.netns)?;
    let mut host = Rtnl::open().map_err(internal)?;
    let mut inside = pod::rtnl(&netns)?;
    let bridge = check_bridge(&mut host, &conf, result)?;
    let link = pair::check_pod(&mut inside, call, result)?;
    check_port(&mut host, result, &bridge, &link)?;
    compare::addresses(&mut inside, &link, result)?;
    compare::routes(&mut inside, result)?;
    if conf.mac_spoof_check {
        super::spoof::check(call, &link)?;
    }
    if conf.ip_spoof_check {
        super::source::check(call, &link, result)?;
    }
    if conf.ip_masq && !conf.ipam.is_empty() {
        masquerade::check(call)?;
    }
    Ok(())
}

fn check_bridge(host: &mut Rtnl, conf: &BridgeConf, result: &CniResult) -> Result<LinkInfo, Error> {
    let name = conf.bridge.as_str();
    let told = result.interfaces.iter().find(|i| i.name == name && i.sandbox.is_empty());
    let missing = || Error::internal(format!("CNI created bridge {name} in host namespace was not found"));
    let told = told.ok_or_else(missing)?;
    let link = host.link_by_name(conf.bridge).map_err(internal)?.ok_or_else(missing)?;
    if !matches!(link.link.kind, LinkKind::Bridge(_)) {
        return Err(Error::internal(format!("Bridge interface {name} is not a bridge")));
    }
    compare::same_mac(&link, told, "Bridge interface")?;
    // Somebody who listens on the bridge makes it promiscuous as well (B-25).
    if conf.promiscuous && link.flags & PROMISCUOUS == 0 {
        let msg = format!(
            "Bridge interface {name} configured Promisc Mode true doesn't match current state: false"
        );
        return Err(Error::internal(msg));
    }
    Ok(link)
}

/// One host end of the result is the other end of the pod's interface and a port of the bridge.
fn check_port(host: &mut Rtnl, result: &CniResult, bridge: &LinkInfo, pod: &LinkInfo) -> Result<(), Error> {
    for told in result.interfaces.iter().filter(|i| i.sandbox.is_empty()) {
        let Ok(name) = IfName::new(&told.name) else { continue };
        let Some(link) = host.link_by_name(name).map_err(internal)? else { continue };
        let ends = pod.lower == Some(link.index) && link.lower == Some(pod.index);
        if ends && link.master == Some(bridge.index) {
            return compare::same_mac(&link, told, "Interface");
        }
    }
    let bridge = bridge.link.name;
    Err(Error::internal(format!("CNI veth created for bridge {bridge} was not found")))
}
