//! An underlay of two nodes, a router and a host on the internet, with pods and services: where
//! `veth-to-host` has to work.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use kernel::Netns;
use model::gojson::Json;

use crate::harness::{Host, Pod, ip_in, pod, run_in, with};

/// Where all servers listen.
pub const PORT: u16 = 8080;

/// The namespaces and what lives in them.
pub struct Underlay {
    /// The node under test: 10.10.20.152, 2001:db8:20::152.
    pub node: Host,
    /// Another one: .153.
    pub remote: Host,
    /// A host behind the router: 203.0.113.9, 2001:db8:113::9.
    pub internet: Netns,
    /// A pod of an overlay on the node: 10.244.1.5, fd44::5.
    pub overlay: Netns,
    /// The plugin that puts pods into the underlay.
    pub kind: &'static str,
    /// Listening sockets; shutting one down ends its server.
    servers: Mutex<Vec<TcpStream>>,
    _switch: Netns,
    _router: Netns,
}

impl Underlay {
    /// Wires all up. With `strict`, reverse paths are filtered strictly everywhere and ARP is answered for
    /// the interface's own addresses only.
    pub fn new(strict: bool) -> Underlay {
        let [switch, router, internet, overlay] = [(); 4].map(|()| Netns::create().unwrap());
        let (node, remote) = (Host::new(), Host::new());
        for netns in [&switch, &router, &internet, &overlay, &node.netns, &remote.netns] {
            ip_in(netns, "link set lo up");
            if strict {
                for key in ["net/ipv4/conf/all/rp_filter", "net/ipv4/conf/default/rp_filter"] {
                    kernel::sysctl::write_in(netns, key, "1").unwrap();
                }
            }
        }
        if strict {
            kernel::sysctl::write_in(&node.netns, "net/ipv4/conf/all/arp_ignore", "1").unwrap();
        }
        ip_in(&switch, "link add br0 type bridge");
        ip_in(&switch, "link set br0 up");
        for (n, netns) in [&node.netns, &remote.netns, &router].into_iter().enumerate() {
            let path = netns.path();
            ip_in(&switch, &format!("link add p{n} type veth peer name eth0 netns {}", path.display()));
            ip_in(&switch, &format!("link set p{n} master br0 up"));
        }
        let path = internet.path();
        ip_in(&router, &format!("link add i0 type veth peer name eth0 netns {}", path.display()));
        let path = overlay.path();
        ip_in(&node.netns, &format!("link add ov0 type veth peer name eth0 netns {}", path.display()));
        let gateways = (Some("10.10.20.254"), Some("2001:db8:20::fe"));
        for (netns, dev, v4, v6, (gw4, gw6)) in [
            (&node.netns, "eth0", "10.10.20.152/24", "2001:db8:20::152/64", gateways),
            (&node.netns, "ov0", "10.244.1.1/24", "fd44::1/64", (None, None)),
            (&remote.netns, "eth0", "10.10.20.153/24", "2001:db8:20::153/64", gateways),
            (&router, "eth0", "10.10.20.254/24", "2001:db8:20::fe/64", (None, None)),
            (&router, "i0", "203.0.113.1/24", "2001:db8:113::1/64", (None, None)),
            (
                &internet,
                "eth0",
                "203.0.113.9/24",
                "2001:db8:113::9/64",
                (Some("203.0.113.1"), Some("2001:db8:113::1")),
            ),
            (&overlay, "eth0", "10.244.1.5/24", "fd44::5/64", (Some("10.244.1.1"), Some("fd44::1"))),
        ] {
            ip_in(netns, &format!("addr add {v4} dev {dev}"));
            ip_in(netns, &format!("addr add {v6} dev {dev} nodad"));
            ip_in(netns, &format!("link set {dev} up"));
            for gateway in gw4.into_iter().chain(gw6) {
                ip_in(netns, &format!("route add default via {gateway}"));
            }
        }
        for netns in [&router, &node.netns] {
            for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
                kernel::sysctl::write_in(netns, key, "1").unwrap();
            }
        }
        let (kind, servers) = ("macvlan", Mutex::default());
        let lab =
            Underlay { kind, node, remote, internet, overlay, servers, _switch: switch, _router: router };
        for netns in [&lab.node.netns, &lab.remote.netns, &lab.internet, &lab.overlay] {
            lab.serve(netns);
        }
        lab
    }

    /// Tells everyone who connects what address they have.
    pub fn serve(&self, netns: &Netns) {
        let listener = netns.run(|| TcpListener::bind(("::", PORT)).unwrap()).unwrap();
        let handle = TcpStream::from(OwnedFd::from(listener.try_clone().unwrap()));
        self.servers.lock().unwrap().push(handle);
        std::thread::spawn(move || {
            // Ends when the lab does.
            while let Ok((mut stream, peer)) = listener.accept() {
                let _ = write!(stream, "{}", peer.ip().to_canonical());
            }
        });
    }

    /// A pod on one of the nodes: into the underlay, then veth-to-host with the given members. Serves.
    pub fn pod(&self, host: &Host, id: &str, members: &str) -> Attached {
        let (netns, pod) = pod(id);
        ip_in(&netns, "link set lo up");
        for key in ["all", "default"] {
            let strict = kernel::sysctl::read_in(&host.netns, "net/ipv4/conf/all/rp_filter").unwrap();
            let key = format!("net/ipv4/conf/{key}/rp_filter");
            kernel::sysctl::write_in(&netns, &key, &strict).unwrap();
        }
        let chain = conflist(host, if std::ptr::eq(host, &self.node) { 50 } else { 70 }, "1.0.0", members);
        let first = host.call(self.kind, "ADD", &pod, &chain[0]).expect("ADD into the underlay");
        let told = with(&chain[1], "prevResult", first);
        let result = host.call("veth-to-host", "ADD", &pod, &told).expect("ADD of veth-to-host");
        self.serve(&netns);
        let address = |n: usize| -> IpAddr {
            let ips = result.get("ips").and_then(Json::as_array).unwrap();
            let text = ips[n].get("address").and_then(Json::as_str).unwrap();
            text.split('/').next().unwrap().parse().unwrap()
        };
        Attached { addresses: [address(0), address(1)], netns, pod, chain, result }
    }

    /// Services of the node: 10.96.0.N and fd01::N, in order of the list.
    pub fn services(&self, endpoints: &[[IpAddr; 2]]) {
        let mut text = String::new();
        for (family, n) in [("ip", 0), ("ip6", 1)] {
            let mut rules = String::new();
            for (at, endpoint) in endpoints.iter().enumerate() {
                let (service, to) = (service(at)[n].ip(), SocketAddr::new(endpoint[n], PORT));
                rules.push_str(&format!("{family} daddr {service} tcp dport {PORT} dnat to {to}\n"));
            }
            for (chain, hook) in [("pre", "prerouting"), ("out", "output")] {
                text.push_str(&format!(
                    "add table {family} svc\nadd chain {family} svc {chain} {{ type nat hook {hook} priority -100; }}\n"
                ));
                for rule in rules.lines() {
                    text.push_str(&format!("add rule {family} svc {chain} {rule}\n"));
                }
            }
        }
        let output = run_in(&self.node.netns, std::process::Command::new("nft").args(["-f", "-"]), &text);
        assert!(output.status.success(), "{} {text}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Underlay {
    fn drop(&mut self) {
        for listener in self.servers.get_mut().unwrap() {
            let _ = listener.shutdown(Shutdown::Both);
        }
    }
}

/// Addresses of the service at a place in the list.
pub fn service(at: usize) -> [SocketAddr; 2] {
    let n = at + 1;
    [format!("10.96.0.{n}:{PORT}").parse().unwrap(), format!("[fd01::{n:x}]:{PORT}").parse().unwrap()]
}

/// A pod and what it was made with.
pub struct Attached {
    /// Namespace.
    pub netns: Netns,
    /// As the runtime names it.
    pub pod: Pod,
    /// Addresses in the underlay.
    pub addresses: [IpAddr; 2],
    /// Documents of macvlan and veth-to-host.
    pub chain: [String; 2],
    /// Result of the chain.
    pub result: Json,
}

/// Documents of the chain; addresses from `first` on.
pub fn conflist(host: &Host, first: u8, version: &str, members: &str) -> [String; 2] {
    let dir = host.path("networks");
    let last = first + 9;
    let head = format!(r#""cniVersion": "{version}", "name": "cni0""#);
    [
        format!(
            r#"{{{head}, "type": "macvlan", "master": "eth0", "ipam": {{"type": "host-local", "dataDir": "{dir}",
            "ranges": [[{{"subnet": "10.10.20.0/24", "rangeStart": "10.10.20.{first}", "rangeEnd": "10.10.20.{last}", "gateway": "10.10.20.254"}}],
                       [{{"subnet": "2001:db8:20::/64", "rangeStart": "2001:db8:20::{first}", "rangeEnd": "2001:db8:20::{last}", "gateway": "2001:db8:20::fe"}}]],
            "routes": [{{"dst": "0.0.0.0/0"}}, {{"dst": "::/0"}}]}}}}"#
        ),
        format!(
            r#"{{{head}, "type": "veth-to-host", "hostInterface": "eth0", "containerInterface": "veth0"{members}}}"#
        ),
    ]
}

/// What address a server sees, or `None` if nobody answers in time. Where an answer is waited for long, an
/// early refusal is no answer yet: neighbours may not be known.
pub fn ask(netns: &Netns, to: SocketAddr, patience: Duration) -> Option<String> {
    let begun = Instant::now();
    loop {
        let once = patience.min(Duration::from_secs(4));
        let talk = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect_timeout(&to, once)?;
            stream.set_read_timeout(Some(once))?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        };
        match netns.run(talk).unwrap() {
            Ok(text) => return Some(text),
            Err(e) if begun.elapsed() >= patience => {
                println!("{to}: {e}");
                return None;
            }
            Err(e) => {
                println!("{to}: {e} after {:?}", begun.elapsed());
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}
