//! Measures turn by turn and gives the report away.

use std::time::Duration;

use model::Family;

use crate::args::{Format, Link, Plan};
use crate::hosts;
use crate::machine::{self, Machine};
use crate::report::{Figure, Measured, Report, Row, Samples};
use crate::traffic::Taken;
use crate::ways::{self, Standing, Way};
use crate::{Result, rates, say, show, tell};

/// How long is looked at what others use.
const LOOK: Duration = Duration::from_millis(200);
/// Share of the processors others may use before figures are doubted (docs/guide/performance.md).
const DOUBT: f64 = 0.12;

/// What one turn of a way gave: a figure, and what stands beside it.
#[derive(Clone, Copy)]
struct Entry {
    figure: Figure,
    value: f64,
    beside: Option<(&'static str, f64)>,
}

/// In the order of the report.
type Turn = Vec<Entry>;

/// A way and what was taken of it.
struct Line {
    name: String,
    about: String,
    turns: Vec<Turn>,
    /// Why there is no way, or why the last turn failed.
    why: Option<String>,
    failed: usize,
}

impl Line {
    fn new(name: &str, about: &str) -> Line {
        Line { name: name.to_owned(), about: about.to_owned(), turns: Vec::new(), why: None, failed: 0 }
    }

    /// A turn that fails is left out; the others have their own to be compared with.
    fn take(&mut self, turn: Result<Turn>) {
        match turn {
            Ok(turn) => self.turns.push(turn),
            Err(why) => {
                tell(&format!("{}: {why}", self.name));
                (self.why, self.failed) = (Some(why), self.failed + 1);
            }
        }
    }

