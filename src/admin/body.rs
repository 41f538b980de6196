//! Response bodies: sent in pieces at the pace of the client, and counted until they are sent.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body as HttpBody, Bytes, Frame, SizeHint};

use super::shared::Revocable;
use super::slots::Answer;

pub(super) type Body = UnsyncBoxBody<Bytes, Revoked>;

/// The response was dropped to bound memory, because newer ones are being read.
#[derive(Debug, thiserror::Error)]
#[error("read too slowly: newer responses have replaced it")]
pub(super) struct Revoked;

pub(super) fn full(bytes: impl Into<Bytes>) -> Body {
    infallible(Full::new(bytes.into()))
}

pub(super) fn infallible(body: impl HttpBody<Data = Bytes, Error = Infallible> + Send + 'static) -> Body {
    body.map_err(|never| match never {}).boxed_unsync()
}

/// The pieces of a shared response, one after the other.
pub(super) fn shared<T: Send + Sync + 'static>(
    answer: Arc<Revocable<T>>,
    length: usize,
    piece: impl Fn(&T, usize) -> Option<Bytes> + Send + Unpin + 'static,
) -> Body {
    let mut index = 0;
    let next = move || match answer.get() {
        None => Some(Err(Revoked)),
        Some(answer) => {
            let piece = piece(&answer, index);
            index += 1;
            piece.map(Ok)
        }
    };
    Pieces { next, left: length as u64 }.boxed_unsync()
}

struct Pieces<F> {
    next: F,
    left: u64,
}

impl<F: FnMut() -> Option<Result<Bytes, Revoked>> + Unpin> HttpBody for Pieces<F> {
    type Data = Bytes;
    type Error = Revoked;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Revoked>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        Poll::Ready((self.next)().map(|piece| {
            piece.map(|bytes| {
                self.left = self.left.saturating_sub(bytes.len() as u64);
                Frame::data(bytes)
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// Counts as a response under way until all of it is in the connection's buffer.
pub(super) fn counted(body: Body, answer: Answer) -> Body {
    Counted { body, _answer: answer }.boxed_unsync()
}

struct Counted {
    body: Body,
    _answer: Answer,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = Revoked;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Revoked>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
