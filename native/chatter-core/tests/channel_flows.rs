//! Flows of a channel: each in order, none held up by another, fences in order with all, few known for
//! long, and the senders of those that have too much queued told to wait.

mod channel_mesh;
mod channel_pipe;

use std::collections::HashSet;
use std::time::Duration;

use channel_mesh::{Mesh, Weather, read, sender, start};
use channel_pipe::{Rng, seeds};
use chatter_core::channel::CHUNK_LEN;
use chatter_core::channel::options::{Class, SendOptions};
use chatter_core::channel::send::Sender;
use chatter_core::flow::FlowKey;
use chatter_core::sched::STREAMING;
use chatter_core::sched::fair::Level;
use chatter_core::wire::data::{Ack, Item, next_item};
use chatter_core::wire::routed::FLAG_FENCE;

const MINUTES: Duration = Duration::from_secs(600);
const MS: Duration = Duration::from_millis(1);
const QUOTA: usize = 64 * 1024;

fn flow(key: u64) -> SendOptions {
    SendOptions { flow: FlowKey::Flow(key), ..SendOptions::default() }
}

fn fence() -> SendOptions {
    SendOptions { flow: FlowKey::Fence, ..SendOptions::default() }
}

fn lead(key: u64) -> SendOptions {
    SendOptions { flow: FlowKey::Lead(key), ..SendOptions::default() }
}

fn calm() -> Weather {
    Weather { loss: 0, doubled: 0, delay_us: 1_000, spread_us: 0, vm_us: 0, burst: 1_000 }
}

fn some_weather(rng: &mut Rng) -> Weather {
    let mut pick = |choices: &[u64]| choices[rng.below(choices.len() as u64) as usize];
    Weather {
        loss: pick(&[0, 5, 20, 100, 300]),
        doubled: pick(&[0, 50, 300]),
        delay_us: pick(&[50, 1_000, 20_000]),
        spread_us: pick(&[0, 1_000, 50_000]),
        vm_us: pick(&[0, 100, 50_000, 1_000_000]),
        burst: pick(&[1, 4, 64]) as usize,
    }
}

fn some_frame(rng: &mut Rng, flows: u64, fences: u64, optional: u64) -> (SendOptions, usize) {
    let most = [1, 100, 100, 2_000, 20_000, 100_000][rng.below(6) as usize];
    let len = rng.below(most + 1) as usize;
    if rng.per_mille(fences) {
        return (fence(), len);
    }
    let key = rng.below(flows);
    if rng.per_mille(fences) {
        return (lead(key), len);
    }
    // A flow keeps its class, mostly.
    let class = [Class::Normal, Class::Normal, Class::High, Class::Low][(key % 4) as usize];
    let class = if rng.per_mille(20) { Class::Normal } else { class };
    let mut options = SendOptions { class, ..flow(key) };
    if len <= CHUNK_LEN && rng.per_mille(optional) {
        let some_ms = 1 + rng.below(200);
        options.deadline = rng.per_mille(400).then(|| Duration::from_millis(some_ms));
        options.reliable = rng.per_mille(500);
        options.ordered = rng.per_mille(500);
    }
    (options, len)
}

/// Given frames of all sizes of many flows, fences among them, some of them with deadlines or to be given
/// up, over any network, expect each flow in order, each frame once, nothing across a fence, nothing
/// missing that was not given up, the credit kept, holds and resumes in turns, and nothing left in the end.
#[test]
fn every_flow_is_in_order_and_nothing_crosses_a_fence() {
    seeds("every_flow_is_in_order_and_nothing_crosses_a_fence", 400, |seed| some_work(seed, 1));
}

/// The same over up to four equally short ways, whose number changes.
#[test]
fn several_ways_change_nothing() {
    seeds("several_ways_change_nothing", 200, |seed| some_work(seed, 4));
}

