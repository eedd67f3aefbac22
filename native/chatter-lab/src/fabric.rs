//! What happens to frames between two ports: pure, driven with time in microseconds.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::frame::{self, Destination};

/// Parts in a million: the unit of all probabilities here.
pub const MILLION: u32 = 1_000_000;
/// How much longer a frame takes that others are to overtake.
pub const OVERTAKEN_US: u64 = 5_000;
/// What one pair may hold back; more is dropped at its tail, as a router does.
pub const PAIR_QUEUE_BYTES: usize = 4 << 20;

/// What one directed pair of ports does to its frames. The default does nothing to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// Nothing passes, and the sender is not told.
    pub cut: bool,
    /// Dropped, in a million.
    pub loss_ppm: u32,
    /// The same for frames to groups alone: multicast and broadcast.
    pub group_loss_ppm: u32,
    /// Delivered twice, in a million.
    pub duplicate_ppm: u32,
    /// Held [`OVERTAKEN_US`] longer so that later ones overtake, in a million.
    pub reorder_ppm: u32,
    /// One bit is changed, in a million.
    pub corrupt_ppm: u32,
    /// How long every frame takes.
    pub delay_us: u64,
    /// Up to so much more, at random; order is kept.
    pub jitter_us: u64,
    /// Bytes a second; 0: no limit.
    pub rate: u64,
}

impl Shape {
    fn loss_of(&self, frame: &[u8]) -> u32 {
        if frame::is_to_group(frame) {
            self.loss_ppm.max(self.group_loss_ppm)
        } else {
            self.loss_ppm
        }
    }
}

/// Figures since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Frames handed to a port, repeated ones included.
    pub forwarded: u64,
    /// Dropped because the pair is cut.
    pub cut: u64,
    /// Dropped at random.
    pub lost: u64,
    /// Dropped because the pair held [`PAIR_QUEUE_BYTES`].
    pub full: u64,
    /// Delivered twice.
    pub duplicated: u64,
    /// Held so that others overtake.
    pub reordered: u64,
    /// With a bit changed.
    pub corrupted: u64,
    /// Turned into resets.
    pub resets: u64,
}

#[derive(Clone, Debug)]
struct Pair {
    shape: Shape,
    random: Random,
    resets_wanted: u32,
    /// When the last frame in order is delivered, and when the line is free again.
    last_due_us: u64,
    line_free_us: u64,
    held_bytes: usize,
}

/// A frame on its way. Ordered by time, then by when it came.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Held {
    due_us: u64,
    number: u64,
    from: usize,
    to: usize,
    frame: Vec<u8>,
}

/// All pairs of a switch.
#[derive(Debug)]
pub struct Fabric {
    ports: usize,
    pairs: Vec<Pair>,
    held: BinaryHeap<Reverse<Held>>,
    next_number: u64,
    stats: Stats,
}

impl Fabric {
    /// A switch with so many ports. The same seed and the same frames have the same fate.
    pub fn new(ports: usize, seed: u64) -> Self {
        let pair = |index: usize| Pair {
            shape: Shape::default(),
            random: Random(seed ^ (index as u64 + 1).wrapping_mul(0xd134_2543_de82_ef95)),
            resets_wanted: 0,
            last_due_us: 0,
            line_free_us: 0,
            held_bytes: 0,
        };
        Self {
            ports,
            pairs: (0..ports * ports).map(pair).collect(),
            held: BinaryHeap::new(),
            next_number: 0,
            stats: Stats::default(),
        }
    }

    /// Number of ports.
    pub fn ports(&self) -> usize {
        self.ports
    }

    /// Figures since the start.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// What the pair does to its frames; to be changed at will.
    pub fn shape_mut(&mut self, from: usize, to: usize) -> &mut Shape {
        let index = self.index(from, to);
        &mut self.pairs[index].shape
    }

    /// The next segment of an open TCP connection between the two becomes a reset.
    pub fn reset_next(&mut self, from: usize, to: usize) {
        let index = self.index(from, to);
        self.pairs[index].resets_wanted = 1;
    }

