//! The frame around every plugin: environment, document, versions, answer (cni.md 1.2 to 1.5).
//!
//! All of it is checked before the plugin does anything, the identity of the namespace included (B-01).

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::panic::PanicHookInfo;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use kernel::process;
use model::cni::record::STATE_DIR;
use model::cni::version::{self, Shape};
use model::cni::{CniResult, Error, Members, Version, check_ifname, code, is_identifier};
use model::gojson::Json;

use crate::nft;
use crate::plugin::Plugin;
use crate::record;

/// More than any document has; a stream without end must not fill the memory.
const MAX_INPUT: u64 = 16 << 20;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Make an attachment.
    Add,
    /// Remove it.
    Del,
    /// Compare it with its result.
    Check,
    /// Remove what no valid attachment needs.
    Gc,
    /// Can ADD be served?
    Status,
}

impl Verb {
    /// The verb as `CNI_COMMAND` has it.
    pub fn name(self) -> &'static str {
        match self {
            Verb::Add => "ADD",
            Verb::Del => "DEL",
            Verb::Check => "CHECK",
            Verb::Gc => "GC",
            Verb::Status => "STATUS",
        }
    }

    fn parse(text: &str) -> Option<Verb> {
        [Verb::Add, Verb::Del, Verb::Check, Verb::Gc, Verb::Status].into_iter().find(|v| v.name() == text)
    }
}

