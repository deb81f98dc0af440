//! The system calls that only libc offers, each behind a safe function. All unsafe code of this crate
//! is in this file.
//!
//! Nothing here knows what a lab is. Errors are the kernel's own; callers add the object and the way out.

#![expect(unsafe_code, reason = "namespaces, fork and raw sockets have no safe interface in std")]

use std::ffi::CString;
use std::io;
use std::mem;
use std::net::{IpAddr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn check_len(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn size<T>() -> libc::socklen_t {
    mem::size_of::<T>() as libc::socklen_t
}

// ---- processes and namespaces ---------------------------------------------------------------------

/// `unshare(2)`.
pub fn unshare(flags: i32) -> io::Result<()> {
    // SAFETY: no pointers; only the calling thread's namespaces change.
    check(unsafe { libc::unshare(flags) }).map(drop)
}

/// Effective user id.
pub fn euid() -> u32 {
    // SAFETY: cannot fail, no pointers.
    unsafe { libc::geteuid() }
}

/// Effective group id.
pub fn egid() -> u32 {
    // SAFETY: cannot fail, no pointers.
    unsafe { libc::getegid() }
}

/// `mount(2)`; empty texts are passed as null.
pub fn mount(source: &str, target: &Path, kind: &str, flags: libc::c_ulong, data: &str) -> io::Result<()> {
    let source = CString::new(source)?;
    let target = CString::new(target.as_os_str().as_bytes())?;
    let kind_text = CString::new(kind)?;
    let data_text = CString::new(data)?;
    let kind_ptr = if kind.is_empty() { std::ptr::null() } else { kind_text.as_ptr() };
    let data_ptr = if data.is_empty() { std::ptr::null() } else { data_text.as_ptr().cast() };
    // SAFETY: all pointers are null or to texts that end in NUL and live until the call returns.
    check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind_ptr, flags, data_ptr) }).map(drop)
}

/// `sethostname(2)`.
pub fn set_hostname(name: &str) -> io::Result<()> {
    // SAFETY: pointer and length describe the text.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// Makes the kernel send SIGKILL to this process when the thread that started it ends.
pub fn die_with_parent() -> io::Result<()> {
    // SAFETY: PR_SET_PDEATHSIG takes one integer.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) }).map(drop)
}

/// A session of its own: signals of the terminal no longer reach this process.
pub fn new_session() -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::setsid() }).map(drop)
}

/// Forks; the child runs `child` and ends with its value. For processes with one thread only: the
/// child may then use everything.
pub fn fork(child: impl FnOnce() -> i32) -> io::Result<i32> {
    // SAFETY: callers have one thread (documented), so no lock can be held by another one.
    let pid = check(unsafe { libc::fork() })?;
    if pid == 0 {
        let code = child();
        // SAFETY: ends the process without running the parent's exit handlers.
        unsafe { libc::_exit(code) }
    }
    Ok(pid)
}

/// Reaps children, adopted orphans included, until `pid` ends. Gives its exit status, 128 + signal
/// number when a signal ended it.
pub fn reap_until(pid: i32) -> i32 {
    loop {
        let mut status = 0;
        // SAFETY: `status` outlives the call.
        match check(unsafe { libc::waitpid(-1, &mut status, 0) }) {
            Ok(ended) if ended == pid => return exit_code(status),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return 1,
        }
    }
}

fn exit_code(status: i32) -> i32 {
    if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) }
}

/// Sends a signal to a process.
pub fn kill(pid: u32, signal: i32) -> io::Result<()> {
    let pid = i32::try_from(pid).map_err(|_| io::Error::from_raw_os_error(libc::ESRCH))?;
    // SAFETY: no pointers.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// Ends the process at once, without exit handlers: other threads may be in the middle of anything.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: always sound.
    unsafe { libc::_exit(code) }
}

/// Blocks SIGINT, SIGTERM and SIGHUP for this thread and those it starts; [`wait_for_signal`] gets them.
/// Programs started through `Command` have an empty mask again.
pub fn block_signals() {
    let set = ending_signals();
    // SAFETY: the set is initialised; the old mask is not asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) };
}

/// Waits for one of the blocked signals.
pub fn wait_for_signal() -> i32 {
    let set = ending_signals();
    let mut signal = 0;
    // SAFETY: both pointers are to live values.
    unsafe { libc::sigwait(&set, &mut signal) };
    signal
}

