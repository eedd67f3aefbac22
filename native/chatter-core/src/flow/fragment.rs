//! The headers of fragments of a signal (`erl_dist_protocol`, "Distribution header for fragmented
//! messages"): a version, a kind, the sequence id and the number, eight bytes each, most significant first.

use super::header::{FIRST_FRAGMENT, NEXT_FRAGMENT, VERSION};

/// Where the number of a fragment is.
pub const NUMBER_AT: usize = 10;

/// Bytes before the payload of a fragment that is not the first, and before the atoms of one that is.
pub const HEADER_LEN: usize = NUMBER_AT + 8;

/// What a header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fragment {
    /// The first of its signal: atoms and the control message follow.
    pub is_first: bool,
    /// Of which signal; no two of a node have the same at a time.
    pub sequence: u64,
    /// How many there are still, with this one.
    pub number: u64,
}

/// Reads the beginning of a frame. `None`: it is no fragment, or too short.
#[inline]
pub fn read(frame: &[u8]) -> Option<Fragment> {
    let header = frame.first_chunk::<HEADER_LEN>()?;
    let is_first = match header[..2] {
        [VERSION, FIRST_FRAGMENT] => true,
        [VERSION, NEXT_FRAGMENT] => false,
        _ => return None,
    };
    let (ids, number) = header[2..].split_first_chunk::<8>()?;
    let number = u64::from_be_bytes(*number.first_chunk()?);
    Some(Fragment { is_first, sequence: u64::from_be_bytes(*ids), number })
}
