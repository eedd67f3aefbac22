//! The channels of a node: by this end's index, which packets carry, and by the other end's, which
//! OPEN and RESET may name instead. Decides when a channel may be opened: neither end begins anew before
//! both have seen the end of what was before.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Instant;

use super::farewell::{Farewell, Farewells};
use crate::ids::{ChannelIndex, Incarnation, NodeId};
use crate::wire::data::{Open, Reset};
use crate::wire::routed::RoutedHeader;

/// Epochs of ended channels that are remembered: an OPEN that comes late must not open one again.
const ENDED_LIMIT: usize = 1024;

/// OPENs that wait for the end of a channel before, or for a route, one per node.
const HELD_LIMIT: usize = 256;

/// The channels of a node; `C` is how the caller holds one.
pub struct Table<C> {
    by_index: HashMap<u32, Entry<C>>,
    /// Peer and this end's index.
    to_peer: BTreeSet<(NodeId, u32)>,
    /// This end's index by peer and the other end's index, once that is known.
    by_other: BTreeMap<(NodeId, u32), u32>,
    /// What is left to be said about channels that are not here any more.
    farewells: Farewells,
    /// Epochs that other ends gave to channels that have ended; the oldest first.
    ended: VecDeque<(NodeId, u64)>,
    held: BTreeMap<NodeId, Open>,
    limit: usize,
}

struct Entry<C> {
    peer: NodeId,
    incarnation: Incarnation,
    /// The other end's index and epoch; `UNKNOWN` before OPENED.
    other: (ChannelIndex, u64),
    /// Ended here; the other end has not confirmed.
    closing: bool,
    channel: C,
}

/// What is to be done with an OPEN.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OpenVerdict<C> {
    /// It has opened this channel before: confirm again.
    Known(C),
    /// It is of a former life, or of a channel that has ended: nothing.
    Stale,
    /// The other end has not confirmed yet that a channel before is over, or the tables do not know
    /// its life: it is kept, and comes back from [`Table::take_held`].
    Wait,
    /// Grant it, or refuse it, after ending these channels to a former life.
    New(Vec<C>),
}

