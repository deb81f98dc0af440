//! Numbered datagrams. Most belong to one flow; one in sixteen is a flow of its own, about which firewalls and NAT
//! decide anew.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_recv_buffer_size_force;

use super::ping::any;
use super::{Beat, DENIED, End, Shared, inside};
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
        match inbox.recv(&mut bytes) {
            Ok(8) => {
                if arrived.note(u64::from_be_bytes(bytes)) {
                    beat.one();
                }
            }
            Ok(_) => {}
            // Nothing more is on its way.
            Err(_) if shared.stopped() => return arrived,
            Err(_) => {}
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
    pub fn start(from: &End, to: &End, v6: bool, shared: &Shared) -> Result<Denied> {
        let inbox = inside(to, "listen where nothing may arrive", || inbox(to, v6, DENIED))?;
        let outbox = inside(from, "make a socket", || outbox(v6))?;
        let target = inbox.local_addr().map_err(|error| error.to_string())?;
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

    /// Whether one packet of the flow arrives: before it is denied it must, or not seeing it says nothing.
    pub fn passes(from: &End, to: &End, v6: bool) -> Result<bool> {
        let inbox = inside(to, "listen where nothing may arrive", || inbox(to, v6, DENIED))?;
        let outbox = inside(from, "make a socket", || outbox(v6))?;
        let target = inbox.local_addr().map_err(|error| error.to_string())?;
        for _ in 0..50 {
            let _ = outbox.send_to(b"may I  ?", target);
            if inbox.recv(&mut [0; 8]).is_ok() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub fn finish(self) -> (u64, u64) {
        let sent = self.sender.join().unwrap_or_default();
        let _ = self.receiver.join();
        (sent, self.passed.load(Ordering::Relaxed))
    }
}
