use super::*;

const KEY: IptablesKey = IptablesKey { variant: Variant::Nft, family: Family::V4, table: IptablesTable::Nat };
const JUMP: &str = "-m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG";
const MASQ: &str = "-s 10.244.0.0/16 ! -d 224.0.0.0/4 -m comment --comment \"flanneld masq\" -j MASQUERADE";
const KUBE: &str = "-m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING";

fn networks() -> Vec<IpNet> {
    vec!["10.244.0.0/16".parse().unwrap(), "fd00::/48".parse().unwrap()]
}

fn wanted() -> Iptables {
    Iptables::wanted(KEY, vec![MASQ.to_owned()])
}

/// What `iptables-save -t nat` prints of our chain and of POSTROUTING.
fn save(chain: Option<&[&str]>, parent: &[&str]) -> String {
    let mut text = String::from("*nat\n:PREROUTING ACCEPT [0:0]\n:POSTROUTING ACCEPT [12:720]\n");
    if chain.is_some() {
        text.push_str(":FLANNEL-POSTRTG - [0:0]\n");
    }
    parent.iter().for_each(|rule| text.push_str(&format!("-A POSTROUTING {rule}\n")));
    chain.into_iter().flatten().for_each(|rule| text.push_str(&format!("-A FLANNEL-POSTRTG {rule}\n")));
    text.push_str("COMMIT\n# Completed\n");
    text
}

/// A restore that fills the chain and then has these lines.
fn fill(lines: &str) -> String {
    format!("*nat\n:FLANNEL-POSTRTG - [0:0]\n-A FLANNEL-POSTRTG {MASQ}\n{lines}COMMIT\n")
}

#[test]
fn what_is_not_flannels_way_is_put_right_by_one_restore() {
    let append = format!("-A POSTROUTING {JUMP}\n");
    let delete = |rule: &str| format!("-D POSTROUTING {rule}\n");
    let other_order =
        "-m comment --comment \"flanneld masq\" ! -d 224.0.0.0/4 -s 10.244.0.0/16 -j MASQUERADE";
    let commented = "-s 10.244.0.0/16 -d 10.244.0.0/16 -m comment --comment \"flanneld masq\" -j RETURN";
    let bare = "! -s 10.244.0.0/16 -d 10.244.9.0/24 -j RETURN";
    let v011 = "-s 10.244.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully";
    let plain_jump = "-j FLANNEL-POSTRTG";
    let ours: Option<&[&str]> = Some(&[MASQ]);
    let both = delete(JUMP) + &delete(JUMP) + &append;
    for (name, chain, parent, lines) in [
        ("right", ours, vec![KUBE, JUMP], None),
        ("right, by another version's printing", Some(&[other_order][..]), vec![JUMP], None),
        ("others append behind", ours, vec![KUBE, JUMP, "-j OTHER"], None),
        ("nothing", None, vec![KUBE], Some(append.clone())),
        ("the chain is empty", Some(&[][..]), vec![KUBE, JUMP], Some(String::new())),
        ("a rule too many", Some(&[MASQ, MASQ][..]), vec![JUMP], Some(String::new())),
        ("the jump is gone", ours, vec![KUBE], Some(append.clone())),
        ("twice", ours, vec![KUBE, JUMP, JUMP], Some(delete(JUMP))),
        ("ahead of others", ours, vec![JUMP, KUBE], Some(delete(JUMP) + &append)),
        ("ahead and behind", ours, vec![JUMP, KUBE, JUMP], Some(both)),
        ("a jump without comment", ours, vec![KUBE, plain_jump], Some(delete(plain_jump) + &append)),
        ("rules of v0.16", None, vec![KUBE, commented], Some(delete(commented) + &append)),
        ("rules of v0.11", None, vec![KUBE, bare, v011], Some(delete(bare) + &delete(v011) + &append)),
    ] {
        let actual = Iptables::found(KEY, &save(chain, &parent), &networks());
        let same = actual.as_ref().is_some_and(|actual| wanted().same(actual));
        assert_eq!(same, lines.is_none(), "{name}");
        if let Some(lines) = lines {
            assert_eq!(wanted().restore(actual.as_ref()), fill(&lines), "{name}");
        }
    }
    assert!(!wanted().same(&Iptables::unknown(KEY)));
}

#[test]
fn only_the_sign_where_it_stands_counts() {
    let rules = |rule: &str| Iptables::wanted(KEY, vec![rule.to_owned()]);
    let (source, destination) =
        ("! -s 10.0.0.0/8 -d 10.0.0.0/8 -j RETURN", "-s 10.0.0.0/8 ! -d 10.0.0.0/8 -j RETURN");
    assert!(!rules(source).same(&rules(destination)));
}

