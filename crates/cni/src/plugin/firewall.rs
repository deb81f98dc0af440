//! `firewall`: lets what concerns a pod's addresses through, by iptables or firewalld (cni.md 2.5).
//!
//! Every rule carries the attachment's mark, so a late DEL takes no other pod's rules (B-10), and DEL needs
//! no result (B-09). firewalld's zones have no room for a mark; what was put there is kept in a record.

mod firewalld;

use std::net::IpAddr;

use ipnet::IpNet;
use model::cni::firewall::{Backend, FirewallConf};
use model::cni::iptables::{Firewall, IngressPolicy};
use model::cni::{CniResult, Error};
use model::{Family, IfName};

use crate::iptables::Table;
use crate::names;
use crate::record::{self, Record};
use crate::skel::Call;
use crate::undo::Undo;
use firewalld::Firewalld;

const NAME: &str = "firewall";

/// Opens the way to the addresses; hands the result on.
///
/// # Errors
/// The configuration, no result handed on, the tools' or the daemon's refusal; nothing stays then.
pub fn add(call: &Call) -> Result<CniResult, Error> {
    let (conf, result) = read(call)?;
    let bridge = bridge(&conf, &result)?;
    let daemon = firewalld(&conf)?;
    let mut undo = Undo::default();
    undo.push(|| del(call));
    undo.finish(open(call, &conf, &result, bridge, daemon))?;
    Ok(result)
}

fn open(
    call: &Call,
    conf: &FirewallConf,
    result: &CniResult,
    bridge: Option<(IfName, IngressPolicy)>,
    daemon: Option<Firewalld>,
) -> Result<(), Error> {
    let by_daemon = daemon.is_some();
    if let Some(mut daemon) = daemon {
        let addresses: Vec<IpNet> = result.ips.iter().map(|ip| IpNet::from(ip.address.addr())).collect();
        record::complete(&Record { addresses: addresses.clone(), ..record::new(NAME, call) }, call)?;
        addresses.iter().try_for_each(|address| daemon.add(&conf.zone, *address))?;
    }
    if by_daemon && bridge.is_none() {
        return Ok(());
    }
    let (mark, comment) = (mark(call), comment(call));
    let rules = Firewall { admin_chain: &conf.admin_chain, mark: &mark, comment: &comment };
    families(result).into_iter().try_for_each(|(family, addresses)| {
        let done = filter(call, family).update(&|saved| {
            Ok(match by_daemon {
                true => {
                    bridge.map(|(name, policy)| Firewall::isolate(saved, name, policy)).unwrap_or_default()
                }
                false => rules.open(saved, &addresses, bridge),
            })
        });
        done.map_err(|e| e.during("open the way to the pod's addresses"))
    })
}

/// Closes the way: rules with the attachment's mark, those the reference made for the addresses of the
/// result, and what the record says of firewalld.
///
/// # Errors
/// The tools' refusal.
pub fn del(call: &Call) -> Result<(), Error> {
    let (mark, comment) = (mark(call), comment(call));
    let addresses: Vec<IpAddr> =
        call.prev_result.iter().flat_map(|result| &result.ips).map(|ip| ip.address.addr()).collect();
    let rules = Firewall { admin_chain: "", mark: &mark, comment: &comment };
    for family in Family::BOTH {
        let table = filter(call, family);
        if table.may_hold(&[Firewall::CHAIN]) {
            let own: Vec<IpAddr> = addresses.iter().copied().filter(|ip| Family::of(*ip) == family).collect();
            let done = table.update(&|saved| Ok(rules.close(saved, &own)));
            done.map_err(|e| e.during("close the way to the pod's addresses"))?;
        }
    }
    let conf = parse(call).ok();
    let zone = conf.as_ref().map_or("trusted", |conf| &conf.zone);
    let named = conf.as_ref().is_some_and(|conf| conf.backend == Some(Backend::Firewalld));
    let recorded = record::read(NAME, call).map(|record| record.addresses);
    let hosts = || addresses.iter().copied().map(IpNet::from).collect();
    if let Some(addresses) = recorded.or_else(|| named.then(hosts))
        && let Ok(Some(mut daemon)) = Firewalld::connect()
    {
        addresses.iter().for_each(|address| daemon.remove(zone, *address));
    }
    record::remove(NAME, call)
}

