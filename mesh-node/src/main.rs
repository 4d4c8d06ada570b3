//! Arguments, logging, start, wait for a signal, stop.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand, ValueEnum};
use mesh_node::io::log::{self, Format};
use mesh_node::{node, prepare};
use tokio::signal::unix::{SignalKind, signal};

/// Joins this host's host-only networks to the mesh.
#[derive(Parser)]
#[command(name = "mesh-node", version, after_help = "Example: mesh-node check --config /etc/mesh/node.toml")]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Configuration file.
    #[arg(long, global = true, default_value = "/etc/mesh/node.toml")]
    config: PathBuf,
    /// How to log; `auto` is for people on a terminal, fields where stderr is the journal's, else JSON.
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
    Journald,
}

impl From<LogFormat> for Format {
    fn from(told: LogFormat) -> Self {
        match told {
            LogFormat::Auto => Self::Auto,
            LogFormat::Human => Self::Human,
            LogFormat::Json => Self::Json,
            LogFormat::Journald => Self::Journald,
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let log = log::start(arguments.log_format.into());
    // quinn's tasks carry packets too: of the same rank as the packet threads, or those starve them
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.enable_all().on_thread_start(mesh_node::packet_loop::prioritise);
    // one that waits for the disk must not keep the control loop from turning
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    builder.worker_threads(cores.max(2));
    let runtime = match builder.build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("mesh-node: start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let done = runtime.block_on(async {
        // from now on a signal is kept until the node is up, and then stops it properly
        let stop = node::StopSignal::listen().context("listen for signals")?;
        let hangup = signal(SignalKind::hangup()).context("listen for signals")?;
        if !matches!(arguments.command, Some(Command::Check)) {
            mesh_node::packet_loop::prioritise_session();
            mesh_node::io::lane::outlet::allow_many();
        }
        let prepared = prepare::prepare(&arguments.config).await?;
        if matches!(arguments.command, Some(Command::Check)) {
            println!("{}: fine", arguments.config.display());
            return Ok(());
        }
        node::run(prepared, log, stop, hangup).await
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
