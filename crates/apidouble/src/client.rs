//! A small blocking HTTP/1.1 client that hides nothing: it tells a clean end from a break, and gives lines as
//! they come. It speaks to the double and to a real server alike.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// How long one read may take before it counts as silence.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where to ask, and as whom.
#[derive(Clone, Debug)]
pub struct Client {
    /// `http://HOST:PORT` or `https://…`.
    pub url: String,
    /// Authority, as PEM; for `https` only.
    pub ca_pem: String,
    /// Bearer token, or empty.
    pub token: String,
}

/// An answer with all of its body.
#[derive(Clone, Debug)]
pub struct Reply {
    /// HTTP status.
    pub code: u16,
    /// Headers, names in small letters.
    pub headers: BTreeMap<String, String>,
    /// Body.
    pub text: String,
}

impl Reply {
    /// The body as JSON; null if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_default()
    }
}

impl Client {
    /// Asks; `content_type` may be empty for `application/json`.
    ///
    /// # Errors
    /// When the connection cannot be made or breaks before the end of the body.
    pub fn ask(&self, method: &str, path: &str, content_type: &str, body: &str) -> io::Result<Reply> {
        let mut answer = self.begin(method, path, content_type, body)?;
        let text = answer.rest()?;
        Ok(Reply { code: answer.code, headers: answer.headers.clone(), text })
    }

    /// GET.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn get(&self, path: &str) -> io::Result<Reply> {
        self.ask("GET", path, "", "")
    }

    /// Asks, and gives the answer as soon as its head is there.
    ///
    /// # Errors
    /// When the connection cannot be made, or there is no head.
    pub fn begin(&self, method: &str, path: &str, content_type: &str, body: &str) -> io::Result<Answer> {
        let wrong = || io::Error::new(io::ErrorKind::InvalidInput, format!("{:?} is no URL", self.url));
        let (scheme, host) = self.url.split_once("://").ok_or_else(wrong)?;
        let tcp = TcpStream::connect(host)?;
        tcp.set_read_timeout(Some(PATIENCE))?;
        tcp.set_nodelay(true)?;
        let control = tcp.try_clone()?;
        let mut stream: Box<dyn Stream> = match scheme {
            "https" => Box::new(StreamOwned::new(self.tls(host)?, tcp)),
            _ => Box::new(tcp),
        };
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
        head.push_str("Accept: application/json\r\nUser-Agent: loden-test\r\n");
        if !self.token.is_empty() {
            head.push_str(&format!("Authorization: Bearer {}\r\n", self.token));
        }
        if !body.is_empty() {
            let form = if content_type.is_empty() { "application/json" } else { content_type };
            head.push_str(&format!("Content-Type: {form}\r\nContent-Length: {}\r\n", body.len()));
        }
        stream.write_all(format!("{head}\r\n{body}").as_bytes())?;
        stream.flush()?;
        Answer::read(stream, control)
    }

    fn tls(&self, host: &str) -> io::Result<ClientConnection> {
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_slice(self.ca_pem.as_bytes()).map_err(io::Error::other)?;
        roots.add(ca).map_err(io::Error::other)?;
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let (name, _) = host.rsplit_once(':').unwrap_or((host, ""));
        let name = name.trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(name).map_err(io::Error::other)?;
        ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)
    }
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// How a body is delimited (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    Left(usize),
    Chunked,
    UntilClosed,
}

