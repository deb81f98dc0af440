//! One request over HTTP/1.1, with TLS and through a proxy where that is asked for; all of it within a limit.

use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tower_service::Service as _;

use crate::etcd::system_tls;

/// Time for all of it.
const LIMIT: Duration = Duration::from_secs(15);
/// Longest answer: a hundred route tables fit many times.
const MOST: usize = 4 << 20;

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Sends a request and gives status and body. The `Host` header is the caller's to set.
///
/// # Errors
/// The cause, without the address.
pub async fn send(request: http::Request<Full<Bytes>>) -> Result<(u16, Bytes), String> {
    match tokio::time::timeout(LIMIT, exchange(request)).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {} s", LIMIT.as_secs())),
    }
}

async fn exchange(mut request: http::Request<Full<Bytes>>) -> Result<(u16, Bytes), String> {
    let uri = request.uri().clone();
    let mut stream = connect(&uri).await?;
    if uri.scheme_str() == Some("https") {
        let host = uri.host().unwrap_or_default().to_owned();
        let name = ServerName::try_from(host).map_err(|error| error.to_string())?;
        let session = TlsConnector::from(system_tls()?).connect(name, stream).await;
        stream = Box::new(session.map_err(|error| error.to_string())?);
    }
    *request.uri_mut() = uri
        .path_and_query()
        .map_or_else(|| "/".parse(), |path| path.as_str().parse())
        .map_err(|error: http::uri::InvalidUri| error.to_string())?;
    let text = |error: hyper::Error| root_cause(&error);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(text)?;
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(text)?;
        let status = answer.status().as_u16();
        let body = Limited::new(answer.into_body(), MOST).collect().await;
        Ok((status, body.map_err(|error| root_cause(error.as_ref()))?.to_bytes()))
    };
    tokio::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        _ = connection => exchange.await,
    }
}

/// A connection to the server of an address, past or through the proxy the environment names for it.
async fn connect(uri: &http::Uri) -> Result<Box<dyn Stream>, String> {
    let mut direct = HttpConnector::new();
    direct.enforce_http(false);
    let proxy = Matcher::from_env().intercept(uri).filter(|_| uri.scheme_str() == Some("https"));
    let stream = match proxy {
        None => direct.call(uri.clone()).await.map_err(|error| root_cause(&error))?,
        Some(proxy) => {
            let mut tunnel = Tunnel::new(proxy.uri().clone(), direct);
            if let Some(auth) = proxy.basic_auth() {
                tunnel = tunnel.with_auth(auth.clone());
            }
            let host = proxy.uri().host().unwrap_or_default();
            tunnel.call(uri.clone()).await.map_err(|error| format!("proxy {host}: {}", root_cause(&error)))?
        }
    };
    Ok(Box::new(stream.into_inner()))
}

/// The last cause in a chain of errors: the ones before it only say that something failed.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
