//! Everything a lab consists of, and what can be done to it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use kernel::Netns;

use super::Owner;
use super::agent::{self, Agent};
use super::chain::{self, Chain};
use super::node::{Log, Place, converse, namespace, net_of, ourselves};
use super::stage::{self, SHARED};
use crate::error::{Doing, Error, Result};
use crate::proto;
use crate::show::counted;
use crate::spec::{Port, Spec, WIRE, check_name};
use crate::sys::Namespaces;
use crate::wire;

/// A host: its namespaces and its agent.
pub struct HostSlot {
    /// The process that holds the namespaces.
    pub place: Place,
    /// Where it is plugged in.
    pub port: Port,
    agent: Mutex<Option<Agent>>,
    log: Log,
}

/// A pod: its namespaces and what CNI said.
pub struct PodSlot {
    /// The process that holds the namespaces and serves the page.
    pub place: Place,
    /// Position of its host.
    pub host: usize,
    /// What is known of it.
    pub facts: proto::Pod,
}

/// A lab.
pub struct World {
    /// What it was to be.
    pub spec: Spec,
    /// Made without root.
    pub rootless: bool,
    /// When it was up.
    pub since: Instant,
    /// Hosts in order.
    pub hosts: Vec<HostSlot>,
    /// Pods by name; `None` while one is made or deleted.
    pods: Mutex<BTreeMap<String, Option<Arc<PodSlot>>>>,
    chain: Chain,
}

/// A place by name.
pub enum Found<'a> {
    /// A host.
    Host(&'a HostSlot),
    /// A pod.
    Pod(Arc<PodSlot>),
    /// The lab's own namespace.
    Wire,
}

impl World {
    /// Builds a lab from nothing: mounts, wire, hosts, store, agents, pods.
    ///
    /// # Errors
    /// The first thing that fails; what was made goes with the process.
    pub fn build(spec: Spec, rootless: bool, owner: &Owner) -> Result<World> {
        let start = Instant::now();
        stage::set_up(rootless)?;
        let conflist = Path::new(SHARED).join("conflist");
        std::fs::write(&conflist, spec.conflist()).doing(|| format!("write {}", conflist.display()))?;
        wire::lay(&spec)?;
        let hosts = each(spec.ports(), |port| {
            let fresh = libc::CLONE_NEWNET | libc::CLONE_NEWNS | libc::CLONE_NEWUTS;
            let place = Place::start(&port.host, &["__host", &port.host], Namespaces::default(), fresh)?;
            wire::plug(&port, &place.net()?, spec.mtu)?;
            Ok(HostSlot { place, port, agent: Mutex::new(None), log: Log::default() })
        })?;
        let chain = if spec.agents || spec.pods > 0 || spec.cni_bin_dir.is_some() {
            Chain::prepare(&spec)?
        } else {
            Chain::none()
        };
        let world = World { spec, rootless, since: Instant::now(), hosts, pods: Mutex::default(), chain };
        owner.step(world.describe_hosts(), start);
        if world.spec.agents {
            world.start_agents(owner)?;
        }
        if world.spec.pods > 0 {
            world.first_pods(owner)?;
        }
        world.write_hosts_file();
        Ok(world)
    }

    fn describe_hosts(&self) -> String {
        match (self.hosts.len(), self.spec.wires()) {
            (1, _) => "1 host".to_owned(),
            (n, 1) => format!("{n} hosts on one wire"),
            (n, wires) => format!("{n} hosts on {wires} wires with a router between"),
        }
    }

    fn start_agents(&self, owner: &Owner) -> Result<()> {
        let start = Instant::now();
        self.put_config(&self.spec.net_conf())?;
        owner.step("network configuration in the embedded store".to_owned(), start);
        let start = Instant::now();
        each((0..self.hosts.len()).collect(), |at| self.agent_start(&self.hosts[at]))?;
        owner.step(format!("{}, every one ready", counted(self.hosts.len(), "agent")), start);
        Ok(())
    }

    fn first_pods(&self, owner: &Owner) -> Result<()> {
        let start = Instant::now();
        each((0..self.hosts.len()).collect(), |at| {
            for n in 1..=self.spec.pods {
                self.pod_add(at, Some(format!("pod{}-{n}", at + 1)))?;
            }
            Ok(())
        })?;
        let pods = self.hosts.len() * self.spec.pods;
        owner.step(format!("{} connected through CNI", counted(pods, "pod")), start);
        Ok(())
    }

    /// Writes a network configuration into the store, through `loden` itself.
    fn put_config(&self, text: &str) -> Result<()> {
        let action = "write the network configuration (`loden config put -`)";
        let mut command = ourselves("loden");
        command.args(["config", "put", "-"]).env_clear().envs(agent::environment(&self.spec));
        let output = converse(command, text.as_bytes(), action)?;
        if output.status.success() {
            return Ok(());
        }
        let words = String::from_utf8_lossy(&output.stderr);
        let log = words.lines().map(str::to_owned).collect();
        Err(Error::Failed { what: format!("{action} failed: {}", output.status), log })
    }

