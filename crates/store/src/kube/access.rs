//! Where the API server is and who we are there (flannel.md 4.1; decision 0083): from a kubeconfig, an
//! address, or what Kubernetes puts into every pod. Knows no requests.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hyper::rt::{Read, Write};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connection, HttpConnector};
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt as _};
use kube::config::{KubeConfigOptions, Kubeconfig};
use tower::{BoxError, ServiceBuilder};

use super::KubeOptions;

/// Time for a TCP connection.
const CONNECT: Duration = Duration::from_secs(4);
/// A line that carries nothing is probed after this long, and given up after as long again.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// How the server was found, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// By a kubeconfig.
    File(PathBuf),
    /// As a pod, through the address of the service `kubernetes`.
    Pod,
    /// By `--kube-api-url`, with the pod's credentials.
    UrlInPod,
    /// By `--kube-api-url`, as nobody in particular.
    Url,
}

/// A connection pool with credentials.
pub(super) struct Access {
    pub(super) client: kube::Client,
    /// The server's address, without credentials.
    pub(super) server: String,
    pub(super) way: Way,
    token: Option<TokenFile>,
}

/// A token that is read from its file for every request: it may be replaced at any time.
struct TokenFile {
    path: PathBuf,
    last: Mutex<Option<String>>,
}

impl Access {
    /// Reads all files and gets ready. Connects to nobody.
    ///
    /// # Errors
    /// Which file or setting is wrong, in one sentence.
    pub(super) async fn open(options: &KubeOptions) -> Result<Access, String> {
        let (mut config, way) = match (&options.kubeconfig, &options.api_url) {
            (Some(path), url) => (from_file(path, url.as_deref()).await?, Way::File(path.clone())),
            (None, Some(url)) => from_url(options, url)?,
            (None, None) => (in_pod(options)?, Way::Pod),
        };
        let token = config.auth_info.token_file.take().filter(|_| config.auth_info.token.is_none());
        let token = token.map(|path| TokenFile { path: path.into(), last: Mutex::new(None) });
        let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let name = match &way {
            Way::File(path) => path.display().to_string(),
            Way::Pod | Way::UrlInPod => options.service_account.display().to_string(),
            Way::Url => "--kube-api-url".to_owned(),
        };
        let source = move |error: &dyn std::error::Error| {
            format!("get ready for the Kubernetes API with {name}: {}", root_cause(error))
        };
        let proxy = match config.proxy_url.take() {
            Some(uri) => Some((uri, None)),
            None => proxy(options, &config.cluster_url),
        };
        if let Some((uri, _)) =
            proxy.as_ref().filter(|(uri, _)| uri.scheme_str().is_some_and(|s| s != "http"))
        {
            return Err(format!(
                "reach the Kubernetes API server {server}: the proxy {uri} is no HTTP proxy, and no others are known; write \
                 HTTPS_PROXY=http://HOST:PORT, or name the server in NO_PROXY"
            ));
        }
        // Credential programs of a kubeconfig run here, and they may take their time.
        let client = tokio::task::spawn_blocking(move || connect(config, proxy)).await;
        let client = client.map_err(|error| source(&error))?.map_err(|error| source(&error))?;
        Ok(Access { client, server, way, token })
    }

