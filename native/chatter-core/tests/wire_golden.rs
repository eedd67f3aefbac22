//! Golden bytes of every packet, both ways, and the same bytes in docs/wire-format.md.

mod wire_vectors;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use chatter_core::channel::CHUNK_LEN;
use chatter_core::channel::options::{Class, SendOptions};
use chatter_core::channel::send::{Route, Sender};
use chatter_core::flow::FlowKey;
use chatter_core::ids::{ChannelIndex, NodeId};
use chatter_core::wire::bcast::Fate;
use chatter_core::wire::data::{DropReason, ResetReason, item};
use chatter_core::wire::datagram::kind;
use chatter_core::wire::hello::ByeReason;
use chatter_core::wire::identity::Identity;
use chatter_core::wire::{PacketType, next_packet};
use wire_vectors::{IDENTITY, OwnedItem, Value, hex, identity, vectors};

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/wire-format.md");

/// Given each golden value, expect its bytes; given the bytes, expect the value.
#[test]
fn both_ways() {
    for vector in vectors() {
        assert_eq!(vector.value.encode(), hex(vector.hex), "{}", vector.name);
        assert_eq!(Value::decode(&hex(vector.hex)), Ok(vector.value), "{}", vector.name);
    }
    assert_eq!(identity().encode(), hex(IDENTITY));
    assert_eq!(Identity::decode(&hex(IDENTITY)), Ok(identity()));
}

/// Given frames, handshake messages and acknowledgements, expect the sending half to make the golden
/// packets of them.
#[test]
#[expect(clippy::disallowed_methods, reason = "any base of virtual time")]
fn sender_makes_them() {
    let start = Instant::now();
    let golden = |name| hex(vectors().iter().find(|v| v.name == name).unwrap().hex);
    let route = Route {
        source: NodeId(0xa1a2_a3a4_a5a6_a7a8),
        destination: NodeId(0xb1b2_b3b4_b5b6_b7b8),
        channel: ChannelIndex(0xbbbb_0002),
    };
    let mut sender = Sender::new(route, 1 << 20, 256 * 1024);
    let next = |sender: &mut Sender| sender.poll_packet(start).unwrap().to_vec();
    sender.push_frame(&SendOptions::default(), &[], 0);
    sender.push_frame(&SendOptions::default(), &[b"peter", b"", b" pip"], 9);
    sender.end_batch();
    assert_eq!(next(&mut sender), golden("data-frames"));
    let large: Bytes = (0..CHUNK_LEN + 3).map(|i| i as u8).collect();
    sender.push_large_frame(
        &SendOptions::default(),
        &[large.slice(..5), large.slice(5..)],
        large.len(),
    );
    sender.end_batch();
    let (first, more) = (next(&mut sender), next(&mut sender));
    let (head, tail) = large.split_at(CHUNK_LEN);
    let item = |packet: &[u8]| match Value::decode(packet) {
        Ok(Value::Data(header, Some(0), items)) => (header.label, header.number, items),
        other => panic!("{other:?}"),
    };
    let total = large.len() as u32;
    let flow = |sequence| OwnedItem::Flow(0, sequence);
    let expected = vec![flow(2), OwnedItem::First(total, head.to_vec())];
    assert_eq!(item(&first), (1, 2, expected));
    assert_eq!(item(&more), (1, 3, vec![flow(3), OwnedItem::More(tail.to_vec())]));
    sender.push_handshake(b"sok");
    sender.end_batch();
    assert_eq!(next(&mut sender), golden("data-handshake"));
    sender.push_ack(17, (8 << 20) + 52);
    sender.push_frame(&SendOptions::default(), &[b"z"], 1);
    sender.end_batch();
    assert_eq!(next(&mut sender), golden("data-ack"));
    let options = SendOptions {
        flow: FlowKey::Flow(1),
        class: Class::High,
        deadline: Some(Duration::from_millis(100)),
        ..SendOptions::default()
    };
    sender.push_frame(&options, &[b"z"], 1);
    sender.end_batch();
    assert_eq!(next(&mut sender), golden("data-deadline"));
    assert_eq!(sender.poll_packet(start), None);
    let now = start + Duration::from_millis(101);
    sender.handle_route_change(now);
    let again: Vec<_> = std::iter::from_fn(|| sender.poll_packet(now)).collect();
    assert_eq!(again.len(), 6);
    assert_eq!(again[5].to_vec(), golden("data-void"), "nobody wants it any more");
}

/// Given a record with packets of an unknown type between others, expect the others.
#[test]
fn unknown_types_are_skipped() {
    let record = hex("000001 30 01  000003 7f 010203  000000 00  000001 30 02  000000 ff");
    let mut rest = &record[..];
    let packet = next_packet(&mut rest).unwrap().unwrap();
    assert_eq!(Value::of(packet), Ok(Value::Bye(ByeReason::Stop)));
    let packet = next_packet(&mut rest).unwrap().unwrap();
    assert_eq!(Value::of(packet), Ok(Value::Bye(ByeReason::Disconnect)));
    assert_eq!(next_packet(&mut rest), Ok(None));
}

/// Every block of the document that begins with "```hex NAME": its bytes by its name. What stands
/// behind a semicolon is a remark.
fn documented() -> BTreeMap<String, Vec<u8>> {
    let text = std::fs::read_to_string(DOCUMENT).unwrap();
    let mut found = BTreeMap::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(name) = line.strip_prefix("```hex ") else { continue };
        let body = lines.by_ref().take_while(|line| *line != "```");
        let digits: String = body.map(|line| line.split(';').next().unwrap_or_default()).collect();
        assert!(digits.chars().all(|c| c.is_ascii_hexdigit() || c == ' '), "{name}: {digits}");
        assert!(found.insert(name.to_owned(), hex(&digits)).is_none(), "{name} occurs twice");
    }
    found
}

