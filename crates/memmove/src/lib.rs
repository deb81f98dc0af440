//! `memcpy` and `memmove` of the programs, where musl's are slow: on x86-64 it copies by `rep movsq`, whose start costs more
//! than a short copy does, and byte by byte where the target begins inside of what is copied or is that itself (decision
//! 0257). A program that names this crate has these; with another C library, or on another machine, it has that library's.
//!
//! In assembler, because a compiler may make of a loop that copies a call of `memcpy`, and because what rustc does not see
//! it does not take for unused. Only SSE2, which every x86-64 has; nothing is read or written outside of what is copied.

#![no_std]
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "two functions of the C library, in assembler")
)]

// rdi: to, rsi: from, rdx: how many bytes; to comes back in rax (System V ABI, x86-64, 3.2.3). Up to 128 bytes all is read
// before anything is written, so it does not matter what overlaps. Beginning and end may be copied twice.
#[cfg(target_arch = "x86_64")]
macro_rules! function {
    ($($names:literal),*) => {
        core::arch::global_asm!(
            $($names,)*
            ".text",
            // By which `cargo xtask dist` sees that a program has it.
            ".ascii \"loden_memmove\"",
            ".p2align 6",
            ".globl loden_memmove",
            ".hidden loden_memmove",
            ".type loden_memmove, @function",
            "loden_memmove:",
            ".cfi_startproc",
            "mov rax, rdi",
            "cmp rdx, 16",
            "jb 20f",
            "movups xmm0, [rsi]",
            "movups xmm1, [rsi + rdx - 16]",
            "cmp rdx, 32",
            "ja 21f",
            "movups [rdi], xmm0",
            "movups [rdi + rdx - 16], xmm1",
            "ret",
            // Up to 15.
            "20:",
            "cmp edx, 8",
            "jae 22f",
            "cmp edx, 4",
            "jae 23f",
            "cmp edx, 2",
            "jae 24f",
            "test edx, edx",
            "je 25f",
            "movzx ecx, byte ptr [rsi]",
            "mov [rdi], cl",
            "25:",
            "ret",
            "22:",
            "mov rcx, [rsi]",
            "mov r8, [rsi + rdx - 8]",
            "mov [rdi], rcx",
            "mov [rdi + rdx - 8], r8",
            "ret",
            "23:",
            "mov ecx, [rsi]",
            "mov r8d, [rsi + rdx - 4]",
            "mov [rdi], ecx",
            "mov [rdi + rdx - 4], r8d",
            "ret",
            "24:",
            "movzx ecx, word ptr [rsi]",
            "movzx r8d, word ptr [rsi + rdx - 2]",
            "mov [rdi], cx",
            "mov [rdi + rdx - 2], r8w",
            "ret",
            // 33 to 128.
            "21:",
            "movups xmm2, [rsi + 16]",
            "movups xmm3, [rsi + rdx - 32]",
            "cmp rdx, 64",
            "ja 26f",
            "movups [rdi], xmm0",
            "movups [rdi + 16], xmm2",
            "movups [rdi + rdx - 32], xmm3",
            "movups [rdi + rdx - 16], xmm1",
            "ret",
            "26:",
            "movups xmm4, [rsi + 32]",
            "movups xmm5, [rsi + 48]",
            "movups xmm6, [rsi + rdx - 64]",
            "movups xmm7, [rsi + rdx - 48]",
            "cmp rdx, 128",
            "ja 27f",
            "movups [rdi], xmm0",
            "movups [rdi + 16], xmm2",
            "movups [rdi + 32], xmm4",
            "movups [rdi + 48], xmm5",
            "movups [rdi + rdx - 64], xmm6",
            "movups [rdi + rdx - 48], xmm7",
            "movups [rdi + rdx - 32], xmm3",
            "movups [rdi + rdx - 16], xmm1",
            "ret",
            // More: the first 64 bytes are in xmm0, 2, 4 and 5, the last in xmm6, 7, 3 and 1.
            "27:",
            "mov rcx, rdi",
            "sub rcx, rsi",
            "je 25b",
            // Unsigned: `to` lies inside what is read, behind its beginning.
            "cmp rcx, rdx",
            "jb 29f",
            // From the beginning, until the last 64 bytes are left.
            "lea r8, [rdi + rdx - 64]",
            "28:",
            "movups xmm0, [rsi]",
            "movups xmm2, [rsi + 16]",
            "movups xmm4, [rsi + 32]",
            "movups xmm5, [rsi + 48]",
            "movups [rdi], xmm0",
            "movups [rdi + 16], xmm2",
            "movups [rdi + 32], xmm4",
            "movups [rdi + 48], xmm5",
            "add rsi, 64",
            "add rdi, 64",
            "cmp rdi, r8",
            "jb 28b",
            "movups [r8], xmm6",
            "movups [r8 + 16], xmm7",
            "movups [r8 + 32], xmm3",
            "movups [r8 + 48], xmm1",
            "ret",
            // From the end, until the first 64 bytes are left.
            "29:",
            "movups xmm1, [rsi + rdx - 16]",
            "movups xmm3, [rsi + rdx - 32]",
            "movups xmm6, [rsi + rdx - 48]",
            "movups xmm7, [rsi + rdx - 64]",
            "movups [rdi + rdx - 16], xmm1",
            "movups [rdi + rdx - 32], xmm3",
            "movups [rdi + rdx - 48], xmm6",
            "movups [rdi + rdx - 64], xmm7",
            "sub rdx, 64",
            "cmp rdx, 64",
            "ja 29b",
            "movups [rdi], xmm0",
            "movups [rdi + 16], xmm2",
            "movups [rdi + 32], xmm4",
            "movups [rdi + 48], xmm5",
            "ret",
            ".cfi_endproc",
            ".size loden_memmove, . - loden_memmove",
        );
    };
}

