//! Pods through CNI, and the way of packets between hosts.

use lab::packet::Content;
use lab::{Lab, Stack};

use crate::{able, bare, cli, debian_plugins, text};

const CONFLIST: &str = r#"{"name": "cbr0", "cniVersion": "0.3.1", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": "/var/lib/cni/networks", "ranges": [[{"subnet": "10.9.0.0/16",
   "rangeStart": "10.9.1.2"}]]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}"#;

/// Two hosts with one pod each, connected by hand through a vxlan device or by plain routes. Each host
/// allocates from the same range, so the second one's first address is used up.
fn joined(vxlan: bool, plugins: &std::path::Path) -> Lab {
    let lab = bare().hosts(2).conflist(CONFLIST).cni_bin_dir(plugins).start().unwrap();
    lab.pod_add(2, Some("spare")).unwrap();
    let first = lab.pod_add(1, None).unwrap();
    let second = lab.pod_add(2, None).unwrap();
    lab.pod_del("spare").unwrap();
    assert_eq!((first.name.as_str(), second.name.as_str()), ("pod1-1", "pod2-1"));
    for (here, there, peer, underlay) in
        [(1, &second, "10.0.0.2", "192.0.2.12"), (2, &first, "10.0.0.1", "192.0.2.11")]
    {
        let address = there.addresses[0].to_string();
        let run = |args: &str| {
            let args: Vec<&str> = args.split(' ').collect();
            lab.host(here).stdout("ip", &args).unwrap();
        };
        // Without a proxy the pod would ask its own bridge for the other's address.
        lab.host(here).stdout("sh", &["-c", "echo 1 > /proc/sys/net/ipv4/conf/cni0/proxy_arp"]).unwrap();
        if vxlan {
            let dev =
                "link add flannel.1 mtu 1450 address 02:00:00:00:00:0N type vxlan id 1 dstport 8472 dev eth0";
            run(&dev.replace('N', &here.to_string()));
            run("link set flannel.1 up");
            let mac = format!("02:00:00:00:00:0{}", 3 - here);
            run(&format!("neigh add {peer} lladdr {mac} dev flannel.1"));
            lab.host(here)
                .stdout("bridge", &["fdb", "add", &mac, "dev", "flannel.1", "dst", underlay])
                .unwrap();
            run(&format!("route add {address}/32 via {peer} dev flannel.1 onlink"));
        } else {
            run(&format!("route add {address}/32 via {underlay}"));
        }
    }
    lab
}

fn path(hops: &[lab::proto::Hop]) -> Vec<String> {
    let device = |name: &str| if name.starts_with("veth") { "veth" } else { name }.to_owned();
    hops.iter().map(|h| format!("{} {}", h.place, device(&h.device))).collect()
}

#[test]
fn a_packet_is_followed_through_the_tunnel() {
    let test = "a_packet_is_followed_through_the_tunnel";
    let Some(plugins) = debian_plugins(test).filter(|_| able(test)) else { return };
    let lab = joined(true, plugins);
    let walk = lab.walk("pod1-1", "pod2-1", false).unwrap();
    let there = [
        "pod1-1 eth0",
        "host1 veth",
        "host1 cni0",
        "host1 flannel.1",
        "host1 eth0",
        "wire host1",
        "wire host2",
        "host2 eth0",
        "host2 flannel.1",
        "host2 cni0",
        "host2 veth",
        "pod2-1 eth0",
    ];
    assert_eq!(path(&walk.there), there);
    let back: Vec<String> = path(&walk.back);
    assert_eq!(
        (back.first().unwrap().as_str(), back.last().unwrap().as_str()),
        ("pod2-1 eth0", "pod1-1 eth0")
    );
    let wrapped = &walk.there[4].frame;
    let Content::Vxlan { port, vni, inner, .. } = &wrapped.content else { panic!("{wrapped:?}") };
    assert_eq!((*port, *vni, inner.mac_destination.as_str()), (8472, 1, "02:00:00:00:00:02"));
    assert_eq!((wrapped.source.to_string(), wrapped.bytes - inner.bytes), ("192.0.2.11".to_owned(), 50));
    let times: Vec<f64> = walk.there.iter().map(|h| h.at_us).collect();
    assert!(times.is_sorted() && times[0] == 0.0, "{times:?}");
    // As text, as a person sees it.
    let out = text(&cli(&["walk", "--name", lab.client().name(), "pod1-1", "pod2-1"]).stdout);
    for words in [
        "wrapped: 98 → 148 bytes",
        "VNI 1",
        "unwrapped",
        "the answer: pod2-1 → host2 → wire → host1 → pod1-1",
    ] {
        assert!(out.contains(words), "{words}\n{out}");
    }
}

