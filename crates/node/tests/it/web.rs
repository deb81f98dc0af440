//! The agent's page, asked by hand and by a real browser.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;

use serde_json::Value;

use crate::capture::{self, Sandbox};
use crate::trace::Attached;
use crate::world::{Agent, Host, World, sh, until};

const VXLAN: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;
/// Agents take subnets of its first part, nodes that are not there have those of the rest.
const WIDE: &str = r#"{"Network":"10.244.0.0/14","SubnetLen":24,"SubnetMin":"10.244.1.0","SubnetMax":"10.245.250.0",
    "Backend":{"Type":"vxlan"}}"#;
const PORT: u16 = 9466;

/// An agent with the page on loopback.
fn agent(host: &Host) -> Agent {
    let page = format!("127.0.0.1:{PORT}");
    host.agent_in(&[], &[("LODEN_STORE", host.store()), ("LODEN_WEB", &page)])
}

/// Sends a request as it is; gives the whole answer.
fn ask(host: &Host, request: &str) -> Result<String, String> {
    let stream = host.netns.run(|| TcpStream::connect(("127.0.0.1", PORT))).unwrap();
    let mut stream = stream.map_err(|error| error.to_string())?;
    stream.write_all(request.as_bytes()).map_err(|error| error.to_string())?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(|error| error.to_string())?;
    Ok(text)
}

