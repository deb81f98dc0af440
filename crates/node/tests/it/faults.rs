//! Whatever is deleted or altered comes back; nothing foreign is touched; leaving tears nothing down.

use std::time::{Duration, Instant};

use crate::world::{Agent, Host, World, sh, until};

/// Above the last subnet are routes of others, and what a test adds.
const VXLAN: &str = r#"{"Network":"10.244.0.0/16","SubnetMax":"10.244.199.0","EnableIPv6":true,"IPv6Network":"fd00:10::/48","Backend":{"Type":"vxlan"}}"#;

/// Everything ours that a foreign witness sees, as sorted lines without counters and indexes.
pub fn picture(host: &Host) -> Vec<String> {
    let mut lines = data_path(host);
    lines.extend(rules(&try_sh(host, "nft -s list ruleset")));
    lines.sort();
    lines
}

/// Lines of a rule set. Who owns a table depends on who runs, not on what it holds.
pub fn rules(listing: &str) -> Vec<String> {
    let lines = listing.lines().map(|l| l.split('#').next().unwrap_or_default().trim().to_owned());
    lines.filter(|l| !l.starts_with("flags") && !l.is_empty()).collect()
}

/// Devices, what is on them, and routes.
pub fn data_path(host: &Host) -> Vec<String> {
    let mut lines = Vec::new();
    let links = host.json("ip -j link");
    let names = links.as_array().unwrap().iter().filter_map(|link| link["ifname"].as_str());
    for device in names.filter(|name| name.starts_with("flannel")) {
        for command in [
            format!("ip -o link show {device}"),
            format!("ip -o addr show dev {device} scope global"),
            format!("ip neigh show dev {device} nud permanent"),
            format!("ip -6 neigh show dev {device} nud permanent"),
            format!("bridge fdb show dev {device}"),
        ] {
            // The index differs when a device was made anew; a device that is gone has no lines.
            let text = try_sh(host, &command);
            let without_index = |line: &str| match line.split_once(": ") {
                Some((index, rest)) if index.parse::<u32>().is_ok() => rest.trim().to_owned(),
                _ => line.trim().to_owned(),
            };
            lines.extend(text.lines().map(without_index));
        }
    }
    lines.extend(try_sh(host, "ip route show proto 76").lines().map(|l| l.trim().to_owned()));
    lines.extend(try_sh(host, "ip -6 route show proto 76").lines().map(|l| l.trim().to_owned()));
    lines.retain(|l| !l.is_empty());
    lines.sort();
    lines
}

