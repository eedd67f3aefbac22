//! Whom to dial, and when again: the neighbours that this node wants links to.
//!
//! ```text
//!            due                  link up
//!  Waiting ───────► Dialling ───────────────► Linked
//!     ▲  ▲             │ failed, timed out      │ link down
//!     │  └─────────────┘                        │
//!     └─────────────────────────────────────────┘     any ──own id──► Stopped
//! ```
//!
//! A failure doubles the wait from [`DialerConfig::backoff_min`] to [`DialerConfig::backoff_max`],
//! ± 25 %; a link that was up for [`DialerConfig::stable`] starts over. A neighbour that is not
//! persistent is forgotten instead of waiting again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::rngs::Xoshiro256PlusPlus;

use crate::control::throttle::jitter;
use crate::ids::NodeId;

/// Names a wish for a link; never reused within one life.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NeighbourId(pub u32);

/// Where a wanted link leads to.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum NeighbourSpec {
    /// The node with this full name; finding its address is the caller's.
    Name(String),
    /// Whatever node answers at this host (name or address) and port.
    Address(String, u16),
}

/// Times and limits of the [`Dialer`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DialerConfig {
    /// The wait after the first failure.
    pub backoff_min: Duration,
    /// The longest wait, before the ± 25 %.
    pub backoff_max: Duration,
    /// How long a link must be up for the waits to start over.
    pub stable: Duration,
    /// How long a dial may take until it counts as failed.
    pub timeout: Duration,
    /// Wishes held. At the limit a new one is refused.
    pub max_neighbours: usize,
}

/// A wish as the getters show it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NeighbourInfo {
    /// Its name.
    pub id: NeighbourId,
    /// Where it leads to.
    pub spec: NeighbourSpec,
    /// The metric of a link to it; `None`: by round trip time.
    pub metric: Option<u32>,
    /// Whether it is dialled again.
    pub persistent: bool,
    /// What is being done about it.
    pub state: NeighbourState,
    /// Failures in a row.
    pub failures: u32,
}

/// What is being done about a wish.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NeighbourState {
    /// To be dialled at this time.
    Waiting(Instant),
    /// Being dialled; fails at this time.
    Dialling(Instant),
    /// There is a link to this node, whoever dialled it, since this time.
    Linked(NodeId, Instant),
    /// It is this node itself: never dialled again.
    Stopped,
}

#[derive(Clone, Debug)]
struct Wish {
    spec: NeighbourSpec,
    metric: Option<u32>,
    persistent: bool,
    state: NeighbourState,
    failures: u32,
    /// The node that answered last.
    learned: Option<NodeId>,
}

/// Keeps the wishes and says which to dial.
#[derive(Clone, Debug)]
pub struct Dialer {
    config: DialerConfig,
    wishes: BTreeMap<NeighbourId, Wish>,
    last_id: u32,
}

impl Dialer {
    /// A dialer that wants nothing.
    pub fn new(config: DialerConfig) -> Self {
        Self { config, wishes: BTreeMap::new(), last_id: 0 }
    }

    /// Wants a link, to be dialled at once unless `linked` says that one is up. A wish for the same
    /// `spec` is changed instead of added. `None` at [`DialerConfig::max_neighbours`].
    pub fn add(
        &mut self,
        now: Instant,
        spec: NeighbourSpec,
        metric: Option<u32>,
        persistent: bool,
        linked: Option<NodeId>,
    ) -> Option<NeighbourId> {
        if let Some((id, wish)) = self.wishes.iter_mut().find(|(_, wish)| wish.spec == spec) {
            wish.metric = metric.or(wish.metric);
            wish.persistent |= persistent;
            if let NeighbourState::Waiting(at) = &mut wish.state {
                *at = now.min(*at);
            }
            return Some(*id);
        }
        if self.wishes.len() >= self.config.max_neighbours {
            return None;
        }
        self.last_id += 1;
        let id = NeighbourId(self.last_id);
        let state =
            linked.map_or(NeighbourState::Waiting(now), |node| NeighbourState::Linked(node, now));
        let learned = linked;
        self.wishes.insert(id, Wish { spec, metric, persistent, state, failures: 0, learned });
        Some(id)
    }

    /// Gives a wish up. Returns the node that it was linked to.
    pub fn remove(&mut self, spec: &NeighbourSpec) -> Option<NodeId> {
        let (&id, wish) = self.wishes.iter().find(|(_, wish)| wish.spec == *spec)?;
        let node = match wish.state {
            NeighbourState::Linked(node, _) => Some(node),
            _ => None,
        };
        self.wishes.remove(&id);
        node
    }

