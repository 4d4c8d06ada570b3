//! Walking the document with the place of every value at hand.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use mesh_proto::{Prefix, suggest};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{AnnounceConfig, Config, ConfigError, ProbeParams, parsed, probe_interval, reference};

/// One table of the file.
pub(super) struct Section<'a> {
    table: &'a DeTable<'a>,
    /// Of its header.
    pub(super) line: usize,
}

impl Section<'_> {
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.get(key).is_some()
    }
}

/// The text, and what was found wrong so far.
pub(super) struct Walk<'a> {
    text: &'a str,
    path: PathBuf,
    pub(super) errors: Vec<ConfigError>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(text: &'a str, path: &Path) -> Self {
        Self { text, path: path.to_owned(), errors: Vec::new() }
    }

    fn line(&self, offset: usize) -> usize {
        self.text.bytes().take(offset).filter(|b| *b == b'\n').count() + 1
    }

    pub(super) fn error(&mut self, line: usize, text: String) {
        self.errors.push(ConfigError { path: self.path.clone(), line, text });
    }

    fn bad(&mut self, key: &str, value: &Spanned<DeValue<'_>>, what: &str) {
        let raw = self.text.get(value.span()).unwrap_or_default().replace('\n', " ");
        let line = self.line(value.span().start);
        self.error(line, format!("{key} = {raw}: {what}"));
    }

    /// The value of this key is wrong.
    pub(super) fn at(&mut self, s: &Section<'_>, key: &str, what: &str) {
        if let Some(value) = s.table.get(key) {
            self.bad(key, value, what);
        }
    }

    pub(super) fn need(&mut self, s: &Section<'_>, key: &str) {
        if !s.has(key) {
            self.error(s.line, format!("{key}: missing; add it to this table"));
        }
    }

    /// Refuses every key that the reference does not have for this table; `later` are those of versions to come.
    pub(super) fn keys(&mut self, s: &Section<'_>, table: &str, later: &[&str]) {
        self.only(s, &reference::names(table), later);
    }

    fn only(&mut self, s: &Section<'_>, known: &[&str], later: &[&str]) {
        for (key, value) in s.table.iter() {
            let name: &str = key.get_ref();
            if later.contains(&name) {
                self.bad(name, value, "not supported by this version; remove it");
            } else if !known.contains(&name) {
                let hint = suggest::or_else(name, known.iter().copied(), "remove it");
                self.bad(name, value, &format!("unknown key; {hint}"));
            }
        }
    }

    pub(super) fn is_empty_list(&self, s: &Section<'_>, key: &str) -> bool {
        s.table.get(key).and_then(|v| v.get_ref().as_array()).is_some_and(|list| list.is_empty())
    }

    pub(super) fn is_text(&self, s: &Section<'_>, key: &str, text: &str) -> bool {
        s.table.get(key).and_then(|v| v.get_ref().as_str()) == Some(text)
    }

    /// `None` where it is something else.
    pub(super) fn is_truth(&self, s: &Section<'_>, key: &str) -> Option<bool> {
        s.table.get(key)?.get_ref().as_bool()
    }

    pub(super) fn truth(&mut self, s: &Section<'_>, key: &str) -> Option<bool> {
        let truth = self.is_truth(s, key);
        if truth.is_none() {
            self.at(s, key, "is neither true nor false; write it without quotes");
        }
        truth
    }

    pub(super) fn text(&mut self, s: &Section<'_>, key: &str) -> Option<String> {
        self.one(
            s,
            key,
            |t| if t.is_empty() { Err("is empty; give a path".into()) } else { Ok(t.to_owned()) },
        )
    }

    fn item<T>(
        &mut self,
        key: &str,
        v: &Spanned<DeValue<'_>>,
        f: &impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let result = match v.get_ref().as_str() {
            Some(text) => f(text),
            None => Err("is not a string; put it in quotes".into()),
        };
        result.map_err(|what| self.bad(key, v, &what)).ok()
    }

    pub(super) fn one<T>(
        &mut self,
        s: &Section<'_>,
        key: &str,
        f: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let value = s.table.get(key)?;
        self.item(key, value, &f)
    }

    /// A string or a list of strings.
    pub(super) fn many<T>(
        &mut self,
        s: &Section<'_>,
        key: &str,
        f: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        match s.table.get(key) {
            None => Vec::new(),
            Some(value) => match value.get_ref().as_array() {
                Some(list) => list.iter().filter_map(|v| self.item(key, v, &f)).collect(),
                None => self.item(key, value, &f).into_iter().collect(),
            },
        }
    }

    pub(super) fn number(&mut self, s: &Section<'_>, key: &str, min: u32, max: u32) -> Option<u32> {
        let value = s.table.get(key)?;
        let number = value
            .get_ref()
            .as_integer()
            .and_then(|i| u32::from_str_radix(&i.as_str().replace('_', ""), i.radix()).ok());
        let number = number.filter(|n| (min..=max).contains(n));
        if number.is_none() {
            self.bad(key, value, &format!("is not a number in range; give {min} to {max}"));
        }
        number
    }

    pub(super) fn announce(&mut self, s: &Section<'_>) -> Vec<AnnounceConfig> {
        let Some(value) = s.table.get("announce") else { return Vec::new() };
        let items: Vec<_> = match value.get_ref().as_array() {
            Some(list) => list.iter().collect(),
            None => vec![value],
        };
        items.into_iter().filter_map(|v| self.announce_item(v)).collect()
    }

    fn announce_item(&mut self, v: &Spanned<DeValue<'_>>) -> Option<AnnounceConfig> {
        let Some(table) = v.get_ref().as_table() else {
            let prefix = self.item("announce", v, &parsed)?;
            return Some(AnnounceConfig { prefix, via: None, internet_own: true });
        };
        let s = Section { table, line: self.line(v.span().start) };
        self.keys(&s, "announce", &[]);
        self.need(&s, "prefix");
        let prefix: Option<Prefix> = self.one(&s, "prefix", parsed);
        let via: Option<IpAddr> = self.one(&s, "via", parsed);
        let own = self.one(&s, "internet", |t| match t {
            "own" => Ok(true),
            "egress" => Ok(false),
            _ => Err("write \"own\" or \"egress\"".into()),
        });
        if let (Some(p), Some(a)) = (prefix, via)
            && p.is_v4() != a.is_ipv4()
        {
            self.at(&s, "via", "is of another family than the prefix; give an address of the same");
        }
        Some(AnnounceConfig { prefix: prefix?, via, internet_own: own.unwrap_or(true) })
    }

    /// `probe = { interval = "50ms", multiplier = 3 }`; what is left out is as it is by default.
    pub(super) fn probe(&mut self, s: &Section<'_>) -> Option<ProbeParams> {
        let value = s.table.get("probe")?;
        let Some(table) = value.get_ref().as_table() else {
            self.bad("probe", value, "is no table; write it as { interval = \"50ms\", multiplier = 3 }");
            return None;
        };
        let s = Section { table, line: self.line(value.span().start) };
        self.keys(&s, "probe", &[]);
        let interval = self.one(&s, "interval", probe_interval).unwrap_or(ProbeParams::DEFAULT.interval);
        let multiplier =
            self.number(&s, "multiplier", 2, 50).map_or(ProbeParams::DEFAULT.multiplier, |n| n as u8);
        Some(ProbeParams { interval, multiplier })
    }

    fn tables<T>(
        &mut self,
        root: &Section<'_>,
        key: &str,
        read: fn(&mut Walk<'_>, &Section<'_>) -> Option<T>,
    ) -> Vec<T> {
        let Some(value) = root.table.get(key) else { return Vec::new() };
        let Some(list) = value.get_ref().as_array() else {
            self.bad(key, value, &format!("is not a list of tables; write [[{key}]]"));
            return Vec::new();
        };
        let mut out = Vec::new();
        for v in list.iter() {
            match v.get_ref().as_table() {
                Some(table) => out.extend(read(self, &Section { table, line: self.line(v.span().start) })),
                None => self.bad(key, v, &format!("is not a table; write [[{key}]]")),
            }
        }
        out
    }

    pub(super) fn document(&mut self, path: &Path) -> Config {
        let (root, errors) = DeTable::parse_recoverable(self.text);
        for e in &errors {
            let line = self.line(e.span().map_or(0, |s| s.start));
            self.error(line, format!("{}; correct the syntax", e.message()));
        }
        let root = Section { table: root.get_ref(), line: 1 };
        self.only(&root, &["node", "peer", "network", "egress"], &["issuer"]);
        let empty = DeTable::new();
        let table = match root.table.get("node") {
            None => &empty,
            Some(v) => v.get_ref().as_table().unwrap_or_else(|| {
                self.bad("node", v, "is not a table; write [node]");
                &empty
            }),
        };
        let node = super::node(self, &Section { table, line: 1 });
        let peers = self.tables(&root, "peer", super::peer);
        let networks = self.tables(&root, "network", super::network);
        let egress = self.tables(&root, "egress", super::egress);
        Config { path: path.to_owned(), node, peers, networks, egress }
    }
}
