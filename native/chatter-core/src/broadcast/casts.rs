//! Broadcasts by multicast, the side that sends: who is known to hear this node, what was sent to whom
//! and not yet acknowledged, what is sent again, and what is left to links.
//!
//! ```text
//!           CAST                      CAST_ACK: received          CAST_ACK: taken
//!  target ───────► sent ──────────────────────────────► received ─────────────────► (done)
//!                   │  ▲ NAK: CAST again, at most 3 times    │ 3 s
//!                   │  └──────────                           │
//!                   └───────── timeout ──────────────────────┴──► links (custody.rs)
//! ```
//!
//! A target that is left to links is no different from one that multicast was never tried for, so what
//! becomes of datagrams is a matter of speed alone. `repairs` answers to NAKs; `hello` tells how far this
//! node has sent, when nothing follows that would.

mod hello;
mod repairs;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use lru::LruCache;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use super::BroadcastStats;
use super::custody::Custodies;
use super::hearer::Hearer;
use super::pace::Pace;
use crate::ids::{Incarnation, NodeId};
use crate::routes::ForwardingTable;
use crate::wire::bcast::{Target, next_message};
use crate::wire::cast::{CAST_FIXED_LEN, Cast, CastAck, room_for};
use crate::wire::datagram::{MAX_MESSAGE_BODY, kind};

/// Who has received a CAST and not taken it within this is left to links.
const TAKE_WITHIN: Duration = Duration::from_secs(3);

/// Origin, its life, the last number, the custody.
pub(super) type Key = (NodeId, Incarnation, u64, u64);

/// A message to be sent by multicast.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Datagram {
    /// Its kind, of those in [`mod@kind`].
    pub kind: u8,
    /// Its body.
    pub body: Vec<u8>,
    cast: Option<Key>,
}

struct Waiting {
    target: Target,
    received: Option<Instant>,
}

struct Sent {
    custody: u64,
    first: u64,
    waiting: BTreeMap<NodeId, Waiting>,
    /// The first time, and the last.
    began: Instant,
    sent: Instant,
    due: Instant,
    repairs: u8,
    missed: bool,
}

impl Sent {
    fn missing(&self) -> impl Iterator<Item = &Target> {
        self.waiting.values().filter(|w| w.received.is_none()).map(|w| &w.target)
    }
}

/// See the [module](self).
pub(super) struct Casts {
    pace: Pace,
    rng: Xoshiro256PlusPlus,
    hearers: LruCache<NodeId, Hearer>,
    sent: BTreeMap<Key, Sent>,
    due: BTreeSet<(Instant, Key)>,
    /// When to tell how far this node has sent.
    hello_at: Option<Instant>,
    out: VecDeque<Datagram>,
}

impl Casts {
    pub fn new(rate: Option<u64>, nodes: NonZeroUsize, me: NodeId, life: Incarnation) -> Self {
        Self {
            pace: Pace::new(rate),
            rng: Xoshiro256PlusPlus::seed_from_u64(me.0 ^ life.0),
            hearers: LruCache::new(nodes),
            sent: BTreeMap::new(),
            due: BTreeSet::new(),
            hello_at: None,
            out: VecDeque::new(),
        }
    }

    /// A life of a node has just said that it hears this one.
    pub fn handle_hears(&mut self, now: Instant, id: NodeId, life: Incarnation) {
        let tag = Target::life_tag(life);
        match self.hearers.get_mut(&id) {
            Some(known) if known.life == tag => known.prove_by_beacon(now),
            _ => _ = self.hearers.put(id, Hearer::new(tag, now)),
        }
    }

    /// How many nodes are known to hear this one.
    pub fn hearers(&self, now: Instant) -> usize {
        self.hearers.iter().filter(|(_, hearer)| hearer.is_proven(now)).count()
    }

    /// What may be sent at present, in bytes a second.
    pub fn rate(&self) -> u64 {
        self.pace.rate()
    }

