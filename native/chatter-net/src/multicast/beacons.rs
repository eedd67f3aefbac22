//! The task that keeps sockets open on the right interfaces, sends beacons, and has found nodes dialled.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chatter_core::control::Control;
use chatter_core::dialer::NeighbourSpec;
use chatter_core::discovery::{Health, View, Watch};
use chatter_core::ids::{Incarnation, NodeId};
use chatter_core::wire::beacon::Beacon;
use chatter_core::wire::datagram::{MAX_DATAGRAM, kind, put_message};
use chatter_core::wire::identity::MAX_ADDRESSES;
use parking_lot::Mutex;
use socket2::SockRef;
use tokio::time::sleep_until;

use super::socket::{Interface, chosen, destination, interfaces, leave, open};
use super::{Multicast, MulticastStats, Segment, Wire, receive};
use crate::interfaces::is_global;
use crate::node::Node;

/// Between two looks at the interfaces of the host.
const LOOK: Duration = Duration::from_secs(2);

/// Between two looks at sockets and routes, at most.
const CHECK: Duration = Duration::from_millis(500);

pub(super) async fn run(node: Arc<Node>, multicast: Arc<Multicast>) {
    let mut look = Instant::now();
    let mut failed = false;
    loop {
        let now = Instant::now();
        if now >= look {
            look = now + LOOK;
            match multicast.follow_interfaces(&node) {
                Ok(()) => failed = false,
                Err(error) if !failed => {
                    failed = true;
                    tracing::warn!(%error, "no multicast on an interface: it is tried again");
                }
                Err(_) => {}
            }
        }
        multicast.check_sockets(&node, now);
        multicast.discover(&node, now);
        let at = multicast.discovery.lock().poll_timeout().min(now + CHECK).min(look);
        tokio::select! {
            () = multicast.changed.notified() => {}
            () = sleep_until(at.into()) => {}
        }
    }
}

impl Multicast {
    /// Opens and closes sockets as interfaces come, change and go. An interface that fails is tried
    /// again at the next look; the error is that of the last.
    fn follow_interfaces(self: &Arc<Self>, node: &Arc<Node>) -> io::Result<()> {
        let wanted = chosen(&interfaces()?, &self.config, &node.config);
        let current = self.segments.load_full();
        if current.iter().map(|segment| &segment.interface).eq(&wanted) {
            return Ok(());
        }
        for segment in current.iter().filter(|segment| !wanted.contains(&segment.interface)) {
            leave(&self.config, &segment.interface, &segment.wire.socket);
        }
        let mut result = Ok(());
        let mut segments = Vec::new();
        let mut changed = current.len() > wanted.len();
        for interface in wanted {
            match current.iter().find(|segment| segment.interface == interface) {
                Some(segment) => segments.push(segment.clone()),
                None => match self.open(node, interface, Watch::default()) {
                    Ok(segment) => {
                        changed = true;
                        segments.push(segment);
                    }
                    Err(error) => result = Err(error),
                },
            }
        }
        if changed {
            MulticastStats::count(&self.stats.interface_changes);
            self.segments.store(Arc::new(segments));
            tracing::debug!(interfaces = ?self.interfaces(), "multicast");
            self.discovery.lock().restart(Instant::now());
        }
        result
    }

    fn open(
        self: &Arc<Self>,
        node: &Arc<Node>,
        interface: Interface,
        watch: Watch,
    ) -> io::Result<Arc<Segment>> {
        let worker = node.workers.for_link();
        let socket = {
            let _entered = worker.enter();
            open(&self.config, &interface)?
        };
        let wire = Arc::new(Wire { socket, watch: Mutex::new(watch) });
        let task = worker.spawn(receive::run(node.clone(), self.clone(), wire.clone()));
        let destination = destination(&self.config, &interface);
        Ok(Arc::new(Segment { interface, destination, wire, task: task.abort_handle() }))
    }

