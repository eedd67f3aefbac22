//! The control plane of a node: links in use, the map of the network, routes, and whom to dial.

mod adjacency;
mod config;
mod event;
mod flooding;
mod held_up;
mod links;
mod namesakes;
mod nodes;
mod routing;
mod rtt;
pub(crate) mod throttle;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;

use adjacency::Adjacency;
pub use config::ControlConfig;
pub use event::{CloseReason, ControlEvent, DisconnectTarget, LinkInfo, LinkState, LinkUp};
use namesakes::Namesakes;
use nodes::Nodes;
use throttle::{Throttle, jitter};

use self::config::ms;
use self::flooding::Origination;
use self::held_up::HeldUp;
use crate::dialer::{Dialer, NeighbourId, NeighbourInfo, NeighbourSpec};
use crate::ids::{LinkId, NodeId};
use crate::lsdb::Lsdb;
use crate::routes::{ForwardingTable, Topology};
use crate::statics::StaticRoutes;
use crate::wire::PacketType;
use crate::wire::hello::{ByeReason, Hello};
use crate::wire::identity::Identity;
use crate::wire::lsp::{Lsp, MAX_NEIGHBOURS, Neighbour};
use crate::wire::reader::WireError;
use crate::wire::summary::Summary;

/// The control plane of one node, as a machine without clock, sockets, threads or randomness.
///
/// It has one owner. All methods are of four kinds:
///
/// * **in**, what the network and the clock bring: [`handle_link_up`](Self::handle_link_up),
///   [`handle_link_down`](Self::handle_link_down), [`handle_packet`](Self::handle_packet),
///   [`handle_alive`](Self::handle_alive), [`handle_link_blocked`](Self::handle_link_blocked),
///   [`handle_dial_failed`](Self::handle_dial_failed), [`handle_timeout`](Self::handle_timeout);
/// * **commands**: [`connect`](Self::connect), [`disconnect`](Self::disconnect),
///   [`set_overload`](Self::set_overload), [`set_silent`](Self::set_silent),
///   [`set_name`](Self::set_name), [`stop`](Self::stop);
/// * **out**, what the owner has to carry out: [`poll_table`](Self::poll_table),
///   [`poll_transmit`](Self::poll_transmit), [`poll_event`](Self::poll_event),
///   [`poll_timeout`](Self::poll_timeout);
/// * **getters**, everything else.
///
/// After every in or command call, call the polls in the order given until each is empty, before the
/// next call: so a table is published before the event that tells of a node in it, and a link is told
/// goodbye before it is closed. `now` never goes back; an earlier one counts as the latest. Equal calls
/// with an equal seed have equal results, byte for byte.
///
/// A link goes through these steps: the caller completes a handshake and calls `handle_link_up`. Both
/// ends send HELLO and SUMMARY at once, then the LSPs that the other's SUMMARY lacks, then HELLO with
/// the flag SYNCED. With that the link is [`Up`](LinkState::Up): it carries packets, and the LSP lists it.
/// That takes one round trip. It ends with `handle_link_down` or with a
/// [`CloseLink`](ControlEvent::CloseLink) event.
#[derive(Clone, Debug)]
pub struct Control {
    config: ControlConfig,
    me: Identity,
    name: Arc<str>,
    rng: Xoshiro256PlusPlus,
    now: Instant,
    stopped: bool,
    held_up: Option<HeldUp>,

    links: BTreeMap<LinkId, Adjacency>,
    by_peer: BTreeMap<NodeId, LinkId>,
    lsdb: Lsdb,
    nodes: Nodes,
    dialer: Dialer,
    dial_seq: u64,
    overload: bool,
    silent: bool,
    namesakes: Namesakes,

    origination: Origination,
    spf: Throttle,
    spf_pending: bool,
    /// The links that packets can take.
    first_hops: Vec<(Neighbour, LinkId)>,
    first_hops_changed: bool,
    statics: StaticRoutes,

    table: Arc<ForwardingTable>,
    table_changed: bool,
    /// Links that may have something to send.
    pending: BTreeSet<LinkId>,
    /// Last packets of links that are being closed; at most two for each.
    farewell: VecDeque<(LinkId, Vec<u8>)>,
    events: VecDeque<ControlEvent>,
}

