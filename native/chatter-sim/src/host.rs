//! A node of the cluster: the core's parts, and what stands for its process and machine.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use chatter_core::control::{Control, ControlConfig};
use chatter_core::ids::{Incarnation, LinkId, NodeId};
use chatter_core::routes::ForwardingTable;
use chatter_core::sched::{Scheduler, SchedulerLimits};
use chatter_core::wire::identity::Identity;

use crate::channels::Channels;
use crate::heap::Event;
use crate::time::{Nanos, US};
use crate::users::Users;

/// Bytes of control packets queued per link, as in `chatter-net`.
pub(crate) const CONTROL_QUEUE: usize = 4 * 1024 * 1024;

/// The sending side of a link.
pub(crate) struct Link {
    pub(crate) wire: usize,
    pub(crate) end: usize,
    /// The node at the other end, as it said.
    pub(crate) peer: NodeId,
    pub(crate) queue: Scheduler,
    /// When something last came in.
    pub(crate) heard: Nanos,
    /// In the list of links to be flushed.
    pub(crate) dirty: bool,
    /// When its connection is looked at again, if that is ahead.
    pub(crate) wakes_at: Nanos,
    /// Channels that wait for room here.
    pub(crate) waiting: Vec<u32>,
}

/// What faults make of a host.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct HostConditions {
    pub(crate) down: bool,
    pub(crate) dark: bool,
    pub(crate) paused: bool,
    pub(crate) stalled: bool,
    pub(crate) draining: bool,
    pub(crate) drop_ppm: u32,
    pub(crate) double_ppm: u32,
    pub(crate) reorder_ppm: u32,
}

/// A node.
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) id: NodeId,
    /// Counts the lives, from 0.
    pub(crate) life: u32,
    pub(crate) incarnation: Incarnation,
    /// The process runs, or stands still.
    pub(crate) alive: bool,
    pub(crate) control: Control,
    pub(crate) table: Arc<ForwardingTable>,
    pub(crate) links: BTreeMap<LinkId, Link>,
    pub(crate) next_link: u32,
    /// The earliest call that the control plane was promised.
    pub(crate) timer: Option<Nanos>,
    pub(crate) now: HostConditions,
    /// What came in while the process stood still.
    pub(crate) stash: Vec<Event>,
    pub(crate) channels: Channels,
    pub(crate) users: Users,
}

/// How links queue.
pub(crate) fn scheduler(relay_queue: usize) -> Scheduler {
    Scheduler::new(SchedulerLimits { transit_bytes: relay_queue, control_bytes: CONTROL_QUEUE })
}

/// What a life of a node says about itself. A later life has the larger incarnation.
pub(crate) fn identity(name: &str, life: u32, now: Nanos) -> Identity {
    Identity {
        id: NodeId::for_name(name),
        incarnation: Incarnation(1_000_000 + now / US + u64::from(life)),
        name: name.to_owned(),
        hold_ms: ControlConfig::default().hold_ms,
        hidden: false,
        listen: true,
        addresses: vec![address()],
        dial_seq: 0,
    }
}

/// Where all nodes seem to live.
pub(crate) fn address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 29999))
}

impl Host {
    /// The link towards `destination`. A neighbour can always be answered over its own link.
    pub(crate) fn next_hop(&self, destination: NodeId, hash: u64) -> Option<LinkId> {
        let mut routed = self.table.next_hops(destination, hash);
        let routed = routed.find(|link| self.links.contains_key(link));
        routed.or_else(|| self.link_to(destination))
    }

    /// The life of a node that the table leads to.
    pub(crate) fn life_of(&self, id: NodeId) -> Option<Incarnation> {
        self.table.route(id).map(|route| route.incarnation)
    }

    fn link_to(&self, peer: NodeId) -> Option<LinkId> {
        self.links.iter().find(|(_, link)| link.peer == peer).map(|(id, _)| *id)
    }
}
