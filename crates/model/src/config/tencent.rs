//! The `Backend` object of type `tencent-vpc` (flannel.md 2.3, 6.10).

use super::{ConfError, Secret};
use crate::gojson::Json;

/// By whom calls of the cloud's interface are signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TencentConf {
    /// `AccessKeyID`
    pub id: String,
    /// `AccessKeySecret`
    pub secret: Secret,
}

impl TencentConf {
    /// Decodes the `Backend` object. `None` if not both members are there: then both come from the
    /// environment, as upstream.
    ///
    /// # Errors
    /// A member of another type, or an id that cannot be one.
    pub fn decode(backend: &Json) -> Result<Option<TencentConf>, ConfError> {
        let fields = backend.fields("Backend")?;
        let id = fields.str("AccessKeyID")?.unwrap_or_default();
        let secret = fields.str("AccessKeySecret")?.unwrap_or_default();
        TencentConf::new(id, secret)
            .map_err(|problem| ConfError::Value { key: "AccessKeyID", problem: problem.to_owned() })
    }

    /// From these texts; `None` if one is empty.
    ///
    /// # Errors
    /// What is wrong with the id.
    pub fn new(id: &str, secret: &str) -> Result<Option<TencentConf>, &'static str> {
        // It becomes part of a header.
        if !id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-') {
            return Err("must be of letters, digits, - and _, such as AKIDz8krbsJ5yKBZQpn74WFkmLPx3");
        }
        let both = !id.is_empty() && !secret.is_empty();
        Ok(both.then(|| TencentConf { id: id.to_owned(), secret: Secret::new(secret) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_or_none_and_never_shown() {
        let decode = |text: &str| TencentConf::decode(&text.parse().unwrap());
        let both = decode(r#"{"accesskeyid":"AKIDx","AccessKeySecret":"s3cr3t"}"#).unwrap().unwrap();
        assert_eq!((both.id.as_str(), both.secret.bytes()), ("AKIDx", &b"s3cr3t"[..]));
        assert!(!format!("{both:?}").contains("s3cr3t"));
        for text in
            ["{}", r#"{"AccessKeyID":"AKIDx"}"#, r#"{"AccessKeySecret":"s3cr3t"}"#, r#"{"AccessKeyID":null}"#]
        {
            assert_eq!(decode(text), Ok(None), "{text}");
        }
        for (text, sentence) in [
            (r#"{"AccessKeyID":7}"#, "AccessKeyID"),
            (r#"{"AccessKeySecret":["s3cr3t"]}"#, "AccessKeySecret"),
            (r#"{"AccessKeyID":"a b","AccessKeySecret":"s3cr3t"}"#, "AccessKeyID must be of letters"),
        ] {
            let error = decode(text).expect_err(text).to_string();
            assert!(error.contains(sentence) && !error.contains("s3cr3t"), "{text}: {error}");
        }
    }
}
