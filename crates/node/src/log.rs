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
        let (_, month, day) = date(now.as_secs() / 86_400);
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
    use super::{date, utc};

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
    }
}