impl Control {
    /// A node without links. `seed` feeds the random spreading of times only; the hold time told to
    /// others is the one of `config`.
    pub fn new(mut config: ControlConfig, mut me: Identity, seed: u64, now: Instant) -> Self {
        config.max_links = config.max_links.min(MAX_NEIGHBOURS);
        me.hold_ms = config.hold_ms;
        let mut control = Self {
            lsdb: Lsdb::new(me.id, me.incarnation, config.lsdb_limits()),
            dialer: Dialer::new(config.dialer()),
            origination: Origination::new(&config, now),
            spf: Throttle::new(config.spf_ms, config.spf_quiet_ms),
            name: Arc::from(me.name.as_str()),
            rng: Xoshiro256PlusPlus::seed_from_u64(seed),
            config,
            me,
            now,
            stopped: false,
            held_up: None,
            links: BTreeMap::new(),
            by_peer: BTreeMap::new(),
            nodes: Nodes::default(),
            dial_seq: 0,
            overload: false,
            silent: false,
            namesakes: Namesakes::default(),
            spf_pending: false,
            first_hops: Vec::new(),
            first_hops_changed: false,
            statics: StaticRoutes::new(),
            table: Arc::default(),
            table_changed: true,
            pending: BTreeSet::new(),
            farewell: VecDeque::new(),
            events: VecDeque::new(),
        };
        control.settle();
        control
    }

    // ===== in =====

    /// A handshake is complete. What becomes of the link is told by events: `LinkUp`, or `CloseLink`
    /// alone if it cannot be used.
    pub fn handle_link_up(&mut self, now: Instant, up: LinkUp) {
        self.advance(now);
        self.link_up(up);
        self.settle();
    }

    /// A link has broken. A link that is not in use is ignored.
    pub fn handle_link_down(&mut self, now: Instant, link: LinkId) {
        self.advance(now);
        self.drop_link(link, None);
        self.settle();
    }

    /// A HELLO, LSP, SUMMARY or BYE came in. Packets of links that are not in use are ignored.
    ///
    /// # Errors
    /// The packet cannot be read, or is of another type; the link is closed (`CloseLink`), all else is
    /// as before. The peer's fault.
    pub fn handle_packet(
        &mut self,
        now: Instant,
        link: LinkId,
        kind: PacketType,
        body: &[u8],
    ) -> Result<(), WireError> {
        self.advance(now);
        let Some(adjacency) = self.links.get_mut(&link) else { return Ok(()) };
        adjacency.alive(self.now);
        let result = match kind {
            PacketType::Hello => Hello::decode(body).map(|hello| self.hello(link, &hello)),
            PacketType::Lsp => Lsp::decode(body).map(|lsp| self.lsp(link, lsp)),
            PacketType::Summary => {
                Summary::decode(body).map(|summary| self.summary(link, &summary))
            }
            PacketType::Bye => ByeReason::decode(body).map(|reason| {
                self.drop_link(link, Some(CloseReason::PeerBye));
                if reason == ByeReason::Clash {
                    self.refused_elsewhere();
                }
            }),
            PacketType::Data
            | PacketType::Ack
            | PacketType::Open
            | PacketType::Opened
            | PacketType::Reset
            | PacketType::ResetAck
            | PacketType::Unreachable
            | PacketType::CastAck
            | PacketType::Bcast
            | PacketType::BcastAck => Err(WireError::Invalid("control packet type")),
        };
        if result.is_err() {
            self.drop_link(link, Some(CloseReason::BadPacket));
        }
        self.settle();
        result
    }

    /// Something authentic came in on the link at that time, which may have passed: the peer lived
    /// then. Cheap; need not be told more often than every `hello_ms`.
    pub fn handle_alive(&mut self, at: Instant, link: LinkId) {
        self.advance(at);
        if let Some(adjacency) = self.links.get_mut(&link) {
            adjacency.alive(at);
        }
    }

    /// Whether the link has too much to write already. While it has, no LSPs are handed out for it;
    /// what waits is one LSP per origin, the newest.
    pub fn handle_link_blocked(&mut self, now: Instant, link: LinkId, blocked: bool) {
        self.advance(now);
        if let Some(adjacency) = self.links.get_mut(&link) {
            adjacency.blocked = blocked;
            self.pending.insert(link);
        }
    }

    /// A [`Dial`](ControlEvent::Dial) came to nothing.
    pub fn handle_dial_failed(&mut self, now: Instant, neighbour: NeighbourId) {
        self.advance(now);
        self.dialer.dial_failed(self.now, neighbour, &mut self.rng);
        self.settle();
    }

