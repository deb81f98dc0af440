//! The process of a tunnel, and its command line (`loden tunnel wireguard`).

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use model::IfName;
use model::codec::wg_uapi::{self, Change, Request};
use rustix::event::{PollFd, PollFlags};

use super::device::Device;
use super::relay::{Port, Relay, Shared};
use crate::control::{Place, Woken};
use crate::relay::lanes_here;
use crate::run::{leave_pipes, leave_session};
use crate::tun;

const USAGE: &str = "\
usage: loden tunnel wireguard DEVICE [--socket PATH] [--lanes N] [--detach]

WireGuard in user space, for kernels without it. The agent starts it, keeps its key, port and peers and repairs it;
it goes on without the agent. DEVICE is a TUN device that is there: ip tuntap add NAME mode tun multi_queue vnet_hdr
It is configured and shown with `wg`. It ends when the device or the socket is deleted.

  --socket   where it is controlled (/var/run/wireguard/DEVICE.sock)
  --lanes    queues, each with a socket and two threads (half the processors)
  --detach   leave the session and standard input and output once it works
";

/// Bytes of a request: 10,000 peers are some three megabytes.
const MOST: usize = 64 << 20;

/// What the process shall be.
struct Options {
    device: IfName,
    socket: PathBuf,
    lanes: usize,
    detach: bool,
}

/// Where `wg` looks for a device.
pub fn usual_socket(device: IfName) -> PathBuf {
    PathBuf::from(format!("/var/run/wireguard/{device}.sock"))
}

/// The words that start it, detached.
pub fn words(device: IfName, socket: &Path) -> Vec<String> {
    let socket = format!("--socket={}", socket.display());
    let device = device.to_string();
    ["tunnel", "wireguard", device.as_str(), socket.as_str(), "--detach"].map(str::to_owned).into()
}

impl Options {
    fn read(words: &[String]) -> Result<Options, String> {
        let (mut device, mut socket, mut lanes, mut detach) = (None, None, lanes_here(), false);
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let (name, given) = match word.split_once('=') {
                Some((name, value)) if name.starts_with("--") => (name, Some(value)),
                _ => (word.as_str(), None),
            };
            let mut value = || {
                let value = given.or_else(|| words.next().map(String::as_str));
                value.ok_or_else(|| format!("{name} needs a value"))
            };
            match name {
                "--socket" => socket = Some(PathBuf::from(value()?)),
                "--lanes" => {
                    let text = value()?;
                    let number = text.parse().ok().filter(|number| (1..=16).contains(number));
                    lanes = number.ok_or_else(|| format!("--lanes {text} is not between 1 and 16"))?;
                }
                "--detach" => detach = true,
                _ if name.starts_with('-') => return Err(format!("there is no option {name}")),
                _ if device.is_none() => device = Some(IfName::new(name).map_err(|e| e.to_string())?),
                _ => return Err(format!("{name:?} is one word too many")),
            }
        }
        let device = device.ok_or("the device is missing")?;
        Ok(Options { device, socket: socket.unwrap_or_else(|| usual_socket(device)), lanes, detach })
    }
}

/// Runs the command; gives the exit status.
pub fn main(words: &[String]) -> u8 {
    let complain = |text: &str| drop(io::stderr().lock().write_all(text.as_bytes()));
    if let [word] = words
        && ["-h", "-help", "--help", "help"].contains(&word.as_str())
    {
        drop(io::stdout().lock().write_all(USAGE.as_bytes()));
        return 0;
    }
    let options = match Options::read(words) {
        Ok(options) => options,
        Err(error) => {
            complain(&format!("loden tunnel wireguard: {error}\n\n{USAGE}"));
            return 2;
        }
    };
    match run(&options) {
        Ok(()) => 0,
        Err(error) => {
            complain(&format!("{error}\n"));
            1
        }
    }
}

fn run(options: &Options) -> io::Result<()> {
    if options.detach {
        leave_session()?;
    }
    let open = || tun::Queue::open(options.device).map(Arc::new);
    let queues = (0..options.lanes).map(|_| open()).collect::<io::Result<Vec<_>>>()?;
    let place = Place::open(&options.socket)?;
    // Its own path is what it is found by; nothing else of the file system is needed any more.
    let device = Device::new();
    let shared = Shared::new(options.device, &device)?;
    let mut tunnel = Tunnel { shared, device, queues, relay: None };
    if options.detach {
        leave_pipes()?;
    }
    tunnel.serve(&place)
}

