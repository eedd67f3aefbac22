//! The cluster key: what nodes must share to form a network.

use std::fmt;

use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::hmac;
use thiserror::Error;
use zeroize::Zeroizing;

use super::kdf::{self, Secret};
use super::published::is_published;

/// Bytes of the public tag that tells clusters apart.
pub const CLUSTER_TAG_LEN: usize = 8;

/// The longest cookie that [`ClusterKey::from_cookie`] takes, in bytes: an atom of 255 characters of
/// four bytes each.
pub const MAX_COOKIE_LEN: usize = 1_020;

/// Bytes of a truncated HMAC-SHA256 on a handshake message.
pub(super) const MAC1_LEN: usize = 16;

/// Salt of [`ClusterKey::from_cookie`]. It is the same for everybody, because nodes that share
/// nothing but a cookie must come to the same key.
const COOKIE_SALT: &[u8] = b"chatter/1 cluster key of cookie";

/// Memory that Argon2id fills, in KiB.
const COOKIE_MEMORY_KIB: u32 = 32 * 1024;

/// How often Argon2id passes over that memory.
const COOKIE_PASSES: u32 = 3;

/// Why a key or a cookie was refused. Nothing is kept of it; the message says what to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum KeyError {
    /// Neither 32 raw bytes nor the length of a textual form.
    #[error("the key has {bytes} bytes; 32 are needed: make one with 'openssl rand -hex 32'")]
    Length {
        /// How many bytes there were, without white space around a text.
        bytes: usize,
    },
    /// As long as a textual form, but not one.
    #[error(
        "the key has {bytes} characters and is neither hexadecimal nor base64 of 32 bytes: \
         make one with 'openssl rand -hex 32'"
    )]
    Encoding {
        /// How many characters there were.
        bytes: usize,
    },
    /// A key that documents show, or of a shape that only examples have.
    #[error(
        "the key is a published example that anybody can look up: \
         make your own with 'openssl rand -hex 32'"
    )]
    Published,
    /// A cookie without characters.
    #[error(
        "the cookie is empty and no key is given: set a cookie, or a key made with \
         'openssl rand -hex 32'"
    )]
    EmptyCookie,
    /// A cookie that no atom can hold.
    #[error("the cookie has {bytes} bytes; at most {MAX_COOKIE_LEN} can be used")]
    CookieLength {
        /// How many bytes there were.
        bytes: usize,
    },
}

/// The secret that the nodes of a cluster share, and what is derived from it: the Noise psk, the
/// mac1 key, the cluster tag. Overwritten in memory when dropped; `Debug` shows the tag only.
///
/// Sub-keys are HKDF-SHA256 (RFC 5869) with the salt `chatter/1` and one label each.
#[derive(Clone)]
pub struct ClusterKey {
    secret: Secret,
    noise_psk: Secret,
    mac1: hmac::Key,
    tag: [u8; CLUSTER_TAG_LEN],
}

impl ClusterKey {
    /// Reads a key as users write it: 32 raw bytes, 64 hexadecimal digits, or the base64 (RFC 4648,
    /// section 4) of 32 bytes with or without its `=`. White space around a text is ignored, so the
    /// contents of a key file can be passed as they are.
    ///
    /// # Errors
    /// [`KeyError::Length`], [`KeyError::Encoding`]; [`KeyError::Published`] for keys that documents
    /// show, whatever form they come in.
    pub fn parse(text_or_raw: &[u8]) -> Result<Self, KeyError> {
        let secret = decode(text_or_raw)?;
        if is_published(&secret) {
            return Err(KeyError::Published);
        }
        Ok(Self::from_secret(secret))
    }

    /// Stretches a cookie to a key: Argon2id (RFC 9106), version 0x13, 32 MiB, 3 passes, 1 lane, salt
    /// `chatter/1 cluster key of cookie`. It takes 50 to 150 ms of one core; call it once, at start.
    ///
    /// The salt is fixed, for nodes share nothing but the cookie. A guessable cookie stays guessable:
    /// each guess costs the same memory and time. A random key is better.
    ///
    /// # Errors
    /// [`KeyError::EmptyCookie`], [`KeyError::CookieLength`].
    pub fn from_cookie(cookie: &[u8]) -> Result<Self, KeyError> {
        if cookie.is_empty() {
            return Err(KeyError::EmptyCookie);
        }
        if cookie.len() > MAX_COOKIE_LEN {
            return Err(KeyError::CookieLength { bytes: cookie.len() });
        }
        // The parameters and the salt are constants within RFC 9106's limits, the cookie is short.
        let params = Params::new(COOKIE_MEMORY_KIB, COOKIE_PASSES, 1, Some(32))
            .expect("BUG! Argon2 parameters");
        let mut secret = Secret::default();
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(cookie, COOKIE_SALT, secret.as_mut_slice())
            .expect("BUG! Argon2 input");
        Ok(Self::from_secret(secret))
    }

