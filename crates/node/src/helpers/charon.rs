//! strongSwan's charon for the backend ipsec: started, taken over when it runs, watched, and told its
//! connections over VICI (flannel.md 6.7, decision 0151).
//!
//! It is no child that ends with us: an agent that ends leaves charon and its tunnels, and the next one finds
//! both by the socket (F-113). The secret comes from the configuration and goes to charon, nowhere else.

mod silence;
mod vici;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use kernel::xfrm::{Change, Watch};
use model::NetConf;
use model::config::IpsecConf;
use plan::state::{Ike, IkeKey, REQID};
use plan::{Key, Object, Step};

use super::queue::{Next, Queue};
use crate::inputs::{Inbox, News};
use crate::rights::{Need, Rights};
use silence::Silence;
use vici::{SOCKET, Vici};
use wire::{Item, section, text};

/// Charon's connections are looked at this often.
const LOOK: Duration = Duration::from_secs(2);
/// So many looks in a row without an association, and it is asked for.
const PATIENCE: u32 = 2;
/// Time charon has to open its socket.
const START: Duration = Duration::from_secs(30);
/// So often in a row without an answer, and a charon of ours is killed.
const STUCK: u32 = 3;
/// Where charon is besides `PATH`, by distribution.
const PLACES: &[&str] = &[
    "/usr/lib/strongswan/charon",
    "/usr/lib/ipsec/charon",
    "/usr/libexec/strongswan/charon",
    "/usr/libexec/ipsec/charon",
];

/// The helper. Its thread ends with the value, charon does not.
pub struct Charon {
    queue: Arc<Queue>,
}

impl Charon {
    /// Starts the threads. Charon itself is started when the loop asks for it.
    ///
    /// # Errors
    /// The configuration makes no sense.
    pub fn start(conf: &NetConf, inbox: Arc<Inbox>, rights: &Rights) -> Result<Charon, String> {
        let ipsec = IpsecConf::decode(&conf.backend).map_err(|error| error.to_string())?;
        let queue = Arc::new(Queue::new(inbox.clone()));
        let mut worker = Worker {
            queue: queue.clone(),
            network: conf.network,
            conf: ipsec,
            child: None,
            vici: None,
            secrets: BTreeSet::new(),
            without: BTreeMap::new(),
            silence: Silence::default(),
            silent: 0,
        };
        Queue::thread_with(rights, Need::Charon, "charon", move || worker.work());
        Queue::thread("policies", move || watch_policies(&inbox));
        Ok(Charon { queue })
    }

    /// Where steps go and results come from.
    pub fn queue(&self) -> &Queue {
        &self.queue
    }
}

impl Drop for Charon {
    fn drop(&mut self) {
        self.queue.stop();
    }
}

/// Tells the loop what happens to IPsec policies. Without it the slow resync repairs them.
fn watch_policies(inbox: &Inbox) {
    loop {
        let told = Watch::open().and_then(|mut watch| {
            inbox.news(|_| News { ours: true, ..News::default() });
            loop {
                for change in watch.next_changes()? {
                    inbox.news(|_| match change {
                        Change::Object(key, now) => News { entries: vec![(key, now)], ..News::default() },
                        Change::All => News { ours: true, ..News::default() },
                    });
                }
            }
        });
        let Err::<(), _>(error) = told else { return };
        tracing::debug!("follow changes of IPsec policies: {error}; again in 5 s");
        std::thread::sleep(Duration::from_secs(5));
    }
}

struct Worker {
    queue: Arc<Queue>,
    /// Connections between its subnets are ours.
    network: Option<Ipv4Net>,
    conf: IpsecConf,
    /// Charon, if it was started by this process.
    child: Option<Child>,
    vici: Option<Vici>,
    /// Whose secret this charon has.
    secrets: BTreeSet<Ipv4Addr>,
    /// Connections without an association, and for how many looks.
    without: BTreeMap<IkeKey, u32>,
    silence: Silence,
    /// How often in a row it did not answer.
    silent: u32,
}

