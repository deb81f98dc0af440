//! `conditionsV4` and `conditionsV6` in the words of an nft rule: common ones as matches of ours, others for
//! the `nft` program to understand (decision 0165).

use ipnet::IpNet;
use model::cni::Error;
use model::{Family, IfName};
use plan::state::Match;

/// The conditions of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Conditions {
    /// All of them are ours to write.
    Matches(Vec<Match>),
    /// Words of a rule, for `nft`.
    Words(String),
}

/// The configuration's member.
pub fn member(family: Family) -> &'static str {
    if family == Family::V4 { "conditionsV4" } else { "conditionsV6" }
}

/// Reads the words of one family.
///
/// # Errors
/// Code 7 for what could not be the middle of one rule.
pub fn parse(family: Family, words: &[String]) -> Result<Conditions, Error> {
    // A word may hold several, as they end in one line.
    let all: Vec<&str> = words.iter().flat_map(|word| word.split_whitespace()).collect();
    if let Some(word) = all.iter().find(|word| word.contains([';', '#', '\\'])) {
        let msg = format!("{}: {word:?} ends a rule; write the words of one rule", member(family));
        return Err(Error::config(msg));
    }
    let mut rest = all.as_slice();
    let mut found = Vec::new();
    while !rest.is_empty() {
        let Some((one, left)) = take(family, rest) else { return Ok(Conditions::Words(all.join(" "))) };
        found.push(one);
        rest = left;
    }
    Ok(Conditions::Matches(found))
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
    // A pattern is none of our matches.
    let named = |name: &IfName| !name.as_str().contains('*');
    let device = || {
        let is_key = matches!(words[0], "meta" | "iifname" | "oifname");
        IfName::new(value).ok().filter(named).filter(|_| is_key)
    };
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
            (Family::V4, "iifname \"eth*\" ip saddr 10.0.0.1", None),
        ] {
            let split: Vec<String> = words.split(' ').map(str::to_owned).collect();
            let want = match want {
                Some(text) => text.to_owned(),
                // As it came.
                None => format!("nft: {words}"),
            };
            let got = match parse(family, &split).unwrap() {
                Conditions::Matches(all) => all.iter().map(Match::to_string).collect::<Vec<_>>().join(" "),
                Conditions::Words(text) => format!("nft: {text}"),
            };
            assert_eq!(got, want);
        }
        for words in ["ip saddr 10.0.0.1; flush ruleset", "ip saddr 10.0.0.1 # all", "ip \\"] {
            let split: Vec<String> = words.split(' ').map(str::to_owned).collect();
            let error = parse(Family::V6, &split).unwrap_err();
            assert!(
                error.code == model::cni::code::CONFIG && error.msg.starts_with("conditionsV6: "),
                "{error}"
            );
        }
    }
}
