//! From when to when a certificate is valid: the PEM file, and of the DER inside only that (RFC 5280, 4.1). Pure.

/// First and last second since 1970 of the first certificate in a PEM text.
pub fn validity(pem: &str) -> Option<(u64, u64)> {
    let body = pem.split_once("-----BEGIN CERTIFICATE-----")?.1.split_once("-----END CERTIFICATE-----")?.0;
    let der = base64(body)?;
    let certificate = inside(&der, 0x30)?.0;
    let mut fields = inside(certificate, 0x30)?.0;
    if fields.first() == Some(&0xa0) {
        // The version, which old certificates lack.
        fields = inside(fields, 0xa0)?.1;
    }
    for tag in [0x02, 0x30, 0x30] {
        // Serial number, signature, issuer.
        fields = inside(fields, tag)?.1;
    }
    let times = inside(fields, 0x30)?.0;
    let (first, rest) = time(times)?;
    Some((first, time(rest)?.0))
}

/// The content of an element with this tag, and what follows it.
fn inside(data: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = data.split_first()?;
    let (&first, rest) = rest.split_first()?;
    if found != tag {
        return None;
    }
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let bytes = usize::from(first & 0x7f);
            let length = rest.get(..bytes)?.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
            (length, rest.get(bytes..)?)
        }
        _ => return None,
    };
    Some((rest.get(..length)?, rest.get(length..)?))
}

/// UTCTime or GeneralizedTime, and what follows it.
fn time(data: &[u8]) -> Option<(u64, &[u8])> {
    let (text, rest, century) = match data.first()? {
        0x17 => inside(data, 0x17).map(|(text, rest)| (text, rest, 2))?,
        _ => inside(data, 0x18).map(|(text, rest)| (text, rest, 4))?,
    };
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<u64>().ok();
    let year = match (century, number(0, century)?) {
        (2, year @ 0..=49) => 2000 + year,
        (2, year) => 1900 + year,
        (_, year) => year,
    };
    let at = |field: usize| number(century + 2 * field, century + 2 * field + 2);
    let days = days(year, at(0)?, at(1)?)?;
    Some((days * 86_400 + at(2)? * 3600 + at(3)? * 60 + at(4)?, rest))
}

/// Days since 1970 of a day of the Gregorian calendar.
fn days(year: u64, month: u64, day: u64) -> Option<u64> {
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let year = if month <= 2 { year - 1 } else { year };
    let of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    let (era, in_era) = (year / 400, year % 400);
    Some((era * 146_097 + in_era * 365 + in_era / 4 - in_era / 100 + of_year).saturating_sub(719_468))
}

fn base64(text: &str) -> Option<Vec<u8>> {
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0u32, 0);
    for c in text.bytes().filter(|c| !c.is_ascii_whitespace() && *c != b'=') {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        (bits, count) = (bits << 6 | u32::from(value), count + 6);
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_from_a_real_certificate() {
        let mut parameters = rcgen::CertificateParams::new(vec!["etcd".to_owned()]).expect("a name");
        parameters.not_before = rcgen::date_time_ymd(2024, 2, 29);
        for (last, seconds) in [((2031, 1, 1), 1_924_992_000), ((2061, 3, 1), 2_876_860_800)] {
            parameters.not_after = rcgen::date_time_ymd(last.0, last.1, last.2);
            let key = rcgen::KeyPair::generate().expect("a key");
            let pem = parameters.self_signed(&key).expect("a certificate").pem();
            assert_eq!(validity(&pem), Some((1_709_164_800, seconds)), "{last:?}");
            for end in 0..pem.len() {
                // Cut anywhere: nothing breaks.
                let _ = validity(&pem[..end]);
            }
        }
        assert_eq!(validity("-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----"), None);
    }
}
