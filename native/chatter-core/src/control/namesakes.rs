//! Several lives of one node id: a restart whose former life is not over yet for all, a clock that was set
//! back, or two nodes with one name.
//!
//! A node that lives is told by its neighbours, whose LSPs state a link to that life. So a link from
//! another life of a node that has a link or a route here is refused (BYE, CLASH) for as long: who was
//! there first stays. After a restart that lasts until its neighbours have noticed the end; when it
//! does not end, two nodes have one name, and all who know are told.
//!
//! An LSP of this node's own id and of a later life, to which nobody states a link, is left over from a
//! former life that had the later clock: this node is reborn above it. With links to it, it is a
//! namesake beyond a cut that has healed; the later life keeps the name.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Control;
use super::config::ms;
use super::event::{CloseReason, ControlEvent, LinkUp};
use crate::ids::{Incarnation, LinkId, NodeId};
use crate::wire::hello::ByeReason;
use crate::wire::lsp::Lsp;

/// Refused lives that are remembered, one for each node; more are refused and not told of.
const MAX_REFUSED: usize = 64;

/// A life that has not tried again for so many hold times is forgotten.
const FORGET_HOLDS: u32 = 15;

/// Two lives that are seen for so many hold times are two nodes: the neighbours of one that ended have
/// noticed after one, and told all after two.
const PROOF_HOLDS: u32 = 3;

/// What speaks for other lives.
#[derive(Clone, Debug, Default)]
pub(super) struct Namesakes {
    /// The latest life of this node's id of which an LSP was heard, if later than this one.
    later: Option<Incarnation>,
    /// Nodes that state a link to another life of this node's id.
    witnesses: BTreeMap<NodeId, Incarnation>,
    /// Since when there is one of both.
    since: Option<Instant>,
    check_at: Option<Instant>,
    /// Since when this life is refused by others.
    refused_since: Option<Instant>,
    /// Lives of others that are refused here.
    refused: BTreeMap<NodeId, Refused>,
    /// It was reported that this node's name is taken; once until a neighbour has taken it in.
    told: bool,
}

#[derive(Clone, Copy, Debug)]
struct Refused {
    incarnation: Incarnation,
    first: Instant,
    last: Instant,
    told: bool,
}

impl Namesakes {
    /// When [`Control::check_namesakes`] has something to do.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.check_at
    }
}

impl Control {
    /// Whether the link is from another life of a node that lives, as far as is known here: then it is
    /// refused.
    pub(super) fn refuse_other_life(&mut self, up: &LinkUp) -> bool {
        let (peer, life) = (up.peer.id, up.peer.incarnation);
        let linked = self.by_peer.get(&peer).and_then(|link| {
            let adjacency = self.links.get_mut(link)?;
            // If it is over, this makes its host say so.
            adjacency.probe();
            self.pending.insert(*link);
            Some(adjacency.peer.incarnation)
        });
        let routed = self.table.route(peer).map(|route| route.incarnation);
        if linked.or(routed).is_none_or(|known| known == life) {
            return false;
        }
        if let Some(neighbour) = up.neighbour {
            self.dialer.dial_failed(self.now, neighbour, &mut self.rng);
        }
        self.say_bye(up.link, ByeReason::Clash);
        self.refuse(up.link, CloseReason::Clash);
        self.note_refused(up);
        true
    }

    /// A neighbour has refused this life (`by_peer`), or says that it refuses another one.
    pub(super) fn refused_elsewhere(&mut self) {
        let since = *self.namesakes.refused_since.get_or_insert(self.now);
        if self.now.saturating_duration_since(since) >= self.proof() {
            self.name_clash(self.namesakes.later.unwrap_or(Incarnation(0)));
        }
    }

    /// A neighbour has taken this life in.
    pub(super) fn taken_in(&mut self) {
        self.namesakes.refused_since = None;
        self.namesakes.told = false;
    }

    /// An LSP of this node's id from a later life.
    pub(super) fn later_life(&mut self, incarnation: Incarnation) {
        self.namesakes.later = self.namesakes.later.max(Some(incarnation));
        self.suspect();
    }

    /// An LSP was stored: it may state a link to another life of this node.
    pub(super) fn hear_witness(&mut self, lsp: &Lsp) {
        let me = self.me.id;
        let at = lsp.neighbours.binary_search_by_key(&me, |neighbour| neighbour.id).ok();
        let stated = at.map(|at| lsp.neighbours[at].incarnation);
        match stated.filter(|incarnation| *incarnation != self.me.incarnation) {
            Some(incarnation) => {
                self.namesakes.witnesses.insert(lsp.origin, incarnation);
                self.suspect();
            }
            None => {
                self.namesakes.witnesses.remove(&lsp.origin);
            }
        }
    }

