//! The conflist of the tutorials, driven as a runtime drives it.

use crate::harness::{Host, Pod, ip_in, pod, with};
use model::gojson::Json;

const ENV: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\n\
                   FLANNEL_IPMASQ=true\n";

/// The two plugins of `cbr0` (kube-flannel.yml), with directories of our own.
pub fn conflist(host: &Host, version: &str) -> [(&'static str, String); 2] {
    let env = host.subnet_env(ENV);
    let (scratch, networks) = (host.path("flannel"), host.path("networks"));
    let flannel = format!(
        r#"{{"name": "cbr0", "cniVersion": "{version}", "type": "flannel", "subnetFile": "{env}",
            "dataDir": "{scratch}", "ipam": {{"dataDir": "{networks}"}},
            "delegate": {{"hairpinMode": true, "isDefaultGateway": true}}}}"#
    );
    let portmap = format!(
        r#"{{"name": "cbr0", "cniVersion": "{version}", "type": "portmap",
            "capabilities": {{"portMappings": true}},
            "runtimeConfig": {{"portMappings": [{{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}}]}}}}"#
    );
    [("flannel", flannel), ("portmap", portmap)]
}

/// ADD of a chain with the result handed on; gives the last one.
pub fn add(host: &Host, chain: &[(&str, String)], pod: &Pod) -> Json {
    let mut result = Json::Null;
    for (plugin, conf) in chain {
        let conf = if result.is_null() { conf.clone() } else { with(conf, "prevResult", result.clone()) };
        result = host.call(plugin, "ADD", pod, &conf).expect(plugin);
    }
    result
}

/// Another verb for the chain; backwards for DEL.
pub fn each(host: &Host, chain: &[(&str, String)], pod: &Pod, verb: &str, result: Option<&Json>) {
    let mut chain: Vec<_> = chain.iter().collect();
    if verb == "DEL" {
        chain.reverse();
    }
    for (plugin, conf) in chain {
        let conf = match result {
            Some(result) => with(conf, "prevResult", result.clone()),
            None => conf.clone(),
        };
        let answer = host.call(plugin, verb, pod, &conf);
        assert!(answer.ok, "{verb} {plugin}: {}", answer.text);
        assert_eq!(answer.text, "", "{verb} prints nothing");
    }
}

#[test]
fn the_tutorials_chain_lives_and_dies() {
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        the_tutorials_chain_in(version);
    }
}

/// From ADD to the second DEL.
pub fn the_tutorials_chain_in(version: &str) {
    let host = Host::new();
    let (netns, pod) = pod("c1");
    let chain = conflist(&host, version);
    let result = add(&host, &chain, &pod);
    assert_eq!(result.get("cniVersion").and_then(Json::as_str), Some(version));
    let routes = ip_in(&netns, "route show");
    assert!(routes.contains("default via 10.244.1.1 dev eth0"), "{routes}");
    assert!(routes.contains("10.244.0.0/16 via 10.244.1.1 dev eth0"), "{routes}");
    let links = ip_in(&netns, "-d link show eth0");
    assert!(links.contains("mtu 1450"), "{links}");
    let ports = host.ip("-d link show type veth");
    assert!(ports.contains("hairpin on") && ports.contains("master cni0"), "{ports}");
    assert!(host.rules().contains("dnat to 10.244.1.2:80"), "{}", host.rules());
    if version >= "0.4.0" {
        each(&host, &chain, &pod, "CHECK", Some(&result));
    }
    if version >= "1.1.0" {
        each(&host, &chain, &pod, "STATUS", None);
        // The valid attachment survives a GC.
        let keep = Json::array([Json::object([("containerID", "c1".into()), ("ifname", "eth0".into())])]);
        for (plugin, conf) in &chain {
            let answer =
                host.call(plugin, "GC", &pod, &with(conf, "cni.dev/valid-attachments", keep.clone()));
            assert!(answer.ok, "{}", answer.text);
        }
        each(&host, &chain, &pod, "CHECK", Some(&result));
    }
    let told = (version >= "0.4.0").then_some(&result);
    each(&host, &chain, &pod, "DEL", told);
    each(&host, &chain, &pod, "DEL", told);
    assert_eq!(host.links(), ["cni0"]);
    assert!(!host.rules().contains("10.244.1.2"), "{}", host.rules());
    assert_eq!(host.files("networks"), ["cbr0/last_reserved_ip.0", "cbr0/lock"]);
    assert_eq!(host.files("flannel"), [""; 0]);
    assert_eq!(host.files("state/attachments"), [""; 0]);
}

