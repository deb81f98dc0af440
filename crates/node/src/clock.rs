//! Time that nobody sets: seconds since the machine booted, those asleep included.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use model::codec::last_good::Moment;

/// Since the machine booted (`CLOCK_BOOTTIME`, which is what /proc/uptime shows; proc_uptime(5)).
pub fn uptime() -> Duration {
    let seconds = fs::read_to_string("/proc/uptime").ok();
    let seconds = seconds.as_ref().and_then(|text| text.split(' ').next()?.parse::<f64>().ok());
    // Without /proc neither the agent nor anything else on the host works.
    seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).unwrap_or_default()
}

/// When something with a time of the wall clock is due, by [`uptime`]. To be asked at once: it is not right
/// any more when the clock is set.
pub fn due(at: SystemTime) -> Duration {
    uptime() + at.duration_since(SystemTime::now()).unwrap_or_default()
}

/// Now, by both clocks.
pub fn now() -> Moment {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    Moment {
        unix: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        uptime: uptime().as_secs(),
        boot: boot.trim().to_owned(),
    }
}
