//! The control socket: HTTP/1.1 with JSON on a unix socket. Whoever may open it may read; changes are root's.
//!
//! Each request is a question to the control loop; nothing here touches `Control` but inside such a question.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path as FsPath;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::{Path, Query as UrlQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::IncomingStream;
use axum::{Json, Router};
use mesh_proto::api::{
    Done, EchoAnswer, EchoAsk, EgressDrainAsk, EgressUse, LogLevel, LogLevelSet, PeerAdd, PeerAnswer,
    Problem, Reload, RouteCheck, SCHEMA, TraceAsk,
};
use mesh_proto::suggest;
use mesh_proto::{NetworkName, NodeId};
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::events::Readers;
use super::host::lookup::Lookups;
use super::log::LogFilter;
use super::notices::tell;
use super::query::{Query, View};
use super::quic::echo::Unanswered;
use super::slowness::{INTERVAL, Sources};
use super::trace::{self, KERNEL_PATIENCE, Tracer};
use crate::config;
use crate::control::Control;
use crate::control::trace::kernel;
use crate::notice::Notice;

/// Asks for a reload; answered with its report.
pub type ReloadRequest = oneshot::Sender<Reload>;

/// RFC 9457 section 3.
const PROBLEM: &str = "application/problem+json";

/// Longest refusal of axum's own that is passed on.
const MAX_REFUSAL: usize = 4096;

#[derive(Clone)]
struct Server {
    queries: mpsc::Sender<Query>,
    reloads: mpsc::Sender<ReloadRequest>,
    log: LogFilter,
    sources: Sources,
    readers: Readers,
}

#[derive(Clone, Copy)]
struct Caller {
    uid: Option<u32>,
}

impl Connected<IncomingStream<'_, UnixListener>> for Caller {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        let io: &UnixStream = stream.io();
        Self { uid: io.peer_cred().ok().map(|c| c.uid()) }
    }
}

fn problem(status: StatusCode, title: impl Into<String>) -> Response {
    let body = Problem { status: status.as_u16(), title: title.into() };
    (status, [(header::CONTENT_TYPE, PROBLEM)], Json(body)).into_response()
}

fn stopping() -> Response {
    problem(StatusCode::SERVICE_UNAVAILABLE, "the node is stopping")
}

impl Server {
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Control, &View<'_>) -> T + Send + 'static,
    ) -> Option<T> {
        super::query::ask(&self.queries, question).await
    }

    async fn json<T: Serialize + Send + 'static>(
        &self,
        question: impl FnOnce(&mut Control, &View<'_>) -> T + Send + 'static,
    ) -> Response {
        self.ask(question).await.map_or_else(stopping, |answer| Json(answer).into_response())
    }
}

fn refused(caller: Caller) -> Option<Response> {
    let root = caller.uid == Some(0);
    (!root).then(|| problem(StatusCode::FORBIDDEN, "changes are for root: try with sudo"))
}

#[derive(Deserialize)]
struct StatusQuery {
    #[serde(default)]
    verbose: bool,
}

async fn status(State(server): State<Server>, UrlQuery(query): UrlQuery<StatusQuery>) -> Response {
    let mut before = None;
    if query.verbose {
        let sources = server.sources.clone();
        before = server.ask(move |control, view| sources.sample(control, view)).await;
        tokio::time::sleep(INTERVAL).await;
    }
    let sources = server.sources.clone();
    server.json(move |control, view| sources.status(control, view, before.as_ref())).await
}

async fn peer(State(server): State<Server>, Path(name): Path<String>) -> Response {
    let wanted = name.clone();
    let found = server
        .ask(move |control, view| {
            let mut peers = control.peers(view.now, view.live).peers;
            let found = peers.iter().position(|p| p.name == wanted).map(|i| peers.swap_remove(i));
            found.ok_or_else(|| {
                let names = peers.iter().map(|p| p.name.as_str());
                suggest::or_else(&wanted, names, "`mesh-ctl peers` lists them")
            })
        })
        .await;
    match found {
        Some(Ok(peer)) => Json(PeerAnswer { schema: SCHEMA, peer }).into_response(),
        Some(Err(hint)) => problem(StatusCode::NOT_FOUND, format!("no peer {name}: {hint}")),
        None => stopping(),
    }
}

