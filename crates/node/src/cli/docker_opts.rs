//! `mk-docker-opts`: Docker's options from `subnet.env`, byte for byte as flannel's shell script writes
//! them (flannel.md 8.2), without a shell.
//!
//! Differences, all where the script goes wrong: a value with blanks is one option and not several
//! broken ones, a route is compared whole and not as a part of a line, and the file is replaced at once.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use kernel::rtnl::{RouteFilter, Rtnl};
use model::Family;
use model::codec::subnet_env;

use super::complain;
use super::words::{Command, flag, switch};
use crate::outputs;

/// What it is, for help, completion and manual.
pub const COMMAND: Command = Command {
    name: "mk-docker-opts",
    words: "",
    summary: "write Docker's options from subnet.env, as flannel's script does",
    text: "\
Writes the Docker options that follow from flannel's env file. Letters may stand together, as in -cm.",
    flags: &[
        flag("-f", "FILE", "flannel's env file, /run/flannel/subnet.env unless given; it may be absent"),
        flag("-d", "FILE", "file to write, /run/docker_opts.env unless given"),
        switch("-i", "each option as a variable of its own, such as DOCKER_OPT_MTU"),
        switch("-c", "all options in one variable; without -i and -c: both"),
        flag("-k", "KEY", "name of that variable, DOCKER_OPTS unless given"),
        switch("-m", "leave --ip-masq out"),
    ],
    exit: "0 written, 1 not, or written and another route leads to the subnet.",
    sub: &[],
};

/// The command line.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Words {
    env_file: String,
    docker_file: String,
    single: bool,
    combined: bool,
    key: String,
    masquerade: bool,
}

/// Runs the command; gives the exit status.
pub fn main(words: &[String]) -> u8 {
    let Some(words) = parse(words) else {
        complain(&COMMAND.usage());
        return 1;
    };
    match run(&words) {
        Ok(()) => 0,
        Err(error) => {
            complain(&format!("mk-docker-opts: {error}\n"));
            1
        }
    }
}

/// As getopts reads `f:d:icmk:`: letters may stand together, the first other word ends the options.
fn parse(words: &[String]) -> Option<Words> {
    let mut out = Words {
        env_file: "/run/flannel/subnet.env".to_owned(),
        docker_file: "/run/docker_opts.env".to_owned(),
        single: false,
        combined: false,
        key: "DOCKER_OPTS".to_owned(),
        masquerade: true,
    };
    let mut rest = words.iter();
    while let Some(letters) = rest.next().and_then(|word| word.strip_prefix('-')) {
        if letters.is_empty() || letters == "-" {
            break;
        }
        for (at, letter) in letters.char_indices() {
            let field = match letter {
                'i' => &mut out.single,
                'c' => &mut out.combined,
                'm' => {
                    out.masquerade = false;
                    continue;
                }
                'f' | 'd' | 'k' => {
                    let attached = &letters[at + 1..];
                    let value = if attached.is_empty() { rest.next()?.clone() } else { attached.to_owned() };
                    match letter {
                        'f' => out.env_file = value,
                        'd' => out.docker_file = value,
                        _ => out.key = value,
                    }
                    break;
                }
                _ => return None,
            };
            *field = true;
        }
    }
    if !out.single && !out.combined {
        (out.single, out.combined) = (true, true);
    }
    Some(out)
}

