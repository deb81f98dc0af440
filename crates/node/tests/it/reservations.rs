//! A lease that never runs out is the administrator's reservation for the node with that address: it is
//! taken, kept without a limit by whatever the node writes, and nobody else's (flannel.md 3.8; F-24).

use crate::troubles::etcdctl;
use crate::world::{Agent, Etcd, Host, World, has_etcd, until};

const CONFIG: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;
const RESERVED: &str = "10.244.77.0/24";

trait Registry {
    fn agent(&self, host: &Host) -> Agent;
    /// A plain put, without a limit.
    fn put(&self, key: &str, value: &str);
    /// Whether a key is there without a limit, and what it holds.
    fn permanent(&self, key: &str) -> Result<String, String>;
}

struct InFile<'a>(&'a World);

impl Registry for InFile<'_> {
    fn agent(&self, host: &Host) -> Agent {
        host.agent(&[])
    }

    fn put(&self, key: &str, value: &str) {
        let leases = rusqlite::Connection::open(self.0.dir.path().join("leases.db")).unwrap();
        let put = "INSERT OR REPLACE INTO lease (key, value, expires) VALUES (?1, ?2, NULL)";
        leases.execute(put, [key, value]).unwrap();
    }

    fn permanent(&self, key: &str) -> Result<String, String> {
        let leases = rusqlite::Connection::open(self.0.dir.path().join("leases.db")).unwrap();
        let query = "SELECT CAST(value AS TEXT) FROM lease WHERE key = ?1 AND expires IS NULL";
        leases.query_row(query, [key], |row| row.get(0)).map_err(|error| error.to_string())
    }
}

struct InEtcd<'a>(&'a World);

impl Registry for InEtcd<'_> {
    fn agent(&self, host: &Host) -> Agent {
        host.agent_in(&["--etcd-endpoints=http://192.0.2.11:2379"], &[])
    }

    fn put(&self, key: &str, value: &str) {
        etcdctl(&self.0.hosts[0], &["put", &format!("/coreos.com/network/subnets/{key}"), value]);
    }

    fn permanent(&self, key: &str) -> Result<String, String> {
        let key = format!("/coreos.com/network/subnets/{key}");
        let found = etcdctl(&self.0.hosts[0], &["get", &key, "--write-out=fields"]);
        let field = |name: &str| found.lines().find_map(|l| l.strip_prefix(&format!("\"{name}\" : ")));
        let limited = field("Lease").is_none_or(|lease| lease != "0");
        let value = field("Value").filter(|_| !limited).ok_or_else(|| found.clone())?;
        Ok(value.replace('\\', ""))
    }
}

fn is_honoured(world: &World, registry: &dyn Registry) {
    let [one, two] = [&world.hosts[0], &world.hosts[1]];
    let key = RESERVED.replace('/', "-");
    // Makes the file, where there is one.
    let first = registry.agent(one);
    first.ready();
    registry.put(&key, &format!(r#"{{"PublicIP":"{}","PublicIPv6":null}}"#, two.public()));
    let second = registry.agent(two);
    second.ready();
    assert_eq!(two.subnet("FLANNEL_SUBNET").to_string(), RESERVED);
    let published = || {
        let value = registry.permanent(&key)?;
        if value.contains("VtepMAC") { Ok(value) } else { Err(value) }
    };
    let value = until("the reservation to be kept with what the node says of itself", published);
    until("the peer to reach it", || one.greet(two, two.subnet("FLANNEL_SUBNET").network()));
    // Another node cannot have it, though it had it before.
    assert_eq!(first.terminate(), 0);
    let mine = one.subnet("FLANNEL_SUBNET");
    let previous = std::fs::read_to_string(one.subnet_file()).unwrap();
    let gateway = one.env("FLANNEL_SUBNET");
    std::fs::write(one.subnet_file(), previous.replace(&gateway, "10.244.77.1/24")).unwrap();
    let first = registry.agent(one);
    first.ready();
    assert_eq!(one.subnet("FLANNEL_SUBNET"), mine);
    // The next agent of the node renews what it finds.
    assert_eq!(second.terminate(), 0);
    let second = registry.agent(two);
    second.ready();
    assert_eq!((two.subnet("FLANNEL_SUBNET").to_string().as_str(), published()), (RESERVED, Ok(value)));
    // A lease becomes a reservation by a plain put while its node runs, and stays one.
    let key = mine.to_string().replace('/', "-");
    assert!(registry.permanent(&key).is_err(), "an ordinary lease");
    let mac = one.json("ip -j link show flannel.1")[0]["address"].as_str().unwrap().to_owned();
    let data = format!(r#""BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}"#);
    registry.put(&key, &format!(r#"{{"PublicIP":"{}","PublicIPv6":null,{data}}}"#, one.public()));
    assert_eq!(first.terminate(), 0);
    let first = registry.agent(one);
    first.ready();
    assert_eq!(one.subnet("FLANNEL_SUBNET"), mine);
    registry.permanent(&key).unwrap();
    assert_eq!((first.count("lost the lease"), second.count("lost the lease")), (0, 0));
}

#[test]
fn a_reservation_in_the_file_is_honoured() {
    let world = World::with_config(2, CONFIG);
    is_honoured(&world, &InFile(&world));
}

#[test]
fn a_reservation_in_etcd_is_honoured() {
    if !has_etcd("a_reservation_in_etcd_is_honoured") {
        return;
    }
    let world = World::new(2);
    let _etcd = Etcd::on(&world.hosts[0], "192.0.2.11", None);
    etcdctl(&world.hosts[0], &["put", "/coreos.com/network/config", CONFIG]);
    is_honoured(&world, &InEtcd(&world));
}
