//! BCAST and BCAST_ACK: a broadcast on its way over one link, and the news that it has arrived everywhere
//! behind that link, or nearly so.
//!
//! ```text
//!  0       1           2         4        12       20            28      36
//! +-------+-----------+---------+--------+--------+-------------+-------+------+---------+----------
//! | flags | hop limit | targets | number | origin | incarnation | first | prev | target… | message…
//! |   8   |     8     |   16    |   64   |   64   |     64      |  64   |  64  |         |
//! +-------+-----------+---------+--------+--------+-------------+-------+------+---------+----------
//!
//! target:   +----+------+-------+--------+     message: +-------+----------+------+-----+------
//!           | id | life | flags | [prev] |              | flags | type len | type | len | part
//!           | 64 |  16  |   8   |   64   |              |   8   |    8     |      | 24  |
//!           +----+------+-------+--------+              +-------+----------+------+-----+------
//! ```
//!
//! Messages are numbered by their origin, from `first` on, and chained for each target: `prev` is the
//! number of the last message before these that the origin has sent to it in this life, 0 for none.

use bytes::Bytes;

use super::packet::Packet;
use super::reader::{Reader, WireError};
use super::{MAX_PACKET_BODY, PACKET_HEADER_LEN, PacketType, packet_header};
use crate::ids::{Incarnation, NodeId};

/// Bytes in front of the targets.
pub const BCAST_FIXED_LEN: usize = 44;

/// The most bytes of messages in one packet; what a message has more is cut into parts.
pub const BATCH_BYTES: usize = 16 * 1024;

/// The most targets of one packet: so many nodes does a network have.
pub const MAX_TARGETS: usize = 2_300;

/// Hops that a broadcast may take.
pub const BCAST_HOPS: u8 = 64;

/// Bytes of the largest target.
const TARGET_LEN: usize = 19;
const TARGET_DIRECT: u8 = 0x01;
const TARGET_PREV: u8 = 0x02;
const TARGET_LINKS: u8 = 0x04;

const PART_MASK: u8 = 0x03;
const FLAG_LZ4: u8 = 0x04;
const MAX_ACKS: usize = (MAX_PACKET_BODY - 1) / 8;

const _: () = assert!(BCAST_FIXED_LEN + MAX_TARGETS * TARGET_LEN + BATCH_BYTES < MAX_PACKET_BODY);

/// A node that messages are for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Target {
    /// The node.
    pub id: NodeId,
    /// The lower 16 bits of the incarnation that is meant; another life ignores the messages.
    pub life: u16,
    /// Whether the receiver is to send to it over its own link to it, if there is one.
    pub direct: bool,
    /// Whether only links are to be used to reach it: multicast did not.
    pub links_only: bool,
    /// The number before the first message.
    pub prev: u64,
}

impl Target {
    /// The tag of a life.
    pub fn life_tag(incarnation: Incarnation) -> u16 {
        incarnation.0 as u16
    }
}

/// Which part of a message this is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// All of it.
    Whole,
    /// Its beginning.
    First,
    /// Goes on from the part before.
    More,
    /// Its end.
    Last,
}

/// One message, or a part of one, as it stands in a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message<'a> {
    /// Which part.
    pub part: Part,
    /// The whole message is compressed (LZ4 block behind its length, 32 bits little-endian).
    pub lz4: bool,
    /// The type, at most 255 bytes of UTF-8; empty in parts but the first.
    pub kind: &'a str,
    /// The bytes.
    pub body: &'a [u8],
}

/// What all packets of the same messages have in common.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Batch {
    /// Who sent the messages first.
    pub origin: NodeId,
    /// In which life.
    pub incarnation: Incarnation,
    /// The number of the first message.
    pub first: u64,
    /// The messages' bytes, read with [`next_message`].
    pub messages: Bytes,
}

/// A BCAST that came in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bcast {
    /// Hops left.
    pub hop_limit: u8,
    /// The sender's number for this transfer, to be acknowledged.
    pub number: u64,
    /// For whom.
    pub targets: Vec<Target>,
    /// What.
    pub batch: Batch,
}

