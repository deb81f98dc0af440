//! The last good state of a node, as it lies on its disk: what the agent needs to bring the node's network
//! up again while the store cannot be reached (decision 0090).
//!
//! Text, so that a person can read it. First a line with the version and a checksum of the rest; then one
//! line of JSON about this node, and one for each lease of the cluster. It holds no secrets but the
//! addresses of the cluster.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

use crate::gojson::Json;
use crate::lease::{Lease, LeaseAttrs, Subnets};
use crate::peers::Peers;

/// What the first line begins with.
const MAGIC: &str = "loden last good state, version ";
const VERSION: &str = "1";

/// A point in time by two clocks. Within one boot the second one counts, which nobody sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// Seconds since 1970 by the wall clock.
    pub unix: u64,
    /// Seconds since the machine booted, those asleep included (`CLOCK_BOOTTIME`).
    pub uptime: u64,
    /// The kernel's random id of this boot; empty = not known.
    pub boot: String,
}

impl Moment {
    /// Seconds from `earlier` to here; `None` if the clocks do not tell: after a boot, with a wall clock
    /// that is behind.
    pub fn since(&self, earlier: &Moment) -> Option<u64> {
        if self.boot == earlier.boot && !self.boot.is_empty() {
            return Some(self.uptime.saturating_sub(earlier.uptime));
        }
        self.unix.checked_sub(earlier.unix)
    }
}

/// What is left of the own lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// The store sets no limit.
    Endless,
    /// So many seconds, at least one.
    Left(u64),
    /// It ran out so many seconds ago.
    Over(u64),
    /// The clock is behind the time of saving, so nobody can tell.
    Unknown,
}

/// Everything of one node that worked.
#[derive(Clone, Debug, Default)]
pub struct LastGood {
    /// Which node this is; see [`LastGood::is_of`].
    pub node: String,
    /// Which store the rest comes from.
    pub store: String,
    /// When it was saved.
    pub saved: Moment,
    /// The network configuration as the store gave it.
    pub conf: String,
    /// What this node published before the agent started.
    pub published: Option<LeaseAttrs>,
    /// Addresses an operator set for this node in the registry.
    pub public_ip: Option<Ipv4Addr>,
    /// The same in IPv6.
    pub public_ip6: Option<Ipv6Addr>,
    /// The own lease.
    pub own: Lease,
    /// Seconds the own lease had left when this was saved; `None` = no limit.
    pub left: Option<u64>,
    /// All leases, the own one included.
    pub peers: Peers,
    /// Names of the nodes that hold them.
    pub names: Arc<BTreeMap<Subnets, Box<str>>>,
}

/// Why a state is not used: the rest of a sentence that begins with the file's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Written by another version of this program, or by something else.
    #[error("it is not of version {VERSION}, the one this agent reads")]
    Version,
    /// The disk lost or changed a part.
    #[error("it is damaged: {0}")]
    Damaged(String),
    /// A copied disk, or a machine with a new name.
    #[error("it is of node {found:?}, and this is {here:?}")]
    Node {
        /// Whose it is.
        found: String,
        /// Who we are.
        here: String,
    },
    /// The agent was given another store since.
    #[error("it comes from {found}, and this agent was told to use {here}")]
    Store {
        /// Where it comes from.
        found: String,
        /// Where we look.
        here: String,
    },
}

impl LastGood {
    /// The whole file. Some 150 bytes for each lease of one family; nothing is copied but into the text.
    pub fn encode(&self) -> String {
        let mut body = String::with_capacity(1024 + self.peers.len() * 256);
        let published = self.published.as_ref().map_or(Json::Null, |attrs| Json::array(attrs_out(attrs)));
        let head = Json::object([
            ("node", Json::from(self.node.as_str())),
            ("store", self.store.as_str().into()),
            ("savedUnix", number(self.saved.unix)),
            ("savedUptime", number(self.saved.uptime)),
            ("boot", self.saved.boot.as_str().into()),
            ("leaseSecondsLeft", self.left.map_or(Json::Null, number)),
            ("networkConfig", self.conf.as_str().into()),
            ("published", published),
            ("publicIP", text(self.public_ip)),
            ("publicIPv6", text(self.public_ip6)),
            ("leases", number(self.peers.len() as u64)),
        ]);
        // Writing to a String cannot fail.
        let _ = writeln!(body, "{}", head.to_compact());
        for lease in std::iter::once(&self.own).chain(self.peers.iter()) {
            let name = self.names.get(&lease.subnets).map_or(Json::Null, |name| Json::from(&**name));
            let mut items = vec![text(lease.subnets.v4), text(lease.subnets.v6), name];
            items.extend(attrs_out(&lease.attrs));
            let _ = writeln!(body, "{}", Json::array(items).to_compact());
        }
        LastGood::seal(&body)
    }

    /// A file of lines as they are: the first line with its checksum, then they.
    pub fn seal(body: &str) -> String {
        format!("{MAGIC}{VERSION}, checksum {:016x}\n{body}", checksum(body.as_bytes()))
    }

