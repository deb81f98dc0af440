//! Log lines on stderr: for people in klog's form (flannel.md 1.4), `Lmmdd hh:mm:ss.uuuuuu <pid> file:line] text`,
//! or for programs as one JSON object a line (decision 0221). Times are UTC. The last lines are kept, for
//! `loden dump`. Who reads slowly holds nobody up (decision 0177).

mod outlet;

use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::io;
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use model::Json;
use outlet::{Mouth, Outlet};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

/// Version of the keys of a JSON line.
const VERSION: u32 = 1;
/// Lines kept.
const KEPT: usize = 200;
/// Bytes kept of a line.
const LINE: usize = 1024;

/// How long an end waits for who reads the log.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// klog's.
    #[default]
    Text,
    /// JSON.
    Json,
}

impl Form {
    /// By the word of `--log-format`.
    ///
    /// # Errors
    /// Another word.
    pub fn of(word: &str) -> Result<Form, String> {
        match word {
            "text" => Ok(Form::Text),
            "json" => Ok(Form::Json),
            other => Err(format!("{other:?} must be \"text\" or \"json\"")),
        }
    }
}

/// What an event carries.
#[derive(Debug, Default)]
struct Said {
    message: String,
    /// Besides, in the order of the source.
    fields: Vec<(&'static str, Json)>,
}

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            // Writing to a String cannot fail.
            let _ = write!(self.message, "{value:?}");
        } else {
            self.fields.push((field.name(), format!("{value:?}").into()));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message.push_str(value)
        } else {
            self.fields.push((field.name(), value.into()))
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.fields.push((field.name(), value.into()));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.fields.push((field.name(), value.into()));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.fields.push((field.name(), value.into()));
    }
}

impl<S, N> FormatEvent<S, N> for Form
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut said = Said::default();
        event.record(&mut said);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let line = match self {
            Form::Text => klog(event.metadata().level(), place(event.metadata()), now, &said),
            Form::Json => json(event.metadata().level(), place(event.metadata()), now, &said),
        };
        writeln!(out, "{line}")
    }
}

/// Where in the source: file and line.
fn place<'a>(meta: &Metadata<'a>) -> (&'a str, u32) {
    (meta.file().unwrap_or("?"), meta.line().unwrap_or(0))
}

fn klog(level: &Level, (file, line): (&str, u32), now: Duration, said: &Said) -> String {
    let letter = match *level {
        Level::ERROR => 'E',
        Level::WARN => 'W',
        _ => 'I',
    };
    let (_, month, day) = date(now.as_secs() / 86_400);
    let s = now.as_secs() % 86_400;
    let file = base(file);
    format!(
        "{letter}{month:02}{day:02} {:02}:{:02}:{:02}.{:06} {:7} {file}:{line}] {}",
        s / 3600,
        s / 60 % 60,
        s % 60,
        now.subsec_micros(),
        std::process::id(),
        said.message
    )
}

/// The keys and their order are a promise (docs/guide/reference.md).
fn json(level: &Level, (file, line): (&str, u32), now: Duration, said: &Said) -> String {
    let level = match *level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    };
    let file = base(file);
    let plain = [
        ("v", VERSION.into()),
        ("ts", micros(now).into()),
        ("level", level.into()),
        ("file", file.into()),
        ("line", line.into()),
        ("msg", said.message.as_str().into()),
    ];
    Json::object(plain.into_iter().chain(said.fields.iter().cloned())).to_compact()
}

/// A file without its directories.
fn base(file: &str) -> &str {
    file.rsplit('/').next().unwrap_or(file)
}

