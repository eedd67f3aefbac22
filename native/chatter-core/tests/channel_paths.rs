//! What a source does when the way changes, when relays drop or mark, and when nothing helps.

use std::time::{Duration, Instant};

use chatter_core::channel::incoming::Incoming;
use chatter_core::channel::life::Outgoing;
use chatter_core::channel::options::SendOptions;
use chatter_core::channel::receive::Sink;
use chatter_core::channel::send::{Route, Sender};
use chatter_core::channel::{Loss, Names, OnLoss, SERVICE_INTERVAL, Settings};
use chatter_core::ids::{ChannelIndex, Incarnation, NodeId};
use chatter_core::wire::data::{Ack, ChannelKind, Open};
use chatter_core::wire::packet::Packet;
use chatter_core::wire::routed::{
    FLAG_ACK_NOW, FLAG_MARKED, MARK_DELAYED, MAX_NUMBER, RoutedHeader,
};

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);
const CHANNEL: ChannelIndex = ChannelIndex(7);
const CREDIT: u64 = 8 << 20;
const MS: Duration = Duration::from_millis(1);

#[expect(clippy::disallowed_methods, reason = "any base of virtual time")]
fn start() -> Instant {
    Instant::now()
}

fn sender(packets: usize) -> Sender {
    let route = Route { source: A, destination: B, channel: CHANNEL };
    let mut sender = Sender::new(route, CREDIT, 256 * 1024);
    for _ in 0..packets {
        sender.push_frame(&SendOptions::default(), &[&[0; 16_000]], 16_000);
        sender.end_batch();
    }
    sender
}

fn number(packet: &Packet) -> u64 {
    u64::from_be_bytes(packet.head[28..36].try_into().unwrap()) & MAX_NUMBER
}

fn sent(sender: &mut Sender, now: Instant) -> Vec<u64> {
    std::iter::from_fn(|| sender.poll_packet(now)).map(|packet| number(&packet)).collect()
}

fn ack(sender: &mut Sender, now: Instant, next: u64) {
    sender.handle_ack(now, &Ack { next, credit: CREDIT, ranges: Vec::new() });
}

fn settings(me: NodeId) -> std::sync::Arc<Settings> {
    std::sync::Arc::new(Settings {
        me,
        incarnation: Incarnation(1),
        name: String::new(),
        window: CREDIT,
        max_frame: 1 << 20,
        setup_retry: 250 * MS,
        flow_quota: 256 * 1024,
        gap_timeout: Duration::from_secs(10),
        on_loss: OnLoss::End,
    })
}

struct Nothing;

impl Sink for Nothing {
    fn frame(&mut self, _: Option<u32>, _: &[u8], _: u64) {}
    fn frame_start(&mut self, _: Option<u32>, _: usize) {}
    fn frame_part(&mut self, _: Option<u32>, _: &[u8]) {}
    fn frame_end(&mut self, _: Option<u32>, _: u64) {}
    fn handshake(&mut self, _: &[u8], _: u64) {}
}

/// Given a change of the way with much under way, expect it again in rounds that answers let grow, all
/// of it, and none twice.
#[test]
fn a_new_way_is_not_flooded() {
    let mut now = start();
    let mut sender = sender(500);
    let mut next = 1;
    // Until the window is large.
    while sender.queued_bytes().1 < 4 << 20 {
        let last = sent(&mut sender, now).last().copied().unwrap();
        if last >= 300 {
            break;
        }
        now += 10 * MS;
        next = last + 1;
        ack(&mut sender, now, next);
    }
    let last = next - 1 + (sender.queued_bytes().1 / 16_056) as u64;
    assert!(last - next > 200, "{next} to {last}");
    sender.handle_route_change(now);
    let mut rounds = Vec::new();
    let mut again: Vec<u64> = Vec::new();
    while next <= last {
        let round: Vec<u64> =
            sent(&mut sender, now).into_iter().filter(|number| *number <= last).collect();
        rounds.push(round.len());
        again.extend(&round);
        now += 10 * MS;
        next = round.last().unwrap() + 1;
        ack(&mut sender, now, next);
    }
    assert_eq!(rounds[..4], [16, 32, 64, 128], "{rounds:?}");
    assert!(again.is_sorted_by(|a, b| a < b), "once each");
    assert_eq!(again.len() as u64, sender.figures().retransmits);
}

