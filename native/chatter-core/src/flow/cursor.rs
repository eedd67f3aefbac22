//! A cursor over a frame in pieces.

/// Reads bytes from pieces as if they were one; `None` at the end, for ever.
pub(super) struct Cursor<'a> {
    piece: &'a [u8],
    rest: &'a [&'a [u8]],
}

impl<'a> Cursor<'a> {
    pub(super) fn new(pieces: &'a [&'a [u8]]) -> Self {
        Self { piece: &[], rest: pieces }
    }

    /// The next piece that is not empty.
    #[inline]
    fn turn(&mut self) -> Option<()> {
        while self.piece.is_empty() {
            let (first, rest) = self.rest.split_first()?;
            (self.piece, self.rest) = (first, rest);
        }
        Some(())
    }

    #[inline]
    pub(super) fn u8(&mut self) -> Option<u8> {
        if self.piece.is_empty() {
            self.turn()?;
        }
        let (byte, piece) = self.piece.split_first()?;
        self.piece = piece;
        Some(*byte)
    }

    /// The next `N` bytes, which mostly are in one piece.
    #[inline]
    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        if let Some((bytes, piece)) = self.piece.split_first_chunk::<N>() {
            self.piece = piece;
            return Some(*bytes);
        }
        if self.piece.is_empty() {
            self.turn()?;
            if let Some((bytes, piece)) = self.piece.split_first_chunk::<N>() {
                self.piece = piece;
                return Some(*bytes);
            }
        }
        self.gather()
    }

    #[cold]
    fn gather<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        for byte in &mut bytes {
            *byte = self.u8()?;
        }
        Some(bytes)
    }

    /// The next `len` bytes if they are in one piece; otherwise nothing is read.
    #[inline]
    pub(super) fn slice(&mut self, len: usize) -> Option<&'a [u8]> {
        let (bytes, piece) = self.piece.split_at_checked(len)?;
        self.piece = piece;
        Some(bytes)
    }

    #[inline]
    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    #[inline]
    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// Leaves out `len` bytes, all of which must be there.
    #[inline]
    pub(super) fn skip(&mut self, len: usize) -> Option<()> {
        match self.slice(len) {
            Some(_) => Some(()),
            None => self.skip_pieces(len),
        }
    }

    /// Appends the next `len` bytes, all of which must be there.
    pub(super) fn copy(&mut self, len: usize, into: &mut Vec<u8>) -> Option<()> {
        if let Some(bytes) = self.slice(len) {
            into.extend_from_slice(bytes);
            return Some(());
        }
        for _ in 0..len {
            into.push(self.u8()?);
        }
        Some(())
    }

    #[cold]
    fn skip_pieces(&mut self, mut len: usize) -> Option<()> {
        while self.slice(len).is_none() {
            len -= self.piece.len();
            self.piece = &[];
            self.turn()?;
        }
        Some(())
    }
}
