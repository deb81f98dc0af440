//! `firewall`: one row for each of its scenarios (cni.md 4.3), beside Debian's plugin.

use crate::harness::{Host, Pod, debian, iptables, pod, run_in, twins, with};
use kernel::Netns;
use model::gojson::Json;

const V4: &str = r#"{"address": "10.1.2.3/24", "interface": 2}"#;
const V6: &str = r#"{"address": "2001:db8::3/64", "interface": 2}"#;

fn result(version: &str, ips: &str) -> Json {
    let ips = if version == "0.4.0" {
        ips.replace("{\"address\": \"10", "{\"version\": \"4\", \"address\": \"10")
            .replace("{\"address\": \"2001", "{\"version\": \"6\", \"address\": \"2001")
    } else {
        ips.to_owned()
    };
    let text = format!(
        r#"{{"cniVersion": "{version}", "ips": [{ips}], "interfaces": [
            {{"name": "br7"}}, {{"name": "veth1"}}, {{"name": "eth0", "sandbox": "/run/netns/x"}}]}}"#
    );
    text.parse().unwrap()
}

fn conf(version: &str, members: &str, ips: &str) -> String {
    let text = format!(r#"{{"cniVersion": "{version}", "name": "net", "type": "firewall"{members}}}"#);
    with(&text, "prevResult", result(version, ips))
}

fn no_pod(id: &str) -> Pod {
    Pod { id: id.to_owned(), ifname: "eth0".to_owned(), path: "/run/netns/no-such".to_owned() }
}

const IPTABLES: &str = r#", "backend": "iptables""#;

#[test]
fn rules_are_debians() {
    for version in ["0.4.0", "1.0.0"] {
        for (members, ips) in [
            (IPTABLES, V4),
            (IPTABLES, V6),
            (IPTABLES, &*format!("{V4}, {V6}")),
            (r#", "backend": "iptables", "iptablesAdminChainName": "MY-ADMIN""#, V4),
            (r#", "backend": "iptables", "ingressPolicy": "open""#, V4),
            (r#", "backend": "iptables", "ingressPolicy": "same-bridge""#, &*format!("{V4}, {V6}")),
        ] {
            twins("rules_are_debians", members, |host, dirs| {
                let conf = conf(version, members, ips);
                let pod = no_pod("c1");
                let mut steps = Vec::new();
                for verb in ["ADD", "ADD", "CHECK", "DEL", "DEL"] {
                    let answer = host.call_with(dirs, "firewall", verb, &pod, &conf);
                    assert!(answer.ok, "{verb} {}", answer.text);
                    if verb == "ADD" {
                        let ips_of = |r: &Json| r.get("ips").unwrap().to_compact_sorted();
                        assert_eq!(ips_of(&answer.json), ips_of(&result(version, ips)));
                    }
                    steps.push(format!("after {verb}\n{}", iptables(host)));
                }
                steps.join("\n")
            });
        }
    }
}

/// A packet from one namespace to another through the host.
fn reaches(from: &Netns, to: &str) -> bool {
    let mut ping = std::process::Command::new("ping");
    run_in(from, ping.args(["-c", "1", "-W", "1", to]), "").status.success()
}

/// A pod on a bridge of its own subnet.
fn attach(host: &Host, id: &str, bridge: &str, subnet: &str, policy: &str) -> (Netns, Pod, String) {
    let (netns, pod) = pod(id);
    let dir = host.path("networks");
    let bridge_conf = format!(
        r#"{{"cniVersion": "1.0.0", "name": "{bridge}", "type": "bridge", "bridge": "{bridge}",
            "isDefaultGateway": true,
            "ipam": {{"type": "host-local", "dataDir": "{dir}", "subnet": "{subnet}"}}}}"#
    );
    let result = host.call("bridge", "ADD", &pod, &bridge_conf).expect("bridge");
    let ips = result.get("ips").and_then(Json::as_array).unwrap()[0].clone();
    let address = ips.get("address").and_then(Json::as_str).unwrap().split('/').next().unwrap().to_owned();
    let conf = format!(
        r#"{{"cniVersion": "1.0.0", "name": "{bridge}", "type": "firewall", "backend": "iptables",
            "ingressPolicy": "{policy}"}}"#
    );
    host.call("firewall", "ADD", &pod, &with(&conf, "prevResult", result)).expect("firewall");
    (netns, pod, address)
}

