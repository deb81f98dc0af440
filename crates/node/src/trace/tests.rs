use super::{Model, Sight, Step, Walk, compare, picture};

fn model(devices: &[&str]) -> Model {
    let step = |device: &&str| Step { place: "host", device: (*device).to_owned(), by: String::new() };
    Model { steps: devices.iter().map(step).collect(), far: "192.0.2.12".parse().ok(), ..Model::default() }
}

fn sights(devices: &[&str]) -> Vec<Sight> {
    let sight = |device: &&str| Sight { place: "host".to_owned(), device: (*device).to_owned(), at_us: 1.0 };
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
        let walk = Walk { there: sights(there), back: sights(back), answered, refused: None };
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
    let walk = Walk { there: sights(&["cni0"]), back: Vec::new(), answered: false, refused: None };
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
