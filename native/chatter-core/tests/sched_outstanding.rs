//! The bound of what a link has in the kernel, over links whose rate follows from it, in virtual time.
#![expect(clippy::disallowed_methods, reason = "any base of virtual time")]

use std::time::{Duration, Instant};

use chatter_core::sched::outstanding::{LEAST, MOST, Outstanding, Sample};

const MS: Duration = Duration::from_millis(1);
const STEP: Duration = Duration::from_millis(100);

/// A link that is always full.
struct Way {
    /// Bytes per second that it carries, if so much is outstanding.
    capacity: f64,
    /// The least round trip, and the one that it mostly has, without any queue of its own.
    min_rtt: Duration,
    rtt: Duration,
    outstanding: Outstanding,
    at: Instant,
    acked: f64,
    noise: u64,
}

impl Way {
    fn new(capacity: f64, min_rtt: Duration, rtt: Duration) -> Self {
        let outstanding = Outstanding::default();
        Self { capacity, min_rtt, rtt, outstanding, at: Instant::now(), acked: 0.0, noise: 0 }
    }

    /// Goes on for so many steps; the rate in the mean, and the bounds.
    fn run(&mut self, steps: usize) -> (f64, Vec<Option<u32>>) {
        let (mut bounds, mut sent) = (Vec::new(), 0.0);
        for step in 0..steps {
            let most = self.outstanding.bound().map_or(f64::INFINITY, f64::from);
            let mut rate = self.capacity.min(most / self.rtt.as_secs_f64());
            if self.noise > 0 {
                let random = ((step as u64 * 2_654_435_761) >> 7) % 1000;
                rate *= 1.0 - self.noise as f64 / 100.0 * random as f64 / 1000.0;
            }
            self.acked += rate * STEP.as_secs_f64();
            sent += rate;
            self.at += STEP;
            bounds.push(self.sample(false));
        }
        (sent / steps as f64, bounds)
    }

    fn sample(&mut self, idle: bool) -> Option<u32> {
        // A busy link never shows its least round trip again.
        let queue = self.outstanding.bound().map_or(0.0, f64::from) / self.capacity;
        let min_rtt = self.min_rtt.max(Duration::from_secs_f64(queue));
        let min_rtt = if self.acked < 3e6 { self.min_rtt } else { min_rtt };
        let busy = STEP * 1_000_000;
        let acked = self.acked as u64;
        self.outstanding.sample(Sample { at: self.at, acked, busy, min_rtt, idle })
    }
}

/// Given 100 Mbit/s nearby, expect about 3 ms of it outstanding, for minutes, and no less rate.
#[test]
fn a_thin_link_has_little_outstanding() {
    let mut way = Way::new(12.5e6, MS / 10, MS / 5);
    way.run(5);
    let (rate, bounds) = way.run(3_000);
    assert!(rate > 12.4e6, "{rate}");
    assert!(bounds.iter().all(|b| b.is_some_and(|b| (40_000..60_000).contains(&b))), "{bounds:?}");
}

/// Given ten times as much, expect a third of the time: no more bytes than the writer needs.
#[test]
fn what_is_outstanding_does_not_grow_with_the_rate() {
    for (capacity, most) in [(37.5e6, 60_000), (125e6, 125_000)] {
        let mut way = Way::new(capacity, MS / 20, MS / 5);
        way.run(5);
        let (rate, bounds) = way.run(3_000);
        assert!(rate > 0.99 * capacity, "{rate}");
        assert!(bounds.iter().all(|b| b.is_some_and(|b| b < most)), "{bounds:?}");
    }
}

/// Given the same with rates that vary by a tenth, expect no more than twice of that mostly.
#[test]
fn noise_does_not_stretch_the_bound_for_long() {
    let mut way = Way::new(12.5e6, MS / 10, MS / 5);
    way.noise = 10;
    let (_, mut bounds) = way.run(3_000);
    bounds.sort_unstable();
    assert!(bounds[2_700].is_some_and(|bound| bound < 100_000), "{:?}", bounds[2_700]);
}

/// Given one burst above the rate of the link, expect nothing of it to stay.
#[test]
fn a_burst_is_no_rate() {
    let mut way = Way::new(12.5e6, MS / 10, MS / 5);
    way.run(20);
    way.acked += 0.2 * 12.5e6 * STEP.as_secs_f64();
    let (_, bounds) = way.run(40);
    assert!(bounds.iter().all(|b| b.is_some_and(|b| b < 60_000)), "{bounds:?}");
}

/// Given a fast link, or a long way, expect no bound.
#[test]
fn fast_and_long_ways_have_no_bound() {
    for (capacity, rtt) in [(1_000e6, MS / 20), (12.5e6, 50 * MS)] {
        let (rate, bounds) = Way::new(capacity, rtt, rtt).run(600);
        assert!(bounds.iter().all(Option::is_none) && rate == capacity, "{capacity} {rtt:?}");
    }
}

/// Given a way of medium length, expect that it can be filled.
#[test]
fn the_bound_covers_the_round_trip() {
    let (rate, bounds) = Way::new(12.5e6, 3 * MS, 3 * MS).run(600);
    assert!(rate > 12.4e6 && bounds[100].is_some_and(|bound| bound < MOST), "{rate} {bounds:?}");
}

/// Given round trips that are mostly far above the least one, as over radio, expect at least 0.9 of the
/// rate in the mean.
#[test]
fn a_bound_that_costs_rate_is_stretched() {
    for rtt in [6, 8, 10, 15, 30] {
        let mut way = Way::new(12.5e6, MS / 2, rtt * MS);
        let (rate, bounds) = way.run(3_000);
        assert!(rate > 0.9 * 12.5e6, "{rtt} ms: {rate} {:?}", &bounds[2_900..]);
    }
}

/// Given a link that becomes slower or faster, expect the bound to follow.
#[test]
fn the_bound_follows_the_link() {
    let mut way = Way::new(12.5e6, MS / 10, MS / 10);
    way.run(600);
    way.capacity = 1.25e6;
    let (_, bounds) = way.run(400);
    assert_eq!(bounds[399], Some(LEAST));
    way.capacity = 200e6;
    let (_, bounds) = way.run(20);
    assert_eq!(bounds[19], None);
}

/// Given a link that is idle half of the time, expect the rate of the other half to count.
#[test]
fn idle_time_does_not_count() {
    let mut outstanding = Outstanding::default();
    let start = Instant::now();
    let mut bound = None;
    for n in 0..100_u32 {
        let (at, busy) = (start + 2 * STEP * n, STEP * n);
        let acked = u64::from(n) * 1_250_000;
        bound = outstanding.sample(Sample { at, acked, busy, min_rtt: MS / 10, idle: true });
    }
    assert!(bound.is_some_and(|bound| (40_000..60_000).contains(&bound)), "{bound:?}");
}
