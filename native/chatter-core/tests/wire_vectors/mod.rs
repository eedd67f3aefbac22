//! One value of each packet and item, beside its bytes. docs/wire-format.md has the same bytes under
//! the same names. A changed vector is a changed wire format: it needs a new version.
#![allow(dead_code, reason = "each test file uses a part")]

use std::sync::Arc;

use bytes::Bytes;
use chatter_core::ids::{ChannelIndex, Incarnation, NodeId};
use chatter_core::wire::bcast::{
    BCAST_HOPS, Batch, Bcast, BcastAck, Fate, Message, Part, Target, put_message,
};
use chatter_core::wire::cast::{CastAck, Gap};
use chatter_core::wire::data::{
    Ack, ChannelKind, DropReason, Item, Open, Opened, Reset, ResetReason, Unreachable, fences,
    item, item_header, next_item,
};
use chatter_core::wire::hello::{ByeReason, HELLO_SYNCED, Hello};
use chatter_core::wire::identity::Identity;
use chatter_core::wire::lsp::{Lsp, Neighbour};
use chatter_core::wire::reader::{Reader, WireError};
use chatter_core::wire::routed::{
    FLAG_ACK_NOW, FLAG_FENCE, FLAG_HIGH, FLAG_MARKED, FLAG_URGENT, HOP_LIMIT, MARK_DELAYED,
    RoutedHeader,
};
use chatter_core::wire::summary::{Summary, SummaryEntry};
use chatter_core::wire::{Packet, PacketType, next_packet, put_packet_header};

/// The bytes that hexadecimal digits stand for; everything else in `text` is layout.
pub fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<_> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    assert!(digits.len().is_multiple_of(2), "half a byte in {text}");
    digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}

/// A packet as a value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value {
    /// With the number of fences before it; `None` without any content.
    Data(RoutedHeader, Option<u32>, Vec<OwnedItem>),
    Ack(RoutedHeader, Ack),
    Open(RoutedHeader, Open),
    Opened(RoutedHeader, Opened),
    Reset(RoutedHeader, Reset),
    ResetAck(RoutedHeader, Reset),
    Unreachable(RoutedHeader, Unreachable),
    CastAck(RoutedHeader, CastAck),
    Hello(Hello),
    Lsp(Lsp),
    Summary(Summary),
    Bcast(Bcast),
    BcastAck(BcastAck),
    Bye(ByeReason),
}

/// [`Item`] with bytes of its own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OwnedItem {
    Frame(Vec<u8>),
    First(u32, Vec<u8>),
    More(Vec<u8>),
    Handshake(Vec<u8>),
    Ack(u64, u64),
    Flow(u32, u32),
    End,
    Void(u32),
    Lost(u32, u64),
}

impl OwnedItem {
    fn put(&self, out: &mut Vec<u8>) {
        let (kind, body) = match self {
            Self::Frame(body) => (item::FRAME, body.clone()),
            Self::First(total, part) => (item::FIRST, [&total.to_be_bytes(), &part[..]].concat()),
            Self::More(body) => (item::MORE, body.clone()),
            Self::Handshake(body) => (item::HANDSHAKE, body.clone()),
            Self::Ack(next, credit) => {
                (item::ACK, [next.to_be_bytes(), credit.to_be_bytes()].concat())
            }
            Self::Flow(flow, sequence) => {
                (item::FLOW, [flow.to_be_bytes(), sequence.to_be_bytes()].concat())
            }
            Self::End => (item::END, vec![]),
            Self::Void(cost) => (item::VOID, cost.to_be_bytes().to_vec()),
            Self::Lost(cost, sender) => {
                (item::LOST, [&cost.to_be_bytes()[..], &sender.to_be_bytes()].concat())
            }
        };
        out.extend_from_slice(&item_header(kind, body.len()));
        out.extend_from_slice(&body);
    }
}

