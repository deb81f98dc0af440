//! All objects, with one revision counter and the changes that led here. No requests, no waiting, no faults.
//!
//! Invariants: a revision is given to one change only and rises by one; what is in `log` explains every
//! difference between now and `floor`, so any state in between can be shown again.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use hyper::body::Bytes;
use serde_json::{Map, Value, json};

use crate::check;
use crate::clock;
use crate::kind::{Kind, NAMESPACES};
use crate::refusal::Refusal;

/// Namespace and name; the namespace is empty for kinds without one.
pub type Key = (String, String);

/// Changes kept before the oldest are forgotten by themselves.
const LOG: usize = 20_000;

/// One state of one object.
#[derive(Debug)]
pub struct Stored {
    /// The object as it is sent.
    pub json: Bytes,
}

impl Stored {
    fn new(value: &Value) -> Arc<Self> {
        Arc::new(Self { json: value.to_string().into() })
    }

    /// The object.
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.json).unwrap_or_default()
    }
}

/// One step of the history.
#[derive(Debug)]
pub struct Change {
    /// Its revision.
    pub revision: u64,
    /// What kind changed.
    pub kind: &'static Kind,
    /// Which object.
    pub key: Key,
    /// Before; none for a new object.
    pub before: Option<Arc<Stored>>,
    /// After; for a deleted object its last state with the revision of the deletion.
    pub now: Arc<Stored>,
    /// Whether it is a deletion.
    pub deleted: bool,
}

/// Which part of an object a write may touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All but `status`, where the kind has a subresource for it.
    Main,
    /// `status`, and `metadata`, as servers allow for the kinds here.
    Status,
    /// Everything: a test's own hand, not a request.
    All,
}

/// Everything stored.
#[derive(Debug)]
pub struct World {
    /// Revision of the newest change.
    pub revision: u64,
    /// States before this one cannot be shown any more.
    pub floor: u64,
    objects: BTreeMap<&'static Kind, BTreeMap<Key, Arc<Stored>>>,
    log: VecDeque<Arc<Change>>,
    uids: u64,
}

impl Default for World {
    fn default() -> Self {
        let (objects, log) = (BTreeMap::new(), VecDeque::new());
        let mut world = Self { revision: 1, floor: 1, objects, log, uids: 0 };
        for name in ["default", "kube-node-lease", "kube-public", "kube-system"] {
            let born = world.create(&NAMESPACES, "", json!({"metadata": {"name": name}}));
            debug_assert!(born.is_ok());
        }
        world
    }
}

impl World {
    /// One object as it is now.
    pub fn get(&self, kind: &'static Kind, key: &Key) -> Result<Arc<Stored>, Refusal> {
        let found = self.objects.get(kind).and_then(|objects| objects.get(key));
        found.cloned().ok_or_else(|| Refusal::not_found(kind, &key.1))
    }

    /// All objects of a kind, in one namespace if `namespace` is not empty, as they are now.
    pub fn list(&self, kind: &'static Kind, namespace: &str) -> Vec<(Key, Arc<Stored>)> {
        let all = self.objects.get(kind).into_iter().flatten();
        let wanted = all.filter(|((home, _), _)| namespace.is_empty() || home == namespace);
        wanted.map(|(key, stored)| (key.clone(), stored.clone())).collect()
    }

    /// All objects as they were at `revision`; none if that is forgotten.
    pub fn list_at(
        &self,
        kind: &'static Kind,
        namespace: &str,
        revision: u64,
    ) -> Option<Vec<(Key, Arc<Stored>)>> {
        if revision < self.floor {
            return None;
        }
        let mut then: BTreeMap<Key, Arc<Stored>> = self.list(kind, namespace).into_iter().collect();
        for change in self.log.iter().rev().take_while(|change| change.revision > revision) {
            if change.kind != kind || !(namespace.is_empty() || change.key.0 == namespace) {
                continue;
            }
            match &change.before {
                Some(before) => then.insert(change.key.clone(), before.clone()),
                None => then.remove(&change.key),
            };
        }
        Some(then.into_iter().collect())
    }

    /// Changes after `revision`, oldest first.
    pub fn since(&self, revision: u64) -> impl DoubleEndedIterator<Item = &Arc<Change>> {
        let from = self.log.partition_point(|change| change.revision <= revision);
        self.log.range(from..)
    }

    /// Forgets every change: a client that is not up to date must list again.
    pub fn compact(&mut self) {
        self.log.clear();
        self.floor = self.revision;
    }

