//! Socket and namespaces: requests, explanations, strict dumps, batches.

use std::os::fd::AsFd;
use std::path::Path;

use kernel::netlink::{Message, Protocol, Received, Reply, Socket};
use kernel::{Netns, NetnsError, sysctl};

use super::{fresh, run_in};

fn ifinfo(index: i32, flags: u32, mask: u32) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    bytes.extend(index.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(mask.to_ne_bytes());
    bytes
}

#[test]
fn requests_batches_and_dumps() {
    let netns = fresh();
    let mut socket = Socket::open_in(netns.as_fd(), Protocol::Route).unwrap();
    let mut up = Message::new(libc::RTM_NEWLINK, 0);
    up.bytes(&ifinfo(1, 1, 1));
    socket.request(&up).unwrap();
    assert!(run_in(&netns, "ip link show lo").contains("UP"));

    let mut wrong = Message::new(libc::RTM_NEWLINK, 0);
    wrong.bytes(&ifinfo(4242, 1, 1));
    let results = socket.batch(&[up.clone(), wrong.clone(), up.clone()]);
    let codes: Vec<_> = results.iter().map(|r| r.as_ref().err().map(|e| e.code)).collect();
    assert_eq!(codes, [None, Some(libc::ENODEV), None]);

    // As many failures as make several chunks: each is told, none is lost.
    let many = vec![wrong; 2_500];
    assert!(socket.batch(&many).iter().all(|r| r.as_ref().is_err_and(|e| e.code == libc::ENODEV)));

    let mut links = Message::new(libc::RTM_GETLINK, 0);
    links.bytes(&ifinfo(0, 0, 0));
    assert_eq!(socket.dump(&links, |r| r.field::<4>(4)).unwrap(), [[1, 0, 0, 0]]);

    // A strict dump reports its refusal in the message that ends it: an error, not an empty list.
    let mut neighbours = Message::new(libc::RTM_GETNEIGH, 0);
    neighbours.bytes(&[0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    let errno = socket.dump(&neighbours, |_| Some(())).unwrap_err();
    assert_eq!(errno.code, libc::EINVAL);
    assert!(errno.text.is_some(), "{errno}");
    // The socket is usable afterwards.
    socket.request(&up).unwrap();
}

#[test]
fn news_of_one_device_are_news_of_no_other() {
    const GROUP_LINK: u32 = 1;
    let netns = fresh();
    run_in(&netns, "ip link add index 100 name br0 type bridge");
    run_in(&netns, "ip link add index 101 name br1 type bridge");
    let open = || Socket::with_groups(Protocol::Route, &[GROUP_LINK], 1 << 20);
    let mut socket = netns.run(open).unwrap().unwrap();
    socket.only_of_device(101).unwrap();
    for device in ["br0", "br1", "lo", "br0"] {
        run_in(&netns, &format!("ip link set {device} up"));
    }
    let mut about = Vec::new();
    while let Received::Data(data) = socket.receive(false).unwrap() {
        about.extend(Reply::split(data).filter_map(|reply| reply.field::<4>(4)).map(u32::from_ne_bytes));
    }
    assert!(!about.is_empty() && about.iter().all(|index| *index == 101), "{about:?}");
}

#[test]
fn opening_a_namespace_says_what_is_wrong() {
    let plain = std::env::current_exe().unwrap();
    for (path, want) in [
        (Path::new("/nowhere/x"), r#"failed to Statfs "/nowhere/x": no such file or directory"#),
        (
            Path::new("/proc/self/ns/mnt"),
            r#"open "/proc/self/ns/mnt": a namespace, but not a network namespace"#,
        ),
        (Path::new("/proc/self/stat"), r#"unknown FS magic on "/proc/self/stat": 9fa0"#),
        (plain.as_path(), "unknown FS magic on"),
    ] {
        let error = Netns::open(path).unwrap_err();
        assert!(error.to_string().starts_with(want), "{error}");
    }
    assert!(matches!(Netns::open(Path::new("/nowhere/x")), Err(NetnsError::Missing(_))));
}

#[test]
fn code_runs_inside_and_leaves_no_trace() {
    let here = Netns::current().unwrap().id().unwrap();
    let netns = fresh();
    let inside = netns.run(|| Netns::current().unwrap().id().unwrap()).unwrap();
    assert_eq!(inside, netns.id().unwrap());
    assert_ne!(inside, here);
    assert_eq!(Netns::current().unwrap().id().unwrap(), here);
    assert_eq!(Netns::open(&netns.path()).unwrap().id().unwrap(), inside);
}

#[test]
fn sysctls_are_written_once_and_inside() {
    let netns = fresh();
    let key = "net/ipv4/ip_forward";
    let before = sysctl::read(key).unwrap();
    for (value, changed) in [("0", false), ("1", true), ("1", false), ("0", true)] {
        let from = sysctl::read_in(&netns, key).unwrap();
        assert_eq!(
            sysctl::write_in(&netns, key, value).unwrap(),
            changed && from != value,
            "{from} → {value}"
        );
        assert_eq!(sysctl::read_in(&netns, key).unwrap(), value);
    }
    assert_eq!(sysctl::read(key).unwrap(), before);
    assert!(sysctl::read("net/nowhere").unwrap_err().to_string().starts_with("read /proc/sys/net/nowhere: "));
    assert!(sysctl::write("net/../../x", "1").unwrap_err().to_string().contains("leaves /proc/sys"));
}
