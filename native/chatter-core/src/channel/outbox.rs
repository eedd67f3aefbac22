//! What a sender has not sent yet: a queue for each flow. Small frames of flows without a backlog share
//! urgent packets, the rest take turns by flow; a fence waits for all before it, and all after it for the
//! fence. A fence that only those after it need (a lead) leaves at once. Packets get their numbers when they
//! leave.
//!
//! All of it is there once for each of the equally short ways that lead to the other node: a flow
//! stays on one of them.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;

use super::CHUNK_LEN;
use super::build::{Building, Part, chunks};
use super::flows::{Flows, Progress};
use super::options::{Class, SendOptions};
use super::way::{Outgoing, Place, Way};
use crate::flow::FlowKey;
use crate::sched::fair::{LEVELS, Level, SPARSE_BYTES};
use crate::wire::data::item;

/// Senders are held back only while all flows together have so many quotas queued: a backlog of one flow
/// stops no other, and a fast link is not to wait for the sender.
const HOLD_FROM: usize = 8;

/// Flows that may have a whole quota queued each. Of more, each may have less.
const WHOLE_QUOTAS: usize = 64;

/// Equally short ways that are used at once, at most.
pub const MAX_WAYS: usize = 4;

/// Something behind a fence.
enum Later {
    Fence(Part),
    /// With its bytes, and whether they count as queued of its flow.
    Frame(SendOptions, Vec<Bytes>, usize, bool),
}

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
    /// Leave before all else.
    leads: VecDeque<Part>,
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

    /// Flows that are over their quota since this was asked last: their senders are to be held back.
    pub(super) fn take_hold(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.hold)
    }

    /// Flows that have got below half of their quota again.
    pub(super) fn take_resume(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.resume)
    }

    /// Whether senders are being held back.
    pub(super) fn holds_back(&self) -> bool {
        self.held > 0
    }

    /// Whether [`Outbox::take_resume`] has something.
    pub(super) fn has_resume(&self) -> bool {
        !self.resume.is_empty()
    }

    /// Takes a frame of at most [`CHUNK_LEN`] bytes, which are copied.
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

    /// Takes a frame of more than [`CHUNK_LEN`] bytes; large pieces are not copied.
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

    /// Takes a small fence: a frame or a message of the handshake.
    pub(super) fn push_fence(&mut self, kind: u8, pieces: &[&[u8]], total: usize) {
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
    fn push_lead(&mut self, key: u64, pieces: &[&[u8]], total: usize) {
        let left = self.urgent_left();
        let slot = self.flows.find(key);
        let flow = slot.and_then(|slot| self.flows.get_mut(slot));
        if flow.is_some_and(|flow| flow.queued > 0 || flow.urgent > left) {
            return self.push_fence(item::FRAME, pieces, total);
        }
        self.counts.fences += 1;
        let mut building = Building::default();
        put(building.item(None, item::FRAME, total, total), pieces);
        building.need();
        if let Some(part) = building.take() {
            self.bytes += part.len();
            self.leads.push_back(part);
        }
        self.expected = self.expected.saturating_sub(total);
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
        if !self.leads.is_empty() {
            return Level::Urgent.bit();
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
        if !self.leads.is_empty() {
            // What was handed in later must not get ahead of it.
            let lead = if level == Level::Urgent { self.leads.pop_front() } else { None };
            return lead.map(|part| Outgoing::new(part, level, 0, None, Place::Lead));
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
        if matches!(out.place, Place::Lead) {
            self.leads.push_front(out.part);
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

    /// Less of a flow is queued than before.
    fn check_resume(&mut self, slot: u32) {
        let share = self.share();
        let Some(flow) = self.flows.get_mut(slot) else { return };
        if flow.held && flow.queued < share / 2 {
            flow.held = false;
            self.held -= 1;
            self.resume.push(flow.key);
        }
    }

    /// All urgent packets up to the one of this serial number have left: for [`Progress`].
    pub(super) fn urgent_left(&self) -> u64 {
        let waiting = self.ways[..self.used].iter().filter_map(Way::first_urgent).min();
        waiting.map_or(self.urgents, |first| first - 1)
    }

    /// Nothing is queued but what is behind a fence. The fence, if it is one; otherwise, what is before
    /// the next fence is queued.
    fn pass_fence(&mut self) -> Option<Outgoing> {
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

    fn push_again(&mut self, options: &SendOptions, pieces: &[Bytes], total: usize) {
        // What waited behind a fence does not retire others.
        let progress = Progress::default();
        if total > CHUNK_LEN {
            return self.push_large(options, pieces, total, progress);
        }
        let pieces: Vec<&[u8]> = pieces.iter().map(|piece| &piece[..]).collect();
        self.push_small(options, &pieces, total, progress);
    }

    fn push_later(
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

    /// What a flow may have queued while others have a backlog as well: a quota, or less when they are many,
    /// so that all together stay below the bound of the channel.
    fn share(&self) -> usize {
        let backlogs = self.ways[..self.used].iter().map(|way| way.levels.backlogs());
        let many = backlogs.sum::<usize>().max(1);
        self.quota.min(self.quota.saturating_mul(WHOLE_QUOTAS) / many)
    }

    fn check_quota(&mut self, slot: u32) {
        let share = self.share();
        let over = self.bytes > self.quota.saturating_mul(HOLD_FROM);
        if let Some(flow) = self.flows.get_mut(slot).filter(|_| over)
            && flow.queued > share
            && !flow.held
        {
            flow.held = true;
            self.held += 1;
            self.counts.held += 1;
            self.hold.push(flow.key);
        }
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
        let out = Outgoing::new(part, level, label, self.now, Place::Urgent(way.urgent_serial));
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
