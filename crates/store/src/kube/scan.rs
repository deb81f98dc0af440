//! JSON as it arrives, piece by piece, without keeping it: tells what opens, what closes and what stands
//! in between, and copies only the texts somebody wants.

use memchr::memchr2;

/// What is told of a document.
pub(super) trait Sink {
    /// An object or an array opens; gives whether anything inside is of interest, else nothing of it is told, and only
    /// its texts and brackets are looked at. Whether scalars directly inside are wanted is asked for each.
    fn open(&mut self, array: bool) -> bool;
    /// The one opened last closes, of which was told that it opened.
    fn close(&mut self);
    /// The name of the member that follows. Longer ones are cut at [`LONGEST_KEY`].
    fn key(&mut self, name: &str);
    /// How many bytes of the text that follows are wanted; 0 = none, and [`Sink::text`] is not called.
    fn wants(&self) -> usize;
    /// A string's content, or a number, `true`, `false` or `null` as written. `whole` = it was not longer
    /// than wanted.
    fn text(&mut self, text: &str, whole: bool);
}

/// Names longer than any name of an annotation (253 + 1 + 63) are of no use.
const LONGEST_KEY: usize = 320;
/// Deeper documents are refused; the deepest part of a Node, its managed fields, has some 12 levels.
const DEEPEST: usize = 128;

/// Bytes that count where nothing else is looked at. A table, for that is most of what is read.
const STRUCTURE: [bool; 256] = {
    let mut table = [false; 256];
    let mut at = 0;
    while at < 5 {
        table[b"\"{}[]"[at] as usize] = true;
        at += 1;
    }
    table
};

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    Value,
    /// A value or `]`.
    ValueOrEnd,
    /// A key or `}`.
    KeyOrEnd,
    Key,
    Colon,
    /// `,` or the closing bracket.
    Next,
}

/// Where in a token we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Between,
    Text,
    /// After a backslash.
    Escape,
    /// In an escape of four hexadecimal digits: how many so far, and their value.
    Unicode(u8, u16),
    /// A number or a word.
    Bare,
    /// Inside a container that nobody wants; most of a Node is.
    Passed,
    PassedText,
    PassedEscape,
}

/// The state between two pieces.
pub(super) struct Scanner {
    expect: Expect,
    token: Token,
    is_key: bool,
    /// Bytes to keep of the token we are in.
    limit: usize,
    kept: Vec<u8>,
    cut: bool,
    /// The first half of a surrogate pair.
    high: Option<u16>,
    /// For each open container whether it is an array.
    open: Vec<bool>,
    /// How many are open around and with the one that nobody wants.
    passed: usize,
    /// Bytes seen, for messages.
    seen: u64,
}

impl Scanner {
    pub(super) fn new() -> Scanner {
        Scanner {
            expect: Expect::Value,
            token: Token::Between,
            is_key: false,
            limit: 0,
            kept: Vec::new(),
            cut: false,
            high: None,
            open: Vec::new(),
            passed: 0,
            seen: 0,
        }
    }

    /// Whether we are between two documents.
    pub(super) fn at_rest(&self) -> bool {
        self.open.is_empty() && self.token == Token::Between
    }

    /// Takes the next piece. Documents may follow one another.
    ///
    /// # Errors
    /// What is wrong and at which byte; nothing more can be read then.
    pub(super) fn feed(&mut self, bytes: &[u8], sink: &mut impl Sink) -> Result<(), String> {
        let mut at = 0;
        while at < bytes.len() {
            let byte = bytes[at];
            match self.token {
                Token::Between => {
                    at += 1;
                    if !matches!(byte, b' ' | b'\t' | b'\n' | b'\r') {
                        self.begin(byte, sink).map_err(|what| self.bad(at, what))?;
                    }
                }
                Token::Text => {
                    let rest = &bytes[at..];
                    let run = memchr2(b'"', b'\\', rest).unwrap_or(rest.len());
                    self.keep(&rest[..run]);
                    at += run;
                    match rest.get(run) {
                        Some(b'"') => {
                            at += 1;
                            self.end_text(sink);
                        }
                        Some(_) => {
                            at += 1;
                            self.token = Token::Escape;
                        }
                        None => {}
                    }
                }
                Token::Passed => {
                    let rest = &bytes[at..];
                    let run = rest.iter().position(|b| STRUCTURE[usize::from(*b)]).unwrap_or(rest.len());
                    at += run + 1;
                    if let Some(byte) = rest.get(run) {
                        self.pass(*byte, sink).map_err(|what| self.bad(at, what))?;
                    }
                }
                Token::PassedText => {
                    let rest = &bytes[at..];
                    let run = memchr2(b'"', b'\\', rest).unwrap_or(rest.len());
                    at += run + 1;
                    match rest.get(run) {
                        Some(b'"') => self.token = Token::Passed,
                        Some(_) => self.token = Token::PassedEscape,
                        None => {}
                    }
                }
                // What follows a backslash ends no text; the digits of \u are ordinary bytes of it.
                Token::PassedEscape => {
                    at += 1;
                    self.token = Token::PassedText;
                }
                Token::Escape => {
                    at += 1;
                    self.escape(byte).map_err(|what| self.bad(at, what))?;
                }
                Token::Unicode(digits, value) => {
                    at += 1;
                    let Some(digit) = (byte as char).to_digit(16) else {
                        return Err(self.bad(at, "a bad escape"));
                    };
                    let value = value << 4 | digit as u16;
                    self.token = Token::Unicode(digits + 1, value);
                    if digits == 3 {
                        self.unit(value);
                        self.token = Token::Text;
                    }
                }
                Token::Bare => {
                    let rest = &bytes[at..];
                    let bare = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.');
                    let run = rest.iter().position(|b| !bare(b)).unwrap_or(rest.len());
                    self.keep(&rest[..run]);
                    at += run;
                    if run < rest.len() {
                        self.token = Token::Between;
                        self.expect = Expect::Next;
                        self.tell(sink);
                    }
                }
            }
        }
        self.seen += bytes.len() as u64;
        Ok(())
    }

