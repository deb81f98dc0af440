//! Tables of ours as Debian's `nft` lists them, who may touch them, and changes of shared tables.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use kernel::nft::CommentIs;
use kernel::{Kernel, Netns, Nft, NftBatch};
use model::{Family, IfName, Mac};
use plan::sources::{Guard, Outer};
use plan::state::{
    Chain, ChainType, Hook, Match, NftFamily, NftRule, NftTable, Object, Scope, State, Statement, TableKey,
    Verdict,
};
use plan::{Key, Step, diff};

use super::{fresh, run_in};

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn rule(matches: Vec<Match>, statement: Statement) -> NftRule {
    NftRule { matches, statement, comment: None }
}

fn chain(name: &str, hook: Option<(ChainType, u32, i32)>, rules: Vec<NftRule>) -> Chain {
    let hook = hook.map(|(kind, number, priority)| Hook { kind, number, priority });
    Chain { name: name.to_owned(), comment: None, hook, rules }
}

fn key(family: NftFamily, name: &str) -> TableKey {
    TableKey { family, name: name.to_owned() }
}

/// The table of flannel.md 7.4.
fn flannel(family: NftFamily, pod: &str, cluster: &str, multicast: &str) -> NftTable {
    use Match::{Destination, DestinationNot, Mark, Source, SourceNot};
    let (pod, cluster, multicast) = (net(pod), net(cluster), net(multicast));
    let back = || Statement::Verdict(Verdict::Return);
    let accept = || Statement::Verdict(Verdict::Accept);
    let masquerade = || Statement::Masquerade { fully_random: true };
    let name = if family == NftFamily::Ip { "flannel-ipv4" } else { "flannel-ipv6" };
    let mut postrouting = chain(
        "postrtg",
        Some((ChainType::Nat, 4, 100)),
        vec![
            rule(vec![Mark(0x4000)], back()),
            rule(vec![Source(pod), Destination(cluster)], back()),
            rule(vec![Source(cluster), Destination(pod)], back()),
            rule(vec![SourceNot(pod), Destination(cluster)], back()),
            rule(vec![Source(cluster), DestinationNot(multicast)], masquerade()),
            rule(vec![SourceNot(cluster), Destination(cluster)], masquerade()),
        ],
    );
    postrouting.comment = Some("chain to manage traffic masquerading by flannel".to_owned());
    let mut forward = chain(
        "forward",
        Some((ChainType::Filter, 2, 0)),
        vec![rule(vec![Source(cluster)], accept()), rule(vec![Destination(cluster)], accept())],
    );
    forward.comment = Some("chain to accept flannel traffic".to_owned());
    NftTable {
        key: key(family, name),
        comment: Some(format!("rules for {name}")),
        owned: true,
        sets: Vec::new(),
        chains: vec![postrouting, forward],
        drifted: false,
    }
}

fn flannel_v4() -> NftTable {
    flannel(NftFamily::Ip, "10.244.1.0/24", "10.244.0.0/16", "224.0.0.0/4")
}

/// The text of flannel.md 7.4, as `nft` 1.0.6 lists it.
fn golden(ip: &str, version: u8, pod: &str, cluster: &str, multicast: &str) -> String {
    format!(
        r#"table {ip} flannel-ipv{version} {{
	comment "rules for flannel-ipv{version}"
	chain postrtg {{
		comment "chain to manage traffic masquerading by flannel"
		type nat hook postrouting priority srcnat; policy accept;
		meta mark 0x00004000 return
		{ip} saddr {pod} {ip} daddr {cluster} return
		{ip} saddr {cluster} {ip} daddr {pod} return
		{ip} saddr != {pod} {ip} daddr {cluster} return
		{ip} saddr {cluster} {ip} daddr != {multicast} masquerade fully-random
		{ip} saddr != {cluster} {ip} daddr {cluster} masquerade fully-random
	}}

	chain forward {{
		comment "chain to accept flannel traffic"
		type filter hook forward priority filter; policy accept;
		{ip} saddr {cluster} accept
		{ip} daddr {cluster} accept
	}}
}}
"#
    )
}

