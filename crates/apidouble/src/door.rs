//! Where connections come in: listening, TLS, and a door that is shut, deaf, or slams.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::mpsc as answers;
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;

use crate::serve::serve;
use crate::shared::Shared;

/// Makes the listener of a door: called at the start and after each time the door was shut. It may enter a
/// network namespace first, on a thread of its own; the listener stays in the namespace it was made in.
pub type Bind = Box<dyn FnMut() -> io::Result<TcpListener> + Send>;

/// A place to listen at.
pub struct Door {
    pub(crate) bind: Bind,
    pub(crate) tls: bool,
    pub(crate) names: Vec<String>,
}

impl Door {
    /// Plain HTTP at `address`; port 0 takes a free one.
    pub fn http(address: &str) -> Self {
        let address = address.to_owned();
        Self::made_by(false, Box::new(move || TcpListener::bind(&address)))
    }

    /// HTTPS at `address`, with a certificate of the double's own authority.
    pub fn https(address: &str) -> Self {
        Self { tls: true, ..Self::http(address) }
    }

    /// A listener made by the caller.
    pub fn made_by(tls: bool, bind: Bind) -> Self {
        Self { bind, tls, names: Vec::new() }
    }

    /// Another name or address that the certificate is good for, beside the listener's own, loopback,
    /// `localhost` and the names of the service `kubernetes`.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        self.names.push(name.to_owned());
        self
    }
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Door").field("tls", &self.tls).field("names", &self.names).finish_non_exhaustive()
    }
}

/// What a door is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Connections are taken, and served.
    Open,
    /// Connections are taken, and nothing follows.
    Deaf,
    /// Nobody listens: connections are refused.
    Shut,
}

/// An order, and where to say that it was carried out.
pub type Ordered = (Order, answers::Sender<io::Result<()>>);

/// A door with its listener.
pub struct Opened {
    pub(crate) bind: Bind,
    pub(crate) listener: TcpListener,
    pub(crate) tls: Option<TlsAcceptor>,
}

impl Opened {
    /// Listens, and remembers the port it got.
    pub fn new(mut door: Door, tls: impl FnOnce(&[String]) -> io::Result<TlsAcceptor>) -> io::Result<Self> {
        let listener = (door.bind)()?;
        let address = listener.local_addr()?;
        door.names.push(address.ip().to_string());
        let tls = if door.tls { Some(tls(&door.names)?) } else { None };
        Ok(Self { bind: door.bind, listener, tls })
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// Takes connections until `orders` ends. `slams` counts how often all connections were to break.
pub async fn attend(
    shared: Arc<Shared>,
    mut door: Opened,
    mut orders: mpsc::UnboundedReceiver<Ordered>,
    slams: watch::Receiver<u64>,
) {
    let mut order = Order::Open;
    let mut listener = listen(door.listener).ok();
    loop {
        let accepted = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            told = orders.recv() => {
                let Some((wanted, answer)) = told else { return };
                order = wanted;
                let done = match wanted {
                    Order::Shut => {
                        listener = None;
                        Ok(())
                    }
                    _ if listener.is_some() => Ok(()),
                    _ => (door.bind)().and_then(listen).map(|made| listener = Some(made)),
                };
                let _nobody_waits = answer.send(done);
            }
            connection = accepted => match connection {
                Ok((stream, _)) => {
                    let serving = connection_of(shared.clone(), stream, door.tls.clone(), order);
                    tokio::spawn(until_slammed(slams.clone(), serving));
                }
                // No descriptors left, most likely: others will be given back.
                Err(_) => sleep(Duration::from_millis(10)).await,
            },
        }
    }
}

fn listen(listener: TcpListener) -> io::Result<tokio::net::TcpListener> {
    listener.set_nonblocking(true)?;
    tokio::net::TcpListener::from_std(listener)
}

async fn until_slammed(mut slams: watch::Receiver<u64>, serving: impl Future<Output = ()>) {
    slams.mark_unchanged();
    tokio::select! {
        () = serving => {}
        _ = slams.changed() => {}
    }
}

async fn connection_of(shared: Arc<Shared>, stream: TcpStream, tls: Option<TlsAcceptor>, order: Order) {
    if order == Order::Deaf {
        return std::future::pending().await;
    }
    // Events are small and wanted at once.
    let _slower_without = stream.set_nodelay(true);
    let Some(tls) = tls else { return http(shared, stream, false).await };
    if let Ok(stream) = tls.accept(stream).await {
        let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        http(shared, stream, h2).await;
    }
}

async fn http(shared: Arc<Shared>, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, h2: bool) {
    let service = service_fn(move |request| serve(shared.clone(), request));
    // A connection that breaks is the client's business, or was wanted.
    if h2 {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        let _broken = builder.timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service).await;
    } else {
        let builder = http1::Builder::new();
        let _broken = builder.serve_connection(TokioIo::new(stream), service).await;
    }
}
