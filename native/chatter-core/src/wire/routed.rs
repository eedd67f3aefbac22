//! The header of every packet that may travel over relays.
//!
//! ```text
//!  0       1           2         4             12       20         24       32
//! +-------+-----------+---------+-------------+--------+----------+--------+---------
//! | flags | hop limit | mutable | destination | source | channel  | number | content
//! |   8   |     8     |   16    |     64      |   64   |    32    |   64   |
//! +-------+-----------+---------+-------------+--------+----------+--------+---------
//! ```
//!
//! A relay reads the destination, counts the hop limit down, may set a mark, and passes the rest on
//! untouched.

use bytes::BytesMut;

use super::packet::Packet;
use super::reader::{Reader, WireError};
use super::{PACKET_HEADER_LEN, PacketType, packet_header};
use crate::ids::{ChannelIndex, NodeId};

/// Bytes of a [`RoutedHeader`].
pub const ROUTED_HEADER_LEN: usize = 32;

/// Hop limit of a packet that leaves its source: a routing loop ends after so many hops.
pub const HOP_LIMIT: u8 = 32;

/// Flag of DATA: the source waits for an acknowledgement.
pub const FLAG_ACK_NOW: u8 = 0x01;

/// Flag of ACK: DATA that a relay had marked has come since the last ACK.
pub const FLAG_MARKED: u8 = 0x02;

/// Mark of a relay, in `mutable`: the packet waited there for long.
pub const MARK_DELAYED: u16 = 0x0001;

/// Offsets in a whole packet of the flags, the hop limit, and the lower byte of `mutable`.
pub(crate) const FLAGS_AT: usize = PACKET_HEADER_LEN;
pub(crate) const HOP_LIMIT_AT: usize = PACKET_HEADER_LEN + 1;
pub(crate) const MARKS_AT: usize = PACKET_HEADER_LEN + 3;

/// The part of a routed packet that relays read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RoutedHeader {
    /// [`FLAG_ACK_NOW`], [`FLAG_MARKED`]; the rest is reserved, 0. Relays must not change it.
    pub flags: u8,
    /// Relays left before the packet dies.
    pub hop_limit: u8,
    /// What relays mark: [`MARK_DELAYED`]; the rest is reserved, 0.
    pub mutable: u16,
    /// The node the packet is for.
    pub destination: NodeId,
    /// The node that made the packet.
    pub source: NodeId,
    /// The destination's index of the channel.
    pub channel: ChannelIndex,
    /// Packet number in the channel; 0 for packets outside its numbering.
    pub number: u64,
}

impl RoutedHeader {
    /// The header of a fresh packet outside the numbering of its channel.
    pub fn to(destination: NodeId, source: NodeId, channel: ChannelIndex) -> Self {
        Self { flags: 0, hop_limit: HOP_LIMIT, mutable: 0, destination, source, channel, number: 0 }
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
            number: r.u64("number")?,
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
        out[24..32].copy_from_slice(&self.number.to_be_bytes());
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

/// Sets [`MARK_DELAYED`] in a whole routed packet.
pub fn mark_delayed(packet: &mut Packet) {
    let head = std::mem::take(&mut packet.head);
    let mut head = head.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
    if let Some(marks) = head.get_mut(MARKS_AT) {
        *marks |= MARK_DELAYED as u8;
    }
    packet.head = head.freeze();
}

/// The destination of a whole routed packet; `None` if it is none.
pub fn destination(packet: &Packet) -> Option<NodeId> {
    let mut r = Reader::new(packet.head.get(PACKET_HEADER_LEN..)?);
    RoutedHeader::read(&mut r).ok().map(|header| header.destination)
}
