//! Who a node says it is: the payload of the link handshake.
//!
//! ```text
//!  0         8             16        20         28      29         30
//! +---------+-------------+---------+----------+-------+----------+------+-----------+---------
//! | node id | incarnation | hold ms | dial seq | flags | name len | name | addresses | address…
//! |   64    |     64      |   32    |    64    |   8   |    8     |      |     8     |
//! +---------+-------------+---------+----------+-------+----------+------+-----------+---------
//!
//! address:  +------------+---------------------+------+
//!           | family 4,6 | address, 4 or 16 B  | port |
//!           |     8      |      32 or 128      |  16  |
//!           +------------+---------------------+------+
//! ```
//!
//! Flags: bit 0 hidden, bit 1 listen; the others are 0 and refused otherwise. Both ends of a link
//! send one Identity, sealed, before anything else; at most [`MAX_IDENTITY_LEN`] bytes.

use std::net::{IpAddr, SocketAddr};

use aws_lc_rs::digest;

use super::reader::{Reader, WireError};
use crate::ids::{Incarnation, NodeId};

/// The longest name of a node, in bytes of UTF-8.
pub const MAX_NAME_LEN: usize = 255;

/// The most addresses a node advertises.
pub const MAX_ADDRESSES: usize = 8;

/// The largest encoding of an [`Identity`]: every field at its limit.
pub const MAX_IDENTITY_LEN: usize = 31 + MAX_NAME_LEN + MAX_ADDRESSES * 19;

const FLAG_HIDDEN: u8 = 0x01;
const FLAG_LISTEN: u8 = 0x02;

/// What a node says about itself when a link is set up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The node; see [`NodeId::for_name`].
    pub id: NodeId,
    /// This life of the node.
    pub incarnation: Incarnation,
    /// The full name (`a@host`), at most [`MAX_NAME_LEN`] bytes; empty for a node with no name yet.
    pub name: String,
    /// After how many milliseconds of silence this end gives the link up. The larger value of both
    /// ends is used.
    pub hold_ms: u32,
    /// The node was started with `-hidden`.
    pub hidden: bool,
    /// The node accepts links (it was not started with `-dist_listen false`).
    pub listen: bool,
    /// Where the node can be dialled, at most [`MAX_ADDRESSES`].
    pub addresses: Vec<SocketAddr>,
    /// The number of this dial of the node that dialled, 0 from the node that was dialled. Of two
    /// links dialled by the same node the one with the larger number is kept.
    pub dial_seq: u64,
}

impl Identity {
    /// The wire form, at most [`MAX_IDENTITY_LEN`] bytes. A name over its limit is sent as empty and
    /// addresses over theirs are left out: both are the caller's mistake, not worth a crash.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.name.len());
        out.extend_from_slice(&self.id.0.to_be_bytes());
        out.extend_from_slice(&self.incarnation.0.to_be_bytes());
        out.extend_from_slice(&self.hold_ms.to_be_bytes());
        out.extend_from_slice(&self.dial_seq.to_be_bytes());
        out.push(
            if self.hidden { FLAG_HIDDEN } else { 0 } | if self.listen { FLAG_LISTEN } else { 0 },
        );
        put_name(&mut out, &self.name);
        put_addresses(&mut out, &self.addresses);
        out
    }

    /// Reads the wire form.
    ///
    /// # Errors
    /// Truncated or trailing bytes, an unknown flag or address family, a name that is not UTF-8,
    /// too many addresses. The peer's fault; nothing has changed.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(bytes);
        let id = NodeId(r.u64("identity id")?);
        let incarnation = Incarnation(r.u64("identity incarnation")?);
        let hold_ms = r.u32("identity hold")?;
        let dial_seq = r.u64("identity dial seq")?;
        let flags = r.u8("identity flags")?;
        if flags & !(FLAG_HIDDEN | FLAG_LISTEN) != 0 {
            return Err(WireError::Invalid("identity flags"));
        }
        let name = read_name(&mut r)?.to_owned();
        let addresses = read_addresses(&mut r)?;
        r.finish("identity")?;
        Ok(Self {
            id,
            incarnation,
            name,
            hold_ms,
            hidden: flags & FLAG_HIDDEN != 0,
            listen: flags & FLAG_LISTEN != 0,
            addresses,
            dial_seq,
        })
    }
}

impl NodeId {
    /// The id of the node with this full name: the first 8 bytes of
    /// SHA-256(`"chatter node\0"` ‖ name), big-endian.
    pub fn for_name(name: &str) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(b"chatter node\0");
        context.update(name.as_bytes());
        Self(first_u64(context.finish().as_ref()))
    }
}

/// The first 8 bytes of a digest as a number.
pub(crate) fn first_u64(digest: &[u8]) -> u64 {
    digest.first_chunk::<8>().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

/// Appends a one-byte length and the name; an over-long name is written as empty.
pub(crate) fn put_name(out: &mut Vec<u8>, name: &str) {
    let name = if name.len() <= MAX_NAME_LEN { name } else { "" };
    out.push(name.len() as u8);
    out.extend_from_slice(name.as_bytes());
}

/// Reads what [`put_name`] wrote.
pub(crate) fn read_name<'a>(r: &mut Reader<'a>) -> Result<&'a str, WireError> {
    str::from_utf8(r.bytes8("name")?).map_err(|_| WireError::Invalid("name"))
}

/// Appends a one-byte count and the first [`MAX_ADDRESSES`] addresses.
pub(crate) fn put_addresses(out: &mut Vec<u8>, addresses: &[SocketAddr]) {
    let addresses = &addresses[..addresses.len().min(MAX_ADDRESSES)];
    out.push(addresses.len() as u8);
    for address in addresses {
        match address.ip() {
            IpAddr::V4(ip) => {
                out.push(4);
                out.extend_from_slice(&ip.octets());
            }
            IpAddr::V6(ip) => {
                out.push(6);
                out.extend_from_slice(&ip.octets());
            }
        }
        out.extend_from_slice(&address.port().to_be_bytes());
    }
}

/// Reads what [`put_addresses`] wrote.
pub(crate) fn read_addresses(r: &mut Reader<'_>) -> Result<Vec<SocketAddr>, WireError> {
    let count = r.u8("address count")? as usize;
    if count > MAX_ADDRESSES {
        return Err(WireError::TooLong { field: "addresses", len: count, limit: MAX_ADDRESSES });
    }
    let mut addresses = Vec::with_capacity(count);
    for _ in 0..count {
        let ip = match r.u8("address family")? {
            4 => IpAddr::from(r.u32("address")?.to_be_bytes()),
            6 => {
                let (high, low) = (r.u64("address")?, r.u64("address")?);
                IpAddr::from((u128::from(high) << 64 | u128::from(low)).to_be_bytes())
            }
            _ => return Err(WireError::Invalid("address family")),
        };
        addresses.push(SocketAddr::new(ip, r.u16("port")?));
    }
    Ok(addresses)
}
