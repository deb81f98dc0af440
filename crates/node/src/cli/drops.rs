//! `loden drops`: which packets this host drops, where and why.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use fastpath::drops::{Watch, reasons};
use kernel::{Netns, Rtnl, process};

use super::words::{Command, Words, flag, switch};
use super::{complain, print};
use crate::args;
use crate::capture::way;
use crate::doctor::collect;
use crate::doctor::ruleset::Ruleset;
use crate::drops::symbols::Symbols;
use crate::drops::{Count, Group, Groups, MOST, Place, Scene, group, show};
use crate::pods;

/// What it is, for help, completion and manual.
pub const COMMAND: Command = Command {
    name: "drops",
    words: "",
    summary: "say which packets this host drops, where and why",
    text: "\
Listens to the kernel for packets it drops on this host and in its pods, and says where, why, what usually causes that and \
which command mends it; the gravest first. Changes nothing: what listens ends with this command, however it ends.",
    flags: &[
        switch("-f", "go on until Ctrl-C, and say what is new each second").long("--follow"),
        flag("--seconds", "SECONDS", "listen for so many seconds; 10 without -f"),
        switch(
            "--all",
            "also what concerns no pod and no tunnel, and what is no loss: the ends of connections, frames for others",
        ),
        flag(
            "-o",
            "table|json",
            "text for people (the default), or one JSON document, with a version; with -f one in each line",
        )
        .long("--output"),
    ],
    exit: "0 nothing was dropped, 1 something was, 2 it could not listen.",
    sub: &[],
};

/// How often what is new is told.
const TICK: Duration = Duration::from_secs(1);
/// How often pods are looked for.
const LOOK: Duration = Duration::from_secs(2);
const SHORT: Duration = Duration::from_millis(100);

/// Runs the command; gives the exit status.
pub fn main(words: &[String]) -> u8 {
    COMMAND.serve(parse(words), |wish| run(&wish))
}

struct Wish {
    follow: bool,
    all: bool,
    json: bool,
    seconds: Option<u64>,
}

/// Whether the words make sense.
#[cfg(test)]
pub fn understands(words: &[String]) -> Result<(), String> {
    parse(words).map(drop)
}

/// `None` for help.
fn parse(words: &[String]) -> Result<Option<Wish>, String> {
    let mut wish = Wish { follow: false, all: false, json: false, seconds: None };
    let mut words = Words::new(words, &COMMAND);
    while let Some(name) = words.word()? {
        match name {
            "-f" => wish.follow = true,
            "--all" => wish.all = true,
            "-o" => wish.json = super::is_json(words.value()?)?,
            "--seconds" => {
                let text = words.value()?;
                let number = text.parse().ok().filter(|number| *number > 0);
                wish.seconds = Some(number.ok_or_else(|| format!("{text:?} is no number from 1 on"))?);
            }
            "--help" => return Ok(None),
            other => return Err(words.unknown(other)),
        }
    }
    Ok(Some(wish))
}

/// Namespaces by inode number, to read their rules in.
type Nets = BTreeMap<u32, Netns>;

fn run(wish: &Wish) -> Result<u8, String> {
    process::hold_end_signals().map_err(|error| error.to_string())?;
    let mut watch = Watch::start().map_err(|error| error.to_string())?;
    let (mut scene, mut nets) = (Scene { reasons: reasons(), ..Scene::default() }, Nets::new());
    if scene.reasons.is_empty() {
        return Err("the kernel gives no reasons for drops, which came with Linux 5.17".to_owned());
    }
    look(&mut scene, &mut nets, &mut watch)?;
    let symbols = Symbols::read();
    let limit = wish.seconds.or(if wish.follow { None } else { Some(10) }).map(Duration::from_secs);
    let pods = scene.places.values().filter(|place| place.netns.is_some()).count();
    let for_how_long = limit.map_or(String::new(), |limit| format!(" for {} s", limit.as_secs()));
    complain(&format!("listening for drops on this host and in {pods} pods{for_how_long}; Ctrl-C ends it\n"));
    let begin = Instant::now();
    let (mut groups, mut told_at, mut looked_at) = (Groups::default(), begin, begin);
    loop {
        let over = limit.is_some_and(|limit| begin.elapsed() >= limit) || process::end_is_pending();
        let patience = if over { Duration::ZERO } else { SHORT };
        for record in watch.take(patience).map_err(|error| error.to_string())? {
            let addresses = std::iter::once(record.location).chain(record.stack.iter().copied());
            let stack: Vec<&str> = addresses.filter_map(|address| symbols.name(address)).collect();
            if let Some(group) = group(&record, &stack, &scene, wish.all) {
                groups.add(group, record.bytes);
            }
        }
        if wish.follow && (over || told_at.elapsed() >= TICK) {
            tell(&groups.news(), &nets, &scene, wish.json);
            told_at = Instant::now();
        }
        if over {
            break;
        }
        if looked_at.elapsed() >= LOOK {
            // Pods come and go; one that cannot be looked at now may be gone.
            let _ = look(&mut scene, &mut nets, &mut watch);
            looked_at = Instant::now();
        }
    }
    let sorted: Vec<(Group, Count)> =
        groups.sorted().into_iter().map(|(group, count)| (group.clone(), count)).collect();
    let passed_over = watch.passed_over();
    if !wish.follow {
        if wish.json {
            let rules = Rules::default();
            let each = sorted.iter().map(|(group, count)| {
                let told = show::tell(group, *count, &rules.of(group, &nets, &scene), &scene);
                show::json(group, *count, &told)
            });
            let seconds = begin.elapsed().as_secs();
            let document = show::document(each.collect(), groups.others, passed_over, seconds);
            print(&format!("{}\n", document.to_indented()));
        } else {
            tell(&sorted, &nets, &scene, false);
        }
    }
    if passed_over > 0 {
        complain(&format!("{passed_over} packets were dropped too fast to be looked at\n"));
    }
    if groups.others > 0 {
        complain(&format!(
            "{} packets are of more than {MOST} kinds and were not told apart\n",
            groups.others
        ));
    }
    if sorted.is_empty() && !wish.json {
        complain("nothing that concerns pods or tunnels was dropped\n");
    }
    Ok(u8::from(!sorted.is_empty()))
}

