//! The kernel's own description of its types (Documentation/bpf/btf.rst), of the kernel and of one module. Pure.

/// `BTF_KIND_…`
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const MODIFIERS: [u32; 5] = [8, 9, 10, 11, 18];

/// A description, and where each of its types is.
struct Part<'a> {
    bytes: &'a [u8],
    strings: &'a [u8],
    types: Vec<usize>,
}

/// The types of a kernel, with those of a module if there is one.
pub struct Types<'a> {
    base: Part<'a>,
    module: Option<Part<'a>>,
}

/// A type: of which kind, how many members it has, and the bytes where these begin.
#[derive(Clone, Copy)]
struct Type<'a> {
    name: u32,
    kind: u32,
    members: usize,
    /// Offsets of members are beside the size of a bit field.
    packed: bool,
    /// Size, or the type that is modified.
    of: u32,
    rest: &'a [u8],
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

impl<'a> Part<'a> {
    fn read(bytes: &'a [u8]) -> Option<Part<'a>> {
        let long = |at: usize| word(bytes, at).map(|word| word as usize);
        if bytes.get(..2)? != 0xeb9fu16.to_ne_bytes() {
            return None;
        }
        let header = long(4)?;
        let begin = header + long(8)?;
        let strings = header + long(16)?;
        let mut part = Part { bytes, strings: bytes.get(strings..strings + long(20)?)?, types: Vec::new() };
        let (mut at, end) = (begin, begin + long(12)?);
        while at < end {
            part.types.push(at);
            let read = part.at(at)?;
            at += 12
                + match read.kind {
                    1 | 14 | 17 => 4,
                    3 => 12,
                    STRUCT | UNION | 15 | 19 => 12 * read.members,
                    ENUM | 13 => 8 * read.members,
                    _ => 0,
                };
        }
        Some(part)
    }

    fn at(&self, at: usize) -> Option<Type<'a>> {
        let info = word(self.bytes, at + 4)?;
        Some(Type {
            name: word(self.bytes, at)?,
            kind: info >> 24 & 31,
            members: (info & 0xffff) as usize,
            packed: info >> 31 == 1,
            of: word(self.bytes, at + 8)?,
            rest: self.bytes.get(at + 12..)?,
        })
    }

    fn all(&self) -> impl Iterator<Item = Type<'a>> {
        self.types.iter().filter_map(|at| self.at(*at))
    }
}

