//! A lease as annotations of a Kubernetes Node (flannel.md 4.2): names, values, and what to write.
//!
//! Takes and gives text; knows no API server. Values of one family never cost the other.

use std::net::IpAddr;

use ipnet::IpNet;

use super::vtep;
use crate::addr::{Family, parse_cidr, parse_ip};
use crate::gojson::Json;
use crate::lease::{LeaseAttrs, Subnets};

/// The prefix unless `--kube-annotation-prefix` says otherwise.
pub const DEFAULT_PREFIX: &str = "flannel.alpha.coreos.com";
/// The longest value that is looked at, bytes; the API server allows 256 KiB for all annotations of an object.
pub const LONGEST: usize = 16_384;

/// One annotation of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    /// `kube-subnet-manager`: exactly `true`, or the Node takes no part.
    Managed,
    /// `backend-type`
    BackendType,
    /// `backend-data`: JSON text or `null`.
    Data,
    /// `backend-v6-data`
    Data6,
    /// `public-ip`: where peers send to.
    PublicIp,
    /// `public-ipv6`
    PublicIp6,
    /// `public-ip-overwrite`: by an operator, goes before what the agent finds.
    Overwrite,
    /// `public-ipv6-overwrite`
    Overwrite6,
    /// `node-public-ip`: by an operator, acts like `--public-ip` and goes before it.
    NodeIp,
    /// `node-public-ipv6`
    NodeIp6,
}

impl Item {
    /// All, those the agent writes first.
    pub const ALL: [Item; 10] = [
        Item::Managed,
        Item::BackendType,
        Item::Data,
        Item::Data6,
        Item::PublicIp,
        Item::PublicIp6,
        Item::Overwrite,
        Item::Overwrite6,
        Item::NodeIp,
        Item::NodeIp6,
    ];
    /// How many of them the agent writes.
    const OURS: usize = 6;

    fn suffix(self) -> &'static str {
        match self {
            Item::Managed => "kube-subnet-manager",
            Item::BackendType => "backend-type",
            Item::Data => "backend-data",
            Item::Data6 => "backend-v6-data",
            Item::PublicIp => "public-ip",
            Item::PublicIp6 => "public-ipv6",
            Item::Overwrite => "public-ip-overwrite",
            Item::Overwrite6 => "public-ipv6-overwrite",
            Item::NodeIp => "node-public-ip",
            Item::NodeIp6 => "node-public-ipv6",
        }
    }

    /// Data, public address, overwrite and node address of a family.
    fn family(family: Family) -> [Item; 4] {
        match family {
            Family::V4 => [Item::Data, Item::PublicIp, Item::Overwrite, Item::NodeIp],
            Family::V6 => [Item::Data6, Item::PublicIp6, Item::Overwrite6, Item::NodeIp6],
        }
    }
}

/// A prefix that makes no annotation names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "--kube-annotation-prefix {0:?} cannot begin an annotation: write lower-case labels with dots, then perhaps a slash \
     and a word, such as flannel.alpha.coreos.com or example.org/pods"
)]
pub struct BadPrefix(pub String);

/// Full names of the annotations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// Up to where the suffix begins: `flannel.alpha.coreos.com/`.
    prefix: String,
}

impl Names {
    /// From `--kube-annotation-prefix`: a slash is added if there is none, then a dash unless it ends in
    /// one of the two. Checked as a whole (F-57), and for the lengths the API server allows.
    ///
    /// # Errors
    /// More than one slash, fewer than two labels, or anything but `a`–`z`, digits, `_` and `-`.
    pub fn new(given: &str) -> Result<Names, BadPrefix> {
        let bad = || BadPrefix(given.to_owned());
        let mut prefix = given.to_owned();
        if !prefix.contains('/') {
            prefix.push('/');
        }
        if !prefix.ends_with(['/', '-']) {
            prefix.push('-');
        }
        let (domain, word) = prefix.split_once('/').ok_or_else(bad)?;
        let plain = |text: &str| {
            !text.is_empty() && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'))
        };
        let labels = domain.split('.').count();
        let longest = Item::ALL.iter().map(|item| item.suffix().len()).max().unwrap_or(0);
        let good = labels >= 2
            && domain.split('.').all(plain)
            && (word.is_empty() || plain(word) && word.len() > 1)
            && domain.len() <= 253
            && word.len() + longest <= 63;
        if good { Ok(Names { prefix }) } else { Err(bad()) }
    }

