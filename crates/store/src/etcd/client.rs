//! A client for a cluster of etcd members: one connection at a time, moved to the next member when one
//! fails or stays silent; user and password; a time limit on every request.
//!
//! Everything sent through [`Client::call`] may be sent twice (reads, and writes that compare revisions
//! or name their own lease id), so every call is retried on the other members.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use tokio::sync::{Mutex, mpsc};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

use super::endpoint::Endpoint;
use super::proto::{
    AuthenticateRequest, AuthenticateResponse, WatchCreateRequest, WatchRequest, WatchResponse,
};
use super::tls::TlsFiles;
use super::wire::{self, Conn};
use crate::{Heard, StoreError};

const CONNECT_LIMIT: Duration = Duration::from_secs(3);
const REQUEST_LIMIT: Duration = Duration::from_secs(5);

/// Why a call came to nothing.
#[derive(Debug)]
pub(super) enum Fault {
    /// No member answered.
    Unreachable(String),
    /// Password, certificate or permission.
    Denied(String),
    /// A member answered with an error of its own.
    Refused { endpoint: String, message: String },
}

impl From<Fault> for StoreError {
    fn from(fault: Fault) -> StoreError {
        match fault {
            Fault::Unreachable(text) => StoreError::Unreachable(text),
            Fault::Denied(text) => StoreError::Denied(text),
            Fault::Refused { endpoint, message, .. } if message.contains("database space exceeded") => {
                StoreError::Broken(format!(
                    "write to etcd at {endpoint}: its database is full; compact and defragment it, then `etcdctl alarm disarm`"
                ))
            }
            Fault::Refused { endpoint, message, .. } => {
                StoreError::Broken(format!("ask etcd at {endpoint}: {message}"))
            }
        }
    }
}

/// A user of etcd's own.
#[derive(Clone)]
pub(super) struct Credentials {
    pub name: String,
    pub password: String,
}

pub(super) struct Client {
    endpoints: Vec<Endpoint>,
    tls: TlsFiles,
    user: Option<Credentials>,
    state: Mutex<State>,
    pub heard: Heard,
}

#[derive(Default)]
struct State {
    /// Index of the member to try next.
    at: usize,
    conn: Option<Arc<Conn>>,
}

/// How one request on one connection ended.
enum Outcome<T> {
    Done(T),
    /// The connection is of no use; another member may be.
    Dead(String),
    Failed(Fault),
    /// Our token has lapsed.
    Stale(String),
}

impl<T> Outcome<T> {
    fn map<U>(self, made: impl FnOnce(T) -> U) -> Outcome<U> {
        match self {
            Outcome::Done(value) => Outcome::Done(made(value)),
            Outcome::Dead(cause) => Outcome::Dead(cause),
            Outcome::Failed(fault) => Outcome::Failed(fault),
            Outcome::Stale(message) => Outcome::Stale(message),
        }
    }
}

impl Client {
    pub(super) fn new(endpoints: Vec<Endpoint>, tls: TlsFiles, user: Option<Credentials>) -> Client {
        Client { endpoints, tls, user, state: Mutex::default(), heard: Heard::default() }
    }

    /// The members, for messages.
    pub(super) fn members(&self) -> String {
        let texts: Vec<_> = self.endpoints.iter().map(|e| e.text.as_str()).collect();
        texts.join(",")
    }

    /// Sends `request` to `path` of whichever member answers.
    ///
    /// # Errors
    /// `Unreachable` names every member with its cause.
    pub(super) async fn call<Q, R>(&self, path: &'static str, request: Q) -> Result<R, Fault>
    where
        Q: prost::Message + Clone + Sync + 'static,
        R: prost::Message + Default + Sync + 'static,
    {
        let answer = self.on_some_member(async |conn| self.unary(conn, path, request.clone()).await).await?;
        self.heard.touch();
        Ok(answer)
    }

    /// Opens a watch. The stream ends when the sender or the connection is dropped.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub(super) async fn watch(&self, create: WatchCreateRequest) -> Result<Watching, Fault> {
        self.on_some_member(async |conn| {
            let (keep, requests) = mpsc::channel(1);
            let _ = keep.try_send(WatchRequest { create: Some(create.clone()) });
            let mut request = authorised(conn, ReceiverStream::new(requests));
            // A member cut off from its cluster must say so instead of staying quiet.
            request
                .metadata_mut()
                .insert("hasleader", tonic::metadata::AsciiMetadataValue::from_static("true"));
            let mut grpc = conn.grpc();
            let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
            let opened = timeout(REQUEST_LIMIT, async {
                grpc.ready().await.map_err(|e| Status::from_error(Box::new(e)))?;
                grpc.streaming(request, path, ProstCodec::default()).await
            });
            let outcome = self.judge(conn, opened.await).await;
            outcome.map(|answer| Watching {
                stream: answer.into_inner(),
                conn: conn.clone(),
                heard: self.heard.clone(),
                _keep: keep,
            })
        })
        .await
    }

