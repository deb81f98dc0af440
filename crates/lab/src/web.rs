//! The page every pod serves, and the client that fetches it: HTTP/1.0 over std, nothing more.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// Port of the page.
pub const PORT: u16 = 80;
const PATIENCE: Duration = Duration::from_secs(3);

/// Serves for ever. Says who asked on standard output, one line a request.
///
/// # Errors
/// The port cannot be bound.
pub fn serve(pod: &str, host: &str) -> io::Result<()> {
    // One socket for both families where the kernel has IPv6.
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT))
        .or_else(|_| TcpListener::bind((std::net::Ipv4Addr::UNSPECIFIED, PORT)))?;
    for stream in listener.incoming() {
        // A client that leaves early is its own loss.
        let _ = stream.and_then(|s| answer(s, pod, host));
    }
    Ok(())
}

fn answer(mut stream: TcpStream, pod: &str, host: &str) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let peer = stream.peer_addr()?.ip().to_canonical();
    let mut line = String::new();
    let mut reader = BufReader::new(stream.try_clone()?).take(8192);
    reader.read_line(&mut line)?;
    let asked = line.trim_end().to_owned();
    // The rest of the head is read so that closing does not reset the connection.
    while reader.read_line(&mut line)? > 2 {}
    let body = format!("pod {pod} on {host}, you are {peer}\n");
    writeln!(io::stdout().lock(), "{peer} \"{asked}\" 200 {}", body.len())?;
    write!(
        stream,
        "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Fetches `/PATH` from a server; gives the status line and the body. Runs in the caller's namespace.
///
/// # Errors
/// The kernel's, or an answer that is not HTTP.
pub fn fetch(from: IpAddr, path: &str) -> io::Result<(String, String)> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(from, PORT), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET /{path} HTTP/1.0\r\nHost: {from}\r\n\r\n")?;
    let mut text = String::new();
    stream.take(64 << 10).read_to_string(&mut text)?;
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "the answer is not HTTP");
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(bad)?;
    Ok((head.lines().next().ok_or_else(bad)?.to_owned(), body.to_owned()))
}
