use super::Json;
use crate::testing::Random;

/// Texts and errors as Go 1.26 gives them for the same input.
#[test]
fn malformed_documents_are_refused_in_gos_words() {
    for (text, want) in [
        ("", "unexpected end of JSON input"),
        (" \n ", "unexpected end of JSON input"),
        ("{\"mtu\":1} x", "invalid character 'x' after top-level value"),
        ("{\"mtu\":1} {}", "invalid character '{' after top-level value"),
        ("{\"mtu\":1", "unexpected end of JSON input"),
        ("{\"mtu\" 1}", "invalid character '1' after object key"),
        ("{mtu:1}", "invalid character 'm' looking for beginning of object key string"),
        ("{,}", "invalid character ',' looking for beginning of object key string"),
        ("{\"a\":1,}", "invalid character '}' looking for beginning of object key string"),
        ("{\"a\":1 2}", "invalid character '2' after object key:value pair"),
        ("{\"a\":01}", "invalid character '1' after object key:value pair"),
        ("[1,]", "invalid character ']' looking for beginning of value"),
        ("[1 2]", "invalid character '2' after array element"),
        ("{\"a\":-}", "invalid character '}' in numeric literal"),
        ("{\"a\":1.}", "invalid character '}' after decimal point in numeric literal"),
        ("{\"a\":1e}", "invalid character '}' in exponent of numeric literal"),
        ("{\"a\":tru}", "invalid character '}' in literal true (expecting 'e')"),
        ("{\"a\":nul}", "invalid character '}' in literal null (expecting 'l')"),
        ("{\"a\":'}", "invalid character '\\'' looking for beginning of value"),
        ("\u{feff}{}", "invalid character 'ï' looking for beginning of value"),
        ("// c\n{}", "invalid character '/' looking for beginning of value"),
        ("{\"a\":\"\u{1}\"}", "invalid character '\\x01' in string literal"),
        ("{\"a\":\"\n\"}", "invalid character '\\n' in string literal"),
        ("{\"a\":\"\\x\"}", "invalid character 'x' in string escape code"),
        ("{\"a\":\"\\u12g4\"}", "invalid character 'g' in \\u hexadecimal character escape"),
        ("\"abc", "unexpected end of JSON input"),
    ] {
        let error = Json::parse(text.as_bytes()).expect_err(text);
        assert_eq!(error.what, want, "{text:?}");
    }
    let error = Json::parse(b"{\n  \"a\": 1,\n  b\n}").expect_err("no quotes");
    assert_eq!((error.line, error.column), (3, 3));
}

#[test]
fn nesting_has_a_limit() {
    let nested = |n: usize| "[".repeat(n) + &"]".repeat(n);
    let deepest = Json::parse(nested(512).as_bytes()).expect("as deep as allowed");
    assert_eq!(deepest.to_compact(), nested(512));
    assert_eq!(Json::parse(nested(513).as_bytes()).expect_err("too deep").what, "exceeded max depth");
    assert!(Json::parse("[".repeat(1 << 20).as_bytes()).is_err());
}

