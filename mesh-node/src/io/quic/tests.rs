//! Two real endpoints in one process: who is refused, and what both sides say of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_proto::codec::Header;
use mesh_proto::hello::{Hello, Message};
use mesh_proto::identity::{Ca, Grants, IssueRequest, NodeKey, PublicKeySource, TrustRoots};
use mesh_proto::limits::{ALPN, MAX_MESSAGE, PROTOCOL_VERSION};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::sync::{mpsc, oneshot};

use super::connection::{Context, Dial, Door, Event, dial};
use super::exporter::Secrets;
use super::offloads::SocketOffloads;
use super::tls::Credentials;
use super::{datagram, endpoint};
use crate::control::event::{Input, Reason, Target};

mod keys;
mod probes;
pub(crate) mod shared;

const DAY: i64 = 86_400;

fn unix() -> i64 {
    (crate::io::now().unix_ms / 1000) as i64
}

fn ca(mesh: &str) -> Ca {
    Ca::init(&mesh.parse().unwrap(), unix() - 30 * DAY, 3650).unwrap()
}

struct Spec<'a> {
    name: &'a str,
    mesh: &'a str,
    signed_by: &'a Ca,
    believes: &'a Ca,
    /// Seconds from now.
    not_before: i64,
    not_after: i64,
}

impl<'a> Spec<'a> {
    fn good(name: &'a str, ca: &'a Ca) -> Self {
        Self { name, mesh: "lab", signed_by: ca, believes: ca, not_before: -10 * DAY, not_after: DAY }
    }

    fn credentials(&self) -> Credentials {
        let key = NodeKey::generate().unwrap();
        let request = IssueRequest {
            node: self.name.parse().unwrap(),
            grants: Grants::default(),
            public_key: PublicKeySource::Key(&key),
            not_before: unix() + self.not_before,
            not_after: unix() + self.not_after,
        };
        let pem = self.signed_by.issue(&request).unwrap();
        Credentials {
            chain: vec![CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()],
            key: key.private_key_der(),
            roots: Arc::new(TrustRoots::from_pem(self.believes.cert_pem().as_bytes()).unwrap()),
        }
    }

    fn hello(&self) -> Hello {
        Hello {
            version: PROTOCOL_VERSION,
            mesh: self.mesh.parse().unwrap(),
            node: self.name.parse().unwrap(),
            generation: 1,
            networks: vec![],
        }
    }

    fn start(&self) -> Node {
        self.start_with(self.credentials())
    }

    fn start_with(&self, credentials: Credentials) -> Node {
        let listen: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let transport = datagram::transport_config(Duration::from_secs(1));
        let (quic, socket) = endpoint::bind_for_test(listen, &credentials, transport).unwrap();
        self.start_on(credentials, quic, socket)
    }

    fn start_on(&self, credentials: Credentials, quic: quinn::Endpoint, socket: SocketOffloads) -> Node {
        let (events_tx, events) = mpsc::channel(64);
        let certificate = credentials.leaf().unwrap();
        let context = Context {
            hello: self.hello(),
            certificate,
            path_check: Duration::from_secs(5),
            events: events_tx,
        };
        let door = Door::default();
        let acceptor = tokio::spawn({
            let (quic, context) = (quic.clone(), context.clone());
            async move {
                while let Some(incoming) = quic.accept().await {
                    door.admit(incoming, &context);
                }
            }
        });
        Node { quic, socket, credentials, context, events, _acceptor: acceptor }
    }
}

/// The same key and certificate again: after a restart, or in a clone.
fn copy(credentials: &Credentials) -> Credentials {
    let Credentials { chain, key, roots } = credentials;
    Credentials { chain: chain.clone(), key: key.clone_key(), roots: roots.clone() }
}

struct Node {
    quic: quinn::Endpoint,
    socket: SocketOffloads,
    credentials: Credentials,
    context: Context,
    events: mpsc::Receiver<Event>,
    _acceptor: tokio::task::JoinHandle<()>,
}

impl Node {
    fn address(&self) -> SocketAddr {
        self.quic.local_addr().unwrap()
    }

    fn dial(&self, to: SocketAddr, expect: Option<&str>) {
        // the sender is dropped: nobody cancels
        let (_, cancelled) = oneshot::channel();
        let dialed = Dial {
            target: Target::Seed(to.to_string()),
            endpoint: to.to_string(),
            expect: expect.map(|e| e.parse().unwrap()),
            cancelled,
        };
        tokio::spawn(dial(self.quic.clone(), self.context.clone(), dialed));
    }

    async fn event(&mut self) -> Event {
        tokio::time::timeout(Duration::from_secs(10), self.events.recv()).await.unwrap().unwrap()
    }

    /// The next tunnel that is up.
    async fn up(&mut self) -> (quinn::Connection, Secrets) {
        loop {
            if let Event::Up { connection, secrets, .. } = self.event().await {
                return (connection, secrets.unwrap());
            }
        }
    }

