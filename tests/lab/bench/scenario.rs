//! The ways in which an egress node fails, or leaves.

use anyhow::{Result, bail};
use std::time::Duration;

use super::world::World;
use crate::command::signal;

/// Why a scenario is left out.
#[derive(Debug)]
pub(super) struct Skipped(pub String);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scenario {
    /// Nothing happens: what the machine itself does to the stream.
    Calm,
    /// Process, tunnel and uplink at once.
    Power,
    /// The uplink's cable alone.
    Cable,
    /// The uplink's far end, with its link up.
    Target,
    /// SIGSTOP: the kernel goes on.
    Freeze,
    /// `mesh-ctl egress drain`.
    Drain,
    /// A polite stop.
    Term,
}

const ALL: [Scenario; 7] = [
    Scenario::Calm,
    Scenario::Power,
    Scenario::Cable,
    Scenario::Target,
    Scenario::Freeze,
    Scenario::Drain,
    Scenario::Term,
];

impl Scenario {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Calm => "calm",
            Self::Power => "power",
            Self::Cable => "cable",
            Self::Target => "target",
            Self::Freeze => "freeze",
            Self::Drain => "drain",
            Self::Term => "term",
        }
    }

    pub(super) fn about(self) -> &'static str {
        match self {
            Self::Calm => "nothing happens",
            Self::Power => "power cut",
            Self::Cable => "uplink cable cut",
            Self::Target => "uplink target dead, link up",
            Self::Freeze => "daemon frozen",
            Self::Drain => "drain",
            Self::Term => "SIGTERM",
        }
    }

    /// Those of these names; all where none is given.
    pub(super) fn chosen(names: &[String]) -> Result<Vec<Self>> {
        if let Some(unknown) = names.iter().find(|name| !ALL.iter().any(|s| s.name() == name.as_str())) {
            bail!("no scenario {unknown}: {}", ALL.map(Self::name).join(", "));
        }
        Ok(ALL.into_iter().filter(|s| names.is_empty() || names.iter().any(|n| n == s.name())).collect())
    }

    /// For how long the stream goes on after the strike: until all has moved to the other node.
    pub(super) fn takes(self) -> Duration {
        match self {
            // the hand-over of a stop has a deadline of 5 s
            Self::Term => Duration::from_secs(7),
            _ => Duration::from_millis(2500),
        }
    }

    /// What this build lacks for it.
    pub(super) fn refused(self, world: &World) -> Result<Option<Skipped>> {
        let why = match self {
            Self::Cable | Self::Target if !world.probes => {
                Some("this build refuses `probe` in [[egress]]: it does not test its uplink")
            }
            Self::Drain if !world.lab.ctl("ph1", &["egress", "drain", "--help"])?.ok() => {
                Some("this build has no `mesh-ctl egress drain`")
            }
            _ => None,
        };
        Ok(why.map(|why| Skipped(why.to_owned())))
    }

    pub(super) fn strike(self, world: &mut World, victim: &str) -> Result<()> {
        match self {
            Self::Calm => Ok(()),
            Self::Power => {
                world.cables(victim, "down")?;
                world.lab.kill_node(victim)
            }
            Self::Cable => world.uplink(victim, "down"),
            Self::Target => world.swallow(victim, true),
            Self::Freeze => world.lab.freeze(victim),
            Self::Drain => world.ask(victim, &["egress", "drain", "--deadline", "1s"]),
            Self::Term => signal(world.lab.pid(victim)?, "TERM"),
        }
    }

    pub(super) fn mend(self, world: &mut World, victim: &str) -> Result<()> {
        match self {
            Self::Calm => Ok(()),
            Self::Power => {
                world.cables(victim, "up")?;
                world.lab.start_node(victim)
            }
            Self::Cable => world.uplink(victim, "up"),
            Self::Target => world.swallow(victim, false),
            Self::Freeze => world.lab.thaw(victim),
            Self::Drain => world.ask(victim, &["egress", "resume"]),
            Self::Term => {
                world.lab.ended(victim)?;
                world.lab.start_node(victim)
            }
        }
    }
}
