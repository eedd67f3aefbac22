//! The forwarding table: what the data plane knows about the network.
//!
//! Immutable. The control plane publishes a new one as an `Arc` whenever paths change; readers hold the
//! one they took for as long as they like.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;

use crate::ids::{Incarnation, LinkId, NodeId};
use crate::lsdb::Lsdb;
use crate::spf::Tree;
use crate::wire::lsp::Neighbour;

/// How to reach one destination.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    /// The links of equally short paths, ascending; never empty.
    pub next_hops: Vec<LinkId>,
    /// The link to a loop-free alternate (RFC 5286), for when the only next hop is lost: packets on it
    /// do not come back. `None` if there is none, or if there are several next hops.
    pub alternate: Option<LinkId>,
    /// Sum of the metrics on the way.
    pub distance: u32,
    /// Links on the way, on the path with the fewest.
    pub hops: u32,
    /// The destination's life that the route leads to.
    pub incarnation: Incarnation,
    /// The destination's full name; may be empty.
    pub name: Arc<str>,
    /// Whether the destination says that its user shows no life: it relays, but nobody is at home.
    pub silent: bool,
    /// The last node before the destination; `None` for a direct link.
    pub parent: Option<NodeId>,
    /// Differs when the set of shortest paths differs.
    pub(crate) shape: u64,
}

/// Routes to all nodes that can be reached from here.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ForwardingTable {
    routes: HashMap<NodeId, Route, BuildHasherDefault<IdHasher>>,
    names: HashMap<Arc<str>, NodeId, BuildHasherDefault<std::hash::DefaultHasher>>,
    /// The neighbours with a usable link, ascending.
    neighbours: Vec<(NodeId, LinkId)>,
    /// Bit b of row a: neighbour a states a link to neighbour b.
    stated: Vec<u64>,
}

impl ForwardingTable {
    /// The routes of `me` over its own links: neighbours and the links to them.
    pub fn compute(me: NodeId, hops: &[(Neighbour, LinkId)], lsdb: &Lsdb) -> Self {
        let neighbours: Vec<_> = hops.iter().map(|(neighbour, _)| *neighbour).collect();
        let links: Vec<_> = hops.iter().map(|(_, link)| *link).collect();
        let mut tree = lsdb.graph().shortest_paths(me, &neighbours);
        lsdb.graph().find_alternates(me, &neighbours, &mut tree);
        let mut table = Self::new(&tree, &links, lsdb);
        table.neighbours = hops.iter().map(|(neighbour, link)| (neighbour.id, *link)).collect();
        table.stated = stated(&table.neighbours, lsdb);
        table
    }

    /// Makes the table of a run of shortest paths; `links[i]` is the link to the i-th first hop.
    fn new(tree: &Tree, links: &[LinkId], lsdb: &Lsdb) -> Self {
        let mut table = Self::default();
        table.routes.reserve(lsdb.len());
        for reached in tree.reached() {
            let Some(lsp) = lsdb.get(reached.id) else { continue };
            let mut next_hops: Vec<_> =
                reached.first_hops().filter_map(|at| links.get(at).copied()).collect();
            next_hops.sort_unstable();
            let alternate = reached.alternate.and_then(|at| links.get(at).copied());
            let route = Route {
                next_hops,
                alternate,
                distance: reached.distance,
                hops: reached.hops,
                incarnation: lsp.incarnation,
                name: Arc::clone(&lsp.name),
                silent: lsp.silent,
                parent: reached.parent,
                shape: reached.shape,
            };
            if !lsp.name.is_empty() {
                let id = table.names.entry(Arc::clone(&lsp.name)).or_insert(reached.id);
                *id = reached.id.min(*id);
            }
            table.routes.insert(reached.id, route);
        }
        table
    }

    /// The route to `dst`; `None` if it cannot be reached, and for this node itself.
    pub fn route(&self, dst: NodeId) -> Option<&Route> {
        self.routes.get(&dst)
    }

    /// Sends what is for `dst` over a link, if the neighbour there is `nearer` to it than this node.
    pub(crate) fn prefer(&mut self, dst: NodeId, link: LinkId, nearer: u32) {
        let Some(route) = self.routes.get_mut(&dst).filter(|route| nearer < route.distance) else {
            return;
        };
        if route.next_hops != [link] {
            let computed = route.next_hops.iter().find(|hop| **hop != link).copied();
            route.alternate = computed.or(route.alternate);
            route.next_hops = vec![link];
        }
    }

    /// The link for a packet to `dst`. Of equally short ones, `flow_hash` chooses, so that a flow stays
    /// on one path.
    pub fn next_hop(&self, dst: NodeId, flow_hash: u64) -> Option<LinkId> {
        self.next_hops(dst, flow_hash).next()
    }

    /// The links for a packet to `dst` in the order in which to try them, should some be lost already:
    /// the one that `flow_hash` chooses, those that are equally short, the alternate.
    pub fn next_hops(&self, dst: NodeId, flow_hash: u64) -> impl Iterator<Item = LinkId> {
        let alternate = self.routes.get(&dst).and_then(|route| route.alternate);
        self.equal_hops(dst, flow_hash).chain(alternate)
    }

    /// The links of the equally short ways to `dst`, that first which `flow_hash` chooses.
    pub fn equal_hops(&self, dst: NodeId, flow_hash: u64) -> impl Iterator<Item = LinkId> {
        let links = self.routes.get(&dst).map_or(&[][..], |route| route.next_hops.as_slice());
        let first = match links.len() {
            0 | 1 => 0,
            several => (flow_hash % several as u64) as usize,
        };
        links[first..].iter().chain(&links[..first]).copied()
    }

