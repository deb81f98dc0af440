//! WireGuard: the device, its peers, and which endpoint of a peer counts.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use ipnet::IpNet;
use model::IfName;
use model::wireguard::{PublicKey, Secret};

/// A WireGuard device. In an actual state `None` means that it did not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wireguard {
    /// What carries its packets.
    pub carrier: Carrier,
    /// UDP port it listens on.
    pub port: Option<u16>,
    /// Its private key.
    pub key: Option<Secret>,
    /// The file that holds the key, for commands; empty in an actual state.
    pub key_file: String,
}

/// What does the work of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// The kernel's own module.
    Kernel,
    /// A process of ours behind a TUN device.
    UserSpace,
}

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Carrier::Kernel => "kernel",
            Carrier::UserSpace => "user space",
        })
    }
}

impl Wireguard {
    /// Whether what can be set on a living device differs.
    pub(super) fn changes(&self, have: &Wireguard) -> bool {
        self.port != have.port || self.key != have.key
    }

    /// `wg set …` for port and key.
    pub(crate) fn command(&self, name: IfName) -> String {
        let mut text = format!("wg set {name}");
        if let Some(port) = self.port {
            text += &format!(" listen-port {port}");
        }
        if self.key.is_some() {
            text += &format!(" private-key {}", self.key_file);
        }
        text
    }
}

/// A peer of a WireGuard device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WgPeer {
    /// The device.
    pub dev: IfName,
    /// Who it is.
    pub key: PublicKey,
    /// The key shared with it besides.
    pub psk: Option<Secret>,
    /// Where it was last said to be; where it is, the device learns from its packets ([`Announced`]).
    pub endpoint: Option<SocketAddr>,
    /// Inner addresses it may have, sorted.
    pub allowed: Vec<IpNet>,
    /// Seconds between packets that keep a way through NAT open; 0 = none.
    pub keepalive_s: u16,
}

impl fmt::Display for WgPeer {
    /// The command; a preshared key is to be given on its standard input.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "wg set {} peer {}", self.dev, self.key)?;
        if self.psk.is_some() {
            f.write_str(" preshared-key /dev/stdin")?;
        }
        if let Some(endpoint) = self.endpoint {
            write!(f, " endpoint {endpoint}")?;
        }
        if self.keepalive_s > 0 {
            write!(f, " persistent-keepalive {}", self.keepalive_s)?;
        }
        let allowed: Vec<String> = self.allowed.iter().map(IpNet::to_string).collect();
        write!(f, " allowed-ips {}", allowed.join(","))
    }
}

/// After this long without a handshake no key is valid any more (`REJECT_AFTER_TIME` of the protocol), so one
/// that is older tells nothing of where the peer is.
const FRESH_S: u64 = 180;
/// So many looks in a row at which more had been sent, and no handshake answered.
const UNANSWERED: u8 = 2;
/// Three attempts at a handshake (`REKEY_TIMEOUT` of the protocol is 5 s) that nobody answers are no chance.
const SILENT_S: u64 = 15;

/// What a device tells of a peer's whereabouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Where it sends.
    pub endpoint: Option<SocketAddr>,
    /// Seconds since the last handshake; `None` = never.
    pub handshake_age_s: Option<u64>,
    /// Bytes sent in all.
    pub sent: u64,
}

/// Which endpoints were set, so that one learnt since is no difference (decision 0146).
///
/// A peer behind NAT is where its packets come from, not where its lease says. So an endpoint is written when the
/// peer is new or its lease says another one, and otherwise left to the device. A process that has just started
/// does not know what its predecessor wrote: where a handshake is fresh the device is right, else the lease. And
/// where packets to a learnt endpoint have gone unanswered for minutes, the lease is worth a try.
#[derive(Clone, Debug, Default)]
pub struct Announced {
    peers: BTreeMap<(IfName, PublicKey), Told>,
}

/// Peers to whom packets are sent, and who answer no handshake (decision 0146).
#[derive(Clone, Debug, Default)]
pub struct Silence {
    peers: BTreeMap<(IfName, PublicKey), Silent>,
}

