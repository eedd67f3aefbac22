//! The queues of a link, with channels that keep their own packets: under any sequence of pushes and pops
//! nothing is lost uncounted, order is kept within a queue, shares are fair, nobody starves, and equal
//! sequences have equal results.

use std::collections::{HashMap, VecDeque};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use chatter_core::ids::{ChannelIndex, NodeId};
use chatter_core::sched::fair::Level;
use chatter_core::sched::{Lane, MARK_AFTER, Scheduler, SchedulerLimits, Turn};
use chatter_core::wire::PacketType;
use chatter_core::wire::packet::Packet;
use chatter_core::wire::routed::{RoutedHeader, TIME_LEFT_SHIFT};
use proptest::prelude::*;

const LIMITS: SchedulerLimits = SchedulerLimits { transit_bytes: 40_000, control_bytes: 1_000 };

#[derive(Clone, Copy, Debug)]
enum Step {
    Control(usize),
    Own(u32, Level, usize),
    Transit(Lane, usize),
    Pop(usize),
}

#[expect(clippy::disallowed_methods, reason = "any base of virtual time")]
fn start() -> Instant {
    // One for all: what waits for no time is neither marked nor aged.
    static START: OnceLock<Instant> = OnceLock::new();
    *START.get_or_init(Instant::now)
}

/// A link: its scheduler, and channels of this node with packets at each level.
struct Link {
    sched: Scheduler,
    own: HashMap<u32, [VecDeque<Packet>; 4]>,
}

impl Link {
    fn new(limits: SchedulerLimits) -> Self {
        Self { sched: Scheduler::new(limits), own: HashMap::new() }
    }

    fn ready(&self, channel: u32) -> u8 {
        let queues = &self.own[&channel];
        Level::ALL.iter().fold(0, |set, level| {
            if queues[*level as usize].is_empty() { set } else { set | level.bit() }
        })
    }

    fn push_own(&mut self, channel: u32, level: Level, packet: Packet) {
        self.own.entry(channel).or_default()[level as usize].push_back(packet);
        let ready = self.ready(channel);
        self.sched.set_own(channel, ready);
    }

    /// The next packets: one, or what a channel gives in its turn.
    fn turn(&mut self, now: Instant) -> Vec<Packet> {
        match self.sched.next(now) {
            None => Vec::new(),
            Some(Turn::Packet(packet)) => vec![packet],
            Some(Turn::Own { channel, level, bytes }) => {
                let (mut taken, mut sent) = (Vec::new(), 0);
                while sent < bytes
                    && let Some(packet) =
                        self.own.get_mut(&channel).unwrap()[level as usize].pop_front()
                {
                    sent += packet.len();
                    taken.push(packet);
                }
                assert!(!taken.is_empty(), "a turn without anything to send");
                let ready = self.ready(channel);
                self.sched.own_done(channel, level, sent, ready);
                taken
            }
        }
    }
}

fn lane(pair: u64, label: u16, level: Level) -> Lane {
    Lane { pair, label, level }
}

fn some_level() -> impl Strategy<Value = Level> {
    prop_oneof![Just(Level::High), Just(Level::Urgent), Just(Level::Normal), Just(Level::Low)]
}

fn some_step() -> impl Strategy<Value = Step> {
    let len = prop_oneof![16..200_usize, 16..200_usize, 16..17_000_usize];
    let lane = (0..3u64, 0..3u16, some_level()).prop_map(|(pair, label, level)| Lane {
        pair,
        label,
        level,
    });
    prop_oneof![
        (16..400_usize).prop_map(Step::Control),
        (0..4u32, some_level(), len.clone())
            .prop_map(|(key, level, len)| Step::Own(key, level, len)),
        (lane, len).prop_map(|(lane, len)| Step::Transit(lane, len)),
        (1..6_usize).prop_map(Step::Pop),
    ]
}

/// A packet that says which queue it is of and which one of it: kind, queue, number, filling.
fn packet(kind: u8, queue: [u8; 3], number: u32, len: usize) -> Packet {
    let mut bytes = vec![kind, queue[0], queue[1], queue[2]];
    bytes.extend_from_slice(&number.to_be_bytes());
    let body = vec![0; len.max(8) - bytes.len()];
    Packet { head: bytes.into(), body: body.into() }
}

fn transit(lane: Lane, number: u32, len: usize) -> Packet {
    packet(2, [lane.pair as u8, lane.label as u8, lane.level as u8], number, len)
}

