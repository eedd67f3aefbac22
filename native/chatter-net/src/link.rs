//! The sending side of a link: a scheduler and a socket.
//!
//! Any thread may queue packets and flush. Whoever flushes takes the packets out of the scheduler,
//! seals and writes them itself, so that an idle link costs no hop to another thread. Only one thread
//! writes at a time; the others leave their packets to it and go on. When the socket is full, or a
//! caller has done its share, the writer task takes over.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use chatter_core::crypto::record::{RecordError, Sealer};
use chatter_core::ids::LinkId;
use chatter_core::sched::{Scheduler, SchedulerLimits};
use chatter_core::wire::identity::Identity;
use chatter_core::wire::packet::Packet;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::channel::Channel;
use crate::transport::{Transport, WriteHalf};

/// Bytes taken from the scheduler for one write: few enough that what is queued later can still
/// overtake, enough that a system call is worth its cost.
const FILL_BYTES: usize = 128 * 1024;

/// Unsent bytes that the kernel may hold: what the link carries in [`LOWAT_TIME`], within these bounds.
/// More would be a queue behind the scheduler; less, and the link idles until the writer is awake.
pub(crate) const LOWAT_START: u32 = 128 * 1024;
const LOWAT_MIN: f64 = 32.0 * 1024.0;
const LOWAT_MAX: f64 = 2048.0 * 1024.0;
const LOWAT_TIME: Duration = Duration::from_millis(2);

/// Bytes of control packets queued, those of the data plane included: beyond it new ones are dropped.
const CONTROL_BYTES: usize = 4 * 1024 * 1024;

/// The rate of a link is taken anew after so many bytes.
const RATE_BYTES: usize = 1024 * 1024;

/// Packets below this length share a record; larger ones are sealed straight out of their buffer.
const SMALL_PACKET: usize = 4 * 1024;

/// Most plaintext that small packets share a record with.
const SHARED_RECORD: usize = 32 * 1024;

/// Bytes that a thread which is not the writer task writes per flush.
pub const INLINE_BUDGET: usize = 256 * 1024;

/// Live figures of a link; all count since it came up.
#[derive(Default)]
pub struct LinkStats {
    /// Bytes written to the socket.
    pub bytes_out: AtomicU64,
    /// Bytes read from the socket.
    pub bytes_in: AtomicU64,
    /// Packets put into records.
    pub packets_out: AtomicU64,
    /// Packets found in records.
    pub packets_in: AtomicU64,
    /// Packets that came in for another node and were passed on.
    pub relayed: AtomicU64,
    /// Times that the socket was full.
    pub blocked: AtomicU64,
}

/// A live link to a neighbour.
pub struct Link {
    /// Its number in this node.
    pub id: LinkId,
    /// Who is at the other end.
    pub peer: Identity,
    /// The other end's address.
    pub remote: SocketAddr,
    /// What carries it.
    pub transport: Transport,
    /// Live figures.
    pub stats: LinkStats,
    /// When authenticated bytes last came in, in ms since the node started.
    pub heard_ms: AtomicU64,
    /// Ends the link's tasks.
    pub(crate) close: Notify,
    queue: Mutex<Scheduler>,
    queue_limit: usize,
    control_limit: usize,
    /// The control plane waits for `room`.
    control_waits: AtomicBool,
    room: Arc<Notify>,
    own_bytes: AtomicUsize,
    io: Mutex<LinkIo>,
    socket: WriteHalf,
    work: AtomicBool,
    writer: Notify,
    closed: AtomicBool,
    waiting: Mutex<Vec<Arc<Channel>>>,
    has_waiting: AtomicBool,
}

struct LinkIo {
    sealer: Sealer,
    /// Sealed records: `out[written..end]` is to be written. Stays initialised and is never shrunk.
    out: Vec<u8>,
    written: usize,
    end: usize,
    /// Small packets that will share a record.
    shared: Vec<u8>,
    /// The writer task has it: others must not write.
    handed_over: bool,
    batch: Vec<Packet>,
    rate_since: Instant,
    rate_bytes: usize,
    lowat: u32,
}

