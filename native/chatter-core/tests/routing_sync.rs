//! How databases become equal: the exchange when a link comes up, and repair.

mod routing_sim;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use chatter_core::control::LinkState;
use chatter_core::ids::{Incarnation, NodeId};
use chatter_core::lsdb::{Lsdb, LsdbLimits};
use chatter_core::wire::PacketType;
use chatter_core::wire::lsp::Lsp;
use chatter_core::wire::summary::{MAX_SUMMARY_ENTRIES, Summary};
use routing_sim::{Sim, ms, start};

fn line(n: usize) -> Sim {
    let mut sim = Sim::new(n, 7);
    for at in 1..n {
        sim.join(at - 1, at);
    }
    sim.run_for(ms(5_000));
    sim
}

/// Counts packets of a kind between two nodes from now on.
fn count(sim: &mut Sim, ends: [usize; 2], wanted: PacketType) -> Rc<Cell<usize>> {
    let seen = Rc::new(Cell::new(0));
    let counter = Rc::clone(&seen);
    sim.lose = Some(Box::new(move |from, to, kind, _| {
        let between = [from, to] == ends || [to, from] == ends;
        counter.set(counter.get() + usize::from(between && kind == wanted));
        false
    }));
    seen
}

fn states(sim: &Sim, from: usize, to: usize) -> bool {
    let (from, to) = (sim.id(from), sim.id(to));
    let edges = |at: &usize| sim.hosts[*at].control.topology().edges;
    (0..sim.hosts.len())
        .filter(|at| sim.hosts[*at].alive)
        .any(|at| edges(&at).iter().any(|(a, b, _)| (*a, *b) == (from, to)))
}

/// Given LSPs that are slow to cross a new link, expect it to be neither used nor told of until they have
/// come, and both at once then.
#[test]
fn a_link_is_told_of_after_the_exchange() {
    let mut sim = Sim::new(5, 1);
    for (a, b) in [(0, 1), (1, 2), (3, 4)] {
        sim.join(a, b);
    }
    sim.run_for(ms(3_000));
    // What 2 says to 3 does not arrive, but for its probes.
    let held = Rc::new(Cell::new(true));
    let holds = Rc::clone(&held);
    sim.lose = Some(Box::new(move |from, to, kind, _| {
        holds.get() && (from, to) == (2, 3) && kind != PacketType::Hello
    }));
    sim.join(2, 3);
    sim.run_for(ms(900));
    for (at, peer) in [(2, 3), (3, 2)] {
        let peer = sim.id(peer);
        let links = sim.hosts[at].control.links();
        let link = links.iter().find(|link| link.peer.id == peer).expect("the link");
        // 3 has compared nothing, so 2 does not know that it has all; 2 has said so too early.
        assert_eq!(link.state == LinkState::Up, at == 3, "n{at}");
    }
    assert!(!sim.hosts[2].control.is_reachable(sim.id(3)));
    assert!(!sim.hosts[3].control.is_reachable(sim.id(2)), "its LSP has not come");
    assert!(!states(&sim, 2, 3) && !states(&sim, 3, 2));
    held.set(false);
    sim.run_until(ms(2_000), |sim| sim.hosts[0].control.is_reachable(sim.id(4)));
    sim.run_for(ms(2_000));
    assert!(states(&sim, 2, 3) && states(&sim, 3, 2));
    assert!(sim.hosts[4].control.is_reachable(sim.id(0)));
}

/// Given the ends of a line that know everything already, expect a new link between them to carry the
/// news of itself and nothing else; given two strangers, each LSP about once.
#[test]
fn only_what_differs_is_sent() {
    let mut sim = line(20);
    let lsps = count(&mut sim, [0, 19], PacketType::Lsp);
    sim.join(0, 19);
    sim.run_for(ms(3_000));
    assert!(sim.hosts[0].control.is_reachable(sim.id(10)));
    assert!(lsps.get() <= 4, "{} LSPs", lsps.get());

    let mut sim = Sim::new(20, 3);
    for at in (1..20).filter(|at| *at != 10) {
        sim.join(at - 1, at);
    }
    sim.run_for(ms(5_000));
    let lsps = count(&mut sim, [9, 10], PacketType::Lsp);
    sim.join(9, 10);
    sim.run_for(ms(5_000));
    assert!(sim.hosts[0].control.is_reachable(sim.id(19)));
    assert!(lsps.get() <= 20 + 6, "{} LSPs for 20 nodes", lsps.get());
}