/// Reads all items of a DATA packet, behind the number of fences.
pub fn items(mut content: &[u8]) -> Result<Vec<OwnedItem>, WireError> {
    let mut items = Vec::new();
    while let Some(item) = next_item(&mut content)? {
        items.push(match item {
            Item::Frame(body) => OwnedItem::Frame(body.to_vec()),
            Item::First { total, part } => OwnedItem::First(total, part.to_vec()),
            Item::More(body) => OwnedItem::More(body.to_vec()),
            Item::Handshake(body) => OwnedItem::Handshake(body.to_vec()),
            Item::Ack { next, credit } => OwnedItem::Ack(next, credit),
            Item::Flow { flow, sequence } => OwnedItem::Flow(flow, sequence),
            Item::End => OwnedItem::End,
            Item::Void { cost } => OwnedItem::Void(cost),
            Item::Lost { cost, sender } => OwnedItem::Lost(cost, sender),
        });
    }
    Ok(items)
}

impl Value {
    pub fn encode(&self) -> Vec<u8> {
        let (kind, header, content) = match self {
            Self::Data(header, fences, items) => {
                let mut content = fences.map_or(vec![], |fences| fences.to_be_bytes().to_vec());
                items.iter().for_each(|item| item.put(&mut content));
                (PacketType::Data, header, content)
            }
            Self::Ack(header, ack) => (PacketType::Ack, header, ack.encode()),
            Self::Open(header, open) => (PacketType::Open, header, open.encode()),
            Self::Opened(header, opened) => (PacketType::Opened, header, opened.encode()),
            Self::Reset(header, reset) => (PacketType::Reset, header, reset.encode()),
            Self::ResetAck(header, reset) => (PacketType::ResetAck, header, reset.encode()),
            Self::Unreachable(header, notice) => (PacketType::Unreachable, header, notice.encode()),
            Self::CastAck(header, ack) => (PacketType::CastAck, header, ack.encode()),
            Self::Hello(hello) => return one_hop(PacketType::Hello, &hello.to_bytes()),
            Self::Lsp(lsp) => return one_hop(PacketType::Lsp, &lsp.encode()),
            Self::Summary(summary) => return summary.packet(),
            Self::Bcast(Bcast { hop_limit, number, targets, batch }) => {
                return Bcast::packet(batch, *hop_limit, *number, targets).to_vec();
            }
            Self::BcastAck(ack) => {
                if ack.fate == Fate::Open {
                    return BcastAck::open_packet(ack.numbers[0], &ack.open).to_vec();
                }
                return BcastAck::packets(ack.fate, &ack.numbers).next().unwrap().to_vec();
            }
            Self::Bye(reason) => return one_hop(PacketType::Bye, &reason.to_bytes()),
        };
        header.packet(kind, &content)
    }

    /// Reads what must be exactly one packet, down to the last field.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, WireError> {
        let packet = next_packet(&mut bytes)?.ok_or(WireError::Truncated("packet"))?;
        if !bytes.is_empty() {
            return Err(WireError::Trailing("packet"));
        }
        Self::of(packet)
    }

    /// Reads a packet down to the last field.
    pub fn of(packet: Packet<'_>) -> Result<Self, WireError> {
        let Packet { kind, body } = packet;
        match kind {
            PacketType::Hello => return Ok(Self::Hello(Hello::decode(body)?)),
            PacketType::Lsp => return Ok(Self::Lsp(Lsp::decode(body)?)),
            PacketType::Summary => return Ok(Self::Summary(Summary::decode(body)?)),
            PacketType::Bcast => return Ok(Self::Bcast(Bcast::decode(body)?)),
            PacketType::BcastAck => return Ok(Self::BcastAck(BcastAck::decode(body)?)),
            PacketType::Bye => return Ok(Self::Bye(ByeReason::decode(body)?)),
            _ => {}
        }
        let mut r = Reader::new(body);
        let header = RoutedHeader::read(&mut r)?;
        let mut content = r.rest();
        Ok(match kind {
            PacketType::Data => {
                let is_empty = content.is_empty();
                let fences = fences(&mut content)?;
                Self::Data(header, (!is_empty).then_some(fences), items(content)?)
            }
            PacketType::Ack => Self::Ack(header, Ack::decode(content)?),
            PacketType::Open => Self::Open(header, Open::decode(content)?),
            PacketType::Opened => Self::Opened(header, Opened::decode(content)?),
            PacketType::Reset => Self::Reset(header, Reset::decode(content)?),
            PacketType::ResetAck => Self::ResetAck(header, Reset::decode(content)?),
            PacketType::Unreachable => Self::Unreachable(header, Unreachable::decode(content)?),
            PacketType::CastAck => Self::CastAck(header, CastAck::decode(content)?),
            PacketType::Hello
            | PacketType::Lsp
            | PacketType::Summary
            | PacketType::Bcast
            | PacketType::BcastAck
            | PacketType::Bye => unreachable!(),
        })
    }
}

