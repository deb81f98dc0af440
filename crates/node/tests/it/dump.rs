//! `loden dump` on real hosts, with secrets planted where hosts have them; `tar` is the witness.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::wireguard;
use crate::world::{Host, World, until};

const VXLAN: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;

/// Preshared key of all WireGuard nodes.
const PSK: &str = "pTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
const ETCD_PASSWORD: &str = "etcd-s3cr3t-w0rd";
const URL_PASSWORD: &str = "url,s3cr3t(w0rd";
const TOKEN: &str = "kubeconfig-t0ken-4711";
const CLIENT_KEY: &str = "TFM0dExTMUNSVWRKVGlCU1UwRWdVRkpKVmtGVVJTQkxSVms=";
const CNI_TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJrIn0.c2lnbmF0dXJl";
const CNI_PASSWORD: &str = "cni \"s3cr3t\"";

fn loden(host: &Host, words: &[&str], more: &[(&str, &Path)]) -> Output {
    let mut command = host.loden(words);
    command
        .env("FLANNELD_SUBNET_FILE", host.subnet_file())
        .env_remove("LODEN_SOCKET")
        .envs(more.iter().copied());
    host.netns.run(|| command.output()).unwrap().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What `tar` says.
fn tar(words: &[&str]) -> String {
    let output = Command::new("tar").args(words).output().unwrap();
    assert!(output.status.success(), "tar {words:?}: {}", err(&output));
    out(&output)
}

fn dump(host: &Host, file: &Path, more: &[&str]) -> Output {
    let words: Vec<&str> =
        ["dump", "-o", file.to_str().unwrap()].into_iter().chain(more.iter().copied()).collect();
    loden(host, &words, &[])
}

/// A host's `/` with what other programs left.
fn root(world: &World) -> PathBuf {
    let root = world.dir.path().join("root");
    let cni = root.join("etc/cni/net.d");
    fs::create_dir_all(&cni).unwrap();
    let conf = serde_json::json!({
        "cniVersion": "0.3.1", "name": "other",
        "plugins": [{"type": "x", "policy": {"k8s_auth_token": CNI_TOKEN}, "password": CNI_PASSWORD}],
    });
    fs::write(cni.join("10-other.conflist"), serde_json::to_string_pretty(&conf).unwrap()).unwrap();
    // Broken, so no document; and a kubeconfig, as Calico and Multus keep theirs here.
    fs::write(cni.join("20-broken.conf"), format!("{{\"token\": \"{CNI_TOKEN}\", \"x\": ")).unwrap();
    fs::write(cni.join("other-kubeconfig"), kubeconfig()).unwrap();
    root
}

fn kubeconfig() -> String {
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: c\n  cluster:\n    server: https://192.0.2.1:6443\nusers:\n- name: u\n  user:\n    \
         token: {TOKEN}\n    client-key-data: {CLIENT_KEY}\n"
    )
}

