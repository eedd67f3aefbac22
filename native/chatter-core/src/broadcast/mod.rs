//! Messages to many nodes: each once at each target, in the order of its origin.
//!
//! * [`plan`] says who sends to whom;
//! * `custody` keeps messages until everybody behind this node has them, and plans anew what a link or a
//!   node took along when it went;
//! * `casts` sends them by multicast first, to those known to hear it (`hearer`);
//! * `answers` acknowledges what came by multicast, and asks for what did not; `spares` has it for others
//!   who ask;
//! * `order` delivers them, and `arrivals` keeps them until they are taken;
//! * [`payload`] compresses them.
//!
//! A node that gets messages becomes responsible for the targets that come with them. It tells the node
//! it got them from when all these have them, so every node on the way can do the work of one that has
//! died. Duplicates that arise from this are dropped by number.
//!
//! [`Broadcast`] is driven like [`Control`](crate::control::Control): calls, then `poll_transmit`,
//! `poll_routed`, `poll_datagram` and `poll_arrival` until each is empty; `poll_timeout` says when to
//! come back.

mod answers;
mod arrivals;
mod casts;
mod changes;
mod config;
mod custody;
mod hearer;
mod multicast;
mod order;
mod outbox;
mod pace;
pub mod payload;
pub mod plan;
mod receive;
mod spares;
mod stats;

use std::collections::{BTreeMap, HashSet};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;

use crate::ids::{Incarnation, NodeId};
use crate::routes::ForwardingTable;
use crate::wire::PacketType;
use crate::wire::bcast::{BCAST_HOPS, Bcast, BcastAck, Fate, Target};
use crate::wire::packet::Packet;
use crate::wire::reader::WireError;
use answers::Answers;
use arrivals::Arrivals;
pub use arrivals::{Arrival, Delivery, Run};
use casts::Casts;
pub use casts::Datagram;
pub use config::BroadcastConfig;
use custody::{Custodies, Parent};
use order::Order;
pub use outbox::{SendError, Targets};
use spares::Spares;
pub use stats::BroadcastStats;

/// How long the messages of a type that this node changes wait for that before they go on unchanged.
pub const DISPATCH_TIMEOUT: Duration = Duration::from_secs(2);

/// See the [module](self).
pub struct Broadcast {
    config: BroadcastConfig,
    me: NodeId,
    table: Arc<ForwardingTable>,
    outbox: outbox::Outbox,
    custodies: Custodies,
    casts: Casts,
    answers: Answers,
    spares: Spares,
    origins: LruCache<NodeId, Order>,
    /// Origins of which messages are missing, and since when.
    gaps: BTreeMap<NodeId, Instant>,
    /// Types that the user of this node may change.
    handled: HashSet<String>,
    arrivals: Arrivals,
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
            custodies: Custodies::new(me, life),
            casts: Casts::new(config.multicast_rate, nodes, me, life),
            answers: Answers::new(nodes, me, life),
            spares: Spares::new(me, life),
            origins: LruCache::new(nodes),
            gaps: BTreeMap::new(),
            handled: HashSet::new(),
            arrivals: Arrivals::default(),
            stats: BroadcastStats::default(),
        }
    }

    /// The routes, and the links to neighbours, have changed: what was sent over a link that is gone is
    /// planned anew.
    pub fn set_table(&mut self, now: Instant, table: Arc<ForwardingTable>) {
        self.table = table;
        self.custodies.replan(now, &self.table, &mut self.stats);
        self.casts.replan(now, &mut self.custodies, &self.table, &mut self.stats);
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

    /// Adds a message to those for the same targets that are being gathered. Whether it could: if not, it
    /// is to be sent with [`Broadcast::send`]. Nothing has to be polled after it.
    pub fn gather(&mut self, targets: &Targets, kind: &str, body: &[u8]) -> bool {
        let under_way = self.custodies.own_bytes();
        let gathered = under_way > 0
            && under_way < self.config.window
            && body.len() <= self.config.max_message
            && self.outbox.gather(targets, kind, body);
        self.stats.sent += u64::from(gathered);
        gathered
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
                match ack.fate {
                    Fate::Open => self.custodies.handle_open(from, number, &ack.open),
                    fate => self.custodies.handle_ack(now, from, fate, number),
                }
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
            self.forward(now, ticket, targets);
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
            self.forward(now, ticket, targets);
        }
        self.casts.send_hello(now, &mut self.stats);
        self.casts.expire(now, &mut self.custodies, &self.table, &mut self.stats);
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
            self.after_order(now, origin, taken);
        }
        self.ask(now);
        self.settle(now);
    }

    /// The next packet and the neighbour that it is for.
    pub fn poll_transmit(&mut self) -> Option<(NodeId, Packet)> {
        self.custodies.poll_transmit()
    }

    /// When to call [`Broadcast::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        let gap = self.gaps.values().min().map(|since| *since + self.config.gap_timeout);
        let custody = self.custodies.timeout(self.config.patience);
        let (casts, answers) = (self.casts.timeout_at(), self.answers.timeout());
        let own = [self.outbox.timeout(), gap, custody, casts, answers, self.spares.timeout()];
        own.into_iter().flatten().min()
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
        let custody = self.custodies.add(now, batch, BCAST_HOPS, Parent::Own, targets.len());
        if let Some(own) = own {
            self.deliver(now, custody, own.prev, false);
        }
        self.forward(now, custody, targets);
    }

    /// Sends to targets: by multicast to those who hear it, over links to the others.
    fn forward(&mut self, now: Instant, custody: u64, targets: Vec<Target>) {
        let targets = self.casts.send(now, custody, targets, &mut self.custodies, &mut self.stats);
        self.custodies.send_out(now, custody, &targets, &self.table, &mut self.stats);
    }
}
