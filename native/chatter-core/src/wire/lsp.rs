//! LSP: a node's statement of its links, flooded to every node.
//!
//! ```text
//!  0         1       2            4            8        16            24    32
//! +---------+-------+------------+------------+--------+-------------+-----+----------------
//! | version | flags | neighbours | lifetime s | origin | incarnation | seq | name, addresses
//! |  8 (1)  |   8   |     16     |     32     |   64   |     64      | 64  |
//! +---------+-------+------------+------------+--------+-------------+-----+----------------
//!
//! name, addresses: +----------+------+-----------+----------+    as in an Identity
//!                  | name len | name | addresses | address… |    (wire/identity.rs)
//!                  |    8     |      |     8     |          |
//!                  +----------+------+-----------+----------+
//! then, so often as "neighbours" says, in ascending order of id, no id twice, never the origin:
//!                  +----+--------+-------------+
//!                  | id | metric | incarnation |    metric ≥ 1
//!                  | 64 |   32   |     64      |
//!                  +----+--------+-------------+
//! ```
//!
//! Flags: bit 0 OVERLOAD (relay through the origin only where there is no other way), bit 1 PURGE (the origin has stopped; no
//! neighbours), bit 2 SILENT (the origin's user shows no life); the others are 0 and refused otherwise.
//! The lifetime is what is left of it: every node counts it down. It is not part of the
//! [content hash](Lsp::content_hash), all the rest is.

use std::net::SocketAddr;
use std::sync::Arc;

use aws_lc_rs::digest;

use super::PACKET_HEADER_LEN;
use super::identity::{
    MAX_ADDRESSES, MAX_NAME_LEN, first_u64, put_addresses, put_name, read_addresses, read_name,
};
use super::reader::{Reader, WireError};
use super::{PacketType, packet_header};
use crate::ids::{Incarnation, NodeId};

/// The version of the LSP format; others are refused.
pub const LSP_VERSION: u8 = 1;

/// The most neighbours in one LSP.
pub const MAX_NEIGHBOURS: usize = 1024;

/// Bytes in front of the name.
pub const LSP_FIXED_LEN: usize = 32;

/// The largest LSP body: every field at its limit.
pub const MAX_LSP_LEN: usize =
    LSP_FIXED_LEN + 2 + MAX_NAME_LEN + MAX_ADDRESSES * 19 + MAX_NEIGHBOURS * NEIGHBOUR_LEN;

const NEIGHBOUR_LEN: usize = 20;
const FLAG_OVERLOAD: u8 = 0x01;
const FLAG_PURGE: u8 = 0x02;
const FLAG_SILENT: u8 = 0x04;

/// Bytes 4 to 8 are the lifetime.
const LIFETIME_AT: usize = 4;

/// One link in an LSP, as seen from the origin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Neighbour {
    /// The node at the other end.
    pub id: NodeId,
    /// The cost of sending over the link; at least 1.
    pub metric: u32,
    /// The life of the node at the other end. A link counts only between the lives that have it: when a
    /// node is in a new life, what its former life said of its links does not count.
    pub incarnation: Incarnation,
}

/// A node's statement of its links.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lsp {
    /// Relay through the origin only where there is no other way.
    pub overload: bool,
    /// The origin has stopped; `neighbours` is empty.
    pub purge: bool,
    /// The origin relays as ever, but whoever uses it shows no life.
    pub silent: bool,
    /// Seconds that the LSP is still good for.
    pub lifetime_s: u32,
    /// The node that made it.
    pub origin: NodeId,
    /// The life of the origin that made it.
    pub incarnation: Incarnation,
    /// Counts the origin's LSPs in this life, from 1.
    pub seq: u64,
    /// The origin's full name, at most [`MAX_NAME_LEN`] bytes; may be empty.
    pub name: Arc<str>,
    /// Where the origin can be dialled, at most [`MAX_ADDRESSES`].
    pub addresses: Vec<SocketAddr>,
    /// The origin's links, ascending by id, at most [`MAX_NEIGHBOURS`].
    pub neighbours: Vec<Neighbour>,
}

