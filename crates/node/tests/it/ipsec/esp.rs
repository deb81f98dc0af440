//! What goes through the tunnels, and what never leaves in clear. The kernel needs ESP: these run in the guest.

use std::fs;
use std::process::{Child, Command, Stdio};

use super::{Capture, Cluster, config, in_clear, until};
use crate::world::Host;

/// Whether the kernel has ESP as the tests want it.
pub fn has_esp(host: &Host, test: &str) -> bool {
    let state = "ip xfrm state add src 1.1.1.1 dst 2.2.2.2 proto esp spi 1 mode tunnel aead rfc4106(gcm(aes)) \
                 0x1111111111111111111111111111111111111111 128";
    let there = host.try_sh(state);
    if let Err(why) = &there {
        println!("SKIP {test}: this kernel has no ESP: {}", why.trim());
    }
    there.is_ok()
}

/// Pings under way, twenty a second.
struct Numbered(Child);

impl Numbered {
    fn start(cluster: &Cluster, from: usize, to: usize) -> Numbered {
        let (own, peer) = (cluster.subnet(from).network(), cluster.subnet(to).network());
        let mut command = Command::new("ping");
        command.args(["-i", "0.05", "-W", "5", "-I", &own.to_string(), &peer.to_string()]);
        command.stdout(Stdio::piped());
        Numbered(cluster.host(from).netns.run(|| command.spawn()).unwrap().unwrap())
    }

    /// Ends them; how many were sent, answered and lost.
    fn summary(self) -> String {
        Command::new("kill").args(["-INT", &self.0.id().to_string()]).status().unwrap();
        let output = String::from_utf8(self.0.wait_with_output().unwrap().stdout).unwrap();
        output.lines().find(|line| line.contains("packets transmitted")).unwrap_or_default().to_owned()
    }
}

