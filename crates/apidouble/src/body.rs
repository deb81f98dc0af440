//! Bodies of answers: whole ones, and such as come in pieces, slowly, or not to their end.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body as HttpBody, Bytes, Frame, SizeHint};
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::fault::Effect;

/// The error that breaks a connection.
#[derive(Clone, Copy, Debug)]
pub struct Cut;

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("cut on command")
    }
}

impl std::error::Error for Cut {}

/// Where the pieces of a streamed body go.
pub type Pieces = mpsc::Sender<Result<Bytes, Cut>>;

/// The body of an answer.
#[derive(Debug)]
pub enum Body {
    /// All of it is there.
    Whole(VecDeque<Bytes>),
    /// It comes over time.
    Stream(mpsc::Receiver<Result<Bytes, Cut>>),
}

impl Body {
    /// A short one.
    pub fn of(bytes: impl Into<Bytes>) -> Self {
        Self::Whole([bytes.into()].into())
    }

    /// One that comes over time.
    pub fn stream() -> (Pieces, Self) {
        let (pieces, body) = mpsc::channel(64);
        (pieces, Self::Stream(body))
    }

    /// The same body under a fault that concerns bytes; other faults change nothing here.
    pub fn under(self, effect: Option<&Effect>) -> Self {
        match effect {
            Some(effect @ (Effect::Cut(_) | Effect::Stall(_) | Effect::Drip(..))) => {
                let (pieces, shaped) = Self::stream();
                tokio::spawn(shape(self, pieces, effect.clone()));
                shaped
            }
            _ => self,
        }
    }

    async fn next(&mut self) -> Option<Result<Bytes, Cut>> {
        match self {
            Self::Whole(pieces) => pieces.pop_front().map(Ok),
            Self::Stream(pieces) => pieces.recv().await,
        }
    }
}

/// Breaks the connection, after what was sent before had time to leave: an error overtakes bytes.
pub async fn break_off(to: &Pieces) {
    sleep(Duration::from_millis(5)).await;
    let _closed_already = to.send(Err(Cut)).await;
}

async fn shape(mut from: Body, to: Pieces, effect: Effect) {
    let mut sent = 0;
    while let Some(piece) = from.next().await {
        let Ok(mut bytes) = piece else {
            return break_off(&to).await;
        };
        match effect {
            Effect::Cut(limit) | Effect::Stall(limit) => {
                let ends = sent + bytes.len() >= limit;
                bytes.truncate(limit - sent);
                sent += bytes.len();
                if !bytes.is_empty() && to.send(Ok(bytes)).await.is_err() {
                    return;
                }
                if ends {
                    if matches!(effect, Effect::Stall(_)) {
                        to.closed().await;
                    }
                    return break_off(&to).await;
                }
            }
            Effect::Drip(size, pause) => {
                while !bytes.is_empty() {
                    let drop = bytes.split_to(size.clamp(1, bytes.len()));
                    if to.send(Ok(drop)).await.is_err() {
                        return;
                    }
                    sleep(pause).await;
                }
            }
            _ => {
                if to.send(Ok(bytes)).await.is_err() {
                    return;
                }
            }
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match &mut *self {
            Self::Whole(pieces) => Poll::Ready(pieces.pop_front().map(|piece| Ok(Frame::data(piece)))),
            Self::Stream(pieces) => {
                pieces.poll_recv(context).map(|piece| piece.map(|piece| piece.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(pieces) if pieces.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(pieces) => SizeHint::with_exact(pieces.iter().map(|piece| piece.len() as u64).sum()),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}
