//! Round trip times, and the metric that follows from them.

/// Up to which smoothed round trip (microseconds) a link costs how much. Above all: [`FAR_METRIC`].
const CLASSES: [(u32, u32); 4] = [(1_000, 10), (5_000, 20), (20_000, 50), (100_000, 100)];

/// The metric of a link slower than all classes.
const FAR_METRIC: u32 = 300;

/// Samples in a row that must agree before the class changes.
const STEADY_SAMPLES: u8 = 4;

/// Smooths round trip times and classifies them, without following every wobble.
#[derive(Clone, Debug, Default)]
pub(super) struct Rtt {
    srtt_us: Option<u32>,
    class: usize,
    /// Samples in a row that asked for another class.
    restless: u8,
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

    /// Takes in one measured round trip. The first decides; later the class changes when the smoothed
    /// time was a quarter beyond its bounds for [`STEADY_SAMPLES`] in a row.
    pub(super) fn sample(&mut self, rtt_us: u32) {
        let Some(srtt) = self.srtt_us else {
            self.srtt_us = Some(rtt_us);
            self.class = class_of(rtt_us);
            return;
        };
        let srtt = ((u64::from(srtt) * 7 + u64::from(rtt_us)) / 8) as u32;
        self.srtt_us = Some(srtt);
        let settled =
            class_of(srtt.saturating_sub(srtt / 5))..=class_of(srtt.saturating_add(srtt / 3));
        if settled.contains(&self.class) {
            self.restless = 0;
            return;
        }
        self.restless += 1;
        if self.restless >= STEADY_SAMPLES {
            self.restless = 0;
            self.class = class_of(srtt);
        }
    }
}

fn class_of(rtt_us: u32) -> usize {
    CLASSES.iter().take_while(|(limit_us, _)| rtt_us > *limit_us).count()
}
