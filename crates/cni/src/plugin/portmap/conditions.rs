//! `conditionsV4` and `conditionsV6` in the words of an nft rule, as matches of ours.

use ipnet::IpNet;
use model::cni::{Error, code};
use model::{Family, IfName};
use plan::state::Match;

/// What is understood, for the error.
const UNDERSTOOD: &str = "understood are: ip/ip6 saddr/daddr, iifname, oifname, meta mark, each with a value or != and a \
                          value; for others set backend to \"iptables\" and use its words";

/// Reads the words of one family.
///
/// # Errors
/// Code 2 for words that are not understood: a condition left out would open the port to others.
pub fn parse(family: Family, words: &[String]) -> Result<Vec<Match>, Error> {
    // A word may hold several, as they end in one line.
    let all: Vec<&str> = words.iter().flat_map(|word| word.split_whitespace()).collect();
    let member = if family == Family::V4 { "conditionsV4" } else { "conditionsV6" };
    let mut rest = all.as_slice();
    let mut found = Vec::new();
    while !rest.is_empty() {
        let bad = || {
            let msg = format!("{member}: {:?} is not understood", rest.join(" "));
            Error::new(code::UNSUPPORTED, msg).details(UNDERSTOOD)
        };
        let (one, left) = take(family, rest).ok_or_else(bad)?;
        found.push(one);
        rest = left;
    }
    Ok(found)
}

fn take<'a, 'b>(family: Family, words: &'a [&'b str]) -> Option<(Match, &'a [&'b str])> {
    let rest = match words {
        ["ip" | "ip6" | "meta", ..] => &words[1..],
        _ => words,
    };
    let (key, rest) = rest.split_first()?;
    let (not, rest) = match rest.split_first()? {
        (&"!=", rest) => (true, rest),
        (&"==", rest) => (false, rest),
        _ => (false, rest),
    };
    let (value, left) = rest.split_first()?;
    let value = value.trim_matches('"');
    let network = || -> Option<IpNet> {
        let net: IpNet = value.parse().ok().or_else(|| value.parse().ok().map(std::net::IpAddr::into))?;
        let own = if family == Family::V4 { "ip" } else { "ip6" };
        (Family::of_net(net) == family && words[0] == own).then(|| net.trunc())
    };
    let device = || IfName::new(value).ok().filter(|_| matches!(words[0], "meta" | "iifname" | "oifname"));
    let one = match (*key, not) {
        ("saddr", false) => Match::Source(network()?),
        ("saddr", true) => Match::SourceNot(network()?),
        ("daddr", false) => Match::Destination(network()?),
        ("daddr", true) => Match::DestinationNot(network()?),
        ("iifname", false) => Match::InputDevice(device()?),
        ("iifname", true) => Match::InputDeviceNot(device()?),
        ("oifname", false) => Match::OutputDevice(device()?),
        ("oifname", true) => Match::OutputDeviceNot(device()?),
        ("mark", false) if words[0] == "meta" => Match::Mark(number(value)?),
        _ => return None,
    };
    Some((one, left))
}

fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_become_matches() {
        for (family, words, want) in [
            (Family::V4, "ip daddr != 192.168.1.0/24", Some("ip daddr != 192.168.1.0/24")),
            (
                Family::V4,
                "ip saddr 10.0.0.1 iifname != \"eth0\"",
                Some("ip saddr 10.0.0.1 iifname != \"eth0\""),
            ),
            (Family::V6, "ip6 saddr 2001:db8::/32", Some("ip6 saddr 2001:db8::/32")),
            (Family::V4, "meta mark 0x10", Some("meta mark 0x00000010")),
            (Family::V4, "", Some("")),
            (Family::V4, "ip6 saddr 2001:db8::/32", None),
            (Family::V4, "ip daddr", None),
            (Family::V4, "ct state new", None),
            (Family::V4, "ip saddr { 10.0.0.1, 10.0.0.2 }", None),
        ] {
            let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
            let got = parse(family, &words);
            let text =
                got.as_ref().ok().map(|m| m.iter().map(Match::to_string).collect::<Vec<_>>().join(" "));
            assert_eq!(text.as_deref(), want, "{words:?} {got:?}");
            assert!(got.is_ok() || got.is_err_and(|e| e.code == code::UNSUPPORTED));
        }
    }
}
