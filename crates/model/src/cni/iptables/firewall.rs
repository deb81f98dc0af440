//! The firewall plugin's chains in iptables (cni.md 2.5).

use std::net::IpAddr;

use super::{Changes, Saved, comment, comment_of, host, same};
use crate::IfName;

const FORWARD: &str = "CNI-FORWARD";
const STAGE_1: &str = "CNI-ISOLATION-STAGE-1";
const STAGE_2: &str = "CNI-ISOLATION-STAGE-2";
/// The administrator's chain when the configuration names none.
pub const ADMIN_CHAIN: &str = "CNI-ADMIN";

/// Who may open connections to a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IngressPolicy {
    /// Everybody.
    Open,
    /// Not other bridges' pods.
    SameBridge,
    /// Not pods of the same bridge either.
    Isolated,
}

/// The rules of one attachment.
pub struct Firewall<'a> {
    /// The administrator's chain.
    pub admin_chain: &'a str,
    /// Begins the comment on the attachment's rules and no other's (B-10).
    pub mark: &'a str,
    /// The whole comment.
    pub comment: &'a str,
}

impl Firewall<'_> {
    /// The chain that holds the rules of all attachments.
    pub const CHAIN: &'static str = FORWARD;

    /// Lines that keep a bridge's pods apart from others, without rules of an attachment.
    pub fn isolate(saved: &Saved, bridge: IfName, policy: IngressPolicy) -> Vec<String> {
        let mut changes = Changes::new(saved);
        isolate(&mut changes, bridge, policy);
        changes.into_lines()
    }

    /// Lines that accept what concerns the addresses, all of one family. Rules of the attachment that are
    /// there already are replaced.
    pub fn open(
        &self,
        saved: &Saved,
        addresses: &[IpAddr],
        policy: Option<(IfName, IngressPolicy)>,
    ) -> Vec<String> {
        let mut changes = Changes::new(saved);
        changes.ensure(FORWARD);
        changes.ensure(self.admin_chain);
        changes.first("FORWARD", &format!("{} -j {FORWARD}", comment("CNI firewall plugin rules")));
        let why = comment("CNI firewall plugin admin overrides");
        changes.first(FORWARD, &format!("{why} -j {}", self.admin_chain));
        if let Some((bridge, policy)) = policy {
            isolate(&mut changes, bridge, policy);
        }
        self.ours(saved).for_each(|rule| changes.delete(FORWARD, rule));
        let mut lines = changes.into_lines();
        let mark = comment(self.comment);
        lines.extend(
            addresses
                .iter()
                .flat_map(|ip| rules(*ip, &format!("{mark} ")))
                .map(|rule| format!("-A {FORWARD} {rule}")),
        );
        lines
    }

    /// Lines that delete the attachment's rules, and those the reference plugin made for `addresses`: it
    /// leaves no mark, so the caller names only addresses that are this attachment's.
    pub fn close(&self, saved: &Saved, addresses: &[IpAddr]) -> Vec<String> {
        let mut changes = Changes::new(saved);
        self.ours(saved).for_each(|rule| changes.delete(FORWARD, rule));
        for unmarked in addresses.iter().flat_map(|ip| rules(*ip, "")) {
            let theirs = |rule: &&String| comment_of(rule).is_none() && same(rule, &unmarked);
            saved.rules(FORWARD).iter().filter(theirs).for_each(|rule| changes.delete(FORWARD, rule));
        }
        changes.into_lines()
    }

    /// The first rule missing of what [`Firewall::open`] makes for the addresses.
    pub fn missing(&self, saved: &Saved, addresses: &[IpAddr]) -> Option<String> {
        let jump = |chain: &str, target: &str| {
            let there = saved.leading_to(target).any(|(parent, _)| parent == chain);
            (!there).then(|| format!("-j {target}"))
        };
        jump("FORWARD", FORWARD).or_else(|| jump(FORWARD, self.admin_chain)).or_else(|| {
            let wanted = addresses.iter().flat_map(|ip| rules(*ip, ""));
            wanted.into_iter().find(|rule| !saved.rules(FORWARD).iter().any(|have| same(have, rule)))
        })
    }

    /// Lines that delete the rules whose comment is stale.
    pub fn keep_only(saved: &Saved, is_stale: &dyn Fn(&str) -> bool) -> Vec<String> {
        let mut changes = Changes::new(saved);
        for rule in saved.rules(FORWARD) {
            if comment_of(rule).is_some_and(|text| is_stale(&text)) {
                changes.delete(FORWARD, rule);
            }
        }
        changes.into_lines()
    }

    fn ours<'s>(&self, saved: &'s Saved) -> impl Iterator<Item = &'s String> {
        let mark = self.mark.to_owned();
        let ours = move |rule: &&String| comment_of(rule).is_some_and(|text| text.starts_with(&mark));
        saved.rules(FORWARD).iter().filter(ours)
    }
}

