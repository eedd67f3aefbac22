//! The way in: one task for each segment. What is not of this cluster costs one short computation, and
//! only so much of it a second.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use chatter_core::crypto::DatagramError;
use chatter_core::rate::TokenBucket;
use chatter_core::wire::beacon::Beacon;
use chatter_core::wire::datagram::{DatagramHeader, MAX_DATAGRAM, kind, next_message};
use tokio::time::sleep_until;

use super::{Multicast, MulticastStats, Wire};
use crate::interfaces::is_link_local;
use crate::node::Node;
use crate::workers::note_activity;

/// Datagrams taken before others on this thread get their turn.
const BATCH: usize = 64;

/// What datagrams that are dropped may cost, a second: 4 for one that had to be checked or opened in
/// vain, 1 for one that had come before. Beyond it nothing is read for a moment, and the kernel drops;
/// for as long as that goes on, ever less is read.
const DROPS_PER_SECOND: u64 = 80_000;

/// How long such a moment is. After a shorter one few have found a place in the kernel's queue, and each
/// of these wakes this thread.
const DROP_PAUSE: Duration = Duration::from_millis(20);

/// After an error of the socket that may pass.
const ERROR_PAUSE: Duration = Duration::from_millis(50);

/// Reads until the task is ended with its segment.
pub(super) async fn run(node: Arc<Node>, multicast: Arc<Multicast>, wire: Arc<Wire>) {
    let mut drops = TokenBucket::new(DROPS_PER_SECOND, Instant::now());
    let mut buffer = [0; MAX_DATAGRAM + 1];
    loop {
        if wire.socket.readable().await.is_err() {
            return;
        }
        let mut resume = None;
        for _ in 0..BATCH {
            let (len, from) = match wire.socket.try_recv_from(&mut buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => {
                    resume = Some(Instant::now() + ERROR_PAUSE);
                    break;
                }
            };
            let cost = multicast.receive(&node, &wire, &mut buffer[..len], from);
            if cost > 0 && drops.take(Instant::now(), cost).is_err() {
                let now = Instant::now();
                if drops.halve(now) {
                    tracing::debug!(limit = drops.rate(), "reading less of a segment: strangers");
                }
                MulticastStats::count(&multicast.stats.pauses);
                resume = Some(now + DROP_PAUSE);
                break;
            }
        }
        match resume {
            Some(at) => sleep_until(at.into()).await,
            None => tokio::task::yield_now().await,
        }
    }
}

impl Multicast {
    /// Takes one datagram; what it cost in vain.
    fn receive(
        &self,
        node: &Arc<Node>,
        wire: &Wire,
        datagram: &mut [u8],
        from: SocketAddr,
    ) -> usize {
        let stats = &self.stats;
        let len = datagram.len();
        let mut opener = self.opener.lock();
        let header = match opener.check(datagram) {
            Ok(header) => header,
            Err(error) => return self.dropped(error),
        };
        if header.sender == self.me && header.incarnation == node.life() {
            wire.watch.lock().heard();
            MulticastStats::count(&stats.echoes);
            return 0;
        }
        let plain = match opener.open_checked(header, datagram) {
            Ok(opened) => opened.plain,
            Err(error) => return self.dropped(error),
        };
        drop(opener);
        MulticastStats::count(&stats.datagrams_in);
        stats.bytes_in.fetch_add(len as u64, Ordering::Relaxed);
        self.discovery.lock().handle_heard(Instant::now(), header.sender, header.incarnation);
        let mut rest = plain;
        loop {
            match next_message(&mut rest) {
                Ok(Some(message)) => self.message(node, header, message.kind, message.body, from),
                Ok(None) => return 0,
                Err(_) => {
                    MulticastStats::count(&stats.bad_messages);
                    return 0;
                }
            }
        }
    }

    fn message(
        &self,
        node: &Arc<Node>,
        header: DatagramHeader,
        code: u8,
        body: &[u8],
        from: SocketAddr,
    ) {
        match code {
            kind::BEACON => self.beacon(node, header, body, from),
            kind::CAST | kind::CAST_HELLO | kind::NAK => {
                note_activity();
                if node.handle_broadcast_datagram(header.sender, code, body).is_err() {
                    MulticastStats::count(&self.stats.bad_messages);
                }
            }
            _ => MulticastStats::count(&self.stats.unknown_kinds),
        }
    }

    fn beacon(&self, node: &Node, header: DatagramHeader, body: &[u8], from: SocketAddr) {
        let Ok(mut beacon) = Beacon::decode(body) else {
            return MulticastStats::count(&self.stats.bad_messages);
        };
        MulticastStats::count(&self.stats.beacons_in);
        // Where an address is of this link only, the socket alone knows which link that is.
        if let SocketAddr::V6(mut source) = from
            && is_link_local(source.ip())
            && beacon.port != 0
        {
            source.set_port(beacon.port);
            beacon.addresses.push(source.into());
        }
        let (id, incarnation) = (header.sender, header.incarnation);
        if self.discovery.lock().handle_beacon(Instant::now(), id, incarnation, &beacon) {
            MulticastStats::count(&self.stats.found);
            tracing::info!(name = %beacon.name, "found by multicast");
        }
        if beacon.seen.contains(&(self.me, node.life())) {
            node.broadcast_heard_by(id, incarnation);
        }
        self.changed.notify_one();
    }

    fn dropped(&self, error: DatagramError) -> usize {
        let stats = &self.stats;
        let (counter, cost) = match error {
            DatagramError::Malformed => (&stats.malformed, 4),
            DatagramError::Foreign => (&stats.foreign, 4),
            DatagramError::Forged => (&stats.forged, 4),
            DatagramError::Repeated => (&stats.repeated, 1),
            DatagramError::FormerLife | DatagramError::Old => (&stats.stale, 1),
        };
        MulticastStats::count(counter);
        cost
    }
}
