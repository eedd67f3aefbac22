//! Shortest paths: the graph of the network, and Dijkstra's algorithm over it.
//!
//! The [`Graph`] is kept up to date LSP by LSP and holds only links that both ends list, so that a run
//! touches nothing but integers. Metrics are at least 1, which makes every next hop of a destination
//! strictly nearer to it: following next hops cannot loop while all nodes have the same graph.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use crate::alternates::NONE;
use crate::ids::{Incarnation, NodeId};
use crate::wire::lsp::Neighbour;

/// The distance of what cannot be reached. Sums saturate here, so a path this long is no path.
pub const UNREACHABLE: u32 = u32::MAX;

/// What passing through an overloaded node costs beside the metrics: more than any way around it, which
/// is up to 2^16 a hop. So it is passed through only where there is no other way, and nobody is cut off.
pub const OVERLOAD_COST: u32 = 1 << 24;

/// Stands for the root, or a node that is not in the graph, where a slot is expected.
pub(crate) const NO_SLOT: u32 = u32::MAX;

/// The nodes that have stated their links, and the links that both ends stated.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    index: BTreeMap<NodeId, u32>,
    slots: Vec<Slot>,
    free: Vec<u32>,
}

#[derive(Clone, Debug)]
struct Slot {
    id: NodeId,
    incarnation: Incarnation,
    overload: bool,
    stated: Vec<Neighbour>,
    edges: Vec<Edge>,
}

impl Slot {
    /// The metric of the stated link to this life of a node.
    fn stated_for(&self, id: NodeId, incarnation: Incarnation) -> Option<u32> {
        let at = self.stated.binary_search_by_key(&id, |neighbour| neighbour.id).ok()?;
        let neighbour = self.stated[at];
        (neighbour.incarnation == incarnation).then_some(neighbour.metric)
    }

    /// The distance of a node behind this one, without the metric of the link to it.
    #[inline]
    fn pass(&self, distance: u32) -> u32 {
        if self.overload { distance.saturating_add(OVERLOAD_COST) } else { distance }
    }
}

#[derive(Clone, Copy, Debug)]
struct Edge {
    to: u32,
    metric: u32,
}

impl Graph {
    /// Replaces what `id` states in its life `incarnation`. `neighbours` must be ascending by id, as in
    /// an LSP. Returns whether anything has changed.
    pub fn set(
        &mut self,
        id: NodeId,
        incarnation: Incarnation,
        overload: bool,
        neighbours: &[Neighbour],
    ) -> bool {
        let at = match self.index.get(&id) {
            Some(&at) => at,
            None => self.add_slot(id),
        };
        let slot = &mut self.slots[at as usize];
        let same_overload = std::mem::replace(&mut slot.overload, overload) == overload;
        let same_life = std::mem::replace(&mut slot.incarnation, incarnation) == incarnation;
        if same_life && slot.stated == neighbours {
            return !same_overload;
        }
        slot.stated = neighbours.to_vec();
        self.unlink(at);
        for neighbour in neighbours {
            self.link(at, *neighbour);
        }
        true
    }

    /// Forgets `id` and its links. Returns whether it was there.
    pub fn remove(&mut self, id: NodeId) -> bool {
        let Some(at) = self.index.remove(&id) else { return false };
        self.unlink(at);
        self.slots[at as usize].stated.clear();
        self.free.push(at);
        true
    }

