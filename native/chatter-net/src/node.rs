//! One started carrier: what the data plane shares, and the way in for its user.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use chatter_core::broadcast::BroadcastConfig;
use chatter_core::channel::Settings;
use chatter_core::channel::send::MAX_WAYS;
use chatter_core::control::Control;
use chatter_core::dialer::NeighbourId;
use chatter_core::ids::{Incarnation, LinkId, NodeId};
use chatter_core::relay;
use chatter_core::routes::ForwardingTable;
use chatter_core::wire::data::{ChannelKind, ResetReason};
use chatter_core::wire::identity::Identity;
use chatter_core::wire::routed;
use parking_lot::Mutex;
use thiserror::Error;
use tokio::sync::{Notify, mpsc};

use crate::broadcast::{self, Broadcasts};
use crate::channel::{Channel, Wanted};
use crate::channels::Channels;
use crate::complaints::Complaints;
use crate::config::{ListenPort, NetConfig};
use crate::driver::{self, Input};
use crate::establish::EstablishError;
use crate::host::Host;
use crate::link::{INLINE_BUDGET, Link};
use crate::listen::{self, ListenError};
use crate::multicast::Multicast;
use crate::service::Service;
use crate::transport::LocalListener;
use crate::workers::{Stopper, Workers};
use crate::{dial, interfaces};

/// Inputs of the control plane that wait for it; beyond it readers wait.
const CONTROL_INBOX: usize = 4096;

/// Without a [`Node::pulse`] for so long, the others are told that nobody is at home.
const SILENT_AFTER_MS: u64 = 5_000;

/// Why a node cannot start.
#[derive(Debug, Error)]
pub enum StartError {
    /// It cannot listen.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The name is over 255 bytes.
    #[error("the node name is over 255 bytes")]
    Name,
    /// The runtime cannot start.
    #[error("cannot start the runtime: {0}")]
    Runtime(std::io::Error),
    /// The system gave no randomness.
    #[error("the system gave no randomness")]
    Entropy,
}

/// Counters of a node that belong to no link and no channel.
#[derive(Default)]
pub struct NodeStats {
    /// Packets of others that we passed on.
    pub transit_packets: AtomicU64,
    /// Relays told us that they dropped a packet of ours.
    pub unreachable_notices: AtomicU64,
    /// Packets of others that we could not pass on.
    pub relay_drops: AtomicU64,
    /// Packets of others that waited on a link when it was lost, and went on over another.
    pub rescued: AtomicU64,
    /// Half-open handshakes that were evicted for newer ones.
    pub evicted: AtomicU64,
    /// Connections that did not become links.
    pub refused: AtomicU64,
}

/// The forwarding table together with the links that it names; immutable.
pub(crate) struct Published {
    pub table: Arc<ForwardingTable>,
    pub links: HashMap<LinkId, Arc<Link>>,
    pub direct: HashMap<NodeId, Arc<Link>>,
}

/// One started carrier. See the [module](self).
pub struct Node {
    /// Who this node is, as others are told; its life may be a later one by now, see [`Node::life`].
    pub me: Identity,
    /// What it was started with.
    pub config: NetConfig,
    /// The port it listens on, if it does.
    pub port: Option<u16>,
    /// Counters.
    pub stats: NodeStats,
    /// Open channels.
    pub channels: Channels,
    /// UDP multicast, if it was started with it.
    pub multicast: Option<Arc<Multicast>>,
    /// What all channels have in common.
    pub(crate) settings: ArcSwap<Settings>,
    pub(crate) host: Arc<dyn Host>,
    pub(crate) control: mpsc::Sender<Input>,
    pub(crate) service: Service,
    pub(crate) broadcasts: Broadcasts,
    /// Told when a link that had too much of the control plane to write has room again.
    pub(crate) control_room: Arc<Notify>,
    published: ArcSwap<Published>,
    links: Mutex<HashMap<LinkId, Arc<Link>>>,
    link_ids: AtomicU32,
    /// Bytes that all channels keep until they are acknowledged.
    pub(crate) retained: AtomicUsize,
    complaints: Complaints,
    complained: Mutex<relay::Complaints>,
    /// When packets of others were last passed on; 0 if never.
    transit_ms: AtomicU64,
    /// When the user of this node last showed life; 0 if it never does.
    pulse_ms: AtomicU64,
    started: Instant,
    pub(crate) workers: Workers,
    stopper: Mutex<Option<Stopper>>,
}

