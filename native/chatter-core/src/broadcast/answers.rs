//! Broadcasts by multicast, the side that receives: when to acknowledge, and when to ask for what is
//! missing.
//!
//! A CAST_ACK tells of all that has arrived of an origin. It waits for a few milliseconds, other for
//! each node, so that many messages are acknowledged at once and many nodes not at the same time.
//!
//! Who misses something asks for it by multicast after a random time, which doubles, unless somebody else
//! does so first.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use lru::LruCache;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use super::hearer::PROOF;
use super::order::Order;
use crate::ids::{Incarnation, NodeId};
use crate::wire::cast::{CastAck, Gap, MAX_ACK_GAPS, MAX_NAK_GAPS, Nak};

/// An acknowledgement waits for so long, and up to so much more.
const ACK_DELAY: Duration = Duration::from_millis(2);
const ACK_SPREAD_US: u64 = 4_000;

/// What is missing is asked for after one to two times this.
const NAK_DELAY_US: u64 = 2_000;

/// It is asked for so often; then it is up to who has sent it.
const MAX_NAKS: u32 = 4;

struct Pending {
    incarnation: Incarnation,
    /// The last number that has come by multicast from there.
    upto: u64,
    heard: bool,
    /// What was acknowledged last, as taken.
    told: u64,
    at: Option<Instant>,
}

struct Asking {
    /// What was received when it began.
    after: u64,
    asked: u32,
    at: Option<Instant>,
}

/// See the [module](self).
pub(super) struct Answers {
    rng: Xoshiro256PlusPlus,
    max: usize,
    /// By sender of datagrams and origin.
    pending: BTreeMap<(NodeId, NodeId), Pending>,
    /// By origin.
    asking: BTreeMap<NodeId, Asking>,
    /// Origins whose messages have come by multicast, and when they last did.
    heard: LruCache<NodeId, Instant>,
}

impl Answers {
    pub fn new(nodes: NonZeroUsize, me: NodeId, life: Incarnation) -> Self {
        Self {
            rng: Xoshiro256PlusPlus::seed_from_u64(!me.0 ^ life.0),
            max: nodes.get(),
            pending: BTreeMap::new(),
            asking: BTreeMap::new(),
            heard: LruCache::new(nodes),
        }
    }

    /// Messages of an origin up to `last` have come by multicast.
    pub fn heard(
        &mut self,
        now: Instant,
        sender: NodeId,
        origin: NodeId,
        incarnation: Incarnation,
        last: u64,
    ) {
        self.heard.put(origin, now);
        if self.pending.len() >= self.max && !self.pending.contains_key(&(sender, origin)) {
            return;
        }
        let fresh = Pending { incarnation, upto: 0, heard: false, told: 0, at: None };
        let pending = self.pending.entry((sender, origin)).or_insert(fresh);
        if pending.incarnation != incarnation {
            (pending.incarnation, pending.upto, pending.told) = (incarnation, 0, 0);
        }
        pending.upto = pending.upto.max(last);
        pending.heard = true;
        let spread = Duration::from_micros(self.rng.random_range(0..ACK_SPREAD_US));
        pending.at.get_or_insert(now + ACK_DELAY + spread);
    }

    /// A sender tells by multicast what it has sent of an origin.
    pub fn told(&mut self, now: Instant, origin: NodeId) {
        self.heard.put(origin, now);
    }

    /// The user has taken messages: those who wait for that are told soon.
    pub fn taken(&mut self, now: Instant, origins: &LruCache<NodeId, Order>) {
        for ((_, origin), pending) in &mut self.pending {
            let taken = origins.peek(origin).map_or(0, Order::taken);
            if pending.at.is_none() && taken > pending.told {
                pending.at = Some(now + ACK_DELAY);
            }
        }
    }

