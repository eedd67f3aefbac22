//! Bytes to values and back. No state, no look-ups, no logging.
//!
//! A record (see [`crate::crypto::record`]) opens to a sequence of packets. All integers are
//! big-endian.
//!
//! ```text
//!  0        3      4
//! +--------+------+----------------+
//! | len:24 | type | body (len)     |   packet
//! +--------+------+----------------+
//! ```

pub mod bcast;
pub mod beacon;
pub mod cast;
pub mod data;
pub mod datagram;
pub mod hello;
pub mod identity;
pub mod lsp;
pub mod packet;
pub mod reader;
pub mod routed;
pub mod summary;

use reader::{Reader, WireError};

/// Bytes of a packet in front of its body.
pub const PACKET_HEADER_LEN: usize = 4;

/// The largest body of a packet. A relay or receiver refuses more, so no peer can make it hold more.
pub const MAX_PACKET_BODY: usize = 65_000;

/// What a packet is. The code points are part of the wire format (docs/wire-format.md).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum PacketType {
    /// Link probe, one hop.
    Hello = 0x01,
    /// Link-state packet, one hop, flooded.
    Lsp = 0x02,
    /// Which LSPs a neighbour has, one hop.
    Summary = 0x03,
    /// Routed: pieces of frames of a channel.
    Data = 0x10,
    /// Routed: acknowledgement and credit of a channel.
    Ack = 0x11,
    /// Routed: asks for a channel.
    Open = 0x12,
    /// Routed: grants a channel.
    Opened = 0x13,
    /// Routed: ends a channel.
    Reset = 0x14,
    /// Routed: confirms the end of a channel.
    ResetAck = 0x15,
    /// Routed: a relay could not pass a packet on.
    Unreachable = 0x16,
    /// Routed: which broadcasts have arrived by multicast.
    CastAck = 0x17,
    /// Messages to many nodes, one hop.
    Bcast = 0x20,
    /// What became of BCASTs, one hop.
    BcastAck = 0x21,
    /// The link is being closed on purpose, one hop.
    Bye = 0x30,
}

impl PacketType {
    /// The type of a code point; `None` for one this version does not know.
    pub fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0x01 => Self::Hello,
            0x02 => Self::Lsp,
            0x03 => Self::Summary,
            0x10 => Self::Data,
            0x11 => Self::Ack,
            0x12 => Self::Open,
            0x13 => Self::Opened,
            0x14 => Self::Reset,
            0x15 => Self::ResetAck,
            0x16 => Self::Unreachable,
            0x17 => Self::CastAck,
            0x20 => Self::Bcast,
            0x21 => Self::BcastAck,
            0x30 => Self::Bye,
            _ => return None,
        })
    }

    /// Whether packets of this type carry a [`routed::RoutedHeader`] and may travel over relays.
    pub fn is_routed(self) -> bool {
        (self as u8) & 0xf0 == 0x10
    }
}

/// One packet inside an opened record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet<'a> {
    /// What it is.
    pub kind: PacketType,
    /// Everything after the packet header.
    pub body: &'a [u8],
}

/// Splits the first packet off `record`. `Ok(None)` at the end.
///
/// A type that this version does not know is skipped, so that later versions can add some.
pub fn next_packet<'a>(record: &mut &'a [u8]) -> Result<Option<Packet<'a>>, WireError> {
    loop {
        if record.is_empty() {
            return Ok(None);
        }
        let mut r = Reader::new(record);
        let len = r.u24("packet length")? as usize;
        let code = r.u8("packet type")?;
        if len > MAX_PACKET_BODY {
            return Err(WireError::TooLong { field: "packet", len, limit: MAX_PACKET_BODY });
        }
        let body = r.take(len, "packet body")?;
        *record = r.rest();
        if let Some(kind) = PacketType::from_code(code) {
            return Ok(Some(Packet { kind, body }));
        }
    }
}

/// Appends a packet header for a body of `len` bytes.
///
/// # Panics
/// If `len` is over [`MAX_PACKET_BODY`]: the writers of this crate cut bodies long before.
pub fn put_packet_header(out: &mut Vec<u8>, kind: PacketType, len: usize) {
    assert!(len <= MAX_PACKET_BODY, "BUG! packet body of {len} bytes");
    out.extend_from_slice(&packet_header(kind, len));
}

/// The four bytes of a packet header; `len` must be at most [`MAX_PACKET_BODY`].
pub fn packet_header(kind: PacketType, len: usize) -> [u8; PACKET_HEADER_LEN] {
    let len = (len as u32).to_be_bytes();
    [len[1], len[2], len[3], kind as u8]
}
