//! Killed between any two steps, then DEL: nothing is left (cni.md 1.14.6).

use std::io::Write;
use std::process::Stdio;

use crate::chain::{conflist, each};
use crate::harness::{Host, pod};

/// System calls of an ADD before which it is killed, by strace's fault injection.
const POINTS: &[(&str, u32)] = &[
    ("flock", 1),
    ("link", 1),
    ("linkat", 1),
    ("unlink", 2),
    ("rename", 1),
    ("rename", 2),
    ("rename", 3),
    ("rename", 4),
    ("sendmsg", 4),
    ("sendto", 3),
    ("sendto", 5),
    ("sendto", 7),
    ("sendto", 9),
    ("sendto", 11),
    ("sendto", 14),
    ("setns", 2),
    ("setns", 3),
    ("write", 2),
    ("write", 6),
    ("write", 9),
];

#[test]
fn a_killed_add_is_cleaned_up() {
    if !std::path::Path::new("/usr/bin/strace").exists() {
        println!("SKIP a_killed_add_is_cleaned_up: strace is not installed");
        return;
    }
    let mut killed = 0;
    for ((call, nth), retry) in POINTS.iter().flat_map(|point| [(point, false), (point, true)]) {
        let host = Host::new();
        let mut chain = conflist(&host, "0.3.1");
        chain[0].1 = chain[0].1.replace("\"hairpinMode\"", "\"ipMasq\": true, \"hairpinMode\"");
        let (netns, pod) = pod("c1");
        let bin = host.bin().display().to_string();
        let plain = host.prepare(&[&bin], "flannel", "ADD", &pod);
        let mut command = host.command("/usr/bin/strace");
        command.args([
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            &format!("inject={call}:signal=KILL:when={nth}"),
        ]);
        command.arg(plain.get_program());
        command.envs(plain.get_envs().filter_map(|(k, v)| Some((k, v?))));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = host.netns.run(|| command.spawn()).unwrap().unwrap();
        let _ = child.stdin.take().unwrap().write_all(chain[0].1.as_bytes());
        let output = child.wait_with_output().unwrap();
        killed += u32::from(!output.status.success());
        let what = format!("killed at {call} {nth}: {output:?}");
        // The runtime may try again before it cleans up; whatever that says, DEL ends both.
        let again = if retry { host.call("flannel", "ADD", &pod, &chain[0].1).text } else { String::new() };
        each(&host, &chain[..1], &pod, "DEL", None);
        let links = host.links();
        assert!(links.iter().all(|name| !name.starts_with("veth")), "{what} {links:?} {again}");
        let files = host.files("networks");
        let fine = |f: &String| f.ends_with("lock") || f.contains("last_reserved_ip");
        assert!(files.iter().all(fine), "{what} {files:?}");
        assert_eq!(host.files("flannel"), [""; 0], "{what}");
        assert_eq!(host.files("state/attachments"), [""; 0], "{what}");
        assert!(!host.rules().contains("10.244.1."), "{what} {}", host.rules());
        assert!(netns.run(|| ()).is_ok());
    }
    assert!(killed >= 20, "only {killed} points were met");
}
