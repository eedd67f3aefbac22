//! How a link is secured: the cluster key, the handshake, the records.
//!
//! | key | made of | protects |
//! |---|---|---|
//! | cluster key ([`key::ClusterKey`]) | configured, or Argon2id of the cookie | nothing directly; everything below is derived from it |
//! | mac1 key | HKDF of the cluster key | the node from strangers: no curve arithmetic, no allocation without it |
//! | cluster tag (public) | HKDF of the cluster key | nothing; it tells clusters apart in logs |
//! | Noise psk | HKDF of the cluster key | the handshake: only holders of the cluster key finish it |
//! | ephemeral X25519 keys | 32 bytes of entropy per handshake and end | the past: a cluster key stolen later opens no recorded link |
//! | chain secret per direction | Noise split | the key of the records, and its successors |
//! | datagram check key | HKDF of the cluster key | the node from strangers' datagrams: nothing else is done without it |
//! | datagram key per sender and life | HKDF of the cluster key | multicast datagrams ([`datagram`]): AES-256-GCM-SIV |
//! | record key per direction and epoch | HKDF of the chain secret | the records ([`record`]): AES-256-GCM |
//!
//! Members of a cluster are not protected from each other here: whoever has the cluster key may be
//! any node. What a relay may see is the matter of the data plane, not of a link.
//!
//! # The life of a link
//!
//! ```text
//! initiator                                   responder
//! Initiator::new            -- H1 (80 B) -->  Responder::read_h1
//! Initiator::read_h2        <------ H2 -----
//!   = Session               ------- H3 ---->  Responder::read_h3
//!                                               = Session
//! Sealer / Opener          <-- records -->    Sealer / Opener
//! ```
//!
//! Each step consumes the state before it, so nothing that belongs to an established link can be
//! named before the peer has proved that it has the key. Any error ends the connection; a responder
//! says nothing to the network when it refuses.

pub mod datagram;
pub mod handshake;
mod kdf;
pub mod key;
mod noise;
mod published;
pub mod record;
mod replay;

pub use datagram::{DatagramError, DatagramOpener, DatagramSealer, Opened};
pub use handshake::{
    Established, H1_LEN, H2_MAX_LEN, H2_PREFIX_LEN, H3_MAX_LEN, HandshakeConfig, HandshakeError,
    Initiator, MAX_IDENTITY_LEN, Responder, Session, h2_len, h3_len,
};
pub use key::{CLUSTER_TAG_LEN, ClusterKey, KeyError, MAX_COOKIE_LEN};
pub use record::{
    MAX_RECORD_PLAIN, Opener, Protection, RECORD_HEADER_LEN, RecordError, RekeyLimits, Sealer,
    TAG_LEN,
};
