//! The system calls that only libc offers, each wrapped in a safe function.
//!
//! All unsafe code of this crate is here. Takes and gives owned or borrowed descriptors and byte slices;
//! knows nothing of netlink messages.
#![expect(unsafe_code, reason = "system calls without a safe wrapper in the standard library")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

/// Turns the C convention "−1 and errno" into a result.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn check_size(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// A netlink socket of the given protocol in the calling thread's namespace, connected to the kernel so
/// that no other process can send to it, and member of `groups` (bits of the first 32 groups).
pub fn netlink_socket(protocol: libc::c_int, groups: u32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the new descriptor is owned by nobody else.
    let fd = unsafe {
        OwnedFd::from_raw_fd(check(libc::socket(
            libc::AF_NETLINK,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            protocol,
        ))?)
    };
    // SAFETY: sockaddr_nl is plain data for which all zeroes is valid.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
    address.nl_groups = groups;
    let length = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
    // SAFETY: the address lives through the call and the length is its size.
    check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) })?;
    address.nl_groups = 0;
    // SAFETY: as above.
    check(unsafe { libc::connect(fd.as_raw_fd(), (&raw const address).cast(), length) })?;
    Ok(fd)
}

/// The address (port) the kernel gave a netlink socket.
pub fn netlink_port(fd: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: sockaddr_nl is plain data for which all zeroes is valid.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
    // SAFETY: address and length live through the call, and the length is the size of the address.
    check(unsafe { libc::getsockname(fd.as_raw_fd(), (&raw mut address).cast(), &raw mut length) })?;
    Ok(address.nl_pid)
}

/// A socket for datagrams of an address family, unconnected.
pub fn datagram_socket(family: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the new descriptor is owned by nobody else.
    Ok(unsafe {
        OwnedFd::from_raw_fd(check(libc::socket(family, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0))?)
    })
}

/// Reads a socket option into `buffer`, whose content is part of the question. Gives its length.
pub fn get_option(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    buffer: &mut [u8],
) -> io::Result<usize> {
    let mut length = libc::socklen_t::try_from(buffer.len()).map_err(io::Error::other)?;
    // SAFETY: buffer and length live through the call, and the length is the size of the buffer.
    check(unsafe {
        libc::getsockopt(fd.as_raw_fd(), level, name, buffer.as_mut_ptr().cast(), &raw mut length)
    })?;
    Ok(length as usize)
}

/// Sets an integer socket option.
pub fn set_option(fd: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: i32) -> io::Result<()> {
    let length = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the value lives through the call and the length is its size.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), length) })
        .map(drop)
}

