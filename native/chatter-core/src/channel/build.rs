//! Items into packets: small ones share one, large ones are cut into chunks.

use bytes::Bytes;

use super::{BATCH_LEN, CHUNK_LEN, item_cost};
use crate::wire::data::{
    FENCES_LEN, FLOW_LEN, ITEM_HEADER_LEN, Item, TOTAL_LEN, item, item_header, next_item,
};
use crate::wire::packet::Packet;
use crate::wire::routed::{ROUTED_HEADER_LEN, RoutedHeader};
use crate::wire::{PACKET_HEADER_LEN, PacketType, packet_header};

/// Bytes in front of the items of a DATA packet.
pub(super) const PREFIX_LEN: usize = PACKET_HEADER_LEN + ROUTED_HEADER_LEN + FENCES_LEN;

/// Pieces of a large frame from this length on are sent from where they are.
const BODY_MIN: usize = 4 * 1024;

/// A packet whose number is not known yet.
#[derive(Debug)]
pub(super) struct Part {
    /// Room for the headers, then items.
    pub(super) head: Vec<u8>,
    /// The rest of the last item.
    pub(super) body: Bytes,
    /// What it uses up of the credit.
    pub(super) cost: u64,
    /// Whether its receiver can do without all that is in it.
    pub(super) droppable: bool,
}

impl Part {
    /// Stands for an item of that cost which is given up; `flow` has its sequence number.
    pub(super) fn void(flow: Option<(u32, u32)>, cost: u64) -> Self {
        let mut head = vec![0; PREFIX_LEN];
        push_flow(&mut head, flow);
        head.extend_from_slice(&item_header(item::VOID, 4));
        head.extend_from_slice(&(cost as u32).to_be_bytes());
        Self { head, body: Bytes::new(), cost, droppable: true }
    }

    pub(super) fn len(&self) -> usize {
        self.head.len() + self.body.len()
    }

    /// The packet, with its headers.
    pub(super) fn into_packet(mut self, header: RoutedHeader, fences: u32) -> Packet {
        let len = self.len() - PACKET_HEADER_LEN;
        let head = &mut self.head[..PREFIX_LEN];
        head[..PACKET_HEADER_LEN].copy_from_slice(&packet_header(PacketType::Data, len));
        let fences_at = PACKET_HEADER_LEN + ROUTED_HEADER_LEN;
        head[PACKET_HEADER_LEN..fences_at].copy_from_slice(&header.to_bytes());
        head[fences_at..].copy_from_slice(&fences.to_be_bytes());
        Packet { head: Bytes::from(self.head), body: self.body }
    }
}

/// A packet that is being filled with items.
#[derive(Debug, Default)]
pub(super) struct Building {
    head: Vec<u8>,
    cost: u64,
    /// The flow, and its sequence number, that the next item has without saying so.
    implied: Option<(u32, u32)>,
    /// There is something in it that its receiver cannot do without.
    needed: bool,
}

impl Building {
    pub(super) fn is_empty(&self) -> bool {
        self.head.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.head.len()
    }

    /// Whether an item of so many bytes still has room.
    pub(super) fn has_room(&self, len: usize) -> bool {
        let needed = self.head.len() + 2 * ITEM_HEADER_LEN + FLOW_LEN + len;
        self.head.is_empty() || needed <= PREFIX_LEN + BATCH_LEN
    }

    /// Begins an item of a flow; `len` bytes of its body are to be put behind. Room is made for
    /// `expected` bytes at once.
    pub(super) fn item(
        &mut self,
        flow: Option<(u32, u32)>,
        kind: u8,
        len: usize,
        expected: usize,
    ) -> &mut Vec<u8> {
        self.begin(expected.min(BATCH_LEN).max(len));
        if flow.is_some() && flow != self.implied {
            push_flow(&mut self.head, flow);
        }
        self.implied = flow.map(|(id, sequence)| (id, sequence.wrapping_add(1)));
        self.head.extend_from_slice(&item_header(kind, len));
        self.cost += item_cost(len);
        &mut self.head
    }

    /// Puts an acknowledgement in; it belongs to no flow and costs no credit.
    pub(super) fn ack(&mut self, next: u64, credit: u64) {
        self.begin(0);
        self.head.extend_from_slice(&item_header(item::ACK, 16));
        self.head.extend_from_slice(&next.to_be_bytes());
        self.head.extend_from_slice(&credit.to_be_bytes());
    }

    /// The receiver cannot do without the item that is begun, should it be lost for good.
    pub(super) fn need(&mut self) {
        self.needed = true;
    }

