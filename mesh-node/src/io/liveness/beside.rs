//! Probes beside the connection: packets of their own (`tunnel::lane::probe`) on the same socket, once both sides have them. The
//! probing thread sends them by itself, past all that a connection has to send, and whoever reads the socket takes them out.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use mesh_proto::liveness::Probe;
use quinn::AsyncUdpSocket;
use quinn::udp::{RecvMeta, Transmit};

use super::{Heard, Prober, STRAY};
use crate::control::event::ConnId;
use crate::tunnel::lane::LaneId;
use crate::tunnel::lane::open::Opener;
use crate::tunnel::lane::probe;
use crate::tunnel::lane::seal::Sealer;

/// The sending end, which the probing thread has.
pub struct Sending {
    socket: Arc<dyn AsyncUdpSocket>,
    to: SocketAddr,
    from: Option<IpAddr>,
    sealer: Sealer,
}

impl fmt::Debug for Sending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sending").field("to", &self.to).finish_non_exhaustive()
    }
}

impl Sending {
    /// To a connection's other end, by its way: neither address changes while it lives.
    pub fn new(socket: Arc<dyn AsyncUdpSocket>, connection: &quinn::Connection, sealer: Sealer) -> Self {
        Self { socket, to: connection.remote_address(), from: connection.local_ip(), sealer }
    }

    /// Sends now; `false`: the socket takes nothing, or the lane is spent.
    pub fn send(&mut self, probe: &Probe) -> bool {
        let Ok(packet) = probe::seal(&mut self.sealer, probe) else { return false };
        let transmit = Transmit {
            destination: self.to,
            ecn: None,
            contents: &packet,
            segment_size: None,
            src_ip: self.from,
        };
        self.socket.try_send(&transmit).is_ok()
    }
}

/// The receiving ends, by ID.
#[derive(Debug, Default)]
pub struct Receivers(ArcSwap<BTreeMap<LaneId, Arc<End>>>);

#[derive(Debug)]
struct End {
    conn: ConnId,
    heard: Arc<Heard>,
    prober: Prober,
    opener: Mutex<Opener>,
}

/// A lane of probes is received while this is there.
#[derive(Debug)]
pub struct Receiving {
    of: Arc<Receivers>,
    id: LaneId,
}

impl Receivers {
    /// Receives a connection's probes with this ID from now on; `None` if another has it, which is too unlikely to be
    /// anything but a fault.
    pub fn receive(
        self: &Arc<Self>,
        id: LaneId,
        opener: Opener,
        conn: ConnId,
        heard: Arc<Heard>,
        prober: Prober,
    ) -> Option<Receiving> {
        let end = Arc::new(End { conn, heard, prober, opener: Mutex::new(opener) });
        let before = self.0.rcu(|ends| {
            let mut ends = BTreeMap::clone(ends);
            ends.entry(id).or_insert_with(|| end.clone());
            ends
        });
        (!before.contains_key(&id)).then(|| Receiving { of: self.clone(), id })
    }

    /// Takes the probes out of a message, which may be a train that GRO has joined: one is shorter than whatever it may
    /// be joined to, and so at the end, or all are of its size.
    pub fn take_out(&self, message: &mut [u8], meta: &mut RecvMeta) {
        if meta.stride == probe::LEN {
            let mut kept = 0;
            for at in (0..meta.len).step_by(probe::LEN) {
                let end = meta.len.min(at + probe::LEN);
                if !self.took(&mut message[at..end]) {
                    message.copy_within(at..end, kept);
                    kept += end - at;
                }
            }
            meta.len = kept;
        } else if meta.len.checked_rem(meta.stride) == Some(probe::LEN)
            && self.took(&mut message[meta.len - probe::LEN..meta.len])
        {
            meta.len -= probe::LEN;
        }
    }

    /// Takes a datagram that claims to be of a lane of ours, whatever it is.
    fn took(&self, datagram: &mut [u8]) -> bool {
        let ends = self.0.load();
        let Some(end) = LaneId::claimed(datagram).and_then(|id| ends.get(&id)) else { return false };
        // the socket has one reader, who alone takes probes out: nobody waits here
        let mut opener = end.opener.lock().unwrap_or_else(PoisonError::into_inner);
        let genuine = probe::open(&mut opener, datagram).is_ok_and(|frame| {
            end.heard.now();
            end.heard.beside.store(true, Relaxed);
            end.prober.took(end.conn, &end.heard, frame)
        });
        if !genuine {
            STRAY.fetch_add(1, Relaxed);
        }
        true
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        self.of.0.rcu(|ends| {
            let mut ends = BTreeMap::clone(ends);
            ends.remove(&self.id);
            ends
        });
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::io::quic::hearing::Hearing;
    use crate::tunnel::lane::keys::Side;

    /// What is left of a message of datagrams, all of the size of the first but the last.
    fn left(receivers: &Receivers, datagrams: &[&[u8]]) -> Vec<u8> {
        let mut message = datagrams.concat();
        let mut meta = RecvMeta { len: message.len(), stride: datagrams[0].len(), ..RecvMeta::default() };
        receivers.take_out(&mut message, &mut meta);
        message.truncate(meta.len);
        message
    }

    #[tokio::test]
    async fn probes_are_taken_out_of_trains_and_all_else_is_left() {
        let (events, _events) = mpsc::channel(1);
        let prober = Prober::start(events, Arc::new(Hearing::new(None, None)), || {}).unwrap();
        let (mut sent, ours) = (probe::lane(&[7; 32], Side::Client), probe::lane(&[7; 32], Side::Server));
        let (id, heard) = (ours.id, Arc::<Heard>::default());
        let receivers = Arc::<Receivers>::default();
        let receiving = receivers.receive(id, ours.opener, ConnId(1), heard.clone(), prober.clone()).unwrap();
        let mut probe = || probe::seal(&mut sent.sealer, &probe::EXAMPLE).unwrap();
        let quic = [0x40; 1200];
        // of a probe's size, and none
        let small = [0x40; probe::LEN];
        let mut stray = small;
        stray[1] = 0xff;

        assert!(left(&receivers, &[&probe()]).is_empty());
        assert_eq!(left(&receivers, &[&quic, &quic, &probe()]), [quic, quic].concat());
        assert_eq!(
            left(&receivers, &[&probe(), &small, &probe(), &stray[..40]]),
            [&small[..], &stray[..40]].concat()
        );
        for other in [&[&quic[..], &small][..], &[&quic], &[&small, &stray], &[&quic, &stray]] {
            assert_eq!(left(&receivers, other), other.concat());
        }

        let before = STRAY.load(Relaxed);
        let mut forged = probe();
        forged[probe::LEN - 1] ^= 1;
        assert_eq!(left(&receivers, &[&quic, &forged]), quic, "a lane of ours");
        let once = probe();
        assert!(left(&receivers, &[&once, &once]).is_empty());
        assert!(STRAY.load(Relaxed) >= before + 2, "forged, and a duplicate");
        drop(receiving);
        let late = probe();
        assert_eq!(left(&receivers, &[&late]), late, "the lane has ended");
    }
}
