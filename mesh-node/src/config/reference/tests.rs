use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::*;
use crate::config::Config;

/// Set to write docs/configuration.md instead of comparing it.
const WRITE: &str = "MESH_WRITE_DOCS";

/// Title, header as it is written, and what the table is for.
const TABLES: &[(&str, &str, &str)] = &[
    ("node", "[node]", "This host. The whole table may be left out."),
    (
        "peer",
        "[[peer]]",
        "Where to find the mesh; once for each member that is named. May be left out on a first node.",
    ),
    ("network", "[[network]]", "A network of VMs, and its segment on this host; once for each."),
    ("probe", "probe = { ... }", "The values of `probe`, in `[node]` and in a `[[peer]]`."),
    (
        "announce",
        "announce = [{ ... }]",
        "An item of a network's `announce`, where the prefix alone does not say enough.",
    ),
    (
        "egress",
        "[[egress]]",
        "Only on nodes that carry others' traffic out of the mesh; the certificate has to allow it.",
    ),
];

fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn markdown() -> String {
    let mut out = String::from(
        "# Configuration reference\n\n\
         Written from `mesh-node/src/config/reference.rs`; change it there. The file is TOML, by default\n\
         `/etc/mesh/node.toml`; `mesh-node check` reports everything that is wrong with it at once. `deploy/mesh-node.toml` is\n\
         one to start from.\n\n\
         *Reload* says what `mesh-ctl reload` or SIGHUP does with a changed value: *applied*, or *restart*: it holds from the\n\
         next start.\n",
    );
    for (table, header, purpose) in TABLES {
        _ = write!(out, "\n## `{header}`\n\n{purpose}\n");
        for k in KEYS.iter().filter(|k| k.table == *table) {
            let default = match k.default {
                REQUIRED => "none: the key is required".to_owned(),
                d if d.parse::<i64>().is_ok() || d.starts_with(['"', '[']) => format!("`{d}`"),
                d => d.to_owned(),
            };
            let reload = match k.on_reload {
                OnReload::Applied => "applied",
                OnReload::Restart => "restart",
            };
            _ = write!(
                out,
                "\n### {table}.{key}\n\n{meaning}\n\n- Type: {toml_type}\n- Default: {default}\n- Example: `{key} = {example}`\n- Reload: {reload}\n",
                key = k.key,
                meaning = k.meaning,
                toml_type = k.toml_type,
                example = k.example,
            );
        }
    }
    out
}

