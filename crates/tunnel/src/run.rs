//! The process of a tunnel, and its command line (`loden tunnel`), which the agent uses as people can.

use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use model::IfName;
use rustix::event::{PollFd, PollFlags};

use crate::control::{self, Identity, Place, Request, Shown, Woken};
use crate::peers::Peers;
use crate::relay::{Answers, Lane, Relay, lanes_here};
use crate::{tun, udp};

const USAGE: &str = "\
usage: loden tunnel run DEVICE --listen ADDRESS:PORT --address ADDRESS --network NETWORK
                    [--take-over] [--detach] [--lanes N]
       loden tunnel show DEVICE
       loden tunnel set DEVICE SUBNET ADDRESS:PORT
       loden tunnel delete DEVICE SUBNET
       loden tunnel stop DEVICE
       loden tunnel wireguard DEVICE [..]

The user-space tunnel of the backend udp. The agent starts it, keeps its peers and repairs it; it goes on
without the agent. DEVICE is a TUN device that is there: ip tuntap add NAME mode tun multi_queue vnet_hdr

  --listen     UDP address of this host
  --address    this host's address on the device
  --network    the cluster's network
  --take-over  of the tunnel that runs: its descriptors and peers, so that no packet is lost
  --detach     leave the session and standard input and output once it works
  --lanes      queues, each with a socket and two threads (half the processors)
  --socket     where it is controlled (/run/flannel/DEVICE.tunnel); with every command
";

/// Where a tunnel is controlled unless said otherwise.
pub fn usual_socket(device: IfName) -> PathBuf {
    PathBuf::from(format!("/run/flannel/{device}.tunnel"))
}

/// What `run` is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// What it shall be.
    pub identity: Identity,
    /// Where it is controlled.
    pub socket: PathBuf,
    /// A tunnel runs there whose descriptors and peers shall be taken.
    pub take_over: bool,
    /// Leave session, terminal and pipes once it works.
    pub detach: bool,
    /// Queues, if said.
    pub lanes: Option<usize>,
}

/// The words of the command line.
#[derive(Default)]
struct Words {
    plain: Vec<String>,
    listen: Option<SocketAddrV4>,
    address: Option<Ipv4Addr>,
    network: Option<Ipv4Net>,
    socket: Option<PathBuf>,
    lanes: Option<usize>,
    take_over: bool,
    detach: bool,
}

impl Words {
    fn read(words: &[String]) -> Result<Words, String> {
        let mut read = Words::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let (name, given) = match word.split_once('=') {
                Some((name, value)) if name.starts_with("--") => (name, Some(value)),
                _ => (word.as_str(), None),
            };
            fn value<T: std::str::FromStr>(name: &str, text: Option<&str>) -> Result<Option<T>, String> {
                let text = text.ok_or_else(|| format!("{name} needs a value"))?;
                text.parse().map(Some).map_err(|_| format!("{name} {text:?} makes no sense"))
            }
            let mut next = || given.or_else(|| words.next().map(String::as_str));
            match name {
                "--listen" => read.listen = value(name, next())?,
                "--address" => read.address = value(name, next())?,
                "--network" => read.network = value(name, next())?,
                "--socket" => read.socket = value(name, next())?,
                "--lanes" => read.lanes = value(name, next())?,
                "--take-over" => read.take_over = true,
                "--detach" => read.detach = true,
                _ if name.starts_with('-') => return Err(format!("there is no option {name}")),
                _ => read.plain.push(word.clone()),
            }
        }
        Ok(read)
    }

    fn options(self, device: IfName) -> Result<Options, String> {
        let missing = |what: &str| format!("{what} is missing");
        let identity = Identity {
            version: control::VERSION.to_owned(),
            device,
            listen: self.listen.ok_or_else(|| missing("--listen"))?,
            address: self.address.ok_or_else(|| missing("--address"))?,
            network: self.network.ok_or_else(|| missing("--network"))?.trunc(),
        };
        if let Some(lanes) = self.lanes.filter(|lanes| !(1..=16).contains(lanes)) {
            return Err(format!("--lanes {lanes} is not between 1 and 16"));
        }
        let socket = self.socket.unwrap_or_else(|| usual_socket(device));
        Ok(Options { identity, socket, take_over: self.take_over, detach: self.detach, lanes: self.lanes })
    }
}

