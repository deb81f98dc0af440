//! Conntrack's entries, which are read where the kernel's own description says they are (decision 0238). Short enough for a
//! kernel under emulation, where conntrack is a module (`cargo xtask vm backports`, decision 0244).

use super::same::transfer;
use super::{Talk, Two, can, counted};
use crate::world::{Host, until};

/// Both protocols of both families go fast, and again after conntrack has forgotten them.
#[test]
fn forgotten_connections_are_learnt_again() {
    if !can("forgotten_connections_are_learnt_again") {
        return;
    }
    for backend in ["host-gw", "vxlan"] {
        let two = Two::dual(backend, "on");
        let hosts: Vec<&Host> = two.world.hosts.iter().collect();
        // In single frames: a train counts as one packet.
        hosts.iter().for_each(|host| drop(host.sh("ethtool -K eth0 tso off gso off")));
        for (family, name) in ["ipv4", "ipv6"].iter().enumerate() {
            let fast = || hosts.iter().map(|host| counted(host, "fast_packets")).collect::<Vec<_>>();
            let before = fast();
            transfer(family, &two.pods[0], &two.pods[1], 4 << 20);
            let now = fast();
            println!("{backend}, {name}: {before:?} and {now:?} after TCP");
            assert!(before.iter().zip(&now).all(|(before, now)| now - before > 200), "{backend}, {name}");
            let talk = Talk::by(family, &two.pods[0], &two.pods[1]);
            talk.until_fast(&hosts);
            hosts[0].sh("conntrack -F");
            until("the connection to be followed again", || {
                talk.round(b"again")?;
                let list = hosts[0].try_sh(&format!("conntrack -L -p udp -f {name}"))?;
                let there = list.contains(&format!("dport={}", talk.to.port()));
                if there { Ok(()) } else { Err(list) }
            });
            talk.until_fast(&hosts);
        }
    }
}

/// What conntrack has no entry of, or one that was seen in one direction only, stays slow.
#[test]
fn what_conntrack_has_not_established_stays_slow() {
    if !can("what_conntrack_has_not_established_stays_slow") {
        return;
    }
    let two = Two::dual("vxlan", "on");
    let host = &two.world.hosts[0];
    for family in [0, 1] {
        // A round that is late on a busy machine has not failed.
        let talk = Talk::by(family, &two.pods[0], &two.pods[1]).patient();
        let slow = |what: &str, step: &dyn Fn()| {
            // A busy agent may show what it counted before, so each look is one that has counted the packets before it.
            let seen = counted(host, "slow_packets");
            until("a packet to be counted", || {
                step();
                if counted(host, "slow_packets") > seen { Ok(()) } else { Err(what.to_owned()) }
            });
            let before = ["slow_packets", "fast_packets"].map(|which| counted(host, which));
            (0..300).for_each(|_| step());
            until("all packets to be counted as slow", || {
                let now = counted(host, "slow_packets") - before[0];
                if now >= 300 { Ok(()) } else { Err(format!("{now}: {what}, family {family}")) }
            });
            assert_eq!(counted(host, "fast_packets"), before[1], "{what}, family {family}");
        };
        slow("one direction", &|| {
            talk.ask.send_to(b"nobody answers", talk.to).unwrap();
        });
        while talk.answer.recv_from(&mut [0; 64]).is_ok() {}
        host.sh("nft add table inet untracked");
        host.sh("nft add chain inet untracked raw { type filter hook prerouting priority -300 ; }");
        host.sh("nft add rule inet untracked raw udp dport != 8472 udp sport != 8472 notrack");
        talk.works();
        slow("untracked", &|| assert_eq!(talk.round(b"untracked"), Ok(())));
        host.sh("nft delete table inet untracked");
        talk.until_fast(&[host]);
    }
}
