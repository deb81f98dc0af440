use std::net::IpAddr;
use std::time::Duration;

use super::judge::{Heard, Observation, Outcome, Step, Verdict, classify};
use super::{Echoes, Plan, Target, mesh};
use model::{Lease, LeaseAttrs, Peers, Subnets};

fn lease(number: u8) -> Lease {
    Lease {
        subnets: Subnets { v4: format!("10.244.{number}.0/24").parse().ok(), v6: None },
        attrs: LeaseAttrs { public_ip: Some([192, 0, 2, number].into()), ..LeaseAttrs::default() },
    }
}

fn plan(kind: &'static str, own: u8, nodes: u8) -> Plan {
    let mut peers = Peers::default();
    peers.reset((1..=nodes).map(lease));
    Plan {
        kind,
        carried_by: "UDP port 8472".to_owned(),
        device: Some("flannel.1".to_owned()),
        mtu: 1450,
        outer_mtu: 1500,
        own: Some(lease(own)),
        peers,
        summed_here: (kind == "vxlan").then_some(false),
        ..Plan::default()
    }
}

fn target(kind: &'static str) -> (Plan, Target) {
    let plan = plan(kind, 1, 2);
    let target = mesh::targets(&plan, 0, &[])[0];
    (plan, target)
}

/// A network that answers by these rules.
type Network = fn(Step) -> Outcome;

fn examine(network: Network, seen: Observation, kind: &'static str) -> (Verdict, String, usize) {
    let (plan, target) = target(kind);
    let (mut seen, mut packets) = (seen, 0);
    while let Some(step) = seen.next(&target, &plan) {
        packets += 1;
        assert!(packets < 20, "an examination ends");
        seen.note(step, network(step));
    }
    let (verdict, text) = classify(&seen, &target, &plan);
    (verdict, text, packets)
}

#[test]
fn loss_is_of_the_last_echoes() {
    let mut echoes = Echoes::default();
    for (lost, times, want) in [
        (false, 3, (3, 0)),
        (true, 1, (4, 1)),
        (false, 31, (32, 1)),
        (false, 1, (32, 0)),
        (true, 40, (32, 32)),
    ] {
        (0..times).for_each(|_| echoes.note(lost));
        assert_eq!((echoes.sent, echoes.lost()), want);
    }
}

fn yes() -> Outcome {
    Outcome::Answered(Duration::from_micros(300))
}

fn closed() -> Outcome {
    Outcome::Refused("Connection refused".to_owned())
}

fn healthy(step: Step) -> Outcome {
    match step {
        Step::Datagram | Step::Unsummed | Step::Repeated => closed(),
        _ => yes(),
    }
}

fn with(heard: Heard) -> Observation {
    Observation { heard, ..Observation::default() }
}

