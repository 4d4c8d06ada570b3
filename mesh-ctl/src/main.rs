//! `mesh-ctl`: the operator's command. Certificates it handles itself; all else it asks the node over its control socket.
//!
//! Exit status: 0 fine, 1 the asked-for thing is degraded or failed, 2 wrong usage, 3 the node is not reachable.

use std::io::{IsTerminal as _, Write as _};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::error::ErrorKind;
use clap::{ColorChoice, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use clap_complete::Shell;
use hyper::Method;
use mesh_proto::{NetworkName, api, suggest};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use self::client::{Failure, Refusal, ask, escape};

mod ca;
mod client;
mod describe;
mod drain;
mod monitor;
mod ping;
mod show;
mod slowness;
mod trace;

/// The operator's command for a mesh node
#[derive(Debug, Parser)]
#[command(name = "mesh-ctl", version, max_term_width = 100)]
#[command(after_help = "Exit status: 0 fine, 1 degraded or failed, 2 wrong usage, 3 node not reachable.\n\n\
    Example:\n  mesh-ctl status")]
struct Cli {
    /// The node's control socket
    #[arg(
        long,
        global = true,
        display_order = 901,
        value_name = "PATH",
        default_value = "/run/mesh/node.sock"
    )]
    socket: PathBuf,
    /// Print the answer as one JSON object
    #[arg(long, global = true, display_order = 902)]
    json: bool,
    /// No colours, even on a terminal
    #[arg(long, global = true, display_order = 903)]
    no_color: bool,
    /// Print errors only; the exit status tells the rest
    #[arg(short, long, global = true, display_order = 904)]
    quiet: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a CA, sign and show certificates
    #[command(subcommand, after_help = "Example:\n  mesh-ctl ca show /etc/mesh/node.pem")]
    Ca(ca::CaCommand),
    /// Is this node well? Verdict first, then reasons
    #[command(after_help = "Example:\n  mesh-ctl -q status || mesh-ctl status\n  mesh-ctl status --verbose")]
    Status {
        /// And why it may be slow: looks at the packet path's counters for a second
        #[arg(long, short)]
        verbose: bool,
    },
    /// All peers
    #[command(after_help = "Example:\n  mesh-ctl peers --json")]
    Peers,
    /// Show, add or remove a peer
    #[command(subcommand, after_help = "Example:\n  mesh-ctl peer show ph2")]
    Peer(PeerCommand),
    /// Networks of this node
    #[command(after_help = "Example:\n  mesh-ctl networks")]
    Networks,
    /// Prefixes, their owners, and whether they are installed, or why not
    #[command(after_help = "Example:\n  mesh-ctl routes --network blue")]
    Routes {
        /// Of this network alone
        #[arg(long, value_name = "N")]
        network: Option<NetworkName>,
    },
    /// Ask for the route to an address
    #[command(subcommand, after_help = "Example:\n  mesh-ctl route get 10.77.2.5")]
    Route(RouteCommand),
    /// Which node carries traffic to other networks
    #[command(after_help = "Example:\n  mesh-ctl egress list")]
    Egress {
        /// Of this network alone
        #[arg(long, global = true, value_name = "N")]
        network: Option<NetworkName>,
        #[command(subcommand)]
        command: Option<EgressCommand>,
    },
    /// Round trips, path and path MTU to a peer, or to an address of the mesh
    #[command(after_help = "Examples:\n  mesh-ctl ping ph2 --sweep\n  mesh-ctl ping 10.77.2.10 -c 1")]
    Ping(ping::PingCommand),
    /// Read the configuration anew: what is applied, what needs a restart, or why it is rejected
    #[command(after_help = "Example:\n  mesh-node check && mesh-ctl reload")]
    Reload,
    /// A packet's journey, hop by hop, and what is done to it
    #[command(after_help = "Example:\n  mesh-ctl trace 192.168.100.5 10.77.2.5 -p tcp --dport 443 --return")]
    Trace(trace::TraceArgs),
    /// What happens, as it happens: one JSON object a line, until Ctrl-C
    ///
    /// The first line is the event monitor_started. Messages of the log at info and above are told whatever the log's filter
    /// is; a reader that is too slow gets a line `lagged` with the number it missed. docs/messages.md lists all events.
    #[command(
        after_help = "Example:\n  mesh-ctl monitor | jq -r 'select(.level != \"info\") | .time + \" \" + .message'"
    )]
    Monitor,
    /// Show or change what the running node logs
    ///
    /// A change is forgotten at the node's next start: set RUST_LOG in its unit to keep it. Only root may change it.
    #[command(after_help = "Example:\n  mesh-ctl log-level info,mesh_node::control=debug")]
    LogLevel {
        /// A level (error, warn, info, debug, trace, off) or TARGET=LEVEL, several with commas between; without it, the one in force
        filter: Option<String>,
    },
    /// The JSON Schema of every answer, or of one command's
    #[command(after_help = "Example:\n  mesh-ctl schema route get > route-get.schema.json")]
    Schema {
        /// The command, as it is called
        command: Vec<String>,
    },
    /// The completion script of a shell
    #[command(after_help = "Example:\n  mesh-ctl completions bash > /etc/bash_completion.d/mesh-ctl")]
    Completions {
        /// For which shell
        shell: Shell,
    },
    /// Write the manual pages, one a command
    #[command(after_help = "Example:\n  mesh-ctl man /usr/local/share/man/man1")]
    Man {
        /// Where to write; made if missing
        dir: PathBuf,
    },
}

