//! `flannel`: completes its configuration with what the agent learnt and calls another plugin
//! (flannel.md 9).
//!
//! The delegate's document is kept in `dataDir` between ADD and DEL: as `<cid>:<ifname>`, and under
//! upstream's name `<cid>` as a second link to the same file if that name is free (F-151). A `<cid>` that
//! is the only link was written by upstream.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use model::cni::flannel::{Flannel, SubnetEnv, TROUBLE_SUFFIX, data_dir};
use model::cni::{CniResult, Error, code, is_identifier};
use model::gojson::Json;

use crate::delegate;
use crate::record::{remove_file, temporary, write_atomically};
use crate::skel::{Call, Env, Verb};

/// Calls the delegate's ADD. If that fails its DEL is called, and the document kept only if DEL fails too.
///
/// # Errors
/// The configuration, a missing `subnet.env`, the disk, or the delegate's own error.
pub fn add(call: &Call) -> Result<CniResult, Error> {
    let conf = parse(call)?;
    let document = compose(call, &conf)?;
    let scratch = Scratch::new(&conf.data_dir, &call.env);
    let kind = delegate_type(&document)?;
    let input = document.to_compact_sorted().into_bytes();
    let before = scratch.read()?;
    scratch.write(&input)?;
    delegate::call(&kind, Verb::Add, &call.env, input.clone()).map(Option::unwrap_or_default).map_err(
        |error| {
            let undone = match before {
                // The attachment exists, or a killed ADD left its remains: DEL ends it, not a second ADD.
                Some(before) => scratch.write(&before),
                None => delegate::call(&kind, Verb::Del, &call.env, input).and_then(|_| scratch.remove()),
            };
            match undone {
                Ok(()) => error,
                Err(second) => error.also(format!("while undoing: {second}")),
            }
        },
    )
}

/// Calls the delegate's DEL with the document kept; success if there is none. The document goes only after
/// the delegate succeeded (F-150).
///
/// # Errors
/// The delegate's own.
pub fn del(call: &Call) -> Result<(), Error> {
    // Nothing else of the configuration is needed, so nothing else can fail (P-3).
    let scratch = Scratch::new(&data_dir(&call.conf()), &call.env);
    let Some(bytes) = scratch.read()? else { return scratch.remove() };
    let document = match Json::parse(&bytes) {
        Ok(document) => document,
        Err(e) => {
            // F-156: what was written there is lost; the configuration of now is the best guess.
            let _ = writeln!(std::io::stderr().lock(), "flannel: {} is damaged: {e}", scratch.own.display());
            match parse(call).and_then(|conf| compose(call, &conf)) {
                Ok(document) => document,
                Err(_) => return scratch.remove(),
            }
        }
    };
    run(call, document)?;
    scratch.remove()
}

/// Calls the delegate's CHECK with the document kept.
///
/// # Errors
/// There is none, or the delegate's own.
pub fn check(call: &Call) -> Result<(), Error> {
    let conf = parse(call)?;
    let scratch = Scratch::new(&conf.data_dir, &call.env);
    let missing = || {
        let error = Error::internal(format!("no attachment: {} is missing", scratch.own.display()));
        // A pod that was never attached, because the node was not ready.
        match subnet_env(&conf.subnet_file) {
            Err(why) => error.details(why.to_string()),
            Ok(_) => error,
        }
    };
    let bytes = scratch.read()?.ok_or_else(missing)?;
    let document = Json::parse(&bytes)
        .map_err(|e| Error::new(code::DECODE, format!("read {}: {e}", scratch.own.display())))?;
    run(call, document)
}

/// Code 50 while there is no `subnet.env` that can be used, for then no ADD succeeds; else the delegate's
/// STATUS (F-153). What else the agent finds wrong does not keep pods from being added.
///
/// # Errors
/// As said.
pub fn status(call: &Call) -> Result<(), Error> {
    let conf = parse(call)?;
    let document = compose(call, &conf).map_err(|e| Error { code: code::NOT_READY, ..e })?;
    run(call, document)
}

/// Ends the attachments of this network that are not valid, then calls the delegate's GC (F-153).
///
/// # Errors
/// The first failure, after everything was tried.
pub fn gc(call: &Call) -> Result<(), Error> {
    let conf = parse(call)?;
    let mut outcome = Ok(());
    if let Some(valid) = call.valid_attachments()? {
        for (scratch, env) in stale(&conf, call, &valid) {
            let ended = end(&scratch, &env);
            outcome = outcome.and(ended);
        }
    }
    // Without subnet.env there is no document to hand on, and nothing was attached in this boot.
    let Ok(document) = compose(call, &conf) else { return outcome };
    outcome.and(run(call, document))
}

fn parse(call: &Call) -> Result<Flannel, Error> {
    Flannel::parse(&call.conf()).map_err(Error::config)
}

fn compose(call: &Call, conf: &Flannel) -> Result<Json, Error> {
    let env = subnet_env(&conf.subnet_file)?;
    conf.compose(&env, &call.network, &call.cni_version).map_err(Error::config)
}

