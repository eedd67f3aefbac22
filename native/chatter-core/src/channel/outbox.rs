//! What a sender has not sent yet: a queue for each flow. Small frames of flows without a backlog share
//! urgent packets, the rest take turns by flow; a fence waits for all before it, and all after it for the
//! fence. Packets get their numbers when they leave.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::CHUNK_LEN;
use super::build::{Building, Part, chunks};
use super::flows::{Flows, Progress};
use super::options::{Class, SendOptions};
use crate::flow::FlowKey;
use crate::sched::fair::{LEVELS, Level, Levels, SPARSE_BYTES};
use crate::wire::data::item;

/// Senders are held back only while all flows together have half of so many quotas queued: a backlog of
/// one flow stops no other, and a fast link is not to wait for the sender.
const HOLD_FROM: usize = 16;

/// A packet on its way out.
pub(super) struct Outgoing {
    pub(super) part: Part,
    pub(super) level: Level,
    /// Of its flow; 0 if it is of several.
    pub(super) label: u16,
    pub(super) fence: bool,
    /// How long it is wanted; and whether it is sent again when it is lost.
    pub(super) deadline: Option<Duration>,
    pub(super) reliable: bool,
    /// The flow and the sequence number of its only item, if it may be given up.
    pub(super) alone: Option<(u32, u32)>,
    /// When it was handed in.
    pub(super) since: Option<Instant>,
}

impl Outgoing {
    fn new(part: Part, level: Level, label: u16, since: Option<Instant>) -> Self {
        let (deadline, alone) = (None, None);
        Self { part, level, label, fence: false, deadline, reliable: true, alone, since }
    }

    /// Whether it may be given up: then [`Outgoing::void`] takes its place.
    pub(super) fn is_optional(&self) -> bool {
        self.deadline.is_some() || !self.reliable
    }

    /// What takes its place when it is given up.
    pub(super) fn void(&self) -> Part {
        Part::void(self.alone, self.part.cost)
    }
}

