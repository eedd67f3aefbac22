//! Whether what passes is bulk alone. Then nobody waits for a small message, and what keeps waits short may
//! serve throughput instead: the kernel may queue more, and threads need not be run at once. The first that
//! comes then may wait for a millisecond more than those after it.

use std::time::Instant;

use chatter_core::sched::CALM;

/// See the [module](self).
pub(crate) struct Pace {
    pressed: Instant,
    calm: bool,
}

impl Pace {
    /// Nothing is known yet: something pressing may come.
    pub(crate) fn new(now: Instant) -> Self {
        Self { pressed: now, calm: false }
    }

    /// Whether there is bulk alone.
    pub(crate) fn is_calm(&self) -> bool {
        self.calm
    }

    /// Something has passed. If that makes a difference: whether there is bulk alone now.
    pub(crate) fn note(&mut self, now: Instant, pressing: bool) -> Option<bool> {
        if pressing {
            self.pressed = now;
        }
        let calm = now.saturating_duration_since(self.pressed) >= CALM;
        (std::mem::replace(&mut self.calm, calm) != calm).then_some(calm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Given bulk, expect it to count as alone when nothing pressing has passed for long enough, until
    /// something pressing passes; and every change to be told once.
    #[test]
    fn bulk_is_alone_after_a_while() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let just = CALM - CALM / 20;
        assert_eq!(pace.note(start + just, false), None, "something may come yet");
        assert_eq!(pace.note(start + CALM, false), Some(true));
        assert_eq!(pace.note(start + 2 * CALM, false), None);
        assert_eq!(pace.note(start + 3 * CALM, true), Some(false));
        assert_eq!(pace.note(start + 3 * CALM + just, false), None);
        assert_eq!(pace.note(start + 4 * CALM, false), Some(true));
    }
}
