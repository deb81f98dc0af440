//! A conversation that is denied while it goes on, and allowed again.

use std::time::{Duration, Instant};

use sim::Random;

use super::{agent, host, right};
use crate::Result;
use crate::picture::{PATIENCE, must, shell};
use crate::promise::Seen;
use crate::scene::{HOSTS, Scene};
use crate::traffic::{Pair, Talk};

/// How long packets may still pass after a rule is there: with the fast path what nobody tells of counts within a second
/// (decision 0215), by a clock that ticks each 4 ms.
const BOUND: Duration = Duration::from_millis(1010);
/// How long we look beyond it.
const BEYOND: Duration = Duration::from_millis(700);
/// Port of the conversation. Another one each time: a flow that conntrack knows from before says nothing.
const PORTS: (u16, usize) = (20_000, 10_000);

/// What denies it, and what takes that back; `{port}` and `{ip}` (`ip` or `ip6`) are put in.
struct Rule {
    deny: &'static str,
    allow: &'static str,
}

const NFT: Rule = Rule {
    deny: "nft add table inet late; nft add chain inet late f '{ type filter hook forward priority 9; }'; \
           nft add rule inet late f udp dport {port} drop",
    allow: "nft delete table inet late",
};

const LEGACY: Rule = Rule {
    deny: "{ip}tables-legacy -w -I FORWARD -p udp --dport {port} -j DROP",
    allow: "{ip}tables-legacy -w -D FORWARD -p udp --dport {port} -j DROP",
};

const FILTER: Rule = Rule {
    deny: "tc qdisc add dev eth0 clsact; for way in ingress egress; do \
           tc filter add dev eth0 $way protocol all prio 9 u32 match u32 0 0 \
           action mirred egress redirect dev other1; done",
    allow: "tc qdisc del dev eth0 clsact",
};

/// By nftables, which tells.
pub fn by_nft(scene: &mut Scene, random: &mut Random, seen: &mut Seen) -> Result<()> {
    let at = host(random);
    between(scene, random, seen, &NFT, at)
}

/// By a table of the kernel that tells nobody of its changes.
pub fn by_legacy(scene: &mut Scene, random: &mut Random, seen: &mut Seen) -> Result<()> {
    let at = host(random);
    between(scene, random, seen, &LEGACY, at)
}

/// By a filter of the uplink, which lies beside our programs there.
pub fn by_filter(scene: &mut Scene, random: &mut Random, seen: &mut Seen) -> Result<()> {
    let at = host(random);
    between(scene, random, seen, &FILTER, at)
}

/// While there is no agent that would hear of it.
pub fn without_agent(scene: &mut Scene, random: &mut Random, seen: &mut Seen) -> Result<()> {
    let at = host(random);
    let talk = Conversation::start(scene, random, at)?;
    agent::kill(scene, at)?;
    let done = talk.denied(scene, seen, &NFT);
    agent::again(scene, at, seen)?;
    done
}

fn between(scene: &Scene, random: &mut Random, seen: &mut Seen, rule: &Rule, at: usize) -> Result<()> {
    Conversation::start(scene, random, at)?.denied(scene, seen, rule)?;
    right(scene, at, Instant::now(), seen)
}

/// A pod of a host asks one of the next, or the other way round.
struct Conversation {
    talk: Talk,
    /// Where it is to be denied.
    at: usize,
    port: u16,
    v6: bool,
}

impl Conversation {
    /// Waits until it flows, and where packets go fast until it does so, too: until few of its packets are seen by
    /// rules.
    fn start(scene: &Scene, random: &mut Random, at: usize) -> Result<Conversation> {
        let families = scene.families();
        let v6 = random.pick(&families).copied().unwrap_or_default();
        let port = PORTS.0 + random.below(PORTS.1) as u16;
        let (mut from, mut to) = (at - 1, at % HOSTS);
        if random.below(2) == 1 {
            (from, to) = (to, from);
        }
        let pair = Pair::new(&scene.ends[from], &scene.ends[to], v6, port)?;
        let conversation = Conversation { talk: Talk::start(&pair)?, at, port, v6 };
        let rules = "nft add table inet seen; nft add chain inet seen f '{ type filter hook forward priority 8; }'; \
                     nft add rule inet seen f udp dport {port} counter";
        must(&scene.lab, at, &conversation.words(rules))?;
        let goes = conversation.goes(scene);
        must(&scene.lab, at, "nft delete table inet seen")?;
        goes.map(|()| conversation)
    }

    fn goes(&self, scene: &Scene) -> Result<()> {
        let start = Instant::now();
        let mut last = (0, 0);
        while start.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(250));
            let arrived = self.talk.arrived();
            let text = shell(&scene.lab, self.at, "nft list table inet seen")?;
            let seen = text.split_once("packets ").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
            let now = (arrived, seen.unwrap_or(0));
            let came = (now.0 - last.0, now.1 - last.1);
            if came.0 > 20 && (!scene.setup.fast || came.1 * 4 < came.0) {
                return Ok(());
            }
            last = now;
        }
        Err(format!(
            "the conversation that is to be denied does not go as it should: arrived and seen by rules {last:?}"
        ))
    }

    /// Denies it and allows it again. What was sent later than it may still pass, and passed, is counted.
    fn denied(self, scene: &Scene, seen: &mut Seen, rule: &Rule) -> Result<()> {
        must(&scene.lab, self.at, &format!("set -e; {}", self.words(rule.deny)))?;
        let denied = Instant::now();
        std::thread::sleep(BOUND + BEYOND);
        let allowed = Instant::now();
        must(&scene.lab, self.at, &self.words(rule.allow))?;
        let again = self.flows_again();
        let (sent, arrived) = self.talk.finish();
        let (mut late, mut passed, mut last) = (0, 0, Duration::ZERO);
        for (number, at) in sent.iter().enumerate().filter(|(_, at)| **at > denied && **at < allowed) {
            let came = arrived.has(number as u64);
            if came {
                last = *at - denied;
            }
            if *at > denied + BOUND {
                late += 1;
                passed += u64::from(came);
            }
        }
        if late == 0 {
            return Err("nothing was sent while it was denied: nothing was shown".to_owned());
        }
        seen.denied = (seen.denied.0 + late, seen.denied.1 + passed);
        seen.stopped.push(last);
        again
    }

    fn flows_again(&self) -> Result<()> {
        let (start, before) = (Instant::now(), self.talk.arrived());
        while self.talk.arrived() < before + 20 {
            if start.elapsed() > PATIENCE {
                return Err("a conversation that is allowed again does not go on".to_owned());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn words(&self, script: &str) -> String {
        let ip = if self.v6 { "ip6" } else { "ip" };
        script.replace("{port}", &self.port.to_string()).replace("{ip}", ip)
    }
}
