use super::*;

fn conf(text: &str) -> NetConf {
    NetConf::parse(text).expect("a valid config")
}

fn subnets(v4: &str, v6: &str) -> Subnets {
    Subnets { v4: v4.parse().ok(), v6: v6.parse().ok() }
}

#[test]
fn the_file_is_written_as_flannel_does() {
    for (config, own, mtu, masq, want) in [
        (
            r#"{"Network":"10.42.0.0/16"}"#,
            subnets("10.42.7.0/24", ""),
            1450,
            true,
            "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.7.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
        ),
        (
            r#"{"Network":"10.42.0.0/16","EnableIPv6":true,"IPv6Network":"2001:cafe:42::/56"}"#,
            subnets("10.42.7.0/24", "2001:cafe:42:7::/64"),
            1500,
            false,
            "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.7.1/24\nFLANNEL_IPV6_NETWORK=2001:cafe:42::/56\n\
             FLANNEL_IPV6_SUBNET=2001:cafe:42:7::1/64\nFLANNEL_MTU=1500\nFLANNEL_IPMASQ=false\n",
        ),
        (
            r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"2001:cafe:42::/56"}"#,
            subnets("", "2001:cafe:42:7::/64"),
            1450,
            false,
            "FLANNEL_IPV6_NETWORK=2001:cafe:42::/56\nFLANNEL_IPV6_SUBNET=2001:cafe:42:7::1/64\nFLANNEL_MTU=1450\n\
             FLANNEL_IPMASQ=false\n",
        ),
    ] {
        let text = write(&conf(config), &own, mtu, masq);
        assert_eq!(text, want);
        let previous = read_previous(&text);
        assert_eq!((previous.subnets, previous.warnings), (own, vec![]));
        let pods = read_for_pods("f", &text).expect("complete");
        assert_eq!((pods.subnets, pods.mtu, pods.ip_masq), (own, mtu, masq));
    }
}

#[test]
fn the_agent_reads_with_dotenv_rules() {
    for (text, want, warnings) in [
        ("FLANNEL_SUBNET=10.42.7.1/24\n", subnets("10.42.7.0/24", ""), 0),
        ("export FLANNEL_SUBNET=10.42.7.1/24 # mine", subnets("10.42.7.0/24", ""), 0),
        ("# c\n\n FLANNEL_SUBNET = \"10.42.7.1/24\" \n", subnets("10.42.7.0/24", ""), 0),
        ("FLANNEL_SUBNET='10.42.7.1/24'", subnets("10.42.7.0/24", ""), 0),
        ("A=10.42\nFLANNEL_SUBNET=$A.7.1/24", subnets("10.42.7.0/24", ""), 0),
        ("A=10.42\nFLANNEL_SUBNET=\"${A}.7.1/24\"", subnets("10.42.7.0/24", ""), 0),
        ("A=10.42\nFLANNEL_SUBNET='${A}.7.1/24'", subnets("", ""), 1),
        ("FLANNEL_SUBNET=10.1.1.1/24\r\nFLANNEL_SUBNET=10.42.7.1/24\r\n", subnets("10.42.7.0/24", ""), 0),
        ("FLANNEL_SUBNET=10.42.7.1/24,10.43.7.1/24", subnets("", ""), 0),
        ("FLANNEL_SUBNET=10.42.7.1/24,junk", subnets("10.42.7.0/24", ""), 1),
        ("FLANNEL_SUBNET=junk", subnets("", ""), 1),
        ("FLANNEL_SUBNET=fd00::1/64", subnets("", ""), 1),
        ("FLANNEL_SUBNET=\"10.42.7.1/24", subnets("", ""), 1),
        ("FLANNEL_SUBNET\nFLANNEL_IPV6_SUBNET=fd00:7::1/64", subnets("", "fd00:7::/64"), 1),
        ("FLANNEL_SUBNET=$", subnets("", ""), 1),
        ("FLANNEL_SUBNET=${", subnets("", ""), 1),
        ("\u{0}\u{1}=", subnets("", ""), 1),
        ("", subnets("", ""), 0),
    ] {
        let previous = read_previous(text);
        assert_eq!((previous.subnets, previous.warnings.len()), (want, warnings), "{text:?} {previous:?}");
    }
    let networks = read_previous("FLANNEL_NETWORK=10.42.3.0/16\nFLANNEL_IPV6_NETWORK=fd00::5/48").networks;
    assert_eq!(networks, subnets("10.42.0.0/16", "fd00::/48"));
}

#[test]
fn the_plugin_reads_lines_as_they_stand() {
    let all =
        "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n";
    let pods = read_for_pods("f", all).expect("complete");
    assert_eq!(pods.networks, ["10.1.0.0/16".parse().expect("a network")]);
    assert_eq!((pods.mtu, pods.ip_masq, pods.subnets), (1472, true, subnets("10.1.17.0/24", "")));
    let lists = "FLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_NETWORK=10.1.0.0/16,10.2.3.0/16,10.1.0.0/16";
    let pods = read_for_pods("f", &format!("{all}{lists}")).expect("complete");
    assert_eq!(pods.networks, ["10.1.0.0/16", "10.2.0.0/16", "fd00::/48"].map(|n| n.parse().expect("a net")));

    let file = "/run/flannel/subnet.env";
    for (text, want) in [
        (
            "foo=bar",
            "/run/flannel/subnet.env is missing FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK, FLANNEL_SUBNET, \
             FLANNEL_IPV6_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ",
        ),
        (
            "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\n\n# FLANNEL_MTU=1\nFLANNEL_IPMASQ=1",
            "/run/flannel/subnet.env is missing FLANNEL_MTU",
        ),
        ("FLANNEL_MTU", "read /run/flannel/subnet.env: FLANNEL_MTU has no '='"),
        (
            "FLANNEL_MTU=\"1\"",
            "read /run/flannel/subnet.env: FLANNEL_MTU \"\\\"1\\\"\" is not a number of bytes",
        ),
        ("FLANNEL_MTU=-1", "read /run/flannel/subnet.env: FLANNEL_MTU \"-1\" is not a number of bytes"),
        ("FLANNEL_SUBNET=", "read /run/flannel/subnet.env: FLANNEL_SUBNET \"\" is not an IPv4 network"),
        (
            "FLANNEL_IPV6_NETWORK=10.1.0.0/16",
            "read /run/flannel/subnet.env: FLANNEL_IPV6_NETWORK \"10.1.0.0/16\" is not an IPv6 network",
        ),
    ] {
        assert_eq!(read_for_pods(file, text).expect_err(text).to_string(), want);
    }
    assert!(!read_for_pods("f", &all.replace("true", "yes")).expect("complete").ip_masq);
}
