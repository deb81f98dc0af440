//! `host-device`: a device of the host goes into the pod and comes back (cni.md 2.14).
//!
//! Takes the network's document; gives the moved device with its addresses. Its name on the host is kept as
//! its alias, as upstream does, so that either program brings back what the other moved.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use kernel::Netns;
use kernel::link::{LinkChange, LinkInfo, change};
use kernel::rtnl::Rtnl;
use model::IfName;
use model::cni::host_device::{HostDeviceConf, Selector};
use model::cni::{CniResult, Error};

use crate::attach::{self, Pod, Spec};
use crate::pod::{self, internal};
use crate::record;
use crate::skel::Call;
use crate::undo::Undo;
use crate::{compare, ipam};

const NAME: &str = "host-device";
/// Drivers that hand the device to a program: there is no interface to move.
const USER_SPACE_DRIVERS: [&str; 3] = ["vfio-pci", "uio_pci_generic", "igb_uio"];

/// Makes the attachment.
///
/// # Errors
/// One sentence; the device is back where it was.
pub fn add(call: &Call) -> Result<CniResult, Error> {
    let conf = parse(call)?;
    if is_in_user_space(&conf.selector, Path::new("/sys")) {
        return add_addresses(call, &conf);
    }
    let mut spec = Spec::shared(NAME, &conf.ipam, conf.dns.clone(), conf.enable_dad);
    let device = find(&conf.selector)?;
    spec.host_interface = device.link.name.to_string();
    attach::add(call, &spec, &|pod, undo| move_in(call, &device, pod, undo))
}

/// Without an interface: the address manager's answer alone.
fn add_addresses(call: &Call, conf: &HostDeviceConf) -> Result<CniResult, Error> {
    attach::check_printable(call, !conf.ipam.is_empty())?;
    let mut undo = Undo::default();
    let record = record::new(NAME, call);
    record::begin(&record, call)?;
    undo.push(|| record::remove(NAME, call));
    let asked =
        if conf.ipam.is_empty() { Ok(CniResult::default()) } else { ipam::ask(call, &conf.ipam, &mut undo) };
    let made = asked.and_then(|mut result| {
        if let Some(dns) = &conf.dns {
            result.dns = dns.clone();
        }
        record::complete(&record, call)?;
        Ok(result)
    });
    undo.finish(made)
}

/// One request: the device goes into the pod, gets its name there and its old one as alias.
fn move_in<'a>(
    call: &'a Call,
    device: &LinkInfo,
    pod: &mut Pod,
    undo: &mut Undo<'a>,
) -> Result<LinkInfo, Error> {
    let old = device.link.name;
    let what = format!("failed to move link {:?} to the pod", old.as_str());
    let mut host = Rtnl::open().map_err(internal)?;
    let was_up = device.link.up;
    undo.push(move || move_out(call, Some(old), was_up));
    let moving = LinkChange {
        name: Some(pod.name),
        netns: Some(pod.netns.as_fd()),
        alias: Some(old.as_str()),
        ..LinkChange::default()
    };
    if let Err(e) = host.set_link(device.index, &moving) {
        // Somebody took the name in the pod meanwhile: moved, not renamed.
        if let Some(link) =
            pod.rtnl.link_by_name(old).map_err(internal)?.filter(|l| l.link.mac == device.link.mac)
        {
            let home = Netns::current().map_err(internal)?;
            let back = LinkChange { netns: Some(home.as_fd()), ..LinkChange::default() };
            pod.rtnl.set_link(link.index, &back).map_err(internal)?;
        }
        return Err(internal(e).during(&what));
    }
    let found = pod.rtnl.link_by_name(pod.name).map_err(internal)?;
    found.ok_or_else(|| Error::internal(format!("{what}: it vanished")))
}

