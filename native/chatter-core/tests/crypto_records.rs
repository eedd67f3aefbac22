//! Records as two ends and an attacker between them see them.

use chatter_core::crypto::{
    MAX_RECORD_PLAIN, Opener, Protection, RECORD_HEADER_LEN, RecordError, RekeyLimits, Sealer,
    TAG_LEN,
};
use proptest::prelude::*;
use zeroize::Zeroizing;

const BOTH: [Protection; 2] = [Protection::Sealed, Protection::Clear];

fn pair(protection: Protection, limits: RekeyLimits) -> (Sealer, Opener) {
    let secret = Zeroizing::new([0x42; 32]);
    (Sealer::new(secret.clone(), protection, limits), Opener::new(secret, protection, limits))
}

fn fresh(protection: Protection) -> (Sealer, Opener) {
    pair(protection, RekeyLimits::default())
}

fn open(opener: &mut Opener, record: &[u8]) -> Result<Vec<u8>, RecordError> {
    let (header, body) = record.split_first_chunk::<RECORD_HEADER_LEN>().unwrap();
    let mut body = body.to_vec();
    opener.record_len(header)?;
    opener.open_in_place(*header, &mut body).map(|plain| plain.to_vec())
}

fn seal(sealer: &mut Sealer, plain: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    sealer.seal_from(b"", plain, &mut out).unwrap();
    out
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 % 251) as u8).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]

    /// Given any size and any cut of it, expect the three ways to seal to make the same bytes, which
    /// open to the plaintext, in both modes.
    #[test]
    fn every_size_makes_the_round_trip(
        len in prop_oneof![0..=80_usize, 0..=MAX_RECORD_PLAIN],
        cut in 0..=80_usize,
        before in 0..20_usize,
    ) {
        let plain = pattern(len);
        let (head, tail) = plain.split_at(cut.min(len));
        for protection in BOTH {
            let mut out = vec![0xee; before];
            fresh(protection).0.seal_from(head, tail, &mut out).unwrap();
            prop_assert_eq!(out.len() - before, fresh(protection).0.record_len(len));
            let mut in_place = vec![0xee; before + RECORD_HEADER_LEN];
            in_place.extend_from_slice(&plain);
            fresh(protection).0.seal_in_place(&mut in_place, before).unwrap();
            in_place[..before].fill(0xee);
            prop_assert!(out == in_place);
            let mut buffer = vec![0x77; len + 40];
            let n = fresh(protection).0.seal_into(head, tail, &mut buffer).unwrap();
            prop_assert!(out[before..] == buffer[..n]);
            prop_assert!(buffer[n..].iter().all(|&b| b == 0x77));
            prop_assert!(open(&mut fresh(protection).1, &out[before..]).unwrap() == plain);
        }
    }

    /// Given any bytes as a record, expect an error from a sealed link and no panic.
    #[test]
    fn noise_is_refused(record in prop::collection::vec(any::<u8>(), 4..200)) {
        prop_assert!(open(&mut fresh(Protection::Sealed).1, &record).is_err());
        let _ = open(&mut fresh(Protection::Clear).1, &record);
    }
}

/// Given the largest record and one byte more, expect the first to pass and the other to be refused.
#[test]
fn largest_record() {
    for protection in BOTH {
        let (mut sealer, mut opener) = fresh(protection);
        let plain = pattern(MAX_RECORD_PLAIN + 1);
        let too_long = RecordError::TooLong { len: plain.len() };
        assert_eq!(sealer.seal_from(b"", &plain, &mut Vec::new()), Err(too_long));
        assert_eq!(sealer.seal_from(&plain, b"", &mut Vec::new()), Err(too_long));
        assert_eq!(sealer.seal_in_place(&mut vec![0; plain.len() + 4], 0), Err(too_long));
        assert_eq!(sealer.seal_into(b"", &plain, &mut vec![0; 70_000]), Err(too_long));
        let plain = &plain[1..];
        let short = RecordError::TooLong { len: plain.len() };
        assert_eq!(sealer.seal_into(b"", plain, &mut vec![0; MAX_RECORD_PLAIN]), Err(short));
        // What was refused has used no nonce: the peer is still in step.
        let record = seal(&mut sealer, plain);
        assert_eq!(open(&mut opener, &record).unwrap(), plain);
    }
}

