//! What [`Broadcast`] does with messages that come, and how the user of this node takes them.

use std::time::Instant;

use super::Broadcast;
use super::arrivals::{Arrival, Delivery, Run};
use super::custody::Parent;
use super::order::{Order, Piece, Taken};
use crate::ids::{Incarnation, NodeId};
use crate::wire::bcast::{Bcast, Message, Part, next_message};

impl Broadcast {
    /// What is next for the user. What was sent to this node counts as arrived with this.
    pub fn poll_arrival(&mut self) -> Option<Arrival> {
        let arrival = self.arrivals.pop()?;
        let (origin, life, custody, last, count) = match &arrival {
            Arrival::One(one) => (one.origin, one.life, one.custody, one.seq, 1),
            Arrival::Run(run) => {
                (run.origin, run.life, run.custody, run.first + run.count - 1, run.count)
            }
        };
        self.custodies.delivered(custody);
        self.taken(origin, life, last, count);
        Some(arrival)
    }

    /// The same for one message at a time.
    pub fn poll_delivery(&mut self) -> Option<Delivery> {
        let (delivery, last) = self.arrivals.pop_one()?;
        if last {
            self.custodies.delivered(delivery.custody);
        }
        self.taken(delivery.origin, delivery.life, delivery.seq, 1);
        Some(delivery)
    }

    fn taken(&mut self, origin: NodeId, life: Incarnation, last: u64, count: u64) {
        self.stats.delivered += count;
        let order = self.origins.peek_mut(&origin);
        if let Some(order) = order.filter(|order| order.incarnation == life) {
            order.delivered(last, count);
        }
    }

    /// Whether there are messages for the user.
    pub fn has_delivery(&self) -> bool {
        !self.arrivals.is_empty()
    }

    /// The bytes of what is next for the user; 0 if nothing is.
    pub fn next_delivery_len(&self) -> usize {
        self.arrivals.next_len()
    }

    /// To be called when deliveries were polled: lets others know, and sends what waited for it.
    pub fn end_deliveries(&mut self, now: Instant) {
        self.answers.taken(now, &self.origins);
        self.settle(now);
    }

    pub(super) fn take_in(&mut self, now: Instant, from: NodeId, mut bcast: Bcast) {
        self.stats.packets_in += 1;
        let at = bcast.targets.iter().position(|target| target.id == self.me);
        let own = at.map(|at| bcast.targets.remove(at));
        let full = self.custodies.bytes() > self.config.memory;
        if full || (bcast.hop_limit <= 1 && !bcast.targets.is_empty()) {
            self.stats.busy += 1;
            return self.custodies.refuse(from, bcast.number);
        }
        let parent = Parent::Link(from, bcast.number);
        let total = bcast.targets.len() + usize::from(own.is_some());
        let custody = self.custodies.add(now, bcast.batch, bcast.hop_limit - 1, parent, total);
        // Another life of this node was meant: then it is relayed, and not delivered.
        let mine = own.filter(|own| own.life == self.outbox.life_tag());
        let waits =
            mine.is_some_and(|own| self.deliver(now, custody, own.prev, !bcast.targets.is_empty()));
        if waits {
            self.custodies.defer(now, custody, bcast.targets);
        } else {
            self.forward(now, custody, bcast.targets);
        }
    }

    /// Takes the messages of a custody for this node. Whether some are changed here before they go on.
    pub(super) fn deliver(
        &mut self,
        now: Instant,
        custody: u64,
        mut prev: u64,
        goes_on: bool,
    ) -> bool {
        let Some(batch) = self.custodies.batch(custody) else { return false };
        let origin = batch.origin;
        if !self.know_origin(now, origin, batch.incarnation) {
            return false;
        }
        let Some(order) = self.origins.peek_mut(&origin) else { return false };
        if (!goes_on || self.handled.is_empty())
            && let Some(count) = order.accept_run(prev, batch.first, &batch.messages)
        {
            self.custodies.wait(custody);
            self.arrivals.push(Arrival::Run(Run {
                origin,
                first: batch.first,
                count,
                messages: batch.messages,
                life: batch.incarnation,
                custody,
            }));
            return false;
        }
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
        self.after_order(now, origin, taken);
        waits
    }

    /// Makes room for the messages of a life of an origin. False if a later one is known.
    pub(super) fn know_origin(&mut self, now: Instant, origin: NodeId, life: Incarnation) -> bool {
        let known = self.origins.get(&origin).map(|order| order.incarnation);
        if known.is_some_and(|known| known > life) {
            return false;
        }
        if known != Some(life) {
            let fresh = Order::new(life, self.config.max_message);
            // A former life of it, or another origin that has been silent for long.
            if let Some((former, order)) = self.origins.push(origin, fresh) {
                order.into_custodies().for_each(|custody| self.custodies.delivered(custody));
                self.gaps.remove(&former);
                self.answers.gap(now, former, None);
            }
        }
        true
    }

    pub(super) fn after_order(&mut self, now: Instant, origin: NodeId, taken: Vec<Taken>) {
        let life = self.origins.peek(&origin).map_or(Incarnation(0), |order| order.incarnation);
        for taken in taken {
            match taken {
                Taken::Part(piece) => self.custodies.delivered(piece.custody),
                Taken::Damaged(piece) => {
                    self.stats.damaged += 1;
                    self.custodies.delivered(piece.custody);
                }
                Taken::Whole(seq, piece) => {
                    let ticket = self.custodies.wants(piece.custody, seq);
                    self.arrivals.push(Arrival::One(Delivery {
                        origin,
                        seq,
                        kind: piece.kind,
                        body: piece.body,
                        ticket: ticket.then_some(piece.custody),
                        life,
                        custody: piece.custody,
                    }));
                }
            }
        }
        let order = self.origins.peek(&origin);
        match order.and_then(|order| order.gap_since) {
            Some(since) => _ = self.gaps.insert(origin, since),
            None => _ = self.gaps.remove(&origin),
        }
        self.answers.gap(now, origin, order.and_then(Order::missing_after));
    }
}
