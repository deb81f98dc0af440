//! Which peers have had no association for so long that it is worth a sentence (decision 0173). Pure.

use std::collections::BTreeMap;

use plan::state::IkeKey;

/// So many looks in a row without an association, and it is said: half a minute. A handshake takes seconds.
const SUSPICIOUS: u32 = 15;

/// Peers without an association, and for how many looks.
#[derive(Debug, Default)]
pub struct Silence(BTreeMap<IkeKey, u32>);

impl Silence {
    /// What a look shows of a connection: whether an association carries its packets.
    pub fn look(&mut self, key: IkeKey, stands: bool) {
        if stands {
            self.0.remove(&key);
        } else {
            let looks = self.0.entry(key).or_default();
            *looks = looks.saturating_add(1);
        }
    }

    /// Forgets those that are no connections any more.
    pub fn retain(&mut self, there: impl Fn(&IkeKey) -> bool) {
        self.0.retain(|key, _| there(key));
    }

    /// A sentence about those that are silent, and how to find out why.
    pub fn sentence(&self) -> Option<String> {
        let mut silent = self.0.iter().filter(|(_, looks)| **looks >= SUSPICIOUS).map(|(key, _)| key);
        let first = silent.next()?;
        let others = match silent.count() {
            0 => String::new(),
            n => format!(", and {n} others"),
        };
        Some(format!(
            "IPsec peer {} of {}{others}: no association, so nothing is sent to it; the node is down, UDP 500 and 4500 or \
             protocol 50 are closed between us, its PSK or ESPProposal is another one, or a kernel has no ESP; see: \
             swanctl --list-sas, and charon's lines in the log of both",
            first.remote, first.remote_net
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_said_when_it_lasts_and_not_longer() {
        let key = |n: u8| {
            let name = format!("192.0.2.11-10.244.1.0/24-10.244.{n}.0/24-192.0.2.{n}");
            IkeKey::parse(&name).expect("a name")
        };
        let mut silence = Silence::default();
        for n in 0..SUSPICIOUS {
            assert_eq!(silence.sentence(), None, "after {n} looks");
            silence.look(key(12), false);
            silence.look(key(13), n % 2 == 0);
        }
        let said = silence.sentence().expect("a sentence");
        assert!(said.starts_with("IPsec peer 192.0.2.12 of 10.244.12.0/24: no association"), "{said}");
        for _ in 0..SUSPICIOUS {
            silence.look(key(13), false);
        }
        assert!(silence.sentence().is_some_and(|said| said.contains("10.244.12.0/24, and 1 others: ")));
        silence.retain(|other| *other == key(12));
        assert!(silence.sentence().is_some_and(|said| !said.contains("others")));
        silence.look(key(12), true);
        assert_eq!(silence.sentence(), None);
    }
}
