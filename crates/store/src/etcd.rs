//! Leases in etcd v3, with flannel's keys and values (flannel.md 3), so that both run in one cluster.
//!
//! Takes endpoints, prefix, certificates and password; gives a [`LeaseStore`]. Does not know what a
//! backend does with a lease.

mod client;
mod endpoint;
mod keys;
mod lease;
mod proto;
mod tls;
mod watch;
mod wire;

use std::time::Duration;

use model::codec::etcd_key;
use model::{LeaseAttrs, NetConf, Subnets};
use prost::bytes::Bytes;

pub use tls::TlsFiles;
pub(crate) use tls::system_tls;

use crate::{Heard, Held, LeaseStore, Request, StoreError, Stored, View, entry};
use client::{Client, Credentials, Fault};
use proto::{
    DeleteRangeRequest, KeyValue, Op, PutRequest, RangeRequest, RangeResponse, TxnRequest, TxnResponse,
    prefix_end,
};

/// Keys fetched at once: some 250 kB of leases.
const PAGE: i64 = 1000;
const RANGE: &str = "/etcdserverpb.KV/Range";

/// How to reach etcd, and what to do there.
#[derive(Clone)]
pub struct EtcdOptions {
    /// Comma-separated, as flag `etcd-endpoints` (flannel.md 1.2).
    pub endpoints: String,
    /// As flag `etcd-prefix`; cleaned as Go cleans a path.
    pub prefix: String,
    /// Certificates.
    pub tls: TlsFiles,
    /// User and password of etcd's own; used if neither is empty.
    pub user: Option<(String, String)>,
    /// Life of a lease that is not renewed, whole seconds. Flannel's is 24 h.
    pub ttl: Duration,
    /// How often the watch reads the whole list again, give or take a quarter.
    pub relist: Duration,
}

impl Default for EtcdOptions {
    /// Flannel's defaults.
    fn default() -> EtcdOptions {
        EtcdOptions {
            endpoints: "http://127.0.0.1:4001,http://127.0.0.1:2379".to_owned(),
            prefix: "/coreos.com/network".to_owned(),
            tls: TlsFiles::default(),
            user: None,
            ttl: Duration::from_secs(86_400),
            relist: Duration::from_secs(600),
        }
    }
}

/// A registry in etcd v3.
pub struct EtcdStore {
    client: Client,
    /// `<prefix>/config`.
    config_key: String,
    /// `<prefix>/subnets/`: what the keys of all leases begin with, the slash included (F-33).
    subnets: String,
    /// Seconds.
    ttl: i64,
    relist: Duration,
}

/// All lease keys as of one revision.
struct Listing {
    revision: i64,
    kvs: Vec<KeyValue>,
}

impl EtcdStore {
    /// Checks the options; connects when first used.
    ///
    /// # Errors
    /// `Broken` names the endpoint that cannot be read.
    pub fn new(options: EtcdOptions) -> Result<EtcdStore, StoreError> {
        let endpoints =
            endpoint::parse_list(&options.endpoints, options.tls.given()).map_err(StoreError::Broken)?;
        let user = options.user.filter(|(name, password)| !name.is_empty() && !password.is_empty());
        let user = user.map(|(name, password)| Credentials { name, password });
        Ok(EtcdStore {
            client: Client::new(endpoints, options.tls, user),
            config_key: keys::join(&options.prefix, "config"),
            subnets: keys::join(&options.prefix, "subnets") + "/",
            ttl: options.ttl.as_secs().max(1).cast_signed(),
            relist: options.relist,
        })
    }

    /// Writes the network configuration, whatever was there before.
    ///
    /// # Errors
    /// `Unreachable`, `Denied`.
    pub async fn put_config(&self, text: &str) -> Result<(), StoreError> {
        let put = PutRequest { key: self.config_key.clone().into(), value: text.to_owned().into(), lease: 0 };
        self.write(Op::Put(put)).await
    }

    /// All keys under `subnets/`, readable or not, in order of their keys.
    ///
    /// # Errors
    /// `Unreachable`, `Denied`.
    pub async fn stored(&self) -> Result<Vec<Stored>, StoreError> {
        let listing = self.list().await?;
        let stored = listing.kvs.iter().map(|kv| {
            let key = self.lease_name(&kv.key);
            Stored { lease: entry::read(&key, &kv.value), key, reserved: kv.lease == 0 }
        });
        Ok(stored.collect())
    }

