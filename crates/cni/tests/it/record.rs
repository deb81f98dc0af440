//! What a record of an attachment says of the pod (decision 0208).

use model::cni::Record;

use crate::harness::{Answer, Host, kernel_has, pod};
use crate::witness::Case;

const IPAM: &str = r#""type": "host-local", "dataDir": "DIR", "subnet": "10.9.1.0/24""#;

fn add(host: &Host, case: &Case<'_>, id: &str) -> Record {
    let (_netns, pod) = pod(id);
    let bin = host.bin().display().to_string();
    let mut command = host.prepare(&[&bin], case.plugin, "ADD", &pod);
    command.env("CNI_ARGS", case.args);
    Answer::of(host.run(&mut command, &case.conf(host))).expect(&format!("{} {:?}", case.plugin, case.args));
    let files = host.files("state/attachments");
    let texts = files.iter().map(|file| std::fs::read_to_string(host.path("state/attachments") + "/" + file));
    let records: Vec<Record> = texts.map(|text| Record::parse(&text.unwrap()).unwrap()).collect();
    let record = records.into_iter().find(|record| record.container_id == id).unwrap();
    // A record without the name does as well, and so does another name: DEL goes by the container.
    let mut command = host.prepare(&[&bin], case.plugin, "DEL", &pod);
    command.env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=other;K8S_POD_NAME=other");
    assert!(Answer::of(host.run(&mut command, &case.conf(host))).ok);
    assert_eq!(host.files("state/attachments"), [""; 0]);
    record
}

#[test]
fn a_record_keeps_what_the_runtime_calls_the_pod() {
    let host = Host::new();
    host.ip("link add card type veth peer name far");
    host.ip("link set card up");
    for (plugin, members) in [
        ("bridge", r#""isGateway": true"#),
        ("ptp", ""),
        ("dummy", ""),
        ("macvlan", r#""master": "card""#),
        ("ipvlan", r#""master": "card""#),
    ] {
        let kind = if plugin == "ptp" { "veth" } else { plugin };
        if !kernel_has("a_record_keeps_what_the_runtime_calls_the_pod", kind) {
            continue;
        }
        let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=7";
        let case = Case { plugin, version: "1.0.0", members, ipam: IPAM, args };
        let record = add(&host, &case, "c1");
        assert_eq!(record.pod.as_ref().map(|pod| pod.to_string()).as_deref(), Some("shop/web-0"), "{plugin}");
        let known = (record.addresses.len(), record.is_complete, record.made_interface());
        assert_eq!(known, (1, true, true), "{plugin}");
    }
    // What is no name costs nobody an ADD.
    for args in [
        "",
        "IgnoreUnknown=1;K8S_POD_NAME=web-0",
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=a/b;K8S_POD_NAME=c",
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=a;K8S_POD_NAME=\u{1b}[2J\u{7}",
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=a;K8S_POD_NAME=<script>alert(1)</script>",
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=..;K8S_POD_NAME=a\nb",
        &format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=a;K8S_POD_NAME={}", "x".repeat(100_000)),
    ] {
        let case = Case { plugin: "bridge", version: "1.0.0", members: "", ipam: IPAM, args };
        assert_eq!(add(&host, &case, "c2").pod, None, "{args:?}");
    }
}
