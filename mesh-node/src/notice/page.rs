//! `docs/messages.md`, written from the catalogue.

use std::fmt::Write as _;

use super::{CATALOGUE, Level, Limit};

/// What the values mean, the same in all notices.
pub(super) const FIELDS: &[(&str, &str)] = &[
    ("address", "address and port on this host"),
    ("after", "value in the file, as TOML"),
    ("before", "value in effect before, as TOML"),
    ("cause", "why, a stable word as in `mesh_egress_failovers_total`"),
    ("chain", "chain, table and device"),
    ("command", "what to run as root"),
    ("count", "how many"),
    ("destination", "prefix that the egress node carries"),
    ("device", "TUN device"),
    ("dialed", "whether this node dialled it"),
    ("died", "whether it panicked, rather than hung"),
    ("elapsed_ms", "how long, in milliseconds; for an egress, how long nobody carried"),
    ("endpoint", "address and UDP port in the underlay"),
    ("endpoints", "those told to other nodes"),
    ("error", "what went wrong, with the values"),
    ("filter", "what is logged"),
    ("from", "node it came from; for an egress, those that carried before"),
    ("interface", "network interface of this host"),
    ("key", "section and key of the configuration file"),
    ("listen", "address and port of the UDP socket"),
    ("mesh", "name of the mesh"),
    ("missed", "lines left out"),
    ("network", "name of the network"),
    ("node", "name of a node by its certificate"),
    ("of", "stable name of what was held back"),
    ("offload", "its name, as in the file"),
    ("offloads", "what the kernel does in larger pieces"),
    ("path", "file"),
    ("peer", "name of the other node; its endpoint while no node is known there"),
    ("reason", "stable word, as in the metrics"),
    ("state", "whether it is in effect"),
    ("subject", "the peer, network or other value they had in common"),
    ("text", "the reason in words, as the other side gave it or as seen here"),
    ("thread", "name of the thread"),
    ("to", "nodes that carry from now on"),
    ("tun", "TUN device"),
    ("until", "when it ends"),
    ("version", "of the program"),
    ("what", "what it was"),
    ("worker", "packet worker, from 0"),
];

const OPENING: &str = "\
# Messages

Everything a node tells its operator, at `info` and above. Each message has a stable name (`event`), a level, a sentence,
values, and a `remedy` wherever something can be done. Debug and trace lines are for who reads the source; they are not listed.
This page is written from the node's own list: `MESH_WRITE_DOCS=1 cargo test -p mesh-node messages`.

Where they go, by `--log-format`, which is `auto` unless told otherwise:

- `human`, on a terminal: one line, the sentence, then `name=value`.
- `journald`, where stderr is the journal's: the message is the line as above; each value is also a field, upper-case with the
  prefix `MESH_`: `journalctl -u mesh-node MESH_EVENT=tunnel_down MESH_PEER=ph2`.
- `json`, anywhere else: one object a line with `timestamp`, `level`, `message`, `event`, the values, `remedy`.
- `mesh-ctl monitor`: one object a line with `schema`, `time`, `event`, `level`, `message`, `fields`, `remedy`, whatever the
  log's filter says.

What is logged: `RUST_LOG` at the start (default `info`), `mesh-ctl log-level FILTER` while the node runs, until its next start.
A filter is a level (`error`, `warn`, `info`, `debug`, `trace`, `off`), or `TARGET=LEVEL`, several with commas between; a bare
word is never a target, so that a mistyped level is refused. All messages of this page have the target `mesh_node::notice`.

Messages that others can cause are limited: a burst of ten, then one in five seconds. A message after some that were held back
says how many in `suppressed`; when it has been quiet for ten seconds the message `suppressed` tells the rest.
";

/// The page.
pub(super) fn page() -> String {
    let mut out = OPENING.to_owned();
    for (level, title) in [(Level::Error, "Errors"), (Level::Warn, "Warnings"), (Level::Info, "Information")]
    {
        let _ = write!(out, "\n## {title}\n");
        for kind in CATALOGUE.iter().filter(|kind| kind.level == level) {
            let _ = write!(out, "\n### {}\n\n*{}.*{}\n", kind.event, kind.sentence, kind.about.join(""));
            let fields: Vec<String> = kind.fields.iter().map(|field| format!("`{field}`")).collect();
            if !fields.is_empty() {
                let _ = write!(out, "\n- Values: {}\n", fields.join(", "));
            } else if !kind.remedy.is_empty() || kind.limit != Limit::Free {
                out.push('\n');
            }
            match kind.limit {
                Limit::Free => {}
                Limit::Together => out.push_str("- Limited, all together\n"),
                Limit::Each => {
                    let _ = writeln!(out, "- Limited, by each {}", fields.first().map_or("", String::as_str));
                }
            }
            if !kind.remedy.is_empty() {
                let _ = writeln!(out, "- Remedy: {}", kind.remedy);
            }
        }
    }
    out.push_str("\n## Values\n\n| name | meaning |\n|---|---|\n");
    for (name, meaning) in FIELDS {
        let _ = writeln!(out, "| `{name}` | {meaning} |");
    }
    out
}
