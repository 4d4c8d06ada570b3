//! `mesh-ctl monitor`: what the node tells, as it tells it, until the reader has enough or the node goes away.

use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::path::Path;

use hyper::body::Bytes;
use tokio::io::Interest;
use tokio::net::unix::pipe::Sender;

use crate::client::{Failure, Stream};

/// Prints lines until Ctrl-C or a closed pipe, which are no failures; with `quiet` it only waits.
pub(crate) async fn monitor(socket: &Path, quiet: bool) -> Result<(), Failure> {
    let mut stream = Stream::open(socket, "/v1/events").await?;
    let mut lines = Lines::default();
    let closed = reader_has_gone();
    tokio::pin!(closed);
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    loop {
        let bytes = tokio::select! {
            bytes = stream.next() => bytes,
            _ = &mut interrupted => return Ok(()),
            () = &mut closed => return Ok(()),
        };
        let Some(bytes) = bytes else {
            let text = format!("the node at {} has gone: `systemctl status mesh-node`", socket.display());
            return Err(Failure::Unreachable(text));
        };
        let whole = lines.take(&bytes);
        let mut out = std::io::stdout().lock();
        if !quiet && out.write_all(&whole).and_then(|()| out.flush()).is_err() {
            return Ok(());
        }
    }
}

/// Ends when standard output is a pipe that nobody reads any more: `head` ends after its lines, and events may be rare.
async fn reader_has_gone() {
    let watched = std::io::stdout().as_fd().try_clone_to_owned();
    // it is only watched, not written to: the descriptor stays a blocking one, for whoever shares it
    match watched.and_then(Sender::from_owned_fd_unchecked) {
        Ok(pipe) => drop(pipe.ready(Interest::ERROR).await),
        // a file cannot be watched, and does not go away
        Err(_) => std::future::pending().await,
    }
}

/// Whole lines of what comes in pieces: a program that reads them never sees a part of one, even at the end.
#[derive(Default)]
struct Lines {
    begun: Vec<u8>,
}

impl Lines {
    fn take(&mut self, bytes: &Bytes) -> Vec<u8> {
        self.begun.extend_from_slice(bytes);
        let end = self.begun.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        let rest = self.begun.split_off(end);
        std::mem::replace(&mut self.begun, rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_given_when_it_is_whole() {
        let mut lines = Lines::default();
        assert_eq!(lines.take(&Bytes::from_static(b"{\"a\":1}\n{\"b\"")), b"{\"a\":1}\n");
        assert_eq!(lines.take(&Bytes::from_static(b":2")), b"");
        assert_eq!(lines.take(&Bytes::from_static(b"}\n{}\n")), b"{\"b\":2}\n{}\n");
    }
}
