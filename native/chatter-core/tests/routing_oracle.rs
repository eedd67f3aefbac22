//! Given any network that has come to rest, expect the tables that Floyd and Warshall's algorithm gives
//! for the wires that are really there.

mod routing_sim;

use std::collections::BTreeSet;

use chatter_core::control::{Control, DisconnectTarget};
use chatter_core::dialer::NeighbourSpec;
use chatter_core::ids::LinkId;
use chatter_core::spf::OVERLOAD_COST;
use routing_sim::{Random, Sim, ms, seed, us};

const FAR: u64 = u64::MAX / 4;

/// What passing through a node costs.
fn cost(overload: bool) -> u64 {
    if overload { OVERLOAD_COST.into() } else { 0 }
}

struct Oracle {
    weight: Vec<Vec<u64>>,
    distance: Vec<Vec<u64>>,
    overload: Vec<bool>,
}

impl Oracle {
    /// Reads the wires, not the nodes' opinions; metrics are those that were set, else by delay.
    fn new(sim: &Sim, metric: &dyn Fn(usize, usize) -> u64, overload: &[bool]) -> Self {
        let n = sim.hosts.len();
        let mut weight = vec![vec![FAR; n]; n];
        for wire in sim.wires.iter().filter(|wire| wire.open && !wire.silent) {
            let [(a, _), (b, _)] = wire.ends;
            weight[a][b] = metric(a, b);
            weight[b][a] = metric(b, a);
        }
        let mut distance = weight.clone();
        for (at, row) in distance.iter_mut().enumerate() {
            row[at] = 0;
        }
        for k in 0..n {
            for i in 0..n {
                for j in 0..n {
                    let way = distance[i][k] + cost(overload[k]) + distance[k][j];
                    distance[i][j] = distance[i][j].min(way);
                }
            }
        }
        Self { weight, distance, overload: overload.to_vec() }
    }

    fn next_nodes(&self, from: usize, to: usize) -> BTreeSet<usize> {
        let via = |n: &usize| {
            let pass = if *n == to { 0 } else { cost(self.overload[*n]) };
            let way = self.weight[from][*n] + pass + self.distance[*n][to];
            self.weight[from][*n] < FAR && way == self.distance[from][to]
        };
        (0..self.weight.len()).filter(via).collect()
    }
}

fn neighbour_of(control: &Control, sim: &Sim, link: LinkId) -> usize {
    let info = control.links().into_iter().find(|info| info.link == link).expect("a link in use");
    sim.at(info.peer.id)
}

/// Compares every table with the oracle, follows next hops, and compares digests.
fn check(sim: &Sim, oracle: &Oracle) {
    let n = sim.hosts.len();
    for from in (0..n).filter(|&at| sim.hosts[at].alive) {
        let host = &sim.hosts[from];
        for to in (0..n).filter(|&to| to != from) {
            let route = host.table.route(sim.id(to));
            let expected = oracle.distance[from][to];
            let Some(route) = route else {
                assert!(expected >= FAR, "n{from} has no route to n{to} at {expected}");
                continue;
            };
            assert_eq!(u64::from(route.distance), expected, "n{from} to n{to}");
            assert_eq!(route.incarnation, sim.incarnation(to));
            let nodes: BTreeSet<_> =
                route.next_hops.iter().map(|l| neighbour_of(&host.control, sim, *l)).collect();
            assert_eq!(nodes, oracle.next_nodes(from, to), "n{from} to n{to}");
            assert!(host.control.is_reachable(sim.id(to)));
            assert_eq!(host.table.id_of(&sim.hosts[to].name), Some(sim.id(to)));
            let path = host.table.path(sim.id(to)).expect("a path");
            assert_eq!(path.len(), route.hops as usize);
            assert_eq!(path.last(), Some(&sim.id(to)));
            follow(sim, from, to, 0x9e37_79b9 * (from as u64 + 1));
            if expected < FAR {
                let digest = sim.hosts[to].control.lsdb_digest();
                assert_eq!(digest, host.control.lsdb_digest(), "n{from} and n{to}");
            }
        }
    }
}

fn follow(sim: &Sim, from: usize, to: usize, flow_hash: u64) {
    let (mut at, mut hops) = (from, 0);
    while at != to {
        let host = &sim.hosts[at];
        let link = host.table.next_hop(sim.id(to), flow_hash).expect("no hole on the way");
        at = neighbour_of(&host.control, sim, link);
        hops += 1;
        assert!(hops < sim.hosts.len(), "loop from n{from} to n{to}");
    }
}

