//! `/healthz` and `/readyz` (flannel.md 8.3), any method, plain text.
//!
//! Unlike upstream the port opens first of all (F-04), a taken port is said and tried again, readiness
//! is withdrawn when it is lost (F-12), and `/healthz` fails when the loop hangs (F-164).

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// The loop waits at most a resync period; twice that without a sign of life means that it hangs.
const SILENCE: Duration = Duration::from_millis(2 * crate::reconcile::RESYNC_MS + 30_000);

/// The two answers, as the rest of the process sets them.
#[derive(Debug)]
pub struct Health {
    started: Instant,
    /// The node's pods can be reached and reach others.
    ready: AtomicBool,
    beat_ms: AtomicU64,
}

impl Default for Health {
    fn default() -> Health {
        Health { started: Instant::now(), ready: AtomicBool::new(false), beat_ms: AtomicU64::new(0) }
    }
}

impl Health {
    /// The loop lives; `ready` is its newest word.
    pub fn beat(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
        self.beat_ms.store(self.started.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    fn answer(&self, path: &str) -> (StatusCode, &'static str) {
        let silent = self.started.elapsed().as_millis() as u64 - self.beat_ms.load(Ordering::Relaxed);
        match path {
            "/healthz" if u128::from(silent) > SILENCE.as_millis() => (
                StatusCode::SERVICE_UNAVAILABLE,
                "flanneld hangs: its loop has not run for over a minute; restart it",
            ),
            "/healthz" => (StatusCode::OK, "flanneld is running"),
            "/readyz" if self.ready.load(Ordering::Relaxed) => (StatusCode::OK, "flanneld is ready"),
            "/readyz" => (StatusCode::SERVICE_UNAVAILABLE, "flanneld is not ready yet"),
            _ => (StatusCode::NOT_FOUND, "404 page not found"),
        }
    }
}

/// Serves for ever; cancel by dropping.
pub async fn serve(address: SocketAddr, health: Arc<Health>) {
    let mut said = false;
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) if !said => {
                tracing::error!(
                    "listen on {address} for health checks: {error}; the network goes on without, tried again every \
                     5 s: free the port or choose another --healthz-port"
                );
                said = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
    };
    tracing::info!("Start healthz server on {address}");
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors or memory: leave the machine a moment.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let health = health.clone();
        tokio::task::spawn_local(async move {
            let service = hyper::service::service_fn(|request: Request<Incoming>| {
                let (status, text) = health.answer(request.uri().path());
                async move {
                    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
                    *response.status_mut() = status;
                    let kind = hyper::header::HeaderValue::from_static("text/plain; charset=utf-8");
                    response.headers_mut().insert(hyper::header::CONTENT_TYPE, kind);
                    Ok::<_, Infallible>(response)
                }
            });
            let connection =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            // A client that goes away or is silent costs nobody anything.
            let _ = tokio::time::timeout(Duration::from_secs(30), connection).await;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_flannels() {
        let health = Health::default();
        assert_eq!(health.answer("/healthz"), (StatusCode::OK, "flanneld is running"));
        assert_eq!(health.answer("/readyz").0, StatusCode::SERVICE_UNAVAILABLE);
        health.beat(true);
        assert_eq!(health.answer("/readyz"), (StatusCode::OK, "flanneld is ready"));
        health.beat(false);
        assert_eq!(health.answer("/readyz").1, "flanneld is not ready yet");
        assert_eq!(health.answer("/").0, StatusCode::NOT_FOUND);
    }
}