fn one_hop(kind: PacketType, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_packet_header(&mut out, kind, body.len());
    out.extend_from_slice(body);
    out
}

/// A golden packet.
pub struct Vector {
    pub name: &'static str,
    pub hex: &'static str,
    pub value: Value,
}

const A: NodeId = NodeId(0xa1a2_a3a4_a5a6_a7a8);
const B: NodeId = NodeId(0xb1b2_b3b4_b5b6_b7b8);
/// A's and B's index of the channel between them.
const A_INDEX: ChannelIndex = ChannelIndex(0xaaaa_0001);
const B_INDEX: ChannelIndex = ChannelIndex(0xbbbb_0002);
const A_LIFE: Incarnation = Incarnation(0x0006_2b3c_4d5e_6f70);
const B_LIFE: Incarnation = Incarnation(0x0006_2b3c_4d5e_6f71);
const WINDOW: u64 = 8 << 20;

/// From A to B, as it leaves A.
fn to_b(channel: ChannelIndex, number: u64) -> RoutedHeader {
    RoutedHeader {
        flags: 0,
        hop_limit: HOP_LIMIT,
        mutable: 0,
        destination: B,
        source: A,
        channel,
        label: 0,
        number,
    }
}

/// From B to A, as it leaves B.
fn to_a(channel: ChannelIndex) -> RoutedHeader {
    RoutedHeader { destination: A, source: B, ..to_b(channel, 0) }
}

/// From A to B: small things of flows that have nothing else under way.
fn urgent(number: u64) -> RoutedHeader {
    RoutedHeader { flags: FLAG_URGENT, ..to_b(B_INDEX, number) }
}

/// The largest header: every field has another value in every byte.
fn distinct() -> RoutedHeader {
    let number = 0x0102_0304_0506;
    RoutedHeader {
        flags: 0xf1,
        hop_limit: 1,
        mutable: 0xe1e2,
        label: 0xc1c2,
        ..to_b(B_INDEX, number)
    }
}

pub fn vectors() -> Vec<Vector> {
    let mut all = data_vectors();
    all.extend(channel_vectors());
    all.extend(one_hop_vectors());
    all.extend(broadcast_vectors());
    all
}