#[test]
fn both_families_and_ipv6_alone() {
    let v6 = "FLANNEL_IPV6_NETWORK=2001:db8:42::/56\nFLANNEL_IPV6_SUBNET=2001:db8:42:7::1/64\n";
    let alone = ENV.replace("FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n", v6);
    for (env, v4) in [(format!("{ENV}{v6}"), true), (alone, false)] {
        let host = Host::new();
        let chain = conflist(&host, "1.1.0");
        host.subnet_env(&env);
        let (netns, pod) = pod("c1");
        let result = add(&host, &chain, &pod);
        let routes = ip_in(&netns, "-6 route show");
        assert!(routes.contains("default via 2001:db8:42:7::1 dev eth0"), "{routes}");
        assert!(routes.contains("2001:db8:42::/56 via 2001:db8:42:7::1 dev eth0"), "{routes}");
        assert_eq!(ip_in(&netns, "-4 route show").contains("default"), v4);
        let rules = host.rules();
        assert!(rules.contains("dnat to [2001:db8:42:7::2]:80"), "{rules}");
        assert_eq!(rules.contains("dnat to 10.244.1.2:80"), v4, "{rules}");
        each(&host, &chain, &pod, "CHECK", Some(&result));
        each(&host, &chain, &pod, "DEL", None);
        assert_eq!(host.links(), ["cni0"]);
        assert!(!host.rules().contains("dnat"));
    }
}

#[test]
fn del_works_without_namespace_and_after_it_is_gone() {
    let host = Host::new();
    let chain = conflist(&host, "0.3.1");
    for path in ["", "/no/such/path"] {
        let (_netns, pod) = pod("c2");
        add(&host, &chain, &pod);
        let gone = Pod { path: path.to_owned(), ..pod };
        each(&host, &chain, &gone, "DEL", None);
        each(&host, &chain, &gone, "DEL", None);
        // The host's end went by our record although the namespace still lives.
        assert_eq!(host.links(), ["cni0"]);
        assert!(!host.rules().contains("dnat"), "{}", host.rules());
        assert_eq!(host.files("networks"), ["cbr0/last_reserved_ip.0", "cbr0/lock"]);
    }
    // A plain file that a failed unmount left.
    let (_netns, pod) = pod("c3");
    add(&host, &chain, &pod);
    let file = host.path("stale");
    std::fs::write(&file, "").unwrap();
    each(&host, &chain, &Pod { path: file, ..pod }, "DEL", None);
    assert_eq!(host.links(), ["cni0"]);
}

#[test]
fn gc_removes_what_is_not_valid() {
    let host = Host::new();
    let chain = conflist(&host, "1.1.0");
    let (_one, first) = pod("c1");
    let (_two, second) = pod("c2");
    add(&host, &chain, &first);
    let result = add(&host, &chain[..1], &second);
    let keep = Json::array([Json::object([("containerID", "c2".into()), ("ifname", "eth0".into())])]);
    for (plugin, conf) in &chain {
        let answer = host.call(plugin, "GC", &first, &with(conf, "cni.dev/valid-attachments", keep.clone()));
        assert!(answer.ok, "{}", answer.text);
        // Without a list nothing is known to be dead.
        assert!(host.call(plugin, "GC", &first, conf).ok);
    }
    assert_eq!(host.links().len(), 2, "{:?}", host.links());
    assert!(!host.rules().contains("dnat"), "{}", host.rules());
    assert_eq!(host.files("networks"), ["cbr0/10.244.1.3", "cbr0/last_reserved_ip.0", "cbr0/lock"]);
    assert_eq!(host.files("flannel"), ["c2", "c2:eth0"]);
    each(&host, &chain[..1], &second, "CHECK", Some(&result));
}

