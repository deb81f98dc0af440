//! Several agents on one host, each with a registry, subnet file and network of its own (flannel.md 10.8):
//! none touches what is another's, whatever happens to one of them.

use std::process::Command;

use crate::faults::{difference, picture};
use crate::traffic::{Pings, Pod};
use crate::world::{Agent, Host, World, until};

const FLAGS: &[&str] = &["--ip-masq", "--iface=eth0"];

/// Two networks on two hosts: `hosts[network][host]`.
struct Networks {
    hosts: [[Host; 2]; 2],
    world: World,
}

const NETWORKS: [&str; 2] = ["10.244.0.0/16", "10.245.0.0/16"];

impl Networks {
    fn new(nftables: bool, backends: [&str; 2]) -> Networks {
        let world = World::new(2);
        let of = |name: &str| [world.hosts[0].instance(name), world.hosts[1].instance(name)];
        let hosts = [of("a"), of("b")];
        for ((network, backend), hosts) in NETWORKS.iter().zip(backends).zip(&hosts) {
            hosts[0].put_config(&format!(
                r#"{{"Network":"{network}","EnableNFTables":{nftables},"Backend":{{{backend}}}}}"#
            ));
        }
        Networks { hosts, world }
    }

    fn start(&self, network: usize, host: usize) -> Agent {
        self.hosts[network][host].agent(FLAGS)
    }

    /// Lines about a network that a foreign witness sees on the first host. Which of two agents has its rules
    /// under flannel's name may change.
    fn picture(&self, network: usize) -> Vec<String> {
        let prefix = NETWORKS[network].split('.').take(2).collect::<Vec<_>>().join(".");
        let named = |line: &String| line.starts_with("table ") || line.starts_with("comment ");
        let lines = picture(&self.world.hosts[0]).into_iter();
        lines.filter(|line| line.contains(&prefix) && !named(line)).collect()
    }

    fn traffic(&self, network: usize) {
        let [one, two] = &self.hosts[network];
        for (from, to) in [(one, two), (two, one)] {
            let address = to.subnet("FLANNEL_SUBNET").network();
            until(&format!("traffic in {}", NETWORKS[network]), || from.greet(to, address));
        }
    }
}

/// The tunnel's address, or one on the loopback where there is no device.
fn address(host: &Host) {
    let own = host.subnet("FLANNEL_SUBNET").network();
    if !host.sh("ip -o -4 addr").contains(&format!(" {own}/32 ")) {
        host.sh(&format!("ip addr add {own}/32 dev lo"));
    }
}

fn apart(nftables: bool, backends: [&str; 2]) {
    let networks = Networks::new(nftables, backends);
    // All at once, as after a reboot.
    let mut agents: Vec<[Agent; 2]> = [0, 1].map(|n| [0, 1].map(|host| networks.start(n, host))).into();
    agents.iter().flatten().for_each(Agent::ready);
    for network in [0, 1] {
        networks.hosts[network].iter().for_each(address);
        networks.traffic(network);
        let rules = networks.picture(network);
        let masquerades = rules.iter().filter(|line| line.to_lowercase().contains("masquerade")).count();
        assert_eq!(masquerades, 2, "{}: {rules:#?}", NETWORKS[network]);
    }
    let host = &networks.world.hosts[0];
    let far = networks.hosts[0][1].subnet("FLANNEL_SUBNET").network();
    let pod = Pod { netns: host.netns.try_clone().unwrap(), addresses: Vec::new() };
    let pings = Pings::start(&pod, far);
    pings.more(5);
    let first = networks.picture(0);
    let same = |what: &str| {
        until(&format!("the first network's state, {what}"), || {
            let now = networks.picture(0);
            if now == first { Ok(()) } else { Err(difference(&first, &now)) }
        });
    };
    let said = agents[0][0].log();

    // Another agent of the second network, and one more: each reads and sweeps as at a start.
    let [one, two] = agents.pop().unwrap();
    let second = networks.picture(1);
    one.kill();
    let again = networks.start(1, 0);
    again.ready();
    until("the second network's state", || {
        let now = networks.picture(1);
        if now == second { Ok(()) } else { Err(difference(&second, &now)) }
    });
    networks.traffic(1);
    pings.more(20);
    assert_eq!(networks.picture(0), first);
    assert_eq!(agents[0][0].log(), said, "the first has nothing to repair");

    // The second network goes from the host, and only it.
    assert_eq!(again.terminate(), 0);
    assert_eq!(networks.picture(1), second, "an end tears nothing down");
    let mut cleanup = Command::new(env!("CARGO_BIN_EXE_loden"));
    cleanup.args(["cleanup", "--network", NETWORKS[1]]);
    let output = host.netns.run(|| cleanup.output()).unwrap().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    host.try_sh(&format!("ip addr del {} dev lo", networks.hosts[1][0].subnet("FLANNEL_SUBNET").network()))
        .ok();
    assert_eq!(networks.picture(1), [""; 0], "{}", String::from_utf8_lossy(&output.stdout));
    same("after the second's cleanup");
    networks.traffic(0);
    pings.more(20);
    let (answered, lost) = pings.finish();
    assert_eq!(lost, [0; 0], "lost of {answered} in the first network");
    drop(two);
}