    /// Names of all places in a file every host and pod sees as `/etc/hosts`.
    fn write_hosts_file(&self) {
        let mut text = String::from("127.0.0.1 localhost\n::1 localhost\n");
        for host in &self.hosts {
            for address in &host.port.addresses {
                text.push_str(&format!("{} {}\n", address.addr(), host.place.name));
            }
        }
        for pod in self.pods() {
            for address in &pod.facts.addresses {
                text.push_str(&format!("{address} {}\n", pod.facts.name));
            }
        }
        // The names are a convenience: a lab without them works.
        let _ = std::fs::write(stage::HOSTS_FILE, text);
    }

    // ---- places ----

    /// A host by name.
    ///
    /// # Errors
    /// There is none; the message lists those there are.
    pub fn host(&self, name: &str) -> Result<(usize, &HostSlot)> {
        self.hosts.iter().enumerate().find(|(_, h)| h.place.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.hosts.iter().map(|h| h.place.name.as_str()).collect();
            Error::said(format!("there is no host {name:?}; there are {}", names.join(", ")))
        })
    }

    /// Pods in order of their names.
    pub fn pods(&self) -> Vec<Arc<PodSlot>> {
        self.lock_pods().values().flatten().cloned().collect()
    }

    /// A pod by name.
    ///
    /// # Errors
    /// There is none.
    pub fn pod(&self, name: &str) -> Result<Arc<PodSlot>> {
        let found = self.lock_pods().get(name).cloned().flatten();
        found.ok_or_else(|| {
            Error::said(format!("there is no pod {name:?}; `loden lab pod list` shows those there are"))
        })
    }

    /// A host, a pod or the wire by name.
    ///
    /// # Errors
    /// There is none.
    pub fn find(&self, name: &str) -> Result<Found<'_>> {
        if name == WIRE {
            return Ok(Found::Wire);
        }
        if let Ok((_, host)) = self.host(name) {
            return Ok(Found::Host(host));
        }
        self.pod(name).map(Found::Pod).map_err(|_| {
            Error::said(format!("there is no host or pod {name:?}; `loden lab status` shows those there are"))
        })
    }

    /// Descriptors of a place's namespaces, for a program outside the lab.
    ///
    /// # Errors
    /// The place is gone.
    pub fn enter(&self, name: &str) -> Result<Namespaces> {
        let mut inside = match self.find(name)? {
            Found::Host(host) => host.place.inside()?,
            Found::Pod(pod) => pod.place.inside()?,
            Found::Wire => {
                let own = |kind: &str| own_namespace(kind);
                Namespaces {
                    net: Some(own("net")?),
                    mnt: Some(own("mnt")?),
                    uts: Some(own("uts")?),
                    ..Namespaces::default()
                }
            }
        };
        inside.pid = Some(own_namespace("pid")?);
        if self.rootless {
            inside.user = Some(own_namespace("user")?);
        }
        Ok(inside)
    }

    // ---- agents ----

    /// Starts a host's agent and waits until it is ready; gives its time in ms.
    ///
    /// # Errors
    /// It is running already, ends, or takes too long.
    pub fn agent_start(&self, host: &HostSlot) -> Result<f64> {
        let mut slot = locked(&host.agent);
        if let Some(agent) = slot.as_mut()
            && matches!(agent.state(), proto::Agent::Running { .. })
        {
            return Err(Error::said(format!("the agent of {} is running already", host.place.name)));
        }
        let agent = slot.insert(Agent::start(&host.place, &self.spec, host.log.clone())?);
        match agent.state() {
            proto::Agent::Running { ready_ms, .. } => Ok(ready_ms),
            _ => Ok(0.0),
        }
    }

    /// Ends a host's agent.
    pub fn agent_stop(&self, host: &HostSlot, kill: bool) {
        if let Some(agent) = locked(&host.agent).as_mut() {
            agent.stop(kill);
        }
    }

    /// How a host's agent is.
    pub fn agent_state(&self, host: &HostSlot) -> proto::Agent {
        locked(&host.agent).as_mut().map_or(proto::Agent::Absent, Agent::state)
    }

    /// Log lines of a host's agent or of a pod.
    ///
    /// # Errors
    /// There is no such place.
    pub fn logs(&self, name: &str) -> Result<Vec<String>> {
        match self.find(name)? {
            Found::Host(host) => Ok(host.log.all()),
            Found::Pod(pod) => Ok(pod.place.log.all()),
            Found::Wire => Ok(Vec::new()),
        }
    }

    // ---- pods ----

    /// Makes a pod on a host and connects it.
    ///
    /// # Errors
    /// The name is taken or bad, or the CNI chain fails; then nothing is left of it.
    pub fn pod_add(&self, host: usize, name: Option<String>) -> Result<proto::Pod> {
        let name = self.reserve(host, name)?;
        let made = self.make_pod(host, &name);
        let mut pods = self.lock_pods();
        match made {
            Ok(pod) => {
                let facts = pod.facts.clone();
                pods.insert(name, Some(Arc::new(pod)));
                Ok(facts)
            }
            Err(error) => {
                pods.remove(&name);
                Err(error)
            }
        }
    }

    fn reserve(&self, host: usize, name: Option<String>) -> Result<String> {
        let mut pods = self.lock_pods();
        let name = match name {
            Some(name) => name,
            None => (1..)
                .map(|n| format!("pod{}-{n}", host + 1))
                .find(|n| !pods.contains_key(n))
                .unwrap_or_default(),
        };
        check_name("pod", &name)?;
        if pods.contains_key(&name) || name == WIRE || self.host(&name).is_ok() {
            return Err(Error::said(format!("the name {name:?} is taken; choose another")));
        }
        pods.insert(name.clone(), None);
        Ok(name)
    }

    fn make_pod(&self, at: usize, name: &str) -> Result<PodSlot> {
        let host = &self.hosts[at].place;
        let inside = Namespaces { mnt: Some(host.namespace("mnt")?), ..Namespaces::default() };
        let fresh = libc::CLONE_NEWNET | libc::CLONE_NEWNS | libc::CLONE_NEWUTS;
        let place = Place::start(name, &["__pod", name, &host.name], inside, fresh)?;
        let added = match self.chain.add(host, &place) {
            Ok(added) => added,
            Err(error) => {
                place.end();
                return Err(error);
            }
        };
        let addresses = chain::addresses(&added.result);
        let mtu = wire::mtu(&place.net()?, chain::POD_DEVICE)?;
        let facts = proto::Pod {
            name: name.to_owned(),
            host: host.name.clone(),
            addresses,
            mtu,
            add_ms: added.ms,
            plugins: added.plugins,
            pid: place.pid(),
            result: added.result,
        };
        Ok(PodSlot { place, host: at, facts })
    }

    /// Disconnects a pod and ends it; gives the time of the CNI chain in ms.
    ///
    /// # Errors
    /// There is none, or the CNI chain fails; then the pod stays and can be deleted again.
    pub fn pod_del(&self, name: &str) -> Result<f64> {
        let pod = self.pod(name)?;
        let ms = self.chain.del(&self.hosts[pod.host].place, &pod.place, &pod.facts.result)?;
        let slot = self.lock_pods().remove(name).flatten();
        drop(pod);
        if let Some(pod) = slot.and_then(Arc::into_inner) {
            pod.place.end();
        }
        self.write_hosts_file();
        Ok(ms)
    }

    /// Renews what every place sees as `/etc/hosts`.
    pub fn names_changed(&self) {
        self.write_hosts_file();
    }

    fn lock_pods(&self) -> MutexGuard<'_, BTreeMap<String, Option<Arc<PodSlot>>>> {
        locked(&self.pods)
    }
}

