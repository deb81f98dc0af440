//! The client's state machine.
//!
//! ```text
//!                 NAK, no answer
//!            ┌──────────────────────┐
//!            ▼                      │
//!  start ▶ SELECTING ─ offer ▶ REQUESTING ─ ack ▶ BOUND ◀───────────────┐
//!            │                                     │ T1                 │ ack
//!            ▼ 208 s                               ▼                    │
//!         gave up                               RENEWING ─ T2 ▶ REBINDING
//!                                                  │ NAK                │ NAK, expiry
//!                                                  ▼                    ▼
//!                                                     expired
//! ```
//!
//! RFC 2131 figure 5 without the states of a host that reboots: a pod that does gets another client.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::message::{Kind, Message, option};
use super::{Lease, addresses};
use crate::Mac;

/// Milliseconds.
type Time = u64;
const SECOND: Time = 1000;
/// A lease without a time of its own.
const LEASE: Time = 3600 * SECOND;
/// Renewals are repeated after half the time left, but not sooner (RFC 2131 4.4.5).
const RENEWAL_PAUSE: Time = 60 * SECOND;

/// How long answers are waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Longest pause between two attempts.
    pub resend_max: Time,
    /// After this without an address the client gives up.
    pub give_up: Time,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send to everybody, from no address.
    Broadcast(Vec<u8>),
    /// Send to the server, from our address.
    Unicast(Ipv4Addr, Vec<u8>),
    /// The address is ours, or goes on being.
    Bound,
    /// It is not any more.
    Expired,
    /// Nobody gave one.
    GaveUp,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Selecting,
    Requesting { address: Ipv4Addr, server: Ipv4Addr, attempts: u32 },
    Bound(Lease),
    Renewing(Lease),
    Rebinding(Lease),
    Stopped,
}

/// A client of one interface.
#[derive(Clone, Debug)]
pub struct Client {
    mac: Mac,
    provide: Vec<(u8, Vec<u8>)>,
    request: Vec<u8>,
    broadcast: bool,
    timing: Timing,
    state: State,
    xid: u32,
    random: u64,
    began: Time,
    attempts: u32,
    deadline: Time,
    /// When the last request went out: the time of a lease counts from then.
    sent: Time,
}

impl Client {
    /// A client that has done nothing yet. `provide` holds the client id; `seed` is any number.
    pub fn new(
        mac: Mac,
        provide: Vec<(u8, Vec<u8>)>,
        request: Vec<u8>,
        broadcast: bool,
        timing: Timing,
        seed: u64,
    ) -> Client {
        Client {
            mac,
            provide,
            request,
            broadcast,
            timing,
            state: State::Stopped,
            xid: 0,
            random: seed | 1,
            began: 0,
            attempts: 0,
            deadline: Time::MAX,
            sent: 0,
        }
    }

    /// Goes on with a lease of an earlier run.
    pub fn resume(&mut self, lease: Lease) {
        self.deadline = lease.renew_at;
        self.state = State::Bound(lease);
    }

    /// When [`Client::tick`] has to be called; never again if there is no such time.
    pub fn deadline(&self) -> Option<Time> {
        (self.state != State::Stopped).then_some(self.deadline)
    }

    /// The lease, as long as its address may be used.
    pub fn lease(&self) -> Option<&Lease> {
        match &self.state {
            State::Bound(lease) | State::Renewing(lease) | State::Rebinding(lease) => Some(lease),
            _ => None,
        }
    }

    /// Whether answers are expected, and a socket is needed.
    pub fn is_listening(&self) -> bool {
        !matches!(self.state, State::Bound(_) | State::Stopped)
    }

    /// Begins.
    pub fn start(&mut self, now: Time) -> Vec<Action> {
        self.began = now;
        self.select(now)
    }

    fn select(&mut self, now: Time) -> Vec<Action> {
        self.state = State::Selecting;
        self.attempts = 0;
        self.discover(now)
    }

    fn discover(&mut self, now: Time) -> Vec<Action> {
        self.xid = self.next_random() as u32;
        self.deadline = now + self.pause();
        vec![Action::Broadcast(self.message(now, Kind::Discover, Ipv4Addr::UNSPECIFIED, &[]))]
    }

    /// Four quick attempts after 2 ± 1 s, then 4, 8 … ± 1 s.
    fn pause(&mut self) -> Time {
        const QUICK: u32 = 4;
        let base = match self.attempts {
            n if n < QUICK => 2 * SECOND,
            n => ((4 * SECOND) << (n - QUICK).min(10)).min(self.timing.resend_max.max(2 * SECOND)),
        };
        self.attempts += 1;
        base - SECOND + self.next_random() % (2 * SECOND)
    }

    /// xorshift64
    fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    /// The time [`Client::deadline`] told has come.
    pub fn tick(&mut self, now: Time) -> Vec<Action> {
        if now < self.deadline {
            return Vec::new();
        }
        let acquiring = matches!(self.state, State::Selecting | State::Requesting { .. });
        if acquiring && now.saturating_sub(self.began) >= self.timing.give_up {
            return self.stop(Action::GaveUp);
        }
        match self.state.clone() {
            State::Stopped => Vec::new(),
            State::Selecting => self.discover(now),
            State::Requesting { address, server, attempts } if attempts < 4 => {
                self.ask(now, address, server, attempts + 1)
            }
            State::Requesting { .. } => self.select(now),
            State::Bound(lease) | State::Renewing(lease) | State::Rebinding(lease) => self.keep(now, lease),
        }
    }

