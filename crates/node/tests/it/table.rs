//! Every backend in every stack through everything that happens to nodes. Two hosts stay, a third comes,
//! changes and goes; pings between pods tell what it costs, foreign witnesses what it leaves.
//!
//! A backend is a line in `table!`, an event a line in [`EVENTS`].
//!
//! Not in it: alloc, which puts nothing of a peer into the kernel (`golden` shows that); extension, whose commands make
//! what there is, and tencent-vpc, whose routes are a cloud's (`extension` and `tencent` have their events); ipsec, whose
//! hosts need process ids and files of their own, for each has a charon (`ipsec` has restarts of both, deleted
//! policies, and nodes that leave).

use serde_json::Value;

use crate::faults::{difference, picture};
use crate::traffic::{Pings, Pod};
use crate::world::{Agent, Host, World, has, until};

/// Keys of a network configuration, and of `subnet.env`.
type Stack = (&'static str, &'static [&'static str]);

const IPV4: Stack = (r#""Network":"10.244.0.0/16""#, &["FLANNEL_SUBNET"]);
const IPV6: Stack =
    (r#""EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:10::/48""#, &["FLANNEL_IPV6_SUBNET"]);
const DUAL: Stack = (
    r#""Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10::/48""#,
    &["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"],
);

/// Nothing that every kernel has.
const NOTHING: &str = "";
const IPIP: &str = "ipip local 192.0.2.11";
/// In the kernel or in user space: every kernel can, and the guest's does it itself.
const EITHER: &str = "wireguard in the kernel or in user space";

macro_rules! table {
    ($($way:ident: $backend:literal, needs $needs:expr, $($test:ident: $stack:ident)+;)*) => {$(
        mod $way {
            use super::*;

            $(#[test]
            fn $test() {
                let name = concat!(stringify!($way), "::", stringify!($test));
                if [NOTHING, EITHER].contains(&$needs) || has($needs, name) {
                    // Programs of iptables take longer in the guest than the agent lets them.
                    let rules = if $needs == NOTHING { "" } else { r#""EnableNFTables":true,"# };
                    through_everything(name, $backend, rules, $stack);
                }
            })+
        }
    )*};
}

table! {
    vxlan: r#""Type":"vxlan""#, needs NOTHING, ipv4: IPV4 ipv6: IPV6 dual: DUAL;
    vxlan_checked: r#""Type":"vxlan","CheckSources":true"#, needs NOTHING, dual: DUAL;
    vxlan_direct: r#""Type":"vxlan","DirectRouting":true"#, needs NOTHING, ipv4: IPV4 ipv6: IPV6 dual: DUAL;
    host_gw: r#""Type":"host-gw""#, needs NOTHING, ipv4: IPV4 ipv6: IPV6 dual: DUAL;
    udp: r#""Type":"udp""#, needs NOTHING, ipv4: IPV4;
    wireguard: r#""Type":"wireguard""#, needs EITHER, ipv4: IPV4 ipv6: IPV6 dual: DUAL;
    ipip: r#""Type":"ipip""#, needs IPIP, ipv4: IPV4;
    ipip_direct: r#""Type":"ipip","DirectRouting":true"#, needs IPIP, ipv4: IPV4;
}

/// What pods of the two hosts that stay are promised.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Promise {
    /// No packet is lost.
    NothingLost,
    /// Traffic is back.
    BackSoon,
}

/// What the two hosts shall look like afterwards.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Left {
    AsBefore,
    AsWithoutTheThird,
    /// Only the third is other than it was.
    Changed,
}

struct Event {
    name: &'static str,
    happens: fn(&mut Scene),
    promise: Promise,
    left: Left,
}

const EVENTS: &[Event] = {
    use Left::{AsBefore, AsWithoutTheThird, Changed};
    use Promise::{BackSoon, NothingLost};
    const fn event(name: &'static str, happens: fn(&mut Scene), promise: Promise, left: Left) -> Event {
        Event { name, happens, promise, left }
    }
    &[
        event("a node joins", join, NothingLost, Changed),
        event("an agent is killed and comes again", killed, NothingLost, AsBefore),
        event("an agent ends and comes again", ended, NothingLost, AsBefore),
        event("routes are deleted", routes_deleted, BackSoon, AsBefore),
        event("devices are deleted", devices_deleted, BackSoon, AsBefore),
        event("a peer's address changes", address_changed, NothingLost, Changed),
        event("a peer's hardware addresses change", hardware_addresses_changed, NothingLost, Changed),
        event("a node leaves", leave, NothingLost, AsWithoutTheThird),
    ]
};

struct Scene {
    world: World,
    keys: &'static [&'static str],
    agents: Vec<Option<Agent>>,
    pods: Vec<Pod>,
}

fn through_everything(name: &str, backend: &str, rules: &str, (network, keys): Stack) {
    let world = World::with_config(3, &format!(r#"{{{rules}{network},"Backend":{{{backend}}}}}"#));
    let agents = vec![Some(world.hosts[0].agent(&[])), Some(world.hosts[1].agent(&[])), None];
    let mut scene = Scene { world, keys, agents, pods: Vec::new() };
    for n in 0..2 {
        scene.agents[n].as_ref().unwrap().ready();
        scene.pods.push(Pod::on(&scene.world.hosts[n], keys));
    }
    scene.reaches(0, 1);
    scene.reaches(1, 0);
    let alone = scene.pictures();
    for event in EVENTS {
        let before = scene.pictures();
        let pings: Vec<Pings> = [(0, 1), (1, 0)]
            .into_iter()
            .flat_map(|(from, to)| scene.pods[to].addresses.iter().map(move |a| (from, *a)))
            .map(|(from, address)| Pings::start(&scene.pods[from], address))
            .collect();
        pings.iter().for_each(|pings| pings.more(5));
        (event.happens)(&mut scene);
        let wanted = match event.left {
            Left::AsBefore => Some(&before),
            Left::AsWithoutTheThird => Some(&alone),
            Left::Changed => None,
        };
        if let Some(wanted) = wanted {
            until(&format!("{name}: {}: the kernel's state", event.name), || {
                let now = scene.pictures();
                if now == *wanted { Ok(()) } else { Err(difference(wanted, &now)) }
            });
        }
        for pings in pings {
            pings.more(10);
            let what = pings.what.clone();
            let (answered, lost) = pings.finish();
            println!(
                "table: {name}: {}: {} of {} lost, {what}",
                event.name,
                lost.len(),
                answered + lost.len()
            );
            if event.promise == Promise::NothingLost {
                assert_eq!(lost, [0; 0], "{name}: {}: lost, {what}", event.name);
            }
        }
    }
    for agent in scene.agents.into_iter().flatten() {
        assert_eq!(agent.terminate(), 0);
    }
}

impl Scene {
    fn host(&self, n: usize) -> &Host {
        &self.world.hosts[n]
    }

    /// Everything of ours on the hosts that stay.
    fn pictures(&self) -> Vec<String> {
        let hosts = self.world.hosts[..2].iter();
        hosts
            .flat_map(|host| {
                let number = host.number;
                picture(host).into_iter().map(move |line| format!("host {number}: {line}"))
            })
            .collect()
    }

    /// A pod reaches all addresses of another.
    fn reaches(&self, from: usize, to: usize) {
        for address in &self.pods[to].addresses {
            let pings = Pings::start(&self.pods[from], *address);
            pings.more(3);
        }
    }

    fn start(&mut self, n: usize) {
        // Its earlier words are another agent's.
        let agent = self.host(n).agent(&[]);
        agent.ready();
        self.agents[n] = Some(agent);
    }

    fn end(&mut self, n: usize) {
        assert_eq!(self.agents[n].take().unwrap().terminate(), 0);
    }

    fn third_is_reached(&self) {
        for n in 0..2 {
            self.reaches(n, 2);
            self.reaches(2, n);
        }
    }

    /// What none of the hosts that stay has in its state any more.
    fn forgotten(&self, words: &[String]) {
        until(&format!("no word of {words:?}"), || {
            let has = |line: &&String| words.iter().any(|word| line.contains(word.as_str()));
            let left: Vec<String> = self.pictures().iter().filter(has).cloned().collect();
            if left.is_empty() { Ok(()) } else { Err(left.join("\n")) }
        });
    }
}

fn join(scene: &mut Scene) {
    scene.start(2);
    let pod = Pod::on(scene.host(2), scene.keys);
    scene.pods.push(pod);
    scene.third_is_reached();
}

fn killed(scene: &mut Scene) {
    scene.agents[0].take().unwrap().kill();
    scene.start(0);
}

fn ended(scene: &mut Scene) {
    scene.end(0);
    scene.start(0);
}

fn routes_deleted(scene: &mut Scene) {
    for family in ["-4", "-6"] {
        for line in scene.host(0).sh(&format!("ip {family} route show proto 76")).lines() {
            let route = line.trim_start_matches("blackhole ").split(' ').next().unwrap();
            let route =
                if line.starts_with("blackhole") { format!("blackhole {route}") } else { route.to_owned() };
            // What the agent put back in between is deleted once more.
            scene.host(0).sh(&format!("ip {family} route del {route} proto 76"));
        }
    }
}

/// Devices of a tunnel; where there are none, the interface goes down and up, with the routes through it.
fn devices_deleted(scene: &mut Scene) {
    let host = scene.host(0);
    let devices = tunnels(host);
    for device in &devices {
        host.sh(&format!("ip link del {}", device["ifname"].as_str().unwrap()));
    }
    if devices.is_empty() {
        host.sh("sysctl -qw net.ipv6.conf.eth0.keep_addr_on_down=1");
        host.sh("ip link set eth0 down");
        host.sh("ip link set eth0 up");
        host.sh("ip route replace default via 192.0.2.1");
        host.sh("ip -6 route replace default via 2001:db8::1");
    }
}

/// Those that stay learn it while the third's agent goes on.
fn address_changed(scene: &mut Scene) {
    let host = scene.host(2);
    let old = [host.public(), host.public6()];
    for (family, old, new) in [("-4", &old[0], "192.0.2.33/24"), ("-6", &old[1], "2001:db8::33/64")] {
        let length = new.split_once('/').unwrap().1;
        host.sh(&format!("ip {family} addr del {old}/{length} dev eth0"));
        host.sh(&format!("ip {family} addr add {new} dev eth0"));
    }
    host.sh("ip route replace default via 192.0.2.1");
    host.sh("ip -6 route replace default via 2001:db8::1");
    scene.third_is_reached();
    scene.forgotten(&old.map(|address| format!("{address} ")));
}

/// As on a machine whose device was made anew while it was away.
fn hardware_addresses_changed(scene: &mut Scene) {
    let mut old = Vec::new();
    scene.end(2);
    for device in tunnels(scene.host(2)) {
        // Those of layer three have none.
        if device["link_type"] == "ether" {
            let name = device["ifname"].as_str().unwrap();
            old.push(device["address"].as_str().unwrap().to_owned());
            scene.host(2).sh(&format!("ip link set {name} address 02:00:00:00:99:{:02x}", name.len()));
        }
    }
    scene.start(2);
    scene.third_is_reached();
    scene.forgotten(&old);
}

fn leave(scene: &mut Scene) {
    scene.agents[2].take().unwrap().kill();
    scene.world.forget(scene.host(2));
}

/// The backend's devices.
fn tunnels(host: &Host) -> Vec<Value> {
    let links = host.json("ip -j link");
    let ours = |link: &&Value| link["ifname"].as_str().is_some_and(|name| name.starts_with("flannel"));
    links.as_array().unwrap().iter().filter(ours).cloned().collect()
}
