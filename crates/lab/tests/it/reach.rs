//! Hosts and their wires.

use lab::{Stack, Topology};

use crate::{able, bare, cli, text};

#[test]
fn hosts_reach_each_other_in_every_shape() {
    if !able("hosts_reach_each_other_in_every_shape") {
        return;
    }
    let check = |hosts: usize, topology: Topology, stack: Stack, mtu: u32| {
        let mut builder = bare().hosts(hosts).topology(topology).stack(stack);
        builder = builder.mtu(mtu);
        let lab = builder.start().unwrap();
        let status = lab.status().unwrap();
        assert_eq!(status.hosts.len(), hosts);
        for from in &status.hosts {
            for to in status.hosts.iter().filter(|to| to.name != from.name) {
                for net in &to.underlay {
                    let reach = lab.ping(&from.name, &net.addr().to_string()).unwrap();
                    assert!(reach.ok(), "{topology:?} {stack:?}: {reach:?}");
                    assert_eq!(reach.full_bytes, mtu);
                }
            }
        }
    };
    check(1, Topology::Flat, Stack::V4, 1500);
    check(3, Topology::Flat, Stack::V4, 1500);
    check(3, Topology::Flat, Stack::V6, 1500);
    check(2, Topology::Routed, Stack::Dual, 9000);
    check(5, Topology::Routed, Stack::Dual, 1400);
}

#[test]
fn routed_hosts_have_different_subnets() {
    if !able("routed_hosts_have_different_subnets") {
        return;
    }
    let lab = bare().topology(Topology::Routed).start().unwrap();
    // A foreign witness: the next hop of the kernel's own look-up.
    let near = lab.host(1).stdout("ip", &["route", "get", "192.0.2.12"]).unwrap();
    assert!(near.starts_with("192.0.2.12 dev eth0 src 192.0.2.11"), "{near}");
    let far = lab.host(1).stdout("ip", &["route", "get", "198.51.100.13"]).unwrap();
    assert!(far.starts_with("198.51.100.13 via 192.0.2.1 dev eth0 src 192.0.2.11"), "{far}");
}

#[test]
fn a_host_looks_like_a_host() {
    if !able("a_host_looks_like_a_host") {
        return;
    }
    let lab = bare().hosts(2).start().unwrap();
    let script = "hostname; ls /sys/class/net; echo x > /run/only-here; echo x > /var/lib/loden/mine; ls /run /var/lib/cni; \
                  cat /etc/cni/net.d/*; grep host2 /etc/hosts";
    let out = lab.host(1).stdout("sh", &["-c", script]).unwrap();
    assert!(out.starts_with("host1\neth0\nlo\n"), "{out}");
    assert!(out.contains("only-here"), "{out}");
    assert!(out.contains("\"isDefaultGateway\": true"), "{out}");
    assert!(out.contains("192.0.2.12 host2"), "{out}");
    let other = lab.host(2).stdout("ls", &["/run"]).unwrap();
    assert_eq!(other, "loden-lab\n", "what host1 wrote below /run is its own");
    assert_eq!(lab.host(2).stdout("ls", &["/var/lib/loden"]).unwrap(), "");
    assert!(!std::path::Path::new("/run/only-here").exists());
    assert!(!std::path::Path::new("/var/lib/loden/mine").exists());
    // In process, too.
    let names = lab.host(2).run(|| std::fs::read_to_string("/proc/thread-self/net/dev").unwrap()).unwrap();
    assert!(names.contains("eth0:"), "{names}");
    let links = lab.wire().rtnl().unwrap().links().unwrap();
    let mut names: Vec<String> = links.iter().map(|l| l.link.name.to_string()).collect();
    names.sort_unstable();
    assert_eq!(names, ["host1", "host2", "lo", "wire0"]);
}

#[test]
fn programs_run_inside_as_if_outside() {
    if !able("programs_run_inside_as_if_outside") {
        return;
    }
    let lab = bare().hosts(1).start().unwrap();
    let name = lab.client().name();
    let out = cli(&["exec", "--name", name, "host1", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!(
        (out.status.code(), text(&out.stdout), text(&out.stderr)),
        (Some(7), "out\n".into(), "err\n".into())
    );
    let out = cli(&["exec", "--name", name, "host1", "--", "sh", "-c", "kill -9 $$"]);
    assert_eq!(out.status.code(), Some(137));
    let out = cli(&["exec", "--name", name, "host1", "no-such-program"]);
    assert_eq!(
        text(&out.stderr),
        "loden lab: start no-such-program in host1: No such file or directory (os error 2)\n"
    );
    let out = cli(&["exec", "--name", name, "host9", "true"]);
    let want = "loden lab: there is no host or pod \"host9\"; `loden lab status` shows those there are\n";
    assert_eq!(text(&out.stderr), want);
}

#[test]
fn an_unreachable_address_says_why() {
    if !able("an_unreachable_address_says_why") {
        return;
    }
    let lab = bare().hosts(2).start().unwrap();
    let check = |to: &str, want: &str| {
        let reach = lab.ping_within("host1", to, 300).unwrap();
        assert_eq!(reach.why.as_deref(), Some(want), "{reach:?}");
    };
    check("203.0.113.9", "no route to the destination, says 192.0.2.1");
    lab.host(2).stdout("ip", &["route", "add", "prohibit", "192.0.2.11/32"]).unwrap();
    check("192.0.2.12", "no answer");
    lab.host(1).stdout("ip", &["route", "add", "unreachable", "203.0.113.0/24"]).unwrap();
    check("203.0.113.9", "the host does not answer");
    // The packet socket of the wire sees what is asked of the gateway.
    let frames = lab.capture(
        &["wire"],
        |b| b.windows(9).any(|w| w == b"loden-lab"),
        || {
            lab.ping("host1", "192.0.2.1").unwrap();
        },
    );
    let frames = frames.unwrap();
    let devices: Vec<&str> = frames.iter().map(|f| f.device.as_str()).take(2).collect();
    assert_eq!(devices, ["host1", "wire0"]);
}