#[test]
fn texts_come_out_as_go_writes_them() {
    for (text, compact, sorted) in [
        (" { \"b\" : 1 , \"a\" : [ ] } ", r#"{"b":1,"a":[]}"#, r#"{"a":[],"b":1}"#),
        (r#"{"b":1,"a":2,"b":3}"#, r#"{"b":1,"a":2,"b":3}"#, r#"{"a":2,"b":3}"#),
        (
            r#"[1e400,-0,1.50,18446744073709551616]"#,
            "[1e400,-0,1.50,18446744073709551616]",
            "[1e400,-0,1.50,18446744073709551616]",
        ),
        (r#""a<b>&\/\u00e9""#, "\"a\\u003cb\\u003e\\u0026/é\"", "\"a\\u003cb\\u003e\\u0026/é\""),
        (r#""\u2028\b\f\n\r\t\u0001""#, r#""\u2028\b\f\n\r\t\u0001""#, r#""\u2028\b\f\n\r\t\u0001""#),
        (r#""\ud800\ud83d\ude00\udc00x""#, "\"\u{fffd}😀\u{fffd}x\"", "\"\u{fffd}😀\u{fffd}x\""),
        (r#""\ud800\u0041""#, "\"\u{fffd}A\"", "\"\u{fffd}A\""),
    ] {
        let json = Json::parse(text.as_bytes()).expect(text);
        assert_eq!((json.to_compact().as_str(), json.to_compact_sorted().as_str()), (compact, sorted));
        assert_eq!(Json::parse(compact.as_bytes()), Ok(json), "round trip of {text}");
    }
    let broken = Json::parse(b"\"a\xe2\x82z\xff\"").expect("bad UTF-8 is replaced, byte by byte");
    assert_eq!(broken.as_str(), Some("a\u{fffd}\u{fffd}z\u{fffd}"));
    let tree = Json::parse(br#"{"c":[1,{"q":null}],"b":[],"a":{}}"#).expect("valid");
    let want = "{\n    \"a\": {},\n    \"b\": [],\n    \"c\": [\n        1,\n        {\n            \"q\": \
                null\n        }\n    ]\n}";
    assert_eq!(tree.to_indented_sorted(), want);
    assert!(tree.to_indented().starts_with("{\n    \"c\": ["));
}

#[test]
fn the_last_member_that_matches_wins() {
    for (text, key, want) in [
        (r#"{"mtu":1}"#, "mtu", Some("1")),
        (r#"{"MTU":1}"#, "mtu", Some("1")),
        (r#"{"mtu":1,"Mtu":2}"#, "mtu", Some("2")),
        (r#"{"Mtu":2,"mtu":1}"#, "MTU", Some("1")),
        (r#"{"mtu":1,"mtu":null}"#, "mtu", Some("null")),
        ("{\"ba\u{17f}\u{212a}et\":1}", "basket", Some("1")),
        (r#"{"mtü":1}"#, "MTÜ", None),
        (r#"{"mtu2":1}"#, "mtu", None),
        ("[]", "mtu", None),
    ] {
        let json = Json::parse(text.as_bytes()).expect(text);
        assert_eq!(json.get(key).map(Json::to_compact).as_deref(), want, "{text}");
    }
}

#[test]
fn fields_of_the_wrong_type_are_refused_in_gos_words() {
    fn mtu(json: &Json) -> Result<Option<i64>, super::TypeError> {
        json.fields("NetConf")?.int::<i64>("mtu")
    }
    for (text, want) in [
        ("{}", Ok(None)),
        ("null", Ok(None)),
        (r#"{"mtu":1400}"#, Ok(Some(1400))),
        (r#"{"mtu":-0}"#, Ok(Some(0))),
        (r#"{"mtu":null}"#, Ok(None)),
        (r#"{"mtu":3,"MTU":null}"#, Ok(Some(3))),
        (r#"{"mtu":"1450"}"#, Err("cannot unmarshal string into Go struct field NetConf.mtu of type int")),
        (
            r#"{"mtu":"x","mtu":4}"#,
            Err("cannot unmarshal string into Go struct field NetConf.mtu of type int"),
        ),
        (r#"{"mtu":1.5}"#, Err("cannot unmarshal number 1.5 into Go struct field NetConf.mtu of type int")),
        (r#"{"MTU":1e3}"#, Err("cannot unmarshal number 1e3 into Go struct field NetConf.mtu of type int")),
        (
            r#"{"mtu":9223372036854775808}"#,
            Err("cannot unmarshal number 9223372036854775808 into Go struct field NetConf.mtu of type int"),
        ),
        ("[]", Err("cannot unmarshal array into Go value of type NetConf")),
    ] {
        let got = mtu(&Json::parse(text.as_bytes()).expect(text)).map_err(|e| e.to_string());
        assert_eq!(got, want.map_err(|e| format!("json: {e}")), "{text}");
    }
    let json = Json::parse(br#"{"u":-0,"s":1,"b":"true","l":[1],"m":{"x":true,"y":"true"},"i":[{"t":1}]}"#);
    let json = json.expect("valid");
    let conf = json.fields("NetConf").expect("an object");
    let ranges = conf.objects("i", "IPAM").expect("a list").expect("present");
    for (error, want) in [
        (conf.int::<u8>("u").map(drop), "number -0 into Go struct field NetConf.u of type uint8"),
        (conf.str("s").map(drop), "number into Go struct field NetConf.s of type string"),
        (conf.bool("b").map(drop), "string into Go struct field NetConf.b of type bool"),
        (conf.strings("l").map(drop), "number into Go struct field NetConf.l of type string"),
        (conf.strings("s").map(drop), "number into Go struct field NetConf.s of type []string"),
        (conf.bool_map("m").map(drop), "string into Go struct field NetConf.m of type bool"),
        (conf.object("l", "IPAM").map(drop), "array into Go struct field NetConf.l of type IPAM"),
        (ranges[0].str("t").map(drop), "number into Go struct field IPAM.i.t of type string"),
    ] {
        let text = error.expect_err(want).to_string();
        assert_eq!(text, format!("json: cannot unmarshal {want}"));
    }
}

#[test]
fn lists_structs_and_maps_merge_as_in_go() {
    let text = r#"{"ipam":{"type":"a","n":1},"IPAM":{"n":null,"m":2},"ipam":null,
        "l":["x"],"L":[null,"y"],"gone":["x"],"Gone":null,"caps":{"a":true,"b":null,"a":false}}"#;
    let json = Json::parse(text.as_bytes()).expect("valid");
    let conf = json.fields("NetConf").expect("an object");
    let ipam = conf.object("ipam", "IPAM").expect("typed").expect("present");
    assert_eq!(ipam.str("type"), Ok(Some("a")));
    assert_eq!((ipam.int::<i64>("n"), ipam.int::<i64>("m")), (Ok(Some(1)), Ok(Some(2))));
    assert_eq!(conf.strings("l"), Ok(Some(vec!["", "y"])));
    assert_eq!(conf.strings("gone"), Ok(None));
    assert_eq!(conf.bool_map("caps"), Ok(Some(vec![("b", false), ("a", false)])));
    assert!(conf.raw("ipam").is_some_and(Json::is_null));
}

#[test]
fn trees_are_built_and_changed() {
    let mut json = Json::object([("b", Json::from(1u32)), ("a", "x".into()), ("b", true.into())]);
    json.set("b", Json::array(["y", "z"]));
    json.set("c", None::<u32>);
    assert_eq!(json.to_compact(), r#"{"b":["y","z"],"a":"x","c":null}"#);
    assert_eq!(json.remove("a"), Some("x".into()));
    assert_eq!((json.remove("a"), json.get_exact("B"), json.get("B").is_some()), (None, None, true));
    let mut other = Json::Null;
    other.set("k", -5i64);
    assert_eq!(other.to_compact(), r#"{"k":-5}"#);
}

/// Whatever the bytes, parsing ends without a panic, and what parses survives a round trip.
#[test]
fn any_bytes_are_survived() {
    let seed = br#"{"a":[1,-2.5e3,"x\u00e9\ud83d\ude00<",null,true,{"b":{}}],"A":false} "#;
    let mut random = Random::new(1);
    for _ in 0..20_000 {
        let mut bytes = seed.to_vec();
        for _ in 0..3 {
            let at = random.below(bytes.len() as u64) as usize;
            match random.below(8) {
                0 => bytes.truncate(at + 1),
                1 => bytes.insert(at, b"{}[],:\"\\u01-"[at % 12]),
                _ => bytes[at] = random.below(256) as u8,
            }
        }
        if let Ok(json) = Json::parse(&bytes) {
            assert_eq!(Json::parse(json.to_compact().as_bytes()).as_ref(), Ok(&json));
            assert!(Json::parse(json.to_indented_sorted().as_bytes()).is_ok());
        }
    }
}
