//! Nodes whose network configuration is another one in what no lease says: each side names the other, and the rest of
//! the cluster is none the worse. Types and keys that leases do say are in `bad_input` and `wireguard`, the PSK of
//! ipsec in `ipsec::esp`.

use crate::changing::apart;
use crate::world::{Host, World, until};

struct Case {
    /// What the others have.
    ours: &'static str,
    /// What the second has.
    theirs: &'static str,
    /// What is between the hosts: a router, or nothing.
    apart: bool,
}

const CASES: [Case; 3] = [
    Case { ours: r#""Type":"udp""#, theirs: r#""Type":"udp","Port":8286"#, apart: false },
    Case { ours: r#""Type":"vxlan""#, theirs: r#""Type":"vxlan","Port":4789"#, apart: false },
    // On one network they reach each other without the tunnel (`changing`).
    Case { ours: r#""Type":"vxlan""#, theirs: r#""Type":"vxlan","VNI":7"#, apart: true },
];

fn config(backend: &str) -> String {
    format!(r#"{{"Network":"10.244.0.0/16","Backend":{{{backend}}}}}"#)
}

/// What a host says of another: that it may have another configuration, or that all is well.
fn says_of(host: &Host, peer: &Host, named: bool) {
    let at = format!(" {} ", peer.public());
    until(&format!("what host {} says of {}", host.number, peer.number), || {
        let (_, status) = host.status(&["--why"]);
        let mut lines = status.lines().skip_while(|line| !line.contains("/24") || !line.contains(&at));
        let (line, why) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
        let said = if named { why.contains("with the same Backend") } else { line.ends_with(" ok") };
        if said { Ok(()) } else { Err(status) }
    });
}

#[test]
fn peers_with_another_port_or_vni_are_named_and_others_work() {
    for Case { ours, theirs, apart: between } in CASES {
        if ours.contains("udp") && !crate::udp::has_tun("disagree") {
            continue;
        }
        let world = World::with_config(3, &config(ours));
        if between {
            apart(&world.hosts);
        }
        let [one, two, three] = [&world.hosts[0], &world.hosts[1], &world.hosts[2]];
        let address = |host: &Host| host.subnet("FLANNEL_SUBNET").network();
        // An agent keeps the configuration it started with.
        let mut agents = vec![one.agent(&[])];
        agents[0].ready();
        one.put_config(&config(theirs));
        agents.push(two.agent(&[]));
        agents[1].ready();
        one.put_config(&config(ours));
        agents.push(three.agent(&[]));
        agents[2].ready();
        until("the two that agree", || one.greet(three, address(three)));
        says_of(one, two, true);
        says_of(two, one, true);
        one.greet(two, address(two)).expect_err("no common tunnel");
        one.greet(three, address(three)).expect("the others work");
        three.greet(one, address(one)).expect("the others work");
        says_of(one, three, false);
        // As the sentence says: the same for both.
        assert_eq!(agents.remove(1).terminate(), 0);
        agents.insert(1, two.agent(&[]));
        until("all to agree", || one.greet(two, address(two)).and_then(|_| two.greet(one, address(one))));
        says_of(one, two, false);
    }
}