/// Carries the steps out and then pops the rest; what was popped, and how many were pushed.
fn run(steps: &[Step]) -> (Vec<Packet>, usize, Link) {
    let mut link = Link::new(LIMITS);
    let (mut popped, mut pushed) = (Vec::new(), 0);
    for (number, step) in (0..).zip(steps) {
        pushed += 1;
        match *step {
            Step::Control(len) => link.sched.push_control(packet(0, [0; 3], number, len)),
            Step::Own(key, level, len) => {
                link.push_own(key, level, packet(1, [key as u8, 0, level as u8], number, len));
            }
            Step::Transit(lane, len) => {
                link.sched.push_transit(lane, transit(lane, number, len), start());
            }
            Step::Pop(n) => {
                pushed -= 1;
                (0..n).for_each(|_| popped.extend(link.turn(start())));
            }
        }
        assert!(link.sched.transit_bytes() <= LIMITS.transit_bytes);
    }
    loop {
        let turn = link.turn(start());
        if turn.is_empty() {
            return (popped, pushed, link);
        }
        popped.extend(turn);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..Default::default() })]

    /// Expect every packet popped or counted as dropped, no own packet dropped, and nothing left.
    #[test]
    fn nothing_is_lost_uncounted(steps in proptest::collection::vec(some_step(), 0..200)) {
        let (popped, pushed, mut link) = run(&steps);
        prop_assert_eq!(popped.len() + link.sched.dropped() as usize, pushed);
        prop_assert_eq!((link.sched.control_bytes(), link.sched.transit_bytes()), (0, 0));
        prop_assert!(link.sched.is_empty() && link.sched.next(start()).is_none());
        prop_assert_eq!(link.sched.own().count(), 0);
        let own = steps.iter().filter(|step| matches!(step, Step::Own(..))).count();
        prop_assert_eq!(popped.iter().filter(|p| p.head[0] == 1).count(), own);
    }

    /// Expect each queue's packets in the order in which they were pushed. Urgent ones of transit that were
    /// too many count as normal, and may change places with those that were not.
    #[test]
    fn order_is_kept_within_a_queue(steps in proptest::collection::vec(some_step(), 0..200)) {
        let mut last = HashMap::new();
        for packet in run(&steps).0 {
            let queue: [u8; 4] = packet.head[..4].try_into().unwrap();
            let number = u32::from_be_bytes(packet.head[4..8].try_into().unwrap());
            let before = last.insert(queue, number);
            prop_assert!(before.is_none_or(|before| before < number), "{queue:?}");
        }
    }

    /// Expect the same result from the same steps, drops included.
    #[test]
    fn equal_steps_have_equal_results(steps in proptest::collection::vec(some_step(), 0..200)) {
        prop_assert!(run(&steps).0 == run(&steps).0);
    }

    /// Given channels and relayed pairs that never run dry, with packets of any size, expect shares that
    /// differ by no more than a few packets, at any time: neither sizes nor numbers matter.
    #[test]
    fn full_queues_get_equal_shares(
        sizes in proptest::collection::vec(16..16_500_usize, 2..7),
        rounds in 1..300_usize,
    ) {
        let mut link = Link::new(SchedulerLimits { transit_bytes: usize::MAX, control_bytes: 0 });
        let push = |link: &mut Link, key: usize| {
            if key.is_multiple_of(2) {
                link.push_own(key as u32, Level::Normal, packet(1, [key as u8, 0, 0], 0, sizes[key]));
            } else {
                let lane = lane(key as u64, 1, Level::Normal);
                link.sched.push_transit(lane, packet(2, [key as u8, 0, 0], 0, sizes[key]), start());
            }
        };
        for (key, size) in sizes.iter().enumerate() {
            // Enough that no queue runs dry between refills.
            (0..40_000 / size.max(&8) + 3).for_each(|_| push(&mut link, key));
        }
        let mut sent = vec![0; sizes.len()];
        for _ in 0..rounds * sizes.len() {
            for packet in link.turn(start()) {
                let key = usize::from(packet.head[1]);
                sent[key] += packet.len();
                push(&mut link, key);
            }
        }
        let (least, most) = (sent.iter().min().unwrap(), sent.iter().max().unwrap());
        prop_assert!(most - least <= 5 * 16_640, "{sent:?}");
    }

    /// Given a queue that floods transit, expect a queue within its share to lose nothing.
    #[test]
    fn the_thin_queue_keeps_its_packets(flood in 100..1_000_usize, thin in 1..30_usize) {
        let mut link = Link::new(LIMITS);
        let (fat, slim) = (lane(1, 1, Level::Normal), lane(2, 1, Level::Normal));
        for i in 0..flood {
            link.sched.push_transit(fat, transit(fat, i as u32, 1_000), start());
            if i < thin {
                link.sched.push_transit(slim, transit(slim, i as u32, 100), start());
            }
        }
        let mut popped = Vec::new();
        while let Some(packet) = link.turn(start()).pop() {
            popped.push(packet);
        }
        prop_assert_eq!(popped.iter().filter(|p| p.head[1] == 2).count(), thin);
        prop_assert!(link.sched.dropped() > 0);
    }
}