impl Bcast {
    /// A whole packet; the messages are not copied.
    pub fn packet(batch: &Batch, hop_limit: u8, number: u64, targets: &[Target]) -> Packet {
        let prev = targets.first().map_or(0, |target| target.prev);
        let mut out =
            Vec::with_capacity(PACKET_HEADER_LEN + BCAST_FIXED_LEN + targets.len() * TARGET_LEN);
        out.extend_from_slice(&[0; PACKET_HEADER_LEN]);
        out.extend_from_slice(&[0, hop_limit]);
        out.extend_from_slice(&(targets.len() as u16).to_be_bytes());
        for field in [number, batch.origin.0, batch.incarnation.0, batch.first, prev] {
            out.extend_from_slice(&field.to_be_bytes());
        }
        targets.iter().for_each(|target| put_target(&mut out, target, prev));
        let len = out.len() - PACKET_HEADER_LEN + batch.messages.len();
        assert!(len <= MAX_PACKET_BODY, "BUG! broadcast of {len} bytes");
        out[..PACKET_HEADER_LEN].copy_from_slice(&packet_header(PacketType::Bcast, len));
        Packet { head: out.into(), body: batch.messages.clone() }
    }

    /// Reads the body of a BCAST, messages included.
    pub fn decode(body: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(body);
        if r.u8("flags")? != 0 {
            return Err(WireError::Invalid("broadcast flags"));
        }
        let hop_limit = r.u8("hop limit")?;
        let count = usize::from(r.u16("targets")?);
        if count == 0 {
            return Err(WireError::Invalid("targets"));
        }
        if count > MAX_TARGETS {
            return Err(WireError::TooLong { field: "targets", len: count, limit: MAX_TARGETS });
        }
        let number = r.u64("number")?;
        let origin = NodeId(r.u64("origin")?);
        let incarnation = Incarnation(r.u64("incarnation")?);
        let (first, prev) = (r.u64("first")?, r.u64("prev")?);
        // So many are there at least, whatever is claimed.
        let mut targets = Vec::with_capacity(count.min(r.rest().len() / 11));
        for _ in 0..count {
            targets.push(read_target(&mut r, first, prev, targets.is_empty())?);
        }
        let messages = Bytes::copy_from_slice(batch_messages(r.rest(), first)?);
        let batch = Batch { origin, incarnation, first, messages };
        Ok(Self { hop_limit, number, targets, batch })
    }
}

/// Appends a target; `prev` is the common one, that of the first.
pub(super) fn put_target(out: &mut Vec<u8>, target: &Target, prev: u64) {
    out.extend_from_slice(&target.id.0.to_be_bytes());
    out.extend_from_slice(&target.life.to_be_bytes());
    let flag = |set: bool, flag: u8| if set { flag } else { 0 };
    let own = target.prev != prev;
    out.push(
        flag(target.direct, TARGET_DIRECT)
            | flag(own, TARGET_PREV)
            | flag(target.links_only, TARGET_LINKS),
    );
    if own {
        out.extend_from_slice(&target.prev.to_be_bytes());
    }
}

/// Reads a target of messages from `first` on; `prev` is the common one.
pub(super) fn read_target(
    r: &mut Reader<'_>,
    first: u64,
    prev: u64,
    is_first: bool,
) -> Result<Target, WireError> {
    let (id, life) = (NodeId(r.u64("target")?), r.u16("life")?);
    let flags = r.u8("target flags")?;
    if flags & !(TARGET_DIRECT | TARGET_PREV | TARGET_LINKS) != 0 {
        return Err(WireError::Invalid("target flags"));
    }
    // One way to say a thing: the common one is that of the first target.
    let own = (flags & TARGET_PREV != 0).then(|| r.u64("prev")).transpose()?;
    let repeats = own == Some(prev) || (own.is_some() && is_first);
    let prev = own.unwrap_or(prev);
    if prev >= first || repeats {
        return Err(WireError::Invalid("prev"));
    }
    let (direct, links_only) = (flags & TARGET_DIRECT != 0, flags & TARGET_LINKS != 0);
    Ok(Target { id, life, direct, links_only, prev })
}

/// Checks the messages at the end of a packet, which are numbered from `first` on.
pub(super) fn batch_messages(messages: &[u8], first: u64) -> Result<&[u8], WireError> {
    if messages.len() > 2 * BATCH_BYTES {
        let (len, limit) = (messages.len(), 2 * BATCH_BYTES);
        return Err(WireError::TooLong { field: "messages", len, limit });
    }
    let mut rest = messages;
    let mut last = first;
    while next_message(&mut rest)?.is_some() {
        last = last.checked_add(1).ok_or(WireError::Invalid("first"))?;
    }
    if last == first {
        return Err(WireError::Truncated("messages"));
    }
    Ok(messages)
}

