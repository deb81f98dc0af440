//! Configuration of the firewall plugin (cni.md 2.5).

use super::iptables::{ADMIN_CHAIN, IngressPolicy, check_chain};
use super::members::Members;

/// Who keeps the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The host's iptables.
    Iptables,
    /// The firewalld daemon.
    Firewalld,
}

/// What the firewall plugin is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirewallConf {
    /// By name; `None` is firewalld where it runs, else iptables.
    pub backend: Option<Backend>,
    /// The administrator's chain.
    pub admin_chain: String,
    /// Zone of firewalld the addresses join.
    pub zone: String,
    /// Who may open connections to the pod.
    pub policy: IngressPolicy,
}

impl FirewallConf {
    /// Reads and checks the document.
    ///
    /// # Errors
    /// One sentence, upstream's where it has one.
    pub fn parse(doc: &Members<'_>) -> Result<FirewallConf, String> {
        let or = |text: String, default: &str| if text.is_empty() { default.to_owned() } else { text };
        let backend = match doc.string("backend")?.as_str() {
            "iptables" => Some(Backend::Iptables),
            "firewalld" => Some(Backend::Firewalld),
            _ => None,
        };
        let policy = match doc.string("ingressPolicy")?.as_str() {
            "" | "open" => IngressPolicy::Open,
            "same-bridge" => IngressPolicy::SameBridge,
            "isolated" => IngressPolicy::Isolated,
            other => return Err(format!("unknown ingress policy: {other:?}")),
        };
        let admin_chain = or(doc.string("iptablesAdminChainName")?, ADMIN_CHAIN);
        check_chain(&admin_chain).map_err(|e| format!("iptablesAdminChainName: {e}"))?;
        Ok(FirewallConf { backend, admin_chain, zone: or(doc.string("firewalldZone")?, "trusted"), policy })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_are_read() {
        let parse = |doc| FirewallConf::parse(&Members::of(&doc, "FirewallNetConf").unwrap());
        let plain = parse(json!({})).unwrap();
        assert_eq!((plain.admin_chain.as_str(), plain.zone.as_str()), ("CNI-ADMIN", "trusted"));
        assert_eq!((plain.backend, plain.policy), (None, IngressPolicy::Open));
        let all = json!({"backend": "firewalld", "iptablesAdminChainName": "X", "firewalldZone": "z",
                         "ingressPolicy": "isolated"});
        let all = parse(all).unwrap();
        assert_eq!((all.admin_chain.as_str(), all.zone.as_str()), ("X", "z"));
        assert_eq!((all.backend, all.policy), (Some(Backend::Firewalld), IngressPolicy::Isolated));
        for (doc, want) in [
            (json!({"ingressPolicy": "x"}), "unknown ingress policy: \"x\""),
            (
                json!({"backend": 1}),
                "json: cannot unmarshal number into Go struct field FirewallNetConf.backend of type string",
            ),
            (
                json!({"iptablesAdminChainName": "a b"}),
                "iptablesAdminChainName: \"a b\" is no name of an iptables chain (1 to 28 letters, digits, and signs other than blanks)",
            ),
        ] {
            assert_eq!(parse(doc), Err(want.to_owned()));
        }
    }
}
