//! WireGuard's configuration protocol of user space ("cross-platform userspace implementation",
//! wireguard.com/xplatform): what `wg` and an agent say to the process of a tunnel, and what it answers.
//!
//! Lines of `key=value`, an empty line at the end. Keys of cryptography are in hexadecimal here.

use std::fmt::{self, Write as _};
use std::net::SocketAddr;

use ipnet::IpNet;

use crate::wireguard::{PublicKey, Secret};

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Everything.
    Get,
    /// A change.
    Set(Change),
}

/// A change of a device. What is `None` stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// The private key; all zeroes take it away.
    pub key: Option<Secret>,
    /// UDP port; 0 is any.
    pub port: Option<u16>,
    /// Peers that are not named go.
    pub replace_peers: bool,
    /// Changes of peers, in order.
    pub peers: Vec<PeerChange>,
}

/// A change of a peer. What is `None` stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerChange {
    /// Who it is.
    pub key: PublicKey,
    /// It goes.
    pub remove: bool,
    /// Nothing happens if it is not there.
    pub update_only: bool,
    /// The key shared with it besides; all zeroes take it away.
    pub psk: Option<Secret>,
    /// Where it is.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between packets that keep a way open; 0 = none.
    pub keepalive_s: Option<u16>,
    /// Inner addresses that are not named go.
    pub replace_allowed: bool,
    /// Inner addresses it may have.
    pub allowed: Vec<IpNet>,
}

/// A device, as it answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// Its private key.
    pub key: Option<Secret>,
    /// UDP port it listens on; 0 while it does not.
    pub port: u16,
    /// All peers.
    pub peers: Vec<PeerShown>,
}

/// A peer, as the device answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerShown {
    /// Who it is.
    pub key: PublicKey,
    /// The key shared with it besides.
    pub psk: Option<Secret>,
    /// Where it sends.
    pub endpoint: Option<SocketAddr>,
    /// When the last handshake was, in seconds since 1970.
    pub handshake_s: Option<u64>,
    /// Bytes sent to it.
    pub sent: u64,
    /// Bytes received from it.
    pub received: u64,
    /// Seconds between packets that keep a way open; 0 = none.
    pub keepalive_s: u16,
    /// Inner addresses it may have.
    pub allowed: Vec<IpNet>,
}

/// Text that makes no sense. Names the key of the line, never its value, which may be a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the line {0:?} makes no sense here")]
pub struct BadLine(String);

impl PeerChange {
    /// No change yet.
    pub fn of(key: PublicKey) -> PeerChange {
        PeerChange {
            key,
            remove: false,
            update_only: false,
            psk: None,
            endpoint: None,
            keepalive_s: None,
            replace_allowed: false,
            allowed: Vec::new(),
        }
    }
}

impl Request {
    /// Reads the lines of a request; what follows the empty line is not looked at.
    ///
    /// # Errors
    /// The first line that makes no sense.
    pub fn parse(text: &str) -> Result<Request, BadLine> {
        let mut lines = lines(text);
        match lines.next() {
            Some(Ok(("get", "1"))) if lines.next().is_none() => return Ok(Request::Get),
            Some(Ok(("set", "1"))) => {}
            Some(Err(bad)) => return Err(bad),
            Some(Ok((key, _))) => return Err(BadLine(key.to_owned())),
            None => return Err(BadLine(String::new())),
        }
        let mut change = Change::default();
        for line in lines {
            let (key, value) = line?;
            change.line(key, value).ok_or_else(|| BadLine(key.to_owned()))?;
        }
        Ok(Request::Set(change))
    }
}

impl Change {
    fn line(&mut self, key: &str, value: &str) -> Option<()> {
        match (key, self.peers.last_mut()) {
            ("public_key", _) => self.peers.push(PeerChange::of(public_key(value)?)),
            ("private_key", None) => self.key = Some(Secret::new(bytes(value)?)),
            ("listen_port", None) => self.port = Some(value.parse().ok()?),
            ("replace_peers", None) => self.replace_peers = truth(value)?,
            // We mark no packets; "do not" is what we do.
            ("fwmark", None) => (value.parse() == Ok(0)).then_some(())?,
            ("remove", Some(peer)) => peer.remove = truth(value)?,
            ("update_only", Some(peer)) => peer.update_only = truth(value)?,
            ("preshared_key", Some(peer)) => peer.psk = Some(Secret::new(bytes(value)?)),
            ("endpoint", Some(peer)) => peer.endpoint = Some(value.parse().ok()?),
            ("persistent_keepalive_interval", Some(peer)) => peer.keepalive_s = Some(value.parse().ok()?),
            ("replace_allowed_ips", Some(peer)) => peer.replace_allowed = truth(value)?,
            ("allowed_ip", Some(peer)) => peer.allowed.push(value.parse::<IpNet>().ok()?.trunc()),
            ("protocol_version", Some(_)) => (value == "1").then_some(())?,
            _ => return None,
        }
        Some(())
    }
}

