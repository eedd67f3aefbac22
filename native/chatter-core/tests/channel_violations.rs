//! Peers that break the protocol of a channel: the right error, and nothing held for them.

use std::time::{Duration, Instant};

use bytes::Bytes;
use chatter_core::channel::CHUNK_LEN;
use chatter_core::channel::options::SendOptions;
use chatter_core::channel::receive::{AckNeed, Piggyback, ReceiveError, Receiver, Sink};
use chatter_core::channel::send::{Route, Sender};
use chatter_core::ids::{ChannelIndex, NodeId};
use chatter_core::wire::data::{Ack, item, item_header};
use chatter_core::wire::reader::WireError;

#[derive(Default)]
struct Nothing(usize);

/// What the items of a packet belong to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// Each packet is a fence: in order with all others.
    Fences,
    /// All packets are of one flow, and have one item that counts, each.
    Flow,
}

use Kind::{Fences, Flow};

/// Takes a packet. It is the one of its number in its flow as well, or all before it are fences as well.
fn take_as(
    kind: Kind,
    receiver: &mut Receiver,
    number: u64,
    items: &[u8],
    sink: &mut dyn Sink,
) -> Result<AckNeed, ReceiveError> {
    let before = (number.wrapping_sub(1) as u32).to_be_bytes();
    let content = match kind {
        Fences => [&before, items].concat(),
        Flow => {
            let flow = one(item::FLOW, &[7u32.to_be_bytes(), before].concat());
            [&0u32.to_be_bytes(), &flow[..], items].concat()
        }
    };
    receiver.handle_data(number, kind == Fences, &content, sink, &mut Vec::new())
}

fn take(
    receiver: &mut Receiver,
    number: u64,
    items: &[u8],
    sink: &mut dyn Sink,
) -> Result<AckNeed, ReceiveError> {
    take_as(Fences, receiver, number, items, sink)
}

impl Sink for Nothing {
    fn frame(&mut self, _: Option<u32>, _: &[u8], _: u64) {
        self.0 += 1;
    }
    fn frame_start(&mut self, _: Option<u32>, _: usize) {}
    fn frame_part(&mut self, _: Option<u32>, _: &[u8]) {}
    fn frame_end(&mut self, _: Option<u32>, _: u64) {
        self.0 += 1;
    }
    fn handshake(&mut self, _: &[u8], _: u64) {}
}

/// Headers, the number of fences, and the item FLOW.
const PREFIX: usize = 4 + 32 + 4 + 12;

const WINDOW: u64 = 1_000;
const MAX_FRAME: usize = 500;

fn one(kind: u8, body: &[u8]) -> Vec<u8> {
    [&item_header(kind, body.len()), body].concat()
}

fn first(total: u32, part: &[u8]) -> Vec<u8> {
    one(item::FIRST, &[&total.to_be_bytes(), part].concat())
}

/// What becomes of the last of these packets, numbered from 1; the others are in order. It is the same
/// for fences and for packets of a flow, and for these whether or not they come in order.
fn last_of(packets: &[Vec<u8>]) -> Result<AckNeed, ReceiveError> {
    let run = |kind| {
        let mut receiver = Receiver::new(WINDOW, MAX_FRAME);
        let mut result = Ok(AckNeed::None);
        for (number, content) in (1..).zip(packets) {
            assert!(result.is_ok(), "packet {} of {packets:?}: {result:?}", number - 1);
            result = take_as(kind, &mut receiver, number, content, &mut Nothing::default());
        }
        result
    };
    let result = run(Fences);
    assert_eq!(run(Flow), result, "{packets:?}");
    let mut receiver = Receiver::new(WINDOW, MAX_FRAME);
    let backwards = (1..).zip(packets).collect::<Vec<_>>().into_iter().rev();
    let error = backwards.map(|(number, content)| {
        take_as(Flow, &mut receiver, number, content, &mut Nothing::default())
    });
    assert_eq!(error.filter_map(Result::err).next(), result.err(), "backwards: {packets:?}");
    result
}

