//! The handshake of a link: two ends that share a cluster key prove it to each other and agree on
//! fresh keys.
//!
//! Noise_NNpsk0_25519_AESGCM_SHA256 (Noise revision 34) inside three messages:
//!
//! ```text
//! H1 ->   magic "CHT1" (4) | version (1) | flags (1) | zero (2) | cluster tag (8)
//!         | Noise: psk, e (32 + tag 16) | mac1 (16)                                = 80 bytes
//! H2 <-   len (2) | Noise: e, ee (32), identity (<= 600), tag (16) | mac1 (16)    len: what follows it
//! H3 ->   record of type 3: identity (<= 600)                       see [`super::record`]
//! ```
//!
//! * flags: bit 0 = records will be in the clear. The other bits are 0.
//! * mac1 of H1 = HMAC-SHA256 (RFC 2104), truncated to 16 bytes, of everything in front of it. mac1
//!   of H2 covers H1's mac1 and then everything in front of it, so an H2 answers one H1 only. It is
//!   compared in constant time, **before** Noise sees a byte: strangers cost one hash.
//! * prologue = the first 16 bytes of H1, then the rekey limits (2 * 8 bytes): both ends agree on
//!   them or the handshake fails.
//! * H3 opens only with keys that both ephemeral keys went into: it proves to the responder that the
//!   initiator is alive and its H1 is not a recording.
//!
//! An identity is opaque here. A link of a node to itself passes the handshake: who reads the
//! identity must refuse its own.

use aws_lc_rs::{constant_time, hmac};
use snow::HandshakeState;
use thiserror::Error;
use zeroize::Zeroizing;

use super::key::{CLUSTER_TAG_LEN, ClusterKey, MAC1_LEN};
use super::noise::{self, NOISE_OVERHEAD};
use super::record::{
    Opener, Protection, RECORD_HEADER_LEN, RecordError, RecordType, RekeyLimits, Sealer, TAG_LEN,
    body_len,
};
use crate::wire::reader::{Reader, WireError};

/// Bytes of H1.
pub const H1_LEN: usize = HELLO_LEN + NOISE_OVERHEAD + MAC1_LEN;

/// The longest identity, in bytes.
pub const MAX_IDENTITY_LEN: usize = 600;

/// Bytes of H2 that tell how long it is, see [`h2_len`].
pub const H2_PREFIX_LEN: usize = 2;

/// The longest H2, in bytes.
pub const H2_MAX_LEN: usize = H2_PREFIX_LEN + NOISE_OVERHEAD + MAX_IDENTITY_LEN + MAC1_LEN;

/// The longest H3, in bytes, its record header included.
pub const H3_MAX_LEN: usize = RECORD_HEADER_LEN + MAX_IDENTITY_LEN + TAG_LEN;

/// The part of H1 in front of the Noise message.
const HELLO_LEN: usize = 8 + CLUSTER_TAG_LEN;

const MAGIC: [u8; 4] = *b"CHT1";
const VERSION: u8 = 2;
const FLAG_CLEAR: u8 = 0x01;

/// What both ends must have configured alike, besides the cluster key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HandshakeConfig {
    /// Whether records will be encrypted.
    pub protection: Protection,
    /// When record keys change. For tests; leave it at the default otherwise.
    pub rekey: RekeyLimits,
}

impl HandshakeConfig {
    /// The configuration key `encryption`, and default rekey limits.
    pub fn new(encryption: bool) -> Self {
        let protection = if encryption { Protection::Sealed } else { Protection::Clear };
        Self { protection, rekey: RekeyLimits::default() }
    }
}

/// Why a handshake failed. Close the connection without an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum HandshakeError {
    /// A stranger: some other program, or a scanner.
    #[error("the peer does not speak Chatter")]
    NotChatter,
    /// The peer runs another version of the link protocol.
    #[error("the peer speaks link version {theirs}, we speak {ours}: upgrade the older node")]
    Version {
        /// What the peer sent.
        theirs: u8,
        /// What this code speaks.
        ours: u8,
    },
    /// Its cluster tag is not ours.
    #[error("the peer belongs to another cluster or has another key: give both the same key")]
    OtherCluster,
    /// The tag is ours, but the peer does not have the key, or the bytes were changed.
    #[error("the peer names our cluster but has not proved our key: check who connects")]
    BadMac,
    /// One end has `encryption` off and the other has not.
    #[error("encryption is on at one end only (off at the peer: {theirs_off}): set both alike")]
    EncryptionMismatch {
        /// Whether it is the peer that has it off.
        theirs_off: bool,
    },
    /// The peer has the key, but what it sent does not make sense.
    #[error("the peer's handshake message is malformed: run the same release on both nodes")]
    Malformed,
    /// H3 does not open: a recording of an H1 of our cluster, or bytes that were changed.
    #[error("the peer did not finish the handshake it began: it may be a recording")]
    NotLive,
    /// Our own identity is too long.
    #[error("our identity has {bytes} bytes; at most {MAX_IDENTITY_LEN} fit the handshake")]
    IdentityTooLong {
        /// How many bytes were handed in.
        bytes: usize,
    },
    /// The cryptographic library refused, for example for lack of memory.
    #[error("the cryptographic library failed on our side")]
    Crypto,
}