/// Given notices that packets were dropped, expect the first that is missing again after a moment, one
/// packet however many notices came, and nothing for packets that have arrived.
#[test]
fn a_notice_brings_the_probe_forward() {
    let mut now = start();
    let mut sender = sender(20);
    assert_eq!(sent(&mut sender, now).len(), 20);
    now += MS;
    ack(&mut sender, now, 6);
    let probe = sender.poll_timeout().unwrap();
    sender.handle_unreachable(now, 3);
    sender.handle_unreachable(now, 77);
    assert_eq!(sender.poll_timeout(), Some(probe), "not of what has arrived, or was never sent");
    for number in 6..=20 {
        sender.handle_unreachable(now, number);
    }
    assert_eq!(sender.poll_timeout(), Some(now + 20 * MS));
    assert!(sent(&mut sender, now).is_empty());
    now += 20 * MS;
    sender.handle_timeout(now);
    assert_eq!(sent(&mut sender, now), [6]);
    now += MS;
    ack(&mut sender, now, 7);
    assert_eq!(sent(&mut sender, now), [7, 8], "and then the others, in rounds");
}

/// Given marks, expect the window halved once per round trip and never below four packets, what is under
/// way to follow it, acknowledgements to be asked for, and the window to grow again.
#[test]
fn marks_halve_what_is_under_way() {
    let mut now = start();
    let mut sender = sender(500);
    let mut next = 1 + sent(&mut sender, now).len() as u64;
    assert_eq!(next - 1, 32, "it begins with 512 KiB");
    now += 10 * MS;
    sender.handle_mark(now);
    sender.handle_mark(now);
    let figures = sender.figures();
    assert_eq!((figures.window, figures.marks, figures.window_cuts), (Some(32 * 16_056 / 2), 2, 1));
    for _ in 0..20 {
        ack(&mut sender, now, next);
        next += sent(&mut sender, now).len() as u64;
        now += 10 * MS;
        sender.handle_mark(now);
    }
    assert_eq!(sender.figures().window, Some(65_536));
    ack(&mut sender, now, next);
    let packets: Vec<Packet> = std::iter::from_fn(|| sender.poll_packet(now)).collect();
    assert!((4..=5).contains(&packets.len()), "{}", packets.len());
    let asking = packets.iter().filter(|packet| packet.head[4] & FLAG_ACK_NOW != 0).count();
    assert!(asking >= 2, "{asking} of a window ask for acknowledgement");
    next += packets.len() as u64;
    for _ in 0..10 {
        now += 10 * MS;
        ack(&mut sender, now, next);
        next += sent(&mut sender, now).len() as u64;
    }
    let window = sender.figures().window.unwrap();
    assert!((100_000..300_000).contains(&window), "a packet per round trip: {window}");
}

fn incoming() -> Incoming {
    let names = Names { index: CHANNEL, epoch: 1, peer: A };
    let mut incoming = Incoming::new(&settings(B), names);
    incoming.open(ChannelIndex(8));
    incoming
}

fn take(incoming: &mut Incoming, number: u64, mutable: u16) -> Option<Packet> {
    let header = RoutedHeader { number, mutable, ..RoutedHeader::to(B, A, CHANNEL) };
    // No fence before it; a frame of flow 1, one of them per packet.
    let flow = [6, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, number as u8 - 1];
    let content = [&[0; 4][..], &flow, &[1, 0, 0, 1, 0]].concat();
    incoming.handle_data(&header, &content, &mut Nothing, &mut Vec::new()).unwrap();
    incoming.poll_ack()
}

