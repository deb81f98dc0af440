//! What goes wrong on command.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use apidouble::{Door, Double, Effect, NODES, Pick, Stroke, node};
use serde_json::json;

use crate::http::{SOON, plain};

const NODES_PATH: &str = "/api/v1/nodes";
const WATCH: &str = "/api/v1/nodes?watch=true&allowWatchBookmarks=true&resourceVersion=";

#[test]
fn a_shut_door_refuses_and_opens_again_at_the_same_port() {
    let double = plain();
    let client = double.client("");
    let address = double.address();
    let mut watch = client.begin("GET", &format!("{WATCH}5"), "", "").unwrap();
    double.shut().unwrap();
    assert_eq!(client.get(NODES_PATH).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert_eq!(watch.line(SOON).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    double.open().unwrap();
    assert_eq!((client.get(NODES_PATH).unwrap().code, double.address()), (200, address));
    double.go_deaf().unwrap();
    let mut deaf = std::net::TcpStream::connect(address).unwrap();
    deaf.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    std::io::Write::write_all(&mut deaf, b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let silence = std::io::Read::read(&mut deaf, &mut [0; 1]).unwrap_err().kind();
    assert!(matches!(silence, ErrorKind::WouldBlock | ErrorKind::TimedOut), "{silence:?}");
    double.heal().unwrap();
    assert_eq!(client.get(NODES_PATH).unwrap().code, 200);
}

/// (effect, what becomes of the list)
#[test]
fn bodies_break_off_where_told() {
    let double = plain();
    double.create(&NODES, node("n1", &[])).unwrap();
    let client = double.client("");
    let whole = client.get(NODES_PATH).unwrap().text;
    for (effect, wanted) in [
        (Effect::Cut(0), Err(ErrorKind::UnexpectedEof)),
        (Effect::Cut(40), Err(ErrorKind::UnexpectedEof)),
        (Effect::Drop, Err(ErrorKind::UnexpectedEof)),
        (Effect::Drip(7, Duration::from_micros(10)), Ok(whole.clone())),
        (Effect::Late(Duration::from_millis(20)), Ok(whole.clone())),
        (Effect::Garbage("{".into()), Ok("{".to_owned())),
    ] {
        double.fail(Pick::of("list", "nodes"), effect.clone(), 1);
        let got = client.get(NODES_PATH).map(|reply| reply.text).map_err(|error| error.kind());
        assert_eq!(got, wanted, "{effect:?}");
    }
    assert_eq!(client.get(NODES_PATH).unwrap().text, whole);
}

#[test]
fn a_request_that_hangs_gets_no_byte() {
    let double = plain();
    let client = double.client("");
    double.fail(Pick::of("list", "nodes"), Effect::Stall(10), 1);
    let mut stalled = client.begin("GET", NODES_PATH, "", "").unwrap();
    let silence = stalled.line(Duration::from_millis(100)).unwrap_err().kind();
    assert!(matches!(silence, ErrorKind::WouldBlock | ErrorKind::TimedOut), "{silence:?}");
    double.fail(Pick::any(), Effect::Hang, 1);
    let asked = std::thread::spawn(move || client.get(NODES_PATH));
    assert!(double.wait(SOON, |double| double.seen().len() == 2));
    assert!(!asked.is_finished());
    double.cut();
    assert!(asked.join().unwrap().is_err());
    assert_eq!(double.seen()[1].code, 0);
}

/// (code, reason)
#[test]
fn refusals_on_command_look_like_the_servers_own() {
    let double = plain();
    let client = double.client("");
    for (code, reason) in [
        (400, json!("BadRequest")),
        (401, json!("Unauthorized")),
        (403, json!("Forbidden")),
        (404, json!("NotFound")),
        (409, json!("Conflict")),
        (410, json!("Expired")),
        (422, json!("Invalid")),
        (429, json!("TooManyRequests")),
        (500, json!("InternalError")),
        (503, json!("ServiceUnavailable")),
        (504, json!("Timeout")),
    ] {
        double.fail(Pick::of("", "nodes"), Effect::Refuse { code, retry_after_s: None }, 1);
        let reply = client.get(NODES_PATH).unwrap();
        let status = reply.json();
        assert_eq!((reply.code, &status["reason"], &status["code"]), (code, &reason, &json!(code)));
        assert_eq!(reply.headers.contains_key("retry-after"), code == 429, "{code}");
    }
    double.fail(Pick::any(), Effect::Refuse { code: 503, retry_after_s: Some(7) }, 1);
    assert_eq!(client.get("/healthz").unwrap().headers["retry-after"], "7");
    assert_eq!(client.get("/healthz").unwrap().text, "ok");
}

#[test]
fn open_watches_are_struck() {
    let double = plain();
    double.create(&NODES, node("n1", &[])).unwrap();
    let client = double.client("");
    let watch = || {
        let watch = client.begin("GET", &format!("{WATCH}{}", double.revision()), "", "").unwrap();
        assert!(double.wait(SOON, |double| double.watches() >= 1));
        watch
    };
    let touch = |value: &str| {
        double.merge(&NODES, "n1", &json!({"metadata": {"annotations": {"a": value}}})).unwrap();
    };

    let mut cut = watch();
    double.strike(Stroke::Cut);
    assert_eq!(cut.event(SOON).unwrap_err().kind(), ErrorKind::UnexpectedEof);

    let mut half = watch();
    double.strike(Stroke::CutInLine);
    touch("1");
    assert_eq!(half.event(SOON).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    assert!(half.half().starts_with("{\"type\":\"MODIFIED\""), "{}", half.half());

    let mut ends = watch();
    double.strike(Stroke::End);
    assert_eq!(ends.event(SOON).unwrap(), None);

    let mut gone = watch();
    double.strike(Stroke::Gone);
    let event = gone.event(SOON).unwrap().unwrap();
    assert_eq!(
        (&event["type"], &event["object"]["code"], &event["object"]["reason"]),
        (&json!("ERROR"), &json!(410), &json!("Expired"))
    );
    assert_eq!(gone.event(SOON).unwrap(), None);

    let mut lively = watch();
    double.strike(Stroke::Bookmark);
    let bookmark = lively.event(SOON).unwrap().unwrap();
    assert_eq!(
        (&bookmark["type"], &bookmark["object"]["metadata"]["resourceVersion"]),
        (&json!("BOOKMARK"), &json!(double.revision().to_string()))
    );
    touch("2");
    let first = lively.event(SOON).unwrap().unwrap();
    double.strike(Stroke::Replay(1));
    assert_eq!(lively.event(SOON).unwrap().unwrap(), first);
    double.strike(Stroke::Garbage("no json\n".into()));
    assert_eq!(lively.event(SOON).unwrap().unwrap(), json!("no json"));
    double.strike(Stroke::Silence);
    assert!(lively.event(Duration::from_millis(50)).is_err());
    touch("3");
    assert!(lively.event(Duration::from_millis(50)).is_err());
}

#[test]
fn watches_end_at_once_or_repeat_themselves() {
    let double = plain();
    double.create(&NODES, node("n1", &[])).unwrap();
    let client = double.client("");
    double.fail(Pick::of("watch", "nodes"), Effect::End, 1);
    let begun = Instant::now();
    let mut watch = client.begin("GET", &format!("{WATCH}0"), "", "").unwrap();
    assert_eq!((watch.code, watch.event(SOON).unwrap()), (200, None));
    assert!(begun.elapsed() < SOON);
    double.fail(Pick::of("watch", "nodes"), Effect::Gone, 1);
    let mut watch = client.begin("GET", &format!("{WATCH}0"), "", "").unwrap();
    assert_eq!(watch.event(SOON).unwrap().unwrap()["object"]["code"], 410);
    double.fail(Pick::of("watch", "nodes"), Effect::InStream(500), 1);
    let mut watch = client.begin("GET", &format!("{WATCH}0"), "", "").unwrap();
    assert_eq!(watch.event(SOON).unwrap().unwrap()["object"]["reason"], "InternalError");
    assert_eq!(watch.event(SOON).unwrap(), None);
    double.fail(Pick::of("watch", "nodes"), Effect::Repeat(2), 1);
    let mut watch = client.begin("GET", &format!("{WATCH}{}", double.revision()), "", "").unwrap();
    double.delete(&NODES, "n1").unwrap();
    let events: Vec<_> = (0..3).map(|_| watch.event(SOON).unwrap().unwrap()["type"].clone()).collect();
    assert_eq!(events, ["DELETED", "DELETED", "DELETED"]);
}

#[test]
fn reads_can_be_stale_and_writes_can_be_lost_on_the_way_back() {
    let double = plain();
    double.create(&NODES, node("old", &[])).unwrap();
    let then = double.revision();
    double.create(&NODES, node("new", &[])).unwrap();
    let client = double.client("");
    double.fail(Pick::of("list", "nodes"), Effect::Stale(then), 1);
    let stale = client.get(NODES_PATH).unwrap().json();
    assert_eq!(stale["metadata"]["resourceVersion"], then.to_string());
    assert_eq!(stale["items"].as_array().unwrap().len(), 1);
    double.fail(Pick::of("get", "nodes").named("new"), Effect::Stale(then), 1);
    assert_eq!(client.get("/api/v1/nodes/new").unwrap().code, 404);
    assert_eq!(client.get("/api/v1/nodes/new").unwrap().code, 200);
    double.fail(Pick::of("delete", "nodes"), Effect::DoneButCut, 1);
    assert!(client.ask("DELETE", "/api/v1/nodes/new", "", "").is_err());
    assert!(double.get(&NODES, "new").is_none());
}

#[test]
fn a_listener_made_elsewhere_serves_too() {
    let bind = || std::net::TcpListener::bind("127.0.0.1:0");
    let double = Double::start(Door::made_by(true, Box::new(bind)).named("api.example")).unwrap();
    assert_eq!(double.client("").get("/version").unwrap().json()["minor"], "36");
}
