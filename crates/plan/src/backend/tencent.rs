//! tencent-vpc: the cloud's route tables carry the packets; a route for our own subnet is all there is to make
//! (flannel.md 6.10).
//!
//! Better than upstream: every route table in use, every page of them, and the route is looked at again as
//! long as we run (decision 0152).

use ipnet::IpNet;
use model::config::TencentConf;
use model::{Family, Lease, LeaseAttrs, NetConf};

use super::{Backend, Half};
use crate::facts::{Facts, Families};
use crate::state::{CloudRoute, Object, State};

/// The type in configurations.
pub const KIND: &str = "tencent-vpc";

/// The backend `tencent-vpc`.
#[derive(Clone, Copy, Debug)]
pub struct Tencent;

impl Tencent {
    /// Checks the `Backend` object.
    ///
    /// # Errors
    /// IPv6, for which the cloud has other tables; what [`TencentConf::decode`] finds.
    pub fn new(conf: &NetConf, families: Families) -> Result<Tencent, String> {
        if families.v6 {
            return Err("network config: the backend \"tencent-vpc\" carries IPv4 only, and EnableIPv6 is true; set it \
                        to false, or use \"vxlan\""
                .to_owned());
        }
        TencentConf::decode(&conf.backend).map_err(|e| e.to_string())?;
        Ok(Tencent)
    }
}

impl Backend for Tencent {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn check(&self, facts: &Facts) -> Result<(), String> {
        match facts.public.v4 {
            Some(_) => Ok(()),
            None => Err(format!(
                "interface {} has no IPv4 address to which the cloud could route; add one or choose another \
                 interface with --iface",
                facts.uplink.name
            )),
        }
    }

    fn mtu(&self, facts: &Facts) -> u32 {
        facts.uplink.mtu
    }

    /// Without a type, as upstream.
    fn attrs(&self, facts: &Facts) -> LeaseAttrs {
        LeaseAttrs { public_ip: facts.public.v4, ..LeaseAttrs::default() }
    }

    fn carries(&self, _: &LeaseAttrs) -> bool {
        true
    }

    fn base(&self, facts: &Facts, own: Option<&Lease>) -> State {
        let mut state = State::default();
        if let (Some(net), Some(gateway)) = (own.and_then(|own| own.subnets.v4), facts.public.v4) {
            state
                .put(Object::CloudRoute(CloudRoute { dst: IpNet::V4(net.trunc()), gateway: gateway.into() }));
        }
        state
    }

    /// Each node looks after its own route.
    fn peer(&self, _: &Facts, _: &Lease, _: Family, _: &Lease) -> Result<Half, String> {
        Ok(Half::default())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{expect, facts, lease, text};
    use super::*;

    const V4: Families = Families { v4: true, v6: false };

    fn backend(members: &str, families: Families) -> Result<Tencent, String> {
        let text = format!(r#"{{"Network":"10.244.0.0/16","Backend":{{"Type":"tencent-vpc"{members}}}}}"#);
        Tencent::new(&NetConf::parse(text).expect("a configuration"), families)
    }

    #[test]
    fn a_route_of_the_cloud_and_nothing_else() {
        let tencent = backend("", V4).expect("valid");
        let own = lease("10.244.1.0/24", "192.0.2.10", "", ["", ""]);
        let peer = lease("10.244.2.0/24", "192.0.2.12", "vxlan", ["", ""]);
        expect(
            &text(&tencent, &facts(), Some(&own), &[peer]),
            "tccli vpc CreateRoutes # 10.244.1.0/24 by NORMAL_CVM 192.0.2.10 in each route table",
        );
        assert_eq!(text(&tencent, &facts(), None, &[]), "");
        assert_eq!((tencent.attrs(&facts()), tencent.mtu(&facts())), (own.attrs, 1500));
    }

    #[test]
    fn what_cannot_work_is_said() {
        for (members, families, sentence) in [
            ("", Families { v4: true, v6: true }, "carries IPv4 only"),
            (r#","AccessKeyID":5"#, V4, "AccessKeyID"),
            (r#","AccessKeySecret":{"a":"s3cr3t"}"#, V4, "AccessKeySecret"),
            (r#","AccessKeyID":"a\nb","AccessKeySecret":"s3cr3t""#, V4, "AccessKeyID"),
        ] {
            let error = backend(members, families).expect_err(sentence);
            assert!(error.contains(sentence) && !error.contains("s3cr3t"), "{error}");
        }
        let mut facts = facts();
        facts.public.v4 = None;
        assert!(Tencent.check(&facts).expect_err("address").contains("eth0 has no IPv4 address"));
    }
}
