//! The agent's page for browsers: what `loden status`, `loden top` and the model of `loden trace` say, to look at. Off
//! unless `LODEN_WEB` asks for it, on loopback unless that is said, too; nothing on it changes or sends anything
//! (decision 0196).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use kernel::Netns;
use model::Json;
use tokio::sync::Mutex;

use crate::board::{Board, Topic};
use crate::guests::Guests;
use crate::health;
use crate::pods::{self, names::Names};
use crate::socket::Desk;
use crate::top::{collect, json};
use crate::trace::{Model, Step, Verdict, Walk, model as tables, picture};

/// Version of the JSON of a trace.
const VERSION: u32 = 1;
/// Looks for several pages at once are one look.
const FRESH: Duration = Duration::from_secs(1);
/// After the address: other hosts may look as well.
const EXPOSED: &str = "exposed";

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const FILES: [(&str, &str, &str); 3] = [
    ("/", "text/html; charset=utf-8", include_str!("web/index.html")),
    ("/style.css", "text/css; charset=utf-8", include_str!("web/style.css")),
    ("/app.js", "text/javascript; charset=utf-8", include_str!("web/app.js")),
];

/// Sent with everything. The page loads nothing from elsewhere, is in nobody's frame and runs no script but its own.
const HEADERS: [(HeaderName, &str); 5] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
         form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// Where to listen, by what `LODEN_WEB` says; `None` for nowhere.
///
/// # Errors
/// One sentence: no address, or one that others reach without leave.
pub fn place(said: &str) -> Result<Option<SocketAddr>, String> {
    if ["", "none"].contains(&said) {
        return Ok(None);
    }
    let (address, leave) =
        said.split_once(',').map_or((said, None), |(address, leave)| (address, Some(leave)));
    let address: SocketAddr = address.parse().map_err(|_| {
        format!("LODEN_WEB={said:?} is no address with a port; write for example 127.0.0.1:9466, or none")
    })?;
    match leave {
        Some(EXPOSED) => Ok(Some(address)),
        Some(other) => {
            Err(format!("LODEN_WEB={said:?}: after the comma only {EXPOSED} has a meaning, not {other:?}"))
        }
        None if address.ip().to_canonical().is_loopback() => Ok(Some(address)),
        None => Err(format!(
            "LODEN_WEB={said:?}: {} can be reached by other hosts, and whoever reaches the page may read it; write \
             {address},{EXPOSED} if that is meant, else 127.0.0.1:{}",
            address.ip(),
            address.port()
        )),
    }
}

/// Whether a request may be answered. A page of another site cannot read what we say unless its name leads to our
/// address; so no name is taken for ours but `localhost`. And nobody else's page may make us work.
fn admits(headers: &HeaderMap) -> Result<(), String> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let bare = match host.rsplit_once(':') {
        Some((name, port)) if port.chars().all(|c| c.is_ascii_digit()) && !port.is_empty() => name,
        _ => host,
    };
    let address = bare.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(bare);
    if address.parse::<IpAddr>().is_err() && !bare.eq_ignore_ascii_case("localhost") {
        return Err(format!(
            "the Host {host:?} is neither an address nor localhost; ask for the page by its address"
        ));
    }
    match headers.get("sec-fetch-site").map(HeaderValue::as_bytes) {
        None | Some(b"same-origin" | b"none") => Ok(()),
        // A link that somebody follows shows the page; it reads nothing from it.
        Some(_) if headers.get("sec-fetch-mode").is_some_and(|mode| mode == "navigate") => Ok(()),
        Some(_) => Err("another site's page may not ask".to_owned()),
    }
}

/// What is answered.
struct Answer {
    code: StatusCode,
    kind: &'static str,
    body: Bytes,
}

impl Answer {
    fn new(code: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
        Answer { code, kind, body: body.into() }
    }

    fn refusal(code: StatusCode, text: impl Into<String>) -> Answer {
        Answer::new(code, TEXT, text.into() + "\n")
    }
}

/// Who answers.
pub struct Page {
    desk: Arc<Desk>,
    last: Mutex<Option<(Instant, Bytes)>>,
    /// One trace at a time: each looks through the tables.
    tracing: Mutex<()>,
}

impl Page {
    async fn answer(&self, request: Request<Incoming>) -> Answer {
        if let Err(why) = admits(request.headers()) {
            return Answer::refusal(StatusCode::FORBIDDEN, why);
        }
        if ![Method::GET, Method::HEAD].contains(request.method()) {
            return Answer::refusal(StatusCode::METHOD_NOT_ALLOWED, "this page only reads: GET and HEAD");
        }
        let path = request.uri().path();
        if let Some((_, kind, text)) = FILES.iter().find(|(name, ..)| *name == path) {
            return Answer::new(StatusCode::OK, kind, *text);
        }
        match path {
            "/api/v1/look" => self.look().await,
            "/api/v1/trace" => self.trace(request.uri().query().unwrap_or_default()).await,
            _ => {
                Answer::refusal(StatusCode::NOT_FOUND, "there is /, /api/v1/look and /api/v1/trace?from=&to=")
            }
        }
    }

