//! Random scenarios, and that a seed decides everything in them.

use chatter_sim::check::Kind;
use chatter_sim::run::run;
use chatter_sim::scenario::{Promise, Scenario};

/// Faults of a scenario, as in `make test-sim`.
const FAULTS: usize = 200;

/// Given some seeds (`make test-sim` has 2,000), expect no violation, and that the faults bite.
#[test]
fn some_seeds_hold_their_promises() {
    let (mut ended, mut drops, mut delivered) = (0, 0, 0);
    for seed in 1..=24 {
        println!("seed {seed}: cargo run -p chatter-sim -- seed {seed}");
        let scenario = Scenario::random(seed, FAULTS);
        let pairs = scenario.pairs.len() as u64;
        let outcome = run(scenario, None, false);
        assert!(outcome.violations.is_empty(), "{outcome}");
        // In a small star under every kind of fault few get through; over all seeds many do.
        assert!(
            outcome.counts.faults >= FAULTS as u64 && outcome.counts.delivered > 0,
            "{:?}",
            outcome.counts
        );
        delivered += outcome.counts.delivered;
        ended += outcome.counts.sessions.saturating_sub(2 * pairs);
        drops += outcome.counts.relay_drops;
    }
    assert!(ended > 100 && drops > 100, "{ended} connections were made again, {drops} drops");
    assert!(delivered > 20_000, "{delivered} messages arrived");
}

/// Given one seed, expect equal traces; given another, a different one.
#[test]
fn equal_seeds_have_equal_traces() {
    let trace = |seed| {
        let outcome = run(Scenario::random(seed, 60), None, false);
        (outcome.hash, outcome.counts)
    };
    for seed in [5, 6] {
        println!("seed {seed}");
        assert_eq!(trace(seed), trace(seed));
        assert_ne!(trace(seed).0, trace(seed + 2).0);
    }
}

/// Given a scenario of which one fault was left out, expect another trace: the hash sees everything.
#[test]
fn a_trace_tells_scenarios_apart() {
    let mut scenario = Scenario::random(7, 40);
    let whole = run(scenario.clone(), None, false).hash;
    scenario.faults.remove(20);
    assert_ne!(run(scenario, None, false).hash, whole);
}

/// Given random scenarios, expect that their text form says everything.
#[test]
fn scenarios_are_text() {
    for seed in 0..50 {
        let scenario = Scenario::random(seed, 50);
        let text = scenario.to_string();
        assert_eq!(text.parse(), Ok(scenario), "{text}");
    }
    let error = "nodes 2\nedge 0-1\nat 5s cut 0-2 for 1s".parse::<Scenario>().unwrap_err();
    assert_eq!(error.to_string(), "line 3: no edge 0-2");
    assert!("nodes 2\nedge 0-2".parse::<Scenario>().is_err());
    assert!("nodes 2\nedge 0-1 delay".parse::<Scenario>().is_err());
    assert!("nodes 2\nat 5s pause 1 for 3".parse::<Scenario>().is_err());
}

/// Given the scenarios with names, expect no violation.
#[test]
fn named_scenarios_hold_their_promises() {
    for file in std::fs::read_dir("scenarios").expect("the directory is there") {
        let path = file.expect("a file").path();
        let text = std::fs::read_to_string(&path).expect("a text");
        let scenario: Scenario = text.parse().expect("a scenario");
        let outcome = run(scenario, None, false);
        assert!(outcome.violations.is_empty(), "{}\n{outcome}", path.display());
    }
}

/// Given a promise that the faults do not keep (the only way is cut), expect that this is noticed.
#[test]
fn a_broken_promise_is_noticed() {
    let mut scenario: Scenario =
        "nodes 2\nedge 0-1\npair 0-1\nat 4s cut 0-1 for 4s".parse().expect("a scenario");
    scenario.promise = Promise::Route;
    let outcome = run(scenario, None, false);
    assert!(outcome.has(Kind::FalseDown), "{outcome}");
}
