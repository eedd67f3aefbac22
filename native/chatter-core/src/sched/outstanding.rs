//! How much a link may have outstanding in the kernel: bytes that were sent and not acknowledged, or are
//! not sent yet. Nothing that is queued later can overtake them.
//!
//! TCP itself bounds them only when a queue on the way overflows. On a thin link that is tens of
//! milliseconds, and the loss holds up everything once more. So what is outstanding is kept to what the
//! link carries in two of its least round trips (as BBR bounds its window, by the delivery rate and the
//! least round trip; draft-ietf-ccwg-bbr), what the writer may send while it wakes up ([`HEADROOM_LEN`]), and
//! a batch. Where that turns out to cost rate, the bound is stretched: after a loss of rate at once, else by
//! trials. On a fast or long way there is none.

use std::time::{Duration, Instant};

/// What the bound leaves for the writer to wake up in, in bytes: three packets of small messages. With less,
/// flows with little to send lose their turns to one with much; more is time that all of them wait.
pub const HEADROOM_LEN: u32 = 25 * 1024;

/// So much less is left that it takes no longer than this at the rate of the link.
pub const HEADROOM_MOST: Duration = Duration::from_millis(2);

/// So much more is left that it takes at least as long.
pub const HEADROOM_LEAST: Duration = Duration::from_micros(500);

/// The least bound, in bytes: two chunks.
pub const LEAST: u32 = 32 * 1024;

/// Above it there is no bound, in bytes: on such a link it would save little.
pub const MOST: u32 = 256 * 1024;

/// What is written at once at least, in bytes.
const BATCH: f64 = 16.0 * 1024.0;

/// A rate is taken over at least so long.
const PERIOD: Duration = Duration::from_millis(80);

/// The highest rate of so many samples counts, or of up to twice as many: one that was reached twice in
/// succession. A link that was idle may carry a burst at once.
const WINDOW: u32 = 50;

/// A rate below this share of the highest one, twice in succession, is a loss of rate.
const SHORT: f64 = 0.9;
const STRETCH: f64 = 1.5;
const STRETCH_MOST: f64 = 8.0;

/// After so many samples without a loss of rate, another bound is tried for [`TRIAL`] samples: one that is
/// larger by [`STEP`] is kept if it brings more than [`GAIN`], one that is smaller if it costs less than
/// [`COST`].
const STEADY: u32 = 20;
const TRIAL: u32 = 2;
const STEP: f64 = 1.25;
const GAIN: f64 = 1.1;
const COST: f64 = 0.95;

/// What the kernel says of a connection, taken while the socket is full.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// When it was taken.
    pub at: Instant,
    /// Bytes acknowledged since the connection began.
    pub acked: u64,
    /// For how long something has been outstanding, since the connection began.
    pub busy: Duration,
    /// The least round trip lately.
    pub min_rtt: Duration,
    /// The link had nothing to send at some time since the sample before.
    pub idle: bool,
}

#[derive(Clone, Copy, Debug)]
struct Trial {
    /// The stretch and the rate before it.
    stretch: f64,
    rate: f64,
    samples: u32,
}

/// Finds the bound for one link.
#[derive(Debug)]
pub struct Outstanding {
    last: Option<Sample>,
    /// The least round trip of the link's life: while the link is busy, all of them include a queue.
    min_rtt: Duration,
    /// The highest rate in this window of samples and in the one before, in bytes per second.
    best: [f64; 2],
    samples: u32,
    /// The rate of the last sample, and smoothed.
    before: f64,
    usual: f64,
    stretch: f64,
    short: u32,
    steady: u32,
    trial: Option<Trial>,
    /// The last trial was of a larger bound.
    tried_more: bool,
}

impl Default for Outstanding {
    fn default() -> Self {
        Self {
            last: None,
            min_rtt: Duration::MAX,
            best: [0.0; 2],
            samples: 0,
            before: 0.0,
            usual: 0.0,
            stretch: 1.0,
            short: 0,
            steady: 0,
            trial: None,
            tried_more: false,
        }
    }
}

impl Outstanding {
    /// Takes a sample; those that follow too soon add up. Gives the bound, in bytes, if there is to be one.
    pub fn sample(&mut self, sample: Sample) -> Option<u32> {
        self.min_rtt = self.min_rtt.min(sample.min_rtt);
        if let Some(rate) = self.rate(sample) {
            self.note(rate);
            self.adapt(rate);
        }
        self.bound()
    }

    /// Bytes that may be outstanding, if there is a bound.
    pub fn bound(&self) -> Option<u32> {
        let best = self.best();
        if best == 0.0 {
            return None;
        }
        let carried_in = |time: Duration| best * time.as_secs_f64();
        let headroom =
            f64::from(HEADROOM_LEN).clamp(carried_in(HEADROOM_LEAST), carried_in(HEADROOM_MOST));
        let bytes = (2.0 * carried_in(self.min_rtt) + headroom + BATCH) * self.stretch;
        (bytes <= f64::from(MOST)).then_some((bytes as u32).max(LEAST))
    }

    /// The rate since the last sample that counted, in bytes per second.
    fn rate(&mut self, sample: Sample) -> Option<f64> {
        let Some(last) = self.last else {
            self.last = Some(sample);
            return None;
        };
        // While there always was something to send, the time in which the writer was late counts as well.
        let elapsed = if sample.idle || last.idle {
            sample.busy.saturating_sub(last.busy)
        } else {
            sample.at.saturating_duration_since(last.at)
        };
        if elapsed < PERIOD {
            let idle = last.idle || sample.idle;
            self.last = Some(Sample { idle, ..last });
            return None;
        }
        self.last = Some(Sample { idle: false, ..sample });
        Some(sample.acked.saturating_sub(last.acked) as f64 / elapsed.as_secs_f64())
    }

    fn best(&self) -> f64 {
        self.best[0].max(self.best[1])
    }

    fn note(&mut self, rate: f64) {
        self.samples += 1;
        if self.samples >= WINDOW {
            self.samples = 0;
            self.best = [0.0, self.best[0]];
        }
        self.best[0] = self.best[0].max(rate.min(self.before));
        self.before = rate;
    }

    fn adapt(&mut self, rate: f64) {
        if let Some(trial) = &mut self.trial {
            trial.samples += 1;
            if trial.samples == TRIAL {
                let trial = *trial;
                self.trial = None;
                let least = if self.tried_more { GAIN } else { COST };
                if rate < least * trial.rate {
                    self.stretch = trial.stretch;
                }
            }
            return;
        }
        self.usual = if self.usual == 0.0 { rate } else { (self.usual * 7.0 + rate) / 8.0 };
        if rate >= SHORT * self.best() {
            self.short = 0;
            self.steady += 1;
        } else {
            self.steady = 0;
            self.short += 1;
            if self.short == 2 {
                self.short = 0;
                self.stretch = (self.stretch * STRETCH).min(STRETCH_MOST);
            }
        }
        if self.steady == STEADY {
            self.steady = 0;
            self.tried_more = !self.tried_more || self.stretch <= 1.0;
            self.trial = Some(Trial { stretch: self.stretch, rate: self.usual, samples: 0 });
            let step = if self.tried_more { STEP } else { 1.0 / STEP };
            self.stretch = (self.stretch * step).clamp(1.0, STRETCH_MOST);
        }
    }
}
