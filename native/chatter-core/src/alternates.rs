//! Loop-free alternates (RFC 5286): where to send a packet at once when the link of its only next hop is
//! lost, before paths are computed again.
//!
//! A neighbour N is one for a destination D if its own shortest paths to D do not come back here:
//! d(N, D) < d(N, here) + d(here, D). Preferred is one whose paths do not meet the lost next hop P
//! either, d(N, D) < d(N, P) + d(P, D): then the death of P does no harm.

use std::collections::BinaryHeap;

use crate::ids::NodeId;
use crate::spf::{Graph, NO_SLOT, Tree, UNREACHABLE};
use crate::wire::lsp::Neighbour;

/// Neighbours that are looked at, those with the lowest metrics: each costs a run of shortest paths.
pub const MAX_CANDIDATES: usize = 8;

/// Stands for "no alternate".
pub(crate) const NONE: u32 = u32::MAX;

/// A neighbour that may become an alternate, and how far it has to everywhere.
struct Candidate {
    at: u32,
    slot: u32,
    metric: u32,
    distance: Vec<u32>,
}

impl Graph {
    /// Finds the alternate of each destination of `tree`, which is that of `root` and `first_hops`.
    /// Destinations with several next hops need none: these are each other's.
    pub fn find_alternates(&self, root: NodeId, first_hops: &[Neighbour], tree: &mut Tree) {
        let root = self.slot_of(root).unwrap_or(NO_SLOT);
        let candidates = self.candidates(first_hops);
        let slots: Vec<_> =
            first_hops.iter().map(|hop| self.slot_of(hop.id).unwrap_or(NO_SLOT)).collect();
        for to in 0..tree.distance.len() {
            if tree.distance[to] == UNREACHABLE {
                continue;
            }
            let Some(primary) = tree.only_first_hop(to) else { continue };
            let behind = tree.distance[to].saturating_sub(first_hops[primary].metric.max(1));
            let mut best = None;
            for candidate in candidates.iter().filter(|candidate| candidate.at != primary as u32) {
                let way = candidate.distance[to];
                let is_end = candidate.slot == to as u32;
                let relays = is_end || !self.is_overloaded(candidate.slot);
                let back = self.pass(root, at(&candidate.distance, root));
                if !relays || way >= back.saturating_add(tree.distance[to]) {
                    continue;
                }
                let met = at(&candidate.distance, slots[primary]).saturating_add(behind);
                let meets = slots[primary] != to as u32 && way >= met;
                let rank = (meets, way.saturating_add(candidate.metric), candidate.at);
                if best.is_none_or(|best| rank < best) {
                    best = Some(rank);
                }
            }
            tree.alternate[to] = best.map_or(NONE, |(_, _, at)| at);
        }
    }

    fn candidates(&self, first_hops: &[Neighbour]) -> Vec<Candidate> {
        let mut nearest: Vec<_> = first_hops
            .iter()
            .enumerate()
            .map(|(at, hop)| (hop.metric.max(1), at, hop.id))
            .collect();
        nearest.sort_unstable();
        nearest.truncate(MAX_CANDIDATES);
        let mut heap = BinaryHeap::with_capacity(self.len());
        let candidate = |(metric, at, id)| {
            let slot = self.slot_of(id)?;
            let mut distance = Vec::with_capacity(self.len());
            self.distances(slot, &mut distance, &mut heap);
            // The limit of links is far below 2^32.
            Some(Candidate { at: at as u32, slot, metric, distance })
        };
        nearest.into_iter().filter_map(candidate).collect()
    }
}

fn at(distance: &[u32], slot: u32) -> u32 {
    distance.get(slot as usize).copied().unwrap_or(UNREACHABLE)
}
