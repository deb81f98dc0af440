//! A node whose store is away when it boots goes on with what is on its disk, and with nothing that may be
//! another's by now.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use model::codec::last_good::LastGood;

use crate::troubles::etcdctl;
use crate::world::{Agent, Etcd, Host, World, has_etcd, sh, until};

const CONFIG: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10::/48","Backend":{"Type":"vxlan"}}"#;
const FLAGS: &[&str] = &["--etcd-endpoints=http://192.0.2.11:2379", "--healthz-port=2403", "--ip-masq"];
const PORT: u16 = 2403;
const AWAY: &str = "does not answer: this node runs on the state of ";

/// Hosts of which the first has etcd, and agents on the others that know each other and have saved it.
struct Cluster {
    world: World,
    etcd: Etcd,
    agents: Vec<Option<Agent>>,
}

impl Cluster {
    fn new(test: &str, nodes: usize) -> Option<Cluster> {
        if !has_etcd(test) {
            return None;
        }
        let world = World::new(1 + nodes);
        let etcd = Etcd::on(&world.hosts[0], "192.0.2.11", None);
        etcdctl(&world.hosts[0], &["put", "/coreos.com/network/config", CONFIG]);
        let agents: Vec<_> = world.hosts[1..].iter().map(|host| Some(host.agent_in(FLAGS, &[]))).collect();
        agents.iter().flatten().for_each(Agent::ready);
        for host in &world.hosts[1..] {
            until("the state to be saved", || match saved(host) {
                Some(state) if state.peers.len() == nodes => Ok(()),
                other => Err(format!("{other:?}")),
            });
        }
        Some(Cluster { world, etcd, agents })
    }

    fn host(&self, n: usize) -> &Host {
        &self.world.hosts[n]
    }

    /// The node loses all that a reboot costs; its agent is not started again.
    fn power_off(&mut self, n: usize) {
        self.agents[n - 1].take().unwrap().kill();
        let host = self.host(n);
        for device in ["flannel.1", "flannel-v6.1"] {
            host.sh(&format!("ip link del {device}"));
        }
        host.sh("nft flush ruleset");
        fs::remove_file(host.subnet_file()).unwrap();
        fs::remove_file(host.dir.join("log")).unwrap();
        assert_eq!(host.sh("ip route show proto 76"), "");
    }

    fn boot(&mut self, n: usize, env: &[(&str, &str)]) {
        self.agents[n - 1] = Some(self.host(n).agent_in(FLAGS, env));
    }

    fn etcd_is_back(&mut self) {
        self.etcd.start_again(&self.world.hosts[0]);
    }

    fn agent(&mut self, n: usize) -> &mut Agent {
        self.agents[n - 1].as_mut().unwrap()
    }
}

fn file(host: &Host) -> Option<PathBuf> {
    let mut files = fs::read_dir(host.state_dir()).ok()?.flatten().map(|entry| entry.path());
    files.find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("last-good.")))
}

fn saved(host: &Host) -> Option<LastGood> {
    Some(LastGood::decode(&fs::read(file(host)?).ok()?).unwrap())
}

fn alter(host: &Host, change: impl FnOnce(&mut LastGood)) {
    let mut state = saved(host).unwrap();
    change(&mut state);
    fs::write(file(host).unwrap(), state.encode()).unwrap();
}

fn readyz(host: &Host, status: u16) -> String {
    until(&format!("/readyz to be {status}"), || match host.http(PORT, "/readyz")? {
        (have, body) if have == status => Ok(body),
        other => Err(format!("{other:?}")),
    })
}

