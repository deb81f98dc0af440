//! What the double and a real API server have in common, so that one list of tests runs against both.

use std::io;

use serde_json::Value;

use crate::access::Rule;
use crate::client::{Client, Reply};
use crate::kind::{Kind, NAMESPACES};
use crate::{Door, Double, base64};

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// May do everything.
    Admin,
    /// The service account `flannel` in `kube-flannel`, with flannel's ClusterRole.
    Flannel,
    /// No token.
    Nobody,
    /// A token the server does not know.
    Stranger,
}

/// User of [`Who::Flannel`].
pub const FLANNEL: &str = "system:serviceaccount:kube-flannel:flannel";

/// A running API server of either sort, HTTPS, with role-based access control.
pub trait Cluster: Send + Sync {
    /// `double` or `real`.
    fn name(&self) -> &'static str;

    /// `https://127.0.0.1:PORT`.
    fn url(&self) -> String;

    /// Certificate of the authority, as PEM.
    fn ca_pem(&self) -> &str;

    /// Token of one of them; empty for nobody.
    fn token(&self, who: Who) -> &str;

    /// A client.
    fn client(&self, who: Who) -> Client {
        Client { url: self.url(), ca_pem: self.ca_pem().to_owned(), token: self.token(who).to_owned() }
    }

    /// A kubeconfig.
    fn kubeconfig(&self, who: Who) -> String {
        kubeconfig(&self.url(), self.ca_pem(), self.token(who))
    }

    /// Creates an object as the admin.
    ///
    /// # Errors
    /// When there is no answer, or a refusal, which is the text.
    fn create(&self, kind: &Kind, object: &Value) -> io::Result<Value> {
        let path = kind.path(object["metadata"]["namespace"].as_str());
        done(self.client(Who::Admin).ask("POST", &path, "", &object.to_string())?)
    }

    /// Changes an object, `status` where `subresource` says so, by a merge patch as the admin. `name` is
    /// `NAMESPACE/NAME` for kinds with namespaces.
    ///
    /// # Errors
    /// As [`Self::create`].
    fn merge(&self, kind: &Kind, name: &str, subresource: &str, change: &Value) -> io::Result<Value> {
        let path = format!("{}{subresource}", path_of(kind, name));
        let form = "application/merge-patch+json";
        done(self.client(Who::Admin).ask("PATCH", &path, form, &change.to_string())?)
    }

    /// Reads an object as the admin.
    ///
    /// # Errors
    /// As [`Self::create`].
    fn read(&self, kind: &Kind, name: &str) -> io::Result<Value> {
        done(self.client(Who::Admin).get(&path_of(kind, name))?)
    }

    /// Deletes an object as the admin.
    ///
    /// # Errors
    /// As [`Self::create`].
    fn remove(&self, kind: &Kind, name: &str) -> io::Result<Value> {
        done(self.client(Who::Admin).ask("DELETE", &path_of(kind, name), "", "")?)
    }
}

/// Path of one object; `name` is `NAMESPACE/NAME` for kinds with namespaces.
pub fn path_of(kind: &Kind, name: &str) -> String {
    match name.split_once('/') {
        Some((namespace, name)) => format!("{}/{name}", kind.path(Some(namespace))),
        None => format!("{}/{name}", kind.path(None)),
    }
}

fn done(reply: Reply) -> io::Result<Value> {
    if reply.code < 300 { Ok(reply.json()) } else { Err(io::Error::other(reply.text)) }
}

/// A kubeconfig for one server and one user.
pub fn kubeconfig(url: &str, ca_pem: &str, token: &str) -> String {
    let mut cluster = serde_json::json!({"server": url});
    if url.starts_with("https") {
        cluster["certificate-authority-data"] = base64(ca_pem.as_bytes()).into();
    }
    let mut user = serde_json::json!({});
    if !token.is_empty() {
        user["token"] = token.into();
    }
    let config = serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": "test", "user": user}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    });
    config.to_string()
}

/// The double in the part of a cluster.
#[derive(Debug)]
pub struct Stage {
    /// The double, for its faults.
    pub double: Double,
    admin: String,
    flannel: String,
}

impl Stage {
    /// A double on loopback, HTTPS, with the tokens of a cluster and nothing for strangers.
    ///
    /// # Errors
    /// As [`Double::start`].
    pub fn start() -> io::Result<Self> {
        let double = Double::start(Door::https("127.0.0.1:0"))?;
        double.forbid_anonymous();
        double
            .create(&NAMESPACES, serde_json::json!({"metadata": {"name": "kube-flannel"}}))
            .map_err(io::Error::other)?;
        let admin = double.token("admin", Rule::all());
        let flannel = double.token(FLANNEL, Rule::flannel());
        Ok(Self { double, admin, flannel })
    }
}

impl Cluster for Stage {
    fn name(&self) -> &'static str {
        "double"
    }

    fn url(&self) -> String {
        self.double.url()
    }

    fn ca_pem(&self) -> &str {
        self.double.ca_pem()
    }

    fn token(&self, who: Who) -> &str {
        match who {
            Who::Admin => &self.admin,
            Who::Flannel => &self.flannel,
            Who::Nobody => "",
            Who::Stranger => "unknown",
        }
    }
}
