//! What `mesh-ctl` says of itself: the schema of every answer, shell completions, manual pages.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, bail};
use clap_complete::Shell;
use mesh_proto::{api, suggest};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde_json::{Value, json};

use crate::ca;
use crate::client::Refusal;

type Answer = (&'static str, fn(SchemaGenerator) -> Schema);

/// The answer of each command, by the words it is called with.
const ANSWERS: &[Answer] = &[
    ("ca init", SchemaGenerator::into_root_schema_for::<api::Done>),
    ("ca issue", SchemaGenerator::into_root_schema_for::<api::Done>),
    ("ca show", SchemaGenerator::into_root_schema_for::<ca::Shown>),
    ("status", SchemaGenerator::into_root_schema_for::<api::Status>),
    ("peers", SchemaGenerator::into_root_schema_for::<api::Peers>),
    ("peer show", SchemaGenerator::into_root_schema_for::<api::PeerAnswer>),
    ("peer add", SchemaGenerator::into_root_schema_for::<api::Done>),
    ("peer remove", SchemaGenerator::into_root_schema_for::<api::Done>),
    ("networks", SchemaGenerator::into_root_schema_for::<api::Networks>),
    ("routes", SchemaGenerator::into_root_schema_for::<api::Routes>),
    ("route get", SchemaGenerator::into_root_schema_for::<api::RouteGet>),
    ("egress", SchemaGenerator::into_root_schema_for::<api::EgressAnswer>),
    ("egress list", SchemaGenerator::into_root_schema_for::<api::EgressAnswer>),
    ("egress use", SchemaGenerator::into_root_schema_for::<api::Done>),
    ("egress drain", SchemaGenerator::into_root_schema_for::<api::EgressDrain>),
    ("egress resume", SchemaGenerator::into_root_schema_for::<api::Done>),
    ("trace", SchemaGenerator::into_root_schema_for::<api::Trace>),
    ("log-level", SchemaGenerator::into_root_schema_for::<api::LogLevel>),
    ("monitor", SchemaGenerator::into_root_schema_for::<api::Event>),
    ("ping", SchemaGenerator::into_root_schema_for::<api::Ping>),
    ("reload", SchemaGenerator::into_root_schema_for::<api::Reload>),
    ("completions", SchemaGenerator::into_root_schema_for::<Script>),
    ("man", SchemaGenerator::into_root_schema_for::<api::Done>),
];

/// Key of what any command prints when it is refused, or cannot ask the node.
const REFUSAL: &str = "problem";

/// A completion script.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Script {
    /// `SCHEMA`.
    schema: u32,
    /// For which shell.
    shell: String,
    /// Its text.
    pub(crate) script: String,
}

/// Every answer's schema (draft 2020-12) by command, or that of one command.
pub(crate) fn schema(command: &[String]) -> anyhow::Result<Value> {
    let all =
        ANSWERS.iter().copied().chain([(REFUSAL, SchemaGenerator::into_root_schema_for::<Refusal> as _)]);
    if command.is_empty() {
        let mut found = json!({ "schema": api::SCHEMA });
        for (name, make) in all {
            found[name] = described(name, make);
        }
        return Ok(found);
    }
    let asked = command.join(" ");
    if let Some((name, make)) = all.clone().find(|(name, _)| *name == asked) {
        return Ok(described(name, make));
    }
    let hint = suggest::or_else(&asked, all.map(|(name, _)| name), "`mesh-ctl schema` has all");
    bail!("no command {asked} with an answer: {hint}")
}

fn described(name: &str, make: fn(SchemaGenerator) -> Schema) -> Value {
    let mut schema = make(SchemaSettings::draft2020_12().for_serialize().into_generator()).to_value();
    let title = if name == REFUSAL { "any refusal".to_owned() } else { format!("mesh-ctl {name} --json") };
    schema["title"] = json!(title);
    pin_version(&mut schema);
    schema
}

/// The field `schema` has one value in all objects of this version.
fn pin_version(part: &mut Value) {
    match part {
        Value::Object(fields) => {
            if let Some(version) = fields.get_mut("properties").and_then(|p| p.get_mut("schema")) {
                *version = json!({ "const": api::SCHEMA, "description": "Version of all answers." });
            }
            fields.values_mut().for_each(pin_version);
        }
        Value::Array(items) => items.iter_mut().for_each(pin_version),
        _ => {}
    }
}

/// The completion script of a shell.
pub(crate) fn completions(shell: Shell, mut command: clap::Command) -> anyhow::Result<Script> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "mesh-ctl", &mut script);
    let script = String::from_utf8(script).context("the script is no text")?;
    Ok(Script { schema: api::SCHEMA, shell: shell.to_string(), script })
}

