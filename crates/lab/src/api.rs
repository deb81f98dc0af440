//! A lab as a value: what tests and the command line hold. It ends when the value is dropped, or when
//! the process that holds it ends in any way.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use kernel::{Netns, Rtnl};

use crate::client::{self, Client};
use crate::error::{Doing, Error, Result};
use crate::proto::{Agent, Fetch, Host, Pod, Reach, Request, Status, Step, Walk};
use crate::spec::{Spec, Stack, Topology, WIRE};
use crate::supervisor::DETACH;
use crate::walk::{Listeners, Sight, Station};

/// How to make a lab.
#[derive(Clone, Debug)]
pub struct Builder {
    spec: Spec,
    program: PathBuf,
}

impl Builder {
    /// A lab of a specification, held by this same program.
    pub fn of(spec: Spec) -> Builder {
        Builder { spec, program: PathBuf::from("/proc/self/exe") }
    }

    /// The `loden` binary that is to hold the lab and to be its agents. A test passes the one cargo
    /// built, because its own program is not `loden`.
    pub fn program(mut self, path: impl Into<PathBuf>) -> Builder {
        self.program = path.into();
        self
    }

    /// Number of hosts.
    pub fn hosts(mut self, hosts: usize) -> Builder {
        self.spec.hosts = hosts;
        self
    }

    /// Pods on each host at the start.
    pub fn pods(mut self, pods: usize) -> Builder {
        self.spec.pods = pods;
        self
    }

    /// `Backend.Type`.
    pub fn backend(mut self, backend: &str) -> Builder {
        backend.clone_into(&mut self.spec.backend);
        self
    }

    /// `Backend.DirectRouting`.
    pub fn direct_routing(mut self, on: bool) -> Builder {
        self.spec.direct_routing = on;
        self
    }

    /// How the hosts are joined.
    pub fn topology(mut self, topology: Topology) -> Builder {
        self.spec.topology = topology;
        self
    }

    /// Address families.
    pub fn stack(mut self, stack: Stack) -> Builder {
        self.spec.stack = stack;
        self
    }

    /// MTU of the wire in bytes.
    pub fn mtu(mut self, bytes: u32) -> Builder {
        self.spec.mtu = bytes;
        self
    }

    /// Starts no agents: hosts and wire only.
    pub fn without_agents(mut self) -> Builder {
        self.spec.agents = false;
        self
    }

    /// A further flag for every agent.
    pub fn agent_arg(mut self, flag: &str) -> Builder {
        self.spec.agent_args.push(flag.to_owned());
        self
    }

    /// A further variable for every agent, and for `loden config put`.
    pub fn agent_env(mut self, name: &str, value: &str) -> Builder {
        self.spec.agent_env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The network configuration, instead of the one made from the other settings.
    pub fn net_conf(mut self, json: &str) -> Builder {
        self.spec.net_conf = Some(json.to_owned());
        self
    }

    /// The CNI network list, instead of the tutorials'.
    pub fn conflist(mut self, json: &str) -> Builder {
        self.spec.conflist = Some(json.to_owned());
        self
    }

    /// Where the CNI plugins are, instead of `loden-cni` beside the program.
    pub fn cni_bin_dir(mut self, dir: &Path) -> Builder {
        self.spec.cni_bin_dir = Some(dir.to_string_lossy().into_owned());
        self
    }

    /// The program agents are started from, instead of the lab's own: looked up at each start.
    pub fn agent_program(mut self, path: &Path) -> Builder {
        self.spec.agent_program = Some(path.to_string_lossy().into_owned());
        self
    }

    /// Makes the lab and waits until every agent is ready and every pod connected.
    ///
    /// # Errors
    /// One sentence, with the log of the program that failed; nothing is left.
    pub fn start(&self) -> Result<Lab> {
        self.start_with(&mut |_| {}, Stdio::inherit())
    }

    /// As [`Builder::start`]; finished steps go to `progress`, the supervisor's panics to `stderr`.
    ///
    /// # Errors
    /// As [`Builder::start`].
    pub fn start_with(&self, progress: &mut dyn FnMut(Step), stderr: Stdio) -> Result<Lab> {
        self.spec.check()?;
        let mut lab = self.spawn(stderr)?;
        lab.wait(progress)?;
        Ok(lab)
    }

    /// Starts the supervisor without waiting for the lab.
    pub(crate) fn spawn(&self, stderr: Stdio) -> Result<Lab> {
        let (mut owner, theirs) = UnixStream::pair().doing(|| "make a socket pair".to_owned())?;
        let mut spec = serde_json::to_vec(&self.spec)
            .map_err(|e| Error::said(format!("write the specification: {e}")))?;
        spec.push(b'\n');
        let mut command = Command::new(&self.program);
        command.arg0("loden").args(["lab", "__supervise", &self.spec.name]);
        command.stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(stderr);
        let outer = command.spawn().doing(|| format!("start {}", self.program.display()))?;
        // The command holds the other end: it must go, or the end of the lab would not be seen.
        drop(command);
        std::io::Write::write_all(&mut owner, &spec).doing(|| "send the specification".to_owned())?;
        Ok(Lab { client: Client::new(&self.spec.name), spec: self.spec.clone(), owner, outer: Some(outer) })
    }
}

/// A lab that is up.
#[derive(Debug)]
pub struct Lab {
    client: Client,
    spec: Spec,
    owner: UnixStream,
    outer: Option<Child>,
}

impl Lab {
    /// A builder for a test: three hosts without pods, under a name of its own. `program` is the path
    /// of the `loden` binary.
    pub fn builder(program: impl Into<PathBuf>) -> Builder {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("test-{}-{number}", std::process::id());
        Builder::of(Spec { name, pods: 0, ..Spec::default() }).program(program)
    }

