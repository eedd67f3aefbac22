//! Datagrams and beacons: golden bytes, each opened once and only as it was sealed, nothing but an error
//! for all else.

mod wire_vectors;

use std::net::SocketAddr;

use chatter_core::crypto::{ClusterKey, DatagramError, DatagramOpener, DatagramSealer};
use chatter_core::ids::{Incarnation, NodeId};
use chatter_core::wire::bcast::{self, Batch, Target};
use chatter_core::wire::beacon::{Beacon, MAX_SEEN};
use chatter_core::wire::cast::{Cast, CastHello, Gap, Nak, room_for};
use chatter_core::wire::datagram::{
    DATAGRAM_HEADER_LEN, DATAGRAM_TAG_LEN, MAX_DATAGRAM, MAX_DATAGRAM_PLAIN, MAX_MESSAGE_BODY,
    Message, kind, next_message, put_message,
};
use proptest::prelude::*;
use wire_vectors::hex;

const ME: NodeId = NodeId(0xb1b2_b3b4_b5b6_b7b8);
const SENDER: NodeId = NodeId(0xa1a2_a3a4_a5a6_a7a8);
const LIFE: Incarnation = Incarnation(0x0006_4f3a_1b2c_3d4e);

// Made by a second implementation, in Python; not by this crate.
const GOLDEN_BEACON: &str = "00752f066140686f737402040a000001752f0620010db8000000000000000000000001752f\
    01b1b2b3b4b5b6b7b800064f3a1b2c3d00";
const GOLDEN_CAST: &str = "0002a1a2a3a4a5a6a7a800062b3c4d5e6f7000000000000000090000000000000008\
    b1b2b3b4b5b6b7b86f7100c1c2c3c4c5c6c7c86f7002000000000000000300\
    0568656c6c6f000003006162";
const GOLDEN_NAK: &str = "0001a1a2a3a4a5a6a7a800062b3c4d5e6f700000000000000009000000000000000c";
const GOLDEN_CAST_HELLO: &str = "0002a1a2a3a4a5a6a7a800062b3c4d5e6f70\
    b1b2b3b4b5b6b7b86f71000000000000000cc1c2c3c4c5c6c7c86f700000000000000009";
const GOLDEN_DATAGRAM: &str = "4348544401000000a1a2a3a4a5a6a7a800064f3a1b2c3d4e00000000000000018f08391c\
    fc2376eee9261f49b24b664bbd94d3beb3434e8a7f78b8482c57960e6e351d7ae8ee3ed85421c11c823df0cdb9e3c3bf79\
    7b0b5301667e203eba4d65ca6dad21da9dd9d08b423ee238452c183e";

fn key(last: char) -> ClusterKey {
    let digits = format!("d7119a5e0382fe40b56c2190ee1377ca08f35ba644dd19608f32e1049d56b82{last}");
    ClusterKey::parse(digits.as_bytes()).unwrap()
}

fn sealer() -> DatagramSealer {
    DatagramSealer::new(&key('f'), SENDER, LIFE)
}

fn opener() -> DatagramOpener {
    DatagramOpener::new(&key('f'), ME, 16)
}

fn seal(sealer: &mut DatagramSealer, plain: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    sealer.seal(plain, &mut out);
    out
}

fn open(opener: &mut DatagramOpener, datagram: &[u8]) -> Result<Vec<u8>, DatagramError> {
    opener.open(&mut datagram.to_vec()).map(|opened| opened.plain.to_vec())
}

fn beacon() -> Beacon {
    let addresses = ["10.0.0.1:29999", "[2001:db8::1]:29999"];
    Beacon {
        name: "a@host".into(),
        port: 29_999,
        addresses: addresses.map(|a| a.parse().unwrap()).to_vec(),
        seen: vec![(ME, Incarnation(0x0006_4f3a_1b2c_3d00))],
    }
}