/// A link whose ends have proved to each other that they have the key.
#[derive(Debug)]
pub struct Session {
    /// For the records that we send.
    pub sealer: Sealer,
    /// For the records that the peer sends.
    pub opener: Opener,
    /// The same at both ends and different for every link; binds other proofs to this one. Not
    /// secret.
    pub handshake_hash: [u8; 32],
}

/// The end of a handshake.
#[derive(Debug)]
pub struct Established {
    /// The keys of the link.
    pub session: Session,
    /// What the peer says it is, at most [`MAX_IDENTITY_LEN`] bytes. That a holder of the cluster
    /// key said it is certain; that it is true is not.
    pub peer_identity: Vec<u8>,
}

/// The end that opened the connection, after H1.
pub struct Initiator {
    noise: HandshakeState,
    mac1_key: hmac::Key,
    h1_mac1: [u8; MAC1_LEN],
    config: HandshakeConfig,
}

impl Initiator {
    /// Begins a handshake and makes H1. `entropy` must be uniformly random and used only once.
    ///
    /// # Errors
    /// [`HandshakeError::Crypto`].
    pub fn new(
        key: &ClusterKey,
        config: HandshakeConfig,
        entropy: [u8; 32],
    ) -> Result<(Self, [u8; H1_LEN]), HandshakeError> {
        let entropy = Zeroizing::new(entropy);
        let hello = hello(key, config.protection);
        let mut noise = noise::initiator(key.noise_psk(), &prologue(&hello, config), &entropy)
            .map_err(|_| HandshakeError::Crypto)?;
        let mut h1 = [0; H1_LEN];
        let (signed, mac1_out) = h1.split_at_mut(H1_LEN - MAC1_LEN);
        signed[..HELLO_LEN].copy_from_slice(&hello);
        noise.write_message(&[], &mut signed[HELLO_LEN..]).map_err(|_| HandshakeError::Crypto)?;
        let h1_mac1 = mac1(key.mac1(), &[signed]);
        mac1_out.copy_from_slice(&h1_mac1);
        Ok((Self { noise, mac1_key: key.mac1().clone(), h1_mac1, config }, h1))
    }

    /// Reads the whole H2, prefix included, and makes H3, which must be the first bytes sent next.
    ///
    /// # Errors
    /// [`HandshakeError::NotChatter`] if the length is impossible, [`HandshakeError::BadMac`] if H2
    /// does not answer our H1, [`HandshakeError::Malformed`],
    /// [`HandshakeError::IdentityTooLong`] for `identity`, [`HandshakeError::Crypto`].
    pub fn read_h2(
        mut self,
        h2: &[u8],
        identity: &[u8],
    ) -> Result<(Established, Vec<u8>), HandshakeError> {
        check_identity(identity)?;
        let sealed = self.check_h2(h2)?;
        let mut peer_identity = vec![0; MAX_IDENTITY_LEN];
        let len = self
            .noise
            .read_message(sealed, &mut peer_identity)
            .map_err(|_| HandshakeError::Malformed)?;
        peer_identity.truncate(len);
        let Secrets { initiator, responder, handshake_hash } = split(&mut self.noise)?;

        let HandshakeConfig { protection, rekey } = self.config;
        let mut sealer = Sealer::new(initiator, protection, rekey);
        let mut h3 = Vec::with_capacity(H3_MAX_LEN);
        h3.extend_from_slice(&[0; RECORD_HEADER_LEN]);
        h3.extend_from_slice(identity);
        sealer.seal_typed(RecordType::Identity, &mut h3, 0).map_err(|_| HandshakeError::Crypto)?;
        let opener = Opener::new(responder, protection, rekey);
        let session = Session { sealer, opener, handshake_hash };
        Ok((Established { session, peer_identity }, h3))
    }