    /// A new object. `namespace` is that of the request, empty for kinds without.
    pub fn create(
        &mut self,
        kind: &'static Kind,
        namespace: &str,
        mut value: Value,
    ) -> Result<Arc<Stored>, Refusal> {
        check::shape(kind, &mut value)?;
        let uid = self.uid();
        let metadata = check::metadata(&mut value)?;
        if metadata.get("name").and_then(Value::as_str).unwrap_or_default().is_empty()
            && let Some(stem) = metadata.get("generateName").and_then(Value::as_str)
        {
            let name = format!("{stem}{}", &uid[31..]);
            metadata.insert("name".into(), name.into());
        }
        let name = metadata.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        if kind.namespaced {
            check::namespace(metadata, namespace)?;
            self.get(&NAMESPACES, &(String::new(), namespace.to_owned()))?;
        }
        if metadata.get("resourceVersion").is_some_and(|version| version.as_str() != Some("")) {
            return Err(Refusal::unexplained("resourceVersion should not be set on objects to be created"));
        }
        metadata.insert("uid".into(), uid.into());
        metadata.insert("creationTimestamp".into(), clock::now().into());
        check::born(kind, &mut value);
        check::filled(kind, &mut value);
        check::object(kind, &name, &value)?;
        let key = (if kind.namespaced { namespace.to_owned() } else { String::new() }, name);
        if self.get(kind, &key).is_ok() {
            return Err(Refusal::exists(kind, &key.1));
        }
        Ok(self.put(kind, key, None, value))
    }

    /// Changes an object: `edit` makes the new state from the old one. An equal state is no change.
    pub fn write(
        &mut self,
        kind: &'static Kind,
        key: &Key,
        part: Part,
        edit: impl FnOnce(Value) -> Result<Value, Refusal>,
    ) -> Result<Arc<Stored>, Refusal> {
        let before = self.get(kind, key)?;
        let old = before.value();
        let mut new = edit(old.clone())?;
        check::addressed(key, &new)?;
        check::shape(kind, &mut new)?;
        check::same(kind, key, &old, check::metadata(&mut new)?)?;
        let (Some(was), Some(fields)) = (old.as_object(), new.as_object_mut()) else {
            return Err(Refusal::bad_request("the object provided is unrecognized"));
        };
        match part {
            Part::Main if kind.status => keep(was, fields, |field| field != "status"),
            Part::Status => keep(was, fields, |field| field == "status" || field == "metadata"),
            _ => {}
        }
        check::filled(kind, &mut new);
        check::object(kind, &key.1, &new)?;
        if part != Part::All {
            check::transition(kind, &key.1, &old, &new)?;
        }
        if new == old {
            return Ok(before);
        }
        Ok(self.put(kind, key.clone(), Some(before), new))
    }

    /// Removes an object; gives its last state.
    pub fn delete(&mut self, kind: &'static Kind, key: &Key) -> Result<Arc<Stored>, Refusal> {
        let before = self.get(kind, key)?;
        self.revision += 1;
        let mut value = before.value();
        value["metadata"]["resourceVersion"] = self.revision.to_string().into();
        let now = Stored::new(&value);
        self.objects.entry(kind).or_default().remove(key);
        self.record(Change {
            revision: self.revision,
            kind,
            key: key.clone(),
            before: Some(before),
            now: now.clone(),
            deleted: true,
        });
        Ok(now)
    }

    fn put(
        &mut self,
        kind: &'static Kind,
        key: Key,
        before: Option<Arc<Stored>>,
        mut value: Value,
    ) -> Arc<Stored> {
        self.revision += 1;
        value["metadata"]["resourceVersion"] = self.revision.to_string().into();
        let now = Stored::new(&value);
        self.objects.entry(kind).or_default().insert(key.clone(), now.clone());
        let change = Change { revision: self.revision, kind, key, before, now: now.clone(), deleted: false };
        self.record(change);
        now
    }

    fn record(&mut self, change: Change) {
        self.log.push_back(Arc::new(change));
        while self.log.len() > LOG {
            if let Some(forgotten) = self.log.pop_front() {
                self.floor = forgotten.revision;
            }
        }
    }

    /// A fresh uid of the usual form; equal ones cannot be had, so an object made again is another object.
    fn uid(&mut self) -> String {
        self.uids += 1;
        format!("4c0de000-0000-4000-8000-{:012x}", self.uids)
    }
}

/// Puts back from `was` every field that `may_change` does not name.
fn keep(was: &Map<String, Value>, fields: &mut Map<String, Value>, may_change: impl Fn(&str) -> bool) {
    fields.retain(|field, _| may_change(field) || was.contains_key(field));
    for (field, value) in was.iter().filter(|(field, _)| !may_change(field)) {
        fields.insert(field.clone(), value.clone());
    }
}
