//! The sending half of a channel: frames in, numbered packets out; kept until acknowledged.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{CHUNK_LEN, item_cost};
use crate::ids::{ChannelIndex, NodeId};
use crate::wire::data::{Ack, ITEM_HEADER_LEN, TOTAL_LEN, item, item_header};
use crate::wire::packet::Packet;
use crate::wire::routed::{ROUTED_HEADER_LEN, RoutedHeader};
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
    /// `None` once a range has acknowledged it: the receiver keeps what it has acknowledged.
    packet: Option<Packet>,
    /// When it was last handed out.
    sent_at: Instant,
    /// It was handed out more than once: which copy an acknowledgement means is not known.
    resent: bool,
    /// It is in the list of those to hand out again.
    queued: bool,
}

/// The way back after a probe timeout. The answer to a probe shows that the way is open, and nothing
/// about the packets behind it, because it has the number of a packet that was lost. They are handed
/// out again in rounds, each twice as large as the one before and only after all of that was
/// acknowledged.
struct Recovery {
    /// Packets from this number on were handed out after the timeout.
    until: u64,
    /// The first packet behind the present round.
    round_end: u64,
    /// Packets of the present round.
    round: usize,
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
    /// Ranges of the last acknowledgement: what they cover is dealt with.
    ranges: Vec<(u64, u64)>,
    /// Numbers to hand out again; those acknowledged in the meantime are passed over.
    resend: VecDeque<u64>,
    recovery: Option<Recovery>,
    /// The receiver is to be asked for its credit.
    ask_credit: bool,
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
            ranges: Vec::new(),
            resend: VecDeque::new(),
            recovery: None,
            ask_credit: false,
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

    /// Takes one frame of the VM, given in pieces of `total` bytes in all. They are copied.
    pub fn push_frame(&mut self, pieces: &[&[u8]], total: usize) {
        if total > CHUNK_LEN {
            let pieces: Vec<Bytes> = pieces.iter().map(|p| Bytes::copy_from_slice(p)).collect();
            return self.push_large_frame(&pieces, total);
        }
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
        self.put_prefix(&mut head, body.len(), number);
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
        while let Some(number) = self.resend.pop_front() {
            if let Some(packet) = self.hand_out_again(now, number) {
                self.retransmits += 1;
                return Some(packet);
            }
        }
        if std::mem::take(&mut self.ask_credit) {
            return Some(self.credit_probe());
        }
        let cost = self.waiting.front()?.cost;
        if self.sent_offset + cost > self.credit {
            // The acknowledgement with more credit may get lost: this end has to ask for it then.
            self.probe.get_or_insert(now + self.probe_after);
            return None;
        }
        let built = self.waiting.pop_front()?;
        self.waiting_bytes -= built.packet.len();
        self.sent_offset += built.cost;
        self.unacked_bytes += built.packet.len();
        self.unacked.push_back(Unacked {
            number: built.number,
            packet: Some(built.packet.clone()),
            sent_at: now,
            resent: false,
            queued: false,
        });
        self.probe.get_or_insert(now + self.probe_after);
        Some(built.packet)
    }

    /// Takes an acknowledgement. Old ones do no harm: everything in them only grows.
    pub fn handle_ack(&mut self, now: Instant, ack: &Ack) {
        let mut progress = ack.credit > self.credit;
        self.credit = self.credit.max(ack.credit);
        while let Some(first) = self.unacked.pop_front_if(|first| first.number < ack.next) {
            progress = true;
            self.forget(now, &first);
        }
        if ack.ranges.is_empty() {
            self.ranges.clear();
        } else {
            progress |= self.handle_ranges(now, &ack.ranges);
        }
        if progress {
            self.probe_after = self.probe_interval();
            self.probe = Some(now + self.probe_after);
            self.recover();
        }
        if self.is_idle() {
            self.probe = None;
        }
    }

    /// The way to the destination has changed: all that is not acknowledged may have been lost.
    pub fn handle_route_change(&mut self, now: Instant) {
        self.resend.clear();
        self.recovery = None;
        self.probe_after = self.probe_interval();
        self.probe = (!self.is_idle()).then_some(now + self.probe_after);
        for entry in &mut self.unacked {
            entry.queued = entry.packet.is_some();
            if entry.queued {
                self.resend.push_back(entry.number);
            }
        }
        self.ask_credit = self.unacked.is_empty() && self.is_held_back();
    }

