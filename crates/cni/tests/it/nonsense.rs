//! Bad input to the plugins that make interfaces: every key with a wrong type, huge documents, a place for
//! records that is none. The right code, a sentence that names the key, nothing left, and DEL succeeds.

use crate::children::wire;
use crate::harness::{Host, ip_in, pod, with};
use model::gojson::Json;

const PREV: &str = r#"{"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "x"}],
    "ips": [{"interface": 0, "address": "10.9.1.2/24"}]}"#;

type Keys = &'static [(&'static str, char)];

/// Plugins, members that make a document work, and keys with what they want: `t`ext, `n`umber, `b`oolean,
/// `l`ist, `o`bject.
const PLUGINS: &[(&str, &str, Keys)] = &[
    (
        "bridge",
        r#""bridge": "cni0""#,
        &[
            ("bridge", 't'),
            ("isGateway", 'b'),
            ("isDefaultGateway", 'b'),
            ("forceAddress", 'b'),
            ("ipMasq", 'b'),
            ("ipMasqBackend", 't'),
            ("mtu", 'n'),
            ("hairpinMode", 'b'),
            ("promiscMode", 'b'),
            ("vlan", 'n'),
            ("vlanTrunk", 'l'),
            ("preserveDefaultVlan", 'b'),
            ("macspoofchk", 'b'),
            ("enabledad", 'b'),
            ("disableContainerInterface", 'b'),
            ("portIsolation", 'b'),
            ("dns", 'o'),
            ("ipam", 'o'),
            ("args", 'o'),
            ("runtimeConfig", 'o'),
        ],
    ),
    ("ptp", "", &[("ipMasq", 'b'), ("ipMasqBackend", 't'), ("mtu", 'n'), ("dns", 'o'), ("ipam", 'o')]),
    (
        "macvlan",
        r#""master": "up0""#,
        &[
            ("master", 't'),
            ("mode", 't'),
            ("mtu", 'n'),
            ("mac", 't'),
            ("linkInContainer", 'b'),
            ("bcqueuelen", 'n'),
            ("enabledad", 'b'),
            ("dns", 'o'),
            ("ipam", 'o'),
            ("runtimeConfig", 'o'),
        ],
    ),
    (
        "ipvlan",
        r#""master": "up0""#,
        &[
            ("master", 't'),
            ("mode", 't'),
            ("mtu", 'n'),
            ("linkInContainer", 'b'),
            ("dns", 'o'),
            ("ipam", 'o'),
        ],
    ),
    (
        "vlan",
        r#""master": "up0", "vlanId": 7"#,
        &[
            ("master", 't'),
            ("vlanId", 'n'),
            ("mtu", 'n'),
            ("linkInContainer", 'b'),
            ("dns", 'o'),
            ("ipam", 'o'),
        ],
    ),
    (
        "host-device",
        r#""device": "up1""#,
        &[
            ("device", 't'),
            ("hwaddr", 't'),
            ("kernelpath", 't'),
            ("pciBusID", 't'),
            ("enabledad", 'b'),
            ("dns", 'o'),
            ("ipam", 'o'),
            ("runtimeConfig", 'o'),
        ],
    ),
    ("dummy", "", &[("dns", 'o'), ("ipam", 'o')]),
    (
        "tap",
        "",
        &[
            ("multiQueue", 'b'),
            ("mtu", 'n'),
            ("mac", 't'),
            ("owner", 'n'),
            ("group", 'n'),
            ("selinuxContext", 't'),
            ("bridge", 't'),
            ("dns", 'o'),
            ("ipam", 'o'),
            ("runtimeConfig", 'o'),
        ],
    ),
    ("vrf", r#""vrfname": "blue""#, &[("vrfname", 't'), ("table", 'n')]),
    ("static", "", &[("ipam", 'o'), ("args", 'o'), ("runtimeConfig", 'o')]),
    (
        "veth-to-host",
        r#""hostInterface": "up0", "containerInterface": "veth0""#,
        &[
            ("hostInterface", 't'),
            ("containerInterface", 't'),
            ("ipMasq", 'b'),
            ("mtu", 'n'),
            ("routeTableStart", 'n'),
            ("nodePortMark", 'n'),
            ("nodePorts", 't'),
            ("mode", 't'),
            ("keepSource", 'b'),
            ("serviceCIDRs", 'l'),
            ("routes", 'l'),
            ("masqBackend", 't'),
        ],
    ),
];

fn conf(host: &Host, plugin: &str, members: &str) -> String {
    let dir = host.path("networks");
    let members = if members.is_empty() { String::new() } else { format!(", {members}") };
    let conf = format!(
        r#"{{"cniVersion": "1.0.0", "name": "net", "type": "{plugin}"{members},
            "ipam": {{"type": "host-local", "dataDir": "{dir}", "subnet": "10.9.1.0/24"}}}}"#
    );
    let chained = matches!(plugin, "vrf" | "veth-to-host");
    if chained { with(&conf, "prevResult", PREV.parse::<Json>().unwrap()) } else { conf }
}