    /// Time has passed. To be called at [`poll_timeout`](Self::poll_timeout); earlier does no harm.
    ///
    /// Before it is called, everything that has come in should have been handed over: a call later than
    /// `late_ms` shows that this process was held up, and then nobody's silence counts for that time.
    pub fn handle_timeout(&mut self, now: Instant) {
        let late = self.poll_timeout().map(|at| now.saturating_duration_since(at));
        self.advance(now);
        if self.stopped {
            return;
        }
        if let Some(late) = late.filter(|late| *late > ms(self.config.late_ms)) {
            self.links.values_mut().for_each(|adjacency| adjacency.forgive(self.now, late));
            self.nodes.forgive(self.now, late, ms(self.config.unreachable_ms));
        }
        self.check_links();
        self.expire_nodes();
        self.expire_lsps();
        self.check_namesakes();
        self.settle();
    }

    // ===== commands =====

    /// Asks for a link to a neighbour, to be dialled now (event `Dial`) and, if `persistent`, whenever
    /// it is not there. `metric` is the cost of sending over it (at least 1) instead of the one by round
    /// trip time. Asking again for the same `spec` changes the metric and can make it persistent.
    /// `None` at the limit of `max_neighbours`.
    pub fn connect(
        &mut self,
        now: Instant,
        spec: NeighbourSpec,
        metric: Option<u32>,
        persistent: bool,
    ) -> Option<NeighbourId> {
        self.advance(now);
        if self.stopped {
            return None;
        }
        let linked = self.linked_as(&spec);
        let is_me = matches!(&spec, NeighbourSpec::Name(name) if *name == self.me.name);
        let id = self.dialer.add(self.now, spec, metric, persistent, linked)?;
        if is_me {
            self.dialer.stop(id);
        }
        if let Some(node) = linked {
            self.set_metric(node, metric);
        }
        self.settle();
        Some(id)
    }

    /// Dials once: [`connect`](Self::connect) that is not persistent and has no metric.
    pub fn dial_once(&mut self, now: Instant, spec: NeighbourSpec) -> Option<NeighbourId> {
        self.connect(now, spec, None, false)
    }

    /// Drops the wish for a neighbour and the link to it.
    pub fn disconnect(&mut self, now: Instant, target: &DisconnectTarget) {
        self.advance(now);
        self.disconnect_target(target);
        self.settle();
    }

    /// Asks the other nodes to relay through this one only where there is no other way (`true`), or as
    /// through any other again. They are told at once; how long until no more packets come to be
    /// relayed is seen where packets are.
    pub fn set_overload(&mut self, now: Instant, overload: bool) {
        self.advance(now);
        if self.overload != overload && !self.stopped {
            self.overload = overload;
            // Somebody waits for it, and it comes from outside: not to be throttled.
            self.originate(false);
        }
        self.settle();
    }

    /// The static routes from now on, at most [`MAX_STATIC_ROUTES`](crate::statics::MAX_STATIC_ROUTES).
    pub fn set_static_routes(&mut self, now: Instant, routes: StaticRoutes) {
        self.advance(now);
        self.statics = routes;
        self.spf_pending = true;
        self.settle();
    }

    /// The name of this node, should it get one, or another one, while it runs; empty for none. Its id
    /// stays. At most 255 bytes; a longer one is cut for others.
    pub fn set_name(&mut self, now: Instant, name: &str) {
        self.advance(now);
        if &*self.name != name {
            self.name = Arc::from(name);
            name.clone_into(&mut self.me.name);
            self.origination.want_good(self.now);
        }
        self.settle();
    }

    /// Tells the other nodes that whoever uses this one shows no life (`true`), or does so again. It is
    /// a relay all the same; see [`Route::silent`](crate::routes::Route::silent).
    pub fn set_silent(&mut self, now: Instant, silent: bool) {
        self.advance(now);
        if self.silent != silent {
            self.silent = silent;
            self.origination.want_good(self.now);
            self.settle();
        }
    }

    /// Leaves the network: tells all nodes (PURGE) and neighbours (BYE), closes all links, and reports
    /// all nodes as down. Later calls do nothing.
    pub fn stop(&mut self, now: Instant) {
        self.advance(now);
        if !self.stopped {
            self.leave();
        }
    }