#[test]
fn urgent_goes_first_and_nobody_starves() {
    // Given all levels full on a channel and on a relayed pair, expect shares by level: an eighth for each
    // of the lower ones, the rest for the highest; and fair shares of each between the two.
    let mut link = Link::new(SchedulerLimits { transit_bytes: usize::MAX, control_bytes: 0 });
    let mut sent = [[0usize; 4]; 2];
    for _ in 0..20_000 {
        for level in Level::ALL {
            let queue = [0, 0, level as u8];
            if link.own.get(&0).is_none_or(|own| own[level as usize].len() < 20) {
                (0..20).for_each(|_| link.push_own(0, level, packet(1, queue, 0, 4_000)));
            }
            let lane = lane(1, level as u16, level);
            if link.sched.transit_bytes() < 4_000_000 {
                link.sched.push_transit(lane, transit(lane, 0, 4_000), start());
            }
        }
        for packet in link.turn(start()) {
            sent[usize::from(packet.head[0]) - 1][usize::from(packet.head[3])] += packet.len();
        }
    }
    let all: usize = sent.iter().flatten().sum();
    for level in [Level::Normal, Level::Low] {
        let share = sent.iter().map(|s| s[level as usize]).sum::<usize>() * 1_000 / all;
        assert!((115..150).contains(&share), "{level:?} {share} {sent:?}");
    }
    let high = sent[0][0] + sent[1][0];
    assert!(high * 1_000 / all > 550, "{sent:?}");
    assert!((90..111).contains(&(sent[0][0] * 100 / sent[1][0])), "{sent:?}");
}

#[test]
fn control_goes_first_but_is_capped() {
    let mut link = Link::new(SchedulerLimits { transit_bytes: 0, control_bytes: usize::MAX });
    let (mut control, mut data) = (0, 0);
    for _ in 0..20_000 {
        link.sched.push_control(packet(0, [0; 3], 0, 1_000));
        link.push_own(1, Level::Normal, packet(1, [0; 3], 0, 1_000));
        for packet in link.turn(start()) {
            if packet.head[0] == 0 { control += packet.len() } else { data += packet.len() }
        }
    }
    let share = control * 1_000 / (control + data);
    assert!((195..210).contains(&share), "{share}");
    // Alone, it gets everything.
    while link.own[&1].iter().any(|queue| !queue.is_empty()) {
        link.turn(start());
    }
    (0..100).for_each(|_| assert_eq!(link.turn(start())[0].head[0], 0));
}

fn routed(mutable: u16) -> Packet {
    let header =
        RoutedHeader { mutable, ..RoutedHeader::to(NodeId(1), NodeId(2), ChannelIndex(3)) };
    Packet::from(header.packet(PacketType::Data, &[0; 20]))
}

#[test]
fn transit_that_waited_is_marked() {
    // Given packets of this node and of others, expect a mark on those of others that waited for longer
    // than the limit, in the right byte, and on nothing else.
    let (mut link, now) = (Link::new(LIMITS), start());
    let lane = lane(1, 1, Level::Normal);
    let (soon, late) = (now + MARK_AFTER, now + MARK_AFTER + Duration::from_millis(1));
    link.sched.push_transit(lane, routed(0), now);
    assert_eq!(link.turn(soon), [routed(0)]);
    link.push_own(1, Level::Normal, routed(0));
    link.sched.push_transit(lane, routed(0), now);
    link.sched.push_transit(lane, routed(0), soon);
    let mut left: Vec<Packet> = (0..3).flat_map(|_| link.turn(late)).collect();
    left.sort_by(|a, b| a.head.cmp(&b.head));
    assert_eq!(left, [routed(0), routed(0), routed(1)]);
    assert_eq!((link.sched.marked(), link.sched.is_empty()), (1, true));
}

#[test]
fn what_is_late_is_dropped_and_the_rest_ages() {
    let (mut link, now) = (Link::new(LIMITS), start());
    let lane = lane(1, 1, Level::Normal);
    let left = |ms: u16| ms << TIME_LEFT_SHIFT;
    for ms in [3, 0, 20, 4] {
        link.sched.push_transit(lane, routed(left(ms)), now);
    }
    let later = now + Duration::from_millis(4);
    assert_eq!(link.turn(later), [routed(0)], "no deadline");
    assert_eq!(link.turn(later), [routed(left(16))]);
    assert!(link.turn(later).is_empty() && link.sched.is_empty());
    assert_eq!((link.sched.late(), link.sched.dropped()), (2, 0));
}

#[test]
fn transit_is_taken_from_a_dead_link() {
    let (mut link, now) = (Link::new(LIMITS), start());
    for i in 0..6u32 {
        let lane = lane(u64::from(i % 2), 7, Level::Normal);
        link.sched.push_transit(lane, transit(lane, i, 50), now);
        link.push_own(1, Level::Urgent, packet(1, [0; 3], i, 50));
    }
    let taken = link.sched.take_transit();
    let numbers: Vec<_> = taken.iter().map(|(lane, p)| (lane.pair, p.head[7])).collect();
    assert_eq!(numbers, [(0, 0), (0, 2), (0, 4), (1, 1), (1, 3), (1, 5)]);
    assert_eq!(link.sched.transit_bytes(), 0);
    assert_eq!(link.turn(now).len(), 6);
    assert!(link.sched.is_empty());
}
