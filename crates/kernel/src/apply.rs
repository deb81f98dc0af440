//! Steps carried out in their order, as many as possible in one system call.
//!
//! Steps on devices go one by one, since what follows needs the new index; everything else on rtnetlink
//! is collected until a step of another kind comes. A step that fails does not stop those after it.

mod indexes;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use model::{Family, IfName};
use plan::state::{Carrier, Element, Iptables, Link, LinkKind, Nexthop, NftTable, Object, Route, Tun, Via};
use plan::{Key, ROUTE_PROTOCOL, Step};

use crate::link::{self, LinkChange, NewKind, NewLink};
use crate::netlink::Message;
use crate::rtnl::{
    self, AddrInfo, FdbInfo, NeighInfo, NexthopInfo, Put, RouteInfo, addr, is_absent, neigh, nexthop, route,
};
use crate::wireguard::Change;
use crate::{Errno, Error, Kernel, ethtool, sysctl, tun};
use indexes::{Indexes, index_of};

/// Messages collected before they are sent: as many as go out in one system call.
const PENDING: usize = 1_000;

/// A step the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct StepError {
    /// The step as a command.
    pub step: String,
    /// Number and text of the kernel.
    pub errno: Errno,
}

impl fmt::Display for StepError {
    /// `ip route replace …: network is unreachable (ENETUNREACH, "Nexthop has invalid gateway")`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step, self.errno)
    }
}

/// The state of one run.
struct Run<'a> {
    steps: &'a [Step],
    /// Numbers of the steps that failed, and why.
    failed: BTreeMap<usize, Errno>,
    /// Steps done together with one before them.
    taken: Vec<bool>,
    /// Number of the step, and its message.
    numbers: Vec<usize>,
    messages: Vec<Message>,
    answers: Vec<Result<(), Errno>>,
    /// Numbers of steps on WireGuard peers.
    peers: Vec<usize>,
    indexes: Indexes,
}

impl Run<'_> {
    fn note(&mut self, number: usize, result: Result<(), Errno>) {
        match result {
            Ok(()) => drop(self.failed.remove(&number)),
            Err(errno) => drop(self.failed.insert(number, errno)),
        }
    }
}

impl Kernel {
    /// Carries out all steps; the results have the same length and order. Deleting what is not there is
    /// success.
    pub fn apply(&mut self, steps: &[Step]) -> Vec<Result<(), Box<StepError>>> {
        let mut run = Run {
            steps,
            failed: BTreeMap::new(),
            taken: vec![false; steps.len()],
            numbers: Vec::new(),
            messages: Vec::new(),
            answers: Vec::new(),
            peers: Vec::new(),
            indexes: Indexes::new(),
        };
        match self.indexes_for(steps) {
            Ok(indexes) => {
                run.indexes = indexes;
                self.run_steps(&mut run);
            }
            Err(errno) => run.failed.extend((0..steps.len()).map(|number| (number, errno.clone()))),
        }
        let named = |(number, step): (usize, &Step)| match run.failed.remove(&number) {
            Some(errno) => Err(Box::new(StepError { step: step.to_string(), errno })),
            None => Ok(()),
        };
        steps.iter().enumerate().map(named).collect()
    }

