//! The process that holds a lab. When it ends, however it ends, the kernel ends every agent and pod and
//! frees every namespace.
//!
//! ```text
//! loden lab up|demo, or a test
//!  └─ outer     binds @loden-lab/NAME in the host's network namespace, unshares, waits
//!      └─ init  process 1 of the lab's PID namespace: reaps orphans; its end is the end of all
//!          └─ supervisor   one thread for each request on the control socket
//!              ├─ __host host1…   a pause process that holds a host's namespaces
//!              ├─ flanneld        one for each host
//!              └─ __pod pod1-1…   a pod: its namespaces and its web page
//! ```
//!
//! Standard input is the other end of the owner's socket pair. The specification comes in as the first
//! line, progress goes out, and its end is the end of the lab, unless the owner said `detach`.

pub mod agent;
pub mod chain;
pub mod hold;
pub mod measure;
pub mod node;
pub mod serve;
pub mod stage;
pub mod world;

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use crate::error::{Doing, Error, Result};
use crate::proto::{Reply, Step};
use crate::spec::Spec;
use crate::sys;
use world::World;

/// What the owner says to leave the lab alone.
pub const DETACH: &str = "detach\n";

/// Address of a lab's control socket. Abstract: it has no file that could be left behind.
///
/// # Errors
/// The name is too long.
pub fn address(name: &str) -> Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("loden-lab/{name}")).doing(|| format!("name the lab {name:?}"))
}

/// Sends progress and the outcome to the owner.
#[derive(Clone)]
pub struct Owner(Arc<Mutex<UnixStream>>);

impl Owner {
    fn new(stream: UnixStream) -> Owner {
        Owner(Arc::new(Mutex::new(stream)))
    }

    /// Sends one line. An owner who is gone is noticed elsewhere.
    pub fn say(&self, reply: &Reply) {
        if let (Ok(mut line), Ok(mut stream)) = (serde_json::to_vec(reply), self.0.lock()) {
            line.push(b'\n');
            let _ = stream.write_all(&line);
        }
    }

    /// Reports a finished step.
    pub fn step(&self, what: String, since: std::time::Instant) {
        self.say(&Reply::Step(Step { what, ms: since.elapsed().as_secs_f64() * 1000.0 }));
    }
}

/// The line an error becomes.
pub fn failure(error: &Error) -> Reply {
    Reply::Error { what: error.to_string(), log: error.log().to_vec() }
}

/// Entry of `loden lab __supervise NAME`. Gives the exit status of the lab.
pub fn main() -> i32 {
    let stream = match std::io::stdin().as_fd().try_clone_to_owned() {
        Ok(fd) => UnixStream::from(fd),
        Err(_) => return 2,
    };
    let mut spec = String::new();
    if BufReader::new(&stream).read_line(&mut spec).is_err() {
        return 2;
    }
    let owner = Owner::new(stream);
    match start(&spec, &owner) {
        Ok(status) => status,
        Err(error) => {
            owner.say(&failure(&error));
            1
        }
    }
}

fn start(spec: &str, owner: &Owner) -> Result<i32> {
    let spec: Spec = serde_json::from_str(spec)
        .map_err(|e| Error::said(format!("start a lab: __supervise wants a specification: {e}")))?;
    // The terminal's signals are the business of the program in front.
    let _ = sys::new_session();
    let listener = UnixListener::bind_addr(&address(&spec.name)?).map_err(|e| match e.kind() {
        std::io::ErrorKind::AddrInUse => Error::said(format!(
            "a lab called {0:?} is already up; end it with `loden lab down --name {0}` or choose another \
             --name",
            spec.name
        )),
        _ => Error::Io("bind the lab's control socket".to_owned(), e),
    })?;
    let rootless = stage::isolate()?;
    let init = || {
        let _ = sys::die_with_parent();
        let supervise = || supervisor(spec, listener, owner, rootless);
        sys::fork(supervise).map_or(1, sys::reap_until)
    };
    let pid = sys::fork(init).doing(|| "start the lab's first process".to_owned())?;
    Ok(sys::reap_until(pid))
}

/// The supervisor proper.
fn supervisor(spec: Spec, listener: UnixListener, owner: &Owner, rootless: bool) -> i32 {
    hold_on_to(owner);
    let _ = std::env::set_current_dir(Path::new("/"));
    match World::build(spec, rootless, owner) {
        Ok(world) => {
            let world = Arc::new(world);
            owner.say(&Reply::Done(serde_json::json!({ "rootless": rootless })));
            serve::run(&listener, &world)
        }
        Err(error) => {
            owner.say(&failure(&error));
            1
        }
    }
}

/// Ends the lab when the owner goes without a word.
fn hold_on_to(owner: &Owner) {
    let stream = owner.0.lock().ok().and_then(|s| s.try_clone().ok());
    std::thread::spawn(move || {
        let mut line = String::new();
        if let Some(stream) = stream {
            let _ = BufReader::new(stream).read_line(&mut line);
        }
        if line != DETACH {
            sys::exit_now(0);
        }
    });
}