fn broadcast_vectors() -> Vec<Vector> {
    let mut messages = Vec::new();
    let whole = |kind, body| Message { part: Part::Whole, lz4: false, kind, body };
    put_message(&mut messages, &whole("hello", b"\0ab"));
    let lz4 = Message { part: Part::First, lz4: true, kind: "big", body: b"xyz" };
    put_message(&mut messages, &lz4);
    let target = |id, prev, direct| Target { id, life: 0x6f70, direct, links_only: direct, prev };
    vec![
        Vector {
            name: "bcast",
            hex: "000062 20 00 40 0002 0000000000000007
                a1a2a3a4a5a6a7a8 00062b3c4d5e6f70 0000000000000009 0000000000000008
                a1a2a3a4a5a6a7a8 6f70 00
                b1b2b3b4b5b6b7b8 6f70 07 0000000000000003
                00 05 68656c6c6f 000003 006162
                05 03 626967 000003 78797a",
            value: Value::Bcast(Bcast {
                hop_limit: BCAST_HOPS,
                number: 7,
                targets: vec![target(A, 8, false), target(B, 3, true)],
                batch: Batch {
                    origin: A,
                    incarnation: A_LIFE,
                    first: 9,
                    messages: Bytes::from(messages),
                },
            }),
        },
        Vector {
            name: "bcast-ack",
            hex: "000011 21 01 0000000000000007 0000000000000008",
            value: Value::BcastAck(BcastAck {
                fate: Fate::Busy,
                numbers: vec![7, 8],
                open: vec![],
            }),
        },
        Vector {
            name: "bcast-ack-open",
            hex: "000011 21 02 0000000000000007 b1b2b3b4b5b6b7b8",
            value: Value::BcastAck(BcastAck { fate: Fate::Open, numbers: vec![7], open: vec![B] }),
        },
        Vector {
            name: "cast-ack",
            hex: "00005c 17 00 20 0000 a1a2a3a4a5a6a7a8 b1b2b3b4b5b6b7b8 00000000 0000000000000000
                01 01 6f71 a1a2a3a4a5a6a7a8 00062b3c4d5e6f70
                0000000000000009 0000000000000008 000000000000000e
                0000000000000009 000000000000000c",
            value: Value::CastAck(
                to_a(ChannelIndex::UNKNOWN),
                CastAck {
                    heard: true,
                    life: 0x6f71,
                    origin: A,
                    incarnation: A_LIFE,
                    received: 9,
                    taken: 8,
                    highest: 14,
                    gaps: vec![Gap { after: 9, upto: 12 }],
                },
            ),
        },
    ]
}