    /// Sends the messages of a custody by multicast, if at least two of the targets are known to hear it,
    /// the messages fit a datagram and the rate allows it. The targets that are left to links: one of
    /// those who hear it, drawn at random, is always among them.
    pub fn send(
        &mut self,
        now: Instant,
        id: u64,
        mut targets: Vec<Target>,
        custodies: &mut Custodies,
        stats: &mut BroadcastStats,
    ) -> Vec<Target> {
        let hears = |target: &Target| {
            let known = self.hearers.peek(&target.id);
            !target.direct
                && !target.links_only
                && known.is_some_and(|h| h.life == target.life && h.is_proven(now))
        };
        if !self.pace.is_on() || targets.iter().filter(|target| hears(target)).count() < 2 {
            return targets;
        }
        let Some(batch) = custodies.batch(id) else { return targets };
        if CAST_FIXED_LEN + batch.messages.len() + 11 > MAX_MESSAGE_BODY {
            stats.over_datagram += 1;
            return targets;
        }
        let mut chosen: Vec<Target> = targets.extract_if(.., |target| hears(target)).collect();
        let kept = self.rng.random_range(0..chosen.len());
        targets.push(chosen.swap_remove(kept));
        let room = room_for(&chosen, batch.messages.len());
        targets.extend(chosen.drain(room..));
        if chosen.is_empty() {
            return targets;
        }
        let body = Cast::encode(&batch, &chosen);
        if !self.pace.may_send(now, body.len()) {
            stats.over_rate += 1;
            targets.extend(chosen);
            return targets;
        }
        let (mut rest, mut last) = (&batch.messages[..], batch.first);
        while let Ok(Some(_)) = next_message(&mut rest) {
            last += 1;
        }
        let key = (batch.origin, batch.incarnation, last - 1, id);
        self.out.push_back(Datagram { kind: kind::CAST, body, cast: Some(key) });
        stats.casts += 1;
        stats.cast_targets += chosen.len() as u64;
        self.pace.note_cast(now, stats);
        for target in &chosen {
            custodies.cast(id);
            if let Some(hearer) = self.hearers.get_mut(&target.id) {
                hearer.pending.insert(key);
            }
        }
        let timeout = self.timeout(chosen.iter().map(|target| target.id));
        let due = now + timeout;
        self.hello_at = Some(now + timeout / 2);
        let waiting = |target: Target| (target.id, Waiting { target, received: None });
        let sent = Sent {
            custody: id,
            first: batch.first,
            waiting: chosen.into_iter().map(waiting).collect(),
            began: now,
            sent: now,
            due,
            repairs: 0,
            missed: false,
        };
        self.due.insert((due, key));
        self.sent.insert(key, sent);
        targets
    }

    /// A target tells what has arrived.
    pub fn handle_ack(
        &mut self,
        now: Instant,
        from: NodeId,
        ack: &CastAck,
        custodies: &mut Custodies,
        stats: &mut BroadcastStats,
    ) {
        let Some(hearer) = self.hearers.get_mut(&from).filter(|h| h.life == ack.life) else {
            return;
        };
        if ack.heard {
            hearer.prove(now);
        }
        let (origin, life) = (ack.origin, ack.incarnation);
        let range = (origin, life, 0, 0)..=(origin, life, ack.highest, u64::MAX);
        let keys: Vec<Key> = hearer.pending.range(range).copied().collect();
        for key in keys {
            let Some(sent) = self.sent.get_mut(&key) else { continue };
            let Some(waiting) = sent.waiting.get_mut(&from) else { continue };
            let last = key.2;
            if waiting.received.is_none() && ack.has(last) {
                waiting.received = Some(now);
                hearer.arrived((sent.repairs == 0).then(|| now - sent.sent));
            }
            if waiting.received.is_some() && last <= ack.taken {
                hearer.pending.remove(&key);
                sent.waiting.remove(&from);
                stats.cast_acked += 1;
                custodies.cast_done(sent.custody);
                if sent.waiting.is_empty() {
                    self.due.remove(&(sent.due, key));
                    self.sent.remove(&key);
                }
            }
        }
    }

