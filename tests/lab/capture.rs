//! A tcpdump on one wire: start it, do something, stop it, look at what passed.

use crate::command;
use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use std::process::Child;
use std::time::Duration;

/// A running capture; it is stopped by [`Capture::stop`] or when dropped.
#[derive(Debug)]
pub struct Capture {
    child: Option<Child>,
    file: PathBuf,
}

/// What a capture saw.
#[derive(Debug)]
pub struct Seen {
    /// One line a packet, as tcpdump prints it.
    pub lines: Vec<String>,
    /// The capture file itself.
    pub bytes: Vec<u8>,
}

impl Seen {
    /// Does the file contain these bytes anywhere?
    pub fn contains(&self, needle: &[u8]) -> bool {
        self.bytes.windows(needle.len()).any(|window| window == needle)
    }

    /// The lines that contain a word.
    pub fn matching(&self, word: &str) -> Vec<&String> {
        self.lines.iter().filter(|line| line.contains(word)).collect()
    }
}

impl Capture {
    /// Starts capturing and returns when tcpdump is listening.
    pub fn start(ns: &str, interface: &str, filter: &str, file: PathBuf) -> Result<Self> {
        let name = file.to_string_lossy().into_owned();
        let log = file.with_extension("log");
        let mut args =
            vec!["tcpdump", "-n", "-U", "--immediate-mode", "-Z", "root", "-s", "0", "-i", interface];
        args.extend(["-w", &name]);
        args.extend(filter.split_whitespace());
        let child = command::spawn(ns, &args, &[], &log)?;
        let capture = Self { child: Some(child), file };
        for _ in 0..200 {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            if said.contains("listening on") {
                return Ok(capture);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!("tcpdump on {ns} {interface} did not start: {}", std::fs::read_to_string(&log)?)
    }

    /// Stops it and gives what passed.
    pub fn stop(mut self) -> Result<Seen> {
        // The last packets are on their way through the ring.
        std::thread::sleep(Duration::from_millis(200));
        if let Some(mut child) = self.child.take() {
            command::signal(child.id(), "INT")?;
            child.wait()?;
        }
        let name = self.file.to_string_lossy().into_owned();
        let text = command::must(None, &["tcpdump", "-n", "-r", &name])?;
        let bytes = std::fs::read(&self.file).with_context(|| format!("read {name}"))?;
        Ok(Seen { lines: text.lines().map(str::to_owned).collect(), bytes })
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
