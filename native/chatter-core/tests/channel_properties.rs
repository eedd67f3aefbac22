//! A channel over a network that loses, delays, reorders and doubles packets: what goes in at one end
//! comes out at the other, once, in order, byte by byte, with bounded memory and without storms.

mod channel_pipe;

use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use channel_pipe::{Fate, Pipe, Rng, Setting, Unit, seeds};

const MINUTES: Duration = Duration::from_secs(600);

/// `len` bytes that differ from those at other offsets.
fn bytes(rng: &mut Rng, len: usize) -> Bytes {
    static POOL: OnceLock<Bytes> = OnceLock::new();
    let pool = POOL.get_or_init(|| {
        let mut rng = Rng(1);
        (0..(1 << 20) / 8).flat_map(|_| rng.next().to_be_bytes()).collect()
    });
    let start = rng.below((pool.len() - len) as u64) as usize;
    pool.slice(start..start + len)
}

fn some_len(rng: &mut Rng) -> usize {
    let most = match rng.below(20) {
        0..=1 => 1,
        2..=12 => 100,
        13..=17 => 20_000,
        _ => 200 * 1024,
    };
    rng.below(most + 1) as usize
}

fn some_batches(rng: &mut Rng) -> Vec<Vec<Unit>> {
    let mut batches = vec![vec![Unit::Handshake(bytes(rng, 30))]];
    for _ in 0..rng.below(25) {
        let frames = 1 + rng.below(6);
        let frame = |_| {
            let len = some_len(rng);
            Unit::Frame(bytes(rng, len))
        };
        batches.push((0..frames).map(frame).collect());
    }
    batches
}

fn frames(count: usize, len: usize) -> Vec<Vec<Unit>> {
    let mut rng = Rng(7);
    (0..count).map(|_| vec![Unit::Frame(bytes(&mut rng, len))]).collect()
}

fn some_setting(rng: &mut Rng) -> Setting {
    let pick = |rng: &mut Rng, choices: &[u64]| choices[rng.below(choices.len() as u64) as usize];
    Setting {
        window: pick(rng, &[64 << 10, 64 << 10, 100_000, 1 << 20, 8 << 20]),
        max_frame: 1 << 30,
        loss: pick(rng, &[0, 0, 5, 20, 100, 300]),
        doubled: pick(rng, &[0, 0, 50, 500]),
        delay_us: pick(rng, &[0, 50, 1_000, 40_000]),
        jitter_us: pick(rng, &[0, 0, 100, 5_000, 100_000]),
        stuck_us: pick(rng, &[0, 0, 1_000_000]),
        vm_us: pick(rng, &[0, 100, 10_000, 2_000_000]),
        route_changes: pick(rng, &[0, 0, 0, 1, 5]) as u32,
    }
}

/// Given any traffic both ways over any network, expect all of it at the other end, once and in order
/// (the pipe checks that, the credit and the window), whatever was lost.
#[test]
fn everything_comes_out_once_and_in_order() {
    seeds("everything_comes_out_once_and_in_order", 1_500, |seed| {
        let mut rng = Rng(seed);
        let setting = some_setting(&mut rng);
        let traffic = [some_batches(&mut rng), some_batches(&mut rng)];
        let mut pipe = Pipe::new(rng.next(), setting.clone(), traffic);
        pipe.run(MINUTES);
        let is_steady = setting.jitter_us == 0 && setting.stuck_us == 0;
        if setting.loss == 0 && setting.route_changes == 0 && is_steady {
            // Data is repeated only if an answer is out for longer than the probe timeout.
            assert_eq!(pipe.counts(0).retransmits + pipe.counts(1).retransmits, 0, "{setting:?}");
        }
    });
}

/// Given loss in order of arrival, expect about one packet sent again for each that was lost: no
/// storms.
#[test]
fn retransmits_follow_losses() {
    seeds("retransmits_follow_losses", 60, |seed| {
        let mut rng = Rng(seed);
        let loss = 1 + rng.below(100);
        let setting = Setting { loss, delay_us: 500 + rng.below(20_000), ..Setting::calm() };
        let mut pipe = Pipe::new(seed, setting.clone(), [frames(1_000, 16_000), vec![]]);
        let took = pipe.run(MINUTES);
        let counts = pipe.counts(0);
        let bound = 2 * counts.data_lost + counts.ack_lost / 4 + 20;
        assert!(counts.retransmits <= bound, "{setting:?} {counts:?} in {took:?}");
    });
}

/// Given packets out of order but none lost, expect few of them sent again.
#[test]
fn disorder_is_not_loss() {
    seeds("disorder_is_not_loss", 40, |seed| {
        let jitter_us = 2_000;
        let setting = Setting { delay_us: 10_000, jitter_us, ..Setting::calm() };
        let mut pipe = Pipe::new(seed, setting, [frames(1_000, 16_000), vec![]]);
        pipe.run(MINUTES);
        let counts = pipe.counts(0);
        assert!(counts.retransmits <= counts.data / 10, "{counts:?}");
    });
}

