//! The device as it is configured, and as threads see it.
//!
//! One thread changes it and hands the others a new view; what changes with every packet is behind the lock of
//! its peer.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use gotatun::noise::Tunn;
use gotatun::noise::index_table::IndexTable;
use gotatun::noise::rate_limiter::RateLimiter;
use gotatun::packet::WgKind;
use gotatun::x25519;
use ipnet::IpNet;
use model::codec::wg_uapi::{Change, PeerChange, PeerShown, Shown};
use model::wireguard::{PublicKey, Secret};

use super::table::Table;

/// Handshakes of one address in a second that are worked on without asking whether the sender is there.
const HANDSHAKES: u64 = 100;

/// Our own key, and who has to prove himself before we compute with it.
pub struct Own {
    /// Private key.
    pub private: x25519::StaticSecret,
    /// Public key.
    pub public: x25519::PublicKey,
    /// Checks what anybody can send.
    pub limiter: Arc<RateLimiter>,
}

impl Own {
    fn new(key: Secret) -> Own {
        let private = x25519::StaticSecret::from(*key.expose());
        let public = x25519::PublicKey::from(&private);
        let limiter = Arc::new(RateLimiter::new(&public, HANDSHAKES));
        Own { private, public, limiter }
    }
}

/// One peer.
pub struct Peer {
    state: Mutex<State>,
    /// Bytes sent to it.
    pub sent: AtomicU64,
    /// Bytes received from it.
    pub received: AtomicU64,
}

/// What changes with packets.
pub struct State {
    /// The protocol.
    pub tunnel: Tunn,
    /// Where it is: where it was said to be, or where its last packet came from.
    pub endpoint: Option<SocketAddr>,
    /// When it last proved to have the session's key.
    pub handshake: Option<SystemTime>,
    /// We answered its handshake and wait for a packet that shows that it could read the answer.
    pub unconfirmed: bool,
    /// When we last tried again what had been given up.
    pub tried: Option<Instant>,
}

impl Peer {
    /// Its state. A panic of another thread has been printed; what it left is as good as a lost packet.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What threads look at; replaced as a whole.
#[derive(Default)]
pub struct View {
    /// Our key; without one nothing is sent or received.
    pub own: Option<Arc<Own>>,
    /// Peers by key.
    pub peers: HashMap<[u8; 32], Arc<Peer>>,
    /// Peers by inner address.
    pub allowed: Table<Arc<Peer>>,
}

/// Peers by the index their packets name.
#[derive(Default)]
pub struct Indices(Mutex<HashMap<u32, Arc<Peer>>>);

impl Indices {
    fn map(&self) -> MutexGuard<'_, HashMap<u32, Arc<Peer>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The peer behind an index.
    pub fn get(&self, index: u32) -> Option<Arc<Peer>> {
        self.map().get(&index).cloned()
    }

    /// Notes under which index answers to a packet of ours will come.
    pub fn note(&self, packet: &WgKind, peer: &Arc<Peer>) {
        let index = match packet {
            WgKind::HandshakeInit(packet) => packet.sender_idx.get(),
            WgKind::HandshakeResp(packet) => packet.sender_idx.get(),
            WgKind::CookieReply(_) | WgKind::Data(_) => return,
        };
        self.map().insert(index, peer.clone());
    }

    /// Forgets indices of sessions that are over.
    pub fn tidy(&self, used: &IndexTable) {
        self.map().retain(|index, _| used.in_use(*index));
    }

    fn forget(&self, peer: &Arc<Peer>) {
        self.map().retain(|_, other| !Arc::ptr_eq(peer, other));
    }
}

/// The device as it is configured.
pub struct Device {
    key: Option<Secret>,
    own: Option<Arc<Own>>,
    port: u16,
    peers: BTreeMap<PublicKey, Configured>,
    indices: Arc<Indices>,
    used: IndexTable,
}

struct Configured {
    psk: Option<Secret>,
    keepalive_s: u16,
    allowed: BTreeSet<IpNet>,
    peer: Arc<Peer>,
}

impl Device {
    /// A device without key and peers.
    pub fn new() -> Device {
        Device {
            key: None,
            own: None,
            port: 0,
            peers: BTreeMap::new(),
            indices: Arc::default(),
            used: IndexTable::from_os_rng(),
        }
    }

    /// Peers by index.
    pub fn indices(&self) -> Arc<Indices> {
        self.indices.clone()
    }

    /// Indices in use.
    pub fn used(&self) -> IndexTable {
        self.used.clone()
    }

    /// UDP port; 0 for none yet.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The port is listened on now.
    pub fn set_port(&mut self, port: u16) {
        self.port = port;
    }

    /// Makes a change, its port aside; gives the view with it.
    pub fn change(&mut self, change: &Change) -> View {
        if let Some(key) = change.key
            && self.key != Some(key)
        {
            self.set_key(key);
        }
        if change.replace_peers {
            let gone: Vec<PublicKey> = self.peers.keys().copied().collect();
            gone.iter().for_each(|key| self.remove(key));
        }
        change.peers.iter().for_each(|peer| self.change_peer(peer));
        self.view()
    }

    fn set_key(&mut self, key: Secret) {
        let none = *key.expose() == [0; 32];
        self.key = (!none).then_some(key);
        self.own = self.key.map(|key| Arc::new(Own::new(key)));
        let own = self.own.clone().unwrap_or_else(|| Arc::new(Own::new(key)));
        for configured in self.peers.values() {
            let mut state = configured.peer.state();
            state.tunnel.set_static_private(own.private.clone(), own.public, own.limiter.clone());
        }
    }

