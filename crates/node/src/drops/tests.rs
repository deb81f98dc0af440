use std::collections::BTreeSet;

use lab::paint::Style;

use super::owner::{hook, suspects};
use super::reasons::{Class, REASONS};
use super::symbols::Symbols;
use super::*;
use crate::doctor::ruleset::Ruleset;

#[test]
fn functions_are_found_by_any_address_in_them() {
    let text = "ffffffff81000000 T _stext\nffffffff81000100 t ip_forward.part.0\nffffffff81000080 D data\n\
                ffffffff81000200 T nf_hook_slow\t[nf]\n";
    let symbols = Symbols::parse(text);
    for (address, want) in [
        (0xffff_ffff_8100_0000, Some("_stext")),
        (0xffff_ffff_8100_00ff, Some("_stext")),
        (0xffff_ffff_8100_0142, Some("ip_forward")),
        (0xffff_ffff_8100_0300, Some("nf_hook_slow")),
        (0x1000, None),
    ] {
        assert_eq!(symbols.name(address), want, "{address:#x}");
    }
    // What a kernel prints that hides its symbols.
    assert_eq!(Symbols::parse("0000000000000000 T ip_forward\n").name(u64::MAX), None);
}

#[test]
fn the_nearest_caller_is_the_hook() {
    for (stack, want) in [
        (&["nf_hook_slow", "ip_forward", "ip_rcv_finish", "ip_rcv"][..], Some("forward")),
        (&["nf_hook_slow", "ip_rcv", "__netif_receive_skb_core"], Some("prerouting")),
        (&["nf_hook_slow", "__ip_local_out", "ip_local_out", "iptunnel_xmit"], Some("output")),
        (&["nf_hook_slow", "br_nf_forward_ip", "nf_hook_slow", "__br_forward"], Some("forward")),
        (&["nf_hook_slow", "__br_forward"], Some("bridge forward")),
        (&["udp_queue_rcv_skb"], None),
    ] {
        assert_eq!(hook(stack).map(|hook| hook.to_string()).as_deref(), want, "{stack:?}");
    }
}

