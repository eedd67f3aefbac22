//! How often something may happen, and random spreading.

use std::time::{Duration, Instant};

use rand::Rng;
use rand::rngs::Xoshiro256PlusPlus;

/// Lets the first of a series happen at once and the later ones ever further apart.
#[derive(Clone, Debug)]
pub(crate) struct Throttle {
    steps: [Duration; 3],
    quiet: Duration,
    level: usize,
    last: Option<Instant>,
    next: Option<Instant>,
}

impl Throttle {
    /// After the first, `steps` must pass before the second, third and later ones; after `quiet`
    /// without any it starts over.
    pub(crate) fn new(steps_ms: [u32; 3], quiet_ms: u32) -> Self {
        let steps = steps_ms.map(|ms| Duration::from_millis(ms.into()));
        let quiet = Duration::from_millis(quiet_ms.into());
        Self { steps, quiet, level: 0, last: None, next: None }
    }

    /// When it may happen next; in the past (or `now`) means at once.
    pub(crate) fn next(&self, now: Instant) -> Instant {
        self.next.unwrap_or(now)
    }

    /// It happened.
    pub(crate) fn fire(&mut self, now: Instant) {
        if self.last.is_none_or(|last| now.saturating_duration_since(last) >= self.quiet) {
            self.level = 0;
        }
        self.last = Some(now);
        self.next = Some(now + self.steps[self.level]);
        self.level = (self.level + 1).min(self.steps.len() - 1);
    }
}

/// `duration` ± 25 %, evenly.
pub(crate) fn jitter(duration: Duration, rng: &mut Xoshiro256PlusPlus) -> Duration {
    let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX / 4);
    let spread = micros / 2 + 1;
    Duration::from_micros(micros - micros / 4 + rng.next_u64() % spread)
}
