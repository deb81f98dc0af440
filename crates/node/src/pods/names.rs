//! What runtimes call the pods of this host, by the records of our plugins (decision 0208). Reads, and needs no agent;
//! where nothing can be read there are addresses alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{ErrorKind, Read as _};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use kernel::Rtnl;
use model::cni::is_identifier;
use model::cni::record::{ATTACHMENTS, PodName, Record, STATE_DIR};
use model::goflag::near;

/// Most bytes of a record; ours have some hundred.
const LARGEST: u64 = 64 << 10;
/// Names that a sentence lists at most.
const LISTED: usize = 8;

/// A pod and where it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Its addresses in the order of its interfaces.
    pub addresses: Vec<IpAddr>,
    /// The host's ends of its veths.
    pub devices: Vec<String>,
    /// Files of its namespace, as the runtime named them.
    pub paths: Vec<PathBuf>,
}

/// All pods of this host that have a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    all: BTreeMap<PodName, Place>,
    /// Why there may be more.
    unread: Option<String>,
}

/// The directory of our plugins' records.
pub fn state_dir() -> PathBuf {
    let own = std::env::var_os("LODEN_CNI_STATE_DIR").filter(|dir| !dir.is_empty());
    own.map_or_else(|| PathBuf::from(STATE_DIR), PathBuf::from)
}

impl Names {
    /// Reads the records of this host.
    pub fn read() -> Names {
        let dir = state_dir().join(ATTACHMENTS);
        let (records, unread) = records(&dir);
        if records.iter().all(|record| record.pod.is_none()) {
            return Names { unread, ..Names::default() };
        }
        let links = Rtnl::open().and_then(|mut rtnl| rtnl.links()).unwrap_or_default();
        let devices: BTreeSet<String> = links.iter().map(|link| link.link.name.to_string()).collect();
        Names { unread, ..Names::of(records, &devices, &|path| path.exists()) }
    }

    /// Those of records whose device is among the host's, or whose namespace is there if they have none: DEL may have
    /// failed.
    pub fn of(
        mut records: Vec<Record>,
        devices: &BTreeSet<String>,
        is_there: &dyn Fn(&Path) -> bool,
    ) -> Names {
        records.sort_by(|a, b| (&a.ifname, &a.netns).cmp(&(&b.ifname, &b.netns)));
        let mut names = Names::default();
        for record in records.into_iter().filter(|record| record.is_complete && record.made_interface()) {
            let path = PathBuf::from(&record.netns);
            let lives = match record.host_interface.as_str() {
                "" => is_there(&path),
                device => devices.contains(device),
            };
            let Some(pod) = record.pod.filter(|_| lives) else { continue };
            let place = names.all.entry(pod).or_default();
            place.addresses.extend(record.addresses.iter().map(ipnet::IpNet::addr));
            place.devices.extend(Some(record.host_interface).filter(|device| !device.is_empty()));
            if !place.paths.contains(&path) {
                place.paths.push(path);
            }
        }
        names
    }

    /// The pod a word means: `namespace/name`, or the name where no other namespace has it here.
    ///
    /// # Errors
    /// One sentence, with what may be meant.
    pub fn find(&self, word: &str) -> Result<(&PodName, &Place), String> {
        match self.meant(word).as_slice() {
            [only] => Ok((*only, &self.all[*only])),
            [] => Err(format!("no pod of this host is called {word:?}{}", self.hint(word))),
            several => Err(format!(
                "{word:?} is the name of several pods of this host: {}; write the namespace, too",
                list(several)
            )),
        }
    }

    /// What [`Names::find`] said, of an end that need not be on this host.
    pub fn elsewhere(&self, word: &str, why: String) -> String {
        match may_be_one(word) && self.meant(word).is_empty() {
            true => format!("{why}; of a pod of another host, give the address"),
            false => why,
        }
    }