    // ===== out =====

    /// The new forwarding table, if it has changed since the last call. The first call has an empty one.
    pub fn poll_table(&mut self) -> Option<Arc<ForwardingTable>> {
        std::mem::take(&mut self.table_changed).then(|| Arc::clone(&self.table))
    }

    /// The next packet to send, packet header included.
    pub fn poll_transmit(&mut self) -> Option<(LinkId, Vec<u8>)> {
        if let Some(last) = self.farewell.pop_front() {
            return Some(last);
        }
        while let Some(&link) = self.pending.first() {
            if let Some(adjacency) = self.links.get_mut(&link)
                && let Some(packet) =
                    adjacency.next_packet(self.now, self.me.id, &self.lsdb, &self.config)
            {
                return Some((link, packet));
            }
            self.pending.remove(&link);
        }
        None
    }

    /// The next thing to carry out or to tell.
    pub fn poll_event(&mut self) -> Option<ControlEvent> {
        self.events.pop_front()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout); `None` after `stop`. May change with every
    /// call.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.stopped {
            return None;
        }
        let spf = self.spf_pending.then(|| self.spf.next(self.now));
        let rest = [
            spf,
            self.origination.next_timeout(self.now),
            self.lsdb.next_expiry(),
            self.nodes.next_timeout(),
            self.namesakes.next_timeout(),
            self.dialer.next_timeout(),
        ];
        let links = self.links.values().map(Adjacency::next_timeout);
        links.chain(rest.into_iter().flatten()).min()
    }

    // ===== getters =====

    /// What this node says about itself.
    pub fn identity(&self) -> &Identity {
        &self.me
    }

    /// The links in use, by their ids.
    pub fn links(&self) -> Vec<LinkInfo> {
        self.links.iter().map(|(link, adjacency)| adjacency.info(*link)).collect()
    }

    /// The link to a neighbour.
    pub fn link_to(&self, node: NodeId) -> Option<LinkId> {
        self.by_peer.get(&node).copied()
    }

    /// The neighbours asked for.
    pub fn neighbours(&self) -> Vec<NeighbourInfo> {
        self.dialer.neighbours().collect()
    }

    /// Where a neighbour that was asked for is.
    pub fn neighbour(&self, id: NeighbourId) -> Option<&NeighbourSpec> {
        self.dialer.spec(id)
    }

    /// The other nodes that can be reached, with their lives, names and the addresses that they tell.
    pub fn addresses(&self) -> impl Iterator<Item = &Lsp> {
        let reachable = self.table.nodes().into_iter().filter(|id| *id != self.me.id);
        reachable.filter_map(|id| self.lsdb.get(id).map(|lsp| &**lsp))
    }

    /// Whether there is a route to the node; always to this one.
    pub fn is_reachable(&self, id: NodeId) -> bool {
        id == self.me.id || self.nodes.is_reachable(id)
    }

    /// The present forwarding table.
    pub fn table(&self) -> &Arc<ForwardingTable> {
        &self.table
    }

    /// Whether the others are asked not to relay through this node.
    pub fn is_overloaded(&self) -> bool {
        self.overload
    }

    /// Nodes and links of the whole network, as known here.
    pub fn topology(&self) -> Topology {
        Topology::new(&self.lsdb)
    }

    /// LSPs held, the own one included.
    pub fn lsdb_len(&self) -> usize {
        self.lsdb.len()
    }

    /// Equal in two nodes that hold the same LSPs.
    pub fn lsdb_digest(&self) -> u64 {
        self.lsdb.digest()
    }

    /// LSPs refused because of `max_nodes`, since the start.
    pub fn lsdb_refused(&self) -> u64 {
        self.lsdb.refused()
    }

    // ===== helpers =====

    /// Does what has become due: originate, compute paths, dial.
    fn settle(&mut self) {
        if self.stopped {
            return;
        }
        self.originate_if_due();
        self.run_spf_if_due();
        while let Some((neighbour, spec)) = self.dialer.poll(self.now, &mut self.rng) {
            self.dial_seq += 1;
            self.events.push_back(ControlEvent::Dial { neighbour, spec, dial_seq: self.dial_seq });
        }
    }

    fn refresh_after(&mut self) -> std::time::Duration {
        jitter(std::time::Duration::from_secs(self.config.refresh_s.into()), &mut self.rng)
    }
}