enum Outcome {
    /// Nothing is queued any more.
    Drained,
    /// The writer task has to go on.
    HandedOver,
    /// The socket is of no use any more, or the keys are spent.
    Failed,
}

impl Link {
    pub(crate) fn new(
        id: LinkId,
        peer: Identity,
        remote: SocketAddr,
        sealer: Sealer,
        (transport, socket): (Transport, WriteHalf),
        limits: LinkLimits,
    ) -> Self {
        Self {
            id,
            peer,
            remote,
            transport,
            stats: LinkStats::default(),
            heard_ms: AtomicU64::new(0),
            close: Notify::new(),
            queue: Mutex::new(Scheduler::new(SchedulerLimits {
                transit_bytes: limits.relay_queue,
                control_bytes: CONTROL_BYTES,
            })),
            queue_limit: limits.link_queue,
            control_limit: limits.control_queue,
            control_waits: AtomicBool::new(false),
            room: limits.room,
            own_bytes: AtomicUsize::new(0),
            io: Mutex::new(LinkIo {
                sealer,
                out: Vec::new(),
                written: 0,
                end: 0,
                shared: Vec::new(),
                handed_over: false,
                batch: Vec::new(),
                rate_since: Instant::now(),
                rate_bytes: 0,
                lowat: LOWAT_START,
            }),
            socket,
            work: AtomicBool::new(false),
            writer: Notify::new(),
            closed: AtomicBool::new(false),
            waiting: Mutex::new(Vec::new()),
            has_waiting: AtomicBool::new(false),
        }
    }

    /// Queues a control packet. Flush afterwards.
    pub fn queue_control(&self, packet: Packet) {
        self.queue.lock().push_control(packet);
    }

    /// Whether the control plane should wait with more; it is told when it need not any longer.
    pub(crate) fn is_control_full(&self) -> bool {
        let queue = self.queue.lock();
        let full = queue.control_bytes() > self.control_limit;
        if full {
            self.control_waits.store(true, Ordering::Relaxed);
        }
        full
    }

    /// Whether the control plane still waits.
    pub(crate) fn waits_for_control(&self) -> bool {
        self.control_waits.load(Ordering::Relaxed)
    }

    /// Queues packets of an own channel. Flush afterwards.
    pub fn queue_own(&self, channel: u32, packets: impl Iterator<Item = Packet>) {
        let mut queue = self.queue.lock();
        for packet in packets {
            queue.push_own(channel, packet);
        }
        self.own_bytes.store(queue.own_bytes(), Ordering::Relaxed);
    }

    /// Queues a packet for another node. Flush afterwards.
    pub fn queue_transit(&self, hash: u64, packet: Packet, now: Instant) {
        self.queue.lock().push_transit(hash, packet, now);
    }

    /// Takes what waits here for other nodes, with the hash of its flow.
    pub(crate) fn take_transit(&self) -> Vec<(u64, Packet)> {
        self.queue.lock().take_transit()
    }

    /// Whether own traffic has reached its bound here. If so, `channel` is told when it is over.
    pub(crate) fn is_full(&self, channel: &Arc<Channel>) -> bool {
        if self.own_bytes.load(Ordering::Relaxed) <= self.queue_limit {
            return false;
        }
        let mut waiting = self.waiting.lock();
        if !waiting.iter().any(|known| Arc::ptr_eq(known, channel)) {
            waiting.push(channel.clone());
        }
        drop(waiting);
        self.has_waiting.store(true, Ordering::SeqCst);
        // It may have drained since: then nobody else would come by.
        self.writer.notify_one();
        true
    }

    /// Bytes queued of the control plane, and of acknowledgements and answers.
    pub fn control_bytes(&self) -> usize {
        self.queue.lock().control_bytes()
    }

