//! More than the agent can take: it falls behind, says so in one line, dies of nothing, and catches up.

use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::faults::picture;
use crate::world::{Agent, Host, World, until};

const VXLAN: &str = r#"{"Network":"10.244.0.0/16","SubnetMin":"10.244.1.0","SubnetMax":"10.244.99.0","EnableNFTables":true,"Backend":{"Type":"vxlan"}}"#;

/// Gives the agent's sockets for notifications the smallest buffers there are. Gives how many there are.
fn starve_listeners(agent: &Agent) -> usize {
    let pid = agent.pid();
    let sockets = fs::read_to_string(format!("/proc/{pid}/net/netlink")).unwrap();
    let is_listener = |line: &&str| line.split_whitespace().nth(3).is_some_and(|groups| groups != "00000000");
    let inodes: Vec<String> = sockets
        .lines()
        .skip(1)
        .filter(is_listener)
        .map(|line| format!("socket:[{}]", line.split_whitespace().last().unwrap()))
        .collect();
    let process = pidfd_open(Pid::from_raw(pid as i32).unwrap(), PidfdFlags::empty()).unwrap();
    let mut starved = 0;
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let entry = entry.unwrap();
        let target = fs::read_link(entry.path()).unwrap_or_default();
        if inodes.iter().any(|inode| target == Path::new(inode)) {
            let number = entry.file_name().to_str().unwrap().parse().unwrap();
            let socket = pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).unwrap();
            rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, 1).unwrap();
            starved += 1;
        }
    }
    starved
}

