//! Carries out what [`chatter_core::broadcast`] decides: one machine under a short lock, driven by
//! whoever has something for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chatter_core::broadcast::payload::Packed;
use chatter_core::broadcast::{
    Arrival, Broadcast, BroadcastConfig, BroadcastStats, Datagram, SendError, Targets,
};
use chatter_core::ids::{Incarnation, NodeId};
use chatter_core::routes::ForwardingTable;
use chatter_core::sched::Lane;
use chatter_core::sched::fair::Level;
use chatter_core::wire::PacketType;
use chatter_core::wire::cast::CastAck;
use chatter_core::wire::packet::Packet;
use chatter_core::wire::reader::WireError;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::sleep_until;

use crate::link::{INLINE_BUDGET, Link};
use crate::node::Node;

/// The queue of broadcasts on each link, in fair shares with channels; they have their own bound, and
/// what a full link drops is sent again.
const LANE: Lane = Lane { pair: 0, label: 0, level: Level::Normal };

struct State {
    core: Broadcast,
    /// When the task comes by next.
    armed: Option<Instant>,
    /// The user knows that there are messages.
    told: bool,
}

/// The broadcasts of a node.
pub(crate) struct Broadcasts {
    state: Mutex<State>,
    wake: Notify,
}

/// Who takes so many bytes of messages at once gets the next ones soon: to be told of each of their packets
/// would cost more than to look.
const BULK: usize = 4 * 1024;

/// When to ask again for messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Again {
    /// There are more.
    AtOnce,
    /// None is left, but many came together: in about a millisecond, untold.
    Soon,
    /// After [`crate::host::Host::broadcasts`].
    WhenTold,
}

/// Who drives the machine: the user must not be told on a thread of its own.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Thread {
    Runtime,
    User,
}

impl Broadcasts {
    pub(crate) fn new(config: BroadcastConfig, me: NodeId, life: Incarnation) -> Self {
        let core = Broadcast::new(config, me, life);
        Self { state: Mutex::new(State { core, armed: None, told: false }), wake: Notify::new() }
    }
}

impl Node {
    /// Sends a message to many nodes; see [`Broadcast::send`].
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn broadcast(&self, targets: &Targets, kind: &str, body: &Packed) -> Result<(), SendError> {
        self.drive(Thread::User, |core, now| core.send(now, targets, kind, body))
    }

    /// Adds a small message to others that wait to be sent to the same targets. Whether it could; if not, it
    /// is to be sent with [`Node::broadcast`].
    pub fn gather_broadcast(&self, targets: &Targets, kind: &str, body: &[u8]) -> bool {
        self.broadcasts.state.lock().core.gather(targets, kind, body)
    }

    /// The next messages, until they have so many bytes or there are so many of them, those that arrived
    /// together counted as one; and when to ask again.
    pub fn take_broadcasts(&self, bytes: usize, count: usize) -> (Vec<Arrival>, Again) {
        let mut taken = Vec::new();
        let mut again = Again::WhenTold;
        self.drive_state(Thread::User, |state, now| {
            let mut len = 0;
            while len < bytes && taken.len() < count {
                let Some(arrival) = state.core.poll_arrival() else { break };
                len += arrival.len();
                taken.push(arrival);
            }
            again = match state.core.has_delivery() {
                true => Again::AtOnce,
                false if len >= BULK => Again::Soon,
                false => Again::WhenTold,
            };
            state.told = again != Again::WhenTold;
            state.core.end_deliveries(now);
        });
        (taken, again)
    }

    /// The bytes of what [`Node::take_broadcasts`] would take first; 0 if there is nothing.
    pub fn next_broadcast_len(&self) -> usize {
        self.broadcasts.state.lock().core.next_delivery_len()
    }

    /// The types of which the user may change messages.
    pub fn set_broadcast_handled(&self, kinds: Vec<String>) {
        self.broadcasts.state.lock().core.set_handled(kinds);
    }

    /// What the user has made of a message; see [`Broadcast::dispatched`].
    pub fn broadcast_dispatched(&self, ticket: u64, seq: u64, changed: Option<Packed>) {
        self.drive(Thread::User, |core, now| core.dispatched(now, ticket, seq, changed));
    }

    /// Figures; and own bytes under way, and all bytes kept.
    pub fn broadcast_figures(&self) -> (BroadcastStats, (usize, usize)) {
        let state = self.broadcasts.state.lock();
        (state.core.stats(), state.core.bytes())
    }

    /// How many nodes are known to hear multicast of this one, and what may be sent by it at present, in
    /// bytes a second.
    pub fn broadcast_reach(&self) -> (usize, u64) {
        let state = self.broadcasts.state.lock();
        (state.core.hearers(Instant::now()), state.core.multicast_rate())
    }

