use super::*;

fn sample() -> CniResult {
    let interface = |name: &str, mac: &str, sandbox: &str| Interface {
        name: name.to_owned(),
        mac: mac.to_owned(),
        sandbox: sandbox.to_owned(),
        ..Interface::default()
    };
    let default = RouteConfig::new("0.0.0.0/0".parse().unwrap(), Some("10.244.1.1".parse().unwrap()));
    CniResult {
        interfaces: vec![
            interface("cni0", "8e:6f:42:78:2b:6c", ""),
            interface("eth0", "f6:00:bc:08:92:e2", "/run/netns/pod1"),
        ],
        ips: vec![IpConfig {
            interface: Some(1),
            address: "10.244.1.5/24".parse().unwrap(),
            gateway: Some("10.244.1.1".parse().unwrap()),
        }],
        routes: vec![
            RouteConfig { mtu: 1400, ..RouteConfig::new("10.244.0.0/16".parse().unwrap(), None) },
            default,
        ],
        dns: Dns::default(),
    }
}

fn compact(text: &str) -> String {
    text.split('\n').map(str::trim).collect::<String>()
}

#[test]
fn results_print_in_every_shape() {
    let lists = "\"ips\": [{\"version\": \"4\",\"interface\": 1,\"address\": \"10.244.1.5/24\",\
                 \"gateway\": \"10.244.1.1\"}],\"routes\": [{\"dst\": \"10.244.0.0/16\",\"mtu\": 1400},\
                 {\"dst\": \"0.0.0.0/0\",\"gw\": \"10.244.1.1\"}],\"dns\": {}}";
    let four = format!(
        "{{\"cniVersion\": \"0.4.0\",\"interfaces\": [{{\"name\": \"cni0\",\"mac\": \"8e:6f:42:78:2b:6c\"}},\
         {{\"name\": \"eth0\",\"mac\": \"f6:00:bc:08:92:e2\",\"sandbox\": \"/run/netns/pod1\"}}],{lists}"
    );
    let one = "{\"cniVersion\": \"1.0.0\",\"interfaces\": [{\"mac\": \"8e:6f:42:78:2b:6c\",\"name\": \"cni0\"},\
               {\"mac\": \"f6:00:bc:08:92:e2\",\"name\": \"eth0\",\"sandbox\": \"/run/netns/pod1\"}],\
               \"ips\": [{\"address\": \"10.244.1.5/24\",\"gateway\": \"10.244.1.1\",\"interface\": 1}],\
               \"routes\": [{\"dst\": \"10.244.0.0/16\",\"mtu\": 1400},{\"dst\": \"0.0.0.0/0\",\
               \"gw\": \"10.244.1.1\"}]}";
    let two = "{\"cniVersion\": \"0.2.0\",\"ip4\": {\"ip\": \"10.244.1.5/24\",\"gateway\": \"10.244.1.1\",\
               \"routes\": [{\"dst\": \"10.244.0.0/16\"},{\"dst\": \"0.0.0.0/0\",\"gw\": \"10.244.1.1\"}]},\
               \"dns\": {}}";
    for (version, want) in [
        ("0.2.0", two.to_owned()),
        ("0.1.0", two.replace("0.2.0", "0.1.0")),
        ("", two.replace("0.2.0", "0.1.0")),
        ("0.3.1", four.replace("0.4.0", "0.3.1")),
        ("0.4.0", four),
        ("1.0.0", one.to_owned()),
        ("1.1.0", one.replace("1.0.0", "1.1.0")),
    ] {
        assert_eq!(sample().to_json(version).map(|t| compact(&t)), Ok(want), "{version}");
    }
    assert!(sample().to_json("9.9.9").is_err());
    let none = CniResult { ips: vec![], ..sample() };
    assert_eq!(none.to_json("0.2.0"), Err("cannot convert: no valid IP addresses".to_owned()));
}

#[test]
fn what_is_printed_reads_back() {
    for version in ["0.3.0", "0.4.0", "1.0.0", "1.1.0"] {
        let text = sample().to_json(version).unwrap();
        let value = text.parse().unwrap();
        assert_eq!(CniResult::parse(&value, "0.1.0"), Ok(sample()), "{version}");
    }
}

#[test]
fn old_results_are_lifted() {
    let value = json!({
        "ip6": {"ip": "2001:db8::5/64", "routes": [{"dst": "::/0", "gw": "2001:db8::1"}]},
        "ip4": {"ip": "10.1.2.3/24", "gateway": "10.1.2.1"}, "dns": {"nameservers": ["9.9.9.9"]}
    });
    let got = CniResult::parse(&value, "0.2.0").unwrap();
    let ips: Vec<String> = got.ips.iter().map(|ip| ip.address.to_string()).collect();
    assert_eq!(ips, ["10.1.2.3/24", "2001:db8::5/64"]);
    assert_eq!(got.routes, [RouteConfig::new("::/0".parse().unwrap(), Some("2001:db8::1".parse().unwrap()))]);
    assert_eq!(got.dns.nameservers, ["9.9.9.9"]);
    let lowered = got.to_json("0.3.1").unwrap();
    assert!(lowered.contains("\"version\": \"6\""), "{lowered}");
    assert!(CniResult::parse(&json!({"cniVersion": "9.9.9"}), "0.2.0").is_err());
    assert!(CniResult::parse(&json!({"cniVersion": "1.0.0", "ips": null}), "0.2.0").is_ok());
}
