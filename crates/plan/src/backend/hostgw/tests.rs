use model::IfName;

use super::super::testing::{expect, facts, ip, lease, text};
use super::{Backend, HostGw};
use crate::facts::Families;

const DUAL: HostGw = HostGw { families: Families { v4: true, v6: true } };

#[test]
fn a_peer_is_one_route_for_each_family() {
    let own = lease("10.244.1.0/24 fd00:1::/64", "192.0.2.10 2001:db8::10", "host-gw", ["", ""]);
    let peers = [
        lease("10.244.2.0/24 fd00:2::/64", "192.0.2.12 2001:db8::12", "host-gw", ["", ""]),
        lease("10.244.3.0/24", "198.51.100.3", "host-gw", ["", ""]),
        lease("10.244.4.0/24", "192.0.2.14", "wireguard", ["", ""]),
    ];
    let mut facts = facts();
    for public in ["192.0.2.12", "2001:db8::12", "192.0.2.14"] {
        facts.on_link.insert(ip(public), IfName::fixed("eth0"));
    }
    expect(
        &text(&DUAL, &facts, Some(&own), &peers),
        "ip route replace 10.244.2.0/24 via 192.0.2.12 dev eth0 proto 76
         ip route replace fd00:2::/64 via 2001:db8::12 dev eth0 proto 76
         left out 10.244.3.0/24: its address 198.51.100.3 is not on a network of eth0, and host-gw needs one; put the nodes into one network or use the vxlan backend with DirectRouting
         left out 10.244.4.0/24: its backend is \"wireguard\", ours is \"host-gw\"",
    );
    assert_eq!(text(&DUAL, &facts, None, &peers), "", "nothing without a lease");
    assert_eq!(DUAL.mtu(&facts), 1500);
    assert_eq!(DUAL.attrs(&facts).backend_data, None);
}

#[test]
fn nat_is_refused_in_both_families() {
    assert_eq!(DUAL.check(&facts()), Ok(()));
    let (mut v4, mut v6) = (facts(), facts());
    v4.public.v4 = Some([203, 0, 113, 1].into());
    v6.public.v6 = Some("2001:db8:ffff::1".parse().expect("valid"));
    for (facts, public) in [(v4, "203.0.113.1"), (v6, "2001:db8:ffff::1")] {
        let error = DUAL.check(&facts).expect_err("NAT");
        assert!(error.contains(public) && error.contains("does not work through NAT"), "{error}");
    }
}
