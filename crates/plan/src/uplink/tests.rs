use std::net::IpAddr;

use model::IfName;

use super::{
    Choice, DefaultRoute, Iface, IfaceAddress, Reach, Refusal, Routing, Selectors, Situation, choose, follow,
};
use crate::facts::{Addresses, Families};

/// `name index mtu address[!flags]…`, an MTU with `-` behind it for an interface that is down; flags:
/// d deprecated, y dynamic, t temporary, x duplicate.
fn ifaces(text: &str) -> Vec<Iface> {
    text.lines()
        .map(|line| {
            let mut words = line.split_whitespace();
            let mut word = || words.next().expect("name, index, MTU");
            let (name, index, mtu) = (word(), word(), word());
            let address = |word: &str| {
                let (net, flags) = word.split_once('!').unwrap_or((word, ""));
                IfaceAddress {
                    net: net.parse().expect("a valid address in a test"),
                    deprecated: flags.contains('d'),
                    permanent: !flags.contains('y'),
                    temporary: flags.contains('t'),
                    duplicate: flags.contains('x'),
                }
            };
            Iface {
                name: IfName::fixed(name),
                index: index.parse().expect("an index"),
                mtu: mtu.trim_end_matches('-').parse().expect("an MTU"),
                up: !mtu.ends_with('-'),
                addresses: words.map(address).collect(),
            }
        })
        .collect()
}

const HOST: &str = "lo 1 65536 127.0.0.1/8 ::1/128
eth0 2 1500 10.0.2.15/24 fe80::15/64 2001:db8:2::15/64
eth1 3 1400 192.0.2.10/24 192.0.2.11/24 2001:db8::10/64 fe80::10/64
eth2 4 9000 169.254.7.7/16
eth3 5 1500 198.51.100.9/24!d 198.51.100.8/24!y 198.51.100.7/24 2001:db8:3::9/64!t 2001:db8:3::8/64!y 2001:db8:3::7/64!yt
eth4 6 1500
zero 7 0 203.0.113.7/24
cni0 8 1450 10.244.1.1/24 fd00:10:244:1::1/64
docker0 9 1500 172.17.0.1/16
br-0123456789ab 10 1500 172.18.0.1/16
flannel.1 11 1450 10.244.1.0/32
br0 12 1500 198.18.0.5/24
off 13 1500- 198.18.1.5/24
eth5 14 1500 198.18.2.4/24!d 198.18.2.5/24!x
eth6 15 1500 198.18.3.1/24!y 198.18.3.2/24!y 2001:db8:6::2/64 2001:db8:6::1/64
eth7 16 1500 fe80::7/64
192.0.2.77 17 1500 198.18.4.1/24
eth8 18 1500 198.18.5.1/24!t fd00:8::8/64!d fd00:8::9/64!y";

struct Case {
    selectors: Selectors,
    situation: Situation,
}

/// `flags` are the selectors as on a command line, and what the kernel says: `default=V4,V6` and
/// `reach=DEVICE[,SOURCE]` by index, `m` for several next hops, routes of one family joined by `+`.
fn case(stack: &str, host: &str, flags: &str) -> Case {
    let mut s = Selectors::default();
    let routes = |text: &str| -> Vec<DefaultRoute> {
        let one = |(at, text): (usize, &str)| match text {
            "x" => None,
            "m" => Some(DefaultRoute { dev: None, metric: 0 }),
            index => Some(DefaultRoute { dev: index.parse().ok(), metric: 100 * at as u32 }),
        };
        text.split('+').enumerate().filter_map(one).collect()
    };
    let mut routing = Routing { defaults_v4: routes("2"), defaults_v6: routes("2"), ..Routing::default() };
    let mut held: Vec<IpAddr> = Vec::new();
    for flag in flags.split_whitespace() {
        let (name, value) = flag.split_once('=').expect("name=value");
        let ip = || value.parse().expect("an address");
        match name {
            "iface" => s.iface.push(value.to_owned()),
            "regex" => s.iface_regex.push(value.to_owned()),
            "ip" => s.public_ip = value.to_owned(),
            "ip6" => s.public_ipv6 = value.to_owned(),
            "registry" => s.registry.v4 = value.parse().ok(),
            "registry6" => s.registry.v6 = value.parse().ok(),
            "held" => held.push(ip()),
            "default" => {
                let (v4, v6) = value.split_once(',').expect("two families");
                (routing.defaults_v4, routing.defaults_v6) = (routes(v4), routes(v6));
            }
            "without" => routing.without_ipv6 = true,
            "target" => s.can_reach = value.to_owned(),
            "reach" => {
                let mut parts = value.split(',');
                let dev = parts.next().and_then(|n| n.parse().ok());
                let source = parts.next().map(|ip| ip.parse().expect("an address"));
                routing.reach = dev.map(|dev| Reach { dev, source });
                if s.can_reach.is_empty() {
                    s.can_reach = "198.51.100.1".to_owned();
                }
            }
            other => panic!("unknown selector {other}"),
        }
    }
    let families = Families { v4: stack != "6", v6: stack != "4" };
    Case { selectors: s, situation: Situation { families, ifaces: ifaces(host), routing, held } }
}

