//! What others do to the kernel, as a value: the fake kernel does it, and the real one through the command
//! it prints as.

use std::fmt;

use model::{IfName, Mac};
use plan::Object;

/// One act of somebody else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disturbance {
    /// An object is made or replaced.
    Put(Object),
    /// An object is deleted.
    Delete(Object),
    /// A device is set down.
    Down(IfName),
    /// A device is set up.
    Up(IfName),
    /// A device gets another hardware address, with which the kernel forgets its neighbours.
    Address(IfName, Mac),
    /// A device gets another MTU.
    Mtu(IfName, u32),
    /// All addresses of a device go.
    Flush(IfName),
}

impl fmt::Display for Disturbance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Disturbance::Put(object) => object.fmt(f),
            Disturbance::Delete(object) => plan::Step::Delete(object.clone()).fmt(f),
            Disturbance::Down(dev) => write!(f, "ip link set {dev} down"),
            Disturbance::Up(dev) => write!(f, "ip link set {dev} up"),
            Disturbance::Address(dev, mac) => write!(f, "ip link set {dev} address {mac}"),
            Disturbance::Mtu(dev, mtu) => write!(f, "ip link set {dev} mtu {mtu}"),
            Disturbance::Flush(dev) => write!(f, "ip address flush dev {dev}"),
        }
    }
}