#[test]
fn the_golden_text_in_both_families() {
    let netns = fresh();
    let mut nft = Nft::open_in(netns.as_fd()).unwrap();
    for (family, ip, version, pod, cluster, multicast) in [
        (NftFamily::Ip, "ip", 4, "10.244.1.0/24", "10.244.0.0/16", "224.0.0.0/4"),
        (NftFamily::Ip6, "ip6", 6, "fd00:1::/64", "fd00::/12", "ff00::/8"),
    ] {
        // A prefix that is no multiple of eight as well.
        let mut table = flannel(family, pod, cluster, multicast);
        // The flag is shown as a line of its own by nft; the text is that of an unowned table.
        table.owned = false;
        nft.replace(&table).unwrap();
        let listed = run_in(&netns, &format!("nft list table {}", table.key));
        assert_eq!(listed, golden(ip, version, pod, cluster, multicast));
        assert_eq!(format!("{table}\n"), listed);
        assert_eq!(nft.read(&table.key, Some(&table)).unwrap().as_ref(), Some(&table));
    }
}

#[test]
fn every_match_and_statement_is_listed_and_recognised() {
    let netns = fresh();
    let mut nft = Nft::open_in(netns.as_fd()).unwrap();
    let dev = IfName::fixed("eth0");
    let ip = |text: &str| text.parse::<std::net::IpAddr>().unwrap();
    let to = |to: &str, port| Statement::Dnat { to: to.parse().unwrap(), port };
    let verdict = Statement::Verdict;
    let plain = |family, name: &str, chains| NftTable {
        key: key(family, name),
        comment: None,
        owned: false,
        sets: Vec::new(),
        chains,
        drifted: false,
    };
    let shared = |host: &str, whole: &str, pod: &str| {
        vec![
            rule(vec![Match::DestinationTranslated], Statement::Masquerade { fully_random: false }),
            rule(vec![Match::ConnectionMark { value: 0x1000, mask: 0x1000 }], Statement::OrMark(0x1000)),
            rule(
                vec![Match::Protocol(17), Match::DestinationPorts(30000, 32767)],
                Statement::OrConnectionMark(0x1000),
            ),
            rule(
                vec![Match::Source(net(host)), Match::DestinationNot(net(whole))],
                Statement::Masquerade { fully_random: false },
            ),
            rule(vec![Match::MarkMasked { value: 0x4000, mask: 0x4000 }], verdict(Verdict::Drop)),
            rule(vec![Match::InputDevice(dev), Match::OutputDeviceNot(dev)], Statement::OrMark(0x2000)),
            rule(
                vec![Match::OutputDevice(dev), Match::Protocol(6), Match::DestinationPort(80)],
                verdict(Verdict::Return),
            ),
            rule(vec![Match::Protocol(200)], verdict(Verdict::Jump("other".to_owned()))),
            rule(
                vec![Match::Source(net(pod)), Match::SourceNot(net(whole))],
                verdict(Verdict::Goto("other".to_owned())),
            ),
        ]
    };
    let dnat = |pod: &str| {
        vec![
            rule(
                vec![Match::DestinationLocal, Match::Protocol(17), Match::DestinationPort(53)],
                to(pod, 5353),
            ),
            NftRule {
                comment: Some("cid".to_owned()),
                ..rule(vec![Match::Protocol(132), Match::DestinationPort(9)], to(pod, 9))
            },
        ]
    };
    let nat = |number, priority| Some((ChainType::Nat, number, priority));
    let tables = [
        plain(
            NftFamily::Ip,
            "four",
            vec![
                chain("other", None, vec![]),
                chain("post", nat(4, 100), shared("10.1.2.3/32", "10.0.0.0/9", "0.0.0.0/0")),
                chain("source", nat(4, 100), vec![rule(vec![], Statement::Snat { to: ip("10.1.2.3") })]),
                chain("pre", nat(0, -100), dnat("10.1.2.3")),
                chain("out", nat(3, -100), vec![]),
            ],
        ),
        plain(
            NftFamily::Ip6,
            "six",
            vec![
                chain("other", None, vec![]),
                chain("post", nat(4, 100), shared("fd00::3/128", "fd00::/61", "::/0")),
                chain("source", nat(4, 100), vec![rule(vec![], Statement::Snat { to: ip("fd00::3") })]),
                chain("pre", nat(0, -100), dnat("fd00::3")),
            ],
        ),
        plain(
            NftFamily::Inet,
            "both",
            vec![
                chain("other", None, vec![]),
                chain(
                    "post",
                    nat(4, 100),
                    [
                        shared("10.1.2.3/32", "10.0.0.0/9", "10.0.0.0/8"),
                        shared("fd00::3/128", "fd00::/61", "fd00::/16"),
                    ]
                    .concat(),
                ),
            ],
        ),
        plain(
            NftFamily::Bridge,
            "nat",
            vec![
                chain(
                    "mac",
                    None,
                    vec![rule(vec![Match::SourceMac(Mac([2, 0, 0, 0, 0, 1]))], verdict(Verdict::Return))],
                ),
                chain(
                    "PREROUTING",
                    Some((ChainType::Filter, 0, -7)),
                    vec![rule(vec![Match::Source(net("10.1.2.3/32"))], verdict(Verdict::Accept))],
                ),
            ],
        ),
    ];
    for table in tables {
        nft.replace(&table).unwrap();
        let listed = run_in(&netns, &format!("nft list table {}", table.key));
        assert_eq!(format!("{table}\n"), listed);
        assert_eq!(nft.read(&table.key, Some(&table)).unwrap().as_ref(), Some(&table));
        // The other way round: nft loads our text, and we find our table in what it made.
        run_in(&netns, &format!("nft delete table {}", table.key));
        load(&netns, &listed);
        assert_eq!(nft.read(&table.key, Some(&table)).unwrap().as_ref(), Some(&table));
        assert!(nft.delete_table(&table.key).unwrap());
        assert!(!nft.delete_table(&table.key).unwrap());
        assert_eq!(nft.read(&table.key, Some(&table)).unwrap(), None);
    }
}

