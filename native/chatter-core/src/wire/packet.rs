//! A packet on its way out.

use bytes::Bytes;

/// The bytes of a whole packet, in up to two parts: a large payload stays where it is, so that only
/// sealing reads it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Packet {
    /// Packet header, and what follows it.
    pub head: Bytes,
    /// What follows the head; empty for most packets.
    pub body: Bytes,
}

impl Packet {
    /// Bytes of both parts.
    pub fn len(&self) -> usize {
        self.head.len() + self.body.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Both parts in one.
    pub fn to_vec(&self) -> Vec<u8> {
        [&self.head[..], &self.body[..]].concat()
    }
}

impl From<Vec<u8>> for Packet {
    fn from(bytes: Vec<u8>) -> Self {
        Self { head: bytes.into(), body: Bytes::new() }
    }
}