    /// The public name of the cluster: equal for equal keys, and of no use to find the key.
    pub fn tag(&self) -> [u8; CLUSTER_TAG_LEN] {
        self.tag
    }

    /// A sub-key for a purpose outside this module, 32 bytes. Labels that start with `link ` belong
    /// to this module.
    pub fn derive(&self, label: &str) -> Zeroizing<[u8; 32]> {
        kdf::derive(&self.secret, label)
    }

    /// The psk of the Noise handshake.
    pub(super) fn noise_psk(&self) -> &[u8; 32] {
        &self.noise_psk
    }

    /// The key that handshake messages are signed with before anything else is looked at.
    pub(super) fn mac1(&self) -> &hmac::Key {
        &self.mac1
    }

    fn from_secret(secret: Secret) -> Self {
        let mac1 = kdf::derive(&secret, "link mac1");
        let mut tag = [0; CLUSTER_TAG_LEN];
        tag.copy_from_slice(&kdf::derive(&secret, "link cluster tag")[..CLUSTER_TAG_LEN]);
        Self {
            noise_psk: kdf::derive(&secret, "link noise psk"),
            mac1: hmac::Key::new(hmac::HMAC_SHA256, mac1.as_slice()),
            tag,
            secret,
        }
    }
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterKey(tag {:016x})", u64::from_be_bytes(self.tag))
    }
}

/// The 32 bytes behind any accepted form.
fn decode(given: &[u8]) -> Result<Secret, KeyError> {
    // Of 32 random bytes all are text once in 2^43; everything else tells text from raw.
    let is_text = given.iter().all(|&b| b.is_ascii_graphic() || b.is_ascii_whitespace());
    let bytes = if is_text { given.trim_ascii() } else { given };
    let mut secret = Secret::default();
    let encoding = KeyError::Encoding { bytes: bytes.len() };
    match bytes.len() {
        32 => secret.copy_from_slice(bytes),
        64 if is_text => decode_hex(bytes, &mut secret).ok_or(encoding)?,
        43 | 44 if is_text => decode_base64(bytes, &mut secret).ok_or(encoding)?,
        len => return Err(KeyError::Length { bytes: len }),
    }
    Ok(secret)
}

fn decode_hex(digits: &[u8], out: &mut [u8; 32]) -> Option<()> {
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        let [high, low] = [pair[0], pair[1]].map(|d| char::from(d).to_digit(16));
        *byte = (high? << 4 | low?) as u8;
    }
    Some(())
}

/// 43 characters carry 258 bits: the last two must be zero, or two texts would be one key.
fn decode_base64(text: &[u8], out: &mut [u8; 32]) -> Option<()> {
    let digits = match text {
        [digits @ .., b'='] if digits.len() == 43 => digits,
        _ if text.len() == 43 => text,
        _ => return None,
    };
    let (mut bits, mut held) = (0_u32, 0);
    let mut bytes = out.iter_mut();
    for &digit in digits {
        bits = (bits << 6 | u32::from(base64_value(digit)?)) & 0xffff;
        held += 6;
        if held >= 8 {
            held -= 8;
            *bytes.next()? = (bits >> held) as u8;
        }
    }
    (bits & ((1 << held) - 1) == 0).then_some(())
}

