//! Takes the packets of a link where they belong: to a channel of this node, to the control plane, or
//! to the next hop. Runs on the reader of the link; takes no lock that the control plane holds.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use chatter_core::channel::receive::Piggyback;
use chatter_core::ids::ChannelIndex;
use chatter_core::relay::{self, Content, Routed};
use chatter_core::wire::data::{DropReason, Reset, ResetReason};
use chatter_core::wire::packet::Packet as OutPacket;
use chatter_core::wire::reader::WireError;
use chatter_core::wire::routed::{FLAG_MARKED, RoutedHeader};
use chatter_core::wire::{Packet, PacketType, next_packet};

use crate::channel::{Channel, State};
use crate::driver::Input;
use crate::link::{INLINE_BUDGET, Link};
use crate::node::Node;
use crate::workers::note_pace;

/// What one reader keeps between packets and between reads.
pub(crate) struct Dispatch {
    node: Arc<Node>,
    link: Arc<Link>,
    /// Channels that got something in this read, to be handed over at its end.
    touched: Vec<Arc<Channel>>,
    /// Links that packets were relayed to in this read, to be flushed at its end.
    relayed_to: Vec<Arc<Link>>,
    /// Packets relayed in this read.
    relayed: u64,
    acks: Vec<Piggyback>,
    /// There was data in this read, and some of it was pressing, or none.
    pressing: Option<bool>,
    /// When the first packet of this read was passed on.
    now: Option<Instant>,
    /// The channel that the last packet was for: mostly also that of the next.
    last: Option<Arc<Channel>>,
}

impl Dispatch {
    pub(crate) fn new(node: Arc<Node>, link: Arc<Link>) -> Self {
        Self {
            node,
            link,
            touched: Vec::new(),
            relayed_to: Vec::new(),
            relayed: 0,
            acks: Vec::new(),
            pressing: None,
            now: None,
            last: None,
        }
    }

    /// Takes the plaintext of one record. An error is the peer's fault and ends the link.
    pub(crate) async fn record(&mut self, mut record: &[u8]) -> Result<(), WireError> {
        let mut packets = 0;
        while let Some(packet) = next_packet(&mut record)? {
            packets += 1;
            if packet.kind.is_routed() {
                self.routed(packet)?;
            } else if matches!(packet.kind, PacketType::Bcast | PacketType::BcastAck) {
                self.note_data(true);
                self.node.handle_broadcast(self.link.peer.id, packet.kind, packet.body)?;
            } else {
                let input = Input::Packet {
                    link: self.link.id,
                    kind: packet.kind,
                    body: packet.body.to_vec(),
                };
                self.node.control.send(input).await.ok();
            }
        }
        self.link.stats.packets_in.fetch_add(packets, Ordering::Relaxed);
        Ok(())
    }

    /// The end of a read: hand over and flush what it has brought. Whether there was any data.
    pub(crate) fn end_read(&mut self) -> bool {
        let any = !self.touched.is_empty() || !self.relayed_to.is_empty();
        if let Some(pressing) = self.pressing.take() {
            note_pace(self.now.unwrap_or_else(Instant::now), pressing);
        }
        if !self.touched.is_empty() {
            let now = Instant::now();
            for channel in self.touched.drain(..) {
                channel.flush_sink(now);
            }
        }
        self.now = None;
        if self.relayed > 0 {
            self.node.note_transit(std::mem::take(&mut self.relayed));
        }
        for link in self.relayed_to.drain(..) {
            link.flush(INLINE_BUDGET);
            if link.is_closed() {
                // It was lost meanwhile, and whoever emptied it may have been earlier.
                self.node.rescue_transit(&link);
            }
        }
        any
    }

    fn routed(&mut self, packet: Packet<'_>) -> Result<(), WireError> {
        match relay::read(packet, self.node.me.id)? {
            Routed::Mine(header, content) => self.mine(&header, content),
            Routed::Transit(header) => self.relay(packet, &header),
            Routed::Refused(header, reason) => self.refuse(packet.kind, &header, reason),
        }
        Ok(())
    }

    fn note_data(&mut self, pressing: bool) {
        *self.pressing.get_or_insert(false) |= pressing;
    }

