//! One lease and its thread: drives the state machine with packets and the time.
//!
//! Between renewals the thread holds neither a socket nor the namespace, so a pod that vanishes is not kept
//! alive; a namespace that is another one by then ends the lease.

use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use kernel::Netns;
use kernel::link::{LinkChange, LinkInfo};
use kernel::packet::UdpPackets;
use kernel::rtnl::Rtnl;
use model::cni::dhcp::{Action, Client, DhcpConf, Lease, Message, Timing, client_id, option};
use model::cni::{Error, Members, code};
use model::gojson::Json;
use model::{IfName, Mac};

use crate::names;
use crate::record;

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
/// How long a command may wait while packets are listened for.
const SLICE: u64 = 100;

/// Which attachment a lease is for: container, network, interface.
pub type Key = (String, String, String);

/// What the plugin asked for, enough to go on after a restart of the daemon.
#[derive(Clone, Debug)]
pub struct Request {
    /// Container, network, interface.
    pub key: Key,
    /// Path of the namespace, with the host's prefix.
    pub netns: String,
    /// What the configuration says.
    pub conf: DhcpConf,
    /// The whole request, to be kept.
    pub text: Json,
}

/// How the daemon was told to behave.
#[derive(Clone, Debug)]
pub struct Manner {
    /// Ask for broadcast answers.
    pub broadcast: bool,
    /// Patience.
    pub timing: Timing,
    /// How long answers to a message are listened for, in milliseconds; then the sockets go until the next
    /// attempt.
    pub listen: u64,
    /// Where leases are kept.
    pub dir: PathBuf,
}

/// To a thread.
pub enum Command {
    /// The lease as it is now.
    Look(Sender<Option<Lease>>),
    /// Give the address back and end.
    Release(Sender<()>),
}

/// A lease in the making, or kept.
pub struct Task {
    request: Request,
    manner: Manner,
    client: Client,
    /// The namespace when the lease was made.
    inode: u64,
    device: u32,
}

struct Sockets {
    packets: UdpPackets,
    /// Where renewals go out by; open for as long as their answers are awaited, so that the kernel does not
    /// refuse them.
    _renewal: Option<UdpSocket>,
}

/// Milliseconds since the machine came up, sleep included: what a kept lease is counted by.
pub fn now() -> u64 {
    let text = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds: f64 = text.split(' ').next().and_then(|s| s.parse().ok()).unwrap_or(0.0);
    (seconds * 1000.0) as u64
}

fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

impl Task {
    /// Looks at the interface and brings it up.
    ///
    /// # Errors
    /// The namespace or the interface is not there.
    pub fn new(request: Request, manner: Manner) -> Result<Task, Error> {
        let (_, id, ifname) = (&request.key.0, &request.key.1, &request.key.2);
        let failed =
            |e: String| Error::new(code::NETNS, format!("error acquiring lease for {ifname} in {id}: {e}"));
        let netns = Netns::open(Path::new(&request.netns)).map_err(|e| failed(e.to_string()))?;
        let inode = netns.id().map_err(|e| failed(e.to_string()))?.inode;
        let (device, mac) =
            netns.run(|| bring_up(ifname)).map_err(|e| failed(e.to_string()))?.map_err(failed)?;
        let mut provide = request.conf.provide.clone();
        if !provide.iter().any(|(code, _)| *code == option::CLIENT_ID) {
            let (id, network, ifname) = &request.key;
            provide.push((option::CLIENT_ID, client_id(id, network, ifname)));
        }
        let seed = RandomState::new().hash_one(&request.key);
        let asked = request.conf.request.clone();
        let client = Client::new(mac, provide, asked, manner.broadcast, manner.timing, seed);
        Ok(Task { request, manner, client, inode, device })
    }

    /// Goes on with what an earlier daemon kept; `None` if its pod is gone, and then the file goes too.
    pub fn restore(file: &Path, prefix: &str, manner: &Manner) -> Option<Task> {
        let read = || -> Option<Task> {
            let value: Json = fs::read_to_string(file).ok()?.parse().ok()?;
            let m = Members::of(&value, "Lease").ok()?;
            let lease = read_lease(m.get("lease")?)?;
            let request = Request::parse(m.get("request")?, prefix).ok()?;
            let mut task = Task::new(request, manner.clone()).ok()?;
            let same = m.string("boot").ok()? == boot() && m.get("inode")?.as_int::<u64>()? == task.inode;
            task.client.resume(lease);
            same.then_some(task)
        };
        let task = read();
        if task.is_none() {
            let _ = fs::remove_file(file);
        }
        task
    }

    /// Whose lease it is.
    pub fn key(&self) -> &Key {
        &self.request.key
    }