async fn peer_add(
    State(server): State<Server>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    Json(add): Json<PeerAdd>,
) -> Response {
    if let Some(refusal) = refused(caller) {
        return refusal;
    }
    if let Err(what) = config::endpoint(&add.endpoint) {
        return problem(StatusCode::BAD_REQUEST, format!("{:?} {what}", add.endpoint));
    }
    let endpoint = add.endpoint.clone();
    server
        .json(move |control, view| {
            control.peer_add(&endpoint, view.now);
            Done { schema: SCHEMA, done: format!("peer {endpoint} added") }
        })
        .await
}

async fn peer_remove(
    State(server): State<Server>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    Path(name): Path<String>,
) -> Response {
    if let Some(refusal) = refused(caller) {
        return refusal;
    }
    let peer = name.clone();
    match server.ask(move |control, view| control.peer_remove(&peer, view.now)).await {
        Some(Ok(())) => Json(Done { schema: SCHEMA, done: format!("peer {name} removed") }).into_response(),
        Some(Err(refusal)) => problem(StatusCode::CONFLICT, refusal),
        None => stopping(),
    }
}

async fn ping(State(server): State<Server>, Json(ask): Json<EchoAsk>) -> Response {
    let peer: NodeId = match ask.peer.parse() {
        Ok(peer) => peer,
        Err(error) => return problem(StatusCode::BAD_REQUEST, format!("peer {error}")),
    };
    let (reply, answer) = oneshot::channel();
    let size = (ask.size as usize).min(usize::from(u16::MAX));
    if server.queries.send(Query::Ping { peer, size, reply }).await.is_err() {
        return stopping();
    }
    let Ok(answer) = answer.await else { return stopping() };
    let (state, reason) = match answer {
        Ok(_) => ("answered", None),
        Err(Unanswered::Lost) => ("lost", Some("no answer within a second".to_owned())),
        Err(Unanswered::TooBig) => {
            ("too big", Some(format!("the tunnel carries no packet of {} bytes at present", ask.size)))
        }
        Err(Unanswered::Gone) => {
            let text = format!("no tunnel to {0}: `mesh-ctl peer show {0}` says why", ask.peer);
            return problem(StatusCode::UNPROCESSABLE_ENTITY, text);
        }
    };
    let rtt_seconds = answer.ok().map(|rtt| rtt.as_secs_f64());
    Json(EchoAnswer { schema: SCHEMA, state: state.to_owned(), reason, rtt_seconds }).into_response()
}

async fn egress_use(
    State(server): State<Server>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    Json(wish): Json<EgressUse>,
) -> Response {
    if let Some(refusal) = refused(caller) {
        return refusal;
    }
    let node = match wish.node.as_deref().map(str::parse).transpose() {
        Ok(node) => node,
        Err(error) => return problem(StatusCode::BAD_REQUEST, format!("node {error}")),
    };
    let network: Option<NetworkName> = match wish.network.as_deref().map(str::parse).transpose() {
        Ok(network) => network,
        Err(error) => return problem(StatusCode::BAD_REQUEST, format!("network {error}")),
    };
    let done = server.ask(move |control, view| control.egress_use(node, network.as_ref(), view.now)).await;
    match done {
        Some(Ok(done)) => Json(Done { schema: SCHEMA, done }).into_response(),
        Some(Err(refusal)) => problem(StatusCode::CONFLICT, refusal),
        None => stopping(),
    }
}

async fn egress_drain(
    State(server): State<Server>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    Json(ask): Json<EgressDrainAsk>,
) -> Response {
    if let Some(refusal) = refused(caller) {
        return refusal;
    }
    let deadline = Duration::from_secs(ask.deadline_seconds);
    match server.ask(move |control, view| control.egress_drain(deadline, view.now)).await {
        Some(Ok(drain)) => Json(drain).into_response(),
        Some(Err(refusal)) => problem(StatusCode::CONFLICT, refusal),
        None => stopping(),
    }
}