    fn begin(&mut self, len: usize) {
        if self.head.is_empty() {
            let items = len + 2 * ITEM_HEADER_LEN + FLOW_LEN;
            self.head.reserve(PREFIX_LEN + items);
            self.head.resize(PREFIX_LEN, 0);
        }
    }

    /// The packet, if there is anything in it.
    pub(super) fn take(&mut self) -> Option<Part> {
        if self.head.is_empty() {
            return None;
        }
        let Self { head, cost, needed, .. } = std::mem::take(self);
        Some(Part { head, body: Bytes::new(), cost, droppable: !needed })
    }
}

/// Cuts a frame of `total` bytes, given in pieces, into chunks: each a packet of its own. Large pieces
/// are not copied. `sequence` is that of the next item; `None` for a fence.
pub(super) fn chunks(
    pieces: &[Bytes],
    total: usize,
    mut sequence: Option<(u32, u32)>,
    mut put: impl FnMut(Part),
) {
    let mut left = total;
    let mut small: Vec<u8> = Vec::new();
    let mut finish = |small: &mut Vec<u8>, body: Bytes| {
        let part = small.len() + body.len();
        let first = left == total;
        let room = PREFIX_LEN + 2 * ITEM_HEADER_LEN + FLOW_LEN + TOTAL_LEN + small.len();
        let mut head = Vec::with_capacity(room);
        head.resize(PREFIX_LEN, 0);
        push_flow(&mut head, sequence);
        sequence = sequence.map(|(flow, number)| (flow, number.wrapping_add(1)));
        let len = if first { TOTAL_LEN + part } else { part };
        head.extend_from_slice(&item_header(if first { item::FIRST } else { item::MORE }, len));
        if first {
            head.extend_from_slice(&(total as u32).to_be_bytes());
        }
        head.append(small);
        left -= part;
        put(Part { head, body, cost: item_cost(len), droppable: false });
    };
    for piece in pieces {
        let mut piece = piece.clone();
        while small.len() + piece.len() >= CHUNK_LEN
            || (piece.len() >= BODY_MIN && !piece.is_empty())
        {
            let body = piece.split_to(piece.len().min(CHUNK_LEN - small.len()));
            finish(&mut small, body);
        }
        small.extend_from_slice(&piece);
    }
    if !small.is_empty() {
        finish(&mut small, Bytes::new());
    }
}

/// What takes the place of a packet that was lost for good, and how many frames were in it: all that is in
/// order after them stays so. `sender` says what the sender calls a flow. `None` if it is no such packet.
pub(super) fn lost(packet: &Packet, sender: impl Fn(u32) -> u64) -> Option<(Packet, u64)> {
    let (prefix, mut items) = packet.head.split_at_checked(PREFIX_LEN)?;
    if !packet.body.is_empty() {
        return None;
    }
    let mut head = prefix.to_vec();
    let mut frames = 0;
    let mut flow = None;
    while let Some(item) = next_item(&mut items).ok()? {
        match item {
            Item::Frame(body) => {
                frames += 1;
                head.extend_from_slice(&item_header(item::LOST, 12));
                head.extend_from_slice(&(item_cost(body.len()) as u32).to_be_bytes());
                head.extend_from_slice(&flow.map_or(0, &sender).to_be_bytes());
            }
            Item::Flow { flow: id, sequence } => {
                flow = Some(id);
                push_flow(&mut head, Some((id, sequence)));
            }
            Item::End => head.extend_from_slice(&item_header(item::END, 0)),
            Item::Void { cost } => {
                head.extend_from_slice(&item_header(item::VOID, 4));
                head.extend_from_slice(&cost.to_be_bytes());
            }
            // Later ones have told more.
            Item::Ack { .. } => {}
            Item::First { .. } | Item::More(_) | Item::Handshake(_) | Item::Lost { .. } => {
                return None;
            }
        }
    }
    let len = packet_header(PacketType::Data, head.len() - PACKET_HEADER_LEN);
    head[..PACKET_HEADER_LEN].copy_from_slice(&len);
    Some((head.into(), frames))
}

fn push_flow(head: &mut Vec<u8>, flow: Option<(u32, u32)>) {
    if let Some((flow, sequence)) = flow {
        head.extend_from_slice(&item_header(item::FLOW, FLOW_LEN));
        head.extend_from_slice(&flow.to_be_bytes());
        head.extend_from_slice(&sequence.to_be_bytes());
    }
}