    /// The Noise message of an H2 that was signed for us.
    fn check_h2<'a>(&self, h2: &'a [u8]) -> Result<&'a [u8], HandshakeError> {
        let prefix = h2.first_chunk().ok_or(HandshakeError::NotChatter)?;
        if h2_len(prefix)? != h2.len() {
            return Err(HandshakeError::Malformed);
        }
        let (signed, theirs) =
            h2.split_last_chunk::<MAC1_LEN>().ok_or(HandshakeError::Malformed)?;
        check_mac1(&mac1(&self.mac1_key, &[&self.h1_mac1, signed]), theirs)?;
        signed.get(H2_PREFIX_LEN..).ok_or(HandshakeError::Malformed)
    }
}

/// The end that accepted the connection, after H2.
pub struct Responder {
    secrets: Secrets,
    config: HandshakeConfig,
}

impl Responder {
    /// Reads H1 and makes H2. `entropy` must be uniformly random and used only once.
    ///
    /// The checks are in the order of their cost: nothing is allocated and no curve arithmetic is
    /// done for a peer without the key.
    ///
    /// # Errors
    /// In this order: [`HandshakeError::NotChatter`], [`HandshakeError::Version`],
    /// [`HandshakeError::OtherCluster`], [`HandshakeError::BadMac`],
    /// [`HandshakeError::EncryptionMismatch`], [`HandshakeError::Malformed`];
    /// [`HandshakeError::IdentityTooLong`] for `identity`, [`HandshakeError::Crypto`]. Send nothing
    /// after an error.
    pub fn read_h1(
        key: &ClusterKey,
        config: HandshakeConfig,
        h1: &[u8; H1_LEN],
        identity: &[u8],
        entropy: [u8; 32],
    ) -> Result<(Self, Vec<u8>), HandshakeError> {
        let entropy = Zeroizing::new(entropy);
        check_identity(identity)?;
        let h1 = SignedH1::check(key, h1)?.open(config.protection)?;
        let mut noise = noise::responder(key.noise_psk(), &prologue(&h1.hello, config), &entropy)
            .map_err(|_| HandshakeError::Crypto)?;
        noise.read_message(h1.noise, &mut []).map_err(|_| HandshakeError::Malformed)?;

        let mut h2 = vec![0; H2_PREFIX_LEN + NOISE_OVERHEAD + identity.len()];
        let len = (h2.len() - H2_PREFIX_LEN + MAC1_LEN) as u16; // At most H2_MAX_LEN.
        h2[..H2_PREFIX_LEN].copy_from_slice(&len.to_be_bytes());
        // Fails for a point of low order, which only a holder of the key can have sent.
        noise
            .write_message(identity, &mut h2[H2_PREFIX_LEN..])
            .map_err(|_| HandshakeError::Malformed)?;
        let mac1 = mac1(key.mac1(), &[h1.mac1, &h2]);
        h2.extend_from_slice(&mac1);
        Ok((Self { secrets: split(&mut noise)?, config }, h2))
    }

    /// Reads H3, the first record: `header` and the [`h3_len`] bytes after it. Nothing that arrives
    /// before this has succeeded may be believed.
    ///
    /// # Errors
    /// [`HandshakeError::Malformed`] if the header is not that of an H3,
    /// [`HandshakeError::NotLive`] if it does not open.
    pub fn read_h3(
        self,
        header: [u8; RECORD_HEADER_LEN],
        body: &mut [u8],
    ) -> Result<Established, HandshakeError> {
        h3_len(&header)?;
        let HandshakeConfig { protection, rekey } = self.config;
        let Secrets { initiator, responder, handshake_hash } = self.secrets;
        let mut opener = Opener::new(initiator, protection, rekey);
        let peer_identity = match opener.open_typed(RecordType::Identity, header, body) {
            Ok(identity) => identity.to_vec(),
            Err(RecordError::Forged) => return Err(HandshakeError::NotLive),
            Err(_) => return Err(HandshakeError::Malformed),
        };
        let sealer = Sealer::new(responder, protection, rekey);
        Ok(Established { session: Session { sealer, opener, handshake_hash }, peer_identity })
    }
}

/// How long the H2 is that begins with `prefix`: all of it, in bytes, at most [`H2_MAX_LEN`].
///
/// # Errors
/// [`HandshakeError::NotChatter`] if no H2 is so long or so short.
pub fn h2_len(prefix: &[u8; H2_PREFIX_LEN]) -> Result<usize, HandshakeError> {
    let len = H2_PREFIX_LEN + usize::from(u16::from_be_bytes(*prefix));
    if (H2_MAX_LEN - MAX_IDENTITY_LEN..=H2_MAX_LEN).contains(&len) {
        Ok(len)
    } else {
        Err(HandshakeError::NotChatter)
    }
}

