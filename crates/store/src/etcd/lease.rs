//! Taking and keeping a lease in etcd, by transactions that compare revisions only: never an unconditional
//! write, so nobody's lease is ever overwritten (F-27).

use std::time::{Duration, SystemTime};

use model::codec::lease_json;
use model::pool::same_owner;
use model::{Lease, LeaseAttrs, NetConf, Subnets};
use prost::bytes::Bytes;

use super::client::Fault;
use super::proto::{
    Compare, DeleteRangeRequest, Empty, KeyValue, LeaseGrantRequest, LeaseId, LeaseResponse, Op, PutRequest,
    RangeRequest, RangeResponse, TxnRequest, TxnResponse, prefix_end,
};
use super::{EtcdStore, Listing};
use crate::backoff::random;
use crate::choose::{Candidate, Choice, choose};
use crate::{Held, Request, StoreError, entry};

/// So often somebody else may be faster before we give up for now. With dual stack every creation by
/// others counts as a race, because the other half could overlap; a busy cluster start has many.
const ROUNDS: u32 = 100;
/// Granted TTLs this close count as the one we want: etcd rounds very short ones up.
const TTL_TOLERANCE: i64 = 5;

impl EtcdStore {
    pub(super) async fn take(&self, net: &NetConf, request: &Request) -> Result<Held, StoreError> {
        let mut listing = self.list().await?;
        for round in 0..ROUNDS {
            let candidates: Vec<_> = listing.kvs.iter().map(|kv| self.candidate(kv)).collect();
            let plan = choose(net, request, &candidates)?;
            let mut raced = false;
            for at in &plan.replaced {
                let kv = &listing.kvs[*at];
                tracing::info!(
                    "lease {} is ours but no longer fits the configuration, replaced",
                    self.lease_name(&kv.key)
                );
                raced |= !self.delete_unmodified(kv).await?;
            }
            if raced {
                listing = self.list().await?;
                continue;
            }
            match plan.choice {
                Choice::Keep(at, subnets) => {
                    match self.rewrite(&listing.kvs[at], subnets, &request.attrs).await? {
                        Some(held) => return Ok(held),
                        None => listing = self.list().await?,
                    }
                }
                Choice::Create(subnets) => {
                    if let Some(held) = self.create(subnets, &request.attrs, &mut listing).await? {
                        return Ok(held);
                    }
                }
            }
            let pause = random() % (u64::from(round + 1) * 10);
            tokio::time::sleep(Duration::from_millis(pause.min(100))).await;
        }
        Err(StoreError::Unreachable(format!(
            "take a lease in {}: {ROUNDS} times somebody else was faster",
            self.describe()
        )))
    }

    /// Extends `held`, provided nobody else has taken the key.
    pub(super) async fn extend(&self, held: &Held, attrs: &LeaseAttrs) -> Result<Held, StoreError> {
        let key = self.lease_key(&held.lease.subnets);
        for _ in 0..3 {
            let Some(kv) = self.get(key.clone().into()).await? else {
                return Err(StoreError::Lost(format!(
                    "lease {} in {} has run out or was deleted; nobody holds it now",
                    held.lease.subnets,
                    self.describe()
                )));
            };
            if kv.mod_revision != held.token
                && let Ok(now) = entry::read(&self.lease_name(&kv.key), &kv.value)
                && !same_owner(&now.attrs, &held.lease.attrs)
            {
                return Err(StoreError::Lost(format!(
                    "lease {} in {} belongs to {} now",
                    held.lease.subnets,
                    self.describe(),
                    entry::owner(&now.attrs)
                )));
            }
            if let Some(held) = self.rewrite(&kv, held.lease.subnets, attrs).await? {
                return Ok(held);
            }
        }
        Err(StoreError::Unreachable(format!(
            "renew lease {} in {}: the key keeps changing under our hands",
            held.lease.subnets,
            self.describe()
        )))
    }

