//! Which machine the figures are of, and how busy it is.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use model::Json;

/// Clock ticks of `/proc/stat` in a second (`USER_HZ`, proc_stat(5)).
const TICKS: f64 = 100.0;

/// A machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Host name.
    pub name: String,
    /// Model of the processor, where the kernel tells.
    pub cpu: String,
    /// Processors.
    pub cores: usize,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Release of the kernel.
    pub kernel: String,
    /// Says whether two namespaces are of one machine.
    pub boot: String,
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn value(path: &str, key: &str) -> String {
    let text = read(path);
    let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
    line.split_once(':').map_or("", |(_, value)| value.trim()).to_owned()
}

impl Machine {
    /// This one.
    pub fn here() -> Machine {
        let memory = value("/proc/meminfo", "MemTotal");
        let kib: u64 = memory.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0);
        Machine {
            name: read("/proc/sys/kernel/hostname"),
            cpu: value("/proc/cpuinfo", "model name"),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: kib / 1024,
            kernel: read("/proc/sys/kernel/osrelease"),
            boot: read("/proc/sys/kernel/random/boot_id"),
        }
    }

    /// For a report: what is nobody else's business stays here.
    pub fn json(&self) -> Json {
        Json::object([
            ("name", self.name.as_str().into()),
            ("cpu", self.cpu.as_str().into()),
            ("cores", (self.cores as u64).into()),
            ("memory_mib", self.memory_mib.into()),
            ("kernel", self.kernel.as_str().into()),
        ])
    }

    /// What [`Machine::json`] and the boot id say; what is missing is empty.
    pub fn read(json: &Json, boot: &str) -> Machine {
        let text = |key: &str| json.get_exact(key).and_then(Json::as_str).unwrap_or_default().to_owned();
        let int = |key: &str| json.get_exact(key).and_then(Json::as_int::<u64>).unwrap_or_default();
        Machine {
            name: text("name"),
            cpu: text("cpu"),
            cores: int("cores") as usize,
            memory_mib: int("memory_mib"),
            kernel: text("kernel"),
            boot: boot.to_owned(),
        }
    }

    /// One line.
    pub fn text(&self) -> String {
        let cpu = if self.cpu.is_empty() { "an unnamed processor" } else { &self.cpu };
        let gib = self.memory_mib as f64 / 1024.0;
        format!("{} x {cpu}, {gib:.0} GiB, Linux {}", self.cores, self.kernel)
    }
}

/// Seconds all processors have worked since boot: everything but idling and waiting for disks.
pub fn busy() -> f64 {
    let text = read("/proc/stat");
    let first = text.lines().next().unwrap_or_default();
    let ticks: Vec<f64> = first.split_whitespace().skip(1).take(8).filter_map(|n| n.parse().ok()).collect();
    let idle: f64 = ticks.iter().skip(3).take(2).sum();
    (ticks.iter().sum::<f64>() - idle) / TICKS
}

/// Share of all processors in use while we do nothing, in the time given.
pub fn foreign(span: Duration) -> f64 {
    let (before, start) = (busy(), std::time::Instant::now());
    std::thread::sleep(span);
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    ((busy() - before) / (start.elapsed().as_secs_f64() * cores)).clamp(0.0, 1.0)
}

/// Now, as `2026-11-27 02:40 UTC`.
pub fn date() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    date_of(seconds)
}

/// Days to year, month and day by the proleptic Gregorian calendar, with years that begin in March.
fn date_of(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let era = days / 146_097;
    let day = days % 146_097;
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let shifted = (5 * day + 2) / 153;
    let (date, month) =
        (day - (153 * shifted + 2) / 5 + 1, if shifted < 10 { shifted + 3 } else { shifted - 9 });
    let year = year + era * 400 + u64::from(month <= 2);
    format!("{year}-{month:02}-{date:02} {:02}:{:02} UTC", rest / 3600, rest % 3600 / 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_those_of_the_calendar() {
        // `date -u -d @N`
        for (seconds, want) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_400, "2000-02-29 00:00 UTC"),
            (1_709_251_199, "2024-02-29 23:59 UTC"),
            (1_795_747_200, "2026-11-27 02:40 UTC"),
            (4_107_542_400, "2100-03-01 00:00 UTC"),
        ] {
            assert_eq!(date_of(seconds), want);
        }
    }

    #[test]
    fn this_machine_has_processors_that_have_worked() {
        assert!(Machine::here().cores > 0 && !Machine::here().kernel.is_empty());
        assert!(busy() > 0.0);
    }
}