/// Appends a message. `kind` is cut to nothing if it is over 255 bytes; `body` must be below 16 MiB.
pub fn put_message(out: &mut Vec<u8>, message: &Message<'_>) {
    let part = match message.part {
        Part::Whole => 0,
        Part::First => 1,
        Part::More => 2,
        Part::Last => 3,
    };
    let kind = if message.kind.len() <= 255 { message.kind.as_bytes() } else { &[] };
    out.extend_from_slice(&[part | if message.lz4 { FLAG_LZ4 } else { 0 }, kind.len() as u8]);
    out.extend_from_slice(kind);
    out.extend_from_slice(&(message.body.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(message.body);
}

/// Splits the first message off. `Ok(None)` at the end.
pub fn next_message<'a>(messages: &mut &'a [u8]) -> Result<Option<Message<'a>>, WireError> {
    if messages.is_empty() {
        return Ok(None);
    }
    let mut r = Reader::new(messages);
    let flags = r.u8("message flags")?;
    if flags & !(PART_MASK | FLAG_LZ4) != 0 {
        return Err(WireError::Invalid("message flags"));
    }
    let part = match flags & PART_MASK {
        0 => Part::Whole,
        1 => Part::First,
        2 => Part::More,
        _ => Part::Last,
    };
    let kind = str::from_utf8(r.bytes8("type")?).map_err(|_| WireError::Invalid("type"))?;
    let len = r.u24("message length")? as usize;
    let body = r.take(len, "message")?;
    *messages = r.rest();
    Ok(Some(Message { part, lz4: flags & FLAG_LZ4 != 0, kind, body }))
}

/// What became of transfers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Fate {
    /// All their targets behind this link have the messages, or are gone.
    Done,
    /// Not taken: to be sent again later.
    Busy,
    /// All but a few targets behind this link have the messages.
    Open,
}

/// News of transfers of the node at the other end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BcastAck {
    /// What became of them.
    pub fate: Fate,
    /// Their numbers; a single one with [`Fate::Open`].
    pub numbers: Vec<u64>,
    /// With [`Fate::Open`], at least one: the targets that do not have the messages yet.
    pub open: Vec<NodeId>,
}

impl BcastAck {
    /// The whole packets that tell that transfers are done, or not taken.
    pub fn packets(fate: Fate, numbers: &[u64]) -> impl Iterator<Item = Packet> {
        numbers.chunks(MAX_ACKS).map(move |numbers| Self::packet(fate, numbers.iter().copied()))
    }

    /// The whole packet that tells which targets of a transfer are open, at most [`MAX_TARGETS`].
    pub fn open_packet(number: u64, open: &[NodeId]) -> Packet {
        let ids = open.iter().take(MAX_TARGETS).map(|id| id.0);
        Self::packet(Fate::Open, std::iter::once(number).chain(ids))
    }

    fn packet(fate: Fate, fields: impl Iterator<Item = u64>) -> Packet {
        let mut out = vec![0; PACKET_HEADER_LEN];
        out.push(fate as u8);
        fields.for_each(|field| out.extend_from_slice(&field.to_be_bytes()));
        let header = packet_header(PacketType::BcastAck, out.len() - PACKET_HEADER_LEN);
        out[..PACKET_HEADER_LEN].copy_from_slice(&header);
        Packet::from(out)
    }

    /// Reads the body of a BCAST_ACK.
    pub fn decode(body: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(body);
        let fate = match r.u8("fate")? {
            0 => Fate::Done,
            1 => Fate::Busy,
            2 => Fate::Open,
            _ => return Err(WireError::Invalid("fate")),
        };
        if fate == Fate::Open {
            let numbers = vec![r.u64("number")?];
            let open = read_all(&mut r, "targets")?.into_iter().map(NodeId).collect();
            return Ok(Self { fate, numbers, open });
        }
        let numbers = read_all(&mut r, "numbers")?;
        Ok(Self { fate, numbers, open: Vec::new() })
    }
}

/// Reads numbers up to the end; one at least.
fn read_all(r: &mut Reader<'_>, field: &'static str) -> Result<Vec<u64>, WireError> {
    if r.rest().is_empty() {
        return Err(WireError::Truncated(field));
    }
    let mut numbers = Vec::with_capacity(r.rest().len() / 8);
    while !r.rest().is_empty() {
        numbers.push(r.u64(field)?);
    }
    Ok(numbers)
}