    fn bad(&self, at: usize, what: &str) -> String {
        format!("not JSON: {what} at byte {}", self.seen + at as u64)
    }

    fn begin(&mut self, byte: u8, sink: &mut impl Sink) -> Result<(), &'static str> {
        match (self.expect, byte) {
            (Expect::Next, b',') if !self.open.is_empty() => {
                self.expect = if self.open.last() == Some(&true) { Expect::Value } else { Expect::Key };
            }
            (Expect::Next | Expect::ValueOrEnd, b']') if self.open.last() == Some(&true) => self.close(sink),
            (Expect::Next | Expect::KeyOrEnd, b'}') if self.open.last() == Some(&false) => self.close(sink),
            (Expect::Key | Expect::KeyOrEnd, b'"') => {
                (self.is_key, self.limit, self.token) = (true, LONGEST_KEY, Token::Text);
            }
            (Expect::Colon, b':') => self.expect = Expect::Value,
            (Expect::Value | Expect::ValueOrEnd, b'{' | b'[') => {
                let array = byte == b'[';
                self.push(array)?;
                self.expect = if array { Expect::ValueOrEnd } else { Expect::KeyOrEnd };
                if !sink.open(array) {
                    (self.token, self.passed) = (Token::Passed, self.open.len());
                }
            }
            (Expect::Value | Expect::ValueOrEnd, b'"') => {
                (self.is_key, self.limit, self.token) = (false, sink.wants(), Token::Text);
            }
            (Expect::Value | Expect::ValueOrEnd, b'-' | b'0'..=b'9' | b't' | b'f' | b'n')
                if !self.open.is_empty() =>
            {
                (self.is_key, self.limit, self.token) = (false, sink.wants(), Token::Bare);
                self.keep(&[byte]);
            }
            _ => return Err("an unexpected character"),
        }
        Ok(())
    }

    fn push(&mut self, array: bool) -> Result<(), &'static str> {
        if self.open.len() == DEEPEST {
            return Err("nested too deep");
        }
        self.open.push(array);
        Ok(())
    }

    /// A quote or a bracket inside what nobody wants.
    fn pass(&mut self, byte: u8, sink: &mut impl Sink) -> Result<(), &'static str> {
        match byte {
            b'"' => self.token = Token::PassedText,
            b'{' | b'[' => self.push(byte == b'[')?,
            _ if self.open.last() != Some(&(byte == b']')) => return Err("an unexpected character"),
            _ if self.open.len() > self.passed => _ = self.open.pop(),
            _ => {
                self.token = Token::Between;
                self.close(sink);
            }
        }
        Ok(())
    }

    fn close(&mut self, sink: &mut impl Sink) {
        self.open.pop();
        self.expect = if self.open.is_empty() { Expect::Value } else { Expect::Next };
        sink.close();
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = self.limit - self.kept.len().min(self.limit);
        self.kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.cut |= bytes.len() > room;
    }

    fn escape(&mut self, byte: u8) -> Result<(), &'static str> {
        let plain = match byte {
            b'"' | b'\\' | b'/' => byte,
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                self.token = Token::Unicode(0, 0);
                return Ok(());
            }
            _ => return Err("a bad escape"),
        };
        self.token = Token::Text;
        self.keep(&[plain]);
        Ok(())
    }

    /// One UTF-16 unit; halves that do not belong together become the replacement character.
    fn unit(&mut self, unit: u16) {
        let units = [self.high.take().unwrap_or(0), unit];
        let units = if units[0] == 0 { &units[1..] } else { &units[..] };
        if units.len() == 1 && (0xd800..0xdc00).contains(&unit) {
            self.high = Some(unit);
            return;
        }
        for decoded in char::decode_utf16(units.iter().copied()) {
            let mut buffer = [0; 4];
            let text = decoded.unwrap_or(char::REPLACEMENT_CHARACTER).encode_utf8(&mut buffer);
            self.keep(text.as_bytes());
        }
    }

    fn end_text(&mut self, sink: &mut impl Sink) {
        self.token = Token::Between;
        self.high = None;
        if self.is_key {
            self.expect = Expect::Colon;
            sink.key(&String::from_utf8_lossy(&self.kept));
            self.kept.clear();
            self.cut = false;
        } else {
            self.expect = if self.open.is_empty() { Expect::Value } else { Expect::Next };
            self.tell(sink);
        }
    }

    fn tell(&mut self, sink: &mut impl Sink) {
        if self.limit > 0 {
            sink.text(&String::from_utf8_lossy(&self.kept), !self.cut);
        }
        self.kept.clear();
        self.cut = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tells everything as one line.
    #[derive(Default)]
    struct Told(String);

    impl Sink for Told {
        fn open(&mut self, array: bool) -> bool {
            let wanted = !self.0.ends_with("pass:");
            self.0.push(if array { '[' } else { '{' });
            wanted
        }

        fn close(&mut self) {
            self.0.push('.');
        }

        fn key(&mut self, name: &str) {
            self.0.push_str(&format!("{name}:"));
        }

        fn wants(&self) -> usize {
            if self.0.ends_with("skip:") { 0 } else { 8 }
        }

        fn text(&mut self, text: &str, whole: bool) {
            self.0.push_str(&format!("<{text}{}>", if whole { "" } else { "…" }));
        }
    }

    fn told(pieces: &[&[u8]]) -> Result<String, String> {
        let (mut scanner, mut told) = (Scanner::new(), Told::default());
        for piece in pieces {
            scanner.feed(piece, &mut told)?;
        }
        Ok(if scanner.at_rest() { told.0 } else { format!("{}_", told.0) })
    }

    #[test]
    fn documents_are_told_whatever_the_pieces() {
        for (text, want) in [
            (r#"{"a":"b","c":[1,true,null,"x"],"d":{}}"#, "{a:<b>c:[<1><true><null><x>.d:{.."),
            ("{}\n{}\n", "{.{."),
            (r#" { "a" : [ ] , "b" : -1.5e+3 } "#, "{a:[.b:<-1.5e+3>."),
            (r#"{"a":"q\"\\\/\b\n\u00e9"}"#, "{a:<q\"\\/\u{8}\né>."),
            (r#"{"a":"\ud83d\ude00!"}"#, "{a:<😀!>."),
            (r#"{"a":"\ud83dx","b":"\ude00"}"#, "{a:<x>b:<\u{fffd}>."),
            (r#"{"a":"123456789"}"#, "{a:<12345678…>."),
            (r#"{"skip":"123456789","b":"1"}"#, "{skip:b:<1>."),
            (r#"{"skip":12,"b":2}"#, "{skip:b:<2>."),
            (r#"{"pass":{"a":1,"b":["}\"{",{}]},"c":2}"#, "{pass:{.c:<2>."),
            (r#"{"pass":[],"c":[1]}"#, "{pass:[.c:[<1>.."),
            (r#"[{"pass":["\\",[{"x":"\u007d"}]]}]"#, "[{pass:[..."),
            (r#"{"pass":{"a":"#, "{pass:{_"),
            (r#"{"a":"#, "{a:_"),
            (r#"{"a":"x"#, "{a:_"),
        ] {
            assert_eq!(told(&[text.as_bytes()]).as_deref(), Ok(want), "{text}");
            let pieces: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
            assert_eq!(told(&pieces).as_deref(), Ok(want), "{text}, byte by byte");
        }
    }

    #[test]
    fn what_is_not_json_is_refused_with_its_place() {
        for (text, want) in [
            ("<html>", "not JSON: an unexpected character at byte 1"),
            ("{]", "not JSON: an unexpected character at byte 2"),
            ("[}", "not JSON: an unexpected character at byte 2"),
            (r#"{"a" 1}"#, "not JSON: an unexpected character at byte 6"),
            (r#"{"a":1,}"#, "not JSON: an unexpected character at byte 8"),
            (r#"[1,]"#, "not JSON: an unexpected character at byte 4"),
            (r#"[1 2]"#, "not JSON: an unexpected character at byte 4"),
            (r#"{"pass":[}}"#, "not JSON: an unexpected character at byte 10"),
            (r#"{"pass":{"a":[]]}"#, "not JSON: an unexpected character at byte 16"),
            (r#"{"pass":{}1}"#, "not JSON: an unexpected character at byte 11"),
            (r#"{"a":"\x"}"#, "not JSON: a bad escape at byte 8"),
            (r#"{"a":"\u00g0"}"#, "not JSON: a bad escape at byte 11"),
        ] {
            assert_eq!(told(&[text.as_bytes()]), Err(want.to_owned()), "{text}");
        }
        let deep = format!(r#"{{"pass":{}"#, "[".repeat(129));
        assert_eq!(told(&[deep.as_bytes()]), Err("not JSON: nested too deep at byte 136".to_owned()));
        let deep = "[".repeat(129);
        assert_eq!(told(&[deep.as_bytes()]), Err("not JSON: nested too deep at byte 129".to_owned()));
    }
}