/// Packet rules by namespace, read once.
#[derive(Default)]
struct Rules(std::cell::RefCell<BTreeMap<String, Ruleset>>);

impl Rules {
    /// Those that may have dropped a packet of a group.
    fn of(&self, group: &Group, nets: &Nets, scene: &Scene) -> Ruleset {
        if group.hook.is_none() {
            return Ruleset::default();
        }
        let mut known = self.0.borrow_mut();
        let read = || {
            let place = scene.places.iter().find(|(_, place)| place.name == group.place);
            let netns = place.and_then(|(inode, _)| nets.get(inode));
            netns.and_then(|netns| netns.run(|| collect::rules().0).ok()).unwrap_or_default()
        };
        known.entry(group.place.clone()).or_insert_with(read).clone()
    }
}

fn tell(lines: &[(Group, Count)], nets: &Nets, scene: &Scene, json: bool) {
    let (rules, style) = (Rules::default(), lab::style(false));
    for (group, count) in lines {
        let told = show::tell(group, *count, &rules.of(group, nets, scene), scene);
        if json {
            print(&format!("{}\n", show::json(group, *count, &told).to_compact()));
        } else if count.told > 0 {
            // What it means was said when it was new.
            print(&style.lines(&show::block(group, *count, &told, style)[..1]));
        } else {
            print(&style.lines(&show::block(group, *count, &told, style)));
        }
    }
}

/// Looks at the host and its pods, and listens to those that are new.
fn look(scene: &mut Scene, nets: &mut Nets, watch: &mut Watch) -> Result<(), String> {
    let text = |error: kernel::Error| error.to_string();
    let host = Netns::current().map_err(|error| error.to_string())?;
    let id = host.id().map_err(|error| error.to_string())?;
    let mut found = vec![(Place { name: "host".to_owned(), ..Place::default() }, id, host)];
    let mut ends = Vec::new();
    let names = pods::names::Names::read();
    for pod in pods::all()? {
        ends.extend(pod.host_ends);
        scene.networks.extend(pod.addresses.iter().map(ipnet::IpNet::trunc));
        let address = pod.addresses.first().map(ipnet::IpNet::addr);
        let called = address.and_then(|address| names.of_address(address)).map(ToString::to_string);
        let name = address.map_or(String::new(), |address| address.to_string());
        let netns = Some(pod.path.display().to_string());
        found.push((Place { name, netns, pod: called }, pod.id, pod.netns));
    }
    for (place, id, netns) in found {
        let inode = id.inode as u32;
        if nets.insert(inode, netns).is_none() {
            watch.include(inode).map_err(|error| error.to_string())?;
        }
        scene.places.insert(inode, place);
    }
    let env = fs::read_to_string(args::from_environment().subnet_file).unwrap_or_default();
    let networks = ["FLANNEL_NETWORK=", "FLANNEL_IPV6_NETWORK="].into_iter();
    let values = networks.filter_map(|key| env.lines().find_map(|line| line.strip_prefix(key)));
    scene
        .networks
        .extend(values.flat_map(|value| value.split(',')).filter_map(|net| net.parse::<ipnet::IpNet>().ok()));
    scene.networks.sort();
    scene.networks.dedup();
    let carries = ["bridge", "vxlan", "ipip", "wireguard", "tun"];
    let links = Rtnl::open().map_err(text)?.links().map_err(text)?;
    let carriers =
        links.iter().filter(|link| carries.contains(&link.link.kind.name()) || ends.contains(&link.index));
    scene.devices = carriers.map(|link| link.link.name.to_string()).collect();
    scene.ports = way::ports(None).map_err(text)?;
    Ok(())
}