    /// Waits for the end of the building.
    pub(crate) fn wait(&mut self, progress: &mut dyn FnMut(Step)) -> Result<()> {
        client::outcome(&self.owner, &mut Vec::new(), progress).map(drop)
    }

    /// A second handle on the socket whose end is the end of the lab.
    pub(crate) fn owner(&self) -> Result<UnixStream> {
        self.owner.try_clone().doing(|| "copy a descriptor".to_owned())
    }

    /// Leaves the lab standing when this value goes.
    ///
    /// # Errors
    /// The lab is gone.
    pub fn detach(mut self) -> Result<()> {
        std::io::Write::write_all(&mut self.owner, DETACH.as_bytes())
            .doing(|| "leave the lab standing".to_owned())?;
        self.outer = None;
        Ok(())
    }

    /// What it was made from.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Its control socket.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The lab at this moment.
    ///
    /// # Errors
    /// The lab is gone.
    pub fn status(&self) -> Result<Status> {
        self.client.ask(&Request::Status)
    }

    /// Host number `n`, from 1.
    pub fn host(&self, n: usize) -> Inside<'_> {
        self.place(&format!("host{n}"))
    }

    /// The lab's own namespace, with the bridges.
    pub fn wire(&self) -> Inside<'_> {
        self.place(WIRE)
    }

    /// A host, a pod or the wire by name.
    pub fn place(&self, name: &str) -> Inside<'_> {
        Inside { lab: self, name: name.to_owned() }
    }

    /// Adds a pod to host `n` through CNI; the next free name if none is given.
    ///
    /// # Errors
    /// The name is taken, or the plugin's own sentence.
    pub fn pod_add(&self, n: usize, name: Option<&str>) -> Result<Pod> {
        self.client.ask(&Request::PodAdd { host: format!("host{n}"), name: name.map(str::to_owned) })
    }

    /// Deletes a pod through CNI; gives the time of the chain in ms.
    ///
    /// # Errors
    /// There is none, or the plugin's own sentence.
    pub fn pod_del(&self, name: &str) -> Result<f64> {
        self.client.ask(&Request::PodDel { name: name.to_owned() })
    }

    /// Echoes from one place to another, or to an address, small and filling the MTU. Waits up to five
    /// seconds for the first answer.
    ///
    /// # Errors
    /// There is no such place; no answer is not an error but in the value.
    pub fn ping(&self, from: &str, to: &str) -> Result<Reach> {
        self.ping_within(from, to, 5_000)
    }

    /// As [`Lab::ping`], with the patience for the first answer in ms.
    ///
    /// # Errors
    /// As [`Lab::ping`].
    pub fn ping_within(&self, from: &str, to: &str, patience_ms: u64) -> Result<Reach> {
        let (from, to) = (from.to_owned(), to.to_owned());
        self.client.ask(&Request::Ping { from, to, count: 1, patience_ms })
    }

    /// Every pod and host to every pod.
    ///
    /// # Errors
    /// The lab is gone.
    pub fn matrix(&self) -> Result<Vec<Reach>> {
        self.client.ask(&Request::Matrix { count: 1 })
    }

    /// The way of one packet from pod to pod.
    ///
    /// # Errors
    /// There is no such pod, or no answer.
    pub fn walk(&self, from: &str, to: &str, v6: bool) -> Result<Walk> {
        self.client.ask(&Request::Walk { from: from.to_owned(), to: to.to_owned(), v6 })
    }

    /// A pod's page, fetched from a pod or host.
    ///
    /// # Errors
    /// There is no such place, or no page.
    pub fn fetch(&self, from: &str, to: &str, v6: bool) -> Result<Fetch> {
        self.client.ask(&Request::Fetch { from: from.to_owned(), to: to.to_owned(), v6 })
    }

    /// How the agent of host `n` is.
    ///
    /// # Errors
    /// The lab is gone.
    pub fn agent(&self, n: usize) -> Result<Agent> {
        let status: Status = self.status()?;
        let host: Option<Host> = status.hosts.into_iter().nth(n.saturating_sub(1));
        host.map(|h| h.agent).ok_or_else(|| Error::said(format!("there is no host{n}")))
    }

    /// Ends the agent of host `n` with SIGTERM and waits for it.
    ///
    /// # Errors
    /// There is no such host.
    pub fn agent_stop(&self, n: usize) -> Result<()> {
        self.client.ask(&Request::AgentStop { host: format!("host{n}"), kill: false })
    }

    /// Ends the agent of host `n` with SIGKILL and waits for it.
    ///
    /// # Errors
    /// There is no such host.
    pub fn agent_kill(&self, n: usize) -> Result<()> {
        self.client.ask(&Request::AgentStop { host: format!("host{n}"), kill: true })
    }

    /// Starts the agent of host `n` and waits until it is ready; gives its time in ms.
    ///
    /// # Errors
    /// It is running, or does not become ready; its last log lines come with the error.
    pub fn agent_start(&self, n: usize) -> Result<f64> {
        self.client.ask(&Request::AgentStart { host: format!("host{n}") })
    }

    /// Log lines of a host's agent or of a pod.
    ///
    /// # Errors
    /// There is no such place.
    pub fn logs(&self, place: &str) -> Result<Vec<String>> {
        self.client.ask(&Request::Logs { place: place.to_owned() })
    }

    /// Listens on every device of the places while `work` runs; gives the frames `keep` wants, each
    /// with the position of its place. For labs made by root.
    ///
    /// # Errors
    /// A place cannot be entered.
    pub fn capture(
        &self,
        places: &[&str],
        keep: impl Fn(&[u8]) -> bool,
        work: impl FnOnce(),
    ) -> Result<Vec<Sight>> {
        let nets: Result<Vec<Netns>> = places.iter().map(|p| self.place(p).net()).collect();
        let nets = nets?;
        let stations: Vec<Station<'_>> = places
            .iter()
            .zip(&nets)
            .map(|(place, net)| Station { place: (*place).to_owned(), net })
            .collect();
        let listeners = Listeners::open(&stations).doing(|| "listen to packets".to_owned())?;
        work();
        listeners.take(keep).doing(|| "read captured packets".to_owned())
    }

    /// Process id of the outermost process; for tests that kill it.
    pub fn outer_pid(&self) -> Option<u32> {
        self.outer.as_ref().map(Child::id)
    }

    /// Ends the lab and waits until nothing is left.
    pub fn down(self) {
        drop(self);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(mut outer) = self.outer.take() {
            let _ = self.owner.shutdown(std::net::Shutdown::Both);
            // The outermost process waits for the kernel to end all others.
            let _ = outer.wait();
        }
    }
}

