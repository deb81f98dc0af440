//! The report as columns: a block for each figure, a line for each way.

use super::{heading, spread};
use crate::report::{Figure, Measured, Report};

/// The text.
pub fn table(report: &Report) -> String {
    let mut text = heading(report).join("\n");
    text.push('\n');
    for figure in Figure::ALL {
        let column = report.column(figure);
        if column.is_empty() {
            continue;
        }
        let what = column.iter().find_map(|(_, measured)| Some(measured.beside.as_ref()?.what));
        let beside = what.map_or(String::new(), |what| format!("X {what}"));
        let better = if figure.more() { "" } else { ", less is better" };
        let mut rows = vec![[
            figure.title().to_uppercase(),
            format!("{}{better}", figure.unit()),
            beside.to_uppercase(),
        ]];
        rows.extend(column.iter().map(|(row, measured)| {
            [row.name.clone(), spread(&measured.samples), ratio(what == Some(row.name.as_str()), measured)]
        }));
        text.push('\n');
        lines(&rows, &mut text);
    }
    let missing: Vec<_> =
        report.ways.iter().filter_map(|row| Some((&row.name, row.unavailable.as_ref()?))).collect();
    if !missing.is_empty() {
        text.push_str("\nNOT MEASURED\n");
    }
    for (name, why) in missing {
        text.push_str(&format!("  {name}: {why}\n"));
    }
    text
}

fn ratio(is_yardstick: bool, measured: &Measured) -> String {
    match &measured.beside {
        Some(beside) => spread(&beside.ratio),
        None if is_yardstick => "1".to_owned(),
        None => String::new(),
    }
}

/// Columns as wide as what stands in them, two spaces between.
fn lines(rows: &[[String; 3]], text: &mut String) {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let (first, second) = (width(0), width(1));
    for [name, value, ratio] in rows {
        text.push_str(format!("{name:first$}  {value:second$}  {ratio}").trim_end());
        text.push('\n');
    }
}
