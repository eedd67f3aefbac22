//! Which of the nodes that were found to dial: enough for one network with a second way for everybody,
//! not a mesh.
//!
//! A node that was found is dialled when there is no route to it, or while this node has fewer links
//! than it wishes for. One at a time, drawn at random, with a random pause before: so that of many nodes
//! that find each other at the same time a few dial, and the others see that there is a route by then.
//! A node whose dial has failed is left alone for 1 s, 2 s, 4 s and so on to a minute.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;

use crate::control::throttle::jitter;
use crate::ids::NodeId;

/// A dial is given so long until the next one begins.
const PATIENCE: Duration = Duration::from_millis(1_500);

/// After a dial, so long until the next: by then all know the routes over the new link.
const SETTLE: Duration = Duration::from_millis(300);

/// The wait after the first failure, and the longest.
const RETRY: Duration = Duration::from_secs(1);
const MAX_RETRY: Duration = Duration::from_secs(60);

/// What has to be known of routes and links.
pub struct View<'a> {
    /// Whether there is a route to a node.
    pub routed: &'a dyn Fn(NodeId) -> bool,
    /// Whether there is a link to a node.
    pub linked: &'a dyn Fn(NodeId) -> bool,
    /// The links that there are.
    pub links: usize,
}

#[derive(Clone, Debug)]
struct Failure {
    until: Instant,
    count: u32,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Dials {
    /// Not before.
    pause: Option<Instant>,
    current: Option<(NodeId, Instant)>,
    failures: BTreeMap<NodeId, Failure>,
}

impl Dials {
    /// The next node to dial, among those that can be.
    pub(super) fn next(
        &mut self,
        now: Instant,
        peers: impl Iterator<Item = NodeId>,
        wished: usize,
        view: &View<'_>,
        spread: Duration,
        rng: &mut Xoshiro256PlusPlus,
    ) -> Option<NodeId> {
        if let Some((id, until)) = self.current {
            if (view.linked)(id) {
                self.failures.remove(&id);
            } else if now < until {
                return None;
            }
            self.current = None;
            self.pause = Some(now + SETTLE + spread.mul_f64(rng.random_range(0.1..1.0)));
        }
        if self.pause.is_some_and(|at| now < at) {
            return None;
        }
        self.pause = None;
        let few = view.links < wished;
        // A new link is there before the route over it.
        let wanted = |id: &NodeId| {
            !(view.linked)(*id) && (few || !(view.routed)(*id)) && self.may_dial(now, *id)
        };
        let wanted: Vec<_> = peers.filter(wanted).collect();
        let id = *wanted.get(rng.random_range(0..wanted.len().max(1)))?;
        self.current = Some((id, now + PATIENCE));
        Some(id)
    }

    /// Dials nobody before `until`, should nobody be waited for anyway.
    pub(super) fn hold_off(&mut self, until: Instant) {
        self.pause.get_or_insert(until);
    }

    pub(super) fn failed(&mut self, now: Instant, id: NodeId, rng: &mut Xoshiro256PlusPlus) {
        if self.current.is_some_and(|(current, _)| current == id) {
            self.current = None;
        }
        let failure = self.failures.entry(id).or_insert(Failure { until: now, count: 0 });
        let doubled = RETRY.saturating_mul(1 << failure.count.min(10));
        failure.count += 1;
        failure.until = now + jitter(doubled.min(MAX_RETRY), rng);
    }

    /// Whether dialling the node has not failed lately.
    pub(super) fn may_dial(&self, now: Instant, id: NodeId) -> bool {
        self.failures.get(&id).is_none_or(|failure| failure.until <= now)
    }

    /// What failed before says nothing any more.
    pub(super) fn forgive(&mut self) {
        self.failures.clear();
    }

    pub(super) fn forget(&mut self, id: NodeId) {
        self.failures.remove(&id);
    }

    /// When [`Dials::next`] may have another answer, routes and links apart.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        [self.pause, self.current.map(|(_, until)| until)].into_iter().flatten().min()
    }
}
