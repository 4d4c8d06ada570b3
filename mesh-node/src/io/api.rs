//! The control socket: HTTP/1.1 with JSON on a unix socket. Whoever may open it may read; changes are root's.
//!
//! Each request is a question to the control loop; nothing here touches `Control` but inside such a question.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path as FsPath;
use std::sync::Arc;

use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::{Path, Query as UrlQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::IncomingStream;
use axum::{Json, Router};
use mesh_proto::api::{Done, PeerAdd, PeerAnswer, Problem, SCHEMA, TraceAsk};
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};

use super::query::{Query, View};
use super::trace::{self, Tracer};
use crate::control::Control;

#[derive(Clone)]
struct Server {
    queries: mpsc::Sender<Query>,
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
    (status, [(header::CONTENT_TYPE, "application/problem+json")], Json(body)).into_response()
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

async fn peer(State(server): State<Server>, Path(name): Path<String>) -> Response {
    let wanted = name.clone();
    let found = server
        .ask(move |control, view| {
            control.peers(view.now, view.live).peers.into_iter().find(|p| p.name == wanted)
        })
        .await;
    match found {
        Some(Some(peer)) => Json(PeerAnswer { schema: SCHEMA, peer }).into_response(),
        Some(None) => problem(StatusCode::NOT_FOUND, format!("no peer {name}: `mesh-ctl peers` lists them")),
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
    if !is_endpoint(&add.endpoint) {
        let text =
            format!("{:?} is not an endpoint: write it as 198.51.100.12:4650 or name:4650", add.endpoint);
        return problem(StatusCode::BAD_REQUEST, text);
    }
    let endpoint = add.endpoint.clone();
    server
        .json(move |control, view| {
            control.peer_add(&endpoint, view.now);
            Done { schema: SCHEMA, done: format!("peer {endpoint} added") }
        })
        .await
}

/// `host:port`, IPv6 hosts in brackets.
fn is_endpoint(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let host_ok = match bracketed {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.' || b == b'_')
        }
    };
    host_ok && port.parse::<u16>().is_ok_and(|p| p > 0)
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

#[derive(Deserialize)]
struct RouteQuery {
    address: std::net::IpAddr,
}

async fn route_get(State(server): State<Server>, UrlQuery(query): UrlQuery<RouteQuery>) -> Response {
    server.json(move |control, _| control.route_get(query.address)).await
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

fn router(server: Server) -> Router {
    Router::new()
        .route(
            "/v1/status",
            get(|State(s): State<Server>| async move { s.json(|c, v| c.status(v.now)).await }),
        )
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
        .route("/v1/egress", get(|State(s): State<Server>| async move { s.json(|c, _| c.egress()).await }))
        .route("/v1/trace", post(trace_packet))
        .fallback(|| async {
            problem(StatusCode::NOT_FOUND, "this node has no such resource: is it of another version?")
        })
        .with_state(server)
}

/// Binds the socket; the returned future serves until `stop` changes, then removes it.
pub fn serve(
    path: &FsPath,
    queries: mpsc::Sender<Query>,
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
    let service = router(Server { queries }).into_make_service_with_connect_info::<Caller>();
    Ok(async move {
        let server = axum::serve(listener, service).with_graceful_shutdown(async move {
            let _ = stop.changed().await;
        });
        if let Err(error) = server.await {
            tracing::error!(%error, "the control socket has failed");
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

#[cfg(test)]
mod tests {
    use super::is_endpoint;

    #[test]
    fn endpoints_are_host_and_port() {
        for good in ["198.51.100.1:4650", "[2001:db8::1]:4650", "ph1.example.net:4650"] {
            assert!(is_endpoint(good), "{good}");
        }
        for bad in ["", "ph1", "ph1:", "ph1:0", "2001:db8::1:4650", "a b:1", "ph1:70000", "[x]:1"] {
            assert!(!is_endpoint(bad), "{bad}");
        }
    }
}
