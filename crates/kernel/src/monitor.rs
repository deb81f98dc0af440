//! What changed in the kernel, as it tells it: one event names one object or device.
//!
//! Takes multicast notifications of rtnetlink and nftables on two sockets of its own; gives events to one
//! thread that blocks in [`Monitor::next`]. Events are hints: they say where to look, and of small objects what
//! was there at that moment; [`Event::Overrun`] says to look everywhere. Our own changes are reported as well:
//! whoever knows what they were can tell them by what they say.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::Write;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use model::{Family, IfName, Mac};
use plan::state::{Key, Object, Route, RouteKey, TableKey};

use crate::link;
use crate::netlink::{MULTICAST_BUFFER, MULTICAST_SKIP, Protocol, Received, Reply, Socket};
use crate::nft::message;
use crate::read::{self, Names};
use crate::rtnl::{Rtnl, addr, neigh, nexthop, route, rule, tc};
use crate::{Errno, Error, Netns, sys};

/// Datagrams taken in one go before events are handed out. So many on each socket are all that ever waits here; more
/// waits in the kernel, whose bound is [`MULTICAST_BUFFER`].
const GULP: usize = 256;

/// Something changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A device came, changed or went: name and index. A renamed one is told by both names.
    Link(IfName, u32),
    /// An address of a device.
    Addr(IfName),
    /// A neighbour, a forwarding entry, a nexthop object or an element of a set, and what is there now in the terms of the plan:
    /// nothing if it went or is of a kind the plan does not make, such as a learnt neighbour.
    Object(Key, Option<Object>),
    /// A route, its protocol number, and what is there now. The kernel does not tell of IPv4 routes that go
    /// with a device (down or deleted) or with a nexthop object: the event of that must do.
    Route(RouteKey, u8, Option<Route>),
    /// A policy rule.
    Rule(Family),
    /// Anything in an nftables table, or the table itself.
    Nft(TableKey),
    /// A neighbour has another hardware address than it had; only from [`Monitor::open_for_flows`].
    Moved(IfName),
    /// Anything in an nftables table of a family that the plan does not know (arp, netdev).
    OtherNft,
    /// A queueing discipline or a filter of the device with this index came or went; only from [`Monitor::open_for_flows`].
    Qdisc(u32),
    /// Events were lost: everything may have changed. What changes after this is told again.
    Overrun,
}

/// Receiver of events.
#[derive(Debug)]
pub struct Monitor {
    route: Socket,
    nft: Socket,
    /// For names of devices that changed before we listened.
    rtnl: Rtnl,
    names: Names,
    /// Hardware addresses of neighbours, for those who want to hear of other ones. As many as the kernel has.
    macs: Option<Macs>,
    queue: VecDeque<Event>,
    /// Events were lost, and the socket of the name has not been found empty since.
    lost_route: bool,
    /// See `lost_route`.
    lost_nft: bool,
    stop: OwnedFd,
}

type Macs = BTreeMap<(u32, IpAddr), Mac>;

/// Ends the thread that waits for events.
#[derive(Debug)]
pub struct Closer {
    stop: File,
}

impl Closer {
    /// Makes [`Monitor::next`] return `None`, now and ever after.
    pub fn close(&self) {
        // Fails only when the counter is full, and then it has been closed before.
        let _ = (&self.stop).write_all(&1u64.to_ne_bytes());
    }
}

/// Keeps a monitor from hearing what its own process writes in bulk: of tens of thousands of changes the queue holds only
/// a part, and telling of each costs the kernel a fourth or more of what making it does.
#[derive(Debug)]
pub struct Ears(OwnedFd);

/// See [`Ears::cover`].
#[derive(Debug)]
pub struct Covered<'a>(&'a Ears);

impl Ears {
    const GROUPS: [u32; 4] =
        [libc::RTNLGRP_NEIGH, libc::RTNLGRP_NEXTHOP, libc::RTNLGRP_IPV4_ROUTE, libc::RTNLGRP_IPV6_ROUTE];

    /// Until what this gives is dropped, changes of neighbours, forwarding entries, nexthop objects and routes are not told,
    /// by whomever they are made. Who covers them looks at everything afterwards.
    pub fn cover(&self) -> Covered<'_> {
        self.set(libc::NETLINK_DROP_MEMBERSHIP);
        Covered(self)
    }

    /// A kernel without nexthop objects refuses that group. Else joining again cannot fail, for the socket has room for
    /// its groups (`netlink_realloc_groups`, net/netlink/af_netlink.c).
    fn set(&self, how: i32) {
        for group in Ears::GROUPS {
            let _ = sys::set_option(self.0.as_fd(), libc::SOL_NETLINK, how, group as i32);
        }
    }
}

