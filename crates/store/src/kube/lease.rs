//! Our own lease: the Node's pod CIDRs, and our annotations on it (flannel.md 4.6).

use std::time::Duration;

use model::codec::annotation;
use model::{Family, IpNet, LeaseAttrs, NetConf, Subnets};
use tokio::time::timeout;

use super::KubeStore;
use super::nodes::Mine;
use super::object::Node;
use crate::{Held, Remembered, Request, StoreError};

/// While there is no pod CIDR the Node is asked for at least this often, though the watch is quiet.
const LOOK: Duration = Duration::from_secs(10);

pub(super) async fn remembered(store: &KubeStore) -> Result<Remembered, StoreError> {
    let name = store.node_name().await?;
    let node = store.own_node(&name).await?;
    let names = store.client.names();
    let address = |family| {
        node.annotations.node_address(names, family).unwrap_or_else(|why| {
            tracing::warn!("Node {name}: {why}; it is passed over");
            None
        })
    };
    let (v4, v6) = (address(Family::V4), address(Family::V6));
    Ok(Remembered {
        attrs: node.annotations.managed().then(|| node.annotations.read(names, None).0),
        public_ip: v4.and_then(|ip| if let std::net::IpAddr::V4(ip) = ip { Some(ip) } else { None }),
        public_ip6: v6.and_then(|ip| if let std::net::IpAddr::V6(ip) = ip { Some(ip) } else { None }),
    })
}

pub(super) async fn take(store: &KubeStore, net: &NetConf, request: &Request) -> Result<Held, StoreError> {
    let name = store.node_name().await?;
    let networks = net.networks();
    store.lock().networks = Some(networks.clone());
    let waiting = store.lock().waiting;
    if waiting {
        // The watch sees it at once; the request below is only a remedy for a watch that does not work.
        let mut own = store.own.subscribe();
        let there =
            own.wait_for(|own| own.node.as_ref().is_some_and(|node| subnets(node, &networks).is_ok()));
        let _ = timeout(LOOK, there).await;
    }
    let node = store.own_node(&name).await;
    let found = node.and_then(|node| Ok((subnets(&node, &networks)?, node)));
    store.lock().waiting = matches!(found, Err(StoreError::NoSubnet(_)));
    let (subnets, node) = found?;
    publish(store, &name, node, &networks, subnets, &request.attrs).await
}

pub(super) async fn extend(store: &KubeStore, held: &Held, attrs: &LeaseAttrs) -> Result<Held, StoreError> {
    let name = store.node_name().await?;
    let node = store.own_node(&name).await?;
    let networks = store.known().0.unwrap_or_default();
    let now = match subnets(&node, &networks) {
        Ok(now) => now,
        Err(StoreError::NoSubnet(why)) => return Err(lost(store, why)),
        Err(error) => return Err(error),
    };
    if now != held.lease.subnets {
        return Err(lost(store, format!("podCIDR of Node {name} is {now} now")));
    }
    publish(store, &name, node, &networks, now, attrs).await
}

fn lost(store: &KubeStore, why: String) -> StoreError {
    store.publish_as(None);
    StoreError::Lost(why)
}

/// Makes the Node say what we want it to say; nothing is written when it does already.
async fn publish(
    store: &KubeStore,
    name: &str,
    node: Node,
    networks: &[IpNet],
    subnets: Subnets,
    attrs: &LeaseAttrs,
) -> Result<Held, StoreError> {
    // Told before it is so: the watch may see the change before the answer is here.
    store.publish_as(Some(Mine { attrs: attrs.clone(), subnets }));
    let (changes, complaint) = node.annotations.changes(store.client.names(), attrs);
    if let Some(complaint) = complaint {
        tracing::warn!("Node {name}: {complaint}; it is passed over");
    }
    if !changes.is_empty() {
        let patched = store.client.patch_status(name, annotation::patch(&changes)).await;
        let patched = patched.map_err(|fault| match fault.code() {
            404 => StoreError::NoSubnet(fault.sentence()),
            _ => fault.into(),
        })?;
        // Between question and answer the Node may have been made anew.
        if self::subnets(&patched, networks).ok() != Some(subnets) {
            return Err(lost(
                store,
                format!("Node {name} was made anew, with another podCIDR than {subnets}"),
            ));
        }
    }
    let lease = model::Lease { subnets, attrs: attrs.clone() };
    Ok(Held { lease, expires: None, token: 0 })
}

/// The pod CIDRs that count: in enabled families, inside the configured networks. One family is enough.
fn subnets(node: &Node, networks: &[IpNet]) -> Result<Subnets, StoreError> {
    let name = &node.name;
    let all = node.subnets().map_err(|why| StoreError::NoSubnet(format!("Node {name}: {why}")))?;
    let mut good = Subnets::default();
    let mut outside = Vec::new();
    for network in networks {
        match all.of(Family::of_net(*network)) {
            Some(net) if !network.contains(&net) => outside.push(format!(
                "podCIDR {net} of Node {name} is not inside the cluster network {network}; make Network in net-conf.json \
                 and --cluster-cidr of kube-controller-manager agree"
            )),
            Some(IpNet::V4(net)) => good.v4 = Some(net),
            Some(IpNet::V6(net)) => good.v6 = Some(net),
            None => {}
        }
    }
    if good != Subnets::default() {
        return Ok(good);
    }
    if !outside.is_empty() {
        return Err(StoreError::NoSubnet(outside.join("; ")));
    }
    let wanted: Vec<_> = networks.iter().map(IpNet::to_string).collect();
    let example: Vec<_> = networks.iter().map(|net| format!("\"{}\"", first_subnet(*net))).collect();
    let kind = match (all == Subnets::default(), networks) {
        (true, _) => String::new(),
        (false, networks) => {
            let families: Vec<_> = networks.iter().map(|net| Family::of_net(*net).to_string()).collect();
            format!("{} ", families.join(" or "))
        }
    };
    Err(StoreError::NoSubnet(format!(
        "Node {name} has no {kind}podCIDR: start kube-controller-manager with --allocate-node-cidrs=true --cluster-cidr={}, \
         or give it one: kubectl patch node {name} -p '{{\"spec\":{{\"podCIDR\":{},\"podCIDRs\":[{}]}}}}'",
        wanted.join(","),
        example.first().map_or("", String::as_str),
        example.join(","),
    )))
}

/// A subnet such as a Node might get, for the example: the second of the usual size, where there is one.
fn first_subnet(network: IpNet) -> IpNet {
    let length = if network.prefix_len() < 24 && matches!(network, IpNet::V4(_)) { 24 } else { 64 };
    network.subnets(length).ok().and_then(|mut all| all.nth(1)).unwrap_or(network)
}
