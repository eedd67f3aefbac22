//! The handshake as two ends and an attacker between them see it.

use chatter_core::crypto::{
    ClusterKey, Established, H1_LEN, H2_MAX_LEN, H3_MAX_LEN, HandshakeConfig, HandshakeError,
    Initiator, MAX_IDENTITY_LEN, Protection, RECORD_HEADER_LEN, RekeyLimits, Responder, h2_len,
    h3_len,
};

const SEALED: HandshakeConfig = HandshakeConfig {
    protection: Protection::Sealed,
    rekey: RekeyLimits { records: 1 << 24, bytes: 64 << 30 },
};
const CLEAR: HandshakeConfig = HandshakeConfig { protection: Protection::Clear, ..SEALED };

fn key() -> ClusterKey {
    ClusterKey::parse(b"d7119a5e0382fe40b56c2190ee1377ca08f35ba644dd19608f32e1049d56b82f").unwrap()
}

fn other_key() -> ClusterKey {
    ClusterKey::parse(b"e7119a5e0382fe40b56c2190ee1377ca08f35ba644dd19608f32e1049d56b82f").unwrap()
}

fn h1(config: HandshakeConfig, seed: u8) -> (Initiator, [u8; H1_LEN]) {
    Initiator::new(&key(), config, [seed; 32]).unwrap()
}

fn h2(config: HandshakeConfig, h1: &[u8; H1_LEN], seed: u8) -> (Responder, Vec<u8>) {
    Responder::read_h1(&key(), config, h1, b"responder", [seed; 32]).unwrap()
}

fn read_h1(h1: &[u8; H1_LEN]) -> Result<(Responder, Vec<u8>), HandshakeError> {
    Responder::read_h1(&key(), SEALED, h1, b"responder", [9; 32])
}

fn read_h3(responder: Responder, h3: &[u8]) -> Result<Established, HandshakeError> {
    let (header, body) = h3.split_first_chunk::<RECORD_HEADER_LEN>().unwrap();
    responder.read_h3(*header, &mut body.to_vec())
}

/// All three messages; initiator's end, responder's end.
fn link(config: HandshakeConfig) -> (Established, Established) {
    let (initiator, h1) = h1(config, 1);
    let (responder, h2) = h2(config, &h1, 2);
    let (near, h3) = initiator.read_h2(&h2, b"initiator").unwrap();
    let far = read_h3(responder, &h3).unwrap();
    (near, far)
}

