//! The way out: messages are put together to datagrams while others are being sent.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use chatter_core::wire::datagram::{MAX_DATAGRAM, MAX_MESSAGE_BODY, put_message};
use tokio::time::{sleep_until, timeout};

use super::{Multicast, MulticastStats, NotSent, Segment};

/// How long the system may take to make room for one datagram.
const SEND_TIMEOUT: Duration = Duration::from_millis(100);

impl Multicast {
    /// Queues a message for all segments; several leave in one datagram when they come faster than
    /// datagrams can be sent. It may be lost on its way.
    ///
    /// # Errors
    /// See [`NotSent`]; nothing was queued.
    pub fn send(&self, kind: u8, body: &[u8]) -> Result<(), NotSent> {
        if self.segments.load().is_empty() {
            return Err(NotSent::Off);
        }
        if body.len() > MAX_MESSAGE_BODY {
            return Err(NotSent::TooLarge);
        }
        let mut queue = self.queue.lock();
        if queue.bytes + body.len() > self.config.queue {
            MulticastStats::count(&self.stats.queue_full);
            return Err(NotSent::Full);
        }
        let before = queue.plains.back().map_or(0, Vec::len);
        if !queue.plains.back_mut().is_some_and(|plain| put_message(plain, kind, body)) {
            let mut plain = Vec::with_capacity(MAX_DATAGRAM);
            put_message(&mut plain, kind, body);
            queue.bytes += plain.len();
            queue.plains.push_back(plain);
        } else {
            queue.bytes += queue.plains.back().map_or(0, Vec::len) - before;
        }
        drop(queue);
        self.queued.notify_one();
        Ok(())
    }

    fn next_plain(&self) -> Option<Vec<u8>> {
        let mut queue = self.queue.lock();
        let plain = queue.plains.pop_front()?;
        queue.bytes -= plain.len();
        Some(plain)
    }

    /// Counts a datagram that was given to the system.
    pub(super) fn sent(&self, result: std::io::Result<usize>) {
        match result {
            Ok(n) => {
                MulticastStats::count(&self.stats.datagrams_out);
                self.stats.bytes_out.fetch_add(n as u64, Ordering::Relaxed);
            }
            Err(_) => MulticastStats::count(&self.stats.send_errors),
        }
    }
}

/// The task.
pub(super) async fn run(multicast: Arc<Multicast>) {
    let mut datagram = Vec::with_capacity(MAX_DATAGRAM);
    loop {
        let Some(plain) = multicast.next_plain() else {
            multicast.queued.notified().await;
            continue;
        };
        loop {
            let taken = multicast.bucket.lock().take(Instant::now(), plain.len());
            match taken {
                Ok(()) => break,
                Err(at) => sleep_until(at.into()).await,
            }
        }
        multicast.sealer.lock().seal(&plain, &mut datagram);
        let segments = multicast.segments.load_full();
        for segment in segments.iter() {
            send(&multicast, segment, &datagram).await;
        }
    }
}

async fn send(multicast: &Multicast, segment: &Segment, datagram: &[u8]) {
    let sending = segment.wire.socket.send_to(datagram, segment.destination);
    let result = timeout(SEND_TIMEOUT, sending).await;
    multicast.sent(result.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())));
}
