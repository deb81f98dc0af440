//! `dhcp`: the plugin and its daemon against dnsmasq, each on a host of its own.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::{Host, Pod, ip_in, pod, run_in, with};
use kernel::Netns;
use model::gojson::Json;

const DNSMASQ: &str = "/usr/sbin/dnsmasq";

/// A program that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A host with a bridge, a DHCP server on it and our daemon.
struct Site {
    host: Host,
    server: Option<Running>,
    daemon: Option<Running>,
}

pub fn until(what: &str, done: impl FnMut() -> bool) {
    until_or(what, done, String::new);
}

fn until_or(what: &str, mut done: impl FnMut() -> bool, otherwise: impl Fn() -> String) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not come about\n{}", otherwise());
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Site {
    fn new(test: &str, range: &str, server: &[&str], daemon: &[&str]) -> Option<Site> {
        if !Path::new(DNSMASQ).exists() {
            println!("SKIP {test}: dnsmasq is not installed");
            return None;
        }
        let host = Host::new();
        // An address of its own: else it follows the ports, and pods send to the old one for a while (B-19).
        host.ip("link add br0 address 0a:00:00:00:00:01 type bridge");
        host.ip("addr add 10.9.1.1/24 dev br0");
        host.ip("link set br0 up");
        let mut site = Site { host, server: None, daemon: None };
        site.serve(range, server);
        site.start(daemon);
        Some(site)
    }

    fn serve(&mut self, range: &str, more: &[&str]) {
        self.server = None;
        let (leases, log) = (self.host.path("leases"), self.host.path("log"));
        let mut command = self.host.command(DNSMASQ);
        command.args([
            "--no-daemon",
            "--conf-file=/dev/null",
            "--port=0",
            "--interface=br0",
            "--bind-interfaces",
        ]);
        command.args(["--user=root", "--no-ping", "--dhcp-authoritative", "--log-dhcp", "--pid-file="]);
        command.arg(format!("--dhcp-range={range},255.255.255.0,120"));
        command.args([format!("--dhcp-leasefile={leases}"), format!("--log-facility={log}")]).args(more);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.server = Some(Running(self.host.netns.run(|| command.spawn()).unwrap().unwrap()));
        until("the server", || self.log().contains("DHCP, IP range"));
    }

    fn start(&mut self, flags: &[&str]) {
        let mut command = self.host.command(self.host.bin().join("dhcp"));
        command.args(["daemon", "-socketpath", &self.socket()]).args(flags);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.host.path("daemon"));
        command.stderr(log.unwrap());
        self.daemon = Some(Running(self.host.netns.run(|| command.spawn()).unwrap().unwrap()));
        until("the daemon", || std::os::unix::net::UnixStream::connect(self.socket()).is_ok());
    }

    fn socket(&self) -> String {
        self.host.path("dhcp.sock")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.host.path("log")).unwrap_or_default()
    }

    /// What daemon and server say, and what the daemon keeps.
    fn story(&self) -> String {
        let read = |file: &str| std::fs::read_to_string(self.host.path(file)).unwrap_or_default();
        let kept: Vec<String> =
            self.host.files("state/dhcp").iter().map(|f| read(&format!("state/dhcp/{f}"))).collect();
        let now = std::fs::read_to_string("/proc/uptime").unwrap();
        format!("{}\n{}\n{kept:?} at {now}", read("daemon"), read("log"))
    }

    fn leases(&self) -> String {
        std::fs::read_to_string(self.host.path("leases")).unwrap_or_default()
    }

    fn conf(&self, members: &str) -> String {
        let socket = self.socket();
        format!(
            r#"{{"cniVersion": "1.1.0", "name": "net", "type": "macvlan",
                "ipam": {{"type": "dhcp", "daemonSocketPath": "{socket}"{members}}}}}"#
        )
    }

    /// A pod with its interface on the bridge.
    fn pod(&self, id: &str) -> (Netns, Pod) {
        let (netns, pod) = pod(id);
        let port = format!("port{id}");
        self.host.ip(&format!("link add {port} type veth peer name eth0 netns {}", netns.path().display()));
        self.host.ip(&format!("link set {port} master br0"));
        self.host.ip(&format!("link set {port} up"));
        (netns, pod)
    }

    fn call(&self, verb: &str, pod: &Pod, conf: &str) -> crate::harness::Answer {
        self.host.call("dhcp", verb, pod, conf)
    }

    fn add(&self, pod: &Pod, conf: &str) -> (String, Json) {
        let result = self.call("ADD", pod, conf).expect("ADD");
        let ips = result.get("ips").and_then(Json::as_array).unwrap();
        (ips[0].get("address").and_then(Json::as_str).unwrap().to_owned(), result)
    }
}

