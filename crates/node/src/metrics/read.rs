//! What is read when somebody asks for metrics: the process, and the counters of the source checks. A few system
//! calls; changes nothing.

use std::fs;
use std::time::SystemTime;

use kernel::Nft;
use plan::sources;
use plan::state::NftFamily;

use super::{Dropped, Probes, Process, Surroundings};
use crate::clock;

/// Everything.
pub fn surroundings() -> Surroundings {
    Surroundings {
        now: SystemTime::now(),
        uptime: clock::uptime(),
        process: process(),
        dropped: dropped(),
        probes: Probes::default(),
    }
}

/// The counters of all source checks of this network namespace; none where nftables cannot be read.
pub fn dropped() -> Vec<Dropped> {
    let Ok(mut nft) = Nft::open() else { return Vec::new() };
    let mut all = Vec::new();
    for (family, word) in [(NftFamily::Ip, "ip"), (NftFamily::Ip6, "ip6")] {
        for table in nft.tables(family).unwrap_or_default() {
            // What WireGuard's table drops is of nodes, not of strangers (decision 0172).
            let strangers = !sources::is_of_wireguard(&table);
            let Some(device) = sources::device(&table).filter(|_| strangers) else { continue };
            let counters = nft.counters(&table).unwrap_or_default();
            all.push(Dropped {
                device: device.to_string(),
                family: word.to_owned(),
                packets: counters.iter().map(|c| c.packets).sum(),
                bytes: counters.iter().map(|c| c.bytes).sum(),
            });
        }
    }
    all
}

/// proc(5): stat, limits, and the entries of fd.
fn process() -> Option<Process> {
    /// Ticks of a second in `/proc`, whatever the kernel's own are.
    const TICKS: f64 = 100.0;
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name in parentheses may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    // The field after the name is number 3.
    let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let kib = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let max = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let kernel = fs::read_to_string("/proc/stat").unwrap_or_default();
    let boot = kernel.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<f64>().ok());
    Some(Process {
        cpu_s: (field(14)? + field(15)?) / TICKS,
        resident: kib("VmRSS:")? * 1024,
        virtual_: kib("VmSize:")? * 1024,
        fds: fs::read_dir("/proc/self/fd").ok()?.count() as u64,
        max_fds: max.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0),
        start_s: boot.unwrap_or_default() + field(22)? / TICKS,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_understood() {
        let process = process().expect("proc is there");
        assert!(process.resident > 1 << 20 && process.virtual_ >= process.resident, "{process:?}");
        assert!(process.fds > 2 && process.max_fds >= process.fds, "{process:?}");
        let now = SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs_f64();
        assert!(process.start_s > 1e9 && process.start_s < now + 2.0, "{process:?}");
    }
}
