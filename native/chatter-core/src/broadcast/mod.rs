//! Messages to many nodes: each once at each target, in the order of its origin.
//!
//! * [`plan`] says who sends to whom;
//! * `custody` keeps messages until everybody behind this node has them, and plans anew what a link or a
//!   node took along when it went;
//! * `order` delivers them;
//! * [`payload`] compresses them.
//!
//! A node that gets messages becomes responsible for the targets that come with them. It tells the node
//! it got them from when all these have them, so every node on the way can do the work of one that has
//! died. Duplicates that arise from this are dropped by number.
//!
//! [`Broadcast`] is driven like [`Control`](crate::control::Control): calls, then `poll_transmit` and
//! `poll_delivery` until each is empty; `poll_timeout` says when to come back.

mod custody;
mod order;
mod outbox;
pub mod payload;
pub mod plan;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lru::LruCache;

use crate::ids::{Incarnation, NodeId};
use crate::routes::ForwardingTable;
use crate::wire::PacketType;
use crate::wire::bcast::{Bcast, BcastAck, Fate, Message, Part, next_message};
use crate::wire::packet::Packet;
use crate::wire::reader::WireError;
use custody::Custodies;
use order::{Order, Piece, Taken};
pub use outbox::{SendError, Targets};

/// How long the messages of a type that this node changes wait for that before they go on unchanged.
pub const DISPATCH_TIMEOUT: Duration = Duration::from_secs(2);

/// Limits of [`Broadcast`].
#[derive(Clone, Copy, Debug)]
pub struct BroadcastConfig {
    /// Bytes of own messages that not all targets have yet; beyond it [`Broadcast::send`] refuses.
    pub window: usize,
    /// Bytes of messages kept for others; beyond it new ones are sent back, to come again later.
    pub memory: usize,
    /// Bytes of the largest message.
    pub max_message: usize,
    /// How long a target may be without a route until it is given up.
    pub patience: Duration,
    /// How long a missing message holds up those behind it.
    pub gap_timeout: Duration,
    /// Origins, and targets, that are remembered; the one that was silent longest is forgotten.
    pub max_nodes: usize,
}

impl Default for BroadcastConfig {
    fn default() -> Self {
        Self {
            window: 4 << 20,
            memory: 64 << 20,
            max_message: 16 << 20,
            patience: Duration::from_millis(2_500),
            gap_timeout: Duration::from_secs(10),
            max_nodes: 8_192,
        }
    }
}

/// What happened since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BroadcastStats {
    /// Own messages.
    pub sent: u64,
    /// Packets sent to neighbours.
    pub tree_packets: u64,
    /// Packets that came from neighbours.
    pub packets_in: u64,
    /// Messages delivered here.
    pub delivered: u64,
    /// Messages, or parts, that came again.
    pub duplicates: u64,
    /// Transfers that were planned anew because a link or a node went, or did not answer.
    pub replanned: u64,
    /// Packets sent back, or got back, because there was no memory for them.
    pub busy: u64,
    /// Targets that no message went to since there was no route to them.
    pub unreachable: u64,
    /// Targets given up with messages under way.
    pub lost: u64,
    /// Times that missing messages were given up by a receiver.
    pub gaps: u64,
    /// Messages that could not be read.
    pub damaged: u64,
}

/// A message for the user of this node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Delivery {
    /// Who sent it first.
    pub origin: NodeId,
    /// Its number there.
    pub seq: u64,
    /// Its type.
    pub kind: Box<str>,
    /// What it says.
    pub body: Bytes,
    /// To be named in [`Broadcast::dispatched`], if others wait for what becomes of it here.
    pub ticket: Option<u64>,
    custody: u64,
}

/// See the [module](self).
pub struct Broadcast {
    config: BroadcastConfig,
    me: NodeId,
    table: Arc<ForwardingTable>,
    outbox: outbox::Outbox,
    custodies: Custodies,
    origins: LruCache<NodeId, Order>,
    /// Origins of which messages are missing, and since when.
    gaps: BTreeMap<NodeId, Instant>,
    /// Types that the user of this node may change.
    handled: HashSet<String>,
    deliveries: VecDeque<Delivery>,
    stats: BroadcastStats,
}

impl Broadcast {
    /// Without routes, nobody is reached: see [`Broadcast::set_table`].
    pub fn new(config: BroadcastConfig, me: NodeId, life: Incarnation) -> Self {
        let nodes = NonZeroUsize::new(config.max_nodes).unwrap_or(NonZeroUsize::MIN);
        Self {
            config,
            me,
            table: Arc::default(),
            outbox: outbox::Outbox::new(life, nodes),
            custodies: Custodies::new(life),
            origins: LruCache::new(nodes),
            gaps: BTreeMap::new(),
            handled: HashSet::new(),
            deliveries: VecDeque::new(),
            stats: BroadcastStats::default(),
        }
    }

