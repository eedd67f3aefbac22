//! Networks, and the tables that the real code makes of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chatter_core::ids::{Incarnation, LinkId, NodeId};
use chatter_core::lsdb::{Lsdb, LsdbLimits};
use chatter_core::routes::ForwardingTable;
use chatter_core::wire::lsp::{Lsp, Neighbour};
use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;

use super::start;

/// Links by their ends, the lower first, with a number that a link never gets again.
pub type Links = BTreeMap<(usize, usize), u32>;

pub fn id(at: usize) -> NodeId {
    // In the order of the places.
    NodeId((at as u64 + 1) << 8)
}

pub fn place(id: NodeId) -> usize {
    (id.0 >> 8) as usize - 1
}

/// The table of node `me` over these links.
pub fn table(me: usize, links: &Links, lives: &[u64]) -> ForwardingTable {
    table_from(me, &lsdb(links, lives), |ends| links.get(&ends).copied())
}

/// What all nodes say about these links, as somebody sees it who is none of them: so one is enough for
/// the tables of all.
pub fn lsdb(links: &Links, lives: &[u64]) -> Lsdb {
    let limits =
        LsdbLimits { max_nodes: 65_536, max_age_s: 3_600, min_age_s: 60, purge_keep_s: 60 };
    let mut lsdb = Lsdb::new(NodeId(0), Incarnation(1), limits);
    let mut around: Vec<Vec<usize>> = vec![Vec::new(); lives.len()];
    for (a, b) in links.keys() {
        around[*a].push(*b);
        around[*b].push(*a);
    }
    for (origin, neighbours) in around.iter_mut().enumerate() {
        neighbours.sort_unstable();
        let neighbour = |at: &usize| Neighbour {
            id: id(*at),
            metric: 10,
            incarnation: Incarnation(lives[*at]),
        };
        let lsp = Lsp {
            overload: false,
            purge: false,
            silent: false,
            lifetime_s: 3_600,
            origin: id(origin),
            incarnation: Incarnation(lives[origin]),
            seq: 1,
            name: Arc::from(format!("n{origin}@test")),
            addresses: Vec::new(),
            neighbours: neighbours.iter().map(neighbour).collect(),
        };
        lsdb.install(start(), lsp);
    }
    lsdb
}

/// The table of node `me`; `link` gives the number of the link between two places, the lower first.
pub fn table_from(
    me: usize,
    lsdb: &Lsdb,
    link: impl Fn((usize, usize)) -> Option<u32>,
) -> ForwardingTable {
    let hop = |neighbour: &Neighbour| {
        let at = place(neighbour.id);
        Some((*neighbour, LinkId(link((at.min(me), at.max(me)))?)))
    };
    let lsp = lsdb.get(id(me)).expect("all nodes are in it");
    let hops: Vec<_> = lsp.neighbours.iter().filter_map(hop).collect();
    ForwardingTable::compute(id(me), &hops, lsdb)
}

/// A connected graph: a ring in random order, and chords.
pub fn graph(nodes: usize, chords: usize, rng: &mut Xoshiro256PlusPlus) -> Vec<(usize, usize)> {
    let mut edges = BTreeSet::new();
    for at in 0..nodes {
        let next = (at + 1) % nodes;
        edges.insert((at.min(next), at.max(next)));
    }
    for _ in 0..chords {
        let (a, b) = (rng.random_range(0..nodes), rng.random_range(0..nodes));
        if a != b {
            edges.insert((a.min(b), a.max(b)));
        }
    }
    edges.into_iter().collect()
}

/// The same, in which moreover the nodes of each `size` that follow each other are all linked.
pub fn clumps(
    nodes: usize,
    size: usize,
    chords: usize,
    rng: &mut Xoshiro256PlusPlus,
) -> Vec<(usize, usize)> {
    let mut edges: BTreeSet<_> = graph(nodes, chords, rng).into_iter().collect();
    for b in 0..nodes {
        edges.extend((b - b % size..b).map(|a| (a, b)));
    }
    edges.into_iter().collect()
}

pub fn mesh(nodes: usize) -> Vec<(usize, usize)> {
    (0..nodes).flat_map(|a| (0..a).map(move |b| (b, a))).collect()
}
