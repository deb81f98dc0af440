//! A host namespace, a directory, and calls of plugins as a runtime makes them.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use kernel::Netns;
use model::gojson::Json;

/// The program under test.
pub const OURS: &str = env!("CARGO_BIN_EXE_loden-cni");
/// Where Debian has the reference plugins.
pub const DEBIAN: &str = "/usr/lib/cni";

/// A host with our plugins installed. Everything below `dir` goes with it.
pub struct Host {
    /// Its namespace.
    pub netns: Netns,
    /// Its files.
    pub dir: PathBuf,
}

/// What a plugin answered.
pub struct Answer {
    /// Exit status 0.
    pub ok: bool,
    /// stdout as it came.
    pub text: String,
    /// stdout as JSON, `null` if empty.
    pub json: Json,
    /// stderr.
    pub stderr: String,
}

impl Answer {
    /// What a program printed.
    pub fn of(output: Output) -> Answer {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let json =
            if text.is_empty() { Json::Null } else { text.parse().expect("stdout is one JSON document") };
        Answer {
            ok: output.status.success(),
            json,
            text,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The result; a failure ends the test.
    #[track_caller]
    pub fn expect(self, what: &str) -> Json {
        assert!(self.ok, "{what}: {} {}", self.text, self.stderr);
        self.json
    }

    /// Code and text of the error; a success ends the test.
    #[track_caller]
    pub fn error(&self) -> (u32, String) {
        assert!(!self.ok, "succeeded: {}", self.text);
        let code = self.json.get("code").and_then(Json::as_int).expect("an error has a code");
        let text = |key| self.json.get(key).and_then(Json::as_str).unwrap_or_default();
        (code, format!("{}; {}", text("msg"), text("details")))
    }
}

/// One attachment as the runtime names it.
#[derive(Clone)]
pub struct Pod {
    /// Container id.
    pub id: String,
    /// Interface.
    pub ifname: String,
    /// Path of the namespace.
    pub path: String,
}

/// A pod's namespace and its name.
pub fn pod(id: &str) -> (Netns, Pod) {
    let netns = Netns::create().expect("make a namespace");
    let path = netns.path().display().to_string();
    (netns, Pod { id: id.to_owned(), ifname: "eth0".to_owned(), path })
}

impl Host {
    /// A fresh host.
    pub fn new() -> Host {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("loden-cni-it-{}-{n}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(dir.join("bin")).unwrap();
        let netns = Netns::create().expect("make a namespace (the tests run as root)");
        let host = Host { netns, dir };
        let done = Command::new(OURS).args(["install", "--bin-dir"]).arg(host.bin()).output().unwrap();
        assert!(done.status.success(), "{done:?}");
        host.ip("link set lo up");
        host
    }

    /// Our plugins.
    pub fn bin(&self) -> PathBuf {
        self.dir.join("bin")
    }

    /// A path below the directory, as text for configurations.
    pub fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// Writes `subnet.env` and gives its path.
    pub fn subnet_env(&self, text: &str) -> String {
        let path = self.path("subnet.env");
        std::fs::write(&path, text).unwrap();
        path
    }

    /// A command in the host's namespace.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("LODEN_CNI_STATE_DIR", self.dir.join("state"));
        command
    }

    /// Runs a command to its end in the host's namespace.
    pub fn run(&self, command: &mut Command, input: &str) -> Output {
        run_in(&self.netns, command, input)
    }

    /// Calls a plugin found in `dirs` (the first for the plugin itself).
    pub fn call_with(&self, dirs: &[&str], plugin: &str, verb: &str, pod: &Pod, conf: &str) -> Answer {
        let mut command = self.prepare(dirs, plugin, verb, pod);
        Answer::of(self.run(&mut command, conf))
    }

    /// The command of a call.
    pub fn prepare(&self, dirs: &[&str], plugin: &str, verb: &str, pod: &Pod) -> Command {
        let file = dirs.iter().map(|dir| Path::new(dir).join(plugin)).find(|file| file.exists());
        let mut command = self.command(file.expect("the plugin is in one of the directories"));
        command.env("CNI_COMMAND", verb).env("CNI_PATH", dirs.join(":"));
        command.env("CNI_CONTAINERID", &pod.id).env("CNI_IFNAME", &pod.ifname).env("CNI_NETNS", &pod.path);
        command
    }

    /// Calls one of our plugins.
    pub fn call(&self, plugin: &str, verb: &str, pod: &Pod, conf: &str) -> Answer {
        self.call_with(&[&self.bin().display().to_string()], plugin, verb, pod, conf)
    }

    /// `ip` in the host's namespace.
    pub fn ip(&self, args: &str) -> String {
        ip_in(&self.netns, args)
    }

    /// Names of the devices other than `lo`.
    pub fn links(&self) -> Vec<String> {
        let list: Json = self.ip("-j link show").parse().unwrap();
        let name = |l: &Json| l.get("ifname").and_then(Json::as_str).unwrap_or_default().to_owned();
        list.as_array().unwrap().iter().map(name).filter(|name| name != "lo").collect()
    }

    /// Files below the directory, sorted, relative.
    pub fn files(&self, below: &str) -> Vec<String> {
        fn walk(dir: &Path, out: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                match entry.path() {
                    path if path.is_dir() => walk(&path, out),
                    path => out.push(path),
                }
            }
        }
        let (mut files, top) = (Vec::new(), self.dir.join(below));
        walk(&top, &mut files);
        let relative = |p: &PathBuf| p.strip_prefix(&top).unwrap().display().to_string();
        let mut files: Vec<String> = files.iter().map(relative).collect();
        files.sort();
        files
    }

    /// Whether the kernel makes devices of a kind.
    pub fn has(&self, kind: &str) -> bool {
        let args: &[&str] = match kind {
            "macvlan" | "ipvlan" => &["link", "add", "link", "has0", "has1", "type", kind],
            "vlan" => &["link", "add", "link", "has0", "has1", "type", "vlan", "id", "9"],
            "vrf" => &["link", "add", "has1", "type", "vrf", "table", "9"],
            _ => &["link", "add", "has1", "type", kind],
        };
        let netns = Netns::create().unwrap();
        ip_in(&netns, "link add has0 type veth peer name has2");
        run_in(&netns, Command::new("ip").args(args), "").status.success()
    }

    /// The ruleset as text, empty when there is none.
    pub fn rules(&self) -> String {
        let output = self.run(Command::new("nft").arg("list").arg("ruleset"), "");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Runs a command to its end inside a namespace.
pub fn run_in(netns: &Netns, command: &mut Command, input: &str) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = netns.run(|| command.spawn()).unwrap().expect("start the program");
    let mut stdin = child.stdin.take().unwrap();
    // A program that does not read its input closes the pipe.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    child.wait_with_output().unwrap()
}

/// `ip` inside a namespace; its failure ends the test.
#[track_caller]
pub fn ip_in(netns: &Netns, args: &str) -> String {
    let output = run_in(netns, Command::new("ip").args(args.split_whitespace()), "");
    assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Sets a member of a configuration.
pub fn with(conf: &str, key: &str, value: impl Into<Json>) -> String {
    let mut json: Json = conf.parse().unwrap();
    json.set(key, value);
    json.to_compact()
}

/// Debian's plugins, or a note that the test is skipped.
pub fn debian(test: &str) -> bool {
    let there = Path::new(DEBIAN).join("bridge").exists();
    if !there {
        println!("SKIP {test}: Debian's containernetworking-plugins are not installed");
    }
    there
}

/// Whether the kernel makes devices of a kind, or a note that the test is skipped.
pub fn kernel_has(test: &str, kind: &str) -> bool {
    let there = Host::new().has(kind);
    if !there {
        println!("SKIP {test}: this kernel lacks {kind}");
    }
    there
}

/// The text of the members of a result that do not change from run to run.
pub fn stable(result: &Json) -> String {
    let mut result = result.clone();
    let mut interfaces = result.get("interfaces").and_then(Json::as_array).unwrap_or_default().to_vec();
    for interface in &mut interfaces {
        let name = interface.get("name").and_then(Json::as_str).unwrap_or_default().to_owned();
        if name.starts_with("veth") {
            interface.set("name", "vethX");
        }
        if name != "lo" {
            assert!(interface.get("mac").is_some(), "{interface:?} has a mac");
            interface.set("mac", "M");
        }
        if interface.get("sandbox").is_some() {
            interface.set("sandbox", "S");
        }
    }
    if !interfaces.is_empty() {
        result.set("interfaces", interfaces);
    }
    // Older plugins print an empty `dns` in every version.
    if result.get("dns").is_some_and(|dns| dns.members().is_some_and(<[_]>::is_empty)) {
        result.remove("dns");
    }
    result.to_compact_sorted()
}

/// What the iptables of both families hold: chains other than the built-in ones sorted, rules in order,
/// without counters and comments.
pub fn iptables(host: &Host) -> String {
    let mut text = String::new();
    for tool in ["iptables-save", "ip6tables-save"] {
        let output = host.run(&mut host.command(format!("/usr/sbin/{tool}")), "");
        let saved = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut chains: Vec<&str> =
            saved.lines().filter_map(|l| l.strip_prefix(':')?.strip_suffix(" - [0:0]")).collect();
        chains.sort_unstable();
        text.push_str(&format!("{tool}\n{}\n", chains.join("\n")));
        for line in saved.lines().filter(|l| l.starts_with("-A")) {
            text.push_str(&without_comment(line));
            text.push('\n');
        }
    }
    text
}

/// A printed rule without its comment, which changed between releases.
fn without_comment(line: &str) -> String {
    let Some((before, rest)) = line.split_once("-m comment --comment ") else { return line.to_owned() };
    let mut end = 0;
    let mut quoted = false;
    let mut letters = rest.char_indices();
    while let Some((at, c)) = letters.next() {
        match c {
            '\\' => drop(letters.next()),
            '"' => quoted = !quoted,
            ' ' if !quoted => {
                end = at + 1;
                break;
            }
            _ => {}
        }
    }
    format!("{before}{}", &rest[end..])
}

/// Runs the same for our plugins and for Debian's, each on a host of its own, and compares; without
/// Debian's plugins ours alone are run.
#[track_caller]
pub fn twins(test: &str, what: &str, run: impl Fn(&Host, &[&str]) -> String) {
    let ours = Host::new();
    let bin = ours.bin().display().to_string();
    let got = run(&ours, &[&bin]);
    if debian(test) {
        let theirs = Host::new();
        let want = run(&theirs, &[DEBIAN]);
        assert_eq!(got, want, "{what}: ours, then Debian's");
    }
}