async fn egress_resume(State(server): State<Server>, ConnectInfo(caller): ConnectInfo<Caller>) -> Response {
    if let Some(refusal) = refused(caller) {
        return refusal;
    }
    match server.ask(move |control, view| control.egress_resume(view.now)).await {
        Some(Ok(done)) => Json(Done { schema: SCHEMA, done }).into_response(),
        Some(Err(refusal)) => problem(StatusCode::CONFLICT, refusal),
        None => stopping(),
    }
}

async fn reload(State(server): State<Server>, ConnectInfo(caller): ConnectInfo<Caller>) -> Response {
    if let Some(refusal) = refused(caller) {
        return refusal;
    }
    let (reply, report) = oneshot::channel();
    if server.reloads.send(reply).await.is_err() {
        return stopping();
    }
    report.await.map_or_else(|_| stopping(), |report| Json(report).into_response())
}

#[derive(Deserialize)]
struct RouteQuery {
    address: std::net::IpAddr,
}

async fn route_get(State(server): State<Server>, UrlQuery(query): UrlQuery<RouteQuery>) -> Response {
    let address = query.address;
    let asked = server.ask(move |control, _| {
        let found = control.route_get(address);
        let lookups = control.route_lookups(&found);
        (found, lookups)
    });
    let Some((mut found, lookups)) = asked.await else { return stopping() };
    let (networks, lookups): (Vec<_>, Vec<_>) = lookups.into_iter().unzip();
    let answers = match timeout(KERNEL_PATIENCE, Lookups::carry_out(&[&lookups])).await {
        Ok(answers) => answers.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {} s", KERNEL_PATIENCE.as_secs())),
    };
    for (i, (network, lookup)) in networks.iter().zip(&lookups).enumerate() {
        let objection = match &answers {
            Ok(told) => told
                .answers
                .first()
                .and_then(|answers| answers.get(i))
                .and_then(|answer| kernel::objection(lookup, answer, told.firewall.as_ref())),
            Err(error) => Some(format!("the kernel cannot be asked: {error}")),
        };
        found.checks.push(RouteCheck {
            network: network.to_string(),
            step: "kernel".to_owned(),
            state: if objection.is_some() { "no" } else { "yes" }.to_owned(),
            text: objection.unwrap_or_else(|| format!("a VM's packet goes by {}", lookup.ours)),
        });
    }
    Json(found).into_response()
}

async fn trace_packet(State(server): State<Server>, Json(ask): Json<TraceAsk>) -> Response {
    let wish = match trace::wish(&ask) {
        Ok(wish) => wish,
        Err(text) => return problem(StatusCode::BAD_REQUEST, text),
    };
    match Tracer::new(server.queries).follow(wish).await {
        Some(Ok(found)) => Json(found).into_response(),
        Some(Err(refusal)) => problem(StatusCode::UNPROCESSABLE_ENTITY, refusal),
        None => stopping(),
    }
}

async fn events(State(server): State<Server>) -> Response {
    let Some(node) = server.ask(|control, _| control.node().clone()).await else { return stopping() };
    server.readers.stream(node).unwrap_or_else(|| {
        let text = "too many monitors read this node's events: end one of the others";
        problem(StatusCode::SERVICE_UNAVAILABLE, text)
    })
}

async fn log_level(State(server): State<Server>) -> Response {
    Json(LogLevel { schema: SCHEMA, filter: server.log.current() }).into_response()
}

async fn log_level_set(
    State(server): State<Server>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    Json(set): Json<LogLevelSet>,
) -> Response {
    if let Some(refusal) = refused(caller) {
        return refusal;
    }
    match server.log.set(&set.filter) {
        Ok(()) => {
            let filter = server.log.current();
            tell(Notice::LogFilterSet { filter: filter.clone() });
            Json(LogLevel { schema: SCHEMA, filter }).into_response()
        }
        Err(error) => problem(StatusCode::BAD_REQUEST, error),
    }
}