fn data_vectors() -> Vec<Vector> {
    let z = || OwnedItem::Frame(b"z".to_vec());
    let labelled = |label, number| RoutedHeader { label, ..to_b(B_INDEX, number) };
    vec![
        Vector {
            name: "data-frames",
            hex: "000041 10 08 20 0000 b1b2b3b4b5b6b7b8 a1a2a3a4a5a6a7a8 bbbb0002 0000000000000001
                00000000
                06 000008 00000000 00000000
                01 000000
                01 000009 706574657220706970",
            value: Value::Data(
                urgent(1),
                Some(0),
                vec![
                    OwnedItem::Flow(0, 0),
                    OwnedItem::Frame(vec![]),
                    OwnedItem::Frame(b"peter pip".to_vec()),
                ],
            ),
        },
        Vector {
            name: "data-first",
            hex: "00003c 10 00 20 0000 b1b2b3b4b5b6b7b8 a1a2a3a4a5a6a7a8 bbbb0002 0001000000000002
                00000000
                06 000008 00000000 00000002
                02 000008 00000007 61626364",
            value: Value::Data(
                labelled(1, 2),
                Some(0),
                vec![OwnedItem::Flow(0, 2), OwnedItem::First(7, b"abcd".to_vec())],
            ),
        },
        Vector {
            name: "data-more",
            hex: "000037 10 00 20 0000 b1b2b3b4b5b6b7b8 a1a2a3a4a5a6a7a8 bbbb0002 0001000000000003
                00000000
                06 000008 00000000 00000003
                03 000003 656667",
            value: Value::Data(
                labelled(1, 3),
                Some(0),
                vec![OwnedItem::Flow(0, 3), OwnedItem::More(b"efg".to_vec())],
            ),
        },
        Vector {
            name: "data-handshake",
            hex: "00002b 10 0c 20 0000 b1b2b3b4b5b6b7b8 a1a2a3a4a5a6a7a8 bbbb0002 0000000000000004
                00000000
                04 000003 736f6b",
            value: Value::Data(
                RoutedHeader { flags: FLAG_URGENT | FLAG_FENCE, ..urgent(4) },
                Some(0),
                vec![OwnedItem::Handshake(b"sok".to_vec())],
            ),
        },
        Vector {
            name: "data-ack",
            hex: "000049 10 08 20 0000 b1b2b3b4b5b6b7b8 a1a2a3a4a5a6a7a8 bbbb0002 0000000000000005
                00000001
                05 000010 0000000000000011 0000000000800034
                06 000008 00000000 00000004
                01 000001 7a",
            value: Value::Data(
                urgent(5),
                Some(1),
                vec![OwnedItem::Ack(17, WINDOW + 52), OwnedItem::Flow(0, 4), z()],
            ),
        },
        Vector {
            name: "data-deadline",
            hex: "000035 10 10 20 00c8 b1b2b3b4b5b6b7b8 a1a2a3a4a5a6a7a8 bbbb0002 9e37000000000006
                00000001
                06 000008 00000001 00000000
                01 000001 7a",
            value: Value::Data(
                RoutedHeader { flags: FLAG_HIGH, mutable: 100 << 1, ..labelled(0x9e37, 6) },
                Some(1),
                vec![OwnedItem::Flow(1, 0), z()],
            ),
        },
        Vector {
            name: "data-marked",
            hex: "000035 10 11 1f 00b9 b1b2b3b4b5b6b7b8 a1a2a3a4a5a6a7a8 bbbb0002 9e37000000000007
                00000001
                06 000008 00000001 00000001
                01 000001 7a",
            value: Value::Data(
                RoutedHeader {
                    flags: FLAG_ACK_NOW | FLAG_HIGH,
                    hop_limit: HOP_LIMIT - 1,
                    mutable: 92 << 1 | MARK_DELAYED,
                    ..labelled(0x9e37, 7)
                },
                Some(1),
                vec![OwnedItem::Flow(1, 1), z()],
            ),
        },
        Vector {
            name: "data-end",
            hex: "000045 10 08 20 0000 b1b2b3b4b5b6b7b8 a1a2a3a4a5a6a7a8 bbbb0002 0000000000000008
                00000001
                06 000008 00000001 00000002
                07 000000
                06 000008 00000002 00000000
                01 000001 7a",
            value: Value::Data(
                urgent(8),
                Some(1),
                vec![OwnedItem::Flow(1, 2), OwnedItem::End, OwnedItem::Flow(2, 0), z()],
            ),
        },
        Vector {
            name: "data-void",
            hex: "000038 10 10 20 0000 b1b2b3b4b5b6b7b8 a1a2a3a4a5a6a7a8 bbbb0002 9e37000000000006
                00000001
                06 000008 00000001 00000000
                08 000004 00000005",
            value: Value::Data(
                RoutedHeader { flags: FLAG_HIGH, ..labelled(0x9e37, 6) },
                Some(1),
                vec![OwnedItem::Flow(1, 0), OwnedItem::Void(5)],
            ),
        },
        Vector {
            name: "data-lost",
            hex: "000044 10 08 20 0000 b1b2b3b4b5b6b7b8 a1a2a3a4a5a6a7a8 bbbb0002 0000000000000006
                00000001
                06 000008 00000001 00000000
                09 00000c 00000007 0000005800000003
                07 000000",
            value: Value::Data(
                RoutedHeader { flags: FLAG_URGENT, ..labelled(0, 6) },
                Some(1),
                vec![OwnedItem::Flow(1, 0), OwnedItem::Lost(7, 0x58_0000_0003), OwnedItem::End],
            ),
        },
        Vector {
            name: "data-probe",
            hex: "000024 10 08 20 0000 b1b2b3b4b5b6b7b8 a1a2a3a4a5a6a7a8 bbbb0002 0000000000000000
                00000001",
            value: Value::Data(urgent(0), Some(1), vec![]),
        },
    ]
}