    async fn look(&self) -> Answer {
        let mut last = self.last.lock().await;
        if let Some((_, body)) = last.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
            return Answer::new(StatusCode::OK, JSON, body.clone());
        }
        let Some(mut sample) = self.desk.look().await else {
            let text = "the agent's loop has not answered for 5 s; if that lasts, restart the agent";
            return Answer::refusal(StatusCode::SERVICE_UNAVAILABLE, text);
        };
        let seen = tokio::task::spawn_blocking(move || {
            collect::local(&mut sample, BTreeMap::new(), &Names::read());
            json::write(&sample).to_compact()
        });
        let Ok(text) = seen.await else {
            return Answer::refusal(StatusCode::INTERNAL_SERVER_ERROR, "looking at this host failed");
        };
        let body = Bytes::from(self.desk.settings.clean(&text) + "\n");
        *last = Some((Instant::now(), body.clone()));
        Answer::new(StatusCode::OK, JSON, body)
    }

    async fn trace(&self, query: &str) -> Answer {
        let value = |name: &str| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find(|(key, _)| *key == name).map(|(_, value)| unescaped(value)).unwrap_or_default()
        };
        let (from, to) = (value("from"), value("to"));
        let Ok(address) = to.parse::<IpAddr>() else {
            return Answer::refusal(StatusCode::BAD_REQUEST, format!("{to:?} is not an address"));
        };
        // No path of a namespace: a browser names no files.
        if from != "host" && from.parse::<IpAddr>().is_err() {
            let text = format!("{from:?} is neither host nor the address of a pod of this host");
            return Answer::refusal(StatusCode::BAD_REQUEST, text);
        }
        let _turn = self.tracing.lock().await;
        match tokio::task::spawn_blocking(move || plan(&from, address)).await {
            Ok(Ok(json)) => Answer::new(StatusCode::OK, JSON, json.to_compact() + "\n"),
            Ok(Err(why)) => Answer::refusal(StatusCode::BAD_REQUEST, why),
            Err(_) => Answer::refusal(StatusCode::INTERNAL_SERVER_ERROR, "the tables could not be followed"),
        }
    }
}

