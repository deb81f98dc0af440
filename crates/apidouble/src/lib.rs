//! A Kubernetes API server for tests: the few kinds Loden uses, with every fault on command.
//!
//! [`Double::start`] listens at a [`Door`] (loopback, or a listener made in a network namespace) on a thread
//! of its own. The handle creates, changes and reads objects past HTTP, tells which requests came, and
//! commands faults: on requests to come ([`Double::fail`]), on watches that are open ([`Double::strike`]), on
//! the door itself ([`Double::shut`]).
//!
//! Where a real server and this one differ beyond what `docs/design/apidouble.md` names, this one is wrong.

mod access;
mod authority;
mod body;
mod call;
mod check;
mod client;
mod clock;
mod cluster;
mod discovery;
mod door;
mod fault;
mod kind;
mod list;
mod options;
mod patch;
pub mod program;
mod real;
mod refusal;
mod sample;
mod serve;
mod shared;
mod watch;
mod world;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc as answers;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::runtime::Builder;
use tokio::sync::{mpsc, oneshot, watch as slot};

pub use access::Rule;
pub use call::Call;
pub use client::{Answer, Client, Reply};
pub use cluster::{Cluster, FLANNEL, Stage, Who, path_of};
pub use door::{Bind, Door};
pub use fault::{Effect, Pick, Stroke};
pub use kind::*;
pub use real::Real;
pub use refusal::Refusal;
pub use sample::{full_node, node};
pub use shared::Seen;

use authority::Authority;
use door::{Opened, Order, Ordered};
use fault::Fault;
use shared::Shared;
use world::Part;