fn channel_vectors() -> Vec<Vector> {
    let opened = Opened {
        index: B_INDEX,
        epoch: 0xeb01_0203_0405_0607,
        incarnation: B_LIFE,
        window: WINDOW,
        open_epoch: 0xea01_0203_0405_0607,
    };
    let open = |kind| Open {
        index: A_INDEX,
        epoch: opened.open_epoch,
        incarnation: A_LIFE,
        window: WINDOW,
        kind,
        name: "a@host".to_owned(),
    };
    let reset =
        Reset { from_index: A_INDEX, to_index: B_INDEX, last: 6, reason: ResetReason::Closed };
    vec![
        Vector {
            name: "open",
            hex: "000044 12 00 20 0000 b1b2b3b4b5b6b7b8 a1a2a3a4a5a6a7a8 00000000 0000000000000000
                aaaa0001 ea01020304050607 00062b3c4d5e6f70 0000000000800000 00 06 6140686f7374",
            value: Value::Open(to_b(ChannelIndex::UNKNOWN, 0), open(ChannelKind::Distribution)),
        },
        Vector {
            name: "open-messages",
            hex: "000044 12 00 20 0000 b1b2b3b4b5b6b7b8 a1a2a3a4a5a6a7a8 00000000 0000000000000000
                aaaa0001 ea01020304050607 00062b3c4d5e6f70 0000000000800000 01 06 6140686f7374",
            value: Value::Open(to_b(ChannelIndex::UNKNOWN, 0), open(ChannelKind::Messages)),
        },
        Vector {
            name: "opened",
            hex: "000044 13 00 20 0000 a1a2a3a4a5a6a7a8 b1b2b3b4b5b6b7b8 aaaa0001 0000000000000000
                bbbb0002 eb01020304050607 00062b3c4d5e6f71 0000000000800000 ea01020304050607",
            value: Value::Opened(to_a(A_INDEX), opened),
        },
        Vector {
            name: "ack",
            hex: "000031 11 00 20 0000 a1a2a3a4a5a6a7a8 b1b2b3b4b5b6b7b8 aaaa0001 0000000000000000
                0000000000000004 0000000000800016 00",
            value: Value::Ack(to_a(A_INDEX), Ack { next: 4, credit: WINDOW + 22, ranges: vec![] }),
        },
        Vector {
            name: "ack-marked",
            hex: "000031 11 02 20 0000 a1a2a3a4a5a6a7a8 b1b2b3b4b5b6b7b8 aaaa0001 0000000000000000
                0000000000000007 000000000080001b 00",
            value: Value::Ack(
                RoutedHeader { flags: FLAG_MARKED, ..to_a(A_INDEX) },
                Ack { next: 7, credit: WINDOW + 27, ranges: vec![] },
            ),
        },
        Vector {
            name: "ack-ranges",
            hex: "000051 11 00 20 0000 a1a2a3a4a5a6a7a8 b1b2b3b4b5b6b7b8 aaaa0001 0000000000000000
                0000000000000004 0000000000800016 02
                0000000000000005 0000000000000008
                000000000000000a 000000000000000b",
            value: Value::Ack(
                to_a(A_INDEX),
                Ack { next: 4, credit: WINDOW + 22, ranges: vec![(5, 8), (10, 11)] },
            ),
        },
        Vector {
            name: "reset",
            hex: "000031 14 00 20 0000 b1b2b3b4b5b6b7b8 a1a2a3a4a5a6a7a8 bbbb0002 0000000000000000
                aaaa0001 bbbb0002 0000000000000006 01",
            value: Value::Reset(to_b(B_INDEX, 0), reset),
        },
        Vector {
            name: "reset-unknown",
            hex: "000031 14 00 20 0000 a1a2a3a4a5a6a7a8 b1b2b3b4b5b6b7b8 00000000 0000000000000000
                bbbb0002 00000000 0000000000000000 02",
            value: Value::Reset(
                to_a(ChannelIndex::UNKNOWN),
                Reset {
                    from_index: B_INDEX,
                    to_index: ChannelIndex::UNKNOWN,
                    last: 0,
                    reason: ResetReason::Unknown,
                },
            ),
        },
        Vector {
            name: "reset-ack",
            hex: "000031 15 00 20 0000 a1a2a3a4a5a6a7a8 b1b2b3b4b5b6b7b8 aaaa0001 0000000000000000
                bbbb0002 aaaa0001 0000000000000000 01",
            value: Value::ResetAck(
                to_a(A_INDEX),
                Reset { from_index: B_INDEX, to_index: A_INDEX, last: 0, ..reset },
            ),
        },
        Vector {
            name: "unreachable",
            hex: "000041 16 00 20 0000 a1a2a3a4a5a6a7a8 b1b2b3b4b5b6b7b8 00000000 0000000000000000
                02
                f1 01 e1e2 b1b2b3b4b5b6b7b8 a1a2a3a4a5a6a7a8 bbbb0002 c1c2010203040506",
            value: Value::Unreachable(
                to_a(ChannelIndex::UNKNOWN),
                Unreachable { reason: DropReason::HopLimit, quoted: distinct() },
            ),
        },
    ]
}

