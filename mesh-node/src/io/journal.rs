//! The log as entries of systemd's journal: <https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>.
//!
//! The message is the sentence with its values and the remedy, since `journalctl` shows nothing else unless asked; each value is
//! a field as well, to filter by.

use std::fmt::{Debug, Write as _};
use std::io::{self, Write as _};
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

/// Where journald listens.
pub const SOCKET: &str = "/run/systemd/journal/socket";

/// Longest value of a field, so that an entry fits into a datagram of the default send buffer: longer ones would have to be
/// handed over in a file.
const MAX_VALUE: usize = 4096;

/// Writes entries.
#[derive(Debug)]
pub struct Journal(UnixDatagram);

impl Journal {
    /// The socket must be there; a journal that is restarted later has the same.
    pub fn open(socket: &Path) -> io::Result<Self> {
        let sender = UnixDatagram::unbound()?;
        sender.connect(socket)?;
        // a journal that hangs must not hang the node
        sender.set_nonblocking(true)?;
        Ok(Self(sender))
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut entry = Entry::default();
        event.record(&mut entry);
        let target = event.metadata().target();
        let bytes = entry.bytes(priority(*event.metadata().level()), target);
        if self.0.send(&bytes).is_err() {
            // journald reads stderr too, if it is there at all
            let _ = writeln!(io::stderr(), "{}", entry.line());
        }
    }
}

/// syslog(3).
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

#[derive(Default)]
struct Entry {
    message: String,
    values: Vec<(&'static str, String)>,
}

impl Entry {
    fn add(&mut self, name: &'static str, mut text: String) {
        if text.len() > MAX_VALUE {
            text.truncate((0..=MAX_VALUE).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0));
        }
        match name {
            "message" => self.message = text,
            _ => self.values.push((name, text)),
        }
    }

    /// For people.
    fn line(&self) -> String {
        let mut line = self.message.clone();
        for (name, value) in self.values.iter().filter(|(name, _)| !["event", "remedy"].contains(name)) {
            let _ = match value.contains(char::is_whitespace) || value.is_empty() {
                true => write!(line, " {name}={value:?}"),
                false => write!(line, " {name}={value}"),
            };
        }
        if let Some((_, remedy)) = self.values.iter().find(|(name, _)| *name == "remedy") {
            let _ = write!(line, ": {remedy}");
        }
        line
    }

    fn bytes(&self, priority: u8, target: &str) -> Vec<u8> {
        let mut out = Vec::new();
        put(&mut out, "MESSAGE", &self.line());
        put(&mut out, "PRIORITY", &priority.to_string());
        put(&mut out, "SYSLOG_IDENTIFIER", "mesh-node");
        put(&mut out, "MESH_TARGET", target);
        for (name, value) in &self.values {
            let upper = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
            put(&mut out, &format!("MESH_{}", name.chars().map(upper).collect::<String>()), value);
        }
        out
    }
}

/// A field: as a line, or with its length in front where the value has line breaks.
fn put(out: &mut Vec<u8>, name: &str, value: &str) {
    out.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        out.push(b'\n');
        out.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        out.push(b'=');
    }
    out.extend_from_slice(value.as_bytes());
    out.push(b'\n');
}

impl Visit for Entry {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field.name(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.add(field.name(), format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;
    use crate::notice::Notice;

    /// What the journal would receive.
    fn received(told: impl FnOnce()) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        let logger = tracing_subscriber::registry().with(Journal::open(&path).unwrap());
        tracing::subscriber::with_default(logger, told);
        let mut buffer = vec![0; 1 << 20];
        let len = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..len]).into_owned()
    }

    #[test]
    fn an_entry_has_the_values_in_its_message_and_as_fields() {
        let entry = received(|| {
            let text = "nothing heard in time".to_owned();
            Notice::TunnelDown { peer: "ph2".parse().unwrap(), reason: "timeout", text }.log(2);
        });
        let lines: Vec<&str> = entry.lines().collect();
        let message =
            "MESSAGE=tunnel down peer=ph2 reason=timeout text=\"nothing heard in time\" suppressed=2: see ";
        assert!(lines[0].starts_with(message), "{entry}");
        for field in [
            "PRIORITY=4",
            "SYSLOG_IDENTIFIER=mesh-node",
            "MESH_EVENT=tunnel_down",
            "MESH_PEER=ph2",
            "MESH_TEXT=nothing heard in time",
            "MESH_SUPPRESSED=2",
        ] {
            assert!(lines.contains(&field), "{field}: {entry}");
        }
        assert!(lines.iter().any(|line| line.starts_with("MESH_REMEDY=see ")), "{entry}");
    }

    #[test]
    fn line_breaks_of_a_peer_make_no_fields_and_long_values_are_cut() {
        let entry = received(|| {
            let text = format!("x\nPRIORITY=0\n{}", "ä".repeat(10_000));
            Notice::TunnelDown { peer: "ph2".parse().unwrap(), reason: "timeout", text }.log(0);
        });
        // with its length in front, which a reader skips over
        let at = entry.find("MESH_TEXT\n").unwrap();
        assert!(entry[at..].contains("x\nPRIORITY=0\n"), "the value is whole up to its limit");
        assert!(entry.len() < 3 * MAX_VALUE, "{}", entry.len());
        assert!(
            entry.starts_with("MESSAGE=tunnel down peer=ph2 reason=timeout text=\"x\\nPRIORITY"),
            "{entry}"
        );
    }

    #[test]
    fn a_journal_that_is_not_there_is_an_error() {
        assert!(Journal::open(Path::new("/nonexistent/socket")).is_err());
    }
}
