//! The tunnels of this agent, as a part of the kernel: read from their processes, changed by the same steps
//! (decision 0140).

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::Child;

use ipnet::Ipv4Net;
use model::IfName;
use plan::state::{Tunnel, TunnelPeer};
use plan::{Object, Step};
use tunnel::control::{self, Identity, Request, Shown};
use tunnel::{process, run};

/// Where their sockets are, and the processes started here.
#[derive(Debug)]
pub struct Tunnels {
    dir: PathBuf,
    /// What tells the agents of a host apart, before the device's name.
    prefix: String,
    children: Vec<Child>,
}

impl Tunnels {
    /// Beside the subnet file, which differs between several agents of one host: `flannel0.tunnel` for
    /// `subnet.env`, `NAME.flannel0.tunnel` for `NAME.env`.
    pub fn beside(subnet_file: &Path) -> Tunnels {
        let dir = subnet_file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let stem = subnet_file.file_stem().filter(|stem| *stem != "subnet");
        let prefix = stem.map_or(String::new(), |stem| format!("{}.", stem.to_string_lossy()));
        // The tunnel leaves our directory.
        let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
        Tunnels { dir, prefix, children: Vec::new() }
    }

    /// Where the tunnel of a device is controlled.
    pub fn socket(&self, dev: IfName) -> PathBuf {
        self.dir.join(format!("{}{dev}.tunnel", self.prefix))
    }

    /// All that run, with their peers. One that cannot be talked with is like none we could want.
    pub fn read(&mut self) -> Vec<Object> {
        // Nobody else waits for those that ended.
        self.children.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        let mut objects = Vec::new();
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let Some(dev) = run::device_of(&entry.path(), &self.prefix) else { continue };
            match control::request(&entry.path(), &Request::Show) {
                Ok(text) => objects.extend(Shown::parse(&text).map_or_else(|_| vec![stranger(dev)], told)),
                Err(error) if control::is_nobody(&error) => {}
                Err(_) => objects.push(stranger(dev)),
            }
        }
        objects
    }

    /// Does steps that [`is_tunnel`] says yes to; one answer each.
    pub fn apply(&mut self, steps: &[Step]) -> Vec<Result<(), String>> {
        let mut answers = Vec::new();
        while let Some(step) = steps.get(answers.len()) {
            let rest = &steps[answers.len()..];
            let peers: Vec<_> =
                rest.iter().map_while(peer).take_while(|p| Some(p.0) == peer(step).map(|p| p.0)).collect();
            if let Some((dev, ..)) = peers.first() {
                // A tunnel changes all of them or none.
                let changes = peers.iter().map(|(_, net, to)| (*net, *to)).collect();
                let done = control::change(&self.socket(*dev), changes);
                let told = rest.iter().take(peers.len()).map(|step| sentence(step, &done));
                answers.extend(told.collect::<Vec<_>>());
                continue;
            }
            let done = match step {
                Step::Put(Object::Tunnel(wanted)) => {
                    process::start(&self.options(wanted)).map(|child| self.children.push(child))
                }
                Step::Delete(Object::Tunnel(tunnel)) => process::end(&self.socket(tunnel.dev)),
                _ => Err(io::Error::other("not a step on a tunnel")),
            };
            answers.push(sentence(step, &done));
        }
        answers
    }

    fn options(&self, wanted: &Tunnel) -> run::Options {
        let Tunnel { dev: device, listen, address, network, version } = wanted.clone();
        let identity = Identity { version, device, listen, address, network };
        run::Options { identity, socket: self.socket(device), take_over: false, detach: true, lanes: None }
    }
}

/// Whether a step is for [`Tunnels::apply`].
pub fn is_tunnel(step: &Step) -> bool {
    matches!(step.key(), plan::Key::Tunnel(_) | plan::Key::TunnelPeer(..))
}

fn peer(step: &Step) -> Option<(IfName, Ipv4Net, Option<SocketAddrV4>)> {
    match step {
        Step::Put(Object::TunnelPeer(peer)) => Some((peer.dev, peer.net, Some(peer.to))),
        Step::Delete(Object::TunnelPeer(peer)) => Some((peer.dev, peer.net, None)),
        _ => None,
    }
}

fn sentence(step: &Step, done: &io::Result<()>) -> Result<(), String> {
    done.as_ref().copied().map_err(|error| format!("{step}: {error}"))
}

fn told(shown: Shown) -> Vec<Object> {
    let Identity { version, device: dev, listen, address, network } = shown.identity;
    let peer = |(net, to)| Object::TunnelPeer(TunnelPeer { dev, net, to });
    let mut objects: Vec<Object> = shown.peers.into_iter().map(peer).collect();
    objects.push(Object::Tunnel(Box::new(Tunnel { dev, listen, address, network, version })));
    objects
}

/// Of another version, or it hangs.
fn stranger(dev: IfName) -> Object {
    let nowhere = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
    Object::Tunnel(Box::new(Tunnel {
        dev,
        listen: nowhere,
        address: *nowhere.ip(),
        network: Ipv4Net::default(),
        version: String::new(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_agent_of_a_host_has_tunnels_of_its_own() {
        let dev = IfName::fixed("flannel0");
        for (file, socket) in [
            ("/run/flannel/subnet.env", "/run/flannel/flannel0.tunnel"),
            ("/run/flannel/second.env", "/run/flannel/second.flannel0.tunnel"),
        ] {
            let tunnels = Tunnels::beside(Path::new(file));
            assert_eq!(tunnels.socket(dev), Path::new(socket));
            assert_eq!(run::device_of(Path::new(socket), &tunnels.prefix), Some(dev));
        }
        let first = Tunnels::beside(Path::new("/run/flannel/subnet.env"));
        for other in
            ["/run/flannel/second.flannel0.tunnel", "/run/flannel/.tunnel.7", "/run/flannel/loden.sock"]
        {
            let device = run::device_of(Path::new(other), &first.prefix);
            assert_eq!(device, None, "{other}");
        }
    }
}
