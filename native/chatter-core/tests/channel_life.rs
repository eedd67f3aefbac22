//! The life of a channel: what its halves, the table and the relay part send and answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chatter_core::channel::incoming::Incoming;
use chatter_core::channel::life::{Outgoing, State};
use chatter_core::channel::options::SendOptions;
use chatter_core::channel::receive::Sink;
use chatter_core::channel::table::{OpenVerdict, Table};
use chatter_core::channel::{Names, OnLoss, Settings};
use chatter_core::ids::{ChannelIndex, Incarnation, NodeId};
use chatter_core::relay::{self, Complaints, Content, Routed};
use chatter_core::wire::data::{ChannelKind, DropReason, Open, Opened, Reset, ResetReason};
use chatter_core::wire::next_packet;
use chatter_core::wire::packet::Packet;
use chatter_core::wire::routed::RoutedHeader;

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
        flow_quota: 256 * 1024,
        gap_timeout: Duration::from_secs(10),
        on_loss: OnLoss::End,
    })
}

fn names(me: NodeId) -> Names {
    let peer = if me == A { B } else { A };
    Names { index: ChannelIndex(me.0 as u32 + 10), epoch: me.0 + 1000, peer }
}

#[derive(Default)]
struct Frames(Vec<Vec<u8>>);

impl Sink for Frames {
    fn frame(&mut self, _: Option<u32>, frame: &[u8], _: u64) {
        self.0.push(frame.to_vec());
    }
    fn frame_start(&mut self, _: Option<u32>, _: usize) {}
    fn frame_part(&mut self, _: Option<u32>, _: &[u8]) {}
    fn frame_end(&mut self, _: Option<u32>, _: u64) {}
    fn handshake(&mut self, _: &[u8], _: u64) {}
}

fn number(number: u64) -> RoutedHeader {
    RoutedHeader { number, ..RoutedHeader::to(B, A, names(B).index) }
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
    sender.push_frame(&SendOptions::default(), &[b"last words"], 10);
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
    assert!(b.poll_packet(now).is_none() && b.is_unconfirmed(), "not confirmed before");
    let mut frames = Frames::default();
    let data = data.to_vec();
    incoming.handle_data(&number(1), &data[36..], &mut frames, &mut Vec::new()).unwrap();
    assert_eq!(frames.0, [b"last words"]);
    assert_eq!(incoming.poll_end(now), Some(ResetReason::Closed));
    assert_eq!(incoming.poll_end(now), None);
    assert!(!incoming.end());
    assert_eq!(b.state(), State::Closed);
    b.confirm_end();
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
    // No fence before it; item 0 of flow 1: a frame.
    let content =
        [&[0; 4][..], &[6, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0], &[1, 0, 0, 1, b'x']].concat();
    incoming.handle_data(&number(1), &content, &mut frames, &mut Vec::new()).unwrap();
    assert!(frames.0.is_empty() && incoming.poll_ack().is_none());
    incoming.open(names(A).index);
    incoming.handle_data(&number(1), &content, &mut frames, &mut Vec::new()).unwrap();
    assert_eq!(frames.0.len(), 1, "it came again");
    assert!(incoming.end());
    incoming.handle_data(&number(2), &content, &mut frames, &mut Vec::new()).unwrap();
    assert_eq!(frames.0.len(), 1);
}

