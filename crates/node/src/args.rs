//! The flags and variables of flanneld (flannel.md 1.2, 1.3).
//!
//! One deviation, decided in design.md: a flag error gives status 2, not 0 (F-01), so that a supervisor
//! sees it.

use std::fmt;

use std::path::PathBuf;

use model::FastPath;
use model::goflag::{self, Flag, Kind, Stop, Value, near};
use store::etcd::{EtcdOptions, TlsFiles};
use store::kube::{KubeOptions, Proxies};

use crate::log::Form;
use crate::redact::Redactor;

/// How the command line ends.
pub enum Outcome {
    /// Start, after showing the warnings.
    Run {
        /// The settings.
        options: Box<Options>,
        /// What the operator should know about them.
        warnings: Vec<String>,
    },
    /// Print to standard error and end.
    Print {
        /// Reason, if any, and usage.
        text: String,
        /// Exit status.
        status: u8,
    },
}

/// All settings of the agent; names are the flags' names.
#[derive(Clone)]
pub struct Options {
    pub etcd_endpoints: String,
    pub etcd_prefix: String,
    pub etcd_keyfile: String,
    pub etcd_certfile: String,
    pub etcd_cafile: String,
    pub etcd_username: String,
    pub etcd_password: String,
    /// Whether any etcd setting was given, by flag or variable.
    pub etcd_named: bool,
    pub iface: Vec<String>,
    pub iface_regex: Vec<String>,
    pub iface_can_reach: String,
    pub subnet_file: String,
    pub public_ip: String,
    pub public_ipv6: String,
    pub subnet_lease_renew_margin: i64,
    pub ip_masq: bool,
    pub ip_masq_fully_random_disable: bool,
    pub kube_subnet_mgr: bool,
    pub kube_api_url: String,
    pub kube_annotation_prefix: String,
    pub kubeconfig_file: String,
    pub net_config_path: String,
    pub set_node_network_unavailable: bool,
    pub healthz_ip: String,
    pub healthz_port: i64,
    pub iptables_resync: i64,
    pub iptables_forward_rules: bool,
    pub ip_blackhole_route: bool,
    /// `None` leaves it to the network configuration; an extension.
    pub fast_path: Option<FastPath>,
    /// How log lines look; an extension.
    pub log_format: Form,
    pub version: bool,
    pub v: i64,
}

const fn flag(name: &'static str, kind: Kind, default: &'static str, help: &'static str) -> Flag {
    Flag { name, kind, default, help }
}