impl Lsp {
    /// The body's bytes. What is over a limit is left out (see [`crate::wire::identity::Identity`]).
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.estimated_len());
        self.put(&mut out);
        out
    }

    /// A whole packet, header included, that says `lifetime_s` instead of the LSP's own.
    pub fn packet(&self, lifetime_s: u32) -> Vec<u8> {
        let mut out = Vec::with_capacity(PACKET_HEADER_LEN + self.estimated_len());
        out.extend_from_slice(&packet_header(PacketType::Lsp, 0));
        self.put(&mut out);
        let header = packet_header(PacketType::Lsp, out.len() - PACKET_HEADER_LEN);
        out[..PACKET_HEADER_LEN].copy_from_slice(&header);
        let lifetime_at = PACKET_HEADER_LEN + LIFETIME_AT;
        out[lifetime_at..lifetime_at + 4].copy_from_slice(&lifetime_s.to_be_bytes());
        out
    }

    /// Identifies everything in the LSP but the lifetime: the first 8 bytes of SHA-256 over the body
    /// with a lifetime of 0, big-endian.
    pub fn content_hash(&self) -> u64 {
        let mut bytes = self.encode();
        bytes[LIFETIME_AT..LIFETIME_AT + 4].fill(0);
        first_u64(digest::digest(&digest::SHA256, &bytes).as_ref())
    }

    /// Reads a body.
    ///
    /// # Errors
    /// Truncated or trailing bytes; an unknown version, flag or address family; a name that is not
    /// UTF-8; a seq of 0; too many addresses or neighbours; neighbours out of order, repeated, equal to
    /// the origin, with a metric of 0, or in a PURGE. The peer's fault; nothing has changed.
    pub fn decode(body: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(body);
        if r.u8("lsp version")? != LSP_VERSION {
            return Err(WireError::Invalid("lsp version"));
        }
        let flags = r.u8("lsp flags")?;
        if flags & !(FLAG_OVERLOAD | FLAG_PURGE | FLAG_SILENT) != 0 {
            return Err(WireError::Invalid("lsp flags"));
        }
        let purge = flags & FLAG_PURGE != 0;
        let count = r.u16("neighbour count")? as usize;
        let limit = if purge { 0 } else { MAX_NEIGHBOURS };
        if count > limit {
            return Err(WireError::TooLong { field: "neighbours", len: count, limit });
        }
        let lifetime_s = r.u32("lsp lifetime")?;
        let origin = NodeId(r.u64("lsp origin")?);
        let incarnation = Incarnation(r.u64("lsp incarnation")?);
        let seq = r.u64("lsp seq")?;
        if seq == 0 {
            return Err(WireError::Invalid("lsp seq"));
        }
        let name = Arc::from(read_name(&mut r)?);
        let addresses = read_addresses(&mut r)?;
        let neighbours = read_neighbours(&mut r, count, origin)?;
        r.finish("lsp")?;
        Ok(Self {
            overload: flags & FLAG_OVERLOAD != 0,
            purge,
            silent: flags & FLAG_SILENT != 0,
            lifetime_s,
            origin,
            incarnation,
            seq,
            name,
            addresses,
            neighbours,
        })
    }

    fn estimated_len(&self) -> usize {
        LSP_FIXED_LEN
            + 2
            + MAX_NAME_LEN.min(self.name.len())
            + self.addresses.len() * 19
            + self.neighbours.len() * NEIGHBOUR_LEN
    }

    fn put(&self, out: &mut Vec<u8>) {
        let neighbours = &self.neighbours[..self.neighbours.len().min(MAX_NEIGHBOURS)];
        out.push(LSP_VERSION);
        let flag = |set, flag| if set { flag } else { 0 };
        let overload = flag(self.overload, FLAG_OVERLOAD);
        out.push(overload | flag(self.purge, FLAG_PURGE) | flag(self.silent, FLAG_SILENT));
        out.extend_from_slice(&(neighbours.len() as u16).to_be_bytes());
        out.extend_from_slice(&self.lifetime_s.to_be_bytes());
        out.extend_from_slice(&self.origin.0.to_be_bytes());
        out.extend_from_slice(&self.incarnation.0.to_be_bytes());
        out.extend_from_slice(&self.seq.to_be_bytes());
        put_name(out, &self.name);
        put_addresses(out, &self.addresses);
        for neighbour in neighbours {
            out.extend_from_slice(&neighbour.id.0.to_be_bytes());
            out.extend_from_slice(&neighbour.metric.to_be_bytes());
            out.extend_from_slice(&neighbour.incarnation.0.to_be_bytes());
        }
    }
}

fn read_neighbours(
    r: &mut Reader<'_>,
    count: usize,
    origin: NodeId,
) -> Result<Vec<Neighbour>, WireError> {
    if r.rest().len() < count * NEIGHBOUR_LEN {
        return Err(WireError::Truncated("neighbours"));
    }
    let mut neighbours: Vec<Neighbour> = Vec::with_capacity(count);
    for _ in 0..count {
        let id = NodeId(r.u64("neighbour id")?);
        let metric = r.u32("neighbour metric")?;
        let incarnation = Incarnation(r.u64("neighbour incarnation")?);
        if id == origin || neighbours.last().is_some_and(|last| last.id >= id) {
            return Err(WireError::Invalid("neighbour order"));
        }
        if metric == 0 {
            return Err(WireError::Invalid("neighbour metric"));
        }
        neighbours.push(Neighbour { id, metric, incarnation });
    }
    Ok(neighbours)
}
