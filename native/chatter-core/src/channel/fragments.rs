//! Fragments of the VM that follow each other become one. The VM cuts signals of more than 64 KiB
//! (`erl_dist_protocol`, "Distribution fragmentation") and would put them together again by copying all of
//! it, in the process that the signal is for, without a pause. A single fragment it takes as it is.
//!
//! Fragments are numbered down to 1. The first ones of a signal are as good as a single first one that has
//! the number of the last of them; so a run can end anywhere, and the VM gets the rest as they are.

use crate::flow::fragment::{self, Fragment, HEADER_LEN, NUMBER_AT};

/// Payload of each fragment but the last.
const PAYLOAD: usize = 64 * 1024;

/// The first fragments of a signal, as many as there are so far.
pub(super) struct Run {
    sequence: u64,
    /// The number of the last one so far.
    number: u64,
    /// How many there are.
    count: u64,
    /// Bytes in them.
    len: usize,
}

impl Run {
    /// The beginning of a frame of `total` bytes. `None` if it is not the first fragment of several.
    pub(super) fn begin(frame: &[u8], total: usize) -> Option<Self> {
        let Fragment { is_first, sequence, number } = fragment::read(frame)?;
        (is_first && number > 1).then_some(Self { sequence, number, count: 1, len: total })
    }

    /// The beginning of the next frame, of `total` bytes: what follows its header, if it is the next
    /// fragment.
    pub(super) fn next<'f>(&mut self, frame: &'f [u8], total: usize) -> Option<&'f [u8]> {
        let next = fragment::read(frame)?;
        if next.is_first
            || next.sequence != self.sequence
            || next.number.checked_add(1) != Some(self.number)
        {
            return None;
        }
        self.number = next.number;
        self.count += 1;
        self.len += total - HEADER_LEN;
        frame.get(HEADER_LEN..)
    }

    /// Bytes in all of them so far.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Bytes that there will be, at most, if all fragments are as long as the VM makes them.
    pub(super) fn expected_len(&self) -> usize {
        let more = usize::try_from(self.number - 1).unwrap_or(usize::MAX);
        self.len.saturating_add(more.saturating_mul(PAYLOAD))
    }

    /// Whether the last fragment of the signal is among them.
    pub(super) fn is_whole(&self) -> bool {
        self.number == 1
    }

    /// What the header of the first of them must say instead: where, and the bytes.
    pub(super) fn renumbered(&self) -> Option<(usize, [u8; 8])> {
        (self.count > 1).then_some((NUMBER_AT, self.number.to_be_bytes()))
    }
}
