//! The table of plugins.

mod bandwidth;
mod bridge;
mod child;
pub mod dhcp;
mod dummy;
mod firewall;
mod flannel;
mod host_device;
mod host_local;
mod loopback;
mod portmap;
mod ptp;
mod sbr;
mod static_ipam;
mod tap;
mod tuning;
mod veth_to_host;
mod vrf;

use model::cni::{CniResult, Error, version};

use crate::skel::Call;

/// A plugin: its name and what it does for each verb.
pub struct Plugin {
    /// The name it is called by.
    pub name: &'static str,
    /// Versions it serves, oldest first.
    pub versions: &'static [&'static str],
    /// Makes an attachment.
    pub add: fn(&Call) -> Result<CniResult, Error>,
    /// Removes it; succeeds when it is gone already.
    pub del: fn(&Call) -> Result<(), Error>,
    /// Compares it with the result given.
    pub check: fn(&Call) -> Result<(), Error>,
    /// Tells whether ADD can be served.
    pub status: fn(&Call) -> Result<(), Error>,
    /// Removes what belongs to no valid attachment.
    pub gc: fn(&Call) -> Result<(), Error>,
}

const VETH_TO_HOST: Plugin = Plugin {
    name: "veth-to-host",
    versions: version::ALL,
    add: veth_to_host::add,
    del: veth_to_host::del,
    check: veth_to_host::check,
    status: veth_to_host::status,
    gc: veth_to_host::gc,
};

/// All plugins.
pub const ALL: &[Plugin] = &[
    Plugin {
        name: "flannel",
        versions: version::ALL,
        add: flannel::add,
        del: flannel::del,
        check: flannel::check,
        status: flannel::status,
        gc: flannel::gc,
    },
    Plugin {
        name: "bridge",
        versions: version::ALL,
        add: bridge::add,
        del: bridge::del,
        check: bridge::check,
        status: bridge::status,
        gc: bridge::gc,
    },
    Plugin {
        name: "host-local",
        versions: version::ALL,
        add: host_local::add,
        del: host_local::del,
        check: host_local::check,
        status: host_local::status,
        gc: host_local::gc,
    },
    Plugin {
        name: "loopback",
        versions: version::ALL,
        add: loopback::add,
        del: loopback::del,
        check: loopback::check,
        status: nothing,
        gc: nothing,
    },
    VETH_TO_HOST,
    // The model of veth-to-host, whose configuration is a part of its own.
    Plugin { name: "unnumbered-ptp", ..VETH_TO_HOST },
    Plugin {
        name: "portmap",
        versions: version::ALL,
        add: portmap::add,
        del: portmap::del,
        check: portmap::check,
        status: portmap::status,
        gc: portmap::gc,
    },
    Plugin {
        name: "ptp",
        versions: version::ALL,
        add: ptp::add,
        del: ptp::del,
        check: ptp::check,
        status: ptp::status,
        gc: ptp::gc,
    },
    Plugin {
        name: "macvlan",
        versions: version::ALL,
        add: |call| child::MACVLAN.add(call),
        del: |call| child::MACVLAN.del(call),
        check: |call| child::MACVLAN.check(call),
        status: |call| child::MACVLAN.status(call),
        gc: |call| child::MACVLAN.gc(call),
    },
    Plugin {
        name: "ipvlan",
        versions: version::ALL,
        add: |call| child::IPVLAN.add(call),
        del: |call| child::IPVLAN.del(call),
        check: |call| child::IPVLAN.check(call),
        status: |call| child::IPVLAN.status(call),
        gc: |call| child::IPVLAN.gc(call),
    },
    Plugin {
        name: "vlan",
        versions: version::ALL,
        add: |call| child::VLAN.add(call),
        del: |call| child::VLAN.del(call),
        check: |call| child::VLAN.check(call),
        status: |call| child::VLAN.status(call),
        gc: |call| child::VLAN.gc(call),
    },
    Plugin {
        name: "dummy",
        versions: version::ALL,
        add: dummy::add,
        del: dummy::del,
        check: dummy::check,
        status: dummy::status,
        gc: dummy::gc,
    },
    Plugin {
        name: "static",
        versions: version::ALL,
        add: static_ipam::add,
        del: nothing,
        check: static_ipam::check,
        status: static_ipam::status,
        gc: nothing,
    },
    Plugin {
        name: "host-device",
        versions: version::ALL,
        add: host_device::add,
        del: host_device::del,
        check: host_device::check,
        status: host_device::status,
        gc: host_device::gc,
    },
    Plugin {
        name: "tap",
        versions: version::ALL,
        add: tap::add,
        del: tap::del,
        check: tap::check,
        status: tap::status,
        gc: tap::gc,
    },
    Plugin {
        name: "firewall",
        versions: &["0.4.0", "1.0.0", "1.1.0"],
        add: firewall::add,
        del: firewall::del,
        check: firewall::check,
        status: firewall::status,
        gc: firewall::gc,
    },
    Plugin {
        name: "bandwidth",
        versions: &["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"],
        add: bandwidth::add,
        del: bandwidth::del,
        check: bandwidth::check,
        status: bandwidth::status,
        gc: bandwidth::gc,
    },
    Plugin {
        name: "dhcp",
        versions: version::ALL,
        add: dhcp::add,
        del: dhcp::del,
        check: dhcp::check,
        status: dhcp::status,
        gc: dhcp::gc,
    },
    Plugin {
        name: "sbr",
        versions: version::ALL,
        add: sbr::add,
        del: sbr::del,
        check: sbr::check,
        status: sbr::status,
        gc: nothing,
    },
    Plugin {
        name: "tuning",
        versions: version::ALL,
        add: tuning::add,
        del: tuning::del,
        check: tuning::check,
        status: tuning::status,
        gc: tuning::gc,
    },
    Plugin {
        name: "vrf",
        versions: &["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
        add: vrf::add,
        del: vrf::del,
        check: vrf::check,
        status: vrf::status,
        gc: nothing,
    },
];

/// The plugin of that name.
pub fn by_name(name: &str) -> Option<&'static Plugin> {
    ALL.iter().find(|plugin| plugin.name == name)
}

/// For verbs that have nothing to look at.
fn nothing(_: &Call) -> Result<(), Error> {
    Ok(())
}