fn ending_signals() -> libc::sigset_t {
    // SAFETY: sigset_t is plain memory that sigemptyset initialises.
    unsafe {
        let mut set = mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            libc::sigaddset(&mut set, signal);
        }
        set
    }
}

/// The namespaces a program is to start in. Descriptors of files below `/proc/PID/ns`.
#[derive(Debug, Default)]
pub struct Namespaces {
    /// User namespace, for a lab without root.
    pub user: Option<OwnedFd>,
    /// PID namespace: the program then ends with the lab.
    pub pid: Option<OwnedFd>,
    /// Network namespace.
    pub net: Option<OwnedFd>,
    /// Host name.
    pub uts: Option<OwnedFd>,
    /// Mounts; entered last but one because the paths of the others are gone after it.
    pub mnt: Option<OwnedFd>,
}

impl Namespaces {
    /// What each descriptor is, in the order in which the namespaces must be entered: the user
    /// namespace first, because it gives the right to enter the others.
    pub fn in_order(self) -> Vec<(OwnedFd, i32)> {
        [
            (self.user, libc::CLONE_NEWUSER),
            (self.pid, libc::CLONE_NEWPID),
            (self.net, libc::CLONE_NEWNET),
            (self.uts, libc::CLONE_NEWUTS),
            (self.mnt, libc::CLONE_NEWNS),
        ]
        .into_iter()
        .filter_map(|(fd, kind)| Some((fd?, kind)))
        .collect()
    }
}

/// Makes `command` start in the given namespaces, and then in new ones of the kinds in `fresh`
/// (`CLONE_NEW…` flags). With a PID namespace a small process stays in front that passes the exit
/// status on: only children enter a PID namespace.
pub fn start_inside(command: &mut Command, namespaces: Namespaces, fresh: i32) {
    let entries = namespaces.in_order();
    let here = std::env::current_dir().ok().and_then(|d| CString::new(d.as_os_str().as_bytes()).ok());
    let enter = move || {
        for (fd, kind) in &entries {
            // SAFETY: descriptors are owned by the closure, hence open.
            check(unsafe { libc::setns(fd.as_raw_fd(), *kind) })?;
        }
        if fresh != 0 {
            // SAFETY: no pointers.
            check(unsafe { libc::unshare(fresh) })?;
        }
        if let Some(here) = &here {
            // Entering a mount namespace moves us to its root; where the old directory does not
            // exist we stay there.
            // SAFETY: the text ends in NUL and lives as long as the closure.
            unsafe { libc::chdir(here.as_ptr()) };
        }
        if entries.iter().any(|(_, kind)| *kind == libc::CLONE_NEWPID) {
            wait_in_front()?;
        }
        // SAFETY: default handling of signals the parent may have ignored while it waits for us.
        unsafe {
            libc::signal(libc::SIGINT, libc::SIG_DFL);
            libc::signal(libc::SIGQUIT, libc::SIG_DFL);
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls only; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(enter) };
}

/// Forks: the child goes on to exec, the parent waits for it and ends with its status.
fn wait_in_front() -> io::Result<()> {
    // SAFETY: called between fork and exec, where there is one thread; what follows are system calls.
    unsafe {
        let child = check(libc::fork())?;
        if child == 0 {
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
            return Ok(());
        }
        // The pipe through which std learns of the exec must not stay open here.
        libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32);
        let mut status = 0;
        while libc::waitpid(child, &mut status, 0) < 0 {
            if *libc::__errno_location() != libc::EINTR {
                libc::_exit(1);
            }
        }
        libc::_exit(exit_code(status))
    }
}

/// Ignores SIGINT and SIGQUIT in this process: a child in the foreground gets them.
pub fn ignore_interrupts() {
    // SAFETY: SIG_IGN needs no handler.
    unsafe {
        libc::signal(libc::SIGINT, libc::SIG_IGN);
        libc::signal(libc::SIGQUIT, libc::SIG_IGN);
    }
}

// ---- control socket ---------------------------------------------------------------------------------

/// The user id of the process at the other end of a Unix socket, as seen in our user namespace.
pub fn peer_uid(stream: &UnixStream) -> io::Result<u32> {
    // SAFETY: ucred is plain memory.
    let mut cred: libc::ucred = unsafe { mem::zeroed() };
    let mut len = size::<libc::ucred>();
    // SAFETY: pointer and length describe `cred`.
    check(unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut cred).cast(),
            &mut len,
        )
    })?;
    Ok(cred.uid)
}