    /// Gives up all wishes that `node` fulfils, or that name it.
    pub fn remove_node(&mut self, node: NodeId, name: &str) {
        self.wishes.retain(|_, wish| !wish.means(node, name));
    }

    /// The dial of `id` came to nothing.
    pub fn dial_failed(&mut self, now: Instant, id: NeighbourId, rng: &mut Xoshiro256PlusPlus) {
        let Some(wish) = self.wishes.get_mut(&id) else { return };
        if !matches!(wish.state, NeighbourState::Dialling(_)) {
            return;
        }
        if wish.persistent {
            wish.wait(now, &self.config, rng);
        } else {
            self.wishes.remove(&id);
        }
    }

    /// A link to `node` is up, dialled here for `dialled` or by the other side. Returns the metric that
    /// is wanted for it.
    pub fn link_up(
        &mut self,
        now: Instant,
        node: NodeId,
        name: &str,
        dialled: Option<NeighbourId>,
    ) -> Option<u32> {
        let mut metric = None;
        for (id, wish) in &mut self.wishes {
            if dialled == Some(*id) {
                wish.learned = Some(node);
            } else if !wish.means(node, name) {
                continue;
            }
            metric = metric.or(wish.metric);
            if !matches!(wish.state, NeighbourState::Linked(linked, _) if linked == node) {
                wish.state = NeighbourState::Linked(node, now);
            }
        }
        metric
    }

    /// The last link to `node` is down.
    pub fn link_down(&mut self, now: Instant, node: NodeId, rng: &mut Xoshiro256PlusPlus) {
        let config = self.config;
        self.wishes.retain(|_, wish| {
            let NeighbourState::Linked(linked, since) = wish.state else { return true };
            if linked != node {
                return true;
            }
            if now.saturating_duration_since(since) >= config.stable {
                wish.failures = 0;
            }
            wish.wait(now, &config, rng);
            wish.persistent
        });
    }

    /// The node at the other end of `id` is this node itself.
    pub fn stop(&mut self, id: NeighbourId) {
        if let Some(wish) = self.wishes.get_mut(&id) {
            wish.state = NeighbourState::Stopped;
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.wishes.clear();
    }

    /// The next neighbour that is due, which counts as being dialled from now on.
    pub fn poll(
        &mut self,
        now: Instant,
        rng: &mut Xoshiro256PlusPlus,
    ) -> Option<(NeighbourId, NeighbourSpec)> {
        let timed_out =
            |wish: &Wish| matches!(wish.state, NeighbourState::Dialling(at) if at <= now);
        let late: Vec<_> =
            self.wishes.iter().filter(|(_, wish)| timed_out(wish)).map(|(id, _)| *id).collect();
        for id in late {
            self.dial_failed(now, id, rng);
        }
        let is_due = |wish: &Wish| matches!(wish.state, NeighbourState::Waiting(at) if at <= now);
        let (id, wish) = self.wishes.iter_mut().find(|(_, wish)| is_due(wish))?;
        wish.state = NeighbourState::Dialling(now + self.config.timeout);
        Some((*id, wish.spec.clone()))
    }

    /// When [`Dialer::poll`] has something to do.
    pub fn next_timeout(&self) -> Option<Instant> {
        let at = |wish: &Wish| match wish.state {
            NeighbourState::Waiting(at) | NeighbourState::Dialling(at) => Some(at),
            NeighbourState::Linked(..) | NeighbourState::Stopped => None,
        };
        self.wishes.values().filter_map(at).min()
    }

    /// Where a wish leads to.
    pub fn spec(&self, id: NeighbourId) -> Option<&NeighbourSpec> {
        self.wishes.get(&id).map(|wish| &wish.spec)
    }

    /// The wishes, in the order in which they were made.
    pub fn neighbours(&self) -> impl Iterator<Item = NeighbourInfo> {
        self.wishes.iter().map(|(id, wish)| NeighbourInfo {
            id: *id,
            spec: wish.spec.clone(),
            metric: wish.metric,
            persistent: wish.persistent,
            state: wish.state,
            failures: wish.failures,
        })
    }
}

impl Wish {
    fn means(&self, node: NodeId, name: &str) -> bool {
        let named = matches!(&self.spec, NeighbourSpec::Name(wanted) if wanted == name);
        named || self.learned == Some(node)
    }

    fn wait(&mut self, now: Instant, config: &DialerConfig, rng: &mut Xoshiro256PlusPlus) {
        let doubled = config.backoff_min.saturating_mul(1 << self.failures.min(20));
        self.failures = self.failures.saturating_add(1);
        self.state = NeighbourState::Waiting(now + jitter(doubled.min(config.backoff_max), rng));
    }
}
