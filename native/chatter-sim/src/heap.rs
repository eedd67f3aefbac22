//! What is going to happen, in the order of virtual time; of equal times, in the order of asking.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use crate::time::Nanos;

/// Something that happens to a part of the world.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Event {
    /// A record reaches this end of a connection.
    Arrive { wire: u32, end: u8, record: u32 },
    /// This end of a connection may have room to write again.
    Writable { wire: u32, end: u8 },
    /// A dial or a handshake has taken too long at this end.
    SetupTimeout { wire: u32, end: u8 },
    /// The control plane of a host wants to be called.
    Control { host: u32, life: u32 },
    /// The channels of a host want service.
    Service { host: u32, life: u32 },
    /// The users of a host send something.
    Load { host: u32, life: u32 },
    /// A packet that a relay held up goes on.
    Transit { host: u32, life: u32, record: u32 },
    /// A host goes on after a pause.
    Resume { host: u32 },
    /// A fault begins, or ends.
    Fault { at: u32, begins: bool },
    /// The bounds are looked at.
    Sample,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Entry {
    at: Nanos,
    seq: u64,
    event: Event,
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.seq).cmp(&(self.at, self.seq))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Events by time.
#[derive(Default)]
pub(crate) struct Heap {
    entries: BinaryHeap<Entry>,
    seq: u64,
}

impl Heap {
    pub(crate) fn push(&mut self, at: Nanos, event: Event) {
        self.seq += 1;
        self.entries.push(Entry { at, seq: self.seq, event });
    }

    /// The next event, if it happens before `end`.
    pub(crate) fn pop_before(&mut self, end: Nanos) -> Option<(Nanos, Event)> {
        if self.entries.peek()?.at >= end {
            return None;
        }
        self.entries.pop().map(|entry| (entry.at, entry.event))
    }
}
