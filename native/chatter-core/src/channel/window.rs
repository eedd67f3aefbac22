//! How much a source may have under way: round trips, the probe timeout (RFC 9002, 5 and 6.2), and a
//! congestion window that is halved when relays mark or drop, and grows again by a packet per round
//! trip. It begins small, doubles until the first mark, and is out of the way once it is larger than the
//! credit that the receiver gives.

use std::time::{Duration, Instant};

use super::{CHUNK_LEN, SERVICE_INTERVAL};

/// Bounds of the probe timeout. The least leaves an acknowledgement that is delayed twice over the time
/// to come; before there is any round trip, it is longer.
const PROBE_MIN: Duration = Duration::from_millis(60);
const PROBE_FIRST: Duration = Duration::from_millis(200);
const PROBE_MAX: Duration = Duration::from_secs(2);

/// What the window starts with, and its least, in bytes.
const START: usize = 32 * CHUNK_LEN;
const LEAST: usize = 4 * CHUNK_LEN;

/// Round trips and the congestion window of one sender.
#[derive(Debug)]
pub(super) struct Window {
    srtt: Option<Duration>,
    rttvar: Duration,
    /// Bytes that may be under way; not below [`LEAST`], not above `limit`.
    bytes: usize,
    /// What the receiver lets be under way at most: at it, the window stops nothing.
    limit: usize,
    /// Below it, the window doubles per round trip.
    threshold: usize,
    /// Bytes acknowledged since the window grew last.
    acked: usize,
    /// When it was last halved.
    cut_at: Option<Instant>,
    cuts: u64,
}

impl Window {
    /// For a receiver that grants at most so many bytes.
    pub(super) fn new(credit: u64) -> Self {
        let limit = usize::try_from(credit).unwrap_or(usize::MAX).max(LEAST);
        Self {
            srtt: None,
            rttvar: Duration::ZERO,
            bytes: START.min(limit),
            limit,
            threshold: limit,
            acked: 0,
            cut_at: None,
            cuts: 0,
        }
    }

    /// Smoothed round trip; `None` before the first sample.
    pub(super) fn srtt(&self) -> Option<Duration> {
        self.srtt
    }

    /// A packet was acknowledged after so long.
    pub(super) fn sample(&mut self, rtt: Duration) {
        let Some(srtt) = self.srtt else {
            self.srtt = Some(rtt);
            self.rttvar = rtt / 2;
            return;
        };
        self.rttvar = (self.rttvar * 3 + srtt.abs_diff(rtt)) / 4;
        self.srtt = Some((srtt * 7 + rtt) / 8);
    }

    /// How long after a packet an answer is missed: twice as long after each probe without progress.
    pub(super) fn probe_after(&self, probes: u32) -> Duration {
        let first = self.srtt.map_or(PROBE_FIRST, |srtt| {
            // The acknowledgement may wait for the receiver's service, and this end for its own.
            let rest = (4 * self.rttvar).max(SERVICE_INTERVAL) + SERVICE_INTERVAL;
            (srtt + rest).max(PROBE_MIN)
        });
        first.saturating_mul(1 << probes.min(10)).min(PROBE_MAX)
    }

    /// A gap is taken for lost again only this long after it was filled last: once per round trip,
    /// however many acknowledgements show it.
    pub(super) fn resend_after(&self) -> Duration {
        self.srtt.unwrap_or(PROBE_FIRST) * 9 / 8
    }

    /// A packet that packets of other flows have overtaken is taken for lost after so long: relays queue
    /// flows apart, and one may wait there for a while.
    pub(super) fn late_after(&self) -> Duration {
        2 * self.probe_after(0)
    }

    /// Bytes that may be under way; `None` if the window stops nothing.
    pub(super) fn bytes(&self) -> Option<usize> {
        (self.bytes < self.limit).then_some(self.bytes)
    }

    /// Whether so many more may be sent when so many are under way.
    pub(super) fn admits(&self, under_way: usize, more: usize) -> bool {
        under_way == 0 || self.bytes().is_none_or(|bytes| under_way + more <= bytes)
    }

    /// Times that the window was halved.
    pub(super) fn cuts(&self) -> u64 {
        self.cuts
    }

    /// So many bytes were acknowledged, of so many that were under way: a window that is used grows.
    pub(super) fn grow(&mut self, acked: usize, under_way: usize) {
        if self.bytes >= self.limit || under_way < self.bytes / 2 {
            return;
        }
        if self.bytes < self.threshold {
            self.bytes += acked;
        } else {
            self.acked += acked;
            if self.acked >= self.bytes {
                self.acked = 0;
                self.bytes += CHUNK_LEN;
            }
        }
        self.bytes = self.bytes.min(self.limit);
    }

    /// A relay has marked or dropped a packet while so much was under way: half of that, at most once
    /// per round trip.
    pub(super) fn cut(&mut self, now: Instant, under_way: usize) {
        let every = self.srtt.unwrap_or(PROBE_MIN);
        if self.cut_at.is_some_and(|at| now.saturating_duration_since(at) < every) {
            return;
        }
        self.cut_at = Some(now);
        self.cuts += 1;
        self.bytes = (self.bytes.min(under_way) / 2).max(LEAST).min(self.limit);
        self.threshold = self.bytes;
        self.acked = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "any base of virtual time")]
    fn start() -> Instant {
        Instant::now()
    }

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn it_doubles_then_is_out_of_the_way() {
        let mut window = Window::new(8 << 20);
        let mut trips = 0;
        while let Some(bytes) = window.bytes() {
            assert!(!window.admits(bytes, 1) && window.admits(0, 2 * bytes));
            window.grow(bytes, bytes);
            trips += 1;
        }
        assert_eq!(trips, 4, "512 KiB to 8 MiB");
        assert!(window.admits(usize::MAX / 2, 1));
    }

    #[test]
    fn it_is_halved_once_per_round_trip_and_grows_by_a_packet() {
        let (mut window, mut now) = (Window::new(8 << 20), start());
        window.sample(10 * MS);
        for _ in 0..10 {
            window.cut(now, 8 << 20);
        }
        assert_eq!((window.bytes(), window.cuts()), (Some(START / 2), 1));
        window.grow(START / 2, START / 2);
        assert_eq!(window.bytes(), Some(START / 2 + CHUNK_LEN));
        window.grow(START, 0);
        assert_eq!(window.bytes(), Some(START / 2 + CHUNK_LEN), "not while it is not used");
        for _ in 0..20 {
            now += 10 * MS;
            window.cut(now, 8 << 20);
        }
        assert_eq!(window.bytes(), Some(LEAST));
    }

    #[test]
    fn a_small_credit_is_never_in_the_way() {
        let mut window = Window::new(1);
        window.cut(start(), 1);
        assert!(window.admits(1000, 1000) && window.bytes().is_none());
    }

    #[test]
    fn probes_follow_the_round_trip_and_back_off() {
        let mut window = Window::new(1 << 20);
        assert_eq!(window.probe_after(0), PROBE_FIRST);
        for _ in 0..100 {
            window.sample(MS);
        }
        assert_eq!(window.probe_after(0), PROBE_MIN);
        assert_eq!(window.probe_after(2), 4 * PROBE_MIN);
        assert_eq!(window.probe_after(60), PROBE_MAX);
        for _ in 0..100 {
            window.sample(300 * MS);
        }
        let after = window.probe_after(0);
        assert!((335 * MS..345 * MS).contains(&after), "{after:?}");
    }
}
