//! What a cloud's own network holds for us.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

/// A route in every route table of the private network that is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CloudRoute {
    /// Our subnet.
    pub dst: IpNet,
    /// The machine it leads to, by its address.
    pub gateway: IpAddr,
}

impl fmt::Display for CloudRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} by NORMAL_CVM {} in each route table", self.dst, self.gateway)
    }
}