    fn meant(&self, word: &str) -> Vec<&PodName> {
        let is_meant = |pod: &&PodName| match word.split_once('/') {
            Some((namespace, name)) => pod.namespace() == namespace && pod.name() == name,
            None => pod.name() == word,
        };
        self.all.keys().filter(is_meant).collect()
    }

    /// The second half of a sentence: the one that may be meant, else all, else why there is none.
    fn hint(&self, word: &str) -> String {
        let unread = self.unread.as_ref().map(|why| format!("; {why}")).unwrap_or_default();
        if self.all.is_empty() {
            let none = "; names are known of pods that a runtime had attached by plugins of Loden, with \
                        K8S_POD_NAMESPACE and K8S_POD_NAME in CNI_ARGS";
            return if unread.is_empty() { none.to_owned() } else { unread };
        }
        let whole: Vec<String> = self.all.keys().map(PodName::to_string).collect();
        let with =
            |name: &str| self.all.keys().filter(|pod| pod.name() == name).map(PodName::to_string).collect();
        let close: Vec<String> = match word.split_once('/') {
            // The namespace is what is wrong, most likely.
            Some((_, name)) if !self.meant(name).is_empty() => with(name),
            Some(_) => near(word, whole.iter().map(String::as_str)).into_iter().map(str::to_owned).collect(),
            None => near(word, self.all.keys().map(PodName::name)).map(with).unwrap_or_default(),
        };
        if !close.is_empty() {
            return format!("; did you mean {}?{unread}", close.join(" or "));
        }
        format!("; this host has {}{unread}", list(&self.all.keys().collect::<Vec<_>>()))
    }

    /// Where a pod is.
    pub fn place(&self, pod: &PodName) -> Option<&Place> {
        self.all.get(pod)
    }

    /// The pod behind a device of the host.
    pub fn of_device(&self, device: &str) -> Option<&PodName> {
        self.only(|place| place.devices.iter().any(|known| known == device))
    }

    /// The pod with an address.
    pub fn of_address(&self, address: IpAddr) -> Option<&PodName> {
        self.only(|place| place.addresses.contains(&address))
    }

    /// The pod of a namespace, by its file.
    pub fn of_path(&self, path: &Path) -> Option<&PodName> {
        let id = |path: &Path| fs::metadata(path).ok().map(|data| (data.dev(), data.ino()));
        let wanted = id(path)?;
        self.only(|place| place.paths.iter().any(|known| id(known) == Some(wanted)))
    }

    /// A wrong name is worse than none.
    fn only(&self, is_it: impl Fn(&Place) -> bool) -> Option<&PodName> {
        let mut found = self.all.iter().filter(|(_, place)| is_it(place));
        match (found.next(), found.next()) {
            (Some((pod, _)), None) => Some(pod),
            _ => None,
        }
    }
}

impl Place {
    /// The address to send to from another: one of its family, else the first.
    pub fn address(&self, from: Option<IpAddr>) -> Option<IpAddr> {
        let same = |address: &&IpAddr| from.is_none_or(|from| from.is_ipv4() == address.is_ipv4());
        self.addresses.iter().find(same).or(self.addresses.first()).copied()
    }
}

/// Whether a word can be the name of a pod, with its namespace or without; if it cannot, something else is misspelt.
pub fn may_be_one(word: &str) -> bool {
    let is_number = |c: char| c.is_ascii_digit() || c == '.';
    match word.split_once('/') {
        Some((namespace, name)) => is_identifier(namespace) && is_identifier(name),
        None => is_identifier(word) && !word.chars().all(is_number),
    }
}

fn list(pods: &[&PodName]) -> String {
    let mut named: Vec<String> = pods.iter().take(LISTED).map(ToString::to_string).collect();
    if pods.len() > LISTED {
        named.push(format!("and {} more", pods.len() - LISTED));
    }
    named.join(", ")
}

