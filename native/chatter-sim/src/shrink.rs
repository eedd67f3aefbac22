//! From a scenario that fails to a small one that fails alike.

use std::collections::BTreeSet;

use crate::check::Kind;
use crate::run::run;
use crate::scenario::Scenario;

/// Runs at most.
const MAX_RUNS: usize = 2_000;

/// Leaves out faults, then pairs, as long as one of the kinds of violation stays. `None` if the scenario
/// does not fail.
pub fn shrink(scenario: Scenario) -> Option<Scenario> {
    let outcome = run(scenario.clone(), None, false);
    let kinds: BTreeSet<Kind> = outcome.violations.iter().map(|v| v.kind).collect();
    if kinds.is_empty() {
        return None;
    }
    let mut runs = 0;
    let mut fails = |scenario: &Scenario| {
        runs += 1;
        let outcome = (runs <= MAX_RUNS).then(|| run(scenario.clone(), None, false));
        outcome.is_some_and(|outcome| outcome.violations.iter().any(|v| kinds.contains(&v.kind)))
    };
    let mut best = scenario;
    let mut step = best.faults.len().div_ceil(2);
    while step > 0 {
        let mut at = 0;
        while at < best.faults.len() {
            let mut fewer = best.clone();
            fewer.faults.drain(at..(at + step).min(best.faults.len()));
            if fails(&fewer) {
                best = fewer;
            } else {
                at += step;
            }
        }
        step /= 2;
    }
    let mut at = 0;
    while at < best.pairs.len() {
        let mut fewer = best.clone();
        fewer.pairs.remove(at);
        if fails(&fewer) {
            best = fewer;
        } else {
            at += 1;
        }
    }
    Some(best)
}