    /// The link to a neighbour, if it is in use.
    pub fn link_to(&self, neighbour: NodeId) -> Option<LinkId> {
        self.neighbour(neighbour).map(|at| self.neighbours[at].1)
    }

    /// Whether two neighbours of this node are also linked with each other, as both state.
    pub fn are_linked(&self, a: NodeId, b: NodeId) -> bool {
        let (Some(a), Some(b)) = (self.neighbour(a), self.neighbour(b)) else { return false };
        let row = row_len(self.neighbours.len());
        let states = |a: usize, b: usize| self.stated[a * row + b / 64] >> (b % 64) & 1 == 1;
        states(a, b) && states(b, a)
    }

    /// The neighbour through which `dst` is reached: of equally short ways always the same one, so that
    /// the ways to several destinations are a tree.
    pub fn first_hop(&self, dst: NodeId) -> Option<NodeId> {
        let mut at = dst;
        let mut route = self.routes.get(&at)?;
        if let [only] = route.next_hops[..] {
            return self.neighbours.iter().find(|(_, link)| *link == only).map(|(id, _)| *id);
        }
        for _ in 0..=self.routes.len() {
            let Some(parent) = route.parent else { return Some(at) };
            at = parent;
            route = self.routes.get(&at)?;
        }
        None
    }

    fn neighbour(&self, id: NodeId) -> Option<usize> {
        self.neighbours.binary_search_by_key(&id, |(neighbour, _)| *neighbour).ok()
    }

    /// The nodes on a shortest path from here to `dst`, which comes last; this node is left out.
    pub fn path(&self, dst: NodeId) -> Option<Vec<NodeId>> {
        let mut path = vec![dst];
        let mut route = self.routes.get(&dst)?;
        while let Some(parent) = route.parent {
            if path.len() > self.routes.len() {
                return None;
            }
            path.push(parent);
            route = self.routes.get(&parent)?;
        }
        path.reverse();
        Some(path)
    }

    /// The id of a reachable node with this full name; the lowest, should there be several.
    pub fn id_of(&self, name: &str) -> Option<NodeId> {
        self.names.get(name).copied()
    }

    /// The nodes that can be reached, ascending.
    pub fn nodes(&self) -> Vec<NodeId> {
        let mut nodes: Vec<_> = self.routes.keys().copied().collect();
        nodes.sort_unstable();
        nodes
    }

    /// All routes, in no particular order.
    pub fn routes(&self) -> impl Iterator<Item = (NodeId, &Route)> {
        self.routes.iter().map(|(id, route)| (*id, route))
    }

    /// How many nodes can be reached.
    pub fn len(&self) -> usize {
        self.routes.len()
    }

    /// Whether no node can be reached.
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }
}

/// Words of a row in `ForwardingTable::stated`.
fn row_len(neighbours: usize) -> usize {
    neighbours.div_ceil(64)
}

fn stated(neighbours: &[(NodeId, LinkId)], lsdb: &Lsdb) -> Vec<u64> {
    let row = row_len(neighbours.len());
    let mut stated = vec![0; row * neighbours.len()];
    for (a, (id, _)) in neighbours.iter().enumerate() {
        let Some(lsp) = lsdb.get(*id) else { continue };
        let mut at = 0;
        for other in &lsp.neighbours {
            // Both are in ascending order.
            while neighbours.get(at).is_some_and(|(id, _)| *id < other.id) {
                at += 1;
            }
            if neighbours.get(at).is_some_and(|(id, _)| *id == other.id) {
                stated[a * row + at / 64] |= 1 << (at % 64);
            }
        }
    }
    stated
}

/// Hashes a [`NodeId`], which is a hash already. Somebody who could choose ids to collide has the
/// cluster key, and the LSDB limits how many there are.
#[derive(Clone, Copy, Debug, Default)]
pub struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn write_u64(&mut self, id: u64) {
        self.0 = (self.0 ^ id).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
    }
}

/// The network as the LSDB has it: what `topology` commands show.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Topology {
    /// Nodes by id with what they say about themselves; this node included.
    pub nodes: BTreeMap<NodeId, TopologyNode>,
    /// Directed links that both ends state: from, to, metric of `from`. Ascending.
    pub edges: Vec<(NodeId, NodeId, u32)>,
}

/// A node in a [`Topology`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TopologyNode {
    /// Its full name; may be empty.
    pub name: Arc<str>,
    /// Its life.
    pub incarnation: Incarnation,
    /// It relays only where there is no other way.
    pub overload: bool,
    /// Where it can be dialled.
    pub addresses: Vec<SocketAddr>,
}

impl Topology {
    /// Reads the LSDB.
    pub(crate) fn new(lsdb: &Lsdb) -> Self {
        let describe = |id| {
            let lsp = lsdb.get(id)?;
            let name = Arc::clone(&lsp.name);
            let node = TopologyNode {
                name,
                incarnation: lsp.incarnation,
                overload: lsp.overload,
                addresses: lsp.addresses.clone(),
            };
            Some((id, node))
        };
        let nodes = lsdb.graph().nodes().filter_map(describe).collect();
        let mut edges: Vec<_> = lsdb.graph().edges().collect();
        edges.sort_unstable();
        Self { nodes, edges }
    }
}
