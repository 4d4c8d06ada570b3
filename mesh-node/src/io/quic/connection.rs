//! One connection: the hello, then control messages both ways, until it is closed. A task each for reading and writing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mesh_proto::codec::{DecodeError, HEADER, Header};
use mesh_proto::hello::{CloseCode, Hello, Message};
use mesh_proto::identity::Identity;
use mesh_proto::limits::{HELLO_TIMEOUT, MAX_NETWORKS, PROTOCOL_VERSION};
use mesh_proto::{MeshId, NodeId};
use quinn::{ConnectionError, ReadExactError, RecvStream, SendStream, TransportErrorCode, VarInt};
use rustls_pki_types::CertificateDer;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::exporter::Secrets;
use super::path::Beside;
use crate::control::event::{ConnId, Input, Reason, Target};
use crate::io::liveness::pulse::Question;

/// Messages that wait for a slow peer before its tunnel is closed.
const WRITE_QUEUE: usize = 256;

/// What a connection tells the control loop.
#[derive(Debug)]
pub enum Event {
    /// Plain input for `Control`.
    Input(Input),
    /// A tunnel is up: `Input::TunnelUp` with the means to use it.
    Up {
        /// For `Control`.
        input: Input,
        /// Its number.
        conn: ConnId,
        /// The connection.
        connection: quinn::Connection,
        /// Control messages to the peer.
        writer: mpsc::Sender<Message>,
        /// What lanes grow from; `None` on a connection that has ended already.
        secrets: Option<Secrets>,
        /// For what carries packets beside it.
        beside: Arc<Beside>,
    },
    /// Does the loop turn?
    Pulse(Question),
    /// The kernel has the routes back to a tunnel's peer: its packets may be taken.
    Readable {
        /// The tunnel.
        conn: ConnId,
    },
    /// Half of what a lane may carry has been sent on it.
    LaneHalfUsed {
        /// The tunnel.
        conn: ConnId,
        /// Whose lane it is.
        worker: u8,
        /// The lane.
        lane: u32,
    },
    /// A worker of the peer has asked whether its packets arrive.
    LaneHeard {
        /// The tunnel.
        conn: ConnId,
        /// Which.
        worker: u8,
    },
    /// The configuration was read anew, and with it what dials show.
    Reload {
        /// For `Control`.
        input: Input,
        /// For dials from now on.
        client: quinn::ClientConfig,
        /// What they show.
        certificate: CertificateDer<'static>,
        /// Answered once it counts, with the number of the kernel state that goes with it.
        done: oneshot::Sender<u64>,
    },
}

/// What every connection needs to know.
#[derive(Debug, Clone)]
pub struct Context {
    /// Our hello.
    pub hello: Hello,
    /// Our certificate, as dials show it.
    pub certificate: CertificateDer<'static>,
    /// Between two checks of a path's MTU.
    pub path_check: Duration,
    /// Where events go.
    pub events: mpsc::Sender<Event>,
}

static NEXT_CONN: AtomicU64 = AtomicU64::new(1);

/// A dial to be made.
#[derive(Debug)]
pub struct Dial {
    /// For whom.
    pub target: Target,
    /// Where: `host:port`.
    pub endpoint: String,
    /// Who must answer.
    pub expect: Option<NodeId>,
    /// Ends the dial while it has not got through.
    pub cancelled: oneshot::Receiver<()>,
}

/// Dials, tries each address that the endpoint's name has, and serves the connection to its end.
pub async fn dial(quic: quinn::Endpoint, context: Context, dial: Dial) {
    let Dial { target, endpoint, expect, mut cancelled } = dial;
    let failed = |reason| {
        Event::Input(Input::DialFailed { target: target.clone(), endpoint: endpoint.clone(), reason })
    };
    let addresses: Vec<SocketAddr> = match tokio::net::lookup_host(&endpoint).await {
        Ok(found) => found.collect(),
        Err(error) => {
            let text = format!("cannot resolve {endpoint}: {error}");
            let _ = context.events.send(failed(Reason { label: "resolve", text })).await;
            return;
        }
    };
    let mut last = Reason { label: "resolve", text: format!("{endpoint} has no address") };
    let v4_only = quic.local_addr().is_ok_and(|a| a.is_ipv4());
    for address in addresses {
        if v4_only && address.is_ipv6() {
            last = Reason { label: "no_route", text: format!("{address}: `listen` is an IPv4 address") };
            continue;
        }
        let started = Instant::now();
        let connecting = match quic.connect(address, super::tls::SERVER_NAME) {
            Ok(connecting) => connecting,
            Err(error) => {
                last = Reason { label: "connect", text: format!("{address}: {error}") };
                continue;
            }
        };
        let connected = tokio::select! {
            connected = connecting => connected,
            Ok(()) = &mut cancelled => return,
        };
        match connected {
            Ok(connection) => {
                let dialed = Some((target.clone(), expect.clone()));
                match establish(&connection, &context, dialed, started).await {
                    Ok(up) => serve(up, connection, context).await,
                    Err(refusal) => {
                        close(&connection, &refusal);
                        let _ = context.events.send(failed(refusal.reason)).await;
                    }
                }
                return;
            }
            Err(error) => last = reason_of(&error),
        }
    }
    let _ = context.events.send(failed(last)).await;
}