/// Runs the command; gives the exit status.
pub fn main(words: &[String]) -> u8 {
    let complain = |text: &str| drop(io::stderr().lock().write_all(text.as_bytes()));
    let print = |text: &str| drop(io::stdout().lock().write_all(text.as_bytes()));
    if let Some((first, rest)) = words.split_first()
        && first == "wireguard"
    {
        return crate::wireguard::run::main(rest);
    }
    if let [word] = words
        && ["-h", "-help", "--help", "help"].contains(&word.as_str())
    {
        print(USAGE);
        return 0;
    }
    let done = Words::read(words).and_then(|mut read| {
        let plain = std::mem::take(&mut read.plain);
        let plain: Vec<&str> = plain.iter().map(String::as_str).collect();
        let device = |name: &str| IfName::new(name).map_err(|e| e.to_string());
        let socket = read.socket.clone();
        let at = |name: &str| device(name).map(|dev| socket.clone().unwrap_or_else(|| usual_socket(dev)));
        let net = |net: &str| net.parse::<Ipv4Net>().map_err(|_| format!("{net:?} is no IPv4 network"));
        let to = |to: &str| to.parse().map_err(|_| format!("{to:?} is no address with a port"));
        Ok(match plain.as_slice() {
            ["run", name] => Command::Run(read.options(device(name)?)?),
            ["show", name] => Command::Ask(at(name)?, Request::Show),
            ["stop", name] => Command::Ask(at(name)?, Request::Stop),
            ["set", name, subnet, peer] => {
                Command::Ask(at(name)?, Request::Peers(vec![(net(subnet)?, Some(to(peer)?))]))
            }
            ["delete", name, subnet] => Command::Ask(at(name)?, Request::Peers(vec![(net(subnet)?, None)])),
            _ => return Err("there is no such command".to_owned()),
        })
    });
    let result = match done {
        Ok(Command::Run(options)) => run(&options),
        Ok(Command::Ask(path, request)) => control::request(&path, &request)
            .map_err(|error| io::Error::other(format!("ask the tunnel at {}: {error}", path.display())))
            .and_then(|answer| match answer.strip_prefix("error ") {
                Some(refusal) => Err(io::Error::other(refusal.trim().to_owned())),
                None => {
                    print(if answer == "ok\n" { "" } else { &answer });
                    Ok(())
                }
            }),
        Err(error) => {
            complain(&format!("loden tunnel: {error}\n\n{USAGE}"));
            return 2;
        }
    };
    match result {
        Ok(()) => 0,
        Err(error) => {
            complain(&format!("{error}\n"));
            1
        }
    }
}

enum Command {
    Run(Options),
    Ask(PathBuf, Request),
}

/// Is the tunnel until it is told to end, its device is gone, or nobody can reach it any more.
///
/// # Errors
/// It could not start, or its device is gone: one sentence.
pub fn run(options: &Options) -> io::Result<()> {
    if options.detach {
        leave_session()?;
    }
    let (lanes, peers) = lanes(options)?;
    let identity = &options.identity;
    let answers = Answers::from(identity.address);
    let place = Place::open(&options.socket)?;
    // Before there are threads: each has rights of its own.
    drop_privileges();
    let mut relay = Relay::start(lanes, answers, identity.network, peers)?;
    if options.detach {
        leave_pipes()?;
    }
    serve(&mut relay, &place, identity).map(|end| match end {
        End::Stop => {}
        End::HandOver(mut client) => {
            let shown = shown(&relay, identity);
            hand_over(relay, &mut client, &shown);
        }
    })
}

/// Queues and sockets: those of the tunnel that runs, as far as they fit, or new ones.
fn lanes(options: &Options) -> io::Result<(Vec<Lane>, Peers)> {
    let Identity { listen, device, .. } = options.identity;
    let count = options.lanes.unwrap_or_else(lanes_here);
    if !options.take_over {
        let sockets = udp::Socket::bind(listen.into(), count)?;
        let lane = |udp| Ok(Lane { tun: tun::Queue::open(device)?, udp });
        return Ok((sockets.into_iter().map(lane).collect::<io::Result<_>>()?, Peers::new()));
    }
    let before = control::request(&options.socket, &Request::Show)?;
    let before = Shown::parse(&before).map_err(io::Error::other)?;
    // What may fail is tried before the other one gives anything away.
    let fresh = match before.identity.listen == listen {
        true => Vec::new(),
        false => udp::Socket::bind(listen.into(), count)?,
    };
    let (before, mut queues) = control::take_over(&options.socket)?;
    let sockets: Vec<OwnedFd> = queues.split_off(queues.len() / 2);
    if before.identity.device != device || queues.is_empty() {
        return Err(io::Error::other(format!(
            "the tunnel at {} is not one of {device}",
            options.socket.display()
        )));
    }
    let mut sockets = match fresh.is_empty() {
        true => sockets.into_iter().map(udp::Socket::over).collect(),
        false => fresh,
    };
    let mut queues = queues.into_iter().map(tun::Queue::over).collect::<io::Result<Vec<_>>>()?;
    // The fewer of the two: a queue without a thread would swallow the flows that are hashed to it.
    let count = sockets.len().min(queues.len());
    sockets.truncate(count);
    queues.truncate(count);
    let lanes = queues.into_iter().zip(sockets).map(|(tun, udp)| Lane { tun, udp });
    Ok((lanes.collect(), before.peers))
}

