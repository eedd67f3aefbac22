//! Strict priority in which nobody starves: a lower class that waits is sure of an eighth of what is sent:
//! after headers at least a tenth of the link.

/// A class that waits gets one byte for so many that others send before it: an eighth of all.
const OTHERS_PER_BYTE: usize = 7;

/// A class is served out of its turn when it has this much to its credit: a chunk.
const TURN: usize = 16 * 1024;

/// Who is next of `N` classes; the first is the most urgent one.
#[derive(Clone, Debug)]
pub struct Shares<const N: usize> {
    /// Bytes, times [`OTHERS_PER_BYTE`], that each class has to its credit.
    credit: [usize; N],
}

impl<const N: usize> Default for Shares<N> {
    fn default() -> Self {
        Self { credit: [0; N] }
    }
}

impl<const N: usize> Shares<N> {
    /// The class to be served of those that have something, given as a set of bits.
    pub fn next(&self, ready: u8) -> Option<usize> {
        let is_ready = |class: &usize| ready & (1 << class) != 0;
        let owed = |class: &usize| self.credit[*class] >= TURN * OTHERS_PER_BYTE;
        let first = (0..N).find(is_ready)?;
        Some((first + 1..N).filter(is_ready).find(owed).unwrap_or(first))
    }

    /// So many bytes of a class were sent, while the classes `ready` had something.
    pub fn sent(&mut self, class: usize, bytes: usize, ready: u8) {
        if ready & !(1 << class) == 0 {
            // Nobody waits: the usual case.
            self.credit = [0; N];
            return;
        }
        for (other, credit) in self.credit.iter_mut().enumerate() {
            *credit = match ready & (1 << other) {
                0 => 0,
                _ if other == class => credit.saturating_sub(bytes * OTHERS_PER_BYTE),
                // Nobody saves up more than a few turns.
                _ => (*credit + bytes).min(4 * TURN * OTHERS_PER_BYTE),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(ready: u8, len: usize, rounds: usize) -> [usize; 4] {
        let mut shares = Shares::<4>::default();
        let mut sent = [0; 4];
        for _ in 0..rounds {
            let class = shares.next(ready).unwrap();
            sent[class] += len;
            shares.sent(class, len, ready);
        }
        sent
    }

    #[test]
    fn the_first_class_goes_first_and_the_others_get_an_eighth() {
        let sent = run(0b1111, 1_000, 100_000);
        let all: usize = sent.iter().sum();
        assert!(sent[1..].iter().all(|s| (120..130).contains(&(s * 1_000 / all))), "{sent:?}");
        let sent = run(0b0101, 16_000, 10_000);
        assert!((122..128).contains(&(sent[2] * 1_000 / (sent[0] + sent[2]))), "{sent:?}");
    }

    #[test]
    fn a_class_alone_gets_everything_and_keeps_no_credit() {
        let mut shares = Shares::<4>::default();
        for _ in 0..1_000 {
            shares.sent(0, 16_000, 0b1001);
        }
        assert_eq!(shares.next(0b1001), Some(3));
        shares.sent(0, 16_000, 0b0001);
        assert_eq!((shares.next(0b1001), shares.next(0)), (Some(0), None));
    }
}
