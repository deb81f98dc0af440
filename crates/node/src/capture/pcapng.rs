//! The file: pcapng (draft-ietf-opsawg-pcapng, sections 4.1 to 4.3), one section in the byte order of this machine.
//! Pure.

/// `LINKTYPE_ETHERNET`
const ETHERNET: u16 = 1;
/// Bytes of a record that are kept at most.
const SNAP: u32 = 0x40000;

const SECTION: u32 = 0x0a0d_0d0a;
const MAGIC: u32 = 0x1a2b_3c4d;
const INTERFACE: u32 = 1;
const PACKET: u32 = 6;

const OPT_COMMENT: u16 = 1;
const SHB_USERAPPL: u16 = 4;
const IF_NAME: u16 = 2;
const IF_DESCRIPTION: u16 = 3;
const IF_TSRESOL: u16 = 9;
const EPB_FLAGS: u16 = 2;

/// The Ethernet header for packets of devices that have none: zeros, and the protocol.
pub fn header(packet: &[u8]) -> [u8; 14] {
    let mut header = [0; 14];
    let kind: u16 = if packet.first().is_some_and(|first| first >> 4 == 6) { 0x86dd } else { 0x0800 };
    header[12..].copy_from_slice(&kind.to_be_bytes());
    header
}

/// The beginning of a file.
pub fn section() -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(MAGIC.to_ne_bytes());
    body.extend(1u16.to_ne_bytes());
    body.extend(0u16.to_ne_bytes());
    // The section's length is not known.
    body.extend(u64::MAX.to_ne_bytes());
    option(&mut body, SHB_USERAPPL, b"loden capture");
    end_of_options(&mut body);
    block(SECTION, &body)
}

/// A device. Its number is its position among those before.
pub fn interface(name: &str, description: &str) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(ETHERNET.to_ne_bytes());
    body.extend(0u16.to_ne_bytes());
    body.extend(SNAP.to_ne_bytes());
    option(&mut body, IF_NAME, name.as_bytes());
    option(&mut body, IF_DESCRIPTION, description.as_bytes());
    // 10^-9 s
    option(&mut body, IF_TSRESOL, &[9]);
    end_of_options(&mut body);
    block(INTERFACE, &body)
}

/// A record.
pub struct Record<'a> {
    /// Number of the device.
    pub interface: u32,
    /// Nanoseconds since 1970.
    pub at_ns: u64,
    /// The device was sending it.
    pub outgoing: bool,
    /// The frame.
    pub frame: &'a [u8],
    /// Text beside it.
    pub comment: &'a str,
}

/// A record's block.
pub fn record(record: &Record<'_>) -> Vec<u8> {
    let kept = record.frame.get(..SNAP as usize).unwrap_or(record.frame);
    let mut body = Vec::with_capacity(kept.len() + 64);
    body.extend(record.interface.to_ne_bytes());
    body.extend(((record.at_ns >> 32) as u32).to_ne_bytes());
    body.extend((record.at_ns as u32).to_ne_bytes());
    body.extend((kept.len() as u32).to_ne_bytes());
    body.extend((record.frame.len() as u32).to_ne_bytes());
    body.extend(kept);
    pad(&mut body);
    option(&mut body, OPT_COMMENT, record.comment.as_bytes());
    let way: u32 = if record.outgoing { 2 } else { 1 };
    option(&mut body, EPB_FLAGS, &way.to_ne_bytes());
    end_of_options(&mut body);
    block(PACKET, &body)
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = value.get(..usize::from(u16::MAX)).unwrap_or(value);
    body.extend(code.to_ne_bytes());
    body.extend((value.len() as u16).to_ne_bytes());
    body.extend(value);
    pad(body);
}

fn end_of_options(body: &mut Vec<u8>) {
    body.extend([0; 4]);
}

fn block(kind: u32, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u32 + 12).to_ne_bytes();
    [&kind.to_ne_bytes(), &length, body, &length].concat()
}
