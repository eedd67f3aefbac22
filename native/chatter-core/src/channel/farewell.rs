//! Channels that were given up without an answer because their node could not be reached. If the same
//! life of it comes back, its end may still be open: it is told before anything new is opened, so that
//! neither end goes on while the other has begun anew.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Names;
use crate::ids::{ChannelIndex, Incarnation, NodeId};
use crate::wire::PacketType;
use crate::wire::data::{Reset, ResetReason};
use crate::wire::packet::Packet;
use crate::wire::routed::RoutedHeader;

/// How many are kept; of more, the oldest is forgotten.
const LIMIT: usize = 4096;

/// A RESET that is not answered is sent again after this long, and then after twice that, and so on.
const RETRY: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// What is left to be said about a channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Farewell {
    /// This end's names of the channel.
    pub names: Names,
    /// The other end's index; `UNKNOWN` if it was never told.
    pub peer_index: ChannelIndex,
    /// The life that is to be told.
    pub peer_incarnation: Incarnation,
    /// Why it has ended.
    pub reason: ResetReason,
}

struct Entry {
    farewell: Farewell,
    /// Order of arrival.
    serial: u64,
    ask_at: Option<Instant>,
    retry: Duration,
}

/// All that a node has to say to nodes that it could not reach.
///
/// * in: [`Farewells::add`], [`Farewells::handle_reachable`],
///   [`Farewells::handle_route_change`], [`Farewells::handle_confirmed`];
/// * out: [`Farewells::poll_packet`] until `None`, at [`Farewells::poll_timeout`].
#[derive(Default)]
pub struct Farewells {
    entries: BTreeMap<(NodeId, u32), Entry>,
    serial: u64,
}

impl Farewells {
    /// Keeps one, to be sent at `now` or when the node can be reached.
    pub fn add(&mut self, now: Instant, farewell: Farewell) {
        if self.entries.len() >= LIMIT {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.serial);
            if let Some(key) = oldest.map(|(key, _)| *key) {
                self.entries.remove(&key);
            }
        }
        self.serial += 1;
        let entry = Entry { farewell, serial: self.serial, ask_at: Some(now), retry: RETRY };
        self.entries.insert((farewell.names.peer, farewell.names.index.0), entry);
    }

    /// A node can be reached, in this life: those of former lives are of no use any more, those of this
    /// life are told now.
    pub fn handle_reachable(&mut self, now: Instant, peer: NodeId, incarnation: Incarnation) {
        self.forget_older(peer, incarnation);
        self.handle_route_change(now, peer);
    }

    /// There is a way to a node, or another way: what it was told may have been lost.
    pub fn handle_route_change(&mut self, now: Instant, peer: NodeId) {
        for (_, entry) in self.entries.range_mut((peer, 0)..=(peer, u32::MAX)) {
            entry.ask_at = Some(now);
            entry.retry = RETRY;
        }
    }

    /// Lives of `peer` before this one are over.
    pub fn forget_older(&mut self, peer: NodeId, incarnation: Incarnation) {
        let older: Vec<_> = self
            .entries
            .range((peer, 0)..=(peer, u32::MAX))
            .filter(|(_, entry)| entry.farewell.peer_incarnation < incarnation)
            .map(|(key, _)| *key)
            .collect();
        older.iter().for_each(|key| {
            self.entries.remove(key);
        });
    }

    /// The other end knows: by RESET_ACK, or because it said RESET itself. Whether it was for one that
    /// is kept here.
    pub fn handle_confirmed(&mut self, source: NodeId, reset: &Reset) -> bool {
        if reset.to_index != ChannelIndex::UNKNOWN {
            return self.entries.remove(&(source, reset.to_index.0)).is_some();
        }
        let mut to_source = self.entries.range((source, 0)..=(source, u32::MAX));
        let known = to_source.find(|(_, entry)| entry.farewell.peer_index == reset.from_index);
        match known.map(|(key, _)| *key) {
            Some(key) => self.entries.remove(&key).is_some(),
            None => false,
        }
    }

    /// Whether there is anything left to be said to `peer`: if so, no channel is opened with it.
    pub fn has(&self, peer: NodeId) -> bool {
        self.entries.range((peer, 0)..=(peer, u32::MAX)).next().is_some()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// When [`Farewells::poll_packet`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.entries.values().filter_map(|entry| entry.ask_at).min()
    }

    /// The next RESET to send, and to whom. One that cannot be reached gets none until
    /// [`Farewells::handle_reachable`] or [`Farewells::handle_route_change`].
    pub fn poll_packet(
        &mut self,
        now: Instant,
        me: NodeId,
        is_reachable: impl Fn(NodeId) -> bool,
    ) -> Option<(NodeId, Packet)> {
        for (key, entry) in &mut self.entries {
            if entry.ask_at.is_none_or(|at| now < at) {
                continue;
            }
            if !is_reachable(key.0) {
                entry.ask_at = None;
                continue;
            }
            entry.ask_at = Some(now + entry.retry);
            entry.retry = (entry.retry * 2).min(RETRY_MAX);
            let Farewell { names, peer_index, reason, .. } = entry.farewell;
            let reset = Reset { from_index: names.index, to_index: peer_index, last: 0, reason };
            let header = RoutedHeader::to(names.peer, me, peer_index);
            return Some((key.0, header.packet(PacketType::Reset, &reset.encode()).into()));
        }
        None
    }
}
