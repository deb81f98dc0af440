use model::Family;

use super::*;
use crate::machine::Machine;
use crate::report::{Figure, Measured, Row};

fn row(name: &str, one: [f64; 3], wire: Option<[f64; 3]>) -> Row {
    let trip = |values: [f64; 3]| Samples::of(values.map(|value| 200.0 / value));
    let wire_one = wire.map(Samples::of);
    let wire_trip = wire.map(trip);
    let beside = |samples: &Option<Samples>| samples.clone().map(|samples| ("wire", samples));
    let figure = |figure, samples, beside: Option<(&'static str, Samples)>| {
        Measured::new(figure, samples, beside.as_ref().map(|(what, samples)| (*what, samples)))
    };
    Row {
        name: name.to_owned(),
        about: format!("about <{name}>"),
        unavailable: None,
        figures: vec![
            figure(Figure::TcpOne, Samples::of(one), beside(&wire_one)),
            figure(Figure::TripHalf, trip(one), beside(&wire_trip)),
        ],
    }
}

fn report() -> Report {
    let wire = [10.0, 12.0, 11.0];
    let mut fast = row("fast", wire, None);
    fast.figures.clear();
    fast.unavailable = Some("the fast path is not on: no <BTF>".to_owned());
    let peers = Measured::new(
        Figure::PeersProgrammed,
        Samples::of([120_000.0]),
        Some(("one by one", &Samples::of([12_000.0]))),
    );
    let cpu = "Some CPU & more".to_owned();
    Report {
        version: "0.1.0".to_owned(),
        date: "2026-11-27 02:40 UTC".to_owned(),
        place: "lab",
        machines: vec![Machine {
            name: "here".to_owned(),
            cpu,
            cores: 2,
            memory_mib: 8192,
            kernel: "6.18".to_owned(),
            boot: "secret".to_owned(),
        }],
        family: Family::V6,
        wire: "frames",
        rounds: 3,
        seconds: 0.5,
        foreign: Samples::of([0.02, 0.04, 0.03]),
        ways: vec![
            row("wire", wire, None),
            row("vxlan", [5.0, 6.0, 6.6], Some(wire)),
            fast,
            Row {
                name: "peers".to_owned(),
                about: "peers".to_owned(),
                unavailable: None,
                figures: vec![peers],
            },
        ],
    }
}

#[test]
fn a_table_has_a_block_for_each_figure() {
    let want = "\
a lab of hosts as namespaces, IPv6, frames alone on the wire; 3 rounds of 0.5 s
here: 2 x Some CPU & more, 8 GiB, Linux 6.18
2026-11-27 02:40 UTC, loden 0.1.0; processors in use by others: 3 %

TCP, ONE STREAM  Gbit/s             X WIRE
wire             11.0 [10.0..12.0]  1
vxlan            6.00 [5.00..6.60]  0.50 [0.50..0.60]

ROUND TRIP, MEDIAN  us, less is better  X WIRE
wire                18.2 [16.7..20.0]   1
vxlan               33.3 [30.3..40.0]   2.00 [1.67..2.00]

PEERS PROGRAMMED  1/s    X ONE BY ONE
peers             120 k  10.0

NOT MEASURED
  fast: the fast path is not on: no <BTF>
";
    assert_eq!(table(&report()), want);
}

#[test]
fn json_has_a_version_and_every_sample() {
    let json: serde_json::Value = serde_json::from_str(&report().json()).unwrap();
    assert_eq!((&json["schema"], &json["family"]), (&"loden.bench/1".into(), &"IPv6".into()));
    assert_eq!(json["ways"][1]["figures"][0]["figure"], "tcp_one");
    assert_eq!(json["ways"][1]["figures"][0]["samples"]["values"], serde_json::json!([5, 6, 6.6]));
    assert_eq!(json["ways"][1]["figures"][0]["beside"]["ratio"]["median"], 0.5);
    assert_eq!(json["ways"][2]["unavailable"], "the fast path is not on: no <BTF>");
    assert!(!report().json().contains("secret"));
}

#[test]
fn a_page_stands_alone_and_takes_names_as_text() {
    let page = html(&report());
    for outside in ["http:", "https:", "<script", "src=", "@import", "url("] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(page.contains("a lab of hosts as namespaces, IPv6, frames"), "{page}");
    assert!(page.contains("no &lt;BTF&gt;") && page.contains("Some CPU &amp; more"), "{page}");
    assert_eq!(page.matches("<svg").count(), 3);
    assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    // The wire is a line through all bars, where all have one scale: 11 of 12 Gbit/s.
    assert!(page.contains("x1=\"503.3\""), "{page}");
}
