//! Packets for the tunnel from a host that is no node: dropped and counted, or, where the check is off, let
//! in as flannel does.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use serde_json::Value;

use crate::world::{Host, World, has, until};

/// How a tunnel is entered by hand.
struct Tunnel {
    kind: &'static str,
    device: &'static str,
    key: &'static str,
    network: &'static str,
    table: &'static str,
    /// Whether `CheckSources` need not be asked for.
    by_default: bool,
}

const V4: &str = r#""EnableNFTables":true,"Network":"10.244.0.0/16""#;
const V6: &str = r#""EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:10::/48""#;

const IPIP: Tunnel = Tunnel {
    kind: "ipip",
    device: "flannel.ipip",
    key: "FLANNEL_SUBNET",
    // Programs of iptables take their time in the guest.
    network: V4,
    table: "ip loden-flannel.ipip",
    by_default: true,
};
const VXLAN: Tunnel =
    Tunnel { kind: "vxlan", device: "flannel.1", table: "ip loden-flannel.1", by_default: false, ..IPIP };
const VXLAN6: Tunnel = Tunnel {
    device: "flannel-v6.1",
    key: "FLANNEL_IPV6_SUBNET",
    network: V6,
    table: "ip6 loden-flannel-v6.1",
    ..VXLAN
};