    fn candidate(&self, kv: &KeyValue) -> Candidate {
        Candidate::new(&self.lease_name(&kv.key), &kv.value, kv.lease == 0)
    }

    /// Publishes `attrs` under a key that is ours, with its etcd lease extended, or without one if it is
    /// a reservation (F-24). `None` if the key was changed since `kv` was read.
    async fn rewrite(
        &self,
        kv: &KeyValue,
        subnets: Subnets,
        attrs: &LeaseAttrs,
    ) -> Result<Option<Held>, StoreError> {
        let asked = SystemTime::now();
        let (id, ttl, granted) = match kv.lease {
            0 => (0, None, false),
            id => match self.keep_alive(id).await? {
                Some(ttl) if (ttl - self.ttl).abs() <= TTL_TOLERANCE => (id, Some(ttl), false),
                _ => {
                    let (id, ttl) = self.grant().await?;
                    (id, Some(ttl), true)
                }
            },
        };
        let value: Bytes = lease_json::write(attrs).into();
        let expires = ttl.map(|ttl| asked + Duration::from_secs(ttl.unsigned_abs()));
        let held = |token| Held { lease: Lease { subnets, attrs: attrs.clone() }, expires, token };
        if !granted && kv.value == value {
            return Ok(Some(held(kv.mod_revision)));
        }
        let txn = TxnRequest {
            compare: vec![Compare::unmodified(kv.key.clone(), kv.mod_revision)],
            success: vec![
                Op::Put(PutRequest { key: kv.key.clone(), value: value.clone(), lease: id }).wrap(),
            ],
            failure: vec![Op::Range(RangeRequest { key: kv.key.clone(), ..RangeRequest::default() }).wrap()],
        };
        let answer: TxnResponse = match self.client.call("/etcdserverpb.KV/Txn", txn).await {
            Ok(answer) => answer,
            // The etcd lease ran out in between, and the key with it.
            Err(Fault::Refused { message, .. }) if message.contains("lease not found") => return Ok(None),
            Err(fault) => {
                if granted {
                    self.revoke(id).await;
                }
                return Err(fault.into());
            }
        };
        if answer.succeeded {
            return Ok(Some(held(revision(&answer))));
        }
        // Sent twice because the first answer got lost, it finds its own write.
        let mine =
            ranged(&answer).find(|now| now.lease == id && now.value == value).map(|now| now.mod_revision);
        if mine.is_none() && granted {
            self.revoke(id).await;
        }
        Ok(mine.map(held))
    }

    /// Makes a new key, provided no other was made since `listing` that could overlap. If one was, it is
    /// added to `listing` and `None` comes back.
    async fn create(
        &self,
        subnets: Subnets,
        attrs: &LeaseAttrs,
        listing: &mut Listing,
    ) -> Result<Option<Held>, StoreError> {
        let key: Bytes = self.lease_key(&subnets).into();
        let all: Bytes = self.subnets.clone().into();
        let all_end = prefix_end(&all);
        let asked = SystemTime::now();
        let (id, ttl) = self.grant().await?;
        let newer = RangeRequest {
            key: all.clone(),
            range_end: all_end.clone(),
            min_create_revision: listing.revision + 1,
            ..RangeRequest::default()
        };
        let txn = TxnRequest {
            compare: vec![match subnets {
                // Two keys may share one half only, so look at all of them.
                Subnets { v4: Some(_), v6: Some(_) } => Compare::none_since(all, all_end, listing.revision),
                // The same subnet at any length: all keys that go on after the address.
                _ => {
                    let stem =
                        key.iter().rposition(|b| *b == b'-').map_or(key.clone(), |at| key.slice(..=at));
                    Compare::absent(stem.clone(), prefix_end(&stem))
                }
            }],
            success: vec![
                Op::Put(PutRequest { key: key.clone(), value: lease_json::write(attrs).into(), lease: id })
                    .wrap(),
            ],
            failure: vec![Op::Range(newer).wrap()],
        };
        let answer: TxnResponse = match self.client.call("/etcdserverpb.KV/Txn", txn).await {
            Ok(answer) => answer,
            Err(fault) => {
                self.revoke(id).await;
                return Err(fault.into());
            }
        };
        let token = match answer.succeeded {
            true => Some(revision(&answer)),
            false => ranged(&answer).find(|kv| kv.lease == id).map(|kv| kv.mod_revision),
        };
        if let Some(token) = token {
            let expires = Some(asked + Duration::from_secs(ttl.unsigned_abs()));
            return Ok(Some(Held { lease: Lease { subnets, attrs: attrs.clone() }, expires, token }));
        }
        self.revoke(id).await;
        listing.revision = revision(&answer);
        for kv in ranged(&answer) {
            listing.kvs.retain(|old| old.key != kv.key);
            listing.kvs.push(kv.clone());
        }
        if subnets.nets().count() == 1 && listing.kvs.iter().all(|kv| kv.key != key) {
            // Some key there that is no subnet, or another length: whatever it is, keep off.
            listing.kvs.push(KeyValue { key, ..KeyValue::default() });
        }
        Ok(None)
    }