    fn run_steps(&mut self, run: &mut Run<'_>) {
        for (number, step) in run.steps.iter().enumerate() {
            if run.taken[number] {
                continue;
            }
            // What is put by a detour is there before anything it replaces goes.
            let put = |number: &usize| matches!(run.steps[*number], Step::Put(_));
            if matches!(step, Step::Delete(_)) && run.numbers.last().is_some_and(put) {
                self.flush(run);
            }
            let done = match step {
                Step::Change(link) => {
                    self.flush(run);
                    self.change_link(link, &run.indexes)
                }
                Step::Put(Object::Link(link)) => {
                    self.flush(run);
                    self.make_link(link, run)
                }
                Step::Delete(Object::Link(link)) => {
                    self.flush(run);
                    self.delete_link(link.name, run)
                }
                Step::Put(Object::Sysctl { path, value }) => {
                    self.flush(run);
                    self.write_sysctl(path, value)
                }
                Step::Put(Object::Offload { dev, name, on }) => {
                    self.flush(run);
                    self.set_offload(*dev, name, *on)
                }
                Step::Put(Object::Nft(table)) => {
                    self.flush(run);
                    self.replace_table(table, run)
                }
                Step::Put(Object::Element(first)) | Step::Delete(Object::Element(first)) => {
                    self.flush(run);
                    self.change_elements(number, first, run);
                    continue;
                }
                Step::Delete(Object::Nft(table)) => {
                    self.flush(run);
                    self.nft.delete_table(&table.key).map(drop)
                }
                Step::Put(Object::Iptables(first)) => {
                    self.flush(run);
                    self.put_iptables(number, first, run);
                    continue;
                }
                Step::Delete(Object::Iptables(rules)) => {
                    self.flush(run);
                    let (tables, mut place) = self.iptables();
                    tables.delete(&mut place, rules.key)
                }
                Step::Put(Object::WgPeer(_)) | Step::Delete(Object::WgPeer(_)) => {
                    if run.peers.is_empty() {
                        self.flush(run);
                    }
                    run.peers.push(number);
                    Ok(())
                }
                Step::Put(Object::Policy(policy)) => {
                    self.flush(run);
                    self.put_policy(policy)
                }
                Step::Delete(Object::Policy(policy)) => {
                    self.flush(run);
                    self.delete_policy(&policy.key)
                }
                // Nobody remembers what the value was before.
                Step::Delete(Object::Sysctl { .. } | Object::Offload { .. }) => Ok(()),
                Step::Put(object) | Step::Delete(object) => {
                    if !run.peers.is_empty() {
                        self.flush(run);
                    }
                    match self.message(object, matches!(step, Step::Put(_)), &run.indexes) {
                        Ok(message) => {
                            run.numbers.push(number);
                            run.messages.push(message);
                            Ok(())
                        }
                        // An object of a device that is gone went with it.
                        Err(e) if is_absent(e.code) && matches!(step, Step::Delete(_)) => Ok(()),
                        Err(errno) => Err(errno),
                    }
                }
            };
            run.note(number, done);
            if run.messages.len().max(run.peers.len()) >= PENDING {
                self.flush(run);
            }
        }
        self.flush(run);
    }

    /// Makes a table together with all elements that are to be in its sets, so that there is no moment in
    /// which a rule looks into an empty one.
    fn replace_table(&mut self, table: &NftTable, run: &mut Run<'_>) -> Result<(), Errno> {
        let mut elements = Vec::new();
        let mut numbers = Vec::new();
        for (number, step) in run.steps.iter().enumerate() {
            if let Step::Put(Object::Element(element)) = step
                && element.set.table == table.key
            {
                elements.push(element);
                numbers.push(number);
            }
        }
        let done = self.nft.replace_with(table, &elements);
        for number in numbers {
            run.taken[number] = true;
            run.note(number, done.clone());
        }
        done
    }

    /// Does this step and those after it that put tables by the same program.
    fn put_iptables(&mut self, from: usize, first: &Iptables, run: &mut Run<'_>) {
        let same = |step| match step {
            &Step::Put(Object::Iptables(ref rules)) => {
                let by = |rules: &Iptables| (rules.key.variant, rules.key.family);
                (by(rules) == by(first)).then_some(&**rules)
            }
            _ => None,
        };
        let wanted: Vec<&Iptables> = run.steps[from..].iter().map_while(same).collect();
        let (tables, mut place) = self.iptables();
        for (number, done) in (from..).zip(tables.put_all(&mut place, &wanted)) {
            run.taken[number] = true;
            run.note(number, done);
        }
    }