impl Tunnel {
    fn world(&self, hosts: usize, checked: bool) -> World {
        let check =
            if checked == self.by_default { String::new() } else { format!(r#","CheckSources":{checked}"#) };
        let config = format!(r#"{{{},"Backend":{{"Type":"{}"{check}}}}}"#, self.network, self.kind);
        World::with_config(hosts, &config)
    }

    /// A tunnel of a stranger's to a host, and an address of the pod network to send from.
    fn enter(&self, stranger: &Host, host: &Host, from: IpAddr, to: IpAddr) {
        let (local, remote) = match to {
            IpAddr::V4(_) => (stranger.public(), host.public()),
            IpAddr::V6(_) => (stranger.public6(), host.public6()),
        };
        let id = if self.kind == "vxlan" { "id 1 dstport 8472" } else { "" };
        stranger.sh(&format!("ip link add evil type {} {id} local {local} remote {remote}", self.kind));
        stranger.sh("ip link set evil up");
        let length = if to.is_ipv4() { 32 } else { 128 };
        stranger.sh(&format!("ip addr add {from}/{length} dev evil nodad"));
        stranger.sh(&format!("ip route add {to}/{length} dev evil src {from}"));
        if self.kind == "vxlan" {
            let mac = host.json(&format!("ip -j link show {}", self.device))[0]["address"].clone();
            let mac = mac.as_str().unwrap();
            stranger.sh(&format!("ip neigh add {to} lladdr {mac} dev evil nud permanent"));
        }
    }

    /// Packets dropped so far; `None` without the table.
    fn dropped(&self, host: &Host) -> Option<u64> {
        let table: Value =
            serde_json::from_str(&host.try_sh(&format!("nft -j list table {}", self.table)).ok()?).ok()?;
        let rule = table["nftables"].as_array()?.iter().find_map(|o| o["rule"]["expr"].as_array())?;
        rule.iter().find_map(|expression| expression["counter"]["packets"].as_u64())
    }

    fn nodes(&self, host: &Host) -> String {
        host.sh(&format!("nft list set {} nodes", self.table))
    }
}

fn bound(host: &Host, address: IpAddr) -> UdpSocket {
    let socket = host.netns.run(|| UdpSocket::bind((address, 0))).unwrap().unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    socket
}

fn heard(socket: &UdpSocket) -> bool {
    socket.recv(&mut [0; 64]).is_ok()
}

/// The stranger sends with a pod's address of the other node.
fn a_stranger_is_kept_out(tunnel: &Tunnel) {
    for checked in [true, false] {
        let world = tunnel.world(3, checked);
        let [one, two, stranger] = [&world.hosts[0], &world.hosts[1], &world.hosts[2]];
        let _agents = [one.agent(&[]), two.agent(&[])].map(|agent| {
            agent.ready();
            agent
        });
        let (to, peer) = (one.subnet(tunnel.key).network(), two.subnet(tunnel.key));
        let what = format!("{} with the check {checked}", tunnel.device);
        until(&format!("traffic between nodes, {what}"), || two.greet(one, to));
        // The second may have known the first, and sent to it, a moment before it was known there.
        let before = tunnel.dropped(one);
        assert_eq!(before.is_some(), checked, "{what}");
        tunnel.enter(stranger, one, peer.hosts().nth(7).unwrap(), to);
        let victim = bound(one, to);
        let target = victim.local_addr().unwrap();
        let sender = stranger.netns.run(|| UdpSocket::bind((if to.is_ipv4() { "0.0.0.0" } else { "::" }, 0)));
        let sender = sender.unwrap().unwrap();
        if !checked {
            until(&format!("the stranger to be let in, {what}"), || {
                sender.send_to(b"hello", target).unwrap();
                if heard(&victim) { Ok(()) } else { Err("nothing".to_owned()) }
            });
            continue;
        }
        until(&format!("the drop to be counted, {what}"), || {
            sender.send_to(b"hello", target).unwrap();
            assert!(!heard(&victim), "a stranger's packet came in");
            if tunnel.dropped(one) >= before.map(|count| count + 3) {
                Ok(())
            } else {
                Err(format!("{:?}", tunnel.dropped(one)))
            }
        });
        assert!(tunnel.nodes(one).contains(&if to.is_ipv4() { two.public() } else { two.public6() }));
        until("nodes to be let in all the same", || two.greet(one, to));
    }
}

/// While the first node pings it, another node joins and leaves.
fn a_node_that_joins_is_let_in_before_it_is_sent_to(tunnel: &Tunnel) {
    let world = tunnel.world(2, true).quiet();
    let [one, two] = [&world.hosts[0], &world.hosts[1]];
    let _one = one.agent(&[]);
    _one.ready();
    // The second would get the same subnet whenever it comes.
    let first = two.agent(&[]);
    first.ready();
    let subnet = two.subnet(tunnel.key);
    first.kill();
    let routes = || one.sh(&format!("ip route show {subnet}"));
    let gone = || {
        let left = routes() + &tunnel.nodes(one);
        if left.contains("via") || left.contains("elements") { Err(left) } else { Ok(()) }
    };
    world.forget(two);
    until("the node to be gone", gone);
    let address = subnet.network();
    let _second = two.agent(&[]);
    until("the first to reach it", || one.try_sh(&format!("ping -c 1 -W 1 -i 0.2 {address}")));
    assert_eq!(tunnel.dropped(one), Some(0), "an answer came before the node was known");
    // Another agent on the first: what stands is taken over, in no moment is a known node a stranger.
    _one.kill();
    let _one = one.agent(&[]);
    _one.ready();
    one.try_sh(&format!("ping -c 5 -W 1 -i 0.01 {address}")).unwrap();
    assert_eq!(tunnel.dropped(one), Some(0), "the counter and with it the table are the old ones");
    drop(_second);
    world.forget(two);
    until("the node to be gone again", gone);
}

#[test]
fn a_stranger_cannot_enter_a_vxlan_that_checks() {
    a_stranger_is_kept_out(&VXLAN);
    a_stranger_is_kept_out(&VXLAN6);
}

#[test]
fn a_stranger_cannot_enter_ipip() {
    if has("ipip local 192.0.2.11", "a_stranger_cannot_enter_ipip") {
        a_stranger_is_kept_out(&IPIP);
    }
}

#[test]
fn a_vxlan_node_that_joins_is_let_in_at_once() {
    a_node_that_joins_is_let_in_before_it_is_sent_to(&VXLAN);
    a_node_that_joins_is_let_in_before_it_is_sent_to(&VXLAN6);
}

#[test]
fn an_ipip_node_that_joins_is_let_in_at_once() {
    if has("ipip local 192.0.2.11", "an_ipip_node_that_joins_is_let_in_at_once") {
        a_node_that_joins_is_let_in_before_it_is_sent_to(&IPIP);
    }
}

/// The kernel gives a packet to the tunnel with the fixed far end, and it is not ours to judge.
#[test]
fn a_tunnel_of_anothers_beside_ipip_goes_on() {
    if !has("ipip local 192.0.2.11", "a_tunnel_of_anothers_beside_ipip_goes_on") {
        return;
    }
    let world = IPIP.world(2, true);
    let [one, other] = [&world.hosts[0], &world.hosts[1]];
    let agent = one.agent(&[]);
    agent.ready();
    for (host, far, own) in [(one, other.public(), "10.9.0.1"), (other, one.public(), "10.9.0.2")] {
        host.sh(&format!("ip link add mine type ipip local {} remote {far}", host.public()));
        host.sh(&format!("ip addr add {own}/24 dev mine"));
        host.sh("ip link set mine up");
    }
    until("the other tunnel's traffic", || other.greet(one, "10.9.0.1".parse().unwrap()));
    one.sh("ip link del mine");
    until("its far end to be a stranger again", || {
        let set = one.sh(&format!("nft list set {} tunnels", IPIP.table));
        if set.contains("elements") { Err(set) } else { Ok(()) }
    });
}
