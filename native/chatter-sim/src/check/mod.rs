//! What must hold, seen from outside. The checkers know what was done to the cluster and what its users
//! saw; they share no code with what they check.

mod bounds;
mod delivery;
mod lives;
pub mod routes;

use std::fmt;

use chatter_core::ids::Incarnation;

pub use delivery::Message;

use crate::scenario::Promise;
use crate::time::Nanos;
use crate::trace::seconds;
use delivery::Deliveries;
use lives::Lives;

/// Violations that are kept; a run that has so many is broken anyway.
const MAX_VIOLATIONS: usize = 50;

/// What kind of promise was broken.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// A message came after a later one.
    Swapped,
    /// A message did not come, although later ones did or the connection lives on.
    Lost,
    /// A message came twice.
    Repeated,
    /// A message is not what was sent.
    Altered,
    /// A message came when its connection was not up.
    OutsideConnection,
    /// A message of, or for, another life of a node.
    StaleLife,
    /// Messages of two connections came over one, or of one over two.
    Mixed,
    /// A connection or node came up that was up already.
    UpTwice,
    /// A connection or node went down that was not up.
    DownTwice,
    /// A connection ended between two nodes that were not harmed while there was a route.
    FalseDown,
    /// A route is not a shortest path in the network as it is.
    WrongRoute,
    /// A message took very long although there was a route.
    Late,
    /// Packets would go round.
    Loop,
    /// A bound was exceeded.
    Bound,
    /// Something did not happen in time.
    Stuck,
    /// A node could not read what another had sent.
    Malformed,
}

/// A broken promise.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// When it was noticed.
    pub at: Nanos,
    /// Its kind.
    pub kind: Kind,
    /// Who, and what.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}: {}", seconds(self.at), self.kind, self.what)
    }
}

/// The violations so far.
#[derive(Default)]
pub(crate) struct Violations(Vec<Violation>);

impl Violations {
    pub(crate) fn report(&mut self, at: Nanos, kind: Kind, what: String) {
        if self.0.len() < MAX_VIOLATIONS {
            self.0.push(Violation { at, kind, what });
        }
    }
}

/// Watches a run.
pub struct Checker {
    pub(crate) now: Nanos,
    violations: Violations,
    deliveries: Deliveries,
    lives: Lives,
}

impl Checker {
    /// A checker for so many nodes.
    pub fn new(nodes: usize, promise: Promise) -> Self {
        Self {
            now: 0,
            violations: Violations::default(),
            deliveries: Deliveries::new(nodes),
            lives: Lives::new(nodes, promise),
        }
    }

    /// What was broken so far.
    pub fn violations(&self) -> &[Violation] {
        &self.violations.0
    }

    /// Reports something that was found elsewhere.
    pub fn report(&mut self, kind: Kind, what: String) {
        self.violations.report(self.now, kind, what);
    }

    /// A node has begun a life.
    pub fn life(&mut self, at: usize, incarnation: Incarnation) {
        self.deliveries.life(at, incarnation);
    }

    /// A node's process has died: its users see nothing any more.
    pub fn died(&mut self, at: usize) {
        self.lives.died(at);
        self.deliveries.died(self.now, at, &mut self.violations);
    }

    /// Something was done to a node that excuses the end of its connections until then.
    pub fn harmed(&mut self, at: usize, until: Nanos) {
        self.lives.harmed(at, until);
    }

    /// The routing of `at` says that a node is there.
    pub fn node_up(&mut self, at: usize, peer: usize, incarnation: Incarnation) {
        self.lives.node_up(self.now, (at, peer), incarnation, &mut self.violations);
    }

    /// The routing of `at` says that a node is gone.
    pub fn node_down(&mut self, at: usize, peer: usize, incarnation: Incarnation) {
        self.lives.node_down(self.now, (at, peer), incarnation, &mut self.violations);
    }

    /// The users on `at` see `peer` (nodeup), over a connection of their own number.
    pub fn up(&mut self, at: usize, peer: usize, incarnation: Incarnation, session: u64) {
        self.deliveries.up(self.now, (at, peer), incarnation, session, &mut self.violations);
    }

    /// The users on `at` see `peer` no more (nodedown); `wanted` if a user has asked for it.
    pub fn down(&mut self, at: usize, peer: usize, session: u64, wanted: bool) {
        self.deliveries.down(self.now, (at, peer), session, &mut self.violations);
        self.lives.down(self.now, (at, peer), wanted, &mut self.violations);
    }

    /// The users have sent the next message over the connection of their number.
    pub fn sent(&mut self, session: u64) -> u64 {
        self.deliveries.sent(self.now, session)
    }

    /// The users on `at` have received a message over the connection of their number.
    pub fn delivered(&mut self, at: usize, session: u64, message: &Message) {
        self.deliveries.delivered(self.now, at, session, message, &mut self.violations);
        let took = self.deliveries.took(self.now, message);
        self.lives.took((at, message.from), (self.now, took), &mut self.violations);
    }

    /// The users on a node take nothing: until then, messages may be late.
    pub fn stalled(&mut self, at: usize, until: Nanos) {
        self.lives.stalled(at, until);
    }

    /// How many messages took how long, in steps of 10 ms; the last is for all that is longer.
    pub fn times(&self) -> &[u64] {
        self.deliveries.times()
    }

    /// A node could not read what it got from another.
    pub fn malformed(&mut self, at: usize, error: &str) {
        self.report(Kind::Malformed, format!("n{at}: {error}"));
    }

    /// The number of messages that `at` has received from `peer` over the connection that is up.
    pub fn received(&self, at: usize, peer: usize) -> Option<u64> {
        self.deliveries.received((at, peer))
    }

    /// Everything is quiet: what was sent over connections that are up has to be there.
    pub fn check_complete(&mut self) {
        self.deliveries.check_complete(self.now, &mut self.violations);
    }

    /// Reports values over their bounds.
    pub fn bound(&mut self, at: usize, what: &str, value: u64, limit: u64) {
        bounds::check(self.now, (at, what), value, limit, &mut self.violations);
    }
}
