//! Many pods at once: no lock across pods, no duplicate, no leak.

use std::collections::BTreeSet;

use crate::chain::{add, conflist, each};
use crate::harness::{Host, pod};
use model::gojson::Json;

#[test]
fn sixty_four_pods_at_once() {
    const PODS: usize = 64;
    let host = Host::new();
    let mut chain = conflist(&host, "0.4.0");
    chain[0].1 = chain[0].1.replace("\"hairpinMode\"", "\"ipMasq\": true, \"hairpinMode\"");
    for round in 0..2 {
        let pods: Vec<_> = (0..PODS).map(|n| pod(&format!("c{n}"))).collect();
        let results: Vec<Json> = std::thread::scope(|scope| {
            let threads: Vec<_> = pods
                .iter()
                .enumerate()
                .map(|(n, (_, pod))| {
                    let [flannel, portmap] = chain.clone();
                    let portmap = (portmap.0, portmap.1.replace("8080", &format!("{}", 8000 + n)));
                    let host = &host;
                    scope.spawn(move || add(host, &[flannel, portmap], pod))
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        let text = |r: &Json| r.get("ips").map(Json::to_compact).unwrap_or_default();
        let addresses: BTreeSet<String> = results.iter().map(text).collect();
        assert_eq!(addresses.len(), PODS, "round {round}");
        assert_eq!(host.links().len(), PODS + 1);
        let rules = host.rules();
        assert_eq!(rules.matches("dnat to").count(), PODS, "{rules}");
        assert_eq!(rules.matches("goto masq_checks").count(), 1, "{rules}");
        assert_eq!(rules.matches("jump hostports_all").count(), 2, "{rules}");
        std::thread::scope(|scope| {
            for (_, pod) in &pods {
                let (host, chain) = (&host, &chain);
                scope.spawn(move || each(host, chain, pod, "DEL", None));
            }
        });
        assert_eq!(host.links(), ["cni0"]);
        let rules = host.rules();
        assert!(!rules.contains("dnat to") && !rules.contains("10.244.1."), "{rules}");
        assert_eq!(host.files("networks"), ["cbr0/last_reserved_ip.0", "cbr0/lock"]);
        assert_eq!(host.files("flannel"), [""; 0]);
        assert_eq!(host.files("state/attachments"), [""; 0]);
    }
}
