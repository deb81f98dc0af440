//! The one loop: inputs → wanted → difference → steps. It is the only writer of kernel state in the
//! agent and runs on one ordinary thread.
//!
//! ```text
//!  wake: inputs changed │ kernel news │ retry due │ full resync due
//!    1  facts      when interfaces, addresses or routes changed
//!    2  wanted   ← what changed of facts, own lease, checked peers, rules
//!    3  actual   ← kernel.read(scope)   at start, on surprising news, after an error, every resync
//!    4  steps    ← diff(wanted, actual) less what is backing off; only of what changed, if the rest is known
//!    5  nothing is deleted before our lease and a complete list of peers are there; no stranger kept out
//!    6  devices first, then read again, then the rest in one batch
//!    7  failures get a back-off of their own; the report goes to the outputs
//! ```
//!
//! Time is passed in as milliseconds of a monotonic clock.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use model::claims::{doubles, judge::Judge};
use model::{IfName, LeaseAttrs, Mac, NetConf, Peers};
use plan::backend::{self, Backend};
use plan::order::{self, Order};
use plan::rules::{self, Choice};
use plan::state::{LinkKind, Scope, TableKey};
use plan::tracker::Tracker;
use plan::uplink;
use plan::{Assembly, Facts, Key, Object, State, Step, Touched, diff, diff_within, handover, sources};
use store::Remembered;

use crate::board::Topic;
use crate::changing::{Former, Neighbours};
use crate::inputs::Inputs;

mod done;
pub mod drift;
mod laid;
mod look;
mod outside;
mod steps;

use drift::{Believed, Drift};
use laid::{Laid, Of};
use outside::Outside;

/// Everything is read and compared again at least this often.
pub const RESYNC_MS: u64 = 30_000;
/// Nodes that announce the same are looked for at most this often: a warning is worth no more.
const DOUBLES_MS: u64 = 1_000;
/// While the host is not understood, or the kernel does not answer, it is asked again this often.
const ASK_AGAIN_MS: u64 = 1_000;

/// The border to the kernel, real or simulated.
pub trait Kernel {
    /// Reads the host. `peers` are the addresses whose reachability is asked for.
    fn facts(
        &mut self,
        conf: &NetConf,
        remembered: &Remembered,
        backend: &dyn Backend,
        peers: &[IpAddr],
    ) -> Result<Facts, String>;
    /// How the last reading of the host came to its interface; `None` before the first.
    fn decision(&self) -> Option<Result<uplink::Choice, uplink::Refusal>>;
    /// Reads what is ours, see [`Scope`].
    fn read(&mut self, scope: &Scope, wanted: &State) -> Result<State, String>;
    /// The part of it that is in iptables.
    fn read_iptables(&mut self, scope: &Scope, wanted: &State) -> Vec<Object>;
    /// What the last reading found of peers that do not answer.
    fn silence(&self) -> Option<String> {
        None
    }
    /// Does the steps in order; one answer each, failures as text with the command.
    fn apply(&mut self, steps: &[Step]) -> Vec<Result<(), String>>;
    /// Hands over a step on an object that the kernel does not hold; the outcome comes as news.
    fn ask(&mut self, step: Step);
}

/// What one round found and did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// What our lease shall say; `None` until the host is understood.
    pub attrs: Option<LeaseAttrs>,
    /// MTU for pods.
    pub mtu: u32,
    /// A round with our lease and all peers has been done, and devices, addresses and rules stand.
    pub converged: bool,
    /// The last good state of this node stands in for the store: it may be old, so nothing is deleted.
    pub recalled: bool,
    /// Peers programmed, and those left out with the reason.
    pub peers: usize,
    /// Subnets left out, and why.
    pub left_out: BTreeMap<String, String>,
    /// What is wrong now, one sentence each.
    pub troubles: BTreeMap<Topic, String>,
    /// Whether the round came so far as to look at every object.
    pub looked: bool,
    /// Steps done.
    pub done: done::Done,
    /// What happened to devices that deserves a warning.
    pub notes: Vec<String>,
    /// Objects in the wanted state.
    pub objects: usize,
    /// Leases of others that changed.
    pub peer_changes: usize,
    /// Steps that failed.
    pub failed: usize,
    /// The kernel was read as a whole.
    pub full: bool,
    /// What others did to objects of ours since the last look.
    pub drift: Drift,
}

