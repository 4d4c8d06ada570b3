//! Metrics for Prometheus: plain data in, the text format out, served on an address of the operator's choice.
//!
//! Nothing is registered anywhere: each scrape renders what the node counts anyway, so a peer that is gone leaves no stale
//! series behind. Names are the operator's contract; receive and transmit are meant as in node_exporter.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use futures_util::future::BoxFuture;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use prometheus::TextEncoder;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::notices::tell;
use crate::notice::Notice;

mod families;
pub mod input;
mod process;

pub use input::MetricsInput;

/// An address that does not exist yet (an interface that comes up later) is tried again after this.
const BIND_AGAIN: Duration = Duration::from_secs(1);

/// Between two tries to accept.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Connections at once. Whoever reaches the address, as every user of this host does, must not take the file descriptors
/// that tunnels, nft and the control socket need: a service has 1024 of them by default.
const MAX_CONNECTIONS: usize = 32;

/// A connection carries one scrape, and no longer than this: it takes milliseconds, also of a large mesh.
const CONNECTION_TIME: Duration = Duration::from_secs(5);

/// The text format: <https://prometheus.io/docs/instrumenting/exposition_formats/>.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Serves `GET /metrics` for good; `render` is asked at each scrape. An address that cannot be bound is tried again and again:
/// a node must run without its metrics.
pub async fn serve<R>(address: SocketAddr, render: R) -> io::Result<()>
where
    R: Fn() -> BoxFuture<'static, String> + Clone + Send + Sync + 'static,
{
    let listener = bind(address).await;
    tell(Notice::MetricsServed { address });
    answer_all(listener, router(render)).await;
    Ok(())
}

/// Never ends; dropped, it takes its connections along.
async fn answer_all(listener: TcpListener, app: Router) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        if connections.len() >= MAX_CONNECTIONS {
            connections.join_next().await;
        }
        let Ok((stream, _)) = listener.accept().await else {
            // no file descriptor is left, say: at once it would fail again
            tokio::time::sleep(ACCEPT_AGAIN).await;
            continue;
        };
        let service = TowerToHyperService::new(app.clone());
        connections.spawn(async move {
            let mut http = http1::Builder::new();
            let scrape = http.keep_alive(false).serve_connection(TokioIo::new(stream), service);
            // a client that breaks off or is too slow is no event
            let _ = timeout(CONNECTION_TIME, scrape).await;
        });
    }
}

fn router<R>(render: R) -> Router
where
    R: Fn() -> BoxFuture<'static, String> + Clone + Send + Sync + 'static,
{
    let scrape = move || {
        let text = render();
        async move { ([(CONTENT_TYPE, TEXT_FORMAT)], text.await) }
    };
    Router::new().route("/metrics", get(scrape))
}

async fn bind(address: SocketAddr) -> TcpListener {
    let mut warned = false;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(error) if !warned => {
                warned = true;
                tell(Notice::MetricsWaiting { address, error: error.to_string() });
            }
            Err(_) => {}
        }
        tokio::time::sleep(BIND_AGAIN).await;
    }
}

/// The text of a scrape.
pub fn exposition(input: &MetricsInput) -> String {
    TextEncoder::new().encode_to_string(&families::all(input)).unwrap_or_else(|error| {
        tell(Notice::MetricsUnwritable { error: error.to_string() });
        String::new()
    })
}

#[cfg(test)]
mod tests;