fn ip_batch(host: &Host, lines: &str) {
    let ip = || Command::new("ip").args(["-force", "-batch", "-"]).stdin(Stdio::piped()).spawn();
    let mut child = host.netns.run(ip).unwrap().unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

fn as_wanted(host: &Host, what: &str, wanted: &[String]) {
    until(&format!("everything to be back after {what}"), || {
        let now = picture(host);
        if now == wanted { Ok(()) } else { Err(crate::faults::difference(wanted, &now)) }
    });
}

fn routes(host: &Host, wanted: usize) {
    until(&format!("{wanted} routes"), || {
        let count = host.sh("ip route show proto 76").lines().count();
        if count == wanted { Ok(()) } else { Err(count.to_string()) }
    });
}

/// Notifications are lost while something of ours is deleted among thousands of changes of others.
#[test]
fn a_storm_of_notifications_loses_nothing() {
    let world = World::with_config(2, VXLAN).quiet();
    let mut agents = world.start(&["--healthz-port=8081"]);
    let (host, peer) = (&world.hosts[0], &world.hosts[1]);
    routes(host, 1);
    let wanted = picture(host);
    host.sh("ip link add other0 type veth peer name other1");
    host.sh("ip link set other0 up");
    assert!(starve_listeners(&agents[0]) >= 2, "one for rtnetlink, one for nftables");
    let start = Instant::now();
    let subnet = peer.subnet("FLANNEL_SUBNET");
    for damage in [
        format!("route del {subnet}"),
        format!("neigh del {} dev flannel.1", subnet.network()),
        "link set flannel.1 down".to_owned(),
        "link del flannel.1".to_owned(),
        format!("addr del {}/32 dev flannel.1", host.subnet("FLANNEL_SUBNET").network()),
    ] {
        let foreign = |verb: &str, rest: &str| -> String {
            let line =
                |n: usize| format!("neigh {verb} 10.9.{}.{} {rest} dev other0\n", n / 250, n % 250 + 1);
            (0..3_000).map(line).collect()
        };
        let storm = foreign("add", "lladdr 02:00:00:00:00:01") + &damage + "\n" + &foreign("del", "");
        ip_batch(host, &storm);
        as_wanted(host, &damage, &wanted);
    }
    assert!(agents[0].alive());
    let (_, page) = host.http(8081, "/metrics").unwrap();
    let lost = page.lines().find_map(|line| line.strip_prefix("loden_kernel_events_lost_total "));
    let lost: f64 = lost.unwrap().parse().unwrap();
    assert!(lost >= 1.0, "the storm was no storm");
    let lines = agents[0].count("the kernel dropped notifications");
    let most = 1 + start.elapsed().as_secs() as usize / 60;
    assert!((1..=most).contains(&lines), "{lines} lines for {lost} losses\n{}", agents[0].log());
    println!("{lost} losses, {lines} line(s)");
}

/// Four thousand new peers are more changes than the listener's queue holds, and all of them are the agent's own: it does not
/// listen meanwhile. (Without that the smallest queue loses most of them.)
#[test]
fn what_the_agent_writes_by_the_thousand_it_does_not_listen_to() {
    const MANY: usize = 4_200;
    let config =
        r#"{"Network":"10.0.0.0/8","SubnetLen":24,"EnableNFTables":true,"Backend":{"Type":"vxlan"}}"#;
    let world = World::with_config(1, config).quiet();
    let host = &world.hosts[0];
    let mut agents = world.start(&["--healthz-port=8081"]);
    assert!(starve_listeners(&agents[0]) >= 2, "one for rtnetlink, one for nftables");
    let lost = || {
        let (_, page) = host.http(8081, "/metrics").unwrap();
        let lost = page.lines().find_map(|line| line.strip_prefix("loden_kernel_events_lost_total "));
        lost.unwrap().parse::<f64>().unwrap()
    };
    let before = lost();
    let own = host.subnet("FLANNEL_SUBNET").network().to_string();
    let mut leases = rusqlite::Connection::open(world.dir.path().join("leases.db")).unwrap();
    leases.busy_timeout(crate::world::patience()).unwrap();
    let all = leases.transaction().unwrap();
    let nets = (0..).map(|n| format!("10.{}.{}.0", n / 256, n % 256)).filter(|net| *net != own);
    for (n, net) in nets.take(MANY).enumerate() {
        let (high, low) = (n / 256, n % 256);
        let data = format!(r#"{{"VNI":1,"VtepMAC":"02:00:00:01:{high:02x}:{low:02x}"}}"#);
        let value = format!(
            r#"{{"PublicIP":"198.18.{high}.{low}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{data}}}"#
        );
        let put = "INSERT INTO lease (key, value, expires) VALUES (?1, ?2, 4102444800)";
        all.execute(put, [&format!("{net}-24"), &value]).unwrap();
    }
    all.commit().unwrap();
    routes(host, MANY);
    // With the round that puts this right, all that was lost before is counted. (That it is heard at once, the kernel's tests
    // show: what_is_written_in_bulk_is_not_heard.)
    host.sh("ip route del 10.9.9.0/24");
    routes(host, MANY);
    assert_eq!(lost() - before, 0.0, "{}", agents[0].log());
    assert!(agents[0].alive());
}

/// Seconds of processor time a process has used.
fn used(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    // proc(5): utime and stime are the fields 14 and 15, in hundredths; the first here is 3.
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

/// What /proc/PID/status says in KiB.
fn kib(pid: u32, key: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.trim_start_matches(':').split_whitespace().next().unwrap().parse().unwrap()
}

/// 64 file descriptors, and clients that open more connections than that and say nothing.
#[test]
fn silent_clients_take_no_files_no_processor_and_no_answers_away() {
    let world = World::with_config(2, VXLAN).quiet();
    let (host, peer) = (&world.hosts[0], &world.hosts[1]);
    let store = [("LODEN_STORE", host.store())];
    let mut agent = host.agent_under(&["prlimit", "--nofile=64:64"], &["--healthz-port=8081"], &store);
    let _other = peer.agent(&[]);
    agent.ready();
    routes(host, 1);
    let wanted = picture(host);
    let open = || fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap().count();
    let own = open();
    let tcp: Vec<TcpStream> =
        (0..100).map(|_| host.netns.run(|| TcpStream::connect("127.0.0.1:8081")).unwrap().unwrap()).collect();
    // The kernel holds so many that wait to be taken in; who comes then is refused or waits.
    let socket = host.dir.join("loden.sock");
    let unix: Vec<UnixStream> = (0..100).filter_map(|_| connect_soon(&socket)).collect();
    until("clients to be taken in", || if open() > own + 8 { Ok(()) } else { Err(open().to_string()) });
    let (start, before) = (Instant::now(), used(agent.pid()));
    for _ in 0..10 {
        host.sh("ip route flush proto 76");
        as_wanted(host, "a flush of routes", &wanted);
        until("an answer", || match host.http(8081, "/readyz")? {
            (200, _) => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
    answers(host);
    let (took, cost) = (start.elapsed().as_secs_f64(), used(agent.pid()) - before);
    println!(
        "{own} files open, {} with {} clients; {cost:.2} s of {took:.2} s",
        open(),
        tcp.len() + unix.len()
    );
    assert!(open() <= own + 2 * 8 + 8, "{}", open());
    assert!(cost < 0.7 * took, "{cost} s of {took} s: it spins\n{}", agent.log());
    assert!(agent.alive());
}

/// The agent says how it is, of which probes are a part: these do without.
fn answers(host: &Host) {
    let (_, status) = host.status_json();
    assert_eq!(status["ready"], true, "{status}");
    assert!(status["agent"]["pid"].is_u64(), "{status}");
}

/// A client of the status socket, unless too many wait there.
fn connect_soon(socket: &Path) -> Option<UnixStream> {
    UnixStream::connect(socket).ok()
}

/// Control groups of a test, of whichever version this host has; they go with the value.
struct Groups {
    memory: PathBuf,
    cpu: PathBuf,
    old: bool,
}

impl Groups {
    fn new(test: &str) -> Option<Groups> {
        let base = Path::new("/sys/fs/cgroup");
        let name = format!("loden-test-{}", std::process::id());
        let old = base.join("memory/memory.limit_in_bytes").exists();
        let [memory, cpu] = if old {
            [base.join("memory").join(&name), base.join("cpu").join(&name)]
        } else {
            [base.join(&name), base.join(&name)]
        };
        let groups = Groups { memory, cpu, old };
        for dir in [&groups.memory, &groups.cpu] {
            let _ = fs::create_dir(dir);
        }
        let (memory, cpu) = groups.files();
        if memory.exists() && cpu.exists() {
            return Some(groups);
        }
        println!("SKIP {test}: no control group with memory and cpu can be made here");
        None
    }

    fn files(&self) -> (PathBuf, PathBuf) {
        match self.old {
            true => (self.memory.join("memory.limit_in_bytes"), self.cpu.join("cpu.cfs_quota_us")),
            false => (self.memory.join("memory.max"), self.cpu.join("cpu.max")),
        }
    }

    /// MiB of memory, and hundredths of a processor; `None` is no limit.
    fn limit(&self, mib: Option<u64>, percent: Option<u64>) {
        let (memory, cpu) = self.files();
        let none = |old: &str| if self.old { old.to_owned() } else { "max".to_owned() };
        fs::write(memory, mib.map_or(none("-1"), |mib| (mib << 20).to_string())).unwrap();
        // Of a period of 100 ms, which is the kernel's own.
        fs::write(cpu, percent.map_or(none("-1"), |percent| (percent * 1000).to_string())).unwrap();
    }

    /// A shell that enters them and becomes the words that follow.
    fn enter(&self) -> String {
        let [memory, cpu] =
            [&self.memory, &self.cpu].map(|dir| dir.join("cgroup.procs").display().to_string());
        format!("echo $$ > {memory} && echo $$ > {cpu} && exec prlimit --nofile=64:64 \"$0\" \"$@\"")
    }

    /// What the kernel says of memory and processor used, on one line.
    fn usage(&self) -> String {
        let memory = if self.old {
            ["memory.max_usage_in_bytes", "memory.failcnt"]
        } else {
            ["memory.peak", "memory.events"]
        };
        let files = memory.map(|name| self.memory.join(name)).into_iter().chain([self.cpu.join("cpu.stat")]);
        let texts = files.map(|file| {
            let text = fs::read_to_string(&file).unwrap_or_default();
            let name = file.file_name().unwrap().to_string_lossy().into_owned();
            format!("{name}: {}", text.split_whitespace().collect::<Vec<_>>().join(" "))
        });
        texts.collect::<Vec<_>>().join(", ")
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        for dir in [&self.memory, &self.cpu] {
            // The last process may still be on its way out.
            for _ in 0..100 {
                if !dir.exists() || fs::remove_dir(dir).is_ok() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
    }
}

/// Leases of a hundred nodes that are not there; all at addresses of one network.
fn put_peers(world: &World, network: &str) {
    let mut leases = rusqlite::Connection::open(world.dir.path().join("leases.db")).unwrap();
    leases.busy_timeout(crate::world::patience()).unwrap();
    let all = leases.transaction().unwrap();
    for n in 1..=PEERS {
        let value = format!(
            r#"{{"PublicIP":"{network}.{n}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:01:{n:02x}"}}}}"#
        );
        let put = "INSERT INTO lease (key, value, expires) VALUES (?1, ?2, 4102444800) \
                   ON CONFLICT (key) DO UPDATE SET value = excluded.value";
        all.execute(put, [&format!("10.244.{}.0-24", 150 + n), &value]).unwrap();
    }
    all.commit().unwrap();
}

const PEERS: usize = 100;

fn forwarded(host: &Host, network: &str, wanted: usize) {
    until(&format!("{wanted} peers at {network}"), || {
        let entries = host.sh("bridge fdb show dev flannel.1");
        let count = entries.lines().filter(|line| line.contains(&format!("dst {network}."))).count();
        if count == wanted { Ok(()) } else { Err(count.to_string()) }
    });
}

/// A ping that goes on; its end gives packets sent and received.
struct Pings(Child);

impl Pings {
    fn start(host: &Host, to: &str) -> Pings {
        let ping =
            || Command::new("ping").args(["-q", "-n", "-i", "0.02", to]).stdout(Stdio::piped()).spawn();
        Pings(host.netns.run(ping).unwrap().unwrap())
    }

    fn end(self) -> (usize, usize) {
        let pid = Pid::from_raw(self.0.id() as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        let text = String::from_utf8(self.0.wait_with_output().unwrap().stdout).unwrap();
        let line = text.lines().find(|line| line.contains("packets transmitted")).unwrap();
        let numbers: Vec<usize> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
        (numbers[0], numbers[1])
    }
}

/// Row R23: 24 MiB of memory, 64 file descriptors, 5 % of a processor.
#[test]
fn little_of_everything_slows_the_agent_and_does_not_kill_it() {
    let test = "overload::little_of_everything_slows_the_agent_and_does_not_kill_it";
    let Some(groups) = Groups::new(test) else { return };
    groups.limit(Some(24), Some(5));
    let world = World::with_config(2, VXLAN).quiet();
    let (host, peer) = (&world.hosts[0], &world.hosts[1]);
    let store = [("LODEN_STORE", host.store())];
    let mut agent = host.agent_under(&["sh", "-c", &groups.enter()], &["--healthz-port=8081"], &store);
    let _other = peer.agent(&[]);
    agent.ready();
    let inside = fs::read_to_string(format!("/proc/{}/cgroup", agent.pid())).unwrap();
    assert!(inside.contains("loden-test-"), "{inside}");
    routes(host, 1);
    until("the peer", || host.greet(peer, peer.subnet("FLANNEL_SUBNET").network()));
    let pings = Pings::start(host, &peer.subnet("FLANNEL_SUBNET").network().to_string());
    let start = Instant::now();
    put_peers(&world, "198.51.100");
    forwarded(host, "198.51.100", PEERS);
    routes(host, PEERS + 1);
    println!("{PEERS} peers after {} ms", start.elapsed().as_millis());
    let start = Instant::now();
    for _ in 0..50 {
        put_peers(&world, "203.0.113");
        put_peers(&world, "198.51.100");
    }
    // A network that was not among the changes: the agent may be at any of them for a while.
    put_peers(&world, "192.88.99");
    forwarded(host, "192.88.99", PEERS);
    forwarded(host, "198.51.100", 0);
    println!("10,100 changes of peers after {} ms", start.elapsed().as_millis());
    answers(host);
    let (sent, received) = pings.end();
    assert_eq!(sent - received, 0, "of {sent} echoes");
    let wanted = picture(host);
    let start = Instant::now();
    host.sh("ip route flush proto 76");
    as_wanted(host, "a flush of routes", &wanted);
    println!("a repair after {} ms", start.elapsed().as_millis());
    let pid = agent.pid();
    println!(
        "{sent} echoes, none lost; VmHWM {} KiB, RssAnon {} KiB, {}",
        kib(pid, "VmHWM"),
        kib(pid, "RssAnon"),
        groups.usage()
    );

    groups.limit(None, None);
    let start = Instant::now();
    host.sh("ip link del flannel.1");
    as_wanted(host, "the device's end", &wanted);
    put_peers(&world, "198.51.100");
    forwarded(host, "198.51.100", PEERS);
    println!("without limits: a device and {PEERS} changes after {} ms", start.elapsed().as_millis());
    assert!(agent.alive() && !agent.log().contains("panicked"), "{}", agent.log());
}

/// The log is a pipe that is full and that nobody reads.
#[test]
fn a_log_nobody_reads_holds_up_nothing() {
    let world = World::with_config(2, VXLAN).quiet();
    let (host, peer) = (&world.hosts[0], &world.hosts[1]);
    let pipe = host.dir.join("pipe");
    host.sh(&format!("mkfifo {}", pipe.display()));
    let mut reader = fs::OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
    rustix::pipe::fcntl_setpipe_size(&reader, 4096).unwrap();
    let into_pipe = format!("exec 2<>{}; exec \"$0\" \"$@\"", pipe.display());
    let other = peer.agent(&[]);
    let store = [("LODEN_STORE", world.hosts[0].store())];
    let mut agent = host.agent_under(&["sh", "-c", &into_pipe], &["-v=10"], &store);
    other.ready();
    // Its log cannot tell that it is ready.
    routes(host, 1);
    let wanted = picture(host);
    let subnet = peer.subnet("FLANNEL_SUBNET");
    for round in 0..20 {
        host.sh(&format!("ip route del {subnet}"));
        as_wanted(host, &format!("deletion {round}"), &wanted);
    }
    assert!(agent.alive());
    let full = rustix::io::ioctl_fionread(&reader).unwrap();
    assert!(full > 0, "nothing is in the pipe");

    // Who begins to read gets all of it, in order, and the newest.
    let (send, lines) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        use std::io::BufRead as _;
        let mut line = String::new();
        let mut reader = std::io::BufReader::new(&mut reader);
        while reader.read_line(&mut line).is_ok() && send.send(std::mem::take(&mut line)).is_ok() {}
    });
    agent.terminate();
    let mut seen = Vec::new();
    while let Ok(line) = lines.recv_timeout(crate::world::patience()) {
        let last = line.contains("Exiting cleanly");
        seen.push(line);
        if last {
            break;
        }
    }
    assert!(seen.first().is_some_and(|line| line.contains("CLI flags config")), "{:?}", seen.first());
    assert!(seen.last().is_some_and(|line| line.contains("Exiting cleanly")), "{:?}", seen.last());
}
