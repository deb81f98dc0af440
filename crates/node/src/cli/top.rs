//! `loden top`: how this node is, each second.

use std::fs::File;
use std::io::{IsTerminal as _, stdout};
use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kernel::process;
use lab::paint::Style;

use super::print;
use super::words::{Command, SOCKET, Words, flag, switch};
use crate::top::Sample;
use crate::top::collect::Watcher;
use crate::top::frame::{Size, frame, page};
use crate::top::json;
use crate::top::screen::Screen;
use crate::top::view::{Action, Sort, View};
use crate::{args, socket};

/// What it is, for help, completion and manual.
pub const COMMAND: Command = Command {
    name: "top",
    words: "",
    summary: "watch peers, pods, devices, repairs and troubles live",
    text: "\
Shows peers (do packets come back, round trip, loss), pods and devices with packets and bytes each second, repairs and troubles, and \
looks again each second. Asks the agent as `loden status` does; without an agent it shows what the kernel alone tells, and says \
that it is partial. Sends nothing to other hosts and changes nothing.

Keys: q ends it, s takes the next order, r turns it round, / takes a text that rows must have, Tab shows one thing alone, arrows scroll.

Into a file or a pipe, and with -n, --once or -o json, it prints instead, one look after the other: one, unless -n says more.",
    flags: &[
        flag("--interval", "SECONDS", "time between two looks (1; 0.2 to 3600)"),
        flag("-n", "N", "print so many looks and end; rates are those since the look before"),
        switch("--once", "the same as -n 1"),
        flag("--sort", "state|name|traffic|rtt|loss", "order of rows (state: what is bad comes first)"),
        flag("--filter", "TEXT", "only rows with this text"),
        flag(
            "-o",
            "table|json",
            "text for people (the default), coloured on a terminal unless NO_COLOR is set; or one JSON document, with a version; \
             with -n of more than one, one in each line",
        )
        .long("--output"),
        SOCKET,
    ],
    exit: "0 shown, 2 the last look was a partial one because no agent answered, or it could not be shown.",
    sub: &[],
};

/// How often the terminal's size is looked at.
const TICK: Duration = Duration::from_millis(100);

struct Wish {
    interval: Duration,
    /// Looks to print.
    looks: Option<u64>,
    view: View,
    json: bool,
    socket: Option<PathBuf>,
}

/// Runs the command; gives the exit status.
pub fn main(words: &[String]) -> u8 {
    COMMAND.serve(parse(words), run)
}

/// Whether the words make sense.
#[cfg(test)]
pub fn understands(words: &[String]) -> Result<(), String> {
    parse(words).map(drop)
}

/// `None` for help.
fn parse(words: &[String]) -> Result<Option<Wish>, String> {
    let mut wish = Wish {
        interval: Duration::from_secs(1),
        looks: None,
        view: View::default(),
        json: false,
        socket: None,
    };
    let mut words = Words::new(words, &COMMAND);
    while let Some(name) = words.word()? {
        match name {
            "--interval" => wish.interval = interval(words.value()?)?,
            "-n" => {
                let text = words.value()?;
                let number = text.parse().ok().filter(|number| *number > 0);
                wish.looks = Some(number.ok_or_else(|| format!("-n {text:?} is no number from 1 on"))?);
            }
            "--once" => wish.looks = Some(1),
            "--sort" => {
                let text = words.value()?;
                let sort = Sort::EACH.into_iter().find(|sort| sort.word() == text);
                wish.view.sort =
                    sort.ok_or_else(|| format!("--sort {text:?} is no order; write {}", orders()))?;
            }
            "--filter" => wish.view.filter = words.value()?.to_owned(),
            "-o" => wish.json = super::is_json(words.value()?)?,
            "--socket" => wish.socket = Some(PathBuf::from(words.value()?)),
            "--help" => return Ok(None),
            other => return Err(words.unknown(other)),
        }
    }
    Ok(Some(wish))
}

fn orders() -> String {
    Sort::EACH.map(Sort::word).join(", ")
}

fn interval(text: &str) -> Result<Duration, String> {
    let seconds = text.strip_suffix('s').unwrap_or(text).parse::<f64>().ok();
    let seconds = seconds.filter(|seconds| (0.2..=3600.0).contains(seconds));
    let wrong = || format!("--interval {text:?} is no number of seconds, 0.2 to 3600");
    seconds.map(Duration::from_secs_f64).ok_or_else(wrong)
}

fn run(wish: Wish) -> Result<u8, String> {
    process::hold_end_signals().map_err(|error| error.to_string())?;
    let options = args::from_environment();
    let said = std::env::var("LODEN_SOCKET").ok();
    let path = wish.socket.clone().or_else(|| socket::path(said.as_deref(), &options.subnet_file));
    let watcher = Watcher::new(path, &options.subnet_file);
    // A dumb one can only be printed on.
    let terminal = stdout().is_terminal() && std::env::var("TERM").is_ok_and(|term| term != "dumb");
    if wish.looks.is_some() || wish.json || !terminal {
        Ok(tell(watcher, &wish))
    } else {
        watch(watcher, wish)
    }
}

