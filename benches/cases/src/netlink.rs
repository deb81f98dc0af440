//! What goes to the kernel and comes from it, as bytes: requests written, dumps read.

use std::net::IpAddr;

use kernel::netlink::{Message, Reply};
use kernel::nft::message as nft;
use kernel::rtnl::{FdbInfo, NeighInfo, NexthopInfo, Put, RouteInfo, neigh, nexthop, route};
use model::{Lease, Mac};
use plan::state::{NftFamily, SetKey, TableKey};

use crate::cluster::leases;
use crate::{Row, Work};

pub const ROWS: &[Row] = &[
    // Neighbour, forwarding entry, nexthop object and route of each peer.
    Row { what: "kernel/netlink/write", sizes: &[1_000], gives: |n| n * 4, make: written },
    // What is read back each half minute.
    Row { what: "kernel/netlink/read", sizes: &[1_000], gives: |n| n * 4, make: read },
    Row { what: "kernel/nft/elements-write", sizes: &[2_000], gives: |n| n, make: elements_written },
    Row { what: "kernel/nft/elements-read", sizes: &[2_000], gives: |n| n, make: elements_read },
];

const DEVICE: u32 = 7;

fn messages(leases: &[Lease]) -> impl Iterator<Item = Message> {
    (1..).zip(leases).flat_map(|(id, lease)| {
        let net = lease.subnets.v4.unwrap_or_default();
        let (gateway, outer) = (IpAddr::V4(net.network()), lease.attrs.public_ip.unwrap_or([0; 4].into()));
        let mac = Mac([0x8e, 0, 0, 0, (id >> 8) as u8, id as u8]);
        let hop = NexthopInfo {
            id,
            protocol: plan::ROUTE_PROTOCOL,
            index: Some(DEVICE),
            gateway: Some(gateway),
            onlink: true,
            group: false,
        };
        let way =
            RouteInfo { protocol: plan::ROUTE_PROTOCOL, nexthop: Some(id), ..RouteInfo::to(net.into()) };
        [
            neigh::add(&NeighInfo::permanent(DEVICE, gateway, mac), Put::Replace),
            neigh::add_fdb(&FdbInfo::vxlan(DEVICE, mac, outer.into()), Put::Replace),
            nexthop::add(&hop, Put::Replace),
            route::add(&way, Put::Replace),
        ]
    })
}

/// A message as it comes in a dump: with its length, and to a multiple of four.
fn framed(message: &Message, into: &mut Vec<u8>) {
    let length = 16 + message.payload().len();
    into.extend((length as u32).to_ne_bytes());
    into.extend(message.kind().to_ne_bytes());
    into.extend([0; 10]);
    into.extend(message.payload());
    into.resize(into.len().next_multiple_of(4), 0);
}

fn written(size: usize) -> Work {
    let leases = leases(size);
    Box::new(move || messages(&leases).filter(|message| !message.payload().is_empty()).count())
}

fn read(size: usize) -> Work {
    let mut bytes = Vec::new();
    messages(&leases(size)).for_each(|message| framed(&message, &mut bytes));
    let is_known = |reply: &Reply<'_>| {
        route::decode(reply).is_some()
            || nexthop::decode(reply).is_some()
            || neigh::decode(reply).is_some()
            || neigh::decode_fdb(reply).is_some()
    };
    Box::new(move || Reply::split(&bytes).filter(is_known).count())
}

fn set() -> SetKey {
    let table = TableKey { family: NftFamily::Ip, name: "loden-flannel.1".to_owned() };
    SetKey { table, name: "peers".to_owned() }
}

fn addresses(size: usize) -> Vec<IpAddr> {
    leases(size).iter().filter_map(|lease| lease.attrs.public_ip.map(IpAddr::V4)).collect()
}

fn elements_written(size: usize) -> Work {
    let (set, addresses) = (set(), addresses(size));
    // Three nested attributes, each with four bytes before, and the address.
    Box::new(move || nft::change_elements(&set, true, &addresses).payload().len() / 16 - 2)
}

fn elements_read(size: usize) -> Work {
    let mut bytes = Vec::new();
    framed(&nft::change_elements(&set(), true, &addresses(size)), &mut bytes);
    Box::new(move || {
        Reply::split(&bytes).filter_map(|reply| nft::decode_elements(&reply)).map(|(all, _)| all.len()).sum()
    })
}
