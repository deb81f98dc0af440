//! Numbers of the devices that steps name.

use std::collections::{BTreeSet, HashMap};

use model::IfName;
use plan::state::Via;
use plan::{Object, Step};

use super::{errno_of, explained};
use crate::{Errno, Kernel, link};

/// Numbers by names.
pub(super) type Indexes = HashMap<IfName, u32>;
/// More devices than this are listed instead of asked for one by one.
const FEW: usize = 4;

impl Kernel {
    /// The numbers of the devices the steps name. What happens all day names one or two, which are asked for by name: a
    /// listing of a node with a hundred pods costs more than what a peer's news changes.
    pub(super) fn indexes_for(&mut self, steps: &[Step]) -> Result<Indexes, Errno> {
        let mut names = BTreeSet::new();
        let mut before = None;
        for step in steps {
            let (Step::Put(object) | Step::Delete(object)) = step else { return self.all_indexes() };
            match device_of(object) {
                // Tens of thousands in a row are on the same.
                Some(named) if named == before => {}
                Some(named) => {
                    names.extend(named);
                    before = named;
                }
                None => return self.all_indexes(),
            }
            if names.len() > FEW {
                return self.all_indexes();
            }
        }
        let mut indexes = Indexes::new();
        for name in names {
            let found = self.rtnl.link_unresolved(&link::get_by_name(name), || format!("look up {name}"));
            if let Some(found) = found.map_err(errno_of)? {
                indexes.insert(name, found.index);
            }
        }
        Ok(indexes)
    }

    fn all_indexes(&mut self) -> Result<Indexes, Errno> {
        let links = self.rtnl.links().map_err(errno_of)?;
        Ok(links.into_iter().map(|l| (l.link.name, l.index)).collect())
    }
}

/// The device an object names, none if none; `None` where more may be asked of devices.
fn device_of(object: &Object) -> Option<Option<IfName>> {
    match object {
        Object::Nft(_) | Object::Element(_) | Object::Iptables(_) | Object::Sysctl { .. } => Some(None),
        Object::Addr(addr) => Some(Some(addr.dev)),
        Object::Neigh(neigh) => Some(Some(neigh.dev)),
        Object::Fdb(fdb) => Some(Some(fdb.dev)),
        Object::Nexthop(nexthop) => Some(Some(nexthop.dev)),
        Object::Route(route) => Some(match route.via {
            Via::Dev(dev) | Via::Behind(dev) | Via::Gateway { dev, .. } => Some(dev),
            Via::Nexthop(_) | Via::Blackhole | Via::Foreign => None,
        }),
        _ => None,
    }
}

pub(super) fn index_of(dev: IfName, indexes: &Indexes) -> Result<u32, Errno> {
    indexes.get(&dev).copied().ok_or_else(|| explained(libc::ENODEV, format!("{dev} is not there")))
}