/// Given the value, expect the bytes of docs/wire-format.md; given the bytes, the value.
#[test]
fn golden() {
    let body = hex(GOLDEN_BEACON);
    assert_eq!(beacon().encode(), body);
    assert_eq!(Beacon::decode(&body), Ok(beacon()));
    let mut plain = Vec::new();
    assert!(put_message(&mut plain, kind::BEACON, &body));
    assert_eq!(seal(&mut sealer(), &plain), hex(GOLDEN_DATAGRAM));
    let mut datagram = hex(GOLDEN_DATAGRAM);
    let mut opener = opener();
    let opened = opener.open(&mut datagram).unwrap();
    assert_eq!((opened.header.sender, opened.header.incarnation), (SENDER, LIFE));
    assert_eq!((opened.header.counter, opened.plain), (1, &plain[..]));
}

fn cast() -> Cast {
    let mut messages = Vec::new();
    let (part, body) = (bcast::Part::Whole, &b"\0ab"[..]);
    bcast::put_message(&mut messages, &bcast::Message { part, lz4: false, kind: "hello", body });
    let target =
        |id, life, prev| Target { id: NodeId(id), life, direct: false, links_only: false, prev };
    Cast {
        targets: vec![
            target(0xb1b2_b3b4_b5b6_b7b8, 0x6f71, 8),
            target(0xc1c2_c3c4_c5c6_c7c8, 0x6f70, 3),
        ],
        batch: Batch {
            origin: SENDER,
            incarnation: Incarnation(0x0006_2b3c_4d5e_6f70),
            first: 9,
            messages: messages.into(),
        },
    }
}

fn nak() -> Nak {
    let gap = Gap { after: 9, upto: 12 };
    Nak { gaps: vec![(SENDER, Incarnation(0x0006_2b3c_4d5e_6f70), gap)] }
}

fn cast_hello() -> CastHello {
    CastHello {
        origin: SENDER,
        incarnation: Incarnation(0x0006_2b3c_4d5e_6f70),
        targets: vec![(ME, 0x6f71, 12), (NodeId(0xc1c2_c3c4_c5c6_c7c8), 0x6f70, 9)],
    }
}

/// The same for what broadcasts send, with every truncation refused, and every other byte refused or
/// read as nothing else.
#[test]
fn golden_casts() {
    let Cast { targets, batch } = cast();
    let (cast_bytes, nak_bytes) = (hex(GOLDEN_CAST), hex(GOLDEN_NAK));
    assert_eq!(Cast::encode(&batch, &targets), cast_bytes);
    assert_eq!(Cast::decode(&cast_bytes), Ok(cast()));
    assert_eq!(nak().encode(), nak_bytes);
    assert_eq!(Nak::decode(&nak_bytes), Ok(nak()));
    let cast_again = |bytes: &[u8]| {
        Cast::decode(bytes).map(|cast| Cast::encode(&cast.batch, &cast.targets)).ok()
    };
    let nak_again = |bytes: &[u8]| Nak::decode(bytes).map(|nak| nak.encode()).ok();
    let hello_bytes = hex(GOLDEN_CAST_HELLO);
    assert_eq!(cast_hello().encode(), hello_bytes);
    assert_eq!(CastHello::decode(&hello_bytes), Ok(cast_hello()));
    let hello_again = |bytes: &[u8]| CastHello::decode(bytes).map(|hello| hello.encode()).ok();
    let each = [
        (&cast_bytes, &cast_again as &dyn Fn(&[u8]) -> _),
        (&nak_bytes, &nak_again),
        (&hello_bytes, &hello_again),
    ];
    for (bytes, again) in each {
        (0..bytes.len()).for_each(|len| assert_eq!(again(&bytes[..len]), None, "{len}"));
        for (at, new) in (0..bytes.len()).flat_map(|at| (0..=255).map(move |new| (at, new))) {
            let mut changed = bytes.clone();
            changed[at] = new;
            let read = again(&changed);
            assert!(read.is_none_or(|read| read == changed), "byte {at} = {new}");
        }
    }
}

