//! Nodes to fill a cluster with: small ones, and such as clusters really have.

use serde_json::{Value, json};

/// A node with a name and the pod networks given, as `10.244.1.0/24`; nothing else.
pub fn node(name: &str, pod_cidrs: &[&str]) -> Value {
    let mut spec = json!({});
    if let Some(first) = pod_cidrs.first() {
        spec = json!({"podCIDR": first, "podCIDRs": pod_cidrs});
    }
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": spec})
}

/// The same with what kubelets and controllers write beside it: about 15 kB, most of it image names and
/// managed fields.
pub fn full_node(name: &str, pod_cidrs: &[&str], internal_ip: &str) -> Value {
    let mut node = node(name, pod_cidrs);
    node["metadata"]["labels"] = json!({
        "beta.kubernetes.io/arch": "amd64", "beta.kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64", "kubernetes.io/hostname": name, "kubernetes.io/os": "linux",
        "node.kubernetes.io/instance-type": "m5.xlarge", "topology.kubernetes.io/region": "eu-west-1",
        "topology.kubernetes.io/zone": "eu-west-1b",
    });
    node["metadata"]["annotations"] = json!({
        "node.alpha.kubernetes.io/ttl": "300",
        "volumes.kubernetes.io/controller-managed-attach-detach": "true",
    });
    node["metadata"]["managedFields"] = managed_fields();
    node["spec"]["providerID"] = format!("aws:///eu-west-1b/i-{name}").into();
    node["status"] = json!({
        "addresses": [
            {"type": "InternalIP", "address": internal_ip},
            {"type": "Hostname", "address": name},
        ],
        "capacity": resources("4", "16073416Ki"),
        "allocatable": resources("3920m", "15056584Ki"),
        "conditions": conditions(),
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
        "images": images(),
        "nodeInfo": {
            "architecture": "amd64", "bootID": "0c2b3f8e-8f14-4b5c-9d21-5a8a1be7d0a1",
            "containerRuntimeVersion": "containerd://2.1.4", "kernelVersion": "6.12.48", "kubeProxyVersion": "",
            "kubeletVersion": "v1.36.2", "machineID": "4f3f7a3c0d8d4f9b9ac1f2ce9e4d7a55",
            "operatingSystem": "linux", "osImage": "Debian GNU/Linux 13 (trixie)",
            "systemUUID": "4f3f7a3c-0d8d-4f9b-9ac1-f2ce9e4d7a55",
        },
        "runtimeHandlers": [{"features": {"recursiveReadOnlyMounts": true, "userNamespaces": true}, "name": "runc"}],
    });
    node
}

fn resources(cpu: &str, memory: &str) -> Value {
    json!({
        "cpu": cpu, "ephemeral-storage": "83873772Ki", "hugepages-1Gi": "0", "hugepages-2Mi": "0",
        "memory": memory, "pods": "110",
    })
}

fn conditions() -> Value {
    let rows = [
        ("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
    ];
    let row = |(name, status, reason, message): &(&str, &str, &str, &str)| {
        json!({
            "type": name, "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": "2026-11-20T10:00:00Z", "lastTransitionTime": "2026-11-01T08:12:31Z",
        })
    };
    rows.iter().map(row).collect()
}

/// Fifty images with two names each, as a kubelet reports at most.
fn images() -> Value {
    let image = |number: u64| {
        let digest = format!("{:016x}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15)).repeat(4);
        let name = format!("registry.eu-west-1.example.com/platform/component-{number:02}");
        json!({
            "names": [format!("{name}@sha256:{digest}"), format!("{name}:v1.{number}.0")],
            "sizeBytes": 10_000_000 + number * 1_234_567,
        })
    };
    (1..=50).map(image).collect()
}

fn managed_fields() -> Value {
    let empty = || json!({});
    let condition = |name: &str| {
        (
            format!("k:{{\"type\":\"{name}\"}}"),
            json!({"f:lastHeartbeatTime": {}, "f:lastTransitionTime": {}, "f:message": {}, "f:reason": {}, "f:status": {}}),
        )
    };
    let conditions: serde_json::Map<String, Value> =
        ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"]
            .iter()
            .map(|name| condition(name))
            .collect();
    json!([
        {
            "apiVersion": "v1", "fieldsType": "FieldsV1", "manager": "kube-controller-manager",
            "operation": "Update", "time": "2026-11-01T08:12:40Z",
            "fieldsV1": {
                "f:metadata": {"f:annotations": {"f:node.alpha.kubernetes.io/ttl": empty()}},
                "f:spec": {"f:podCIDR": empty(), "f:podCIDRs": {".": empty(), "v:\"10.244.0.0/24\"": empty()}},
            },
        },
        {
            "apiVersion": "v1", "fieldsType": "FieldsV1", "manager": "kubelet", "operation": "Update",
            "subresource": "status", "time": "2026-11-20T10:00:00Z",
            "fieldsV1": {"f:status": {
                "f:allocatable": {"f:memory": empty()}, "f:capacity": {"f:memory": empty()},
                "f:conditions": conditions, "f:images": empty(),
                "f:nodeInfo": {"f:bootID": empty(), "f:kernelVersion": empty(), "f:kubeletVersion": empty()},
            }},
        },
    ])
}
