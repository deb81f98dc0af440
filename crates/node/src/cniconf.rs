//! The CNI configuration list, put in place by the agent itself once pods can be given a network
//! (decision 0096): the runtime takes a node for ready as soon as the file is there.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::outputs;

/// Distance of looks at both files.
const LOOK: Duration = Duration::from_secs(1);
/// Where flannel's manifest mounts the ConfigMap.
const SOURCE: &str = "/etc/kube-flannel/cni-conf.json";

/// Keeps a copy of a file in place.
#[derive(Debug)]
pub struct CniConf {
    source: PathBuf,
    dest: PathBuf,
    looked: Option<Instant>,
    /// How the last look ended.
    last: Result<(), String>,
}

impl CniConf {
    /// By `LODEN_CNI_CONF` (the file to write) and `LODEN_CNI_CONF_SOURCE`; `None` where nobody asks.
    pub fn from_environment(env: impl Fn(&str) -> Option<String>) -> Option<CniConf> {
        let set = |name: &str| env(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let dest = set("LODEN_CNI_CONF")?;
        let source = set("LODEN_CNI_CONF_SOURCE").unwrap_or_else(|| PathBuf::from(SOURCE));
        Some(CniConf { source, dest, looked: None, last: Ok(()) })
    }

    /// Writes the file if it is not there or differs: a change of the ConfigMap reaches the runtime without
    /// a restart. Never removes it: pods of a running node need it however the agent fares.
    ///
    /// # Errors
    /// One sentence, until a look ends well; the node is not ready for pods then.
    pub fn keep(&mut self, now: Instant) -> Result<(), String> {
        if self.looked.is_none_or(|then| now >= then + LOOK) {
            self.looked = Some(now);
            self.last = self.copy().map(|wrote| {
                if wrote {
                    let (from, to) = (self.source.display(), self.dest.display());
                    tracing::info!("Wrote CNI configuration {from} to {to}");
                }
            });
        }
        self.last.clone()
    }

    fn copy(&self) -> Result<bool, String> {
        let text = fs::read_to_string(&self.source).map_err(|error| {
            format!(
                "read CNI configuration {}: {error}; the ConfigMap kube-flannel-cfg must have the key cni-conf.json and \
                 be mounted there",
                self.source.display()
            )
        })?;
        // What is no JSON would make the runtime drop a configuration that works.
        model::gojson::Json::parse(text.as_bytes()).map_err(|error| {
            format!(
                "CNI configuration {} is not JSON ({error}), {} is left as it is; correct it with: kubectl -n kube-flannel \
                 edit configmap kube-flannel-cfg",
                self.source.display(),
                self.dest.display()
            )
        })?;
        if fs::read_to_string(&self.dest).is_ok_and(|there| there == text) {
            return Ok(false);
        }
        outputs::replace(&self.dest, text.as_bytes()).map(|()| true).map_err(|error| {
            format!(
                "write CNI configuration {}: {error}; the runtime starts no pod without it: mount its directory for \
                 writing",
                self.dest.display()
            )
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

    use super::*;

    #[test]
    fn the_file_is_written_kept_and_followed_and_bad_json_changes_nothing() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        let (source, dest) = (path("cni-conf.json"), path("net.d/10-flannel.conflist"));
        assert!(CniConf::from_environment(|_| None).is_none());
        let mut conf = CniConf::from_environment(|name| match name {
            "LODEN_CNI_CONF" => Some(dest.clone()),
            "LODEN_CNI_CONF_SOURCE" => Some(source.clone()),
            _ => None,
        })
        .unwrap();
        let read = || fs::read_to_string(&dest).ok();
        let mut now = Instant::now();
        // What the source holds, what the file holds before (None: removed), and after; and whether all is well.
        for (given, before, after, well) in [
            (None, None, None, false),
            (Some("{\"name\":\"a\"}\n"), None, Some("{\"name\":\"a\"}\n"), true),
            (Some("{\"name\":\"b\"}"), Some("{\"name\":\"a\"}\n"), Some("{\"name\":\"b\"}"), true),
            (Some("{"), Some("{\"name\":\"b\"}"), Some("{\"name\":\"b\"}"), false),
            (Some("{\"name\":\"b\"}"), Some("garbage"), Some("{\"name\":\"b\"}"), true),
        ] {
            match given {
                Some(text) => fs::write(&source, text).unwrap(),
                None => drop(fs::remove_file(&source)),
            }
            match before {
                Some(text) => fs::write(&dest, text).unwrap(),
                None => drop(fs::remove_file(&dest)),
            }
            now += LOOK;
            let done = conf.keep(now);
            assert_eq!((read().as_deref(), done.is_ok()), (after, well), "{given:?} {before:?}");
        }
        fs::remove_file(&dest).unwrap();
        assert!(conf.keep(now).is_ok());
        assert_eq!(read(), None, "looked again before its time");
    }
}