/// Every flag of flanneld v0.28, and two of ours: `fast-path` and `log-format`.
pub const FLAGS: &[Flag] = &[
    flag(
        "etcd-endpoints",
        Kind::Text,
        "http://127.0.0.1:4001,http://127.0.0.1:2379",
        "etcd members, separated by commas",
    ),
    flag(
        "etcd-prefix",
        Kind::Text,
        "/coreos.com/network",
        "etcd key under which configuration and leases are",
    ),
    flag("etcd-keyfile", Kind::Text, "", "client key for etcd, PEM"),
    flag("etcd-certfile", Kind::Text, "", "client certificate for etcd, PEM"),
    flag(
        "etcd-cafile",
        Kind::Text,
        "",
        "certificate authorities that etcd's certificate is checked against, PEM",
    ),
    flag("etcd-username", Kind::Text, "", "user for etcd"),
    flag("etcd-password", Kind::Text, "", "password for etcd"),
    flag(
        "iface",
        Kind::List,
        "",
        "interface name or address for traffic between hosts; may be repeated, first that fits",
    ),
    flag(
        "iface-regex",
        Kind::List,
        "",
        "expression matched with addresses, then names of interfaces, after every iface; may be repeated",
    ),
    flag("iface-can-reach", Kind::Text, "", "use the interface through which this address is reached"),
    flag("subnet-file", Kind::Text, "/run/flannel/subnet.env", "file to write subnet and MTU to"),
    flag("public-ip", Kind::Text, "", "IPv4 address that other hosts use to reach this one"),
    flag("public-ipv6", Kind::Text, "", "IPv6 address that other hosts use to reach this one"),
    flag(
        "subnet-lease-renew-margin",
        Kind::Int,
        "60",
        "renew the lease this many minutes before its end, 1 to 1439",
    ),
    flag("ip-masq", Kind::Bool, "false", "masquerade what leaves the cluster network"),
    flag("ip-masq-fully-random-disable", Kind::Bool, "false", "masquerade without random choice of ports"),
    flag("kube-subnet-mgr", Kind::Bool, "false", "take subnets from the Kubernetes API instead of etcd"),
    flag("kube-api-url", Kind::Text, "", "Kubernetes API server"),
    flag(
        "kube-annotation-prefix",
        Kind::Text,
        "flannel.alpha.coreos.com",
        "prefix of the annotations of nodes",
    ),
    flag("kubeconfig-file", Kind::Text, "", "kubeconfig file"),
    flag("version", Kind::Bool, "false", "print the version and end"),
    flag("healthz-ip", Kind::Text, "0.0.0.0", "address to answer health checks on"),
    flag("healthz-port", Kind::Int, "0", "port to answer health checks on, 0 for none"),
    flag(
        "iptables-resync",
        Kind::Int,
        "5",
        "seconds between checks of rules of iptables-legacy; changes in iptables-nft and nftables are noticed at once",
    ),
    flag("iptables-forward-rules", Kind::Bool, "true", "accept forwarded traffic of the cluster network"),
    flag("ip-blackhole-route", Kind::Bool, "false", "keep a blackhole route for the own subnet"),
    flag(
        "net-config-path",
        Kind::Text,
        "/etc/kube-flannel/net-conf.json",
        "network configuration, with kube-subnet-mgr",
    ),
    flag(
        "set-node-network-unavailable",
        Kind::Bool,
        "true",
        "clear the node's NetworkUnavailable condition, with kube-subnet-mgr",
    ),
    flag(
        "fast-path",
        Kind::Text,
        "",
        "carry established flows between pods past bridge and netfilter: off, auto, on; empty: as FastPath of the backend",
    ),
    flag(
        "log-format",
        Kind::Text,
        "text",
        "log lines on stderr: text for people, json for programs (LODEN_LOG_FORMAT says so, too)",
    ),
    flag("v", Kind::Int, "0", "log level; 2 and more show details"),
    flag("vmodule", Kind::Text, "", "accepted for compatibility: log levels of files"),
    flag("log_backtrace_at", Kind::Text, "", "accepted for compatibility: file and line of a stack trace"),
];

/// The variable that says what a flag says.
pub fn variable(flag: &str) -> String {
    // A name of our own for what flannel does not have.
    let beginning = if flag == "log-format" { "LODEN" } else { "FLANNELD" };
    format!("{beginning}_{}", flag.to_uppercase().replace(['-', '.'], "_"))
}

/// Reads the command line, then the environment for what the command line does not say.
pub fn parse(program: &str, words: &[String], env: impl Fn(&str) -> Option<String>) -> Outcome {
    let usage = || goflag::usage(program, FLAGS);
    let mut parsed = match goflag::parse(FLAGS, words) {
        Ok(parsed) => parsed,
        Err(Stop::Help) => return Outcome::Print { text: usage(), status: 0 },
        Err(Stop::Error(error)) => {
            let hint = error.strip_prefix("flag provided but not defined: -").and_then(|name| {
                near(name, FLAGS.iter().map(|flag| flag.name)).map(|flag| format!("did you mean -{flag}?\n"))
            });
            let text = format!("{error}\n{}{}", hint.unwrap_or_default(), usage());
            return Outcome::Print { text, status: 2 };
        }
    };
    let mut warnings = Vec::new();
    if !parsed.rest.is_empty() {
        warnings.push(format!(
            "everything from the word {:?} on is ignored, flags too; a switch takes its value after \"=\": \
             --ip-masq=true",
            parsed.rest[0]
        ));
    }
    let last = parsed.settings.iter().rev().find(|(name, _)| *name == "version");
    let asks_version = last.is_some_and(|(_, value)| *value == Value::Bool(true));
    if !asks_version {
        for flag in FLAGS.iter().filter(|f| f.name != "version") {
            if parsed.settings.iter().any(|(name, _)| *name == flag.name) {
                continue;
            }
            let variable = variable(flag.name);
            let Some(text) = env(&variable).filter(|text| !text.is_empty()) else { continue };
            match goflag::value(flag.kind, &text) {
                Ok(value) => parsed.settings.push((flag.name, value)),
                Err(why) => {
                    warnings.push(format!("{variable}={text:?} is left out: {why} for flag -{}", flag.name))
                }
            }
        }
    }
    let options = Options::from(&parsed.settings);
    if !options.kube_subnet_mgr {
        for name in [
            "net-config-path",
            "set-node-network-unavailable",
            "kube-api-url",
            "kube-annotation-prefix",
            "kubeconfig-file",
        ] {
            if parsed.settings.iter().any(|(given, _)| *given == name) {
                warnings.push(format!("--{name} has no effect without --kube-subnet-mgr"));
            }
        }
    }
    if !options.version && !(1..1440).contains(&options.subnet_lease_renew_margin) {
        let text = format!(
            "invalid value {} for flag -subnet-lease-renew-margin: out of acceptable range, 1 to 1439 minutes\n",
            options.subnet_lease_renew_margin
        );
        return Outcome::Print { text, status: 1 };
    }
    let fast = parsed.settings.iter().rev().find(|(name, _)| *name == "fast-path");
    if let Some((_, Value::Text(word))) = fast
        && !word.is_empty()
        && let Err(why) = FastPath::of(word)
    {
        return Outcome::Print { text: format!("invalid value for flag -fast-path: {why}\n"), status: 1 };
    }
    let format = parsed.settings.iter().rev().find(|(name, _)| *name == "log-format");
    if let Some((_, Value::Text(word))) = format
        && let Err(why) = Form::of(word)
    {
        return Outcome::Print { text: format!("invalid value for flag -log-format: {why}\n"), status: 2 };
    }
    if !options.version && options.etcd_username.is_empty() != options.etcd_password.is_empty() {
        warnings.push("only one of --etcd-username and --etcd-password is set: neither is used".to_owned());
    }
    Outcome::Run { options: Box::new(options), warnings }
}

