//! TLS settings of a connection to etcd: which roots to trust, which client certificate to show.
//!
//! The files are read again for every connection, so renewed certificates need no restart.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// Files in PEM form. A CA without a client certificate counts (F-36).
#[derive(Clone, Debug, Default)]
pub struct TlsFiles {
    /// The only certificates to trust; `None` = those of the system.
    pub ca: Option<PathBuf>,
    /// Client certificate chain and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl TlsFiles {
    /// Whether anything was given: then a bare `host:port` means TLS (flannel.md 3.9).
    pub(super) fn given(&self) -> bool {
        self.ca.is_some() || self.identity.is_some()
    }

    /// Reads the files.
    ///
    /// # Errors
    /// One sentence with the file that cannot be used.
    pub(super) fn load(&self) -> Result<Arc<ClientConfig>, String> {
        let roots = match &self.ca {
            Some(path) => roots_from(path)?,
            None => system_roots()?,
        };
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|e| format!("set up TLS: {e}"))?
            .with_root_certificates(roots);
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let chain = certificates(cert)?;
                let secret = PrivateKeyDer::from_pem_file(key)
                    .map_err(|e| format!("read etcd client key {}: {e}", key.display()))?;
                builder.with_client_auth_cert(chain, secret).map_err(|e| {
                    let (cert, key) = (cert.display(), key.display());
                    format!(
                        "use etcd client certificate {cert} with key {key}: {e}; do the two belong together?"
                    )
                })?
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }
}

/// TLS without a client certificate, for HTTP/1.1, trusting what this system trusts.
///
/// # Errors
/// The system trusts nobody.
pub(crate) fn system_tls() -> Result<Arc<ClientConfig>, String> {
    let mut config = Arc::unwrap_or_clone(TlsFiles::default().load()?);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let failed = |e| format!("read etcd certificate {}: {e}", path.display());
    let all: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(failed)?.collect();
    match all.map_err(failed)? {
        list if list.is_empty() => {
            Err(format!("read etcd certificate {}: no PEM certificate in the file", path.display()))
        }
        list => Ok(list),
    }
}

fn roots_from(path: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|e| format!("read etcd CA {}: {e}", path.display()))?;
    }
    Ok(roots)
}

fn system_roots() -> Result<RootCertStore, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // A certificate store of a distribution may hold odd entries; the readable ones count.
    let (usable, _) = roots.add_parsable_certificates(found.certs);
    if usable > 0 {
        return Ok(roots);
    }
    let cause = found.errors.first().map_or_else(String::new, |e| format!(" ({e})"));
    Err(format!("no certificate authority found on this system{cause}; name etcd's with etcd-cafile"))
}
