//! Addresses of the kernel → names of its functions.

use std::fs;

/// The functions, sorted by address.
#[derive(Debug, Default)]
pub struct Symbols {
    all: Vec<(u64, String)>,
}

impl Symbols {
    /// Those of the running kernel; none if it hides them (`kernel.kptr_restrict`).
    pub fn read() -> Symbols {
        Symbols::parse(&fs::read_to_string("/proc/kallsyms").unwrap_or_default())
    }

    /// From the text of `/proc/kallsyms`. Pure.
    pub fn parse(text: &str) -> Symbols {
        let line = |line: &str| {
            let mut words = line.split_ascii_whitespace();
            let address = u64::from_str_radix(words.next()?, 16).ok().filter(|address| *address > 0)?;
            let code = matches!(words.next()?, "t" | "T" | "w" | "W");
            code.then_some((address, words.next()?.to_owned()))
        };
        let mut all: Vec<(u64, String)> = text.lines().filter_map(line).collect();
        all.sort_by_key(|(address, _)| *address);
        Symbols { all }
    }

    /// The function an address is in, without what the compiler adds to its name.
    pub fn name(&self, address: u64) -> Option<&str> {
        let behind = self.all.partition_point(|(begin, _)| *begin <= address);
        let (_, name) = self.all.get(behind.checked_sub(1)?)?;
        Some(name.split('.').next().unwrap_or(name))
    }
}
