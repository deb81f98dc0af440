//! `loden cni`: the driver, with our plugins, Debian's and foreign ones.

use std::path::Path;
use std::process::Output;

use crate::harness::{Host, OURS, Pod, ip_in, pod, twins};
use model::gojson::Json;

/// The program beside ours.
fn loden(test: &str) -> Option<String> {
    let path = Path::new(OURS).with_file_name("loden");
    if !path.exists() {
        println!("SKIP {test}: needs loden: cargo build -p node");
    }
    path.exists().then(|| path.display().to_string())
}

fn list(host: &Host, version: &str) -> String {
    let dir = host.path("networks");
    let tuning = host.path("tuning");
    format!(
        r#"{{"cniVersion": "{version}", "name": "net", "plugins": [
            {{"type": "bridge", "isDefaultGateway": true,
              "ipam": {{"type": "host-local", "dataDir": "{dir}", "subnet": "10.9.1.0/24"}}}},
            {{"type": "tuning", "dataDir": "{tuning}", "mtu": 1400, "capabilities": {{"mac": true}}}},
            {{"type": "portmap", "capabilities": {{"portMappings": true}}}}]}}"#
    )
}

fn put(host: &Host, name: &str, text: &str) {
    std::fs::create_dir_all(host.path("conf")).unwrap();
    std::fs::write(host.path(&format!("conf/{name}")), text).unwrap();
}