/// A running double; it ends when this is dropped.
#[derive(Debug)]
pub struct Double {
    shared: Arc<Shared>,
    authority: Authority,
    tls: bool,
    address: SocketAddr,
    orders: mpsc::UnboundedSender<Ordered>,
    slams: slot::Sender<u64>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Double {
    /// Starts one. It listens when this returns.
    ///
    /// # Errors
    /// When listening, or making certificates, fails.
    pub fn start(door: Door) -> io::Result<Self> {
        let authority = Authority::new()?;
        let tls = door.tls;
        let mut opened = Opened::new(door, |names| authority.acceptor(names))?;
        let address = opened.address()?;
        keep_port(&mut opened, address);
        let shared = Arc::new(Shared::default());
        let (orders, ordered) = mpsc::unbounded_channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let slams = slot::Sender::new(0);
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let attending = door::attend(shared.clone(), opened, ordered, slams.subscribe());
        let thread = thread::Builder::new().name("apidouble".into()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = attending => {}
                    _ = stopped => {}
                }
            });
            runtime.shutdown_background();
        })?;
        Ok(Self { shared, authority, tls, address, orders, slams, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:PORT`, or `https://…`.
    pub fn url(&self) -> String {
        format!("{}://{}", if self.tls { "https" } else { "http" }, self.address)
    }

    /// Certificate of the authority, as PEM.
    pub fn ca_pem(&self) -> &str {
        &self.authority.pem
    }

    /// A kubeconfig for this server, with a token unless it is empty.
    pub fn kubeconfig(&self, token: &str) -> String {
        cluster::kubeconfig(&self.url(), self.ca_pem(), token)
    }

    /// A client of this server, with a token unless it is empty.
    pub fn client(&self, token: &str) -> Client {
        Client { url: self.url(), ca_pem: self.ca_pem().to_owned(), token: token.to_owned() }
    }

    // ---- objects ----

    /// A new object; kinds with namespaces need `metadata.namespace`.
    ///
    /// # Errors
    /// What the server would answer.
    pub fn create(&self, kind: &'static Kind, object: Value) -> Result<Value, Refusal> {
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
        self.change(|world| world.create(kind, &namespace, object))
    }

    /// An object, or none. `name` is `NAMESPACE/NAME` for kinds with namespaces.
    pub fn get(&self, kind: &'static Kind, name: &str) -> Option<Value> {
        self.shared.lock().world.get(kind, &key(name)).ok().map(|stored| stored.value())
    }

    /// All objects of a kind.
    pub fn list(&self, kind: &'static Kind) -> Vec<Value> {
        self.shared.lock().world.list(kind, "").iter().map(|(_, stored)| stored.value()).collect()
    }

    /// Changes an object in any part, `status` too.
    ///
    /// # Errors
    /// What the server would answer.
    pub fn update(
        &self,
        kind: &'static Kind,
        name: &str,
        edit: impl FnOnce(&mut Value),
    ) -> Result<Value, Refusal> {
        self.change(|world| {
            world.write(kind, &key(name), Part::All, |mut value| {
                edit(&mut value);
                Ok(value)
            })
        })
    }

    /// Changes an object by a merge patch (RFC 7396).
    ///
    /// # Errors
    /// What the server would answer.
    pub fn merge(&self, kind: &'static Kind, name: &str, change: &Value) -> Result<Value, Refusal> {
        self.update(kind, name, |value| patch::merge(value, change))
    }

    /// Removes an object; gives its last state.
    ///
    /// # Errors
    /// 404.
    pub fn delete(&self, kind: &'static Kind, name: &str) -> Result<Value, Refusal> {
        self.change(|world| world.delete(kind, &key(name)))
    }

    /// The newest revision.
    pub fn revision(&self) -> u64 {
        self.shared.lock().world.revision
    }

    /// Forgets the history: watches, pages and exact lists from before are answered 410 from now on.
    pub fn compact(&self) {
        self.shared.lock().world.compact();
    }

    fn change(
        &self,
        with: impl FnOnce(&mut world::World) -> Result<Arc<world::Stored>, Refusal>,
    ) -> Result<Value, Refusal> {
        let done = with(&mut self.shared.lock().world).map(|stored| stored.value());
        self.shared.ring();
        done
    }

    // ---- access ----

    /// A fresh bearer token for `user` (as `system:serviceaccount:kube-flannel:flannel`) with these rules.
    /// Requests without a token may do everything until [`Self::forbid_anonymous`].
    pub fn token(&self, user: &str, rules: Vec<Rule>) -> String {
        self.shared.lock().access.token(user, rules)
    }

    /// Other rules for a user.
    pub fn grant(&self, user: &str, rules: &[Rule]) {
        self.shared.lock().access.grant(user, rules);
    }

    /// From now on a token is answered 401.
    pub fn expire(&self, token: &str) {
        self.shared.lock().access.set_valid(token, false);
    }

    /// Makes an expired token good again.
    pub fn renew(&self, token: &str) {
        self.shared.lock().access.set_valid(token, true);
    }

    /// Requests without a token get 403.
    pub fn forbid_anonymous(&self) {
        self.shared.lock().access.anonymous.clear();
    }

    // ---- what came ----

    /// Every request so far, oldest first.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.lock().seen.clone()
    }

    /// How many requests had this verb and resource (`nodes`, `nodes/status`); an empty word stands for any.
    pub fn count(&self, verb: &str, resource: &str) -> usize {
        let pick = Pick::of(verb, resource);
        self.shared.lock().seen.iter().filter(|seen| pick.hits(&seen.call, &seen.user)).count()
    }

    /// Forgets the requests so far.
    pub fn forget(&self) {
        self.shared.lock().seen.clear();
    }

    /// Watches that are open.
    pub fn watches(&self) -> usize {
        self.shared.lock().watches
    }

    /// Waits until `condition` holds, looking again whenever something changed here; whether it came to hold.
    pub fn wait(&self, limit: Duration, mut condition: impl FnMut(&Self) -> bool) -> bool {
        let end = Instant::now() + limit;
        while !condition(self) {
            if Instant::now() >= end {
                return false;
            }
            thread::sleep(Duration::from_millis(2));
        }
        true
    }

    // ---- faults ----

    /// The next `times` requests that `pick` hits suffer `effect` (`usize::MAX`: all until [`Self::heal`]).
    pub fn fail(&self, pick: Pick, effect: Effect, times: usize) {
        self.shared.lock().faults.push(Fault { pick, effect, left: times });
    }

    /// No faults lie in wait any more, and the door is open.
    ///
    /// # Errors
    /// When listening again fails.
    pub fn heal(&self) -> io::Result<()> {
        self.shared.lock().faults.clear();
        self.order(Order::Open)
    }

    /// Does something to the watches that are open.
    pub fn strike(&self, stroke: Stroke) {
        {
            let mut inner = self.shared.lock();
            let revision = inner.world.revision;
            inner.strokes.push((revision, stroke));
        }
        self.shared.ring();
    }

    /// Breaks all connections.
    pub fn cut(&self) {
        self.slams.send_modify(|count| *count += 1);
    }

    /// Nobody listens any more, and all connections break: as if the server were not there.
    ///
    /// # Errors
    /// When the double has ended.
    pub fn shut(&self) -> io::Result<()> {
        self.order(Order::Shut)?;
        self.cut();
        Ok(())
    }

    /// Connections are taken and nothing follows, not even TLS; those that were there go on.
    ///
    /// # Errors
    /// When the double has ended.
    pub fn go_deaf(&self) -> io::Result<()> {
        self.order(Order::Deaf)
    }

    /// Listens again, at the same address.
    ///
    /// # Errors
    /// When that fails.
    pub fn open(&self) -> io::Result<()> {
        self.order(Order::Open)
    }

    fn order(&self, order: Order) -> io::Result<()> {
        let (answer, answered) = answers::channel();
        let ended = |_| io::Error::other("the double has ended");
        self.orders.send((order, answer)).map_err(|_| io::Error::other("the double has ended"))?;
        answered.recv().map_err(ended)?
    }

    /// Whether streaming lists (`sendInitialEvents`) are known; older servers answer them 422.
    pub fn set_streaming_lists(&self, known: bool) {
        self.shared.lock().streaming = known;
    }

    /// Pause between bookmarks of watches begun from now on.
    pub fn set_bookmark_pause(&self, pause: Duration) {
        self.shared.lock().bookmark_every = pause;
    }
}

impl Drop for Double {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _already_gone = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

/// A listener that was given any free port gets the same one again.
fn keep_port(opened: &mut Opened, address: SocketAddr) {
    let mut bind = std::mem::replace(&mut opened.bind, Box::new(|| Err(io::ErrorKind::Other.into())));
    opened.bind = Box::new(move || {
        let listener = bind()?;
        if listener.local_addr()?.port() == address.port() {
            return Ok(listener);
        }
        std::net::TcpListener::bind(address)
    });
}

fn key(name: &str) -> world::Key {
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    (namespace.to_owned(), name.to_owned())
}

/// RFC 4648 §4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let group =
            three.iter().fold(0_u32, |group, byte| group << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for place in 0..4 {
            let digit = DIGITS[(group >> (18 - 6 * place)) as usize & 63];
            text.push(if place <= three.len() { char::from(digit) } else { '=' });
        }
    }
    text
}
