//! `host-local` beside Debian's, on one store.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::harness::{DEBIAN, Host, Pod, debian, pod, stable, with};
use model::gojson::Json;

fn conf(host: &Host, version: &str, ipam: &str) -> String {
    let dir = host.path("networks");
    format!(
        r#"{{"cniVersion": "{version}", "name": "net", "type": "x", "ipam": {{"type": "host-local", "dataDir": "{dir}", {ipam}}}}}"#
    )
}

fn named(pod: &Pod, id: &str) -> Pod {
    Pod { id: id.to_owned(), ..pod.clone() }
}

fn address(result: &Json) -> String {
    let ip = result.get("ips").and_then(|ips| ips.as_array()?.first()?.get("address")?.as_str());
    ip.unwrap_or_default().to_owned()
}

#[test]
fn both_programs_share_a_store() {
    if !debian("both_programs_share_a_store") {
        return;
    }
    let host = Host::new();
    let (_netns, pod) = pod("c1");
    let conf = conf(&host, "1.0.0", r#""subnet": "10.1.2.0/29""#);
    let bin = host.bin().display().to_string();
    let mut given = Vec::new();
    for (n, dir) in [DEBIAN, &bin, DEBIAN, &bin].into_iter().enumerate() {
        let pod = named(&pod, &format!("c{n}"));
        given.push(address(&host.call_with(&[dir], "host-local", "ADD", &pod, &conf).expect(dir)));
    }
    assert_eq!(given, ["10.1.2.2/29", "10.1.2.3/29", "10.1.2.4/29", "10.1.2.5/29"]);
    let file = host.dir.join("networks/net/10.1.2.3");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "c1\r\neth0");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    // Each finds, and releases, what the other reserved.
    for (n, dir) in [&bin, DEBIAN, &bin, DEBIAN].into_iter().enumerate() {
        let pod = named(&pod, &format!("c{n}"));
        assert!(host.call_with(&[dir], "host-local", "CHECK", &pod, &conf).ok, "{dir} finds c{n}");
        let (_, text) = host.call_with(&[dir], "host-local", "ADD", &pod, &conf).error();
        assert!(text.contains("duplicate allocation is not allowed"), "{text}");
        for _ in 0..2 {
            assert!(host.call_with(&[dir], "host-local", "DEL", &pod, &conf).ok, "{dir} releases c{n}");
        }
        let (_, text) = host.call_with(&[dir], "host-local", "CHECK", &pod, &conf).error();
        assert!(text.contains("Failed to find address added by container"), "{text}");
    }
    assert_eq!(host.files("networks"), ["net/last_reserved_ip.0", "net/lock"]);
}

