//! How a network's egress node is elected: the keys of `[[network]]` that begin with `egress_`.

use std::time::Duration;

use super::walk::{Section, Walk};

/// What becomes of a network's traffic while no egress node is healthy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EgressFallback {
    /// It is refused.
    #[default]
    None,
    /// It leaves by this host, as with `egress = "local"`.
    Local,
}

/// How an egress node is elected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EgressRules {
    /// One earlier in the order takes over after it has been healthy for this long; `None`: never from one that is.
    pub preempt: Option<Duration>,
    /// While no egress node is healthy.
    pub fallback: EgressFallback,
    /// Flows are spread over all healthy egress nodes of the best priority.
    pub balance: bool,
}

impl EgressRules {
    /// Longer is as good as never, and shorter than a probe's detection is no rule.
    const PREEMPT_SECONDS: std::ops::RangeInclusive<u64> = 1..=3600;

    pub(super) fn read(w: &mut Walk<'_>, s: &Section<'_>) -> Self {
        Self {
            preempt: match w.is_truth(s, "egress_preempt") {
                Some(false) => None,
                Some(true) => {
                    w.at(s, "egress_preempt", "says not after how long; write a duration such as \"30s\"");
                    None
                }
                None => w.one(s, "egress_preempt", preempt),
            },
            fallback: w
                .one(s, "egress_fallback", |t| match t {
                    "none" => Ok(EgressFallback::None),
                    "local" => Ok(EgressFallback::Local),
                    _ => Err("write \"none\" or \"local\"".into()),
                })
                .unwrap_or_default(),
            balance: w.truth(s, "egress_balance").unwrap_or_default(),
        }
    }
}

fn preempt(text: &str) -> Result<Duration, String> {
    let number = |unit: &str| text.strip_suffix(unit).and_then(|t| t.parse::<u64>().ok());
    match number("s").or_else(|| number("m")?.checked_mul(60)) {
        Some(seconds) if EgressRules::PREEMPT_SECONDS.contains(&seconds) => Ok(Duration::from_secs(seconds)),
        Some(_) => Err("is out of range; give 1s to 3600s".into()),
        None => Err("is not a duration; write it as \"30s\" or \"5m\"".into()),
    }
}