fn some_work(seed: u64, ways: u64) {
    let mut rng = Rng(seed);
    let window = [64 << 10, 256 << 10, 8 << 20][rng.below(3) as usize];
    let mut mesh = Mesh::new(rng.next(), window, QUOTA, some_weather(&mut rng));
    let flows = [1, 3, 20, 300][rng.below(4) as usize];
    let fences = [0, 5, 50, 300][rng.below(4) as usize];
    let optional = [0, 0, 100, 1_000][rng.below(4) as usize];
    for _ in 0..rng.below(80) {
        let mut frames: Vec<_> =
            (0..1 + rng.below(12)).map(|_| some_frame(&mut rng, flows, fences, optional)).collect();
        let held = &mesh.held;
        frames.retain(|(options, _)| match options.flow {
            FlowKey::Flow(key) | FlowKey::Lead(key) => !held.contains(&key),
            FlowKey::Fence => true,
        });
        mesh.push(&frames);
        if ways > 1 && rng.per_mille(300) {
            mesh.set_ways(1 + rng.below(ways) as usize);
        }
        if rng.per_mille(500) {
            let time = rng.below(20_000);
            mesh.run_for(Duration::from_micros(time));
        }
    }
    mesh.finish(MINUTES);
}

/// Given two ways, of which one takes nothing, expect the flows of the other one to come out, and all
/// of them once there is only one way left.
#[test]
fn a_way_that_stands_still_holds_up_its_flows_alone() {
    let mut sender = sender(8 << 20, QUOTA);
    sender.set_ways(2);
    let now = start();
    for key in 0..20 {
        sender.push_frame(&flow(key), &[&[0; 10]], 10);
        sender.push_large_frame(&flow(key), &[vec![0; 20_000].into()], 20_000);
    }
    sender.end_batch();
    let mut labels = [HashSet::new(), HashSet::new()];
    let mut pull = |sender: &mut Sender, way: usize, at: usize| {
        for level in Level::ALL {
            while let Some(packet) = sender.poll_on(way, now, level) {
                labels[at].insert(read(&packet.to_vec()).0.label);
            }
        }
    };
    pull(&mut sender, 1, 1);
    assert_eq!(sender.ready_on(1), 0);
    assert_ne!(sender.ready_on(0), 0);
    sender.set_ways(1);
    pull(&mut sender, 0, 0);
    assert_eq!((sender.ready(), sender.queued_bytes().0), (0, 0));
    assert!(labels[0].is_disjoint(&labels[1]), "a flow went both ways");
    assert!(labels.iter().all(|labels| labels.len() > 4), "{labels:?}");
}

/// Given a packet of one flow that is lost again and again, expect all others to come out meanwhile, also
/// those of other packets of the same moment, and what is behind a fence to wait.
#[test]
fn a_gap_holds_up_its_flow_alone() {
    let mut mesh = Mesh::new(1, 8 << 20, QUOTA, calm());
    let large = 2 * CHUNK_LEN;
    mesh.push(&[(flow(1), large)]);
    mesh.run_for(10 * MS);
    assert_eq!(mesh.checker.order, [Some(1)]);
    let lost = mesh.sender.next_number();
    let mut times = 0;
    mesh.lose = Box::new(move |header| {
        times += u32::from(header.number == lost);
        header.number == lost && times < 5
    });
    mesh.push(&[(flow(1), large)]);
    for key in 2..50 {
        mesh.push(&[(flow(key), large), (flow(key), 10), (flow(1), 10)]);
    }
    mesh.run_for(20 * MS);
    let out = mesh.checker.order.clone();
    assert_eq!(out.iter().filter(|key| **key != Some(1)).count(), 2 * 48);
    assert_eq!(out.iter().filter(|key| **key == Some(1)).count(), 1, "it waits");
    mesh.push(&[(fence(), 10), (flow(100), 10)]);
    mesh.run_for(20 * MS);
    assert_eq!(mesh.checker.order.len(), out.len(), "so does what is behind a fence");
    mesh.finish(MINUTES);
}

/// A sender with a long backlog of flows 0 to 19.
fn behind_others() -> Sender {
    let mut sender = sender(8 << 20, QUOTA);
    for key in 0..20 {
        sender.push_large_frame(&flow(key), &[vec![0; 20_000].into()], 20_000);
    }
    sender
}

/// Given a long backlog of others and a frame that only later ones need, expect it to leave first.
#[test]
fn a_lead_waits_for_nobody() {
    let (mut sender, now) = (behind_others(), start());
    sender.push_frame(&lead(30), &[&[0; 10]], 10);
    sender.push_frame(&flow(31), &[&[0; 10]], 10);
    sender.end_batch();
    assert_eq!(sender.poll_level(now, Level::Normal), None, "not before the lead");
    let first = sender.poll_packet(now).expect("the lead").to_vec();
    assert_ne!(read(&first).0.flags & FLAG_FENCE, 0);
    assert!(sender.poll_level(now, Level::Normal).is_some());
}