/// An instruction of classic BPF (kernel: Documentation/networking/filter.rst).
fn op(code: u16, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

/// Has a socket take only what a program of classic BPF lets through.
fn attach_filter(fd: BorrowedFd<'_>, steps: &mut [libc::sock_filter]) -> io::Result<()> {
    let len = u16::try_from(steps.len()).map_err(io::Error::other)?;
    let program = libc::sock_fprog { len, filter: steps.as_mut_ptr() };
    let length = size_of::<libc::sock_fprog>() as libc::socklen_t;
    let (level, name) = (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER);
    // SAFETY: the program and its steps live through the call, which copies them; the lengths are theirs.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const program).cast(), length) })
        .map(drop)
}

/// Has a socket take only messages that have `word` at byte `at`.
pub fn only_with_word(fd: BorrowedFd<'_>, at: u32, word: [u8; 4]) -> io::Result<()> {
    // A word is loaded in network order: load it, compare, all of the message or none.
    let word = u32::from_be_bytes(word);
    let mut steps = [op(0x20, 0, 0, at), op(0x15, 0, 1, word), op(0x06, 0, 0, u32::MAX), op(0x06, 0, 0, 0)];
    attach_filter(fd, &mut steps)
}

/// Sends one datagram.
pub fn send(fd: BorrowedFd<'_>, data: &[u8]) -> io::Result<usize> {
    // SAFETY: pointer and length are those of a slice that outlives the call.
    check_size(unsafe { libc::send(fd.as_raw_fd(), data.as_ptr().cast(), data.len(), 0) })
}

/// Sends one datagram from a child process that nobody waits for, and returns at once. For a request over
/// which the kernel sleeps; the child holds nothing but the socket, and ends when the kernel is done. If it
/// shall hold another descriptor too, it does so for `time` more.
pub fn send_from_child(
    fd: BorrowedFd<'_>,
    data: &[u8],
    also: Option<(BorrowedFd<'_>, Duration)>,
) -> io::Result<()> {
    let socket = fd.as_raw_fd();
    in_child(fd, also.map(|(fd, _)| fd), || {
        // SAFETY: pointer and length are those of a slice that outlives the call.
        unsafe { libc::send(socket, data.as_ptr().cast(), data.len(), 0) };
        if let Some((_, time)) = also {
            sleep(time);
        }
    })
}

/// Keeps a descriptor open in a child process that nobody waits for, so that whoever closes it here is not
/// the last to do so.
pub fn hold_in_child(fd: BorrowedFd<'_>, time: Duration) -> io::Result<()> {
    in_child(fd, None, || sleep(time))
}

/// One system call, as a child of [`in_child`] may make it.
fn sleep(time: Duration) {
    let time = libc::timespec { tv_sec: time.as_secs() as _, tv_nsec: time.subsec_nanos() as _ };
    // SAFETY: the time lives through the call; the time left is not asked for.
    unsafe { libc::nanosleep(&raw const time, std::ptr::null_mut()) };
}

/// Runs `work` in a child process that holds nothing but one descriptor or two. It may only make
/// async-signal-safe calls, and allocates nothing.
fn in_child(fd: BorrowedFd<'_>, also: Option<BorrowedFd<'_>>, work: impl FnOnce()) -> io::Result<()> {
    let fd = fd.as_raw_fd();
    let also = also.map_or(fd, |also| also.as_raw_fd());
    let (low, high) = (fd.min(also), fd.max(also));
    // SAFETY: the child of a process with threads may only make async-signal-safe calls until it ends:
    // close_range and _exit are, and `work` promises it.
    unsafe {
        if check(libc::fork())? > 0 {
            return Ok(());
        }
        // Whoever waits for the end of our output, or for a lock of ours, must not wait for the child.
        // A range that ends before it begins is refused, and nothing is closed.
        if low > 0 {
            libc::syscall(libc::SYS_close_range, 0, low - 1, 0);
        }
        libc::syscall(libc::SYS_close_range, low + 1, high - 1, 0);
        libc::syscall(libc::SYS_close_range, high + 1, libc::c_int::MAX, 0);
        work();
        libc::_exit(0)
    }
}

/// Receives one datagram and returns its length, which is larger than the buffer if it was cut.
pub fn receive(fd: BorrowedFd<'_>, buffer: &mut [u8], wait: bool) -> io::Result<usize> {
    let flags = libc::MSG_TRUNC | if wait { 0 } else { libc::MSG_DONTWAIT };
    // SAFETY: pointer and length are those of an exclusive slice that outlives the call.
    check_size(unsafe { libc::recv(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), flags) })
}

/// Waits until one of the descriptors is readable; `None` waits for ever. Returns which are.
pub fn poll<const N: usize>(fds: [BorrowedFd<'_>; N], timeout: Option<Duration>) -> io::Result<[bool; N]> {
    let mut polled = fds.map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 });
    let timeout = timeout.map_or(-1, |t| i32::try_from(t.as_millis()).unwrap_or(i32::MAX));
    // SAFETY: pointer and count are those of an exclusive array that outlives the call.
    check(unsafe { libc::poll(polled.as_mut_ptr(), N as libc::nfds_t, timeout) })?;
    Ok(polled.map(|p| p.revents != 0))
}

/// An event counter, to wake a thread that polls.
pub fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the new descriptor is owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(check(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK))?) })
}

/// Moves the calling thread into a network namespace.
pub fn enter_netns(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no pointers; only the calling thread changes.
    check(unsafe { libc::setns(fd.as_raw_fd(), libc::CLONE_NEWNET) }).map(drop)
}

/// Moves the calling thread into a network namespace of its own.
pub fn unshare_netns() -> io::Result<()> {
    // SAFETY: no pointers; only the calling thread changes.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) }).map(drop)
}

/// The magic number of the file system a path lies on.
pub fn file_system_magic(path: &Path) -> io::Result<u64> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: statfs is plain data for which all zeroes is valid.
    let mut found: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends in NUL and both live through the call.
    check(unsafe { libc::statfs(path.as_ptr(), &raw mut found) })?;
    Ok(found.f_type as u64)
}

/// The kind of namespace a descriptor of nsfs stands for, as its `CLONE_NEW…` flag.
pub fn namespace_type(fd: BorrowedFd<'_>) -> io::Result<i32> {
    // SAFETY: this request takes no argument.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::NS_GET_NSTYPE) })
}

/// Makes a tap device that stays when the descriptor of `/dev/net/tun` closes. `flags` are `IFF_…` of
/// linux/if_tun.h; owner and group are set where given.
pub fn make_tap(
    tun: BorrowedFd<'_>,
    name: &str,
    flags: i16,
    owner: Option<u32>,
    group: Option<u32>,
) -> io::Result<()> {
    // SAFETY: ifreq is plain data for which all zeroes is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = flags;
    // SAFETY: the request lives through the call and has the layout the kernel expects.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    let settings = [(libc::TUNSETOWNER, owner), (libc::TUNSETGROUP, group), (libc::TUNSETPERSIST, Some(1))];
    for (setting, value) in settings {
        if let Some(value) = value {
            // SAFETY: these requests take a number by value.
            check(unsafe { libc::ioctl(tun.as_raw_fd(), setting, libc::c_ulong::from(value)) })?;
        }
    }
    Ok(())
}

