//! The header a TUN device with `IFF_VNET_HDR` puts before each packet (virtio 1.2, 5.1.6, `virtio_net_hdr`), in
//! the machine's byte order.

/// Bytes of it.
pub const LENGTH: usize = 10;

/// The checksum is to be completed.
pub const NEEDS_CHECKSUM: u8 = 1;
/// The checksum was found right.
pub const CHECKED: u8 = 2;

/// What a packet is to be cut into.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gso {
    /// It is one packet.
    #[default]
    None,
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP datagrams of one size, over either.
    Udp,
    /// Something we have not asked for.
    Other(u8),
}

impl Gso {
    /// Explicit congestion notification: the first segment alone says that the window was reduced.
    const ECN: u8 = 0x80;

    fn number(self) -> u8 {
        match self {
            Gso::None => 0,
            Gso::Tcp4 => 1,
            Gso::Tcp6 => 4,
            Gso::Udp => 5,
            Gso::Other(number) => number,
        }
    }

    fn from(number: u8) -> Gso {
        match number & !Gso::ECN {
            0 => Gso::None,
            1 => Gso::Tcp4,
            4 => Gso::Tcp6,
            5 => Gso::Udp,
            _ => Gso::Other(number),
        }
    }
}

/// The header's fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vnet {
    /// [`NEEDS_CHECKSUM`] or [`CHECKED`].
    pub flags: u8,
    /// What the packet is to be cut into.
    pub gso: Gso,
    /// Bytes of all headers; a hint.
    pub headers: u16,
    /// Bytes of payload in each segment but the last.
    pub size: u16,
    /// From here on the checksum counts.
    pub start: u16,
    /// There, from `start` on, it is to be put.
    pub offset: u16,
}

impl Vnet {
    /// Takes the header off what was read; `None` if there is less.
    pub fn read(data: &[u8]) -> Option<Vnet> {
        let word = |at: usize| u16::from_ne_bytes([data[at], data[at + 1]]);
        (data.len() >= LENGTH).then(|| Vnet {
            flags: data[0],
            gso: Gso::from(data[1]),
            headers: word(2),
            size: word(4),
            start: word(6),
            offset: word(8),
        })
    }

    /// The header's bytes.
    pub fn bytes(&self) -> [u8; LENGTH] {
        let mut bytes = [self.flags, self.gso.number(), 0, 0, 0, 0, 0, 0, 0, 0];
        for (at, word) in [(2, self.headers), (4, self.size), (6, self.start), (8, self.offset)] {
            bytes[at..at + 2].copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }
}
