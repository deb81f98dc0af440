//! `tuning`: kernel parameters and link attributes of a pod's interface (cni.md 2.6).
//!
//! What the attributes were goes to `<dataDir>/<cid>_<ifname>.json` before they change, and back on DEL.
//! Kernel parameters end with the namespace; a failed ADD puts them back as well.

use std::fs;
use std::path::{Path, PathBuf};

use kernel::link::{LinkChange, LinkInfo};
use kernel::rtnl::Rtnl;
use kernel::{Netns, sysctl};
use model::IfName;
use model::cni::tuning::{Attributes, Tuning, backup_name, data_dir, sysctl_path};
use model::cni::{CniResult, Error, code};
use regex_lite::Regex;

use crate::pod::{self, internal};
use crate::record;
use crate::skel::Call;
use crate::undo::Undo;

const NAME: &str = "tuning";
/// Regular expressions, one a line, of the keys an administrator allows; all if there is no such file.
const ALLOWED: &str = "/etc/cni/tuning/allowlist.conf";

/// Sets parameters and attributes; hands the result on with the hardware address set.
///
/// # Errors
/// The configuration, no result handed on, the kernel's refusal; what was changed is put back then.
pub fn add(call: &Call) -> Result<CniResult, Error> {
    let (conf, sysctls) = parse(call)?;
    let mut result = prev_result(call)?;
    let name = pod::interface(&call.env.ifname)?;
    let netns = pod::open(&call.env.netns)?;
    let mut undo = Undo::default();
    let done = set_sysctls(&netns, &sysctls, &mut undo)
        .and_then(|()| set_link(call, &conf, &netns, name, &mut undo));
    undo.finish(done)?;
    if let Some(mac) = conf.link.mac {
        result.interfaces.iter_mut().filter(|i| i.name == name.as_str()).for_each(|i| {
            i.mac = mac.to_string();
        });
    }
    Ok(result)
}

/// Puts the attributes back as far as the interface is still there, and forgets them.
///
/// # Errors
/// A file that cannot be removed; nothing else is worth keeping a pod for.
pub fn del(call: &Call) -> Result<(), Error> {
    let Ok(name) = IfName::new(&call.env.ifname) else { return Ok(()) };
    let file = backup(&data_dir(&call.conf()), call, name);
    if let Some(former) = read_backup(&file)
        && let Ok(Some(netns)) = pod::open_for_del(&call.env.netns)
    {
        restore(&netns, name, &former);
    }
    remove_backup(&file)?;
    record::remove(NAME, call)
}

/// Compares parameters and attributes with the configuration.
///
/// # Errors
/// The first difference.
pub fn check(call: &Call) -> Result<(), Error> {
    let (conf, sysctls) = parse(call)?;
    prev_result(call)?;
    let name = pod::interface(&call.env.ifname)?;
    let netns = pod::open(&call.env.netns)?;
    let differs = |what: String, want: String, have: String| {
        let msg = format!("Error: Tuning configured {what} is {want}, current value is {have}");
        if want == have { Ok(()) } else { Err(Error::internal(msg)) }
    };
    netns
        .visit(|| {
            sysctls.iter().try_for_each(|(path, want)| {
                let have = sysctl::read(path).map_err(internal)?;
                differs(format!("value of /proc/sys/{path}"), want.clone(), have)
            })
        })
        .map_err(internal)??;
    if conf.link.is_empty() {
        return Ok(());
    }
    let (_, link) = look(&netns, name)?;
    let have = attributes(&link, &conf.link);
    // Only what is asked for was read, so the others are equal.
    let text = |value: Option<String>| value.unwrap_or_default();
    let number = |value: Option<u32>| text(value.map(|v| v.to_string()));
    let flag = |value: Option<bool>| text(value.map(|v| v.to_string()));
    let mac = |value: Option<model::Mac>| text(value.map(|v| v.to_string()));
    let want = &conf.link;
    for (what, want, have) in [
        ("Ethernet", mac(want.mac), mac(have.mac)),
        ("promisc", flag(want.promisc), flag(have.promisc)),
        ("MTU", number(want.mtu), number(have.mtu)),
        ("all-multicast mode", flag(want.allmulti), flag(have.allmulti)),
        ("transmission queue length", number(want.txqlen), number(have.txqlen)),
    ] {
        differs(format!("{what} of {name}"), want, have)?;
    }
    Ok(())
}

/// Whether the configuration is one we serve.
///
/// # Errors
/// It is not.
pub fn status(call: &Call) -> Result<(), Error> {
    parse(call).map(|_| ())
}

/// Forgets the former values of interfaces that are gone (B-34).
///
/// # Errors
/// The list is malformed, or a file cannot be removed.
pub fn gc(call: &Call) -> Result<(), Error> {
    let Some(valid) = call.valid_attachments()? else { return Ok(()) };
    let dir = data_dir(&call.conf());
    record::stale(NAME, call, &valid).iter().try_for_each(|record| {
        if let Ok(name) = IfName::new(&record.ifname) {
            remove_backup(&Path::new(&dir).join(backup_name(&record.container_id, name)))?;
        }
        record::remove_record(call, record)
    })
}

/// The configuration, and the paths of its parameters with their values.
fn parse(call: &Call) -> Result<(Tuning, Vec<(String, String)>), Error> {
    let failed = |e: String| Error::config(format!("failed to load netconf: {e}"));
    let conf = Tuning::parse(&call.conf(), &call.env.args).map_err(failed)?;
    check_allowed(&conf)?;
    // GC and STATUS are about no interface; any name does to check the form of the keys.
    let ifname = if call.env.ifname.is_empty() { "eth0" } else { &call.env.ifname };
    let path = |(key, value): &(String, String)| {
        sysctl_path(key, ifname).map(|path| (path, value.clone())).map_err(Error::config)
    };
    let sysctls = conf.sysctl.iter().map(path).collect::<Result<_, _>>()?;
    Ok((conf, sysctls))
}