fn error<T>(result: Result<T, HandshakeError>) -> HandshakeError {
    result.err().expect("must be refused")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Given two ends with one key, expect both to know each other and to share keys, in both modes.
#[test]
fn two_ends_meet() {
    for config in [SEALED, CLEAR] {
        let (mut near, mut far) = link(config);
        assert_eq!(near.peer_identity, b"responder");
        assert_eq!(far.peer_identity, b"initiator");
        assert_eq!(near.session.handshake_hash, far.session.handshake_hash);
        for round in 0..3 {
            let there = [round; 100];
            let mut record = Vec::new();
            near.session.sealer.seal_from(b"", &there, &mut record).unwrap();
            let (header, body) = record.split_first_chunk_mut::<4>().unwrap();
            assert_eq!(far.session.opener.open_in_place(*header, body).unwrap(), there);
            let back = [round + 100; 10];
            let mut record = Vec::new();
            far.session.sealer.seal_from(&back, b"", &mut record).unwrap();
            let (header, body) = record.split_first_chunk_mut::<4>().unwrap();
            assert_eq!(near.session.opener.open_in_place(*header, body).unwrap(), back);
        }
    }
}

/// Given identities of every extreme length, expect them to arrive; one byte more is refused.
#[test]
fn identities_have_a_limit() {
    for len in [0, 1, MAX_IDENTITY_LEN] {
        let id = vec![0xa5; len];
        let (initiator, h1) = h1(SEALED, 1);
        let (responder, h2) = Responder::read_h1(&key(), SEALED, &h1, &id, [2; 32]).unwrap();
        assert!(h2.len() <= H2_MAX_LEN);
        assert_eq!(h2_len(h2.first_chunk().unwrap()).unwrap(), h2.len());
        let (near, h3) = initiator.read_h2(&h2, &id).unwrap();
        assert!(h3.len() <= H3_MAX_LEN);
        assert_eq!(h3_len(h3.first_chunk().unwrap()).unwrap(), h3.len() - RECORD_HEADER_LEN);
        assert_eq!(near.peer_identity, id);
        assert_eq!(read_h3(responder, &h3).unwrap().peer_identity, id);
    }
    let bytes = MAX_IDENTITY_LEN + 1;
    let id = vec![0; bytes];
    let (initiator, h1) = h1(SEALED, 1);
    let (_, h2) = h2(SEALED, &h1, 2);
    let too_long = HandshakeError::IdentityTooLong { bytes };
    assert_eq!(error(Responder::read_h1(&key(), SEALED, &h1, &id, [2; 32])), too_long);
    assert_eq!(error(initiator.read_h2(&h2, &id)), too_long);
}

/// Given ends that do not fit each other, expect the responder to know why.
#[test]
fn misfits_are_named() {
    let (_, good) = h1(SEALED, 1);
    let stranger = *b"GET / HTTP/1.1\r\nHost: example.org\r\nUser-Agent: scanner of the internet 0.0.1\r\n\r\n"
        .first_chunk()
        .unwrap();
    assert_eq!(error(read_h1(&stranger)), HandshakeError::NotChatter);
    assert_eq!(error(read_h1(&[0; H1_LEN])), HandshakeError::NotChatter);
    let mut newer = good;
    newer[4] = 3;
    assert_eq!(error(read_h1(&newer)), HandshakeError::Version { theirs: 3, ours: 2 });
    let (_, other) = Initiator::new(&other_key(), SEALED, [1; 32]).unwrap();
    assert_eq!(error(read_h1(&other)), HandshakeError::OtherCluster);
    // Another key under our tag: who reads the tag off the wire gets no further.
    let mut posing = other;
    posing[8..16].copy_from_slice(&key().tag());
    assert_eq!(error(read_h1(&posing)), HandshakeError::BadMac);
    let mismatch = |theirs_off| HandshakeError::EncryptionMismatch { theirs_off };
    assert_eq!(error(read_h1(&h1(CLEAR, 1).1)), mismatch(true));
    let clear = Responder::read_h1(&key(), CLEAR, &good, b"", [2; 32]);
    assert_eq!(error(clear), mismatch(false));
    let rekey = RekeyLimits { records: 5, bytes: 5 };
    let limits = HandshakeConfig { rekey, ..SEALED };
    let other_limits = Responder::read_h1(&key(), limits, &good, b"", [2; 32]);
    assert_eq!(error(other_limits), HandshakeError::Malformed);
}

/// Given every single-byte change of H1, expect a refusal; of the mac1 and what it covers: BadMac.
#[test]
fn every_changed_byte_of_h1_is_refused() {
    let (_, good) = h1(SEALED, 1);
    for at in 0..H1_LEN {
        for bits in [0x01, 0x80, 0xff] {
            let mut bad = good;
            bad[at] ^= bits;
            let expected = match at {
                0..4 => HandshakeError::NotChatter,
                4 => HandshakeError::Version { theirs: bad[4], ours: 2 },
                8..16 => HandshakeError::OtherCluster,
                _ => HandshakeError::BadMac,
            };
            assert_eq!(error(read_h1(&bad)), expected, "byte {at}");
        }
    }
}

/// Given every single-byte change and every truncation of H2, expect a refusal.
#[test]
fn every_changed_byte_of_h2_is_refused() {
    let (_, h1_bytes) = h1(SEALED, 1);
    let (_, good) = h2(SEALED, &h1_bytes, 2);
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        let refused = error(h1(SEALED, 1).0.read_h2(&bad, b"initiator"));
        if at >= 2 {
            assert_eq!(refused, HandshakeError::BadMac, "byte {at}");
        }
        error(h1(SEALED, 1).0.read_h2(&good[..at], b"initiator"));
        // Truncated with a length that fits.
        if at >= 2 {
            let mut short = good[..at].to_vec();
            short[..2].copy_from_slice(&((at - 2) as u16).to_be_bytes());
            error(h1(SEALED, 1).0.read_h2(&short, b"initiator"));
        }
    }
    let longer = [&good[..], b"x"].concat();
    error(h1(SEALED, 1).0.read_h2(&longer, b"initiator"));
    h1(SEALED, 1).0.read_h2(&good, b"initiator").unwrap();
}