fn by_delay(sim: &Sim) -> impl Fn(usize, usize) -> u64 {
    let delays: Vec<_> =
        sim.wires.iter().filter(|w| w.open).map(|w| (w.ends.map(|(at, _)| at), w.delay)).collect();
    move |a, b| {
        let of = |(ends, _): &&([usize; 2], _)| *ends == [a, b] || *ends == [b, a];
        match delays.iter().find(of).expect("a wire").1.as_micros() * 2 {
            0..=1_000 => 10,
            1_001..=5_000 => 20,
            5_001..=20_000 => 50,
            20_001..=100_000 => 100,
            _ => 300,
        }
    }
}

fn settled(mut sim: Sim, edges: &[(usize, usize)], delays_us: &[u64]) -> Sim {
    for (at, (a, b)) in edges.iter().enumerate() {
        sim.delay = us(delays_us[at % delays_us.len()]);
        sim.join(*a, *b);
    }
    sim.run_for(ms(4_000));
    let overload = vec![false; sim.hosts.len()];
    check(&sim, &Oracle::new(&sim, &by_delay(&sim), &overload));
    sim
}

fn line(n: usize) -> Vec<(usize, usize)> {
    (1..n).map(|at| (at - 1, at)).collect()
}

/// Given a line of 30 nodes, expect routes end to end.
#[test]
fn a_line_converges() {
    let sim = settled(Sim::new(30, 1), &line(30), &[200]);
    let route = sim.hosts[0].table.route(sim.id(29)).expect("a route").clone();
    assert_eq!((route.hops, route.distance), (29, 290));
    let expected: Vec<_> = (1..30).map(|at| sim.id(at)).collect();
    assert_eq!(sim.hosts[0].table.path(sim.id(29)), Some(expected));
}

/// Given a ring of even size, expect two next hops for the opposite node and both used by flows.
#[test]
fn a_ring_converges_with_equal_cost_paths() {
    let mut edges = line(12);
    edges.push((11, 0));
    let sim = settled(Sim::new(12, 2), &edges, &[200]);
    let table = &sim.hosts[0].table;
    assert_eq!(table.route(sim.id(6)).expect("a route").next_hops.len(), 2);
    let used: BTreeSet<_> = (0..10).filter_map(|hash| table.next_hop(sim.id(6), hash)).collect();
    assert_eq!(used.len(), 2);
}

/// Given a grid with delays of four classes, expect metrics by round trip time.
#[test]
fn a_grid_with_delays_converges() {
    let (w, h) = (7, 6);
    let mut edges = Vec::new();
    for at in 0..w * h {
        if at % w + 1 < w {
            edges.push((at, at + 1));
        }
        if at + w < w * h {
            edges.push((at, at + w));
        }
    }
    let sim = settled(Sim::new(w * h, 3), &edges, &[100, 1_500, 8_000, 30_000, 80_000]);
    let metrics: BTreeSet<_> = sim.hosts[8].control.links().iter().map(|l| l.metric).collect();
    assert!(metrics.len() > 1, "{metrics:?}");
}

/// Given a full mesh, expect direct links everywhere, and a topology that shows them all.
#[test]
fn a_mesh_converges() {
    let n = 14;
    let edges: Vec<_> = (0..n).flat_map(|a| (0..a).map(move |b| (a, b))).collect();
    let sim = settled(Sim::new(n, 4), &edges, &[300]);
    let topology = sim.hosts[3].control.topology();
    assert_eq!((topology.nodes.len(), topology.edges.len()), (n, n * (n - 1)));
    assert!(sim.hosts[3].table.routes().all(|(_, route)| route.hops == 1));
}

struct Storm {
    sim: Sim,
    random: Random,
    metric: Vec<Vec<u64>>,
    overload: Vec<bool>,
}

impl Storm {
    fn new(n: usize, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let metric = (0..n).map(|_| (0..n).map(|_| 1 + random.below(6) as u64).collect()).collect();
        let mut storm = Self { sim: Sim::new(n, seed), random, metric, overload: vec![false; n] };
        for at in 0..n {
            storm.wish(at);
        }
        for at in 1..n {
            let other = storm.random.below(at);
            storm.join(at, other);
        }
        for _ in 0..n {
            storm.add_wire();
        }
        storm
    }

