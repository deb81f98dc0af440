//! Whether the host still forwards for the pods it has (B-41).

use kernel::sysctl;
use model::Family;
use model::cni::{Error, code};

use crate::record;
use crate::skel::Call;

/// Fails with code 51 when forwarding of a family is off though pods of the network have addresses of it:
/// ADD switched it on, somebody has switched it off since, and the pods are cut off. Without pods ADD will
/// switch it on.
///
/// # Errors
/// As said.
pub fn status(plugin: &str, call: &Call) -> Result<(), Error> {
    let records = record::all(plugin, call);
    for family in Family::BOTH {
        let path = match family {
            Family::V4 => "net/ipv4/ip_forward",
            Family::V6 => "net/ipv6/conf/all/forwarding",
        };
        let pods = records
            .iter()
            .filter(|r| r.is_complete && r.addresses.iter().any(|a| Family::of_net(*a) == family))
            .count();
        if pods > 0 && sysctl::read(path).is_ok_and(|value| value == "0") {
            let msg = format!(
                "/proc/sys/{path} is 0: the host does not forward for {pods} pods of {}",
                call.network
            );
            let way_out = format!("sysctl -w {}=1, and find out who switches it off", path.replace('/', "."));
            return Err(Error::new(code::NOT_READY_CUT_OFF, msg).details(way_out));
        }
    }
    Ok(())
}
