//! What a case needs of a store: a registry of its own, an administrator's hand in it, and time.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use model::{LeaseAttrs, NetConf, Subnets};
use store::embedded::EmbeddedStore;
use store::etcd::{EtcdOptions, EtcdStore};
use store::{Held, LeaseStore, Request, View};
use tempfile::TempDir;
use tokio::sync::watch;

use crate::server::Etcd;

/// Long enough for any machine, short enough to notice a hang.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub trait World {
    type Store: LeaseStore + crate::conformance::Names;
    /// A node's own handle on the registry.
    fn store(&self, ttl: u64) -> Self::Store;
    fn put_config(&self, text: &str);
    /// Writes a key under `subnets/` as an administrator would, without a lease.
    fn put(&self, name: &str, value: &str);
    fn delete(&self, name: &str);
    /// Keys under `subnets/` with value and whether they stay for ever, as a foreign program sees them.
    fn content(&self) -> BTreeMap<String, (String, bool)>;
    /// Returns when `held` has run out. Its time to live must be short.
    async fn run_out(&self, held: &Held);
    /// What the world's clock shows.
    fn now(&self) -> SystemTime;
    /// Lets about a second pass.
    async fn second(&self);
}

/// A real etcd.
pub struct EtcdWorld {
    pub etcd: Etcd,
}

impl EtcdWorld {
    pub const PREFIX: &str = "/coreos.com/network";

    pub fn new() -> EtcdWorld {
        EtcdWorld { etcd: Etcd::start() }
    }
}

impl World for EtcdWorld {
    type Store = EtcdStore;

    fn store(&self, ttl: u64) -> EtcdStore {
        let ttl = Duration::from_secs(ttl);
        EtcdStore::new(EtcdOptions { endpoints: self.etcd.url(), ttl, ..EtcdOptions::default() }).unwrap()
    }

    fn put_config(&self, text: &str) {
        self.etcd.ctl(&["put", "/coreos.com/network/config", text]);
    }

    fn put(&self, name: &str, value: &str) {
        self.etcd.ctl(&["put", "--", &format!("{}/subnets/{name}", Self::PREFIX), value]);
    }

    fn delete(&self, name: &str) {
        self.etcd.ctl(&["del", &format!("{}/subnets/{name}", Self::PREFIX)]);
    }

    fn content(&self) -> BTreeMap<String, (String, bool)> {
        let json = self.etcd.ctl(&["get", "--prefix", "-w", "fields", &format!("{}/subnets/", Self::PREFIX)]);
        let mut content = BTreeMap::new();
        let (mut key, mut value) = (String::new(), String::new());
        for line in json.lines() {
            let Some((field, text)) = line.split_once(" : ") else { continue };
            match field {
                "\"Key\"" => key = serde_json::from_str(text).unwrap(),
                "\"Value\"" => value = serde_json::from_str(text).unwrap(),
                "\"Lease\"" => {
                    let name = key.strip_prefix(&format!("{}/subnets/", Self::PREFIX)).unwrap().to_owned();
                    content.insert(name, (value.clone(), text == "0"));
                }
                _ => {}
            }
        }
        content
    }

