//! Who sends to whom, over whole networks: how many sends, how deep, and no link twice.

mod broadcast_net;

use std::collections::{BTreeMap, BTreeSet};

use broadcast_net::{graph, id, mesh, place, table};
use chatter_core::broadcast::plan::plan;
use chatter_core::ids::NodeId;
use chatter_core::routes::ForwardingTable;
use chatter_core::wire::bcast::Target;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

fn target(id: NodeId) -> Target {
    Target { id, life: 0, direct: false, links_only: false, prev: 0 }
}

fn numbered(edges: &[(usize, usize)]) -> BTreeMap<(usize, usize), u32> {
    edges.iter().zip(1..).map(|(edge, number)| (*edge, number)).collect()
}

/// Carries a plan out: the sends over each link, and the round in which each node gets the messages. All
/// sends of a node go one after the other, as in the seed's rounds.
struct Spread {
    sends: BTreeMap<(usize, usize), u32>,
    rounds: BTreeMap<usize, usize>,
}

impl Spread {
    fn new(tables: &[ForwardingTable], from: usize, targets: &[usize]) -> Self {
        let mut spread = Self { sends: BTreeMap::new(), rounds: BTreeMap::new() };
        let targets: Vec<Target> = targets.iter().map(|at| target(id(*at))).collect();
        spread.go(tables, from, &targets, 0);
        spread
    }

    fn go(&mut self, tables: &[ForwardingTable], at: usize, targets: &[Target], round: usize) {
        let plan = plan(&tables[at], targets);
        assert_eq!(plan.unreachable, []);
        for (turn, (child, targets)) in plan.sends.into_iter().enumerate() {
            let child = place(child);
            *self.sends.entry((at, child)).or_default() += 1;
            let round = round + turn + 1;
            let (own, rest): (Vec<_>, Vec<_>) = targets.iter().partition(|t| t.id == id(child));
            if !own.is_empty() {
                assert!(self.rounds.insert(child, round).is_none(), "{child} is a target twice");
            }
            self.go(tables, child, &rest, round);
        }
    }
}

fn tables(nodes: usize, edges: &[(usize, usize)]) -> Vec<ForwardingTable> {
    let (links, lives) = (numbered(edges), vec![1; nodes]);
    (0..nodes).map(|at| table(at, &links, &lives)).collect()
}

/// Given eight nodes that are all linked, expect the seed's example: the first sends to the second,
/// sixth and eighth and gives the second three more, the sixth one; 7 sends in 3 rounds. (The example's last
/// round names N5 as the receiver where N8 is meant.)
#[test]
fn eight_nodes_of_the_seed() {
    let tables = tables(8, &mesh(8));
    let all: Vec<Target> = (1..8).map(|at| target(id(at))).collect();
    let sends: Vec<(usize, Vec<usize>)> = plan(&tables[0], &all)
        .sends
        .iter()
        .map(|(head, targets)| (place(*head), targets.iter().map(|t| place(t.id)).collect()))
        .collect();
    assert_eq!(sends, [(1, vec![1, 2, 3, 4]), (5, vec![5, 6]), (7, vec![7])]);
    let spread = Spread::new(&tables, 0, &[1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(spread.sends.values().sum::<u32>(), 7);
    assert_eq!(spread.rounds.values().max(), Some(&3));
}

/// Given full meshes of 2 to 128 nodes, expect N - 1 sends and ceil(log2 N) rounds.
#[test]
fn meshes() {
    for nodes in (2..34).chain([63, 64, 65, 128]) {
        let spread = Spread::new(&tables(nodes, &mesh(nodes)), 0, &(1..nodes).collect::<Vec<_>>());
        let depth = nodes.next_power_of_two().trailing_zeros() as usize;
        assert_eq!(spread.sends.values().sum::<u32>() as usize, nodes - 1, "{nodes} nodes");
        assert_eq!(spread.rounds.values().max(), Some(&depth), "{nodes} nodes");
    }
}

/// Given random networks and targets, expect each target reached once, and no link used twice in
/// either direction.
#[test]
fn no_link_twice() {
    for seed in 0..300 {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let nodes = rng.random_range(2..40);
        let chords = rng.random_range(0..4 * nodes);
        let edges = graph(nodes, chords, &mut rng);
        let tables = tables(nodes, &edges);
        let from = rng.random_range(0..nodes);
        let share = rng.random_range(1..=4);
        let targets: Vec<usize> =
            (0..nodes).filter(|at| *at != from && rng.random_range(0..4) < share).collect();
        let spread = Spread::new(&tables, from, &targets);
        let reached: BTreeSet<usize> = spread.rounds.keys().copied().collect();
        assert_eq!(reached, targets.iter().copied().collect(), "seed {seed}");
        let twice = |(a, b): &(usize, usize)| {
            spread.sends[&(*a, *b)] > 1 || spread.sends.contains_key(&(*b, *a))
        };
        let twice: Vec<_> = spread.sends.keys().filter(|ends| twice(ends)).collect();
        assert!(twice.is_empty(), "seed {seed}: {twice:?}");
    }
}