impl fmt::Display for Request {
    /// As a client sends it: keys are shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Request::Set(change) = self else { return f.write_str("get=1\n\n") };
        f.write_str("set=1\n")?;
        if let Some(key) = &change.key {
            writeln!(f, "private_key={}", key.expose_hex())?;
        }
        if let Some(port) = change.port {
            writeln!(f, "listen_port={port}")?;
        }
        f.write_str(if change.replace_peers { "replace_peers=true\n" } else { "" })?;
        for peer in &change.peers {
            writeln!(f, "public_key={}", peer.key.hex())?;
            for (word, on) in [
                ("remove", peer.remove),
                ("update_only", peer.update_only),
                ("replace_allowed_ips", peer.replace_allowed),
            ] {
                if on {
                    writeln!(f, "{word}=true")?;
                }
            }
            if let Some(psk) = &peer.psk {
                writeln!(f, "preshared_key={}", psk.expose_hex())?;
            }
            if let Some(endpoint) = peer.endpoint {
                writeln!(f, "endpoint={endpoint}")?;
            }
            if let Some(seconds) = peer.keepalive_s {
                writeln!(f, "persistent_keepalive_interval={seconds}")?;
            }
            peer.allowed.iter().try_for_each(|net| writeln!(f, "allowed_ip={net}"))?;
        }
        f.write_str("\n")
    }
}

impl Shown {
    /// Reads an answer to `get`.
    ///
    /// # Errors
    /// A line that makes no sense, or the number of an error.
    pub fn parse(text: &str) -> Result<Shown, BadLine> {
        let mut shown = Shown::default();
        for line in lines(text) {
            let (key, value) = line?;
            shown.line(key, value).ok_or_else(|| BadLine(key.to_owned()))?;
        }
        Ok(shown)
    }

    fn line(&mut self, key: &str, value: &str) -> Option<()> {
        match (key, self.peers.last_mut()) {
            ("public_key", _) => self.peers.push(PeerShown {
                key: public_key(value)?,
                psk: None,
                endpoint: None,
                handshake_s: None,
                sent: 0,
                received: 0,
                keepalive_s: 0,
                allowed: Vec::new(),
            }),
            ("private_key", None) => self.key = present(value)?,
            ("listen_port", None) => self.port = value.parse().ok()?,
            ("errno", _) => (value == "0").then_some(())?,
            ("preshared_key", Some(peer)) => peer.psk = present(value)?,
            ("endpoint", Some(peer)) => peer.endpoint = Some(value.parse().ok()?),
            ("last_handshake_time_sec", Some(peer)) => {
                peer.handshake_s = Some(value.parse().ok()?).filter(|at| *at != 0);
            }
            ("tx_bytes", Some(peer)) => peer.sent = value.parse().ok()?,
            ("rx_bytes", Some(peer)) => peer.received = value.parse().ok()?,
            ("persistent_keepalive_interval", Some(peer)) => peer.keepalive_s = value.parse().ok()?,
            ("allowed_ip", Some(peer)) => peer.allowed.push(value.parse::<IpNet>().ok()?.trunc()),
            // Of other makers' tunnels; a later protocol may tell more.
            _ => {}
        }
        Some(())
    }
}

impl fmt::Display for Shown {
    /// As a device answers: keys are shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(key) = &self.key {
            writeln!(f, "private_key={}", key.expose_hex())?;
        }
        if self.port != 0 {
            writeln!(f, "listen_port={}", self.port)?;
        }
        for peer in &self.peers {
            writeln!(f, "public_key={}", peer.key.hex())?;
            if let Some(psk) = &peer.psk {
                writeln!(f, "preshared_key={}", psk.expose_hex())?;
            }
            writeln!(f, "protocol_version=1")?;
            if let Some(endpoint) = peer.endpoint {
                writeln!(f, "endpoint={endpoint}")?;
            }
            writeln!(
                f,
                "last_handshake_time_sec={}\nlast_handshake_time_nsec=0",
                peer.handshake_s.unwrap_or(0)
            )?;
            writeln!(f, "tx_bytes={}\nrx_bytes={}", peer.sent, peer.received)?;
            writeln!(f, "persistent_keepalive_interval={}", peer.keepalive_s)?;
            peer.allowed.iter().try_for_each(|net| writeln!(f, "allowed_ip={net}"))?;
        }
        f.write_str("errno=0\n\n")
    }
}

/// The answer to a change, and to what was not understood: a number of errno, 0 if all is well.
pub fn answer(errno: i32) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write!(text, "errno={errno}\n\n");
    text
}

/// The number in an answer.
pub fn errno(text: &str) -> Option<i32> {
    text.lines().find_map(|line| line.strip_prefix("errno="))?.parse().ok()
}

fn lines(text: &str) -> impl Iterator<Item = Result<(&str, &str), BadLine>> {
    let lines = text.lines().take_while(|line| !line.is_empty());
    lines.map(|line| line.split_once('=').ok_or_else(|| BadLine("(without =)".to_owned())))
}

fn truth(text: &str) -> Option<bool> {
    text.parse().ok()
}

