//! WireGuard devices of the kernel: wanted state in, equal state out; `wg` is the witness.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use kernel::{Kernel, Netns};
use model::IfName;
use model::wireguard::{PublicKey, Secret};
use plan::state::{Carrier, Link, LinkKind, Object, Scope, State, WgPeer, Wireguard};
use plan::{Step, diff};

use super::{fresh, run_in};

const DEV: &str = "flannel-wg";

/// Whether the kernel has WireGuard, or a note that the test is skipped.
fn kernel_with_wireguard(test: &str) -> Option<(Netns, Kernel)> {
    let netns = fresh();
    let mut kernel = Kernel::open_in(&netns).unwrap();
    if kernel.has_wireguard() {
        return Some((netns, kernel));
    }
    println!("SKIP {test}: this kernel has no wireguard");
    None
}

fn device(port: u16, key: u8) -> Object {
    Object::Link(Box::new(Link {
        name: IfName::fixed(DEV),
        kind: LinkKind::Wireguard(Wireguard {
            carrier: Carrier::Kernel,
            port: Some(port),
            key: Some(secret(key)),
            key_file: "/run/flannel/wgkey".to_owned(),
        }),
        mac: None,
        mtu: Some(1420),
        up: true,
        txqlen: None,
        master: None,
    }))
}

/// A private key as the kernel stores it (RFC 7748 §5 clears and sets some bits).
fn secret(n: u8) -> Secret {
    let mut bytes = [n; 32];
    (bytes[0], bytes[31]) = (n & 248, n & 63 | 64);
    Secret::new(bytes)
}

fn peer(n: u8) -> WgPeer {
    WgPeer {
        dev: IfName::fixed(DEV),
        key: PublicKey([n; 32]),
        psk: Some(Secret::new([n; 32])),
        endpoint: Some(SocketAddr::from(([192, 0, 2, n], 51820))),
        allowed: vec![format!("10.244.{n}.0/24").parse().unwrap()],
        keepalive_s: 0,
    }
}

fn state(objects: impl IntoIterator<Item = Object>) -> State {
    objects.into_iter().collect()
}

fn scope() -> Scope {
    Scope { devices: BTreeSet::from([IfName::fixed(DEV)]), ..Scope::default() }
}

/// Reads, applies what differs, and reads again, which must differ in nothing. Gives the steps done.
fn converge(kernel: &mut Kernel, wanted: &State) -> Vec<Step> {
    let mut all = Vec::new();
    for _ in 0..2 {
        let found = diff(wanted, &kernel.read(&scope(), wanted).unwrap());
        let steps: Vec<Step> = if found.links.is_empty() { found.rest } else { found.links };
        for (step, answer) in steps.iter().zip(kernel.apply(&steps)) {
            answer.unwrap_or_else(|error| panic!("{step}: {error}"));
        }
        all.extend(steps);
    }
    let found = diff(wanted, &kernel.read(&scope(), wanted).unwrap());
    assert!(found.is_empty(), "{found:?}");
    all
}

#[test]
fn wireguard_devices_and_peers_are_made_and_read_back_equal() {
    let Some((netns, mut kernel)) = kernel_with_wireguard("wireguard_devices_and_peers") else { return };
    let v6 = WgPeer {
        psk: None,
        endpoint: Some("[2001:db8::9]:7".parse().unwrap()),
        allowed: vec!["10.244.9.0/24".parse().unwrap(), "fd00:9::/64".parse().unwrap()],
        keepalive_s: 25,
        ..peer(9)
    };
    let object = |peer: &WgPeer| Object::WgPeer(Box::new(peer.clone()));
    let wanted = state([device(5000, 3), object(&peer(2)), object(&v6)]);
    assert_eq!(converge(&mut kernel, &wanted).len(), 3);
    let dump = run_in(&netns, "wg show flannel-wg dump");
    let lines: Vec<Vec<&str>> = dump.lines().map(|line| line.split('\t').collect()).collect();
    assert_eq!((lines[0][0], lines[0][2]), (secret(3).expose_text().as_str(), "5000"));
    let line = |peer: &WgPeer| {
        let key = peer.key.to_string();
        lines.iter().find(|line| line[0] == key).unwrap_or_else(|| panic!("no {key} in {dump}")).clone()
    };
    assert_eq!(
        line(&peer(2))[1..4],
        [&Secret::new([2; 32]).expose_text(), "192.0.2.2:51820", "10.244.2.0/24"]
    );
    let nine = line(&v6);
    assert_eq!((nine[1], nine[2], nine[7]), ("(none)", "[2001:db8::9]:7", "25"));
    assert_eq!(nine[3].split(',').collect::<BTreeSet<_>>(), BTreeSet::from(["10.244.9.0/24", "fd00:9::/64"]));
    assert!(run_in(&netns, "ip link show flannel-wg").contains("mtu 1420"));

    // A process that comes later finds nothing to do.
    let mut later = Kernel::open_in(&netns).unwrap();
    assert_eq!(converge(&mut later, &wanted), []);
}

