//! Three hosts of the lab with an agent and a pod each, things of others beside, and a store that can be taken away.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use lab::proto::Agent;
use lab::{Lab, Stack};

use crate::Result;
use crate::fast::Alone;
use crate::picture::{self, DENY, FOREIGN, PATIENCE, must};
use crate::promise::Seen;
use crate::traffic::{DENIED, End, Load, Pair, Traffic};

/// Hosts of a scene.
pub const HOSTS: usize = 3;

/// What a scene is made of.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The `loden` program; `loden-cni` lies beside it.
    pub program: PathBuf,
    /// That of another release, its `loden-cni` beside it, for lines that exchange them.
    pub other: Option<PathBuf>,
    /// `Backend` of the network configuration.
    pub backend: String,
    /// Address families.
    pub stack: Stack,
    /// Whether the leases are in an etcd of its own on the wire, instead of in a file.
    pub etcd: bool,
    /// Whether the fast path is on.
    pub fast: bool,
    /// How much traffic.
    pub load: Load,
}

/// A cluster that runs.
pub struct Scene {
    /// How it was made.
    pub setup: Setup,
    /// The hosts.
    pub lab: Lab,
    /// One pod of each host.
    pub ends: Vec<End>,
    /// Flows that are denied.
    pub denied: Vec<Pair>,
    /// What each host looked like when all was well, and what of others was there.
    wanted: Vec<Vec<String>>,
    others: Vec<Vec<String>>,
    stock: BTreeMap<String, String>,
    etcd: Option<Child>,
    dir: tempfile::TempDir,
}

/// Names under which the program of the plugins is called.
const PLUGINS: [&str; 6] = ["flannel", "bridge", "host-local", "portmap", "loopback", "loden-cni"];
/// Links to the programs of the release that is started next.
const AGENT: &str = "agent.now";
const CNI: &str = "plugins.now";

impl Scene {
    /// Makes it and waits until all is well: every agent ready, every pod reached, every host knowing both others.
    ///
    /// # Errors
    /// Something does not come up, in a sentence.
    pub fn start(setup: &Setup) -> Result<Scene> {
        let dir = tempfile::tempdir().map_err(|error| format!("make a directory: {error}"))?;
        release(dir.path(), &setup.program)?;
        for name in PLUGINS {
            symlink(CNI, dir.path().join(name)).map_err(|error| format!("link {name}: {error}"))?;
        }
        let builder = Lab::builder(&setup.program).hosts(HOSTS).stack(setup.stack).net_conf(&net_conf(setup));
        let builder = builder.cni_bin_dir(dir.path()).agent_program(&dir.path().join(AGENT));
        let (lab, etcd) = if setup.etcd {
            let builder = builder
                .without_agents()
                .agent_env("LODEN_STORE", "etcd")
                .agent_env("FLANNELD_ETCD_ENDPOINTS", &etcd_url(setup.stack));
            let lab = builder.start().map_err(|error| error.to_string())?;
            let etcd = start_etcd(&lab, dir.path(), setup.stack)?;
            put_config(&lab, setup)?;
            for host in 1..=HOSTS {
                lab.agent_start(host).map_err(said)?;
            }
            (lab, Some(etcd))
        } else {
            (builder.start().map_err(said)?, None)
        };
        let mut scene = Scene {
            setup: setup.clone(),
            lab,
            ends: Vec::new(),
            denied: Vec::new(),
            wanted: Vec::new(),
            others: Vec::new(),
            stock: BTreeMap::new(),
            etcd,
            dir,
        };
        scene.furnish()?;
        Ok(scene)
    }

    fn furnish(&mut self) -> Result<()> {
        if self.setup.fast {
            let missing = |error| format!("bpftool, which tells what went fast, is missing: {error}");
            must(&self.lab, 1, "bpftool version").map_err(missing)?;
        }
        for host in 1..=HOSTS {
            let pod = self.lab.pod_add(host, None).map_err(said)?;
            let net = self.lab.place(&pod.name).net().map_err(said)?;
            self.ends.push(End { name: pod.name, net, addresses: pod.addresses });
            must(&self.lab, host, FOREIGN)?;
        }
        if self.setup.fast && self.is("udp") {
            // As behind a card: a veth leaves checksums to the other end, which is a program there (decision 0228).
            (1..=HOSTS).try_for_each(|host| must(&self.lab, host, "ethtool -K eth0 tx off").map(drop))?;
        }
        // Everybody reaches everybody; what the denied flow would do if it were not denied is known, too.
        Traffic::start(&self.ends, Load { datagrams: 100, tcp: 2, ..Load::LIGHT }, &[])?
            .finish(&mut Seen::default());
        for v6 in self.families() {
            let pair = Pair::new(&self.ends[HOSTS - 1], &self.ends[0], v6, DENIED)?;
            self.passes(&pair)?;
            self.denied.push(pair);
        }
        for host in 1..=HOSTS {
            must(&self.lab, host, &format!("nft '{DENY}'"))?;
            let known = self.knows_peers(host)?;
            self.wanted.push(known);
            self.others.push(picture::others(&self.lab, host)?);
        }
        if self.setup.fast {
            self.tied()?;
        }
        self.stock = self.count()?;
        Ok(())
    }

