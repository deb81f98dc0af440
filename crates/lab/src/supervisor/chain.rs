//! Runs a CNI network list the way a container runtime does (cni.md 1.11, 1.12): plugins in order for
//! ADD, backwards for DEL, each with the result of the one before.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use serde_json::{Map, Value};

use super::node::{Place, converse};
use super::stage::SHARED;
use crate::error::{Doing, Error, Result};
use crate::proto::Step;
use crate::spec::Spec;
use crate::sys;

/// The interface every pod gets.
pub const POD_DEVICE: &str = "eth0";

/// A network list and where its plugins are.
pub struct Chain {
    name: String,
    version: String,
    plugins: Vec<Map<String, Value>>,
    bin_dir: PathBuf,
}

/// What one ADD gave.
pub struct Added {
    /// Result of the last plugin.
    pub result: Value,
    /// Time of each plugin.
    pub plugins: Vec<Step>,
    /// Time of the whole chain in ms.
    pub ms: f64,
}

impl Chain {
    /// Reads the network list and finds, or installs for this lab, the plugins.
    ///
    /// # Errors
    /// The list lacks what a runtime needs, or `loden-cni` is not to be found.
    pub fn prepare(spec: &Spec) -> Result<Chain> {
        let list: Value = serde_json::from_str(spec.conflist())
            .map_err(|e| Error::said(format!("read the CNI network list: {e}")))?;
        let text = |key: &str| list[key].as_str().map(str::to_owned);
        let plugins: Option<Vec<_>> =
            list["plugins"].as_array().map(|all| all.iter().filter_map(|p| p.as_object().cloned()).collect());
        let lacks = |key: &str| Error::said(format!("the CNI network list has no {key:?}"));
        let bin_dir = match &spec.cni_bin_dir {
            Some(dir) => PathBuf::from(dir),
            None => install()?,
        };
        Ok(Chain {
            name: text("name").ok_or_else(|| lacks("name"))?,
            version: text("cniVersion").unwrap_or_else(|| "0.3.1".to_owned()),
            plugins: plugins.filter(|p| !p.is_empty()).ok_or_else(|| lacks("plugins"))?,
            bin_dir,
        })
    }

    /// For a lab that was made without agents and plugins: every ADD says so.
    pub fn none() -> Chain {
        Chain { name: String::new(), version: String::new(), plugins: Vec::new(), bin_dir: PathBuf::new() }
    }

    /// Connects a pod. A chain that fails half way is undone, as a runtime must.
    ///
    /// # Errors
    /// The first plugin that fails, by name, with its own words.
    pub fn add(&self, host: &Place, pod: &Place) -> Result<Added> {
        if self.plugins.is_empty() {
            return Err(Error::said("this lab has no CNI plugins; make it with agents or --cni-bin-dir"));
        }
        self.loopback(host, pod, "ADD")?;
        let start = Instant::now();
        let mut steps = Vec::new();
        let mut result = Value::Null;
        for plugin in &self.plugins {
            let one = Instant::now();
            match self.call(plugin, "ADD", host, pod, POD_DEVICE, &result) {
                Ok(Some(next)) => result = next,
                Ok(None) => {}
                Err(error) => {
                    let _ = self.del(host, pod, &Value::Null);
                    return Err(error);
                }
            }
            steps.push(Step { what: kind(plugin).to_owned(), ms: one.elapsed().as_secs_f64() * 1000.0 });
        }
        Ok(Added { result, plugins: steps, ms: start.elapsed().as_secs_f64() * 1000.0 })
    }

    /// Disconnects a pod; gives the time of the whole chain in ms.
    ///
    /// # Errors
    /// The first plugin that fails, by name, with its own words.
    pub fn del(&self, host: &Place, pod: &Place, result: &Value) -> Result<f64> {
        let start = Instant::now();
        for plugin in self.plugins.iter().rev() {
            self.call(plugin, "DEL", host, pod, POD_DEVICE, result)?;
        }
        let ms = start.elapsed().as_secs_f64() * 1000.0;
        self.loopback(host, pod, "DEL").map(|()| ms)
    }

