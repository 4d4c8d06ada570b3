//! `GET /v1/events`: notices as they are told, one JSON object a line, until the reader or the node goes away.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use mesh_proto::NodeId;
use mesh_proto::api::Event;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, watch};

use super::notices::{Told, subscribe};
use super::now;
use crate::notice::Notice;

/// Who may read at once: operators and a log shipper or two. Each costs a socket's buffer and a copy of every line.
pub const MAX_READERS: usize = 16;

/// Those who read.
#[derive(Clone)]
pub struct Readers {
    places: Arc<Semaphore>,
    stop: watch::Receiver<bool>,
}

struct Reader {
    /// Comes before what is told.
    first: Option<Notice>,
    told: broadcast::Receiver<Told>,
    stop: watch::Receiver<bool>,
    _place: OwnedSemaphorePermit,
}

impl Readers {
    /// All streams end when `stop` changes.
    pub fn new(stop: watch::Receiver<bool>) -> Self {
        Self { places: Arc::new(Semaphore::new(MAX_READERS)), stop }
    }

    /// A stream of what is told from here on; `None` where there are too many.
    pub fn stream(&self, node: NodeId) -> Option<Response> {
        let place = self.places.clone().try_acquire_owned().ok()?;
        let first = Some(Notice::MonitorStarted { node });
        let reader = Reader { first, told: subscribe(), stop: self.stop.clone(), _place: place };
        let lines = stream::unfold(reader, |mut reader| async move {
            let line = reader.next().await?;
            Some((Ok::<_, Infallible>(line), reader))
        });
        Some(([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
    }
}

impl Reader {
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(first) = self.first.take() {
            return line(&first.event(0, now().unix_ms));
        }
        tokio::select! {
            biased;
            told = self.told.recv() => match told {
                Ok(told) => line(&told.event()),
                Err(RecvError::Lagged(missed)) => line(&Notice::Lagged { missed }.event(0, now().unix_ms)),
                Err(RecvError::Closed) => None,
            },
            _ = self.stop.changed() => None,
        }
    }
}

fn line(event: &Event) -> Option<Bytes> {
    let mut bytes = serde_json::to_vec(event).ok()?;
    bytes.push(b'\n');
    Some(bytes.into())
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;

    use super::*;
    use crate::io::notices::{BEHIND, tell};

    /// What is told is told to all of this process: a flood in one test would push a line of another's out.
    static FLOOD: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

    fn readers() -> (watch::Sender<bool>, Readers) {
        let (stop, stopped) = watch::channel(false);
        (stop, Readers::new(stopped))
    }

    async fn next(body: &mut axum::body::BodyDataStream) -> Event {
        serde_json::from_slice(&body.next().await.unwrap().unwrap()).unwrap()
    }

    fn mark(text: String) -> Notice {
        Notice::LogFilterSet { filter: text }
    }

    #[tokio::test]
    async fn a_slow_reader_is_told_how_many_lines_it_missed_and_goes_on_with_the_newest() {
        let _alone = FLOOD.lock().await;
        let (_stop, readers) = readers();
        let mut body = readers.stream("ph1".parse().unwrap()).unwrap().into_body().into_data_stream();
        let started = next(&mut body).await;
        assert_eq!(started.event, "monitor_started");
        assert_eq!(serde_json::to_value(&started.fields).unwrap()["node"], "ph1");
        // other tests of this process may tell something, too
        for n in 0..BEHIND * 2 {
            tell(mark(format!("slow{n}")));
        }
        let lagged = next(&mut body).await;
        assert_eq!(lagged.event, "lagged");
        let missed = serde_json::to_value(&lagged.fields).unwrap()["missed"].as_u64().unwrap();
        assert!(missed >= BEHIND as u64, "{missed}");
        let last = format!("slow{}", BEHIND * 2 - 1);
        for _ in 0..BEHIND * 2 {
            if serde_json::to_value(next(&mut body).await.fields).unwrap()["filter"] == last {
                return;
            }
        }
        panic!("the newest line did not come");
    }

    #[tokio::test]
    async fn readers_are_bounded_and_one_that_goes_makes_room() {
        let (_stop, readers) = readers();
        let node: NodeId = "ph1".parse().unwrap();
        let mut held: Vec<_> = (0..MAX_READERS).map(|_| readers.stream(node.clone()).unwrap()).collect();
        assert!(readers.stream(node.clone()).is_none());
        held.pop();
        assert!(readers.stream(node).is_some());
    }

    #[tokio::test]
    async fn a_stop_of_the_node_ends_the_streams_after_what_was_told_before() {
        let _alone = FLOOD.lock().await;
        let (stop, readers) = readers();
        let mut body = readers.stream("ph1".parse().unwrap()).unwrap().into_body().into_data_stream();
        tell(mark("before the stop".into()));
        stop.send(true).unwrap();
        let mut seen = false;
        while let Some(line) = body.next().await {
            let event: Event = serde_json::from_slice(&line.unwrap()).unwrap();
            seen |= serde_json::to_value(event.fields).unwrap()["filter"] == "before the stop";
        }
        assert!(seen);
    }
}
