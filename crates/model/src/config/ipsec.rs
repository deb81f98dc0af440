//! The `Backend` object of type `ipsec` (flannel.md 2.3, 6.7).

use super::{ConfError, Secret};
use crate::gojson::Json;

/// Settings of the ipsec backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpsecConf {
    /// `PSK`, which all nodes share.
    pub psk: Secret,
    /// `UDPEncap`: ESP in UDP also where nothing translates addresses.
    pub udp_encap: bool,
    /// `ESPProposal`, a cipher suite in strongSwan's words.
    pub esp_proposal: String,
}

/// The least length of a key in bytes.
const LEAST: usize = 96;
/// What one value of charon's control protocol can carry.
const MOST: usize = 65_535;

impl IpsecConf {
    /// Decodes the `Backend` object.
    ///
    /// # Errors
    /// A key of another type, no key or a short one, a proposal that cannot be one.
    pub fn decode(backend: &Json) -> Result<IpsecConf, ConfError> {
        let fields = backend.fields("Backend")?;
        let psk = fields.str("PSK")?.unwrap_or_default();
        if !(LEAST..=MOST).contains(&psk.len()) {
            let problem = format!(
                "has {} bytes, and must have {LEAST} to {MOST}, the same on all nodes; make one with: openssl rand \
                 -hex 48",
                psk.len()
            );
            return Err(ConfError::value("PSK", problem));
        }
        let proposal = fields.str("ESPProposal")?.unwrap_or("aes128gcm16-sha256-prfsha256-ecp256");
        let word =
            |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !proposal.split('-').all(word) {
            let problem = format!(
                "{proposal:?} is not a cipher suite in strongSwan's words, such as \
                 \"aes128gcm16-sha256-prfsha256-ecp256\""
            );
            return Err(ConfError::value("ESPProposal", problem));
        }
        Ok(IpsecConf {
            psk: Secret::new(psk),
            udp_encap: fields.bool("UDPEncap")?.unwrap_or(false),
            esp_proposal: proposal.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_checked_and_the_secret_never_shown() {
        let long = "s3cr3t".repeat(16);
        let decode = |members: &str| IpsecConf::decode(&members.replace("LONG", &long).parse().unwrap());
        let plain = decode(r#"{"psk":"LONG"}"#).unwrap();
        assert_eq!(plain.psk.bytes(), long.as_bytes());
        assert_eq!(
            (plain.udp_encap, plain.esp_proposal.as_str()),
            (false, "aes128gcm16-sha256-prfsha256-ecp256")
        );
        let all = decode(r#"{"PSK":"LONG","UDPEncap":true,"ESPProposal":"aes256-sha256"}"#).unwrap();
        assert_eq!((all.udp_encap, all.esp_proposal.as_str()), (true, "aes256-sha256"));
        assert!(!format!("{all:?}").contains("s3cr3t"));
        for (members, sentence) in [
            (r#"{}"#, "PSK has 0 bytes, and must have 96"),
            (r#"{"PSK":null}"#, "PSK has 0 bytes"),
            (r#"{"PSK":"s3cr3t"}"#, "PSK has 6 bytes"),
            (r#"{"PSK":5}"#, "PSK"),
            (r#"{"PSK":["LONG"]}"#, "PSK"),
            (r#"{"PSK":"LONG","UDPEncap":"yes"}"#, "UDPEncap"),
            (r#"{"PSK":"LONG","ESPProposal":""}"#, "ESPProposal \"\" is not a cipher suite"),
            (r#"{"PSK":"LONG","ESPProposal":"aes128, aes256"}"#, "ESPProposal"),
            (r#"{"PSK":"LONG","ESPProposal":7}"#, "ESPProposal"),
        ] {
            let error = decode(members).expect_err(members).to_string();
            assert!(error.contains(sentence) && !error.contains("s3cr3t"), "{members}: {error}");
        }
    }
}