    /// The nodes, ascending.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> {
        self.index.keys().copied()
    }

    /// The directed links that both ends state, with the metric of the first end; ascending by it.
    pub fn edges(&self) -> impl Iterator<Item = (NodeId, NodeId, u32)> {
        self.index.values().flat_map(|&at| {
            let slot = &self.slots[at as usize];
            slot.edges.iter().map(|e| (slot.id, self.slots[e.to as usize].id, e.metric))
        })
    }

    /// Whether `id` states a link to this life of `neighbour`; the other end need not.
    pub fn states_link(&self, id: NodeId, neighbour: NodeId, incarnation: Incarnation) -> bool {
        let slot = self.index.get(&id).map(|&at| &self.slots[at as usize]);
        slot.and_then(|slot| slot.stated_for(neighbour, incarnation)).is_some()
    }

    /// Shortest paths from `root` over its own links `first_hops`, which replace what the graph says
    /// about the root's links. First hops that are not in the graph are skipped.
    ///
    /// Overloaded nodes are reached as ever, and passed through at [`OVERLOAD_COST`] each.
    pub fn shortest_paths(&self, root: NodeId, first_hops: &[Neighbour]) -> Tree {
        let mut run = Run::new(self, first_hops.len());
        if let Some(&at) = self.index.get(&root) {
            run.tree.distance[at as usize] = 0;
        }
        for (bit, hop) in first_hops.iter().enumerate() {
            let Some(&to) = self.index.get(&hop.id) else { continue };
            run.relax_first_hop(to, hop.metric, bit);
        }
        run.drain();
        let mut tree = run.tree;
        if let Some(&at) = self.index.get(&root) {
            tree.distance[at as usize] = UNREACHABLE;
        }
        tree.ids = self.slots.iter().map(|slot| slot.id).collect();
        tree
    }

    /// The slots' distances from a node over its own links, into `distance`. Faster than
    /// [`Graph::shortest_paths`]: nothing else is found out.
    pub(crate) fn distances(
        &self,
        from: u32,
        distance: &mut Vec<u32>,
        heap: &mut BinaryHeap<Reverse<u64>>,
    ) {
        distance.clear();
        distance.resize(self.slots.len(), UNREACHABLE);
        distance[from as usize] = 0;
        heap.clear();
        heap.push(Reverse(u64::from(from)));
        while let Some(Reverse(key)) = heap.pop() {
            let (at, slot) = ((key >> 32) as u32, &self.slots[key as u32 as usize]);
            if at != distance[key as u32 as usize] {
                continue;
            }
            let at = if key as u32 == from { at } else { slot.pass(at) };
            for edge in &slot.edges {
                let reach = at.saturating_add(edge.metric);
                if reach < distance[edge.to as usize] {
                    distance[edge.to as usize] = reach;
                    heap.push(Reverse(u64::from(reach) << 32 | u64::from(edge.to)));
                }
            }
        }
    }

    /// Slots, used or not.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn slot_of(&self, id: NodeId) -> Option<u32> {
        self.index.get(&id).copied()
    }

    pub(crate) fn is_overloaded(&self, slot: u32) -> bool {
        self.slots.get(slot as usize).is_some_and(|slot| slot.overload)
    }

    /// The distance of what is behind a node at that distance.
    pub(crate) fn pass(&self, slot: u32, distance: u32) -> u32 {
        self.slots.get(slot as usize).map_or(distance, |slot| slot.pass(distance))
    }

    fn add_slot(&mut self, id: NodeId) -> u32 {
        // An incarnation of 0 and no links: `set` fills it in.
        let incarnation = Incarnation(0);
        let slot = Slot { id, incarnation, overload: false, stated: Vec::new(), edges: Vec::new() };
        let at = match self.free.pop() {
            Some(at) => {
                self.slots[at as usize] = slot;
                at
            }
            None => {
                self.slots.push(slot);
                // The LSDB's limit is far below 2^32.
                (self.slots.len() - 1) as u32
            }
        };
        self.index.insert(id, at);
        at
    }

    /// Adds both directions of a link if both ends state it, in their present lives.
    fn link(&mut self, at: u32, neighbour: Neighbour) {
        let Some(&other) = self.index.get(&neighbour.id) else { return };
        let (near, far) = (&self.slots[at as usize], &self.slots[other as usize]);
        if neighbour.incarnation != far.incarnation {
            return;
        }
        let Some(back_metric) = far.stated_for(near.id, near.incarnation) else { return };
        self.slots[at as usize].edges.push(Edge { to: other, metric: neighbour.metric });
        self.slots[other as usize].edges.push(Edge { to: at, metric: back_metric });
    }

    fn unlink(&mut self, at: u32) {
        for edge in std::mem::take(&mut self.slots[at as usize].edges) {
            self.slots[edge.to as usize].edges.retain(|back| back.to != at);
        }
    }
}

/// The answer of a run, by slot; read it through [`Tree::reached`].
#[derive(Clone, Debug)]
pub struct Tree {
    ids: Vec<NodeId>,
    pub(crate) distance: Vec<u32>,
    pub(crate) alternate: Vec<u32>,
    hops: Vec<u32>,
    parent: Vec<u32>,
    shape: Vec<u64>,
    masks: Vec<u64>,
    words: usize,
}

/// What a run found out about one destination.
#[derive(Clone, Copy, Debug)]
pub struct Reached<'a> {
    /// The destination.
    pub id: NodeId,
    /// Sum of the metrics on the way.
    pub distance: u32,
    /// Links on the shortest of the equal-cost paths.
    pub hops: u32,
    /// The last node before the destination on such a path; `None` for a direct link.
    pub parent: Option<NodeId>,
    /// Differs when the set of shortest paths to the destination differs.
    pub shape: u64,
    /// Position in `first_hops` of the loop-free alternate, if there is one and
    /// [`Graph::find_alternates`] was asked.
    pub alternate: Option<usize>,
    mask: &'a [u64],
}

impl Reached<'_> {
    /// Positions in `first_hops` of all first hops on shortest paths, ascending.
    pub fn first_hops(&self) -> impl Iterator<Item = usize> {
        self.mask.iter().enumerate().flat_map(|(word, &bits)| {
            (0..64).filter(move |bit| bits & (1 << bit) != 0).map(move |bit| word * 64 + bit)
        })
    }
}

