//! The board of troubles: what is wrong with this node now, by topic. Whoever meets a trouble puts it up,
//! whoever finds it over takes it down, and everybody who shows troubles reads the same board: the log,
//! `/readyz`, the service manager, the registry, the CNI plugins, `loden status` (decision 0088).
//!
//! The log gets one line when a trouble appears, another when its sentence is a new one, and one when it
//! is over. A sentence said already is not said again while the trouble lasts, so two causes that take
//! turns do not fill a disk.

use std::collections::BTreeMap;
use std::time::{Instant, SystemTime};

use tokio::sync::watch;

/// What a trouble is about. The order is that of the list shown: what others may follow from goes first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topic {
    /// The network configuration cannot be had or used.
    Config,
    /// What the registry remembers of this node cannot be read.
    Remembered,
    /// The host is not understood: no interface that fits, or the kernel does not answer.
    Host,
    /// No lease is held.
    Lease,
    /// The kernel does not show what it holds.
    Kernel,
    /// One kernel object cannot be made or removed.
    Object(String),
    /// `subnet.env` cannot be written.
    SubnetFile,
    /// The CNI configuration cannot be put in place.
    CniConf,
    /// The last good state stands in for the store, or cannot.
    LastGood,
    /// The leases of others cannot be followed.
    Watch,
    /// The own lease cannot be extended, or what it says cannot be published.
    Renewal,
    /// The network configuration is another one than that in use.
    ConfigChange,
    /// The last good state cannot be saved.
    StateFile,
    /// Nodes announce the same, which each must have for itself.
    Double(String),
    /// Peers answer nothing.
    Silence,
    /// The port of the health endpoint is not ours.
    HealthPort,
    /// The address for metrics is not ours.
    MetricsPort,
    /// The address for the web page is not ours.
    WebPort,
    /// Bridged packets do not pass the host's rules.
    BridgeNetfilter,
    /// The fast path was asked for and is not there.
    FastPath,
}

/// How a topic is logged.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Voice {
    /// Pods suffer, or soon will.
    Error,
    /// Something is less safe or less useful than it could be.
    Warning,
    /// Whoever found it logs it.
    Silent,
}

impl Topic {
    /// The topic in one word, for counts.
    pub fn name(&self) -> &'static str {
        match self {
            Topic::Config => "config",
            Topic::Remembered => "remembered",
            Topic::Host => "host",
            Topic::Lease => "lease",
            Topic::Kernel => "kernel",
            Topic::Object(_) => "object",
            Topic::SubnetFile => "subnet_file",
            Topic::CniConf => "cni_conf",
            Topic::LastGood => "last_good",
            Topic::Watch => "watch",
            Topic::Renewal => "renewal",
            Topic::ConfigChange => "config_change",
            Topic::StateFile => "state_file",
            Topic::Double(_) => "double",
            Topic::Silence => "silence",
            Topic::HealthPort => "health_port",
            Topic::MetricsPort => "metrics_port",
            Topic::WebPort => "web_port",
            Topic::BridgeNetfilter => "bridge_netfilter",
            Topic::FastPath => "fast_path",
        }
    }

    /// What it is about, where there are several.
    fn object(&self) -> Option<&str> {
        match self {
            Topic::Object(key) | Topic::Double(key) => Some(key),
            _ => None,
        }
    }

    /// What works again when the trouble is over.
    fn what(&self) -> &str {
        match self {
            Topic::Config => "fetch network config",
            Topic::Remembered => "read what this node published before",
            Topic::Host => "understand the host's interfaces",
            Topic::Lease => "acquire lease",
            Topic::Kernel => "read the kernel's state",
            Topic::Object(key) | Topic::Double(key) => key,
            Topic::SubnetFile => "write the subnet file",
            Topic::CniConf => "put the CNI configuration in place",
            Topic::LastGood => "take everything from the store",
            Topic::Watch => "watch leases",
            Topic::Renewal => "renew lease",
            Topic::ConfigChange => "run on the network config of the store",
            Topic::StateFile => "save the last good state",
            Topic::Silence => "hear peers of encrypted tunnels",
            Topic::HealthPort => "listen for health checks",
            Topic::MetricsPort => "listen for metrics",
            Topic::WebPort => "listen for the web page",
            Topic::FastPath => "carry packets over the fast path",
            Topic::BridgeNetfilter => "show bridged packets to the host's rules",
        }
    }

    fn voice(&self) -> Voice {
        match self {
            // The store's own room logs it, with the number of leases that stay in force.
            Topic::Watch => Voice::Silent,
            Topic::Double(_)
            | Topic::LastGood
            | Topic::ConfigChange
            | Topic::StateFile
            | Topic::Silence
            | Topic::BridgeNetfilter
            | Topic::FastPath => Voice::Warning,
            _ => Voice::Error,
        }
    }
}