/// Every record below a directory, and why there may be more.
fn records(dir: &Path) -> (Vec<Record>, Option<String>) {
    let (mut records, mut unread) = (Vec::new(), None);
    let mut failed = |path: &Path, error: &std::io::Error| {
        // Without the directory there is nothing, and what went away meanwhile is gone.
        if ![ErrorKind::NotFound, ErrorKind::NotADirectory].contains(&error.kind()) {
            unread =
                Some(format!("names of pods are kept in {}, which cannot be read: {error}", path.display()));
        }
    };
    let mut entries = |dir: &Path| match fs::read_dir(dir) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(error) => {
            failed(dir, &error);
            Vec::new()
        }
    };
    let networks: Vec<PathBuf> = entries(dir);
    let files: Vec<PathBuf> = networks.iter().flat_map(|network| entries(network)).collect();
    for file in files {
        let mut text = String::new();
        match File::open(&file).and_then(|open| open.take(LARGEST).read_to_string(&mut text)) {
            Ok(_) => records.extend(Record::parse(&text)),
            Err(error) => failed(&file, &error),
        }
    }
    (records, unread)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

    use super::*;

    /// Plugin, pod, path of the namespace, host's device, addresses.
    fn record((plugin, pod, netns, device, addresses): (&str, &str, &str, &str, &[&str])) -> Record {
        Record {
            plugin: plugin.to_owned(),
            ifname: "eth0".to_owned(),
            netns: netns.to_owned(),
            host_interface: device.to_owned(),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            pod: pod.parse().ok(),
            is_complete: true,
            ..Record::default()
        }
    }

    fn names() -> Names {
        let mut records: Vec<Record> = [
            ("bridge", "shop/web-0", "/run/netns/a", "veth1", &["10.1.0.2/24", "fd00::2/64"][..]),
            ("portmap", "shop/web-0", "/run/netns/a", "", &["10.1.0.2/24"]),
            ("ptp", "shop/db-0", "/run/netns/b", "veth2", &["10.1.0.3/32"]),
            ("bridge", "test/db-0", "/run/netns/c", "veth3", &["10.1.0.4/24"]),
            ("macvlan", "shop/lan", "/run/netns/d", "", &["10.9.0.2/24"]),
            ("ipvlan", "shop/two", "/run/netns/e", "", &["10.1.0.4/24"]),
            // Without a name, and those that are gone.
            ("bridge", "", "/run/netns/f", "veth4", &["10.1.0.5/24"]),
            ("bridge", "old/web-0", "/run/netns/a", "veth9", &["10.1.0.2/24"]),
            ("portmap", "old/web-0", "/run/netns/a", "", &["10.1.0.2/24"]),
            ("macvlan", "old/lan", "/run/netns/gone", "", &["10.9.0.2/24"]),
        ]
        .map(record)
        .into();
        let half =
            Record { is_complete: false, ..record(("bridge", "half/web-0", "/run/netns/a", "veth1", &[])) };
        records.push(half);
        let devices = ["veth1", "veth2", "veth3", "veth4"].map(str::to_owned).into();
        Names::of(records, &devices, &|path| path != Path::new("/run/netns/gone"))
    }

    #[test]
    fn a_word_means_one_pod_or_says_which_are_meant() {
        let names = names();
        for (word, want) in [
            ("shop/web-0", Ok("shop/web-0")),
            ("web-0", Ok("shop/web-0")),
            ("test/db-0", Ok("test/db-0")),
            ("lan", Ok("shop/lan")),
            (
                "db-0",
                Err(
                    "\"db-0\" is the name of several pods of this host: shop/db-0, test/db-0; write the namespace, too",
                ),
            ),
            ("wbe-0", Err("no pod of this host is called \"wbe-0\"; did you mean shop/web-0?")),
            ("db-1", Err("no pod of this host is called \"db-1\"; did you mean shop/db-0 or test/db-0?")),
            ("shop/web-1", Err("no pod of this host is called \"shop/web-1\"; did you mean shop/web-0?")),
            ("old/web-0", Err("no pod of this host is called \"old/web-0\"; did you mean shop/web-0?")),
            (
                "quite-another",
                Err(
                    "no pod of this host is called \"quite-another\"; this host has shop/db-0, shop/lan, shop/two, shop/web-0, test/db-0",
                ),
            ),
            (
                "/",
                Err(
                    "no pod of this host is called \"/\"; this host has shop/db-0, shop/lan, shop/two, shop/web-0, test/db-0",
                ),
            ),
        ] {
            let got = names.find(word).map(|(pod, _)| pod.to_string());
            assert_eq!(got.as_deref().map_err(String::as_str), want, "{word}");
        }
        let none = Names::default().find("web-0").unwrap_err();
        assert!(none.contains("with K8S_POD_NAMESPACE and K8S_POD_NAME in CNI_ARGS"), "{none}");
        let unread = Some("they cannot be read".to_owned());
        let unread = Names { unread, ..Names::default() }.find("web\u{1b}").unwrap_err();
        assert_eq!(unread, "no pod of this host is called \"web\\u{1b}\"; they cannot be read");
    }

    #[test]
    fn what_can_be_no_name_is_told_apart() {
        for (word, want) in [
            ("web-0", true),
            ("shop/web-0", true),
            ("shop/10.0.0.1", true),
            ("10.244.1.300", false),
            ("fd00::1::2", false),
            ("a/b/c", false),
            ("/a", false),
            ("a/", false),
            ("we b", false),
            ("", false),
        ] {
            assert_eq!(may_be_one(word), want, "{word:?}");
        }
        let said = |word: &str| names().elsewhere(word, String::new());
        assert_eq!(said("web-9"), "; of a pod of another host, give the address");
        assert_eq!((said("db-0"), said("10.244.1.300")), (String::new(), String::new()));
    }

    #[test]
    fn what_is_there_has_its_name() {
        let names = names();
        let text = |pod: Option<&PodName>| pod.map(PodName::to_string);
        for (device, want) in [
            ("veth1", Some("shop/web-0")),
            ("veth3", Some("test/db-0")),
            ("veth4", None),
            ("veth9", None),
            ("", None),
        ] {
            assert_eq!(text(names.of_device(device)).as_deref(), want, "{device}");
        }
        for (address, want) in [
            ("10.1.0.2", Some("shop/web-0")),
            ("fd00::2", Some("shop/web-0")),
            ("10.9.0.2", Some("shop/lan")),
            // Two have it.
            ("10.1.0.4", None),
            ("10.1.0.5", None),
        ] {
            assert_eq!(text(names.of_address(address.parse().unwrap())).as_deref(), want, "{address}");
        }
        let (_, web) = names.find("web-0").unwrap();
        for (from, want) in [(None, "10.1.0.2"), (Some("10.0.0.1"), "10.1.0.2"), (Some("fd00::1"), "fd00::2")]
        {
            let from = from.map(|from| from.parse().unwrap());
            assert_eq!(web.address(from), Some(want.parse().unwrap()), "{from:?}");
        }
    }

    #[test]
    fn files_of_any_kind_are_read() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(records(&dir.path().join("none")), (Vec::new(), None));
        let good = record(("bridge", "shop/web-0", "/run/netns/a", "veth1", &["10.1.0.2/24"]));
        let network = dir.path().join("cbr0");
        fs::create_dir(&network).unwrap();
        fs::create_dir(network.join("a directory")).unwrap();
        let text = good.text();
        for (file, bytes) in [
            ("good.bridge", text.as_bytes()),
            ("cut.bridge", &text.as_bytes()[..40]),
            ("empty.bridge", b""),
            ("binary.bridge", b"\xff\xfe"),
            ("other", b"[]"),
        ] {
            fs::write(network.join(file), bytes).unwrap();
        }
        fs::write(dir.path().join("a file"), "x").unwrap();
        fs::write(network.join("large"), vec![b' '; 2 * LARGEST as usize]).unwrap();
        assert_eq!(records(dir.path()).0, [good]);
    }
}