#[test]
fn hosts_reach_each_other_encrypted() {
    let test = "hosts_reach_each_other_encrypted";
    let Some(mut cluster) = Cluster::start(3, &config(""), test) else { return };
    if !has_esp(cluster.host(0), test) {
        return;
    }
    cluster.settle();
    let capture = Capture::start(&cluster);
    for (n, peer) in [(0, 1), (1, 0), (0, 2), (2, 1)] {
        cluster.talks(n, peer);
    }
    let env = fs::read_to_string(cluster.machines[0].path("/run/flannel/subnet.env")).unwrap();
    assert!(env.contains("FLANNEL_MTU=1423\n"), "{env}");
    let seen = capture.end(&cluster);
    assert!(seen.contains("ESP(spi="), "{seen}");
    assert_eq!(in_clear(&seen), [""; 0]);

    // A peer that is silent is asked whether it lives: an informational exchange of IKE.
    Capture::start(&cluster).until("inf2");

    // The agent ends and comes again under traffic: not a packet is lost.
    let capture = Capture::start(&cluster);
    let pings = Numbered::start(&cluster, 0, 1);
    let charon = cluster.charon(0);
    for _ in 0..2 {
        assert_eq!(cluster.agents.remove(0).terminate(), 0);
        fs::remove_file(cluster.host(0).dir.join("log")).unwrap();
        let agent = cluster.agent(0);
        cluster.agents.insert(0, agent);
        cluster.ready(0);
        cluster.has_connection(0, 1);
        cluster.talks(0, 1);
    }
    assert_eq!(cluster.charon(0), charon);
    assert!(pings.summary().contains(" 0% packet loss"));

    // The keys change, of the association and of what it carries.
    let pings = Numbered::start(&cluster, 0, 1);
    let spis = |cluster: &Cluster| {
        let (here, there) = (cluster.host(0).public(), cluster.host(1).public());
        let states = cluster.host(0).sh(&format!("ip xfrm state list src {here} dst {there} reqid 11"));
        states.split_whitespace().filter(|word| word.starts_with("0x")).take(1).map(str::to_owned).collect()
    };
    let name = cluster.connection(0, 1);
    let child = format!("{}-{}", cluster.subnet(0), cluster.subnet(1));
    let old: Vec<String> = spis(&cluster);
    for words in [["--ike", name.as_str()], ["--child", child.as_str()]] {
        // While an exchange is under way another one is refused.
        until(&format!("{words:?} to begin"), || {
            let output = cluster.machines[0].output("swanctl", &["--rekey", words[0], words[1]]);
            let said = format!(
                "{}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
            if output.status.success() { Ok(()) } else { Err(said) }
        });
    }
    until("other keys", || if spis(&cluster) == old { Err(old.join(" ")) } else { Ok(()) });
    cluster.talks(0, 1);
    println!("keys changed: {}", pings.summary());

    // Charon dies: what stands goes on, another one makes new associations.
    let pings = Numbered::start(&cluster, 0, 1);
    cluster.machines[0].sh(&format!("kill -9 {charon}"));
    cluster.talks(0, 1);
    until("another charon", || if cluster.charon(0) == charon { Err(charon.clone()) } else { Ok(()) });
    cluster.has_connection(0, 1);
    let established = |cluster: &Cluster| {
        let text = cluster.machines[0].sh("swanctl --list-sas");
        if text.contains(&format!("{name}:")) && text.contains("INSTALLED") { Ok(()) } else { Err(text) }
    };
    until("an association of the new charon", || established(&cluster));
    cluster.talks(0, 1);
    cluster.talks(1, 0);
    // The old associations carry packets until the new ones do.
    println!("charon killed and started again: {}", pings.summary());
    // Ended by hand on both sides it is begun again.
    for n in [0, 1] {
        let _ = cluster.machines[n]
            .output("swanctl", &["--terminate", "--ike", &cluster.connection(n, 1 - n), "--force"]);
    }
    until("an association again", || established(&cluster));
    cluster.talks(0, 1);
    // Policies that are deleted under traffic.
    cluster.host(0).sh("ip xfrm policy flush");
    cluster.has_policies(0, 1);
    cluster.talks(0, 1);
    let seen = capture.end(&cluster);
    assert_eq!(in_clear(&seen), [""; 0]);
}

/// A node whose PSK is another one: it is named, nothing goes to it in clear, and the others work.
#[test]
fn a_peer_with_another_psk_is_named_and_others_are_not() {
    let test = "a_peer_with_another_psk_is_named_and_others_are_not";
    let Some(mut cluster) = Cluster::start(3, &config(""), test) else { return };
    if !has_esp(cluster.host(0), test) {
        return;
    }
    cluster.settle();
    cluster.talks(0, 1);
    let (right, wrong) = (config(""), config("").replacen("5f4d", "0000", 1));
    let again = |cluster: &mut Cluster, config: &str| {
        cluster.host(1).put_config(config);
        assert_eq!(cluster.agents.remove(1).terminate(), 0);
        // What stands would go on with the keys it has.
        let charon = cluster.charon(1);
        cluster.machines[1].sh(&format!("kill -9 {charon}"));
        fs::remove_file(cluster.host(1).dir.join("log")).unwrap();
        let agent = cluster.agent(1);
        cluster.agents.insert(1, agent);
        cluster.ready(1);
    };
    let capture = Capture::start(&cluster);
    again(&mut cluster, &wrong);
    for (n, peer) in [(0, 1), (2, 1)] {
        let name = cluster.connection(n, peer);
        let _ = cluster.machines[n].output("swanctl", &["--terminate", "--ike", &name, "--force"]);
    }
    let said = format!("IPsec peer {} of {}: no association", cluster.host(1).public(), cluster.subnet(1));
    for n in [0, 2] {
        until("the peer to be named", || {
            let log = cluster.agents[n].log();
            if log.contains(&said) { Ok(()) } else { Err(log) }
        });
        assert!(cluster.status(n).1.contains(&said), "{}", cluster.status(n).1);
    }
    let (own, out) = (cluster.subnet(0).network(), cluster.subnet(1).network());
    assert!(cluster.host(0).try_sh(&format!("ping -c 3 -i 0.2 -W 2 -I {own} {out}")).is_err());
    cluster.talks(0, 2);
    cluster.talks(2, 0);
    again(&mut cluster, &right);
    cluster.talks(0, 1);
    until("the suspicion to go", || {
        let log = cluster.agents[0].log();
        if log.contains("hear peers of encrypted tunnels: works again") { Ok(()) } else { Err(log) }
    });
    let seen = capture.end(&cluster);
    assert_eq!(in_clear(&seen), [""; 0]);
}

#[test]
fn udp_with_another_proposal() {
    let test = "udp_with_another_proposal";
    let members = r#","UDPEncap":true,"ESPProposal":"aes256gcm16-modp4096""#;
    let Some(cluster) = Cluster::start(2, &config(members), test) else { return };
    if !has_esp(cluster.host(0), test) {
        return;
    }
    cluster.settle();
    let capture = Capture::start(&cluster);
    cluster.talks(0, 1);
    let seen = capture.end(&cluster);
    assert!(seen.contains("UDP-encap: ESP(spi="), "{seen}");
    assert_eq!(in_clear(&seen), [""; 0]);
    let env = fs::read_to_string(cluster.machines[0].path("/run/flannel/subnet.env")).unwrap();
    assert!(env.contains("FLANNEL_MTU=1415\n"), "{env}");
    let state = cluster.host(0).sh("ip xfrm state");
    assert!(state.contains("espinudp"), "{state}");
}
