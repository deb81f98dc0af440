//! extension: commands of the operator make the network, ours tells them of nodes (flannel.md 6.8).
//!
//! What has been run is an object ([`Command`]), wanted and held like any other, so a command that failed is
//! tried again and one whose peer changed is run again. What `PreStartupCommand` prints is what other nodes'
//! commands get on their standard input.

use model::gojson::Json;
use model::{Family, Lease, LeaseAttrs, NetConf};

use super::{Backend, Half};
use crate::facts::{Facts, Families};
use crate::state::{Command, CommandKey, Line, Object, State};

/// The type in configurations and leases.
pub const KIND: &str = "extension";
/// More than this is not published: a Kubernetes object carries 256 KiB of annotations in all.
pub const MOST_DATA: usize = 64 * 1024;

/// The backend `extension`.
#[derive(Clone, Debug)]
pub struct Extension {
    families: Families,
    /// `Network`, for `PostStartupCommand`.
    network: String,
    prepare: Option<Line>,
    startup: Option<Line>,
    add: Option<Line>,
    remove: Option<Line>,
}

impl Extension {
    /// Decodes the `Backend` object.
    ///
    /// # Errors
    /// A command that is not a string, or has a NUL in it, which no program can be given.
    pub fn new(conf: &NetConf, families: Families) -> Result<Extension, String> {
        let fields = conf.backend.fields("Backend").map_err(|e| format!("network config: {e}"))?;
        let line = |key: &'static str| {
            let text = fields.str(key).map_err(|e| format!("network config: {e}"))?.unwrap_or_default();
            if text.contains('\0') {
                return Err(format!("network config: {key} has a NUL character in it; take it out"));
            }
            Ok(Line::new(text))
        };
        Ok(Extension {
            families,
            network: conf.network.map_or_else(|| "0.0.0.0/0".to_owned(), |net| net.to_string()),
            prepare: line("PreStartupCommand")?,
            startup: line("PostStartupCommand")?,
            add: line("SubnetAddCommand")?,
            remove: line("SubnetRemoveCommand")?,
        })
    }
}

/// What a command is told of a node, absent values spelt as flannel does.
fn variables(lease: &Lease, attrs: &LeaseAttrs) -> Vec<(&'static str, String)> {
    fn text(value: Option<impl ToString>, absent: &str) -> String {
        value.map_or_else(|| absent.to_owned(), |value| value.to_string())
    }
    vec![
        ("SUBNET", text(lease.subnets.v4, "0.0.0.0/0")),
        ("IPV6SUBNET", text(lease.subnets.v6, "::/0")),
        ("PUBLIC_IP", text(attrs.public_ip, "0.0.0.0")),
        ("PUBLIC_IPV6", text(attrs.public_ip6, "<nil>")),
    ]
}

impl Backend for Extension {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn check(&self, facts: &Facts) -> Result<(), String> {
        match self.families.iter().find(|family| facts.uplink.addresses.of(*family).is_none()) {
            None => Ok(()),
            Some(family) => Err(format!(
                "interface {} has no {family} address to give to the commands of the backend \"extension\"; add one \
                 or choose another interface with --iface",
                facts.uplink.name
            )),
        }
    }

    fn mtu(&self, facts: &Facts) -> u32 {
        facts.uplink.mtu
    }

    /// The interface's own addresses, as upstream, not those of `--public-ip`.
    fn attrs(&self, facts: &Facts) -> LeaseAttrs {
        let data = facts.printed.as_ref().filter(|_| self.prepare.is_some());
        LeaseAttrs {
            public_ip: facts.uplink.addresses.v4.filter(|_| self.families.v4),
            public_ip6: facts.uplink.addresses.v6.filter(|_| self.families.v6),
            backend_type: self.kind().to_owned(),
            backend_data: data.map(|text| Json::from(text.as_str()).to_compact().into()),
            backend_v6_data: None,
        }
    }

    fn lease_waits(&self, facts: &Facts) -> bool {
        self.prepare.is_some() && facts.printed.is_none()
    }

    fn base(&self, facts: &Facts, own: Option<&Lease>) -> State {
        let mut state = State::default();
        let mut command = |key, line: &Option<Line>, env| {
            if let Some(line) = line {
                let (up, down) = (Some(line.clone()), None);
                state.put(Object::Command(Box::new(Command { key, up, down, env, input: String::new() })));
            }
        };
        command(CommandKey::Prepare, &self.prepare, Vec::new());
        if let Some(own) = own {
            let mut env = vec![("NETWORK", self.network.clone())];
            env.extend(variables(own, &self.attrs(facts)));
            command(CommandKey::Startup, &self.startup, env);
        }
        state
    }