    /// Gives a node its metrics; dials come to nothing here, the wires are laid by hand.
    fn wish(&mut self, at: usize) {
        for to in (0..self.sim.hosts.len()).filter(|&to| to != at) {
            let spec = NeighbourSpec::Name(self.sim.hosts[to].name.clone());
            let metric = Some(self.metric[at][to] as u32);
            let now = self.sim.now;
            self.sim.hosts[at].control.connect(now, spec, metric, true).expect("room for a wish");
        }
        self.sim.drain(at);
    }

    fn join(&mut self, a: usize, b: usize) {
        self.sim.delay = us(50 + self.random.below(3_000) as u64);
        self.sim.join(a, b);
    }

    fn add_wire(&mut self) {
        let n = self.sim.hosts.len();
        let (a, b) = (self.random.below(n), self.random.below(n));
        let alive = self.sim.hosts[a].alive && self.sim.hosts[b].alive;
        if a != b && alive && self.sim.wire_between(a, b).is_none() {
            self.join(a, b);
        }
    }

    fn some_wire(&mut self) -> Option<usize> {
        let open: Vec<_> = (0..self.sim.wires.len()).filter(|&w| self.sim.wires[w].open).collect();
        (!open.is_empty()).then(|| open[self.random.below(open.len())])
    }

    fn change(&mut self) {
        let n = self.sim.hosts.len();
        let at = self.random.below(n);
        match self.random.below(16) {
            0..7 => self.add_wire(),
            7..11 => {
                if let Some(wire) = self.some_wire() {
                    self.sim.cut(wire);
                }
            }
            11 => {
                if let Some(wire) = self.some_wire() {
                    self.sim.wires[wire].silent = true;
                }
            }
            12 => {
                self.overload[at] = !self.overload[at];
                let (now, overload) = (self.sim.now, self.overload[at]);
                self.sim.hosts[at].control.set_overload(now, overload);
                self.sim.drain(at);
            }
            13 if self.sim.hosts[at].alive => {
                let target = DisconnectTarget::Node(self.sim.id(self.random.below(n)));
                let now = self.sim.now;
                self.sim.hosts[at].control.disconnect(now, &target);
                self.sim.drain(at);
                self.wish(at);
            }
            _ => self.die_or_return(at),
        }
    }

    fn die_or_return(&mut self, at: usize) {
        if !self.sim.hosts[at].alive {
            self.sim.restart(at);
            self.overload[at] = false;
            self.wish(at);
            for _ in 0..3 {
                let to = self.random.below(self.sim.hosts.len());
                if to != at && self.sim.hosts[to].alive && self.sim.wire_between(at, to).is_none() {
                    self.join(at, to);
                }
            }
            return;
        }
        if self.random.below(2) == 0 {
            let now = self.sim.now;
            self.sim.hosts[at].control.stop(now);
            self.sim.drain(at);
            self.sim.run_for(ms(20));
        }
        self.sim.kill(at);
    }

    fn rest_and_check(&mut self) {
        self.sim.run_for(ms(3_600));
        for wire in &mut self.sim.wires {
            let used = |(at, link): (usize, LinkId)| {
                self.sim.hosts[at].control.links().iter().any(|info| info.link == link)
            };
            let both = wire.ends.map(|end| wire.open && used(end));
            assert_eq!(both[0], both[1], "one end uses a wire, the other does not");
            wire.open = both[0];
        }
        let oracle = Oracle::new(&self.sim, &|a, b| self.metric[a][b], &self.overload);
        check(&self.sim, &oracle);
        for host in &mut self.sim.hosts {
            host.events.clear();
        }
    }
}

/// Given more than 2,000 random changes on graphs of 10 to 100 nodes, expect the oracle's tables after
/// each rest, no loops, equal digests, and consistent stories of events on the way.
#[test]
fn random_changes_end_in_the_oracles_tables() {
    let seed = seed(20_261_120);
    let mut changes = 0;
    for (round, n) in [10, 12, 15, 18, 22, 28, 36, 50, 100].into_iter().enumerate() {
        let mut storm = Storm::new(n, seed.wrapping_add(round as u64 * 1_000_003));
        storm.rest_and_check();
        let rests = if n < 30 { 20 } else { 16 };
        for _ in 0..rests {
            for _ in 0..1 + storm.random.below(30) {
                storm.change();
                changes += 1;
                if storm.random.below(3) == 0 {
                    let pause = us(storm.random.below(40_000) as u64);
                    storm.sim.run_for(pause);
                }
            }
            storm.rest_and_check();
        }
    }
    println!("{changes} changes");
    assert!(changes >= 2_000);
}
