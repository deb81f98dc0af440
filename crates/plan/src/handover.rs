//! What an agent does last: leave the kernel in a form that whoever comes next can change, be it Loden,
//! flanneld or an administrator (decisions 0060, 0061). Takes what the kernel holds; gives steps that
//! replace in place, so that not a packet is lost. Takes nothing away.

use crate::backend::is_our_device;
use crate::state::{Nexthop, NftTable, Object, Route, State, Via};
use crate::{Key, Step};

/// The last steps, for what is ours in `actual`:
///
/// * nftables tables lose their owner: flanneld begins with `add table`, which the kernel refuses on a
///   table with PERSIST;
/// * routes through nexthop objects become plain where they leave by a device that is not ours: a route of
///   host-gw is deleted by its gateway, and the kernel does not find one that has a nexthop object. On our
///   devices flanneld replaces all routes at its start.
pub fn steps(actual: &State) -> Vec<Step> {
    let nexthop = |id: u32| match actual.get(&Key::Nexthop(id)) {
        Some(Object::Nexthop(nexthop)) if !is_our_device(nexthop.dev) => Some(nexthop),
        _ => None,
    };
    let (mut tables, mut routes) = (Vec::new(), Vec::new());
    for (_, object) in actual.iter() {
        match object {
            // A drifted table is one that could not be repaired: its content is not known.
            Object::Nft(table) if table.owned && !table.drifted => {
                let table = NftTable { owned: false, ..(**table).clone() };
                tables.push(Step::Put(Object::Nft(Box::new(table))));
            }
            Object::Route(route) => {
                if let Via::Nexthop(id) = route.via
                    && let Some(Nexthop { dev, via, onlink, .. }) = nexthop(id)
                {
                    let via = Via::Gateway { gateway: *via, dev: *dev, onlink: *onlink };
                    routes.push(Step::Put(Object::Route(Route { via, ..*route })));
                }
            }
            _ => {}
        }
    }
    tables.into_iter().chain(routes).collect()
}

#[cfg(test)]
mod tests {
    use model::IfName;

    use super::*;
    use crate::state::{NftFamily, TableKey};

    fn table(owned: bool, drifted: bool) -> Object {
        let key = TableKey { family: NftFamily::Ip, name: "flannel-ipv4".to_owned() };
        Object::Nft(Box::new(NftTable {
            key,
            comment: None,
            owned,
            sets: Vec::new(),
            chains: Vec::new(),
            drifted,
        }))
    }

    fn nexthop(id: u32, dev: &str) -> Object {
        let dev = IfName::new(dev).unwrap();
        Object::Nexthop(Nexthop { id, dev, via: [192, 0, 2, 9].into(), onlink: false })
    }

    fn route(via: Via) -> Object {
        Object::Route(Route::ours("10.244.9.0/24".parse().unwrap(), via))
    }

    #[test]
    fn what_others_could_not_change_is_left_plain() {
        let eth0 = IfName::fixed("eth0");
        let plain = Via::Gateway { gateway: [192, 0, 2, 9].into(), dev: eth0, onlink: false };
        for (name, actual, wanted) in [
            ("an owned table", vec![table(true, false)], vec![table(false, false)]),
            ("a plain table", vec![table(false, false)], vec![]),
            ("a table of unknown content", vec![table(true, true)], vec![]),
            ("a host-gw route of many", vec![nexthop(7, "eth0"), route(Via::Nexthop(7))], vec![route(plain)]),
            ("a tunnel's route of many", vec![nexthop(7, "flannel.1"), route(Via::Nexthop(7))], vec![]),
            ("a nexthop of someone else", vec![route(Via::Nexthop(7))], vec![]),
            ("a host-gw route of few", vec![route(plain)], vec![]),
        ] {
            let mut state = State::default();
            actual.into_iter().for_each(|object| state.put(object));
            let wanted: Vec<Step> = wanted.into_iter().map(Step::Put).collect();
            assert_eq!(steps(&state), wanted, "{name}");
        }
    }
}
