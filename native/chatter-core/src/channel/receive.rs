//! The receiving half of a channel: packets in, frames out, in order within each flow and each once.

use std::collections::BTreeMap;

use bytes::Bytes;
use thiserror::Error;

use super::inflows::{self, InFlows};
use crate::wire::data::{self, Ack, Item, MAX_ACK_RANGES, next_item};
use crate::wire::reader::WireError;

/// Bytes after which an acknowledgement is sent at once: often enough that the sender keeps few
/// packets, seldom enough that they cost nothing.
const ACK_EVERY: u64 = 2048 * 1024;

/// Items kept ahead of a missing one: one for so many bytes of the window, and no fewer than this.
/// A packet costs memory of its own, however little is in it.
const BYTES_PER_AHEAD: u64 = 64;
const MAX_AHEAD_MIN: u64 = 1024;

/// Packets that are told at once after the gaps have changed: enough for the source to see what is
/// lost. After those, while a packet is missing, so many bytes.
const TOLD_PER_GAP: u32 = 4;
const ACK_EVERY_AHEAD: u64 = 64 * 1024;

/// Where a receiver puts what it has received; the next owner of the bytes (the VM).
pub trait Sink {
    /// One whole frame of a flow, or a fence (`None`), which must stay after all before it and before all
    /// after it; `cost` is to be granted once it is consumed.
    fn frame(&mut self, flow: Option<u32>, frame: &[u8], cost: u64);
    /// A frame of `total` bytes begins; its parts follow. Each flow has one at a time. If fragments are
    /// joined ([`Receiver::join_fragments`]) it may become shorter, or longer.
    fn frame_start(&mut self, flow: Option<u32>, total: usize);
    /// The next part of the frame of that flow.
    fn frame_part(&mut self, flow: Option<u32>, part: &[u8]);
    /// Bytes of the frame of that flow, which have come, are to be these instead. Only if fragments are
    /// joined.
    fn frame_fix(&mut self, _flow: Option<u32>, _at: usize, _bytes: &[u8]) {}
    /// The frame of that flow is whole; `cost` is that of all its parts.
    fn frame_end(&mut self, flow: Option<u32>, cost: u64);
    /// One message of the distribution handshake.
    fn handshake(&mut self, message: &[u8], cost: u64);
    /// A frame of that sender was lost for good; the channel goes on without it.
    fn lost(&mut self, _sender: u64) {}
}

/// Why a channel cannot go on. All of them end the channel; the VM copes with a lost connection, not
/// with a wrong byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum ReceiveError {
    /// The peer sent what is no packet content.
    #[error("malformed packet: {0}")]
    Wire(#[from] WireError),
    /// A part of a frame without its first part, a second first part, or more than announced.
    #[error("parts of frames out of order")]
    Parts,
    /// A frame over `max_frame`.
    #[error("frame of {len} bytes is over max_frame ({limit})")]
    FrameTooLong {
        /// What the peer announced.
        len: usize,
        /// The configured limit.
        limit: usize,
    },
    /// The peer sent more than its credit.
    #[error("peer exceeded its credit")]
    Credit,
    /// The peer has given up frames that it could not bring over.
    #[error("frames were lost")]
    Lost,
    /// The peer has more flows than it may have.
    #[error("peer has too many flows")]
    Flows,
}

/// What the caller should do after a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AckNeed {
    /// Nothing new to tell.
    None,
    /// Tell it with the next data, or within the acknowledgement delay.
    Soon,
    /// Tell it now: the sender waits for it, or a packet is missing.
    Now,
}

/// An acknowledgement that came as an item of a DATA packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piggyback {
    /// As in [`Ack::next`].
    pub next: u64,
    /// As in [`Ack::credit`].
    pub credit: u64,
}

/// A packet that waits for a fence, or is one.
struct Behind {
    fences: u32,
    is_fence: bool,
    items: Bytes,
}

/// The receiving half of a channel. See the [module](self).
pub struct Receiver {
    next: u64,
    /// Numbers that have arrived ahead of a missing one: first to last + 1.
    ranges: BTreeMap<u64, u64>,
    /// Packets in [`Receiver::ranges`].
    ahead: u64,
    flows: InFlows,
    /// Fences taken so far.
    fences: u32,
    behind: BTreeMap<u64, Behind>,
    behind_bytes: usize,
    /// Frames that are lost for good do not end the channel.
    bears_loss: bool,
    lost: u64,
    window: u64,
    /// Offset up to which everything has been consumed; credit is this plus the window.
    consumed: u64,
    /// Sum of the costs of all that has arrived.
    received: u64,
    told_credit: u64,
    told_next: u64,
    told_ahead: u64,
    /// Packets since the gaps last changed.
    since_change: u32,
    bytes_untold: u64,
    duplicates: u64,
    early: u64,
}

