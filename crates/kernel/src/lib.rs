//! Reads plan values out of the Linux kernel and writes them in: rtnetlink, nftables, sysctls, namespaces.
//!
//! Takes a wanted [`plan::State`] or single requests; gives what the kernel holds, and errors with the
//! kernel's own words. Blocking, one writer; decides nothing about what should be there.

mod apply;
pub mod error;
pub mod ethtool;
pub mod iptables;
pub mod link;
pub mod monitor;
pub mod netlink;
pub mod netns;
pub mod nft;
pub mod packet;
pub mod process;
mod read;
pub mod rtnl;
mod sys;
pub mod sysctl;
pub mod tun;
pub mod wireguard;
pub mod xfrm;

use std::collections::BTreeMap;
use std::os::fd::AsFd;

use ipnet::IpNet;
use plan::state::TableKey;

pub use apply::StepError;
pub use error::{Errno, Error, NetnsError};
pub use monitor::{Closer, Event, Monitor};
pub use netns::Netns;
pub use nft::{Nft, NftBatch};
pub use rtnl::Rtnl;

/// One network namespace as the reconciler sees it: read as a state, changed by steps.
#[derive(Debug)]
pub struct Kernel {
    rtnl: Rtnl,
    /// Owner of our tables: they are released when this is dropped, and stay.
    nft: Nft,
    /// Where sysctls are read and written; the calling thread's own namespace if absent.
    netns: Option<Netns>,
    /// Nexthops of other programs (id → protocol) as of the last read. Replacing one is refused: their ids
    /// are first come, first served, and the plan has no way to see who has one.
    foreign_nexthops: BTreeMap<u32, u8>,
    iptables: iptables::Tables,
    tunnels: wireguard::Tunnels,
    /// Opened when policies are asked for: that may load a module.
    xfrm: Option<netlink::Socket>,
}

impl Kernel {
    /// Opens the namespace of the calling thread, which must stay in it.
    ///
    /// # Errors
    /// No netlink socket could be made.
    pub fn open() -> Result<Kernel, Error> {
        Ok(Kernel::over(Rtnl::open()?, Nft::open()?, None))
    }

    /// Opens another namespace.
    ///
    /// # Errors
    /// No netlink socket could be made, or the namespace not be entered.
    pub fn open_in(netns: &Netns) -> Result<Kernel, Error> {
        let (rtnl, nft) = (Rtnl::open_in(netns.as_fd())?, Nft::open_in(netns.as_fd())?);
        Ok(Kernel::over(rtnl, nft, Some(netns.try_clone()?)))
    }

    fn over(rtnl: Rtnl, nft: Nft, netns: Option<Netns>) -> Kernel {
        Kernel {
            rtnl,
            nft,
            netns,
            foreign_nexthops: BTreeMap::new(),
            iptables: iptables::Tables::default(),
            tunnels: wireguard::Tunnels::default(),
            xfrm: None,
        }
    }

    /// Links, addresses and look-ups, for facts about the host.
    pub fn rtnl(&mut self) -> &mut Rtnl {
        &mut self.rtnl
    }

    /// A sentence about WireGuard peers to whom packets are sent and who answer no handshake, as of the last read.
    pub fn silence(&self) -> Option<String> {
        self.tunnels.silence()
    }

    /// The networks the rules of an nftables table are about; none if it is not there, or nothing is.
    pub fn networks_of(&mut self, table: &TableKey) -> Vec<IpNet> {
        self.nft.networks(table).unwrap_or_default()
    }

    /// The programs of iptables for rules of ours, by family, in the variant this host uses. Chosen once;
    /// programs that come later are found.
    pub fn iptables_tools(&mut self) -> plan::facts::Iptables {
        let (tables, mut place) = self.iptables();
        tables.tools(&mut place)
    }

    /// Whether the kernel has WireGuard; its module is loaded if there is one.
    pub fn has_wireguard(&mut self) -> bool {
        self.tunnels.in_kernel(self.netns.as_ref())
    }

    /// How WireGuard is carried where the kernel has none.
    pub fn set_user_space(&mut self, user: wireguard::UserSpace) {
        self.tunnels.set_user_space(user);
    }

    /// The peers of a WireGuard device and what they carried; none if the device, or the process that carries it, does
    /// not tell.
    pub fn wireguard_peers(&mut self, link: &link::LinkInfo) -> Vec<wireguard::PeerInfo> {
        self.tunnels.told(self.netns.as_ref(), link)
    }

    fn iptables(&mut self) -> (&mut iptables::Tables, iptables::Place<'_>) {
        (&mut self.iptables, iptables::Place { nft: &mut self.nft, netns: self.netns.as_ref() })
    }
}
