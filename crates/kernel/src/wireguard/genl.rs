//! A kernel's WireGuard device in generic netlink messages (linux/wireguard.h): values to bytes and back.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use model::IfName;
use model::wireguard::{PublicKey, Secret};
use plan::state::WgPeer;

use super::{Device, PeerInfo};
use crate::netlink::{Attr, Attrs, Message, Reply, generic};

/// `WG_GENL_NAME`
pub const FAMILY: &str = "wireguard";

// WG_CMD_…
const GET_DEVICE: u8 = 0;
const SET_DEVICE: u8 = 1;
// WGDEVICE_A_…
const IFINDEX: u16 = 1;
const PRIVATE_KEY: u16 = 3;
const LISTEN_PORT: u16 = 6;
const PEERS: u16 = 8;
// WGPEER_A_…
const PEER_PUBLIC_KEY: u16 = 1;
const PEER_PRESHARED_KEY: u16 = 2;
const PEER_FLAGS: u16 = 3;
const PEER_ENDPOINT: u16 = 4;
const PEER_KEEPALIVE: u16 = 5;
const PEER_HANDSHAKE: u16 = 6;
const PEER_RECEIVED: u16 = 7;
const PEER_SENT: u16 = 8;
const PEER_ALLOWED: u16 = 9;
// WGALLOWEDIP_A_…
const ALLOWED_FAMILY: u16 = 1;
const ALLOWED_ADDRESS: u16 = 2;
const ALLOWED_LENGTH: u16 = 3;
// WGPEER_F_…
const REMOVE: u32 = 1;
const REPLACE_ALLOWED: u32 = 2;
/// Without it removing a peer that is gone would make it for a moment.
const UPDATE_ONLY: u32 = 4;

/// Asks for a device with all its peers (a dump).
pub fn get(family: u16, index: u32) -> Message {
    let mut m = generic::message(family, GET_DEVICE, 0);
    m.attr_u32(IFINDEX, index);
    m
}

/// Sets port and private key.
pub fn set_device(family: u16, index: u32, port: Option<u16>, key: Option<&Secret>) -> Message {
    let mut m = generic::message(family, SET_DEVICE, 0);
    m.attr_u32(IFINDEX, index);
    if let Some(key) = key {
        m.attr(PRIVATE_KEY, key.expose());
    }
    if let Some(port) = port {
        m.attr_u16(LISTEN_PORT, port);
    }
    m
}

/// Makes a peer or brings it to this value; its endpoint only with `endpoint`.
pub fn put_peer(family: u16, index: u32, peer: &WgPeer, endpoint: bool) -> Message {
    peer_message(family, index, |m| {
        m.attr(PEER_PUBLIC_KEY, &peer.key.0);
        m.attr_u32(PEER_FLAGS, REPLACE_ALLOWED);
        // All zeroes take one away.
        m.attr(PEER_PRESHARED_KEY, peer.psk.as_ref().map_or(&[0; 32][..], |psk| psk.expose()));
        if let Some(endpoint) = peer.endpoint.filter(|_| endpoint) {
            m.attr(PEER_ENDPOINT, &socket_address(endpoint));
        }
        m.attr_u16(PEER_KEEPALIVE, peer.keepalive_s);
        m.nest(PEER_ALLOWED, |m| {
            for net in &peer.allowed {
                m.nest(0, |m| allowed(m, *net));
            }
        });
    })
}

/// Removes a peer.
pub fn remove_peer(family: u16, index: u32, key: &PublicKey) -> Message {
    peer_message(family, index, |m| {
        m.attr(PEER_PUBLIC_KEY, &key.0);
        m.attr_u32(PEER_FLAGS, REMOVE | UPDATE_ONLY);
    })
}

fn peer_message(family: u16, index: u32, fill: impl FnOnce(&mut Message)) -> Message {
    let mut m = generic::message(family, SET_DEVICE, 0);
    m.attr_u32(IFINDEX, index);
    m.nest(PEERS, |m| {
        m.nest(0, fill);
    });
    m
}

fn allowed(m: &mut Message, net: IpNet) {
    let family = if net.addr().is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    m.attr_u16(ALLOWED_FAMILY, family as u16);
    m.attr_ip(ALLOWED_ADDRESS, net.addr());
    m.attr_u8(ALLOWED_LENGTH, net.prefix_len());
}

/// `struct sockaddr_in` or `sockaddr_in6`.
fn socket_address(address: SocketAddr) -> Vec<u8> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 } as u16;
    let mut bytes = family.to_ne_bytes().to_vec();
    bytes.extend(address.port().to_be_bytes());
    match address {
        SocketAddr::V4(v4) => {
            bytes.extend(v4.ip().octets());
            bytes.resize(16, 0);
        }
        SocketAddr::V6(v6) => {
            bytes.extend(v6.flowinfo().to_ne_bytes());
            bytes.extend(v6.ip().octets());
            bytes.extend(v6.scope_id().to_ne_bytes());
        }
    }
    bytes
}

fn endpoint(attr: &Attr<'_>) -> Option<SocketAddr> {
    let at = |from: usize, length: usize| attr.data.get(from..from + length);
    let port = u16::from_be_bytes(at(2, 2)?.try_into().ok()?);
    let ip = match i32::from(u16::from_ne_bytes(at(0, 2)?.try_into().ok()?)) {
        libc::AF_INET => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(at(4, 4)?).ok()?)),
        libc::AF_INET6 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(at(8, 16)?).ok()?)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

