use model::wireguard::{PublicKey, Secret};

use super::super::testing::{assembly, expect, facts, ip, lease, text};
use super::*;
use crate::state::LinkFit;

const DUAL: &str = r#""Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/48""#;
const V4: &str = r#""Network":"10.244.0.0/16""#;
const V6: &str = r#""EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:10:244::/48""#;

fn conf(network: &str, backend: &str) -> NetConf {
    NetConf::parse(format!("{{{network},\"Backend\":{backend}}}")).expect("valid JSON in a test")
}

fn backend(network: &str, backend: &str) -> Wireguard {
    Wireguard::new(&conf(network, backend)).expect("a valid configuration in a test")
}

fn with_key() -> Facts {
    Facts {
        wireguard: Some(WireguardFacts {
            private: Secret::new([b'S'; 32]),
            public: PublicKey([1; 32]),
            key_file: "/run/flannel/wgkey".to_owned(),
            in_kernel: true,
        }),
        ..facts()
    }
}

/// Backend data of a node whose key is all `n`.
fn data(n: u8, port: u16) -> String {
    codec::write(&Tunnel { key: PublicKey([n; 32]), port: Some(port) })
}

const KEY_2: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";
const KEY_3: &str = "AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=";

fn own() -> Lease {
    lease("10.244.1.0/24 fd00:10:244:1::/64", "192.0.2.10 2001:db8::10", "wireguard", ["", ""])
}

fn peer(n: u8) -> Lease {
    lease(
        &format!("10.244.{n}.0/24 fd00:10:244:{n}::/64"),
        &format!("192.0.2.{} 2001:db8::{}", 10 + n, 10 + n),
        "wireguard",
        [&data(n, 51820), &data(n, 51821)],
    )
}