/// Given channels to two nodes, expect each to be found by what packets name, and by its peer alone.
#[test]
fn the_table_finds_channels() {
    let mut table = Table::new(3);
    let (one, two, three) = (ChannelIndex(1), ChannelIndex(2), ChannelIndex(3));
    let (a, b) = ((A, Incarnation(1)), (B, Incarnation(1)));
    assert!(!table.is_free(ChannelIndex::UNKNOWN));
    assert!(table.insert(two, a, Some((ChannelIndex(20), 7)), "two"));
    assert!(table.insert(one, a, None, "one"));
    assert!(!table.insert(one, b, None, "again") && !table.is_free(one));
    assert!(table.insert(three, b, Some((ChannelIndex(20), 8)), "three"));
    assert!(table.is_full() && !table.insert(ChannelIndex(4), a, None, "four"));
    assert_eq!((table.get(one, A), table.get(one, B)), (Some(&"one"), None));
    assert_eq!(
        (table.to(A), table.to(B), table.all().len()),
        (vec!["one", "two"], vec!["three"], 3)
    );
    assert_eq!(table.judge_open(start(), A, &open(20, 7, 1), None), OpenVerdict::Known("two"));
    assert_eq!(table.judge_open(start(), A, &open(10, 9, 1), life(1)), OpenVerdict::New(vec![]));
    table.learn(one, Incarnation(1), ChannelIndex(10), 9);
    assert_eq!(table.judge_open(start(), A, &open(10, 9, 1), None), OpenVerdict::Known("one"));
    let reset = |from, to| Reset {
        from_index: ChannelIndex(from),
        to_index: ChannelIndex(to),
        last: 0,
        reason: ResetReason::Unknown,
    };
    assert_eq!(table.find_reset(A, &reset(10, 0)), Some(&"one"));
    assert_eq!(table.find_reset(A, &reset(0, 2)), Some(&"two"));
    assert_eq!(table.find_reset(B, &reset(10, 0)), None);
    assert_eq!(table.find_sent(&RoutedHeader::to(A, B, ChannelIndex(10))), Some(&"one"));
    assert_eq!(table.remove(start(), one, None), Some("one"));
    assert_eq!(table.find_reset(A, &reset(10, 0)), None);
    assert_eq!((table.to(A), table.len()), (vec!["two"], 2));
}

fn life(life: u64) -> Option<Incarnation> {
    Some(Incarnation(life))
}

fn open(index: u32, epoch: u64, life: u64) -> Open {
    let (index, incarnation) = (ChannelIndex(index), Incarnation(life));
    Open {
        index,
        epoch,
        incarnation,
        window: 1,
        kind: ChannelKind::Distribution,
        name: String::new(),
    }
}

/// Given OPENs of former lives and of channels that have ended, expect none to open anything; of a newer
/// life, expect the channels to the former one to end first.
#[test]
fn a_former_life_opens_nothing() {
    let mut table = Table::new(10);
    let (index, now) = (ChannelIndex(1), start());
    table.insert(index, (A, Incarnation(5)), Some((ChannelIndex(20), 7)), "five");
    assert_eq!(table.judge_open(now, A, &open(21, 8, 4), None), OpenVerdict::Stale);
    assert_eq!(table.judge_open(now, A, &open(21, 8, 5), life(6)), OpenVerdict::Stale);
    assert_eq!(table.judge_open(now, A, &open(21, 8, 6), life(6)), OpenVerdict::New(vec!["five"]));
    assert_eq!(table.judge_open(now, A, &open(21, 8, 5), life(5)), OpenVerdict::New(vec![]));
    table.remove(now, index, None);
    assert_eq!(table.judge_open(now, A, &open(20, 7, 5), None), OpenVerdict::Stale, "come late");
    assert_eq!(table.judge_open(now, A, &open(20, 9, 5), life(5)), OpenVerdict::New(vec![]));
}

/// Given OPENs of a node that the tables do not know, or know in a former life only, expect them to wait
/// until they know that life; of many, the newest of each node, up to a limit.
#[test]
fn a_life_that_the_tables_do_not_know_waits() {
    let mut table = Table::<&str>::new(10);
    let now = start();
    assert_eq!(table.judge_open(now, A, &open(21, 8, 6), None), OpenVerdict::Wait);
    assert_eq!(table.judge_open(now, A, &open(22, 9, 6), life(5)), OpenVerdict::Wait);
    assert_eq!(table.judge_open(now, B, &open(23, 9, 6), None), OpenVerdict::Wait);
    assert_eq!(table.take_held(A), Some(open(22, 9, 6)));
    assert_eq!(table.judge_open(now, A, &open(22, 9, 6), life(6)), OpenVerdict::New(vec![]));
    for id in 1_000..2_000 {
        table.judge_open(now, NodeId(id), &open(21, 8, 6), None);
    }
    let held = (0..2_000).filter(|id| table.take_held(NodeId(*id)).is_some()).count();
    assert!((1..=256).contains(&held), "{held}");
}

