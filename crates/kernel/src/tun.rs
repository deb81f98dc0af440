//! TAP and TUN devices: made by `ioctl` on `/dev/net/tun` (kernel documentation, networking/tuntap), as rtnetlink
//! cannot make them.

use std::fs::File;
use std::os::fd::AsFd;

use model::IfName;
use plan::state::Tun;

use crate::{Errno, Error, sys};

/// A persistent tap device to be made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tap {
    /// Several queues.
    pub multi_queue: bool,
    /// User id that may open it without privileges.
    pub owner: Option<u32>,
    /// Group id that may open it.
    pub group: Option<u32>,
}

impl Tap {
    /// Makes the device in the namespace of the calling thread, without packet information and with
    /// virtio headers, as virtual machines expect.
    ///
    /// # Errors
    /// The kernel lacks tun, or its refusal: `EBUSY` if the name is taken.
    pub fn create(&self, name: IfName) -> Result<(), Error> {
        make(self.multi_queue, libc::IFF_TAP, name, self.owner, self.group)
    }
}

/// Makes a TUN device of our kind in the namespace of the calling thread; the process that attaches to it says
/// which offloads it can do.
///
/// # Errors
/// As [`Tap::create`].
pub fn create(tun: Tun, name: IfName) -> Result<(), Error> {
    let kind = if tun.tap { libc::IFF_TAP } else { libc::IFF_TUN };
    make(tun.multi_queue, kind, name, None, None)
}

fn make(
    multi_queue: bool,
    kind: i32,
    name: IfName,
    owner: Option<u32>,
    group: Option<u32>,
) -> Result<(), Error> {
    // linux/if_tun.h
    const EXCLUSIVE: u16 = 0x8000;
    let action = "open /dev/net/tun";
    let tun = File::options().read(true).write(true).open("/dev/net/tun");
    let tun = tun.map_err(|source| Error::Socket { action, source })?;
    let queues = if multi_queue { libc::IFF_MULTI_QUEUE } else { 0 };
    let flags = (kind | libc::IFF_NO_PI | libc::IFF_VNET_HDR | queues) as i16 | EXCLUSIVE as i16;
    sys::make_tap(tun.as_fd(), name.as_str(), flags, owner, group)
        .map_err(|e| Error::Kernel { action: format!("make device {name}"), errno: Errno::of(&e) })
}
