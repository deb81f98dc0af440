//! Which interface carries the traffic between hosts, which of its addresses are used, and which are
//! advertised (flannel.md 5). Pure functions over what the host has; every candidate that was looked at
//! comes with the answer, and with it what would change the choice.
//!
//! Differs from upstream where that crashes or mixes interfaces (F-66 to F-69), and in that the choice is
//! made again whenever the host changes: [`follow`] says when the last one stands (decision 0092).

mod search;

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use model::{Family, IfName};

use crate::facts::{Addresses, Families, Uplink};
use search::Search;

/// An interface of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Iface {
    /// Name.
    pub name: IfName,
    /// Index.
    pub index: u32,
    /// MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Addresses in the kernel's order.
    pub addresses: Vec<IfaceAddress>,
}

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IfaceAddress {
    /// Address and prefix length.
    pub net: IpNet,
    /// Not to be used for new traffic (`IFA_F_DEPRECATED`).
    pub deprecated: bool,
    /// Set by hand, not by a lease or advertisement (`IFA_F_PERMANENT`).
    pub permanent: bool,
    /// A privacy address (`IFA_F_TEMPORARY`).
    pub temporary: bool,
    /// Another host answered for it, the kernel does not use it (`IFA_F_DADFAILED`).
    pub duplicate: bool,
}

/// What the operator said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selectors {
    /// `--iface`, in order.
    pub iface: Vec<String>,
    /// `--iface-regex`, in order.
    pub iface_regex: Vec<String>,
    /// `--iface-can-reach`
    pub can_reach: String,
    /// `--public-ip`
    pub public_ip: String,
    /// `--public-ipv6`
    pub public_ipv6: String,
    /// Addresses set for this node in the registry; each goes before its flag.
    pub registry: Addresses,
}

/// A default route of the main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DefaultRoute {
    /// Index of the device; `None` for several next hops.
    pub dev: Option<u32>,
    /// Its metric.
    pub metric: u32,
}

/// How the kernel reaches the address of `--iface-can-reach`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    /// Index of the device.
    pub dev: u32,
    /// Preferred source address.
    pub source: Option<IpAddr>,
}

/// What the kernel's routing tables say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routing {
    /// IPv4 default routes of the main table in the kernel's order.
    pub defaults_v4: Vec<DefaultRoute>,
    /// The same in IPv6.
    pub defaults_v6: Vec<DefaultRoute>,
    /// The way to the address of `--iface-can-reach`, if there is one.
    pub reach: Option<Reach>,
    /// The kernel was started without IPv6.
    pub without_ipv6: bool,
}

/// What the host is like at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Situation {
    /// Enabled families.
    pub families: Families,
    /// All interfaces in the kernel's order.
    pub ifaces: Vec<Iface>,
    /// Routes that matter.
    pub routing: Routing,
    /// Addresses our tunnels use already. Among equally good addresses one of these stays in use: the
    /// kernel lists a new IPv6 address before the old ones.
    pub held: Vec<IpAddr>,
}

/// Something that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Candidate {
    /// A flag with its value, or an address set in the registry.
    Selector(String),
    /// A default route.
    Route(Family),
    /// An interface.
    Interface(IfName),
    /// An address of an interface.
    Address(IfName, IpAddr),
}

/// One step of the decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What was looked at.
    pub candidate: Candidate,
    /// Whether it was taken.
    pub taken: bool,
    /// Why it was taken or passed over.
    pub because: String,
}

/// How a decision came about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Why {
    /// What was looked at, in this order.
    pub steps: Vec<Step>,
    /// What would change the choice: sentences with a flag or a command.
    pub otherwise: Vec<String>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Interface and the addresses bound locally.
    pub uplink: Uplink,
    /// Addresses other hosts shall use.
    pub public: Addresses,
    /// How it came about.
    pub why: Why,
    /// The selectors fit nothing any more, and the interface last chosen stays in use because it is still
    /// as it was: what they say, in one sentence.
    pub kept: Option<String>,
}

/// No interface fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// One sentence that names what was looked for, what was found, and the flag that helps.
    pub message: String,
    /// What was looked at.
    pub why: Why,
}

/// Chooses from nothing but the host and the selectors.
///
/// # Errors
/// No interface fits, or a selector makes no sense.
pub fn choose(selectors: &Selectors, situation: &Situation) -> Result<Choice, Refusal> {
    let mut search = Search::new(selectors, situation);
    match search.run() {
        Ok((uplink, public)) => Ok(Choice { uplink, public, why: search.why, kept: None }),
        Err(message) => Err(Refusal { message, why: search.why }),
    }
}

/// Chooses again after the host has changed. Traffic that works must not stop: when nothing fits now, the
/// last choice stands for as long as its interface has its addresses, by name, with the MTU of now. A
/// default route that is gone for a while, or an address that is being phased out, ends nothing.
///
/// # Errors
/// As [`choose`], and the last choice does not stand either.
pub fn follow(
    selectors: &Selectors,
    situation: &Situation,
    last: Option<&Choice>,
) -> Result<Choice, Refusal> {
    let refusal = match choose(selectors, situation) {
        Ok(choice) => return Ok(choice),
        Err(refusal) => refusal,
    };
    let Some(last) = last else { return Err(refusal) };
    let mtu = match standing(last, situation) {
        Ok(mtu) => mtu,
        Err(gone) => {
            let message = format!("{}; {gone}", refusal.message);
            return Err(Refusal { message, ..refusal });
        }
    };
    let mut choice = Choice { kept: Some(refusal.message), why: refusal.why, ..last.clone() };
    choice.uplink.mtu = mtu;
    choice.why.steps.push(Step {
        candidate: Candidate::Interface(choice.uplink.name),
        taken: true,
        because: "stays in use, as nothing fits better and it still has its addresses".to_owned(),
    });
    Ok(choice)
}

/// The MTU of the interface last chosen if it still does its work, else what it lost.
fn standing(last: &Choice, situation: &Situation) -> Result<u32, String> {
    let name = last.uplink.name;
    let Some(iface) = situation.ifaces.iter().find(|i| i.name == name) else {
        return Err(format!("{name}, in use until now, is gone"));
    };
    if !iface.up {
        return Err(format!("{name}, in use until now, is down"));
    }
    for ip in situation.families.iter().filter_map(|f| last.uplink.addresses.of(f)) {
        if !situation.ifaces.iter().any(|i| i.addresses.iter().any(|a| a.net.addr() == ip)) {
            return Err(format!("{name}, in use until now, has lost {ip}"));
        }
    }
    Ok(iface.mtu)
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Candidate::Selector(text) => f.write_str(text),
            Candidate::Route(family) => write!(f, "{family} default route"),
            Candidate::Interface(name) => write!(f, "{name}"),
            Candidate::Address(name, ip) => write!(f, "{ip} of {name}"),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.taken { "taken" } else { "passed over" };
        write!(f, "{}: {verdict}: {}", self.candidate, self.because)
    }
}

#[cfg(test)]
mod tests;