/// Feeds text to `nft -f -` inside.
fn load(netns: &Netns, text: &str) {
    let status = netns
        .run(|| {
            let mut child = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
            child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
            child.wait().unwrap()
        })
        .unwrap();
    assert!(status.success(), "{text}");
}

/// Whether `nft` inside succeeds.
fn nft_succeeds(netns: &Netns, arguments: &str) -> bool {
    let words: Vec<&str> = arguments.split_whitespace().collect();
    netns.run(|| Command::new("nft").args(&words).output().unwrap().status.success()).unwrap()
}

fn has_owner_flags(netns: &Netns) -> bool {
    // NFT_TABLE_F_OWNER and PERSIST came in 5.12 and 6.9.
    let table = NftTable { chains: Vec::new(), ..flannel_v4() };
    let mut nft = Nft::open_in(netns.as_fd()).unwrap();
    nft.replace(&table).unwrap();
    let flags = nft.table(&table.key).unwrap().unwrap().flags;
    nft.delete_table(&table.key).unwrap();
    flags == 6
}

#[test]
fn an_owned_table_is_out_of_reach_and_outlives_its_owner() {
    let netns = fresh();
    if !has_owner_flags(&netns) {
        return println!(
            "SKIP an_owned_table_is_out_of_reach_and_outlives_its_owner: this kernel has no owned tables that persist"
        );
    }
    let table = flannel_v4();
    let mut first = Nft::open_in(netns.as_fd()).unwrap();
    first.replace(&table).unwrap();
    assert!(nft_succeeds(&netns, "flush ruleset"));
    assert_eq!(first.read(&table.key, Some(&table)).unwrap().as_ref(), Some(&table));
    assert!(!nft_succeeds(&netns, "flush chain ip flannel-ipv4 forward"));
    // Ours can be brought to another content at any time.
    let smaller = NftTable { chains: table.chains[..1].to_vec(), ..table.clone() };
    first.replace(&smaller).unwrap();
    first.replace(&table).unwrap();

    // A second agent is told who is in the way, and nothing changes.
    let mut second = Nft::open_in(netns.as_fd()).unwrap();
    assert!(second.read(&table.key, Some(&table)).unwrap().unwrap().drifted);
    let error = second.replace(&smaller).unwrap_err();
    assert_eq!(error.code, libc::EPERM);
    assert!(error.to_string().contains("is owned by another process, netlink port"), "{error}");
    assert!(second.delete_table(&table.key).is_err());
    assert_eq!(first.read(&table.key, Some(&table)).unwrap().as_ref(), Some(&table));

    // The first is gone, the table is still there, and the second takes it over.
    drop(first);
    assert!(run_in(&netns, "nft list table ip flannel-ipv4").contains("masquerade fully-random"));
    assert!(second.read(&table.key, Some(&table)).unwrap().unwrap().drifted, "an orphan is to be adopted");
    second.replace(&table).unwrap();
    assert_eq!(second.read(&table.key, Some(&table)).unwrap().as_ref(), Some(&table));
    assert!(nft_succeeds(&netns, "flush ruleset"));
    assert_eq!(second.read(&table.key, Some(&table)).unwrap().as_ref(), Some(&table));
}