/// The variables of a call. Empty counts as missing.
#[derive(Clone, Debug, Default)]
pub struct Env {
    /// `CNI_COMMAND`.
    pub command: String,
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_NETNS`, a path.
    pub netns: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// `CNI_ARGS`.
    pub args: String,
    /// `CNI_PATH`.
    pub path: String,
    /// `CNI_NETNS_OVERRIDE`: the pod may share our namespace.
    pub netns_override: bool,
    /// Where our own records go: `LODEN_CNI_STATE_DIR`, for tests.
    pub state_dir: PathBuf,
}

impl Env {
    /// Reads the process's environment.
    pub fn read() -> Env {
        let var = |key: &str| std::env::var_os(key).unwrap_or_default().to_string_lossy().into_owned();
        let netns_override = var("CNI_NETNS_OVERRIDE");
        Env {
            command: var("CNI_COMMAND"),
            container_id: var("CNI_CONTAINERID"),
            netns: var("CNI_NETNS"),
            ifname: var("CNI_IFNAME"),
            args: var("CNI_ARGS"),
            path: var("CNI_PATH"),
            netns_override: netns_override == "1" || netns_override.eq_ignore_ascii_case("true"),
            state_dir: state_dir(),
        }
    }

    /// Which variables a verb needs, and their form (table of cni.md 1.2).
    ///
    /// # Errors
    /// Code 4 as there.
    pub fn check(&self) -> Result<(), Error> {
        let verb = Verb::parse(&self.command);
        let attachment = matches!(verb, Some(Verb::Add | Verb::Check | Verb::Del));
        let container_id = |id: &str| match is_identifier(id) {
            true => Ok(()),
            false => Err(Error::new(code::ENVIRONMENT, "invalid characters in containerID").details(id)),
        };
        let mut missing = Vec::new();
        let mut look = |name, value: &str, needed: bool| {
            missing.extend((needed && value.is_empty()).then_some(name));
            needed && !value.is_empty()
        };
        if look("CNI_CONTAINERID", &self.container_id, attachment) {
            container_id(&self.container_id)?;
        }
        look("CNI_NETNS", &self.netns, matches!(verb, Some(Verb::Add | Verb::Check)));
        if look("CNI_IFNAME", &self.ifname, attachment) {
            check_ifname(&self.ifname)?;
        }
        look("CNI_PATH", &self.path, verb.is_some());
        if missing.is_empty() {
            return Ok(());
        }
        let list = missing.join(",");
        Err(Error::new(code::ENVIRONMENT, format!("required env variables [{list}] missing")))
    }

    /// The pod must not be the host (B-01). A path that cannot be opened is the plugin's affair.
    fn check_identity(&self) -> Result<(), Error> {
        if self.netns.is_empty() || self.netns_override {
            return Ok(());
        }
        // Device and inode of nsfs; no other file has those of a namespace.
        let id = |path: &str| fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
        let pod = id(&self.netns);
        if pod.is_some() && pod == id("/proc/thread-self/ns/net") {
            let msg = "plugin's netns and netns from CNI_NETNS should not be the same";
            return Err(Error::new(code::NETNS, msg).details(&*self.netns));
        }
        Ok(())
    }
}

/// Where our own records and locks go.
pub fn state_dir() -> PathBuf {
    let own = std::env::var_os("LODEN_CNI_STATE_DIR").filter(|dir| !dir.is_empty());
    own.map_or_else(|| PathBuf::from(STATE_DIR), PathBuf::from)
}

/// One call of one plugin: everything it is told, checked.
pub struct Call {
    /// What is to be done.
    pub verb: Verb,
    /// The environment.
    pub env: Env,
    /// The document as it came.
    pub input: Vec<u8>,
    doc: Json,
    /// Name of the network.
    pub network: String,
    /// Version of the document; empty is 0.1.0.
    pub cni_version: String,
    /// The same as a number.
    pub version: Version,
    /// Result of the plugin before, or of the whole ADD.
    pub prev_result: Option<CniResult>,
    /// The host's nftables.
    pub nft: nft::Host,
}

impl Call {
    /// Steps 3 to 9 of cni.md 1.3.
    ///
    /// # Errors
    /// As the table there.
    pub fn new(plugin: &Plugin, env: Env, input: Vec<u8>) -> Result<Call, Error> {
        let undecodable =
            |e: String| Error::new(code::DECODE, format!("error unmarshall network config: {e}"));
        let doc = Json::parse(&input).map_err(|e| undecodable(e.to_string()))?;
        let members = Members::of(&doc, "NetConf").map_err(undecodable)?;
        let network = members.string("name").map_err(undecodable)?;
        let cni_version = members.string("cniVersion").map_err(undecodable)?;
        if network.is_empty() {
            return Err(Error::config("missing network name"));
        }
        if !is_identifier(&network) {
            return Err(Error::config("invalid characters found in network name").details(network));
        }
        let Some(verb) = Verb::parse(&env.command) else {
            let msg = format!("unknown CNI_COMMAND: {}", env.command);
            return Err(Error::new(code::ENVIRONMENT, msg));
        };
        let version = check_version(plugin, verb, &cni_version)?;
        let nft = nft::Host::new(!matches!(verb, Verb::Check | Verb::Status));
        let mut call = Call { verb, env, input, network, cni_version, version, prev_result: None, doc, nft };
        call.prev_result = call.read_prev_result()?;
        Ok(call)
    }

    /// The document's members.
    pub fn conf(&self) -> Members<'_> {
        Members::of(&self.doc, "NetConf").expect("a call is made of an object only")
    }

    /// The (cid, ifname) pairs GC keeps; `None` when the caller gave no list.
    ///
    /// # Errors
    /// The list is malformed.
    pub fn valid_attachments(&self) -> Result<Option<Vec<(String, String)>>, Error> {
        let conf = self.conf();
        let key =
            ["cni.dev/valid-attachments", "cni.dev/attachments"].into_iter().find(|k| conf.get(k).is_some());
        let Some(key) = key else { return Ok(None) };
        let read = || -> Result<Vec<(String, String)>, String> {
            let list = conf.objects(key, "GCAttachment")?;
            list.iter().map(|a| Ok((a.string("containerID")?, a.string("ifname")?))).collect()
        };
        read().map(Some).map_err(|e| Error::new(code::DECODE, format!("read {key}: {e}")))
    }

    /// On DEL a result that cannot be read counts as none: P-4 has other sources.
    fn read_prev_result(&self) -> Result<Option<CniResult>, Error> {
        let Some(value) = self.conf().get("prevResult") else { return Ok(None) };
        let own = |v: &str| if v.is_empty() { "0.1.0".to_owned() } else { v.to_owned() };
        let read = || -> Result<CniResult, String> {
            let version = Members::of(value, "Result")?.string("cniVersion")?;
            if !version.is_empty() && own(&version) != own(&self.cni_version) {
                let (shape, want) = (own(&version), own(&self.cni_version));
                return Err(format!(
                    "result type supports [{want}] but unmarshalled CNIVersion is {shape:?}"
                ));
            }
            CniResult::parse(value, &self.cni_version)
        };
        match read() {
            Ok(result) => Ok(Some(result)),
            Err(_) if matches!(self.verb, Verb::Del | Verb::Gc) => Ok(None),
            Err(e) => Err(Error::new(code::DECODE, format!("could not parse prevResult: {e}"))),
        }
    }

    /// Whether a result without addresses could not be printed (B-39): in versions 0.1 and 0.2.
    pub fn needs_addresses(&self) -> bool {
        Shape::of(&self.cni_version) == Some(Shape::Two)
    }
}

fn check_version(plugin: &Plugin, verb: Verb, text: &str) -> Result<Version, Error> {
    let text = if text.is_empty() { "0.1.0" } else { text };
    let refused = |msg: String| Error::new(code::VERSION, msg);
    let version = text.parse::<Version>();
    let since = match verb {
        Verb::Add | Verb::Del => None,
        Verb::Check => Some(Version(0, 4, 0)),
        Verb::Gc | Verb::Status => Some(Version(1, 1, 0)),
    };
    if let Some(since) = since {
        let version = version.clone().map_err(|e| Error::new(code::DECODE, format!("cniVersion: {e}")))?;
        if version < since {
            return Err(refused(format!("config version does not allow {}", verb.name())));
        }
        let newest = plugin.versions.last().and_then(|v| v.parse::<Version>().ok());
        if newest.is_none_or(|newest| newest < version) {
            return Err(refused(format!("plugin version does not allow {}", verb.name())));
        }
    }
    match version {
        Ok(version) if plugin.versions.contains(&text) => Ok(version),
        _ => {
            let ours: Vec<String> = plugin.versions.iter().map(|v| format!("{v:?}")).collect();
            let details = format!("config is {text:?}, plugin supports [{}]", ours.join(" "));
            Err(refused("incompatible CNI versions".to_owned()).details(details))
        }
    }
}

/// Does the verb's work. Only ADD gives a result.
///
/// # Errors
/// As the plugin.
pub fn invoke(plugin: &Plugin, call: &Call) -> Result<Option<CniResult>, Error> {
    if matches!(call.verb, Verb::Add | Verb::Check | Verb::Del) {
        call.env.check_identity()?;
    }
    match call.verb {
        Verb::Add => (plugin.add)(call).map(Some),
        Verb::Del => (plugin.del)(call).map(|()| None),
        Verb::Check => (plugin.check)(call).map(|()| None),
        Verb::Gc => {
            let done = (plugin.gc)(call);
            let forgotten = match call.valid_attachments()? {
                Some(valid) => record::forget_unreadable(plugin.name, call, &valid),
                None => Ok(()),
            };
            done.and(forgotten).map(|()| None)
        }
        Verb::Status => (plugin.status)(call).map(|()| None),
    }
}

/// The whole program under a plugin's name.
pub fn main(plugin: &'static Plugin) -> ExitCode {
    std::panic::set_hook(Box::new(report_panic));
    let env = Env::read();
    match env.command.as_str() {
        "" => about(plugin),
        "VERSION" => print(&format!("{}\n", versions(plugin)), ExitCode::SUCCESS),
        _ => {
            let mut version = None;
            match run(plugin, env, &mut version) {
                Ok(Some(text)) => print(&text, ExitCode::SUCCESS),
                Ok(None) => ExitCode::SUCCESS,
                Err(error) => print(&error.to_json(version.as_deref()), ExitCode::FAILURE),
            }
        }
    }
}

/// Steps 1 to 10. `version` is filled in as soon as it is known, for the error object.
fn run(plugin: &Plugin, env: Env, version: &mut Option<String>) -> Result<Option<String>, Error> {
    env.check()?;
    let mut input = Vec::new();
    let broken = |e: String| Error::new(code::IO, format!("error reading from stdin: {e}"));
    let length = std::io::stdin().lock().take(MAX_INPUT + 1).read_to_end(&mut input);
    if length.map_err(|e| broken(e.to_string()))? as u64 > MAX_INPUT {
        return Err(broken("the document is larger than 16 MiB".to_owned()));
    }
    let call = Call::new(plugin, env, input)?;
    *version = Some(if call.cni_version.is_empty() { "0.1.0".to_owned() } else { call.cni_version.clone() });
    let outcome = if call.verb == Verb::Add { add(plugin, &call) } else { invoke(plugin, &call) };
    match outcome? {
        Some(result) => result.to_json(&call.cni_version).map(Some).map_err(Error::internal),
        None => Ok(None),
    }
}

/// ADD that a signal to end does not cut in the middle (P-7): it comes to its end, or a program it waits for is
/// killed, and then all is taken back.
fn add(plugin: &Plugin, call: &Call) -> Result<Option<CniResult>, Error> {
    // Without it the signal ends the process as it always did, and DEL clears up.
    let held = process::hold_end_signals();
    let outcome = invoke(plugin, call);
    if held.is_err() || !process::end_is_pending() {
        return outcome;
    }
    let ended = Error::new(code::TRY_LATER, "ended by a signal; what this ADD had made is taken back");
    match outcome {
        // What fails takes back by itself.
        Err(error) => Err(ended.details(error.to_string())),
        Ok(_) => match (plugin.del)(call) {
            Ok(()) => Err(ended),
            Err(error) => Err(ended.also(error)),
        },
    }
}

fn versions(plugin: &Plugin) -> String {
    let list: Vec<String> = plugin.versions.iter().map(|v| format!("{v:?}")).collect();
    format!("{{\"cniVersion\":\"{}\",\"supportedVersions\":[{}]}}", version::NEWEST, list.join(","))
}

/// People run the program by hand to learn its version (cni.md 1.2).
fn about(plugin: &Plugin) -> ExitCode {
    let build = format!("loden {}", env!("CARGO_PKG_VERSION"));
    let _ = writeln!(
        std::io::stderr().lock(),
        "CNI {} plugin {build}\nCNI protocol versions supported: {}",
        plugin.name,
        plugin.versions.join(", ")
    );
    ExitCode::SUCCESS
}

/// One document goes to stdout, whoever prints it.
static PRINTED: AtomicBool = AtomicBool::new(false);

fn print(text: &str, status: ExitCode) -> ExitCode {
    if PRINTED.swap(true, Ordering::SeqCst) {
        return ExitCode::FAILURE;
    }
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => status,
        Err(_) => ExitCode::FAILURE,
    }
}

/// A panic becomes an error object (P-1), also where panics abort and on any thread. What was done so far
/// stays for DEL, which has our record.
fn report_panic(info: &PanicHookInfo<'_>) {
    let place = info.location().map(|l| format!("{}:{}", l.file(), l.line())).unwrap_or_default();
    let payload = info.payload();
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("panic");
    let error = Error::internal(format!("internal fault at {place}: {text}")).details("please report this");
    print(&error.to_json(None), ExitCode::FAILURE);
    std::process::exit(1);
}
