use super::nat::{Flow, HOP, Rules, destination, mark};
use super::{Model, Sight, Step, Walk, compare, picture};

fn model(devices: &[&str]) -> Model {
    let step = |device: &&str| Step { place: "host", device: (*device).to_owned(), by: String::new() };
    Model { steps: devices.iter().map(step).collect(), far: "192.0.2.12".parse().ok(), ..Model::default() }
}

fn sights(devices: &[&str]) -> Vec<Sight> {
    let sight = |device: &&str| Sight {
        place: "host".to_owned(),
        device: (*device).to_owned(),
        at_us: 1.0,
        flow: None,
    };
    devices.iter().map(sight).collect()
}

#[test]
fn the_first_hop_where_they_part_is_named() {
    let way = ["cni0", "flannel.1", "eth0"];
    for (there, back, answered, at, text) in [
        (
            &["veth1", "cni0", "flannel.1", "eth0"][..],
            &["eth0", "flannel.1", "cni0"][..],
            true,
            None,
            "the answer came back",
        ),
        (&[], &[], false, Some(0), "not seen on cni0: this host does not send it"),
        (&["veth1", "cni0"], &[], false, Some(1), "seen on cni0 and not on flannel.1"),
        (&["cni0", "eth1"], &[], false, Some(1), "should go through flannel.1 and went through eth1"),
        (&["cni0", "flannel.1"], &[], false, Some(2), "seen on flannel.1 and not on eth0"),
        (
            &["cni0", "flannel.1", "eth0"],
            &[],
            false,
            None,
            "left through eth0 towards 192.0.2.12 and nothing came back",
        ),
        (
            &["cni0", "flannel.1", "eth0"],
            &["eth0"],
            false,
            Some(2),
            "came back to eth0 and did not reach flannel.1",
        ),
        (
            &["cni0", "flannel.1", "eth0"],
            &["eth0", "flannel.1"],
            false,
            Some(1),
            "came back to flannel.1 and did not reach cni0",
        ),
    ] {
        let walk = Walk { there: sights(there), back: sights(back), answered, refused: None, planned: false };
        let verdict = compare(&model(&way), &walk);
        assert_eq!((verdict.fine, verdict.at), (answered, at), "{there:?} {back:?}: {}", verdict.text);
        assert!(verdict.text.contains(text), "{there:?} {back:?}: {}", verdict.text);
    }
    let broken = Model { broken: Some("no entry".to_owned()), ..model(&["flannel.1"]) };
    assert!(compare(&broken, &Walk::default()).text.starts_with("the tables lead nowhere: no entry"));
    let refused = Walk { there: sights(&way), refused: Some("forbidden".to_owned()), ..Walk::default() };
    assert!(compare(&model(&way), &refused).text.ends_with("and was refused: forbidden"));
}