/// Given length fields at their extremes, expect the limits to hold before any body is there.
#[test]
fn length_field_extremes() {
    let header = |len: usize, code: u8| {
        let [_, a, b, c] = (len as u32).to_be_bytes();
        [a, b, c, code]
    };
    let (_, sealed) = fresh(Protection::Sealed);
    let (_, clear) = fresh(Protection::Clear);
    let max = MAX_RECORD_PLAIN;
    for len in 0..TAG_LEN {
        assert_eq!(sealed.record_len(&header(len, 1)), Err(RecordError::TooShort { len }));
    }
    assert_eq!(sealed.record_len(&header(TAG_LEN, 1)), Ok(TAG_LEN));
    assert_eq!(sealed.record_len(&header(max + TAG_LEN, 1)), Ok(max + TAG_LEN));
    let over = Err(RecordError::TooLong { len: max + 1 });
    assert_eq!(sealed.record_len(&header(max + 1 + TAG_LEN, 1)), over);
    let most = 0xff_ffff - TAG_LEN;
    assert_eq!(sealed.record_len(&header(0xff_ffff, 1)), Err(RecordError::TooLong { len: most }));
    assert_eq!(clear.record_len(&header(0, 2)), Ok(0));
    assert_eq!(clear.record_len(&header(max, 2)), Ok(max));
    assert_eq!(clear.record_len(&header(max + 1, 2)), over);
    for code in 0..=u8::MAX {
        assert_eq!(sealed.record_len(&header(100, code)).is_ok(), code == 1);
        assert_eq!(clear.record_len(&header(100, code)).is_ok(), code == 2);
    }
}

/// Given a clear record on a sealed link and the reverse, expect both to be refused.
#[test]
fn protections_do_not_mix() {
    let sealed = seal(&mut fresh(Protection::Sealed).0, b"text");
    let clear = seal(&mut fresh(Protection::Clear).0, b"text");
    assert_eq!(open(&mut fresh(Protection::Sealed).1, &clear), Err(RecordError::Type(2)));
    assert_eq!(open(&mut fresh(Protection::Clear).1, &sealed), Err(RecordError::Type(1)));
    assert_eq!(clear, [&[0, 0, 4, 2][..], b"text"].concat());
}

/// Given every changed byte and every truncation of a record, expect a refusal.
#[test]
fn every_changed_byte_is_refused() {
    let record = seal(&mut fresh(Protection::Sealed).0, &pattern(300));
    for at in 0..record.len() {
        for bits in [0x01, 0x80] {
            let mut bad = record.clone();
            bad[at] ^= bits;
            open(&mut fresh(Protection::Sealed).1, &bad).unwrap_err();
        }
        if at >= RECORD_HEADER_LEN {
            open(&mut fresh(Protection::Sealed).1, &record[..at]).unwrap_err();
            // Truncated with a length that fits.
            let mut short = record[..at].to_vec();
            short[..3].copy_from_slice(&((at - 4) as u32).to_be_bytes()[1..]);
            open(&mut fresh(Protection::Sealed).1, &short).unwrap_err();
        }
    }
}

/// Given a repeated, a skipped and a swapped record, expect a refusal, and the link to stay dead.
#[test]
fn order_is_part_of_the_record() {
    let (mut sealer, _) = fresh(Protection::Sealed);
    let records: Vec<_> = (0..4).map(|i| seal(&mut sealer, &[i; 10])).collect();
    for order in [[0, 0], [1, 0], [0, 2]] {
        let mut opener = fresh(Protection::Sealed).1;
        let opened: Vec<_> = order.iter().map(|&i| open(&mut opener, &records[i])).collect();
        assert!(opened.contains(&Err(RecordError::Forged)), "{order:?}");
        assert_eq!(open(&mut opener, &records[1]), Err(RecordError::Spent));
        assert_eq!(open(&mut opener, &records[0]), Err(RecordError::Spent));
    }
}

/// Given tiny limits and thousands of records, expect both ends to change keys in step.
#[test]
fn ratchets_stay_in_step() {
    for limits in [
        RekeyLimits { records: 1, bytes: u64::MAX },
        RekeyLimits { records: 7, bytes: u64::MAX },
        RekeyLimits { records: u64::MAX, bytes: 1 },
        RekeyLimits { records: u64::MAX, bytes: 1_000 },
        RekeyLimits { records: 10, bytes: 2_000 },
        RekeyLimits { records: 0, bytes: 0 },
    ] {
        let (mut sealer, mut opener) = pair(Protection::Sealed, limits);
        for i in 0..5_000_usize {
            let plain = pattern(i * 7 % 400);
            let record = seal(&mut sealer, &plain);
            assert_eq!(open(&mut opener, &record).unwrap(), plain, "{limits:?} record {i}");
        }
    }
}

/// Given equal plaintexts on both sides of a key change, expect different ciphertexts, and none of
/// an old epoch to open in a new one.
#[test]
fn epochs_do_not_mix() {
    let limits = RekeyLimits { records: 2, bytes: u64::MAX };
    let (mut sealer, mut opener) = pair(Protection::Sealed, limits);
    let records: Vec<_> = (0..6).map(|_| seal(&mut sealer, b"same")).collect();
    for (i, a) in records.iter().enumerate() {
        assert!(records[i + 1..].iter().all(|b| a != b));
    }
    open(&mut opener, &records[0]).unwrap();
    open(&mut opener, &records[1]).unwrap();
    assert_eq!(open(&mut opener, &records[0]), Err(RecordError::Forged));
}

