//! Queues that share by bytes: deficit round robin (Shreedhar and Varghese, 1995), and the levels of
//! urgency that a channel and a link have in common.

use std::collections::VecDeque;
use std::hash::Hash;

use rustc_hash::FxHashMap;

use crate::channel::BATCH_LEN;

/// Bytes that a queue may send per round: a packet of small messages and its headers. A chunk of a large
/// message takes two rounds.
pub const QUANTUM: usize = BATCH_LEN + 128;

/// Bytes that a flow may have among the urgent ones at a time; what is beyond waits in its own queue.
pub const SPARSE_BYTES: usize = 16 * 1024;

/// How urgent something is, the most urgent first. What is queued below is sure of its share
/// ([`Shares`](super::shares::Shares)).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Level {
    /// Of high priority.
    High = 0,
    /// Small things of flows without a backlog (the sparse flows of RFC 8290).
    Urgent = 1,
    /// All others.
    Normal = 2,
    /// Of low priority.
    Low = 3,
}

/// Number of levels.
pub const LEVELS: usize = 4;

impl Level {
    /// All of them, by their number.
    pub const ALL: [Self; LEVELS] = [Self::High, Self::Urgent, Self::Normal, Self::Low];

    /// Its bit in a set of levels.
    pub fn bit(self) -> u8 {
        1 << self as u8
    }
}

struct Queue<T> {
    items: VecDeque<(T, usize)>,
    bytes: usize,
    deficit: usize,
}

/// Queues that take turns, each by its key.
pub struct Fair<K, T> {
    queues: FxHashMap<K, Queue<T>>,
    /// Keys of the queues, all of which hold something, in the order of their turns.
    ring: VecDeque<K>,
}

impl<K, T> Default for Fair<K, T> {
    fn default() -> Self {
        Self { queues: FxHashMap::default(), ring: VecDeque::new() }
    }
}

impl<K: Copy + Eq + Hash + Ord, T> Fair<K, T> {
    /// Whether nothing is queued.
    pub fn is_empty(&self) -> bool {
        self.ring.is_empty()
    }

    /// Queues something of `len` bytes.
    pub fn push(&mut self, key: K, item: T, len: usize) {
        let ring = &mut self.ring;
        let queue = self.queues.entry(key).or_insert_with(|| {
            ring.push_back(key);
            Queue { items: VecDeque::new(), bytes: 0, deficit: 0 }
        });
        queue.bytes += len;
        queue.items.push_back((item, len));
    }

    /// The next thing, whose turn it is, and its length.
    pub fn pop(&mut self) -> Option<(K, T, usize)> {
        loop {
            let key = *self.ring.front()?;
            let queue = self.queues.get_mut(&key)?;
            let len = queue.items.front().map_or(0, |(_, len)| *len);
            if queue.deficit < len && self.ring.len() > 1 {
                queue.deficit += QUANTUM;
                self.ring.rotate_left(1);
                continue;
            }
            let (item, len) = queue.items.pop_front()?;
            queue.deficit = queue.deficit.saturating_sub(len);
            queue.bytes -= len;
            if queue.items.is_empty() {
                self.queues.remove(&key);
                self.ring.pop_front();
            }
            return Some((key, item, len));
        }
    }

    /// The queue with the most bytes, and how many: of equal ones, that of the largest key, so that
    /// it does not depend on the order of a hash table.
    pub fn fattest(&self) -> Option<(usize, K)> {
        self.queues.iter().map(|(key, queue)| (queue.bytes, *key)).max()
    }

    /// Takes the newest thing out of a queue.
    pub fn drop_newest(&mut self, key: K) -> Option<(T, usize)> {
        let queue = self.queues.get_mut(&key)?;
        let (item, len) = queue.items.pop_back()?;
        queue.bytes -= len;
        if queue.items.is_empty() {
            self.queues.remove(&key);
            self.ring.retain(|known| *known != key);
        }
        Some((item, len))
    }
}

/// Queues at all levels.
pub struct Levels<K, T> {
    urgent: VecDeque<(T, usize)>,
    rings: [Fair<K, T>; LEVELS],
}

impl<K, T> Default for Levels<K, T> {
    fn default() -> Self {
        Self { urgent: VecDeque::new(), rings: Default::default() }
    }
}

impl<K: Copy + Eq + Hash + Ord, T> Levels<K, T> {
    /// The levels that hold something, as bits.
    pub fn ready(&self) -> u8 {
        let urgent = if self.urgent.is_empty() { 0 } else { Level::Urgent.bit() };
        Level::ALL.iter().fold(urgent, |set, level| {
            if self.rings[*level as usize].is_empty() { set } else { set | level.bit() }
        })
    }

    /// Whether nothing is queued.
    pub fn is_empty(&self) -> bool {
        self.ready() == 0
    }

    /// Queues that hold something; what is urgent has none of its own.
    pub fn backlogs(&self) -> usize {
        self.rings.iter().map(|ring| ring.ring.len()).sum()
    }

    /// Whether something urgent is queued.
    pub fn has_urgent(&self) -> bool {
        !self.urgent.is_empty()
    }

    /// The next urgent thing.
    pub fn front_urgent(&self) -> Option<&T> {
        self.urgent.front().map(|(item, _)| item)
    }

    /// Queues something; urgent things keep their order whatever their keys.
    pub fn push(&mut self, level: Level, key: K, item: T, len: usize) {
        match level {
            Level::Urgent => self.urgent.push_back((item, len)),
            _ => self.rings[level as usize].push(key, item, len),
        }
    }

    /// The next thing of a level; with its key, unless it is an urgent one.
    pub fn pop(&mut self, level: Level) -> Option<(Option<K>, T, usize)> {
        match level {
            Level::Urgent => self.urgent.pop_front().map(|(item, len)| (None, item, len)),
            _ => self.rings[level as usize].pop().map(|(key, item, len)| (Some(key), item, len)),
        }
    }

    /// The fattest queue: its bytes and its level and key. Urgent things are spared.
    pub fn fattest(&self) -> Option<(usize, Level, K)> {
        let rings = Level::ALL.iter().map(|level| (*level, &self.rings[*level as usize]));
        rings.filter_map(|(level, ring)| ring.fattest().map(|(len, key)| (len, level, key))).max()
    }

    /// Takes the newest thing out of a queue.
    pub fn drop_newest(&mut self, level: Level, key: K) -> Option<(T, usize)> {
        self.rings[level as usize].drop_newest(key)
    }

    /// Takes the newest urgent thing out.
    pub fn drop_newest_urgent(&mut self) -> Option<(T, usize)> {
        self.urgent.pop_back()
    }
}
