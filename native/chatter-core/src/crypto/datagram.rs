//! Seals and opens multicast datagrams ([`crate::wire::datagram`]).
//!
//! AES-256-GCM-SIV (RFC 8452) with one key for each sender and life: HKDF-Expand of the datagram secret
//! with `sender ` ‖ node id ‖ incarnation. The nonce is four zero bytes and the counter, the additional
//! data the 40 bytes of the header. A machine that is cloned while it runs may repeat a nonce: with this
//! cipher, that shows only whether the two datagrams are the same.
//!
//! The check is HMAC-SHA256, cut to 8 bytes, of the 32 bytes before it. It costs a fraction of a
//! microsecond, and only holders of the cluster key can make one: whoever cannot is dropped before any
//! key is derived or looked up. A header can be recorded and put in front of something else; that costs
//! the receiver one failed opening. Then the counter is looked at: it is taken once in the life of a sender.
//! What is remembered of a sender changes only when a datagram has been opened.

use std::num::NonZeroUsize;

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac;
use lru::LruCache;
use thiserror::Error;

use super::kdf::{self, Secret};
use super::key::ClusterKey;
use super::replay::{Stale, Window};
use crate::ids::{Incarnation, NodeId};
use crate::wire::datagram::{
    CHECKED_LEN, DATAGRAM_HEADER_LEN, DATAGRAM_TAG_LEN, DatagramHeader, MAX_DATAGRAM,
    MAX_DATAGRAM_PLAIN,
};

const CHECK_LEN: usize = DATAGRAM_HEADER_LEN - CHECKED_LEN;

/// Why a datagram was dropped. Nothing has changed by it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum DatagramError {
    /// No datagram of this version of Chatter.
    #[error("no datagram of this version")]
    Malformed,
    /// The check is wrong: another cluster, or a stranger.
    #[error("the check is not of this cluster")]
    Foreign,
    /// Of a former life of its sender.
    #[error("of a former life of its sender")]
    FormerLife,
    /// It was opened before.
    #[error("repeated")]
    Repeated,
    /// Too far behind the newest of its sender.
    #[error("too old")]
    Old,
    /// Changed on its way, or put together by somebody without the key.
    #[error("forged")]
    Forged,
}

/// What all senders of a cluster have in common.
struct Keys {
    check: hmac::Key,
    secret: Secret,
}

impl Keys {
    fn new(cluster: &ClusterKey) -> Self {
        let check = cluster.derive("datagram check");
        Self {
            check: hmac::Key::new(hmac::HMAC_SHA256, check.as_slice()),
            secret: cluster.derive("datagram secret"),
        }
    }

    fn check(&self, header: &[u8; CHECKED_LEN]) -> [u8; CHECK_LEN] {
        let mut check = [0; CHECK_LEN];
        check.copy_from_slice(&hmac::sign(&self.check, header).as_ref()[..CHECK_LEN]);
        check
    }

    fn of_sender(&self, sender: NodeId, incarnation: Incarnation) -> LessSafeKey {
        let label =
            [b"sender ".as_slice(), &sender.0.to_be_bytes(), &incarnation.0.to_be_bytes()].concat();
        let key = kdf::expand_bytes(&self.secret, &label);
        // Fails only for a key of another length.
        let key = UnboundKey::new(&AES_256_GCM_SIV, key.as_slice()).expect("BUG! 32 bytes");
        LessSafeKey::new(key)
    }
}

fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

/// Makes the datagrams of one life of a node. There must be one only: it counts them.
pub struct DatagramSealer {
    keys: Keys,
    key: LessSafeKey,
    sender: NodeId,
    incarnation: Incarnation,
    counter: u64,
}

impl DatagramSealer {
    /// Starts to count.
    pub fn new(cluster: &ClusterKey, sender: NodeId, incarnation: Incarnation) -> Self {
        let keys = Keys::new(cluster);
        let key = keys.of_sender(sender, incarnation);
        Self { keys, key, sender, incarnation, counter: 0 }
    }

    /// Another life of the same node begins; counting goes on.
    pub fn begin_life(&mut self, incarnation: Incarnation) {
        self.key = self.keys.of_sender(self.sender, incarnation);
        self.incarnation = incarnation;
    }

    /// The number of the datagram that was made last; 0 before the first.
    pub fn counter(&self) -> u64 {
        self.counter
    }

