//! `bridge` beside Debian's: the same documents, the same kernel state, the same result.

use crate::dhcp::until;
use crate::harness::{DEBIAN, Host, Pod, debian, ip_in, pod, run_in, stable, with};
use kernel::Netns;
use model::gojson::Json;

/// A document of the network `net`; `members` are added to it.
fn conf(host: &Host, version: &str, members: &str, ipam: &str) -> String {
    let dir = host.path("networks");
    let ipam = match ipam {
        "" => String::new(),
        ranges => format!(r#", "ipam": {{"type": "host-local", "dataDir": "{dir}", {ranges}}}"#),
    };
    let members = if members.is_empty() { String::new() } else { format!(", {members}") };
    format!(r#"{{"cniVersion": "{version}", "name": "net", "type": "bridge"{members}{ipam}}}"#)
}

const V4: &str = r#""ranges": [[{"subnet": "10.9.1.0/24"}]], "routes": [{"dst": "10.9.0.0/16"}]"#;
const DUAL: &str = r#""ranges": [[{"subnet": "10.9.1.0/24"}], [{"subnet": "2001:db8:9::/64"}]],
    "routes": [{"dst": "10.9.0.0/16"}, {"dst": "2001:db8::/32"}]"#;

const DUAL_ALONE: &str = r#""ranges": [[{"subnet": "10.9.1.0/24"}], [{"subnet": "2001:db8:9::/64"}]]"#;

/// Two of one family, which only IPv6 bridges bear beside each other.
const THREE: &str = r#""ranges": [[{"subnet": "10.9.1.0/24"}], [{"subnet": "2001:db8:9::/64"}],
    [{"subnet": "fd00:9::/64"}]], "routes": [{"dst": "10.9.0.0/16"}, {"dst": "2001:db8::/32"}]"#;

const V6: &str = r#""ranges": [[{"subnet": "2001:db8:9::/64"}]], "routes": [{"dst": "2001:db8::/32"}]"#;

/// The picked members of the objects in a list, one line each.
fn pick(text: &str, keys: &[&str]) -> String {
    let list: Json = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
    let mut lines = String::new();
    for item in list.as_array().unwrap_or_default() {
        for key in keys {
            let value = key.split('.').try_fold(item, |item, key| item.get(key));
            lines.push_str(&format!("{key}={} ", value.map(Json::to_compact_sorted).unwrap_or_default()));
        }
        lines.push('\n');
    }
    lines
}

/// Everything an attachment leaves in the kernel that does not change from run to run.
fn state(host: &Host, netns: &Netns, ours: bool) -> String {
    let mut text = String::new();
    // Not the length of the queue: a veth without queueing discipline has no use for it.
    let link = ["mtu", "operstate", "flags", "linkinfo.info_kind"];
    text.push_str(&pick(&ip_in(netns, "-j -d link show eth0"), &link));
    for (netns, device) in [(netns, "eth0"), (&host.netns, "cni0")] {
        let addresses: Json = ip_in(netns, &format!("-j addr show {device} scope global")).parse().unwrap();
        for device in addresses.as_array().unwrap() {
            let info = device.get("addr_info").map(Json::to_compact).unwrap_or_default();
            text.push_str(&pick(&info, &["family", "local", "prefixlen", "scope", "broadcast"]));
            // Theirs lets the gateway's address be tentative for a second, ours does not.
            assert!(!ours || !info.contains("tentative"), "{info}");
        }
    }
    let route = ["dst", "gateway", "dev", "protocol", "scope", "prefsrc", "metric", "flags"];
    text.push_str(&pick(&ip_in(netns, "-4 -j route show"), &route));
    let v6: Json = ip_in(netns, "-6 -j route show").parse().unwrap();
    let global = v6.as_array().unwrap().iter().filter(|r| !r.to_compact().contains("fe80::"));
    text.push_str(&pick(&Json::array(global.cloned()).to_compact(), &route));
    let bridge = ["mtu", "operstate", "flags", "promiscuity", "linkinfo.info_data.vlan_filtering"];
    text.push_str(&pick(&host.ip("-j -d link show cni0"), &bridge));
    let port = ["mtu", "operstate", "flags", "master", "linkinfo.info_slave_data.hairpin"];
    text.push_str(&pick(&host.ip("-j -d link show type veth"), &port));
    let vlans = run_in(&host.netns, std::process::Command::new("bridge").args(["-j", "vlan", "show"]), "");
    text.push_str(&pick(&String::from_utf8_lossy(&vlans.stdout), &["vlans"]));
    for (netns, key) in [
        (&host.netns, "net/ipv4/ip_forward"),
        (&host.netns, "net/ipv6/conf/all/forwarding"),
        (&host.netns, "net/ipv6/conf/cni0/accept_ra"),
        (netns, "net/ipv4/conf/eth0/arp_notify"),
        (netns, "net/ipv6/conf/eth0/accept_dad"),
        (netns, "net/ipv6/conf/eth0/disable_ipv6"),
    ] {
        let value = kernel::sysctl::read_in(netns, key).unwrap_or_default();
        text.push_str(&format!("{key}={value}\n"));
    }
    text
}

#[test]
fn results_and_state_are_those_of_debians_plugins() {
    if !debian("results_and_state_are_those_of_debians_plugins") {
        return;
    }
    let flannel = r#""isDefaultGateway": true, "hairpinMode": true, "mtu": 1450, "ipMasq": false"#;
    for (version, members, ipam) in [
        ("0.1.0", flannel, V4),
        ("0.2.0", flannel, V4),
        ("0.2.0", flannel, DUAL),
        ("0.3.0", flannel, V4),
        ("0.3.1", flannel, DUAL),
        ("0.4.0", flannel, V4),
        ("1.0.0", flannel, V4),
        ("1.0.0", flannel, DUAL),
        ("0.3.1", flannel, THREE),
        ("1.0.0", flannel, THREE),
        ("1.0.0", r#""isGateway": true"#, DUAL),
        ("1.0.0", flannel, V6),
        ("0.2.0", flannel, V6),
        ("1.0.0", "", DUAL),
        ("1.0.0", "", ""),
        ("1.0.0", r#""promiscMode": true"#, V4),
        ("1.0.0", r#""runtimeConfig": {"mac": "0a:00:00:00:00:07"}"#, V4),
        ("1.0.0", r#""vlan": 100, "preserveDefaultVlan": true"#, V4),
        ("1.0.0", r#""enabledad": true"#, V4),
        ("1.0.0", r#""dns": {"nameservers": ["192.0.2.53"], "search": ["example.net"]}"#, V4),
    ] {
        let what = format!("{version} {members} {ipam}");
        if members.contains("vlan") && !filters_vlans("results_and_state_are_those_of_debians_plugins (vlan)")
        {
            continue;
        }
        let run = |dirs: &[&str]| {
            let host = Host::new();
            let (netns, pod) = pod("c1");
            let result = host.call_with(dirs, "bridge", "ADD", &pod, &conf(&host, version, members, ipam));
            let result = result.expect(&what);
            let seen = (stable(&result), state(&host, &netns, dirs != [DEBIAN]));
            for _ in 0..2 {
                let conf = conf(&host, version, members, ipam);
                assert!(host.call_with(dirs, "bridge", "DEL", &pod, &conf).ok, "{what}");
            }
            assert_eq!(host.links(), ["cni0"], "{what}");
            seen
        };
        let ours = Host::new();
        let (have, want) = (run(&[&ours.bin().display().to_string()]), run(&[DEBIAN]));
        assert_eq!(have.0, want.0, "result of {what}");
        assert_eq!(have.1, want.1, "state after {what}");
    }
}

#[test]
fn check_finds_what_was_changed() {
    let members = r#""isDefaultGateway": true"#;
    let versions = ["0.4.0", "1.0.0", "1.1.0"].into_iter().cycle();
    for (version, (change, want)) in versions.zip([
        ("pod addr del 10.9.1.2/24 dev eth0", "Failed to match addr 10.9.1.2/24"),
        ("pod route del default", "Expected Route"),
        ("pod link set eth0 address 0a:00:00:00:00:01", "Mac doesn't match"),
        ("pod link del eth0", "not found"),
        ("host link set cni0 address 0a:00:00:00:00:01", "Mac doesn't match"),
        ("host link set VETH nomaster", "was not found"),
        ("host link del cni0", "CNI created bridge cni0 in host namespace was not found"),
    ]) {
        let host = Host::new();
        let (netns, pod) = pod("c1");
        let conf = conf(&host, version, members, V4);
        let result = host.call("bridge", "ADD", &pod, &conf).expect("ADD");
        let told = with(&conf, "prevResult", result.clone());
        host.call("bridge", "CHECK", &pod, &told).expect("CHECK");
        let (_, _, args) = (0, 0, change.split_once(' ').unwrap().1);
        let veth = host.links().into_iter().find(|name| name.starts_with("veth")).unwrap();
        let place = if change.starts_with("pod") { &netns } else { &host.netns };
        ip_in(place, &args.replace("VETH", &veth));
        let (_, text) = host.call("bridge", "CHECK", &pod, &told).error();
        assert!(text.contains(want), "{version} {change}: {text}");
    }
    let host = Host::new();
    let (_netns, pod) = pod("c1");
    let conf = conf(&host, "1.0.0", members, V4);
    host.call("bridge", "ADD", &pod, &conf).expect("ADD");
    let (_, text) = host.call("bridge", "CHECK", &pod, &conf).error();
    assert!(text.contains("Required prevResult missing"), "{text}");
}

/// Whether the kernel's bridges know VLANs, or a note that the test is skipped.
fn filters_vlans(test: &str) -> bool {
    let host = Host::new();
    let args = ["link", "add", "b0", "type", "bridge", "vlan_filtering", "1"];
    let there = run_in(&host.netns, std::process::Command::new("ip").args(args), "").status.success();
    if !there {
        println!("SKIP {test}: the kernel lacks CONFIG_BRIDGE_VLAN_FILTERING");
        let (_netns, pod) = pod("c1");
        let answer = host.call("bridge", "ADD", &pod, &conf(&host, "1.0.0", r#""vlan": 7"#, ""));
        assert!(answer.error().1.contains("CONFIG_BRIDGE_VLAN_FILTERING"), "{}", answer.text);
        assert_eq!(host.links(), [""; 0]);
    }
    there
}

#[test]
fn a_port_can_be_isolated_and_left_down() {
    let host = Host::new();
    let (netns, pod) = pod("c1");
    let members = r#""portIsolation": true, "disableContainerInterface": true"#;
    let conf = conf(&host, "1.1.0", members, "");
    let result = host.call("bridge", "ADD", &pod, &conf).expect("ADD");
    assert_eq!(result.get("ips"), None);
    assert!(host.ip("-d link show type veth").contains("isolated on"));
    assert!(ip_in(&netns, "link show eth0").contains("state DOWN"));
    // Its CHECK does not ask an address manager that is not there (B-23).
    host.call("bridge", "CHECK", &pod, &with(&conf, "prevResult", result)).expect("CHECK");
    assert!(host.call("bridge", "DEL", &pod, &conf).ok);
    assert_eq!(host.links(), ["cni0"]);
}

#[test]
fn a_port_has_its_vlans() {
    if !filters_vlans("a_port_has_its_vlans") {
        return;
    }
    let host = Host::new();
    let (_netns, pod) = pod("c1");
    let members = r#""vlanTrunk": [{"id": 7}, {"minID": 10, "maxID": 11}]"#;
    let conf = conf(&host, "1.1.0", members, "");
    host.call("bridge", "ADD", &pod, &conf).expect("ADD");
    let vlans = run_in(&host.netns, std::process::Command::new("bridge").args(["-j", "vlan", "show"]), "");
    let vlans = String::from_utf8_lossy(&vlans.stdout).replace([' ', '\n'], "");
    let want = r#"{"vlan":1,"flags":["PVID","EgressUntagged"]},{"vlan":7},{"vlan":10,"vlanEnd":11}"#;
    let alternative = r#"{"vlan":1,"flags":["PVID","EgressUntagged"]},{"vlan":7},{"vlan":10},{"vlan":11}"#;
    assert!(vlans.contains(want) || vlans.contains(alternative), "{vlans}");
}

#[test]
fn a_vlan_has_its_own_gateway() {
    if !filters_vlans("a_vlan_has_its_own_gateway") {
        return;
    }
    for (version, kept) in [("0.3.1", false), ("1.0.0", false), ("1.0.0", true), ("1.1.0", true)] {
        let host = Host::new();
        let (netns, pod) = pod("c1");
        let members = format!(r#""isDefaultGateway": true, "vlan": 100, "preserveDefaultVlan": {kept}"#);
        let conf = conf(&host, version, &members, V4);
        let result = host.call("bridge", "ADD", &pod, &conf).expect("ADD");
        let names: Vec<&str> = result
            .get("interfaces")
            .and_then(Json::as_array)
            .unwrap()
            .iter()
            .filter_map(|i| i.get("name").and_then(Json::as_str))
            .collect();
        assert_eq!((names.len(), names[0], names[3]), (4, "cni0", "cni0.100"));
        assert!(host.ip("addr show cni0.100").contains("10.9.1.1/24"));
        // The pod and the gateway hear each other in the VLAN.
        ip_in(&netns, "link set lo up");
        let heard = netns.run(|| {
            let to = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
            to.connect("10.9.1.1:9").unwrap();
            to.send(b"x").unwrap();
            // Refused means: the host's ICMP answer came back.
            to.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
            to.recv(&mut [0; 8]).unwrap_err().kind()
        });
        assert_eq!(heard.unwrap(), std::io::ErrorKind::ConnectionRefused, "{version} {kept}");
        assert!(host.call("bridge", "DEL", &pod, &conf).ok);
    }
}

/// Rows of layer 2 with VLANs (cni.md 4.3): what the port gets.
#[test]
fn the_vlans_of_a_port() {
    if !filters_vlans("the_vlans_of_a_port") {
        return;
    }
    let own = |id| format!("{id} PVID Egress Untagged");
    for (members, want) in [
        (r#""vlan": 100"#, vec![own(100)]),
        (r#""vlan": 100, "preserveDefaultVlan": true"#, vec!["1 Egress Untagged".to_owned(), own(100)]),
        (
            r#""vlanTrunk": [{"id": 101}, {"minID": 200, "maxID": 201}]"#,
            vec![own(1), "101".to_owned(), "200".to_owned(), "201".to_owned()],
        ),
        (r#""vlan": 100, "vlanTrunk": [{"id": 101}]"#, vec![own(100), "101".to_owned()]),
    ] {
        let host = Host::new();
        let (_netns, pod) = pod("c1");
        let conf = conf(&host, "1.0.0", members, "");
        host.call("bridge", "ADD", &pod, &conf).expect(members);
        let port = host.links().into_iter().find(|name| name.starts_with("veth")).unwrap();
        let output = run_in(
            &host.netns,
            std::process::Command::new("bridge").args(["vlan", "show", "dev", &port]),
            "",
        );
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines = text
            .lines()
            .skip(1)
            .map(|l| l.replace(&port, "").split_whitespace().collect::<Vec<_>>().join(" "));
        assert_eq!(lines.collect::<Vec<_>>(), want, "{members}: {text}");
        assert!(host.call("bridge", "DEL", &pod, &conf).ok);
    }
}

/// The gateway of a VLAN goes with GC once no port has the VLAN (B-24).
#[test]
fn an_unused_vlan_gateway_goes() {
    if !filters_vlans("an_unused_vlan_gateway_goes") {
        return;
    }
    let host = Host::new();
    let (_one, first) = pod("c1");
    let conf = conf(&host, "1.1.0", r#""isGateway": true, "vlan": 100"#, V4);
    host.call("bridge", "ADD", &first, &conf).expect("ADD");
    let gc = |valid: &[&str]| {
        let list = valid
            .iter()
            .map(|id| Json::object([("containerID", Json::from(*id)), ("ifname", "eth0".into())]));
        let conf = with(&conf, "cni.dev/valid-attachments", Json::array(list));
        host.call("bridge", "GC", &first, &conf).expect("GC");
        host.links().contains(&"cni0.100".to_owned())
    };
    assert!(gc(&["c1"]));
    assert!(!gc(&[]), "{:?}", host.links());
    assert_eq!(host.links(), ["cni0"]);
}

/// Frames with another source address do not leave the pod; the rules are upstream's, and either program
/// removes the other's.
#[test]
fn a_spoofed_frame_is_dropped() {
    let members = r#""macspoofchk": true"#;
    let host = Host::new();
    let bin = host.bin().display().to_string();
    let dirs = if debian("a_spoofed_frame_is_dropped (beside Debian's)") {
        vec![bin.as_str(), DEBIAN]
    } else {
        vec![bin.as_str()]
    };
    let mut listings = Vec::new();
    for first in &dirs {
        for second in &dirs {
            let host = Host::new();
            let (netns, pod) = pod("c1");
            let conf = conf(&host, "1.0.0", members, V4);
            let result = host.call_with(&[first], "bridge", "ADD", &pod, &conf).expect("ADD");
            let told = with(&conf, "prevResult", result);
            host.call("bridge", "CHECK", &pod, &told).expect("CHECK");
            let mac: Json = ip_in(&netns, "-j link show eth0").parse().unwrap();
            let mac = mac.as_array().unwrap()[0].get("address").and_then(Json::as_str).unwrap().to_owned();
            let port = host.links().into_iter().find(|name| name.starts_with("veth")).unwrap();
            let rules = host.rules();
            assert!(rules.contains(&format!("ether saddr {mac} return")), "{rules}");
            listings.push(rules.replace(&mac, "MAC").replace(&port, "PORT"));
            assert!(host.call_with(&[second], "bridge", "DEL", &pod, &told).ok);
            assert!(!host.rules().contains("cni-br-iface"), "{}", host.rules());
        }
    }
    assert!(listings.iter().all(|text| *text == listings[0]), "{listings:#?}");
    // On the wire.
    let (sender, one) = pod("c1");
    let (receiver, two) = pod("c2");
    let conf = conf(&host, "1.1.0", members, V4);
    let result = host.call("bridge", "ADD", &one, &conf).expect("ADD");
    host.call("bridge", "ADD", &two, &conf).expect("ADD");
    let socket = receiver.run(|| std::net::UdpSocket::bind("10.9.1.3:7000").unwrap()).unwrap();
    socket.set_read_timeout(Some(std::time::Duration::from_millis(300))).unwrap();
    let heard = || {
        let send = || {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
            let _ = socket.send_to(b"x", "10.9.1.3:7000");
        };
        (0..4).any(|_| {
            sender.run(send).unwrap();
            socket.recv(&mut [0; 8]).is_ok()
        })
    };
    assert!(heard());
    ip_in(&sender, "link set eth0 address 0a:00:00:00:00:66");
    assert!(!heard());
    let told = with(&conf, "prevResult", result);
    let flush = ["flush", "chain", "bridge", "nat", "cni-br-iface-c1-eth0"];
    host.run(std::process::Command::new("nft").args(flush), "");
    assert!(heard(), "it was the rules");
    ip_in(&sender, "link set eth0 address 0a:00:00:00:00:66");
    let changed = told.replace("\"mac\"", "\"was\"");
    let (_, text) = host.call("bridge", "CHECK", &one, &changed).error();
    assert!(text.contains("missing rules of macspoofchk for eth0"), "{text}");
    let gc = with(&conf, "cni.dev/valid-attachments", Json::array(Vec::<Json>::new()));
    host.call("bridge", "GC", &one, &gc).expect("GC");
    assert!(!host.rules().contains("cni-br-iface"), "{}", host.rules());
}

#[test]
fn a_gatewayless_default_route_gets_the_gateway() {
    let host = Host::new();
    let (netns, pod) = pod("c1");
    let ranges = r#""subnet": "10.9.1.0/24", "routes": [{"dst": "0.0.0.0/0"}]"#;
    let conf = conf(&host, "1.0.0", r#""isDefaultGateway": true"#, ranges);
    let result = host.call("bridge", "ADD", &pod, &conf).expect("ADD");
    assert_eq!(
        result.get("routes").map(Json::to_compact).unwrap(),
        r#"[{"dst":"0.0.0.0/0","gw":"10.9.1.1"}]"#
    );
    assert_eq!(ip_in(&netns, "route show default").trim(), "default via 10.9.1.1 dev eth0");
}

#[test]
fn a_bridge_with_another_subnets_address() {
    let second = r#""subnet": "10.9.2.0/24""#;
    let members = r#""isGateway": true"#;
    // Ours and idle: replaced. Ours with a pod, or somebody else's: refused, and nothing is left.
    for (case, replaced) in [("idle", true), ("busy", false), ("foreign", false), ("forced", true)] {
        let host = Host::new();
        let (_one, first) = pod("c1");
        if matches!(case, "idle" | "busy") {
            host.call("bridge", "ADD", &first, &conf(&host, "1.0.0", members, V4)).expect("ADD");
        } else {
            host.ip("link add cni0 type bridge");
            host.ip("addr add 10.9.1.1/24 dev cni0");
        }
        if case == "idle" {
            assert!(host.call("bridge", "DEL", &first, &conf(&host, "1.0.0", members, V4)).ok);
        }
        let forced = r#""isGateway": true, "forceAddress": true"#;
        let members = if case == "forced" { forced } else { members };
        let (two, pod) = pod("c2");
        let links = host.links();
        let answer = host.call("bridge", "ADD", &pod, &conf(&host, "1.0.0", members, second));
        assert_eq!(answer.ok, replaced, "{case}: {}", answer.text);
        let addresses = host.ip("-4 addr show cni0");
        assert_eq!(addresses.contains("10.9.2.1/24"), replaced, "{case}: {addresses}");
        assert_eq!(addresses.contains("10.9.1.1/24"), !replaced, "{case}: {addresses}");
        if !replaced {
            let (_, text) = answer.error();
            let want =
                "failed to set bridge addr: \"cni0\" already has an IP address different from 10.9.2.1/24; ";
            assert!(text.starts_with(want) && text.contains("ip link delete cni0"), "{text}");
            assert_eq!(host.links(), links, "{case}");
            assert!(!host.files("networks").contains(&"net/10.9.2.2".to_owned()));
            assert!(!ip_in(&two, "link show").contains("eth0"));
        }
    }
}

/// In IPv6 only overlapping subnets are in each other's way (cni.md 2.1).
#[test]
fn ipv6_addresses_of_a_bridge_stand_beside_each_other() {
    for (held, force, left) in [
        ("", false, Some(vec!["2001:db8:9::1/64"])),
        ("2001:db8:9::1/64", false, Some(vec!["2001:db8:9::1/64"])),
        ("2001:db8:77::1/64", false, Some(vec!["2001:db8:77::1/64", "2001:db8:9::1/64"])),
        ("2001:db8:9::7/64", false, None),
        ("2001:db8:9:8::1/48", false, None),
        ("2001:db8:9::7/64", true, Some(vec!["2001:db8:9::1/64"])),
    ] {
        let host = Host::new();
        host.ip("link add cni0 type bridge");
        if !held.is_empty() {
            host.ip(&format!("addr add {held} dev cni0 nodad"));
        }
        let before = host.ip("-o link show cni0");
        let (_netns, pod) = pod("c1");
        let conf = conf(&host, "1.0.0", &format!(r#""isGateway": true, "forceAddress": {force}"#), V6);
        let answer = host.call("bridge", "ADD", &pod, &conf);
        let text = host.ip("-6 -o addr show cni0 scope global");
        let mut have: Vec<&str> = text.lines().filter_map(|line| line.split_whitespace().nth(3)).collect();
        have.sort_unstable();
        match left {
            Some(left) => {
                assert!(answer.ok, "{held}: {}", answer.text);
                assert_eq!(have, left, "{held} {force}");
            }
            None => {
                let (_, text) = answer.error();
                let want = "failed to set bridge addr: \"cni0\" already has an IP address different from 2001:db8:9::1/64";
                assert!(text.starts_with(want), "{held}: {text}");
                assert_eq!(have, [held]);
                assert_eq!(host.links(), ["cni0"]);
            }
        }
        // The bridge that was there is used, not another one in its place.
        let index = |text: &str| text.split(':').next().unwrap().to_owned();
        assert_eq!(index(&host.ip("-o link show cni0")), index(&before));
    }
}

#[test]
fn the_bridges_mac_and_mtu_stay() {
    let host = Host::new();
    let members = r#""isGateway": true, "mtu": 1400"#;
    let bridge = |host: &Host| pick(&host.ip("-j link show cni0"), &["address", "mtu"]);
    let (_one, first) = pod("c1");
    host.call("bridge", "ADD", &first, &conf(&host, "1.0.0", members, V4)).expect("ADD");
    let before = bridge(&host);
    let (_two, second) = pod("c2");
    host.call("bridge", "ADD", &second, &conf(&host, "1.0.0", members, V4)).expect("ADD");
    assert!(host.call("bridge", "DEL", &first, &conf(&host, "1.0.0", members, V4)).ok);
    assert!(host.call("bridge", "DEL", &second, &conf(&host, "1.0.0", members, V4)).ok);
    assert_eq!(bridge(&host), before);
    assert!(before.contains("mtu=1400"), "{before}");
}

#[test]
fn masquerading_is_made_and_removed() {
    let host = Host::new();
    let (_netns, pod) = pod("c1");
    let conf = conf(&host, "1.1.0", r#""isGateway": true, "ipMasq": true"#, DUAL);
    let result = host.call("bridge", "ADD", &pod, &conf).expect("ADD");
    let rules = host.rules();
    for want in [
        "table inet cni_plugins_masquerade",
        "comment \"Masquerading for plugins from github.com/containernetworking/plugins\"",
        "ip saddr 10.9.1.2 ip daddr != 10.9.1.0/24 masquerade comment",
        "ip6 saddr 2001:db8:9::2 ip6 daddr != 2001:db8:9::/64 masquerade comment",
        "net: net, if: eth0, id: c1\"",
        "type nat hook postrouting priority srcnat; policy accept;",
        "ip daddr 224.0.0.0/4 return",
        "ip6 daddr ff00::/8 return",
        "goto masq_checks",
    ] {
        assert!(rules.contains(want), "{want:?} in {rules}");
    }
    host.call("bridge", "CHECK", &pod, &with(&conf, "prevResult", result)).expect("CHECK");
    let gone = Pod { path: String::new(), ..pod.clone() };
    assert!(host.call("bridge", "DEL", &gone, &conf).ok);
    assert!(!host.rules().contains("10.9.1.2"), "{}", host.rules());
    let (code, text) = host.call("bridge", "ADD", &pod, &with(&conf, "ipMasqBackend", "x")).error();
    assert_eq!(code, 7);
    assert!(text.contains("unknown ipmasq backend \"x\""), "{text}");
}

/// B-41: through flannel as well, whose delegate is asked.
#[test]
fn status_tells_that_pods_are_cut_off() {
    let host = Host::new();
    let (_netns, pod) = pod("c1");
    let chain = crate::chain::conflist(&host, "1.1.0");
    let ask = || host.call("flannel", "STATUS", &pod, &chain[0].1);
    let forward = |value: &str| kernel::sysctl::write_in(&host.netns, "net/ipv4/ip_forward", value).unwrap();
    forward("0");
    assert!(ask().ok, "without pods nobody is cut off; ADD switches it on");
    host.call("flannel", "ADD", &pod, &chain[0].1).expect("ADD");
    assert!(ask().ok);
    forward("0");
    let (code, text) = ask().error();
    assert_eq!(code, 51);
    assert!(
        text.contains("net/ipv4/ip_forward is 0") && text.contains("sysctl -w net.ipv4.ip_forward=1"),
        "{text}"
    );
    forward("1");
    assert!(ask().ok);
}

/// Packets that are not the host's own wait for no address of the bridge: the kernel asks for no neighbour while the
/// link-local one is tentative.
#[test]
fn what_comes_from_outside_reaches_the_first_pod_at_once() {
    let host = Host::new();
    let outside = Netns::create().unwrap();
    host.ip(&format!("link add wire type veth peer name eth0 netns {}", outside.path().display()));
    for (netns, device, last) in [(&host.netns, "wire", 1), (&outside, "eth0", 2)] {
        ip_in(netns, &format!("addr add 2001:db8:2::{last}/64 dev {device} nodad"));
        ip_in(netns, &format!("link set {device} up"));
    }
    ip_in(&outside, "-6 route add default via 2001:db8:2::1");
    // Ends of the wire have such an address, too.
    for netns in [&host.netns, &outside] {
        until("the wire's ends to be sure of their addresses", || {
            !ip_in(netns, "-6 -br addr show scope link").is_empty()
                && ip_in(netns, "-6 -br addr show tentative").is_empty()
        });
    }
    let (_netns, pod) = pod("c1");
    host.call("bridge", "ADD", &pod, &conf(&host, "1.0.0", r#""isDefaultGateway": true"#, DUAL_ALONE))
        .expect("ADD");
    // It has the address a moment after its first port is up, and looks for nobody else who has it: the kernel's worker
    // takes the mark "tentative" away as soon as it runs.
    assert_eq!(kernel::sysctl::read_in(&host.netns, "net/ipv6/conf/cni0/accept_dad").unwrap(), "0");
    until("the bridge to have an address and to be sure of it", || {
        let addresses = ip_in(&host.netns, "-6 -o addr show dev cni0 scope link");
        !addresses.is_empty() && !addresses.contains("tentative")
    });
    assert!(ping(&outside, "2001:db8:9::2"), "{}", ip_in(&host.netns, "-6 neigh"));
}

fn ping(netns: &Netns, words: &str) -> bool {
    let mut command = std::process::Command::new("ping");
    command.args(["-c", "2", "-i", "0.2", "-W", "1"]).args(words.split(' '));
    run_in(netns, &mut command, "").status.success()
}

/// A pod that takes another address sends from it, and answers ARP and neighbour solicitations in its owner's name:
/// with the check nothing of that passes, and everything of its own does.
#[test]
fn a_pod_sends_as_itself() {
    for (checked, members) in
        [(false, r#""isGateway": true"#), (true, r#""isGateway": true, "ipspoofchk": true"#)]
    {
        let host = Host::new();
        let (thief, one) = pod("c1");
        let (victim, two) = pod("c2");
        let conf = conf(&host, "1.1.0", members, DUAL);
        let result = host.call("bridge", "ADD", &one, &conf).expect("ADD");
        host.call("bridge", "ADD", &two, &conf).expect("ADD");
        let told = with(&conf, "prevResult", result);
        host.call("bridge", "CHECK", &one, &told).expect("CHECK");
        let of_victim = ["10.9.1.3", "2001:db8:9::3"];
        for address in of_victim {
            assert!(ping(&thief, address), "{checked}: {address} from its own address");
        }
        for (from, to) in ["10.9.1.66", "2001:db8:9::66"].iter().zip(of_victim) {
            let nodad = if from.contains(':') { " nodad" } else { "" };
            let length = if from.contains(':') { 64 } else { 24 };
            ip_in(&thief, &format!("addr add {from}/{length} dev eth0{nodad}"));
            assert_eq!(ping(&thief, &format!("-I {from} {to}")), !checked, "{to} from {from}");
        }
        ip_in(&victim, "link set eth0 down");
        ip_in(&host.netns, "neigh flush dev cni0");
        for address in of_victim {
            let nodad = if address.contains(':') { " nodad" } else { "" };
            let length = if address.contains(':') { 128 } else { 32 };
            ip_in(&thief, &format!("addr add {address}/{length} dev eth0{nodad}"));
            assert_eq!(ping(&host.netns, address), !checked, "{address} is answered by who took it");
        }
        for address in ["10.9.1.2", "2001:db8:9::2"] {
            assert!(ping(&host.netns, address), "{checked}: {address} is itself");
        }
        // With a hardware address of its own choice it sends nothing any more.
        ip_in(&thief, "link set eth0 address 0a:00:00:00:00:66");
        assert_eq!(ping(&host.netns, "10.9.1.2"), !checked);

        let rules = host.rules();
        assert_eq!(rules.matches("ipspoofchk-c").count() > 10, checked, "{rules}");
        assert!(host.call("bridge", "DEL", &two, &conf).ok);
        assert!(!host.rules().contains("pod-c2-eth0"), "{}", host.rules());
        let gc = with(&conf, "cni.dev/valid-attachments", Json::array(Vec::<Json>::new()));
        host.call("bridge", "GC", &one, &gc).expect("GC");
        assert!(!host.rules().contains("pod-c1-eth0"), "{}", host.rules());
    }
}

/// What passes is listed, and CHECK misses what somebody removed.
#[test]
fn the_check_of_addresses_is_compared() {
    let host = Host::new();
    let (_netns, pod) = pod("c1");
    let members = r#""ipspoofchk": true"#;
    let conf = conf(&host, "1.1.0", members, V4);
    let result = host.call("bridge", "ADD", &pod, &conf).expect("ADD");
    let told = with(&conf, "prevResult", result);
    host.call("bridge", "CHECK", &pod, &told).expect("CHECK");
    let listing = host.rules();
    for line in ["ip saddr 10.9.1.2", "ip saddr 0.0.0.0", "arp saddr ip 10.9.1.2", "arp saddr ip 0.0.0.0"] {
        assert!(listing.contains(line), "{line} is not in {listing}");
    }
    assert!(!listing.contains("ip6"), "without IPv6 none passes: {listing}");
    run_in(
        &host.netns,
        std::process::Command::new("nft").args(["flush", "chain", "bridge", "loden-pods", "pod-c1-eth0"]),
        "",
    );
    let (_, text) = host.call("bridge", "CHECK", &pod, &told).error();
    assert!(text.contains("missing rules of ipspoofchk for eth0"), "{text}");
    assert!(host.call("bridge", "DEL", &pod, &told).ok);
    assert!(!host.rules().contains("pod-c1"), "{}", host.rules());
}

/// What strace sees of some system calls of a call.
fn traced(host: &Host, verb: &str, pod: &Pod, conf: &str, calls: &str) -> String {
    let plain = host.prepare(&[&host.bin().display().to_string()], "bridge", verb, pod);
    let log = host.path("strace");
    let mut command = std::process::Command::new("strace");
    command.args(["-f", "-e", &format!("trace={calls}"), "-o", &log]).arg(plain.get_program());
    command.env_clear().envs(plain.get_envs().filter_map(|(k, v)| Some((k, v?))));
    let output = host.run(&mut command, conf);
    assert!(output.status.success(), "{output:?}");
    std::fs::read_to_string(&log).unwrap()
}

/// Bytes the kernel sent to a call: what was listed.
fn received(host: &Host, verb: &str, pod: &Pod, conf: &str) -> usize {
    let text = traced(host, verb, pod, conf, "recvfrom");
    let length = |line: &str| line.rsplit_once("= ")?.1.parse::<usize>().ok();
    text.lines().filter_map(length).sum()
}

fn strace(test: &str) -> bool {
    let there = std::path::Path::new("/usr/bin/strace").exists();
    if !there {
        println!("SKIP {test}: strace is not installed");
    }
    there
}

/// Decisions 0183 and 0187: the rules of all other pods are listed neither by who can have none nor by who knows where
/// its own are.
#[test]
fn masquerading_reads_no_other_pods_rules() {
    if !strace("masquerading_reads_no_other_pods_rules") {
        return;
    }
    let host = Host::new();
    let masquerades = conf(&host, "1.0.0", r#""isGateway": true, "ipMasq": true"#, V4);
    let pods: Vec<(Netns, Pod)> = (0..3).map(|n| pod(&format!("c{n}"))).collect();
    host.call("bridge", "ADD", &pods[0].1, &masquerades).expect("ADD");
    let few = ["ADD", "DEL"].map(|verb| received(&host, verb, &pods[1].1, &masquerades));
    let mut many = String::new();
    for n in 0..500 {
        many.push_str(&format!(
            "add rule inet cni_plugins_masquerade masq_checks ip saddr 10.8.{}.{} masquerade comment \"0000-{n}, net: x\"\n",
            n / 250,
            n % 250 + 1
        ));
    }
    let output = host.run(std::process::Command::new("nft").args(["-f", "-"]), &many);
    assert!(output.status.success(), "{output:?}");
    // Each of the five hundred has more than a hundred bytes in a listing.
    let add = received(&host, "ADD", &pods[2].1, &masquerades);
    assert!(add < few[0] + 10_000, "{} bytes beside one pod's rules, {add} beside 500 more", few[0]);
    let rules = host.rules();
    for n in [2, 4] {
        assert_eq!(rules.matches(&format!("ip saddr 10.9.1.{n} ")).count(), 1, "{rules}");
    }
    assert_eq!(rules.matches("goto masq_checks").count(), 1, "{rules}");
    let del = received(&host, "DEL", &pods[2].1, &masquerades);
    assert!(del < few[1] + 10_000, "{} bytes beside one pod's rules, {del} beside 500 more", few[1]);
    let rules = host.rules();
    assert!(rules.contains("ip saddr 10.9.1.2 ") && !rules.contains("ip saddr 10.9.1.4 "), "{rules}");
    assert_eq!(rules.matches("ip saddr 10.8.").count(), 500);
    // Who has no rules asks for none.
    let plain = conf(&host, "1.0.0", r#""isGateway": true"#, V4);
    host.call("bridge", "ADD", &pods[2].1, &plain).expect("ADD");
    let sockets = traced(&host, "DEL", &pods[2].1, &plain, "socket");
    assert!(sockets.contains("NETLINK_ROUTE") && !sockets.contains("NETLINK_NETFILTER"), "{sockets}");
}

/// Numbers of rules hold until the rules are loaded again: then others have them. Records of earlier versions have none.
#[test]
fn rules_are_found_though_their_numbers_changed() {
    for change in ["reloaded", "turned round", "an old record", "gone"] {
        let host = Host::new();
        let conf = conf(&host, "1.0.0", r#""isGateway": true, "ipMasq": true"#, DUAL);
        let pods: Vec<(Netns, Pod)> = (0..3).map(|n| pod(&format!("c{n}"))).collect();
        for (_, pod) in &pods {
            host.call("bridge", "ADD", pod, &conf).expect("ADD");
        }
        let nft = |text: &str| {
            let output = host.run(std::process::Command::new("nft").args(["-f", "-"]), text);
            assert!(output.status.success(), "{output:?}");
        };
        let rules = host.rules();
        let of_pods = |line: &&str| line.contains(" masquerade comment ");
        match change {
            "reloaded" => nft(&format!("flush ruleset\n{rules}")),
            "turned round" => {
                let turned: Vec<&str> = rules.lines().filter(of_pods).rev().collect();
                let mut turned = turned.into_iter();
                let line = |l: &str| format!("{l}\n");
                let text: String = rules
                    .lines()
                    .map(|l| if of_pods(&l) { line(turned.next().unwrap()) } else { line(l) })
                    .collect();
                nft(&format!("flush ruleset\n{text}"));
            }
            "an old record" => {
                for file in host.files("state/attachments") {
                    let file = host.dir.join("state/attachments").join(file);
                    let mut record: Json = std::fs::read_to_string(&file).unwrap().parse().unwrap();
                    assert_eq!(record.get("masquerade").and_then(Json::as_array).map(<[_]>::len), Some(2));
                    record.remove("masquerade");
                    std::fs::write(&file, record.to_compact()).unwrap();
                }
            }
            _ => nft("flush ruleset"),
        }
        for (n, (_, pod)) in pods.iter().enumerate() {
            assert!(host.call("bridge", "DEL", pod, &conf).ok);
            let rules = host.rules();
            let left = rules.lines().filter(of_pods).count();
            assert_eq!(left, if change == "gone" { 0 } else { 2 * (2 - n) }, "{change}: {rules}");
            assert!(!rules.contains(&format!("id: c{n}\"")), "{change}: {rules}");
        }
    }
}

/// Decision 0183: an attachment whose namespace ended without DEL has its rules replaced when it comes again; rules
/// nobody has a record of stay beside the new ones until GC.
#[test]
fn an_add_that_comes_again_masquerades_once() {
    for (record, rules_beside) in [(true, 0), (false, 1)] {
        let host = Host::new();
        let conf = conf(&host, "1.1.0", r#""isGateway": true, "ipMasq": true"#, V4);
        let (netns, first) = pod("c1");
        host.call("bridge", "ADD", &first, &conf).expect("ADD");
        drop(netns);
        // The pair goes with the namespace, a moment later.
        let begun = std::time::Instant::now();
        while host.links().iter().any(|name| name.starts_with("veth")) {
            assert!(begun.elapsed().as_secs() < 60, "{:?}", host.links());
            std::thread::yield_now();
        }
        if !record {
            std::fs::remove_dir_all(host.path("state/attachments")).unwrap();
        }
        // The manager would refuse the same container twice.
        assert!(host.call("host-local", "DEL", &first, &conf).ok);
        let (_netns, again) = pod("c1");
        host.call("bridge", "ADD", &again, &conf).expect("ADD");
        let rules = host.rules();
        assert_eq!(rules.matches("ip saddr 10.9.1.2 ").count(), rules_beside, "{record}: {rules}");
        assert_eq!(rules.matches("ip saddr 10.9.1.3 ").count(), 1, "{record}: {rules}");
        assert!(host.call("bridge", "DEL", &again, &conf).ok);
        let rules = host.rules();
        assert_eq!(rules.matches("ip saddr 10.9.1.").count(), rules_beside, "{record}: {rules}");
        let gc = with(&conf, "cni.dev/valid-attachments", Json::array(Vec::<Json>::new()));
        host.call("bridge", "GC", &again, &gc).expect("GC");
        let rules = host.rules();
        assert!(!rules.contains("10.9.1."), "{record}: {rules}");
    }
}
