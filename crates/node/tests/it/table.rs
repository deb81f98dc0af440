//! Every backend in every stack through everything that happens to nodes. Two hosts stay, a third comes,
//! changes and goes; pings between pods tell what it costs, foreign witnesses what it leaves.
//!
//! A backend is a line in `table!`, an event a line in [`EVENTS`].
//!
//! Who makes the ways between pods differs ([`Ways`]): with extension it is commands, which are run at a start, for a
//! peer that is new or changed, and after they failed, so what is deleted by hand is back when the agent is started
//! again; with alloc it is somebody else, here the test, and what is promised is that nothing of ours is in it.
//!
//! udp, ipip and ipsec carry IPv4 only, as flannel's do; [`REFUSED`] says how the rest is answered. tencent-vpc is not
//! in the table: its routes are a cloud's, and its events are in `tencent`.

use serde_json::Value;

use crate::bad_input::put_unchecked;
use crate::faults::{data_path, difference, picture, try_sh};
use crate::machine::{Machine, child_of};
use crate::traffic::{Pings, Pod};
use crate::world::{Agent, Host, World, has, until};

/// Keys of a network configuration, and of `subnet.env`.
type Stack = (&'static str, &'static [&'static str]);

const IPV4: Stack = (r#""Network":"10.244.0.0/16""#, &["FLANNEL_SUBNET"]);
const IPV6: Stack =
    (r#""EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:10::/48""#, &["FLANNEL_IPV6_SUBNET"]);
const DUAL: Stack = (
    r#""Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10::/48""#,
    &["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"],
);

/// Nothing that every kernel has.
const NOTHING: &str = "";
const IPIP: &str = "ipip local 192.0.2.11";
/// In the kernel or in user space: every kernel can, and the guest's does it itself.
const EITHER: &str = "wireguard in the kernel or in user space";
/// ESP, and a charon for each host.
const ESP: &str = "ESP";

pub const EXTENSION: &str = r#""Type":"extension",
    "SubnetAddCommand":"case $SUBNET in 0.0.0.0/0) ;; *) ip route replace $SUBNET via $PUBLIC_IP proto static ;; esac; case $IPV6SUBNET in ::/0) ;; *) ip -6 route replace $IPV6SUBNET via $PUBLIC_IPV6 proto static ;; esac",
    "SubnetRemoveCommand":"case $SUBNET in 0.0.0.0/0) ;; *) ip route del $SUBNET proto static ;; esac; case $IPV6SUBNET in ::/0) ;; *) ip -6 route del $IPV6SUBNET proto static ;; esac""#;
pub const IPSEC: &str = r#""Type":"ipsec","PSK":"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef""#;

macro_rules! table {
    ($($way:ident: $backend:expr, needs $needs:expr, $($test:ident: $stack:ident)+;)*) => {$(
        mod $way {
            use super::*;

            $(#[test]
            fn $test() {
                let name = concat!(stringify!($way), "::", stringify!($test));
                let there = match $needs {
                    NOTHING | EITHER => true,
                    ESP => crate::ipsec::available(name),
                    device => has(device, name),
                };
                if there {
                    // Programs of iptables take longer in the guest than the agent lets them.
                    let rules = if $needs == NOTHING { "" } else { r#""EnableNFTables":true,"# };
                    through_everything(name, $backend, rules, $stack);
                }
            })+
        }
    )*};
}

table! {
    vxlan: r#""Type":"vxlan""#, needs NOTHING, ipv4: IPV4 ipv6: IPV6 dual: DUAL;
    vxlan_checked: r#""Type":"vxlan","CheckSources":true"#, needs NOTHING, dual: DUAL;
    vxlan_direct: r#""Type":"vxlan","DirectRouting":true"#, needs NOTHING, ipv4: IPV4 ipv6: IPV6 dual: DUAL;
    host_gw: r#""Type":"host-gw""#, needs NOTHING, ipv4: IPV4 ipv6: IPV6 dual: DUAL;
    udp: r#""Type":"udp""#, needs NOTHING, ipv4: IPV4;
    wireguard: r#""Type":"wireguard""#, needs EITHER, ipv4: IPV4 ipv6: IPV6 dual: DUAL;
    ipip: r#""Type":"ipip""#, needs IPIP, ipv4: IPV4;
    ipip_direct: r#""Type":"ipip","DirectRouting":true"#, needs IPIP, ipv4: IPV4;
    ipsec: IPSEC, needs ESP, ipv4: IPV4;
    extension: EXTENSION, needs NOTHING, ipv4: IPV4 ipv6: IPV6 dual: DUAL;
    alloc: r#""Type":"alloc""#, needs NOTHING, ipv4: IPV4 ipv6: IPV6 dual: DUAL;
}

/// What flannel does not define either, and what is said to it.
const REFUSED: &[(&str, &str)] = &[
    (r#""Type":"udp""#, "the backend \"udp\""),
    (r#""Type":"ipip""#, "the backend \"ipip\""),
    (IPSEC, "the backend \"ipsec\""),
    (r#""Type":"tencent-vpc","AccessKeyID":"AKIDz","AccessKeySecret":"s""#, "the backend \"tencent-vpc\""),
];

/// Who makes the ways between pods.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ways {
    /// Ours, in the kernel.
    Agent,
    /// Ours, with a charon on each host.
    Charon,
    /// Commands, whose routes are static.
    Commands,
    /// Somebody else, with static routes.
    Others,
}

impl Ways {
    fn of(backend: &str) -> Ways {
        match backend.split('"').nth(3) {
            Some("ipsec") => Ways::Charon,
            Some("extension") => Ways::Commands,
            Some("alloc") => Ways::Others,
            _ => Ways::Agent,
        }
    }
}

/// What pods of the two hosts that stay are promised.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Promise {
    /// No packet is lost.
    NothingLost,
    /// Traffic is back.
    BackSoon,
}

/// What the two hosts shall look like afterwards.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Left {
    AsBefore,
    AsWithoutTheThird,
    /// Only the third is other than it was.
    Changed,
}

struct Event {
    name: &'static str,
    happens: fn(&mut Scene),
    promise: Promise,
    left: Left,
}

const EVENTS: &[Event] = {
    use Left::{AsBefore, AsWithoutTheThird, Changed};
    use Promise::{BackSoon, NothingLost};
    const fn event(name: &'static str, happens: fn(&mut Scene), promise: Promise, left: Left) -> Event {
        Event { name, happens, promise, left }
    }
    &[
        event("a node joins", join, NothingLost, Changed),
        event("an agent is killed and comes again", killed, NothingLost, AsBefore),
        event("an agent ends and comes again", ended, NothingLost, AsBefore),
        event("routes are deleted", routes_deleted, BackSoon, AsBefore),
        event("devices are deleted", devices_deleted, BackSoon, AsBefore),
        event("a peer's address changes", address_changed, NothingLost, Changed),
        event("a peer's hardware addresses change", hardware_addresses_changed, NothingLost, Changed),
        event("a node leaves", leave, NothingLost, AsWithoutTheThird),
    ]
};

struct Scene {
    keys: &'static [&'static str],
    ways: Ways,
    pods: Vec<Pod>,
    /// Public addresses of the third, which change.
    third: [String; 2],
    /// These end in this order.
    agents: Vec<Option<Agent>>,
    /// Of hosts that have a charon.
    machines: Vec<Machine>,
    world: World,
}

fn through_everything(name: &str, backend: &str, rules: &str, (network, keys): Stack) {
    let world = World::with_config(3, &format!(r#"{{{rules}{network},"Backend":{{{backend}}}}}"#));
    let ways = Ways::of(backend);
    let mut machines = Vec::new();
    if ways == Ways::Charon {
        for host in &world.hosts {
            let Some(machine) = Machine::on(host, name) else { return };
            machines.push(machine);
        }
    }
    let third = [world.hosts[2].public(), world.hosts[2].public6()];
    let agents = vec![None, None, None];
    let mut scene = Scene { keys, ways, pods: Vec::new(), third, agents, machines, world };
    for n in 0..2 {
        scene.start(n);
        scene.pods.push(Pod::on(&scene.world.hosts[n], keys));
    }
    scene.others_see_to_it();
    scene.reaches(0, 1);
    scene.reaches(1, 0);
    let alone = scene.pictures();
    for event in EVENTS {
        let before = scene.pictures();
        let pings: Vec<Pings> = [(0, 1), (1, 0)]
            .into_iter()
            .flat_map(|(from, to)| scene.pods[to].addresses.iter().map(move |a| (from, *a)))
            .map(|(from, address)| Pings::start(&scene.pods[from], address))
            .collect();
        pings.iter().for_each(|pings| pings.more(5));
        (event.happens)(&mut scene);
        let left = if ways == Ways::Others { Left::AsBefore } else { event.left };
        let wanted = match left {
            Left::AsBefore => Some(&before),
            Left::AsWithoutTheThird => Some(&alone),
            Left::Changed => None,
        };
        if let Some(wanted) = wanted {
            until(&format!("{name}: {}: the kernel's state", event.name), || {
                let now = scene.pictures();
                if now == *wanted { Ok(()) } else { Err(difference(wanted, &now)) }
            });
        }
        for pings in pings {
            pings.more(10);
            let what = pings.what.clone();
            let (answered, lost) = pings.finish();
            println!(
                "table: {name}: {}: {} of {} lost, {what}",
                event.name,
                lost.len(),
                answered + lost.len()
            );
            if event.promise == Promise::NothingLost {
                assert_eq!(lost, [0; 0], "{name}: {}: lost, {what}", event.name);
            }
        }
    }
    if ways == Ways::Others {
        for host in &scene.world.hosts {
            assert_eq!(data_path(host), [""; 0], "{name}: nothing of ours on host {}", host.number);
        }
    }
    for agent in scene.agents.into_iter().flatten() {
        assert_eq!(agent.terminate(), 0);
    }
}

#[test]
fn a_stack_that_a_backend_does_not_carry_is_refused_by_name() {
    for (backend, named) in REFUSED {
        for (network, _) in [IPV6, DUAL] {
            let config = format!(r#"{{{network},"Backend":{{{backend}}}}}"#);
            let world = World::with_config(1, &format!(r#"{{{network},"Backend":{{"Type":"host-gw"}}}}"#));
            let host = &world.hosts[0];
            let said = format!("{named} carries IPv4 only, and EnableIPv6 is true");
            // Before it is in the store, and by an agent that finds it there.
            let file = host.dir.join("config");
            std::fs::write(&file, &config).unwrap();
            let output = host.loden(&["config", "put", &file.display().to_string()]).output().unwrap();
            let answer = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!output.status.success() && answer.contains(&said), "{config}: {answer}");
            put_unchecked(&world, &config);
            let mut agent = host.agent(&[]);
            agent.says(&said);
            assert!(agent.alive() && !host.subnet_file().exists(), "{config}");
        }
    }
}

impl Scene {
    fn host(&self, n: usize) -> &Host {
        &self.world.hosts[n]
    }

    /// Everything of ours on the hosts that stay.
    fn pictures(&self) -> Vec<String> {
        let hosts = self.world.hosts[..2].iter();
        hosts
            .flat_map(|host| {
                let (number, more) = (host.number, self.more_of(host));
                let lines = picture(host).into_iter().chain(more);
                lines.map(move |line| format!("host {number}: {line}"))
            })
            .collect()
    }

    /// What is ours of a host, besides devices, routes and rules.
    fn more_of(&self, host: &Host) -> Vec<String> {
        let commands: &[&str] = match self.ways {
            Ways::Agent | Ways::Others => &[],
            Ways::Commands => &["ip route show proto static", "ip -6 route show proto static"],
            Ways::Charon => &["ip -o xfrm policy"],
        };
        let mut lines: Vec<String> = Vec::new();
        for command in commands {
            let text = try_sh(host, command);
            let words = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
            // Policies of sockets are charon's own.
            lines.extend(words.filter(|line| !line.contains(" socket ")));
        }
        if let Some(machine) = self.machines.get(host.number - 1) {
            let listed = machine.output("swanctl", &["--list-conns"]).stdout;
            let listed = String::from_utf8_lossy(&listed).into_owned();
            let names = listed.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_digit()));
            lines.extend(names.map(|line| line.replace(':', " ")));
        }
        lines.sort();
        lines
    }

    /// Routes of somebody else for all that run, where the backend makes none.
    fn others_see_to_it(&self) {
        if self.ways != Ways::Others {
            return;
        }
        for (n, pod) in self.pods.iter().enumerate() {
            let to = self.host(n);
            let public = if n == 2 { self.third.clone() } else { [to.public(), to.public6()] };
            for (key, address) in self.keys.iter().zip(&pod.addresses) {
                let (family, public) =
                    if address.is_ipv4() { ("-4", &public[0]) } else { ("-6", &public[1]) };
                for from in (0..self.pods.len()).filter(|from| *from != n) {
                    let route = format!("{} via {public} proto static", to.subnet(key));
                    self.host(from).sh(&format!("ip {family} route replace {route}"));
                }
            }
        }
    }

    /// What is not ours to see, and so not ours to repair.
    fn helped(&mut self, n: usize) {
        match self.ways {
            Ways::Agent | Ways::Charon => {}
            Ways::Commands => {
                self.end(n);
                self.start(n);
            }
            Ways::Others => self.others_see_to_it(),
        }
    }

    /// A pod reaches all addresses of another.
    fn reaches(&self, from: usize, to: usize) {
        for address in &self.pods[to].addresses {
            let pings = Pings::start(&self.pods[from], *address);
            pings.more(3);
        }
    }

    fn start(&mut self, n: usize) {
        // Its earlier words are another agent's.
        let agent = agent_of(self.host(n), self.machines.get(n), &[]);
        agent.ready();
        self.agents[n] = Some(agent);
    }

    fn end(&mut self, n: usize) {
        assert_eq!(self.agents[n].take().unwrap().terminate(), 0);
    }

    fn third_is_reached(&self) {
        for n in 0..2 {
            self.reaches(n, 2);
            self.reaches(2, n);
        }
    }

    /// What none of the hosts that stay has in its state any more.
    fn forgotten(&self, words: &[String]) {
        until(&format!("no word of {words:?}"), || {
            let has = |line: &&String| words.iter().any(|word| line.contains(word.as_str()));
            let left: Vec<String> = self.pictures().iter().filter(has).cloned().collect();
            if left.is_empty() { Ok(()) } else { Err(left.join("\n")) }
        });
    }
}

/// An agent; one with a machine is among files and processes of its own, but for the subnet file.
pub fn agent_of(host: &Host, machine: Option<&Machine>, flags: &[&str]) -> Agent {
    let Some(machine) = machine else { return host.agent(flags) };
    let mut command = machine.command(env!("CARGO_BIN_EXE_loden"));
    command.arg("agent").arg(format!("--subnet-file={}", host.subnet_file().display()));
    command.args(flags).env("LODEN_STORE", host.store());
    Agent::by(command, &host.dir.join("log"), host.subnet_file(), |child| child_of(child.id()))
}

fn join(scene: &mut Scene) {
    scene.start(2);
    let pod = Pod::on(scene.host(2), scene.keys);
    scene.pods.push(pod);
    scene.others_see_to_it();
    scene.third_is_reached();
}

fn killed(scene: &mut Scene) {
    scene.agents[0].take().unwrap().kill();
    scene.start(0);
}

fn ended(scene: &mut Scene) {
    scene.end(0);
    scene.start(0);
}

/// Where there are none, the policies.
fn routes_deleted(scene: &mut Scene) {
    if scene.ways == Ways::Charon {
        scene.host(0).sh("ip xfrm policy flush");
    }
    let protocol = if [Ways::Agent, Ways::Charon].contains(&scene.ways) { "76" } else { "static" };
    for family in ["-4", "-6"] {
        for line in scene.host(0).sh(&format!("ip {family} route show proto {protocol}")).lines() {
            let route = line.trim_start_matches("blackhole ").split(' ').next().unwrap();
            let route =
                if line.starts_with("blackhole") { format!("blackhole {route}") } else { route.to_owned() };
            // What the agent put back in between is deleted once more.
            scene.host(0).sh(&format!("ip {family} route del {route} proto {protocol}"));
        }
    }
    scene.helped(0);
}

/// Devices of a tunnel; where there are none, the interface goes down and up, with the routes through it.
fn devices_deleted(scene: &mut Scene) {
    let host = scene.host(0);
    let devices = tunnels(host);
    for device in &devices {
        host.sh(&format!("ip link del {}", device["ifname"].as_str().unwrap()));
    }
    if devices.is_empty() {
        host.sh("sysctl -qw net.ipv6.conf.eth0.keep_addr_on_down=1");
        host.sh("ip link set eth0 down");
        host.sh("ip link set eth0 up");
        host.sh("ip route replace default via 192.0.2.1");
        host.sh("ip -6 route replace default via 2001:db8::1");
        scene.helped(0);
    }
}

/// Those that stay learn it while the third's agent goes on.
fn address_changed(scene: &mut Scene) {
    let host = scene.host(2);
    let old = [host.public(), host.public6()];
    let new = ["192.0.2.33", "2001:db8::33"];
    for (family, old, new, length) in [("-4", &old[0], new[0], 24), ("-6", &old[1], new[1], 64)] {
        host.sh(&format!("ip {family} addr del {old}/{length} dev eth0"));
        host.sh(&format!("ip {family} addr add {new}/{length} dev eth0"));
    }
    host.sh("ip route replace default via 192.0.2.1");
    host.sh("ip -6 route replace default via 2001:db8::1");
    // An agent that is ended before is another node to the store.
    until("the third's lease to tell", || {
        let connection = rusqlite::Connection::open(scene.world.dir.path().join("leases.db")).unwrap();
        let told =
            "SELECT count(*) FROM lease WHERE value LIKE '%192.0.2.33%' OR value LIKE '%2001:db8::33%'";
        let count: u32 = connection.query_row(told, [], |row| row.get(0)).unwrap();
        if count == 1 { Ok(()) } else { Err(format!("{count} leases with the new address")) }
    });
    scene.third = new.map(str::to_owned);
    scene.helped(2);
    scene.third_is_reached();
    scene.forgotten(&old.map(|address| format!("{address} ")));
}

/// As on a machine whose device was made anew while it was away.
fn hardware_addresses_changed(scene: &mut Scene) {
    let mut old = Vec::new();
    scene.end(2);
    for device in tunnels(scene.host(2)) {
        // Those of layer three have none.
        if device["link_type"] == "ether" {
            let name = device["ifname"].as_str().unwrap();
            old.push(device["address"].as_str().unwrap().to_owned());
            scene.host(2).sh(&format!("ip link set {name} address 02:00:00:00:99:{:02x}", name.len()));
        }
    }
    scene.start(2);
    scene.third_is_reached();
    scene.forgotten(&old);
}

fn leave(scene: &mut Scene) {
    scene.agents[2].take().unwrap().kill();
    scene.world.forget(scene.host(2));
}

/// The backend's devices.
fn tunnels(host: &Host) -> Vec<Value> {
    let links = host.json("ip -j link");
    let ours = |link: &&Value| link["ifname"].as_str().is_some_and(|name| name.starts_with("flannel"));
    links.as_array().unwrap().iter().filter(ours).cloned().collect()
}