/// Given parts without a first, two firsts, a first that is whole, or too many bytes, expect `Parts`.
#[test]
fn parts_out_of_order() {
    let part = |n: usize| one(item::MORE, &vec![0; n]);
    for packets in [
        vec![part(1)],
        vec![one(item::FRAME, b"x"), part(0)],
        vec![first(10, b"123"), first(10, b"123")],
        vec![first(3, b"123")],
        vec![first(0, b"")],
        vec![first(2, b"123")],
        vec![first(10, b"123"), part(8)],
        vec![first(10, b"123"), part(7), part(0)],
    ] {
        assert_eq!(last_of(&packets), Err(ReceiveError::Parts), "{packets:?}");
    }
    // Frames and handshake messages may come between parts.
    let between =
        vec![first(10, b"123"), one(item::FRAME, b"x"), one(item::HANDSHAKE, b"y"), part(7)];
    assert!(last_of(&between).is_ok());
}

/// Given a frame over `max_frame`, whole or announced, expect `FrameTooLong` before any of it is kept.
#[test]
fn frames_over_the_limit() {
    let limit = MAX_FRAME;
    let error = |len| Err(ReceiveError::FrameTooLong { len, limit });
    assert_eq!(last_of(&[one(item::FRAME, &[0; MAX_FRAME + 1])]), error(MAX_FRAME + 1));
    assert_eq!(last_of(&[first(501, b"1")]), error(MAX_FRAME + 1));
    assert_eq!(last_of(&[first(u32::MAX, b"1")]), error(u32::MAX as usize));
    assert!(last_of(&[one(item::FRAME, &[0; MAX_FRAME])]).is_ok());
    assert!(last_of(&[first(500, b"1")]).is_ok());
}

/// Given more than the credit, in order, expect `Credit` at the item that passes it; exactly the
/// credit is fine.
#[test]
fn over_credit_in_order() {
    let frame = |n: usize| one(item::FRAME, &vec![0; n]);
    assert!(last_of(&[frame(496), frame(496)]).is_ok());
    assert_eq!(last_of(&[frame(496), frame(497)]), Err(ReceiveError::Credit));
    assert_eq!(last_of(&[frame(496), frame(492), frame(0), frame(0)]), Err(ReceiveError::Credit));
    let acks = one(item::ACK, &[0; 16]).repeat(200);
    assert!(last_of(&[acks]).is_ok(), "acknowledgements are free");
}

/// Given more than the credit ahead of a missing packet, expect `Credit`; the acknowledgements on the
/// back of small frames are not part of it. Of a flow, the bodies are kept, of fences also what is
/// around them.
#[test]
fn over_credit_ahead() {
    let ahead = |kind, contents: &[Vec<u8>]| {
        let mut receiver = Receiver::new(WINDOW, MAX_FRAME);
        let mut result = Ok(AckNeed::None);
        for (number, content) in (2..).zip(contents) {
            result = take_as(kind, &mut receiver, number, content, &mut Nothing::default());
            if result.is_err() {
                break;
            }
        }
        (result.map(drop), receiver.ahead_bytes())
    };
    let full = [one(item::FRAME, &[0; 496]), one(item::FRAME, &[0; 496])];
    let over = [&full[..], &[one(item::FRAME, b"")]].concat();
    let small = vec![[one(item::ACK, &[0; 16]), one(item::FRAME, b"")].concat(); 250];
    for (kind, kept, kept_small) in [(Fences, 1_000, 6_000), (Flow, 992, 0)] {
        assert_eq!(ahead(kind, &full), (Ok(()), kept));
        assert_eq!(ahead(kind, &over).0, Err(ReceiveError::Credit));
        assert_eq!(ahead(kind, &small), (Ok(()), kept_small));
    }
}