/// Prints looks.
fn tell(mut watcher: Watcher, wish: &Wish) -> u8 {
    let looks = wish.looks.unwrap_or(1);
    let mut before = watcher.look();
    let mut code = code(&before);
    for number in 0..looks {
        if !pause(wish.interval) {
            break;
        }
        let mut sample = watcher.look();
        sample.compare(&before);
        if wish.json {
            let document = json::write(&sample);
            print(&format!("{}\n", if looks > 1 { document.to_compact() } else { document.to_indented() }));
        } else {
            let style = lab::style(false);
            // As wide as it has to be into a file, and as long.
            let size = Size { width: if style.color { style.width } else { 160 }, height: usize::MAX };
            let gap = if number > 0 { "\n" } else { "" };
            let lines = frame(&sample, &wish.view, size, style, false);
            print(&format!("{gap}{}", style.lines(&lines)));
        }
        code = self::code(&sample);
        before = sample;
    }
    code
}

fn code(sample: &Sample) -> u8 {
    if sample.partial().is_some() { 2 } else { 0 }
}

/// Whether it was not ended meanwhile.
fn pause(length: Duration) -> bool {
    let end = Instant::now() + length;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() || process::end_is_pending() {
            return left.is_zero();
        }
        std::thread::sleep(left.min(TICK));
    }
}

/// Shows it until somebody ends it. What a panic says is for the screen that was there before.
fn watch(watcher: Watcher, wish: Wish) -> Result<u8, String> {
    let said = Arc::new(Mutex::new(String::new()));
    let hook = panic::take_hook();
    let words = said.clone();
    panic::set_hook(Box::new(move |info| {
        words.lock().unwrap_or_else(PoisonError::into_inner).push_str(&info.to_string());
    }));
    let done = panic::catch_unwind(AssertUnwindSafe(|| show(watcher, wish)));
    panic::set_hook(hook);
    let said = said.lock().unwrap_or_else(PoisonError::into_inner).clone();
    match done {
        Ok(done) if said.is_empty() => done,
        _ => Err(format!("this program has a fault, please report it: {said}")),
    }
}

fn show(watcher: Watcher, wish: Wish) -> Result<u8, String> {
    let failed = |error: std::io::Error| format!("use the terminal: {error}");
    let terminal = File::options().read(true).write(true).open("/dev/tty").map_err(failed)?;
    let samples = looks(watcher, wish.interval)?;
    let mut screen = Screen::enter(terminal).map_err(failed)?;
    let style = Style { width: 0, ..lab::style(false) };
    let (mut view, mut shown): (View, Option<Sample>) = (wish.view, None);
    let mut drawn_for = None;
    loop {
        // A look that takes long, because the agent does, keeps no key waiting.
        let mut news = false;
        loop {
            match samples.try_recv() {
                Ok(sample) => (shown, news) = (Some(sample), true),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    return Err("looking at this host ended unexpectedly".to_owned());
                }
            }
        }
        let size = screen.size();
        if news || drawn_for != Some(size) {
            if let Some(sample) = &shown {
                screen.draw(&frame(sample, &view, size, style, true), size, style).map_err(failed)?;
            }
            drawn_for = Some(size);
        }
        if process::end_is_pending() {
            break;
        }
        for key in screen.keys(TICK).map_err(failed)? {
            match view.press(key, page(size)) {
                Action::Draw => drawn_for = None,
                Action::Quit => return Ok(shown.as_ref().map_or(2, code)),
                Action::Suspend => {
                    screen.suspend().map_err(failed)?;
                    drawn_for = None;
                }
            }
        }
    }
    Ok(shown.as_ref().map_or(2, code))
}

/// Looks, on a thread of its own, for as long as somebody takes them.
fn looks(mut watcher: Watcher, interval: Duration) -> Result<Receiver<Sample>, String> {
    let (sender, receiver): (SyncSender<Sample>, _) = sync_channel(1);
    let work = move || {
        let mut before: Option<Sample> = None;
        loop {
            let began = Instant::now();
            let mut sample = watcher.look();
            if let Some(before) = &before {
                sample.compare(before);
            }
            before = Some(sample.clone());
            if sender.send(sample).is_err() {
                return;
            }
            std::thread::sleep(interval.saturating_sub(began.elapsed()));
        }
    };
    let started = std::thread::Builder::new().name("looks".to_owned()).spawn(work);
    started.map(|_| receiver).map_err(|error| format!("start a thread: {error}"))
}
