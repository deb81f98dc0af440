//! A chain of ours, with rules of many attachments told apart by their comments (veth-to-host by iptables).

use super::{Changes, Saved, comment, comment_of};

/// Where it is entered.
#[derive(Clone, Copy, Debug)]
pub struct OwnChain<'a> {
    /// Its name.
    pub name: &'a str,
    /// The built-in chain that leads to it, first of all.
    pub parent: &'a str,
    /// What the jump's comment says.
    pub why: &'a str,
}

impl OwnChain<'_> {
    /// Lines that put rules, each with its comment, in place of the stale ones.
    pub fn put(
        &self,
        saved: &Saved,
        rules: &[(String, String)],
        is_stale: &dyn Fn(&str) -> bool,
    ) -> Vec<String> {
        let mut changes = Changes::new(saved);
        changes.ensure(self.name);
        changes.first(self.parent, &format!("{} -j {}", comment(self.why), self.name));
        let mut lines = changes.into_lines();
        lines.extend(self.without(saved, is_stale));
        lines.extend(rules.iter().map(|(rule, text)| {
            let (matches, target) = rule.split_once(" -j ").unwrap_or((rule, "RETURN"));
            format!("-A {} {matches} {} -j {target}", self.name, comment(text))
        }));
        lines
    }

    /// Lines that delete the stale rules.
    pub fn without(&self, saved: &Saved, is_stale: &dyn Fn(&str) -> bool) -> Vec<String> {
        let mut changes = Changes::new(saved);
        let stale = |rule: &&String| comment_of(rule).is_some_and(|text| is_stale(&text));
        saved.rules(self.name).iter().filter(stale).for_each(|rule| changes.delete(self.name, rule));
        changes.into_lines()
    }

    /// How many rules have such a comment and can be reached.
    pub fn count(&self, saved: &Saved, is_ours: &dyn Fn(&str) -> bool) -> usize {
        if saved.leading_to(self.name).next().is_none() {
            return 0;
        }
        let ours = |rule: &&String| comment_of(rule).is_some_and(|text| is_ours(&text));
        saved.rules(self.name).iter().filter(ours).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAIN: OwnChain<'_> = OwnChain { name: "LODEN-V2H", parent: "POSTROUTING", why: "over the host" };

    #[test]
    fn rules_are_replaced_by_their_comment() {
        let rules = [("-s 10.0.0.1/32 -o veth1 -j MASQUERADE".to_owned(), "a1, id: x".to_owned())];
        let ours = |text: &str| text.starts_with("a1");
        let empty = Saved::parse("*nat\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n");
        assert_eq!(
            CHAIN.put(&empty, &rules, &ours),
            [
                "-N LODEN-V2H",
                "-I POSTROUTING -m comment --comment \"over the host\" -j LODEN-V2H",
                "-A LODEN-V2H -s 10.0.0.1/32 -o veth1 -m comment --comment \"a1, id: x\" -j MASQUERADE",
            ]
        );
        let full = Saved::parse(
            "*nat\n:POSTROUTING ACCEPT [0:0]\n:LODEN-V2H - [0:0]\n-A POSTROUTING -m comment --comment \"over the host\" -j LODEN-V2H\n\
             -A LODEN-V2H -s 10.0.0.9/32 -m comment --comment \"b2, id: y\" -j MASQUERADE\n\
             -A LODEN-V2H -s 10.0.0.1/32 -o veth1 -m comment --comment \"a1, id: x\" -j MASQUERADE\nCOMMIT\n",
        );
        assert_eq!(
            CHAIN.put(&full, &rules, &ours),
            [
                "-D LODEN-V2H -s 10.0.0.1/32 -o veth1 -m comment --comment \"a1, id: x\" -j MASQUERADE",
                "-A LODEN-V2H -s 10.0.0.1/32 -o veth1 -m comment --comment \"a1, id: x\" -j MASQUERADE",
            ]
        );
        assert_eq!(CHAIN.without(&full, &|text| text.starts_with("c3")), [""; 0]);
        assert_eq!((CHAIN.count(&full, &ours), CHAIN.count(&empty, &ours)), (1, 0));
    }
}
