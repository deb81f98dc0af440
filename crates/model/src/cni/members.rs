//! Members of a JSON object, read by the rules of Go's decoder (cni.md 1.9).
//!
//! A layer over [`Fields`] that knows addresses and treats absence, `null` and the empty value alike.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::gojson::{Fields, Json};

/// An object and the name Go would give its type, for messages.
#[derive(Clone, Debug)]
pub struct Members<'a>(Fields<'a>);

impl<'a> Members<'a> {
    /// Looks at a value that has to be an object.
    ///
    /// # Errors
    /// It is of another type.
    pub fn of(value: &'a Json, owner: &'static str) -> Result<Members<'a>, String> {
        value.fields(owner).map(Members).map_err(|e| e.to_string())
    }

    /// A member that is present and not `null`.
    pub fn get(&self, key: &str) -> Option<&'a Json> {
        self.0.raw(key).filter(|value| !value.is_null())
    }

    /// A string, empty when absent.
    pub fn string(&self, key: &str) -> Result<String, String> {
        Ok(self.0.str(key).map_err(|e| e.to_string())?.unwrap_or_default().to_owned())
    }

    /// A boolean.
    pub fn boolean(&self, key: &str) -> Result<Option<bool>, String> {
        self.0.bool(key).map_err(|e| e.to_string())
    }

    /// An integer written without fraction or exponent.
    pub fn integer(&self, key: &str) -> Result<Option<i64>, String> {
        self.0.int(key).map_err(|e| e.to_string())
    }

    /// A list; `None` when absent.
    pub fn list(&self, key: &str) -> Result<Option<&'a [Json]>, String> {
        self.0.array(key, "interface {}").map_err(|e| e.to_string())
    }

    /// A list of objects, empty when absent.
    pub fn objects(&self, key: &str, owner: &'static str) -> Result<Vec<Members<'a>>, String> {
        let list = self.0.objects(key, owner).map_err(|e| e.to_string())?;
        Ok(list.unwrap_or_default().into_iter().map(Members).collect())
    }

    /// A list of strings, empty when absent.
    pub fn strings(&self, key: &str) -> Result<Vec<String>, String> {
        let list = self.0.strings(key).map_err(|e| e.to_string())?;
        Ok(list.unwrap_or_default().into_iter().map(str::to_owned).collect())
    }

    /// An object member; `None` when absent.
    pub fn object(&self, key: &str, owner: &'static str) -> Result<Option<Members<'a>>, String> {
        Ok(self.0.object(key, owner).map_err(|e| e.to_string())?.map(Members))
    }

    /// An address; `None` when absent or empty.
    pub fn ip(&self, key: &str) -> Result<Option<IpAddr>, String> {
        let text = self.string(key)?;
        if text.is_empty() { Ok(None) } else { parse_ip(&text).map(Some) }
    }

    /// A network with its host bits; `None` when absent.
    pub fn net(&self, key: &str) -> Result<Option<IpNet>, String> {
        self.0.str(key).map_err(|e| e.to_string())?.map(parse_net).transpose()
    }
}

/// Parses an address as Go does: no leading zeros, no zone, a v4-mapped address is a v4 address.
///
/// # Errors
/// With Go's message.
pub fn parse_ip(text: &str) -> Result<IpAddr, String> {
    text.parse::<IpAddr>().map(|ip| ip.to_canonical()).map_err(|_| format!("invalid IP address: {text}"))
}

/// Parses an address with prefix length, keeping host bits.
///
/// # Errors
/// With Go's message.
pub fn parse_net(text: &str) -> Result<IpNet, String> {
    let bad = || format!("invalid CIDR address: {text}");
    let (addr, length) = text.split_once('/').ok_or_else(bad)?;
    let addr: IpAddr = addr.parse().map_err(|_| bad())?;
    let digits = !length.is_empty() && length.len() <= 3 && length.bytes().all(|b| b.is_ascii_digit());
    let length: u8 = if digits { length.parse().map_err(|_| bad())? } else { return Err(bad()) };
    match (addr, addr.to_canonical()) {
        (IpAddr::V6(_), IpAddr::V4(v4)) if length >= 96 => IpNet::new(IpAddr::V4(v4), length - 96),
        (addr, _) => IpNet::new(addr, length),
    }
    .map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_follow_go() {
        let value = json!({
            "MTU": 1400, "name": "x", "half": 1450.5, "quoted": "1450", "none": null,
            "list": ["a", "b"], "on": true, "ip": "::ffff:10.0.0.1", "net": "10.0.0.5/24", "empty": ""
        });
        let m = Members::of(&value, "NetConf").unwrap();
        assert_eq!(m.integer("mtu"), Ok(Some(1400)));
        assert_eq!(m.string("name"), Ok("x".to_owned()));
        assert_eq!(m.string("none"), Ok(String::new()));
        assert_eq!(m.strings("list"), Ok(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(m.boolean("on"), Ok(Some(true)));
        assert_eq!(m.ip("ip"), Ok(Some("10.0.0.1".parse().unwrap())));
        assert_eq!(m.ip("empty"), Ok(None));
        assert_eq!(m.net("net"), Ok(Some("10.0.0.5/24".parse().unwrap())));
        let want = "json: cannot unmarshal string into Go struct field NetConf.quoted of type int";
        assert_eq!(m.integer("quoted"), Err(want.to_owned()));
        let want = "json: cannot unmarshal number 1450.5 into Go struct field NetConf.half of type int";
        assert_eq!(m.integer("half"), Err(want.to_owned()));
        assert!(m.list("name").is_err());
        assert!(Members::of(&json!([]), "NetConf").is_err());
    }

    #[test]
    fn addresses_parse_as_in_go() {
        for (text, ok) in [
            ("10.0.0.1", true),
            ("010.0.0.1", false),
            ("fe80::1%eth0", false),
            ("2001:db8::1", true),
            ("10.0.0", false),
            ("", false),
        ] {
            assert_eq!(parse_ip(text).is_ok(), ok, "{text:?}");
        }
        for (text, want) in [
            ("10.0.0.5/24", Some("10.0.0.5/24")),
            ("10.0.0.5", None),
            ("10.0.0.5/33", None),
            ("10.0.0.5/+4", None),
            ("2001:db8::5/64", Some("2001:db8::5/64")),
            ("::ffff:10.0.0.1/120", Some("10.0.0.1/24")),
        ] {
            assert_eq!(parse_net(text).ok(), want.map(|w| w.parse().unwrap()), "{text:?}");
        }
    }
}
