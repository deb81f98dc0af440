//! Protocol versions (cni.md 1.3, 1.6).

use std::str::FromStr;

/// All versions served, oldest first.
pub const ALL: &[&str] = &["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The newest version: what the answer to VERSION says.
pub const NEWEST: &str = "1.1.0";

/// A version number. Missing parts count 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

/// A text that is no version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not one to three numbers joined by dots, such as 1.0.0")]
pub struct BadVersion(pub String);

impl FromStr for Version {
    type Err = BadVersion;

    fn from_str(text: &str) -> Result<Version, BadVersion> {
        let bad = || BadVersion(text.to_owned());
        let mut parts = [0; 3];
        for (n, part) in text.split('.').enumerate() {
            let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            let slot = parts.get_mut(n).filter(|_| digits).ok_or_else(bad)?;
            *slot = part.parse().map_err(|_| bad())?;
        }
        Ok(Version(parts[0], parts[1], parts[2]))
    }
}

/// The shape of a result document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// 0.1.0, 0.2.0: one address for each family.
    Two,
    /// 0.3.0 to 0.4.0: lists, addresses with `version`.
    Four,
    /// 1.0.0, 1.1.0.
    One,
}

impl Shape {
    /// The shape of a version, `None` if no version of that name exists. The empty text is 0.1.0.
    pub fn of(version: &str) -> Option<Shape> {
        match version {
            "" | "0.1.0" | "0.2.0" => Some(Shape::Two),
            "0.3.0" | "0.3.1" | "0.4.0" => Some(Shape::Four),
            "1.0.0" | "1.1.0" => Some(Shape::One),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_parse() {
        for (text, want) in [
            ("1.0.0", Some(Version(1, 0, 0))),
            ("0.3", Some(Version(0, 3, 0))),
            ("2", Some(Version(2, 0, 0))),
            ("", None),
            ("1.", None),
            ("1.2.3.4", None),
            ("1.x", None),
            ("+1", None),
        ] {
            assert_eq!(text.parse::<Version>().ok(), want, "{text:?}");
        }
        assert!(Version(0, 4, 0) < Version(1, 0, 0));
        assert!(ALL.iter().all(|v| Shape::of(v).is_some()));
    }
}
