//! Which machine, kernel and day the figures are of, and how much of it others used meanwhile.

use std::fs;

use serde_json::{Value, json};

/// What stands above the tables.
#[derive(Debug)]
pub struct Machine {
    cpu: String,
    cores: usize,
    memory_gib: f64,
    kernel: String,
    date: String,
    commit: String,
    start: Ticks,
}

/// Clock ticks of all cores since boot.
#[derive(Clone, Copy, Debug, Default)]
struct Ticks {
    idle: u64,
    all: u64,
}

fn first_line_value(path: &str, key: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
    line.split_once(':').map_or("", |(_, value)| value.trim()).to_owned()
}

fn ticks() -> Ticks {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let words = text.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let numbers: Vec<u64> = words.take(8).filter_map(|n| n.parse().ok()).collect();
    Ticks { idle: numbers.iter().skip(3).take(2).sum(), all: numbers.iter().sum() }
}

fn output(program: &str, args: &[&str]) -> String {
    let output = std::process::Command::new(program).args(args).output();
    output.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default()
}

impl Machine {
    /// This one, now.
    pub fn here() -> Machine {
        let kib: f64 = first_line_value("/proc/meminfo", "MemTotal")
            .split(' ')
            .next()
            .and_then(|n| n.parse().ok())
            .unwrap_or(0.0);
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Machine {
            cpu: first_line_value("/proc/cpuinfo", "model name"),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gib: kib / f64::from(1 << 20),
            kernel: kernel.trim().to_owned(),
            date: output("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
            commit: output("git", &["describe", "--always", "--dirty"]),
            start: ticks(),
        }
    }

    /// One line.
    pub fn text(&self) -> String {
        let Machine { cpu, cores, memory_gib, kernel, date, commit, .. } = self;
        format!("{cores} cores of {cpu}, {memory_gib:.0} GiB, Linux {kernel}, {date}, commit {commit}")
    }

    /// As JSON, at the end of the run.
    pub fn json(&self) -> Value {
        json!({
            "cpu": self.cpu, "cores": self.cores, "memory_gib": self.memory_gib, "kernel": self.kernel,
            "date": self.date, "commit": self.commit, "busy": self.busy(), "load": load(),
        })
    }

    /// Share of all cores' time that was used since the start, by us and others.
    pub fn busy(&self) -> f64 {
        let now = ticks();
        let (idle, all) = (now.idle - self.start.idle, now.all - self.start.all);
        if all == 0 { 0.0 } else { 1.0 - idle as f64 / all as f64 }
    }
}

/// The load averages, as the kernel prints them.
pub fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}
