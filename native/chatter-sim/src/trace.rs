//! What happened: a hash over everything, and the last lines of what matters.

use std::collections::VecDeque;
use std::fmt;

use crate::time::{Nanos, S};

/// Lines that are kept to be shown after a failure.
const KEPT_LINES: usize = 400;

/// The record of a run. Two runs of one seed have equal hashes.
#[derive(Default)]
pub struct Trace {
    hash: u64,
    events: u64,
    lines: VecDeque<(Nanos, String)>,
    /// Every line is printed as it comes.
    pub loud: bool,
}

impl Trace {
    /// Notes something that happens often: it goes into the hash only.
    pub fn mix(&mut self, at: Nanos, what: u64, value: u64) {
        self.events += 1;
        let mixed = at ^ what.rotate_left(40) ^ value.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.hash = (self.hash ^ mixed).wrapping_mul(0x2545_f491_4f6c_dd1d).rotate_left(23);
    }

    /// Notes bytes: they go into the hash only.
    pub fn mix_bytes(&mut self, at: Nanos, what: u64, bytes: &[u8]) {
        let fold = |sum: u64, chunk: &[u8]| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            (sum ^ u64::from_le_bytes(word)).wrapping_mul(0xff51_afd7_ed55_8ccd).rotate_left(31)
        };
        let sum = bytes.chunks(8).fold(bytes.len() as u64, fold);
        self.mix(at, what, sum);
    }

    /// Notes a line.
    pub fn line(&mut self, at: Nanos, line: fmt::Arguments<'_>) {
        let line = line.to_string();
        self.mix_bytes(at, 1, line.as_bytes());
        if self.loud {
            println!("{} {line}", seconds(at));
        }
        if self.lines.len() == KEPT_LINES {
            self.lines.pop_front();
        }
        self.lines.push_back((at, line));
    }

    /// The hash of all that has been noted.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// How often something was noted.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// The last lines, oldest first.
    pub fn last(&self, lines: usize) -> Vec<String> {
        let skip = self.lines.len().saturating_sub(lines);
        let shown = self.lines.iter().skip(skip);
        shown.map(|(at, line)| format!("{} {line}", seconds(*at))).collect()
    }
}

/// Virtual time for people.
pub fn seconds(at: Nanos) -> String {
    format!("{:>4}.{:06}", at / S, at % S / 1_000)
}
