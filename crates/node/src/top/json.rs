//! [`Sample`] as JSON and back. Names of members are those of the fields; some that follow from others are added for
//! readers: `partial` and `state`.

use model::Json;

use super::{Counters, Device, Peer, Pod, Rates, Repair, Sample, Traffic, VERSION};
use crate::status::Path;
use crate::status::json::{
    self, Part, flag, int, list, many, maybe, maybe_text, one, parts, put, text, texts, words,
};

/// The document.
pub fn write(sample: &Sample) -> Json {
    Json::object([
        ("version", VERSION.into()),
        ("partial", sample.partial().map(str::to_owned).into()),
        ("at_ms", sample.at_ms.into()),
        ("host", sample.host.clone().into()),
        ("status", json::write(&sample.status)),
        ("compared_ms", sample.compared_ms.into()),
        ("peers", many(&sample.peers)),
        ("repairs", many(&sample.repairs)),
        ("pods", many(&sample.pods)),
        ("devices", many(&sample.devices)),
    ])
}

/// Reads a document of our version or a later one; what is missing is empty.
///
/// # Errors
/// Half a sentence: not JSON, or not such a document.
pub fn read(text: &[u8]) -> Result<Sample, String> {
    let json = Json::parse(text).map_err(|error| format!("not JSON: {error}"))?;
    let status = json.get_exact("status").map(json::of).transpose()?;
    Ok(Sample {
        at_ms: int(&json, "at_ms"),
        host: self::text(&json, "host"),
        status: status.ok_or("not a look at a node")?,
        compared_ms: json.get_exact("compared_ms").and_then(Json::as_int),
        peers: list(&json, "peers"),
        repairs: list(&json, "repairs"),
        pods: list(&json, "pods"),
        devices: list(&json, "devices"),
    })
}

impl Part for Peer {
    fn write(&self) -> Json {
        Json::object([
            ("node", self.node.clone().into()),
            ("subnets", texts(&self.subnets)),
            ("public", texts(&self.public)),
            ("backend", self.backend.clone().into()),
            ("left_out", self.left_out.clone().into()),
            ("state", self.state().word().into()),
            ("paths", many(&self.paths)),
            ("traffic", one(&self.traffic)),
        ])
    }

    fn read(json: &Json) -> Peer {
        Peer {
            node: maybe_text(json, "node"),
            subnets: words(json, "subnets"),
            public: words(json, "public"),
            backend: text(json, "backend"),
            left_out: maybe_text(json, "left_out"),
            paths: list::<Path>(json, "paths"),
            traffic: maybe(json, "traffic"),
        }
    }
}

fn part<T: Part>(part: &T) -> Json {
    part.write()
}

fn whole<T: Part + Default>(json: &Json, key: &str) -> T {
    maybe(json, key).unwrap_or_default()
}

parts! {
    Repair { kind: put, text; cause: put, text; times: put, int; new: put, int; }
    Pod {
        pod: put, maybe_text;
        device: put, text;
        bridge: put, maybe_text;
        addresses: |v: &Vec<String>| texts(v), words;
        traffic: part, whole;
    }
    Device {
        name: put, text;
        kind: put, text;
        role: put, text;
        up: put, flag;
        mtu: put, int;
        traffic: part, whole;
    }
    Traffic { counters: part, whole; rates: one, maybe; }
    Counters {
        in_packets: put, int;
        in_bytes: put, int;
        out_packets: put, int;
        out_bytes: put, int;
        dropped: put, int;
        errors: put, int;
    }
    Rates {
        in_packets: put, int;
        in_bytes: put, int;
        out_packets: put, int;
        out_bytes: put, int;
        dropped: put, int;
    }
}