    /// Renews or rebinds, whatever the time says.
    fn keep(&mut self, now: Time, lease: Lease) -> Vec<Action> {
        if now >= lease.expires_at {
            return self.stop(Action::Expired);
        }
        if self.lease().is_some() && !self.is_listening() {
            self.xid = self.next_random() as u32;
        }
        self.sent = now;
        let (until, unicast) =
            if now < lease.rebind_at { (lease.rebind_at, true) } else { (lease.expires_at, false) };
        self.deadline = (now + (until.saturating_sub(now) / 2).max(RENEWAL_PAUSE)).min(until);
        // RFC 2131 4.3.2: neither the address asked for nor the server is named here.
        let bytes = self.message(now, Kind::Request, lease.address.addr(), &[]);
        if unicast {
            let server = lease.server;
            self.state = State::Renewing(lease);
            vec![Action::Unicast(server, bytes)]
        } else {
            self.state = State::Rebinding(lease);
            vec![Action::Broadcast(bytes)]
        }
    }

    fn ask(&mut self, now: Time, address: Ipv4Addr, server: Ipv4Addr, attempts: u32) -> Vec<Action> {
        self.state = State::Requesting { address, server, attempts };
        self.sent = now;
        self.deadline = now + SECOND + self.next_random() % (2 * SECOND);
        let options =
            [(option::REQUESTED, address.octets().to_vec()), (option::SERVER, server.octets().to_vec())];
        vec![Action::Broadcast(self.message(now, Kind::Request, Ipv4Addr::UNSPECIFIED, &options))]
    }

    fn stop(&mut self, why: Action) -> Vec<Action> {
        self.state = State::Stopped;
        self.deadline = Time::MAX;
        vec![why]
    }

    /// A message came. What is not for us, or not awaited, changes nothing.
    pub fn receive(&mut self, now: Time, message: &Message) -> Vec<Action> {
        if message.op != 2 || message.xid != self.xid || message.chaddr != self.mac {
            return Vec::new();
        }
        let from = message.address(option::SERVER);
        match (self.state.clone(), message.kind()) {
            (State::Selecting, Some(Kind::Offer)) => match from {
                Some(server) if !message.yiaddr.is_unspecified() => self.ask(now, message.yiaddr, server, 1),
                _ => Vec::new(),
            },
            (State::Requesting { address, server, .. }, Some(Kind::Ack))
                if message.yiaddr == address && from.is_none_or(|from| from == server) =>
            {
                self.bind(message, server)
            }
            // RFC 2131 3.1.5: begin again; the pause keeps a quarrel from filling the wire.
            (State::Requesting { server, .. }, Some(Kind::Nak)) if from.is_none_or(|from| from == server) => {
                self.state = State::Selecting;
                self.deadline = now + self.pause();
                Vec::new()
            }
            (State::Renewing(lease) | State::Rebinding(lease), Some(Kind::Ack))
                if message.yiaddr == lease.address.addr() =>
            {
                self.bind(message, from.unwrap_or(lease.server))
            }
            (State::Renewing(_) | State::Rebinding(_), Some(Kind::Nak)) => self.stop(Action::Expired),
            _ => Vec::new(),
        }
    }

    /// An acknowledgement without a mask is none: the address could not be set.
    fn bind(&mut self, message: &Message, server: Ipv4Addr) -> Vec<Action> {
        let mask = message.option(option::SUBNET_MASK).map(addresses).and_then(|m| m.first().copied());
        let net = mask.and_then(|mask| Ipv4Net::with_netmask(message.yiaddr, mask).ok());
        let Some(address) = net else { return Vec::new() };
        let seconds = |code| message.seconds(code).map(|s| Time::from(s) * SECOND);
        let time = seconds(option::LEASE_TIME).unwrap_or(LEASE);
        let t2 = seconds(option::REBINDING).filter(|t| *t < time).unwrap_or(time / 100 * 85);
        let t1 = seconds(option::RENEWAL).filter(|t| *t <= t2).unwrap_or((time / 2).min(t2));
        let lease = Lease {
            address,
            server,
            options: message.options.clone(),
            renew_at: self.sent + t1,
            rebind_at: self.sent + t2,
            expires_at: self.sent + time,
        };
        self.deadline = lease.renew_at;
        self.state = State::Bound(lease);
        vec![Action::Bound]
    }

    /// Gives the address back.
    pub fn release(&mut self, now: Time) -> Vec<Action> {
        let lease = self.lease().cloned();
        self.stop(Action::Expired);
        let Some(lease) = lease else { return Vec::new() };
        self.xid = self.next_random() as u32;
        let server = (option::SERVER, lease.server.octets().to_vec());
        let bytes = self.message(now, Kind::Release, lease.address.addr(), &[server]);
        vec![Action::Unicast(lease.server, bytes)]
    }

    fn message(&self, now: Time, kind: Kind, ciaddr: Ipv4Addr, more: &[(u8, Vec<u8>)]) -> Vec<u8> {
        let mut options = vec![(option::MESSAGE_TYPE, vec![kind as u8])];
        options.extend_from_slice(more);
        let id = |(code, _): &&(u8, Vec<u8>)| *code == option::CLIENT_ID;
        if kind == Kind::Release {
            // RFC 2131 table 5: nothing else may stand here.
            options.extend(self.provide.iter().filter(id).cloned());
        } else {
            options.extend(self.provide.iter().cloned());
            if !self.request.is_empty() {
                options.push((option::PARAMETERS, self.request.clone()));
            }
        }
        let secs = u16::try_from(now.saturating_sub(self.began) / SECOND).unwrap_or(u16::MAX);
        let message = Message {
            op: 1,
            xid: self.xid,
            secs: if self.lease().is_some() { 0 } else { secs },
            broadcast: self.broadcast && ciaddr.is_unspecified(),
            ciaddr,
            yiaddr: Ipv4Addr::UNSPECIFIED,
            chaddr: self.mac,
            options,
        };
        message.encode()
    }
}

#[cfg(test)]
mod tests;
