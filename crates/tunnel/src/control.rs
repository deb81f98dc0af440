//! How a tunnel is controlled: a Unix socket that only root may open. A client writes lines and shuts its side;
//! the tunnel does all of it or nothing, and answers with lines.
//!
//! ```text
//! show                                  what it is and does
//! set 10.244.2.0/24 192.0.2.12:8285     a peer; any number of these and of the next in one go
//! delete 10.244.2.0/24
//! hand-over                             as show, with all descriptors; the tunnel has stopped and ends
//! stop
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::Ipv4Net;
use model::IfName;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use crate::peers::Peers;

/// Version of what is said here; a tunnel that says another one is replaced without asking it.
pub const PROTOCOL: u32 = 1;
/// The version of the program, part of what a tunnel is: another one is replaced.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// How long nobody is taken in after there were no file descriptors or no memory.
const BREATH: Duration = Duration::from_millis(100);
/// How long one side waits for the other.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of a request or an answer: 10,000 peers are half a megabyte.
const MOST: u64 = 16 << 20;
/// Descriptors handed over: two for each lane.
const DESCRIPTORS: usize = 32;

/// What a tunnel is, peers aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The program's version.
    pub version: String,
    /// The device whose packets it carries.
    pub device: IfName,
    /// Where it listens, and what it sends from.
    pub listen: SocketAddrV4,
    /// This host's address on the device.
    pub address: Ipv4Addr,
    /// The cluster's network.
    pub network: Ipv4Net,
}

/// What `show` tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// What it is.
    pub identity: Identity,
    /// Its peers.
    pub peers: Peers,
    /// What it counted.
    pub counts: BTreeMap<String, u64>,
}

/// What a client may ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// What it is and does.
    Show,
    /// Peers to be set, or with no address to be deleted.
    Peers(Vec<(Ipv4Net, Option<SocketAddrV4>)>),
    /// Stop, give all descriptors away and end.
    HandOver,
    /// Stop and end.
    Stop,
}

impl Request {
    /// Reads the lines of a request.
    ///
    /// # Errors
    /// The first line that makes no sense.
    pub fn parse(text: &str) -> Result<Request, String> {
        let alone = match text.trim_end() {
            "show" => Some(Request::Show),
            "hand-over" => Some(Request::HandOver),
            "stop" => Some(Request::Stop),
            _ => None,
        };
        if let Some(request) = alone {
            return Ok(request);
        }
        let change = |line: &str| {
            let words: Vec<&str> = line.split(' ').collect();
            let parsed = match words.as_slice() {
                ["set", net, to] => net.parse().ok().zip(to.parse().ok().map(Some)),
                ["delete", net] => net.parse().ok().map(|net| (net, None)),
                _ => None,
            };
            let parsed = parsed.filter(|(net, _): &(Ipv4Net, _)| net.trunc() == *net);
            parsed.ok_or_else(|| {
                format!("{line:?} is no request; one is for example \"set 10.244.2.0/24 192.0.2.12:8285\"")
            })
        };
        text.lines().map(change).collect::<Result<_, _>>().map(Request::Peers)
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Request::Show => f.write_str("show\n"),
            Request::HandOver => f.write_str("hand-over\n"),
            Request::Stop => f.write_str("stop\n"),
            Request::Peers(changes) => changes.iter().try_for_each(|(net, to)| match to {
                Some(to) => writeln!(f, "set {net} {to}"),
                None => writeln!(f, "delete {net}"),
            }),
        }
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Identity { version, device, listen, address, network } = &self.identity;
        writeln!(f, "tunnel {PROTOCOL}\nversion {version}\ndevice {device}\nlisten {listen}")?;
        writeln!(f, "address {address}\nnetwork {network}")?;
        self.counts.iter().try_for_each(|(name, count)| writeln!(f, "count {name} {count}"))?;
        self.peers.iter().try_for_each(|(net, to)| writeln!(f, "peer {net} {to}"))
    }
}