impl Found<'_> {
    /// The place's network namespace.
    ///
    /// # Errors
    /// The place is gone.
    pub fn net(&self) -> Result<Netns> {
        match self {
            Found::Host(host) => host.place.net(),
            Found::Pod(pod) => pod.place.net(),
            Found::Wire => net_of(std::process::id()),
        }
    }

    /// Its addresses.
    pub fn addresses(&self) -> Vec<IpAddr> {
        match self {
            Found::Host(host) => host.port.addresses.iter().map(|n| n.addr()).collect(),
            Found::Pod(pod) => pod.facts.addresses.clone(),
            Found::Wire => Vec::new(),
        }
    }

    /// MTU of its pod device, or of the wire.
    pub fn mtu(&self, wire: u32) -> u32 {
        match self {
            Found::Pod(pod) => pod.facts.mtu,
            _ => wire,
        }
    }
}

fn own_namespace(kind: &str) -> Result<OwnedFd> {
    namespace(std::process::id(), kind).doing(|| format!("open the lab's own {kind} namespace"))
}

/// A lock whose holder panicked protects values that are replaced as a whole: they are still good.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does the same to several things at once, and gives the results in order or the first error.
pub fn each<T: Send, R: Send>(items: Vec<T>, work: impl Fn(T) -> Result<R> + Sync) -> Result<Vec<R>> {
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> = items.into_iter().map(|item| scope.spawn(move || work(item))).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<R>>| {
            thread.join().unwrap_or_else(|_| Err(Error::said("a thread of the supervisor panicked")))
        };
        threads.into_iter().map(join).collect()
    })
}
