//! nftables by its own program: text in, text out. It alone knows its binary format across versions.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::HostError;
use crate::control::host::lease::without_elements;

/// Long enough for a table of thousands of elements on a busy host, short enough for a stop.
const PATIENCE: Duration = Duration::from_secs(5);

async fn run(arguments: &[&str], input: &str) -> Result<String, HostError> {
    let failed = |why: String| HostError::Nft { what: arguments.join(" "), why };
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| failed(format!("{e}; is nftables installed?")))?;
    let mut stdin = child.stdin.take();
    let work = async move {
        if let Some(stdin) = &mut stdin {
            stdin.write_all(input.as_bytes()).await?;
        }
        // Closed: the program waits for the end of its input.
        drop(stdin.take());
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(PATIENCE, work)
        .await
        .map_err(|_| failed(format!("no answer within {} s", PATIENCE.as_secs())))?
        .map_err(|e| failed(e.to_string()))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        return Err(failed(message.trim().chars().take(500).collect()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Carries out statements in one transaction.
pub(super) async fn apply(text: &str) -> Result<(), HostError> {
    run(&["-f", "-"], text).await.map(drop)
}

/// Our table as nft prints it, without counters and what runs out by itself; `None` if it is not there.
pub(super) async fn own_table() -> Option<String> {
    let listing = run(&["-s", "list", "table", "inet", "mesh"], "").await.ok()?;
    Some(without_elements(&listing))
}

/// Everybody's tables as JSON.
pub(super) async fn everything() -> Result<serde_json::Value, HostError> {
    let text = run(&["-j", "-s", "-a", "list", "ruleset"], "").await?;
    serde_json::from_str(&text)
        .map_err(|e| HostError::Nft { what: "-j list ruleset".to_owned(), why: e.to_string() })
}