#[test]
fn a_packet_is_followed_along_plain_routes() {
    let test = "a_packet_is_followed_along_plain_routes";
    let Some(plugins) = debian_plugins(test).filter(|_| able(test)) else { return };
    let lab = joined(false, plugins);
    let walk = lab.walk("pod1-1", "pod2-1", false).unwrap();
    let there = [
        "pod1-1 eth0",
        "host1 veth",
        "host1 cni0",
        "host1 eth0",
        "wire host1",
        "wire host2",
        "host2 eth0",
        "host2 cni0",
        "host2 veth",
        "pod2-1 eth0",
    ];
    assert_eq!(path(&walk.there), there);
    let fetch = lab.fetch("pod1-1", "pod2-1", false).unwrap();
    assert!(fetch.unmasked(), "{fetch:?}");
    let source = fetch.source.unwrap();
    assert_eq!(
        fetch.server_log,
        format!("{source} \"GET /hello-from-pod1-1 HTTP/1.0\" 200 {}", fetch.body.len())
    );
    // A translation is seen.
    lab.host(1)
        .stdout(
            "nft",
            &["add table t; add chain t c { type nat hook postrouting priority 100; }; \
                                 add rule t c oifname eth0 masquerade"],
        )
        .unwrap();
    let fetch = lab.fetch("pod1-1", "pod2-1", false).unwrap();
    assert_eq!((fetch.unmasked(), fetch.body.as_str()), (false, "pod pod2-1 on host2, you are 192.0.2.11\n"));
    // A firewall is named.
    lab.host(2)
        .stdout(
            "nft",
            &["add table f; add chain f c { type filter hook forward priority 0; }; \
                                 add rule f c ip protocol icmp reject with icmp admin-prohibited"],
        )
        .unwrap();
    let reach = lab.ping_within("pod1-1", "pod2-1", 500).unwrap();
    let why = "forbidden by a firewall (admin prohibited), says 192.0.2.12";
    assert_eq!(reach.why.as_deref(), Some(why));
}

#[test]
fn pods_come_and_go() {
    let test = "pods_come_and_go";
    let Some(plugins) = debian_plugins(test).filter(|_| able(test)) else { return };
    let lab = bare().hosts(1).pods(2).conflist(CONFLIST).cni_bin_dir(plugins).start().unwrap();
    let taken = || text(&lab.host(1).exec("sh", &["-c", "ls /var/lib/cni/networks/cbr0"]).unwrap().stdout);
    assert_eq!(taken(), "10.9.1.2\n10.9.1.3\nlast_reserved_ip.0\nlock\n");
    let named = lab.pod_add(1, Some("web")).unwrap();
    assert_eq!(named.plugins.iter().map(|s| s.what.as_str()).collect::<Vec<_>>(), ["bridge", "portmap"]);
    for (name, want) in [
        ("web", "the name \"web\" is taken; choose another"),
        ("host1", "the name \"host1\" is taken; choose another"),
        ("A", "\"A\" cannot name a pod: use 1 to 40 lower-case letters, digits and dashes"),
    ] {
        assert_eq!(lab.pod_add(1, Some(name)).unwrap_err().to_string(), want);
    }
    assert!(lab.matrix().unwrap().iter().all(|r| r.ok()));
    let out = lab.place("web").stdout("sh", &["-c", "hostname; ls /sys/class/net; grep pod1-1 /etc/hosts"]);
    assert_eq!(out.unwrap(), "web\neth0\nlo\n10.9.1.2 pod1-1\n");
    lab.pod_del("web").unwrap();
    lab.pod_del("pod1-1").unwrap();
    assert_eq!(taken(), "10.9.1.3\nlast_reserved_ip.0\nlock\n");
    assert_eq!(lab.pod_add(1, None).unwrap().name, "pod1-1", "a name that is free is used again");
    let why = lab.pod_del("web").unwrap_err().to_string();
    assert_eq!(why, "there is no pod \"web\"; `loden lab pod list` shows those there are");
}

#[test]
fn a_plugin_that_fails_is_quoted_and_undone() {
    let test = "a_plugin_that_fails_is_quoted_and_undone";
    let Some(plugins) = debian_plugins(test).filter(|_| able(test)) else { return };
    let list = CONFLIST.replace("\"portmap\"", "\"no-such-plugin\"");
    let lab = bare().hosts(1).stack(Stack::V4).conflist(&list).cni_bin_dir(plugins).start().unwrap();
    let why = lab.pod_add(1, None).unwrap_err().to_string();
    let want = "ADD of pod1-1 through the CNI plugin no-such-plugin: there is no no-such-plugin in /usr/lib/cni; see \
                --cni-bin-dir";
    assert_eq!(why, want);
    assert!(lab.status().unwrap().pods.is_empty());
    let list = CONFLIST.replace("10.9.1.2", "nonsense");
    let lab = bare().hosts(1).conflist(&list).cni_bin_dir(plugins).start().unwrap();
    let why = lab.pod_add(1, None).unwrap_err().to_string();
    let want = "ADD of pod1-1 through the CNI plugin bridge: ";
    assert!(why.starts_with(want) && why.contains("nonsense"), "{why}");
    // Without plugins there is a way out.
    let lab = bare().hosts(1).start().unwrap();
    let why = lab.pod_add(1, None).unwrap_err().to_string();
    assert_eq!(why, "this lab has no CNI plugins; make it with agents or --cni-bin-dir");
}
