//! What an operator may write.

use std::path::Path;

use mesh_node::config::Config;
use mesh_node::config::document::Document;
use mesh_proto::identity::Grants;

use super::{case, changed};

const GENUINE: &str = include_str!("../../../deploy/mesh-node.toml");

/// A configuration, and the grants of a certificate: each error has its line.
pub(super) fn config_text(data: &[u8]) {
    let (which, changes) = case(data);
    let bytes = if which & 1 == 0 { changed(GENUINE.as_bytes(), changes) } else { changes.to_vec() };
    let text = String::from_utf8_lossy(&bytes);
    let (_, errors) = Config::read(&text, Path::new("node.toml"));
    let lines = text.lines().count().max(1);
    for error in &errors.0 {
        assert!(error.line <= lines + 1, "line {} of {lines}: {error}", error.line);
    }
    let (document, genuine) = (Document::new(&text), Document::new(GENUINE));
    assert!(document.changes(&document).is_empty());
    let _ = document.changes(&genuine);
    let _ = Grants::parse(&text);
}
