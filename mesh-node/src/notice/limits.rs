//! Which notices are told, where somebody else can make them come often: a bucket of tokens a kind, or a peer and kind.
//! What was held back is counted, and told with the next one of its kind, or when it has become quiet.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::limiter::Limiter;
use super::{Limit, Notice};

/// So long after the last one that was held back, their number is told by itself.
pub const QUIET: Duration = Duration::from_secs(10);

/// Buckets kept. More names than this at once share one a kind: peers are as many as certificates, which are few.
const MAX_BUCKETS: usize = 1024;

#[derive(Debug, Default)]
struct Bucket {
    limiter: Limiter,
    /// When one was last held back, or passed.
    last: Option<Instant>,
}

/// All buckets.
#[derive(Debug, Default)]
pub struct Limits {
    /// By kind, and what is counted by itself in it.
    buckets: BTreeMap<(&'static str, String), Bucket>,
}

impl Limits {
    /// Whether a notice is to be told now; if so, how many of its kind were not since the last.
    pub fn admit(&mut self, notice: &Notice, now: Instant) -> Option<u64> {
        let kind = notice.kind();
        let subject = match kind.limit {
            Limit::Free => return Some(0),
            Limit::Together => String::new(),
            Limit::Each => notice.subject(),
        };
        let mut key = (kind.event, subject);
        if self.buckets.len() >= MAX_BUCKETS && !self.buckets.contains_key(&key) {
            key.1.clear();
        }
        let bucket = self.buckets.entry(key).or_default();
        bucket.last = Some(now);
        bucket.limiter.allow(now)
    }

    /// What has become quiet: buckets that held something back tell how much, and those that did not are forgotten once full.
    pub fn settle(&mut self, now: Instant) -> Vec<Notice> {
        let mut told = Vec::new();
        self.buckets.retain(|(of, subject), bucket| {
            if bucket.last.is_some_and(|last| now.duration_since(last) < QUIET) {
                return true;
            }
            let count = bucket.limiter.take_suppressed();
            if count > 0 {
                let subject = (!subject.is_empty()).then(|| subject.clone());
                told.push(Notice::Suppressed { of, subject, count });
            }
            !bucket.limiter.is_full(now)
        });
        told
    }
}

#[expect(clippy::disallowed_methods, reason = "tests take any moment as their origin")]
#[cfg(test)]
mod tests {
    use super::*;

    fn down(peer: &str) -> Notice {
        Notice::TunnelDown { peer: peer.parse().unwrap(), reason: "timeout", text: "nothing heard".into() }
    }

    #[test]
    fn a_flapping_peer_is_held_back_and_does_not_hide_another() {
        let mut limits = Limits::default();
        let t = Instant::now();
        let told = (0..1000).filter(|_| limits.admit(&down("ph2"), t).is_some()).count();
        assert!((1..=20).contains(&told), "{told} lines");
        assert_eq!(limits.admit(&down("ph3"), t), Some(0));
    }

    #[test]
    fn what_was_held_back_is_told_once_when_it_has_become_quiet() {
        let mut limits = Limits::default();
        let t = Instant::now();
        let told = (0..1000).filter(|_| limits.admit(&down("ph2"), t).is_some()).count() as u64;
        assert_eq!(limits.settle(t + QUIET / 2), []);
        let count = 1000 - told;
        let summary = Notice::Suppressed { of: "tunnel_down", subject: Some("ph2".into()), count };
        assert_eq!(limits.settle(t + QUIET), [summary]);
        assert_eq!(limits.settle(t + QUIET * 2), []);
    }

    #[test]
    fn every_one_is_either_told_or_counted() {
        let mut limits = Limits::default();
        let t = Instant::now();
        let (mut told, mut counted) = (0, 0);
        for i in 0..5000_u32 {
            if let Some(suppressed) = limits.admit(&down("ph2"), t + Duration::from_millis(10) * i) {
                told += 1;
                counted += suppressed;
            }
        }
        for notice in limits.settle(t + QUIET * 100) {
            let Notice::Suppressed { count, .. } = notice else { panic!("{notice:?}") };
            counted += count;
        }
        assert_eq!(told + counted, 5000);
        assert!(told < 30, "50 s of a flood: {told} lines");
    }

    #[test]
    fn many_names_take_bounded_memory_and_are_forgotten() {
        let mut limits = Limits::default();
        let t = Instant::now();
        for n in 0..MAX_BUCKETS * 3 {
            limits.admit(&down(&format!("ph{n}")), t);
        }
        assert!(limits.buckets.len() <= MAX_BUCKETS + 1);
        limits.settle(t + Duration::from_secs(600));
        assert!(limits.buckets.is_empty());
    }
}
