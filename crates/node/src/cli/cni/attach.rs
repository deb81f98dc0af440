//! Calls of a chain's plugins, and what is kept between them.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use kernel::process;
use model::cni::cache::CacheEntry;
use model::cni::conflist::{NetworkList, plugin_type};
use model::cni::{Error, Version, code, is_identifier};
use model::gojson::Json;
use sha2::{Digest, Sha512};

use super::disk;
use super::load::{self, Loaded};

/// How plugins are called, and for which attachment.
#[derive(Clone)]
pub struct Runner {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// `CNI_PATH`.
    pub path: String,
    /// `CNI_ARGS`.
    pub cni_args: String,
    /// Values of capabilities.
    pub capabilities: Json,
    /// Directory of the cache.
    pub results: PathBuf,
    /// For each plugin.
    pub limit: Duration,
}

/// One call of a plugin.
pub struct Step {
    /// Its type.
    pub plugin: String,
    /// How long it took.
    pub took: Duration,
}

/// What ADD gave.
pub struct Added {
    /// Result of the last plugin.
    pub result: Json,
    /// The calls.
    pub steps: Vec<Step>,
}

/// `cnitool-` and twenty digits of a hash of the path.
pub fn container_id(netns: &str) -> String {
    use std::fmt::Write as _;
    Sha512::digest(netns.as_bytes())[..10].iter().fold("cnitool-".to_owned(), |mut id, byte| {
        let _ = write!(id, "{byte:02x}");
        id
    })
}

impl Runner {
    /// Calls ADD in order and keeps the result. On a failure those called so far are detached again.
    ///
    /// # Errors
    /// The plugin's, with its code; the plugin is named.
    pub fn add(&self, (list, text): &Loaded, netns: &str) -> Result<Added, Error> {
        self.check_id()?;
        let mut result = None;
        let mut steps = Vec::new();
        for (n, plugin) in list.plugins.iter().enumerate() {
            let doc = list.document(plugin, result.as_ref(), &self.capabilities, &[]);
            match self.call(list, plugin, "ADD", netns, &doc, &mut steps) {
                Ok(answer) => result = Some(answer),
                Err(error) => return Err(self.undo(list, n, netns, error)),
            }
        }
        let result = result.unwrap_or_default();
        let pairs = self.cni_args.split(';').filter_map(|pair| pair.split_once('='));
        let entry = CacheEntry {
            container_id: self.container_id.clone(),
            ifname: self.ifname.clone(),
            network: list.name.clone(),
            netns: netns.to_owned(),
            config: text.clone(),
            cni_args: pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
            capability_args: self.capabilities.clone(),
            result: result.clone(),
        };
        let kept = self.keep(&entry);
        let all = list.plugins.len();
        kept.map(|()| Added { result, steps }).map_err(|error| self.undo(list, all, netns, error))
    }

    /// The protocol leaves this to the runtime; by hand it would be forgotten. The plugin that failed has
    /// its DEL called too, as the protocol wants.
    fn undo(&self, list: &NetworkList, failed: usize, netns: &str, error: Error) -> Error {
        let mut steps = Vec::new();
        let called = &list.plugins[..list.plugins.len().min(failed + 1)];
        called.iter().rev().fold(error, |error, plugin| {
            let doc = list.document(plugin, None, &self.capabilities, &[]);
            match self.call(list, plugin, "DEL", netns, &doc, &mut steps) {
                Ok(_) => error,
                Err(second) => error.also(format!("while undoing: {second}")),
            }
        })
    }