    /// Reads a file.
    ///
    /// # Errors
    /// Of another version, or damaged.
    pub fn decode(file: &[u8]) -> Result<LastGood, Refusal> {
        let end = file.iter().position(|b| *b == b'\n').ok_or(Refusal::Version)?;
        let (first, body) = (&file[..end], &file[end + 1..]);
        let first = std::str::from_utf8(first).ok().and_then(|line| line.strip_prefix(MAGIC));
        let (version, sum) = first.and_then(|rest| rest.split_once(", checksum ")).ok_or(Refusal::Version)?;
        if version != VERSION {
            return Err(Refusal::Version);
        }
        if sum != format!("{:016x}", checksum(body)) {
            return Err(Refusal::Damaged("its checksum is wrong".to_owned()));
        }
        read(body).ok_or_else(|| Refusal::Damaged("its checksum is right but a line is not".to_owned()))
    }

    /// Whether this state may be used on this node with this store.
    ///
    /// # Errors
    /// Whose it is instead.
    pub fn is_of(&self, node: &str, store: &str) -> Result<(), Refusal> {
        let two = |found: &str, here: &str| (found.to_owned(), here.to_owned());
        if self.node != node {
            let (found, here) = two(&self.node, node);
            return Err(Refusal::Node { found, here });
        }
        if self.store != store {
            let (found, here) = two(&self.store, store);
            return Err(Refusal::Store { found, here });
        }
        Ok(())
    }

    /// What is left of the own lease at `now`. A lease in doubt is not ours.
    pub fn life(&self, now: &Moment) -> Life {
        match (self.left, now.since(&self.saved)) {
            (None, _) => Life::Endless,
            (Some(_), None) => Life::Unknown,
            (Some(left), Some(age)) if left > age => Life::Left(left - age),
            (Some(left), Some(age)) => Life::Over(age - left),
        }
    }
}

/// FNV-1a: against a torn or rotten file, not against people, who need root to write it.
fn checksum(bytes: &[u8]) -> u64 {
    let step = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

fn number(value: u64) -> Json {
    Json::Number(value.to_string())
}

fn text(value: Option<impl ToString>) -> Json {
    value.map_or(Json::Null, |value| Json::String(value.to_string()))
}

fn attrs_out(attrs: &LeaseAttrs) -> [Json; 5] {
    [
        text(attrs.public_ip),
        text(attrs.public_ip6),
        Json::from(attrs.backend_type.as_str()),
        text(attrs.backend_data.as_deref()),
        text(attrs.backend_v6_data.as_deref()),
    ]
}

/// `None` for what cannot be read; `Some(None)` for `null`.
fn parsed<T: FromStr>(json: &Json) -> Option<Option<T>> {
    match json {
        Json::Null => Some(None),
        Json::String(text) => text.parse().ok().map(Some),
        _ => None,
    }
}

fn attrs_in(items: &[Json]) -> Option<LeaseAttrs> {
    let [v4, v6, kind, data4, data6] = items else { return None };
    let data = |json: &Json| Some(parsed::<String>(json)?.map(Into::into));
    Some(LeaseAttrs {
        public_ip: parsed(v4)?,
        public_ip6: parsed(v6)?,
        backend_type: kind.as_str()?.to_owned(),
        backend_data: data(data4)?,
        backend_v6_data: data(data6)?,
    })
}

fn read(body: &[u8]) -> Option<LastGood> {
    let mut lines = body.split(|b| *b == b'\n').filter(|line| !line.is_empty()).map(Json::parse);
    let head = lines.next()?.ok()?;
    let string = |key: &str| Some(head.get_exact(key)?.as_str()?.to_owned());
    let int = |key: &str| head.get_exact(key)?.as_int::<u64>();
    let mut names = BTreeMap::new();
    let mut leases = Vec::new();
    for line in lines {
        let line = line.ok()?;
        let (place, attrs) = line.as_array()?.split_at_checked(3)?;
        let [v4, v6, name] = place else { return None };
        let subnets = Subnets { v4: parsed(v4)?, v6: parsed(v6)? };
        if let Some(name) = parsed::<String>(name)? {
            names.insert(subnets, name.into());
        }
        leases.push(Lease { subnets, attrs: attrs_in(attrs)? });
    }
    let mut leases = leases.into_iter();
    let own = leases.next()?;
    let mut peers = Peers::default();
    peers.reset(leases);
    if int("leases")? != peers.len() as u64 {
        return None;
    }
    let published = head.get_exact("published")?;
    let left = head.get_exact("leaseSecondsLeft")?;
    Some(LastGood {
        node: string("node")?,
        store: string("store")?,
        saved: Moment { unix: int("savedUnix")?, uptime: int("savedUptime")?, boot: string("boot")? },
        conf: string("networkConfig")?,
        published: if published.is_null() { None } else { Some(attrs_in(published.as_array()?)?) },
        public_ip: parsed(head.get_exact("publicIP")?)?,
        public_ip6: parsed(head.get_exact("publicIPv6")?)?,
        own,
        left: if left.is_null() { None } else { Some(left.as_int()?) },
        peers,
        names: Arc::new(names),
    })
}