struct Tunnel {
    shared: Arc<Shared>,
    device: Device,
    queues: Vec<Arc<tun::Queue>>,
    relay: Option<Relay>,
}

impl Tunnel {
    /// Answers until the device is gone, or nobody can reach it any more.
    fn serve(&mut self, place: &Place) -> io::Result<()> {
        loop {
            let mut needed = vec![PollFd::from_borrowed_fd(self.shared.ended(), PollFlags::IN)];
            // Without threads nobody else sees the device go.
            let device = self.queues.first().filter(|_| self.relay.is_none());
            needed.extend(device.map(|queue| PollFd::from_borrowed_fd(queue_fd(queue), PollFlags::empty())));
            match place.wait(needed) {
                Woken::Ended => return Err(io::Error::other("the device is gone")),
                Woken::Unreachable => return Ok(()),
                Woken::Asked => {
                    if let Some(client) = place.accept() {
                        // One that goes away or says nothing for seconds loses nothing that matters.
                        let _ = self.talk(client);
                    }
                }
            }
        }
    }

    fn talk(&mut self, mut client: UnixStream) -> io::Result<()> {
        let mut text = Vec::new();
        let mut some = [0; 65_536];
        loop {
            while let Some(end) = find(&text) {
                let rest = text.split_off(end);
                let request = std::mem::replace(&mut text, rest);
                let answer = self.answer(&String::from_utf8_lossy(&request));
                client.write_all(answer.as_bytes())?;
            }
            match client.read(&mut some)? {
                0 => return Ok(()),
                _ if text.len() > MOST => return Err(io::ErrorKind::InvalidData.into()),
                count => text.extend_from_slice(&some[..count]),
            }
        }
    }

    fn answer(&mut self, text: &str) -> String {
        match Request::parse(text) {
            Ok(Request::Get) => self.device.show().to_string(),
            Ok(Request::Set(change)) => {
                let done = self.change(&change);
                let errno = |error: io::Error| error.raw_os_error().unwrap_or(libc::EIO);
                wg_uapi::answer(done.map_or_else(errno, |()| 0))
            }
            Err(_) => wg_uapi::answer(libc::EINVAL),
        }
    }

    /// The port first: if it cannot be had, nothing is changed.
    fn change(&mut self, change: &Change) -> io::Result<()> {
        let port = change.port.filter(|port| *port != self.device.port() || self.relay.is_none());
        if let Some(port) = port {
            let (port, sockets) = Port::bind(port, self.queues.len())?;
            // The old threads end first: two of them would take packets from each other.
            self.relay = None;
            self.relay = Some(Relay::start(&self.shared, &self.queues, sockets)?);
            self.device.set_port(port);
        }
        self.shared.set_view(self.device.change(change));
        Ok(())
    }
}

fn queue_fd(queue: &tun::Queue) -> std::os::fd::BorrowedFd<'_> {
    std::os::fd::AsFd::as_fd(queue)
}

/// Where the first request ends: behind an empty line.
fn find(text: &[u8]) -> Option<usize> {
    text.windows(2).position(|two| two == b"\n\n").map(|at| at + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read() {
        let read =
            |text: &str| Options::read(&text.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        let plain = read("flannel-wg").unwrap();
        assert_eq!(plain.socket, Path::new("/var/run/wireguard/flannel-wg.sock"));
        assert!(!plain.detach);
        let device = IfName::fixed("flannel-wg");
        let own = Options::read(&words(device, Path::new("/x/y"))[2..]).unwrap();
        assert!(own.detach && own.device == device && own.socket == Path::new("/x/y"));
        for (text, fault) in [
            ("", "the device is missing"),
            ("a b", "one word too many"),
            ("a --lanes 0", "not between 1 and 16"),
            ("a --lanes", "needs a value"),
            ("a --mtu=1", "no option --mtu"),
            ("waytoolongforadevice", "waytoolongforadevice"),
        ] {
            let said = read(text).err().unwrap();
            assert!(said.contains(fault), "{text}: {said}");
        }
    }
}