enum End {
    Stop,
    HandOver(UnixStream),
}

fn serve(relay: &mut Relay, place: &Place, identity: &Identity) -> io::Result<End> {
    loop {
        match place.wait(vec![PollFd::from_borrowed_fd(relay.ended(), PollFlags::IN)]) {
            Woken::Ended => return Err(io::Error::other(format!("{} is gone", identity.device))),
            Woken::Unreachable => return Ok(End::Stop),
            Woken::Asked => {}
        }
        let Some((mut client, request)) = place.next() else { continue };
        match request {
            Ok(Request::Show) => control::reply(&mut client, &shown(relay, identity).to_string()),
            Ok(Request::Peers(changes)) => {
                let mut peers = relay.peers().clone();
                for (net, to) in changes {
                    match to {
                        Some(to) => drop(peers.insert(net, to)),
                        None => drop(peers.remove(&net)),
                    }
                }
                relay.set_peers(peers);
                control::reply(&mut client, "ok\n");
            }
            Ok(Request::HandOver) => return Ok(End::HandOver(client)),
            Ok(Request::Stop) => {
                control::reply(&mut client, "ok\n");
                return Ok(End::Stop);
            }
            Err(error) => control::reply(&mut client, &format!("error {error}\n")),
        }
    }
}

fn shown(relay: &Relay, identity: &Identity) -> Shown {
    Shown { identity: identity.clone(), peers: relay.peers().clone(), counts: relay.counts() }
}

/// Gives everything away. Packets that come meanwhile wait in the queues and sockets.
fn hand_over(relay: Relay, client: &mut UnixStream, shown: &Shown) {
    let lanes = relay.stop();
    let queues = lanes.iter().map(|lane| lane.tun.as_fd());
    let descriptors: Vec<_> = queues.chain(lanes.iter().map(|lane| lane.udp.as_fd())).collect();
    // If nobody takes them, the agent finds no tunnel and makes one.
    let _ = control::reply_with(client, &shown.to_string(), &descriptors);
}

/// Whoever starts us may end, and its terminal and directory go.
pub(crate) fn leave_session() -> io::Result<()> {
    // Fails for the leader of a group, which has what it needs.
    let _ = rustix::process::setsid();
    std::env::set_current_dir("/")
}

/// What reads datagrams from anybody has no rights over the machine. Files of root stay in reach. For the
/// calling thread and those it starts.
pub(crate) fn drop_privileges() {
    let none = rustix::thread::CapabilitySet::empty();
    let sets = rustix::thread::CapabilitySets { effective: none, permitted: none, inheritable: none };
    // Where there are none to drop, all is well.
    let _ = rustix::thread::set_capabilities(None, sets);
    let _ = rustix::thread::set_no_new_privs(true);
}

/// Whoever reads our output to its end learns that the tunnel works.
pub(crate) fn leave_pipes() -> io::Result<()> {
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}

/// The words that make a process what `options` say.
pub fn words(options: &Options) -> Vec<String> {
    let Options { identity, socket, take_over, detach, .. } = options;
    let Identity { device, listen, address, network, .. } = identity;
    let mut words: Vec<String> = ["tunnel", "run"].map(str::to_owned).into();
    words.push(device.to_string());
    words.extend([
        format!("--listen={listen}"),
        format!("--address={address}"),
        format!("--network={network}"),
    ]);
    words.push(format!("--socket={}", socket.display()));
    words.extend(
        [(*take_over, "--take-over"), (*detach, "--detach")].iter().filter(|w| w.0).map(|w| w.1.to_owned()),
    );
    words
}

/// The device of a tunnel by the name of its socket, with what comes before the device's in it. `None` for other
/// files, and other agents' tunnels.
pub fn device_of(path: &Path, prefix: &str) -> Option<IfName> {
    let name = path.file_name()?.to_str()?;
    let name = name.strip_prefix(prefix)?.strip_suffix(".tunnel")?;
    IfName::new(name).ok().filter(|_| !name.contains('.'))
}
