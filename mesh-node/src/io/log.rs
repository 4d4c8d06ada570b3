//! The log: in which format, to where, and what of it, which may be changed while the node runs.

use std::fs::{File, Metadata};
use std::io::{self, IsTerminal as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use super::journal::{self, Journal};
use super::notices::tell;
use crate::notice::Notice;

/// How to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `Human` on a terminal, `Journald` where stderr is the journal's, else `Json`.
    Auto,
    /// A line for people.
    Human,
    /// One object a line.
    Json,
    /// Fields of the journal.
    Journald,
}

/// Changes what is logged.
#[derive(Debug, Clone)]
pub struct LogFilter(reload::Handle<EnvFilter, Registry>);

impl LogFilter {
    /// What is logged now.
    pub fn current(&self) -> String {
        self.0.with_current(ToString::to_string).unwrap_or_default()
    }

    /// Changes it until the next start; the error says what is wrong with the text.
    pub fn set(&self, text: &str) -> Result<(), String> {
        let filter = parse(text)?;
        self.0.reload(filter).map_err(|error| error.to_string())
    }
}

/// A filter in the language of RUST_LOG, but for one thing: a bare word is a level. As a target it would silence all the rest,
/// which is what a mistyped level would do.
fn parse(text: &str) -> Result<EnvFilter, String> {
    const HELP: &str = "write a level (error, warn, info, debug, trace, off), or TARGET=LEVEL as in \
                        info,mesh_node::control=debug";
    let words = || text.split(',').map(str::trim).filter(|word| !word.is_empty());
    if words().next().is_none() {
        return Err(format!("the filter is empty: {HELP}"));
    }
    for word in words() {
        let bare = !word.contains(['=', '[']);
        if bare && word.parse::<LevelFilter>().is_err() {
            return Err(format!("{word:?} is no level: {HELP}"));
        }
    }
    EnvFilter::builder().parse(text).map_err(|error| format!("log filter {text:?}: {error}: {HELP}"))
}

/// Starts logging by RUST_LOG.
pub fn start(format: Format) -> LogFilter {
    let asked = std::env::var("RUST_LOG").ok().filter(|text| !text.is_empty());
    let (filter, refused) = match asked.as_deref().map(parse) {
        None => (EnvFilter::new("info"), None),
        Some(Ok(filter)) => (filter, None),
        Some(Err(error)) => (EnvFilter::new("info"), asked.zip(Some(error))),
    };
    let (filter, handle) = reload::Layer::new(filter);
    let terminal = io::stderr().is_terminal();
    let format = match format {
        Format::Auto if terminal => Format::Human,
        Format::Auto if is_journal() => Format::Journald,
        Format::Auto => Format::Json,
        told => told,
    };
    let mut unreachable = None;
    let journal = (format == Format::Journald).then(|| Journal::open(journal::SOCKET.as_ref()));
    let journal =
        journal.and_then(|opened| opened.map_err(|error| unreachable = Some(error.to_string())).ok());
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_target(false);
    let color = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let output = match (format, journal) {
        (_, Some(journal)) => journal.boxed(),
        (Format::Human, _) => lines.with_ansi(color).boxed(),
        _ => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(filter).with(output).init();
    if let Some((filter, error)) = refused {
        tell(Notice::LogFilterRefused { filter, error });
    }
    if let Some(error) = unreachable {
        tell(Notice::JournalUnreachable { error });
    }
    LogFilter(handle)
}

/// Whether stderr goes to the journal.
fn is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let stderr = io::stderr().as_fd().try_clone_to_owned().map(File::from);
    stderr.and_then(|file| file.metadata()).is_ok_and(|found| is_stream(&stream, &found))
}

/// systemd names the device and inode of the stream it gave us; a redirected stderr has others. systemd.exec(5).
fn is_stream(named: &str, found: &Metadata) -> bool {
    named == format!("{}:{}", found.dev(), found.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_targets_are_filters_and_mistyped_levels_are_refused_with_the_remedy() {
        for good in
            ["info", "debug", "WARN", "off", "info,mesh_node::control=debug", "mesh_node=trace,quinn=off"]
        {
            assert!(parse(good).is_ok(), "{good}");
        }
        for bad in ["", " ", "debgu", "info,nonsense", "mesh_node=loud", ",", "a b", "[x"] {
            let error = parse(bad).expect_err(bad);
            assert!(error.contains("mesh_node::control=debug"), "{bad}: {error}");
        }
    }

    #[test]
    fn a_filter_that_is_set_is_the_one_that_filters_and_a_refused_one_changes_nothing() {
        let (layer, handle) = reload::Layer::new(parse("info").unwrap());
        let filter = LogFilter(handle);
        let logger = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(logger, || {
            assert!(!tracing::enabled!(tracing::Level::DEBUG));
            filter.set("debug").unwrap();
            assert_eq!(filter.current(), "debug");
            assert!(tracing::enabled!(tracing::Level::DEBUG));
            assert!(filter.set("debgu").unwrap_err().contains("debgu"));
            assert_eq!(filter.current(), "debug");
        });
    }

    #[test]
    fn stderr_is_the_journals_only_where_its_device_and_inode_are_the_named_ones() {
        let dir = tempfile::tempdir().unwrap();
        let found = |name: &str| File::create(dir.path().join(name)).unwrap().metadata().unwrap();
        let (stderr, other) = (found("stderr"), found("other"));
        let named = format!("{}:{}", stderr.dev(), stderr.ino());
        assert!(is_stream(&named, &stderr));
        assert!(!is_stream(&named, &other));
        assert!(!is_stream("", &stderr));
    }
}