impl Case {
    fn choose(&self) -> Result<Choice, Refusal> {
        choose(&self.selectors, &self.situation)
    }
}

/// Interface, local addresses, advertised ones.
fn text(choice: &Choice) -> String {
    let text = |a: Addresses| {
        let all = [a.v4.map(|ip| ip.to_string()), a.v6.map(|ip| ip.to_string())];
        all.into_iter().flatten().collect::<Vec<_>>().join(",")
    };
    format!("{} {} {}", choice.uplink.name, text(choice.uplink.addresses), text(choice.public))
}

fn lines(why: &super::Why) -> Vec<String> {
    why.steps.iter().map(ToString::to_string).collect()
}

/// One case a line: name, families, flags, and what comes of it.
fn check(cases: &str) {
    for line in cases.trim().lines() {
        let parts: Vec<&str> = line.split(" | ").collect();
        let [name, stack, flags, want] = parts[..] else { panic!("{line}") };
        let flags = flags.trim_start_matches('-');
        let got = match case(stack, HOST, flags).choose() {
            Ok(choice) => {
                assert!(choice.why.steps.iter().any(|s| s.taken), "{name}: the reason is missing");
                text(&choice)
            }
            Err(refusal) => format!("error: {}", refusal.message),
        };
        match want.strip_prefix("error: ") {
            Some(part) => assert!(got.starts_with("error: ") && got.contains(part), "{name}: {got}"),
            None => assert_eq!(got, want, "{name}"),
        }
    }
}

#[test]
fn by_default_route() {
    check(
        r#"
v4 | 4 | - | eth0 10.0.2.15 10.0.2.15
v6 | 6 | - | eth0 2001:db8:2::15 2001:db8:2::15
both | d | - | eth0 10.0.2.15,2001:db8:2::15 10.0.2.15,2001:db8:2::15
v4 looks at v4 routes only | 4 | default=3,2 | eth1 192.0.2.10 192.0.2.10
v6 looks at v6 routes only | 6 | default=x,3 | eth1 2001:db8::10 2001:db8::10
families part ways | d | default=3,2 | error: different interfaces, eth1 and eth0
the first of two | 4 | default=3+2,x | eth1 192.0.2.10 192.0.2.10
no v4 route | 4 | default=x,2 | error: there is no IPv4 default route; name the interface with --iface
no v6 route | 6 | default=2,x | error: there is no IPv6 default route
no v6 route in dual stack | d | default=2,x | error: there is no IPv6 default route
no IPv6 in the kernel, which is not asked for | 4 | without=v6 | eth0 10.0.2.15 10.0.2.15
no IPv6 in the kernel | d | without=v6 | error: EnableIPv6 is true, and this kernel has no IPv6: start it without ipv6.disable=1
no IPv6 in the kernel, alone | 6 | without=v6 default=2,x | error: this kernel has no IPv6
several next hops | 4 | default=m,2 | error: the IPv4 default route has several next hops
several next hops in v6 | 6 | default=2,m | error: the IPv6 default route has several next hops
a single hop before several | 4 | default=3+m,2 | eth1 192.0.2.10 192.0.2.10
several next hops before a single one | 4 | default=m+2,2 | error: the IPv4 default route has several next hops
link-local is all there is | 4 | default=4,4 | eth2 169.254.7.7 169.254.7.7
link-local v6 is all there is | 6 | default=16,16 | eth7 fe80::7 fe80::7
no address of the family | 6 | default=4,4 | error: eth2 has no IPv6 address
no address at all | 4 | default=6,x | error: eth4 has no IPv4 address
an interface that has just gone | 4 | default=99,99 | error: unknown interface
pods' bridge is passed over | 4 | default=8+2,x | eth0 10.0.2.15 10.0.2.15
docker0 is passed over | 4 | default=9+3,x | eth1 192.0.2.10 192.0.2.10
a network of Docker's is passed over | 4 | default=10+3,x | eth1 192.0.2.10 192.0.2.10
our tunnel is passed over | 4 | default=11+2,x | eth0 10.0.2.15 10.0.2.15
nothing but the tunnel | 4 | default=11,x | error: there is no IPv4 default route
an ordinary bridge is taken | 4 | default=12,x | br0 198.18.0.5 198.18.0.5
an empty flag means the default route | 4 | iface= | eth0 10.0.2.15 10.0.2.15
an empty expression too | 4 | regex= | eth0 10.0.2.15 10.0.2.15
"#,
    );
}

