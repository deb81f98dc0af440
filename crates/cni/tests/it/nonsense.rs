//! Bad input to all plugins: every key with a wrong type, then with values that cannot be, huge documents, a
//! place for records that is none. The right code, a sentence that names the key, nothing left, and DEL succeeds.

use crate::children::wire;
use crate::harness::{Host, ip_in, pod, with};
use model::gojson::Json;

const PREV: &str = r#"{"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "x"}],
    "ips": [{"interface": 0, "address": "10.9.1.2/24"}]}"#;

type Keys = &'static [(&'static str, char)];

/// Plugins, members that make a document work, and keys with what they want: `t`ext, `n`umber, `b`oolean,
/// `l`ist, `o`bject. A key with dots is a way through objects, `0` being the first of a list.
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
            ("ipspoofchk", 'b'),
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
    (
        "static",
        "",
        &[
            ("ipam", 'o'),
            ("ipam.addresses", 'l'),
            ("ipam.addresses.0.address", 't'),
            ("ipam.addresses.0.gateway", 't'),
            ("ipam.routes", 'l'),
            ("ipam.routes.0.dst", 't'),
            ("ipam.routes.0.gw", 't'),
            ("ipam.dns", 'o'),
            ("args", 'o'),
            ("args.cni", 'o'),
            ("args.cni.ips", 'l'),
            ("runtimeConfig", 'o'),
            ("runtimeConfig.ips", 'l'),
        ],
    ),
    (
        "host-local",
        "",
        &[
            ("ipam", 'o'),
            ("ipam.subnet", 't'),
            ("ipam.rangeStart", 't'),
            ("ipam.rangeEnd", 't'),
            ("ipam.gateway", 't'),
            ("ipam.ranges", 'l'),
            ("ipam.routes", 'l'),
            ("ipam.routes.0.mtu", 'n'),
            ("ipam.routes.0.advmss", 'n'),
            ("ipam.routes.0.priority", 'n'),
            ("ipam.routes.0.table", 'n'),
            ("ipam.routes.0.scope", 'n'),
            ("ipam.dataDir", 't'),
            ("ipam.resolvConf", 't'),
            ("args", 'o'),
            ("args.cni.ips", 'l'),
            ("runtimeConfig", 'o'),
            ("runtimeConfig.ipRanges", 'l'),
            ("runtimeConfig.ips", 'l'),
        ],
    ),
    (
        "dhcp",
        "",
        &[
            ("ipam", 'o'),
            ("ipam.daemonSocketPath", 't'),
            ("ipam.provide", 'l'),
            ("ipam.provide.0.value", 't'),
            ("ipam.provide.0.fromArg", 't'),
            ("ipam.request", 'l'),
            ("ipam.request.0.skipDefault", 'b'),
            ("ipam.priority", 'n'),
        ],
    ),
    (
        "portmap",
        "",
        &[
            ("backend", 't'),
            ("snat", 'b'),
            ("masqAll", 'b'),
            ("markMasqBit", 'n'),
            ("externalSetMarkChain", 't'),
            ("conditionsV4", 'l'),
            ("conditionsV6", 'l'),
            ("hairpinSubnet", 'b'),
            ("exclusiveHostPorts", 'b'),
            ("runtimeConfig", 'o'),
            ("runtimeConfig.portMappings", 'l'),
            ("runtimeConfig.portMappings.0.hostPort", 'n'),
            ("runtimeConfig.portMappings.0.containerPort", 'n'),
            ("runtimeConfig.portMappings.0.protocol", 't'),
            ("runtimeConfig.portMappings.0.hostIP", 't'),
        ],
    ),
    (
        "firewall",
        "",
        &[("backend", 't'), ("iptablesAdminChainName", 't'), ("firewalldZone", 't'), ("ingressPolicy", 't')],
    ),
    (
        "tuning",
        "",
        &[
            ("sysctl", 'o'),
            ("mac", 't'),
            ("mtu", 'n'),
            ("promisc", 'b'),
            ("allmulti", 'b'),
            ("txQLen", 'n'),
            ("dataDir", 't'),
            ("args", 'o'),
            ("args.cni", 'o'),
            ("args.cni.sysctl", 'o'),
            ("args.cni.mac", 't'),
            ("args.cni.mtu", 'n'),
            ("args.cni.promisc", 'b'),
            ("args.cni.allmulti", 'b'),
            ("args.cni.txQLen", 'n'),
            ("runtimeConfig", 'o'),
            ("runtimeConfig.mac", 't'),
        ],
    ),
    (
        "bandwidth",
        "",
        &[
            ("ingressRate", 'n'),
            ("ingressBurst", 'n'),
            ("egressRate", 'n'),
            ("egressBurst", 'n'),
            ("runtimeConfig", 'o'),
            ("runtimeConfig.bandwidth", 'o'),
            ("runtimeConfig.bandwidth.ingressRate", 'n'),
            ("runtimeConfig.bandwidth.egressBurst", 'n'),
        ],
    ),
    ("sbr", "", &[("table", 'n'), ("gateways", 'l'), ("addSourceHints", 'b')]),
    (
        "flannel",
        "",
        &[("subnetFile", 't'), ("dataDir", 't'), ("delegate", 'o'), ("ipam", 'o'), ("runtimeConfig", 'o')],
    ),
    ("loopback", "", &[]),
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
    let more = match plugin {
        "static" => vec![
            ("ipam.addresses", r#"[{"address": "10.9.1.7/24"}]"#),
            ("ipam.routes", r#"[{"dst": "10.0.0.0/8"}]"#),
        ],
        "host-local" => vec![("ipam.routes", r#"[{"dst": "10.0.0.0/8"}]"#)],
        "dhcp" => vec![
            ("ipam.provide", r#"[{"option": "12", "value": "x"}]"#),
            ("ipam.request", r#"[{"option": "121"}]"#),
        ],
        "portmap" => vec![(
            "runtimeConfig.portMappings",
            r#"[{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]"#,
        )],
        _ => Vec::new(),
    };
    let conf = more.into_iter().fold(conf, |conf, (way, value)| at(&conf, way, value));
    let chained =
        matches!(plugin, "vrf" | "veth-to-host" | "portmap" | "firewall" | "tuning" | "bandwidth" | "sbr");
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

/// The document with a value at the end of a way.
fn at(conf: &str, way: &str, value: &str) -> String {
    fn put(json: &Json, way: &[&str], value: &Json) -> Json {
        let Some((key, rest)) = way.split_first() else { return value.clone() };
        if *key == "0" {
            let first = json.as_array().and_then(<[Json]>::first).cloned().unwrap_or_else(Json::empty);
            return Json::array([put(&first, rest, value)]);
        }
        let mut object = if json.members().is_some() { json.clone() } else { Json::empty() };
        let inner = json.get(key).cloned().unwrap_or_else(Json::empty);
        object.set(key, put(&inner, rest, value));
        object
    }
    let way: Vec<&str> = way.split('.').collect();
    put(&conf.parse().unwrap(), &way, &value.parse().unwrap()).to_compact()
}

#[test]
fn every_key_of_a_wrong_type() {
    let host = Host::new();
    wire(&host);
    let (netns, pod) = pod("c1");
    let mut wrong_ones = Vec::new();
    for (plugin, members, keys) in PLUGINS {
        let good = conf(&host, plugin, members);
        for (key, wants) in *keys {
            let wrong = [("5", 'n'), ("\"x\"", 't'), ("true", 'b'), ("[1]", 'l'), ("{\"x\": 1}", 'o')];
            for (value, _) in wrong.iter().filter(|(_, is)| is != wants).step_by(2) {
                let bad = at(&good, key, value);
                let what = format!("{plugin} {key}: {value}");
                let answer = host.call(plugin, "ADD", &pod, &bad);
                if answer.ok {
                    wrong_ones.push(format!("{what}: succeeded"));
                    assert!(host.call(plugin, "DEL", &pod, &bad).ok, "{what}");
                    continue;
                }
                let (code, text) = answer.error();
                let name = key.rsplit('.').next().unwrap();
                let says = text.contains("cannot unmarshal") || text.contains("has to be a JSON object");
                if code != 7 || !text.contains(name) || !says {
                    wrong_ones.push(format!("{what}: {code} {text}"));
                }
                nothing_left(&host, &netns, &what);
                let deleted = host.call(plugin, "DEL", &pod, &bad);
                assert!(deleted.ok, "{what}: {}", deleted.text);
            }
        }
    }
    assert!(wrong_ones.is_empty(), "{}", wrong_ones.join("\n"));
}

/// Values of the right type that cannot be: plugin, key, value, code, and what the sentence says.
const VALUES: &[(&str, &str, &str, u32, &str)] = &[
    ("bridge", "bridge", "\"a name too long for one\"", 7, "bridge"),
    ("bridge", "ipMasqBackend", "\"x\"", 7, "unknown ipmasq backend \"x\""),
    ("bridge", "mtu", "-1", 7, "-1"),
    ("bridge", "mtu", "70000", 7, "70000"),
    ("bridge", "vlan", "4095", 7, "invalid VLAN ID 4095 (must be between 0 and 4094)"),
    ("bridge", "vlan", "-1", 7, "invalid VLAN ID -1"),
    ("bridge", "vlanTrunk", "[{\"id\": 0}]", 7, "incorrect trunk id parameter"),
    ("bridge", "vlanTrunk", "[{\"minID\": 0, \"maxID\": 5}]", 7, "incorrect trunk minID parameter"),
    ("bridge", "vlanTrunk", "[{\"minID\": 1, \"maxID\": 4095}]", 7, "incorrect trunk maxID parameter"),
    ("bridge", "vlanTrunk", "[{\"minID\": 9, \"maxID\": 5}]", 7, "minID is greater than maxID"),
    ("bridge", "vlanTrunk", "[{\"minID\": 9}]", 7, "maxID is missing"),
    ("bridge", "vlanTrunk", "[{\"maxID\": 9}]", 7, "minID is missing"),
    ("bridge", "disableContainerInterface", "true", 7, "cannot use IPAM when DisableContainerInterface"),
    ("bridge", "args.cni.mac", "\"x\"", 7, "mac"),
    ("bridge", "runtimeConfig.mac", "\"x\"", 7, "mac"),
    ("bridge", "ipam.type", "\"none-such\"", 7, "failed to find plugin \"none-such\" in path"),
    ("bridge", "ipam.type", "\"a/b\"", 7, "invalid plugin name: a/b"),
    ("ptp", "ipMasqBackend", "\"x\"", 7, "unknown ipmasq backend \"x\""),
    ("ptp", "mtu", "-1", 7, "-1"),
    ("ptp", "ipam.type", "\"none-such\"", 7, "failed to find plugin \"none-such\" in path"),
    ("macvlan", "master", "\"none0\"", 999, "none0"),
    ("macvlan", "mode", "\"x\"", 7, "unknown macvlan mode: \"x\""),
    ("macvlan", "mtu", "9000", 7, "invalid MTU 9000"),
    ("macvlan", "mac", "\"x\"", 7, "mac"),
    ("macvlan", "bcqueuelen", "-1", 7, "bcqueuelen"),
    ("ipvlan", "master", "\"none0\"", 999, "none0"),
    ("ipvlan", "mode", "\"x\"", 7, "unknown ipvlan mode: \"x\""),
    ("vlan", "master", "\"\"", 7, "\"master\" field is required"),
    ("vlan", "master", "\"none0\"", 999, "none0"),
    ("vlan", "vlanId", "4095", 7, "invalid VLAN ID 4095"),
    ("vlan", "mtu", "9000", 7, "9000"),
    ("host-device", "device", "\"none0\"", 999, "none0"),
    (
        "host-device",
        "device",
        "\"\"",
        7,
        "specify either \"device\", \"hwaddr\", \"kernelpath\" or \"pciBusID\"",
    ),
    ("tap", "mac", "\"x\"", 7, "mac"),
    ("tap", "owner", "-1", 7, "owner"),
    ("tap", "mtu", "-1", 7, "-1"),
    ("vrf", "vrfname", "\"\"", 7, "expected to have a valid vrf name"),
    ("vrf", "table", "-1", 7, "table"),
    ("host-local", "ipam.subnet", "\"10.9.1.0\"", 7, "10.9.1.0"),
    ("host-local", "ipam.subnet", "\"10.9.1.5/24\"", 7, "Network has host bits set"),
    ("host-local", "ipam.subnet", "\"10.9.1.0/31\"", 7, "too small to allocate from"),
    ("host-local", "ipam.rangeStart", "\"10.9.2.1\"", 7, "RangeStart 10.9.2.1 not in network"),
    ("host-local", "ipam.rangeEnd", "\"10.9.2.1\"", 7, "RangeEnd 10.9.2.1 not in network"),
    ("host-local", "ipam.gateway", "\"10.9.1.1/24\"", 7, "10.9.1.1/24"),
    ("host-local", "ipam.ranges", "[[]]", 7, "empty range set"),
    ("host-local", "ipam.ranges", "[[{\"subnet\": \"10.9.1.0/25\"}]]", 7, "overlaps"),
    ("host-local", "ipam.resolvConf", "\"/none/resolv.conf\"", 5, "/none/resolv.conf"),
    ("host-local", "ipam.dataDir", "\"/proc/none\"", 5, "/proc/none"),
    ("host-local", "runtimeConfig.ips", "[\"x\"]", 7, "x"),
    (
        "host-local",
        "runtimeConfig.ips",
        "[\"10.77.0.1\"]",
        999,
        "failed to allocate all requested IPs: 10.77.0.1",
    ),
    (
        "static",
        "ipam.addresses",
        "[{\"address\": \"10.9.1.7\"}]",
        7,
        "expected to be in CIDR notation, got: '10.9.1.7'",
    ),
    ("static", "ipam.addresses", "[{\"address\": \"10.9.1.7/24\", \"gateway\": \"x\"}]", 7, "x"),
    ("static", "runtimeConfig.ips", "[\"10.9.1.7\"]", 7, "NOT in CIDR notation, got: '10.9.1.7'"),
    ("dhcp", "ipam.provide", "[{\"option\": \"x\", \"value\": \"y\"}]", 7, "option \"x\""),
    ("dhcp", "ipam.daemonSocketPath", "\"/none/sock\"", 11, "error dialing DHCP daemon: /none/sock"),
    ("portmap", "backend", "\"x\"", 7, "unrecognized backend \"x\""),
    ("portmap", "markMasqBit", "32", 7, "MasqMarkBit must be between 0 and 31"),
    ("portmap", "externalSetMarkChain", "\"A B\"", 7, "externalSetMarkChain"),
    (
        "portmap",
        "runtimeConfig.portMappings",
        "[{\"hostPort\": 70000, \"containerPort\": 1}]",
        7,
        "Invalid host port number: 70000",
    ),
    ("portmap", "runtimeConfig.portMappings", "[{\"hostPort\": 7}]", 7, "Invalid container port number: 0"),
    ("firewall", "ingressPolicy", "\"x\"", 7, "unknown ingress policy: \"x\""),
    ("firewall", "iptablesAdminChainName", "\"A B\"", 7, "iptablesAdminChainName"),
    ("tuning", "mac", "\"x\"", 7, "invalid args x for MAC addr"),
    ("tuning", "sysctl", "{\"kernel.shmmax\": \"1\"}", 7, "invalid net sysctl key: \"kernel/shmmax\""),
    ("tuning", "mtu", "-1", 7, "mtu"),
    ("tuning", "txQLen", "-1", 7, "txQLen"),
    ("bandwidth", "ingressRate", "8000", 7, "if rate is set, burst must also be set"),
    ("bandwidth", "egressBurst", "8000", 7, "if burst is set, rate must also be set"),
    ("bandwidth", "egressRate", "-1", 7, "egressRate"),
    ("sbr", "gateways", "[\"x\"]", 7, "invalid static gateway IP address: x"),
    (
        "sbr",
        "gateways",
        "[\"10.0.0.1\", \"10.0.0.2\"]",
        7,
        "gateways list contains multiple IPv4 addresses: 10.0.0.1 and 10.0.0.2",
    ),
    (
        "sbr",
        "gateways",
        "[\"10.0.0.1\", \"::1\", \"::2\"]",
        7,
        "gateways list cannot contain more than 2 entries",
    ),
    ("sbr", "table", "-1", 7, "table"),
    ("veth-to-host", "hostInterface", "\"none0\"", 999, "none0"),
    ("veth-to-host", "hostInterface", "\"\"", 7, "hostInterface must be specified"),
    ("veth-to-host", "containerInterface", "\"\"", 7, "containerInterface must be specified"),
    ("veth-to-host", "mode", "\"x\"", 7, "unknown mode \"x\""),
    ("veth-to-host", "nodePorts", "\"9:1\"", 7, "nodePorts"),
    ("veth-to-host", "nodePortMark", "-1", 7, "nodePortMark"),
    ("veth-to-host", "routeTableStart", "-1", 7, "routeTableStart"),
    ("veth-to-host", "serviceCIDRs", "[\"x\"]", 7, "serviceCIDRs"),
    ("veth-to-host", "masqBackend", "\"x\"", 7, "masqBackend"),
    ("flannel", "subnetFile", "\"/none/subnet.env\"", 999, "/none/subnet.env"),
    ("loopback", "name", "\"a b\"", 7, "invalid characters found in network name"),
    ("loopback", "name", "5", 6, "name"),
    ("loopback", "cniVersion", "5", 6, "cniVersion"),
    ("loopback", "cniVersion", "\"9.9.9\"", 1, "incompatible CNI versions"),
];

#[test]
fn values_that_cannot_be() {
    let host = Host::new();
    wire(&host);
    let (netns, pod) = pod("c1");
    let mut wrong = Vec::new();
    for (plugin, key, value, code, want) in VALUES {
        let needs = PLUGINS.iter().find(|(name, ..)| name == plugin).map_or("", |(_, members, _)| members);
        let mut good = conf(&host, plugin, needs);
        if key.starts_with("ipam.ranges") {
            good = at(&good, "ipam.subnet", "\"10.9.1.0/24\"");
        }
        let bad = at(&good, key, value);
        let what = format!("{plugin} {key}: {value}");
        let answer = host.call(plugin, "ADD", &pod, &bad);
        if answer.ok {
            wrong.push(format!("{what}: succeeded"));
            assert!(host.call(plugin, "DEL", &pod, &bad).ok, "{what}");
            continue;
        }
        let (have, text) = answer.error();
        if have != *code || !text.contains(want) {
            wrong.push(format!("{what}: {have} {text}"));
        }
        nothing_left(&host, &netns, &what);
        let deleted = host.call(plugin, "DEL", &pod, &bad);
        // Who cannot be asked to release an address is told of.
        let early = matches!(*key, "name" | "cniVersion" | "ipam.type");
        assert!(deleted.ok || (early && deleted.error().1.contains(want)), "{what}: {}", deleted.text);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
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
        if matches!(*plugin, "static" | "vrf" | "host-local" | "dhcp" | "loopback" | "sbr" | "flannel") {
            continue;
        }
        // Those of a chain are in `bad::disks_that_are_full_or_read_only`.
        if matches!(*plugin, "portmap" | "firewall" | "tuning" | "bandwidth") {
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