    fn mine(&mut self, header: &RoutedHeader, content: Content<'_>) {
        match content {
            Content::Data(content) => self.data(header, content),
            Content::Ack(ack) => {
                if let Some(channel) = self.channel(header) {
                    channel.handle_ack(&self.node, &ack, header.flags & FLAG_MARKED != 0);
                }
            }
            Content::Open(open) => self.node.open_asked(header.source, &open),
            Content::Opened(opened) => {
                let channel = self.channel(header);
                if !channel.is_some_and(|channel| channel.handle_opened(&self.node, &opened)) {
                    // Asked for and given up, or granted by another life: the other end must not wait.
                    self.refuse_channel(header, opened.index, ResetReason::Unknown);
                }
            }
            Content::Reset(reset) => self.reset(header, &reset),
            Content::ResetAck(reset) => {
                match self.node.channels.find_reset(header.source, &reset) {
                    Some(channel) => channel.handle_reset_ack(&self.node),
                    None => _ = self.node.channels.confirmed(header.source, &reset),
                }
                self.node.take_up_open(header.source);
            }
            Content::Unreachable(notice) => {
                self.node.stats.unreachable_notices.fetch_add(1, Ordering::Relaxed);
                if let Some(channel) = self.node.channels.find_sent(&notice.quoted) {
                    channel.handle_unreachable(&self.node, notice.quoted.number);
                }
            }
            Content::CastAck(ack) => self.node.handle_cast_ack(header.source, &ack),
            Content::None => {}
        }
    }

    fn data(&mut self, header: &RoutedHeader, content: &[u8]) {
        let Some(channel) = self.channel(header) else {
            if self.node.may_complain() {
                self.answer(header, relay::unknown_channel(self.node.me.id, header));
            }
            return;
        };
        self.note_data(header.is_pressing());
        channel.handle_data(&self.node, header, content, &mut self.acks);
        if !self.touched.last().is_some_and(|last| Arc::ptr_eq(last, &channel)) {
            self.touched.push(channel);
        }
    }

    fn channel(&mut self, header: &RoutedHeader) -> Option<Arc<Channel>> {
        if let Some(last) = &self.last
            && last.index == header.channel
            && last.peer == header.source
            && last.state() != State::Closed
        {
            return Some(last.clone());
        }
        let channel = self.node.channels.get(header.channel, header.source)?;
        self.last = Some(channel.clone());
        Some(channel)
    }

    fn reset(&mut self, header: &RoutedHeader, reset: &Reset) {
        match self.node.channels.find_reset(header.source, reset) {
            Some(channel) => {
                self.last = None;
                // What came before it in this read goes to the user first.
                channel.handle_reset(&self.node, reset);
            }
            None => {
                self.node.channels.confirmed(header.source, reset);
                self.answer(header, relay::confirm_reset(self.node.me.id, header, reset));
            }
        }
        self.node.take_up_open(header.source);
    }

    fn refuse_channel(&self, header: &RoutedHeader, index: ChannelIndex, reason: ResetReason) {
        self.answer(header, relay::refuse(self.node.me.id, header, index, reason));
    }

    /// Sends a packet back to the source of `header`.
    fn answer(&self, header: &RoutedHeader, packet: OutPacket) {
        if let Some(link) = self.node.next_hop(header.source, 0) {
            link.queue_control(packet);
            link.flush(INLINE_BUDGET);
        }
    }

    fn relay(&mut self, packet: Packet<'_>, header: &RoutedHeader) {
        let lane = relay::lane(packet.kind, header);
        if packet.kind == PacketType::Data {
            self.note_data(header.is_pressing());
        }
        let Some(next) = self.node.next_hop(header.destination, relay::path_hash(&lane)) else {
            return self.refuse(packet.kind, header, DropReason::NoRoute);
        };
        let now = *self.now.get_or_insert_with(Instant::now);
        next.queue_transit(lane, relay::forward(packet, header), now);
        self.link.stats.relayed.fetch_add(1, Ordering::Relaxed);
        self.relayed += 1;
        if !self.relayed_to.iter().any(|link| Arc::ptr_eq(link, &next)) {
            self.relayed_to.push(next);
        }
    }

    fn refuse(&mut self, kind: PacketType, header: &RoutedHeader, reason: DropReason) {
        self.node.stats.relay_drops.fetch_add(1, Ordering::Relaxed);
        if let Some(notice) = relay::unreachable(self.node.me.id, kind, header, reason)
            && self.node.may_complain()
        {
            self.answer(header, notice);
        }
    }
}