// Lengths are `as _`: their types differ between glibc and musl.

/// Most descriptors one message carries.
const MAX_FDS: usize = 8;
/// Room for the control message that carries them, aligned as the kernel wants it.
#[repr(align(8))]
struct Control([u8; 64]);

/// Sends bytes and up to 8 descriptors in one message.
pub fn send_with_fds(stream: &UnixStream, bytes: &[u8], fds: &[OwnedFd]) -> io::Result<usize> {
    assert!(fds.len() <= MAX_FDS, "one message carries at most {MAX_FDS} descriptors");
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let data_len = mem::size_of_val(raw.as_slice()) as u32;
    let mut control = Control([0; 64]);
    let mut iov = libc::iovec { iov_base: bytes.as_ptr() as *mut _, iov_len: bytes.len() };
    // SAFETY: msghdr is plain memory; the control buffer is large enough for MAX_FDS descriptors
    // (CMSG_SPACE(32) = 48), and every pointer lives until sendmsg returns.
    unsafe {
        let mut msg: libc::msghdr = mem::zeroed();
        msg.msg_iov = &mut iov;
        msg.msg_iovlen = 1;
        if !raw.is_empty() {
            msg.msg_control = control.0.as_mut_ptr().cast();
            msg.msg_controllen = libc::CMSG_SPACE(data_len) as _;
            let header = libc::CMSG_FIRSTHDR(&msg);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(data_len) as _;
            std::ptr::copy_nonoverlapping(raw.as_ptr(), libc::CMSG_DATA(header).cast(), raw.len());
        }
        check_len(libc::sendmsg(stream.as_raw_fd(), &msg, libc::MSG_NOSIGNAL))
    }
}

/// Receives bytes and appends the descriptors that came with them.
pub fn receive_with_fds(stream: &UnixStream, buf: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut control = Control([0; 64]);
    let mut iov = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    // SAFETY: msghdr is plain memory; buffers live until the walk over the control messages ends;
    // the kernel gave us the descriptors, so they are open and ours alone.
    unsafe {
        let mut msg: libc::msghdr = mem::zeroed();
        msg.msg_iov = &mut iov;
        msg.msg_iovlen = 1;
        msg.msg_control = control.0.as_mut_ptr().cast();
        msg.msg_controllen = control.0.len() as _;
        let received = check_len(libc::recvmsg(stream.as_raw_fd(), &mut msg, libc::MSG_CMSG_CLOEXEC))?;
        let mut header = libc::CMSG_FIRSTHDR(&msg);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let length: usize = (*header).cmsg_len as _;
                let bytes = length - libc::CMSG_LEN(0) as usize;
                let data: *const RawFd = libc::CMSG_DATA(header).cast();
                for at in 0..bytes / mem::size_of::<RawFd>() {
                    fds.push(OwnedFd::from_raw_fd(data.add(at).read_unaligned()));
                }
            }
            header = libc::CMSG_NXTHDR(&msg, header);
        }
        Ok(received)
    }
}

// ---- packets ----------------------------------------------------------------------------------------

/// A raw ICMP or ICMPv6 socket that sends with "do not fragment", in the caller's network namespace.
pub fn icmp_socket(v6: bool) -> io::Result<OwnedFd> {
    let (family, protocol) =
        if v6 { (libc::AF_INET6, libc::IPPROTO_ICMPV6) } else { (libc::AF_INET, libc::IPPROTO_ICMP) };
    let fd = socket(family, protocol)?;
    if v6 {
        set_option(&fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO)?;
    } else {
        set_option(&fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO)?;
    }
    Ok(fd)
}

/// Lets a raw ICMP socket see echo requests alone (raw(7), `ICMP_FILTER`).
pub fn hear_requests_only(fd: &OwnedFd) -> io::Result<()> {
    const ICMP_FILTER: i32 = 1;
    const REQUEST: i32 = 8;
    set_option(fd, libc::SOL_RAW, ICMP_FILTER, !(1 << REQUEST))
}

/// Datagrams of this socket get no checksum (socket(7), `SO_NO_CHECK`; IPv4 alone).
pub fn without_checksum(socket: UdpSocket) -> io::Result<UdpSocket> {
    let fd = OwnedFd::from(socket);
    set_option(&fd, libc::SOL_SOCKET, libc::SO_NO_CHECK, 1)?;
    Ok(fd.into())
}

