//! The fast path's place in the agent: two threads of their own, started when it is first wanted. One listens to the
//! kernel, the other ties programs to devices, voids flows when anything changed, and says every few seconds that
//! the agent is alive. The loop only tells what is wanted and never waits (decision 0217).

mod ports;
mod worker;

use std::net::Ipv4Addr;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kernel::monitor::{Event, Monitor};
use model::{FastPath, IfName, IpNet, Ipv4Net, Ipv6Net, NetConf, VxlanConf};
use plan::Key;
use plan::backend;
use plan::backend::udp::Udp;
use plan::facts::Families;

use crate::board::{Board, Topic};
use crate::inputs::{Inbox, Inputs};
use crate::rights::{Need, Rights};
use crate::status;
use worker::Worker;
pub use worker::left;

/// What the loop knows and the fast path needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// What is wanted; never [`FastPath::Off`].
    mode: FastPath,
    /// The network by which this is told from what is another agent's: of IPv4 where there is one.
    network: IpNet,
    /// All of the cluster's, at most one of each family.
    networks: Vec<IpNet>,
    uplink: IfName,
    tunnel: Option<Tunnel>,
}

impl Wish {
    fn v4(&self) -> Option<Ipv4Net> {
        self.networks.iter().find_map(|net| if let IpNet::V4(net) = net { Some(*net) } else { None })
    }

    fn v6(&self) -> Option<Ipv6Net> {
        self.networks.iter().find_map(|net| if let IpNet::V6(net) = net { Some(*net) } else { None })
    }
}

/// How packets travel between nodes, where not as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tunnel {
    /// By these devices, each for packets of its family.
    Vxlan(IfName, IfName),
    /// From and to this address and port, in user space by themselves.
    Udp(Ipv4Addr, u16),
}

/// What the worker hears.
enum Signal {
    /// Something else is wanted; `None` ends the fast path.
    Wish(Option<Wish>),
    /// The kernel changed: flows are void.
    Changed,
    /// The same, and devices are to be looked at.
    Devices,
    /// Somebody wants to read [`Shown`], and waits for the answer.
    Count(SyncSender<()>),
}

/// What the worker has to do, of each kind once: the latest.
#[derive(Debug, Default)]
struct Todo {
    wish: Option<Option<Wish>>,
    void: bool,
    look: bool,
    count: Option<SyncSender<()>>,
}

impl Todo {
    fn is_empty(&self) -> bool {
        self.wish.is_none() && !self.void && !self.look && self.count.is_none()
    }

    fn add(&mut self, signal: Signal) {
        match signal {
            Signal::Wish(wish) => self.wish = Some(wish),
            Signal::Changed => self.void = true,
            Signal::Devices => (self.look, self.void) = (true, true),
            // Who asked before finds figures of before.
            Signal::Count(done) => self.count = Some(done),
        }
    }
}

/// Between those who tell and the worker.
#[derive(Debug, Default)]
struct Slot {
    todo: Mutex<Todo>,
    wake: Condvar,
}

impl Slot {
    fn tell(&self, signal: Signal) {
        self.lock().add(signal);
        self.wake.notify_one();
    }

    /// Waits for something, at most so long; a burst is one.
    fn take(&self, limit: Duration) -> Todo {
        let slot = self.wake.wait_timeout_while(self.lock(), limit, |todo| todo.is_empty());
        std::mem::take(&mut slot.unwrap_or_else(PoisonError::into_inner).0)
    }

    fn lock(&self) -> MutexGuard<'_, Todo> {
        // Whoever panicked leaves whole values behind: each change is one assignment.
        self.todo.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long the loop waits for figures.
const COUNTING: Duration = Duration::from_millis(100);

/// What is told of it.
type Shown = Arc<Mutex<status::FastPath>>;

/// The loop's handle.
pub struct Fast {
    flag: Option<FastPath>,
    board: Arc<Board>,
    inbox: Arc<Inbox>,
    rights: Arc<Rights>,
    shown: Shown,
    /// What the worker asked of the loop has been done.
    liberal: bool,
    wish: Option<Result<Option<Wish>, String>>,
    worker: Option<Arc<Slot>>,
}

impl Fast {
    /// Nothing is started yet. A `flag` counts before the configuration.
    pub fn new(flag: Option<FastPath>, board: Arc<Board>, inbox: Arc<Inbox>, rights: Arc<Rights>) -> Fast {
        Fast { flag, board, inbox, rights, shown: Arc::default(), liberal: false, wish: None, worker: None }
    }