fn drive(host: &Host, loden: &str, dirs: &str, words: &str, env: &[(&str, &str)]) -> Output {
    let mut command = host.command(loden);
    command.arg("cni").args(words.split_whitespace());
    command.args(["--conf-dir", &host.path("conf"), "--bin-dir", dirs, "--cache-dir", &host.path("cache")]);
    command.envs(env.iter().copied());
    host.run(&mut command, "")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_chain_lives_and_dies_by_hand() {
    let Some(loden) = loden("a_chain_lives_and_dies_by_hand") else { return };
    let host = Host::new();
    let bin = host.bin().display().to_string();
    put(&host, "10-net.conflist", &list(&host, "1.1.0"));
    let (netns, pod) = pod("c1");
    let env = [(
        "CAP_ARGS",
        r#"{"mac": "0a:00:00:00:00:42", "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}"#,
    )];
    let run = |words: &str| drive(&host, &loden, &bin, words, &env);
    let output = run("status net");
    assert!(output.status.success() && text(&output).contains("network net can attach pods"), "{output:?}");
    let output = run(&format!("add net {}", pod.path));
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    for want in [
        "attached eth0 of ",
        " to network net as cnitool-",
        "cni0",
        "10.9.1.2/24, gateway 10.9.1.1",
        "route 0.0.0.0/0 via 10.9.1.1",
        "0a:00:00:00:00:42",
        "portmap ",
    ] {
        assert!(said.contains(want), "{want:?} in {said}");
    }
    assert!(ip_in(&netns, "link show eth0").contains("mtu 1400"));
    assert!(host.rules().contains("dnat to 10.9.1.2:80"));
    let kept = host.files("cache");
    assert!(
        kept.len() == 1 && kept[0].starts_with("results/net-cnitool-") && kept[0].ends_with("-eth0"),
        "{kept:?}"
    );
    let output = run(&format!("check net {}", pod.path));
    assert!(
        output.status.success() && text(&output).contains("is as network net made it"),
        "{}",
        text(&output)
    );
    // A second attachment of the name is refused, and the first lives on.
    let output = run(&format!("add net {} -i eth1", pod.path));
    assert!(output.status.success(), "{}", text(&output));
    ip_in(&netns, "link set eth0 mtu 1300");
    let output = run(&format!("check net {} -o json", pod.path));
    let error: Json = String::from_utf8_lossy(&output.stdout).parse().unwrap();
    let msg = error.get("msg").and_then(Json::as_str).unwrap_or_default().to_owned();
    assert!(msg.starts_with("plugin type=\"tuning\" failed (check): Error: Tuning configured MTU"), "{msg}");
    for name in ["eth0", "eth0", "eth1"] {
        let output = run(&format!("del net {} -i {name}", pod.path));
        assert!(output.status.success() && text(&output).contains("detached"), "{}", text(&output));
    }
    let output = run(&format!("check net {}", pod.path));
    assert!(
        text(&output).contains("is kept in") && text(&output).contains("loden cni add"),
        "{}",
        text(&output)
    );
    assert_eq!(host.links(), ["cni0"]);
    assert_eq!(host.files("cache"), [""; 0]);
    assert_eq!(host.files("networks"), ["net/last_reserved_ip.0", "net/lock"]);
}

#[test]
fn results_are_the_same_with_debians_plugins() {
    let Some(loden) = loden("results_are_the_same_with_debians_plugins") else { return };
    for first in ["bridge", "ptp"] {
        twins("results_are_the_same_with_debians_plugins", first, |host, dirs| {
            put(host, "10-net.conflist", &list(host, "1.0.0").replace("\"bridge\"", &format!("{first:?}")));
            let (_netns, pod) = pod("c1");
            let output = drive(host, &loden, dirs[0], &format!("add net {} -o json", pod.path), &[]);
            assert!(output.status.success(), "{}", text(&output));
            let result: Json = String::from_utf8_lossy(&output.stdout).parse().unwrap();
            let output = drive(host, &loden, dirs[0], &format!("del net {}", pod.path), &[]);
            assert!(output.status.success(), "{}", text(&output));
            crate::harness::stable(&result)
        });
    }
}

#[test]
fn gc_ends_what_has_no_namespace() {
    let Some(loden) = loden("gc_ends_what_has_no_namespace") else { return };
    for version in ["1.1.0", "1.0.0"] {
        let host = Host::new();
        let bin = host.bin().display().to_string();
        put(&host, "10-net.conflist", &list(&host, version));
        let run = |words: &str| {
            let output = drive(&host, &loden, &bin, words, &[]);
            assert!(output.status.success(), "{words}: {}", text(&output));
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let (_living, alive) = pod("c1");
        run(&format!("add net {}", alive.path));
        // Attached by a runtime that keeps its results elsewhere: known from our record.
        let (_other, foreign) = pod("c2");
        let conf = list(&host, version);
        let doc: Json = conf.parse().unwrap();
        let mut bridge = doc.get("plugins").and_then(Json::as_array).unwrap()[0].clone();
        bridge.set("name", "net");
        bridge.set("cniVersion", version);
        host.call("bridge", "ADD", &foreign, &bridge.to_compact()).expect("ADD");
        let (dying, dead) = pod("c3");
        run(&format!("add net {}", dead.path));
        drop(dying);
        let said = run("gc net");
        assert!(
            said.contains("2 attachments with a namespace kept, 1 without one ended") || version == "1.0.0",
            "{said}"
        );
        assert!(said.contains("ended eth0 of cnitool-"), "{said}");
        assert_eq!(
            host.files("networks"),
            ["net/10.9.1.2", "net/10.9.1.3", "net/last_reserved_ip.0", "net/lock"]
        );
        assert_eq!(host.files("cache").len(), 1);
        if version == "1.0.0" {
            assert!(said.contains("has no GC"), "{said}");
            continue;
        }
        // Nobody ended this one: a reservation without attachment.
        std::fs::write(host.path("networks/net/10.9.1.77"), "cX\r\neth0").unwrap();
        let done: Json = run("gc net -o json").parse().unwrap();
        assert_eq!(done.get("valid").and_then(Json::as_array).unwrap().len(), 2);
        assert!(!host.files("networks").contains(&"net/10.9.1.77".to_owned()));
        run(&format!("del net {}", alive.path));
    }
}

#[test]
fn a_failed_add_is_undone_and_a_hung_plugin_named() {
    let Some(loden) = loden("a_failed_add_is_undone_and_a_hung_plugin_named") else { return };
    let host = Host::new();
    let bin = host.bin().display().to_string();
    let own = host.path("own");
    std::fs::create_dir_all(&own).unwrap();
    let script = |name: &str, text: &str| {
        let path = format!("{own}/{name}");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    };
    script("hang", "[ $CNI_COMMAND = ADD ] && sleep 1000; exit 0");
    script(
        "fail",
        "cat > /dev/null; [ $CNI_COMMAND = ADD ] || exit 0; echo '{\"code\": 142, \"msg\": \"no luck\"}'; exit 1",
    );
    script("mute", "exit 0");
    let dirs = format!("{own}:{bin}");
    for (kind, want, limit) in [
        ("hang", "did not answer ADD within 1 s and was killed; --timeout SECONDS", 1),
        ("fail", "plugin type=\"fail\" name=\"net\" failed (add): no luck", 60),
        ("mute", "plugin type=\"mute\" name=\"net\" failed (add): read its result: ", 60),
        ("nothing", "failed to find plugin \"nothing\" in path [", 60),
    ] {
        put(&host, "10-net.conflist", &list(&host, "1.0.0").replace("\"portmap\"", &format!("\"{kind}\"")));
        let (netns, pod) = pod("c1");
        let output = drive(&host, &loden, &dirs, &format!("add net {} --timeout {limit}", pod.path), &[]);
        assert!(!output.status.success() && text(&output).contains(want), "{}", text(&output));
        assert_eq!(host.files("networks"), ["net/last_reserved_ip.0", "net/lock"], "{kind}");
        assert!(!ip_in(&netns, "link show").contains("eth0"), "{kind}");
        assert_eq!(host.files("cache"), [""; 0], "{kind}");
    }
}

/// The limit holds below our own plugins too: a foreign address manager that hangs.
#[test]
fn a_hung_delegate_is_named_and_nothing_stays() {
    let host = Host::new();
    let (netns, pod) = pod("c1");
    let path = host.bin().join("hang");
    std::fs::write(&path, "#!/bin/sh\n[ $CNI_COMMAND = DEL ] && exit 0\nsleep 1000\n").unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let conf = r#"{"cniVersion": "1.1.0", "name": "net", "type": "bridge", "ipam": {"type": "hang"}}"#;
    for verb in ["ADD", "STATUS"] {
        let mut command = host.prepare(&[&host.bin().display().to_string()], "bridge", verb, &pod);
        let output = host.run(command.env("LODEN_CNI_TIMEOUT", "1"), conf);
        let text = String::from_utf8_lossy(&output.stdout);
        let want = format!("/hang did not answer {verb} within 1 s and was killed");
        assert!(!output.status.success() && text.contains(&want) && text.contains("\"code\": 11"), "{text}");
    }
    assert!(host.links().iter().all(|name| !name.starts_with("veth")));
    assert_eq!(host.files("state/attachments"), [""; 0]);
    assert!(!ip_in(&netns, "link show").contains("eth0"));
    let gone = Pod { path: String::new(), ..pod };
    assert!(host.call("bridge", "DEL", &gone, conf).ok);
}

#[test]
fn words_that_are_not_understood() {
    let Some(loden) = loden("words_that_are_not_understood") else { return };
    let host = Host::new();
    put(&host, "10-net.conflist", &list(&host, "0.3.1"));
    for (words, env, code, want) in [
        ("fly net x", ("A", "b"), 2, "usage: loden cni"),
        ("add net", ("A", "b"), 2, "usage: loden cni"),
        ("add net x", ("CAP_ARGS", "["), 2, "loden cni: CAP_ARGS: "),
        ("add net x", ("CNI_ARGS", "A"), 2, "loden cni: ARGS: invalid pair \"A\""),
        ("add none x", ("A", "b"), 1, "loden cni add none: no net configuration with name \"none\" in "),
        ("add net x --id a/b", ("A", "b"), 1, "invalid characters in containerID"),
        ("add net x -i 1234567890123456", ("A", "b"), 1, "interface name is too long"),
        ("check net x", ("A", "b"), 1, "does not support CHECK command"),
        (
            "add net /run/netns/no-such",
            ("A", "b"),
            1,
            "plugin type=\"bridge\" name=\"net\" failed (add): failed to open netns",
        ),
    ] {
        let output = drive(&host, &loden, &host.bin().display().to_string(), words, &[env]);
        assert_eq!(output.status.code(), Some(code), "{words}: {}", text(&output));
        assert!(text(&output).contains(want), "{words}: {}", text(&output));
    }
    let output = drive(&host, &loden, "/none", "status net", &[]);
    assert!(text(&output).contains("has no STATUS"), "{}", text(&output));
}
