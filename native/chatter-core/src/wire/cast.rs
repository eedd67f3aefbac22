//! Broadcasts by multicast: CAST, CAST_HELLO and NAK, messages of a [datagram](super::datagram), and
//! CAST_ACK, the routed packet that answers to CASTs.
//!
//! ```text
//!            0       1         2        10            18      26     34
//!           +-------+---------+--------+-------------+-------+------+---------+----------
//! CAST:     | flags | targets | origin | incarnation | first | prev | target… | message…
//!           |   8   |    8    |   64   |     64      |  64   |  64  |         |
//!           +-------+---------+--------+-------------+-------+------+---------+----------
//!
//!             0       1         2        10            18
//!            +-------+---------+--------+-------------+-------------------------------+
//! CAST_HELLO:| flags | targets | origin | incarnation | node id 64, life 16, last 64 …
//!            |   8   |    8    |   64   |     64      |
//!            +-------+---------+--------+-------------+-------------------------------+
//!
//!           +-------+------+----------------------------------------+
//! NAK:      | flags | gaps | origin, incarnation, after, upto (each 64) …
//!           |   8   |  8   |
//!           +-------+------+----------------------------------------+
//!
//!            0       1      2      4        12            20         28      36
//!           +-------+------+------+--------+-------------+----------+-------+---------+---------------
//! CAST_ACK: | flags | gaps | life | origin | incarnation | received | taken | highest | after, upto …
//!           |   8   |  8   |  16  |   64   |     64      |    64    |  64   |   64    | 64, 64
//!           +-------+------+------+--------+-------------+----------+-------+---------+---------------
//! ```
//!
//! Targets and messages are those of a BCAST ([`super::bcast`]).

use bytes::Bytes;

use super::bcast::{Batch, Target, batch_messages, put_target, read_target};
use super::datagram::MAX_MESSAGE_BODY;
use super::reader::{Reader, WireError};
use crate::ids::{Incarnation, NodeId};

/// Bytes of a CAST in front of the targets.
pub const CAST_FIXED_LEN: usize = 34;

/// The most targets of one CAST_HELLO.
pub const MAX_HELLO_TARGETS: usize = (MAX_MESSAGE_BODY - HELLO_FIXED_LEN) / HELLO_TARGET_LEN;

const HELLO_FIXED_LEN: usize = 18;
const HELLO_TARGET_LEN: usize = 18;

/// The most gaps of one NAK.
pub const MAX_NAK_GAPS: usize = 16;

/// The most gaps of one CAST_ACK.
pub const MAX_ACK_GAPS: usize = 16;

const FLAG_HEARD: u8 = 0x01;

/// Messages by multicast, and whom they are for; the sender of the datagram wants to know when these
/// have them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cast {
    /// For whom; all others ignore it.
    pub targets: Vec<Target>,
    /// What.
    pub batch: Batch,
}

/// How many of `targets` a CAST with `messages` bytes of messages has room for.
pub fn room_for(targets: &[Target], messages: usize) -> usize {
    let Some(mut room) = MAX_MESSAGE_BODY.checked_sub(CAST_FIXED_LEN + messages) else { return 0 };
    let common = targets.first().map_or(0, |target| target.prev);
    let fits = |target: &&Target| {
        let len = if target.prev == common { 11 } else { 19 };
        let fits = len <= room;
        room = room.saturating_sub(len);
        fits
    };
    targets.iter().take(usize::from(u8::MAX)).take_while(fits).count()
}

impl Cast {
    /// The body of the message. There must be [room](room_for) for the targets.
    pub fn encode(batch: &Batch, targets: &[Target]) -> Vec<u8> {
        let prev = targets.first().map_or(0, |target| target.prev);
        let mut out = Vec::with_capacity(MAX_MESSAGE_BODY);
        out.extend_from_slice(&[0, targets.len() as u8]);
        for field in [batch.origin.0, batch.incarnation.0, batch.first, prev] {
            out.extend_from_slice(&field.to_be_bytes());
        }
        targets.iter().for_each(|target| put_target(&mut out, target, prev));
        out.extend_from_slice(&batch.messages);
        out
    }

