//! A run from beginning to end: faults, then everything has to be in order again, then silence.

use std::fmt;

use crate::check::{Kind, Violation};
use crate::scenario::Scenario;
use crate::time::{Nanos, S};
use crate::world::{Counts, Mutant, World};

/// How long what is under way may take after the users have stopped sending.
const DRAIN: Nanos = 5 * S;

/// How long round trip times may take to be smoothed again after 400 ms of delay.
const SMOOTH: Nanos = 16 * S;

/// Lines of the trace that are shown of a run that failed.
const SHOWN_LINES: usize = 40;

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The seed of the scenario.
    pub seed: u64,
    /// Over everything that happened.
    pub hash: u64,
    /// Virtual time of the whole run.
    pub time: Nanos,
    /// Figures.
    pub counts: Counts,
    /// How many messages took how long, in steps of 10 ms.
    pub times: Vec<u64>,
    /// What was wrong.
    pub violations: Vec<Violation>,
    /// The last lines of the trace.
    pub trace: Vec<String>,
}

impl Outcome {
    /// Whether there was a violation of this kind.
    pub fn has(&self, kind: Kind) -> bool {
        self.violations.iter().any(|violation| violation.kind == kind)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.trace {
            writeln!(f, "  {line}")?;
        }
        for violation in &self.violations {
            writeln!(f, "VIOLATION {violation}")?;
        }
        write!(f, "seed {}, trace {:016x}", self.seed, self.hash)
    }
}

/// In how many milliseconds so many per mille of the messages had come.
pub fn quantile(times: &[u64], per_mille: u64) -> u64 {
    let all: u64 = times.iter().sum();
    let mut seen = 0;
    let slot = times.iter().position(|count| {
        seen += count;
        seen * 1_000 >= all * per_mille
    });
    (slot.unwrap_or(0) as u64 + 1) * 10
}

/// Runs a scenario. `loud` prints the trace as it comes.
pub fn run(scenario: Scenario, mutant: Option<Mutant>, loud: bool) -> Outcome {
    let mut world = World::new(scenario);
    world.mutant = mutant;
    world.trace.loud = loud;
    let calm = world.scenario.calm_at();
    world.run_until(calm + world.scenario.settle);
    world.check_live();
    world.set_loaded(false);
    world.run_until(world.now() + DRAIN);
    world.checker.check_complete();
    world.check_rest();
    world.run_until(world.now() + SMOOTH);
    world.check_routes();
    let failed = !world.checker.violations().is_empty();
    Outcome {
        seed: world.scenario.seed,
        hash: world.trace.hash(),
        time: world.now(),
        counts: world.counts,
        times: world.checker.times().to_vec(),
        violations: world.checker.violations().to_vec(),
        trace: if failed { world.trace.last(SHOWN_LINES) } else { Vec::new() },
    }
}

impl World {
    /// Some time after the last fault: whoever has a route talks, and nobody else.
    fn check_live(&mut self) {
        let truth = self.truth();
        let pairs = self.scenario.pairs.clone();
        self.steady = true;
        let before: Vec<_> = pairs.iter().map(|[a, b]| self.received(*a, *b)).collect();
        self.run_until(self.now + S.max(20 * self.scenario.load.every));
        for ([a, b], before) in pairs.into_iter().zip(before) {
            let sees = (self.hosts[a].users.sees(b), self.hosts[b].users.sees(a));
            let has_route = truth.has_route(a, b);
            let talks = before.zip(self.received(a, b));
            let talks = talks.is_some_and(|(was, is)| was.0 < is.0 && was.1 < is.1);
            if has_route && !talks {
                let what = format!("n{a} and n{b} do not talk; they see each other: {sees:?}");
                self.checker.report(Kind::Stuck, what);
            }
            let (a_sees, b_sees) = (truth.alive[a] && sees.0, truth.alive[b] && sees.1);
            if !has_route && (a_sees || b_sees) {
                let what = format!("n{a} and n{b} have no route and see each other: {sees:?}");
                self.checker.report(Kind::Stuck, what);
            }
        }
    }

    fn received(&self, a: usize, b: usize) -> Option<(u64, u64)> {
        Some((self.checker.received(a, b)?, self.checker.received(b, a)?))
    }

    /// Everything has been delivered: nothing is left lying about.
    fn check_rest(&mut self) {
        for at in 0..self.hosts.len() {
            let host = &self.hosts[at];
            let (up, _) = host.users.figures();
            let (channels, retained) = (host.channels.all.len(), host.channels.retained);
            if host.alive && !host.now.paused && channels > up {
                let what = format!("n{at} has {channels} channels for {up} connections");
                self.checker.report(Kind::Stuck, what);
            }
            if host.alive && !host.now.paused && retained > 0 {
                let what = format!("n{at} keeps {retained} bytes that nobody acknowledges");
                self.checker.report(Kind::Stuck, what);
            }
        }
    }
}
