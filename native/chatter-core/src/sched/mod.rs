//! What a link sends next: control first, but capped; then by [`Level`], each with a sure share, and in a
//! level by turns among the channels of this node and the node pairs that are relayed.
//!
//! Packets of own channels stay with their channel until it is their turn, so that what is queued later
//! can still overtake: the scheduler only knows that there are some. Transit is queued here, by flow.
//! Transit that has waited for long leaves with a mark, so that its source sends less (RFC 3168 does
//! this for IP).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use crate::wire::packet::Packet;
use crate::wire::routed;

pub mod fair;
pub mod outstanding;
pub mod shares;

use fair::{LEVELS, Level, Levels, QUANTUM};
use shares::Shares;

/// Transit that waits longer than this is marked.
pub const MARK_AFTER: Duration = Duration::from_millis(5);

/// So long nothing pressing must have passed until throughput may come before short waits.
pub const CALM: Duration = Duration::from_millis(20);

/// A flow that has had a backlog within this time sends bulk: nobody waits for its small things either. Senders
/// that were held back, or had to wait for a processor, have none for tens of milliseconds.
pub const STREAMING: Duration = Duration::from_millis(100);

/// Bytes that a channel may send at once while nobody else has anything.
pub const ALONE_BYTES: usize = 128 * 1024;

/// Control may take a fifth of a link while data waits, and this much at once.
const CONTROL_BURST: isize = 64 * 1024;
const DATA_PER_CONTROL: isize = 4;

/// Urgent bytes that a relayed channel may have queued; what is beyond is not urgent. A source says
/// itself what is urgent, and must not thereby get ahead of others for long.
const URGENT_TRANSIT: usize = 64 * 1024;

/// Where a relayed packet is queued.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lane {
    /// The same for all packets of a channel in one direction.
    pub pair: u64,
    /// Tells its flows apart.
    pub label: u16,
    /// How urgent its source says it is.
    pub level: Level,
}

/// Whose turn it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Turn {
    /// This packet's.
    Packet(Packet),
    /// A channel of this node may send packets of `level` until there are no more, or `bytes` of them
    /// have been sent. To be answered by [`Scheduler::own_done`].
    Own {
        /// Its index.
        channel: u32,
        /// Of which level.
        level: Level,
        /// How much.
        bytes: usize,
    },
}

/// Who takes turns.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Key {
    Own(u32),
    Transit(u64),
}

/// Who takes turns at several levels.
struct Turns {
    /// Levels at which it is in the ring, as bits.
    ringed: u8,
    /// Bytes that it may still send in this turn; below zero, the last one was longer.
    deficit: [isize; LEVELS],
}

impl Default for Turns {
    fn default() -> Self {
        Self { ringed: 0, deficit: [QUANTUM as isize; LEVELS] }
    }
}

#[derive(Default)]
struct Own {
    /// Levels at which the channel has packets, as bits.
    ready: u8,
    turns: Turns,
}

#[derive(Default)]
struct Pair {
    levels: Levels<u16, (Packet, Instant)>,
    bytes: usize,
    urgent_bytes: usize,
    turns: Turns,
}

/// The queues of one link.
pub struct Scheduler {
    control: VecDeque<Packet>,
    control_bytes: usize,
    /// What control may still send while data waits.
    control_allowance: isize,
    rings: [VecDeque<Key>; LEVELS],
    shares: Shares<LEVELS>,
    own: FxHashMap<u32, Own>,
    transit: FxHashMap<u64, Pair>,
    transit_bytes: usize,
    limits: SchedulerLimits,
    dropped: u64,
    marked: u64,
    late: u64,
    /// How long transit waits, smoothed.
    delay: Duration,
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
            control_allowance: CONTROL_BURST,
            rings: Default::default(),
            shares: Shares::default(),
            own: FxHashMap::default(),
            transit: FxHashMap::default(),
            transit_bytes: 0,
            limits,
            dropped: 0,
            marked: 0,
            late: 0,
            delay: Duration::ZERO,
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

    /// A channel of this node has packets at these levels (bits), and at no others.
    pub fn set_own(&mut self, channel: u32, ready: u8) {
        if ready == 0 && !self.own.contains_key(&channel) {
            return;
        }
        let own = self.own.entry(channel).or_default();
        own.ready = ready;
        join(&mut self.rings, &mut own.turns, Key::Own(channel), ready);
    }

