//! A cold start: all nodes of a large cluster start in the same moment.

use std::fmt;

use crate::check::Violation;
use crate::rng::Random;
use crate::scenario::Scenario;
use crate::time::{MS, Nanos, S};
use crate::topology::Shape;
use crate::trace::seconds;
use crate::world::World;

/// When every table has to be right.
const LIMIT: Nanos = 5 * S;

/// How many times each LSP may cross each link.
const FLOOD_LIMIT: f64 = 3.0;

/// How a cold start went.
#[derive(Clone, Debug)]
pub struct ColdStart {
    /// Nodes and links.
    pub nodes: usize,
    /// See `nodes`.
    pub links: usize,
    /// When all tables were right; `None` if they were not within 5 s.
    pub right_at: Option<Nanos>,
    /// Bytes of all LSPs of the network, once each.
    pub lsdb_bytes: u64,
    /// Bytes of LSPs that went over links.
    pub flooded_bytes: u64,
    /// What was wrong at the end.
    pub violations: Vec<Violation>,
}

impl ColdStart {
    /// How often an LSP went over a link, on average.
    pub fn flood_ratio(&self) -> f64 {
        self.flooded_bytes as f64 / (self.lsdb_bytes as f64 * self.links as f64)
    }

    /// Whether it was within the bounds.
    pub fn is_good(&self) -> bool {
        self.right_at.is_some() && self.flood_ratio() <= FLOOD_LIMIT && self.violations.is_empty()
    }
}

impl fmt::Display for ColdStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let right = self.right_at.map_or("not within 5 s".to_owned(), seconds);
        writeln!(
            f,
            "{} nodes, {} links: tables right at {}",
            self.nodes,
            self.links,
            right.trim()
        )?;
        for violation in self.violations.iter().take(5) {
            writeln!(f, "VIOLATION {violation}")?;
        }
        let (flooded, lsdb) = (self.flooded_bytes, self.lsdb_bytes);
        write!(
            f,
            "{flooded} bytes flooded = {:.2} x LSDB ({lsdb} bytes) x links",
            self.flood_ratio()
        )
    }
}

/// Starts so many nodes with about `degree` links each.
pub fn start(nodes: usize, degree: usize) -> ColdStart {
    let mut rng = Random::new(nodes as u64);
    let mut scenario = Scenario::new(nodes as u64, nodes);
    scenario.shape(Shape::Random, &mut rng);
    while scenario.edges.len() < nodes * degree {
        let (a, b) = (rng.index(nodes), rng.index(nodes));
        scenario.edge(a, b);
    }
    let links = scenario.edges.len();
    let mut world = World::new(scenario);
    let mut right_at = None;
    while right_at.is_none() && world.now() < LIMIT {
        world.run_until(world.now() + 100 * MS);
        if world.routes_are_whole() && world.route_violations().is_empty() {
            right_at = Some(world.now());
        }
    }
    world.run_until(LIMIT);
    world.check_routes();
    ColdStart {
        nodes,
        links,
        right_at,
        lsdb_bytes: world.lsdb_bytes(),
        flooded_bytes: world.counts.lsp_bytes,
        violations: world.checker.violations().to_vec(),
    }
}