impl Drop for Covered<'_> {
    fn drop(&mut self) {
        self.0.set(libc::NETLINK_ADD_MEMBERSHIP);
    }
}

impl Monitor {
    /// Listens in the namespace of the calling thread.
    ///
    /// # Errors
    /// A socket could not be made.
    pub fn open() -> Result<Monitor, Error> {
        Monitor::with_buffer(MULTICAST_BUFFER)
    }

    /// As [`Monitor::open`], and tells of queueing disciplines, filters and neighbours that move, too.
    ///
    /// # Errors
    /// As [`Monitor::open`], or neighbours cannot be read.
    pub fn open_for_flows() -> Result<Monitor, Error> {
        let mut monitor = Monitor::listen(MULTICAST_BUFFER, &[libc::RTNLGRP_TC])?;
        let known = monitor.rtnl.neighbours(None)?;
        monitor.macs = Some(known.iter().filter_map(|n| Some(((n.index, n.dst), n.mac?))).collect());
        Ok(monitor)
    }

    /// Listens in another namespace.
    ///
    /// # Errors
    /// As [`Monitor::open`], or the namespace cannot be entered.
    pub fn open_in(netns: &Netns) -> Result<Monitor, Error> {
        netns.run(Monitor::open)?
    }

    /// As [`Monitor::open`] with receive buffers of a given size in bytes.
    ///
    /// # Errors
    /// As [`Monitor::open`].
    pub fn with_buffer(bytes: i32) -> Result<Monitor, Error> {
        Monitor::listen(bytes, &[])
    }

    fn listen(bytes: i32, more: &[u32]) -> Result<Monitor, Error> {
        let groups = [
            libc::RTNLGRP_LINK,
            libc::RTNLGRP_NEIGH,
            libc::RTNLGRP_IPV4_IFADDR,
            libc::RTNLGRP_IPV6_IFADDR,
            libc::RTNLGRP_IPV4_ROUTE,
            libc::RTNLGRP_IPV6_ROUTE,
            libc::RTNLGRP_IPV4_RULE,
            libc::RTNLGRP_IPV6_RULE,
        ];
        let groups = [&groups, more].concat();
        // Kernels before 5.3 have no nexthops to tell of.
        let all: Vec<u32> = groups.iter().copied().chain([libc::RTNLGRP_NEXTHOP]).collect();
        let route = Socket::with_groups(Protocol::Route, &all, bytes)
            .or_else(|_| Socket::with_groups(Protocol::Route, &groups, bytes))?;
        let nft = Socket::with_groups(Protocol::Netfilter, &[libc::NFNLGRP_NFTABLES as u32], bytes)?;
        let stop =
            sys::eventfd().map_err(|source| Error::Socket { action: "make an event counter", source })?;
        // Listening first, so that no device can slip through between.
        let mut rtnl = Rtnl::open()?;
        let names = rtnl.links()?.into_iter().map(|l| (l.index, l.link.name)).collect();
        let queue = VecDeque::new();
        Ok(Monitor { route, nft, rtnl, names, macs: None, queue, lost_route: false, lost_nft: false, stop })
    }

    /// A handle by which another thread ends the waiting.
    ///
    /// # Errors
    /// Too many open files.
    pub fn closer(&self) -> Result<Closer, Error> {
        let stop = self
            .stop
            .try_clone()
            .map_err(|source| Error::Socket { action: "copy an event counter", source })?;
        Ok(Closer { stop: File::from(stop) })
    }

    /// A handle by which another thread has this one not told of what that thread writes.
    ///
    /// # Errors
    /// Too many open files.
    pub fn ears(&self) -> Result<Ears, Error> {
        let socket = self.route.try_clone_fd();
        socket.map(Ears).map_err(|source| Error::Socket { action: "copy a netlink socket", source })
    }

