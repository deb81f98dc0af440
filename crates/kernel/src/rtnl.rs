//! Links, addresses, routes, neighbours, forwarding entries, nexthops and rules of one namespace.
//!
//! Takes and gives plain values with device *indexes*; the messages are built by the modules below, as
//! pure functions. Knows nothing of what is ours: that is `read` and `apply`.

pub mod addr;
mod deleting;
pub mod neigh;
pub mod nexthop;
pub mod route;
pub mod rule;
pub mod tc;

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use ipnet::IpNet;
use model::{Family, IfName};
use plan::state::LinkKind;

use crate::link::{self, BridgeVlan, LinkChange, LinkInfo, NewLink, PortFlags, VlanOp};
use crate::netlink::{Message, Protocol, Reply, Socket};
use crate::{Errno, Error};
pub use addr::AddrInfo;
pub use deleting::Deleting;
pub use neigh::{FdbInfo, NeighInfo};
pub use nexthop::NexthopInfo;
pub use route::{Lookup, RouteFilter, RouteInfo};
pub use rule::RuleInfo;

/// What to do when the object to be added exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// Fail with `EEXIST` (`ip … add`).
    Exclusive,
    /// Replace it (`ip … replace`).
    Replace,
    /// Add another one beside it, after it (`ip route append`).
    Append,
}

impl Put {
    fn flags(self) -> i32 {
        libc::NLM_F_CREATE
            | match self {
                Put::Exclusive => libc::NLM_F_EXCL,
                Put::Replace => libc::NLM_F_REPLACE,
                Put::Append => libc::NLM_F_APPEND,
            }
    }
}

/// `AF_INET` or `AF_INET6`.
pub(crate) fn family_number(family: Family) -> u8 {
    match family {
        Family::V4 => libc::AF_INET as u8,
        Family::V6 => libc::AF_INET6 as u8,
    }
}

pub(crate) fn family_of(number: u8) -> Option<Family> {
    Family::BOTH.into_iter().find(|f| family_number(*f) == number)
}

/// A socket to the kernel's network configuration of one namespace.
#[derive(Debug)]
pub struct Rtnl {
    socket: Socket,
}

impl Rtnl {
    /// Opens the namespace of the calling thread.
    ///
    /// # Errors
    /// No socket could be made.
    pub fn open() -> Result<Rtnl, Error> {
        Ok(Rtnl { socket: Socket::open(Protocol::Route)? })
    }

    /// Opens another namespace.
    ///
    /// # Errors
    /// No socket could be made, or the namespace not be entered.
    pub fn open_in(netns: BorrowedFd<'_>) -> Result<Rtnl, Error> {
        Ok(Rtnl { socket: Socket::open_in(netns, Protocol::Route)? })
    }

    /// Sends independent messages in as few system calls as possible, in order.
    pub fn run(&mut self, messages: &[Message]) -> Vec<Result<(), Errno>> {
        self.socket.batch(messages)
    }

    /// As [`Rtnl::run`], into memory that is there.
    pub fn run_into(&mut self, messages: &[Message], answers: &mut Vec<Result<(), Errno>>) {
        self.socket.batch_into(messages, answers);
    }

    /// One message, acknowledged. `action` begins the error: "add address 10.0.0.1/24 to eth0".
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn request(&mut self, message: &Message, action: impl FnOnce() -> String) -> Result<(), Error> {
        self.socket.request(message).map_err(|errno| Error::Kernel { action: action(), errno })
    }

    /// As [`Rtnl::request`] for deletions: false if the object was not there.
    fn remove(&mut self, message: &Message, action: impl FnOnce() -> String) -> Result<bool, Error> {
        match self.socket.request(message) {
            Ok(()) => Ok(true),
            Err(errno) if is_absent(errno.code) => Ok(false),
            Err(errno) => Err(Error::Kernel { action: action(), errno }),
        }
    }

    fn dump<T>(
        &mut self,
        message: &Message,
        what: &str,
        decode: impl FnMut(&Reply<'_>) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        self.socket.dump(message, decode).map_err(Error::kernel(format!("list {what}")))
    }

    /// All devices, with the names of masters and lower devices.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn links(&mut self) -> Result<Vec<LinkInfo>, Error> {
        let mut links = self.dump(&link::dump(), "devices", link::decode)?;
        let names: HashMap<u32, IfName> = links.iter().map(|l| (l.index, l.link.name)).collect();
        for link in &mut links {
            link.resolve(|index| names.get(&index).copied());
        }
        Ok(links)
    }

