//! ADD, DEL, STATUS and GC of the plugins whose attachment is one interface in the pod and nothing on the
//! host: macvlan, ipvlan, vlan, dummy, tap, host-device. They differ in how the interface comes into being.

use kernel::Netns;
use kernel::link::{LinkChange, LinkInfo, NewLink};
use kernel::rtnl::Rtnl;
use model::IfName;
use model::cni::{CniResult, Dns, Error};

use crate::device::{self, interface, is_exists};
use crate::pod::{self, Dad, Setup, internal};
use crate::record::{self, Record};
use crate::skel::{Call, Verb};
use crate::undo::Undo;
use crate::{compare, ipam};

/// What the plugins have in common.
pub struct Spec {
    /// Name of the plugin, under which the record is kept.
    pub plugin: &'static str,
    /// Type of the address manager; empty for none.
    pub ipam: String,
    /// Addresses that were given before; the address manager is not asked then.
    pub given: Option<CniResult>,
    /// Replaces the address manager's answer.
    pub dns: Option<Dns>,
    /// IPv6 duplicate address detection.
    pub dad: Dad,
    /// Neighbours are told of IPv6 addresses.
    pub notify_v6: bool,
    /// Name of a device of the host that the interface was; kept for DEL.
    pub host_interface: String,
}

impl Spec {
    /// For an interface in a segment it shares with others.
    pub fn shared(plugin: &'static str, ipam: &str, dns: Option<Dns>, wait: bool) -> Spec {
        Spec {
            plugin,
            ipam: ipam.to_owned(),
            given: None,
            dns,
            dad: if wait { Dad::Wait } else { Dad::Optimistic },
            notify_v6: true,
            host_interface: String::new(),
        }
    }
}

/// The pod while its interface is made.
pub struct Pod {
    /// Its namespace.
    pub netns: Netns,
    /// A socket in it.
    pub rtnl: Rtnl,
    /// Name its interface gets.
    pub name: IfName,
}

/// How a plugin makes the interface: under its name, down. What it notes in [`Undo`] is taken back if a
/// later step fails.
pub type Make<'a, 'b> = &'b dyn Fn(&mut Pod, &mut Undo<'a>) -> Result<LinkInfo, Error>;

/// Refuses what could not be printed in the end (B-39).
///
/// # Errors
/// The result would have no address, and the version demands one.
pub fn check_printable(call: &Call, has_addresses: bool) -> Result<(), Error> {
    if has_addresses || call.verb != Verb::Add || !call.needs_addresses() {
        return Ok(());
    }
    let details = "without ipam, cniVersion has to be 0.3.0 or newer";
    Err(Error::config("cannot convert: no valid IP addresses").details(details))
}

/// Makes the attachment.
///
/// # Errors
/// One sentence; everything made so far has been taken back.
pub fn add<'a>(call: &'a Call, spec: &Spec, make: Make<'a, '_>) -> Result<CniResult, Error> {
    check_printable(call, !spec.ipam.is_empty() || spec.given.is_some())?;
    let name = pod::interface(&call.env.ifname)?;
    let netns = pod::open(&call.env.netns)?;
    let rtnl = pod::rtnl(&netns)?;
    let mut pod = Pod { netns, rtnl, name };
    let killed = record::read(spec.plugin, call).is_some_and(|record| !record.is_complete);
    if let Some(plugin) = crate::plugin::by_name(spec.plugin).filter(|_| killed) {
        // A killed ADD of ours; what it left is cleared away (B-36).
        (plugin.del)(call)?;
    }
    refuse_taken(&mut pod)?;
    let record = Record { host_interface: spec.host_interface.clone(), ..record::new(spec.plugin, call) };
    record::begin(&record, call)?;
    let mut undo = Undo::default();
    undo.push(|| record::remove(spec.plugin, call));
    let made = build(call, spec, make, &mut pod, &mut undo).and_then(|result| {
        let addresses = result.ips.iter().map(|ip| ip.address).collect();
        record::complete(&Record { addresses, ..record.clone() }, call)?;
        Ok(result)
    });
    undo.finish(made)
}

fn refuse_taken(pod: &mut Pod) -> Result<(), Error> {
    if pod.rtnl.link_by_name(pod.name).map_err(internal)?.is_none() {
        return Ok(());
    }
    let msg = format!("container interface name {:?} already exists", pod.name.as_str());
    Err(Error::internal(msg).details("DEL the attachment first"))
}

fn build<'a>(
    call: &'a Call,
    spec: &Spec,
    make: Make<'a, '_>,
    pod: &mut Pod,
    undo: &mut Undo<'a>,
) -> Result<CniResult, Error> {
    let late = ipam::needs_device(call, &spec.ipam)?;
    let mut result = match &spec.given {
        Some(given) => given.clone(),
        None if !spec.ipam.is_empty() && !late => ipam::ask(call, &spec.ipam, undo)?,
        None => CniResult::default(),
    };
    let link = make(pod, undo)?;
    if late && spec.given.is_none() {
        result = ipam::ask(call, &spec.ipam, undo)?;
    }
    result.interfaces = vec![interface(call, &link, &call.env.netns)];
    if result.ips.is_empty() {
        let up = LinkChange { up: Some(true), ..LinkChange::default() };
        let failed = |e| internal(e).during(format!("failed to set {:?} up", pod.name.as_str()));
        pod.rtnl.set_link(link.index, &up).map_err(failed)?;
    } else {
        result.ips.iter_mut().for_each(|ip| ip.interface = Some(0));
        let setup = Setup { dad: spec.dad, notify_v6: spec.notify_v6, ..Setup::of(pod.name, &result) };
        pod::configure(&pod.netns, &mut pod.rtnl, link.index, &setup)?;
    }
    if let Some(dns) = &spec.dns {
        result.dns = dns.clone();
    }
    Ok(result)
}

