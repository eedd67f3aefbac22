//! Which faults leave a route: what is broken at a time must not take the rest of the network apart.

use crate::generate::recovery;
use crate::scenario::{Fault, Scenario, TimedFault};
use crate::time::{Nanos, S};

/// After so long a link counts as stable: then the next dial is made at once.
const STABLE: Nanos = 6 * S;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Edge(usize),
    Node(usize),
    /// A node that relays nothing, and is there all the same.
    Relay(usize),
}

/// Keeps account of what is broken when.
pub(crate) struct Survival {
    broken: Vec<(Nanos, Nanos, Part)>,
    /// Nodes that are never harmed.
    spared: Vec<bool>,
}

impl Survival {
    /// Half of the nodes are never harmed, so that there are connections that must live through it all.
    pub(crate) fn new(scenario: &Scenario) -> Self {
        let spared = (0..scenario.nodes).map(|at| at % 2 == 0).collect();
        Self { broken: Vec::new(), spared }
    }

    /// Whether the network stays whole with this fault as well; if so, it counts from now on.
    pub(crate) fn survives(&mut self, scenario: &Scenario, fault: TimedFault) -> bool {
        let until = fault.at + fault.lasts + recovery(&fault);
        let part = match fault.fault {
            // What is not TCP may cost a table a second, and with it a connection.
            Fault::Disconnect(_) | Fault::Leak(..) => return false,
            Fault::Cut(edge)
            | Fault::OneWay(edge, _)
            | Fault::Reset(edge)
            | Fault::Corrupt(edge, _)
            | Fault::Loss(edge, _) => Part::Edge(edge),
            Fault::Kill(node) | Fault::PowerOff(node) | Fault::Stop(node) => Part::Node(node),
            Fault::Pause(node) if fault.harms().is_some() => Part::Node(node),
            // It keeps its links and must not lose anybody.
            Fault::Pause(node) => Part::Relay(node),
            Fault::Blink(node) => return self.blinks(scenario, fault.at, node),
            _ => return true,
        };
        if fault.harms().is_some_and(|node| self.spared[node]) {
            return false;
        }
        self.broken.retain(|(_, end, _)| *end > fault.at);
        if let Part::Node(node) | Part::Relay(node) = part
            && [Part::Node(node), Part::Relay(node)].iter().any(|p| self.is_broken(*p, fault.at))
        {
            // Two pauses in a row are a long one.
            return false;
        }
        self.broken.push((fault.at, until, part));
        // A node that is back must find more than edges that are still broken.
        let times: Vec<_> = self.broken.iter().map(|(_, end, _)| *end).chain([fault.at]).collect();
        let whole = times.into_iter().all(|at| self.is_whole(scenario, at));
        if !whole {
            self.broken.pop();
        }
        whole
    }

    /// Whether a node may lose all links at once: it has to find back before others give it up, so
    /// nothing may be broken near it, and its dials must not have failed for a while.
    fn blinks(&mut self, scenario: &Scenario, at: Nanos, node: usize) -> bool {
        let edges = scenario.edges_of(node);
        let near = |part: &Part| match part {
            Part::Edge(edge) => edges.contains(edge),
            Part::Node(other) | Part::Relay(other) => {
                edges.iter().any(|edge| scenario.edges[*edge].ends.contains(other))
            }
        };
        self.broken.retain(|(_, end, _)| *end > at);
        if self.broken.iter().any(|(_, _, part)| near(part)) {
            return false;
        }
        self.broken.extend(edges.into_iter().map(|edge| (at, at + STABLE, Part::Edge(edge))));
        if self.is_whole_without(scenario, at, node) {
            return true;
        }
        self.broken.retain(|(begin, _, _)| *begin != at);
        false
    }

    /// Whether something is broken at this time or later.
    fn is_broken(&self, part: Part, at: Nanos) -> bool {
        self.broken.iter().any(|(_, end, broken)| *broken == part && *end > at)
    }

    /// Whether all nodes that are left at this time can reach each other.
    fn is_whole(&self, scenario: &Scenario, at: Nanos) -> bool {
        self.is_whole_without(scenario, at, usize::MAX)
    }

    fn is_whole_without(&self, scenario: &Scenario, at: Nanos, gone: usize) -> bool {
        let is = |part| part == Part::Node(gone) || self.is_broken(part, at);
        let nodes: Vec<_> = (0..scenario.nodes).filter(|at| !is(Part::Node(*at))).collect();
        let relays: Vec<_> = nodes.iter().copied().filter(|at| !is(Part::Relay(*at))).collect();
        let Some(first) = relays.first() else { return false };
        let mut reached = vec![false; scenario.nodes];
        let mut open = vec![*first];
        reached[*first] = true;
        while let Some(at) = open.pop() {
            for (place, edge) in scenario.edges.iter().enumerate() {
                let other = match edge.ends {
                    [a, b] if a == at => b,
                    [a, b] if b == at => a,
                    _ => continue,
                };
                if is(Part::Edge(place)) || !nodes.contains(&other) || reached[other] {
                    continue;
                }
                reached[other] = true;
                if relays.contains(&other) {
                    open.push(other);
                }
            }
        }
        nodes.iter().all(|at| reached[*at])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::MS;

    /// Given a ring, expect that it lives without one of its edges, and not without a second one until
    /// some time after the first is back.
    #[test]
    fn a_ring_bears_one_cut() {
        let mut scenario = Scenario::new(1, 5);
        (0..5).for_each(|at| {
            scenario.edge(at, (at + 1) % 5);
        });
        let mut survival = Survival::new(&scenario);
        let cut = |at, edge| TimedFault { at, lasts: S, fault: Fault::Cut(edge) };
        assert!(survival.survives(&scenario, cut(S, 0)));
        assert!(!survival.survives(&scenario, cut(2 * S, 2)));
        assert!(survival.survives(&scenario, cut(2 * S, 0)), "the same again");
        assert!(survival.survives(&scenario, cut(20 * S, 2)));
    }

    /// Given nodes that hang on one that was killed, expect that the death of their other neighbour is
    /// refused; a pause that nobody may notice cuts nobody off.
    #[test]
    fn whoever_lives_keeps_a_way() {
        let mut scenario = Scenario::new(1, 4);
        scenario.edge(0, 1).edge(1, 2).edge(2, 3).edge(3, 0);
        let kill = |at, node| TimedFault { at, lasts: S, fault: Fault::Kill(node) };
        let pause = |at, node, lasts| TimedFault { at, lasts, fault: Fault::Pause(node) };
        let mut survival = Survival::new(&scenario);
        assert!(!survival.survives(&scenario, kill(S, 0)), "even nodes are spared");
        assert!(survival.survives(&scenario, kill(S, 1)));
        assert!(!survival.survives(&scenario, kill(S, 3)), "0 and 2 would be alone");
        assert!(!survival.survives(&scenario, pause(S, 3, 300 * MS)), "3 relays nothing");
        assert!(survival.survives(&scenario, pause(S, 0, 300 * MS)), "0 is an end");
        let cut = TimedFault { at: 3 * S, lasts: 9 * S, fault: Fault::Cut(0) };
        assert!(survival.survives(&scenario, cut), "1 is dead, and has another edge later");
        let cut = TimedFault { fault: Fault::Cut(1), ..cut };
        assert!(!survival.survives(&scenario, cut), "1 would come back to nobody");
    }
}
