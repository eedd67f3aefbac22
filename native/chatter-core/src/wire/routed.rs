//! The header of every packet that may travel over relays.
//!
//! ```text
//!  0       1           2         4             12       20         24      26       32
//! +-------+-----------+---------+-------------+--------+----------+-------+--------+---------
//! | flags | hop limit | mutable | destination | source | channel  | label | number | content
//! |   8   |     8     |   16    |     64      |   64   |    32    |  16   |   48   |
//! +-------+-----------+---------+-------------+--------+----------+-------+--------+---------
//! ```
//!
//! A relay reads the destination, counts the hop limit and the time left down, may set a mark, queues by
//! class and label, and passes the rest on untouched.

use std::time::Duration;

use bytes::BytesMut;

use super::packet::Packet;
use super::reader::{Reader, WireError};
use super::{PACKET_HEADER_LEN, PacketType, packet_header};
use crate::ids::{ChannelIndex, NodeId};
use crate::sched::fair::Level;

/// Bytes of a [`RoutedHeader`].
pub const ROUTED_HEADER_LEN: usize = 32;

/// Hop limit of a packet that leaves its source: a routing loop ends after so many hops.
pub const HOP_LIMIT: u8 = 32;

/// Flag of DATA: the source waits for an acknowledgement.
pub const FLAG_ACK_NOW: u8 = 0x01;

/// Flag of ACK: DATA that a relay had marked has come since the last ACK.
pub const FLAG_MARKED: u8 = 0x02;

/// Flag of DATA: its frames come after all that have lower numbers, and before all that have higher
/// ones.
pub const FLAG_FENCE: u8 = 0x04;

/// Flag of DATA: small things of flows that have nothing else under way.
pub const FLAG_URGENT: u8 = 0x08;

/// Flag of DATA: of high priority.
pub const FLAG_HIGH: u8 = 0x10;

/// Flag of DATA: of low priority. With [`FLAG_HIGH`]: of high priority. With [`FLAG_URGENT`]: only of flows
/// that send bulk, which just have nothing else under way; nobody waits for it.
pub const FLAG_LOW: u8 = 0x20;

/// Mark of a relay, in `mutable`: the packet waited there for long.
pub const MARK_DELAYED: u16 = 0x0001;

/// The rest of `mutable`: milliseconds left until nobody wants the packet any more, 0 for no such time.
/// A relay takes off what the packet has waited there, and drops it when nothing is left.
pub const TIME_LEFT_SHIFT: u32 = 1;

/// The longest time until a deadline that can be told, in milliseconds.
pub const MAX_TIME_LEFT_MS: u16 = u16::MAX >> TIME_LEFT_SHIFT;

/// The largest number of a packet.
pub const MAX_NUMBER: u64 = (1 << 48) - 1;

/// Offsets in a whole packet of the hop limit, and of the lower byte of `mutable`.
pub(crate) const HOP_LIMIT_AT: usize = PACKET_HEADER_LEN + 1;
pub(crate) const MARKS_AT: usize = PACKET_HEADER_LEN + 3;
const MUTABLE_AT: usize = PACKET_HEADER_LEN + 2;

/// The part of a routed packet that relays read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RoutedHeader {
    /// [`FLAG_ACK_NOW`] and its like; the rest is reserved, 0. Relays must not change it.
    pub flags: u8,
    /// Relays left before the packet dies.
    pub hop_limit: u8,
    /// What relays change: [`MARK_DELAYED`], and the time left ([`TIME_LEFT_SHIFT`]).
    pub mutable: u16,
    /// The node the packet is for.
    pub destination: NodeId,
    /// The node that made the packet.
    pub source: NodeId,
    /// The destination's index of the channel.
    pub channel: ChannelIndex,
    /// Of DATA: a hash of its flow, the same for all packets of a flow; relays keep flows apart by it.
    pub label: u16,
    /// Packet number in the channel, at most [`MAX_NUMBER`]; 0 for packets outside its numbering.
    pub number: u64,
}

impl RoutedHeader {
    /// The header of a fresh packet outside the numbering of its channel.
    pub fn to(destination: NodeId, source: NodeId, channel: ChannelIndex) -> Self {
        Self {
            flags: 0,
            hop_limit: HOP_LIMIT,
            mutable: 0,
            destination,
            source,
            channel,
            label: 0,
            number: 0,
        }
    }

    /// How urgent the source says that the packet is. Everything but DATA is; it is small.
    pub fn level(&self, kind: PacketType) -> Level {
        if kind != PacketType::Data || self.flags & FLAG_URGENT != 0 {
            Level::Urgent
        } else if self.flags & FLAG_HIGH != 0 {
            Level::High
        } else if self.flags & FLAG_LOW != 0 {
            Level::Low
        } else {
            Level::Normal
        }
    }

