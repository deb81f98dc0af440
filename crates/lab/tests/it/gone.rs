//! Nothing is left of a lab, however it ends.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kernel::netns::NetnsId;
use lab::{Client, Lab};

use crate::{PROGRAM, able, bare, cli, text, writeln};

/// Processes of the machine that are in one of the namespaces.
fn inhabitants(nets: &[NetnsId]) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let inside = |pid: &str| {
        let net = std::fs::metadata(format!("/proc/{pid}/ns/net"));
        net.is_ok_and(|net| nets.contains(&NetnsId { device: net.dev(), inode: net.ino() }))
    };
    processes
        .map(|p| p.file_name().to_string_lossy().into_owned())
        .filter(|name| name.parse::<u32>().is_ok() && inside(name))
        .collect()
}

fn namespaces(client: &Client, places: &[&str]) -> Vec<NetnsId> {
    let one = |place: &&str| {
        let fd = client.enter(place).unwrap().net.unwrap();
        let meta = std::fs::File::from(fd).metadata().unwrap();
        NetnsId { device: meta.dev(), inode: meta.ino() }
    };
    places.iter().map(one).collect()
}

/// The machine's mounts where a lab has some; others come and go.
fn mounts() -> Vec<String> {
    let ours = [
        "/",
        "/proc",
        "/sys",
        "/run",
        "/etc",
        "/etc/hosts",
        "/etc/cni",
        "/var/lib",
        "/var/lib/cni",
        "/var/lib/loden",
    ];
    let all = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let ours = |line: &&str| line.split(' ').nth(1).is_some_and(|target| ours.contains(&target));
    all.lines().filter(ours).map(str::to_owned).collect()
}

/// After `end`, no process and no control socket is left.
fn check(what: &str, lab: Lab, end: impl FnOnce(Lab)) {
    let before = mounts();
    let client = lab.client().clone();
    let nets = namespaces(&client, &["host1", "host2", "wire"]);
    // Somebody is at work inside when the end comes, and has left its parent.
    let mut shell = lab.host(1).command("sh").unwrap();
    shell.args(["-c", "setsid sleep 1000 & exec sleep 1000"]).stdin(Stdio::null());
    let mut shell = shell.spawn().unwrap();
    assert!(!inhabitants(&nets).is_empty());
    end(lab);
    client.wait_gone().unwrap();
    // The last process frees the name in the middle of its own end.
    let deadline = Instant::now() + Duration::from_secs(10);
    while !inhabitants(&nets).is_empty() && Instant::now() < deadline {
        std::thread::yield_now();
    }
    assert_eq!(inhabitants(&nets), [""; 0], "{what}: processes are left");
    assert!(shell.wait().is_ok_and(|s| !s.success()), "{what}: a program inside ends with the lab");
    assert_eq!(mounts(), before, "{what}: mounts are left");
    assert!(client.ask::<serde_json::Value>(&lab::proto::Request::Status).is_err());
}

#[test]
fn nothing_is_left_however_it_ends() {
    if !able("nothing_is_left_however_it_ends") {
        return;
    }
    let lab = || bare().hosts(2).start().unwrap();
    let kill = |pid: &str| assert!(Command::new("kill").args(["-9", pid]).status().unwrap().success());
    check("dropped", lab(), drop);
    check("outermost process killed", lab(), |lab| {
        kill(&lab.outer_pid().unwrap().to_string());
        drop(lab);
    });
    check("supervisor killed", lab(), |lab| {
        // Process 2 of the lab, by the number the machine knows it by.
        let nets = namespaces(lab.client(), &["wire"]);
        let outer = lab.outer_pid().unwrap().to_string();
        let supervisor = inhabitants(&nets).into_iter().find(|pid| *pid != outer && parent(pid) != outer);
        kill(&supervisor.unwrap());
        drop(lab);
    });
    check("ended by command", lab(), |lab| {
        let name = lab.client().name().to_owned();
        let out = cli(&["down", "--name", &name]);
        assert!(out.status.success(), "{}", text(&out.stderr));
        drop(lab);
    });
    check("detached, then ended by command", lab(), |lab| {
        let name = lab.client().name().to_owned();
        lab.detach().unwrap();
        assert!(cli(&["status", "--name", &name]).status.success(), "it stays when its owner goes");
        assert!(cli(&["down", "--name", &name]).status.success());
    });
}

fn parent(pid: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("PPid:\t"));
    line.unwrap_or_default().to_owned()
}