    /// Runs until the lease ends. The first outcome is told to `first`.
    pub fn run(mut self, commands: &Receiver<Command>, first: Option<Sender<Result<Lease, Error>>>) {
        let mut first = first;
        let mut sockets = None;
        let mut sent = now();
        let mut actions = if self.client.lease().is_some() { Vec::new() } else { self.client.start(sent) };
        loop {
            sent = if actions.is_empty() { sent } else { now() };
            for action in std::mem::take(&mut actions) {
                match self.perform(action, &mut sockets, &mut first) {
                    Ok(true) => {}
                    Ok(false) => return,
                    Err(e) => self.say(&e),
                }
            }
            let Some(deadline) = self.client.deadline() else { return };
            let listening =
                self.client.is_listening() && now() < sent + self.manner.listen && sockets.is_some();
            if !listening {
                sockets = None;
            }
            let wait = deadline.saturating_sub(now());
            let wait = Duration::from_millis(if listening { wait.min(SLICE) } else { wait });
            if let Some(open) = sockets.as_mut().filter(|_| listening) {
                match open.packets.receive(wait) {
                    Ok(Some(data)) => {
                        if let Some(message) = Message::decode(data) {
                            actions = self.client.receive(now(), &message);
                        }
                    }
                    Ok(None) => {}
                    // Down or gone: the next attempt tells which.
                    Err(_) => sockets = None,
                }
            }
            let command = if listening {
                commands.try_recv().ok()
            } else {
                match commands.recv_timeout(wait) {
                    Ok(command) => Some(command),
                    Err(RecvTimeoutError::Timeout) => None,
                    // The daemon ends; the lease is kept in its file.
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            };
            match command {
                Some(Command::Look(to)) => drop(to.send(self.client.lease().cloned())),
                Some(Command::Release(done)) => {
                    for action in self.client.release(now()) {
                        let _ = self.perform(action, &mut sockets, &mut None);
                    }
                    self.forget();
                    let _ = done.send(());
                    return;
                }
                None => {}
            }
            if actions.is_empty() && now() >= deadline {
                actions = self.client.tick(now());
            }
        }
    }

    /// False when it is over.
    fn perform(
        &mut self,
        action: Action,
        sockets: &mut Option<Sockets>,
        first: &mut Option<Sender<Result<Lease, Error>>>,
    ) -> Result<bool, String> {
        match action {
            Action::Broadcast(bytes) => self.send(&bytes, None, sockets),
            Action::Unicast(server, bytes) => self.send(&bytes, Some(server), sockets),
            Action::Bound => {
                *sockets = None;
                let Some(lease) = self.client.lease().cloned() else { return Ok(true) };
                self.say(&format!("{} from {}", lease.address, lease.server));
                let kept = self.keep(&lease);
                if let Some(first) = first.take() {
                    let _ = first.send(Ok(lease));
                }
                kept.map(|()| true).map_err(|e| e.to_string())
            }
            Action::Expired => {
                self.say("lease lost; the interface goes down");
                let ifname = self.request.key.2.clone();
                if let Some(netns) = self.namespace() {
                    let _ = netns.run(|| set_up(&ifname, false));
                }
                self.forget();
                Ok(false)
            }
            Action::GaveUp => {
                let ifname = &self.request.key.2;
                let error = Error::internal(format!(
                    "error acquiring lease for {ifname}: no DHCP server answered"
                ))
                .details(
                    "is there one on the interface's network? tcpdump -ni MASTER port 67 or port 68 shows it",
                );
                self.say(&error.msg);
                if let Some(first) = first.take() {
                    let _ = first.send(Err(error));
                }
                Ok(false)
            }
        }
    }

    /// False when the interface or its namespace is gone.
    fn send(
        &mut self,
        bytes: &[u8],
        server: Option<Ipv4Addr>,
        sockets: &mut Option<Sockets>,
    ) -> Result<bool, String> {
        let own = self.client.lease().map(|lease| lease.address.addr());
        let Some(netns) = self.namespace() else {
            self.say("the namespace is gone, and the lease with it");
            self.forget();
            return Ok(false);
        };
        let device = self.device;
        let ifname = self.request.key.2.clone();
        let opened = netns.run(|| -> io::Result<Option<Sockets>> {
            let name = IfName::new(&ifname).map_err(io::Error::other)?;
            let link = Rtnl::open().and_then(|mut rtnl| rtnl.link_by_name(name)).map_err(io::Error::other)?;
            if link.is_none_or(|link| link.index != device) {
                return Ok(None);
            }
            let packets = UdpPackets::open(device, CLIENT_PORT)?;
            // The address may be set by now, or not yet.
            let renewal = server.zip(own).and_then(|(server, own)| {
                let socket = UdpSocket::bind(SocketAddr::from((own, CLIENT_PORT))).ok()?;
                socket.send_to(bytes, (server, SERVER_PORT)).ok().map(|_| socket)
            });
            if renewal.is_none() {
                packets.broadcast(SERVER_PORT, bytes)?;
            }
            Ok(Some(Sockets { packets, _renewal: renewal }))
        });
        match opened.map_err(|e| e.to_string())? {
            Ok(Some(open)) => {
                *sockets = Some(open);
                Ok(true)
            }
            Ok(None) => {
                self.say("the interface is gone, and the lease with it");
                self.forget();
                Ok(false)
            }
            Err(e) => Err(format!("send: {e}")),
        }
    }

    fn namespace(&self) -> Option<Netns> {
        let netns = Netns::open(Path::new(&self.request.netns)).ok()?;
        (netns.id().ok()?.inode == self.inode).then_some(netns)
    }

    fn file(&self) -> PathBuf {
        let (id, network, ifname) = &self.request.key;
        self.manner.dir.join(format!("{}.json", names::mark(network, id, ifname)))
    }

    fn keep(&self, lease: &Lease) -> Result<(), Error> {
        let text = Json::object([
            ("boot", Json::from(boot())),
            ("inode", Json::Number(self.inode.to_string())),
            ("request", self.request.text.clone()),
            ("lease", write_lease(lease)),
        ]);
        record::write_atomically(&self.file(), text.to_compact().as_bytes())
    }

    fn forget(&self) {
        let _ = record::remove_file(&record::temporary(&self.file()));
        let _ = record::remove_file(&self.file());
    }

    fn say(&self, text: &str) {
        let (id, network, ifname) = &self.request.key;
        let _ = io::Write::write_fmt(
            &mut io::stderr().lock(),
            format_args!("dhcp: {id}/{network}/{ifname}: {text}\n"),
        );
    }
}

impl Request {
    /// Reads what the plugin sent.
    ///
    /// # Errors
    /// A member is missing, or the configuration is at fault.
    pub fn parse(value: &Json, prefix: &str) -> Result<Request, Error> {
        let failed = |e: String| Error::new(code::DECODE, format!("read the request: {e}"));
        let m = Members::of(value, "Request").map_err(failed)?;
        let text = |key: &str| m.string(key).map_err(failed);
        let document = m.get("document").ok_or_else(|| failed("no document".to_owned()))?;
        let members = Members::of(document, "NetConf").map_err(failed)?;
        Ok(Request {
            key: (text("containerID")?, text("network")?, text("ifname")?),
            netns: format!("{prefix}{}", text("netns")?),
            conf: DhcpConf::parse(&members, &text("args")?).map_err(Error::config)?,
            text: value.clone(),
        })
    }
}

/// Sets the interface up and waits a moment for its carrier: what is sent before is lost, and the next
/// attempt is seconds away.
fn bring_up(ifname: &str) -> Result<(u32, Mac), String> {
    let (index, mac) = set_up(ifname, true)?;
    let mut rtnl = Rtnl::open().map_err(|e| e.to_string())?;
    for _ in 0..50 {
        let link = rtnl.link_by_index(index).map_err(|e| e.to_string())?;
        if link.is_none_or(|link| link.operstate == LinkInfo::OPER_UP) {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok((index, mac))
}

/// Index and hardware address of the interface, which is set up or down.
fn set_up(ifname: &str, up: bool) -> Result<(u32, Mac), String> {
    let name = IfName::new(ifname).map_err(|e| e.to_string())?;
    let mut rtnl = Rtnl::open().map_err(|e| e.to_string())?;
    let link = rtnl.link_by_name(name).map_err(|e| e.to_string())?;
    let link = link.ok_or_else(|| format!("failed to lookup {ifname:?}: Link not found"))?;
    let mac = link.link.mac.ok_or_else(|| format!("{ifname:?} has no hardware address"))?;
    let change = LinkChange { up: Some(up), ..LinkChange::default() };
    rtnl.set_link(link.index, &change).map_err(|e| e.to_string())?;
    Ok((link.index, mac))
}

fn write_lease(lease: &Lease) -> Json {
    let number = |n: u64| Json::Number(n.to_string());
    let option = |(code, value): &(u8, Vec<u8>)| {
        let value = Json::array(value.iter().map(|byte| number((*byte).into())));
        Json::object([("code", number((*code).into())), ("value", value)])
    };
    Json::object([
        ("address", Json::from(lease.address.to_string())),
        ("server", lease.server.to_string().into()),
        ("renewAt", number(lease.renew_at)),
        ("rebindAt", number(lease.rebind_at)),
        ("expiresAt", number(lease.expires_at)),
        ("options", Json::array(lease.options.iter().map(option))),
    ])
}

fn read_lease(value: &Json) -> Option<Lease> {
    let text = |key: &str| value.get(key).and_then(Json::as_str);
    let number = |key: &str| value.get(key).and_then(Json::as_int::<u64>);
    let option = |item: &Json| -> Option<(u8, Vec<u8>)> {
        let bytes = item.get("value")?.as_array()?.iter().map(Json::as_int::<u8>).collect::<Option<_>>()?;
        Some((item.get("code")?.as_int()?, bytes))
    };
    Some(Lease {
        address: text("address")?.parse().ok()?,
        server: text("server")?.parse().ok()?,
        options: value.get("options")?.as_array()?.iter().map(option).collect::<Option<_>>()?,
        renew_at: number("renewAt")?,
        rebind_at: number("rebindAt")?,
        expires_at: number("expiresAt")?,
    })
}