/// How many bytes follow the header of an H3, at most [`H3_MAX_LEN`] - [`RECORD_HEADER_LEN`].
///
/// # Errors
/// [`HandshakeError::Malformed`] if it is not the header of an H3.
pub fn h3_len(header: &[u8; RECORD_HEADER_LEN]) -> Result<usize, HandshakeError> {
    body_len(RecordType::Identity, header, MAX_IDENTITY_LEN).map_err(|_| HandshakeError::Malformed)
}

/// An H1 whose mac1 is right; the only way to its Noise message.
struct SignedH1<'a> {
    hello: [u8; HELLO_LEN],
    flags: u8,
    zero: u16,
    noise: &'a [u8],
    mac1: &'a [u8; MAC1_LEN],
}

impl<'a> SignedH1<'a> {
    /// Looks at nothing but what identifies the peer's protocol and cluster, then at mac1.
    fn check(key: &ClusterKey, h1: &'a [u8; H1_LEN]) -> Result<Self, HandshakeError> {
        let (signed, mac1_theirs) =
            h1.split_last_chunk::<MAC1_LEN>().ok_or(HandshakeError::Malformed)?;
        let hello = *signed.first_chunk().ok_or(HandshakeError::Malformed)?;
        let mut r = Reader::new(signed);
        if r.take(MAGIC.len(), "magic").map_err(malformed)? != MAGIC {
            return Err(HandshakeError::NotChatter);
        }
        let version = r.u8("version").map_err(malformed)?;
        if version != VERSION {
            return Err(HandshakeError::Version { theirs: version, ours: VERSION });
        }
        let flags = r.u8("flags").map_err(malformed)?;
        let zero = r.u16("zero").map_err(malformed)?;
        if r.take(CLUSTER_TAG_LEN, "cluster tag").map_err(malformed)? != key.tag() {
            return Err(HandshakeError::OtherCluster);
        }
        check_mac1(&mac1(key.mac1(), &[signed]), mac1_theirs)?;
        Ok(Self { hello, flags, zero, noise: r.rest(), mac1: mac1_theirs })
    }

    /// Checks what a holder of the key may still have got wrong.
    fn open(self, protection: Protection) -> Result<Self, HandshakeError> {
        if self.flags & !FLAG_CLEAR != 0 || self.zero != 0 {
            return Err(HandshakeError::Malformed);
        }
        if self.flags != flags(protection) {
            let theirs_off = self.flags & FLAG_CLEAR != 0;
            return Err(HandshakeError::EncryptionMismatch { theirs_off });
        }
        Ok(self)
    }
}

/// What both directions start from. Contains no means to send or open packets before H3.
struct Secrets {
    initiator: Zeroizing<[u8; 32]>,
    responder: Zeroizing<[u8; 32]>,
    handshake_hash: [u8; 32],
}

fn split(noise: &mut HandshakeState) -> Result<Secrets, HandshakeError> {
    let hash = noise.get_handshake_hash().first_chunk().ok_or(HandshakeError::Crypto)?;
    let handshake_hash = *hash;
    let (initiator, responder) = noise.dangerously_get_raw_split();
    Ok(Secrets {
        initiator: Zeroizing::new(initiator),
        responder: Zeroizing::new(responder),
        handshake_hash,
    })
}

fn hello(key: &ClusterKey, protection: Protection) -> [u8; HELLO_LEN] {
    let mut out = [0; HELLO_LEN];
    out[..4].copy_from_slice(&MAGIC);
    out[4] = VERSION;
    out[5] = flags(protection);
    out[8..].copy_from_slice(&key.tag());
    out
}

fn flags(protection: Protection) -> u8 {
    match protection {
        Protection::Sealed => 0,
        Protection::Clear => FLAG_CLEAR,
    }
}

fn prologue(hello: &[u8; HELLO_LEN], config: HandshakeConfig) -> [u8; HELLO_LEN + 16] {
    let mut out = [0; HELLO_LEN + 16];
    out[..HELLO_LEN].copy_from_slice(hello);
    out[HELLO_LEN..HELLO_LEN + 8].copy_from_slice(&config.rekey.records.to_be_bytes());
    out[HELLO_LEN + 8..].copy_from_slice(&config.rekey.bytes.to_be_bytes());
    out
}