impl Command {
    /// The network that was named, which has to be one of the node's.
    fn network(&self) -> Option<&NetworkName> {
        match self {
            Self::Routes { network }
            | Self::Route(RouteCommand::Get { network, .. })
            | Self::Egress { network, .. } => network.as_ref(),
            Self::Trace(args) => args.network(),
            Self::Ping(command) => command.network.as_ref(),
            _ => None,
        }
    }
}

#[derive(Debug, Subcommand)]
enum PeerCommand {
    /// All that is known of a peer
    #[command(after_help = "Example:\n  mesh-ctl peer show ph2")]
    Show {
        /// Its name, or its endpoint while no node is known there
        name: String,
    },
    /// Connect to a node, also after a restart
    #[command(after_help = "Example:\n  mesh-ctl peer add 198.51.100.12:4650")]
    Add {
        /// HOST:PORT
        endpoint: String,
    },
    /// Forget a peer that was added
    #[command(after_help = "Example:\n  mesh-ctl peer remove ph2")]
    Remove {
        /// Its name, or its endpoint while no node is known there
        name: String,
    },
}

#[derive(Debug, Subcommand)]
enum RouteCommand {
    /// The longest match for an address in each network
    #[command(after_help = "Example:\n  mesh-ctl route get 10.77.2.5")]
    Get {
        /// The address
        address: IpAddr,
        /// In this network alone
        #[arg(long, value_name = "N")]
        network: Option<NetworkName>,
    },
}

#[derive(Debug, Subcommand)]
enum EgressCommand {
    /// Per network and destination: who carries it, who could
    #[command(after_help = "Example:\n  mesh-ctl egress list --network blue")]
    List,
    /// Let this node carry, whatever the order says, as long as it is alive; `auto` undoes it. Survives a restart
    #[command(after_help = "Example:\n  mesh-ctl egress use ph1 --network blue")]
    Use {
        /// An egress node, or `auto`
        node: String,
    },
    /// Take this node's own egress out of use: new flows go elsewhere at once, those in progress have until the deadline
    ///
    /// Until then nothing is lost; then TCP connections that are left are reset on both sides. It stays out of use until `egress
    /// resume`, also over a restart.
    #[command(after_help = "Example:\n  mesh-ctl egress drain --deadline 10m --wait")]
    Drain(drain::DrainArgs),
    /// Take this node's own egress into use again; flows that have moved stay where they are
    #[command(after_help = "Example:\n  mesh-ctl egress resume")]
    Resume,
}

/// What a command found: for people, for programs (null if it was told as it came), and whether it is well.
struct Outcome {
    text: String,
    value: Value,
    good: bool,
}

/// The clock, asked once.
#[expect(clippy::disallowed_methods, reason = "certificates begin and end by the wall clock")]
fn now() -> anyhow::Result<i64> {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(since.context("the clock is before 1970: set it")?.as_secs())
        .context("the clock is too far ahead")
}

