//! The backend extension: commands of the operator between hosts, in the manner of flannel's samples.

use std::fs;

use crate::world::{Agent, Host, World, until};

/// flannel's sample `extension-vxlan` in other words: a device whose hardware address is what nodes tell each
/// other, an address, and for each peer a route, a neighbour and a forwarding entry. Needs a shell.
const VXLAN: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"extension",
    "PreStartupCommand":"export IF=ext-vxlan; ip link del $IF 2>/dev/null; ip link add $IF mtu 1450 type vxlan id 1 dstport 8472 && ip -o link show dev $IF | sed 's/.*ether //; s/ .*//'",
    "PostStartupCommand":"export IP=`echo $SUBNET | cut -d'/' -f 1`; ip addr add $IP/32 dev ext-vxlan && ip link set ext-vxlan up",
    "ShutdownCommand":"ip link del ext-vxlan",
    "SubnetAddCommand":"read VTEP; IP=$(echo $SUBNET | cut -d'/' -f 1); ip route replace $SUBNET via $IP dev ext-vxlan onlink && ip neigh replace $IP lladdr $VTEP dev ext-vxlan && bridge fdb replace $VTEP dev ext-vxlan self dst $PUBLIC_IP"}}"#;

/// flannel's sample `extension-hostgw`: nothing a shell would be needed for.
const HOST_GW: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"extension",
    "SubnetAddCommand":"ip route replace $SUBNET via $PUBLIC_IP",
    "SubnetRemoveCommand":"ip route del ${SUBNET}"}}"#;

/// A configuration with these members of `Backend`.
fn config(members: &str) -> String {
    format!(r#"{{"Network":"10.244.0.0/16","Backend":{{"Type":"extension",{members}}}}}"#)
}

/// An agent whose commands find the host's directory in `DIR`, and have two seconds.
fn agent(host: &Host, env: &[(&str, &str)]) -> Agent {
    let dir = host.dir.display().to_string();
    let mut all = vec![("LODEN_STORE", host.store()), ("DIR", dir.as_str()), ("LODEN_COMMAND_TIMEOUT", "2")];
    all.extend(env);
    host.agent_in(&[], &all)
}

fn start(world: &World) -> Vec<Agent> {
    let agents: Vec<Agent> = world.hosts.iter().map(|host| agent(host, &[])).collect();
    agents.iter().for_each(Agent::ready);
    agents
}

/// What a command wrote to a file of its host.
fn read(host: &Host, file: &str) -> String {
    fs::read_to_string(host.dir.join(file)).unwrap_or_default()
}

fn written(host: &Host, file: &str, wanted: impl Fn(&str) -> bool) -> String {
    until(&format!("{file} of host {}", host.number), || {
        let text = read(host, file);
        if wanted(&text) { Ok(text) } else { Err(text) }
    })
}

/// Gives every host the first address of its subnet, from which it talks to the others.
fn settle(world: &World) {
    for host in &world.hosts {
        host.sh(&format!("ip addr add {} dev lo", host.subnet("FLANNEL_SUBNET").network()));
    }
}

fn everybody_talks(world: &World) {
    for host in &world.hosts {
        for peer in world.hosts.iter().filter(|peer| peer.number != host.number) {
            until("traffic", || host.greet(peer, peer.subnet("FLANNEL_SUBNET").network()));
        }
    }
}

#[test]
fn extension_sample_vxlan_carries_traffic() {
    let world = World::with_config(3, VXLAN);
    let mut agents = start(&world);
    agents[0].says("ShutdownCommand is not run");
    everybody_talks(&world);
    let host = &world.hosts[0];
    assert_eq!(host.env("FLANNEL_MTU"), "1500");
    let mac = host.json("ip -j link show ext-vxlan")[0]["address"].as_str().unwrap().to_owned();
    let connection = rusqlite::Connection::open(world.dir.path().join("leases.db")).unwrap();
    let key = format!("{}-24", host.subnet("FLANNEL_SUBNET").network());
    let value: String =
        connection.query_row("SELECT value FROM lease WHERE key = ?1", [key], |row| row.get(0)).unwrap();
    let data = format!(r#""BackendType":"extension","BackendData":"{mac}""#);
    assert!(value.contains(&data), "as flannel writes it: {value}");
    // The data path outlives the agent; a new one runs everything again.
    assert_eq!(agents.remove(0).terminate(), 0);
    host.sh("ip link show ext-vxlan");
    let again = agent(host, &[]);
    again.ready();
    everybody_talks(&world);
}

#[test]
fn extension_sample_host_gw_carries_traffic_and_forgets_nodes() {
    let world = World::with_config(3, HOST_GW);
    let mut agents = start(&world);
    settle(&world);
    everybody_talks(&world);
    let [host, gone] = [&world.hosts[0], &world.hosts[2]];
    let subnet = gone.subnet("FLANNEL_SUBNET");
    agents.pop().unwrap().kill();
    let connection = rusqlite::Connection::open(world.dir.path().join("leases.db")).unwrap();
    connection.execute("DELETE FROM lease WHERE key = ?1", [format!("{}-24", subnet.network())]).unwrap();
    until("SubnetRemoveCommand", || {
        let routes = host.sh("ip route show");
        if routes.contains(&subnet.to_string()) { Err(routes) } else { Ok(()) }
    });
    host.greet(&world.hosts[1], world.hosts[1].subnet("FLANNEL_SUBNET").network()).expect("the other peer");
}

#[test]
fn extension_commands_are_told_both_families() {
    let config = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10::/48","Backend":{"Type":"extension",
        "PreStartupCommand":"echo 'two words' ; printenv PATH >&2; cat >/dev/null",
        "PostStartupCommand":"echo $NETWORK $SUBNET $IPV6SUBNET $PUBLIC_IP $PUBLIC_IPV6 > $DIR/post",
        "SubnetAddCommand":"cat > $DIR/in; echo $SUBNET $IPV6SUBNET $PUBLIC_IP $PUBLIC_IPV6 > $DIR/add"}}"#;
    let world = World::with_config(2, config);
    let _agents = start(&world);
    let [one, two] = [&world.hosts[0], &world.hosts[1]];
    let told = |host: &Host| {
        let (v4, v6) = (host.subnet("FLANNEL_SUBNET"), host.subnet("FLANNEL_IPV6_SUBNET"));
        format!("{v4} {v6} {} {}\n", host.public(), host.public6())
    };
    written(one, "post", |text| text == format!("10.244.0.0/16 {}", told(one)));
    written(one, "add", |text| text == told(two));
    let path = std::env::var("PATH").unwrap();
    written(one, "in", |text| text == format!("two words\n{path}\n"));
}

