//! `mesh-ctl ping`. To a peer: echoes over its tunnel, which the peer's daemon answers. To an address: ICMP echoes of this
//! host, which the kernel sends into the mesh as it would any packet, and the machine itself answers.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use hyper::Method;
use mesh_proto::{NetworkName, api};
use serde::de::DeserializeOwned;
use serde_json::json;
use surge_ping::{Client, Config, ICMP, PingIdentifier, PingSequence, Pinger, SurgeError};

use crate::client::{Failure, ask, escape};
use crate::show;

/// Between two echoes.
const INTERVAL: Duration = Duration::from_secs(1);

/// Longest wait for an ICMP answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// Tries at each size of a sweep: a single loss must not look like a limit.
const TRIES: usize = 3;

/// Smallest packet of a sweep: what every IPv4 path carries (RFC 791 section 3.1).
const LEAST: u32 = 68;

#[derive(Debug, Args)]
pub(crate) struct PingCommand {
    /// A peer's name, or an address of the mesh
    target: String,
    /// How many echoes
    #[arg(short, long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    count: u32,
    /// Bytes of the inner packet
    #[arg(long, value_name = "BYTES", default_value_t = 84, value_parser = clap::value_parser!(u32).range(68..=65000))]
    size: u32,
    /// Find the largest packet that is answered
    #[arg(long)]
    sweep: bool,
    /// The network, where more than one would fit
    #[arg(long, value_name = "N")]
    pub(crate) network: Option<NetworkName>,
}

/// What became of one echo.
enum Echo {
    Answered(f64),
    Lost,
    TooBig(String),
}

/// How echoes are sent.
enum Way<'a> {
    Tunnel {
        socket: &'a Path,
        peer: String,
    },
    Icmp {
        /// Receives for the pinger as long as it lives.
        _client: Client,
        pinger: Pinger,
        header: u32,
        next: u16,
    },
}

/// Sends them all; `tell` is given a line for people at a time.
pub(crate) async fn ping(
    socket: &Path,
    command: &PingCommand,
    tell: impl Fn(String),
) -> Result<api::Ping, Failure> {
    let mut ping = api::Ping {
        schema: api::SCHEMA,
        target: command.target.clone(),
        state: "no route".into(),
        reason: None,
        node: None,
        endpoint: None,
        transport: None,
        network: None,
        path_mtu_bytes: None,
        size_bytes: command.size,
        rtts_seconds: Vec::new(),
        largest_bytes: None,
    };
    let mut way = match command.target.parse::<IpAddr>() {
        Ok(address) => {
            if !find_address(socket, address, command.network.as_ref(), &mut ping).await? {
                return Ok(ping);
            }
            icmp(address).await?
        }
        Err(_) => {
            find_peer(socket, &command.target, &mut ping).await?;
            Way::Tunnel { socket, peer: command.target.clone() }
        }
    };
    tell(show::ping_path(&ping));
    for number in 1..=command.count {
        let rtt = match way.echo(command.size).await? {
            Echo::Answered(rtt) => Some(rtt),
            Echo::Lost => None,
            Echo::TooBig(reason) => {
                ping.state = "too big".into();
                ping.reason = Some(reason);
                return Ok(ping);
            }
        };
        tell(show::ping_echo(number as usize, rtt));
        ping.rtts_seconds.push(rtt);
        if number < command.count {
            tokio::time::sleep(INTERVAL).await;
        }
    }
    let answered = ping.rtts_seconds.iter().flatten().count();
    ping.state = match answered {
        0 => "lost",
        n if n == ping.rtts_seconds.len() => "answered",
        _ => "partly",
    }
    .into();
    if answered == 0 {
        ping.reason = Some(match &way {
            Way::Tunnel { peer, .. } => format!("nothing comes back: `mesh-ctl peer show {peer}`"),
            Way::Icmp { .. } => format!(
                "nothing comes back: `mesh-ctl route get {0}`, and `mesh-ctl trace FROM {0}` from a VM's address",
                ping.target
            ),
        });
    }
    if command.sweep && answered > 0 {
        ping.largest_bytes = sweep(&mut way, &ping).await?;
        if let (Some(largest), Some(mtu)) = (ping.largest_bytes, ping.path_mtu_bytes)
            && largest < mtu
        {
            ping.state = "narrow".into();
            ping.reason = Some(format!(
                "the path carries {largest} bytes, the tunnel believes {mtu}: something on it drops larger packets without an ICMP error; let it pass them, or set `mtu = {largest}` in [node] and `mesh-ctl reload`"
            ));
        }
    }
    Ok(ping)
}

/// The largest size that is answered, between one that is and the path MTU.
async fn sweep(way: &mut Way<'_>, ping: &api::Ping) -> Result<Option<u32>, Failure> {
    let (mut good, mut bad) = (LEAST, ping.path_mtu_bytes.unwrap_or(1500) + 1);
    let mut size = bad - 1;
    if !way.passes(good).await? {
        return Ok(None);
    }
    while bad - good > 1 {
        if way.passes(size).await? {
            good = size;
        } else {
            bad = size;
        }
        size = good + (bad - good) / 2;
    }
    Ok(Some(good))
}