fn is_up(netns: &Netns) -> bool {
    ip_in(netns, "link show eth0").contains(",UP")
}

#[test]
fn leases_live_and_die() {
    let Some(mut site) =
        Site::new("leases_live_and_die", "10.9.1.50,10.9.1.59", &["--dhcp-option=58,3"], &[])
    else {
        return;
    };
    let conf = site.conf("");
    let (netns, first) = site.pod("a");
    let (_second, other) = site.pod("b");
    let (third, gone) = site.pod("c");
    assert!(site.call("STATUS", &first, &conf).ok);
    // Several networks at once, each with its own thread.
    let addresses: Vec<(String, Json)> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            [&first, &other, &gone].map(|pod| scope.spawn(|| site.add(pod, &conf))).into_iter().collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let mut distinct: Vec<&String> = addresses.iter().map(|(a, _)| a).collect();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), 3, "{addresses:?}");
    let (address, result) = &addresses[0];
    assert!(address.starts_with("10.9.1.5") && address.ends_with("/24"), "{address}");
    let plain = address.trim_end_matches("/24").to_owned();
    let want = format!(
        r#"{{"cniVersion":"1.1.0","ips":[{{"address":"{address}","gateway":"10.9.1.1"}}],"routes":[{{"dst":"0.0.0.0/0","gw":"10.9.1.1"}}]}}"#
    );
    assert_eq!(result.to_compact_sorted(), want);
    // A refusal, as when two were offered one address at once, is always told to all.
    let count = |words: &str| site.log().matches(words).count();
    assert_eq!(count("broadcast response"), count("DHCPNAK"), "{}", site.log());
    // A second ADD of the attachment is the same lease.
    assert_eq!(&site.add(&first, &conf).0, address);
    assert!(is_up(&netns));
    site.call("CHECK", &first, &conf).expect("CHECK");
    // With the address set the renewal comes from it, by unicast.
    ip_in(&netns, &format!("addr add {address} dev eth0"));
    let asked = |site: &Site| site.log().matches(&format!("DHCPACK(br0) {plain} ")).count();
    let before = asked(&site);
    until("a renewal", || asked(&site) > before);
    // A daemon that ends takes its socket with it and keeps the leases (B-47).
    let daemon = site.daemon.take().unwrap();
    let id = daemon.0.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    until("the end of the daemon", || !Path::new(&site.socket()).exists());
    drop(daemon);
    let (_, text) = site.call("ADD", &first, &conf).error();
    assert!(
        text.starts_with("error dialing DHCP daemon: ") && text.contains("loden-cni dhcp daemon"),
        "{text}"
    );
    assert_eq!(site.call("STATUS", &first, &conf).error().0, 50);
    let answer = site.call("DEL", &gone, &conf);
    assert!(answer.ok && answer.stderr.contains("the lease ends by itself"), "{}", answer.stderr);
    drop(third);
    site.start(&[]);
    site.call("CHECK", &first, &conf).expect("CHECK after a restart");
    let before = asked(&site);
    until_or("a renewal by the new daemon", || asked(&site) > before, || site.story());
    // The pod that went without a word is nobody's any more.
    until("the end of the lease of a pod that is gone", || site.host.files("state/dhcp").len() == 2);
    // GC ends what is not valid, DEL what is asked for, any number of times.
    let keep = Json::array([Json::object([("containerID", "a".into()), ("ifname", "eth0".into())])]);
    assert!(site.call("GC", &first, &with(&conf, "cni.dev/valid-attachments", keep)).ok);
    until_or("the release", || site.log().contains("DHCPRELEASE"), || site.story());
    assert_eq!(site.host.files("state/dhcp").len(), 1);
    assert!(site.call("CHECK", &other, &conf).error().1.starts_with("dhcp: no lease for eth0 of b"));
    for _ in 0..3 {
        assert!(site.call("DEL", &first, &conf).ok);
    }
    until("the release", || !site.leases().contains(&plain));
    assert_eq!(site.host.files("state/dhcp"), [""; 0]);
    assert!(!site.call("CHECK", &first, &conf).ok);
}

