//! The link-state database: the newest LSP of every node.
//!
//! It compares, stores and ages; flooding is the caller's. Newer is the larger (incarnation, seq), a
//! PURGE before others of the same seq, and at last the larger content hash, so that all nodes agree
//! whatever order they hear things in. Only the origin purges; the others let an LSP age.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::ids::{Incarnation, NodeId};
use crate::spf::Graph;
use crate::wire::lsp::Lsp;
use crate::wire::summary::{MAX_SUMMARY_ENTRIES, Summary, SummaryEntry};

/// Limits of the LSDB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LsdbLimits {
    /// LSPs held, the own one included. At the limit the LSP of a node that is not yet known is
    /// refused ([`Install::Full`]); known nodes go on.
    pub max_nodes: usize,
    /// The longest lifetime in seconds; a longer one is cut to it.
    pub max_age_s: u32,
    /// The shortest lifetime in seconds that is taken from others (shorter ones are raised to it), and
    /// the shortest that is sent: nobody can age out another node's LSP by lying.
    pub min_age_s: u32,
    /// Seconds that a PURGE is remembered, so that older LSPs still under way do not come back.
    pub purge_keep_s: u32,
}

/// What [`Lsdb::install`] did with an LSP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Install {
    /// Stored. Flood it to all links but the one it came from.
    Newer(Change),
    /// Known already. Nothing to do.
    Same,
    /// The LSDB has a newer one: send that back.
    Older,
    /// An LSP of this node in this life that is newer than its own: originate again, above its seq.
    OwnNewer,
    /// An LSP of this node's id with a later incarnation: another node has our name.
    Clash(Incarnation),
    /// Not stored: the LSDB is at [`LsdbLimits::max_nodes`].
    Full,
}

/// What a stored LSP changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Change {
    /// The graph is different: paths must be computed again.
    pub graph: bool,
    /// The origin's former life, if this LSP is of a new one.
    pub replaced: Option<Incarnation>,
    /// The origin has stopped.
    pub purged: bool,
}

#[derive(Clone, Debug)]
struct Entry {
    lsp: Arc<Lsp>,
    hash: u64,
    expires: Instant,
    /// A newer life of the origin is known, only its LSP is not here yet: keep out of the graph.
    superseded: bool,
}

impl Entry {
    fn summary(&self, origin: NodeId) -> SummaryEntry {
        let Lsp { incarnation, seq, .. } = *self.lsp;
        SummaryEntry { origin, incarnation, seq, hash: self.hash }
    }
}

/// The LSPs of all nodes, and the [`Graph`] they describe.
#[derive(Clone, Debug)]
pub struct Lsdb {
    me: NodeId,
    incarnation: Incarnation,
    limits: LsdbLimits,
    entries: BTreeMap<NodeId, Entry>,
    graph: Graph,
    digest: u64,
    refused: u64,
    /// No entry expires before this.
    next_expiry: Option<Instant>,
}

impl Lsdb {
    /// An empty database of node `me`.
    pub fn new(me: NodeId, incarnation: Incarnation, limits: LsdbLimits) -> Self {
        Self {
            me,
            incarnation,
            limits,
            entries: BTreeMap::new(),
            graph: Graph::default(),
            digest: 0,
            refused: 0,
            next_expiry: None,
        }
    }

    /// The LSP of `id`, a PURGE included.
    pub fn get(&self, id: NodeId) -> Option<&Arc<Lsp>> {
        self.entries.get(&id).map(|entry| &entry.lsp)
    }

    /// LSPs held, PURGEs included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no LSP is held.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The nodes whose LSPs are held, ascending.
    pub fn origins(&self) -> impl Iterator<Item = NodeId> {
        self.entries.keys().copied()
    }

    /// The links that both ends state.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Equal in two nodes if they hold the same LSPs, in whatever order they came; lifetimes and PURGEs
    /// do not count. The sum of the content hashes.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// LSPs refused because the database was full, since the start.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// A lower bound for the time at which [`Lsdb::expire`] has something to do.
    pub fn next_expiry(&self) -> Option<Instant> {
        self.next_expiry
    }

    /// Takes in an LSP from a link.
    pub fn install(&mut self, now: Instant, lsp: Lsp) -> Install {
        let known = self.entries.get(&lsp.origin);
        if lsp.origin == self.me && lsp.incarnation > self.incarnation {
            return Install::Clash(lsp.incarnation);
        }
        if known.is_none() && lsp.purge {
            return Install::Same;
        }
        if let Some(known) = known {
            let new_rank = (lsp.incarnation, lsp.seq, lsp.purge);
            let known_rank = (known.lsp.incarnation, known.lsp.seq, known.lsp.purge);
            if new_rank < known_rank {
                return Install::Older;
            }
            if new_rank == known_rank {
                let hash = lsp.content_hash();
                if hash == known.hash {
                    return Install::Same;
                }
                // Two LSPs under one number (a defect, or damage): all keep the same one, and the
                // origin says it again.
                if hash < known.hash && lsp.origin != self.me {
                    return Install::Older;
                }
            }
        }
        if lsp.origin == self.me {
            // Before the first own LSP nothing of a former life is worth keeping.
            let same_life = lsp.incarnation == self.incarnation;
            return if same_life { Install::OwnNewer } else { Install::Older };
        }
        if known.is_none() && self.entries.len() >= self.limits.max_nodes {
            self.refused += 1;
            return Install::Full;
        }
        Install::Newer(self.store(now, lsp))
    }

