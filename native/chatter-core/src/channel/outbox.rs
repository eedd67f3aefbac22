//! What a sender has not sent yet: a queue for each flow. Small frames of flows without a backlog share
//! urgent packets, the rest take turns by flow; a fence waits for all before it, and all after it for the
//! fence (`fences`). A fence that only those after it need (a lead) leaves at once. Packets get their numbers
//! when they leave. Senders that have too much queued are held back (`quotas`).
//!
//! All of it is there once for each of the equally short ways that lead to the other node: a flow
//! stays on one of them.

mod fences;
mod figures;
mod quotas;

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;

use super::build::{Building, Part, chunks};
use super::flows::{Flows, Progress};
use super::options::{Class, SendOptions};
use super::way::{Outgoing, Place, Way};
use crate::flow::FlowKey;
use crate::sched::fair::{Level, SPARSE_BYTES};
use crate::wire::data::item;
use fences::{Gate, Later};
pub use figures::{FlowCounts, FlowFigures};

/// Equally short ways that are used at once, at most.
pub const MAX_WAYS: usize = 4;

/// See the [module](self).
pub(super) struct Outbox {
    flows: Flows,
    /// One at least. Those behind the first `used` are empty.
    ways: Vec<Way>,
    used: usize,
    /// Counts the changes of `used`.
    ways_epoch: u32,
    /// Urgent packets begun so far.
    urgents: u64,
    /// Slots of flows that have something in their building.
    touched: Vec<u32>,
    later: VecDeque<Later>,
    /// Leave before all else, but for urgent packets up to the one of this serial number.
    leads: VecDeque<(Part, u64)>,
    later_bytes: usize,
    /// Bytes in all of this.
    bytes: usize,
    /// Bytes that will still be pushed before the end of the batch, as far as is known.
    expected: usize,
    /// When the batch began.
    now: Option<Instant>,
    /// More than this in the queue of a flow, and its sender is to be held back.
    quota: usize,
    /// Flows that are over it.
    held: usize,
    hold: Vec<u64>,
    resume: Vec<u64>,
    counts: FlowCounts,
}

impl Outbox {
    pub(super) fn new(quota: usize) -> Self {
        Self {
            flows: Flows::default(),
            ways: vec![Way::default()],
            used: 1,
            ways_epoch: 0,
            urgents: 0,
            touched: Vec::new(),
            later: VecDeque::new(),
            leads: VecDeque::new(),
            later_bytes: 0,
            bytes: 0,
            expected: 0,
            now: None,
            quota,
            held: 0,
            hold: Vec::new(),
            resume: Vec::new(),
            counts: FlowCounts::default(),
        }
    }

    /// How many equally short ways there are: at least one, at most [`MAX_WAYS`]. What waited for one that
    /// is gone goes over another one.
    pub(super) fn set_ways(&mut self, ways: usize) {
        let ways = ways.clamp(1, MAX_WAYS);
        if ways == self.used {
            return;
        }
        self.end_batch();
        self.ways_epoch = self.ways_epoch.wrapping_add(1);
        self.used = ways;
        if self.ways.len() < ways {
            self.ways.resize_with(ways, Way::default);
        }
        for gone in ways..self.ways.len() {
            let mut way = std::mem::take(&mut self.ways[gone]);
            let kept = &mut self.ways[gone % ways];
            let mut urgent: Vec<_> =
                kept.take(Level::Urgent).chain(way.take(Level::Urgent)).collect();
            urgent.sort_by_key(|out| out.serial());
            for level in Level::ALL {
                for out in urgent.drain(..).chain(way.take(level)) {
                    let slot = if let Place::Own(slot) = out.place { slot } else { 0 };
                    let len = out.part.len();
                    kept.levels.push(out.level, slot, out, len);
                }
            }
        }
        self.flows.keep_ways(ways);
    }

