//! Dialling: back-off, jitter, and knowing when enough is enough.

mod routing_sim;

use std::time::Duration;

use chatter_core::control::{ControlConfig, ControlEvent, DisconnectTarget};
use chatter_core::dialer::{NeighbourSpec, NeighbourState};
use routing_sim::{Sim, ms};

fn name(at: usize) -> NeighbourSpec {
    NeighbourSpec::Name(format!("n{at}@sim"))
}

fn dials(sim: &Sim, at: usize) -> Vec<std::time::Instant> {
    let is_dial = |event: &ControlEvent| matches!(event, ControlEvent::Dial { .. });
    sim.hosts[at].events.iter().filter(|(_, e)| is_dial(e)).map(|(at, _)| *at).collect()
}

fn connect(sim: &mut Sim, at: usize, spec: NeighbourSpec, persistent: bool) {
    let now = sim.now;
    sim.hosts[at].control.connect(now, spec, None, persistent).expect("room");
    sim.drain(at);
}

/// Given a neighbour that is not there, expect dials at once and after 50 ms doubling to 1 s, each
/// within 25 %, and not all the same.
#[test]
fn failures_back_off_with_jitter() {
    let mut sim = Sim::new(1, 1);
    sim.dial = true;
    connect(&mut sim, 0, name(7), true);
    sim.run_for(Duration::from_secs(120));
    let dials = dials(&sim, 0);
    assert_eq!(dials.len().min(12), 12);
    let mut exact = 0;
    for (at, pair) in dials.windows(2).enumerate() {
        let (wait, nominal) = (pair[1] - pair[0], ms((50 << at.min(20)).min(1_000)));
        assert!(wait >= nominal * 3 / 4 && wait <= nominal * 5 / 4 + ms(1), "{at}: {wait:?}");
        exact += usize::from(wait == nominal);
    }
    assert!(exact <= 1);
}

/// Given a link that was up for long, expect a dial soon after its loss; given one that was not, expect
/// the wait to go on growing.
#[test]
fn a_stable_link_starts_the_waits_over() {
    for (up_ms, soon) in [(6_000, true), (100, false)] {
        let mut sim = Sim::new(2, 1);
        sim.dial = true;
        connect(&mut sim, 0, name(9), true);
        connect(&mut sim, 0, name(1), true);
        for _ in 0..6 {
            let wire = sim.wire_between(0, 1).expect("a wire");
            sim.run_for(ms(up_ms));
            sim.cut(wire);
            let lost = sim.now;
            sim.run_until(ms(20_000), |sim| sim.wire_between(0, 1).is_some());
            let wait = sim.now - lost;
            assert!(!soon || wait <= ms(63), "{wait:?}");
        }
        let failures = sim.hosts[0].control.neighbours()[1].failures;
        assert_eq!(failures <= 1, soon, "{failures}");
    }
}

/// Given a dial that is never answered, expect the next one after the timeout and a wait.
#[test]
fn a_dial_without_answer_times_out() {
    let mut sim = Sim::new(1, 1);
    connect(&mut sim, 0, name(7), true);
    sim.run_for(ms(10_100));
    assert_eq!(dials(&sim, 0).len(), 2);
}

/// Given nodes that want each other by name, by address, or both, expect one link and no more dials.
#[test]
fn wishes_are_satisfied_whoever_dialled() {
    let address = |at| NeighbourSpec::Address(format!("n{at}@sim"), 29_999);
    for specs in [[name(1), name(0)], [address(1), address(0)], [address(1), name(0)]] {
        let mut sim = Sim::new(2, 1);
        sim.dial = true;
        for (at, spec) in specs.into_iter().enumerate() {
            connect(&mut sim, at, spec, true);
        }
        sim.run_for(Duration::from_secs(30));
        for at in 0..2 {
            assert_eq!(sim.hosts[at].control.links().len(), 1);
            assert!(dials(&sim, at).len() <= 2);
            let state = sim.hosts[at].control.neighbours()[0].state;
            assert!(matches!(state, NeighbourState::Linked(id, _) if id == sim.id(1 - at)));
        }
        let wire = sim.wire_between(0, 1).expect("a wire");
        sim.cut(wire);
        sim.run_for(ms(500));
        assert_eq!(sim.hosts[0].control.links().len(), 1, "dialled again");
    }
}

/// Given a dial that is not persistent, expect it to be forgotten when it fails or its link ends.
#[test]
fn a_single_dial_is_forgotten() {
    let mut sim = Sim::new(2, 1);
    sim.dial = true;
    let now = sim.now;
    sim.hosts[0].control.dial_once(now, name(7));
    sim.hosts[0].control.dial_once(now, name(1));
    sim.drain(0);
    sim.run_for(ms(1_000));
    assert_eq!(sim.hosts[0].control.neighbours().len(), 1);
    let wire = sim.wire_between(0, 1).expect("a wire");
    sim.cut(wire);
    sim.run_for(ms(60_000));
    assert_eq!(sim.hosts[0].control.neighbours().len(), 0);
    assert_eq!(dials(&sim, 0).len(), 2);
}

/// Given a disconnect by name, expect no further dial from this side.
#[test]
fn disconnect_drops_the_wish() {
    for by_node in [false, true] {
        let mut sim = Sim::new(2, 1);
        sim.dial = true;
        connect(&mut sim, 0, name(1), true);
        sim.run_for(ms(1_000));
        let node = DisconnectTarget::Node(sim.id(1));
        let target = if by_node { node } else { DisconnectTarget::Spec(name(1)) };
        let now = sim.now;
        sim.hosts[0].control.disconnect(now, &target);
        sim.drain(0);
        sim.run_for(ms(60_000));
        assert_eq!(dials(&sim, 0).len(), 1);
        assert!(sim.hosts[0].control.links().is_empty() && sim.hosts[1].control.links().is_empty());
    }
}

/// Given its own name or an address of its own, expect a node to stop dialling.
#[test]
fn a_node_does_not_dial_itself() {
    let mut sim = Sim::new(1, 1);
    sim.dial = true;
    connect(&mut sim, 0, name(0), true);
    assert!(dials(&sim, 0).is_empty());
    connect(&mut sim, 0, NeighbourSpec::Address("n0@sim".to_owned(), 1), true);
    sim.run_for(ms(60_000));
    assert_eq!(dials(&sim, 0).len(), 1);
    let states: Vec<_> = sim.hosts[0].control.neighbours().iter().map(|n| n.state).collect();
    assert_eq!(states, vec![NeighbourState::Stopped; 2]);
}

/// Given a wanted metric, before or after the link, expect it on the link and in routes; wishes have a
/// limit.
#[test]
fn metrics_and_limits() {
    let config = ControlConfig { max_neighbours: 2, ..ControlConfig::default() };
    let mut sim = Sim::with_config(3, 1, config);
    sim.dial = true;
    let now = sim.now;
    sim.hosts[0].control.connect(now, name(1), Some(77), true);
    sim.drain(0);
    sim.join(0, 2);
    sim.run_for(ms(1_000));
    let now = sim.now;
    sim.hosts[0].control.connect(now, name(2), Some(33), true);
    sim.drain(0);
    assert_eq!(sim.hosts[0].control.connect(now, name(5), None, true), None);
    sim.run_for(ms(1_000));
    let distance = |at: usize| sim.hosts[0].table.route(sim.id(at)).map(|route| route.distance);
    assert_eq!((distance(1), distance(2)), (Some(77), Some(33)));
    assert_eq!(sim.hosts[1].table.route(sim.id(2)).map(|route| route.distance), Some(43));
}
