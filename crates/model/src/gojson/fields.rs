//! Typed access to a tree as if Go decoded it into a struct.
//!
//! For every getter: a field is fed by every member whose name matches, in the order of the document;
//! each must have the right type; `null` leaves a scalar or a struct as it was and clears a list. `None`
//! means the field keeps its default.

use std::borrow::Cow;

use super::{Json, Member, names_match};

/// A member of the wrong type, in Go's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("json: cannot unmarshal {found} into Go {target} of type {wanted}")]
pub struct TypeError {
    /// What the document has: `string`, `number 1.5`, `object`, …
    pub found: String,
    /// `value`, or `struct field NetConf.mtu`.
    pub target: String,
    /// Go's name of the type that was wanted: `int`, `uint8`, `bool`, …
    pub wanted: String,
}

impl TypeError {
    fn new(json: &Json, target: String, wanted: &str) -> TypeError {
        let found = match json {
            // Go names the number only where a number was wanted.
            Json::Number(text) if wanted.contains("int") && !wanted.starts_with('[') => {
                format!("number {text}")
            }
            other => other.kind().to_owned(),
        };
        TypeError { found, target, wanted: wanted.to_owned() }
    }
}

/// An integer type of Go's.
pub trait GoInt: TryFrom<i128> {
    /// Go's name of the type.
    const NAME: &'static str;
    /// Whether it has negative values. If not, even `-0` is refused.
    const SIGNED: bool;

    /// Reads the text of a JSON number: no fraction, no exponent, in range.
    fn from_text(text: &str) -> Option<Self> {
        let negative = text.starts_with('-');
        if negative && !Self::SIGNED || !text[usize::from(negative)..].bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        Self::try_from(text.parse().ok()?).ok()
    }
}

macro_rules! go_ints {
    ($($type:ty, $name:literal, $signed:literal;)*) => { $(
        impl GoInt for $type {
            const NAME: &'static str = $name;
            const SIGNED: bool = $signed;
        }
    )* };
}
go_ints!(
    i32, "int32", true; i64, "int", true;
    u8, "uint8", false; u16, "uint16", false; u32, "uint32", false; u64, "uint", false;
);

/// The fields of a Go struct, fed by one object or by several that Go would merge.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    members: Vec<&'a Member>,
    struct_name: &'a str,
    /// Names of the fields on the way here, each followed by a point.
    path: Cow<'a, str>,
}

impl<'a> Fields<'a> {
    pub(super) fn of(json: &'a Json, struct_name: &'a str) -> Result<Fields<'a>, TypeError> {
        let members = match json {
            Json::Object(members) => members.iter().collect(),
            Json::Null => Vec::new(),
            other => return Err(TypeError::new(other, "value".to_owned(), struct_name)),
        };
        Ok(Fields { members, struct_name, path: Cow::Borrowed("") })
    }

    fn matches(&self, key: &str) -> impl Iterator<Item = &'a Json> {
        self.members.iter().filter(move |(name, _)| names_match(name, key)).map(|(_, value)| value)
    }

    /// The error Go gives for `json` found in the field `key` where `wanted` should be. For checks of
    /// one's own, too.
    pub fn error(&self, key: &str, json: &Json, wanted: &str) -> TypeError {
        TypeError::new(json, format!("struct field {}.{}{key}", self.struct_name, self.path), wanted)
    }

    fn scalar<T>(
        &self,
        key: &str,
        wanted: &str,
        read: impl Fn(&'a Json) -> Option<T>,
    ) -> Result<Option<T>, TypeError> {
        let mut value = None;
        for json in self.matches(key).filter(|json| !json.is_null()) {
            value = Some(read(json).ok_or_else(|| self.error(key, json, wanted))?);
        }
        Ok(value)
    }

    /// A field of type `string`.
    pub fn str(&self, key: &str) -> Result<Option<&'a str>, TypeError> {
        self.scalar(key, "string", Json::as_str)
    }

    /// A field of type `bool`.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, TypeError> {
        self.scalar(key, "bool", Json::as_bool)
    }

    /// A field of an integer type: `i64` is Go's `int`, `u64` its `uint`.
    pub fn int<T: GoInt>(&self, key: &str) -> Result<Option<T>, TypeError> {
        self.scalar(key, T::NAME, Json::as_int)
    }

    /// A field of type `json.RawMessage` or `interface{}`: the last member as it stands, `null` included.
    pub fn raw(&self, key: &str) -> Option<&'a Json> {
        self.matches(key).last()
    }

    /// A field whose type is the struct called `struct_name`. Several objects are merged, as in Go.
    pub fn object(&self, key: &str, struct_name: &'a str) -> Result<Option<Fields<'a>>, TypeError> {
        let mut merged: Option<Vec<&Member>> = None;
        for json in self.matches(key).filter(|json| !json.is_null()) {
            let members = json.members().ok_or_else(|| self.error(key, json, struct_name))?;
            merged.get_or_insert_default().extend(members);
        }
        Ok(merged.map(|members| Fields { members, struct_name, path: self.below(key) }))
    }

    fn below(&self, key: &str) -> Cow<'a, str> {
        Cow::Owned(format!("{}{key}.", self.path))
    }

    /// A list whose items are of Go's type `item`; `None` if absent or `null`.
    pub fn array(&self, key: &str, item: &str) -> Result<Option<&'a [Json]>, TypeError> {
        let mut list = None;
        for json in self.matches(key) {
            list = match json {
                Json::Null => None,
                Json::Array(items) => Some(items.as_slice()),
                other => return Err(self.error(key, other, &format!("[]{item}"))),
            };
        }
        Ok(list)
    }

    /// A list of strings; a `null` item is the empty string.
    pub fn strings(&self, key: &str) -> Result<Option<Vec<&'a str>>, TypeError> {
        let Some(items) = self.array(key, "string")? else { return Ok(None) };
        let texts = items.iter().map(|item| match item {
            Json::Null => Ok(""),
            other => other.as_str().ok_or_else(|| self.error(key, other, "string")),
        });
        texts.collect::<Result<_, _>>().map(Some)
    }

    /// A list of structs called `struct_name`; a `null` item is a struct with nothing set.
    pub fn objects(&self, key: &str, struct_name: &'a str) -> Result<Option<Vec<Fields<'a>>>, TypeError> {
        let Some(items) = self.array(key, struct_name)? else { return Ok(None) };
        let each = items.iter().map(|item| {
            let members = match item {
                Json::Null => Vec::new(),
                other => other.members().ok_or_else(|| self.error(key, other, struct_name))?.iter().collect(),
            };
            Ok(Fields { members, struct_name, path: self.below(key) })
        });
        each.collect::<Result<_, _>>().map(Some)
    }

    /// A map from strings to booleans, in the order of the document; several objects are merged, later
    /// members win.
    pub fn bool_map(&self, key: &str) -> Result<Option<Vec<(&'a str, bool)>>, TypeError> {
        let Some(map) = self.object(key, "map[string]bool")? else { return Ok(None) };
        let mut out: Vec<(&str, bool)> = Vec::new();
        for (name, json) in map.members {
            let value = match json {
                Json::Null => false,
                other => other.as_bool().ok_or_else(|| self.error(key, other, "bool"))?,
            };
            out.retain(|(known, _)| known != name);
            out.push((name, value));
        }
        Ok(Some(out))
    }
}
