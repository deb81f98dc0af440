//! Deleting a device without sleeping over the kernel's grace periods.

use std::time::{Duration, Instant};

use super::{Rtnl, is_absent};
use crate::Error;
use crate::link;
use crate::netlink::{Received, Reply, outcome};
use crate::nft::Nft;

/// `RTNLGRP_LINK`
const GROUP_LINK: u32 = 1;
/// How long the kernel may take to put the device out of sight before we ask it again ourselves.
const PATIENCE: Duration = Duration::from_secs(2);

/// A deletion under way.
#[derive(Debug)]
pub struct Deleting {
    index: u32,
    sequence: u32,
}

impl Rtnl {
    /// Begins to delete a device and returns at once; [`Rtnl::await_deleted`] tells when it is gone. The
    /// kernel answers a deletion only after grace periods of 10 to 30 ms, though the device is out of
    /// sight after one or two: a child process sleeps over them in our place (decision 0022). It also does
    /// what [`Nft::leave`] would do.
    ///
    /// # Errors
    /// No process can be made; nothing has happened.
    pub fn start_deleting(&mut self, index: u32, rules: Option<&mut Nft>) -> Result<Deleting, Error> {
        let failed = |errno| Error::kernel(format!("delete device {index}"))(errno);
        self.socket.join(GROUP_LINK).map_err(failed)?;
        let also = rules.as_deref().map(Nft::to_be_left);
        let sequence = self.socket.send_from_child(&link::delete(index), also).map_err(failed)?;
        if let Some(rules) = rules {
            rules.is_left = true;
        }
        Ok(Deleting { index, sequence })
    }

    /// Waits until the device is out of sight of everybody; false if it was not there.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn await_deleted(&mut self, deleting: Deleting) -> Result<bool, Error> {
        let Deleting { index, sequence } = deleting;
        let failed = |errno| Error::kernel(format!("delete device {index}"))(errno);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || !self.socket.readable(left).unwrap_or(false) {
                break;
            }
            let data = match self.socket.receive(false).map_err(failed)? {
                Received::Data(data) => data,
                Received::Nothing => continue,
                Received::Overrun => break,
            };
            for reply in Reply::split(data) {
                if reply.sequence == sequence && reply.kind == libc::NLMSG_ERROR as u16 {
                    return match outcome(&reply) {
                        Ok(()) => Ok(true),
                        Err(errno) if is_absent(errno.code) => Ok(false),
                        Err(errno) => Err(failed(errno)),
                    };
                }
                // A bridge tells of a port that leaves it in the same way, with its own family.
                let gone = reply.kind == libc::RTM_DELLINK && reply.field(0) == Some([libc::AF_UNSPEC as u8]);
                if gone && reply.field(4).map(u32::from_ne_bytes) == Some(index) {
                    return Ok(true);
                }
            }
        }
        // The child was killed, or the news was lost.
        self.delete_link(index)
    }
}