#[derive(Clone, Copy, Debug)]
struct Silent {
    since_s: u64,
    sent: u64,
    endpoint: Option<SocketAddr>,
    suspected: bool,
}

impl Silence {
    /// A look at a peer at this time, in seconds of any clock.
    pub fn look(&mut self, dev: IfName, key: PublicKey, heard: Heard, now_s: u64) {
        let place = (dev, key);
        if heard.endpoint.is_none() || heard.handshake_age_s.is_some_and(|age| age <= FRESH_S) {
            self.peers.remove(&place);
            return;
        }
        let first = Silent { since_s: now_s, sent: heard.sent, endpoint: heard.endpoint, suspected: false };
        let silent = self.peers.entry(place).or_insert(first);
        // Counted anew where another device began at nothing, or the clock was set.
        if silent.endpoint != heard.endpoint || heard.sent < silent.sent || now_s < silent.since_s {
            *silent = first;
        }
        silent.suspected |= heard.sent > silent.sent && now_s - silent.since_s >= SILENT_S;
    }

    /// Peers for which `there` is false are not on their device any more.
    pub fn retain(&mut self, mut there: impl FnMut(IfName, PublicKey) -> bool) {
        self.peers.retain(|(dev, key), _| there(*dev, *key));
    }

    /// A sentence about those that are silent, and how to find out why.
    pub fn sentence(&self) -> Option<String> {
        let mut silent = self.peers.iter().filter(|(_, silent)| silent.suspected);
        let ((dev, key), first) = silent.next()?;
        let endpoint = first.endpoint.map(|endpoint| endpoint.to_string()).unwrap_or_default();
        let others = match silent.count() {
            0 => String::new(),
            n => format!(", and {n} others"),
        };
        Some(format!(
            "WireGuard peer {key} at {endpoint}{others}: packets are sent and no handshake is answered; the node is \
             down, its port is closed, or its PSK is another one; see: wg show {dev} latest-handshakes, and compare: wg \
             show {dev} preshared-keys | sha256sum",
        ))
    }
}

#[derive(Clone, Copy, Debug)]
struct Told {
    /// `None` where the device was found right before it was known what the lease says: what that says first is
    /// no news.
    endpoint: Option<SocketAddr>,
    sent: u64,
    unanswered: u8,
}

impl Announced {
    /// The endpoint to compare with the wanted one: what was set, unless that is to be set again.
    pub fn normal(
        &mut self,
        dev: IfName,
        key: PublicKey,
        wanted: Option<SocketAddr>,
        heard: Heard,
    ) -> Option<SocketAddr> {
        let place = (dev, key);
        let Some(now) = heard.endpoint else {
            self.peers.remove(&place);
            return None;
        };
        let fresh = heard.handshake_age_s.is_some_and(|age| age <= FRESH_S);
        let Some(told) = self.peers.get_mut(&place) else {
            let right = wanted.filter(|wanted| fresh || *wanted == now);
            if right.is_some() || (wanted.is_none() && fresh) {
                self.peers.insert(place, Told { endpoint: right, sent: heard.sent, unanswered: 0 });
            }
            return right.or(Some(now));
        };
        told.endpoint = told.endpoint.or(wanted);
        let Some(said) = told.endpoint else { return Some(now) };
        let more = heard.sent > told.sent;
        told.sent = heard.sent;
        if fresh || said == now {
            told.unanswered = 0;
        } else if more {
            told.unanswered += 1;
            if told.unanswered >= UNANSWERED {
                self.peers.remove(&place);
                return Some(now);
            }
        }
        Some(said)
    }

    /// Whether a peer that is written must be given its endpoint.
    pub fn is_news(&self, peer: &WgPeer) -> bool {
        let told = self.peers.get(&(peer.dev, peer.key));
        peer.endpoint.is_some()
            && told.is_none_or(|told| told.endpoint.is_some() && told.endpoint != peer.endpoint)
    }

