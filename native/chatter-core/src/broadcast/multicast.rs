//! What [`Broadcast`] does with datagrams, and with the answers to them.

use std::time::Instant;

use super::Broadcast;
use super::casts::Datagram;
use super::custody::Parent;
use super::order::Order;
use crate::ids::{ChannelIndex, Incarnation, NodeId};
use crate::wire::PacketType;
use crate::wire::bcast::{Target, next_message};
use crate::wire::cast::{Cast, CastAck, CastHello, Nak};
use crate::wire::datagram::kind;
use crate::wire::packet::Packet;
use crate::wire::reader::WireError;
use crate::wire::routed::RoutedHeader;

impl Broadcast {
    /// A life of a node has just said that it hears datagrams of this life of this node.
    pub fn handle_hears(&mut self, now: Instant, id: NodeId, life: Incarnation) {
        self.casts.handle_hears(now, id, life);
    }

    /// A message of a kind of broadcasts came in an authentic datagram of another node.
    ///
    /// # Errors
    /// It cannot be read, or has another kind.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        from: NodeId,
        code: u8,
        body: &[u8],
    ) -> Result<(), WireError> {
        match code {
            kind::CAST => self.take_cast(now, from, Cast::decode(body)?),
            kind::CAST_HELLO => self.take_hello(now, &CastHello::decode(body)?),
            kind::NAK => {
                let nak = Nak::decode(body)?;
                self.stats.naks_in += 1;
                for (origin, life, gap) in &nak.gaps {
                    let known = self.origins.peek(origin).map(|order| order.incarnation);
                    if known == Some(*life) && self.answers.overheard(now, *origin, *gap) {
                        self.stats.naks_suppressed += 1;
                    }
                    self.spares.handle_nak(now, from, *origin, *life, *gap);
                }
                let Self { casts, custodies, table, stats, .. } = self;
                casts.handle_nak(now, from, &nak, custodies, table, stats);
            }
            _ => return Err(WireError::Invalid("kind of broadcast")),
        }
        self.settle(now);
        Ok(())
    }

    /// A target of datagrams tells what has arrived there.
    pub fn handle_cast_ack(&mut self, now: Instant, from: NodeId, ack: &CastAck) {
        self.casts.handle_ack(now, from, ack, &mut self.custodies, &mut self.stats);
        self.settle(now);
    }

    /// The next message to be sent by multicast.
    pub fn poll_datagram(&mut self) -> Option<Datagram> {
        self.casts.poll_datagram()
    }

    /// A polled one could not be sent: whom it was for is reached over links.
    pub fn handle_unsent(&mut self, now: Instant, datagram: &Datagram) {
        let Self { casts, custodies, table, stats, .. } = self;
        casts.unsent(now, datagram, custodies, table, stats);
        self.settle(now);
    }

    /// The next routed packet, and the node that it is for.
    pub fn poll_routed(&mut self, now: Instant) -> Option<(NodeId, Packet)> {
        let life = self.outbox.life_tag();
        let (to, ack) = self.answers.poll_ack(now, life, &self.origins)?;
        let header = RoutedHeader::to(to, self.me, ChannelIndex::UNKNOWN);
        Some((to, header.packet(PacketType::CastAck, &ack.encode()).into()))
    }

    /// How many nodes are known to hear this one.
    pub fn hearers(&self, now: Instant) -> usize {
        self.casts.hearers(now)
    }

    /// What may be sent by multicast at present, in bytes a second; 0 without multicast.
    pub fn multicast_rate(&self) -> u64 {
        self.casts.rate()
    }

    /// Asks for what is missing, and sends what others miss, if it is time to.
    pub(super) fn ask(&mut self, now: Instant) {
        if let Some(nak) = self.answers.poll_nak(now, &self.origins) {
            self.casts.send_nak(now, &nak, &mut self.stats);
        }
        while let Some((batch, targets)) = self.spares.poll(now) {
            self.casts.send_spare(now, batch, &targets, &mut self.stats);
        }
    }

    fn take_cast(&mut self, now: Instant, from: NodeId, cast: Cast) {
        let (mut rest, mut last) = (&cast.batch.messages[..], cast.batch.first);
        while let Ok(Some(_)) = next_message(&mut rest) {
            last += 1;
        }
        self.spares.heard(now, &cast, last - 1);
        let tag = self.outbox.life_tag();
        let mine = |target: &&Target| target.id == self.me;
        let Some(own) = cast.targets.iter().find(mine).filter(|own| own.life == tag) else {
            return;
        };
        self.stats.casts_in += 1;
        if self.custodies.bytes() > self.config.memory {
            self.stats.casts_dropped += 1;
            return;
        }
        let (prev, origin, life) = (own.prev, cast.batch.origin, cast.batch.incarnation);
        let messages = last - cast.batch.first;
        let repeats = self.stats.duplicates;
        let custody = self.custodies.add(now, cast.batch, 0, Parent::Cast, 1);
        self.deliver(now, custody, prev, false);
        let order = self.origins.peek(&origin).filter(|order| order.incarnation == life);
        let Some(missing) = order.map(Order::missing_after) else { return };
        self.stats.cast_messages += messages - (self.stats.duplicates - repeats);
        self.answers.heard(now, from, origin, life, last - 1);
        self.answers.gap(now, origin, missing);
    }

    /// Somebody has sent messages by multicast, and waits for acknowledgements.
    fn take_hello(&mut self, now: Instant, hello: &CastHello) {
        let tag = self.outbox.life_tag();
        let own = hello.targets.iter().find(|(id, life, _)| (*id, *life) == (self.me, tag));
        let Some((_, _, last)) = own else { return };
        self.stats.hellos_in += 1;
        let (origin, life) = (hello.origin, hello.incarnation);
        if !self.know_origin(now, origin, life) {
            return;
        }
        if let Some(order) = self.origins.peek_mut(&origin) {
            order.told(*last);
            self.answers.told(now, origin);
            self.answers.gap(now, origin, order.missing_after());
        }
    }
}
