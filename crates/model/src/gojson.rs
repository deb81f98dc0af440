//! JSON as Go's `encoding/json` reads and writes it (flannel.md 13.2, cni.md 1.9).
//!
//! Takes bytes, gives a tree that keeps the order of members, duplicates and the text of numbers; typed
//! access to it with Go's rules and error texts ([`Fields`]); and the exact bytes Go would write. It does
//! not convert numbers to floats, and it borrows nothing from the input.

mod fields;
mod parse;
#[cfg(test)]
mod tests;
mod write;

use std::str::FromStr;

pub use fields::{Fields, GoInt, TypeError};
pub use parse::SyntaxError;

/// A member of an object: its name and its value.
pub type Member = (String, Json);

/// A JSON value. Equality is of texts: `1.0` is not `1`, and the order of members counts.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Json {
    /// `null`
    #[default]
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number, as written. Always a valid JSON number.
    Number(String),
    /// A string, unescaped.
    String(String),
    /// `[…]`
    Array(Vec<Json>),
    /// `{…}`, members in the order of the document, duplicates included.
    Object(Vec<Member>),
}

impl Json {
    /// Reads one document. White space may surround it; a byte-order mark, a comment or anything after
    /// the value is an error. Bytes that are not UTF-8 become U+FFFD each.
    ///
    /// # Errors
    /// The text is not JSON, or arrays and objects nest deeper than 512.
    pub fn parse(text: &[u8]) -> Result<Json, SyntaxError> {
        parse::document(text)
    }

    /// An empty object.
    pub fn empty() -> Json {
        Json::Object(Vec::new())
    }

    /// An object of these members, in this order.
    pub fn object<K: Into<String>>(members: impl IntoIterator<Item = (K, Json)>) -> Json {
        Json::Object(members.into_iter().map(|(name, value)| (name.into(), value)).collect())
    }

    /// An array of these items.
    pub fn array<V: Into<Json>>(items: impl IntoIterator<Item = V>) -> Json {
        Json::Array(items.into_iter().map(Into::into).collect())
    }

    /// The member Go would assign to a struct field of this name: the last in the document that matches
    /// exactly or by case folding. `None` also when this is not an object; `null` is given as it stands.
    pub fn get(&self, key: &str) -> Option<&Json> {
        self.members()?.iter().rev().find(|(name, _)| names_match(name, key)).map(|(_, value)| value)
    }

    /// The last member of exactly this name, which is what a Go map holds.
    pub fn get_exact(&self, key: &str) -> Option<&Json> {
        self.members()?.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// Sets the member of exactly this name, in its old place, else at the end. Other members that have
    /// this name go. Anything but an object becomes an object first.
    pub fn set(&mut self, key: &str, value: impl Into<Json>) {
        if !matches!(self, Json::Object(_)) {
            *self = Json::empty();
        }
        let Json::Object(members) = self else { return };
        let place = members.iter().position(|(name, _)| name == key);
        members.retain({
            let mut at = 0;
            move |(name, _)| {
                at += 1;
                name != key || Some(at - 1) == place
            }
        });
        match place {
            Some(index) => members[index].1 = value.into(),
            None => members.push((key.to_owned(), value.into())),
        }
    }

    /// Takes out every member of exactly this name; gives the last.
    pub fn remove(&mut self, key: &str) -> Option<Json> {
        let Json::Object(members) = self else { return None };
        let (gone, kept) = std::mem::take(members).into_iter().partition(|(name, _)| name == key);
        *members = kept;
        let gone: Vec<Member> = gone;
        gone.into_iter().next_back().map(|(_, value)| value)
    }

    /// The members of an object.
    pub fn members(&self) -> Option<&[Member]> {
        if let Json::Object(members) = self { Some(members) } else { None }
    }

    /// The items of an array.
    pub fn as_array(&self) -> Option<&[Json]> {
        if let Json::Array(items) = self { Some(items) } else { None }
    }

    /// The text of a string.
    pub fn as_str(&self) -> Option<&str> {
        if let Json::String(text) = self { Some(text) } else { None }
    }

    /// The value of a boolean.
    pub fn as_bool(&self) -> Option<bool> {
        if let Json::Bool(value) = self { Some(*value) } else { None }
    }

    /// The value of a number without fraction or exponent that fits the type.
    pub fn as_int<T: GoInt>(&self) -> Option<T> {
        if let Json::Number(text) = self { T::from_text(text) } else { None }
    }

    /// Whether this is `null`.
    pub fn is_null(&self) -> bool {
        matches!(self, Json::Null)
    }

    /// Go's word for what this is, as used in its error texts.
    pub fn kind(&self) -> &'static str {
        match self {
            Json::Null => "null",
            Json::Bool(_) => "bool",
            Json::Number(_) => "number",
            Json::String(_) => "string",
            Json::Array(_) => "array",
            Json::Object(_) => "object",
        }
    }