/// Not a test by itself: the process that the next test kills.
#[test]
fn owner_process() {
    let Ok(path) = std::env::var("KERNEL_TEST_OWNER_NETNS") else { return };
    let netns = Netns::open(Path::new(&path)).unwrap();
    let mut nft = Nft::open_in(netns.as_fd()).unwrap();
    nft.replace(&flannel_v4()).unwrap();
    println!("table is there");
    let _ = std::io::stdin().lock().read_line(&mut String::new());
}

#[test]
fn a_killed_owner_leaves_its_table() {
    let netns = fresh();
    if !has_owner_flags(&netns) {
        return println!(
            "SKIP a_killed_owner_leaves_its_table: this kernel has no owned tables that persist"
        );
    }
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "nft::owner_process", "--nocapture"])
        .env("KERNEL_TEST_OWNER_NETNS", netns.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(owner.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("table is there")));
    assert!(nft_succeeds(&netns, "flush ruleset"));
    owner.kill().unwrap();
    owner.wait().unwrap();
    let table = flannel_v4();
    let mut nft = Nft::open_in(netns.as_fd()).unwrap();
    assert_eq!(nft.table(&table.key).unwrap().unwrap().owner, None);
    assert_eq!(nft.rules(&table.key, None).unwrap().len(), 8);
    nft.replace(&table).unwrap();
    assert_eq!(nft.read(&table.key, Some(&table)).unwrap().as_ref(), Some(&table));
}

#[test]
fn what_others_change_in_an_unowned_table_is_seen_and_repaired() {
    let netns = fresh();
    let table = NftTable { owned: false, ..flannel_v4() };
    let wanted: State = [Object::Nft(Box::new(table.clone()))].into_iter().collect();
    let scope = Scope { tables: [table.key.clone()].into(), ..Scope::default() };
    let mut kernel = Kernel::open_in(&netns).unwrap();
    let mut converge = |wanted: &State| {
        let actual = kernel.read(&scope, wanted).unwrap();
        let difference = diff(wanted, &actual);
        kernel.apply(&difference.rest).into_iter().for_each(|r| r.unwrap());
        let actual = kernel.read(&scope, wanted).unwrap();
        assert!(diff(wanted, &actual).is_empty());
        difference.rest.len()
    };
    assert_eq!((converge(&wanted), converge(&wanted)), (1, 0));
    for change in [
        "flush ruleset",
        "flush chain ip flannel-ipv4 forward",
        "add rule ip flannel-ipv4 forward drop",
        "insert rule ip flannel-ipv4 postrtg counter",
        "add chain ip flannel-ipv4 more",
        "add set ip flannel-ipv4 s { type ipv4_addr; }",
        "chain ip flannel-ipv4 forward { policy drop; }",
    ] {
        assert!(nft_succeeds(&netns, change), "{change}");
        assert_eq!(converge(&wanted), 1, "{change}");
    }
    // Foreign tables are nobody's business here.
    assert!(nft_succeeds(&netns, "add table ip foreign"));
    assert_eq!(converge(&State::default()), 1);
    assert_eq!(run_in(&netns, "nft list tables").trim(), "table ip foreign");
}

