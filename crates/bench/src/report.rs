//! What was measured, as a value: what tables, JSON and pages are made of. Pure.
//!
//! The JSON is the report itself. Its `schema` changes when a member loses its meaning; members may be added.

use model::{Family, Json};

use crate::machine::Machine;

/// Name and version of the JSON.
pub const SCHEMA: &str = "loden.bench/1";

/// Everything of one run.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Version of the program.
    pub version: String,
    /// When it began.
    pub date: String,
    /// `lab`, or `hosts`.
    pub place: &'static str,
    /// The machine, or both.
    pub machines: Vec<Machine>,
    /// In which wire and pods were reached.
    pub family: Family,
    /// `frames`, `summed`, `trains`, or `real`.
    pub wire: &'static str,
    /// Turns of each.
    pub rounds: usize,
    /// Seconds of each measurement.
    pub seconds: f64,
    /// Share of this machine's processors in use while nothing was measured, turn by turn.
    pub foreign: Samples,
    /// The wire first.
    pub ways: Vec<Row>,
}

/// One way.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// What it is.
    pub about: String,
    /// Why it could not be measured.
    pub unavailable: Option<String>,
    /// What was measured, in the order of [`Figure::ALL`].
    pub figures: Vec<Measured>,
}

/// A figure of a way.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// Which.
    pub figure: Figure,
    /// Turn by turn.
    pub samples: Samples,
    /// What stands beside it.
    pub beside: Option<Beside>,
}

/// The same quantity of something else, measured in the same turns.
#[derive(Clone, Debug, PartialEq)]
pub struct Beside {
    /// What it is of: `wire`, or what the kernel takes at least.
    pub what: &'static str,
    /// The way's over it, turn by turn.
    pub ratio: Samples,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    /// One stream of TCP.
    TcpOne,
    /// Four streams.
    TcpFour,
    /// Processor time per GB of one stream.
    CpuPerGb,
    /// Datagrams of 64 bytes.
    Datagrams,
    /// Processor time for each.
    CpuPerDatagram,
    /// Datagrams of 64 bytes, of which some are answered.
    Answered,
    /// Processor time for each of these.
    CpuPerAnswered,
    /// Connections, each with a byte there and back.
    Connections,
    /// Round trip of one byte, median.
    TripHalf,
    /// The same, 99th percentile.
    TripMost,
    /// CNI ADD.
    PodsAdded,
    /// CNI DEL.
    PodsDeleted,
    /// Peers into the kernel.
    PeersProgrammed,
}

impl Figure {
    /// All, in the order of reports.
    pub const ALL: [Figure; 13] = [
        Figure::TcpOne,
        Figure::TcpFour,
        Figure::CpuPerGb,
        Figure::Datagrams,
        Figure::CpuPerDatagram,
        Figure::Answered,
        Figure::CpuPerAnswered,
        Figure::Connections,
        Figure::TripHalf,
        Figure::TripMost,
        Figure::PodsAdded,
        Figure::PodsDeleted,
        Figure::PeersProgrammed,
    ];

    /// What it is, for programs.
    pub fn key(self) -> &'static str {
        match self {
            Figure::TcpOne => "tcp_one",
            Figure::TcpFour => "tcp_four",
            Figure::CpuPerGb => "cpu_per_gb",
            Figure::Datagrams => "datagrams",
            Figure::CpuPerDatagram => "cpu_per_datagram",
            Figure::Answered => "datagrams_answered",
            Figure::CpuPerAnswered => "cpu_per_answered",
            Figure::Connections => "connections",
            Figure::TripHalf => "trip_half",
            Figure::TripMost => "trip_most",
            Figure::PodsAdded => "pods_added",
            Figure::PodsDeleted => "pods_deleted",
            Figure::PeersProgrammed => "peers_programmed",
        }
    }

    /// What it is, for people.
    pub fn title(self) -> &'static str {
        match self {
            Figure::TcpOne => "TCP, one stream",
            Figure::TcpFour => "TCP, four streams",
            Figure::CpuPerGb => "Processor time per GB",
            Figure::Datagrams => "Datagrams of 64 bytes, one way",
            Figure::CpuPerDatagram => "Processor time per datagram, one way",
            Figure::Answered => "Datagrams of 64 bytes, some answered",
            Figure::CpuPerAnswered => "Processor time per datagram, some answered",
            Figure::Connections => "Connections",
            Figure::TripHalf => "Round trip, median",
            Figure::TripMost => "Round trip, 99th percentile",
            Figure::PodsAdded => "Pods attached",
            Figure::PodsDeleted => "Pods detached",
            Figure::PeersProgrammed => "Peers programmed",
        }
    }

    /// Its unit.
    pub fn unit(self) -> &'static str {
        match self {
            Figure::TcpOne | Figure::TcpFour => "Gbit/s",
            Figure::CpuPerGb => "s",
            Figure::CpuPerDatagram | Figure::CpuPerAnswered | Figure::TripHalf | Figure::TripMost => "us",
            Figure::Datagrams
            | Figure::Answered
            | Figure::Connections
            | Figure::PodsAdded
            | Figure::PodsDeleted
            | Figure::PeersProgrammed => "1/s",
        }
    }

    /// More of it is better.
    pub fn more(self) -> bool {
        matches!(self.unit(), "Gbit/s" | "1/s")
    }
}