fn rules(ip: IpAddr, comment: &str) -> [String; 2] {
    let ip = host(ip);
    let state = "-m conntrack --ctstate RELATED,ESTABLISHED";
    [format!("-d {ip} {comment}{state} -j ACCEPT"), format!("-s {ip} {comment}-j ACCEPT")]
}

fn isolate(changes: &mut Changes<'_>, bridge: IfName, policy: IngressPolicy) {
    let name = match policy {
        IngressPolicy::Open => return,
        IngressPolicy::SameBridge => "same-bridge",
        IngressPolicy::Isolated => "isolated",
    };
    let shared = comment("CNI firewall plugin rules (ingressPolicy: same-bridge|isolated)");
    let own = comment(&format!("CNI firewall plugin rules (ingressPolicy: {name})"));
    changes.ensure(STAGE_1);
    changes.ensure(STAGE_2);
    changes.first("FORWARD", &format!("{shared} -j {STAGE_1}"));
    changes.first(STAGE_1, &format!("-i {bridge} ! -o {bridge} {own} -j {STAGE_2}"));
    if policy == IngressPolicy::Isolated {
        changes.first(STAGE_1, &format!("-i {bridge} -o {bridge} {own} -j DROP"));
    }
    changes.append(STAGE_1, &format!("{shared} -j RETURN"));
    changes.first(STAGE_2, &format!("-o {bridge} {shared} -j DROP"));
    changes.append(STAGE_2, &format!("{shared} -j RETURN"));
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIREWALL: Firewall<'_> =
        Firewall { admin_chain: ADMIN_CHAIN, mark: "m1-", comment: "m1-x, id: c1" };

    #[test]
    fn rules_are_upstreams_with_a_mark() {
        let ip: IpAddr = "10.1.2.3".parse().unwrap();
        let lines = FIREWALL.open(&Saved::default(), &[ip], None);
        assert_eq!(
            lines,
            [
                "-N CNI-FORWARD",
                "-N CNI-ADMIN",
                "-I FORWARD -m comment --comment \"CNI firewall plugin rules\" -j CNI-FORWARD",
                "-I CNI-FORWARD -m comment --comment \"CNI firewall plugin admin overrides\" -j CNI-ADMIN",
                "-A CNI-FORWARD -d 10.1.2.3/32 -m comment --comment \"m1-x, id: c1\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
                "-A CNI-FORWARD -s 10.1.2.3/32 -m comment --comment \"m1-x, id: c1\" -j ACCEPT",
            ]
        );
    }

    #[test]
    fn only_the_attachments_own_rules_go() {
        let ip: IpAddr = "10.1.2.3".parse().unwrap();
        let saved = Saved::parse(
            ":CNI-FORWARD - [0:0]\n:FORWARD - [0:0]\n-A FORWARD -j CNI-FORWARD\n-A CNI-FORWARD -j CNI-ADMIN\n\
             -A CNI-FORWARD -s 10.1.2.3/32 -m comment --comment \"m1-x, id: c1\" -j ACCEPT\n\
             -A CNI-FORWARD -s 10.1.2.3/32 -m comment --comment \"m2-x, id: c2\" -j ACCEPT\n\
             -A CNI-FORWARD -s 10.1.2.3/32 -j ACCEPT\n",
        );
        let own = "-D CNI-FORWARD -s 10.1.2.3/32 -m comment --comment \"m1-x, id: c1\" -j ACCEPT";
        assert_eq!(FIREWALL.close(&saved, &[]), [own]);
        assert_eq!(FIREWALL.close(&saved, &[ip]), [own, "-D CNI-FORWARD -s 10.1.2.3/32 -j ACCEPT"]);
        assert_eq!(Firewall::keep_only(&saved, &|text| text.starts_with("m1")), [own]);
        let want = "-d 10.1.2.3/32 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT";
        assert_eq!(FIREWALL.missing(&saved, &[ip]).as_deref(), Some(want));
        assert_eq!(FIREWALL.missing(&saved, &[]), None);
    }

    #[test]
    fn bridges_are_kept_apart() {
        let bridge = IfName::new("br7").unwrap();
        for (policy, count) in
            [(IngressPolicy::SameBridge, 7), (IngressPolicy::Isolated, 8), (IngressPolicy::Open, 0)]
        {
            let with = FIREWALL.open(&Saved::default(), &[], Some((bridge, policy)));
            assert_eq!(with.len(), 4 + count, "{with:?}");
        }
    }
}