/// Makes a device in the pod under a temporary name and renames it. `from` is the namespace in which the
/// device below is named, the host's if absent.
///
/// # Errors
/// The kernel's refusal; nothing is left.
pub fn create<'a>(
    call: &'a Call,
    pod: &mut Pod,
    new: NewLink<'static>,
    in_pod: bool,
    undo: &mut Undo<'a>,
) -> Result<LinkInfo, Error> {
    let kind = new.kind.name().to_owned();
    let name = pod.name;
    let failed = |e: kernel::Error| Error::internal(format!("failed to create {kind}: {e}"));
    let temporary = device::temporary_name(call)?;
    let mut new: NewLink<'_> = new;
    new.end.name = temporary;
    undo.push(move || delete_in_pod(call, &[temporary, name]));
    let made = if in_pod {
        pod.rtnl.create_link(&new)
    } else {
        new.end.netns = Some(std::os::fd::AsFd::as_fd(&pod.netns));
        Rtnl::open().and_then(|mut host| host.create_link(&new))
    };
    match made {
        Err(e) if e.code() == Some(NOT_SUPPORTED) => {
            let way_out = format!("the kernel lacks {kind} devices: load the module {kind}");
            return Err(failed(e).details(way_out));
        }
        other => other.map_err(failed)?,
    }
    let vanished = || Error::internal(format!("failed to create {kind}: it vanished"));
    let mut link = pod.rtnl.link_by_name(temporary).map_err(failed)?.ok_or_else(vanished)?;
    let rename = LinkChange { name: Some(name), ..LinkChange::default() };
    pod.rtnl.set_link(link.index, &rename).map_err(|e| {
        let way_out = if is_exists(&e) { "DEL the attachment first" } else { "" };
        Error::internal(format!("failed to rename {kind} to {:?}: {e}", name.as_str())).details(way_out)
    })?;
    link.link.name = name;
    Ok(link)
}

/// `EOPNOTSUPP`
const NOT_SUPPORTED: i32 = 95;

/// Deletes devices of the pod, as far as they and the pod are there.
///
/// # Errors
/// The kernel's refusal.
pub fn delete_in_pod(call: &Call, names: &[IfName]) -> Result<(), Error> {
    let Some(netns) = pod::open_for_del(&call.env.netns)? else { return Ok(()) };
    let mut rtnl = pod::rtnl(&netns)?;
    for name in names {
        if let Some(link) = rtnl.link_by_name(*name).map_err(internal)? {
            rtnl.delete_link(link.index).map_err(internal)?;
        }
    }
    Ok(())
}

/// Takes the attachment away: the device and the address. Needs nothing of the configuration (P-3).
///
/// # Errors
/// What could not be removed; what is missing is no error.
pub fn del(plugin: &'static str, call: &Call) -> Result<(), Error> {
    let record = record::read(plugin, call);
    let gone = device::remove(call, None, false)?.finish();
    let ipam = ipam::release(call);
    if record.is_none_or(|record| !record.is_complete) {
        delete_in_pod(call, &[device::temporary_name(call)?])?;
    }
    ipam.and(gone)?;
    record::remove(plugin, call)
}

/// Compares the attachment with the result of its ADD. `missing` is said when there is none, `kind` looks
/// at what is particular to the plugin.
///
/// # Errors
/// The first difference.
pub fn check(
    call: &Call,
    ipam: &str,
    missing: &str,
    kind: impl FnOnce(&LinkInfo) -> Result<(), Error>,
) -> Result<(), Error> {
    if !ipam.is_empty() {
        ipam::forward(call)?;
    }
    let result = compare::told(call, missing)?;
    let mut inside = pod::rtnl(&pod::open(&call.env.netns)?)?;
    let link = compare::pod_interface(&mut inside, call, result)?;
    kind(&link)?;
    compare::addresses(&mut inside, &link, result)?;
    compare::routes(&mut inside, result)
}

/// The device is of a kind, named as the kernel does.
///
/// # Errors
/// It is of another one.
pub fn is_kind(link: &LinkInfo, kind: &str, called: &str) -> Result<(), Error> {
    let (name, have) = (link.link.name, link.link.kind.name());
    if have == kind {
        return Ok(());
    }
    Err(Error::internal(format!("Container interface {name} not of type {called}: it is {have:?}")))
}

/// Forgets attachments that are not valid (their devices went with the namespaces), and has the address
/// manager do the same.
///
/// # Errors
/// The first failure, after everything was tried.
pub fn gc(plugin: &'static str, call: &Call) -> Result<(), Error> {
    let mut outcome = Ok(());
    if let Some(valid) = call.valid_attachments()? {
        for record in record::stale(plugin, call, &valid) {
            outcome = outcome.and(record::remove_record(call, &record));
        }
    }
    outcome.and(ipam::forward(call))
}
