//! `loden status` asks real agents, and the kernel where there is none.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::process::Command;

use crate::world::{World, sh, until};

const VXLAN: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;

#[test]
fn a_healthy_node_says_so() {
    let world = World::with_config(2, VXLAN);
    let mut agents = world.start(&[]);
    let (host, peer) = (&world.hosts[0], &world.hosts[1]);
    let json = until("both to be known", || {
        let (code, json) = host.status_json();
        if code == 0 && json["peers"]["programmed"] == 1 { Ok(json) } else { Err(format!("{code} {json:#}")) }
    });
    assert_eq!(json["version"], 1);
    assert_eq!(json["verdict"], "healthy");
    assert_eq!(json["store"]["name"], format!("file {}", world.dir.path().join("leases.db").display()));
    let heard = json["store"]["heard_ms"].as_u64().expect("the store was heard");
    assert!(heard < 20_000, "the file is looked at every second, heard {heard} ms ago");
    assert_eq!(json["lease"]["subnets"][0], host.subnet("FLANNEL_SUBNET").to_string());
    assert_eq!(json["interface"]["name"], "eth0");
    assert_eq!(json["interface"]["public"][0], "192.0.2.11");
    assert_eq!(json["interface"]["why"][0]["candidate"], "IPv4 default route");
    assert_eq!(json["backend"]["mtu"], 1450);
    let objects = &json["objects"];
    assert_eq!((&objects["wanted"], &objects["differences"]), (&objects["actual"], &serde_json::json!([])));

    let (code, text) = host.status(&["--why"]);
    assert_eq!(code, 0);
    for part in
        ["loden v", "  lease      10.244.", "✓ IPv4 default route: the first, through eth0", "✓ healthy"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(text.lines().count() <= 24 && !text.contains('\x1b'), "one screen, no colours in a pipe: {text}");

    let socket = host.dir.join("loden.sock");
    let data = fs::symlink_metadata(&socket).unwrap();
    assert!(data.file_type().is_socket());
    assert_eq!(data.permissions().mode() & 0o777, 0o600);
    assert_eq!(agents.remove(0).terminate(), 0);
    assert!(!socket.exists(), "an orderly end removes it");
    assert_eq!(peer.status(&[]).0, 0);
}

#[test]
fn what_is_wrong_is_told_with_its_times() {
    let world = World::new(1);
    let host = &world.hosts[0];
    let agent = host.agent(&[]);
    let trouble = until("the missing configuration to be told", || {
        let (code, json) = host.status_json();
        let trouble = json["troubles"][0].clone();
        if code == 1 && trouble["over"] == false { Ok(trouble) } else { Err(format!("{code} {json:#}")) }
    });
    assert!(trouble["text"].as_str().unwrap().starts_with("fetch network config: "), "{trouble}");
    assert!(trouble["first"].as_str() <= trouble["last"].as_str(), "{trouble}");
    // A device in the way: an object that cannot be made.
    host.sh("ip link add flannel.1 type bridge");
    host.put_config(VXLAN);
    agent.says("is a bridge device, not a vxlan one and not ours to remove");
    let (code, text) = host.status(&[]);
    assert_eq!(code, 1);
    for part in [
        "differences",
        "✗ device flannel.1 is a bridge device",
        "over: fetch network config: ",
        "✗ not ready, see above",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    host.sh("ip link del flannel.1");
    agent.ready();
    until("health", || {
        let (code, text) = host.status(&[]);
        if code == 0 { Ok(()) } else { Err(text) }
    });
}

#[test]
fn a_peer_that_is_left_out_is_told() {
    let world = World::with_config(1, VXLAN);
    let host = &world.hosts[0];
    let agent = host.agent(&[]);
    agent.ready();
    let connection = rusqlite::Connection::open(world.dir.path().join("leases.db")).unwrap();
    let lease = r#"{"PublicIP":"198.51.100.99","BackendType":"host-gw","BackendData":null}"#;
    connection.execute("INSERT INTO lease (key, value) VALUES ('10.244.0.0-24', ?1)", [lease]).unwrap();
    drop(connection);
    until("the peer to be left out", || {
        let (code, text) = host.status(&[]);
        let told = text.contains("✗ 10.244.0.0/24: its backend is \"host-gw\", ours is \"vxlan\"");
        if code == 1 && told && text.contains("✗ ready, but not all is well") { Ok(()) } else { Err(text) }
    });
}

#[test]
fn without_an_agent_the_kernel_tells() {
    let world = World::with_config(1, VXLAN);
    let host = &world.hosts[0];
    let (code, text) = host.status(&[]);
    assert_eq!(code, 2);
    assert!(text.contains("no agent runs here: there is no socket"), "{text}");
    assert!(text.contains("nothing of ours on this host"), "{text}");
    let agent = host.agent(&[]);
    agent.ready();
    agent.kill();
    let (code, text) = host.status(&[]);
    assert_eq!(code, 2);
    for part in [
        "an agent was killed",
        "ip link add flannel.1 ",
        "subnet.env FLANNEL_NETWORK=10.244.0.0/16",
        "? cannot tell",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let (code, json) = host.status_json();
    assert_eq!((code, &json["verdict"]), (2, &"unknown".into()));
    // The next agent takes the place of the socket left behind.
    let _agent = host.agent(&[]);
    until("the next agent to answer", || {
        let (code, text) = host.status(&[]);
        if code == 0 { Ok(()) } else { Err(text) }
    });
}

#[test]
fn an_agent_that_hangs_is_not_waited_for() {
    let world = World::with_config(1, VXLAN);
    let host = &world.hosts[0];
    let agent = host.agent(&[]);
    agent.ready();
    let (_, json) = host.status_json();
    let pid = json["agent"]["pid"].as_u64().unwrap();
    sh(&host.netns, &format!("kill -STOP {pid}"));
    let (code, text) = host.status(&[]);
    sh(&host.netns, &format!("kill -CONT {pid}"));
    assert_eq!(code, 2);
    assert!(text.contains("has not answered for 9 s"), "{text}");
}

#[test]
fn a_socket_belongs_to_one_agent() {
    let world = World::with_config(1, VXLAN);
    let host = &world.hosts[0];
    let first = host.agent(&[]);
    first.ready();
    let socket = host.dir.join("loden.sock").display().to_string();
    let store = format!("sqlite:{}", world.dir.path().join("leases.db").display());
    let second = host.agent_in(
        &[&format!("--subnet-file={}/second.env", host.dir.display())],
        &[("LODEN_STORE", &store), ("LODEN_SOCKET", &socket)],
    );
    second.says("another agent answers there; give each its own --subnet-file");
    drop(second);
    let (code, text) = host.status(&[]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(host.status(&["--socket", "/nonexistent/loden.sock"]).0, 2);
    for (words, want) in [(&["-o", "yaml"][..], 2), (&["--nonsense"], 2), (&["-o"], 2), (&["--help"], 0)] {
        assert_eq!(host.status(words).0, want, "{words:?}");
    }
}

#[test]
fn strange_questions_get_an_answer() {
    let world = World::with_config(1, VXLAN);
    let host = &world.hosts[0];
    let agent = host.agent(&[]);
    agent.ready();
    let ask = |question: &[u8]| {
        let mut stream = UnixStream::connect(host.dir.join("loden.sock")).unwrap();
        stream.write_all(question).unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer.lines().next().unwrap_or_default().to_owned()
    };
    for (question, want) in [
        ("GET /v1/status HTTP/1.0\r\n\r\n", "HTTP/1.0 200 OK"),
        ("GET /v2/status HTTP/1.0\r\n\r\n", "HTTP/1.0 404 Not Found"),
        ("POST /v1/status HTTP/1.0\r\ncontent-length: 0\r\n\r\n", "HTTP/1.0 405 Method Not Allowed"),
        ("\x00\x01garbage\r\n\r\n", "HTTP/1.1 400 Bad Request"),
    ] {
        assert_eq!(ask(question.as_bytes()), want, "{question:?}");
    }
    // Somebody who says nothing keeps nobody waiting.
    let _silent = UnixStream::connect(host.dir.join("loden.sock")).unwrap();
    assert_eq!(host.status(&[]).0, 0);
    // Nobody but root may ask.
    let loden = env!("CARGO_BIN_EXE_loden");
    let as_nobody = ["--reuid=65534", "--clear-groups", "cat", loden];
    let reads = Command::new("setpriv").args(as_nobody).output().is_ok_and(|output| output.status.success());
    if reads {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=65534", "--clear-groups", loden, "status", "--socket"])
            .arg(host.dir.join("loden.sock"));
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stdout));
    } else {
        println!("SKIP nobody asks: the test's program cannot be read by others");
    }
}

#[test]
fn waiting_ends_when_the_node_is_healthy() {
    let world = World::new(1);
    let host = &world.hosts[0];
    let agent = host.agent(&[]);
    // Nothing comes: the time is over and the reason is told.
    let mut command = host.loden(&["status", "--wait=1"]);
    command.env("FLANNELD_SUBNET_FILE", host.subnet_file()).env_remove("LODEN_SOCKET");
    let output = host.netns.run(|| command.output()).unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(matches!(output.status.code(), Some(1 | 2)), "{said}");
    assert!(said.starts_with("waiting: "), "{said}");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| host.status(&["--wait"]));
        agent.says("fetch network config");
        host.put_config(VXLAN);
        let (code, text) = waiting.join().unwrap();
        assert_eq!(code, 0, "{text}");
        assert!(text.contains("✓ healthy, with no other node to reach"), "{text}");
    });
    for (words, want) in
        [(&["--wait=soon"][..], 2), (&["--wait=99999999"], 2), (&["--wait=0"], 0), (&["--wait=5s"], 0)]
    {
        assert_eq!(host.status(words).0, want, "{words:?}");
    }
}

#[test]
fn no_screen_is_green_without_a_path_that_works() {
    let world = World::with_config(3, VXLAN);
    let _agents = world.start(&[]);
    let (code, text) = world.hosts[0].status(&["--wait"]);
    assert_eq!(code, 0, "{text}");
    for part in [
        "paths      ",
        " probed, all well",
        "1450 bytes",
        "✓ healthy, and packets come back from other nodes",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let rows: Vec<&str> = text.lines().filter(|line| line.contains("1450 bytes")).collect();
    let columns: std::collections::BTreeSet<usize> =
        rows.iter().filter_map(|row| row.find("192.0.2.")).collect();
    assert_eq!(columns.len(), 1, "aligned: {text}");
}