    async fn run_out(&self, held: &Held) {
        let name = self.content().into_keys().find(|name| name.contains(&first_address(&held.lease.subnets)));
        until("the lease has run out", || {
            name.as_ref().is_none_or(|name| !self.content().contains_key(name))
        })
        .await;
    }

    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    async fn second(&self) {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// A SQLite file, with a clock that moves when told.
pub struct FileWorld {
    pub dir: TempDir,
    clock: Arc<AtomicU64>,
}

impl FileWorld {
    pub fn new() -> FileWorld {
        let dir = TempDir::new().unwrap();
        FileWorld { dir, clock: Arc::new(AtomicU64::new(1_800_000_000)) }
    }

    pub fn path(&self) -> std::path::PathBuf {
        self.dir.path().join("loden.db")
    }

    pub fn sql(&self, text: &str) {
        let conn = rusqlite::Connection::open(self.path()).unwrap();
        conn.busy_timeout(PATIENCE).unwrap();
        conn.execute_batch(text).unwrap();
    }

    pub fn advance(&self, seconds: u64) {
        self.clock.fetch_add(seconds, Ordering::Relaxed);
    }
}

impl World for FileWorld {
    type Store = EmbeddedStore;

    fn store(&self, ttl: u64) -> EmbeddedStore {
        let clock = self.clock.clone();
        let now = move || SystemTime::UNIX_EPOCH + Duration::from_secs(clock.load(Ordering::Relaxed));
        EmbeddedStore::with_clock(self.path(), Duration::from_secs(ttl), Arc::new(now))
    }

    fn put_config(&self, text: &str) {
        // Through a store, because the first write makes the file.
        let store = EmbeddedStore::new(self.path(), Duration::from_secs(1));
        let text = text.to_owned();
        let writer = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(store.put_config(&text)).unwrap();
        });
        writer.join().unwrap();
    }

    fn put(&self, name: &str, value: &str) {
        self.sql(&format!("INSERT OR REPLACE INTO lease (key, value) VALUES ('{name}', '{value}')"));
    }

    fn delete(&self, name: &str) {
        self.sql(&format!("DELETE FROM lease WHERE key = '{name}'"));
    }

    fn content(&self) -> BTreeMap<String, (String, bool)> {
        let conn = rusqlite::Connection::open(self.path()).unwrap();
        let mut all = conn.prepare("SELECT key, value, expires IS NULL FROM lease").unwrap();
        let rows = all.query_map([], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?)))).unwrap();
        rows.map(Result::unwrap).collect()
    }

    async fn run_out(&self, held: &Held) {
        let left = held.expires.unwrap().duration_since(self.now()).unwrap();
        self.advance(left.as_secs());
    }

    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.clock.load(Ordering::Relaxed))
    }

    async fn second(&self) {
        self.advance(1);
    }
}

/// What a lease's key contains for sure.
fn first_address(subnets: &Subnets) -> String {
    subnets.nets().next().map(|net| net.network().to_string()).unwrap_or_default()
}

/// Waits for a condition that nobody announces.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until the view is as wanted.
pub async fn seen(views: &mut watch::Receiver<View>, what: &str, holds: impl FnMut(&View) -> bool) -> View {
    let view = tokio::time::timeout(PATIENCE, views.wait_for(holds)).await.map(|view| view.unwrap().clone());
    view.unwrap_or_else(|_| panic!("waited in vain for a view in which {what}; it is {:?}", views.borrow()))
}

/// Runs `body` while `store` is being watched.
pub async fn watching<S: LeaseStore>(store: &S, body: impl AsyncFnOnce(watch::Receiver<View>)) {
    let feed = watch::Sender::new(View::default());
    tokio::select! {
        () = store.watch(&feed) => unreachable!("a watch never ends"),
        () = body(feed.subscribe()) => {}
    }
}

/// One thread, as the agent has.
pub fn block_on(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future);
}

/// A configuration, checked as stores that allocate need it.
pub fn net(text: &str) -> NetConf {
    NetConf::parse(text).unwrap().validate().unwrap()
}

/// Node `n`, with an address in both families.
pub fn node(n: u16) -> Request {
    let [high, low] = n.to_be_bytes();
    let attrs = LeaseAttrs {
        public_ip: Some(Ipv4Addr::new(192, 168, high, low)),
        public_ip6: Some(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n)),
        backend_type: "vxlan".to_owned(),
        backend_data: Some(format!(r#"{{"VNI":1,"VtepMAC":"0e:00:00:00:{high:02x}:{low:02x}"}}"#).into()),
        backend_v6_data: None,
    };
    Request { attrs, previous: Subnets::default() }
}

/// Runs sqlite3 or another witness, if it is there.
pub fn witness(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output().ok()?;
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}