#[test]
fn a_refused_transaction_names_its_operation_and_changes_nothing() {
    let netns = fresh();
    let mut kernel = Kernel::open_in(&netns).unwrap();
    let good = NftTable { owned: false, ..flannel_v4() };
    let mut bad = good.clone();
    bad.chains[1].rules[0].statement = Statement::Verdict(Verdict::Jump("nowhere".to_owned()));
    let put = |t: &NftTable| [Step::Put(Object::Nft(Box::new(t.clone())))];
    kernel.apply(&put(&good)).pop().unwrap().unwrap();
    let before = run_in(&netns, "nft list ruleset");
    let error = kernel.apply(&put(&bad)).pop().unwrap().unwrap_err().errno;
    assert_eq!(
        error.to_string(),
        "no such object (ENOENT, \"add rule ip flannel-ipv4 forward ip saddr 10.244.0.0/16 jump nowhere\")"
    );
    assert_eq!(run_in(&netns, "nft list ruleset"), before);
}

/// Rules are deleted by the numbers the kernel told, and only if they are still whose they were.
#[test]
fn rules_are_deleted_by_number() {
    let netns = fresh();
    let table = key(NftFamily::Inet, "shared");
    let of = |text: &str| NftRule {
        comment: Some(text.to_owned()),
        ..rule(vec![Match::Source(net("10.1.2.3/32"))], Statement::Masquerade { fully_random: false })
    };
    let mut nft = Nft::open_in(netns.as_fd()).unwrap();
    let mut batch = NftBatch::new();
    batch
        .ensure_table(&table, None)
        .ensure_chain(&table, &chain("c", Some((ChainType::Nat, 4, 100)), vec![]));
    assert_eq!(nft.commit_and_tell(&batch).unwrap(), []);
    let mut batch = NftBatch::new();
    for text in ["a", "b", "c"] {
        batch.add_rule(&table, "c", &of(text));
    }
    let told = nft.commit_and_tell(&batch).unwrap();
    assert_eq!(told, nft.rules(&table, Some("c")).unwrap(), "as they are listed, in order");
    let [a, b, c] = [0, 1, 2].map(|n| told[n].handle);
    assert_eq!(nft.rule(&table, "c", b).unwrap().as_ref(), told.get(1));
    let delete = |handles: &[(u64, &str)]| {
        let mut batch = NftBatch::new();
        for (handle, text) in handles {
            batch.delete_rule(&table, "c", *handle, CommentIs::StartsWith((*text).to_owned()));
        }
        batch
    };
    // One that is another's, or not there: none of them goes.
    for wrong in [(b, "x"), (c + 1, "b")] {
        let error = nft.commit(&delete(&[(a, "a"), wrong])).unwrap_err();
        assert_eq!(error.code(), Some(libc::ENOENT), "{error}");
        assert!(
            error.to_string().contains(&format!("delete rule inet shared c handle {}", wrong.0)),
            "{error}"
        );
    }
    assert_eq!(nft.rules(&table, None).unwrap().len(), 3);
    nft.commit(&delete(&[(a, "a"), (c, "c")])).unwrap();
    assert_eq!(nft.rules(&table, None).unwrap(), told[1..2]);
    assert_eq!(nft.rule(&table, "c", a).unwrap(), None);
    let nowhere = key(NftFamily::Ip, "none");
    assert_eq!(nft.rule(&nowhere, "c", 1).unwrap(), None);
}

