//! From leases to what the kernel shall hold, from that and what it holds to steps, and from steps to text.

use std::fmt::Write as _;
use std::hint::black_box;

use model::Family;
use model::claims::judge::Judge;
use plan::order::Order;
use plan::state::iptables::Variant;
use plan::state::{Iptables, IptablesKey, IptablesTable};
use plan::{Assembly, Key, Object, State, Step, Touched, diff, diff_within};

use crate::cluster::Cluster;
use crate::peers::in_turns;
use crate::{Row, Work};

const SIZES: &[usize] = &[100, 1_000, 10_000];

/// Beside what the peers have: the table of rules, the device, its address.
const BASE: usize = 3;

/// Neighbour, forwarding entry and route, and where there are many the route's nexthop object.
const fn objects(size: usize) -> usize {
    BASE + size * if size > 256 { 4 } else { 3 }
}

pub const ROWS: &[Row] = &[
    Row { what: "plan/wanted/vxlan", sizes: SIZES, gives: objects, make: |n| wanted("vxlan", n) },
    Row {
        what: "plan/wanted/host-gw",
        sizes: &[1_000],
        gives: |n| n * 2 + 1,
        make: |n| wanted("host-gw", n),
    },
    Row { what: "plan/wanted/ipip", sizes: &[1_000], gives: |n| n * 3 + 4, make: |n| wanted("ipip", n) },
    Row {
        what: "plan/wanted/wireguard",
        sizes: &[1_000],
        gives: |n| n + 6,
        make: |n| wanted("wireguard", n),
    },
    Row { what: "plan/diff/nothing", sizes: SIZES, gives: |_| 0, make: nothing },
    Row { what: "plan/diff/one", sizes: SIZES, gives: |_| 1, make: one },
    Row { what: "plan/diff/all", sizes: SIZES, gives: objects, make: all },
    Row { what: "plan/diff/gone", sizes: SIZES, gives: objects, make: gone },
    // A start: what is to be done, in which order.
    Row { what: "plan/order/all", sizes: SIZES, gives: |n| objects(n) - 1, make: ordered },
    // One node says something new: what the loop pays for it (decision 0105).
    Row { what: "plan/event", sizes: SIZES, gives: |_| 3, make: event },
    // It wakes, and nothing is new.
    Row { what: "plan/quiet", sizes: SIZES, gives: |_| 0, make: quiet },
    Row { what: "plan/text/commands", sizes: &[1_000], gives: objects, make: commands },
    Row { what: "plan/text/keys", sizes: &[1_000], gives: objects, make: keys },
    Row { what: "plan/rules/nftables", sizes: &[1], gives: |n| n, make: rules },
    // Beside the rules of others, of which a proxy for services writes thousands.
    Row { what: "plan/rules/iptables-read", sizes: &[10_000], gives: |_| 6, make: iptables_read },
    Row { what: "plan/rules/iptables-write", sizes: &[1], gives: |_| 9, make: iptables_written },
];

fn wanted(kind: &str, size: usize) -> Work {
    let cluster = Cluster::of(kind, size);
    let (accepted, rules) = (cluster.accepted(), cluster.rules());
    Box::new(move || {
        let Cluster { backend, facts, own, .. } = &cluster;
        let mut assembly = Assembly::default();
        assembly.update(backend.as_ref(), facts, Some(own), rules.clone(), &accepted, &[]);
        assembly.wanted().len()
    })
}

fn state(size: usize) -> State {
    Cluster::of("vxlan", size).assembly().wanted().clone()
}

fn steps(wanted: &State, actual: &State) -> usize {
    let found = diff(wanted, actual);
    found.links.len() + found.rest.len()
}

fn nothing(size: usize) -> Work {
    let wanted = state(size);
    let actual = wanted.clone();
    Box::new(move || steps(&wanted, &actual))
}

fn one(size: usize) -> Work {
    let wanted = state(size);
    let mut actual = wanted.clone();
    // The last one is a route.
    let last = wanted.iter().last().map(|(key, _)| key.clone());
    last.map(|key| actual.remove(&key));
    Box::new(move || steps(&wanted, &actual))
}

fn all(size: usize) -> Work {
    let (wanted, actual) = (state(size), State::default());
    Box::new(move || steps(&wanted, &actual))
}

fn gone(size: usize) -> Work {
    let (wanted, actual) = (State::default(), state(size));
    Box::new(move || steps(&wanted, &actual))
}

fn ordered(size: usize) -> Work {
    let wanted = state(size);
    // The device was made before.
    let device = wanted.iter().filter(|(key, _)| matches!(key, Key::Link(_)));
    let actual: State = device.map(|(_, object)| object.clone()).collect();
    Box::new(move || {
        let order = Order::of(diff(&wanted, &actual).rest, &wanted, &actual);
        order.first.len() + order.last.len()
    })
}

/// The loop's memory, as far as it only computes.
struct Loop {
    cluster: Cluster,
    judge: Judge,
    assembly: Assembly,
    actual: State,
}