    /// To be told after each round.
    pub fn follow(&mut self, inputs: &Inputs, uplink: Option<(IfName, Option<Ipv4Addr>)>) {
        let Some(conf) = &inputs.conf else { return };
        if inputs.liberal && !std::mem::replace(&mut self.liberal, true) {
            self.send(Signal::Devices);
        }
        let wish = wish_of(self.flag, conf, uplink);
        if self.wish.as_ref() == Some(&wish) {
            return;
        }
        let first = self.wish.replace(wish.clone()).is_none();
        let said = wish.as_ref().err().cloned();
        match &said {
            Some(why) if self.flag != Some(FastPath::Auto) => self.board.set(Topic::FastPath, why.clone()),
            _ => self.board.clear(&Topic::FastPath),
        }
        lock(&self.shown).why = said;
        let wish = wish.ok().flatten();
        if first {
            // An agent before us may have left programs: in a network that is off by now, too.
            let named = [conf.network.map(IpNet::V4), conf.ipv6_network.map(IpNet::V6)].into_iter().flatten();
            let ours = wish.as_ref().map(|wish| wish.network);
            named.filter(|net| Some(*net) != ours).for_each(|net| worker::clear(&net));
        }
        if wish.is_none() && self.worker.is_none() {
            return;
        }
        self.send(Signal::Wish(wish));
    }

    fn send(&mut self, signal: Signal) {
        if self.worker.is_none() {
            let slot = Arc::new(Slot::default());
            let worker = Worker::new(self.shown.clone(), self.board.clone(), self.inbox.clone());
            let (told, listening) = (slot.clone(), slot.clone());
            let news = std::thread::Builder::new().name("fast news".to_owned());
            let started = self
                .rights
                .thread("fast path", Need::FastPath, move || worker.run(&told))
                .and_then(|()| news.spawn(move || listen(&listening)).map(drop));
            if let Err(error) = started {
                return self.board.set(Topic::FastPath, format!("start a thread: {error}"));
            }
            self.worker = Some(slot);
        }
        if let Some(worker) = &self.worker {
            worker.tell(signal);
        }
    }

