//! What the kernel holds after none, one and three leases, as foreign witnesses tell it, beside files that say
//! what flannel specifies and where and why ours differs (`tests/data/golden`; flannel.md 6, 7.4). tencent-vpc has
//! nothing in the kernel: `tencent` compares the routes of the cloud.
//!
//! Each section of a file says what its leases add and take away. With `LODEN_GOLDEN=write` the sections are
//! written anew.

use std::path::Path;

use crate::faults::{difference, rules};
use crate::machine::Machine;
use crate::world::{Host, World, has, until};
use crate::{ipsec, table, wireguard};

/// Keys and values as flannel's nodes write them. The second is on another network than the host.
const PEERS: [[&str; 4]; 3] = [
    ["10.244.2.0-24", "fd00:10:0:2::-64", "192.0.2.12", "2001:db8::12"],
    ["10.244.3.0-24", "fd00:10:0:3::-64", "198.51.100.3", "2001:db8:1::3"],
    ["10.244.4.0-24", "fd00:10:0:4::-64", "192.0.2.14", "2001:db8::14"],
];

const V4: &str = r#""Network":"10.244.0.0/16""#;
const V6: &str = r#""EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:10::/48""#;
const DUAL: &str = r#""Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10::/48""#;
/// The subnets the host had before, and so gets again.
const SUBNETS: [&str; 2] = ["FLANNEL_SUBNET=10.244.1.1/24\n", "FLANNEL_IPV6_SUBNET=fd00:10:0:1::1/64\n"];

macro_rules! golden {
    ($($test:ident: $network:ident, $backend:expr;)*) => {$(
        #[test]
        fn $test() {
            let written = include_str!(concat!("../data/golden/", stringify!($test), ".txt"));
            is_as_written(stringify!($test), written, $network, $backend);
        }
    )*};
}

golden! {
    vxlan_ipv4: V4, r#""Type":"vxlan""#;
    vxlan_ipv6: V6, r#""Type":"vxlan""#;
    vxlan_dual: DUAL, r#""Type":"vxlan""#;
    vxlan_direct_dual: DUAL, r#""Type":"vxlan","DirectRouting":true"#;
    vxlan_options_ipv4: V4, r#""Type":"vxlan","VNI":7,"Port":4789,"MTU":1400,"Learning":true,"GBP":true,"CheckSources":true"#;
    host_gw_ipv4: V4, r#""Type":"host-gw""#;
    host_gw_dual: DUAL, r#""Type":"host-gw""#;
    ipip_ipv4: V4, r#""Type":"ipip""#;
    ipip_direct_ipv4: V4, r#""Type":"ipip","DirectRouting":true"#;
    alloc_ipv4: V4, r#""Type":"alloc""#;
    udp_ipv4: V4, r#""Type":"udp""#;
    wireguard_dual: DUAL, r#""Type":"wireguard","PSK":"xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=""#;
    wireguard_over_ipv4_dual: DUAL, r#""Type":"wireguard","Mode":"ipv4","PersistentKeepaliveInterval":25"#;
    ipsec_ipv4: V4, table::IPSEC;
    extension_dual: DUAL, table::EXTENSION;
}

/// Keys of the peers; of no pair that anybody has.
const KEYS: [&str; 3] = [
    "AgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    "AwAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    "BAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
];