#[test]
fn answers_are_those_of_debians() {
    if !debian("answers_are_those_of_debians") {
        return;
    }
    let resolv = std::env::temp_dir().join(format!("loden-resolv-{}", std::process::id()));
    std::fs::write(&resolv, "nameserver 192.0.2.53\nsearch a b\noptions ndots:5\ndomain x.y\n").unwrap();
    let dns = format!(r#""subnet": "10.1.2.0/24", "resolvConf": "{}""#, resolv.display());
    let dual = r#""ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "2001:db8::/64", "rangeStart": "2001:db8::100"}]]"#;
    for (version, ipam, args, ok) in [
        ("1.0.0", r#""subnet": "10.1.2.0/24", "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.2.9"}]"#, "", true),
        ("0.2.0", dual, "", true),
        ("0.4.0", dual, "", true),
        ("1.0.0", &dns, "", true),
        ("1.0.0", r#""subnet": "10.1.2.0/24""#, "IP=10.1.2.77", true),
        ("1.0.0", r#""subnet": "10.1.2.0/24""#, "IP=10.1.2.1", false),
        ("1.0.0", r#""subnet": "10.1.2.0/24""#, "IP=10.9.9.9", false),
        ("1.0.0", r#""subnet": "10.1.2.0/24""#, "FOO=1", false),
        ("1.0.0", r#""subnet": "10.1.2.5/24""#, "", false),
        ("1.0.0", r#""ranges": []"#, "", false),
        ("0.2.0", r#""ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "10.1.3.0/24"}]]"#, "", false),
        ("1.0.0", r#""ranges": [[{"subnet": "10.1.2.0/24"}, {"subnet": "10.1.2.0/25"}]]"#, "", false),
        ("1.0.0", r#""subnet": "10.1.2.0/24", "rangeStart": "10.1.3.1""#, "", false),
    ] {
        let run = |dirs: &[&str]| {
            let host = Host::new();
            let (_netns, pod) = pod("c1");
            let mut command = host.prepare(dirs, "host-local", "ADD", &pod);
            let output = host.run(command.env("CNI_ARGS", args), &conf(&host, version, ipam));
            let json: Json = String::from_utf8_lossy(&output.stdout).parse().unwrap();
            let message = json.get("msg").and_then(Json::as_str).unwrap_or_default().to_owned();
            (output.status.success(), if ok { stable(&json) } else { message }, host.files("networks"))
        };
        let ours = Host::new();
        let (have, want) = (run(&[&ours.bin().display().to_string()]), run(&[DEBIAN]));
        assert_eq!(have.0, ok, "{ipam} {args}: {have:?}");
        assert_eq!(have.1, want.1, "{ipam} {args}");
        if ok {
            assert_eq!(have.2, want.2, "files after {ipam} {args}");
        }
    }
    std::fs::remove_file(resolv).unwrap();
}

#[test]
fn ranges_run_out_and_come_back() {
    let host = Host::new();
    let (_netns, pod) = pod("c1");
    let conf = conf(&host, "1.1.0", r#""subnet": "10.1.2.0/29""#);
    for n in 2..=6 {
        assert!(host.call("host-local", "STATUS", &pod, &conf).ok);
        let answer = host.call("host-local", "ADD", &named(&pod, &format!("c{n}")), &conf);
        assert_eq!(answer.stderr, "", "a store that is new is no news");
        let result = answer.expect("ADD");
        assert_eq!(address(&result), format!("10.1.2.{n}/29"));
    }
    let (_, text) = host.call("host-local", "ADD", &named(&pod, "c7"), &conf).error();
    let want = "failed to allocate for range 0: no IP addresses available in range set: 10.1.2.1-10.1.2.6";
    assert!(text.starts_with(want), "{text}");
    let (code, text) = host.call("host-local", "STATUS", &pod, &conf).error();
    assert_eq!(code, 50);
    assert!(text.contains("no IP addresses available"), "{text}");
    // Reservations of an earlier boot are nobody's (B-02); our index says of which boot they are.
    for file in host.files("state/ipam").iter().filter(|file| !file.ends_with("head")) {
        let file = host.dir.join("state/ipam").join(file);
        let text = std::fs::read_to_string(&file).unwrap();
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        let (head, lines) = text.split_once('\n').unwrap();
        let older = lines.replace(boot.trim(), "00000000-0000-0000-0000-000000000000");
        assert_ne!(lines, older);
        let sum = older
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |sum, b| (sum ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        let stamp = head.rsplit_once(' ').unwrap().0;
        std::fs::write(&file, format!("{stamp} {sum:016x}\n{older}")).unwrap();
    }
    assert!(host.call("host-local", "STATUS", &pod, &conf).ok);
    let result = host.call("host-local", "ADD", &named(&pod, "c7"), &conf).expect("ADD");
    assert_eq!(address(&result), "10.1.2.2/29");
    let keep = Json::array([Json::object([("containerID", "c7".into()), ("ifname", "eth0".into())])]);
    assert!(host.call("host-local", "GC", &pod, &with(&conf, "cni.dev/valid-attachments", keep)).ok);
    assert_eq!(host.files("networks"), ["net/10.1.2.2", "net/last_reserved_ip.0", "net/lock"]);
}

#[test]
fn a_dead_empty_reservation_is_taken_over() {
    let host = Host::new();
    let (_netns, pod) = pod("c1");
    let conf = conf(&host, "1.0.0", r#""subnet": "10.1.2.0/30""#);
    std::fs::create_dir_all(host.path("networks/net")).unwrap();
    let file = host.path("networks/net/10.1.2.2");
    std::fs::write(&file, "").unwrap();
    let (_, text) = host.call("host-local", "ADD", &pod, &conf).error();
    assert!(text.contains("no IP addresses available"), "a young empty file may be a writer at work: {text}");
    let old = Command::new("touch").args(["-d", "-2 minutes", &file]).status().unwrap();
    assert!(old.success());
    assert_eq!(address(&host.call("host-local", "ADD", &pod, &conf).expect("ADD")), "10.1.2.2/30");
}

#[test]
fn files_of_old_versions_are_understood() {
    let host = Host::new();
    let (_netns, pod) = pod("c1");
    let conf = conf(&host, "1.0.0", r#""subnet": "10.1.2.0/24""#);
    std::fs::create_dir_all(host.path("networks/net")).unwrap();
    std::fs::write(host.path("networks/net/10.1.2.9"), "c1\n").unwrap();
    assert!(host.call("host-local", "CHECK", &pod, &conf).ok);
    let (_, text) = host.call("host-local", "ADD", &pod, &conf).error();
    assert!(text.contains("10.1.2.9 has been allocated to c1"), "{text}");
    // The document no longer parses; releasing needs no range (P-3).
    let broken = conf.replace("10.1.2.0/24", "nonsense");
    assert!(host.call("host-local", "DEL", &pod, &broken).ok);
    assert_eq!(host.files("networks"), ["net/lock"]);
}

/// Garbage by local truth: the namespace is gone, and nobody is in it (decision 0122).
#[test]
fn an_address_outlives_its_namespace_only_until_it_is_needed() {
    let host = Host::new();
    let conf = conf(&host, "1.1.0", r#""subnet": "10.1.2.0/29""#);
    let (living, alive) = crate::harness::pod("c2");
    assert_eq!(address(&host.call("host-local", "ADD", &alive, &conf).expect("ADD")), "10.1.2.2/29");
    let (dying, dead) = crate::harness::pod("c3");
    assert_eq!(address(&host.call("host-local", "ADD", &dead, &conf).expect("ADD")), "10.1.2.3/29");
    // Its path will be gone, but a process is still there.
    let (inside, haunted) = crate::harness::pod("c4");
    assert_eq!(address(&host.call("host-local", "ADD", &haunted, &conf).expect("ADD")), "10.1.2.4/29");
    let mut ghost = inside.run(|| Command::new("sleep").arg("1000").spawn()).unwrap().unwrap();
    drop(inside);
    // A foreign program's, of which nothing is known.
    std::fs::write(host.path("networks/net/10.1.2.5"), "cX\r\neth0").unwrap();
    let (_last, other) = crate::harness::pod("c6");
    assert_eq!(address(&host.call("host-local", "ADD", &other, &conf).expect("ADD")), "10.1.2.6/29");
    let (_more, next) = crate::harness::pod("c7");
    assert!(host.call("host-local", "ADD", &next, &conf).error().1.contains("no IP addresses available"));
    drop(dying);
    assert!(host.call("host-local", "STATUS", &next, &conf).ok, "there is one to be had");
    assert_eq!(address(&host.call("host-local", "ADD", &next, &conf).expect("ADD")), "10.1.2.3/29");
    // The late DEL of the dead one takes nothing from the living.
    assert!(host.call("host-local", "DEL", &dead, &conf).ok);
    assert!(host.call("host-local", "CHECK", &next, &conf).ok);
    let (_more, last) = crate::harness::pod("c8");
    assert!(host.call("host-local", "ADD", &last, &conf).error().1.contains("no IP addresses available"));
    // GC without a list removes what is known to be garbage, and nothing else.
    ghost.kill().unwrap();
    ghost.wait().unwrap();
    assert!(host.call("host-local", "GC", &next, &conf).ok);
    let left = [
        "net/10.1.2.2",
        "net/10.1.2.3",
        "net/10.1.2.5",
        "net/10.1.2.6",
        "net/last_reserved_ip.0",
        "net/lock",
    ];
    assert_eq!(host.files("networks"), left);
    drop(living);
}

/// System calls of an ADD and a DEL, by strace.
fn calls(host: &Host, pod: &Pod, conf: &str) -> usize {
    let mut total = 0;
    for verb in ["ADD", "DEL"] {
        let plain = host.prepare(&[&host.bin().display().to_string()], "host-local", verb, pod);
        let log = host.path("strace");
        let mut command = Command::new("strace");
        command.args(["-o", &log]).arg(plain.get_program());
        command.env_clear().envs(plain.get_envs().filter_map(|(k, v)| Some((k, v?))));
        let output = host.run(&mut command, conf);
        assert!(output.status.success(), "{output:?}");
        total += std::fs::read_to_string(&log).unwrap().lines().count();
    }
    total
}

#[test]
fn four_thousand_allocations_cost_no_more_calls_than_none() {
    if !std::path::Path::new("/usr/bin/strace").exists() {
        println!("SKIP four_thousand_allocations_cost_no_more_calls_than_none: strace is not installed");
        return;
    }
    let host = Host::new();
    let (_netns, pod) = pod("c1");
    let conf = conf(&host, "1.0.0", r#""subnet": "10.64.0.0/16""#);
    let empty = calls(&host, &pod, &conf);
    for n in 0..4000 {
        let path = host.path(&format!("networks/net/10.64.{}.{}", 1 + n / 250, 1 + n % 250));
        std::fs::write(path, format!("x{n}\r\neth0")).unwrap();
    }
    // The first call after a foreign writer reads them once.
    calls(&host, &pod, &conf);
    let full = calls(&host, &pod, &conf);
    // Theirs makes three calls for each file.
    assert!(full < empty + 10, "{empty} calls with an empty store, {full} with 4,000 reservations");
    // A DEL of what is not there counts the files, and reads none.
    let again = |verb: &str| {
        let plain = host.prepare(&[&host.bin().display().to_string()], "host-local", verb, &pod);
        let log = host.path("strace");
        let mut command = Command::new("strace");
        command.args(["-o", &log, "-e", "trace=openat"]).arg(plain.get_program());
        command.env_clear().envs(plain.get_envs().filter_map(|(k, v)| Some((k, v?))));
        assert!(host.run(&mut command, &conf).status.success());
        std::fs::read_to_string(&log).unwrap().lines().count()
    };
    let opened = again("DEL");
    assert!(opened < 30, "{opened} files opened");
    // STATUS is asked every few seconds.
    let status = with(&conf, "cniVersion", "1.1.0");
    assert!(host.call("host-local", "STATUS", &pod, &status).ok);
}

/// Waiters on the lock of a file, by what the kernel tells.
fn waiting(file: &std::fs::File) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let inode = format!(":{} ", file.metadata().unwrap().ino());
    let locks = std::fs::read_to_string("/proc/locks").unwrap();
    locks.lines().any(|line| line.contains("-> FLOCK") && line.contains(&inode))
}

/// The store has one writer at a time, whatever program has its lock; nobody waits for ever.
#[test]
fn a_second_locker_waits_its_turn() {
    let host = Host::new();
    let (_netns, pod) = pod("c1");
    let conf = conf(&host, "1.0.0", r#""subnet": "10.1.2.0/24""#);
    std::fs::create_dir_all(host.path("networks/net")).unwrap();
    let lock = std::fs::File::create(host.path("networks/net/lock")).unwrap();
    for released in [true, false] {
        lock.lock().unwrap();
        let answer = std::thread::scope(|scope| {
            let call = scope.spawn(|| host.call("host-local", "ADD", &pod, &conf));
            while !waiting(&lock) {
                assert!(!call.is_finished(), "it does not wait");
                std::thread::yield_now();
            }
            assert!(host.files("networks").iter().all(|file| !file.contains("10.1.2.")));
            if released {
                lock.unlock().unwrap();
            }
            call.join().unwrap()
        });
        if released {
            assert_eq!(address(&answer.expect("ADD")), "10.1.2.2/24");
            assert!(host.call("host-local", "DEL", &pod, &conf).ok);
        } else {
            let (code, text) = answer.error();
            assert_eq!(code, 11);
            assert!(text.contains("/lock: held by another process for more than 10 s"), "{text}");
            lock.unlock().unwrap();
            assert!(host.files("networks").iter().all(|file| !file.contains("10.1.2.")));
        }
    }
}