/// Fails unless the way is open. Makes nothing.
///
/// # Errors
/// The first rule missing.
pub fn check(call: &Call) -> Result<(), Error> {
    let (conf, result) = read(call)?;
    if let Some(mut daemon) = firewalld(&conf)? {
        return result.ips.iter().try_for_each(|ip| daemon.check(&conf.zone, IpNet::from(ip.address.addr())));
    }
    let (mark, comment) = (mark(call), comment(call));
    let rules = Firewall { admin_chain: &conf.admin_chain, mark: &mark, comment: &comment };
    families(&result).into_iter().try_for_each(|(family, addresses)| {
        match rules.missing(&filter(call, family).read()?, &addresses) {
            Some(rule) => Err(Error::internal(format!("expected rule [{rule}] not found"))),
            None => Ok(()),
        }
    })
}

/// Whether the configuration is one we serve, and the daemon there if it is named.
///
/// # Errors
/// It is not.
pub fn status(call: &Call) -> Result<(), Error> {
    let conf = parse(call)?;
    firewalld(&conf).map_err(|e| Error { code: model::cni::code::NOT_READY, ..e }).map(|_| ())
}

/// Closes the way to the network's attachments that are not valid.
///
/// # Errors
/// The tools' refusal.
pub fn gc(call: &Call) -> Result<(), Error> {
    let Some(valid) = call.valid_attachments()? else { return Ok(()) };
    for family in Family::BOTH {
        let table = filter(call, family);
        if table.may_hold(&[Firewall::CHAIN]) {
            let stale = |text: &str| names::is_stale(text, &call.network, &valid);
            table.update(&|saved| Ok(Firewall::keep_only(saved, &stale)))?;
        }
    }
    let records = record::stale(NAME, call, &valid);
    if !records.is_empty()
        && let Ok(conf) = parse(call)
        && let Ok(Some(mut daemon)) = Firewalld::connect()
    {
        let addresses = records.iter().flat_map(|record| &record.addresses);
        addresses.for_each(|address| daemon.remove(&conf.zone, *address));
    }
    records.iter().try_for_each(|record| record::remove_record(call, record))
}

fn parse(call: &Call) -> Result<FirewallConf, Error> {
    let failed = |e: String| Error::config(format!("failed to load netconf: {e}"));
    FirewallConf::parse(&call.conf()).map_err(failed)
}

fn read(call: &Call) -> Result<(FirewallConf, CniResult), Error> {
    let conf = parse(call)?;
    let result = call.prev_result.clone();
    let result = result.ok_or_else(|| Error::config("missing prevResult from earlier plugin"))?;
    Ok((conf, result))
}

/// The bridge whose pods are kept apart from others: the first interface of the result.
fn bridge(conf: &FirewallConf, result: &CniResult) -> Result<Option<(IfName, IngressPolicy)>, Error> {
    let name = match conf.policy {
        IngressPolicy::Open => return Ok(None),
        IngressPolicy::SameBridge => "same-bridge",
        IngressPolicy::Isolated => "isolated",
    };
    let first = result.interfaces.first().and_then(|i| IfName::new(&i.name).ok());
    let missing = || {
        let advice = "make sure to chain \"firewall\" plugin with \"bridge\"";
        Error::config(format!("interface needs to be set for ingress policy {name:?}, {advice}"))
    };
    Ok(Some((first.ok_or_else(missing)?, conf.policy)))
}

/// The daemon, if it is to be used.
fn firewalld(conf: &FirewallConf) -> Result<Option<Firewalld>, Error> {
    match conf.backend {
        Some(Backend::Iptables) => Ok(None),
        Some(Backend::Firewalld) => {
            let msg =
                "could not reach firewalld: org.fedoraproject.FirewallD1 has no owner on the system bus";
            let missing = Error::internal(msg).details("start firewalld, or set backend to \"iptables\"");
            Firewalld::connect()?.map(Some).ok_or(missing)
        }
        // No bus, no daemon.
        None => Ok(Firewalld::connect().ok().flatten()),
    }
}

/// The families of a result, each with its addresses.
fn families(result: &CniResult) -> Vec<(Family, Vec<IpAddr>)> {
    let own = |family| -> (Family, Vec<IpAddr>) {
        let ips = result.ips.iter().map(|ip| ip.address.addr());
        (family, ips.filter(|ip| Family::of(*ip) == family).collect())
    };
    Family::BOTH.into_iter().map(own).filter(|(_, addresses)| !addresses.is_empty()).collect()
}

fn filter(call: &Call, family: Family) -> Table<'_> {
    Table::of(call, family, "filter")
}

fn mark(call: &Call) -> String {
    names::mark(&call.network, &call.env.container_id, &call.env.ifname)
}

fn comment(call: &Call) -> String {
    names::comment(&call.network, &call.env.container_id, &call.env.ifname)
}
