//! Datagrams: what travels by UDP multicast, at most [`MAX_DATAGRAM`] bytes each.
//!
//! ```text
//!  0       4         5       6      8        16            24        32      40
//! +-------+---------+-------+------+--------+-------------+---------+-------+------------+----------+
//! | magic | version | flags | zero | sender | incarnation | counter | check | ciphertext | tag (16) |
//! |  32   |    8    |   8   |  16  |   64   |     64      |   64    |  64   |            |          |
//! +-------+---------+-------+------+--------+-------------+---------+-------+------------+----------+
//! ```
//!
//! [`crate::crypto::datagram`] makes and opens them. The plaintext is one or more messages:
//!
//! ```text
//! +------+--------+------+----
//! | kind | len:16 | body | …        kinds: see [`kind`]; unknown ones are skipped
//! +------+--------+------+----
//! ```

use super::reader::{Reader, WireError};
use crate::ids::{Incarnation, NodeId};

/// The largest datagram: with the headers of IPv6 and UDP it fits every Ethernet and most tunnels.
pub const MAX_DATAGRAM: usize = 1_400;

/// Bytes in front of the ciphertext.
pub const DATAGRAM_HEADER_LEN: usize = 40;

/// Bytes of the header that the check covers.
pub const CHECKED_LEN: usize = 32;

/// Bytes of the tag behind the ciphertext.
pub const DATAGRAM_TAG_LEN: usize = 16;

/// The most plaintext of one datagram.
pub const MAX_DATAGRAM_PLAIN: usize = MAX_DATAGRAM - DATAGRAM_HEADER_LEN - DATAGRAM_TAG_LEN;

/// Bytes of a message in front of its body.
pub const MESSAGE_HEADER_LEN: usize = 3;

/// The largest body of a message.
pub const MAX_MESSAGE_BODY: usize = MAX_DATAGRAM_PLAIN - MESSAGE_HEADER_LEN;

/// What every datagram begins with.
pub const DATAGRAM_MAGIC: [u8; 4] = *b"CHTD";

/// The version of the datagram format; others are dropped.
pub const DATAGRAM_VERSION: u8 = 1;

/// What a message is.
pub mod kind {
    /// A node tells of itself ([`Beacon`](crate::wire::beacon::Beacon)).
    pub const BEACON: u8 = 0x01;
    /// Messages of broadcasts ([`Cast`](crate::wire::cast::Cast)).
    pub const CAST: u8 = 0x10;
    /// Asks for some of them again ([`Nak`](crate::wire::cast::Nak)).
    pub const NAK: u8 = 0x11;
    /// How far messages were sent ([`CastHello`](crate::wire::cast::CastHello)).
    pub const CAST_HELLO: u8 = 0x12;
}

/// The header of a datagram, the check apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DatagramHeader {
    /// Who sent it.
    pub sender: NodeId,
    /// The sender's life.
    pub incarnation: Incarnation,
    /// Counts the datagrams of that life, from 1.
    pub counter: u64,
}

impl DatagramHeader {
    /// The bytes that the check covers.
    pub fn encode(&self) -> [u8; CHECKED_LEN] {
        let mut out = [0; CHECKED_LEN];
        out[..4].copy_from_slice(&DATAGRAM_MAGIC);
        out[4] = DATAGRAM_VERSION;
        out[8..16].copy_from_slice(&self.sender.0.to_be_bytes());
        out[16..24].copy_from_slice(&self.incarnation.0.to_be_bytes());
        out[24..32].copy_from_slice(&self.counter.to_be_bytes());
        out
    }

    /// Reads the bytes in front of the check.
    ///
    /// # Errors
    /// Too short, another magic, version or flags.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(bytes);
        if r.take(4, "datagram magic")? != DATAGRAM_MAGIC {
            return Err(WireError::Invalid("datagram magic"));
        }
        if r.u8("datagram version")? != DATAGRAM_VERSION {
            return Err(WireError::Invalid("datagram version"));
        }
        if r.u24("datagram flags")? != 0 {
            return Err(WireError::Invalid("datagram flags"));
        }
        Ok(Self {
            sender: NodeId(r.u64("datagram sender")?),
            incarnation: Incarnation(r.u64("datagram incarnation")?),
            counter: r.u64("datagram counter")?,
        })
    }
}

/// One message inside an opened datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message<'a> {
    /// What it is, one of [`kind`] or a later one.
    pub kind: u8,
    /// Everything after the message header.
    pub body: &'a [u8],
}

/// Appends a message, if it fits what is left of [`MAX_DATAGRAM_PLAIN`]; whether it did.
pub fn put_message(plain: &mut Vec<u8>, kind: u8, body: &[u8]) -> bool {
    if plain.len() + MESSAGE_HEADER_LEN + body.len() > MAX_DATAGRAM_PLAIN {
        return false;
    }
    plain.push(kind);
    plain.extend_from_slice(&(body.len() as u16).to_be_bytes());
    plain.extend_from_slice(body);
    true
}

/// Splits the first message off the plaintext of a datagram. `Ok(None)` at the end.
///
/// # Errors
/// The bytes end inside a message. What was split off before is whole.
pub fn next_message<'a>(plain: &mut &'a [u8]) -> Result<Option<Message<'a>>, WireError> {
    if plain.is_empty() {
        return Ok(None);
    }
    let mut r = Reader::new(plain);
    let kind = r.u8("message kind")?;
    let len = r.u16("message length")? as usize;
    let body = r.take(len, "message body")?;
    *plain = r.rest();
    Ok(Some(Message { kind, body }))
}
