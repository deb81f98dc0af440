//! Chains of iptables in both variants: written, found again, repaired, removed, beside those of others.

use std::path::Path;

use kernel::{Kernel, Netns};
use model::{Family, NetConf, Subnets};
use plan::rules::{self, Choice};
use plan::state::{IptablesTable, Object, Scope, State, Variant};
use plan::{Step, diff, facts};

use super::{fresh, run_in};

const ALL: Choice = Choice { masquerade: true, fully_random: true, forward: true, blackhole: false };

/// Whether a variant works here; says so if not.
fn works(test: &str, variant: Variant) -> bool {
    let name = variant.program(Family::V4);
    if !Path::new("/usr/sbin").join(name).exists() {
        println!("SKIP {test}: {name} is not installed (package iptables)");
        return false;
    }
    let works = fresh().run(|| std::process::Command::new(name).args(["-t", "nat", "-S"]).output());
    let works = works.unwrap().is_ok_and(|output| output.status.success());
    if !works {
        println!("SKIP {test}: {name} does not work with this kernel");
    }
    works
}

struct Bed {
    netns: Netns,
    kernel: Kernel,
    wanted: State,
    scope: Scope,
    variant: Variant,
}

impl Bed {
    fn new(variant: Variant) -> Bed {
        let text = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48"}"#;
        let conf = NetConf::parse(text).and_then(NetConf::validate).unwrap();
        let own = Subnets {
            v4: Some("10.244.1.0/24".parse().unwrap()),
            v6: Some("fd00:0:0:1::/64".parse().unwrap()),
        };
        let tool = facts::IptablesTool { variant, fully_random: true };
        let tools = Family::BOTH.into_iter().map(|family| (family, tool)).collect();
        let netns = fresh();
        let kernel = Kernel::open_in(&netns).unwrap();
        Bed {
            kernel,
            wanted: rules::objects(&conf, &own, ALL, &tools, &Default::default()).into_iter().collect(),
            scope: Scope {
                networks: conf.networks(),
                iptables: rules::iptables_keys(&conf, &tools, false),
                ..Scope::default()
            },
            netns,
            variant,
        }
    }