    /// The next event; waits for it. `None` after [`Closer::close`].
    ///
    /// # Errors
    /// A socket is broken.
    #[expect(clippy::should_implement_trait, reason = "an iterator of results would be awkward to end")]
    pub fn next(&mut self) -> Result<Option<Event>, Error> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Ok(Some(event));
            }
            let ready = match self.route.wait(&self.nft, self.stop.as_fd(), None) {
                Ok(ready) => ready,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(Error::Socket { action: "wait for kernel events", source }),
            };
            if ready[2] {
                return Ok(None);
            }
            self.take(ready).map_err(Error::kernel("receive kernel events"))?;
        }
    }

    /// Empties the sockets into the queue. Repeats of the same event in a row are one.
    fn take(&mut self, ready: [bool; 3]) -> Result<(), Errno> {
        let Monitor { route, nft, rtnl, names, macs, queue, lost_route, lost_nft, .. } = self;
        let mut push = |event: Event| {
            if queue.back() != Some(&event) {
                queue.push_back(event);
            }
        };
        if ready[0]
            && drain(route, lost_route, |reply| {
                if let Some(device) = macs.as_mut().and_then(|macs| moved(reply, macs)) {
                    names.get(&device).into_iter().for_each(|name| push(Event::Moved(*name)));
                }
                route_event(reply, rtnl, names, &mut push);
            })?
        {
            // A renaming may have been among them; each is asked for again when it is next met.
            names.clear();
            push(Event::Overrun);
        }
        let element = |reply: &Reply<'_>| {
            if let Some((elements, there)) = message::decode_elements(reply) {
                for element in elements {
                    let now = there.then(|| Object::Element(element.clone()));
                    push(Event::Object(Key::Element(element), now));
                }
                return;
            }
            match message::decode_notification(reply) {
                Some(table) => push(Event::Nft(table)),
                None if message::is_change(reply) => push(Event::OtherNft),
                None => {}
            }
        };
        if ready[1] && drain(nft, lost_nft, element)? {
            push(Event::Overrun);
        }
        Ok(())
    }
}

/// Hands out what waits on a socket. True if something was lost: it is to be told after the socket was emptied, as
/// [`Socket::skip`] has it, and what was not read until then is a part of what is lost.
fn drain(socket: &mut Socket, lost: &mut bool, mut decode: impl FnMut(&Reply<'_>)) -> Result<bool, Errno> {
    for _ in 0..GULP {
        if *lost {
            break;
        }
        match socket.receive(false)? {
            Received::Data(data) => Reply::split(data).for_each(|reply| decode(&reply)),
            Received::Overrun => *lost = true,
            Received::Nothing => return Ok(false),
        }
    }
    if !*lost {
        return Ok(false);
    }
    *lost = !socket.skip(MULTICAST_SKIP)?;
    Ok(true)
}

/// The device of a neighbour whose hardware address is another one now.
fn moved(reply: &Reply<'_>, macs: &mut Macs) -> Option<u32> {
    let neigh = neigh::decode(reply)?;
    let key = (neigh.index, neigh.dst);
    if reply.kind == libc::RTM_DELNEIGH {
        macs.remove(&key);
        return None;
    }
    let mac = neigh.mac?;
    (macs.insert(key, mac)? != mac).then_some(neigh.index)
}

fn route_event(reply: &Reply<'_>, rtnl: &mut Rtnl, names: &mut Names, push: &mut dyn FnMut(Event)) {
    if let Some(link) = link::decode(reply) {
        let (name, index) = (link.link.name, link.index);
        let before =
            if reply.kind == libc::RTM_DELLINK { names.remove(&index) } else { names.insert(index, name) };
        before.filter(|n| *n != name).into_iter().for_each(|old| push(Event::Link(old, index)));
        push(Event::Link(name, index));
        return;
    }
    if let Some(index) = tc::changed(reply) {
        push(Event::Qdisc(index));
        return;
    }
    // A device we cannot name is gone again, and said so by itself.
    let mut name = |index: u32| {
        names.get(&index).copied().or_else(|| {
            let name = rtnl.link_by_index(index).ok()??.link.name;
            names.insert(index, name);
            Some(name)
        })
    };
    let gone = [libc::RTM_DELNEIGH, libc::RTM_DELROUTE, nexthop::RTM_DELNEXTHOP].contains(&reply.kind);
    let now = |object: Option<Object>| object.filter(|_| !gone);
    let event = if let Some(a) = addr::decode(reply) {
        name(a.index).map(Event::Addr)
    } else if let Some(n) = neigh::decode(reply) {
        name(n.index).map(|dev| Event::Object(Key::Neigh(dev, n.dst), now(read::neigh(&n, dev))))
    } else if let Some(f) = neigh::decode_fdb(reply) {
        name(f.index).map(|dev| Event::Object(Key::Fdb(dev, f.mac), now(read::fdb(&f, dev))))
    } else if let Some(r) = route::decode(reply) {
        r.dev.and_then(&mut name);
        let found = read::plan_route(&r, names);
        Some(Event::Route(found.key(), r.protocol, (!gone).then_some(found)))
    } else if let Some(n) = nexthop::decode(reply) {
        n.index.and_then(&mut name);
        Some(Event::Object(Key::Nexthop(n.id), now(read::nexthop(&n, names))))
    } else {
        rule::decode(reply).map(|r| Event::Rule(r.rule.family))
    };
    event.into_iter().for_each(push);
}