/// Handshakes of others that may be on their way at once. Each costs a key exchange and a signature, asked for by anybody.
const MAX_HANDSHAKES: usize = 256;

/// From so many on an address has to prove that it receives what is sent to it (RFC 9000 section 8.1.2).
const RETRY_FROM: usize = 64;

/// Lets incoming connections in, a bounded number at once.
#[derive(Debug, Clone)]
pub struct Door {
    places: Arc<Semaphore>,
}

impl Default for Door {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(MAX_HANDSHAKES)) }
    }
}

impl Door {
    /// Starts a task for a connection, or sends it away.
    pub fn admit(&self, incoming: quinn::Incoming, context: &Context) {
        let crowded = MAX_HANDSHAKES - self.places.available_permits() >= RETRY_FROM;
        if crowded && !incoming.remote_address_validated() {
            // an error means that it cannot be retried, which was asked above
            let _ = incoming.retry();
            return;
        }
        match self.places.clone().try_acquire_owned() {
            Ok(place) => drop(tokio::spawn(accept(incoming, context.clone(), place))),
            // silently: an answer to a flood is a flood; who means it tries again
            Err(_) => incoming.ignore(),
        }
    }
}

/// Takes an incoming connection and serves it to its end. `place` is given back once the peer is known.
async fn accept(incoming: quinn::Incoming, context: Context, place: OwnedSemaphorePermit) {
    let endpoint = incoming.remote_address();
    let failed = |node, reason| Event::Input(Input::AcceptFailed { endpoint, node, reason });
    let started = Instant::now();
    let connecting = match incoming.accept() {
        Ok(connecting) => connecting,
        Err(error) => {
            let _ = context.events.send(failed(None, reason_of(&error))).await;
            return;
        }
    };
    let Ok(connected) = tokio::time::timeout(HELLO_TIMEOUT, connecting).await else {
        let text = "no handshake in time".to_owned();
        let _ = context.events.send(failed(None, Reason { label: "timeout", text })).await;
        return;
    };
    match connected {
        Ok(connection) => match establish(&connection, &context, None, started).await {
            Ok(up) => {
                drop(place);
                serve(up, connection, context).await;
            }
            Err(refusal) => {
                close(&connection, &refusal);
                let node = identity(&connection).ok().map(|i| i.node);
                let _ = context.events.send(failed(node, refusal.reason)).await;
            }
        },
        Err(error) => {
            let _ = context.events.send(failed(None, reason_of(&error))).await;
        }
    }
}

struct Refusal {
    /// `None`: the peer, or the path, ended it.
    code: Option<CloseCode>,
    reason: Reason,
}

impl Refusal {
    fn ours(code: CloseCode, text: String) -> Self {
        Self { code: Some(code), reason: Reason { label: code.reason(), text } }
    }
}

fn close(connection: &quinn::Connection, refusal: &Refusal) {
    if let Some(code) = refusal.code {
        connection.close(VarInt::from_u32(code as u32), refusal.reason.text.as_bytes());
    }
}

struct Up {
    input: Input,
    conn: ConnId,
    send: SendStream,
    recv: RecvStream,
}

