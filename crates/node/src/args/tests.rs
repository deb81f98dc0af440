use super::{FLAGS, Options, Outcome, parse};

fn read(line: &str, env: &[(&str, &str)]) -> Result<(Options, Vec<String>), (String, u8)> {
    let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    let env = |name: &str| env.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
    match parse("flanneld", &words, env) {
        Outcome::Run { options, warnings } => Ok((*options, warnings)),
        Outcome::Print { text, status } => Err((text, status)),
    }
}

fn options(line: &str, env: &[(&str, &str)]) -> Options {
    read(line, env).expect("a valid command line").0
}

#[test]
fn the_first_tutorials_command_line() {
    let o = options(
        "--public-ip=10.4.7.21 --etcd-endpoints=https://10.4.7.12:2379,https://10.4.7.21:2379 \
         --etcd-keyfile=./cert/client-key.pem --etcd-certfile=./cert/client.pem --etcd-cafile=./cert/ca.pem \
         --iface=ens33 --subnet-file=./subnet.env --healthz-port=2401",
        &[],
    );
    assert_eq!(o.etcd_endpoints, "https://10.4.7.12:2379,https://10.4.7.21:2379");
    assert_eq!(
        (o.public_ip.as_str(), o.healthz_port, o.iface),
        ("10.4.7.21", 2401, vec!["ens33".to_owned()])
    );
    assert!(o.etcd_named && o.iptables_forward_rules && !o.ip_masq);
}

#[test]
fn defaults_are_flannels() {
    let o = options("", &[]);
    assert_eq!(o.etcd_endpoints, "http://127.0.0.1:4001,http://127.0.0.1:2379");
    assert_eq!(o.etcd_prefix, "/coreos.com/network");
    assert_eq!(o.subnet_file, "/run/flannel/subnet.env");
    assert_eq!((o.healthz_ip.as_str(), o.healthz_port), ("0.0.0.0", 0));
    assert_eq!((o.subnet_lease_renew_margin, o.iptables_resync, o.v), (60, 5, 0));
    assert!(!o.etcd_named);
}

#[test]
fn environment_fills_what_the_line_does_not_say() {
    let env = [
        ("FLANNELD_ETCD_PREFIX", "/kube-centos/network"),
        ("FLANNELD_IP_MASQ", "true"),
        ("FLANNELD_HEALTHZ_PORT", "80x"),
        ("FLANNELD_IFACE", "eth0,eth1"),
        ("FLANNELD_PUBLIC_IP", ""),
        ("FLANNELD_VERSION", "true"),
    ];
    let (o, warnings) = read("--ip-masq=false", &env).expect("valid");
    assert_eq!(o.etcd_prefix, "/kube-centos/network");
    assert!(!o.ip_masq, "the line wins");
    assert_eq!(o.iface, ["eth0,eth1"], "no splitting");
    assert_eq!(o.healthz_port, 0, "a bad value keeps the default");
    assert!(warnings[0].starts_with("FLANNELD_HEALTHZ_PORT=\"80x\" is left out"), "{warnings:?}");
    assert!(!o.version, "has no variable");
}

#[test]
fn mistakes_and_their_status() {
    for (line, status, part) in [
        ("-h", 0, "Usage: flanneld [OPTION]..."),
        ("--use-multi-cluster-cidr", 2, "flag provided but not defined: -use-multi-cluster-cidr"),
        ("--healthz-port=x", 2, "invalid value \"x\" for flag -healthz-port: parse error"),
        ("--subnet-lease-renew-margin=1440", 1, "out of acceptable range"),
        ("--subnet-lease-renew-margin=0", 1, "out of acceptable range"),
    ] {
        let (text, got) = read(line, &[]).map(|_| ()).expect_err(line);
        assert_eq!(got, status, "{line}");
        assert!(text.contains(part), "{line}: {text}");
    }
    let (_, warnings) = read("--ip-masq true --kube-subnet-mgr", &[]).expect("valid");
    assert!(warnings[0].contains("\"true\""), "{warnings:?}");
    assert!(options("--version --subnet-lease-renew-margin=0", &[]).version);
    let env = [("FLANNELD_ETCD_PREFIX", "/x")];
    assert_eq!(options("--version --version=false", &env).etcd_prefix, "/x", "the last one counts");
    assert_eq!(options("--version", &env).etcd_prefix, "/coreos.com/network", "before the environment");
}

#[test]
fn every_flag_is_there() {
    assert_eq!(FLAGS.len(), 33, "flannel has 31, two are ours");
    for flag in FLAGS.iter().filter(|f| !f.default.is_empty()) {
        assert!(model::goflag::value(flag.kind, flag.default).is_ok(), "default of {}", flag.name);
    }
}

#[test]
fn kubernetes_settings_come_from_flags_and_the_pod() {
    let env = [
        ("FLANNELD_KUBE_ANNOTATION_PREFIX", "example.org"),
        ("NODE_NAME", "n1"),
        ("POD_NAME", "p"),
        ("POD_NAMESPACE", "kube-flannel"),
        ("KUBERNETES_SERVICE_HOST", "10.96.0.1"),
        ("KUBERNETES_SERVICE_PORT", "443"),
        ("EVENT_QUEUE_DEPTH", "70000"),
        ("HTTPS_PROXY", "http://proxy:3128"),
        ("no_proxy", "10.0.0.0/8"),
        ("CONT_WHEN_CACHE_NOT_READY", "true"),
    ];
    let look = |name: &str| env.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
    let kube = options("--ip-masq --kube-subnet-mgr", &env).kube(look);
    assert_eq!((kube.kubeconfig, kube.api_url), (None, None));
    assert_eq!(kube.annotation_prefix, "example.org");
    assert_eq!(kube.net_conf.to_str(), Some("/etc/kube-flannel/net-conf.json"));
    assert_eq!(kube.node_name.as_deref(), Some("n1"));
    assert_eq!(kube.pod, Some(("kube-flannel".to_owned(), "p".to_owned())));
    assert_eq!(kube.service, Some(("10.96.0.1".to_owned(), "443".to_owned())));
    assert!(kube.set_condition);
    assert_eq!(
        (kube.proxies.https.as_str(), kube.proxies.none.as_str()),
        ("http://proxy:3128", "10.0.0.0/8")
    );
    let line = "--kube-subnet-mgr --kubeconfig-file=/etc/k --kube-api-url=https://192.0.2.1:6443 \
                --net-config-path=/x --set-node-network-unavailable=false";
    let kube = options(line, &[]).kube(|name| (name == "POD_NAME").then(|| "p".to_owned()));
    assert_eq!(kube.kubeconfig.as_deref(), Some(std::path::Path::new("/etc/k")));
    assert_eq!(kube.api_url.as_deref(), Some("https://192.0.2.1:6443"));
    assert_eq!((kube.pod, kube.set_condition), (None, false), "half a pod is none");
    for flag in ["--net-config-path=/x", "--kubeconfig-file=/x", "--kube-api-url=https://x"] {
        let (_, warnings) = read(flag, &[]).expect("valid");
        let name = flag.split('=').next().unwrap_or(flag);
        assert_eq!(warnings, [format!("{name} has no effect without --kube-subnet-mgr")]);
    }
}

#[test]
fn the_password_is_not_logged() {
    let text = format!("{:?}", options("--etcd-username=u --etcd-password=secret", &[]));
    assert!(!text.contains("secret") && text.contains("(hidden)"), "{text}");
}
