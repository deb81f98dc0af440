//! `loden cleanup`: removes from this host's kernel what the agent made, and nothing else. The agent
//! itself never tears the data path down.

use kernel::Kernel;
use plan::state::Scope;
use plan::{State, backend, diff, rules};

use super::{complain, print};

const USAGE: &str = "\
usage: loden cleanup [--dry-run]

Removes the devices flannel.N, flannel-v6.N and flannel.ipip with all that is on them, routes and
nexthop objects of protocol 76, and the nftables tables flannel-ipv4 and flannel-ipv6. Pods on this
host lose their way to other hosts. Stop the agent first, or it puts everything back.

  --dry-run    print the commands that would do it, change nothing
";

/// Runs the command; gives the exit status: 0 when nothing is left, 1 otherwise.
pub fn main(words: &[String]) -> u8 {
    let dry = match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => false,
        ["--dry-run"] => true,
        ["-h" | "-help" | "--help" | "help"] => return print(USAGE),
        _ => {
            complain(USAGE);
            return 2;
        }
    };
    match clean(dry) {
        Ok(()) => 0,
        Err(error) => {
            complain(&format!("loden cleanup: {error}\n"));
            1
        }
    }
}

fn clean(dry: bool) -> Result<(), String> {
    let mut kernel = Kernel::open().map_err(|error| format!("{error}; run it as root"))?;
    let links = kernel.rtnl().links().map_err(|error| error.to_string())?;
    let ours = links.into_iter().filter(|l| backend::is_our_link(&l.link));
    let scope = Scope {
        devices: ours.map(|l| l.link.name).collect(),
        tables: rules::table_keys().into(),
        ..Scope::default()
    };
    let nothing = State::default();
    let actual = kernel.read(&scope, &nothing).map_err(|error| error.to_string())?;
    let found = diff(&nothing, &actual);
    // What is on a device goes with it; the routes first, so that no packet meets half a path.
    let steps: Vec<_> = found.rest.into_iter().chain(found.links).collect();
    if steps.is_empty() {
        print("nothing of ours is on this host\n");
        return Ok(());
    }
    let shown: String = steps.iter().map(|step| format!("{step}\n")).collect();
    print(&shown);
    if dry {
        return Ok(());
    }
    let answers = kernel.apply(&steps).into_iter();
    let failures: Vec<String> = answers.filter_map(|answer| answer.err().map(|e| e.to_string())).collect();
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n")) }
}