async fn get<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T, Failure> {
    let answer = ask(socket, Method::GET, path, None).await?;
    Ok(serde_json::from_value(answer).context("the node's answer is not understood")?)
}

async fn find_peer(socket: &Path, name: &str, ping: &mut api::Ping) -> Result<(), Failure> {
    let found: api::PeerAnswer = get(socket, &format!("/v1/peers/{}", escape(name))).await?;
    let peer = found.peer;
    if peer.state != "up" {
        let why = peer.detail.or(peer.reason).unwrap_or_else(|| "no tunnel".into());
        let state = if peer.state == "left" { "has left" } else { &format!("is {}", peer.state) };
        return Err(anyhow::anyhow!("{name} {state}: {why}").into());
    }
    ping.node = Some(peer.name);
    ping.endpoint = peer.endpoint;
    ping.transport = peer.transport;
    ping.path_mtu_bytes = peer.path_mtu_bytes;
    Ok(())
}

/// Whether the mesh has a route there.
async fn find_address(
    socket: &Path,
    address: IpAddr,
    network: Option<&NetworkName>,
    ping: &mut api::Ping,
) -> Result<bool, Failure> {
    let path = format!("/v1/routes/get?address={}", escape(&address.to_string()));
    let mut found: api::RouteGet = get(socket, &path).await?;
    found.routes.retain(|route| network.is_none_or(|wanted| wanted.as_str() == route.network));
    let route = match found.routes.as_slice() {
        [] => {
            ping.reason = found.reason.or_else(|| Some(format!("nobody announces {address} there")));
            return Ok(false);
        }
        [route] => route,
        [first, second, ..] => {
            let (a, b) = (&first.network, &second.network);
            return Err(
                anyhow::anyhow!("{address} is in networks {a} and {b}: say which with --network").into()
            );
        }
    };
    ping.network = Some(route.network.clone());
    ping.path_mtu_bytes = route.mtu;
    ping.reason.clone_from(&route.reason);
    if route.state == "local" {
        ping.node = Some(route.node.clone());
        return Ok(true);
    }
    find_peer(socket, &route.node, ping).await?;
    Ok(true)
}

/// An ICMP socket needs CAP_NET_RAW, or a group within `net.ipv4.ping_group_range`.
async fn icmp(address: IpAddr) -> Result<Way<'static>, Failure> {
    let (kind, header) = match address {
        IpAddr::V4(_) => (ICMP::V4, 20 + 8),
        IpAddr::V6(_) => (ICMP::V6, 40 + 8),
    };
    let client = Client::new(&Config::builder().kind(kind).build())
        .context("open an ICMP socket: try with sudo, or ping the peer by its name")?;
    // tells our echoes from those of others on this host
    let identifier = PingIdentifier(std::process::id() as u16);
    let mut pinger = client.pinger(address, identifier).await;
    pinger.timeout(PATIENCE);
    Ok(Way::Icmp { _client: client, pinger, header, next: 1 })
}

impl Way<'_> {
    async fn echo(&mut self, size: u32) -> Result<Echo, Failure> {
        match self {
            Self::Tunnel { socket, peer } => {
                let body = json!(api::EchoAsk { peer: peer.clone(), size });
                let answer = ask(socket, Method::POST, "/v1/ping", Some(body)).await?;
                let echo: api::EchoAnswer =
                    serde_json::from_value(answer).context("the node's answer is not understood")?;
                Ok(match (echo.rtt_seconds, echo.state.as_str()) {
                    (Some(rtt), _) => Echo::Answered(rtt),
                    (None, "too big") => Echo::TooBig(echo.reason.unwrap_or_default()),
                    (None, _) => Echo::Lost,
                })
            }
            Self::Icmp { pinger, header, next, .. } => {
                let payload = vec![0x6d; size.saturating_sub(*header) as usize];
                let sequence = PingSequence(*next);
                *next = next.wrapping_add(1);
                match pinger.ping(sequence, &payload).await {
                    Ok((_, rtt)) => Ok(Echo::Answered(rtt.as_secs_f64())),
                    Err(SurgeError::Timeout { .. }) => Ok(Echo::Lost),
                    Err(SurgeError::IOError(error)) if error.raw_os_error() == Some(EMSGSIZE) => {
                        Ok(Echo::TooBig(format!("the path carries no packet of {size} bytes")))
                    }
                    Err(error) => Err(anyhow::Error::new(error).context("send an ICMP echo").into()),
                }
            }
        }
    }

    async fn passes(&mut self, size: u32) -> Result<bool, Failure> {
        for _ in 0..TRIES {
            match self.echo(size).await? {
                Echo::Answered(_) => return Ok(true),
                Echo::TooBig(_) => return Ok(false),
                Echo::Lost => {}
            }
        }
        Ok(false)
    }
}

/// errno(3): the packet is larger than the path MTU that the kernel knows.
const EMSGSIZE: i32 = 90;
