//! Requests to the API server: one answer or a stream, with time limits, and failures as sentences that
//! say what to do.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use kube::client::Body;
use model::codec::annotation::Names;
use tokio::time::timeout;

use super::KubeOptions;
use super::access::{Access, Way, root_cause};
use super::object::{Decoder, Message, Node, Refusal};
use crate::{Heard, StoreError};

/// Time for an answer to begin, and between two pieces of one.
pub(super) const ANSWER: Duration = Duration::from_secs(10);
/// Of a refusal's text nobody needs more.
const LONGEST_REFUSAL: usize = 64 * 1024;
const AGENT: &str = concat!("loden/", env!("CARGO_PKG_VERSION"));
/// What a patch is, for the API server.
const STRATEGIC: &str = "application/strategic-merge-patch+json";

/// A request's kind, for messages and for the rights it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    GetPod,
    GetNode,
    ListNodes,
    WatchNodes,
    PatchStatus,
    CreateEvent,
}

impl Verb {
    fn action(self) -> &'static str {
        match self {
            Verb::GetPod => "get pod",
            Verb::GetNode => "get Node",
            Verb::ListNodes => "list Nodes",
            Verb::WatchNodes => "watch Nodes",
            Verb::PatchStatus => "patch nodes/status of Node",
            Verb::CreateEvent => "create an Event for Node",
        }
    }

    /// Name of a role, verbs and resource that allow it; of Nodes all that flannel's role has.
    fn right(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Verb::GetPod => ("pods", "get", "pods"),
            Verb::GetNode | Verb::ListNodes | Verb::WatchNodes => ("nodes", "get,list,watch", "nodes"),
            Verb::PatchStatus => ("nodes-status", "patch", "nodes/status"),
            Verb::CreateEvent => ("events", "create", "events"),
        }
    }
}

/// Why there is no good answer.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// No connection, or it broke, or it is silent; one sentence.
    Unreachable(String),
    /// The server said no.
    Refused {
        refusal: Refusal,
        /// When the server wants to be asked again.
        after: Option<Duration>,
        /// The same in one sentence.
        sentence: String,
    },
}

impl Fault {
    pub(super) fn code(&self) -> u16 {
        match self {
            Fault::Unreachable(_) => 0,
            Fault::Refused { refusal, .. } => refusal.code,
        }
    }

    pub(super) fn sentence(self) -> String {
        match self {
            Fault::Unreachable(sentence) | Fault::Refused { sentence, .. } => sentence,
        }
    }
}

impl From<Fault> for StoreError {
    fn from(fault: Fault) -> StoreError {
        match fault.code() {
            0 | 429 | 500.. => StoreError::Unreachable(fault.sentence()),
            401 | 403 => StoreError::Denied(fault.sentence()),
            _ => StoreError::Broken(fault.sentence()),
        }
    }
}

/// What is asked for.
pub(super) struct Ask<'a> {
    pub(super) verb: Verb,
    /// Whose object it is, for messages; may be empty.
    pub(super) name: &'a str,
    pub(super) method: Method,
    /// Path and query.
    pub(super) path: String,
    pub(super) body: String,
    /// Time for the answer to begin.
    pub(super) limit: Duration,
}

impl<'a> Ask<'a> {
    pub(super) fn get(verb: Verb, name: &'a str, path: String) -> Ask<'a> {
        Ask { verb, name, method: Method::GET, path, body: String::new(), limit: ANSWER }
    }
}

/// The API server.
pub(super) struct Client {
    options: KubeOptions,
    names: Names,
    access: tokio::sync::Mutex<Option<Arc<Access>>>,
    pub(super) heard: Heard,
}

impl Client {
    pub(super) fn new(options: KubeOptions, names: Names) -> Client {
        Client { options, names, access: tokio::sync::Mutex::new(None), heard: Heard::default() }
    }

    pub(super) fn names(&self) -> &Names {
        &self.names
    }

    /// Sends a request; gives the answer if it is a good one, before its body. Credentials that are not
    /// taken, and connections that broke, are made anew once.
    pub(super) async fn send(&self, ask: &Ask<'_>) -> Result<Stream, Fault> {
        let mut again = true;
        loop {
            let access = self.access().await?;
            let first = self.try_once(&access, ask).await;
            match first {
                Ok(answer) => return Ok(Stream { answer, access, heard: self.heard.clone() }),
                Err((fault, retry)) => {
                    if fault.code() == 0 || fault.code() == 401 {
                        self.forget(&access).await;
                    }
                    if !(retry && std::mem::take(&mut again)) {
                        return Err(fault);
                    }
                }
            }
        }
    }