impl Node {
    /// Starts a node: binds, then runs until [`Node::stop`].
    ///
    /// `incarnation` is microseconds since 1970; `seed` makes jitter differ between nodes.
    pub fn start(config: NetConfig, host: Arc<dyn Host>) -> Result<Arc<Self>, StartError> {
        if config.name.len() > 255 {
            return Err(StartError::Name);
        }
        let (workers, stopper) =
            Workers::start(config.workers, config.busy_poll).map_err(StartError::Runtime)?;
        let main = workers.main().clone();
        let entered = main.enter();
        let listener = listen::bind(config.listen_address, config.listen_port)?;
        let port = listener.as_ref().and_then(|l| l.local_addr().ok()).map(|at| at.port());
        let me = identity_of(&config, port)?;
        let seed = random_u64()?;
        let (control_tx, control_rx) = mpsc::channel(CONTROL_INBOX);
        let now = Instant::now();
        let mut control = Control::new(config.control, me.clone(), seed, now);
        let id = |name: &String| NodeId::for_name(name);
        let routes = config.routes.iter().map(|(to, via)| (id(to), id(via))).collect();
        control.set_static_routes(now, routes);
        let channels = Channels::new(config.max_channels);
        let multicast = config
            .multicast
            .as_ref()
            .map(|multicast| Multicast::new(&config, multicast, &me, seed, now));
        let settings = ArcSwap::from_pointee(Settings {
            me: me.id,
            incarnation: me.incarnation,
            name: me.name.clone(),
            window: config.channel_window,
            max_frame: config.max_frame,
            flow_quota: config.flow_quota,
            setup_retry: config.setup_retry,
            gap_timeout: config.gap_timeout.max(config.patience()),
            on_loss: config.on_loss,
        });
        let patience = config.broadcast.patience.max(config.patience());
        let multicast_rate = config.multicast.as_ref().map(|multicast| multicast.rate);
        let limits = BroadcastConfig { patience, multicast_rate, ..config.broadcast };
        let broadcasts = Broadcasts::new(limits, me.id, me.incarnation);
        let node = Arc::new(Self {
            broadcasts,
            me,
            config,
            port,
            stats: NodeStats::default(),
            channels,
            multicast,
            settings,
            host,
            control: control_tx,
            service: Service::default(),
            control_room: Arc::default(),
            published: ArcSwap::from_pointee(Published {
                table: Arc::new(ForwardingTable::default()),
                links: HashMap::new(),
                direct: HashMap::new(),
            }),
            links: Mutex::new(HashMap::new()),
            link_ids: AtomicU32::new(1),
            retained: AtomicUsize::new(0),
            complaints: Complaints::default(),
            complained: Mutex::default(),
            transit_ms: AtomicU64::new(0),
            pulse_ms: AtomicU64::new(0),
            started: now,
            workers,
            stopper: Mutex::new(Some(stopper)),
        });
        tokio::spawn(driver::run(node.clone(), control, control_rx));
        tokio::spawn(Service::run(node.clone()));
        tokio::spawn(broadcast::run(node.clone()));
        if let Some(listener) = listener {
            let local = node.listen_locally();
            tokio::spawn(listen::run(node.clone(), listener, local));
        }
        if let Some(multicast) = &node.multicast {
            multicast.start(&node);
        }
        drop(entered);
        Ok(node)
    }

    /// The Unix socket beside the TCP one. Without it the nodes of this host use TCP.
    fn listen_locally(&self) -> Option<LocalListener> {
        let port = self.port.filter(|_| self.config.unix_sockets)?;
        LocalListener::bind(self.config.listen_address, port)
            .inspect_err(|error| tracing::debug!(port, %error, "no Unix socket beside the port"))
            .ok()
    }

