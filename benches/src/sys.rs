//! The system calls that std lacks: CPU time of children, death with the parent, signals as a pipe.
#![expect(unsafe_code, reason = "getrusage, prctl and signal handlers; each block has its SAFETY comment")]

use std::fs::File;
use std::io::{self, Read as _};
use std::net::{TcpStream, UdpSocket};
use std::os::fd::{AsRawFd as _, FromRawFd as _, IntoRawFd as _, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

/// CPU time of all children that have been waited for, theirs included.
pub fn children_cpu() -> Duration {
    // SAFETY: rusage is plain memory that the call fills.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage);
        usage
    };
    let time = |t: libc::timeval| Duration::new(t.tv_sec.cast_unsigned(), t.tv_usec as u32 * 1_000);
    time(usage.ru_utime) + time(usage.ru_stime)
}

/// The command's process is killed when the thread that started it ends, however it ends.
pub fn die_with_thread(command: &mut Command) {
    // SAFETY: prctl is a plain system call and touches no memory of ours.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
}

/// Where the handler writes.
static PIPE: AtomicI32 = AtomicI32::new(-1);

extern "C" fn handler(_: libc::c_int) {
    // SAFETY: write may be called in a signal handler; the descriptor is never closed.
    unsafe { libc::write(PIPE.load(Ordering::Relaxed), [0u8].as_ptr().cast(), 1) };
}

/// Runs `work` on a thread of its own at the first SIGINT or SIGTERM. Programs started from here do not
/// inherit it.
pub fn on_interrupt(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let mut ends = [0; 2];
    // SAFETY: pipe2 fills two descriptors, which are ours alone; the handler does nothing but write to one.
    let mut reader = unsafe {
        if libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) != 0 {
            return Err(io::Error::last_os_error());
        }
        PIPE.store(File::from_raw_fd(ends[1]).into_raw_fd(), Ordering::Relaxed);
        let handler = handler as extern "C" fn(libc::c_int) as libc::sighandler_t;
        libc::signal(libc::SIGINT, handler);
        libc::signal(libc::SIGTERM, handler);
        File::from_raw_fd(ends[0])
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        while reader.read(&mut [0]).is_err() {}
        work();
    })?;
    Ok(())
}

/// Messages of one call.
const MANY: usize = 64;

/// A TUN device without offloads, which is there as long as the file is open. Reads and writes do not wait.
pub fn plain_tun(name: &str) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let tun = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    // SAFETY: ifreq is plain data for which all zeroes is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the request lives through the call and has the layout the kernel expects.
    match unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } {
        0 => Ok(tun),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Waits until one of two descriptors can be read.
pub fn wait_for_either(one: RawFd, two: RawFd) -> io::Result<()> {
    let mut fds = [one, two].map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
    // SAFETY: pointer and count are those of an array that lives through the call.
    match unsafe { libc::poll(fds.as_mut_ptr(), 2, -1) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// The congestion control all kernels have; what stands as default decides about figures otherwise.
pub fn use_cubic(stream: &TcpStream) -> io::Result<()> {
    let name = b"cubic";
    // SAFETY: pointer and length are those of a text that lives through the call.
    let set = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_CONGESTION,
            name.as_ptr().cast(),
            name.len() as libc::socklen_t,
        )
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sends one payload many times to whom the socket is connected.
pub fn send_many(socket: &UdpSocket, payload: &[u8]) -> io::Result<usize> {
    let mut part = libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() };
    // SAFETY: mmsghdr is plain data for which all zeroes is valid.
    let mut headers: [libc::mmsghdr; MANY] = unsafe { std::mem::zeroed() };
    for header in &mut headers {
        (header.msg_hdr.msg_iov, header.msg_hdr.msg_iovlen) = (&raw mut part, 1);
    }
    // SAFETY: all pointers are into values that live through the call, and the count is theirs.
    let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), MANY as _, 0) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Receives datagrams and forgets them; waits for the first as long as the socket says. Gives their number.
pub fn receive_many(socket: &UdpSocket) -> io::Result<usize> {
    let mut rooms = [[0u8; 128]; MANY];
    // SAFETY: iovec and mmsghdr are plain data for which all zeroes is valid.
    let (mut parts, mut headers): ([libc::iovec; MANY], [libc::mmsghdr; MANY]) =
        unsafe { std::mem::zeroed() };
    for ((room, part), header) in rooms.iter_mut().zip(&mut parts).zip(&mut headers) {
        *part = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
        (header.msg_hdr.msg_iov, header.msg_hdr.msg_iovlen) = (part, 1);
    }
    let flags = libc::MSG_WAITFORONE as _;
    // SAFETY: all pointers are into values that live through the call, and the count is theirs.
    let got = unsafe {
        libc::recvmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), MANY as _, flags, std::ptr::null_mut())
    };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}