impl Options {
    /// How to reach etcd.
    pub fn etcd(&self) -> EtcdOptions {
        let file = |path: &str| (!path.is_empty()).then(|| PathBuf::from(path));
        let identity = file(&self.etcd_certfile).zip(file(&self.etcd_keyfile));
        EtcdOptions {
            endpoints: self.etcd_endpoints.clone(),
            prefix: self.etcd_prefix.clone(),
            tls: TlsFiles { ca: file(&self.etcd_cafile), identity },
            user: Some((self.etcd_username.clone(), self.etcd_password.clone())),
            ..EtcdOptions::default()
        }
    }

    /// How to reach the Kubernetes API and who we are there (flannel.md 4.1). `EVENT_QUEUE_DEPTH` and
    /// `CONT_WHEN_CACHE_NOT_READY` need nothing: there is no queue, and nobody gives up waiting.
    pub fn kube(&self, env: impl Fn(&str) -> Option<String>) -> KubeOptions {
        let filled = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let env = |name: &str| env(name).filter(|text| !text.is_empty());
        let either = |name: &str| env(name).or_else(|| env(&name.to_lowercase())).unwrap_or_default();
        KubeOptions {
            kubeconfig: filled(&self.kubeconfig_file).map(PathBuf::from),
            api_url: filled(&self.kube_api_url),
            annotation_prefix: self.kube_annotation_prefix.clone(),
            net_conf: PathBuf::from(&self.net_config_path),
            set_condition: self.set_node_network_unavailable,
            node_name: env("NODE_NAME"),
            pod: env("POD_NAMESPACE").zip(env("POD_NAME")),
            service: env("KUBERNETES_SERVICE_HOST").zip(env("KUBERNETES_SERVICE_PORT")),
            proxies: Proxies {
                http: either("HTTP_PROXY"),
                https: either("HTTPS_PROXY"),
                none: either("NO_PROXY"),
            },
            ..KubeOptions::default()
        }
    }

