//! The compiled programs, and the numbers of kernel functions written into them: the loader does not know calls of
//! functions by BTF id (Documentation/bpf/kfuncs.rst), so the programs call numbers that no helper has, and these
//! are replaced before loading.

use aya::Btf;
use aya::util::KernelVersion;
use aya_obj::btf::BtfKind;

use crate::Error;
use crate::btf::Types;

/// What the build script compiled; empty where there was no clang.
pub const BUILT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/fastpath.o"));

/// Whether this build has the fast path at all.
pub fn is_built() -> bool {
    !BUILT.is_empty()
}

/// Functions by the numbers of `bpf/kernel.h`.
const FUNCTIONS: [(u32, &str); 2] = [(0x4c6f_0001, "bpf_cast_to_kern_ctx"), (0x4c6f_0002, "bpf_rdonly_cast")];
/// `BPF_JMP | BPF_CALL`
const CALL: u8 = 0x85;
/// `BPF_PSEUDO_KFUNC_CALL` where the source register is written.
const KFUNC: u8 = 0x20;

/// The object as this kernel wants it.
pub fn with_kernel_functions(object: &[u8]) -> Result<Vec<u8>, Error> {
    if object.is_empty() {
        return Err(Error::NotBuilt);
    }
    if KernelVersion::current().is_ok_and(|now| now < KernelVersion::new(6, 6, 0)) {
        return Err(Error::NoTcx);
    }
    let btf = Btf::from_sys_fs().map_err(|error| Error::NoBtf(error.to_string()))?;
    let mut object = object.to_vec();
    for (number, name) in FUNCTIONS {
        let id = btf.id_by_type_name_kind(name, BtfKind::Func).map_err(|_| Error::NoFunction(name))?;
        replace(&mut object, number, id);
    }
    Ok(object)
}

/// Where in an entry of conntrack its status and the state of TCP are. The kernel's own BTF says so, or that of the module
/// conntrack is.
pub fn conntrack() -> Result<[u16; 2], Error> {
    let unread = |error: std::io::Error| Error::NoBtf(error.to_string());
    let kernel = std::fs::read("/sys/kernel/btf/vmlinux").map_err(unread)?;
    let module = std::fs::read("/sys/kernel/btf/nf_conntrack").ok();
    let types = Types::read(&kernel, module.as_deref()).ok_or(Error::NoConntrack)?;
    let place = |members: &[&str]| types.place("nf_conn", members).ok_or(Error::NoConntrack);
    Ok([place(&["status"])?, place(&["proto", "tcp", "state"])?])
}

/// Replaces calls of a number by calls of a function. Pure.
fn replace(object: &mut [u8], number: u32, id: u32) {
    let [a, b, c, d] = number.to_le_bytes();
    let call = [CALL, 0, 0, 0, a, b, c, d];
    let [a, b, c, d] = id.to_le_bytes();
    for insn in object.chunks_exact_mut(8).filter(|insn| **insn == call) {
        insn.copy_from_slice(&[CALL, KFUNC, 0, 0, a, b, c, d]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_calls_of_the_number_change() {
        let number = FUNCTIONS[0].0;
        let call = |number: u32| [[CALL, 0, 0, 0], number.to_le_bytes()].concat();
        let mut object = [call(number), call(1), call(FUNCTIONS[1].0), call(number)].concat();
        replace(&mut object, number, 7);
        let made = [vec![CALL, KFUNC, 0, 0, 7, 0, 0, 0], call(1), call(FUNCTIONS[1].0)].concat();
        assert_eq!(object, [made, vec![CALL, KFUNC, 0, 0, 7, 0, 0, 0]].concat());
    }

    #[test]
    fn this_kernel_takes_the_programs() {
        if let Err(why) = with_kernel_functions(BUILT) {
            println!("SKIP this_kernel_takes_the_programs: {why}");
            return;
        }
        let loaded = crate::FastPath::load(BUILT, 16, None).and_then(|mut fast| {
            crate::EARLY.into_iter().try_for_each(|name| crate::load(&mut fast.ebpf, name))
        });
        assert!(conntrack().is_ok_and(|[status, state]| status > 0 && state > status));
        assert!(loaded.is_ok(), "{}", loaded.err().map_or_else(String::new, |why| why.to_string()));
    }
}
