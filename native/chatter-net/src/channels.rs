//! The channels of a node: the table of the core under its lock, and what the control plane decides
//! about nodes, carried out on their channels.

use std::sync::Arc;
use std::time::Instant;

use chatter_core::channel::Names;
use chatter_core::channel::farewell::Farewell;
use chatter_core::channel::table::{OpenVerdict, Table};
use chatter_core::control::ControlEvent;
use chatter_core::ids::{ChannelIndex, Incarnation, NodeId};
use chatter_core::wire::data::{Open, Opened, Reset, ResetReason};
use chatter_core::wire::routed::RoutedHeader;
use parking_lot::RwLock;

use crate::channel::{Channel, Wanted};
use crate::link::INLINE_BUDGET;
use crate::node::{Node, random_u64};

/// The channels of a node.
pub struct Channels(RwLock<Table<Arc<Channel>>>);

impl Channels {
    pub(crate) fn new(limit: usize) -> Self {
        Self(RwLock::new(Table::new(limit)))
    }

    /// The channel of that index, if `source` is at its other end.
    pub(crate) fn get(&self, index: ChannelIndex, source: NodeId) -> Option<Arc<Channel>> {
        self.0.read().get(index, source).cloned()
    }

    /// The channel that `source` means with a RESET or RESET_ACK.
    pub(crate) fn find_reset(&self, source: NodeId, reset: &Reset) -> Option<Arc<Channel>> {
        self.0.read().find_reset(source, reset).cloned()
    }

    /// The channel that a packet of this node was of.
    pub(crate) fn find_sent(&self, header: &RoutedHeader) -> Option<Arc<Channel>> {
        self.0.read().find_sent(header).cloned()
    }

    /// All channels.
    pub fn all(&self) -> Vec<Arc<Channel>> {
        self.0.read().all()
    }

    /// The channels to a node.
    pub fn to(&self, peer: NodeId) -> Vec<Arc<Channel>> {
        self.0.read().to(peer)
    }

    fn has_farewells(&self) -> bool {
        self.0.read().has_farewells()
    }

    pub(crate) fn may_open(&self, peer: NodeId) -> bool {
        self.0.read().may_open(peer)
    }

    pub(crate) fn judge_open(
        &self,
        source: NodeId,
        open: &Open,
        life: Option<Incarnation>,
    ) -> OpenVerdict<Arc<Channel>> {
        self.0.write().judge_open(Instant::now(), source, open, life)
    }

    pub(crate) fn take_held(&self, source: NodeId) -> Option<Open> {
        self.0.write().take_held(source)
    }

    pub(crate) fn learn(&self, index: ChannelIndex, opened: &Opened) {
        self.0.write().learn(index, opened.incarnation, opened.index, opened.epoch);
    }

    pub(crate) fn closing(&self, index: ChannelIndex) {
        self.0.write().closing(index);
    }

    pub(crate) fn remove(&self, index: ChannelIndex, farewell: Option<Farewell>) {
        self.0.write().remove(Instant::now(), index, farewell);
    }

    /// The other end of a channel that is not in the table any more knows that it is over.
    pub(crate) fn confirmed(&self, source: NodeId, reset: &Reset) -> bool {
        self.0.write().farewells().handle_confirmed(source, reset)
    }
}

impl Node {
    /// Makes a channel under an index of its own; `None` if `max_channels` is reached.
    pub(crate) fn add_channel(
        self: &Arc<Self>,
        peer: NodeId,
        wanted: &Wanted<'_>,
    ) -> Option<Arc<Channel>> {
        let epoch = random_u64().ok()?;
        let mut channels = self.channels.0.write();
        if channels.is_full() {
            return None;
        }
        let index = loop {
            let index = ChannelIndex(random_u64().ok()? as u32);
            if channels.is_free(index) {
                break index;
            }
        };
        let channel = Channel::new(self, Names { index, epoch, peer }, wanted);
        let (life, other) = match wanted {
            Wanted::There(open) => (open.incarnation, Some((open.index, open.epoch))),
            Wanted::Here(life, ..) => (*life, None),
        };
        channels.insert(index, (peer, life), other, channel.clone()).then_some(channel)
    }

    /// What the control plane has decided about nodes, carried out on their channels.
    pub(crate) fn apply(self: &Arc<Self>, event: &ControlEvent) {
        match event {
            ControlEvent::NodeDown { id, incarnation, .. } => {
                // A later life may have granted a channel before the tables knew it.
                let gone = self.table().route(*id).is_none();
                let over = |life| life == *incarnation || (gone && life > *incarnation);
                self.end_channels(*id, over, ResetReason::Unreachable);
            }
            ControlEvent::NodeUp { id, incarnation, .. } => {
                self.end_channels(*id, |life| life < *incarnation, ResetReason::Restarted);
                let now = Instant::now();
                let mut channels = self.channels.0.write();
                channels.farewells().handle_reachable(now, *id, *incarnation);
                drop(channels);
                self.take_up_open(*id);
                self.service.wake();
            }
            ControlEvent::NodeFound { id } => self.take_up_open(*id),
            ControlEvent::Reborn { incarnation } => {
                self.begin_life(*incarnation);
                for channel in self.channels.all() {
                    channel.peer_gone(self, ResetReason::Restarted);
                }
            }
            ControlEvent::RouteChanged { ids } => {
                let now = Instant::now();
                for id in ids {
                    for channel in self.channels.to(*id) {
                        channel.handle_route_change(self);
                    }
                    if self.channels.has_farewells() {
                        self.channels.0.write().farewells().handle_route_change(now, *id);
                    }
                }
                self.service.wake();
            }
            _ => {}
        }
    }

    fn end_channels(
        self: &Arc<Self>,
        id: NodeId,
        life: impl Fn(Incarnation) -> bool,
        reason: ResetReason,
    ) {
        for channel in self.channels.to(id) {
            if life(channel.peer_incarnation()) {
                channel.peer_gone(self, reason);
            }
        }
    }

    /// Tells nodes that can be reached again which channels to them were given up. Returns when there
    /// may be more to say.
    pub(crate) fn say_farewells(&self, now: Instant) -> Option<Instant> {
        if !self.channels.has_farewells() {
            return None;
        }
        let mut packets = Vec::new();
        let again = {
            let mut channels = self.channels.0.write();
            let farewells = channels.farewells();
            let reachable = |id| self.is_reachable(id);
            while let Some(next) = farewells.poll_packet(now, self.me.id, reachable) {
                packets.push(next);
            }
            farewells.poll_timeout()
        };
        for (to, packet) in packets {
            if let Some(link) = self.next_hop(to, 0) {
                link.queue_control(packet);
                link.flush(INLINE_BUDGET);
            }
        }
        again
    }
}