/// RFC 3339 in UTC with microseconds, of a time since 1970.
fn micros(since: Duration) -> String {
    let unix = since.as_secs();
    let (year, month, day) = date(unix / 86_400);
    let (hour, minute, second) = (unix / 3_600 % 24, unix / 60 % 60, unix % 60);
    let micros = since.subsec_micros();
    format!("{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

/// A time in a sentence, such as `2026-11-26 11:49 UTC`. Takes seconds since 1970.
pub fn utc(unix: u64) -> String {
    let (year, month, day) = date(unix / 86_400);
    let minute = unix / 60 % 1_440;
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", minute / 60, minute % 60)
}

/// Year, month and day of a day counted from 1970-01-01 (Gregorian calendar; days from civil, inverted).
pub fn date(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let day_of_era = z % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (z / 146_097 * 400 + year_of_era + u64::from(month < 3), month, day)
}

/// The last lines, and those that stderr has no room for yet.
#[derive(Debug, Default)]
pub struct Tail {
    form: Form,
    kept: Mutex<VecDeque<String>>,
    outlet: Mutex<Out>,
}

#[derive(Debug, Default)]
struct Out {
    lines: Outlet,
    /// Whether a thread waits for room.
    attended: bool,
}

impl Tail {
    fn keep(&self, line: &[u8]) {
        let line = String::from_utf8_lossy(&line[..line.len().min(LINE)]).trim_end().to_owned();
        // A writer that panicked leaves whole lines behind.
        let mut lines = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == KEPT {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    /// They, the oldest first, each with a line feed.
    pub fn text(&self) -> String {
        let lines = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().flat_map(|line| [line, "\n"]).collect()
    }
}

impl Tail {
    fn write(self: &Arc<Tail>, line: &[u8]) {
        let mut out = self.outlet.lock().unwrap_or_else(PoisonError::into_inner);
        out.lines.put(line, &mut Stderr, |lost| self.form.lost(lost));
        if !out.lines.is_empty() && !out.attended {
            let tail = self.clone();
            // Without a thread the next line tries again.
            out.attended =
                std::thread::Builder::new().name("log".to_owned()).spawn(move || tail.attend()).is_ok();
        }
    }

    /// Writes what waits as soon as there is room, and ends when nothing waits.
    fn attend(&self) {
        let none = CapabilitySet::empty();
        let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
        let _ = set_capabilities(None, none);
        loop {
            room(None);
            let mut out = self.outlet.lock().unwrap_or_else(PoisonError::into_inner);
            out.lines.flush(&mut Stderr, &|lost| self.form.lost(lost));
            if out.lines.is_empty() {
                out.attended = false;
                return;
            }
        }
    }

    /// Waits for who reads what still waits, a second at most: the last words of a process.
    pub fn finish(&self) {
        let end = Instant::now() + LAST_WORDS;
        while Instant::now() < end {
            let mut out = self.outlet.lock().unwrap_or_else(PoisonError::into_inner);
            out.lines.flush(&mut Stderr, &|lost| self.form.lost(lost));
            if out.lines.is_empty() {
                return;
            }
            drop(out);
            room(Some(end.saturating_duration_since(Instant::now())));
        }
    }
}

impl Form {
    /// The line that stands for lines nobody took in time.
    fn lost(self, lines: u64) -> Vec<u8> {
        let text = format!("{lines} log lines are left out here: standard error was not read in time");
        let said = Said { message: text, fields: Vec::new() };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let place = (file!(), line!());
        match self {
            Form::Text => klog(&Level::WARN, place, now, &said) + "\n",
            Form::Json => json(&Level::WARN, place, now, &said) + "\n",
        }
        .into_bytes()
    }
}

/// Standard error, written to only when it has room.
struct Stderr;

impl Mouth for Stderr {
    fn take(&mut self, piece: &[u8]) -> io::Result<usize> {
        if !room(Some(Duration::ZERO)) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(rustix::io::write(io::stderr().as_fd(), piece)?)
    }
}

/// Waits until standard error has room or is gone; tells whether.
fn room(patience: Option<Duration>) -> bool {
    let stderr = io::stderr();
    let mut fds = [PollFd::from_borrowed_fd(stderr.as_fd(), PollFlags::OUT)];
    let patience = patience.and_then(|time| Timespec::try_from(time).ok());
    // An error says that asking is no use: then it is written to as ever.
    poll(&mut fds, patience.as_ref()).map_or(true, |ready| ready > 0)
}

/// Writes to stderr and keeps what it wrote.
#[derive(Clone, Debug)]
struct Sink(Arc<Tail>);

impl io::Write for Sink {
    /// Lines come whole.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.keep(line);
        self.0.write(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Sink {
    type Writer = Sink;

    fn make_writer(&'a self) -> Sink {
        self.clone()
    }
}

/// Starts logging. Levels above 0 (`-v`) show debug lines.
pub fn init(verbosity: i64, form: Form) -> Arc<Tail> {
    let level = match verbosity {
        i64::MIN..=1 => Level::INFO,
        2..=4 => Level::DEBUG,
        _ => Level::TRACE,
    };
    let tail = Arc::new(Tail { form, ..Tail::default() });
    let subscriber =
        tracing_subscriber::fmt().with_max_level(level).with_writer(Sink(tail.clone())).with_ansi(false);
    // A second start in one process (tests) keeps the first subscriber.
    let _ = tracing::subscriber::set_global_default(subscriber.event_format(form).finish());
    if form == Form::Json {
        // A program that reads lines shall be able to read the last one.
        std::panic::set_hook(Box::new(|panic| tracing::error!(topic = "panic", "{panic}")));
    }
    tail
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calendar() {
        for (day, want) in [
            (0, (1970, 1, 1)),
            (58, (1970, 2, 28)),
            (59, (1970, 3, 1)),
            (11_016, (2000, 2, 29)),
            (20_778, (2026, 11, 21)),
            (20_818, (2026, 12, 31)),
        ] {
            assert_eq!(date(day), want, "day {day}");
        }
        assert_eq!(utc(20_778 * 86_400 + 11 * 3_600 + 49 * 60 + 59), "2026-11-21 11:49 UTC");
        assert_eq!(micros(Duration::new(20_778 * 86_400 + 3, 42_000)), "2026-11-21T00:00:03.000042Z");
    }

    /// What a line is without its time, process and line number.
    fn shown(form: Form, event: impl FnOnce()) -> String {
        let tail = Arc::new(Tail::default());
        let subscriber = tracing_subscriber::fmt().with_writer(Sink(tail.clone())).with_ansi(false);
        tracing::subscriber::with_default(subscriber.event_format(form).finish(), event);
        tail.text()
    }

    #[test]
    fn lines_for_people_and_for_programs() {
        let event = || tracing::warn!(topic = "lease", times = 3_u64, bad = true, "no \"lease\"\nat all");
        let text = shown(Form::Text, event);
        let (head, message) = text.split_once("] ").unwrap();
        assert_eq!(message, "no \"lease\"\nat all\n", "fields are for programs");
        assert!(head.starts_with('W') && head.contains(" log.rs:"), "{head}");
        let line = shown(Form::Json, event);
        assert_eq!(line.lines().count(), 1, "{line}");
        let json: Json = line.parse().unwrap();
        let names: Vec<&str> = json.members().unwrap().iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["v", "ts", "level", "file", "line", "msg", "topic", "times", "bad"]);
        assert_eq!(json.get("v").and_then(Json::as_int), Some(1));
        assert_eq!(json.get("level").and_then(Json::as_str), Some("warn"));
        assert_eq!(json.get("file").and_then(Json::as_str), Some("log.rs"));
        assert_eq!(json.get("msg").and_then(Json::as_str), Some("no \"lease\"\nat all"));
        assert_eq!(json.get("times").and_then(Json::as_int), Some(3));
        let ts = json.get("ts").and_then(Json::as_str).unwrap();
        assert!(ts.len() == 27 && ts.ends_with('Z') && ts.as_bytes()[19] == b'.', "{ts}");
    }

    #[test]
    fn the_last_lines_are_kept() {
        let tail = Tail::default();
        (0..KEPT + 5).for_each(|n| tail.keep(format!("{n}\n").as_bytes()));
        tail.keep(&[b'x'; 3 * LINE]);
        let text = tail.text();
        assert_eq!(text.lines().count(), KEPT);
        assert_eq!(text.lines().next(), Some("6"));
        assert_eq!(text.lines().last().map(str::len), Some(LINE));
    }
}
