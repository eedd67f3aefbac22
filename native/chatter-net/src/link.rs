//! The sending side of a link: a scheduler and a socket.
//!
//! Any thread may queue packets and flush. Whoever flushes takes the packets out of the scheduler,
//! seals and writes them itself, so that an idle link costs no hop to another thread. Only one thread
//! writes at a time; the others leave their packets to it and go on. When the socket is full, or a
//! caller has done its share, the writer task takes over.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use chatter_core::crypto::record::{RecordError, Sealer};
use chatter_core::ids::LinkId;
use chatter_core::sched::fair::Level;
use chatter_core::sched::{Lane, Scheduler, SchedulerLimits, Turn};
use chatter_core::wire::identity::Identity;
use chatter_core::wire::packet::Packet;
use chatter_core::wire::routed::is_pressing;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::channel::Channel;
use crate::kernel_queue::KernelQueue;
use crate::transport::{Transport, WriteHalf};
use crate::workers::note_pace;

/// Bytes of control packets queued, those of the data plane included: beyond it new ones are dropped.
const CONTROL_BYTES: usize = 4 * 1024 * 1024;

/// Packets below this length share a record; larger ones are sealed straight out of their buffer.
const SMALL_PACKET: usize = 4 * 1024;

/// Most plaintext that small packets share a record with.
const SHARED_RECORD: usize = 32 * 1024;

/// Bytes that the writer task writes until it looks at what else there is.
const WRITER_BUDGET: usize = 128 * 1024;

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
    queue: Mutex<Queues>,
    control_limit: usize,
    /// The control plane waits for `room`.
    control_waits: AtomicBool,
    room: Arc<Notify>,
    io: Mutex<LinkIo>,
    socket: WriteHalf,
    work: AtomicBool,
    writer: Notify,
    closed: AtomicBool,
    waiting: Mutex<Vec<Arc<Channel>>>,
    has_waiting: AtomicBool,
}

/// The scheduler, and the channels that it knows by their indexes.
struct Queues {
    sched: Scheduler,
    channels: HashMap<u32, Arc<Channel>>,
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
    kernel: KernelQueue,
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
            queue: Mutex::new(Queues {
                sched: Scheduler::new(SchedulerLimits {
                    transit_bytes: limits.relay_queue,
                    control_bytes: CONTROL_BYTES,
                }),
                channels: HashMap::new(),
            }),
            control_limit: limits.control_queue,
            control_waits: AtomicBool::new(false),
            room: limits.room,
            io: Mutex::new(LinkIo {
                sealer,
                out: Vec::new(),
                written: 0,
                end: 0,
                shared: Vec::new(),
                handed_over: false,
                batch: Vec::new(),
                kernel: KernelQueue::new(&socket),
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
        self.queue.lock().sched.push_control(packet);
    }

    /// Whether the control plane should wait with more; it is told when it need not any longer.
    pub(crate) fn is_control_full(&self) -> bool {
        let queue = self.queue.lock();
        let full = queue.sched.control_bytes() > self.control_limit;
        if full {
            self.control_waits.store(true, Ordering::Relaxed);
        }
        full
    }

    /// Whether the control plane still waits.
    pub(crate) fn waits_for_control(&self) -> bool {
        self.control_waits.load(Ordering::Relaxed)
    }

    /// A channel of this node has packets at these levels (bits), and at no others. Called under the lock
    /// of its outgoing half, so that news overtake no older ones. Flush afterwards.
    pub(crate) fn set_own(&self, channel: &Arc<Channel>, ready: u8) {
        let index = channel.index.0;
        let mut queue = self.queue.lock();
        queue.sched.set_own(index, ready);
        if ready != 0 {
            queue.channels.entry(index).or_insert_with(|| channel.clone());
        }
    }

    /// A channel has had its turn; called as [`Link::set_own`] is.
    pub(crate) fn own_done(&self, channel: u32, level: Level, bytes: usize, ready: u8) {
        let mut queue = self.queue.lock();
        queue.sched.own_done(channel, level, bytes, ready);
        if ready == 0 {
            queue.channels.remove(&channel);
        }
    }

    /// A channel has nothing here any more.
    pub(crate) fn remove_own(&self, channel: u32) {
        let mut queue = self.queue.lock();
        queue.sched.remove_own(channel);
        queue.channels.remove(&channel);
    }

    /// Queues a packet for another node. Flush afterwards.
    pub fn queue_transit(&self, lane: Lane, packet: Packet, now: Instant) {
        self.queue.lock().sched.push_transit(lane, packet, now);
    }

    /// Takes what waits here for other nodes, with where it was queued.
    pub(crate) fn take_transit(&self) -> Vec<(Lane, Packet)> {
        self.queue.lock().sched.take_transit()
    }

    /// Has the writer task tell the user of a channel what has become of its queue: whoever writes now
    /// may not.
    pub(crate) fn wake_later(&self, channel: &Arc<Channel>) {
        let mut waiting = self.waiting.lock();
        if !waiting.iter().any(|known| Arc::ptr_eq(known, channel)) {
            waiting.push(channel.clone());
        }
        drop(waiting);
        self.has_waiting.store(true, Ordering::SeqCst);
    }

    /// Bytes queued of the control plane, and of acknowledgements and answers.
    pub fn control_bytes(&self) -> usize {
        self.queue.lock().sched.control_bytes()
    }

    /// Live figures of the queues.
    pub fn queue_figures(&self) -> QueueFigures {
        let (channels, mut figures) = {
            let queue = self.queue.lock();
            let figures = QueueFigures {
                own_bytes: 0,
                transit_bytes: queue.sched.transit_bytes(),
                dropped: queue.sched.dropped(),
                marked: queue.sched.marked(),
                late: queue.sched.late(),
                transit_delay: queue.sched.transit_delay(),
                own_delay: Duration::ZERO,
            };
            (queue.channels.values().cloned().collect::<Vec<_>>(), figures)
        };
        for channel in channels {
            let sender = channel.figures().sender;
            figures.own_bytes += sender.waiting_bytes;
            figures.own_delay = figures.own_delay.max(sender.queue_delay);
        }
        figures
    }

    /// Whether the link has been closed.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Whether nothing waits to be written, neither here nor in the writer's hands.
    pub fn is_drained(&self) -> bool {
        let io = self.io.lock();
        io.written == io.end && self.queue.lock().sched.is_empty()
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
                let outcome = self.io.lock().drain(&self, WRITER_BUDGET);
                self.wake_waiting();
                match outcome {
                    Outcome::Drained if self.work.load(Ordering::SeqCst) => {}
                    Outcome::Drained => break,
                    Outcome::HandedOver => {
                        if self.socket.writable().await.is_err() {
                            return self.close();
                        }
                        // The reader of this link is on the same thread.
                        tokio::task::yield_now().await;
                    }
                    Outcome::Failed => return self.close(),
                }
            }
        }
    }

    fn wake_waiting(&self) {
        if self.has_waiting.swap(false, Ordering::SeqCst) {
            let waiting = std::mem::take(&mut *self.waiting.lock());
            waiting.iter().for_each(Channel::wake_user);
        }
    }

    /// Takes the channels that have something here, and those that waited, when the link is gone.
    pub(crate) fn take_channels(&self) -> Vec<Arc<Channel>> {
        let mut channels = std::mem::take(&mut *self.waiting.lock());
        let mut queue = self.queue.lock();
        let known = std::mem::take(&mut queue.channels);
        known.keys().for_each(|index| queue.sched.remove_own(*index));
        channels.extend(known.into_values());
        channels
    }
}

