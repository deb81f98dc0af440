//! The system calls that neither the standard library nor rustix has: many datagrams in one call, and the
//! requests of `/dev/net/tun`. All unsafe code of this room is here, but for the allocator.
#![expect(unsafe_code, reason = "sendmmsg, recvmmsg and ioctl; each block has its SAFETY comment")]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::packet::outbox::{MESSAGES, Message};
use crate::udp::Received;

/// Datagrams, or trains of them, taken in one call: half a megabyte, which is still in the processor's cache when
/// it is looked at.
pub const SLOTS: usize = 8;
/// Room for the one control message there is: a number of at most four bytes.
const CONTROL: usize = 32;

/// `linux/udp.h`
const UDP_SEGMENT: i32 = 103;
const UDP_GRO: i32 = 104;

/// The sum of [`crate::packet::checksum`] with vectors of 32 bytes. The caller has asked the processor.
#[cfg(target_arch = "x86_64")]
pub fn wide_avx2(data: &[u8]) -> u64 {
    #[target_feature(enable = "avx2")]
    fn sum(data: &[u8]) -> u64 {
        crate::packet::checksum::wide_by_words(data)
    }
    debug_assert!(std::arch::is_x86_feature_detected!("avx2"));
    // SAFETY: the only caller has found that the processor has AVX2.
    unsafe { sum(data) }
}

/// Makes an open `/dev/net/tun` a queue of a device.
pub fn tun_attach(tun: &File, name: &str, flags: libc::c_int) -> io::Result<()> {
    let mut request = named_request(name);
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the request lives through the call and has the layout the kernel expects.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })
}

/// Says which packets the holder of a device can cut or complete itself.
pub fn tun_offload(tun: BorrowedFd<'_>, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: the request takes a number by value.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) })
}

/// The MTU of a device in the namespace of the calling thread.
pub fn mtu(name: &str) -> io::Result<i32> {
    let kind = rustix::net::SocketType::DGRAM;
    let socket = rustix::net::socket(rustix::net::AddressFamily::UNIX, kind, None)?;
    let mut request = named_request(name);
    // SAFETY: the request lives through the call and has the layout the kernel expects.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU as _, &raw mut request) })?;
    // SAFETY: the kernel has filled in this field.
    Ok(unsafe { request.ifr_ifru.ifru_mtu })
}

/// A request about a device, the rest of it zero.
fn named_request(name: &str) -> libc::ifreq {
    // SAFETY: ifreq is plain data for which all zeroes is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from as libc::c_char;
    }
    request
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// An address as the kernel wants it.
#[repr(C)]
union Name {
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

impl Name {
    fn none() -> Name {
        // SAFETY: both are plain data for which all zeroes is valid.
        unsafe { std::mem::zeroed() }
    }

    fn set(&mut self, to: SocketAddr) -> libc::socklen_t {
        match to {
            SocketAddr::V4(to) => {
                self.v4 = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: to.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from(*to.ip()).to_be() },
                    sin_zero: [0; 8],
                };
                size_of::<libc::sockaddr_in>() as libc::socklen_t
            }
            SocketAddr::V6(to) => {
                self.v6 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: to.port().to_be(),
                    sin6_flowinfo: to.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: to.ip().octets() },
                    sin6_scope_id: to.scope_id(),
                };
                size_of::<libc::sockaddr_in6>() as libc::socklen_t
            }
        }
    }

    fn get(&self) -> Option<SocketAddr> {
        // SAFETY: the value is all zeroes or was filled by the kernel; both views are plain data, and the
        // family says which of them it is.
        unsafe {
            match i32::from(self.v4.sin_family) {
                libc::AF_INET => {
                    let ip = Ipv4Addr::from(u32::from_be(self.v4.sin_addr.s_addr));
                    Some(SocketAddr::new(ip.into(), u16::from_be(self.v4.sin_port)))
                }
                libc::AF_INET6 => {
                    let ip = Ipv6Addr::from(self.v6.sin6_addr.s6_addr);
                    let port = u16::from_be(self.v6.sin6_port);
                    Some(std::net::SocketAddrV6::new(ip, port, 0, self.v6.sin6_scope_id).into())
                }
                _ => None,
            }
        }
    }
}

/// Room for a control message, aligned as the kernel wants it.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL]);

impl Control {
    const NONE: Control = Control([0; CONTROL]);
    /// Bytes of `cmsghdr`; what it holds follows.
    const HEADER: usize = size_of::<libc::cmsghdr>();

    /// Fills in the size of segments; gives the bytes used.
    fn set_segment(&mut self, size: u16) -> usize {
        // SAFETY: cmsghdr is plain data for which all zeroes is valid.
        let mut header: libc::cmsghdr = unsafe { std::mem::zeroed() };
        header.cmsg_len = (Control::HEADER + 2) as _;
        header.cmsg_level = libc::SOL_UDP;
        header.cmsg_type = UDP_SEGMENT;
        // SAFETY: the room is aligned and large enough, and cmsghdr is plain data.
        unsafe { self.0.as_mut_ptr().cast::<libc::cmsghdr>().write(header) };
        self.0[Control::HEADER..Control::HEADER + 2].copy_from_slice(&size.to_ne_bytes());
        // SAFETY: arithmetic only.
        unsafe { libc::CMSG_SPACE(2) as usize }
    }

