//! Which iptables this host has, and which of the two variants it uses.

use std::path::{Path, PathBuf};
use std::process::Command;

use model::Family;
use plan::facts::{self, IptablesTool};
use plan::state::iptables::Variant;
use plan::state::{NftFamily, TableKey};

use super::{LIMIT, Place, Program, Tables, Version};
use crate::process;

/// Where programs are when nobody says.
const DIRECTORIES: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Chains of the kubelet, made so that others find its variant (since Kubernetes 1.24, and since 1.17).
const KUBELET: [&str; 2] = ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"];
/// All tables of iptables.
const TABLES: [&str; 5] = ["filter", "nat", "mangle", "raw", "security"];

/// What the programs of a family are called without a variant.
pub fn plain(family: Family) -> &'static str {
    if family == Family::V4 { "iptables" } else { "ip6tables" }
}

/// A program of the path that has its companions.
fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").filter(|path| !path.is_empty()).unwrap_or_else(|| DIRECTORIES.into());
    let whole = |path: &PathBuf| {
        ["", "-save", "-restore"].iter().all(|part| {
            let mut file = path.clone().into_os_string();
            file.push(part);
            PathBuf::from(file).is_file()
        })
    };
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(whole)
}

/// `iptables v1.8.9 (nf_tables)`; before 1.8 there was one variant, and nothing in brackets.
fn parse_version(text: &str) -> Option<(Version, Variant)> {
    let mut words = text.split_whitespace().skip(1);
    let mut numbers = words.next()?.trim_start_matches('v').split('.').map(|n| n.parse().unwrap_or(0));
    let version = (numbers.next()?, numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let nft = words.next() == Some("(nf_tables)");
    Some((version, if nft { Variant::Nft } else { Variant::Legacy }))
}

impl Tables {
    /// Asked once for each program.
    fn version(&mut self, path: &Path) -> Option<(Version, Variant)> {
        if let Some(known) = self.versions.get(path) {
            return Some(*known);
        }
        let output = process::run(Command::new(path).arg("--version"), Vec::new(), LIMIT).ok()??;
        let found = parse_version(&String::from_utf8_lossy(&output.stdout))?;
        self.versions.insert(path.to_owned(), found);
        Some(found)
    }

    /// The iptables for rules of ours, by family. Those found are remembered, and the variant is chosen
    /// once: rules must not wander because somebody else's came or went.
    pub(crate) fn tools(&mut self, place: &mut Place<'_>) -> facts::Iptables {
        let there = |tables: &mut Tables, variant| {
            Family::BOTH.iter().any(|family| tables.program(variant, *family).is_some())
        };
        let variant = match self.variant {
            Some(variant) => variant,
            None => match (there(self, Variant::Nft), there(self, Variant::Legacy)) {
                (true, true) => self.choose(place),
                (true, false) => Variant::Nft,
                (false, true) => Variant::Legacy,
                (false, false) => return facts::Iptables::new(),
            },
        };
        self.variant = Some(variant);
        let tool = |family: Family| {
            let program = self.program(variant, family)?;
            Some((family, IptablesTool { variant, fully_random: program.version >= (1, 6, 2) }))
        };
        Family::BOTH.into_iter().filter_map(tool).collect()
    }

    /// The program of a variant, under its own name or as what the plain name leads to.
    pub(super) fn program(&mut self, variant: Variant, family: Family) -> Option<Program> {
        if let Some(program) = self.programs.get(&(variant, family)) {
            return Some(program.clone());
        }
        for name in [variant.program(family), plain(family)] {
            let Some(path) = find(name) else { continue };
            let Some((version, is)) = self.version(&path) else { continue };
            if is == variant {
                let program = Program { path, version };
                self.programs.insert((variant, family), program.clone());
                return Some(program);
            }
        }
        None
    }

    /// As the wrappers of Kubernetes decide: where the kubelet has its chains, else where more rules are,
    /// else what the plain name leads to.
    fn choose(&mut self, place: &mut Place<'_>) -> Variant {
        let mut rules = [0usize; 2];
        let mut kubelet_in_legacy = false;
        for family in Family::BOTH {
            let nft_family = if family == Family::V4 { NftFamily::Ip } else { NftFamily::Ip6 };
            let key = |name: &str| TableKey { family: nft_family, name: name.to_owned() };
            if KUBELET.iter().any(|chain| place.nft.has_chain(&key("mangle"), chain).unwrap_or(false)) {
                return Variant::Nft;
            }
            let count = |name: &&str| place.nft.rules(&key(name), None).map_or(0, |rules| rules.len());
            rules[0] += TABLES.iter().map(count).sum::<usize>();
            // Asking for a table of iptables-legacy would make it.
            if place.legacy_tables(family).is_empty() {
                continue;
            }
            let Some(program) = self.program(Variant::Legacy, family) else { continue };
            let Ok(text) = self.ask(place, &program, "-save", &[]) else { continue };
            kubelet_in_legacy |= KUBELET.iter().any(|chain| text.contains(&format!(":{chain} ")));
            rules[1] += text.lines().filter(|line| line.starts_with('-')).count();
        }
        match (kubelet_in_legacy, rules) {
            (true, _) => Variant::Legacy,
            (false, [nft, legacy]) if nft > legacy => Variant::Nft,
            (false, [nft, legacy]) if legacy > nft => Variant::Legacy,
            _ => {
                let default = Family::BOTH.into_iter().find_map(|family| self.version(&find(plain(family))?));
                default.map_or(Variant::Nft, |(_, variant)| variant)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_say_the_variant() {
        for (text, wanted) in [
            ("iptables v1.8.9 (nf_tables)\n", Some(((1, 8, 9), Variant::Nft))),
            ("ip6tables v1.8.4 (legacy)\n", Some(((1, 8, 4), Variant::Legacy))),
            ("iptables v1.6.1\n", Some(((1, 6, 1), Variant::Legacy))),
            ("iptables v1.4.21", Some(((1, 4, 21), Variant::Legacy))),
            ("iptables v1.8\n", Some(((1, 8, 0), Variant::Legacy))),
            ("", None),
        ] {
            assert_eq!(parse_version(text), wanted, "{text}");
        }
    }
}