    /// Something of an origin is missing since its number `after`, or nothing is.
    pub fn gap(&mut self, now: Instant, origin: NodeId, after: Option<u64>) {
        let Some(after) = after else {
            self.asking.remove(&origin);
            return;
        };
        if self.asking.get(&origin).is_some_and(|asking| asking.after == after) {
            return;
        }
        // What never came by multicast is on its way over links.
        let heard = self.heard.peek(&origin);
        if heard.is_none_or(|at| now.saturating_duration_since(*at) >= PROOF) {
            return;
        }
        let at = Some(now + self.back_off(0));
        self.asking.insert(origin, Asking { after, asked: 0, at });
    }

    /// Another node asks for something: whether this one would have asked for it too.
    pub fn overheard(&mut self, now: Instant, origin: NodeId, gap: Gap) -> bool {
        let Some(asking) = self.asking.get(&origin) else { return false };
        if asking.at.is_none() || !gap.has(asking.after + 1) {
            return false;
        }
        let at = now + self.back_off(asking.asked + 1);
        if let Some(asking) = self.asking.get_mut(&origin) {
            asking.at = Some(at);
        }
        true
    }

    /// What is to be asked for now.
    pub fn poll_nak(&mut self, now: Instant, origins: &LruCache<NodeId, Order>) -> Option<Nak> {
        let due: Vec<NodeId> = self
            .asking
            .iter()
            .filter(|(_, asking)| asking.at.is_some_and(|at| at <= now))
            .map(|(origin, _)| *origin)
            .collect();
        let mut nak = Nak { gaps: Vec::new() };
        for origin in due {
            let Some(order) = origins.peek(&origin).filter(|o| o.missing_after().is_some()) else {
                self.asking.remove(&origin);
                continue;
            };
            let asked = self.asking.get(&origin).map_or(0, |asking| asking.asked) + 1;
            let at = (asked < MAX_NAKS).then(|| now + self.back_off(asked));
            if let Some(asking) = self.asking.get_mut(&origin) {
                (asking.asked, asking.at) = (asked, at);
            }
            let gaps = order.missing(MAX_NAK_GAPS - nak.gaps.len());
            nak.gaps.extend(gaps.into_iter().map(|gap| (origin, order.incarnation, gap)));
        }
        (!nak.gaps.is_empty()).then_some(nak)
    }

    /// An acknowledgement that is due, and whom it is for.
    pub fn poll_ack(
        &mut self,
        now: Instant,
        life: u16,
        origins: &LruCache<NodeId, Order>,
    ) -> Option<(NodeId, CastAck)> {
        let due =
            |(_, pending): &(&(NodeId, NodeId), &Pending)| pending.at.is_some_and(|at| at <= now);
        loop {
            let key = *self.pending.iter().find(due)?.0;
            let (sender, origin) = key;
            let pending = self.pending.get_mut(&key)?;
            let order = origins.peek(&origin).filter(|o| o.incarnation == pending.incarnation);
            let Some(order) = order else {
                self.pending.remove(&key);
                continue;
            };
            let (gaps, highest) = order.gaps(MAX_ACK_GAPS);
            let ack = CastAck {
                heard: std::mem::take(&mut pending.heard),
                life,
                origin,
                incarnation: order.incarnation,
                received: order.received(),
                taken: order.taken(),
                highest,
                gaps,
            };
            pending.at = None;
            pending.told = ack.taken;
            if ack.taken >= pending.upto {
                self.pending.remove(&key);
            }
            return Some((sender, ack));
        }
    }

    /// When there is something to poll.
    pub fn timeout(&self) -> Option<Instant> {
        let acks = self.pending.values().filter_map(|pending| pending.at);
        acks.chain(self.asking.values().filter_map(|asking| asking.at)).min()
    }

    fn back_off(&mut self, asked: u32) -> Duration {
        let delay = NAK_DELAY_US << asked.min(MAX_NAKS);
        Duration::from_micros(self.rng.random_range(delay..=2 * delay))
    }
}
