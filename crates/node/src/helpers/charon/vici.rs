//! A conversation with charon over its socket: every wait has an end (F-110).

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::wire::{Item, MOST, Packet, text};

/// Where charon listens, as everywhere.
pub const SOCKET: &str = "/var/run/charon.vici";
/// Longer than this charon is stuck. Its answers are immediate: nothing we ask for waits for a peer.
const LIMIT: Duration = Duration::from_secs(10);

/// An open connection. After an error it is of no more use.
pub struct Vici {
    stream: UnixStream,
}

impl Vici {
    /// Connects, and hears whether somebody answers.
    ///
    /// # Errors
    /// Nobody listens or answers.
    pub fn open(path: &Path) -> io::Result<Vici> {
        Vici::open_within(path, LIMIT)
    }

    fn open_within(path: &Path, limit: Duration) -> io::Result<Vici> {
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        for timeout in [Timeout::Send, Timeout::Recv] {
            set_socket_timeout(&socket, timeout, Some(limit))?;
        }
        // Connecting waits as well, for one that accepts nobody any more (unix(7)).
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        let mut vici = Vici { stream: UnixStream::from(socket) };
        vici.ask("version", Vec::new())?;
        Ok(vici)
    }

    /// A command; gives its answer.
    ///
    /// # Errors
    /// The connection is broken, or charon has no such command.
    pub fn ask(&mut self, command: &str, items: Vec<Item>) -> io::Result<Vec<Item>> {
        self.send(&Packet::Request(command.to_owned(), items))?;
        loop {
            match self.receive()? {
                Packet::Response(items) => return Ok(items),
                Packet::Event(..) => {}
                _ => return Err(io::Error::other(format!("charon does not know the command {command}"))),
            }
        }
    }

    /// A command that says whether it could be done. The inner error is charon's reason.
    ///
    /// # Errors
    /// As [`Vici::ask`].
    pub fn order(&mut self, command: &str, items: Vec<Item>) -> io::Result<Result<(), String>> {
        let answer = self.ask(command, items)?;
        Ok(match text(&answer, "success") {
            Some("yes") => Ok(()),
            _ => Err(text(&answer, "errmsg").unwrap_or("it gave no reason").to_owned()),
        })
    }

    /// A command whose answer comes as events; gives their contents.
    ///
    /// # Errors
    /// As [`Vici::ask`].
    pub fn list(&mut self, command: &str, event: &str) -> io::Result<Vec<Item>> {
        self.register(event, true)?;
        self.send(&Packet::Request(command.to_owned(), Vec::new()))?;
        let mut found = Vec::new();
        loop {
            match self.receive()? {
                Packet::Event(name, items) if name == event => found.extend(items),
                Packet::Event(..) => {}
                Packet::Response(_) => break,
                _ => return Err(io::Error::other(format!("charon does not know the command {command}"))),
            }
        }
        self.register(event, false)?;
        Ok(found)
    }

    fn register(&mut self, event: &str, on: bool) -> io::Result<()> {
        self.send(&Packet::Register(event.to_owned(), on))?;
        loop {
            match self.receive()? {
                Packet::Confirm => return Ok(()),
                Packet::Event(..) => {}
                _ => return Err(io::Error::other(format!("charon does not know the event {event}"))),
            }
        }
    }

    fn send(&mut self, packet: &Packet) -> io::Result<()> {
        self.stream.write_all(&packet.encode()?)
    }

    fn receive(&mut self) -> io::Result<Packet> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length)?;
        let length = u32::from_be_bytes(length) as usize;
        if length > MOST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "an answer of impossible length"));
        }
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes)?;
        Packet::decode(&bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// Waits of a stopped charon add up: a full queue of its socket must not hold us for ever.
    #[test]
    fn connecting_to_a_full_queue_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vici");
        let listener = UnixListener::bind(&path).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let _waits = UnixStream::connect(&path).unwrap();
        let error = Vici::open_within(&path, Duration::from_millis(100)).err().expect("nobody accepts");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}");
    }
}