impl Worker {
    fn work(&mut self) {
        let mut looked = Instant::now();
        loop {
            match self.queue.next(Some(LOOK.saturating_sub(looked.elapsed()))) {
                Next::Stop => return,
                Next::Nothing => {}
                Next::Job(step) => {
                    let result = self.carry_out(&step);
                    self.queue.done(step, result, false);
                    if self.vici.is_some() && self.child_ended().is_none() {
                        self.silent = 0;
                    }
                }
            }
            if looked.elapsed() >= LOOK {
                self.look();
                looked = Instant::now();
            }
        }
    }

    fn carry_out(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Put(Object::Charon) => self.ensure(),
            Step::Put(Object::Ike(ike)) => self.load(ike),
            Step::Delete(Object::Ike(ike)) => self.unload(ike.key),
            _ => Ok(()),
        }
    }

    /// Charon runs and answers.
    fn ensure(&mut self) -> Result<(), String> {
        let refusal = match Vici::open(Path::new(SOCKET)) {
            Ok(vici) => return self.take_over(vici, "takes over the charon that runs"),
            Err(error) => error,
        };
        if matches!(refusal.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) {
            return Err(self.stuck());
        }
        if !matches!(refusal.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) {
            return Err(format!("connect to charon on {SOCKET}: {refusal}"));
        }
        if self.child.is_none() || self.child_ended().is_some() {
            let path = find(&std::env::var("PATH").unwrap_or_default()).ok_or_else(|| {
                format!(
                    "the backend ipsec needs strongSwan's daemon, and there is no charon in PATH nor at {}; install \
                     it (Debian: strongswan-charon and strongswan-swanctl), or use the backend vxlan",
                    PLACES.join(", ")
                )
            })?;
            let mut command = Command::new(&path);
            // A group of its own: what ends the agent from a terminal is not meant for it.
            command.stdin(Stdio::null()).process_group(0);
            let child = command.spawn().map_err(|error| format!("start {}: {error}", path.display()))?;
            tracing::info!("started {} as process {}", path.display(), child.id());
            self.child = Some(child);
        }
        let deadline = Instant::now() + START;
        loop {
            std::thread::sleep(Duration::from_millis(50));
            if let Ok(vici) = Vici::open(Path::new(SOCKET)) {
                return self.take_over(vici, "charon answers");
            }
            if let Some(status) = self.child_ended() {
                return Err(format!(
                    "charon ended with {status} when it was started; its own lines in this log or in syslog say why, \
                     such as another charon that runs without the plugin vici"
                ));
            }
            if Instant::now() > deadline {
                return Err(format!(
                    "charon runs and opens no {SOCKET} for {} s: its plugin vici is missing or configured otherwise \
                     (Debian: strongswan-swanctl, /etc/strongswan.d/charon/vici.conf)",
                    START.as_secs()
                ));
            }
        }
    }

    fn stuck(&mut self) -> String {
        self.silent += 1;
        if self.silent >= STUCK
            && let Some(child) = &mut self.child
        {
            let _ = child.kill();
            return "charon did not answer and was killed; tunnels that stand go on, and it is started again"
                .to_owned();
        }
        format!(
            "charon does not answer on {SOCKET}; if it stays so kill its process with -9: tunnels that stand go on, and \
             it is started again"
        )
    }

    /// A charon without any memory of ours, or with that of an earlier agent.
    fn take_over(&mut self, vici: Vici, how: &str) -> Result<(), String> {
        self.vici = Some(vici);
        self.secrets.clear();
        self.without.clear();
        let names = self.talk(|vici| vici.list("list-conns", "list-conn"))?;
        let known: Vec<IkeKey> = names.iter().filter_map(|item| self.ours(item.name())).collect();
        tracing::info!("{how}, with {} connections of this network", known.len());
        for key in known {
            self.queue.found(Key::Ike(key), Some(unknown(key)), None);
        }
        Ok(())
    }

    /// How our child ended, if it did.
    fn child_ended(&mut self) -> Option<String> {
        let status = self.child.as_mut()?.try_wait().ok()??;
        Some(status.to_string())
    }

    fn ours(&self, name: &str) -> Option<IkeKey> {
        ours(self.network.as_slice(), name)
    }

    /// Says something to charon; after an error it is spoken to anew.
    fn talk<T>(&mut self, say: impl FnOnce(&mut Vici) -> io::Result<T>) -> Result<T, String> {
        let vici = self.vici.as_mut().ok_or("charon is not there")?;
        say(vici).map_err(|error| {
            self.vici = None;
            format!("ask charon on {SOCKET}: {error}")
        })
    }

    /// What charon refuses is a sentence.
    fn order(&mut self, command: &str, items: Vec<Item>) -> Result<(), String> {
        self.talk(|vici| vici.order(command, items))?
            .map_err(|why| format!("charon refuses {command}: {why}"))
    }

    fn load(&mut self, ike: &Ike) -> Result<(), String> {
        for owner in [ike.id, ike.key.remote] {
            if !self.secrets.contains(&owner) {
                self.order("load-shared", shared(owner, self.conf.psk.bytes()))?;
                self.secrets.insert(owner);
            }
        }
        self.order("load-conn", vec![connection(ike)]).map_err(|why| {
            format!("connection {}: {why}; compare ESPProposal with what charon knows", ike.key)
        })
    }

    fn unload(&mut self, key: IkeKey) -> Result<(), String> {
        self.talk(|vici| unload(vici, key))??;
        let held = self.held();
        if !held.iter().any(|other| *other != key && other.remote == key.remote)
            && self.secrets.remove(&key.remote)
        {
            let _ = self
                .talk(|vici| vici.order("unload-shared", vec![Item::value("id", secret_id(key.remote))]))?;
        }
        Ok(())
    }

    fn held(&self) -> Vec<IkeKey> {
        let connection = |object| if let Object::Ike(ike) = object { Some(ike.key) } else { None };
        self.queue.held().into_iter().filter_map(connection).collect()
    }

    /// Compares charon with what it was told, and tells what is not so any more.
    fn look(&mut self) {
        if !self.queue.held().contains(&Object::Charon) {
            return;
        }
        if let Some(status) = self.child_ended() {
            self.child = None;
            return self.lost(&format!("charon ended with {status}"));
        }
        let look = |vici: &mut Vici| {
            let conns = vici.list("list-conns", "list-conn")?;
            let keys = vici.ask("get-shared", Vec::new())?;
            Ok((conns, keys, vici.list("list-sas", "list-sa")?))
        };
        if self.vici.is_none() {
            self.vici = Vici::open(Path::new(SOCKET)).ok();
        }
        let (conns, keys, sas) = match self.talk(look) {
            Ok(found) => found,
            Err(error) => return self.lost(&error),
        };
        let has = |owner: &Ipv4Addr| {
            let id = secret_id(*owner);
            keys.iter()
                .any(|item| matches!(item, Item::List(_, ids) if ids.contains(&id.clone().into_bytes())))
        };
        self.secrets.retain(has);
        let there: BTreeSet<IkeKey> = conns.iter().filter_map(|item| self.ours(item.name())).collect();
        let held: BTreeSet<IkeKey> = self.held().into_iter().collect();
        for key in &held {
            if !there.contains(key) || !self.secrets.contains(&key.remote) {
                self.queue.found(Key::Ike(*key), None, None);
            }
        }
        for key in there.difference(&held) {
            self.queue.found(Key::Ike(*key), Some(unknown(*key)), None);
        }
        self.without.retain(|key, _| held.contains(key));
        self.silence.retain(|key| held.contains(key));
        for key in there.intersection(&held) {
            self.silence.look(*key, stands(&sas, *key));
            self.nudge(*key, &sas);
        }
        self.queue.say(self.silence.sentence());
    }

    /// A connection whose association somebody ended is begun again; charon itself would wait for traffic, and
    /// finds no connection by it, for all have one reqid.
    fn nudge(&mut self, key: IkeKey, sas: &[Item]) {
        let name = key.to_string();
        let mut known = sas.iter().filter(|item| item.name() == name).peekable();
        let fine = |item: &Item| match item {
            Item::Section(_, inside) => {
                text(inside, "state") != Some("ESTABLISHED") || !section(inside, "child-sas").is_empty()
            }
            _ => false,
        };
        if known.peek().is_some() && known.any(fine) {
            self.without.remove(&key);
            return;
        }
        let looks = self.without.entry(key).or_default();
        *looks += 1;
        if *looks > PATIENCE {
            *looks = 0;
            tracing::info!("connection {name} has no association, beginning one");
            let begin = vec![
                Item::value("ike", &name),
                Item::value("child", key.child()),
                Item::value("timeout", "-1"),
            ];
            let _ = self.order("initiate", begin);
        }
    }

    /// Charon is gone, or deaf: nothing it held stands.
    fn lost(&mut self, why: &str) {
        self.vici = None;
        for key in self.held() {
            self.queue.found(Key::Ike(key), None, None);
        }
        let sentence = format!("{why}; it is started again, and tunnels that stand go on until then");
        self.queue.found(Key::Charon, None, Some(sentence));
    }
}

