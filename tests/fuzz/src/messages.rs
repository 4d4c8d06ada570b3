//! What a peer says: control messages, records with their certificates, probes.

use std::sync::OnceLock;

use mesh_proto::codec::{self, HEADER, Header};
use mesh_proto::frame::{Echo, FrameHeader, probe as probe_in, probe_frame};
use mesh_proto::hello::{Hello, LaneOffer, LaneReady, Message, NetworkHandle};
use mesh_proto::identity::{Ca, Grants, Identity, IssueRequest, NodeKey, PublicKeySource, TrustRoots};
use mesh_proto::limits::MAX_RECORD;
use mesh_proto::liveness::{Diagnostic, Probe, State};
use mesh_proto::record::{Condition, EgressOffer, NetworkRecord, Record, SignedRecord};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, UnixTime};

use super::{case, changed};

/// Any time at which the certificates are good.
const NOW: i64 = 1_800_000_000;

struct Mesh {
    roots: TrustRoots,
    key: NodeKey,
    certificate: CertificateDer<'static>,
}

fn mesh() -> &'static Mesh {
    static MESH: OnceLock<Mesh> = OnceLock::new();
    MESH.get_or_init(|| {
        let ca = Ca::init(&"lab".parse().expect("a name"), NOW - 1000, 100).expect("a CA");
        let key = NodeKey::generate().expect("a key");
        let mut grants = Grants::default();
        grants.allow(&"default".parse().expect("a name"), "10.77.1.0/24".parse().expect("a prefix"));
        let request = IssueRequest {
            node: "ph1".parse().expect("a name"),
            grants,
            public_key: PublicKeySource::Key(&key),
            not_before: NOW - 1000,
            not_after: NOW + 1000,
        };
        let pem = ca.issue(&request).expect("a certificate");
        Mesh {
            roots: TrustRoots::from_pem(ca.cert_pem().as_bytes()).expect("a root"),
            certificate: CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM"),
            key,
        }
    })
}

fn record(egress: bool) -> Record {
    let offer = EgressOffer {
        destinations: vec!["0.0.0.0/0".parse().expect("a prefix")],
        priority: 100,
        condition: Condition::Healthy,
    };
    Record {
        node: "ph1".parse().expect("a name"),
        version: 7,
        endpoints: vec!["192.0.2.1:4650".parse().expect("an address")],
        networks: vec![NetworkRecord {
            name: "default".parse().expect("a name"),
            prefixes: vec!["10.77.1.0/24".parse().expect("a prefix")],
            announced: vec![],
            egress: egress.then_some(offer),
        }],
        leaving: false,
    }
}

fn signed(body: &[u8]) -> SignedRecord {
    let Mesh { key, certificate, .. } = mesh();
    let signature = key.sign(b"mesh-record-v1\0", body);
    SignedRecord { certificates: vec![certificate.to_vec()], body: body.to_vec(), signature }
}

/// A message of each kind.
fn genuine(which: u8) -> Message {
    let networks = vec![NetworkHandle { handle: 1, name: "default".parse().expect("a name") }];
    match which % 6 {
        0 => Message::Hello(Hello {
            version: 1,
            mesh: "lab".parse().expect("a name"),
            node: "ph1".parse().expect("a name"),
            generation: 1,
            networks,
        }),
        1 => Message::Records(vec![signed(&codec::encode(&record(false)))]),
        2 => Message::Networks(networks),
        3 => Message::LaneOffer(LaneOffer { ciphers: vec![0x1301, 0x1302, 0x1303], workers: 2 }),
        4 => Message::LaneReady(LaneReady { worker: 1, lane: 3 }),
        _ => Message::ProbesReady,
    }
}

/// A message as it comes from a stream: what is read is written again as the same.
pub(super) fn message(data: &[u8]) {
    let (which, changes) = case(data);
    let genuine = genuine(which >> 1).encode();
    let bytes = if which & 1 == 0 { changed(&genuine, changes) } else { changes.to_vec() };
    let Some((header, body)) = bytes.split_first_chunk::<HEADER>() else { return };
    let kind = match Header::decode(header) {
        Ok(Header { kind, .. }) => kind,
        // the body is worth a try all the same
        Err(_) => header[3],
    };
    let Ok(Some(message)) = Message::decode(kind, body) else { return };
    let again = message.encode();
    assert_eq!(Message::decode(kind, &again[HEADER..]), Ok(Some(message)));
}

/// A record and the certificates it comes with: nothing that a certificate does not allow is taken, and nothing that was not signed.
pub(super) fn signed_record(data: &[u8]) {
    let (which, changes) = case(data);
    let Mesh { roots, certificate, .. } = mesh();
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(NOW as u64));
    let body = codec::encode(&record(which & 4 != 0));
    match which & 3 {
        // by the node itself: it may say what it likes
        0 => {
            let signed = signed(&changed(&body, changes));
            let size = signed.body.len() + signed.certificates[0].len();
            match signed.verify(roots, now) {
                Ok(verified) => {
                    assert!(size <= MAX_RECORD && verified.record.node == verified.identity.node);
                    for (network, prefix) in verified.record.claims() {
                        assert!(verified.identity.grants.allows(network, prefix), "{network} {prefix}");
                    }
                    assert!(verified.record.networks.iter().all(|network| network.egress.is_none()));
                }
                Err(error) => drop(error.to_string()),
            }
        }
        // changed on the way
        1 => {
            let genuine = signed(&body);
            let other = match which >> 3 & 3 {
                0 => codec::decode(&changed(&codec::encode(&genuine), changes)),
                1 => Ok(SignedRecord { body: changed(&body, changes), ..genuine.clone() }),
                2 => Ok(SignedRecord { signature: changed(&genuine.signature, changes), ..genuine.clone() }),
                _ => Ok(SignedRecord { body: body.clone(), ..signed(&changed(&body, changes)) }),
            };
            let Ok(other) = other else { return };
            let same = other == genuine;
            let taken = other.verify(roots, now).is_ok();
            assert!(!taken || same, "a record that was not signed");
        }
        2 => {
            let der = changed(certificate, changes);
            let _ = Identity::from_certificate(&der);
            let verified = roots.verify(&[CertificateDer::from(&der[..])], now);
            assert!(verified.is_err() || der == certificate.as_ref(), "a certificate that was not issued");
        }
        _ => {
            let _ = Identity::from_certificate(changes);
            let _ = codec::decode::<SignedRecord>(changes);
            let _ = TrustRoots::from_pem(changes);
        }
    }
}

/// A probe's frame.
pub(super) fn probe(data: &[u8]) {
    let (which, changes) = case(data);
    let genuine = Probe {
        state: State::ALL[usize::from(which >> 6)],
        diagnostic: Diagnostic::None,
        multiplier: 3,
        my_discriminator: 9,
        your_discriminator: 7,
        desired_min_tx_us: 50_000,
        required_min_rx_us: 50_000,
    };
    let frame = changed(&probe_frame(&genuine.encode()), changes);
    let kinds =
        [FrameHeader::decode(&frame).is_ok(), Echo::decode(&frame).is_some(), probe_in(&frame).is_some()];
    assert!(kinds.iter().filter(|is| **is).count() <= 1, "{kinds:?}");
    let Some(bytes) = probe_in(&frame) else { return };
    let Ok(probe) = Probe::decode(bytes) else { return };
    assert!(probe.my_discriminator != 0 && probe.multiplier != 0);
    // of diagnostics only ours are kept, and of the last word nothing
    assert_eq!(probe.encode()[1..20], bytes[1..20]);
    assert_eq!(Probe::decode(&probe.encode()), Ok(probe));
}