/// Given more targets than fit, expect as many as do.
#[test]
fn casts_fit() {
    let target =
        |n: u64, prev| Target { id: NodeId(n), life: 1, direct: false, links_only: false, prev };
    let mut batch = cast().batch;
    for (len, prevs) in [(0, 1), (0, 3), (700, 1), (1_200, 2), (1_300, 1), (1_341, 1), (9_000, 1)] {
        let targets: Vec<_> = (0..300).map(|n| target(n, n % prevs)).collect();
        let mut messages = Vec::new();
        let (part, body) = (bcast::Part::Whole, vec![7; len]);
        let message = bcast::Message { part, lz4: false, kind: "", body: &body };
        bcast::put_message(&mut messages, &message);
        batch.messages = messages.into();
        let room = room_for(&targets, batch.messages.len());
        if room == 0 {
            assert!(len >= 1_300, "{len}");
            continue;
        }
        let bytes = Cast::encode(&batch, &targets[..room]);
        assert!(bytes.len() <= MAX_MESSAGE_BODY && room <= 255, "{len}: {}", bytes.len());
        assert!(bytes.len() + 19 > MAX_MESSAGE_BODY || room == 255, "{len}: {}", bytes.len());
        assert_eq!(Cast::decode(&bytes).unwrap().targets, targets[..room]);
    }
}

/// Given a datagram with any one bit changed, cut short or made longer, expect it to be dropped, and
/// the genuine one still to open.
#[test]
fn no_bit_can_change() {
    let datagram = seal(&mut sealer(), b"what nobody may change");
    let mut opener = opener();
    for bit in 0..datagram.len() * 8 {
        let mut changed = datagram.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        let expected = match bit / 8 {
            0..8 => DatagramError::Malformed,
            8..40 => DatagramError::Foreign,
            _ => DatagramError::Forged,
        };
        assert_eq!(open(&mut opener, &changed), Err(expected), "bit {bit}");
    }
    for len in 0..datagram.len() {
        assert!(open(&mut opener, &datagram[..len]).is_err(), "{len}");
    }
    assert!(open(&mut opener, &[&datagram[..], b"x"].concat()).is_err());
    assert!(open(&mut opener, &[&datagram[..], &[0; MAX_DATAGRAM]].concat()).is_err());
    assert_eq!(opener.senders(), 0);
    assert_eq!(open(&mut opener, &datagram).unwrap(), b"what nobody may change");
}

/// Given the header of one datagram in front of the rest of another, expect an error, and both to
/// open afterwards.
#[test]
fn headers_are_not_exchanged() {
    let mut sealer = sealer();
    let (a, b) = (seal(&mut sealer, b"one"), seal(&mut sealer, b"two"));
    let mut opener = opener();
    let mixed = [&a[..DATAGRAM_HEADER_LEN], &b[DATAGRAM_HEADER_LEN..]].concat();
    assert_eq!(open(&mut opener, &mixed), Err(DatagramError::Forged));
    open(&mut opener, &b).unwrap();
    assert_eq!(open(&mut opener, &mixed), Err(DatagramError::Forged));
    open(&mut opener, &a).unwrap();
}

/// Given datagrams of another cluster, of this node, and of a life before, expect none to open.
#[test]
fn only_others_of_now() {
    let mut opener = opener();
    let foreign = seal(&mut DatagramSealer::new(&key('e'), SENDER, LIFE), b"x");
    assert_eq!(open(&mut opener, &foreign), Err(DatagramError::Foreign));
    let own = seal(&mut DatagramSealer::new(&key('f'), ME, LIFE), b"x");
    assert_eq!(open(&mut opener, &own), Err(DatagramError::Repeated));
    let mut sealer = sealer();
    let (first, second) = (seal(&mut sealer, b"1"), seal(&mut sealer, b"2"));
    open(&mut opener, &first).unwrap();
    sealer.begin_life(Incarnation(LIFE.0 + 1));
    open(&mut opener, &seal(&mut sealer, b"3")).unwrap();
    assert_eq!(sealer.counter(), 3);
    assert_eq!(open(&mut opener, &second), Err(DatagramError::FormerLife));
    assert_eq!(opener.senders(), 1);
}