    /// Deletes one key under `subnets/`, such as `10.5.52.0-24`, whoever owns it.
    ///
    /// # Errors
    /// `Unreachable`, `Denied`.
    pub async fn delete(&self, name: &str) -> Result<(), StoreError> {
        let key = format!("{}{name}", self.subnets).into();
        self.write(Op::DeleteRange(DeleteRangeRequest { key })).await
    }

    /// One unconditional write; twice does no harm.
    async fn write(&self, op: Op) -> Result<(), StoreError> {
        let txn = TxnRequest { success: vec![op.wrap()], ..TxnRequest::default() };
        self.client.call::<_, TxnResponse>("/etcdserverpb.KV/Txn", txn).await?;
        Ok(())
    }

    /// Reads all leases, a page at a time, all pages as of the same revision.
    async fn list(&self) -> Result<Listing, StoreError> {
        let range_end = prefix_end(self.subnets.as_bytes());
        'again: loop {
            let mut listing = Listing { revision: 0, kvs: Vec::new() };
            let mut key: Bytes = self.subnets.clone().into();
            loop {
                let (range_end, revision) = (range_end.clone(), listing.revision);
                let page = RangeRequest { key, range_end, limit: PAGE, revision, min_create_revision: 0 };
                let page: RangeResponse = match self.client.call(RANGE, page).await {
                    Ok(page) => page,
                    Err(Fault::Refused { message, .. }) if revision != 0 && message.contains("compacted") => {
                        continue 'again;
                    }
                    Err(fault) => return Err(fault.into()),
                };
                if listing.revision == 0 {
                    listing.revision = page.header.as_ref().map_or(0, |header| header.revision);
                }
                let Some(last) = page.kvs.last().filter(|_| page.more) else {
                    listing.kvs.extend(page.kvs);
                    return Ok(listing);
                };
                key = [&last.key[..], &[0]].concat().into();
                listing.kvs.extend(page.kvs);
            }
        }
    }

    async fn get(&self, key: Bytes) -> Result<Option<KeyValue>, StoreError> {
        let range: RangeResponse =
            self.client.call(RANGE, RangeRequest { key, ..RangeRequest::default() }).await?;
        Ok(range.kvs.into_iter().next())
    }

    /// The revision of the whole store.
    async fn revision(&self) -> Result<i64, StoreError> {
        let key = self.config_key.clone().into();
        let range: RangeResponse =
            self.client.call(RANGE, RangeRequest { key, ..RangeRequest::default() }).await?;
        Ok(range.header.map_or(0, |header| header.revision))
    }

    fn lease_key(&self, subnets: &Subnets) -> String {
        self.subnets.clone() + &etcd_key::write(subnets)
    }

    /// The last part of a lease's key.
    fn lease_name(&self, key: &[u8]) -> String {
        String::from_utf8_lossy(key.strip_prefix(self.subnets.as_bytes()).unwrap_or(key)).into_owned()
    }

    fn describe(&self) -> String {
        format!("etcd at {}", self.client.members())
    }
}

impl LeaseStore for EtcdStore {
    fn name(&self) -> String {
        format!("{} under {}", self.describe(), self.subnets.trim_end_matches("subnets/"))
    }

    fn heard(&self) -> Heard {
        self.client.heard.clone()
    }

    async fn config(&self) -> Result<String, StoreError> {
        let key = &self.config_key;
        match self.get(key.clone().into()).await? {
            Some(kv) => Ok(String::from_utf8_lossy(&kv.value).into_owned()),
            None => Err(StoreError::NoConfig(format!(
                "no network configuration in {}; write it: ETCDCTL_API=3 etcdctl put {key} '{{\"Network\":\"10.244.0.0/16\",\"Backend\":{{\"Type\":\"vxlan\"}}}}'",
                self.describe()
            ))),
        }
    }

    async fn acquire(&self, net: &NetConf, request: &Request) -> Result<Held, StoreError> {
        self.take(net, request).await
    }

    async fn renew(&self, held: &Held, attrs: &LeaseAttrs) -> Result<Held, StoreError> {
        self.extend(held, attrs).await
    }

    async fn watch(&self, feed: &tokio::sync::watch::Sender<View>) {
        watch::follow(self, feed).await;
    }
}
