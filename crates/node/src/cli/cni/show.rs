//! Answers for people, and as JSON.

use model::cni::conflist::NetworkList;
use model::cni::{CniResult, Error, code};
use model::gojson::Json;

use super::attach::{Added, Runner, Step};

/// What an attachment consists of.
///
/// # Errors
/// The last plugin's result cannot be read.
pub fn added(list: &NetworkList, runner: &Runner, netns: &str, done: &Added) -> Result<String, Error> {
    let failed = |e: String| Error::new(code::DECODE, format!("read the result: {e}"));
    let result = CniResult::parse(&done.result, &list.cni_version).map_err(failed)?;
    let mut text = format!(
        "attached {} of {netns} to network {} as {}\n",
        runner.ifname, list.name, runner.container_id
    );
    for (n, interface) in result.interfaces.iter().enumerate() {
        let place = if interface.sandbox.is_empty() { "on the host" } else { "in the pod" };
        text.push_str(&format!("  {:<15} {place}", interface.name));
        if !interface.mac.is_empty() {
            text.push_str(&format!("  {}", interface.mac));
        }
        text.push('\n');
        for ip in result.ips.iter().filter(|ip| ip.interface == Some(n as i64)) {
            text.push_str(&address(ip));
        }
    }
    let known = |index: i64| usize::try_from(index).is_ok_and(|n| n < result.interfaces.len());
    for ip in result.ips.iter().filter(|ip| !ip.interface.is_some_and(known)) {
        text.push_str(&address(ip));
    }
    for route in &result.routes {
        let via = route.gw.map(|gw| format!(" via {gw}")).unwrap_or_default();
        text.push_str(&format!("  route {}{via}\n", route.dst));
    }
    if !result.dns.nameservers.is_empty() {
        text.push_str(&format!("  name servers {}\n", result.dns.nameservers.join(", ")));
    }
    Ok(text + &times(&done.steps))
}

fn address(ip: &model::cni::IpConfig) -> String {
    let via = ip.gateway.map(|gw| format!(", gateway {gw}")).unwrap_or_default();
    format!("    {}{via}\n", ip.address)
}

/// What the other verbs say.
pub fn steps(list: &NetworkList, verb: &str, runner: &Runner, netns: &str, steps: &[Step]) -> String {
    let (name, ifname, version) = (&list.name, &runner.ifname, &list.cni_version);
    let text = match (verb, steps.is_empty()) {
        ("del", _) => format!("detached {ifname} of {netns} from network {name}\n"),
        ("check", false) => format!("{ifname} of {netns} is as network {name} made it\n"),
        ("check", true) => format!("network {name}: the list says disableCheck, nothing was compared\n"),
        (_, false) => format!("network {name} can attach pods\n"),
        (_, true) => {
            format!("network {name}: cniVersion {version:?} has no STATUS (1.1.0 has), nothing was asked\n")
        }
    };
    text + &times(steps)
}

/// The calls and how long they took.
pub fn times(steps: &[Step]) -> String {
    if steps.is_empty() {
        return String::new();
    }
    let one = |step: &Step| format!("{} {:.1} ms", step.plugin, step.took.as_secs_f64() * 1e3);
    format!("  {}\n", steps.iter().map(one).collect::<Vec<_>>().join(", "))
}

/// The same as an object.
pub fn steps_json(network: &str, verb: &str, steps: &[Step]) -> Json {
    Json::object([("network", network.into()), ("verb", verb.into()), ("plugins", plugins(steps))])
}

/// The calls with their times in microseconds.
pub fn plugins(steps: &[Step]) -> Json {
    let micros = |step: &Step| u32::try_from(step.took.as_micros()).unwrap_or(u32::MAX);
    Json::array(steps.iter().map(|step| {
        Json::object([("type", Json::from(step.plugin.as_str())), ("microseconds", micros(step).into())])
    }))
}
