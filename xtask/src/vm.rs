//! `cargo xtask vm [FILTER]...`: tests of what the running kernel lacks, on Debian's cloud kernels under
//! qemu's emulation. A guest's whole file system is an initramfs of the project's own programs and the
//! tools they are checked with; its first process is this program (see `guest`).

mod backports;
mod cpio;
pub mod guest;
mod image;
mod kernels;
mod modules;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::say;
use crate::suite::Tally;
use kernels::{Kernel, Release};

/// Tests to run in a guest: a package, its test program (`lib`: the tests inside the package), the words that select its
/// tests (libtest's substring filters; none: all of them), what the guest lacks as well: words of skips that are fine,
/// and what the guest boots.
struct Suite {
    package: &'static str,
    test: &'static str,
    words: &'static [&'static str],
    lacks: &'static [&'static str],
    boot: Boot,
}

/// What a guest boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Boot {
    /// For messages and filters.
    name: &'static str,
    release: Release,
    parameters: &'static str,
    /// qemu's word for the processor.
    cpu: &'static str,
}

const OWN: Boot = Boot { name: "debian", release: Release::Own, parameters: "", cpu: "max" };

/// A kernel that was told so when it started has no IPv6 in any namespace, and no parameters of it (Linux:
/// Documentation/networking/ipv6.rst).
const NO_IPV6: Boot =
    Boot { name: "no_ipv6", release: Release::Own, parameters: "ipv6.disable=1", cpu: "max" };

/// New enough for the fast path, and conntrack is a module (decision 0244). After `cmpxchg16b` qemu 7.2 has flags that no
/// processor has, with which Linux 6.12 comes to grief (in `do_sync_core`) before its first process.
const BACKPORTS: Boot =
    Boot { name: "backports", release: Release::Backports, parameters: "", cpu: "max,-cx16" };

const SUITES: &[Suite] = &[
    // All of the room: the guest's kernel is years older than most, and lacks tables that persist. The names by
    // which iptables' variants are called are not in the guest; both variants are tested on the machine itself.
    Suite {
        package: "kernel",
        test: "it",
        words: &[],
        lacks: &["owned tables", "kernel before 6.9", "(package iptables)"],
        boot: OWN,
    },
    Suite {
        package: "cni",
        test: "it",
        words: &["vlan", "dummy", "vrf", "bandwidth"],
        lacks: &[],
        boot: OWN,
    },
    // Its kernel has WireGuard, so a test of the tunnel in user space is the machine's own.
    // And it is older than the fast path, which has to be said.
    Suite {
        package: "node",
        test: "it",
        words: &["ipip", "wireguard", "a_kernel_without_it"],
        lacks: &["carries it itself"],
        boot: OWN,
    },
    Suite { package: "node", test: "it", words: &["ipsec::esp::", "table::ipsec"], lacks: &[], boot: OWN },
    Suite { package: "cni", test: "it", words: &["no_ipv6::"], lacks: &[], boot: NO_IPV6 },
    Suite { package: "node", test: "it", words: &["no_ipv6::"], lacks: &[], boot: NO_IPV6 },
    Suite { package: "fastpath", test: "lib", words: &[], lacks: &[], boot: BACKPORTS },
    Suite { package: "node", test: "it", words: &["fast::conntrack::"], lacks: &[], boot: BACKPORTS },
];

/// Modules the tests need; what these need in turn comes along. One that is built in is not looked for.
const MODULES: &[&str] = &[
    "8021q",
    "act_mirred",
    "authenc",
    "br_netfilter",
    "bridge",
    "cls_matchall",
    "cls_u32",
    "ctr",
    "drbg",
    "dummy",
    "echainiv",
    "esp4",
    "gcm",
    "ghash-generic",
    "ifb",
    "ip6_tables",
    "ip6table_nat",
    "ip_tables",
    "ipip",
    "iptable_nat",
    "ipvlan",
    "macvlan",
    "nf_conntrack_netlink",
    "nf_tables",
    "nft_chain_nat",
    "nft_compat",
    "nft_ct",
    "nft_fib_inet",
    "nft_limit",
    "nft_log",
    "nft_masq",
    "nft_meta_bridge",
    "nft_nat",
    "nft_numgen",
    "nft_redir",
    "nft_reject_inet",
    "overlay",
    "sch_htb",
    "sch_ingress",
    "sch_tbf",
    "seqiv",
    "sha512_generic",
    "tun",
    "veth",
    "vrf",
    "vxlan",
    "wireguard",
    "xfrm_algo",
    "xfrm_user",
    "xt_MASQUERADE",
    "xt_addrtype",
    "xt_comment",
    "xt_conntrack",
    "xt_mark",
    "xt_multiport",
    "xt_nat",
    "xt_tcpudp",
];