/// Given all packets late by a second, and none lost, expect few sent again.
#[test]
fn a_late_burst_is_not_lost() {
    let setting = Setting { window: 8 << 20, stuck_us: 1_000_000, ..Setting::calm() };
    let mut pipe = Pipe::new(1, setting, [frames(400, 16_000), vec![]]);
    pipe.run(MINUTES);
    assert!(pipe.counts(0).retransmits <= 10, "{:?}", pipe.counts(0));
}

/// Given the last 120 packets of a burst lost at once, as by a relay's full queue, expect them back in
/// a few rounds: the probe's answer says nothing about those behind it.
#[test]
fn a_lost_tail_comes_back_in_rounds() {
    for stuck_us in [0, 1_000_000] {
        let setting = Setting { window: 8 << 20, stuck_us, ..Setting::calm() };
        let mut pipe = Pipe::new(1, setting, [frames(400, 16_000), vec![]]);
        let mut seen = 0;
        pipe.lose = Box::new(move |fate| match fate {
            Fate::Data { number, .. } if (101..=220).contains(number) && *number > seen => {
                seen = *number;
                true
            }
            _ => false,
        });
        let took = pipe.run(MINUTES);
        // From the first answers on it is the probe timeout and nine rounds.
        let most = Duration::from_millis(3_000) + 2 * Duration::from_micros(stuck_us);
        assert!(took < most, "took {took:?}");
        assert!(pipe.counts(0).retransmits <= 135, "{:?}", pipe.counts(0));
    }
}

/// Given that the acknowledgement with new credit is lost while nothing else is under way, expect the
/// sender to ask for it.
#[test]
fn lost_credit_is_asked_for() {
    for lost in 1..6 {
        let setting = Setting { window: 64 << 10, vm_us: 50_000, ..Setting::calm() };
        let mut pipe = Pipe::new(1, setting, [frames(40, 5_000), vec![]]);
        let mut left = lost;
        pipe.lose = Box::new(move |fate| {
            let news = matches!(fate, Fate::Ack { credit, .. } if *credit > 64 << 10);
            left -= i32::from(news && left > 0);
            news && left > 0
        });
        let took = pipe.run(MINUTES);
        assert!(took < Duration::from_secs(30), "took {took:?} with {lost} lost");
    }
}

/// Given a route change that loses all that is under way, both data and the answers to it, expect to
/// go on at once, without waiting for a probe timeout.
#[test]
fn a_route_change_repeats_at_once() {
    for seed in 0..50 {
        let mut rng = Rng(seed);
        let setting = Setting { route_changes: 1, window: 256 << 10, ..Setting::calm() };
        let traffic = [frames(200, 16_000), frames(200, 100)];
        let mut pipe = Pipe::new(rng.next(), setting, traffic);
        let took = pipe.run(MINUTES);
        assert!(took < Duration::from_millis(300), "seed {seed}: took {took:?}");
    }
}

/// Given a frame 20 times as large as the window, expect it to come through: its parts are granted
/// while it is put together.
#[test]
fn frames_larger_than_the_window() {
    let mut rng = Rng(3);
    let large = Unit::Frame(bytes(&mut rng, 1_000_000));
    let setting = Setting { window: 64 << 10, loss: 20, ..Setting::calm() };
    for seed in 0..20 {
        let traffic = [vec![vec![large.clone(), large.clone()]], vec![vec![large.clone()]]];
        Pipe::new(seed, setting.clone(), traffic).run(MINUTES);
    }
}

/// Given a VM that takes nothing for a minute, expect the sender to hold, and few packets meanwhile.
#[test]
fn a_stopped_vm_holds_the_sender() {
    let setting = Setting { window: 64 << 10, vm_us: 120_000_000, ..Setting::calm() };
    let mut pipe = Pipe::new(5, setting, [frames(30, 10_000), vec![]]);
    let took = pipe.run(MINUTES * 10);
    let counts = pipe.counts(0);
    // 30 packets, and a probe every two seconds.
    assert!(counts.data <= 40 + took.as_secs(), "{counts:?} in {took:?}");
    assert_eq!(counts.retransmits, 0);
}

/// Given 50,000 small packets that arrive ahead of one that was lost, expect the work to be done in
/// proportion to their number, not to its square.
#[test]
fn many_small_packets_ahead() {
    let setting = Setting { window: 8 << 20, delay_us: 100_000, ..Setting::calm() };
    let mut pipe = Pipe::new(1, setting, [frames(50_000, 10), vec![]]);
    let mut lost = false;
    pipe.lose = Box::new(move |fate| {
        let first = matches!(fate, Fate::Data { number: 1, .. }) && !lost;
        lost |= first;
        first
    });
    pipe.run(MINUTES);
    assert_eq!(pipe.counts(0).retransmits, 1);
}