/// Given every single-byte change and every truncation of H3, expect a refusal, in both modes.
#[test]
fn every_changed_byte_of_h3_is_refused() {
    for config in [SEALED, CLEAR] {
        let (initiator, h1) = h1(config, 1);
        let (responder, h2_bytes) = h2(config, &h1, 2);
        let (_, good) = initiator.read_h2(&h2_bytes, b"initiator").unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x04;
            let refused = error(read_h3(h2(config, &h1, 2).0, &bad));
            if at >= RECORD_HEADER_LEN {
                assert_eq!(refused, HandshakeError::NotLive, "byte {at}");
            }
            if at >= RECORD_HEADER_LEN {
                error(read_h3(h2(config, &h1, 2).0, &good[..at]));
            }
        }
        read_h3(responder, &good).unwrap();
    }
}

/// Given recordings of a whole handshake, expect none of them to open anything.
#[test]
fn recordings_are_refused() {
    let (initiator, h1_old) = h1(SEALED, 1);
    let (responder, h2_old) = h2(SEALED, &h1_old, 2);
    let (_, h3_old) = initiator.read_h2(&h2_old, b"initiator").unwrap();
    read_h3(responder, &h3_old).unwrap();
    // H1 and H3 again: the responder has a new ephemeral key, and H3 does not open.
    let (responder, h2_new) = h2(SEALED, &h1_old, 3);
    assert_eq!(error(read_h3(responder, &h3_old)), HandshakeError::NotLive);
    // H2 again, to a new H1.
    let (initiator, h1_new) = h1(SEALED, 4);
    assert_eq!(error(initiator.read_h2(&h2_old, b"")), HandshakeError::BadMac);
    assert_eq!(error(h1(SEALED, 4).0.read_h2(&h2_new, b"")), HandshakeError::BadMac);
    // H3 of another link.
    let (responder, _) = h2(SEALED, &h1_new, 2);
    assert_eq!(error(read_h3(responder, &h3_old)), HandshakeError::NotLive);
}

/// Given an end's own messages sent back to it, expect them to be refused.
#[test]
fn reflections_are_refused() {
    let (initiator, h1_bytes) = h1(SEALED, 1);
    assert_eq!(error(initiator.read_h2(&h1_bytes, b"")), HandshakeError::NotChatter);
    let (near, h3) = {
        let (_, h2) = h2(SEALED, &h1_bytes, 2);
        h1(SEALED, 1).0.read_h2(&h2, b"initiator").unwrap()
    };
    let mut opener = near.session.opener;
    let (header, body) = h3.split_first_chunk::<4>().unwrap();
    opener.open_in_place(*header, &mut body.to_vec()).unwrap_err();

    let (mut near, _) = link(SEALED);
    let mut record = Vec::new();
    near.session.sealer.seal_from(b"", b"mine", &mut record).unwrap();
    let (header, body) = record.split_first_chunk_mut::<4>().unwrap();
    near.session.opener.open_in_place(*header, body).unwrap_err();
}

/// Given H3 sent twice, or a data record in its place, expect neither to be taken.
#[test]
fn h3_is_the_first_record_and_only_that() {
    let (initiator, h1) = h1(SEALED, 1);
    let (responder, h2_bytes) = h2(SEALED, &h1, 2);
    let (mut near, h3) = initiator.read_h2(&h2_bytes, b"initiator").unwrap();
    let mut far = read_h3(responder, &h3).unwrap();
    let (header, body) = h3.split_first_chunk::<4>().unwrap();
    far.session.opener.open_in_place(*header, &mut body.to_vec()).unwrap_err();
    let mut record = Vec::new();
    near.session.sealer.seal_from(b"", b"data", &mut record).unwrap();
    let (responder, _) = h2(SEALED, &h1, 2);
    assert_eq!(error(read_h3(responder, &record)), HandshakeError::Malformed);
}

/// Given every prefix and header, expect a length within the limits or an error.
#[test]
fn lengths_are_within_limits() {
    for len in 0..=u16::MAX {
        match h2_len(&len.to_be_bytes()) {
            Ok(total) => assert!(total == usize::from(len) + 2 && total <= H2_MAX_LEN),
            Err(refused) => assert_eq!(refused, HandshakeError::NotChatter),
        }
    }
    for (header, expected) in [
        ([0, 0, 15, 3], None),
        ([0, 0, 16, 3], Some(16)),
        ([0, 0x02, 0x68, 3], Some(616)),
        ([0, 0x02, 0x69, 3], None),
        ([0xff, 0xff, 0xff, 3], None),
        ([0, 0, 16, 1], None),
    ] {
        assert_eq!(h3_len(&header).ok(), expected);
    }
}

