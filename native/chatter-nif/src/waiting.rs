//! Frames that have arrived and wait to be handed to the VM.
//!
//! This is a queue behind the scheduler, so it must not undo what that has done: small frames of flows
//! that have little here go first, the rest in order of arrival. A flow keeps its order, and a fence waits
//! for all before it.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;
use rustler::{Env, NewBinary, OwnedBinary, Term};

/// Frames from this length on are put into a binary of their own at once: copying twice would cost
/// more than the locks of the VM's allocator and having the memory freed by way of another thread.
const LARGE: usize = 4 * 1024;

/// Bytes of small frames that share a segment.
const SEGMENT: usize = 64 * 1024;

/// Bytes that a flow may have in the fast lane at a time.
const FAST_BYTES: usize = 16 * 1024;

/// Bytes taken from the slow lane before the fast one is looked at again.
const SLOW_TURN: usize = 256 * 1024;

/// Bytes of small frames, and frames, that one call turns into binaries: well below a millisecond.
const FETCH_BYTES: usize = 256 * 1024;
const FETCH_FRAMES: usize = 256;

/// Empty buffers kept for later.
const SPARE: usize = 8;

/// Small frames that share a buffer until their binaries are made.
#[derive(Default)]
struct Small {
    bytes: Vec<u8>,
    /// Length and cost of each.
    frames: VecDeque<(usize, u64)>,
    /// Bytes that have been turned into binaries.
    done: usize,
}

enum Segment {
    Small(Small),
    Large(OwnedBinary, u64),
}

impl Segment {
    fn bytes(&self) -> usize {
        match self {
            Self::Small(small) => small.bytes.len(),
            Self::Large(binary, _) => binary.len(),
        }
    }
}

/// What a flow has here.
#[derive(Clone, Copy, Default)]
struct Load {
    /// Bytes in the fast lane, since it was last emptied.
    round: u64,
    fast: usize,
    /// The number, counted from 1, of the last segment of the slow lane that has something of it.
    slow: u64,
}

/// Frames between two fences.
#[derive(Default)]
struct Stage {
    fast: VecDeque<Segment>,
    slow: VecDeque<Segment>,
    /// It ends with a fence: nothing is added.
    is_over: bool,
}

impl Stage {
    fn is_empty(&self) -> bool {
        self.fast.is_empty() && self.slow.is_empty()
    }
}

/// See the [module](self).
#[derive(Default)]
pub(crate) struct Waiting {
    stages: VecDeque<Stage>,
    loads: FxHashMap<u32, Load>,
    /// Counts the times that the fast lane was emptied.
    round: u64,
    /// Segments of the slow lane made, and taken, so far.
    slow_made: u64,
    slow_taken: u64,
    spare: Vec<Small>,
}

impl Waiting {
    pub(crate) fn is_empty(&self) -> bool {
        self.stages.iter().all(Stage::is_empty)
    }

    /// Adds a frame of a flow, or a fence.
    pub(crate) fn push(&mut self, flow: Option<u32>, frame: &[u8], cost: u64) {
        if frame.len() >= LARGE {
            return self.push_large(flow, OwnedBinary::from_slice(frame), cost);
        }
        let is_fast = self.is_fast(flow, frame.len());
        let Self { stages, spare, slow_made, .. } = self;
        let Some(stage) = stages.back_mut() else { return };
        let lane = if is_fast { &mut stage.fast } else { &mut stage.slow };
        let small = match lane.back_mut() {
            Some(Segment::Small(small)) if small.bytes.len() + frame.len() <= SEGMENT => small,
            _ => {
                *slow_made += u64::from(!is_fast);
                lane.push_back(Segment::Small(spare.pop().unwrap_or_default()));
                let Some(Segment::Small(small)) = lane.back_mut() else { return };
                small
            }
        };
        small.bytes.extend_from_slice(frame);
        small.frames.push_back((frame.len(), cost));
        self.note(flow, is_fast, frame.len());
    }

