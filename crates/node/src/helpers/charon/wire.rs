//! VICI on the wire, strongSwan's control protocol (its `README.md` in `src/libcharon/plugins/vici`): messages
//! as trees, packets around them. Bytes in, values out, no I/O.

use std::io;

/// Longest packet taken: charon's own limit.
pub const MOST: usize = 512 * 1024;

/// One element of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// `name { … }`
    Section(String, Vec<Item>),
    /// `name = value`
    Value(String, Vec<u8>),
    /// `name = [a, b]`
    List(String, Vec<Vec<u8>>),
}

impl Item {
    /// `name = value`
    pub fn value(name: &str, value: impl AsRef<[u8]>) -> Item {
        Item::Value(name.to_owned(), value.as_ref().to_vec())
    }

    /// `name = [value]`
    pub fn list(name: &str, value: impl AsRef<[u8]>) -> Item {
        Item::List(name.to_owned(), vec![value.as_ref().to_vec()])
    }

    /// `name { … }`
    pub fn section(name: &str, items: Vec<Item>) -> Item {
        Item::Section(name.to_owned(), items)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Item::Section(name, _) | Item::Value(name, _) | Item::List(name, _) => name,
        }
    }
}

/// The text of a value of this name.
pub fn text<'a>(items: &'a [Item], name: &str) -> Option<&'a str> {
    items.iter().find_map(|item| match item {
        Item::Value(n, value) if n == name => std::str::from_utf8(value).ok(),
        _ => None,
    })
}

/// What is in a section of this name.
pub fn section<'a>(items: &'a [Item], name: &str) -> &'a [Item] {
    let found = items.iter().find_map(|item| match item {
        Item::Section(n, inside) if n == name => Some(inside.as_slice()),
        _ => None,
    });
    found.unwrap_or_default()
}

/// A packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    /// A command.
    Request(String, Vec<Item>),
    /// Its answer.
    Response(Vec<Item>),
    /// There is no such command.
    UnknownCommand,
    /// Events of this name are wanted from now on, or no longer.
    Register(String, bool),
    /// Understood.
    Confirm,
    /// There is no such event.
    UnknownEvent,
    /// Something happened, or is part of a long answer.
    Event(String, Vec<Item>),
}

const REQUEST: u8 = 0;
const RESPONSE: u8 = 1;
const UNKNOWN_COMMAND: u8 = 2;
const REGISTER: u8 = 3;
const UNREGISTER: u8 = 4;
const CONFIRM: u8 = 5;
const UNKNOWN_EVENT: u8 = 6;
const EVENT: u8 = 7;

const SECTION_START: u8 = 1;
const SECTION_END: u8 = 2;
const KEY_VALUE: u8 = 3;
const LIST_START: u8 = 4;
const LIST_ITEM: u8 = 5;
const LIST_END: u8 = 6;

/// Sections deeper than this are nobody's.
const DEPTH: usize = 16;

impl Packet {
    /// Its bytes, with the length in front.
    ///
    /// # Errors
    /// A name longer than 255 bytes, a value longer than 65,535, or all of it longer than [`MOST`].
    pub fn encode(&self) -> io::Result<Vec<u8>> {
        let mut out = vec![0; 4];
        let named = |out: &mut Vec<u8>, kind, name: &str| {
            out.push(kind);
            put_name(out, name)
        };
        match self {
            Packet::Request(name, items) | Packet::Event(name, items) => {
                named(&mut out, if matches!(self, Packet::Event(..)) { EVENT } else { REQUEST }, name)?;
                put_items(&mut out, items)?;
            }
            Packet::Response(items) => {
                out.push(RESPONSE);
                put_items(&mut out, items)?;
            }
            Packet::Register(name, on) => named(&mut out, if *on { REGISTER } else { UNREGISTER }, name)?,
            Packet::UnknownCommand => out.push(UNKNOWN_COMMAND),
            Packet::Confirm => out.push(CONFIRM),
            Packet::UnknownEvent => out.push(UNKNOWN_EVENT),
        }
        let length = out.len() - 4;
        if length > MOST {
            return Err(bad("a message too long for charon"));
        }
        out[..4].copy_from_slice(&(length as u32).to_be_bytes());
        Ok(out)
    }