    /// Runs `job` on the current connection, and on a failed one moves to the next member, each at most
    /// once and the first one twice: its connection may just have been an old one.
    async fn on_some_member<T>(&self, job: impl AsyncFn(&Arc<Conn>) -> Outcome<T>) -> Result<T, Fault> {
        let mut causes = BTreeMap::new();
        let mut renewed = false;
        let mut tries = self.endpoints.len() + 1;
        while tries > 0 {
            tries -= 1;
            let (at, conn) = match self.connection().await {
                Ok(found) => found,
                Err((_, denied @ Fault::Denied(_))) => return Err(denied),
                Err((at, fault)) => {
                    causes.insert(at, fault.text());
                    continue;
                }
            };
            match job(&conn).await {
                Outcome::Done(value) => return Ok(value),
                Outcome::Failed(fault) => return Err(fault),
                Outcome::Dead(cause) => {
                    self.give_up(&conn).await;
                    causes.insert(at, cause);
                }
                Outcome::Stale(message) if renewed => {
                    return Err(Fault::Denied(format!("log in to etcd at {}: {message}", conn.endpoint)));
                }
                Outcome::Stale(_) => {
                    renewed = true;
                    tries += 1;
                    if let Err(fault) = self.authenticate(&conn).await {
                        self.give_up(&conn).await;
                        return Err(fault);
                    }
                }
            }
        }
        let mut text = "reach etcd".to_owned();
        for (n, (at, cause)) in causes.iter().enumerate() {
            let _ =
                write!(text, "{} {}: {cause}", if n == 0 { " at" } else { "; at" }, self.endpoints[*at].text);
        }
        Err(Fault::Unreachable(text))
    }

    /// The open connection, or a new one to the member whose turn it is. After a failure it is the next
    /// one's turn.
    async fn connection(&self) -> Result<(usize, Arc<Conn>), (usize, Fault)> {
        let mut state = self.state.lock().await;
        let at = state.at;
        if let Some(conn) = state.conn.as_ref().filter(|conn| conn.is_alive()) {
            return Ok((at, conn.clone()));
        }
        state.conn = None;
        let opened = timeout(CONNECT_LIMIT, wire::connect(&self.endpoints[at], &self.tls)).await;
        let opened = opened.unwrap_or_else(|_| {
            Err(format!(
                "no answer within {} s: is the host up, and does a firewall let us through?",
                CONNECT_LIMIT.as_secs()
            ))
        });
        let result = match opened {
            Ok(conn) => self.authenticate(&conn).await.map(|()| Arc::new(conn)),
            Err(cause) => Err(Fault::Unreachable(cause)),
        };
        match result {
            Ok(conn) => {
                tracing::debug!(endpoint = conn.endpoint, "connected to etcd at {}", conn.endpoint);
                state.conn = Some(conn.clone());
                Ok((at, conn))
            }
            Err(fault) => {
                state.at = (at + 1) % self.endpoints.len();
                Err((at, fault))
            }
        }
    }

    /// Closes a connection that failed; the next member takes over.
    pub(super) async fn give_up(&self, conn: &Arc<Conn>) {
        conn.condemn();
        let mut state = self.state.lock().await;
        if state.conn.as_ref().is_some_and(|current| Arc::ptr_eq(current, conn)) {
            state.conn = None;
            state.at = (state.at + 1) % self.endpoints.len();
        }
    }

