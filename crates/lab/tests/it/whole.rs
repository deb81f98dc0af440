//! The whole of it: the real agent on every host, our own plugins, pods that reach each other. Needs
//! `loden` and `loden-cni` beside this crate's own program (`cargo build -p node -p cni`).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use lab::proto::Hop;
use lab::{Lab, Stack, Topology};

use crate::{PROGRAM, able, text, writeln};

fn loden(test: &str) -> Option<PathBuf> {
    let loden = Path::new(PROGRAM).with_file_name("loden");
    let there = loden.is_file() && loden.with_file_name("loden-cni").is_file();
    if !there {
        writeln(&format!("SKIP {test}: needs loden and loden-cni: cargo build -p node -p cni"));
    }
    Some(loden).filter(|_| there && able(test))
}

/// Devices that saw a packet on hosts and wire, veths left out.
fn way(hops: &[Hop]) -> String {
    let seen = hops.iter().filter(|h| !h.device.starts_with("veth") && !h.place.starts_with("pod"));
    seen.map(|h| format!("{} {}", h.place, h.device)).collect::<Vec<_>>().join(", ")
}

#[test]
fn pods_reach_each_other_in_every_shape() {
    let Some(loden) = loden("pods_reach_each_other_in_every_shape") else { return };
    let tunnel = "host1 cni0, host1 D, host1 eth0, wire host1, wire host2, host2 eth0, host2 D, host2 cni0";
    let plain = "host1 cni0, host1 eth0, wire host1, wire host2, host2 eth0, host2 cni0";
    let across = "host1 cni0, host1 D, host1 eth0, wire host1, wire wire0, wire wire1, wire host3, host3 eth0, \
                  host3 D, host3 cni0";
    use Stack::{Dual, V4, V6};
    use Topology::{Flat, Routed};
    for (backend, direct, topology, stack, near, far) in [
        ("vxlan", false, Flat, V4, tunnel, None),
        ("vxlan", false, Flat, V6, tunnel, None),
        ("vxlan", true, Routed, Dual, plain, Some(across)),
        ("vxlan", false, Routed, Dual, tunnel, Some(across)),
        ("host-gw", false, Flat, Dual, plain, None),
    ] {
        let what = format!("{backend} {direct} {topology:?} {stack:?}");
        let builder = Lab::builder(&loden).pods(1).backend(backend).direct_routing(direct);
        let lab = builder.topology(topology).stack(stack).start().unwrap();
        for reach in lab.matrix().unwrap() {
            assert!(reach.ok(), "{what}: {reach:?}");
        }
        for v6 in [false, true].into_iter().filter(|v6| if *v6 { stack.v6() } else { stack.v4() }) {
            let device = if v6 { "flannel-v6.1" } else { "flannel.1" };
            let mut ways = vec![("pod2-1", near)];
            ways.extend(far.map(|far| ("pod3-1", far)));
            for (to, want) in ways {
                let walk = lab.walk("pod1-1", to, v6).unwrap();
                assert_eq!(way(&walk.there), want.replace('D', device), "{what} to {to}");
                let fetch = lab.fetch("pod1-1", to, v6).unwrap();
                assert!(fetch.unmasked(), "{what}: {fetch:?}");
            }
        }
    }
}

#[test]
fn the_first_five_minutes() {
    let Some(loden) = loden("the_first_five_minutes") else { return };
    let name = format!("first-{}", std::process::id());
    let mut command = Command::new(&loden);
    command.args(["lab", "demo", "--name", &name]).env_remove("LC_ALL").env("LANG", "C.UTF-8");
    let start = std::time::Instant::now();
    let out = command.output().unwrap();
    assert!(start.elapsed() < Duration::from_secs(30));
    let shown = text(&out.stdout);
    assert!(out.status.success(), "{shown}{}", text(&out.stderr));
    for words in [
        "3 agents, every one ready",
        "6 pods connected through CNI",
        "╭─ host3 ",
        "48 of 48 pairs answer",
        "wrapped: 98 → 148 bytes",
        "VNI 1",
        "the pod's own address: nothing translated it",
        "How long a pod took",
        "loden lab exec host1",
        "the lab is gone; nothing is left behind",
    ] {
        assert!(shown.contains(words), "{words:?} is missing in:\n{shown}");
    }
}

#[test]
fn killing_an_agent_loses_nothing() {
    let Some(loden) = loden("killing_an_agent_loses_nothing") else { return };
    let lab = Lab::builder(&loden).hosts(2).pods(1).start().unwrap();
    assert!(lab.ping("pod1-1", "pod2-1").unwrap().ok());
    let before = lab.status().unwrap().hosts[0].clone();
    lab.agent_kill(1).unwrap();
    let quick = lab.ping_within("pod1-1", "pod2-1", 1000).unwrap();
    assert!(quick.ok(), "{quick:?}");
    lab.agent_start(1).unwrap();
    let after = lab.status().unwrap().hosts[0].clone();
    assert_eq!((after.subnets, after.devices), (before.subnets, before.devices));
    // What somebody deletes comes back, and is seen to.
    lab.host(1).stdout("ip", &["link", "del", "flannel.1"]).unwrap();
    let back = lab.ping("pod1-1", "pod2-1").unwrap();
    assert!(back.ok(), "{back:?}");
}
