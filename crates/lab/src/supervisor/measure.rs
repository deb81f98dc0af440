//! Measures what the lab shows: who is there, who reaches whom, the way of a packet, a page.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use kernel::Netns;
use serde_json::Value;

use super::world::{Found, World, each};
use crate::error::{Doing, Error, Result};
use crate::icmp::{self, Answer, Pinger};
use crate::proto::{Fetch, Host, Reach, Status, Walk};
use crate::spec::{WIRE, of_family};
use crate::walk::{self, Station};
use crate::{inside, web, wire};

/// How long one echo may take once the first one came back.
const ECHO: Duration = Duration::from_secs(1);
/// How long the first echoes may take: routes and neighbours may still be on their way.
const FIRST: Duration = Duration::from_secs(5);
/// What every pair gets, also when others have used up the time.
const LEAST: Duration = Duration::from_millis(200);

/// The lab at this moment.
///
/// # Errors
/// A namespace cannot be read.
pub fn status(world: &World) -> Result<Status> {
    let net_conf: Value = serde_json::from_str(&world.spec.net_conf()).unwrap_or(Value::Null);
    let hosts: Result<Vec<Host>> = world
        .hosts
        .iter()
        .map(|host| {
            let env = subnet_env(host.place.pid());
            Ok(Host {
                name: host.place.name.clone(),
                wire: host.port.wire,
                underlay: host.port.addresses.clone(),
                subnets: subnets(&env),
                mtu: env.get("FLANNEL_MTU").and_then(|m| m.parse().ok()),
                devices: wire::overlay_devices(&host.place.net()?)?,
                agent: world.agent_state(host),
            })
        })
        .collect();
    Ok(Status {
        name: world.spec.name.clone(),
        backend: backend(&net_conf),
        topology: world.spec.topology,
        stack: world.spec.stack,
        net_conf,
        age_s: world.since.elapsed().as_secs(),
        rootless: world.rootless,
        hosts: hosts?,
        pods: world.pods().iter().map(|p| p.facts.clone()).collect(),
    })
}

fn backend(net_conf: &Value) -> String {
    net_conf["Backend"]["Type"].as_str().unwrap_or("udp").to_owned()
}

/// The VXLAN port of the network configuration; 0 and absent mean the kernel's own.
fn vxlan_port(world: &World) -> u16 {
    let conf: Value = serde_json::from_str(&world.spec.net_conf()).unwrap_or(Value::Null);
    match conf["Backend"]["Port"].as_u64() {
        Some(port) if port != 0 => port as u16,
        _ => 8472,
    }
}

/// `subnet.env` of a host, read through its mounts.
fn subnet_env(pid: u32) -> BTreeMap<String, String> {
    let path = format!("/proc/{pid}/root/run/flannel/subnet.env");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let pair = |line: &str| line.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()));
    text.lines().filter_map(pair).collect()
}

fn subnets(env: &BTreeMap<String, String>) -> Vec<IpNet> {
    let one = |key: &str| env.get(key)?.parse::<IpNet>().ok().map(|net| net.trunc());
    ["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"].into_iter().filter_map(one).collect()
}

/// Every pod to every other pod, and every host to every pod, in every family. First all senders at once
/// try until their routes are there, then the times are taken one by one.
///
/// # Errors
/// A namespace cannot be entered.
pub fn matrix(world: &World, count: u32) -> Result<Vec<Reach>> {
    let pods: Vec<String> = world.pods().iter().map(|p| p.facts.name.clone()).collect();
    let hosts = world.hosts.iter().map(|h| h.place.name.clone());
    let senders: Vec<String> = hosts.chain(pods.iter().cloned()).collect();
    let deadline = Instant::now() + FIRST;
    let tried = each(senders, |from| {
        let mut row = Vec::new();
        for to in pods.iter().filter(|to| **to != from) {
            for address in &world.pod(to)?.facts.addresses {
                row.push(first(world, &from, to, *address, deadline)?);
            }
        }
        Ok(row)
    })?;
    let mut reaches: Vec<Reach> = tried.into_iter().flatten().collect();
    for reach in reaches.iter_mut().filter(|r| r.why.is_none()) {
        times(world, reach, count)?;
    }
    Ok(reaches)
}

/// One pair; `to` is a pod, a host or an address.
///
/// # Errors
/// There is no such place, or its namespace cannot be entered.
pub fn ping(world: &World, from: &str, to: &str, count: u32, patience: Duration) -> Result<Reach> {
    let sender = world.find(from)?.addresses().first().copied();
    let address = match to.parse::<IpAddr>() {
        Ok(address) => address,
        Err(_) => {
            let target = world.find(to)?;
            of_family(&target.addresses(), sender)
                .ok_or_else(|| Error::said(format!("{to} has no address to ping")))?
        }
    };
    let mut reach = first(world, from, to, address, Instant::now() + patience)?;
    if reach.why.is_none() {
        times(world, &mut reach, count)?;
    }
    Ok(reach)
}