/// Whether an association of a connection carries packets.
fn stands(sas: &[Item], key: IkeKey) -> bool {
    let name = key.to_string();
    sas.iter().filter(|item| item.name() == name).any(|item| match item {
        Item::Section(_, inside) => {
            text(inside, "state") == Some("ESTABLISHED") && !section(inside, "child-sas").is_empty()
        }
        _ => false,
    })
}

/// A connection between two subnets of one of these networks, by its name.
fn ours(networks: &[Ipv4Net], name: &str) -> Option<IkeKey> {
    let within = |key: &IkeKey| {
        networks.iter().any(|net| net.contains(&key.local_net) && net.contains(&key.remote_net))
    };
    IkeKey::parse(name).filter(within)
}

/// Charon forgets a connection and ends its association. The inner error is charon's.
fn unload(vici: &mut Vici, key: IkeKey) -> io::Result<Result<(), String>> {
    let name = key.to_string();
    match vici.order("unload-conn", vec![Item::value("name", &name)])? {
        Err(why) if !why.contains("not found") => {
            return Ok(Err(format!("charon refuses to unload {name}: {why}")));
        }
        _ => {}
    }
    let end = vec![Item::value("ike", &name), Item::value("force", "yes"), Item::value("timeout", "-1")];
    // There may be none to end.
    let _ = vici.order("terminate", end)?;
    Ok(Ok(()))
}

