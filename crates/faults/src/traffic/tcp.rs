//! Long TCP connections: ten numbers a second on each, each echoed.

use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Beat, End, Shared, inside};
use crate::Result;

pub struct Task {
    pub beat: Beat,
    flows: usize,
    servers: Vec<JoinHandle<()>>,
    client: JoinHandle<(usize, Duration)>,
}

/// Between two numbers of a connection.
const PAUSE: Duration = Duration::from_millis(100);

/// One connection, seen from its client.
struct Flow {
    stream: TcpStream,
    /// The number under way, and since when.
    asked: Option<(u64, Instant)>,
    next: u64,
    heard: Vec<u8>,
    broken: bool,
}

impl Task {
    pub fn start(from: &End, to: &End, families: &[bool], flows: usize, shared: &Shared) -> Result<Task> {
        let beat = Beat::new(format!("TCP {} to {}", from.name, to.name));
        let (mut servers, mut open) = (Vec::new(), Vec::new());
        for (at, v6) in families.iter().enumerate() {
            let address = to.address(*v6).ok_or("an end has no address of a family")?;
            let listener = inside(to, "listen", || TcpListener::bind((address, 0)))?;
            let target = listener.local_addr().map_err(|error| error.to_string())?;
            let share = flows / families.len() + usize::from(at < flows % families.len());
            let serving = shared.clone();
            servers.push(std::thread::spawn(move || serve(&listener, share, &serving)));
            for _ in 0..share {
                let stream = inside(from, "connect", || connect(target))?;
                open.push(Flow { stream, asked: None, next: 0, heard: Vec::new(), broken: false });
            }
        }
        let (asking, counted) = (shared.clone(), beat.clone());
        let client = std::thread::spawn(move || ask(open, &asking, &counted));
        Ok(Task { beat, flows, servers, client })
    }

    /// Connections, those that broke, and the longest wait for an answer.
    pub fn finish(self) -> (usize, usize, Duration) {
        let (broken, stall) = self.client.join().unwrap_or((self.flows, Duration::ZERO));
        self.servers.into_iter().for_each(|server| drop(server.join()));
        (self.flows, broken, stall)
    }
}

fn connect(target: std::net::SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target, Duration::from_secs(20))?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// How long the last answers may take; on a network that is broken the ends of connections never arrive.
const STRAGGLERS: Duration = Duration::from_millis(500);

/// Echoes until the clients go, or a little longer than they.
fn serve(listener: &TcpListener, flows: usize, shared: &Shared) {
    let _ = listener.set_nonblocking(true);
    let mut open: Vec<TcpStream> = Vec::new();
    let (mut accepted, mut end) = (0, None);
    while accepted < flows || !open.is_empty() {
        if shared.stopped() && *end.get_or_insert_with(|| Instant::now() + STRAGGLERS) <= Instant::now() {
            return;
        }
        while let Ok((stream, _)) = listener.accept() {
            let _ = stream.set_nonblocking(true);
            let _ = stream.set_nodelay(true);
            open.push(stream);
            accepted += 1;
        }
        let wait = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        let mut polled: Vec<PollFd<'_>> = open.iter().map(|s| PollFd::new(s, PollFlags::IN)).collect();
        let _ = poll(&mut polled, Some(&wait));
        let ready: Vec<bool> = polled.iter().map(|p| !p.revents().is_empty()).collect();
        let mut at = 0;
        open.retain_mut(|stream| {
            let mut bytes = [0; 1024];
            at += 1;
            if !ready[at - 1] {
                return true;
            }
            match stream.read(&mut bytes) {
                Ok(0) => false,
                Ok(len) => stream.write_all(&bytes[..len]).is_ok(),
                Err(error) => error.kind() == io::ErrorKind::WouldBlock,
            }
        });
    }
}

fn ask(mut flows: Vec<Flow>, shared: &Shared, beat: &Beat) -> (usize, Duration) {
    let (mut broken, mut stall) = (0, Duration::ZERO);
    let mut due = Instant::now();
    while !shared.stopped() {
        if Instant::now() >= due {
            due = Instant::now() + PAUSE;
            flows.iter_mut().filter(|flow| flow.asked.is_none()).for_each(Flow::ask);
        }
        let wait = due.saturating_duration_since(Instant::now());
        let wait = Timespec { tv_sec: 0, tv_nsec: wait.as_nanos().min(20_000_000) as _ };
        let mut polled: Vec<PollFd<'_>> =
            flows.iter().map(|flow| PollFd::new(&flow.stream, PollFlags::IN)).collect();
        let _ = poll(&mut polled, Some(&wait));
        let ready: Vec<bool> = polled.iter().map(|p| !p.revents().is_empty()).collect();
        for (flow, ready) in flows.iter_mut().zip(ready) {
            if ready && let Some(waited) = flow.hear() {
                stall = stall.max(waited);
                beat.one();
            }
            if let Some((_, since)) = flow.asked {
                stall = stall.max(since.elapsed());
            }
        }
        let before = flows.len();
        flows.retain(|flow| !flow.broken);
        broken += before - flows.len();
    }
    (broken, stall)
}

impl Flow {
    fn ask(&mut self) {
        self.asked = Some((self.next, Instant::now()));
        self.broken |= self.stream.write_all(&self.next.to_be_bytes()).is_err();
        self.next += 1;
    }

    /// Takes an answer; gives how long it was waited for. A wrong one, an end or an error breaks the connection.
    fn hear(&mut self) -> Option<Duration> {
        let mut bytes = [0; 64];
        match self.stream.read(&mut bytes) {
            Ok(len) if len > 0 => self.heard.extend(&bytes[..len]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            _ => self.broken = true,
        }
        let number: [u8; 8] = self.heard.get(..8)?.try_into().ok()?;
        self.heard.drain(..8);
        let (asked, since) = self.asked.take()?;
        self.broken |= u64::from_be_bytes(number) != asked;
        Some(since.elapsed())
    }
}