pub fn try_sh(host: &Host, command: &str) -> String {
    let words: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
    let output =
        host.netns.run(|| std::process::Command::new(&words[0]).args(&words[1..]).output()).unwrap().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Two hosts that know each other.
fn pair() -> (World, Vec<Agent>) {
    let world = World::with_config(2, VXLAN);
    let agents = world.start(&["--ip-masq"]);
    for host in &world.hosts {
        until("the peer's routes", || {
            let routes = try_sh(host, "ip route show proto 76") + &try_sh(host, "ip -6 route show proto 76");
            if routes.lines().count() == 2 { Ok(()) } else { Err(routes) }
        });
    }
    (world, agents)
}

#[test]
fn what_is_deleted_or_altered_comes_back() {
    let (world, _agents) = pair();
    let (host, peer) = (&world.hosts[0], &world.hosts[1]);
    let wanted = picture(host);
    let (subnet, subnet6) = (peer.subnet("FLANNEL_SUBNET"), peer.subnet("FLANNEL_IPV6_SUBNET"));
    let own = host.subnet("FLANNEL_SUBNET").network();
    let mac = peer.json("ip -j link show flannel.1")[0]["address"].as_str().unwrap().to_owned();
    let mut worst = (Duration::ZERO, String::new());
    for damage in [
        format!("ip route del {subnet}"),
        format!("ip -6 route del {subnet6}"),
        format!("ip route replace {subnet} via 192.0.2.99 dev eth0"),
        format!("ip route replace blackhole {subnet}"),
        format!("ip neigh del {} dev flannel.1", subnet.network()),
        format!("ip neigh replace {} lladdr 02:00:00:00:00:99 dev flannel.1 nud permanent", subnet.network()),
        format!("ip -6 neigh del {} dev flannel-v6.1", subnet6.network()),
        format!("bridge fdb del {mac} dev flannel.1 self"),
        format!("bridge fdb replace {mac} dev flannel.1 dst 192.0.2.99 self permanent"),
        "bridge fdb append 02:00:00:00:00:98 dev flannel.1 dst 192.0.2.98 self permanent".to_owned(),
        "ip neigh add 10.244.200.1 lladdr 02:00:00:00:00:97 dev flannel.1 nud permanent".to_owned(),
        format!("ip addr del {own}/32 dev flannel.1"),
        "ip addr add 10.244.255.1/32 dev flannel.1".to_owned(),
        "ip link set flannel.1 down".to_owned(),
        "ip link set flannel-v6.1 down".to_owned(),
        "ip link set flannel.1 mtu 1300".to_owned(),
        "ip link set flannel.1 address 02:00:00:00:00:55".to_owned(),
        "ip link set flannel.1 txqueuelen 500".to_owned(),
        "ip link del flannel.1".to_owned(),
        "ip link del flannel-v6.1".to_owned(),
        "ip route flush proto 76".to_owned(),
        "nft flush ruleset".to_owned(),
    ] {
        sh(&host.netns, &damage);
        let start = Instant::now();
        until(&format!("everything to be back after `{damage}`"), || {
            let now = picture(host);
            if now == wanted { Ok(()) } else { Err(difference(&wanted, &now)) }
        });
        if start.elapsed() > worst.0 {
            worst = (start.elapsed(), damage);
        }
    }
    println!("slowest repair: {} ms after `{}`", worst.0.as_millis(), worst.1);
    assert!(worst.0 < Duration::from_secs(5), "{worst:?}");
}

pub fn difference(wanted: &[String], now: &[String]) -> String {
    let missing = wanted.iter().filter(|l| !now.contains(l)).map(|l| format!("- {l}"));
    let extra = now.iter().filter(|l| !wanted.contains(l)).map(|l| format!("+ {l}"));
    missing.chain(extra).collect::<Vec<_>>().join("\n")
}

/// Objects that look a little like ours and are not.
pub const FOREIGN: &[&str] = &[
    "ip route add 10.244.250.0/24 via 192.0.2.77 dev eth0 proto static",
    "ip route add 10.99.0.0/16 via 192.0.2.77 dev eth0",
    "ip route add 10.244.251.0/24 dev lo proto 77",
    "ip addr add 172.16.5.5/32 dev flannel.1",
    "ip link add other.1 type vxlan id 99 dstport 4789 local 192.0.2.11 dev eth0 nolearning",
    "ip link set other.1 up",
    "bridge fdb append 02:00:00:00:00:33 dev other.1 dst 192.0.2.33 self permanent",
    "ip neigh add 192.0.2.44 lladdr 02:00:00:00:00:44 dev eth0 nud permanent",
    "nft add table ip mine",
    "nft add chain ip mine forward { type filter hook forward priority 5 ; }",
];

pub fn foreign_picture(host: &Host) -> String {
    [
        "ip route show table all proto static",
        "ip route show table main 10.99.0.0/16",
        "ip route show proto 77",
        "ip -o addr show to 172.16.5.5",
        "ip -d -o link show other.1",
        "bridge fdb show dev other.1",
        "ip neigh show nud permanent dev eth0",
        "nft list table ip mine",
    ]
    .map(|command| try_sh(host, command))
    .join("\n")
}

#[test]
fn nothing_foreign_is_touched() {
    let (world, mut agents) = pair();
    let host = &world.hosts[0];
    for command in FOREIGN {
        // nft takes its braces as words of their own.
        host.sh(command);
    }
    let before = foreign_picture(host);
    // Drift, so that the agent works; a restart, so that it sweeps; the peer's end, so that it deletes.
    host.sh("ip route flush proto 76");
    agents.remove(0).kill();
    std::fs::remove_file(host.dir.join("log")).unwrap();
    let agent = host.agent(&["--ip-masq"]);
    agent.ready();
    until("the route to be back", || {
        let routes = try_sh(host, "ip route show proto 76");
        if routes.lines().count() == 1 { Ok(()) } else { Err(routes) }
    });
    assert_eq!(foreign_picture(host), before);
    assert_eq!(agent.terminate(), 0);
    host.sh("ip addr del 172.16.5.5/32 dev flannel.1");
    let before = foreign_picture(host);
    let output =
        host.netns.run(|| std::process::Command::new(env!("CARGO_BIN_EXE_loden")).arg("cleanup").output());
    let output = output.unwrap().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(foreign_picture(host), before, "cleanup removes ours alone");
    let left: Vec<String> =
        picture(host).into_iter().filter(|l| l.contains("flannel") || l.contains("proto 76")).collect();
    assert_eq!(left, [""; 0], "and all of it");
}

#[test]
fn leaving_tears_nothing_down() {
    let (world, agents) = pair();
    let before: Vec<_> = world.hosts.iter().map(picture).collect();
    for (n, agent) in agents.into_iter().enumerate() {
        if n == 0 { assert_eq!(agent.terminate(), 0) } else { agent.kill() }
    }
    let after: Vec<_> = world.hosts.iter().map(picture).collect();
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(before, after, "{}", difference(before, after));
    }
    let (host, peer) = (&world.hosts[0], &world.hosts[1]);
    host.greet(peer, peer.subnet("FLANNEL_SUBNET").network()).expect("traffic goes on without agents");
}

