//! Round trip times, and the metric that follows from them.

use std::collections::VecDeque;

/// Up to which smoothed round trip (microseconds) a link costs how much. Above all: [`FAR_METRIC`].
const CLASSES: [(u32, u32); 4] = [(1_000, 10), (5_000, 20), (20_000, 50), (100_000, 100)];

/// The metric of a link slower than all classes.
const FAR_METRIC: u32 = 300;

/// The class follows the least of so many samples.
const WINDOW: usize = 8;

/// Smooths round trip times and classifies them.
///
/// What is shown is smoothed. What is classified is the least of the last samples, as in the clock
/// filter of NTP (RFC 5905, 10): waiting for a processor or behind other traffic only ever adds, and
/// a link of a busy host, or a full one, is not a longer way.
#[derive(Clone, Debug, Default)]
pub(super) struct Rtt {
    srtt_us: Option<u32>,
    class: usize,
    /// The last samples, at most [`WINDOW`].
    samples: VecDeque<u32>,
}

impl Rtt {
    /// Smoothed round trip in microseconds.
    pub(super) fn srtt_us(&self) -> Option<u32> {
        self.srtt_us
    }

    /// The metric of the present class; that of the fastest before the first sample.
    pub(super) fn metric(&self) -> u32 {
        CLASSES.get(self.class).map_or(FAR_METRIC, |(_, metric)| *metric)
    }

    /// Takes in one measured round trip. The first decides; later the class changes when the least of
    /// the last [`WINDOW`] is a quarter beyond its bounds.
    pub(super) fn sample(&mut self, rtt_us: u32) {
        let first = self.srtt_us.is_none();
        let srtt = self.srtt_us.unwrap_or(rtt_us);
        self.srtt_us = Some(((u64::from(srtt) * 7 + u64::from(rtt_us)) / 8) as u32);
        if self.samples.len() == WINDOW {
            self.samples.pop_front();
        }
        self.samples.push_back(rtt_us);
        let least = self.samples.iter().copied().min().unwrap_or(rtt_us);
        let settled =
            class_of(least.saturating_sub(least / 5))..=class_of(least.saturating_add(least / 3));
        if first || !settled.contains(&self.class) {
            self.class = class_of(least);
        }
    }
}

fn class_of(rtt_us: u32) -> usize {
    CLASSES.iter().take_while(|(limit_us, _)| rtt_us > *limit_us).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Given a first sample that waited, and then a host so busy that seven of eight samples wait,
    /// expect the metric of the way itself from the first sample on that did not.
    #[test]
    fn waiting_is_no_distance() {
        let mut rtt = Rtt::default();
        rtt.sample(9_000);
        assert_eq!(rtt.metric(), 50);
        for at in 0..100 {
            rtt.sample(if at % 8 == 0 { 300 } else { 9_000 });
            assert_eq!(rtt.metric(), 10, "{at}");
        }
    }

    /// Given a way that becomes longer, expect the metric to follow after so many samples as are kept.
    #[test]
    fn a_longer_way_is_told_after_a_window() {
        let mut rtt = Rtt::default();
        for _ in 0..20 {
            rtt.sample(300);
        }
        for _ in 1..WINDOW {
            rtt.sample(30_000);
            assert_eq!(rtt.metric(), 10);
        }
        rtt.sample(30_000);
        assert_eq!(rtt.metric(), 100);
    }
}