/// Given one LSP that got lost on its way, expect the repair to send that one only.
#[test]
fn repair_sends_what_is_missing() {
    let mut sim = line(30);
    let sent = Rc::new(RefCell::new(Vec::new()));
    let seen = Rc::clone(&sent);
    sim.lose = Some(Box::new(move |from, to, kind, _| {
        if (from, to) != (10, 11) || kind != PacketType::Lsp {
            return false;
        }
        seen.borrow_mut().push(kind);
        seen.borrow().len() == 1
    }));
    let now = sim.now;
    sim.hosts[0].control.set_overload(now, true);
    sim.drain(0);
    let overloaded = |sim: &Sim| sim.hosts[29].control.topology().nodes[&sim.id(0)].overload;
    sim.run_until(ms(3_000), overloaded);
    sim.run_for(ms(5_000));
    assert_eq!(sent.borrow().len(), 2, "the lost one, and again");
    let digest = sim.hosts[0].control.lsdb_digest();
    assert!(sim.hosts.iter().all(|host| host.control.lsdb_digest() == digest));
}

fn lsdb(origins: impl Iterator<Item = u64>) -> Lsdb {
    let limits = LsdbLimits { max_nodes: 9_999, max_age_s: 3_600, min_age_s: 60, purge_keep_s: 60 };
    let mut lsdb = Lsdb::new(NodeId(0), Incarnation(1), limits);
    for origin in origins {
        let lsp = Lsp {
            overload: false,
            purge: false,
            silent: false,
            lifetime_s: 3_600,
            origin: NodeId(origin),
            incarnation: Incarnation(1),
            seq: 1,
            name: "x@y".into(),
            addresses: Vec::new(),
            neighbours: Vec::new(),
        };
        lsdb.install(start(), lsp);
    }
    lsdb
}

fn summaries(lsdb: &Lsdb) -> Vec<Summary> {
    let mut all = vec![lsdb.summary(NodeId(0))];
    while let Some(last) = all.last().map(|summary| summary.last)
        && last != NodeId(u64::MAX)
    {
        all.push(lsdb.summary(NodeId(last.0 + 1)));
    }
    all
}

/// Given databases with more LSPs than one summary packet takes, expect the packets to cover all origins
/// without gaps and to tell exactly what the other one lacks, wherever the gaps are.
#[test]
fn large_summaries_are_split() {
    let full = lsdb((1..=3_500).map(|at| at * 3));
    let parts = summaries(&full);
    assert_eq!(parts.len(), 4);
    assert!(parts.iter().all(|part| part.entries.len() <= MAX_SUMMARY_ENTRIES));
    assert!(parts.windows(2).all(|pair| pair[1].first.0 == pair[0].last.0 + 1));
    assert!(parts.iter().all(|part| full.newer_than(part).is_empty()));
    for lacking in [vec![], vec![3], vec![3_000, 3_003], vec![10_500], vec![3, 3_003, 6_006, 9_009]]
    {
        let other = lsdb((1..=3_500).map(|at| at * 3).filter(|at| !lacking.contains(at)));
        let missing: Vec<_> = summaries(&other)
            .iter()
            .flat_map(|part| full.newer_than(part))
            .map(|id| id.0)
            .collect();
        assert_eq!(missing, lacking);
        let surplus = parts.iter().flat_map(|part| other.newer_than(part)).count();
        assert_eq!(surplus, 0);
    }
    let empty = lsdb(std::iter::empty());
    let all = summaries(&empty).iter().flat_map(|part| full.newer_than(part)).count();
    assert_eq!(all, 3_500);
}