    /// The next event that is a refusal.
    async fn refusal(&mut self) -> Reason {
        match self.event().await {
            Event::Input(Input::DialFailed { reason, .. } | Input::AcceptFailed { reason, .. }) => reason,
            other => panic!("no refusal: {other:?}"),
        }
    }
}

/// What dialer and acceptor say.
async fn refused(dialer: Spec<'_>, acceptor: Spec<'_>, expect: Option<&str>) -> (Reason, Reason) {
    let (mut a, mut b) = (dialer.start(), acceptor.start());
    a.dial(b.address(), expect);
    (a.refusal().await, b.refusal().await)
}

fn labels((a, b): &(Reason, Reason)) -> (&str, &str) {
    (a.label, b.label)
}

#[tokio::test]
async fn good_certificates_make_a_tunnel_on_both_sides() {
    let ca = ca("lab");
    let (mut a, mut b) = (Spec::good("ph1", &ca).start(), Spec::good("ph2", &ca).start());
    a.dial(b.address(), Some("ph2"));
    assert!(matches!(a.event().await, Event::Up { .. }));
    assert!(matches!(b.event().await, Event::Up { .. }));
}

#[tokio::test]
async fn an_expired_certificate_is_named_on_both_sides_whoever_has_it() {
    let ca = ca("lab");
    let expired = |name| Spec { not_after: -DAY, ..Spec::good(name, &ca) };
    let said = refused(expired("ph1"), Spec::good("ph2", &ca), None).await;
    assert_eq!(labels(&said), ("certificate_expired", "certificate_expired"), "{said:?}");
    let said = refused(Spec::good("ph1", &ca), expired("ph2"), None).await;
    assert_eq!(labels(&said), ("certificate_expired", "certificate_expired"), "{said:?}");
    assert!(said.0.text.contains("expired"), "{said:?}");
}

#[tokio::test]
async fn a_certificate_that_is_not_valid_yet_is_named_on_both_sides() {
    let ca = ca("lab");
    let early = Spec { not_before: DAY, not_after: 2 * DAY, ..Spec::good("ph1", &ca) };
    let said = refused(early, Spec::good("ph2", &ca), None).await;
    assert_eq!(labels(&said), ("certificate_expired", "certificate_expired"), "{said:?}");
    assert!(said.1.text.contains("not valid yet"), "{said:?}");
}

#[tokio::test]
async fn a_certificate_of_another_ca_is_named_on_both_sides_whoever_has_it() {
    let (ca, other) = (ca("lab"), ca("lab"));
    let foreign = |name| Spec { signed_by: &other, ..Spec::good(name, &ca) };
    let said = refused(foreign("ph1"), Spec::good("ph2", &ca), None).await;
    assert_eq!(labels(&said), ("unknown_ca", "unknown_ca"), "{said:?}");
    let said = refused(Spec::good("ph1", &ca), foreign("ph2"), None).await;
    assert_eq!(labels(&said), ("unknown_ca", "unknown_ca"), "{said:?}");
}

#[tokio::test]
async fn a_name_that_was_not_expected_is_named_on_both_sides() {
    let ca = ca("lab");
    let said = refused(Spec::good("ph1", &ca), Spec::good("ph2", &ca), Some("ph3")).await;
    assert_eq!(labels(&said), ("name_mismatch", "name_mismatch"), "{said:?}");
    assert!(said.0.text.contains("expected node ph3, found ph2"), "{said:?}");
    assert!(said.1.text.contains("expected node ph3, found ph2"), "{said:?}");
}

#[tokio::test]
async fn two_nodes_of_one_name_refuse_each_other() {
    let ca = ca("lab");
    let said = refused(Spec::good("ph1", &ca), Spec::good("ph1", &ca), None).await;
    assert_eq!(labels(&said), ("name_mismatch", "name_mismatch"), "{said:?}");
    assert!(said.0.text.contains("two nodes use it"), "{said:?}");
}

#[tokio::test]
async fn another_mesh_under_the_same_ca_is_named_on_both_sides() {
    let (ca, other) = (ca("lab"), ca("office"));
    // each believes the other's CA: the mesh is what differs
    let office = Spec { mesh: "office", signed_by: &other, ..Spec::good("ph1", &ca) };
    let lab = Spec { believes: &other, ..Spec::good("ph2", &ca) };
    let said = refused(office, lab, None).await;
    assert_eq!(labels(&said), ("other_mesh", "other_mesh"), "{said:?}");
}