/// Samples in the order they were taken, with their middle and their ends.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Samples {
    /// The middle one; of an even number the mean of the two in the middle.
    pub median: f64,
    /// The smallest.
    pub least: f64,
    /// The largest.
    pub most: f64,
    /// All.
    pub values: Vec<f64>,
}

impl Samples {
    /// Of values that are numbers; what is none is left out.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Samples {
        let values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        let mut sorted = values.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or(0.0);
        let last = sorted.len().saturating_sub(1);
        Samples { median: (at(last / 2) + at(last.div_ceil(2))) / 2.0, least: at(0), most: at(last), values }
    }

    /// Each over the one taken in the same turn: what disturbs the machine meets both.
    pub fn over(&self, other: &Samples) -> Samples {
        Samples::of(self.values.iter().zip(&other.values).map(|(ours, other)| ours / other))
    }
}

impl Measured {
    /// A figure, beside that of something else.
    pub fn new(figure: Figure, samples: Samples, beside: Option<(&'static str, &Samples)>) -> Measured {
        let beside = beside.map(|(what, other)| Beside { what, ratio: samples.over(other) });
        Measured { figure, samples, beside }
    }
}

impl Report {
    /// Ways with a figure, and what was measured.
    pub fn column(&self, figure: Figure) -> Vec<(&Row, &Measured)> {
        let of = |row: &'_ Row| row.figures.iter().position(|measured| measured.figure == figure);
        self.ways.iter().filter_map(|row| Some((row, &row.figures[of(row)?]))).collect()
    }

    /// As JSON.
    pub fn json(&self) -> String {
        let json = Json::object([
            ("schema", SCHEMA.into()),
            ("version", self.version.as_str().into()),
            ("date", self.date.as_str().into()),
            ("place", self.place.into()),
            ("machines", list(self.machines.iter().map(Machine::json))),
            ("family", self.family.to_string().into()),
            ("wire", self.wire.into()),
            ("rounds", (self.rounds as u64).into()),
            ("seconds", decimal(self.seconds)),
            ("foreign", self.foreign.json()),
            ("ways", list(self.ways.iter().map(Row::json))),
        ]);
        json.to_indented() + "\n"
    }
}

impl Row {
    fn json(&self) -> Json {
        let mut json =
            Json::object([("name", self.name.as_str().into()), ("about", self.about.as_str().into())]);
        if let Some(why) = &self.unavailable {
            json.set("unavailable", why.as_str());
        }
        json.set("figures", list(self.figures.iter().map(Measured::json)));
        json
    }
}

impl Measured {
    fn json(&self) -> Json {
        let figure = [("figure", self.figure.key().into()), ("unit", self.figure.unit().into())];
        let mut json = Json::object(figure);
        json.set("samples", self.samples.json());
        if let Some(Beside { what, ratio }) = &self.beside {
            json.set("beside", Json::object([("what", (*what).into()), ("ratio", ratio.json())]));
        }
        json
    }
}

impl Samples {
    fn json(&self) -> Json {
        Json::object([
            ("median", decimal(self.median)),
            ("least", decimal(self.least)),
            ("most", decimal(self.most)),
            ("values", list(self.values.iter().copied().map(decimal))),
        ])
    }
}

fn list(items: impl Iterator<Item = Json>) -> Json {
    Json::Array(items.collect())
}

fn decimal(value: f64) -> Json {
    Json::Number(value.to_string())
}

/// A number as people read it: three digits count.
pub fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 1_000_000.0 => format!("{:.2} M", value / 1e6),
        v if v >= 10_000.0 => format!("{:.0} k", value / 1e3),
        v if v >= 1_000.0 => format!("{:.1} k", value / 1e3),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 0.1 || v == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_have_a_middle_and_ends() {
        for (values, want) in [
            (vec![], [0.0, 0.0, 0.0]),
            (vec![3.0], [3.0, 3.0, 3.0]),
            (vec![3.0, 1.0, 8.0], [3.0, 1.0, 8.0]),
            (vec![4.0, 1.0, 2.0, 9.0], [3.0, 1.0, 9.0]),
            (vec![f64::NAN, 1.0, f64::INFINITY], [1.0, 1.0, 1.0]),
        ] {
            let Samples { median, least, most, .. } = Samples::of(values);
            assert_eq!([median, least, most], want);
        }
        let ratio = Samples::of([1.0, 2.0, 9.0]).over(&Samples::of([4.0, 4.0, 9.0]));
        assert_eq!(ratio.values, [0.25, 0.5, 1.0]);
    }

    #[test]
    fn three_digits_count() {
        for (value, want) in [
            (0.0, "0.00"),
            (0.0123, "0.012"),
            (0.456, "0.46"),
            (9.876, "9.88"),
            (45.67, "45.7"),
            (456.7, "457"),
            (4567.0, "4.6 k"),
            (45_678.0, "46 k"),
            (4_567_890.0, "4.57 M"),
        ] {
            assert_eq!(number(value), want);
        }
    }
}
