//! One connection to one etcd member: TCP or Unix socket, TLS if asked, HTTP/2 with keep-alive pings,
//! gRPC on top. Knows nothing of leases or failover; keeps the true cause of its own end.

use std::error::Error;
use std::fmt::Write as _;
use std::future::Future;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::metadata::AsciiMetadataValue;

use super::endpoint::{Endpoint, Place};
use super::tls::TlsFiles;

/// Etcd breaks the connection of a client that pings more often than every 5 s.
const PING_EVERY: Duration = Duration::from_secs(8);
const PING_ANSWER: Duration = Duration::from_secs(5);
/// Listing is paged, so a message holds at most a page of values; etcd caps a value at 1.5 MiB.
pub(super) const MAX_MESSAGE: usize = 256 << 20;

/// An open connection. Dropping the last reference closes it.
pub(super) struct Conn {
    grpc: Grpc<Wire>,
    /// As the user wrote it.
    pub endpoint: String,
    /// Proof of our user, if there is one.
    pub token: Mutex<Option<AsciiMetadataValue>>,
    ended: Arc<OnceLock<String>>,
    driver: JoinHandle<()>,
}

impl Drop for Conn {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Conn {
    /// A handle for one request.
    pub(super) fn grpc(&self) -> Grpc<Wire> {
        self.grpc.clone()
    }

    /// Gives the connection up; everything still under way on it fails.
    pub(super) fn condemn(&self) {
        let _ = self.ended.set("given up after an unanswered request".to_owned());
        self.driver.abort();
    }

    pub(super) fn is_alive(&self) -> bool {
        !self.driver.is_finished()
    }

    pub(super) fn token(&self) -> Option<AsciiMetadataValue> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_token(&self, token: Option<AsciiMetadataValue>) {
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = token;
    }

    /// Why a request failed on the way: the end of the connection tells more than the request ("operation
    /// was canceled"), so wait for it a moment.
    pub(super) async fn cause(&self, status: &tonic::Status) -> String {
        for _ in 0..10 {
            if let Some(cause) = self.ended.get() {
                return cause.clone();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        match status.source() {
            Some(source) => explain(source),
            None => status.message().to_owned(),
        }
    }
}

/// Connects. The caller sets the time limit.
///
/// # Errors
/// The cause with advice, without the endpoint.
pub(super) async fn connect(endpoint: &Endpoint, tls: &TlsFiles) -> Result<Conn, String> {
    let mut io: Box<dyn Stream> = match &endpoint.place {
        Place::Tcp(host, port) => {
            let socket = TcpStream::connect((host.as_str(), *port)).await.map_err(|e| explain(&e))?;
            let _ = socket.set_nodelay(true);
            Box::new(socket)
        }
        Place::Unix(path) => Box::new(UnixStream::connect(path).await.map_err(|e| explain(&e))?),
    };
    if endpoint.tls {
        let name = ServerName::try_from(endpoint.host().to_owned()).map_err(|e| explain(&e))?;
        let session = TlsConnector::from(tls.load()?).connect(name, io).await;
        io = Box::new(session.map_err(|e| match e.kind() {
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
                format!("the port hung up on TLS: use http:// if etcd serves no TLS there ({e})")
            }
            _ => explain(&e),
        })?);
    }
    let heard = Arc::new(AtomicBool::new(endpoint.tls));
    let io = Candid { session: io, failed: None, heard: heard.clone() };
    let (sender, driver) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_ANSWER)
        // Etcd counts a ping without an open stream as an offence.
        .keep_alive_while_idle(false)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(2 << 20)
        .handshake(TokioIo::new(io))
        .await
        .map_err(|e| explain(&e))?;
    let ended = Arc::new(OnceLock::new());
    let note = ended.clone();
    let driver = tokio::spawn(async move {
        let result = driver.await;
        let cause = match result {
            _ if !heard.load(Ordering::Relaxed) => {
                "the port hung up without a word: is etcd behind it, and does it speak http:// there, not https://".to_owned()
            }
            Ok(()) => "the member closed the connection".to_owned(),
            Err(error) => explain(&error),
        };
        let _ = note.set(cause);
    });
    let origin = endpoint.origin().parse().map_err(|e| explain(&e))?;
    let grpc = Grpc::with_origin(Wire(sender), origin).max_decoding_message_size(MAX_MESSAGE);
    Ok(Conn { grpc, endpoint: endpoint.text.clone(), token: Mutex::new(None), ended, driver })
}

/// A byte stream of whatever kind.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A stream that tells why the other side hung up. A TLS server that dislikes our certificate says so only
/// after our side believes the handshake done: we then fail to write before we have read its reason.
struct Candid {
    session: Box<dyn Stream>,
    /// Why writing failed. Nothing is written any more, but what has arrived is still read.
    failed: Option<io::Error>,
    /// Whether a word has come from the other side.
    heard: Arc<AtomicBool>,
}

impl Candid {
    /// Gives the result of a write. In place of a failure comes the alert that is still to be read, if any.
    fn reason<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match result {
            Poll::Ready(Err(error)) => self.failed = Some(error),
            fine => return fine,
        }
        let mut space = [0; 64];
        // The line is dead, so this is ready soon.
        let read = ready!(Pin::new(&mut self.session).poll_read(cx, &mut ReadBuf::new(&mut space)));
        let error = self.failed.take();
        Poll::Ready(Err(match read {
            Err(alert) => alert,
            Ok(()) => error.unwrap_or_else(|| ErrorKind::BrokenPipe.into()),
        }))
    }

