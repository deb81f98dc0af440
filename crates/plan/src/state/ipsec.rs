//! IPsec: policies of the kernel, and what charon holds beside it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

/// The `reqid` of all policies and associations, flannel's.
pub const REQID: u32 = 11;
/// Priority of the policy that lets a node's own pods through ours, and of the one that holds back what has no
/// policy of a peer. They have nothing else to know them by: 76 is our number.
pub const OWN_PRIORITY: u32 = 76_000;
/// See [`OWN_PRIORITY`]; the greater number is asked last.
pub const GUARD_PRIORITY: u32 = 76_001;

/// Which packets a policy is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// Those that leave, forwarded ones too.
    Out,
    /// Those for the host itself.
    In,
    /// Those to be forwarded.
    Fwd,
}

impl Direction {
    /// All three.
    pub const ALL: [Direction; 3] = [Direction::Out, Direction::In, Direction::Fwd];

    /// The word of `ip xfrm`.
    pub fn word(self) -> &'static str {
        match self {
            Direction::Out => "out",
            Direction::In => "in",
            Direction::Fwd => "fwd",
        }
    }
}

/// What a policy applies to; its identity among policies without mark and interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyKey {
    /// Direction.
    pub dir: Direction,
    /// Source of the packets, masked.
    pub src: IpNet,
    /// Destination, masked.
    pub dst: IpNet,
}

impl PolicyKey {
    /// Whether it is about packets of a subnet to all of its network, or to itself, and so about no peer.
    pub fn is_guard(&self) -> bool {
        self.dst.contains(&self.src)
    }
}

/// An IPsec policy (`ip xfrm policy`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Policy {
    /// What it applies to.
    pub key: PolicyKey,
    /// The least is asked first.
    pub priority: u32,
    /// What happens to the packets.
    pub action: PolicyAction,
}

/// What a policy does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PolicyAction {
    /// They pass as they are.
    Allow,
    /// They are dropped.
    Block,
    /// They must be inside an ESP tunnel.
    Esp {
        /// The tunnel's source.
        from: IpAddr,
        /// Its destination.
        to: IpAddr,
        /// Ties policy and association together.
        reqid: u32,
    },
    /// Something we never write, such as an optional tunnel: differs from all we want.
    Foreign,
}

impl Policy {
    /// Whether it is ours by its marks, if `inside` says so of both networks.
    pub fn is_ours(&self, inside: impl Fn(&IpNet) -> bool) -> bool {
        let marked = match self.action {
            PolicyAction::Esp { reqid, .. } => reqid == REQID,
            PolicyAction::Allow => self.priority == OWN_PRIORITY,
            PolicyAction::Block => self.priority == GUARD_PRIORITY,
            PolicyAction::Foreign => false,
        };
        marked && inside(&self.key.src) && inside(&self.key.dst)
    }
}

impl fmt::Display for PolicyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "src {} dst {} dir {}", self.src, self.dst, self.dir.word())
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} priority {}", self.key, self.priority)?;
        match self.action {
            PolicyAction::Allow => f.write_str(" action allow"),
            PolicyAction::Block => f.write_str(" action block"),
            PolicyAction::Esp { from, to, reqid } => {
                write!(f, " tmpl src {from} dst {to} proto esp reqid {reqid} mode tunnel")
            }
            PolicyAction::Foreign => f.write_str(" (another kind)"),
        }
    }
}

/// Which connection of charon: its name says all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IkeKey {
    /// Our end.
    pub local: Ipv4Addr,
    /// Our subnet.
    pub local_net: Ipv4Net,
    /// The peer's subnet.
    pub remote_net: Ipv4Net,
    /// The peer's end.
    pub remote: Ipv4Addr,
}

impl IkeKey {
    /// Name of the one child, as flannel's.
    pub fn child(&self) -> String {
        format!("{}-{}", self.local_net, self.remote_net)
    }

    /// A connection by a name of this form; `None` for any other, which is not ours.
    pub fn parse(name: &str) -> Option<IkeKey> {
        let [local, local_net, remote_net, remote] = name.split('-').collect::<Vec<_>>().try_into().ok()?;
        let key = IkeKey {
            local: local.parse().ok()?,
            local_net: local_net.parse().ok()?,
            remote_net: remote_net.parse().ok()?,
            remote: remote.parse().ok()?,
        };
        (key.to_string() == name).then_some(key)
    }
}

impl fmt::Display for IkeKey {
    /// flannel's name of the connection.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}-{}", self.local, self.local_net, self.remote_net, self.remote)
    }
}

/// A connection that charon keeps up. The secret is not part of it: it has no business in a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ike {
    /// Which.
    pub key: IkeKey,
    /// By what name the peer knows us: our public address, which is not `local` behind NAT.
    pub id: Ipv4Addr,
    /// ESP in UDP.
    pub encap: bool,
    /// `ESPProposal`
    pub proposal: String,
}

impl fmt::Display for Ike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "swanctl --load-conns # {} esp {}", self.key, self.proposal)?;
        f.write_str(if self.encap { " in udp" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_known_by_their_names() {
        let name = "192.0.2.11-10.244.1.0/24-10.244.2.0/24-192.0.2.12";
        let key = IkeKey::parse(name).unwrap();
        assert_eq!((key.to_string().as_str(), key.child().as_str()), (name, "10.244.1.0/24-10.244.2.0/24"));
        for other in [
            "",
            "home",
            "a-b-c-d",
            "192.0.2.11-10.244.1.0/24-10.244.2.0/24",
            "192.0.2.011-1.0.0.0/8-2.0.0.0/8-1.2.3.4",
        ] {
            assert_eq!(IkeKey::parse(other), None, "{other}");
        }
    }

    #[test]
    fn policies_are_ours_by_mark_and_network() {
        let inside = |net: &IpNet| "10.244.0.0/16".parse::<IpNet>().unwrap().contains(net);
        let esp = |reqid| PolicyAction::Esp { from: [192, 0, 2, 1].into(), to: [192, 0, 2, 2].into(), reqid };
        for (src, dst, priority, action, ours) in [
            ("10.244.1.0/24", "10.244.2.0/24", 0, esp(11), true),
            ("10.244.1.0/24", "10.244.2.0/24", 7, esp(11), true),
            ("10.244.1.0/24", "10.244.2.0/24", 0, esp(12), false),
            ("10.244.1.0/24", "10.9.2.0/24", 0, esp(11), false),
            ("10.244.1.0/24", "10.244.0.0/16", GUARD_PRIORITY, PolicyAction::Block, true),
            ("10.244.1.0/24", "10.244.0.0/16", 0, PolicyAction::Block, false),
            ("10.244.1.0/24", "10.244.1.0/24", OWN_PRIORITY, PolicyAction::Allow, true),
            ("10.244.1.0/24", "10.244.1.0/24", 1, PolicyAction::Allow, false),
            ("10.244.1.0/24", "10.244.2.0/24", 0, PolicyAction::Foreign, false),
        ] {
            let net = |text: &str| text.parse().unwrap();
            let key = PolicyKey { dir: Direction::Out, src: net(src), dst: net(dst) };
            let policy = Policy { key, priority, action };
            assert_eq!(policy.is_ours(inside), ours, "{policy}");
            assert_eq!(
                crate::Key::Policy(key).is_critical(),
                !matches!(dst, "10.244.2.0/24" | "10.9.2.0/24")
            );
        }
    }
}