/// `demo` ends on a signal as well as when it is killed, also while the lab is being made.
#[test]
fn a_demo_that_is_interrupted_leaves_nothing() {
    if !able("a_demo_that_is_interrupted_leaves_nothing") {
        return;
    }
    for (number, (signal, after_ms)) in
        [("INT", 0), ("TERM", 5), ("KILL", 3), ("INT", 30), ("KILL", 30), ("HUP", 60)].into_iter().enumerate()
    {
        let name = format!("demo-{}-{number}", std::process::id());
        let mut command = Command::new(PROGRAM);
        command.args(["lab", "demo", "--hosts", "8", "--pods", "0", "--no-agents", "--name", &name]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut demo = command.spawn().unwrap();
        std::thread::sleep(Duration::from_millis(after_ms));
        let _ = Command::new("kill").args([&format!("-{signal}"), &demo.id().to_string()]).status();
        demo.wait().unwrap();
        Client::new(&name).wait_gone().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        let left = || ps().into_iter().filter(|line| line.contains(&name)).collect::<Vec<_>>();
        while !left().is_empty() && Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert_eq!(left(), [""; 0], "after SIG{signal} at {after_ms} ms");
    }
}

/// Command lines of all processes.
fn ps() -> Vec<String> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes.filter_map(|p| std::fs::read(p.path().join("cmdline")).ok()).map(|l| text(&l)).collect()
}

#[test]
fn a_name_is_taken_once_and_free_again() {
    if !able("a_name_is_taken_once_and_free_again") {
        return;
    }
    let lab = bare().hosts(1).start().unwrap();
    let name = lab.client().name().to_owned();
    let out = cli(&["up", "--hosts", "1", "--pods", "0", "--no-agents", "--name", &name]);
    let want = format!(
        "loden lab: a lab called \"{name}\" is already up; end it with `loden lab down --name {name}` or choose \
         another --name\n"
    );
    assert_eq!(text(&out.stderr), want);
    assert!(cli(&["list"]).stdout.windows(name.len()).any(|w| w == name.as_bytes()));
    lab.down();
    let again = cli(&["up", "--hosts", "1", "--pods", "0", "--no-agents", "--name", &name]);
    assert!(again.status.success(), "{}", text(&again.stderr));
    assert!(cli(&["down", "--name", &name]).status.success());
    let out = cli(&["status", "--name", &name]);
    assert!(text(&out.stderr).starts_with(&format!("loden lab: no lab called \"{name}\" is up; ")));
}

#[test]
fn no_root_is_needed_and_others_are_refused() {
    let name = format!("rootless-{}", std::process::id());
    let test = "no_root_is_needed_and_others_are_refused";
    if !able(test) {
        return;
    }
    const NOBODY: u32 = 65534;
    // Where nobody can read it.
    let program = std::env::temp_dir().join(format!("loden-lab-{}", std::process::id()));
    std::fs::copy(PROGRAM, &program).unwrap();
    /// Ends the lab and removes the program also when the test fails.
    struct Clean<'a>(&'a std::path::Path, &'a str);
    impl Drop for Clean<'_> {
        fn drop(&mut self) {
            let mut command = Command::new(self.0);
            let _ = command.args(["lab", "down", "--name", self.1]).uid(NOBODY).gid(NOBODY).output();
            let _ = std::fs::remove_file(self.0);
        }
    }
    let _clean = Clean(&program, &name);
    let nobody = |args: &[&str]| {
        let mut command = Command::new(&program);
        command.args(["lab", "--name", &name]).args(args).uid(NOBODY).gid(NOBODY).current_dir("/");
        command.output().unwrap()
    };
    let out = nobody(&["up", "--hosts", "2", "--pods", "0", "--no-agents"]);
    if text(&out.stderr).contains("sudo") {
        writeln(&format!("SKIP {test}: {}", text(&out.stderr)));
    } else {
        assert!(out.status.success(), "{}", text(&out.stderr));
        let out = nobody(&["ping", "host1", "host2"]);
        assert!(out.status.success(), "{}{}", text(&out.stdout), text(&out.stderr));
        let out = nobody(&["exec", "host2", "ip", "-br", "addr", "show", "eth0"]);
        assert!(text(&out.stdout).contains("192.0.2.12/24"), "{}{}", text(&out.stdout), text(&out.stderr));
        let out = cli(&["status", "--name", &name]);
        let want = "loden lab: this lab belongs to another user; only that user can control it\n";
        assert_eq!(text(&out.stderr), want);
        assert!(nobody(&["down"]).status.success());
    }
}
