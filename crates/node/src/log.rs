//! Log lines in klog's form on stderr (flannel.md 1.4): `Lmmdd hh:mm:ss.uuuuuu <pid> file:line] text`.
//! Times are UTC.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

struct Klog;

impl<S, N> FormatEvent<S, N> for Klog
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let meta = event.metadata();
        let letter = match *meta.level() {
            Level::ERROR => 'E',
            Level::WARN => 'W',
            _ => 'I',
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (month, day) = month_and_day(now.as_secs() / 86_400);
        let s = now.as_secs() % 86_400;
        let file = meta.file().and_then(|f| f.rsplit('/').next()).unwrap_or("?");
        write!(
            out,
            "{letter}{month:02}{day:02} {:02}:{:02}:{:02}.{:06} {:7} {file}:{}] ",
            s / 3600,
            s / 60 % 60,
            s % 60,
            now.subsec_micros(),
            std::process::id(),
            meta.line().unwrap_or(0)
        )?;
        ctx.format_fields(out.by_ref(), event)?;
        writeln!(out)
    }
}

/// Month and day of a day counted from 1970-01-01 (Gregorian calendar; days from civil, inverted).
fn month_and_day(days: u64) -> (u64, u64) {
    let z = days + 719_468;
    let day_of_era = z % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    (if month < 10 { month + 3 } else { month - 9 }, day_of_year - (153 * month + 2) / 5 + 1)
}

/// Starts logging. Levels above 0 (`-v`) show debug lines.
pub fn init(verbosity: i64) {
    let level = match verbosity {
        i64::MIN..=1 => Level::INFO,
        2..=4 => Level::DEBUG,
        _ => Level::TRACE,
    };
    let subscriber =
        tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).with_ansi(false);
    // A second start in one process (tests) keeps the first subscriber.
    let _ = tracing::subscriber::set_global_default(subscriber.event_format(Klog).finish());
}

#[cfg(test)]
mod tests {
    use super::month_and_day;

    #[test]
    fn calendar() {
        for (day, want) in [
            (0, (1, 1)),
            (58, (2, 28)),
            (59, (3, 1)),
            (11_016, (2, 29)),
            (20_778, (11, 21)),
            (20_818, (12, 31)),
        ] {
            assert_eq!(month_and_day(day), want, "day {day}");
        }
    }
}