    /// The size of the segments of what was received, if it is more than one.
    fn segment(&self, message: &libc::msghdr) -> Option<usize> {
        if message.msg_controllen < (Control::HEADER + 2) as _ {
            return None;
        }
        // SAFETY: the room is aligned, large enough and initialised.
        let header: libc::cmsghdr = unsafe { self.0.as_ptr().cast::<libc::cmsghdr>().read() };
        if header.cmsg_level != libc::SOL_UDP || header.cmsg_type != UDP_GRO {
            return None;
        }
        let at = Control::HEADER;
        let wide = header.cmsg_len >= (at + 4) as _;
        Some(if wide {
            u32::from_ne_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]]) as usize
        } else {
            u16::from_ne_bytes([self.0[at], self.0[at + 1]]).into()
        })
    }
}

/// Sends messages that lie in `bytes`, without waiting; gives how many went.
pub fn send(socket: BorrowedFd<'_>, messages: &[Message], bytes: &[u8]) -> io::Result<usize> {
    let count = messages.len().min(MESSAGES);
    let mut names: [Name; MESSAGES] = std::array::from_fn(|_| Name::none());
    let mut controls = [Control::NONE; MESSAGES];
    // SAFETY: iovec and mmsghdr are plain data for which all zeroes is valid.
    let (mut parts, mut headers): ([libc::iovec; MESSAGES], [libc::mmsghdr; MESSAGES]) =
        unsafe { std::mem::zeroed() };
    for (n, message) in messages.iter().take(count).enumerate() {
        let data = &bytes[message.start..message.end];
        parts[n] = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
        let header = &mut headers[n].msg_hdr;
        header.msg_namelen = names[n].set(message.to);
        header.msg_name = (&raw mut names[n]).cast();
        header.msg_iov = &raw mut parts[n];
        header.msg_iovlen = 1;
        if message.count() > 1 {
            header.msg_controllen = controls[n].set_segment(message.segment as u16) as _;
            header.msg_control = (&raw mut controls[n]).cast();
        }
    }
    // SAFETY: all pointers are into values that live through the call, and the count is theirs.
    let sent = unsafe {
        libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), count as _, libc::MSG_DONTWAIT as _)
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Receives what is there, without waiting: one datagram or train of them into each slot of the arena, whose
/// length is [`SLOTS`] times that of a slot.
pub fn receive(socket: BorrowedFd<'_>, arena: &mut [u8], out: &mut Vec<Received>) -> io::Result<()> {
    let slot = arena.len() / SLOTS;
    let mut names: [Name; SLOTS] = std::array::from_fn(|_| Name::none());
    let mut controls = [Control::NONE; SLOTS];
    // SAFETY: iovec and mmsghdr are plain data for which all zeroes is valid.
    let (mut parts, mut headers): ([libc::iovec; SLOTS], [libc::mmsghdr; SLOTS]) =
        unsafe { std::mem::zeroed() };
    for (n, room) in arena.chunks_exact_mut(slot).take(SLOTS).enumerate() {
        parts[n] = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
        let header = &mut headers[n].msg_hdr;
        header.msg_name = (&raw mut names[n]).cast();
        header.msg_namelen = size_of::<Name>() as libc::socklen_t;
        header.msg_iov = &raw mut parts[n];
        header.msg_iovlen = 1;
        header.msg_control = (&raw mut controls[n]).cast();
        header.msg_controllen = CONTROL as _;
    }
    // SAFETY: all pointers are into values that live through the call, and the count is theirs.
    let got = unsafe {
        libc::recvmmsg(
            socket.as_raw_fd(),
            headers.as_mut_ptr(),
            SLOTS as _,
            libc::MSG_DONTWAIT as _,
            std::ptr::null_mut(),
        )
    };
    let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    for n in 0..got.min(SLOTS) {
        let (length, header) = (headers[n].msg_len as usize, &headers[n].msg_hdr);
        // What does not fit a slot is longer than any datagram.
        let Some(from) = names[n].get().filter(|_| header.msg_flags & libc::MSG_TRUNC == 0) else { continue };
        let segment = controls[n].segment(header).filter(|size| *size > 0);
        out.push(Received { start: n * slot, length, segment: segment.unwrap_or(length.max(1)), from });
    }
    Ok(())
}

/// Whether the kernel segments what a socket sends.
pub fn has_segmentation(socket: BorrowedFd<'_>) -> bool {
    let mut value = MaybeUninit::<libc::c_int>::uninit();
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: value and length live through the call, and the length is the value's size.
    let asked = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            UDP_SEGMENT,
            value.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    asked == 0
}

/// Asks the kernel to hand datagrams of one flow over in trains.
pub fn set_coalescing(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_option(socket, libc::SOL_UDP, UDP_GRO, 1)
}

/// Sets the buffers of a socket, past the limit of the host where we may.
pub fn set_buffers(socket: BorrowedFd<'_>, bytes: i32) {
    for (force, plain) in [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)] {
        if set_option(socket, libc::SOL_SOCKET, force, bytes).is_err() {
            // A smaller one works as well, only not as long.
            let _ = set_option(socket, libc::SOL_SOCKET, plain, bytes);
        }
    }
}

/// Lets several sockets share an address, or not.
pub fn set_shared(socket: BorrowedFd<'_>, shared: bool) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_REUSEPORT, shared.into())
}

/// The whole packet is given, with its header.
pub fn set_header_included(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_IP, libc::IP_HDRINCL, 1)
}

fn set_option(socket: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> io::Result<()> {
    let length = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the value lives through the call and the length is its size.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), length) })
}