/// Given a long backlog of others, and a small frame that only later ones need behind another one of the same
/// flow, all in one batch, expect the two to leave first, in this order, and what came later not to share a
/// packet with the first.
#[test]
fn a_lead_waits_for_what_is_urgent_of_its_flow_alone() {
    let (mut sender, now) = (behind_others(), start());
    sender.push_frame(&flow(30), &[&[0; 10]], 10);
    sender.push_frame(&lead(30), &[&[0; 20]], 20);
    sender.push_frame(&flow(31), &[&[0; 30]], 30);
    sender.end_batch();
    let mut lengths = Vec::new();
    for fence in [0, FLAG_FENCE, 0] {
        let packet = sender.poll_level(now, Level::Urgent).expect("an urgent packet").to_vec();
        assert_eq!(read(&packet).0.flags & FLAG_FENCE, fence, "after {lengths:?}");
        let blocked = lengths.is_empty() && sender.poll_level(now, Level::Normal).is_some();
        assert!(!blocked, "not before the lead");
        lengths.push(packet.len());
    }
    assert_eq!(lengths[0] + 20, lengths[2], "one frame each: {lengths:?}");
    assert!(sender.poll_level(now, Level::Normal).is_some());
}

/// Given small things of a flow that has had a backlog, expect them to be urgent as ever, but nobody to be
/// said to wait for them until some time without a backlog; and others that share a packet with them to count.
#[test]
fn what_is_left_of_bulk_does_not_press() {
    let mut sender = sender(8 << 20, QUOTA);
    let now = start();
    let (soon, later) = (now + STREAMING - MS, now + STREAMING);
    let polled = |sender: &mut Sender, at| {
        let packet = sender.poll_level(at, Level::Urgent).expect("an urgent packet").to_vec();
        read(&packet).0.is_pressing()
    };
    for (key, len) in [(1, 20_000), (2, CHUNK_LEN), (2, CHUNK_LEN)] {
        sender.begin_batch(now);
        sender.push_frame(&flow(key), &[&vec![0; len]], len);
        sender.end_batch();
    }
    while sender.poll_packet(now).is_some() {}
    let cases: [(_, &[u64], _); 6] = [
        (soon, &[1], false),
        (soon, &[2], false),
        (soon, &[1, 2], false),
        (soon, &[1, 3], true),
        (soon, &[3], true),
        (later, &[1], true),
    ];
    for (at, keys, expected) in cases {
        sender.begin_batch(at);
        for key in keys {
            sender.push_frame(&flow(*key), &[&[0; 10]], 10);
        }
        sender.end_batch();
        assert_eq!(polled(&mut sender, at), expected, "{keys:?}");
    }
    sender.begin_batch(soon);
    sender.push_frame(&SendOptions { class: Class::High, ..flow(1) }, &[&[0; 20_000]], 20_000);
    sender.end_batch();
    let packet = sender.poll_level(soon, Level::High).expect("one of high priority").to_vec();
    assert!(read(&packet).0.is_pressing());
}

/// Given a fence that waits for a long backlog, expect who goes on sending behind it to be held back.
#[test]
fn who_queues_too_much_behind_a_fence_is_held() {
    let mut sender = sender(8 << 20, QUOTA);
    for key in 0..20 {
        sender.push_large_frame(&flow(key), &[vec![0; 40_000].into()], 40_000);
    }
    sender.push_frame(&fence(), &[&[0; 10]], 10);
    for _ in 0..10 {
        sender.push_frame(&flow(7), &[&[0; 10_000]], 10_000);
    }
    sender.end_batch();
    assert_eq!(sender.take_hold(), [7]);
}