/// A client that does what it likes.
async fn raw(to: &Node, with: Option<&Node>) -> quinn::Connection {
    let mut tls = match with {
        Some(node) => super::tls::client_config(&node.credentials).unwrap(),
        None => {
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let anybody = super::tls::verifier_for_test(&to.credentials);
            let mut tls = rustls::ClientConfig::builder_with_provider(provider)
                .with_protocol_versions(&[&rustls::version::TLS13])
                .unwrap()
                .dangerous()
                .with_custom_certificate_verifier(anybody)
                .with_no_client_auth();
            tls.alpn_protocols = vec![ALPN.to_vec()];
            let quic = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
            quinn::ClientConfig::new(Arc::new(quic))
        }
    };
    tls.transport_config(Arc::new(datagram::transport_config(Duration::from_secs(1))));
    let client = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    client.connect_with(tls, to.address(), super::tls::SERVER_NAME).unwrap().await.unwrap()
}

#[tokio::test]
async fn a_client_without_a_certificate_is_named_on_both_sides() {
    let ca = ca("lab");
    let mut b = Spec::good("ph2", &ca).start();
    let connection = raw(&b, None).await;
    let theirs = super::connection::reason_of(&connection.closed().await);
    assert_eq!((theirs.label, b.refusal().await.label), ("certificate_missing", "certificate_missing"));
}

/// Bytes sent instead of a hello, and the reason on both sides.
async fn instead_of_hello(bytes: Vec<u8>) -> (Reason, Reason) {
    let ca = ca("lab");
    let (a, mut b) = (Spec::good("ph1", &ca).start(), Spec::good("ph2", &ca).start());
    let connection = raw(&b, Some(&a)).await;
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    send.write_all(&bytes).await.unwrap();
    let theirs = super::connection::reason_of(&connection.closed().await);
    (theirs, b.refusal().await)
}

#[tokio::test]
async fn a_first_message_that_is_no_good_hello_is_refused_with_the_reason() {
    let ca = ca("lab");
    let hello = Spec::good("ph1", &ca).hello();
    let of = |hello: Hello| Message::Hello(hello).encode();
    let mut header = of(hello.clone());
    header[2] = 9;
    let cases = [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "protocol", "bad magic"),
        (header, "version", "message version 9"),
        (of(Hello { version: 9, ..hello.clone() }), "version", "upgrade the older node"),
        (of(Hello { node: "ph7".parse().unwrap(), ..hello }), "name_mismatch", "hello says ph7"),
        (Header { kind: 1, len: MAX_MESSAGE + 1 }.encode().to_vec(), "protocol", "is longer than"),
        (Message::Records(vec![]).encode(), "protocol", "no hello"),
    ];
    for (bytes, label, text) in cases {
        let said = instead_of_hello(bytes).await;
        assert_eq!(labels(&said), (label, label), "{said:?}");
        assert!(said.0.text.contains(text) && said.1.text.contains(text), "{said:?}");
    }
}

#[tokio::test]
async fn a_malformed_message_of_a_peer_is_told_to_control_before_the_tunnel_ends() {
    let ca = ca("lab");
    let (a, mut b) = (Spec::good("ph1", &ca).start(), Spec::good("ph2", &ca).start());
    let connection = raw(&b, Some(&a)).await;
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    send.write_all(&Message::Hello(a.context.hello.clone()).encode()).await.unwrap();
    assert!(matches!(b.event().await, Event::Up { .. }));
    send.write_all(&Header { kind: 2, len: MAX_MESSAGE + 1 }.encode()).await.unwrap();
    let breach = loop {
        match b.event().await {
            Event::Input(Input::TunnelMtu { .. }) => {}
            Event::Input(Input::Breach { text, .. }) => break text,
            other => panic!("{other:?}"),
        }
    };
    assert!(breach.contains("is longer than"), "{breach}");
    let theirs = super::connection::reason_of(&connection.closed().await);
    assert_eq!(theirs.label, "protocol");
    assert!(theirs.text.contains("is longer than"), "{theirs:?}");
}

#[tokio::test]
async fn words_of_a_stranger_cannot_steer_a_terminal() {
    let ca = ca("lab");
    let (a, mut b) = (Spec::good("ph1", &ca).start(), Spec::good("ph2", &ca).start());
    let connection = raw(&b, Some(&a)).await;
    connection.close(5u32.into(), b"\x1b[2Jgone\r\n");
    let reason = b.refusal().await;
    assert_eq!(reason.label, "protocol");
    assert!(!reason.text.chars().any(char::is_control), "{reason:?}");
}

#[tokio::test]
async fn a_flood_of_handshakes_keeps_to_its_places_and_a_peer_still_gets_in() {
    let ca = ca("lab");
    let (mut a, mut b) = (Spec::good("ph1", &ca).start(), Spec::good("ph2", &ca).start());
    // clients that connect and say nothing hold their places until the hello is overdue
    let mut silent = Vec::new();
    for _ in 0..80 {
        silent.push(raw(&b, Some(&a)).await);
    }
    a.dial(b.address(), Some("ph2"));
    assert!(matches!(a.event().await, Event::Up { .. }), "the address proves itself and is let in");
    assert!(matches!(b.event().await, Event::Up { .. }));
}