#[test]
fn packets_obey_the_policy() {
    if !std::path::Path::new("/usr/bin/ping").exists() && !std::path::Path::new("/bin/ping").exists() {
        println!("SKIP packets_obey_the_policy: ping is not installed");
        return;
    }
    for (policy, inside, across) in
        [("open", true, true), ("same-bridge", true, false), ("isolated", false, false)]
    {
        let host = Host::new();
        // Frames within a bridge pass iptables only if the bridge hands them there.
        let filtered =
            kernel::sysctl::write_in(&host.netns, "net/bridge/bridge-nf-call-iptables", "1").is_ok();
        let (a, _, _) = attach(&host, "a", "br1", "10.81.1.0/24", policy);
        let (_b, _, b_ip) = attach(&host, "b", "br1", "10.81.1.0/24", policy);
        let (_c, _, c_ip) = attach(&host, "c", "br2", "10.81.2.0/24", policy);
        assert_eq!(reaches(&a, &c_ip), across, "{policy} across\n{}", iptables(&host));
        if policy == "isolated" && !filtered {
            println!("SKIP packets_obey_the_policy (isolated inside): the kernel lacks br_netfilter");
        } else {
            assert_eq!(reaches(&a, &b_ip), inside, "{policy} inside\n{}", iptables(&host));
        }
    }
}

