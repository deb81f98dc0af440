use super::*;

const P: &str = "flannel.alpha.coreos.com/";

fn names() -> Names {
    Names::new(DEFAULT_PREFIX).unwrap()
}

/// From `suffix=value` lines.
fn annotations(lines: &str) -> Annotations {
    let mut all = Annotations::default();
    for (name, value) in lines.lines().filter_map(|line| line.trim().split_once('=')) {
        all.set(names().item(&format!("{P}{name}")).expect(name), value);
    }
    all
}

#[test]
fn prefixes_follow_flannels_rule_to_the_end() {
    for (given, want) in [
        ("org.com", Some("org.com/backend-type")),
        ("org.com/", Some("org.com/backend-type")),
        ("flannel.alpha.coreos.com", Some("flannel.alpha.coreos.com/backend-type")),
        ("flannel.alpha.coreos.com/prefix", Some("flannel.alpha.coreos.com/prefix-backend-type")),
        ("flannel.alpha.coreos.com/prefix-", Some("flannel.alpha.coreos.com/prefix-backend-type")),
        ("a_b.c-d/1_2", Some("a_b.c-d/1_2-backend-type")),
        ("org", None),
        ("org/", None),
        ("org/prefix", None),
        ("org.COM", None),
        ("org.com/PREFIX", None),
        ("org.com/a/b", None),
        ("org.com/-", None),
        // Passed upstream, whose pattern has no beginning (F-57).
        ("http://org.com", None),
        ("ORG.org.com", None),
        ("a b.org.com", None),
        (".org.com", None),
        ("org..com", None),
        ("", None),
        // The API server's limit: 63 for what follows the slash.
        (
            "org.com/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            Some("org.com/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-backend-type"),
        ),
        ("org.com/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", None),
    ] {
        let got = Names::new(given).map(|names| names.of(Item::BackendType));
        assert_eq!(got.as_deref().ok(), want, "{given:?}");
    }
    assert_eq!(names().item(&format!("{P}node-public-ip")), Some(Item::NodeIp));
    for foreign in ["node-public-ip", "flannel.alpha.coreos.com/node-public-ip2", "flannel.alpha.coreos.com/"]
    {
        assert_eq!(names().item(foreign), None);
    }
}

/// `type|v4|data|v6|data6`
fn attrs(text: &str) -> LeaseAttrs {
    let parts: Vec<&str> = text.split('|').collect();
    let some = |n: usize| parts.get(n).copied().filter(|t| !t.is_empty());
    LeaseAttrs {
        backend_type: parts[0].to_owned(),
        public_ip: some(1).map(|t| t.parse().unwrap()),
        backend_data: some(2).map(Into::into),
        public_ip6: some(3).map(|t| t.parse().unwrap()),
        backend_v6_data: some(4).map(Into::into),
    }
}

const D1: &str = r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}"#;
const D2: &str = r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:45"}"#;