    /// Runs a command for both families; `T` is the program.
    fn both(&self, command: &str) {
        for family in Family::BOTH {
            let program = self.variant.program(family);
            let (net, pods) = match family {
                Family::V4 => ("10.244.0.0/16", "10.244.9.0/24"),
                Family::V6 => ("fd00::/48", "fd00:0:0:9::/64"),
            };
            let multicast = if family == Family::V4 { "224.0.0.0/4" } else { "ff00::/8" };
            let command = command
                .replace("NET", net)
                .replace("POD", pods)
                .replace("MC", multicast)
                .replace("T ", &format!("{program} "));
            let output = self
                .netns
                .run(|| std::process::Command::new("sh").args(["-ec", &command]).output())
                .unwrap()
                .unwrap();
            assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }

    fn steps(&mut self, wanted: bool) -> Vec<Step> {
        let wanted = if wanted { self.wanted.clone() } else { State::default() };
        let actual = self.kernel.read(&self.scope, &wanted).unwrap();
        diff(&wanted, &actual).rest
    }

    /// Applies what is to do and gives how much that was.
    fn converge(&mut self, wanted: bool) -> usize {
        let steps = self.steps(wanted);
        for answer in self.kernel.apply(&steps) {
            answer.unwrap();
        }
        steps.len()
    }

    /// Everything both programs hold, without counters.
    fn listing(&self) -> String {
        let of = |family| {
            let program = self.variant.program(family);
            let tables =
                ["nat", "filter"].map(|table| run_in(&self.netns, &format!("{program} -t {table} -S")));
            tables.concat()
        };
        Family::BOTH.map(of).concat()
    }
}

const FOREIGN: &str = "T -t nat -N KUBE-POSTROUTING; T -t nat -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN; \
    T -t nat -A POSTROUTING -m comment --comment 'kubernetes postrouting rules' -j KUBE-POSTROUTING; \
    T -N DOCKER-USER; T -A FORWARD -j DOCKER-USER; T -P FORWARD DROP";

#[test]
fn every_damage_is_repaired_and_what_is_of_others_stays() {
    let test = "every_damage_is_repaired_and_what_is_of_others_stays";
    for variant in Variant::BOTH.into_iter().filter(|variant| works(test, *variant)) {
        let mut bed = Bed::new(variant);
        bed.both(FOREIGN);
        let foreign = bed.listing();
        // Two tables in each family, and one of nftables that keeps connections followed (decision 0161).
        assert_eq!(bed.converge(true), 6, "{variant:?}");
        assert_eq!(bed.converge(true), 0, "{variant:?}: what was written is found again");
        let whole = bed.listing();
        let masq = "-m comment --comment 'flanneld masq'";
        for (damage, count) in [
            ("T -t nat -F FLANNEL-POSTRTG", 2),
            (
                "T -t nat -F POSTROUTING; T -t nat -A POSTROUTING -m comment --comment 'kubernetes postrouting rules' -j KUBE-POSTROUTING",
                2,
            ),
            ("T -F FORWARD; T -A FORWARD -j DOCKER-USER", 2),
            ("T -F FORWARD; T -F FLANNEL-FWD; T -X FLANNEL-FWD; T -A FORWARD -j DOCKER-USER", 2),
            (&format!("T -t nat -I POSTROUTING {masq} -j FLANNEL-POSTRTG"), 2),
            (&format!("T -t nat -A POSTROUTING {masq} -j FLANNEL-POSTRTG"), 2),
            (
                &format!(
                    "T -t nat -D POSTROUTING {masq} -j FLANNEL-POSTRTG; T -t nat -I POSTROUTING {masq} -j FLANNEL-POSTRTG"
                ),
                2,
            ),
            ("T -t nat -D FLANNEL-POSTRTG 2", 2),
            ("T -t nat -A FLANNEL-POSTRTG -j RETURN", 2),
            ("T -A FLANNEL-FWD -j DROP; T -I FLANNEL-FWD -j DROP", 2),
            ("T -t nat -R FLANNEL-POSTRTG 1 -j ACCEPT; T -R FLANNEL-FWD 1 -j DROP", 4),
            // v0.20, v0.16 to v0.19, v0.9 to v0.15
            ("T -t nat -I POSTROUTING -j FLANNEL-POSTRTG", 2),
            (&format!("T -t nat -I POSTROUTING ! -s NET -d POD {masq} -j RETURN"), 2),
            (
                "T -t nat -A POSTROUTING -s NET -d NET -j RETURN; T -t nat -A POSTROUTING -s NET ! -d MC -j MASQUERADE --random-fully; \
              T -t nat -A POSTROUTING ! -s NET -d POD -j RETURN; T -t nat -A POSTROUTING ! -s NET -d NET -j MASQUERADE",
                2,
            ),
            ("T -A FORWARD -m comment --comment 'flanneld forward' -s NET -j ACCEPT", 2),
        ] {
            bed.both(damage);
            assert_eq!(bed.converge(true), count, "{variant:?}: {damage}");
            assert_eq!(bed.listing(), whole, "{variant:?}: {damage}");
            assert_eq!(bed.converge(true), 0, "{variant:?}: {damage}");
        }
        // What others do is not our business, wherever they do it.
        for act in [
            "T -t nat -A POSTROUTING -s 172.17.0.0/16 -j MASQUERADE || T -t nat -A POSTROUTING -s fd17::/64 -j MASQUERADE",
            "T -A FORWARD -s NET -j ACCEPT",
            "T -t nat -Z; T -P FORWARD ACCEPT; T -P FORWARD DROP",
        ] {
            bed.both(act);
            assert_eq!(bed.converge(true), 0, "{variant:?}: {act}");
        }
        bed.both("T -t nat -D POSTROUTING 3; T -D FORWARD 3");
        assert_eq!(bed.listing(), whole, "{variant:?}");
        // A jump from elsewhere does not hinder the removal.
        bed.both("T -N MINE; T -A MINE -j FLANNEL-FWD");
        assert_eq!(bed.converge(false), 4, "{variant:?}");
        bed.both("T -X MINE");
        assert_eq!(bed.listing(), foreign, "{variant:?}");
        assert_eq!(bed.converge(false), 0, "{variant:?}");
    }
}

#[test]
fn a_variant_is_chosen_as_the_host_uses_it() {
    let test = "a_variant_is_chosen_as_the_host_uses_it";
    if !Variant::BOTH.into_iter().all(|variant| works(test, variant)) {
        return;
    }
    let some = "-t nat -A POSTROUTING -s 192.0.2.0/24 -j RETURN";
    let hint = "-t mangle -N KUBE-IPTABLES-HINT";
    for (name, commands, wanted) in [
        ("rules in legacy", vec![format!("iptables-legacy {some}")], Variant::Legacy),
        ("rules in nft", vec![format!("iptables-nft {some}")], Variant::Nft),
        (
            "the kubelet in nft",
            vec![format!("ip6tables-nft {hint}"), format!("iptables-legacy {some}")],
            Variant::Nft,
        ),
        (
            "the kubelet in legacy",
            vec![format!("iptables-legacy {hint}"), format!("iptables-nft {some}")],
            Variant::Legacy,
        ),
        (
            "more in legacy",
            vec![
                format!("iptables-nft {some}"),
                format!("iptables-legacy {some}"),
                format!("ip6tables-legacy -A FORWARD -j ACCEPT"),
            ],
            Variant::Legacy,
        ),
    ] {
        let netns = fresh();
        commands.iter().for_each(|command| drop(run_in(&netns, command)));
        let tools = Kernel::open_in(&netns).unwrap().iptables_tools();
        let variants: Vec<Variant> = tools.values().map(|tool| tool.variant).collect();
        assert_eq!(variants, [wanted; 2], "{name}");
        assert!(tools.values().all(|tool| tool.fully_random), "{name}");
    }
    let netns = fresh();
    let tools = Kernel::open_in(&netns).unwrap().iptables_tools();
    let default = run_in(&netns, "iptables --version").contains("(nf_tables)");
    let default = if default { Variant::Nft } else { Variant::Legacy };
    assert!(tools.values().all(|tool| tool.variant == default), "an empty host has the default");
    let legacy = netns.run(|| std::fs::read_to_string("/proc/thread-self/net/ip_tables_names")).unwrap();
    assert_eq!(legacy.unwrap_or_default(), "", "asking makes no table");
}

/// Both tables of a family are handed to one program; one it does not understand must not keep the other away.
#[test]
fn a_table_that_is_refused_is_named_and_stops_nothing_else() {
    for variant in [Variant::Nft, Variant::Legacy] {
        if !works("a_table_that_is_refused_is_named_and_stops_nothing_else", variant) {
            continue;
        }
        for refused in [IptablesTable::Nat, IptablesTable::Filter] {
            let mut bed = Bed::new(variant);
            let mut steps = bed.steps(true);
            for step in &mut steps {
                if let Step::Put(Object::Iptables(table)) = step
                    && (table.key.table, table.key.family) == (refused, Family::V4)
                {
                    table.rules.as_mut().unwrap().push("-m nosuchmatch -j ACCEPT".to_owned());
                }
            }
            let answers = bed.kernel.apply(&steps);
            let failed: Vec<String> =
                answers.into_iter().filter_map(Result::err).map(|error| error.to_string()).collect();
            assert!(failed.len() == 1 && failed[0].contains("nosuchmatch"), "{variant:?} {failed:?}");
            assert_eq!(bed.converge(true), 1, "{variant:?}: the others are in place");
            assert_eq!(bed.steps(true).len(), 0, "{variant:?}");
        }
    }
}

/// Tables another program made with nft, which iptables does not understand.
#[test]
fn a_table_that_cannot_be_read_is_a_sentence_and_stops_nothing_else() {
    let test = "a_table_that_cannot_be_read_is_a_sentence_and_stops_nothing_else";
    if !works(test, Variant::Nft) {
        return;
    }
    let mut bed = Bed::new(Variant::Nft);
    for command in [
        "nft add table ip nat",
        "nft add chain ip nat POSTROUTING { type nat hook postrouting priority 100 ; }",
        "nft add rule ip nat POSTROUTING ip saddr { 192.0.2.1, 192.0.2.9 } meta cgroup 1 fib daddr type local counter masquerade",
    ] {
        run_in(&bed.netns, command);
    }
    let steps = bed.steps(true);
    let answers = bed.kernel.apply(&steps);
    let failed: Vec<String> =
        answers.into_iter().filter_map(Result::err).map(|error| error.to_string()).collect();
    assert!(failed.len() == 1 && failed[0].contains("iptables-nft"), "{failed:?}");
    assert_eq!(bed.steps(true).len(), 1, "the other tables are in place");
}