fn mac1(key: &hmac::Key, parts: &[&[u8]]) -> [u8; MAC1_LEN] {
    let mut context = hmac::Context::with_key(key);
    parts.iter().for_each(|part| context.update(part));
    let mut out = [0; MAC1_LEN];
    out.copy_from_slice(&context.sign().as_ref()[..MAC1_LEN]);
    out
}

fn check_mac1(ours: &[u8; MAC1_LEN], theirs: &[u8; MAC1_LEN]) -> Result<(), HandshakeError> {
    constant_time::verify_slices_are_equal(ours, theirs).map_err(|_| HandshakeError::BadMac)
}

fn check_identity(identity: &[u8]) -> Result<(), HandshakeError> {
    if identity.len() > MAX_IDENTITY_LEN {
        return Err(HandshakeError::IdentityTooLong { bytes: identity.len() });
    }
    Ok(())
}

fn malformed(_: WireError) -> HandshakeError {
    HandshakeError::Malformed
}

#[cfg(test)]
mod tests {
    use super::super::noise::tests::dh_count;
    use super::*;

    fn key() -> ClusterKey {
        ClusterKey::from_cookie(b"monster").unwrap()
    }

    fn read(key: &ClusterKey, h1: &[u8; H1_LEN]) -> Result<(Responder, Vec<u8>), HandshakeError> {
        Responder::read_h1(key, HandshakeConfig::new(true), h1, b"id", [2; 32])
    }

    fn sign(key: &ClusterKey, h1: &mut [u8; H1_LEN]) {
        let mac1 = mac1(key.mac1(), &[&h1[..H1_LEN - MAC1_LEN]]);
        h1[H1_LEN - MAC1_LEN..].copy_from_slice(&mac1);
    }

    /// Given an H1 without a right mac1, expect a refusal without any curve arithmetic, even if its
    /// point is an invalid one; a right H1 costs one operation.
    #[test]
    fn mac1_comes_before_curve_arithmetic() {
        let key = key();
        let (_, h1) = Initiator::new(&key, HandshakeConfig::new(true), [1; 32]).unwrap();
        let before = dh_count();
        let mut bad = h1;
        bad[H1_LEN - 1] ^= 1;
        assert_eq!(read(&key, &bad).err(), Some(HandshakeError::BadMac));
        bad[HELLO_LEN..HELLO_LEN + 32].fill(0);
        assert_eq!(read(&key, &bad).err(), Some(HandshakeError::BadMac));
        assert_eq!(dh_count(), before);
        // Signed, but not by Noise: refused by the psk's tag, still before any curve arithmetic.
        sign(&key, &mut bad);
        assert_eq!(read(&key, &bad).err(), Some(HandshakeError::Malformed));
        assert_eq!(dh_count(), before);
        read(&key, &h1).unwrap();
        assert_eq!(dh_count(), before + 1);
    }

    /// Given an H2 without a right mac1, expect the initiator to do no curve arithmetic.
    #[test]
    fn mac1_of_h2_comes_first() {
        let key = key();
        let config = HandshakeConfig::new(true);
        let (initiator, h1) = Initiator::new(&key, config, [1; 32]).unwrap();
        let (_, mut h2) = read(&key, &h1).unwrap();
        *h2.last_mut().unwrap() ^= 1;
        let before = dh_count();
        assert_eq!(initiator.read_h2(&h2, b"id").err(), Some(HandshakeError::BadMac));
        assert_eq!(dh_count(), before);
    }

    /// Given signed H1s with bits that have no meaning, expect them to be refused as malformed.
    #[test]
    fn unknown_bits_are_refused() {
        let key = key();
        let (_, h1) = Initiator::new(&key, HandshakeConfig::new(true), [1; 32]).unwrap();
        for (at, bit) in [(5, 0x02), (5, 0x80), (6, 0x01), (7, 0x80)] {
            let mut bad = h1;
            bad[at] |= bit;
            assert_eq!(read(&key, &bad).err(), Some(HandshakeError::BadMac));
            sign(&key, &mut bad);
            assert_eq!(read(&key, &bad).err(), Some(HandshakeError::Malformed));
        }
        // The flag of encryption, changed by a holder of the mac1 key only: the prologue differs.
        let mut bad = h1;
        bad[5] = FLAG_CLEAR;
        sign(&key, &mut bad);
        let mismatch = HandshakeError::EncryptionMismatch { theirs_off: true };
        assert_eq!(read(&key, &bad).err(), Some(mismatch));
        let clear = HandshakeConfig::new(false);
        let read = Responder::read_h1(&key, clear, &bad, b"id", [2; 32]);
        assert_eq!(read.err(), Some(HandshakeError::Malformed));
    }
}
