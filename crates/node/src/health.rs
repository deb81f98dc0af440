//! `/healthz` and `/readyz` (flannel.md 8.3), any method, plain text; `/metrics` beside them or on an address
//! of its own (decision 0200).
//!
//! Unlike upstream the port opens first of all (F-04), a taken port is said and tried again, readiness
//! is withdrawn when it is lost (F-12), and `/healthz` fails when the loop hangs (F-164).

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Response, StatusCode};
use tokio::net::TcpListener;

use crate::board::{Board, Topic, Troubles};
use crate::guests::Guests;
use crate::metrics::{self, Ledger};
use crate::outputs::LINES;
use crate::probe;
use crate::top::{Repair, collect};

/// The loop waits at most a resync period; twice that without a sign of life means that it hangs.
const SILENCE: Duration = Duration::from_millis(2 * crate::reconcile::RESYNC_MS + 30_000);

/// What the two answers are made of.
#[derive(Debug)]
pub struct Health {
    started: Instant,
    beat_ms: AtomicU64,
    board: Arc<Board>,
    ledger: Arc<Ledger>,
    probes: Arc<probe::Board>,
}

/// What a listener answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// `/healthz` and `/readyz`.
    pub health: bool,
    /// `/metrics`.
    pub metrics: bool,
}

impl Health {
    /// Answers from this board.
    pub fn new(board: Arc<Board>, ledger: Arc<Ledger>, probes: Arc<probe::Board>) -> Health {
        Health { started: Instant::now(), beat_ms: AtomicU64::new(0), board, ledger, probes }
    }

    /// The loop lives.
    pub fn beat(&self) {
        self.beat_ms.store(self.started.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// What this listener says to a path, and of which content type.
    fn says(&self, offer: Offer, path: &str) -> (StatusCode, Bytes, &'static str) {
        const TEXT: &str = "text/plain; charset=utf-8";
        match path {
            "/metrics" if offer.metrics => {
                (StatusCode::OK, self.metrics().into(), "text/plain; version=0.0.4; charset=utf-8")
            }
            _ if offer.health => {
                let (status, text) = self.answer(path);
                (status, text, TEXT)
            }
            _ => (StatusCode::NOT_FOUND, Bytes::from_static(b"404 page not found"), TEXT),
        }
    }

    /// What is wrong now.
    pub fn troubles(&self) -> Troubles {
        self.board.now()
    }

    /// How many peers are in the kernel, and how many are left out.
    pub fn peers(&self) -> (usize, usize) {
        self.ledger.open().peers()
    }

    /// What others did to kernel objects of ours and was put right.
    pub fn repairs(&self) -> Vec<Repair> {
        collect::repairs(&self.ledger.open())
    }

    /// The page of metrics.
    pub fn metrics(&self) -> String {
        let mut around = metrics::read::surroundings();
        around.probes = metrics::Probes::of(&self.probes.open());
        let counts = self.ledger.open().clone();
        metrics::page(&counts, &self.board.now(), &around)
    }

    /// Flannel's bodies; while not ready, the troubles follow, one a line.
    fn answer(&self, path: &str) -> (StatusCode, Bytes) {
        let silent = self.started.elapsed().as_millis() as u64 - self.beat_ms.load(Ordering::Relaxed);
        let (status, text) = match path {
            "/healthz" if u128::from(silent) > SILENCE.as_millis() => (
                StatusCode::SERVICE_UNAVAILABLE,
                "flanneld hangs: its loop has not run for over a minute; restart it",
            ),
            "/healthz" => (StatusCode::OK, "flanneld is running"),
            "/readyz" => {
                let now = self.board.now();
                if now.ready {
                    (StatusCode::OK, "flanneld is ready")
                } else {
                    let mut lines = vec!["flanneld is not ready yet".to_owned()];
                    lines.extend(now.sentences(LINES));
                    return (StatusCode::SERVICE_UNAVAILABLE, lines.join("\n").into());
                }
            }
            _ => (StatusCode::NOT_FOUND, "404 page not found"),
        };
        (status, Bytes::from_static(text.as_bytes()))
    }
}

/// Distance of tries to open the port.
const REBIND: Duration = Duration::from_secs(1);

/// Opens a port, however long that takes; `what` is served there, `way_out` names another one.
pub async fn bind(
    address: SocketAddr,
    board: &Board,
    what: &str,
    topic: &Topic,
    way_out: &str,
) -> TcpListener {
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                board.clear(topic);
                return listener;
            }
            Err(error) => board.set(
                topic.clone(),
                format!(
                    "listen on {address} for {what}: {error}; the network goes on without, tried again every \
                     second: free the port or choose another {way_out}"
                ),
            ),
        }
        tokio::time::sleep(REBIND).await;
    }
}

/// Serves for ever; cancel by dropping.
pub async fn serve(address: SocketAddr, offer: Offer, health: Arc<Health>) {
    let (what, topic, way_out) = if offer.health {
        ("health checks", Topic::HealthPort, "--healthz-port")
    } else {
        ("metrics", Topic::MetricsPort, "LODEN_METRICS")
    };
    let listener = bind(address, &health.board, what, &topic, way_out).await;
    if offer.health {
        tracing::info!("Start healthz server on {address}");
    } else {
        tracing::info!("metrics are on http://{address}/metrics");
    }
    let mut guests = Guests::default();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            guests.make_room().await;
            continue;
        };
        let health = health.clone();
        guests.serve(stream, move |request| {
            let (status, text, kind) = health.says(offer, request.uri().path());
            async move {
                let mut response = Response::new(Full::new(text));
                *response.status_mut() = status;
                let kind = hyper::header::HeaderValue::from_static(kind);
                response.headers_mut().insert(hyper::header::CONTENT_TYPE, kind);
                Ok(response)
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_flannels() {
        let board = Arc::new(Board::default());
        let health = Health::new(board.clone(), Arc::default(), Arc::default());
        let answer = |path: &str| {
            let (status, text) = health.answer(path);
            (status.as_u16(), String::from_utf8_lossy(&text).into_owned())
        };
        let is = |path: &str, status: u16, text: &str| assert_eq!(answer(path), (status, text.to_owned()));
        is("/healthz", 200, "flanneld is running");
        is("/readyz", 503, "flanneld is not ready yet");
        board.set(Topic::Lease, "acquire lease: none is free");
        board.set(Topic::Config, "fetch network config: there is none");
        let lines =
            "flanneld is not ready yet\nfetch network config: there is none\nacquire lease: none is free";
        is("/readyz", 503, lines);
        board.ready(true);
        is("/readyz", 200, "flanneld is ready");
        board.ready(false);
        is("/readyz", 503, lines);
        assert_eq!(answer("/").0, 404);
        for (health_, metrics, path, want) in [
            (true, true, "/metrics", 200),
            (true, false, "/metrics", 404),
            (false, true, "/metrics", 200),
            (false, true, "/healthz", 404),
            (true, true, "/healthz", 200),
        ] {
            let offer = Offer { health: health_, metrics };
            assert_eq!(health.says(offer, path).0.as_u16(), want, "{offer:?} {path}");
        }
    }
}
