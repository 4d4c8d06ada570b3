//! Running other programs: one place that knows how to enter a namespace and how long to wait.

use anyhow::{Context, Result, bail};
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// No command of the lab may take longer; a stuck one must not hang the whole test run.
const LIMIT: Duration = Duration::from_secs(120);

/// What a finished command said.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Exit status; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Outcome {
    /// Did it exit with 0?
    pub fn ok(&self) -> bool {
        self.code == Some(0)
    }

    /// Both outputs, for looking for words.
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }

    /// Standard output as JSON; `Null` when it is not.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_default()
    }
}

fn words(ns: Option<&str>, args: &[&str]) -> Command {
    let mut command = match ns {
        Some(ns) => {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", ns]).args(args);
            command
        }
        None => {
            let mut command = Command::new(args.first().copied().unwrap_or("true"));
            command.args(args.get(1..).unwrap_or_default());
            command
        }
    };
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin:/usr/bin:/bin")).env("LC_ALL", "C");
    command
}

/// Runs a command (in a namespace) to its end.
pub fn run(ns: Option<&str>, args: &[&str]) -> Result<Outcome> {
    let limit = LIMIT.as_secs().to_string();
    let mut bounded = vec!["timeout", "-k", "2", limit.as_str()];
    bounded.extend(args);
    let output = words(ns, &bounded)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("run {}: is it installed? tests/deps.sh does it", args.join(" ")))?;
    Ok(Outcome {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Runs a command that has to succeed and gives its standard output.
pub fn must(ns: Option<&str>, args: &[&str]) -> Result<String> {
    let outcome = run(ns, args)?;
    if !outcome.ok() {
        let place = ns.unwrap_or("host");
        bail!("{place}$ {}: status {:?}: {}", args.join(" "), outcome.code, outcome.text().trim());
    }
    Ok(outcome.stdout)
}

/// `must` for a line without quoting.
pub fn line(ns: Option<&str>, text: &str) -> Result<String> {
    must(ns, &text.split_whitespace().collect::<Vec<_>>())
}

/// Starts a command in a namespace; both outputs are appended to `log`.
///
/// `ip netns exec` replaces itself, so the child's id is the program's own.
pub fn spawn(ns: &str, args: &[&str], env: &[(&str, &str)], log: &Path) -> Result<Child> {
    let file = File::options().create(true).append(true).open(log)?;
    let mut command = words(Some(ns), args);
    command.envs(env.iter().copied()).stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    command.spawn().with_context(|| format!("start {} in {ns}", args.join(" ")))
}

/// Sends a signal by name (`TERM`, `KILL`, `STOP`) to one process.
pub fn signal(pid: u32, name: &str) -> Result<()> {
    let pid = pid.to_string();
    // The shell's own kill: a minimal Debian has no other.
    must(None, &["sh", "-c", "kill -s \"$0\" \"$1\"", name, &pid]).map(drop)
}