/// Live figures of a link's queues; bytes now, packets since the link came up.
#[derive(Clone, Copy, Debug, Default)]
pub struct QueueFigures {
    /// Bytes that wait in the channels of this node that use the link.
    pub own_bytes: usize,
    /// Bytes that wait here for other nodes.
    pub transit_bytes: usize,
    /// Packets dropped because a limit was reached.
    pub dropped: u64,
    /// Packets that left with a mark.
    pub marked: u64,
    /// Packets dropped because nobody wanted them any more.
    pub late: u64,
    /// How long packets of other nodes wait here, smoothed.
    pub transit_delay: Duration,
    /// How long packets of the channels of this node that use the link now wait, smoothed: the longest.
    pub own_delay: Duration,
}

/// Bounds of a link's queues, in bytes.
#[derive(Clone, Debug)]
pub struct LinkLimits {
    /// See [`crate::config::NetConfig::relay_queue`].
    pub relay_queue: usize,
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
                let apart = self.kernel.is_apart(self.end - self.written);
                match link.socket.try_write(&self.out[self.written..self.end], apart) {
                    Ok(n) => {
                        self.written += n;
                        link.stats.bytes_out.fetch_add(n as u64, Ordering::Relaxed);
                        self.kernel.wrote(n);
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                        link.stats.blocked.fetch_add(1, Ordering::Relaxed);
                        self.kernel.blocked(&link.socket);
                        self.handed_over = true;
                        return Outcome::HandedOver;
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => return Outcome::Failed,
                }
            }
            self.written = 0;
            self.end = 0;
            self.kernel.tune(&link.socket);
            if left == 0 {
                self.handed_over = true;
                return Outcome::HandedOver;
            }
            self.take_batch(link);
            if self.batch.is_empty() {
                self.kernel.drained();
                return Outcome::Drained;
            }
            if self.seal_batch().is_err() {
                return Outcome::Failed;
            }
            left = left.saturating_sub(self.end);
        }
    }

    /// Takes the next packets from the scheduler, and from the channels whose turn it is.
    fn take_batch(&mut self, link: &Link) {
        let fill = self.kernel.batch();
        let mut bytes = 0;
        let now = Instant::now();
        let mut queue = link.queue.lock();
        while bytes < fill {
            match queue.sched.next(now) {
                None => break,
                Some(Turn::Packet(packet)) => {
                    bytes += packet.len();
                    self.batch.push(packet);
                }
                Some(Turn::Own { channel, level, bytes: turn }) => {
                    let Some(channel) = queue.channels.get(&channel).cloned() else {
                        queue.sched.remove_own(channel);
                        continue;
                    };
                    drop(queue);
                    let turn = turn.min(fill - bytes);
                    bytes += channel.pull(link, level, turn, now, &mut self.batch);
                    queue = link.queue.lock();
                }
            }
        }
        if link.control_waits.load(Ordering::Relaxed)
            && queue.sched.control_bytes() <= link.control_limit / 2
        {
            link.control_waits.store(false, Ordering::Relaxed);
            link.room.notify_one();
        }
        drop(queue);
        if let Some(pressing) = self.batch.iter().filter_map(is_pressing).reduce(|a, b| a || b) {
            self.kernel.fill(&link.socket, now, pressing);
            note_pace(now, pressing);
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