    /// Does this step and those after it that do the same to the same set, in one transaction. If that is
    /// refused, one by one: then each knows its own reason.
    fn change_elements(&mut self, from: usize, first: &Element, run: &mut Run<'_>) {
        let put = matches!(run.steps[from], Step::Put(_));
        let address = |step: &Step| match step {
            Step::Put(Object::Element(e)) if put && e.set == first.set => Some(e.address),
            Step::Delete(Object::Element(e)) if !put && e.set == first.set => Some(e.address),
            _ => None,
        };
        let addresses: Vec<IpAddr> = run.steps[from..].iter().map_while(address).collect();
        let all = self.nft.change_elements(&first.set, put, &addresses);
        for (number, address) in (from..).zip(addresses) {
            run.taken[number] = true;
            if all.is_err() {
                let one = match self.nft.change_elements(&first.set, put, &[address]) {
                    Err(errno) if !put && is_absent(errno.code) => Ok(()),
                    other => other,
                };
                run.note(number, one);
            }
        }
    }

    /// Sends what is pending.
    fn flush(&mut self, run: &mut Run<'_>) {
        self.flush_peers(run);
        if run.messages.is_empty() {
            return;
        }
        let (mut numbers, mut messages, mut answers) = (
            std::mem::take(&mut run.numbers),
            std::mem::take(&mut run.messages),
            std::mem::take(&mut run.answers),
        );
        self.rtnl.run_into(&messages, &mut answers);
        // Nexthops that came to be after what was sent behind them.
        let mut late = BTreeSet::new();
        for ((result, number), message) in answers.drain(..).zip(&numbers).zip(&messages) {
            let number = *number;
            let Err(errno) = result else { continue };
            let answer = match &run.steps[number] {
                Step::Delete(_) if is_absent(errno.code) => Ok(()),
                Step::Put(Object::Rule(_)) if errno.code == libc::EEXIST => Ok(()),
                Step::Put(Object::Route(route)) if errno.code == libc::EEXIST => {
                    self.put_route_first(route, message, &run.indexes)
                }
                Step::Put(Object::Route(Route { via: Via::Nexthop(id), .. })) if late.contains(id) => {
                    self.rtnl.run(std::slice::from_ref(message)).pop().unwrap_or(Ok(()))
                }
                Step::Put(Object::Route(Route {
                    via: Via::Gateway { gateway, dev, onlink: true }, ..
                }))
                | Step::Put(Object::Nexthop(Nexthop { via: gateway, dev, onlink: true, .. }))
                    if errno.code == libc::EINVAL && gateway.is_ipv6() =>
                {
                    let done = self.put_past_route(*gateway, *dev, message, &run.indexes);
                    if let (Key::Nexthop(id), Ok(())) = (run.steps[number].key(), &done) {
                        late.insert(id);
                    }
                    done
                }
                _ => Err(errno),
            };
            run.note(number, answer);
        }
        // Their memory is the next ones'.
        numbers.clear();
        messages.clear();
        (run.numbers, run.messages, run.answers) = (numbers, messages, answers);
    }

    /// Sends what is pending of WireGuard peers.
    fn flush_peers(&mut self, run: &mut Run<'_>) {
        let mut numbers = std::mem::take(&mut run.peers);
        let mut changes = Vec::with_capacity(numbers.len());
        numbers.retain(|number| {
            let (Step::Put(Object::WgPeer(peer)) | Step::Delete(Object::WgPeer(peer))) = &run.steps[*number]
            else {
                return false;
            };
            let put = matches!(run.steps[*number], Step::Put(_));
            match index_of(peer.dev, &run.indexes) {
                Ok(index) if put => changes.push(Change::Put(index, peer)),
                Ok(index) => changes.push(Change::Remove(index, peer.dev, &peer.key)),
                // A peer of a device that is gone went with it.
                Err(errno) if put => drop(run.failed.insert(*number, errno)),
                Err(_) => {}
            }
            run.indexes.contains_key(&peer.dev)
        });
        if changes.is_empty() {
            return;
        }
        for (number, answer) in numbers.into_iter().zip(self.tunnels.peers(self.netns.as_ref(), &changes)) {
            run.note(number, answer);
        }
    }