/// Given a fixed secret, expect the bytes of docs/wire-format.md: two records of an epoch
/// and the first of the next.
#[test]
fn golden_records() {
    let limits = RekeyLimits { records: 2, bytes: u64::MAX };
    let (mut sealer, _) = pair(Protection::Sealed, limits);
    let records: Vec<_> = (0..3).map(|_| seal(&mut sealer, b"golden")).collect();
    let shown: Vec<String> =
        records.iter().map(|r| r.iter().map(|b| format!("{b:02x}")).collect()).collect();
    assert_eq!(shown, GOLDEN);
}

// Made by a second implementation, on Erlang's crypto; not by this crate.
const GOLDEN: [&str; 3] = [
    "00001601124637942167ef0347941c5ef0fcff4eea8c86557e9b",
    "00001601b534858e9478324dc08aefab23ffbcf0996f29afb692",
    "0000160147890c2584df40ef3869b1f8fa6b3d8fb71409c8a28b",
];

/// Measures; run with `--release -- --ignored --nocapture speed`.
#[test]
#[ignore = "measures instead of testing"]
#[expect(clippy::disallowed_methods, reason = "a measurement needs a clock")]
fn speed() {
    let time = |name: &str, len: usize, work: &mut dyn FnMut()| {
        // The best of many short batches: other programs disturb some of them, not all.
        let rounds = 3_000_000 / (len + 1_500);
        let best = (0..400)
            .map(|_| {
                let start = std::time::Instant::now();
                (0..rounds).for_each(|_| work());
                start.elapsed().as_secs_f64() / rounds as f64
            })
            .fold(f64::MAX, f64::min);
        println!(
            "{name:>22} {len:>6} B: {:>8.1} ns {:>6.2} GB/s",
            best * 1e9,
            len as f64 / best / 1e9
        );
    };
    for len in [100, 1_024, 16_384, 65_536] {
        let (mut sealer, _) = fresh(Protection::Sealed);
        let plain = pattern(len);
        let head = [7; 36];
        let mut out = Vec::with_capacity(len + 100);
        out.resize(len + RECORD_HEADER_LEN, 0);
        time("seal_in_place", len, &mut || {
            out.truncate(len + RECORD_HEADER_LEN);
            sealer.seal_in_place(&mut out, 0).unwrap();
        });
        time("seal_from", len, &mut || {
            out.clear();
            sealer.seal_from(&head, &plain, &mut out).unwrap();
        });
        let mut buffer = vec![0; len + 100];
        time("seal_into", len, &mut || {
            sealer.seal_into(&head, &plain, &mut buffer).unwrap();
        });
        time("zero + seal_into", len, &mut || {
            out.clear();
            out.resize(sealer.record_len(len + 36), 0);
            sealer.seal_into(&head, &plain, &mut out).unwrap();
        });
        // Plaintext that is not in the cache: a walk through 64 MiB.
        let cold = pattern(64 << 20);
        let mut at = 0;
        let mut next = || {
            at = if at + 2 * len > cold.len() { 0 } else { at + len };
            at
        };
        time("seal_from, cold", len, &mut || {
            let at = next();
            out.clear();
            sealer.seal_from(&head, &cold[at..at + len], &mut out).unwrap();
        });
        time("seal_into, cold", len, &mut || {
            let at = next();
            sealer.seal_into(&head, &cold[at..at + len], &mut buffer).unwrap();
        });
        open_speed(len);
    }
}

/// Opens a batch of records made beforehand, as opening destroys them.
#[expect(clippy::disallowed_methods, reason = "a measurement needs a clock")]
fn open_speed(len: usize) {
    let count = (1 << 20) / (len + 20);
    let mut best = f64::MAX;
    for _ in 0..200 {
        let (mut sealer, mut opener) = fresh(Protection::Sealed);
        let plain = pattern(len);
        let mut all = Vec::with_capacity(count * (len + 20));
        (0..count).for_each(|_| sealer.seal_from(b"", &plain, &mut all).unwrap());
        let start = std::time::Instant::now();
        let mut rest = &mut all[..];
        while !rest.is_empty() {
            let (header, tail) = rest.split_first_chunk_mut::<4>().unwrap();
            let (body, tail) = tail.split_at_mut(opener.record_len(header).unwrap());
            opener.open_in_place(*header, body).unwrap();
            rest = tail;
        }
        best = best.min(start.elapsed().as_secs_f64() / count as f64);
    }
    println!(
        "{:>22} {len:>6} B: {:>8.1} ns {:>6.2} GB/s",
        "open",
        best * 1e9,
        len as f64 / best / 1e9
    );
}