    /// One device by name, if it is there.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn link_by_name(&mut self, name: IfName) -> Result<Option<LinkInfo>, Error> {
        self.link(&link::get_by_name(name), || format!("look up {name}"))
    }

    /// One device by index, if it is there.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn link_by_index(&mut self, index: u32) -> Result<Option<LinkInfo>, Error> {
        self.link(&link::get(index), || format!("look up device {index}"))
    }

    /// [`Rtnl::link_by_index`] without the names of other devices: one question to the kernel, where each waits for its
    /// lock.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn link_alone(&mut self, index: u32) -> Result<Option<LinkInfo>, Error> {
        self.link_unresolved(&link::get(index), || format!("look up device {index}"))
    }

    fn link(&mut self, m: &Message, action: impl Fn() -> String) -> Result<Option<LinkInfo>, Error> {
        let Some(mut found) = self.link_unresolved(m, &action)? else { return Ok(None) };
        let mut names = HashMap::new();
        let lower = found
            .lower
            .filter(|_| matches!(found.link.kind, LinkKind::Vxlan(_)) && found.lower_netns.is_none());
        for index in found.master.into_iter().chain(lower) {
            if let Some(other) = self.link_unresolved(&link::get(index), &action)? {
                names.insert(index, other.link.name);
            }
        }
        found.resolve(|index| names.get(&index).copied());
        Ok(Some(found))
    }

    pub(crate) fn link_unresolved(
        &mut self,
        message: &Message,
        action: impl Fn() -> String,
    ) -> Result<Option<LinkInfo>, Error> {
        let mut found = None;
        match self.socket.query(message, &mut |reply| found = link::decode(reply)) {
            Ok(()) => Ok(found),
            Err(errno) if errno.code == libc::ENODEV => Ok(None),
            Err(errno) => Err(Error::Kernel { action: action(), errno }),
        }
    }

    /// The id by which devices of this namespace name another one as that of their other end
    /// ([`LinkInfo::lower_netns`]); none if no device does.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn netns_id(&mut self, other: BorrowedFd<'_>) -> Result<Option<i32>, Error> {
        // linux/net_namespace.h, NETNSA_…
        const NSID: u16 = 1;
        const FD: u16 = 3;
        let mut m = Message::new(libc::RTM_GETNSID, 0);
        // struct rtgenmsg, with its padding.
        m.bytes(&[0; 4]).attr_u32(FD, other.as_raw_fd() as u32);
        let mut id = None;
        let mut take = |reply: &Reply<'_>| id = reply.attrs(4).find(NSID).and_then(|attr| attr.u32());
        let done = self.socket.query(&m, &mut take);
        done.map_err(Error::kernel("look up the id of a network namespace".to_owned()))?;
        Ok(id.map(|id| id as i32).filter(|id| *id >= 0))
    }

    /// Makes a device, in one request.
    ///
    /// # Errors
    /// The kernel's refusal: `EEXIST` if a name is taken, `EOPNOTSUPP` if it lacks the kind.
    pub fn create_link(&mut self, new: &NewLink<'_>) -> Result<(), Error> {
        self.request(&link::create(new), || format!("make device {}", new.end.name))
    }

    /// Changes a device.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn set_link(&mut self, index: u32, change: &LinkChange<'_>) -> Result<(), Error> {
        for message in link::change(index, change) {
            self.request(&message, || format!("change device {index}"))?;
        }
        Ok(())
    }

    /// Sets flags of a bridge port.
    ///
    /// # Errors
    /// The kernel's refusal, also when the device is no bridge port.
    pub fn set_port(&mut self, index: u32, flags: &PortFlags) -> Result<(), Error> {
        self.request(&link::set_port(index, flags), || format!("change bridge port {index}"))
    }

    /// Adds a VLAN to a bridge port, or with `own` to the bridge device itself.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn add_vlan(&mut self, index: u32, vlan: BridgeVlan, own: bool) -> Result<(), Error> {
        self.request(&link::vlan(VlanOp::Add, index, vlan, vlan.id, own), || {
            format!("add VLAN {} to bridge port {index}", vlan.id)
        })
    }

    /// Removes a VLAN. The kernel does not say whether it was there (`br_vlan_info`, net/bridge/br_netlink.c).
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn delete_vlan(&mut self, index: u32, id: u16, own: bool) -> Result<(), Error> {
        let vlan = BridgeVlan { id, pvid: false, untagged: false };
        self.request(&link::vlan(VlanOp::Delete, index, vlan, id, own), || {
            format!("delete VLAN {id} from bridge port {index}")
        })
    }

    /// VLANs of a bridge port, or of a bridge device itself.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn vlans(&mut self, index: u32) -> Result<Vec<BridgeVlan>, Error> {
        let ports = self.dump(&link::dump_vlans(), "VLANs", link::decode_vlans)?;
        Ok(ports.into_iter().filter(|(port, _)| *port == index).flat_map(|(_, vlans)| vlans).collect())
    }

    /// Deletes a device; false if it was not there.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn delete_link(&mut self, index: u32) -> Result<bool, Error> {
        self.remove(&link::delete(index), || format!("delete device {index}"))
    }

    /// Deletes all devices of a group (not 0); false if there were none.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn delete_group(&mut self, group: u32) -> Result<bool, Error> {
        self.remove(&link::delete_group(group), || format!("delete device group {group}"))
    }

    /// Addresses of one device or all.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn addresses(&mut self, index: Option<u32>) -> Result<Vec<AddrInfo>, Error> {
        self.dump(&addr::dump(index), "addresses", addr::decode)
    }

    /// Adds an address.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn add_address(&mut self, address: &AddrInfo, put: Put) -> Result<(), Error> {
        self.request(&addr::add(address, put), || {
            format!("add address {} to device {}", address.net, address.index)
        })
    }

    /// Deletes an address; false if it was not there.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn delete_address(&mut self, index: u32, net: IpNet) -> Result<bool, Error> {
        self.remove(&addr::delete(index, net), || format!("delete address {net} from device {index}"))
    }

    /// Routes that pass a filter, IPv4 first.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn routes(&mut self, filter: RouteFilter) -> Result<Vec<RouteInfo>, Error> {
        let mut all = Vec::new();
        for family in Family::BOTH {
            if filter.family.is_none_or(|f| f == family) {
                match self.socket.dump(&route::dump(family, &filter), route::decode) {
                    Ok(routes) => all.extend(routes.into_iter().filter(|r| filter.passes(r))),
                    // The kernel makes tables when they are first used.
                    Err(errno) if errno.code == libc::ENOENT && filter.table.is_some() => {}
                    Err(errno) => return Err(Error::Kernel { action: "list routes".to_owned(), errno }),
                }
            }
        }
        Ok(all)
    }

    /// Adds a route.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn add_route(&mut self, route: &RouteInfo, put: Put) -> Result<(), Error> {
        self.request(&route::add(route, put), || format!("add route {route}"))
    }

    /// Deletes a route; what is not set in it is not compared. False if there was none.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn delete_route(&mut self, route: &RouteInfo) -> Result<bool, Error> {
        self.remove(&route::delete(route), || format!("delete route {route}"))
    }

    /// Where packets to these addresses would go, in order; `None` where there is no way.
    ///
    /// # Errors
    /// The kernel's refusal for a reason other than the routes themselves.
    pub fn lookup(&mut self, destinations: &[IpAddr]) -> Result<Vec<Option<Lookup>>, Error> {
        let messages: Vec<Message> = destinations.iter().map(|ip| route::lookup(*ip)).collect();
        let mut found = vec![None; messages.len()];
        let results = self.socket.query_batch(&messages, &mut |n, reply| {
            if let Some(place) = found.get_mut(n) {
                *place = route::decode(reply).and_then(Lookup::of);
            }
        });
        for (result, ip) in results.into_iter().zip(destinations) {
            match result {
                Ok(()) => {}
                // What unreachable, blackhole and prohibit routes answer.
                Err(e)
                    if matches!(
                        e.code,
                        libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL
                    ) => {}
                Err(errno) => {
                    return Err(Error::Kernel { action: format!("look up the route to {ip}"), errno });
                }
            }
        }
        Ok(found)
    }

    /// Neighbours of one device or all, both families.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn neighbours(&mut self, index: Option<u32>) -> Result<Vec<NeighInfo>, Error> {
        self.dump(&neigh::dump(index), "neighbours", neigh::decode)
    }

    /// Adds a neighbour.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn add_neighbour(&mut self, neighbour: &NeighInfo, put: Put) -> Result<(), Error> {
        self.request(&neigh::add(neighbour, put), || {
            format!("add neighbour {} to device {}", neighbour.dst, neighbour.index)
        })
    }

    /// Deletes a neighbour; false if it was not there.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn delete_neighbour(&mut self, index: u32, dst: IpAddr) -> Result<bool, Error> {
        self.remove(&neigh::delete(index, dst), || format!("delete neighbour {dst} of device {index}"))
    }

    /// Forwarding entries of one vxlan device or bridge port, or of all.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn fdb(&mut self, index: Option<u32>) -> Result<Vec<FdbInfo>, Error> {
        self.dump(&neigh::dump_fdb(index), "forwarding entries", neigh::decode_fdb)
    }

    /// Adds a forwarding entry.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn add_fdb(&mut self, entry: &FdbInfo, put: Put) -> Result<(), Error> {
        self.request(&neigh::add_fdb(entry, put), || {
            format!("add forwarding entry {} to device {}", entry.mac, entry.index)
        })
    }

    /// Deletes a forwarding entry; false if it was not there.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn delete_fdb(&mut self, entry: &FdbInfo) -> Result<bool, Error> {
        self.remove(&neigh::delete_fdb(entry), || {
            format!("delete forwarding entry {} of device {}", entry.mac, entry.index)
        })
    }

    /// All nexthop objects; none where the kernel lacks them (before 5.3).
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn nexthops(&mut self) -> Result<Vec<NexthopInfo>, Error> {
        match self.socket.dump(&nexthop::dump(), nexthop::decode) {
            Ok(found) => Ok(found),
            Err(errno) if errno.code == libc::EOPNOTSUPP => Ok(Vec::new()),
            Err(errno) => Err(Error::Kernel { action: "list nexthops".to_owned(), errno }),
        }
    }

    /// Policy rules of both families.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn rules(&mut self) -> Result<Vec<RuleInfo>, Error> {
        let mut all = Vec::new();
        for family in Family::BOTH {
            all.extend(self.dump(&rule::dump(family), "rules", rule::decode)?);
        }
        Ok(all)
    }

    /// Adds a policy rule; fails with `EEXIST` if an equal one is there.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn add_rule(&mut self, rule: &plan::state::Rule) -> Result<(), Error> {
        self.request(&rule::add(rule), || format!("add rule {rule}"))
    }

    /// [`Rtnl::add_rule`] of a protocol (`RTPROT_…`), 0 for none.
    ///
    /// # Errors
    /// As there.
    pub fn add_rule_as(&mut self, rule: &plan::state::Rule, protocol: u8) -> Result<(), Error> {
        self.request(&rule::add_as(rule, protocol), || format!("add rule {rule}"))
    }

    /// Queueing disciplines of a device.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn qdiscs(&mut self, dev: u32) -> Result<Vec<tc::QdiscInfo>, Error> {
        let mut all = self.dump(&tc::dump(dev), "queueing disciplines", tc::decode)?;
        all.retain(|qdisc| qdisc.dev == dev);
        Ok(all)
    }

    /// Queueing disciplines of all devices.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn all_qdiscs(&mut self) -> Result<Vec<tc::QdiscInfo>, Error> {
        self.dump(&tc::dump(0), "queueing disciplines", tc::decode)
    }

    /// Deletes a policy rule; false if it was not there.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn delete_rule(&mut self, rule: &plan::state::Rule) -> Result<bool, Error> {
        self.remove(&rule::delete(rule), || format!("delete rule {rule}"))
    }
}

/// The numbers by which the kernel says that an object to be deleted is not there: links `ENODEV`,
/// addresses `EADDRNOTAVAIL`, routes `ESRCH`, others `ENOENT`.
pub(crate) fn is_absent(code: i32) -> bool {
    matches!(code, libc::ENODEV | libc::EADDRNOTAVAIL | libc::ESRCH | libc::ENOENT)
}

#[cfg(test)]
mod tests;