    /// Calls DEL in reverse order with the result kept, then forgets it.
    ///
    /// # Errors
    /// The first plugin's that fails; the result stays then.
    pub fn del(&self, loaded: &Loaded, netns: &str) -> Result<Vec<Step>, Error> {
        self.check_id()?;
        let (list, _) = loaded;
        let mut steps = Vec::new();
        // What cannot be read is as good as missing: plugins manage without.
        let cached = self.cached(&list.name).ok().flatten();
        let runner = cached.as_ref().map_or_else(|| self.clone(), |entry| self.like(entry));
        let result = cached.map(|entry| entry.result).filter(|r| !r.is_null());
        let result = result.filter(|_| list.version().is_ok_and(|v| v >= Version(0, 4, 0)));
        for plugin in list.plugins.iter().rev() {
            let doc = list.document(plugin, result.as_ref(), &runner.capabilities, &[]);
            runner.call(list, plugin, "DEL", netns, &doc, &mut steps)?;
        }
        match fs::remove_file(self.file(&list.name)) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(disk("remove", &self.file(&list.name), &e)),
            _ => Ok(steps),
        }
    }

    /// Calls CHECK in order with the result kept.
    ///
    /// # Errors
    /// There is none, the version is too old, or the first plugin's that fails.
    pub fn check(&self, (list, _): &Loaded, netns: &str) -> Result<Vec<Step>, Error> {
        self.check_id()?;
        if list.version().map_err(Error::config)? < Version(0, 4, 0) {
            let version = &list.cni_version;
            let msg = format!("configuration version {version:?} does not support CHECK command");
            return Err(Error::new(code::VERSION, msg).details("cniVersion 0.4.0 is the first that does"));
        }
        let mut steps = Vec::new();
        if list.disable_check {
            return Ok(steps);
        }
        let missing = || {
            let file = self.file(&list.name);
            Error::internal(format!("no result of {} is kept in {}", self.container_id, file.display()))
                .details("attach it first: loden cni add")
        };
        let entry = self.cached(&list.name)?.ok_or_else(missing)?;
        let runner = self.like(&entry);
        for plugin in &list.plugins {
            let doc = list.document(plugin, Some(&entry.result), &runner.capabilities, &[]);
            runner.call(list, plugin, "CHECK", netns, &doc, &mut steps)?;
        }
        Ok(steps)
    }

    /// Calls STATUS in order; below version 1.1.0 there is none, which is told by no step.
    ///
    /// # Errors
    /// The first plugin's that fails.
    pub fn status(&self, (list, _): &Loaded) -> Result<Vec<Step>, Error> {
        let mut steps = Vec::new();
        if list.version().map_err(Error::config)? < Version(1, 1, 0) {
            return Ok(steps);
        }
        for plugin in &list.plugins {
            let doc = list.document(plugin, None, &Json::Null, &[]);
            self.call(list, plugin, "STATUS", "", &doc, &mut steps)?;
        }
        Ok(steps)
    }

    /// The same with what the runtime said at ADD.
    pub fn like(&self, entry: &CacheEntry) -> Runner {
        let mut runner = self.clone();
        if runner.capabilities.is_null() {
            runner.capabilities = entry.capability_args.clone();
        }
        if runner.cni_args.is_empty() {
            let pairs: Vec<String> = entry.cni_args.iter().map(|(k, v)| format!("{k}={v}")).collect();
            runner.cni_args = pairs.join(";");
        }
        runner
    }

    /// Calls one plugin. Only ADD has an answer, which has to be one.
    ///
    /// # Errors
    /// The plugin's own, its type and the verb put in front.
    pub fn call(
        &self,
        list: &NetworkList,
        plugin: &Json,
        verb: &str,
        netns: &str,
        doc: &Json,
        steps: &mut Vec<Step>,
    ) -> Result<Json, Error> {
        let kind = plugin_type(plugin);
        let what = match verb {
            "ADD" => format!("plugin type={kind:?} name={:?} failed (add)", list.name),
            "DEL" => format!("plugin type={kind:?} failed (delete)"),
            _ => format!("plugin type={kind:?} failed ({})", verb.to_ascii_lowercase()),
        };
        let began = Instant::now();
        let answer = self.execute(kind, verb, netns, doc).map_err(|error| error.during(what))?;
        steps.push(Step { plugin: kind.to_owned(), took: began.elapsed() });
        Ok(answer)
    }

    fn execute(&self, kind: &str, verb: &str, netns: &str, doc: &Json) -> Result<Json, Error> {
        let file = self.find(kind)?;
        let mut command = Command::new(&file);
        for key in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"] {
            command.env_remove(key);
        }
        command.env("CNI_COMMAND", verb).env("CNI_PATH", &self.path);
        if !matches!(verb, "STATUS" | "GC") {
            command.env("CNI_CONTAINERID", &self.container_id).env("CNI_IFNAME", &self.ifname);
            command.env("CNI_NETNS", netns).env("CNI_ARGS", &self.cni_args);
        }
        let input = doc.to_compact().into_bytes();
        let failed = |e: std::io::Error| Error::internal(format!("execute {}: {e}", file.display()));
        let Some(output) = process::run(&mut command, input, self.limit).map_err(failed)? else {
            let limit = self.limit.as_secs();
            let msg = format!("{} did not answer {verb} within {limit} s and was killed", file.display());
            return Err(Error::new(code::TRY_LATER, msg).details("--timeout SECONDS sets another limit"));
        };
        let (stdout, stderr) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if !output.status.success() {
            return Err(Error::of_failure(stdout.trim(), stderr.trim(), &output.status.to_string()));
        }
        super::complain(&stderr);
        if verb != "ADD" {
            return Ok(Json::Null);
        }
        stdout.parse().map_err(|e| Error::new(code::DECODE, format!("read its result: {e}")))
    }

    fn find(&self, kind: &str) -> Result<PathBuf, Error> {
        if kind.contains('/') {
            return Err(Error::config(format!("invalid plugin name: {kind}")));
        }
        let dirs: Vec<&str> = self.path.split(':').filter(|dir| !dir.is_empty()).collect();
        let files = dirs.iter().map(|dir| Path::new(dir).join(kind));
        let found = files.into_iter().find(|file| file.is_file());
        found.ok_or_else(|| {
            let msg = format!("failed to find plugin {kind:?} in path [{}]", dirs.join(" "));
            Error::config(msg)
                .details("loden-cni install --bin-dir DIR puts ours there; --bin-dir names others")
        })
    }

    fn check_id(&self) -> Result<(), Error> {
        match is_identifier(&self.container_id) {
            true => model::cni::check_ifname(&self.ifname),
            false => Err(Error::new(code::ENVIRONMENT, "invalid characters in containerID")
                .details(&*self.container_id)),
        }
    }

    fn file(&self, network: &str) -> PathBuf {
        self.results.join(CacheEntry::file_name(network, &self.container_id, &self.ifname))
    }

    fn keep(&self, entry: &CacheEntry) -> Result<(), Error> {
        let path = self.file(&entry.network);
        let write = || {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.results)?;
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let temporary = self.results.join(format!(".{name}.new"));
            let _ = fs::remove_file(&temporary);
            let mut file =
                fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
            std::io::Write::write_all(&mut file, entry.to_json().to_compact().as_bytes())?;
            fs::rename(&temporary, &path)
        };
        write().map_err(|e| disk("write", &path, &e))
    }

    /// What is kept of the attachment, if it is really its.
    fn cached(&self, network: &str) -> Result<Option<CacheEntry>, Error> {
        let path = self.file(network);
        let text = match fs::read(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|e| disk("read", &path, &e))?,
        };
        let entry = CacheEntry::parse(&text)
            .map_err(|e| Error::new(code::DECODE, format!("read {}: {e}", path.display())))?;
        let same = |have: &str, want: &str| have.is_empty() || have == want;
        let ours = same(&entry.network, network)
            && same(&entry.container_id, &self.container_id)
            && same(&entry.ifname, &self.ifname);
        Ok(ours.then_some(entry))
    }

    /// All that is kept of a network's attachments, by any runtime that shares the directory.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn all_cached(&self, network: &str) -> Result<Vec<CacheEntry>, Error> {
        let entries = match fs::read_dir(&self.results) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(|e| disk("read", &self.results, &e))?,
        };
        let texts = entries.filter_map(|entry| fs::read(entry.ok()?.path()).ok());
        let all = texts.filter_map(|text| CacheEntry::parse(&text).ok());
        Ok(all.filter(|entry| entry.network == network).collect())
    }

    /// DEL of an attachment as its entry tells it.
    ///
    /// # Errors
    /// As [`Runner::del`].
    pub fn del_cached(&self, now: &Loaded, entry: &CacheEntry) -> Result<Vec<Step>, Error> {
        let runner = Runner {
            container_id: entry.container_id.clone(),
            ifname: entry.ifname.clone(),
            capabilities: entry.capability_args.clone(),
            ..self.clone()
        };
        let then = load::from_text(&entry.config, None).ok().filter(|(list, _)| !list.plugins.is_empty());
        runner.del(then.as_ref().unwrap_or(now), &entry.netns)
    }
}
