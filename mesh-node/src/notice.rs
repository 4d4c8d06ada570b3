//! Notices: everything a node tells its operator, at `info` and above, as data. Each has a stable name, a level, a sentence,
//! values and, where something can be done about it, a remedy. Whoever has something to tell makes one; `io::notices` logs it
//! and hands it to `mesh-ctl monitor`, as often as `limits` lets it. `catalogue` is the list, `page` writes it as documentation.
//!
//! ```text
//!   control ──► Output::Tell ──► control_loop ─┐                       ┌─► log
//!                                io, node ─────┴─► io::notices::tell ──┴─► mesh-ctl monitor
//! ```

use std::collections::BTreeMap;
use std::net::SocketAddr;

use mesh_proto::api::{self, FieldValue};
use mesh_proto::identity::rfc3339_ms;
use mesh_proto::{MeshId, NetworkName, NodeId, Prefix};
use tracing::field::display;

mod catalogue;
pub mod limiter;
pub mod limits;
#[cfg(test)]
mod page;

pub use self::catalogue::{CATALOGUE, Notice};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Worth a note.
    Info,
    /// Odd, but the node works on.
    Warn,
    /// Something was given up.
    Error,
}

impl Level {
    /// As in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// How often a kind of notice may be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// As often as it happens: nobody else can make it happen often.
    Free,
    /// All of the kind together: strangers have no name to count by.
    Together,
    /// By each value of its first field: a peer's noise does not hide another's.
    Each,
}

/// A line of the catalogue.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// Stable name.
    pub event: &'static str,
    /// How bad it is.
    pub level: Level,
    /// How often it may be told.
    pub limit: Limit,
    /// What is logged, without the values.
    pub sentence: &'static str,
    /// Names of the values.
    pub fields: &'static [&'static str],
    /// What it means: lines of text.
    pub about: &'static [&'static str],
    /// What the operator does; empty where nothing is to be done.
    pub remedy: &'static str,
}

impl Notice {
    /// As a line of the event stream.
    pub fn event(&self, suppressed: u64, unix_ms: u64) -> api::Event {
        let kind = self.kind();
        let values = kind.fields.iter().zip(self.values());
        let fields = values.filter_map(|(name, value)| Some(((*name).to_owned(), value?)));
        api::Event {
            schema: api::SCHEMA,
            time: rfc3339_ms(unix_ms),
            event: kind.event.to_owned(),
            level: kind.level.as_str().to_owned(),
            message: kind.sentence.to_owned(),
            fields: fields.collect::<BTreeMap<_, _>>(),
            suppressed: (suppressed > 0).then_some(suppressed),
            remedy: (!kind.remedy.is_empty()).then(|| kind.remedy.to_owned()),
        }
    }

    /// By what it is limited where each value of the first field is counted by itself.
    fn subject(&self) -> String {
        self.values().into_iter().next().flatten().map(|value| text(&value)).unwrap_or_default()
    }
}

/// What can be a value of a notice; one that is absent is not shown.
trait Field {
    fn value(&self) -> Option<FieldValue>;
}

macro_rules! shown_as_text {
    ($($type:ty),*) => {
        $(impl Field for $type {
            fn value(&self) -> Option<FieldValue> {
                Some(FieldValue::Text(self.to_string()))
            }
        })*
    };
}

shown_as_text!(String, &'static str, MeshId, NetworkName, NodeId, Prefix, SocketAddr);

impl Field for bool {
    fn value(&self) -> Option<FieldValue> {
        Some(FieldValue::Truth(*self))
    }
}

impl Field for u64 {
    fn value(&self) -> Option<FieldValue> {
        Some(FieldValue::Number(*self))
    }
}

impl<T: Field> Field for Option<T> {
    fn value(&self) -> Option<FieldValue> {
        self.as_ref().and_then(Field::value)
    }
}

impl Field for Vec<SocketAddr> {
    fn value(&self) -> Option<FieldValue> {
        Some(FieldValue::List(self.iter().map(SocketAddr::to_string).collect()))
    }
}

fn text(value: &FieldValue) -> String {
    match value {
        FieldValue::Truth(truth) => truth.to_string(),
        FieldValue::Number(number) => number.to_string(),
        FieldValue::Text(text) => text.clone(),
        FieldValue::List(list) => list.join(","),
    }
}

/// A value as `tracing` takes it. A word is shown bare; what has blanks, quotes or control characters is quoted.
fn traced(value: Option<FieldValue>) -> Box<dyn tracing::Value> {
    let quoted = |c: char| c.is_whitespace() || c.is_control() || c == '"' || c == '\\';
    match value {
        None => Box::new(tracing::field::Empty),
        Some(FieldValue::Truth(truth)) => Box::new(truth),
        Some(FieldValue::Number(number)) => Box::new(number),
        Some(value) => match text(&value) {
            text if text.is_empty() || text.contains(quoted) => Box::new(text),
            text => Box::new(display(text)),
        },
    }
}

#[cfg(test)]
mod tests;
