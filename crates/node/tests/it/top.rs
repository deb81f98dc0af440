//! `loden top` on a terminal of its own, and into a pipe.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{self, Winsize};
use serde_json::Value;

use crate::world::{Host, World, until};

const VXLAN: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;

/// `loden top` beside a host's subnet file.
fn top(host: &Host, words: &[&str]) -> Command {
    let mut command = host.loden(&["top"]);
    command.args(words).env("FLANNELD_SUBNET_FILE", host.subnet_file()).env_remove("LODEN_SOCKET");
    command.env("TERM", "xterm").env("LC_ALL", "C.UTF-8").env_remove("NO_COLOR");
    command
}

fn printed(host: &Host, words: &[&str]) -> (i32, String) {
    let mut command = top(host, words);
    let output = host.netns.run(|| command.output()).unwrap().unwrap();
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    (output.status.code().unwrap_or(-1), String::from_utf8(text).unwrap())
}

/// A terminal with the program on it.
struct Terminal {
    ours: File,
    theirs: File,
    program: Child,
    sent: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    fn open(host: &Host, words: &[&str], no_color: bool) -> Terminal {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        let name = ptsname(&ours, Vec::new()).unwrap().into_string().unwrap();
        let open = || File::options().read(true).write(true).open(&name).unwrap();
        let (ours, theirs) = (File::from(ours), open());
        let plain = top(host, words);
        // A session whose terminal is this one.
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--wait"]).arg(plain.get_program()).args(plain.get_args());
        for (name, value) in plain.get_envs() {
            if let Some(value) = value {
                command.env(name, value)
            } else {
                command.env_remove(name)
            };
        }
        if no_color {
            command.env("NO_COLOR", "1");
        }
        command.stdin(open()).stdout(open()).stderr(Stdio::from(open()));
        let size = Winsize { ws_row: 24, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
        termios::tcsetwinsize(&theirs, size).unwrap();
        let program = host.netns.run(|| command.spawn()).unwrap().unwrap();
        let sent = Arc::new(Mutex::new(Vec::new()));
        let (mut reader, kept) = (ours.try_clone().unwrap(), sent.clone());
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = reader.read(&mut bytes) {
                kept.lock().unwrap().extend(&bytes[..length]);
            }
        });
        Terminal { ours, theirs, program, sent }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.sent.lock().unwrap()).into_owned()
    }

    /// What stands on the screen, by the few sequences the program uses.
    fn screen(&self) -> Vec<String> {
        let text = self.text();
        let mut lines = vec![String::new(); 100];
        let mut row = 0;
        for part in text.split("\x1b[").skip(1) {
            let end = part.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(0);
            let (arguments, letter, rest) = (&part[..end], &part[end..=end], &part[end + 1..]);
            match letter {
                "J" => lines.iter_mut().for_each(String::clear),
                "H" => {
                    row = arguments.split(';').next().unwrap().parse::<usize>().unwrap() - 1;
                    lines[row].clear();
                }
                _ => {}
            }
            lines[row].push_str(rest);
        }
        lines.iter().map(|line| line.trim_end().to_owned()).collect()
    }

    fn shows(&self, part: &str) -> String {
        until(&format!("{part:?} to be shown"), || {
            let screen = self.screen();
            let found = screen.iter().find(|line| line.contains(part)).cloned();
            found.ok_or_else(|| screen.join("\n"))
        })
    }

    fn types(&mut self, keys: &str) {
        self.ours.write_all(keys.as_bytes()).unwrap();
    }

    fn modes(&self) -> String {
        let modes = termios::tcgetattr(&self.theirs).unwrap();
        format!("{:?} {:?} {:?}", modes.input_modes, modes.output_modes, modes.local_modes)
    }

    /// Waits for the end; gives the exit status.
    fn ends(&mut self) -> i32 {
        until("the end", || match self.program.try_wait().unwrap() {
            Some(status) => Ok(status.code().unwrap_or(-1)),
            None => Err(self.text()),
        })
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

#[test]
fn a_terminal_is_drawn_on_and_given_back() {
    let world = World::with_config(3, VXLAN);
    let _agents = world.start(&[]);
    let host = &world.hosts[0];
    let mut terminal = Terminal::open(host, &["--interval=0.2"], false);
    terminal.shows("✓ healthy");
    terminal.shows("PEERS 2");
    until("the peer to be probed", || {
        let peer = terminal.shows("192.0.2.12");
        let all = ["✓ 10.244.", "1450", " ok"];
        if all.iter().all(|part| peer.contains(part)) { Ok(()) } else { Err(peer) }
    });
    let row = terminal.shows("flannel.1");
    assert!(row.contains("vxlan") && row.contains("tunnel"), "{row}");
    assert!(terminal.text().contains("\x1b[32m✓"), "a terminal has colours");

    // What goes by is seen, in the right column.
    let far = world.hosts[1].subnet("FLANNEL_SUBNET").network().to_string();
    host.sh(&format!("ping -q -c 200 -i 0.005 -s 1000 {far}"));
    until("rates on the tunnel", || {
        let row = terminal.shows("flannel.1").split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        // device, kind, for, MTU, in pkt/s …
        if row.get(4).is_some_and(|rate| rate != "0" && rate != "–") { Ok(()) } else { Err(row.join(" ")) }
    });
    // A repair, while one looks.
    host.sh(&format!("ip route del {}", world.hosts[1].subnet("FLANNEL_SUBNET")));
    terminal.shows("repairs route missing 1");

    // Another size is another screen, at once.
    let size = Winsize { ws_row: 8, ws_col: 40, ws_xpixel: 0, ws_ypixel: 0 };
    termios::tcsetwinsize(&terminal.theirs, size).unwrap();
    until("a small screen", || {
        let screen = terminal.screen();
        let lines = screen.iter().filter(|line| !line.is_empty()).count();
        let widest = screen.iter().map(|line| line.chars().count()).max().unwrap();
        if lines <= 8 && widest <= 40 && lines > 4 { Ok(()) } else { Err(screen.join("\n")) }
    });
    terminal.types("\t\t\t");
    terminal.shows("DEVICES");
    terminal.types("/flannel");
    terminal.shows("/flannel▏");
    terminal.types("\r");
    terminal.shows("DEVICES 1 of 2");
    terminal.types("q");
    assert_eq!(terminal.ends(), 0);
    let text = terminal.text();
    assert!(text.contains("\x1b[?1049h") && text.ends_with("\x1b[?7h\x1b[?25h\x1b[?1049l"), "{text:?}");
}

#[test]
fn however_it_ends_the_terminal_is_as_before() {
    let world = World::with_config(1, VXLAN);
    let host = &world.hosts[0];
    for (how, code) in [("\x03", 2), ("TERM", 2), ("INT", 2), ("\x1b", 2)] {
        let mut terminal = Terminal::open(host, &[], true);
        let before = terminal.modes();
        terminal.shows("partial, from the kernel alone: no agent runs here");
        assert_ne!(terminal.modes(), before);
        assert!(!terminal.text().contains("\x1b[1m"), "NO_COLOR");
        match how {
            "TERM" | "INT" => {
                // `setsid` became the program.
                host.sh(&format!("kill -{how} {}", terminal.program.id()));
            }
            keys => terminal.types(keys),
        }
        assert_eq!(terminal.ends(), code, "{how:?}");
        assert_eq!(terminal.modes(), before, "{how:?}");
        until("the screen to be given back", || {
            let text = terminal.text();
            if text.ends_with("\x1b[?1049l") { Ok(()) } else { Err(format!("{text:?}")) }
        });
    }
}

#[test]
fn scripts_get_looks_and_an_exit_status() {
    let world = World::with_config(2, VXLAN);
    let agents = world.start(&[]);
    let host = &world.hosts[0];
    let json = until("the peer to be probed", || {
        let (code, text) = printed(host, &["--once", "-o", "json", "--interval=0.2"]);
        let json: Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
        if code == 0 && json["peers"][0]["state"] == "good" { Ok(json) } else { Err(text) }
    });
    assert_eq!((&json["version"], &json["partial"]), (&1.into(), &Value::Null));
    assert_eq!(json["peers"][0]["public"][0], "192.0.2.12");
    assert!(json["peers"][0]["paths"][0]["echoes"].as_u64() > Some(0), "{json:#}");
    // The kernel's own numbers, by another program.
    let counters = |json: &Value| {
        let devices = json["devices"].as_array().unwrap().clone();
        let device = devices.into_iter().find(|device| device["name"] == "flannel.1").unwrap();
        device["traffic"].clone()
    };
    let ours = counters(&json);
    let theirs = host.json("ip -j -s link show flannel.1")[0]["stats64"].clone();
    assert!(ours["rates"]["in_packets"].is_u64(), "{ours}");
    let (sent, now) = (ours["counters"]["out_packets"].as_u64(), theirs["tx"]["packets"].as_u64());
    assert!(sent > Some(0) && sent <= now && now <= sent.map(|sent| sent + 20), "{sent:?} {now:?}");
    let (code, text) = printed(host, &["-n", "3", "-o", "json", "--interval=0.2"]);
    assert_eq!((code, text.lines().count()), (0, 3), "{text}");
    let (code, text) = printed(host, &["--interval=0.2"]);
    assert_eq!(code, 0, "into a pipe it prints once: {text}");
    assert!(text.contains("PEERS 1\n") && !text.contains('\x1b'), "{text}");

    // Without agents what they left is shown, and said to be partial.
    let subnet = world.hosts[1].subnet("FLANNEL_SUBNET").to_string();
    agents.into_iter().for_each(|agent| agent.kill());
    let (code, text) = printed(host, &["--once", "--interval=0.2"]);
    assert_eq!(code, 2, "{text}");
    for part in ["partial, from the kernel alone: no agent runs here", &subnet, "192.0.2.12", "not probed"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    for words in [&["--interval=0"][..], &["-n", "0"], &["--sort=beauty"], &["--nonsense"], &["-o", "yaml"]] {
        assert_eq!(printed(host, words).0, 2, "{words:?}");
    }
}

#[test]
fn wireguard_counts_what_each_peer_carries() {
    if !crate::world::has("wireguard", "top of wireguard") {
        return;
    }
    let world = World::with_config(2, r#"{"Network":"10.244.0.0/16","Backend":{"Type":"wireguard"}}"#);
    let _agents = world.start(&[]);
    let host = &world.hosts[0];
    let far = world.hosts[1].subnet("FLANNEL_SUBNET").network().to_string();
    until("the peer's bytes", || {
        host.try_sh(&format!("ping -q -c 5 -i 0.01 {far}"))?;
        let (_, text) = printed(host, &["--once", "-o", "json", "--interval=0.2"]);
        let json: Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
        let sent = json["peers"][0]["traffic"]["counters"]["out_bytes"].as_u64();
        if sent > Some(1000) { Ok(()) } else { Err(text) }
    });
}