    fn remove(&mut self, key: &PublicKey) {
        if let Some(gone) = self.peers.remove(key) {
            self.indices.forget(&gone.peer);
        }
    }

    fn change_peer(&mut self, change: &PeerChange) {
        if change.remove {
            return self.remove(&change.key);
        }
        if !self.peers.contains_key(&change.key) {
            if change.update_only {
                return;
            }
            let made = self.make(change.key);
            self.peers.insert(change.key, made);
        }
        // An inner address belongs to one peer.
        for (key, other) in &mut self.peers {
            if *key != change.key && !change.allowed.is_empty() {
                other.allowed.retain(|net| !change.allowed.contains(net));
            }
        }
        let Some(configured) = self.peers.get_mut(&change.key) else { return };
        if change.replace_allowed {
            configured.allowed.clear();
        }
        configured.allowed.extend(change.allowed.iter().copied());
        let mut state = configured.peer.state();
        if let Some(psk) = change.psk {
            configured.psk = (*psk.expose() != [0; 32]).then_some(psk);
            state.tunnel.set_preshared_key(configured.psk.map(|psk| *psk.expose()));
        }
        if let Some(seconds) = change.keepalive_s
            && seconds != configured.keepalive_s
        {
            configured.keepalive_s = seconds;
            state.tunnel.set_persistent_keepalive(Some(seconds));
        }
        state.endpoint = change.endpoint.or(state.endpoint);
    }

    fn make(&self, key: PublicKey) -> Configured {
        let own = self.own.clone().unwrap_or_else(|| Arc::new(Own::new(Secret::new([0; 32]))));
        let tunnel = Tunn::new(
            own.private.clone(),
            x25519::PublicKey::from(key.0),
            None,
            None,
            self.used.clone(),
            own.limiter.clone(),
        );
        let state = State { tunnel, endpoint: None, handshake: None, unconfirmed: false, tried: None };
        let peer = Peer { state: Mutex::new(state), sent: AtomicU64::new(0), received: AtomicU64::new(0) };
        Configured { psk: None, keepalive_s: 0, allowed: BTreeSet::new(), peer: Arc::new(peer) }
    }

    fn view(&self) -> View {
        let nets = self.peers.values().flat_map(|c| c.allowed.iter().map(|net| (*net, c.peer.clone())));
        View {
            own: self.own.clone(),
            peers: self.peers.iter().map(|(key, c)| (key.0, c.peer.clone())).collect(),
            allowed: Table::new(nets),
        }
    }

    /// Everything.
    pub fn show(&self) -> Shown {
        let peer = |(key, configured): (&PublicKey, &Configured)| {
            let state = configured.peer.state();
            let handshake = state.handshake.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
            PeerShown {
                key: *key,
                psk: configured.psk,
                endpoint: state.endpoint,
                handshake_s: handshake.map(|at| at.as_secs()),
                sent: configured.peer.sent.load(Ordering::Relaxed),
                received: configured.peer.received.load(Ordering::Relaxed),
                keepalive_s: configured.keepalive_s,
                allowed: configured.allowed.iter().copied().collect(),
            }
        };
        Shown { key: self.key, port: self.port, peers: self.peers.iter().map(peer).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::codec::wg_uapi::Request;

    fn key(n: u8) -> PublicKey {
        PublicKey([n; 32])
    }

    fn change(device: &mut Device, lines: &str) -> View {
        let Ok(Request::Set(change)) = Request::parse(&format!("set=1\n{lines}\n\n")) else {
            panic!("{lines}")
        };
        device.change(&change)
    }

    #[test]
    fn a_change_says_what_changes_and_the_rest_stays() {
        let mut device = Device::new();
        let two = key(2).hex();
        let three = key(3).hex();
        let view = change(
            &mut device,
            &format!(
                "private_key={}\npublic_key={two}\nendpoint=192.0.2.2:1\nallowed_ip=10.244.2.0/24\n\
                 public_key={three}\npersistent_keepalive_interval=25\nallowed_ip=10.244.3.0/24\nallowed_ip=fd00:3::/64",
                key(9).hex()
            ),
        );
        assert!(view.own.is_some() && view.peers.len() == 2);
        let owner = |view: &View, ip: &str| {
            let found = view.allowed.find(ip.parse().unwrap())?;
            view.peers.iter().find(|(_, peer)| Arc::ptr_eq(peer, found)).map(|(key, _)| key[0])
        };
        assert_eq!((owner(&view, "10.244.2.7"), owner(&view, "fd00:3::1")), (Some(2), Some(3)));
        // An address moves, an endpoint stays, a peer that is not there is not made.
        let view = change(
            &mut device,
            &format!(
                "public_key={three}\nallowed_ip=10.244.2.0/24\npublic_key={}\nupdate_only=true\nendpoint=192.0.2.4:1",
                key(4).hex()
            ),
        );
        assert_eq!((owner(&view, "10.244.2.7"), view.peers.len()), (Some(3), 2));
        let shown = device.show();
        assert_eq!(shown.peers[0].allowed, []);
        assert_eq!(shown.peers[0].endpoint, Some("192.0.2.2:1".parse().unwrap()));
        assert_eq!((shown.peers[1].keepalive_s, shown.peers[1].allowed.len()), (25, 3));
        let view = change(
            &mut device,
            &format!("public_key={three}\nreplace_allowed_ips=true\npublic_key={two}\nremove=true"),
        );
        assert_eq!((owner(&view, "fd00:3::1"), view.peers.len()), (None, 1));
        let view = change(&mut device, &format!("replace_peers=true\nprivate_key={}", key(0).hex()));
        assert!(view.own.is_none() && view.peers.is_empty() && device.show().key.is_none());
    }
}