/// Also refuses, as wrong usage, arguments that do not fit each other. `--no-color` holds for the parser's own messages too,
/// which come before it has been parsed.
fn parse<T: Into<std::ffi::OsString>>(words: impl IntoIterator<Item = T>) -> clap::error::Result<Cli> {
    let words: Vec<std::ffi::OsString> = words.into_iter().map(Into::into).collect();
    let plain = words.iter().any(|word| word == "--no-color");
    let color = if plain { ColorChoice::Never } else { ColorChoice::Auto };
    let cli = Cli::from_arg_matches(&Cli::command().color(color).try_get_matches_from(words)?)?;
    if let Command::Trace(args) = &cli.command {
        let refuse = |text| Cli::command().error(ErrorKind::ValueValidation, text);
        args.check().map_err(refuse)?;
    }
    Ok(cli)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = parse(std::env::args_os()).unwrap_or_else(|error| error.exit());
    match run(&cli).await {
        Ok(outcome) => {
            if cli.json && !outcome.value.is_null() {
                print(&format!("{:#}\n", outcome.value));
            } else if !cli.quiet {
                print(&outcome.text);
            }
            ExitCode::from(u8::from(!outcome.good))
        }
        Err(failure) => {
            if cli.json {
                print(&format!("{:#}\n", json!(Refusal::from(&failure))));
            }
            eprintln!("mesh-ctl: {failure}");
            ExitCode::from(failure.exit_status())
        }
    }
}

/// A reader that closes early, such as `head`, is no failure.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

async fn run(cli: &Cli) -> Result<Outcome, Failure> {
    let get = |path: &str| {
        let path = path.to_owned();
        async move { ask(&cli.socket, Method::GET, &path, None).await }
    };
    if let Some(network) = cli.command.network() {
        is_there(network, &get("/v1/networks").await?)?;
    }
    match &cli.command {
        Command::Ca(command) => Ok(certificates(command)?),
        Command::Status { verbose } => {
            let color = !cli.no_color && std::io::stdout().is_terminal() && no_color_is_unset();
            let path = if *verbose { "/v1/status?verbose=true" } else { "/v1/status" };
            outcome(get(path).await?, |s: &api::Status| {
                let figures = s.performance.as_ref().map(slowness::show).unwrap_or_default();
                (show::status(s, color) + &figures, s.state == "ok")
            })
        }
        Command::Peers => outcome(get("/v1/peers").await?, |peers| (show::peers(peers), true)),
        Command::Peer(PeerCommand::Show { name }) => {
            let answer = get(&format!("/v1/peers/{}", escape(name))).await?;
            outcome(answer, |answer: &api::PeerAnswer| (show::peer(&answer.peer), true))
        }
        Command::Peer(PeerCommand::Add { endpoint }) => {
            let body = json!(api::PeerAdd { endpoint: endpoint.clone() });
            done(ask(&cli.socket, Method::POST, "/v1/peers", Some(body)).await?)
        }
        Command::Peer(PeerCommand::Remove { name }) => {
            done(ask(&cli.socket, Method::DELETE, &format!("/v1/peers/{}", escape(name)), None).await?)
        }
        Command::Networks => outcome(get("/v1/networks").await?, |n| (show::networks(n), true)),
        Command::Routes { network } => {
            let answer = only(get("/v1/routes").await?, "routes", network.as_ref());
            outcome(answer, |routes: &api::Routes| (show::routes(&routes.routes), true))
        }
        Command::Route(RouteCommand::Get { address, network }) => {
            let path = format!("/v1/routes/get?address={}", escape(&address.to_string()));
            let answer = only(get(&path).await?, "routes", network.as_ref());
            outcome(answer, |found: &api::RouteGet| {
                // an address is of one network: that it is not in others is no failure
                let stopped = |route: &&api::Route| {
                    let mut checks = found.checks.iter().filter(|check| check.network == route.network);
                    checks.any(|check| check.state != "yes")
                };
                let good = found.routes.iter().any(|route| !stopped(&route));
                (show::route_get(found), good)
            })
        }
        Command::Egress { network, command: Some(EgressCommand::Use { node }) } => {
            let node = (node != "auto").then(|| node.clone());
            let network = network.as_ref().map(ToString::to_string);
            let body = json!(api::EgressUse { node, network });
            done(ask(&cli.socket, Method::POST, "/v1/egress/use", Some(body)).await?)
        }
        Command::Egress { command: Some(EgressCommand::Drain(args)), .. } => {
            let tell = |line: String| {
                if !cli.json && !cli.quiet {
                    print(&line)
                }
            };
            outcome(drain::drain(&cli.socket, args, tell).await?, |d: &api::EgressDrain| {
                (drain::show(d), true)
            })
        }
        Command::Egress { command: Some(EgressCommand::Resume), .. } => {
            done(ask(&cli.socket, Method::POST, "/v1/egress/resume", None).await?)
        }
        Command::Egress { network, command: None | Some(EgressCommand::List) } => {
            let answer = only(get("/v1/egress").await?, "egress", network.as_ref());
            outcome(answer, |answer| (show::egress(answer), true))
        }
        Command::Ping(command) => {
            let tell = |line: String| {
                if !cli.json && !cli.quiet {
                    print(&line)
                }
            };
            let ping = ping::ping(&cli.socket, command, tell).await?;
            let good = ping.state == "answered";
            let text = if cli.json { String::new() } else { show::ping_summary(&ping) };
            Ok(Outcome { text, value: json!(ping), good })
        }
        Command::Reload => {
            let answer = ask(&cli.socket, Method::POST, "/v1/reload", None).await?;
            outcome(answer, |report: &api::Reload| (show::reload(report), report.state == "applied"))
        }
        Command::Trace(args) => {
            let answer = ask(&cli.socket, Method::POST, "/v1/trace", Some(json!(args.ask()))).await?;
            outcome(answer, |trace: &api::Trace| (show::trace(trace), trace.state == "arrives"))
        }
        Command::Schema { command } => {
            let value = describe::schema(command)?;
            Ok(Outcome { text: format!("{value:#}\n"), value, good: true })
        }
        Command::Completions { shell } => {
            let script = describe::completions(*shell, Cli::command())?;
            Ok(Outcome { value: json!(script), text: script.script, good: true })
        }
        Command::Man { dir } => Ok(wrote(describe::man(dir, Cli::command())?)),
        Command::Monitor => {
            monitor::monitor(&cli.socket, cli.quiet).await?;
            Ok(Outcome { text: String::new(), value: Value::Null, good: true })
        }
        Command::LogLevel { filter: None } => {
            outcome(get("/v1/log-level").await?, |level: &api::LogLevel| {
                (format!("{}\n", level.filter), true)
            })
        }
        Command::LogLevel { filter: Some(filter) } => {
            let body = json!(api::LogLevelSet { filter: filter.clone() });
            let answer = ask(&cli.socket, Method::PUT, "/v1/log-level", Some(body)).await?;
            outcome(answer, |level: &api::LogLevel| {
                (format!("{}, until the node's next start\n", level.filter), true)
            })
        }
    }
}