    /// The value for the header `Authorization`, where that is ours to give.
    ///
    /// # Errors
    /// The file cannot be read and never could.
    pub(super) fn authorization(&self) -> Result<Option<http::HeaderValue>, String> {
        let Some(TokenFile { path, last }) = &self.token else { return Ok(None) };
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        match std::fs::read_to_string(path) {
            Ok(token) => *last = Some(token),
            // Being replaced, or taken away after the start on purpose.
            Err(_) if last.is_some() => {}
            Err(error) => return Err(format!("read the token {}: {error}", path.display())),
        }
        let text = format!("Bearer {}", last.as_deref().unwrap_or_default().trim());
        let mut value = http::HeaderValue::try_from(text)
            .map_err(|_| format!("read the token {}: it is not plain text", path.display()))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

/// A proxy of ours, and the header by which it knows us.
type Proxy = (http::Uri, Option<http::HeaderValue>);

/// The proxy the environment names for a server.
fn proxy(options: &KubeOptions, server: &http::Uri) -> Option<Proxy> {
    let proxies = &options.proxies;
    let matcher = Matcher::builder().http(proxies.http.as_str()).https(proxies.https.as_str());
    let found = matcher.no(proxies.none.as_str()).build().intercept(server)?;
    Some((found.uri().clone(), found.basic_auth().cloned()))
}

async fn from_file(path: &Path, url: Option<&str>) -> Result<kube::Config, String> {
    let wrong = |error: &dyn std::error::Error| {
        format!("read --kubeconfig-file {}: {}", path.display(), root_cause(error))
    };
    let mut file = Kubeconfig::read_from(path).map_err(|error| wrong(&error))?;
    if let Some(url) = url {
        for cluster in file.clusters.iter_mut().filter_map(|named| named.cluster.as_mut()) {
            cluster.server = Some(url.to_owned());
        }
    }
    let named = file.clusters.iter().filter_map(|named| named.cluster.as_ref()?.proxy_url.as_ref());
    let own_proxy = named.clone().any(|url| !url.is_empty());
    let config = kube::Config::from_custom_kubeconfig(file.clone(), &KubeConfigOptions::default()).await;
    let mut config = config.map_err(|error| wrong(&error))?;
    if !own_proxy {
        // kube takes it from the environment, but does not ask whether this server is excepted.
        config.proxy_url = None;
    }
    Ok(config)
}

fn from_url(options: &KubeOptions, url: &str) -> Result<(kube::Config, Way), String> {
    let uri: http::Uri = url.parse().map_err(|error| format!("read --kube-api-url {url:?}: {error}"))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none() {
        return Err(format!(
            "--kube-api-url {url:?} is no address of an API server: write for example https://192.0.2.1:6443"
        ));
    }
    let (token, ca) = credentials(options);
    if uri.scheme_str() == Some("https") && token.exists() && ca.exists() {
        return Ok((with_service_account(options, uri), Way::UrlInPod));
    }
    Ok((kube::Config::new(uri), Way::Url))
}

fn in_pod(options: &KubeOptions) -> Result<kube::Config, String> {
    let Some((host, port)) = options.service.as_ref().filter(|(host, _)| !host.is_empty()) else {
        return Err(
            "find the Kubernetes API server: KUBERNETES_SERVICE_HOST is not set, so this is no pod; give \
                    --kubeconfig-file or --kube-api-url"
                .to_owned(),
        );
    };
    let (token, ca) = credentials(options);
    for path in [&token, &ca] {
        if let Err(error) = std::fs::metadata(path) {
            return Err(format!(
                "read the service account {}: {error}; set automountServiceAccountToken: true in the pod, or give \
                 --kubeconfig-file",
                path.display()
            ));
        }
    }
    let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    let port = if port.is_empty() { "443" } else { port };
    let uri = format!("https://{host}:{port}").parse::<http::Uri>();
    let uri = uri.map_err(|error| {
        format!("read KUBERNETES_SERVICE_HOST={host} and KUBERNETES_SERVICE_PORT={port}: {error}")
    })?;
    Ok(with_service_account(options, uri))
}

fn credentials(options: &KubeOptions) -> (PathBuf, PathBuf) {
    (options.service_account.join("token"), options.service_account.join("ca.crt"))
}

fn with_service_account(options: &KubeOptions, uri: http::Uri) -> kube::Config {
    let (token, ca) = credentials(options);
    let mut config = kube::Config::new(uri);
    // The file counts; without this, kube would look for the system's authorities first.
    config.root_cert = Some(Vec::new());
    config.root_cert_file = Some(ca);
    config.auth_info.token_file = Some(token.display().to_string());
    config
}

/// A connector with keep-alives, through a proxy where there is one.
fn connect(config: kube::Config, proxy: Option<Proxy>) -> Result<kube::Client, kube::Error> {
    // One provider is compiled in (0031); whoever was first has set the same.
    let _ = tokio_rustls::rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(CONNECT));
    http.set_keepalive(Some(KEEPALIVE));
    http.set_keepalive_interval(Some(KEEPALIVE / 3));
    http.set_keepalive_retries(Some(3));
    http.set_tcp_user_timeout(Some(2 * KEEPALIVE));
    match proxy {
        None => stack(config, http),
        Some((uri, None)) => stack(config, Tunnel::new(uri, http)),
        Some((uri, Some(auth))) => stack(config, Tunnel::new(uri, http).with_auth(auth)),
    }
}

/// kube's layers on a connector, silent about failures, of which we say more.
fn stack<C>(config: kube::Config, connector: C) -> Result<kube::Client, kube::Error>
where
    C: tower::Service<http::Uri> + Clone + Send + Sync + 'static,
    C::Response: Connection + Read + Write + Send + Unpin + 'static,
    C::Future: Send + 'static,
    C::Error: std::error::Error + Send + Sync + 'static,
{
    let https = config.rustls_https_connector_with_connector(connector)?;
    let pool = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build::<_, Body>(https);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(pool);
    Ok(kube::Client::new(service, config.default_namespace))
}

/// The last cause in a chain of errors: the ones before it only say that something failed.
pub(super) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let text = cause.to_string().replace('\n', " ");
    // The TLS library's own words go on about what that may mean.
    if text.contains("without sending TLS close_notify") { "the server closed it".to_owned() } else { text }
}
