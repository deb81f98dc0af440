//! Every key of every backend with values of each wrong type, and numbers out of range: one sentence that names it.

use model::NetConf;

use super::from_config;

/// What a key takes.
enum Takes {
    Text,
    Flag,
    /// From, to.
    Number(i64, i64),
}
use Takes::{Flag, Number, Text};

/// A type, the members it cannot be without, and its keys.
type Row = (&'static str, &'static str, &'static [(&'static str, Takes)]);

const PORT: Takes = Number(1, 65_535);

const KEYS: &[Row] = &[
    (
        "vxlan",
        "",
        &[
            ("VNI", Number(0, 16_777_215)),
            ("Port", Number(0, 65_535)),
            ("MTU", Number(0, 65_535)),
            ("GBP", Flag),
            ("Learning", Flag),
            ("DirectRouting", Flag),
            ("CheckSources", Flag),
        ],
    ),
    ("udp", "", &[("Port", PORT)]),
    ("ipip", "", &[("DirectRouting", Flag), ("CheckSources", Flag)]),
    (
        "wireguard",
        "",
        &[
            ("ListenPort", PORT),
            ("ListenPortV6", PORT),
            ("MTU", Number(0, 65_535)),
            ("PSK", Text),
            ("PersistentKeepaliveInterval", Number(0, 65_535)),
            ("Mode", Text),
        ],
    ),
    (
        "ipsec",
        r#""PSK":"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef","#,
        &[("PSK", Text), ("UDPEncap", Flag), ("ESPProposal", Text)],
    ),
    (
        "extension",
        "",
        &[
            ("PreStartupCommand", Text),
            ("PostStartupCommand", Text),
            ("SubnetAddCommand", Text),
            ("SubnetRemoveCommand", Text),
        ],
    ),
    (
        "tencent-vpc",
        r#""AccessKeyID":"AKIDx","AccessKeySecret":"s3cr3t","#,
        &[("AccessKeyID", Text), ("AccessKeySecret", Text)],
    ),
];

fn sentence(kind: &str, rest: &str, key: &str, value: &str) -> Result<(), String> {
    // The last of two equal keys counts.
    let text =
        format!(r#"{{"Network":"10.244.0.0/16","Backend":{{"Type":"{kind}",{rest}"{key}":{value}}}}}"#);
    let conf = NetConf::parse(&text).map_err(|error| error.to_string())?;
    from_config(&conf).map(drop)
}

#[test]
fn every_key_of_a_wrong_type_is_named() {
    for (kind, rest, keys) in KEYS {
        for (key, takes) in *keys {
            let of_type = match takes {
                Text => "\"\"",
                Flag => "true",
                Number(..) => "1",
            };
            for value in ["\"yes\"", "true", "7", "1.5", "[1]", "{\"a\":1}", "1e400"] {
                let fits = match takes {
                    Text => value.starts_with('"'),
                    Flag => value == "true",
                    Number(..) => value == "7",
                };
                if fits {
                    continue;
                }
                let said = sentence(kind, rest, key, value).expect_err(&format!("{kind} {key} {value}"));
                assert!(said.contains(key), "{kind} {key} {value} instead of {of_type}: {said}");
                assert_eq!(said.lines().count(), 1, "{said}");
                assert!(!said.contains("0123456789abcdef") && !said.contains("s3cr3t"), "a secret: {said}");
            }
            // Go's decoder leaves what it finds null.
            if !rest.contains(&format!("\"{key}\"")) {
                sentence(kind, rest, key, "null").unwrap_or_else(|said| panic!("{kind} {key} null: {said}"));
            }
        }
    }
}

#[test]
fn every_number_out_of_its_range_is_named_with_the_range() {
    for (kind, rest, keys) in KEYS {
        for (key, takes) in *keys {
            let Number(least, most) = takes else { continue };
            for value in [least - 1, most + 1, i64::from(u32::MAX) + 1, i64::MIN, i64::MAX] {
                let said = sentence(kind, rest, key, &value.to_string())
                    .expect_err(&format!("{kind} {key} {value}"));
                assert!(said.contains(key) && said.contains(&value.to_string()), "{said}");
                assert!(said.contains(&most.to_string()), "{kind} {key} {value}: no range in {said}");
            }
        }
    }
}
