//! What is called: chains of plugins, their documents and goals.

use super::Side;
use crate::Result;
use crate::figure::Goal;

/// Holds the thousand pods of the crowd.
pub const SUBNET: &str = "10.244.0.0/20";
/// All of the cluster.
pub const NETWORK: &str = "10.244.0.0/16";

/// One plugin of a chain.
pub struct Step {
    /// Its name.
    pub plugin: &'static str,
    /// Its document, without result.
    pub document: String,
}

impl Step {
    /// The document with the result of the plugin before, or of the chain.
    pub fn with_result(&self, result: &str) -> String {
        match self.document.strip_prefix('{') {
            Some(rest) if !result.is_empty() => format!("{{\"prevResult\":{result},{rest}"),
            _ => self.document.clone(),
        }
    }
}

/// The plugins.
#[derive(Clone, Copy, PartialEq)]
pub enum Chain {
    /// `bridge` with `host-local`.
    Bridge,
    /// The same, then `portmap` with a port.
    BridgePort,
    /// `flannel`, which calls `bridge`.
    Flannel,
    /// The same, then `portmap` with a port.
    FlannelPort,
    /// `ptp` with `host-local`, both families.
    Ptp,
}

/// A chain, and whether the bridge masquerades.
#[derive(Clone, Copy)]
pub struct Case {
    /// The plugins.
    pub chain: Chain,
    /// `ipMasq`.
    pub masquerade: bool,
}

impl Case {
    /// For people.
    pub fn name(self) -> String {
        let chain = match self.chain {
            Chain::Bridge => "bridge + host-local",
            Chain::BridgePort => "bridge + host-local, portmap with a port",
            Chain::Flannel => "flannel + bridge + host-local",
            Chain::FlannelPort => "flannel + bridge + host-local, portmap with a port",
            Chain::Ptp => "ptp + host-local, IPv4 and IPv6",
        };
        format!("{chain}{}", if self.masquerade { ", ipMasq" } else { "" })
    }

    /// Limits of ADD and DEL.
    pub fn goals(self) -> [Goal; 2] {
        match (self.chain, self.masquerade) {
            (Chain::Bridge, false) => [Goal::AtMost(0.2), Goal::AtMost(0.5)],
            (Chain::Bridge, true) => [Goal::AtMost(0.125), Goal::AtMost(0.2)],
            // Without flannel's own plugin one process less is compared: the harder row.
            (Chain::FlannelPort | Chain::BridgePort, _) => [Goal::AtMost(0.125), Goal::None],
            // The reference takes 1.7 s, most of it waiting.
            (Chain::Ptp, _) => [Goal::AtMost(0.02), Goal::None],
            (Chain::Flannel, _) => [Goal::None; 2],
        }
    }

    /// The documents for a side's stores.
    pub fn steps(self, side: &Side) -> Result<Vec<Step>> {
        let first = match self.chain {
            Chain::Bridge | Chain::BridgePort => self.bridge(side),
            Chain::Flannel | Chain::FlannelPort => self.flannel(side)?,
            Chain::Ptp => ptp(side),
        };
        let mut steps = vec![first];
        if matches!(self.chain, Chain::BridgePort | Chain::FlannelPort) {
            steps.push(Step { plugin: "portmap", document: PORTMAP.to_owned() });
        }
        Ok(steps)
    }

    fn bridge(self, side: &Side) -> Step {
        let (masquerade, store) = (self.masquerade, side.store());
        let document = format!(
            r#"{{"cniVersion":"1.0.0","name":"cbr0","type":"bridge","bridge":"cni0","hairpinMode":true,
                "isDefaultGateway":true,"ipMasq":{masquerade},
                "ipam":{{"type":"host-local","dataDir":"{store}","ranges":[[{{"subnet":"{SUBNET}"}}]],
                         "routes":[{{"dst":"{NETWORK}"}}]}}}}"#
        );
        Step { plugin: "bridge", document }
    }

    fn flannel(self, side: &Side) -> Result<Step> {
        // The agent masquerades or the bridge does.
        let agent = !self.masquerade;
        let path = |name: &str| side.folder.join(name).display().to_string();
        let (env, store, scratch) = (path("subnet.env"), side.store(), path("flannel"));
        let text = format!(
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\n\
             FLANNEL_IPMASQ={agent}\n"
        );
        std::fs::write(&env, text)?;
        let document = format!(
            r#"{{"cniVersion":"1.0.0","name":"cbr0","type":"flannel","subnetFile":"{env}",
                "dataDir":"{scratch}","ipam":{{"dataDir":"{store}"}},
                "delegate":{{"hairpinMode":true,"isDefaultGateway":true}}}}"#
        );
        Ok(Step { plugin: "flannel", document })
    }
}

const PORTMAP: &str = r#"{"cniVersion":"1.0.0","name":"cbr0","type":"portmap",
    "runtimeConfig":{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]}}"#;

fn ptp(side: &Side) -> Step {
    let store = side.store();
    let document = format!(
        r#"{{"cniVersion":"1.0.0","name":"cbr0","type":"ptp",
            "ipam":{{"type":"host-local","dataDir":"{store}",
                     "ranges":[[{{"subnet":"{SUBNET}"}}],[{{"subnet":"2001:db8:42::/64"}}]],
                     "routes":[{{"dst":"0.0.0.0/0"}},{{"dst":"::/0"}}]}}}}"#
    );
    Step { plugin: "ptp", document }
}
