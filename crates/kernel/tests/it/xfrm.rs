//! IPsec policies, with `ip xfrm` as witness.

use std::sync::mpsc;
use std::time::Duration;

use ipnet::IpNet;
use kernel::xfrm::{Change, Watch};
use kernel::{Kernel, Netns};
use plan::state::{Direction, GUARD_PRIORITY, OWN_PRIORITY, Policy, PolicyAction, PolicyKey, REQID, Scope};
use plan::{Key, Object, State, Step, diff};

use super::{fresh, run_in};

const PATIENCE: Duration = Duration::from_secs(20);

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn ip_in(netns: &Netns, words: &str) -> String {
    run_in(netns, &format!("ip {words}"))
}

fn policy(dir: Direction, src: &str, dst: &str, priority: u32, action: PolicyAction) -> Object {
    Object::Policy(Box::new(Policy {
        key: PolicyKey { dir, src: net(src), dst: net(dst) },
        priority,
        action,
    }))
}

fn esp(from: &str, to: &str) -> PolicyAction {
    PolicyAction::Esp { from: from.parse().unwrap(), to: to.parse().unwrap(), reqid: REQID }
}

const OWN: &str = "10.244.1.0/24";
const PEER: &str = "10.244.2.0/24";

fn wanted() -> State {
    let (here, there) = ("192.0.2.1", "192.0.2.2");
    [
        policy(Direction::Out, OWN, OWN, OWN_PRIORITY, PolicyAction::Allow),
        policy(Direction::Out, OWN, "10.244.0.0/16", GUARD_PRIORITY, PolicyAction::Block),
        policy(Direction::Out, OWN, PEER, 0, esp(here, there)),
        policy(Direction::In, PEER, OWN, 0, esp(there, here)),
        policy(Direction::Fwd, PEER, OWN, 0, esp(there, here)),
        policy(Direction::Out, "fd00:1::/64", "fd00:2::/64", 7, esp("2001:db8::1", "2001:db8::2")),
    ]
    .into_iter()
    .collect()
}

fn has_xfrm(netns: &Netns, test: &str) -> bool {
    let there = netns.run(|| Watch::open().is_ok()).unwrap();
    if !there {
        println!("SKIP {test}: this kernel has no IPsec (xfrm_user)");
    }
    there
}

fn scope() -> Scope {
    let networks = vec![net("10.244.0.0/16"), net("fd00::/16")];
    Scope { networks, policies: true, ..Scope::default() }
}

fn apply(kernel: &mut Kernel, steps: &[Step]) {
    kernel.apply(steps).into_iter().for_each(|result| result.unwrap());
}

/// Brings the kernel to the wanted state; gives the steps it took.
fn converge(kernel: &mut Kernel, wanted: &State) -> Vec<String> {
    let steps = diff(wanted, &kernel.read(&scope(), wanted).unwrap()).rest;
    apply(kernel, &steps);
    assert_eq!(kernel.read(&scope(), wanted).unwrap(), *wanted);
    steps.iter().map(ToString::to_string).collect()
}