    /// Stops: says goodbye, gives queued data up to `drain` to leave, ends all tasks. Blocks; not for
    /// a thread of the runtime. A second call does nothing.
    pub fn stop(self: &Arc<Self>, drain: Duration) {
        let Some(stopper) = self.stopper.lock().take() else { return };
        let until = Instant::now() + drain;
        self.drain(until);
        for channel in self.channels.all() {
            channel.close(ResetReason::Stopped);
        }
        let (done, wait) = std::sync::mpsc::channel();
        let stop = Input::Run(Box::new(move |control, now| {
            control.stop(now);
            done.send(()).ok();
        }));
        if self.control.try_send(stop).is_ok() {
            wait.recv_timeout(Duration::from_millis(200)).ok();
        }
        self.drain(until.max(Instant::now() + Duration::from_millis(100)));
        stopper.stop();
        // Tasks that did not end in time have left their links in the table, and its half of each socket
        // would stay open as long as anybody holds the node.
        self.links.lock().clear();
        self.publish(None);
        if let Some(multicast) = &self.multicast {
            multicast.close();
        }
    }

    /// Waits until everything that is queued has been written and acknowledged, at most until `until`.
    fn drain(&self, until: Instant) {
        loop {
            let links = self.links.lock().values().all(|link| link.is_drained());
            let channels = self.channels.all().iter().all(|channel| {
                let figures = channel.figures();
                figures.sender.waiting_bytes + figures.sender.unacked_bytes == 0
            });
            if (links && channels) || Instant::now() >= until {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The current forwarding table.
    pub fn table(&self) -> Arc<ForwardingTable> {
        self.published.load().table.clone()
    }

    /// The present life of this node.
    pub fn life(&self) -> Incarnation {
        self.settings.load().incarnation
    }

    /// Live links.
    pub fn links(&self) -> Vec<Arc<Link>> {
        self.links.lock().values().cloned().collect()
    }

    /// The id of a reachable node of that name.
    pub fn id_of(&self, name: &str) -> Option<NodeId> {
        self.published.load().table.id_of(name)
    }

    /// Whether this is the forwarding table at present, as [`Node::table`] gave it.
    pub fn has_table(&self, known: &Weak<ForwardingTable>) -> bool {
        std::ptr::eq(Arc::as_ptr(&self.published.load().table), known.as_ptr())
    }

    /// The other end of the link that leads to `id`.
    pub fn remote_of(&self, id: NodeId) -> Option<SocketAddr> {
        self.next_hop(id, 0).map(|link| link.remote)
    }

    /// Asks `id` for a channel; its user is told by [`crate::host::ChannelHost::opened`]. `None` if
    /// there is no route or `max_channels` is reached.
    pub fn open_channel(self: &Arc<Self>, id: NodeId, kind: ChannelKind) -> Option<Arc<Channel>> {
        let published = self.published.load();
        let route = published.table.route(id)?;
        self.add_channel(id, &Wanted::Here(route.incarnation, &route.name, kind))
    }

    /// Starts the opening of a channel that was made by [`Node::open_channel`].
    pub fn begin_open(self: &Arc<Self>, channel: &Arc<Channel>) {
        channel.open(self);
    }

    /// Dials for the control plane, at the addresses that a neighbour was resolved to.
    pub fn dial(self: &Arc<Self>, neighbour: NeighbourId, seq: u64, addresses: Vec<SocketAddr>) {
        self.workers.main().spawn(dial::run(self.clone(), neighbour, seq, addresses));
    }

    /// Tells the control plane that a neighbour could not be resolved.
    pub fn dial_failed(&self, neighbour: NeighbourId) {
        self.control.try_send(Input::DialFailed(neighbour)).ok();
    }

    /// Runs `f` on the control plane's own task; `false` if it is too busy or gone.
    pub fn with_control(&self, f: impl FnOnce(&mut Control, Instant) + Send + 'static) -> bool {
        self.control.try_send(Input::Run(Box::new(f))).is_ok()
    }

    /// The user of this node shows life. The threads of a node outlive a user that hangs, and would
    /// answer for it; so after a first pulse, 5 s without another tell the network that it is silent.
    pub fn pulse(&self) {
        self.pulse_ms.store(self.now_ms().max(1), Ordering::Relaxed);
    }

    /// Asks the other nodes to send nothing through this one any more, or again. `false` if the control
    /// plane is too busy or gone. Whether they do shows [`Node::transit`].
    pub fn drain_transit(&self, drain: bool) -> bool {
        self.with_control(move |control, now| control.set_overload(now, drain))
    }

    /// How long nothing has been passed on for others (since the start, if never), and the bytes that
    /// wait to be.
    pub fn transit(&self) -> (Duration, usize) {
        let idle_ms = self.now_ms().saturating_sub(self.transit_ms.load(Ordering::Relaxed));
        let waiting = self.links().iter().map(|link| link.queue_figures().transit_bytes).sum();
        (Duration::from_millis(idle_ms), waiting)
    }

    /// Packets of others have been passed on.
    pub(crate) fn note_transit(&self, packets: u64) {
        self.stats.transit_packets.fetch_add(packets, Ordering::Relaxed);
        self.transit_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    /// The name that a node without one has by now. One that was started with a name keeps it.
    pub fn set_name(&self, name: String) -> bool {
        if let Some(multicast) = self.multicast.as_ref().filter(|_| self.config.name.is_empty()) {
            multicast.set_name(&name);
        }
        !self.config.name.is_empty()
            || self.with_control(move |control, now| control.set_name(now, &name))
    }

    /// This process stood still: the silence of its user so far says nothing.
    pub(crate) fn forgive_silence(&self) {
        if self.pulse_ms.load(Ordering::Relaxed) > 0 {
            self.pulse();
        }
    }

    /// Whether there was a pulse, but long ago.
    pub(crate) fn is_silent(&self) -> bool {
        let last = self.pulse_ms.load(Ordering::Relaxed);
        last > 0 && self.now_ms().saturating_sub(last) > SILENT_AFTER_MS
    }

    /// Whether the user of another node is known to show no life.
    pub fn is_peer_silent(&self, id: NodeId) -> bool {
        self.published.load().table.route(id).is_some_and(|route| route.silent)
    }

    /// Milliseconds since the node started.
    pub(crate) fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// This node's identity as it goes into a handshake.
    pub(crate) fn identity(&self, dial_seq: u64) -> Vec<u8> {
        Identity { dial_seq, incarnation: self.life(), ..self.me.clone() }.encode()
    }

    /// The link towards `destination`; an alternate if that is lost and the tables do not know it yet. A
    /// neighbour can always be answered over its own link, even before the tables know it.
    pub(crate) fn next_hop(&self, destination: NodeId, hash: u64) -> Option<Arc<Link>> {
        let published = self.published.load();
        published
            .table
            .next_hops(destination, hash)
            .find_map(|link| published.links.get(&link))
            .or_else(|| published.direct.get(&destination))
            .cloned()
    }

    /// Has `f` look at the links of the equally short ways to a node, at most [`MAX_WAYS`]; if none of
    /// them is there any more, at the one that is left. The one that `hash` chooses comes first.
    pub(crate) fn with_ways<T>(
        &self,
        destination: NodeId,
        hash: u64,
        f: impl FnOnce(&mut dyn Iterator<Item = &Arc<Link>>) -> T,
    ) -> T {
        let published = self.published.load();
        let links = |id: LinkId| published.links.get(&id);
        let equal = published.table.equal_hops(destination, hash).filter_map(links);
        let mut equal = equal.take(MAX_WAYS).peekable();
        if equal.peek().is_some() {
            return f(&mut equal);
        }
        let left = published.table.next_hops(destination, hash).find_map(links);
        f(&mut left.or_else(|| published.direct.get(&destination)).into_iter())
    }

    /// The link to a neighbour.
    pub(crate) fn direct_link(&self, neighbour: NodeId) -> Option<Arc<Link>> {
        let published = self.published.load();
        let chosen = published.table.link_to(neighbour);
        let chosen = chosen.and_then(|link| published.links.get(&link));
        chosen.or_else(|| published.direct.get(&neighbour)).cloned()
    }

    /// Whether there is a way to a node.
    pub(crate) fn is_reachable(&self, id: NodeId) -> bool {
        self.next_hop(id, 0).is_some()
    }

    /// Hands on what waits on a link that is gone, over other links where there is a way. The rest is
    /// lost; its sources send it again.
    pub(crate) fn rescue_transit(&self, dead: &Link) {
        let now = Instant::now();
        let mut links: Vec<Arc<Link>> = Vec::new();
        for (lane, packet) in dead.take_transit() {
            let destination = routed::destination(&packet);
            let way = destination
                .and_then(|destination| self.next_hop(destination, relay::path_hash(&lane)));
            let Some(link) = way.filter(|link| link.id != dead.id) else {
                self.stats.relay_drops.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            link.queue_transit(lane, packet, now);
            self.stats.rescued.fetch_add(1, Ordering::Relaxed);
            if !links.iter().any(|known| known.id == link.id) {
                links.push(link);
            }
        }
        links.iter().for_each(|link| link.flush(INLINE_BUDGET));
    }

    pub(crate) fn publish(&self, table: Option<Arc<ForwardingTable>>) {
        let table = table.unwrap_or_else(|| self.published.load().table.clone());
        let links = self.links.lock().clone();
        let direct = links.values().map(|link| (link.peer.id, link.clone())).collect();
        self.published.store(Arc::new(Published { table, links, direct }));
    }

    pub(crate) fn next_link_id(&self) -> LinkId {
        LinkId(self.link_ids.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn add_link(&self, link: &Arc<Link>) -> bool {
        {
            let mut links = self.links.lock();
            if links.len() >= self.config.max_links {
                return false;
            }
            links.insert(link.id, link.clone());
        }
        self.publish(None);
        true
    }

    pub(crate) fn remove_link(&self, link: &Link) {
        self.links.lock().remove(&link.id);
        self.publish(None);
    }

    pub(crate) fn link(&self, id: LinkId) -> Option<Arc<Link>> {
        self.links.lock().get(&id).cloned()
    }

    /// Whether one more RESET or UNREACHABLE may be sent this second.
    pub(crate) fn may_complain(&self) -> bool {
        self.complained.lock().may_complain(Instant::now())
    }

    /// Logs, at most now and then per address, that a connection did not become a link.
    pub(crate) fn complain(&self, remote: SocketAddr, error: &EstablishError, dialled: bool) {
        self.stats.refused.fetch_add(1, Ordering::Relaxed);
        self.complaints.log(self.started.elapsed(), remote, error, dialled);
    }

    pub(crate) fn count_evicted(&self) {
        self.stats.evicted.fetch_add(1, Ordering::Relaxed);
    }

    /// This node lives another life from now on: handshakes and channels are of that one.
    pub(crate) fn begin_life(&self, incarnation: Incarnation) {
        let settings = Settings { incarnation, ..Settings::clone(&self.settings.load()) };
        self.settings.store(Arc::new(settings));
        if let Some(multicast) = &self.multicast {
            multicast.begin_life(incarnation);
        }
        self.broadcast_life(incarnation);
        tracing::warn!(
            "this host's clock was set back since the node last ran: it goes on as a later life"
        );
    }

    /// Sends a packet of the control plane. Whether the link has enough to write for now; then
    /// `control_room` tells when it has room again.
    pub(crate) fn transmit_control(&self, link: LinkId, packet: Vec<u8>) -> bool {
        let Some(link) = self.link(link) else { return false };
        link.queue_control(packet.into());
        link.flush(INLINE_BUDGET);
        link.is_control_full()
    }

    /// Whether a link that was full for the control plane is so still.
    pub(crate) fn waits_for_control(&self, link: LinkId) -> bool {
        self.link(link).is_some_and(|link| link.waits_for_control())
    }
}

pub(crate) fn random_u64() -> Result<u64, StartError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|_| StartError::Entropy)?;
    Ok(u64::from_be_bytes(bytes))
}

fn identity_of(config: &NetConfig, port: Option<u16>) -> Result<Identity, StartError> {
    let id =
        if config.name.is_empty() { NodeId(random_u64()?) } else { NodeId::for_name(&config.name) };
    let micros = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_micros() as u64);
    let addresses = match (port, config.listen_port) {
        (None, _) | (_, ListenPort::None) => Vec::new(),
        (Some(port), _) => {
            let ips = if config.advertise.is_empty() {
                interfaces::addresses(config.listen_address)
            } else {
                config.advertise.clone()
            };
            ips.into_iter().map(|ip| SocketAddr::new(ip, port)).take(8).collect()
        }
    };
    Ok(Identity {
        id,
        incarnation: Incarnation(micros),
        name: config.name.clone(),
        hold_ms: config.control.hold_ms,
        hidden: false,
        listen: port.is_some(),
        addresses,
        dial_seq: 0,
    })
}
