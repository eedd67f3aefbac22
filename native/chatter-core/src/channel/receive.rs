//! The receiving half of a channel: packets in, frames out, in order and each once.

use std::collections::BTreeMap;

use bytes::Bytes;
use thiserror::Error;

use super::item_cost;
use crate::wire::data::{Ack, Item, MAX_ACK_RANGES, TOTAL_LEN, next_item};
use crate::wire::reader::WireError;

/// Bytes after which an acknowledgement is sent at once: often enough that the sender keeps few
/// packets, seldom enough that they cost nothing.
const ACK_EVERY: u64 = 2048 * 1024;

/// Packets kept ahead of a missing one: one for so many bytes of the window, and no fewer than this.
/// A packet costs memory of its own, however little is in it.
const BYTES_PER_AHEAD: u64 = 64;
const MAX_AHEAD_MIN: u64 = 1024;

/// Where a receiver puts what it has received; the next owner of the bytes (the VM).
pub trait Sink {
    /// One whole frame; `cost` is to be granted once it is consumed.
    fn frame(&mut self, frame: &[u8], cost: u64);
    /// A frame of `total` bytes begins; its parts follow.
    fn frame_start(&mut self, total: usize);
    /// The next part of the frame that was begun.
    fn frame_part(&mut self, part: &[u8]);
    /// The frame that was begun is whole; `cost` is what was not granted on the way.
    fn frame_end(&mut self, cost: u64);
    /// One message of the distribution handshake.
    fn handshake(&mut self, message: &[u8], cost: u64);
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

struct Assembly {
    left: usize,
    /// Cost of the parts so far that has not been granted.
    cost: u64,
}

/// The receiving half of a channel. See the [module](self).
pub struct Receiver {
    next: u64,
    /// Arrived ahead of a missing packet: content by number. Bounded by the credit.
    ahead: BTreeMap<u64, Bytes>,
    ahead_bytes: u64,
    /// Sum of what they cost.
    ahead_cost: u64,
    /// The same as ranges, first to last number + 1: an acknowledgement must not cost as much as
    /// there is ahead.
    ahead_ranges: BTreeMap<u64, u64>,
    window: u64,
    max_frame: usize,
    /// Offset up to which everything has been consumed; credit is this plus the window.
    consumed: u64,
    received: u64,
    told_credit: u64,
    told_next: u64,
    bytes_untold: u64,
    assembly: Option<Assembly>,
    duplicates: u64,
}

impl Receiver {
    /// `window` is the credit in bytes, `max_frame` the largest frame accepted.
    pub fn new(window: u64, max_frame: usize) -> Self {
        Self {
            next: 1,
            ahead: BTreeMap::new(),
            ahead_bytes: 0,
            ahead_cost: 0,
            ahead_ranges: BTreeMap::new(),
            window,
            max_frame,
            consumed: 0,
            received: 0,
            told_credit: window,
            told_next: 1,
            bytes_untold: 0,
            assembly: None,
            duplicates: 0,
        }
    }

    /// The next packet number wanted: all below have arrived.
    pub fn next_number(&self) -> u64 {
        self.next
    }

    /// Packets that had come before, and were dropped.
    pub fn duplicates(&self) -> u64 {
        self.duplicates
    }

    /// Bytes that arrived ahead of a missing packet and wait for it.
    pub fn ahead_bytes(&self) -> u64 {
        self.ahead_bytes
    }

    /// Whether a packet is missing that later ones have overtaken.
    pub fn has_gap(&self) -> bool {
        !self.ahead.is_empty()
    }

    /// Packets that are missing before the first that has overtaken them.
    pub fn missing(&self) -> u64 {
        self.ahead.first_key_value().map_or(0, |(number, _)| number - self.next)
    }

    /// Bytes that arrived in order since the last acknowledgement.
    pub fn untold_bytes(&self) -> u64 {
        self.bytes_untold
    }

    /// Takes the content of a DATA packet; frames that are whole and in order go to `sink`,
    /// acknowledgements in it to `acks`.
    pub fn handle_data(
        &mut self,
        number: u64,
        content: &[u8],
        sink: &mut dyn Sink,
        acks: &mut Vec<Piggyback>,
    ) -> Result<AckNeed, ReceiveError> {
        if number < self.next || self.ahead.contains_key(&number) {
            self.duplicates += 1;
            return Ok(AckNeed::Now);
        }
        if number > self.next {
            self.keep_ahead(number, content)?;
            return Ok(AckNeed::Now);
        }
        self.deliver(content, sink, acks)?;
        let mut need = AckNeed::Soon;
        while let Some(entry) = self.ahead.first_entry() {
            if *entry.key() != self.next {
                // A gap is left behind the one that was just closed.
                need = AckNeed::Now;
                break;
            }
            let content = entry.remove();
            self.ahead_bytes -= content.len() as u64;
            if let Some(to) = self.ahead_ranges.remove(&self.next).filter(|to| *to > self.next + 1)
            {
                self.ahead_ranges.insert(self.next + 1, to);
            }
            let received = self.received;
            self.deliver(&content, sink, acks)?;
            self.ahead_cost -= self.received - received;
            need = AckNeed::Now;
        }
        let credit_news = self.credit() - self.told_credit >= self.window / 4;
        if credit_news || self.bytes_untold >= (self.window / 4).min(ACK_EVERY) {
            need = AckNeed::Now;
        }
        Ok(need)
    }

    /// The VM has taken frames of this cost.
    pub fn grant(&mut self, cost: u64) -> AckNeed {
        self.consumed = (self.consumed + cost).min(self.received);
        if self.credit() - self.told_credit >= self.window / 4 {
            AckNeed::Now
        } else {
            AckNeed::Soon
        }
    }