#[test]
fn shared_tables_are_changed_by_comment_also_under_contention() {
    let netns = fresh();
    let table = key(NftFamily::Inet, "cni_plugins_masquerade");
    let checks = chain("masq_checks", None, vec![]);
    let post = chain("postrouting", Some((ChainType::Nat, 4, 100)), vec![]);
    let pod = |n: u8| NftRule {
        comment: Some(format!("aaaa-{n:04}, net: x")),
        ..rule(
            vec![Match::Source(net(&format!("10.1.2.{n}/32"))), Match::DestinationNot(net("10.1.2.0/24"))],
            Statement::Masquerade { fully_random: false },
        )
    };
    let add = |n: u8| {
        let mut batch = NftBatch::new();
        batch
            .ensure_table(&table, Some("Masq"))
            .ensure_chain(&table, &checks)
            .ensure_chain(&table, &post)
            .flush_chain(&table, "postrouting")
            .add_rule(
                &table,
                "postrouting",
                &rule(vec![], Statement::Verdict(Verdict::Goto("masq_checks".to_owned()))),
            )
            .delete_rules(&table, "masq_checks", CommentIs::StartsWith(format!("aaaa-{n:04}")))
            .add_rule(&table, "masq_checks", &pod(n));
        batch
    };
    let delete = |n: u8| {
        let mut batch = NftBatch::new();
        batch.delete_rules(&table, "masq_checks", CommentIs::Exactly(format!("aaaa-{n:04}, net: x")));
        batch
    };
    // Deleting where nothing is, not even the table.
    Nft::open_in(netns.as_fd()).unwrap().commit(&delete(1)).unwrap();
    std::thread::scope(|scope| {
        for worker in 0..4u8 {
            let (netns, add, delete) = (&netns, &add, &delete);
            scope.spawn(move || {
                let mut nft = Nft::open_in(netns.as_fd()).unwrap();
                for n in 0..10 {
                    let n = worker * 10 + n;
                    nft.commit(&add(n)).unwrap();
                    nft.commit(&add(n)).unwrap();
                    if n % 2 == 1 {
                        nft.commit(&delete(n)).unwrap();
                    }
                }
            });
        }
    });
    let mut nft = Nft::open_in(netns.as_fd()).unwrap();
    let mut left: Vec<_> =
        nft.rules(&table, Some("masq_checks")).unwrap().into_iter().filter_map(|r| r.comment).collect();
    left.sort();
    let want: Vec<_> = (0..40).step_by(2).filter_map(|n| pod(n).comment).collect();
    assert_eq!(left, want);
    assert_eq!(nft.rules(&table, Some("postrouting")).unwrap().len(), 1);
    let listed = run_in(&netns, &format!("nft list chain {table} masq_checks"));
    assert!(
        listed
            .contains("ip saddr 10.1.2.38 ip daddr != 10.1.2.0/24 masquerade comment \"aaaa-0038, net: x\"")
    );

    let mut batch = NftBatch::new();
    batch.flush_chain(&table, "postrouting").delete_chain(&table, "masq_checks").delete_chain(&table, "none");
    nft.commit(&batch).unwrap();
    assert_eq!(nft.chains(&table).unwrap().len(), 1);
    let mut batch = NftBatch::new();
    batch.delete_table(&table).delete_table(&key(NftFamily::Ip, "none"));
    nft.commit(&batch).unwrap();
    assert_eq!(nft.table(&table).unwrap(), None);
}

#[test]
fn ten_thousand_rules_in_one_transaction() {
    let netns = fresh();
    let mut table = NftTable { owned: false, ..flannel_v4() };
    let many = (0..10_000u32).map(|n| {
        let host = std::net::Ipv4Addr::from(0x0a00_0000 + n);
        rule(vec![Match::Source(IpNet::new(host.into(), 32).unwrap())], Statement::Verdict(Verdict::Accept))
    });
    table.chains[1].rules.extend(many);
    let wanted: State = [Object::Nft(Box::new(table.clone()))].into_iter().collect();
    let mut kernel = Kernel::open_in(&netns).unwrap();
    kernel.apply(&[Step::Put(Object::Nft(Box::new(table.clone())))]).pop().unwrap().unwrap();
    let read = kernel.read(&Scope::default(), &wanted).unwrap();
    assert!(matches!(read.get(&Key::Nft(table.key.clone())), Some(Object::Nft(t)) if !t.drifted));
}

