//! WireGuard in user space, seen from the loop: a TUN device, and a process behind it that is asked and told what a
//! kernel's device is (decision 0148).

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use model::IfName;
use model::codec::wg_uapi::{self, Change as Wanted, PeerChange, PeerShown, Request, Shown};
use model::wireguard::Secret;
use plan::state::{WgPeer, Wireguard};

use super::{Change, Device, PeerInfo};
use crate::{Errno, Netns};

/// How long a process may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of an answer: 10,000 peers are some four megabytes.
const MOST: usize = 64 << 20;

/// How tunnels of user space are started, and where they are controlled.
#[derive(Clone, Debug)]
pub struct UserSpace {
    /// Starts the process for a TUN device that is there, controlled at a path, in the namespace of the calling
    /// thread; returns once it works.
    pub start: fn(IfName, &Path) -> io::Result<Child>,
    /// Where control sockets are: `DEVICE.sock`.
    pub dir: PathBuf,
}

impl UserSpace {
    fn socket(&self, device: IfName) -> PathBuf {
        self.dir.join(format!("{device}.sock"))
    }

    /// What the process behind a device tells.
    pub(super) fn device(&self, name: IfName) -> io::Result<Device> {
        let text = ask(&self.socket(name), &Request::Get)?;
        let shown = Shown::parse(&text).map_err(io::Error::other)?;
        let peers = shown.peers.into_iter().map(|peer| info(name, peer)).collect();
        Ok(Device { port: Some(shown.port).filter(|port| *port != 0), key: shown.key, peers })
    }

    /// Starts the process.
    pub(super) fn start(&self, name: IfName, netns: Option<&Netns>) -> Result<Child, Errno> {
        let path = self.socket(name);
        let started = match netns {
            Some(netns) => netns.run(|| (self.start)(name, &path)).map_err(io::Error::other).flatten(),
            None => (self.start)(name, &path),
        };
        started.map_err(|error| Errno { code: 0, text: Some(error.to_string()), offset: None })
    }

    /// Port and key as wanted, each only if it differs.
    pub(super) fn set_device(&self, name: IfName, now: &Device, wanted: &Wireguard) -> Result<(), Errno> {
        let port = wanted.port.filter(|port| Some(*port) != now.port);
        let key = wanted.key.filter(|key| now.key.as_ref() != Some(key));
        if port.is_none() && key.is_none() {
            return Ok(());
        }
        self.tell(name, Wanted { port, key, ..Wanted::default() })
    }

    /// Changes peers of one device; `is_news` says whether one is given its endpoint.
    pub(super) fn peers(
        &self,
        name: IfName,
        changes: &[Change<'_>],
        is_news: impl Fn(&WgPeer) -> bool,
    ) -> Result<(), Errno> {
        let change = |change: &Change<'_>| match change {
            Change::Put(_, peer) => PeerChange {
                psk: Some(peer.psk.unwrap_or(Secret::new([0; 32]))),
                endpoint: peer.endpoint.filter(|_| is_news(peer)),
                keepalive_s: Some(peer.keepalive_s),
                replace_allowed: true,
                allowed: peer.allowed.clone(),
                ..PeerChange::of(peer.key)
            },
            Change::Remove(_, _, key) => {
                PeerChange { remove: true, update_only: true, ..PeerChange::of(**key) }
            }
        };
        self.tell(name, Wanted { peers: changes.iter().map(change).collect(), ..Wanted::default() })
    }

    fn tell(&self, name: IfName, change: Wanted) -> Result<(), Errno> {
        let answer = ask(&self.socket(name), &Request::Set(change)).map_err(|error| Errno {
            code: 0,
            text: Some(format!("ask the tunnel's process at {}: {error}", self.socket(name).display())),
            offset: None,
        })?;
        match wg_uapi::errno(&answer) {
            Some(0) => Ok(()),
            code => Err(Errno::new(code.unwrap_or(libc::EPROTO).wrapping_abs())),
        }
    }
}

fn info(dev: IfName, peer: PeerShown) -> PeerInfo {
    PeerInfo {
        peer: WgPeer {
            dev,
            key: peer.key,
            psk: peer.psk,
            endpoint: peer.endpoint,
            allowed: peer.allowed,
            keepalive_s: peer.keepalive_s,
        },
        handshake_s: peer.handshake_s,
        received: peer.received,
        sent: peer.sent,
    }
}

/// One request and its answer, which an empty line ends.
fn ask(path: &Path, request: &Request) -> io::Result<String> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(request.to_string().as_bytes())?;
    let (mut answer, mut some) = (Vec::new(), [0; 65_536]);
    while !answer.ends_with(b"\n\n") {
        match stream.read(&mut some)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            _ if answer.len() > MOST => return Err(io::ErrorKind::InvalidData.into()),
            count => answer.extend_from_slice(&some[..count]),
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
