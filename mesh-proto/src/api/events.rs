//! What the node tells as it happens, and how much of it is logged.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A value in an event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum FieldValue {
    /// Yes or no.
    Truth(bool),
    /// A count, bytes, seconds.
    Number(u64),
    /// Anything else.
    Text(String),
    /// Several.
    List(Vec<String>),
}

/// A line of `GET /v1/events`. The first is `monitor_started`; `docs/messages.md` lists all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// `SCHEMA`.
    pub schema: u32,
    /// When.
    pub time: String,
    /// What: a stable name.
    pub event: String,
    /// `info`, `warn` or `error`.
    pub level: String,
    /// What, in words.
    pub message: String,
    /// The values.
    pub fields: BTreeMap<String, FieldValue>,
    /// How many of the same kind came before it and were not told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suppressed: Option<u64>,
    /// What the operator does about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// `GET /v1/log-level`, and what `PUT` answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LogLevel {
    /// `SCHEMA`.
    pub schema: u32,
    /// The filter in force.
    pub filter: String,
}

/// `PUT /v1/log-level`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LogLevelSet {
    /// In the language of RUST_LOG.
    pub filter: String,
}