    /// Deletes the key if it is still as in `kv`; gives whether it was.
    pub(super) async fn delete_unmodified(&self, kv: &KeyValue) -> Result<bool, StoreError> {
        let txn = TxnRequest {
            compare: vec![Compare::unmodified(kv.key.clone(), kv.mod_revision)],
            success: vec![Op::DeleteRange(DeleteRangeRequest { key: kv.key.clone() }).wrap()],
            failure: Vec::new(),
        };
        let answer: TxnResponse = self.client.call("/etcdserverpb.KV/Txn", txn).await?;
        Ok(answer.succeeded)
    }

    /// Makes an etcd lease; gives its id and the seconds granted.
    async fn grant(&self) -> Result<(i64, i64), StoreError> {
        // Our own choice of id makes asking twice harmless. Positive, and never 0.
        let id = (random() >> 1).max(1).cast_signed();
        let answer =
            self.client.call("/etcdserverpb.Lease/LeaseGrant", LeaseGrantRequest { ttl: self.ttl, id }).await;
        match answer {
            Ok(LeaseResponse { ttl, .. }) => Ok((id, ttl)),
            Err(Fault::Refused { message, .. }) if message.contains("lease already exists") => {
                Ok((id, self.ttl))
            }
            Err(fault) => Err(fault.into()),
        }
    }

    /// Extends an etcd lease; `None` if there is no such lease any more.
    async fn keep_alive(&self, id: i64) -> Result<Option<i64>, StoreError> {
        match self.client.call("/etcdserverpb.Lease/LeaseKeepAlive", LeaseId { id }).await {
            Ok(LeaseResponse { ttl, .. }) => Ok(Some(ttl).filter(|ttl| *ttl > 0)),
            Err(Fault::Refused { message, .. }) if message.contains("lease not found") => Ok(None),
            Err(fault) => Err(fault.into()),
        }
    }

    /// Drops an etcd lease that serves nothing. If that fails, its time to live ends it.
    async fn revoke(&self, id: i64) {
        if let Err(fault) =
            self.client.call::<_, Empty>("/etcdserverpb.Lease/LeaseRevoke", LeaseId { id }).await
        {
            tracing::debug!("revoke unused etcd lease {id:x}: {}", StoreError::from(fault));
        }
    }
}

fn revision(answer: &TxnResponse) -> i64 {
    answer.header.as_ref().map_or(0, |header| header.revision)
}

/// The keys a failed transaction has looked up.
fn ranged(answer: &TxnResponse) -> impl Iterator<Item = &KeyValue> {
    answer.responses.iter().filter_map(|op| op.range.as_ref()).flat_map(|range: &RangeResponse| &range.kvs)
}