#[test]
fn chains_that_may_have_dropped_are_named() {
    let rules = Ruleset::nft(
        "table inet fault {\n\tchain c {\n\t\ttype filter hook forward priority filter; policy accept;\n\
         \t\tip protocol icmp jump deep\n\t\taccept comment \"do not drop\"\n\t}\n\tchain deep {\n\t\tcounter drop\n\t}\n\
         \tchain unused {\n\t\tdrop\n\t}\n}\n\
         table ip filter {\n\tchain FORWARD {\n\t\ttype filter hook forward priority filter; policy drop;\n\t}\n}\n\
         table ip6 filter {\n\tchain FORWARD {\n\t\ttype filter hook forward priority filter; policy drop;\n\t}\n}\n",
    );
    let at = |name, to: &str| {
        let all = suspects(&rules, Hook { name, bridge: false }, to.parse().ok());
        all.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let rule = "table inet fault chain deep, rule `counter drop`".to_owned();
    assert_eq!(
        at("forward", "10.0.0.1"),
        [rule.clone(), "table ip filter chain FORWARD, policy drop".to_owned()]
    );
    assert_eq!(at("forward", "fd00::1"), [rule, "table ip6 filter chain FORWARD, policy drop".to_owned()]);
    assert!(at("input", "10.0.0.1").is_empty());
}

#[test]
fn the_table_of_reasons_is_whole() {
    let names: BTreeSet<&str> = REASONS.iter().map(|reason| reason.name).collect();
    assert_eq!(names.len(), REASONS.len());
    for reason in REASONS {
        assert!(!reason.says.is_empty() && !reason.says.ends_with('.'), "{}", reason.name);
        assert_eq!(reason.mend.is_empty(), reason.class == Class::NoLoss, "{}", reason.name);
        let known = ["{dev}", "{from}", "{to}", "{bytes}"];
        let rest =
            known.iter().fold(format!("{} {}", reason.says, reason.mend), |text, key| text.replace(key, ""));
        assert!(!rest.contains(['{', '}']), "{}", reason.name);
    }
    // Names this kernel has given up, or does not have yet, are no mistake; most are its own.
    let kernel = fastpath::drops::reasons();
    let known = names.iter().filter(|name| kernel.values().any(|own| own == *name)).count();
    assert!(kernel.is_empty() || known * 10 > names.len() * 7, "{known} of {}", names.len());
}

fn record(reason: u32, netns: u32, device: &str, to: [u8; 4]) -> Dropped {
    let mut head = vec![0x45, 0, 0, 28, 0, 1, 0, 0, 64, 17, 0, 0, 192, 0, 2, 11];
    head.extend(to);
    head.extend([0x9c, 0x40, 0, 53, 0, 8, 0, 0]);
    Dropped {
        at_ns: 0,
        location: 1,
        stack: Vec::new(),
        reason,
        netns,
        device: (3, device.to_owned()),
        came_by: 0,
        bytes: 28,
        protocol: 0x800,
        head,
    }
}

#[test]
fn only_what_concerns_pods_and_is_a_loss() {
    let reasons = [(3, "NO_SOCKET"), (13, "OTHERHOST"), (12, "NETFILTER_DROP")];
    let scene = Scene {
        places: BTreeMap::from([
            (1, Place { name: "host".to_owned(), ..Place::default() }),
            (
                2,
                Place {
                    name: "10.244.1.7".to_owned(),
                    netns: Some("/proc/7/ns/net".to_owned()),
                    pod: Some("shop/web-0".to_owned()),
                },
            ),
        ]),
        networks: vec!["10.244.0.0/16".parse().unwrap()],
        devices: vec!["cni0".to_owned()],
        ports: Ports::default(),
        reasons: reasons.into_iter().map(|(number, name)| (number, name.to_owned())).collect(),
    };
    let (far, to_pod, to_group) = ([198, 51, 100, 1], [10, 244, 2, 2], [224, 0, 0, 1]);
    for (what, record, [usual, all]) in [
        ("the host's own", record(3, 1, "eth0", far), [false, true]),
        ("to a pod", record(3, 1, "eth0", to_pod), [true, true]),
        ("on the pods' bridge", record(3, 1, "cni0", far), [true, true]),
        ("in a pod", record(3, 2, "eth0", far), [true, true]),
        ("in a pod, to itself", record(3, 2, "lo", far), [false, true]),
        ("to a group", record(3, 2, "eth0", to_group), [false, true]),
        ("no loss", record(13, 2, "eth0", far), [false, true]),
        ("a namespace we do not know", record(3, 9, "eth0", to_pod), [false, false]),
        ("a reason we do not know", record(99, 2, "eth0", far), [true, true]),
    ] {
        assert_eq!(group(&record, &[], &scene, false).is_some(), usual, "{what}");
        assert_eq!(group(&record, &[], &scene, true).is_some(), all, "{what}, all");
    }
    let found =
        group(&record(12, 1, "cni0", to_pod), &["nf_hook_slow", "ip_forward"], &scene, false).unwrap();
    assert_eq!((found.what.as_str(), found.function.as_str()), ("udp port 53", "nf_hook_slow"));
    assert_eq!(found.hook.map(|hook| hook.name), Some("forward"));
}

#[test]
fn commands_are_run_where_it_happened() {
    let command = |reason: &str, netns: Option<&str>| {
        let group = Group { reason: reason.to_owned(), device: "eth0".to_owned(), ..Group::default() };
        let pod = netns.map(|_| "shop/web-0".to_owned());
        let place = Place { name: String::new(), netns: netns.map(str::to_owned), pod: pod.clone() };
        let scene = Scene { places: [(1, place)].into(), ..Scene::default() };
        let told = show::tell(&group, Count::default(), &Ruleset::default(), &scene);
        let line = Style::PLAIN.lines(&show::block(&group, Count::default(), &told, Style::PLAIN)[..1]);
        assert_eq!(
            (told.pod.as_ref(), line.contains(" (shop/web-0):")),
            (pod.as_ref(), pod.is_some()),
            "{line}"
        );
        told.mend
    };
    let pod = Some("/proc/7/ns/net");
    for (reason, netns, want) in [
        ("NEIGH_FAILED", None, "ip neigh show dev eth0"),
        ("NEIGH_FAILED", pod, "nsenter --net=/proc/7/ns/net ip neigh show dev eth0"),
        ("XFRM_POLICY", pod, "nsenter --net=/proc/7/ns/net sh -c 'ip xfrm policy; ip xfrm state'"),
        // The sender's offload, wherever it arrived.
        ("UDP_CSUM", None, "ethtool -K flannel.1 tx-checksum-ip-generic off"),
        ("OTHERHOST", pod, ""),
    ] {
        assert_eq!(command(reason, netns), want, "{reason}");
    }
}

#[test]
fn groups_are_bounded_and_news_are_told_once() {
    let mut groups = Groups::default();
    let of = |n: usize| Group {
        reason: if n == 0 { "OTHERHOST" } else { "NO_SOCKET" }.to_owned(),
        place: "host".to_owned(),
        device: format!("veth{n}"),
        flow: None,
        what: String::new(),
        wraps: String::new(),
        hook: None,
        function: String::new(),
    };
    (0..MOST + 5).for_each(|n| groups.add(of(n), 10));
    groups.add(of(7), 99);
    assert_eq!((groups.sorted().len(), groups.others), (MOST, 5));
    let sorted = groups.sorted();
    assert_eq!((sorted[0].0, sorted[0].1.longest), (&of(7), 99));
    assert_eq!(sorted[MOST - 1].0, &of(0));
    assert_eq!((groups.news().len(), groups.news().len()), (MOST, 0));
    groups.add(of(7), 1);
    assert_eq!(groups.news(), [(of(7), Count { packets: 3, told: 2, longest: 99 })]);
}