    /// Leaves to links who has not acknowledged in time.
    pub fn expire(
        &mut self,
        now: Instant,
        custodies: &mut Custodies,
        table: &ForwardingTable,
        stats: &mut BroadcastStats,
    ) {
        while let Some((_, key)) = self.due.first().copied().filter(|(at, _)| *at <= now) {
            let Some(sent) = self.sent.get(&key) else {
                self.due.pop_first();
                continue;
            };
            let missing: Vec<NodeId> = sent.missing().map(|target| target.id).collect();
            if !missing.is_empty() {
                self.note_missed(key);
            }
            for id in missing {
                if self.hearers.peek_mut(&id).is_some_and(|hearer| hearer.missed(now)) {
                    stats.proofs_lost += 1;
                }
            }
            let late = |_: &NodeId, waiting: &Waiting| {
                waiting.received.is_none_or(|at| at + TAKE_WITHIN <= now)
            };
            self.leave(now, key, late, custodies, table, stats);
            if let Some(sent) = self.sent.get_mut(&key) {
                self.due.remove(&(sent.due, key));
                let oldest = sent.waiting.values().filter_map(|waiting| waiting.received).min();
                sent.due = oldest.unwrap_or(now) + TAKE_WITHIN;
                self.due.insert((sent.due, key));
            }
        }
    }

    /// Leaves to links those that there is no route to: whoever is behind it has to wait for one.
    pub fn replan(
        &mut self,
        now: Instant,
        custodies: &mut Custodies,
        table: &ForwardingTable,
        stats: &mut BroadcastStats,
    ) {
        let keys: Vec<Key> = self.sent.keys().copied().collect();
        for key in keys {
            let gone = |id: &NodeId, _: &Waiting| table.route(*id).is_none();
            self.leave(now, key, gone, custodies, table, stats);
        }
    }

    /// A datagram could not be sent.
    pub fn unsent(
        &mut self,
        now: Instant,
        datagram: &Datagram,
        custodies: &mut Custodies,
        table: &ForwardingTable,
        stats: &mut BroadcastStats,
    ) {
        stats.unsent += 1;
        if let Some(key) = datagram.cast {
            let missing = |_: &NodeId, waiting: &Waiting| waiting.received.is_none();
            self.leave(now, key, missing, custodies, table, stats);
        }
    }

    /// The next datagram to be sent.
    pub fn poll_datagram(&mut self) -> Option<Datagram> {
        self.out.pop_front()
    }

    /// When [`Casts::expire`] or [`Casts::send_hello`] has something to do.
    pub fn timeout_at(&self) -> Option<Instant> {
        let due = self.due.first().map(|(at, _)| *at);
        due.into_iter().chain(self.hello_at).min()
    }

    fn leave(
        &mut self,
        now: Instant,
        key: Key,
        which: impl Fn(&NodeId, &Waiting) -> bool,
        custodies: &mut Custodies,
        table: &ForwardingTable,
        stats: &mut BroadcastStats,
    ) {
        let Some(sent) = self.sent.get_mut(&key) else { return };
        let left: Vec<Target> = sent
            .waiting
            .extract_if(.., |id, waiting| which(id, waiting))
            .map(|(_, waiting)| Target { links_only: true, ..waiting.target })
            .collect();
        if left.is_empty() {
            return;
        }
        let custody = sent.custody;
        if sent.waiting.is_empty() {
            self.due.remove(&(sent.due, key));
            self.sent.remove(&key);
        }
        stats.left_to_links += left.len() as u64;
        custodies.send_out(now, custody, &left, table, stats);
        for target in left {
            if let Some(hearer) = self.hearers.peek_mut(&target.id) {
                hearer.pending.remove(&key);
            }
            custodies.cast_done(custody);
        }
    }

    fn timeout(&self, targets: impl Iterator<Item = NodeId>) -> Duration {
        let hearers = targets.filter_map(|id| self.hearers.peek(&id));
        hearers.map(Hearer::timeout).max().unwrap_or_default()
    }

    fn note_missed(&mut self, key: Key) {
        if let Some(sent) = self.sent.get_mut(&key)
            && !std::mem::replace(&mut sent.missed, true)
        {
            self.pace.note_missed();
        }
    }
}
