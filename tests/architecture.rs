//! The dependency picture of ARCHITECTURE.md, as a test.

#![allow(clippy::unwrap_used, reason = "a test may stop at the first thing that is not there")]

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// Files of a module of mesh-node: `forward` is forward.rs or forward/**.
fn module(name: &str) -> Vec<PathBuf> {
    let mut all = Vec::new();
    let src = root().join("mesh-node/src");
    sources(&src, &mut all);
    let dir = src.join(name);
    let file = src.join(format!("{name}.rs"));
    let found: Vec<PathBuf> = all.into_iter().filter(|p| p.starts_with(&dir) || *p == file).collect();
    assert!(!found.is_empty(), "no module {name}");
    found
}

/// Lines before the tests, without comments.
fn code(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap();
    let end = text.find("\nmod tests {").unwrap_or(text.len());
    text[..end].lines().map(|l| l.split("//").next().unwrap_or("").to_owned()).collect()
}

fn is_test(path: &Path) -> bool {
    let named = |name: Option<&std::ffi::OsStr>| name.is_some_and(|n| n.to_string_lossy().contains("tests"));
    named(path.file_stem()) || named(path.parent().and_then(Path::file_name))
}

/// Which modules of the crate each module may name.
const ARROWS: &[(&str, &[&str])] = &[
    ("forward", &["forward"]),
    ("tunnel", &["forward", "tunnel"]),
    ("notice", &["notice"]),
    ("control", &["forward", "control", "config", "notice"]),
    ("config", &["forward", "config"]),
    ("io", &["forward", "control", "config", "notice", "io", "tunnel"]),
    ("packet_loop", &["forward", "config", "notice", "io", "tunnel", "packet_loop"]),
    (
        "control_loop",
        &["forward", "control", "config", "notice", "io", "tunnel", "packet_loop", "control_loop"],
    ),
];

#[test]
fn no_arrow_points_against_the_picture() {
    for (from, allowed) in ARROWS {
        for path in module(from).iter().filter(|p| !is_test(p)) {
            for line in code(path) {
                for part in line.split("crate::").skip(1) {
                    let to: String = part.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                    let known = to.is_empty() || allowed.contains(&to.as_str());
                    assert!(known, "{}: {from} must not use {to}: {line}", path.display());
                }
            }
        }
    }
}

#[test]
fn pure_modules_neither_wait_nor_lock_nor_read_a_clock() {
    for name in ["forward", "control", "notice"] {
        for path in module(name).iter().filter(|p| !is_test(p)) {
            for line in code(path) {
                for word in [
                    ".await",
                    "Mutex",
                    "RwLock",
                    "spawn(",
                    "Instant::now",
                    "SystemTime::now",
                    "std::env",
                    "HashMap",
                ] {
                    assert!(!line.contains(word), "{}: {word} in a pure module: {line}", path.display());
                }
            }
        }
    }
}

/// Debug and trace lines are for who reads the source; all else is in the catalogue, with its remedy.
#[test]
fn what_an_operator_is_told_is_a_notice() {
    let mut all = Vec::new();
    sources(&root().join("mesh-node/src"), &mut all);
    for path in all.iter().filter(|p| !is_test(p) && !p.ends_with("notice/catalogue.rs")) {
        for line in code(path) {
            for word in ["info!(", "warn!(", "error!("] {
                assert!(
                    !line.contains(word),
                    "{}: {word} outside the catalogue: make it a Notice of notice/catalogue.rs: {line}",
                    path.display()
                );
            }
        }
    }
}

#[test]
fn every_path_that_the_architecture_names_exists() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let mut checked = 0;
    for quoted in text.split('`').skip(1).step_by(2) {
        let path_like =
            quoted.contains('/') && quoted.chars().all(|c| c.is_alphanumeric() || "/_-.".contains(c));
        if !path_like {
            continue;
        }
        let candidates = [root().join(quoted), root().join("mesh-node/src").join(quoted)];
        let there = candidates.iter().any(|c| c.exists() || c.with_extension("rs").exists());
        assert!(there, "ARCHITECTURE.md names {quoted}, which does not exist");
        checked += 1;
    }
    assert!(checked > 10);
}

#[test]
fn files_are_of_a_readable_size() {
    let mut all = Vec::new();
    for krate in ["mesh-proto/src", "mesh-node/src", "mesh-ctl/src"] {
        sources(&root().join(krate), &mut all);
    }
    for path in all.iter().filter(|p| !is_test(p)) {
        let lines = code(path).len();
        assert!(
            lines <= 560,
            "{} has {lines} lines before its tests: does it still have one job?",
            path.display()
        );
    }
}

#[test]
fn the_bounds_of_queues_are_those_of_the_sources() {
    let text = fs::read_to_string(root().join("docs/queues.md")).unwrap();
    let mut checked = 0;
    for line in text.lines().filter(|line| line.starts_with('|')) {
        let mut source = None;
        for quoted in line.split('`').skip(1).step_by(2) {
            if quoted.starts_with("mesh-node/src/") {
                source = Some(fs::read_to_string(root().join(quoted)).unwrap());
            } else if let (Some(source), Some((name, value))) = (&source, quoted.split_once(" = ")) {
                let rest = source.split_once(&format!("const {name}: ")).map(|(_, rest)| rest);
                let found =
                    rest.and_then(|rest| rest.split_once(';')).and_then(|(all, _)| all.split_once(" = "));
                assert_eq!(found.map(|(_, value)| value), Some(value), "docs/queues.md on {name}");
                checked += 1;
            }
        }
    }
    assert!(checked >= 10, "{checked}");
    // what `status --verbose` calls a queue is explained there
    let shown = fs::read_to_string(root().join("mesh-node/src/control/slowness.rs")).unwrap();
    for name in [
        "tun_read",
        "tun_write",
        "send_buffer",
        "udp_send",
        "udp_waiting",
        "udp_receive",
        "receive_buffer",
        "backlog",
        "inbound",
    ] {
        assert!(shown.contains(&format!("\"{name}\"")) && text.contains(&format!("`{name}`")), "{name}");
    }
}