/// Refuses a network that the node does not have.
fn is_there(network: &NetworkName, answer: &Value) -> anyhow::Result<()> {
    let all = answer["networks"].as_array().map(Vec::as_slice).unwrap_or_default();
    let names: Vec<&str> = all.iter().filter_map(|n| n["name"].as_str()).collect();
    if names.contains(&network.as_str()) {
        return Ok(());
    }
    let hint = suggest::or_else(network.as_str(), names, "`mesh-ctl networks` lists this node's");
    bail!("no network {network}: {hint}")
}

/// <https://no-color.org>: set and not empty means no colours.
fn no_color_is_unset() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn wrote(text: String) -> Outcome {
    let value = json!(api::Done { schema: api::SCHEMA, done: text.trim_end().to_owned() });
    Outcome { text, value, good: true }
}

fn certificates(command: &ca::CaCommand) -> anyhow::Result<Outcome> {
    let now = now()?;
    Ok(match command {
        ca::CaCommand::Init(init) => wrote(ca::init(init, now)?),
        ca::CaCommand::Issue(issue) => wrote(ca::issue(issue, now)?),
        ca::CaCommand::Show { file } => {
            let value = ca::show(file, now)?;
            Outcome { text: show::certificate(&value), value, good: true }
        }
    })
}

/// Reads the answer for people; programs get it as the node gave it, fields of newer nodes included.
fn outcome<T: DeserializeOwned>(
    value: Value,
    tell: impl FnOnce(&T) -> (String, bool),
) -> Result<Outcome, Failure> {
    let answer = T::deserialize(&value)
        .context("the node's answer is not understood: are mesh-ctl and mesh-node of one version?")?;
    let (text, good) = tell(&answer);
    Ok(Outcome { text, value, good })
}

