//! The checkers find what is planted, and name it rightly.

use std::collections::BTreeMap;

use chatter_core::ids::Incarnation;
use chatter_sim::check::routes::{Truth, View, Views};
use chatter_sim::check::{Checker, Kind, Message};
use chatter_sim::run::run;
use chatter_sim::scenario::{Promise, Scenario};
use chatter_sim::world::Mutant;

const LIFE: Incarnation = Incarnation(7);

/// Node 0 sees node 1 over its connection 10; node 1 sees it over 11.
fn connected() -> Checker {
    let mut checker = Checker::new(2, Promise::Anything);
    checker.life(0, LIFE);
    checker.life(1, LIFE);
    checker.up(0, 1, LIFE, 10);
    checker.up(1, 0, LIFE, 11);
    checker
}

fn message(counter: u64) -> Message {
    let (from_life, to_life) = (LIFE, LIFE);
    Message { from: 1, to: 0, from_life, to_life, session: 11, counter, whole: true }
}

fn deliver(checker: &mut Checker, counters: &[u64]) {
    for counter in counters {
        checker.delivered(0, 10, &message(*counter));
    }
}

#[track_caller]
fn found(checker: &Checker, kinds: &[Kind]) {
    let found: Vec<_> = checker.violations().iter().map(|violation| violation.kind).collect();
    assert_eq!(found, kinds, "{:?}", checker.violations());
}

#[test]
fn messages_in_order_are_no_violation() {
    let mut checker = connected();
    (0..5).for_each(|_| assert!(checker.sent(11) > 0));
    deliver(&mut checker, &[1, 2, 3, 4, 5]);
    checker.check_complete();
    found(&checker, &[]);
}

#[test]
fn swapped_messages_are_found() {
    let mut checker = connected();
    deliver(&mut checker, &[1, 3, 2, 4]);
    checker.down(0, 1, 10, false);
    found(&checker, &[Kind::Swapped]);
}

#[test]
fn dropped_messages_are_found() {
    let mut checker = connected();
    deliver(&mut checker, &[1, 3]);
    found(&checker, &[]);
    checker.down(0, 1, 10, false);
    found(&checker, &[Kind::Lost]);
}

#[test]
fn a_message_that_never_comes_is_found() {
    let mut checker = connected();
    (0..3).for_each(|_| assert!(checker.sent(11) > 0));
    deliver(&mut checker, &[1, 2]);
    checker.check_complete();
    found(&checker, &[Kind::Lost]);
}

#[test]
fn repeated_messages_are_found() {
    let mut checker = connected();
    deliver(&mut checker, &[1, 2, 2, 3, 1]);
    found(&checker, &[Kind::Repeated, Kind::Repeated]);
}

#[test]
fn late_messages_are_found() {
    let mut checker = connected();
    deliver(&mut checker, &[1]);
    checker.down(0, 1, 10, false);
    deliver(&mut checker, &[2]);
    found(&checker, &[Kind::OutsideConnection]);
}

#[test]
fn early_messages_are_found() {
    let mut checker = connected();
    checker.delivered(0, 12, &message(1));
    found(&checker, &[Kind::OutsideConnection]);
}

#[test]
fn messages_of_another_life_are_found() {
    let mut checker = connected();
    checker.delivered(0, 10, &Message { from_life: Incarnation(6), ..message(1) });
    found(&checker, &[Kind::StaleLife]);
    let mut checker = connected();
    checker.delivered(0, 10, &Message { to_life: Incarnation(6), ..message(1) });
    found(&checker, &[Kind::StaleLife]);
}

#[test]
fn messages_of_another_connection_are_found() {
    let mut checker = connected();
    checker.delivered(0, 10, &message(1));
    checker.delivered(0, 10, &Message { session: 9, ..message(2) });
    found(&checker, &[Kind::Mixed]);
}

#[test]
fn altered_messages_are_found() {
    let mut checker = connected();
    checker.delivered(0, 10, &Message { whole: false, ..message(1) });
    checker.delivered(0, 10, &Message { to: 1, ..message(2) });
    found(&checker, &[Kind::Altered, Kind::Altered]);
}

#[test]
fn ups_and_downs_take_turns() {
    let mut checker = connected();
    checker.up(0, 1, LIFE, 12);
    found(&checker, &[Kind::UpTwice]);
    let mut checker = connected();
    checker.down(0, 1, 10, false);
    checker.down(0, 1, 10, false);
    found(&checker, &[Kind::DownTwice]);
    let mut checker = connected();
    checker.node_up(0, 1, LIFE);
    checker.node_up(0, 1, LIFE);
    checker.node_down(0, 1, LIFE);
    checker.node_down(0, 1, LIFE);
    found(&checker, &[Kind::UpTwice, Kind::DownTwice]);
    let mut checker = connected();
    checker.node_up(0, 1, LIFE);
    checker.node_down(0, 1, Incarnation(6));
    found(&checker, &[Kind::DownTwice]);
}

