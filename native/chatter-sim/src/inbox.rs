//! Where a channel puts what it has received, until the user takes it; and what messages look like.

use std::collections::{BTreeMap, VecDeque};

use chatter_core::channel::receive::Sink;
use chatter_core::ids::Incarnation;
use chatter_core::wire::data::ResetReason;

use crate::check::Message;

/// Bytes of a message without its padding.
pub(crate) const MESSAGE_LEN: usize = 48;

/// What a user takes.
pub(crate) enum Item {
    /// A message, and what it costs.
    Message(Message, u64),
    /// A message of the handshake of users.
    Greeting(u8, u64),
    /// The channel is over.
    Closed(ResetReason),
}

/// What waits for a user.
pub(crate) struct Inbox {
    /// This end's number of the connection.
    pub(crate) session: u64,
    items: VecDeque<Item>,
    /// Frames that are put together, by flow.
    partial: BTreeMap<Option<u32>, Vec<u8>>,
    /// Cost of what waits.
    pub(crate) waiting: u64,
}

impl Inbox {
    pub(crate) fn new(session: u64) -> Self {
        Self { session, items: VecDeque::new(), partial: BTreeMap::new(), waiting: 0 }
    }

    pub(crate) fn close(&mut self, reason: ResetReason) {
        self.items.push_back(Item::Closed(reason));
    }

    pub(crate) fn clear(&mut self) {
        self.items.clear();
        self.waiting = 0;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub(crate) fn pop(&mut self) -> Option<Item> {
        let item = self.items.pop_front()?;
        if let Item::Message(_, cost) | Item::Greeting(_, cost) = &item {
            self.waiting -= cost;
        }
        Some(item)
    }

    fn push(&mut self, item: Item, cost: u64) {
        self.waiting += cost;
        self.items.push_back(item);
    }
}

impl Sink for Inbox {
    fn frame(&mut self, _: Option<u32>, frame: &[u8], cost: u64) {
        self.push(Item::Message(read(frame), cost), cost);
    }

    fn frame_start(&mut self, flow: Option<u32>, total: usize) {
        self.partial.insert(flow, Vec::with_capacity(total));
    }

    fn frame_part(&mut self, flow: Option<u32>, part: &[u8]) {
        self.partial.entry(flow).or_default().extend_from_slice(part);
    }

    fn frame_end(&mut self, flow: Option<u32>, cost: u64) {
        let message = read(&self.partial.remove(&flow).unwrap_or_default());
        self.push(Item::Message(message, cost), cost);
    }

    fn handshake(&mut self, message: &[u8], cost: u64) {
        self.push(Item::Greeting(message.first().copied().unwrap_or(0), cost), cost);
    }
}

/// The bytes of a message of `len` bytes in all.
pub(crate) fn write(message: &Message, len: usize) -> Vec<u8> {
    let len = len.max(MESSAGE_LEN);
    let mut out = vec![message.counter as u8; len];
    let words = [
        message.from as u64,
        message.to as u64 | (len as u64) << 32,
        message.from_life.0,
        message.to_life.0,
        message.session,
        message.counter,
    ];
    for (place, word) in out.chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    out
}

/// Reads a message, and whether it is whole.
pub(crate) fn read(bytes: &[u8]) -> Message {
    let word = |at: usize| {
        let bytes = bytes.get(at * 8..at * 8 + 8);
        bytes.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
    };
    let counter = word(5);
    let padding = bytes.get(MESSAGE_LEN..).unwrap_or_default();
    Message {
        from: word(0) as usize,
        to: (word(1) & 0xffff_ffff) as usize,
        from_life: Incarnation(word(2)),
        to_life: Incarnation(word(3)),
        session: word(4),
        counter,
        whole: (word(1) >> 32) as usize == bytes.len()
            && padding.iter().all(|byte| *byte == counter as u8),
    }
}