    /// Reads the body.
    ///
    /// # Errors
    /// Truncated, no target or message, unknown flags, a chain that does not rise.
    pub fn decode(body: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(body);
        if r.u8("cast flags")? != 0 {
            return Err(WireError::Invalid("cast flags"));
        }
        let count = usize::from(r.u8("targets")?);
        if count == 0 {
            return Err(WireError::Invalid("targets"));
        }
        let origin = NodeId(r.u64("origin")?);
        let incarnation = Incarnation(r.u64("incarnation")?);
        let (first, prev) = (r.u64("first")?, r.u64("prev")?);
        let mut targets = Vec::with_capacity(count.min(r.rest().len() / 11));
        for _ in 0..count {
            let target = read_target(&mut r, first, prev, targets.is_empty())?;
            if target.direct || target.links_only {
                return Err(WireError::Invalid("target flags"));
            }
            targets.push(target);
        }
        let messages = Bytes::copy_from_slice(batch_messages(r.rest(), first)?);
        Ok(Self { targets, batch: Batch { origin, incarnation, first, messages } })
    }
}

/// How far the sender of a datagram has sent messages of an origin, told to those who have not
/// acknowledged the last ones: a loss that no later CAST shows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CastHello {
    /// Whose messages.
    pub origin: NodeId,
    /// Of which of its lives.
    pub incarnation: Incarnation,
    /// Node, the tag of its life ([`Target::life_tag`]), and the highest number that was sent to it; at
    /// least one, at most [`MAX_HELLO_TARGETS`].
    pub targets: Vec<(NodeId, u16, u64)>,
}

impl CastHello {
    /// The body of the message; what is over the limit is left out.
    pub fn encode(&self) -> Vec<u8> {
        let targets = &self.targets[..self.targets.len().min(MAX_HELLO_TARGETS)];
        let mut out = Vec::with_capacity(HELLO_FIXED_LEN + targets.len() * HELLO_TARGET_LEN);
        out.extend_from_slice(&[0, targets.len() as u8]);
        out.extend_from_slice(&self.origin.0.to_be_bytes());
        out.extend_from_slice(&self.incarnation.0.to_be_bytes());
        for (id, life, last) in targets {
            out.extend_from_slice(&id.0.to_be_bytes());
            out.extend_from_slice(&life.to_be_bytes());
            out.extend_from_slice(&last.to_be_bytes());
        }
        out
    }

    /// Reads the body.
    ///
    /// # Errors
    /// Truncated or trailing bytes, unknown flags, no target or too many.
    pub fn decode(body: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(body);
        if r.u8("cast hello flags")? != 0 {
            return Err(WireError::Invalid("cast hello flags"));
        }
        let count = usize::from(r.u8("targets")?);
        if count == 0 || count > MAX_HELLO_TARGETS {
            return Err(WireError::Invalid("targets"));
        }
        let (origin, incarnation) = (NodeId(r.u64("origin")?), Incarnation(r.u64("incarnation")?));
        let mut targets = Vec::with_capacity(count);
        for _ in 0..count {
            targets.push((NodeId(r.u64("target")?), r.u16("life")?, r.u64("last")?));
        }
        r.finish("cast hello")?;
        Ok(Self { origin, incarnation, targets })
    }
}

/// Numbers of an origin that are missing: those above `after`, up to `upto`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gap {
    /// The number before them.
    pub after: u64,
    /// The last of them.
    pub upto: u64,
}

impl Gap {
    /// Whether a number is missing.
    pub fn has(&self, number: u64) -> bool {
        self.after < number && number <= self.upto
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, WireError> {
        let (after, upto) = (r.u64("after")?, r.u64("upto")?);
        if after >= upto {
            return Err(WireError::Invalid("gap"));
        }
        Ok(Self { after, upto })
    }
}

/// What the sender of a datagram misses of some origins: whoever has sent it by multicast is asked to do
/// so again, and others who miss the same need not ask.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Nak {
    /// Origin, its life, what of it; at most [`MAX_NAK_GAPS`].
    pub gaps: Vec<(NodeId, Incarnation, Gap)>,
}

impl Nak {
    /// The body of the message; what is over the limit is left out.
    pub fn encode(&self) -> Vec<u8> {
        let gaps = &self.gaps[..self.gaps.len().min(MAX_NAK_GAPS)];
        let mut out = Vec::with_capacity(2 + gaps.len() * 32);
        out.extend_from_slice(&[0, gaps.len() as u8]);
        for (origin, incarnation, gap) in gaps {
            for field in [origin.0, incarnation.0, gap.after, gap.upto] {
                out.extend_from_slice(&field.to_be_bytes());
            }
        }
        out
    }