fn is_as_written(name: &str, written: &str, network: &str, backend: &str) {
    let there = match backend.split('"').nth(3) {
        Some("ipip") => has("ipip local 192.0.2.11", name),
        Some("wireguard") => wireguard::available(name),
        Some("udp") => crate::udp::has_tun(name),
        Some("ipsec") => ipsec::has_charon(name) && ipsec::has_policies(name),
        _ => true,
    };
    if !there {
        return;
    }
    let config = format!(r#"{{{network},"EnableNFTables":true,"Backend":{{{backend}}}}}"#);
    let world = World::with_config(1, &config);
    let host = &world.hosts[0];
    let stacks = [network != V6, network != V4];
    let before = SUBNETS.iter().zip(stacks).filter(|(_, wanted)| *wanted).map(|(line, _)| *line);
    std::fs::write(host.subnet_file(), before.collect::<String>()).unwrap();
    let machine = if backend == table::IPSEC {
        let Some(machine) = Machine::on(host, name) else { return };
        Some(machine)
    } else {
        None
    };
    let agent = table::agent_of(host, machine.as_ref(), &["--ip-masq"]);
    agent.ready();
    let picture = |host: &Host| {
        let mut lines = picture(host);
        lines.extend(beside(host, machine.as_ref()));
        lines
    };
    let (reasons, sections) = written.split_once("\n## ").unwrap_or_default();
    let write = std::env::var("LODEN_GOLDEN").is_ok_and(|word| word == "write");
    let mut text = format!("{reasons}\n");
    let mut wanted: Vec<String> = Vec::new();
    for count in [0, 1, 3] {
        put(&world, &PEERS[..count], backend, stacks);
        if write {
            let (mut last, mut times) = (Vec::new(), 0);
            let state = until("a state that stays", || {
                let now = picture(host);
                times = if now == last { times + 1 } else { 0 };
                last = now.clone();
                if times > 20 { Ok(now) } else { Err("it changes".to_owned()) }
            });
            text.push_str(&format!("\n## {count} leases\n{}\n", difference(&wanted, &state)));
            wanted = state;
            continue;
        }
        let title = format!("{count} leases\n");
        let section = sections.split("\n## ").find_map(|section| section.strip_prefix(&title));
        for line in section.unwrap_or_else(|| panic!("{name}: no section for {count} leases")).lines() {
            match line.split_once(' ') {
                Some(("-", line)) => wanted.retain(|have| have != line),
                Some(("+", line)) => wanted.push(line.to_owned()),
                _ => {}
            }
        }
        let mut wanted = wanted.clone();
        wanted.sort();
        until(&format!("{name}: the state after {count} leases"), || {
            let mut now = picture(host);
            now.sort();
            if now == wanted { Ok(()) } else { Err(difference(&wanted, &now)) }
        });
    }
    if write {
        let file = format!("tests/data/golden/{name}.txt");
        std::fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join(file), text).unwrap();
    }
}

