//! Fences: what waits for all before it, and what waits behind it. A lead is a fence that waits for what is
//! urgent of its own flow alone, and without delay.

use bytes::Bytes;

use super::{Outbox, put};
use crate::channel::CHUNK_LEN;
use crate::channel::build::{Building, Part};
use crate::channel::flows::Progress;
use crate::channel::options::SendOptions;
use crate::channel::way::{Outgoing, Place, Way};
use crate::flow::FlowKey;
use crate::sched::fair::Level;
use crate::wire::data::item;

/// Something behind a fence.
pub(super) enum Later {
    Fence(Part),
    /// With its bytes, and whether they count as queued of its flow.
    Frame(SendOptions, Vec<Bytes>, usize, bool),
}

/// What may leave while there is a lead.
pub(super) enum Gate {
    /// The lead.
    Lead,
    /// The first urgent packet of the way, which the lead has to wait for.
    Urgent,
    /// Nothing on this way: the lead waits for another one, and must not be overtaken.
    Shut,
}

impl Outbox {
    /// Takes a small fence: a frame or a message of the handshake.
    pub(in crate::channel) fn push_fence(&mut self, kind: u8, pieces: &[&[u8]], total: usize) {
        self.counts.fences += 1;
        let mut building = Building::default();
        put(building.item(None, kind, total, total), pieces);
        building.need();
        if let Some(part) = building.take() {
            self.bytes += part.len();
            self.later_bytes += part.len();
            self.later.push_back(Later::Fence(part));
        }
        self.expected = self.expected.saturating_sub(total);
    }

    /// Takes a small frame that all later ones may need, and that needs none of the earlier ones of others.
    pub(super) fn push_lead(&mut self, key: u64, pieces: &[&[u8]], total: usize) {
        let slot = self.flows.find(key);
        let flow = slot.and_then(|slot| self.flows.get_mut(slot));
        let (queued, behind) = flow.map_or((0, 0), |flow| (flow.queued, flow.urgent));
        if queued > 0 {
            return self.push_fence(item::FRAME, pieces, total);
        }
        // What comes later must not share a packet with what leaves before it.
        (0..self.used).for_each(|way| self.end_urgent(way));
        self.counts.fences += 1;
        let mut building = Building::default();
        put(building.item(None, item::FRAME, total, total), pieces);
        building.need();
        if let Some(part) = building.take() {
            self.bytes += part.len();
            self.leads.push_back((part, behind));
        }
        self.expected = self.expected.saturating_sub(total);
    }

    /// What the next lead lets a way send; `None` if there is none.
    pub(super) fn gate(&self, way: usize) -> Option<Gate> {
        let (_, behind) = self.leads.front()?;
        if *behind <= self.urgent_left() {
            return Some(Gate::Lead);
        }
        let first = self.ways.get(way).and_then(Way::first_urgent);
        Some(if first.is_some_and(|first| first <= *behind) { Gate::Urgent } else { Gate::Shut })
    }

    /// Nothing is queued but what is behind a fence. The fence, if it is one; otherwise, what is before
    /// the next fence is queued.
    pub(super) fn pass_fence(&mut self) -> Option<Outgoing> {
        match self.later.pop_front()? {
            Later::Fence(part) => {
                self.later_bytes -= part.len();
                Some(Outgoing::new(part, Level::Urgent, 0, None, Place::Fence))
            }
            first @ Later::Frame(..) => {
                let mut passed = Vec::new();
                let mut next = Some(first);
                let mut rest = std::mem::take(&mut self.later);
                while let Some(Later::Frame(options, pieces, total, counted)) = next {
                    self.later_bytes -= total;
                    self.bytes -= total;
                    if counted
                        && let FlowKey::Flow(key) = options.flow
                        && let Some(slot) = self.flows.find(key)
                        && let Some(flow) = self.flows.get_mut(slot)
                    {
                        flow.queued -= total;
                        passed.push(slot);
                    }
                    self.push_again(&options, &pieces, total);
                    // One of them may have become a fence.
                    let is_frame =
                        self.later.is_empty() && matches!(rest.front(), Some(Later::Frame(..)));
                    next = if is_frame { rest.pop_front() } else { None };
                }
                self.end_batch();
                self.later.append(&mut rest);
                passed.into_iter().for_each(|slot| self.check_resume(slot));
                None
            }
        }
    }

    pub(super) fn push_again(&mut self, options: &SendOptions, pieces: &[Bytes], total: usize) {
        // What waited behind a fence does not retire others.
        let progress = Progress::default();
        if total > CHUNK_LEN {
            return self.push_large(options, pieces, total, progress);
        }
        let pieces: Vec<&[u8]> = pieces.iter().map(|piece| &piece[..]).collect();
        self.push_small(options, &pieces, total, progress);
    }

    pub(super) fn push_later(
        &mut self,
        options: SendOptions,
        pieces: Vec<Bytes>,
        total: usize,
        progress: Progress,
    ) {
        self.later_bytes += total;
        self.bytes += total;
        let slot = match options.flow {
            FlowKey::Flow(key) => self.slot(key, progress),
            FlowKey::Lead(_) | FlowKey::Fence => None,
        };
        if let Some(slot) = slot
            && let Some(flow) = self.flows.get_mut(slot)
        {
            flow.queued += total;
            self.check_quota(slot);
        }
        self.later.push_back(Later::Frame(options, pieces, total, slot.is_some()));
    }
}
