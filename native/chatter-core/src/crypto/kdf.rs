//! HKDF-SHA256 (RFC 5869) with 32-byte secrets and labels.

use aws_lc_rs::hkdf::{self, HKDF_SHA256, KeyType, Prk, Salt};
use zeroize::Zeroizing;

/// A secret of 32 bytes that is overwritten when dropped.
pub(super) type Secret = Zeroizing<[u8; 32]>;

/// The salt of every extraction; it separates Chatter from whatever else the same key is used for.
const SALT: &[u8] = b"chatter/1";

/// Extracts from `secret` and expands to the 32 bytes named by `label`.
pub(super) fn derive(secret: &[u8; 32], label: &str) -> Secret {
    expand(&Salt::new(HKDF_SHA256, SALT).extract(secret), label.as_bytes())
}

/// Expands a secret that is uniform already to the 32 bytes named by `label`.
pub(super) fn expand_secret(secret: &[u8; 32], label: &str) -> Secret {
    expand_bytes(secret, label.as_bytes())
}

/// The same for a label that is not text.
pub(super) fn expand_bytes(secret: &[u8; 32], label: &[u8]) -> Secret {
    expand(&Prk::new_less_safe(HKDF_SHA256, secret), label)
}

fn expand(prk: &Prk, label: &[u8]) -> Secret {
    let mut out = Secret::default();
    let info = [label];
    // RFC 5869 fails only over 255 * 32 bytes of output; this asks for 32.
    let okm: hkdf::Okm<'_, Len32> = prk.expand(&info, Len32).expect("BUG! HKDF of 32 bytes");
    okm.fill(out.as_mut_slice()).expect("BUG! HKDF of 32 bytes");
    out
}

struct Len32;

impl KeyType for Len32 {
    fn len(&self) -> usize {
        32
    }
}
