//! Whether the host still forwards for the pods it has (B-41).

use kernel::sysctl;
use model::Family;
use model::cni::host_local::HostLocal;
use model::cni::{Error, code};

use crate::skel::Call;
use crate::{delegate, record};

/// Fails with code 51 when forwarding of a family is off though pods of the network have addresses of it:
/// ADD switched it on, somebody has switched it off since, and the pods are cut off. Without pods ADD will
/// switch it on.
///
/// # Errors
/// As said.
pub fn status(plugin: &str, call: &Call) -> Result<(), Error> {
    for family in families(call) {
        let path = match family {
            Family::V4 => "net/ipv4/ip_forward",
            Family::V6 => "net/ipv6/conf/all/forwarding",
        };
        // Asked every few seconds: where all is well no record is read.
        if !sysctl::read(path).is_ok_and(|value| value == "0") {
            continue;
        }
        let pods = record::all(plugin, call)
            .iter()
            .filter(|r| r.is_complete && r.addresses.iter().any(|a| Family::of_net(*a) == family))
            .count();
        if pods > 0 {
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

/// Families the network gives addresses of, as far as the document says so.
fn families(call: &Call) -> Vec<Family> {
    let sets = || {
        let is_ours = delegate::ipam_type(call).is_some_and(|kind| kind == "host-local");
        let conf = HostLocal::parse(&call.conf(), &call.env.args, call.version);
        conf.ok().filter(|_| is_ours).map(|conf| conf.sets)
    };
    let Some(sets) = sets() else { return Family::BOTH.to_vec() };
    Family::BOTH.into_iter().filter(|family| sets.iter().any(|set| set.family() == *family)).collect()
}
