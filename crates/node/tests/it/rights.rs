//! What the agent gives up: the kernel's own words on every thread. That everything works with the rest is what all
//! other tests show.

use std::collections::BTreeMap;
use std::fs;

use crate::world::{Agent, World, until};

/// linux/capability.h
const CHOWN: u64 = 1 << 0;
const DAC_OVERRIDE: u64 = 1 << 1;
const DAC_READ_SEARCH: u64 = 1 << 2;
const SETGID: u64 = 1 << 6;
const SETUID: u64 = 1 << 7;
const BASE: u64 = 1 << 10 | 1 << 12 | 1 << 13;
const PERFMON: u64 = 1 << 38;
const BPF: u64 = 1 << 39;

/// A thread's, or a process's.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rights {
    inherited: u64,
    permitted: u64,
    effective: u64,
    bounding: u64,
    no_more: bool,
}

impl Rights {
    /// Nothing but these, and no way to more.
    fn only(set: u64) -> Rights {
        Rights { inherited: 0, permitted: set, effective: set, bounding: set, no_more: true }
    }

    fn read(file: &str) -> Option<Rights> {
        let status = fs::read_to_string(file).ok()?;
        let value = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(":\t"));
        let set = |key: &str| u64::from_str_radix(value(key)?, 16).ok();
        Some(Rights {
            inherited: set("CapInh")?,
            permitted: set("CapPrm")?,
            effective: set("CapEff")?,
            bounding: set("CapBnd")?,
            no_more: value("NoNewPrivs")? == "1",
        })
    }
}

/// What this test itself has.
fn own() -> Rights {
    Rights::read("/proc/thread-self/status").unwrap()
}

/// Every thread, by name and number.
fn threads(pid: u32) -> BTreeMap<(String, String), Rights> {
    let mut threads = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
        let dir = task.path().display().to_string();
        let name = fs::read_to_string(format!("{dir}/comm")).unwrap_or_default().trim().to_owned();
        // A thread may end while it is looked at.
        if let Some(rights) = Rights::read(&format!("{dir}/status")) {
            threads.insert((name, task.file_name().to_string_lossy().into_owned()), rights);
        }
    }
    threads
}

/// Waits until all threads have what they should: `common`, but for those named. All named ones must be there.
fn become_so(agent: &Agent, common: u64, named: &[(&str, Rights)]) {
    until("every thread to have given up what it does not need", || {
        let threads = threads(agent.pid());
        let wanted = |name: &str| {
            let special = named.iter().find(|(known, _)| *known == name).map(|(_, rights)| rights.clone());
            special.unwrap_or(Rights::only(common))
        };
        let wrong = threads.iter().find(|((name, _), rights)| **rights != wanted(name));
        let missing = named.iter().find(|(name, _)| !threads.keys().any(|(have, _)| have == name));
        match (wrong, missing) {
            (None, None) if threads.len() > 3 => Ok(()),
            other => Err(format!("{other:x?} among {threads:x?}")),
        }
    });
}

/// Of the backend ipsec: the agent and its charon, whose process this is.
pub fn ipsec(agent: &Agent, charon: &str) {
    let set = BASE | CHOWN | SETGID | SETUID;
    become_so(agent, BASE, &[("rights", Rights::only(set)), ("charon", Rights::only(set))]);
    let daemon = Rights::read(charon).unwrap();
    assert!(daemon.bounding == set && daemon.permitted & !set == 0, "{daemon:x?}");
}

fn config(backend: &str) -> String {
    format!(r#"{{"Network":"10.244.0.0/16","EnableNFTables":true,"Backend":{{{backend}}}}}"#)
}

#[test]
fn every_thread_has_what_its_mode_needs_and_no_more() {
    let all = own();
    let with_bpf = Rights::only(BASE | BPF | PERFMON);
    let mut modes = vec![
        (r#""Type":"vxlan""#, vec![]),
        (r#""Type":"host-gw""#, vec![]),
        (r#""Type":"udp""#, vec![]),
        (r#""Type":"wireguard""#, vec![]),
        (r#""Type":"vxlan","FastPath":"on""#, vec![("rights", with_bpf.clone()), ("fast path", with_bpf)]),
        // Of an operator's commands nothing is known.
        (
            r#""Type":"extension","SubnetAddCommand":"ip route replace $SUBNET via $PUBLIC_IP""#,
            vec![("rights", all.clone()), ("commands", all)],
        ),
    ];
    let test = "rights::every_thread_has_what_its_mode_needs_and_no_more";
    if !crate::fast::can(test) {
        modes.remove(4);
    }
    for (backend, named) in modes {
        let world = World::with_config(2, &config(backend));
        let agents = world.start(&["--ip-masq", "--healthz-port=8081"]);
        for agent in &agents {
            become_so(agent, BASE, &named);
            agent.says("the agent has CAP_NET_BIND_SERVICE CAP_NET_ADMIN CAP_NET_RAW");
        }
        assert_eq!(
            agents[0].count("have all rights the agent was given"),
            usize::from(backend.contains("extension"))
        );
        let [one, two] = [&world.hosts[0], &world.hosts[1]];
        until("the peer", || {
            // Without a tunnel the address comes with the first pod.
            if backend.contains("host-gw") || backend.contains("extension") {
                let routes = one.sh("ip route");
                let subnet = two.subnet("FLANNEL_SUBNET").to_string();
                return if routes.contains(&subnet) { Ok(()) } else { Err(routes) };
            }
            one.greet(two, two.subnet("FLANNEL_SUBNET").network()).map(drop)
        });
    }
}

/// Keys of etcd and directories that belong to another user.
#[test]
fn files_of_others_stay_in_reach_where_they_are_needed() {
    let world = World::with_config(1, &config(r#""Type":"vxlan""#));
    let host = &world.hosts[0];
    let agent = host.agent(&["--etcd-cafile=/no/such/file"]);
    agent.ready();
    become_so(&agent, BASE | DAC_READ_SEARCH, &[]);
    assert_eq!(agent.terminate(), 0);
    fs::remove_file(host.subnet_file()).unwrap();
    std::os::unix::fs::chown(&host.dir, Some(65_534), Some(65_534)).unwrap();
    let agent = host.agent(&[]);
    agent.ready();
    become_so(&agent, BASE | DAC_OVERRIDE, &[]);
    assert!(host.subnet_file().exists());
}

/// In a container with fewer rights there is less to give up.
#[test]
fn fewer_rights_are_enough() {
    let world = World::with_config(2, &config(r#""Type":"vxlan""#));
    let [one, two] = [&world.hosts[0], &world.hosts[1]];
    if std::process::Command::new("capsh").arg("--print").output().is_err() {
        println!("SKIP rights::fewer_rights_are_enough: there is no capsh (package libcap2-bin)");
        return;
    }
    let bounding: Vec<String> = (0..=40).filter(|n| ![12, 13].contains(n)).map(|n| n.to_string()).collect();
    let drop = format!("--drop={}", bounding.join(","));
    let words = ["capsh", &drop, "--", "-c", "exec \"$0\" \"$@\""];
    let store = [("LODEN_STORE", one.store())];
    let agent = one.agent_under(&words, &["--ip-masq"], &store);
    let _other = two.agent(&[]);
    agent.ready();
    until("the peer", || one.greet(two, two.subnet("FLANNEL_SUBNET").network()));
    become_so(&agent, 1 << 12 | 1 << 13, &[]);
    agent.says("the agent has CAP_NET_ADMIN CAP_NET_RAW,");
}