fn put(world: &World, peers: &[[&str; 4]], backend: &str, [v4, v6]: [bool; 2]) {
    let kind = backend.split('"').nth(3).unwrap();
    let vni = if backend.contains(r#""VNI":7"#) { 7 } else { 1 };
    let leases = rusqlite::Connection::open(world.dir.path().join("leases.db")).unwrap();
    for (n, [net, net6, public, public6]) in (2..).zip(peers) {
        let key = match (v4, v6) {
            (true, true) => format!("{net}&{net6}"),
            (true, false) => (*net).to_owned(),
            _ => format!("0.0.0.0-31&{net6}"),
        };
        let data = |wanted: bool, name: &str, family: u8| match (wanted, kind) {
            (true, "vxlan") => format!(r#","{name}":{{"VNI":{vni},"VtepMAC":"8e:00:00:00:0{family}:0{n}"}}"#),
            (true, "wireguard") => {
                let port = if family == 4 { 51820 } else { 51821 };
                format!(r#","{name}":{{"PublicKey":"{}","Port":{port}}}"#, KEYS[n - 2])
            }
            (true, "extension") if family == 4 => format!(r#","{name}":"of {n}""#),
            _ => String::new(),
        };
        let address =
            |wanted: bool, address: &str| if wanted { format!("\"{address}\"") } else { "null".to_owned() };
        let kind = if ["alloc", "udp"].contains(&kind) {
            String::new()
        } else {
            format!(r#","BackendType":"{kind}""#)
        };
        let value = format!(
            r#"{{"PublicIP":{},"PublicIPv6":{}{kind}{}{}}}"#,
            if v4 { format!("\"{public}\"") } else { "\"0.0.0.0\"".to_owned() },
            address(v6, public6),
            data(v4, "BackendData", 4),
            data(v6, "BackendV6Data", 6),
        );
        // The year 2100.
        let insert = "INSERT OR REPLACE INTO lease (key, value, expires) VALUES (?1, ?2, 4102444800)";
        leases.execute(insert, [&key, &value]).unwrap();
    }
}

/// The host's state in normal form: without numbers of devices, without what the tools add of their own, the
/// device's own hardware address by name.
fn picture(host: &Host) -> Vec<String> {
    let mut lines = Vec::new();
    let links = host.json("ip -j link");
    let names = links.as_array().unwrap().iter().filter_map(|link| link["ifname"].as_str());
    for device in names.filter(|name| name.starts_with("flannel")) {
        let shown = host.try_sh(&format!("ip -d link show {device}")).unwrap_or_default();
        let part = |text: &str, from: &str, to: &str| {
            let start = text.find(from)?;
            let end = text[start..].find(to)?;
            Some(text[start..start + end].to_owned())
        };
        let flags = part(&shown, device, " qdisc").unwrap_or_default();
        let details = shown
            .lines()
            .nth(2)
            .and_then(|line| part(line.trim_start(), "", " addrgenmode"))
            .unwrap_or_default();
        lines.push(if device.starts_with("flannel-wg") {
            // Flags and details are of what carries it.
            let mtu = &host.json(&format!("ip -j link show {device}"))[0]["mtu"];
            format!("link: {device}, up: {}, mtu {mtu}", flags.contains("UP"))
        } else {
            format!("link: {flags} {details}")
        });
        lines.extend(of(host, "address", &format!("ip -o addr show dev {device} scope global")));
        lines.extend(of(host, "neigh", &format!("ip -4 neigh show dev {device} nud permanent")));
        lines.extend(of(host, "neigh", &format!("ip -6 neigh show dev {device} nud permanent")));
        lines.extend(of(host, "fdb", &format!("bridge fdb show dev {device}")));
        if details.starts_with("vxlan") {
            let accept_ra = format!("net.ipv6.conf.{}.accept_ra", device.replace('.', "/"));
            lines.extend(of(host, "sysctl", &format!("sysctl {accept_ra}")));
        }
        // That of a tunnel of layer three is its local address.
        let own = host.json(&format!("ip -j link show {device}"))[0]["address"].clone();
        if let Some(mac) = own.as_str().filter(|own| own.contains(':')) {
            lines.iter_mut().for_each(|line| *line = line.replace(mac, "OWN-MAC"));
        }
    }
    lines.extend(of(host, "route", "ip -4 route show proto 76"));
    lines.extend(of(host, "route", "ip -6 route show proto 76"));
    lines.extend(of(host, "nexthop", "ip nexthop show"));
    // nft breaks long lists, and names the owner.
    let listed = host.sh("nft -s list ruleset").replace(",\n\t\t\t     ", ", ");
    lines.extend(rules(&listed).into_iter().map(|line| format!("nft: {line}")));
    let env = std::fs::read_to_string(host.subnet_file()).unwrap_or_default();
    lines.extend(env.lines().map(|line| format!("subnet.env: {line}")));
    lines
}

/// What `ip` does not show of a device, and what there is without one.
fn beside(host: &Host, machine: Option<&Machine>) -> Vec<String> {
    let mut lines = Vec::new();
    let links = host.json("ip -j link");
    let names = links.as_array().unwrap().iter().filter_map(|link| link["ifname"].as_str());
    for device in names.filter(|name| name.starts_with("flannel-wg")) {
        let dump = wireguard::wg_sh(host, &format!("show {device} dump"));
        for line in dump.lines() {
            lines.push(match line.split('\t').collect::<Vec<_>>().as_slice() {
                [_, _, port, mark] => format!("wg: {device} port {port} mark {mark}"),
                [peer, psk, endpoint, allowed, _, _, _, alive] => {
                    format!("wg: {device} peer {peer} psk {psk} endpoint {endpoint} allowed {allowed} alive {alive}")
                }
                _ => format!("wg: {line}"),
            });
        }
    }
    for socket in host.tunnels() {
        let shown = host.loden(&["tunnel", "show", "flannel0", "--socket", &socket]).output().unwrap();
        let shown = String::from_utf8(shown.stdout).unwrap();
        let wanted = ["listen ", "address ", "network ", "peer "];
        let told = shown.lines().filter(|line| wanted.iter().any(|word| line.starts_with(word)));
        lines.extend(told.map(|line| format!("tunnel: {line}")));
    }
    lines.extend(of(host, "route", "ip -4 route show proto static"));
    lines.extend(of(host, "route", "ip -6 route show proto static"));
    if let Some(machine) = machine {
        let policies = host.try_sh("ip -o xfrm policy").unwrap_or_default().replace('\\', "");
        let words = policies.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        // Those of sockets are charon's own.
        let ours = words.filter(|line| !line.contains(" socket "));
        lines.extend(ours.map(|line| format!("policy: {line}")));
        let listed = machine.output("swanctl", &["--list-conns"]).stdout;
        for line in String::from_utf8(listed).unwrap().lines().filter(|line| !line.is_empty()) {
            let words = line.split_whitespace().collect::<Vec<_>>().join(" ");
            match lines.last_mut().filter(|_| line.starts_with(' ')) {
                Some(last) => last.push_str(&format!(" | {words}")),
                None => lines.push(format!("charon: {words}")),
            }
        }
    }
    lines
}

fn of(host: &Host, what: &str, command: &str) -> Vec<String> {
    let text = host.try_sh(command).unwrap_or_default();
    // `ip -o` begins with number and name of the device.
    let line = |line: &str| {
        let rest = line
            .split_once(": ")
            .filter(|(number, _)| number.parse::<u32>().is_ok())
            .map_or(line, |(_, rest)| rest);
        format!(
            "{what}: {}",
            rest.split('\\').next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
        )
    };
    let mut lines: Vec<String> = text.lines().map(line).collect();
    lines.sort();
    lines
}