/// A packet socket that sees every frame of every device in the caller's network namespace, with the
/// kernel's time stamp of each. Frames of the first moments after a machine's only such socket was opened have none:
/// `SO_TIMESTAMPNS` would fill in when they are read, which says nothing about their order.
pub fn packet_socket() -> io::Result<OwnedFd> {
    let fd = socket(libc::AF_PACKET, i32::from((libc::ETH_P_ALL as u16).to_be()))?;
    let software = libc::SOF_TIMESTAMPING_RX_SOFTWARE | libc::SOF_TIMESTAMPING_SOFTWARE;
    set_option(&fd, libc::SOL_SOCKET, libc::SO_TIMESTAMPING, software as i32)?;
    set_option(&fd, libc::SOL_SOCKET, libc::SO_RCVBUF, 4 << 20)?;
    Ok(fd)
}

/// A [`packet_socket`] with room for `bytes` of frames that runs a program of classic BPF on every one, from the first
/// on: it listens to nothing before the program is there.
pub fn filtered_packet_socket(program: &[libc::sock_filter], bytes: i32) -> io::Result<OwnedFd> {
    let fd = socket(libc::AF_PACKET, 0)?;
    let len = u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: the structure and the program it points to live through the call, which only reads them.
    check(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size::<libc::sock_fprog>(),
        )
    })?;
    let software = libc::SOF_TIMESTAMPING_RX_SOFTWARE | libc::SOF_TIMESTAMPING_SOFTWARE;
    set_option(&fd, libc::SOL_SOCKET, libc::SO_TIMESTAMPING, software as i32)?;
    // Beyond the limit of the system, where that is allowed.
    if set_option(&fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes).is_err() {
        set_option(&fd, libc::SOL_SOCKET, libc::SO_RCVBUF, bytes)?;
    }
    // SAFETY: sockaddr_ll is plain memory; pointer and length describe it.
    check(unsafe {
        let mut all: libc::sockaddr_ll = mem::zeroed();
        all.sll_family = libc::AF_PACKET as u16;
        all.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        libc::bind(fd.as_raw_fd(), (&raw const all).cast(), size::<libc::sockaddr_ll>())
    })?;
    Ok(fd)
}

/// Frames a packet socket had no room for since it was asked last (packet(7), `PACKET_STATISTICS`).
pub fn frames_lost(fd: &OwnedFd) -> io::Result<u64> {
    let mut stats = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut len = size::<libc::tpacket_stats>();
    // SAFETY: pointer and length describe `stats`.
    check(unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut stats).cast(),
            &mut len,
        )
    })?;
    Ok(u64::from(stats.tp_drops))
}