    /// This node lives another life from now on; its LSP is to be made anew.
    pub fn set_incarnation(&mut self, incarnation: Incarnation) {
        self.incarnation = incarnation;
    }

    /// Stores the own LSP, whatever it was before.
    pub fn originate(&mut self, now: Instant, lsp: Lsp) -> Change {
        self.store(now, lsp)
    }

    /// Notes that `id` is living the life `incarnation` now. Returns whether the LSP held is of an
    /// earlier one; it counts for no path any longer.
    pub fn supersede(&mut self, id: NodeId, incarnation: Incarnation) -> bool {
        let Some(entry) = self.entries.get_mut(&id) else { return false };
        if entry.lsp.incarnation >= incarnation || entry.superseded {
            return false;
        }
        entry.superseded = true;
        self.graph.remove(id);
        true
    }

    /// Drops what is too old. Returns the nodes whose LSPs went; PURGEs among them were gone before.
    pub fn expire(&mut self, now: Instant) -> Vec<NodeId> {
        if self.next_expiry.is_none_or(|at| at > now) {
            return Vec::new();
        }
        let due = |entry: &Entry| entry.expires <= now;
        let old: Vec<_> = self.entries.iter().filter(|(_, e)| due(e)).map(|(id, _)| *id).collect();
        for id in &old {
            self.remove(*id);
        }
        self.next_expiry = self.entries.values().map(|entry| entry.expires).min();
        old
    }

    /// The packet that carries the LSP of `id`, with the lifetime left at `now`. `None` if there is
    /// none, or none worth sending ([`LsdbLimits::min_age_s`]).
    pub fn packet(&self, now: Instant, id: NodeId) -> Option<Vec<u8>> {
        let entry = self.entries.get(&id)?;
        let left_s = entry.expires.saturating_duration_since(now).as_secs();
        // `expires` is at most `max_age_s` (a u32) ahead.
        let left_s = left_s.min(u64::from(u32::MAX)) as u32;
        if left_s < self.limits.min_age_s && !entry.lsp.purge {
            return None;
        }
        Some(entry.lsp.packet(left_s))
    }

    /// What is held of the origins from `first` on, in one packet.
    pub fn summary(&self, first: NodeId) -> Summary {
        let mut entries: Vec<_> = self
            .entries
            .range(first..)
            .take(MAX_SUMMARY_ENTRIES + 1)
            .map(|(origin, entry)| entry.summary(*origin))
            .collect();
        let more = entries.len() > MAX_SUMMARY_ENTRIES;
        entries.truncate(MAX_SUMMARY_ENTRIES);
        let last = entries.last().filter(|_| more).map_or(NodeId(u64::MAX), |entry| entry.origin);
        Summary { first, last, entries }
    }

    /// The origins in the range of another node's summary of which that node has no LSP, or not the
    /// one held here and not a newer one. PURGEs of what it does not have are not among them.
    pub fn newer_than(&self, summary: &Summary) -> Vec<NodeId> {
        let mut theirs = summary.entries.iter().peekable();
        let is_newer = |(origin, mine): &(&NodeId, &Entry)| {
            while theirs.next_if(|entry| entry.origin < **origin).is_some() {}
            let Some(their) = theirs.next_if(|entry| entry.origin == **origin) else {
                return !mine.lsp.purge;
            };
            let rank = (mine.lsp.incarnation, mine.lsp.seq);
            let their_rank = (their.incarnation, their.seq);
            rank > their_rank || (rank == their_rank && mine.hash != their.hash)
        };
        let range = self.entries.range(summary.first..=summary.last);
        range.filter(is_newer).map(|(origin, _)| *origin).collect()
    }

    fn remove(&mut self, id: NodeId) {
        if let Some(entry) = self.entries.remove(&id)
            && !entry.lsp.purge
        {
            self.digest = self.digest.wrapping_sub(entry.hash);
        }
        self.graph.remove(id);
    }

    fn store(&mut self, now: Instant, mut lsp: Lsp) -> Change {
        let limits = &self.limits;
        lsp.lifetime_s = match lsp.purge {
            true => limits.purge_keep_s,
            false => lsp.lifetime_s.min(limits.max_age_s).max(limits.min_age_s),
        };
        let hash = lsp.content_hash();
        let expires = now + Duration::from_secs(u64::from(lsp.lifetime_s));
        let origin = lsp.origin;
        let before = self.entries.get(&origin);
        let mut change = Change { graph: false, replaced: None, purged: lsp.purge };
        if let Some(before) = before {
            change.replaced = Some(before.lsp.incarnation).filter(|old| *old != lsp.incarnation);
            if !before.lsp.purge {
                self.digest = self.digest.wrapping_sub(before.hash);
            }
        }
        if lsp.purge {
            change.graph = self.graph.remove(origin);
        } else {
            self.digest = self.digest.wrapping_add(hash);
            change.graph = self.graph.set(origin, lsp.incarnation, lsp.overload, &lsp.neighbours);
        }
        // The name, the incarnation and the flag are part of a route.
        change.graph |= change.replaced.is_some();
        change.graph |= before
            .is_some_and(|entry| entry.lsp.name != lsp.name || entry.lsp.silent != lsp.silent);
        self.next_expiry = Some(self.next_expiry.map_or(expires, |at| at.min(expires)));
        let entry = Entry { lsp: Arc::new(lsp), hash, expires, superseded: false };
        self.entries.insert(origin, entry);
        change
    }
}