fn base64_value(digit: u8) -> Option<u8> {
    match digit {
        b'A'..=b'Z' => Some(digit - b'A'),
        b'a'..=b'z' => Some(digit - b'a' + 26),
        b'0'..=b'9' => Some(digit - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAW: [u8; 32] = [
        0xd7, 0x11, 0x9a, 0x5e, 0x03, 0x82, 0xfe, 0x40, 0xb5, 0x6c, 0x21, 0x90, 0xee, 0x13, 0x77,
        0xca, 0x08, 0xf3, 0x5b, 0xa6, 0x44, 0xdd, 0x19, 0x60, 0x8f, 0x32, 0xe1, 0x04, 0x9d, 0x56,
        0xb8, 0x2f,
    ];
    const HEX: &str = "d7119a5e0382fe40b56c2190ee1377ca08f35ba644dd19608f32e1049d56b82f";
    const BASE64: &str = "1xGaXgOC/kC1bCGQ7hN3ygjzW6ZE3RlgjzLhBJ1WuC8=";

    /// Given one key in all its forms, expect one tag.
    #[test]
    fn forms_agree() {
        let tag = ClusterKey::parse(&RAW).unwrap().tag();
        let forms = [
            HEX.to_string(),
            HEX.to_uppercase(),
            format!("  {HEX}\r\n"),
            BASE64.to_string(),
            BASE64.trim_end_matches('=').to_string(),
            format!("\t{BASE64}\n\n"),
        ];
        for form in forms {
            assert_eq!(ClusterKey::parse(form.as_bytes()).unwrap().tag(), tag, "{form:?}");
        }
    }

    /// Given every length that is no form, expect it in the error; a key file's newline not counted.
    #[test]
    fn lengths_are_refused() {
        for bytes in (0..100).filter(|n| ![32, 43, 44, 64].contains(n)) {
            let text = vec![b'k'; bytes];
            assert_eq!(ClusterKey::parse(&text).unwrap_err(), KeyError::Length { bytes });
            let line = [&text[..], b"\n"].concat();
            assert_eq!(ClusterKey::parse(&line).unwrap_err(), KeyError::Length { bytes });
            let raw = vec![0xf0; bytes];
            if bytes > 0 {
                assert_eq!(ClusterKey::parse(&raw).unwrap_err(), KeyError::Length { bytes });
            }
        }
        assert_eq!(
            KeyError::Length { bytes: 31 }.to_string(),
            "the key has 31 bytes; 32 are needed: make one with 'openssl rand -hex 32'"
        );
    }

    /// Given a textual length with wrong digits, expect an error that says so.
    #[test]
    fn encodings_are_refused() {
        let not_canonical = BASE64.replace("C8=", "C9=");
        for text in [
            &HEX.replace('d', "g"),
            &HEX.replace("d7", " 7"),
            &HEX.replace("d7", "+7"),
            &BASE64.replace('/', "_"),
            &BASE64.replace('=', "A"),
            &BASE64.replace("1x", "=="),
            &not_canonical,
        ] {
            let bytes = text.trim().len();
            let error = ClusterKey::parse(text.as_bytes()).unwrap_err();
            let expected = if matches!(bytes, 43 | 44 | 64) {
                KeyError::Encoding { bytes }
            } else {
                KeyError::Length { bytes }
            };
            assert_eq!(error, expected, "{text}");
        }
    }

    /// Given published keys, in any form, expect them to be refused.
    #[test]
    fn published_keys_are_refused() {
        let ascending: Vec<u8> = (0..32).collect();
        let hex_ascending: String = ascending.iter().map(|b| format!("{b:02x}")).collect();
        let descending: Vec<u8> = (0..32).rev().collect();
        let keys: [&[u8]; 14] = [
            b"01234567890123456789012345678912",
            b"01234567890123456789012345678912\n",
            b"01234567890123456789012345678901",
            b"secret01234567890123456789012345",
            b"short and secret key0123456789012"[..32].as_ref(),
            b"MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MTI=",
            b"change this password to a secret",
            b"0123456789abcdef0123456789abcdef",
            b"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            b"603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4",
            &[0; 32],
            &[0xff; 32],
            &ascending,
            &descending,
        ];
        for key in keys.into_iter().chain([hex_ascending.as_bytes()]) {
            assert_eq!(ClusterKey::parse(key).unwrap_err(), KeyError::Published, "{key:?}");
        }
        // Twice the default, as a user may try when told that it is too short.
        assert!(ClusterKey::parse(&[b'7'; 64]).is_err());
    }

    /// Given cookies, expect one key per cookie, and the limits.
    #[test]
    fn cookies_are_stretched() {
        let one = ClusterKey::from_cookie(b"monster").unwrap();
        assert_eq!(one.tag(), ClusterKey::from_cookie(b"monster").unwrap().tag());
        assert_ne!(one.tag(), ClusterKey::from_cookie(b"monsters").unwrap().tag());
        ClusterKey::from_cookie(&[b'c'; MAX_COOKIE_LEN]).unwrap();
        assert_eq!(ClusterKey::from_cookie(b"").unwrap_err(), KeyError::EmptyCookie);
        let bytes = MAX_COOKIE_LEN + 1;
        let error = ClusterKey::from_cookie(&vec![b'c'; bytes]).unwrap_err();
        assert_eq!(error, KeyError::CookieLength { bytes });
    }

    /// Given a key, expect `Debug` to show no byte of it, and sub-keys to differ from each other.
    #[test]
    fn secrets_stay_inside() {
        let key = ClusterKey::parse(&RAW).unwrap();
        let shown = format!("{key:?}");
        assert!(shown.starts_with("ClusterKey(tag ") && shown.len() == 32, "{shown}");
        assert_ne!(*key.derive("a"), *key.derive("b"));
        assert_ne!(*key.derive("a"), RAW);
        assert_eq!(*key.derive("link noise psk"), *key.noise_psk());
    }
}