    /// Typed access, as if decoding into the Go struct of this name (it appears in error texts). `null`
    /// is a struct whose fields are all unset.
    ///
    /// # Errors
    /// This is neither an object nor `null`.
    pub fn fields<'a>(&'a self, struct_name: &'a str) -> Result<Fields<'a>, TypeError> {
        Fields::of(self, struct_name)
    }

    /// One line without blanks, members in the given order, `<`, `>` and `&` escaped: what Go writes of
    /// a struct.
    pub fn to_compact(&self) -> String {
        write::text(self, write::Style { indent: None, sorted: false })
    }

    /// One line without blanks, members sorted by name and the last of duplicates kept: what Go writes
    /// of a map.
    pub fn to_compact_sorted(&self) -> String {
        write::text(self, write::Style { indent: None, sorted: true })
    }

    /// Many lines, four blanks a level, members in the given order. No line feed at the end.
    pub fn to_indented(&self) -> String {
        write::text(self, write::Style { indent: Some("    "), sorted: false })
    }

    /// Many lines, four blanks a level, members sorted by name and the last of duplicates kept. No line
    /// feed at the end.
    pub fn to_indented_sorted(&self) -> String {
        write::text(self, write::Style { indent: Some("    "), sorted: true })
    }
}

/// Whether Go decodes a member called `name` into a field called `key`: equal, or equal after folding
/// (`encoding/json`, foldName: ASCII case, and the two letters outside ASCII that fold into it).
pub fn names_match(name: &str, key: &str) -> bool {
    fn fold(c: char) -> char {
        match c {
            '\u{017f}' => 's',
            '\u{212a}' => 'k',
            _ => c.to_ascii_lowercase(),
        }
    }
    name == key || name.chars().map(fold).eq(key.chars().map(fold))
}

impl FromStr for Json {
    type Err = SyntaxError;

    fn from_str(text: &str) -> Result<Json, SyntaxError> {
        Json::parse(text.as_bytes())
    }
}

impl From<bool> for Json {
    fn from(value: bool) -> Json {
        Json::Bool(value)
    }
}

impl From<&str> for Json {
    fn from(value: &str) -> Json {
        Json::String(value.to_owned())
    }
}

impl From<String> for Json {
    fn from(value: String) -> Json {
        Json::String(value)
    }
}

impl From<Vec<Json>> for Json {
    fn from(items: Vec<Json>) -> Json {
        Json::Array(items)
    }
}

impl<T: Into<Json>> From<Option<T>> for Json {
    /// `None` is `null`.
    fn from(value: Option<T>) -> Json {
        value.map_or(Json::Null, Into::into)
    }
}

macro_rules! from_integers {
    ($($type:ty)*) => { $(
        impl From<$type> for Json {
            fn from(value: $type) -> Json {
                Json::Number(value.to_string())
            }
        }
    )* };
}
from_integers!(i32 i64 u8 u16 u32 u64 usize);
