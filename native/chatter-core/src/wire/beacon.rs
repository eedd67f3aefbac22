//! Beacons: a node tells the network segment that it is there, and whom it hears.
//!
//! ```text
//!  0       1      3
//! +-------+------+----------+------+-----------+---------+------------+----------------------
//! | flags | port | name len | name | addresses | address…| seen count | id, incarnation …
//! |   8   |  16  |    8     |      |     8     |         |     8      | 64, 64
//! +-------+------+----------+------+-----------+---------+------------+----------------------
//! ```
//!
//! Name and addresses are as in an Identity (wire/identity.rs). The flags are 0, and ignored. Port 0:
//! the node accepts no links. Who it is and in which life stands in the datagram's header.

use std::net::SocketAddr;

use super::datagram::MAX_MESSAGE_BODY;
use super::identity::{MAX_NAME_LEN, put_addresses, put_name, read_addresses, read_name};
use super::reader::{Reader, WireError};
use crate::ids::{Incarnation, NodeId};

/// The most entries of a seen list: what a datagram has room for beside the longest name and all
/// addresses.
pub const MAX_SEEN: usize = (MAX_MESSAGE_BODY - 6 - MAX_NAME_LEN - 8 * 19) / SEEN_LEN;

const SEEN_LEN: usize = 16;

/// What a beacon says; the sender and its life stand in the header of the datagram.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Beacon {
    /// The full name; empty for a node that has none yet.
    pub name: String,
    /// The port at which it accepts links, 0 if it does not.
    pub port: u16,
    /// Where the node can be dialled, the best first, at most
    /// [`MAX_ADDRESSES`](super::identity::MAX_ADDRESSES). May be empty where the address that the
    /// datagram came from says it.
    pub addresses: Vec<SocketAddr>,
    /// The lives whose datagrams the sender has heard lately, or a part of them, at most [`MAX_SEEN`].
    pub seen: Vec<(NodeId, Incarnation)>,
}

impl Beacon {
    /// The wire form; what is over a limit is left out.
    pub fn encode(&self) -> Vec<u8> {
        let seen = &self.seen[..self.seen.len().min(MAX_SEEN)];
        let mut out = Vec::with_capacity(64 + self.name.len() + seen.len() * SEEN_LEN);
        out.push(0);
        out.extend_from_slice(&self.port.to_be_bytes());
        put_name(&mut out, &self.name);
        put_addresses(&mut out, &self.addresses);
        out.push(seen.len() as u8);
        for (id, incarnation) in seen {
            out.extend_from_slice(&id.0.to_be_bytes());
            out.extend_from_slice(&incarnation.0.to_be_bytes());
        }
        out
    }

    /// Reads the wire form.
    ///
    /// # Errors
    /// Truncated or trailing bytes, an unknown address family, a name that is not UTF-8, too much of
    /// anything.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(bytes);
        r.u8("beacon flags")?;
        let port = r.u16("beacon port")?;
        let name = read_name(&mut r)?.to_owned();
        let addresses = read_addresses(&mut r)?;
        let count = r.u8("seen count")? as usize;
        if count > MAX_SEEN {
            return Err(WireError::TooLong { field: "seen", len: count, limit: MAX_SEEN });
        }
        let mut seen = Vec::with_capacity(count);
        for _ in 0..count {
            seen.push((NodeId(r.u64("seen id")?), Incarnation(r.u64("seen incarnation")?)));
        }
        r.finish("beacon")?;
        Ok(Self { name, port, addresses, seen })
    }
}