    fn from(settings: &[(&'static str, Value)]) -> Options {
        let given =
            |name: &str| settings.iter().rev().find(|(n, _)| *n == name).map(|(_, value)| value.clone());
        let default = |name: &str| {
            let flag = FLAGS.iter().find(|f| f.name == name);
            flag.and_then(|f| goflag::value(f.kind, if f.default.is_empty() { "" } else { f.default }).ok())
        };
        let value = |name: &str| given(name).or_else(|| default(name));
        let text = |name: &str| match value(name) {
            Some(Value::Text(text)) => text,
            _ => String::new(),
        };
        let int = |name: &str| match value(name) {
            Some(Value::Int(number)) => number,
            _ => 0,
        };
        let on = |name: &str| value(name) == Some(Value::Bool(true));
        let list = |name: &str| {
            let all = settings.iter().filter(|(n, _)| *n == name);
            all.filter_map(|(_, v)| if let Value::Text(text) = v { Some(text.clone()) } else { None })
                .collect()
        };
        Options {
            etcd_endpoints: text("etcd-endpoints"),
            etcd_prefix: text("etcd-prefix"),
            etcd_keyfile: text("etcd-keyfile"),
            etcd_certfile: text("etcd-certfile"),
            etcd_cafile: text("etcd-cafile"),
            etcd_username: text("etcd-username"),
            etcd_password: text("etcd-password"),
            etcd_named: settings.iter().any(|(name, _)| name.starts_with("etcd-")),
            iface: list("iface"),
            iface_regex: list("iface-regex"),
            iface_can_reach: text("iface-can-reach"),
            subnet_file: text("subnet-file"),
            public_ip: text("public-ip"),
            public_ipv6: text("public-ipv6"),
            subnet_lease_renew_margin: int("subnet-lease-renew-margin"),
            ip_masq: on("ip-masq"),
            ip_masq_fully_random_disable: on("ip-masq-fully-random-disable"),
            kube_subnet_mgr: on("kube-subnet-mgr"),
            kube_api_url: text("kube-api-url"),
            kube_annotation_prefix: text("kube-annotation-prefix"),
            kubeconfig_file: text("kubeconfig-file"),
            net_config_path: text("net-config-path"),
            set_node_network_unavailable: on("set-node-network-unavailable"),
            healthz_ip: text("healthz-ip"),
            healthz_port: int("healthz-port"),
            iptables_resync: int("iptables-resync"),
            iptables_forward_rules: on("iptables-forward-rules"),
            ip_blackhole_route: on("ip-blackhole-route"),
            fast_path: FastPath::of(&text("fast-path")).ok(),
            log_format: Form::of(&text("log-format")).unwrap_or_default(),
            version: on("version"),
            v: int("v"),
        }
    }
}

/// The settings for commands that have no flags of the agent: by environment alone.
pub fn from_environment() -> Options {
    match parse("loden", &[], |name| std::env::var(name).ok()) {
        Outcome::Run { options, .. } => *options,
        Outcome::Print { .. } => Options::from(&[]),
    }
}

impl Options {
    /// Every setting with its value as Rust writes it, without secrets: the password, and users in URLs (F-03).
    pub fn shown(&self) -> Vec<(&'static str, String)> {
        fn text(value: &dyn fmt::Debug) -> String {
            format!("{value:?}")
        }
        let password = if self.etcd_password.is_empty() { "" } else { "(hidden)" };
        let endpoints = Redactor::default().text(&self.etcd_endpoints);
        let api = Redactor::default().text(&self.kube_api_url);
        vec![
            ("etcd-endpoints", text(&endpoints)),
            ("etcd-prefix", text(&self.etcd_prefix)),
            ("etcd-keyfile", text(&self.etcd_keyfile)),
            ("etcd-certfile", text(&self.etcd_certfile)),
            ("etcd-cafile", text(&self.etcd_cafile)),
            ("etcd-username", text(&self.etcd_username)),
            ("etcd-password", text(&password)),
            ("iface", text(&self.iface)),
            ("iface-regex", text(&self.iface_regex)),
            ("iface-can-reach", text(&self.iface_can_reach)),
            ("subnet-file", text(&self.subnet_file)),
            ("public-ip", text(&self.public_ip)),
            ("public-ipv6", text(&self.public_ipv6)),
            ("subnet-lease-renew-margin", text(&self.subnet_lease_renew_margin)),
            ("ip-masq", text(&self.ip_masq)),
            ("ip-masq-fully-random-disable", text(&self.ip_masq_fully_random_disable)),
            ("healthz-ip", text(&self.healthz_ip)),
            ("healthz-port", text(&self.healthz_port)),
            ("iptables-resync", text(&self.iptables_resync)),
            ("iptables-forward-rules", text(&self.iptables_forward_rules)),
            ("ip-blackhole-route", text(&self.ip_blackhole_route)),
            ("kube-subnet-mgr", text(&self.kube_subnet_mgr)),
            ("kube-api-url", text(&api)),
            ("kube-annotation-prefix", text(&self.kube_annotation_prefix)),
            ("kubeconfig-file", text(&self.kubeconfig_file)),
            ("net-config-path", text(&self.net_config_path)),
            ("set-node-network-unavailable", text(&self.set_node_network_unavailable)),
            ("fast-path", text(&self.fast_path)),
            ("log-format", text(&self.log_format)),
            ("v", text(&self.v)),
        ]
    }
}

impl fmt::Debug for Options {
    /// For the log: one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut all = f.debug_struct("Options");
        for (name, text) in self.shown() {
            all.field(name, &format_args!("{text}"));
        }
        all.finish()
    }
}

#[cfg(test)]
mod tests;
