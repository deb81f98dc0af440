//! The guest's first process: loads modules, runs the tests of its plan one program after the other, says
//! on the console how they ended, and switches the machine off.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{MountFlags, mount};
use rustix::process::WaitOptions;

use crate::say;

/// Where the plan is in the guest.
pub const PLAN: &str = "/plan";
/// Begins the line with the number of programs that failed.
pub const DONE: &str = "loden-vm done: ";
/// Begins the line with the number of the program that starts now.
pub const RUNS: &str = "loden-vm runs: ";
/// Begins a line that is not a test's.
pub const SAYS: &str = "loden-vm says: ";

/// One test program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Directory of its package, where it is started.
    pub dir: PathBuf,
    /// The program.
    pub program: PathBuf,
    /// Filters of its tests.
    pub words: Vec<String>,
}

/// What the guest does.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Modules in the order of loading.
    pub modules: Vec<PathBuf>,
    /// Programs in the order of running.
    pub runs: Vec<Run>,
    /// `LODEN_REQUIRE`
    pub require: String,
}

impl Plan {
    /// One line an item, words separated by tabs.
    pub fn to_text(&self) -> String {
        let mut text = format!("require\t{}\n", self.require);
        text.extend(self.modules.iter().map(|path| format!("module\t{}\n", path.display())));
        text.extend(self.runs.iter().map(|run| {
            let words: String = run.words.iter().map(|word| format!("\t{word}")).collect();
            format!("run\t{}\t{}{words}\n", run.dir.display(), run.program.display())
        }));
        text
    }

    fn read(text: &str) -> Plan {
        let mut plan = Plan::default();
        for line in text.lines() {
            match line.split('\t').collect::<Vec<_>>().as_slice() {
                ["require", words] => plan.require = (*words).to_owned(),
                ["module", path] => plan.modules.push(PathBuf::from(path)),
                ["run", dir, program, words @ ..] => plan.runs.push(Run {
                    dir: PathBuf::from(dir),
                    program: PathBuf::from(program),
                    words: words.iter().map(|word| (*word).to_owned()).collect(),
                }),
                _ => {}
            }
        }
        plan
    }
}

/// Never returns: the machine goes off.
pub fn main() -> ! {
    let failed = work().unwrap_or_else(|error| {
        say(&format!("{SAYS}{error}\n"));
        1
    });
    say(&format!("{DONE}{failed}\n"));
    rustix::fs::sync();
    // qemu was told not to start again, so it ends.
    let _ = rustix::system::reboot(rustix::system::RebootCommand::Restart);
    loop {
        std::thread::park();
    }
}

fn work() -> Result<usize, String> {
    for (kind, at) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/tmp"),
        ("tmpfs", "/run"),
        ("tmpfs", "/var/lib"),
    ] {
        mount(kind, at, kind, MountFlags::empty(), None).map_err(|e| format!("mount {kind} on {at}: {e}"))?;
    }
    fs::create_dir_all("/sys/fs/cgroup").ok();
    let _ = mount("cgroup2", "/sys/fs/cgroup", "cgroup2", MountFlags::empty(), None);
    // Links of eBPF programs that outlive their agents.
    let _ = mount("bpf", "/sys/fs/bpf", "bpf", MountFlags::empty(), None);
    // Tunnel modules would put a device of theirs into every namespace (Documentation/admin-guide/sysctl/net.rst).
    fs::write("/proc/sys/net/core/fb_tunnels_only_for_init_net", "1").map_err(|error| error.to_string())?;
    let plan = fs::read_to_string(PLAN).map_err(|error| format!("read {PLAN}: {error}"))?;
    let plan = Plan::read(&plan);
    for module in &plan.modules {
        if let Err(error) = load(module) {
            say(&format!("{SAYS}load {}: {error}\n", module.display()));
        }
    }
    let _ = Command::new("ip").args(["link", "set", "lo", "up"]).env("PATH", PATH).status();
    let mut failed = 0;
    for (number, run) in plan.runs.iter().enumerate() {
        say(&format!("{RUNS}{number}\n"));
        say(&format!("{SAYS}{} {}\n", run.program.display(), run.words.join(" ")));
        let status = Command::new(&run.program)
            .args(&run.words)
            .arg("--show-output")
            .current_dir(&run.dir)
            .env_clear()
            .env("PATH", PATH)
            .env("HOME", "/root")
            .env("LODEN_REQUIRE", &plan.require)
            // Everything takes many times longer on an emulated processor.
            .env("LODEN_TEST_PATIENCE", "120")
            .env("LODEN_TWIN_SEEDS", "2")
            .spawn()
            .and_then(|child| Ok(ended_well(child.id())?));
        match status {
            Ok(true) => {}
            Ok(false) => failed += 1,
            Err(error) => {
                say(&format!("{SAYS}start {}: {error}\n", run.program.display()));
                failed += 1;
            }
        }
    }
    Ok(failed)
}

/// Waits for a child, and as the first process for all whose parents have ended: a namespace of processes ends
/// only when nobody in it is left to be waited for (pid_namespaces(7)).
fn ended_well(child: u32) -> rustix::io::Result<bool> {
    loop {
        if let Some((pid, status)) = rustix::process::wait(WaitOptions::empty())?
            && u32::try_from(pid.as_raw_nonzero().get()) == Ok(child)
        {
            return Ok(status.exit_status() == Some(0));
        }
    }
}

const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

fn load(path: &Path) -> Result<(), String> {
    let file = fs::File::open(path).map_err(|error| error.to_string())?;
    match rustix::system::finit_module(&file, c"", 0) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_survives_its_text() {
        let run = Run { dir: "/a".into(), program: "/a/b".into(), words: vec!["x::".into(), "y".into()] };
        let plan = Plan { modules: vec!["/m/veth.ko".into()], runs: vec![run], require: "vlan,vrf".into() };
        assert_eq!(Plan::read(&plan.to_text()), plan);
    }
}