/// Given a lost packet of a flow that has no more to send, while others are busy all the time, expect it
/// again soon: packets of other flows do not show that it is lost, but time does.
#[test]
fn the_last_packet_of_a_quiet_flow_is_not_forgotten() {
    let weather = Weather { spread_us: 500, ..calm() };
    let mut mesh = Mesh::new(2, 8 << 20, QUOTA, weather);
    for round in 0..300 {
        if round == 20 {
            let lost = mesh.sender.next_number();
            let mut first = true;
            mesh.lose = Box::new(move |header| header.number == lost && std::mem::take(&mut first));
            // More than may be urgent: packets with a label of their own.
            mesh.push(&[(flow(7), CHUNK_LEN + 100)]);
        }
        mesh.push(&[(flow(8), 3_000), (flow(9), 20_000), (flow(10 + round), 10)]);
        mesh.run_for(5 * MS);
        if round == 220 {
            assert!(mesh.checker.order.contains(&Some(7)), "a second later");
        }
    }
    mesh.finish(MINUTES);
}

/// Given more flows than are kept, expect those that are over to be retired at both ends, and new frames
/// of their keys to come out as before.
#[test]
fn flows_are_retired() {
    seeds("flows_are_retired", 4, |seed| {
        let weather = Weather { loss: 10 * (seed % 3), spread_us: 2_000, ..calm() };
        let mut mesh = Mesh::new(seed, 8 << 20, QUOTA, weather);
        let mut rng = Rng(seed);
        for round in 0..3_000 {
            let any = rng.below(20_000);
            let frames: Vec<_> =
                (0..10).map(|i| (flow((10 * round + i + any) % 20_000), 50)).collect();
            mesh.push(&frames);
            mesh.run_for(MS);
        }
        mesh.finish(MINUTES);
        let flows = mesh.sender.figures().flows;
        assert!(flows.retired > 5_000, "{flows:?}");
        assert!(flows.flows <= 12 * 1024, "{flows:?}");
        assert_eq!(mesh.receiver.flows(), flows.flows);
    });
}

/// Given forty thousand senders before anything is acknowledged, expect all their frames, and a
/// bound on what both ends keep.
#[test]
fn a_stall_does_not_make_too_many_flows() {
    let mut mesh = Mesh::new(3, 1 << 20, QUOTA, calm());
    for batch in 0..400 {
        let frames: Vec<_> = (0..100).map(|i| (flow(100 * batch + i), 40)).collect();
        mesh.push(&frames);
    }
    mesh.finish(MINUTES);
    let flows = mesh.sender.figures().flows;
    assert!(flows.flows <= 32 * 1024, "{flows:?}");
    assert!(mesh.receiver.flows() <= 32 * 1024);
}

/// All that a sender has to send, each packet acknowledged: for each the flag of a fence, and the first
/// bytes of the frames in it.
fn drain(sender: &mut Sender, most: usize) -> Vec<(bool, Vec<u8>)> {
    let mut packets = Vec::new();
    while packets.len() < most
        && let Some(packet) = sender.poll_packet(start())
    {
        let packet = packet.to_vec();
        let (header, content) = read(&packet);
        let mut frames = Vec::new();
        let mut items = &content[4..];
        while let Some(item) = next_item(&mut items).unwrap() {
            match item {
                Item::Frame(body) | Item::First { part: body, .. } => frames.push(body[0]),
                _ => {}
            }
        }
        packets.push((header.flags & FLAG_FENCE != 0, frames));
        let ack = Ack { next: header.number + 1, credit: u64::MAX / 2, ranges: vec![] };
        sender.handle_ack(start(), &ack);
    }
    packets
}

fn push(sender: &mut Sender, options: &SendOptions, tag: u8, len: usize) {
    sender.push_frame(options, &[&vec![tag; len]], len);
}

/// Given a flow with a backlog, expect small frames of others before it, all in few packets, and high
/// ones before these.
#[test]
fn small_things_of_others_go_first() {
    let mut sender = sender(64 << 20, QUOTA);
    push(&mut sender, &flow(1), 1, 20 * CHUNK_LEN);
    let low = SendOptions { class: Class::Low, ..flow(2) };
    push(&mut sender, &low, 2, 100);
    for tag in 10..60 {
        push(&mut sender, &flow(u64::from(tag)), tag, 100);
    }
    push(&mut sender, &flow(1), 3, 100);
    push(&mut sender, &SendOptions { class: Class::High, ..flow(4) }, 4, 100);
    sender.end_batch();
    let packets = drain(&mut sender, usize::MAX);
    assert_eq!(packets[0], (false, vec![4]));
    assert_eq!(packets[1], (false, (10..60).collect()));
    assert_eq!(packets[2], (false, vec![1]));
    let small = packets.iter().position(|packet| packet.1 == [3]).unwrap();
    assert_eq!(small, 22, "behind what its flow has queued");
    assert_eq!(packets.last().unwrap(), &(false, vec![2]));
    assert!(sender.is_idle());
}