    /// The routes, and the links to neighbours, have changed: what was sent over a link that is gone is
    /// planned anew.
    pub fn set_table(&mut self, now: Instant, table: Arc<ForwardingTable>) {
        self.table = table;
        self.custodies.replan(now, &self.table, &mut self.stats);
        self.settle(now);
    }

    /// This node lives another life from now on; messages to the former one are not for it.
    pub fn begin_life(&mut self, life: Incarnation) {
        self.outbox.begin_life(life);
    }

    /// The types of which the user of this node may change messages: see [`Broadcast::dispatched`].
    pub fn set_handled(&mut self, kinds: impl IntoIterator<Item = String>) {
        self.handled = kinds.into_iter().collect();
    }

    /// Sends a message. It leaves at once if nothing else is under way, else within a millisecond,
    /// together with others for the same targets.
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn send(
        &mut self,
        now: Instant,
        targets: &Targets,
        kind: &str,
        body: &payload::Packed,
    ) -> Result<(), SendError> {
        if body.body.len() > self.config.max_message || kind.len() > 255 {
            return Err(SendError::TooLarge);
        }
        if self.custodies.own_bytes() >= self.config.window {
            return Err(SendError::Full);
        }
        self.stats.sent += 1;
        while let Some(batch) = self.outbox.append(now, targets, kind, body) {
            self.launch(now, batch);
        }
        self.settle(now);
        Ok(())
    }

    /// A BCAST or BCAST_ACK came from a neighbour.
    ///
    /// # Errors
    /// It cannot be read: the peer's fault.
    pub fn handle_packet(
        &mut self,
        now: Instant,
        from: NodeId,
        kind: PacketType,
        body: &[u8],
    ) -> Result<(), WireError> {
        if kind == PacketType::BcastAck {
            let ack = BcastAck::decode(body)?;
            self.stats.busy += if ack.fate == Fate::Busy { ack.numbers.len() as u64 } else { 0 };
            for number in ack.numbers {
                self.custodies.handle_ack(now, from, ack.fate, number);
            }
        } else {
            self.take_in(now, from, Bcast::decode(body)?);
        }
        self.settle(now);
        Ok(())
    }

    /// The user is done with a message that came with a ticket: `changed` travels on in its place.
    pub fn dispatched(
        &mut self,
        now: Instant,
        ticket: u64,
        seq: u64,
        changed: Option<payload::Packed>,
    ) {
        if let Some(targets) = self.custodies.dispatched(ticket, seq, changed) {
            self.custodies.send_out(now, ticket, &targets, &self.table, &mut self.stats);
        }
        self.settle(now);
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.outbox.timeout().is_some_and(|at| at <= now)
            && let Some(batch) = self.outbox.close()
        {
            self.launch(now, batch);
        }
        for (ticket, targets) in self.custodies.expire_dispatch(now) {
            self.custodies.send_out(now, ticket, &targets, &self.table, &mut self.stats);
        }
        self.custodies.expire(now, self.config.patience, &self.table, &mut self.stats);
        let patience = self.config.gap_timeout;
        let due = |(id, since): (&NodeId, &Instant)| (*since + patience <= now).then_some(*id);
        let late: Vec<NodeId> = self.gaps.iter().filter_map(due).collect();
        for origin in late {
            let mut taken = Vec::new();
            if let Some(order) = self.origins.peek_mut(&origin)
                && order.skip(now, &mut taken)
            {
                self.stats.gaps += 1;
            }
            self.after_order(origin, taken);
        }
        self.settle(now);
    }

    /// The next packet and the neighbour that it is for.
    pub fn poll_transmit(&mut self) -> Option<(NodeId, Packet)> {
        self.custodies.poll_transmit()
    }

    /// The next message for the user. What was sent to this node counts as arrived with this.
    pub fn poll_delivery(&mut self) -> Option<Delivery> {
        let delivery = self.deliveries.pop_front()?;
        self.stats.delivered += 1;
        self.custodies.delivered(delivery.custody);
        Some(delivery)
    }

    /// Whether there are messages for the user.
    pub fn has_delivery(&self) -> bool {
        !self.deliveries.is_empty()
    }

    /// The length of the next message for the user; 0 if there is none.
    pub fn next_delivery_len(&self) -> usize {
        self.deliveries.front().map_or(0, |delivery| delivery.body.len())
    }

    /// To be called when deliveries were polled: lets others know, and sends what waited for it.
    pub fn end_deliveries(&mut self, now: Instant) {
        self.settle(now);
    }

