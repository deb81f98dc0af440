//! podman in CNI mode: a runtime that knows nothing of us drives the chain it writes itself.

use std::path::Path;
use std::process::{Command, Output};

use crate::harness::{Host, iptables};

/// Runs a script in the host's network namespace and a mount namespace of its own.
fn run(host: &Host, script: &str) -> Output {
    let mut command = host.command("/usr/bin/unshare");
    command.args(["--mount", "sh", "-c", script]);
    command.env("CONTAINERS_CONF", host.path("containers.conf")).env("HOME", "/root");
    host.run(&mut command, "")
}

#[test]
fn podman_starts_and_ends_containers_by_our_plugins() {
    const TEST: &str = "podman_starts_and_ends_containers_by_our_plugins";
    let busybox = Path::new("/bin/busybox");
    if !Path::new("/usr/bin/podman").exists() || !busybox.exists() {
        println!("SKIP {TEST}: podman or busybox is not installed");
        return;
    }
    let host = Host::new();
    let info = Command::new("podman")
        .args(["--root", &host.path("root"), "--runroot", &host.path("runroot"), "--storage-driver", "vfs"])
        .args(["info", "--format", "{{.Host.NetworkBackend}}"])
        .output();
    if !info.is_ok_and(|o| String::from_utf8_lossy(&o.stdout).trim() == "cni") {
        println!("SKIP {TEST}: this podman has no CNI mode");
        return;
    }
    let (bin, conf, networks, tuning) =
        (host.bin().display().to_string(), host.path("conf"), host.path("networks"), host.path("tuning"));
    let rootfs = host.path("rootfs");
    for dir in ["bin", "etc", "proc", "sys", "dev", "run", "tmp"] {
        std::fs::create_dir_all(format!("{rootfs}/{dir}")).unwrap();
    }
    std::fs::copy(busybox, format!("{rootfs}/bin/busybox")).unwrap();
    std::fs::create_dir_all(&conf).unwrap();
    // As podman 4 writes them.
    let list = format!(
        r#"{{"cniVersion": "0.4.0", "name": "podnet", "plugins": [
            {{"type": "bridge", "bridge": "cni-podman9", "isGateway": true, "ipMasq": true, "hairpinMode": true,
              "ipam": {{"type": "host-local", "dataDir": "{networks}", "routes": [{{"dst": "0.0.0.0/0"}}],
                        "ranges": [[{{"subnet": "10.77.0.0/24", "gateway": "10.77.0.1"}}]]}}}},
            {{"type": "portmap", "capabilities": {{"portMappings": true}}}},
            {{"type": "firewall", "backend": ""}}, {{"type": "tuning", "dataDir": "{tuning}"}}]}}"#
    );
    std::fs::write(format!("{conf}/87-podnet.conflist"), list).unwrap();
    let settings = format!(
        "[network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [\"{bin}\"]\nnetwork_config_dir = \"{conf}\"\n\
         default_network = \"podnet\"\n[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\n"
    );
    std::fs::write(host.path("containers.conf"), settings).unwrap();
    let podman =
        format!("podman --root {0}/root --runroot {0}/runroot --storage-driver vfs", host.dir.display());
    // podman's monitor, which may be the one that detaches, hands no environment on: records and results are
    // where they always are, in a file system of this test.
    let state = host.path("state");
    let private = format!(
        "mount -t tmpfs none /var/lib && mkdir -p /var/lib/cni/loden {state} && mount --bind {state} /var/lib/cni/loden || exit 77"
    );
    // crun wants the second version of control groups, and this machine may have both.
    let script = format!(
        r#"umount -lR /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup || exit 77
        {private}
        for n in 1 2 3; do
            timeout 60 {podman} run -d --name t$n --cgroups=disabled --ulimit nofile=512:512 --ulimit nproc=512:512 \
                --security-opt seccomp=unconfined --network podnet -p 808$n:80 --rootfs {rootfs} \
                /bin/busybox sleep 1000 || exit 78
        done
        timeout 20 {podman} exec t2 /bin/busybox ip -o addr show eth0
        echo ---; nft list ruleset; ip -br link
        timeout 60 {podman} rm -f -t 0 t1 t2 t3; echo removed $?"#
    );
    let output = run(&host, &script);
    let (said, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if matches!(output.status.code(), Some(77 | 78)) && !told.contains("cni") && !told.contains("plugin") {
        println!("SKIP {TEST}: podman cannot run a container here: {}", told.trim());
        let _ = run(&host, &format!("{private}; {podman} rm -fa -t 0"));
        return;
    }
    assert!(output.status.success() && said.contains("removed 0"), "{said} {told}");
    for want in [
        "inet 10.77.0.3/24",
        "dnat to 10.77.0.2:80",
        "dnat to 10.77.0.4:80",
        "ip saddr 10.77.0.3 ip daddr != 10.77.0.0/24 masquerade",
    ] {
        assert!(said.contains(want), "{want:?} in {said}");
    }
    assert_eq!(said.matches("veth").count(), 3, "{said}");
    // podman's monitor may still be at it.
    let left = || {
        let rules = host.rules();
        let rules: Vec<&str> = rules.lines().filter(|l| l.contains("10.77.")).collect();
        let veths = host.links().iter().filter(|l| l.starts_with("veth")).count();
        format!(
            "{rules:?} {veths} {:?} {:?} {}",
            host.files("state/attachments"),
            host.files("networks"),
            iptables(&host).matches("10.77.").count()
        )
    };
    let want = r#"[] 0 [] ["podnet/last_reserved_ip.0", "podnet/lock"] 0"#;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while left() != want {
        assert!(std::time::Instant::now() < deadline, "{}", left());
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}