/// flanneld starts with `add table`, which the kernel refuses while a table has the flag PERSIST: in
/// nftables mode it would end there, in iptables mode leave our rules beside its own (decision 0060).
#[test]
fn rules_are_left_so_that_flanneld_can_change_them() {
    let (world, mut agents) = pair();
    let host = &world.hosts[0];
    let refused = "nft add table ip flannel-ipv4";
    let output =
        host.netns.run(|| std::process::Command::new("nft").args(refused.split(' ').skip(1)).output());
    if output.unwrap().unwrap().status.success() {
        println!("SKIP rules_are_left_so_that_flanneld_can_change_them: kernel without owned tables");
        return;
    }
    let before = try_sh(host, "nft list table ip flannel-ipv4");
    assert_eq!(agents.remove(0).terminate(), 0);
    for family in ["ip flannel-ipv4", "ip6 flannel-ipv6"] {
        host.sh(&format!("nft add table {family}"));
    }
    let rules = |text: &str| text.lines().skip(2).map(str::to_owned).collect::<Vec<_>>();
    assert!(rules(&before).ends_with(&rules(&try_sh(host, "nft list table ip flannel-ipv4"))));
    host.sh("nft delete table ip flannel-ipv4");

    let _agent = host.agent(&["--ip-masq"]);
    until("the next of us to own them again", || {
        let table = try_sh(host, "nft list table ip flannel-ipv4");
        if table.contains("flags owner") { Ok(()) } else { Err(table) }
    });
}

#[test]
fn state_of_a_peer_that_left_while_we_were_down_is_gone() {
    let (world, mut agents) = pair();
    let host = &world.hosts[0];
    agents.remove(0).kill();
    // What flannel left behind of a node that is gone: its own protocol number, one without a device.
    host.sh("ip route add 10.244.222.0/24 via 10.244.222.0 dev flannel.1 onlink");
    host.sh("ip neigh add 10.244.222.0 lladdr 02:00:00:00:02:22 dev flannel.1 nud permanent");
    host.sh("bridge fdb append 02:00:00:00:02:22 dev flannel.1 dst 192.0.2.222 self permanent");
    std::fs::remove_file(host.dir.join("log")).unwrap();
    let agent = host.agent(&["--ip-masq"]);
    agent.ready();
    until("the leftovers to go", || {
        let left = picture(host).join("\n") + &try_sh(host, "ip route");
        if left.contains("10.244.222.0") || left.contains("02:00:00:00:02:22") { Err(left) } else { Ok(()) }
    });
}