#[test]
fn every_class_has_its_signs() {
    use Outcome::Silence;
    let table: &[(&str, Network, Observation, &str, Verdict, &str)] = &[
        (
            "healthy",
            healthy,
            with(Heard::Lately),
            "vxlan",
            Verdict::Ok,
            "packets of up to 1450 bytes come back",
        ),
        ("flannel", healthy, with(Heard::Never), "vxlan", Verdict::Ok, "seen from here alone"),
        (
            "agent down",
            healthy,
            with(Heard::Before),
            "vxlan",
            Verdict::AgentDown,
            "its agent sends no probes any more",
        ),
        (
            "a node that is off",
            |_| Silence,
            with(Heard::Before),
            "vxlan",
            Verdict::UnderlayDown,
            "192.0.2.2 answers nothing",
        ),
        (
            "no route between hosts",
            |step| match step {
                Step::Outer => Outcome::Refused("no route to the destination".to_owned()),
                _ => Silence,
            },
            with(Heard::Never),
            "vxlan",
            Verdict::UnderlayDown,
            "192.0.2.2 is not reached at all: no route",
        ),
        (
            "firewall between",
            |step| if step == Step::Outer { yes() } else { Silence },
            with(Heard::Lately),
            "vxlan",
            Verdict::TunnelDropped,
            "UDP port 8472 is dropped in one direction or both",
        ),
        (
            "firewall one way",
            |step| if step == Step::Outer { yes() } else { Silence },
            with(Heard::Now),
            "vxlan",
            Verdict::OneWay,
            "its packets arrive here and ours are not answered",
        ),
        (
            "one way, and the host filters pings",
            |_| Silence,
            with(Heard::Now),
            "vxlan",
            Verdict::OneWay,
            "does not pass from here",
        ),
        (
            "the host filters pings, the tunnel works",
            |step| if step == Step::Outer { Silence } else { healthy(step) },
            with(Heard::Lately),
            "vxlan",
            Verdict::Ok,
            "",
        ),
        (
            "a smaller MTU on the way, of which nobody tells",
            |step| match step {
                Step::InnerFull | Step::OuterFull => Silence,
                Step::InnerSized(size) if size > 1350 => Silence,
                step => healthy(step),
            },
            with(Heard::Lately),
            "vxlan",
            Verdict::LargeDropped,
            "the largest that passed has 1320; nor do the hosts exchange packets of 1500 bytes: set the MTU of the interface, \
             or of the backend, to at most 1370",
        ),
        (
            "fragments of the tunnel alone",
            |step| match step {
                Step::InnerFull | Step::InnerSized(_) => Silence,
                step => healthy(step),
            },
            with(Heard::Lately),
            "vxlan",
            Verdict::LargeDropped,
            "the hosts exchange packets of 1500 bytes: something drops large packets of UDP port 8472",
        ),
        (
            "offload",
            |step| match step {
                Step::Datagram | Step::Repeated => Silence,
                step => healthy(step),
            },
            with(Heard::Lately),
            "vxlan",
            Verdict::Checksum,
            "gets it wrong; from now on this node computes it: `ethtool -K flannel.1 tx-checksum-ip-generic off`",
        ),
        (
            "offload, of a tunnel whose packets are made whole before they enter it",
            |step| match step {
                Step::Datagram | Step::Repeated => Silence,
                step => healthy(step),
            },
            with(Heard::Lately),
            "wireguard",
            Verdict::Checksum,
            "the checksum is left to hardware that gets it wrong: `ethtool -K",
        ),
        (
            "a kernel there that answers one datagram a second",
            |step| match step {
                Step::Datagram => Silence,
                step => healthy(step),
            },
            with(Heard::Lately),
            "vxlan",
            Verdict::Ok,
            "",
        ),
        (
            "a firewall there that drops datagrams in silence",
            |step| match step {
                Step::Datagram | Step::Unsummed => Silence,
                step => healthy(step),
            },
            with(Heard::Lately),
            "vxlan",
            Verdict::Ok,
            "",
        ),
        (
            "firewalld",
            |step| match step {
                Step::Inner => {
                    Outcome::Refused("forbidden by a firewall (admin prohibited), says 10.244.2.0".to_owned())
                }
                step => healthy(step),
            },
            with(Heard::Lately),
            "vxlan",
            Verdict::Refused,
            "10.244.2.0 is refused: forbidden by a firewall",
        ),
        (
            "another port",
            |step| match step {
                Step::Inner => Outcome::Refused("nothing listens there, says 192.0.2.12".to_owned()),
                step => healthy(step),
            },
            with(Heard::Lately),
            "vxlan",
            Verdict::Refused,
            "nothing listens there, says 192.0.2.12: no tunnel there takes UDP port 8472; it is down, or that agent does \
             not run with the same Backend",
        ),
        (
            "source",
            healthy,
            Observation { strange_source: Some([192, 0, 2, 1].into()), ..with(Heard::Lately) },
            "vxlan",
            Verdict::WrongSource,
            "leave with the source 192.0.2.1",
        ),
        (
            "no pod there yet",
            |step| if step == Step::Outer { yes() } else { Silence },
            with(Heard::Never),
            "host-gw",
            Verdict::Unsure,
            "until a pod runs there",
        ),
        ("host-gw that works", healthy, with(Heard::Lately), "host-gw", Verdict::Ok, ""),
    ];
    for (name, network, seen, kind, verdict, text) in table {
        let (found, said, packets) = examine(*network, seen.clone(), kind);
        assert_eq!(found, *verdict, "{name}: {said}");
        assert!(said.contains(text), "{name}: {said}");
        assert!(!said.contains('\n') && said.len() < 320, "{name}: one sentence: {said}");
        if found == Verdict::Ok && !name.contains("there that") {
            assert_eq!(packets, 3, "{name}: health is cheap");
        }
    }
    for verdict in Verdict::ALL {
        assert!(table.iter().any(|row| row.4 == verdict), "{verdict:?} has a line");
    }
}

