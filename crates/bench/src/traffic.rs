//! The traffic: streams of TCP, small datagrams as fast as they go, and one byte there and back.
//!
//! A server answers who knows its token; a client asks for one kind of traffic a connection, in one line. What is
//! counted is counted by who receives it, between the end of a warm-up and the end of the span. Sockets are those of
//! the namespace whose thread makes them. The protocol is this program's own affair: both ends are of one version.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, sockopt};

use crate::machine;

/// What every line begins with; the number goes up with the protocol.
const MARK: &str = "loden-bench/2";
/// Bytes of one write.
const CHUNK: usize = 256 << 10;
/// Bytes of a small datagram.
pub const SMALL: usize = 64;
/// Streams at once.
pub const MANY: usize = 4;
/// Time before anything counts: windows grow, caches fill.
const WARM: Duration = Duration::from_millis(300);
/// The same where datagrams are answered: for two seconds conntrack takes them for an exchange that ends at once, whatever comes
/// (nf_conntrack_proto_udp.c), and a path that is for conversations waits for that.
const TALK: Duration = Duration::from_millis(2500);
/// How long a receiver waits before it looks at the clock.
const SHORT: Duration = Duration::from_millis(100);
/// One of so many datagrams is answered, as a program does that says what arrived.
const ANSWERED: u64 = 64;
/// How long anybody waits for the other one.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest span a server takes part in.
const LONGEST: Duration = Duration::from_secs(60);
/// Clients at once.
const CLIENTS: usize = 16;
/// Bytes of the longest line.
const LINE: usize = 4096;

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ask {
    /// Who are you?
    Hello,
    /// Take a stream; the warm-up and the span in ms.
    Stream(u64, u64),
    /// Send each byte back.
    Trips,
    /// Take datagrams from a port; the warm-up and the span in ms.
    Datagrams(u64, u64, u16),
    /// The same, and answer some.
    Answered(u64, u64, u16),
    /// Take connections with a byte each; the warm-up and the span in ms.
    Connections(u64, u64),
}

impl Ask {
    fn line(self, token: &str) -> String {
        let what = match self {
            Ask::Hello => "hello".to_owned(),
            Ask::Stream(warm, span) => format!("stream {warm} {span}"),
            Ask::Trips => "trips".to_owned(),
            Ask::Datagrams(warm, span, port) => format!("datagrams {warm} {span} {port}"),
            Ask::Answered(warm, span, port) => format!("answered {warm} {span} {port}"),
            Ask::Connections(warm, span) => format!("connections {warm} {span}"),
        };
        format!("{MARK} {token} {what}\n")
    }

    /// `None` for a line that is not one of ours, or of somebody who does not know the token.
    fn read(line: &str, token: &str) -> Option<Ask> {
        let words: Vec<&str> = line.split(' ').collect();
        let [MARK, said, kind, rest @ ..] = words.as_slice() else { return None };
        if !same(said, token) {
            return None;
        }
        let ms = |text: &str| text.parse::<u64>().ok().filter(|ms| u128::from(*ms) <= LONGEST.as_millis());
        Some(match (*kind, rest) {
            ("hello", []) => Ask::Hello,
            ("trips", []) => Ask::Trips,
            ("stream", [warm, span]) => Ask::Stream(ms(warm)?, ms(span)?),
            ("datagrams", [warm, span, port]) => Ask::Datagrams(ms(warm)?, ms(span)?, port.parse().ok()?),
            ("answered", [warm, span, port]) => Ask::Answered(ms(warm)?, ms(span)?, port.parse().ok()?),
            ("connections", [warm, span]) => Ask::Connections(ms(warm)?, ms(span)?),
            _ => return None,
        })
    }
}

/// In a time that does not tell how much of it was right.
fn same(said: &str, token: &str) -> bool {
    let differ = said.bytes().zip(token.bytes()).fold(0, |differ, (a, b)| differ | (a ^ b));
    differ == 0 && said.len() == token.len()
}

