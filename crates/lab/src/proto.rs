//! What is said over the control socket: one JSON line asks, JSON lines answer, the last one is
//! [`Reply::Done`] or [`Reply::Error`]. The same values are what `-o json` prints.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::packet::Frame;

/// Lines kept of each log: no more than these are told.
pub const LOG_LINES: usize = 2000;

/// What can be asked of a lab.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "do")]
pub enum Request {
    /// [`Status`].
    Status,
    /// Descriptors of the namespaces of a host, a pod or the wire, sent with the answer.
    Enter {
        /// Name of the host or pod, or `wire`.
        place: String,
    },
    /// Adds a pod; gives [`Pod`].
    PodAdd {
        /// Host.
        host: String,
        /// Name; the next free one when absent.
        name: Option<String>,
    },
    /// Deletes a pod through CNI; gives the time of the chain in ms.
    PodDel {
        /// Name.
        name: String,
    },
    /// Log lines of a host's agent or of a pod's server.
    Logs {
        /// Name of the host or pod.
        place: String,
    },
    /// Ends an agent, gently or with SIGKILL.
    AgentStop {
        /// Host.
        host: String,
        /// SIGKILL instead of SIGTERM.
        kill: bool,
    },
    /// Starts an agent that is not running and waits until it is ready; gives its time in ms.
    AgentStart {
        /// Host.
        host: String,
    },
    /// Measures between every two pods, and from every host to every pod; gives [`Reach`]es.
    Matrix {
        /// Echoes for each median.
        count: u32,
    },
    /// Measures one pair; gives one [`Reach`].
    Ping {
        /// Host, pod or `wire`.
        from: String,
        /// Pod, host or address.
        to: String,
        /// Echoes for the median.
        count: u32,
        /// How long the first answer may take, in ms.
        patience_ms: u64,
    },
    /// Follows one packet; gives [`Walk`].
    Walk {
        /// Pod that sends.
        from: String,
        /// Pod that answers.
        to: String,
        /// Address family: IPv6 if true.
        v6: bool,
    },
    /// Fetches a pod's page from another pod; gives [`Fetch`].
    Fetch {
        /// Pod or host that asks.
        from: String,
        /// Pod that serves.
        to: String,
        /// Address family: IPv6 if true.
        v6: bool,
    },
    /// Ends the lab.
    Down,
}

/// One line of an answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// Something was finished on the way.
    Step(Step),
    /// The answer.
    Done(serde_json::Value),
    /// Why there is none.
    Error {
        /// One sentence.
        what: String,
        /// Last log lines of the program that failed.
        log: Vec<String>,
    },
}

/// A part of bringing the lab up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// What was done, such as "3 hosts on one wire".
    pub what: String,
    /// How long it took.
    pub ms: f64,
}

/// The lab at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Name of the lab.
    pub name: String,
    /// `Backend.Type` of the network configuration.
    pub backend: String,
    /// `flat` or `routed`.
    pub topology: crate::Topology,
    /// Address families.
    pub stack: crate::Stack,
    /// The network configuration as the store has it.
    pub net_conf: serde_json::Value,
    /// Seconds since it was up.
    pub age_s: u64,
    /// Whether it was made without root.
    pub rootless: bool,
    /// Its hosts.
    pub hosts: Vec<Host>,
    /// Its pods.
    pub pods: Vec<Pod>,
}

/// A host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// Number of the wire it is plugged into, from 0.
    pub wire: usize,
    /// Addresses of `eth0`.
    pub underlay: Vec<IpNet>,
    /// Subnets of its lease, as `subnet.env` says; empty before there is one.
    pub subnets: Vec<IpNet>,
    /// MTU of the pods, as `subnet.env` says.
    pub mtu: Option<u32>,
    /// Devices that lead to other hosts: the tunnel's, or `eth0`.
    pub devices: Vec<Device>,
    /// The agent.
    pub agent: Agent,
}

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Its hardware address.
    pub mac: String,
}

/// How an agent is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum Agent {
    /// The lab was made without agents, or nobody started it.
    Absent,
    /// Running.
    Running {
        /// Process id in the lab.
        pid: u32,
        /// It has said that it is ready.
        ready: bool,
        /// How long it took from its start to READY.
        ready_ms: f64,
    },
    /// Ended.
    Exited {
        /// What the kernel says of the end, such as `exit status: 1`.
        status: String,
    },
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// The host it is on.
    pub host: String,
    /// Addresses the CNI chain gave it.
    pub addresses: Vec<IpAddr>,
    /// MTU of its `eth0`.
    pub mtu: u32,
    /// The whole ADD chain, `loopback` not included.
    pub add_ms: f64,
    /// Each plugin's part, in order.
    pub plugins: Vec<Step>,
    /// Process id in the lab.
    pub pid: u32,
    /// The chain's result.
    pub result: serde_json::Value,
}

impl Pod {
    /// The pod's address of one family.
    pub fn address(&self, v6: bool) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|a| a.is_ipv6() == v6)
    }
}

/// How one place reaches another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reach {
    /// Host or pod that sent.
    pub from: String,
    /// Host or pod that was to answer.
    pub to: String,
    /// Its address.
    pub address: IpAddr,
    /// Median round trip of a small echo in µs; none if any went unanswered.
    pub small_us: Option<f64>,
    /// Median round trip of an echo that fills the MTU.
    pub full_us: Option<f64>,
    /// Bytes of that packet, IP header included.
    pub full_bytes: u32,
    /// Why there was no answer.
    pub why: Option<String>,
}

impl Reach {
    /// Both sizes were answered.
    pub fn ok(&self) -> bool {
        self.small_us.is_some() && self.full_us.is_some()
    }
}

/// The way of one echo request and of its answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Walk {
    /// Pod that sent.
    pub from: String,
    /// Pod that answered.
    pub to: String,
    /// Sender's address.
    pub source: IpAddr,
    /// Receiver's address.
    pub destination: IpAddr,
    /// Where the request was seen, in order.
    pub there: Vec<Hop>,
    /// Where the answer was seen, in order.
    pub back: Vec<Hop>,
}

/// One sight of a packet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hop {
    /// Pod, host or `wire`.
    pub place: String,
    /// Device.
    pub device: String,
    /// The place was sending it.
    pub outgoing: bool,
    /// Time since the first sight in µs.
    pub at_us: f64,
    /// What was seen.
    pub frame: Frame,
}

/// One HTTP request between pods.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fetch {
    /// Who asked.
    pub from: String,
    /// Address it was to be seen as.
    pub source: Option<IpAddr>,
    /// Who served.
    pub to: String,
    /// The URL.
    pub url: String,
    /// The answer's first line, such as `HTTP/1.0 200 OK`.
    pub status: String,
    /// The answer's body.
    pub body: String,
    /// The server's log line of this request.
    pub server_log: String,
    /// Whole request in µs.
    pub us: f64,
}

impl Fetch {
    /// The page came and the server saw the pod's own address.
    pub fn unmasked(&self) -> bool {
        self.source.is_some_and(|ip| self.body.contains(&format!("you are {ip}\n")))
    }
}
