//! The protocol buffer messages of etcd's API v3 that we use, with the field numbers of its `rpc.proto`
//! and `kv.proto`. Fields we neither write nor read are left out: decoding skips them, and absent means zero.
//! Written by hand so that building needs no protobuf compiler (decision 0030).

use prost::bytes::Bytes;

/// Which cluster state an answer was made from.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ResponseHeader {
    /// Revision of the whole store.
    #[prost(int64, tag = "3")]
    pub revision: i64,
}

/// One key with its value.
#[derive(Clone, PartialEq, prost::Message)]
pub struct KeyValue {
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    #[prost(int64, tag = "2")]
    pub create_revision: i64,
    /// Revision of the last write.
    #[prost(int64, tag = "3")]
    pub mod_revision: i64,
    #[prost(bytes = "bytes", tag = "5")]
    pub value: Bytes,
    /// The etcd lease the key is attached to; 0 = none, the key stays for ever.
    #[prost(int64, tag = "6")]
    pub lease: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct RangeRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    /// First key that no longer belongs; empty = only `key`.
    #[prost(bytes = "bytes", tag = "2")]
    pub range_end: Bytes,
    /// At most so many keys; 0 = all.
    #[prost(int64, tag = "3")]
    pub limit: i64,
    /// Read as of this revision; 0 = newest.
    #[prost(int64, tag = "4")]
    pub revision: i64,
    /// Only keys created at or after this revision; 0 = all.
    #[prost(int64, tag = "12")]
    pub min_create_revision: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct RangeResponse {
    #[prost(message, optional, tag = "1")]
    pub header: Option<ResponseHeader>,
    #[prost(message, repeated, tag = "2")]
    pub kvs: Vec<KeyValue>,
    #[prost(bool, tag = "3")]
    pub more: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct PutRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
    #[prost(int64, tag = "3")]
    pub lease: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct DeleteRangeRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
}

/// One operation inside a transaction.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RequestOp {
    #[prost(oneof = "Op", tags = "1, 2, 3")]
    pub op: Option<Op>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Op {
    #[prost(message, tag = "1")]
    Range(RangeRequest),
    #[prost(message, tag = "2")]
    Put(PutRequest),
    #[prost(message, tag = "3")]
    DeleteRange(DeleteRangeRequest),
}

/// What one operation of a transaction gave; only ranges interest us.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ResponseOp {
    #[prost(message, optional, tag = "1")]
    pub range: Option<RangeResponse>,
}

/// A condition of a transaction; over a range it must hold for every key in it, and it holds for none.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Compare {
    /// 0 equal, 1 greater, 2 less, 3 not equal.
    #[prost(int32, tag = "1")]
    pub result: i32,
    /// 0 version, 1 create revision, 2 modification revision, 3 value, 4 lease.
    #[prost(int32, tag = "2")]
    pub target: i32,
    #[prost(bytes = "bytes", tag = "3")]
    pub key: Bytes,
    #[prost(oneof = "Target", tags = "4, 5, 6")]
    pub union: Option<Target>,
    #[prost(bytes = "bytes", tag = "64")]
    pub range_end: Bytes,
}

#[derive(Clone, Copy, PartialEq, prost::Oneof)]
pub enum Target {
    #[prost(int64, tag = "4")]
    Version(i64),
    #[prost(int64, tag = "5")]
    CreateRevision(i64),
    #[prost(int64, tag = "6")]
    ModRevision(i64),
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct TxnRequest {
    #[prost(message, repeated, tag = "1")]
    pub compare: Vec<Compare>,
    #[prost(message, repeated, tag = "2")]
    pub success: Vec<RequestOp>,
    #[prost(message, repeated, tag = "3")]
    pub failure: Vec<RequestOp>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct TxnResponse {
    #[prost(message, optional, tag = "1")]
    pub header: Option<ResponseHeader>,
    #[prost(bool, tag = "2")]
    pub succeeded: bool,
    #[prost(message, repeated, tag = "3")]
    pub responses: Vec<ResponseOp>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct LeaseGrantRequest {
    /// Seconds.
    #[prost(int64, tag = "1")]
    pub ttl: i64,
    /// Chosen by us, so that asking twice grants once.
    #[prost(int64, tag = "2")]
    pub id: i64,
}

/// Also the answer to a keep-alive.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LeaseResponse {
    #[prost(int64, tag = "2")]
    pub id: i64,
    /// Seconds; ≤ 0 in answer to a keep-alive: the lease has run out.
    #[prost(int64, tag = "3")]
    pub ttl: i64,
}

/// Names an etcd lease: request of revoke and keep-alive.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct LeaseId {
    #[prost(int64, tag = "1")]
    pub id: i64,
}

/// An answer of which only the arrival matters.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Empty {}

#[derive(Clone, PartialEq, prost::Message)]
pub struct WatchRequest {
    #[prost(message, optional, tag = "1")]
    pub create: Option<WatchCreateRequest>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct WatchCreateRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub range_end: Bytes,
    #[prost(int64, tag = "3")]
    pub start_revision: i64,
    /// Ask for an empty answer now and then, so that the revision to resume from stays fresh.
    #[prost(bool, tag = "4")]
    pub progress_notify: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct WatchResponse {
    #[prost(message, optional, tag = "1")]
    pub header: Option<ResponseHeader>,
    #[prost(bool, tag = "3")]
    pub created: bool,
    #[prost(bool, tag = "4")]
    pub canceled: bool,
    /// Not 0: the revision asked for has been compacted; this is the oldest one left.
    #[prost(int64, tag = "5")]
    pub compact_revision: i64,
    #[prost(string, tag = "6")]
    pub cancel_reason: String,
    #[prost(message, repeated, tag = "11")]
    pub events: Vec<Event>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Event {
    /// 0 put, 1 delete (also expiry and revocation).
    #[prost(int32, tag = "1")]
    pub kind: i32,
    #[prost(message, optional, tag = "2")]
    pub kv: Option<KeyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct AuthenticateRequest {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub password: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct AuthenticateResponse {
    #[prost(string, tag = "2")]
    pub token: String,
}

impl Op {
    /// As an element of a transaction.
    pub fn wrap(self) -> RequestOp {
        RequestOp { op: Some(self) }
    }
}

impl Compare {
    /// Holds while `key` was last written at `revision`.
    pub fn unmodified(key: Bytes, revision: i64) -> Compare {
        let union = Some(Target::ModRevision(revision));
        Compare { result: 0, target: 2, key, union, range_end: Bytes::new() }
    }

    /// Holds while no key from `key` up to `range_end` exists.
    pub fn absent(key: Bytes, range_end: Bytes) -> Compare {
        Compare { result: 0, target: 0, key, union: Some(Target::Version(0)), range_end }
    }

    /// Holds while no key from `key` up to `range_end` was created after `revision`.
    pub fn none_since(key: Bytes, range_end: Bytes, revision: i64) -> Compare {
        let union = Some(Target::CreateRevision(revision.saturating_add(1)));
        Compare { result: 2, target: 1, key, union, range_end }
    }
}

/// The end of the range of all keys that begin with `prefix`: the prefix with its last byte that is
/// not 0xff raised by one; `\0` (to the end of the store) if there is none.
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    match prefix.iter().rposition(|b| *b != 0xff) {
        Some(at) => {
            let mut end = prefix[..=at].to_vec();
            end[at] += 1;
            end.into()
        }
        None => Bytes::from_static(&[0]),
    }
}
