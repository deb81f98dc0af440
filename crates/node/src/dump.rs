//! One archive for a bug report: what this node's agent, kernel and files say, without secrets (decision 0220). Made by
//! [`collect`], read back by [`open`]; this is what is in it. Pure but for these two.
//!
//! The first file is `MANIFEST`: one line for each file with where it is from, for what is not there, and for what
//! could not be got, with the reason.

pub mod collect;
pub mod open;
pub mod tables;

use model::Json;

use crate::archive::Entry;
use crate::redact::{MARK, Redactor};

/// Everything is below it.
pub const DIR: &str = "loden-dump";
/// The first file.
pub const MANIFEST: &str = "MANIFEST";
/// Its first line begins so; behind it stands the version of the archive's layout.
pub const TITLE: &str = "loden-dump";
/// Version of the layout. Files are added, never renamed or given another meaning.
pub const VERSION: u32 = 1;
/// What is kept of one text, in bytes: the rules of a large cluster's services are some MiB.
const MOST: usize = 16 << 20;

/// An archive in the making.
#[derive(Debug, Default)]
pub struct Bundle {
    /// Files with where they are from.
    files: Vec<(Entry, String)>,
    /// What is not there on this host, which may be as it should be.
    absent: Vec<String>,
    /// What could not be got: what, why.
    missing: Vec<(String, String)>,
    redactor: Redactor,
}

impl Bundle {
    /// A bundle in which nothing of what this knows can stand.
    pub fn new(redactor: Redactor) -> Bundle {
        Bundle { redactor, ..Bundle::default() }
    }

    /// Adds a text. There is no way in but this one and [`Bundle::json`], both of which take secrets out.
    pub fn text(&mut self, name: &str, from: &str, text: &str) {
        let mut text = self.redactor.text(text);
        if text.len() > MOST {
            let mut end = MOST;
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            text.truncate(end);
            self.missing(name, &format!("only the first {} MiB are kept", MOST >> 20));
        }
        let entry = Entry { name: format!("{DIR}/{name}"), bytes: text.into_bytes() };
        self.files.push((entry, from.to_owned()));
    }

    /// Adds a document.
    pub fn json(&mut self, name: &str, from: &str, json: &Json) {
        let text = self.redactor.json(json).to_indented() + "\n";
        self.text(name, from, &text);
    }

    /// Adds a text that should be a document; as it is if it is none.
    pub fn maybe_json(&mut self, name: &str, from: &str, text: &str) {
        match Json::parse(text.as_bytes()) {
            Ok(json) => self.json(name, from, &json),
            Err(_) => self.text(name, from, text),
        }
    }

    /// Notes that something is not there.
    pub fn absent(&mut self, what: &str) {
        self.absent.push(one_line(what));
    }

    /// Notes that something could not be got.
    pub fn missing(&mut self, what: &str, why: &str) {
        self.missing.push((one_line(what), one_line(why)));
    }

    /// What could not be got, one sentence each.
    pub fn gaps(&self) -> Vec<String> {
        self.missing.iter().map(|(what, why)| self.redactor.text(&format!("{what}: {why}"))).collect()
    }

    /// The files, the manifest first. `made` is the time in RFC 3339, `host` the name of the host.
    pub fn finish(self, made: &str, host: &str) -> Vec<Entry> {
        let removed = |entry: &Entry| String::from_utf8_lossy(&entry.bytes).matches(MARK).count();
        let mut lines = vec![
            format!("{TITLE} {VERSION}"),
            format!("made {made} on {host} by loden {}", crate::start::VERSION),
            format!("complete {}", if self.missing.is_empty() { "yes" } else { "no" }),
            format!("secrets removed {}", self.files.iter().map(|(entry, _)| removed(entry)).sum::<usize>()),
        ];
        for (entry, from) in &self.files {
            let name = entry.name.strip_prefix(DIR).unwrap_or(&entry.name).trim_start_matches('/');
            lines.push(format!("file {name} {} {from}", entry.bytes.len()));
        }
        lines.extend(self.absent.iter().map(|what| format!("absent {what}")));
        lines.extend(self.gaps().iter().map(|gap| format!("missing {gap}")));
        let text = self.redactor.text(&lines.join("\n")) + "\n";
        let manifest = Entry { name: format!("{DIR}/{MANIFEST}"), bytes: text.into_bytes() };
        std::iter::once(manifest).chain(self.files.into_iter().map(|(entry, _)| entry)).collect()
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_tells_what_is_there_and_what_is_not() {
        let mut redactor = Redactor::default();
        redactor.know("hunter2");
        let mut bundle = Bundle::new(redactor);
        bundle.text("a.txt", "the agent", "password=x hunter2\n");
        bundle.maybe_json("b.json", "a file", r#"{"PSK":"y"}"#);
        bundle.maybe_json("c.json", "a file", r#"{"PSK":"y""#);
        bundle.absent("/etc/cni/net.d");
        bundle.missing("rules", "nft:\nnot installed, hunter2");
        assert_eq!(bundle.gaps(), ["rules: nft: not installed, (removed)"]);
        let entries = bundle.finish("2026-11-27T02:00:00Z", "node1");
        let text = |at: usize| String::from_utf8(entries[at].bytes.clone()).unwrap();
        let want = format!(
            "loden-dump 1\nmade 2026-11-27T02:00:00Z on node1 by loden {}\ncomplete no\nsecrets removed 4\n\
             file a.txt 29 the agent\nfile b.json 27 a file\nfile c.json 18 a file\nabsent /etc/cni/net.d\n\
             missing rules: nft: not installed, (removed)\n",
            crate::start::VERSION
        );
        assert_eq!(text(0), want);
        assert_eq!(text(1), "password=(removed) (removed)\n");
        assert_eq!(text(2), "{\n    \"PSK\": \"(removed)\"\n}\n");
        assert_eq!(text(3), "{\"PSK\":\"(removed)\"");
        assert_eq!(entries[0].name, "loden-dump/MANIFEST");
    }

    #[test]
    fn a_text_without_end_has_one_here() {
        let mut bundle = Bundle::default();
        bundle.text("a", "", &"é".repeat(MOST));
        assert_eq!(bundle.files[0].0.bytes.len(), MOST);
        assert_eq!(bundle.gaps(), ["a: only the first 16 MiB are kept"]);
    }
}