#[test]
fn a_socket_left_to_a_child_is_closed_in_the_end_and_bars_nobody() {
    if !has_owner_flags(&fresh()) {
        println!("SKIP a_socket_left_to_a_child_is_closed_in_the_end_and_bars_nobody: kernel before 6.9");
        return;
    }
    let netns = fresh();
    let table = flannel_v4();
    let mut nft = Nft::open_in(netns.as_fd()).unwrap();
    nft.replace(&table).unwrap();
    // Deleting makes the kernel's queue of what is to be freed.
    nft.replace(&table).unwrap();
    nft.leave();
    let mut other = Nft::open_in(netns.as_fd()).unwrap();
    other.replace(&NftTable { key: key(NftFamily::Ip6, "other"), ..table.clone() }).unwrap();
    // Owned as long as the child holds the socket, and free afterwards.
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Err(errno) = other.replace(&table) {
        assert_eq!(errno.code, libc::EPERM, "{errno}");
        assert!(Instant::now() < deadline, "the child still holds it");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The table that stands beside a tunnel, as `nft -s` lists it.
fn guarded(name: &str, sets: &str, condition: &str) -> String {
    let (family, address) = if name.contains("v6") { ("ip6", "ipv6_addr") } else { ("ip", "ipv4_addr") };
    let sets: String = sets.replace("SET", "\tset").replace("TYPE", &format!("\t\ttype {address}"));
    format!(
        r#"table {family} loden-{name} {{
	comment "the tunnel takes packets from nodes with a lease"
{sets}
	chain input {{
		type filter hook input priority filter; policy accept;
		{condition} counter drop
	}}
}}
"#
    )
}

#[test]
fn the_table_that_keeps_tunnels_out_of_themselves_is_as_nft_shows_it() {
    let netns = fresh();
    let mut kernel = Kernel::open_in(&netns).unwrap();
    let network = "fd00:10::/48".parse().unwrap();
    let table = plan::sources::from_outside(IfName::fixed("flannel-wg-v6"), Family::V6, 51821, &[network]);
    let Object::Nft(content) = &table else { panic!("{table}") };
    let scope = Scope { tables: [content.key.clone()].into(), ..Scope::default() };
    let wanted: State = [table.clone()].into_iter().collect();
    let steps = diff(&wanted, &kernel.read(&scope, &wanted).unwrap()).rest;
    kernel.apply(&steps).into_iter().for_each(|r| r.unwrap());
    assert_eq!(kernel.read(&scope, &wanted).unwrap(), wanted);
    let listed = run_in(&netns, "nft -s list table ip6 loden-flannel-wg-v6");
    assert_eq!(listed, format!("{content}\n"));
    for rule in [
        "type filter hook input priority filter; policy accept;\n\t\tudp dport 51821 ip6 saddr fd00:10::/48 counter drop\n",
        "type filter hook output priority filter; policy accept;\n\t\tudp dport 51821 ip6 saddr fd00:10::/48 oifname != \"flannel-wg-v6\" \
         counter drop\n",
    ] {
        assert!(listed.contains(rule), "{listed}");
    }
}

