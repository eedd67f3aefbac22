//! A scenario from a seed: a network, pairs that talk, and faults.

use crate::rng::Random;
use crate::scenario::{
    Dialler, Fault, Limits, Load, Promise, Scenario, TimedFault, UNNOTICED_PAUSE,
};
use crate::survive::Survival;
use crate::time::{MS, Nanos, S, US};
use crate::topology::SHAPES;

/// When the first fault may begin: the network has come up.
const FIRST_FAULT: Nanos = 3 * S;

/// Delays well within the classes of metrics by round trip.
const DELAYS: [Nanos; 8] =
    [100 * US, 200 * US, 200 * US, 300 * US, 200 * US, 1_500 * US, 6 * MS, 30 * MS];

impl Scenario {
    /// The scenario of a seed, with so many faults. Even seeds have only faults that leave a route,
    /// odd ones anything.
    pub fn random(seed: u64, faults: usize) -> Self {
        let mut rng = Random::new(seed ^ 0x5ce7_a210);
        let promise = if seed.is_multiple_of(2) { Promise::Route } else { Promise::Anything };
        let nodes = rng.range(4, 13) as usize;
        let mut scenario = Self::new(seed, nodes);
        scenario.promise = promise;
        scenario.shape(SHAPES[rng.index(SHAPES.len())], &mut rng);
        if promise == Promise::Route {
            scenario.thicken(3, &mut rng);
        }
        scenario.dress(&mut rng);
        let mut at = FIRST_FAULT;
        let mut survival = Survival::new(&scenario);
        while scenario.faults.len() < faults {
            at += rng.range(20 * MS, 160 * MS) / MS * MS;
            let fault = scenario.draw_fault(at, &mut rng);
            if promise == Promise::Anything || survival.survives(&scenario, fault) {
                scenario.faults.push(fault);
            }
        }
        if promise == Promise::Anything && rng.chance(300_000) {
            scenario.break_for_good(at + S, &mut rng);
        }
        scenario
    }

    /// Delays, metrics, pairs, load and limits.
    fn dress(&mut self, rng: &mut Random) {
        for edge in &mut self.edges {
            edge.delay = DELAYS[rng.index(DELAYS.len())];
            edge.metric = rng.chance(300_000).then(|| rng.range(1, 60) as u32);
            edge.dialler = match rng.below(4) {
                0 => Dialler::Both,
                1 => Dialler::Second,
                _ => Dialler::First,
            };
        }
        let pairs = self.nodes + rng.index(4);
        for _ in 0..pairs {
            let (a, b) = (rng.index(self.nodes), rng.index(self.nodes));
            if a != b && !self.pairs.contains(&[a, b]) {
                self.pairs.push([a, b]);
            }
        }
        if self.pairs.is_empty() {
            self.pairs.push([0, self.nodes - 1]);
        }
        self.load = Load {
            every: [50 * MS, 100 * MS, 200 * MS][rng.index(3)],
            batch: rng.range(1, 5),
            size: [100, 200, 1_000][rng.index(3)],
            large_ppm: [0, 2_000, 10_000][rng.index(3)],
            large: [20_000, 100_000][rng.index(2)],
        };
        self.limits = Limits {
            window: [64 * 1024, 512 * 1024, 8 * 1024 * 1024][rng.index(3)],
            relay_queue: [64 * 1024, 1024 * 1024, 8 * 1024 * 1024][rng.index(3)],
            channel_queue: [64 * 1024, 1024 * 1024][rng.index(2)],
            socket: [256 * 1024, 1024 * 1024][rng.index(2)],
            ..Limits::default()
        };
        self.settle = 5 * S;
    }

    fn draw_fault(&self, at: Nanos, rng: &mut Random) -> TimedFault {
        let edge = rng.index(self.edges.len());
        let node = rng.index(self.nodes);
        let side = rng.index(2);
        let short = rng.range(20, 600) * MS;
        let long = rng.range(50, 4_000) * MS;
        let ppm = [10_000, 50_000, 100_000, 300_000][rng.index(4)];
        let (fault, lasts) = match rng.below(112) {
            0..10 => (Fault::Reset(edge), 0),
            10..18 => (Fault::Cut(edge), long),
            18..25 => (Fault::OneWay(edge, side), long),
            25..29 => (Fault::Corrupt(edge, side), 0),
            29..35 => (Fault::Delay(edge, rng.range(1, 200) * MS), long),
            35..41 => (Fault::Jitter(edge, rng.range(1, 30) * MS), long),
            41..47 => (Fault::Loss(edge, ppm.min(100_000)), long),
            47..52 => (Fault::Rate(edge, rng.range(200, 2_000) * 1_000), long),
            52..59 => (Fault::Kill(node), short),
            59..62 => (Fault::PowerOff(node), long),
            62..65 => (Fault::Stop(node), short),
            65..73 => (Fault::Pause(node), if rng.chance(700_000) { short } else { long }),
            73..78 => (Fault::Stall(node), long),
            78..82 => (Fault::Drain(node), long),
            82..88 => (Fault::Drop(node, ppm), long),
            88..93 => (Fault::Double(node, ppm), long),
            93..98 => (Fault::Reorder(node, ppm), long),
            98..100 => (Fault::Disconnect(node), 0),
            100..104 => (Fault::Leak(edge, ppm), long),
            104..108 => (Fault::Scramble(edge, ppm), long),
            _ => (Fault::Blink(node), 0),
        };
        TimedFault { at, lasts, fault }
    }

    /// Some things break and are not mended.
    fn break_for_good(&mut self, at: Nanos, rng: &mut Random) {
        for _ in 0..rng.range(1, 4) {
            let fault = match rng.below(4) {
                0 => Fault::Kill(rng.index(self.nodes)),
                1 => Fault::PowerOff(rng.index(self.nodes)),
                2 => Fault::OneWay(rng.index(self.edges.len()), rng.index(2)),
                _ => Fault::Cut(rng.index(self.edges.len())),
            };
            self.fault(at, fault, Nanos::MAX);
        }
    }
}

/// How long what a fault breaks may be of no use after its end.
pub(crate) fn recovery(fault: &TimedFault) -> Nanos {
    match fault.fault {
        // A dial that ran into silence is given up after 5 s; what TCP held back comes late.
        Fault::PowerOff(_) => 8 * S,
        Fault::Cut(_) | Fault::OneWay(..) | Fault::Loss(..) => 3 * S + fault.lasts.min(5 * S),
        Fault::Pause(_) if fault.lasts <= UNNOTICED_PAUSE => S,
        _ => 3 * S,
    }
}
