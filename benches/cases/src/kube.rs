//! What an API server sends of its Nodes, read piece by piece as it comes.

// The decoder is not public, and the sample is of a test server: both files are taken as they are (as decision 0191).
#[allow(
    dead_code,
    reason = "of what is read, only that it is read counts here, and to its own tests all does"
)]
#[path = "../../../crates/store/src/kube/object.rs"]
mod object;
#[path = "../../../crates/apidouble/src/sample.rs"]
mod sample;
#[path = "../../../crates/store/src/kube/scan.rs"]
mod scan;

use std::fmt::Write as _;

use model::codec::annotation::{DEFAULT_PREFIX, Names};
use object::{Decoder, Message};
use serde_json::json;

use crate::cluster::lease;
use crate::{Row, Work};

pub const ROWS: &[Row] = &[
    Row { what: "store/kube/list", sizes: &[100], gives: |n| n, make: list },
    Row { what: "store/kube/watch", sizes: &[100], gives: |n| n, make: watch },
];

/// Bytes that come at once.
const PIECE: usize = 16 << 10;

/// A Node of 15 kB with a lease.
fn node(n: usize) -> String {
    let lease = lease("vxlan", n, 0);
    let subnet = lease.subnets.to_string();
    let public = lease.attrs.public_ip.map(|ip| ip.to_string()).unwrap_or_default();
    let mut node = sample::full_node(&format!("node-{n}"), &[&subnet], &public);
    for (name, value) in [
        ("kube-subnet-manager", "true"),
        ("backend-type", "vxlan"),
        ("backend-data", lease.attrs.backend_data.as_deref().unwrap_or_default()),
        ("public-ip", &public),
    ] {
        node["metadata"]["annotations"][format!("{DEFAULT_PREFIX}/{name}")] = json!(value);
    }
    node.to_string()
}

/// Reads a text in pieces; gives how many Nodes with a subnet and an address were in it.
fn read(text: String) -> Work {
    let names = Names::new(DEFAULT_PREFIX).expect("flannel's own prefix");
    Box::new(move || {
        let (mut decoder, mut count) = (Decoder::new(&names), 0);
        for piece in text.as_bytes().chunks(PIECE) {
            let fed = decoder.feed(piece, |message| {
                let (Message::Event(_, node) | Message::Object(node)) = message else { return };
                let public = node.annotations.read(&names, None).0.public_ip;
                count += usize::from(node.subnets().is_ok() && public.is_some());
            });
            if fed.is_err() {
                return 0;
            }
        }
        count
    })
}

fn list(size: usize) -> Work {
    let nodes: Vec<String> = (0..size).map(node).collect();
    let kind = r#""kind":"NodeList","apiVersion":"v1","metadata":{"resourceVersion":"9"}"#;
    read(format!("{{{kind},\"items\":[{}]}}", nodes.join(",")))
}

fn watch(size: usize) -> Work {
    let mut text = String::new();
    for n in 0..size {
        // Writing to a String cannot fail.
        let _ = writeln!(text, r#"{{"type":"MODIFIED","object":{}}}"#, node(n));
    }
    read(text)
}
