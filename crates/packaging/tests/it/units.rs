//! The systemd unit, its settings, and the guides' commands.

use std::fs;
use std::os::unix::fs::symlink;

use tempfile::TempDir;

use crate::{output, programs, read, root, there};

#[test]
fn systemd_takes_the_unit_and_the_drop_in() {
    let test = "units::systemd_takes_the_unit_and_the_drop_in";
    if !there(test, "systemd-analyze") {
        return;
    }
    let Some(programs) = programs(test) else { return };
    let dir = TempDir::new().unwrap();
    let place = dir.path().display().to_string();
    let mut unit = read("deploy/systemd/loden.service");
    for name in ["flanneld-start", "mk-docker-opts.sh"] {
        // systemd looks for programs in directories of the system.
        symlink(programs.join("loden"), dir.path().join(name)).unwrap();
        assert!(unit.contains(name));
        unit = unit
            .replace(&format!("={name}"), &format!("={place}/{name}"))
            .replace(&format!("=-{name}"), &format!("=-{place}/{name}"));
    }
    fs::write(dir.path().join("loden.service"), unit).unwrap();
    let more = dir.path().join("loden.service.d");
    fs::create_dir(&more).unwrap();
    fs::write(more.join("fast-path.conf"), read("deploy/systemd/loden.service.d/fast-path.conf")).unwrap();
    let done = output("systemd-analyze", &["verify", &format!("{place}/loden.service")]);
    let said = String::from_utf8_lossy(&done.stderr);
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("loden")).collect();
    assert!(done.status.success() && ours.is_empty(), "{said}");
}

/// The settings that others rely on.
#[test]
fn the_unit_stands_before_docker_and_reads_the_packages_settings() {
    let unit = read("deploy/systemd/loden.service");
    for line in [
        "Type=notify",
        "Before=docker.service",
        "EnvironmentFile=-/etc/default/flanneld",
        "EnvironmentFile=-/etc/sysconfig/flanneld",
        "ExecStart=flanneld-start $FLANNEL_OPTIONS",
        "ExecStartPost=-mk-docker-opts.sh -k DOCKER_NETWORK_OPTIONS -d /run/flannel/docker",
        "RuntimeDirectoryPreserve=yes",
        // Decision 0193; the agent needs no other, whatever its mode, but for commands of `extension`.
        "CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW CAP_NET_BIND_SERVICE CAP_DAC_READ_SEARCH CAP_BPF \
         CAP_PERFMON CAP_CHOWN CAP_SETUID CAP_SETGID",
        "NoNewPrivileges=yes",
    ] {
        assert!(unit.lines().any(|l| l == line), "{line}");
    }
    let drop_in = read("deploy/systemd/docker.service.d/loden.conf");
    assert!(
        drop_in.contains("EnvironmentFile=-/run/flannel/docker")
            && drop_in.contains("$DOCKER_NETWORK_OPTIONS")
    );
}

/// Every variable of the example is one the agent knows.
#[test]
fn the_example_settings_name_flags_of_the_agent() {
    let test = "units::the_example_settings_name_flags_of_the_agent";
    let Some(programs) = programs(test) else { return };
    let help = output(programs.join("loden").to_str().unwrap(), &["agent", "-help"]);
    let usage = String::from_utf8_lossy(&help.stderr).into_owned() + &String::from_utf8_lossy(&help.stdout);
    let mut seen = 0;
    for line in read("deploy/systemd/loden.env").lines() {
        let Some(name) =
            line.trim_start_matches('#').strip_prefix("FLANNELD_").and_then(|l| l.split_once('='))
        else {
            continue;
        };
        let flag = name.0.to_lowercase().replace('_', "-");
        assert!(usage.contains(&format!("-{flag}")), "{flag} is no flag of the agent");
        seen += 1;
    }
    assert!(seen >= 5);
}

/// Every path of ours that a guide names is there, and every `cargo xtask` command is known.
#[test]
fn guides_name_what_is_there() {
    let known = output("cargo", &["xtask", "help"]);
    let known = String::from_utf8_lossy(&known.stdout).into_owned();
    for guide in ["docs/guide/kubernetes.md", "docs/guide/docker.md", "docs/guide/fast-path.md"] {
        let text = read(guide);
        for word in text.split(|c: char| c.is_whitespace() || "`(),:;|".contains(c)) {
            let word = word.trim_end_matches('.');
            if word.starts_with("deploy/") {
                assert!(root().join(word).exists(), "{guide} names {word}, which does not exist");
            }
        }
        for (at, _) in text.match_indices("cargo xtask ") {
            let command = text[at + 12..].split(|c: char| !c.is_alphanumeric()).next().unwrap();
            assert!(known.contains(&format!("\n  {command} ")), "{guide}: cargo xtask {command}");
        }
    }
}
