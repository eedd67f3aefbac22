//! The life of a channel: what its halves, the table and the relay part send and answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chatter_core::channel::incoming::Incoming;
use chatter_core::channel::life::{Outgoing, State};
use chatter_core::channel::receive::Sink;
use chatter_core::channel::table::Table;
use chatter_core::channel::{Names, Settings};
use chatter_core::ids::{ChannelIndex, Incarnation, NodeId};
use chatter_core::relay::{self, Complaints, Content, Routed};
use chatter_core::wire::data::{DropReason, Open, Opened, Reset, ResetReason};
use chatter_core::wire::next_packet;
use chatter_core::wire::packet::Packet;

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);
const RETRY: Duration = Duration::from_millis(250);

#[expect(clippy::disallowed_methods, reason = "any base of virtual time")]
fn start() -> Instant {
    Instant::now()
}

fn settings(me: NodeId) -> Arc<Settings> {
    Arc::new(Settings {
        me,
        incarnation: Incarnation(me.0 * 100),
        name: format!("n{}@test", me.0),
        window: 1 << 20,
        max_frame: 1 << 20,
        setup_retry: RETRY,
    })
}

fn names(me: NodeId) -> Names {
    let peer = if me == A { B } else { A };
    Names { index: ChannelIndex(me.0 as u32 + 10), epoch: me.0 + 1000, peer }
}

#[derive(Default)]
struct Frames(Vec<Vec<u8>>);

impl Sink for Frames {
    fn frame(&mut self, frame: &[u8], _: u64) {
        self.0.push(frame.to_vec());
    }
    fn frame_start(&mut self, _: usize) {}
    fn frame_part(&mut self, _: &[u8]) {}
    fn frame_end(&mut self, _: u64) {}
    fn handshake(&mut self, _: &[u8], _: u64) {}
}