    /// The full name.
    pub fn of(&self, item: Item) -> String {
        format!("{}{}", self.prefix, item.suffix())
    }

    /// Which of ours a name is.
    pub fn item(&self, name: &str) -> Option<Item> {
        let suffix = name.strip_prefix(self.prefix.as_str())?;
        Item::ALL.into_iter().find(|item| item.suffix() == suffix)
    }
}

/// Our annotations as a Node has them, and no others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Annotations {
    values: [Option<Box<str>>; Item::ALL.len()],
    /// Bits of those whose value was longer than [`LONGEST`].
    long: u16,
}

impl Annotations {
    /// Notes a value; one that is too long is only remembered as such.
    pub fn set(&mut self, item: Item, value: &str) {
        let bit = 1 << item as u16;
        if value.len() > LONGEST {
            self.long |= bit;
            self.values[item as usize] = None;
        } else {
            self.long &= !bit;
            self.values[item as usize] = Some(value.into());
        }
    }

    /// The value, if it is there and not too long.
    pub fn get(&self, item: Item) -> Option<&str> {
        self.values[item as usize].as_deref()
    }

    /// As [`Annotations::get`]; an empty value is none.
    fn filled(&self, item: Item) -> Option<&str> {
        self.get(item).filter(|text| !text.is_empty())
    }

    fn is_long(&self, item: Item) -> bool {
        self.long & (1 << item as u16) != 0
    }

    /// Whether the Node takes part at all.
    pub fn managed(&self) -> bool {
        self.get(Item::Managed) == Some("true")
    }

    /// What the Node publishes. A family that cannot be read is as in `before`, and the second value says
    /// what is wrong in one sentence.
    pub fn read(&self, names: &Names, before: Option<&LeaseAttrs>) -> (LeaseAttrs, Option<String>) {
        let backend_type = self.get(Item::BackendType).unwrap_or_default().to_owned();
        let mut attrs = LeaseAttrs { backend_type, ..LeaseAttrs::default() };
        let mut wrong = Vec::new();
        for family in Family::BOTH {
            let half = self.half(names, family, &attrs.backend_type);
            let (public, data) = half.unwrap_or_else(|why| {
                wrong.push(why);
                before.map_or((None, None), |old| (old.public(family), old.data(family).map(Into::into)))
            });
            match (family, public) {
                (Family::V4, public) => {
                    attrs.public_ip =
                        public.and_then(|ip| if let IpAddr::V4(ip) = ip { Some(ip) } else { None });
                    attrs.backend_data = data;
                }
                (Family::V6, public) => {
                    attrs.public_ip6 =
                        public.and_then(|ip| if let IpAddr::V6(ip) = ip { Some(ip) } else { None });
                    attrs.backend_v6_data = data;
                }
            }
        }
        (attrs, (!wrong.is_empty()).then(|| wrong.join("; ")))
    }

    /// Public address and backend data of one family.
    fn half(
        &self,
        names: &Names,
        family: Family,
        backend_type: &str,
    ) -> Result<(Option<IpAddr>, Option<Box<str>>), String> {
        let [data_item, public_item, ..] = Item::family(family);
        for item in [data_item, public_item] {
            if self.is_long(item) {
                return Err(format!("annotation {} is longer than {LONGEST} bytes", names.of(item)));
            }
        }
        let public = self.address(names, public_item, family)?;
        let data = self.filled(data_item).filter(|text| *text != "null");
        if let Some(text) = data {
            let complaint = match backend_type {
                "vxlan" => vtep::read(text).err().map(|e| e.to_string()),
                _ => text.parse::<Json>().err().map(|e| e.to_string()),
            };
            if let Some(complaint) = complaint {
                return Err(format!("annotation {}: {complaint}", names.of(data_item)));
            }
        }
        Ok((public, data.map(Into::into)))
    }

    /// An address; empty and unspecified ones are none.
    fn address(&self, names: &Names, item: Item, family: Family) -> Result<Option<IpAddr>, String> {
        let Some(text) = self.filled(item) else { return Ok(None) };
        match parse_ip(text).filter(|ip| Family::of(*ip) == family) {
            Some(ip) => Ok(Some(ip).filter(|ip| !ip.is_unspecified())),
            None => Err(format!("annotation {} {text:?} is not an {family} address", names.of(item))),
        }
    }