#[test]
fn each_family_has_its_device_and_its_entries() {
    let psk = r#"{"Type":"wireguard","PSK":"xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=","PersistentKeepaliveInterval":25}"#;
    let link = |dev: &str, port: u16| {
        format!(
            "ip link add {dev} mtu 1420 up type wireguard && wg set {dev} listen-port {port} private-key \
             /run/flannel/wgkey"
        )
    };
    let mut old = peer(3);
    old.attrs.backend_data = Some(format!(r#"{{"PublicKey":"{KEY_3}"}}"#).into());
    old.attrs.backend_v6_data = None;
    let facts = with_key();
    let got = text(&backend(DUAL, psk), &facts, Some(&own()), &[peer(2), old.clone()]);
    expect(
        &got,
        &format!(
            "nft replace table ip loden-flannel-wg (2 chains, 2 rules)
             nft replace table ip6 loden-flannel-wg-v6 (2 chains, 2 rules)
             {}
             {}
             ip address replace 10.244.1.0/32 dev flannel-wg
             ip address replace fd00:10:244:1::/128 dev flannel-wg-v6
             wg set flannel-wg peer {KEY_2} preshared-key /dev/stdin endpoint 192.0.2.12:51820 persistent-keepalive 25 allowed-ips 10.244.2.0/24
             wg set flannel-wg peer {KEY_3} preshared-key /dev/stdin endpoint 192.0.2.13:51820 persistent-keepalive 25 allowed-ips 10.244.3.0/24
             wg set flannel-wg-v6 peer {KEY_2} preshared-key /dev/stdin endpoint [2001:db8::12]:51821 persistent-keepalive 25 allowed-ips fd00:10:244:2::/64
             ip route replace 10.244.0.0/16 dev flannel-wg proto 76
             ip route replace blackhole 10.244.0.0/16 metric 4294967295 proto 76
             ip route replace fd00:10:244::/48 dev flannel-wg-v6 proto 76
             ip route replace blackhole fd00:10:244::/48 metric 4294967295 proto 76
             left out 10.244.3.0/24 and fd00:10:244:3::/64: its lease has no IPv6 WireGuard data",
            link("flannel-wg", 51820),
            link("flannel-wg-v6", 51821)
        ),
    );
    // One family alone, and before there is a lease.
    let v6 = backend(V6, r#"{"Type":"wireguard","ListenPortV6":5001,"MTU":1400}"#);
    expect(
        &text(&v6, &facts, Some(&own()), &[peer(2)]),
        &format!(
            "nft replace table ip6 loden-flannel-wg-v6 (2 chains, 2 rules)
             {}
             ip address replace fd00:10:244:1::/128 dev flannel-wg-v6
             wg set flannel-wg-v6 peer {KEY_2} endpoint [2001:db8::12]:51821 allowed-ips fd00:10:244:2::/64
             ip route replace fd00:10:244::/48 dev flannel-wg-v6 proto 76
             ip route replace blackhole fd00:10:244::/48 metric 4294967295 proto 76",
            link("flannel-wg-v6", 5001).replace("1420", "1320")
        ),
    );
    let guarded =
        format!("nft replace table ip loden-flannel-wg (2 chains, 2 rules)\n{}", link("flannel-wg", 51820));
    expect(&text(&backend(V4, "{}"), &facts, None, &[peer(2)]), &guarded);
    assert_eq!(backend(DUAL, "{}").mtu(&facts), 1420);
}

#[test]
fn one_tunnel_for_both_families_goes_where_the_peer_is() {
    let facts = with_key();
    let mut rfc1918 = peer(2);
    rfc1918.attrs.public_ip = Some([192, 168, 7, 2].into());
    let mut ula = rfc1918.clone();
    ula.attrs.public_ip6 = Some("fd00::2".parse().expect("valid"));
    let v4_only = Lease { attrs: LeaseAttrs { public_ip6: None, ..rfc1918.attrs.clone() }, ..rfc1918 };
    let v6_only = Lease { attrs: LeaseAttrs { public_ip: None, ..peer(2).attrs }, ..peer(2) };
    let mut inside = with_key();
    inside.public.v6 = Some("fd00::10".parse().expect("valid"));
    for (name, mode, facts, peer, endpoint) in [
        ("ipv4", "ipv4", &facts, peer(2), "192.0.2.12:51820"),
        // The port that is listened on, not the one announced for IPv6 (F-102).
        ("ipv6", "ipv6", &facts, peer(2), "[2001:db8::12]:51820"),
        ("auto: a public IPv4 address", "auto", &facts, peer(2), "192.0.2.12:51820"),
        ("auto: IPv6 goes through NAT", "auto", &facts, rfc1918.clone(), "[2001:db8::12]:51820"),
        ("auto: we have no global IPv6", "auto", &inside, rfc1918, "192.168.7.2:51820"),
        ("auto: the peer has no global IPv6", "auto", &facts, ula, "192.168.7.2:51820"),
        ("auto: no IPv6", "auto", &facts, v4_only, "192.168.7.2:51820"),
        ("auto: no IPv4", "auto", &facts, v6_only, "[2001:db8::12]:51820"),
    ] {
        let backend = backend(DUAL, &format!(r#"{{"Type":"wireguard","Mode":"{mode}"}}"#));
        let assembly = assembly(&backend, facts, Some(&own()), &[peer]);
        let lines: Vec<String> = assembly.wanted().iter().map(|(_, object)| object.to_string()).collect();
        // Of the families that outer packets may have.
        let guards = match mode {
            "ipv4" => "nft replace table ip loden-flannel-wg (2 chains, 2 rules)",
            "ipv6" => "nft replace table ip6 loden-flannel-wg (2 chains, 2 rules)",
            _ => {
                "nft replace table ip loden-flannel-wg (2 chains, 2 rules)\nnft replace table ip6 loden-flannel-wg (2 chains, 2 rules)"
            }
        };
        expect(
            &lines.join("\n"),
            &format!(
                "{guards}
                 ip link add flannel-wg mtu 1420 up type wireguard && wg set flannel-wg listen-port 51820 private-key /run/flannel/wgkey
                 ip address replace 10.244.1.0/32 dev flannel-wg
                 ip address replace fd00:10:244:1::/128 dev flannel-wg
                 wg set flannel-wg peer {KEY_2} endpoint {endpoint} allowed-ips 10.244.2.0/24,fd00:10:244:2::/64
                 ip route replace 10.244.0.0/16 dev flannel-wg proto 76
                 ip route replace blackhole 10.244.0.0/16 metric 4294967295 proto 76
                 ip route replace fd00:10:244::/48 dev flannel-wg proto 76
                 ip route replace blackhole fd00:10:244::/48 metric 4294967295 proto 76"
            ),
        );
        assert_eq!(assembly.rejected().len(), 0, "{name}");
    }
}

#[test]
fn a_port_of_ipv6_alone_is_believed_unless_flannel_says_it() {
    let backend = backend(V6, r#"{"Type":"wireguard","Mode":"ipv6","ListenPort":5000}"#);
    for (announced, used) in [(51821, 5000), (5000, 5000), (6000, 6000), (0, 5000)] {
        let mut peer = peer(2);
        peer.attrs.backend_data = None;
        peer.attrs.backend_v6_data = Some(data(2, announced).into());
        let Ok(Half { entries, .. }) = backend.peer(&with_key(), &peer, Family::V6, &peer) else {
            panic!("{announced}")
        };
        let [Object::WgPeer(entry)] = &entries[..] else { panic!("{entries:?}") };
        assert_eq!(entry.endpoint, Some(SocketAddr::new(ip("2001:db8::12"), used)), "{announced}");
    }
}

#[test]
fn what_we_announce_is_what_we_listen_on() {
    let key = PublicKey([1; 32]);
    for (network, json, want) in [
        (DUAL, "{}", [Some(51820), Some(51821)]),
        (DUAL, r#"{"ListenPort":1,"ListenPortV6":2}"#, [Some(1), Some(2)]),
        (DUAL, r#"{"Mode":"auto"}"#, [Some(51820), Some(51820)]),
        (DUAL, r#"{"Mode":"ipv6","ListenPort":7}"#, [Some(7), Some(7)]),
        (V4, r#"{"Mode":"ipv4"}"#, [Some(51820), None]),
        (V6, "{}", [None, Some(51821)]),
    ] {
        let attrs = backend(network, json).attrs(&with_key());
        let text = |port: Option<u16>| {
            port.map(|port| format!(r#"{{"PublicKey":"{key}","Port":{port}}}"#).into_boxed_str())
        };
        assert_eq!([attrs.backend_data, attrs.backend_v6_data], want.map(text), "{network} {json}");
        assert_eq!(attrs.backend_type, "wireguard");
    }
}

#[test]
fn peers_that_cannot_be_are_named_and_others_stand() {
    let with = |change: &dyn Fn(&mut Lease)| {
        let mut lease = peer(3);
        (lease.subnets.v6, lease.attrs.public_ip6, lease.attrs.backend_v6_data) = (None, None, None);
        change(&mut lease);
        lease
    };
    for (name, lease, reason) in [
        (
            "another type",
            with(&|l| l.attrs.backend_type = "vxlan".into()),
            r#"its backend is "vxlan", ours is "wireguard""#,
        ),
        ("no data", with(&|l| l.attrs.backend_data = None), "its lease has no IPv4 WireGuard data"),
        ("no address", with(&|l| l.attrs.public_ip = None), "its lease has no public IPv4 address"),
        (
            "no key",
            with(&|l| l.attrs.backend_data = Some(r#"{"PublicKey":"x","Port":1}"#.into())),
            "PublicKey is not a WireGuard key of 32 bytes",
        ),
        (
            "a port out of range",
            with(&|l| l.attrs.backend_data = Some(r#"{"PublicKey":"x","Port":-1}"#.into())),
            "its IPv4 WireGuard data \"{\\\"PublicKey\\\":\\\"x\\\",\\\"Port\\\":-1}\" is of no use: read wireguard backend \
             data: ",
        ),
        (
            "our own key",
            with(&|l| l.attrs.backend_data = Some(data(1, 1).into())),
            "it has this node's own WireGuard key AQEB",
        ),
        (
            "another's key",
            with(&|l| l.attrs.backend_data = Some(data(2, 1).into())),
            "it has the same WireGuard key AgIC",
        ),
    ] {
        let other = with(&|l| {
            l.subnets.v4 = peer(2).subnets.v4;
            l.attrs.backend_data = Some(data(2, 51820).into());
        });
        let backend = backend(V4, "{}");
        let got = assembly(&backend, &with_key(), Some(&own()), &[other, lease]);
        let reasons: Vec<&String> = got.rejected().values().flatten().collect();
        assert!(reasons.len() == 1 && reasons[0].contains(reason), "{name}: {reasons:?}");
        let entries = got.wanted().iter().filter(|(_, o)| matches!(o, Object::WgPeer(_))).count();
        assert_eq!(entries, 1, "{name}");
    }
}

#[test]
fn a_peers_new_key_takes_the_place_of_the_old() {
    let backend = backend(V4, "{}");
    let own = own();
    let mut wanted = assembly(&backend, &with_key(), Some(&own), &[peer(2)]);
    let mut renewed = peer(2);
    renewed.attrs.backend_data = Some(data(3, 51820).into());
    let accepted = [(renewed.subnets, std::sync::Arc::new(renewed.clone()))];
    let changes = accepted.clone().map(|(subnets, lease)| (subnets, Some(lease)));
    wanted.update(&backend, &with_key(), Some(&own), Vec::new(), &accepted.into(), &changes);
    let entries: Vec<String> = wanted
        .wanted()
        .iter()
        .filter(|(_, o)| matches!(o, Object::WgPeer(_)))
        .map(|(_, o)| o.to_string())
        .collect();
    assert_eq!(
        entries,
        [format!("wg set flannel-wg peer {KEY_3} endpoint 192.0.2.12:51820 allowed-ips 10.244.2.0/24")]
    );
}

#[test]
fn the_carrier_is_chosen_once() {
    let name = IfName::fixed(DEVICE);
    let own = |in_kernel| WireguardFacts { in_kernel, ..with_key().wireguard.expect("it is there") };
    let plain = |kind: &str| Link {
        name,
        kind: LinkKind::Other(kind.to_owned()),
        mac: None,
        mtu: None,
        up: true,
        txqlen: None,
        master: None,
    };
    for (found, in_kernel, want) in [
        (None, true, Carrier::Kernel),
        (None, false, Carrier::UserSpace),
        (Some("tun"), true, Carrier::UserSpace),
        (Some("tun"), false, Carrier::UserSpace),
        (Some("wireguard"), true, Carrier::Kernel),
        (Some("bridge"), true, Carrier::Kernel),
    ] {
        let mut facts = with_key();
        facts.devices.extend(found.map(|kind| (name, plain(kind))));
        let backend = Wireguard::new(&conf(V4, "{}")).expect("valid");
        let link = backend.link(&facts, &own(in_kernel), Family::V4, name);
        let LinkKind::Wireguard(device) = &link.kind else { panic!("{link:?}") };
        assert_eq!(device.carrier, want, "{found:?} {in_kernel}");
        // A process reads it: pods' packets wait for its turn (decision 0245), and a living device keeps its length.
        let user = want == Carrier::UserSpace;
        assert_eq!(link.txqlen, user.then_some(2000), "{found:?} {in_kernel}");
        let shorter = Link { txqlen: Some(500), ..link.clone() };
        assert_eq!(link.fit(&shorter), LinkFit::Same, "{found:?} {in_kernel}");
    }
}

#[test]
fn what_cannot_work_is_said() {
    for (network, json, reason) in [
        (DUAL, r#"{"ListenPort":5,"ListenPortV6":5}"#, "ListenPort and ListenPortV6 are both 5"),
        (V4, r#"{"Mode":"ipv6"}"#, "Mode \"ipv6\" sends over a family that EnableIPv6 switches off"),
        (V6, r#"{"Mode":"ipv4"}"#, "Mode \"ipv4\" sends over a family that EnableIPv4 switches off"),
        (V4, r#"{"Mode":"both"}"#, "Mode \"both\" must be"),
        (V4, r#"{"PSK":"geheim"}"#, "PSK is not a WireGuard key"),
    ] {
        let said = Wireguard::new(&conf(network, json)).expect_err(json);
        assert!(said.contains(reason) && !said.contains("geheim"), "{json}: {said}");
    }
    assert!(Wireguard::new(&conf(DUAL, r#"{"Mode":"auto","ListenPort":5,"ListenPortV6":5}"#)).is_ok());
    assert!(Wireguard::new(&conf(V4, r#"{"ListenPort":5,"ListenPortV6":5}"#)).is_ok());

    let (mut small, mut no_v6, mut none) = (with_key(), with_key(), with_key());
    small.uplink.mtu = 1300;
    no_v6.uplink.addresses.v6 = None;
    (none.uplink.addresses.v4, none.uplink.addresses.v6) = (None, None);
    for (network, json, facts, reason) in [
        (V4, "{}", &small, None),
        (
            DUAL,
            "{}",
            &small,
            Some("MTU 1300 of eth0 leaves 1220 bytes inside the tunnel, less than the 1280 needed"),
        ),
        (DUAL, r#"{"MTU":1350}"#, &with_key(), Some("MTU 1350 of the network config leaves 1270 bytes")),
        (DUAL, "{}", &no_v6, Some("eth0 has no IPv6 address, which the tunnel needs")),
        (DUAL, r#"{"Mode":"ipv4"}"#, &no_v6, None),
        (DUAL, r#"{"Mode":"auto"}"#, &no_v6, None),
        (DUAL, r#"{"Mode":"auto"}"#, &none, Some("eth0 has no IPv4 address, which the tunnel needs")),
    ] {
        let said = backend(network, json).check(facts).err();
        let fits = match (&said, reason) {
            (Some(said), Some(reason)) => said.contains(reason),
            (said, reason) => said.is_none() && reason.is_none(),
        };
        assert!(fits, "{network} {json}: {said:?}");
    }
}