/// A file with little in it but this key.
fn document(k: &Key, value: &str) -> String {
    let line = format!("{} = {value}\n", k.key);
    let with = |table: &str, others: &[(&str, &str)]| {
        let mut text = format!("[[{table}]]\n");
        for (key, value) in others.iter().filter(|(key, _)| *key != k.key || k.table != table) {
            _ = writeln!(text, "{key} = {value}");
        }
        if k.table == table { text + &line } else { text }
    };
    let mut base = vec![("name", r#""default""#), ("interface", r#""br0""#)];
    // a list of two subnets needs as many prefixes
    if k.key != "subnet" {
        base.push(("subnet", r#""192.168.100.0/24""#));
    }
    match k.table {
        "node" => format!("[node]\n{line}"),
        "probe" => format!("[node]\nprobe = {{ {} = {value} }}\n", k.key),
        "peer" => with("peer", &[("endpoint", r#""198.51.100.12:4650""#)]),
        "network" => with("network", &base),
        "announce" => {
            let prefix = if k.key == "prefix" { "" } else { r#"prefix = "203.0.113.16/29", "# };
            let item = format!("[{{ {prefix}{} = {value} }}]", k.key);
            base.push(("announce", &item));
            with("network", &base)
        }
        _ => {
            let rest = with("egress", &[("network", r#""default""#), ("interface", r#""eth0""#)]);
            format!("{}{rest}", with("network", &base))
        }
    }
}

fn parse(text: &str) -> Config {
    Config::parse(text, Path::new("node.toml")).unwrap_or_else(|e| panic!("{text}\n{e}"))
}

#[test]
fn the_written_reference_is_that_of_the_code() {
    let (path, wanted) = (file("docs/configuration.md"), markdown());
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(&path, &wanted).expect("docs/configuration.md can be written");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == wanted,
        "docs/configuration.md is not what the code says: {WRITE}=1 cargo test -p mesh-node reference writes it"
    );
}

#[test]
fn each_example_is_accepted_and_each_key_is_once_in_the_table() {
    for (i, k) in KEYS.iter().enumerate() {
        parse(&document(k, k.example));
        assert_eq!(key(k.table, k.key), Some(k), "{}.{} is twice in the table", k.table, k.key);
        assert!(TABLES.iter().any(|(table, ..)| *table == k.table), "{}: no heading", k.table);
        assert!(k.meaning.ends_with('.') && k.meaning.len() > 20, "{}.{}: {}", k.table, k.key, k.meaning);
        assert!(i == 0 || KEYS[i - 1].table == k.table || !KEYS[..i].iter().any(|o| o.table == k.table));
    }
    assert_eq!(key("node", "lisen"), None);
    assert_eq!(key("peer", "listen"), None);
}

#[test]
fn a_default_written_as_a_value_is_what_a_missing_key_means() {
    for k in
        KEYS.iter().filter(|k| !["announce", "peer", "probe"].contains(&k.table) && k.default != REQUIRED)
    {
        let value = toml::from_str::<toml::Table>(&format!("{} = {}", k.key, k.default));
        if value.is_err() {
            assert!(!k.default.starts_with(['"', '[']), "{}.{}: {}", k.table, k.key, k.default);
            continue;
        }
        let with = document(k, k.default);
        let without = with.replace(&format!("{} = {}\n", k.key, k.default), "\n");
        assert_ne!(with, without);
        assert_eq!(parse(&with), parse(&without), "{}.{}", k.table, k.key);
    }
}

#[test]
fn what_the_running_node_cannot_change_needs_a_restart() {
    let found: Vec<_> = KEYS.iter().filter(|k| k.on_reload == OnReload::Restart).map(|k| k.key).collect();
    let expected = [
        "listen",
        "state_dir",
        "control_socket",
        "keepalive",
        "transport",
        "lane_packets",
        "workers",
        "offloads",
    ];
    assert_eq!(found, expected);
}

/// Lines of the example that are a setting or a header, comment marks of such lines removed.
fn settings(text: &str) -> Vec<String> {
    let lines = text.lines().map(|line| line.strip_prefix("# ").unwrap_or(line).to_owned());
    let header = |line: &str| line.starts_with('[');
    let setting = |line: &str| {
        line.split_once(" = ").is_some_and(|(key, _)| {
            !key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
        })
    };
    lines.filter(|line| header(line) || setting(line)).collect()
}

#[test]
fn the_example_file_names_every_key_and_holds_with_all_of_them_set() {
    let text = std::fs::read_to_string(file("deploy/mesh-node.toml")).expect("the example is there");
    parse(&text);
    let lines = settings(&text);
    parse(&lines.join("\n"));
    let mut table = String::new();
    let mut named = Vec::new();
    for line in &lines {
        if line.starts_with('[') {
            table = line.trim_matches(['[', ']']).to_owned();
        } else if let Some((key, value)) = line.split_once(" = ") {
            named.push((table.clone(), key.to_owned()));
            let inner = KEYS.iter().filter(|k| k.table == key && ["announce", "probe"].contains(&k.table));
            named.extend(
                inner
                    .filter(|k| value.contains(&format!("{} = ", k.key)))
                    .map(|k| (k.table.into(), k.key.into())),
            );
        }
    }
    for k in KEYS {
        assert!(
            named.contains(&(k.table.into(), k.key.into())),
            "deploy/mesh-node.toml lacks {}.{}",
            k.table,
            k.key
        );
    }
}

#[test]
fn every_configuration_shown_in_a_document_is_accepted() {
    let mut documents = vec![file("README.md")];
    let recipes = std::fs::read_dir(file("docs/recipes")).expect("there are recipes");
    documents.extend(recipes.map(|entry| entry.expect("a file").path()));
    let mut checked = 0;
    for path in documents {
        let text = std::fs::read_to_string(&path).expect("a document");
        for block in text.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()) {
            // an [[egress]] by itself belongs to the file shown before it
            let network = if block.contains("[[network]]") {
                ""
            } else {
                "[[network]]\nname = \"default\"\ninterface = \"br0\"\n"
            };
            let found = Config::parse(&format!("{block}{network}"), &path);
            assert!(
                found.is_ok(),
                "{}: {}",
                path.display(),
                found.map_or_else(|e| e.to_string(), |_| String::new())
            );
            checked += 1;
        }
    }
    assert!(checked > 5, "{checked}");
}