/// Programs the tests run as witnesses, with the libraries they need.
const TOOLS: &[&str] = &[
    "bash",
    "bridge",
    "cat",
    "chmod",
    "conntrack",
    "env",
    "ethtool",
    "ip",
    "ip6tables",
    "ip6tables-restore",
    "ip6tables-save",
    "iptables",
    "iptables-restore",
    "iptables-save",
    "kill",
    "ls",
    "mkdir",
    "mount",
    "nft",
    "nsenter",
    "ping",
    "rm",
    "sh",
    "sleep",
    "ss",
    "strace",
    "swanctl",
    "sysctl",
    "tc",
    "tcpdump",
    "true",
    "umount",
    "unshare",
    "wg",
];

/// Directories the tools and tests look into, where this machine has them.
const TREES: &[&str] = &[
    "/usr/lib/cni",
    "/usr/lib/ipsec",
    "/usr/lib/x86_64-linux-gnu/ossl-modules",
    "/usr/lib/x86_64-linux-gnu/xtables",
    "/etc/iproute2",
    "/etc/protocols",
    "/etc/strongswan.conf",
    "/etc/strongswan.d",
    "/etc/swanctl",
];

/// A boot with the tests of one room takes a minute; more than this is a hang.
const PATIENCE: Duration = Duration::from_secs(1_800);

/// Memory of the guest in MiB: the initramfs is unpacked into it.
const MEMORY: &str = "3072";

fn suites(filters: &[String]) -> impl Iterator<Item = &'static Suite> {
    SUITES.iter().filter(|suite| {
        let (words, boot) = (suite.words.join(" "), suite.boot);
        let name = [suite.package, suite.test, &words, boot.name, boot.parameters].join(" ");
        filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()))
    })
}

/// The guests of the suites whose package, words or guest contain one of `filters`; all without filters.
pub fn boots(filters: &[String]) -> Result<Vec<Boot>, String> {
    let mut boots = Vec::new();
    for suite in suites(filters) {
        if !boots.contains(&suite.boot) {
            boots.push(suite.boot);
        }
    }
    if boots.is_empty() {
        let names: Vec<&str> = SUITES.iter().map(|suite| suite.package).collect();
        return Err(format!("no suite fits {filters:?}; there are {}", names.join(", ")));
    }
    Ok(boots)
}

/// Runs the suites of one guest that fit `filters`, or of these suites the tests of some `names` alone; adds what they
/// say to `tally`. Gives whether every test passed; an error is anything else.
pub fn run(boot: Boot, filters: &[String], names: &[String], tally: &mut Tally) -> Result<bool, String> {
    let root = crate::tidy::root()?;
    let kernel = match kernels::get(&root, boot.release) {
        Ok(kernel) => kernel,
        Err(reason) => {
            tally.line(&format!("SKIP vm {}: {}", boot.name, reason.replace('\n', " ")));
            return Ok(true);
        }
    };
    let suites: Vec<&Suite> = suites(filters).filter(|suite| suite.boot == boot).collect();
    let mut runs = Vec::new();
    for suite in &suites {
        let program = build(suite)?;
        // Tests find their data and the programs under test by paths of the build.
        let dir = root.join("crates").join(suite.package);
        let mut words: Vec<String> = suite.words.iter().map(|word| (*word).to_owned()).collect();
        if !names.is_empty() {
            words = ["--test-threads=1", "--exact"].map(str::to_owned).to_vec();
            words.extend_from_slice(names);
        }
        runs.push(guest::Run { dir, program, words });
    }
    let archive = root.join("target/vm/initramfs.cpio");
    image::write(&archive, &kernel, &runs)?;
    let size = fs::metadata(&archive).map(|m| m.len() >> 20).unwrap_or_default();
    say(&format!("+ qemu: {} {} with {size} MiB of initramfs\n", kernel.version, boot.parameters));
    start(&kernel, &archive, boot, &suites, tally)
}