/// What a receiver counted in its span.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Count {
    /// Bytes, or datagrams.
    pub units: f64,
    /// Time it took.
    pub seconds: f64,
    /// Seconds all its machine's processors worked meanwhile.
    pub cpu: f64,
}

/// Counts from the end of the warm-up to the end of the span.
struct Meter {
    warm: Duration,
    span: Duration,
    /// When the first came.
    begun: Option<Instant>,
    total: u64,
    mark: Option<(Instant, u64, f64)>,
    count: Option<Count>,
}

impl Meter {
    fn new(warm: u64, span: u64) -> Meter {
        let (warm, span) = (Duration::from_millis(warm), Duration::from_millis(span));
        Meter { warm, span, begun: None, total: 0, mark: None, count: None }
    }

    fn add(&mut self, units: u64) {
        self.total += units;
        if self.count.is_some() {
            return;
        }
        let now = Instant::now();
        if units > 0 && self.begun.is_none() {
            self.begun = Some(now);
        }
        match self.mark {
            None if self.begun.is_some_and(|begun| now - begun >= self.warm) => {
                self.mark = Some((now, self.total, machine::busy()))
            }
            Some((at, ..)) if now - at >= self.span => self.count = self.counted(now),
            _ => {}
        }
    }

    fn counted(&self, now: Instant) -> Option<Count> {
        let (at, units, cpu) = self.mark?;
        Some(Count {
            units: (self.total - units) as f64,
            seconds: (now - at).as_secs_f64(),
            cpu: machine::busy() - cpu,
        })
    }

    /// When no more comes: a span that was cut short by a busy machine counts from its half on.
    fn end(self) -> Option<Count> {
        let now = Instant::now();
        let enough = self.mark.is_some_and(|(at, ..)| now - at >= self.span / 2);
        self.count.or_else(|| self.counted(now).filter(|count| enough && count.units > 0.0))
    }
}

// ---- the server -------------------------------------------------------------------------------------