/// One trouble.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// One sentence on one line: action, object, cause, way out.
    pub text: String,
    /// Since when, for people.
    pub since: SystemTime,
    /// The same for computing how long; not moved by whoever sets the clock.
    pub start: Instant,
    /// How often it was found, at least once.
    pub times: u64,
    /// Sentences said already.
    said: Vec<String>,
}

/// Everything on the board, as a value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Troubles {
    /// The node's pods can be reached and reach others.
    pub ready: bool,
    /// What is wrong. Some of it does not keep the node from being ready.
    pub troubles: BTreeMap<Topic, Trouble>,
}

impl Troubles {
    /// What each sentence is about, in one word.
    pub fn topics(&self) -> BTreeMap<String, &'static str> {
        self.troubles.iter().map(|(topic, trouble)| (trouble.text.clone(), topic.name())).collect()
    }

    /// The sentences in order, at most `limit` lines; the last one tells how many more there are.
    pub fn sentences(&self, limit: usize) -> Vec<String> {
        let all = self.troubles.len();
        let shown = if all > limit { limit.saturating_sub(1) } else { all };
        let mut lines: Vec<String> = self.troubles.values().take(shown).map(|t| t.text.clone()).collect();
        if all > shown {
            lines.push(format!("and {} more, see the agent's log", all - shown));
        }
        lines
    }
}

/// New lines logged for kernel objects at once.
const LOGGED: usize = 8;
/// Sentences of one trouble that are remembered as said.
const REMEMBERED: usize = 16;

/// Where troubles are put up. Shared by all threads of the agent.
#[derive(Debug)]
pub struct Board {
    now: watch::Sender<Troubles>,
}

impl Default for Board {
    fn default() -> Board {
        Board { now: watch::Sender::new(Troubles::default()) }
    }
}

impl Board {
    /// Follows the board: notified when a sentence or the readiness changes, not when a count does.
    pub fn follow(&self) -> watch::Receiver<Troubles> {
        self.now.subscribe()
    }

    /// The board as it is now.
    pub fn now(&self) -> Troubles {
        self.now.borrow().clone()
    }

    /// Whether the node's pods can be reached and reach others.
    pub fn ready(&self, ready: bool) {
        self.now.send_if_modified(|now| std::mem::replace(&mut now.ready, ready) != ready);
    }

    /// Something is wrong, or still is.
    pub fn set(&self, topic: Topic, text: impl Into<String>) {
        let mut news = None;
        self.now.send_if_modified(|now| {
            let (changed, say) = put(now, &topic, text.into());
            news = say;
            changed
        });
        if let Some(news) = news {
            log(&topic, &news);
        }
    }

    /// It is over, if there was anything.
    pub fn clear(&self, topic: &Topic) {
        if self.now.send_if_modified(|now| now.troubles.remove(topic).is_some()) {
            over(topic);
        }
    }

    /// What one round of the loop found. Its topics that are not in `found` are over; kernel objects only
    /// if the round came so far as to look at them.
    pub fn round(&self, found: &BTreeMap<Topic, String>, looked: bool) {
        let mut said = Vec::new();
        let mut gone = Vec::new();
        self.now.send_if_modified(|now| {
            let of_loop = |topic: &Topic| match topic {
                Topic::Host => true,
                Topic::Kernel | Topic::Object(_) | Topic::Double(_) | Topic::Silence => looked,
                _ => false,
            };
            let over = now.troubles.keys().filter(|topic| of_loop(topic) && !found.contains_key(topic));
            gone = over.cloned().collect();
            gone.iter().for_each(|topic| drop(now.troubles.remove(topic)));
            let mut changed = !gone.is_empty();
            for (topic, text) in found {
                let (new, say) = put(now, topic, text.clone());
                changed |= new;
                said.extend(say.map(|news| (topic, news)));
            }
            changed
        });
        said.iter().take(LOGGED).for_each(|(topic, news)| log(topic, news));
        gone.iter().take(LOGGED).for_each(over);
        if let Some(more @ 1..) = said.len().checked_sub(LOGGED) {
            tracing::error!("{more} more kernel objects failed");
        }
        if let Some(more @ 1..) = gone.len().checked_sub(LOGGED) {
            tracing::info!("{more} more kernel objects: work again");
        }
    }
}

