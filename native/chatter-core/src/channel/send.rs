//! The sending half of a channel: frames in, numbered packets out; kept until acknowledged.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{CHUNK_LEN, item_cost};
use crate::ids::{ChannelIndex, NodeId};
use crate::wire::data::{Ack, ITEM_HEADER_LEN, TOTAL_LEN, item, item_header};
use crate::wire::packet::Packet;
use crate::wire::routed::{HOP_LIMIT, ROUTED_HEADER_LEN, RoutedHeader};
use crate::wire::{PACKET_HEADER_LEN, PacketType, packet_header};

/// Bytes in front of the content of a DATA packet.
const PREFIX_LEN: usize = PACKET_HEADER_LEN + ROUTED_HEADER_LEN;

/// A packet is taken for lost when so many later ones have arrived before it (RFC 9002, 6.1.1).
const REORDER_THRESHOLD: u64 = 3;

/// Bounds of the probe timeout: unacknowledged packets are probed after this long without progress.
const PROBE_MIN: Duration = Duration::from_millis(200);
const PROBE_MAX: Duration = Duration::from_secs(2);

/// Where a channel's packets go.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// This node.
    pub source: NodeId,
    /// The node at the other end.
    pub destination: NodeId,
    /// The other end's index of the channel.
    pub channel: ChannelIndex,
}

/// Pieces of a large frame from this length on are sent from where they are.
const BODY_MIN: usize = 4 * 1024;

/// A large frame on its way into chunks.
struct Chunker {
    total: usize,
    left: usize,
    /// Small pieces that wait for the chunk to be full.
    head: Vec<u8>,
}

struct Built {
    number: u64,
    cost: u64,
    packet: Packet,
}

struct Unacked {
    number: u64,
    packet: Packet,
    /// When it was last handed out; `None` once a range has acknowledged it.
    sent_at: Option<Instant>,
}

/// The sending half of a channel.
///
/// * in: [`Sender::push_frame`], [`Sender::push_handshake`], [`Sender::push_ack`], then
///   [`Sender::end_batch`]; [`Sender::handle_ack`], [`Sender::handle_route_change`],
///   [`Sender::handle_timeout`];
/// * out: [`Sender::poll_packet`] until `None` after each of these.
pub struct Sender {
    route: Route,
    next_number: u64,
    /// Sum of the costs of all items handed out so far, and the bound that the receiver set for it.
    sent_offset: u64,
    credit: u64,
    building: Vec<u8>,
    building_cost: u64,
    /// Bytes that will still be pushed before the end of the batch, as far as is known.
    expected: usize,
    /// Built, but not yet handed out for want of credit.
    waiting: VecDeque<Built>,
    waiting_bytes: usize,
    unacked: VecDeque<Unacked>,
    unacked_bytes: usize,
    /// To hand out again.
    resend: VecDeque<Packet>,
    probe: Option<Instant>,
    probe_after: Duration,
    srtt: Option<Duration>,
    retransmits: u64,
}

impl Sender {
    /// `credit` is what the other end granted when the channel was opened, in bytes.
    pub fn new(route: Route, credit: u64) -> Self {
        Self {
            route,
            next_number: 1,
            sent_offset: 0,
            credit,
            building: Vec::new(),
            building_cost: 0,
            expected: 0,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            unacked: VecDeque::new(),
            unacked_bytes: 0,
            resend: VecDeque::new(),
            probe: None,
            probe_after: PROBE_MIN,
            srtt: None,
            retransmits: 0,
        }
    }

    /// Whether packets wait for credit: then no more frames should be fetched from the VM.
    pub fn is_held_back(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether everything that was pushed has been acknowledged.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.unacked.is_empty()
    }

    /// Bytes of packets that wait for credit, and of those that wait for an acknowledgement.
    pub fn queued_bytes(&self) -> (usize, usize) {
        (self.waiting_bytes, self.unacked_bytes)
    }

    /// Packets handed out more than once so far.
    pub fn retransmits(&self) -> u64 {
        self.retransmits
    }

    /// Smoothed time from handing a packet out to its acknowledgement, delayed acknowledgements
    /// included; `None` before the first one.
    pub fn srtt(&self) -> Option<Duration> {
        self.srtt
    }

    /// The number of the next packet.
    pub fn next_number(&self) -> u64 {
        self.next_number
    }

    /// Says how many bytes will be pushed until the end of the batch, so that room is made once.
    pub fn expect(&mut self, bytes: usize) {
        self.expected = bytes;
    }

