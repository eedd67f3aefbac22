//! Keys that anybody can look up or guess, because documents show them.

/// What an older carrier of the same name appended to short keys.
const PADDING: &[u8; 32] = b"01234567890123456789012345678901";

/// Of a key, this much must be [`PADDING`] to be refused: 8 bytes, which a random key ends in once
/// in 2^64.
const PADDED_FROM: usize = 24;

/// Keys printed in documents, standards and tutorials that neither rule below catches.
const PRINTED: [&[u8; 32]; 16] = [
    // The default key of an older carrier of the same name, in its README and its configuration.
    b"01234567890123456789012345678912",
    b"abcdefghijklmnopqrstuvwxyz012345",
    b"abcdefghijklmnopqrstuvwxyz123456",
    b"abcdefghijklmnopqrstuvwxyzabcdef",
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZ012345",
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZ123456",
    b"0123456789abcdefghijklmnopqrstuv",
    b"0123456789ABCDEFGHIJKLMNOPQRSTUV",
    // Go: crypto/cipher examples, and two that tutorials copy.
    b"change this password to a secret",
    b"passphrasewhichneedstobe32bytes!",
    b"AES256Key-32Characters1234567890",
    // Rust: aes-gcm documentation.
    b"an example very very secret key.",
    // NIST SP 800-38A, F.1.5: the AES-256 key.
    &[
        0x60, 0x3d, 0xeb, 0x10, 0x15, 0xca, 0x71, 0xbe, 0x2b, 0x73, 0xae, 0xf0, 0x85, 0x7d, 0x77,
        0x81, 0x1f, 0x35, 0x2c, 0x07, 0x3b, 0x61, 0x08, 0xd7, 0x2d, 0x98, 0x10, 0xa3, 0x09, 0x14,
        0xdf, 0xf4,
    ],
    // RFC 7748, 6.1: Alice's private key.
    &[
        0x77, 0x07, 0x6d, 0x0a, 0x73, 0x18, 0xa5, 0x7d, 0x3c, 0x16, 0xc1, 0x72, 0x51, 0xb2, 0x66,
        0x45, 0xdf, 0x4c, 0x2f, 0x87, 0xeb, 0xc0, 0x99, 0x2a, 0xb1, 0x77, 0xfb, 0xa5, 0x1d, 0xb9,
        0x2c, 0x2a,
    ],
    // RFC 8032, 7.1: the secret key of test 1.
    &[
        0x9d, 0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec, 0x2c,
        0xc4, 0x44, 0x49, 0xc5, 0x69, 0x7b, 0x32, 0x69, 0x19, 0x70, 0x3b, 0xac, 0x03, 0x1c, 0xae,
        0x7f, 0x60,
    ],
    // SHA-256 of nothing: what `sha256sum` makes of an unset variable.
    &[
        0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9,
        0x24, 0x27, 0xae, 0x41, 0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52,
        0xb8, 0x55,
    ],
];

/// Whether `key` is a published one, or of a shape that only examples have. A random key is refused
/// by mistake less than once in 2^60.
pub(super) fn is_published(key: &[u8; 32]) -> bool {
    PRINTED.contains(&key) || is_padded(key) || is_progression(key) || is_repetition(key)
}

/// A short key with [`PADDING`] behind it.
fn is_padded(key: &[u8; 32]) -> bool {
    (0..=PADDED_FROM).any(|own| key[own..] == PADDING[..32 - own])
}

/// 00 01 02 .. 1f, all bytes equal, counting down, and the like.
fn is_progression(key: &[u8; 32]) -> bool {
    let step = key[1].wrapping_sub(key[0]);
    key.windows(2).all(|pair| pair[1].wrapping_sub(pair[0]) == step)
}

/// The same at most 16 bytes again and again.
fn is_repetition(key: &[u8; 32]) -> bool {
    (1..=16).any(|period| key[period..] == key[..32 - period])
}
