//! Numbered datagrams. Most belong to one flow, of which some are answered; one in sixteen is a flow of its own, about
//! which firewalls and NAT decide anew.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_recv_buffer_size_force;

use super::ping::any;
use super::{Beat, End, Shared, inside};
use crate::Result;
use crate::account::{Arrived, Line, account};

pub struct Task {
    pub beat: Beat,
    sender: JoinHandle<Vec<u64>>,
    receiver: JoinHandle<Arrived>,
}

/// Every so many datagrams one comes from a port of its own.
const FRESH: u64 = 16;
/// A sender that had to wait catches up by at most this many at once: more would be lost in the kernel's queues.
const BURST: u64 = 64;

impl Task {
    /// `rate` a second.
    pub fn start(from: &End, to: &End, v6: bool, rate: u64, shared: &Shared) -> Result<Task> {
        let inbox = inside(to, "listen for datagrams", || inbox(to, v6, 0))?;
        let target = inbox.local_addr().map_err(|error| error.to_string())?;
        let beat = Beat::new(format!("datagrams {} to {}", from.name, target.ip()));
        let net = from.net.try_clone().map_err(|error| error.to_string())?;
        let sending = shared.clone();
        // New sockets are made in the namespace of the thread.
        let send = move || net.run(|| send(target, rate, &sending)).unwrap_or_default();
        let sender = std::thread::spawn(send);
        let (receiving, counted) = (shared.clone(), beat.clone());
        let receiver = std::thread::spawn(move || receive(&inbox, &receiving, &counted));
        Ok(Task { beat, sender, receiver })
    }

    pub fn finish(self) -> Line {
        let sent = self.sender.join().unwrap_or_default();
        account(&self.beat.what, &sent, &self.receiver.join().unwrap_or_default())
    }
}

fn inbox(end: &End, v6: bool, port: u16) -> io::Result<UdpSocket> {
    let address = end.address(v6).unwrap_or_else(|| any(v6));
    let inbox = UdpSocket::bind((address, port))?;
    // Nothing is to be lost because the receiver has to wait for its turn.
    set_socket_recv_buffer_size_force(&inbox, 32 << 20)?;
    inbox.set_read_timeout(Some(Duration::from_millis(300)))?;
    Ok(inbox)
}