/// A sentence that was not said yet, and whether its trouble begins with it or changes.
type News = (String, &'static str);

/// Gives whether readers should know, and what is new.
fn put(now: &mut Troubles, topic: &Topic, text: String) -> (bool, Option<News>) {
    let text = if text.contains('\n') { text.replace('\n', " ") } else { text };
    if let Some(trouble) = now.troubles.get_mut(topic) {
        trouble.times += 1;
        if trouble.text == text {
            return (false, None);
        }
        trouble.text.clone_from(&text);
        if trouble.said.contains(&text) {
            return (true, None);
        }
        if trouble.said.len() == REMEMBERED {
            trouble.said.remove(0);
        }
        trouble.said.push(text.clone());
        return (true, Some((text, "changes")));
    }
    let (since, start) = (SystemTime::now(), Instant::now());
    let new = Trouble { text: text.clone(), since, start, times: 1, said: vec![text.clone()] };
    now.troubles.insert(topic.clone(), new);
    (true, Some((text, "begins")))
}

fn log(topic: &Topic, (text, state): &News) {
    let (name, object) = (topic.name(), topic.object());
    match topic.voice() {
        Voice::Error => tracing::error!(topic = name, state, object, "{text}"),
        Voice::Warning => tracing::warn!(topic = name, state, object, "{text}"),
        Voice::Silent => {}
    }
}

fn over(topic: &Topic) {
    if topic.voice() != Voice::Silent {
        tracing::info!(
            topic = topic.name(),
            state = "over",
            object = topic.object(),
            "{}: works again",
            topic.what()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_is_news_once_while_its_trouble_lasts() {
        let mut now = Troubles::default();
        let mut heard = Vec::new();
        for (text, wakes, says) in [
            ("a", true, true),
            ("a", false, false),
            ("b", true, true),
            ("a", true, false),
            ("b", true, false),
            ("c\nd", true, true),
        ] {
            let (changed, news) = put(&mut now, &Topic::Config, text.to_owned());
            assert_eq!((changed, news.is_some()), (wakes, says), "{text}");
            heard.extend(news.map(|(text, _)| text));
        }
        assert_eq!(heard, ["a", "b", "c d"], "and each is one line");
        assert_eq!(now.troubles[&Topic::Config].times, 6);
    }

    #[test]
    fn readers_are_woken_by_what_they_show() {
        let board = Board::default();
        let mut reader = board.follow();
        let mut woken = |what: &str| {
            let changed = reader.has_changed().expect(what);
            reader.mark_unchanged();
            changed
        };
        assert!(!woken("nothing yet"));
        board.set(Topic::Lease, "no lease");
        assert!(woken("a trouble"));
        board.set(Topic::Lease, "no lease");
        assert!(!woken("the same"));
        board.ready(false);
        assert!(!woken("not ready is how it starts"));
        board.ready(true);
        assert!(woken("ready"));
        board.clear(&Topic::Watch);
        assert!(!woken("there was none"));
        board.clear(&Topic::Lease);
        assert!(woken("over"));
        assert_eq!(board.now(), Troubles { ready: true, ..Troubles::default() });
    }

    #[test]
    fn a_round_ends_only_what_it_looked_at() {
        let board = Board::default();
        let object = |n: usize| Topic::Object(format!("object {n:02}"));
        let found = |topics: &[Topic]| -> BTreeMap<Topic, String> {
            topics.iter().map(|topic| (topic.clone(), format!("{} fails", topic.what()))).collect()
        };
        let topics = || board.now().troubles.into_keys().collect::<Vec<_>>();
        board.set(Topic::Lease, "somebody else's");
        board.round(&found(&[object(1), object(2)]), true);
        assert_eq!(topics(), [Topic::Lease, object(1), object(2)]);
        board.round(&found(&[Topic::Host]), false);
        assert_eq!(topics(), [Topic::Host, Topic::Lease, object(1), object(2)]);
        board.round(&found(&[object(2)]), true);
        assert_eq!(topics(), [Topic::Lease, object(2)]);
        board.round(&found(&[]), true);
        assert_eq!(topics(), [Topic::Lease]);
        board.round(&(0..20).map(|n| (object(n), n.to_string())).collect(), true);
        let lines = board.now().sentences(5);
        assert_eq!(lines, ["somebody else's", "0", "1", "2", "and 17 more, see the agent's log"]);
        assert_eq!(board.now().sentences(21).len(), 21);
    }
}