    /// How it is, for `loden status`; `None` where it is off.
    pub fn shown(&mut self) -> Option<status::FastPath> {
        let off = matches!(self.wish, None | Some(Ok(None)));
        if !off && self.worker.is_some() {
            let (done, counted) = sync_channel(1);
            self.send(Signal::Count(done));
            // It may be busy with devices; then the figures are those of before.
            let _ = counted.recv_timeout(COUNTING);
        }
        (!off).then(|| lock(&self.shown).clone())
    }
}

/// What a configuration wants, or the flag before it; an error is why it cannot have it.
fn wish_of(
    flag: Option<FastPath>,
    conf: &NetConf,
    uplink: Option<(IfName, Option<Ipv4Addr>)>,
) -> Result<Option<Wish>, String> {
    let mode = match flag {
        Some(mode) => mode,
        None => FastPath::decode(&conf.backend).map_err(|error| error.to_string())?,
    };
    if mode == FastPath::Off {
        return Ok(None);
    }
    let tunnel = match conf.backend_type.to_ascii_lowercase().as_str() {
        "vxlan" => {
            let vni = VxlanConf::decode(&conf.backend).map_err(|error| error.to_string())?.vni;
            let name = |before| IfName::new(&format!("{before}{vni}")).map_err(|error| error.to_string());
            Some(Tunnel::Vxlan(name("flannel.")?, name("flannel-v6.")?))
        }
        "host-gw" => None,
        "udp" => {
            let port = Udp::new(conf, Families { v4: conf.enable_ipv4, v6: conf.enable_ipv6 })?.port();
            let Some((_, Some(address))) = uplink else { return Ok(None) };
            Some(Tunnel::Udp(address, port))
        }
        other => {
            return Err(format!("the backend {other} has no fast path; vxlan, host-gw and udp have"));
        }
    };
    let networks = conf.networks();
    let network = *networks.first().ok_or("the network configuration has no network")?;
    Ok(uplink.map(|(uplink, _)| Wish { mode, network, networks, uplink, tunnel }))
}

fn lock(shown: &Shown) -> std::sync::MutexGuard<'_, status::FastPath> {
    shown.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells the worker what the kernel tells.
fn listen(worker: &Slot) {
    loop {
        let heard = Monitor::open_for_flows().and_then(|mut monitor| {
            worker.tell(Signal::Devices);
            while let Some(event) = monitor.next()? {
                meaning(&event).into_iter().for_each(|signal| worker.tell(signal));
            }
            Ok(())
        });
        let Err(error) = heard else { return };
        tracing::warn!("follow the kernel's notifications for the fast path: {error}; again in 1 s");
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// What an event means for flows. Neighbours and forwarding entries of others come and go by themselves, and only one with
/// another hardware address counts; what else they change is noticed when a flow is carried over the slow path again,
/// within its lifetime.
fn meaning(event: &Event) -> Option<Signal> {
    match event {
        Event::Link(..) | Event::Addr(_) | Event::Qdisc(_) | Event::Overrun => Some(Signal::Devices),
        Event::Route(..) | Event::Rule(_) | Event::Nft(_) | Event::OtherNft | Event::Moved(_) => {
            Some(Signal::Changed)
        }
        Event::Object(Key::Neigh(dev, _) | Key::Fdb(dev, _), now) => {
            (now.is_some() || backend::is_our_device(*dev)).then_some(Signal::Changed)
        }
        Event::Object(..) => Some(Signal::Changed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_for_the_worker_is_of_each_kind_one() {
        let slot = Slot::default();
        let (first, _) = sync_channel(1);
        let (second, counted) = sync_channel(1);
        for _ in 0..1000 {
            slot.tell(Signal::Changed);
            slot.tell(Signal::Count(first.clone()));
        }
        slot.tell(Signal::Wish(None));
        slot.tell(Signal::Count(second));
        let todo = slot.take(Duration::ZERO);
        assert_eq!((todo.wish.clone(), todo.void, todo.look), (Some(None), true, false));
        assert!(todo.count.is_some_and(|done| done.send(()).is_ok()) && counted.recv().is_ok());
        assert!(slot.take(Duration::ZERO).is_empty());
    }
    /// Networks and tunnel of what is wanted, or why nothing is.
    #[test]
    fn either_family_is_enough() {
        let uplink = IfName::fixed("eth0");
        let six = r#""EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:10::/48""#;
        let four = r#""Network":"10.244.0.0/16""#;
        let dual = r#""Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10::/48""#;
        let own = Ipv4Addr::new(192, 0, 2, 11);
        let vxlan = Tunnel::Vxlan(IfName::fixed("flannel.1"), IfName::fixed("flannel-v6.1"));
        for (networks, backend, address, wanted) in [
            (four, "vxlan", Some(own), Ok(Some(("10.244.0.0/16", Some(vxlan))))),
            (dual, "vxlan", Some(own), Ok(Some(("10.244.0.0/16 fd00:10::/48", Some(vxlan))))),
            (six, "vxlan", None, Ok(Some(("fd00:10::/48", Some(vxlan))))),
            (six, "host-gw", Some(own), Ok(Some(("fd00:10::/48", None)))),
            // A network of a family that is off does not count.
            (&format!("{four},{six}"), "host-gw", None, Ok(Some(("fd00:10::/48", None)))),
            (four, "udp", Some(own), Ok(Some(("10.244.0.0/16", Some(Tunnel::Udp(own, 8285)))))),
            (four, "udp", None, Ok(None)),
            (six, "udp", Some(own), Err("\"udp\" carries IPv4 only, and EnableIPv6 is true")),
            (six, "wireguard", None, Err("the backend wireguard has no fast path")),
        ] {
            let text = format!(r#"{{{networks},"Backend":{{"Type":"{backend}","FastPath":"on"}}}}"#);
            let conf = NetConf::parse(&text).and_then(NetConf::validate).expect("a configuration");
            let wish = wish_of(None, &conf, Some((uplink, address)));
            let shown = wish.map(|wish| {
                wish.map(|wish| {
                    (wish.networks.iter().map(IpNet::to_string).collect::<Vec<_>>().join(" "), wish.tunnel)
                })
            });
            match (shown, wanted) {
                (Err(said), Err(why)) => assert!(said.contains(why), "{text}: {said}"),
                (shown, wanted) => {
                    let wanted = wanted.map(|wish| wish.map(|(nets, tunnel)| (nets.to_owned(), tunnel)));
                    assert_eq!(shown, wanted.map_err(str::to_owned), "{text}");
                }
            }
        }
    }
}