/// Given numbers that no sender can have reached, expect `Credit`, not an entry for each.
#[test]
fn numbers_far_ahead() {
    for number in [WINDOW + 2, u64::MAX - 1, u64::MAX] {
        let mut receiver = Receiver::new(WINDOW, MAX_FRAME);
        let taken = take(&mut receiver, number, &[], &mut Nothing::default());
        assert_eq!(taken, Err(ReceiveError::Credit), "{number}");
    }
}

/// Given packets that cost nothing, expect no more of them kept than the limit: those left out are not
/// acknowledged and would come again.
#[test]
fn empty_packets_ahead_are_bounded() {
    let mut receiver = Receiver::new(1 << 20, MAX_FRAME);
    let mut sink = Nothing::default();
    for number in 2..100_000 {
        take(&mut receiver, number, &[], &mut sink).unwrap();
    }
    assert_eq!(receiver.take_ack().ranges, [(2, 2 + (1 << 20) / 64)]);
    take(&mut receiver, 1, &[], &mut sink).unwrap();
    assert_eq!(receiver.next_number(), 2 + (1 << 20) / 64);
    assert_eq!(receiver.ahead_bytes(), 0);
}

/// Given malformed items, in order or ahead, expect `Wire`.
#[test]
fn malformed_items() {
    for content in [vec![9, 0, 0, 0], vec![1, 0, 0], vec![1, 0, 0, 5, 1], vec![5, 0, 0, 1, 1]] {
        for number in [1, 2] {
            let mut receiver = Receiver::new(WINDOW, MAX_FRAME);
            let taken = take(&mut receiver, number, &content, &mut Nothing::default());
            assert!(matches!(taken, Err(ReceiveError::Wire(_))), "{content:?}: {taken:?}");
        }
    }
    assert_eq!(
        last_of(&[one(item::FIRST, b"123")]),
        Err(ReceiveError::Wire(WireError::Truncated("frame length")))
    );
}

/// Given a packet again, before or after it was taken, expect it to be dropped, counted and answered.
#[test]
fn repeated_packets() {
    let mut receiver = Receiver::new(WINDOW, MAX_FRAME);
    let mut sink = Nothing::default();
    let frame = one(item::FRAME, b"x");
    for number in [1, 1, 3, 3, 2, 2, 3, 0] {
        take(&mut receiver, number, &frame, &mut sink).unwrap();
    }
    assert_eq!((sink.0, receiver.duplicates(), receiver.next_number()), (3, 5, 4));
    let again = take(&mut receiver, 1, &frame, &mut sink);
    assert_eq!(again, Ok(AckNeed::Now));
}

/// Given more ranges than an acknowledgement holds, expect the lowest; given what closes gaps, expect
/// ranges to be joined.
#[test]
fn ranges_are_told() {
    let mut receiver = Receiver::new(1 << 20, MAX_FRAME);
    let mut put = |number| {
        let taken = take(&mut receiver, number, b"", &mut Nothing::default());
        assert!(taken.is_ok());
        receiver.take_ack().ranges
    };
    assert_eq!(put(5), [(5, 6)]);
    assert_eq!(put(3), [(3, 4), (5, 6)]);
    assert_eq!(put(4), [(3, 6)]);
    assert_eq!(put(6), [(3, 7)]);
    assert_eq!(put(2), [(2, 7)]);
    for i in 0..40 {
        put(10 + 2 * i);
    }
    let told = put(9);
    assert_eq!(told.len(), 32);
    assert_eq!(told[..3], [(2, 7), (9, 11), (12, 13)]);
    let left = put(1);
    assert_eq!(left[0], (9, 11));
}

