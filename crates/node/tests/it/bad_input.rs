//! Each mistake gives one clear sentence that names the object and the way out; the agent stays up and
//! goes on by itself once it is put right; what works goes on working.

use std::fs;
use std::net::TcpListener;

use crate::world::{World, until};

const GOOD: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;

/// Puts a bad configuration straight into the file, past the check of `loden config put`.
pub fn put_unchecked(world: &World, text: &str) {
    // `config put` refuses it, which is tested below; the column is the store's own.
    let connection = rusqlite::Connection::open(world.dir.path().join("leases.db")).unwrap();
    connection.execute("INSERT OR REPLACE INTO config (value) VALUES (?1)", [text]).unwrap();
}

#[test]
fn a_bad_configuration_is_named_and_waited_for() {
    for (bad, sentence) in [
        (r#"{"Network":"10.244.0.0/16","#, "unexpected end"),
        (r#"{"Network":"10.244.0.0/33"}"#, "10.244.0.0/33"),
        (r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlam"}}"#, "unknown backend type \"vxlam\""),
        (r#"{"Network":"10.244.0.0/16","Backend":{"Type":"gce"}}"#, "removed from flannel in v0.20"),
        (r#"{"Network":"10.244.0.0/16","Backend":{"Type":"udp","Port":0}}"#, "Port 0"),
        (r#"{"Network":"10.244.0.0/16","Backend":{}}"#, "Backend has no Type"),
        (r#"{"Network":"10.244.0.0/16","SubnetLen":17,"Backend":{"Type":"vxlan"}}"#, "SubnetLen"),
        (
            r#"{"Network":"10.244.0.0/16","SubnetMin":"10.244.9.0","SubnetMax":"10.244.3.0","Backend":{"Type":"vxlan"}}"#,
            "SubnetM",
        ),
        (r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","VNI":"1"}}"#, "VNI"),
        (r#"{"EnableIPv4":false,"Backend":{"Type":"vxlan"}}"#, "EnableIPv"),
        (
            r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","VNI":16777216}}"#,
            "VNI 16777216 must be between",
        ),
        (
            r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","VNI":16777215}}"#,
            "gives the device name \"flannel.16777215\", longer than 15 bytes",
        ),
        (
            r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","Port":70000}}"#,
            "Port 70000 must be between",
        ),
        (r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","MTU":100}}"#, "MTU 100 must be between"),
        (
            r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","CheckSources":1}}"#,
            "Backend.CheckSources",
        ),
        (
            r#"{"Network":"10.244.0.0/16","Backend":{"Type":"ipip","DirectRouting":"yes"}}"#,
            "Backend.DirectRouting",
        ),
        (
            r#"{"Network":"10.244.0.0/16","Backend":{"Type":"ipip","CheckSources":"yes"}}"#,
            "Backend.CheckSources",
        ),
        (
            r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10::/48","Backend":{"Type":"ipip"}}"#,
            "the backend \"ipip\" carries IPv4 only",
        ),
    ] {
        let world = World::with_config(1, GOOD);
        put_unchecked(&world, bad);
        let mut agent = world.hosts[0].agent(&[]);
        agent.says("fetch network config: ");
        assert!(agent.log().contains(sentence), "{bad}: {}", agent.log());
        assert!(agent.alive());
        world.hosts[0].put_config(GOOD);
        agent.ready();
    }
}

#[test]
fn a_missing_configuration_is_waited_for() {
    let world = World::new(1);
    let mut agent = world.hosts[0].agent(&[]);
    agent.says("fetch network config: ");
    assert!(agent.alive());
    world.hosts[0].put_config(GOOD);
    agent.ready();
}

#[test]
fn an_interface_that_is_missing_is_named_with_what_there_is() {
    let world = World::with_config(1, GOOD);
    let host = &world.hosts[0];
    let mut agent = host.agent(&["--iface=eth9"]);
    agent.says("--iface=eth9: there is no such interface; this host has ");
    assert!(agent.log().contains("eth0 (192.0.2.11"), "{}", agent.log());
    assert!(agent.alive());
    host.sh("ip link add eth9 type veth peer name eth9p");
    host.sh("ip addr add 198.51.100.9/24 dev eth9");
    host.sh("ip link set eth9 up");
    agent.ready();
    let link = &host.json("ip -d -j link show flannel.1")[0];
    assert_eq!(link["linkinfo"]["info_data"]["local"], "198.51.100.9");
}

#[test]
fn a_foreign_device_in_our_place_is_left_alone_and_named() {
    let world = World::with_config(1, GOOD);
    let host = &world.hosts[0];
    host.sh("ip link add flannel.1 type bridge");
    let mut agent = host.agent(&[]);
    agent.says("device flannel.1 is a bridge device, not a vxlan one");
    assert!(agent.log().contains("ip link delete flannel.1"), "{}", agent.log());
    assert!(agent.alive() && !host.subnet_file().exists(), "not ready without its device");
    host.sh("ip link delete flannel.1");
    agent.ready();
}

#[test]
fn a_tunnel_with_other_attributes_is_made_anew_and_a_taken_vni_named() {
    let world = World::with_config(1, GOOD);
    let host = &world.hosts[0];
    host.sh("ip link add flannel.1 type vxlan id 77 local 192.0.2.11 dev eth0 dstport 8472");
    let agent = host.agent(&[]);
    agent.says("device flannel.1 does not fit, making it anew: its vni is 77, not 1");
    agent.ready();

    let world = World::with_config(1, GOOD);
    let host = &world.hosts[0];
    host.sh("ip link add cilium_vxlan type vxlan id 1 local 192.0.2.11 dev eth0 dstport 8472");
    let mut agent = host.agent(&[]);
    agent.says("another device has VNI 1 on port 8472");
    assert!(agent.alive());
    host.sh("ip link delete cilium_vxlan");
    agent.ready();
}

#[test]
fn a_taken_tunnel_port_is_named() {
    let world = World::with_config(1, GOOD);
    let host = &world.hosts[0];
    let taken = host.netns.run(|| std::net::UdpSocket::bind("0.0.0.0:8472")).unwrap().unwrap();
    let mut agent = host.agent(&[]);
    agent.says("another program uses UDP port 8472");
    assert!(agent.alive() && !host.subnet_file().exists());
    drop(taken);
    agent.ready();
}

#[test]
fn a_taken_health_port_is_named_and_tried_again() {
    let world = World::with_config(1, GOOD);
    let host = &world.hosts[0];
    let taken = host.netns.run(|| TcpListener::bind("0.0.0.0:2401")).unwrap().unwrap();
    let agent = host.agent(&["--healthz-port=2401"]);
    agent.ready();
    agent.says("listen on 0.0.0.0:2401 for health checks: ");
    drop(taken);
    until("the port to be served", || {
        host.netns.run(|| std::net::TcpStream::connect("127.0.0.1:2401")).unwrap().map_err(|e| e.to_string())
    });
}

#[test]
fn a_read_only_place_for_subnet_env_is_named() {
    let world = World::with_config(1, GOOD);
    let host = &world.hosts[0];
    // A file where the folder should be stands for any disk that cannot be written, even by root.
    let blocked = host.dir.join("blocked");
    fs::write(&blocked, "").unwrap();
    let flag = format!("--subnet-file={}/subnet.env", blocked.display());
    let mut agent = host.agent(&[&flag]);
    agent.says("blocked/subnet.env: ");
    assert!(agent.alive());
    fs::remove_file(&blocked).unwrap();
    agent.says("flannel is ready");
    assert!(blocked.join("subnet.env").exists());
    assert_eq!(agent.log().matches("blocked/subnet.env: ").count(), 1, "said once: {}", agent.log());
}

#[test]
fn one_corrupt_lease_costs_only_its_own_peer() {
    let world = World::with_config(3, GOOD);
    let agents = world.start(&[]);
    let [one, two, three] = [&world.hosts[0], &world.hosts[1], &world.hosts[2]];
    until("two peers", || one.greet(three, three.subnet("FLANNEL_SUBNET").network()));
    let key = format!("{}-24", two.subnet("FLANNEL_SUBNET").network());
    let connection = rusqlite::Connection::open(world.dir.path().join("leases.db")).unwrap();
    connection.execute("UPDATE lease SET value = 'garbage' WHERE key = ?1", [&key]).unwrap();
    drop(connection);
    agents[0].says(&key);
    one.greet(three, three.subnet("FLANNEL_SUBNET").network()).expect("the other peer is unharmed");
}

/// flannel looks at the type only; the port is in no lease (flannel.md 13.4).
#[test]
fn a_peer_that_disagrees_costs_only_itself() {
    let ours = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"TYPE"}}"#;
    let vtep = |data: &str| format!(r#","BackendType":"vxlan","BackendData":{data}"#);
    let kind = |kind: &str| format!(r#","BackendType":"{kind}""#);
    for (backend, peers) in [
        (
            "vxlan",
            vec![
                ("10.244.0.0-24", kind("host-gw"), "its backend is \"host-gw\", ours is \"vxlan\""),
                ("10.244.0.0-24", String::new(), "its backend is \"\", ours is \"vxlan\""),
                ("10.244.0.0-24", kind("vxlan"), "its lease has no IPv4 VTEP data"),
                ("10.244.0.0-24", vtep(r#"{"VNI":1,"VtepMAC":"8e:00"}"#), "is not a hardware address"),
                (
                    "10.244.0.0-24",
                    vtep(r#"{"VNI":"1","VtepMAC":"8e:00:00:00:00:01"}"#),
                    "vxlanLeaseAttrs.VNI",
                ),
                ("10.244.0.0-24", vtep("[]"), "vxlanLeaseAttrs"),
                ("10.99.0.0-24", kind("vxlan"), "10.99.0.0/24"),
            ],
        ),
        (
            "host-gw",
            vec![
                ("10.244.0.0-24", kind("vxlan"), "its backend is \"vxlan\", ours is \"host-gw\""),
                ("10.99.0.0-24", kind("host-gw"), "10.99.0.0/24"),
            ],
        ),
    ] {
        let world = World::with_config(2, &ours.replace("TYPE", backend));
        let agents = world.start(&[]);
        let [one, two] = [&world.hosts[0], &world.hosts[1]];
        let subnet = two.subnet("FLANNEL_SUBNET");
        let reached = || one.sh(&format!("ip route show {subnet}"));
        until("the other peer's route", || {
            if reached().is_empty() { Err("none") } else { Ok(()) }.map_err(str::to_owned)
        });
        let route = reached();
        let leases = rusqlite::Connection::open(world.dir.path().join("leases.db")).unwrap();
        for (key, data, sentence) in peers {
            // On no common network, where a plain route would lead to those with another backend.
            let value = format!(r#"{{"PublicIP":"198.51.100.99","PublicIPv6":null{data}}}"#);
            let insert = "INSERT OR REPLACE INTO lease (key, value, expires) VALUES (?1, ?2, 4102444800)";
            leases.execute(insert, [key, &value]).unwrap();
            agents[0].says(sentence);
            let left = one.sh("ip route show proto 76") + &one.sh("ip neigh show nud permanent");
            assert!(!left.contains("10.244.0.0") && !left.contains("10.99."), "{value}: {left}");
            assert_eq!(reached(), route, "{value}: the other peer is unharmed");
        }
    }
}

#[test]
fn nodes_that_announce_the_same_address_are_named_and_kept() {
    let world = World::with_config(3, GOOD);
    let agents = world.start(&[]);
    let [one, two, three] = [&world.hosts[0], &world.hosts[1], &world.hosts[2]];
    until("a peer", || one.greet(three, three.subnet("FLANNEL_SUBNET").network()));
    // A machine cloned from the second: its address and its tunnel's address under another subnet.
    let key = format!("{}-24", two.subnet("FLANNEL_SUBNET").network());
    let connection = rusqlite::Connection::open(world.dir.path().join("leases.db")).unwrap();
    let copy = "INSERT INTO lease (key, value, expires) SELECT '10.244.0.0-24', value, expires FROM lease WHERE key = ?1";
    connection.execute(copy, [&key]).unwrap();
    drop(connection);
    let subnet = two.subnet("FLANNEL_SUBNET");
    let both = format!("the node of 10.244.0.0/24 and the node of {subnet}");
    agents[0].says(&format!("{both} announce the same public address 192.0.2.12"));
    agents[0].says(&format!("{both} have the same IPv4 VTEP address"));
    agents[1].says(&format!(
        "this node ({subnet}) and the node of 10.244.0.0/24 announce the same public address"
    ));
    one.greet(three, three.subnet("FLANNEL_SUBNET").network()).expect("the other peer is unharmed");
    until("traffic with the one that is there", || two.greet(one, one.subnet("FLANNEL_SUBNET").network()));
}

#[test]
fn flags_that_make_no_sense_end_it_with_a_sentence() {
    let world = World::with_config(1, GOOD);
    let host = &world.hosts[0];
    for (flag, status, sentence) in [
        ("--nonsense", 2, "flag provided but not defined: -nonsense"),
        ("--subnet-lease-renew-margin=2000", 1, "out of acceptable range"),
        ("--healthz-port=99999", 1, "99999 is not a port"),
    ] {
        let agent = host.agent(&[flag]);
        let log = host.dir.join("log");
        assert_eq!(agent.ends(), status, "{flag}");
        let text = fs::read_to_string(&log).unwrap();
        assert!(text.contains(sentence), "{flag}: {text}");
        fs::remove_file(log).unwrap();
    }
}

#[test]
fn a_lost_lease_is_said_and_another_taken() {
    let world = World::with_config(2, GOOD);
    let mut agents = world.start(&[]);
    let (host, peer) = (&world.hosts[0], &world.hosts[1]);
    let before = host.subnet("FLANNEL_SUBNET");
    let key = format!("{}-24", before.network());
    let connection = rusqlite::Connection::open(world.dir.path().join("leases.db")).unwrap();
    // Somebody else holds our subnet from now on: it must not be taken back from them.
    let other = r#"{"PublicIP":"192.0.2.99","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:99"}}"#;
    connection.execute("UPDATE lease SET value = ?1 WHERE key = ?2", [other, &key]).unwrap();
    agents[0].says(&format!("lost the lease {before}"));
    let after = until("another subnet", || {
        let now = host.subnet("FLANNEL_SUBNET");
        if now == before { Err(now.to_string()) } else { Ok(now) }
    });
    until("the peer to know the new subnet", || host.greet(peer, peer.subnet("FLANNEL_SUBNET").network()));
    let addresses = until("the device to carry the new address alone", || {
        let text = host.sh("ip -o -4 addr show dev flannel.1");
        if text.contains(&format!("{}/32", after.network()))
            && !text.contains(&format!("{}/32", before.network()))
        {
            Ok(text)
        } else {
            Err(text)
        }
    });
    assert_eq!(addresses.lines().count(), 1);
    assert!(agents.iter_mut().all(crate::world::Agent::alive));

    // Deleted and free: the same subnet is taken again.
    connection.execute("DELETE FROM lease WHERE key = ?1", [format!("{}-24", after.network())]).unwrap();
    agents[0].says(&format!("lost the lease {after}"));
    until("the lease to be there again", || {
        let found = connection.query_row(
            "SELECT count(*) FROM lease WHERE key = ?1",
            [format!("{}-24", after.network())],
            |r| r.get(0),
        );
        if found == Ok(1) { Ok(()) } else { Err(format!("{found:?}")) }
    });
    assert_eq!(host.subnet("FLANNEL_SUBNET"), after);
}

#[test]
fn an_exhausted_range_is_named_and_waited_for() {
    // Two subnets for three hosts.
    let config = r#"{"Network":"10.244.0.0/16","SubnetLen":24,"SubnetMin":"10.244.8.0","SubnetMax":"10.244.9.0","Backend":{"Type":"vxlan"}}"#;
    let world = World::with_config(3, config);
    let first = [world.hosts[0].agent(&[]), world.hosts[1].agent(&[])];
    for agent in &first {
        agent.ready();
    }
    let mut third = world.hosts[2].agent(&[]);
    third.says("acquire lease: ");
    assert!(third.log().contains("10.244.8.0"), "names the range: {}", third.log());
    assert!(third.alive());
    let key = format!("{}-24", world.hosts[1].subnet("FLANNEL_SUBNET").network());
    let [_first, second] = first;
    second.kill();
    let connection = rusqlite::Connection::open(world.dir.path().join("leases.db")).unwrap();
    connection.execute("DELETE FROM lease WHERE key = ?1", [key]).unwrap();
    third.ready();
}

#[test]
fn a_store_that_cannot_be_reached_is_named_and_waited_for() {
    let world = World::new(1);
    let host = &world.hosts[0];
    let mut agent = host.agent_in(&["--etcd-endpoints=http://192.0.2.11:2379"], &[]);
    agent.says("fetch network config: ");
    assert!(agent.log().contains("192.0.2.11:2379"), "{}", agent.log());
    assert!(agent.alive());
    if crate::world::has_etcd("a_store_that_cannot_be_reached") {
        let _etcd = crate::world::Etcd::on(host, "192.0.2.11", None);
        let words = ["--endpoints=http://192.0.2.11:2379", "put", "/coreos.com/network/config", GOOD];
        let put = host
            .netns
            .run(|| std::process::Command::new("etcdctl").env("ETCDCTL_API", "3").args(words).output());
        assert!(put.unwrap().unwrap().status.success());
        agent.ready();
    }
}