    /// Sends a request and reads the one object of the answer.
    pub(super) async fn object(&self, ask: Ask<'_>) -> Result<Node, Fault> {
        let mut stream = self.send(&ask).await?;
        let mut decoder = Decoder::new(&self.names);
        let mut found = None;
        while let Some(piece) = stream.next(&ask, ANSWER).await? {
            let fed = decoder.feed(&piece, |message| {
                if let Message::Object(node) = message {
                    found = Some(*node);
                }
            });
            fed.map_err(|error| stream.broken(&ask, &error))?;
        }
        found.ok_or_else(|| stream.broken(&ask, "the answer is not an object of the Kubernetes API"))
    }

    /// Patches `nodes/status` of a Node, from which also its annotations may be written (flannel.md 4.3).
    pub(super) async fn patch_status(&self, node: &str, body: String) -> Result<Node, Fault> {
        let path = format!("/api/v1/nodes/{node}/status");
        let ask =
            Ask { verb: Verb::PatchStatus, name: node, method: Method::PATCH, path, body, limit: ANSWER };
        self.object(ask).await
    }

    async fn access(&self) -> Result<Arc<Access>, Fault> {
        let mut slot = self.access.lock().await;
        if let Some(access) = &*slot {
            return Ok(access.clone());
        }
        let access = Arc::new(Access::open(&self.options).await.map_err(Fault::Unreachable)?);
        *slot = Some(access.clone());
        Ok(access)
    }

    /// The next request reads all credentials again and connects anew.
    async fn forget(&self, access: &Arc<Access>) {
        let mut slot = self.access.lock().await;
        if slot.as_ref().is_some_and(|current| Arc::ptr_eq(current, access)) {
            *slot = None;
        }
    }

    /// The second value of a failure tells whether trying once more at once makes sense.
    async fn try_once(&self, access: &Access, ask: &Ask<'_>) -> Result<Response<Body>, (Fault, bool)> {
        let unreachable = |cause: &str| Fault::Unreachable(unreachable(access, ask, cause));
        let mut request = Request::builder()
            .method(ask.method.clone())
            .uri(&ask.path)
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, AGENT);
        match access.authorization() {
            Ok(Some(value)) => request = request.header(header::AUTHORIZATION, value),
            Ok(None) => {}
            Err(text) => {
                return Err((
                    Fault::Unreachable(format!("{} {}: {text}", ask.verb.action(), ask.name)),
                    false,
                ));
            }
        }
        match ask.method {
            Method::PATCH => request = request.header(header::CONTENT_TYPE, STRATEGIC),
            Method::POST => request = request.header(header::CONTENT_TYPE, "application/json"),
            _ => {}
        }
        let request = request
            .body(Body::from(ask.body.clone().into_bytes()))
            .map_err(|error| (unreachable(&error.to_string()), false))?;
        let answer = match timeout(ask.limit, access.client.send(request)).await {
            Err(_) => {
                let cause = format!("no answer within {} s", ask.limit.as_secs_f32().round());
                return Err((unreachable(&cause), false));
            }
            Ok(Err(error)) => {
                let connecting = matches!(&error, kube::Error::Service(inner)
                    if inner.downcast_ref::<hyper_util::client::legacy::Error>().is_none_or(|e| e.is_connect()));
                return Err((unreachable(&root_cause(&error)), !connecting));
            }
            Ok(Ok(answer)) => answer,
        };
        self.heard.touch();
        if answer.status().is_success() {
            return Ok(answer);
        }
        let fault = self.refused(access, ask, answer).await;
        let retry = fault.code() == 401;
        Err((fault, retry))
    }

    async fn refused(&self, access: &Access, ask: &Ask<'_>, answer: Response<Body>) -> Fault {
        let status = answer.status();
        let after = answer.headers().get(header::RETRY_AFTER);
        let after = after.and_then(|value| value.to_str().ok()?.parse().ok()).map(Duration::from_secs);
        let mut refusal = Refusal::default();
        let mut decoder = Decoder::new(&self.names);
        let mut body = answer.into_body();
        let mut read = 0;
        // Whatever cannot be read of it is left out: the status says enough.
        while let Ok(Some(Ok(frame))) = timeout(ANSWER, body.frame()).await {
            let Ok(piece) = frame.into_data() else { continue };
            read += piece.len();
            let fed = decoder.feed(&piece, |message| {
                if let Message::Refused(told) = message {
                    refusal = told;
                }
            });
            if fed.is_err() || read > LONGEST_REFUSAL {
                break;
            }
        }
        refusal.code = status.as_u16();
        let sentence = refused(access, ask, status, &refusal);
        Fault::Refused { refusal, after, sentence }
    }
}