#[track_caller]
fn nothing_left(host: &Host, netns: &kernel::Netns, what: &str) {
    let mut links = host.links();
    links.sort();
    assert_eq!(links, ["up0", "up1"], "{what}");
    assert!(!ip_in(netns, "link show").contains("veth0"), "{what}");
    assert!(host.files("networks").iter().all(|f| !f.contains("10.9.1.")), "{what}");
    assert_eq!(host.files("state/attachments"), [""; 0], "{what}");
}

#[test]
fn every_key_of_a_wrong_type() {
    let host = Host::new();
    wire(&host);
    let (netns, pod) = pod("c1");
    for (plugin, members, keys) in PLUGINS {
        let good = conf(&host, plugin, members);
        for (key, wants) in *keys {
            let wrong = [("5", 'n'), ("\"x\"", 't'), ("true", 'b'), ("[1]", 'l'), ("{\"x\": 1}", 'o')];
            for (value, _) in wrong.iter().filter(|(_, is)| is != wants).step_by(2) {
                let bad = with(&good, key, value.parse::<Json>().unwrap());
                let what = format!("{plugin} {key}: {value}");
                let (code, text) = host.call(plugin, "ADD", &pod, &bad).error();
                assert_eq!(code, 7, "{what}: {text}");
                assert!(text.contains(key), "{what}: {text}");
                assert!(text.contains("cannot unmarshal"), "{what}: {text}");
                nothing_left(&host, &netns, &what);
                let deleted = host.call(plugin, "DEL", &pod, &bad);
                assert!(deleted.ok, "{what}: {}", deleted.text);
            }
        }
    }
}

#[test]
fn huge_documents() {
    let host = Host::new();
    wire(&host);
    let (netns, pod) = pod("c1");
    for (plugin, members, _) in PLUGINS {
        let good = conf(&host, plugin, members);
        let ten = with(&good, "padding", "x".repeat(10 << 20).as_str());
        let deleted = host.call(plugin, "DEL", &pod, &ten);
        assert!(deleted.ok, "{plugin}: {}", deleted.text);
        let (code, text) =
            host.call(plugin, "ADD", &pod, &with(&good, "padding", "x".repeat(17 << 20).as_str())).error();
        assert_eq!(code, 5);
        assert!(text.contains("error reading from stdin: the document is larger than 16 MiB"), "{text}");
    }
    let good = conf(&host, "macvlan", r#""master": "up0""#);
    host.call("macvlan", "ADD", &pod, &with(&good, "padding", "x".repeat(10 << 20).as_str())).expect("ADD");
    assert!(host.call("macvlan", "DEL", &pod, &good).ok);
    nothing_left(&host, &netns, "10 MiB");
}

/// Records cannot be written: said before anything is made.
#[test]
fn a_place_for_records_that_is_none() {
    let host = Host::new();
    wire(&host);
    std::fs::write(host.path("state"), "").unwrap();
    for (plugin, members, _) in PLUGINS {
        if matches!(*plugin, "static" | "vrf") {
            continue;
        }
        let (netns, pod) = pod("c1");
        if *plugin == "veth-to-host" {
            ip_in(&netns, "link add eth0 type veth peer name x");
        }
        let (code, text) = host.call(plugin, "ADD", &pod, &conf(&host, plugin, members)).error();
        assert_eq!(code, 5, "{plugin}: {text}");
        assert!(text.contains("write ") && text.contains("Not a directory"), "{plugin}: {text}");
        let mut links = host.links();
        links.retain(|name| name != "cni0");
        links.sort();
        assert_eq!(links, ["up0", "up1"], "{plugin}");
        assert!(host.files("networks").iter().all(|f| !f.contains("10.9.1.")), "{plugin}");
        let deleted = host.call(plugin, "DEL", &pod, &conf(&host, plugin, members));
        assert!(deleted.ok, "{plugin}: {}", deleted.text);
    }
}
