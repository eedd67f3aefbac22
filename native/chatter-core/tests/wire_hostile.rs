//! Bytes that no honest peer sends: expect a refusal, never a panic, and never memory by claim.

mod wire_vectors;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use chatter_core::channel::options::SendOptions;
use chatter_core::channel::receive::{Receiver, Sink};
use chatter_core::channel::send::{Route, Sender};
use chatter_core::ids::{ChannelIndex, NodeId};
use chatter_core::wire::bcast::BCAST_FIXED_LEN;
use chatter_core::wire::data::{Ack, MAX_ACK_RANGES, Open, Opened, Reset, Unreachable, next_item};
use chatter_core::wire::hello::{ByeReason, Hello};
use chatter_core::wire::identity::Identity;
use chatter_core::wire::lsp::Lsp;
use chatter_core::wire::reader::WireError;
use chatter_core::wire::routed::ROUTED_HEADER_LEN;
use chatter_core::wire::{MAX_PACKET_BODY, PACKET_HEADER_LEN, PacketType, next_packet};
use proptest::prelude::*;
use wire_vectors::{IDENTITY, OwnedItem, Value, hex, identity, items, vectors};

/// Notes the largest single allocation of a thread.
struct Watching;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: it does what `System` does, which keeps the contract, and notes a number besides.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.try_with(|largest| largest.set(largest.get().max(layout.size()))).ok();
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`, and `alloc` came from `System`.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static WATCHING: Watching = Watching;

/// The largest allocation during `work`.
fn largest_during(work: impl FnOnce()) -> usize {
    LARGEST.set(0);
    work();
    LARGEST.get()
}

/// Where contents begin in a routed packet.
const CONTENT: usize = PACKET_HEADER_LEN + ROUTED_HEADER_LEN;

fn golden(name: &str) -> Vec<u8> {
    hex(vectors().iter().find(|v| v.name == name).expect(name).hex)
}

/// The packet of that type with that body, which it announces.
fn framed(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = (body.len() as u32).to_be_bytes()[1..].to_vec();
    out.push(kind);
    out.extend_from_slice(body);
    out
}

/// Given a golden packet cut at every length, expect a refusal.
#[test]
fn every_truncation_of_a_packet() {
    for vector in vectors() {
        let bytes = hex(vector.hex);
        for len in 0..bytes.len() {
            let result = Value::decode(&bytes[..len]);
            assert!(matches!(result, Err(WireError::Truncated(_))), "{} {len}", vector.name);
        }
    }
}

/// Given golden contents cut at every length inside a packet that announces so many bytes, expect a
/// refusal; of DATA, BCAST and BCAST_ACK only what ends with an item, message or number is whole.
#[test]
fn every_truncation_of_a_content() {
    for vector in vectors() {
        let bytes = hex(vector.hex);
        for len in 0..bytes.len() - PACKET_HEADER_LEN {
            let cut = framed(bytes[3], &bytes[PACKET_HEADER_LEN..][..len]);
            match Value::decode(&cut) {
                Err(WireError::Truncated(_)) => {}
                Ok(value @ (Value::Data(..) | Value::Bcast(..) | Value::BcastAck(..))) => {
                    assert_eq!(value.encode(), cut, "{} {len}", vector.name);
                }
                other => panic!("{} {len}: {other:?}", vector.name),
            }
        }
    }
}

/// Given a byte more than there should be, expect a refusal.
#[test]
fn trailing_bytes() {
    for vector in vectors() {
        let mut bytes = hex(vector.hex);
        bytes.push(0);
        let longer = framed(bytes[3], &bytes[PACKET_HEADER_LEN..]);
        let refused = match &vector.value {
            Value::Data(..) | Value::Bcast(..) | Value::BcastAck(..) => {
                matches!(Value::decode(&longer), Err(WireError::Truncated(_)))
            }
            _ => matches!(Value::decode(&longer), Err(WireError::Trailing(_))),
        };
        assert!(refused, "{}: {:?}", vector.name, Value::decode(&longer));
        assert!(Value::decode(&bytes).is_err(), "{}", vector.name);
    }
}

/// Every length and count: vector, offset, bytes of the field.
const LENGTHS: [(&str, usize, usize); 32] = [
    ("bcast", 0, 3),
    ("bcast", PACKET_HEADER_LEN + 2, 2),
    ("bcast", PACKET_HEADER_LEN + BCAST_FIXED_LEN + 31, 1),
    ("bcast", PACKET_HEADER_LEN + BCAST_FIXED_LEN + 37, 3),
    ("bcast-ack", 0, 3),
    ("bcast-ack-open", 0, 3),
    ("cast-ack", 0, 3),
    ("cast-ack", CONTENT + 1, 1),
    ("data-frames", 0, 3),
    ("data-frames", CONTENT + 5, 3),
    ("data-frames", CONTENT + 17, 3),
    ("data-frames", CONTENT + 21, 3),
    ("data-first", CONTENT + 17, 3),
    ("data-first", CONTENT + 20, 4),
    ("data-more", CONTENT + 17, 3),
    ("data-handshake", CONTENT + 5, 3),
    ("data-ack", CONTENT + 5, 3),
    ("data-end", CONTENT + 17, 3),
    ("data-void", CONTENT + 17, 3),
    ("data-lost", CONTENT + 17, 3),
    ("open", 0, 3),
    ("open", CONTENT + 29, 1),
    ("opened", 0, 3),
    ("ack", CONTENT + 16, 1),
    ("ack-ranges", CONTENT + 16, 1),
    ("reset", 0, 3),
    ("unreachable", 0, 3),
    ("hello", 0, 3),
    ("lsp", PACKET_HEADER_LEN + 2, 2),
    ("lsp", PACKET_HEADER_LEN + 32, 1),
    ("lsp", PACKET_HEADER_LEN + 39, 1),
    ("summary", PACKET_HEADER_LEN + 16, 2),
];

/// Given each length and count at 0, 1, its largest value and off by one, expect a refusal, or a value
/// that has these very bytes.
#[test]
fn every_length_corrupted() {
    let mut refused = 0;
    for (name, at, width) in LENGTHS {
        let bytes = golden(name);
        let mut old = [0; 8];
        old[8 - width..].copy_from_slice(&bytes[at..at + width]);
        let old = u64::from_be_bytes(old);
        let max = (1 << (8 * width)) - 1;
        for new in [0, 1, max, max / 2, old.wrapping_sub(1) & max, (old + 1) & max] {
            if new == old {
                continue;
            }
            let mut bad = bytes.clone();
            bad[at..at + width].copy_from_slice(&new.to_be_bytes()[8 - width..]);
            let largest = largest_during(|| match Value::decode(&bad) {
                Ok(value) => assert_eq!(value.encode(), bad, "{name} {at} {new}"),
                Err(_) => refused += 1,
            });
            assert!(largest <= 2 * bad.len() + 1024, "{name} {at} {new}: {largest} bytes");
        }
    }
    assert!(refused > 80, "{refused} refusals");
}

/// Given each byte of each vector with each other value, expect a refusal, or a value that has these
/// very bytes: nothing is read in two ways.
#[test]
fn every_byte_changed() {
    for vector in vectors() {
        let bytes = hex(vector.hex);
        for at in 0..bytes.len() {
            for new in 0..=255 {
                let mut bad = bytes.clone();
                bad[at] = new;
                let Ok(value) = Value::decode(&bad) else { continue };
                if value == Value::Bye(ByeReason::Other) {
                    continue;
                }
                assert_eq!(value.encode(), bad, "{} byte {at} = {new}", vector.name);
            }
        }
    }
}

/// The same for the identity of the handshake.
#[test]
fn identity_truncated_and_changed() {
    let bytes = hex(IDENTITY);
    for len in 0..bytes.len() {
        assert!(matches!(Identity::decode(&bytes[..len]), Err(WireError::Truncated(_))), "{len}");
    }
    for at in 0..bytes.len() {
        for new in 0..=255 {
            let mut bad = bytes.clone();
            bad[at] = new;
            if let Ok(read) = Identity::decode(&bad) {
                assert_eq!(read.encode(), bad, "byte {at} = {new}");
            }
        }
    }
    assert_eq!(Identity::decode(&[bytes, vec![0]].concat()), Err(WireError::Trailing("identity")));
    assert_eq!(Identity::decode(&hex(IDENTITY)), Ok(identity()));
}

/// Given each unknown code point, expect packets to be skipped and all else to be refused.
#[test]
fn unknown_code_points() {
    for code in 0..=255 {
        let record = framed(code, &[]);
        let known = PacketType::from_code(code).is_some();
        assert_eq!(next_packet(&mut &record[..]).unwrap().is_some(), known, "type {code:#x}");
        let is_empty = matches!(code, 1 | 3 | 4 | 7);
        assert_eq!(items(&[code, 0, 0, 0]).is_ok(), is_empty, "item {code}");
        let mut reset = golden("reset")[CONTENT..].to_vec();
        reset[16] = code;
        assert_eq!(Reset::decode(&reset).is_ok(), (1..=9).contains(&code), "reason {code}");
        let mut notice = golden("unreachable")[CONTENT..].to_vec();
        notice[0] = code;
        assert_eq!(Unreachable::decode(&notice).is_ok(), matches!(code, 1 | 2), "drop {code}");
    }
}

/// Given bodies at the limits and one over them, expect the first and refuse the second.
#[test]
fn limits() {
    let body = vec![0; MAX_PACKET_BODY + 1];
    assert!(next_packet(&mut &framed(0x10, &body[1..])[..]).unwrap().is_some());
    let error = next_packet(&mut &framed(0x10, &body)[..]).unwrap_err();
    assert!(matches!(error, WireError::TooLong { field: "packet", len: 65_001, .. }));
    // Unknown types are not skipped over their limit either.
    assert!(next_packet(&mut &framed(0x7f, &body)[..]).is_err());
    let range = |i: u64| (10 * i + 2, 10 * i + 4);
    let full = Ack { next: 1, credit: 0, ranges: (0..MAX_ACK_RANGES as u64).map(range).collect() };
    assert_eq!(Ack::decode(&full.encode()), Ok(full.clone()));
    let mut over = full.encode();
    over[16] += 1;
    over.extend_from_slice(&[0xff; 16]);
    assert!(matches!(Ack::decode(&over), Err(WireError::TooLong { .. })));
    // What is too much to tell is left out.
    let mut many = full.clone();
    many.ranges.push((1_000, 1_001));
    assert_eq!(Ack::decode(&many.encode()), Ok(full));
}

/// Given ranges that are empty, that turn back, overlap or lie below `next`, expect a refusal.
#[test]
fn ranges_must_ascend() {
    for ranges in [
        vec![(6, 6)],
        vec![(7, 6)],
        vec![(4, 6)],
        vec![(6, 9), (8, 10)],
        vec![(8, 9), (6, 7)],
        vec![(6, u64::MAX), (u64::MAX - 1, u64::MAX)],
    ] {
        let ack = Ack { next: 5, credit: 0, ranges };
        assert_eq!(Ack::decode(&ack.encode()), Err(WireError::Invalid("ack range")), "{ack:?}");
    }
}

/// Indices of 0 have no meaning where a channel is made, and names must be UTF-8.
#[test]
fn values_without_meaning() {
    let mut open = golden("open")[CONTENT..].to_vec();
    open[..4].fill(0);
    assert_eq!(Open::decode(&open), Err(WireError::Invalid("channel index")));
    let mut opened = golden("opened")[CONTENT..].to_vec();
    opened[..4].fill(0);
    assert_eq!(Opened::decode(&opened), Err(WireError::Invalid("channel index")));
    let mut open = golden("open")[CONTENT..].to_vec();
    *open.last_mut().unwrap() = 0xff;
    assert_eq!(Open::decode(&open), Err(WireError::Invalid("name")));
    let mut open = golden("open-messages")[CONTENT..].to_vec();
    open[28] = 2;
    assert_eq!(Open::decode(&open), Err(WireError::Invalid("channel kind")));
}

/// Counts what it gets and holds nothing.
#[derive(Default)]
struct Counting {
    bytes: u64,
}

impl Sink for Counting {
    fn frame(&mut self, _: Option<u32>, frame: &[u8], _: u64) {
        self.bytes += frame.len() as u64;
    }
    fn frame_start(&mut self, _: Option<u32>, _: usize) {}
    fn frame_part(&mut self, _: Option<u32>, part: &[u8]) {
        self.bytes += part.len() as u64;
    }
    fn frame_end(&mut self, _: Option<u32>, _: u64) {}
    fn handshake(&mut self, message: &[u8], _: u64) {
        self.bytes += message.len() as u64;
    }
}

/// Items behind a number of fences; most belong to flows and are not far from what comes next.
fn some_content() -> impl Strategy<Value = Vec<u8>> {
    let flow = (0..3u32, 0..6u32).prop_map(|(flow, sequence)| {
        (6u8, [flow.to_be_bytes(), sequence.to_be_bytes()].concat(), 0)
    });
    let item = prop_oneof![
        flow.clone(),
        flow,
        (Just(1u8), proptest::collection::vec(any::<u8>(), 0..30), Just(0)),
        (0..9u8, proptest::collection::vec(any::<u8>(), 0..40), -1..2i32),
        (Just(2u8), Just(vec![0, 0, 0, 30, 1, 2]), Just(0)),
        (Just(3u8), proptest::collection::vec(any::<u8>(), 0..30), Just(0)),
        (0..40u8).prop_map(|cost| (8u8, vec![0, 0, 0, cost], 0)),
    ];
    (0..3u32, proptest::collection::vec(item, 0..6)).prop_map(|(fences, items)| {
        let mut out = fences.to_be_bytes().to_vec();
        for (kind, body, off) in items {
            let len = (body.len() as i32 + off).max(0) as u32;
            out.push(kind);
            out.extend_from_slice(&len.to_be_bytes()[1..]);
            out.extend_from_slice(&body);
        }
        out
    })
}

fn some_number() -> impl Strategy<Value = u64> {
    prop_oneof![0..40u64, 0..40u64, (u64::MAX - 3)..=u64::MAX, any::<u64>()]
}

fn no_files() -> ProptestConfig {
    ProptestConfig { cases: 2_000, failure_persistence: None, ..Default::default() }
}

proptest! {
    #![proptest_config(no_files())]

    /// Given any bytes, expect every reader to end without a panic, and without an allocation that is
    /// much larger than what came in.
    #[test]
    fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let largest = largest_during(|| {
            let mut rest = &bytes[..];
            while let Ok(Some(packet)) = next_packet(&mut rest) {
                drop(Value::of(packet));
            }
            let mut rest = &bytes[..];
            while let Ok(Some(_)) = next_item(&mut rest) {}
            drop(Ack::decode(&bytes));
            drop(Open::decode(&bytes));
            let _ = Opened::decode(&bytes);
            drop(Identity::decode(&bytes));
            drop(Lsp::decode(&bytes));
            let _ = Hello::decode(&bytes);
            for kind in [0x01, 0x02, 0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x30] {
                drop(Value::decode(&framed(kind, &bytes)));
            }
        });
        prop_assert!(largest <= 64 * bytes.len() + 1024, "{largest} bytes for {}", bytes.len());
    }

    /// Given any packets of a channel, expect the receiving half to refuse or take them and to hold no
    /// more than its window.
    #[test]
    fn any_data(packets in proptest::collection::vec(
        (some_number(), any::<bool>(), some_content()),
        1..40,
    )) {
        let mut receiver = Receiver::new(1_000, 500);
        let mut sink = Counting::default();
        let mut acks = Vec::new();
        for (number, is_fence, content) in packets {
            let taken = receiver.handle_data(number, is_fence, &content, &mut sink, &mut acks);
            let ack = receiver.take_ack();
            prop_assert_eq!(Ack::decode(&ack.encode()), Ok(ack));
            prop_assert!(receiver.ahead_bytes() <= 20 * 1_000);
            if taken.is_err() {
                break;
            }
        }
        prop_assert!(sink.bytes <= 1_000 + 500);
    }

    /// Given any acknowledgements, expect the sending half to go on, to stay within what it was
    /// granted, and to make no packet that was not pushed.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "any base of virtual time")]
    fn any_acks(acks in proptest::collection::vec(
        (some_number(), some_number(), proptest::collection::vec((some_number(), some_number()), 0..5)),
        1..30,
    )) {
        let mut now = std::time::Instant::now();
        let route =
            Route { source: NodeId(1), destination: NodeId(2), channel: ChannelIndex(3) };
        let mut sender = Sender::new(route, 300, 256 * 1024);
        for i in 0..30u8 {
            sender.push_frame(&SendOptions::default(), &[&[i; 20]], 20);
            sender.end_batch();
        }
        for (next, credit, mut ranges) in acks {
            ranges.retain(|(from, to)| from < to);
            ranges.sort_unstable();
            now += std::time::Duration::from_millis(50);
            sender.handle_ack(now, &Ack { next, credit, ranges });
            sender.handle_timeout(now);
            for _ in 0..200 {
                let Some(packet) = sender.poll_packet(now) else { break };
                match Value::decode(&packet.to_vec()) {
                    Ok(Value::Data(header, Some(0), items)) if header.number == 0 => {
                        prop_assert_eq!(items, vec![]);
                    }
                    Ok(Value::Data(header, Some(0), items)) => {
                        let tag = header.number as u8 - 1;
                        let flow = OwnedItem::Flow(0, u32::from(tag));
                        prop_assert_eq!(items, vec![flow, OwnedItem::Frame(vec![tag; 20])]);
                    }
                    other => prop_assert!(false, "{other:?}"),
                }
            }
            prop_assert!(sender.poll_packet(now).is_none(), "no end of packets");
        }
    }
}