#[test]
fn the_table_beside_a_tunnel_is_listed_filled_and_changed_by_element() {
    let netns = fresh();
    let mut kernel = Kernel::open_in(&netns).unwrap();
    let ip = |text: &str| text.parse::<std::net::IpAddr>().unwrap();
    let elements = |text: &str| format!("\t\telements = {{ {text} }}\n");
    for (device, family, outer, nodes, condition) in [
        (
            "flannel.ipip",
            Family::V4,
            Outer::Ipip { local: ip("192.0.2.11") },
            ["192.0.2.12", "192.0.2.13", "198.51.100.1"],
            "meta l4proto ipencap ip daddr 192.0.2.11 ip saddr != @nodes ip saddr != @tunnels",
        ),
        (
            "flannel.1",
            Family::V4,
            Outer::Vxlan { port: 8472, vni: 1 },
            ["192.0.2.12", "192.0.2.13", "198.51.100.1"],
            "udp dport 8472 @th,96,24 0x1 ip saddr != @nodes",
        ),
        (
            "flannel-v6.7000",
            Family::V6,
            Outer::Vxlan { port: 4789, vni: 7_000 },
            ["2001:db8::12", "2001:db8::13", "2001:db8:1::1"],
            "udp dport 4789 @th,96,24 0x1b58 ip6 saddr != @nodes",
        ),
    ] {
        let guard = Guard::new(IfName::new(device).unwrap(), family);
        let table = guard.table(outer);
        let Object::Nft(content) = &table else { panic!("{table}") };
        let key = content.key.clone();
        let scope = Scope { tables: [key.clone()].into(), ..Scope::default() };
        let tunnels = matches!(outer, Outer::Ipip { .. });
        let mut converge = |nodes: &[&str]| {
            let wanted: State = nodes.iter().map(|n| guard.node(ip(n))).chain([table.clone()]).collect();
            let actual = kernel.read(&scope, &wanted).unwrap();
            let steps = diff(&wanted, &actual).rest;
            kernel.apply(&steps).into_iter().for_each(|r| r.unwrap());
            assert_eq!(kernel.read(&scope, &wanted).unwrap(), wanted);
            let sets = |text: &str| {
                let more = if tunnels { "\nSET tunnels {\nTYPE\n\t}\n" } else { "" };
                format!("SET nodes {{\nTYPE\n{text}\t}}\n{more}")
            };
            let list = if nodes.is_empty() { String::new() } else { elements(&nodes.join(", ")) };
            // nft breaks the line after two or three.
            let listed = run_in(&netns, &format!("nft -s list table {key}")).replace(",\n\t\t\t     ", ", ");
            assert_eq!(listed, guarded(device, &sets(&list), condition));
            if nodes.is_empty() {
                assert_eq!(listed, format!("{content}\n"));
            }
            steps.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(converge(&nodes[..2]).len(), 3, "the table and its elements");
        assert_eq!(converge(&nodes[..2]), [""; 0]);
        assert_eq!(converge(&nodes), [format!("nft add element {key} nodes {{ {} }}", nodes[2])]);
        assert_eq!(converge(&nodes[..1]).len(), 2, "two are taken out");
        for change in
            ["flush ruleset", "insert rule TABLE input accept", "add set TABLE s { type ipv4_addr; }"]
        {
            assert!(nft_succeeds(&netns, &change.replace("TABLE", &key.to_string())), "{change}");
            assert_eq!(converge(&nodes[..1]).len(), 2, "{change}: the table and its element");
        }
        assert!(nft_succeeds(&netns, &format!("flush set {key} nodes")));
        assert_eq!(converge(&nodes[..1]).len(), 1, "the element");
        converge(&[]);
    }
    // An element that is gone already, and one of a table that is gone.
    let guard = Guard::new(IfName::fixed("flannel.1"), Family::V4);
    let [known, unknown] = ["192.0.2.12", "192.0.2.13"].map(|n| guard.node(ip(n)));
    let put = |o: &Object| Step::Put(o.clone());
    let delete = |o: &Object| Step::Delete(o.clone());
    let table = guard.table(Outer::Vxlan { port: 8472, vni: 1 });
    kernel.apply(&[put(&table), put(&known)]).into_iter().for_each(|r| r.unwrap());
    let steps = [delete(&known), delete(&unknown)];
    kernel.apply(&steps).into_iter().for_each(|r| r.unwrap());
    let set = run_in(&netns, "nft list set ip loden-flannel.1 nodes");
    assert!(!set.contains("elements"), "{set}");
    assert!(nft_succeeds(&netns, "delete table ip loden-flannel.1"));
    let refused = kernel.apply(&[put(&known)]).pop().unwrap().unwrap_err();
    assert!(
        refused.to_string().starts_with("nft add element ip loden-flannel.1 nodes { 192.0.2.12 }: no such"),
        "{refused}"
    );
}

#[test]
fn ten_thousand_elements_in_one_transaction_and_one_more_by_itself() {
    let netns = fresh();
    let guard = Guard::new(IfName::fixed("flannel-v6.1"), Family::V6);
    let node = |n: u32| guard.node(std::net::Ipv6Addr::from((0x2001_0db8u128 << 96) + u128::from(n)).into());
    let table = guard.table(Outer::Vxlan { port: 8472, vni: 1 });
    let Object::Nft(content) = &table else { panic!("{table}") };
    let scope = Scope { tables: [content.key.clone()].into(), ..Scope::default() };
    let mut kernel = Kernel::open_in(&netns).unwrap();
    let mut wanted: State = (0..10_000).map(node).chain([table.clone()]).collect();
    for steps in [10_001, 1] {
        let found = diff(&wanted, &kernel.read(&scope, &wanted).unwrap()).rest;
        assert_eq!(found.len(), steps);
        kernel.apply(&found).into_iter().for_each(|r| r.unwrap());
        assert_eq!(kernel.read(&scope, &wanted).unwrap(), wanted);
        wanted.put(node(10_000));
    }
}
