//! Given any change of a network, expect every node's table to be right at once: distances and next hops
//! as an independent computation has them, no loops, and alternates that lead there without one.
//!
//! The nodes here share one LSDB, so each change is checked on its own; how LSPs get around, and what
//! holds while they do, is routing_oracle.rs.

mod routing_sim;

use std::collections::BTreeMap;
use std::time::Instant;

use chatter_core::alternates::MAX_CANDIDATES;
use chatter_core::ids::{Incarnation, LinkId, NodeId};
use chatter_core::lsdb::{Install, Lsdb, LsdbLimits};
use chatter_core::routes::ForwardingTable;
use chatter_core::spf::OVERLOAD_COST;
use chatter_core::wire::lsp::{Lsp, Neighbour};
use routing_sim::{Random, seed, start};

const FAR: u64 = u64::MAX / 4;

/// What is really there, and the LSDB that was told of it.
struct World {
    now: Instant,
    random: Random,
    alive: Vec<bool>,
    overload: Vec<bool>,
    life: Vec<u64>,
    seq: Vec<u64>,
    /// The metric in each direction, by the ends in ascending order.
    links: BTreeMap<(usize, usize), (u32, u32)>,
    lsdb: Lsdb,
}

fn id(at: usize) -> NodeId {
    // Scattered, as real ids are, but not in the order of the numbers.
    NodeId((at as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

fn link_to(at: usize) -> LinkId {
    LinkId(at as u32)
}

impl World {
    fn new(n: usize, links: &[(usize, usize)], seed: u64) -> Self {
        let limits =
            LsdbLimits { max_nodes: 4_096, max_age_s: 3_600, min_age_s: 60, purge_keep_s: 60 };
        let mut world = Self {
            now: start(),
            random: Random::new(seed),
            alive: vec![true; n],
            overload: vec![false; n],
            life: vec![1; n],
            seq: vec![0; n],
            links: BTreeMap::new(),
            // An outsider's LSDB: the LSPs of all nodes come in alike.
            lsdb: Lsdb::new(NodeId(0), Incarnation(1), limits),
        };
        for (a, b) in links {
            let metrics = world.metrics();
            world.links.insert((*a.min(b), *a.max(b)), metrics);
        }
        (0..n).for_each(|at| world.tell(at));
        world
    }

    /// Few different ones, so that there are equally short ways.
    fn metrics(&mut self) -> (u32, u32) {
        let mut one = || [1, 2, 10, 10, 20, 50, 65_535][self.random.below(7)];
        (one(), one())
    }

    fn neighbours(&self, at: usize) -> Vec<(usize, u32)> {
        let of = |((a, b), (there, back)): (&(usize, usize), &(u32, u32))| match at {
            _ if *a == at => Some((*b, *there)),
            _ if *b == at => Some((*a, *back)),
            _ => None,
        };
        self.links.iter().filter_map(of).collect()
    }

    /// A node states its links.
    fn tell(&mut self, at: usize) {
        self.seq[at] += 1;
        let stated = |(to, metric): (usize, u32)| Neighbour {
            id: id(to),
            metric,
            incarnation: Incarnation(self.life[to]),
        };
        let mut neighbours: Vec<_> = self.neighbours(at).into_iter().map(stated).collect();
        neighbours.sort_unstable_by_key(|neighbour| neighbour.id);
        let lsp = Lsp {
            overload: self.overload[at],
            purge: false,
            silent: false,
            lifetime_s: 3_600,
            origin: id(at),
            incarnation: Incarnation(self.life[at]),
            seq: self.seq[at],
            name: format!("n{at}@sim").into(),
            addresses: Vec::new(),
            neighbours,
        };
        assert!(matches!(self.lsdb.install(self.now, lsp), Install::Newer(_)));
    }

    fn change(&mut self) {
        let n = self.alive.len();
        let (a, b) = (self.random.below(n), self.random.below(n));
        let key = (a.min(b), a.max(b));
        match self.random.below(10) {
            0..4 if a != b && self.alive[a] && self.alive[b] => {
                let metrics = self.metrics();
                self.links.insert(key, metrics);
                self.tell(a);
                self.tell(b);
            }
            0..8 if !self.links.is_empty() => {
                let at = self.random.below(self.links.len());
                let (a, b) = *self.links.keys().nth(at).expect("one of them");
                if self.random.below(3) == 0 {
                    let metrics = self.metrics();
                    self.links.insert((a, b), metrics);
                } else {
                    self.links.remove(&(a, b));
                }
                self.tell(a);
                self.tell(b);
            }
            8 => {
                self.overload[a] = !self.overload[a];
                self.tell(a);
            }
            // The dead return sooner than the living die, or the network would fade away.
            _ if !self.alive[a] || self.random.below(3) == 0 => self.die_or_return(a),
            _ => {
                let metrics = self.metrics();
                let to = (a + 1) % n;
                if self.alive[to] {
                    self.links.insert((a.min(to), a.max(to)), metrics);
                    self.tell(to);
                }
                self.tell(a);
            }
        }
    }

    fn die_or_return(&mut self, at: usize) {
        if self.alive[at] {
            let lost: Vec<_> = self.neighbours(at).iter().map(|(to, _)| *to).collect();
            self.links.retain(|(a, b), _| *a != at && *b != at);
            lost.into_iter().for_each(|to| self.tell(to));
            self.alive[at] = false;
            return;
        }
        self.alive[at] = true;
        self.overload[at] = false;
        (self.life[at], self.seq[at]) = (self.life[at] + 1, 0);
        for _ in 0..2 {
            let to = self.random.below(self.alive.len());
            if to != at && self.alive[to] {
                let metrics = self.metrics();
                self.links.insert((at.min(to), at.max(to)), metrics);
                self.tell(to);
            }
        }
        self.tell(at);
    }

    fn table(&self, at: usize) -> ForwardingTable {
        let mut hops: Vec<_> = self
            .neighbours(at)
            .into_iter()
            .map(|(to, metric)| {
                let incarnation = Incarnation(self.life[to]);
                (Neighbour { id: id(to), metric, incarnation }, link_to(to))
            })
            .collect();
        hops.sort_unstable_by_key(|(neighbour, _)| neighbour.id);
        ForwardingTable::compute(id(at), &hops, &self.lsdb)
    }

    fn cost(&self, at: usize) -> u64 {
        if self.overload[at] { OVERLOAD_COST.into() } else { 0 }
    }

    /// Distances of all nodes to `to` by Bellman and Ford's algorithm over the links that are there.
    fn distances_to(&self, to: usize) -> Vec<u64> {
        let mut distance = vec![FAR; self.alive.len()];
        distance[to] = 0;
        let mut changed = true;
        while std::mem::take(&mut changed) {
            for ((a, b), (there, back)) in &self.links {
                for (from, via, metric) in [(*a, *b, *there), (*b, *a, *back)] {
                    let pass = if via == to { 0 } else { self.cost(via) };
                    let way = distance[via] + pass + u64::from(metric);
                    if way < distance[from] {
                        distance[from] = way;
                        changed = true;
                    }
                }
            }
        }
        distance
    }

    /// Checks all tables for one destination; with the distances to all, also which alternates there
    /// should be. Returns how many there are.
    fn check(&self, tables: &[ForwardingTable], to: usize, all: &[Vec<u64>]) -> usize {
        let distance = &self.distances_to(to);
        let mut alternates = 0;
        for from in (0..self.alive.len()).filter(|from| *from != to && self.alive[*from]) {
            let Some(route) = tables[from].route(id(to)) else {
                assert!(distance[from] >= FAR, "n{from} has no route to n{to}");
                continue;
            };
            assert_eq!(u64::from(route.distance), distance[from], "n{from} to n{to}");
            assert_eq!(route.incarnation, Incarnation(self.life[to]));
            let is_next = |(via, metric): &(usize, u32)| {
                let pass = if *via == to { 0 } else { self.cost(*via) };
                distance[*via] + pass + u64::from(*metric) == distance[from]
            };
            let neighbours = self.neighbours(from);
            let next: Vec<_> =
                neighbours.iter().copied().filter(is_next).map(|(via, _)| link_to(via)).collect();
            assert_eq!(route.next_hops, next, "n{from} to n{to}");
            if let Some(back) = all.get(from)
                && neighbours.len() <= MAX_CANDIDATES
            {
                let loop_free = |(via, _): &(usize, u32)| {
                    let relays = *via == to || !self.overload[*via];
                    let shorter = distance[*via] < back[*via] + self.cost(from) + distance[from];
                    relays && shorter && !next.contains(&link_to(*via))
                };
                let wanted = next.len() == 1 && neighbours.iter().any(loop_free);
                assert_eq!(route.alternate.is_some(), wanted, "n{from} to n{to}");
            }
            if let Some(LinkId(via)) = route.alternate {
                alternates += 1;
                assert!(!route.next_hops.contains(&LinkId(via)));
                assert!(neighbours.iter().any(|(at, _)| *at == via as usize));
                self.follow(tables, via as usize, to, Some(from));
            }
            self.follow(tables, from, to, None);
        }
        alternates
    }

    /// Takes every way that packets may take, by any flow hash: it must end at `to` and not pass `not`.
    fn follow(&self, tables: &[ForwardingTable], from: usize, to: usize, not: Option<usize>) {
        for hash in 0..2 {
            let (mut at, mut hops) = (from, 0);
            while at != to {
                assert_ne!(Some(at), not, "back at n{at} on the way to n{to}");
                let next = tables[at].next_hop(id(to), hash).expect("no hole on the way");
                (at, hops) = (next.0 as usize, hops + 1);
                assert!(hops < self.alive.len(), "loop from n{from} to n{to}");
            }
        }
    }
}

/// Makes changes, and checks some or all destinations after each. Returns the alternates that were met.
fn run(world: &mut World, changes: usize, destinations: usize) -> usize {
    let n = world.alive.len();
    let mut alternates = 0;
    for _ in 0..changes {
        world.change();
        let tables: Vec<_> = (0..n)
            .map(|at| match world.alive[at] {
                true => world.table(at),
                false => ForwardingTable::default(),
            })
            .collect();
        let small = destinations >= n;
        let all: Vec<_> = (0..n).filter(|_| small).map(|at| world.distances_to(at)).collect();
        for at in 0..destinations.min(n) {
            let to = if small { at } else { world.random.below(n) };
            alternates += world.check(&tables, to, &all);
        }
    }
    alternates
}

fn ring(n: usize) -> Vec<(usize, usize)> {
    (0..n).map(|at| (at, (at + 1) % n)).collect()
}

fn grid(w: usize, h: usize) -> Vec<(usize, usize)> {
    let right = (0..w * h).filter(|at| at % w + 1 < w).map(|at| (at, at + 1));
    right.chain((0..w * (h - 1)).map(|at| (at, at + w))).collect()
}

fn tree(n: usize, chords: usize, random: &mut Random) -> Vec<(usize, usize)> {
    let mut links: Vec<_> = (1..n).map(|at| (random.below(at), at)).collect();
    while links.len() < n - 1 + chords {
        let (a, b) = (random.below(n), random.below(n));
        if a != b {
            links.push((a, b));
        }
    }
    links
}

fn cliques(n: usize) -> Vec<(usize, usize)> {
    let half = n / 2;
    let of = |from: usize, to: usize| (from..to).flat_map(move |a| (from..a).map(move |b| (a, b)));
    of(0, half).chain(of(half, n)).chain([(0, half)]).collect()
}

/// 100,000 changes, or as many as CHATTER_CHANGES says: most on small networks, where all tables are
/// checked for all destinations, some on large ones.
#[test]
fn every_change_has_the_right_tables() {
    let seed = seed(20_261_121);
    let wanted: usize =
        std::env::var("CHATTER_CHANGES").ok().and_then(|s| s.parse().ok()).unwrap_or(100_000);
    let mut random = Random::new(seed);
    // Of a thousand changes so many; nodes; destinations checked after each.
    let shares = [(960, 10, 10), (30, 20, 20), (8, 50, 10), (2, 100, 4)];
    let (mut changes, mut alternates) = (0, 0);
    for (share, n, destinations) in shares {
        // A network is left after so many changes: they wander away from the form that it had.
        let lives = 100;
        let count = wanted * share / 1_000;
        for round in 0..count.div_ceil(lives) {
            let links = match round % 5 {
                0 => ring(n),
                1 => grid(5, n / 5),
                2 => tree(n, n / 3, &mut random),
                3 => cliques(n),
                _ => tree(n, 2 * n, &mut random),
            };
            let mut world = World::new(n, &links, seed.wrapping_add(changes as u64));
            let count = lives.min(count - round * lives);
            alternates += run(&mut world, count, destinations);
            changes += count;
        }
    }
    println!("{changes} changes, {alternates} alternates");
    assert!(changes + 100 >= wanted && alternates > changes);
}

/// A thousand nodes, three thousand links: a few changes with all tables, for a few destinations.
#[test]
fn a_thousand_nodes_have_the_right_tables() {
    let seed = seed(20_261_122);
    let mut random = Random::new(seed);
    let mut world = World::new(1_000, &tree(1_000, 2_000, &mut random), seed);
    assert!(run(&mut world, 6, 4) > 100);
}
