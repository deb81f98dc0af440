//! `macvlan`, `ipvlan`, `vlan`: an interface of the pod on top of one of the host, or with
//! `linkInContainer` of the pod (cni.md 2.8, 2.12, 2.13).
//!
//! Takes the network's document; gives one interface with its addresses. On a shared segment IPv6 looks for
//! duplicates, but nobody waits for it unless `enabledad` says so.

use kernel::link::{Detail, LinkInfo, NewKind, NewLink};
use kernel::rtnl::{RouteFilter, Rtnl};
use model::IfName;
use model::cni::child::{ChildConf, ChildKind, IPVLAN_MODES, MACVLAN_MODES};
use model::cni::{CniResult, Error, Members, code};
use plan::state::TABLE_MAIN;

use crate::attach::{self, Pod, Spec};
use crate::ipam;
use crate::pod::internal;
use crate::skel::{Call, Verb};
use crate::undo::Undo;

/// One of the three plugins.
pub struct Child {
    name: &'static str,
    read: fn(&Members<'_>, &str) -> Result<ChildConf, String>,
}

/// `macvlan`
pub const MACVLAN: Child = Child { name: "macvlan", read: ChildConf::macvlan };
/// `ipvlan`
pub const IPVLAN: Child = Child { name: "ipvlan", read: |doc, _| ChildConf::ipvlan(doc) };
/// `vlan`
pub const VLAN: Child = Child { name: "vlan", read: |doc, _| ChildConf::vlan(doc) };

impl Child {
    /// Makes the attachment.
    ///
    /// # Errors
    /// One sentence; everything made so far has been taken back.
    pub fn add(&self, call: &Call) -> Result<CniResult, Error> {
        let conf = self.parse(call)?;
        let mut spec = Spec::shared(self.name, &conf.ipam, conf.dns.clone(), conf.enable_dad);
        if let (ChildKind::Ipvlan { .. }, true, Some(before)) =
            (conf.kind, conf.ipam.is_empty(), &call.prev_result)
            && !before.ips.is_empty()
        {
            // Chained: the addresses given before become the new interface's.
            spec.given = Some(before.clone());
        }
        self.check_ipam(&spec)?;
        attach::add(call, &spec, &|pod, undo| create(call, &conf, pod, undo))
    }

    fn check_ipam(&self, spec: &Spec) -> Result<(), Error> {
        if spec.given.is_some() || !spec.ipam.is_empty() || self.name == "macvlan" {
            return Ok(());
        }
        let failed = if self.name == "vlan" { "failed to execute IPAM delegate: " } else { "" };
        let details = format!("{} needs ipam with a type", self.name);
        Err(Error::config(format!("{failed}no plugin name provided")).details(details))
    }

    /// Takes the attachment away.
    ///
    /// # Errors
    /// What could not be removed; what is missing is no error.
    pub fn del(&self, call: &Call) -> Result<(), Error> {
        attach::del(self.name, call)
    }

    /// Compares the attachment with the result of its ADD.
    ///
    /// # Errors
    /// The first difference.
    pub fn check(&self, call: &Call) -> Result<(), Error> {
        let conf = self.parse(call)?;
        let missing = match self.name {
            "macvlan" => "required prevResult missing",
            "ipvlan" => "ipvlan: Required prevResult missing",
            _ => "vlan: Required prevResult missing",
        };
        attach::check(call, &conf.ipam, missing, |link| self.check_kind(&conf, link))
    }

    fn check_kind(&self, conf: &ChildConf, link: &LinkInfo) -> Result<(), Error> {
        attach::is_kind(link, self.name, self.name)?;
        let name = link.link.name;
        if let Some(master) = conf.master.filter(|_| !conf.link_in_container) {
            let found = Rtnl::open().map_err(internal)?.link_by_name(master).map_err(internal)?;
            if found.is_some_and(|found| Some(found.index) != link.lower) {
                let msg = format!(
                    "Container interface {name} is not on top of {master}, as the configuration has it"
                );
                return Err(Error::internal(msg));
            }
        }
        let differs = |what: &str, have: &str, want: &str| {
            let kind = self.name;
            Error::internal(format!(
                "Container interface {name} has {kind} {what} {have}, configured is {want}"
            ))
        };
        match (link.detail, conf.kind) {
            (Detail::MacvlanMode(have), ChildKind::Macvlan { mode, .. }) if have != mode => {
                Err(differs("mode", mode_name(MACVLAN_MODES, have), mode_name(MACVLAN_MODES, mode)))
            }
            (Detail::IpvlanMode(have), ChildKind::Ipvlan { mode }) if have != mode => {
                Err(differs("mode", mode_name(IPVLAN_MODES, have), mode_name(IPVLAN_MODES, mode)))
            }
            (Detail::VlanId(have), ChildKind::Vlan { id }) if have != id => {
                Err(differs("id", &have.to_string(), &id.to_string()))
            }
            _ => match (conf.wanted_mtu, link.link.mtu.map(i64::from)) {
                (Some(want), Some(have)) if want != have => {
                    Err(differs("MTU", &have.to_string(), &want.to_string()))
                }
                _ => Ok(()),
            },
        }
    }

