//! Compression of messages, where it pays: an LZ4 block behind its length (32 bits, little-endian).

use bytes::Bytes;

/// Shorter messages are not worth the try: [`pack`] leaves them as they are.
pub const PACK_MIN: usize = 256;

/// A message as it travels.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Packed {
    /// The bytes.
    pub body: Bytes,
    /// Whether they are compressed.
    pub lz4: bool,
}

/// Compresses a message if that saves at least an eighth of it.
pub fn pack(body: Bytes) -> Packed {
    if body.len() >= PACK_MIN {
        let packed = lz4_flex::block::compress_prepend_size(&body);
        if packed.len() <= body.len() - body.len() / 8 {
            return Packed { body: packed.into(), lz4: true };
        }
    }
    Packed { body, lz4: false }
}

/// The message again; `None` if it is damaged, or would be over `limit` bytes. Reserves no more than
/// `limit`, whatever is claimed.
pub fn unpack(packed: Packed, limit: usize) -> Option<Bytes> {
    if !packed.lz4 {
        return (packed.body.len() <= limit).then_some(packed.body);
    }
    let (len, block) = packed.body.split_first_chunk::<4>()?;
    let len = u32::from_le_bytes(*len) as usize;
    // LZ4 makes a byte to at most 255.
    if len > limit || len > block.len().saturating_mul(255) {
        return None;
    }
    let mut out = vec![0; len];
    let written = lz4_flex::block::decompress_into(block, &mut out).ok()?;
    (written == len).then(|| out.into())
}
