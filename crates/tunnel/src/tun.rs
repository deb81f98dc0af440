//! A queue of a TUN device: trains of packets read and written in one call each.

use std::fs::File;
use std::io::{self, IoSlice, Read as _, Write as _};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;

use model::IfName;

use crate::packet::coalesce::Frame;
use crate::packet::vnet;
use crate::sys;

/// Bytes one read needs: the device's header and the longest packet.
pub const READ: usize = vnet::LENGTH + 65_535;
/// Header of the device, headers of a train, its payloads.
const PIECES: usize = 2 + 128;

/// One of a device's queues; several threads may read and write.
#[derive(Debug)]
pub struct Queue {
    file: File,
    datagrams: bool,
}

impl Queue {
    /// Opens one more queue of a device that is there (`ip tuntap add NAME mode tun multi_queue vnet_hdr`) in the
    /// namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel's refusal, with what it means.
    pub fn open(name: IfName) -> io::Result<Queue> {
        let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
        let open = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun");
        let file = open.map_err(|e| named(e, "open /dev/net/tun", "the kernel needs the module tun"))?;
        sys::tun_attach(&file, name.as_str(), flags).map_err(|e| {
            let way_out = "it has to be a TUN device with several queues and no other holder";
            named(e, &format!("attach to {name}"), way_out)
        })?;
        Queue::over(file.into())
    }

    /// A queue another process has opened.
    ///
    /// # Errors
    /// It is none.
    pub fn over(fd: OwnedFd) -> io::Result<Queue> {
        // linux/if_tun.h
        const SUMS: u32 = 0x01;
        const TRAINS: u32 = 0x02 | 0x04;
        const DATAGRAMS: u32 = 0x20 | 0x40;
        // Trains of datagrams are known to the kernel since 6.2.
        let datagrams = sys::tun_offload(fd.as_fd(), SUMS | TRAINS | DATAGRAMS).is_ok();
        if !datagrams {
            sys::tun_offload(fd.as_fd(), SUMS | TRAINS).map_err(|e| {
                named(e, "turn on the offloads of the device", "Linux 2.6.27 and later have them")
            })?;
        }
        Ok(Queue { file: fd.into(), datagrams })
    }

    /// Whether the device takes and gives trains of datagrams.
    pub fn takes_datagrams(&self) -> bool {
        self.datagrams
    }

    /// Reads what the next packet or train is, without waiting: the device's header, then the packet.
    ///
    /// # Errors
    /// `WouldBlock`, or the device is gone.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(buffer)
    }

    /// Writes a packet or a train whose pieces lie in the arena.
    ///
    /// # Errors
    /// The device is down (`EIO`) or gone (`EBADFD`).
    pub fn write(&self, frame: &Frame<'_>, arena: &[u8]) -> io::Result<()> {
        let mut parts = [IoSlice::new(&[]); PIECES];
        parts[0] = IoSlice::new(&frame.vnet);
        parts[1] = IoSlice::new(frame.head);
        let pieces = frame.pieces.iter().map(|piece: &Range<usize>| IoSlice::new(&arena[piece.clone()]));
        let count = parts[2..].iter_mut().zip(pieces).map(|(part, piece)| *part = piece).count();
        (&self.file).write_vectored(&parts[..2 + count]).map(drop)
    }

    /// Whether an error of reading or writing says that the device is gone.
    pub fn is_gone(error: &io::Error) -> bool {
        matches!(error.raw_os_error(), Some(libc::EBADFD | libc::ENODEV))
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The same error with what was tried and the way out.
pub(crate) fn named(error: io::Error, action: &str, way_out: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{action}: {error}; {way_out}"))
}
