//! Static routes: destinations for which the operator has chosen the next hop.
//!
//! One is followed while the chosen node is a neighbour that is strictly nearer to the destination than
//! this node, and relays; else the computed route counts. So every hop goes nearer, whatever other nodes have
//! chosen, and packets do not loop.

use std::collections::{BTreeMap, BinaryHeap};

use crate::ids::{LinkId, NodeId};
use crate::routes::ForwardingTable;
use crate::spf::{Graph, UNREACHABLE};
use crate::wire::lsp::Neighbour;

/// Static routes that are taken; more are ignored. Each neighbour among them costs a run of shortest
/// paths with each new table.
pub const MAX_STATIC_ROUTES: usize = 64;

/// Next hops by destination.
pub type StaticRoutes = BTreeMap<NodeId, NodeId>;

impl ForwardingTable {
    /// Follows static routes where they lead nearer.
    pub fn follow(&mut self, routes: &StaticRoutes, hops: &[(Neighbour, LinkId)], graph: &Graph) {
        let mut by_next_hop: BTreeMap<NodeId, Vec<NodeId>> = BTreeMap::new();
        for (destination, next_hop) in routes.iter().take(MAX_STATIC_ROUTES) {
            by_next_hop.entry(*next_hop).or_default().push(*destination);
        }
        let (mut distance, mut heap) = (Vec::new(), BinaryHeap::new());
        for (next_hop, destinations) in by_next_hop {
            let Ok(at) = hops.binary_search_by_key(&next_hop, |(hop, _)| hop.id) else { continue };
            let Some(slot) = graph.slot_of(next_hop) else { continue };
            graph.distances(slot, &mut distance, &mut heap);
            let drains = graph.is_overloaded(slot);
            for destination in destinations {
                if drains && destination != next_hop {
                    continue;
                }
                let to = graph.slot_of(destination).map_or(UNREACHABLE, |to| distance[to as usize]);
                self.prefer(destination, hops[at].1, to);
            }
        }
    }
}