/// Given two flows with a backlog of packets of different sizes, expect both to get the same bytes.
#[test]
fn flows_share_by_bytes() {
    let mut sender = sender(64 << 20, QUOTA);
    push(&mut sender, &flow(1), 1, 64 * CHUNK_LEN);
    for _ in 0..400 {
        push(&mut sender, &flow(2), 2, 8_000);
    }
    sender.end_batch();
    // Without what was urgent.
    drain(&mut sender, 2);
    let mut sent = [0usize; 2];
    for _ in 0..60 {
        let left = sender.queued_bytes().0;
        let (_, frames) = drain(&mut sender, 1).pop().unwrap();
        let is_second = !frames.is_empty() && frames[0] == 2;
        sent[usize::from(is_second)] += left - sender.queued_bytes().0;
    }
    assert!(sent[0].abs_diff(sent[1]) < 3 * CHUNK_LEN, "{sent:?}");
}

/// Given fences among frames in one batch and in several, expect nothing to leave before a fence that it
/// was pushed after, nor after one that it was pushed before, whatever its class.
#[test]
fn fences_keep_their_place() {
    let mut sender = sender(64 << 20, QUOTA);
    let high = SendOptions { class: Class::High, ..flow(3) };
    push(&mut sender, &flow(1), 1, 3 * CHUNK_LEN);
    push(&mut sender, &flow(2), 2, 10);
    push(&mut sender, &fence(), 3, 10);
    push(&mut sender, &high, 4, 10);
    sender.end_batch();
    push(&mut sender, &flow(2), 5, 10);
    push(&mut sender, &fence(), 6, 2 * CHUNK_LEN);
    push(&mut sender, &fence(), 7, 10);
    push(&mut sender, &high, 8, 10);
    sender.end_batch();
    let packets = drain(&mut sender, usize::MAX);
    let mut frames: Vec<u8> = packets.iter().flat_map(|(_, frames)| frames.clone()).collect();
    // Between two fences, in any order.
    frames[3..5].sort_unstable();
    assert_eq!(frames, [2, 1, 3, 4, 5, 6, 7, 8]);
    let fences: Vec<u8> =
        packets.iter().filter(|packet| packet.0).flat_map(|(_, frames)| frames.clone()).collect();
    assert_eq!(fences, [3, 6, 7]);
    assert_eq!(packets.iter().filter(|packet| packet.0).count(), 4, "one of them in two chunks");
    assert_eq!(sender.figures().flows.fences, 3);
    assert!(sender.is_idle());
}

/// Given flows over their quota, expect their senders to be held back once all together are over sixteen
/// quotas, once each, and to go on when there is less; flows within their quota are left alone.
#[test]
fn who_queues_too_much_is_held() {
    let mut sender = sender(64 << 20, QUOTA);
    for _ in 0..10 {
        push(&mut sender, &flow(1), 1, QUOTA / 4);
    }
    sender.end_batch();
    assert!(sender.take_hold().is_empty(), "there is room for others");
    for _ in 0..20 {
        push(&mut sender, &flow(2), 2, QUOTA);
        push(&mut sender, &flow(3), 3, QUOTA / 40);
    }
    sender.end_batch();
    assert_eq!(sender.take_hold(), [2]);
    push(&mut sender, &flow(1), 1, QUOTA / 4);
    push(&mut sender, &flow(2), 2, QUOTA / 4);
    sender.end_batch();
    assert_eq!(sender.take_hold(), [1], "only now it is in the way, and the other was told of");
    assert!(!sender.has_resume());
    let mut resumed = Vec::new();
    while drain(&mut sender, 1).len() == 1 {
        let left = sender.queued_bytes().0;
        let news = sender.take_resume();
        assert!(left < 8 * QUOTA || !news.contains(&2), "with {left} left");
        resumed.extend(news);
    }
    resumed.sort_unstable();
    assert_eq!(resumed, [1, 2]);
    assert_eq!(sender.figures().flows.held, 2);
    assert!(sender.is_idle() && sender.flows().all(|flow| flow.queued == 0));
}