/// Brings the device back under its old name, down. `again` is for a device that was up before it was
/// moved. A device without alias is none of ours.
fn move_out(call: &Call, old: Option<IfName>, again: bool) -> Result<(), Error> {
    let Some(netns) = pod::open_for_del(&call.env.netns)? else { return find_back(old) };
    let mut inside = pod::rtnl(&netns)?;
    let name = pod::interface(&call.env.ifname)?;
    let Some(link) = inside.link_by_name(name).map_err(internal)? else { return find_back(old) };
    let alias = link.alias.as_deref().and_then(|alias| IfName::new(alias).ok());
    let Some(old) = alias.or(old) else { return Ok(()) };
    let failed = |e: &dyn std::fmt::Display| {
        let msg = format!("failed to move {name:?} back to the host as {old}: {e}", name = name.as_str());
        Error::internal(msg).details(format!("free the name {old} on the host, then DEL again"))
    };
    let host = Netns::current().map_err(internal)?;
    // Under its old name first: on the host another device may be called like the pod's interface, and one
    // that took the old name must not be met half way.
    let rename = LinkChange { up: Some(false), name: Some(old), ..LinkChange::default() };
    inside.set_link(link.index, &rename).map_err(|e| failed(&e))?;
    let moving = change(link.index, &LinkChange { netns: Some(host.as_fd()), ..LinkChange::default() });
    let moved = inside.run(&moving).into_iter().collect::<Result<(), _>>();
    if let Err(e) = moved {
        let back = LinkChange { name: Some(name), ..LinkChange::default() };
        inside.set_link(link.index, &back).map_err(internal)?;
        let up = LinkChange { up: Some(link.link.up), ..LinkChange::default() };
        inside.set_link(link.index, &up).map_err(internal)?;
        return Err(failed(&e));
    }
    if again {
        up_again(old)?;
    }
    Ok(())
}

fn up_again(name: IfName) -> Result<(), Error> {
    let mut host = Rtnl::open().map_err(internal)?;
    match host.link_by_name(name).map_err(internal)? {
        Some(link) => {
            let up = LinkChange { up: Some(true), ..LinkChange::default() };
            host.set_link(link.index, &up).map_err(internal)
        }
        None => Ok(()),
    }
}

/// The kernel brings a physical device back when the namespace ends, under the name it had there or a
/// made-up one: it is known by its alias.
fn find_back(old: Option<IfName>) -> Result<(), Error> {
    let Some(old) = old else { return Ok(()) };
    let mut host = Rtnl::open().map_err(internal)?;
    let links = host.links().map_err(internal)?;
    if links.iter().any(|link| link.link.name == old) {
        return Ok(());
    }
    let Some(link) = links.iter().find(|link| link.alias.as_deref() == Some(old.as_str())) else {
        return Ok(());
    };
    let back = LinkChange { up: Some(false), name: Some(old), ..LinkChange::default() };
    host.set_link(link.index, &back).map_err(internal)
}

/// Brings the device back and releases the address; both also without namespace (B-31).
///
/// # Errors
/// The old name is taken on the host: the device then stays in the pod, with its address.
pub fn del(call: &Call) -> Result<(), Error> {
    let record = record::read(NAME, call);
    let old = record.and_then(|record| IfName::new(&record.host_interface).ok());
    let configured = || call.conf().string("device").ok().and_then(|name| IfName::new(&name).ok());
    move_out(call, old.or_else(configured), false)?;
    ipam::release(call)?;
    record::remove(NAME, call)
}

/// Compares the attachment with the result of its ADD.
///
/// # Errors
/// The first difference.
pub fn check(call: &Call) -> Result<(), Error> {
    let conf = parse(call)?;
    let missing = "Required prevResult missing";
    if is_in_user_space(&conf.selector, Path::new("/sys")) {
        ipam::forward(call)?;
        return compare::told(call, missing).map(drop);
    }
    attach::check(call, &conf.ipam, missing, |_| Ok(()))
}

/// Whether ADD could be served: the address manager says. The device may be in a pod, where it belongs.
///
/// # Errors
/// The address manager's own.
pub fn status(call: &Call) -> Result<(), Error> {
    parse(call)?;
    ipam::forward(call)
}

/// Brings devices back whose namespaces are gone, and has the address manager forget them.
///
/// # Errors
/// The first failure, after everything was tried.
pub fn gc(call: &Call) -> Result<(), Error> {
    let mut outcome = Ok(());
    if let Some(valid) = call.valid_attachments()? {
        for record in record::stale(NAME, call, &valid) {
            let back = find_back(IfName::new(&record.host_interface).ok());
            outcome = outcome.and(back).and(record::remove_record(call, &record));
        }
    }
    outcome.and(ipam::forward(call))
}

