//! UDP multicast: one socket for each interface, what is sent and heard on them, and discovery.
//!
//! ```text
//!  send ──► queue ──► send task: rate, seal ──► every segment
//!                                                   ▲
//!  beacon task: beacons, watchdog, dials ───────────┘   on its own for each segment
//!
//!  segment ──► receive task (one each): check, open ──► discovery | broadcasts
//! ```
//!
//! Datagrams of the node itself come back to it; that they do is how the watchdog knows that a socket
//! works.

mod beacons;
mod receive;
mod send;
mod socket;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use chatter_core::crypto::{DatagramOpener, DatagramSealer};
use chatter_core::discovery::{Discovery, DiscoveryConfig, Found, Watch};
use chatter_core::ids::{Incarnation, NodeId};
use chatter_core::rate::TokenBucket;
use chatter_core::wire::identity::Identity;
use parking_lot::Mutex;
use thiserror::Error;
use tokio::net::UdpSocket;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::config::{MulticastConfig, NetConfig};
use crate::node::Node;
use socket::Interface;

/// Why a message was not taken to be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum NotSent {
    /// The node was started without multicast, or has no interface for it now.
    #[error("no multicast")]
    Off,
    /// The body is over [`MAX_MESSAGE_BODY`](chatter_core::wire::datagram::MAX_MESSAGE_BODY).
    #[error("larger than a datagram")]
    TooLarge,
    /// `multicast_queue` is full: more is sent than `multicast_rate` allows.
    #[error("the queue is full")]
    Full,
}

macro_rules! stats {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Counters of multicast.
        #[derive(Default)]
        pub struct MulticastStats {
            $($(#[$doc])* pub $name: AtomicU64,)*
        }

        impl MulticastStats {
            /// All counters, with their names.
            pub fn all(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.load(Ordering::Relaxed)),)*]
            }
        }
    };
}

stats! {
    /// Datagrams sent, on any interface.
    datagrams_out,
    /// Their bytes.
    bytes_out,
    /// Datagrams of other nodes that were opened.
    datagrams_in,
    /// Their bytes.
    bytes_in,
    /// Own datagrams that came back.
    echoes,
    /// Beacons sent, on any interface.
    beacons_out,
    /// Beacons of other nodes.
    beacons_in,
    /// Nodes found.
    found,
    /// Nodes forgotten after silence.
    expired,
    /// Found nodes that were dialled.
    dials,
    /// Datagrams dropped: not of this version of Chatter.
    malformed,
    /// Datagrams dropped: of another cluster, or of a stranger.
    foreign,
    /// Datagrams dropped: changed, or put together from parts of others.
    forged,
    /// Datagrams dropped: they had come before.
    repeated,
    /// Datagrams dropped: of a former life, or older than the window.
    stale,
    /// Messages of unknown kinds.
    unknown_kinds,
    /// Messages that could not be read.
    bad_messages,
    /// Times that reading paused because of datagrams that had to be dropped.
    pauses,
    /// Datagrams that the system did not take.
    send_errors,
    /// Messages refused because the queue was full.
    queue_full,
    /// Sockets opened anew because they did not hear themselves.
    silent_reopened,
    /// Sockets opened, closed or opened anew because interfaces had changed.
    interface_changes,
}

impl MulticastStats {
    fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// One interface that is in use.
struct Segment {
    interface: Interface,
    destination: SocketAddr,
    wire: Arc<Wire>,
    task: AbortHandle,
}

/// What the receive task of a segment has of it; it ends with the segment.
struct Wire {
    socket: UdpSocket,
    watch: Mutex<Watch>,
}

impl Drop for Segment {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Plaintexts of datagrams that wait to be sent; the last one takes more messages.
#[derive(Default)]
struct Queue {
    plains: VecDeque<Vec<u8>>,
    bytes: usize,
}

/// Multicast of a node. See the [module](self).
pub struct Multicast {
    /// Counters.
    pub stats: MulticastStats,
    config: MulticastConfig,
    me: NodeId,
    name: Mutex<String>,
    segments: ArcSwap<Vec<Arc<Segment>>>,
    sealer: Mutex<DatagramSealer>,
    opener: Mutex<DatagramOpener>,
    queue: Mutex<Queue>,
    queued: Notify,
    bucket: Mutex<TokenBucket>,
    discovery: Mutex<Discovery>,
    /// The beacon task has something to look at.
    changed: Notify,
}

impl Multicast {
    pub(crate) fn new(
        config: &NetConfig,
        multicast: &MulticastConfig,
        me: &Identity,
        seed: u64,
        now: Instant,
    ) -> Arc<Self> {
        let max_nodes = config.control.max_nodes;
        let discovery =
            DiscoveryConfig { beacon: multicast.beacon, max_nodes, links: multicast.links };
        Arc::new(Self {
            stats: MulticastStats::default(),
            config: multicast.clone(),
            me: me.id,
            name: Mutex::new(me.name.clone()),
            segments: ArcSwap::default(),
            sealer: Mutex::new(DatagramSealer::new(&config.key, me.id, me.incarnation)),
            opener: Mutex::new(DatagramOpener::new(&config.key, me.id, max_nodes)),
            queue: Mutex::default(),
            queued: Notify::new(),
            bucket: Mutex::new(TokenBucket::new(multicast.rate, now)),
            discovery: Mutex::new(Discovery::new(discovery, me.id, me.incarnation, seed, now)),
            changed: Notify::new(),
        })
    }

    /// Starts the tasks; within the runtime of the control plane.
    pub(crate) fn start(self: &Arc<Self>, node: &Arc<Node>) {
        tokio::spawn(beacons::run(node.clone(), self.clone()));
        tokio::spawn(send::run(self.clone()));
    }

    /// The nodes that were found and are still heard.
    pub fn found(&self) -> Vec<Found> {
        self.discovery.lock().found().collect()
    }

    /// Where a node that was found can be dialled; empty if it was not, or if that has failed lately.
    pub fn addresses(&self, name: &str) -> Vec<SocketAddr> {
        self.discovery.lock().addresses(Instant::now(), name)
    }

    /// Whether this life of a node has said lately that it hears our datagrams.
    pub fn hears_us(&self, id: NodeId, incarnation: Incarnation) -> bool {
        self.discovery.lock().hears_us(Instant::now(), id, incarnation)
    }

    /// Whether we have heard datagrams of this life of a node lately.
    pub fn is_heard(&self, id: NodeId, incarnation: Incarnation) -> bool {
        self.discovery.lock().is_heard(id, incarnation)
    }

    /// The interfaces in use, by name.
    pub fn interfaces(&self) -> Vec<String> {
        self.segments.load().iter().map(|segment| segment.interface.name.clone()).collect()
    }

    pub(crate) fn begin_life(&self, incarnation: Incarnation) {
        self.sealer.lock().begin_life(incarnation);
        self.discovery.lock().begin_life(Instant::now(), incarnation);
        self.changed.notify_one();
    }

    pub(crate) fn set_name(&self, name: &str) {
        name.clone_into(&mut self.name.lock());
    }

    pub(crate) fn dial_failed(&self, name: &str) {
        self.discovery.lock().handle_dial_failed(Instant::now(), name);
        self.changed.notify_one();
    }

    /// Closes all sockets for good; the tasks have ended.
    pub(crate) fn close(&self) {
        self.segments.store(Arc::default());
    }
}
