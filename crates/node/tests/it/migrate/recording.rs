//! What a real flanneld left behind on two hosts, as data (`tests/data/flanneld`), laid into the hosts of
//! a world by `ip`, `bridge`, `nft` and `iptables-restore`.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::world::{Host, run};

/// One file: sections headed by `## NAME`.
pub struct Recording {
    sections: BTreeMap<String, String>,
}

impl Recording {
    pub fn read(name: &str) -> Recording {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/flanneld");
        let text = std::fs::read_to_string(dir.join(format!("{name}.txt"))).unwrap();
        let mut sections: BTreeMap<String, String> = BTreeMap::new();
        let mut title = String::new();
        for line in text.lines() {
            if let Some(new) = line.strip_prefix("## ") {
                title = new.to_owned();
            } else if !title.is_empty() && !line.is_empty() {
                sections.entry(title.clone()).or_default().push_str(&format!("{line}\n"));
            }
        }
        Recording { sections }
    }

    /// The network configuration.
    pub fn config(&self) -> &str {
        self.sections["config"].trim()
    }

    /// Keys and values in etcd.
    pub fn registry(&self) -> Vec<(&str, &str)> {
        let lines = self.sections.get("registry").map(String::as_str).unwrap_or_default().lines();
        lines.map(|line| line.split_once(' ').unwrap()).collect()
    }

    /// Annotations of a host's Node, where it was recorded with Kubernetes too.
    pub fn annotations(&self, host: &Host) -> impl Iterator<Item = (&str, &str)> {
        self.of(host, "annotations").lines().map(|line| line.split_once(' ').unwrap())
    }

    /// A section of a host, empty if there is none.
    pub fn of(&self, host: &Host, section: &str) -> &str {
        let name = format!("host {} {section}", host.number);
        self.sections.get(&name).map(String::as_str).unwrap_or_default()
    }

    /// Makes a host as flanneld left it.
    pub fn replay(&self, host: &Host) {
        std::fs::write(host.subnet_file(), self.of(host, "subnet.env")).unwrap();
        for line in self.of(host, "ip").lines() {
            let object = line.split(' ').nth(2).unwrap();
            let family = if object.contains(':') { "-6" } else { "-4" };
            host.sh(&format!("ip {family} {line}"));
        }
        for line in self.of(host, "bridge").lines() {
            host.sh(&format!("bridge {line}"));
        }
        for line in self.of(host, "sysctl").lines() {
            host.sh(&format!("sysctl -qw {}", line.replace('.', "|").replace('/', ".").replace('|', "/")));
        }
        for (section, command) in [
            ("iptables", "iptables-restore --noflush"),
            ("ip6tables", "ip6tables-restore --noflush"),
            ("nft", "nft -f -"),
        ] {
            feed(host, command, self.of(host, section));
        }
    }
}

/// Runs a command inside a host with this input, if there is any.
pub fn feed(host: &Host, command: &str, input: &str) {
    if input.is_empty() {
        return;
    }
    let mut words = command.split(' ');
    let mut made = Command::new(words.next().unwrap());
    made.args(words).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = host.netns.run(|| made.spawn()).unwrap().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{command}: {}\n{input}", String::from_utf8_lossy(&output.stderr));
}

/// Debian's etcdctl inside a host.
pub fn etcdctl(host: &Host, words: &[&str]) -> String {
    let mut command = Command::new("etcdctl");
    command.env("ETCDCTL_API", "3").arg("--endpoints=http://192.0.2.11:2379").args(words);
    let shown = format!("etcdctl {words:?}");
    host.netns.run(|| run(command, &shown)).unwrap()
}
