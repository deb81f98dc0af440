//! What an attachment leaves in the kernel, in a form two programs can be compared by, and the run of one
//! configuration through ours and Debian's.

use kernel::Netns;
use model::gojson::Json;

use crate::harness::{DEBIAN, Host, Pod, ip_in, pod, stable, with};

/// Names that differ from run to run.
fn plain(text: &str) -> String {
    let is_random = |word: &str| {
        word.len() == 12 && word.starts_with("veth") && word[4..].bytes().all(|b| b.is_ascii_hexdigit())
    };
    let mut out = String::new();
    let mut word = String::new();
    for c in text.chars().chain(['\n']) {
        if c.is_ascii_alphanumeric() {
            word.push(c);
            continue;
        }
        out.push_str(if is_random(&word) { "vethX" } else { &word });
        word.clear();
        out.push(c);
    }
    out
}

/// The picked members of the objects in a list, one line each.
pub fn pick(text: &str, keys: &[&str]) -> String {
    let list: Json = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
    let mut lines = Vec::new();
    let is_empty = |item: &&Json| item.members().is_none_or(<[_]>::is_empty);
    for item in list.as_array().unwrap_or_default().iter().filter(|item| !is_empty(item)) {
        let mut line = String::new();
        for key in keys {
            let value = key.split('.').try_fold(item, |item, key| item.get(key));
            line.push_str(&format!("{key}={} ", value.map(Json::to_compact_sorted).unwrap_or_default()));
        }
        lines.push(line);
    }
    lines.sort();
    lines.join("\n") + "\n"
}

/// Devices, addresses, routes, policy rules of a namespace.
pub fn picture(netns: &Netns) -> String {
    let link = ["ifname", "mtu", "flags", "linkinfo.info_kind", "linkinfo.info_data", "ifalias"];
    // The state of the carrier is told a moment after it changed.
    let links = ip_in(netns, "-j -d link show").replace("\"NO-CARRIER\",", "");
    let mut text = pick(&links, &link);
    let addresses: Json = ip_in(netns, "-j addr show scope global").parse().unwrap();
    for device in addresses.as_array().unwrap() {
        let is_empty = |item: &Json| item.members().is_none_or(<[_]>::is_empty);
        let info = device.get("addr_info").filter(|i| i.as_array().is_some_and(|i| !i.iter().all(is_empty)));
        if let Some(info) = info {
            let name = device.get("ifname").map(Json::to_compact).unwrap_or_default();
            let keys = ["family", "local", "prefixlen", "scope", "broadcast"];
            text.push_str(&format!("{name}: {}", pick(&info.to_compact(), &keys)));
        }
    }
    let route = ["dst", "gateway", "dev", "protocol", "scope", "prefsrc", "metric", "table", "type"];
    for family in if kernel::sysctl::has_ipv6() { &["-4", "-6"][..] } else { &["-4"] } {
        let all: Json = ip_in(netns, &format!("{family} -j route show table all")).parse().unwrap();
        // Those that come with addresses by themselves say nothing.
        let told = all.as_array().unwrap().iter().filter(|r| {
            let text = r.to_compact();
            !text.contains("fe80::") && !text.contains("ff00::") && !text.contains("\"local\"")
        });
        let told = told.filter(|r| !r.to_compact().contains("\"table\":\"local\""));
        text.push_str(&pick(&Json::array(told.cloned()).to_compact(), &route));
        text.push_str(&ip_in(netns, &format!("{family} rule show")));
    }
    plain(&text)
}

/// The values of kernel parameters.
pub fn parameters(netns: &Netns, keys: &[&str]) -> String {
    let value = |key: &&str| format!("{key}={}\n", kernel::sysctl::read_in(netns, key).unwrap_or_default());
    keys.iter().map(value).collect()
}

/// One configuration.
#[derive(Clone, Copy)]
pub struct Case<'a> {
    /// Plugin.
    pub plugin: &'a str,
    /// `cniVersion`.
    pub version: &'a str,
    /// Members of the document.
    pub members: &'a str,
    /// Members of `ipam`; empty for no `ipam`.
    pub ipam: &'a str,
    /// `CNI_ARGS`.
    pub args: &'a str,
}

impl Case<'_> {
    /// The document on a host.
    pub fn conf(&self, host: &Host) -> String {
        let ipam = self.ipam.replace("DIR", &host.path("networks"));
        let ipam = if ipam.is_empty() { String::new() } else { format!(", \"ipam\": {{{ipam}}}") };
        let members = if self.members.is_empty() { String::new() } else { format!(", {}", self.members) };
        let (version, plugin) = (self.version, self.plugin);
        format!(r#"{{"cniVersion": "{version}", "name": "net", "type": "{plugin}"{members}{ipam}}}"#)
    }

    /// ADD, CHECK, DEL twice with the programs of `dirs` on a fresh host: the result and everything that
    /// stands after ADD and after DEL.
    pub fn run(&self, dirs: &[&str], prepare: fn(&Host), keys: &[&str]) -> String {
        let host = Host::new();
        prepare(&host);
        let (netns, pod) = pod("c1");
        let what = format!("{} {} {} {} {dirs:?}", self.plugin, self.version, self.members, self.ipam);
        let conf = self.conf(&host);
        let result = self.call(&host, dirs, "ADD", &pod, &conf).expect(&what);
        let mut text = format!("result {}\n", stable(&result));
        text.push_str(&format!("pod {}host {}", picture(&netns), picture(&host.netns)));
        text.push_str(&parameters(&netns, keys));
        for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            text.push_str(&parameters(&host.netns, &[key]));
        }
        text.push_str(&format!("files {:?}\n", host.files("networks")));
        let told = with(&conf, "prevResult", result);
        if self.version >= "0.4.0" && dirs != [DEBIAN] {
            self.call(&host, dirs, "CHECK", &pod, &told).expect(&what);
        }
        for _ in 0..2 {
            self.call(&host, dirs, "DEL", &pod, &conf).expect(&what);
        }
        text.push_str(&format!("after DEL pod {}host {}", picture(&netns), picture(&host.netns)));
        text.push_str(&format!("files {:?}\n", host.files("networks")));
        assert_eq!(host.files("state/attachments"), [""; 0], "{what}");
        text
    }

    fn call(&self, host: &Host, dirs: &[&str], verb: &str, pod: &Pod, conf: &str) -> crate::harness::Answer {
        let mut command = host.prepare(dirs, self.plugin, verb, pod);
        command.env("CNI_ARGS", self.args);
        crate::harness::Answer::of(host.run(&mut command, conf))
    }

    /// Ours and Debian's leave the same, but for what `differs` takes out of both.
    #[track_caller]
    pub fn same_as_debian(&self, prepare: fn(&Host), keys: &[&str], differs: fn(&str) -> String) {
        let ours = Host::new();
        let have = differs(&self.run(&[&ours.bin().display().to_string()], prepare, keys));
        let want = differs(&self.run(&[DEBIAN], prepare, keys));
        let (a, b): (Vec<&str>, Vec<&str>) = (have.lines().collect(), want.lines().collect());
        let only = |x: &[&str], y: &[&str]| {
            let lines = x.iter().filter(|l| !y.contains(l));
            lines.map(|l| format!("  {l}\n")).collect::<String>()
        };
        assert!(
            have == want,
            "{} {} {} {}\nours only:\n{}theirs only:\n{}",
            self.plugin,
            self.version,
            self.members,
            self.ipam,
            only(&a, &b),
            only(&b, &a)
        );
    }
}
