//! The catalogue is whole, and a notice is shown the same everywhere.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::page::{FIELDS, page};
use super::*;

/// Set, the page is written; else it is compared.
const WRITE: &str = "MESH_WRITE_DOCS";

#[test]
fn names_are_unique_and_in_snake_case() {
    let names: BTreeSet<&str> = CATALOGUE.iter().map(|kind| kind.event).collect();
    assert_eq!(names.len(), CATALOGUE.len());
    for name in names {
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
    }
}

#[test]
fn warnings_and_errors_have_a_remedy_and_all_are_in_lower_case_without_a_full_stop() {
    for kind in CATALOGUE {
        assert!(kind.level == Level::Info || !kind.remedy.is_empty(), "{} has no remedy", kind.event);
        assert!(!kind.about.is_empty(), "{} is not explained", kind.event);
        for text in [kind.sentence, kind.remedy] {
            assert!(!text.ends_with('.'), "{}: {text}", kind.event);
        }
        let first = kind.sentence.split(' ').next().unwrap();
        let acronym = first.chars().filter(|c| c.is_uppercase()).count() > 1;
        assert!(acronym || first.chars().all(|c| !c.is_uppercase()), "{}: {}", kind.event, kind.sentence);
    }
}

#[test]
fn what_is_limited_by_each_value_has_one_and_every_value_is_explained() {
    let meanings: BTreeSet<&str> = FIELDS.iter().map(|(name, _)| *name).collect();
    let mut used = BTreeSet::new();
    for kind in CATALOGUE {
        assert!(kind.limit != Limit::Each || !kind.fields.is_empty(), "{}", kind.event);
        used.extend(kind.fields.iter().copied());
    }
    assert_eq!(used, meanings);
}

#[test]
fn every_kind_is_on_the_page_with_its_remedy() {
    let page = page();
    for kind in CATALOGUE {
        assert!(page.contains(&format!("\n### {}\n", kind.event)), "{}", kind.event);
        assert!(page.contains(kind.remedy), "{}", kind.remedy);
    }
}

fn down() -> Notice {
    let text = "nothing heard in time".to_owned();
    Notice::TunnelDown { peer: "ph2".parse().unwrap(), reason: "timeout", text }
}

#[test]
fn a_line_of_the_event_stream_has_name_level_values_and_remedy() {
    let event = down().event(3, 1_800_000_000_250);
    let line = serde_json::to_value(&event).unwrap();
    assert_eq!(line["schema"], 1);
    assert_eq!(line["time"], "2027-01-15T08:00:00.25Z");
    assert_eq!((line["event"].as_str(), line["level"].as_str()), (Some("tunnel_down"), Some("warn")));
    assert_eq!(line["fields"]["peer"], "ph2");
    assert_eq!(line["suppressed"], 3);
    assert!(line["remedy"].as_str().unwrap().contains("mesh-ctl peer show"));
    let up = Notice::TunnelUp {
        peer: "ph2".parse().unwrap(),
        endpoint: "198.51.100.12:4650".parse().unwrap(),
        dialed: true,
    };
    let line = serde_json::to_value(up.event(0, 0)).unwrap();
    assert_eq!(line["fields"]["dialed"], true);
    assert!(line.get("remedy").is_none() && line.get("suppressed").is_none(), "{line}");
    let absent = serde_json::to_value(Notice::OwnNameElsewhere { from: None }.event(0, 0)).unwrap();
    assert!(absent["fields"].get("from").is_none(), "{absent}");
}

#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Written {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

#[test]
fn a_log_line_for_people_is_one_line_even_if_a_peer_sends_line_breaks() {
    let written = Written::default();
    let out = written.clone();
    let logger = tracing_subscriber::fmt()
        .with_writer(move || out.clone())
        .with_ansi(false)
        .with_target(false)
        .finish();
    tracing::subscriber::with_default(logger, || {
        let text = "x\nfake=1".to_owned();
        Notice::TunnelDown { peer: "ph2".parse().unwrap(), reason: "timeout", text }.log(7);
    });
    let text = written.text();
    assert_eq!(text.lines().count(), 1, "{text}");
    for part in ["WARN tunnel down peer=ph2 reason=timeout", "suppressed=7", "remedy=", "event=tunnel_down"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn a_log_line_in_json_has_the_values_by_their_names() {
    let written = Written::default();
    let out = written.clone();
    let logger =
        tracing_subscriber::fmt().json().flatten_event(true).with_writer(move || out.clone()).finish();
    tracing::subscriber::with_default(logger, || down().log(0));
    let line: serde_json::Value = serde_json::from_str(&written.text()).unwrap();
    assert_eq!(line["message"], "tunnel down");
    assert_eq!(line["event"], "tunnel_down");
    assert_eq!((line["peer"].as_str(), line["text"].as_str()), (Some("ph2"), Some("nothing heard in time")));
    assert!(line.get("suppressed").is_none(), "{line}");
}

#[test]
fn the_page_of_messages_is_what_the_catalogue_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/messages.md");
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(&path, page()).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == page(),
        "docs/messages.md is not what the code says: {WRITE}=1 cargo test -p mesh-node messages writes it"
    );
}
