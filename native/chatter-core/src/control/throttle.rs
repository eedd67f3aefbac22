//! How often something may happen, and random spreading.

use std::time::{Duration, Instant};

use rand::Rng;
use rand::rngs::Xoshiro256PlusPlus;

/// The second step is taken so many times before the third, and a full budget holds so many: a few
/// changes in a row must not hold news back for longer than others wait for a route. A node that loses
/// all its links and finds them again has five or six things to tell.
const BURST: u32 = 8;

/// Lets the first of a series happen at once and the later ones ever further apart.
#[derive(Clone, Debug)]
pub(crate) struct Throttle {
    steps: [Duration; 3],
    quiet: Duration,
    /// How often it happened without a pause of `quiet`.
    count: u32,
    last: Option<Instant>,
    next: Option<Instant>,
}

impl Throttle {
    /// After the first, `steps` must pass: before the second, before each of [`BURST`] more, and before
    /// later ones; after `quiet` without any it starts over.
    pub(crate) fn new(steps_ms: [u32; 3], quiet_ms: u32) -> Self {
        let steps = steps_ms.map(|ms| Duration::from_millis(ms.into()));
        let quiet = Duration::from_millis(quiet_ms.into());
        Self { steps, quiet, count: 0, last: None, next: None }
    }

    /// When it may happen next; in the past (or `now`) means at once.
    pub(crate) fn next(&self, now: Instant) -> Instant {
        self.next.unwrap_or(now)
    }

    /// It happened.
    pub(crate) fn fire(&mut self, now: Instant) {
        if self.last.is_none_or(|last| now.saturating_duration_since(last) >= self.quiet) {
            self.count = 0;
        }
        let step = match self.count {
            0 => self.steps[0],
            1..=BURST => self.steps[1],
            _ => self.steps[2],
        };
        self.count = self.count.saturating_add(1);
        self.last = Some(now);
        self.next = Some(now + step);
    }
}

/// Lets [`BURST`] happen one after the other, and as many more as time has passed since: a token bucket,
/// kept as the time at which it would be full (the virtual scheduling of ITU-T I.371).
///
/// Unlike with [`Throttle`], what comes seldom but for ever never waits.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    /// What lies at least between two.
    gap: Duration,
    /// How long one more takes to come.
    refill: Duration,
    last: Option<Instant>,
    full_at: Option<Instant>,
}

impl Budget {
    /// Full at first. `gap_ms` lies between any two, and `refill_ms` between two when it is used up.
    pub(crate) fn new(gap_ms: u32, refill_ms: u32) -> Self {
        let gap = Duration::from_millis(gap_ms.into());
        Self { gap, refill: Duration::from_millis(refill_ms.into()), last: None, full_at: None }
    }

    /// When it may happen next; in the past (or `now`) means at once.
    pub(crate) fn next(&self, now: Instant) -> Instant {
        let (Some(last), Some(full_at)) = (self.last, self.full_at) else { return now };
        let missing = full_at.saturating_duration_since(now);
        let room = self.refill * (BURST - 1);
        (last + self.gap).max(now + missing.saturating_sub(room))
    }

    /// It happened, be it before its time, along with something else.
    pub(crate) fn fire(&mut self, now: Instant) {
        self.last = Some(now);
        let full_at = self.full_at.map_or(now, |at| at.max(now)) + self.refill;
        self.full_at = Some(full_at.min(now + self.refill * BURST));
    }
}

/// `duration` ± 25 %, evenly.
pub(crate) fn jitter(duration: Duration, rng: &mut Xoshiro256PlusPlus) -> Duration {
    let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX / 4);
    let spread = micros / 2 + 1;
    Duration::from_micros(micros - micros / 4 + rng.next_u64() % spread)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Given something that wants to happen all the time, expect the first two at once, some at the
    /// second step, and then the third for ever; after a quiet time, the same again.
    #[test]
    fn a_burst_and_then_seldom() {
        #[expect(clippy::disallowed_methods, reason = "any base of virtual time")]
        let start = Instant::now();
        let mut throttle = Throttle::new([10, 100, 1_000], 2_000);
        let mut now = start;
        let mut gaps = || {
            let mut gaps = Vec::new();
            for _ in 0..BURST + 4 {
                let at = throttle.next(now).max(now);
                gaps.push((at - now).as_millis());
                now = at;
                throttle.fire(now);
            }
            now += Duration::from_secs(2);
            gaps
        };
        let mut expected = vec![0, 10];
        expected.extend([100; BURST as usize]);
        expected.extend([1_000; 2]);
        assert_eq!(gaps(), expected);
        assert_eq!(gaps(), expected);
    }

    /// Given something that happens once in each time of refill, expect that it never waits; given
    /// something that always wants to, expect a burst and then one in each time of refill.
    #[test]
    fn a_budget_comes_back() {
        #[expect(clippy::disallowed_methods, reason = "any base of virtual time")]
        let start = Instant::now();
        let mut budget = Budget::new(10, 1_000);
        let mut now = start;
        for _ in 0..100 {
            assert!(budget.next(now) <= now);
            budget.fire(now);
            now += Duration::from_secs(1);
        }
        let mut gaps = Vec::new();
        for _ in 0..BURST + 3 {
            budget.fire(now);
            let next = budget.next(now).max(now);
            gaps.push((next - now).as_millis());
            now = next;
        }
        let burst = gaps.iter().take_while(|gap| **gap == 10).count();
        assert!((BURST as usize - 1..=BURST as usize).contains(&burst), "{gaps:?}");
        assert!(gaps[burst + 1..].iter().all(|gap| *gap == 1_000), "{gaps:?}");
    }
}
