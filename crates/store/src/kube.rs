//! Leases as annotations of Kubernetes Nodes, as flannel with `--kube-subnet-mgr` keeps them (flannel.md 4):
//! subnets are the Nodes' pod CIDRs, given by the cluster; we publish how to reach ours and watch the others.
//!
//! Takes addresses and credentials of an API server; gives a [`LeaseStore`]. Needs no more rights than
//! flannel: get pods, get, list and watch nodes, patch nodes/status.

mod access;
mod client;
mod lease;
mod nodes;
mod object;
mod scan;
mod standing;
mod watch;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use model::codec::annotation::{self, Names};
use model::{IpNet, LeaseAttrs, NetConf};
use tokio::sync::{Notify, OnceCell, watch as channel};

use crate::{Heard, Held, LeaseStore, Remembered, Request, Standing, StoreError, View};
use client::{Ask, Client, Verb};
use nodes::Mine;
use object::Node;

/// Where Kubernetes puts a pod's credentials.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The proxies of the environment.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    /// `HTTP_PROXY`, for servers without TLS.
    pub http: String,
    /// `HTTPS_PROXY`.
    pub https: String,
    /// `NO_PROXY`: names, domains, addresses and networks that are reached directly.
    pub none: String,
}

/// How to reach the API server, and who we are.
#[derive(Clone, Debug)]
pub struct KubeOptions {
    /// `--kubeconfig-file`.
    pub kubeconfig: Option<PathBuf>,
    /// `--kube-api-url`; goes before the kubeconfig's server.
    pub api_url: Option<String>,
    /// `--kube-annotation-prefix`.
    pub annotation_prefix: String,
    /// `--net-config-path`.
    pub net_conf: PathBuf,
    /// `--set-node-network-unavailable`: whether the Node's condition is cleared when we are ready.
    pub set_condition: bool,
    /// `NODE_NAME`.
    pub node_name: Option<String>,
    /// `POD_NAMESPACE` and `POD_NAME`, by which the node is found without `NODE_NAME`.
    pub pod: Option<(String, String)>,
    /// `KUBERNETES_SERVICE_HOST` and `KUBERNETES_SERVICE_PORT`.
    pub service: Option<(String, String)>,
    /// Directory of the pod's `token` and `ca.crt`.
    pub service_account: PathBuf,
    /// Proxies on the way; a kubeconfig's own goes before.
    pub proxies: Proxies,
    /// The shortest distance of complete lists, give or take a quarter.
    pub relist: Duration,
    /// How long a watch may be silent; servers send a bookmark every minute.
    pub silence: Duration,
}

impl Default for KubeOptions {
    /// Flannel's defaults, and nothing from the environment.
    fn default() -> KubeOptions {
        KubeOptions {
            kubeconfig: None,
            api_url: None,
            annotation_prefix: annotation::DEFAULT_PREFIX.to_owned(),
            net_conf: "/etc/kube-flannel/net-conf.json".into(),
            set_condition: true,
            node_name: None,
            pod: None,
            service: None,
            service_account: SERVICE_ACCOUNT.into(),
            proxies: Proxies::default(),
            relist: Duration::from_secs(600),
            silence: Duration::from_secs(150),
        }
    }
}

/// What the watch knows of our own Node.
#[derive(Clone, Debug, Default)]
struct Own {
    /// A complete list has been read.
    listed: bool,
    node: Option<Arc<Node>>,
}

/// What the parts of the store tell each other.
#[derive(Default)]
struct Known {
    /// Enabled networks, once the configuration was read.
    networks: Option<Vec<IpNet>>,
    /// What we published last.
    mine: Option<Mine>,
    /// We asked for a lease and have no pod CIDR.
    waiting: bool,
}

/// A registry in the Kubernetes API.
pub struct KubeStore {
    options: KubeOptions,
    client: Client,
    node_name: OnceCell<String>,
    own: channel::Sender<Own>,
    known: Mutex<Known>,
    /// What we publish changed: the watch looks at our own Node again.
    nudge: Notify,
}

impl KubeStore {
    /// Checks the options; connects when first used.
    ///
    /// # Errors
    /// `Broken` names the annotation prefix that is none.
    pub fn new(options: KubeOptions) -> Result<KubeStore, StoreError> {
        let names = Names::new(&options.annotation_prefix).map_err(|e| StoreError::Broken(e.to_string()))?;
        Ok(KubeStore {
            client: Client::new(options.clone(), names),
            options,
            node_name: OnceCell::new(),
            own: channel::Sender::new(Own::default()),
            known: Mutex::new(Known::default()),
            nudge: Notify::new(),
        })
    }