#[test]
fn rules_of_others_are_nobodys_business() {
    for rule in [
        KUBE,
        "-s 172.17.0.0/16 ! -o docker0 -j MASQUERADE",
        "-s 10.244.0.0/24 -d 10.244.0.0/16 -j RETURN",
        "-s 10.244.0.0/16 ! -d 224.0.0.0/4 -o eth0 -j MASQUERADE",
        "! -s 10.244.0.0/16 -d 192.0.2.0/24 -j RETURN",
        "-m comment --comment \"not flanneld masq\" -j RETURN",
        "-m comment --comment \"-j FLANNEL-POSTRTG\" -j RETURN",
        "-s 10.244.0.0/16 -j ACCEPT",
    ] {
        assert_eq!(Iptables::found(KEY, &save(None, &[rule]), &networks()), None, "{rule}");
    }
    let filter = IptablesKey { table: IptablesTable::Filter, ..KEY };
    let text = "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -s 10.244.0.0/16 -j ACCEPT\nCOMMIT\n";
    assert_eq!(Iptables::found(filter, text, &networks()), None, "an administrator's accept");
}

#[test]
fn listings_read_like_saves() {
    let listing = format!("-P POSTROUTING ACCEPT\n-A POSTROUTING {JUMP}\n-N FLANNEL-POSTRTG\n");
    let found = Iptables::found(KEY, &listing, &networks()).unwrap();
    assert_eq!((found.rules, found.hooks), (Some(Vec::new()), vec![JUMP.to_owned()]));
    assert_eq!(Iptables::found(KEY, "-P POSTROUTING ACCEPT\n", &networks()), None);
}

#[test]
fn everything_of_ours_is_removed_at_once() {
    let mut text = save(Some(&[MASQ]), &[KUBE, JUMP]);
    let wanted = format!("*nat\n-D POSTROUTING {JUMP}\n-F FLANNEL-POSTRTG\n-X FLANNEL-POSTRTG\nCOMMIT\n");
    assert_eq!(removal(KEY, &text, &networks()).as_deref(), Some(wanted.as_str()));
    text.push_str("-A MINE -j FLANNEL-POSTRTG\n");
    let wanted = wanted.replace("-F FL", "-D MINE -j FLANNEL-POSTRTG\n-F FL");
    assert_eq!(removal(KEY, &text, &networks()).as_deref(), Some(wanted.as_str()));
    assert_eq!(removal(KEY, &save(None, &[KUBE]), &networks()), None);
}

/// Several agents share the chain (decision 0156): each writes back what is the other's.
#[test]
fn rules_about_other_networks_are_another_agents() {
    const MARK: &str = "-m mark --mark 0x4000/0x4000 -m comment --comment \"flanneld masq\" -j RETURN";
    const OTHER: &str =
        "! -s 10.245.0.0/16 -d 10.245.0.0/16 -m comment --comment \"flanneld masq\" -j MASQUERADE";
    let wanted = Iptables::wanted(KEY, vec![MARK.to_owned(), MASQ.to_owned()]);
    let chain = |rules: &[&str]| -> String {
        let rules = rules.iter().map(|rule| format!("-A FLANNEL-POSTRTG {rule}\n"));
        format!(":FLANNEL-POSTRTG - [0:0]\n{}", rules.collect::<String>())
    };
    for (name, rules, restore, removal_of_ours) in [
        ("ours alone", vec![MARK, MASQ], None, None),
        ("both", vec![MARK, OTHER, MARK, MASQ], None, Some(chain(&[MARK, OTHER]))),
        ("both, ours first", vec![MARK, MASQ, MARK, OTHER], None, Some(chain(&[MARK, OTHER]))),
        (
            "one of ours is missing",
            vec![MARK, OTHER, MARK],
            Some(chain(&[MARK, OTHER, MARK, MASQ])),
            Some(chain(&[MARK, OTHER])),
        ),
        ("the other's alone", vec![MARK, OTHER], Some(chain(&[MARK, OTHER, MARK, MASQ])), None),
    ] {
        let text = save(Some(&rules), &[KUBE, JUMP]);
        let found = Iptables::found(KEY, &text, &networks()).unwrap();
        let expected = restore.map(|lines| format!("*nat\n{lines}COMMIT\n"));
        assert_eq!((!wanted.same(&found)).then(|| wanted.restore(Some(&found))), expected, "{name}");
        assert_eq!(found.is_anothers(), name == "the other's alone");
        if name != "ours alone" {
            let expected = removal_of_ours.map(|lines| format!("*nat\n{lines}COMMIT\n"));
            assert_eq!(removal(KEY, &text, &networks()), expected, "{name}");
        }
        // Who removes everything names no network.
        let all = removal(KEY, &text, &[]).unwrap();
        assert!(
            all.contains("-F FLANNEL-POSTRTG") && all.contains(&format!("-D POSTROUTING {JUMP}")),
            "{all}"
        );
    }
}