#[cfg(all(target_arch = "x86_64", target_env = "musl"))]
function!(
    ".globl memcpy",
    ".type memcpy, @function",
    ".set memcpy, loden_memmove",
    ".globl memmove",
    ".type memmove, @function",
    ".set memmove, loden_memmove"
);
#[cfg(all(target_arch = "x86_64", not(target_env = "musl")))]
function!();

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    extern crate std;

    use std::vec::Vec;

    unsafe extern "C" {
        fn loden_memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8;
    }

    /// Moves `count` bytes inside of bytes that all differ from their neighbours; gives all of them.
    fn moved(to: usize, from: usize, count: usize) -> (Vec<u8>, Vec<u8>) {
        let before: Vec<u8> = (0..to.max(from) + count + 70).map(|n| (n * 7 + n / 256) as u8).collect();
        let (mut ours, mut theirs) = (before.clone(), before);
        theirs.copy_within(from..from + count, to);
        let start = ours.as_mut_ptr();
        // SAFETY: both pieces lie within the vector.
        let given = unsafe { loden_memmove(start.add(to), start.add(from), count) };
        assert_eq!(given as usize, start as usize + to);
        (ours, theirs)
    }

    /// All lengths up to where the loops have turned a few times, apart, overlapping either way and onto itself.
    #[test]
    fn memory_is_moved_as_by_the_standard_library() {
        let lengths = (0..=420).chain([511, 512, 513, 1000, 4096, 5003]);
        for count in lengths {
            for distance in (0..=140).chain([count, count + 1, 700]) {
                for (to, from) in [(64, 64 + distance), (64 + distance, 64)] {
                    let (ours, theirs) = moved(to, from, count);
                    assert!(ours == theirs, "{count} bytes from {from} to {to}");
                }
            }
        }
    }

    /// With musl it is the one that everybody calls.
    #[cfg(target_env = "musl")]
    #[test]
    fn all_programs_have_it() {
        unsafe extern "C" {
            fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8;
            fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8;
        }
        let ours = loden_memmove as *const () as usize;
        assert_eq!([memcpy as *const () as usize, memmove as *const () as usize], [ours; 2]);
    }
}