#[test]
fn a_refused_renewal_takes_the_interface_down() {
    let range = "10.9.1.50,10.9.1.50";
    let options = ["--dhcp-option=58,3"];
    let Some(mut site) =
        Site::new("a_refused_renewal_takes_the_interface_down", range, &options, &["-broadcast"])
    else {
        return;
    };
    let conf = site.conf("");
    let (netns, pod) = site.pod("a");
    assert_eq!(site.add(&pod, &conf).0, "10.9.1.50/24");
    // The flag of the message, as the server saw it.
    assert!(site.log().contains("broadcast response"), "{}", site.log());
    ip_in(&netns, "addr add 10.9.1.50/24 dev eth0");
    site.server = None;
    std::fs::remove_file(site.host.path("leases")).unwrap();
    std::fs::remove_file(site.host.path("log")).unwrap();
    // Another range, and the server is the authority: what is not its own is refused.
    site.serve("10.9.1.70,10.9.1.79", &options);
    until("the refusal", || !is_up(&netns));
    assert!(site.log().contains("DHCPNAK"), "{}", site.log());
    assert!(site.call("CHECK", &pod, &conf).error().1.starts_with("dhcp: no lease"));
    assert_eq!(site.host.files("state/dhcp"), [""; 0]);
    // A new ADD gets a new address.
    ip_in(&netns, "addr flush dev eth0");
    assert!(site.add(&pod, &conf).0.starts_with("10.9.1.7"));
}

