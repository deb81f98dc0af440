//! A host whose kernel was started without IPv6 (`ipv6.disable=1`). Such a kernel is that of a guest of
//! `cargo xtask vm` (decision 0197).

use kernel::sysctl::has_ipv6;

use crate::faults::{difference, picture};
use crate::traffic::{Pings, Pod};
use crate::world::{World, until};

/// Whether there is none, or a note that the test is skipped.
fn is_without_ipv6(test: &str) -> bool {
    if has_ipv6() {
        println!("SKIP no_ipv6::{test}: this kernel has IPv6");
    }
    !has_ipv6()
}

/// Nobody who uses IPv4 alone notices: hosts reach each other, what is deleted comes back, nothing is complained of.
#[test]
fn hosts_reach_each_other_and_repair_themselves() {
    if !is_without_ipv6("hosts_reach_each_other_and_repair_themselves") {
        return;
    }
    for (rules, backend) in [
        (true, r#""Type":"vxlan""#),
        (true, r#""Type":"vxlan","DirectRouting":true,"CheckSources":true"#),
        (true, r#""Type":"host-gw""#),
        (true, r#""Type":"udp""#),
        (false, r#""Type":"vxlan""#),
        (true, r#""Type":"wireguard""#),
    ] {
        let config =
            format!(r#"{{"Network":"10.244.0.0/16","EnableNFTables":{rules},"Backend":{{{backend}}}}}"#);
        let world = World::with_config(2, &config);
        let agents = world.start(&["--ip-masq"]);
        let (host, peer) = (&world.hosts[0], &world.hosts[1]);
        let pods = [host, peer].map(|host| Pod::on(host, &["FLANNEL_SUBNET"]));
        Pings::start(&pods[0], pods[1].addresses[0]).more(3);
        let wanted = picture(host);
        for damage in ["ip route flush proto 76", "nft flush ruleset"] {
            host.sh(damage);
            until(&format!("{config}: everything to be back after `{damage}`"), || {
                let now = picture(host);
                if now == wanted { Ok(()) } else { Err(difference(&wanted, &now)) }
            });
        }
        until(&format!("{config}: a status without a complaint"), || match host.status(&[]) {
            (0, _) => Ok(()),
            (code, text) => Err(format!("{code}: {text}")),
        });
        for agent in agents {
            let log = agent.log();
            assert_eq!(agent.terminate(), 0, "{config}");
            let complaints: Vec<&str> =
                log.lines().filter(|line| line.starts_with(['E', 'W']) || line.contains("IPv6")).collect();
            assert_eq!(complaints, [""; 0], "{config}");
        }
    }
}

/// Who asks for IPv6 is told why there is none, by the agent and before it is in the store.
#[test]
fn ipv6_is_refused_by_name() {
    if !is_without_ipv6("ipv6_is_refused_by_name") {
        return;
    }
    for network in [
        r#""Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10::/48""#,
        r#""EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:10::/48""#,
    ] {
        let world = World::with_config(1, &format!(r#"{{{network},"Backend":{{"Type":"vxlan"}}}}"#));
        let host = &world.hosts[0];
        let mut agent = host.agent(&[]);
        agent.says("this kernel has no IPv6");
        let (code, text) = host.status(&[]);
        assert!(code != 0 && text.contains("this kernel has no IPv6"), "{network}: {code}: {text}");
        assert!(agent.alive() && !host.subnet_file().exists(), "{network}");
    }
}