/// Given the same entropy for both roles and for two links, expect different messages and keys.
#[test]
fn entropy_is_separated_by_role() {
    let (_, h1_bytes) = h1(SEALED, 1);
    let (_, h2_bytes) = h2(SEALED, &h1_bytes, 1);
    assert_ne!(h1_bytes[16..48], h2_bytes[2..34]);
    let (_, other) = h1(SEALED, 2);
    assert_ne!(h1_bytes[16..48], other[16..48]);
}

/// Given a fixed key and fixed entropy, expect the bytes of docs/wire-format.md.
#[test]
fn golden_handshake() {
    let (initiator, h1) = h1(SEALED, 1);
    assert_eq!(hex(&h1), GOLDEN_H1);
    let (responder, h2) = h2(SEALED, &h1, 2);
    assert_eq!(hex(&h2), GOLDEN_H2);
    let (mut near, h3) = initiator.read_h2(&h2, b"initiator").unwrap();
    assert_eq!(hex(&h3), GOLDEN_H3);
    let mut far = read_h3(responder, &h3).unwrap();
    assert_eq!(hex(&near.session.handshake_hash), GOLDEN_HASH);
    let mut record = Vec::new();
    near.session.sealer.seal_from(b"to the ", b"responder", &mut record).unwrap();
    assert_eq!(hex(&record), GOLDEN_THERE);
    record.clear();
    far.session.sealer.seal_from(b"to the ", b"initiator", &mut record).unwrap();
    assert_eq!(hex(&record), GOLDEN_BACK);
}

// Made by a second implementation, in Python; not by this crate.
const GOLDEN_H1: &str = "\
    4348543102000000fa58b505ae0fb406608cbdbcb5d4e246da06db23d9f7875bbb811ac14502281a\
    f82b20391fc4196c88234be0c1a7b204aa788057ca28ed518b5d20d01317dcf5714a682da856c26d";
const GOLDEN_H2: &str = "\
    004989eabc687d8a1f8f109c078c410bc72cb13438f6c6556f392eb0e04aeed3ec6cea7d05627754\
    0347f419ace8bed35fb0bf9bbe7ca52d00fab66224edf78d98c1851dfc71278b2767e7";
const GOLDEN_H3: &str = "000019033d1ca893fedf6a18771465d4a911bc2d02b33729c3b5aee8d4";
const GOLDEN_HASH: &str = "ae116c1b4a729e0d4bffd17e9aa9266d4e476f4170a2e78e04809139a84342ce";
const GOLDEN_THERE: &str =
    "0000200156731caacfe3d73193dd149cdb7a08dedee0bb29321fd4dd1408ff5678612332";
const GOLDEN_BACK: &str =
    "00002001b4bf6045a431b1719ce48a0de0ac307be33372063f1ca264c1809b3602157e90";

/// Measures; run with `--release -- --ignored --nocapture speed`.
#[test]
#[ignore = "measures instead of testing"]
#[expect(clippy::disallowed_methods, reason = "a measurement needs a clock")]
fn speed() {
    let best = |name: &str, rounds: u32, work: &mut dyn FnMut()| {
        let best = (0..rounds)
            .map(|_| {
                let start = std::time::Instant::now();
                work();
                start.elapsed()
            })
            .min();
        println!("{name:>22}: {best:?}");
    };
    best("key from cookie", 10, &mut || drop(ClusterKey::from_cookie(b"monster").unwrap()));
    best("handshake, both ends", 1_000, &mut || drop(link(SEALED)));
    let key = key();
    let read = |h1: &[u8; H1_LEN]| Responder::read_h1(&key, SEALED, h1, b"", [9; 32]);
    let (_, mut bad) = h1(SEALED, 1);
    best("H1 refused by its tag", 1_000, &mut || {
        bad[9] = 0;
        drop(read(&bad));
    });
    let (_, mut bad) = h1(SEALED, 1);
    bad[H1_LEN - 1] ^= 1;
    best("H1 refused by mac1", 1_000, &mut || drop(read(&bad)));
}
