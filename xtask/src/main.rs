//! The project's own commands: `cargo xtask check | test | ci | dist | image | sbom | faults | fuzz | bench | tidy`.
//!
//! The same commands run here, on a contributor's machine and in CI. Nothing but cargo and the tools
//! named in [`PACKAGES`] is needed.

mod dist;
mod pure;
mod suite;
mod tidy;
mod vm;

use std::process::{Command, ExitCode};

/// Debian packages the tests use as foreign witnesses and peers, and the compiler of the fast path. The programs
/// themselves need none.
pub const PACKAGES: &[&str] = &[
    "bpftool",
    "busybox-static",
    "chromium",
    "clang",
    "conntrack",
    "containerd",
    "containernetworking-plugins",
    "crun",
    "dbus-daemon",
    "dnsmasq-base",
    "docker.io",
    "etcd-client",
    "etcd-server",
    "ethtool",
    "firewalld",
    "fish",
    "groff-base",
    "iproute2",
    "iptables",
    "iputils-ping",
    "jq",
    "libstrongswan-standard-plugins",
    "nftables",
    "podman",
    "procps",
    "prometheus",
    "qemu-system-x86",
    "strace",
    "strongswan-charon",
    "strongswan-swanctl",
    "systemd",
    "tcpdump",
    "wireguard-tools",
    "xz-utils",
    "zsh",
];

const USAGE: &str = "\
usage: cargo xtask COMMAND

  check    formatting, lints, house rules and the pure tests: under a minute when warm
  test     all tests; as root, or those that need root are skipped by name
  ci       install what the tests need (Debian packages), then check and test
  vm       tests of what this kernel lacks, in guests of Debian's kernels: `cargo xtask vm [FILTER]...`
  dist     static release programs in dist/, with their sizes
  image    dist, then both container images as archives in dist/, without a daemon; with targets, such as
           aarch64-unknown-linux-gnu, for those machines too
  sbom     bills of materials of both programs in dist/, CycloneDX
  faults   the fault catalogue on real namespaces, as root: `cargo xtask faults [R..]` (docs/guide/faults.md)
  fuzz     bytes by chance for every decoder: `cargo xtask fuzz [TARGET]... [--seconds N]`; with coverage, by libFuzzer:
           `cargo xtask fuzz --coverage TARGET [FLAG]...` (docs/decisions/0191-fuzzing.md)
  bench    dist, then measure it: `cargo xtask bench all`, as root (docs/guide/performance.md); the parts that only
           compute, now or beside another revision: `cargo xtask bench pure [FILTER] [--against REV]`
  tidy     the house rules alone
";

fn main() -> ExitCode {
    if std::process::id() == 1 {
        vm::guest::main();
    }
    let command = std::env::args().nth(1).unwrap_or_default();
    let done = match command.as_str() {
        "check" => check(),
        "test" => suite::run(),
        "ci" => install().and_then(|()| check()).and_then(|()| suite::run()),
        "vm" => suite::vm(&std::env::args().skip(2).collect::<Vec<_>>()),
        "dist" => dist::run(),
        "image" => dist::images(&std::env::args().skip(2).collect::<Vec<_>>()),
        "sbom" => dist::sbom(),
        "faults" => faults(),
        "fuzz" => fuzz(),
        "bench" => bench(&std::env::args().skip(2).collect::<Vec<_>>()),
        "tidy" => tidy::run(),
        _ => {
            say(USAGE);
            return ExitCode::from(if command.is_empty() || command == "help" { 0 } else { 2 });
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("xtask {command}: {error}\n"));
            ExitCode::FAILURE
        }
    }
}

/// Fast failures first.
fn check() -> Result<(), String> {
    run("cargo", &["fmt", "--all", "--check"])?;
    tidy::run()?;
    run("cargo", &["test", "--quiet", "-p", "model", "-p", "plan", "-j2"])?;
    run("cargo", &["clippy", "--workspace", "--all-targets", "-j2", "--", "-D", "warnings"])
}