#[test]
fn extension_data_larger_than_a_pipe_arrives() {
    let members = r#""PreStartupCommand":"yes 0123456789 | head -c 65536",
        "SubnetAddCommand":"sleep 0.2; wc -c > $DIR/size",
        "SubnetRemoveCommand":"touch $DIR/removed""#;
    let world = World::with_config(2, &config(members));
    let _agents = start(&world);
    written(&world.hosts[0], "size", |text| text.trim() == "65537");
    assert_eq!(read(&world.hosts[0], "removed"), "");
}

#[test]
fn extension_commands_that_fail_are_named_and_tried_again() {
    let add = r#"case $PUBLIC_IP in 192.0.2.12) test -e $DIR/fixed || sleep 1000;; 192.0.2.13) test -e $DIR/fixed || { head -c 3000 /dev/urandom >&2; exit 7; };; esac; ip route replace $SUBNET via $PUBLIC_IP"#;
    let world = World::with_config(4, &config(&format!(r#""SubnetAddCommand":"{add}""#)));
    let mut agents = start(&world);
    settle(&world);
    let host = &world.hosts[0];
    let subnets: Vec<_> = world.hosts.iter().map(|host| host.subnet("FLANNEL_SUBNET")).collect();
    agents[0].says(&format!("SubnetAddCommand for {} failed with exit status: 7: ", subnets[2]));
    agents[0].says(&format!("SubnetAddCommand for {} did not end within 2 s and was killed", subnets[1]));
    until("the peer without a fault", || host.greet(&world.hosts[3], subnets[3].network()));
    assert!(host.troubles().contains("SubnetAddCommand"), "{}", host.troubles());
    let (code, status) = host.status(&[]);
    assert!(code != 0 && status.contains("SubnetAddCommand"), "{status}");
    fs::write(host.dir.join("fixed"), "").unwrap();
    for peer in [1, 2] {
        until("a peer whose command works now", || host.greet(&world.hosts[peer], subnets[peer].network()));
    }
    until("no troubles", || if host.troubles().is_empty() { Ok(()) } else { Err(host.troubles()) });
    assert!(agents[0].alive());
}

#[test]
fn extension_start_up_commands_are_waited_for() {
    for (key, command, sentence) in [
        ("PreStartupCommand", "$DIR/tool", "PreStartupCommand: start "),
        ("PostStartupCommand", "$DIR/tool", "PostStartupCommand: start "),
        (
            "PreStartupCommand",
            "test -e $DIR/tool || exit 3",
            "PreStartupCommand failed with exit status: 3: ",
        ),
        ("PreStartupCommand", "test -e $DIR/tool || yes", "PreStartupCommand did not end within 2 s"),
        (
            "PreStartupCommand",
            "test -e $DIR/tool || yes | head -c 70000",
            "PreStartupCommand printed more than the 64 KiB a lease can carry",
        ),
    ] {
        let members = format!(r#""{key}":"{command}","SubnetAddCommand":"touch $DIR/added""#);
        let world = World::with_config(2, &config(&members));
        let (host, peer) = (&world.hosts[0], &world.hosts[1]);
        fs::copy("/bin/true", peer.dir.join("tool")).unwrap();
        let other = agent(peer, &[]);
        other.ready();
        let mut first = agent(host, &[]);
        first.says(sentence);
        assert!(first.alive() && !host.subnet_file().exists(), "not ready without {key}");
        assert!(!host.dir.join("added").exists(), "no peer before {key}");
        fs::copy("/bin/true", host.dir.join("tool")).unwrap();
        first.ready();
        written(host, "added", |_| host.dir.join("added").exists());
    }
}

#[test]
fn extension_mistakes_in_the_configuration_are_named() {
    for (members, sentence) in [
        (r#""SubnetAddCommand":["ip","route"]"#, "SubnetAddCommand"),
        (r#""PreStartupCommand":1"#, "PreStartupCommand"),
        (r#""PostStartupCommand":true"#, "PostStartupCommand"),
        (r#""SubnetRemoveCommand":{}"#, "SubnetRemoveCommand"),
    ] {
        let world = World::with_config(1, HOST_GW);
        let connection = rusqlite::Connection::open(world.dir.path().join("leases.db")).unwrap();
        connection.execute("INSERT OR REPLACE INTO config (value) VALUES (?1)", [config(members)]).unwrap();
        let agent = agent(&world.hosts[0], &[]);
        agent.says("fetch network config: ");
        assert!(agent.log().contains(sentence), "{}", agent.log());
        world.hosts[0].put_config(HOST_GW);
        agent.ready();
    }
}
