//! What a link sends next: control first, then deficit round robin over the queues of own channels
//! and of transit (Shreedhar and Varghese, 1995), so that neither starves the other.
//!
//! The scheduler knows packets only by their length and by the queue they belong to. Transit that has
//! waited for long leaves with a mark, so that its source sends less (RFC 3168 does this for IP).

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::wire::packet::Packet;
use crate::wire::routed;

/// Transit that waits longer than this is marked.
pub const MARK_AFTER: Duration = Duration::from_millis(5);

/// Bytes that a queue may send per round.
const QUANTUM: usize = 16 * 1024 + 64;

/// Which queue a packet belongs to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum QueueKey {
    /// A channel of this node, by its index.
    Own(u32),
    /// Packets that are relayed, by a hash of source, destination and channel.
    Transit(u64),
}

#[derive(Default)]
struct Queue {
    /// With the time of arrival, for transit.
    packets: VecDeque<(Packet, Option<Instant>)>,
    bytes: usize,
    deficit: usize,
}

/// The queues of one link.
pub struct Scheduler {
    control: VecDeque<Packet>,
    control_bytes: usize,
    queues: HashMap<QueueKey, Queue>,
    /// Keys of queues that are not empty, in the order of their turns.
    active: VecDeque<QueueKey>,
    own_bytes: usize,
    transit_bytes: usize,
    limits: SchedulerLimits,
    dropped: u64,
    marked: u64,
}

/// Bounds of a link's queues.
#[derive(Clone, Copy, Debug)]
pub struct SchedulerLimits {
    /// Bytes of transit; beyond them the newest packet of the fattest transit queue is dropped.
    pub transit_bytes: usize,
    /// Bytes of control packets; beyond them new ones are dropped (hellos and LSPs are repeated).
    pub control_bytes: usize,
}

impl Scheduler {
    /// Empty queues.
    pub fn new(limits: SchedulerLimits) -> Self {
        Self {
            control: VecDeque::new(),
            control_bytes: 0,
            queues: HashMap::new(),
            active: VecDeque::new(),
            own_bytes: 0,
            transit_bytes: 0,
            limits,
            dropped: 0,
            marked: 0,
        }
    }

    /// Queues a control packet in front of all others.
    pub fn push_control(&mut self, packet: Packet) {
        if self.control_bytes + packet.len() > self.limits.control_bytes {
            self.dropped += 1;
            return;
        }
        self.control_bytes += packet.len();
        self.control.push_back(packet);
    }

    /// Queues a packet of an own channel. Bounded by the channel's credit; the caller stops fetching
    /// from the VM while [`Scheduler::own_bytes`] is high.
    pub fn push_own(&mut self, channel: u32, packet: Packet) {
        self.own_bytes += packet.len();
        self.push(QueueKey::Own(channel), packet, None);
    }

    /// Queues a packet that is relayed and arrived at `now`.
    pub fn push_transit(&mut self, hash: u64, packet: Packet, now: Instant) {
        self.transit_bytes += packet.len();
        self.push(QueueKey::Transit(hash), packet, Some(now));
        while self.transit_bytes > self.limits.transit_bytes {
            self.drop_from_fattest();
        }
    }

    /// Bytes of control packets queued.
    pub fn control_bytes(&self) -> usize {
        self.control_bytes
    }

    /// Bytes queued for own channels.
    pub fn own_bytes(&self) -> usize {
        self.own_bytes
    }

    /// Bytes queued for others.
    pub fn transit_bytes(&self) -> usize {
        self.transit_bytes
    }

    /// Packets dropped so far because a limit was reached.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Packets of transit that have left with a mark so far.
    pub fn marked(&self) -> u64 {
        self.marked
    }