impl Receiver {
    /// `window` is the credit in bytes, `max_frame` the largest frame accepted.
    pub fn new(window: u64, max_frame: usize) -> Self {
        Self {
            next: 1,
            ranges: BTreeMap::new(),
            ahead: 0,
            flows: InFlows::new(max_frame, window / 4),
            fences: 0,
            behind: BTreeMap::new(),
            behind_bytes: 0,
            bears_loss: false,
            lost: 0,
            window,
            consumed: 0,
            received: 0,
            told_credit: window,
            told_next: 1,
            told_ahead: 0,
            since_change: 0,
            bytes_untold: 0,
            duplicates: 0,
            early: 0,
        }
    }

    /// Frames that are lost for good do not end the channel: the sink is told of them.
    pub fn bear_loss(&mut self) {
        self.bears_loss = true;
    }

    /// The frames are those of a VM: fragments of a signal that follow each other go to the sink as one
    /// frame, of at most `max_frame` bytes, whose header has the number of the last. A frame of another
    /// kind, and any fence, ends it.
    pub fn join_fragments(&mut self) {
        self.flows.join_fragments();
    }

    /// Frames that were lost for good.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// The next packet number wanted: all below have arrived.
    pub fn next_number(&self) -> u64 {
        self.next
    }

    /// Packets that had come before, and were dropped.
    pub fn duplicates(&self) -> u64 {
        self.duplicates
    }

    /// Packets whose frames were handed over before all packets before them had arrived.
    pub fn early(&self) -> u64 {
        self.early
    }

    /// Flows known.
    pub fn flows(&self) -> usize {
        self.flows.len()
    }

    /// Bytes that arrived ahead of what is missing and wait for it.
    pub fn ahead_bytes(&self) -> u64 {
        (self.flows.kept().1 + self.behind_bytes) as u64
    }

    /// Whether a packet is missing that later ones have overtaken.
    pub fn has_gap(&self) -> bool {
        !self.ranges.is_empty()
    }

    /// Packets that are missing before the first that has overtaken them.
    pub fn missing(&self) -> u64 {
        self.ranges.first_key_value().map_or(0, |(number, _)| number - self.next)
    }

    /// Bytes that arrived since the last acknowledgement.
    pub fn untold_bytes(&self) -> u64 {
        self.bytes_untold
    }

    /// Takes the content of a DATA packet, which may be a fence; frames that are whole and whose flow has
    /// no gap before them go to `sink`, acknowledgements in it to `acks`.
    pub fn handle_data(
        &mut self,
        number: u64,
        is_fence: bool,
        content: &[u8],
        sink: &mut dyn Sink,
        acks: &mut Vec<Piggyback>,
    ) -> Result<AckNeed, ReceiveError> {
        if number < self.next || self.is_ahead(number) {
            self.duplicates += 1;
            return Ok(AckNeed::Now);
        }
        // Every item costs something, so the credit bounds numbers too.
        if number - self.next > self.window {
            return Err(ReceiveError::Credit);
        }
        let waiting = (self.flows.kept().0 + self.behind.len()) as u64;
        if number > self.next && waiting >= MAX_AHEAD_MIN.max(self.window / BYTES_PER_AHEAD) {
            // Many tiny items: those that are not kept come again.
            return Ok(AckNeed::Now);
        }
        let gaps = self.ranges.len();
        let in_order = number == self.next && self.ranges.is_empty();
        if in_order {
            self.next += 1;
        } else {
            self.early += u64::from(number > self.next);
            self.note_ahead(number);
        }
        let mut items = content;
        let fences = data::fences(&mut items)?;
        self.bytes_untold += content.len() as u64;
        if in_order && fences != self.fences {
            // All fences before it have been taken.
            return Err(ReceiveError::Parts);
        }
        let waits = fences != self.fences || (is_fence && self.next <= number);
        if waits || !self.behind.is_empty() {
            self.charge(items, acks)?;
            self.behind_bytes += items.len();
            let items = Bytes::copy_from_slice(items);
            self.behind.insert(number, Behind { fences, is_fence, items });
            self.pass_fences(sink)?;
        } else {
            self.take(is_fence, items, true, sink, acks)?;
            self.fences = self.fences.wrapping_add(u32::from(is_fence));
            if !in_order {
                self.pass_fences(sink)?;
            }
        }
        self.consume();
        Ok(self.need(in_order, gaps))
    }

    /// Whether what has arrived must be told at once: at first when there is a new gap, or one less, but
    /// not for every packet while one stays.
    fn need(&mut self, in_order: bool, gaps_before: usize) -> AckNeed {
        if self.ranges.len() != gaps_before {
            self.since_change = 0;
        }
        self.since_change = self.since_change.saturating_add(1);
        let new_gap = !in_order && self.since_change <= TOLD_PER_GAP;
        let credit_news = self.credit() - self.told_credit >= self.window / 4;
        let much = self.bytes_untold >= (self.window / 4).min(ACK_EVERY);
        let much_ahead = !self.ranges.is_empty() && self.bytes_untold >= ACK_EVERY_AHEAD;
        if new_gap || credit_news || much || much_ahead { AckNeed::Now } else { AckNeed::Soon }
    }