/// Hello, both ways, and what can be refused before `Control` has to decide.
async fn establish(
    connection: &quinn::Connection,
    context: &Context,
    dialed: Option<(Target, Option<NodeId>)>,
    started: Instant,
) -> Result<Up, Refusal> {
    let identity = identity(connection).map_err(|text| Refusal::ours(CloseCode::Protocol, text))?;
    check_name(&identity, &context.hello.mesh, dialed.as_ref().and_then(|(_, expect)| expect.as_ref()))?;
    if identity.node == context.hello.node {
        return Err(Refusal::ours(
            CloseCode::Name,
            format!(
                "{} is this node's own name: two nodes use it, or this is our own endpoint",
                identity.node
            ),
        ));
    }
    let exchange = async {
        let lost = |e: ConnectionError| Refusal { code: None, reason: reason_of(&e) };
        let (mut send, mut recv) = match dialed {
            Some(_) => connection.open_bi().await.map_err(lost)?,
            None => connection.accept_bi().await.map_err(lost)?,
        };
        let hello = Message::Hello(context.hello.clone()).encode();
        let ended = |e: Option<ConnectionError>| match e {
            Some(e) => lost(e),
            None => Refusal::ours(CloseCode::Protocol, "the control stream ended before the hello".into()),
        };
        if dialed.is_some() {
            send.write_all(&hello).await.map_err(|_| ended(connection.close_reason()))?;
        }
        let theirs = match read_message(&mut recv).await {
            Ok(Some(Message::Hello(hello))) => hello,
            Ok(_) => return Err(Refusal::ours(CloseCode::Protocol, "the first message is no hello".into())),
            Err(ReadFailure::Malformed(e)) => {
                let version = matches!(e, DecodeError::Version(_));
                let code = if version { CloseCode::Version } else { CloseCode::Protocol };
                return Err(Refusal::ours(code, e.to_string()));
            }
            Err(ReadFailure::Ended) => return Err(ended(connection.close_reason())),
        };
        if theirs.version != PROTOCOL_VERSION {
            let text = format!(
                "protocol version {} is not {PROTOCOL_VERSION}: upgrade the older node",
                theirs.version
            );
            return Err(Refusal::ours(CloseCode::Version, text));
        }
        if theirs.networks.len() > MAX_NETWORKS {
            let text = format!("{} networks are more than {MAX_NETWORKS}", theirs.networks.len());
            return Err(Refusal::ours(CloseCode::Protocol, text));
        }
        if theirs.node != identity.node || theirs.mesh != identity.mesh {
            let text = format!(
                "hello says {}.{}, the certificate {}.{}",
                theirs.node, theirs.mesh, identity.node, identity.mesh
            );
            return Err(Refusal::ours(CloseCode::Name, text));
        }
        if dialed.is_none() {
            send.write_all(&hello).await.map_err(|_| ended(connection.close_reason()))?;
        }
        Ok((send, recv, theirs))
    };
    let (send, recv, hello) = tokio::time::timeout(HELLO_TIMEOUT, exchange)
        .await
        .unwrap_or_else(|_| Err(Refusal::ours(CloseCode::Timeout, "no hello in time".into())))?;
    let conn = ConnId(NEXT_CONN.fetch_add(1, Ordering::Relaxed));
    let endpoint = connection.remote_address();
    let endpoint = SocketAddr::new(endpoint.ip().to_canonical(), endpoint.port());
    let dialed = dialed.map(|(target, _)| target);
    Ok(Up {
        input: Input::TunnelUp { conn, identity, endpoint, dialed, hello, took: started.elapsed() },
        conn,
        send,
        recv,
    })
}

fn check_name(identity: &Identity, mesh: &MeshId, expect: Option<&NodeId>) -> Result<(), Refusal> {
    if identity.mesh != *mesh {
        let text = format!("certificate of {} is of mesh {}, not {mesh}", identity.node, identity.mesh);
        return Err(Refusal::ours(CloseCode::Mesh, text));
    }
    match expect {
        Some(expect) if *expect != identity.node => {
            let text =
                format!("expected node {expect}, found {}: mend `name` or the endpoint", identity.node);
            Err(Refusal::ours(CloseCode::Name, text))
        }
        _ => Ok(()),
    }
}

fn certificate(connection: &quinn::Connection) -> Result<CertificateDer<'static>, String> {
    let chain = connection
        .peer_identity()
        .and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok())
        .ok_or("peer shows no certificate")?;
    chain.into_iter().next().ok_or_else(|| "peer shows no certificate".into())
}

fn identity(connection: &quinn::Connection) -> Result<Identity, String> {
    Identity::from_certificate(&certificate(connection)?).map_err(|e| e.to_string())
}

/// Reads, writes and watches a tunnel until it ends.
async fn serve(up: Up, connection: quinn::Connection, context: Context) {
    let Up { input, conn, mut send, mut recv } = up;
    let (writer, mut queue) = mpsc::channel::<Message>(WRITE_QUEUE);
    let secrets = secrets(&input, &connection, &context);
    let beside = Arc::<Beside>::default();
    let event =
        Event::Up { input, conn, connection: connection.clone(), writer, secrets, beside: beside.clone() };
    if context.events.send(event).await.is_err() {
        return;
    }
    let write = async {
        while let Some(message) = queue.recv().await {
            if send.write_all(&message.encode()).await.is_err() {
                break;
            }
        }
        // the loop has let go of the tunnel, or the stream is dead: the connection's end is what counts
        connection.closed().await;
    };
    let read = async {
        loop {
            match read_message(&mut recv).await {
                Ok(Some(message)) => {
                    if context.events.send(Event::Input(Input::Message { conn, message })).await.is_err() {
                        return;
                    }
                }
                Ok(None) => {}
                Err(ReadFailure::Malformed(error)) => {
                    // `Control` first: what QUIC tells here afterwards is only that we closed
                    let text = error.to_string();
                    let breach = Input::Breach { conn, text: text.clone() };
                    let _ = context.events.send(Event::Input(breach)).await;
                    connection.close(VarInt::from_u32(CloseCode::Protocol as u32), text.as_bytes());
                    break;
                }
                Err(ReadFailure::Ended) => break,
            }
        }
        connection.closed().await;
    };
    let watch = super::path::watch(conn, &connection, &beside, &context);
    tokio::select! {
        _ = connection.closed() => {}
        () = async { tokio::join!(write, read, watch); } => {}
    }
    let reason = reason_of(&connection.closed().await);
    let _ = context.events.send(Event::Input(Input::TunnelClosed { conn, reason })).await;
}

