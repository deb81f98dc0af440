//! Generic netlink (linux/genetlink.h): families have a name, and a number the kernel gives out.

use super::{Message, Reply, Socket};
use crate::Errno;

/// Length in bytes of `struct genlmsghdr`.
pub const HEADER: usize = 4;

/// A request of a family: its command and attributes after that.
pub fn message(family: u16, command: u8, flags: i32) -> Message {
    let mut m = Message::new(family, flags);
    m.bytes(&[command, 1, 0, 0]);
    m
}

/// The number of a family; asking loads the module that has it. `None` if the kernel does not know it.
///
/// # Errors
/// The kernel's refusal.
pub fn family(socket: &mut Socket, name: &str) -> Result<Option<u16>, Errno> {
    let mut found = None;
    match socket.query(&ask(name), &mut |reply| found = number(reply)) {
        Ok(()) => Ok(found),
        Err(errno) if errno.code == libc::ENOENT => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// `GENL_ID_CTRL`
const CONTROL: u16 = 0x10;
/// `CTRL_CMD_GETFAMILY`
const GET_FAMILY: u8 = 3;
// CTRL_ATTR_…
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

fn ask(name: &str) -> Message {
    let mut m = message(CONTROL, GET_FAMILY, 0);
    m.attr_text(FAMILY_NAME, name);
    m
}

fn number(reply: &Reply<'_>) -> Option<u16> {
    reply.attrs(HEADER).find(FAMILY_ID)?.u16()
}
