//! WireGuard devices: port, key and peers, which rtnetlink does not have.
//!
//! Takes devices by name and index; gives them in the terms of the plan and brings them to it. Remembers which
//! endpoints it wrote, so that one a device has learnt is no difference (decision 0146).

mod genl;
mod user;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Child;
use std::time::{SystemTime, UNIX_EPOCH};

use model::IfName;
use model::wireguard::{PublicKey, Secret};
use plan::state::wireguard::{Announced, Heard, Silence};
use plan::state::{Carrier, Key, Link, LinkKind, Object, State, Tun, WgPeer, Wireguard};

use crate::link::LinkInfo;
use crate::netlink::{Protocol, Socket, generic};
use crate::{Errno, Error, Netns};
pub use user::UserSpace;

/// A device with its peers, as it tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// UDP port it listens on.
    pub port: Option<u16>,
    /// Its private key, if it has one.
    pub key: Option<Secret>,
    /// All peers.
    pub peers: Vec<PeerInfo>,
}

/// A peer, and what was heard of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerInfo {
    /// Its settings; the endpoint is where it sends now, addresses are as the device lists them.
    pub peer: WgPeer,
    /// When the last handshake was, in seconds since 1970.
    pub handshake_s: Option<u64>,
    /// Bytes received from it.
    pub received: u64,
    /// Bytes sent to it.
    pub sent: u64,
}

/// The WireGuard devices of one namespace.
#[derive(Debug, Default)]
pub struct Tunnels {
    /// Opened when first needed: most hosts have none.
    generic: Option<Generic>,
    user: Option<UserSpace>,
    /// What was last found, or made.
    carriers: BTreeMap<IfName, Carrier>,
    /// Processes we started, to be reaped when they end.
    children: Vec<Child>,
    announced: Announced,
    silence: Silence,
}

#[derive(Debug)]
struct Generic {
    socket: Socket,
    family: u16,
}

/// A device of the kernel by name and index.
pub(crate) type Place = (IfName, u32);

impl Tunnels {
    /// Whether the kernel has WireGuard; loads its module if there is one.
    pub(crate) fn in_kernel(&mut self, netns: Option<&Netns>) -> bool {
        self.generic(netns).is_ok()
    }

    /// How to carry packets where the kernel does not.
    pub(crate) fn set_user_space(&mut self, user: UserSpace) {
        self.user = Some(user);
    }

    fn generic(&mut self, netns: Option<&Netns>) -> Result<&mut Generic, Errno> {
        if self.generic.is_none() {
            let open = || Socket::open(Protocol::Generic);
            let socket = match netns {
                Some(netns) => netns.run(open).map_err(Error::from).flatten(),
                None => open(),
            };
            let mut socket = socket.map_err(crate::apply::errno_of)?;
            let family = generic::family(&mut socket, genl::FAMILY)?;
            let family = family.ok_or_else(|| Errno::new(libc::EOPNOTSUPP))?;
            self.generic = Some(Generic { socket, family });
        }
        self.generic.as_mut().ok_or_else(|| Errno::new(libc::EOPNOTSUPP))
    }

    fn user(&self) -> Result<&UserSpace, Errno> {
        self.user.as_ref().ok_or_else(|| Errno::new(libc::EOPNOTSUPP))
    }

    fn carrier(&self, name: IfName) -> Carrier {
        self.carriers.get(&name).copied().unwrap_or(Carrier::Kernel)
    }

    /// A kernel's device with all its peers.
    fn device(&mut self, netns: Option<&Netns>, (name, index): Place) -> Result<Device, Errno> {
        let Generic { socket, family } = self.generic(netns)?;
        let parts = socket.dump(&genl::get(*family, index), |reply| Some(genl::decode(reply, name)))?;
        Ok(genl::join(parts))
    }

    /// The peers of a device, whoever carries it.
    pub(crate) fn told(&mut self, netns: Option<&Netns>, info: &LinkInfo) -> Vec<PeerInfo> {
        let device = match info.link.kind {
            LinkKind::Wireguard(_) => self.device(netns, (info.link.name, info.index)).ok(),
            LinkKind::Tun(_) => self.user.as_ref().and_then(|user| user.device(info.link.name).ok()),
            _ => None,
        };
        device.map_or_else(Vec::new, |device| device.peers)
    }

    /// Port and key as wanted, each only if it differs. Behind a device of user space a process that does not
    /// answer is started anew.
    pub(crate) fn set_device(
        &mut self,
        netns: Option<&Netns>,
        place: Place,
        wanted: &Wireguard,
    ) -> Result<(), Errno> {
        self.carriers.insert(place.0, wanted.carrier);
        if wanted.carrier == Carrier::UserSpace {
            let now = match self.user()?.device(place.0) {
                Ok(now) => now,
                Err(_) => {
                    self.start(netns, place.0)?;
                    Device::default()
                }
            };
            return self.user()?.set_device(place.0, &now, wanted);
        }
        let now = self.device(netns, place)?;
        let port = wanted.port.filter(|port| Some(*port) != now.port);
        let key = wanted.key.as_ref().filter(|key| now.key.as_ref() != Some(key));
        if port.is_none() && key.is_none() {
            return Ok(());
        }
        let Generic { socket, family } = self.generic(netns)?;
        socket.request(&genl::set_device(*family, place.1, port, key))
    }