    /// Our Node (flannel.md 4.1).
    async fn node_name(&self) -> Result<String, StoreError> {
        let name = self.node_name.get_or_try_init(|| async {
            if let Some(name) = self.options.node_name.clone().filter(|name| !name.is_empty()) {
                return Ok(name);
            }
            let pod = self.options.pod.as_ref().filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty());
            let Some((namespace, pod)) = pod else {
                return Err(StoreError::Broken(
                    "find out which Node this is: NODE_NAME is not set, nor POD_NAME and POD_NAMESPACE both; in a \
                     manifest take NODE_NAME from fieldRef spec.nodeName, on a host set it to one of: kubectl get nodes"
                        .to_owned(),
                ));
            };
            let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}");
            let found = self.client.object(Ask::get(Verb::GetPod, &format!("{namespace}/{pod}"), path)).await?;
            if found.node_name.is_empty() {
                return Err(StoreError::Broken(format!(
                    "find out which Node this is: pod {namespace}/{pod} is on none yet; see: kubectl -n {namespace} \
                     describe pod {pod}"
                )));
            }
            Ok(found.node_name)
        });
        name.await.cloned()
    }

    /// Our Node as the API server has it now.
    async fn own_node(&self, name: &str) -> Result<Node, StoreError> {
        let asked = self.client.object(Ask::get(Verb::GetNode, name, format!("/api/v1/nodes/{name}"))).await;
        asked.map_err(|fault| match fault.code() {
            404 => StoreError::NoSubnet(fault.sentence()),
            _ => fault.into(),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        // Each change is one assignment: what a panic left behind is whole.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Networks and what we publish, for the watch.
    fn known(&self) -> (Option<Vec<IpNet>>, Option<Mine>) {
        let known = self.lock();
        (known.networks.clone(), known.mine.clone())
    }

    fn publish_as(&self, mine: Option<Mine>) {
        self.lock().mine = mine;
        self.nudge.notify_one();
    }

    /// The watch saw our Node, or that it is gone.
    fn own_seen(&self, node: Option<&Node>) {
        self.own.send_modify(|own| own.node = node.map(|node| Arc::new(node.clone())));
    }

    /// The watch has read a complete list.
    fn own_listed(&self, exists: bool) {
        self.own.send_modify(|own| {
            own.listed = true;
            own.node.take_if(|_| !exists);
        });
    }

    fn relist(&self) -> Duration {
        self.options.relist
    }

    fn silence(&self) -> Duration {
        self.options.silence
    }
}

impl LeaseStore for KubeStore {
    fn name(&self) -> String {
        let server = match (&self.options.api_url, &self.options.kubeconfig, &self.options.service) {
            (Some(url), ..) => url.clone(),
            (None, Some(path), _) => format!("by {}", path.display()),
            (None, None, Some((host, port))) => format!("at {host} port {port}"),
            (None, None, None) => "at an unknown address".to_owned(),
        };
        format!("Kubernetes API server {server}")
    }

    fn heard(&self) -> Heard {
        self.client.heard.clone()
    }

    fn allocates(&self) -> bool {
        false
    }

    async fn config(&self) -> Result<String, StoreError> {
        let path = self.options.net_conf.display();
        let text = std::fs::read_to_string(&self.options.net_conf).map_err(|error| {
            StoreError::NoConfig(format!(
                "failed to read net conf {path}: {error}; mount the ConfigMap there (kubectl -n kube-flannel get configmap \
                 kube-flannel-cfg), or name the file with --net-config-path"
            ))
        })?;
        let conf = NetConf::parse(&text).and_then(|conf| conf.require_networks().map(|()| conf));
        let conf = conf.map_err(|error| {
            StoreError::NoConfig(format!(
                "error parsing subnet config {path}: {error}; correct it: kubectl -n kube-flannel edit configmap \
                 kube-flannel-cfg"
            ))
        })?;
        // Later ones are news for the agent, which goes on with the first (0091).
        self.lock().networks.get_or_insert_with(|| conf.networks());
        Ok(text)
    }

    async fn remembered(&self) -> Result<Remembered, StoreError> {
        lease::remembered(self).await
    }

    async fn announce(&self, standing: channel::Receiver<Standing>) {
        standing::announce(self, standing).await;
    }

    async fn acquire(&self, net: &NetConf, request: &Request) -> Result<Held, StoreError> {
        lease::take(self, net, request).await
    }

    async fn renew(&self, held: &Held, attrs: &LeaseAttrs) -> Result<Held, StoreError> {
        lease::extend(self, held, attrs).await
    }

    async fn watch(&self, feed: &channel::Sender<View>) {
        watch::follow(self, feed).await;
    }
}
