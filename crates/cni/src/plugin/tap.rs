//! `tap`: a tap device of the pod, for a virtual machine in it (cni.md 2.17).

use std::fs;
use std::path::Path;

use kernel::link::{LinkChange, LinkInfo};
use kernel::tun::Tap;
use model::cni::tap::TapConf;
use model::cni::{CniResult, Error};

use crate::attach::{self, Pod, Spec};
use crate::ipam;
use crate::pod::internal;
use crate::skel::Call;
use crate::undo::Undo;

const NAME: &str = "tap";

/// Makes the attachment.
///
/// # Errors
/// One sentence; everything made so far has been taken back.
pub fn add(call: &Call) -> Result<CniResult, Error> {
    let conf = parse(call)?;
    let mut spec = Spec::shared(NAME, &conf.ipam, conf.dns.clone(), false);
    spec.notify_v6 = false;
    attach::add(call, &spec, &|pod, undo| create(call, &conf, pod, undo))
}

/// The device is made in the pod under its own name: no other namespace is looked at.
fn create<'a>(call: &'a Call, conf: &TapConf, pod: &mut Pod, undo: &mut Undo<'a>) -> Result<LinkInfo, Error> {
    let name = pod.name;
    let failed = |e: &dyn std::fmt::Display| Error::internal(format!("failed to create tap: {e}"));
    let bridge = match conf.bridge {
        None => None,
        Some(bridge) => {
            let found = pod.rtnl.link_by_name(bridge).map_err(internal)?;
            let missing = || {
                let details = "the bridge has to be in the pod before the tap device";
                Error::internal(format!("bridge {bridge}: Link not found")).details(details)
            };
            Some(found.ok_or_else(missing)?.index)
        }
    };
    undo.push(move || attach::delete_in_pod(call, &[name]));
    let tap = Tap { multi_queue: conf.multi_queue, owner: conf.owner, group: conf.group };
    let made = in_context(&conf.selinux_context, || pod.netns.visit(|| tap.create(name)))?;
    made.map_err(internal)?.map_err(|e| {
        let way_out =
            if e.code() == Some(2) { "the kernel lacks tap devices: load the module tun" } else { "" };
        failed(&e).details(way_out)
    })?;
    let look = |pod: &mut Pod| {
        let found = pod.rtnl.link_by_name(name).map_err(|e| failed(&e))?;
        found.ok_or_else(|| failed(&"it vanished"))
    };
    let link = look(pod)?;
    if conf.mac.is_none() && conf.mtu.is_none() && bridge.is_none() {
        return Ok(link);
    }
    let wanted = LinkChange { mac: conf.mac, mtu: conf.mtu, master: bridge, ..LinkChange::default() };
    pod.rtnl.set_link(link.index, &wanted).map_err(|e| failed(&e))?;
    look(pod)
}

/// A tap device gets the SELinux context of whoever makes it. Without SELinux the context means nothing.
fn in_context<T>(context: &str, work: impl FnOnce() -> T) -> Result<T, Error> {
    const CURRENT: &str = "/proc/thread-self/attr/current";
    if context.is_empty() || !Path::new("/sys/fs/selinux/enforce").exists() {
        return Ok(work());
    }
    let failed = |context: &str, e: std::io::Error| {
        Error::internal(format!("selinuxContext: change to {context:?}: {e}"))
            .details("the policy has to allow the runtime's domain this transition (dyntransition)")
    };
    let own = fs::read_to_string(CURRENT).map_err(|e| failed(context, e))?;
    fs::write(CURRENT, context).map_err(|e| failed(context, e))?;
    let done = work();
    let own = own.trim_end_matches(['\0', '\n']);
    fs::write(CURRENT, own).map_err(|e| failed(own, e))?;
    Ok(done)
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
    let conf = parse(call)?;
    attach::check(call, &conf.ipam, "Required prevResult missing", |link| attach::is_kind(link, "tun", NAME))
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

fn parse(call: &Call) -> Result<TapConf, Error> {
    let failed = |e: String| Error::config(format!("failed to load netconf: {e}"));
    TapConf::parse(&call.conf(), &call.env.args).map_err(failed)
}