    /// Writes the next datagram into `out`, which is cleared first.
    ///
    /// # Panics
    /// With more than [`MAX_DATAGRAM_PLAIN`] bytes: whoever puts messages together sees to that.
    pub fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) {
        assert!(plain.len() <= MAX_DATAGRAM_PLAIN, "BUG! datagram of {} bytes", plain.len());
        self.counter += 1;
        let (sender, incarnation, counter) = (self.sender, self.incarnation, self.counter);
        let header = DatagramHeader { sender, incarnation, counter }.encode();
        out.clear();
        out.extend_from_slice(&header);
        out.extend_from_slice(&self.keys.check(&header));
        let mut aad = [0; DATAGRAM_HEADER_LEN];
        aad.copy_from_slice(out);
        out.extend_from_slice(plain);
        let tag = self
            .key
            .seal_in_place_separate_tag(
                nonce(counter),
                Aad::from(aad),
                &mut out[DATAGRAM_HEADER_LEN..],
            )
            .expect("BUG! AES-256-GCM-SIV of a datagram");
        out.extend_from_slice(tag.as_ref());
    }
}

/// A datagram that is what its sender sealed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opened<'a> {
    /// Who sent it, in which life, and its number.
    pub header: DatagramHeader,
    /// Its messages.
    pub plain: &'a [u8],
}

struct Sender {
    incarnation: Incarnation,
    key: LessSafeKey,
    window: Window,
}

/// Opens datagrams, each once.
pub struct DatagramOpener {
    keys: Keys,
    me: NodeId,
    senders: LruCache<NodeId, Sender>,
}

impl DatagramOpener {
    /// Remembers the newest life and the counters of so many senders (at least 1), those that sent last:
    /// about 1 KiB each. What was sent by others before could be played again.
    pub fn new(cluster: &ClusterKey, me: NodeId, max_senders: usize) -> Self {
        let max = NonZeroUsize::new(max_senders).unwrap_or(NonZeroUsize::MIN);
        Self { keys: Keys::new(cluster), me, senders: LruCache::new(max) }
    }

    /// Checks the header alone: whether a holder of the cluster key made it. For datagrams of this node
    /// itself, which come back to it, that is all there is to know.
    ///
    /// # Errors
    /// [`DatagramError::Malformed`], [`DatagramError::Foreign`].
    pub fn check(&self, datagram: &[u8]) -> Result<DatagramHeader, DatagramError> {
        if !(DATAGRAM_HEADER_LEN + DATAGRAM_TAG_LEN..=MAX_DATAGRAM).contains(&datagram.len()) {
            return Err(DatagramError::Malformed);
        }
        let header = DatagramHeader::decode(datagram).map_err(|_| DatagramError::Malformed)?;
        let (checked, rest) =
            datagram.split_first_chunk::<CHECKED_LEN>().ok_or(DatagramError::Malformed)?;
        verify_slices_are_equal(&self.keys.check(checked), &rest[..CHECK_LEN])
            .map_err(|_| DatagramError::Foreign)?;
        Ok(header)
    }

    /// Opens a datagram in place. One of this node itself is never opened ([`DatagramError::Repeated`]).
    ///
    /// # Errors
    /// Why it is to be dropped, silently; the bytes may have been overwritten.
    pub fn open<'a>(&mut self, datagram: &'a mut [u8]) -> Result<Opened<'a>, DatagramError> {
        let header = self.check(datagram)?;
        self.open_checked(header, datagram)
    }

    /// The second half of [`open`](Self::open): `header` is what [`check`](Self::check) said.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_checked<'a>(
        &mut self,
        header: DatagramHeader,
        datagram: &'a mut [u8],
    ) -> Result<Opened<'a>, DatagramError> {
        let DatagramHeader { sender, incarnation, counter } = header;
        if sender == self.me {
            return Err(DatagramError::Repeated);
        }
        let known = self.senders.peek(&sender);
        let fresh = match known {
            Some(known) if incarnation < known.incarnation => {
                return Err(DatagramError::FormerLife);
            }
            Some(known) if incarnation == known.incarnation => {
                known.window.check(counter).map_err(|stale| match stale {
                    Stale::Repeated => DatagramError::Repeated,
                    Stale::Old => DatagramError::Old,
                })?;
                None
            }
            _ if counter == 0 => return Err(DatagramError::Old),
            _ => Some(self.keys.of_sender(sender, incarnation)),
        };
        let key = fresh.as_ref().or(known.map(|known| &known.key)).ok_or(DatagramError::Forged)?;
        let (head, sealed) =
            datagram.split_at_mut_checked(DATAGRAM_HEADER_LEN).ok_or(DatagramError::Malformed)?;
        let plain = key
            .open_in_place(nonce(counter), Aad::from(&*head), sealed)
            .map_err(|_| DatagramError::Forged)?;
        if let Some(key) = fresh {
            let mut window = Window::new();
            window.take(counter);
            self.senders.put(sender, Sender { incarnation, key, window });
        } else if let Some(known) = self.senders.get_mut(&sender) {
            known.window.take(counter);
        }
        Ok(Opened { header, plain })
    }

    /// Senders that are remembered.
    pub fn senders(&self) -> usize {
        self.senders.len()
    }
}