    /// Fetches a token for our user, if we have one and etcd asks for it.
    async fn authenticate(&self, conn: &Conn) -> Result<(), Fault> {
        let Some(user) = &self.user else { return Ok(()) };
        conn.set_token(None);
        let request = AuthenticateRequest { name: user.name.clone(), password: user.password.clone() };
        match self.unary(conn, "/etcdserverpb.Auth/Authenticate", request).await {
            Outcome::Done(AuthenticateResponse { token }) => {
                let token = token.parse().map_err(|_| {
                    Fault::Denied(format!("log in to etcd at {}: its token is not text", conn.endpoint))
                })?;
                conn.set_token(Some(token));
                Ok(())
            }
            Outcome::Failed(Fault::Refused { message, .. })
                if message.contains("authentication is not enabled") =>
            {
                Ok(())
            }
            Outcome::Failed(Fault::Refused { message, .. }) | Outcome::Stale(message) => {
                Err(Fault::Denied(format!(
                    "log in to etcd at {} as {:?}: {message}; check etcd-username and etcd-password",
                    conn.endpoint, user.name
                )))
            }
            Outcome::Failed(fault) => Err(fault),
            Outcome::Dead(cause) => Err(Fault::Unreachable(cause)),
        }
    }

    async fn unary<Q, R>(&self, conn: &Conn, path: &'static str, request: Q) -> Outcome<R>
    where
        Q: prost::Message + Sync + 'static,
        R: prost::Message + Default + Sync + 'static,
    {
        let mut grpc = conn.grpc();
        let request = authorised(conn, request);
        let answer = timeout(REQUEST_LIMIT, async {
            grpc.ready().await.map_err(|e| Status::from_error(Box::new(e)))?;
            grpc.unary(request, PathAndQuery::from_static(path), ProstCodec::default()).await
        });
        self.judge(conn, answer.await).await.map(tonic::Response::into_inner)
    }

    /// Sorts the ways a request can fail.
    async fn judge<T>(
        &self,
        conn: &Conn,
        answer: Result<Result<T, Status>, tokio::time::error::Elapsed>,
    ) -> Outcome<T> {
        let status = match answer {
            Ok(Ok(value)) => return Outcome::Done(value),
            Ok(Err(status)) => status,
            Err(_) => return Outcome::Dead(format!("no answer within {} s", REQUEST_LIMIT.as_secs())),
        };
        if status.source().is_some() {
            return Outcome::Dead(conn.cause(&status).await);
        }
        let message = status.message().to_owned();
        let nameless = message.contains("user name is empty");
        let stale = message.contains("invalid auth token") || message.contains("auth store is old");
        match status.code() {
            _ if self.user.is_some() && (stale || nameless) => Outcome::Stale(message),
            _ if nameless => Outcome::Failed(Fault::Denied(format!(
                "ask etcd at {}: it wants a user: give etcd-username and etcd-password",
                conn.endpoint
            ))),
            Code::PermissionDenied | Code::Unauthenticated => Outcome::Failed(Fault::Denied(format!(
                "ask etcd at {}: {message}; grant the user read and write on our prefix",
                conn.endpoint
            ))),
            // No leader, too busy, shutting down, not an etcd at all: somebody else may do better.
            Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded | Code::Unimplemented => {
                Outcome::Dead(message)
            }
            Code::ResourceExhausted if message.contains("too many requests") => Outcome::Dead(message),
            Code::Unknown | Code::Internal if !message.contains("etcdserver") => {
                Outcome::Dead(format!("{message}: is that an etcd with API v3?"))
            }
            _ => Outcome::Failed(Fault::Refused { endpoint: conn.endpoint.clone(), message }),
        }
    }
}

impl Fault {
    fn text(self) -> String {
        match self {
            Fault::Unreachable(text) | Fault::Denied(text) | Fault::Refused { message: text, .. } => text,
        }
    }
}

/// A request that carries our token.
fn authorised<Q>(conn: &Conn, message: Q) -> Request<Q> {
    let mut request = Request::new(message);
    if let Some(token) = conn.token() {
        request.metadata_mut().insert("token", token);
    }
    request
}

/// An open watch.
pub(super) struct Watching {
    stream: Streaming<WatchResponse>,
    pub conn: Arc<Conn>,
    heard: Heard,
    /// Etcd ends the watch when our side of the stream closes.
    _keep: mpsc::Sender<WatchRequest>,
}

impl Watching {
    /// The next answer.
    ///
    /// # Errors
    /// Why the stream ended, without the endpoint.
    pub(super) async fn next(&mut self) -> Result<WatchResponse, String> {
        match self.stream.message().await {
            Ok(Some(response)) => {
                self.heard.touch();
                Ok(response)
            }
            Ok(None) => Err("the member ended the watch".to_owned()),
            Err(status) if status.source().is_some() => Err(self.conn.cause(&status).await),
            Err(status) => Err(status.message().to_owned()),
        }
    }
}
