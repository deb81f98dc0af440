//! What a flanneld that ran here left and Loden does not use: iptables rules of old versions and, with
//! host-gw, routes. Chains, which both make, when the agent's part stays.

use std::process::Command;

use ipnet::IpNet;
use kernel::rtnl::RouteFilter;
use kernel::{Kernel, Nft};
use model::Family;
use model::codec::subnet_env::{self, Previous};
use plan::backend;
use plan::state::{NftFamily, TableKey};

use super::act::Act;
use super::iptables::{Nets, Signs, removal};
use super::{Found, Options};

/// `RTPROT_BOOT`, what flanneld's routes have.
const BOOT: u8 = 3;
/// What iptables makes when it is first asked to write.
pub const SHARED: &str = "iptables' own tables and chains, which are all programs'";
/// The main table.
const MAIN: u32 = 254;

pub fn look(kernel: &mut Kernel, options: &Options) -> Result<Found, String> {
    let text = std::fs::read_to_string(&options.subnet_file).unwrap_or_default();
    let previous = subnet_env::read_previous(&text);
    let mut found = Found { acts: routes(kernel, &previous)?, kept: Vec::new() };
    let (mut asked, mut any) = (false, !found.acts.is_empty());
    for (family, name) in [(Family::V4, "iptables"), (Family::V6, "ip6tables")] {
        let network = previous.networks.of(family);
        let nets = network.map(|network| Nets { network, subnet: previous.subnets.of(family) });
        for (program, save) in saved(name) {
            asked = true;
            let all = removal(&save, &Signs::flannel(nets));
            any |= all.is_some();
            // The chains, which the agent makes too, go with the agent's part.
            let input = if options.only { all } else { removal(&save, &Signs::bare(nets)) };
            found.acts.extend(input.map(|input| Act::Iptables(program, input)));
        }
    }
    if asked {
        if any {
            found.kept.push(SHARED.to_owned());
        }
    } else {
        found.kept.extend(unreached()?);
    }
    Ok(found)
}

/// What the variants of `iptables` or `ip6tables` hold: names and rules.
pub fn saved(name: &str) -> Vec<(String, String)> {
    let save = |program: String| {
        let output = Command::new(format!("{program}-save")).output().ok()?;
        Some((program, String::from_utf8_lossy(&output.stdout).into_owned()))
    };
    programs(name).into_iter().filter_map(save).collect()
}

/// The variants of a program that are there: both backends have rules of their own. Without variants the
/// program itself.
fn programs(name: &str) -> Vec<String> {
    let there = |program: &String| {
        let dirs = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&dirs).any(|dir| dir.join(format!("{program}-save")).exists())
    };
    let variants: Vec<String> =
        ["nft", "legacy"].iter().map(|v| format!("{name}-{v}")).filter(there).collect();
    if variants.is_empty() { vec![name.to_owned()] } else { variants }
}

/// Chains that are there though no program can change them.
fn unreached() -> Result<Option<String>, String> {
    let mut nft = Nft::open().map_err(|error| error.to_string())?;
    for family in [NftFamily::Ip, NftFamily::Ip6] {
        for table in ["nat", "filter"] {
            let key = TableKey { family, name: table.to_owned() };
            let chains = nft.chains(&key).unwrap_or_default();
            if let Some(chain) = chains.iter().find(|chain| chain.name.starts_with("FLANNEL-")) {
                let name = &chain.name;
                return Ok(Some(format!(
                    "chain {name} of {key}, for iptables is not installed: install it and run this again"
                )));
            }
        }
    }
    Ok(None)
}

/// Routes as host-gw makes them: by a gateway, inside the network that `subnet.env` names, by a device that
/// is not ours (those go with the device).
fn routes(kernel: &mut Kernel, previous: &Previous) -> Result<Vec<Act>, String> {
    let networks: Vec<IpNet> = previous.networks.nets().collect();
    if networks.is_empty() {
        return Ok(Vec::new());
    }
    let filter = RouteFilter { table: Some(MAIN), protocol: Some(BOOT), ..RouteFilter::default() };
    let routes = kernel.rtnl().routes(filter).map_err(|error| error.to_string())?;
    let links = kernel.rtnl().links().map_err(|error| error.to_string())?;
    let device = |index| links.iter().find(|l| Some(l.index) == index).map(|l| l.link.name);
    let inside = |dst: &IpNet| networks.iter().any(|net| net.contains(dst));
    let act = |route: &kernel::rtnl::RouteInfo| {
        let (gateway, dev) = (route.gateway?, device(route.dev)?);
        let flannels = inside(&route.dst) && !route.onlink && !backend::is_our_device(dev);
        let words = format!("{} via {gateway} dev {dev} proto boot", route.dst);
        flannels.then(|| Act::Route(Box::new(route.clone()), words))
    };
    Ok(routes.iter().filter_map(act).collect())
}
