use super::*;

/// `len min max` of each enabled family, or the error.
fn summary(text: &str) -> String {
    let conf = match NetConf::parse(text).and_then(NetConf::validate) {
        Ok(conf) => conf,
        Err(error) => return error.to_string().replace("read network config: ", "! "),
    };
    let each = Family::BOTH.into_iter().filter_map(|family| {
        let range = conf.range(family)?;
        let [min, max] = [range.min, range.max].map(|bits| family.from_bits(bits));
        Some(format!("{} {min} {max}", range.len))
    });
    each.collect::<Vec<_>>().join(", ")
}

#[test]
fn the_range_is_completed_and_checked() {
    for (text, want) in [
        (r#"{ "network": "10.3.0.0/16" }"#, "24 10.3.1.0 10.3.255.0"),
        (r#"{"Network":"10.1.2.3/16"}"#, "24 10.1.1.0 10.1.255.0"),
        (r#"{"Network":"10.0.0.0/22"}"#, "24 10.0.1.0 10.0.3.0"),
        (r#"{"Network":"10.0.0.0/23"}"#, "25 10.0.0.128 10.0.1.128"),
        (r#"{"Network":"10.0.0.0/28"}"#, "30 10.0.0.4 10.0.0.12"),
        (r#"{"Network":"10.0.0.0/29"}"#, "! Network 10.0.0.0/29 is too small; /28 is the smallest"),
        (r#"{"Network":"255.255.0.0/16"}"#, "24 255.255.1.0 255.255.255.0"),
        (
            r#"{"Network":"10.0.0.0/8","SubnetLen":20,"SubnetMin":"10.10.0.0","SubnetMax":"10.99.0.0"}"#,
            "20 10.10.0.0 10.99.0.0",
        ),
        (
            r#"{"Network":"10.3.0.0/16","SubnetLen":28,"SubnetMin":"10.3.5.0","SubnetMax":"10.3.8.0"}"#,
            "28 10.3.5.0 10.3.8.0",
        ),
        (
            r#"{"Network":"10.3.0.0/16","SubnetMin":"10.3.0.0","SubnetMax":"0.0.0.0"}"#,
            "24 10.3.0.0 10.3.255.0",
        ),
        ("{}", "! Network is missing, though EnableIPv4 is true: name the cluster's network"),
        (
            r#"{"Network":"0.0.0.0/0"}"#,
            "! Network is missing, though EnableIPv4 is true: name the cluster's network",
        ),
        (r#"{"Network":"10.3.0.0/16","SubnetLen":31}"#, "! SubnetLen 31 must be 30 or less"),
        (r#"{"Network":"10.3.0.0/16","SubnetLen":300}"#, "! SubnetLen 300 is longer than any address"),
        (
            r#"{"Network":"10.3.0.0/16","SubnetLen":17}"#,
            "! SubnetLen 17 leaves Network 10.3.0.0/16 fewer than four subnets; use 18 or more",
        ),
        (
            r#"{"Network":"10.3.0.0/16","SubnetMin":"10.4.0.0"}"#,
            "! SubnetMin 10.4.0.0 lies outside Network 10.3.0.0/16",
        ),
        (
            r#"{"Network":"10.3.0.0/16","SubnetMax":"10.4.0.0"}"#,
            "! SubnetMax 10.4.0.0 lies outside Network 10.3.0.0/16",
        ),
        (
            r#"{"Network":"10.3.0.0/16","SubnetMin":"10.3.1.9"}"#,
            "! SubnetMin 10.3.1.9 is not on a boundary of SubnetLen 24; 10.3.1.0 is",
        ),
        (
            r#"{"Network":"10.3.0.0/16","SubnetMin":"10.3.9.0","SubnetMax":"10.3.5.0"}"#,
            "! SubnetMin 10.3.9.0 is above SubnetMax 10.3.5.0",
        ),
        (
            r#"{"enableIPv4":false,"enableIPv6":true,"ipv6Network":"fc00::/48"}"#,
            "64 fc00:0:0:1:: fc00:0:0:ffff::",
        ),
        (
            r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/48","IPv6SubnetLen":124,
                "IPv6SubnetMin":"fc00::10","IPv6SubnetMax":"fc00::ffe0"}"#,
            "124 fc00::10 fc00::ffe0",
        ),
        (
            r#"{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::5/62","IPv6SubnetMin":null,"IPv6SubnetMax":"::"}"#,
            "24 10.3.1.0 10.3.255.0, 64 fc00:0:0:1:: fc00:0:0:3::",
        ),
        (
            r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"ffff:ffff:ffff::/48"}"#,
            "64 ffff:ffff:ffff:1:: ffff:ffff:ffff:ffff::",
        ),
        (
            r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/63"}"#,
            "65 fc00::8000:0:0:0 fc00:0:0:1:8000::",
        ),
        (
            r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/125"}"#,
            "! IPv6Network fc00::/125 is too small; /124 is the smallest",
        ),
        (
            r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/48","IPv6SubnetLen":127}"#,
            "! IPv6SubnetLen 127 must be 126 or less",
        ),
        (
            r#"{"Network":"10.3.0.0/16","EnableIPv6":true}"#,
            "! IPv6Network is missing, though EnableIPv6 is true: name the cluster's network",
        ),
        (
            r#"{"EnableIPv4":false,"Network":"10.3.0.0/31"}"#,
            "! EnableIPv4 is false and EnableIPv6 too: enable one of the two",
        ),
    ] {
        assert_eq!(summary(text), want, "{text}");
    }
}

#[test]
fn what_cannot_be_decoded_is_refused() {
    for (text, want) in [
        ("", "unexpected end of JSON input (line 1, column 1)"),
        ("[]", "json: cannot unmarshal array into Go value of type Config"),
        ("{} // no", "invalid character '/' after top-level value (line 1, column 4)"),
        (
            r#"{"EnableIPv4":"true"}"#,
            "json: cannot unmarshal string into Go struct field Config.EnableIPv4 of type bool",
        ),
        (
            r#"{"SubnetLen":"24"}"#,
            "json: cannot unmarshal string into Go struct field Config.SubnetLen of type uint",
        ),
        (
            r#"{"SubnetLen":-1}"#,
            "json: cannot unmarshal number -1 into Go struct field Config.SubnetLen of type uint",
        ),
        (
            r#"{"SubnetLen":24.0}"#,
            "json: cannot unmarshal number 24.0 into Go struct field Config.SubnetLen of type uint",
        ),
        (
            r#"{"Network":"10.3.0.0"}"#,
            "Network \"10.3.0.0\" is not an IPv4 network such as \"10.244.0.0/16\"",
        ),
        (r#"{"Network":null}"#, "Network null is not an IPv4 network such as \"10.244.0.0/16\""),
        (
            r#"{"Network":"fc00::/48"}"#,
            "Network \"fc00::/48\" is not an IPv4 network such as \"10.244.0.0/16\"",
        ),
        (
            r#"{"Network":"::ffff:10.3.0.0/112"}"#,
            "Network \"::ffff:10.3.0.0/112\" is not an IPv4 network such as \"10.244.0.0/16\"",
        ),
        (
            r#"{"IPv6Network":"10.3.0.0/16"}"#,
            "IPv6Network \"10.3.0.0/16\" is not an IPv6 network such as \"fd00:10:244::/48\"",
        ),
        (r#"{"IPv6Network":null}"#, "IPv6Network null is not an IPv6 network such as \"fd00:10:244::/48\""),
        (r#"{"SubnetMin":null}"#, "SubnetMin null is not an IPv4 address in quotes"),
        (r#"{"SubnetMax":"10.3.0.1/24"}"#, "SubnetMax \"10.3.0.1/24\" is not an IPv4 address in quotes"),
        (r#"{"SubnetMin":"010.3.0.0"}"#, "SubnetMin \"010.3.0.0\" is not an IPv4 address in quotes"),
        (r#"{"IPv6SubnetMin":"10.3.0.0"}"#, "IPv6SubnetMin \"10.3.0.0\" is not an IPv6 address in quotes"),
        (r#"{"Backend":"vxlan"}"#, "json: cannot unmarshal string into Go value of type Backend"),
        (
            r#"{"Backend":{"Type":1}}"#,
            "json: cannot unmarshal number into Go struct field Backend.Type of type string",
        ),
    ] {
        let error = NetConf::parse(text).expect_err(text).to_string();
        assert_eq!(error, format!("read network config: {want}"));
    }
}

#[test]
fn the_rest_is_decoded_as_in_go() {
    let conf = NetConf::parse("{}").expect("all defaults");
    assert_eq!((conf.enable_ipv4, conf.enable_ipv6, conf.enable_nftables), (true, false, false));
    let conf =
        NetConf::parse(r#"{"enableipv4":null,"ENABLEIPV6":false,"enableIpv6":true,"x":{}}"#).expect("valid");
    assert_eq!(conf.families().collect::<Vec<_>>(), Family::BOTH);
    for (text, want) in [
        ("{}", "udp {}"),
        (r#"{"Backend":null}"#, " {}"),
        (r#"{"Backend":{}}"#, " {}"),
        (r#"{"backend":{"type":"VXLAN","vni":2}}"#, r#"VXLAN {"type":"VXLAN","vni":2}"#),
        (r#"{"Backend":{"Type":"a"},"backend":{"Type":"b"}}"#, r#"b {"Type":"b"}"#),
    ] {
        let conf = NetConf::parse(text).expect(text);
        assert_eq!(format!("{} {}", conf.backend_type, conf.backend.to_compact()), want, "{text}");
    }
}

#[test]
fn vxlan_settings_are_decoded_and_checked() {
    let base = VxlanConf::default();
    for (text, want) in [
        ("{}", Ok(base)),
        (r#"{"Type":"vxlan","VNI":4096,"Port":4789}"#, Ok(VxlanConf { vni: 4096, port: Some(4789), ..base })),
        (r#"{"vni":0,"port":0,"mtu":0}"#, Ok(VxlanConf { vni: 0, ..base })),
        (
            r#"{"MTU":1400,"gbp":true,"LEARNING":true,"directrouting":true}"#,
            Ok(VxlanConf { mtu: Some(1400), gbp: true, learning: true, direct_routing: true, ..base }),
        ),
        (r#"{"VNI":16777215}"#, Ok(VxlanConf { vni: 16_777_215, ..base })),
        (r#"{"VNI":16777216}"#, Err("VNI 16777216 must be between 0 and 16777215")),
        (r#"{"VNI":-1}"#, Err("VNI -1 must be between 0 and 16777215")),
        (r#"{"Port":65536}"#, Err("Port 65536 must be between 0 and 65535")),
        (r#"{"MTU":100}"#, Err("MTU 100 must be between 118 and 65535")),
        (r#"{"VNI":"1"}"#, Err("json: cannot unmarshal string into Go struct field Backend.VNI of type int")),
        (r#"{"GBP":1}"#, Err("json: cannot unmarshal number into Go struct field Backend.GBP of type bool")),
        (r#"{"checksources":true}"#, Ok(VxlanConf { check_sources: true, ..base })),
        (
            r#"{"CheckSources":"yes"}"#,
            Err("json: cannot unmarshal string into Go struct field Backend.CheckSources of type bool"),
        ),
        (
            r#"{"Learning":"no"}"#,
            Err("json: cannot unmarshal string into Go struct field Backend.Learning of type bool"),
        ),
        (
            r#"{"DirectRouting":1}"#,
            Err("json: cannot unmarshal number into Go struct field Backend.DirectRouting of type bool"),
        ),
        (
            r#"{"Port":8472.0}"#,
            Err("json: cannot unmarshal number 8472.0 into Go struct field Backend.Port of type int"),
        ),
        (r#"{"MTU":[]}"#, Err("json: cannot unmarshal array into Go struct field Backend.MTU of type int")),
    ] {
        let got = VxlanConf::decode(&Json::parse(text.as_bytes()).expect(text)).map_err(|e| e.to_string());
        assert_eq!(got, want.map_err(|e| format!("read network config: {e}")), "{text}");
    }
}