    /// Takes one frame of the VM of at most [`CHUNK_LEN`] bytes, given in pieces of `total` bytes in
    /// all. They are copied.
    pub fn push_frame(&mut self, pieces: &[&[u8]], total: usize) {
        self.begin_item(item::FRAME, total);
        for piece in pieces {
            self.building.extend_from_slice(piece);
        }
        self.expected = self.expected.saturating_sub(total);
    }

    /// Takes one frame of the VM of more than [`CHUNK_LEN`] bytes, given in pieces of `total` bytes in
    /// all. Large pieces are not copied: they are kept until acknowledged.
    pub fn push_large_frame(&mut self, pieces: &[Bytes], total: usize) {
        self.end_batch();
        let mut chunker = Chunker { total, left: total, head: Vec::new() };
        for piece in pieces {
            let mut piece = piece.clone();
            while chunker.head.len() + piece.len() >= CHUNK_LEN
                || (piece.len() >= BODY_MIN && !piece.is_empty())
            {
                let body = piece.split_to(piece.len().min(CHUNK_LEN - chunker.head.len()));
                self.finish_chunk(&mut chunker, body);
            }
            chunker.head.extend_from_slice(&piece);
        }
        if !chunker.head.is_empty() {
            self.finish_chunk(&mut chunker, Bytes::new());
        }
        self.expected = self.expected.saturating_sub(total);
    }

    /// Takes one message of the distribution handshake (at most [`CHUNK_LEN`] bytes are kept).
    pub fn push_handshake(&mut self, message: &[u8]) {
        let message = &message[..message.len().min(CHUNK_LEN)];
        self.begin_item(item::HANDSHAKE, message.len());
        self.building.extend_from_slice(message);
    }

    /// Puts an acknowledgement on the back of the data that is being built. It costs no credit.
    pub fn push_ack(&mut self, next: u64, credit: u64) {
        self.begin_packet(ITEM_HEADER_LEN + 16);
        self.building.extend_from_slice(&item_header(item::ACK, 16));
        self.building.extend_from_slice(&next.to_be_bytes());
        self.building.extend_from_slice(&credit.to_be_bytes());
    }

    /// Ends the packet that is being built.
    pub fn end_batch(&mut self) {
        if !self.building.is_empty() {
            let head = std::mem::take(&mut self.building);
            self.finish_packet(head, Bytes::new());
        }
    }

    /// Numbers a packet whose `head` begins with room for the headers.
    fn finish_packet(&mut self, mut head: Vec<u8>, body: Bytes) {
        let number = self.next_number;
        self.next_number += 1;
        let header = RoutedHeader {
            flags: 0,
            hop_limit: HOP_LIMIT,
            mutable: 0,
            destination: self.route.destination,
            source: self.route.source,
            channel: self.route.channel,
            number,
        };
        let len = head.len() + body.len() - PACKET_HEADER_LEN;
        head[..PACKET_HEADER_LEN].copy_from_slice(&packet_header(PacketType::Data, len));
        head[PACKET_HEADER_LEN..PREFIX_LEN].copy_from_slice(&header.to_bytes());
        let packet = Packet { head: Bytes::from(head), body };
        self.waiting_bytes += packet.len();
        let cost = std::mem::take(&mut self.building_cost);
        self.waiting.push_back(Built { number, cost, packet });
    }

    /// Makes a packet of one chunk: what is in the chunker's head, then `body`.
    fn finish_chunk(&mut self, chunker: &mut Chunker, body: Bytes) {
        let part = chunker.head.len() + body.len();
        let first = chunker.left == chunker.total;
        let mut head =
            Vec::with_capacity(PREFIX_LEN + ITEM_HEADER_LEN + TOTAL_LEN + chunker.head.len());
        head.resize(PREFIX_LEN, 0);
        let len = if first { TOTAL_LEN + part } else { part };
        head.extend_from_slice(&item_header(if first { item::FIRST } else { item::MORE }, len));
        if first {
            head.extend_from_slice(&(chunker.total as u32).to_be_bytes());
        }
        head.append(&mut chunker.head);
        chunker.left -= part;
        self.building_cost += item_cost(len);
        self.finish_packet(head, body);
    }