    /// Whether there is something that the other end has not been told.
    pub fn has_news(&self) -> bool {
        self.told_next != self.next || self.told_credit != self.credit()
    }

    /// What to put on the back of data, if there is news. Counts as told.
    pub fn take_piggyback(&mut self) -> Option<Piggyback> {
        if !self.has_news() || !self.ahead.is_empty() {
            return None;
        }
        self.mark_told();
        Some(Piggyback { next: self.next, credit: self.credit() })
    }

    /// The acknowledgement to send now. Counts as told.
    pub fn take_ack(&mut self) -> Ack {
        self.mark_told();
        Ack { next: self.next, credit: self.credit(), ranges: self.ranges() }
    }

    fn mark_told(&mut self) {
        self.told_next = self.next;
        self.told_credit = self.credit();
        self.bytes_untold = 0;
    }

    fn credit(&self) -> u64 {
        self.consumed + self.window
    }

    fn ranges(&self) -> Vec<(u64, u64)> {
        self.ahead_ranges.iter().take(MAX_ACK_RANGES).map(|(from, to)| (*from, *to)).collect()
    }

    fn keep_ahead(&mut self, number: u64, content: &[u8]) -> Result<(), ReceiveError> {
        let cost = cost_of(content)?;
        // Everything ahead fits the credit, or the peer has broken it. So do the numbers: every item
        // costs something.
        let over = self.received + self.ahead_cost + cost > self.credit();
        if over || number - self.next > self.window {
            return Err(ReceiveError::Credit);
        }
        if self.ahead.len() as u64 >= MAX_AHEAD_MIN.max(self.window / BYTES_PER_AHEAD) {
            // Many tiny packets: those that are not kept come again.
            return Ok(());
        }
        self.ahead_bytes += content.len() as u64;
        self.ahead_cost += cost;
        self.ahead.insert(number, Bytes::copy_from_slice(content));
        self.note_ahead(number);
        Ok(())
    }

    fn note_ahead(&mut self, number: u64) {
        let to = self.ahead_ranges.remove(&(number + 1)).unwrap_or(number + 1);
        match self.ahead_ranges.range_mut(..number).next_back() {
            Some((_, end)) if *end == number => *end = to,
            _ => {
                self.ahead_ranges.insert(number, to);
            }
        }
    }

    fn deliver(
        &mut self,
        content: &[u8],
        sink: &mut dyn Sink,
        acks: &mut Vec<Piggyback>,
    ) -> Result<(), ReceiveError> {
        let mut rest = content;
        while let Some(item) = next_item(&mut rest)? {
            match item {
                Item::Frame(frame) => {
                    let cost = self.charge(frame.len())?;
                    self.check_frame_len(frame.len())?;
                    sink.frame(frame, cost);
                }
                Item::First { total, part } => self.first_part(total as usize, part, sink)?,
                Item::More(part) => {
                    let cost = self.charge(part.len())?;
                    self.part(part, cost, sink)?;
                }
                Item::Handshake(message) => {
                    let cost = self.charge(message.len())?;
                    sink.handshake(message, cost);
                }
                Item::Ack { next, credit } => acks.push(Piggyback { next, credit }),
            }
        }
        self.next += 1;
        self.bytes_untold += content.len() as u64;
        Ok(())
    }

    fn charge(&mut self, body_len: usize) -> Result<u64, ReceiveError> {
        let cost = item_cost(body_len);
        self.received += cost;
        if self.received > self.credit() { Err(ReceiveError::Credit) } else { Ok(cost) }
    }

    fn check_frame_len(&self, len: usize) -> Result<(), ReceiveError> {
        if len > self.max_frame {
            return Err(ReceiveError::FrameTooLong { len, limit: self.max_frame });
        }
        Ok(())
    }

    fn first_part(
        &mut self,
        total: usize,
        part: &[u8],
        sink: &mut dyn Sink,
    ) -> Result<(), ReceiveError> {
        let cost = self.charge(part.len() + TOTAL_LEN)?;
        self.check_frame_len(total)?;
        if self.assembly.is_some() || part.len() >= total {
            return Err(ReceiveError::Parts);
        }
        sink.frame_start(total);
        self.assembly = Some(Assembly { left: total, cost: 0 });
        self.part(part, cost, sink)
    }

    fn part(&mut self, part: &[u8], cost: u64, sink: &mut dyn Sink) -> Result<(), ReceiveError> {
        let assembly = self.assembly.as_mut().ok_or(ReceiveError::Parts)?;
        assembly.left = assembly.left.checked_sub(part.len()).ok_or(ReceiveError::Parts)?;
        assembly.cost += cost;
        sink.frame_part(part);
        if assembly.left == 0 {
            sink.frame_end(assembly.cost);
            self.assembly = None;
        } else if assembly.cost >= self.window / 4 {
            // A frame larger than the window would wait for credit for ever: what has been put
            // together counts as consumed. `max_frame` bounds it.
            let cost = std::mem::take(&mut assembly.cost);
            self.consumed += cost;
        }
        Ok(())
    }
}

/// What the items of a packet cost together.
fn cost_of(content: &[u8]) -> Result<u64, WireError> {
    let mut rest = content;
    let mut cost = 0;
    while let Some(item) = next_item(&mut rest)? {
        cost += match item {
            Item::Frame(body) | Item::More(body) | Item::Handshake(body) => item_cost(body.len()),
            Item::First { part, .. } => item_cost(part.len() + TOTAL_LEN),
            Item::Ack { .. } => 0,
        };
    }
    Ok(cost)
}