/// Wanted against actual, as a round left them.
pub struct Picture {
    /// How the interface was chosen, or that none was.
    pub decision: Option<Result<uplink::Choice, uplink::Refusal>>,
    /// The backend's type; empty without a configuration.
    pub backend: &'static str,
    /// What the kernel shall hold.
    pub wanted: State,
    /// How much of ours it holds.
    pub actual: usize,
    /// Steps from the one to the other that could not be done, and why not.
    pub left: Vec<(Step, Option<String>)>,
}

/// The loop's memory. All of it can be lost: the next round rebuilds it from the kernel.
pub struct Reconciler<K> {
    kernel: K,
    choice: Choice,
    conf: Option<(NetConf, Box<dyn Backend>)>,
    facts: Option<Facts>,
    /// Why the host is not understood now; the facts of before stand, so that what works goes on.
    lost: Option<String>,
    /// What the facts were made with.
    remembered: Remembered,
    asked: Vec<IpAddr>,
    neighbours: Neighbours,
    pinned: BTreeMap<IfName, Mac>,
    former: Former,
    judge: Judge,
    laid: Laid,
    assembly: Assembly,
    doubles: Doubles,
    actual: Option<State>,
    believed: Believed,
    /// All differences are known to the tracker: only what changes has to be compared.
    settled: bool,
    /// A step failed: what we believe may be wrong.
    stale: bool,
    /// Facts or kernel could not be read: when to try again.
    again_ms: Option<u64>,
    read_ms: u64,
    swept: bool,
    tracker: Tracker,
    outside: Outside,
    iptables: Resync,
    /// What is to be said about the configuration.
    remark: Option<&'static str>,
}

/// What may be done to the kernel yet.
#[derive(Clone, Copy)]
struct May {
    /// Deleting: our lease and a complete list of peers are there.
    sweep: bool,
    /// Keeping strangers out: it is known who is none, be it from a list that may be old.
    guard: bool,
}

/// When iptables is read again: of the legacy variant's changes nobody tells.
struct Resync {
    every_ms: u64,
    /// `None` while nothing is there of which nobody tells.
    due_ms: Option<u64>,
}

/// Nodes that announce the same, as last found.
#[derive(Default)]
struct Doubles {
    troubles: Vec<(Topic, String)>,
    found_ms: u64,
    /// The leases looked at.
    of: Peers,
    /// When to look again; `None` while nothing changed.
    due_ms: Option<u64>,
}

impl<K: Kernel> Reconciler<K> {
    /// A loop that has seen nothing yet. Rules of iptables-legacy are looked at every `iptables_resync_ms`.
    pub fn new(kernel: K, choice: Choice, iptables_resync_ms: u64) -> Reconciler<K> {
        Reconciler {
            kernel,
            choice,
            conf: None,
            facts: None,
            lost: None,
            remembered: Remembered::default(),
            asked: Vec::new(),
            neighbours: Neighbours::default(),
            pinned: BTreeMap::new(),
            former: Former::default(),
            judge: Judge::default(),
            laid: Laid::default(),
            assembly: Assembly::default(),
            doubles: Doubles::default(),
            actual: None,
            believed: Believed::default(),
            settled: false,
            stale: false,
            again_ms: None,
            read_ms: 0,
            swept: false,
            tracker: Tracker::default(),
            outside: Outside::default(),
            iptables: Resync { every_ms: iptables_resync_ms, due_ms: None },
            remark: None,
        }
    }

    /// The interface that carries the traffic between hosts.
    pub fn uplink(&self) -> Option<IfName> {
        self.facts.as_ref().map(|facts| facts.uplink.name)
    }

    /// Its address, which a tunnel sends from.
    pub fn uplink_v4(&self) -> Option<Ipv4Addr> {
        self.facts.as_ref().and_then(|facts| facts.uplink.addresses.v4)
    }

    /// When the next round is due though nothing happens.
    pub fn due_ms(&self) -> u64 {
        let resync = Some(self.read_ms + RESYNC_MS);
        let [doubles, iptables] = [self.doubles.due_ms, self.iptables.due_ms];
        let due =
            [resync, self.again_ms, self.tracker.next_retry_ms(), doubles, iptables, self.former.due_ms()];
        due.into_iter().flatten().min().unwrap_or_default()
    }