/// Given news while a packet is missing, expect it in an ACK with ranges, not on the back of data.
#[test]
fn no_piggyback_over_a_gap() {
    let mut receiver = Receiver::new(WINDOW, MAX_FRAME);
    let frame = one(item::FRAME, b"x");
    let put = |receiver: &mut Receiver, number| {
        take(receiver, number, &frame, &mut Nothing::default()).unwrap();
    };
    put(&mut receiver, 1);
    put(&mut receiver, 3);
    assert_eq!(receiver.take_piggyback(), None);
    put(&mut receiver, 2);
    assert_eq!(receiver.take_piggyback(), Some(Piggyback { next: 4, credit: WINDOW }));
    assert_eq!(receiver.take_piggyback(), None);
}

fn sender(credit: u64) -> Sender {
    let route = Route { source: NodeId(1), destination: NodeId(2), channel: ChannelIndex(3) };
    Sender::new(route, credit, 256 * 1024)
}

fn push(sender: &mut Sender, count: usize) {
    for _ in 0..count {
        sender.push_frame(&SendOptions::default(), &[&[0; 96]], 96);
        sender.end_batch();
    }
}

#[expect(clippy::disallowed_methods, reason = "any base of virtual time")]
fn start() -> Instant {
    Instant::now()
}

fn ack(next: u64, credit: u64, ranges: &[(u64, u64)]) -> Ack {
    Ack { next, credit, ranges: ranges.to_vec() }
}

fn poll_all(sender: &mut Sender, now: Instant) -> usize {
    std::iter::from_fn(|| sender.poll_packet(now)).count()
}

/// Given a gap that many acknowledgements show, expect the packet again once per round trip; given
/// that it is acknowledged before it goes out, expect nothing.
#[test]
fn a_gap_is_filled_once_per_round_trip() {
    let (mut sender, mut now) = (sender(1 << 20), start());
    push(&mut sender, 20);
    assert_eq!(poll_all(&mut sender, now), 20);
    now += Duration::from_millis(10);
    sender.handle_ack(now, &ack(2, 1 << 20, &[]));
    now += Duration::from_millis(2);
    for highest in 4..20 {
        sender.handle_ack(now, &ack(2, 1 << 20, &[(3, highest)]));
        let expected = usize::from(highest == 6);
        assert_eq!(poll_all(&mut sender, now), expected, "at {highest}");
    }
    assert_eq!(sender.figures().retransmits, 1);
    now += Duration::from_millis(12);
    sender.handle_ack(now, &ack(2, 1 << 20, &[(3, 21)]));
    sender.handle_ack(now, &ack(21, 1 << 20, &[]));
    assert_eq!(poll_all(&mut sender, now), 0, "acknowledged in the meantime");
    assert!(sender.is_idle() && sender.poll_timeout().is_none());
}

/// Given timeouts and route changes while nobody polls, expect each packet at most once in the list.
#[test]
fn nothing_piles_up_without_a_route() {
    let (mut sender, mut now) = (sender(1 << 20), start());
    push(&mut sender, 10);
    assert_eq!(poll_all(&mut sender, now), 10);
    for _ in 0..100 {
        now += Duration::from_secs(5);
        sender.handle_timeout(now);
        sender.handle_route_change(now);
        sender.handle_timeout(now + Duration::from_secs(3));
    }
    assert_eq!(poll_all(&mut sender, now), 10);
    let (_, unacked) = sender.queued_bytes();
    assert_eq!(unacked, 10 * (PREFIX + 100));
}

/// Given what ranges acknowledge, expect its memory to be free at once and it not to be sent again.
#[test]
fn ranges_free_memory() {
    let (mut sender, now) = (sender(1 << 20), start());
    push(&mut sender, 10);
    assert_eq!(poll_all(&mut sender, now), 10);
    sender.handle_ack(now, &ack(1, 1 << 20, &[(3, 11)]));
    assert_eq!(sender.queued_bytes().1, 2 * (PREFIX + 100));
    sender.handle_route_change(now);
    assert_eq!(poll_all(&mut sender, now), 2);
}

