//! `FastPath` of the `Backend` object, ours alone: whether established flows between pods go past the host's
//! bridge, netfilter and tunnel device (decision 0215).

use super::ConfError;
use crate::gojson::Json;

/// What is wanted of the fast path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FastPath {
    /// None; also what an absent key says.
    #[default]
    Off,
    /// Where the kernel can.
    Auto,
    /// Where the kernel cannot, something is wrong with the node.
    On,
}

impl FastPath {
    /// From the word of a flag or a key.
    ///
    /// # Errors
    /// Another word; the sentence has the right ones.
    pub fn of(word: &str) -> Result<FastPath, String> {
        match word {
            "off" => Ok(FastPath::Off),
            "auto" => Ok(FastPath::Auto),
            "on" => Ok(FastPath::On),
            _ => Err(format!("{word:?} must be \"off\", \"auto\" or \"on\"")),
        }
    }

    /// From the `Backend` object.
    ///
    /// # Errors
    /// A key of another type, or another word.
    pub fn decode(backend: &Json) -> Result<FastPath, ConfError> {
        let fields = backend.fields("Backend")?;
        let word = fields.str("FastPath")?.unwrap_or_default();
        if word.is_empty() {
            return Ok(FastPath::Off);
        }
        FastPath::of(word).map_err(|problem| ConfError::value("FastPath", problem))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_key() {
        for (backend, wanted) in [
            ("{}", Ok(FastPath::Off)),
            (r#"{"FastPath": ""}"#, Ok(FastPath::Off)),
            (r#"{"FastPath": "off"}"#, Ok(FastPath::Off)),
            (r#"{"fastpath": "auto"}"#, Ok(FastPath::Auto)),
            (r#"{"FastPath": "on"}"#, Ok(FastPath::On)),
            (r#"{"FastPath": "ON"}"#, Err("\"ON\" must be \"off\", \"auto\" or \"on\"")),
            (r#"{"FastPath": true}"#, Err("FastPath")),
        ] {
            let found = FastPath::decode(&Json::parse(backend.as_bytes()).unwrap());
            match (found, wanted) {
                (Ok(found), Ok(wanted)) => assert_eq!(found, wanted, "{backend}"),
                (Err(found), Err(wanted)) => {
                    assert!(found.to_string().contains(wanted), "{backend}: {found}")
                }
                (found, wanted) => panic!("{backend}: {found:?}, not {wanted:?}"),
            }
        }
    }
}
