//! HELLO, the probe of a link, and BYE, its end. Both travel one hop.
//!
//! ```text
//!  0       2             4         8     12         16              20
//! +-------+-------------+---------+-----+----------+---------------+-------------+
//! | flags | interval ms | hold ms | seq | echo seq | echo delay µs | LSDB digest |   HELLO
//! |  16   |     16      |   32    | 32  |    32    |      32       |     64      |   28 bytes
//! +-------+-------------+---------+-----+----------+---------------+-------------+
//!
//!  0
//! +--------+
//! | reason |                                                                         BYE
//! |   8    |                                                                         1 byte
//! +--------+
//! ```
//!
//! Each end sends a HELLO every `interval ms` and, at once, in answer to the first HELLO that it hears
//! on a link. `echo seq` is the last seq heard, `echo delay` how long ago that was: the difference
//! between sending a seq and hearing its echo, less the delay, is the round trip. Flag bit 0, SYNCED,
//! says that the receiver has by now all that the sender had newer when the link came up; bit 1,
//! NAMESAKE, that another node with the receiver's name has tried to get a link.

use super::reader::{Reader, WireError};

/// Bytes of a HELLO body.
pub const HELLO_LEN: usize = 28;

/// Bytes of a BYE body.
pub const BYE_LEN: usize = 1;

/// Flag: the sender has taken in a whole SUMMARY of the receiver, and has sent before this HELLO
/// whatever it has newer.
pub const HELLO_SYNCED: u16 = 0x0001;

/// Flag: another node with the receiver's name has tried for long to get a link here.
pub const HELLO_NAMESAKE: u16 = 0x0002;

/// One probe of a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Hello {
    /// [`HELLO_SYNCED`], [`HELLO_NAMESAKE`]; the other bits are reserved, sent as 0 and ignored.
    pub flags: u16,
    /// Milliseconds between the sender's HELLOs.
    pub interval_ms: u16,
    /// Milliseconds of silence after which the sender gives the link up.
    pub hold_ms: u32,
    /// Counts the sender's HELLOs on this link, from 1.
    pub seq: u32,
    /// The last seq that the sender heard on this link; 0 before the first.
    pub echo_seq: u32,
    /// Microseconds between hearing `echo_seq` and sending this.
    pub echo_delay_us: u32,
    /// [`crate::lsdb::Lsdb::digest`] of the sender.
    pub lsdb_digest: u64,
}

impl Hello {
    /// The body's bytes.
    pub fn to_bytes(self) -> [u8; HELLO_LEN] {
        let mut out = [0; HELLO_LEN];
        out[0..2].copy_from_slice(&self.flags.to_be_bytes());
        out[2..4].copy_from_slice(&self.interval_ms.to_be_bytes());
        out[4..8].copy_from_slice(&self.hold_ms.to_be_bytes());
        out[8..12].copy_from_slice(&self.seq.to_be_bytes());
        out[12..16].copy_from_slice(&self.echo_seq.to_be_bytes());
        out[16..20].copy_from_slice(&self.echo_delay_us.to_be_bytes());
        out[20..28].copy_from_slice(&self.lsdb_digest.to_be_bytes());
        out
    }

    /// Reads a body.
    ///
    /// # Errors
    /// Truncated or trailing bytes, or a seq of 0. The peer's fault; nothing has changed.
    pub fn decode(body: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(body);
        let hello = Self {
            flags: r.u16("hello flags")?,
            interval_ms: r.u16("hello interval")?,
            hold_ms: r.u32("hello hold")?,
            seq: r.u32("hello seq")?,
            echo_seq: r.u32("hello echo seq")?,
            echo_delay_us: r.u32("hello echo delay")?,
            lsdb_digest: r.u64("hello digest")?,
        };
        r.finish("hello")?;
        if hello.seq == 0 {
            return Err(WireError::Invalid("hello seq"));
        }
        Ok(hello)
    }
}

/// Why a link is being closed on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum ByeReason {
    /// The node stops.
    Stop = 1,
    /// The operator or the application asked for it.
    Disconnect = 2,
    /// Another life of the same node is there: the receiver has a namesake.
    Clash = 3,
    /// A reason of a later version.
    Other = 255,
}

impl ByeReason {
    /// The body's bytes.
    pub fn to_bytes(self) -> [u8; BYE_LEN] {
        [self as u8]
    }

    /// Reads a body; an unknown reason is [`ByeReason::Other`].
    ///
    /// # Errors
    /// Truncated or trailing bytes. The peer's fault; nothing has changed.
    pub fn decode(body: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(body);
        let reason = match r.u8("bye reason")? {
            1 => Self::Stop,
            2 => Self::Disconnect,
            3 => Self::Clash,
            _ => Self::Other,
        };
        r.finish("bye")?;
        Ok(reason)
    }
}
