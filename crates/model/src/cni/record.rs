//! What a plugin of ours writes down of an attachment: for itself (P-6), and for those who show pods (decision 0208).

use std::fmt;
use std::str::FromStr;

use ipnet::IpNet;

use super::is_identifier;
use super::members::Members;
use crate::gojson::Json;

/// Directory of our own records, unless `LODEN_CNI_STATE_DIR` names another.
pub const STATE_DIR: &str = "/var/lib/cni/loden";

/// Directory in it: a directory for each network, with a file for each attachment and plugin.
pub const ATTACHMENTS: &str = "attachments";

/// Most bytes of a namespace or a name: a DNS name (Kubernetes' limit).
const LONGEST: usize = 253;

/// What a plugin knows of an attachment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// The plugin that wrote it.
    pub plugin: String,
    /// Container id.
    pub container_id: String,
    /// Interface in the pod.
    pub ifname: String,
    /// Path of the namespace as passed to ADD.
    pub netns: String,
    /// Interface on the host; empty for none.
    pub host_interface: String,
    /// Addresses of the pod.
    pub addresses: Vec<IpNet>,
    /// How the addresses are masqueraded; `None` if it is not known.
    pub masquerade: Option<Rules>,
    /// What the runtime calls the pod, if it told.
    pub pod: Option<PodName>,
    /// The ADD came to its end.
    pub is_complete: bool,
}

/// Where the rules of an attachment are, so that DEL need not look for them (decision 0187).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rules {
    /// There are none.
    None,
    /// In nftables, by their numbers in the table.
    Nft(Vec<u64>),
}

/// Namespace and name of a pod, safe to show.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodName {
    namespace: String,
    name: String,
}

impl PodName {
    /// `None` for what cannot be one: runtimes hand on what others chose.
    pub fn new(namespace: &str, name: &str) -> Option<PodName> {
        let is_fine = |text: &str| text.len() <= LONGEST && is_identifier(text);
        let fine = is_fine(namespace) && is_fine(name);
        fine.then(|| PodName { namespace: namespace.to_owned(), name: name.to_owned() })
    }

