//! `loden cni gc`: what is valid is what has a namespace that exists, whoever attached it.

use std::fs;
use std::path::Path;

use kernel::Netns;
use model::cni::conflist::NetworkList;
use model::cni::record::{ATTACHMENTS, Record};
use model::cni::{Error, Version};
use model::gojson::Json;

use super::attach::{Runner, Step};
use super::load::Loaded;
use crate::pods::names::state_dir;

/// What was done.
pub struct Collected {
    /// Attachments kept, as container and interface.
    pub valid: Vec<(String, String)>,
    /// Attachments ended.
    pub ended: Vec<(String, String)>,
    /// Calls of GC.
    pub steps: Vec<Step>,
}

/// Ends the attachments the cache knows whose namespace is gone, then has every plugin remove what belongs
/// to none that is left.
///
/// # Errors
/// The first failure, after everything was tried.
pub fn collect(runner: &Runner, loaded: &Loaded) -> Result<Collected, Error> {
    let (list, _) = loaded;
    let mut done = Collected { valid: Vec::new(), ended: Vec::new(), steps: Vec::new() };
    let mut outcome = Ok(());
    for entry in runner.all_cached(&list.name)? {
        let pair = (entry.container_id.clone(), entry.ifname.clone());
        if exists(&entry.netns) {
            done.valid.push(pair);
            continue;
        }
        match runner.del_cached(loaded, &entry) {
            Ok(_) => done.ended.push(pair),
            Err(error) => {
                // Not to be lost because a plugin fails today.
                done.valid.push(pair);
                outcome = outcome.and(Err(error));
            }
        }
    }
    // Made by a runtime that keeps no results here.
    done.valid.extend(recorded(&list.name));
    done.valid.sort();
    done.valid.dedup();
    if list.disable_gc || list.version().map_err(Error::config)? < Version(1, 1, 0) {
        return outcome.map(|()| done);
    }
    let object = |(id, ifname): &(String, String)| {
        Json::object([("containerID", id.as_str().into()), ("ifname", ifname.as_str().into())])
    };
    let keep = Json::array(done.valid.iter().map(object));
    let more = [("cni.dev/valid-attachments", keep.clone()), ("cni.dev/attachments", keep)];
    for plugin in &list.plugins {
        let doc = list.document(plugin, None, &Json::Null, &more);
        let called = runner.call(list, plugin, "GC", "", &doc, &mut done.steps);
        outcome = outcome.and(called.map(|_| ()));
    }
    outcome.map(|()| done)
}

fn exists(netns: &str) -> bool {
    Netns::open(Path::new(netns)).is_ok()
}

/// Attachments of which our own plugins know, with a namespace that exists.
fn recorded(network: &str) -> Vec<(String, String)> {
    let Ok(files) = fs::read_dir(state_dir().join(ATTACHMENTS).join(network)) else { return Vec::new() };
    let read = |text: String| -> Option<(String, String)> {
        let record = Record::parse(&text)?;
        exists(&record.netns).then_some((record.container_id, record.ifname))
    };
    files.filter_map(|file| read(fs::read_to_string(file.ok()?.path()).ok()?)).collect()
}

impl Collected {
    /// As an object.
    pub fn to_json(&self, network: &str) -> Json {
        let object = |(id, ifname): &(String, String)| {
            Json::object([("containerID", id.as_str().into()), ("ifname", ifname.as_str().into())])
        };
        Json::object([
            ("network", network.into()),
            ("valid", Json::array(self.valid.iter().map(object))),
            ("ended", Json::array(self.ended.iter().map(object))),
            ("plugins", super::show::plugins(&self.steps)),
        ])
    }

    /// For people.
    pub fn to_text(&self, list: &NetworkList) -> String {
        let count = |n: usize| if n == 1 { "1 attachment".to_owned() } else { format!("{n} attachments") };
        let mut text = format!(
            "network {}: {} with a namespace kept, {} without one ended\n",
            list.name,
            count(self.valid.len()),
            self.ended.len()
        );
        for (id, ifname) in &self.ended {
            text.push_str(&format!("  ended {ifname} of {id}\n"));
        }
        match (list.disable_gc, self.steps.is_empty()) {
            (true, _) => text.push_str("  the list says disableGC: the plugins were not called\n"),
            (_, true) => text.push_str(&format!(
                "  cniVersion {:?} has no GC (1.1.0 has): the plugins were not called\n",
                list.cni_version
            )),
            _ => text.push_str(&super::show::times(&self.steps)),
        }
        text
    }
}