#[test]
fn nodes_that_boot_without_etcd_have_their_network_and_follow_it_when_it_is_back() {
    let Some(mut cluster) = Cluster::new("nodes_that_boot_without_etcd", 3) else { return };
    let subnets: Vec<_> = (1..4).map(|n| cluster.host(n).subnet("FLANNEL_SUBNET")).collect();
    let envs: Vec<_> = (1..4).map(|n| fs::read_to_string(cluster.host(n).subnet_file()).unwrap()).collect();
    let macs = |cluster: &Cluster| -> Vec<String> {
        let mac =
            |n| cluster.host(n).json("ip -j link show flannel.1")[0]["address"].as_str().unwrap().to_owned();
        (1..4).map(mac).collect()
    };
    let macs_before = macs(&cluster);
    cluster.etcd.stop();
    (1..4).for_each(|n| cluster.power_off(n));
    let start = Instant::now();
    (1..4).for_each(|n| cluster.boot(n, &[]));
    for n in 1..4 {
        let host = cluster.host(n);
        assert_eq!(readyz(host, 200), "flanneld is ready");
        assert_eq!(fs::read_to_string(host.subnet_file()).unwrap(), envs[n - 1], "pods can start");
    }
    println!("three nodes ready without etcd {} ms after their start", start.elapsed().as_millis());
    for (from, to) in [(1, 2), (2, 3), (3, 1)] {
        let address = subnets[to - 1].network();
        until("traffic between the nodes", || cluster.host(from).greet(cluster.host(to), address));
    }
    assert_eq!(macs(&cluster), macs_before, "peers that did not boot know these addresses");
    for n in 1..4 {
        cluster.agent(n).says(AWAY);
        assert_eq!(cluster.agent(n).count(AWAY), 1, "said once");
        let host = cluster.host(n);
        until("the file of troubles", || {
            if host.troubles().contains(AWAY) { Ok(()) } else { Err(host.troubles()) }
        });
        let rules = host.sh("nft list ruleset");
        assert!(rules.contains("masquerade"), "{rules}");
    }
    // Back, but one node is gone for good.
    cluster.agents[2].take().unwrap().kill();
    cluster.etcd_is_back();
    let key = format!("/coreos.com/network/subnets/{}-24", subnets[2].network());
    let keys = etcdctl(cluster.host(0), &["get", "--prefix", "--keys-only", &key]);
    etcdctl(cluster.host(0), &["del", keys.trim()]);
    for n in 1..3 {
        cluster.agent(n).says("take everything from the store: works again");
        let host = cluster.host(n);
        until("the route of the node that is gone to go", || {
            let routes = host.sh("ip route show proto 76");
            if routes.contains(&subnets[2].to_string()) { Err(routes) } else { Ok(()) }
        });
        assert_eq!(host.subnet("FLANNEL_SUBNET"), subnets[n - 1], "and the own subnet stays");
        until("the troubles to be over", || {
            if host.troubles().is_empty() { Ok(()) } else { Err(host.troubles()) }
        });
        readyz(host, 200);
    }
    cluster.host(1).greet(cluster.host(2), subnets[1].network()).expect("the rest was not disturbed");
}

/// As with a service address nobody answers for: not a refused connection, but silence.
#[test]
fn a_store_that_says_nothing_is_waited_for_a_second() {
    let Some(mut cluster) = Cluster::new("a_store_that_says_nothing", 1) else { return };
    cluster.power_off(1);
    for command in ["nft add table ip cut", "nft add chain ip cut in { type filter hook input priority 0 ; }"]
    {
        cluster.host(0).sh(command);
    }
    cluster.host(0).sh("nft add rule ip cut in tcp dport 2379 drop");
    let start = Instant::now();
    cluster.boot(1, &[]);
    readyz(cluster.host(1), 200);
    let took = start.elapsed();
    println!("ready {} ms after the start without an answer", took.as_millis());
    assert!(took > Duration::from_secs(1), "not before the store had its time: {took:?}");
    cluster.host(0).sh("nft delete table ip cut");
    cluster.agent(1).says("take everything from the store: works again");
}

#[test]
fn a_state_that_is_not_good_is_named_and_not_used() {
    let Some(mut cluster) = Cluster::new("a_state_that_is_not_good", 1) else { return };
    let good = fs::read(file(cluster.host(1)).unwrap()).unwrap();
    cluster.etcd.stop();
    cluster.power_off(1);
    let path = file(cluster.host(1)).unwrap();
    let mut damaged = good.clone();
    *damaged.last_mut().unwrap() ^= 1;
    type Env = &'static [(&'static str, &'static str)];
    let cases: &[(&[u8], Env, &str)] = &[
        (&damaged, &[], "is not used: it is damaged: its checksum is wrong"),
        (&good[..good.len() / 2], &[], "is not used: it is damaged: "),
        (b"loden last good state, version 9, checksum 0\n", &[], "is not used: it is not of version 1"),
        (b"", &[], "is not used: it is not of version 1"),
        (&good, &[("NODE_NAME", "another")], "is not used: it is of node "),
        (&good, &[("FLANNELD_ETCD_PREFIX", "/elsewhere")], "is not used: it comes from etcd at "),
    ];
    for (content, env, sentence) in cases {
        fs::write(&path, content).unwrap();
        cluster.boot(1, env);
        cluster.agent(1).says(sentence);
        let host = cluster.host(1);
        let body = readyz(host, 503);
        assert!(body.starts_with("flanneld is not ready yet\nfetch network config: "), "{body}");
        until("the sentence in /readyz", || {
            let (_, body) = host.http(PORT, "/readyz")?;
            if body.contains(sentence) { Ok(()) } else { Err(body) }
        });
        assert!(!host.subnet_file().exists());
        let agent = cluster.agent(1);
        assert!(agent.alive());
        assert_eq!(agent.count(sentence), 1, "{}", agent.log());
        cluster.agents[0].take().unwrap().kill();
        fs::remove_file(cluster.host(1).dir.join("log")).unwrap();
    }
    cluster.boot(1, &[]);
    fs::remove_file(&path).unwrap();
    cluster.etcd_is_back();
    cluster.agent(1).ready();
}