/// What axum itself refuses (a method, a body, a query) is a problem document as everything else is.
async fn as_problem(response: Response) -> Response {
    let status = response.status();
    let kind = response.headers().get(header::CONTENT_TYPE);
    let told = kind.is_some_and(|kind| kind == PROBLEM);
    if told || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let (mut head, body) = response.into_parts();
    let text = axum::body::to_bytes(body, MAX_REFUSAL).await.unwrap_or_default();
    let title = match String::from_utf8_lossy(&text).trim() {
        "" => format!("{status}: are mesh-ctl and mesh-node of one version?"),
        text => text.to_owned(),
    };
    let (made, body) = problem(status, title).into_parts();
    head.headers.remove(header::CONTENT_LENGTH);
    head.headers.extend(made.headers);
    Response::from_parts(head, body)
}

fn router(server: Server) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route(
            "/v1/peers",
            get(|State(s): State<Server>| async move { s.json(|c, v| c.peers(v.now, v.live)).await })
                .post(peer_add),
        )
        .route("/v1/peers/{name}", get(peer).delete(peer_remove))
        .route(
            "/v1/networks",
            get(|State(s): State<Server>| async move { s.json(|c, _| c.networks()).await }),
        )
        .route("/v1/routes", get(|State(s): State<Server>| async move { s.json(|c, _| c.routes()).await }))
        .route("/v1/routes/get", get(route_get))
        .route(
            "/v1/egress",
            get(|State(s): State<Server>| async move { s.json(|c, v| c.egress(v.live)).await }),
        )
        .route("/v1/reload", post(reload))
        .route("/v1/ping", post(ping))
        .route("/v1/egress/use", post(egress_use))
        .route(
            "/v1/egress/drain",
            get(|State(s): State<Server>| async move { s.json(|c, _| c.drain()).await }).post(egress_drain),
        )
        .route("/v1/egress/resume", post(egress_resume))
        .route("/v1/events", get(events))
        .route("/v1/log-level", get(log_level).put(log_level_set))
        .route("/v1/trace", post(trace_packet))
        .fallback(|| async {
            problem(StatusCode::NOT_FOUND, "this node has no such resource: is it of another version?")
        })
        .layer(axum::middleware::map_response(as_problem))
        .with_state(server)
}

/// Binds the socket; the returned future serves until `stop` changes, then removes it.
pub fn serve(
    path: &FsPath,
    queries: mpsc::Sender<Query>,
    reloads: mpsc::Sender<ReloadRequest>,
    log: LogFilter,
    sources: Sources,
    mut stop: watch::Receiver<bool>,
) -> io::Result<impl Future<Output = ()> + Send + use<>> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    remove_stale(path)?;
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    if let Some(gid) = group("mesh") {
        std::os::unix::fs::chown(path, None, Some(gid))?;
    }
    let path = Arc::<FsPath>::from(path);
    let server = Server { queries, reloads, log, sources, readers: Readers::new(stop.clone()) };
    let service = router(server).into_make_service_with_connect_info::<Caller>();
    Ok(async move {
        let server = axum::serve(listener, service).with_graceful_shutdown(async move {
            let _ = stop.changed().await;
        });
        if let Err(error) = server.await {
            tell(Notice::ControlSocketFailed { error: error.to_string() });
        }
        let _ = std::fs::remove_file(path);
    })
}

/// A killed node leaves its socket behind. Nothing else is removed: the path may be mistyped.
fn remove_stale(path: &FsPath) -> io::Result<()> {
    let kind = match std::fs::symlink_metadata(path) {
        Ok(found) => found.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let refuse = |text| Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
    if !kind.is_socket() {
        return refuse("something that is no socket is there: set `control_socket` to another path");
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        Err(error) => Err(error),
        Ok(_) => refuse("another mesh-node answers on it: stop that one, or set `control_socket`"),
    }
}

/// Number of a group, by the host's group file.
fn group(name: &str) -> Option<u32> {
    let groups = std::fs::read_to_string("/etc/group").ok()?;
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}
