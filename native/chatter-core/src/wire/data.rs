//! Contents of the packets of a channel: DATA, ACK, OPEN, OPENED, RESET, RESET_ACK, UNREACHABLE.
//!
//! ```text
//! DATA   fences:32 | item*          item: | kind:8 | len:24 | body (len) |
//!        FRAME      body = one whole frame of the VM
//!        FIRST      body = | total:32 | first part of a frame of `total` bytes |
//!        MORE       body = the next part; the frame ends when `total` bytes are there
//!        HANDSHAKE  body = one message of the distribution handshake
//!        ACK        body = | next:64 | credit:64 |
//!        FLOW       body = | flow:32 | sequence:32 |
//!        END        body = nothing
//!        VOID       body = | cost:32 |
//!        LOST       body = | cost:32 | sender:64 |
//! ACK    | next:64 | credit:64 | n:8 | n * ( from:64 | to:64 ) |
//! OPEN   | index:32 | epoch:64 | incarnation:64 | window:64 | kind:8 | name len:8 | name |
//! OPENED | index:32 | epoch:64 | incarnation:64 | window:64 | epoch of the OPEN:64 |
//! RESET, RESET_ACK | index of the sender:32 | index at the receiver:32 | last number:64 | reason:8 |
//! UNREACHABLE | reason:8 | routed header of the packet that could not be passed on (32 bytes) |
//! ```

use super::reader::{Reader, WireError};
use crate::ids::{ChannelIndex, Incarnation};

/// Bytes in front of an item's body.
pub const ITEM_HEADER_LEN: usize = 4;

/// Bytes of the frame's total length at the head of a FIRST item.
pub const TOTAL_LEN: usize = 4;

/// The most ranges that an ACK carries; what lies beyond is told by later ones.
pub const MAX_ACK_RANGES: usize = 32;

/// Code points of items.
pub mod item {
    /// One whole frame.
    pub const FRAME: u8 = 1;
    /// The first part of a frame, behind its total length.
    pub const FIRST: u8 = 2;
    /// A further part of a frame.
    pub const MORE: u8 = 3;
    /// One message of the distribution handshake.
    pub const HANDSHAKE: u8 = 4;
    /// Acknowledgement and credit on the back of data.
    pub const ACK: u8 = 5;
    /// The items that follow belong to this flow; the first of them has this sequence number.
    pub const FLOW: u8 = 6;
    /// The flow is over.
    pub const END: u8 = 7;
    /// Stands for a frame that nobody wants any more, and for what it would have cost.
    pub const VOID: u8 = 8;
    /// Stands for a frame that was lost for good.
    pub const LOST: u8 = 9;
}

/// Bytes in front of the items of a DATA packet: how many fences were sent before it.
pub const FENCES_LEN: usize = 4;

/// Bytes of the body of a FLOW item.
pub const FLOW_LEN: usize = 8;

/// Splits the number of fences that were sent before off the content of a DATA packet; 0 without any.
pub fn fences(content: &mut &[u8]) -> Result<u32, WireError> {
    if content.is_empty() {
        return Ok(0);
    }
    let mut r = Reader::new(content);
    let fences = r.u32("fences")?;
    *content = r.rest();
    Ok(fences)
}

/// One item of a DATA packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Item<'a> {
    /// One whole frame.
    Frame(&'a [u8]),
    /// The first part of a frame of `total` bytes.
    First {
        /// Bytes of the whole frame.
        total: u32,
        /// Its first bytes.
        part: &'a [u8],
    },
    /// A further part of the frame that is being put together.
    More(&'a [u8]),
    /// One message of the distribution handshake.
    Handshake(&'a [u8]),
    /// Acknowledgement and credit.
    Ack {
        /// All packets below this number have arrived.
        next: u64,
        /// The sender may send up to this offset.
        credit: u64,
    },
    /// The next items belong to a flow.
    Flow {
        /// Its number in the channel.
        flow: u32,
        /// The sequence number of the next item; the one after has the next number.
        sequence: u32,
    },
    /// The flow is over: its number will not be used again.
    End,
    /// A frame was here that was lost, or late, and is not sent again.
    Void {
        /// What the item has used up of the credit.
        cost: u32,
    },
    /// A frame was here that did not arrive in time, and does not come any more.
    Lost {
        /// What the item has used up of the credit.
        cost: u32,
        /// Whose it was, as its sender calls the flow.
        sender: u64,
    },
}

/// Splits the first item off `content`. `Ok(None)` at the end.
pub fn next_item<'a>(content: &mut &'a [u8]) -> Result<Option<Item<'a>>, WireError> {
    if content.is_empty() {
        return Ok(None);
    }
    let mut r = Reader::new(content);
    let kind = r.u8("item kind")?;
    let len = r.u24("item length")? as usize;
    let body = r.take(len, "item body")?;
    *content = r.rest();
    Ok(Some(match kind {
        item::FRAME => Item::Frame(body),
        item::FIRST => {
            let mut r = Reader::new(body);
            Item::First { total: r.u32("frame length")?, part: r.rest() }
        }
        item::MORE => Item::More(body),
        item::HANDSHAKE => Item::Handshake(body),
        item::ACK => {
            let mut r = Reader::new(body);
            let (next, credit) = (r.u64("ack number")?, r.u64("ack credit")?);
            r.finish("ack item")?;
            Item::Ack { next, credit }
        }
        item::FLOW => {
            let mut r = Reader::new(body);
            let (flow, sequence) = (r.u32("flow")?, r.u32("sequence")?);
            r.finish("flow item")?;
            Item::Flow { flow, sequence }
        }
        item::END => {
            Reader::new(body).finish("end item")?;
            Item::End
        }
        item::VOID => {
            let mut r = Reader::new(body);
            let cost = r.u32("cost")?;
            r.finish("void item")?;
            Item::Void { cost }
        }
        item::LOST => {
            let mut r = Reader::new(body);
            let (cost, sender) = (r.u32("cost")?, r.u64("sender")?);
            r.finish("lost item")?;
            Item::Lost { cost, sender }
        }
        _ => return Err(WireError::Invalid("item kind")),
    }))
}

