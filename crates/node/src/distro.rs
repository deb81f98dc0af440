//! `flanneld-start`: how the packages of Fedora, CentOS and their kin start flanneld, with the variables of
//! `/etc/sysconfig/flanneld`, which are not flanneld's own `FLANNELD_*`.

/// Variables in the order in which they count, and the flag they stand for.
const VARIABLES: [(&[&str], &str); 2] = [
    (&["FLANNEL_ETCD_ENDPOINTS", "FLANNEL_ETCD"], "etcd-endpoints"),
    (&["FLANNEL_ETCD_PREFIX", "FLANNEL_ETCD_KEY"], "etcd-prefix"),
];

/// The agent's command line: flags from the variables that are set, then the words given.
pub fn words(env: impl Fn(&str) -> Option<String>, given: Vec<String>) -> Vec<String> {
    let set = |names: &[&str]| names.iter().find_map(|name| env(name).filter(|value| !value.is_empty()));
    let flags = VARIABLES.iter().filter_map(|(names, flag)| Some(format!("--{flag}={}", set(names)?)));
    flags.chain(given).collect()
}

#[cfg(test)]
mod tests {
    use super::words;

    /// What is set, the words given, the words that follow.
    type Case = (&'static [(&'static str, &'static str)], &'static [&'static str], &'static [&'static str]);

    #[test]
    fn variables_become_flags_before_the_words_given() {
        let cases: &[Case] = &[
            (&[], &["--iface=eth0"], &["--iface=eth0"]),
            (
                &[
                    ("FLANNEL_ETCD_ENDPOINTS", "http://192.0.2.1:2379"),
                    ("FLANNEL_ETCD_PREFIX", "/kube-centos/network"),
                ],
                &["-v=2"],
                &["--etcd-endpoints=http://192.0.2.1:2379", "--etcd-prefix=/kube-centos/network", "-v=2"],
            ),
            (
                &[("FLANNEL_ETCD", "http://a:2379"), ("FLANNEL_ETCD_KEY", "/k"), ("FLANNEL_ETCD_PREFIX", "")],
                &[],
                &["--etcd-endpoints=http://a:2379", "--etcd-prefix=/k"],
            ),
        ];
        for (variables, given, expected) in cases {
            let env = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
            assert_eq!(words(env, given.iter().map(|w| (*w).to_owned()).collect()), *expected);
        }
    }
}