#[test]
fn by_name_or_address() {
    check(
        r#"
name | 4 | iface=eth1 | eth1 192.0.2.10 192.0.2.10
name in v6 | 6 | iface=eth1 | eth1 2001:db8::10 2001:db8::10
name in dual stack | d | iface=eth1 | eth1 192.0.2.10,2001:db8::10 192.0.2.10,2001:db8::10
address | 4 | iface=192.0.2.11 | eth1 192.0.2.11 192.0.2.11
address in v6 | 6 | iface=2001:db8::10 | eth1 2001:db8::10 2001:db8::10
address in IPv6's form of IPv4 | 4 | iface=::ffff:192.0.2.11 | eth1 192.0.2.11 192.0.2.11
leading zeros are no address | 4 | iface=192.000.2.11 | error: there is no such interface
a v6 address in v4 | 4 | iface=2001:db8::10 | error: IPv6 is not enabled
a v4 address in v6 | 6 | iface=192.0.2.10 | error: IPv4 is not enabled
v4 address, v6 by preference | d | iface=192.0.2.11 | eth1 192.0.2.11,2001:db8::10 192.0.2.11,2001:db8::10
v6 address alone, where flannel crashes (F-66) | d | iface=2001:db8::10 | eth1 192.0.2.10,2001:db8::10 192.0.2.10,2001:db8::10
v4 address, v6 announced and beside it | d | iface=192.0.2.11 ip6=2001:db8::10 | eth1 192.0.2.11,2001:db8::10 192.0.2.11,2001:db8::10
v4 address, v6 announced and elsewhere | d | iface=192.0.2.11 ip6=2001:db8:2::15 | error: eth1 does not have 2001:db8:2::15 too
v4 address, v6 announced behind NAT | d | iface=192.0.2.11 ip6=2001:db8:ffff::1 | eth1 192.0.2.11,2001:db8::10 192.0.2.11,2001:db8:ffff::1
v6 address, v4 announced and beside it | d | iface=2001:db8::10 ip=192.0.2.11 | eth1 192.0.2.11,2001:db8::10 192.0.2.11,2001:db8::10
the second flag fits | 4 | iface=nope iface=eth1 | eth1 192.0.2.10 192.0.2.10
the first that fits counts | 4 | iface=eth1 iface=eth0 | eth1 192.0.2.10 192.0.2.10
a flag that fits nothing in its family is passed over | 6 | iface=eth2 iface=eth1 | eth1 2001:db8::10 2001:db8::10
two names in one flag | 4 | iface=eth0,eth1 | error: give each interface a flag of its own
a label of addresses | 4 | iface=eth0:1 | error: a label of addresses, not an interface; write --iface=eth0
nobody's address | 4 | iface=192.0.2.99 | error: no interface has this address
a name that looks like an address | 4 | iface=192.0.2.77 | 192.0.2.77 198.18.4.1 198.18.4.1
loopback | 4 | iface=127.0.0.1 | error: other hosts cannot reach a loopback address
the loopback device | 4 | iface=lo | error: interface lo has no IPv4 address (127.0.0.1: other hosts cannot reach it)
without address | 4 | iface=eth4 | error: interface eth4 has no IPv4 address
without address in one family | d | iface=eth2 | error: interface eth2 has no IPv6 address
MTU 0 | 4 | iface=zero | error: interface zero has MTU 0; set one with: ip link set zero mtu 1500
the tunnel by name | 4 | iface=flannel.1 | error: flannel.1 is the tunnel itself
the tunnel by address | 4 | iface=10.244.1.0 | error: flannel.1 is the tunnel itself
pods' bridge, said outright | 4 | iface=docker0 | docker0 172.17.0.1 172.17.0.1
down, said outright | 4 | iface=off | off 198.18.1.5 198.18.1.5
a deprecated address, said outright | 4 | iface=198.51.100.9 | eth3 198.51.100.9 198.51.100.9
"#,
    );
}