/// What a program prints; an error names it.
fn output(program: &str, words: &[&str]) -> Result<String, String> {
    let output =
        Command::new(program).args(words).output().map_err(|error| format!("start {program}: {error}"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{program} {}: {}", words.join(" "), text.trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Builds a test program; gives its path.
fn build(suite: &Suite) -> Result<PathBuf, String> {
    let target: &[&str] = if suite.test == "lib" { &["--lib"] } else { &["--test", suite.test] };
    let words = [&["test", "--no-run", "-j2", "--message-format=json", "-p", suite.package], target].concat();
    say(&format!("+ cargo {}\n", words.join(" ")));
    let output = Command::new("cargo")
        .args(words)
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("start cargo: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let messages = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut programs = messages.filter(|m| m["profile"]["test"] == true);
    let program = programs.find_map(|m| m["executable"].as_str().map(PathBuf::from));
    program.ok_or_else(|| format!("cargo built no test {} of {}", suite.test, suite.package))
}

/// Ends the guest with the value.
struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(
    kernel: &Kernel,
    archive: &Path,
    boot: Boot,
    suites: &[&Suite],
    tally: &mut Tally,
) -> Result<bool, String> {
    let begun = Instant::now();
    let mut child = Command::new("qemu-system-x86_64")
        .args(["-accel", "tcg,thread=multi", "-cpu", boot.cpu, "-smp", "2", "-m", MEMORY])
        .args(["-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio", "-kernel"])
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(archive)
        // loglevel 3: the kernel's complaints, not its news.
        .args([
            "-append",
            &format!("console=ttyS0 loglevel=3 panic=-1 random.trust_cpu=on {}", boot.parameters),
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("start qemu-system-x86_64: {error}"))?;
    let Some(console) = child.stdout.take() else { return Err("qemu has no console".to_owned()) };
    let guest = Guest(child);
    let (lines, console_lines) = mpsc::sync_channel(1024);
    std::thread::spawn(move || {
        for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
            if lines.send(String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned()).is_err() {
                return;
            }
        }
    });
    let mut verdict = None;
    let mut last = String::new();
    let mut lacks: &[&str] = &[];
    let mut refused = Vec::new();
    loop {
        let left = PATIENCE.saturating_sub(begun.elapsed());
        match console_lines.recv_timeout(left) {
            Ok(line) => {
                if let Some(word) = line.strip_prefix(guest::DONE) {
                    verdict = Some(word.trim().to_owned());
                } else if let Some(number) = line.strip_prefix(guest::RUNS) {
                    let suite = number.trim().parse().ok().and_then(|n: usize| suites.get(n));
                    lacks = suite.map_or(&[], |suite| suite.lacks);
                } else if line.starts_with("SKIP ") && !lacks.iter().any(|word| line.contains(word)) {
                    refused.push(line.clone());
                } else if let Some(news) = line.strip_prefix(guest::SAYS) {
                    say(&format!("vm: {news}\n"));
                } else if tally.line(&line) {
                    say(&format!("{line}\n"));
                }
                if !line.trim().is_empty() {
                    last = line;
                }
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                return Err(format!("the guest did not end within {PATIENCE:?}; its last line: {last}"));
            }
        }
    }
    drop(guest);
    say(&format!("vm: {:.0} s in all\n", begun.elapsed().as_secs_f64()));
    if !refused.is_empty() {
        return Err(format!("skipped in the guest, which has what they need: {}", refused.join("; ")));
    }
    match verdict.as_deref() {
        Some(failed) => Ok(failed == "0"),
        None => Err(format!("the guest ended without a verdict; its last line: {last}")),
    }
}
