//! A line between a store and its server that can be cut, or go silent, at will.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What the line does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Line {
    Up,
    /// Connections break, new ones are closed at once.
    Cut,
    /// Connections stay, nothing gets through.
    Silent,
}

pub struct Proxy {
    pub address: SocketAddr,
    line: Arc<watch::Sender<Line>>,
}

impl Proxy {
    /// Listens on a free port and forwards to `target`.
    pub async fn to(target: SocketAddr) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let line = Arc::new(watch::Sender::new(Line::Up));
        let state = line.clone();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(forward(near, target, state.subscribe()));
            }
        });
        Proxy { address, line }
    }

    pub fn set(&self, line: Line) {
        self.line.send_replace(line);
    }
}

async fn forward(mut near: TcpStream, target: SocketAddr, mut line: watch::Receiver<Line>) {
    let Ok(mut far) = TcpStream::connect(target).await else { return };
    loop {
        let now = *line.borrow_and_update();
        match now {
            Line::Up => {
                tokio::select! {
                    _ = copy_bidirectional(&mut near, &mut far) => return,
                    changed = line.changed() => if changed.is_err() { return },
                }
            }
            Line::Cut => return,
            Line::Silent => {
                if line.changed().await.is_err() {
                    return;
                }
            }
        }
    }
}
