//! Takes the packets of a link where they belong: to a channel of this node, to the control plane, or
//! to the next hop. Runs on the reader of the link; takes no lock that the control plane holds.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use chatter_core::channel::receive::Piggyback;
use chatter_core::ids::ChannelIndex;
use chatter_core::wire::data::{Ack, DropReason, Open, Opened, Reset, ResetReason, Unreachable};
use chatter_core::wire::packet::Packet as OutPacket;
use chatter_core::wire::reader::{Reader, WireError};
use chatter_core::wire::routed::{HOP_LIMIT, RoutedHeader};
use chatter_core::wire::{PACKET_HEADER_LEN, Packet, PacketType, next_packet, packet_header};

use crate::channel::{Channel, Parts, State};
use crate::driver::Input;
use crate::link::{INLINE_BUDGET, Link};
use crate::node::Node;

/// Offset of the hop limit in a routed packet.
const HOP_LIMIT_AT: usize = PACKET_HEADER_LEN + 1;

/// What one reader keeps between packets and between reads.
pub(crate) struct Dispatch {
    node: Arc<Node>,
    link: Arc<Link>,
    /// Channels that got something in this read, to be handed over at its end.
    touched: Vec<Arc<Channel>>,
    /// Links that packets were relayed to in this read, to be flushed at its end.
    relayed_to: Vec<Arc<Link>>,
    acks: Vec<Piggyback>,
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
            acks: Vec::new(),
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
        if !self.touched.is_empty() {
            let now = Instant::now();
            for channel in self.touched.drain(..) {
                channel.flush_sink(now);
            }
        }
        for link in self.relayed_to.drain(..) {
            link.flush(INLINE_BUDGET);
        }
        any
    }

    fn routed(&mut self, packet: Packet<'_>) -> Result<(), WireError> {
        let mut r = Reader::new(packet.body);
        let header = RoutedHeader::read(&mut r)?;
        let content = r.rest();
        if header.destination != self.node.me.id {
            self.relay(packet, &header);
            return Ok(());
        }
        match packet.kind {
            PacketType::Data => self.data(&header, content),
            PacketType::Ack => {
                let ack = Ack::decode(content)?;
                if let Some(channel) = self.channel(&header) {
                    channel.handle_ack(&self.node, &ack);
                }
            }
            PacketType::Open => self.open(&header, Open::decode(content)?),
            PacketType::Opened => {
                let opened = Opened::decode(content)?;
                match self.channel(&header) {
                    Some(channel) => channel.handle_opened(&self.node, &opened),
                    // Asked for, given up, and granted all the same: the other end must not wait.
                    None => self.send_reset(&header, opened.index, ResetReason::Unknown),
                }
            }
            PacketType::Reset => self.reset(&header, &Reset::decode(content)?),
            PacketType::ResetAck => {
                let reset = Reset::decode(content)?;
                if let Some(channel) = self.find(&header, &reset) {
                    channel.handle_reset_ack(&self.node);
                }
            }
            // The next route change or probe resends; the notice only speeds up nothing yet.
            PacketType::Unreachable => {
                Unreachable::decode(content)?;
                self.node.stats.unreachable_notices.fetch_add(1, Ordering::Relaxed);
            }
            PacketType::Hello | PacketType::Lsp | PacketType::Bye => {}
        }
        Ok(())
    }

    fn data(&mut self, header: &RoutedHeader, content: &[u8]) {
        let Some(channel) = self.channel(header) else {
            return self.unknown_channel(header);
        };
        channel.handle_data(&self.node, header.number, content, &mut self.acks);
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
        let channel = self.node.channels.get(header.channel)?;
        if channel.peer != header.source {
            return None;
        }
        self.last = Some(channel.clone());
        Some(channel)
    }

    fn find(&mut self, header: &RoutedHeader, reset: &Reset) -> Option<Arc<Channel>> {
        if reset.to_index != ChannelIndex::UNKNOWN {
            let channel = self.node.channels.get(reset.to_index)?;
            return (channel.peer == header.source).then_some(channel);
        }
        // The other end had not heard our index yet, or has forgotten it.
        self.node.channels.find(|channel| {
            channel.peer == header.source && channel.peer_key().0 == reset.from_index
        })
    }

    fn open(&mut self, header: &RoutedHeader, open: Open) {
        let known = self.node.channels.find(|channel| {
            channel.peer == header.source && channel.peer_key() == (open.index, open.epoch)
        });
        if let Some(channel) = known {
            return channel.confirm_open(&self.node);
        }
        let from_index = open.index;
        let parts = Parts {
            index: ChannelIndex::UNKNOWN,
            epoch: 0,
            peer: header.source,
            peer_incarnation: open.incarnation,
            peer_name: open.name.clone(),
            open: Some(open),
        };
        let channel = self.node.add_channel(parts);
        match channel {
            Some(channel) if self.node.host.accept(channel.clone()) => {
                channel.confirm_open(&self.node);
            }
            Some(channel) => channel.close(ResetReason::Refused),
            None => self.send_reset(header, from_index, ResetReason::Refused),
        }
    }

    fn reset(&mut self, header: &RoutedHeader, reset: &Reset) {
        match self.find(header, reset) {
            Some(channel) => {
                self.last = None;
                // What came before it in this read goes to the user first.
                channel.handle_reset(&self.node, reset);
            }
            None => {
                let content = Reset {
                    from_index: reset.to_index,
                    to_index: reset.from_index,
                    last: 0,
                    reason: reset.reason,
                };
                self.answer(header, PacketType::ResetAck, reset.from_index, &content.encode());
            }
        }
    }

    /// Data for a channel that is not there: the other end has to know that it is over.
    fn unknown_channel(&mut self, header: &RoutedHeader) {
        if self.node.may_complain() {
            let content = Reset {
                from_index: header.channel,
                to_index: ChannelIndex::UNKNOWN,
                last: 0,
                reason: ResetReason::Unknown,
            };
            self.answer(header, PacketType::Reset, ChannelIndex::UNKNOWN, &content.encode());
        }
    }

    fn send_reset(&self, header: &RoutedHeader, to_index: ChannelIndex, reason: ResetReason) {
        let content =
            Reset { from_index: ChannelIndex::UNKNOWN, to_index, last: 0, reason }.encode();
        self.answer(header, PacketType::Reset, to_index, &content);
    }

    /// Sends a packet back to the source of `header`.
    fn answer(&self, header: &RoutedHeader, kind: PacketType, to: ChannelIndex, content: &[u8]) {
        let answer = RoutedHeader {
            flags: 0,
            hop_limit: HOP_LIMIT,
            mutable: 0,
            destination: header.source,
            source: self.node.me.id,
            channel: to,
            number: 0,
        };
        if let Some(link) = self.node.next_hop(header.source, 0) {
            link.queue_control(OutPacket::from(answer.packet(kind, content)));
            link.flush(INLINE_BUDGET);
        }
    }

    fn relay(&mut self, packet: Packet<'_>, header: &RoutedHeader) {
        if header.hop_limit <= 1 {
            return self.refuse(header, DropReason::HopLimit);
        }
        let hash =
            header.source.0.rotate_left(17) ^ header.destination.0 ^ u64::from(header.channel.0);
        let Some(next) = self.node.next_hop(header.destination, hash) else {
            return self.refuse(header, DropReason::NoRoute);
        };
        let mut copy = Vec::with_capacity(PACKET_HEADER_LEN + packet.body.len());
        copy.extend_from_slice(&packet_header(packet.kind, packet.body.len()));
        copy.extend_from_slice(packet.body);
        copy[HOP_LIMIT_AT] = header.hop_limit - 1;
        next.queue_transit(hash, OutPacket::from(copy));
        self.link.stats.relayed.fetch_add(1, Ordering::Relaxed);
        if !self.relayed_to.iter().any(|link| Arc::ptr_eq(link, &next)) {
            self.relayed_to.push(next);
        }
    }

    fn refuse(&mut self, header: &RoutedHeader, reason: DropReason) {
        self.node.stats.relay_drops.fetch_add(1, Ordering::Relaxed);
        if self.node.may_complain() {
            let content = Unreachable { reason, quoted: *header }.encode();
            self.answer(header, PacketType::Unreachable, ChannelIndex::UNKNOWN, &content);
        }
    }
}