/// The string behind `const NAME` in another test file.
fn constant(source: &str, name: &str) -> Vec<u8> {
    let (_, rest) = source.split_once(&format!("const {name}: ")).expect(name);
    let text = rest.split('"').nth(1).expect(name);
    hex(&text.replace('\\', ""))
}

/// Given the golden bytes of all tests and those of the document, expect the same names and bytes.
#[test]
fn document_has_them_all() {
    let handshake = include_str!("crypto_handshake.rs");
    let records = include_str!("crypto_records.rs");
    let datagrams = include_str!("datagrams.rs");
    let (_, golden) = records.split_once("const GOLDEN: [&str; 3]").unwrap();
    let golden: Vec<_> = golden.split('"').skip(1).step_by(2).take(3).map(hex).collect();
    let mut tested: BTreeMap<_, _> =
        vectors().into_iter().map(|v| (v.name.to_owned(), hex(v.hex))).collect();
    for (name, bytes) in [
        ("identity", hex(IDENTITY)),
        ("h1", constant(handshake, "GOLDEN_H1")),
        ("h2", constant(handshake, "GOLDEN_H2")),
        ("h3", constant(handshake, "GOLDEN_H3")),
        ("handshake-hash", constant(handshake, "GOLDEN_HASH")),
        ("record-there", constant(handshake, "GOLDEN_THERE")),
        ("record-back", constant(handshake, "GOLDEN_BACK")),
        ("beacon", constant(datagrams, "GOLDEN_BEACON")),
        ("datagram", constant(datagrams, "GOLDEN_DATAGRAM")),
        ("cast", constant(datagrams, "GOLDEN_CAST")),
        ("nak", constant(datagrams, "GOLDEN_NAK")),
        ("cast-hello", constant(datagrams, "GOLDEN_CAST_HELLO")),
        ("record-1", golden[0].clone()),
        ("record-2", golden[1].clone()),
        ("record-3", golden[2].clone()),
    ] {
        assert!(tested.insert(name.to_owned(), bytes).is_none(), "{name} is used twice");
    }
    let documented = documented();
    let names = |map: &BTreeMap<String, Vec<u8>>| map.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(names(&documented), names(&tested));
    for (name, bytes) in tested {
        assert_eq!(documented[&name], bytes, "{name}");
    }
}

/// Given each code point, expect its row in the document, and no row for another.
#[test]
fn document_has_the_code_points() {
    let text = std::fs::read_to_string(DOCUMENT).unwrap();
    let mut rows = BTreeSet::new();
    for code in 0..=255 {
        if let Some(kind) = PacketType::from_code(code) {
            assert_eq!(kind as u8, code);
            rows.insert(format!("| 0x{code:02x} | {} |", shout(&format!("{kind:?}"))));
        }
    }
    for (code, name) in [
        (item::FRAME, "FRAME"),
        (item::FIRST, "FIRST"),
        (item::MORE, "MORE"),
        (item::HANDSHAKE, "HANDSHAKE"),
        (item::ACK, "ACK"),
        (item::FLOW, "FLOW"),
        (item::END, "END"),
        (item::VOID, "VOID"),
        (item::LOST, "LOST"),
    ] {
        rows.insert(format!("| {code} | {name} |"));
    }
    for (code, name) in [
        (kind::BEACON, "BEACON"),
        (kind::CAST, "CAST"),
        (kind::NAK, "NAK"),
        (kind::CAST_HELLO, "CAST_HELLO"),
    ] {
        rows.insert(format!("| 0x{code:02x} | {name} |"));
    }
    use ResetReason as Why;
    for reason in [
        Why::Closed,
        Why::Unknown,
        Why::Refused,
        Why::Protocol,
        Why::Unreachable,
        Why::Restarted,
        Why::Lost,
        Why::Unused,
        Why::Stopped,
    ] {
        rows.insert(format!("| {} | {} |", reason as u8, shout(&format!("{reason:?}"))));
    }
    for fate in [Fate::Done, Fate::Busy, Fate::Open] {
        rows.insert(format!("| {} | {} |", fate as u8, shout(&format!("{fate:?}"))));
    }
    for reason in [DropReason::NoRoute, DropReason::HopLimit] {
        rows.insert(format!("| {} | {} |", reason as u8, shout(&format!("{reason:?}"))));
    }
    for reason in [ByeReason::Stop, ByeReason::Disconnect, ByeReason::Clash] {
        rows.insert(format!("| {} | {} |", reason as u8, shout(&format!("{reason:?}"))));
    }
    let shown: BTreeSet<String> = text.lines().filter_map(code_row).collect();
    assert_eq!(shown, rows);
}

/// The first two cells of a row that gives a code point its name.
fn code_row(line: &str) -> Option<String> {
    let mut cells = line.strip_prefix("| ")?.split(" | ");
    let (code, name) = (cells.next()?, cells.next()?);
    let is_code = code.starts_with("0x") || code.parse::<u8>().is_ok();
    let is_name = name.chars().all(|c| c.is_ascii_uppercase() || c == '_');
    (is_code && is_name).then(|| format!("| {code} | {name} |"))
}

/// `ResetAck` as RESET_ACK.
fn shout(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.push(c.to_ascii_uppercase());
    }
    out
}