#[test]
fn an_archive_tells_everything_but_secrets() {
    if !wireguard::available("an_archive_tells_everything_but_secrets") {
        return;
    }
    let conf = format!(r#"{{"Network":"10.244.0.0/16","Backend":{{"Type":"wireguard","PSK":"{PSK}"}}}}"#);
    let world = World::with_config(2, &conf);
    let kube = world.dir.path().join("kubeconfig");
    fs::write(&kube, kubeconfig()).unwrap();
    let (host, peer) = (&world.hosts[0], &world.hosts[1]);
    let agent = host.agent_in(
        &[
            "--etcd-username=root",
            &format!("--etcd-password={ETCD_PASSWORD}"),
            &format!("--etcd-endpoints=http://u:{URL_PASSWORD}@192.0.2.1:2379"),
            &format!("--kubeconfig-file={}", kube.display()),
        ],
        &[
            ("LODEN_STORE", host.store()),
            ("FLANNELD_ETCD_PASSWORD", ETCD_PASSWORD),
            ("HTTPS_PROXY", &format!("http://p:{URL_PASSWORD}@192.0.2.1:3128")),
        ],
    );
    agent.ready();
    let other = peer.agent(&[]);
    other.ready();
    until("the peer to be known", || {
        let (_, json) = host.status_json();
        if json["peers"]["programmed"] == 1 { Ok(()) } else { Err(format!("{json:#}")) }
    });
    let file = world.dir.path().join("dump.tar");
    let root = root(&world);
    let done = dump(host, &file, &["--root", root.to_str().unwrap()]);
    println!("{}{}", out(&done), err(&done));
    assert!(matches!(done.status.code(), Some(0 | 2)), "{done:?}");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);

    let bytes = fs::read(&file).unwrap();
    let private = fs::read_to_string(host.dir.join("wgkey")).unwrap();
    let secrets = [private.trim(), PSK, ETCD_PASSWORD, URL_PASSWORD, TOKEN, CLIENT_KEY, CNI_TOKEN, "s3cr3t"];
    for secret in secrets {
        assert!(secret.len() > 5);
        let found = bytes.windows(secret.len()).position(|part| part == secret.as_bytes());
        let around = found.map(|at| String::from_utf8_lossy(&bytes[at.saturating_sub(200)..at]).into_owned());
        assert_eq!(around, None, "{secret} is in the archive");
    }

    let file = file.to_str().unwrap();
    let listed = tar(&["-tf", file]);
    assert_eq!(listed.lines().next(), Some("loden-dump/MANIFEST"));
    let text = |name: &str| tar(&["-xOf", file, &format!("loden-dump/{name}")]);
    let manifest = text("MANIFEST");
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/guide/troubleshooting.md");
    let guide = fs::read_to_string(guide).unwrap();
    for name in listed.lines().skip(1) {
        let name = name.strip_prefix("loden-dump/").unwrap();
        assert!(manifest.contains(&format!("\nfile {name} ")), "{name}: {manifest}");
        let counters = name.strip_prefix("kernel/counters").and_then(|rest| rest.strip_suffix(".txt"));
        let shown = if name.starts_with("cni/") { "cni/" } else { counters.unwrap_or(name) };
        assert!(guide.contains(shown), "{name} is not in the guide");
    }
    for (name, part) in [
        ("status.json", "\"kind\": \"wireguard\""),
        ("doctor.json", "\"findings\""),
        ("facts.json", "net/ipv4/ip_forward"),
        ("settings.json", "\"etcd-endpoints\": \"http://(removed)@192.0.2.1:2379\""),
        ("settings.json", "\"PSK\": \"(removed)\""),
        ("settings.json", "\"HTTPS_PROXY\": \"http://(removed)@192.0.2.1:3128\""),
        ("metrics.txt", "loden_build_info"),
        ("log.txt", "flannel is ready"),
        ("host.txt", "Linux version"),
        ("subnet.env", "FLANNEL_SUBNET=10.244."),
        ("cni/10-other.conflist", "\"k8s_auth_token\": \"(removed)\""),
        ("cni/20-broken.conf", "\"token\": \"(removed)\""),
        ("kernel/links.txt", "flannel-wg"),
        ("kernel/addresses.txt", "192.0.2.11/24 dev eth0 scope global"),
        ("kernel/routes.txt", "0.0.0.0/0 via 192.0.2.1"),
        ("kernel/rules.txt", "lookup 254"),
        ("kernel/neighbours.txt", "192.0.2.12 dev eth0"),
        ("kernel/ours.txt", "flannel-wg"),
        ("kernel/sysctl.txt", "net.ipv4.ip_forward = 1"),
        ("kernel/counters-dev.txt", "eth0:"),
    ] {
        let text = text(name);
        assert!(text.contains(part), "{name} has no {part}: {text}");
    }
    for absent in ["kubeconfig", "wgkey"] {
        assert!(!listed.contains(absent), "{listed}");
    }
    // The witnesses see the same.
    let routes = text("kernel/routes.txt");
    for route in host.json("ip -j -4 route show table main").as_array().unwrap() {
        let dst = route["dst"].as_str().unwrap().replace("default", "0.0.0.0/0");
        let dev = route["dev"].as_str().map_or(String::new(), |dev| format!(" dev {dev}"));
        let is = |line: &str| line.contains(&dst) && line.contains(&dev);
        assert!(routes.lines().any(is), "{dst}{dev} of {route}: {routes}");
    }
}