    /// A life of a node has just said that it hears datagrams of this life of this one.
    pub(crate) fn broadcast_heard_by(&self, id: NodeId, life: Incarnation) {
        self.broadcasts.state.lock().core.handle_hears(Instant::now(), id, life);
    }

    pub(crate) fn handle_broadcast_datagram(
        &self,
        from: NodeId,
        kind: u8,
        body: &[u8],
    ) -> Result<(), WireError> {
        self.drive(Thread::Runtime, |core, now| core.handle_datagram(now, from, kind, body))
    }

    pub(crate) fn handle_cast_ack(&self, from: NodeId, ack: &CastAck) {
        self.drive(Thread::Runtime, |core, now| core.handle_cast_ack(now, from, ack));
    }

    pub(crate) fn handle_broadcast(
        &self,
        from: NodeId,
        kind: PacketType,
        body: &[u8],
    ) -> Result<(), WireError> {
        self.drive(Thread::Runtime, |core, now| core.handle_packet(now, from, kind, body))
    }

    pub(crate) fn broadcast_table(&self, table: Arc<ForwardingTable>) {
        self.drive(Thread::Runtime, |core, now| core.set_table(now, table));
    }

    pub(crate) fn broadcast_life(&self, life: Incarnation) {
        self.broadcasts.state.lock().core.begin_life(life);
    }

    fn drive<T>(&self, thread: Thread, f: impl FnOnce(&mut Broadcast, Instant) -> T) -> T {
        self.drive_state(thread, |state, now| f(&mut state.core, now))
    }

    fn drive_state<T>(&self, thread: Thread, f: impl FnOnce(&mut State, Instant) -> T) -> T {
        let now = Instant::now();
        let mut packets: Vec<(NodeId, Packet)> = Vec::new();
        let mut routed: Vec<(NodeId, Packet)> = Vec::new();
        let mut datagrams: Vec<Datagram> = Vec::new();
        let (result, mut tell) = {
            let mut state = self.broadcasts.state.lock();
            let result = f(&mut state, now);
            while let Some(next) = state.core.poll_transmit() {
                packets.push(next);
            }
            routed.extend(std::iter::from_fn(|| state.core.poll_routed(now)));
            datagrams.extend(std::iter::from_fn(|| state.core.poll_datagram()));
            let tell = !state.told && state.core.has_delivery();
            if tell && thread == Thread::Runtime {
                state.told = true;
            }
            let next = state.core.poll_timeout();
            let sooner = next.is_some_and(|at| state.armed.is_none_or(|armed| at < armed));
            if sooner {
                state.armed = next;
            }
            if sooner || (tell && thread == Thread::User) {
                self.broadcasts.wake.notify_one();
            }
            (result, tell)
        };
        // Datagrams first: what goes over links has a longer way.
        self.send_datagrams(thread, datagrams);
        self.send_broadcasts(packets);
        self.send_routed(routed);
        tell &= thread == Thread::Runtime;
        if tell {
            self.host.broadcasts();
        }
        result
    }

    fn send_datagrams(&self, thread: Thread, datagrams: Vec<Datagram>) {
        for datagram in datagrams {
            let Datagram { kind, body, .. } = &datagram;
            let sent = self.multicast.as_ref().map(|multicast| multicast.send(*kind, body));
            if sent != Some(Ok(())) {
                self.drive(thread, |core, now| core.handle_unsent(now, &datagram));
            }
        }
    }

    fn send_routed(&self, packets: Vec<(NodeId, Packet)>) {
        for (to, packet) in packets {
            // Without a route it is lost: who waits for it has none either, or asks again.
            if let Some(link) = self.next_hop(to, 0) {
                link.queue_control(packet);
                link.flush(INLINE_BUDGET);
            }
        }
    }

    fn send_broadcasts(&self, packets: Vec<(NodeId, Packet)>) {
        let mut links: Vec<Arc<Link>> = Vec::new();
        for (to, packet) in packets {
            // A link that is gone by now: the next table has it planned anew.
            let Some(link) = self.direct_link(to) else { continue };
            let acknowledgement = packet.head.get(3) == Some(&(PacketType::BcastAck as u8));
            if acknowledgement {
                link.queue_control(packet);
            } else {
                link.queue_transit(LANE, packet, Instant::now());
            }
            if !links.iter().any(|known| known.id == link.id) {
                links.push(link);
            }
        }
        links.iter().for_each(|link| link.flush(INLINE_BUDGET));
    }
}

/// The task for what has to be done at a time.
pub(crate) async fn run(node: Arc<Node>) {
    loop {
        let at = {
            let mut state = node.broadcasts.state.lock();
            state.armed = state.core.poll_timeout();
            state.armed
        };
        let wait = at.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
        tokio::select! {
            () = node.broadcasts.wake.notified() => {}
            () = sleep_until(wait.into()) => {}
        }
        node.drive(Thread::Runtime, |core, now| core.handle_timeout(now));
    }
}