    /// One command for both families of a peer.
    fn peer(&self, _: &Facts, _: &Lease, family: Family, peer: &Lease) -> Result<Half, String> {
        let first = Family::BOTH.into_iter().find(|family| peer.subnets.of(*family).is_some());
        if first != Some(family) || self.add.is_none() && self.remove.is_none() {
            return Ok(Half::default());
        }
        let data = match peer.attrs.backend_data.as_deref().map(str::parse::<Json>) {
            None | Some(Ok(Json::Null)) => String::new(),
            Some(Ok(Json::String(text))) => text,
            Some(_) => {
                return Err("its backend data is not a JSON string, as the commands' data is".to_owned());
            }
        };
        let command = Command {
            key: CommandKey::Peer(peer.subnets),
            up: self.add.clone(),
            down: self.remove.clone(),
            env: variables(peer, &peer.attrs),
            input: data,
        };
        Ok(Half { entries: vec![Object::Command(Box::new(command))], hop: None })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{expect, facts, lease, text};
    use super::*;

    fn backend(keys: &str, families: Families) -> Result<Extension, String> {
        let text = format!(r#"{{"Network":"10.244.0.0/16","Backend":{{"Type":"extension"{keys}}}}}"#);
        Extension::new(&NetConf::parse(text).expect("a configuration"), families)
    }

    const V4: Families = Families { v4: true, v6: false };
    const DUAL: Families = Families { v4: true, v6: true };
    const COMMANDS: &str = r#","PreStartupCommand":"cat /key","poststartupcommand":"ip link set x up","SubnetAddCommand":"read K; ip route add $SUBNET","SubnetRemoveCommand":"ip route del $SUBNET""#;

    #[test]
    fn commands_are_objects_with_the_documented_variables() {
        let extension = backend(COMMANDS, DUAL).expect("valid");
        let own = lease("10.244.1.0/24 fd00::/64", "192.0.2.10 2001:db8::10", "extension", ["\"key\"", ""]);
        let peers = [
            lease("10.244.2.0/24", "192.0.2.12", "extension", ["\"a\\nb\"", ""]),
            lease("10.244.3.0/24 fd00:3::/64", "192.0.2.13 2001:db8::13", "extension", ["", ""]),
            lease("fd00:4::/64", "2001:db8::14", "extension", ["null", ""]),
            lease("10.244.5.0/24", "192.0.2.15", "extension", ["{\"x\":1}", ""]),
        ];
        let mut facts = facts();
        assert!(extension.lease_waits(&facts));
        expect(&text(&extension, &facts, None, &peers), "cat /key");
        facts.printed = Some("key".to_owned());
        assert!(!extension.lease_waits(&facts));
        assert_eq!(extension.attrs(&facts), own.attrs);
        assert_eq!(extension.mtu(&facts), 1500);
        let read = "sh -c 'read K; ip route add $SUBNET'";
        expect(
            &text(&extension, &facts, Some(&own), &peers),
            &format!(
                "cat /key
                 NETWORK=10.244.0.0/16 SUBNET=10.244.1.0/24 IPV6SUBNET=fd00::/64 PUBLIC_IP=192.0.2.10 PUBLIC_IPV6=2001:db8::10 ip link set x up
                 SUBNET=0.0.0.0/0 IPV6SUBNET=fd00:4::/64 PUBLIC_IP=0.0.0.0 PUBLIC_IPV6=2001:db8::14 {read}
                 SUBNET=10.244.2.0/24 IPV6SUBNET=::/0 PUBLIC_IP=192.0.2.12 PUBLIC_IPV6=<nil> {read}
                 SUBNET=10.244.3.0/24 IPV6SUBNET=fd00:3::/64 PUBLIC_IP=192.0.2.13 PUBLIC_IPV6=2001:db8::13 {read}
                 left out 10.244.5.0/24: its backend data is not a JSON string, as the commands' data is"
            ),
        );
        let peer = extension.peer(&facts, &own, Family::V4, &peers[0]).expect("a half");
        let [Object::Command(command)] = &peer.entries[..] else { panic!("{peer:?}") };
        assert_eq!(command.input, "a\nb");
        assert_eq!(
            crate::Step::Delete(peer.entries[0].clone()).to_string(),
            "SUBNET=10.244.2.0/24 IPV6SUBNET=::/0 PUBLIC_IP=192.0.2.12 PUBLIC_IPV6=<nil> ip route del $SUBNET"
        );
    }

    #[test]
    fn what_is_not_configured_is_not_run() {
        let none = backend("", V4).expect("valid");
        let own = lease("10.244.1.0/24", "192.0.2.10", "extension", ["", ""]);
        let peer = lease("10.244.2.0/24", "192.0.2.12", "extension", ["\"a\"", ""]);
        assert!(!none.lease_waits(&facts()));
        assert_eq!(none.attrs(&facts()), own.attrs);
        assert_eq!(text(&none, &facts(), Some(&own), std::slice::from_ref(&peer)), "");
        let remove = backend(r#","SubnetRemoveCommand":"gone""#, V4).expect("valid");
        expect(
            &text(&remove, &facts(), Some(&own), &[peer]),
            "SUBNET=10.244.2.0/24 IPV6SUBNET=::/0 PUBLIC_IP=192.0.2.12 PUBLIC_IPV6=<nil> true # no SubnetAddCommand",
        );
    }

    #[test]
    fn what_cannot_work_is_said() {
        for (keys, sentence) in [
            (r#","PreStartupCommand":7"#, "PreStartupCommand"),
            (r#","SubnetAddCommand":["ip"]"#, "SubnetAddCommand"),
            (r#","SubnetRemoveCommand":true"#, "SubnetRemoveCommand"),
            (r#","PostStartupCommand":"a\u0000b""#, "PostStartupCommand has a NUL character"),
        ] {
            let error = backend(keys, V4).expect_err(keys);
            assert!(error.contains(sentence) && error.starts_with("network config: "), "{keys}: {error}");
        }
        let mut facts = facts();
        facts.uplink.addresses.v6 = None;
        let error = backend("", DUAL).expect("valid").check(&facts).expect_err("an address");
        assert!(error.contains("eth0 has no IPv6 address"), "{error}");
    }
}
