//! Shortest paths against Bellman and Ford's algorithm.

use std::collections::{BTreeMap, BTreeSet};

use chatter_core::ids::{Incarnation, NodeId};
use chatter_core::spf::{Graph, OVERLOAD_COST};
use chatter_core::wire::lsp::Neighbour;
use proptest::prelude::*;

const LIFE: Incarnation = Incarnation(1);

/// What each node states: neighbour and metric; and whether it is overloaded.
type Stated = BTreeMap<u64, (bool, BTreeMap<u64, u32>)>;

fn neighbours(stated: &BTreeMap<u64, u32>) -> Vec<Neighbour> {
    stated
        .iter()
        .map(|(id, metric)| Neighbour { id: NodeId(*id), metric: *metric, incarnation: LIFE })
        .collect()
}

/// Distances and first hops by relaxing until nothing changes.
fn brute_force(stated: &Stated, root: u64) -> BTreeMap<u64, (u64, BTreeSet<u64>)> {
    let both = |a: &u64, b: &u64| stated.get(b).is_some_and(|(_, links)| links.contains_key(a));
    let mut best: BTreeMap<u64, (u64, BTreeSet<u64>)> = BTreeMap::new();
    let mut changed = true;
    while changed {
        changed = false;
        for (from, (overload, links)) in stated {
            for (to, metric) in links.iter().filter(|(to, _)| **to != root && both(from, to)) {
                let (reach, hops) = match best.get(from) {
                    _ if *from == root => (u64::from(*metric), BTreeSet::from([*to])),
                    Some((reach, hops)) => {
                        let pass = if *overload { u64::from(OVERLOAD_COST) } else { 0 };
                        (reach + pass + u64::from(*metric), hops.clone())
                    }
                    None => continue,
                };
                if reach >= u64::from(u32::MAX) {
                    continue;
                }
                let entry = best.entry(*to).or_insert((u64::MAX, BTreeSet::new()));
                if reach < entry.0 {
                    *entry = (reach, hops);
                    changed = true;
                } else if reach == entry.0 && !hops.is_subset(&entry.1) {
                    entry.1.extend(hops);
                    changed = true;
                }
            }
        }
    }
    best
}

fn compare(graph: &Graph, stated: &Stated, root: u64) {
    let empty = (false, BTreeMap::new());
    let first = neighbours(&stated.get(&root).unwrap_or(&empty).1);
    let usable: Vec<_> = first
        .into_iter()
        .filter(|hop| stated.get(&hop.id.0).is_some_and(|(_, links)| links.contains_key(&root)))
        .collect();
    let tree = graph.shortest_paths(NodeId(root), &usable);
    let found: BTreeMap<_, _> = tree
        .reached()
        .map(|r| {
            let hops = r.first_hops().map(|at| usable[at].id.0).collect();
            (r.id.0, (u64::from(r.distance), hops))
        })
        .collect();
    assert_eq!(found, brute_force(stated, root));
}

fn any_graph() -> impl Strategy<Value = Vec<(u64, bool, BTreeMap<u64, u32>)>> {
    let metric = prop_oneof![8 => 1u32..5, 1 => Just(u32::MAX), 1 => (u32::MAX - 3)..u32::MAX];
    let links = prop::collection::btree_map(0u64..12, metric, 0..8);
    prop::collection::vec((0u64..12, prop::bool::weighted(0.15), links), 1..40)
}

proptest! {
    /// Given LSPs in any order, replaced and removed, expect the brute-force answer from every root.
    #[test]
    fn equals_brute_force(steps in any_graph()) {
        let (mut graph, mut stated) = (Graph::default(), Stated::new());
        for (id, overload, mut links) in steps {
            links.remove(&id);
            if links.len() == 7 {
                graph.remove(NodeId(id));
                stated.remove(&id);
            } else {
                graph.set(NodeId(id), LIFE, overload, &neighbours(&links));
                stated.insert(id, (overload, links));
            }
        }
        for root in 0..12 {
            compare(&graph, &stated, root);
        }
    }
}

/// Given a node in a new life, expect links that its neighbours have to its former life not to count.
#[test]
fn links_of_a_former_life_do_not_count() {
    let link = |id, incarnation| {
        [Neighbour { id: NodeId(id), metric: 1, incarnation: Incarnation(incarnation) }]
    };
    let mut graph = Graph::default();
    graph.set(NodeId(1), LIFE, false, &link(2, 1));
    graph.set(NodeId(2), LIFE, false, &link(1, 1));
    assert_eq!(graph.edges().count(), 2);
    assert!(graph.set(NodeId(2), Incarnation(2), false, &link(1, 1)));
    assert_eq!(graph.edges().count(), 0);
    assert!(graph.set(NodeId(1), LIFE, false, &link(2, 2)));
    assert_eq!(graph.edges().count(), 2);
}

/// Given a hundred equally short ways, expect a hundred first hops.
#[test]
fn more_first_hops_than_a_word_has_bits() {
    let mut stated = Stated::new();
    let spokes: BTreeMap<_, _> = (1..=100).map(|id| (id, 5)).collect();
    stated.insert(0, (false, spokes.clone()));
    stated.insert(200, (false, spokes));
    for id in 1..=100 {
        stated.insert(id, (false, BTreeMap::from([(0, 5), (200, 5)])));
    }
    let mut graph = Graph::default();
    for (id, (overload, links)) in &stated {
        graph.set(NodeId(*id), LIFE, *overload, &neighbours(links));
    }
    compare(&graph, &stated, 0);
}
