//! The index beside a store, in parts by container.
//!
//! ```text
//! <state>/ipam/<hash of the store's path>.parts/head    <time of the store's directory> <generation> <reservations>
//! <state>/ipam/<hash of the store's path>.parts/a7      <generation> <checksum> LF, then a line for each reservation
//! ```
//!
//! A part of another generation than the head's is of an index that was replaced, and holds nothing. The head is
//! written last: a writer that is killed before leaves one whose time is not the directory's.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::{Entry, Owner, Place};
use crate::names;
use crate::record::overwrite;

/// Time of a directory's last change, seconds and nanoseconds.
pub type Stamp = (i64, i64);

type Entries = BTreeMap<IpAddr, Entry>;

/// What the index says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The directory's state when it was written.
    pub stamp: Stamp,
    /// Which parts belong to it.
    generation: u64,
    /// Reservations of all parts.
    pub count: usize,
}

/// The directory of the index of one store.
pub struct Index(PathBuf);

/// Which part a container's reservations are in.
pub fn part_of(container_id: &str) -> u8 {
    (checksum(container_id) >> 32) as u8
}

impl Index {
    /// That of the store `dir`.
    pub fn of(state_dir: &Path, dir: &Path) -> Index {
        let place = &names::sha512(&dir.to_string_lossy())[..32];
        Index(state_dir.join("ipam").join(format!("{place}.parts")))
    }

    /// Its directory, which may not be there yet.
    pub fn place(&self) -> &Path {
        &self.0
    }

    /// `None` if there is none that can be read.
    pub fn head(&self) -> Option<Head> {
        let text = fs::read_to_string(self.0.join("head")).ok()?;
        let [s, ns, generation, count] = text.trim().split(' ').collect::<Vec<_>>().try_into().ok()?;
        Some(Head {
            stamp: (s.parse().ok()?, ns.parse().ok()?),
            generation: u64::from_str_radix(generation, 16).ok()?,
            count: count.parse().ok()?,
        })
    }

    /// The part a container is in; `None` if it is damaged.
    pub fn part(&self, head: &Head, container_id: &str) -> Option<Entries> {
        let mut entries = Entries::new();
        self.read(head, part_of(container_id), &mut entries).then_some(entries)
    }

    /// All parts; `None` if one is damaged.
    pub fn all(&self, head: &Head) -> Option<Entries> {
        let mut entries = Entries::new();
        (0..=u8::MAX).all(|part| self.read(head, part, &mut entries)).then_some(entries)
    }

    fn file(&self, part: u8) -> PathBuf {
        self.0.join(format!("{part:02x}"))
    }

    /// False if it is damaged in any way. A part that is not there, or of another generation, holds nothing.
    fn read(&self, head: &Head, part: u8, into: &mut Entries) -> bool {
        let Ok(text) = fs::read_to_string(self.file(part)) else { return true };
        let Some((first, lines)) = text.split_once('\n') else { return false };
        let numbers = first.split_once(' ').map(|(a, b)| [a, b].map(|n| u64::from_str_radix(n, 16).ok()));
        match numbers {
            Some([Some(generation), _]) if generation != head.generation => true,
            Some([Some(_), Some(sum)]) if sum == checksum(lines) => lines
                .split_terminator('\n')
                .all(|line| entry(line).map(|(ip, e)| into.insert(ip, e)).is_some()),
            _ => false,
        }
    }

    /// Writes one part, then the head.
    pub fn write_part<'a>(
        &self,
        head: &Head,
        part: u8,
        entries: impl Iterator<Item = (&'a IpAddr, &'a Entry)>,
    ) {
        let lines: String = entries.map(|(ip, entry)| line(*ip, entry)).collect();
        let text = format!("{:016x} {:016x}\n{lines}", head.generation, checksum(&lines));
        if overwrite(&self.file(part), text.as_bytes()).is_ok() {
            let Head { stamp: (s, ns), generation, count } = head;
            let text = format!("{s} {ns} {generation:016x} {count}\n");
            let _ = overwrite(&self.0.join("head"), text.as_bytes());
        }
    }

    /// Replaces the whole index.
    pub fn write_all(&self, stamp: Stamp, entries: &Entries) {
        let head = Head { stamp, generation: RandomState::new().hash_one(stamp), count: entries.len() };
        let mut parts: BTreeMap<u8, Vec<(&IpAddr, &Entry)>> = BTreeMap::new();
        for (ip, entry) in entries {
            parts.entry(part_of(&entry.owner.container_id)).or_default().push((ip, entry));
        }
        // The head is written with the last one; none of the others belongs to an index until then.
        let last = parts.pop_last().unwrap_or_default();
        for (part, entries) in parts {
            let lines: String = entries.into_iter().map(|(ip, entry)| line(*ip, entry)).collect();
            let text = format!("{:016x} {:016x}\n{lines}", head.generation, checksum(&lines));
            if overwrite(&self.file(part), text.as_bytes()).is_err() {
                return;
            }
        }
        self.write_part(&head, last.0, last.1.into_iter());
    }
}