fn run(words: &Words) -> Result<(), String> {
    let mut variables: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
        .collect();
    match fs::read_to_string(&words.env_file) {
        Ok(text) => variables.extend(subnet_env::variables(&text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => {
            return Err(format!("read {}: {error}; name flannel's env file with -f", words.env_file));
        }
    }
    let text = options(words, &mut variables)?;
    write(Path::new(&words.docker_file), &text)?;
    match variables.get("FLANNEL_SUBNET").and_then(|subnet| route_of(subnet)) {
        Some(route) => not_routed_elsewhere(route),
        None => Ok(()),
    }
}

/// The text of the file. `variables` are those of the environment and of flannel's file.
fn options(words: &Words, variables: &mut BTreeMap<String, String>) -> Result<String, String> {
    let name = |key: &str| {
        !key.is_empty()
            && !key.starts_with(|c: char| c.is_ascii_digit())
            && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    };
    if !name(&words.key) {
        return Err(format!("-k {:?} is not the name of a variable: use letters, digits and _", words.key));
    }
    let value = |key: &str| variables.get(key).filter(|value| !value.is_empty()).cloned();
    let masquerade = match value("FLANNEL_IPMASQ").filter(|_| words.masquerade).as_deref() {
        None => None,
        Some("true") => Some("--ip-masq=false".to_owned()),
        Some("false") => Some("--ip-masq=true".to_owned()),
        Some(other) => {
            return Err(format!(
                "FLANNEL_IPMASQ is {other:?} in {}: it must be true or false; restart the agent, which writes the file",
                words.env_file
            ));
        }
    };
    let made = [
        ("DOCKER_OPT_BIP", value("FLANNEL_SUBNET").map(|subnet| format!("--bip={subnet}"))),
        ("DOCKER_OPT_MTU", value("FLANNEL_MTU").map(|mtu| format!("--mtu={mtu}"))),
        ("DOCKER_OPT_IPMASQ", masquerade),
    ];
    let mut combined = value(&words.key).map_or(String::new(), |before| format!("{before} "));
    variables.extend(made.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))));
    let mut text = String::new();
    for (key, value) in variables.iter().filter(|(key, _)| key.contains("DOCKER_OPT_") && name(key)) {
        let value = value.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
        if words.single {
            text.push_str(&format!("{key}=\"{value}\"\n"));
        }
        combined.push_str(&format!(" {value}"));
    }
    if words.combined {
        text.push_str(&format!("{}=\"{combined}\"\n", words.key));
    }
    Ok(text)
}

/// Replaces a regular file, also behind a link; anything else, such as /dev/stdout, is written to.
fn write(path: &Path, text: &str) -> Result<(), String> {
    let place: PathBuf = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if fs::metadata(&place).is_ok_and(|meta| !meta.is_file()) || path.starts_with("/dev") {
        let open = OpenOptions::new().write(true).open(path);
        return open
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(|error| format!("write {}: {error}; name another file with -d", path.display()));
    }
    outputs::replace(&place, text.as_bytes())
        .map_err(|error| format!("write {}: {error}; name another file with -d", path.display()))
}

/// The network the script looks for: the address of the bridge less one, with the same length.
fn route_of(subnet: &str) -> Option<(Ipv4Addr, u8)> {
    let (address, length) = subnet.split_once('/')?;
    let bits = u32::from(address.parse::<Ipv4Addr>().ok()?).checked_sub(1)?;
    Some((Ipv4Addr::from(bits), length.parse().ok()?))
}