fn done(value: Value) -> Result<Outcome, Failure> {
    outcome(value, |answer: &api::Done| (format!("{}\n", answer.done), true))
}

/// Keeps the entries of one network.
fn only(mut answer: Value, list: &str, network: Option<&NetworkName>) -> Value {
    if let (Some(network), Some(entries)) = (network, answer[list].as_array_mut()) {
        entries.retain(|entry| entry["network"] == network.as_str());
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn prefixes_may_be_repeated_and_have_several_values() {
        let line = "mesh-ctl ca issue ph1 --prefix 10.77.1.0/24 blue=10.88.1.0/24 --prefix fd77:1::/64 --egress \
            --announce 203.0.113.0/24 --announce 198.51.100.7 --dir d";
        let Command::Ca(ca::CaCommand::Issue(issue)) = Cli::parse_from(line.split_whitespace()).command
        else {
            panic!("not `ca issue`");
        };
        assert_eq!((issue.prefix.len(), issue.announce.len(), issue.days), (3, 2, 365));
        assert!(issue.egress);
    }

    #[test]
    fn wrong_usage_is_refused_with_status_2() {
        for line in [
            "mesh-ctl",
            "mesh-ctl nonsense",
            "mesh-ctl ca issue ph1",
            "mesh-ctl ca issue PH1 --prefix 10.0.0.0/8",
            "mesh-ctl ca issue ph1 --prefix 10.0.0.1/8",
            "mesh-ctl ca init --days 0",
            "mesh-ctl trace 10.0.0.1",
            "mesh-ctl trace 10.0.0.1 ten",
            "mesh-ctl trace PH1/10.0.0.1 10.0.0.2",
            "mesh-ctl trace 10.0.0.1 10.0.0.2 -p tcp",
            "mesh-ctl trace 10.0.0.1 10.0.0.2 -p sctp --dport 1",
            "mesh-ctl trace 10.0.0.1 10.0.0.2 --dport 443",
            "mesh-ctl trace 10.0.0.1 10.0.0.2 -p icmp --dport 443",
            "mesh-ctl trace 10.0.0.1 10.0.0.2 -p tcp --dport 0",
            "mesh-ctl trace 10.0.0.1 fd00::1",
            "mesh-ctl route get ten",
            "mesh-ctl monitor ph1",
            "mesh-ctl egress drain --deadline soon",
            "mesh-ctl log-level debug info",
        ] {
            let error = parse(line.split_whitespace()).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
        }
        let traces = [
            "mesh-ctl trace 10.0.0.1 10.0.0.2",
            "mesh-ctl trace ph1/10.0.0.1 ph2/10.0.0.1 -p tcp --dport 443 --return --network blue",
        ];
        for line in traces {
            assert!(parse(line.split_whitespace()).is_ok(), "{line}");
        }
        for line in [
            "mesh-ctl egress",
            "mesh-ctl egress list --network blue",
            "mesh-ctl egress drain --deadline 90s --wait",
            "mesh-ctl egress resume",
            "mesh-ctl status --json -q",
            "mesh-ctl monitor",
            "mesh-ctl log-level",
            "mesh-ctl log-level info,mesh_node=debug",
        ] {
            assert!(Cli::try_parse_from(line.split_whitespace()).is_ok(), "{line}");
        }
    }

    #[test]
    fn a_network_that_is_not_there_is_refused_with_the_one_meant() {
        let answer = json!({ "networks": [{ "name": "default" }, { "name": "blue" }] });
        let named = |name: &str| is_there(&name.parse().expect("a name"), &answer).map_err(|e| e.to_string());
        assert_eq!(named("blue"), Ok(()));
        assert_eq!(named("defualt"), Err("no network defualt: did you mean default?".into()));
        assert!(named("green").is_err_and(|e| e.contains("mesh-ctl networks")));
    }

    #[test]
    fn one_network_is_kept_and_unknown_fields_stay() {
        let answer = json!({ "new": 1, "routes": [{ "network": "blue" }, { "network": "default" }] });
        let kept = only(answer, "routes", Some(&"blue".parse().expect("a name")));
        assert_eq!(kept, json!({ "new": 1, "routes": [{ "network": "blue" }] }));
    }
}