    /// Bytes queued for own channels and in transit, and packets dropped and marked.
    pub fn queue_figures(&self) -> (usize, usize, u64, u64) {
        let queue = self.queue.lock();
        (queue.own_bytes(), queue.transit_bytes(), queue.dropped(), queue.marked())
    }

    /// Whether the link has been closed.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Whether nothing waits to be written, neither here nor in the writer's hands.
    pub fn is_drained(&self) -> bool {
        let io = self.io.lock();
        io.written == io.end && self.queue.lock().is_empty()
    }

    /// Closes the link; its tasks end and report it to the control plane.
    pub fn close(&self) {
        if !self.closed.swap(true, Ordering::SeqCst) {
            self.close.notify_waiters();
            self.close.notify_one();
            self.writer.notify_one();
        }
    }

    /// Writes what is queued, up to `budget` bytes; the writer task does the rest.
    pub fn flush(&self, budget: usize) {
        self.work.store(true, Ordering::SeqCst);
        while self.work.load(Ordering::SeqCst) {
            // Whoever holds the lock looks at `work` again after having released it.
            let Some(mut io) = self.io.try_lock() else { return };
            self.work.store(false, Ordering::SeqCst);
            if io.handed_over || self.is_closed() {
                return;
            }
            let outcome = io.drain(self, budget);
            drop(io);
            match outcome {
                Outcome::Drained => {}
                Outcome::HandedOver => {
                    self.writer.notify_one();
                    return;
                }
                Outcome::Failed => return self.close(),
            }
        }
    }

    /// The writer task: goes on where a flush stopped, and wakes channels that waited for room.
    pub(crate) async fn write_loop(self: Arc<Self>) {
        while !self.is_closed() {
            self.writer.notified().await;
            loop {
                if self.is_closed() {
                    return;
                }
                self.work.store(false, Ordering::SeqCst);
                let outcome = self.io.lock().drain(&self, FILL_BYTES * 4);
                self.wake_waiting();
                match outcome {
                    Outcome::Drained if self.work.load(Ordering::SeqCst) => {}
                    Outcome::Drained => break,
                    Outcome::HandedOver => {
                        if self.socket.writable().await.is_err() {
                            return self.close();
                        }
                    }
                    Outcome::Failed => return self.close(),
                }
            }
        }
    }

    fn wake_waiting(&self) {
        if !self.has_waiting.load(Ordering::SeqCst)
            || self.own_bytes.load(Ordering::Relaxed) > self.queue_limit / 2
        {
            return;
        }
        let waiting = {
            let mut waiting = self.waiting.lock();
            self.has_waiting.store(false, Ordering::SeqCst);
            std::mem::take(&mut *waiting)
        };
        for channel in waiting {
            channel.link_has_room();
        }
    }

    /// Takes the channels that waited for this link, when it is gone.
    pub(crate) fn take_waiting(&self) -> Vec<Arc<Channel>> {
        std::mem::take(&mut *self.waiting.lock())
    }
}

/// Bounds of a link's queues, in bytes.
#[derive(Clone, Debug)]
pub struct LinkLimits {
    /// See [`crate::config::NetConfig::relay_queue`].
    pub relay_queue: usize,
    /// See [`crate::config::NetConfig::link_queue`].
    pub link_queue: usize,
    /// See [`crate::config::NetConfig::control_queue`].
    pub control_queue: usize,
    /// Told when half of `control_queue` is free, if it was full before.
    pub room: Arc<Notify>,
}