    /// Starts the process behind a TUN device, and ends one that was behind another of the name.
    pub(crate) fn start(&mut self, netns: Option<&Netns>, name: IfName) -> Result<(), Errno> {
        self.announced.retain(|dev, _| dev != name);
        let child = self.user()?.start(name, netns)?;
        self.children.push(child);
        Ok(())
    }

    /// Makes or changes many peers, or takes them away; one answer each.
    pub(crate) fn peers(&mut self, netns: Option<&Netns>, changes: &[Change<'_>]) -> Vec<Result<(), Errno>> {
        let mut answers = Vec::with_capacity(changes.len());
        // In order of keys all of one device stand together.
        for run in changes.chunk_by(|a, b| a.device() == b.device()) {
            let name = run[0].device();
            let done = match self.carrier(name) {
                Carrier::Kernel => self.peers_in_kernel(netns, run),
                Carrier::UserSpace => {
                    let told = |user: &UserSpace| user.peers(name, run, |peer| self.announced.is_news(peer));
                    vec![self.user().and_then(told); run.len()]
                }
            };
            for (change, answer) in run.iter().zip(&done) {
                if let (Change::Put(_, peer), Ok(())) = (change, answer) {
                    self.announced.told(peer);
                }
            }
            answers.extend(done);
        }
        answers
    }

    fn peers_in_kernel(&mut self, netns: Option<&Netns>, changes: &[Change<'_>]) -> Vec<Result<(), Errno>> {
        let family = match self.generic(netns) {
            Ok(generic) => generic.family,
            Err(errno) => return vec![Err(errno); changes.len()],
        };
        let message = |change: &Change<'_>| match change {
            Change::Put(index, peer) => genl::put_peer(family, *index, peer, self.announced.is_news(peer)),
            Change::Remove(index, _, key) => genl::remove_peer(family, *index, key),
        };
        let messages: Vec<_> = changes.iter().map(message).collect();
        match self.generic(netns) {
            Ok(generic) => generic.socket.batch(&messages),
            Err(errno) => vec![Err(errno); changes.len()],
        }
    }

    /// What a device on the way to the plan lacks: its settings, and its peers in normal form.
    pub(crate) fn fill(
        &mut self,
        netns: Option<&Netns>,
        index: u32,
        link: &mut Link,
        wanted: &State,
    ) -> Vec<Object> {
        self.children.retain_mut(|child| !matches!(child.try_wait(), Ok(Some(_))));
        let tunnel = wanted.link(link.name).is_some_and(|want| matches!(want.kind, LinkKind::Wireguard(_)));
        if tunnel && link.kind == LinkKind::Tun(Tun::OURS) {
            link.kind = LinkKind::Wireguard(Wireguard { carrier: Carrier::UserSpace, ..unknown() });
        }
        let LinkKind::Wireguard(settings) = &mut link.kind else { return Vec::new() };
        self.carriers.insert(link.name, settings.carrier);
        // One that does not answer differs from all that is wanted of it.
        let device = match settings.carrier {
            Carrier::Kernel => self.device(netns, (link.name, index)).ok(),
            Carrier::UserSpace => self.user.as_ref().and_then(|user| user.device(link.name).ok()),
        };
        let Some(device) = device else { return Vec::new() };
        (settings.port, settings.key) = (device.port, device.key);
        let there: BTreeSet<PublicKey> = device.peers.iter().map(|info| info.peer.key).collect();
        self.announced.retain(|dev, key| dev != link.name || there.contains(&key));
        self.silence.retain(|dev, key| dev != link.name || there.contains(&key));
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        device.peers.into_iter().map(|info| self.normal(info, wanted, now_s)).collect()
    }

    fn normal(&mut self, info: PeerInfo, wanted: &State, now_s: u64) -> Object {
        let mut peer = info.peer;
        let heard = Heard {
            endpoint: peer.endpoint,
            handshake_age_s: info.handshake_s.map(|at| now_s.saturating_sub(at)),
            sent: info.sent,
        };
        self.silence.look(peer.dev, peer.key, heard, now_s);
        let wish = match wanted.get(&Key::WgPeer(peer.dev, Box::new(peer.key))) {
            Some(Object::WgPeer(wish)) => wish.endpoint,
            _ => None,
        };
        peer.endpoint = self.announced.normal(peer.dev, peer.key, wish, heard);
        peer.allowed.sort_unstable();
        Object::WgPeer(Box::new(peer))
    }

    /// What there is to say of peers that do not answer.
    pub(crate) fn silence(&self) -> Option<String> {
        self.silence.sentence()
    }

    /// A device was made anew, or is gone, with all that was written to it.
    pub(crate) fn forget(&mut self, name: IfName) {
        self.silence.retain(|dev, _| dev != name);
        self.announced.retain(|dev, _| dev != name);
    }
}

/// One change of a peer on a device by its index.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Change<'a> {
    /// Make it, or bring it to this value.
    Put(u32, &'a WgPeer),
    /// Take it away.
    Remove(u32, IfName, &'a PublicKey),
}

impl Change<'_> {
    fn device(&self) -> IfName {
        match self {
            Change::Put(_, peer) => peer.dev,
            Change::Remove(_, dev, _) => *dev,
        }
    }
}

/// A kernel's WireGuard device about which rtnetlink tells no more than that it is one.
pub(crate) fn unknown() -> Wireguard {
    Wireguard { carrier: Carrier::Kernel, port: None, key: None, key_file: String::new() }
}