    /// Our IPv4 route is there already, but behind another one with the same key, so that the kernel will
    /// not replace the first by it. Without ours the first can be replaced.
    fn put_route_first(&mut self, ours: &Route, put: &Message, indexes: &Indexes) -> Result<(), Errno> {
        let delete = route::delete(&route_info(ours, indexes)?);
        for message in [&delete, put] {
            self.rtnl.run(std::slice::from_ref(message)).pop().unwrap_or(Ok(()))?;
        }
        Ok(())
    }

    /// IPv6 refuses a gateway that a standing route would reach through another device, even where the new
    /// one is to replace it (`ip6_route_check_nh_onlink`). A host route to the gateway through the right device
    /// stands for a moment, so that traffic never lacks a way; carrying our protocol it is swept should we die
    /// meanwhile.
    fn put_past_route(
        &mut self,
        gateway: IpAddr,
        dev: IfName,
        put: &Message,
        indexes: &Indexes,
    ) -> Result<(), Errno> {
        let host = route_info(&Route::ours(gateway.into(), Via::Dev(dev)), indexes)?;
        let steps = [route::add(&host, Put::Replace), put.clone(), route::delete(&host)];
        let answers = steps
            .each_ref()
            .map(|message| self.rtnl.run(std::slice::from_ref(message)).pop().unwrap_or(Ok(())));
        answers.into_iter().collect()
    }

    fn message(&self, object: &Object, put: bool, indexes: &Indexes) -> Result<Message, Errno> {
        let index = |dev: &IfName| index_of(*dev, indexes);
        Ok(match object {
            Object::Addr(a) if put => {
                let mut info = AddrInfo::new(index(&a.dev)?, a.net);
                if Family::of_net(a.net) == Family::V6 {
                    // Ours by assignment: an address that is still being checked cannot be used.
                    info.flags = AddrInfo::NODAD;
                }
                addr::add(&info, Put::Replace)
            }
            Object::Addr(a) => addr::delete(index(&a.dev)?, a.net),
            Object::Neigh(n) if put => {
                neigh::add(&NeighInfo::permanent(index(&n.dev)?, n.dst, n.mac), Put::Replace)
            }
            Object::Neigh(n) => neigh::delete(index(&n.dev)?, n.dst),
            Object::Fdb(f) => {
                let info = FdbInfo::vxlan(index(&f.dev)?, f.mac, f.dst);
                if put { neigh::add_fdb(&info, Put::Replace) } else { neigh::delete_fdb(&info) }
            }
            Object::Nexthop(n) if put => {
                if let Some(protocol) = self.foreign_nexthops.get(&n.id) {
                    let text = format!("nexthop id {} belongs to protocol {protocol}", n.id);
                    return Err(explained(libc::EEXIST, text));
                }
                let info = NexthopInfo {
                    id: n.id,
                    protocol: ROUTE_PROTOCOL,
                    index: Some(index(&n.dev)?),
                    gateway: Some(n.via),
                    onlink: n.onlink,
                    group: false,
                };
                nexthop::add(&info, Put::Replace)
            }
            Object::Nexthop(n) => nexthop::delete(n.id),
            Object::Route(r) => {
                let mut info = route_info(r, indexes)?;
                if put {
                    route::add(&info, Put::Replace)
                } else {
                    // IPv6 refuses the id of a nexthop that is gone; the key and our protocol say enough.
                    info.nexthop = None;
                    route::delete(&info)
                }
            }
            Object::Rule(r) if put => rtnl::rule::add(r),
            Object::Rule(r) => rtnl::rule::delete(r),
            Object::Nft(_)
            | Object::Element(_)
            | Object::Iptables(_)
            | Object::Link(_)
            | Object::Sysctl { .. }
            | Object::Offload { .. }
            | Object::WgPeer(_)
            | Object::Tunnel(_)
            | Object::TunnelPeer(_)
            | Object::Policy(_)
            | Object::Command(_)
            | Object::Charon
            | Object::Ike(_)
            | Object::CloudRoute(_) => {
                return Err(explained(libc::EINVAL, "not an object of rtnetlink".to_owned()));
            }
        })
    }