    /// The VM has taken frames of this cost.
    pub fn grant(&mut self, cost: u64) -> AckNeed {
        self.flows.grant(cost);
        self.consume();
        if self.credit() - self.told_credit >= self.window / 4 {
            AckNeed::Now
        } else {
            AckNeed::Soon
        }
    }

    fn consume(&mut self) {
        self.consumed = (self.consumed + self.flows.take_consumed()).min(self.received);
    }

    /// Whether there is something that the other end has not been told.
    pub fn has_news(&self) -> bool {
        self.told_next != self.next
            || self.told_ahead != self.ahead
            || self.told_credit != self.credit()
    }

    /// What to put on the back of data, if there is news. Counts as told.
    pub fn take_piggyback(&mut self) -> Option<Piggyback> {
        if !self.has_news() || !self.ranges.is_empty() {
            return None;
        }
        self.mark_told();
        Some(Piggyback { next: self.next, credit: self.credit() })
    }

    /// The acknowledgement to send now. Counts as told.
    pub fn take_ack(&mut self) -> Ack {
        self.mark_told();
        let ranges = self.ranges.iter().take(MAX_ACK_RANGES).map(|(from, to)| (*from, *to));
        Ack { next: self.next, credit: self.credit(), ranges: ranges.collect() }
    }

    fn mark_told(&mut self) {
        self.told_next = self.next;
        self.told_ahead = self.ahead;
        self.told_credit = self.credit();
        self.bytes_untold = 0;
    }

    fn credit(&self) -> u64 {
        self.consumed + self.window
    }

    fn is_ahead(&self, number: u64) -> bool {
        self.ranges.range(..=number).next_back().is_some_and(|(_, end)| *end > number)
    }

    /// Notes a number that is not the next one, or after which others have come.
    fn note_ahead(&mut self, number: u64) {
        if number == self.next {
            self.next += 1;
            if let Some(end) = self.ranges.remove(&self.next) {
                self.ahead -= end - self.next;
                self.next = end;
            }
            return;
        }
        self.ahead += 1;
        let to = self.ranges.remove(&(number + 1)).unwrap_or(number + 1);
        match self.ranges.range_mut(..number).next_back() {
            Some((_, end)) if *end == number => *end = to,
            _ => {
                self.ranges.insert(number, to);
            }
        }
    }

    /// Takes what waited for fences that are there by now, and fences that waited for what is before
    /// them.
    fn pass_fences(&mut self, sink: &mut dyn Sink) -> Result<(), ReceiveError> {
        while let Some(first) = self.behind.first_entry() {
            let behind = first.get();
            if behind.fences != self.fences || (behind.is_fence && self.next <= *first.key()) {
                break;
            }
            let Behind { is_fence, items, .. } = first.remove();
            self.behind_bytes -= items.len();
            self.take(is_fence, &items, false, sink, &mut Vec::new())?;
            self.fences = self.fences.wrapping_add(u32::from(is_fence));
        }
        Ok(())
    }

    /// Counts what items cost that are kept for later, and takes the acknowledgements among them.
    fn charge(&mut self, mut items: &[u8], acks: &mut Vec<Piggyback>) -> Result<(), ReceiveError> {
        while let Some(item) = next_item(&mut items)? {
            if let Item::Ack { next, credit } = item {
                acks.push(Piggyback { next, credit });
            }
            self.received += inflows::cost(&item);
        }
        if self.received > self.credit() { Err(ReceiveError::Credit) } else { Ok(()) }
    }

    /// Takes items whose turn it is. Those that are `fresh` have not been counted yet.
    fn take(
        &mut self,
        is_fence: bool,
        mut items: &[u8],
        fresh: bool,
        sink: &mut dyn Sink,
        acks: &mut Vec<Piggyback>,
    ) -> Result<(), ReceiveError> {
        let mut flow: Option<(u32, u32)> = None;
        while let Some(item) = next_item(&mut items)? {
            match item {
                Item::Ack { next, credit } => {
                    if fresh {
                        acks.push(Piggyback { next, credit });
                    }
                    continue;
                }
                Item::Flow { flow: id, sequence } => {
                    flow = Some((id, sequence));
                    continue;
                }
                Item::Lost { .. } if !self.bears_loss => return Err(ReceiveError::Lost),
                Item::Lost { .. } => self.lost += 1,
                _ => {}
            }
            if fresh {
                self.received += inflows::cost(&item);
                if self.received > self.credit() {
                    return Err(ReceiveError::Credit);
                }
            }
            match (flow, is_fence) {
                (Some((id, sequence)), false) => {
                    self.flows.item(id, sequence, &item, sink)?;
                    flow = Some((id, sequence.wrapping_add(1)));
                }
                (None, true) => self.flows.fence(&item, sink)?,
                (None, false) => self.flows.loose(&item, sink)?,
                _ => return Err(ReceiveError::Parts),
            }
        }
        Ok(())
    }
}
