//! What the kernel's reasons mean, what usually causes them, and the command that mends it. A table of data; the names
//! are those of include/net/dropreason-core.h without `SKB_DROP_REASON_`.

/// How grave a reason is; the order is that of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// A packet somebody waits for.
    Loss,
    /// Nothing is known of it.
    Unknown,
    /// The ordinary end of a packet: duplicates, the end of connections, frames for others.
    NoLoss,
}

/// One reason.
#[derive(Clone, Copy, Debug)]
pub struct Reason {
    /// Its name in the kernel.
    pub name: &'static str,
    /// How grave.
    pub class: Class,
    /// What happened, and what usually causes it.
    pub says: &'static str,
    /// The command that mends it or shows more. `{dev}`, `{from}`, `{to}`, `{bytes}` are replaced.
    pub mend: &'static str,
}

const fn loss(name: &'static str, says: &'static str, mend: &'static str) -> Reason {
    Reason { name, class: Class::Loss, says, mend }
}

const fn usual(name: &'static str, says: &'static str) -> Reason {
    Reason { name, class: Class::NoLoss, says, mend: "" }
}

/// All that we know something about.
pub const REASONS: &[Reason] = &[
    loss(
        "NETFILTER_DROP",
        "a packet filter dropped it: a rule or the policy of a chain (firewalld, Docker, ufw, a network policy)",
        "nft list ruleset",
    ),
    loss(
        "IP_RPFILTER",
        "the route back to {from} does not lead through {dev} (reverse-path filter): usual on hosts with two interfaces, \
         or where the answer takes the tunnel",
        "sysctl -w net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.{dev}.rp_filter=2",
    ),
    loss(
        "NEIGH_FAILED",
        "nobody answers for the next hop's address on {dev}: the host or pod is off, the peer is not programmed, or \
         ARP is filtered",
        "ip neigh show dev {dev}",
    ),
    loss(
        "NEIGH_QUEUEFULL",
        "too many packets wait until the next hop's address is known on {dev}: it does not answer, or late",
        "ip neigh show dev {dev}",
    ),
    loss(
        "NEIGH_CREATEFAIL",
        "the neighbour table is full",
        "sysctl -w net.ipv4.neigh.default.gc_thresh3=8192 net.ipv6.neigh.default.gc_thresh3=8192",
    ),
    loss(
        "NEIGH_DEAD",
        "the next hop's entry was deleted while packets waited for it",
        "ip neigh show dev {dev}",
    ),
    loss("NEIGH_HH_FILLFAIL", "no link-layer header could be made for {dev}", "ip neigh show dev {dev}"),
    loss(
        "NO_SOCKET",
        "nothing listens on that port at {to}: the server is down, or listens on another address",
        "ss -lntu",
    ),
    loss(
        "TCP_CSUM",
        "the TCP checksum is wrong: broken checksum offload of a NIC, a driver or the tunnel, seldom the cable; on the node that sends",
        "ethtool -K flannel.1 tx-checksum-ip-generic off",
    ),
    loss(
        "UDP_CSUM",
        "the UDP checksum is wrong: broken checksum offload of a NIC, a driver or the tunnel, seldom the cable; on the node that sends",
        "ethtool -K flannel.1 tx-checksum-ip-generic off",
    ),
    loss("ICMP_CSUM", "the ICMP checksum is wrong: bytes were changed on the way", "ethtool -S {dev}"),
    loss(
        "SKB_CSUM",
        "the checksum could not be made or checked: broken checksum offload",
        "ethtool -K {dev} tx-checksum-ip-generic off",
    ),
    loss(
        "IP_CSUM",
        "the checksum of the IP header is wrong: bytes were changed on the way",
        "ethtool -S {dev}",
    ),
    loss(
        "IP_INHDR",
        "the IP header is broken, or its lifetime (TTL) has ended: a routing loop",
        "ip route get {to}",
    ),
    loss(
        "PKT_TOO_BIG",
        "{bytes} bytes do not fit the next device and may not be cut: the sender's MTU is too large, or it never hears that \
         (ICMP \"fragmentation needed\" is filtered); the pods' MTU must be that of subnet.env",
        "ip -o link show",
    ),
    loss(
        "IP_INNOROUTES",
        "there is no route for it: the peer's subnet is not programmed, or an address is no longer there",
        "ip route get {to} from {from} iif {dev}",
    ),
    loss("IP_OUTNOROUTES", "there is no route to {to}", "ip route get {to}"),
    loss(
        "IP_INADDRERRORS",
        "the route to {to} is unreachable, or forwarding is off",
        "sysctl -w net.ipv4.ip_forward=1",
    ),
    loss("IP_INVALID_DEST", "{to} is no address packets may be sent to from {dev}", "ip route get {to}"),
    loss("IP_INVALID_SOURCE", "{from} is no address a packet may come from", "ip addr show dev {dev}"),
    loss(
        "IP_LOCAL_SOURCE",
        "it came in with an address of this host as its source: two hosts have the same address, or a loop",
        "ip -4 addr | grep {from}",
    ),
    loss(
        "IP_LOCALNET",
        "a loopback address came in through {dev}",
        "sysctl -w net.ipv4.conf.{dev}.route_localnet=1",
    ),
    loss("IP_NOPROTO", "nothing here speaks that protocol", "ss -ln"),
    loss("IPV6DISABLED", "IPv6 is switched off on {dev}", "sysctl -w net.ipv6.conf.{dev}.disable_ipv6=0"),
    loss(
        "XFRM_POLICY",
        "an IPsec policy forbids it in the clear, or there is no key for it",
        "ip xfrm policy; ip xfrm state",
    ),
    loss("SOCKET_RCVBUFF", "the program that should read it is too slow: its buffer is full", "ss -unpm"),
    loss("SOCKET_BACKLOG", "the program that should read it is too slow: its backlog is full", "ss -tnpm"),
    loss("SOCKET_FILTER", "a filter the program set on its socket dropped it", "ss -0pb"),
    loss("TCP_LISTEN_OVERFLOW", "the server accepts connections too slowly: its queue is full", "ss -lnt"),
    loss(
        "PROTO_MEM",
        "the kernel's memory for sockets is used up",
        "sysctl net.ipv4.udp_mem net.ipv4.tcp_mem",
    ),
    loss(
        "QDISC_DROP",
        "the queue of {dev} dropped it: more is sent than the device or its limit lets out",
        "tc -s qdisc show dev {dev}",
    ),
    loss("QDISC_OVERLIMIT", "the queue of {dev} is full", "tc -s qdisc show dev {dev}"),
    loss("QDISC_CONGESTED", "the queue of {dev} drops because it is congested", "tc -s qdisc show dev {dev}"),
    loss(
        "CPU_BACKLOG",
        "one processor gets more packets than it can handle",
        "sysctl -w net.core.netdev_max_backlog=5000",
    ),
    loss(
        "FULL_RING",
        "the ring of {dev} is full: the process behind it (a tunnel in user space) is too slow or hangs",
        "ip -s link show dev {dev}",
    ),
    loss("NOMEM", "the kernel had no memory for it", "free -m"),
    loss(
        "TC_INGRESS",
        "a tc filter or eBPF program on {dev} dropped it as it came in",
        "tc filter show dev {dev} ingress; bpftool net",
    ),
    loss(
        "TC_EGRESS",
        "a tc filter or eBPF program on {dev} dropped it as it went out",
        "tc filter show dev {dev} egress; bpftool net",
    ),
    loss(
        "BPF_CGROUP_EGRESS",
        "an eBPF program of the sender's control group dropped it",
        "bpftool cgroup tree",
    ),
    loss("XDP", "an XDP program on {dev} dropped it", "ip link show dev {dev}"),
    loss(
        "SECURITY_HOOK",
        "a security module (SELinux, an eBPF LSM) forbids it",
        "ausearch -m avc -ts recent",
    ),
    loss("DEV_READY", "{dev} is down or has no carrier", "ip link set {dev} up"),
    loss("DEV_HDR", "it is too short for {dev}'s header", "ip -s link show dev {dev}"),
    loss("HDR_TRUNC", "its headers are cut off", "ip -s link show dev {dev}"),
    loss("PKT_TOO_SMALL", "it is shorter than its headers say", "ip -s link show dev {dev}"),
    loss(
        "VXLAN_INVALID_HDR",
        "its VXLAN header has flags this device does not know: the peer's tunnel uses extensions (GBP)",
        "ip -d link show dev {dev}",
    ),
    loss(
        "VXLAN_VNI_NOT_FOUND",
        "no VXLAN device has its network identifier: the peer runs with another VNI",
        "ip -d link show type vxlan",
    ),
    loss(
        "VXLAN_ENTRY_EXISTS",
        "the peer's hardware address is fixed to another host",
        "bridge fdb show dev {dev}",
    ),
    loss(
        "NO_TX_TARGET",
        "the tunnel {dev} has no entry for the hardware address: the peer is not programmed",
        "bridge fdb show dev {dev}; loden status --why",
    ),
    loss(
        "MAC_INVALID_SOURCE",
        "its hardware source address is none a host may have",
        "bridge fdb show dev {dev}",
    ),
    loss(
        "LOCAL_MAC",
        "it came back with this host's own hardware address: a loop, or two hosts with one address",
        "ip link show dev {dev}",
    ),
    loss(
        "IP_TUNNEL_ECN",
        "the congestion bits of the outer and the inner header contradict each other",
        "sysctl net.ipv4.tcp_ecn",
    ),
    loss("TUNNEL_TXINFO", "the tunnel was not told where to send it", "ip -d link show dev {dev}"),
    loss(
        "BRIDGE_INGRESS_STP_STATE",
        "the bridge port {dev} is not forwarding (spanning tree)",
        "bridge link show dev {dev}",
    ),
    loss(
        "FRAG_REASM_TIMEOUT",
        "a fragment of it never came: fragments are filtered, or the path loses packets",
        "nstat -az | grep Reasm",
    ),
    loss("RECURSION_LIMIT", "tunnels lead into each other", "ip route get {to}"),
    loss("SKB_GSO_SEG", "a train of packets could not be cut for {dev}", "ethtool -K {dev} gso off"),
    loss(
        "TCP_INVALID_SEQUENCE",
        "its TCP numbers fit no window: the connection was taken over, or changed on the way",
        "conntrack -L -d {to}",
    ),
    usual("OTHERHOST", "a frame for another host"),
    usual("UNICAST_IN_L2_MULTICAST", "a frame to all with the address of one"),
    usual("UNHANDLED_PROTO", "nobody here wants frames of that kind"),
    usual("SOCKET_CLOSE", "the socket was closed with packets in it"),
    usual("SOCKET_DESTROYED", "the socket was closed with packets in it"),
    usual("QUEUE_PURGE", "a queue was emptied because its device or socket went away"),
    usual("DUP_FRAG", "the same fragment twice"),
    usual("TCP_CLOSE", "the connection is closed"),
    usual("TCP_RESET", "it resets a connection"),
    usual("TCP_FLAGS", "flags that open no connection"),
    usual("TCP_OLD_DATA", "data that was here already"),
    usual("TCP_OLD_ACK", "an acknowledgement that was here already"),
    usual("TCP_OLD_SEQUENCE", "data that was here already"),
    usual("TCP_TOO_OLD_ACK", "an acknowledgement that was here already"),
    usual("TCP_OFOMERGE", "data that was here already"),
    usual("TCP_ZEROWINDOW", "the reader has no room, which the sender knows"),
    usual("TCP_OVERWINDOW", "more than the reader asked for"),
    usual("TCP_ABORT_ON_DATA", "data for a socket that was closed"),
    usual("TCP_FASTOPEN", "data that came with a handshake"),
    usual("TCP_RFC7323_PAWS", "a packet from the past of its connection"),
    usual("TCP_RFC7323_PAWS_ACK", "a packet from the past of its connection"),
    usual("IPV6_NDISC_NS_OTHERHOST", "a question for another host"),
    usual("SKB_CONSUMED", "it was used"),
];

/// What is known of a reason.
pub fn find(name: &str) -> Option<&'static Reason> {
    REASONS.iter().find(|reason| reason.name == name)
}

/// How grave a reason is.
pub fn class(name: &str) -> Class {
    find(name).map_or(Class::Unknown, |reason| reason.class)
}
