//! The kinds of object served: where they live in the paths, and what of them is merged how.

/// One kind of object.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// Version inside the group.
    pub version: &'static str,
    /// Name in paths and in access rules.
    pub plural: &'static str,
    /// Name in objects.
    pub name: &'static str,
    /// One word on a command line.
    pub short: &'static str,
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Whether there is a `status` subresource.
    pub status: bool,
    /// Fields, beside the name and namespace, that a field selector may name.
    pub selectable: &'static [&'static str],
}

const fn core(plural: &'static str, name: &'static str, short: &'static str) -> Kind {
    let (version, selectable) = ("v1", &[] as &[&str]);
    Kind { group: "", version, plural, name, short, namespaced: true, status: false, selectable }
}

/// `nodes`.
pub static NODES: Kind = Kind {
    namespaced: false,
    status: true,
    selectable: &["spec.unschedulable"],
    ..core("nodes", "Node", "no")
};
/// `pods`.
pub static PODS: Kind = Kind {
    status: true,
    selectable: &["spec.nodeName", "status.phase", "status.podIP", "spec.hostNetwork"],
    ..core("pods", "Pod", "po")
};
/// `namespaces`.
pub static NAMESPACES: Kind = Kind {
    namespaced: false,
    status: true,
    selectable: &["status.phase"],
    ..core("namespaces", "Namespace", "ns")
};
/// `services`.
pub static SERVICES: Kind =
    Kind { status: true, selectable: &["spec.clusterIP", "spec.type"], ..core("services", "Service", "svc") };
/// `configmaps`.
pub static CONFIGMAPS: Kind = core("configmaps", "ConfigMap", "cm");
/// `events` of the core group.
pub static EVENTS: Kind = Kind {
    selectable: &[
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "reason",
        "type",
    ],
    ..core("events", "Event", "ev")
};
/// `events` of `events.k8s.io`. A real server shows the same objects in both groups; here they are apart.
pub static EVENTS_V1: Kind = Kind {
    group: "events.k8s.io",
    selectable: &["regarding.kind", "regarding.namespace", "regarding.name", "reason", "type"],
    ..core("events", "Event", "ev")
};
/// `endpointslices`.
pub static ENDPOINTSLICES: Kind =
    Kind { group: "discovery.k8s.io", ..core("endpointslices", "EndpointSlice", "") };
/// `networkpolicies`.
pub static NETWORKPOLICIES: Kind =
    Kind { group: "networking.k8s.io", ..core("networkpolicies", "NetworkPolicy", "netpol") };
/// `leases`, as kubelets and leader elections use them.
pub static LEASES: Kind = Kind { group: "coordination.k8s.io", ..core("leases", "Lease", "") };

/// Every kind.
pub static KINDS: [&Kind; 10] = [
    &NODES,
    &PODS,
    &NAMESPACES,
    &SERVICES,
    &CONFIGMAPS,
    &EVENTS,
    &EVENTS_V1,
    &ENDPOINTSLICES,
    &NETWORKPOLICIES,
    &LEASES,
];

impl Kind {
    /// The kind of a path.
    pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
        KINDS.into_iter().find(|kind| (kind.group, kind.version, kind.plural) == (group, version, plural))
    }

    /// `v1`, `discovery.k8s.io/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// Path of all objects, or of one namespace's.
    pub fn path(&self, namespace: Option<&str>) -> String {
        let root = if self.group.is_empty() { "api" } else { "apis" };
        match namespace {
            Some(namespace) if self.namespaced => {
                format!("/{root}/{}/namespaces/{namespace}/{}", self.api_version(), self.plural)
            }
            _ => format!("/{root}/{}/{}", self.api_version(), self.plural),
        }
    }
}