    fn make_link(&mut self, wanted: &Link, run: &mut Run<'_>) -> Result<(), Errno> {
        let kind = match &wanted.kind {
            LinkKind::Vxlan(vxlan) => {
                let lower = vxlan.lower.map(|dev| index_of(dev, &run.indexes)).transpose()?;
                NewKind::Vxlan { vxlan, lower }
            }
            LinkKind::Ipip(ipip) => NewKind::Ipip(ipip),
            LinkKind::Wireguard(_) => return self.make_tunnel(wanted, run),
            LinkKind::Tun(tun) => return self.make_tun(*tun, wanted, run),
            LinkKind::Bridge(bridge) => NewKind::Bridge { vlan_filtering: bridge.vlan_filtering },
            LinkKind::Other(kind) if !kind.is_empty() => NewKind::Plain(kind),
            LinkKind::Veth(_) | LinkKind::Other(_) => {
                let text = format!("a {} device cannot be made from a plan", wanted.kind.name());
                return Err(explained(libc::EINVAL, text));
            }
        };
        let mut new = NewLink::new(wanted.name, kind);
        new.end.mac = wanted.mac;
        new.end.mtu = wanted.mtu;
        new.end.txqlen = wanted.txqlen;
        new.up = wanted.up;
        new.master = wanted.master.map(|dev| index_of(dev, &run.indexes)).transpose()?;
        self.create(&new, run)
    }

    fn create(&mut self, new: &NewLink<'_>, run: &mut Run<'_>) -> Result<(), Errno> {
        self.rtnl.create_link(new).map_err(errno_of)?;
        if let Some(made) = self.rtnl.link_by_name(new.end.name).map_err(errno_of)? {
            run.indexes.insert(new.end.name, made.index);
        }
        Ok(())
    }

    /// A WireGuard device. It is up last: before it has its port, it would listen on any.
    fn make_tunnel(&mut self, wanted: &Link, run: &mut Run<'_>) -> Result<(), Errno> {
        self.tunnels.forget(wanted.name);
        if matches!(&wanted.kind, LinkKind::Wireguard(w) if w.carrier == Carrier::UserSpace) {
            return self.make_user_tunnel(wanted, run);
        }
        let mut new = NewLink::new(wanted.name, NewKind::Plain("wireguard"));
        new.end.mtu = wanted.mtu;
        new.end.txqlen = wanted.txqlen;
        self.create(&new, run)?;
        self.change_link(wanted, &run.indexes)
    }

    /// A TUN device with a process behind it. The device is the loop's: it stays when the process ends, so that
    /// address and routes stay, and nothing leaves in the clear.
    fn make_user_tunnel(&mut self, wanted: &Link, run: &mut Run<'_>) -> Result<(), Errno> {
        self.create_tun(Tun::OURS, wanted.name, run)?;
        self.tunnels.start(self.netns.as_ref(), wanted.name)?;
        self.change_link(wanted, &run.indexes)
    }

    fn make_tun(&mut self, tun: Tun, wanted: &Link, run: &mut Run<'_>) -> Result<(), Errno> {
        self.create_tun(tun, wanted.name, run)?;
        self.change_link(wanted, &run.indexes)
    }

    /// rtnetlink cannot make one, but change it.
    fn create_tun(&mut self, tun: Tun, name: IfName, run: &mut Run<'_>) -> Result<(), Errno> {
        let make = || tun::create(tun, name);
        match &self.netns {
            Some(netns) => netns.run(make).map_err(|e| explained(libc::EIO, e.to_string()))?,
            None => make(),
        }
        .map_err(errno_of)?;
        if let Some(made) = self.rtnl.link_by_name(name).map_err(errno_of)? {
            run.indexes.insert(name, made.index);
        }
        Ok(())
    }