#[test]
fn a_lease_that_may_be_anothers_is_not_used() {
    let Some(mut cluster) = Cluster::new("a_lease_that_may_be_anothers", 1) else { return };
    let subnet = cluster.host(1).subnet("FLANNEL_SUBNET");
    let kept = fs::read(cluster.host(1).subnet_file()).unwrap();
    cluster.etcd.stop();
    cluster.power_off(1);
    // The host did not boot, only the agent was away: the subnet file is still there.
    fs::write(cluster.host(1).subnet_file(), kept).unwrap();
    let over = format!("the lease of {subnet} ");
    alter(cluster.host(1), |state| {
        state.left = Some(100);
        state.saved.uptime = state.saved.uptime.saturating_sub(100);
        state.saved.unix += 1_000_000;
    });
    cluster.boot(1, &[]);
    cluster.agent(1).says(" ran out while etcd at ");
    assert!(cluster.agent(1).log().contains(&over), "{}", cluster.agent(1).log());
    let host = cluster.host(1);
    until("subnet.env to be gone", || {
        if host.subnet_file().exists() { Err("it is there") } else { Ok(()) }.map_err(str::to_owned)
    });
    readyz(host, 503);
    assert_eq!(cluster.agent(1).count(" ran out while etcd at "), 1);
    cluster.agents[0].take().unwrap().kill();

    // A clock that starts in the past, as on machines without one, tells nothing about the lease.
    alter(cluster.host(1), |state| {
        state.left = Some(86_000);
        state.saved.boot = "another boot".to_owned();
        state.saved.unix += 1_000_000;
    });
    cluster.boot(1, &[]);
    cluster.agent(1).says("the clock of this machine is behind ");
    readyz(cluster.host(1), 503);
    cluster.agents[0].take().unwrap().kill();

    // It ends while it is used.
    alter(cluster.host(1), |state| {
        state.left = Some(4);
        state.saved.boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().to_owned();
        let uptime = fs::read_to_string("/proc/uptime").unwrap();
        state.saved.uptime = uptime.split('.').next().unwrap().parse().unwrap();
    });
    fs::remove_file(cluster.host(1).dir.join("log")).unwrap();
    cluster.boot(1, &[]);
    readyz(cluster.host(1), 200);
    assert_eq!(cluster.host(1).subnet("FLANNEL_SUBNET"), subnet);
    cluster.agent(1).says(" ran out while etcd at ");
    readyz(cluster.host(1), 503);
    assert!(!cluster.host(1).subnet_file().exists());
    cluster.etcd_is_back();
    readyz(cluster.host(1), 200);
    assert_eq!(cluster.host(1).subnet("FLANNEL_SUBNET"), subnet, "nobody has taken it");
}