    /// Takes all transit out, by queue and in order, with the hash that it was queued under: the link is
    /// gone, and there may be another way.
    pub fn take_transit(&mut self) -> Vec<(u64, Packet)> {
        let mut taken = Vec::new();
        let keys: Vec<QueueKey> = self.active.iter().copied().collect();
        for key in keys {
            let QueueKey::Transit(hash) = key else { continue };
            let queue = self.queues.remove(&key).unwrap_or_default();
            taken.extend(queue.packets.into_iter().map(|(packet, _)| (hash, packet)));
        }
        self.active.retain(|key| matches!(key, QueueKey::Own(_)));
        self.transit_bytes = 0;
        taken
    }

    /// Whether nothing is queued.
    pub fn is_empty(&self) -> bool {
        self.control.is_empty() && self.active.is_empty()
    }

    /// The next packet to send, at `now`.
    pub fn pop(&mut self, now: Instant) -> Option<Packet> {
        if let Some(packet) = self.control.pop_front() {
            self.control_bytes -= packet.len();
            return Some(packet);
        }
        loop {
            let key = *self.active.front()?;
            let queue = self.queues.get_mut(&key)?;
            let len = queue.packets.front().map_or(0, |(packet, _)| packet.len());
            if queue.deficit < len {
                queue.deficit += QUANTUM;
                if self.active.len() > 1 {
                    self.active.rotate_left(1);
                }
                continue;
            }
            return self.pop_from(key, now);
        }
    }

    fn pop_from(&mut self, key: QueueKey, now: Instant) -> Option<Packet> {
        let queue = self.queues.get_mut(&key)?;
        let (mut packet, arrived) = queue.packets.pop_front()?;
        queue.deficit -= packet.len();
        queue.bytes -= packet.len();
        let empty = queue.packets.is_empty();
        self.count(key, packet.len());
        if empty {
            self.retire(key);
        }
        if arrived.is_some_and(|at| now.saturating_duration_since(at) > MARK_AFTER) {
            routed::mark_delayed(&mut packet);
            self.marked += 1;
        }
        Some(packet)
    }

    fn push(&mut self, key: QueueKey, packet: Packet, arrived: Option<Instant>) {
        let queue = self.queues.entry(key).or_default();
        if queue.packets.is_empty() {
            self.active.push_back(key);
        }
        queue.bytes += packet.len();
        queue.packets.push_back((packet, arrived));
    }

    fn count(&mut self, key: QueueKey, len: usize) {
        match key {
            QueueKey::Own(_) => self.own_bytes -= len,
            QueueKey::Transit(_) => self.transit_bytes -= len,
        }
    }

    /// Forgets an empty queue: tables hold only what is queued now. The queue is at the front in
    /// the common case, so the search is short.
    fn retire(&mut self, key: QueueKey) {
        self.queues.remove(&key);
        if let Some(at) = self.active.iter().position(|k| *k == key) {
            self.active.remove(at);
        }
    }