    /// A frame came in at a port: `deliver` is called with what leaves at once.
    pub fn offer(
        &mut self,
        now_us: u64,
        from: usize,
        frame: &[u8],
        deliver: &mut dyn FnMut(usize, &[u8]),
    ) {
        match frame::destination(frame, self.ports) {
            Destination::Nowhere => {}
            Destination::Port(to) if to == from => {}
            Destination::Port(to) => self.pass(now_us, (from, to), frame, deliver),
            Destination::All => (0..self.ports)
                .filter(|to| *to != from)
                .for_each(|to| self.pass(now_us, (from, to), frame, deliver)),
        }
    }

    /// When [`Self::release`] has something to do next.
    pub fn next_due_us(&self) -> Option<u64> {
        self.held.peek().map(|Reverse(held)| held.due_us)
    }

    /// Delivers all that is due.
    pub fn release(&mut self, now_us: u64, deliver: &mut dyn FnMut(usize, &[u8])) {
        while self.next_due_us().is_some_and(|due| due <= now_us) {
            let Some(Reverse(held)) = self.held.pop() else {
                return;
            };
            let index = self.index(held.from, held.to);
            self.pairs[index].held_bytes -= held.frame.len();
            self.stats.forwarded += 1;
            deliver(held.to, &held.frame);
        }
    }

    fn index(&self, from: usize, to: usize) -> usize {
        assert!(from < self.ports && to < self.ports, "no such pair: {from} {to}");
        from * self.ports + to
    }

    fn pass(
        &mut self,
        now_us: u64,
        (from, to): (usize, usize),
        frame: &[u8],
        deliver: &mut dyn FnMut(usize, &[u8]),
    ) {
        let index = self.index(from, to);
        let pair = &mut self.pairs[index];
        let shape = pair.shape;
        if shape == Shape::default() && pair.resets_wanted == 0 && pair.held_bytes == 0 {
            self.stats.forwarded += 1;
            return deliver(to, frame);
        }
        if shape.cut {
            self.stats.cut += 1;
            return;
        }
        // Always the same number of draws for a frame: what is switched on does not move the rest.
        let draws: [u32; 4] = std::array::from_fn(|_| pair.random.below(MILLION));
        let (jitter, bit) = (pair.random.next(), pair.random.next());
        let mut frame = frame.to_vec();
        if pair.resets_wanted > 0 && frame::make_reset(&mut frame) {
            pair.resets_wanted -= 1;
            self.stats.resets += 1;
        } else if draws[0] < shape.loss_of(&frame) {
            self.stats.lost += 1;
            return;
        }
        if draws[1] < shape.corrupt_ppm {
            self.stats.corrupted += 1;
            flip(&mut frame, bit);
        }
        let copies = if draws[2] < shape.duplicate_ppm { 2 } else { 1 };
        self.stats.duplicated += copies - 1;
        if pair.held_bytes + frame.len() > PAIR_QUEUE_BYTES {
            self.stats.full += 1;
            return;
        }
        let mut due_us = pair.due_us(now_us, frame.len(), jitter);
        if draws[3] < shape.reorder_ppm {
            self.stats.reordered += 1;
            due_us += OVERTAKEN_US;
        } else {
            pair.last_due_us = due_us;
        }
        for _ in 0..copies {
            self.pairs[index].held_bytes += frame.len();
            let number = self.next_number;
            self.next_number += 1;
            self.held.push(Reverse(Held { due_us, number, from, to, frame: frame.clone() }));
        }
    }
}

impl Pair {
    fn due_us(&mut self, now_us: u64, length: usize, jitter: u64) -> u64 {
        let sent_us = match self.shape.rate {
            0 => now_us,
            rate => {
                let took_us = (length as u64 * 1_000_000).div_ceil(rate);
                self.line_free_us = self.line_free_us.max(now_us) + took_us;
                self.line_free_us
            }
        };
        let jitter_us = jitter % (self.shape.jitter_us + 1);
        self.last_due_us.max(sent_us + self.shape.delay_us + jitter_us)
    }
}

/// Changes one bit behind the addresses, so that the frame arrives where it should.
fn flip(frame: &mut [u8], bit: u64) {
    if let Some(body) = frame.get_mut(12..).filter(|body| !body.is_empty()) {
        let bits = body.len() as u64 * 8;
        let place = usize::try_from(bit % bits).unwrap_or(0);
        body[place / 8] ^= 1 << (place % 8);
    }
}

/// SplitMix64.
#[derive(Clone, Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u32) -> u32 {
        u32::try_from(((self.next() >> 32) * u64::from(limit)) >> 32).unwrap_or(0)
    }
}