/// Waits for the first answer, until the deadline and a little beyond: it may be shared with others.
fn first(world: &World, from: &str, to: &str, address: IpAddr, deadline: Instant) -> Result<Reach> {
    let source = world.find(from)?;
    let mtu = source.mtu(world.spec.mtu);
    let full_bytes = world.find(to).map_or(mtu, |t| t.mtu(mtu).min(mtu));
    let patience = deadline.saturating_duration_since(Instant::now()).max(LEAST);
    let net = source.net()?;
    let answer = inside(&net, || Pinger::open(address)?.until_answered(patience))
        .doing(|| format!("ping {to} from {from}"))?;
    Ok(Reach {
        from: from.to_owned(),
        to: to.to_owned(),
        address,
        small_us: None,
        full_us: None,
        full_bytes,
        why: complaint(answer),
    })
}

/// Takes the times of a pair that has answered once.
fn times(world: &World, reach: &mut Reach, count: u32) -> Result<()> {
    let net = world.find(&reach.from)?.net()?;
    let action = format!("ping {} from {}", reach.to, reach.from);
    let full = icmp::full_payload(reach.address, reach.full_bytes);
    let measured = inside(&net, || {
        let mut pinger = Pinger::open(reach.address)?;
        for (payload, result) in [(icmp::MIN_PAYLOAD, &mut reach.small_us), (full, &mut reach.full_us)] {
            let mut all = Vec::new();
            for _ in 0..count.max(1) {
                let answer = pinger.echo(payload, ECHO)?.0;
                if let Answer::Echo(took) = answer {
                    all.push(took);
                } else {
                    reach.why = complaint(answer).map(|why| format!("{payload} bytes: {why}"));
                    return Ok(());
                }
            }
            *result = icmp::median_us(all);
        }
        Ok(())
    });
    measured.doing(|| action)
}

/// What is wrong with an answer.
fn complaint(answer: Answer) -> Option<String> {
    match answer {
        Answer::Echo(_) => None,
        Answer::Refused(why) => Some(why),
        Answer::Silence => Some("no answer".to_owned()),
    }
}

/// The way of one echo from pod to pod.
///
/// # Errors
/// There is no such pod, it has no address of the family, or the echo is not answered.
pub fn walk(world: &World, from: &str, to: &str, v6: bool) -> Result<Walk> {
    let (source, target) = (world.pod(from)?, world.pod(to)?);
    let (source_ip, target_ip) = (address(&source.facts, v6)?, address(&target.facts, v6)?);
    let mut places: Vec<(String, Netns)> = vec![
        (from.to_owned(), source.place.net()?),
        (world.hosts[source.host].place.name.clone(), world.hosts[source.host].place.net()?),
    ];
    if source.host != target.host {
        let host = &world.hosts[target.host].place;
        places.push((WIRE.to_owned(), Found::Wire.net()?));
        places.push((host.name.clone(), host.net()?));
    }
    places.push((to.to_owned(), target.place.net()?));
    let stations: Vec<Station<'_>> =
        places.iter().map(|(place, net)| Station { place: place.clone(), net }).collect();
    let (there, back) = walk::follow(&stations, target_ip, 56, vxlan_port(world))
        .doing(|| format!("follow a packet from {from} to {to}"))?;
    Ok(Walk {
        from: from.to_owned(),
        to: to.to_owned(),
        source: source_ip,
        destination: target_ip,
        there,
        back,
    })
}

fn address(pod: &crate::proto::Pod, v6: bool) -> Result<IpAddr> {
    let family = if v6 { "IPv6" } else { "IPv4" };
    pod.address(v6).ok_or_else(|| Error::said(format!("{} has no {family} address", pod.name)))
}

/// A pod's page, fetched from another place.
///
/// # Errors
/// There is no such place, or the page does not come.
pub fn fetch(world: &World, from: &str, to: &str, v6: bool) -> Result<Fetch> {
    let source = world.find(from)?;
    let target = world.pod(to)?;
    let address = address(&target.facts, v6)?;
    let path = format!("hello-from-{from}");
    let url = match address {
        IpAddr::V4(ip) => format!("http://{ip}/{path}"),
        IpAddr::V6(ip) => format!("http://[{ip}]/{path}"),
    };
    let before = target.place.log.all().len();
    let net = source.net()?;
    let start = Instant::now();
    let (status, body) =
        inside(&net, || web::fetch(address, &path)).doing(|| format!("fetch {url} from {from}"))?;
    let us = start.elapsed().as_nanos() as f64 / 1000.0;
    Ok(Fetch {
        from: from.to_owned(),
        source: source.addresses().into_iter().find(|a| a.is_ipv6() == v6),
        to: to.to_owned(),
        url,
        status,
        body,
        server_log: server_line(&target.place.log, before, &path),
        us,
    })
}

/// The server's line about a request: it is written before the answer, but read by another thread.
fn server_line(log: &super::node::Log, before: usize, path: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(1);
    loop {
        let lines = log.all();
        let found = lines.iter().skip(before.min(lines.len().saturating_sub(1))).rfind(|l| l.contains(path));
        if let Some(line) = found {
            return line.clone();
        }
        if Instant::now() > deadline {
            return String::new();
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