fn parse(call: &Call) -> Result<HostDeviceConf, Error> {
    let failed = |e: String| Error::config(format!("failed to load netconf: {e}"));
    HostDeviceConf::parse(&call.conf()).map_err(failed)
}

/// The device on the host.
fn find(selector: &Selector) -> Result<LinkInfo, Error> {
    let mut host = Rtnl::open().map_err(internal)?;
    let failed = |what: String| {
        let details = "it is not on the host: another pod may have it; `ip link` lists the host's";
        Error::internal(format!("failed to find host device {what}: Link not found")).details(details)
    };
    if let Selector::Name(name) = selector {
        let found = host.link_by_name(*name).map_err(internal)?;
        return found.ok_or_else(|| failed(format!("{:?}", name.as_str())));
    }
    let links = host.links().map_err(internal)?;
    let (what, found) = match selector {
        Selector::Mac(mac) => (mac.to_string(), links.into_iter().find(|link| link.link.mac == Some(*mac))),
        other => {
            let names = names(other, Path::new("/sys"));
            let is = |link: &LinkInfo| names.iter().any(|name| name == link.link.name.as_str());
            (place(other, Path::new("/sys")).display().to_string(), links.into_iter().find(is))
        }
    };
    found.ok_or_else(|| failed(what))
}

/// Where sysfs tells of the device.
fn place(selector: &Selector, sys: &Path) -> PathBuf {
    match selector {
        Selector::Pci(id) => sys.join("bus/pci/devices").join(id),
        Selector::Auxiliary(id) => sys.join("bus/auxiliary/devices").join(id),
        Selector::Path(path) => sys.join(path.trim_start_matches("/sys/")),
        Selector::Name(_) | Selector::Mac(_) => sys.to_owned(),
    }
}

/// Interfaces below a device: directly, or below its virtio device.
fn names(selector: &Selector, sys: &Path) -> Vec<String> {
    let list = |dir: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    };
    let place = place(selector, sys);
    let mut found = list(&place.join("net"));
    if matches!(selector, Selector::Pci(_)) {
        let virtio = list(&place).into_iter().filter(|name| name.starts_with("virtio"));
        found.extend(virtio.flat_map(|name| list(&place.join(name).join("net"))));
    }
    found
}

fn is_in_user_space(selector: &Selector, sys: &Path) -> bool {
    let Selector::Pci(_) = selector else { return false };
    let driver = std::fs::read_link(place(selector, sys).join("driver")).unwrap_or_default();
    USER_SPACE_DRIVERS.iter().any(|name| driver.file_name().is_some_and(|driver| driver == *name))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sysfs as the kernel lays it out.
    #[test]
    fn devices_are_found_in_sysfs() {
        let sys = std::env::temp_dir().join(format!("loden-sysfs-{}", std::process::id()));
        for dir in [
            "devices/virtual/net/dummy0",
            "bus/pci/devices/0000:00:1f.6/net/enp0s31f6",
            "bus/pci/devices/0000:00:03.0/virtio0/net/ens3",
            "bus/pci/devices/0000:3b:00.1",
            "bus/pci/drivers/vfio-pci",
            "bus/auxiliary/devices/mlx5_core.sf.4/net/p0sf4",
        ] {
            std::fs::create_dir_all(sys.join(dir)).unwrap();
        }
        let driver = sys.join("bus/pci/devices/0000:3b:00.1/driver");
        std::os::unix::fs::symlink("../../drivers/vfio-pci", driver).unwrap();
        let pci = |id: &str| Selector::Pci(id.to_owned());
        for (selector, want, user_space) in [
            (Selector::Path("/sys/devices/virtual".to_owned()), Some("dummy0"), false),
            (pci("0000:00:1f.6"), Some("enp0s31f6"), false),
            (pci("0000:00:03.0"), Some("ens3"), false),
            (pci("0000:3b:00.1"), None, true),
            (pci("0000:ff:00.0"), None, false),
            (Selector::Auxiliary("mlx5_core.sf.4".to_owned()), Some("p0sf4"), false),
        ] {
            assert_eq!(names(&selector, &sys).first().map(String::as_str), want, "{selector:?}");
            assert_eq!(is_in_user_space(&selector, &sys), user_space, "{selector:?}");
        }
        std::fs::remove_dir_all(sys).unwrap();
    }
}
