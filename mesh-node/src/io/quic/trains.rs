//! quinn's socket with a bound on trains. quinn hands over up to ten datagrams for one call of `sendmsg`; of jumbo size they
//! are more than a UDP packet may be before the kernel cuts it, which then refuses the call, and all ten are lost.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

use super::hearing::Hearing;
use crate::io::liveness::beside::Receivers;

/// Payload of the largest IPv4 packet: 65,535 less its headers. IPv6 would take 20 more.
const LARGEST_TRAIN: usize = 65_507;

/// A socket that sends a train too long for the kernel as several, and notes how it is read.
#[derive(Debug)]
pub struct Trains {
    /// The socket.
    pub socket: Arc<dyn AsyncUdpSocket>,
    /// Of its reader.
    pub hearing: Arc<Hearing>,
    /// Take what is no QUIC packet.
    pub probes: Arc<Receivers>,
}

/// Nobody can be answered at port 0. quinn would try to, as with a version that it does not know, and take the kernel's refusal
/// (EINVAL) for a device that cannot segment: one datagram of a stranger would end trains to everybody. It skips empty ones.
fn ignore_unanswerable(meta: &mut RecvMeta) {
    if meta.addr.port() == 0 {
        meta.len = 0;
    }
}

/// Bytes of a train that are sent in one call; all of them where the train fits.
fn bound(segment: usize, len: usize) -> usize {
    if len <= LARGEST_TRAIN { len } else { (LARGEST_TRAIN / segment.max(1)).max(1) * segment }
}

impl AsyncUdpSocket for Trains {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.socket.clone().create_io_poller()
    }

    /// Where a later part finds no room, quinn sends the whole train again: the peer throws away what it has already, by
    /// packet number.
    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let Some(segment) = transmit.segment_size else { return self.socket.try_send(transmit) };
        for contents in transmit.contents.chunks(bound(segment, transmit.contents.len()).max(1)) {
            let segment_size = (contents.len() > segment).then_some(segment);
            self.socket.try_send(&Transmit { contents, segment_size, ..transmit.clone() })?;
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let answer = self.socket.poll_recv(cx, bufs, meta);
        let count = match &answer {
            Poll::Ready(result) => Some(*result.as_ref().unwrap_or(&0)),
            Poll::Pending => None,
        };
        self.hearing.served(count);
        if let Some(count) = count {
            for (buffer, meta) in bufs.iter_mut().zip(meta).take(count) {
                self.probes.take_out(buffer, meta);
                ignore_unanswerable(meta);
            }
        }
        answer
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_datagram_that_nobody_can_answer_is_not_there() {
        for (from, len) in [("192.0.2.1:0", 0), ("192.0.2.1:1", 1200), ("[2001:db8::1]:0", 0)] {
            let addr = from.parse().unwrap();
            let mut meta = RecvMeta { addr, len: 1200, stride: 1200, ecn: None, dst_ip: None };
            ignore_unanswerable(&mut meta);
            assert_eq!(meta.len, len, "{from}");
        }
    }

    proptest! {
        #[test]
        fn a_train_is_cut_between_datagrams_and_no_part_is_too_long(
            segment in 1200usize..9_200,
            count in 1usize..=10,
            short in 1usize..=1200,
        ) {
            let len = segment * (count - 1) + short;
            let part = bound(segment, len);
            prop_assert!(part <= LARGEST_TRAIN);
            prop_assert!(part == len || part.is_multiple_of(segment) && part + segment > LARGEST_TRAIN);
        }
    }
}
