//! The switch's model: what is asked for is what happens to frames.

use chatter_lab::command;
use chatter_lab::fabric::{Fabric, OVERTAKEN_US, PAIR_QUEUE_BYTES};
use chatter_lab::frame;

const FRAMES: usize = 60_000;

fn numbered(to: usize, number: usize) -> Vec<u8> {
    let mut bytes = vec![0; 64];
    bytes[..6].copy_from_slice(&frame::address(to));
    bytes[16..24].copy_from_slice(&(number as u64).to_be_bytes());
    bytes
}

fn number(frame: &[u8]) -> usize {
    usize::try_from(u64::from_be_bytes(frame[16..24].try_into().unwrap())).unwrap()
}

/// Sends numbered frames from port 1 to port 2, one every 10 microseconds; returns them as they
/// arrive, each with the time that it took.
fn arrivals(seed: u64, line: &str) -> Vec<(usize, u64)> {
    let mut fabric = Fabric::new(3, seed);
    assert_eq!(command::run(&mut fabric, line), "ok");
    let mut got = Vec::new();
    let mut now = 0;
    for n in 0..FRAMES {
        now = n as u64 * 10;
        while let Some(due) = fabric.next_due_us().filter(|due| *due <= now) {
            fabric.release(due, &mut |_, f| got.push((number(f), due - number(f) as u64 * 10)));
        }
        fabric.offer(now, 0, &numbered(1, n), &mut |to, f| {
            assert_eq!(to, 1);
            got.push((number(f), 0));
        });
    }
    while let Some(due) = fabric.next_due_us() {
        assert!(due >= now);
        fabric.release(due, &mut |_, f| got.push((number(f), due - number(f) as u64 * 10)));
    }
    got
}

fn share(part: usize) -> f64 {
    part as f64 / FRAMES as f64
}

/// Given no shape, expect every frame at once and in order; given a cut, none.
#[test]
fn plain_and_cut() {
    let plain = arrivals(1, "clear * *");
    assert_eq!(plain, (0..FRAMES).map(|n| (n, 0)).collect::<Vec<_>>());
    assert_eq!(arrivals(1, "set 1 2 cut=1"), []);
    assert_eq!(arrivals(1, "set 2 1 cut=1").len(), FRAMES, "the other direction passes");
}

/// Given 10 % loss, expect 10 % to within half a percent, the rest in order; with another seed
/// other frames, with the same seed the same.
#[test]
fn loss_is_seeded() {
    let one = arrivals(1, "set 1 2 loss=100000");
    assert!((share(FRAMES - one.len()) - 0.1).abs() < 0.005);
    assert!(one.is_sorted());
    assert_eq!(one, arrivals(1, "set 1 2 loss=100000"));
    assert_ne!(one, arrivals(2, "set 1 2 loss=100000"));
}

/// Given loss for groups, expect frames to them to be lost, and no others.
#[test]
fn loss_for_groups_alone() {
    assert_eq!(arrivals(1, "set 1 2 group_loss=1000000").len(), FRAMES);
    let mut fabric = Fabric::new(3, 1);
    assert_eq!(command::run(&mut fabric, "set 1 2 group_loss=1000000"), "ok");
    let mut frame = numbered(1, 7);
    frame[..6].copy_from_slice(&[0x01, 0, 0x5e, 1, 1, 1]);
    let mut got = Vec::new();
    for now in 0..100 {
        fabric.offer(now, 0, &frame, &mut |to, _| got.push(to));
        fabric.release(now, &mut |to, _| got.push(to));
    }
    assert_eq!(got, vec![2; 100]);
}

/// Given delay and jitter, expect every frame within both, in order, and spread.
#[test]
fn delay_and_jitter() {
    let got = arrivals(1, "set * * delay=200000 jitter=5000");
    assert_eq!(got.len(), FRAMES);
    assert!(got.iter().map(|(n, _)| n).is_sorted());
    assert!(got.iter().all(|(_, took)| (200_000..=205_000).contains(took)));
    assert!(got.iter().any(|(_, took)| *took < 203_000));
}