/// The four bytes in front of an item of `len` bytes.
pub fn item_header(kind: u8, len: usize) -> [u8; ITEM_HEADER_LEN] {
    let len = (len as u32).to_be_bytes();
    [kind, len[1], len[2], len[3]]
}

/// What a receiver tells its sender.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ack {
    /// All packets below this number have arrived.
    pub next: u64,
    /// The sender may send up to this offset.
    pub credit: u64,
    /// Packets above `next` that have arrived: half-open ranges, ascending.
    pub ranges: Vec<(u64, u64)>,
}

impl Ack {
    /// Content of an ACK packet.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(17 + 16 * self.ranges.len());
        out.extend_from_slice(&self.next.to_be_bytes());
        out.extend_from_slice(&self.credit.to_be_bytes());
        let n = self.ranges.len().min(MAX_ACK_RANGES);
        out.push(n as u8);
        for (from, to) in &self.ranges[..n] {
            out.extend_from_slice(&from.to_be_bytes());
            out.extend_from_slice(&to.to_be_bytes());
        }
        out
    }

    /// Reads the content of an ACK packet; ranges must ascend, be non-empty and lie above `next`.
    pub fn decode(content: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(content);
        let (next, credit) = (r.u64("ack number")?, r.u64("ack credit")?);
        let n = r.u8("ack ranges")? as usize;
        if n > MAX_ACK_RANGES {
            return Err(WireError::TooLong { field: "ack ranges", len: n, limit: MAX_ACK_RANGES });
        }
        let mut ranges = Vec::with_capacity(n);
        let mut above = next;
        for _ in 0..n {
            let (from, to) = (r.u64("ack range")?, r.u64("ack range")?);
            if from < above || to <= from {
                return Err(WireError::Invalid("ack range"));
            }
            above = to;
            ranges.push((from, to));
        }
        r.finish("ack")?;
        Ok(Self { next, credit, ranges })
    }
}

/// What a channel is for. The code points are part of the wire format (docs/wire-format.md).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum ChannelKind {
    /// A connection of the Erlang distribution: frames of the VM, in both directions.
    #[default]
    Distribution = 0,
    /// Messages of processes that need no connection, from the end that asked for the channel only.
    Messages = 1,
}

impl ChannelKind {
    fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Distribution),
            1 => Some(Self::Messages),
            _ => None,
        }
    }
}

/// Asks for a channel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Open {
    /// The asking side's index of the channel.
    pub index: ChannelIndex,
    /// Random; tells this channel from all earlier ones.
    pub epoch: u64,
    /// Life of the asking node.
    pub incarnation: Incarnation,
    /// Credit that the asking side grants from the start, in bytes.
    pub window: u64,
    /// What the channel is for.
    pub kind: ChannelKind,
    /// Name of the asking node; empty if it has none yet.
    pub name: String,
}

impl Open {
    /// Content of an OPEN packet.
    ///
    /// # Panics
    /// If the name is over 255 bytes: names are checked when the node starts.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(29 + self.name.len());
        out.extend_from_slice(&self.index.0.to_be_bytes());
        out.extend_from_slice(&self.epoch.to_be_bytes());
        out.extend_from_slice(&self.incarnation.0.to_be_bytes());
        out.extend_from_slice(&self.window.to_be_bytes());
        out.push(self.kind as u8);
        out.push(u8::try_from(self.name.len()).expect("BUG! node name over 255 bytes"));
        out.extend_from_slice(self.name.as_bytes());
        out
    }

    /// Reads the content of an OPEN packet.
    pub fn decode(content: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(content);
        let open = Self {
            index: read_index(&mut r)?,
            epoch: r.u64("epoch")?,
            incarnation: Incarnation(r.u64("incarnation")?),
            window: r.u64("window")?,
            kind: ChannelKind::from_code(r.u8("channel kind")?)
                .ok_or(WireError::Invalid("channel kind"))?,
            name: String::from_utf8(r.bytes8("name")?.to_vec())
                .map_err(|_| WireError::Invalid("name"))?,
        };
        r.finish("open")?;
        Ok(open)
    }
}