#[test]
fn wireguard_drift_is_put_right_and_what_is_not_wanted_goes() {
    let Some((netns, mut kernel)) = kernel_with_wireguard("wireguard_drift") else { return };
    let object = |peer: &WgPeer| Object::WgPeer(Box::new(peer.clone()));
    let wanted = state([device(5000, 3), object(&peer(2)), object(&peer(3))]);
    converge(&mut kernel, &wanted);
    let index = || run_in(&netns, "ip -o link show flannel-wg").split(':').next().unwrap().to_owned();
    let before = index();
    let key = PublicKey([2; 32]);
    for damage in [
        format!("wg set flannel-wg peer {key} remove"),
        format!("wg set flannel-wg peer {key} allowed-ips 10.9.9.0/24"),
        format!("wg set flannel-wg peer {key} preshared-key /dev/null"),
        format!("wg set flannel-wg peer {key} persistent-keepalive 5"),
        format!("wg set flannel-wg peer {} allowed-ips 10.9.9.0/24", PublicKey([77; 32])),
        "wg set flannel-wg listen-port 5001".to_owned(),
        "wg set flannel-wg private-key /dev/null".to_owned(),
        "ip link set flannel-wg mtu 1300".to_owned(),
        "ip link set flannel-wg down".to_owned(),
    ] {
        run_in(&netns, &damage);
        let steps = converge(&mut kernel, &wanted);
        assert_eq!(steps.len(), 1, "{damage}: {steps:?}");
    }
    assert_eq!(index(), before, "the same device");
    // Another key of the same node, then nobody.
    let renewed = WgPeer { key: PublicKey([4; 32]), ..peer(2) };
    let steps = converge(&mut kernel, &state([device(5000, 3), object(&renewed), object(&peer(3))]));
    let shown: Vec<String> = steps.iter().map(Step::to_string).collect();
    assert!(shown.len() == 2 && shown[1] == format!("wg set flannel-wg peer {key} remove"), "{shown:?}");
    assert!(
        run_in(&netns, "wg show flannel-wg allowed-ips").contains(&format!("{}\t10.244.2.0/24", renewed.key))
    );
    converge(&mut kernel, &state([device(5000, 3)]));
    assert_eq!(run_in(&netns, "wg show flannel-wg peers"), "");
}

#[test]
fn wireguard_endpoints_are_written_when_they_are_news() {
    let Some((netns, mut kernel)) = kernel_with_wireguard("wireguard_endpoints") else { return };
    let wanted = |endpoint: &str| {
        let peer = WgPeer { endpoint: Some(endpoint.parse().unwrap()), ..peer(2) };
        state([device(5000, 3), Object::WgPeer(Box::new(peer))])
    };
    let shown =
        || run_in(&netns, "wg show flannel-wg endpoints").split_whitespace().nth(1).unwrap().to_owned();
    let first = wanted("192.0.2.2:51820");
    converge(&mut kernel, &first);
    // As if the peer's packets had come from elsewhere.
    run_in(&netns, &format!("wg set flannel-wg peer {} endpoint 203.0.113.1:40000", PublicKey([2; 32])));
    assert_eq!(converge(&mut kernel, &first), []);
    assert_eq!(shown(), "203.0.113.1:40000");
    // Another difference is no reason to write it.
    run_in(&netns, &format!("wg set flannel-wg peer {} persistent-keepalive 5", PublicKey([2; 32])));
    assert_eq!(converge(&mut kernel, &first).len(), 1);
    assert_eq!(shown(), "203.0.113.1:40000");
    // A lease that says another one is, and a device made anew.
    converge(&mut kernel, &wanted("192.0.2.3:51820"));
    assert_eq!(shown(), "192.0.2.3:51820");
    run_in(&netns, "ip link delete flannel-wg");
    converge(&mut kernel, &first);
    assert_eq!(shown(), "192.0.2.2:51820");
    // A process that knows nothing of before, and a peer never heard of: the lease is right.
    run_in(&netns, &format!("wg set flannel-wg peer {} endpoint 203.0.113.1:40000", PublicKey([2; 32])));
    converge(&mut Kernel::open_in(&netns).unwrap(), &first);
    assert_eq!(shown(), "192.0.2.2:51820");
}

#[test]
fn wireguard_on_a_taken_port_is_refused_with_a_reason() {
    let Some((netns, mut kernel)) = kernel_with_wireguard("wireguard_on_a_taken_port") else { return };
    let taken = netns.run(|| std::net::UdpSocket::bind("0.0.0.0:5000")).unwrap().unwrap();
    let wanted = state([device(5000, 3)]);
    for _ in 0..2 {
        let found = diff(&wanted, &kernel.read(&scope(), &wanted).unwrap());
        let answers = kernel.apply(&found.links);
        let error = answers[0].as_ref().expect_err("the port is taken");
        assert_eq!(error.errno.code, 98, "{error}");
        assert!(!error.to_string().contains(&secret(3).expose_text()), "{error}");
    }
    drop(taken);
    converge(&mut kernel, &wanted);
}

#[test]
fn wireguard_takes_ten_thousand_peers_at_once() {
    let Some((netns, mut kernel)) = kernel_with_wireguard("wireguard_takes_ten_thousand_peers") else {
        return;
    };
    let many = (0..10_000u32).map(|n| {
        let mut key = [1; 32];
        key[..4].copy_from_slice(&n.to_be_bytes());
        let [_, _, a, b] = n.to_be_bytes();
        let allowed = vec![format!("10.{}.{b}.0/24", 100 + a).parse().unwrap()];
        Object::WgPeer(Box::new(WgPeer { key: PublicKey(key), allowed, psk: None, ..peer(2) }))
    });
    let wanted = state(many.chain([device(5000, 3)]));
    assert_eq!(converge(&mut kernel, &wanted).len(), 10_001);
    assert_eq!(run_in(&netns, "wg show flannel-wg peers").lines().count(), 10_000);
}