#[test]
fn policies_are_written_read_and_put_right() {
    let netns = fresh();
    if !has_xfrm(&netns, "policies_are_written_read_and_put_right") {
        return;
    }
    let foreign = [
        "xfrm policy add src 10.244.1.0/24 dst 10.244.2.0/24 dir out mark 5 mask 0xff tmpl proto esp mode tunnel",
        "xfrm policy add src 10.244.1.0/24 dst 10.244.2.0/24 proto udp dport 53 dir out",
        "xfrm policy add src 10.244.9.0/24 dst 10.244.2.0/24 dir out tmpl src 1.1.1.1 dst 2.2.2.2 proto esp reqid 12 mode tunnel",
        "xfrm policy add src 10.9.0.0/16 dst 10.8.0.0/16 dir fwd tmpl src 1.1.1.1 dst 2.2.2.2 proto esp reqid 11 mode tunnel",
        "xfrm policy add src 10.244.1.0/24 dst 10.244.0.0/17 dir out action block priority 1",
    ];
    for command in foreign {
        ip_in(&netns, command);
    }
    assert!(netns.run(kernel::xfrm::is_there).unwrap());
    let before = ip_in(&netns, "xfrm policy");
    let mut kernel = Kernel::open_in(&netns).unwrap();
    let wanted = wanted();
    assert_eq!(converge(&mut kernel, &wanted).len(), 6);
    let shown = ip_in(&netns, "xfrm policy");
    let squeezed = shown.split_whitespace().collect::<Vec<_>>().join(" ");
    for text in [
        "src 10.244.1.0/24 dst 10.244.2.0/24 dir out priority 0 ptype main tmpl src 192.0.2.1 dst 192.0.2.2 proto esp reqid 11 mode tunnel",
        "src 10.244.2.0/24 dst 10.244.1.0/24 dir fwd priority 0 ptype main tmpl src 192.0.2.2 dst 192.0.2.1 proto esp reqid 11 mode tunnel",
        "src 10.244.1.0/24 dst 10.244.0.0/16 dir out action block priority 76001 ptype main",
        "src fd00:1::/64 dst fd00:2::/64 dir out priority 7 ptype main tmpl src 2001:db8::1 dst 2001:db8::2 proto esp reqid 11 mode tunnel",
    ] {
        assert!(squeezed.contains(text), "{text} in {shown}");
    }
    // What the tool makes of our commands is the same.
    ip_in(&netns, "xfrm policy flush");
    for command in foreign {
        ip_in(&netns, command);
    }
    for (_, object) in wanted.iter() {
        ip_in(&netns, object.to_string().strip_prefix("ip ").unwrap());
    }
    assert_eq!(converge(&mut kernel, &wanted), [""; 0]);
    for damage in [
        "xfrm policy delete src 10.244.1.0/24 dst 10.244.2.0/24 dir out",
        "xfrm policy update src 10.244.2.0/24 dst 10.244.1.0/24 dir in tmpl src 192.0.2.2 dst 192.0.2.1 proto esp reqid 11 mode tunnel level use",
        "xfrm policy update src 10.244.1.0/24 dst 10.244.2.0/24 dir out tmpl src 192.0.2.1 dst 192.0.2.9 proto esp reqid 11 mode tunnel",
        "xfrm policy update src 10.244.1.0/24 dst 10.244.2.0/24 dir out tmpl src 192.0.2.1 dst 192.0.2.2 proto esp reqid 11 mode transport",
        "xfrm policy update src 10.244.1.0/24 dst 10.244.0.0/16 dir out action allow priority 76001",
        "xfrm policy update src 10.244.1.0/24 dst 10.244.0.0/16 dir out action block priority 5",
        // An old one of ours: its node is gone.
        "xfrm policy add src 10.244.7.0/24 dst 10.244.1.0/24 dir in tmpl src 192.0.2.7 dst 192.0.2.99 proto esp reqid 11 mode tunnel",
    ] {
        ip_in(&netns, damage);
        assert_eq!(converge(&mut kernel, &wanted).len(), 1, "{damage}");
    }
    let nothing = State::default();
    let steps = diff(&nothing, &kernel.read(&scope(), &nothing).unwrap()).rest;
    apply(&mut kernel, &steps);
    apply(&mut kernel, &steps);
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(|l| l.trim().to_owned()).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&ip_in(&netns, "xfrm policy")), sorted(&before), "others' policies are as they were");
}

#[test]
fn changes_of_policies_are_told() {
    let netns = fresh();
    if !has_xfrm(&netns, "changes_of_policies_are_told") {
        return;
    }
    let mut watch = netns.run(Watch::open).unwrap().unwrap();
    let (sender, changes) = mpsc::channel();
    std::thread::spawn(move || {
        while let Ok(found) = watch.next_changes() {
            if found.into_iter().any(|change| sender.send(change).is_err()) {
                return;
            }
        }
    });
    let next = || changes.recv_timeout(PATIENCE).expect("a change");
    let mut kernel = Kernel::open_in(&netns).unwrap();
    for (_, object) in wanted().iter() {
        let key = object.key();
        apply(&mut kernel, &[Step::Put(object.clone())]);
        assert_eq!(next(), Change::Object(key.clone(), Some(object.clone())));
        apply(&mut kernel, &[Step::Delete(object.clone())]);
        assert_eq!(next(), Change::Object(key, None));
    }
    let Some((Key::Policy(key), _)) = wanted().iter().next().map(|(k, o)| (k.clone(), o.clone())) else {
        panic!("a policy")
    };
    ip_in(&netns, &format!("xfrm policy add {key} mark 3"));
    ip_in(&netns, "xfrm policy flush");
    assert_eq!(next(), Change::All, "one with a mark is another's");
}