    /// A channel of this node is over, or has its packets sent elsewhere.
    pub fn remove_own(&mut self, channel: u32) {
        if let Some(own) = self.own.remove(&channel) {
            self.leave(own.turns.ringed, Key::Own(channel));
        }
    }

    /// Channels of this node that have packets.
    pub fn own(&self) -> impl Iterator<Item = u32> {
        self.own.keys().copied()
    }

    /// Queues a packet that is relayed and arrived at `now`.
    pub fn push_transit(&mut self, lane: Lane, packet: Packet, now: Instant) {
        let len = packet.len();
        self.transit_bytes += len;
        let pair = self.transit.entry(lane.pair).or_default();
        let mut level = lane.level;
        if level == Level::Urgent {
            if pair.urgent_bytes + len > URGENT_TRANSIT {
                level = Level::Normal;
            } else {
                pair.urgent_bytes += len;
            }
        }
        pair.bytes += len;
        pair.levels.push(level, lane.label, (packet, now), len);
        join(&mut self.rings, &mut pair.turns, Key::Transit(lane.pair), level.bit());
        while self.transit_bytes > self.limits.transit_bytes {
            self.drop_from_fattest();
        }
    }

    /// Bytes of control packets queued.
    pub fn control_bytes(&self) -> usize {
        self.control_bytes
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

    /// Packets of transit dropped so far because their deadline was over.
    pub fn late(&self) -> u64 {
        self.late
    }

    /// How long transit waits here, smoothed over the last few packets.
    pub fn transit_delay(&self) -> Duration {
        self.delay
    }

    /// Takes all transit out, by queue and in order, with where it was queued: the link is gone, and
    /// there may be another way.
    pub fn take_transit(&mut self) -> Vec<(Lane, Packet)> {
        let mut pairs: Vec<_> = self.transit.drain().collect();
        pairs.sort_unstable_by_key(|(pair, _)| *pair);
        let mut taken = Vec::new();
        for (pair, mut queues) in pairs {
            for level in Level::ALL {
                while let Some((label, (packet, _), _)) = queues.levels.pop(level) {
                    taken.push((Lane { pair, label: label.unwrap_or(0), level }, packet));
                }
            }
        }
        for ring in &mut self.rings {
            ring.retain(|key| matches!(key, Key::Own(_)));
        }
        self.transit_bytes = 0;
        taken
    }

    /// Whether nothing is queued.
    pub fn is_empty(&self) -> bool {
        self.control.is_empty() && self.rings.iter().all(VecDeque::is_empty)
    }

    /// Whose turn it is at `now`.
    pub fn next(&mut self, now: Instant) -> Option<Turn> {
        loop {
            let ready = self.ready();
            if let Some(packet) = self.next_control(ready) {
                return Some(Turn::Packet(packet));
            }
            let level = Level::ALL[self.shares.next(ready)?];
            let at = level as usize;
            let key = *self.rings[at].front()?;
            let alone = self.rings[at].len() == 1;
            let Some((turns, has_some)) = self.turns(key, level) else {
                self.rings[at].pop_front();
                continue;
            };
            if !has_some {
                turns.ringed &= !level.bit();
                self.rings[at].pop_front();
                continue;
            }
            if alone {
                turns.deficit[at] = QUANTUM as isize;
            } else if turns.deficit[at] <= 0 {
                turns.deficit[at] += QUANTUM as isize;
                self.rings[at].rotate_left(1);
                continue;
            }
            match key {
                Key::Own(channel) => {
                    let alone = alone && ready == level.bit();
                    let deficit = turns.deficit[at] as usize;
                    let bytes = if alone { ALONE_BYTES } else { deficit };
                    return Some(Turn::Own { channel, level, bytes });
                }
                Key::Transit(pair) => {
                    if let Some(packet) = self.pop_transit(pair, level, ready, now) {
                        return Some(Turn::Packet(packet));
                    }
                }
            }
        }
    }

    /// A channel of this node has had its turn: it sent so many bytes, and has packets at the levels
    /// `ready` now.
    pub fn own_done(&mut self, channel: u32, level: Level, bytes: usize, ready: u8) {
        let before = self.ready();
        self.count(level, bytes, before);
        let at = level as usize;
        let Some(own) = self.own.get_mut(&channel) else { return };
        own.turns.deficit[at] -= bytes as isize;
        if self.rings[at].front() == Some(&Key::Own(channel)) && ready & level.bit() == 0 {
            self.rings[at].pop_front();
            own.turns.ringed &= !level.bit();
            own.turns.deficit[at] = QUANTUM as isize;
        }
        if ready == 0 {
            return self.remove_own(channel);
        }
        own.ready = ready;
        join(&mut self.rings, &mut own.turns, Key::Own(channel), ready);
    }

    /// Levels at which somebody may have something, as bits.
    fn ready(&self) -> u8 {
        let has_some = |level: &&Level| !self.rings[**level as usize].is_empty();
        Level::ALL.iter().filter(has_some).fold(0, |set, level| set | level.bit())
    }

    fn next_control(&mut self, ready: u8) -> Option<Packet> {
        if ready == 0 {
            self.control_allowance = CONTROL_BURST;
        } else if self.control_allowance <= 0 {
            return None;
        }
        let packet = self.control.pop_front()?;
        self.control_bytes -= packet.len();
        self.control_allowance -= packet.len() as isize;
        Some(packet)
    }

    fn turns(&mut self, key: Key, level: Level) -> Option<(&mut Turns, bool)> {
        match key {
            Key::Own(channel) => {
                let own = self.own.get_mut(&channel)?;
                let has_some = own.ready & level.bit() != 0;
                Some((&mut own.turns, has_some))
            }
            Key::Transit(pair) => {
                let pair = self.transit.get_mut(&pair)?;
                let has_some = pair.levels.ready() & level.bit() != 0;
                Some((&mut pair.turns, has_some))
            }
        }
    }

    /// The next packet of a relayed channel, unless it is too late for it.
    fn pop_transit(&mut self, key: u64, level: Level, ready: u8, now: Instant) -> Option<Packet> {
        let pair = self.transit.get_mut(&key)?;
        let (_, (mut packet, arrived), len) = pair.levels.pop(level)?;
        pair.turns.deficit[level as usize] -= len as isize;
        self.forget(key, level, len);
        self.count(level, len, ready);
        let waited = now.saturating_duration_since(arrived);
        self.delay = (self.delay * 7 + waited) / 8;
        if !routed::is_routed(&packet) {
            // It goes one hop, and has no header that could be changed.
            return Some(packet);
        }
        if !routed::age(&mut packet, waited) {
            self.late += 1;
            return None;
        }
        if waited > MARK_AFTER {
            routed::mark_delayed(&mut packet);
            self.marked += 1;
        }
        Some(packet)
    }

    /// Bytes of a relayed channel have left its queues.
    fn forget(&mut self, key: u64, level: Level, len: usize) {
        self.transit_bytes -= len;
        let Some(pair) = self.transit.get_mut(&key) else { return };
        pair.bytes -= len;
        if level == Level::Urgent {
            pair.urgent_bytes -= len;
        }
        // Tables hold only what is queued now.
        if pair.bytes == 0 {
            let ringed = pair.turns.ringed;
            self.transit.remove(&key);
            self.leave(ringed, Key::Transit(key));
        }
    }

    fn count(&mut self, level: Level, bytes: usize, ready: u8) {
        self.shares.sent(level as usize, bytes, ready);
        let allowance = self.control_allowance + bytes as isize / DATA_PER_CONTROL;
        self.control_allowance = allowance.min(CONTROL_BURST);
    }

    fn leave(&mut self, ringed: u8, key: Key) {
        for level in Level::ALL {
            let ring = &mut self.rings[level as usize];
            if ringed & level.bit() == 0 {
                continue;
            }
            if ring.front() == Some(&key) {
                ring.pop_front();
            } else {
                ring.retain(|known| *known != key);
            }
        }
    }

    fn drop_from_fattest(&mut self) {
        // By the key as well: what is dropped must not depend on the order of a hash table.
        let fattest = self.transit.iter().map(|(key, pair)| (pair.bytes, *key)).max();
        let Some((_, key)) = fattest else { return };
        let Some(pair) = self.transit.get_mut(&key) else { return };
        let (dropped, level) = match pair.levels.fattest() {
            Some((_, level, label)) => (pair.levels.drop_newest(level, label), level),
            None => (pair.levels.drop_newest_urgent(), Level::Urgent),
        };
        if let Some((_, len)) = dropped {
            self.forget(key, level, len);
            self.dropped += 1;
        }
    }
}

/// Puts somebody into the rings of the levels at which it is not yet.
fn join(rings: &mut [VecDeque<Key>; LEVELS], turns: &mut Turns, key: Key, ready: u8) {
    for level in Level::ALL {
        let bit = level.bit();
        if ready & bit != 0 && turns.ringed & bit == 0 {
            turns.ringed |= bit;
            rings[level as usize].push_back(key);
        }
    }
}
