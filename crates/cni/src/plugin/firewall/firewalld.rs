//! firewalld's zones over the system bus, as much of D-Bus as three calls with two strings take
//! (D-Bus Specification 0.43, "Message Protocol", "Authentication Protocol").

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use ipnet::IpNet;
use model::cni::Error;

use crate::pod::internal;

const DAEMON: &str = "org.fedoraproject.FirewallD1";
const BUS: &str = "org.freedesktop.DBus";
const SOCKET: &str = "/run/dbus/system_bus_socket";
/// A daemon that does not answer must not keep a pod for ever.
const LIMIT: Duration = Duration::from_secs(10);
/// Longest message taken; answers here have a few hundred bytes.
const LONGEST: usize = 1 << 20;
// Message types, header fields.
const CALL: u8 = 1;
const RETURN: u8 = 2;
const ERROR: u8 = 3;
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

/// A connection to the bus on which the daemon is.
pub struct Firewalld {
    stream: UnixStream,
    serial: u32,
}

impl Firewalld {
    /// Connects; `None` if there is no bus, or no daemon on it.
    ///
    /// # Errors
    /// The bus refuses us.
    pub fn connect() -> Result<Option<Firewalld>, Error> {
        let given = std::env::var("DBUS_SYSTEM_BUS_ADDRESS").unwrap_or_default();
        let path = given.split(';').find_map(|a| a.strip_prefix("unix:path=")?.split(',').next());
        let Ok(stream) = UnixStream::connect(path.unwrap_or(SOCKET)) else { return Ok(None) };
        let mut bus = Firewalld { stream, serial: 0 };
        bus.greet().map_err(|e| internal(format!("connect to the system bus: {e}")))?;
        let owned = bus.bus("NameHasOwner", &[DAEMON]);
        let owned = owned.map_err(|e| internal(format!("ask the system bus for {DAEMON}: {e}")))?;
        // A boolean is four bytes.
        Ok(owned.first().is_some_and(|b| *b == 1).then_some(bus))
    }

    /// Puts an address into a zone; one that is there already is fine.
    ///
    /// # Errors
    /// The daemon's refusal.
    pub fn add(&mut self, zone: &str, address: IpNet) -> Result<(), Error> {
        match self.zone("addSource", zone, address) {
            Err(e) if !e.contains("ZONE_ALREADY_SET") => {
                Err(internal(format!("failed to add the address {address} to {zone} zone: {e}")))
            }
            _ => Ok(()),
        }
    }

    /// Takes an address out of a zone, if it is there.
    pub fn remove(&mut self, zone: &str, address: IpNet) {
        let _ = self.zone("removeSource", zone, address);
    }

    /// Fails unless an address is in a zone.
    ///
    /// # Errors
    /// As said.
    pub fn check(&mut self, zone: &str, address: IpNet) -> Result<(), Error> {
        let failed = || internal(format!("failed to find the address {address} in {zone} zone"));
        let found = self.zone("querySource", zone, address).map_err(|_| failed())?;
        if found.first().is_some_and(|b| *b == 1) { Ok(()) } else { Err(failed()) }
    }

    fn zone(&mut self, member: &str, zone: &str, address: IpNet) -> Result<Vec<u8>, String> {
        let interface = format!("{DAEMON}.zone");
        let address = address.to_string();
        self.call(DAEMON, "/org/fedoraproject/FirewallD1", &interface, member, &[zone, &address])
    }

    fn bus(&mut self, member: &str, args: &[&str]) -> Result<Vec<u8>, String> {
        self.call(BUS, "/org/freedesktop/DBus", BUS, member, args)
    }

    /// "EXTERNAL": the bus takes who we are from the socket.
    fn greet(&mut self) -> Result<(), String> {
        let text = |e: std::io::Error| e.to_string();
        self.stream.set_read_timeout(Some(LIMIT)).map_err(text)?;
        self.stream.set_write_timeout(Some(LIMIT)).map_err(text)?;
        let uid = std::fs::metadata("/proc/self").map_err(text)?.uid().to_string();
        let hex = uid.bytes().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        self.stream.write_all(format!("\0AUTH EXTERNAL {hex}\r\n").as_bytes()).map_err(text)?;
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") && line.len() < 512 {
            let mut byte = [0];
            self.stream.read_exact(&mut byte).map_err(text)?;
            line.push(byte[0]);
        }
        if !line.starts_with(b"OK ") {
            return Err(String::from_utf8_lossy(&line).trim().to_owned());
        }
        self.stream.write_all(b"BEGIN\r\n").map_err(text)?;
        self.bus("Hello", &[]).map(|_| ())
    }

    /// The body of the answer.
    fn call(
        &mut self,
        to: &str,
        path: &str,
        interface: &str,
        member: &str,
        args: &[&str],
    ) -> Result<Vec<u8>, String> {
        self.serial += 1;
        let message = encode(self.serial, to, path, interface, member, args);
        self.stream.write_all(&message).map_err(|e| e.to_string())?;
        loop {
            let answer = self.receive()?;
            // Signals, such as that of our own name, come in between.
            if answer.reply_to != Some(self.serial) {
                continue;
            }
            return match answer.kind {
                RETURN => Ok(answer.body),
                _ => {
                    let text = string(&answer.body, 0).unwrap_or_default();
                    Err(format!("{}: {text}", answer.error.unwrap_or_default()))
                }
            };
        }
    }

    fn receive(&mut self) -> Result<Answer, String> {
        let mut take = |length: usize| {
            let mut bytes = vec![0; length];
            self.stream.read_exact(&mut bytes).map(|()| bytes).map_err(|e| e.to_string())
        };
        let head = take(16)?;
        let bad = || "the bus sent what is no message of D-Bus".to_owned();
        if head[0] != b'l' {
            return Err(bad());
        }
        let size =
            |at: usize| number(&head, at).map(|n| n as usize).filter(|n| *n <= LONGEST).ok_or_else(bad);
        let (body, fields) = (size(4)?, size(12)?);
        let rest = take(fields.next_multiple_of(8) + body)?;
        let mut answer = Answer {
            kind: head[1],
            reply_to: None,
            error: None,
            body: rest[fields.next_multiple_of(8)..].to_vec(),
        };
        answer.read_fields(&rest[..fields]);
        Ok(answer)
    }
}