/// Given credit for some, expect exactly these; given more, expect the rest.
#[test]
fn credit_holds_back_and_lets_go() {
    let (mut sender, now) = (sender(350), start());
    push(&mut sender, 5);
    assert_eq!(poll_all(&mut sender, now), 3);
    assert!(sender.is_held_back());
    sender.handle_ack(now, &ack(4, 399, &[]));
    assert_eq!(poll_all(&mut sender, now), 0);
    sender.handle_ack(now, &ack(4, 400, &[]));
    assert_eq!(poll_all(&mut sender, now), 1);
    sender.handle_ack(now, &ack(1, 100, &[]));
    assert_eq!(poll_all(&mut sender, now), 0, "old news do not take credit away");
    sender.handle_ack(now, &ack(5, 1_000, &[]));
    assert_eq!(poll_all(&mut sender, now), 1);
    assert!(!sender.is_held_back());
}

/// Given the probe timeout, expect a probe that backs off to two seconds; given an answer, expect it
/// to start over.
#[test]
fn probes_back_off() {
    let (mut sender, now) = (sender(1 << 20), start());
    push(&mut sender, 3);
    poll_all(&mut sender, now);
    let mut waits = Vec::new();
    let mut last = now;
    for _ in 0..6 {
        let at = sender.poll_timeout().unwrap();
        sender.handle_timeout(at - Duration::from_millis(1));
        assert_eq!(poll_all(&mut sender, at), 0);
        sender.handle_timeout(at);
        assert_eq!(poll_all(&mut sender, at), 1);
        waits.push((at - last).as_millis());
        last = at;
    }
    assert_eq!(waits, [200, 400, 800, 1_600, 2_000, 2_000]);
    sender.handle_ack(last, &ack(2, 1 << 20, &[]));
    assert!(sender.poll_timeout().unwrap() <= last + Duration::from_secs(2));
}

/// Given a large frame in pieces of any size, small or large enough to be sent from where they are,
/// expect the frame at the other end, in packets of a chunk at most.
#[test]
fn pieces_make_no_difference() {
    #[derive(Default)]
    struct Whole(Vec<u8>, bool);
    impl Sink for Whole {
        fn frame(&mut self, _: Option<u32>, _: &[u8], _: u64) {}
        fn frame_start(&mut self, _: Option<u32>, _: usize) {}
        fn frame_part(&mut self, _: Option<u32>, part: &[u8]) {
            self.0.extend_from_slice(part);
        }
        fn frame_end(&mut self, _: Option<u32>, _: u64) {
            self.1 = true;
        }
        fn handshake(&mut self, _: &[u8], _: u64) {}
    }
    let sizes = [0, 1, 100, 4_095, 4_096, 4_097, CHUNK_LEN - 1, CHUNK_LEN, CHUNK_LEN + 1, 50_000];
    for len in [CHUNK_LEN + 1, 2 * CHUNK_LEN, 100_000] {
        let frame: Bytes = (0..len).map(|i| (i % 251) as u8).collect();
        for (first, then) in sizes.iter().flat_map(|a| sizes.map(|b| (*a, b))) {
            let mut pieces = vec![frame.slice(..first.min(len))];
            let mut at = pieces[0].len();
            while at < len {
                let size = then.max(1).min(len - at);
                pieces.push(frame.slice(at..at + size));
                at += size;
            }
            let mut sender = sender(1 << 20);
            sender.push_large_frame(&SendOptions::default(), &pieces, len);
            let mut receiver = Receiver::new(1 << 20, 1 << 20);
            let mut whole = Whole::default();
            let now = start();
            for number in 1.. {
                let Some(packet) = sender.poll_packet(now) else { break };
                let content = &packet.to_vec()[36..];
                assert!(content.len() <= CHUNK_LEN + 16 + 8, "{} bytes", content.len());
                let acks = &mut Vec::new();
                receiver.handle_data(number, false, content, &mut whole, acks).unwrap();
            }
            assert!(whole.1 && whole.0 == frame, "{len} in {first} and {then}");
        }
    }
}
