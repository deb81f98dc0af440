//! Does what the command line says.

use std::io::{self, IsTerminal, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use serde_json::{Value, json};

use super::args::{AgentVerb, Command, Look};
use super::help;
use crate::api::{Builder, Lab};
use crate::client::{Client, list};
use crate::error::{Doing, Error, Result};
use crate::paint::{Style, Text, Tone, time};
use crate::proto::{Fetch, Pod, Reach, Request, Status, Walk};
use crate::spec::Spec;
use crate::{show, sys};

/// Echoes behind each median of the matrix.
const COUNT: u32 = 5;

/// Runs one command; gives the exit status.
///
/// # Errors
/// A sentence for standard error.
pub fn run(command: Command, look: &Look) -> Result<i32> {
    let style = style(look.ascii);
    match command {
        Command::Help(topic) => say(&help::text(topic.as_deref()))?,
        Command::Demo(spec) => return demo(spec, look, style),
        Command::Up(spec) => up(spec, look, style)?,
        Command::Show(name) => {
            let shown = Shown::gather(&Client::new(&name))?;
            let good = shown.good();
            if look.json {
                print_json(&shown)?;
            } else {
                shown.print(style, None)?;
                say("\n")?;
            }
            return Ok(i32::from(!good));
        }
        Command::Status(name) => {
            let status: Status = Client::new(&name).ask(&Request::Status)?;
            print(look, style, &status, |s| show::status(s, style))?;
        }
        Command::List => {
            print(look, style, &list(), |names| names.iter().map(Text::plain).collect())?;
        }
        Command::Exec(name, place, program) => return exec(&name, &place, &program),
        Command::Logs(name, place) => {
            let lines: Vec<String> = Client::new(&name).ask(&Request::Logs { place })?;
            print(look, style, &lines, |lines| lines.iter().map(Text::plain).collect())?;
        }
        Command::PodAdd(name, host, pod) => {
            let pod: Pod = Client::new(&name).ask(&Request::PodAdd { host, name: pod })?;
            print(look, style, &pod, |p| show::pods(std::slice::from_ref(p), style))?;
        }
        Command::PodDel(name, pods) => {
            for pod in pods {
                Client::new(&name).ask::<Value>(&Request::PodDel { name: pod })?;
            }
        }
        Command::PodList(name) => {
            let status: Status = Client::new(&name).ask(&Request::Status)?;
            print(look, style, &status.pods, |pods| show::pods(pods, style))?;
        }
        Command::Ping(name, from, to) => return ping(&name, from, to, look, style),
        Command::Walk(name, from, to, v6) => {
            let walk: Walk = Client::new(&name).ask(&Request::Walk { from, to, v6 })?;
            print(look, style, &walk, |w| show::walk(w, style))?;
        }
        Command::Agent(name, verb, host) => agent(&Client::new(&name), verb, host, style)?,
        Command::Down(name) => {
            Client::new(&name).down()?;
            let text = format!("the lab {name} is gone; nothing is left behind");
            say(&style.lines(&[style.tick().and(Tone::Plain, format!(" {text}"))]))?;
        }
    }
    Ok(0)
}

// ---- demo and up ------------------------------------------------------------------------------------

fn demo(spec: Spec, look: &Look, style: Style) -> Result<i32> {
    let interrupted = Arc::new(AtomicBool::new(false));
    sys::block_signals();
    let lab = Builder::of(spec.clone()).spawn(Stdio::inherit())?;
    end_on_signal(&spec.name, lab.owner()?, interrupted.clone());
    let outcome = demonstrate(lab, &spec, look, style);
    if interrupted.load(Ordering::SeqCst) {
        // The other thread says so and ends the program.
        loop {
            std::thread::park();
        }
    }
    outcome
}

fn demonstrate(mut lab: Lab, spec: &Spec, look: &Look, style: Style) -> Result<i32> {
    build(&mut lab, spec, look, style)?;
    let shown = Shown::gather(lab.client())?;
    if look.json {
        print_json(&shown)?;
    } else {
        shown.print(style, Some(("Your turn", "", show::way_on(&spec.name, false, style))))?;
    }
    let start = std::time::Instant::now();
    lab.down();
    if !look.json {
        let took = time(start.elapsed().as_micros() as f64, style);
        let line = Text::plain("\n  ")
            .join(style.tick())
            .and(Tone::Plain, " the lab is gone; nothing is left behind")
            .and(Tone::Dim, format!("   {took}"));
        say(&style.lines(&[line]))?;
    }
    Ok(i32::from(!shown.good()))
}

fn up(spec: Spec, look: &Look, style: Style) -> Result<()> {
    let mut lab = Builder::of(spec.clone()).spawn(Stdio::null())?;
    build(&mut lab, &spec, look, style)?;
    let status = lab.status()?;
    lab.detach()?;
    if look.json {
        return print_json(&status);
    }
    say("\n")?;
    say(&style.lines(&show::picture(&status, style)))?;
    say("\n")?;
    say(&style.lines(&show::way_on(&spec.name, true, style)))
}

fn build(lab: &mut Lab, spec: &Spec, look: &Look, style: Style) -> Result<()> {
    let mut printed = Ok(());
    if !look.json {
        say(&style.lines(&show::title(spec, style)))?;
    }
    lab.wait(&mut |step| {
        if !look.json && printed.is_ok() {
            printed = say(&style.lines(&[show::step(&step, style)]));
        }
    })?;
    printed
}

/// Ctrl-C and its like end the lab in order and say so.
fn end_on_signal(name: &str, owner: UnixStream, interrupted: Arc<AtomicBool>) {
    let client = Client::new(name);
    std::thread::spawn(move || {
        let signal = sys::wait_for_signal();
        interrupted.store(true, Ordering::SeqCst);
        let _ = owner.shutdown(std::net::Shutdown::Both);
        let _ = client.wait_gone();
        let _ = writeln!(io::stderr().lock(), "\ninterrupted; the lab is gone, nothing is left behind");
        sys::exit_now(128 + signal);
    });
}

/// Heading, remark and lines of one part of a show.
type Part = (&'static str, &'static str, Vec<Text>);

/// Everything a show measures.
#[derive(Serialize)]
struct Shown {
    status: Status,
    matrix: Vec<Reach>,
    walks: Vec<Walk>,
    fetches: Vec<Fetch>,
    /// Parts that could not be measured.
    failures: Vec<String>,
}

impl Shown {
    fn gather(client: &Client) -> Result<Shown> {
        let status: Status = client.ask(&Request::Status)?;
        let mut shown = Shown {
            matrix: client.ask(&Request::Matrix { count: COUNT })?,
            walks: Vec::new(),
            fetches: Vec::new(),
            failures: Vec::new(),
            status,
        };
        let status = &shown.status;
        let families = [false, true];
        for v6 in families.into_iter().filter(|v6| if *v6 { status.stack.v6() } else { status.stack.v4() }) {
            for (from, to) in pairs(status) {
                match client.ask(&Request::Walk { from, to, v6 }) {
                    Ok(walk) => shown.walks.push(walk),
                    Err(error) => shown.failures.push(error.to_string()),
                }
            }
            if let Some((from, to)) = pairs(status).pop() {
                for (from, to) in [(from.clone(), to.clone()), (to, from)] {
                    match client.ask(&Request::Fetch { from, to, v6 }) {
                        Ok(fetch) => shown.fetches.push(fetch),
                        Err(error) => shown.failures.push(error.to_string()),
                    }
                }
            }
        }
        Ok(shown)
    }

    /// Everything that was measured is as it should be.
    fn good(&self) -> bool {
        self.failures.is_empty()
            && self.matrix.iter().all(Reach::ok)
            && self.fetches.iter().all(Fetch::unmasked)
    }

    /// Prints all parts, then `more`.
    fn print(&self, style: Style, more: Option<Part>) -> Result<()> {
        let mut parts = vec![("Who has which subnet", "", show::picture(&self.status, style))];
        let conf = Text::of(Tone::Dim, format!("  net-conf {}", self.status.net_conf));
        parts[0].2.extend([Text::default(), conf]);
        if !self.matrix.is_empty() {
            let remark = "round trip, median of 5";
            parts.push(("Who reaches whom", remark, show::matrix(&self.matrix, style)));
        }
        if !self.walks.is_empty() {
            let walks: Vec<Vec<Text>> = self.walks.iter().map(|w| show::walk(w, style)).collect();
            parts.push(("The way of one packet", "", walks.join(&Text::default())));
        }
        if !self.fetches.is_empty() {
            parts.push(("A page from the other side", "", show::fetches(&self.fetches, style)));
        }
        if !self.status.pods.is_empty() {
            let remark = "CNI ADD, plugin by plugin";
            parts.push(("How long a pod took", remark, show::add_times(&self.status.pods, style)));
        }
        parts.extend(more);
        let mut lines = Vec::new();
        for (at, (title, remark, content)) in parts.into_iter().enumerate() {
            lines.extend(style.heading(at + 1, title, remark));
            lines.extend(content);
        }
        for failure in &self.failures {
            lines.push(Text::plain("\n  ").join(style.cross()).and(Tone::Plain, format!(" {failure}")));
        }
        say(&style.lines(&lines))
    }
}

/// Pairs of pods worth following: to the next host on the same wire, and across the router.
fn pairs(status: &Status) -> Vec<(String, String)> {
    let wire = |host: &str| status.hosts.iter().find(|h| h.name == host).map(|h| h.wire);
    let Some(first) = status.pods.first() else { return Vec::new() };
    let elsewhere = || status.pods.iter().filter(|p| p.host != first.host);
    let near = elsewhere().find(|p| wire(&p.host) == wire(&first.host));
    let far = elsewhere().find(|p| wire(&p.host) != wire(&first.host));
    [near, far].into_iter().flatten().map(|to| (first.name.clone(), to.name.clone())).collect()
}

// ---- the small ones ---------------------------------------------------------------------------------

fn exec(name: &str, place: &str, program: &[String]) -> Result<i32> {
    use std::os::unix::process::ExitStatusExt;
    let (first, args) = program.split_first().ok_or_else(|| Error::Usage("nothing to run".to_owned()))?;
    let mut command = std::process::Command::new(first);
    command.args(args);
    Client::new(name).start_inside(place, &mut command)?;
    sys::ignore_interrupts();
    let status = command.status().doing(|| format!("start {first} in {place}"))?;
    Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
}

fn ping(name: &str, from: String, to: String, look: &Look, style: Style) -> Result<i32> {
    let request = Request::Ping { from, to, count: COUNT, patience_ms: 2000 };
    let reach: Reach = Client::new(name).ask(&request)?;
    print(look, style, &reach, |r| {
        let line = |us: f64, what: String| {
            style.tick().and(Tone::Plain, format!(" {} in {}", what, time(us, style)))
        };
        let mut lines = Vec::new();
        lines.extend(r.small_us.map(|us| line(us, format!("{} answers", r.address))));
        lines.extend(r.full_us.map(|us| line(us, format!("packets of {} bytes", r.full_bytes))));
        lines.extend(
            r.why.as_ref().map(|why| style.cross().and(Tone::Plain, format!(" {}: {why}", r.address))),
        );
        lines
    })?;
    Ok(i32::from(!reach.ok()))
}

fn agent(client: &Client, verb: AgentVerb, host: String, style: Style) -> Result<()> {
    let stop = |kill| client.ask::<Value>(&Request::AgentStop { host: host.clone(), kill });
    match verb {
        AgentVerb::Stop => drop(stop(false)?),
        AgentVerb::Kill => drop(stop(true)?),
        AgentVerb::Restart => drop(stop(false)?),
        AgentVerb::Start => {}
    }
    if matches!(verb, AgentVerb::Start | AgentVerb::Restart) {
        let ms: f64 = client.ask(&Request::AgentStart { host: host.clone() })?;
        let text = format!(" the agent of {host} is ready after {}", time(ms * 1000.0, style));
        say(&style.lines(&[style.tick().and(Tone::Plain, text)]))?;
    }
    Ok(())
}

// ---- output -----------------------------------------------------------------------------------------

/// What whoever reads standard output can see: colours on a terminal without NO_COLOR only.
pub fn style(ascii: bool) -> Style {
    let set = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set).unwrap_or_default();
    let utf8 = locale.to_uppercase().replace('-', "").contains("UTF8");
    let terminal = io::stdout().is_terminal();
    let dumb = set("TERM").is_some_and(|t| t == "dumb");
    let columns = set("COLUMNS").and_then(|c| c.parse().ok());
    let width = columns.or_else(sys::terminal_width).unwrap_or(100);
    Style {
        color: terminal && !dumb && set("NO_COLOR").is_none(),
        // Into a file or a pipe goes UTF-8 unless asked otherwise; a terminal must say it can.
        unicode: !ascii && !dumb && (utf8 || (!terminal && locale.is_empty())),
        width: width.clamp(60, 120),
    }
}

fn print<T: Serialize>(
    look: &Look,
    style: Style,
    value: &T,
    text: impl FnOnce(&T) -> Vec<Text>,
) -> Result<()> {
    if look.json { print_json(value) } else { say(&style.lines(&text(value))) }
}

fn print_json(value: &impl Serialize) -> Result<()> {
    let text =
        serde_json::to_string_pretty(&json!(value)).map_err(|e| Error::said(format!("write JSON: {e}")))?;
    say(&format!("{text}\n"))
}

/// Writes to standard output. A reader who has gone is no error.
fn say(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.doing(|| "write to standard output".to_owned()),
    }
}

/// Writes an error and the log that explains it to standard error.
pub fn complain(error: &Error) {
    let mut out = io::stderr().lock();
    let _ = writeln!(out, "loden lab: {error}");
    for line in error.log() {
        let _ = writeln!(out, "  | {line}");
    }
}
