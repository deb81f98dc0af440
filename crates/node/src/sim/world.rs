//! The kernel in memory with a host around it, and the agent's seat before it.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::rc::Rc;

use ::sim::{Disturbance, FakeKernel, Fault, Random};
use ipnet::IpNet;
use model::{IfName, NetConf};
use plan::backend::Backend;
use plan::facts::{Addresses, Uplink};
use plan::state::{Addr, Link, LinkKind, Route, Scope, Via};
use plan::{Facts, Key, Object, State, Step, uplink};
use store::Remembered;

use super::name;
use crate::reconcile::Kernel;

/// What the agent and the storm both hold.
pub struct World {
    /// Holds ours and others'.
    pub kernel: FakeKernel,
    /// Where chance comes from.
    pub random: Random,
    /// Steps that fail, and readings, in a hundred.
    pub faults: u64,
    /// Subnets of nodes that are there, as the agent was told last.
    pub alive: BTreeSet<IpNet>,
    /// What must never happen and did.
    pub crimes: Vec<String>,
}

impl World {
    /// A host in good order.
    pub fn new(seed: u64) -> World {
        let mut world = World {
            kernel: FakeKernel::default(),
            random: Random::new(seed),
            faults: 0,
            alive: BTreeSet::new(),
            crimes: Vec::new(),
        };
        for object in eth0().into_iter().chain(foreign()) {
            world.disturb(&Disturbance::Put(object));
        }
        world
    }

    /// Whether the kernel did it.
    pub fn disturb(&mut self, what: &Disturbance) -> bool {
        self.kernel.disturb(what).is_ok()
    }
}

/// The uplink as it is when all is well.
pub fn eth0() -> Vec<Object> {
    let link = Link {
        name: name("eth0"),
        kind: LinkKind::Other(String::new()),
        mac: None,
        mtu: Some(1500),
        up: true,
        txqlen: None,
        master: None,
    };
    let address = |net: &str| Object::Addr(Addr { dev: name("eth0"), net: net.parse().unwrap() });
    vec![Object::Link(Box::new(link)), address("192.0.2.1/24"), address("2001:db8::1/64")]
}

/// What belongs to others and looks like ours as far as it can without being it.
pub fn foreign() -> Vec<Object> {
    let route = |dst: &str, via: Via, table: u32, protocol: u8| {
        Object::Route(Route { table, protocol, ..Route::ours(dst.parse().unwrap(), via) })
    };
    vec![
        route("10.9.0.0/16", Via::Blackhole, 254, 4),
        route("10.244.99.0/24", Via::Blackhole, 254, 4),
        route("10.244.98.0/24", Via::Blackhole, 77, plan::ROUTE_PROTOCOL),
        route("fd00:0:0:99::/64", Via::Blackhole, 254, 4),
        Object::Addr(Addr { dev: name("eth0"), net: "198.51.100.7/32".parse().unwrap() }),
    ]
}

/// The agent's view of the world.
pub struct Seat(pub Rc<RefCell<World>>);

impl Kernel for Seat {
    fn facts(
        &mut self,
        conf: &NetConf,
        remembered: &Remembered,
        backend: &dyn Backend,
        peers: &[IpAddr],
    ) -> Result<Facts, String> {
        let world = self.0.borrow();
        let state = world.kernel.state();
        let eth0 = state.link(name("eth0")).filter(|link| link.up).ok_or("interface eth0 is away")?;
        let nets: Vec<IpNet> = addresses(state, name("eth0")).collect();
        let own = |v4: bool| nets.iter().map(IpNet::addr).find(|ip| ip.is_ipv4() == v4);
        let mut chosen = Addresses::default();
        if let (true, Some(IpAddr::V4(ip))) = (conf.enable_ipv4, own(true)) {
            chosen.v4 = Some(ip);
        }
        if let (true, Some(IpAddr::V6(ip))) = (conf.enable_ipv6, own(false)) {
            chosen.v6 = Some(ip);
        }
        if (conf.enable_ipv4 && chosen.v4.is_none()) || (conf.enable_ipv6 && chosen.v6.is_none()) {
            return Err("interface eth0 has no address".to_owned());
        }
        let ours = |dev: &IfName| Some((*dev, state.link(*dev)?.clone()));
        let near = |ip: &&IpAddr| nets.iter().any(|net| net.contains(*ip));
        Ok(Facts {
            uplink: Uplink { name: name("eth0"), mtu: eth0.mtu.unwrap_or(1500), addresses: chosen },
            public: chosen,
            local: state.iter().filter_map(|(key, _)| address(key)).map(|net| net.addr()).collect(),
            devices: backend.devices().iter().filter_map(ours).collect(),
            pinned_macs: BTreeMap::new(),
            published: remembered.attrs.clone(),
            on_link: peers.iter().filter(near).map(|ip| (*ip, name("eth0"))).collect(),
            nexthops_in_use: state.iter().any(|(key, _)| matches!(key, Key::Nexthop(_))),
            ipv6: true,
            machine_id: "storm".to_owned(),
            iptables: Default::default(),
            printed: None,
            wireguard: None,
            xfrm: false,
            tunnels: Default::default(),
            taken: Default::default(),
        })
    }

    fn decision(&self) -> Option<Result<uplink::Choice, uplink::Refusal>> {
        None
    }

    fn read(&mut self, scope: &Scope, wanted: &State) -> Result<State, String> {
        let mut world = self.0.borrow_mut();
        let faults = world.faults / 2;
        if world.random.chance(faults) {
            return Err("listing interrupted".to_owned());
        }
        Ok(world.kernel.read(scope, wanted))
    }

    fn read_iptables(&mut self, _: &Scope, _: &State) -> Vec<Object> {
        Vec::new()
    }

    fn ask(&mut self, step: Step) {
        panic!("the storm's backends keep everything in the kernel, and this does not: {step}");
    }

    fn apply(&mut self, steps: &[Step]) -> Vec<Result<(), String>> {
        let World { kernel, random, faults, alive, crimes } = &mut *self.0.borrow_mut();
        for step in steps {
            if let Step::Delete(Object::Route(route)) = step
                && alive.contains(&route.dst)
                && route.via != Via::Blackhole
            {
                crimes.push(format!("{step}, whose node is there"));
            }
        }
        let fault = |_: &Step| match (random.chance(*faults), random.chance(30)) {
            (true, true) => Some(Fault::Unsaid),
            (true, false) => Some(Fault::Refused),
            _ => None,
        };
        kernel
            .apply(steps, fault)
            .into_iter()
            .map(|answer| answer.map_err(|n| format!("errno {n}")))
            .collect()
    }
}

fn address(key: &Key) -> Option<IpNet> {
    if let Key::Addr(_, net) = key { Some(*net) } else { None }
}

fn addresses(state: &State, dev: IfName) -> impl Iterator<Item = IpNet> {
    state
        .iter()
        .filter(move |(key, _)| matches!(key, Key::Addr(of, _) if *of == dev))
        .filter_map(|(k, _)| address(k))
}