/// Docker would put its bridge where packets already go somewhere else.
fn not_routed_elsewhere((network, length): (Ipv4Addr, u8)) -> Result<(), String> {
    let filter = RouteFilter {
        family: Some(Family::V4),
        table: Some(plan::state::TABLE_MAIN),
        ..RouteFilter::default()
    };
    let routes = Rtnl::open().and_then(|mut rtnl| rtnl.routes(filter)).map_err(|error| error.to_string())?;
    let there = |route: &&kernel::rtnl::RouteInfo| {
        route.gateway.is_some() && route.dst.addr() == IpAddr::V4(network) && route.dst.prefix_len() == length
    };
    match routes.iter().find(there) {
        None => Ok(()),
        Some(route) => Err(format!(
            "the routing table already leads {network}/{length} to another host: {route}; remove that route, or start \
             Docker with another --bip"
        )),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

    use super::*;

    fn words(line: &str) -> Option<Words> {
        parse(&line.split(' ').filter(|w| !w.is_empty()).map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn options_are_read_as_getopts_reads_them() {
        let default = words("").unwrap();
        assert!(default.single && default.combined && default.masquerade);
        let cases: &[(&str, Words)] = &[
            ("-i", Words { combined: false, ..default.clone() }),
            ("-c", Words { single: false, ..default.clone() }),
            ("-ic", default.clone()),
            ("-imk X", Words { combined: false, masquerade: false, key: "X".into(), ..default.clone() }),
            ("-kX -fa", Words { key: "X".into(), env_file: "a".into(), ..default.clone() }),
            ("-d b -- -i", Words { docker_file: "b".into(), ..default.clone() }),
            ("word -i", default.clone()),
            ("-f -i", Words { env_file: "-i".into(), ..default.clone() }),
        ];
        for (line, expected) in cases {
            assert_eq!(words(line).as_ref(), Some(expected), "{line}");
        }
        for line in ["-h", "-?", "-x", "-k", "-if", "--help"] {
            assert_eq!(words(line), None, "{line}");
        }
    }

    /// Variables, arguments, and the file as the script of flannel v0.28.9 wrote it (dash), but for the
    /// last two, where it breaks the value at its blanks.
    #[test]
    fn files_are_those_of_the_script() {
        const THREE: &str = "DOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"\nDOCKER_OPT_IPMASQ=\"--ip-masq=true\"\nDOCKER_OPT_MTU=\"--mtu=1472\"\n";
        let env = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n";
        let all = |key: &str| format!("{THREE}{key}=\" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472\"\n");
        let cases: &[(&str, &str, String)] = &[
            (env, "", all("DOCKER_OPTS")),
            (env, "-i", THREE.to_owned()),
            (env, "-c", "DOCKER_OPTS=\" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472\"\n".to_owned()),
            (env, "-k CUSTOM_KEY", all("CUSTOM_KEY")),
            (env, "-c -m", "DOCKER_OPTS=\" --bip=10.1.74.1/24 --mtu=1472\"\n".to_owned()),
            ("FLANNEL_IPMASQ=true\n", "", "DOCKER_OPT_IPMASQ=\"--ip-masq=false\"\nDOCKER_OPTS=\" --ip-masq=false\"\n".to_owned()),
            ("FLANNEL_IPMASQ=maybe\n", "-m", "DOCKER_OPTS=\"\"\n".to_owned()),
            ("", "", "DOCKER_OPTS=\"\"\n".to_owned()),
            ("", "-i", String::new()),
            ("DOCKER_OPTS=--debug\nFLANNEL_MTU=1400\n", "-c", "DOCKER_OPTS=\"--debug  --mtu=1400\"\n".to_owned()),
            (
                "DOCKER_OPT_LOG=--log-level=warn\nMY_DOCKER_OPT_A=--a\nFLANNEL_MTU=1400\n",
                "",
                "DOCKER_OPT_LOG=\"--log-level=warn\"\nDOCKER_OPT_MTU=\"--mtu=1400\"\nMY_DOCKER_OPT_A=\"--a\"\n\
                 DOCKER_OPTS=\" --log-level=warn --mtu=1400 --a\"\n"
                    .to_owned(),
            ),
            (
                "export FLANNEL_SUBNET='10.2.3.1/26' # of this host\nFLANNEL_MTU=\"1400\"\n",
                "-i",
                "DOCKER_OPT_BIP=\"--bip=10.2.3.1/26\"\nDOCKER_OPT_MTU=\"--mtu=1400\"\n".to_owned(),
            ),
            ("DOCKER_OPT_DNS=\"--dns  192.0.2.53\"\n", "-i", "DOCKER_OPT_DNS=\"--dns 192.0.2.53\"\n".to_owned()),
        ];
        for (env, line, expected) in cases {
            let mut variables = subnet_env::variables(env);
            let text = options(&words(line).unwrap(), &mut variables).unwrap();
            assert_eq!(text, *expected, "{env:?} {line}");
        }
        for (env, line, expected) in [
            ("FLANNEL_IPMASQ=1\n", "", "must be true or false"),
            ("", "-k 1A", "is not the name of a variable"),
        ] {
            let error = options(&words(line).unwrap(), &mut subnet_env::variables(env)).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn the_route_looked_for_is_the_address_less_one() {
        for (subnet, expected) in [
            ("10.1.74.1/24", Some((Ipv4Addr::new(10, 1, 74, 0), 24))),
            ("10.1.74.65/26", Some((Ipv4Addr::new(10, 1, 74, 64), 26))),
            ("10.1.74.1", None),
            ("2001:db8::1/64", None),
        ] {
            assert_eq!(route_of(subnet), expected, "{subnet}");
        }
    }
}
