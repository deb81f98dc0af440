//! What libFuzzer grew: inputs that reach what others do not, kept in one file a target, so that each run goes on from the last.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Most bytes of one file. The shortest inputs are kept: they are what the next ones are made from.
const MOST: usize = 64 << 10;

fn file(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("grown").join(target)
}

/// The inputs kept for a target.
pub fn grown(target: &str) -> Vec<Vec<u8>> {
    read(&fs::read(file(target)).unwrap_or_default())
}

/// Keeps what lies in a folder, one input a file, instead of what was kept before; says how many.
///
/// # Errors
/// The folder cannot be read, or the file not written.
pub fn keep(target: &str, from: &Path) -> io::Result<usize> {
    let inputs: io::Result<Vec<Vec<u8>>> = fs::read_dir(from)?.map(|entry| fs::read(entry?.path())).collect();
    let (bytes, kept) = pack(inputs?);
    let file = file(target);
    fs::create_dir_all(file.parent().unwrap_or(Path::new(".")))?;
    fs::write(file, bytes)?;
    Ok(kept)
}

/// Puts what was kept into a folder, one input a file, as libFuzzer wants it.
///
/// # Errors
/// The folder cannot be written.
pub fn unpack(target: &str, to: &Path) -> io::Result<usize> {
    fs::create_dir_all(to)?;
    let inputs = grown(target);
    for (number, input) in inputs.iter().enumerate() {
        fs::write(to.join(format!("kept{number:05}")), input)?;
    }
    Ok(inputs.len())
}

/// Each input: its length in two bytes, big-endian, and its bytes; the shortest first.
fn pack(mut inputs: Vec<Vec<u8>>) -> (Vec<u8>, usize) {
    inputs.sort_by(|a, b| (a.len(), a).cmp(&(b.len(), b)));
    let (mut bytes, mut kept) = (Vec::new(), 0);
    for input in inputs {
        let Ok(length) = u16::try_from(input.len()) else { break };
        if bytes.len() + 2 + input.len() > MOST {
            break;
        }
        bytes.extend(length.to_be_bytes());
        bytes.extend(input);
        kept += 1;
    }
    (bytes, kept)
}

fn read(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut inputs = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk() {
        let Some((input, rest)) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length))) else {
            break;
        };
        inputs.push(input.to_vec());
        bytes = rest;
    }
    inputs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_what_was_there() {
        let of = |length: usize, byte: u8| vec![byte; length];
        for (inputs, kept) in [
            (vec![], vec![]),
            (vec![of(3, 1), of(0, 0), of(1, 9)], vec![of(0, 0), of(1, 9), of(3, 1)]),
            // What does not fit is left out, and so is what no length can tell.
            (vec![of(MOST - 4, 1), of(1, 2)], vec![of(1, 2)]),
            (vec![of(70_000, 1), of(1, 2)], vec![of(1, 2)]),
        ] {
            let (bytes, many) = pack(inputs);
            assert_eq!((read(&bytes), many), (kept.clone(), kept.len()));
        }
        // A file that was cut has what is whole.
        assert_eq!(read(&[0, 1, 7, 0, 2, 5]), [[7]]);
    }
}