impl Tree {
    /// The first hop to a slot that is reached, if there is but one.
    pub(crate) fn only_first_hop(&self, slot: usize) -> Option<usize> {
        let mask = &self.masks[slot * self.words..(slot + 1) * self.words];
        if mask.iter().map(|bits| bits.count_ones()).sum::<u32>() != 1 {
            return None;
        }
        let word = mask.iter().position(|bits| *bits != 0)?;
        Some(word * 64 + mask[word].trailing_zeros() as usize)
    }

    /// Every destination that can be reached, in no particular order; the root is not among them.
    pub fn reached(&self) -> impl Iterator<Item = Reached<'_>> {
        (0..self.ids.len()).filter(|&at| self.distance[at] != UNREACHABLE).map(|at| Reached {
            id: self.ids[at],
            distance: self.distance[at],
            hops: self.hops[at],
            parent: self.ids.get(self.parent[at] as usize).copied(),
            shape: self.shape[at],
            alternate: Some(self.alternate[at] as usize).filter(|at| *at != NONE as usize),
            mask: &self.masks[at * self.words..(at + 1) * self.words],
        })
    }
}

struct Run<'a> {
    graph: &'a Graph,
    heap: BinaryHeap<Reverse<u64>>,
    tree: Tree,
}

impl<'a> Run<'a> {
    fn new(graph: &'a Graph, first_hops: usize) -> Self {
        let nodes = graph.slots.len();
        let words = first_hops.div_ceil(64).max(1);
        let tree = Tree {
            ids: Vec::new(),
            distance: vec![UNREACHABLE; nodes],
            alternate: vec![NONE; nodes],
            hops: vec![0; nodes],
            parent: vec![NO_SLOT; nodes],
            shape: vec![0; nodes],
            masks: vec![0; nodes * words],
            words,
        };
        Self { graph, heap: BinaryHeap::with_capacity(nodes), tree }
    }

    fn relax_first_hop(&mut self, to: u32, metric: u32, bit: usize) {
        if self.improve(to, metric.max(1), NO_SLOT, 1, 0) {
            let words = self.tree.words;
            self.tree.masks[to as usize * words + bit / 64] |= 1 << (bit % 64);
        }
    }

    fn drain(&mut self) {
        let words = self.tree.words;
        while let Some(Reverse(key)) = self.heap.pop() {
            let (distance, from) = ((key >> 32) as u32, key as u32);
            let slot = &self.graph.slots[from as usize];
            if distance != self.tree.distance[from as usize] {
                continue;
            }
            let distance = slot.pass(distance);
            let hops = self.tree.hops[from as usize] + 1;
            let shape = mix(self.tree.shape[from as usize] ^ slot.id.0);
            for edge in &slot.edges {
                let reach = distance.saturating_add(edge.metric);
                if self.improve(edge.to, reach, from, hops, shape) {
                    let (from_at, to_at) = (from as usize * words, edge.to as usize * words);
                    for word in 0..words {
                        self.tree.masks[to_at + word] |= self.tree.masks[from_at + word];
                    }
                }
            }
        }
    }

    /// Notes a way to `to` unless a shorter one is known; returns whether it is among the shortest.
    /// All equally short ways are noted before `to` itself is popped, because metrics are at least 1.
    #[inline]
    fn improve(&mut self, to: u32, reach: u32, from: u32, hops: u32, shape: u64) -> bool {
        let at = to as usize;
        let tree = &mut self.tree;
        if reach > tree.distance[at] || reach == UNREACHABLE {
            return false;
        }
        if reach < tree.distance[at] {
            tree.distance[at] = reach;
            tree.hops[at] = hops;
            tree.parent[at] = from;
            tree.shape[at] = shape;
            tree.masks[at * tree.words..(at + 1) * tree.words].fill(0);
            self.heap.push(Reverse(u64::from(reach) << 32 | u64::from(to)));
            return true;
        }
        tree.shape[at] = tree.shape[at].wrapping_add(shape);
        let nearer = hops < tree.hops[at];
        if nearer || (hops == tree.hops[at] && self.graph.is_lower(from, tree.parent[at])) {
            tree.hops[at] = hops;
            tree.parent[at] = from;
        }
        true
    }
}

impl Graph {
    /// Orders parents, so that ties do not depend on the order in which LSPs came in.
    fn is_lower(&self, a: u32, b: u32) -> bool {
        match (self.slots.get(a as usize), self.slots.get(b as usize)) {
            (Some(a), Some(b)) => a.id < b.id,
            (None, Some(_)) => true,
            (Some(_) | None, None) => false,
        }
    }
}

/// Scatters a number over all bits (the finaliser of SplitMix64).
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
