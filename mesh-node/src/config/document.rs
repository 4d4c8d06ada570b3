//! The file as sections, keys and values: what differs between two of them is what a reload changes.

use std::collections::BTreeMap;

use toml::{Table, Value};

use super::reference::{self, OnReload};

/// An accepted configuration file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Document(BTreeMap<String, BTreeMap<String, String>>);

/// A difference between two documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// `node`, `peer ENDPOINT`, `network NAME`, `egress NETWORK INTERFACE`.
    pub section: String,
    /// `None`: the whole section.
    pub key: Option<String>,
    /// Value before, as TOML; empty for a whole section.
    pub before: Option<String>,
    /// Value after, as TOML.
    pub after: Option<String>,
}

impl Change {
    /// Whether it counts at the next start only.
    pub fn at_start(&self) -> bool {
        let table = self.section.split(' ').next().unwrap_or_default();
        let known = self.key.as_deref().and_then(|key| reference::key(table, key));
        known.is_some_and(|key| key.on_reload == OnReload::Restart)
    }

    /// As an operator names it.
    pub fn name(&self) -> String {
        match &self.key {
            Some(key) => format!("{}: {key}", self.section),
            None => self.section.clone(),
        }
    }
}

impl Document {
    /// Of a text that was accepted; nothing of one that is no TOML.
    pub fn new(text: &str) -> Self {
        let Ok(document) = text.parse::<Table>() else { return Self::default() };
        let mut sections = BTreeMap::from([("node".to_owned(), BTreeMap::new())]);
        for (kind, value) in document {
            match value {
                Value::Table(table) => drop(sections.insert(kind, keys(&table))),
                Value::Array(list) => {
                    for table in list.iter().filter_map(Value::as_table) {
                        sections.insert(section(&kind, table), keys(table));
                    }
                }
                _ => {}
            }
        }
        Self(sections)
    }

    /// What has to change for `self` to become `new`.
    pub fn changes(&self, new: &Self) -> Vec<Change> {
        let mut changes = Vec::new();
        let whole = |section: &str, there: bool| Change {
            section: section.to_owned(),
            key: None,
            before: (!there).then(String::new),
            after: there.then(String::new),
        };
        for (section, before) in &self.0 {
            let Some(after) = new.0.get(section) else {
                changes.push(whole(section, false));
                continue;
            };
            let mut names: Vec<&String> = before.keys().chain(after.keys()).collect();
            names.sort();
            names.dedup();
            for name in names.into_iter().filter(|name| before.get(*name) != after.get(*name)) {
                changes.push(Change {
                    section: section.clone(),
                    key: Some(name.clone()),
                    before: before.get(name).cloned(),
                    after: after.get(name).cloned(),
                });
            }
        }
        let added = new.0.keys().filter(|section| !self.0.contains_key(*section));
        changes.extend(added.map(|section| whole(section, true)));
        changes
    }

    /// This document as it is in effect: with the former values of what counts at the next start only.
    pub fn in_effect(mut self, former: &Self) -> Self {
        let empty = BTreeMap::new();
        let (old, node) =
            (former.0.get("node").unwrap_or(&empty), self.0.entry("node".to_owned()).or_default());
        let at_start = reference::names("node").into_iter().filter(|name| {
            reference::key("node", name).is_some_and(|key| key.on_reload == OnReload::Restart)
        });
        for key in at_start {
            match old.get(key) {
                Some(value) => drop(node.insert(key.to_owned(), value.clone())),
                None => drop(node.remove(key)),
            }
        }
        self
    }
}

fn keys(table: &Table) -> BTreeMap<String, String> {
    table.iter().map(|(key, value)| (key.clone(), value.to_string())).collect()
}

/// What tells one table of a list from the others.
fn section(kind: &str, table: &Table) -> String {
    let by: &[&str] = match kind {
        "peer" => &["endpoint"],
        "egress" => &["network", "interface"],
        _ => &["name"],
    };
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let parts = by.iter().filter_map(|key| Some(text(table.get(*key)?)));
    std::iter::once(kind.to_owned()).chain(parts).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = r#"
        [node]
        listen = "0.0.0.0:4650"
        mtu = 1400
        [[peer]]
        endpoint = "198.51.100.12:4650"
        [[network]]
        name = "default"
        announce = ["203.0.113.14/32"]
        [[egress]]
        network = "default"
        interface = "eth0"
    "#;

    fn names(before: &str, after: &str) -> Vec<String> {
        Document::new(before).changes(&Document::new(after)).iter().map(Change::name).collect()
    }

    #[test]
    fn order_and_comments_are_no_change() {
        let after = BEFORE.replace("mtu = 1400\n", "").replace("[node]", "[node] # here\nmtu = 1_400");
        assert_eq!(names(BEFORE, &after), Vec::<String>::new());
        assert_eq!(names("", "[node]\n"), Vec::<String>::new());
    }

    #[test]
    fn keys_and_sections_that_differ_are_named() {
        let after = BEFORE
            .replace("1400", "1300")
            .replace("113.14", "113.15")
            .replace("198.51.100.12", "198.51.100.13")
            .replace("interface = \"eth0\"", "interface = \"eth0\"\npriority = 7");
        let expected = [
            "egress default eth0: priority",
            "network default: announce",
            "node: mtu",
            "peer 198.51.100.12:4650",
            "peer 198.51.100.13:4650",
        ];
        assert_eq!(names(BEFORE, &after), expected);
    }

    #[test]
    fn what_waits_for_a_start_is_told_again_at_each_reload_until_then() {
        let running = Document::new(BEFORE);
        let file = Document::new(&BEFORE.replace("0.0.0.0:4650", "0.0.0.0:4651").replace("1400", "1300"));
        let waiting = |running: &Document| {
            running.changes(&file).iter().map(|c| (c.name(), c.at_start())).collect::<Vec<_>>()
        };
        let listen = ("node: listen".to_owned(), true);
        assert_eq!(waiting(&running), [listen.clone(), ("node: mtu".to_owned(), false)]);
        let running = file.clone().in_effect(&running);
        assert_eq!(waiting(&running), [listen]);
    }
}