fn prev_result(call: &Call) -> Result<CniResult, Error> {
    call.prev_result.clone().ok_or_else(|| Error::config("Required prevResult missing"))
}

/// The keys as written, before `IFNAME` and dots are replaced.
fn check_allowed(conf: &Tuning) -> Result<(), Error> {
    if conf.sysctl.is_empty() {
        return Ok(());
    }
    let text = match fs::read_to_string(ALLOWED) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::new(code::IO, format!("read {ALLOWED}: {e}"))),
    };
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let bad = |line: &str, e: regex_lite::Error| Error::config(format!("{ALLOWED}: {line:?}: {e}"));
    let allowed: Vec<Regex> =
        lines.iter().map(|line| Regex::new(line).map_err(|e| bad(line, e))).collect::<Result<_, _>>()?;
    match conf.sysctl.iter().find(|(key, _)| !allowed.iter().any(|regex| regex.is_match(key))) {
        None => Ok(()),
        Some((key, _)) => {
            let list = lines.join(" ");
            let rule = format!("Only the following sysctls are allowed: [{list}]");
            Err(Error::config(format!("Sysctl {key} is not allowed. {rule}"))
                .details(format!("{ALLOWED} lists what is")))
        }
    }
}

fn set_sysctls<'a>(netns: &Netns, sysctls: &'a [(String, String)], undo: &mut Undo<'a>) -> Result<(), Error> {
    let path = |netns: &Netns| netns.try_clone().map_err(internal);
    for (key, value) in sysctls {
        let (here, back) = (path(netns)?, path(netns)?);
        let former = here.visit(|| sysctl::read(key)).map_err(internal)?;
        undo.push(move || match former {
            Ok(former) => back.visit(|| sysctl::set(key, &former)).map_err(internal)?.map_err(internal),
            Err(_) => Ok(()),
        });
        // Written as it is, also where looking would say that nothing changes.
        here.visit(|| sysctl::set(key, value)).map_err(internal)?.map_err(internal)?;
    }
    Ok(())
}

fn set_link<'a>(
    call: &'a Call,
    conf: &'a Tuning,
    netns: &Netns,
    name: IfName,
    undo: &mut Undo<'a>,
) -> Result<(), Error> {
    if conf.link.is_empty() {
        return Ok(());
    }
    let (mut rtnl, link) = look(netns, name)?;
    let file = backup(&conf.data_dir, call, name);
    // What a killed ADD kept is older, and so right.
    let former = read_backup(&file).unwrap_or_default().or(attributes(&link, &conf.link));
    let record = record::new(NAME, call);
    record::begin(&record, call)?;
    undo.push(|| del(call));
    record::write_atomically(&file, former.to_json().to_compact().as_bytes())?;
    set(&mut rtnl, &link, &conf.link)?;
    record::complete(&record, call)
}

fn set(rtnl: &mut Rtnl, link: &LinkInfo, to: &Attributes) -> Result<(), Error> {
    let change = LinkChange {
        mac: to.mac.filter(|mac| link.link.mac != Some(*mac)),
        promisc: to.promisc,
        mtu: to.mtu,
        allmulticast: to.allmulti,
        txqlen: to.txqlen,
        ..LinkChange::default()
    };
    rtnl.set_link(link.index, &change)
        .map_err(|e| internal(e).during(format!("failed to tune {:?}", link.link.name.as_str())))
}

/// One by one: what cannot be put back must not keep the rest.
fn restore(netns: &Netns, name: IfName, former: &Attributes) {
    let Ok((mut rtnl, link)) = look(netns, name) else { return };
    for alone in [
        Attributes { mtu: former.mtu, ..Attributes::default() },
        Attributes { mac: former.mac, ..Attributes::default() },
        Attributes { promisc: former.promisc, ..Attributes::default() },
        Attributes { allmulti: former.allmulti, ..Attributes::default() },
        Attributes { txqlen: former.txqlen, ..Attributes::default() },
    ] {
        if !alone.is_empty() {
            let _ = set(&mut rtnl, &link, &alone);
        }
    }
}

/// What the link has of the attributes that are asked for.
fn attributes(link: &LinkInfo, asked: &Attributes) -> Attributes {
    const PROMISC: u32 = 0x100;
    const ALLMULTI: u32 = 0x200;
    let flag = |bit: u32| Some(link.flags & bit != 0);
    Attributes {
        mac: asked.mac.and(link.link.mac),
        promisc: asked.promisc.and(flag(PROMISC)),
        mtu: asked.mtu.and(link.link.mtu),
        allmulti: asked.allmulti.and(flag(ALLMULTI)),
        txqlen: asked.txqlen.and(link.link.txqlen),
    }
}

fn look(netns: &Netns, name: IfName) -> Result<(Rtnl, LinkInfo), Error> {
    let mut rtnl = pod::rtnl(netns)?;
    let link = rtnl.link_by_name(name).map_err(internal)?;
    let missing = || Error::internal(format!("failed to lookup {:?}: Link not found", name.as_str()));
    Ok((rtnl, link.ok_or_else(missing)?))
}

fn backup(dir: &str, call: &Call, name: IfName) -> PathBuf {
    Path::new(dir).join(backup_name(&call.env.container_id, name))
}

/// With what a killed ADD may have left of it.
fn remove_backup(file: &Path) -> Result<(), Error> {
    record::remove_file(&record::temporary(file))?;
    record::remove_file(file)
}

fn read_backup(file: &Path) -> Option<Attributes> {
    Attributes::parse(&fs::read_to_string(file).ok()?).ok()
}