/// Something behind a fence.
enum Later {
    Fence(Part),
    Frame(SendOptions, Vec<Bytes>, usize),
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
#[derive(Default)]
pub(super) struct Outbox {
    flows: Flows,
    levels: Levels<u32, Outgoing>,
    /// What was polled and could not leave yet, by level.
    stash: [Option<Outgoing>; LEVELS],
    /// Small frames of several flows that will share an urgent packet.
    urgent: Building,
    /// Urgent packets ended so far, and how many of them have left.
    urgent_ended: u64,
    urgent_left: u64,
    /// Counts the times that nothing urgent was left.
    round: u64,
    /// Slots of flows that have something in their building.
    touched: Vec<u32>,
    later: VecDeque<Later>,
    later_bytes: usize,
    /// Bytes in all of this.
    bytes: usize,
    /// Bytes that will still be pushed before the end of the batch, as far as is known.
    expected: usize,
    /// When the batch began.
    now: Option<Instant>,
    /// More than this in the queue of a flow, and its sender is to be held back.
    quota: usize,
    hold: Vec<u64>,
    resume: Vec<u64>,
    counts: FlowCounts,
}

impl Outbox {
    pub(super) fn new(quota: usize) -> Self {
        Self { quota, ..Self::default() }
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
        let FlowKey::Flow(key) = options.flow else {
            return self.push_fence(item::FRAME, pieces, total);
        };
        if !self.later.is_empty() {
            let copy = vec![Bytes::from(pieces.concat())];
            return self.push_later(*options, copy, total);
        }
        let Some(slot) = self.slot(key, progress) else {
            return self.push_fence(item::FRAME, pieces, total);
        };
        let Some(flow) = self.flows.get_mut(slot) else { return };
        if flow.round != self.round {
            (flow.round, flow.sparse) = (self.round, 0);
        }
        let sparse = options.class == Class::Normal
            && flow.queued == 0
            && flow.sparse + total <= SPARSE_BYTES;
        self.expected = self.expected.saturating_sub(total);
        if !options.is_plain() {
            return self.push_alone(options, slot, sparse, pieces, total);
        }
        if sparse {
            if !self.urgent.has_room(total) {
                self.end_urgent();
            }
            let Some(flow) = self.flows.get_mut(slot) else { return };
            flow.sparse += total;
            flow.urgent = self.urgent_ended + 1;
            let sequence = Some(flow.take_sequence(1, total));
            let before = self.urgent.len();
            put(self.urgent.item(sequence, item::FRAME, total, self.expected + total), pieces);
            if !options.droppable {
                self.urgent.need();
            }
            self.bytes += self.urgent.len() - before;
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
        if sparse {
            self.end_urgent();
            self.urgent_ended += 1;
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
        if sparse {
            flow.sparse += total;
            flow.urgent = self.urgent_ended;
        } else {
            flow.queued += len;
        }
        let out = Outgoing {
            deadline: options.deadline,
            reliable: options.reliable,
            alone: sequence,
            ..Outgoing::new(part, level, flow.label(), self.now)
        };
        self.bytes += len;
        self.levels.push(level, slot, out, len);
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
            return self.push_later(*options, pieces.to_vec(), total);
        }
        let slot = match options.flow {
            FlowKey::Flow(key) => self.slot(key, progress),
            FlowKey::Fence => None,
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
        let Some(flow) = self.flows.get_mut(slot) else { return };
        flow.take_class(options.class);
        let (level, label) = (level_of(flow.class), flow.label());
        let (mut count, mut queued) = (0, 0);
        chunks(pieces, total, Some((flow.id, flow.sequence)), |part| {
            count += 1;
            queued += part.len();
            let len = part.len();
            let out = Outgoing::new(part, level, label, self.now);
            self.levels.push(level, slot, out, len);
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

    /// Puts an acknowledgement in front of what is urgent.
    pub(super) fn push_ack(&mut self, next: u64, credit: u64) {
        let before = self.urgent.len();
        self.urgent.ack(next, credit);
        self.bytes += self.urgent.len() - before;
    }

    /// Ends the packets that are being built.
    pub(super) fn end_batch(&mut self) {
        self.end_urgent();
        while let Some(slot) = self.touched.pop() {
            self.end_building(slot);
        }
    }

    /// The levels that have something, as bits.
    pub(super) fn ready(&mut self) -> u8 {
        let stashed = self.stash.iter().zip(Level::ALL).filter(|(out, _)| out.is_some());
        let stashed = stashed.fold(0, |set, (_, level)| set | level.bit());
        let ready = stashed | self.levels.ready();
        if ready == 0 && !self.later.is_empty() { Level::Urgent.bit() } else { ready }
    }

    /// The next packet of a level.
    pub(super) fn poll(&mut self, level: Level) -> Option<Outgoing> {
        let at = level as usize;
        if let Some(out) = self.stash[at].take() {
            return Some(out);
        }
        if level == Level::Urgent
            && self.ready() & !Level::Urgent.bit() == 0
            && !self.levels.has_urgent()
            && let Some(fence) = self.pass_fence()
        {
            return Some(fence);
        }
        let share = self.share();
        let (slot, out, len) = self.levels.pop(level)?;
        if let Some(flow) = slot.and_then(|slot| self.flows.get_mut(slot)) {
            flow.queued -= len;
            if flow.held && flow.queued < share / 2 {
                flow.held = false;
                self.resume.push(flow.key);
            }
        }
        if level == Level::Urgent {
            self.urgent_left += 1;
            self.round += u64::from(!self.levels.has_urgent());
        }
        Some(out)
    }

    /// What was polled cannot leave yet: it is the next one of its level.
    pub(super) fn put_back(&mut self, out: Outgoing) {
        if out.fence {
            self.later_bytes += out.part.len();
            self.later.push_front(Later::Fence(out.part));
        } else {
            let level = out.level as usize;
            self.stash[level] = Some(out);
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
        self.bytes -= out.part.len();
        self.counts.packets[out.level as usize] += 1;
    }

    /// Urgent packets that have left: for [`Progress`].
    pub(super) fn urgent_left(&self) -> u64 {
        self.urgent_left
    }

    /// Nothing is queued but what is behind a fence. The fence, if it is one; otherwise, what is before
    /// the next fence is queued.
    fn pass_fence(&mut self) -> Option<Outgoing> {
        match self.later.pop_front()? {
            Later::Fence(part) => {
                self.later_bytes -= part.len();
                let out = Outgoing::new(part, Level::Urgent, 0, None);
                Some(Outgoing { fence: true, ..out })
            }
            first @ Later::Frame(..) => {
                let mut next = Some(first);
                let mut rest = std::mem::take(&mut self.later);
                while let Some(Later::Frame(options, pieces, total)) = next {
                    self.later_bytes -= total;
                    self.bytes -= total;
                    self.push_again(&options, &pieces, total);
                    let is_frame = matches!(rest.front(), Some(Later::Frame(..)));
                    next = if is_frame { rest.pop_front() } else { None };
                }
                self.end_batch();
                self.later.append(&mut rest);
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

    fn push_later(&mut self, options: SendOptions, pieces: Vec<Bytes>, total: usize) {
        self.later_bytes += total;
        self.bytes += total;
        self.later.push_back(Later::Frame(options, pieces, total));
    }

    /// The slot of a flow; `None` if there is no room for one more: then its frames are fences, which keep
    /// any order.
    fn slot(&mut self, key: u64, progress: Progress) -> Option<u32> {
        if let Some(slot) = self.flows.find(key) {
            return Some(slot);
        }
        let (slot, ended) = self.flows.add(key, progress)?;
        if ended.is_some() {
            if !self.urgent.has_room(0) {
                self.end_urgent();
            }
            let before = self.urgent.len();
            self.urgent.item(ended, item::END, 0, 0);
            self.bytes += self.urgent.len() - before;
        }
        Some(slot)
    }

    /// What a flow may have queued while others have a backlog as well: a quota, or less of them than
    /// [`HOLD_FROM`] when they are many, so that all together stay below the bound of the channel.
    fn share(&self) -> usize {
        let many = self.levels.backlogs().max(1);
        self.quota.min(self.quota.saturating_mul(HOLD_FROM) / many)
    }

    fn check_quota(&mut self, slot: u32) {
        let share = self.share();
        let over = self.bytes > self.quota.saturating_mul(HOLD_FROM / 2);
        if let Some(flow) = self.flows.get_mut(slot).filter(|_| over)
            && flow.queued > share
            && !flow.held
        {
            flow.held = true;
            self.counts.held += 1;
            self.hold.push(flow.key);
        }
    }

    fn end_urgent(&mut self) {
        let Some(part) = self.urgent.take() else { return };
        let (len, level) = (part.len(), Level::Urgent);
        self.urgent_ended += 1;
        let out = Outgoing::new(part, level, 0, self.now);
        self.levels.push(level, 0, out, len);
    }

    fn end_building(&mut self, slot: u32) {
        let Some(flow) = self.flows.get_mut(slot) else { return };
        let Some(part) = flow.building.take() else { return };
        let (len, level, label) = (part.len(), level_of(flow.class), flow.label());
        let out = Outgoing::new(part, level, label, self.now);
        self.levels.push(level, slot, out, len);
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