#[test]
fn options_go_out_and_routes_come_in() {
    let options = [
        "--dhcp-option=121,192.168.7.0/24,10.9.1.9,10.8.0.0/16,0.0.0.0",
        "--dhcp-option=33,192.0.2.5,10.9.1.8",
    ];
    let Some(site) = Site::new(
        "options_go_out_and_routes_come_in",
        "10.9.1.50,10.9.1.59",
        &options,
        &["-hostprefix", "/proc/self/root"],
    ) else {
        return;
    };
    let routes = |members: &str, id: &str| {
        let (_netns, pod) = site.pod(id);
        let (_, result) = site.add(&pod, &site.conf(members));
        let text = result.get("routes").map(Json::to_compact_sorted).unwrap_or_default();
        assert!(site.call("DEL", &pod, &site.conf(members)).ok);
        text
    };
    assert_eq!(
        routes(r#", "request": [{"option": "121"}]"#, "a"),
        r#"[{"dst":"192.168.7.0/24","gw":"10.9.1.9"},{"dst":"10.8.0.0/16","scope":253}]"#
    );
    assert_eq!(
        routes(r#", "priority": 5, "request": [{"option": "33"}]"#, "b"),
        r#"[{"dst":"192.0.2.0/24","gw":"10.9.1.8","priority":5},{"dst":"0.0.0.0/0","gw":"10.9.1.1","priority":5}]"#
    );
    assert_eq!(routes(r#", "request": [{"skipDefault": true}, {"option": "subnet-mask"}]"#, "c"), "");
    let (_netns, pod) = site.pod("d");
    let members = r#", "provide": [{"option": "host-name", "fromArg": "K8S_POD_NAME"}, {"option": "vendor-class-identifier", "value": "loden-test"}]"#;
    let mut command = site.host.prepare(&[&site.host.bin().display().to_string()], "dhcp", "ADD", &pod);
    command.env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=web-0");
    assert!(site.host.run(&mut command, &site.conf(members)).status.success());
    let log = site.log();
    assert!(log.contains("vendor class: loden-test") && log.contains("client provides name: web-0"), "{log}");
}

#[test]
fn no_address_is_told_in_time() {
    let Some(site) = Site::new(
        "no_address_is_told_in_time",
        "10.9.1.50,10.9.1.50",
        &[],
        &["-resendtimeout", "8s", "-resendmax", "1s"],
    ) else {
        return;
    };
    let conf = site.conf("");
    let (_one, first) = site.pod("a");
    let (_two, second) = site.pod("b");
    assert_eq!(site.add(&first, &conf).0, "10.9.1.50/24");
    let (_, text) = site.call("ADD", &second, &conf).error();
    assert!(text.starts_with("error acquiring lease for eth0: no DHCP server answered"), "{text}");
    assert!(site.call("DEL", &first, &conf).ok);
    assert_eq!(site.add(&second, &conf).0, "10.9.1.50/24", "what was given back is given again");
    for (path, ifname, want) in [
        ("/run/netns/no-such", "eth0", "error acquiring lease for eth0 in net: failed to Statfs"),
        (&*second.path, "eth7", "failed to lookup \"eth7\": Link not found"),
    ] {
        let pod = Pod { id: "x".to_owned(), ifname: ifname.to_owned(), path: path.to_owned() };
        let (code, text) = site.call("ADD", &pod, &conf).error();
        assert!(code == 8 && text.contains(want), "{text}");
    }
    for (members, want) in [
        (
            r#", "provide": [{"option": "x", "value": "y"}]"#,
            "failed to load netconf: option \"x\" is neither",
        ),
        (r#", "request": "x""#, "failed to load netconf: json: cannot unmarshal string"),
        (r#", "priority": "x""#, "failed to load netconf: json: cannot unmarshal string"),
    ] {
        let (code, text) = site.call("ADD", &first, &site.conf(members)).error();
        assert!(code == 7 && text.starts_with(want), "{text}");
    }
}

/// Nobody listens for an answer, so none comes: the flag is how long that is.
#[test]
fn answers_are_listened_for_as_long_as_the_flag_says() {
    let flags = ["-timeout", "0s", "-resendtimeout", "3s", "-resendmax", "1s"];
    let test = "answers_are_listened_for_as_long_as_the_flag_says";
    let Some(site) = Site::new(test, "10.9.1.50,10.9.1.59", &[], &flags) else { return };
    let (_netns, pod) = site.pod("a");
    let (_, text) = site.call("ADD", &pod, &site.conf("")).error();
    assert!(text.starts_with("error acquiring lease for eth0: no DHCP server answered"), "{text}");
    assert!(site.log().contains("DHCPOFFER"), "{}", site.log());
}

/// A service manager listens, and hands its socket down with the first call.
#[test]
fn a_socket_of_the_service_manager_is_taken_over() {
    const ACTIVATE: &str = "/usr/bin/systemd-socket-activate";
    let test = "a_socket_of_the_service_manager_is_taken_over";
    if !Path::new(ACTIVATE).exists() {
        println!("SKIP {test}: systemd is not installed");
        return;
    }
    let Some(mut site) = Site::new(test, "10.9.1.50,10.9.1.59", &[], &[]) else { return };
    site.daemon = None;
    std::fs::remove_file(site.socket()).unwrap();
    let mut command = site.host.command(ACTIVATE);
    command.args(["-l", &site.socket(), "-E", "LODEN_CNI_STATE_DIR"]);
    command.arg(site.host.bin().join("dhcp")).args(["daemon", "-socketpath", "/proc/none/x"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // It becomes the daemon.
    let daemon = Running(site.host.netns.run(|| command.spawn()).unwrap().unwrap());
    let id = daemon.0.id();
    site.daemon = Some(daemon);
    until("the socket", || Path::new(&site.socket()).exists());
    let (_netns, pod) = site.pod("a");
    let conf = site.conf("");
    assert_eq!(site.add(&pod, &conf).0.split('.').next(), Some("10"));
    let program = std::fs::read_link(format!("/proc/{id}/exe")).unwrap();
    assert!(program.starts_with(site.host.bin()), "{program:?}");
    site.call("CHECK", &pod, &conf).expect("CHECK");
    // The socket is the manager's: it stays.
    assert!(Command::new("kill").args(["-TERM", &id.to_string()]).status().unwrap().success());
    until("the end of the daemon", || {
        let ended = site.daemon.as_mut().map(|daemon| daemon.0.try_wait());
        matches!(ended, Some(Ok(Some(_))))
    });
    assert!(Path::new(&site.socket()).exists());
}

#[test]
fn the_daemon_refuses_what_it_does_not_understand() {
    let host = Host::new();
    for (flags, code, want) in [
        (&["daemon", "-x", "1"][..], 2, "there is no flag -x"),
        (&["daemon", "-pidfile", "p"], 2, "is not absolute"),
        (&["daemon", "-socketpath", "/proc/none/x"], 1, "listen at /proc/none/x: "),
    ] {
        let mut command = host.command(host.bin().join("dhcp"));
        let output = run_in(&host.netns, command.args(flags), "");
        assert_eq!(output.status.code(), Some(code));
        assert!(String::from_utf8_lossy(&output.stderr).contains(want), "{output:?}");
    }
}
