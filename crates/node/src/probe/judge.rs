//! From what came of echoes to what is wrong, in one word and one sentence. Pure.

use std::net::IpAddr;
use std::time::Duration;

use super::{Plan, Target};

/// What came of one echo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It came back.
    Answered(Duration),
    /// Somebody, or our own kernel, says why not.
    Refused(String),
    /// Nothing came.
    Silence,
}

impl Outcome {
    fn passes(&self) -> bool {
        matches!(self, Outcome::Answered(_))
    }
}

/// Whether echo requests of the other node's agent came in through the tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Heard {
    /// Never: it runs flannel, or nothing has ever come.
    #[default]
    Never,
    /// They came, and have not for some minutes.
    Before,
    /// One came lately.
    Lately,
    /// One came since ours fail.
    Now,
}

/// One packet of an examination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A small echo through the tunnel.
    Inner,
    /// One of the pods' MTU.
    InnerFull,
    /// One of this many bytes, IP header included.
    InnerSized(u32),
    /// A small echo between the hosts.
    Outer,
    /// One of the interface's MTU.
    OuterFull,
    /// A datagram through the tunnel to a port where nobody listens, which the kernel there says.
    Datagram,
    /// The same without a checksum (IPv4 alone allows that).
    Unsummed,
    /// [`Step::Datagram`] again, later than the second for which a kernel may have kept its answer back
    /// (`icmp_ratelimit`).
    Repeated,
}

/// What one examination has shown so far; `None` is what was not tried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observation {
    /// Of [`Step::Inner`].
    pub inner: Option<Outcome>,
    /// Of [`Step::InnerFull`].
    pub inner_full: Option<Outcome>,
    /// Of each [`Step::InnerSized`], by size.
    pub sized: Vec<(u32, Outcome)>,
    /// Of [`Step::Outer`].
    pub outer: Option<Outcome>,
    /// Of [`Step::OuterFull`].
    pub outer_full: Option<Outcome>,
    /// Of [`Step::Datagram`]; refusal is what is hoped for.
    pub datagram: Option<Outcome>,
    /// Of [`Step::Unsummed`].
    pub unsummed: Option<Outcome>,
    /// Of [`Step::Repeated`].
    pub repeated: Option<Outcome>,
    /// What was heard from there.
    pub heard: Heard,
    /// The source address our kernel chooses for packets there, if it is not one of our subnet.
    pub strange_source: Option<IpAddr>,
}

/// Sizes tried where the full one does not pass, in bytes: what tunnels, DSL and the protocols' minima leave.
const SIZES: [u32; 7] = [1400, 1370, 1320, 1280, 1000, 576, 256];

impl Observation {
    /// The next packet; `None` at the end. A healthy target costs three.
    pub fn next(&self, target: &Target, plan: &Plan) -> Option<Step> {
        if self.inner.is_none() {
            return Some(Step::Inner);
        }
        let inner = self.inner.as_ref().is_some_and(Outcome::passes);
        if !inner {
            return self.outer.is_none().then_some(Step::Outer);
        }
        match &self.inner_full {
            None => return Some(Step::InnerFull),
            Some(full) if !full.passes() => {
                if self.outer_full.is_none() {
                    return Some(Step::OuterFull);
                }
                let found = self.sized.iter().any(|(_, outcome)| outcome.passes());
                let smaller = SIZES.into_iter().filter(|size| *size < plan.mtu);
                let untried = |size: &u32| self.sized.iter().all(|(tried, _)| tried != size);
                return smaller.filter(|_| !found).find(untried).map(Step::InnerSized);
            }
            Some(_) => {}
        }
        match (&self.datagram, &self.unsummed) {
            (None, _) => Some(Step::Datagram),
            (Some(Outcome::Silence), None) if target.net.addr().is_ipv4() => Some(Step::Unsummed),
            (Some(Outcome::Silence), Some(Outcome::Refused(_))) if self.repeated.is_none() => {
                Some(Step::Repeated)
            }
            _ => None,
        }
    }

