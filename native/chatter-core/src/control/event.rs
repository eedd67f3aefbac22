//! What goes into and comes out of [`Control`](super::Control) besides packets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::dialer::{NeighbourId, NeighbourSpec};
use crate::ids::{Incarnation, LinkId, NodeId};
use crate::wire::identity::Identity;

/// A link whose handshake is complete.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LinkUp {
    /// The caller's name for it; new.
    pub link: LinkId,
    /// What the peer said in the handshake.
    pub peer: Identity,
    /// Whether this node dialled.
    pub we_dialled: bool,
    /// The neighbour that it was dialled for, if this node dialled.
    pub neighbour: Option<NeighbourId>,
    /// The `dial_seq` of the end that dialled.
    pub dial_seq: u64,
    /// The peer's address.
    pub remote: SocketAddr,
}

/// Whom to [disconnect](super::Control::disconnect).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DisconnectTarget {
    /// The neighbour that was asked for in these words.
    Spec(NeighbourSpec),
    /// A node, however its link came about.
    Node(NodeId),
}

/// Why a link is to be closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CloseReason {
    /// Nothing was heard for the hold time.
    HoldExpired,
    /// There is another link to the same node; both ends keep the same one.
    Duplicate,
    /// This node has dialled itself.
    OwnId,
    /// Another node uses this node's id, or the peer is another life of a node that lives.
    Clash,
    /// The peer is in a newer life, this is a link to the former one.
    OlderIncarnation,
    /// This node has begun another life, see [`ControlEvent::Reborn`].
    Reborn,
    /// [`Control::disconnect`](super::Control::disconnect).
    Disconnect,
    /// The peer sent a control packet that cannot be read.
    BadPacket,
    /// The peer said BYE.
    PeerBye,
    /// [`Control::stop`](super::Control::stop).
    Stopped,
    /// There are [`max_links`](super::ControlConfig::max_links) already.
    TooManyLinks,
}

/// What the caller must do or may want to know, in the order in which it happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ControlEvent {
    /// Close this link once everything from `poll_transmit` is written. It is forgotten here: telling
    /// `handle_link_down` is allowed and does nothing.
    CloseLink {
        /// The link.
        link: LinkId,
        /// Why.
        reason: CloseReason,
    },
    /// A link was taken into use.
    LinkUp {
        /// The link.
        link: LinkId,
        /// The node at its other end.
        peer: NodeId,
    },
    /// A link that was in use is not any longer. Exactly one for each `LinkUp`.
    LinkDown {
        /// The link.
        link: LinkId,
        /// The node at its other end.
        peer: NodeId,
    },
    /// A node can be reached for the first time in this life of it.
    NodeUp {
        /// The node.
        id: NodeId,
        /// Its life.
        incarnation: Incarnation,
        /// Its full name; may be empty.
        name: Arc<str>,
    },
    /// A node has no route any more; `NodeFound` or `NodeDown` follows.
    NodeLost {
        /// The node.
        id: NodeId,
    },
    /// A lost node has a route again, in the same life.
    NodeFound {
        /// The node.
        id: NodeId,
    },
    /// This life of a node is over: no route for too long, it said so, or a new life is there. Exactly
    /// one for each `NodeUp`.
    NodeDown {
        /// The node.
        id: NodeId,
        /// The life that is over.
        incarnation: Incarnation,
        /// Its full name; may be empty.
        name: Arc<str>,
    },
    /// A node that is up has another name from now on.
    NodeNamed {
        /// The node.
        id: NodeId,
        /// The name before; may be empty.
        former: Arc<str>,
        /// Its full name; may be empty.
        name: Arc<str>,
    },
    /// Dial this neighbour. Answer with `handle_link_up` or `handle_dial_failed`.
    Dial {
        /// The neighbour, to be named in the answer.
        neighbour: NeighbourId,
        /// Where it is.
        spec: NeighbourSpec,
        /// To be sent as [`Identity::dial_seq`].
        dial_seq: u64,
    },
    /// Two nodes have this name: this node and another, or two others of which one wants a link here.
    /// The one that came later is refused by all who know of the other. Once per life.
    NameClash {
        /// The name in question.
        name: Arc<str>,
        /// The life that came later, as far as is known; else 0.
        incarnation: Incarnation,
    },
    /// This node lives another life from now on: LSPs of a former one with a later clock are about. All
    /// links are closed; handshakes and channels from now on are of this life, the former ones over.
    Reborn {
        /// The new life.
        incarnation: Incarnation,
    },
    /// The ways to these nodes changed such that packets under way may be lost: other next hops, or a
    /// path gone further on. Ascending; also nodes just found.
    RouteChanged {
        /// The nodes.
        ids: Vec<NodeId>,
    },
}

/// Whether packets can take a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LinkState {
    /// The LSPs that the peer has newer are still coming.
    Sync,
    /// They have come: both ends use it.
    Up,
}

/// A link as the getters show it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LinkInfo {
    /// The link.
    pub link: LinkId,
    /// The other end.
    pub peer: Identity,
    /// The peer's address.
    pub remote: SocketAddr,
    /// Whether this node dialled.
    pub we_dialled: bool,
    /// Smoothed round trip in microseconds; `None` before the first echo.
    pub srtt_us: Option<u32>,
    /// The cost of sending over it.
    pub metric: u32,
    /// Whether packets can take it.
    pub state: LinkState,
    /// When it was taken into use.
    pub since: Instant,
}