    /// What is to be done again after a failure that still waits for its reason.
    fn again<T>(&mut self) -> Option<Poll<io::Result<T>>> {
        self.failed.take().map(|error| Poll::Ready(Err(error)))
    }
}

impl AsyncRead for Candid {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = ready!(Pin::new(&mut self.session).poll_read(cx, buf));
        if !buf.filled().is_empty() {
            self.heard.store(true, Ordering::Relaxed);
        }
        Poll::Ready(read)
    }
}

impl AsyncWrite for Candid {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = match self.again() {
            Some(failed) => failed,
            None => Pin::new(&mut self.session).poll_write(cx, buf),
        };
        self.reason(cx, result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = match self.again() {
            Some(failed) => failed,
            None => Pin::new(&mut self.session).poll_flush(cx),
        };
        self.reason(cx, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.session).poll_shutdown(cx)
    }
}

/// Hyper's sender as the service `tonic` drives.
#[derive(Clone)]
pub(super) struct Wire(http2::SendRequest<Body>);

impl tower_service::Service<http::Request<Body>> for Wire {
    type Response = http::Response<hyper::body::Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

const CLIENT_CERTIFICATE: &str = "etcd wants a client certificate signed by the CA it trusts (its --trusted-ca-file): \
                                  check etcd-certfile and etcd-keyfile";

/// What the libraries' words mean to the person who set etcd up. First match wins.
const ADVICE: &[(&str, &str)] = &[
    ("Connection refused", "nothing listens there: is etcd running, and are address and port right?"),
    ("No such file", "no such socket: is etcd running, and is the path right?"),
    ("failed to lookup", "the host name does not resolve"),
    ("CertificateRequired", CLIENT_CERTIFICATE),
    ("BadCertificate", CLIENT_CERTIFICATE),
    ("UnknownCA", CLIENT_CERTIFICATE),
    ("DecryptError", CLIENT_CERTIFICATE),
    ("CertificateExpired", "etcd says our client certificate has expired: renew it"),
    ("UnknownIssuer", "etcd's certificate is not signed by a CA we trust: give that CA with etcd-cafile"),
    ("CaUsedAsEndEntity", "etcd serves a CA certificate as its own: give it a certificate signed by the CA"),
    (
        "NotValidForName",
        "etcd's certificate is made out to other names: use one of them, or renew it with this one",
    ),
    ("invalid peer certificate: Expired", "etcd's certificate has expired: renew it"),
    ("NotValidYet", "etcd's certificate is not valid yet: are the clocks of both machines right?"),
    ("InvalidContentType", "the port does not speak TLS: use http:// instead of https://"),
    ("peer is incompatible", "no common TLS version or cipher: etcd must offer TLS 1.2 or newer"),
    ("frame with invalid size", "the port does not speak plain HTTP/2: use https:// if etcd serves TLS"),
    ("keep-alive timed out", "the member stopped answering: is its host up and reachable?"),
    ("KeepAliveTimedOut", "the member stopped answering: is its host up and reachable?"),
];

/// An error with its causes, and what to do about it.
pub(super) fn explain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let more = source.to_string();
        if !text.contains(&more) {
            let _ = write!(text, ": {more}");
        }
        next = source.source();
    }
    match ADVICE.iter().find(|(sign, _)| text.contains(sign)) {
        Some((_, advice)) => format!("{advice} ({text})"),
        None => text,
    }
}