#[test]
fn pictures_say_what_the_screen_says() {
    let mut model = model(&["cni0", "flannel.1", "eth0"]);
    model.steps[1].by = "10.244.2.0 dev flannel.1, \"neigh\" <&> ".repeat(4);
    let walk =
        Walk { there: sights(&["cni0"]), back: Vec::new(), answered: false, refused: None, planned: false };
    let verdict = compare(&model, &walk);
    let svg = picture::svg("10.244.1.7", "10.244.2.9", &model, &walk, &verdict);
    let html = picture::html("10.244.1.7", "10.244.2.9", &model, &walk, &verdict);
    assert!(html.contains(svg.trim_end()));
    for text in [&svg, &html] {
        for part in [
            "10.244.1.7 → 10.244.2.9",
            "✓ seen",
            "✗ not seen",
            "not reached",
            "192.0.2.12",
            "not on flannel.1",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        // Nothing that is not text, and nothing from elsewhere.
        for part in ["<&", "\"neigh", "<script", "href", "url(", "@import"] {
            assert!(!text.contains(part), "{part}: {text}");
        }
    }
    // Long names take several lines.
    let long = format!("{}/web-0 (10.244.1.7)", "x".repeat(50));
    let named = picture::svg(&long, "10.244.2.9", &model, &walk, &verdict);
    assert_eq!((svg.matches("class=\"title\"").count(), named.matches("class=\"title\"").count()), (1, 2));
    // Every tag is closed, in order.
    let mut open = Vec::new();
    for tag in svg.split('<').skip(1).filter_map(|rest| rest.split('>').next()) {
        match tag.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name)),
            None if tag.ends_with('/') => {}
            None => open.push(tag.split_whitespace().next().unwrap_or_default()),
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

/// `a:1>b:2`
fn flow(text: &str) -> Flow {
    let end = |text: &str| -> std::net::SocketAddr { text.parse().unwrap() };
    let (from, to) = text.split_once('>').map(|(from, to)| (end(from), end(to))).unwrap();
    Flow { from: from.ip(), to: to.ip(), ports: Some((from.port(), to.port())) }
}

fn seen(place: &str, device: &str, text: &str) -> Sight {
    Sight { place: place.to_owned(), device: device.to_owned(), at_us: 1.0, flow: Some(flow(text)) }
}

const IPTABLES: &str = "\
-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-A
-A KUBE-SEP-A -p tcp -m tcp -j DNAT --to-destination 10.244.2.3:8080";
const MAP: &str = "\
\t\telements = { 10.96.0.10 . tcp . 80 : goto service-A, 10.96.0.11 . tcp . 80 : goto service-B }
\t\tdnat to meta l4proto . th dport map { tcp . 80 : 10.244.2.9 . 80, tcp . 81 : 10.244.2.3 . 8080 }";

#[test]
fn what_a_packet_became_is_a_hop_with_its_rule() {
    const POD: &str = "10.244.1.2:40000>10.96.0.10:80";
    const TURNED: &str = "10.244.1.2:40000>10.244.2.3:8080";
    const MASKED: &str = "192.0.2.11:7>10.244.2.3:8080";
    let pod = || seen("pod", "eth0", POD);
    for (rules, sights, devices, parts) in [
        // Nothing changed.
        (IPTABLES, vec![seen("host", "flannel.1", POD)], &["flannel.1", "eth0"][..], &[][..]),
        // After the bridge, by a rule of iptables, and by a map of nft.
        (
            IPTABLES,
            vec![pod(), seen("host", "flannel.1", TURNED), seen("host", "eth0", TURNED)],
            &[HOP, "flannel.1", "eth0"],
            &["to 10.96.0.10:80 becomes 10.244.2.3:8080, by `-A KUBE-SEP-A"],
        ),
        (
            MAP,
            vec![pod(), seen("host", "flannel.1", TURNED)],
            &[HOP, "flannel.1", "eth0"],
            &["by `tcp . 81 : 10.244.2.3 . 8080"],
        ),
        (
            "",
            vec![pod(), seen("host", "flannel.1", TURNED)],
            &[HOP, "flannel.1", "eth0"],
            &["by no rule that"],
        ),
        // The host's own is translated before any device, and may be masqueraded as well.
        (
            IPTABLES,
            vec![seen("host", "flannel.1", TURNED)],
            &[HOP, "flannel.1", "eth0"],
            &["10.96.0.10:80 becomes"],
        ),
        (
            IPTABLES,
            vec![pod(), seen("host", "flannel.1", TURNED), seen("host", "eth0", MASKED)],
            &[HOP, "flannel.1", HOP, "eth0"],
            &["becomes 10.244.2.3:8080", "from 10.244.1.2:40000 becomes 192.0.2.11:7, masqueraded"],
        ),
    ] {
        let mut model = model(&["flannel.1", "eth0"]);
        let mut walk = Walk { there: sights, answered: true, ..Walk::default() };
        let asked = "10.96.0.10".parse().unwrap();
        let last = walk.there.last().and_then(|sight| sight.flow).unwrap();
        assert_eq!(destination(asked, &walk), last.to);
        mark(&mut model, &mut walk, asked, Some(80), &Rules { text: rules.to_owned(), missing: Vec::new() });
        let got: Vec<&str> = model.steps.iter().map(|step| step.device.as_str()).collect();
        assert_eq!(got, devices);
        let hops: Vec<&Step> = model.steps.iter().filter(|step| step.device == HOP).collect();
        assert_eq!(walk.there.iter().filter(|sight| sight.device == HOP).count(), hops.len());
        for (hop, part) in hops.iter().zip(parts) {
            assert!(hop.by.contains(part), "{part}: {}", hop.by);
        }
        assert_eq!(hops.len(), parts.len());
    }
    let rules = Rules { text: format!("{IPTABLES}\n{MAP}"), missing: Vec::new() };
    let named = |address: &str| rules.naming(address.parse().unwrap()).is_some();
    assert_eq!(
        [named("10.96.0.10"), named("10.96.0.11"), named("10.96.0.1"), named("10.244.2.3")],
        [true, true, false, true]
    );
}