impl<'a> Types<'a> {
    /// From the bytes of `vmlinux`, and of a module's.
    pub fn read(kernel: &'a [u8], module: Option<&'a [u8]>) -> Option<Types<'a>> {
        let module = match module {
            Some(module) => Some(Part::read(module)?),
            None => None,
        };
        Some(Types { base: Part::read(kernel)?, module })
    }

    /// A string; those of a module are numbered on behind the kernel's.
    fn text(&self, at: u32) -> Option<&'a [u8]> {
        let at = at as usize;
        let bytes = match at.checked_sub(self.base.strings.len()) {
            None => self.base.strings.get(at..)?,
            Some(at) => self.module.as_ref()?.strings.get(at..)?,
        };
        bytes.split(|byte| *byte == 0).next()
    }

    /// A type by number, behind all names for it; 0 is none.
    fn get(&self, id: u32) -> Option<Type<'a>> {
        let mut at = (id as usize).checked_sub(1)?;
        // As many names as nobody gives one type.
        for _ in 0..32 {
            let found = match at.checked_sub(self.base.types.len()) {
                None => self.base.at(self.base.types[at])?,
                Some(at) => {
                    let module = self.module.as_ref()?;
                    module.at(*module.types.get(at)?)?
                }
            };
            if !MODIFIERS.contains(&found.kind) {
                return Some(found);
            }
            at = (found.of as usize).checked_sub(1)?;
        }
        None
    }

    /// The type of a kind and name, the module's first.
    fn named(&self, kind: u32, name: &str) -> Option<Type<'a>> {
        let is = |found: &Type| found.kind == kind && self.text(found.name) == Some(name.as_bytes());
        let own = self.module.as_ref().and_then(|module| module.all().find(is));
        own.or_else(|| self.base.all().find(is))
    }

    /// A member's type and where it is, in bits; those of members without a name count as the type's own.
    fn member(&self, of: Type<'a>, name: &str, depth: u32) -> Option<(Type<'a>, u32)> {
        if depth == 0 || ![STRUCT, UNION].contains(&of.kind) {
            return None;
        }
        (0..of.members).find_map(|n| {
            let at = word(of.rest, 12 * n + 8)?;
            let at = if of.packed { at & 0xff_ffff } else { at };
            let (called, inside) =
                (self.text(word(of.rest, 12 * n)?)?, self.get(word(of.rest, 12 * n + 4)?)?);
            if called == name.as_bytes() {
                return Some((inside, at));
            }
            let (found, more) = called.is_empty().then(|| self.member(inside, name, depth - 1))??;
            Some((found, at + more))
        })
    }

    /// At which byte of a structure a member of a member is.
    pub fn place(&self, structure: &str, members: &[&str]) -> Option<u16> {
        let (mut of, mut bits) = (self.named(STRUCT, structure)?, 0);
        for name in members {
            let (inside, more) = self.member(of, name, 8)?;
            (of, bits) = (inside, bits + more);
        }
        u16::try_from(bits / 8).ok().filter(|_| bits % 8 == 0)
    }

    /// The members of an enumeration.
    pub fn enumeration(&self, name: &str) -> Option<Vec<(u32, String)>> {
        let of = self.named(ENUM, name)?;
        let member = |n: usize| {
            let text = self.text(word(of.rest, 8 * n)?)?;
            Some((word(of.rest, 8 * n + 4)?, String::from_utf8_lossy(text).into_owned()))
        };
        (0..of.members).map(member).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A description of these strings and types, each a row of words.
    fn btf(strings: &[u8], types: &[&[u32]]) -> Vec<u8> {
        let types: Vec<u8> = types.concat().into_iter().flat_map(u32::to_ne_bytes).collect();
        let mut btf = 0xeb9fu16.to_ne_bytes().to_vec();
        btf.extend([1, 0]);
        for word in [24, 0, types.len(), types.len(), strings.len()] {
            btf.extend((word as u32).to_ne_bytes());
        }
        [btf, types, strings.to_vec()].concat()
    }

    const INT: &[u32] = &[1, 1 << 24, 4, 32];

    #[test]
    fn enumerations_are_found_behind_other_types() {
        let btf = btf(b"\0int\0why\0NO\0YES\0", &[INT, &[5, 6 << 24 | 2, 4, 9, 1, 12, 9]]);
        let members = vec![(1, "NO".to_owned()), (9, "YES".to_owned())];
        let found = |bytes: &[u8], name| Types::read(bytes, None)?.enumeration(name);
        assert_eq!(found(&btf, "why"), Some(members));
        assert_eq!(found(&btf, "what"), None);
        for end in 0..btf.len() {
            let _ = found(&btf[..end], "why");
        }
    }

    /// In a module whose types and strings go on where the kernel's end.
    #[test]
    fn members_of_members_have_a_place() {
        // int, a name for it, and a structure of the kernel's: { int; int b; }
        let kernel: &[&[u32]] = &[INT, &[5, 8 << 24, 1], &[0, STRUCT << 24 | 2, 8, 0, 1, 0, 10, 2, 32]];
        let kernel = btf(b"\0int\0name\0b\0", kernel);
        // { name a; struct { int; int b; }; struct { … } c } and a structure with sizes of bit fields.
        let conn: &[u32] = &[12, STRUCT << 24 | 3, 20, 17, 2, 0, 0, 3, 32, 19, 3, 96];
        let packed: &[u32] = &[21, 1 << 31 | STRUCT << 24 | 2, 8, 17, 1, 3 << 24 | 1, 10, 1, 8 << 24 | 32];
        let module = btf(b"conn\0a\0c\0bits\0", &[conn, packed]);
        let types = Types::read(&kernel, Some(&module)).unwrap();
        for (structure, members, wanted) in [
            ("conn", &["a"][..], Some(0)),
            ("conn", &["b"], Some(8)),
            ("conn", &["c"], Some(12)),
            ("conn", &["c", "b"], Some(16)),
            ("conn", &["a", "b"], None),
            ("conn", &["d"], None),
            ("bits", &["b"], Some(4)),
            ("bits", &["a"], None),
            ("other", &["a"], None),
        ] {
            assert_eq!(types.place(structure, members), wanted, "{structure} {members:?}");
        }
        assert!(Types::read(&kernel, None).unwrap().place("conn", &["a"]).is_none());
        for end in 0..module.len() {
            let _ = Types::read(&kernel, Some(&module[..end])).and_then(|t| t.place("conn", &["c", "b"]));
        }
    }
}