    /// When [`Sender::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.probe
    }

    /// Nothing was heard for the probe timeout: sends the first unacknowledged packet again, or asks
    /// for the credit that everything waits for.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.probe.is_none_or(|at| now < at) {
            return;
        }
        if self.is_idle() {
            self.probe = None;
            return;
        }
        self.probe_after = (self.probe_after * 2).min(PROBE_MAX);
        self.probe = Some(now + self.probe_after);
        match (self.unacked.front(), self.unacked.back()) {
            (Some(first), Some(last)) => {
                let (first, until) = (first.number, last.number + 1);
                self.recovery = Some(Recovery { until, round_end: first + 1, round: 1 });
                self.queue_again(first);
            }
            _ => self.ask_credit = true,
        }
    }

    /// Notes what `ranges` acknowledge and queues what they show to be lost. Returns whether there was
    /// anything new in them. Costs as much as there is new and missing, not as there is in the ranges.
    fn handle_ranges(&mut self, now: Instant, ranges: &[(u64, u64)]) -> bool {
        let Some(first) = self.unacked.front().map(|first| first.number) else { return false };
        let known = std::mem::replace(&mut self.ranges, ranges.to_vec());
        let mut progress = false;
        for &(from, to) in ranges {
            let seen = known.iter().find(|k| k.0 <= from && from < k.1).map_or(from, |k| k.1);
            for number in seen.max(first)..to {
                let Some(entry) = self.entry(number) else { break };
                if let Some(packet) = entry.packet.take() {
                    self.unacked_bytes -= packet.len();
                    progress = true;
                }
            }
        }
        // A packet is sent again at most once per round trip, however many ACKs show the gap.
        let again_after = self.srtt.unwrap_or(PROBE_MIN) * 9 / 8;
        let highest = ranges.last().map_or(0, |last| last.1);
        let mut gap = first;
        for &(from, to) in ranges {
            for number in gap..from.min(highest.saturating_sub(REORDER_THRESHOLD)) {
                let Some(entry) = self.entry(number) else { break };
                if now.saturating_duration_since(entry.sent_at) >= again_after {
                    self.queue_again(number);
                }
            }
            gap = gap.max(to);
        }
        progress
    }

    /// A packet has been acknowledged, with all before it.
    fn forget(&mut self, now: Instant, first: &Unacked) {
        let Some(packet) = &first.packet else { return };
        self.unacked_bytes -= packet.len();
        if first.resent {
            return;
        }
        self.sample(now.saturating_duration_since(first.sent_at));
        let number = first.number;
        if self.recovery.as_ref().is_some_and(|r| (r.round_end..r.until).contains(&number)) {
            // It was not sent again, and is there: packets are late, not lost.
            self.recovery = None;
        }
    }

    /// Begins the next round of the recovery when the last one is acknowledged.
    fn recover(&mut self) {
        let Some(first) = self.unacked.front().map(|first| first.number) else {
            self.recovery = None;
            return;
        };
        let Some(recovery) = self.recovery.as_mut().filter(|r| first < r.until) else {
            self.recovery = None;
            return;
        };
        if first < recovery.round_end {
            return;
        }
        recovery.round = recovery.round.saturating_mul(2);
        let (until, round) = (recovery.until, recovery.round);
        let lost = |entry: &&Unacked| entry.packet.is_some() && entry.number < until;
        let lost = self.unacked.iter().filter(lost).map(|entry| entry.number);
        let numbers: Vec<u64> = lost.take(round).collect();
        recovery.round_end = numbers.last().map_or(until, |last| last + 1);
        numbers.into_iter().for_each(|number| self.queue_again(number));
    }

    fn entry(&mut self, number: u64) -> Option<&mut Unacked> {
        let first = self.unacked.front()?.number;
        self.unacked.get_mut(usize::try_from(number.checked_sub(first)?).ok()?)
    }

    fn queue_again(&mut self, number: u64) {
        if let Some(entry) = self.entry(number)
            && entry.packet.is_some()
            && !entry.queued
        {
            entry.queued = true;
            self.resend.push_back(number);
        }
    }

    fn hand_out_again(&mut self, now: Instant, number: u64) -> Option<Packet> {
        let entry = self.entry(number)?;
        entry.queued = false;
        entry.sent_at = now;
        entry.resent = true;
        entry.packet.clone()
    }

    /// A DATA packet outside the numbering: the receiver takes it for a repeated one, and tells how
    /// far it is and what credit there is.
    fn credit_probe(&self) -> Packet {
        let mut head = vec![0; PREFIX_LEN];
        self.put_prefix(&mut head, 0, 0);
        Packet::from(head)
    }

    /// Fills in the headers of a packet whose content is what follows in `head`, and so many bytes.
    fn put_prefix(&self, head: &mut [u8], body_len: usize, number: u64) {
        let Route { source, destination, channel } = self.route;
        let header = RoutedHeader { number, ..RoutedHeader::to(destination, source, channel) };
        let len = head.len() + body_len - PACKET_HEADER_LEN;
        head[..PACKET_HEADER_LEN].copy_from_slice(&packet_header(PacketType::Data, len));
        head[PACKET_HEADER_LEN..PREFIX_LEN].copy_from_slice(&header.to_bytes());
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
