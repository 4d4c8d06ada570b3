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
use prometheus::TextEncoder;
use tokio::net::TcpListener;
use tracing::{info, warn};

mod families;
pub mod input;
mod process;

pub use input::MetricsInput;

/// An address that does not exist yet (an interface that comes up later) is tried again after this.
const BIND_AGAIN: Duration = Duration::from_secs(1);

/// The text format: <https://prometheus.io/docs/instrumenting/exposition_formats/>.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Serves `GET /metrics` for good; `render` is asked at each scrape. An address that cannot be bound is tried again and again:
/// a node must run without its metrics.
pub async fn serve<R>(address: SocketAddr, render: R) -> io::Result<()>
where
    R: Fn() -> BoxFuture<'static, String> + Clone + Send + Sync + 'static,
{
    let listener = bind(address).await;
    info!(%address, "metrics are served");
    axum::serve(listener, router(render)).await
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
                warn!(%address, %error, "metrics cannot be served yet: trying on; is the address this host's, and free?");
            }
            Err(_) => {}
        }
        tokio::time::sleep(BIND_AGAIN).await;
    }
}

/// The text of a scrape.
pub fn exposition(input: &MetricsInput) -> String {
    TextEncoder::new().encode_to_string(&families::all(input)).unwrap_or_else(|error| {
        warn!(%error, "metrics cannot be written");
        String::new()
    })
}

#[cfg(test)]
mod tests;
