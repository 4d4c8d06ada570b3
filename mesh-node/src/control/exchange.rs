//! Control messages: records are verified, kept if they are news, and passed on; ours is signed anew when it changes.

use mesh_proto::hello::{CloseCode, Message};
use mesh_proto::limits::{MAX_MESSAGE, MAX_NETWORKS, MAX_RECORDS, MAX_RECORDS_PER_MESSAGE};
use mesh_proto::record::{NetworkRecord, Record, RecordError, SignedRecord, VerifiedRecord};
use rustls_pki_types::UnixTime;
use tracing::debug;

use super::event::{ConnId, LocalNode, Now, Output};
use super::members::RefusedRecord;
use super::offers::Offers;
use super::{Control, Trust, rib};
use crate::notice::Notice;

/// At most what a length takes on the wire.
const LENGTH: usize = 9;

impl Control {
    pub(super) fn message(&mut self, conn: ConnId, message: Message, now: Now) {
        if !self.members.conns.contains_key(&conn) {
            return;
        }
        match message {
            Message::Hello(_) => self.breach(conn, "a second hello".into(), now),
            Message::Records(records) => self.records(conn, records, now),
            Message::Networks(networks) if networks.len() > MAX_NETWORKS => {
                self.breach(conn, format!("{} networks are more than {MAX_NETWORKS}", networks.len()), now);
            }
            Message::Networks(networks) => {
                if let Some(tunnel) = self.tunnel_mut(conn) {
                    tunnel.hello.networks = networks;
                }
            }
            Message::TraceRequest(request) => self.trace_requested(conn, request, now),
            // the control loop's: how packets travel decides nothing here
            Message::LaneOffer(_) | Message::LaneReady(_) | Message::LaneHeard(_) | Message::ProbesReady => {}
            Message::TraceReply(reply) => self.trace_replied(conn, reply, now),
        }
    }

    /// Takes what is new, and passes it on to everybody but the one it came from.
    pub(super) fn records(&mut self, conn: ConnId, records: Vec<SignedRecord>, now: Now) {
        if records.len() > MAX_RECORDS_PER_MESSAGE {
            return self.breach(conn, format!("{} records in a message", records.len()), now);
        }
        let sender = self.members.conns.get(&conn).cloned();
        let mut news = Vec::new();
        for signed in records {
            let known =
                self.members.peers.values().filter_map(|p| p.record.as_ref()).any(|r| r.signed == signed);
            if known || signed == self.own.signed {
                continue;
            }
            let verified = match signed.verify(&self.trust.roots, unix_time(now.unix_ms)) {
                Ok(verified) => verified,
                Err(error) => {
                    self.counts.records_refused += 1;
                    self.tell(Notice::RecordRefused { from: sender.clone(), error: error.to_string() });
                    let of_sender = match &error {
                        RecordError::Prefix { node, record, .. }
                        | RecordError::Egress { node, record, .. } => {
                            let claims = record.claims().map(|(network, prefix)| (network.clone(), *prefix));
                            let refused =
                                RefusedRecord { error: error.to_string(), claims: claims.collect() };
                            self.members.refused_record(node.clone(), refused);
                            Some(node) == sender.as_ref()
                        }
                        _ => false,
                    };
                    if of_sender {
                        *self.counts.handshake_failures.entry(CloseCode::Grant.reason()).or_default() += 1;
                        let text = error.to_string();
                        self.drop_tunnel(conn, CloseCode::Grant, text, now);
                        return;
                    }
                    continue;
                }
            };
            let node = verified.record.node.clone();
            if node == self.local.identity.node {
                // from our own past, or from a twin: be newer than it
                if verified.record.version >= self.own.record.version {
                    self.own_name_elsewhere = self.own_name_elsewhere.saturating_add(1);
                    if self.own_name_elsewhere > 1 {
                        self.tell(Notice::OwnNameElsewhere { from: sender.clone() });
                    }
                    // two of one name would answer each other without end
                    if self.answers.allow(now.mono).is_some() {
                        self.own.record.version = verified.record.version;
                        self.announce(false, now);
                    }
                }
                continue;
            }
            if self.members.peers.len() >= MAX_RECORDS && !self.members.peers.contains_key(&node) {
                self.counts.records_refused += 1;
                continue;
            }
            let removed = self.members.removed.contains(&node);
            let peer = self.members.peer(&node, now.mono, now.unix_ms);
            let twin = |old: &VerifiedRecord| {
                old.record.version == verified.record.version && old.signed.body != verified.signed.body
            };
            if peer.record.as_ref().is_some_and(twin) && !peer.doubled {
                peer.doubled = true;
                self.outputs.push_back(Output::Tell(Notice::NameDoubled { peer: node.clone() }));
            }
            if peer.record.as_ref().is_some_and(|old| !verified.replaces(old)) {
                continue;
            }
            debug!(peer = %node, version = verified.record.version, "new record");
            if verified.record.leaving {
                peer.left = true;
            } else {
                peer.left = false;
                let moved =
                    peer.record.as_ref().is_none_or(|old| old.record.endpoints != verified.record.endpoints);
                if moved && peer.tunnel.is_none() && !removed {
                    peer.dialer.hurry(now.mono);
                }
            }
            news.push(verified.signed.clone());
            peer.record = Some(verified);
            self.members.refused_records.remove(&node);
        }
        if news.is_empty() {
            return;
        }
        let others: Vec<ConnId> = self.members.conns.keys().copied().filter(|c| *c != conn).collect();
        for other in others {
            self.send_records(other, &news);
        }
        self.save();
    }

