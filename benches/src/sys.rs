//! The system calls that std lacks: CPU time of children, death with the parent, signals as a pipe.
#![expect(unsafe_code, reason = "getrusage, prctl and signal handlers; each block has its SAFETY comment")]

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{FromRawFd as _, IntoRawFd as _};
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
