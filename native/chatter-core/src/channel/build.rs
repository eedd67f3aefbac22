//! Frames into numbered packets: small ones share one, large ones are cut into chunks. The packets wait
//! here until they may be sent.

use std::collections::VecDeque;

use bytes::Bytes;

use super::send::Route;
use super::{CHUNK_LEN, item_cost};
use crate::wire::data::{ITEM_HEADER_LEN, TOTAL_LEN, item, item_header};
use crate::wire::packet::Packet;
use crate::wire::routed::{FLAG_ACK_NOW, FLAGS_AT, ROUTED_HEADER_LEN, RoutedHeader};
use crate::wire::{PACKET_HEADER_LEN, PacketType, packet_header};

/// Bytes in front of the content of a DATA packet.
const PREFIX_LEN: usize = PACKET_HEADER_LEN + ROUTED_HEADER_LEN;

/// Pieces of a large frame from this length on are sent from where they are.
const BODY_MIN: usize = 4 * 1024;

/// A large frame on its way into chunks.
struct Chunker {
    total: usize,
    left: usize,
    /// Small pieces that wait for the chunk to be full.
    head: Vec<u8>,
}

/// A packet that has a number and has not been sent.
pub(super) struct Built {
    pub(super) number: u64,
    /// What it uses up of the credit.
    pub(super) cost: u64,
    head: Vec<u8>,
    body: Bytes,
}

impl Built {
    pub(super) fn len(&self) -> usize {
        self.head.len() + self.body.len()
    }

    /// The packet; `ack_now` asks the receiver for an acknowledgement at once.
    pub(super) fn into_packet(mut self, ack_now: bool) -> Packet {
        if ack_now {
            self.head[FLAGS_AT] |= FLAG_ACK_NOW;
        }
        Packet { head: Bytes::from(self.head), body: self.body }
    }
}

/// Makes the packets of a channel.
pub(super) struct Builder {
    route: Route,
    next_number: u64,
    building: Vec<u8>,
    building_cost: u64,
    /// Bytes that will still be pushed before the end of the batch, as far as is known.
    expected: usize,
    waiting: VecDeque<Built>,
    waiting_bytes: usize,
}

impl Builder {
    pub(super) fn new(route: Route) -> Self {
        Self {
            route,
            next_number: 1,
            building: Vec::new(),
            building_cost: 0,
            expected: 0,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
        }
    }

    /// The number of the next packet.
    pub(super) fn next_number(&self) -> u64 {
        self.next_number
    }

    /// Bytes of packets that have not been sent.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// Whether everything has been sent.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The next packet to be sent.
    pub(super) fn front(&self) -> Option<&Built> {
        self.waiting.front()
    }

    /// Takes the next packet to be sent.
    pub(super) fn pop(&mut self) -> Option<Built> {
        let built = self.waiting.pop_front()?;
        self.waiting_bytes -= built.len();
        Some(built)
    }

    /// See [`Sender::expect`](super::send::Sender::expect).
    pub(super) fn expect(&mut self, bytes: usize) {
        self.expected = bytes;
    }

    /// See [`Sender::push_frame`](super::send::Sender::push_frame).
    pub(super) fn push_frame(&mut self, pieces: &[&[u8]], total: usize) {
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

    /// See [`Sender::push_large_frame`](super::send::Sender::push_large_frame).
    pub(super) fn push_large_frame(&mut self, pieces: &[Bytes], total: usize) {
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

    /// See [`Sender::push_handshake`](super::send::Sender::push_handshake).
    pub(super) fn push_handshake(&mut self, message: &[u8]) {
        let message = &message[..message.len().min(CHUNK_LEN)];
        self.begin_item(item::HANDSHAKE, message.len());
        self.building.extend_from_slice(message);
    }

    /// See [`Sender::push_ack`](super::send::Sender::push_ack).
    pub(super) fn push_ack(&mut self, next: u64, credit: u64) {
        self.begin_packet(ITEM_HEADER_LEN + 16);
        self.building.extend_from_slice(&item_header(item::ACK, 16));
        self.building.extend_from_slice(&next.to_be_bytes());
        self.building.extend_from_slice(&credit.to_be_bytes());
    }

    /// See [`Sender::end_batch`](super::send::Sender::end_batch).
    pub(super) fn end_batch(&mut self) {
        if !self.building.is_empty() {
            let head = std::mem::take(&mut self.building);
            self.finish_packet(head, Bytes::new());
        }
    }

    /// A DATA packet outside the numbering: the receiver takes it for a repeated one, and tells how
    /// far it is and what credit there is.
    pub(super) fn credit_probe(&self) -> Packet {
        let mut head = vec![0; PREFIX_LEN];
        self.put_prefix(&mut head, 0, 0);
        Packet::from(head)
    }

    /// Numbers a packet whose `head` begins with room for the headers.
    fn finish_packet(&mut self, mut head: Vec<u8>, body: Bytes) {
        let number = self.next_number;
        self.next_number += 1;
        self.put_prefix(&mut head, body.len(), number);
        self.waiting_bytes += head.len() + body.len();
        let cost = std::mem::take(&mut self.building_cost);
        self.waiting.push_back(Built { number, cost, head, body });
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

    /// Fills in the headers of a packet whose content is what follows in `head`, and so many bytes.
    fn put_prefix(&self, head: &mut [u8], body_len: usize, number: u64) {
        let Route { source, destination, channel } = self.route;
        let header = RoutedHeader { number, ..RoutedHeader::to(destination, source, channel) };
        let len = head.len() + body_len - PACKET_HEADER_LEN;
        head[..PACKET_HEADER_LEN].copy_from_slice(&packet_header(PacketType::Data, len));
        head[PACKET_HEADER_LEN..PREFIX_LEN].copy_from_slice(&header.to_bytes());
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