    fn row(self) -> Row {
        let mut figures = Vec::new();
        for (at, first) in self.turns.first().into_iter().flatten().enumerate() {
            let column = |pick: fn(&Entry) -> f64| {
                Samples::of(self.turns.iter().filter_map(|turn| turn.get(at)).map(pick))
            };
            let other = column(|entry| entry.beside.map_or(0.0, |(_, value)| value));
            let beside = first.beside.map(|(what, _)| (what, &other));
            figures.push(Measured::new(first.figure, column(|entry| entry.value), beside));
        }
        let unavailable = self.why.filter(|_| self.turns.is_empty());
        let about = match self.failed {
            failed if failed > 0 && unavailable.is_none() => {
                format!("{}; {failed} rounds failed", self.about)
            }
            _ => self.about,
        };
        Row { name: self.name, about, unavailable, figures }
    }
}

/// What traffic gave, beside that of something else in the same turn.
fn turn_of(taken: Taken, beside: Option<(&'static str, Taken)>) -> Turn {
    let values = |t: Taken| {
        let flood = [t.datagrams, t.each, t.answered, t.each_answered];
        [[t.one, t.many, t.cpu].as_slice(), &flood, &[t.connections, t.half, t.most]].concat()
    };
    let beside = beside.map(|(what, taken)| (what, values(taken)));
    let figures = Figure::ALL.into_iter().zip(values(taken)).enumerate();
    let entry = |(at, (figure, value))| {
        let beside = beside.as_ref().map(|(what, other): &(_, Vec<f64>)| (*what, other[at]));
        Entry { figure, value, beside }
    };
    figures.map(entry).collect()
}

/// In a lab on this machine.
///
/// # Errors
/// Not root, or not even the wire could be made: one sentence.
pub fn lab(plan: &Plan, version: &str) -> Result<u8> {
    if !rustix::process::geteuid().is_root() {
        return Err("a lab between whose hosts is measured needs root".to_owned());
    }
    let wire = Standing::wire(plan)?;
    let mut lines = vec![Line::new("wire", "the hosts themselves, without a pod network")];
    let mut standing = Vec::new();
    for way in &plan.ways {
        let mut line = Line::new(way.name(), way.about());
        let made = match way {
            Way::Cni => ways::empty(plan).map(|lab| Place::Pods(Box::new(lab), plan.family)),
            Way::Peers => Ok(Place::Peers(plan.family)),
            way => Standing::way(*way, plan).map(Box::new).map(Place::Ends),
        };
        match made {
            Ok(place) => {
                if let Place::Ends(ends) = &place
                    && let Some(note) = &ends.note
                {
                    line.about = format!("{}, {note}", line.about);
                }
                standing.push((lines.len(), place));
            }
            Err(why) => {
                tell(&format!("{}: {why}", way.name()));
                line.why = Some(why);
            }
        }
        lines.push(line);
    }
    let mut foreign = Vec::new();
    for round in 0..plan.rounds {
        tell(&format!("round {} of {}", round + 1, plan.rounds));
        foreign.push(machine::foreign(LOOK));
        // In changing order, so that nobody always comes after the same.
        let mut order: Vec<usize> = (0..standing.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        let mut taken = vec![(0, wire.turn().map(Given::Traffic))];
        for number in order {
            let (at, place) = &standing[number];
            taken.push((*at, place.turn()));
        }
        let yardstick = plan.beside.map_or("wire", Way::name);
        let Some(beside) = beside(&lines, &taken, yardstick) else {
            // Without what all else stands beside a round says nothing, but why it failed.
            for (at, given) in taken {
                if let Err(why) = given {
                    lines[at].take(Err(why));
                }
            }
            continue;
        };
        for (at, given) in taken {
            let is_yardstick = lines[at].name == yardstick;
            let beside = Some((yardstick, beside)).filter(|_| !is_yardstick);
            lines[at].take(given.map(|given| given.turn(beside)));
        }
    }
    if let (true, Some(why)) = (lines[0].turns.is_empty(), &lines[0].why) {
        return Err(why.clone());
    }
    let report = Report {
        version: version.to_owned(),
        date: machine::date(),
        place: "lab",
        machines: vec![Machine::here()],
        family: plan.family,
        wire: plan.wire.name(),
        rounds: plan.rounds,
        seconds: plan.span.as_secs_f64(),
        foreign: Samples::of(foreign),
        ways: lines.into_iter().map(Line::row).collect(),
    };
    give(&report, plan)
}

/// What traffic gave on one of the lines.
fn beside(lines: &[Line], taken: &[(usize, Result<Given>)], name: &str) -> Option<Taken> {
    let (_, given) = taken.iter().find(|(at, _)| lines[*at].name == name)?;
    match given {
        Ok(Given::Traffic(taken)) => Some(*taken),
        _ => None,
    }
}

/// What a turn gave.
enum Given {
    Traffic(Taken),
    /// What has something of its own beside it.
    Turn(Turn),
}

impl Given {
    fn turn(self, beside: Option<(&'static str, Taken)>) -> Turn {
        match self {
            Given::Traffic(taken) => turn_of(taken, beside),
            Given::Turn(turn) => turn,
        }
    }
}

/// Something that stands and can be measured.
enum Place {
    Ends(Box<Standing>),
    Pods(Box<lab::Lab>, Family),
    Peers(Family),
}

impl Place {
    fn turn(&self) -> Result<Given> {
        Ok(match self {
            Place::Ends(ends) => Given::Traffic(ends.turn()?),
            Place::Pods(lab, family) => {
                let [add, del, bare] = rates::pods(lab, *family)?;
                Given::Turn(vec![
                    Entry { figure: Figure::PodsAdded, value: add, beside: Some(("bare requests", bare)) },
                    Entry { figure: Figure::PodsDeleted, value: del, beside: None },
                ])
            }
            Place::Peers(family) => {
                let [batched, single] = rates::peers(*family)?;
                let beside = Some(("one by one", single));
                Given::Turn(vec![Entry { figure: Figure::PeersProgrammed, value: batched, beside }])
            }
        })
    }
}

/// From this host to another.
///
/// # Errors
/// The other host is away, or wants another token: one sentence.
pub fn hosts(link: &Link, plan: &Plan, version: &str) -> Result<u8> {
    let ends = hosts::reach(link, plan)?;
    let mut lines = vec![Line::new("wire", "the hosts themselves")];
    lines.push(Line::new("pods", &ends.about));
    lines[1].why = ends.pods.as_ref().err().cloned();
    let mut foreign = Vec::new();
    for round in 0..plan.rounds {
        tell(&format!("round {} of {}", round + 1, plan.rounds));
        foreign.push(machine::foreign(LOOK));
        let first = if round % 2 == 0 { Some(ends.wire()?) } else { None };
        let pods = ends.pods.as_ref().ok().map(|pod| pod.turn());
        let wire = match first {
            Some(wire) => wire,
            None => ends.wire()?,
        };
        lines[0].take(Ok(turn_of(wire, None)));
        if let Some(pods) = pods {
            lines[1].take(pods.map(|taken| turn_of(taken, Some(("wire", wire)))));
        }
    }
    let report = Report {
        version: version.to_owned(),
        date: machine::date(),
        place: "hosts",
        machines: vec![Machine::here(), ends.other.clone()],
        family: plan.family,
        wire: "real",
        rounds: plan.rounds,
        seconds: plan.span.as_secs_f64(),
        foreign: Samples::of(foreign),
        ways: lines.into_iter().map(Line::row).collect(),
    };
    give(&report, plan)
}

/// Prints or writes the report; gives the exit status.
fn give(report: &Report, plan: &Plan) -> Result<u8> {
    let text = match plan.format {
        Format::Table => show::table(report),
        Format::Json => report.json(),
        Format::Html => show::html(report),
    };
    match &plan.file {
        Some(file) => {
            std::fs::write(file, text).map_err(|error| format!("write {}: {error}", file.display()))?;
        }
        None => say(&text)?,
    }
    if report.foreign.median > DOUBT {
        tell(&format!(
            "others use {:.0} % of the processors: only the ratios mean anything, and their spread is wide",
            report.foreign.median * 100.0
        ));
    }
    let missing = report.ways.iter().any(|row| row.unavailable.is_some());
    Ok(u8::from(missing && plan.named))
}
