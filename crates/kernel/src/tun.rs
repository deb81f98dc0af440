//! Tap devices: made by `ioctl` on `/dev/net/tun` (kernel documentation, networking/tuntap), as rtnetlink
//! cannot make them.

use std::fs::File;
use std::os::fd::AsFd;

use model::IfName;

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
        // IFF_… of linux/if_tun.h
        const TAP: i16 = 0x0002;
        const MULTI_QUEUE: i16 = 0x0100;
        const NO_PI: i16 = 0x1000;
        const VNET_HDR: i16 = 0x4000;
        const EXCLUSIVE: u16 = 0x8000;
        let action = "open /dev/net/tun";
        let tun = File::options().read(true).write(true).open("/dev/net/tun");
        let tun = tun.map_err(|source| Error::Socket { action, source })?;
        let queues = if self.multi_queue { MULTI_QUEUE } else { 0 };
        let flags = TAP | NO_PI | VNET_HDR | queues | EXCLUSIVE as i16;
        sys::make_tap(tun.as_fd(), name.as_str(), flags, self.owner, self.group)
            .map_err(|e| Error::Kernel { action: format!("make tap device {name}"), errno: Errno::of(&e) })
    }
}
