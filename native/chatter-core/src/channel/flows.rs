//! The flows that a sender knows: a bounded table. Of a full one, flows that have nothing under way are
//! retired, those first that have not been used for long (second chance, an approximation of LRU).

use std::time::Instant;

use rustc_hash::FxHashMap;

use super::build::Building;
use super::options::Class;
use crate::sched::STREAMING;

/// Flows that a table holds before idle ones are retired, and at most: the rest are fences then.
pub(super) const MAX_FLOWS: usize = 4096;
const MOST_FLOWS: usize = 8 * MAX_FLOWS;

/// Flows looked at per new one, in search of an idle one.
const LOOK_AT: usize = 4;

/// One flow of a sender.
#[derive(Debug)]
pub(super) struct Flow {
    /// What the user calls it.
    pub(super) key: u64,
    /// What the other end calls it. Never used again, until 2^32 flows later.
    pub(super) id: u32,
    /// The sequence number of its next item.
    pub(super) sequence: u32,
    /// Bytes in its own queue, and those in [`Flow::building`].
    pub(super) queued: usize,
    /// Small frames that will share a packet, until the end of the batch.
    pub(super) building: Building,
    /// Bytes among the urgent ones, in this round of them.
    pub(super) sparse: usize,
    pub(super) round: u64,
    /// The last urgent packet that it had something in.
    pub(super) urgent: u64,
    /// When it last had a backlog.
    backlog: Option<Instant>,
    /// The way that it takes, and when that was chosen.
    pub(super) way: u8,
    pub(super) ways_epoch: u32,
    /// Its user was asked to hold its sender back.
    pub(super) held: bool,
    /// All that it has sent so far has a number up to this one; 0 while that is not known.
    settled: u64,
    /// Items, and bytes in them, handed in so far.
    pub(super) items: u64,
    pub(super) bytes: u64,
    pub(super) class: Class,
}

impl Flow {
    /// Tells flows apart at relays; not 0, which urgent packets of several flows have.
    pub(super) fn label(&self) -> u16 {
        (self.key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as u16 | 1
    }

    /// It has a backlog now.
    pub(super) fn note_backlog(&mut self, now: Option<Instant>) {
        self.backlog = now;
    }

    /// Whether somebody may wait for its small things: not while it has a backlog every now and then.
    pub(super) fn is_pressing(&self, now: Option<Instant>) -> bool {
        let over =
            |(now, then): (Instant, Instant)| now.saturating_duration_since(then) >= STREAMING;
        now.zip(self.backlog).is_none_or(over)
    }

    /// Takes the class of what is handed in. While something is queued the class stays: what is ahead of
    /// its turn would use up the credit of what it has to wait for.
    pub(super) fn take_class(&mut self, class: Class) {
        if self.queued == 0 {
            self.class = class;
        }
    }

    /// Takes the next sequence number for an item of so many bytes.
    pub(super) fn take_sequence(&mut self, items: u32, bytes: usize) -> (u32, u32) {
        let taken = (self.id, self.sequence);
        self.sequence = self.sequence.wrapping_add(items);
        self.items += u64::from(items);
        self.bytes += bytes as u64;
        self.settled = 0;
        taken
    }
}

/// How far a sender is, for finding out what is idle.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    /// The last number given.
    pub(super) last_number: u64,
    /// All packets below are acknowledged.
    pub(super) first_unacked: u64,
    /// The last urgent packet that has a number.
    pub(super) urgent: u64,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Flows {
    flows: Vec<Flow>,
    by_key: FxHashMap<u64, u32>,
    /// Who was asked for last: mostly also who is asked for next.
    last: Option<(u64, u32)>,
    next_id: u32,
    hand: usize,
    retired: u64,
}

impl Flows {
    pub(super) fn len(&self) -> usize {
        self.flows.len()
    }

    /// Flows retired so far.
    pub(super) fn retired(&self) -> u64 {
        self.retired
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Flow> {
        self.flows.iter()
    }

    pub(super) fn get_mut(&mut self, slot: u32) -> Option<&mut Flow> {
        self.flows.get_mut(slot as usize)
    }

    /// The slot of a key; `None` if it has to be added.
    pub(super) fn find(&mut self, key: u64) -> Option<u32> {
        if let Some((last, slot)) = self.last
            && last == key
        {
            return Some(slot);
        }
        let slot = *self.by_key.get(&key)?;
        self.last = Some((key, slot));
        Some(slot)
    }

    /// Adds a flow. If the table is full, one that is idle gives its place: its id, and the sequence
    /// number of the item that ends it. `None` if there is no room at all.
    pub(super) fn add(
        &mut self,
        key: u64,
        progress: Progress,
    ) -> Option<(u32, Option<(u32, u32)>)> {
        let idle = if self.flows.len() >= MAX_FLOWS { self.find_idle(progress) } else { None };
        if idle.is_none() && self.flows.len() >= MOST_FLOWS {
            return None;
        }
        let flow = Flow {
            key,
            id: self.next_id,
            sequence: 0,
            queued: 0,
            building: Building::default(),
            sparse: 0,
            round: 0,
            urgent: 0,
            backlog: None,
            way: 0,
            ways_epoch: u32::MAX,
            held: false,
            settled: 0,
            items: 0,
            bytes: 0,
            class: Class::Normal,
        };
        self.next_id = self.next_id.wrapping_add(1);
        let (slot, ended) = match idle {
            Some(slot) => {
                let old = std::mem::replace(&mut self.flows[slot], flow);
                self.by_key.remove(&old.key);
                self.retired += 1;
                (slot as u32, Some((old.id, old.sequence)))
            }
            None => {
                self.flows.push(flow);
                (self.flows.len() as u32 - 1, None)
            }
        };
        self.by_key.insert(key, slot);
        self.last = Some((key, slot));
        Some((slot, ended))
    }

    /// There are only so many ways from now on.
    pub(super) fn keep_ways(&mut self, ways: usize) {
        for flow in &mut self.flows {
            flow.way = (usize::from(flow.way) % ways) as u8;
        }
    }

    fn find_idle(&mut self, progress: Progress) -> Option<usize> {
        for _ in 0..LOOK_AT {
            self.hand = (self.hand + 1) % self.flows.len();
            let flow = &mut self.flows[self.hand];
            if flow.queued > 0 || flow.held || flow.urgent > progress.urgent {
                continue;
            }
            if flow.settled == 0 {
                // All of it has a number by now; whether that is acknowledged shows the next time.
                flow.settled = progress.last_number;
            } else if progress.first_unacked > flow.settled {
                return Some(self.hand);
            }
        }
        None
    }
}