    /// Notes what came of a step.
    pub fn note(&mut self, step: Step, outcome: Outcome) {
        match step {
            Step::Inner => self.inner = Some(outcome),
            Step::InnerFull => self.inner_full = Some(outcome),
            Step::InnerSized(size) => self.sized.push((size, outcome)),
            Step::Outer => self.outer = Some(outcome),
            Step::OuterFull => self.outer_full = Some(outcome),
            Step::Datagram => self.datagram = Some(outcome),
            Step::Unsummed => self.unsummed = Some(outcome),
            Step::Repeated => self.repeated = Some(outcome),
        }
    }

    /// Largest packet in bytes that passed through the tunnel.
    pub fn largest(&self, plan: &Plan) -> Option<u32> {
        let full = self.inner_full.as_ref().is_some_and(Outcome::passes);
        let sized = self.sized.iter().filter(|(_, outcome)| outcome.passes()).map(|(size, _)| *size);
        if full { Some(plan.mtu) } else { sized.max() }
    }

    /// Round trip of the small echo through the tunnel.
    pub fn rtt(&self) -> Option<Duration> {
        match self.inner {
            Some(Outcome::Answered(rtt)) => Some(rtt),
            _ => None,
        }
    }
}

/// The classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Packets of all sizes come back.
    Ok,
    /// The hosts do not reach each other.
    UnderlayDown,
    /// They do, and the tunnel's packets are dropped.
    TunnelDropped,
    /// Somebody on the way refuses.
    Refused,
    /// Only large packets are dropped.
    LargeDropped,
    /// One direction works, the other does not.
    OneWay,
    /// What the kernel sums up correctly leaves the interface wrong.
    Checksum,
    /// Our packets say to come from somewhere else.
    WrongSource,
    /// Packets come back, and the agent there has fallen silent.
    AgentDown,
    /// Nothing there answers yet, and nothing needs to.
    Unsure,
}

impl Verdict {
    /// All, in order.
    pub const ALL: [Verdict; 10] = [
        Verdict::Ok,
        Verdict::UnderlayDown,
        Verdict::TunnelDropped,
        Verdict::Refused,
        Verdict::LargeDropped,
        Verdict::OneWay,
        Verdict::Checksum,
        Verdict::WrongSource,
        Verdict::AgentDown,
        Verdict::Unsure,
    ];

    /// The word in JSON and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::UnderlayDown => "underlay_down",
            Verdict::TunnelDropped => "tunnel_dropped",
            Verdict::Refused => "refused",
            Verdict::LargeDropped => "large_dropped",
            Verdict::OneWay => "one_way",
            Verdict::Checksum => "checksum",
            Verdict::WrongSource => "wrong_source",
            Verdict::AgentDown => "agent_down",
            Verdict::Unsure => "unsure",
        }
    }

    /// Whether pods suffer, or would.
    pub fn is_bad(self) -> bool {
        !matches!(self, Verdict::Ok | Verdict::Unsure)
    }
}