#[test]
fn an_archive_is_shown_anywhere() {
    let world = World::with_config(2, VXLAN);
    let agents = world.start(&[]);
    let host = &world.hosts[0];
    assert_eq!(host.status(&["--wait"]).0, 0);
    let file = world.dir.path().join("dump.tar");
    let done = dump(host, &file, &[]);
    assert!(matches!(done.status.code(), Some(0 | 2)), "{done:?}");
    // Nothing of it is asked for any more.
    let (_, live) = host.status_json();
    drop(agents);
    let path = file.to_str().unwrap();
    let elsewhere = |words: &[&str]| loden(&world.hosts[1], words, &[]);
    let table = elsewhere(&["status", "--from", path]);
    let text = out(&table);
    assert_eq!(table.status.code(), Some(0), "{text}{}", err(&table));
    assert!(err(&table).starts_with("as of 20"), "{}", err(&table));
    for part in ["loden v", "  lease      10.244.", "✓ healthy, and packets come back from other nodes"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let why = out(&elsewhere(&["status", "--why", "--from", path]));
    assert!(why.contains("IPv4 default route: the first, through eth0"), "{why}");
    let json = elsewhere(&["status", "-o", "json", "--from", path]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    for same in ["version", "verdict", "ready", "lease", "interface", "backend", "objects", "troubles"] {
        assert_eq!(json[same], live[same], "{same}");
    }
    // From standard input, packed anew by another program.
    let dir = world.dir.path().join("unpacked");
    fs::create_dir(&dir).unwrap();
    tar(&["-xf", path, "-C", dir.to_str().unwrap()]);
    let again = world.dir.path().join("again.tar");
    tar(&["-cf", again.to_str().unwrap(), "-C", dir.to_str().unwrap(), "./loden-dump"]);
    let mut command = host.loden(&["status", "--from", "-"]);
    let output = command.stdin(fs::File::open(&again).unwrap()).output().unwrap();
    assert_eq!(out(&output), text, "{}", err(&output));
    // The doctor comes to the same findings on another machine.
    let here: serde_json::Value =
        serde_json::from_str(&tar(&["-xOf", path, "loden-dump/doctor.json"])).unwrap();
    let there = elsewhere(&["doctor", "-o", "json", "--from", path]);
    let there: serde_json::Value = serde_json::from_slice(&there.stdout).unwrap();
    assert_eq!(here, there);
}

#[test]
fn what_is_no_archive_of_ours_is_told_in_a_sentence() {
    let world = World::with_config(1, VXLAN);
    let host = &world.hosts[0];
    let dir = world.dir.path();
    let good = dir.join("good.tar");
    let done = dump(host, &good, &[]);
    // No agent: partial, and said.
    assert_eq!(done.status.code(), Some(2), "{done:?}");
    assert!(
        err(&done).contains("not in it: the agent's status, settings, metrics, log: no agent runs here: "),
        "{}",
        err(&done)
    );
    assert!(err(&done).ends_with("the archive is not complete, see above\n"), "{}", err(&done));
    let manifest = tar(&["-xOf", good.to_str().unwrap(), "loden-dump/MANIFEST"]);
    assert!(manifest.contains("\ncomplete no\n"), "{manifest}");
    assert!(
        manifest.contains("\nmissing the agent's status, settings, metrics, log: no agent runs here: "),
        "{manifest}"
    );
    let shown = loden(host, &["status", "--from", good.to_str().unwrap()], &[]);
    assert_eq!(shown.status.code(), Some(2));
    assert!(out(&shown).contains("no agent answers"), "{}", out(&shown));

    let bytes = fs::read(&good).unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(dir.join(name), bytes).unwrap();
    write("cut.tar", &bytes[..bytes.len() / 2]);
    write("text.tar", b"hello");
    write("empty.tar", b"");
    let mut damaged = bytes.clone();
    damaged[10] ^= 1;
    write("damaged.tar", &damaged);
    tar(&["-cf", dir.join("other.tar").to_str().unwrap(), "-C", dir.to_str().unwrap(), "text.tar"]);
    tar(&["-czf", dir.join("packed.tar").to_str().unwrap(), "-C", dir.to_str().unwrap(), "text.tar"]);
    for (name, want) in [
        ("cut.tar", "ends early: it was cut, fetch it again"),
        ("text.tar", "is no tar archive"),
        ("empty.tar", "is empty"),
        ("damaged.tar", "is no tar archive"),
        ("other.tar", "is a tar archive, and not one of `loden dump`"),
        ("packed.tar", "is compressed: unpack it with gunzip first"),
        ("none.tar", "No such file or directory"),
    ] {
        let path = dir.join(name);
        for command in ["status", "doctor"] {
            let done = loden(host, &[command, "--from", path.to_str().unwrap()], &[]);
            assert_eq!(done.status.code(), Some(2), "{name}");
            assert_eq!(out(&done), "", "{name}");
            let said = err(&done);
            assert!(said.contains(want) && said.lines().count() == 1, "{name}: {said}");
        }
    }
    for (words, want) in [
        (
            &["dump", "-o", "/nonexistent/x.tar"][..],
            "loden dump: write /nonexistent/x.tar: No such file or directory",
        ),
        (&["dump", "--outptu", "x"], "did you mean --output?"),
        (&["status", "--from", "x", "--wait"], "neither --wait nor --socket"),
        (&["doctor", "--from", "x", "--fix"], "--fix changes this host"),
    ] {
        let done = loden(host, words, &[]);
        assert_eq!(done.status.code(), Some(2), "{words:?}");
        assert!(err(&done).contains(want), "{words:?}: {}", err(&done));
    }
    // A socket of another user's does not say which files are read.
    let socket = dir.join("evil.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    std::os::unix::fs::chown(&socket, Some(65_534), None).unwrap();
    write("secrets.env", b"no archive is to have this");
    let told =
        format!(r#"{{"version":1,"flags":{{"subnet-file":"{}"}}}}"#, dir.join("secrets.env").display());
    let liar = std::thread::spawn(move || {
        // Status, settings, metrics, log.
        for stream in listener.incoming().take(4) {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 512]);
            let _ = stream.write_all(format!("HTTP/1.0 200 OK\r\n\r\n{told}").as_bytes());
        }
    });
    let evil = dir.join("evil.tar");
    let done = dump(host, &evil, &["--socket", socket.to_str().unwrap()]);
    assert!(evil.exists(), "{done:?}");
    liar.join().unwrap();
    let bytes = fs::read(&evil).unwrap();
    assert!(String::from_utf8_lossy(&bytes).contains("secrets.env"), "it was told of the file");
    assert!(!String::from_utf8_lossy(&bytes).contains("no archive is to have this"), "and did not read it");
    // Into a pipe the same archive goes, and nothing else.
    let mut command = host.loden(&["dump", "-o", "-"]);
    command.env("FLANNELD_SUBNET_FILE", host.subnet_file()).stderr(Stdio::null());
    let piped = host.netns.run(|| command.output()).unwrap().unwrap();
    write("piped.tar", &piped.stdout);
    assert!(tar(&["-tf", dir.join("piped.tar").to_str().unwrap()]).starts_with("loden-dump/MANIFEST\n"));
}

#[test]
fn who_may_not_ask_gets_what_there_is() {
    let world = World::with_config(1, VXLAN);
    let host = &world.hosts[0];
    let agent = host.agent(&[]);
    agent.ready();
    // A place where nobody may write and run things.
    let open = tempfile::Builder::new().prefix("loden-test").tempdir_in("/tmp").unwrap();
    fs::set_permissions(open.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let program = open.path().join("loden");
    // By another process: a file that ours has open for writing cannot be run, and others' children inherit it.
    let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_loden")).arg(&program).status();
    assert!(copied.unwrap().success());
    for dir in [world.dir.path(), &host.dir] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
    command.args(["dump", "-o", "x.tar"]).current_dir(&open).env("FLANNELD_SUBNET_FILE", host.subnet_file());
    let done = host.netns.run(|| command.output()).unwrap().unwrap();
    assert_eq!(done.status.code(), Some(2), "{done:?}");
    let said = err(&done);
    assert!(said.contains("Permission denied") && said.contains("run it as root"), "{said}");
    let file = open.path().join("x.tar");
    assert!(tar(&["-tf", file.to_str().unwrap()]).contains("loden-dump/kernel/routes.txt"));
}