    /// One round.
    pub fn round(&mut self, inputs: &Inputs, now_ms: u64) -> Report {
        let mut report = Report::default();
        let resync = now_ms >= self.read_ms + RESYNC_MS;
        let again = self.again_ms.is_some_and(|at| at <= now_ms);
        let iptables_due = self.iptables.due_ms.take_if(|due| *due <= now_ms).is_some();
        if let Err(trouble) = self.understand(inputs, resync || again) {
            (self.read_ms, self.again_ms) = (now_ms, Some(now_ms + ASK_AGAIN_MS));
            report.troubles.insert(Topic::Host, trouble);
            return report;
        }
        self.again_ms = self.lost.is_some().then_some(now_ms + ASK_AGAIN_MS);
        self.hear(&inputs.news.outcomes, now_ms, &mut report);
        report.notes.extend(self.remark.take().map(str::to_owned));
        let Some((scope, touched)) = self.plan(inputs, now_ms, &mut report) else {
            self.read_ms = now_ms;
            return report;
        };
        // Lent to the rest of the round, which needs all of us.
        let assembly = std::mem::take(&mut self.assembly);
        let wanted = assembly.wanted();
        let sweep = inputs.own.is_some() && !inputs.recalled.own && inputs.view.complete;
        let known = inputs.own.is_some() && (inputs.view.complete || inputs.recalled.peers);
        let surprised =
            inputs.news.entries.iter().any(|(key, now)| self.is_surprise(&scope, wanted, key, now));
        let stale = std::mem::take(&mut self.stale);
        if resync || inputs.news.ours || surprised || stale {
            self.believed.keep(&scope, self.actual.take());
        }
        if inputs.news.iptables || iptables_due {
            self.reread_iptables(&scope, wanted, now_ms, &mut report);
        }
        // Of a host that is not understood it is not known which way a changed peer has now.
        let may = May { sweep: sweep && self.lost.is_none(), guard: known };
        match self.converge(&scope, wanted, touched, may, now_ms, &mut report) {
            Ok(()) => self.swept |= sweep,
            Err(error) => {
                self.actual = None;
                (self.read_ms, self.again_ms) = (now_ms, Some(now_ms + ASK_AGAIN_MS));
                report.troubles.insert(Topic::Kernel, error);
            }
        }
        self.settle(wanted, &mut report);
        report.troubles.extend(self.lost.clone().map(|trouble| (Topic::Host, trouble)));
        report.troubles.extend(self.kernel.silence().map(|trouble| (Topic::Silence, trouble)));
        report.looked = true;
        let understood = self.lost.is_none() && self.actual.is_some();
        report.recalled = known && !sweep;
        let swept = self.swept || report.recalled;
        report.converged =
            known && understood && swept && !self.critical_failure() && !self.outside.waits_for_critical();
        report.objects = wanted.len();
        self.assembly = assembly;
        report
    }

    /// What the last round left, for people. Costs a plan and a comparison.
    pub fn picture(&self) -> Picture {
        let mut picture = Picture {
            decision: self.kernel.decision(),
            backend: "",
            wanted: State::default(),
            actual: self.actual.as_ref().map_or(0, State::len),
            left: Vec::new(),
        };
        let (Some((_, backend)), Some(_)) = (&self.conf, &self.facts) else { return picture };
        picture.backend = backend.kind();
        picture.wanted = self.assembly.wanted().clone();
        if let Some(actual) = &self.actual {
            let found = diff(&picture.wanted, actual);
            let reason = |key: &Key| {
                self.tracker
                    .iter()
                    .find(|(failed, _)| *failed == key)
                    .map(|(_, failure)| failure.message.clone())
            };
            let steps = found.links.into_iter().chain(found.rest);
            picture.left = steps.map(|step| (step.clone(), reason(&step.key()))).collect();
            let foreign = found.foreign.iter().filter_map(|(dev, _)| picture.wanted.get(&Key::Link(*dev)));
            picture.left.extend(foreign.map(|want| (Step::Put(want.clone()), reason(&want.key()))));
        }
        picture
    }

