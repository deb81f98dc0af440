//! One thing that is taken away. Prints as the command that would do it.

use std::fmt;
use std::fs;
use std::io::{ErrorKind, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use kernel::rtnl::RouteInfo;
use kernel::{Kernel, Nft};
use model::IfName;
use plan::Step;
use plan::state::{Object, TableKey};

use crate::helpers::charon;

use crate::tunnels::{Tunnels, is_tunnel};

/// See the module.
#[derive(Debug)]
pub enum Act {
    /// Something of the agent's.
    Step(Box<Step>),
    /// A bridge.
    Link(u32, IfName),
    /// A table of the plugins.
    Table(TableKey),
    /// A route of flanneld's, and the words for it after `ip route`.
    Route(Box<RouteInfo>, String),
    /// A program of iptables, and what it is to read.
    Iptables(String, String),
    /// A file or link.
    File(PathBuf),
    /// A directory, if nothing is in it by then.
    Dir(PathBuf),
}

impl Act {
    /// Does it; what is gone already is fine.
    ///
    /// # Errors
    /// One sentence.
    pub fn run(self, kernel: &mut Kernel, tunnels: &mut Tunnels) -> Result<(), String> {
        let shown = self.to_string();
        match self {
            Act::Step(step) if is_tunnel(&step) => tunnels.apply(&[*step]).into_iter().collect(),
            Act::Step(step) => {
                if let Step::Delete(Object::Ike(ike)) = &*step {
                    return charon::remove(ike.key).map_err(|error| format!("{shown}: {error}"));
                }
                let mut answers = kernel.apply(&[*step]).into_iter();
                answers.try_for_each(|answer| answer.map_err(|error| error.to_string()))
            }
            Act::Link(index, _) => {
                kernel.rtnl().delete_link(index).map(drop).map_err(|error| format!("{shown}: {error}"))
            }
            Act::Table(key) => {
                let mut nft = Nft::open().map_err(|error| error.to_string())?;
                nft.delete_table(&key).map(drop).map_err(|error| format!("{shown}: {error}"))
            }
            Act::Route(route, _) => {
                kernel.rtnl().delete_route(&route).map(drop).map_err(|error| format!("{shown}: {error}"))
            }
            Act::Iptables(program, input) => restore(&program, &input),
            Act::File(path) => match fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => Err(format!("{shown}: {error}")),
                _ => Ok(()),
            },
            Act::Dir(path) => match fs::remove_dir(&path) {
                Err(error)
                    if ![ErrorKind::NotFound, ErrorKind::DirectoryNotEmpty].contains(&error.kind()) =>
                {
                    Err(format!("{shown}: {error}"))
                }
                _ => Ok(()),
            },
        }
    }
}

/// Hands rules to `iptables-restore`, which takes all of them or none.
fn restore(program: &str, input: &str) -> Result<(), String> {
    let failed = |error: &dyn fmt::Display| format!("{program}-restore --noflush: {error}");
    let mut child = Command::new(format!("{program}-restore"))
        .args(["--noflush", "--wait"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(&error))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).map_err(|error| failed(&error))?;
    }
    let output = child.wait_with_output().map_err(|error| failed(&error))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(failed(&String::from_utf8_lossy(&output.stderr).trim()))
    }
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Act::Step(step) => step.fmt(f),
            Act::Link(_, name) => write!(f, "ip link delete {name}"),
            Act::Table(key) => write!(f, "nft delete table {key}"),
            Act::Route(_, route) => write!(f, "ip route delete {route}"),
            Act::Iptables(program, input) => {
                let mut table = "";
                let mut first = true;
                for line in input.lines().filter(|line| *line != "COMMIT") {
                    if let Some(name) = line.strip_prefix('*') {
                        table = name;
                        continue;
                    }
                    let end = if first { "" } else { "\n" };
                    write!(f, "{end}{program} -t {table} {line}")?;
                    first = false;
                }
                Ok(())
            }
            Act::File(path) => write!(f, "rm {}", path.display()),
            Act::Dir(path) => write!(f, "rmdir --ignore-fail-on-non-empty {}", path.display()),
        }
    }
}