    /// The next packet to put on a link, resends first.
    pub fn poll_packet(&mut self, now: Instant) -> Option<Packet> {
        if let Some(packet) = self.resend.pop_front() {
            self.retransmits += 1;
            return Some(packet);
        }
        let cost = self.waiting.front()?.cost;
        // A packet may overshoot the credit only if nothing is outstanding: it could never go else.
        if self.sent_offset + cost > self.credit {
            return None;
        }
        let built = self.waiting.pop_front()?;
        self.waiting_bytes -= built.packet.len();
        self.sent_offset += built.cost;
        self.unacked_bytes += built.packet.len();
        self.unacked.push_back(Unacked {
            number: built.number,
            packet: built.packet.clone(),
            sent_at: Some(now),
        });
        if self.probe.is_none() {
            self.probe = Some(now + self.probe_after);
        }
        Some(built.packet)
    }

    /// Takes an acknowledgement. Old ones do no harm: everything in them only grows.
    pub fn handle_ack(&mut self, now: Instant, ack: &Ack) {
        self.credit = self.credit.max(ack.credit);
        let mut progress = false;
        while let Some(first) = self.unacked.pop_front_if(|first| first.number < ack.next) {
            if let Some(sent_at) = first.sent_at {
                self.sample(now.saturating_duration_since(sent_at));
            }
            self.unacked_bytes -= first.packet.len();
            progress = true;
        }
        if let Some(&(_, highest)) = ack.ranges.last() {
            self.handle_ranges(now, &ack.ranges, highest);
        }
        if progress {
            self.probe_after = self.probe_interval();
            self.probe = Some(now + self.probe_after);
        }
        if self.unacked.is_empty() {
            self.probe = None;
        }
    }

    /// The way to the destination has changed: all that is not acknowledged may have been lost.
    pub fn handle_route_change(&mut self, now: Instant) {
        self.resend.clear();
        for entry in &mut self.unacked {
            if entry.sent_at.is_some() {
                entry.sent_at = Some(now);
                self.resend.push_back(entry.packet.clone());
            }
        }
    }

    /// When [`Sender::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.probe
    }

    /// Resends the first unacknowledged packet when nothing was heard for the probe timeout.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.probe.is_none_or(|at| now < at) {
            return;
        }
        match self.unacked.front() {
            Some(first) => {
                self.resend.push_back(first.packet.clone());
                self.probe_after = (self.probe_after * 2).min(PROBE_MAX);
                self.probe = Some(now + self.probe_after);
            }
            None => self.probe = None,
        }
    }

    fn handle_ranges(&mut self, now: Instant, ranges: &[(u64, u64)], highest: u64) {
        // A packet is sent again at most once per round trip, however many ACKs show the gap.
        let again_before = now.checked_sub(self.srtt.unwrap_or(PROBE_MIN) * 9 / 8);
        let Some(first) = self.unacked.front().map(|u| u.number) else { return };
        for &(from, to) in ranges {
            let (from, to) = (from.max(first), to.min(self.next_number));
            for number in from..to {
                let Some(entry) = self.unacked.get_mut((number - first) as usize) else { break };
                entry.sent_at = None;
            }
        }
        for entry in &mut self.unacked {
            if entry.number + REORDER_THRESHOLD >= highest {
                break;
            }
            let Some(sent_at) = entry.sent_at else { continue };
            if again_before.is_some_and(|limit| sent_at <= limit) {
                entry.sent_at = Some(now);
                self.resend.push_back(entry.packet.clone());
            }
        }
    }

    fn sample(&mut self, rtt: Duration) {
        self.srtt = Some(match self.srtt {
            None => rtt,
            Some(srtt) => (srtt * 7 + rtt) / 8,
        });
    }

    fn probe_interval(&self) -> Duration {
        self.srtt.map_or(PROBE_MIN, |srtt| (srtt * 4).clamp(PROBE_MIN, PROBE_MAX))
    }

    fn begin_item(&mut self, kind: u8, len: usize) {
        self.begin_packet(ITEM_HEADER_LEN + len);
        self.building.extend_from_slice(&item_header(kind, len));
        self.building_cost += item_cost(len);
    }

    fn begin_packet(&mut self, len: usize) {
        if self.building.len() + len > PREFIX_LEN + CHUNK_LEN && !self.building.is_empty() {
            self.end_batch();
        }
        if self.building.is_empty() {
            self.building.reserve(PREFIX_LEN + len.max(self.expected.min(CHUNK_LEN)));
            self.building.resize(PREFIX_LEN, 0);
        }
    }
}
