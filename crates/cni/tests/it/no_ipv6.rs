//! A host whose kernel was started without IPv6 (`ipv6.disable=1`): no addresses, no parameters, no rules of it. Such a
//! kernel is that of a guest of `cargo xtask vm` (decision 0197).

use crate::harness::{Host, debian, pod};
use crate::witness::Case;

const V4: &str = r#""type": "host-local", "dataDir": "DIR", "subnet": "10.9.1.0/24""#;
const V6: &str = r#""type": "host-local", "dataDir": "DIR", "subnet": "2001:db8:9::/64""#;
const DUAL: &str = r#""type": "host-local", "dataDir": "DIR", "ranges": [[{"subnet": "10.9.1.0/24"}], [{"subnet": "2001:db8:9::/64"}]]"#;

/// Whether there is none, or a note that the test is skipped.
fn is_without_ipv6(test: &str) -> bool {
    let there = kernel::sysctl::has_ipv6();
    if there {
        println!("SKIP no_ipv6::{test}: this kernel has IPv6");
    }
    !there
}

const fn case<'a>(plugin: &'a str, members: &'a str, ipam: &'a str) -> Case<'a> {
    Case { plugin, version: "1.0.0", members, ipam, args: "" }
}

fn wired(host: &Host) {
    for command in [
        "link add eth0 type veth peer name far",
        "link set far up",
        "addr add 10.9.0.1/24 dev eth0",
        "link set eth0 up",
    ] {
        host.ip(command);
    }
}

/// Results and everything in the kernel are those of Debian's plugins.
#[test]
fn pods_are_attached_as_ever() {
    let test = "pods_are_attached_as_ever";
    if !is_without_ipv6(test) || !debian(test) {
        return;
    }
    for case in [
        case("bridge", "", V4),
        case("bridge", r#""isDefaultGateway": true, "hairpinMode": true, "mtu": 1400"#, V4),
        case("ptp", r#""mtu": 1400"#, V4),
        case("macvlan", r#""master": "eth0""#, V4),
        case("loopback", "", ""),
    ] {
        // Bridges differ in their numbers and in the mark of ours.
        let without_bridge = |text: &str| {
            text.lines().filter(|line| !line.contains("\"bridge\"")).map(|line| format!("{line}\n")).collect()
        };
        case.same_as_debian(wired, &["net/ipv4/conf/eth0/rp_filter"], without_bridge);
    }
}

/// What Debian's does by other means: masquerading, checks of addresses, ports, chains of the tutorials.
#[test]
fn everything_else_lives_and_dies() {
    if !is_without_ipv6("everything_else_lives_and_dies") {
        return;
    }
    for case in [
        case("bridge", r#""isDefaultGateway": true, "ipMasq": true"#, V4),
        case("bridge", r#""isDefaultGateway": true, "ipMasq": true, "ipMasqBackend": "iptables""#, V4),
        case("bridge", r#""isDefaultGateway": true, "macspoofchk": true, "ipspoofchk": true"#, V4),
        case("ptp", r#""ipMasq": true"#, V4),
        case("macvlan", r#""master": "eth0", "mode": "private""#, V4),
    ] {
        let ours = Host::new();
        let rules = ours.rules();
        let text = case.run(&[&ours.bin().display().to_string()], wired, &[]);
        assert!(text.contains("10.9.1.2"), "{text}");
        assert_eq!(ours.rules(), rules, "{}", case.members);
    }
    crate::chain::the_tutorials_chain_in("1.1.0");
}

/// An address that cannot be had is an error that says so, and nothing stays.
#[test]
fn ipv6_is_refused_by_name() {
    if !is_without_ipv6("ipv6_is_refused_by_name") {
        return;
    }
    for plugin in ["bridge", "ptp", "macvlan"] {
        for (members, ipam) in [("", V6), ("", DUAL), (r#""ipMasq": true"#, DUAL)] {
            let host = Host::new();
            wired(&host);
            let members = if plugin == "macvlan" { r#""master": "eth0""# } else { members };
            let (netns, pod) = pod("c1");
            let conf = case(plugin, members, ipam).conf(&host);
            let (code, said) = host.call(plugin, "ADD", &pod, &conf).error();
            let what = format!("{plugin} {members}: {code} {said}");
            assert!(said.contains("this kernel has no IPv6") && said.contains("2001:db8:9::"), "{what}");
            let left = host.links();
            assert!(!left.iter().any(|name| name.starts_with("veth")), "{what}: {left:?}");
            assert!(!crate::harness::ip_in(&netns, "-br link show").contains("eth0"), "{what}");
            let held = host.files("networks");
            assert!(
                held.iter().all(|file| !file.contains("10.9.1.") && !file.contains("2001:")),
                "{what}: {held:?}"
            );
            assert!(!host.rules().contains("10.9.1."), "{what}: {}", host.rules());
            assert!(host.call(plugin, "DEL", &pod, &conf).ok, "{what}");
            assert_eq!(host.files("state/attachments"), [""; 0], "{what}");
        }
    }
}