    /// A peer was written.
    pub fn told(&mut self, peer: &WgPeer) {
        let place = (peer.dev, peer.key);
        match peer.endpoint {
            Some(_) if self.is_news(peer) => {
                // What was sent before went elsewhere; the first look after this counts from there.
                self.peers.insert(place, Told { endpoint: peer.endpoint, sent: u64::MAX, unanswered: 0 });
            }
            Some(_) => {
                if let Some(told) = self.peers.get_mut(&place) {
                    told.endpoint = peer.endpoint;
                }
            }
            None => drop(self.peers.remove(&place)),
        }
    }

    /// Peers for which `there` is false are not on their device any more.
    pub fn retain(&mut self, mut there: impl FnMut(IfName, PublicKey) -> bool) {
        self.peers.retain(|(dev, key), _| there(*dev, *key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: &str = "198.51.100.7:51820";
    const LEARNT: &str = "203.0.113.1:40000";
    const MOVED: &str = "198.51.100.8:51820";

    /// Each line is a look: seconds, the age of the handshake, bytes sent, and whether the peer is suspected.
    #[test]
    fn silence_is_suspected_when_it_lasts() {
        let (dev, key) = (IfName::fixed("flannel-wg"), PublicKey([7; 32]));
        type Look = (u64, Option<u64>, u64, bool);
        let stories: [(&str, &[Look]); 6] = [
            ("nothing is sent", &[(0, None, 0, false), (60, None, 0, false)]),
            (
                "a handshake takes a moment",
                &[(0, None, 148, false), (5, None, 296, false), (6, Some(0), 300, false)],
            ),
            (
                "nobody answers",
                &[
                    (0, None, 148, false),
                    (10, None, 296, false),
                    (15, None, 444, true),
                    (16, None, 444, true),
                ],
            ),
            (
                "at last somebody does",
                &[(0, None, 148, false), (20, None, 444, true), (25, Some(1), 600, false)],
            ),
            (
                "silent again",
                &[(0, Some(170), 148, false), (20, Some(190), 300, false), (50, Some(220), 500, true)],
            ),
            (
                "made anew",
                &[(0, None, 900, false), (20, None, 0, false), (30, None, 148, false), (36, None, 296, true)],
            ),
        ];
        for (name, looks) in stories {
            let mut silence = Silence::default();
            for (now_s, age, sent, suspected) in looks {
                let heard = Heard { endpoint: at(LEASE), handshake_age_s: *age, sent: *sent };
                silence.look(dev, key, heard, *now_s);
                let said = silence.sentence();
                assert_eq!(said.is_some(), *suspected, "{name}: at {now_s} s: {said:?}");
                assert!(said.is_none_or(|said| said.contains("wg show flannel-wg latest-handshakes")));
            }
            silence.retain(|_, _| false);
            assert_eq!(silence.sentence(), None);
        }
    }

    fn at(text: &str) -> Option<SocketAddr> {
        (text != "-").then(|| text.parse().expect("an endpoint"))
    }

    /// Each line is a look: wanted endpoint, the device's, age of the handshake, bytes sent, and what counts. A
    /// difference is written, as the loop does.
    fn play(looks: &[(&str, &str, Option<u64>, u64, &str)]) {
        let (dev, key) = (IfName::fixed("flannel-wg"), PublicKey([7; 32]));
        let mut announced = Announced::default();
        for (n, (wanted, endpoint, age, sent, want)) in looks.iter().enumerate() {
            let heard = Heard { endpoint: at(endpoint), handshake_age_s: *age, sent: *sent };
            let got = announced.normal(dev, key, at(wanted), heard);
            assert_eq!(got, at(want), "look {n} of {looks:?}");
            let allowed = Vec::new();
            let peer = WgPeer { dev, key, psk: None, endpoint: at(wanted), allowed, keepalive_s: 0 };
            if got != peer.endpoint {
                assert!(announced.is_news(&peer), "look {n} of {looks:?}");
                announced.told(&peer);
            } else {
                assert!(!announced.is_news(&peer), "look {n} of {looks:?}");
            }
        }
    }

    #[test]
    fn a_learnt_endpoint_stays_and_a_new_lease_counts() {
        // A peer of our own making, then behind NAT, idle for an hour, then moved.
        play(&[
            (LEASE, "-", None, 0, "-"),
            (LEASE, LEASE, None, 148, LEASE),
            (LEASE, LEARNT, Some(10), 400, LEASE),
            (LEASE, LEARNT, Some(3_600), 400, LEASE),
            (LEASE, LEARNT, Some(7_200), 400, LEASE),
            (MOVED, LEARNT, Some(7_200), 400, LEASE),
            (MOVED, MOVED, Some(7_200), 400, MOVED),
        ]);
        // Found at a start: right if it was heard of lately, else the lease is.
        play(&[(LEASE, LEARNT, Some(180), 400, LEASE), (MOVED, LEARNT, Some(190), 400, LEASE)]);
        play(&[(LEASE, LEARNT, Some(181), 400, LEARNT), (LEASE, LEASE, Some(181), 400, LEASE)]);
        play(&[(LEASE, LEARNT, None, 400, LEARNT)]);
        // Found at a start before any lease was known.
        let (dev, key) = (IfName::fixed("flannel-wg"), PublicKey([7; 32]));
        let mut announced = Announced::default();
        let heard = Heard { endpoint: at(LEARNT), handshake_age_s: Some(10), sent: 400 };
        assert_eq!(announced.normal(dev, key, None, heard), at(LEARNT));
        let mut peer =
            WgPeer { dev, key, psk: None, endpoint: at(LEASE), allowed: Vec::new(), keepalive_s: 0 };
        assert!(!announced.is_news(&peer), "the device is right");
        announced.told(&peer);
        assert_eq!(announced.normal(dev, key, at(LEASE), heard), at(LEASE));
        peer.endpoint = at(MOVED);
        assert!(announced.is_news(&peer), "from then on another lease counts");
        // Gone and made anew.
        play(&[
            (LEASE, LEASE, Some(1), 0, LEASE),
            (LEASE, "-", None, 0, "-"),
            (LEASE, LEASE, None, 0, LEASE),
        ]);
    }

    #[test]
    fn a_learnt_endpoint_that_does_not_answer_is_given_up() {
        play(&[
            (LEASE, LEARNT, Some(10), 400, LEASE),
            (LEASE, LEARNT, Some(200), 548, LEASE),
            (LEASE, LEARNT, Some(230), 548, LEASE),
            (LEASE, LEARNT, Some(260), 696, LEARNT),
            (LEASE, LEASE, Some(290), 844, LEASE),
            (LEASE, LEASE, Some(320), 992, LEASE),
        ]);
        // One that answers in the end is kept.
        play(&[
            (LEASE, LEARNT, Some(10), 400, LEASE),
            (LEASE, LEARNT, Some(200), 548, LEASE),
            (LEASE, LEARNT, Some(3), 800, LEASE),
            (LEASE, LEARNT, Some(200), 900, LEASE),
            (LEASE, LEARNT, Some(230), 900, LEASE),
        ]);
    }

    #[test]
    fn no_command_shows_a_secret() {
        let secret = Secret::new([b'A'; 32]);
        let peer = WgPeer {
            dev: IfName::fixed("flannel-wg"),
            key: PublicKey([0; 32]),
            psk: Some(secret),
            endpoint: at("[2001:db8::7]:51821"),
            allowed: vec!["10.244.7.0/24".parse().expect("valid"), "fd00::/64".parse().expect("valid")],
            keepalive_s: 25,
        };
        assert_eq!(
            peer.to_string(),
            "wg set flannel-wg peer AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= preshared-key /dev/stdin endpoint \
             [2001:db8::7]:51821 persistent-keepalive 25 allowed-ips 10.244.7.0/24,fd00::/64"
        );
        let device = Wireguard {
            carrier: Carrier::Kernel,
            port: Some(51820),
            key: Some(secret),
            key_file: "/run/flannel/wgkey".to_owned(),
        };
        let shown = format!("{} {device:?} {peer:?}", device.command(IfName::fixed("flannel-wg")));
        assert!(shown.starts_with("wg set flannel-wg listen-port 51820 private-key /run/flannel/wgkey"));
        assert!(!shown.contains(&secret.expose_text()) && !shown.contains(&secret.expose_hex()), "{shown}");
    }
}