    /// Opens sockets anew that do not hear themselves.
    fn check_sockets(self: &Arc<Self>, node: &Arc<Node>, now: Instant) {
        let current = self.segments.load_full();
        let mut segments = Vec::clone(&current);
        let mut silent = false;
        for segment in &mut segments {
            let watch = {
                let mut watch = segment.wire.watch.lock();
                if watch.check(now) == Health::Fine {
                    continue;
                }
                watch.clone()
            };
            silent = true;
            MulticastStats::count(&self.stats.silent_reopened);
            tracing::warn!(
                interface = segment.interface.name,
                "multicast: the socket did not hear itself and is opened anew"
            );
            leave(&self.config, &segment.interface, &segment.wire.socket);
            // Should it fail, the old one is kept and tried again.
            if let Ok(fresh) = self.open(node, segment.interface.clone(), watch) {
                *segment = fresh;
            }
        }
        if silent {
            self.segments.store(Arc::new(segments));
            self.discovery.lock().restart(now);
        }
    }

    /// Forgets who is silent, sends a beacon and dials, each if it is due.
    fn discover(&self, node: &Arc<Node>, now: Instant) {
        let mut discovery = self.discovery.lock();
        let expired = discovery.handle_timeout(now);
        let seen = discovery.poll_beacon(now);
        let (table, links) = (node.table(), node.links());
        let view = View {
            routed: &|id| table.route(id).is_some(),
            linked: &|id| links.iter().any(|link| link.peer.id == id),
            links: links.len(),
        };
        let dial = discovery.poll_dial(now, &view);
        drop(discovery);
        self.stats.expired.fetch_add(expired as u64, std::sync::atomic::Ordering::Relaxed);
        if let Some(seen) = seen {
            self.send_beacons(node, &seen, now);
        }
        if let Some(name) = dial {
            MulticastStats::count(&self.stats.dials);
            node.with_control(move |control: &mut Control, now| {
                control.dial_once(now, NeighbourSpec::Name(name.to_string()));
            });
        }
    }

    /// A beacon of its own for each interface: the addresses that are nearest come first.
    fn send_beacons(&self, node: &Node, seen: &[(NodeId, Incarnation)], now: Instant) {
        let segments = self.segments.load_full();
        let mut datagram = Vec::with_capacity(MAX_DATAGRAM);
        for segment in segments.iter() {
            let port = node.port.unwrap_or(0);
            let addresses = addresses(node, &segment.interface, &segments);
            let name = self.name.lock().clone();
            let beacon = Beacon { name, port, addresses, seen: seen.to_vec() };
            let mut plain = Vec::new();
            if !put_message(&mut plain, kind::BEACON, &beacon.encode()) {
                continue;
            }
            self.sealer.lock().seal(&plain, &mut datagram);
            // Straight to the system: the runtime does not know yet that a new socket is writable.
            let socket = SockRef::from(&segment.wire.socket);
            self.sent(socket.send_to(&datagram, &segment.destination.into()));
            MulticastStats::count(&self.stats.beacons_out);
            segment.wire.watch.lock().sent(now);
        }
    }
}

/// Where this node can be dialled from an interface: as configured, else at the addresses of that
/// interface and then at those of the others.
fn addresses(node: &Node, interface: &Interface, segments: &[Arc<Segment>]) -> Vec<SocketAddr> {
    let Some(port) = node.port else { return Vec::new() };
    let config = &node.config;
    let here = |ip: &std::net::IpAddr| is_global(ip) || interface.loopback;
    let mut ips = config.advertise.clone();
    if ips.is_empty() {
        ips.extend(config.listen_address);
    }
    if ips.is_empty() {
        ips.extend(&interface.addresses);
        let others = segments.iter().map(|segment| &segment.interface);
        ips.extend(others.filter(|other| *other != interface).flat_map(|other| &other.addresses));
    }
    ips.retain(here);
    ips.into_iter().take(MAX_ADDRESSES).map(|ip| SocketAddr::new(ip, port)).collect()
}