    /// Of DATA, whether somebody may wait for it: it is of high priority, or urgent and not only of flows
    /// that send bulk.
    pub fn is_pressing(&self) -> bool {
        presses(self.flags)
    }

    /// Reads the header off the front of a routed packet's body; the content is what is left.
    pub fn read(r: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(Self {
            flags: r.u8("flags")?,
            hop_limit: r.u8("hop limit")?,
            mutable: r.u16("mutable")?,
            destination: NodeId(r.u64("destination")?),
            source: NodeId(r.u64("source")?),
            channel: ChannelIndex(r.u32("channel")?),
            label: r.u16("label")?,
            number: u64::from(r.u16("number")?) << 32 | u64::from(r.u32("number")?),
        })
    }

    /// The header's bytes.
    pub fn to_bytes(self) -> [u8; ROUTED_HEADER_LEN] {
        let mut out = [0; ROUTED_HEADER_LEN];
        out[0] = self.flags;
        out[1] = self.hop_limit;
        out[2..4].copy_from_slice(&self.mutable.to_be_bytes());
        out[4..12].copy_from_slice(&self.destination.0.to_be_bytes());
        out[12..20].copy_from_slice(&self.source.0.to_be_bytes());
        out[20..24].copy_from_slice(&self.channel.0.to_be_bytes());
        let number = u64::from(self.label) << 48 | self.number & MAX_NUMBER;
        out[24..32].copy_from_slice(&number.to_be_bytes());
        out
    }

    /// A whole routed packet: packet header, this header, `content`.
    pub fn packet(self, kind: PacketType, content: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(PACKET_HEADER_LEN + ROUTED_HEADER_LEN + content.len());
        out.extend_from_slice(&packet_header(kind, ROUTED_HEADER_LEN + content.len()));
        out.extend_from_slice(&self.to_bytes());
        out.extend_from_slice(content);
        out
    }
}

/// The head of a packet, to be changed; copied only if somebody else holds it.
fn head_mut(packet: &mut Packet) -> BytesMut {
    let head = std::mem::take(&mut packet.head);
    head.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]))
}

/// Whether a whole packet has a [`RoutedHeader`].
pub fn is_routed(packet: &Packet) -> bool {
    packet.head.get(3).and_then(|code| PacketType::from_code(*code)).is_some_and(|k| k.is_routed())
}

/// Whether somebody may wait for a whole packet: for data as [`RoutedHeader::is_pressing`] says, and for
/// broadcasts. `None` of packets without messages of users.
pub fn is_pressing(packet: &Packet) -> Option<bool> {
    let head = packet.head.first_chunk::<{ PACKET_HEADER_LEN + 1 }>()?;
    match PacketType::from_code(head[3])? {
        PacketType::Data => Some(presses(head[PACKET_HEADER_LEN])),
        PacketType::Bcast => Some(true),
        _ => None,
    }
}

fn presses(flags: u8) -> bool {
    let urgent = flags & (FLAG_URGENT | FLAG_LOW) == FLAG_URGENT;
    urgent || flags & FLAG_HIGH != 0
}

/// Sets [`MARK_DELAYED`] in a whole routed packet.
pub fn mark_delayed(packet: &mut Packet) {
    let mut head = head_mut(packet);
    if let Some(marks) = head.get_mut(MARKS_AT) {
        *marks |= MARK_DELAYED as u8;
    }
    packet.head = head.freeze();
}

/// A whole routed packet has waited for so long. `false` if its deadline is over.
pub fn age(packet: &mut Packet, waited: Duration) -> bool {
    let Some(mutable) = packet.head.get(MUTABLE_AT..MUTABLE_AT + 2) else { return true };
    let mutable = u16::from_be_bytes([mutable[0], mutable[1]]);
    let left = mutable >> TIME_LEFT_SHIFT;
    let waited = u16::try_from(waited.as_millis()).unwrap_or(u16::MAX);
    if left == 0 || waited == 0 {
        return true;
    }
    if waited >= left {
        return false;
    }
    let mutable = (left - waited) << TIME_LEFT_SHIFT | mutable & MARK_DELAYED;
    let mut head = head_mut(packet);
    head[MUTABLE_AT..MUTABLE_AT + 2].copy_from_slice(&mutable.to_be_bytes());
    packet.head = head.freeze();
    true
}

/// The destination of a whole routed packet; `None` if it is none.
pub fn destination(packet: &Packet) -> Option<NodeId> {
    if !is_routed(packet) {
        return None;
    }
    let mut r = Reader::new(packet.head.get(PACKET_HEADER_LEN..)?);
    RoutedHeader::read(&mut r).ok().map(|header| header.destination)
}