#[test]
fn annotations_are_written_as_flannel_does() {
    let vxlan = format!("vxlan|192.0.2.1|{D1}");
    let dual = format!("vxlan|192.0.2.1|{D1}|2001:db8::1|{D2}");
    let v6 = format!("vxlan|||2001:db8::1|{D2}");
    let basic = "kube-subnet-manager=true";
    for (there, attrs_text, want) in [
        ("", vxlan.as_str(), format!("{basic} backend-type=vxlan backend-data={D1} public-ip=192.0.2.1")),
        (
            "",
            &dual,
            format!(
                "{basic} backend-type=vxlan backend-data={D1} backend-v6-data={D2} public-ip=192.0.2.1 \
                 public-ipv6=2001:db8::1"
            ),
        ),
        ("", &v6, format!("{basic} backend-type=vxlan backend-v6-data={D2} public-ipv6=2001:db8::1")),
        (
            "",
            "host-gw|192.0.2.1",
            format!("{basic} backend-type=host-gw backend-data=null public-ip=192.0.2.1"),
        ),
        (
            "",
            "host-gw|||2001:db8::1",
            format!(
                "{basic} backend-type=host-gw backend-data=null backend-v6-data=null public-ip=0.0.0.0 public-ipv6=2001:db8::1"
            ),
        ),
        ("", "|192.0.2.1", format!("{basic} backend-type= backend-data=null public-ip=192.0.2.1")),
        (
            "",
            "wireguard|192.0.2.1|{\"PublicKey\":\"k\"}|2001:db8::1",
            format!(
                "{basic} backend-type=wireguard backend-data={{\"PublicKey\":\"k\"}} public-ip=192.0.2.1"
            ),
        ),
        (
            "",
            "extension|192.0.2.1|\"a b\"",
            format!("{basic} backend-type=extension backend-data=\"a b\" public-ip=192.0.2.1"),
        ),
        // The operator's address goes before ours, in its own family only.
        (
            "public-ip-overwrite=198.51.100.9",
            &dual,
            format!(
                "{basic} backend-type=vxlan backend-data={D1} backend-v6-data={D2} public-ip=198.51.100.9 \
                 public-ipv6=2001:db8::1"
            ),
        ),
        (
            "public-ip-overwrite=",
            &vxlan,
            format!("{basic} backend-type=vxlan backend-data={D1} public-ip=192.0.2.1"),
        ),
        (
            "public-ipv6-overwrite=2001:db8::9",
            &v6,
            format!("{basic} backend-type=vxlan backend-v6-data={D2} public-ipv6=2001:db8::9"),
        ),
        (
            "public-ip-overwrite=nat.example.org",
            &vxlan,
            format!(
                "{basic} backend-type=vxlan backend-data={D1} public-ip=192.0.2.1 ! annotation \
                 {P}public-ip-overwrite \"nat.example.org\" is not an IPv4 address"
            ),
        ),
        // Only differences, and what we do not publish any more goes.
        (
            "kube-subnet-manager=true\nbackend-type=vxlan\nbackend-data=null\npublic-ip=192.0.2.1\npublic-ipv6=2001:db8::7\nbackend-v6-data=null",
            &vxlan,
            format!("backend-data={D1} -backend-v6-data -public-ipv6"),
        ),
        (
            &format!(
                "kube-subnet-manager=true\nbackend-type=vxlan\nbackend-data={D1}\npublic-ip=198.51.100.9\npublic-ip-overwrite=198.51.100.9\nnode-public-ip=192.0.2.7"
            ),
            &vxlan,
            String::new(),
        ),
    ] {
        let (changes, wrong) = annotations(there).changes(&names(), &attrs(attrs_text));
        let mut words: Vec<String> = changes
            .iter()
            .map(|(name, value)| {
                let name = name.strip_prefix(P).unwrap();
                value.as_ref().map_or(format!("-{name}"), |value| format!("{name}={value}"))
            })
            .collect();
        words.extend(wrong.map(|why| format!("! {why}")));
        assert_eq!(words.join(" "), want, "{there:?} {attrs_text}");
    }
    let changes = [("a/b".to_owned(), Some("x\"y".to_owned())), ("a/c".to_owned(), None)];
    assert_eq!(patch(&changes), r#"{"metadata":{"annotations":{"a/b":"x\"y","a/c":null}}}"#);
    assert_eq!(
        condition_patch("2026-11-26T11:00:00Z"),
        r#"{"status":{"conditions":[{"type":"NetworkUnavailable","status":"False","lastHeartbeatTime":"2026-11-26T11:00:00Z","lastTransitionTime":"2026-11-26T11:00:00Z","reason":"FlannelIsUp","message":"Flannel is running on this node"}]}}"#
    );
}

#[test]
fn what_is_written_is_read_again() {
    for text in [
        &format!("vxlan|192.0.2.1|{D1}"),
        &format!("vxlan|192.0.2.1|{D1}|2001:db8::1|{D2}"),
        &format!("vxlan|||2001:db8::1|{D2}"),
        "host-gw|192.0.2.1",
        "host-gw|||2001:db8::1",
        "wireguard|192.0.2.1|{\"PublicKey\":\"k\"}|2001:db8::1|{\"PublicKey\":\"k\"}",
        "extension|192.0.2.1|\"a b\"",
        "|192.0.2.1",
    ] {
        let mut all = Annotations::default();
        for (name, value) in all.clone().changes(&names(), &attrs(text)).0 {
            all.set(names().item(&name).unwrap(), &value.unwrap());
        }
        assert!(all.managed());
        assert_eq!(all.read(&names(), None), (attrs(text), None), "{text}");
        assert_eq!(all.changes(&names(), &attrs(text)), (Vec::new(), None), "{text}");
    }
}

#[test]
fn a_bad_family_costs_the_other_nothing_and_keeps_what_it_had() {
    let before = attrs(&format!("vxlan|192.0.2.1|{D1}|2001:db8::1|{D2}"));
    let good6 = format!("public-ipv6=2001:db8::2\nbackend-v6-data={D2}\nbackend-type=vxlan\n");
    let long = "x".repeat(LONGEST + 1);
    for (v4, part) in [
        (
            "public-ip=nonsense",
            "annotation flannel.alpha.coreos.com/public-ip \"nonsense\" is not an IPv4 address",
        ),
        ("public-ip=2001:db8::1", "is not an IPv4 address"),
        ("backend-data={", "annotation flannel.alpha.coreos.com/backend-data: read vxlan backend data: "),
        ("backend-data={\"VNI\":1}", "it has no VtepMAC"),
        ("backend-data={\"VNI\":1,\"VtepMAC\":\"01:00:5e:00:00:01\"}", "multicast"),
        (&format!("public-ip={long}"), "public-ip is longer than 16384 bytes"),
    ] {
        let all = annotations(&format!("{good6}{v4}"));
        let (got, wrong) = all.read(&names(), Some(&before));
        let wrong = wrong.expect(v4);
        assert!(wrong.contains(part) && !wrong.contains('\n'), "{wrong}");
        let want = LeaseAttrs { public_ip6: Some("2001:db8::2".parse().unwrap()), ..before.clone() };
        assert_eq!(got, want, "{v4}");
        assert_eq!(all.read(&names(), None).0.public_ip, None);
    }
    // Empty, unspecified and `null` are none, not wrong.
    let none = annotations(
        "backend-type=vxlan\npublic-ip=0.0.0.0\nbackend-data=null\npublic-ipv6=\nbackend-v6-data=",
    );
    assert_eq!(none.read(&names(), Some(&before)), (attrs("vxlan"), None));
    assert!(!annotations("kube-subnet-manager=True").managed());
    assert_eq!(
        annotations("node-public-ip=192.0.2.7").node_address(&names(), Family::V4),
        Ok(Some("192.0.2.7".parse().unwrap()))
    );
    assert!(annotations("node-public-ipv6=192.0.2.7").node_address(&names(), Family::V6).is_err());
}

#[test]
fn pod_cidrs_come_from_the_list_or_the_single_field() {
    for (list, single, want) in [
        (&["10.244.1.0/24"][..], "10.244.9.0/24", Ok("10.244.1.0/24")),
        (&["10.244.1.0/24", "fd00::/64"], "10.244.1.0/24", Ok("10.244.1.0/24 and fd00::/64")),
        (&["fd00::/64", "10.244.1.0/24"], "", Ok("10.244.1.0/24 and fd00::/64")),
        (&["10.244.1.0/24", "10.244.2.0/24"], "", Ok("10.244.1.0/24")),
        (&[], "10.244.9.0/24", Ok("10.244.9.0/24")),
        (&[], "10.244.9.7/24", Ok("10.244.9.0/24")),
        (&[], "", Ok("(no subnet)")),
        (&["0.0.0.0/0"], "", Ok("0.0.0.0/0")),
        (&["10.244.1.0/24", "fd00::/64", "10.0.0.0/8"], "", Err("spec.podCIDRs has 3 networks")),
        (&["10.244.1.0"], "", Err("podCIDR \"10.244.1.0\" is not a network")),
        (&["10.244.1.0/33"], "", Err("podCIDR \"10.244.1.0/33\" is not a network")),
        (&["::ffff:10.0.0.0/104"], "", Err("is not a network")),
    ] {
        let got = pod_cidrs(list, Some(single)).map(|subnets| subnets.to_string());
        match want {
            Ok(want) => assert_eq!(got.as_deref(), Ok(want), "{list:?} {single}"),
            Err(part) => assert!(got.as_ref().is_err_and(|text| text.contains(part)), "{got:?}"),
        }
    }
}