impl LinkIo {
    fn drain(&mut self, link: &Link, budget: usize) -> Outcome {
        let mut left = budget;
        self.handed_over = false;
        loop {
            while self.written < self.end {
                match link.socket.try_write(&self.out[self.written..self.end]) {
                    Ok(n) => {
                        self.written += n;
                        link.stats.bytes_out.fetch_add(n as u64, Ordering::Relaxed);
                        self.rate_bytes += n;
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                        link.stats.blocked.fetch_add(1, Ordering::Relaxed);
                        self.handed_over = true;
                        return Outcome::HandedOver;
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => return Outcome::Failed,
                }
            }
            self.written = 0;
            self.end = 0;
            if self.rate_bytes >= RATE_BYTES {
                self.tune(link);
            }
            if left == 0 {
                self.handed_over = true;
                return Outcome::HandedOver;
            }
            self.take_batch(link);
            if self.batch.is_empty() {
                return Outcome::Drained;
            }
            if self.seal_batch().is_err() {
                return Outcome::Failed;
            }
            left = left.saturating_sub(self.end);
        }
    }

    /// Fits the kernel's part of the queue to the rate that the link has now.
    fn tune(&mut self, link: &Link) {
        let now = Instant::now();
        let elapsed = now.duration_since(self.rate_since).as_secs_f64().max(1e-6);
        let bytes = self.rate_bytes as f64 / elapsed * LOWAT_TIME.as_secs_f64();
        let lowat = bytes.clamp(LOWAT_MIN, LOWAT_MAX) as u32;
        (self.rate_since, self.rate_bytes) = (now, 0);
        if lowat.abs_diff(self.lowat) > self.lowat / 4 {
            self.lowat = lowat;
            link.socket.set_lowat(lowat);
        }
    }

    /// Takes the next packets from the scheduler.
    fn take_batch(&mut self, link: &Link) {
        let mut bytes = 0;
        let now = Instant::now();
        {
            let mut queue = link.queue.lock();
            while bytes < FILL_BYTES {
                let Some(packet) = queue.pop(now) else { break };
                bytes += packet.len();
                self.batch.push(packet);
            }
            link.own_bytes.store(queue.own_bytes(), Ordering::Relaxed);
            if link.control_waits.load(Ordering::Relaxed)
                && queue.control_bytes() <= link.control_limit / 2
            {
                link.control_waits.store(false, Ordering::Relaxed);
                link.room.notify_one();
            }
        }
        if link.has_waiting.load(Ordering::SeqCst) {
            link.writer.notify_one();
        }
        link.stats.packets_out.fetch_add(self.batch.len() as u64, Ordering::Relaxed);
    }

    /// Seals the packets that were taken.
    fn seal_batch(&mut self) -> Result<(), RecordError> {
        let batch = std::mem::take(&mut self.batch);
        let mut packets = batch.iter().peekable();
        while let Some(packet) = packets.next() {
            let small = |len: usize| {
                move |p: &&Packet| p.len() < SMALL_PACKET && len + p.len() <= SHARED_RECORD
            };
            if packet.len() >= SMALL_PACKET
                || packets.peek().is_none_or(|p| !small(packet.len())(p))
            {
                self.seal(&packet.head, &packet.body)?;
                continue;
            }
            let mut shared = std::mem::take(&mut self.shared);
            shared.clear();
            shared.extend_from_slice(&packet.head);
            shared.extend_from_slice(&packet.body);
            while let Some(more) = packets.next_if(small(shared.len())) {
                shared.extend_from_slice(&more.head);
                shared.extend_from_slice(&more.body);
            }
            let sealed = self.seal(&[], &shared);
            self.shared = shared;
            sealed?;
        }
        self.batch = batch;
        self.batch.clear();
        Ok(())
    }

    /// Seals `head` and `plain` as one record behind the others.
    fn seal(&mut self, head: &[u8], plain: &[u8]) -> Result<(), RecordError> {
        let needed = self.end + self.sealer.record_len(head.len() + plain.len());
        if self.out.len() < needed {
            self.out.resize(needed.max(2 * self.out.len()), 0);
        }
        self.end += self.sealer.seal_into(head, plain, &mut self.out[self.end..])?;
        Ok(())
    }
}