    /// Judges what speaks for other lives of this node's id.
    pub(super) fn check_namesakes(&mut self) {
        if self.namesakes.check_at.is_none_or(|at| at > self.now) {
            return;
        }
        let graph = self.lsdb.graph();
        let (me, nodes) = (self.me.id, &self.nodes);
        // A witness that is gone itself, and one that has said otherwise since, says nothing.
        self.namesakes.witnesses.retain(|witness, incarnation| {
            nodes.is_reachable(*witness) && graph.states_link(*witness, me, *incarnation)
        });
        let alive = self.namesakes.witnesses.values().max().copied();
        let later = self.namesakes.later.filter(|later| *later > self.me.incarnation);
        let since = self.namesakes.since.unwrap_or(self.now);
        match (later, alive) {
            (None, None) => {
                self.namesakes.since = None;
                self.namesakes.check_at = None;
                return;
            }
            // Who has no links cannot know what the others state.
            (Some(_), None) if self.first_hops.is_empty() => {}
            (Some(later), None) => return self.reborn(later),
            (_, Some(alive)) if self.now.saturating_duration_since(since) >= self.proof() => {
                self.name_clash(alive);
            }
            (_, Some(_)) => {}
        }
        self.namesakes.check_at = Some(self.now + self.hold());
    }

    /// Routes lead to a later life of a neighbour than the one that has the link: that one is over, or has a
    /// namesake, and nobody would answer it.
    pub(super) fn end_outlived_links(&mut self) {
        let is_outlived = |id: &NodeId, link: &LinkId| {
            let life = self.links.get(link).map(|adjacency| adjacency.peer.incarnation);
            self.table.route(*id).is_some_and(|route| life < Some(route.incarnation))
        };
        let outlived: Vec<_> = self
            .by_peer
            .iter()
            .filter(|(id, link)| is_outlived(id, link))
            .map(|(_, link)| *link)
            .collect();
        for link in outlived {
            self.say_bye(link, ByeReason::Clash);
            self.drop_link(link, Some(CloseReason::Clash));
        }
    }

    /// The LSP of `origin` is news: a link to an earlier life of it is none any more.
    pub(super) fn end_former_link(&mut self, origin: NodeId) {
        let Some(&link) = self.by_peer.get(&origin) else { return };
        let life = self.links.get(&link).map(|adjacency| adjacency.peer.incarnation);
        let stated = self.lsdb.get(origin).map(|lsp| lsp.incarnation);
        if life < stated {
            self.drop_link(link, Some(CloseReason::OlderIncarnation));
        }
    }

    /// Another node has this node's name.
    pub(super) fn name_clash(&mut self, incarnation: Incarnation) {
        if !std::mem::replace(&mut self.namesakes.told, true) {
            let name = self.name.clone();
            self.events.push_back(ControlEvent::NameClash { name, incarnation });
        }
    }

    fn suspect(&mut self) {
        self.namesakes.since.get_or_insert(self.now);
        self.namesakes.check_at.get_or_insert(self.now + self.hold());
    }

    fn note_refused(&mut self, up: &LinkUp) {
        let (now, proof, forget) = (self.now, self.proof(), self.hold() * FORGET_HOLDS);
        let refused = &mut self.namesakes.refused;
        refused.retain(|_, refused| now.saturating_duration_since(refused.last) < forget);
        if refused.len() >= MAX_REFUSED && !refused.contains_key(&up.peer.id) {
            return;
        }
        let incarnation = up.peer.incarnation;
        let new = Refused { incarnation, first: now, last: now, told: false };
        let entry = refused.entry(up.peer.id).or_insert(new);
        if entry.incarnation != incarnation {
            *entry = new;
        }
        entry.last = now;
        if entry.told || now.saturating_duration_since(entry.first) < proof {
            return;
        }
        entry.told = true;
        let name = up.peer.name.as_str().into();
        self.events.push_back(ControlEvent::NameClash { name, incarnation });
        // The one that stays should know as well.
        if let Some(link) = self.by_peer.get(&up.peer.id)
            && let Some(adjacency) = self.links.get_mut(link)
        {
            adjacency.tell_namesake();
        }
    }

    /// Begins a life above another one: all links are closed, and dialled again.
    fn reborn(&mut self, above: Incarnation) {
        let incarnation = Incarnation(above.0.saturating_add(1));
        self.me.incarnation = incarnation;
        self.lsdb.set_incarnation(incarnation);
        self.namesakes = Namesakes::default();
        self.events.push_back(ControlEvent::Reborn { incarnation });
        for link in self.links.keys().copied().collect::<Vec<_>>() {
            self.say_bye(link, ByeReason::Other);
            self.drop_link(link, Some(CloseReason::Reborn));
        }
        self.originate(false);
    }

    fn hold(&self) -> Duration {
        ms(self.config.hold_ms)
    }

    fn proof(&self) -> Duration {
        self.hold() * PROOF_HOLDS
    }
}
