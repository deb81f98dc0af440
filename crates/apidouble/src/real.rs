//! A real kube-apiserver with its etcd, where `KUBEBUILDER_ASSETS` names a folder that has both.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::authority::Authority;
use crate::cluster::{Cluster, FLANNEL, Who};
use crate::kind::NAMESPACES;

/// How long a start may take. It takes 6 s on two idle cores.
const PATIENCE: Duration = Duration::from_secs(180);

const ADMIN: &str = "loden-admin-token";
const AGENT: &str = "loden-flannel-token";

/// A real API server on loopback; its processes and files go when this is dropped.
#[derive(Debug)]
pub struct Real {
    authority: Authority,
    port: u16,
    folder: PathBuf,
    processes: Vec<Child>,
}

impl Real {
    /// Starts one from the folder in `KUBEBUILDER_ASSETS`; none if that is not set.
    ///
    /// # Errors
    /// When it does not become ready; with the end of its log.
    pub fn start() -> io::Result<Option<Self>> {
        let assets = std::env::var_os("KUBEBUILDER_ASSETS").unwrap_or_default();
        if assets.is_empty() {
            return Ok(None);
        }
        Self::from(Path::new(&assets)).map(Some)
    }

    /// Starts one from the programs in `assets`: `etcd` and `kube-apiserver`.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn from(assets: &Path) -> io::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("loden-apiserver-{}-{number}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let authority = Authority::new()?;
        let mut real = Self { authority, port: free_port()?, folder, processes: Vec::new() };
        real.write_files()?;
        let (client, peer) = (free_port()?, free_port()?);
        let (client, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        real.spawn(
            &assets.join("etcd"),
            &[
                format!("--data-dir={}", real.file("etcd-data")),
                format!("--listen-client-urls={client}"),
                format!("--advertise-client-urls={client}"),
                format!("--listen-peer-urls={peer}"),
                format!("--initial-advertise-peer-urls={peer}"),
                format!("--initial-cluster=default={peer}"),
                "--unsafe-no-fsync".into(),
            ],
        )?;
        real.spawn(&assets.join("kube-apiserver"), &real.flags(&client))?;
        real.wait_ready()?;
        real.grant()?;
        Ok(real)
    }

    fn flags(&self, etcd: &str) -> Vec<String> {
        let file = |flag: &str, name: &str| format!("--{flag}={}", self.file(name));
        vec![
            format!("--etcd-servers={etcd}"),
            "--bind-address=127.0.0.1".into(),
            "--advertise-address=127.0.0.1".into(),
            format!("--secure-port={}", self.port),
            file("cert-dir", "certs"),
            file("tls-cert-file", "server.crt"),
            file("tls-private-key-file", "server.key"),
            file("token-auth-file", "tokens.csv"),
            file("service-account-key-file", "accounts.pub"),
            file("service-account-signing-key-file", "accounts.key"),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            "--authorization-mode=RBAC".into(),
            "--service-cluster-ip-range=10.96.0.0/12".into(),
            // Pods of tests have no service account, and nobody would make one.
            "--disable-admission-plugins=ServiceAccount".into(),
        ]
    }

    fn file(&self, name: &str) -> String {
        self.folder.join(name).to_string_lossy().into_owned()
    }

    fn write_files(&self) -> io::Result<()> {
        let (certificate, key) = self.authority.issue(&[])?;
        let (_, accounts) = self.authority.issue(&[])?;
        let tokens = format!("{ADMIN},admin,1,\"system:masters\"\n{AGENT},{FLANNEL},2\n");
        fs::write(self.file("server.crt"), certificate.pem())?;
        fs::write(self.file("server.key"), key.serialize_pem())?;
        fs::write(self.file("accounts.key"), accounts.serialize_pem())?;
        fs::write(self.file("accounts.pub"), accounts.public_key_pem())?;
        fs::write(self.file("tokens.csv"), tokens)
    }

    /// Starts a program that ends with us, whatever ends us.
    fn spawn(&mut self, program: &Path, flags: &[String]) -> io::Result<()> {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let log = fs::File::create(self.folder.join(format!("{name}.log")))?;
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(program)
            .args(flags)
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(|error| io::Error::other(format!("start {}: {error}", program.display())))?;
        self.processes.push(child);
        Ok(())
    }

    fn wait_ready(&mut self) -> io::Result<()> {
        let end = Instant::now() + PATIENCE;
        let client = self.client(Who::Admin);
        let namespace = format!("{}/default", NAMESPACES.path(None));
        loop {
            let ready = |path| client.get(path).is_ok_and(|reply| reply.code == 200);
            if ready("/readyz") && ready(&namespace) {
                return Ok(());
            }
            let mut ended = None;
            for child in &mut self.processes {
                ended = ended.or(child.try_wait()?);
            }
            if ended.is_some() || Instant::now() > end {
                let tail = |name: &str| {
                    let log = fs::read_to_string(self.file(name)).unwrap_or_default();
                    let lines: Vec<_> = log.lines().rev().take(12).collect();
                    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
                };
                let logs = format!("{}\n{}", tail("etcd.log"), tail("kube-apiserver.log"));
                return Err(io::Error::other(format!("kube-apiserver is not ready ({ended:?}):\n{logs}")));
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// flannel's namespace and ClusterRole (flannel.md 10.1).
    fn grant(&self) -> io::Result<()> {
        self.create(&NAMESPACES, &json!({"metadata": {"name": "kube-flannel"}}))?;
        let rule = |verbs: &[&str], resource: &str| json!({"apiGroups": [""], "resources": [resource], "verbs": verbs});
        let role = json!({
            "metadata": {"name": "flannel"},
            "rules": [
                rule(&["get"], "pods"),
                rule(&["get", "list", "watch"], "nodes"),
                rule(&["patch"], "nodes/status"),
            ],
        });
        let binding = json!({
            "metadata": {"name": "flannel"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "flannel"},
            "subjects": [{"kind": "ServiceAccount", "name": "flannel", "namespace": "kube-flannel"}],
        });
        let client = self.client(Who::Admin);
        for (plural, object) in [("clusterroles", role), ("clusterrolebindings", binding)] {
            let path = format!("/apis/rbac.authorization.k8s.io/v1/{plural}");
            let reply = client.ask("POST", &path, "", &object.to_string())?;
            if reply.code != 201 {
                return Err(io::Error::other(reply.text));
            }
        }
        // Rules reach the authorizer through a watch of its own.
        let (flannel, end) = (self.client(Who::Flannel), Instant::now() + PATIENCE);
        while flannel.get("/api/v1/nodes")?.code != 200 {
            if Instant::now() > end {
                return Err(io::Error::other("flannel's ClusterRole does not take effect"));
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Cluster for Real {
    fn name(&self) -> &'static str {
        "real"
    }

    fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    fn ca_pem(&self) -> &str {
        &self.authority.pem
    }

    fn token(&self, who: Who) -> &str {
        match who {
            Who::Admin => ADMIN,
            Who::Flannel => AGENT,
            Who::Nobody => "",
            Who::Stranger => "unknown",
        }
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        for child in self.processes.iter_mut().rev() {
            let _ended_before = child.kill();
            let _nothing_to_reap = child.wait();
        }
        let _left_to_the_owner_of_the_folder = fs::remove_dir_all(&self.folder);
    }
}

/// A port that is free now; the programs cannot be given a socket.
fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
