//! The network as the faults leave it, and what the nodes make of it.

use std::collections::BTreeMap;

use chatter_core::ids::LinkId;

use crate::check::routes::{Truth, View, Views};
use crate::scenario::Dialler;
use crate::time::{Nanos, US};
use crate::world::World;

/// The metric of a link by its round trip: see `docs/operations.md`.
fn metric_of(round_trip: Nanos) -> u64 {
    match round_trip / US {
        0..=1_000 => 10,
        1_001..=5_000 => 20,
        5_001..=20_000 => 50,
        20_001..=100_000 => 100,
        _ => 300,
    }
}

impl World {
    /// The network as it is now.
    pub fn truth(&self) -> Truth {
        let lives = |at: usize| self.hosts[at].alive && !self.hosts[at].now.paused;
        let mut links = vec![Vec::new(); self.hosts.len()];
        for edge in &self.net.edges {
            let [a, b] = edge.spec.ends;
            if edge.now.cut.contains(&true) || !lives(a) || !lives(b) {
                continue;
            }
            for (side, (from, to)) in [(a, b), (b, a)].into_iter().enumerate() {
                let dials = match edge.spec.dialler {
                    Dialler::First => side == 0,
                    Dialler::Second => side == 1,
                    Dialler::Both => true,
                };
                let by_time = metric_of(2 * edge.now.delay);
                let asked = edge.spec.metric.filter(|_| dials);
                links[from].push((to, asked.map_or(by_time, u64::from)));
            }
        }
        Truth {
            alive: (0..self.hosts.len()).map(lives).collect(),
            overload: self.hosts.iter().map(|host| host.now.draining).collect(),
            links,
        }
    }

    /// What the nodes say.
    pub fn views(&self) -> Views {
        (0..self.hosts.len()).map(|at| self.view(at)).collect()
    }

    fn view(&self, at: usize) -> BTreeMap<usize, View> {
        let host = &self.hosts[at];
        if !host.alive {
            return BTreeMap::new();
        }
        let peers: BTreeMap<LinkId, usize> =
            host.links.iter().map(|(link, entry)| (*link, self.ids[&entry.peer])).collect();
        let view = |route: &chatter_core::routes::Route| {
            let mut next: Vec<_> = route
                .next_hops
                .iter()
                .map(|l| peers.get(l).copied().unwrap_or(usize::MAX))
                .collect();
            next.sort_unstable();
            View { distance: route.distance.into(), next }
        };
        host.table.routes().map(|(id, route)| (self.ids[&id], view(route))).collect()
    }

    /// What is wrong with the routes, compared with the network as it is.
    pub fn route_violations(&self) -> Vec<(crate::check::Kind, String)> {
        self.truth().check(&self.views(), 4_000)
    }

    /// Whether every node has as many routes as there are other nodes.
    pub fn routes_are_whole(&self) -> bool {
        self.hosts.iter().all(|host| host.table.len() + 1 == self.hosts.len())
    }

    /// Bytes of all LSPs as the first node has them, with their packet headers.
    pub fn lsdb_bytes(&self) -> u64 {
        self.lsp_lens.values().map(|len| *len as u64).sum()
    }

    /// Compares routes, lives in them, and LSDBs with the network as it is.
    pub fn check_routes(&mut self) {
        let truth = self.truth();
        for (kind, what) in self.route_violations() {
            self.checker.report(kind, what);
        }
        for at in (0..self.hosts.len()).filter(|at| truth.alive[*at]) {
            for (id, route) in self.hosts[at].table.routes() {
                let peer = self.ids[&id];
                let life = self.hosts[peer].incarnation;
                if route.incarnation != life {
                    let what = format!("n{at} to n{peer}: life {}, not {life}", route.incarnation);
                    self.checker.report(crate::check::Kind::StaleLife, what);
                }
                if self.hosts[peer].control.lsdb_digest() != self.hosts[at].control.lsdb_digest() {
                    let what = format!("n{at} and n{peer}: LSDBs differ");
                    self.checker.report(crate::check::Kind::WrongRoute, what);
                }
            }
        }
    }
}
