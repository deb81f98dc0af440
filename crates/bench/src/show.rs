//! A report as text and as a page. Pure.

mod html;
mod table;

pub use html::html;
pub use table::table;

use crate::report::{Report, Samples, number};

/// What stands above the figures.
fn heading(report: &Report) -> Vec<String> {
    let wire = match report.wire {
        "frames" => ", frames alone on the wire",
        "summed" => ", frames alone on the wire, checksums computed by the processor",
        "trains" => ", trains of segments whole on the wire",
        _ => "",
    };
    let place = if report.place == "lab" { "a lab of hosts as namespaces" } else { "two hosts" };
    let rounds =
        if report.rounds == 1 { "one round".to_owned() } else { format!("{} rounds", report.rounds) };
    let mut lines = vec![format!("{place}, {}{wire}; {rounds} of {} s", report.family, report.seconds)];
    lines.extend(report.machines.iter().map(|machine| format!("{}: {}", machine.name, machine.text())));
    lines.push(format!(
        "{}, loden {}; processors in use by others: {:.0} %",
        report.date,
        report.version,
        report.foreign.median * 100.0
    ));
    lines
}

/// `0.96 [0.95..0.97]`; a single sample stands alone.
fn spread(samples: &Samples) -> String {
    let middle = number(samples.median);
    match samples.values.len() {
        0 | 1 => middle,
        _ => format!("{middle} [{}..{}]", number(samples.least), number(samples.most)),
    }
}

#[cfg(test)]
mod tests;