fn get(host: &Host, path: &str) -> Result<String, String> {
    ask(host, &format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{PORT}\r\nConnection: close\r\n\r\n"))
}

fn json(host: &Host, path: &str) -> Result<Value, String> {
    let answer = get(host, path)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no head")?;
    if !head.starts_with("HTTP/1.1 200") {
        return Err(answer);
    }
    serde_json::from_str(body).map_err(|error| format!("{error}: {body}"))
}

/// A pod that has spoken, which the agent hears of.
fn pod(host: &Host) -> (Sandbox, String) {
    let (pod, address) = capture::pod(host, 7);
    let gateway = host.env("FLANNEL_SUBNET");
    sh(&pod.netns, &format!("ping -q -c 1 -W 5 {}", gateway.trim_end_matches("/24")));
    (pod, address)
}

#[test]
fn a_pods_name_is_beside_its_address() {
    let world = World::with_config(1, VXLAN);
    let host = &world.hosts[0];
    let page = format!("127.0.0.1:{PORT}");
    let state = world.dir.path().join("state").display().to_string();
    let env = [("LODEN_STORE", host.store()), ("LODEN_WEB", &page), ("LODEN_CNI_STATE_DIR", &state)];
    let agent = host.agent_in(&[], &env);
    agent.ready();
    let named = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0";
    let hostile = "IgnoreUnknown=1;K8S_POD_NAMESPACE=a;K8S_POD_NAME=<img>";
    let Some(_one) = Attached::add(&world, host, "c1", named) else { return };
    let Some(_two) = Attached::add(&world, host, "c2", hostile) else { return };
    let look = until("two pods", || {
        let look = json(host, "/api/v1/look")?;
        if look["pods"].as_array().is_some_and(|pods| pods.len() == 2) {
            Ok(look)
        } else {
            Err(format!("{look:#}"))
        }
    });
    let mut names: Vec<Option<&str>> =
        look["pods"].as_array().unwrap().iter().map(|pod| pod["pod"].as_str()).collect();
    names.sort();
    assert_eq!(names, [None, Some("shop/web-0")]);
    if !Command::new("chromium").arg("--version").output().is_ok_and(|output| output.status.success()) {
        println!("SKIP a browser shows a pod's name: there is no chromium");
        return;
    }
    until("a page with the name", || {
        let (page, said) = browse(host, "1280,1000", "/")?;
        for complaint in ["CONSOLE", "Refused to", "Uncaught"] {
            assert!(!said.contains(complaint), "{said}");
        }
        // In the table, and beside the address in the form's list.
        let parts = [">shop/web-0</td>", "label=\"shop/web-0\""];
        if parts.iter().all(|part| page.contains(part)) { Ok(()) } else { Err(page) }
    });
}

#[test]
fn the_page_reads_and_nothing_else() {
    let world = World::with_config(2, VXLAN);
    let host = &world.hosts[0];
    let one = agent(host);
    let _other = world.hosts[1].agent(&[]);
    one.ready();
    let (_pod, address) = pod(host);
    let look = until("peer and pod", || {
        let look = json(host, "/api/v1/look")?;
        let pod = &look["pods"][0];
        let known = look["peers"][0]["state"] == "good" && pod["addresses"][0] == *address;
        if known { Ok(look) } else { Err(format!("{look:#}")) }
    });
    assert_eq!((&look["version"], &look["status"]["verdict"]), (&1.into(), &"healthy".into()));
    assert_eq!((&look["pods"][0]["device"], &look["pods"][0]["bridge"]), (&"veth7".into(), &"cni0".into()));

    let page = get(host, "/").unwrap();
    for part in [
        "HTTP/1.1 200 OK",
        "content-security-policy: default-src 'none'; script-src 'self';",
        "frame-ancestors 'none'",
        "x-content-type-options: nosniff",
        "cache-control: no-store",
        "<title>Loden</title>",
    ] {
        assert!(page.contains(part), "{part}: {page}");
    }
    let request = |line: &str, head: &str| format!("{line} HTTP/1.1\r\n{head}Connection: close\r\n\r\n");
    let ours = format!("Host: localhost:{PORT}\r\n");
    for (line, head, want) in [
        ("GET /app.js", ours.as_str(), "200"),
        ("HEAD /", &ours, "200"),
        ("GET /", "Host: rebound.example\r\n", "403"),
        ("GET /api/v1/look", "", "403"),
        ("POST /api/v1/look", &format!("{ours}Content-Length: 0\r\n"), "405"),
        ("DELETE /", &ours, "405"),
        ("GET /api/v1/look", &format!("{ours}Sec-Fetch-Site: cross-site\r\n"), "403"),
        ("GET /v1/settings", &ours, "404"),
        ("GET /../etc/passwd", &ours, "404"),
        ("GET /api/v1/trace?from=host&to=nobody", &ours, "400"),
        ("GET /api/v1/trace?from=/proc/1/ns/net&to=10.0.0.1", &ours, "400"),
        ("GET /api/v1/trace?from=10.244.0.9&to=10.0.0.1", &ours, "400"),
    ] {
        let answer = ask(host, &request(line, head)).unwrap();
        let first = answer.lines().next().unwrap_or_default();
        assert!(first.split(' ').nth(1) == Some(want), "{line} {head:?}: {answer}");
    }

    // The form's trace is what the tables say, and sends nothing.
    let far = world.hosts[1].subnet("FLANNEL_SUBNET").network().to_string();
    let found = json(host, &format!("/api/v1/trace?from=host&to={far}")).unwrap();
    assert_eq!(
        (&found["fine"], &found["probed"], &found["partial"]),
        (&true.into(), &false.into(), &Value::Null)
    );
    let said = found["verdict"].as_str().unwrap();
    assert!(
        said.starts_with("by the tables the way is flannel.1, eth0, then 192.0.2.12; no packet was sent"),
        "{said}"
    );
    assert!(said.contains("rules that translate addresses"), "{said}");
    assert!(found["svg"].as_str().unwrap().contains("fdb 192.0.2.12"), "{found:#}");
    let from_pod = json(host, &format!("/api/v1/trace?from={address}&to={far}")).unwrap();
    let devices: Vec<&str> =
        from_pod["model"].as_array().unwrap().iter().map(|step| step["device"].as_str().unwrap()).collect();
    assert!(devices.ends_with(&["cni0", "flannel.1", "eth0"]), "{from_pod:#}");
    host.sh(&format!("ip route replace blackhole {far}/32"));
    let found = json(host, &format!("/api/v1/trace?from=host&to={far}")).unwrap();
    assert_eq!(found["fine"], false, "{found:#}");
}

#[test]
fn it_is_off_and_on_loopback_unless_asked() {
    let world = World::with_config(1, VXLAN);
    let host = &world.hosts[0];
    let plain = host.agent(&[]);
    plain.ready();
    assert!(get(host, "/").is_err(), "off unless asked for");
    drop(plain);
    let wrong = host.agent_in(&[], &[("LODEN_STORE", host.store()), ("LODEN_WEB", "0.0.0.0:9466")]);
    wrong.says("write 0.0.0.0:9466,exposed if that is meant, else 127.0.0.1:9466");
    assert_eq!(wrong.ends(), 1);
    let open = host.agent_in(&[], &[("LODEN_STORE", host.store()), ("LODEN_WEB", "0.0.0.0:9466,exposed")]);
    open.ready();
    until("the page to answer", || get(host, "/").map(drop));
    let listens = host.sh("ss -Hltn sport = :9466");
    assert!(listens.contains("0.0.0.0:9466"), "{listens}");
    // A taken port is a trouble, and no more than that.
    let second = host.instance("second");
    let also = second.agent_in(
        &[],
        &[
            ("LODEN_STORE", host.store()),
            ("LODEN_WEB", "127.0.0.1:9466"),
            ("LODEN_STATE_DIR", "/nonexistent"),
        ],
    );
    also.says("listen on 127.0.0.1:9466 for the web page: Address already in use");
}

/// What a browser makes of the page: its document after the scripts ran, and what it complained about.
fn browse(host: &Host, size: &str, path: &str) -> Result<(String, String), String> {
    let profile = host.dir.join("browser");
    let picture = host.dir.join(format!("{size}.png"));
    let run = |what: &str| {
        let mut command = Command::new("chromium");
        command
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--enable-logging=stderr",
            ])
            .arg(format!("--user-data-dir={}", profile.display()))
            .args(["--virtual-time-budget=6000", &format!("--window-size={size}"), what])
            .arg(format!("http://127.0.0.1:{PORT}{path}"));
        let output = host.netns.run(|| command.output()).unwrap().map_err(|error| error.to_string())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() {
            Ok((text(&output.stdout), text(&output.stderr)))
        } else {
            Err(text(&output.stderr))
        }
    };
    run(&format!("--screenshot={}", picture.display()))?;
    // A white page is a few hundred bytes.
    let bytes = fs::metadata(&picture).map_err(|error| error.to_string())?.len();
    if bytes < 20_000 {
        return Err(format!("a picture of {bytes} bytes"));
    }
    // For those who want to look: the pictures of this run.
    if let Ok(dir) = std::env::var("LODEN_TEST_PICTURES") {
        let _ = fs::create_dir_all(&dir);
        let peers = json(host, "/api/v1/look")?["peers"].as_array().map_or(0, Vec::len);
        let _ = fs::copy(&picture, format!("{dir}/{peers}-{size}.png"));
    }
    run("--dump-dom")
}

