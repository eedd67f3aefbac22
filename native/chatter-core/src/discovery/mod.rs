//! Who else is on the network segments of this node: told by beacons, and believed only when it is sure
//! that a beacon is of now.
//!
//! ```text
//!                 datagram of an unknown life            its beacon lists this life of ours
//!    (unknown) ──────────────────────────────► heard ──────────────────────────────────────► found
//!        ▲                                       │ silent                     silent │         │
//!        └───────────────────────────────────────┴───────────────────────────────────┴─────────┘
//! ```
//!
//! A datagram is opened once in the life of its sender, but a node that has just started cannot know
//! what was opened before. So a beacon finds its sender only if its seen list has the receiver in its
//! present life: it was made after the receiver started, and the two hear each other. A node that hears
//! an unknown life soon tells so by a beacon ahead of its time, at most one a second, however many it
//! hears.
//!
//! Beacons: three in the first second, then one every [`DiscoveryConfig::beacon`], ± 25 %. A node that
//! is silent for three and a half such intervals is forgotten. Whom to dial is in `dials`.

mod dials;
mod watch;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use self::dials::Dials;
pub use self::dials::View;
pub use self::watch::{Health, Watch};
use crate::control::throttle::jitter;
use crate::ids::{Incarnation, NodeId};
use crate::wire::beacon::{Beacon, MAX_SEEN};

/// Beacons in the first second, and the pauses after each of them but the last.
const START: [Duration; 2] = [Duration::from_millis(250), Duration::from_millis(500)];

/// At most one beacon ahead of its time in so long.
const EARLY_PAUSE: Duration = Duration::from_secs(1);

/// What nodes that have something to tell at the same time spread it over: so much, and so much more for
/// each other node.
const SPREAD: Duration = Duration::from_millis(50);
const SPREAD_PER_NODE: Duration = Duration::from_millis(5);
const MAX_SPREAD: Duration = Duration::from_secs(2);

/// Times and limits of [`Discovery`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiscoveryConfig {
    /// Between two beacons, ± 25 %.
    pub beacon: Duration,
    /// Nodes that are remembered; further ones are left out and counted.
    pub max_nodes: usize,
    /// Links that a node wants to have to nodes that were found; `None`: none is dialled.
    pub links: Option<usize>,
}

impl DiscoveryConfig {
    /// After so long without a datagram a node is forgotten.
    pub fn expiry(&self) -> Duration {
        self.beacon * 7 / 2
    }

    /// That a node hears us counts for so long after it said so.
    pub fn proof(&self) -> Duration {
        self.beacon * 3
    }
}

/// A node that was found, as the getters show it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// The node.
    pub id: NodeId,
    /// Its life.
    pub incarnation: Incarnation,
    /// Its full name; may be empty.
    pub name: Arc<str>,
    /// Where it can be dialled, the best first; none if it accepts no links.
    pub addresses: Vec<SocketAddr>,
    /// When a datagram of it was heard last.
    pub heard: Instant,
    /// When it last said that it hears this node.
    pub hears_us: Instant,
}

#[derive(Clone, Debug)]
struct Peer {
    incarnation: Incarnation,
    name: Arc<str>,
    addresses: Vec<SocketAddr>,
    heard: Instant,
    /// Set once it is found.
    hears_us: Option<Instant>,
    /// The number of our beacon that listed it last.
    listed: u64,
}

/// The nodes that are heard. See the [module](self).
pub struct Discovery {
    config: DiscoveryConfig,
    me: NodeId,
    incarnation: Incarnation,
    rng: Xoshiro256PlusPlus,
    peers: BTreeMap<NodeId, Peer>,
    names: HashMap<Arc<str>, NodeId>,
    dials: Dials,
    next_beacon: Instant,
    /// One more before that.
    early: Option<Instant>,
    /// Beacons by schedule since the start.
    started: usize,
    beacons: u64,
    last_early: Option<Instant>,
    left_out: u64,
}

impl Discovery {
    /// Knows nobody; the first beacon is due at once.
    pub fn new(
        config: DiscoveryConfig,
        me: NodeId,
        incarnation: Incarnation,
        seed: u64,
        now: Instant,
    ) -> Self {
        Self {
            config,
            me,
            incarnation,
            rng: Xoshiro256PlusPlus::seed_from_u64(seed),
            peers: BTreeMap::new(),
            names: HashMap::new(),
            dials: Dials::default(),
            next_beacon: now,
            early: None,
            started: 0,
            beacons: 0,
            last_early: None,
            left_out: 0,
        }
    }

