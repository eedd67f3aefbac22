//! A cursor over received bytes that cannot panic and never allocates.

use thiserror::Error;

/// Why received bytes were refused. The reader's state is unspecified afterwards: drop the packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum WireError {
    /// The bytes end inside the named field.
    #[error("truncated in {0}")]
    Truncated(&'static str),
    /// Bytes are left after the last field of the named structure.
    #[error("{0} has trailing bytes")]
    Trailing(&'static str),
    /// A length or count is over its limit.
    #[error("{field} of {len} is over the limit of {limit}")]
    TooLong {
        /// What was too long.
        field: &'static str,
        /// What the peer claimed.
        len: usize,
        /// What is allowed.
        limit: usize,
    },
    /// A field holds a value that has no meaning.
    #[error("{0} has no meaning")]
    Invalid(&'static str),
}

/// A cursor over received bytes. Every method names the field that it reads, for the error.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts at the first byte.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// What has not been read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.bytes
    }

    /// The next `len` bytes.
    pub fn take(&mut self, len: usize, field: &'static str) -> Result<&'a [u8], WireError> {
        let (head, tail) = self.bytes.split_at_checked(len).ok_or(WireError::Truncated(field))?;
        self.bytes = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], WireError> {
        let (head, tail) =
            self.bytes.split_first_chunk::<N>().ok_or(WireError::Truncated(field))?;
        self.bytes = tail;
        Ok(*head)
    }

    /// One byte.
    pub fn u8(&mut self, field: &'static str) -> Result<u8, WireError> {
        Ok(self.array::<1>(field)?[0])
    }

    /// Two bytes.
    pub fn u16(&mut self, field: &'static str) -> Result<u16, WireError> {
        Ok(u16::from_be_bytes(self.array(field)?))
    }

    /// Three bytes.
    pub fn u24(&mut self, field: &'static str) -> Result<u32, WireError> {
        let [a, b, c] = self.array(field)?;
        Ok(u32::from_be_bytes([0, a, b, c]))
    }

    /// Four bytes.
    pub fn u32(&mut self, field: &'static str) -> Result<u32, WireError> {
        Ok(u32::from_be_bytes(self.array(field)?))
    }

    /// Eight bytes.
    pub fn u64(&mut self, field: &'static str) -> Result<u64, WireError> {
        Ok(u64::from_be_bytes(self.array(field)?))
    }

    /// A one-byte length and that many bytes.
    pub fn bytes8(&mut self, field: &'static str) -> Result<&'a [u8], WireError> {
        let len = self.u8(field)? as usize;
        self.take(len, field)
    }

    /// Ends the reading of `structure`: nothing may be left.
    pub fn finish(self, structure: &'static str) -> Result<(), WireError> {
        if self.bytes.is_empty() { Ok(()) } else { Err(WireError::Trailing(structure)) }
    }
}