#[test]
fn neighbours_probe_each_other_and_everybody_has_a_turn() {
    for nodes in 2..=12 {
        let others = |own: u8, turn: usize| {
            let targets = mesh::targets(&plan("vxlan", own, nodes), turn, &[]);
            targets.iter().map(|target| target.net.to_string()).collect::<Vec<_>>()
        };
        let name = |number: u8| format!("10.244.{number}.0/24");
        for own in 1..=nodes {
            let mut met = std::collections::BTreeSet::new();
            for turn in 0..usize::from(nodes) {
                let targets = others(own, turn);
                assert!(!targets.contains(&name(own)), "nobody probes himself");
                assert!(targets.len() <= 3, "{nodes} nodes, {own}: {targets:?}");
                let unique: std::collections::BTreeSet<_> = targets.iter().collect();
                assert_eq!(unique.len(), targets.len(), "each once: {targets:?}");
                met.extend(targets);
            }
            assert_eq!(met.len(), usize::from(nodes) - 1, "{own} of {nodes} meets all");
            let next = own % nodes + 1;
            assert!(
                others(own, 0).contains(&name(next)) && others(next, 0).contains(&name(own)),
                "{own} and {next}"
            );
        }
    }
}

#[test]
fn who_cannot_be_reached_is_not_probed() {
    let targets = |plan: &Plan| mesh::targets(plan, 0, &[]).len();
    assert_eq!(targets(&plan("vxlan", 1, 1)), 0, "alone");
    assert_eq!(targets(&plan("extension", 1, 5)), 0, "what an extension's peers answer is not known");
    assert_eq!(targets(&plan("ipsec", 1, 5)), 0, "an echo of the host would go in the clear");
    assert_eq!(targets(&Plan { own: None, ..plan("vxlan", 1, 5) }), 0, "without a lease");
    let left_out = ["10.244.2.0/24".to_owned()].into();
    assert_eq!(targets(&Plan { left_out, ..plan("vxlan", 1, 2) }), 0, "left out");
    // On a common network packets go beside the tunnel, which is told otherwise.
    let direct = [IpAddr::from([192, 0, 2, 2])].into();
    let plan_direct = Plan { direct, ..plan("vxlan", 1, 2) };
    let beside = mesh::targets(&plan_direct, 0, &[])[0];
    assert!(beside.direct && !mesh::targets(&plan("vxlan", 1, 2), 0, &[])[0].direct);
    let mut silent = Observation { heard: Heard::Never, ..Observation::default() };
    silent.note(Step::Inner, Outcome::Silence);
    silent.note(Step::Outer, yes());
    let (verdict, said) = classify(&silent, &beside, &plan_direct);
    assert!(verdict == Verdict::TunnelDropped && said.contains("beside the tunnel"), "{said}");
    // A bad one stays on the list.
    let far = "10.244.7.0/24".parse().expect("a network");
    let held = mesh::targets(&plan("vxlan", 1, 12), 0, &[far]);
    assert!(held.iter().any(|target| target.net == far), "{held:?}");
    let bridge = mesh::targets(&plan("host-gw", 1, 2), 0, &[])[0];
    assert_eq!((bridge.inner.to_string(), bridge.certain), ("10.244.2.1".to_owned(), false));
}