    /// The address an operator wants this node to use as its own (`node-public-ip`).
    ///
    /// # Errors
    /// It is not an address of that family.
    pub fn node_address(&self, names: &Names, family: Family) -> Result<Option<IpAddr>, String> {
        self.address(names, Item::family(family)[3], family)
    }

    /// What has to be written so that the Node publishes `attrs`: names with their new value, `None` for
    /// one of ours that has to go. Empty when all is as it should be. The second value complains about
    /// overwriting annotations that are no addresses; those are passed over.
    pub fn changes(
        &self,
        names: &Names,
        attrs: &LeaseAttrs,
    ) -> (Vec<(String, Option<String>)>, Option<String>) {
        let mut wanted: [Option<String>; Item::OURS] = Default::default();
        let mut wrong = Vec::new();
        wanted[Item::Managed as usize] = Some("true".to_owned());
        wanted[Item::BackendType as usize] = Some(attrs.backend_type.clone());
        for family in Family::BOTH {
            let [data, public, overwrite, _] = Item::family(family);
            if !publishes(attrs, family) {
                continue;
            }
            let overwrite = self.address(names, overwrite, family).unwrap_or_else(|why| {
                wrong.push(why);
                None
            });
            let address = overwrite.or(attrs.public(family)).map(|ip| ip.to_string());
            wanted[data as usize] = Some(attrs.data(family).unwrap_or("null").to_owned());
            wanted[public as usize] =
                address.or_else(|| (family == Family::V4).then(|| "0.0.0.0".to_owned()));
        }
        let changes = Item::ALL.into_iter().zip(wanted).filter_map(|(item, want)| {
            let same = want.as_deref() == self.get(item) && !self.is_long(item);
            (!same).then(|| (names.of(item), want))
        });
        (changes.collect(), (!wrong.is_empty()).then(|| wrong.join("; ")))
    }
}

/// Whether the annotations of a family are written (flannel.md 4.6, 5).
fn publishes(attrs: &LeaseAttrs, family: Family) -> bool {
    let (data, public) = (attrs.data(family).is_some(), attrs.public(family).is_some());
    match (family, attrs.backend_type.as_str()) {
        (_, "vxlan") => data,
        (Family::V4, _) => true,
        (Family::V6, "wireguard") => data && public,
        (Family::V6, "host-gw" | "extension") => public,
        (Family::V6, _) => false,
    }
}

/// The strategic merge patch that makes these changes.
pub fn patch(changes: &[(String, Option<String>)]) -> String {
    let members = changes.iter().map(|(name, value)| (name.as_str(), Json::from(value.clone())));
    let annotations = Json::object(members);
    Json::object([("metadata", Json::object([("annotations", annotations)]))]).to_compact()
}

/// The strategic merge patch that says the Node's network is there (flannel.md 4.7); `now` is RFC 3339 in
/// whole seconds.
pub fn condition_patch(now: &str) -> String {
    let condition = Json::object([
        ("type", Json::from("NetworkUnavailable")),
        ("status", "False".into()),
        ("lastHeartbeatTime", now.into()),
        ("lastTransitionTime", now.into()),
        ("reason", "FlannelIsUp".into()),
        ("message", "Flannel is running on this node".into()),
    ]);
    Json::object([("status", Json::object([("conditions", Json::array([condition]))]))]).to_compact()
}

/// The subnets of a Node: `spec.podCIDRs`, or `spec.podCIDR` when the list is empty. None at all is fine.
///
/// # Errors
/// More than two, or one that is no network.
pub fn pod_cidrs<S: AsRef<str>>(list: &[S], single: Option<&str>) -> Result<Subnets, String> {
    if list.len() > 2 {
        return Err(format!("spec.podCIDRs has {} networks, two at most can be used", list.len()));
    }
    let single = single.filter(|text| !text.is_empty() && list.is_empty());
    let mut subnets = Subnets::default();
    for text in list.iter().map(AsRef::as_ref).chain(single) {
        match parse_cidr(text).map(|net| net.trunc()) {
            Some(IpNet::V4(net)) => drop(subnets.v4.get_or_insert(net)),
            Some(IpNet::V6(net)) => drop(subnets.v6.get_or_insert(net)),
            None => return Err(format!("podCIDR {text:?} is not a network such as 10.244.1.0/24")),
        }
    }
    Ok(subnets)
}

#[cfg(test)]
mod tests;