impl Shown {
    /// Reads an answer to `show`.
    ///
    /// # Errors
    /// Another protocol, or a line that makes no sense.
    pub fn parse(text: &str) -> Result<Shown, String> {
        let (mut fields, mut peers, mut counts) = (BTreeMap::new(), Peers::new(), BTreeMap::new());
        for line in text.lines() {
            let parsed = match line.split(' ').collect::<Vec<_>>().as_slice() {
                ["count", name, count] => {
                    count.parse().map(|n| counts.extend([((*name).to_owned(), n)])).ok()
                }
                ["peer", net, to] => {
                    let both = net.parse::<Ipv4Net>().ok().zip(to.parse::<SocketAddrV4>().ok());
                    both.map(|peer| peers.extend([peer]))
                }
                [name, value] => {
                    fields.insert((*name).to_owned(), (*value).to_owned());
                    Some(())
                }
                _ => None,
            };
            parsed.ok_or_else(|| format!("the answer {line:?} makes no sense"))?;
        }
        fn field<T: std::str::FromStr>(fields: &BTreeMap<String, String>, name: &str) -> Result<T, String> {
            let value = fields.get(name).and_then(|value| value.parse().ok());
            value.ok_or_else(|| format!("the answer does not say its {name}"))
        }
        if field::<u32>(&fields, "tunnel")? != PROTOCOL {
            return Err("it speaks another version of the protocol".to_owned());
        }
        let identity = Identity {
            version: field(&fields, "version")?,
            device: field(&fields, "device")?,
            listen: field(&fields, "listen")?,
            address: field(&fields, "address")?,
            network: field(&fields, "network")?,
        };
        Ok(Shown { identity, peers, counts })
    }
}

/// What ends a wait at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// What the tunnel needs is gone.
    Ended,
    /// Nobody can reach it at its path any more: nobody could tell it who its peers are. Whoever wants one makes one.
    Unreachable,
    /// A client is there.
    Asked,
}

/// Where a tunnel listens for requests.
#[derive(Debug)]
pub struct Place {
    listener: UnixListener,
    /// Tells of changes at the path.
    watch: OwnedFd,
    path: PathBuf,
    identity: (u64, u64),
}

impl Place {
    /// Makes the socket under another name with its mode and then renames it, so that nobody meets it half
    /// made, and the one of a tunnel before is replaced.
    ///
    /// # Errors
    /// One sentence.
    pub fn open(path: &Path) -> io::Result<Place> {
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let temporary = dir.join(format!(".tunnel.{}", std::process::id()));
        let make = || {
            if fs::symlink_metadata(path).is_ok_and(|data| !data.file_type().is_socket()) {
                return Err(io::Error::other("the path is taken by something that is no socket; remove it"));
            }
            fs::create_dir_all(dir)?;
            // Of a process with our number before a reboot.
            let _ = fs::remove_file(&temporary);
            let listener = UnixListener::bind(&temporary)?;
            fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600))?;
            fs::rename(&temporary, path)?;
            let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
            let gone = inotify::WatchFlags::ATTRIB
                | inotify::WatchFlags::DELETE_SELF
                | inotify::WatchFlags::MOVE_SELF;
            inotify::add_watch(&watch, path, gone)?;
            Ok(Place { listener, watch, path: path.to_owned(), identity: identity(path)? })
        };
        make().map_err(|error| {
            let _ = fs::remove_file(&temporary);
            io::Error::new(error.kind(), format!("open the socket {}: {error}", path.display()))
        })
    }

    /// Whether the path still leads to us.
    fn is_ours(&self) -> bool {
        identity(&self.path).is_ok_and(|now| now == self.identity)
    }

    /// Waits for a client, or for one of `needed` to say that what the tunnel needs is gone.
    pub fn wait(&self, needed: Vec<PollFd<'_>>) -> Woken {
        let mut fds = needed;
        fds.push(PollFd::new(&self.watch, PollFlags::IN));
        fds.push(PollFd::new(&self.listener, PollFlags::IN));
        loop {
            if poll(&mut fds, None).is_err() {
                continue;
            }
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            let (ours, needed) = (&ready[ready.len() - 2..], &ready[..ready.len() - 2]);
            if needed.contains(&true) {
                return Woken::Ended;
            }
            if ours[0] {
                if !self.is_ours() {
                    return Woken::Unreachable;
                }
                let _ = rustix::io::read(&self.watch, &mut [0u8; 4096]);
            }
            if ours[1] {
                return Woken::Asked;
            }
        }
    }

    /// Takes the next client; `None` if it went away.
    pub fn accept(&self) -> Option<UnixStream> {
        let Ok((stream, _)) = self.listener.accept() else {
            // Out of file descriptors or memory: whoever waits still does, so leave the machine a moment.
            std::thread::sleep(BREATH);
            return None;
        };
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        stream.set_write_timeout(Some(PATIENCE)).ok()?;
        Some(stream)
    }

    /// Takes the next client and its request; `None` if it went away.
    pub fn next(&self) -> Option<(UnixStream, Result<Request, String>)> {
        let mut stream = self.accept()?;
        let mut text = String::new();
        (&mut stream).take(MOST).read_to_string(&mut text).ok()?;
        let request = Request::parse(&text);
        Some((stream, request))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.is_ours() {
            // Somebody else may have been quicker.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|data| (data.dev(), data.ino()))
}

/// Answers a client. One that does not listen loses nothing that matters.
pub fn reply(stream: &mut UnixStream, answer: &str) {
    let _ = stream.write_all(answer.as_bytes());
}

/// Answers with descriptors beside the first bytes.
///
/// # Errors
/// The client went away: nothing was handed over.
pub fn reply_with(stream: &mut UnixStream, answer: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = vec![MaybeUninit::uninit(); SendAncillaryMessage::ScmRights(descriptors).size()];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("too many descriptors for one message"));
    }
    let bytes = answer.as_bytes();
    let sent = sendmsg(&*stream, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
    stream.write_all(&bytes[sent..])
}