    /// Whether ADD could be served.
    ///
    /// # Errors
    /// Code 50 when the interface below is missing, or the address manager's own.
    pub fn status(&self, call: &Call) -> Result<(), Error> {
        let conf = self.parse(call)?;
        if let Some(master) = conf.master.filter(|_| !conf.link_in_container) {
            let found = Rtnl::open().map_err(internal)?.link_by_name(master).map_err(internal)?;
            found.ok_or_else(|| Error { code: code::NOT_READY, ..no_master(master) })?;
        }
        ipam::forward(call)
    }

    /// Forgets attachments that are not valid.
    ///
    /// # Errors
    /// The first failure, after everything was tried.
    pub fn gc(&self, call: &Call) -> Result<(), Error> {
        attach::gc(self.name, call)
    }

    fn parse(&self, call: &Call) -> Result<ChildConf, Error> {
        let mut conf = (self.read)(&call.conf(), &call.env.args)
            .map_err(|e| Error::config(format!("failed to load netconf: {e}")))?;
        let chained = call.prev_result.as_ref().filter(|_| call.verb == Verb::Add && self.name == "ipvlan");
        if let (None, Some(before)) = (conf.master, chained) {
            let msg = "chained master failure. PrevResult lacks a single named interface";
            let only = match before.interfaces.as_slice() {
                [only] => IfName::new(&only.name).ok(),
                _ => None,
            };
            conf.master = Some(only.ok_or_else(|| Error::config(msg))?);
        }
        Ok(conf)
    }
}

fn mode_name<T: PartialEq>(modes: &[(&'static str, T)], number: T) -> &'static str {
    modes.iter().find(|(_, known)| *known == number).map_or("unknown", |(name, _)| name)
}

fn no_master(name: IfName) -> Error {
    let details = "name an interface that exists in \"master\"; `ip link` lists them";
    Error::internal(format!("failed to lookup master {:?}: Link not found", name.as_str())).details(details)
}

fn create<'a>(
    call: &'a Call,
    conf: &ChildConf,
    pod: &mut Pod,
    undo: &mut Undo<'a>,
) -> Result<LinkInfo, Error> {
    let master = match conf.link_in_container {
        true => master(conf, &mut pod.rtnl)?,
        false => master(conf, &mut Rtnl::open().map_err(internal)?)?,
    };
    let lower = master.index;
    let kind = match conf.kind {
        ChildKind::Macvlan { mode, broadcast_queue } => NewKind::Macvlan { lower, mode, broadcast_queue },
        ChildKind::Ipvlan { mode } => NewKind::Ipvlan { lower, mode },
        ChildKind::Vlan { id } => NewKind::Vlan { lower, id },
    };
    let mut new = NewLink::new(pod.name, kind);
    new.end.mac = conf.mac;
    new.end.mtu = conf.mtu(master.link.mtu.unwrap_or(u32::MAX)).map_err(Error::config)?;
    attach::create(call, pod, new, conf.link_in_container, undo)
}

/// The interface below: the configured one, or that of the first default route of any family.
fn master(conf: &ChildConf, rtnl: &mut Rtnl) -> Result<LinkInfo, Error> {
    let failed = |e| internal(e).during("failed to look for the master");
    if let Some(name) = conf.master {
        return rtnl.link_by_name(name).map_err(failed)?.ok_or_else(|| no_master(name));
    }
    let main = RouteFilter { table: Some(TABLE_MAIN), ..RouteFilter::default() };
    let routes = rtnl.routes(main).map_err(failed)?;
    let default = routes.iter().filter(|r| r.dst.prefix_len() == 0).find_map(|r| r.dev);
    let missing = || {
        Error::config("no default route interface found").details("name the interface below in \"master\"")
    };
    rtnl.link_by_index(default.ok_or_else(missing)?).map_err(failed)?.ok_or_else(missing)
}
