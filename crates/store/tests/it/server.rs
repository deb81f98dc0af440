//! A real etcd, Debian's, on loopback ports and a data directory of its own; gone when dropped.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use tempfile::TempDir;

/// A member, alone in its cluster.
pub struct Etcd {
    child: Option<Child>,
    pub dir: TempDir,
    pub address: SocketAddr,
    peer: SocketAddr,
    certificates: Option<Certificates>,
    clients_need_certificates: bool,
}

/// What `TlsFiles` needs, as files.
pub struct Certificates {
    pub ca: PathBuf,
    pub server: (PathBuf, PathBuf),
    pub client: (PathBuf, PathBuf),
}

/// Says that a test cannot run here, once, and fails where etcd is required.
pub fn etcd_missing(test: &str) -> bool {
    if Path::new("/usr/bin/etcd").exists() && Path::new("/usr/bin/etcdctl").exists() {
        return false;
    }
    let required =
        std::env::var("LODEN_REQUIRE").is_ok_and(|list| list.split(',').any(|what| what == "etcd"));
    assert!(!required, "{test}: etcd is required here and not installed (Debian: etcd-server, etcd-client)");
    println!("SKIP {test}: no etcd on this machine (Debian: etcd-server, etcd-client)");
    true
}

impl Etcd {
    /// Without TLS.
    pub fn start() -> Etcd {
        Etcd::launch(None, false)
    }

    /// With TLS; `mutual` asks every client for a certificate.
    pub fn with_tls(mutual: bool) -> Etcd {
        let dir = TempDir::new().unwrap();
        let certificates = Certificates::make(dir.path(), "etcd");
        Etcd::launch(Some((dir, certificates)), mutual)
    }

    fn launch(tls: Option<(TempDir, Certificates)>, mutual: bool) -> Etcd {
        let (dir, certificates) = match tls {
            Some((dir, certificates)) => (dir, Some(certificates)),
            None => (TempDir::new().unwrap(), None),
        };
        // A port picked free may be taken before etcd listens.
        let mut etcd = Etcd {
            child: None,
            dir,
            address: free_port(),
            peer: free_port(),
            certificates,
            clients_need_certificates: mutual,
        };
        for _ in 0..5 {
            if etcd.run() {
                return etcd;
            }
            (etcd.address, etcd.peer) = (free_port(), free_port());
            let _ = fs::remove_dir_all(etcd.dir.path().join("data"));
        }
        panic!("etcd does not start:\n{}", etcd.log());
    }

    /// Starts the process and waits until it serves; whether it does.
    fn run(&mut self) -> bool {
        let log = fs::File::create(self.dir.path().join("log")).unwrap();
        let scheme = if self.certificates.is_some() { "https" } else { "http" };
        let (client, peer) = (format!("{scheme}://{}", self.address), format!("http://{}", self.peer));
        // Ends with us, whatever becomes of us.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "/usr/bin/etcd", "--name", "one", "--data-dir"])
            .arg(self.dir.path().join("data"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("one={peer}")])
            // Quick to elect itself, and short leases stay short.
            .args(["--heartbeat-interval", "50", "--election-timeout", "250"])
            .args(["--logger", "zap", "--log-outputs", "stderr"])
            .stdout(Stdio::null())
            .stderr(log);
        if let Some(certificates) = &self.certificates {
            command
                .arg("--cert-file")
                .arg(&certificates.server.0)
                .arg("--key-file")
                .arg(&certificates.server.1);
            if self.clients_need_certificates {
                command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(&certificates.ca);
            }
        }
        self.child = Some(command.spawn().unwrap());
        let deadline = Instant::now() + Duration::from_secs(15);
        while Instant::now() < deadline {
            if self.log().contains("serving client traffic") {
                return true;
            }
            if self.child.as_mut().is_none_or(|child| child.try_wait().unwrap().is_some()) {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// As an endpoint.
    pub fn url(&self) -> String {
        let scheme = if self.certificates.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    pub fn certificates(&self) -> &Certificates {
        self.certificates.as_ref().expect("started with TLS")
    }

    /// Kills it; data stay.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again on the same ports and data.
    pub fn restart(&mut self) {
        self.stop();
        assert!(self.run(), "etcd does not start again:\n{}", self.log());
    }

    /// Stops or continues the process, as `kill -STOP` and `kill -CONT` do.
    pub fn signal(&self, name: &str) {
        let pid = self.child.as_ref().map(|child| child.id().to_string()).expect("etcd runs");
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }

    /// Runs etcd's own client; its output.
    pub fn ctl(&self, args: &[&str]) -> String {
        let mut command = Command::new("/usr/bin/etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.url()]);
        if let Some(certificates) = &self.certificates {
            command.arg("--cacert").arg(&certificates.ca);
            command.arg("--cert").arg(&certificates.client.0).arg("--key").arg(&certificates.client.1);
        }
        let output = command.args(args).output().unwrap();
        assert!(output.status.success(), "etcdctl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A loopback port nobody listens on.
pub fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl Certificates {
    /// A CA of its own with a server and a client certificate, in files that begin with `name`.
    pub fn make(dir: &Path, name: &str) -> Certificates {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, format!("{name} CA"));
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let leaf = |role: &str, names: &[&str], usage| {
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            let mut params = CertificateParams::new(names).unwrap();
            params.distinguished_name.push(DnType::CommonName, format!("{name} {role}"));
            params.extended_key_usages = vec![usage];
            let key = KeyPair::generate().unwrap();
            let certificate = params.signed_by(&key, &ca).unwrap();
            let files = (dir.join(format!("{name}-{role}.pem")), dir.join(format!("{name}-{role}.key")));
            fs::write(&files.0, certificate.pem()).unwrap();
            fs::write(&files.1, key.serialize_pem()).unwrap();
            files
        };
        let path = dir.join(format!("{name}-ca.pem"));
        fs::write(&path, ca.pem()).unwrap();
        Certificates {
            ca: path,
            server: leaf("server", &["127.0.0.1", "localhost"], ExtendedKeyUsagePurpose::ServerAuth),
            client: leaf("client", &[], ExtendedKeyUsagePurpose::ClientAuth),
        }
    }
}
