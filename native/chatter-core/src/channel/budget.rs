//! The memory that all channels of a node may hold together, shared by a dynamic threshold (Choudhury
//! and Hahne, 1998): a channel may hold as much as is free. A few that hold much are held back first,
//! and what they leave free is there for those that hold little; the more want much, the less each gets.

/// What each channel may hold however short the memory is, in bytes: nobody is starved.
pub const LEAST_SHARE: usize = 64 * 1024;

/// Whether a channel that holds `own` of the `total` bytes that are held may take more, if all channels
/// may hold `limit`.
pub fn may_hold_more(limit: usize, total: usize, own: usize) -> bool {
    own < limit.saturating_sub(total).max(LEAST_SHARE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 64 << 20;

    /// Given channels that take what they get, in batches, expect equal shares and the budget kept.
    #[test]
    fn greedy_channels_share() {
        for n in [1, 2, 7, 100] {
            let mut held = vec![0usize; n];
            let batch = 16 * 1024;
            for _ in 0..LIMIT / batch {
                for i in 0..n {
                    let total = held.iter().sum();
                    if may_hold_more(LIMIT, total, held[i]) {
                        held[i] += batch;
                    }
                }
            }
            let (least, most) = (held.iter().min().unwrap(), held.iter().max().unwrap());
            assert!(most - least <= 2 * batch, "{n}: {least} to {most}");
            let total: usize = held.iter().sum();
            assert!(total <= LIMIT && *least >= LIMIT / (n + 1) - batch, "{n}: {least} {total}");
        }
    }

    /// Given one channel that holds its share of two, expect it to be held back and others to go on; and
    /// a channel that holds little to go on whatever the others hold.
    #[test]
    fn those_who_hold_most_are_held_back_first() {
        let fat = LIMIT / 2;
        assert!(!may_hold_more(LIMIT, fat, fat));
        assert!(may_hold_more(LIMIT, fat, fat / 2));
        assert!(!may_hold_more(LIMIT, LIMIT, LEAST_SHARE));
        assert!(may_hold_more(LIMIT, 2 * LIMIT, LEAST_SHARE - 1));
    }
}
