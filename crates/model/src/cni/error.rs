//! The error object a plugin prints on stdout (cni.md 1.4).

use std::fmt;

use crate::gojson::Json;

/// Error codes of the specification and of its reference implementation.
pub mod code {
    /// The configuration's version is not served.
    pub const VERSION: u32 = 1;
    /// A member has a value we do not serve; the message names both.
    pub const UNSUPPORTED: u32 = 2;
    /// A variable of the environment is missing or malformed.
    pub const ENVIRONMENT: u32 = 4;
    /// Reading or writing failed.
    pub const IO: u32 = 5;
    /// JSON or a version that cannot be decoded.
    pub const DECODE: u32 = 6;
    /// The network configuration is at fault.
    pub const CONFIG: u32 = 7;
    /// The network namespace cannot be used.
    pub const NETNS: u32 = 8;
    /// Try again later.
    pub const TRY_LATER: u32 = 11;
    /// STATUS: ADD cannot be served.
    pub const NOT_READY: u32 = 50;
    /// STATUS: ADD cannot be served, and existing pods may be cut off.
    pub const NOT_READY_CUT_OFF: u32 = 51;
    /// Everything without a code of its own.
    pub const INTERNAL: u32 = 999;
}

/// One failure as callers see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// See [`code`].
    pub code: u32,
    /// The sentence.
    pub msg: String,
    /// More about it and the way out; may be empty.
    pub details: String,
}

impl Error {
    /// An error with a code.
    pub fn new(code: u32, msg: impl Into<String>) -> Error {
        Error { code, msg: msg.into(), details: String::new() }
    }

    /// An error without a code of its own.
    pub fn internal(msg: impl Into<String>) -> Error {
        Error::new(code::INTERNAL, msg)
    }

    /// A fault of the configuration.
    pub fn config(msg: impl Into<String>) -> Error {
        Error::new(code::CONFIG, msg)
    }

    /// Adds details.
    pub fn details(mut self, details: impl Into<String>) -> Error {
        self.details = details.into();
        self
    }

    /// Puts what was attempted in front of the message; the code stays.
    pub fn during(mut self, action: impl fmt::Display) -> Error {
        self.msg = format!("{action}: {}", self.msg);
        self
    }

    /// Adds a second failure, met while clearing up after the first, to the details.
    pub fn also(mut self, other: impl fmt::Display) -> Error {
        if !self.details.is_empty() {
            self.details.push_str("; ");
        }
        self.details.push_str(&other.to_string());
        self
    }

    /// The object, four-space indentation, no trailing newline. `version` is that of the configuration
    /// when it could be parsed.
    pub fn to_json(&self, version: Option<&str>) -> String {
        let mut object = Json::empty();
        if let Some(version) = version {
            object.set("cniVersion", version);
        }
        object.set("code", self.code);
        object.set("msg", self.msg.as_str());
        if !self.details.is_empty() {
            object.set("details", self.details.as_str());
        }
        object.to_indented()
    }

    /// What a plugin that failed told: its error object, or the best that can be made of what it wrote.
    pub fn of_failure(stdout: &str, stderr: &str, status: &str) -> Error {
        match (stdout.is_empty(), stderr.is_empty()) {
            (true, true) => Error::internal(format!("netplugin failed with no error message: {status}")),
            (true, false) => Error::internal(format!("netplugin failed: {stderr:?}: {status}")),
            _ => Error::parse(stdout).unwrap_or_else(|| {
                let what = "netplugin failed but error parsing its diagnostic message";
                Error::internal(format!("{what} {stdout:?}"))
            }),
        }
    }

    /// Reads the error object another plugin printed.
    pub fn parse(text: &str) -> Option<Error> {
        let object: Json = text.parse().ok()?;
        object.members()?;
        let text = |key: &str| object.get(key).and_then(Json::as_str).unwrap_or_default().to_owned();
        let code = object.get("code").map_or(Some(0), Json::as_int)?;
        Some(Error { code, msg: text("msg"), details: text("details") })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.msg)?;
        if !self.details.is_empty() {
            write!(f, "; {}", self.details)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_print_and_read_back() {
        let error = Error::new(code::NETNS, "gone").details("say \"why\"");
        let text = error.to_json(Some("1.0.0"));
        let want = "{\n    \"cniVersion\": \"1.0.0\",\n    \"code\": 8,\n    \"msg\": \"gone\",\n    \
                    \"details\": \"say \\\"why\\\"\"\n}";
        assert_eq!(text, want);
        assert_eq!(Error::parse(&text), Some(error));
        assert_eq!(Error::parse("{\"code\": 7}").map(|e| e.code), Some(7));
        assert_eq!(Error::parse("no"), None);
        assert_eq!(Error::internal("a").during("b").also("c").also("d").to_string(), "b: a; c; d");
    }
}