fn ask(path: &Path, request: &Request) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(request.to_string().as_bytes())?;
    stream.shutdown(std::net::Shutdown::Write)?;
    Ok(stream)
}

/// Asks the tunnel at a path, and gives its answer.
///
/// # Errors
/// Nobody is there (`NotFound`, `ConnectionRefused`), or it does not answer.
pub fn request(path: &Path, request: &Request) -> io::Result<String> {
    let mut text = String::new();
    ask(path, request)?.take(MOST).read_to_string(&mut text)?;
    Ok(text)
}

/// Changes peers.
///
/// # Errors
/// As [`request`], or the tunnel's refusal.
pub fn change(path: &Path, changes: Vec<(Ipv4Net, Option<SocketAddrV4>)>) -> io::Result<()> {
    match request(path, &Request::Peers(changes))?.as_str() {
        "ok\n" => Ok(()),
        refusal => Err(io::Error::other(refusal.trim().to_owned())),
    }
}

/// Whether nobody listens there, as opposed to somebody who does not answer.
pub fn is_nobody(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// The process that listens there.
///
/// # Errors
/// Nobody does.
pub fn process(path: &Path) -> io::Result<rustix::process::Pid> {
    let stream = UnixStream::connect(path)?;
    Ok(rustix::net::sockopt::socket_peercred(&stream)?.pid)
}

/// Asks a tunnel for all it has.
///
/// # Errors
/// As [`request`].
pub fn take_over(path: &Path) -> io::Result<(Shown, Vec<OwnedFd>)> {
    let mut stream = ask(path, &Request::HandOver)?;
    let mut first = vec![0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(&stream, &mut [IoSliceMut::new(&mut first)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    first.truncate(got.bytes);
    (&mut stream).take(MOST).read_to_end(&mut first)?;
    let shown = Shown::parse(&String::from_utf8_lossy(&first)).map_err(io::Error::other)?;
    Ok((shown, descriptors))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_understood() {
        let requests = [
            ("show\n", Some(Request::Show)),
            ("hand-over", Some(Request::HandOver)),
            ("stop\n", Some(Request::Stop)),
            ("", Some(Request::Peers(Vec::new()))),
            (
                "set 10.244.2.0/24 192.0.2.12:8285\ndelete 10.244.3.0/24\n",
                Some(Request::Peers(vec![
                    ("10.244.2.0/24".parse().unwrap(), Some("192.0.2.12:8285".parse().unwrap())),
                    ("10.244.3.0/24".parse().unwrap(), None),
                ])),
            ),
            ("set 10.244.2.1/24 192.0.2.12:8285", None),
            ("set 10.244.2.0/24 192.0.2.12", None),
            ("set fd00::/64 [2001:db8::1]:8285", None),
            ("show\nstop\n", None),
            ("delete", None),
            ("go away", None),
        ];
        for (text, wanted) in requests {
            let got = Request::parse(text);
            assert_eq!(got.clone().ok(), wanted, "{text}");
            if let Ok(request) = got {
                assert_eq!(Request::parse(&request.to_string()), Ok(request));
            }
        }
        let shown = Shown {
            identity: Identity {
                version: "1.2.3".to_owned(),
                device: IfName::fixed("flannel0"),
                listen: "192.0.2.11:8285".parse().unwrap(),
                address: "10.244.1.0".parse().unwrap(),
                network: "10.244.0.0/16".parse().unwrap(),
            },
            peers: [("10.244.2.0/24".parse().unwrap(), "192.0.2.12:8285".parse().unwrap())].into(),
            counts: [("in-packets".to_owned(), 7)].into(),
        };
        assert_eq!(Shown::parse(&shown.to_string()), Ok(shown.clone()));
        for (from, to) in [
            ("tunnel 1", "tunnel 2"),
            ("device flannel0", "device"),
            ("192.0.2.12:8285", "x"),
            ("network", "net"),
        ] {
            assert!(Shown::parse(&shown.to_string().replace(from, to)).is_err(), "{from}");
        }
    }
}