    /// When to call [`Broadcast::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        let gap = self.gaps.values().min().map(|since| *since + self.config.gap_timeout);
        let custody = self.custodies.timeout(self.config.patience);
        [self.outbox.timeout(), gap, custody].into_iter().flatten().min()
    }

    /// Figures.
    pub fn stats(&self) -> BroadcastStats {
        self.stats
    }

    /// Own bytes under way, and all bytes kept.
    pub fn bytes(&self) -> (usize, usize) {
        (self.custodies.own_bytes(), self.custodies.bytes())
    }

    /// Ends what is complete, and lets the next batch go when nothing is under way.
    fn settle(&mut self, now: Instant) {
        self.custodies.settle();
        if self.custodies.own_bytes() == 0
            && let Some(batch) = self.outbox.close()
        {
            self.launch(now, batch);
            self.custodies.settle();
        }
    }

    fn launch(&mut self, now: Instant, ready: outbox::Ready) {
        let (batch, mut targets, unreachable) = self.outbox.address(ready, self.me, &self.table);
        self.stats.unreachable += unreachable;
        let own = targets.iter().position(|target| target.id == self.me);
        let own = own.map(|at| targets.remove(at));
        let custody = self.custodies.add(batch, crate::wire::bcast::BCAST_HOPS, None);
        if let Some(own) = own {
            self.deliver(now, custody, own.prev, false);
        }
        self.custodies.send_out(now, custody, &targets, &self.table, &mut self.stats);
    }

    fn take_in(&mut self, now: Instant, from: NodeId, mut bcast: Bcast) {
        self.stats.packets_in += 1;
        let at = bcast.targets.iter().position(|target| target.id == self.me);
        let own = at.map(|at| bcast.targets.remove(at));
        let full = self.custodies.bytes() > self.config.memory;
        if full || (bcast.hop_limit <= 1 && !bcast.targets.is_empty()) {
            self.stats.busy += 1;
            return self.custodies.refuse(from, bcast.number);
        }
        let custody =
            self.custodies.add(bcast.batch, bcast.hop_limit - 1, Some((from, bcast.number)));
        // Another life of this node was meant: then it is relayed, and not delivered.
        let mine = own.filter(|own| own.life == self.outbox.life_tag());
        let waits =
            mine.is_some_and(|own| self.deliver(now, custody, own.prev, !bcast.targets.is_empty()));
        if waits {
            self.custodies.defer(now, custody, bcast.targets);
        } else {
            self.custodies.send_out(now, custody, &bcast.targets, &self.table, &mut self.stats);
        }
    }

    /// Takes the messages of a custody for this node. Whether some are changed here before they go on.
    fn deliver(&mut self, now: Instant, custody: u64, mut prev: u64, goes_on: bool) -> bool {
        let Some(batch) = self.custodies.batch(custody) else { return false };
        let (origin, limit) = (batch.origin, self.config.max_message);
        let known = self.origins.get(&origin).map(|order| order.incarnation);
        if known.is_some_and(|known| known > batch.incarnation) {
            return false;
        }
        if known != Some(batch.incarnation) {
            let fresh = Order::new(batch.incarnation, limit);
            // A former life of it, or another origin that has been silent for long.
            if let Some((former, order)) = self.origins.push(origin, fresh) {
                order.into_custodies().for_each(|custody| self.custodies.delivered(custody));
                self.gaps.remove(&former);
            }
        }
        let Some(order) = self.origins.peek_mut(&origin) else { return false };
        let (mut taken, mut changes) = (Vec::new(), Vec::new());
        let (mut rest, mut seq) = (&batch.messages[..], batch.first);
        // They were read once already, so no error can come of it.
        while let Ok(Some(message)) = next_message(&mut rest) {
            if order.is_known(seq) {
                self.stats.duplicates += 1;
            } else {
                let Message { part, lz4, kind, body } = message;
                if goes_on && part == Part::Whole && self.handled.contains(kind) {
                    changes.push(seq);
                }
                let body = batch.messages.slice_ref(body);
                let piece = Piece { part, lz4, kind: kind.into(), body, custody };
                self.custodies.wait(custody);
                order.accept(now, seq, prev, piece, &mut taken);
            }
            prev = seq;
            seq += 1;
        }
        let waits = !changes.is_empty();
        self.custodies.set_changes(custody, changes);
        self.after_order(origin, taken);
        waits
    }

    fn after_order(&mut self, origin: NodeId, taken: Vec<Taken>) {
        for taken in taken {
            match taken {
                Taken::Part(piece) => self.custodies.delivered(piece.custody),
                Taken::Damaged(piece) => {
                    self.stats.damaged += 1;
                    self.custodies.delivered(piece.custody);
                }
                Taken::Whole(seq, piece) => {
                    let ticket = self.custodies.wants(piece.custody, seq);
                    self.deliveries.push_back(Delivery {
                        origin,
                        seq,
                        kind: piece.kind,
                        body: piece.body,
                        ticket: ticket.then_some(piece.custody),
                        custody: piece.custody,
                    });
                }
            }
        }
        match self.origins.peek(&origin).and_then(|order| order.gap_since) {
            Some(since) => _ = self.gaps.insert(origin, since),
            None => _ = self.gaps.remove(&origin),
        }
    }
}
