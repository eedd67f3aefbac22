//! A sliding window over counters (RFC 6479): each is taken once, and none that is too old.

/// Words of 64 counters. One of them is always partly ahead of the highest counter.
const WORDS: usize = 65;

/// Counters that may be behind the highest one and still be taken.
pub(super) const WINDOW: u64 = (WORDS as u64 - 1) * 64;

/// Why a counter is not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stale {
    /// It was taken before.
    Repeated,
    /// It is behind the window, or 0, which nobody uses.
    Old,
}

/// Which counters of one sender have been taken.
#[derive(Clone, Debug)]
pub(super) struct Window {
    highest: u64,
    taken: [u64; WORDS],
}

impl Window {
    /// Nothing taken.
    pub(super) fn new() -> Self {
        Self { highest: 0, taken: [0; WORDS] }
    }

    /// Whether the counter may be taken; takes nothing.
    pub(super) fn check(&self, counter: u64) -> Result<(), Stale> {
        if counter == 0 || counter.saturating_add(WINDOW) <= self.highest {
            return Err(Stale::Old);
        }
        let taken = counter <= self.highest && self.taken[word(counter)] & bit(counter) != 0;
        if taken { Err(Stale::Repeated) } else { Ok(()) }
    }

    /// Takes a counter that was checked.
    pub(super) fn take(&mut self, counter: u64) {
        if counter > self.highest {
            let new_words = (counter / 64 - self.highest / 64).min(WORDS as u64);
            for n in 0..new_words {
                self.taken[((self.highest / 64 + 1 + n) % WORDS as u64) as usize] = 0;
            }
            self.highest = counter;
        }
        self.taken[word(counter)] |= bit(counter);
    }
}

fn word(counter: u64) -> usize {
    (counter / 64 % WORDS as u64) as usize
}

fn bit(counter: u64) -> u64 {
    1 << (counter % 64)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Given any counters, expect each to be taken once, and only within the window, as a set says.
        #[test]
        fn as_a_set(
            start in 1..u64::MAX / 2,
            steps in prop::collection::vec(0..3 * WINDOW, 1..400),
        ) {
            let mut window = Window::new();
            let mut taken = BTreeSet::new();
            let mut highest = 0_u64;
            for step in steps {
                // Around the highest so far, mostly behind it.
                let counter =
                    if highest == 0 { start } else { (highest + 128).saturating_sub(step) };
                let expected = if counter == 0 || counter + WINDOW <= highest {
                    Err(Stale::Old)
                } else if taken.contains(&counter) {
                    Err(Stale::Repeated)
                } else {
                    Ok(())
                };
                prop_assert_eq!(window.check(counter), expected);
                if expected.is_ok() {
                    window.take(counter);
                    taken.insert(counter);
                    highest = highest.max(counter);
                }
            }
        }

        /// Given counters that jump ahead by any distance, expect nothing of before in their way.
        #[test]
        fn far_jumps(jumps in prop::collection::vec(1..1u64 << 40, 1..60)) {
            let mut window = Window::new();
            let mut at = 0;
            for jump in jumps {
                at += jump;
                prop_assert_eq!(window.check(at), Ok(()));
                window.take(at);
                prop_assert_eq!(window.check(at), Err(Stale::Repeated));
                if jump > 1 {
                    prop_assert_eq!(window.check(at - 1), Ok(()));
                }
            }
        }
    }
}