impl<C: Clone> Table<C> {
    /// At most `limit` channels.
    pub fn new(limit: usize) -> Self {
        Self {
            by_index: HashMap::new(),
            to_peer: BTreeSet::new(),
            by_other: BTreeMap::new(),
            farewells: Farewells::default(),
            ended: VecDeque::new(),
            held: BTreeMap::new(),
            limit,
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_index.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_index.is_empty()
    }

    /// Whether no more channels are taken.
    pub fn is_full(&self) -> bool {
        self.len() >= self.limit
    }

    /// Whether anything is left to be said to nodes that could not be reached.
    pub fn has_farewells(&self) -> bool {
        !self.farewells.is_empty()
    }

    /// What is left to be said to nodes that could not be reached.
    pub fn farewells(&mut self) -> &mut Farewells {
        &mut self.farewells
    }

    /// Whether a random number can be the index of a new channel.
    pub fn is_free(&self, index: ChannelIndex) -> bool {
        index != ChannelIndex::UNKNOWN && !self.by_index.contains_key(&index.0)
    }

    /// Adds a channel with this life of `peer` under a [free](Table::is_free) index; `other` is the
    /// other end's index and epoch if they are known. `false` if the table is full.
    pub fn insert(
        &mut self,
        index: ChannelIndex,
        (peer, incarnation): (NodeId, Incarnation),
        other: Option<(ChannelIndex, u64)>,
        channel: C,
    ) -> bool {
        if self.is_full() || !self.is_free(index) {
            return false;
        }
        self.to_peer.insert((peer, index.0));
        let unknown = (ChannelIndex::UNKNOWN, 0);
        let entry = Entry { peer, incarnation, other: unknown, closing: false, channel };
        self.by_index.insert(index.0, entry);
        if let Some((other, epoch)) = other {
            self.learn(index, incarnation, other, epoch);
        }
        true
    }

    /// The other end's life, index and epoch have become known.
    pub fn learn(
        &mut self,
        index: ChannelIndex,
        incarnation: Incarnation,
        other: ChannelIndex,
        epoch: u64,
    ) {
        if let Some(entry) = self.by_index.get_mut(&index.0) {
            entry.incarnation = incarnation;
            entry.other = (other, epoch);
            self.by_other.insert((entry.peer, other.0), index.0);
        }
    }

    /// A channel has ended here; the other end has to confirm it.
    pub fn closing(&mut self, index: ChannelIndex) {
        if let Some(entry) = self.by_index.get_mut(&index.0) {
            entry.closing = true;
        }
    }

    /// Whether OPEN may be sent to `peer`: not before it has confirmed the end of all channels before.
    pub fn may_open(&self, peer: NodeId) -> bool {
        !self.farewells.has(peer) && !self.entries(peer).any(|entry| entry.closing)
    }

    /// Judges an OPEN of `source`, whose present life is `life` as far as the tables know. While they do
    /// not know the life that asks, it waits: nobody would tell of the end of that life.
    pub fn judge_open(
        &mut self,
        now: Instant,
        source: NodeId,
        open: &Open,
        life: Option<Incarnation>,
    ) -> OpenVerdict<C> {
        if let Some(channel) = self.find_open(source, open) {
            return OpenVerdict::Known(channel.clone());
        }
        let newer = |entry: &Entry<C>| entry.incarnation > open.incarnation;
        if life.is_some_and(|life| life > open.incarnation)
            || self.entries(source).any(newer)
            || self.ended.contains(&(source, open.epoch))
        {
            return OpenVerdict::Stale;
        }
        self.farewells.forget_older(source, open.incarnation);
        if life != Some(open.incarnation) {
            self.hold(source, open);
            return OpenVerdict::Wait;
        }
        let closing = |entry: &Entry<C>| entry.closing && entry.incarnation == open.incarnation;
        if self.farewells.has(source) || self.entries(source).any(closing) {
            self.farewells.handle_reachable(now, source, open.incarnation);
            self.hold(source, open);
            return OpenVerdict::Wait;
        }
        let former = self.entries(source).filter(|entry| entry.incarnation < open.incarnation);
        OpenVerdict::New(former.map(|entry| entry.channel.clone()).collect())
    }

    fn hold(&mut self, source: NodeId, open: &Open) {
        if self.held.len() >= HELD_LIMIT && !self.held.contains_key(&source) {
            // It comes again.
            self.held.pop_first();
        }
        self.held.insert(source, open.clone());
    }

    /// The OPEN of `source` that waited, when its channels before are over, or its life has become
    /// known: to be judged again.
    pub fn take_held(&mut self, source: NodeId) -> Option<Open> {
        if !self.held.contains_key(&source) || !self.may_open(source) {
            return None;
        }
        self.held.remove(&source)
    }

    /// The channel of that index, if `source` is at its other end.
    pub fn get(&self, index: ChannelIndex, source: NodeId) -> Option<&C> {
        let entry = self.by_index.get(&index.0)?;
        (entry.peer == source).then_some(&entry.channel)
    }

    /// The channel that `source` means with a RESET or RESET_ACK. It may not have heard our index yet,
    /// or have forgotten it.
    pub fn find_reset(&self, source: NodeId, reset: &Reset) -> Option<&C> {
        if reset.to_index != ChannelIndex::UNKNOWN {
            return self.get(reset.to_index, source);
        }
        let index = self.by_other.get(&(source, reset.from_index.0))?;
        self.by_index.get(index).map(|entry| &entry.channel)
    }

    /// The channel of this node that a packet was of, by the header it left with.
    pub fn find_sent(&self, header: &RoutedHeader) -> Option<&C> {
        let index = self.by_other.get(&(header.destination, header.channel.0))?;
        self.by_index.get(index).map(|entry| &entry.channel)
    }

    /// Forgets a channel; `farewell` is what is left to be said about it.
    pub fn remove(
        &mut self,
        now: Instant,
        index: ChannelIndex,
        farewell: Option<Farewell>,
    ) -> Option<C> {
        let entry = self.by_index.remove(&index.0)?;
        self.to_peer.remove(&(entry.peer, index.0));
        let key = (entry.peer, entry.other.0.0);
        if self.by_other.get(&key) == Some(&index.0) {
            self.by_other.remove(&key);
        }
        if entry.other.0 != ChannelIndex::UNKNOWN {
            if self.ended.len() >= ENDED_LIMIT {
                self.ended.pop_front();
            }
            self.ended.push_back((entry.peer, entry.other.1));
        }
        if let Some(farewell) = farewell {
            self.farewells.add(now, farewell);
        }
        Some(entry.channel)
    }

    /// All channels, by peer and index.
    pub fn all(&self) -> Vec<C> {
        self.range(NodeId(0), NodeId(u64::MAX)).map(|entry| entry.channel.clone()).collect()
    }

    /// The channels to `peer`, by index.
    pub fn to(&self, peer: NodeId) -> Vec<C> {
        self.entries(peer).map(|entry| entry.channel.clone()).collect()
    }

    fn find_open(&self, source: NodeId, open: &Open) -> Option<&C> {
        let index = self.by_other.get(&(source, open.index.0))?;
        let entry = self.by_index.get(index)?;
        (entry.other == (open.index, open.epoch)).then_some(&entry.channel)
    }

    fn entries(&self, peer: NodeId) -> impl Iterator<Item = &Entry<C>> {
        self.range(peer, peer)
    }

    fn range(&self, from: NodeId, to: NodeId) -> impl Iterator<Item = &Entry<C>> {
        let indexes = self.to_peer.range((from, 0)..=(to, u32::MAX));
        indexes.filter_map(|key| self.by_index.get(&key.1))
    }
}