#[test]
fn what_the_store_refuses_is_taken_back() {
    let Some(mut cluster) = Cluster::new("what_the_store_refuses", 1) else { return };
    let subnet = cluster.host(1).subnet("FLANNEL_SUBNET");
    cluster.etcd.stop();
    cluster.power_off(1);
    cluster.boot(1, &[]);
    readyz(cluster.host(1), 200);
    // While this node runs on its disk, the subnet and all others are given to somebody else.
    let public = cluster.host(1).public();
    let host = cluster.host(0);
    host.sh("nft add table ip cut");
    host.sh("nft add chain ip cut in { type filter hook input priority 0 ; }");
    host.sh("nft add rule ip cut in ip saddr 192.0.2.0/24 ip saddr != 192.0.2.11 tcp dport 2379 drop");
    cluster.etcd_is_back();
    let prefix = "/coreos.com/network";
    let listed = etcdctl(cluster.host(0), &["get", "--prefix", "--keys-only", &format!("{prefix}/subnets/")]);
    let value = etcdctl(cluster.host(0), &["get", "--print-value-only", listed.trim()]);
    etcdctl(cluster.host(0), &["put", listed.trim(), &value.trim().replace(&public, "192.0.2.99")]);
    let net = subnet.network();
    let narrow = CONFIG.replace(
        r#""EnableIPv6""#,
        &format!(r#""SubnetLen":24,"SubnetMin":"{net}","SubnetMax":"{net}","EnableIPv6""#),
    );
    etcdctl(cluster.host(0), &["put", &format!("{prefix}/config"), &narrow]);
    cluster.host(0).sh("nft delete table ip cut");
    cluster.agent(1).says("acquire lease: ");
    let body = readyz(cluster.host(1), 503);
    assert!(body.contains("acquire lease: "), "{body}");
    let host = cluster.host(1);
    until("subnet.env to be gone", || {
        if host.subnet_file().exists() { Err("there".to_owned()) } else { Ok(()) }
    });
    // Put right.
    etcdctl(cluster.host(0), &["del", listed.trim()]);
    readyz(cluster.host(1), 200);
    assert_eq!(cluster.host(1).subnet("FLANNEL_SUBNET"), subnet);
}

#[test]
fn states_are_for_root_one_for_each_agent_and_written_seldom() {
    let Some(mut cluster) = Cluster::new("states_are_for_root", 1) else { return };
    let host = cluster.host(1);
    let path = file(host).unwrap();
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&host.state_dir()), mode(&path)), (0o700, 0o600));
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    let of = host.subnet_file().display().to_string().trim_start_matches('/').replace('/', "-");
    assert_eq!(name, format!("last-good.{of}"));
    // Thirty peers come within some seconds.
    let (mut writes, mut last, start) = (0, fs::metadata(&path).unwrap().modified().unwrap(), Instant::now());
    let mut look = || {
        let now = fs::metadata(&path).unwrap().modified().unwrap();
        writes += usize::from(std::mem::replace(&mut last, now) != now);
        writes
    };
    for n in 0..30 {
        let value = format!(
            r#"{{"PublicIP":"192.0.2.{}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:01:{n:02x}"}}}}"#,
            100 + n
        );
        let key = format!("/coreos.com/network/subnets/10.244.{n}.0-24");
        etcdctl(cluster.host(0), &["put", &key, &value]);
        look();
    }
    until("all to be saved", || {
        look();
        match saved(cluster.host(1)) {
            Some(state) if state.peers.len() == 31 => Ok(()),
            other => Err(format!("{:?}", other.map(|state| state.peers.len()))),
        }
    });
    let most = 2 + start.elapsed().as_secs() as usize / 5;
    assert!(look() <= most, "{writes} writes in {:?}", start.elapsed());
    // An orderly end does not wait.
    etcdctl(cluster.host(0), &["del", "/coreos.com/network/subnets/10.244.29.0-24"]);
    let gone = || sh(&cluster.host(1).netns, "ip route show proto 76").contains("10.244.29.0/24");
    until("the route to go", || if gone() { Err("there".to_owned()) } else { Ok(()) });
    assert_eq!(cluster.agents[0].take().unwrap().terminate(), 0);
    assert_eq!(saved(cluster.host(1)).unwrap().peers.len(), 30);
    assert!(!cluster.host(1).dir.join("subnet.env.trouble").exists());

    // The embedded store is on this disk already.
    let world = World::with_config(1, CONFIG);
    let agent = world.hosts[0].agent(&[]);
    agent.ready();
    assert_eq!(agent.terminate(), 0);
    assert!(!world.hosts[0].state_dir().exists());
}

#[test]
fn a_disk_that_cannot_be_written_is_said_and_holds_up_nothing() {
    if !has_etcd("a_disk_that_cannot_be_written") {
        return;
    }
    let world = World::new(1);
    let host = &world.hosts[0];
    let _etcd = Etcd::on(host, "192.0.2.11", None);
    etcdctl(host, &["put", "/coreos.com/network/config", CONFIG]);
    fs::write(host.state_dir(), "").unwrap();
    let agent = host.agent_in(FLAGS, &[]);
    agent.ready();
    agent.says("after a reboot without the store no pod could start");
    assert_eq!(readyz(host, 200), "flanneld is ready");
    until("the sentence in the file", || {
        let text = host.troubles();
        if text.contains("set LODEN_STATE_DIR") { Ok(()) } else { Err(text) }
    });
    fs::remove_file(host.state_dir()).unwrap();
    agent.says("save the last good state: works again");
    assert_eq!(agent.count("set LODEN_STATE_DIR"), 1, "{}", agent.log());
    assert!(saved(host).is_some());
}