/// A descriptor that is readable once a child has ended.
///
/// # Errors
/// Kernels before 5.3 have none.
pub fn pidfd(id: u32) -> io::Result<OwnedFd> {
    let id = libc::pid_t::try_from(id).map_err(io::Error::other)?;
    // SAFETY: no pointers; the new descriptor is owned by nobody else.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, id, 0) } as i32)?;
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Kills a process group. One that is gone counts as killed.
pub fn kill_group(id: u32) -> io::Result<()> {
    let id = libc::pid_t::try_from(id).map_err(io::Error::other)?;
    // SAFETY: no pointers.
    match check(unsafe { libc::killpg(id, libc::SIGKILL) }) {
        Err(e) if e.raw_os_error() != Some(libc::ESRCH) => Err(e),
        _ => Ok(()),
    }
}

/// A socket for IPv4 packets with UDP datagrams to one port, of one device, below the network layer: the
/// device needs no address. `packet(7)`, kind `SOCK_DGRAM`: without the Ethernet header.
pub fn udp_packet_socket(device: u32, port: u16) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the new descriptor is owned by nobody else. Protocol 0 takes no packet yet.
    let fd = unsafe {
        OwnedFd::from_raw_fd(check(libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0))?)
    };
    // Protocol UDP, no fragment, destination port; as `tcpdump -dd` makes it, from the IP header on.
    let mut filter = [
        op(0x30, 0, 0, 9),
        op(0x15, 0, 6, 17),
        op(0x28, 0, 0, 6),
        op(0x45, 4, 0, 0x1fff),
        op(0xb1, 0, 0, 0),
        op(0x48, 0, 0, 2),
        op(0x15, 0, 1, port.into()),
        op(0x06, 0, 0, u32::MAX),
        op(0x06, 0, 0, 0),
    ];
    attach_filter(fd.as_fd(), &mut filter)?;
    let address = packet_address(device);
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the address lives through the call and the length is its size.
    check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) })?;
    Ok(fd)
}

/// Sends a packet to every station of an Ethernet.
pub fn send_broadcast(fd: BorrowedFd<'_>, device: u32, packet: &[u8]) -> io::Result<usize> {
    let mut address = packet_address(device);
    address.sll_halen = 6;
    address.sll_addr[..6].fill(0xff);
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: packet and address live through the call, and the lengths are theirs.
    check_size(unsafe {
        libc::sendto(
            fd.as_raw_fd(),
            packet.as_ptr().cast(),
            packet.len(),
            0,
            (&raw const address).cast(),
            length,
        )
    })
}

fn packet_address(device: u32) -> libc::sockaddr_ll {
    // SAFETY: sockaddr_ll is plain data for which all zeroes is valid.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_IP as u16).to_be();
    address.sll_ifindex = device as i32;
    address
}

/// Bounds the bytes of core dumps of this process and those it starts, for good.
pub fn limit_core_dumps(bytes: libc::rlim_t) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    // SAFETY: the pointer is to a value that lives as long as the call.
    match unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const limit) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Lets SIGINT and SIGTERM wait for [`wait_for_end`], in this thread and those it starts.
pub fn hold_end_signals() -> io::Result<()> {
    let set = end_signals();
    // SAFETY: the set lives through the call; the old one is not asked for.
    match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) } {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

/// Whether SIGINT or SIGTERM came since they are held.
pub fn end_is_pending() -> bool {
    // SAFETY: sigset_t is plain data for which all zeroes is valid; the calls read and write the local value.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigpending(&raw mut set) == 0
            && [libc::SIGINT, libc::SIGTERM]
                .iter()
                .any(|signal| libc::sigismember(&raw const set, *signal) == 1)
    }
}

/// Waits for one of the signals held.
pub fn wait_for_end() -> io::Result<()> {
    let set = end_signals();
    let mut signal = 0;
    // SAFETY: the set and the number live through the call.
    match unsafe { libc::sigwait(&raw const set, &raw mut signal) } {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

fn end_signals() -> libc::sigset_t {
    // SAFETY: sigset_t is plain data, which sigemptyset makes valid.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGINT);
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        set
    }
}

/// Takes over the first descriptor a service manager hands down (`sd_listen_fds(3)`).
pub fn first_inherited() -> OwnedFd {
    const FIRST: i32 = 3;
    // SAFETY: by the protocol the descriptor is ours alone; the caller has looked at the environment, and
    // calls once.
    unsafe { OwnedFd::from_raw_fd(FIRST) }
}