fn line(ip: IpAddr, Entry { owner, place }: &Entry) -> String {
    let (boot, inode, path) =
        place.as_ref().map_or(("", 0, ""), |place| (&place.boot, place.inode, &place.path));
    let Owner { container_id, ifname } = owner;
    format!("{ip} {boot} {inode} {container_id}\r{ifname}\r{path}\n")
}

fn entry(line: &str) -> Option<(IpAddr, Entry)> {
    let (ip, rest) = line.split_once(' ')?;
    let [boot, inode, rest] = rest.splitn(3, ' ').collect::<Vec<_>>().try_into().ok()?;
    let [id, ifname, path] = rest.splitn(3, '\r').collect::<Vec<_>>().try_into().ok()?;
    let owner = Owner { container_id: id.to_owned(), ifname: ifname.to_owned() };
    let (boot, path) = (boot.to_owned(), path.to_owned());
    let place = Some(Place { boot, inode: inode.parse().ok()?, path }).filter(|place| !place.boot.is_empty());
    Some((ip.parse().ok()?, Entry { owner, place }))
}

/// FNV-1a: an index is written in place, and a writer may be killed half way.
fn checksum(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |sum, b| (sum ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_read_back_and_damage_is_noticed() {
        let dir = std::env::temp_dir().join(format!("loden-cni-index-{}", std::process::id()));
        let index = Index::of(&dir, Path::new("/networks/x"));
        assert_eq!(index.head(), None);
        let place = Place { boot: "b".to_owned(), inode: 7, path: "/run/netns/a b".to_owned() };
        let entry = |id: &str, place: Option<Place>| Entry {
            owner: Owner { container_id: id.to_owned(), ifname: "eth0".to_owned() },
            place,
        };
        let ip = |n: u8| IpAddr::from([10, 0, 0, n]);
        let all: Entries = (1..=200).map(|n| (ip(n), entry(&format!("c{n}"), Some(place.clone())))).collect();
        index.write_all((1, 2), &all);
        let head = index.head().unwrap();
        assert_eq!((head.stamp, head.count), ((1, 2), 200));
        assert_eq!(index.all(&head).as_ref(), Some(&all));
        assert_eq!(index.part(&head, "c9").unwrap().get(&ip(9)), all.get(&ip(9)));
        // One part is replaced; a new index makes the parts of the old one worth nothing.
        let foreign = entry("c9", None);
        index.write_part(&head, part_of("c9"), [(&ip(9), &foreign)].into_iter());
        assert_eq!(index.part(&head, "c9").unwrap(), Entries::from([(ip(9), foreign)]));
        index.write_all((3, 4), &Entries::from([(ip(1), entry("c1", None))]));
        let head = index.head().unwrap();
        assert_eq!(index.all(&head).unwrap().len(), 1);
        let file = index.file(part_of("c1"));
        let text = fs::read_to_string(&file).unwrap();
        // Not the generation, which may have these two digits.
        for damaged in [text.replace(" c1\r", " c2\r"), text[..text.len() - 3].to_owned(), String::new()] {
            fs::write(&file, damaged).unwrap();
            assert_eq!(index.part(&head, "c1"), None);
        }
        // Nothing at all is an index too.
        index.write_all((5, 6), &Entries::new());
        assert_eq!(index.head().map(|head| (head.stamp, head.count)), Some(((5, 6), 0)));
        fs::remove_dir_all(dir).unwrap();
    }
}
