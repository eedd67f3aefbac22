//! The queues of a link under any sequence of pushes and pops: nothing is lost uncounted, order is kept
//! within a queue, shares are fair, and equal sequences have equal results.

use std::collections::HashMap;

use chatter_core::sched::{Scheduler, SchedulerLimits};
use chatter_core::wire::packet::Packet;
use proptest::prelude::*;

const LIMITS: SchedulerLimits = SchedulerLimits { transit_bytes: 40_000, control_bytes: 1_000 };

#[derive(Clone, Copy, Debug)]
enum Step {
    Control(usize),
    Own(u32, usize),
    Transit(u64, usize),
    Pop(usize),
}

#[expect(clippy::disallowed_methods, reason = "any base of virtual time")]
fn start() -> std::time::Instant {
    std::time::Instant::now()
}

fn some_step() -> impl Strategy<Value = Step> {
    let len = prop_oneof![16..200_usize, 16..200_usize, 16..17_000_usize];
    prop_oneof![
        (16..400_usize).prop_map(Step::Control),
        (0..4u32, len.clone()).prop_map(|(key, len)| Step::Own(key, len)),
        (0..6u64, len).prop_map(|(key, len)| Step::Transit(key, len)),
        (1..6_usize).prop_map(Step::Pop),
    ]
}

/// A packet that says which queue it is of and which one of it: kind, key, number, filling.
fn packet(kind: u8, key: u64, number: u32, len: usize) -> Packet {
    let mut bytes = vec![kind, key as u8];
    bytes.extend_from_slice(&number.to_be_bytes());
    let body = vec![0; len - bytes.len()];
    Packet { head: bytes.into(), body: body.into() }
}

fn label(packet: &Packet) -> ((u8, u8), u32) {
    let head = &packet.head;
    ((head[0], head[1]), u32::from_be_bytes(head[2..6].try_into().unwrap()))
}

/// Carries the steps out and then pops the rest; what was popped, and how many were pushed.
fn run(steps: &[Step]) -> (Vec<Packet>, usize, Scheduler) {
    let mut s = Scheduler::new(LIMITS);
    let (mut popped, mut pushed) = (Vec::new(), 0);
    for (number, step) in (0..).zip(steps) {
        pushed += 1;
        match *step {
            Step::Control(len) => s.push_control(packet(0, 0, number, len)),
            Step::Own(key, len) => s.push_own(key, packet(1, key.into(), number, len)),
            Step::Transit(key, len) => s.push_transit(key, packet(2, key, number, len), start()),
            Step::Pop(n) => {
                pushed -= 1;
                popped.extend((0..n).map_while(|_| s.pop(start())));
            }
        }
        assert!(s.transit_bytes() <= LIMITS.transit_bytes);
    }
    popped.extend(std::iter::from_fn(|| s.pop(start())));
    (popped, pushed, s)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..Default::default() })]

    /// Expect every packet popped or counted as dropped, no own packet dropped, and all counters back
    /// at zero.
    #[test]
    fn nothing_is_lost_uncounted(steps in proptest::collection::vec(some_step(), 0..200)) {
        let (popped, pushed, mut s) = run(&steps);
        prop_assert_eq!(popped.len() + s.dropped() as usize, pushed);
        prop_assert_eq!((s.own_bytes(), s.transit_bytes()), (0, 0));
        prop_assert!(s.is_empty() && s.pop(start()).is_none());
        let own = steps.iter().filter(|step| matches!(step, Step::Own(..))).count();
        prop_assert_eq!(popped.iter().filter(|p| p.head[0] == 1).count(), own);
    }

    /// Expect each queue's packets in the order in which they were pushed.
    #[test]
    fn order_is_kept_within_a_queue(steps in proptest::collection::vec(some_step(), 0..200)) {
        let mut last = HashMap::new();
        for packet in run(&steps).0 {
            let (queue, number) = label(&packet);
            let before = last.insert(queue, number);
            prop_assert!(before.is_none_or(|before| before < number), "{queue:?}");
        }
    }

    /// Expect the same result from the same steps, drops included.
    #[test]
    fn equal_steps_have_equal_results(steps in proptest::collection::vec(some_step(), 0..200)) {
        prop_assert!(run(&steps).0 == run(&steps).0);
    }

    /// Given queues that never run dry, with packets of any size, expect shares that differ by no more
    /// than a quantum and a packet each, at any time: neither sizes nor numbers matter.
    #[test]
    fn full_queues_get_equal_shares(
        sizes in proptest::collection::vec(16..65_000_usize, 2..7),
        rounds in 1..300_usize,
    ) {
        let limits = SchedulerLimits { transit_bytes: usize::MAX, control_bytes: 0 };
        let mut s = Scheduler::new(limits);
        let push = |s: &mut Scheduler, key: usize| {
            let packet = packet(1, key as u64, 0, sizes[key]);
            if key.is_multiple_of(2) {
                s.push_own(key as u32, packet);
            } else {
                s.push_transit(key as u64, packet, start());
            }
        };
        for key in 0..sizes.len() {
            // Enough that no queue runs dry between refills.
            (0..3).for_each(|_| push(&mut s, key));
        }
        let mut sent = vec![0; sizes.len()];
        for _ in 0..rounds * sizes.len() {
            let packet = s.pop(start()).unwrap();
            let key = usize::from(packet.head[1]);
            sent[key] += packet.len();
            push(&mut s, key);
        }
        let (least, most) = (sent.iter().min().unwrap(), sent.iter().max().unwrap());
        prop_assert!(most - least <= 3 * (16 * 1024 + 64 + 65_000), "{sent:?}");
    }

    /// Given a queue that floods transit, expect a queue within its share to lose nothing.
    #[test]
    fn the_thin_queue_keeps_its_packets(flood in 100..1_000_usize, thin in 1..30_usize) {
        let mut s = Scheduler::new(LIMITS);
        for i in 0..flood {
            s.push_transit(1, packet(2, 1, i as u32, 1_000), start());
            if i < thin {
                s.push_transit(2, packet(2, 2, i as u32, 100), start());
            }
        }
        let popped: Vec<_> = std::iter::from_fn(|| s.pop(start())).collect();
        prop_assert_eq!(popped.iter().filter(|p| p.head[1] == 2).count(), thin);
    }
}