/// An answer whose body is still coming.
pub struct Answer {
    /// HTTP status.
    pub code: u16,
    /// Headers, names in small letters.
    pub headers: BTreeMap<String, String>,
    stream: Box<dyn Stream>,
    control: TcpStream,
    extent: Extent,
    /// Bytes read and not yet taken apart.
    raw: Vec<u8>,
    /// Body not yet given out.
    body: Vec<u8>,
    ended: bool,
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answer").field("code", &self.code).field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl Answer {
    fn read(stream: Box<dyn Stream>, control: TcpStream) -> io::Result<Self> {
        let mut answer = Self {
            code: 0,
            headers: BTreeMap::new(),
            stream,
            control,
            extent: Extent::UntilClosed,
            raw: Vec::new(),
            body: Vec::new(),
            ended: false,
        };
        let mut lines = Vec::new();
        loop {
            match answer.raw_line()? {
                line if line.is_empty() => break,
                line => lines.push(line),
            }
        }
        let mut lines = lines.iter();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
        answer.code = status.ok_or_else(|| io::Error::other("no HTTP answer"))?;
        for line in lines {
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            answer.headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let length = answer.headers.get("content-length").and_then(|text| text.parse().ok());
        answer.extent = match length {
            Some(length) => Extent::Left(length),
            None if answer.headers.get("transfer-encoding").is_some_and(|how| how == "chunked") => {
                Extent::Chunked
            }
            None => Extent::UntilClosed,
        };
        Ok(answer)
    }

    /// The next line of the body without its end; none at a clean end of the body.
    ///
    /// # Errors
    /// `UnexpectedEof` when the connection broke, `WouldBlock` or `TimedOut` when nothing came for `limit`.
    pub fn line(&mut self, limit: Duration) -> io::Result<Option<String>> {
        let end = Instant::now() + limit;
        loop {
            if let Some(at) = self.body.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.body.drain(..=at).collect();
                return Ok(Some(String::from_utf8_lossy(&line[..at]).into_owned()));
            }
            if self.ended {
                let rest = std::mem::take(&mut self.body);
                return Ok((!rest.is_empty()).then(|| String::from_utf8_lossy(&rest).into_owned()));
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.control.set_read_timeout(Some(left))?;
            self.more()?;
        }
    }

    /// The next line as an event of a watch.
    ///
    /// # Errors
    /// As [`Self::line`].
    pub fn event(&mut self, limit: Duration) -> io::Result<Option<Value>> {
        let line = self.line(limit)?;
        Ok(line.map(|line| serde_json::from_str(&line).unwrap_or(Value::String(line))))
    }

    /// What came of a line that never ended.
    pub fn half(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn rest(&mut self) -> io::Result<String> {
        while !self.ended {
            self.more()?;
        }
        Ok(String::from_utf8_lossy(&std::mem::take(&mut self.body)).into_owned())
    }

    /// Takes in more of the body.
    fn more(&mut self) -> io::Result<()> {
        match self.extent {
            Extent::Left(0) => self.ended = true,
            Extent::Left(left) => {
                if self.raw.is_empty() && self.fill()? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                let taken = left.min(self.raw.len());
                self.body.extend(self.raw.drain(..taken));
                self.extent = Extent::Left(left - taken);
            }
            Extent::Chunked => {
                // Only whole chunks: a read that times out must lose nothing.
                let Some((size, head)) = self.chunk_head()? else { return Ok(()) };
                while self.raw.len() < head + size + 2 {
                    if self.fill()? == 0 {
                        // What came of the last chunk is shown by `half`.
                        let there = self.raw.len().min(head + size);
                        self.body.extend(self.raw.drain(..there).skip(head));
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                self.body.extend(self.raw.drain(..head + size).skip(head));
                self.raw.drain(..2);
                self.ended = size == 0;
            }
            Extent::UntilClosed => {
                self.ended = self.raw.is_empty() && self.fill()? == 0;
                self.body.append(&mut self.raw);
            }
        }
        Ok(())
    }

    /// Size of the next chunk, and of the line that tells it; none if more must be read, which was done.
    fn chunk_head(&mut self) -> io::Result<Option<(usize, usize)>> {
        let Some(at) = self.raw.windows(2).position(|two| two == b"\r\n") else {
            return match self.fill()? {
                0 => Err(io::ErrorKind::UnexpectedEof.into()),
                _ => Ok(None),
            };
        };
        let digits = std::str::from_utf8(&self.raw[..at]).unwrap_or_default();
        let size = usize::from_str_radix(digits.split(';').next().unwrap_or_default().trim(), 16);
        size.map(|size| Some((size, at + 2))).map_err(|_| io::Error::other("a chunk without a size"))
    }

    fn raw_line(&mut self) -> io::Result<String> {
        loop {
            if let Some(at) = self.raw.windows(2).position(|two| two == b"\r\n") {
                let line: Vec<u8> = self.raw.drain(..at + 2).collect();
                return Ok(String::from_utf8_lossy(&line[..at]).into_owned());
            }
            if self.fill()? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    fn fill(&mut self) -> io::Result<usize> {
        let mut buffer = [0; 65_536];
        let count = self.stream.read(&mut buffer)?;
        self.raw.extend_from_slice(&buffer[..count]);
        Ok(count)
    }
}
