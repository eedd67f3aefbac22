//! How long shortest paths take: the run itself, the alternates, and the table that is published.
//!
//! `make bench-spf`; the bar is 1,000 nodes and 3,000 links within 100 µs, 10,000 and 40,000 within 3 ms.
#![allow(missing_docs, reason = "criterion's macros make items without")]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use chatter_core::ids::{Incarnation, LinkId, NodeId};
use chatter_core::lsdb::{Lsdb, LsdbLimits};
use chatter_core::routes::ForwardingTable;
use chatter_core::wire::lsp::{Lsp, Neighbour};
use criterion::{Criterion, criterion_group, criterion_main};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng, SeedableRng};

const LIFE: Incarnation = Incarnation(1);

fn id(at: usize) -> NodeId {
    NodeId((at as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// A random tree with chords: metrics of three classes, about as many links at each node.
fn network(nodes: usize, links: usize) -> (Lsdb, Vec<(Neighbour, LinkId)>) {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(1);
    let mut below = |limit: usize| (random.next_u64() % limit as u64) as usize;
    let mut stated = vec![BTreeMap::new(); nodes];
    let mut count = 0;
    while count < links {
        let (a, b) = match count {
            tree if tree + 1 < nodes => (tree + 1, below(tree + 1)),
            _ => (below(nodes), below(nodes)),
        };
        let metric = [10, 20, 50][below(3)];
        if a != b && stated[a].insert(id(b), metric).is_none() {
            stated[b].insert(id(a), metric);
            count += 1;
        }
    }
    let limits = LsdbLimits { max_nodes: nodes, max_age_s: 3_600, min_age_s: 60, purge_keep_s: 60 };
    let mut lsdb = Lsdb::new(id(0), LIFE, limits);
    #[expect(clippy::disallowed_methods, reason = "a measurement")]
    let now = Instant::now();
    for (at, links) in stated.iter().enumerate() {
        let neighbour = |(id, metric): (&NodeId, &u32)| Neighbour {
            id: *id,
            metric: *metric,
            incarnation: LIFE,
        };
        let lsp = Lsp {
            overload: false,
            purge: false,
            silent: false,
            lifetime_s: 3_600,
            origin: id(at),
            incarnation: LIFE,
            seq: 1,
            name: format!("node{at}@host").into(),
            addresses: Vec::new(),
            neighbours: links.iter().map(neighbour).collect(),
        };
        lsdb.originate(now, lsp);
    }
    let hops = lsdb.get(id(0)).expect("its LSP").neighbours.clone();
    (lsdb, hops.into_iter().zip((1..).map(LinkId)).collect())
}

fn spf(criterion: &mut Criterion) {
    for (nodes, links) in [(1_000, 3_000), (4_096, 16_400), (10_000, 40_000)] {
        let (lsdb, hops) = network(nodes, links);
        let neighbours: Vec<_> = hops.iter().map(|(neighbour, _)| *neighbour).collect();
        let tree = lsdb.graph().shortest_paths(id(0), &neighbours);
        assert_eq!(tree.reached().count(), nodes - 1);
        let mut group = criterion.benchmark_group(format!("{nodes} nodes, {links} links"));
        group.sample_size(20).warm_up_time(Duration::from_secs(1));
        group.measurement_time(Duration::from_secs(2));
        group.bench_function("shortest paths", |bencher| {
            bencher.iter(|| black_box(lsdb.graph().shortest_paths(id(0), &neighbours)));
        });
        group.bench_function(format!("alternates, {} links", hops.len()), |bencher| {
            let mut tree = tree.clone();
            bencher.iter(|| lsdb.graph().find_alternates(id(0), &neighbours, &mut tree));
        });
        group.bench_function("paths, alternates and table", |bencher| {
            bencher.iter(|| black_box(ForwardingTable::compute(id(0), &hops, &lsdb)));
        });
        group.finish();
    }
}

criterion_group!(benches, spf);
criterion_main!(benches);
