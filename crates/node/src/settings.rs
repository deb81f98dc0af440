//! What an agent was told, for a bug report: its flags, its variables, the network configuration; without secrets.
//! Pure.

use model::{Json, NetConf};

use crate::args::Options;
use crate::redact::Redactor;

/// Version of the JSON.
const VERSION: u32 = 1;

/// How names of variables begin that say something to us or to the plugins.
const BEGINNINGS: &[&str] = &["LODEN_", "FLANNELD_", "CNI_", "KUBERNETES_SERVICE_"];
/// Others that do.
const NAMES: &[&str] = &[
    "NODE_NAME",
    "POD_NAME",
    "POD_NAMESPACE",
    "WIREGUARD_KEY_FILE",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "KUBECONFIG",
    "NETCONFPATH",
    "CAP_ARGS",
];

/// Flags and variables of one process.
#[derive(Debug, Default)]
pub struct Settings {
    flags: Vec<(&'static str, String)>,
    environment: Vec<(String, String)>,
    redactor: Redactor,
}

impl Settings {
    /// Of a process with these flags and variables.
    pub fn new(options: &Options, environment: impl Iterator<Item = (String, String)>) -> Settings {
        let mut redactor = Redactor::default();
        redactor.know(&options.etcd_password);
        let ours = |name: &str| {
            let name = name.to_uppercase();
            BEGINNINGS.iter().any(|beginning| name.starts_with(beginning)) || NAMES.contains(&name.as_str())
        };
        let mut environment: Vec<_> = environment.filter(|(name, _)| ours(name)).collect();
        environment.sort();
        Settings { flags: options.shown(), environment, redactor }
    }

    /// The document.
    pub fn json(&self, conf: Option<&NetConf>) -> Json {
        let text = |text: &str| Json::from(text.trim_matches('"'));
        let document = Json::object([
            ("version", VERSION.into()),
            ("flags", Json::object(self.flags.iter().map(|(name, value)| (*name, text(value))))),
            (
                "environment",
                Json::object(self.environment.iter().map(|(n, v)| (n.as_str(), v.as_str().into()))),
            ),
            ("network_config", conf.map(network).into()),
        ]);
        self.redactor.json(&document)
    }

    /// A text without the secrets known here.
    pub fn clean(&self, text: &str) -> String {
        self.redactor.text(text)
    }
}

/// The configuration as one would write it, with what was left out filled in.
fn network(conf: &NetConf) -> Json {
    fn text<T: std::fmt::Display>(value: &Option<T>) -> Json {
        value.as_ref().map(T::to_string).into()
    }
    let members = [
        ("EnableIPv4", conf.enable_ipv4.into()),
        ("EnableIPv6", conf.enable_ipv6.into()),
        ("EnableNFTables", conf.enable_nftables.into()),
        ("Network", text(&conf.network)),
        ("IPv6Network", text(&conf.ipv6_network)),
        ("SubnetLen", conf.subnet_len.into()),
        ("SubnetMin", text(&conf.subnet_min)),
        ("SubnetMax", text(&conf.subnet_max)),
        ("IPv6SubnetLen", conf.ipv6_subnet_len.into()),
        ("IPv6SubnetMin", text(&conf.ipv6_subnet_min)),
        ("IPv6SubnetMax", text(&conf.ipv6_subnet_max)),
        ("Backend", conf.backend.clone()),
    ];
    Json::object(members.into_iter().filter(|(_, value)| !value.is_null()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args;

    #[test]
    fn secrets_stay_with_the_agent() {
        let line =
            ["--etcd-username=u", "--etcd-password=hunter2", "--etcd-endpoints=http://u:hunter2@h:2379"];
        let args::Outcome::Run { options, .. } = args::parse("x", &line.map(str::to_owned), |_| None) else {
            panic!("a valid command line")
        };
        let env = [
            ("FLANNELD_ETCD_PASSWORD", "hunter2"),
            ("https_proxy", "http://me:letmein@proxy:3128"),
            ("LODEN_PROBE", "off"),
            ("HOME", "/home/x"),
        ];
        let env = env.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        let settings = Settings::new(&options, env);
        let conf = NetConf::parse(
            r#"{"Network":"10.0.0.0/8","Backend":{"Type":"wireguard","PSK":"c2VjcmV0","MTU":1400}}"#,
        );
        let json = settings.json(Some(&conf.unwrap()));
        let text = json.to_compact();
        for secret in ["hunter2", "letmein", "c2VjcmV0"] {
            assert!(!text.contains(secret), "{secret}: {text}");
        }
        let get = |part: &str, key: &str| json.get(part).and_then(|part| part.get_exact(key)).cloned();
        assert_eq!(get("flags", "etcd-endpoints"), Some("http://(removed)@h:2379".into()));
        assert_eq!(get("environment", "LODEN_PROBE"), Some("off".into()));
        assert_eq!(get("environment", "https_proxy"), Some("http://(removed)@proxy:3128".into()));
        assert_eq!(get("environment", "HOME"), None);
        assert_eq!(get("network_config", "Network"), Some("10.0.0.0/8".into()));
        assert!(text.contains(r#""Type":"wireguard","PSK":"(removed)","MTU":1400"#), "{text}");
        assert_eq!(settings.clean("login hunter2 failed"), "login (removed) failed");
    }
}