/// The body of a good answer.
pub(super) struct Stream {
    answer: Response<Body>,
    access: Arc<Access>,
    heard: Heard,
}

impl Stream {
    /// The next piece; `None` at its orderly end.
    pub(super) async fn next(
        &mut self,
        ask: &Ask<'_>,
        limit: Duration,
    ) -> Result<Option<hyper::body::Bytes>, Fault> {
        loop {
            match timeout(limit, self.answer.body_mut().frame()).await {
                Err(_) => {
                    let cause = format!("nothing came for {} s", limit.as_secs_f32().round());
                    return Err(self.broken(ask, &cause));
                }
                Ok(None) => return Ok(None),
                Ok(Some(Ok(frame))) => {
                    self.heard.touch();
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
                Ok(Some(Err(error))) => {
                    let cause = root_cause(&error);
                    return Err(self.broken(ask, &format!("the connection broke: {cause}")));
                }
            }
        }
    }

    pub(super) fn broken(&self, ask: &Ask<'_>, cause: &str) -> Fault {
        Fault::Unreachable(unreachable(&self.access, ask, cause))
    }

    /// A refusal in the middle of a stream.
    pub(super) fn refused(&self, ask: &Ask<'_>, refusal: Refusal) -> Fault {
        let status = StatusCode::from_u16(refusal.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let sentence = refused(&self.access, ask, status, &refusal);
        Fault::Refused { refusal, after: None, sentence }
    }
}

fn action(ask: &Ask<'_>) -> String {
    let (verb, name) = (ask.verb.action(), ask.name);
    if name.is_empty() { verb.to_owned() } else { format!("{verb} {name}") }
}

fn unreachable(access: &Access, ask: &Ask<'_>, cause: &str) -> String {
    let server = &access.server;
    let way_out = match &access.way {
        _ if cause.contains("certificate") => {
            "its certificate must fit this address and be signed by the authority we were given".to_owned()
        }
        Way::Pod => "this is the service address, which kube-proxy provides: check that kube-proxy runs on this node, \
                     or go past it with --kube-api-url=https://ADDRESS:6443"
            .to_owned(),
        Way::File(path) => {
            format!("check it: kubectl --kubeconfig {} get --raw /livez", path.display())
        }
        Way::Url | Way::UrlInPod => format!("check --kube-api-url: curl -k {server}/livez"),
    };
    format!("{}: Kubernetes API server {server}: {cause}; {way_out}", action(ask))
}

fn refused(access: &Access, ask: &Ask<'_>, status: StatusCode, refusal: &Refusal) -> String {
    let server = &access.server;
    let action = action(ask);
    let user = refusal.message.split_once("User \"").and_then(|(_, rest)| Some(rest.split_once('"')?.0));
    match status.as_u16() {
        401 => unauthorized(access, &action, "does not take our credentials"),
        403 if user == Some("system:anonymous") => unauthorized(access, &action, "got no credentials"),
        403 => {
            let user = user.unwrap_or("our user");
            format!("{action}: the API server {server} denies it to {user}; {}", grant(ask.verb, user))
        }
        404 if ask.verb == Verb::GetNode || ask.verb == Verb::PatchStatus => format!(
            "{action}: there is no such Node at {server}; start its kubelet, or set NODE_NAME to one of: kubectl get nodes"
        ),
        code => {
            let what = match refusal.message.as_str() {
                "" => status.canonical_reason().unwrap_or("no reason given"),
                message => message,
            };
            format!("{action}: Kubernetes API server {server} answers {code}: {}", what.replace('\n', " "))
        }
    }
}

fn unauthorized(access: &Access, action: &str, what: &str) -> String {
    let server = &access.server;
    let way_out = match &access.way {
        Way::Pod | Way::UrlInPod => {
            "the service account's token has expired or is of another cluster: delete this pod to get a new one".to_owned()
        }
        Way::File(path) => {
            format!("renew the credentials in it: kubectl --kubeconfig {} auth whoami", path.display())
        }
        Way::Url => "--kube-api-url alone brings none outside of a pod: give --kubeconfig-file too".to_owned(),
    };
    format!("{action}: Kubernetes API server {server} {what} (401); {way_out}")
}

/// The commands that allow it.
fn grant(verb: Verb, user: &str) -> String {
    let (name, verbs, resource) = verb.right();
    let subject = match user.strip_prefix("system:serviceaccount:") {
        Some(account) => format!("--serviceaccount={account}"),
        None => format!("--user={user}"),
    };
    format!(
        "allow it: kubectl create clusterrole loden-{name} --verb={verbs} --resource={resource} && kubectl create \
         clusterrolebinding loden-{name} --clusterrole=loden-{name} {subject}"
    )
}