    /// Adds a large frame of a flow, or a fence.
    pub(crate) fn push_large(&mut self, flow: Option<u32>, frame: OwnedBinary, cost: u64) {
        let len = frame.len();
        let is_fast = self.is_fast(flow, len);
        let Some(stage) = self.stages.back_mut() else { return };
        let lane = if is_fast { &mut stage.fast } else { &mut stage.slow };
        self.slow_made += u64::from(!is_fast);
        lane.push_back(Segment::Large(frame, cost));
        self.note(flow, is_fast, len);
    }

    /// Which lane a frame goes into. Makes sure that there is a stage for it.
    fn is_fast(&mut self, flow: Option<u32>, len: usize) -> bool {
        let is_full = |stage: &Stage| stage.is_over || (flow.is_none() && !stage.is_empty());
        if self.stages.back().is_none_or(is_full) {
            self.stages.push_back(Stage::default());
            self.loads.clear();
        }
        let Some(flow) = flow else { return true };
        let load = self.loads.get(&flow).copied().unwrap_or_default();
        let fast = if load.round == self.round { load.fast } else { 0 };
        load.slow <= self.slow_taken && fast + len <= FAST_BYTES
    }

    fn note(&mut self, flow: Option<u32>, is_fast: bool, len: usize) {
        let Some(flow) = flow else {
            if let Some(stage) = self.stages.back_mut() {
                stage.is_over = true;
            }
            return;
        };
        let load = self.loads.entry(flow).or_default();
        if !is_fast {
            load.slow = self.slow_made;
        } else if load.round == self.round {
            load.fast += len;
        } else {
            (load.round, load.fast) = (self.round, len);
        }
    }

    /// Moves what is next into `taken`, which is empty.
    fn take(&mut self, taken: &mut Taken) {
        for small in taken.spare.drain(..) {
            if self.spare.len() < SPARE {
                self.spare.push(small);
            }
        }
        while self.stages.len() > 1 && self.stages[0].is_empty() {
            self.stages.pop_front();
        }
        let Some(stage) = self.stages.front_mut() else { return };
        let mut bytes = 0;
        while bytes < FETCH_BYTES
            && let Some(segment) = stage.fast.pop_front()
        {
            bytes += segment.bytes();
            taken.segments.push_back(segment);
        }
        self.round += u64::from(stage.fast.is_empty());
        while bytes < SLOW_TURN
            && let Some(segment) = stage.slow.pop_front()
        {
            bytes += segment.bytes();
            self.slow_taken += 1;
            taken.segments.push_back(segment);
        }
        if self.stages.len() == 1 && self.stages[0].is_empty() {
            self.stages.clear();
            self.loads.clear();
        }
    }
}

/// Frames that the input process has taken and not yet turned into binaries.
#[derive(Default)]
pub(crate) struct Taken {
    segments: VecDeque<Segment>,
    spare: Vec<Small>,
}

impl Taken {
    pub(crate) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Takes what is next of what waits.
    pub(crate) fn refill(&mut self, waiting: &mut Waiting) {
        waiting.take(self);
    }

    /// Turns the next frames into binaries; also gives their cost.
    pub(crate) fn fetch<'a>(&mut self, env: Env<'a>) -> (Vec<Term<'a>>, u64) {
        let mut frames = Vec::with_capacity(32);
        let (mut bytes, mut total) = (0, 0);
        while bytes < FETCH_BYTES
            && frames.len() < FETCH_FRAMES
            && let Some(segment) = self.segments.front_mut()
        {
            if let Segment::Small(small) = segment
                && let Some((len, cost)) = small.frames.pop_front()
            {
                let frame = &small.bytes[small.done..small.done + len];
                frames.push(NewBinary::from_slice(env, frame).into());
                small.done += len;
                bytes += len;
                total += cost;
                continue;
            }
            match self.segments.pop_front() {
                Some(Segment::Large(binary, cost)) => {
                    bytes += binary.len();
                    total += cost;
                    frames.push(binary.release(env).to_term(env));
                }
                Some(Segment::Small(mut small)) => {
                    small.bytes.clear();
                    small.done = 0;
                    self.spare.push(small);
                }
                None => {}
            }
        }
        while let Some(Segment::Small(small)) = self.segments.front()
            && small.frames.is_empty()
            && let Some(Segment::Small(mut small)) = self.segments.pop_front()
        {
            small.bytes.clear();
            small.done = 0;
            self.spare.push(small);
        }
        (frames, total)
    }
}
