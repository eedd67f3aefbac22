//! Several lives of one node id: clones, clocks that were set back, and what the others see of it.

mod routing_sim;

use chatter_core::control::ControlEvent;
use chatter_core::ids::NodeId;
use routing_sim::{Sim, ms};

/// A line of `n` nodes at rest, and behind it a node that is not linked to any.
fn line_and_one(n: usize) -> Sim {
    let mut sim = Sim::new(n + 1, 5);
    sim.dial = true;
    for at in 1..n {
        sim.wish(at, at - 1);
    }
    sim.run_for(ms(5_000));
    sim
}

/// The story of a node as another saw it: `+` up, `-` down with the life.
fn story(sim: &Sim, at: usize, id: NodeId) -> String {
    let word = |event: &ControlEvent| match event {
        ControlEvent::NodeUp { incarnation, .. } => format!("+{incarnation}"),
        ControlEvent::NodeDown { incarnation, .. } => format!("-{incarnation}"),
        _ => String::new(),
    };
    sim.node_events(at, id).iter().map(word).collect()
}

fn clashes(sim: &Sim, at: usize) -> usize {
    let is_clash = |event: &ControlEvent| matches!(event, ControlEvent::NameClash { name, .. } if &**name == "n0@sim");
    sim.hosts[at].events.iter().filter(|(_, event)| is_clash(event)).count()
}

fn reborn(sim: &Sim, at: usize) -> Vec<u64> {
    let life = |event: &ControlEvent| match event {
        ControlEvent::Reborn { incarnation } => Some(incarnation.0),
        _ => None,
    };
    sim.hosts[at].events.iter().filter_map(|(_, event)| life(event)).collect()
}

/// Given a clone with an earlier or later clock that dials a neighbour of the node that is there, or
/// another node, expect it to be refused, nobody to notice, and one line each where both are known;
/// when the first one is gone, expect the clone to be taken in.
#[test]
fn a_clone_is_refused_and_reported() {
    for (life, to) in [(9, 1), (9, 3), (0, 1), (0, 3)] {
        let mut sim = line_and_one(5);
        let id = sim.id(0);
        sim.replace(5, "n0@sim", life);
        sim.wish(5, to);
        sim.run_for(ms(20_000));
        for at in 1..5 {
            assert_eq!(story(&sim, at, id), "+1", "n{at}");
            assert!(sim.hosts[at].control.is_reachable(id));
        }
        assert!(sim.hosts[5].table.is_empty(), "the clone is out");
        assert_eq!((clashes(&sim, 5), clashes(&sim, to)), (1, 1), "{life} at n{to}");
        // Who has its name is told by its neighbour.
        assert_eq!(clashes(&sim, 0), usize::from(to == 1), "{life} at n{to}");
        assert!(reborn(&sim, 0).is_empty() && reborn(&sim, 5).is_empty());
        sim.kill(0);
        sim.run_until(ms(10_000), |sim| sim.hosts[4].control.is_reachable(id));
    }
}

/// Given a restart with a clock that was set back, expect the node to begin a life above the former one
/// and to be there for all within three seconds: one down, one up.
#[test]
fn a_clock_set_back_is_overcome() {
    for unnoticed in [false, true] {
        let mut sim = Sim::new(5, 9);
        sim.dial = true;
        sim.replace(0, "n0@sim", 1_000);
        for at in 1..5 {
            sim.wish(at, at - 1);
        }
        sim.wish(0, 4);
        sim.run_for(ms(5_000));
        let id = sim.id(0);
        if unnoticed {
            for wire in sim.wires_of(0) {
                sim.wires[wire].silent = true;
                sim.wires[wire].open = false;
            }
            sim.hosts[0].alive = false;
        } else {
            sim.kill(0);
        }
        sim.run_for(ms(200));
        sim.replace(0, "n0@sim", 7);
        sim.wish(0, 4);
        let back = sim.run_until(ms(10_000), |sim| {
            let up =
                |at: usize| sim.hosts[at].table.route(id).is_some_and(|r| r.incarnation.0 > 1_000);
            (1..5).all(up)
        });
        assert!(back <= ms(4_000), "{back:?}");
        sim.run_for(ms(10_000));
        assert_eq!(reborn(&sim, 0), vec![1_001]);
        for at in 1..5 {
            assert_eq!(story(&sim, at, id), "+1000-1000+1001", "n{at}");
            assert_eq!(clashes(&sim, at), 0);
        }
        assert_eq!(clashes(&sim, 0), 0);
    }
}

/// Given clones on both sides of a cut that heals, expect one of them to have the name at last, both to
/// report it, and no endless contest.
#[test]
fn clones_beyond_a_cut_settle() {
    let mut sim = Sim::new(8, 11);
    sim.dial = true;
    sim.replace(7, "n0@sim", 5);
    for (at, to) in [(1, 0), (2, 1), (3, 2), (5, 4), (6, 5), (7, 6)] {
        sim.wish(at, to);
    }
    sim.run_for(ms(5_000));
    let id = sim.id(0);
    assert!(sim.hosts[3].control.is_reachable(id) && sim.hosts[4].control.is_reachable(id));
    sim.wish(4, 3);
    sim.run_for(ms(30_000));
    for at in 1..7 {
        let route = sim.hosts[at].table.route(id).expect("one of them is there");
        assert_eq!(route.incarnation.0, 5, "n{at}: the later life");
        let lives = story(&sim, at, id);
        assert_eq!(lives, if at < 4 { "+1-1+5" } else { "+5" }, "n{at}");
    }
    assert!(clashes(&sim, 0) == 1 && sim.hosts[0].table.is_empty());
    assert!(reborn(&sim, 0).is_empty() && reborn(&sim, 7).is_empty());
    assert!((1..7).any(|at| clashes(&sim, at) > 0));
}
