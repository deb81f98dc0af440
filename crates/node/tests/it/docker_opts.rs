//! The program under the names of flannel's and the distributions' scripts.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};

use kernel::Netns;
use tempfile::TempDir;

use crate::world::sh;

const OURS: &str = env!("CARGO_BIN_EXE_loden");

fn call(netns: &Netns, program: &Path, words: &[&str], env: &[(&str, &str)]) -> Output {
    // `nsenter` keeps the name a link has.
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", netns.path().display())).arg(program).args(words);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.envs(env.iter().copied()).output().unwrap()
}

/// Tutorial 5: `mk-docker-opts.sh -k DOCKER_NETWORK_OPTIONS -d /run/flannel/docker`, after the agent.
#[test]
fn docker_options_are_written_and_a_route_of_another_is_told() {
    let (dir, netns) = (TempDir::new().unwrap(), Netns::create().expect("needs root"));
    for line in ["ip link set lo up", "ip link add d0 type veth peer name d1", "ip link set d0 up"] {
        sh(&netns, line);
    }
    for line in
        ["ip link set d1 up", "ip addr add 192.0.2.2/24 dev d0", "ip route add 172.30.4.0/23 via 192.0.2.9"]
    {
        sh(&netns, line);
    }
    let path = |name: &str| dir.path().join(name);
    let script = path("mk-docker-opts.sh");
    symlink(OURS, &script).unwrap();
    let (env_file, docker) = (path("subnet.env"), path("docker"));
    fs::write(
        &env_file,
        "FLANNEL_NETWORK=172.30.0.0/16\nFLANNEL_SUBNET=172.30.46.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n",
    )
    .unwrap();
    let (env_text, docker_text) = (env_file.to_string_lossy(), docker.to_string_lossy());
    let words = ["-k", "DOCKER_NETWORK_OPTIONS", "-f", &env_text, "-d", &docker_text];
    let done = call(&netns, &script, &words, &[("DOCKER_NETWORK_OPTIONS", "--debug")]);
    assert!(done.status.success() && done.stderr.is_empty(), "{done:?}");
    assert_eq!(
        fs::read_to_string(&docker).unwrap(),
        "DOCKER_OPT_BIP=\"--bip=172.30.46.1/24\"\nDOCKER_OPT_IPMASQ=\"--ip-masq=true\"\nDOCKER_OPT_MTU=\"--mtu=1450\"\n\
         DOCKER_NETWORK_OPTIONS=\"--debug  --bip=172.30.46.1/24 --ip-masq=true --mtu=1450\"\n"
    );
    sh(&netns, "ip route add 172.30.46.0/24 via 192.0.2.9");
    let done = call(&netns, &script, &words, &[]);
    let said = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(1), "{said}");
    assert!(said.contains("172.30.46.0/24") && said.contains("192.0.2.9"), "{said}");
    assert!(fs::read_to_string(&docker).unwrap().starts_with("DOCKER_OPT_BIP="), "written all the same");
    // To standard output, and without flannel's file.
    let words = ["mk-docker-opts", "-c", "-f", "/nowhere", "-d", "/dev/stdout"];
    let done = call(&netns, Path::new(OURS), &words, &[("FLANNEL_MTU", "1400")]);
    assert_eq!(String::from_utf8_lossy(&done.stdout), "DOCKER_OPTS=\" --mtu=1400\"\n", "{done:?}");
    let done = call(&netns, &script, &["-x"], &[]);
    assert_eq!(done.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&done.stderr).starts_with("usage: "), "{done:?}");
}

/// Tutorial 5's `/etc/sysconfig/flanneld`, started as its unit does.
#[test]
fn flanneld_start_reads_the_variables_of_the_packages() {
    let (dir, netns) = (TempDir::new().unwrap(), Netns::create().expect("needs root"));
    let program = dir.path().join("flanneld-start");
    symlink(OURS, &program).unwrap();
    let variables = [
        ("FLANNEL_ETCD_ENDPOINTS", "http://192.0.2.1:2379"),
        ("FLANNEL_ETCD_PREFIX", "/kube-centos/network"),
    ];
    // A mistake that ends it after it has told its settings.
    let done = call(&netns, &program, &["--healthz-port=1", "--healthz-ip=nowhere"], &variables);
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(!done.status.success(), "{said}");
    for part in ["\"http://192.0.2.1:2379\"", "\"/kube-centos/network\"", "--healthz-ip \"nowhere\""] {
        assert!(said.contains(part), "{part}: {said}");
    }
}
