//! A changed network configuration goes from node to node under traffic between all pods, as
//! docs/guide/changing-backend.md says: what it costs is counted.

use std::time::Instant;

use plan::state::Variant;

use crate::iptables;
use crate::traffic::{Fared, Pod, Stream};
use crate::world::{Agent, Host, World, until};

const KEYS: [&str; 2] = ["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"];

/// Distance of datagrams in each of the fourteen streams.
const EACH_MS: u64 = 4;

/// A configuration of two families.
fn config(network: &str, golden: bool, backend: &str) -> String {
    format!(
        r#"{{"Network":"{network}","EnableIPv6":true,"IPv6Network":"fd00:10::/48","EnableNFTables":{golden},"Backend":{backend}}}"#
    )
}

/// A cluster, and a pod on each of its hosts.
struct Bed {
    agents: Vec<Agent>,
    pods: Vec<Pod>,
    outside: Pod,
    world: World,
}

impl Bed {
    fn new(config: &str) -> Bed {
        Bed::of(World::with_config(4, config))
    }

    /// Hosts whose ways to each other have a gateway, be it the other host itself.
    fn apart(config: &str) -> Bed {
        let world = World::with_config(4, config);
        apart(&world.hosts[..3]);
        Bed::of(world)
    }

    fn of(world: World) -> Bed {
        for host in &world.hosts {
            host.sh("sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0");
        }
        let agents: Vec<Agent> = world.hosts[..3].iter().map(agent).collect();
        agents.iter().for_each(Agent::ready);
        let pods = world.hosts[..3].iter().map(|host| Pod::on(host, &KEYS)).collect();
        let outside = &world.hosts[3];
        let addresses = vec![outside.public().parse().unwrap(), outside.public6().parse().unwrap()];
        let outside = Pod { netns: outside.netns.try_clone().unwrap(), addresses };
        Bed { agents, pods, outside, world }
    }

    /// From every pod to every other, and from one to the outside, in both families.
    fn streams(&self) -> Vec<Stream> {
        let mut streams = Vec::new();
        for family in 0..2 {
            for from in 0..3 {
                let to = (0..3).filter(|to| *to != from).map(|to| &self.pods[to]);
                streams.extend(to.map(|to| Stream::every(EACH_MS, &self.pods[from], to, family)));
            }
            streams.push(Stream::every(EACH_MS, &self.pods[0], &self.outside, family));
        }
        streams
    }

    /// Gives all nodes another configuration, one after the other, and waits until `done` says it is in force
    /// everywhere. What became of the traffic meanwhile.
    fn change(&mut self, config: &str, done: impl Fn(&Host, &Host) -> Result<(), String>) -> Vec<Fared> {
        let streams = self.streams();
        let more = || streams.iter().for_each(|stream| stream.more(30));
        more();
        self.world.hosts[0].put_config(config);
        for (n, host) in self.world.hosts[..3].iter().enumerate() {
            // An orderly end, and one that is not.
            let old = self.agents.remove(0);
            if n == 1 {
                old.kill()
            } else {
                assert_eq!(old.terminate(), 0)
            }
            self.agents.push(agent(host));
            self.agents.last().unwrap().ready();
            more();
        }
        for host in &self.world.hosts[..3] {
            for peer in self.world.hosts[..3].iter().filter(|peer| peer.number != host.number) {
                until(&format!("host {} to reach {} by the new one", host.number, peer.number), || {
                    done(host, peer)
                });
            }
        }
        more();
        Stream::finish_all(streams)
    }
}

/// Gives the ways of hosts to each other a gateway, be it the other host itself.
pub fn apart(hosts: &[Host]) {
    for host in hosts {
        for peer in hosts.iter().filter(|peer| peer.number != host.number) {
            host.sh(&format!("ip route add {0}/32 via {0} dev eth0 onlink", peer.public()));
            // IPv6 takes no gateway that is the destination, so it is the other host's second one.
            host.sh(&format!("ip -6 route add {0}/128 via fe80::{1} dev eth0", peer.public6(), peer.number));
        }
        host.sh(&format!("ip addr add fe80::{}/64 dev eth0 nodad", host.number));
    }
}

fn agent(host: &Host) -> Agent {
    host.agent(&["--ip-masq"])
}

/// Which device leads to a peer's pods in both families, without a gateway's name.
fn leads(host: &Host, peer: &Host, devices: [&str; 2]) -> Result<(), String> {
    for (key, device) in KEYS.into_iter().zip(devices) {
        let net = peer.subnet(key);
        let family = if net.addr().is_ipv4() { "-4" } else { "-6" };
        let route = host.sh(&format!("ip {family} route show {net}"));
        if !route.contains(&format!(" dev {device} ")) {
            return Err(route);
        }
    }
    Ok(())
}

/// What is in force everywhere in the end: the devices that lead to peers.
const PLAIN: [&str; 2] = ["eth0", "eth0"];
const ONE: [&str; 2] = ["flannel.1", "flannel-v6.1"];
const SEVEN: [&str; 2] = ["flannel.7", "flannel-v6.7"];

