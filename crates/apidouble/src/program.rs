//! The double as a process of its own, driven by lines.
//!
//! The first line on standard output tells where it listens. Then each line on standard input is a command of
//! plain words, the last of which may be JSON, and is answered by one line of JSON: `{"ok":…}` or
//! `{"error":"…"}`. The end of the input ends the process. Objects can be changed over HTTP as well, as with
//! any API server.

use std::io::{self, BufRead, Write};
use std::time::Duration;

use serde_json::{Value, json};

use crate::{Door, Double, Effect, KINDS, Kind, NODES, Pick, Rule, Stroke, full_node, node};

/// What `--help` prints.
pub const USAGE: &str = "\
usage: apidouble [--listen ADDRESS:PORT] [--tls]        (127.0.0.1:0, plain HTTP)

commands, one a line on standard input, each answered by a line of JSON:
  fill N [full]                nodes node-00001 to N with a pod network each; full: 15 kB each
  create|merge|delete|get RESOURCE [NAME] [JSON]
  fail VERB RESOURCE TIMES EFFECT    `-` for any verb or resource, `always` for no end; EFFECT one of
                               CODE  hang  late MS  cut BYTES  stall BYTES  drip BYTES MS  drop  stale REVISION
                               end  gone  in-stream CODE  repeat N  garbage TEXT  done-but-cut
  strike cut|cut-in-line|end|gone|error|bookmark|replay N|garbage TEXT|silence
  cut | shut | open | deaf | heal | compact
  token USER all|flannel       a bearer token
  expire|renew TOKEN
  kubeconfig [TOKEN]
  count VERB RESOURCE | watches | revision
  age VERB RESOURCE            microseconds since the first such request
";

/// Runs it with these arguments until the input ends.
///
/// # Errors
/// A sentence: wrong arguments, or nothing to listen at.
pub fn run(arguments: &[String]) -> Result<(), String> {
    let (mut listen, mut tls) = ("127.0.0.1:0".to_owned(), false);
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--tls" => tls = true,
            "--listen" => listen = words.next().ok_or("--listen needs an address")?.clone(),
            "--help" | "-h" => return say(USAGE),
            other => return Err(format!("there is no option {other:?}\n{USAGE}")),
        }
    }
    let door = if tls { Door::https(&listen) } else { Door::http(&listen) };
    let double = Double::start(door).map_err(|error| format!("listen at {listen}: {error}"))?;
    say(&format!("{}\n", json!({"url": double.url(), "ca": double.ca_pem()})))?;
    for line in io::stdin().lock().lines() {
        let line = line.map_err(|error| format!("read commands: {error}"))?;
        if line.trim().is_empty() {
            continue;
        }
        let answer = match obey(&double, &line) {
            Ok(value) => json!({"ok": value}),
            Err(why) => json!({"error": why}),
        };
        say(&format!("{answer}\n"))?;
    }
    Ok(())
}

fn say(text: &str) -> Result<(), String> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| format!("answer: {error}"))
}

/// Carries out one command.
fn obey(double: &Double, line: &str) -> Result<Value, String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let told = |error: io::Error| error.to_string();
    match words[..] {
        ["fill", count] => fill(double, number(count)?, false),
        ["fill", count, "full"] => fill(double, number(count)?, true),
        ["create", resource, ..] => double
            .create(kind(resource)?, tail(line, 2)?)
            .map(|made| made["metadata"].clone())
            .map_err(|refusal| refusal.to_string()),
        ["merge", resource, name, ..] => {
            let merged = double.merge(kind(resource)?, name, &tail(line, 3)?);
            merged
                .map(|made| made["metadata"]["resourceVersion"].clone())
                .map_err(|refusal| refusal.to_string())
        }
        ["delete", resource, name] => {
            double.delete(kind(resource)?, name).map(|_| Value::Null).map_err(|refusal| refusal.to_string())
        }
        ["get", resource, name] => {
            double.get(kind(resource)?, name).ok_or_else(|| format!("there is no {name} among {resource}"))
        }
        ["fail", verb, resource, times, ref effect @ ..] => {
            let any = |word: &str| if word == "-" { String::new() } else { word.to_owned() };
            let times = if times == "always" { usize::MAX } else { number(times)? };
            double.fail(Pick::of(&any(verb), &any(resource)), read_effect(effect)?, times);
            Ok(Value::Null)
        }
        ["strike", ref stroke @ ..] => {
            double.strike(read_stroke(stroke)?);
            Ok(Value::Null)
        }
        ["cut"] => {
            double.cut();
            Ok(Value::Null)
        }
        ["compact"] => {
            double.compact();
            Ok(Value::Null)
        }
        ["shut"] => double.shut().map(|()| Value::Null).map_err(told),
        ["open"] => double.open().map(|()| Value::Null).map_err(told),
        ["deaf"] => double.go_deaf().map(|()| Value::Null).map_err(told),
        ["heal"] => double.heal().map(|()| Value::Null).map_err(told),
        ["token", user, "all"] => Ok(double.token(user, Rule::all()).into()),
        ["token", user, "flannel"] => Ok(double.token(user, Rule::flannel()).into()),
        ["expire", token] => {
            double.expire(token);
            Ok(Value::Null)
        }
        ["renew", token] => {
            double.renew(token);
            Ok(Value::Null)
        }
        ["kubeconfig"] => Ok(double.kubeconfig("").into()),
        ["kubeconfig", token] => Ok(double.kubeconfig(token).into()),
        ["count", verb, resource] => Ok(double.count(verb, resource).into()),
        ["age", verb, resource] => {
            let pick = Pick::of(verb, resource);
            let seen = double.seen();
            let first = seen.iter().find(|seen| pick.hits(&seen.call, &seen.user));
            let age = first.map(|seen| u64::try_from(seen.at.elapsed().as_micros()).unwrap_or(u64::MAX));
            age.map(Value::from).ok_or_else(|| "there was none".to_owned())
        }
        ["watches"] => Ok(double.watches().into()),
        ["revision"] => Ok(double.revision().into()),
        _ => Err(format!("there is no command {line:?}; apidouble --help lists them")),
    }
}