/// Given duplication and reordering, expect the shares asked for, and each frame.
#[test]
fn duplicates_and_reorders() {
    let got = arrivals(1, "set 1 2 duplicate=50000 reorder=20000");
    assert!((share(got.len() - FRAMES) - 0.05).abs() < 0.005);
    let late = got.iter().filter(|(_, took)| *took >= OVERTAKEN_US).count();
    assert!((share(late) - 0.02).abs() < 0.005);
    let mut numbers: Vec<usize> = got.iter().map(|(n, _)| *n).collect();
    assert!(!numbers.is_sorted());
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), FRAMES);
}

/// Given corruption, expect single bits changed, never in the addresses.
#[test]
fn corruption() {
    let mut fabric = Fabric::new(2, 1);
    assert_eq!(command::run(&mut fabric, "set 1 2 corrupt=1000000"), "ok");
    let sent = numbered(1, 7);
    for now in 0..1000 {
        fabric.offer(now, 0, &sent, &mut |_, _| {});
    }
    fabric.release(u64::MAX, &mut |_, got| {
        assert_eq!(got[..12], sent[..12]);
        let bits: u32 = got.iter().zip(&sent).map(|(a, b)| (a ^ b).count_ones()).sum();
        assert_eq!(bits, 1);
    });
    assert_eq!(fabric.stats().corrupted, 1000);
}

/// Given a rate below what is sent, expect that rate, and a bounded queue.
#[test]
fn rate_and_its_queue() {
    // 64 bytes every 10 us are 6.4 MB/s; 3.2 MB/s pass.
    let got = arrivals(1, "set 1 2 rate=3200000");
    let (last, took) = got[got.len() - 1];
    let seconds = (last as f64 * 10.0 + took as f64) / 1e6;
    let rate = got.len() as f64 * 64.0 / seconds;
    assert!((rate / 3.2e6 - 1.0).abs() < 0.01, "{rate}");
    let longest = got.iter().map(|(_, took)| *took).max().unwrap();
    assert!(longest <= (PAIR_QUEUE_BYTES as u64 * 1_000_000).div_ceil(3_200_000) + 100);
}

/// Given frames to all, to nobody and to the sender, expect them at all others, and nowhere.
#[test]
fn who_gets_it() {
    let mut fabric = Fabric::new(4, 1);
    let mut got = Vec::new();
    let mut broadcast = numbered(1, 1);
    broadcast[..6].fill(0xff);
    fabric.offer(0, 2, &broadcast, &mut |to, _| got.push(to));
    fabric.offer(0, 2, &numbered(9, 1), &mut |to, _| got.push(to));
    fabric.offer(0, 2, &numbered(2, 1), &mut |to, _| got.push(to));
    assert_eq!(got, [0, 1, 3]);
}

/// Given a pair that holds frames back when its shape is cleared, expect later ones behind them.
#[test]
fn cleared_pairs_keep_order() {
    let mut fabric = Fabric::new(2, 1);
    command::run(&mut fabric, "set 1 2 delay=1000");
    let mut got = Vec::new();
    fabric.offer(0, 0, &numbered(1, 1), &mut |_, f| got.push(number(f)));
    assert_eq!(command::run(&mut fabric, "clear 1 2"), "ok");
    fabric.offer(10, 0, &numbered(1, 2), &mut |_, f| got.push(number(f)));
    fabric.release(1000, &mut |_, f| got.push(number(f)));
    fabric.offer(1001, 0, &numbered(1, 3), &mut |_, f| got.push(number(f)));
    assert_eq!(got, [1, 2, 3]);
}

/// Given lines that make no sense, expect an error for each and nothing changed.
#[test]
fn bad_commands() {
    let mut fabric = Fabric::new(2, 1);
    for line in [
        "",
        "set",
        "set 1 3 cut=1",
        "set 0 1 cut=1",
        "set 1 2 loss=1000001",
        "set 1 2 speed=1",
        "set 1 2 cut",
        "clear 1",
        "reset 1 x",
        "set 1 2 cut=1 delay=x",
    ] {
        assert!(command::run(&mut fabric, line).starts_with("error "), "{line}");
    }
    let mut count = 0;
    fabric.offer(0, 0, &numbered(1, 1), &mut |_, _| count += 1);
    assert_eq!(count, 1);
    assert!(command::run(&mut fabric, "stats").starts_with("ok forwarded=1 cut=0 "));
}