fn key(attrs: Attrs<'_>, kind: u16) -> Option<[u8; 32]> {
    let bytes: [u8; 32] = attrs.find(kind)?.data.try_into().ok()?;
    (bytes != [0; 32]).then_some(bytes)
}

/// One message of a dump: a part of the device.
pub fn decode(reply: &Reply<'_>, name: IfName) -> Device {
    let attrs = reply.attrs(generic::HEADER);
    let peers = attrs.find(PEERS).into_iter().flat_map(|a| a.nested());
    Device {
        port: attrs.find(LISTEN_PORT).and_then(|a| a.u16()),
        key: key(attrs, PRIVATE_KEY).map(Secret::new),
        peers: peers.filter_map(|a| peer(a.nested(), name)).collect(),
    }
}

/// Parts put together. A peer whose addresses do not fit a message goes on in the next.
pub fn join(parts: Vec<Device>) -> Device {
    let mut whole = Device::default();
    for part in parts {
        whole.port = part.port.or(whole.port);
        whole.key = part.key.or(whole.key);
        for info in part.peers {
            match whole.peers.last_mut().filter(|last| last.peer.key == info.peer.key) {
                Some(last) => last.peer.allowed.extend(info.peer.allowed),
                None => whole.peers.push(info),
            }
        }
    }
    whole
}

fn peer(attrs: Attrs<'_>, dev: IfName) -> Option<PeerInfo> {
    let number = |kind| attrs.find(kind).and_then(|a| a.data.try_into().ok()).map_or(0, u64::from_ne_bytes);
    let seconds = attrs.find(PEER_HANDSHAKE).and_then(|a| a.data.get(..8)?.try_into().ok());
    let nets = attrs.find(PEER_ALLOWED).into_iter().flat_map(|a| a.nested());
    Some(PeerInfo {
        peer: WgPeer {
            dev,
            key: PublicKey(key(attrs, PEER_PUBLIC_KEY)?),
            psk: key(attrs, PEER_PRESHARED_KEY).map(Secret::new),
            endpoint: attrs.find(PEER_ENDPOINT).as_ref().and_then(endpoint),
            allowed: nets.filter_map(|a| net(a.nested())).collect(),
            keepalive_s: attrs.find(PEER_KEEPALIVE).and_then(|a| a.u16()).unwrap_or(0),
        },
        handshake_s: seconds.map(i64::from_ne_bytes).and_then(|s| u64::try_from(s).ok()).filter(|s| *s > 0),
        received: number(PEER_RECEIVED),
        sent: number(PEER_SENT),
    })
}

fn net(attrs: Attrs<'_>) -> Option<IpNet> {
    IpNet::new(attrs.find(ALLOWED_ADDRESS)?.ip()?, attrs.find(ALLOWED_LENGTH)?.u8()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(allowed: &[&str]) -> WgPeer {
        WgPeer {
            dev: IfName::fixed("flannel-wg"),
            key: PublicKey([7; 32]),
            psk: Some(Secret::new([8; 32])),
            endpoint: Some("[2001:db8::7]:51820".parse().expect("valid")),
            allowed: allowed.iter().map(|net| net.parse().expect("valid")).collect(),
            keepalive_s: 25,
        }
    }

    fn read(messages: &[Message]) -> Device {
        let mut bytes = Vec::new();
        messages.iter().for_each(|message| message.write(1, 0, &mut bytes));
        join(Reply::split(&bytes).map(|reply| decode(&reply, IfName::fixed("flannel-wg"))).collect())
    }

    #[test]
    fn what_is_written_is_read_back_equal() {
        let v4 = WgPeer { endpoint: Some("192.0.2.7:1".parse().expect("valid")), psk: None, ..sample(&[]) };
        for peer in [sample(&["10.244.7.0/24", "fd00::/64"]), v4] {
            let device = read(&[put_peer(0x20, 3, &peer, true)]);
            let peers: Vec<WgPeer> = device.peers.into_iter().map(|info| info.peer).collect();
            assert_eq!(peers, [peer]);
        }
        let hidden = read(&[put_peer(0x20, 3, &sample(&[]), false)]);
        assert_eq!(hidden.peers[0].peer.endpoint, None);
        let key = Secret::new([9; 32]);
        let device = read(&[set_device(0x20, 3, Some(51820), Some(&key))]);
        assert_eq!((device.port, device.key), (Some(51820), Some(key)));
    }

    #[test]
    fn a_peer_in_two_messages_is_one() {
        let device = read(&[
            put_peer(0x20, 3, &sample(&["10.244.7.0/24"]), true),
            put_peer(0x20, 3, &sample(&["10.244.8.0/24"]), true),
        ]);
        assert_eq!(device.peers.len(), 1);
        assert_eq!(device.peers[0].peer.allowed, sample(&["10.244.7.0/24", "10.244.8.0/24"]).allowed);
    }

    #[test]
    fn whatever_bytes_come_nothing_fails() {
        let mut bytes = Vec::new();
        put_peer(0x20, 3, &sample(&["10.244.7.0/24"]), true).write(1, 0, &mut bytes);
        for at in 16..bytes.len() {
            for value in [0, 1, 255] {
                let mut broken = bytes.clone();
                broken[at] = value;
                for reply in Reply::split(&broken).chain(Reply::split(&bytes[..at])) {
                    decode(&reply, IfName::fixed("flannel-wg"));
                }
            }
        }
    }
}