/// Given a channel that was closed here and is not confirmed, expect no OPEN either way before it is;
/// the other end's waits, and is taken up then.
#[test]
fn nothing_begins_before_both_have_seen_the_end() {
    let mut table = Table::new(10);
    let (index, now) = (ChannelIndex(1), start());
    table.insert(index, (A, Incarnation(5)), Some((ChannelIndex(20), 7)), "old");
    assert!(table.may_open(A));
    table.closing(index);
    assert!(!table.may_open(A) && table.may_open(B));
    assert_eq!(table.judge_open(now, A, &open(21, 8, 5), life(5)), OpenVerdict::Wait);
    assert_eq!(table.take_held(A), None);
    let former = OpenVerdict::New(vec!["old"]);
    assert_eq!(table.judge_open(now, A, &open(22, 9, 6), life(6)), former, "that life is over");
    table.remove(now, index, None);
    assert!(table.may_open(A));
    assert_eq!(table.take_held(A), Some(open(21, 8, 5)));
    assert_eq!(table.take_held(A), None);
}

/// Given a channel that was given up because its node could not be reached, expect nothing to be opened
/// with the same life before it was told, over any loss; and nothing to be said to a new life.
#[test]
fn who_was_given_up_is_told_before_anything_begins() {
    let (mut table, mut now) = (Table::new(10), start());
    let (mut a, _) = pair(now);
    let index = names(A).index;
    table.insert(index, (B, Incarnation(200)), Some((names(B).index, names(B).epoch)), "old");
    a.give_up(ResetReason::Unreachable);
    let farewell = a.take_farewell();
    a.give_up(ResetReason::Unreachable);
    assert_eq!(a.take_farewell(), None);
    table.remove(now, index, farewell);
    assert!(table.farewells().poll_packet(now, A, |_| false).is_none());
    let poll = |table: &mut Table<&str>, now| table.farewells().poll_packet(now, A, |_| true);
    assert_eq!(poll(&mut table, now), None, "not before it can be reached");
    assert!(!table.may_open(B));
    table.farewells().handle_reachable(now, B, Incarnation(200));
    let (to, packet) = poll(&mut table, now).unwrap();
    let reset = reset_of(&packet, B);
    assert_eq!((to, reset.from_index, reset.to_index), (B, index, names(B).index));
    assert_eq!(reset.last, 0, "what was under way is gone");
    assert_eq!(poll(&mut table, now), None);
    now = table.farewells().poll_timeout().unwrap();
    assert!(table.farewells().poll_packet(now, A, |_| false).is_none(), "no route");
    assert_eq!(table.farewells().poll_timeout(), None);
    table.farewells().handle_route_change(now, B);
    assert!(poll(&mut table, now).is_some());
    assert_eq!(table.judge_open(now, B, &open(9, 9, 200), life(200)), OpenVerdict::Wait);
    let ack = Reset { from_index: reset.to_index, to_index: reset.from_index, ..reset };
    assert!(table.farewells().handle_confirmed(B, &ack));
    assert!(table.may_open(B) && table.take_held(B).is_some());
    table.farewells().add(now, farewell.unwrap());
    table.farewells().handle_reachable(now, B, Incarnation(201));
    assert!(table.may_open(B) && poll(&mut table, now).is_none(), "another life");
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
/// be a farewell after the same time as with one. Found by seed 773 of chatter-sim.
#[test]
fn a_channel_without_a_route_ends_as_well() {
    let mut now = start();
    let (mut a, _) = pair(now);
    assert!(a.close(ResetReason::Closed, now));
    for _ in 0..8 {
        a.handle_timeout(now, false);
        assert_eq!(a.state(), State::Closing);
        now += RETRY;
    }
    a.handle_timeout(now, false);
    assert_eq!(a.state(), State::Closed);
    assert!(!a.wants_service());
    let farewell = a.take_farewell().unwrap();
    assert_eq!((farewell.names, farewell.reason), (names(A), ResetReason::Closed));
}
