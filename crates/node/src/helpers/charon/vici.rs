//! A conversation with charon over its socket: every wait has an end (F-110).

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::wire::{Item, MOST, Packet, text};

/// Where charon listens, as everywhere.
pub const SOCKET: &str = "/var/run/charon.vici";
/// Longer than this charon is stuck. Its answers are immediate: nothing we ask for waits for a peer.
const LIMIT: Duration = Duration::from_secs(20);

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
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        let mut vici = Vici { stream };
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
