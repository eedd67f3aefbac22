//! Which nodes are there: reachability with a hold, apart from routes and links.
//!
//! | state     | route, same life    | route, new life       | no route            | over    | hold expired |
//! |-----------|---------------------|-----------------------|---------------------|---------|--------------|
//! | (unknown) | up → Reachable      | up → Reachable        | –                   | –       | –            |
//! | Reachable | –                   | down, up → Reachable  | lost → Lost         | down    | –            |
//! | Lost      | found → Reachable   | down, up → Reachable  | –                   | down    | down         |

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::event::ControlEvent;
use crate::ids::{Incarnation, NodeId};
use crate::routes::ForwardingTable;

#[derive(Clone, Debug)]
struct Node {
    incarnation: Incarnation,
    name: Arc<str>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Reachable,
    /// Down at this time.
    Lost(Instant),
}

impl Node {
    fn is_lost(&self) -> bool {
        matches!(self.state, State::Lost(_))
    }
}

/// What happens to a node.
#[derive(Clone, Debug)]
enum Input<'a> {
    Route(Incarnation, &'a Arc<str>),
    NoRoute(Instant),
    Over,
}

/// The nodes that are up.
#[derive(Clone, Debug, Default)]
pub(super) struct Nodes {
    nodes: BTreeMap<NodeId, Node>,
    /// How many of them have no route: mostly none, and then nobody has to look.
    lost: usize,
    events: VecDeque<ControlEvent>,
}

impl Nodes {
    /// Whether the node is up and has a route.
    pub(super) fn is_reachable(&self, id: NodeId) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.state == State::Reachable)
    }

    /// Whether a node is up that has no route.
    pub(super) fn has_lost(&self) -> bool {
        self.lost > 0
    }

    /// Whether this life of the node is up, with or without a route.
    pub(super) fn is_up(&self, id: NodeId, incarnation: Incarnation) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.incarnation == incarnation)
    }

    /// Compares with a new table; nodes without a route have `hold` to get one.
    pub(super) fn update(&mut self, now: Instant, table: &ForwardingTable, hold: Duration) {
        let without: Vec<_> =
            self.nodes.keys().copied().filter(|id| table.route(*id).is_none()).collect();
        for id in without {
            self.step(id, Input::NoRoute(now + hold));
        }
        for id in table.nodes() {
            if let Some(route) = table.route(id) {
                self.step(id, Input::Route(route.incarnation, &route.name));
            }
        }
    }

    /// This life of the node is over, whatever the routes say.
    pub(super) fn over(&mut self, id: NodeId) {
        self.step(id, Input::Over);
    }

    /// All are over.
    pub(super) fn all_over(&mut self) {
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.over(id);
        }
    }

    /// Ends the holds that have run out.
    pub(super) fn expire(&mut self, now: Instant) {
        if self.lost == 0 {
            return;
        }
        let expired = |node: &Node| matches!(node.state, State::Lost(at) if at <= now);
        let ids: Vec<_> =
            self.nodes.iter().filter(|(_, node)| expired(node)).map(|(id, _)| *id).collect();
        for id in ids {
            self.over(id);
        }
    }

    /// This process was held up for so long: that time does not count. Nobody gets more than the whole
    /// `hold` from `now` on: some were lost only when it was over.
    pub(super) fn forgive(&mut self, now: Instant, late: Duration, hold: Duration) {
        for node in self.nodes.values_mut() {
            if let State::Lost(at) = &mut node.state {
                *at = (*at + late).min(now + hold);
            }
        }
    }

    /// When [`Nodes::expire`] has something to do.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        if self.lost == 0 {
            return None;
        }
        let at = |node: &Node| match node.state {
            State::Lost(at) => Some(at),
            State::Reachable => None,
        };
        self.nodes.values().filter_map(at).min()
    }

    /// What there is to tell, to be taken out.
    pub(super) fn events(&mut self) -> &mut VecDeque<ControlEvent> {
        &mut self.events
    }

    fn step(&mut self, id: NodeId, input: Input<'_>) {
        let known = self.nodes.get(&id).map(|node| (node.state, node.incarnation));
        match (known, input) {
            (None, Input::Route(incarnation, name)) => self.up(id, incarnation, name),
            (None, Input::NoRoute(_) | Input::Over) => {}
            (Some((state, old)), Input::Route(new, name)) if old == new => {
                if state != State::Reachable {
                    self.set(id, State::Reachable);
                    self.events.push_back(ControlEvent::NodeFound { id });
                }
                self.rename(id, name);
            }
            (Some(_), Input::Route(incarnation, name)) => {
                self.down(id);
                self.up(id, incarnation, name);
            }
            (Some((State::Reachable, _)), Input::NoRoute(until)) => {
                self.set(id, State::Lost(until));
                self.events.push_back(ControlEvent::NodeLost { id });
            }
            (Some((State::Lost(_), _)), Input::NoRoute(_)) => {}
            (Some(_), Input::Over) => self.down(id),
        }
    }

    fn set(&mut self, id: NodeId, state: State) {
        if let Some(node) = self.nodes.get_mut(&id) {
            self.lost -= usize::from(node.is_lost());
            node.state = state;
            self.lost += usize::from(node.is_lost());
        }
    }

    fn rename(&mut self, id: NodeId, name: &Arc<str>) {
        if let Some(node) = self.nodes.get_mut(&id).filter(|node| node.name != *name) {
            let former = std::mem::replace(&mut node.name, Arc::clone(name));
            let name = Arc::clone(name);
            self.events.push_back(ControlEvent::NodeNamed { id, former, name });
        }
    }

    fn up(&mut self, id: NodeId, incarnation: Incarnation, name: &Arc<str>) {
        let node = Node { incarnation, name: Arc::clone(name), state: State::Reachable };
        self.nodes.insert(id, node);
        let name = Arc::clone(name);
        self.events.push_back(ControlEvent::NodeUp { id, incarnation, name });
    }

    fn down(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.remove(&id) {
            self.lost -= usize::from(node.is_lost());
            let Node { incarnation, name, .. } = node;
            self.events.push_back(ControlEvent::NodeDown { id, incarnation, name });
        }
    }
}