/// A place of a lab, to do things in.
#[derive(Clone, Debug)]
pub struct Inside<'a> {
    lab: &'a Lab,
    name: String,
}

impl Inside<'_> {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its network namespace. For labs made by root.
    ///
    /// # Errors
    /// There is no such place.
    pub fn net(&self) -> Result<Netns> {
        let net = self.lab.client.enter(&self.name)?.net;
        let net = net.ok_or_else(|| Error::said("the lab sent no network namespace"))?;
        let path = format!("/proc/self/fd/{}", net.as_raw_fd());
        Ok(Netns::open(Path::new(&path)).map_err(kernel::Error::from)?)
    }

    /// Runs a closure in its network namespace, on a thread of its own. For labs made by root.
    ///
    /// # Errors
    /// The place cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        Ok(self.net()?.run(work).map_err(kernel::Error::from)?)
    }

    /// A netlink socket in its network namespace. For labs made by root.
    ///
    /// # Errors
    /// The place cannot be entered.
    pub fn rtnl(&self) -> Result<Rtnl> {
        Ok(self.run(Rtnl::open)??)
    }

    /// A program to be started inside, in all of the place's namespaces.
    ///
    /// # Errors
    /// There is no such place.
    pub fn command(&self, program: &str) -> Result<Command> {
        let mut command = Command::new(program);
        self.lab.client.start_inside(&self.name, &mut command)?;
        Ok(command)
    }

    /// Runs a program inside and gives what it said.
    ///
    /// # Errors
    /// It cannot be started; a bad exit status is in the value.
    pub fn exec(&self, program: &str, args: &[&str]) -> Result<Output> {
        let mut command = self.command(program)?;
        command.args(args).stdin(Stdio::null());
        command.output().doing(|| format!("start {program} in {}", self.name))
    }

    /// Runs a program inside that must succeed; gives its standard output.
    ///
    /// # Errors
    /// It cannot be started or fails; then its standard error is in the message.
    pub fn stdout(&self, program: &str, args: &[&str]) -> Result<String> {
        let output = self.exec(program, args)?;
        if !output.status.success() {
            return Err(Error::said(format!(
                "{program} {} in {}: {}: {}",
                args.join(" "),
                self.name,
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            )));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