/// A message that came.
struct Answer {
    kind: u8,
    reply_to: Option<u32>,
    error: Option<String>,
    body: Vec<u8>,
}

impl Answer {
    /// An array of a code and a variant each, begun at a multiple of eight.
    fn read_fields(&mut self, bytes: &[u8]) {
        let mut at = 0_usize;
        while let (Some(code), Some(kind)) = (bytes.get(at), bytes.get(at + 2)) {
            // Code, length of the signature, signature, NUL.
            at += 4;
            match kind {
                b'u' => {
                    if *code == REPLY_SERIAL {
                        self.reply_to = number(bytes, at);
                    }
                    at += 4;
                }
                b's' | b'o' => {
                    let Some(text) = string(bytes, at) else { return };
                    at += 4 + text.len() + 1;
                    if *code == ERROR_NAME {
                        self.error = Some(text);
                    }
                }
                b'g' => at += bytes.get(at).map_or(0, |n| usize::from(*n)) + 2,
                _ => return,
            }
            at = at.next_multiple_of(8);
        }
        if self.kind == ERROR && self.error.is_none() {
            self.error = Some("error".to_owned());
        }
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn string(bytes: &[u8], at: usize) -> Option<String> {
    let length = number(bytes, at)? as usize;
    Some(String::from_utf8_lossy(bytes.get(at + 4..at.checked_add(4 + length)?)?).into_owned())
}

fn pad(bytes: &mut Vec<u8>, to: usize) {
    bytes.resize(bytes.len().next_multiple_of(to), 0);
}

fn put(bytes: &mut Vec<u8>, text: &str) {
    pad(bytes, 4);
    bytes.extend((text.len() as u32).to_le_bytes());
    bytes.extend(text.as_bytes());
    bytes.push(0);
}

/// A call whose arguments are strings.
fn encode(serial: u32, to: &str, path: &str, interface: &str, member: &str, args: &[&str]) -> Vec<u8> {
    let mut body = Vec::new();
    args.iter().for_each(|arg| put(&mut body, arg));
    let mut fields = Vec::new();
    for (code, kind, text) in
        [(PATH, b'o', path), (INTERFACE, b's', interface), (MEMBER, b's', member), (DESTINATION, b's', to)]
    {
        pad(&mut fields, 8);
        fields.extend([code, 1, kind, 0]);
        put(&mut fields, text);
    }
    if !args.is_empty() {
        pad(&mut fields, 8);
        fields.extend([SIGNATURE, 1, b'g', 0, args.len() as u8]);
        fields.extend(args.iter().map(|_| b's'));
        fields.push(0);
    }
    let mut message = vec![b'l', CALL, 0, 1];
    message.extend((body.len() as u32).to_le_bytes());
    message.extend(serial.to_le_bytes());
    message.extend((fields.len() as u32).to_le_bytes());
    message.extend(fields);
    pad(&mut message, 8);
    message.extend(body);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_laid_out_as_specified() {
        let bytes = encode(7, "a.b", "/p", "i.f", "M", &["x", "yz"]);
        let length = number(&bytes, 12).unwrap() as usize;
        let body = (16 + length).next_multiple_of(8);
        assert_eq!(&bytes[..4], &[b'l', CALL, 0, 1]);
        assert_eq!((number(&bytes, 4), number(&bytes, 8)), (Some(15), Some(7)));
        assert_eq!(bytes.len(), body + 15);
        assert_eq!(&bytes[16..27], b"\x01\x01o\0\x02\0\0\0/p\0");
        assert_eq!(string(&bytes[body..], 0).as_deref(), Some("x"));
        assert_eq!(string(&bytes[body..], 8).as_deref(), Some("yz"));
    }

    #[test]
    fn an_error_is_read() {
        // Reply serial 7, error name "e.x", signature "s".
        let fields = b"\x05\x01u\0\x07\0\0\0\x04\x01s\0\x03\0\0\0e.x\0\0\0\0\0\x08\x01g\0\x01s\0";
        let mut answer = Answer { kind: ERROR, reply_to: None, error: None, body: Vec::new() };
        answer.read_fields(fields);
        assert_eq!((answer.reply_to, answer.error.as_deref()), (Some(7), Some("e.x")));
        for cut in 0..fields.len() {
            answer.read_fields(&fields[..cut]);
        }
    }
}