/// Connections of these networks in the charon that runs here, if one does; for `loden cleanup`.
pub fn left(networks: &[Ipv4Net]) -> Vec<Object> {
    let Ok(mut vici) = Vici::open(Path::new(SOCKET)) else { return Vec::new() };
    let conns = vici.list("list-conns", "list-conn").unwrap_or_default();
    conns.iter().filter_map(|item| ours(networks, item.name())).map(unknown).collect()
}

/// Takes one away; for `loden cleanup`.
///
/// # Errors
/// Charon does not answer, or refuses.
pub fn remove(key: IkeKey) -> Result<(), String> {
    let done = Vici::open(Path::new(SOCKET)).and_then(|mut vici| unload(&mut vici, key));
    done.map_err(|error| format!("ask charon on {SOCKET}: {error}"))?
}

/// A connection of ours that an earlier agent told charon of: nobody can ask it how in all detail, so it
/// differs from any that is wanted and is told again, which changes nothing that runs.
fn unknown(key: IkeKey) -> Object {
    Object::Ike(Box::new(Ike { key, id: Ipv4Addr::UNSPECIFIED, encap: false, proposal: String::new() }))
}

fn secret_id(owner: Ipv4Addr) -> String {
    format!("flannel-{owner}")
}

fn shared(owner: Ipv4Addr, secret: &[u8]) -> Vec<Item> {
    vec![
        Item::value("id", secret_id(owner)),
        Item::value("type", "IKE"),
        Item::value("data", secret),
        Item::list("owners", owner.to_string()),
    ]
}

