//! One question to the node over its control socket: HTTP/1.1, JSON both ways.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use mesh_proto::api::{Problem, SCHEMA};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;
use tokio::net::UnixStream;

/// Longer than any answer takes: resolving an endpoint's name is the slowest.
const PATIENCE: Duration = Duration::from_secs(30);

/// Far above the routes of the largest mesh; keeps a wrong program on the socket from filling memory.
const MAX_ANSWER: usize = 256 << 20;

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The node cannot be asked; with the remedy.
    Unreachable(String),
    /// It refused.
    Refused(Problem),
    /// Anything else.
    Other(anyhow::Error),
}

impl Failure {
    /// The process's exit status.
    pub(crate) fn exit_status(&self) -> u8 {
        match self {
            Self::Unreachable(_) => 3,
            Self::Refused(_) | Self::Other(_) => 1,
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unreachable(text) => f.write_str(text),
            Self::Refused(problem) => f.write_str(&problem.title),
            Self::Other(error) => write!(f, "{error:#}"),
        }
    }
}

/// What is printed as JSON instead of an answer.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Refusal {
    /// `SCHEMA`.
    schema: u32,
    /// HTTP status, where it is the node that refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    /// What, and the remedy.
    title: String,
}

impl From<&Failure> for Refusal {
    fn from(failure: &Failure) -> Self {
        let status = match failure {
            Failure::Refused(problem) => Some(problem.status),
            Failure::Unreachable(_) | Failure::Other(_) => None,
        };
        Self { schema: SCHEMA, status, title: failure.to_string() }
    }
}

/// Asks, and returns the object the node answered.
pub(crate) async fn ask(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<Value>,
) -> Result<Value, Failure> {
    let stream = UnixStream::connect(socket).await.map_err(|error| unreachable(socket, &error))?;
    tokio::time::timeout(PATIENCE, exchange(stream, method, path, body))
        .await
        .unwrap_or_else(|_| {
            Err(format!("no answer within {} s: is the node overloaded or stopped?", PATIENCE.as_secs()))
        })
        .map_err(|error| Failure::Unreachable(format!("node at {}: {error}", socket.display())))
        .and_then(|(good, body)| understand(good, &body))
}

fn unreachable(socket: &Path, error: &std::io::Error) -> Failure {
    let remedy = match error.kind() {
        ErrorKind::PermissionDenied => "become root or a member of the group `mesh`",
        ErrorKind::NotFound => "start it with `systemctl start mesh-node`, or name its socket with --socket",
        _ => "is it running? see `systemctl status mesh-node`, or name its socket with --socket",
    };
    Failure::Unreachable(format!("node not reachable at {}: {error}: {remedy}", socket.display()))
}

async fn exchange(
    stream: UnixStream,
    method: Method,
    path: &str,
    body: Option<Value>,
) -> Result<(bool, Bytes), String> {
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let driver = tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path).header(HOST, "mesh-node");
    if body.is_some() {
        request = request.header(CONTENT_TYPE, "application/json");
    }
    let bytes = body.map(|value| Bytes::from(value.to_string())).unwrap_or_default();
    let request = request.body(Full::new(bytes)).map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let good = response.status().is_success();
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    driver.abort();
    Ok((good, body.map_err(|error| error.to_string())?.to_bytes()))
}

fn understand(good: bool, body: &[u8]) -> Result<Value, Failure> {
    let foreign = |error: serde_json::Error| {
        let text: String = String::from_utf8_lossy(body).chars().take(120).collect();
        Failure::Other(anyhow::anyhow!("answer {text:?} is not understood ({error}): is it a mesh-node's?"))
    };
    if good {
        return serde_json::from_slice(body).map_err(foreign);
    }
    Err(serde_json::from_slice(body).map_or_else(foreign, Failure::Refused))
}

/// A name as one segment of a path or one value of a query: RFC 3986 section 2.1.
pub(crate) fn escape(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(b).to_string(),
            _ => format!("%{b:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_one_path_segment() {
        assert_eq!(escape("[2001:db8::1]:4650"), "%5B2001%3Adb8%3A%3A1%5D%3A4650");
        assert_eq!(escape("ph1"), "ph1");
        assert_eq!(escape("a/b?c"), "a%2Fb%3Fc");
    }

    #[test]
    fn a_problem_is_told_in_its_own_words_and_foreign_bytes_are_named() {
        let refused = understand(false, br#"{"status":404,"title":"no peer ph9"}"#).unwrap_err();
        assert_eq!((refused.to_string().as_str(), refused.exit_status()), ("no peer ph9", 1));
        assert!(understand(true, b"<html>").unwrap_err().to_string().contains("<html>"));
    }

    #[tokio::test]
    async fn a_missing_socket_is_named_with_the_remedy() {
        let failure = ask(Path::new("/nonexistent/node.sock"), Method::GET, "/", None).await.unwrap_err();
        assert_eq!(failure.exit_status(), 3);
        let text = failure.to_string();
        assert!(text.contains("/nonexistent/node.sock") && text.contains("--socket"), "{text}");
    }
}
