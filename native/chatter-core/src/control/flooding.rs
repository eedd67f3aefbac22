//! The own LSP, and passing on those of others.

use std::time::{Duration, Instant};

use super::Control;
use super::config::{ControlConfig, ms};
use super::throttle::{Budget, Throttle};
use crate::ids::{Incarnation, LinkId, NodeId};
use crate::lsdb::Install;
use crate::wire::hello::{HELLO_NAMESAKE, Hello};
use crate::wire::lsp::{Lsp, MAX_NEIGHBOURS, Neighbour};
use crate::wire::summary::Summary;

/// When the own LSP is made again.
///
/// News of a lost link does not wait for the throttle of other news: when links came up in a burst, a
/// loss is still told at once. So is a link to a node that had no route. Both have a budget of their own,
/// which comes back with time: a neighbour that dies every few seconds for ever is told of each time,
/// and one that comes and goes without a pause once a second.
#[derive(Clone, Debug)]
pub(super) struct Origination {
    seq: u64,
    /// How long good news waits for more of it.
    gather: Duration,
    /// Since when there is good news.
    good_since: Option<Instant>,
    bad_pending: bool,
    /// Somebody may wait for a way that this node has to tell of.
    awaited_pending: bool,
    good: Throttle,
    bad: Budget,
    awaited: Budget,
    refresh_at: Instant,
}

impl Origination {
    /// The first LSP is due at once.
    pub(super) fn new(config: &ControlConfig, now: Instant) -> Self {
        let [gap, _, refill] = config.originate_ms;
        let budget = Budget::new(gap, refill);
        Self {
            seq: 0,
            gather: ms(config.gather_ms),
            good_since: None,
            bad_pending: false,
            awaited_pending: false,
            good: Throttle::new(config.originate_ms, config.originate_quiet_ms),
            bad: budget.clone(),
            awaited: budget,
            refresh_at: now,
        }
    }

    /// A link is new, or something about it changed.
    pub(super) fn want_good(&mut self, now: Instant) {
        self.good_since.get_or_insert(now);
    }

    /// A link is lost.
    pub(super) fn want_bad(&mut self) {
        self.bad_pending = true;
    }

    /// A link is there that may be the only way to a node.
    fn want_awaited(&mut self) {
        self.awaited_pending = true;
    }

    /// When the next LSP is due.
    pub(super) fn next_timeout(&self, now: Instant) -> Option<Instant> {
        let good = self.good_since.map(|since| self.good.next(now).max(since + self.gather));
        let bad = self.bad_pending.then(|| self.bad.next(now));
        let awaited = self.awaited_pending.then(|| self.awaited.next(now));
        [good, bad, awaited, Some(self.refresh_at)].into_iter().flatten().min()
    }

    /// An LSP with news was made.
    fn fire(&mut self, now: Instant) {
        if self.bad_pending {
            self.bad.fire(now);
        }
        if self.awaited_pending {
            self.awaited.fire(now);
        }
        if self.good_since.is_some() || self.bad_pending || self.awaited_pending {
            self.good.fire(now);
        }
        self.bad_pending = false;
        self.awaited_pending = false;
        self.good_since = None;
    }
}

impl Control {
    pub(super) fn originate_if_due(&mut self) {
        if self.origination.next_timeout(self.now).is_some_and(|at| at <= self.now) {
            self.origination.fire(self.now);
            self.originate(false);
        }
    }

    /// Makes the own LSP again and marks it to be sent on all links.
    pub(super) fn originate(&mut self, purge: bool) {
        self.origination.seq = self.origination.seq.saturating_add(1);
        self.origination.refresh_at = self.now + self.refresh_after();
        let links = self.by_peer.iter().filter_map(|(id, link)| {
            let link = self.links.get(link).filter(|link| link.is_told())?;
            let incarnation = link.peer.incarnation;
            Some(Neighbour { id: *id, metric: link.metric(), incarnation })
        });
        let neighbours = if purge { Vec::new() } else { links.take(MAX_NEIGHBOURS).collect() };
        let lsp = Lsp {
            overload: self.overload,
            purge,
            silent: self.silent,
            lifetime_s: self.config.max_age_s,
            origin: self.me.id,
            incarnation: self.me.incarnation,
            seq: self.origination.seq,
            name: self.name.clone(),
            addresses: self.me.addresses.clone(),
            neighbours,
        };
        self.lsdb.originate(self.now, lsp);
        self.flood(self.me.id, None);
    }