    /// Configuration and facts. An error is a sentence for the operator; it is tried again.
    fn understand(&mut self, inputs: &Inputs, resync: bool) -> Result<(), String> {
        let Some(conf) = &inputs.conf else { return Ok(()) };
        if self.conf.as_ref().is_none_or(|(known, _)| known != conf) {
            let backend = backend::from_config(conf)?;
            self.remark = backend.remark();
            self.conf = Some((conf.clone(), backend));
            self.facts = None;
            self.laid.forget();
            self.assembly = Assembly::default();
            self.neighbours = Neighbours::default();
            // Rules of the mode before are looked for as at a start.
            self.swept = false;
        }
        let Some((conf, backend)) = &self.conf else { return Ok(()) };
        let asked = self
            .neighbours
            .follow(backend.as_ref(), &inputs.view.peers)
            .unwrap_or_else(|| self.asked.clone());
        let unknown = self.facts.is_none() || self.lost.is_some() || inputs.remembered != self.remembered;
        if resync || inputs.news.host || unknown || asked != self.asked {
            let facts = self.kernel.facts(conf, &inputs.remembered, backend.as_ref(), &asked);
            let mut facts = match facts.and_then(|facts| backend.check(&facts).map(|()| facts)) {
                Ok(facts) => facts,
                // An interface that is away for a moment must not stop what goes on without it.
                Err(trouble) => {
                    self.neighbours = Neighbours::default();
                    if self.facts.is_none() {
                        return Err(trouble);
                    }
                    self.lost = Some(trouble);
                    return Ok(());
                }
            };
            let away = self.lost.take().is_some();
            facts.pinned_macs = self.pinned.clone();
            facts.nexthops_in_use =
                self.facts.as_ref().map_or(facts.nexthops_in_use, |old| old.nexthops_in_use);
            self.asked = asked;
            self.remembered.clone_from(&inputs.remembered);
            if away || self.facts.as_ref() != Some(&facts) {
                // The host is another one now: what failed may succeed, and what stood may be gone.
                self.tracker.forgive();
                self.stale = true;
                self.facts = Some(facts);
                self.laid.forget();
            }
        }
        Ok(())
    }

    /// Brings the wanted state up to date; gives what of the kernel is ours to touch, and which part of the
    /// wanted state may be another one than last time. Nothing while configuration or facts are missing.
    fn plan(&mut self, inputs: &Inputs, now_ms: u64, report: &mut Report) -> Option<(Scope, Touched)> {
        let ((conf, backend), facts) = (self.conf.as_ref()?, self.facts.as_ref()?);
        report.attrs = (!backend.lease_waits(facts)).then(|| backend.attrs(facts));
        report.mtu = backend.mtu(facts);
        let (own, view) = (inputs.own.as_ref(), &inputs.view);
        let mut changes = Vec::new();
        if let Some(own) = own {
            changes = self.judge.judge(conf, own, &facts.local, &view.peers);
            report.peer_changes = changes.len();
        }
        let (liberal, summed_here) = (inputs.liberal, inputs.summed_here);
        let of = Of { own: own.map(|own| own.subnets), choice: self.choice, liberal, summed_here };
        let rules = self.laid.objects(of, conf, backend.as_ref(), facts);
        let accepted = self.judge.accepted();
        let touched = self.assembly.update(backend.as_ref(), facts, own, rules, accepted, &changes);

        report.left_out.clone_from(&view.rejected);
        if own.is_some() {
            report.peers = accepted.len();
            for (subnets, reasons) in self.assembly.rejected() {
                report.left_out.insert(subnets.to_string(), reasons.join("; "));
            }
            report.left_out.extend(self.judge.refused().cloned());
        }
        // A lease that is refused changes nothing of the wanted state, and may be the double.
        let anew = touched == Touched::All;
        if self.doubles.due_ms.is_none() && (anew || !view.peers.changes(&self.doubles.of).is_empty()) {
            self.doubles.due_ms = Some(self.doubles.found_ms + DOUBLES_MS);
        }
        if self.doubles.due_ms.is_some_and(|due| due <= now_ms) {
            let found = doubles::find(own, &view.peers);
            let trouble = |double: &doubles::Double| {
                (Topic::Double(double.what.to_string()), double.sentence(&view.names))
            };
            let troubles = found.iter().map(trouble).collect();
            self.doubles = Doubles { troubles, found_ms: now_ms, due_ms: None, of: view.peers.clone() };
        }
        report.troubles.extend(self.doubles.troubles.clone());

        // In the order of keys sysctls come before everything there is much of.
        let wanted = self.assembly.wanted().iter();
        let few = wanted.take_while(|(key, _)| {
            order::is_rules(key) || matches!(key, Key::Link(_) | Key::Tunnel(_) | Key::Sysctl(_))
        });
        let sysctl =
            |(key, _): (&Key, _)| if let Key::Sysctl(path) = key { Some(path.clone()) } else { None };
        let mut devices: BTreeSet<IfName> = backend.own_devices(facts).into_iter().collect();
        let named = backend.devices();
        let mut tables: BTreeSet<TableKey> = rules::our_keys(conf, &facts.taken)
            .chain(sources::keys(named.clone()))
            .chain(conf.networks().into_iter().map(backend::ipsec::table_key))
            .collect();
        let former: Vec<IfName> =
            facts.devices.keys().copied().filter(|device| !named.contains(device)).collect();
        let needed = !former.is_empty() && self.neighbours.others(backend.as_ref(), own);
        if self.former.over(!former.is_empty(), needed, now_ms) && own.is_some() && view.complete {
            tables.extend(sources::keys(former.clone()));
            devices.extend(former);
        }
        let scope = Scope {
            devices,
            networks: conf.networks(),
            uplink: Some(facts.uplink.name),
            tables,
            iptables: rules::iptables_keys(conf, &facts.iptables, !self.swept),
            sysctls: few.filter_map(sysctl).collect(),
            policies: facts.xfrm || backend.kind() == backend::ipsec::KIND,
            adopt: !self.swept,
        };
        Some((scope, touched))
    }