const NET: &str = "10.244.0.0/16";
const WIDER: &str = "10.244.0.0/15";
const VXLAN: &str = r#"{"Type":"vxlan"}"#;
const HOST_GW: &str = r#"{"Type":"host-gw"}"#;
const ANOTHER: &str = r#"{"Type":"vxlan","VNI":7,"Port":4789}"#;
const DIRECT: &str = r#"{"Type":"vxlan","VNI":7,"Port":4789,"DirectRouting":true}"#;

/// Changes one after the other; none loses a packet, none lets out a pod's address or hides it from another pod.
fn rounds(mut bed: Bed, golden: bool, changes: &[(&str, bool, &str, [&str; 2])]) -> Bed {
    for (network, mode, backend, devices) in changes {
        let config = config(network, *mode, backend);
        let fared = bed.change(&config, |host, peer| leads(host, peer, *devices));
        println!(
            "EnableNFTables {golden}, then {config}: {} datagrams",
            fared.iter().map(|fared| fared.sent).sum::<usize>()
        );
        for fared in &fared {
            let outside = bed.outside.addresses.iter().position(|to| fared.what.ends_with(&format!(" {to}")));
            let seen = outside.map(|family| {
                let host = &bed.world.hosts[0];
                [host.public(), host.public6()][family].parse().unwrap()
            });
            fared.assert_whole(seen);
        }
    }
    bed
}

#[test]
fn changes_of_the_configuration_cost_no_packet_with_rules_in_nftables() {
    let bed = rounds(
        Bed::new(&config(NET, true, VXLAN)),
        true,
        &[
            (NET, true, HOST_GW, PLAIN),
            (NET, true, VXLAN, ONE),
            (NET, true, ANOTHER, SEVEN),
            (NET, true, DIRECT, PLAIN),
            (NET, true, ANOTHER, SEVEN),
            (WIDER, true, ANOTHER, SEVEN),
        ],
    );
    // What is left of the first VNI goes when nobody has needed it for a minute, and what is used stays.
    let deadline = Instant::now() + std::time::Duration::from_secs(120);
    for host in &bed.world.hosts[..3] {
        while host.try_sh("ip link show flannel.1").is_ok()
            || host.try_sh("ip link show flannel-v6.1").is_ok()
        {
            assert!(Instant::now() < deadline, "{}", bed.agents[host.number - 1].log());
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
        host.sh("ip link show flannel.7");
        host.sh("ip link show flannel-v6.7");
    }
}

#[test]
fn changes_of_the_configuration_cost_no_packet_with_rules_in_iptables() {
    const TEST: &str = "changes_of_the_configuration_cost_no_packet_with_rules_in_iptables";
    if !iptables::works(TEST, Variant::Nft) {
        return;
    }
    rounds(
        Bed::new(&config(NET, false, HOST_GW)),
        false,
        &[
            (NET, false, VXLAN, ONE),
            (NET, false, HOST_GW, PLAIN),
            (WIDER, false, HOST_GW, PLAIN),
            (WIDER, true, HOST_GW, PLAIN),
            (WIDER, false, HOST_GW, PLAIN),
        ],
    );
}

/// Hosts that reach each other through a router have the tunnel alone: the old one is kept for those who have not
/// changed yet, under the hardware address their leases say.
#[test]
fn another_vni_costs_no_packet_between_networks() {
    let bed = Bed::apart(&config(NET, true, VXLAN));
    rounds(bed, true, &[(NET, true, ANOTHER, SEVEN), (NET, true, VXLAN, ONE)]);
}

/// Nothing falls back to what is not encrypted, so two nodes of which one has changed do not reach each other. The bound
/// of the guide: a pair is apart from the restart of the first to that of the second, and nobody has to help.
#[test]
fn a_change_to_an_encrypted_backend_parts_pairs_until_both_have_changed() {
    if !crate::wireguard::available("a_change_to_an_encrypted_backend_parts_pairs_until_both_have_changed") {
        return;
    }
    let mut bed = Bed::new(&config(NET, true, VXLAN));
    for backend in [r#"{"Type":"wireguard"}"#, VXLAN] {
        let streams = bed.streams();
        streams.iter().for_each(|stream| stream.more(30));
        bed.world.hosts[0].put_config(&config(NET, true, backend));
        let start = Instant::now();
        for host in &bed.world.hosts[..3] {
            assert_eq!(bed.agents.remove(0).terminate(), 0);
            bed.agents.push(agent(host));
            bed.agents.last().unwrap().ready();
        }
        streams.iter().for_each(|stream| stream.more(30));
        let took = start.elapsed();
        for fared in Stream::finish_all(streams) {
            let Fared { what, lost, sent, gap, .. } = &fared;
            println!("then {backend}: {} of {sent} lost within {gap:?}, {took:?} in all, {what}", lost.len());
            assert!(*gap < took, "{what}: {gap:?} of {took:?}");
            let outside = bed.outside.addresses.iter().any(|to| what.ends_with(&format!(" {to}")));
            assert!(
                !outside || lost.is_empty(),
                "the way to the outside is nobody's tunnel: {what}: {lost:?}"
            );
            assert!(outside || fared.disguised.is_empty(), "{what}: {:?}", fared.disguised);
        }
    }
}
