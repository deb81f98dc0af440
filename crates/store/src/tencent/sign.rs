//! The signature of a request, TC3-HMAC-SHA256 as Tencent describes it. Pure: the time is an argument.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

/// What of a request is signed.
pub struct Signed<'a> {
    /// Name of the service, such as `vpc`.
    pub service: &'a str,
    /// The `Host` header.
    pub host: &'a str,
    /// The `Content-Type` header.
    pub content_type: &'a str,
    /// The body.
    pub body: &'a [u8],
    /// Seconds since 1970, as in `X-TC-Timestamp`.
    pub time_s: u64,
}

/// The `Authorization` header of a POST to `/`.
pub fn authorization(id: &str, secret: &[u8], request: &Signed<'_>) -> String {
    let date = date(request.time_s / 86_400);
    let headers = "content-type;host";
    let canonical = format!(
        "POST\n/\n\ncontent-type:{}\nhost:{}\n\n{headers}\n{}",
        request.content_type,
        request.host,
        hex(&Sha256::digest(request.body))
    );
    let scope = format!("{date}/{}/tc3_request", request.service);
    let text = format!(
        "TC3-HMAC-SHA256\n{}\n{scope}\n{}",
        request.time_s,
        hex(&Sha256::digest(canonical.as_bytes()))
    );
    let mut key = [b"TC3", secret].concat();
    for part in [date.as_str(), request.service, "tc3_request"] {
        key = hmac(&key, part.as_bytes()).to_vec();
    }
    let signature = hex(&hmac(&key, text.as_bytes()));
    format!("TC3-HMAC-SHA256 Credential={id}/{scope}, SignedHeaders={headers}, Signature={signature}")
}

/// RFC 2104.
fn hmac(key: &[u8], text: &[u8]) -> [u8; 32] {
    const BLOCK: usize = 64;
    let mut block = [0; BLOCK];
    if key.len() > BLOCK {
        block[..32].copy_from_slice(&Sha256::digest(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let pad = |byte: u8| block.map(|b| b ^ byte);
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(text).finalize();
    Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize().into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Year, month and day of a day since 1970 (proleptic Gregorian calendar).
fn date(days: u64) -> String {
    // Counted from 1 March of the year 0, so that a leap day is the last of its year.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let (month, early) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let day = of_year - (153 * ((month + 9) % 12) + 2) / 5 + 1;
    format!("{:04}-{month:02}-{day:02}", era * 400 + year + early)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_example_comes_out() {
        // Tencent's documentation of signature v3, 2019: key, request and result.
        let request = Signed {
            service: "cvm",
            host: "cvm.tencentcloudapi.com",
            content_type: "application/json; charset=utf-8",
            body:
                br#"{"Limit": 1, "Filters": [{"Values": ["\u672a\u547d\u540d"], "Name": "instance-name"}]}"#,
            time_s: 1_551_113_065,
        };
        assert_eq!(
            authorization(
                "AKIDz8krbsJ5yKBZQpn74WFkmLPx3EXAMPLE",
                b"Gu5t9xGARNpq86cd98joQYCN3EXAMPLE",
                &request
            ),
            "TC3-HMAC-SHA256 Credential=AKIDz8krbsJ5yKBZQpn74WFkmLPx3EXAMPLE/2019-02-25/cvm/tc3_request, \
             SignedHeaders=content-type;host, \
             Signature=72e494ea809ad7a8c8f7a4507b9bddcbaa8e581f516e8da2f66e2c5a96525168"
        );
    }

    #[test]
    fn hmac_is_rfc_4231s() {
        for (key, text, wanted) in [
            (
                vec![0x0b; 20],
                &b"Hi There"[..],
                "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
            ),
            (
                b"Jefe".to_vec(),
                b"what do ya want for nothing?",
                "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
            ),
            (
                vec![0xaa; 131],
                b"Test Using Larger Than Block-Size Key - Hash Key First",
                "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
            ),
        ] {
            assert_eq!(hex(&hmac(&key, text)), wanted);
        }
    }

    #[test]
    fn days_are_the_calendars() {
        for (days, wanted) in [
            (0, "1970-01-01"),
            (58, "1970-02-28"),
            (59, "1970-03-01"),
            (11_016, "2000-02-29"),
            (11_017, "2000-03-01"),
            (17_952, "2019-02-25"),
            (19_722, "2023-12-31"),
            (19_723, "2024-01-01"),
            (19_782, "2024-02-29"),
        ] {
            assert_eq!(date(days), wanted);
        }
    }
}
