//! A host with files of its own: changes below `/etc`, `/opt`, `/run` and `/var/lib` are seen there only,
//! so that programs run with the paths they have on a real node. It also has process ids of its own:
//! whatever runs there ends with it.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crate::world::{Agent, Host, run, until};

/// Writable layers above the machine's directories, in a file system that nobody else sees. The last
/// process of the namespace reads its input: when that ends, everything does. Whose parent has ended is not
/// waited for but goes at once, as under any first process.
const SETUP: &str = r#"
set -e
layers=$1
shift
mount -t tmpfs loden-test "$layers"
for directory in etc opt var/lib "$@"; do
  mkdir -p "$layers/$directory/files" "$layers/$directory/work"
  mount -t overlay overlay "/$directory" -o "lowerdir=/$directory,upperdir=$layers/$directory/files,workdir=$layers/$directory/work"
done
mount -t tmpfs loden-test /run
echo ready
exec env --ignore-signal=CHLD cat
"#;

/// The namespaces of one host's files and processes.
pub struct Machine {
    holder: Child,
    /// Process 1 of it, seen from outside.
    init: u32,
}

impl Machine {
    /// Around a host of a world. `None` with a printed reason where the kernel does not allow it.
    pub fn on(host: &Host, test: &str) -> Option<Machine> {
        Machine::with(host, test, &[])
    }

    /// The same with more directories of its own, such as `usr/local`.
    pub fn with(host: &Host, test: &str, more: &[&str]) -> Option<Machine> {
        let layers = host.dir.join("layers");
        fs::create_dir_all(&layers).unwrap();
        let mut command = Command::new("unshare");
        command.args([
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "--propagation",
            "private",
        ]);
        command.args(["sh", "-c", SETUP, "sh"]).arg(&layers).args(more);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut holder = host.netns.run(|| command.spawn()).unwrap().unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if line.trim() != "ready" {
            let output = holder.wait_with_output().unwrap();
            let why = String::from_utf8_lossy(&output.stderr).replace('\n', " ");
            println!("SKIP {test}: a host with files of its own cannot be made: {why}");
            return None;
        }
        let init = child_of(holder.id());
        Some(Machine { holder, init })
    }

    /// A program inside, in the host's network namespace.
    pub fn command(&self, program: &str) -> Command {
        self.enter("--net", program)
    }

    /// A program inside that has another host's network.
    pub fn command_on(&self, host: &Host, program: &str) -> Command {
        self.enter(&format!("--net={}", host.netns.path().display()), program)
    }

    fn enter(&self, net: &str, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        let pid = self.init.to_string();
        command.args(["--target", &pid, "--mount", "--pid", net, "--wd=/", "--", program]);
        command.env_remove("NOTIFY_SOCKET");
        command
    }

    /// What a command prints; fails the test if the command fails.
    pub fn sh(&self, line: &str) -> String {
        let mut words = line.split_whitespace();
        let mut command = self.command(words.next().unwrap());
        command.args(words);
        run(command, line)
    }

    /// Runs a command to its end, however it ends.
    pub fn output(&self, program: &str, words: &[&str]) -> Output {
        self.command(program).args(words).output().unwrap()
    }

    /// Where a path of the machine is seen from outside.
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.init))
    }

    /// Writes a file, with its directories.
    pub fn write(&self, path: &str, text: &str) {
        let file = self.path(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }

    /// Starts the agent with the paths it has on a real node.
    pub fn agent(&self, host: &Host, flags: &[&str], env: &[(&str, &str)]) -> Agent {
        let mut command = self.command(env!("CARGO_BIN_EXE_loden"));
        command.arg("agent").args(flags).env("LODEN_STORE", host.store()).envs(env.iter().copied());
        Agent::by(command, &host.dir.join("log"), self.path("/run/flannel/subnet.env"), |child| {
            child_of(child.id())
        })
    }

    /// Everything below a directory.
    pub fn list(&self, place: &str) -> Vec<String> {
        let mut found = Vec::new();
        walk(&self.path(place), place, &mut found);
        found.sort();
        found
    }

    /// All files and directories that are not as outside, of those that can be.
    pub fn files(&self, host: &Host) -> Vec<String> {
        let layers = self.path(&host.dir.join("layers").display().to_string());
        let mut found = Vec::new();
        for directory in ["etc", "opt", "var/lib"] {
            walk(&layers.join(directory).join("files"), &format!("/{directory}"), &mut found);
        }
        walk(&self.path("/run"), "/run", &mut found);
        found.sort();
        found
    }
}

fn walk(real: &Path, shown: &str, found: &mut Vec<String>) {
    for entry in fs::read_dir(real).into_iter().flatten().flatten() {
        let name = format!("{shown}/{}", entry.file_name().display());
        found.push(name.clone());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), &name, found);
        }
    }
}

/// The one child of a process, such as what `nsenter` and `unshare` wait for.
pub fn child_of(pid: u32) -> u32 {
    until("the child process", || {
        let path = format!("/proc/{pid}/task/{pid}/children");
        let text = fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
        text.split_whitespace().next().and_then(|word| word.parse().ok()).ok_or(format!("{path} is empty"))
    })
}

/// Removes a control group of the machine the test runs on, empty by now, from every hierarchy.
pub fn remove_cgroup(name: &str) {
    let root = Path::new("/sys/fs/cgroup");
    let trees = fs::read_dir(root).into_iter().flatten().flatten().map(|tree| tree.path());
    for tree in trees.chain([root.to_owned()]) {
        let _ = fs::remove_dir(tree.join(name.trim_start_matches('/')));
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}