/// Given more senders than are remembered, expect the memory to stay within its bound.
#[test]
fn senders_are_bounded() {
    let mut opener = opener();
    for n in 0..100 {
        let mut sealer = DatagramSealer::new(&key('f'), NodeId(n), LIFE);
        open(&mut opener, &seal(&mut sealer, b"x")).unwrap();
        assert!(opener.senders() <= 16);
    }
}

/// Given too long names and too many entries, expect what fits; given all at their limits, a message.
#[test]
fn beacons_fit() {
    let address: SocketAddr = "[2001:db8::1]:29999".parse().unwrap();
    let large = Beacon {
        name: "n".repeat(255),
        port: 1,
        addresses: vec![address; 20],
        seen: vec![(ME, LIFE); 200],
    };
    let bytes = large.encode();
    assert!(bytes.len() <= MAX_MESSAGE_BODY, "{}", bytes.len());
    let read = Beacon::decode(&bytes).unwrap();
    assert_eq!((read.addresses.len(), read.seen.len()), (8, MAX_SEEN));
    let mut longer = bytes.clone();
    longer[1 + 2 + 1 + 255 + 1 + 8 * 19] += 1;
    longer.extend([0; 16]);
    assert!(Beacon::decode(&longer).is_err());
    for len in 0..bytes.len() {
        assert!(Beacon::decode(&bytes[..len]).is_err());
    }
}

proptest! {
    /// Given messages, expect as many as fit to come out as they went in.
    #[test]
    fn messages_there_and_back(
        messages in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..400)), 0..9)
    ) {
        let mut plain = Vec::new();
        let taken: Vec<_> =
            messages.iter().filter(|(kind, body)| put_message(&mut plain, *kind, body)).collect();
        prop_assert!(plain.len() <= MAX_DATAGRAM_PLAIN);
        let datagram = seal(&mut sealer(), &plain);
        prop_assert_eq!(datagram.len(), plain.len() + DATAGRAM_HEADER_LEN + DATAGRAM_TAG_LEN);
        let opened = open(&mut opener(), &datagram).unwrap();
        let mut rest = &opened[..];
        for (kind, body) in taken {
            prop_assert_eq!(next_message(&mut rest), Ok(Some(Message { kind: *kind, body })));
        }
        prop_assert_eq!(next_message(&mut rest), Ok(None));
    }

    /// Given datagrams of several senders that come in any order and repeatedly, expect each to open once.
    #[test]
    fn each_opens_once(order in prop::collection::vec((0..3_u64, 0..60_usize), 1..300)) {
        let datagrams: Vec<Vec<_>> = (0..3)
            .map(|n| {
                let mut sealer = DatagramSealer::new(&key('f'), NodeId(n), LIFE);
                (0..60_u8).map(|i| seal(&mut sealer, &[i])).collect()
            })
            .collect();
        let mut opener = opener();
        let mut opened = std::collections::BTreeSet::new();
        for (sender, i) in order {
            let result = open(&mut opener, &datagrams[sender as usize][i]);
            if opened.insert((sender, i)) {
                prop_assert_eq!(result, Ok(vec![i as u8]));
            } else {
                prop_assert_eq!(result, Err(DatagramError::Repeated));
            }
        }
    }

    /// Given any bytes, also with a right beginning, expect an error, and nothing remembered.
    #[test]
    fn any_bytes(mut bytes in prop::collection::vec(any::<u8>(), 0..1_500), magic: bool) {
        if magic && bytes.len() > 8 {
            bytes[..8].copy_from_slice(b"CHTD\x01\0\0\0");
        }
        let mut opener = opener();
        prop_assert!(open(&mut opener, &bytes).is_err());
        prop_assert_eq!(opener.senders(), 0);
        let mut rest = &bytes[..];
        while let Ok(Some(_)) = next_message(&mut rest) {}
        let _ = Beacon::decode(&bytes);
        let _ = Cast::decode(&bytes);
        let _ = Nak::decode(&bytes);
        let _ = CastHello::decode(&bytes);
    }
}