    /// A packet from its bytes, less the length.
    ///
    /// # Errors
    /// They are none.
    pub fn decode(bytes: &[u8]) -> io::Result<Packet> {
        let mut rest = Bytes(bytes);
        let kind = rest.byte()?;
        Ok(match kind {
            REQUEST => Packet::Request(rest.name()?, items(&mut rest, 0)?),
            RESPONSE => Packet::Response(items(&mut rest, 0)?),
            UNKNOWN_COMMAND => Packet::UnknownCommand,
            REGISTER | UNREGISTER => Packet::Register(rest.name()?, kind == REGISTER),
            CONFIRM => Packet::Confirm,
            UNKNOWN_EVENT => Packet::UnknownEvent,
            EVENT => Packet::Event(rest.name()?, items(&mut rest, 0)?),
            _ => return Err(bad("a packet of an unknown kind")),
        })
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

fn put_name(out: &mut Vec<u8>, name: &str) -> io::Result<()> {
    out.push(u8::try_from(name.len()).map_err(|_| bad("a name longer than 255 bytes"))?);
    out.extend_from_slice(name.as_bytes());
    Ok(())
}

fn put_value(out: &mut Vec<u8>, value: &[u8]) -> io::Result<()> {
    let length = u16::try_from(value.len()).map_err(|_| bad("a value longer than 65535 bytes"))?;
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(value);
    Ok(())
}

fn put_items(out: &mut Vec<u8>, items: &[Item]) -> io::Result<()> {
    for item in items {
        match item {
            Item::Section(name, inside) => {
                out.push(SECTION_START);
                put_name(out, name)?;
                put_items(out, inside)?;
                out.push(SECTION_END);
            }
            Item::Value(name, value) => {
                out.push(KEY_VALUE);
                put_name(out, name)?;
                put_value(out, value)?;
            }
            Item::List(name, values) => {
                out.push(LIST_START);
                put_name(out, name)?;
                for value in values {
                    out.push(LIST_ITEM);
                    put_value(out, value)?;
                }
                out.push(LIST_END);
            }
        }
    }
    Ok(())
}

/// What is left to read.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, length: usize) -> io::Result<&'a [u8]> {
        let (taken, rest) =
            self.0.split_at_checked(length).ok_or_else(|| bad("a message that ends too early"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> io::Result<u8> {
        Ok(self.take(1)?[0])
    }

    fn name(&mut self) -> io::Result<String> {
        let length = usize::from(self.byte()?);
        Ok(String::from_utf8_lossy(self.take(length)?).into_owned())
    }

    fn value(&mut self) -> io::Result<Vec<u8>> {
        let length = usize::from(self.byte()?) << 8 | usize::from(self.byte()?);
        Ok(self.take(length)?.to_vec())
    }
}

/// The elements up to the end of the section, at depth 0 of the message.
fn items(rest: &mut Bytes<'_>, depth: usize) -> io::Result<Vec<Item>> {
    let mut found = Vec::new();
    loop {
        if depth == 0 && rest.0.is_empty() {
            return Ok(found);
        }
        match rest.byte()? {
            SECTION_START if depth < DEPTH => {
                let name = rest.name()?;
                found.push(Item::Section(name, items(rest, depth + 1)?));
            }
            SECTION_END if depth > 0 => return Ok(found),
            KEY_VALUE => {
                let name = rest.name()?;
                found.push(Item::Value(name, rest.value()?));
            }
            LIST_START => {
                let name = rest.name()?;
                let mut values = Vec::new();
                loop {
                    match rest.byte()? {
                        LIST_ITEM => values.push(rest.value()?),
                        LIST_END => break,
                        _ => return Err(bad("a list with something else in it")),
                    }
                }
                found.push(Item::List(name, values));
            }
            _ => return Err(bad("an element where none can be")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the protocol's description, and its bytes as written there.
    fn example() -> (Vec<Item>, Vec<u8>) {
        let items = vec![
            Item::value("key1", "value1"),
            Item::section(
                "section1",
                vec![
                    Item::section("sub-section", vec![Item::value("key2", "value2")]),
                    Item::List("list1".to_owned(), vec![b"item1".to_vec(), b"item2".to_vec()]),
                ],
            ),
        ];
        let mut bytes = Vec::new();
        for (kind, name, value) in [
            (3, "key1", "value1"),
            (1, "section1", ""),
            (1, "sub-section", ""),
            (3, "key2", "value2"),
            (2, "", ""),
            (4, "list1", ""),
            (5, "", "item1"),
            (5, "", "item2"),
            (6, "", ""),
            (2, "", ""),
        ] {
            bytes.push(kind);
            if !name.is_empty() {
                bytes.push(name.len() as u8);
                bytes.extend(name.bytes());
            }
            if !value.is_empty() {
                bytes.extend([0, value.len() as u8]);
                bytes.extend(value.bytes());
            }
        }
        (items, bytes)
    }

    #[test]
    fn packets_are_the_protocols() {
        let (items, bytes) = example();
        let framed = |head: &[u8]| {
            let mut all = ((head.len() + bytes.len()) as u32).to_be_bytes().to_vec();
            all.extend(head);
            all.extend(&bytes);
            all
        };
        let response = Packet::Response(items.clone());
        assert_eq!(response.encode().unwrap(), framed(&[1]));
        let event = Packet::Event("list-sa".to_owned(), items.clone());
        assert_eq!(event.encode().unwrap(), framed(b"\x07\x07list-sa"));
        for packet in [
            response,
            event,
            Packet::Request("load-conn".to_owned(), items.clone()),
            Packet::Request(String::new(), Vec::new()),
            Packet::Register("list-sa".to_owned(), true),
            Packet::Register("list-sa".to_owned(), false),
            Packet::Confirm,
            Packet::UnknownCommand,
            Packet::UnknownEvent,
        ] {
            assert_eq!(Packet::decode(&packet.encode().unwrap()[4..]).unwrap(), packet);
        }
        assert_eq!(text(&items, "key1"), Some("value1"));
        assert_eq!(text(section(section(&items, "section1"), "sub-section"), "key2"), Some("value2"));
        assert_eq!((text(&items, "list1"), section(&items, "key1")), (None, &[][..]));
    }

    #[test]
    fn what_cannot_be_said_is_refused() {
        for items in [
            vec![Item::value(&"n".repeat(256), "")],
            vec![Item::value("n", vec![0; 65_536])],
            vec![Item::value("n", vec![0; 65_535]); 9],
        ] {
            assert!(Packet::Response(items).encode().is_err());
        }
    }

    #[test]
    fn broken_bytes_are_an_error_and_nothing_worse() {
        let whole = Packet::Event("list-sa".to_owned(), example().0).encode().unwrap();
        let whole = &whole[4..];
        let mut seed: u64 = 0x4c6f_6465_6e21_7669;
        let mut random = move || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed as usize
        };
        for length in 0..whole.len() {
            let _ = Packet::decode(&whole[..length]);
        }
        for _ in 0..50_000 {
            let mut bytes = whole.to_vec();
            for _ in 0..1 + random() % 4 {
                let place = random() % bytes.len();
                bytes[place] = random() as u8;
            }
            bytes.truncate(random() % (bytes.len() + 1));
            if let Ok(packet) = Packet::decode(&bytes)
                && let Ok(again) = packet.encode()
            {
                assert_eq!(Packet::decode(&again[4..]).unwrap(), packet, "what is read can be written");
            }
        }
        let deep = [&[1u8][..], &b"\x01\x01x".repeat(100_000)].concat();
        assert!(Packet::decode(&deep).is_err());
    }
}