    /// Sends only what differs: setting a hardware address, even the same, makes the kernel drop all
    /// neighbours of the device.
    fn change_link(&mut self, wanted: &Link, indexes: &Indexes) -> Result<(), Errno> {
        let Some(now) = self.rtnl.link_by_name(wanted.name).map_err(errno_of)? else {
            return Err(Errno::new(libc::ENODEV));
        };
        fn different<T: PartialEq + Copy>(want: Option<T>, have: Option<T>) -> Option<T> {
            want.filter(|_| want != have)
        }
        let (mut learning, mut local, mut lower) = (None, None, None);
        if let (LinkKind::Vxlan(want), LinkKind::Vxlan(have)) = (&wanted.kind, &now.link.kind) {
            learning = different(Some(want.learning), Some(have.learning));
            local = different(want.local, have.local);
            lower = want.lower.filter(|_| want.moves_from(have));
        }
        if let LinkKind::Wireguard(wireguard) = &wanted.kind {
            self.tunnels.set_device(self.netns.as_ref(), (wanted.name, now.index), wireguard)?;
        }
        let change = LinkChange {
            mac: different(wanted.mac, now.link.mac),
            mtu: different(wanted.mtu, now.link.mtu),
            txqlen: different(wanted.txqlen, now.link.txqlen),
            up: (wanted.up && !now.link.up).then_some(true),
            master: different(wanted.master, now.link.master)
                .map(|dev| index_of(dev, indexes))
                .transpose()?,
            vxlan_learning: learning,
            vxlan_local: local,
            vxlan_lower: lower.map(|dev| index_of(dev, indexes)).transpose()?,
            ..LinkChange::default()
        };
        for message in link::change(now.index, &change) {
            self.rtnl.run(&[message]).pop().unwrap_or(Ok(()))?;
        }
        Ok(())
    }

    fn delete_link(&mut self, name: IfName, run: &mut Run<'_>) -> Result<(), Errno> {
        run.indexes.remove(&name);
        match self.rtnl.link_by_name(name).map_err(errno_of)? {
            Some(found) => self.rtnl.delete_link(found.index).map(drop).map_err(errno_of),
            None => Ok(()),
        }
    }

    fn set_offload(&self, dev: IfName, name: &str, on: bool) -> Result<(), Errno> {
        let set = || ethtool::set_features(dev, &[(name, on)]);
        let set = match &self.netns {
            Some(netns) => netns.run(set).map_err(Error::from).and_then(|set| set),
            None => set(),
        };
        set.map_err(errno_of)
    }

    fn write_sysctl(&self, path: &str, value: &str) -> Result<(), Errno> {
        let written = match &self.netns {
            Some(netns) => sysctl::write_in(netns, path, value),
            None => sysctl::write(path, value),
        };
        written.map(drop).map_err(errno_of)
    }
}

fn explained(code: i32, text: String) -> Errno {
    Errno { code, text: Some(text), offset: None }
}

/// The number behind an error of this room; where there is none, its text stays.
pub(crate) fn errno_of(error: Error) -> Errno {
    match error {
        Error::Kernel { errno, .. } => errno,
        other => match other.code() {
            Some(code) => Errno::new(code),
            None => explained(libc::EIO, other.to_string()),
        },
    }
}

fn route_info(r: &Route, indexes: &Indexes) -> Result<RouteInfo, Errno> {
    let mut info = RouteInfo {
        table: r.table,
        protocol: r.protocol,
        priority: Some(r.priority),
        ..RouteInfo::to(r.dst)
    };
    match r.via {
        Via::Dev(dev) => info.dev = Some(index_of(dev, indexes)?),
        Via::Behind(dev) => {
            info.dev = Some(index_of(dev, indexes)?);
            info.scope = Some(libc::RT_SCOPE_UNIVERSE);
        }
        Via::Gateway { gateway, dev, onlink } => {
            info.gateway = Some(gateway);
            info.dev = Some(index_of(dev, indexes)?);
            info.onlink = onlink;
        }
        Via::Nexthop(id) => info.nexthop = Some(id),
        Via::Blackhole => info.kind = libc::RTN_BLACKHOLE,
        // Only ever deleted: of any type, through anything.
        Via::Foreign => info.kind = libc::RTN_UNSPEC,
    }
    Ok(info)
}
