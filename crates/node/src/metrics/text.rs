//! Prometheus' text format 0.0.4: lines of a name, labels in braces, and a number; before the first line of a
//! family its `# HELP` and `# TYPE`.

use std::fmt::Write as _;

use super::{Family, Histogram, Kind, LIMITS};

/// A label's name and value.
pub type Label = (&'static str, String);

/// Makes a [`Label`].
pub fn label(name: &'static str, value: impl Into<String>) -> Label {
    (name, value.into())
}

/// A page that is being written. Lines of one family must follow each other.
#[derive(Default)]
pub struct Page {
    text: String,
    family: &'static str,
}

impl Page {
    /// One line.
    pub fn one(&mut self, family: &Family, labels: &[Label], value: f64) {
        self.head(family);
        self.line(family.name, "", labels, value);
    }

    /// The lines of a histogram.
    pub fn histogram(&mut self, family: &Family, of: Label, histogram: &Histogram) {
        self.head(family);
        let mut total = 0;
        let limits = LIMITS.iter().map(|limit| number(*limit)).chain(["+Inf".to_owned()]);
        for (limit, count) in limits.zip(&histogram.buckets) {
            total += count;
            self.line(family.name, "_bucket", &[of.clone(), label("le", limit)], total as f64);
        }
        self.line(family.name, "_sum", std::slice::from_ref(&of), histogram.sum);
        self.line(family.name, "_count", &[of], total as f64);
    }

    /// The text.
    pub fn finish(self) -> String {
        self.text
    }

    fn head(&mut self, family: &Family) {
        if self.family == family.name {
            return;
        }
        self.family = family.name;
        let kind = match family.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let (name, help) = (family.name, family.help);
        // Writing to a String does not fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, suffix: &str, labels: &[Label], value: f64) {
        self.text.push_str(name);
        self.text.push_str(suffix);
        if !labels.is_empty() {
            let labels: Vec<String> =
                labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
            let _ = write!(self.text, "{{{}}}", labels.join(","));
        }
        let _ = writeln!(self.text, " {}", number(value));
    }
}

/// A backslash, a quote and the end of a line have an escape each.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Rust writes floating-point numbers as Go reads them.
fn number(value: f64) -> String {
    value.to_string()
}