    /// Signs our record anew and tells everybody.
    pub(super) fn announce(&mut self, leaving: bool, now: Now) {
        match sign_own(&self.local, &self.offers, &self.trust, self.own.record.version, leaving, now) {
            Ok(own) => self.own = own,
            Err(error) => return self.tell(Notice::OwnRecordUnsigned { error: error.to_string() }),
        }
        let own = [self.own.signed.clone()];
        let all: Vec<ConnId> = self.members.conns.keys().copied().collect();
        for conn in all {
            self.send_records(conn, &own);
        }
        self.save();
    }

    pub(super) fn send_records(&mut self, conn: ConnId, records: &[SignedRecord]) {
        let mut chunk = Vec::new();
        let mut bytes = 0;
        for record in records {
            let size = size_on_wire(record);
            if chunk.len() == MAX_RECORDS_PER_MESSAGE || bytes + size > MAX_MESSAGE - LENGTH {
                let message = Message::Records(std::mem::take(&mut chunk));
                self.outputs.push_back(Output::Send { conn, message });
                bytes = 0;
            }
            chunk.push(record.clone());
            bytes += size;
        }
        if !chunk.is_empty() {
            self.outputs.push_back(Output::Send { conn, message: Message::Records(chunk) });
        }
    }
}

fn size_on_wire(record: &SignedRecord) -> usize {
    let parts = record.certificates.iter().chain([&record.body, &record.signature]);
    LENGTH + parts.map(|p| LENGTH + p.len()).sum::<usize>()
}

pub(super) fn unix_time(unix_ms: u64) -> UnixTime {
    UnixTime::since_unix_epoch(std::time::Duration::from_millis(unix_ms))
}

/// Our record, newer than `last`.
pub(super) fn sign_own(
    local: &LocalNode,
    offers: &Offers,
    trust: &Trust,
    last: u64,
    leaving: bool,
    now: Now,
) -> Result<VerifiedRecord, RecordError> {
    let networks = local.networks.iter().map(|n| NetworkRecord {
        name: n.name.clone(),
        prefixes: n.maps.iter().map(|(_, prefix)| *prefix).collect(),
        announced: n.announce.iter().map(|a| a.prefix).collect(),
        egress: rib::own_offer(local, &n.name, offers),
    });
    let record = Record {
        node: local.identity.node.clone(),
        version: now.unix_ms.max(last.saturating_add(1)),
        endpoints: local.endpoints.clone(),
        networks: networks.collect(),
        leaving,
    };
    SignedRecord::sign(&record, &trust.key, &trust.chain).verify(&trust.roots, unix_time(now.unix_ms))
}