    /// Bytes that have not left.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    pub(super) fn counts(&self) -> FlowCounts {
        FlowCounts { flows: self.flows.len(), retired: self.flows.retired(), ..self.counts }
    }

    /// All flows that are known.
    pub(super) fn flows(&self) -> impl Iterator<Item = FlowFigures> {
        self.flows.iter().map(|flow| FlowFigures {
            key: flow.key,
            items: flow.items,
            bytes: flow.bytes,
            queued: flow.queued,
        })
    }

    pub(super) fn begin_batch(&mut self, now: Instant) {
        self.now = Some(now);
    }

    pub(super) fn expect(&mut self, bytes: usize) {
        self.expected = bytes;
    }

    /// Takes a frame of at most [`CHUNK_LEN`](super::CHUNK_LEN) bytes, which are copied.
    pub(super) fn push_small(
        &mut self,
        options: &SendOptions,
        pieces: &[&[u8]],
        total: usize,
        progress: Progress,
    ) {
        let key = match options.flow {
            FlowKey::Flow(key) | FlowKey::Lead(key) => key,
            FlowKey::Fence => return self.push_fence(item::FRAME, pieces, total),
        };
        if !self.later.is_empty() {
            let copy = vec![Bytes::from(pieces.concat())];
            return self.push_later(*options, copy, total, progress);
        }
        if matches!(options.flow, FlowKey::Lead(_)) {
            return self.push_lead(key, pieces, total);
        }
        let Some(slot) = self.slot(key, progress) else {
            return self.push_fence(item::FRAME, pieces, total);
        };
        let way = self.choose_way(slot);
        let Some(flow) = self.flows.get_mut(slot) else { return };
        let round = self.ways[way].round;
        if flow.round != round {
            (flow.round, flow.sparse) = (round, 0);
        }
        let sparse = options.class == Class::Normal
            && flow.queued == 0
            && flow.sparse + total <= SPARSE_BYTES;
        self.expected = self.expected.saturating_sub(total);
        if !options.is_plain() {
            return self.push_alone(options, slot, sparse, pieces, total);
        }
        if sparse {
            let serial = self.begin_urgent(way, total);
            let Some(flow) = self.flows.get_mut(slot) else { return };
            flow.sparse += total;
            flow.urgent = serial;
            self.ways[way].urgent_pressing |= flow.is_pressing(self.now);
            let sequence = Some(flow.take_sequence(1, total));
            let urgent = &mut self.ways[way].urgent;
            let before = urgent.len();
            put(urgent.item(sequence, item::FRAME, total, self.expected + total), pieces);
            if !options.droppable {
                urgent.need();
            }
            self.bytes += urgent.len() - before;
            return;
        }
        if !flow.building.has_room(total) {
            self.end_building(slot);
        }
        let Some(flow) = self.flows.get_mut(slot) else { return };
        flow.take_class(options.class);
        flow.note_backlog(self.now);
        if flow.building.is_empty() {
            self.touched.push(slot);
        }
        let sequence = Some(flow.take_sequence(1, total));
        let before = flow.building.len();
        put(flow.building.item(sequence, item::FRAME, total, self.expected + total), pieces);
        if !options.droppable {
            flow.building.need();
        }
        let grown = flow.building.len() - before;
        flow.queued += grown;
        self.bytes += grown;
        self.check_quota(slot);
    }

    /// Takes a small frame that may be given up, or is in no order with others: a packet of its own.
    fn push_alone(
        &mut self,
        options: &SendOptions,
        slot: u32,
        sparse: bool,
        pieces: &[&[u8]],
        total: usize,
    ) {
        self.end_building(slot);
        let Some(flow) = self.flows.get_mut(slot) else { return };
        let way = usize::from(flow.way);
        if sparse {
            self.end_urgent(way);
            self.urgents += 1;
        }
        let Some(flow) = self.flows.get_mut(slot) else { return };
        let sequence = options.ordered.then(|| flow.take_sequence(1, total));
        let mut building = Building::default();
        put(building.item(sequence, item::FRAME, total, total), pieces);
        if !options.droppable {
            building.need();
        }
        let Some(part) = building.take() else { return };
        let len = part.len();
        flow.take_class(options.class);
        let level = if sparse { Level::Urgent } else { level_of(flow.class) };
        let place = if sparse {
            flow.sparse += total;
            flow.urgent = self.urgents;
            Place::Urgent(self.urgents)
        } else {
            flow.queued += len;
            Place::Own(slot)
        };
        let out = Outgoing {
            deadline: options.deadline,
            reliable: options.reliable,
            alone: sequence,
            ..Outgoing::new(part, level, flow.label(), self.now, place)
        };
        self.bytes += len;
        self.ways[way].levels.push(level, slot, out, len);
        self.check_quota(slot);
    }

    /// Takes a frame of more than [`CHUNK_LEN`](super::CHUNK_LEN) bytes; large pieces are not copied.
    pub(super) fn push_large(
        &mut self,
        options: &SendOptions,
        pieces: &[Bytes],
        total: usize,
        progress: Progress,
    ) {
        self.expected = self.expected.saturating_sub(total);
        if matches!(options.flow, FlowKey::Flow(_)) && !self.later.is_empty() {
            return self.push_later(*options, pieces.to_vec(), total, progress);
        }
        let slot = match options.flow {
            FlowKey::Flow(key) => self.slot(key, progress),
            FlowKey::Lead(_) | FlowKey::Fence => None,
        };
        let Some(slot) = slot else {
            self.counts.fences += 1;
            let (later, bytes) = (&mut self.later, &mut self.later_bytes);
            chunks(pieces, total, None, |part| {
                *bytes += part.len();
                self.bytes += part.len();
                later.push_back(Later::Fence(part));
            });
            return;
        };
        self.end_building(slot);
        let way = self.choose_way(slot);
        let Some(flow) = self.flows.get_mut(slot) else { return };
        flow.take_class(options.class);
        flow.note_backlog(self.now);
        let (level, label) = (level_of(flow.class), flow.label());
        let (mut count, mut queued) = (0, 0);
        chunks(pieces, total, Some((flow.id, flow.sequence)), |part| {
            count += 1;
            queued += part.len();
            let len = part.len();
            let out = Outgoing::new(part, level, label, self.now, Place::Own(slot));
            self.ways[way].levels.push(level, slot, out, len);
        });
        flow.take_sequence(count, total);
        flow.queued += queued;
        self.bytes += queued;
        self.counts.chunks += u64::from(count);
        self.check_quota(slot);
    }

    /// Puts an acknowledgement in front of what is urgent.
    pub(super) fn push_ack(&mut self, next: u64, credit: u64) {
        self.begin_urgent(0, 0);
        let urgent = &mut self.ways[0].urgent;
        let before = urgent.len();
        urgent.ack(next, credit);
        self.bytes += urgent.len() - before;
    }

    /// Ends the packets that are being built.
    pub(super) fn end_batch(&mut self) {
        (0..self.used).for_each(|way| self.end_urgent(way));
        while let Some(slot) = self.touched.pop() {
            self.end_building(slot);
        }
    }

    /// The levels that have something for a way, as bits.
    pub(super) fn ready(&self, way: usize) -> u8 {
        match self.gate(way) {
            Some(Gate::Lead | Gate::Urgent) => return Level::Urgent.bit(),
            Some(Gate::Shut) => return 0,
            None => {}
        }
        let ready = self.ways.get(way).map_or(0, Way::ready);
        if ready == 0 && !self.later.is_empty() && self.is_drained() {
            Level::Urgent.bit()
        } else {
            ready
        }
    }

    /// Ways that are in use.
    pub(super) fn ways(&self) -> usize {
        self.used
    }

    /// Whether nothing is queued but what is behind a fence.
    fn is_drained(&self) -> bool {
        self.ways[..self.used].iter().all(|way| way.ready() == 0)
    }

    /// The next packet of a level for a way; an urgent one if that has to leave before.
    pub(super) fn poll(&mut self, way: usize, level: Level) -> Option<Outgoing> {
        match self.gate(way) {
            Some(Gate::Lead) if level == Level::Urgent => {
                let (part, behind) = self.leads.pop_front()?;
                return Some(Outgoing::new(part, level, 0, None, Place::Lead(behind)));
            }
            Some(Gate::Urgent) if level == Level::Urgent => {
                return self.ways.get_mut(way)?.pop(level);
            }
            Some(_) => return None,
            None => {}
        }
        if level == Level::Urgent && !self.later.is_empty() && self.is_drained() {
            // What waited behind the last fence may be a lead.
            return self.pass_fence().or_else(|| self.poll(way, level));
        }
        let way = self.ways.get_mut(way)?;
        let out = way.pop(level)?;
        if let Place::Own(slot) = out.place
            && let Some(first) = way.first_urgent()
            && self.flows.get_mut(slot).is_some_and(|flow| flow.urgent >= first)
        {
            // Something of this flow is still among the urgent ones. It must leave first: what is ahead of
            // its turn could use up the credit of what it has to wait for.
            way.stash[level as usize] = Some(out);
            return way.pop(Level::Urgent);
        }
        Some(out)
    }

    /// What was polled for a way cannot leave yet: it is the next one of its level.
    pub(super) fn put_back(&mut self, way: usize, out: Outgoing) {
        if let Place::Lead(behind) = out.place {
            self.leads.push_front((out.part, behind));
        } else if out.fence {
            self.later_bytes += out.part.len();
            self.later.push_front(Later::Fence(out.part));
        } else if let Some(way) = self.ways.get_mut(way) {
            let level = out.level as usize;
            way.stash[level] = Some(out);
        }
    }

    /// A frame is given up: because it is late, or because it was lost.
    pub(super) fn give_up(&mut self, late: bool) {
        if late {
            self.counts.late += 1;
        } else {
            self.counts.given_up += 1;
        }
    }

    /// Frames are lost for good.
    pub(super) fn lose(&mut self, frames: u64) {
        self.counts.lost += frames;
    }

    /// What the user calls a flow; 0 if it is not known.
    pub(super) fn key_of(&self, id: u32) -> u64 {
        self.flows.iter().find(|flow| flow.id == id).map_or(0, |flow| flow.key)
    }

    /// What was polled leaves.
    pub(super) fn left(&mut self, out: &Outgoing) {
        let len = out.part.len();
        self.bytes -= len;
        self.counts.packets[out.level as usize] += 1;
        let Place::Own(slot) = out.place else { return };
        if let Some(flow) = self.flows.get_mut(slot) {
            flow.queued -= len;
        }
        self.check_resume(slot);
    }

    /// All urgent packets up to the one of this serial number have left: for [`Progress`].
    pub(super) fn urgent_left(&self) -> u64 {
        let waiting = self.ways[..self.used].iter().filter_map(Way::first_urgent).min();
        waiting.map_or(self.urgents, |first| first - 1)
    }

    /// The slot of a flow; `None` if there is no room for one more: then its frames are fences, which keep
    /// any order.
    fn slot(&mut self, key: u64, progress: Progress) -> Option<u32> {
        if let Some(slot) = self.flows.find(key) {
            return Some(slot);
        }
        let (slot, ended) = self.flows.add(key, progress)?;
        if ended.is_some() {
            self.begin_urgent(0, 0);
            let urgent = &mut self.ways[0].urgent;
            let before = urgent.len();
            urgent.item(ended, item::END, 0, 0);
            self.bytes += urgent.len() - before;
        }
        Some(slot)
    }

    /// The way of a flow of which something is handed in. It changes only when there is another number of
    /// ways and nothing of the flow is left here: else what is ahead of its turn could use up the credit
    /// of what it has to wait for.
    fn choose_way(&mut self, slot: u32) -> usize {
        let (used, epoch) = (self.used, self.ways_epoch);
        let Some(flow) = self.flows.get_mut(slot) else { return 0 };
        let (queued, urgent) = (flow.queued, flow.urgent);
        if flow.ways_epoch == epoch || queued > 0 || urgent > self.urgent_left() {
            return self.flows.get_mut(slot).map_or(0, |flow| usize::from(flow.way));
        }
        let Some(flow) = self.flows.get_mut(slot) else { return 0 };
        let way = usize::from(flow.label() >> 1) % used;
        (flow.way, flow.ways_epoch) = (way as u8, epoch);
        way
    }

    /// Has an urgent packet of a way being built in which so many bytes have room; its serial number.
    fn begin_urgent(&mut self, way: usize, len: usize) -> u64 {
        if !self.ways[way].urgent.has_room(len) {
            self.end_urgent(way);
        }
        let Way { urgent, urgent_serial, .. } = &mut self.ways[way];
        if urgent.is_empty() {
            self.urgents += 1;
            *urgent_serial = self.urgents;
        }
        *urgent_serial
    }

    fn end_urgent(&mut self, at: usize) {
        let way = &mut self.ways[at];
        let Some(part) = way.urgent.take() else { return };
        let (len, level) = (part.len(), Level::Urgent);
        // Even, as no flow's is; another one for each way: what takes different ways may overtake.
        let label = 2 * at as u16;
        let place = Place::Urgent(way.urgent_serial);
        let pressing = std::mem::take(&mut way.urgent_pressing);
        let out = Outgoing { pressing, ..Outgoing::new(part, level, label, self.now, place) };
        way.levels.push(level, 0, out, len);
    }

    fn end_building(&mut self, slot: u32) {
        let Some(flow) = self.flows.get_mut(slot) else { return };
        let Some(part) = flow.building.take() else { return };
        let (len, level, label) = (part.len(), level_of(flow.class), flow.label());
        let way = usize::from(flow.way);
        let out = Outgoing::new(part, level, label, self.now, Place::Own(slot));
        self.ways[way].levels.push(level, slot, out, len);
    }
}

fn put(out: &mut Vec<u8>, pieces: &[&[u8]]) {
    for piece in pieces {
        out.extend_from_slice(piece);
    }
}

fn level_of(class: Class) -> Level {
    match class {
        Class::High => Level::High,
        Class::Normal => Level::Normal,
        Class::Low => Level::Low,
    }
}