    /// Runtimes call `loopback` for each pod, outside the list.
    fn loopback(&self, host: &Place, pod: &Place, verb: &str) -> Result<()> {
        let mut plugin = Map::new();
        plugin.insert("type".to_owned(), Value::from("loopback"));
        self.call(&plugin, verb, host, pod, "lo", &Value::Null).map(drop)
    }

    fn call(
        &self,
        plugin: &Map<String, Value>,
        verb: &str,
        host: &Place,
        pod: &Place,
        device: &str,
        previous: &Value,
    ) -> Result<Option<Value>> {
        let kind = kind(plugin);
        let mut document = plugin.clone();
        document.insert("name".to_owned(), Value::from(self.name.as_str()));
        document.insert("cniVersion".to_owned(), Value::from(self.version.as_str()));
        if !previous.is_null() {
            document.insert("prevResult".to_owned(), previous.clone());
        }
        let action = format!("{verb} of {} through the CNI plugin {kind}", pod.name);
        let program = self.bin_dir.join(kind);
        if !program.exists() {
            let dir = self.bin_dir.display();
            return Err(Error::said(format!("{action}: there is no {kind} in {dir}; see --cni-bin-dir")));
        }
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", format!("loden-lab-{}", pod.name))
            .env("CNI_NETNS", format!("/proc/{}/ns/net", pod.pid()))
            .env("CNI_IFNAME", device)
            .env("CNI_PATH", &self.bin_dir);
        sys::start_inside(&mut command, host.inside()?, 0);
        let output = converse(command, Value::Object(document).to_string().as_bytes(), &action)?;
        let answer: Option<Value> = serde_json::from_slice(&output.stdout).ok();
        if output.status.success() {
            return Ok(answer);
        }
        let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(Error::said(format!("{action}: {}", complaint(answer.as_ref(), &words, output.status))))
    }
}

/// A plugin's own words: its error object, else its standard error, else how it ended.
fn complaint(answer: Option<&Value>, stderr: &str, status: std::process::ExitStatus) -> String {
    let text = |key: &str| answer.and_then(|a| a[key].as_str()).filter(|t| !t.is_empty());
    match (text("msg"), text("details")) {
        (Some(msg), Some(details)) => format!("{msg}; {details}"),
        (Some(msg), None) => msg.to_owned(),
        _ if !stderr.is_empty() => stderr.to_owned(),
        _ => status.to_string(),
    }
}

fn kind(plugin: &Map<String, Value>) -> &str {
    plugin.get("type").and_then(Value::as_str).unwrap_or("(no type)")
}

/// Puts the plugins of `loden-cni`, which stands beside this program, into the lab's own directory.
fn install() -> Result<PathBuf> {
    let exe = std::fs::read_link("/proc/self/exe").doing(|| "find this program's directory".to_owned())?;
    let program = exe.with_file_name("loden-cni");
    if !program.is_file() {
        return Err(Error::said(format!(
            "the CNI plugins are not at {}; build them with `cargo build` or name their directory with \
             --cni-bin-dir",
            program.display()
        )));
    }
    let bin_dir = Path::new(SHARED).join("bin");
    let mut command = Command::new(&program);
    command.arg("install").arg("--bin-dir").arg(&bin_dir);
    let output = converse(command, &[], &format!("run {} install", program.display()))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Error::said(format!(
            "install the CNI plugins: {}",
            complaint(None, &words, output.status)
        )));
    }
    Ok(bin_dir)
}

/// Addresses in a result of the 0.3.1 form and later: `ips[].address`.
pub fn addresses(result: &Value) -> Vec<std::net::IpAddr> {
    let ips = result["ips"].as_array().into_iter().flatten();
    ips.filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse().ok()).collect()
}