/// `%2F` and `+` in a query.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let code = tail.get(..2).and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        match (first, code) {
            (b'%', Some(code)) => {
                bytes.push(code);
                rest = &tail[2..];
            }
            (b'+', _) => {
                bytes.push(b' ');
                rest = tail;
            }
            (byte, _) => {
                bytes.push(*byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The namespace of a word that was taken.
fn source(word: &str) -> Result<Option<Netns>, String> {
    word.parse().map_or(Ok(None), pods::of_address)
}

/// The way by the tables.
fn plan(from: &str, to: IpAddr) -> Result<Json, String> {
    let (model, partial) = match source(from) {
        Ok(pod) => (tables::whole(pod.as_ref(), to, to)?, None),
        Err(why) => beside(from, to)?.ok_or(why)?,
    };
    let beyond = model.far.filter(|_| !model.local).map_or(String::new(), |far| format!(", then {far}"));
    let text = match (&model.broken, model.steps.last()) {
        (Some(broken), _) => format!("the tables lead nowhere: {broken}"),
        (None, None) => "the destination is this host itself".to_owned(),
        (None, Some(_)) => {
            let way: Vec<&str> = model.steps.iter().map(|step| step.device.as_str()).collect();
            format!(
                "by the tables the way is {}{beyond}; no packet was sent, and rules that translate addresses (services, \
                 published ports) were not looked at",
                way.join(", ")
            )
        }
    };
    let text = partial.iter().fold(text, |text, partial| format!("{text}. {partial}"));
    let verdict = Verdict { fine: model.broken.is_none(), at: None, text };
    let walk = Walk { planned: true, ..Walk::default() };
    let destination = to.to_string();
    let steps = model.steps.iter().map(|step| {
        Json::object([
            ("place", step.place.into()),
            ("device", step.device.as_str().into()),
            ("by", step.by.as_str().into()),
        ])
    });
    Ok(Json::object([
        ("version", VERSION.into()),
        ("from", from.into()),
        ("to", destination.as_str().into()),
        ("probed", false.into()),
        ("fine", verdict.fine.into()),
        ("verdict", verdict.text.as_str().into()),
        ("partial", partial.into()),
        ("mtu", model.mtu.into()),
        ("model", Json::array(steps)),
        ("svg", picture::svg(from, &destination, &model, &walk, &verdict).into()),
    ]))
}

/// A model, and why it is not whole.
type Planned = (Model, Option<String>);

/// From the host's side alone, for an agent that may not look into its pods: they send to their bridge.
fn beside(from: &str, to: IpAddr) -> Result<Option<Planned>, String> {
    let mut seen = crate::top::Sample::default();
    collect::local(&mut seen, BTreeMap::new(), &Names::read());
    let Some(pod) = seen.pods.iter().find(|pod| pod.addresses.iter().any(|address| address == from)) else {
        return Ok(None);
    };
    let mut model = tables::whole(None, to, to)?;
    let device = pod.bridge.clone().unwrap_or_else(|| pod.device.clone());
    if model.steps.first().is_none_or(|step| step.device != device) {
        let by = format!("packets of {from} come in by {}", pod.device);
        model.steps.insert(0, Step { place: "host", device, by });
    }
    let partial =
        "The agent may not look into pods, so the pod's own table is not in it; `loden trace` reads it";
    Ok(Some((model, Some(partial.to_owned()))))
}

/// Serves for ever; cancel by dropping.
pub async fn serve(address: Option<SocketAddr>, desk: Arc<Desk>, board: Arc<Board>) {
    let Some(address) = address else { return std::future::pending().await };
    let listener = health::bind(address, &board, "the web page", &Topic::WebPort, "LODEN_WEB").await;
    tracing::info!("the web page is on http://{address}/");
    let page = Arc::new(Page { desk, last: Mutex::default(), tracing: Mutex::default() });
    let mut guests = Guests::default();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            guests.make_room().await;
            continue;
        };
        let page = page.clone();
        guests.serve(stream, move |request| {
            let page = page.clone();
            async move {
                let head = request.method() == Method::HEAD;
                let answer = page.answer(request).await;
                let body = if head { Bytes::new() } else { answer.body };
                let mut response = Response::new(Full::new(body));
                *response.status_mut() = answer.code;
                let headers = response.headers_mut();
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(answer.kind));
                for (name, value) in HEADERS {
                    headers.insert(name, HeaderValue::from_static(value));
                }
                Ok(response)
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_reach_it_only_if_that_is_said() {
        for (said, want) in [
            ("", Ok(None)),
            ("none", Ok(None)),
            ("127.0.0.1:9466", Ok(Some("127.0.0.1:9466"))),
            ("127.8.0.1:1", Ok(Some("127.8.0.1:1"))),
            ("[::1]:9466", Ok(Some("[::1]:9466"))),
            ("0.0.0.0:9466,exposed", Ok(Some("0.0.0.0:9466"))),
            ("0.0.0.0:9466", Err("write 0.0.0.0:9466,exposed if that is meant, else 127.0.0.1:9466")),
            ("[::]:9466", Err("can be reached by other hosts")),
            ("192.0.2.1:80", Err("can be reached by other hosts")),
            ("[::ffff:192.0.2.1]:80", Err("can be reached by other hosts")),
            ("192.0.2.1:80,yes", Err("only exposed has a meaning, not \"yes\"")),
            ("9466", Err("is no address with a port")),
            ("localhost:9466", Err("is no address with a port")),
        ] {
            let got = place(said);
            match want {
                Ok(want) => assert_eq!(got, Ok(want.and_then(|text| text.parse().ok())), "{said}"),
                Err(part) => assert!(got.as_ref().is_err_and(|e| e.contains(part)), "{said}: {got:?}"),
            }
        }
    }

    #[test]
    fn names_of_others_are_not_ours() {
        let none: &[(&str, &str)] = &[];
        for (host, more, want) in [
            ("127.0.0.1:9466", none, true),
            ("[::1]:9466", none, true),
            ("[::1]", none, true),
            ("LOCALHOST:1", none, true),
            ("192.0.2.1", none, true),
            ("rebound.example:9466", none, false),
            ("127.0.0.1.example", none, false),
            ("localhost.example", none, false),
            ("", none, false),
            ("localhost", &[("sec-fetch-site", "same-origin")], true),
            ("localhost", &[("sec-fetch-site", "cross-site")], false),
            ("localhost", &[("sec-fetch-site", "same-site"), ("sec-fetch-mode", "no-cors")], false),
            ("localhost", &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")], true),
        ] {
            let mut headers = HeaderMap::new();
            let name = |name: &str| HeaderName::from_bytes(name.as_bytes()).unwrap_or(header::HOST);
            let pairs = [("host", host)].into_iter().chain(more.iter().copied());
            pairs.for_each(|(key, value)| {
                drop(
                    headers.insert(
                        name(key),
                        HeaderValue::from_str(value).unwrap_or(HeaderValue::from_static("")),
                    ),
                )
            });
            assert_eq!(admits(&headers).is_ok(), want, "{host} {more:?}");
        }
    }

    #[test]
    fn queries_are_read() {
        for (text, want) in
            [("fd00%3A%3A1", "fd00::1"), ("a+b%2", "a b%2"), ("%zz", "%zz"), ("%ff", "\u{fffd}")]
        {
            assert_eq!(unescaped(text), want);
        }
    }

    #[test]
    fn the_page_asks_for_nothing_from_elsewhere() {
        for (name, _, text) in FILES {
            let own = text.replace("http://www.w3.org/2000/svg", "");
            assert!(
                !own.contains("http://") && !own.contains("https://") && !own.contains("//cdn"),
                "{name}"
            );
            // The policy forbids them; they would be dead.
            assert!(!own.contains("<style") && !own.contains("style=") && !own.contains("onclick"), "{name}");
            assert!(!text.contains("innerHTML"), "{name}");
        }
    }
}
