//! Clients of a socket of ours: so many at a time, and who comes last is served. A connection takes a file descriptor
//! and some memory, and whoever reaches the port may open as many as he likes.

use std::collections::VecDeque;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;

/// Connections at a time: a kubelet's two probes, a scraper or two, and people.
const MOST: usize = 8;
/// A connection lives no longer.
const LIFE: Duration = Duration::from_secs(30);
/// How long nobody is taken in after there was no room.
const BREATH: Duration = Duration::from_millis(100);
/// Most bytes of a request's head; hyper's least.
const HEAD: usize = 8 << 10;

/// The connections of one listener. Dropping it does not end them.
#[derive(Default)]
pub struct Guests {
    tasks: VecDeque<JoinHandle<()>>,
}

impl Guests {
    /// Serves one more, on the thread's local tasks. The one that came first has to go where there is no room: who is
    /// slow or silent must not keep others out.
    pub fn serve<S, A, F>(&mut self, stream: S, answer: A)
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
        A: Fn(Request<Incoming>) -> F + 'static,
        F: Future<
                Output = Result<Response<http_body_util::Full<hyper::body::Bytes>>, std::convert::Infallible>,
            > + 'static,
    {
        self.tasks.retain(|task| !task.is_finished());
        if self.tasks.len() >= MOST {
            self.dismiss();
        }
        self.tasks.push_back(tokio::task::spawn_local(async move {
            let service = hyper::service::service_fn(answer);
            let connection = hyper::server::conn::http1::Builder::new()
                .max_buf_size(HEAD)
                .serve_connection(TokioIo::new(stream), service);
            // A client that goes away or is silent costs nobody anything.
            let _ = tokio::time::timeout(LIFE, connection).await;
        }));
    }

    /// After a client could not be taken in, for want of file descriptors or memory: leaves the machine a moment, and
    /// the one that came first has to go.
    pub async fn make_room(&mut self) {
        self.dismiss();
        tokio::time::sleep(BREATH).await;
    }

    fn dismiss(&mut self) {
        if let Some(first) = self.tasks.pop_front() {
            first.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    use http_body_util::Full;
    use hyper::body::Bytes;

    use super::*;

    #[test]
    fn who_comes_last_is_served_and_the_first_has_to_go() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let mut guests = Guests::default();
            let mut clients = Vec::new();
            for _ in 0..3 * MOST {
                let (ours, theirs) = UnixStream::pair().unwrap();
                ours.set_nonblocking(true).unwrap();
                clients.push(theirs);
                let ours = tokio::net::UnixStream::from_std(ours).unwrap();
                guests.serve(ours, |_| async { Ok(Response::new(Full::new(Bytes::from("yes")))) });
            }
            assert_eq!(guests.tasks.len(), MOST);
            let asked = tokio::task::spawn_blocking(move || {
                let mut text = String::new();
                let mut last = clients.pop().unwrap();
                last.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
                last.read_to_string(&mut text).unwrap();
                // Closed without a word.
                let mut nothing = String::new();
                clients[0].read_to_string(&mut nothing).unwrap();
                (text.ends_with("yes"), nothing)
            });
            assert_eq!(asked.await.unwrap(), (true, String::new()));
        });
    }
}