/// Given a packet with a mark, expect the next acknowledgement to say so, once, and no data to carry it.
#[test]
fn a_mark_is_told_once() {
    let mut incoming = incoming();
    let now = start();
    assert!(take(&mut incoming, 1, MARK_DELAYED).is_none());
    assert_eq!(incoming.take_piggyback(), None, "an item could not say it");
    incoming.handle_timeout(now, true);
    let flags = |ack: Packet| ack.head[4];
    assert_eq!(incoming.poll_ack().map(flags), Some(FLAG_MARKED));
    assert!(take(&mut incoming, 2, 0).is_none());
    incoming.handle_timeout(now, true);
    assert_eq!(incoming.poll_ack().map(flags), Some(0));
    assert_eq!(incoming.marks(), 1);
}

/// Given a gap, expect the channel to be given up after the gap's timeout in which there was a route and
/// this process ran, and not if it is closed before.
#[test]
fn a_gap_ends_the_channel_in_the_end() {
    let mut incoming = incoming();
    let mut now = start();
    let wait = |incoming: &mut Incoming, now: &mut Instant, time: Duration, routed: bool| {
        let until = *now + time;
        while *now < until {
            *now += SERVICE_INTERVAL;
            if let Some(loss) = incoming.handle_timeout(*now, routed) {
                return Some(loss);
            }
        }
        None
    };
    take(&mut incoming, 1, 0);
    assert_eq!(wait(&mut incoming, &mut now, 60_000 * MS, true), None, "nothing is missing");
    take(&mut incoming, 4, 0);
    assert!(incoming.wants_service());
    assert_eq!(wait(&mut incoming, &mut now, 9_900 * MS, true), None);
    assert_eq!(wait(&mut incoming, &mut now, 9_900 * MS, false), None, "no route");
    assert_eq!(wait(&mut incoming, &mut now, 9_900 * MS, true), None);
    take(&mut incoming, 2, 0);
    now += 3_600_000 * MS;
    assert_eq!(incoming.handle_timeout(now, true), None, "held up for an hour");
    assert_eq!(wait(&mut incoming, &mut now, 9_800 * MS, true), None, "another is missing now");
    let lost = wait(&mut incoming, &mut now, 400 * MS, true);
    assert_eq!(lost, Some(Loss { packets: 1 }));
}

/// Given data of which nothing is heard, not even that it came twice, expect the same at the source.
#[test]
fn silence_ends_the_channel_in_the_end() {
    let mut now = start();
    let open = Open {
        index: ChannelIndex(8),
        epoch: 2,
        incarnation: Incarnation(1),
        window: CREDIT,
        kind: ChannelKind::Distribution,
        name: String::new(),
    };
    let names = Names { index: CHANNEL, epoch: 1, peer: B };
    let mut out = Outgoing::granting(settings(A), names, &open, now);
    let sender = out.sender_mut().unwrap();
    sender.push_frame(&SendOptions::default(), &[b"x"], 1);
    sender.end_batch();
    let (mut packets, mut lost_after) = (0, None);
    for tick in 1..1_000 {
        now += SERVICE_INTERVAL;
        let lost = out.handle_timeout(now, true);
        packets += std::iter::from_fn(|| out.poll_packet(now)).count();
        if tick == 250 {
            out.handle_ack(now, &Ack { next: 1, credit: CREDIT, ranges: Vec::new() }, false);
        }
        if lost.is_some() {
            lost_after = Some(tick * SERVICE_INTERVAL);
            break;
        }
    }
    let lost_after = lost_after.expect("given up");
    assert!((15_000 * MS..15_200 * MS).contains(&lost_after), "{lost_after:?}");
    assert!((8..=14).contains(&packets), "{packets} probes, ever more seldom");
}
