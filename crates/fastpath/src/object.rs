//! The compiled programs, and the numbers of kernel functions written into them: the loader does not know calls of
//! functions by BTF id (Documentation/bpf/kfuncs.rst), so the programs call numbers that no helper has, and these
//! are replaced before loading.

use aya::Btf;
use aya::util::KernelVersion;
use aya_obj::btf::BtfKind;

use crate::Error;

/// What the build script compiled; empty where there was no clang.
pub const BUILT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/fastpath.o"));

/// Whether this build has the fast path at all.
pub fn is_built() -> bool {
    !BUILT.is_empty()
}

/// Functions by the numbers of `bpf/kernel.h`.
const FUNCTIONS: [(u32, &str); 2] = [(0x4c6f_0001, "bpf_skb_ct_lookup"), (0x4c6f_0002, "bpf_ct_release")];
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
        let id = btf.id_by_type_name_kind(name, BtfKind::Func).map_err(|_| Error::NoConntrack(name))?;
        replace(&mut object, number, id);
    }
    Ok(object)
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
}