/// The words after `bench` are the program's own, but for what only computes: that needs no program.
fn bench(words: &[String]) -> Result<(), String> {
    if let Some(("pure", rest)) = words.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        return pure::run(rest);
    }
    dist::run()?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let run_it = ["run", "--quiet", "--profile", "quick", "-j2", "-p", "benches", "--"];
    run("cargo", &[run_it.as_slice(), words.as_slice()].concat())
}

/// The words after `faults` are the program's own.
fn faults() -> Result<(), String> {
    run("cargo", &["build", "--quiet", "-j2", "-p", "node", "-p", "cni", "-p", "faults", "--bins"])?;
    let words: Vec<String> = std::env::args().skip(2).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    run("cargo", &[&["run", "--quiet", "-j2", "-p", "faults", "--"], words.as_slice()].concat())
}

/// What libFuzzer looks at, by flags that stable Rust has.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";

/// The words after `fuzz` are the program's own. With `--coverage` libFuzzer grows a corpus below `fuzz/target`.
fn fuzz() -> Result<(), String> {
    let words: Vec<String> = std::env::args().skip(2).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let [first, target, flags @ ..] = words.as_slice() else {
        return run("cargo", &[&["run", "--quiet", "-j2", "-p", "fuzz", "--"], words.as_slice()].concat());
    };
    if *first != "--coverage" {
        return run("cargo", &[&["run", "--quiet", "-j2", "-p", "fuzz", "--"], words.as_slice()].concat());
    }
    let root = tidy::root()?;
    let grown = root.join("fuzz/target/corpus").join(target);
    // It goes on from what was kept of the runs before (`cargo xtask fuzz keep`).
    let folder = grown.display().to_string();
    run("cargo", &["run", "--quiet", "-j2", "-p", "fuzz", "--", "unpack", target, &folder])?;
    let (flag, name) = (format!("RUSTFLAGS={COVERAGE}"), format!("LODEN_FUZZ_TARGET={target}"));
    let manifest = root.join("fuzz/Cargo.toml").display().to_string();
    let kept = root.join("crates/fuzz/corpus").join(target).display().to_string();
    // Naming the machine keeps the flags away from build scripts.
    let machine = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let cargo =
        ["cargo", "run", "--release", "-j2", "--target", &machine, "--manifest-path", &manifest, "--"];
    let words: Vec<&str> =
        [flag.as_str(), &name].into_iter().chain(cargo).chain(flags.iter().copied()).collect();
    run("env", &[words.as_slice(), &[&folder, &kept]].concat())
}

/// Installs what is missing of [`PACKAGES`]; on a machine that has all of it nothing happens.
fn install() -> Result<(), String> {
    let missing: Vec<&str> = PACKAGES.iter().copied().filter(|p| !installed(p)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    run("apt-get", &["update", "-qq"])?;
    let mut args = vec!["install", "-y", "-qq", "--no-install-recommends"];
    args.extend(missing);
    run("env", &[&["DEBIAN_FRONTEND=noninteractive", "apt-get"], args.as_slice()].concat())
}

fn installed(package: &str) -> bool {
    let query = Command::new("dpkg-query").args(["-W", "-f=${Status}", package]).output();
    query.is_ok_and(|out| out.stdout.ends_with(b"install ok installed"))
}

/// What is released, and what CI looks at, has the fast path: without clang it is not built.
pub fn require_fast_path(command: &mut Command) {
    if std::env::args().nth(1).is_some_and(|word| ["ci", "dist", "image", "bench"].contains(&word.as_str())) {
        command.env("LODEN_REQUIRE_FASTPATH", "1");
    }
}

/// Runs a command with our output.
pub fn run(program: &str, args: &[&str]) -> Result<(), String> {
    say(&format!("+ {program} {}\n", args.join(" ")));
    let mut command = Command::new(program);
    require_fast_path(&mut command);
    let status = command.args(args).status().map_err(|e| format!("start {program}: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("{program} {}: {status}", args.join(" "))) }
}

/// Writes to standard output; a reader that went away is no failure.
pub fn say(text: &str) {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