/// Writes one manual page for each command.
pub(crate) fn man(dir: &Path, command: clap::Command) -> anyhow::Result<String> {
    fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    let mut pages = Vec::new();
    render(command.disable_help_subcommand(true), &mut pages)?;
    for (name, text) in &pages {
        let file = dir.join(name);
        fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
    }
    let page = dir.join("mesh-ctl.1");
    let count = pages.len();
    Ok(format!(
        "{count} manual pages written to {}: `man -l {}` shows the first\n",
        dir.display(),
        page.display()
    ))
}

fn render(mut command: clap::Command, pages: &mut Vec<(String, String)>) -> anyhow::Result<()> {
    command.build();
    for sub in command.get_subcommands().cloned() {
        render(sub, pages)?;
    }
    let page = clap_mangen::Man::new(command);
    let mut text = Vec::new();
    page.render(&mut text)?;
    // what stands after the help is its examples
    let text = String::from_utf8(text)?.replace(".SH EXTRA\n", ".SH EXAMPLES\n");
    pages.push((page.get_filename(), text));
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::Cli;

    /// Each command that does something by itself, with the words that call it.
    fn called(command: &clap::Command, words: &str, found: &mut Vec<(String, clap::Command)>) {
        for sub in command.get_subcommands().filter(|c| c.get_name() != "help") {
            let words = format!("{words} {}", sub.get_name());
            found.push((words.trim().to_owned(), sub.clone()));
            called(sub, &words, found);
        }
    }

    fn commands() -> Vec<(String, clap::Command)> {
        let mut found = Vec::new();
        called(&Cli::command(), "", &mut found);
        found
    }

    #[test]
    fn every_command_has_a_schema_of_its_answer() {
        let shown = schema(&[]).unwrap();
        let acts = |c: &clap::Command| !c.is_subcommand_required_set();
        let mut wanted: Vec<String> =
            commands().into_iter().filter(|(_, c)| acts(c)).map(|(words, _)| words).collect();
        wanted.push(REFUSAL.to_owned());
        wanted.sort();
        let mut found: Vec<&str> = shown.as_object().unwrap().keys().map(String::as_str).collect();
        found.sort();
        // the key `schema` is the version, as in every answer; that command's answer is what is looked at here
        assert_eq!(found, wanted);
        assert_eq!(shown["schema"], 1);
        for words in found.iter().filter(|words| **words != "schema") {
            assert_eq!(shown[words]["$schema"], "https://json-schema.org/draft/2020-12/schema", "{words}");
            let text = shown[words].to_string();
            assert!(text.contains(r#""const":1"#), "{words}: an answer without version: {text}");
        }
    }

    #[test]
    fn one_command_is_asked_for_by_its_words_and_a_slip_gets_a_hint() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(schema(&words("route get")).unwrap()["title"], "mesh-ctl route get --json");
        assert!(schema(&words("route gte")).unwrap_err().to_string().contains("did you mean route get?"));
    }

    #[test]
    fn every_command_s_help_has_an_example() {
        let all = commands();
        assert!(all.len() > 15);
        for (words, command) in all.iter().chain([&(String::new(), Cli::command())]) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example"), "mesh-ctl {words} --help has no example");
            let called = help.contains("mesh-ctl") && help.contains(command.get_name());
            assert!(called, "mesh-ctl {words}: another command's example: {help}");
            assert!(command.get_about().is_some(), "mesh-ctl {words} does not say what it is for");
        }
    }

    #[test]
    fn completions_of_the_common_shells_name_the_commands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = completions(shell, Cli::command()).unwrap().script;
            assert!(["networks", "egress", "no-color"].iter().all(|w| script.contains(w)), "{shell}");
        }
    }

    #[test]
    fn each_command_has_a_manual_page_with_its_example() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("man1");
        man(&dir, Cli::command()).unwrap();
        for (words, command) in commands() {
            let page = dir.join(format!("mesh-ctl-{}.1", words.replace(' ', "-")));
            let text = fs::read_to_string(&page).unwrap_or_else(|e| panic!("{}: {e}", page.display()));
            assert!(text.contains("Example"), "{}", page.display());
            assert!(text.contains(command.get_name()));
        }
        assert!(fs::read_to_string(dir.join("mesh-ctl.1")).unwrap().contains("Exit status"));
    }

    #[test]
    fn a_mistyped_command_or_option_is_answered_with_the_one_meant() {
        for (line, meant) in [
            ("mesh-ctl statsu", "'status'"),
            ("mesh-ctl peer shwo ph2", "'show'"),
            ("mesh-ctl status --jsn", "'--json'"),
            ("mesh-ctl routes --netwrok blue", "'--network'"),
        ] {
            let error = Cli::command().try_get_matches_from(line.split(' ')).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
            assert!(error.to_string().contains(meant), "{line}: {error}");
        }
    }
}