#[test]
fn a_browser_shows_three_thirty_and_three_hundred_peers() {
    if !Command::new("chromium").arg("--version").output().is_ok_and(|output| output.status.success()) {
        println!("SKIP a browser shows the page: there is no chromium");
        return;
    }
    let world = World::with_config(4, WIDE);
    let host = &world.hosts[0];
    let one = agent(host);
    let others: Vec<Agent> = world.hosts[1..].iter().map(|host| host.agent(&[])).collect();
    one.ready();
    others.iter().for_each(Agent::ready);
    let far = world.hosts[1].subnet("FLANNEL_SUBNET").network().to_string();
    let (_pod, _) = pod(host);
    let mut there = 3;
    for peers in [3, 30, 300] {
        ghosts(&world, there - 3..peers - 3);
        there = peers;
        until("all peers to be told of", || {
            let look = json(host, "/api/v1/look")?;
            let all = look["peers"].as_array().unwrap();
            let good = all.iter().filter(|peer| peer["state"] == "good").count();
            let programmed = &look["status"]["peers"]["programmed"];
            if all.len() == peers && *programmed == peers && good > 0 {
                Ok(())
            } else {
                Err(format!("{} of {peers}, {good} good", all.len()))
            }
        });
        for size in ["1280,1600", "390,844"] {
            until("a whole page", || {
                let (page, said) = browse(host, size, &format!("/?from=host&to={far}"))?;
                for complaint in ["CONSOLE", "Refused to", "Uncaught"] {
                    assert!(!said.contains(complaint), "{said}");
                }
                let count = |part: &str| page.matches(part).count();
                let seen =
                    (count("class=\"dot "), count("class=\"way "), page.contains("data-ready=\"yes\""));
                let trace = page.contains("data:image/svg+xml") && page.contains("by the tables the way is");
                let whole = seen == (peers, peers, true) && trace && page.contains("veth7");
                if whole { Ok(()) } else { Err(format!("{seen:?} {trace} {}", &page[page.len().min(400)..])) }
            });
        }
    }
}

/// Leases of nodes that are not there.
fn ghosts(world: &World, numbers: std::ops::Range<usize>) {
    let connection = rusqlite::Connection::open(world.dir.path().join("leases.db")).unwrap();
    for number in numbers {
        let (high, low) = (number / 250, number % 250 + 1);
        let lease = format!(
            r#"{{"PublicIP":"198.51.{high}.{low}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:{high:02x}:{low:02x}"}}}}"#
        );
        let key = format!("10.{}.{low}.0-24", 246 + high);
        connection.execute("INSERT INTO lease (key, value) VALUES (?1, ?2)", [&key, &lease]).unwrap();
    }
}