    // ===== in =====

    /// An authentic datagram of another node came in, which had not come before.
    pub fn handle_heard(&mut self, now: Instant, id: NodeId, incarnation: Incarnation) {
        if id == self.me {
            return;
        }
        let full = self.peers.len() >= self.config.max_nodes;
        match self.peers.get_mut(&id) {
            Some(peer) if peer.incarnation == incarnation => {
                peer.heard = now;
                return;
            }
            Some(peer) if peer.incarnation > incarnation => return,
            Some(_) => self.forget(id),
            None if full => {
                self.left_out += 1;
                return;
            }
            None => {}
        }
        let peer = Peer {
            incarnation,
            name: Arc::from(""),
            addresses: Vec::new(),
            heard: now,
            hears_us: None,
            listed: 0,
        };
        self.peers.insert(id, peer);
        self.hurry(now);
    }

    /// An authentic beacon came in. Whether it found its sender, which was not known before.
    pub fn handle_beacon(
        &mut self,
        now: Instant,
        id: NodeId,
        incarnation: Incarnation,
        beacon: &Beacon,
    ) -> bool {
        self.handle_heard(now, id, incarnation);
        let us = (self.me, self.incarnation);
        let Some(peer) = self.peers.get_mut(&id).filter(|peer| peer.incarnation == incarnation)
        else {
            return false;
        };
        let fresh = peer.hears_us.is_none();
        if beacon.seen.contains(&us) {
            peer.hears_us = Some(now);
        }
        if peer.hears_us.is_none() {
            return false;
        }
        peer.addresses.clone_from(&beacon.addresses);
        if *peer.name != *beacon.name {
            let former = std::mem::replace(&mut peer.name, Arc::from(beacon.name.as_str()));
            let name = Arc::clone(&peer.name);
            self.unname(&former, id);
            if !name.is_empty() {
                self.names.insert(name, id);
            }
        }
        if fresh && self.config.links.is_some() {
            let spread = self.spread();
            self.dials.hold_off(now + spread);
        }
        fresh
    }

    /// A dial of the node with this name came to nothing.
    pub fn handle_dial_failed(&mut self, now: Instant, name: &str) {
        if let Some(id) = self.names.get(name) {
            self.dials.failed(now, *id, &mut self.rng);
        }
    }

    /// This node lives another life from now on.
    pub fn begin_life(&mut self, now: Instant, incarnation: Incarnation) {
        self.incarnation = incarnation;
        self.next_beacon = now;
    }

    /// The way to the others is new: tells them of this node soon, as at the start.
    pub fn restart(&mut self, now: Instant) {
        self.dials.forgive();
        self.started = 0;
        self.next_beacon = now;
    }

    /// Time has passed: forgets who is silent. How many nodes that were found are forgotten.
    pub fn handle_timeout(&mut self, now: Instant) -> usize {
        let expiry = self.config.expiry();
        let silent = |peer: &Peer| now.saturating_duration_since(peer.heard) >= expiry;
        let silent: Vec<_> =
            self.peers.iter().filter(|(_, peer)| silent(peer)).map(|(id, _)| *id).collect();
        let found = silent.iter().filter(|id| self.peers[id].hears_us.is_some()).count();
        silent.into_iter().for_each(|id| self.forget(id));
        found
    }

    // ===== out =====

    /// The seen list of the beacon that is due, if one is: the caller adds name and addresses and sends
    /// it on all interfaces.
    pub fn poll_beacon(&mut self, now: Instant) -> Option<Vec<(NodeId, Incarnation)>> {
        if now >= self.next_beacon {
            let pause = START.get(self.started).copied().unwrap_or(self.config.beacon);
            self.next_beacon = now + jitter(pause, &mut self.rng);
            self.started += 1;
        } else if self.early.is_none_or(|at| now < at) {
            return None;
        }
        self.early = None;
        self.beacons += 1;
        let mut seen: Vec<_> = self.peers.iter_mut().collect();
        // Those that wait longest for it come first; with few nodes that is everybody.
        seen.sort_by_key(|(id, peer)| (peer.listed, **id));
        seen.truncate(MAX_SEEN);
        let beacons = self.beacons;
        Some(
            seen.into_iter()
                .map(|(id, peer)| {
                    peer.listed = beacons;
                    (*id, peer.incarnation)
                })
                .collect(),
        )
    }

