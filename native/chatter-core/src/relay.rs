//! What a node does with a routed packet: take it, pass it on, or refuse it; and the answers to packets
//! that nobody takes.

use std::time::{Duration, Instant};

use crate::ids::{ChannelIndex, NodeId};
use crate::sched::Lane;
use crate::wire::cast::CastAck;
use crate::wire::data::{Ack, DropReason, Open, Opened, Reset, ResetReason, Unreachable};
use crate::wire::packet::Packet as OutPacket;
use crate::wire::reader::{Reader, WireError};
use crate::wire::routed::{HOP_LIMIT_AT, RoutedHeader};
use crate::wire::{PACKET_HEADER_LEN, Packet, PacketType, packet_header};

/// RESET and UNREACHABLE answers per second: a flood of strays must not be answered by another.
const COMPLAINTS_PER_S: u32 = 100;
const COMPLAINTS_EVERY: Duration = Duration::from_secs(1);

/// A routed packet, read as far as its place needs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Routed<'a> {
    /// For this node.
    Mine(RoutedHeader, Content<'a>),
    /// For another node: to be queued as [`forward`] makes it, in its [`lane`], or to be
    /// refused with `NoRoute`.
    Transit(RoutedHeader),
    /// For another node, which it will not reach.
    Refused(RoutedHeader, DropReason),
}

/// What a packet for this node says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Content<'a> {
    /// Items of the packet of the header's number.
    Data(&'a [u8]),
    /// What has arrived, and credit.
    Ack(Ack),
    /// Asks for a channel.
    Open(Open),
    /// Grants one.
    Opened(Opened),
    /// Ends one.
    Reset(Reset),
    /// Confirms an end.
    ResetAck(Reset),
    /// A packet of this node was dropped.
    Unreachable(Unreachable),
    /// What has arrived of what this node has sent by multicast.
    CastAck(CastAck),
    /// Not a routed packet.
    None,
}

/// Reads a routed packet that has come to `me`.
pub fn read(packet: Packet<'_>, me: NodeId) -> Result<Routed<'_>, WireError> {
    let mut r = Reader::new(packet.body);
    let header = RoutedHeader::read(&mut r)?;
    if header.destination == me {
        return Ok(Routed::Mine(header, Content::decode(packet.kind, r.rest())?));
    }
    Ok(if header.hop_limit <= 1 {
        Routed::Refused(header, DropReason::HopLimit)
    } else {
        Routed::Transit(header)
    })
}

impl<'a> Content<'a> {
    fn decode(kind: PacketType, content: &'a [u8]) -> Result<Self, WireError> {
        Ok(match kind {
            PacketType::Data => Self::Data(content),
            PacketType::Ack => Self::Ack(Ack::decode(content)?),
            PacketType::Open => Self::Open(Open::decode(content)?),
            PacketType::Opened => Self::Opened(Opened::decode(content)?),
            PacketType::Reset => Self::Reset(Reset::decode(content)?),
            PacketType::ResetAck => Self::ResetAck(Reset::decode(content)?),
            PacketType::Unreachable => Self::Unreachable(Unreachable::decode(content)?),
            PacketType::CastAck => Self::CastAck(CastAck::decode(content)?),
            PacketType::Hello
            | PacketType::Lsp
            | PacketType::Summary
            | PacketType::Bcast
            | PacketType::BcastAck
            | PacketType::Bye => Self::None,
        })
    }
}

/// Where a packet that is relayed is queued.
pub fn lane(kind: PacketType, header: &RoutedHeader) -> Lane {
    let pair = header.source.0.rotate_left(17) ^ header.destination.0 ^ u64::from(header.channel.0);
    Lane { pair, label: header.label, level: header.level(kind) }
}

/// Which of equally short ways a packet takes: the same for all packets of a flow.
pub fn path_hash(lane: &Lane) -> u64 {
    (lane.pair ^ u64::from(lane.label)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32
}

/// The packet as it goes on: one hop less is left to it.
pub fn forward(packet: Packet<'_>, header: &RoutedHeader) -> OutPacket {
    let mut copy = Vec::with_capacity(PACKET_HEADER_LEN + packet.body.len());
    copy.extend_from_slice(&packet_header(packet.kind, packet.body.len()));
    copy.extend_from_slice(packet.body);
    copy[HOP_LIMIT_AT] = header.hop_limit.saturating_sub(1);
    OutPacket::from(copy)
}

/// Bounds the answers to packets that nobody takes, in number and time.
#[derive(Debug, Default)]
pub struct Complaints {
    since: Option<Instant>,
    sent: u32,
}

impl Complaints {
    /// Whether one more may be sent this second. Counts as sent.
    pub fn may_complain(&mut self, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= COMPLAINTS_EVERY) {
            *self = Self { since: Some(now), sent: 0 };
        }
        self.sent += 1;
        self.sent <= COMPLAINTS_PER_S
    }
}

/// Tells the source of a packet that it was dropped. Subject to [`Complaints`]. `None` for what is
/// itself such a notice: answers to answers would never end.
pub fn unreachable(
    me: NodeId,
    kind: PacketType,
    dropped: &RoutedHeader,
    reason: DropReason,
) -> Option<OutPacket> {
    if kind == PacketType::Unreachable {
        return None;
    }
    let content = Unreachable { reason, quoted: *dropped }.encode();
    Some(answer(me, dropped, PacketType::Unreachable, ChannelIndex::UNKNOWN, &content))
}

/// Tells the source of data for a channel that is not there that it is over. Subject to [`Complaints`].
pub fn unknown_channel(me: NodeId, data: &RoutedHeader) -> OutPacket {
    let (from_index, to_index) = (data.channel, ChannelIndex::UNKNOWN);
    let reset = Reset { from_index, to_index, last: 0, reason: ResetReason::Unknown };
    answer(me, data, PacketType::Reset, to_index, &reset.encode())
}

/// Refuses an OPEN, or ends a channel that was granted to somebody who does not know it: `to_index` is
/// the other end's index.
pub fn refuse(
    me: NodeId,
    asked: &RoutedHeader,
    to_index: ChannelIndex,
    reason: ResetReason,
) -> OutPacket {
    let reset = Reset { from_index: ChannelIndex::UNKNOWN, to_index, last: 0, reason };
    answer(me, asked, PacketType::Reset, to_index, &reset.encode())
}

/// Confirms the end of a channel that is not there any more.
pub fn confirm_reset(me: NodeId, header: &RoutedHeader, reset: &Reset) -> OutPacket {
    let content = Reset {
        from_index: reset.to_index,
        to_index: reset.from_index,
        last: 0,
        reason: reset.reason,
    };
    answer(me, header, PacketType::ResetAck, reset.from_index, &content.encode())
}

fn answer(
    me: NodeId,
    header: &RoutedHeader,
    kind: PacketType,
    to: ChannelIndex,
    content: &[u8],
) -> OutPacket {
    OutPacket::from(RoutedHeader::to(header.source, me, to).packet(kind, content))
}
