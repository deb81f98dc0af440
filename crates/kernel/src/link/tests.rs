//! Messages byte by byte (little-endian hosts), and decoding what was encoded.

use model::IfName;
use plan::state::LinkKind;

use super::*;
use crate::netlink::Reply;

#[cfg(target_endian = "little")] // the bytes are those of such a machine
#[test]
fn a_veth_message_holds_both_ends() {
    let peer = End { mtu: Some(1450), ..End::new(IfName::fixed("e")) };
    let mut new = NewLink::new(IfName::fixed("v"), NewKind::Veth(peer));
    new.up = true;
    new.master = Some(9);
    let message = create(&new);
    #[rustfmt::skip]
    let want: &[u8] = &[
        0, 0, 0, 0,  0, 0, 0, 0,  1, 0, 0, 0,  1, 0, 0, 0,
        6, 0, 3, 0, b'v', 0, 0, 0,
        8, 0, 10, 0, 9, 0, 0, 0,
        56, 0, 18, 0x80,
            9, 0, 1, 0, b'v', b'e', b't', b'h', 0, 0, 0, 0,
            40, 0, 2, 0x80,
                36, 0, 1, 0x80,
                    0, 0, 0, 0,  0, 0, 0, 0,  0, 0, 0, 0,  0, 0, 0, 0,
                    6, 0, 3, 0, b'e', 0, 0, 0,
                    8, 0, 4, 0, 0xaa, 5, 0, 0,
    ];
    assert_eq!(message.payload(), want);
    // REQUEST, CREATE, EXCL
    assert_eq!((message.kind(), message.flags()), (libc::RTM_NEWLINK, 0x601));
}

#[test]
fn a_vxlan_device_decodes_to_itself() {
    for local in ["192.0.2.1", "2001:db8::1"] {
        let vxlan = Vxlan {
            vni: 4096,
            port: 8472,
            local: local.parse().ok(),
            lower: Some(IfName::fixed("eth0")),
            learning: true,
            gbp: true,
            l2miss: false,
            group: None,
        };
        let kind = NewKind::Vxlan { vxlan: &vxlan, lower: Some(3) };
        let message = create(&NewLink::new(IfName::fixed("flannel.4096"), kind));
        let reply = Reply { kind: message.kind(), flags: 0, sequence: 0, payload: message.payload() };
        let mut found = decode(&reply).unwrap();
        found.resolve(|index| (index == 3).then(|| IfName::fixed("eth0")));
        assert_eq!(found.link.kind, LinkKind::Vxlan(vxlan));
        assert_eq!(found.link.name, IfName::fixed("flannel.4096"));
    }
}

#[test]
fn vlan_ranges_are_spread_out() {
    let one = BridgeVlan { id: 10, pvid: false, untagged: true };
    let message = vlan(VlanOp::Add, 5, one, 12, false);
    let reply = Reply { kind: libc::RTM_NEWLINK, flags: 0, sequence: 0, payload: message.payload() };
    let vlans = (10..=12).map(|id| BridgeVlan { id, ..one }).collect();
    assert_eq!(decode_vlans(&reply), Some((5, vlans)));
}

/// Devices on top of others: their attributes byte by byte, and decoded again.
#[cfg(target_endian = "little")] // the bytes are those of such a machine
#[test]
fn children_decode_to_themselves() {
    for (kind, data, detail) in [
        (
            NewKind::Macvlan { lower: 3, mode: 4, broadcast_queue: Some(2000) },
            &[8, 0, 1, 0, 4, 0, 0, 0, 8, 0, 7, 0, 0xd0, 7, 0, 0][..],
            Detail::MacvlanMode(4),
        ),
        (
            NewKind::Macvlan { lower: 3, mode: 8, broadcast_queue: None },
            &[8, 0, 1, 0, 8, 0, 0, 0],
            Detail::MacvlanMode(8),
        ),
        (NewKind::Ipvlan { lower: 3, mode: 2 }, &[6, 0, 1, 0, 2, 0, 0, 0], Detail::IpvlanMode(2)),
        (NewKind::Vlan { lower: 3, id: 100 }, &[6, 0, 1, 0, 100, 0, 0, 0], Detail::VlanId(100)),
        (NewKind::Vrf { table: 1001 }, &[8, 0, 1, 0, 0xe9, 3, 0, 0], Detail::VrfTable(1001)),
    ] {
        let is_child = !matches!(kind, NewKind::Vrf { .. });
        let message = create(&NewLink::new(IfName::fixed("x"), kind));
        assert!(message.payload().ends_with(data), "{detail:?}: {:?}", message.payload());
        let reply = Reply { kind: message.kind(), flags: 0, sequence: 0, payload: message.payload() };
        let found = decode(&reply).unwrap();
        assert_eq!((found.detail, found.lower), (detail, is_child.then_some(3)));
    }
}