#[test]
fn a_nodedown_without_a_reason_is_found() {
    let mut checker = Checker::new(3, Promise::Route);
    checker.up(0, 1, Incarnation(0), 10);
    checker.harmed(2, 100);
    checker.down(0, 1, 10, false);
    found(&checker, &[Kind::FalseDown]);
    checker.node_up(0, 2, LIFE);
    checker.node_down(0, 2, LIFE);
    found(&checker, &[Kind::FalseDown]);
    checker.up(0, 1, Incarnation(0), 12);
    checker.down(0, 1, 12, true);
    found(&checker, &[Kind::FalseDown]);
}

#[test]
fn values_over_their_bounds_are_found() {
    let mut checker = connected();
    checker.bound(0, "queue", 10, 10);
    checker.bound(0, "queue", 11, 10);
    found(&checker, &[Kind::Bound]);
}

// ===== routes =====

/// A square 0-1-3-2-0 in which the way by 2 is longer, with the right views.
fn square() -> (Truth, Views) {
    let links = vec![
        vec![(1, 10), (2, 10)],
        vec![(0, 10), (3, 10)],
        vec![(0, 10), (3, 20)],
        vec![(1, 10), (2, 20)],
    ];
    let truth = Truth { alive: vec![true; 4], overload: vec![false; 4], links };
    let view = |to: usize, distance, next: &[usize]| (to, View { distance, next: next.to_vec() });
    let views = vec![
        BTreeMap::from([view(1, 10, &[1]), view(2, 10, &[2]), view(3, 20, &[1])]),
        BTreeMap::from([view(0, 10, &[0]), view(2, 20, &[0]), view(3, 10, &[3])]),
        BTreeMap::from([view(0, 10, &[0]), view(1, 20, &[0]), view(3, 20, &[3])]),
        BTreeMap::from([view(0, 20, &[1]), view(1, 10, &[1]), view(2, 20, &[2])]),
    ];
    (truth, views)
}

fn kinds(truth: &Truth, views: &Views) -> Vec<Kind> {
    truth.check(views, 1_000).into_iter().map(|(kind, _)| kind).collect()
}

#[test]
fn right_routes_are_no_violation() {
    let (truth, views) = square();
    assert_eq!(kinds(&truth, &views), []);
}

#[test]
fn wrong_routes_are_found() {
    let (truth, right) = square();
    let mut views = right.clone();
    views[0].insert(3, View { distance: 20, next: vec![2] });
    assert_eq!(kinds(&truth, &views), [Kind::WrongRoute], "by the longer way");
    let mut views = right.clone();
    views[0].insert(3, View { distance: 20, next: vec![1, 2] });
    assert_eq!(kinds(&truth, &views), [Kind::WrongRoute], "not equally short");
    let mut views = right.clone();
    views[0].insert(3, View { distance: 30, next: vec![1] });
    assert_eq!(kinds(&truth, &views), [Kind::WrongRoute], "wrong distance");
    let mut views = right.clone();
    views[0].remove(&3);
    assert_eq!(kinds(&truth, &views), [Kind::WrongRoute], "no route");
    let mut gone = truth.clone();
    gone.links = vec![vec![(1, 10)], vec![(0, 10)], vec![], vec![]];
    gone.alive = vec![true, true, false, false];
    let kinds = kinds(&gone, &right);
    assert_eq!(kinds.iter().filter(|kind| **kind == Kind::WrongRoute).count(), 4, "{kinds:?}");
}

#[test]
fn a_draining_relay_is_avoided() {
    let (mut truth, views) = square();
    truth.overload[1] = true;
    assert!(!kinds(&truth, &views).is_empty(), "0 to 3 must go by 2");
    assert_eq!(truth.distances(0), [0, 10, 10, 30]);
}

#[test]
fn loops_are_found() {
    let (truth, mut views) = square();
    views[1].insert(3, View { distance: 10, next: vec![0] });
    let kinds = kinds(&truth, &views);
    assert!(kinds.contains(&Kind::Loop) && kinds.contains(&Kind::WrongRoute), "{kinds:?}");
}

// ===== planted into runs =====

fn planted(mutant: Mutant) -> Vec<Kind> {
    let text = "seed 5
nodes 3
edge 0-1
edge 1-2
pair 0-2
at 5s reset 0-1
at 8s kill 2 for 100ms
at 11s kill 1 for 2s";
    let scenario: Scenario = text.parse().expect("a scenario");
    assert!(run(scenario.clone(), None, false).violations.is_empty());
    let outcome = run(scenario, Some(mutant), false);
    outcome.violations.iter().map(|violation| violation.kind).collect()
}

#[test]
fn what_is_planted_into_a_run_is_found() {
    assert_eq!(planted(Mutant::Drop(200)), [Kind::Lost]);
    assert_eq!(planted(Mutant::Repeat(200)), [Kind::Repeated]);
    assert_eq!(planted(Mutant::Swap(200)), [Kind::Swapped]);
    assert_eq!(planted(Mutant::Stale(200)), [Kind::StaleLife]);
    let late = planted(Mutant::Late(2));
    assert!(late.contains(&Kind::OutsideConnection), "{late:?}");
}
