//! How much faster than real time a cluster of 50 nodes is.

use crate::rng::Random;
use crate::scenario::{Fault, Load, Scenario};
use crate::time::{MS, Nanos, S};
use crate::topology::Shape;
use crate::world::{Counts, World};

/// What a run did.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    /// Virtual time.
    pub time: Nanos,
    /// Figures.
    pub counts: Counts,
}

/// 50 nodes at rest; with messages and a fault now and then; with a fault every second, which is mostly
/// shortest paths.
pub fn scenarios() -> Vec<(&'static str, Scenario)> {
    let mut rng = Random::new(50);
    let mut idle = Scenario::new(50, 50);
    idle.shape(Shape::Random, &mut rng);
    let mut busy = idle.clone();
    busy.pairs = (0..25).map(|at| [at, at + 25]).collect();
    busy.load = Load { every: 500 * MS, batch: 2, ..Load::default() };
    let mut storm = busy.clone();
    for at in 0..100 {
        let fault = Fault::Reset(rng.index(busy.edges.len()));
        storm.fault(at * S, fault, 0);
        if at % 20 == 10 {
            busy.fault(at * S, fault, 0);
        }
    }
    vec![("at rest", idle), ("at work", busy), ("in a storm", storm)]
}

/// Runs a scenario for 100 virtual seconds.
pub fn run(scenario: Scenario) -> Done {
    let mut world = World::new(scenario);
    world.run_until(100 * S);
    Done { time: world.now(), counts: world.counts }
}