/// Reads the subnet file. When it cannot be used, the agent's own words say why if it left any.
fn subnet_env(file: &str) -> Result<SubnetEnv, Error> {
    let told = agent_says(file);
    let text = fs::read_to_string(file).map_err(|e| {
        let way_out = told.clone().unwrap_or_else(|| {
            "the flannel agent writes it once it has a lease: see that it runs on this node and read its log".to_owned()
        });
        Error::internal(format!("read {file}: {e}")).details(way_out)
    })?;
    SubnetEnv::parse(&text, file).map_err(|why| Error::internal(why).details(told.unwrap_or_default()))
}

/// What the agent says is wrong, from the file it keeps while something is (decision 0088).
fn agent_says(subnet_file: &str) -> Option<String> {
    /// A sentence is some hundred bytes; whatever else lies there must not fill the runtime's log.
    const LIMIT: u64 = 4096;
    let mut text = Vec::new();
    let file = fs::File::open(format!("{subnet_file}{TROUBLE_SUFFIX}")).ok()?;
    file.take(LIMIT).read_to_end(&mut text).ok()?;
    let text = String::from_utf8_lossy(&text);
    let first = text.lines().next()?.trim();
    (!first.is_empty()).then(|| format!("the agent says: {first}"))
}

fn delegate_type(document: &Json) -> Result<String, Error> {
    let kind = document.get("type").and_then(Json::as_str);
    kind.map(str::to_owned).ok_or_else(|| Error::config("the delegate's document has no type"))
}

/// Calls the delegate with the verb and, where there are any, the result and lists the runtime sent.
fn run(call: &Call, mut document: Json) -> Result<(), Error> {
    for key in ["prevResult", "cni.dev/valid-attachments", "cni.dev/attachments"] {
        if let Some(value) = call.conf().get(key) {
            document.set(key, value.clone());
        }
    }
    let kind = delegate_type(&document)?;
    let input = document.to_compact_sorted().into_bytes();
    delegate::call(&kind, call.verb, &call.env, input).map(|_| ())
}

/// DEL of an attachment whose namespace is gone.
fn end(scratch: &Scratch, env: &Env) -> Result<(), Error> {
    if let Some(bytes) = scratch.read()?
        && let Ok(document) = Json::parse(&bytes)
        && let Ok(kind) = delegate_type(&document)
    {
        delegate::call(&kind, Verb::Del, env, bytes)?;
    }
    scratch.remove()
}

/// Documents of this network that belong to no valid attachment.
fn stale(conf: &Flannel, call: &Call, valid: &[(String, String)]) -> Vec<(Scratch, Env)> {
    let Ok(files) = fs::read_dir(&conf.data_dir) else { return Vec::new() };
    let mut found = Vec::new();
    for file in files.flatten() {
        let name = file.file_name().to_string_lossy().into_owned();
        let (id, ifname) = match name.split_once(':') {
            Some(pair) if is_identifier(pair.0) => pair,
            // Upstream's: which interface it was for is not known, the first is the best guess.
            None if file.metadata().is_ok_and(|m| m.nlink() == 1) && is_identifier(&name) => {
                if valid.iter().any(|(id, _)| *id == name) {
                    continue;
                }
                (name.as_str(), "eth0")
            }
            _ => continue,
        };
        let pair = (id.to_owned(), ifname.to_owned());
        let text = fs::read(file.path()).unwrap_or_default();
        let document = Json::parse(&text).unwrap_or_default();
        let ours = document.get("name").and_then(Json::as_str) == Some(&call.network);
        if ours && !valid.contains(&pair) {
            let env = Env { container_id: pair.0, ifname: pair.1, netns: String::new(), ..call.env.clone() };
            found.push((Scratch::new(&conf.data_dir, &env), env));
        }
    }
    found
}

/// The two names of a document.
struct Scratch {
    own: PathBuf,
    upstream: PathBuf,
}

impl Scratch {
    fn new(dir: &str, env: &Env) -> Scratch {
        let dir = Path::new(dir);
        Scratch {
            own: dir.join(format!("{}:{}", env.container_id, env.ifname)),
            upstream: dir.join(&env.container_id),
        }
    }

    fn write(&self, document: &[u8]) -> Result<(), Error> {
        self.remove()?;
        write_atomically(&self.own, document)?;
        match fs::hard_link(&self.own, &self.upstream) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => {
                let _ = fs::remove_file(&self.own);
                Err(Error::new(code::IO, format!("write {}: {e}", self.upstream.display())))
            }
            _ => Ok(()),
        }
    }

    fn read(&self) -> Result<Option<Vec<u8>>, Error> {
        let path = if self.own.exists() {
            &self.own
        } else if self.is_upstreams() {
            &self.upstream
        } else {
            return Ok(None);
        };
        match fs::read(path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::new(code::IO, format!("read {}: {e}", path.display()))),
        }
    }

    /// Written by upstream: no second link, so it belongs to no other interface of the container.
    fn is_upstreams(&self) -> bool {
        fs::metadata(&self.upstream).is_ok_and(|meta| meta.nlink() == 1)
    }

    fn remove(&self) -> Result<(), Error> {
        let inode = |path: &Path| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
        let own = inode(&self.own);
        if (own.is_some() && own == inode(&self.upstream)) || (own.is_none() && self.is_upstreams()) {
            remove_file(&self.upstream)?;
        }
        remove_file(&temporary(&self.own))?;
        remove_file(&self.own)
    }
}
