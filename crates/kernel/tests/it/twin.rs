//! The kernel in memory that simulations run on (`crates/sim`) beside the real one: the same random steps and
//! acts of others on both, the same answers and the same state after each.

use std::net::IpAddr;
use std::process::Command;

use kernel::{Kernel, Netns};
use model::{IfName, Mac};
use plan::state::{Addr, Fdb, Link, LinkKind, Neigh, Nexthop, Object, Route, Scope, State, Via, Vxlan};
use plan::{Key, Step};
use sim::{Disturbance, FakeKernel, Random};

use super::{fresh, run_in};

fn overlay() -> IfName {
    IfName::fixed("flannel.1")
}

fn uplink() -> IfName {
    IfName::fixed("eth0")
}

fn tunnel(mac: u8) -> Link {
    Link {
        name: overlay(),
        kind: LinkKind::Vxlan(Vxlan {
            vni: 1,
            port: 8472,
            local: Some(ip("192.0.2.1")),
            lower: Some(uplink()),
            learning: false,
            gbp: false,
            l2miss: false,
            group: None,
        }),
        mac: Some(Mac([14, 0, 0, 0, 0, mac])),
        mtu: Some(1400),
        up: true,
        txqlen: None,
        master: None,
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Everything that can be there. Several stand under one key, so that some replace others.
fn universe() -> Vec<Object> {
    let mut all = vec![
        Object::Link(Box::new(tunnel(1))),
        Object::Sysctl { path: "net/ipv6/conf/flannel.1/accept_ra".to_owned(), value: "0".to_owned() },
        Object::Route(Route::ours("10.244.1.0/24".parse().unwrap(), Via::Blackhole)),
    ];
    for net in ["10.244.1.0/32", "10.244.77.1/32", "fd00:0:0:1::/128"] {
        all.push(Object::Addr(Addr { dev: overlay(), net: net.parse().unwrap() }));
    }
    for n in 2..5u8 {
        for (subnet, outer, direct) in [
            (format!("10.244.{n}.0/24"), format!("192.0.2.{n}"), format!("192.0.2.{n}")),
            (format!("fd00:0:0:{n}::/64"), format!("192.0.2.{n}"), format!("2001:db8::{n}")),
        ] {
            let subnet: ipnet::IpNet = subnet.parse().unwrap();
            let (gateway, mac) = (subnet.addr(), Mac([14, 0, 0, 0, 0, n]));
            all.push(Object::Neigh(Neigh { dev: overlay(), dst: gateway, mac }));
            all.push(Object::Neigh(Neigh { dev: overlay(), dst: gateway, mac: Mac([14, 0, 0, 0, 9, n]) }));
            if gateway.is_ipv4() {
                all.push(Object::Fdb(Fdb { dev: overlay(), mac, dst: ip(&outer) }));
                all.push(Object::Fdb(Fdb { dev: overlay(), mac, dst: ip("192.0.2.99") }));
            }
            let id = 0x4c00_0000 + u32::from(n) * 2 + u32::from(gateway.is_ipv6());
            all.push(Object::Nexthop(Nexthop { id, dev: overlay(), via: gateway, onlink: true }));
            for via in [
                Via::Gateway { gateway, dev: overlay(), onlink: true },
                Via::Gateway { gateway: ip(&direct), dev: uplink(), onlink: false },
                Via::Nexthop(id),
            ] {
                all.push(Object::Route(Route::ours(subnet, via)));
            }
        }
    }
    all
}

/// The two kernels.
struct Twins {
    netns: Netns,
    real: Kernel,
    fake: FakeKernel,
    scope: Scope,
    wanted: State,
}

/// A device as far as Loden sees it.
type Seen = (LinkKind, Option<Mac>, Option<u32>, bool);

impl Twins {
    fn new() -> Twins {
        let netns = fresh();
        for command in [
            "ip link set lo up",
            "ip link add eth0 type veth peer name wire",
            "ip link set eth0 up",
            "ip link set wire up",
            "ip addr add 192.0.2.1/24 dev eth0",
            "ip addr add 2001:db8::1/64 dev eth0 nodad",
        ] {
            run_in(&netns, command);
        }
        let eth0 = Link { name: uplink(), kind: LinkKind::Other(String::new()), mac: None, ..tunnel(0) };
        let address = |net: &str| Object::Addr(Addr { dev: uplink(), net: net.parse().unwrap() });
        let there = [Object::Link(Box::new(eth0)), address("192.0.2.1/24"), address("2001:db8::1/64")];
        let scope = Scope {
            devices: [overlay()].into(),
            networks: vec!["10.244.0.0/16".parse().unwrap(), "fd00::/48".parse().unwrap()],
            ..Scope::default()
        };
        let real = Kernel::open_in(&netns).unwrap();
        Twins { netns, real, fake: FakeKernel::with(there), scope, wanted: universe().into_iter().collect() }
    }

    fn step(&mut self, step: Step) -> [bool; 2] {
        let real = self.real.apply(std::slice::from_ref(&step)).remove(0).is_ok();
        [real, self.fake.apply(&[step], |_| None).remove(0).is_ok()]
    }

    fn disturb(&mut self, disturbance: &Disturbance) -> [bool; 2] {
        let command = disturbance.to_string();
        let run = || Command::new("sh").args(["-c", &command]).output().unwrap();
        let real = self.netns.run(run).unwrap().status.success();
        [real, self.fake.disturb(disturbance).is_ok()]
    }

    /// What each holds that concerns us: devices as [`Seen`], the rest as it is.
    fn states(&mut self) -> [(Option<Seen>, State); 2] {
        let real = self.real.read(&self.scope, &self.wanted).unwrap();
        let fake = self.fake.read(&self.scope, &self.wanted);
        [real, fake].map(|mut state| {
            let link = state.link(overlay()).map(|l| (l.kind.clone(), l.mac, l.mtu, l.up));
            state.retain(|key, _| !matches!(key, Key::Link(_)));
            (link, state)
        })
    }
}

/// One act, by us or by somebody else.
fn act(random: &mut Random, universe: &[Object]) -> Result<Step, Disturbance> {
    let object = random.pick(universe).unwrap().clone();
    match random.below(24) {
        0..=9 => Ok(Step::Put(object)),
        10..=12 => Ok(Step::Delete(object)),
        13 => Ok(Step::Change(Box::new(tunnel(random.below(2) as u8)))),
        // A sysctl cannot be deleted.
        14..=15 if matches!(object, Object::Sysctl { .. }) => Err(Disturbance::Put(object)),
        14..=15 => Err(Disturbance::Delete(object)),
        16 => Err(Disturbance::Down(overlay())),
        17..=18 => Err(Disturbance::Up(overlay())),
        19 => Err(Disturbance::Address(overlay(), Mac([14, 0, 0, 0, 7, random.below(3) as u8]))),
        20 => Err(Disturbance::Mtu(overlay(), 1300 + random.below(2) as u32)),
        21 => Err(Disturbance::Flush(overlay())),
        _ => Ok(Step::Put(Object::Link(Box::new(tunnel(1))))),
    }
}

#[test]
fn the_kernel_in_memory_behaves_like_this_one() {
    let universe = universe();
    let seeds = std::env::var("LODEN_TWIN_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(12u64);
    for seed in 0..seeds {
        let mut random = Random::new(seed);
        let mut twins = Twins::new();
        let mut story = Vec::new();
        for _ in 0..120 {
            let act = act(&mut random, &universe);
            let (told, answers) = match &act {
                Ok(step) => (format!("we: {step}"), twins.step(step.clone())),
                Err(disturbance) => (format!("somebody: {disturbance}"), twins.disturb(disturbance)),
            };
            story.push(told);
            let [real, fake] = twins.states();
            let differs = |what: &str| {
                format!(
                    "seed {seed}, {what}, after {} acts, the last of them:\n{}",
                    story.len(),
                    tail(&story)
                )
            };
            assert_eq!(answers[1], answers[0], "{}", differs("the answer"));
            assert_eq!(fake.0, real.0, "{}", differs("the device"));
            let only = |one: &State, other: &State| -> Vec<String> {
                let new = one.iter().filter(|(key, object)| other.get(key) != Some(object));
                new.map(|(_, object)| object.to_string()).collect()
            };
            assert_eq!(
                only(&fake.1, &real.1),
                only(&real.1, &fake.1),
                "{}",
                differs("left fake, right real")
            );
        }
    }
}

fn tail(story: &[String]) -> String {
    story[story.len().saturating_sub(12)..].join("\n")
}