    /// The name of a node that is to be dialled now, once; see `dials` for the rule.
    pub fn poll_dial(&mut self, now: Instant, view: &View<'_>) -> Option<Arc<str>> {
        let wished = self.config.links?;
        let ready = |peer: &Peer| {
            peer.hears_us.is_some() && !peer.name.is_empty() && !peer.addresses.is_empty()
        };
        let peers = self.peers.iter().filter(|(_, peer)| ready(peer)).map(|(id, _)| *id);
        let spread = spread(self.peers.len());
        let id = self.dials.next(now, peers, wished, view, spread, &mut self.rng)?;
        self.peers.get(&id).map(|peer| Arc::clone(&peer.name))
    }

    /// When to poll again, at the latest.
    pub fn poll_timeout(&self) -> Instant {
        let expiry = self.peers.values().map(|peer| peer.heard + self.config.expiry()).min();
        [expiry, self.early, self.dials.next_timeout()]
            .into_iter()
            .flatten()
            .fold(self.next_beacon, Ord::min)
    }

    // ===== getters =====

    /// The nodes that were found and are still heard.
    pub fn found(&self) -> impl Iterator<Item = Found> {
        self.peers.iter().filter_map(|(id, peer)| {
            Some(Found {
                id: *id,
                incarnation: peer.incarnation,
                name: Arc::clone(&peer.name),
                addresses: peer.addresses.clone(),
                heard: peer.heard,
                hears_us: peer.hears_us?,
            })
        })
    }

    /// Where a node that was found can be dialled. Empty while dialling it there has failed lately.
    pub fn addresses(&self, now: Instant, name: &str) -> Vec<SocketAddr> {
        let Some(id) = self.names.get(name) else { return Vec::new() };
        let peer = self.peers.get(id).filter(|_| self.dials.may_dial(now, *id));
        peer.map(|peer| peer.addresses.clone()).unwrap_or_default()
    }

    /// Whether this life of a node has said lately that it hears our datagrams.
    pub fn hears_us(&self, now: Instant, id: NodeId, incarnation: Incarnation) -> bool {
        let peer = self.peers.get(&id).filter(|peer| peer.incarnation == incarnation);
        let proof = peer.and_then(|peer| peer.hears_us);
        proof.is_some_and(|at| now.saturating_duration_since(at) < self.config.proof())
    }

    /// Whether datagrams of this life of a node were heard lately.
    pub fn is_heard(&self, id: NodeId, incarnation: Incarnation) -> bool {
        self.peers.get(&id).is_some_and(|peer| peer.incarnation == incarnation)
    }

    /// Nodes that are heard, found or not.
    pub fn len(&self) -> usize {
        self.peers.len()
    }

    /// Whether nobody is heard.
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    /// Nodes left out because of [`DiscoveryConfig::max_nodes`], since the start.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    // ===== helpers =====

    /// One more beacon, ahead of the next: somebody waits to learn that it is heard.
    fn hurry(&mut self, now: Instant) {
        let allowed =
            self.last_early.is_none_or(|last| now.saturating_duration_since(last) >= EARLY_PAUSE);
        let at = now + self.spread();
        if allowed && at < self.next_beacon {
            self.last_early = Some(now);
            self.early = Some(at);
        }
    }

    fn spread(&mut self) -> Duration {
        spread(self.peers.len()).mul_f64(self.rng.random_range(0.1..1.0))
    }

    fn forget(&mut self, id: NodeId) {
        if let Some(peer) = self.peers.remove(&id) {
            self.unname(&peer.name, id);
        }
        self.dials.forget(id);
    }

    fn unname(&mut self, name: &Arc<str>, id: NodeId) {
        if self.names.get(name) == Some(&id) {
            self.names.remove(name);
        }
    }
}

/// What is spread by so many nodes, at the most.
fn spread(nodes: usize) -> Duration {
    let more = SPREAD_PER_NODE.saturating_mul(nodes.try_into().unwrap_or(u32::MAX));
    (SPREAD + more).min(MAX_SPREAD)
}
