use super::{FLAGS, Options, Outcome, parse, unsupported};

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
fn every_flag_is_there_and_what_is_not_built_is_refused() {
    assert_eq!(FLAGS.len(), 31);
    for flag in FLAGS.iter().filter(|f| !f.default.is_empty()) {
        assert!(model::goflag::value(flag.kind, flag.default).is_ok(), "default of {}", flag.name);
    }
    assert_eq!(unsupported(&options("", &[])), [""; 0]);
    for line in [
        "--kube-subnet-mgr",
        "--kube-api-url=https://192.0.2.1:6443",
        "--kube-annotation-prefix=example.org",
        "--kubeconfig-file=/etc/kubeconfig",
    ] {
        let refusals = unsupported(&options(line, &[]));
        assert_eq!(refusals.len(), 1, "{refusals:?}");
        assert!(refusals[0].starts_with(line.split('=').next().unwrap_or(line)), "{refusals:?}");
    }
    let by_variable = options("", &[("FLANNELD_KUBECONFIG_FILE", "/etc/kubeconfig")]);
    assert_eq!(unsupported(&by_variable).len(), 1);
    assert_eq!(unsupported(&options("--kube-annotation-prefix=flannel.alpha.coreos.com", &[])), [""; 0]);
    let (_, warnings) = read("--net-config-path=/x", &[]).expect("valid");
    assert_eq!(warnings, ["--net-config-path has no effect without --kube-subnet-mgr"]);
}

#[test]
fn the_password_is_not_logged() {
    let text = format!("{:?}", options("--etcd-username=u --etcd-password=secret", &[]));
    assert!(!text.contains("secret") && text.contains("(hidden)"), "{text}");
}