#[test]
fn two_networks_share_hosts_in_nftables_mode() {
    apart(true, [r#""Type":"vxlan","VNI":1"#, r#""Type":"vxlan","VNI":2,"CheckSources":true"#]);
}

#[test]
fn two_networks_share_hosts_in_iptables_mode() {
    apart(false, [r#""Type":"vxlan","VNI":1,"CheckSources":true"#, r#""Type":"vxlan","VNI":2"#]);
}

#[test]
fn two_networks_share_an_interface_for_their_routes() {
    apart(true, [r#""Type":"host-gw""#, r#""Type":"vxlan","DirectRouting":true,"VNI":2"#]);
}

/// So many peers that routes lead through nexthop objects, all of them on the interface both share.
#[test]
fn nexthop_objects_of_one_network_are_not_anothers_to_delete() {
    /// More than are laid plain.
    const PEERS: usize = 300;
    let networks = Networks::new(true, [r#""Type":"host-gw""#; 2]);
    for (name, network) in ["a", "b"].iter().zip([244, 245]) {
        let file = networks.world.dir.path().join(format!("{name}.db"));
        let leases = rusqlite::Connection::open(file).unwrap();
        for n in 0..PEERS {
            // One of a hundred addresses each, the same in both networks.
            let public = 100 + n % 100;
            let value =
                format!(r#"{{"PublicIP":"192.0.2.{public}","PublicIPv6":null,"BackendType":"host-gw"}}"#);
            // Smaller than the hosts' own: a network of /16 has no 300 of those.
            let key = format!("10.{network}.{}.{}-26", 180 + n / 4, n % 4 * 64);
            let insert = "INSERT INTO lease (key, value, expires) VALUES (?1, ?2, 4102444800)";
            leases.execute(insert, [&key, &value]).unwrap();
        }
    }
    let host = &networks.world.hosts[0];
    let count = |network: &str| {
        let routes = host.sh("ip route show proto 76");
        routes.lines().filter(|line| line.starts_with(network) && line.contains(" nhid ")).count()
    };
    let all = |network: &str, wanted: usize| {
        until(&format!("{wanted} routes of {network}"), || {
            let count = count(network);
            if count == wanted { Ok(()) } else { Err(count.to_string()) }
        });
    };
    let first = networks.start(0, 0);
    first.ready();
    all("10.244", PEERS);
    let second = networks.start(1, 0);
    second.ready();
    all("10.245", PEERS);
    assert_eq!(count("10.244"), PEERS);
    // Half of the second network's nodes go.
    let leases = rusqlite::Connection::open(networks.world.dir.path().join("b.db")).unwrap();
    let gone = "DELETE FROM lease WHERE CAST(substr(key, 8, 3) AS INTEGER) > 240";
    let gone = leases.execute(gone, []).unwrap();
    assert!(gone > 50, "{gone}");
    all("10.245", PEERS - gone);
    second.kill();
    let second = networks.start(1, 0);
    second.ready();
    assert_eq!(count("10.244"), PEERS);
    assert_eq!(second.terminate(), 0);
    let mut cleanup = Command::new(env!("CARGO_BIN_EXE_loden"));
    cleanup.args(["cleanup", "--network", NETWORKS[1]]);
    assert!(host.netns.run(|| cleanup.output()).unwrap().unwrap().status.success());
    assert_eq!(count("10.245"), 0);
    let repairs = first.count(" changes: ");
    assert_eq!((count("10.244"), repairs), (PEERS, 0), "nothing to repair: {}", first.log());
    let nexthops = host.sh("ip nexthop show proto 76").lines().count();
    assert_eq!(nexthops, PEERS, "each network has its own, and the second none any more");
}