/// Grants a channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opened {
    /// The granting side's index of the channel.
    pub index: ChannelIndex,
    /// The granting side's random epoch.
    pub epoch: u64,
    /// Life of the granting node.
    pub incarnation: Incarnation,
    /// Credit that the granting side grants from the start, in bytes.
    pub window: u64,
    /// Epoch of the OPEN that this answers.
    pub open_epoch: u64,
}

impl Opened {
    /// Content of an OPENED packet.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(36);
        out.extend_from_slice(&self.index.0.to_be_bytes());
        out.extend_from_slice(&self.epoch.to_be_bytes());
        out.extend_from_slice(&self.incarnation.0.to_be_bytes());
        out.extend_from_slice(&self.window.to_be_bytes());
        out.extend_from_slice(&self.open_epoch.to_be_bytes());
        out
    }

    /// Reads the content of an OPENED packet.
    pub fn decode(content: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(content);
        let opened = Self {
            index: read_index(&mut r)?,
            epoch: r.u64("epoch")?,
            incarnation: Incarnation(r.u64("incarnation")?),
            window: r.u64("window")?,
            open_epoch: r.u64("open epoch")?,
        };
        r.finish("opened")?;
        Ok(opened)
    }
}

fn read_index(r: &mut Reader<'_>) -> Result<ChannelIndex, WireError> {
    match ChannelIndex(r.u32("channel index")?) {
        ChannelIndex::UNKNOWN => Err(WireError::Invalid("channel index")),
        index => Ok(index),
    }
}

/// Why a channel ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum ResetReason {
    /// The side that says so closed it: disconnect, or a process of the connection died.
    Closed = 1,
    /// The side that says so does not know such a channel (it has restarted, or has closed it).
    Unknown = 2,
    /// The node accepts no channels (`-dist_listen false`, or its limit is reached).
    Refused = 3,
    /// The other side broke the protocol.
    Protocol = 4,
    /// There was no route to the other node for too long: the end that says so has given it up.
    Unreachable = 5,
    /// The other node is another life than the one the channel was opened with.
    Restarted = 6,
    /// Packets were lost, and did not come again in time (`gap_timeout_ms`).
    Lost = 7,
    /// Who asked for a channel for messages has no more of them, and all have arrived.
    Unused = 8,
    /// The node that says so stops.
    Stopped = 9,
}

/// Ends a channel (RESET) or confirms its end (RESET_ACK).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reset {
    /// Index of the channel at the side that says so; `UNKNOWN` if it has none.
    pub from_index: ChannelIndex,
    /// Index of the channel at the side that is told; `UNKNOWN` if not known.
    pub to_index: ChannelIndex,
    /// The number after the last DATA packet that was sent; 0 if not known.
    pub last: u64,
    /// Why.
    pub reason: ResetReason,
}

impl Reset {
    /// Content of a RESET or RESET_ACK packet.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(17);
        out.extend_from_slice(&self.from_index.0.to_be_bytes());
        out.extend_from_slice(&self.to_index.0.to_be_bytes());
        out.extend_from_slice(&self.last.to_be_bytes());
        out.push(self.reason as u8);
        out
    }

    /// Reads the content of a RESET or RESET_ACK packet.
    pub fn decode(content: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(content);
        let (from_index, to_index) =
            (ChannelIndex(r.u32("sender's index")?), ChannelIndex(r.u32("receiver's index")?));
        let last = r.u64("last number")?;
        let reason = match r.u8("reset reason")? {
            1 => ResetReason::Closed,
            2 => ResetReason::Unknown,
            3 => ResetReason::Refused,
            4 => ResetReason::Protocol,
            5 => ResetReason::Unreachable,
            6 => ResetReason::Restarted,
            7 => ResetReason::Lost,
            8 => ResetReason::Unused,
            9 => ResetReason::Stopped,
            _ => return Err(WireError::Invalid("reset reason")),
        };
        r.finish("reset")?;
        Ok(Self { from_index, to_index, last, reason })
    }
}

/// Why a relay dropped a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum DropReason {
    /// It has no route to the destination.
    NoRoute = 1,
    /// The packet's hop limit was used up.
    HopLimit = 2,
}

/// A relay's notice that it dropped a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unreachable {
    /// Why.
    pub reason: DropReason,
    /// Header of the packet, as it came.
    pub quoted: super::routed::RoutedHeader,
}

impl Unreachable {
    /// Content of an UNREACHABLE packet.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![self.reason as u8];
        out.extend_from_slice(&self.quoted.to_bytes());
        out
    }

    /// Reads the content of an UNREACHABLE packet.
    pub fn decode(content: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(content);
        let reason = match r.u8("drop reason")? {
            1 => DropReason::NoRoute,
            2 => DropReason::HopLimit,
            _ => return Err(WireError::Invalid("drop reason")),
        };
        let quoted = super::routed::RoutedHeader::read(&mut r)?;
        r.finish("unreachable")?;
        Ok(Self { reason, quoted })
    }
}