/// A server; ends with the value.
#[derive(Debug)]
pub struct Server {
    listener: Arc<TcpListener>,
    at: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What a server tells a client besides what it counted.
pub type Greeting = Arc<dyn Fn() -> String + Send + Sync>;

impl Server {
    /// Listens in the namespace of the calling thread. `seen` is called with every client that knows the token.
    ///
    /// # Errors
    /// The address cannot be had.
    pub fn start(
        at: SocketAddr,
        token: &str,
        greeting: Greeting,
        seen: impl Fn() + Send + Sync + 'static,
    ) -> io::Result<Server> {
        let listener = Arc::new(TcpListener::bind(at)?);
        let at = listener.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let (clients, seen) = (Arc::new(AtomicUsize::new(0)), Arc::new(seen));
        let (ours, ended, token) = (listener.clone(), stop.clone(), Arc::<str>::from(token));
        let thread = std::thread::Builder::new().name("bench-server".to_owned()).spawn(move || {
            for stream in ours.incoming() {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                if clients.load(Ordering::Relaxed) >= CLIENTS {
                    continue;
                }
                clients.fetch_add(1, Ordering::Relaxed);
                let (clients, token) = (clients.clone(), token.clone());
                let (greeting, seen) = (greeting.clone(), seen.clone());
                crate::spawn(move || {
                    // Who goes away is missed by nobody.
                    let _ = answer(stream, &token, &greeting, seen.as_ref());
                    clients.fetch_sub(1, Ordering::Relaxed);
                });
            }
        })?;
        Ok(Server { listener, at, stop, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn at(&self) -> SocketAddr {
        self.at
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Ends the waiting for a client.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer(mut stream: TcpStream, token: &str, greeting: &Greeting, seen: &dyn Fn()) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    // Who does not know the token hears nothing.
    let Some(ask) = Ask::read(&line(&mut stream)?, token) else { return Ok(()) };
    seen();
    match ask {
        Ask::Hello => tell(&mut stream, &greeting()),
        Ask::Stream(warm, span) => {
            let mut meter = Meter::new(warm, span);
            let mut buffer = vec![0; CHUNK];
            let mut told = false;
            // The sender ends when it has heard the count; what comes until then is taken.
            loop {
                match stream.read(&mut buffer)? {
                    0 => break,
                    count => meter.add(count as u64),
                }
                if !told && meter.count.is_some() {
                    tell_count(&mut stream, meter.count)?;
                    told = true;
                }
            }
            if told { Ok(()) } else { tell_count(&mut stream, meter.end()) }
        }
        Ask::Trips => {
            let mut byte = [0];
            let until = Instant::now() + LONGEST + WARM;
            while stream.read(&mut byte)? > 0 && Instant::now() < until {
                stream.write_all(&byte)?;
            }
            Ok(())
        }
        Ask::Datagrams(warm, span, port) => take_datagrams(stream, Meter::new(warm, span), port, false),
        Ask::Answered(warm, span, port) => take_datagrams(stream, Meter::new(warm, span), port, true),
        Ask::Connections(warm, span) => take_connections(stream, Meter::new(warm, span)),
    }
}

fn take_datagrams(mut stream: TcpStream, mut meter: Meter, port: u16, answered: bool) -> io::Result<()> {
    let socket = UdpSocket::bind((stream.local_addr()?.ip(), 0))?;
    // Nobody else's datagrams get in.
    socket.connect((stream.peer_addr()?.ip(), port))?;
    socket.set_read_timeout(Some(SHORT))?;
    tell(&mut stream, &socket.local_addr()?.port().to_string())?;
    let mut buffer = [0; SMALL * 2];
    let until = Instant::now() + meter.warm + meter.span + PATIENCE / 2;
    while meter.count.is_none() && Instant::now() < until {
        // A span ends with a datagram: one in which nothing came says nothing.
        if socket.recv(&mut buffer).is_ok() {
            if answered && meter.total.is_multiple_of(ANSWERED) {
                // One that is lost is made up for by the next.
                let _ = socket.send(&[0]);
            }
            meter.add(1);
        }
    }
    tell_count(&mut stream, meter.end())
}

/// One after the other: a byte comes, a byte goes, and the other end is closed.
fn take_connections(mut stream: TcpStream, mut meter: Meter) -> io::Result<()> {
    let listener = TcpListener::bind((stream.local_addr()?.ip(), 0))?;
    let peer = stream.peer_addr()?.ip();
    // As well for accept(2).
    sockopt::set_socket_timeout(&listener, sockopt::Timeout::Recv, Some(SHORT))?;
    tell(&mut stream, &listener.local_addr()?.port().to_string())?;
    let until = Instant::now() + meter.warm + meter.span + PATIENCE / 2;
    while meter.count.is_none() && Instant::now() < until {
        let Ok((mut caller, from)) = listener.accept() else { continue };
        caller.set_read_timeout(Some(PATIENCE))?;
        let mut byte = [0];
        if from.ip() == peer && caller.read(&mut byte)? > 0 {
            caller.write_all(&byte)?;
            meter.add(1);
        }
    }
    tell_count(&mut stream, meter.end())
}

fn tell_count(stream: &mut TcpStream, count: Option<Count>) -> io::Result<()> {
    let text = match count {
        Some(Count { units, seconds, cpu }) => format!("{units} {seconds} {cpu}"),
        None => "short".to_owned(),
    };
    tell(stream, &text)
}

fn tell(stream: &mut TcpStream, text: &str) -> io::Result<()> {
    stream.write_all(format!("{text}\n").as_bytes())
}

/// One line, byte by byte: what follows it is not ours to take.
fn line(stream: &mut TcpStream) -> io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.len() < LINE && stream.read(&mut byte)? > 0 {
        match byte[0] {
            b'\n' => return Ok(String::from_utf8_lossy(&line).into_owned()),
            other => line.push(other),
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

// ---- the client -------------------------------------------------------------------------------------

/// Who measures, and what with.
#[derive(Clone, Debug)]
pub struct Client {
    /// Where the server listens.
    pub to: SocketAddr,
    /// Its token.
    pub token: String,
    /// Time of each measurement.
    pub span: Duration,
    /// The server's machine is another one, whose work counts besides ours.
    pub apart: bool,
}

/// What one turn on one way gave.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Taken {
    /// TCP, one stream, Gbit/s.
    pub one: f64,
    /// Several streams, Gbit/s.
    pub many: f64,
    /// Seconds of processor per 10⁹ bytes, of all machines.
    pub cpu: f64,
    /// Small datagrams that arrived in a second.
    pub datagrams: f64,
    /// Microseconds of processor for each.
    pub each: f64,
    /// Small datagrams that arrived in a second where some are answered.
    pub answered: f64,
    /// Microseconds of processor for each of these.
    pub each_answered: f64,
    /// Connections with a byte there and back, in a second.
    pub connections: f64,
    /// Round trip in µs: half of them are shorter,
    pub half: f64,
    /// and all but a hundredth.
    pub most: f64,
}

impl Client {
    /// Everything, one after the other. Runs in the namespace of the calling thread.
    ///
    /// # Errors
    /// The server is away, or does not answer.
    pub fn turn(&self) -> io::Result<Taken> {
        let (one, cpu) = self.streams(1)?;
        let (many, _) = self.streams(MANY)?;
        let (datagrams, each) = self.flood(Ask::Datagrams, WARM)?;
        let (answered, each_answered) = self.flood(Ask::Answered, TALK)?;
        let connections = self.connections()?;
        let (half, most) = self.trips()?;
        let rates = [one, many, cpu, datagrams, each, answered, each_answered, connections];
        if rates.into_iter().chain([half, most]).all(f64::is_finite) {
            return Ok(Taken {
                one,
                many,
                cpu,
                datagrams,
                each,
                answered,
                each_answered,
                connections,
                half,
                most,
            });
        }
        Err(io::Error::other("too little arrived to be counted"))
    }

    /// What the server tells of itself.
    ///
    /// # Errors
    /// It is away, or wants another token.
    pub fn hello(&self) -> io::Result<String> {
        line(&mut self.ask(Ask::Hello)?)
    }

    fn ask(&self, ask: Ask) -> io::Result<TcpStream> {
        let mut stream = TcpStream::connect_timeout(&self.to, PATIENCE)?;
        // What stands as default decides about figures otherwise; all kernels have this one.
        let _ = sockopt::set_tcp_congestion(&stream, "cubic");
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        stream.write_all(ask.line(&self.token).as_bytes())?;
        Ok(stream)
    }

    fn ms(&self) -> (u64, u64) {
        (WARM.as_millis() as u64, self.span.as_millis() as u64)
    }

    /// Seconds our own processors work in the span that begins now, where they are not the server's.
    fn own_cpu(&self, work: impl FnOnce() -> io::Result<()>) -> io::Result<f64> {
        let start = (Instant::now(), machine::busy());
        work()?;
        let took = start.0.elapsed().as_secs_f64();
        if !self.apart || took == 0.0 {
            return Ok(0.0);
        }
        // Of the warm-up as much as of the span.
        Ok((machine::busy() - start.1) * self.span.as_secs_f64() / took)
    }

    /// Streams at once: Gbit/s, and seconds of processor per GB.
    fn streams(&self, count: usize) -> io::Result<(f64, f64)> {
        let (warm, span) = self.ms();
        let streams: Vec<TcpStream> =
            (0..count).map(|_| self.ask(Ask::Stream(warm, span))).collect::<io::Result<_>>()?;
        let until = Instant::now() + WARM + self.span;
        let mut counts = Vec::new();
        let own = self.own_cpu(|| {
            let send = |stream| std::thread::spawn(move || send(stream, until));
            let threads: Vec<_> = streams.into_iter().map(send).collect();
            for thread in threads {
                counts.push(thread.join().map_err(|_| io::Error::other("a sender panicked"))??);
            }
            Ok(())
        })?;
        let rate: f64 = counts.iter().map(|c| c.units / c.seconds).sum();
        let first = counts.first().copied().unwrap_or_default();
        Ok((rate * 8.0 / 1e9, (first.cpu + own) / (rate * first.seconds / 1e9)))
    }

    /// Small datagrams as fast as they go: those that arrive in a second, and µs of processor for each.
    fn flood(&self, ask: impl Fn(u64, u64, u16) -> Ask, warm: Duration) -> io::Result<(f64, f64)> {
        let span = self.ms().1;
        let any: IpAddr = if self.to.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
        let socket = UdpSocket::bind((any, 0))?;
        let mut control = self.ask(ask(warm.as_millis() as u64, span, socket.local_addr()?.port()))?;
        let port = parse::<u16>(&line(&mut control)?)?;
        socket.connect((self.to.ip(), port))?;
        let payload = [0x5a; SMALL];
        // A full queue is what is wanted, and the end of the other side's count no failure.
        let send = |goes_on: &dyn Fn() -> bool| {
            while goes_on() {
                for _ in 0..32 {
                    let _ = socket.send(&payload);
                }
            }
        };
        let (soon, until) = (Instant::now() + warm - WARM, Instant::now() + warm + self.span);
        send(&|| Instant::now() < soon);
        let own = self.own_cpu(|| {
            send(&|| goes_on(&control, until));
            Ok(())
        })?;
        let count = read_count(&mut control)?;
        Ok((count.units / count.seconds, (count.cpu + own) * 1e6 / count.units.max(1.0)))
    }

    /// One connection after the other, with a byte there and back: how many in a second.
    fn connections(&self) -> io::Result<f64> {
        let (warm, span) = self.ms();
        let mut control = self.ask(Ask::Connections(warm, span))?;
        let to = SocketAddr::new(self.to.ip(), parse::<u16>(&line(&mut control)?)?);
        let until = Instant::now() + WARM + self.span;
        while goes_on(&control, until) {
            // Refused when the other side has counted enough.
            if let Err(error) = one_connection(to)
                && goes_on(&control, Instant::now() + SHORT)
                && Instant::now() > until + PATIENCE / 4
            {
                return Err(error);
            }
        }
        let count = read_count(&mut control)?;
        Ok(count.units / count.seconds)
    }

    /// One byte there and back at a time: median and 99th percentile in µs.
    fn trips(&self) -> io::Result<(f64, f64)> {
        let mut stream = self.ask(Ask::Trips)?;
        let mut times = Vec::with_capacity(1 << 16);
        let start = Instant::now();
        let mut byte = [1];
        while start.elapsed() < self.span + WARM || times.is_empty() {
            let sent = Instant::now();
            stream.write_all(&byte)?;
            stream.read_exact(&mut byte)?;
            if sent - start >= WARM {
                times.push(sent.elapsed().as_nanos() as f64 / 1e3);
            }
        }
        times.sort_unstable_by(f64::total_cmp);
        let at = |share: f64| times.get((times.len() as f64 * share) as usize).copied().unwrap_or(0.0);
        Ok((at(0.5), at(0.99)))
    }
}

fn one_connection(to: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // Ended by a reset: no port is held for a minute (RFC 9293 3.6), of which there are some thousands.
    sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
    stream.write_all(&[1])?;
    stream.read_exact(&mut [0])
}

fn send(mut stream: TcpStream, until: Instant) -> io::Result<Count> {
    let data = vec![0x5a; CHUNK];
    while goes_on(&stream, until) {
        stream.write_all(&data)?;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    read_count(&mut stream)
}

/// Whether to send more: the receiver has not said its count, and may still.
fn goes_on(answer: &TcpStream, until: Instant) -> bool {
    let now = Instant::now();
    if now < until {
        return true;
    }
    let said = rustix::net::recv(answer, &mut [0; 1][..], RecvFlags::PEEK | RecvFlags::DONTWAIT);
    said.is_err_and(|errno| errno == rustix::io::Errno::AGAIN) && now < until + PATIENCE / 2
}

fn read_count(stream: &mut TcpStream) -> io::Result<Count> {
    let text = line(stream)?;
    let words: Vec<&str> = text.split(' ').collect();
    let [units, seconds, cpu] = words.as_slice() else {
        return Err(io::Error::other("too little arrived to be counted"));
    };
    Ok(Count { units: parse(units)?, seconds: parse(seconds)?, cpu: parse(cpu)? })
}

fn parse<T: FromStr>(text: &str) -> io::Result<T> {
    text.parse().map_err(|_| io::Error::other(format!("the other side said {text:?}")))
}

/// A token nobody guesses.
pub fn fresh_token() -> io::Result<String> {
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_they_are_written() {
        for ask in [
            Ask::Hello,
            Ask::Trips,
            Ask::Stream(300, 1000),
            Ask::Datagrams(300, 100, 40_000),
            Ask::Answered(300, 100, 40_000),
            Ask::Connections(300, 100),
        ] {
            assert_eq!(Ask::read(ask.line("secret-1").trim_end(), "secret-1"), Some(ask));
        }
        for (line, why) in [
            ("loden-bench/2 secret-2 hello", "another token"),
            ("loden-bench/2 secret- hello", "a part of the token"),
            ("loden-bench/2 secret-11 hello", "more than the token"),
            ("loden-bench/1 secret-1 hello", "another version"),
            ("loden-bench/2 secret-1 stream 300", "too few words"),
            ("loden-bench/2 secret-1 connections 1 1 1", "too many words"),
            ("loden-bench/2 secret-1 stream 300 60001", "too long"),
            ("loden-bench/2 secret-1 datagrams 1 1 70000", "no port"),
            ("GET / HTTP/1.1", "another protocol"),
            ("", "nothing"),
        ] {
            assert_eq!(Ask::read(line, "secret-1"), None, "{why}");
        }
    }

    fn server(token: &str) -> Server {
        Server::start("127.0.0.1:0".parse().unwrap(), token, Arc::new(|| "here".to_owned()), || {}).unwrap()
    }

    #[test]
    fn all_kinds_of_traffic_are_counted() {
        let server = server("secret-1");
        let span = Duration::from_millis(100);
        let client = Client { to: server.at(), token: "secret-1".to_owned(), span, apart: false };
        assert_eq!(client.hello().unwrap(), "here");
        let taken = client.turn().unwrap();
        let rates = [taken.one, taken.many, taken.datagrams, taken.answered, taken.connections, taken.half];
        assert!(rates.iter().all(|rate| *rate > 0.0), "{taken:?}");
        // Ticks are of 10 ms: little work may show as none.
        let work = [taken.cpu, taken.each, taken.each_answered];
        assert!(work.iter().all(|share| *share >= 0.0) && taken.most >= taken.half, "{taken:?}");
    }

    #[test]
    fn who_does_not_know_the_token_hears_nothing() {
        let server = server("secret-1");
        let span = Duration::from_millis(100);
        let client = Client { to: server.at(), token: "secret-2".to_owned(), span, apart: false };
        assert!(client.hello().is_err());
        let mut stream = TcpStream::connect(server.at()).unwrap();
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        let mut heard = Vec::new();
        // Closed, perhaps with a reset for what was not read.
        let _ = stream.read_to_end(&mut heard);
        assert!(heard.is_empty());
    }

    #[test]
    fn a_server_ends_with_its_value() {
        let at = server("secret-1").at();
        assert!(TcpStream::connect(at).is_err());
    }
}