    /// Reads `CNI_ARGS`. Of equal keys the last wins; whatever else is there is passed over.
    pub fn from_args(args: &str) -> Option<PodName> {
        let value = |wanted: &str| {
            let mut pairs = args.split(';').filter_map(|pair| pair.split_once('='));
            pairs.rfind(|(key, _)| *key == wanted).map(|(_, value)| value)
        };
        PodName::new(value("K8S_POD_NAMESPACE")?, value("K8S_POD_NAME")?)
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The name in it.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl FromStr for PodName {
    type Err = ();

    fn from_str(text: &str) -> Result<PodName, ()> {
        text.split_once('/').and_then(|(namespace, name)| PodName::new(namespace, name)).ok_or(())
    }
}

impl Record {
    /// The file's content: one line. It is written over a former one in place, which may have been longer, and a writer
    /// may be killed before it cuts the rest off.
    pub fn text(&self) -> String {
        self.to_json().to_compact() + "\n"
    }

    fn to_json(&self) -> Json {
        let addresses: Vec<String> = self.addresses.iter().map(IpNet::to_string).collect();
        let masquerade = match &self.masquerade {
            None => Json::Null,
            Some(Rules::None) => Json::array(Vec::<Json>::new()),
            Some(Rules::Nft(handles)) => Json::array(handles.iter().map(u64::to_string)),
        };
        let mut object = Json::object([
            ("plugin", Json::from(self.plugin.as_str())),
            ("containerID", self.container_id.as_str().into()),
            ("ifname", self.ifname.as_str().into()),
            ("netns", self.netns.as_str().into()),
            ("hostInterface", self.host_interface.as_str().into()),
            ("addresses", Json::array(addresses)),
            ("masquerade", masquerade),
            ("complete", self.is_complete.into()),
        ]);
        if let Some(pod) = &self.pod {
            object.set("podNamespace", pod.namespace());
            object.set("podName", pod.name());
        }
        object
    }

    /// Reads a file of this version or an earlier one; `None` if it is none, or was cut. What is behind the first line
    /// is of a former record.
    pub fn parse(text: &str) -> Option<Record> {
        let value: Json = text.lines().next()?.parse().ok()?;
        let m = Members::of(&value, "Record").ok()?;
        let addresses = m.strings("addresses").ok()?;
        let masquerade = m.get("masquerade").and_then(|_| {
            let numbers = m.strings("masquerade").ok()?;
            let handles: Vec<u64> = numbers.iter().map(|n| n.parse().ok()).collect::<Option<_>>()?;
            Some(if handles.is_empty() { Rules::None } else { Rules::Nft(handles) })
        });
        let pod = (m.string("podNamespace").ok())
            .zip(m.string("podName").ok())
            .and_then(|(namespace, name)| PodName::new(&namespace, &name));
        Some(Record {
            masquerade,
            pod,
            plugin: m.string("plugin").ok()?,
            container_id: m.string("containerID").ok()?,
            ifname: m.string("ifname").ok()?,
            netns: m.string("netns").ok()?,
            host_interface: m.string("hostInterface").ok()?,
            addresses: addresses.iter().map(|a| a.parse().ok()).collect::<Option<_>>()?,
            is_complete: m.boolean("complete").ok()?.unwrap_or(false),
        })
    }

    /// The plugin made the interface; others in a chain change what stands already.
    pub fn made_interface(&self) -> bool {
        !matches!(self.plugin.as_str(), "bandwidth" | "firewall" | "portmap" | "tuning")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

    use super::*;

    #[test]
    fn names_are_read_and_hostile_ones_dropped() {
        let long = format!("K8S_POD_NAMESPACE=a;K8S_POD_NAME={}", "x".repeat(254));
        for (args, want) in [
            ("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=1", Some("shop/web-0")),
            ("K8S_POD_NAME=a;K8S_POD_NAMESPACE=b;K8S_POD_NAME=c", Some("b/c")),
            ("K8S_POD_NAMESPACE=a;K8S_POD_NAME=10.0.0.1", Some("a/10.0.0.1")),
            ("nonsense;;K8S_POD_NAMESPACE=a;K8S_POD_NAME=B_c;=", Some("a/B_c")),
            ("", None),
            ("K8S_POD_NAME=web-0", None),
            ("K8S_POD_NAMESPACE=;K8S_POD_NAME=web-0", None),
            ("K8S_POD_NAMESPACE=a;K8S_POD_NAME=b=c", None),
            ("K8S_POD_NAMESPACE=a;K8S_POD_NAME=b/c", None),
            ("K8S_POD_NAMESPACE=a;K8S_POD_NAME=../b", None),
            ("K8S_POD_NAMESPACE=a;K8S_POD_NAME=b\u{1b}[2J", None),
            ("K8S_POD_NAMESPACE=a;K8S_POD_NAME=b\nc", None),
            ("K8S_POD_NAMESPACE=a;K8S_POD_NAME=b\u{202e}c", None),
            ("K8S_POD_NAMESPACE=a;K8S_POD_NAME=<script>", None),
            ("K8S_POD_NAMESPACE=a;K8S_POD_NAME=\u{fffd}", None),
            ("k8s_pod_namespace=a;k8s_pod_name=b", None),
            (&long, None),
        ] {
            let got = PodName::from_args(args).map(|pod| pod.to_string());
            assert_eq!(got.as_deref(), want, "{args:?}");
        }
    }

    #[test]
    fn records_come_back_and_old_ones_are_read() {
        let record = Record {
            plugin: "bridge".to_owned(),
            container_id: "c1".to_owned(),
            ifname: "eth0".to_owned(),
            netns: "/run/netns/a".to_owned(),
            host_interface: "veth1".to_owned(),
            addresses: vec!["10.1.0.2/24".parse().unwrap()],
            masquerade: Some(Rules::Nft(vec![7])),
            pod: PodName::new("shop", "web-0"),
            is_complete: true,
        };
        let unnamed = Record { pod: None, ..record.clone() };
        for record in [&record, &unnamed] {
            assert_eq!(Record::parse(&record.to_json().to_compact()).as_ref(), Some(record));
        }
        // What versions before wrote is what a pod without a name gives.
        let old = r#"{"plugin":"bridge","containerID":"c1","ifname":"eth0","netns":"/run/netns/a","hostInterface":"veth1","addresses":["10.1.0.2/24"],"masquerade":["7"],"complete":true}"#;
        assert_eq!(unnamed.to_json().to_compact(), old);
        let with = |more: &str| {
            Record::parse(&old.replace("\"complete\":true", &format!("\"complete\":true,{more}")))
        };
        for (more, want) in [
            (r#""podNamespace":"a","podName":"b""#, Some("a/b")),
            (r#""podNamespace":"a""#, None),
            (r#""podNamespace":"a","podName":7"#, None),
            (r#""podNamespace":"a","podName":"\u001b[2J""#, None),
            (r#""podNamespace":null,"podName":"b""#, None),
        ] {
            let record = with(more).unwrap_or_else(|| panic!("{more}: the record is lost"));
            assert_eq!(record.pod.map(|pod| pod.to_string()).as_deref(), want, "{more}");
        }
        for cut in ["", "{", "[]", &old[..old.len() - 1], "{\"addresses\":[\"x\"]}"] {
            assert_eq!(Record::parse(cut), None, "{cut}");
        }
    }

    /// Written over a longer one, by a process that was killed before it cut the rest off.
    #[test]
    fn what_is_behind_the_line_is_of_a_former_record() {
        let begun = Record { plugin: "tuning".to_owned(), ..Record::default() };
        let done = Record { masquerade: Some(Rules::None), is_complete: true, ..begun.clone() };
        let (former, text) = (begun.text(), done.text());
        assert!(former.len() > text.len() && text.ends_with('\n'));
        let over = text.clone() + &former[text.len()..];
        for text in [&text, &over, &done.to_json().to_compact()] {
            assert_eq!(Record::parse(text).as_ref(), Some(&done), "{text}");
        }
        assert_eq!(Record::parse(""), None);
    }
}