fn one_hop_vectors() -> Vec<Vector> {
    vec![
        Vector {
            name: "hello",
            hex: "00001c 01 0001 00fa 000003e8 00000003 00000002 000186a0 deadbeef00000001",
            value: Value::Hello(Hello {
                flags: HELLO_SYNCED,
                interval_ms: 250,
                hold_ms: 1_000,
                seq: 3,
                echo_seq: 2,
                echo_delay_us: 100_000,
                lsdb_digest: 0xdead_beef_0000_0001,
            }),
        },
        Vector {
            name: "lsp",
            hex: "00006a 02 01 05 0002 00000e10 0102030405060708 1112131415161718 0000000000000009
                06 6140686f7374
                02 04 0a010203 752f 06 fe800000000000000000000000000001 0001
                0000000000000001 0000000a 0000000000000002
                ffffffffffffffff 00010000 0000000000000003",
            value: Value::Lsp(Lsp {
                overload: true,
                purge: false,
                silent: true,
                lifetime_s: 3_600,
                origin: identity().id,
                incarnation: identity().incarnation,
                seq: 9,
                name: Arc::from("a@host"),
                addresses: identity().addresses,
                neighbours: vec![
                    Neighbour { id: NodeId(1), metric: 10, incarnation: Incarnation(2) },
                    Neighbour {
                        id: NodeId(u64::MAX),
                        metric: 0x0001_0000,
                        incarnation: Incarnation(3),
                    },
                ],
            }),
        },
        Vector {
            name: "summary",
            hex: "000052 03 0000000000000000 ffffffffffffffff 0002
                0102030405060708 1112131415161718 0000000000000009 1e6b5564318e72a8
                b1b2b3b4b5b6b7b8 00062b3c4d5e6f71 0000000000000001 a0a1a2a3a4a5a6a7",
            value: Value::Summary(Summary {
                first: NodeId(0),
                last: NodeId(u64::MAX),
                entries: vec![
                    SummaryEntry {
                        origin: identity().id,
                        incarnation: identity().incarnation,
                        seq: 9,
                        hash: 0x1e6b_5564_318e_72a8,
                    },
                    SummaryEntry {
                        origin: B,
                        incarnation: B_LIFE,
                        seq: 1,
                        hash: 0xa0a1_a2a3_a4a5_a6a7,
                    },
                ],
            }),
        },
        Vector { name: "bye", hex: "000001 30 01", value: Value::Bye(ByeReason::Stop) },
    ]
}

pub fn identity() -> Identity {
    Identity {
        id: NodeId(0x0102_0304_0506_0708),
        incarnation: Incarnation(0x1112_1314_1516_1718),
        name: "a@host".to_owned(),
        hold_ms: 1_000,
        hidden: false,
        listen: true,
        addresses: ["10.1.2.3:29999", "[fe80::1]:1"].map(|at| at.parse().unwrap()).to_vec(),
        dial_seq: 7,
    }
}

pub const IDENTITY: &str = "0102030405060708 1112131415161718 000003e8 0000000000000007 02
    06 6140686f7374
    02 04 0a010203 752f 06 fe800000000000000000000000000001 0001";