#[test]
fn isolated_adds_a_rule_of_its_own() {
    let host = Host::new();
    for policy in ["same-bridge", "isolated", "isolated"] {
        let members = format!(r#", "backend": "iptables", "ingressPolicy": "{policy}""#);
        host.call("firewall", "ADD", &no_pod("c1"), &conf("1.0.0", &members, V4)).expect("ADD");
    }
    let text = iptables(&host);
    let order: Vec<&str> = text.lines().filter(|l| l.starts_with("-A CNI-ISO")).collect();
    assert_eq!(
        order,
        [
            "-A CNI-ISOLATION-STAGE-1 -i br7 -o br7 -j DROP",
            "-A CNI-ISOLATION-STAGE-1 -i br7 ! -o br7 -j CNI-ISOLATION-STAGE-2",
            "-A CNI-ISOLATION-STAGE-1 -j RETURN",
            "-A CNI-ISOLATION-STAGE-2 -o br7 -j DROP",
            "-A CNI-ISOLATION-STAGE-2 -j RETURN",
        ]
    );
    assert_eq!(text.matches("-j CNI-ISOLATION-STAGE-1").count(), 1, "{text}");
}

#[test]
fn a_late_del_takes_no_other_pods_rules() {
    let host = Host::new();
    let conf = conf("1.0.0", IPTABLES, V4);
    let (first, second) = (no_pod("c1"), no_pod("c2"));
    host.call("firewall", "ADD", &first, &conf).expect("ADD");
    host.call("firewall", "ADD", &second, &conf).expect("ADD of the address's next owner");
    assert_eq!(iptables(&host).matches("-s 10.1.2.3/32").count(), 2);
    // Without a result as well (B-09).
    let bare = r#"{"cniVersion": "1.0.0", "name": "net", "type": "firewall"}"#;
    for _ in 0..2 {
        assert!(host.call("firewall", "DEL", &first, bare).ok);
        assert_eq!(iptables(&host).matches("-s 10.1.2.3/32").count(), 1);
    }
    host.call("firewall", "CHECK", &second, &conf).expect("CHECK");
    assert!(host.call("firewall", "DEL", &second, &conf).ok);
    assert_eq!(iptables(&host).matches("10.1.2.3").count(), 0);
    let (_, text) = host.call("firewall", "CHECK", &second, &conf).error();
    assert!(text.starts_with("expected rule [-d 10.1.2.3/32 -m conntrack"), "{text}");
}

#[test]
fn rules_of_debians_are_taken_over() {
    if !debian("rules_of_debians_are_taken_over") {
        return;
    }
    let host = Host::new();
    let conf = conf("1.0.0", IPTABLES, V4);
    let pod = no_pod("c1");
    host.call_with(&[crate::harness::DEBIAN], "firewall", "ADD", &pod, &conf).expect("ADD");
    host.call("firewall", "CHECK", &pod, &conf).expect("CHECK");
    assert!(host.call("firewall", "DEL", &pod, &conf).ok);
    assert!(!iptables(&host).contains("10.1.2.3"), "{}", iptables(&host));
    // The other way round: theirs finds its check satisfied, though not the rules to delete.
    host.call("firewall", "ADD", &pod, &conf).expect("ADD");
    assert!(host.call_with(&[crate::harness::DEBIAN], "firewall", "DEL", &pod, &conf).ok);
}

#[test]
fn gc_keeps_the_valid_ones() {
    let host = Host::new();
    let conf = conf("1.1.0", IPTABLES, &format!("{V4}, {V6}"));
    for id in ["c1", "c2"] {
        host.call("firewall", "ADD", &no_pod(id), &conf).expect("ADD");
    }
    assert!(host.call("firewall", "GC", &no_pod("c1"), &conf).ok);
    assert_eq!(iptables(&host).matches("-s 10.1.2.3/32").count(), 2, "without a list nothing goes");
    let keep = Json::array([Json::object([("containerID", "c2".into()), ("ifname", "eth0".into())])]);
    assert!(host.call("firewall", "GC", &no_pod("c1"), &with(&conf, "cni.dev/valid-attachments", keep)).ok);
    assert_eq!(iptables(&host).matches("-s 10.1.2.3/32").count(), 1);
    host.call("firewall", "CHECK", &no_pod("c2"), &conf).expect("CHECK");
    assert!(host.call("firewall", "STATUS", &no_pod("c2"), &conf).ok);
}

#[test]
fn what_is_wrong_is_named_and_nothing_stays() {
    let host = Host::new();
    let empty = iptables(&host);
    for (members, want) in [
        (r#", "ingressPolicy": "x""#, "failed to load netconf: unknown ingress policy: \"x\""),
        (r#", "iptablesAdminChainName": "A\nB""#, "failed to load netconf: iptablesAdminChainName: "),
        (r#", "backend": 7"#, "failed to load netconf: json: cannot unmarshal number"),
        (r#", "backend": "firewalld""#, "could not reach firewalld: "),
    ] {
        let mut command =
            host.prepare(&[&host.bin().display().to_string()], "firewall", "ADD", &no_pod("c1"));
        command.env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/no/such/bus");
        let output = host.run(&mut command, &conf("1.0.0", members, V4));
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success() && text.contains(&want.replace('"', "\\\"")), "{text}");
        assert_eq!(iptables(&host), empty);
    }
    let bare = format!(r#"{{"cniVersion": "1.0.0", "name": "net", "type": "firewall"{IPTABLES}}}"#);
    for verb in ["ADD", "CHECK"] {
        let (_, text) = host.call("firewall", verb, &no_pod("c1"), &bare).error();
        assert!(text.starts_with("missing prevResult from earlier plugin"), "{text}");
    }
    let none = format!(
        r#"{{"cniVersion": "1.0.0", "name": "net", "type": "firewall", "ingressPolicy": "same-bridge",
        "prevResult": {{"cniVersion": "1.0.0", "ips": [{V4}]}}}}"#
    )
    .replace(", \"interface\": 2", "");
    let (_, text) = host.call("firewall", "ADD", &no_pod("c1"), &none).error();
    assert!(text.starts_with("interface needs to be set for ingress policy \"same-bridge\""), "{text}");
    let (code, text) = host.call("firewall", "ADD", &no_pod("c1"), &bare.replace("1.0.0", "0.3.1")).error();
    assert_eq!(code, 1, "{text}");
}

#[test]
fn parallel_adds_make_shared_rules_once() {
    let host = Host::new();
    std::thread::scope(|scope| {
        for n in 0..12 {
            let host = &host;
            scope.spawn(move || {
                let ips = format!(r#"{{"address": "10.1.2.{}/24", "interface": 2}}"#, n + 10);
                let members = r#", "backend": "iptables", "ingressPolicy": "same-bridge""#;
                host.call("firewall", "ADD", &no_pod(&format!("c{n}")), &conf("1.0.0", members, &ips))
                    .expect("ADD");
            });
        }
    });
    let text = iptables(&host);
    for (what, count) in
        [("-j CNI-FORWARD", 1), ("-j CNI-ADMIN", 1), ("-j CNI-ISOLATION-STAGE-1", 1), ("--ctstate", 12)]
    {
        assert_eq!(text.matches(what).count(), count, "{what}\n{text}");
    }
}

#[test]
fn the_legacy_variant_is_used_where_its_names_lead_there() {
    let legacy = "/usr/sbin/xtables-legacy-multi";
    if !std::path::Path::new(legacy).exists() {
        println!("SKIP the_legacy_variant_is_used_where_its_names_lead_there: no legacy iptables");
        return;
    }
    let host = Host::new();
    let tools = host.path("tools");
    std::fs::create_dir_all(&tools).unwrap();
    for name in ["iptables", "ip6tables"] {
        for what in ["-save", "-restore", ""] {
            std::os::unix::fs::symlink(legacy, format!("{tools}/{name}{what}")).unwrap();
        }
    }
    let call = |verb: &str| {
        let mut command = host.prepare(&[&host.bin().display().to_string()], "firewall", verb, &no_pod("c1"));
        command.env("PATH", &tools).env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/no/such/bus");
        let output = host.run(&mut command, &conf("1.0.0", "", V4));
        assert!(output.status.success(), "{verb} {}", String::from_utf8_lossy(&output.stdout));
    };
    let saved = || {
        let output = host.run(&mut host.command(format!("{tools}/iptables-save")), "");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    call("ADD");
    if !saved().contains("-s 10.1.2.3/32") {
        println!("SKIP the_legacy_variant_is_used_where_its_names_lead_there: the kernel lacks it");
        return;
    }
    call("ADD");
    call("CHECK");
    assert_eq!(saved().matches("-s 10.1.2.3/32").count(), 1, "{}", saved());
    assert_eq!(host.rules().matches("10.1.2.3").count(), 0);
    call("DEL");
    call("DEL");
    assert!(!saved().contains("10.1.2.3"));
}

/// A real firewalld on a bus of its own is found, told, asked, and told again; no rule of iptables is made.
#[test]
fn firewalld_is_used_where_it_runs() {
    const TEST: &str = "firewalld_is_used_where_it_runs";
    if !std::path::Path::new("/usr/sbin/firewalld").exists()
        || !std::path::Path::new("/usr/bin/dbus-daemon").exists()
    {
        println!("SKIP {TEST}: firewalld or dbus-daemon is not installed");
        return;
    }
    let host = Host::new();
    let (bus, settings) = (host.path("bus"), host.path("bus.conf"));
    let text = format!(
        r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
        <busconfig><type>system</type><listen>unix:path={bus}</listen><auth>EXTERNAL</auth>
        <policy context="default"><allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/>
        <allow send_type="method_call"/></policy></busconfig>"#
    );
    std::fs::write(&settings, text).unwrap();
    // One script, so that both daemons end with it whatever happens.
    let dir = host.dir.display();
    for (name, conf) in [
        ("conf", conf("1.0.0", "", &format!("{V4}, {V6}"))),
        ("zone", conf("1.0.0", r#", "backend": "firewalld", "firewalldZone": "internal""#, V4)),
        ("bare", r#"{"cniVersion": "1.0.0", "name": "net", "type": "firewall"}"#.to_owned()),
    ] {
        std::fs::write(host.path(name), conf).unwrap();
    }
    let script = format!(
        r#"mount -t tmpfs none /run
        dbus-daemon --config-file={settings} --nofork 2>/dev/null & bus=$!
        trap 'kill $daemon $bus' EXIT
        for n in $(seq 100); do [ -S {bus} ] && break; sleep 0.1; done
        firewalld --nofork --nopid >/dev/null 2>&1 & daemon=$!
        for n in $(seq 200); do firewall-cmd --state 2>/dev/null | grep -q running && break; sleep 0.1; done
        firewall-cmd --state 2>/dev/null | grep -q running || exit 77
        call() {{ CNI_COMMAND=$1 {dir}/bin/firewall < {dir}/$2 > {dir}/answer && echo $1 $2 fine || {{ echo $1 $2 failed; cat {dir}/answer; echo; }}; }}
        list() {{ echo "sources: $(firewall-cmd --zone=$1 --list-sources)"; }}
        call ADD conf; call ADD conf; call CHECK conf; list trusted
        call DEL bare; call DEL bare; list trusted; call CHECK conf
        call ADD zone; call CHECK zone; list internal; call DEL zone; list internal"#
    );
    let mut command = host.prepare(&[&host.bin().display().to_string()], "firewall", "ADD", &no_pod("c1"));
    command.env("DBUS_SYSTEM_BUS_ADDRESS", format!("unix:path={bus}"));
    let mut wrapped = std::process::Command::new("timeout");
    wrapped.args(["90", "unshare", "--mount", "sh", "-c", &script]).env_clear();
    wrapped.envs(command.get_envs().filter_map(|(k, v)| Some((k, v?))));
    let output = host.run(&mut wrapped, "");
    let said = String::from_utf8_lossy(&output.stdout);
    if output.status.code() == Some(77) {
        println!("SKIP {TEST}: firewalld does not start here");
        return;
    }
    let lines: Vec<&str> = said
        .lines()
        .filter(|l| l.contains(' ') && !l.contains("cniVersion") && !l.contains("\"code"))
        .collect();
    assert_eq!(
        lines,
        [
            "ADD conf fine",
            "ADD conf fine",
            "CHECK conf fine",
            "sources: 10.1.2.3/32 2001:db8::3/128",
            "DEL bare fine",
            "DEL bare fine",
            "sources: ",
            "CHECK conf failed",
            "    \"msg\": \"failed to find the address 10.1.2.3/32 in trusted zone\"",
            "ADD zone fine",
            "CHECK zone fine",
            "sources: 10.1.2.3/32",
            "DEL zone fine",
            "sources: ",
        ],
        "{said} {}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(!iptables(&host).contains("10.1.2.3"));
}
