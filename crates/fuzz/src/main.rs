//! `cargo xtask fuzz`: runs targets for as long as asked, on stable Rust.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use fuzz::{TARGETS, Target, named, run};

const USAGE: &str = "\
usage: cargo xtask fuzz [TARGET]... [--seconds N] [--seed N] [--from N] [--count N]
       cargo xtask fuzz keep|unpack TARGET FOLDER

  TARGET       names of targets; none: all, one after the other
  --seconds N  for each target (60)
  --seed N     where numbers by chance begin (1)
  --from N, --count N   only these inputs of the seed, such as one that crashed
  keep, unpack          from a folder of libFuzzer's into the file of inputs that is kept for a target, and back
";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [verb @ ("keep" | "unpack"), target, folder] =
        words.iter().map(String::as_str).collect::<Vec<_>>().as_slice()
    {
        let Some(target) = named(target) else {
            say(&format!("{target} is no target\n{USAGE}"));
            return ExitCode::from(2);
        };
        let carry = if *verb == "keep" { fuzz::keep } else { fuzz::unpack };
        return match carry(target.name, Path::new(folder)) {
            Ok(many) => {
                say(&format!("{}: {many} inputs\n", target.name));
                ExitCode::SUCCESS
            }
            Err(error) => {
                say(&format!("{verb} {} {folder}: {error}\n", target.name));
                ExitCode::FAILURE
            }
        };
    }
    let mut words = words.into_iter();
    let (mut targets, mut seconds, mut seed, mut from, mut count) = (Vec::new(), 60, 1, 0, u64::MAX);
    while let Some(word) = words.next() {
        let mut number = || words.next().and_then(|text| text.parse::<u64>().ok());
        let done = match word.as_str() {
            "--seconds" => number().map(|n| seconds = n),
            "--seed" => number().map(|n| seed = n),
            "--from" => number().map(|n| from = n),
            "--count" => number().map(|n| count = n),
            name => named(name).map(|target| targets.push(target)),
        };
        if done.is_none() {
            let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
            say(&format!("{word} is not understood\n{USAGE}\ntargets: {}\n", names.join(" ")));
            return ExitCode::from(2);
        }
    }
    if targets.is_empty() {
        targets = TARGETS.to_vec();
    }
    let one = |target: &Target| match run(*target, seed, from, count, Duration::from_secs(seconds)) {
        Ok(ran) => {
            let slowest = ran.slowest.as_micros();
            say(&format!(
                "{}: {} inputs in {seconds} s, the slowest {slowest} µs\n",
                target.name, ran.inputs
            ));
            true
        }
        Err(crash) => {
            say(&format!(
                "{}: {}\n{:?}\nagain: --seed {seed} --from {} --count 1\n",
                target.name,
                crash.why,
                String::from_utf8_lossy(&crash.input),
                crash.number
            ));
            false
        }
    };
    let good = targets.iter().filter(|target| one(target)).count();
    if good == targets.len() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