#[test]
fn two_interfaces_of_one_container_do_not_meet() {
    let host = Host::new();
    let chain = conflist(&host, "1.0.0");
    let chain = &chain[..1];
    let (_netns, first) = pod("c1");
    let second = Pod { ifname: "net1".to_owned(), ..first.clone() };
    add(&host, chain, &first);
    let conf = [("flannel", chain[0].1.replace("\"isDefaultGateway\": true", "\"isDefaultGateway\": false"))];
    // Both networks' routes are the same; the second interface gets none.
    let conf = [(conf[0].0, conf[0].1.replace("\"cbr0\"", "\"cbr1\""))];
    let answer = host.call("flannel", "ADD", &second, &conf[0].1);
    // The route to the cluster exists already in this pod, by the first interface: a plain refusal, and
    // the first attachment is untouched.
    if !answer.ok {
        assert_eq!(host.files("flannel"), ["c1", "c1:eth0"]);
    }
    each(&host, &conf, &second, "DEL", None);
    assert_eq!(host.files("flannel"), ["c1", "c1:eth0"]);
    each(&host, chain, &first, "DEL", None);
    assert_eq!(host.files("flannel"), [""; 0]);
    assert_eq!(host.links(), ["cni0"]);
}

#[test]
fn a_second_add_leaves_the_first_alone() {
    let host = Host::new();
    let chain = conflist(&host, "1.0.0");
    let (_netns, pod) = pod("c1");
    let result = add(&host, &chain[..1], &pod);
    let (_, text) = host.call("flannel", "ADD", &pod, &chain[0].1).error();
    assert!(text.contains("already exists"), "{text}");
    each(&host, &chain[..1], &pod, "CHECK", Some(&result));
}

#[test]
fn status_names_the_missing_subnet_file() {
    let host = Host::new();
    let chain = conflist(&host, "1.1.0");
    let (_netns, pod) = pod("c1");
    std::fs::remove_file(host.path("subnet.env")).unwrap();
    for verb in ["STATUS", "ADD"] {
        let (code, text) = host.call("flannel", verb, &pod, &chain[0].1).error();
        assert_eq!(code, if verb == "STATUS" { 50 } else { 999 });
        assert!(text.contains("subnet.env") && text.contains("agent"), "{text}");
    }
    assert_eq!(host.files("flannel"), [""; 0]);
}

/// The agent's file beside `subnet.env` tells why that is not there, or not what it should be.
#[test]
fn errors_carry_what_the_agent_says() {
    const SAYS: &str = "fetch network config: there is none; write it: etcdctl put";
    let host = Host::new();
    let chain = conflist(&host, "1.1.0");
    let (_netns, pod) = pod("c1");
    let file = host.path("subnet.env");
    std::fs::write(format!("{file}.trouble"), format!("{SAYS}\nrenew lease: refused\n")).unwrap();
    let missing = format!("read {file}: No such file or directory (os error 2); the agent says: {SAYS}");
    for (env, want) in [
        (None, missing.clone()),
        (
            Some("FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"),
            format!(
                "{file} is missing FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK, FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET; the agent \
             says: {SAYS}"
            ),
        ),
    ] {
        match env {
            None => std::fs::remove_file(&file).unwrap(),
            Some(text) => drop(host.subnet_env(text)),
        }
        for (verb, code) in [("ADD", 999), ("STATUS", 50)] {
            let answer = host.call("flannel", verb, &pod, &chain[0].1);
            assert_eq!(answer.error(), (code, want.clone()), "{verb}");
        }
        let (code, text) =
            host.call("flannel", "CHECK", &pod, &with(&chain[0].1, "prevResult", Json::empty())).error();
        assert_eq!(code, 999);
        assert!(text.contains("no attachment") && text.ends_with(&want), "{text}");
    }
    // What is wrong elsewhere concerns nobody who can be served; an empty file says nothing.
    host.subnet_env(ENV);
    assert!(host.call("flannel", "STATUS", &pod, &chain[0].1).ok);
    std::fs::write(format!("{file}.trouble"), "\n").unwrap();
    std::fs::remove_file(&file).unwrap();
    let (_, text) = host.call("flannel", "ADD", &pod, &chain[0].1).error();
    assert!(text.ends_with("see that it runs on this node and read its log"), "{text}");
    assert_eq!(host.files("flannel"), [""; 0]);
}
