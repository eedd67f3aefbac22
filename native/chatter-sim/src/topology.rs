//! Networks of several shapes.

use crate::rng::Random;
use crate::scenario::Scenario;

/// A shape of a network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    /// A ring with some chords.
    Ring,
    /// A grid, as square as it goes.
    Grid,
    /// A tree with some chords.
    Tree,
    /// Two full meshes with two bridges.
    Cliques,
    /// Every node has some neighbours drawn at random.
    Random,
}

/// All shapes.
pub const SHAPES: [Shape; 5] =
    [Shape::Ring, Shape::Grid, Shape::Tree, Shape::Cliques, Shape::Random];

impl Scenario {
    /// Adds the edges of a connected network.
    pub fn shape(&mut self, shape: Shape, rng: &mut Random) {
        let n = self.nodes;
        match shape {
            Shape::Ring => {
                (0..n).for_each(|at| {
                    self.edge(at, (at + 1) % n);
                });
                self.chords(n / 3, rng);
            }
            Shape::Grid => {
                let width = (1..=n).find(|width| width * width >= n).unwrap_or(1);
                for at in 0..n {
                    if at % width + 1 < width && at + 1 < n {
                        self.edge(at, at + 1);
                    }
                    if at + width < n {
                        self.edge(at, at + width);
                    }
                }
            }
            Shape::Tree => {
                for at in 1..n {
                    self.edge(rng.index(at), at);
                }
                self.chords(n / 2, rng);
            }
            Shape::Cliques => {
                let half = n / 2;
                for a in 0..n {
                    for b in 0..a {
                        if (a < half) == (b < half) {
                            self.edge(b, a);
                        }
                    }
                }
                self.edge(0, half);
                self.edge(half.saturating_sub(1), n - 1);
            }
            Shape::Random => {
                for at in 1..n {
                    self.edge(rng.index(at), at);
                }
                self.chords(n, rng);
            }
        }
    }

    fn chords(&mut self, chords: usize, rng: &mut Random) {
        for _ in 0..chords {
            let (a, b) = (rng.index(self.nodes), rng.index(self.nodes));
            self.edge(a, b);
        }
    }

    /// Gives every node at least so many edges, as far as there are nodes.
    pub fn thicken(&mut self, degree: usize, rng: &mut Random) {
        let degree = degree.min(self.nodes - 1);
        for at in 0..self.nodes {
            while self.edges.iter().filter(|edge| edge.ends.contains(&at)).count() < degree {
                let other = rng.index(self.nodes);
                self.edge(at, other);
            }
        }
    }
}