/// flannel's connection, with a delay after which silent peers are asked whether they live (F-114).
fn connection(ike: &Ike) -> Item {
    let key = &ike.key;
    let end = |id: Ipv4Addr| vec![Item::value("auth", "psk"), Item::value("id", id.to_string())];
    let child = vec![
        Item::list("local_ts", key.local_net.to_string()),
        Item::list("remote_ts", key.remote_net.to_string()),
        Item::list("esp_proposals", &ike.proposal),
        Item::value("mode", "tunnel"),
        Item::value("start_action", "start"),
        Item::value("close_action", "trap"),
        Item::value("dpd_action", "restart"),
        Item::value("reqid", REQID.to_string()),
        Item::value("rekey_time", "1h"),
        Item::value("policies", "no"),
    ];
    let items = vec![
        Item::value("version", "2"),
        Item::list("local_addrs", key.local.to_string()),
        Item::list("remote_addrs", key.remote.to_string()),
        Item::list("proposals", "aes256-sha256-modp4096"),
        Item::value("keyingtries", "0"),
        Item::value("dpd_delay", "10s"),
        // Both ends begin at once: neither takes the other's first contact for a reason to forget in silence what it
        // has begun itself (decision 0179).
        Item::value("unique", "never"),
        Item::value("encap", if ike.encap { "yes" } else { "no" }),
        Item::section("local", end(ike.id)),
        Item::section("remote", end(key.remote)),
        Item::section("children", vec![Item::section(&key.child(), child)]),
    ];
    Item::section(&key.to_string(), items)
}

/// Charon's program: flannel's order of places.
fn find(path: &str) -> Option<PathBuf> {
    let in_path = std::env::split_paths(path).filter(|dir| dir.is_absolute()).map(|dir| dir.join("charon"));
    in_path.chain(PLACES.iter().map(PathBuf::from)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_flannels() {
        let key = IkeKey::parse("192.0.2.11-10.244.1.0/24-10.244.2.0/24-192.0.2.12").expect("a name");
        let id = Ipv4Addr::new(203, 0, 113, 1);
        let ike = Ike { key, id, encap: true, proposal: "aes128gcm16-ecp256".to_owned() };
        let Item::Section(name, items) = connection(&ike) else { panic!("a section") };
        assert_eq!(name, key.to_string());
        assert_eq!((text(&items, "version"), text(&items, "encap")), (Some("2"), Some("yes")));
        assert_eq!(text(&items, "dpd_delay"), Some("10s"));
        assert_eq!(text(&items, "unique"), Some("never"));
        assert_eq!(text(section(&items, "local"), "id"), Some("203.0.113.1"));
        assert_eq!(text(section(&items, "remote"), "id"), Some("192.0.2.12"));
        let child = section(section(&items, "children"), "10.244.1.0/24-10.244.2.0/24");
        assert_eq!((text(child, "reqid"), text(child, "policies")), (Some("11"), Some("no")));
        assert!(child.contains(&Item::list("esp_proposals", "aes128gcm16-ecp256")));
        assert!(shared(id, b"s3cr3t").contains(&Item::value("data", "s3cr3t")));
    }

    #[test]
    fn the_program_is_looked_for_in_path_first() {
        let dir = tempfile::TempDir::new().expect("a directory");
        let file = dir.path().join("charon");
        std::fs::write(&file, "").expect("a file");
        assert_eq!(find(&format!("relative:/no/such:{}", dir.path().display())), Some(file));
    }
}