    fn drop_from_fattest(&mut self) {
        let fattest = self
            .queues
            .iter()
            .filter(|(key, _)| matches!(key, QueueKey::Transit(_)))
            // By the key as well: what is dropped must not depend on the order of a hash table.
            .max_by_key(|(key, queue)| (queue.bytes, **key))
            .map(|(key, _)| *key);
        let Some(key) = fattest else { return };
        let Some(queue) = self.queues.get_mut(&key) else { return };
        if let Some((packet, _)) = queue.packets.pop_back() {
            queue.bytes -= packet.len();
            let empty = queue.packets.is_empty();
            self.count(key, packet.len());
            self.dropped += 1;
            if empty {
                self.retire(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scheduler(transit_bytes: usize) -> Scheduler {
        Scheduler::new(SchedulerLimits { transit_bytes, control_bytes: 1000 })
    }

    #[expect(clippy::disallowed_methods, reason = "any base of virtual time")]
    fn start() -> Instant {
        Instant::now()
    }

    fn packet(tag: u8, len: usize) -> Packet {
        Packet::from(vec![tag; len])
    }

    #[test]
    fn control_overtakes_data() {
        let (mut s, now) = (scheduler(10_000), start());
        s.push_own(1, packet(1, 100));
        s.push_control(packet(2, 10));
        assert_eq!(s.pop(now).unwrap().head[0], 2);
        assert_eq!(s.pop(now).unwrap().head[0], 1);
        assert!(s.pop(now).is_none() && s.is_empty());
    }

    #[test]
    fn queues_share_bytes_not_packets() {
        // Given a queue of large and one of small packets, expect equal bytes from both.
        let (mut s, now) = (scheduler(100_000_000), start());
        for _ in 0..1000 {
            s.push_own(1, packet(1, 16_000));
        }
        for _ in 0..100_000 {
            s.push_transit(2, packet(2, 160), now);
        }
        let mut sent = [0usize; 3];
        while sent[1] + sent[2] < 8_000_000 {
            let p = s.pop(now).unwrap();
            sent[p.head[0] as usize] += p.len();
        }
        let ratio = sent[1] as f64 / sent[2] as f64;
        assert!((0.95..1.05).contains(&ratio), "shares {sent:?}");
    }

    #[test]
    fn order_within_a_queue_is_kept() {
        let (mut s, now) = (scheduler(100_000), start());
        for i in 0..100 {
            s.push_own(u32::from(i % 3), packet(i, 50));
        }
        let mut last = [None; 3];
        while let Some(p) = s.pop(now) {
            let tag = p.head[0];
            let slot = &mut last[usize::from(tag % 3)];
            assert!(slot.is_none_or(|l| l < tag));
            *slot = Some(tag);
        }
    }

    #[test]
    fn the_fattest_transit_queue_is_cut() {
        let (mut s, now) = (scheduler(1_000), start());
        s.push_transit(1, packet(1, 100), now);
        for _ in 0..20 {
            s.push_transit(2, packet(2, 100), now);
        }
        assert!(s.transit_bytes() <= 1_000);
        assert_eq!(s.dropped(), 11);
        let tags: Vec<u8> = std::iter::from_fn(|| s.pop(now)).map(|p| p.head[0]).collect();
        assert_eq!(tags.iter().filter(|t| **t == 1).count(), 1, "the thin one keeps its packet");
        assert_eq!(s.transit_bytes(), 0);
    }

    #[test]
    fn control_is_bounded() {
        let (mut s, now) = (scheduler(1_000), start());
        for _ in 0..30 {
            s.push_control(packet(1, 100));
        }
        assert_eq!(std::iter::from_fn(|| s.pop(now)).count(), 10);
        assert_eq!(s.dropped(), 20);
    }

    #[test]
    fn transit_that_waited_is_marked() {
        // Given packets of this node and of others, expect a mark on those of others that waited for
        // longer than the limit, in the right byte, and on nothing else.
        let (mut s, now) = (scheduler(100_000), start());
        let soon = now + MARK_AFTER;
        s.push_transit(2, packet(0, 50), now);
        assert!(s.pop(soon).unwrap().head.iter().all(|byte| *byte == 0));
        s.push_own(1, packet(0, 50));
        s.push_transit(2, packet(0, 50), now);
        s.push_transit(2, packet(0, 50), soon);
        let late = soon + Duration::from_millis(1);
        let marked = |p: Packet| p.head[7] == 1 && p.head.iter().filter(|b| **b != 0).count() == 1;
        let marks = (0..3).filter(|_| marked(s.pop(late).unwrap())).count();
        assert_eq!((marks, s.marked(), s.is_empty()), (1, 1, true));
    }

    #[test]
    fn transit_is_taken_from_a_dead_link() {
        let (mut s, now) = (scheduler(100_000), start());
        for i in 0..6u8 {
            s.push_transit(u64::from(i % 2), packet(i, 50), now);
            s.push_own(1, packet(9, 50));
        }
        let taken: Vec<_> = s.take_transit().iter().map(|(hash, p)| (*hash, p.head[0])).collect();
        assert_eq!(taken, [(0, 0), (0, 2), (0, 4), (1, 1), (1, 3), (1, 5)]);
        assert_eq!((s.transit_bytes(), s.own_bytes()), (0, 300));
        assert!((0..6).all(|_| s.pop(now).unwrap().head[0] == 9) && s.is_empty());
    }
}
