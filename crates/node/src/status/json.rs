//! [`Status`] as JSON and back. The names of members are those of the fields.

use model::Json;
use model::gojson::GoInt;

use super::{
    Agent, Backend, Difference, Dropped, FastPath, Interface, Lease, LeftOut, Objects, Path, Peers, Probes,
    Status, Step, Store, Trouble, VERSION,
};

/// The document.
pub fn write(status: &Status) -> Json {
    Json::object([
        ("version", VERSION.into()),
        ("verdict", status.verdict().word().into()),
        ("ready", status.ready.into()),
        ("silent", status.silent.clone().into()),
        ("agent", one(&status.agent)),
        ("store", one(&status.store)),
        ("lease", one(&status.lease)),
        ("interface", one(&status.interface)),
        ("backend", one(&status.backend)),
        ("fast_path", one(&status.fast_path)),
        ("peers", one(&status.peers)),
        ("probes", one(&status.probes)),
        ("dropped", many(&status.dropped)),
        ("objects", one(&status.objects)),
        ("troubles", many(&status.troubles)),
        ("kernel", texts(&status.kernel)),
        ("subnet_env", texts(&status.subnet_env)),
    ])
}

/// Reads a document of our version or a later one; what is missing is empty.
///
/// # Errors
/// Half a sentence: not JSON, or not a status.
pub fn read(text: &[u8]) -> Result<Status, String> {
    of(&Json::parse(text).map_err(|error| format!("not JSON: {error}"))?)
}

/// The same of what was parsed.
///
/// # Errors
/// Half a sentence: not a status.
pub fn of(json: &Json) -> Result<Status, String> {
    if int::<u32>(json, "version") < VERSION {
        return Err("not a status".to_owned());
    }
    Ok(Status {
        ready: flag(json, "ready"),
        silent: maybe_text(json, "silent"),
        agent: maybe(json, "agent"),
        store: maybe(json, "store"),
        lease: maybe(json, "lease"),
        interface: maybe(json, "interface"),
        backend: maybe(json, "backend"),
        fast_path: maybe(json, "fast_path"),
        peers: maybe(json, "peers"),
        probes: maybe(json, "probes"),
        dropped: list(json, "dropped"),
        objects: maybe(json, "objects"),
        troubles: list(json, "troubles"),
        kernel: words(json, "kernel"),
        subnet_env: words(json, "subnet_env"),
    })
}

/// A part of the document.
pub(crate) trait Part: Sized {
    fn write(&self) -> Json;
    fn read(json: &Json) -> Self;
}

pub(crate) fn one<T: Part>(part: &Option<T>) -> Json {
    part.as_ref().map(T::write).into()
}

pub(crate) fn many<T: Part>(parts: &[T]) -> Json {
    Json::array(parts.iter().map(T::write))
}

pub(crate) fn texts(texts: &[String]) -> Json {
    Json::array(texts.iter().map(String::as_str))
}

pub(crate) fn maybe<T: Part>(json: &Json, key: &str) -> Option<T> {
    json.get_exact(key).filter(|part| !part.is_null()).map(T::read)
}

fn items<'a>(json: &'a Json, key: &str) -> &'a [Json] {
    json.get_exact(key).and_then(Json::as_array).unwrap_or_default()
}

pub(crate) fn list<T: Part>(json: &Json, key: &str) -> Vec<T> {
    items(json, key).iter().map(T::read).collect()
}

pub(crate) fn words(json: &Json, key: &str) -> Vec<String> {
    items(json, key).iter().filter_map(Json::as_str).map(str::to_owned).collect()
}

pub(crate) fn maybe_text(json: &Json, key: &str) -> Option<String> {
    json.get_exact(key).and_then(Json::as_str).map(str::to_owned)
}

pub(crate) fn text(json: &Json, key: &str) -> String {
    maybe_text(json, key).unwrap_or_default()
}

pub(crate) fn flag(json: &Json, key: &str) -> bool {
    json.get_exact(key).and_then(Json::as_bool).unwrap_or_default()
}

pub(crate) fn int<T: GoInt + Default>(json: &Json, key: &str) -> T {
    json.get_exact(key).and_then(Json::as_int).unwrap_or_default()
}

/// One table for both directions: a type, and each member with how it is written and read.
macro_rules! parts {
    ($($kind:ident { $($field:ident: $write:expr, $read:expr;)* })*) => { $(
        impl Part for $kind {
            fn write(&self) -> Json {
                Json::object([$((stringify!($field), ($write)(&self.$field))),*])
            }

            fn read(json: &Json) -> Self {
                $kind { $($field: ($read)(json, stringify!($field))),* }
            }
        }
    )* };
}
pub(crate) use parts;

pub(crate) fn put<T: Clone + Into<Json>>(value: &T) -> Json {
    value.clone().into()
}

parts! {
    Agent { version: put, text; pid: put, int; uptime_s: put, int; }
    Store {
        name: put, text;
        heard_ms: put, |json: &Json, key| json.get_exact(key).and_then(Json::as_int);
        complete: put, flag;
    }
    Lease { subnets: |v: &Vec<String>| texts(v), words; public: |v: &Vec<String>| texts(v), words; }
    Interface {
        name: put, maybe_text;
        mtu: put, int;
        addresses: |v: &Vec<String>| texts(v), words;
        public: |v: &Vec<String>| texts(v), words;
        trouble: put, maybe_text;
        why: |v: &Vec<Step>| many(v), list;
        otherwise: |v: &Vec<String>| texts(v), words;
    }
    Step { candidate: put, text; taken: put, flag; because: put, text; }
    Backend {
        kind: put, text;
        carrier: put, maybe_text;
        mtu: put, int;
        devices: |v: &Vec<String>| texts(v), words;
        rules: |v: &Vec<String>| texts(v), words;
    }
    FastPath {
        on: put, flag;
        why: put, maybe_text;
        devices: |v: &Vec<String>| texts(v), words;
        left_out: |v: &Vec<String>| texts(v), words;
        flows: put, int;
        fast_packets: put, int;
        slow_packets: put, int;
        untracked: put, int;
        too_big: put, int;
        full: put, int;
        unfinished: put, int;
        early: put, maybe_text;
        early_frames: put, int;
        most_flows: put, int;
    }
    Peers { programmed: put, int; left_out: |v: &Vec<LeftOut>| many(v), list; }
    LeftOut { node: put, maybe_text; subnets: put, text; reason: put, text; }
    Probes { off: put, maybe_text; nodes: put, int; paths: |v: &Vec<Path>| many(v), list; }
    Path {
        node: put, maybe_text;
        subnet: put, text;
        inner: put, text;
        public: put, text;
        verdict: put, text;
        text: put, text;
        bad: put, flag;
        rtt_us: put, |json: &Json, key| json.get_exact(key).and_then(Json::as_int);
        mtu: put, |json: &Json, key| json.get_exact(key).and_then(Json::as_int);
        ago_ms: put, int;
        echoes: put, int;
        lost: put, int;
    }
    Dropped { device: put, text; family: put, text; packets: put, int; bytes: put, int; }
    Objects {
        wanted: put, int;
        actual: put, int;
        repaired: |v: &Vec<String>| texts(v), words;
        differences: |v: &Vec<Difference>| many(v), list;
    }
    Difference { command: put, text; reason: put, maybe_text; }
    Trouble { text: put, text; first: put, text; last: put, text; over: put, flag; }
}
