//! A node that hears the multicast of this one: how sure that is, and how soon it answers.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::casts::Key;

/// That a node hears this one counts for so long after it has shown it.
pub const PROOF: Duration = Duration::from_secs(30);

/// After so many datagrams in a row that did not arrive, it no longer counts.
const MISSES: u8 = 3;

/// How long an acknowledgement may take before the first one, at least and at most.
const FIRST_TIMEOUT: Duration = Duration::from_millis(100);
const MIN_TIMEOUT: Duration = Duration::from_millis(25);
const MAX_TIMEOUT: Duration = Duration::from_millis(200);

/// See the [module](self).
pub(super) struct Hearer {
    /// The tag of its life.
    pub life: u16,
    /// CASTs that it has not acknowledged.
    pub pending: BTreeSet<Key>,
    proven: Option<Instant>,
    /// When it last ceased to count because of misses.
    given_up: Option<Instant>,
    misses: u8,
    /// Smoothed time until an acknowledgement, and its variation (RFC 6298).
    srtt: Option<(Duration, Duration)>,
    timeout: Duration,
}

impl Hearer {
    /// It has just shown that it hears this node.
    pub fn new(life: u16, now: Instant) -> Self {
        let (pending, timeout) = (BTreeSet::new(), FIRST_TIMEOUT);
        Self { life, pending, proven: Some(now), given_up: None, misses: 0, srtt: None, timeout }
    }

    /// A datagram has just been heard there.
    pub fn prove(&mut self, now: Instant) {
        self.proven = Some(now);
        self.misses = 0;
    }

    /// It says that it has heard this node in the last half minute or so. That is older than misses, and
    /// small datagrams may pass where large ones do not: after misses it does not count for a while.
    pub fn prove_by_beacon(&mut self, now: Instant) {
        let recent = |at: Instant| now.saturating_duration_since(at) < PROOF;
        if !self.given_up.is_some_and(recent) {
            self.proven = Some(now);
        }
    }

    /// Whether it counts.
    pub fn is_proven(&self, now: Instant) -> bool {
        self.proven.is_some_and(|at| now.saturating_duration_since(at) < PROOF)
    }

    /// A datagram has arrived there, `after` so long if that can be told.
    pub fn arrived(&mut self, after: Option<Duration>) {
        self.misses = 0;
        self.srtt = match (self.srtt, after) {
            (known, None) => known,
            (None, Some(after)) => Some((after, after / 2)),
            (Some((srtt, var)), Some(after)) => {
                Some(((srtt * 7 + after) / 8, (var * 3 + srtt.abs_diff(after)) / 4))
            }
        };
        if let Some((srtt, var)) = self.srtt {
            self.timeout = (srtt + var * 4).clamp(MIN_TIMEOUT, MAX_TIMEOUT);
        }
    }

    /// A datagram was not acknowledged in time. Whether the node has just ceased to count.
    pub fn missed(&mut self, now: Instant) -> bool {
        self.timeout = (self.timeout * 3 / 2).min(MAX_TIMEOUT);
        self.misses = self.misses.saturating_add(1);
        if self.misses < MISSES || self.proven.take().is_none() {
            return false;
        }
        self.misses = 0;
        self.given_up = Some(now);
        true
    }

    /// How long to wait for an acknowledgement.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }
}
