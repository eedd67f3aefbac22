//! How much may be sent by multicast, and less when it gets lost.

use std::time::Instant;

use super::BroadcastStats;
use crate::rate::TokenBucket;
use crate::wire::datagram::{DATAGRAM_HEADER_LEN, DATAGRAM_TAG_LEN, MESSAGE_HEADER_LEN};

/// Losses are looked at after so many CASTs. When a quarter of them did not arrive everywhere at once,
/// the rate is halved.
const LOSS_WINDOW: u32 = 32;

/// Bytes of a datagram besides the body of one message.
const DATAGRAM_COST: usize = DATAGRAM_HEADER_LEN + DATAGRAM_TAG_LEN + MESSAGE_HEADER_LEN;

/// See the [module](self).
pub(super) struct Pace {
    /// Bytes a second; `None` without multicast.
    rate: Option<u64>,
    bucket: Option<TokenBucket>,
    /// CASTs since losses were looked at, and those that did not arrive everywhere at once.
    casts: u32,
    missed: u32,
}

impl Pace {
    pub fn new(rate: Option<u64>) -> Self {
        Self { rate, bucket: None, casts: 0, missed: 0 }
    }

    /// Whether there is multicast.
    pub fn is_on(&self) -> bool {
        self.rate.is_some()
    }

    /// What may be sent at present, in bytes a second.
    pub fn rate(&self) -> u64 {
        self.bucket.as_ref().map_or(self.rate.unwrap_or(0), TokenBucket::rate)
    }

    /// Whether a datagram with so many bytes of body may leave now. It counts as sent.
    pub fn may_send(&mut self, now: Instant, body: usize) -> bool {
        let Some(rate) = self.rate else { return false };
        let bucket = self.bucket.get_or_insert_with(|| TokenBucket::new(rate, now));
        bucket.take(now, body + DATAGRAM_COST).is_ok()
    }

    /// A CAST leaves.
    pub fn note_cast(&mut self, now: Instant, stats: &mut BroadcastStats) {
        self.casts += 1;
        if self.casts < LOSS_WINDOW {
            return;
        }
        let many = self.missed * 4 > self.casts;
        (self.casts, self.missed) = (0, 0);
        if many && self.bucket.as_mut().is_some_and(|bucket| bucket.halve(now)) {
            stats.rate_cuts += 1;
        }
    }

    /// One did not arrive everywhere at once.
    pub fn note_missed(&mut self) {
        self.missed += 1;
    }
}