/// What an examination that is over comes to.
pub fn classify(seen: &Observation, target: &Target, plan: &Plan) -> (Verdict, String) {
    let inner = target.inner;
    let carrier =
        if plan.carried_by.is_empty() || target.direct { "forwarded packets" } else { &plan.carried_by };
    if let Some(source) = seen.strange_source {
        return (
            Verdict::WrongSource,
            format!(
                "packets to {inner} leave with the source {source}, which is not of this node's subnet, so answers come \
                 beside the tunnel: look at `ip route get {inner}` and the address of {}",
                plan.device.as_deref().unwrap_or("the interface")
            ),
        );
    }
    match &seen.inner {
        Some(Outcome::Answered(_)) => {}
        Some(Outcome::Refused(why)) => {
            // An echo has no port: it is the tunnel's.
            let more = if why.starts_with("nothing listens") {
                format!(
                    ": no tunnel there takes {carrier}; it is down, or that agent does not run with the same Backend"
                )
            } else {
                String::new()
            };
            return (Verdict::Refused, format!("{inner} is refused: {why}{more}"));
        }
        Some(Outcome::Silence) | None => return silent(seen, target, carrier),
    }
    if let Some(full) = seen.inner_full.as_ref().filter(|full| !full.passes()) {
        let largest = seen.largest(plan);
        let most = largest.map_or(String::new(), |most| format!(", the largest that passed has {most}"));
        let why = match full {
            Outcome::Refused(why) => format!(" ({why})"),
            _ => String::new(),
        };
        let overhead = plan.outer_mtu.saturating_sub(plan.mtu);
        let (whose, fix) = match &seen.outer_full {
            Some(outer) if outer.passes() => (
                format!("the hosts exchange packets of {} bytes", plan.outer_mtu),
                format!("something drops large packets of {carrier}, or their fragments"),
            ),
            _ => (
                format!("nor do the hosts exchange packets of {} bytes", plan.outer_mtu),
                match largest {
                    Some(most) => format!(
                        "set the MTU of the interface, or of the backend, to at most {}",
                        most + overhead
                    ),
                    None => "lower the MTU of the interface between the hosts".to_owned(),
                },
            ),
        };
        return (
            Verdict::LargeDropped,
            format!("packets of {} bytes do not pass{why}{most}; {whose}: {fix}", plan.mtu),
        );
    }
    // It is tried only after silence for the first one and an answer without a checksum.
    if matches!(seen.repeated, Some(Outcome::Silence)) {
        let device = plan.device.as_deref().unwrap_or("the interface");
        let why = match plan.summed_here {
            Some(true) => format!(
                "though this node computes the checksums of packets in {device} itself: something on the way changes or drops them"
            ),
            Some(false) => format!(
                "the checksum is left to hardware that gets it wrong; from now on this node computes it: \
                 `ethtool -K {device} tx-checksum-ip-generic off`"
            ),
            None => format!(
                "the checksum is left to hardware that gets it wrong: `ethtool -K {device} tx-checksum-ip-generic off`"
            ),
        };
        let text = format!("datagrams without a checksum arrive and those with one do not: {why}");
        return (Verdict::Checksum, text);
    }
    if seen.heard == Heard::Before {
        return (
            Verdict::AgentDown,
            "packets come back, but its agent sends no probes any more: it is down or hangs".to_owned(),
        );
    }
    let remark = match seen.heard {
        Heard::Never => "; its agent has not been heard, so this is seen from here alone",
        _ => "",
    };
    (Verdict::Ok, format!("packets of up to {} bytes come back{remark}", plan.mtu))
}

/// Nothing came back through the tunnel.
fn silent(seen: &Observation, target: &Target, carrier: &str) -> (Verdict, String) {
    let public = target.public;
    let outer = seen.outer.as_ref().is_some_and(Outcome::passes);
    if seen.heard == Heard::Now {
        return (
            Verdict::OneWay,
            format!(
                "its packets arrive here and ours are not answered: {carrier} does not pass from here to {public}"
            ),
        );
    }
    match (&seen.outer, outer) {
        (_, true) if !target.certain => (
            Verdict::Unsure,
            format!("{public} answers; nothing in {} does, which is so until a pod runs there", target.net),
        ),
        (_, true) if target.direct => (
            Verdict::TunnelDropped,
            format!(
                "{public} answers, {} behind it does not: packets of pods are routed to it beside the tunnel, and dropped \
                 there, on the way or on the way back; look at the firewalls of both hosts, and at what {public} says \
                 of this node",
                target.inner
            ),
        ),
        (_, true) => (
            Verdict::TunnelDropped,
            format!(
                "{public} answers, but not through the tunnel: {carrier} is dropped in one direction or both; open it in the \
                 firewalls of both hosts and between them, see that both agents run with the same Backend, and what \
                 {public} says of this node"
            ),
        ),
        (Some(Outcome::Refused(why)), _) => {
            (Verdict::UnderlayDown, format!("{public} is not reached at all: {why}"))
        }
        _ => (
            Verdict::UnderlayDown,
            format!(
                "{public} answers nothing, through the tunnel or beside it: the host or the network between is down"
            ),
        ),
    }
}
