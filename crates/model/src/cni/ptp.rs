//! Configuration of the ptp plugin (cni.md 2.9).

use super::common::{dns, flag, ipam_type, mtu};
use super::members::Members;
use super::result::Dns;

/// What the ptp plugin is told to build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PtpConf {
    /// Masquerade what leaves the pod's network.
    pub ip_masq: bool,
    /// Named backend of the masquerading; empty for ours to choose.
    pub ip_masq_backend: String,
    /// MTU in bytes; `None` is the kernel's default.
    pub mtu: Option<u32>,
    /// Type of the address manager.
    pub ipam: String,
    /// Replaces the address manager's answer.
    pub dns: Option<Dns>,
}

impl PtpConf {
    /// Reads and checks the whole document.
    ///
    /// # Errors
    /// One sentence that names the member.
    pub fn parse(doc: &Members<'_>) -> Result<PtpConf, String> {
        Ok(PtpConf {
            ip_masq: flag(doc, "ipMasq")?,
            ip_masq_backend: doc.string("ipMasqBackend")?,
            mtu: mtu(doc)?,
            ipam: ipam_type(doc)?,
            dns: dns(doc)?,
        })
    }
}
