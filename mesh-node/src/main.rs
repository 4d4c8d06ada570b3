//! Arguments, logging, start, wait for a signal, stop.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand, ValueEnum};
use mesh_node::{node, prepare};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Joins this host's host-only networks to the mesh.
#[derive(Parser)]
#[command(name = "mesh-node", version, after_help = "Example: mesh-node check --config /etc/mesh/node.toml")]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Configuration file.
    #[arg(long, global = true, default_value = "/etc/mesh/node.toml")]
    config: PathBuf,
    /// How to log: for people on a terminal, JSON otherwise.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Auto)]
    log_format: LogFormat,
}

#[derive(Subcommand)]
enum Command {
    /// Run the node (the default).
    Run,
    /// Check the configuration, the certificate and the interfaces, and exit.
    Check,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Auto,
    Human,
    Json,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    log_to_stderr(arguments.log_format);
    // quinn's tasks carry packets too: of the same rank as the packet threads, or those starve them
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.enable_all().on_thread_start(mesh_node::packet_loop::prioritise);
    let runtime = match builder.build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("mesh-node: start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let done = runtime.block_on(async {
        // from now on a signal is kept until the node is up, and then stops it properly
        let stop = stop_signal().context("listen for signals")?;
        let hangup = signal(SignalKind::hangup()).context("listen for signals")?;
        let prepared = prepare::prepare(&arguments.config).await?;
        if matches!(arguments.command, Some(Command::Check)) {
            println!("{}: fine", arguments.config.display());
            return Ok(());
        }
        node::run(prepared, stop, hangup).await
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn log_to_stderr(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let logger = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let terminal = std::io::stderr().is_terminal();
    let human = format == LogFormat::Human || (format == LogFormat::Auto && terminal);
    if human {
        logger.with_ansi(terminal && std::env::var_os("NO_COLOR").is_none()).with_target(false).init();
    } else {
        logger.json().flatten_event(true).with_target(false).init();
    }
}

fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    })
}
