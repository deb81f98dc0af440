//! Between two real hosts: one serves, the other one measures. Each attaches a pod of its own to the network the host
//! has, through CNI, and takes it away at the end.
//!
//! Who serves answers only those who know its token, takes part in spans of a minute at most, sends nothing to
//! anybody but a client, and ends by itself when nobody comes (decision 0227).

use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kernel::Netns;
use model::{Family, Json};

use crate::args::{Link, Plan, Serve};
use crate::machine::Machine;
use crate::traffic::{self, Client, Server, Taken};
use crate::{Result, inside, say, spawn, tell};

/// Container id of our pods. The same each time, so that what a killed one left is taken away by the next.
const ID: &str = "loden-bench";

/// How often `serve` looks whether it is to end.
const TICK: Duration = Duration::from_millis(100);

/// What a server tells.
#[derive(Clone, Debug, PartialEq)]
struct Greeting {
    machine: Machine,
    /// Where its pod's servers listen, one of each family it has; or why there is no pod.
    pod: Result<Vec<SocketAddr>>,
}

impl Greeting {
    fn write(&self) -> String {
        let pod = match &self.pod {
            Ok(at) => ("pod", Json::Array(at.iter().map(|at| at.to_string().into()).collect())),
            Err(why) => ("without", why.as_str().into()),
        };
        let boot = ("boot", self.machine.boot.as_str().into());
        Json::object([("machine", self.machine.json()), boot, pod]).to_compact()
    }

    fn read(text: &str) -> Option<Greeting> {
        let json: Json = text.parse().ok()?;
        let text = |key: &str| json.get_exact(key).and_then(Json::as_str);
        let pod = match text("without") {
            Some(why) => Err(why.to_owned()),
            None => {
                let at = json.get_exact("pod").and_then(Json::as_array)?;
                Ok(at.iter().map(|at| at.as_str()?.parse().ok()).collect::<Option<_>>()?)
            }
        };
        Some(Greeting { machine: Machine::read(json.get_exact("machine")?, text("boot")?), pod })
    }
}

/// A pod on this host's network; taken away with the value.
struct Pod {
    network: String,
    net: Netns,
    /// The first of each family.
    addresses: Vec<IpAddr>,
}

impl Pod {
    fn attach(network: &str) -> Result<Pod> {
        // Of one that was killed; there is nothing to take away mostly.
        let net = Netns::create().map_err(|error| error.to_string())?;
        let _ = cni("del", network, &net);
        let output = cni("add", network, &net)?;
        let json = Json::parse(&output.stdout).unwrap_or(Json::Null);
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            let why = json.get_exact("msg").and_then(Json::as_str).map_or(words, str::to_owned);
            return Err(format!("attach a pod to the network {network:?}: {why}; see --network"));
        }
        let ips = json.get_exact("ips").and_then(Json::as_array).unwrap_or_default();
        let address =
            |ip: &Json| ip.get_exact("address").and_then(Json::as_str)?.split('/').next()?.parse().ok();
        let all: Vec<IpAddr> = ips.iter().filter_map(address).collect();
        let first = |family| all.iter().copied().find(|address| Family::of(*address) == family);
        let addresses: Vec<IpAddr> = Family::BOTH.into_iter().filter_map(first).collect();
        if addresses.is_empty() {
            return Err(format!("the network {network:?} gave no address"));
        }
        Ok(Pod { network: network.to_owned(), net, addresses })
    }

    /// Detaches it when this process is told to end, and ends.
    fn detach_at_signal(&self) -> Result<()> {
        let (network, net) = (self.network.clone(), self.net.try_clone().map_err(|error| error.to_string())?);
        spawn(move || {
            let signal = lab::wait_for_signal();
            let _ = cni("del", &network, &net);
            std::process::exit(128 + signal);
        });
        Ok(())
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // What stays is taken away by the next one, or by `loden cni gc`.
        let _ = cni("del", &self.network, &self.net);
    }
}

/// Calls the network's plugins as `loden cni` does.
fn cni(verb: &str, network: &str, net: &Netns) -> Result<Output> {
    let program = std::env::current_exe().map_err(|error| format!("find this program: {error}"))?;
    let mut command = Command::new(program);
    command.args(["cni", verb, network]).arg(net.path()).args(["-o", "json", "--id", ID]);
    command.output().map_err(|error| format!("start `loden cni {verb}`: {error}"))
}

/// What this host says of its backend, such as `vxlan, fast path`.
fn backend() -> String {
    let status =
        std::env::current_exe().and_then(|it| Command::new(it).args(["status", "-o", "json"]).output());
    let status = status.ok().and_then(|out| Json::parse(&out.stdout).ok()).unwrap_or(Json::Null);
    let of = |part: &str, key: &str| status.get_exact(part).and_then(|part| part.get_exact(key)).cloned();
    let kind = of("backend", "kind").and_then(|kind| kind.as_str().map(str::to_owned));
    let fast = of("fast_path", "on").and_then(|on| on.as_bool()).unwrap_or(false);
    format!("{}{}", kind.as_deref().unwrap_or("an unknown backend"), if fast { ", fast path" } else { "" })
}