    /// Waits until the programs of every host are on its uplink and its pod's port, two on each; one more is on the
    /// device of a tunnel.
    fn tied(&self) -> Result<()> {
        let start = Instant::now();
        let ends = |links: Vec<String>| links.iter().filter(|link| !link.contains("tunnel_out")).count();
        for host in 1..=HOSTS {
            while ends(crate::inject::fast::links(self, host)?) != 4 {
                if start.elapsed() > PATIENCE {
                    return Err(format!("the fast path does not come to the devices of host{host}"));
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(())
    }

    /// Whether the backend is one of this name.
    pub fn is(&self, backend: &str) -> bool {
        self.setup.backend.contains(&format!("\"{backend}\""))
    }

    /// Families there are; true is IPv6.
    pub fn families(&self) -> Vec<bool> {
        let stack = self.setup.stack;
        [(false, stack.v4()), (true, stack.v6())]
            .into_iter()
            .filter(|(_, is)| *is)
            .map(|(v6, _)| v6)
            .collect()
    }

    /// A flow that is to be denied passes before it is, and where packets go fast it does, too.
    fn passes(&self, pair: &Pair) -> Result<()> {
        let watch = self.setup.fast.then(|| Alone::start(self)).transpose()?;
        let start = Instant::now();
        let (mut number, mut passed) = (0, 0);
        while start.elapsed() < PATIENCE {
            passed += u64::from(pair.round(number));
            number += 1;
            match &watch {
                None if passed > 0 => return Ok(()),
                None => {}
                // Nobody else sends anything that could be fast.
                Some(watch) if number % 50 == 0 && watch.went_fast(self, 50)? => return Ok(()),
                Some(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        let how = if watch.is_some() { "go fast" } else { "pass" };
        Err(format!(
            "the flow that is to be denied does not {how} before it is: {passed} of {number} arrived"
        ))
    }

    /// A host that has routes to all others, in every family, twice the same.
    fn knows_peers(&self, host: usize) -> Result<Vec<String>> {
        let start = Instant::now();
        let mut before = Vec::new();
        loop {
            let now = picture::ours(&self.lab, host)?;
            if now == before && !now.is_empty() {
                return Ok(now);
            }
            if start.elapsed() > PATIENCE {
                return Err(format!(
                    "host{host} does not come to rest: {}",
                    picture::difference(&before, &now).join("; ")
                ));
            }
            before = now;
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// What a host looked like when all was well.
    pub fn wanted(&self, host: usize) -> &[String] {
        &self.wanted[host - 1]
    }

    /// Waits until a host's kernel is as it was; the time counts from `start`.
    ///
    /// # Errors
    /// It does not become so, with the difference.
    pub fn settles(&self, host: usize, start: Instant) -> Result<Duration> {
        picture::settles(&self.lab, host, self.wanted(host), start)
    }

    /// The hosts' kernels, and the things of others, compared with the beginning.
    ///
    /// # Errors
    /// A host cannot be entered.
    pub fn compare(&self, seen: &mut Seen) -> Result<()> {
        for host in 1..=HOSTS {
            let others = picture::others(&self.lab, host)?;
            let differ = picture::difference(&self.others[host - 1], &others);
            seen.foreign.extend(differ.into_iter().map(|line| format!("host{host}: {line}")));
        }
        // What goes with something else goes a moment later.
        let start = Instant::now();
        let mut now = self.count()?;
        while now != self.stock && start.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(100));
            now = self.count()?;
        }
        for (what, before) in &self.stock {
            let now = now.get(what).cloned().unwrap_or_default();
            if now != *before {
                seen.leaked.push(format!("{what}: {before} before, {now} now"));
            }
        }
        Ok(())
    }

    /// What must not become more: devices, addresses that are given out, nexthops, and programs tied to devices.
    fn count(&self) -> Result<BTreeMap<String, String>> {
        let mut counts = BTreeMap::new();
        for host in 1..=HOSTS {
            let script = "ls /sys/class/net | sort | tr '\\n' ' '; echo; \
                          find /var/lib/cni -name '10.*' -o -name 'fd00*' | wc -l; ip nexthop show | wc -l; \
                          find /sys/fs/bpf/loden -type f 2>/dev/null | wc -l";
            let text = picture::shell(&self.lab, host, script)?;
            let kinds = ["devices", "addresses given out", "nexthops", "pinned links"];
            for (what, value) in kinds.iter().zip(text.lines()) {
                counts.insert(format!("host{host}: {what}"), value.trim().to_owned());
            }
        }
        Ok(counts)
    }

    /// Process id of a host's agent inside the lab; none if it does not run.
    ///
    /// # Errors
    /// The lab is gone.
    pub fn agent_pid(&self, host: usize) -> Result<Option<u32>> {
        match self.lab.agent(host).map_err(said)? {
            Agent::Running { pid, .. } => Ok(Some(pid)),
            _ => Ok(None),
        }
    }

    /// Resident memory of a host's agent in KiB, and its open files.
    ///
    /// # Errors
    /// It does not run.
    pub fn agent_size(&self, host: usize) -> Result<(u64, u64)> {
        let pid = self.agent_pid(host)?.ok_or_else(|| format!("the agent of host{host} does not run"))?;
        let script = format!("awk '/VmRSS/ {{print $2}}' /proc/{pid}/status; ls /proc/{pid}/fd | wc -l");
        let text = picture::shell(&self.lab, host, &script)?;
        let mut numbers = text.lines().map(|line| line.trim().parse::<u64>().unwrap_or(0));
        Ok((numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)))
    }

    /// The last lines of every agent's log.
    pub fn last_words(&self) -> Vec<String> {
        let tail = |host: usize| {
            let lines = self.lab.logs(&format!("host{host}")).unwrap_or_default();
            let from = lines.len().saturating_sub(12);
            lines[from..].iter().map(|line| format!("host{host}: {line}")).collect::<Vec<_>>()
        };
        (1..=HOSTS).flat_map(tail).collect()
    }

    /// From now on agents and plugins are started from another release (or from ours again).
    ///
    /// # Errors
    /// None is given, or a link cannot be made.
    pub fn release(&self, other: bool) -> Result<()> {
        let program = if other {
            self.setup.other.as_ref().ok_or("this scene has no other release")?
        } else {
            &self.setup.program
        };
        release(self.dir.path(), program)
    }

    /// Takes the store away, as a power cut would; [`Scene::store_back`] brings it again.
    ///
    /// # Errors
    /// The scene has no etcd.
    pub fn store_away(&mut self) -> Result<()> {
        let etcd = self.etcd.as_mut().ok_or("this scene has no etcd")?;
        etcd.kill().and_then(|()| etcd.wait()).map_err(|error| format!("kill etcd: {error}"))?;
        Ok(())
    }

    /// Starts the store with what is on its disk.
    ///
    /// # Errors
    /// It does not come up.
    pub fn store_back(&mut self) -> Result<()> {
        self.etcd = Some(start_etcd(&self.lab, self.dir.path(), self.setup.stack)?);
        Ok(())
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if let Some(etcd) = &mut self.etcd {
            let _ = etcd.kill();
            let _ = etcd.wait();
        }
    }
}

/// Lets the links point to a release's programs.
fn release(dir: &Path, program: &Path) -> Result<()> {
    for (name, file) in [(AGENT, program.to_owned()), (CNI, program.with_file_name("loden-cni"))] {
        let new = dir.join(format!("{name}.new"));
        symlink(&file, &new)
            .and_then(|()| std::fs::rename(&new, dir.join(name)))
            .map_err(|error| format!("link {name} to {}: {error}", file.display()))?;
    }
    Ok(())
}

fn said(error: lab::Error) -> String {
    let log = error.log().join("\n");
    if log.is_empty() { error.to_string() } else { format!("{error}\n{log}") }
}

fn net_conf(setup: &Setup) -> String {
    let mut parts = vec![r#""EnableNFTables":true"#.to_owned()];
    // Above it are routes of others, see `picture::FOREIGN`.
    let v4 = r#""Network":"10.244.0.0/16","SubnetMax":"10.244.239.0""#;
    match setup.stack {
        Stack::V4 => parts.push(v4.to_owned()),
        Stack::V6 => {
            parts.push(r#""EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:10:244::/48""#.to_owned());
        }
        Stack::Dual => {
            parts.push(format!(r#"{v4},"EnableIPv6":true,"IPv6Network":"fd00:10:244::/48""#));
        }
    }
    let fast = if setup.fast { r#","FastPath":"on""# } else { "" };
    parts.push(format!(r#""Backend":{{{}{fast}}}"#, setup.backend));
    format!("{{{}}}", parts.join(","))
}

/// The wire's own address in the lab's topology.
fn etcd_url(stack: Stack) -> String {
    let address = if stack.v4() { "192.0.2.1" } else { "[2001:db8:0:1::1]" };
    format!("http://{address}:2379")
}

/// An etcd in the namespace of the wire, where every host reaches it.
fn start_etcd(lab: &Lab, dir: &Path, stack: Stack) -> Result<Child> {
    let mut command = lab.place("wire").command("etcd").map_err(said)?;
    let url = etcd_url(stack);
    command.arg("--data-dir").arg(dir.join("etcd"));
    command.args(["--listen-client-urls", &url, "--advertise-client-urls", &url]);
    command.args(["--listen-peer-urls", "http://127.0.0.1:2380", "--unsafe-no-fsync"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().map_err(|error| format!("start etcd: {error}"))
}

fn put_config(lab: &Lab, setup: &Setup) -> Result<()> {
    let file = "/run/net-conf.json";
    must(lab, 1, &format!("cat > {file} <<'END'\n{}\nEND", net_conf(setup)))?;
    let start = Instant::now();
    let line = format!(
        "LODEN_STORE=etcd FLANNELD_ETCD_ENDPOINTS={} {} config put {file}",
        etcd_url(setup.stack),
        setup.program.display()
    );
    loop {
        match must(lab, 1, &line) {
            Ok(_) => return Ok(()),
            Err(error) if start.elapsed() > PATIENCE => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}