/// Name and pod network of node number `number`, from 1: /24 networks out of 10.0.0.0/8.
pub fn numbered(number: u32) -> (String, String) {
    (format!("node-{number:05}"), format!("10.{}.{}.0/24", number / 256, number % 256))
}

fn fill(double: &Double, count: usize, full: bool) -> Result<Value, String> {
    let count = u32::try_from(count).ok().filter(|count| *count < 65_536).ok_or("at most 65535 nodes")?;
    for number in 1..=count {
        let (name, network) = numbered(number);
        let address = format!("172.{}.{}.{}", 16 + number / 65_536, number / 256, number % 256);
        let made = if full { full_node(&name, &[&network], &address) } else { node(&name, &[&network]) };
        double.create(&NODES, made).map_err(|refusal| refusal.to_string())?;
    }
    Ok(count.into())
}

fn kind(resource: &str) -> Result<&'static Kind, String> {
    let found = KINDS.into_iter().find(|kind| kind.plural == resource);
    found.ok_or_else(|| format!("there is no kind {resource:?}"))
}

fn number(word: &str) -> Result<usize, String> {
    word.parse().map_err(|error| format!("{word:?}: {error}"))
}

/// The JSON that begins after `skip` words.
fn tail(line: &str, skip: usize) -> Result<Value, String> {
    let mut rest = line.trim_start();
    for _ in 0..skip {
        rest = rest.trim_start_matches(|c: char| !c.is_whitespace()).trim_start();
    }
    serde_json::from_str(rest).map_err(|error| format!("{rest:?} is no JSON: {error}"))
}

fn read_effect(words: &[&str]) -> Result<Effect, String> {
    let time = |word: &str| Ok::<_, String>(Duration::from_millis(number(word)? as u64));
    Ok(match *words {
        ["hang"] => Effect::Hang,
        ["late", ms] => Effect::Late(time(ms)?),
        ["cut", bytes] => Effect::Cut(number(bytes)?),
        ["stall", bytes] => Effect::Stall(number(bytes)?),
        ["drip", bytes, ms] => Effect::Drip(number(bytes)?, time(ms)?),
        ["drop"] => Effect::Drop,
        ["stale", revision] => Effect::Stale(number(revision)? as u64),
        ["end"] => Effect::End,
        ["gone"] => Effect::Gone,
        ["in-stream", code] => Effect::InStream(code.parse().map_err(|_| format!("{code:?} is no code"))?),
        ["repeat", times] => Effect::Repeat(number(times)?),
        ["garbage", ref text @ ..] => Effect::Garbage(text.join(" ")),
        ["done-but-cut"] => Effect::DoneButCut,
        [code] => {
            let code = code.parse().map_err(|_| format!("there is no effect {code:?}"))?;
            Effect::Refuse { code, retry_after_s: None }
        }
        _ => return Err(format!("there is no effect {words:?}")),
    })
}

fn read_stroke(words: &[&str]) -> Result<Stroke, String> {
    Ok(match *words {
        ["cut"] => Stroke::Cut,
        ["cut-in-line"] => Stroke::CutInLine,
        ["end"] => Stroke::End,
        ["gone"] => Stroke::Gone,
        ["error"] => Stroke::Error,
        ["bookmark"] => Stroke::Bookmark,
        ["replay", count] => Stroke::Replay(number(count)?),
        ["garbage", ref text @ ..] => Stroke::Garbage(format!("{}\n", text.join(" "))),
        ["silence"] => Stroke::Silence,
        _ => return Err(format!("there is no stroke {words:?}")),
    })
}
