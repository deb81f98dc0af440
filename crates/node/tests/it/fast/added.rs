//! How soon after its ADD a pod has the programs (promise P15: 20 ms). What is asserted is that it gets them; the figures are for who
//! reads them, as they depend on the machine.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use fastpath::{FastPath, Role};
use kernel::Rtnl;
use plan::state::LinkKind;

use super::taken::programs;
use super::{FLAGS, can, on_devices};
use crate::trace::Attached;
use crate::world::{Host, World, until};

const PODS: usize = 20;

/// How long the two programs of a device take to be tied where nothing else is done: the kernel waits for a grace period each time.
fn tied_alone(host: &Host) -> Duration {
    host.sh("ip link add alone type veth peer name alone1");
    let index = host.json("ip -j link show alone")[0]["ifindex"].as_u64().unwrap() as u32;
    let tie = || {
        let mut fast = FastPath::load(fastpath::BUILT, 16, None).unwrap();
        let start = Instant::now();
        fast.attach("alone", index, Role::Pod).unwrap();
        start.elapsed()
    };
    let took = host.netns.run(tie).unwrap();
    host.sh("ip link del alone");
    took
}

/// The host's ends of pods' veths.
fn ports(host: &Host) -> BTreeSet<String> {
    let links = host.netns.run(|| Rtnl::open().and_then(|mut rtnl| rtnl.links())).unwrap().unwrap();
    let veths = links.iter().filter(|l| matches!(l.link.kind, LinkKind::Veth(_)) && l.master.is_some());
    veths.map(|l| l.link.name.to_string()).collect()
}

#[test]
fn an_added_pod_is_attached() {
    if !can("an_added_pod_is_attached") {
        return;
    }
    let config =
        r#"{"Network":"10.244.0.0/16","EnableNFTables":true,"Backend":{"Type":"vxlan","FastPath":"on"}}"#;
    let world = World::with_config(1, config);
    let _agents = world.start(FLAGS);
    let host = &world.hosts[0];
    on_devices(host, 1);
    let mut alone: Vec<Duration> = (0..PODS).map(|_| tied_alone(host)).collect();
    let (mut pods, mut times, mut known) = (Vec::new(), Vec::new(), BTreeSet::new());
    for number in 0..PODS {
        let Some(pod) = Attached::add(&world, host, &format!("added{number}"), "") else { return };
        let added = Instant::now();
        pods.push(pod);
        let now = ports(host);
        let port = now.difference(&known).next().expect("a port of the new pod").clone();
        // Asked at once and again and again: `until` looks less often than what is measured takes.
        while programs(host, &port) != ["pod_in", "pod_out"] && added.elapsed() < Duration::from_secs(10) {}
        times.push(added.elapsed());
        until("the programs to be there", || match programs(host, &port) {
            all if all == ["pod_in", "pod_out"] => Ok(()),
            other => Err(format!("{other:?}")),
        });
        known = now;
    }
    times.sort_unstable();
    alone.sort_unstable();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!(
        "attached after ADD: median {:?}, longest {:?} of {PODS}; tying alone: median {:?}, longest {:?}; load {}",
        times[PODS / 2],
        times[PODS - 1],
        alone[PODS / 2],
        alone[PODS - 1],
        load.trim()
    );
}