#[test]
fn among_the_addresses_of_an_interface() {
    check(
        r#"
permanent before dynamic, deprecated never | 4 | iface=eth3 | eth3 198.51.100.7 198.51.100.7
permanent and temporary before dynamic | 6 | iface=eth3 | eth3 2001:db8:3::9 2001:db8:3::9
global before link-local, whatever the order | 6 | iface=eth0 | eth0 2001:db8:2::15 2001:db8:2::15
dynamic is enough | 4 | iface=eth6 | eth6 198.18.3.1 198.18.3.1
unique local addresses count as global | 6 | iface=eth8 | eth8 fd00:8::9 fd00:8::9
none but deprecated and duplicate | 4 | iface=eth5 | error: interface eth5 has no IPv4 address (198.18.2.4: deprecated, its preferred lifetime is over, 198.18.2.5: another host has it too
the kernel lists the newest v6 address first | 6 | iface=eth6 | eth6 2001:db8:6::2 2001:db8:6::2
of equals the one in use stays | 6 | iface=eth6 held=2001:db8:6::1 | eth6 2001:db8:6::1 2001:db8:6::1
in use in v4 | 4 | iface=eth1 held=192.0.2.11 | eth1 192.0.2.11 192.0.2.11
in use is no merit against a better one | 4 | iface=eth3 held=198.51.100.8 | eth3 198.51.100.7 198.51.100.7
in use is no merit once deprecated | 4 | iface=eth3 held=198.51.100.9 | eth3 198.51.100.7 198.51.100.7
in use is no merit against a selector | 4 | iface=192.0.2.10 held=192.0.2.11 | eth1 192.0.2.10 192.0.2.10
"#,
    );
}

#[test]
fn by_expression() {
    check(
        r#"
on addresses | 4 | regex=192\.0\.2\.11 | eth1 192.0.2.11 192.0.2.11
on addresses, the best that matches | 4 | regex=^198\.51 | eth3 198.51.100.7 198.51.100.7
on v6 addresses | 6 | regex=^2001:db8:: | eth1 2001:db8::10 2001:db8::10
on names | 4 | regex=^eth1$ | eth1 192.0.2.10 192.0.2.10
unanchored | 4 | regex=th[13] | eth1 192.0.2.10 192.0.2.10
addresses before names | 4 | regex=eth0|192\.0\.2\.1. | eth1 192.0.2.10 192.0.2.10
both families of one interface | d | regex=^(192\.0|2001:db8::) | eth1 192.0.2.10,2001:db8::10 192.0.2.10,2001:db8::10
families on two interfaces (F-67) | d | regex=^(10\.0|2001:db8::) | error: no address and no name
an address and the name of another (F-67) | d | regex=^(10\.0|eth1$) | eth1 192.0.2.10,2001:db8::10 192.0.2.10,2001:db8::10
not an expression | 4 | regex=[ | error: is not a regular expression
RE2's classes of Unicode | 4 | regex=\p{L} | error: ours know no \p{…}
RE2's quotes | 4 | regex=\Q192.0\E | error: ours know no \p{…}, \Q…\E
POSIX classes work | 4 | regex=^eth[[:digit:]]$ | eth0 10.0.2.15 10.0.2.15
ignoring case works | 4 | regex=(?i)^ETH1$ | eth1 192.0.2.10 192.0.2.10
loopback never matches | 4 | regex=127 | error: no address and no name
addresses of pods never match | 4 | regex=^10\.244 | error: no address and no name
bridges of pods never match | 4 | regex=^docker | error: docker0: its name matches, but only pods or containers
docker0 does not hide what comes after it | 4 | regex=^(172|198\.18\.0) | br0 198.18.0.5 198.18.0.5
deprecated addresses never match | 4 | regex=^198\.18\.2 | error: no address and no name
after every --iface | 4 | iface=nope regex=^eth3$ | eth3 198.51.100.7 198.51.100.7
before --iface-can-reach | 4 | regex=^eth1$ reach=2 | eth1 192.0.2.10 192.0.2.10
the second expression fits | 4 | regex=nope regex=^eth1$ | eth1 192.0.2.10 192.0.2.10
names without address | 6 | regex=^eth[24]$ | error: has no IPv6 address
the first name with an address | 6 | regex=^eth[412]$ | eth1 2001:db8::10 2001:db8::10
"#,
    );
}

#[test]
fn by_reachability() {
    check(
        r#"
with a source | 4 | reach=5,198.51.100.8 | eth3 198.51.100.8 198.51.100.8
without a source | 4 | reach=3 | eth1 192.0.2.10 192.0.2.10
v6 with a source | 6 | reach=3,2001:db8::10 | eth1 2001:db8::10 2001:db8::10
v6, the source and not the best address (F-69) | 6 | reach=5,2001:db8:3::8 | eth3 2001:db8:3::8 2001:db8:3::8
a source of the other family | 6 | reach=5,198.51.100.8 | eth3 2001:db8:3::9 2001:db8:3::9
v6 without a source | 6 | reach=3 | eth1 2001:db8::10 2001:db8::10
dual stack | d | reach=3,192.0.2.11 | eth1 192.0.2.11,2001:db8::10 192.0.2.11,2001:db8::10
dual stack by a v6 source | d | reach=3,2001:db8::10 | eth1 192.0.2.10,2001:db8::10 192.0.2.10,2001:db8::10
no route | 4 | reach=x | error: no route to it
not an address | 4 | target=gateway | error: --iface-can-reach=gateway: it is not an address
on the host that has the address | 4 | target=192.0.2.11 reach=1,192.0.2.11 | eth1 192.0.2.11 192.0.2.11
through the tunnel | 4 | target=10.244.2.1 reach=11,10.244.1.0 | error: through flannel.1, and it is a tunnel
through docker0 | 4 | target=172.17.0.2 reach=9,172.17.0.1 | error: through docker0, and only pods
an interface that has just gone | 4 | reach=99 | error: unknown interface
after a name that fits nothing | 4 | iface=nope reach=3,192.0.2.10 | eth1 192.0.2.10 192.0.2.10
"#,
    );
}

#[test]
fn advertised() {
    check(
        r#"
a local address selects | 4 | ip=192.0.2.11 | eth1 192.0.2.11 192.0.2.11
a local v6 address selects | 6 | ip6=2001:db8::10 | eth1 2001:db8::10 2001:db8::10
both select | d | ip=192.0.2.11 ip6=2001:db8::10 | eth1 192.0.2.11,2001:db8::10 192.0.2.11,2001:db8::10
v6 alone selects in dual stack | d | ip6=2001:db8::10 | eth1 192.0.2.10,2001:db8::10 192.0.2.10,2001:db8::10
behind NAT and no interface named | 4 | ip=203.0.113.1 | error: an address behind NAT needs --iface too
behind NAT | 4 | ip=203.0.113.1 iface=eth1 | eth1 192.0.2.10 203.0.113.1
behind NAT in both | d | ip=203.0.113.1 ip6=2001:db8:ffff::1 iface=eth1 | eth1 192.0.2.10,2001:db8::10 203.0.113.1,2001:db8:ffff::1
behind NAT in one | d | ip=203.0.113.1 iface=eth1 | eth1 192.0.2.10,2001:db8::10 203.0.113.1,2001:db8::10
another local address than the interface's | 4 | ip=10.0.2.15 iface=eth1 | eth1 192.0.2.10 10.0.2.15
a family that is off is not looked at | 6 | ip=203.0.113.1 | eth0 2001:db8:2::15 2001:db8:2::15
not an address | 4 | ip=nonsense iface=eth1 | error: --public-ip="nonsense" is not an IPv4 address
a name is not an address | 4 | ip=eth1 | error: --public-ip="eth1" is not an IPv4 address
of the other family | 4 | ip=2001:db8::10 iface=eth1 | error: is not an IPv4 address
v4 where v6 is due | 6 | ip6=192.0.2.10 | error: --public-ipv6="192.0.2.10" is not an IPv6 address
the registry goes before the flag | 4 | registry=192.0.2.11 ip=10.0.2.15 | eth1 192.0.2.11 192.0.2.11
the registry's v6 | d | registry=192.0.2.11 registry6=2001:db8::10 | eth1 192.0.2.11,2001:db8::10 192.0.2.11,2001:db8::10
the registry's and an interface | 4 | registry=203.0.113.1 iface=eth1 | eth1 192.0.2.10 203.0.113.1
the registry's behind NAT alone | 4 | registry=203.0.113.1 | error: 203.0.113.1 set for this node in the registry: no interface has this address
the registry makes a bad flag good | 4 | registry=192.0.2.11 ip=nonsense | eth1 192.0.2.11 192.0.2.11
"#,
    );
}

/// The host of the tutorial: the default route leads to the outside, the hosts' own network is elsewhere.
const TUTORIAL: &str = "lo 1 65536 127.0.0.1/8
enp2s0f0 2 1500 192.168.0.1/24
enp125s0f3 3 1500 1.1.1.198/25
docker0 4 1500 172.17.0.1/16";

#[test]
fn who_has_two_addresses_sees_what_happened_and_what_to_do() {
    let choice = case("4", TUTORIAL, "default=3,x").choose().expect("the default route's");
    assert_eq!(text(&choice), "enp125s0f3 1.1.1.198 1.1.1.198");
    assert_eq!(
        lines(&choice.why),
        [
            "IPv4 default route: taken: the first, through enp125s0f3",
            "enp2s0f0: passed over: no selector names it, and the default route does not lead through it first",
            "1.1.1.198 of enp125s0f3: taken: its only IPv4 address",
        ]
    );
    assert_eq!(choice.why.otherwise, ["to use enp2s0f0 (192.168.0.1) instead: --iface=enp2s0f0"]);
}

/// The tutorial's `--iface-regex=[enp0s8|enp0s9]` is a set of characters.
#[test]
fn an_expression_that_is_a_set_by_mistake_is_explained() {
    let choice =
        case("4", TUTORIAL, "default=3,x regex=[enp2s0f0|enp2s0f1]").choose().expect("it fits a lot");
    assert_eq!(text(&choice), "enp2s0f0 192.168.0.1 192.168.0.1");
    assert_eq!(
        choice.why.otherwise,
        [
            "--iface-regex=[enp2s0f0|enp2s0f1] is a set of single characters and fits whatever contains one of them; \
          for one word or the other write --iface-regex='enp2s0f0|enp2s0f1'"
        ]
    );
}

#[test]
fn what_was_passed_over_says_why() {
    let choice = case("4", HOST, "iface=nope iface=eth3 ip=203.0.113.1").choose().expect("eth3 fits");
    assert_eq!(
        lines(&choice.why),
        [
            "--iface=nope: passed over: there is no such interface",
            "--iface=eth3: taken: it leads to eth3",
            "198.51.100.7 of eth3: taken: global, permanent, the best of its addresses",
            "198.51.100.9 of eth3: passed over: deprecated, its preferred lifetime is over",
            "198.51.100.8 of eth3: passed over: global, dynamic, and 198.51.100.7 is global, permanent",
            "--public-ip=203.0.113.1: taken: advertised to other hosts in place of 198.51.100.7, which stays this \
             host's own",
        ]
    );
    assert_eq!(choice.why.otherwise, ["to use 198.51.100.8 instead of 198.51.100.7: --iface=198.51.100.8"]);
    let choice = case("d", HOST, "regex=^192\\.0\\.2\\.1 regex=eth1").choose().expect("eth1 fits");
    assert_eq!(
        lines(&choice.why)[..4],
        [
            "--iface-regex=^192\\.0\\.2\\.1: passed over: no address and no name of an interface matches",
            "eth0: passed over: no address of it matches",
            "eth1: passed over: 192.0.2.10 matches, but none of its IPv6 addresses, and both must",
            "eth3: passed over: no address of it matches",
        ]
    );
    let choice = case("4", HOST, "iface=off").choose().expect("off fits");
    assert_eq!(choice.why.otherwise, ["off is down; bring it up with: ip link set off up"]);
}

#[test]
fn a_refusal_shows_what_was_looked_at() {
    let refusal = case("4", TUTORIAL, "iface=eth9 regex=^10\\.").choose().expect_err("nothing fits");
    assert_eq!(
        refusal.message,
        "find the interface for traffic between hosts: --iface=eth9: there is no such interface; --iface-regex=^10\\.: \
         no address and no name of an interface matches; this host has enp2s0f0 (192.168.0.1), enp125s0f3 \
         (1.1.1.198), docker0 (172.17.0.1), lo (no address)"
    );
    assert_eq!(
        lines(&refusal.why),
        [
            "--iface=eth9: passed over: there is no such interface",
            "--iface-regex=^10\\.: passed over: no address and no name of an interface matches",
            "enp2s0f0: passed over: no address of it matches",
            "enp125s0f3: passed over: no address of it matches",
            "docker0: passed over: no address of it matches",
        ]
    );
}

#[test]
fn a_host_with_hundreds_of_pods_is_not_listed_whole() {
    let pods: String =
        (20..320).map(|n| format!("\nveth{n} {n} 1450 169.254.{}.{}/32", n / 250, n % 250)).collect();
    let host = format!("{TUTORIAL}{pods}");
    let refusal = case("4", &host, "iface=eth9").choose().expect_err("nothing fits");
    assert!(refusal.message.ends_with("292 more") && refusal.message.len() < 600, "{}", refusal.message);
    let choice = case("4", &host, "default=3,x").choose().expect("the default route's");
    assert!(choice.why.steps.len() < 20, "{}", choice.why.steps.len());
}

/// What happens to a choice when the host changes: the host now, flags now, what is chosen then.
#[test]
fn a_choice_is_followed_and_kept_while_it_works() {
    const BEFORE: &str = "eth0 2 1500 192.0.2.10/24 2001:db8::10/64
eth1 3 1500 198.51.100.1/24";
    for (name, now, flags, want) in [
        ("nothing changes", BEFORE, "", "eth0 192.0.2.10 192.0.2.10 1500"),
        ("the MTU", "eth0 2 1400 192.0.2.10/24", "", "eth0 192.0.2.10 192.0.2.10 1400"),
        ("another address", "eth0 2 1500 192.0.2.20/24", "", "eth0 192.0.2.20 192.0.2.20 1500"),
        ("another index", "eth0 9 1500 192.0.2.10/24", "default=9,x", "eth0 192.0.2.10 192.0.2.10 1500"),
        ("another name", "en0 2 1500 192.0.2.10/24", "", "en0 192.0.2.10 192.0.2.10 1500"),
        ("the default route moves", BEFORE, "default=3,x", "eth1 198.51.100.1 198.51.100.1 1500"),
        ("the default route is gone", BEFORE, "default=x,x", "kept eth0 192.0.2.10 192.0.2.10 1500"),
        (
            "and the MTU changes",
            "eth0 2 1300 192.0.2.10/24",
            "default=x,x",
            "kept eth0 192.0.2.10 192.0.2.10 1300",
        ),
        ("deprecated", "eth0 2 1500 192.0.2.10/24!d", "", "kept eth0 192.0.2.10 192.0.2.10 1500"),
        (
            "deprecated beside another",
            "eth0 2 1500 192.0.2.10/24!d 192.0.2.11/24",
            "",
            "eth0 192.0.2.11 192.0.2.11 1500",
        ),
        ("the address is gone", "eth0 2 1500", "", "error: eth0, in use until now, has lost 192.0.2.10"),
        (
            "the interface is gone",
            "eth1 3 1500 198.51.100.1/24",
            "default=x,x",
            "error: eth0, in use until now, is gone",
        ),
        ("down", "eth0 2 1500- 192.0.2.10/24", "default=x,x", "error: eth0, in use until now, is down"),
    ] {
        let last = case("4", BEFORE, "").choose().expect("eth0");
        let case = case("4", now, flags);
        let got = match follow(&case.selectors, &case.situation, Some(&last)) {
            Ok(choice) => {
                let kept = if choice.kept.is_some() { "kept " } else { "" };
                format!("{kept}{} {}", text(&choice), choice.uplink.mtu)
            }
            Err(refusal) => format!("error: {}", refusal.message),
        };
        match want.strip_prefix("error: ") {
            Some(part) => assert!(got.starts_with("error: ") && got.contains(part), "{name}: {got}"),
            None => assert_eq!(got, want, "{name}"),
        }
    }
}