    /// Reads the body.
    ///
    /// # Errors
    /// Truncated or trailing bytes, unknown flags, too many gaps or empty ones.
    pub fn decode(body: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(body);
        if r.u8("nak flags")? != 0 {
            return Err(WireError::Invalid("nak flags"));
        }
        let count = gap_count(&mut r, MAX_NAK_GAPS)?;
        let mut gaps = Vec::with_capacity(count);
        for _ in 0..count {
            let (origin, life) = (NodeId(r.u64("origin")?), Incarnation(r.u64("incarnation")?));
            gaps.push((origin, life, Gap::read(&mut r)?));
        }
        r.finish("nak")?;
        Ok(Self { gaps })
    }
}

/// What of an origin has arrived at the source of the packet, told to a sender of CASTs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CastAck {
    /// A datagram of the destination was heard since the last CAST_ACK to it.
    pub heard: bool,
    /// The tag of the source's life ([`Target::life_tag`]).
    pub life: u16,
    /// Whose messages.
    pub origin: NodeId,
    /// Of which of its lives.
    pub incarnation: Incarnation,
    /// All up to this number that were for the source have arrived there.
    pub received: u64,
    /// All up to this number its user has taken.
    pub taken: u64,
    /// The highest number that has arrived; between it and `received` only `gaps` are missing.
    pub highest: u64,
    /// What is missing, ascending; at most [`MAX_ACK_GAPS`].
    pub gaps: Vec<Gap>,
}

impl CastAck {
    /// Whether all up to `last` of a batch that ends with it has arrived.
    pub fn has(&self, last: u64) -> bool {
        last <= self.received
            || (last <= self.highest && !self.gaps.iter().any(|gap| gap.has(last)))
    }

    /// The content of the packet; gaps over the limit are left out.
    pub fn encode(&self) -> Vec<u8> {
        let gaps = &self.gaps[..self.gaps.len().min(MAX_ACK_GAPS)];
        let mut out = Vec::with_capacity(44 + gaps.len() * 16);
        out.extend_from_slice(&[if self.heard { FLAG_HEARD } else { 0 }, gaps.len() as u8]);
        out.extend_from_slice(&self.life.to_be_bytes());
        let fields = [self.origin.0, self.incarnation.0, self.received, self.taken, self.highest];
        let gaps = gaps.iter().flat_map(|gap| [gap.after, gap.upto]);
        for field in fields.into_iter().chain(gaps) {
            out.extend_from_slice(&field.to_be_bytes());
        }
        out
    }

    /// Reads the content.
    ///
    /// # Errors
    /// Truncated or trailing bytes, unknown flags, too many gaps, empty ones or in disorder, more taken
    /// than received.
    pub fn decode(content: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(content);
        let flags = r.u8("ack flags")?;
        if flags & !FLAG_HEARD != 0 {
            return Err(WireError::Invalid("ack flags"));
        }
        let count = gap_count(&mut r, MAX_ACK_GAPS)?;
        let life = r.u16("life")?;
        let origin = NodeId(r.u64("origin")?);
        let incarnation = Incarnation(r.u64("incarnation")?);
        let (received, taken) = (r.u64("received")?, r.u64("taken")?);
        let highest = r.u64("highest")?;
        if taken > received || received > highest {
            return Err(WireError::Invalid("received"));
        }
        let mut gaps = Vec::with_capacity(count);
        let mut before = received;
        for _ in 0..count {
            let gap = Gap::read(&mut r)?;
            if gap.after < before || gap.upto >= highest {
                return Err(WireError::Invalid("gap"));
            }
            before = gap.upto;
            gaps.push(gap);
        }
        r.finish("cast ack")?;
        let heard = flags & FLAG_HEARD != 0;
        Ok(Self { heard, life, origin, incarnation, received, taken, highest, gaps })
    }
}

fn gap_count(r: &mut Reader<'_>, limit: usize) -> Result<usize, WireError> {
    let len = usize::from(r.u8("gaps")?);
    if len > limit {
        return Err(WireError::TooLong { field: "gaps", len, limit });
    }
    Ok(len)
}
