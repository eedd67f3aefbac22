//! SUMMARY: which LSPs a node has, in a range of origins. Travels one hop.
//!
//! ```text
//!  0       8      16     18
//! +-------+------+-------+--------+-------------+-----+------+
//! | first | last | count | origin | incarnation | seq | hash |  the last four for each LSP in the
//! |  64   |  64  |  16   |   64   |     64      | 64  |  64  |  range, ascending by origin
//! +-------+------+-------+--------+-------------+-----+------+
//! ```
//!
//! The ranges of a whole summary follow each other, from 0 up to 2^64 - 1. Who hears one sends what it
//! has newer, or what the sender has not; what the sender has newer comes when it hears the other's.

use super::reader::{Reader, WireError};
use super::{PACKET_HEADER_LEN, PacketType, packet_header};
use crate::ids::{Incarnation, NodeId};

/// Bytes in front of the entries.
pub const SUMMARY_FIXED_LEN: usize = 18;

/// Bytes of an entry.
pub const SUMMARY_ENTRY_LEN: usize = 32;

/// The most entries in a packet; more are split over several.
pub const MAX_SUMMARY_ENTRIES: usize = 1_000;

/// Which LSP of an origin is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SummaryEntry {
    /// The node that made the LSP.
    pub origin: NodeId,
    /// Its life.
    pub incarnation: Incarnation,
    /// The LSP's number in this life.
    pub seq: u64,
    /// The LSP's [content hash](super::lsp::Lsp::content_hash).
    pub hash: u64,
}

/// The LSPs held of a range of origins.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Summary {
    /// The range begins here.
    pub first: NodeId,
    /// And ends here; `u64::MAX` in the last packet of a summary.
    pub last: NodeId,
    /// What is held in it, ascending by origin.
    pub entries: Vec<SummaryEntry>,
}

impl Summary {
    /// A whole packet, header included. At most [`MAX_SUMMARY_ENTRIES`] entries.
    pub fn packet(&self) -> Vec<u8> {
        let len = SUMMARY_FIXED_LEN + self.entries.len() * SUMMARY_ENTRY_LEN;
        let mut out = Vec::with_capacity(PACKET_HEADER_LEN + len);
        out.extend_from_slice(&packet_header(PacketType::Summary, len));
        out.extend_from_slice(&self.first.0.to_be_bytes());
        out.extend_from_slice(&self.last.0.to_be_bytes());
        out.extend_from_slice(&(self.entries.len() as u16).to_be_bytes());
        for entry in &self.entries {
            for field in [entry.origin.0, entry.incarnation.0, entry.seq, entry.hash] {
                out.extend_from_slice(&field.to_be_bytes());
            }
        }
        out
    }

    /// Reads a body.
    ///
    /// # Errors
    /// Truncated or trailing bytes; too many entries; a range that ends before it begins; entries out of order, repeated or outside
    /// the range. The peer's fault; nothing has changed.
    pub fn decode(body: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(body);
        let first = NodeId(r.u64("summary first")?);
        let last = NodeId(r.u64("summary last")?);
        if last < first {
            return Err(WireError::Invalid("summary range"));
        }
        let count = usize::from(r.u16("summary count")?);
        if count > MAX_SUMMARY_ENTRIES {
            let limit = MAX_SUMMARY_ENTRIES;
            return Err(WireError::TooLong { field: "summary", len: count, limit });
        }
        if r.rest().len() < count * SUMMARY_ENTRY_LEN {
            return Err(WireError::Truncated("summary entries"));
        }
        let mut entries: Vec<SummaryEntry> = Vec::with_capacity(count);
        for _ in 0..count {
            let entry = SummaryEntry {
                origin: NodeId(r.u64("summary origin")?),
                incarnation: Incarnation(r.u64("summary incarnation")?),
                seq: r.u64("summary seq")?,
                hash: r.u64("summary hash")?,
            };
            let after = entries.last().is_none_or(|before| before.origin < entry.origin);
            if !after || entry.origin < first || entry.origin > last {
                return Err(WireError::Invalid("summary order"));
            }
            entries.push(entry);
        }
        r.finish("summary")?;
        Ok(Self { first, last, entries })
    }
}