    pub(super) fn hello(&mut self, link: LinkId, hello: &Hello) {
        let Some(adjacency) = self.links.get_mut(&link) else { return };
        let was = (adjacency.synced, adjacency.metric());
        let answer = adjacency.hear(self.now, hello, &self.config);
        let same = hello.lsdb_digest == self.lsdb.digest();
        let resync = adjacency.compare(self.now, same, &self.config);
        if resync {
            adjacency.send_summary(self.now, &self.config);
        }
        if answer || resync {
            self.pending.insert(link);
        }
        let synced = adjacency.synced && !was.0;
        if was != (adjacency.synced, adjacency.metric()) {
            self.first_hops_changed = true;
            self.origination.want_good(self.now);
        }
        if synced {
            self.taken_in();
            if self.nodes.has_lost() {
                // Somebody may wait for this way, and only for so long until it gives a node up.
                self.origination.want_awaited();
            }
        }
        if hello.flags & HELLO_NAMESAKE != 0 {
            self.name_clash(Incarnation(0));
        }
    }

    /// A neighbour has told what it has: it gets what is newer here.
    pub(super) fn summary(&mut self, link: LinkId, summary: &Summary) {
        let Some(adjacency) = self.links.get_mut(&link) else { return };
        for origin in self.lsdb.newer_than(summary) {
            adjacency.mark(self.me.id, origin);
        }
        if summary.last == NodeId(u64::MAX) {
            adjacency.compared();
        }
        self.pending.insert(link);
    }

    pub(super) fn lsp(&mut self, link: LinkId, lsp: Lsp) {
        let (origin, seq) = (lsp.origin, lsp.seq);
        match self.lsdb.install(self.now, lsp) {
            Install::Newer(change) => {
                self.flood(origin, Some(link));
                if let Some(lsp) = self.lsdb.get(origin).cloned() {
                    self.hear_witness(&lsp);
                }
                if change.purged || change.replaced.is_some() {
                    self.node_over(origin);
                }
                self.spf_pending |= change.graph;
                self.end_former_link(origin);
                self.check_neighbour(origin);
            }
            Install::Same => self.known_there(link, origin),
            Install::Older => self.mark(link, origin),
            Install::OwnNewer => {
                self.origination.seq = self.origination.seq.max(seq);
                self.origination.want_bad();
            }
            Install::Clash(incarnation) => self.later_life(incarnation),
            Install::Full => {}
        }
    }

    /// Drops LSPs that nobody has repeated.
    pub(super) fn expire_lsps(&mut self) {
        if !self.lsdb.expire(self.now).is_empty() {
            self.spf_pending = true;
        }
    }

    fn flood(&mut self, origin: NodeId, from: Option<LinkId>) {
        for (link, adjacency) in &mut self.links {
            if Some(*link) == from {
                adjacency.unmark(self.me.id, origin);
            } else {
                adjacency.mark(self.me.id, origin);
                self.pending.insert(*link);
            }
        }
    }

    fn mark(&mut self, link: LinkId, origin: NodeId) {
        if let Some(adjacency) = self.links.get_mut(&link) {
            adjacency.mark(self.me.id, origin);
            self.pending.insert(link);
        }
    }

    fn known_there(&mut self, link: LinkId, origin: NodeId) {
        if let Some(adjacency) = self.links.get_mut(&link) {
            adjacency.unmark(self.me.id, origin);
        }
    }
}
