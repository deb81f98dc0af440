use super::*;

fn lease(n: u8, v6: bool) -> Lease {
    let subnets = Subnets {
        v4: Some(format!("10.244.{n}.0/24").parse().unwrap()),
        v6: v6.then(|| format!("fd00:10:{n}::/64").parse().unwrap()),
    };
    let attrs = LeaseAttrs {
        public_ip: Some([192, 0, 2, n].into()),
        public_ip6: v6.then(|| format!("2001:db8::{n}").parse().unwrap()),
        backend_type: "vxlan".to_owned(),
        backend_data: Some(format!("{{\"VNI\":1, \"VtepMAC\":\"02:00:00:00:00:{n:02x}\"}}").into()),
        // Whatever a peer published, down to what is no JSON, comes back byte for byte.
        backend_v6_data: v6.then(|| "<&\u{2028}\n\"\\".into()),
    };
    Lease { subnets, attrs }
}

fn moment(unix: u64, uptime: u64, boot: &str) -> Moment {
    Moment { unix, uptime, boot: boot.to_owned() }
}

fn state() -> LastGood {
    let mut peers = Peers::default();
    peers.reset([lease(1, false), lease(2, true), lease(3, false)]);
    let names = [(lease(2, true).subnets, "node-two".into())];
    LastGood {
        node: "node-one".to_owned(),
        store: "etcd at http://192.0.2.1:2379 under /coreos.com/network/".to_owned(),
        saved: moment(1_000, 500, "boot-a"),
        conf: "{\n  \"Network\": \"10.244.0.0/16\"\n}".to_owned(),
        published: Some(lease(1, false).attrs),
        public_ip: Some([198, 51, 100, 1].into()),
        public_ip6: None,
        own: lease(1, false),
        left: Some(600),
        peers,
        names: Arc::new(names.into_iter().collect()),
    }
}

/// All of it but the peers' revision, which counts from each start.
fn same(a: &LastGood, b: &LastGood) -> bool {
    let rest = |s: &LastGood| format!("{:?}", LastGood { peers: Peers::default(), ..s.clone() });
    rest(a) == rest(b) && a.peers.iter().eq(b.peers.iter())
}

#[test]
fn a_state_survives_a_round_trip() {
    let full = state();
    let empty = LastGood {
        published: None,
        public_ip: None,
        left: None,
        peers: Peers::default(),
        own: Lease { subnets: Subnets { v4: None, ..lease(7, true).subnets }, ..lease(7, true) },
        names: Arc::default(),
        ..state()
    };
    for state in [full, empty] {
        let text = state.encode();
        let read = LastGood::decode(text.as_bytes()).unwrap();
        assert!(same(&read, &state), "{text}\n{read:#?}\n{state:#?}");
        assert!(text.starts_with("loden last good state, version 1, checksum "), "{text}");
        assert_eq!(text.lines().count(), 3 + state.peers.len(), "a line for each lease: {text}");
    }
}

#[test]
fn no_damaged_byte_and_no_missing_end_is_believed() {
    let good = state().encode().into_bytes();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x20;
        assert!(LastGood::decode(&bad).is_err(), "byte {at} altered: {}", String::from_utf8_lossy(&bad));
        assert!(LastGood::decode(&good[..at]).is_err(), "cut at {at}");
    }
    let longer = [&good[..], b"\n"].concat();
    assert!(LastGood::decode(&longer).is_err(), "something after the end");
}

#[test]
fn every_refusal_is_the_rest_of_a_sentence() {
    let good = state().encode();
    let (head, body) = good.split_once('\n').unwrap();
    let signed = |body: &str| format!("{MAGIC}1, checksum {:016x}\n{body}", checksum(body.as_bytes()));
    for (file, want) in [
        (String::new(), "it is not of version 1, the one this agent reads"),
        ("\n".to_owned(), "it is not of version 1, the one this agent reads"),
        ("SQLite format 3\n".to_owned(), "it is not of version 1, the one this agent reads"),
        (good.replace("version 1", "version 2"), "it is not of version 1, the one this agent reads"),
        (format!("{head}\n{}", body.replace("10.244", "10.245")), "it is damaged: its checksum is wrong"),
        (signed("{}\n"), "it is damaged: its checksum is right but a line is not"),
        (
            signed(&body.replace("\"leases\":3", "\"leases\":4")),
            "it is damaged: its checksum is right but a line is not",
        ),
        (
            signed(&body.replace("10.244.3.0/24", "10.244.3.0/33")),
            "it is damaged: its checksum is right but a line is not",
        ),
    ] {
        let refusal = LastGood::decode(file.as_bytes()).map(drop).map_err(|e| e.to_string());
        assert_eq!(refusal, Err(want.to_owned()), "{file:?}");
    }
    assert!(LastGood::decode(signed(body).as_bytes()).is_ok());

    let state = state();
    let store = state.store.clone();
    for (node, store, want) in [
        ("node-one", store.as_str(), None),
        ("node-nine", &store, Some("it is of node \"node-one\", and this is \"node-nine\"")),
        (
            "node-one",
            "etcd at http://192.0.2.9:2379 under /x/",
            Some(
                "it comes from etcd at http://192.0.2.1:2379 under /coreos.com/network/, and this agent was told to \
                 use etcd at http://192.0.2.9:2379 under /x/",
            ),
        ),
    ] {
        let found = state.is_of(node, store).err().map(|refusal| refusal.to_string());
        assert_eq!(found.as_deref(), want);
    }
}

#[test]
fn a_lease_in_doubt_is_not_ours() {
    for (now, left, life, why) in [
        (moment(1_100, 600, "boot-a"), Some(600), Life::Left(500), "the clocks agree"),
        (moment(1_601, 1_099, "boot-a"), Some(600), Life::Left(1), "the last second"),
        (moment(1_600, 1_100, "boot-a"), Some(600), Life::Over(0), "the end"),
        (moment(9_999_999, 600, "boot-a"), Some(600), Life::Left(500), "the wall clock was set forward"),
        (moment(3, 1_200, "boot-a"), Some(600), Life::Over(100), "the wall clock was set back"),
        (moment(1_100, 10, "boot-b"), Some(600), Life::Left(500), "booted since"),
        (moment(2_000, 10, "boot-b"), Some(600), Life::Over(400), "booted long after"),
        (moment(999, 10, "boot-b"), Some(600), Life::Unknown, "booted, and the clock is behind"),
        (moment(3, 10, "boot-b"), None, Life::Endless, "the store sets no limit"),
        (moment(1_100, 600, ""), Some(600), Life::Left(500), "no boot id, the wall clock has to do"),
    ] {
        assert_eq!(LastGood { left, ..state() }.life(&now), life, "{why}");
    }
    let unknown = LastGood { saved: moment(1_000, 500, ""), ..state() };
    assert_eq!(
        unknown.life(&moment(1_100, 9_000, "")),
        Life::Left(500),
        "two unknown boots are not the same"
    );
}

#[test]
fn five_thousand_leases_stay_small() {
    let lease = |n: u32| {
        let [_, _, a, b] = n.to_be_bytes();
        Lease {
            subnets: Subnets { v4: Some(format!("10.{a}.{b}.0/24").parse().unwrap()), v6: None },
            ..lease(1, false)
        }
    };
    let mut peers = Peers::default();
    peers.reset((0..5_000).map(lease));
    let state = LastGood { peers, names: Arc::default(), ..state() };
    let text = state.encode();
    assert!(text.len() < 750_000, "{} bytes", text.len());
    assert!(same(&LastGood::decode(text.as_bytes()).unwrap(), &state));
}