impl Loop {
    fn settled(size: usize) -> Loop {
        let mut this = Loop {
            cluster: Cluster::of("vxlan", size),
            judge: Judge::default(),
            assembly: Assembly::default(),
            actual: State::default(),
        };
        this.round();
        this.actual = this.assembly.wanted().clone();
        this
    }

    /// Inputs to steps; gives these.
    fn round(&mut self) -> Vec<Step> {
        let Cluster { conf, backend, facts, own, peers } = &self.cluster;
        let changes = self.judge.judge(conf, own, &facts.local, peers);
        let (rules, accepted) = (self.cluster.rules(), self.judge.accepted());
        let touched = self.assembly.update(backend.as_ref(), facts, Some(own), rules, accepted, &changes);
        let wanted = self.assembly.wanted();
        let Touched::Keys(keys) = touched else { return Vec::new() };
        let rest = diff_within(wanted, &self.actual, &keys).rest;
        Order::of(rest, wanted, &self.actual).first
    }
}

fn event(size: usize) -> Work {
    let (mut it, mut next) = (Loop::settled(size), in_turns("vxlan", size));
    Box::new(move || {
        it.cluster.peers.apply(next());
        let steps = it.round();
        let count = steps.len();
        for step in steps {
            match step {
                Step::Put(object) => it.actual.put(object),
                Step::Change(_) => return 0,
                Step::Delete(object) => drop(it.actual.remove(&object.key())),
            }
        }
        count
    })
}

fn quiet(size: usize) -> Work {
    let mut it = Loop::settled(size);
    Box::new(move || it.round().len())
}

/// The log's text of each step.
fn commands(size: usize) -> Work {
    let wanted = state(size);
    let mut text = String::new();
    Box::new(move || {
        text.clear();
        for (_, object) in wanted.iter() {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{object}");
        }
        black_box(&text).lines().count()
    })
}

fn keys(size: usize) -> Work {
    let wanted = state(size);
    Box::new(move || wanted.iter().filter(|(key, object)| **key == object.key()).count())
}

fn rules(_: usize) -> Work {
    let cluster = Cluster::of("vxlan", 0);
    Box::new(move || cluster.rules().len())
}

const NAT: IptablesKey = IptablesKey { variant: Variant::Nft, family: Family::V4, table: IptablesTable::Nat };

/// Our rules in iptables.
fn in_iptables() -> Iptables {
    let mut cluster = Cluster::of("vxlan", 0);
    cluster.conf.enable_nftables = false;
    let tool = plan::facts::IptablesTool { variant: Variant::Nft, fully_random: true };
    cluster.facts.iptables = [(Family::V4, tool)].into();
    let rules = cluster.rules().into_iter().find_map(|object| match object {
        Object::Iptables(rules) if rules.key == NAT => Some(*rules),
        _ => None,
    });
    rules.expect("rules for a host that has iptables")
}

/// A table with rules of services, and ours among them.
fn saved(size: usize) -> String {
    let ours = in_iptables();
    let mut text =
        String::from("*nat\n:PREROUTING ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n:FLANNEL-POSTRTG - [0:0]\n");
    for n in 0..size / 4 {
        let _ = writeln!(text, ":KUBE-SVC-{n:016X} - [0:0]");
    }
    for n in 0..size / 4 {
        let (high, low) = (n >> 8, n & 255);
        let _ = write!(
            text,
            "-A KUBE-SERVICES -d 10.96.{high}.{low}/32 -p tcp -m comment --comment \"shop/part-{n}:http cluster IP\" -m tcp --dport 80 -j KUBE-SVC-{n:016X}\n\
             -A KUBE-SVC-{n:016X} ! -s 10.0.0.0/8 -d 10.96.{high}.{low}/32 -p tcp -m comment --comment \"shop/part-{n}:http cluster IP\" -m tcp --dport 80 -j KUBE-MARK-MASQ\n\
             -A KUBE-SVC-{n:016X} -m comment --comment \"shop/part-{n}:http -> 10.1.{high}.{low}:8080\" -j KUBE-SEP-{n:016X}\n\
             -A KUBE-SEP-{n:016X} -p tcp -m comment --comment \"shop/part-{n}:http\" -m tcp -j DNAT --to-destination 10.1.{high}.{low}:8080\n"
        );
    }
    for rule in ours.rules.iter().flatten() {
        let _ = writeln!(text, "-A FLANNEL-POSTRTG {rule}");
    }
    for hook in &ours.hooks {
        let _ = writeln!(text, "-A POSTROUTING {hook}");
    }
    text + "COMMIT\n"
}

fn iptables_read(size: usize) -> Work {
    let text = saved(size);
    let networks = crate::cluster::conf("vxlan").networks();
    Box::new(move || {
        Iptables::found(NAT, &text, &networks).and_then(|found| found.rules).map_or(0, |rules| rules.len())
    })
}

fn iptables_written(_: usize) -> Work {
    let ours = in_iptables();
    let found = Iptables::found(NAT, &saved(4), &crate::cluster::conf("vxlan").networks());
    Box::new(move || ours.restore(found.as_ref()).lines().count())
}