    /// Brings the kernel to the wanted state as far as it can be done now.
    fn converge(
        &mut self,
        scope: &Scope,
        wanted: &State,
        touched: Touched,
        may: May,
        now_ms: u64,
        report: &mut Report,
    ) -> Result<(), String> {
        if self.actual.is_none() {
            (self.settled, report.full) = (false, true);
            self.reread(scope, wanted, now_ms)?;
            self.compare(scope, wanted, report);
        }
        let actual = self.actual.get_or_insert_default();
        let found = match touched {
            Touched::Keys(mut keys) if self.settled => {
                keys.extend(self.tracker.iter().map(|(key, _)| key.clone()));
                keys.append(&mut self.outside.heard);
                // Read by themselves.
                keys.extend(scope.iptables.iter().map(|key| Key::Iptables(*key)));
                diff_within(wanted, actual, &keys)
            }
            _ => diff(wanted, actual),
        };
        for (device, why) in &found.recreated {
            report.notes.push(format!("device {device} does not fit, making it anew: its {why}"));
        }
        for (device, why) in &found.foreign {
            let message = format!(
                "device {device} {why} and not ours to remove; remove it with `ip link delete {device}` or rename it"
            );
            self.tracker.failed(Key::Link(*device), message, now_ms);
        }
        let links = self.ready(found.links, may, now_ms);
        let rest = if links.is_empty() {
            found.rest
        } else {
            self.apply(links, wanted, now_ms, report);
            // The kernel drops routes and neighbours with a device without saying so.
            self.reread(scope, wanted, now_ms)?;
            self.pin(scope);
            diff(wanted, self.actual.get_or_insert_default()).rest
        };
        self.pin(scope);
        let rest = self.ready(rest, may, now_ms);
        let order = Order::of(rest, wanted, self.actual.get_or_insert_default());
        self.settled = may.sweep && order.complete;
        self.apply(order.first, wanted, now_ms, report);
        self.ask(order.outside);
        if !order.last.is_empty() {
            if order::may_go(&order.last, wanted, self.actual.get_or_insert_default()) {
                self.apply(order.last, wanted, now_ms, report);
            } else {
                self.settled = false;
            }
        }
        Ok(())
    }

    /// The last thing an agent does, see [`handover`]. Gives what failed.
    pub fn hand_over(&mut self) -> Vec<String> {
        let steps = self.actual.take().map(|actual| handover::steps(&actual)).unwrap_or_default();
        if steps.is_empty() {
            return Vec::new();
        }
        self.kernel.apply(&steps).into_iter().filter_map(Result::err).collect()
    }

    /// From its first appearance a device keeps its address for as long as we run: peers know it.
    fn pin(&mut self, scope: &Scope) {
        let Some(actual) = &self.actual else { return };
        for dev in &scope.devices {
            // Somebody else's device in the way is no device of ours.
            let ours = actual.link(*dev).filter(|link| matches!(link.kind, LinkKind::Vxlan(_)));
            if let Some(mac) = ours.and_then(|link| link.mac) {
                self.pinned.entry(*dev).or_insert(mac);
            }
        }
        if let Some(facts) = &mut self.facts {
            facts.pinned_macs.clone_from(&self.pinned);
        }
    }

    /// Forgets failures that are over and reports those that are not.
    fn settle(&mut self, wanted: &State, report: &mut Report) {
        let Some(actual) = &self.actual else {
            // What the kernel holds is not known, so neither is what is over.
            return self.tell(report);
        };
        self.tracker.settle(|key| match (wanted.get(key), actual.get(key)) {
            (Some(want), Some(have)) => !have.is(want),
            (want, have) => want != have,
        });
        self.tell(report);
    }

    fn tell(&self, report: &mut Report) {
        let topic = |key: &Key| Topic::Object(format!("{key:?}"));
        report.troubles.extend(self.tracker.iter().map(|(key, f)| (topic(key), f.message.clone())));
    }

    fn critical_failure(&self) -> bool {
        self.tracker.iter().any(|(key, _)| key.is_critical())
    }
}
