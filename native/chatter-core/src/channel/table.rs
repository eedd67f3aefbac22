//! The channels of a node: by this end's index, which packets carry, and by the other end's, which
//! OPEN and RESET may name instead.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::ids::{ChannelIndex, NodeId};
use crate::wire::data::{Open, Reset};

/// The channels of a node; `C` is how the caller holds one.
pub struct Table<C> {
    by_index: HashMap<u32, Entry<C>>,
    /// Peer and this end's index.
    to_peer: BTreeSet<(NodeId, u32)>,
    /// This end's index by peer and the other end's index, once that is known.
    by_other: BTreeMap<(NodeId, u32), u32>,
    limit: usize,
}

struct Entry<C> {
    peer: NodeId,
    /// The other end's index and epoch; `UNKNOWN` before OPENED.
    other: (ChannelIndex, u64),
    channel: C,
}

impl<C: Clone> Table<C> {
    /// At most `limit` channels.
    pub fn new(limit: usize) -> Self {
        Self {
            by_index: HashMap::new(),
            to_peer: BTreeSet::new(),
            by_other: BTreeMap::new(),
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

    /// Whether a random number can be the index of a new channel.
    pub fn is_free(&self, index: ChannelIndex) -> bool {
        index != ChannelIndex::UNKNOWN && !self.by_index.contains_key(&index.0)
    }

    /// Adds a channel under a [free](Table::is_free) index; `other` is the other end's index and epoch
    /// if they are known. `false` if the table is full.
    pub fn insert(
        &mut self,
        index: ChannelIndex,
        peer: NodeId,
        other: Option<(ChannelIndex, u64)>,
        channel: C,
    ) -> bool {
        if self.is_full() || !self.is_free(index) {
            return false;
        }
        let unknown = (ChannelIndex::UNKNOWN, 0);
        self.to_peer.insert((peer, index.0));
        self.by_index.insert(index.0, Entry { peer, other: unknown, channel });
        if let Some((other, epoch)) = other {
            self.learn(index, other, epoch);
        }
        true
    }

    /// The other end's index and epoch have become known.
    pub fn learn(&mut self, index: ChannelIndex, other: ChannelIndex, epoch: u64) {
        if let Some(entry) = self.by_index.get_mut(&index.0) {
            entry.other = (other, epoch);
            self.by_other.insert((entry.peer, other.0), index.0);
        }
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

    /// The channel that an OPEN of `source` has opened before.
    pub fn find_open(&self, source: NodeId, open: &Open) -> Option<&C> {
        let index = self.by_other.get(&(source, open.index.0))?;
        let entry = self.by_index.get(index)?;
        (entry.other == (open.index, open.epoch)).then_some(&entry.channel)
    }

    /// Forgets a channel.
    pub fn remove(&mut self, index: ChannelIndex) -> Option<C> {
        let entry = self.by_index.remove(&index.0)?;
        self.to_peer.remove(&(entry.peer, index.0));
        let key = (entry.peer, entry.other.0.0);
        if self.by_other.get(&key) == Some(&index.0) {
            self.by_other.remove(&key);
        }
        Some(entry.channel)
    }

    /// All channels, by peer and index.
    pub fn all(&self) -> Vec<C> {
        self.range(NodeId(0), NodeId(u64::MAX))
    }

    /// The channels to `peer`, by index.
    pub fn to(&self, peer: NodeId) -> Vec<C> {
        self.range(peer, peer)
    }

    fn range(&self, from: NodeId, to: NodeId) -> Vec<C> {
        let indexes = self.to_peer.range((from, 0)..=(to, u32::MAX));
        indexes.filter_map(|key| Some(self.by_index.get(&key.1)?.channel.clone())).collect()
    }
}