fn socket(family: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; a non-negative result is a new descriptor that nobody else owns.
    unsafe {
        let fd = check(libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

fn set_option(fd: &OwnedFd, level: i32, option: i32, value: i32) -> io::Result<()> {
    // SAFETY: pointer and length describe `value`.
    check(unsafe {
        libc::setsockopt(fd.as_raw_fd(), level, option, (&raw const value).cast(), size::<i32>())
    })
    .map(drop)
}

/// Sends one datagram to an address. The port is 0: raw sockets have none.
pub fn send_to(fd: &OwnedFd, bytes: &[u8], to: IpAddr) -> io::Result<()> {
    // SAFETY: the structures are plain memory, filled in before use; pointers and lengths match.
    let sent = unsafe {
        match SocketAddr::new(to, 0) {
            SocketAddr::V4(a) => {
                let mut addr: libc::sockaddr_in = mem::zeroed();
                addr.sin_family = libc::AF_INET as u16;
                addr.sin_addr.s_addr = u32::from_ne_bytes(a.ip().octets());
                let to = (&raw const addr).cast();
                libc::sendto(
                    fd.as_raw_fd(),
                    bytes.as_ptr().cast(),
                    bytes.len(),
                    libc::MSG_NOSIGNAL,
                    to,
                    size::<libc::sockaddr_in>(),
                )
            }
            SocketAddr::V6(a) => {
                let addr = raw_v6(&a);
                let to = (&raw const addr).cast();
                libc::sendto(
                    fd.as_raw_fd(),
                    bytes.as_ptr().cast(),
                    bytes.len(),
                    libc::MSG_NOSIGNAL,
                    to,
                    size::<libc::sockaddr_in6>(),
                )
            }
        }
    };
    check_len(sent).map(drop)
}

fn raw_v6(a: &SocketAddrV6) -> libc::sockaddr_in6 {
    // SAFETY: sockaddr_in6 is plain memory.
    let mut addr: libc::sockaddr_in6 = unsafe { mem::zeroed() };
    addr.sin6_family = libc::AF_INET6 as u16;
    addr.sin6_addr.s6_addr = a.ip().octets();
    addr
}

/// Receives one datagram; longer ones are cut at the length of `buf`.
pub fn receive(fd: &OwnedFd, buf: &mut [u8]) -> io::Result<usize> {
    // SAFETY: pointer and length describe `buf`.
    check_len(unsafe { libc::recv(fd.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len(), libc::MSG_DONTWAIT) })
}

/// One frame as a packet socket saw it.
#[derive(Debug)]
pub struct Seen {
    /// Bytes of the frame that fitted the buffer.
    pub len: usize,
    /// Index of the device.
    pub device: u32,
    /// The host was sending it (`PACKET_OUTGOING`).
    pub outgoing: bool,
    /// What kind of device it is (`ARPHRD_…`).
    pub hardware: u16,
    /// Kernel time, nanoseconds of the wall clock.
    pub at_ns: u64,
}

/// Receives one frame from a [`packet_socket`]; `WouldBlock` when there is none.
pub fn receive_frame(fd: &OwnedFd, buf: &mut [u8]) -> io::Result<Seen> {
    let mut control = Control([0; 64]);
    let mut iov = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    // SAFETY: structures are plain memory; buffers live until the walk over the control messages ends.
    unsafe {
        let mut from: libc::sockaddr_ll = mem::zeroed();
        let mut msg: libc::msghdr = mem::zeroed();
        msg.msg_name = (&raw mut from).cast();
        msg.msg_namelen = size::<libc::sockaddr_ll>();
        msg.msg_iov = &mut iov;
        msg.msg_iovlen = 1;
        msg.msg_control = control.0.as_mut_ptr().cast();
        msg.msg_controllen = control.0.len() as _;
        let len = check_len(libc::recvmsg(fd.as_raw_fd(), &mut msg, libc::MSG_DONTWAIT))?;
        let mut at_ns = 0;
        let mut header = libc::CMSG_FIRSTHDR(&msg);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_TIMESTAMPING {
                // The first of three is the kernel's own.
                let time: libc::timespec = libc::CMSG_DATA(header).cast::<libc::timespec>().read_unaligned();
                at_ns = time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64;
            }
            header = libc::CMSG_NXTHDR(&msg, header);
        }
        Ok(Seen {
            len,
            device: from.sll_ifindex as u32,
            outgoing: from.sll_pkttype == libc::PACKET_OUTGOING,
            hardware: from.sll_hatype,
            at_ns,
        })
    }
}

/// Waits until one of the descriptors can be read or the deadline passes; gives which can.
pub fn wait_readable(fds: &[BorrowedFd<'_>], deadline: Instant) -> io::Result<Vec<usize>> {
    let mut polled: Vec<libc::pollfd> =
        fds.iter().map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 }).collect();
    let left = deadline.saturating_duration_since(Instant::now());
    let left = libc::timespec {
        tv_sec: left.as_secs().min(86_400) as _,
        tv_nsec: libc::c_long::from(left.subsec_nanos() as i32),
    };
    // SAFETY: pointer and length describe the vector; the signal mask is not changed.
    check(unsafe {
        libc::ppoll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, &left, std::ptr::null())
    })?;
    Ok((0..fds.len()).filter(|at| polled[*at].revents != 0).collect())
}

/// Name of a device of the caller's network namespace.
pub fn device_name(index: u32) -> Option<String> {
    let mut name = [0u8; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the size the call asks for.
    let found = unsafe { libc::if_indextoname(index, name.as_mut_ptr().cast()) };
    if found.is_null() {
        return None;
    }
    let len = name.iter().position(|b| *b == 0)?;
    Some(String::from_utf8_lossy(&name[..len]).into_owned())
}

/// Width of the terminal behind standard output, in columns.
pub fn terminal_width() -> Option<usize> {
    // SAFETY: winsize is plain memory, which the call fills in.
    let window = unsafe {
        let mut window: libc::winsize = mem::zeroed();
        check(libc::ioctl(1, libc::TIOCGWINSZ, &mut window)).ok()?;
        window
    };
    (window.ws_col > 0).then_some(usize::from(window.ws_col))
}

/// A patience for things that take milliseconds on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(20);