#[test]
fn a_flannel_device_is_taken_over_not_made_anew() {
    let world = World::with_config(1, VXLAN);
    let host = &world.hosts[0];
    // As flanneld makes it.
    host.sh("ip link add flannel.1 address 8e:11:22:33:44:55 mtu 1450 txqueuelen 0 type vxlan id 1 local 192.0.2.11 dev eth0 dstport 8472 nolearning");
    host.sh("ip link set flannel.1 up");
    let before = host.json("ip -j link show flannel.1")[0].clone();
    let agent = host.agent(&[]);
    agent.ready();
    let after = host.json("ip -j link show flannel.1")[0].clone();
    assert_eq!(before["ifindex"], after["ifindex"]);
    assert_eq!(after["address"], "8e:11:22:33:44:55");
}

/// The rules flanneld's iptables mode leaves name the subnet of that time; with another one they would
/// masquerade traffic between pods. Where iptables is not there they are removed all the same (decision 0132).
#[test]
fn masquerade_rules_of_a_flanneld_before_us_go() {
    let world = World::with_config(1, VXLAN);
    let host = &world.hosts[0];
    for (family, protocol) in [("ip", "ip saddr 10.244.0.0/16"), ("ip6", "ip6 saddr fd00:10::/48")] {
        for command in [
            "add table F nat",
            "add chain F nat POSTROUTING { type nat hook postrouting priority 100 ; }",
            "add chain F nat FLANNEL-POSTRTG",
            "add rule F nat POSTROUTING counter jump FLANNEL-POSTRTG",
            "add rule F nat POSTROUTING mark 7 masquerade",
            &format!("add rule F nat FLANNEL-POSTRTG {protocol} masquerade"),
            "add table F filter",
            "add chain F filter FLANNEL-FWD",
            &format!("add rule F filter FLANNEL-FWD {protocol} accept"),
        ] {
            host.sh(&format!("nft {}", command.replace(" F ", &format!(" {family} "))));
        }
    }
    let env = [("LODEN_STORE", host.store()), ("PATH", crate::iptables::PATH_WITHOUT)];
    let _agent = host.agent_in(&["--ip-masq"], &env);
    for family in ["ip", "ip6"] {
        until("the chain to be empty", || {
            let chain = try_sh(host, &format!("nft list chain {family} nat FLANNEL-POSTRTG"));
            if chain.contains("FLANNEL-POSTRTG {") && !chain.contains("saddr") { Ok(()) } else { Err(chain) }
        });
        let others = try_sh(host, &format!("nft list chain {family} nat POSTROUTING"));
        assert!(others.contains("masquerade") && others.contains("jump FLANNEL-POSTRTG"), "{others}");
        let accepts = try_sh(host, &format!("nft list chain {family} filter FLANNEL-FWD"));
        assert!(accepts.contains("accept"), "{accepts}");
    }
}

#[test]
fn the_uplink_may_vanish_and_return_with_another_index() {
    let (world, _agents) = pair();
    let (host, peer) = (&world.hosts[0], &world.hosts[1]);
    let address = peer.subnet("FLANNEL_SUBNET").network();
    host.greet(peer, address).expect("traffic before");
    // The kernel deletes a vxlan device with the device below it. A veth end moved out is gone from here.
    host.sh("ip link set eth0 down");
    host.sh("ip link set eth0 name gone");
    host.sh("ip link set gone name eth0");
    host.sh("ip link set eth0 up");
    host.sh("ip addr replace 192.0.2.11/24 dev eth0");
    host.sh("ip -6 addr replace 2001:db8::11/64 dev eth0 nodad");
    host.sh("ip route replace default via 192.0.2.1");
    host.sh("ip -6 route replace default via 2001:db8::1");
    until("traffic after", || host.greet(peer, address));
}

/// The kernel takes IPv4 routes away with their interface and does not say so; the slow resync would come
/// later than this test's patience.
#[test]
fn routes_that_went_with_the_uplink_come_back_with_it() {
    let world = World::with_config(2, r#"{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}"#);
    let _agents = world.start(&["--iface=eth0"]);
    let (host, peer) = (&world.hosts[0], &world.hosts[1]);
    let route = || {
        let routes = try_sh(host, &format!("ip route show {} proto 76", peer.subnet("FLANNEL_SUBNET")));
        if routes.is_empty() { Err("no route".to_owned()) } else { Ok(()) }
    };
    until("the peer's route", route);
    for _ in 0..5 {
        host.sh("ip link set eth0 down");
        host.sh("ip link set eth0 up");
        until("the route after a flap", route);
    }
}
