//! Figures of flows.

use crate::sched::fair::LEVELS;

/// Figures of one flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowFigures {
    /// What the user calls it.
    pub key: u64,
    /// Frames handed in so far; a large one counts once for each of its chunks.
    pub items: u64,
    /// Bytes handed in so far.
    pub bytes: u64,
    /// Bytes that wait in its own queue.
    pub queued: usize,
}

/// Counts of an outbox since it was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FlowCounts {
    /// Flows known now.
    pub flows: usize,
    /// Flows that were retired because the table was full.
    pub retired: u64,
    /// Fences.
    pub fences: u64,
    /// Chunks of large frames.
    pub chunks: u64,
    /// Times that a flow was over its quota.
    pub held: u64,
    /// Packets that left, by level.
    pub packets: [u64; LEVELS],
    /// Frames given up because their deadline was over.
    pub late: u64,
    /// Frames that were lost and, as was asked for, not sent again.
    pub given_up: u64,
    /// Frames that were lost for good, of which the other end was told.
    pub lost: u64,
}