fn bytes(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let byte = |two: &[u8]| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok();
    digits.chunks(2).map(byte).collect::<Option<Vec<u8>>>()?.try_into().ok()
}

fn public_key(text: &str) -> Option<PublicKey> {
    bytes(text).filter(|bytes| *bytes != [0; 32]).map(PublicKey)
}

/// A key; all zeroes are none.
fn present(text: &str) -> Option<Option<Secret>> {
    bytes(text).map(|bytes| (bytes != [0; 32]).then(|| Secret::new(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "0707070707070707070707070707070707070707070707070707070707070707";
    const ZERO: &str = "0000000000000000000000000000000000000000000000000000000000000000";

    #[test]
    fn requests_are_understood_as_wg_writes_them() {
        // As wg (wireguard-tools) writes them.
        let text = format!(
            "set=1\nprivate_key={HEX}\nlisten_port=51820\nfwmark=0\nreplace_peers=true\npublic_key={HEX}\n\
             preshared_key={ZERO}\nendpoint=[2001:db8::7]:51820\npersistent_keepalive_interval=25\n\
             replace_allowed_ips=true\nallowed_ip=10.244.7.0/24\nallowed_ip=fd00:7::/64\npublic_key={HEX}\n\
             remove=true\nupdate_only=true\nprotocol_version=1\n\n"
        );
        let Ok(Request::Set(change)) = Request::parse(&text) else { panic!("{:?}", Request::parse(&text)) };
        let seven = Secret::new([7; 32]);
        assert_eq!((change.key, change.port, change.replace_peers), (Some(seven), Some(51820), true));
        let [peer, gone] = &change.peers[..] else { panic!("{change:?}") };
        let want = PeerChange {
            psk: Some(Secret::new([0; 32])),
            endpoint: Some("[2001:db8::7]:51820".parse().expect("valid")),
            keepalive_s: Some(25),
            replace_allowed: true,
            allowed: vec!["10.244.7.0/24".parse().expect("valid"), "fd00:7::/64".parse().expect("valid")],
            ..PeerChange::of(PublicKey([7; 32]))
        };
        assert_eq!(*peer, want);
        assert_eq!(*gone, PeerChange { remove: true, update_only: true, ..PeerChange::of(want.key) });
        let request = Request::Set(change);
        assert_eq!(Request::parse(&request.to_string()), Ok(request));
        assert_eq!(Request::parse("get=1\n\n"), Ok(Request::Get));
        assert_eq!(Request::Get.to_string(), "get=1\n\n");
    }

    #[test]
    fn what_makes_no_sense_is_named_without_its_value() {
        for (text, key) in [
            ("", ""),
            ("\n", ""),
            ("get=2\n\n", "get"),
            ("get=1\nset=1\n\n", "get"),
            ("hello\n\n", "(without =)"),
            ("set=1\nprivate_key=geheim\n\n", "private_key"),
            ("set=1\nlisten_port=65536\n\n", "listen_port"),
            ("set=1\nfwmark=7\n\n", "fwmark"),
            ("set=1\nallowed_ip=10.0.0.0/8\n\n", "allowed_ip"),
            (&format!("set=1\npublic_key={HEX}\nprivate_key={HEX}\n\n"), "private_key"),
            (&format!("set=1\npublic_key={HEX}\nendpoint=example.org:1\n\n"), "endpoint"),
            (&format!("set=1\npublic_key={ZERO}\n\n"), "public_key"),
            (&format!("set=1\npublic_key={}\n\n", &HEX[1..]), "public_key"),
            (&format!("set=1\npublic_key=+{}\n\n", &HEX[1..]), "public_key"),
            (&format!("set=1\npublic_key={HEX}\nprotocol_version=2\n\n"), "protocol_version"),
        ] {
            assert_eq!(Request::parse(text), Err(BadLine(key.to_owned())), "{text}");
        }
    }

    #[test]
    fn answers_are_written_and_read() {
        let peer = PeerShown {
            key: PublicKey([7; 32]),
            psk: Some(Secret::new([8; 32])),
            endpoint: Some("192.0.2.7:1".parse().expect("valid")),
            handshake_s: Some(1_700_000_000),
            sent: 148,
            received: 92,
            keepalive_s: 0,
            allowed: vec!["10.244.7.0/24".parse().expect("valid")],
        };
        let never = PeerShown { psk: None, endpoint: None, handshake_s: None, ..peer.clone() };
        let shown = Shown { key: Some(Secret::new([9; 32])), port: 51820, peers: vec![peer, never] };
        assert_eq!(Shown::parse(&shown.to_string()), Ok(shown.clone()));
        assert_eq!(errno(&shown.to_string()), Some(0));
        assert_eq!(errno(&answer(98)), Some(98));
        assert_eq!(Shown::parse("errno=98\n\n"), Err(BadLine("errno".to_owned())));
        assert_eq!(Shown::parse("a_later_word=1\nerrno=0\n\n"), Ok(Shown::default()));
    }
}