fn secrets(up: &Input, connection: &quinn::Connection, context: &Context) -> Option<Secrets> {
    let Input::TunnelUp { dialed, hello, .. } = up else { return None };
    if dialed.is_some() {
        return Secrets::export(connection, &context.certificate, &context.hello, hello);
    }
    Secrets::export(connection, &certificate(connection).ok()?, hello, &context.hello)
}

enum ReadFailure {
    Malformed(DecodeError),
    Ended,
}

async fn read_message(recv: &mut RecvStream) -> Result<Option<Message>, ReadFailure> {
    let ended = |_: ReadExactError| ReadFailure::Ended;
    let mut header = [0; HEADER];
    recv.read_exact(&mut header).await.map_err(ended)?;
    let header = Header::decode(&header).map_err(ReadFailure::Malformed)?;
    let mut body = vec![0; header.len];
    recv.read_exact(&mut body).await.map_err(ended)?;
    Message::decode(header.kind, &body).map_err(ReadFailure::Malformed)
}

/// Metric label and words for the end of a connection.
pub fn reason_of(error: &ConnectionError) -> Reason {
    let (label, text) = match error {
        ConnectionError::ApplicationClosed(close) => {
            let code = CloseCode::from_wire(close.error_code.into_inner());
            let words = foreign_words(&close.reason);
            (code.map_or("closed", CloseCode::reason), format!("the peer closed: {words}"))
        }
        // an application's close during the handshake arrives without its own code (RFC 9000 section 10.2.3)
        ConnectionError::ConnectionClosed(close)
            if close.error_code == TransportErrorCode::APPLICATION_ERROR =>
        {
            (CloseCode::Abandoned.reason(), "the dialer gave up".to_owned())
        }
        ConnectionError::ConnectionClosed(close) => {
            let label = alert_label(u64::from(close.error_code));
            let words = foreign_words(&close.reason);
            (label, format!("the peer refused: {} {words}", alert_words(label)))
        }
        ConnectionError::TransportError(error) => {
            let label = alert_label(u64::from(error.code));
            (label, format!("refused: {} ({})", alert_words(label), error.reason))
        }
        ConnectionError::TimedOut => ("timeout", "nothing heard in time".to_owned()),
        ConnectionError::Reset => ("reset", "the peer has restarted".to_owned()),
        ConnectionError::LocallyClosed => ("local", "closed here".to_owned()),
        other => ("other", other.to_string()),
    };
    Reason { label, text }
}

/// Words that anybody may have sent, fit for a terminal and a log.
fn foreign_words(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).take(MAX_WORDS).collect()
}

/// Longest explanation taken from a peer, in characters.
const MAX_WORDS: usize = 300;

/// A TLS alert (RFC 8446 section 6) arrives as transport error 0x100 + alert (RFC 9001 section 4.8).
pub(crate) fn alert_label(code: u64) -> &'static str {
    match code {
        0x12a => "bad_certificate",
        0x12b => "unsupported_certificate",
        0x12c => "certificate_revoked",
        0x12d => "certificate_expired",
        0x130 => "unknown_ca",
        0x131 => "access_denied",
        0x174 => "certificate_missing",
        0x178 => "no_application_protocol",
        0x100..=0x1ff => "tls",
        _ => "transport",
    }
}

fn alert_words(label: &str) -> &'static str {
    match label {
        "bad_certificate" => "the certificate is not acceptable",
        "certificate_expired" => {
            "the certificate has expired, or is not valid yet: check the clocks, issue a new one"
        }
        "unknown_ca" => "the certificate is from another CA: compare `ca.pem` on both nodes",
        "certificate_missing" => "no certificate was shown",
        "no_application_protocol" => "this is no mesh node, or of another version",
        "access_denied" => "access denied",
        _ => "the handshake failed",
    }
}