fn outbox(v6: bool) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((any(v6), 0))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn send(target: SocketAddr, rate: u64, shared: &Shared) -> Vec<u64> {
    let Ok(lasting) = outbox(target.is_ipv6()) else { return Vec::new() };
    let mut sent: Vec<u64> = Vec::new();
    // When the first of those that are due was due.
    let (mut since, mut due) = (Instant::now(), 0);
    while !shared.stopped() {
        let elapsed = since.elapsed().as_micros() as u64;
        let behind = (elapsed * rate / 1_000_000).saturating_sub(due);
        if behind > BURST {
            (since, due) = (Instant::now(), 0);
        }
        for _ in 0..behind.min(BURST) {
            let number = sent.len() as u64;
            sent.push(shared.now());
            due += 1;
            let fresh = if number.is_multiple_of(FRESH) { outbox(target.is_ipv6()).ok() } else { None };
            // What cannot be sent does not arrive.
            let _ = fresh.as_ref().unwrap_or(&lasting).send_to(&number.to_be_bytes(), target);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    sent
}

fn receive(inbox: &UdpSocket, shared: &Shared, beat: &Beat) -> Arrived {
    let (mut arrived, mut bytes) = (Arrived::default(), [0; 8]);
    loop {
        match inbox.recv_from(&mut bytes) {
            Ok((8, from)) => {
                let number = u64::from_be_bytes(bytes);
                if arrived.note(number) {
                    beat.one();
                }
                // What nobody answers is no conversation to conntrack. Nobody reads or counts it.
                if number % FRESH == 1 {
                    let _ = inbox.send_to(&bytes, from);
                }
            }
            Ok(_) => {}
            // Nothing more is on its way.
            Err(_) if shared.stopped() => return arrived,
            Err(_) => {}
        }
    }
}

/// Both ends of a flow that is to be denied. They live longer than a row: the flow is a conversation that is known to
/// conntrack, and went fast where packets do, before it was denied.
pub struct Pair {
    inbox: UdpSocket,
    outbox: UdpSocket,
    target: SocketAddr,
}

impl Pair {
    /// From one end to a port of another.
    ///
    /// # Errors
    /// A socket cannot be made.
    pub fn new(from: &End, to: &End, v6: bool, port: u16) -> Result<Pair> {
        let inbox = inside(to, "listen where nothing may arrive", || inbox(to, v6, port))?;
        let outbox = inside(from, "make a socket", || outbox(v6))?;
        let target = inbox.local_addr().map_err(|error| error.to_string())?;
        Ok(Pair { inbox, outbox, target })
    }

    fn try_clone(&self) -> Result<Pair> {
        let copy = |socket: &UdpSocket| socket.try_clone().map_err(|error| format!("copy a socket: {error}"));
        Ok(Pair { inbox: copy(&self.inbox)?, outbox: copy(&self.outbox)?, target: self.target })
    }

    /// One question and its answer; whether the question arrived.
    pub fn round(&self, number: u64) -> bool {
        let _ = self.outbox.send_to(&number.to_be_bytes(), self.target);
        let mut bytes = [0; 8];
        loop {
            match self.inbox.recv_from(&mut bytes) {
                Ok((8, from)) if u64::from_be_bytes(bytes) == number => {
                    let _ = self.inbox.send_to(&bytes, from);
                    return true;
                }
                // A late one of a round that was given up.
                Ok(_) => {}
                Err(_) => return false,
            }
        }
    }
}

/// A flow somebody's firewall denies: a hundred packets a second, of which none may arrive.
pub struct Denied {
    sender: JoinHandle<u64>,
    receiver: JoinHandle<()>,
    passed: Arc<AtomicU64>,
}

impl Denied {
    pub fn start(pair: &Pair, shared: &Shared) -> Result<Denied> {
        let Pair { inbox, outbox, target } = pair.try_clone()?;
        let passed: Arc<AtomicU64> = Arc::default();
        let (sending, receiving, count) = (shared.clone(), shared.clone(), passed.clone());
        let sender = std::thread::spawn(move || {
            let mut sent: u64 = 0;
            while !sending.stopped() {
                let _ = outbox.send_to(&sent.to_be_bytes(), target);
                sent += 1;
                std::thread::sleep(Duration::from_millis(10));
            }
            sent
        });
        let receiver = std::thread::spawn(move || {
            loop {
                match inbox.recv(&mut [0; 8]) {
                    Ok(_) => drop(count.fetch_add(1, Ordering::Relaxed)),
                    Err(_) if receiving.stopped() => return,
                    Err(_) => {}
                }
            }
        });
        Ok(Denied { sender, receiver, passed })
    }

    pub fn finish(self) -> (u64, u64) {
        let sent = self.sender.join().unwrap_or_default();
        let _ = self.receiver.join();
        (sent, self.passed.load(Ordering::Relaxed))
    }
}

/// A conversation that goes on while it is denied and allowed again, a question each millisecond. What is asked of it is
/// by when questions were sent: when they are read depends on the machine.
pub struct Talk {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<Vec<Instant>>,
    receiver: JoinHandle<Arrived>,
    count: Arc<AtomicU64>,
}

impl Talk {
    /// Until [`Talk::finish`].
    ///
    /// # Errors
    /// A socket cannot be copied.
    pub fn start(pair: &Pair) -> Result<Talk> {
        let Pair { inbox, outbox, target } = pair.try_clone()?;
        let stop: Arc<AtomicBool> = Arc::default();
        let count: Arc<AtomicU64> = Arc::default();
        let (sending, receiving, arrives) = (stop.clone(), stop.clone(), count.clone());
        let sender = std::thread::spawn(move || {
            let mut sent = Vec::new();
            while !sending.load(Ordering::Relaxed) {
                sent.push(Instant::now());
                let _ = outbox.send_to(&(sent.len() as u64 - 1).to_be_bytes(), target);
                std::thread::sleep(Duration::from_millis(1));
            }
            sent
        });
        let receiver = std::thread::spawn(move || {
            let (mut arrived, mut bytes) = (Arrived::default(), [0; 8]);
            loop {
                match inbox.recv_from(&mut bytes) {
                    Ok((8, from)) => {
                        arrived.note(u64::from_be_bytes(bytes));
                        arrives.fetch_add(1, Ordering::Relaxed);
                        let _ = inbox.send_to(&bytes, from);
                    }
                    Ok(_) => {}
                    Err(_) if receiving.load(Ordering::Relaxed) => return arrived,
                    Err(_) => {}
                }
            }
        });
        Ok(Talk { stop, sender, receiver, count })
    }

    /// How many questions have arrived.
    pub fn arrived(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Ends it. Gives when each question was sent, and which arrived.
    pub fn finish(self) -> (Vec<Instant>, Arrived) {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().unwrap_or_default();
        (sent, self.receiver.join().unwrap_or_default())
    }
}
