//! Nodes and connections come up and go down in turns, and none goes down without a reason.

use std::collections::BTreeMap;

use chatter_core::ids::Incarnation;

use super::delivery::LATEST;
use super::{Kind, Violations};
use crate::scenario::Promise;
use crate::time::{MS, Nanos};

/// Which lives each node's routing has told its users of.
pub(super) struct Lives {
    promise: Promise,
    /// By who says it and whom it is about.
    told: BTreeMap<(usize, usize), Incarnation>,
    /// Until when what was done to a node excuses the end of its connections.
    harmed_until: Vec<Nanos>,
    /// Until when messages to a node may be late.
    stalled_until: Vec<Nanos>,
}

impl Lives {
    pub(super) fn new(nodes: usize, promise: Promise) -> Self {
        Self {
            promise,
            told: BTreeMap::new(),
            harmed_until: vec![0; nodes],
            stalled_until: vec![0; nodes],
        }
    }

    pub(super) fn died(&mut self, at: usize) {
        self.told.retain(|(from, _), _| *from != at);
    }

    pub(super) fn harmed(&mut self, at: usize, until: Nanos) {
        self.harmed_until[at] = self.harmed_until[at].max(until);
    }

    pub(super) fn stalled(&mut self, at: usize, until: Nanos) {
        self.stalled_until[at] = self.stalled_until[at].max(until);
    }

    /// A message from a node has come, and took so long.
    pub(super) fn took(
        &mut self,
        (at, from): (usize, usize),
        (now, took): (Nanos, Nanos),
        violations: &mut Violations,
    ) {
        let (Some(harmed), Some(from_harmed)) =
            (self.harmed_until.get(at), self.harmed_until.get(from))
        else {
            return;
        };
        let excused = (*harmed).max(*from_harmed).max(self.stalled_until[at]) > now;
        if took > LATEST && self.promise == Promise::Route && !excused {
            let what = format!("n{at} from n{from}: a message took {} ms", took / MS);
            violations.report(now, Kind::Late, what);
        }
    }

    pub(super) fn node_up(
        &mut self,
        now: Nanos,
        (at, peer): (usize, usize),
        incarnation: Incarnation,
        violations: &mut Violations,
    ) {
        if let Some(former) = self.told.insert((at, peer), incarnation) {
            let what = format!("n{at}: n{peer} up, life {incarnation}, while {former} was up");
            violations.report(now, Kind::UpTwice, what);
        }
    }

    pub(super) fn node_down(
        &mut self,
        now: Nanos,
        (at, peer): (usize, usize),
        incarnation: Incarnation,
        violations: &mut Violations,
    ) {
        let former = self.told.remove(&(at, peer));
        if former != Some(incarnation) {
            let what = format!("n{at}: n{peer} down, life {incarnation}, while up was {former:?}");
            violations.report(now, Kind::DownTwice, what);
        }
        self.excused(now, (at, peer), "node", violations);
    }

    pub(super) fn down(
        &self,
        now: Nanos,
        pair: (usize, usize),
        wanted: bool,
        violations: &mut Violations,
    ) {
        if !wanted {
            self.excused(now, pair, "connection", violations);
        }
    }

    fn excused(
        &self,
        now: Nanos,
        (at, peer): (usize, usize),
        what: &str,
        violations: &mut Violations,
    ) {
        let harmed = self.harmed_until[at].max(self.harmed_until[peer]) > now;
        if self.promise == Promise::Route && !harmed {
            let what = format!("n{at}: {what} n{peer} down, and there was a route all the time");
            violations.report(now, Kind::FalseDown, what);
        }
    }
}