/// Reads a packet at its destination.
fn read<T>(packet: &Packet, me: NodeId, take: impl FnOnce(Content<'_>) -> Option<T>) -> T {
    let bytes = packet.to_vec();
    let packet = next_packet(&mut &bytes[..]).unwrap().unwrap();
    match relay::read(packet, me).unwrap() {
        Routed::Mine(_, content) => take(content).expect("another packet"),
        other => panic!("{other:?}"),
    }
}

fn open_of(packet: &Packet) -> Open {
    read(packet, B, |content| if let Content::Open(open) = content { Some(open) } else { None })
}

fn opened_of(packet: &Packet) -> Opened {
    read(packet, A, |content| if let Content::Opened(it) = content { Some(it) } else { None })
}

fn reset_of(packet: &Packet, me: NodeId) -> Reset {
    read(packet, me, |content| match content {
        Content::Reset(reset) | Content::ResetAck(reset) => Some(reset),
        _ => None,
    })
}

/// Both outgoing halves of an open channel.
fn pair(now: Instant) -> (Outgoing, Outgoing) {
    let mut a = Outgoing::asking(settings(A), names(A), Incarnation(200), now);
    let open = open_of(&a.poll_packet(now).unwrap());
    let mut b = Outgoing::granting(settings(B), names(B), &open, now);
    b.confirm_open();
    assert!(a.handle_opened(&opened_of(&b.poll_packet(now).unwrap())));
    assert_eq!((a.state(), b.state()), (State::Open, State::Open));
    (a, b)
}

/// Given an OPEN that nobody answers, expect it again after each retry time, the same each time; after
/// OPENED, nothing more.
#[test]
fn open_is_repeated_until_granted() {
    let mut now = start();
    let mut a = Outgoing::asking(settings(A), names(A), Incarnation(200), now);
    let first = open_of(&a.poll_packet(now).unwrap());
    assert_eq!((first.index, first.incarnation), (names(A).index, Incarnation(100)));
    for _ in 0..3 {
        assert!(a.poll_packet(now).is_none());
        assert_eq!(a.poll_timeout(), Some(now + RETRY));
        now += RETRY;
        assert_eq!(open_of(&a.poll_packet(now).unwrap()), first);
    }
    let (a, _) = pair(now);
    assert_eq!(a.poll_timeout(), None);
    assert!(!a.wants_service());
}

/// Given OPENED for another OPEN, and from a life that the tables know to be over, expect both to be
/// ignored; from a newer life than the tables name, expect the channel to be with that life.
#[test]
fn only_the_present_life_grants() {
    let now = start();
    let mut a = Outgoing::asking(settings(A), names(A), Incarnation(200), now);
    let good = Opened {
        index: ChannelIndex(5),
        epoch: 7,
        incarnation: Incarnation(201),
        window: 100,
        open_epoch: names(A).epoch,
    };
    assert!(!a.handle_opened(&Opened { open_epoch: 1, ..good }));
    assert!(!a.handle_opened(&Opened { incarnation: Incarnation(199), ..good }));
    assert_eq!(a.state(), State::Opening);
    assert!(a.handle_opened(&good));
    assert_eq!((a.state(), a.peer_incarnation()), (State::Open, Incarnation(201)));
    assert!(!a.handle_opened(&good), "a second time changes nothing");
}

/// Given an end that closes, expect RESET behind the data, naming the number after it; and the other
/// end to take that data before it tells its user, once.
#[test]
fn the_end_comes_after_the_data() {
    let now = start();
    let (mut a, mut b) = pair(now);
    let sender = a.sender_mut().unwrap();
    sender.push_frame(&[b"last words"], 10);
    sender.end_batch();
    let data = a.poll_packet(now).unwrap();
    assert!(a.close(ResetReason::Closed, now) && !a.close(ResetReason::Closed, now));
    let reset = reset_of(&a.poll_packet(now).unwrap(), B);
    assert_eq!((reset.last, reset.reason), (2, ResetReason::Closed));
    let mut incoming = Incoming::new(&settings(B), names(B));
    incoming.open(names(A).index);
    b.handle_reset(&reset);
    incoming.handle_reset(now, &reset);
    assert_eq!(incoming.poll_end(now), None, "data is under way");
    let mut frames = Frames::default();
    let data = data.to_vec();
    incoming.handle_data(1, &data[36..], &mut frames, &mut Vec::new()).unwrap();
    assert_eq!(frames.0, [b"last words"]);
    assert_eq!(incoming.poll_end(now), Some(ResetReason::Closed));
    assert_eq!(incoming.poll_end(now), None);
    assert!(!incoming.end());
    assert_eq!(b.state(), State::Closed);
    let ack = reset_of(&b.poll_packet(now).unwrap(), A);
    assert_eq!((ack.from_index, ack.to_index), (names(B).index, names(A).index));
    a.handle_reset_ack();
    assert_eq!(a.state(), State::Closed);
}

/// Given a RESET whose data never comes, expect the user to be told after a while all the same.
#[test]
fn the_end_waits_for_data_for_a_while() {
    let now = start();
    let mut incoming = Incoming::new(&settings(B), names(B));
    incoming.open(names(A).index);
    let reset = Reset {
        from_index: names(A).index,
        to_index: names(B).index,
        last: 5,
        reason: ResetReason::Closed,
    };
    incoming.handle_reset(now, &reset);
    assert!(incoming.wants_service());
    assert_eq!(incoming.poll_end(now + Duration::from_millis(499)), None);
    let later = now + Duration::from_millis(500);
    assert_eq!(incoming.poll_end(later), Some(ResetReason::Closed));
    assert!(!incoming.wants_service() && incoming.is_over());
}

/// Given data that overtakes OPENED, or comes after the end, expect nothing of it to be delivered.
#[test]
fn nothing_before_the_beginning_or_after_the_end() {
    let mut incoming = Incoming::new(&settings(B), names(B));
    let mut frames = Frames::default();
    let content = [1, 0, 0, 1, b'x'];
    incoming.handle_data(1, &content, &mut frames, &mut Vec::new()).unwrap();
    assert!(frames.0.is_empty() && incoming.poll_ack().is_none());
    incoming.open(names(A).index);
    incoming.handle_data(1, &content, &mut frames, &mut Vec::new()).unwrap();
    assert_eq!(frames.0.len(), 1, "it came again");
    assert!(incoming.end());
    incoming.handle_data(2, &content, &mut frames, &mut Vec::new()).unwrap();
    assert_eq!(frames.0.len(), 1);
}

/// Given channels to two nodes, expect each to be found by what packets name, and by its peer alone.
#[test]
fn the_table_finds_channels() {
    let mut table = Table::new(3);
    let (one, two, three) = (ChannelIndex(1), ChannelIndex(2), ChannelIndex(3));
    assert!(!table.is_free(ChannelIndex::UNKNOWN));
    assert!(table.insert(two, A, Some((ChannelIndex(20), 7)), "two"));
    assert!(table.insert(one, A, None, "one"));
    assert!(!table.insert(one, B, None, "again") && !table.is_free(one));
    assert!(table.insert(three, B, Some((ChannelIndex(20), 8)), "three"));
    assert!(table.is_full() && !table.insert(ChannelIndex(4), A, None, "four"));
    assert_eq!((table.get(one, A), table.get(one, B)), (Some(&"one"), None));
    assert_eq!(
        (table.to(A), table.to(B), table.all().len()),
        (vec!["one", "two"], vec!["three"], 3)
    );
    let open = |index, epoch| Open {
        index: ChannelIndex(index),
        epoch,
        incarnation: Incarnation(1),
        window: 1,
        name: String::new(),
    };
    assert_eq!(table.find_open(A, &open(20, 7)), Some(&"two"));
    assert_eq!(table.find_open(A, &open(20, 8)), None, "another epoch");
    assert_eq!(table.find_open(B, &open(20, 8)), Some(&"three"));
    assert_eq!(table.find_open(A, &open(10, 9)), None);
    table.learn(one, ChannelIndex(10), 9);
    assert_eq!(table.find_open(A, &open(10, 9)), Some(&"one"));
    let reset = |from, to| Reset {
        from_index: ChannelIndex(from),
        to_index: ChannelIndex(to),
        last: 0,
        reason: ResetReason::Unknown,
    };
    assert_eq!(table.find_reset(A, &reset(10, 0)), Some(&"one"));
    assert_eq!(table.find_reset(A, &reset(0, 2)), Some(&"two"));
    assert_eq!(table.find_reset(B, &reset(10, 0)), None);
    assert_eq!(table.remove(one), Some("one"));
    assert_eq!(table.find_reset(A, &reset(10, 0)), None);
    assert_eq!((table.to(A), table.len()), (vec!["two"], 2));
}

/// Given packets for others, expect one hop less on them and nothing else changed, a refusal at the
/// last hop, an answer to the source, none to answers, and no more than a hundred a second.
#[test]
fn relays_pass_on_refuse_and_answer() {
    let mut now = start();
    let (mut a, _) = pair(now);
    a.close(ResetReason::Closed, now);
    let mut bytes = a.poll_packet(now).unwrap().to_vec();
    let relay = NodeId(9);
    let packet = next_packet(&mut &bytes[..]).unwrap().unwrap();
    let Routed::Transit(header) = relay::read(packet, relay).unwrap() else { panic!() };
    let forwarded = relay::forward(packet, &header).to_vec();
    assert_eq!(forwarded[5], bytes[5] - 1);
    assert_eq!((&forwarded[..5], &forwarded[6..]), (&bytes[..5], &bytes[6..]));
    bytes[5] = 1;
    let packet = next_packet(&mut &bytes[..]).unwrap().unwrap();
    let Routed::Refused(header, reason) = relay::read(packet, relay).unwrap() else { panic!() };
    assert_eq!(reason, DropReason::HopLimit);
    let notice = relay::unreachable(relay, packet.kind, &header, reason).unwrap();
    let quoted = read(&notice, A, |content| match content {
        Content::Unreachable(notice) => Some(notice.quoted),
        _ => None,
    });
    assert_eq!(quoted, header);
    let notice = notice.to_vec();
    let packet = next_packet(&mut &notice[..]).unwrap().unwrap();
    assert_eq!(relay::unreachable(relay, packet.kind, &header, reason), None);
    let mut complaints = Complaints::default();
    for _ in 0..3 {
        assert_eq!((0..1_000).filter(|_| complaints.may_complain(now)).count(), 100);
        now += Duration::from_secs(1);
    }
}

/// Given a channel that is closed while there is no route, so that nobody takes its RESET, expect it to
/// be forgotten after the same time as with one. Found by seed 773 of chatter-sim.
#[test]
fn a_channel_without_a_route_ends_as_well() {
    let mut now = start();
    let (mut a, _) = pair(now);
    assert!(a.close(ResetReason::Closed, now));
    for _ in 0..8 {
        a.handle_timeout(now);
        assert_eq!(a.state(), State::Closing);
        now += RETRY;
    }
    a.handle_timeout(now);
    assert_eq!(a.state(), State::Closed);
    assert!(!a.wants_service());
}