/// Is the other host until a signal, or until nobody comes any more.
///
/// # Errors
/// The address cannot be had.
pub fn serve(serve: &Serve) -> Result<u8> {
    lab::block_signals();
    let token = match &serve.token {
        Some(token) => token.clone(),
        None => traffic::fresh_token().map_err(|error| format!("make a token: {error}"))?,
    };
    let pod = match &serve.network {
        Some(network) => Pod::attach(network),
        None => Err("its `serve` was told --network none".to_owned()),
    };
    // Counts up with each client.
    let clients = Arc::new(AtomicU64::new(0));
    let seen = || {
        let clients = clients.clone();
        move || {
            clients.fetch_add(1, Ordering::Relaxed);
        }
    };
    let mut inner = Vec::new();
    for (pod, address) in pod.iter().flat_map(|pod| pod.addresses.iter().map(move |address| (pod, *address)))
    {
        let begin = || Server::start((address, 0).into(), &token, Arc::new(String::new), seen());
        let server = inside(&pod.net, begin)?;
        inner.push(server.map_err(|error| format!("listen on {address}: {error}"))?);
    }
    let at = match &pod {
        Err(why) => Err(why.clone()),
        Ok(_) => Ok(inner.iter().map(Server::at).collect::<Vec<_>>()),
    };
    let greeting = Greeting { machine: Machine::here(), pod: at.clone() };
    let told = greeting.write();
    let outer = Server::start(serve.at, &token, Arc::new(move || told.clone()), seen())
        .map_err(|error| format!("listen on {}: {error}; see --listen", serve.at))?;
    match &at {
        Ok(at) => {
            let at: Vec<String> = at.iter().map(SocketAddr::to_string).collect();
            tell(&format!("a pod of {} answers at {}", backend(), at.join(" and ")));
        }
        Err(why) => tell(&format!("only the wire can be measured: {why}")),
    }
    let port = outer.at().port();
    let place =
        if serve.at.ip().is_unspecified() { format!("THIS-HOST:{port}") } else { outer.at().to_string() };
    say(&format!("loden bench host {place} --token {token}\n"))?;
    let ended = Arc::new(AtomicI32::new(0));
    let told = ended.clone();
    spawn(move || told.store(lab::wait_for_signal(), Ordering::Relaxed));
    let (mut last, mut count) = (Instant::now(), 0);
    let why = loop {
        std::thread::sleep(TICK);
        let signal = ended.load(Ordering::Relaxed);
        if signal != 0 {
            break format!("ended by signal {signal}");
        }
        let now = clients.load(Ordering::Relaxed);
        if now != count {
            (last, count) = (Instant::now(), now);
        }
        if last.elapsed() > serve.idle {
            break format!("nobody came for {} s", serve.idle.as_secs());
        }
    };
    drop((outer, inner, pod));
    tell(&why);
    Ok(0)
}

/// Our end and what the other one told.
pub struct Ends {
    client: Client,
    /// The other machine.
    pub other: Machine,
    /// The way between the pods, or why there is none.
    pub pods: Result<Way>,
    /// What that way is.
    pub about: String,
}

/// The way between two pods.
pub struct Way {
    client: Client,
    pod: Pod,
}

impl Way {
    /// One turn.
    ///
    /// # Errors
    /// One sentence.
    pub fn turn(&self) -> Result<Taken> {
        let turn = inside(&self.pod.net, || self.client.turn())?;
        turn.map_err(|error| format!("measure from our pod to {}: {error}", self.client.to))
    }
}

impl Ends {
    /// One turn on the wire.
    ///
    /// # Errors
    /// One sentence.
    pub fn wire(&self) -> Result<Taken> {
        self.client.turn().map_err(|error| format!("measure to {}: {error}", self.client.to))
    }
}

/// Asks the other host what it has, and makes our pod.
///
/// # Errors
/// The other host is away, or wants another token.
pub fn reach(link: &Link, plan: &Plan) -> Result<Ends> {
    let to = link.to;
    let client = Client { to, token: link.token.clone(), span: plan.span, apart: false };
    let told = client.hello().map_err(|error| match error.kind() {
        std::io::ErrorKind::InvalidData | std::io::ErrorKind::ConnectionReset => {
            format!("{to} does not take this token, or is not a `loden bench serve` of this version")
        }
        _ => format!("reach {to}: {error}; does `loden bench serve` run there?"),
    })?;
    let greeting = Greeting::read(&told);
    let Greeting { machine: other, pod } =
        greeting.ok_or_else(|| format!("{to} answers, but is not a `loden bench serve` of this version"))?;
    let apart = Machine::here().boot != other.boot;
    let pods = pod.and_then(|at| {
        let family = plan.family;
        let at = at.into_iter().find(|at| Family::of(at.ip()) == family);
        let at = at.ok_or_else(|| format!("the other host's pod has no {family}"))?;
        let network = link.network.as_ref().ok_or("--network none was given")?;
        lab::block_signals();
        let pod = Pod::attach(network)?;
        pod.detach_at_signal()?;
        if !pod.addresses.iter().any(|address| Family::of(*address) == family) {
            return Err(format!("our pod has no {family}"));
        }
        Ok(Way { client: Client { to: at, apart, ..client.clone() }, pod })
    });
    let about = format!("pods of the two hosts, {}", backend());
    Ok(Ends { client: Client { apart, ..client }, other, pods, about })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_is_read_as_it_is_written() {
        let machine = Machine { boot: "here-and-now".to_owned(), ..Machine::here() };
        let [four, six] = ["192.0.2.7:98", "[2001:db8::7]:99"].map(|at| at.parse().unwrap());
        for pod in [Ok(vec![four, six]), Ok(vec![six]), Err("no \"cbr0\"".to_owned())] {
            let greeting = Greeting { machine: machine.clone(), pod };
            assert_eq!(Greeting::read(&greeting.write()), Some(greeting));
        }
        for text in ["", "{}", r#"{"machine":{},"boot":"x"}"#, r#"{"machine":{},"boot":"x","pod":"there"}"#] {
            assert_eq!(Greeting::read(text), None, "{text}");
        }
    }
}
