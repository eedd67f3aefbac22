//! A limit of what may be sent: a token bucket that gives way when others are overrun.

use std::time::{Duration, Instant};

/// The bucket holds what the full rate brings in so long.
const BURST: Duration = Duration::from_millis(50);

/// The rate is never cut below this share of the full one.
const LOWEST: f64 = 1.0 / 64.0;

/// After a cut the full rate is back within this time.
const RECOVERY: Duration = Duration::from_secs(16);

/// Cuts closer together than this are one: what has already left may cause them.
const CUT_PAUSE: Duration = Duration::from_millis(500);

/// Bytes that may be sent, filled at a rate. [`TokenBucket::halve`] cuts the rate, which then grows back
/// to the full one in 16 s.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    /// Bytes a second.
    full: f64,
    rate: f64,
    tokens: f64,
    filled: Instant,
    cut: Option<Instant>,
}

impl TokenBucket {
    /// A full bucket; `rate` is in bytes a second, at least 1.
    pub fn new(rate: u64, now: Instant) -> Self {
        let full = rate.max(1) as f64;
        Self { full, rate: full, tokens: full * BURST.as_secs_f64(), filled: now, cut: None }
    }

    /// Takes `bytes` out, or says when to come back. A datagram larger than the bucket waits for a full
    /// one.
    pub fn take(&mut self, now: Instant, bytes: usize) -> Result<(), Instant> {
        self.fill(now);
        let burst = self.full * BURST.as_secs_f64();
        let wanted = (bytes as f64).min(burst);
        if self.tokens >= wanted {
            self.tokens -= bytes as f64;
            return Ok(());
        }
        let wait = (wanted - self.tokens) / self.rate;
        Err(now + Duration::from_secs_f64(wait) + Duration::from_micros(1))
    }

    /// Receivers lose what is sent: half the rate from now on. Whether it was cut; again within half a
    /// second it is not.
    pub fn halve(&mut self, now: Instant) -> bool {
        self.fill(now);
        if self.cut.is_some_and(|cut| now.saturating_duration_since(cut) < CUT_PAUSE) {
            return false;
        }
        self.cut = Some(now);
        self.rate = (self.rate / 2.0).max(self.full * LOWEST);
        true
    }

    /// The present rate, in bytes a second.
    pub fn rate(&self) -> u64 {
        self.rate as u64
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.filled = self.filled.max(now);
        self.tokens = (self.tokens + passed * self.rate).min(self.full * BURST.as_secs_f64());
        self.rate = (self.rate + self.full * passed / RECOVERY.as_secs_f64()).min(self.full);
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any base of virtual time")]
mod tests {
    use super::*;

    /// Sends as fast as the bucket allows for so long; the bytes.
    fn sent(bucket: &mut TokenBucket, now: &mut Instant, span: Duration, size: usize) -> usize {
        let (end, mut bytes) = (*now + span, 0);
        while *now < end {
            match bucket.take(*now, size) {
                Ok(()) => bytes += size,
                Err(at) => *now = at,
            }
        }
        bytes
    }

    /// Given a rate, expect as much to pass, and a burst of 50 ms after a pause.
    #[test]
    fn rate_is_kept() {
        let mut now = Instant::now();
        let mut bucket = TokenBucket::new(1_000_000, now);
        let bytes = sent(&mut bucket, &mut now, Duration::from_secs(10), 1_400);
        assert!((10_000_000..=10_060_000).contains(&bytes), "{bytes}");
        now += Duration::from_secs(60);
        let burst = (0..).take_while(|_| bucket.take(now, 1_000).is_ok()).count();
        assert_eq!(burst, 50);
    }

    /// Given a rate below a datagram per burst, expect datagrams all the same.
    #[test]
    fn slow_rates_send() {
        let mut now = Instant::now();
        let mut bucket = TokenBucket::new(1_400, now);
        let bytes = sent(&mut bucket, &mut now, Duration::from_secs(20), 1_400);
        assert!((26_600..=30_800).contains(&bytes), "{bytes}");
    }

    /// Given cuts, expect half the rate for each, but one for those that come at once, not less than a
    /// 64th, and the full rate again after a while.
    #[test]
    fn cuts_and_recovery() {
        let mut now = Instant::now();
        let mut bucket = TokenBucket::new(1_600_000, now);
        assert!(bucket.halve(now));
        assert!(!bucket.halve(now));
        assert_eq!(bucket.rate(), 800_000);
        for _ in 0..100 {
            now += CUT_PAUSE;
            bucket.halve(now);
        }
        assert!((25_000..=100_000).contains(&bucket.rate()), "{}", bucket.rate());
        now += RECOVERY;
        bucket.take(now, 0).unwrap();
        assert_eq!(bucket.rate(), 1_600_000);
    }
}
