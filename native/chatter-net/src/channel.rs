//! A channel as its user and the links see it: the two halves of the core under one short lock each,
//! and the way to the other node.
//!
//! Packets stay with the channel until the link that leads to the other node has room for them
//! (`Channel::pull`).
//!
//! Locks: that of a link's socket before `tx`, before `rx`, before the table of channels and the queue of
//! a link. No lock is held while a link is flushed or the user is called, except that the user's sink is
//! called under `rx`, which keeps its data in order.

mod network;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use chatter_core::channel::Names;
use chatter_core::channel::budget::may_hold_more;
use chatter_core::channel::incoming::Incoming;
use chatter_core::channel::life::Outgoing;
pub use chatter_core::channel::life::State;
use chatter_core::channel::send::{FlowFigures, Sender, SenderFigures};
use chatter_core::ids::{ChannelIndex, Incarnation, NodeId};
use chatter_core::sched::Lane;
use chatter_core::sched::fair::Level;
use chatter_core::wire::data::{ChannelKind, Open, ResetReason};
use chatter_core::wire::packet::Packet;
use parking_lot::{Mutex, MutexGuard};

use crate::affinity::LastSeen;
use crate::host::{ChannelHost, ChannelSink};
use crate::link::{INLINE_BUDGET, Link};
use crate::node::Node;

/// So many times `channel_queue` may be queued while senders are held back one by one.
const HELD_QUEUE: usize = 4;

/// What became of frames that were handed in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SendStatus {
    /// Taken; more are welcome.
    Ready,
    /// Taken; hand in no more until [`ChannelHost::writable`] says so.
    Full,
    /// The channel has ended; the frames are gone.
    Closed,
}

struct Tx {
    half: Outgoing,
    /// The links that know whether there is something to send, one for each way of the sender, with the
    /// levels of which they were told last.
    on: Vec<(Arc<Link>, u8)>,
    /// The user was told `Full`.
    user_waits: bool,
    /// Flows of [`Channel::post`] that are over their quota.
    held: BTreeSet<u64>,
    /// What this channel counts for in [`Node::retained`].
    retained: usize,
}

/// Links that have something to send.
#[derive(Default)]
struct Flush {
    first: Option<Arc<Link>>,
    others: Vec<Arc<Link>>,
}

impl Flush {
    fn flush(&self) {
        self.first.iter().chain(&self.others).for_each(|link| link.flush(INLINE_BUDGET));
    }
}

struct Rx {
    half: Incoming,
    sink: Box<dyn ChannelSink>,
}

/// One end of a channel.
pub struct Channel {
    /// This end's index.
    pub index: ChannelIndex,
    /// The node at the other end.
    pub peer: NodeId,
    /// Its name; empty if it has none yet.
    pub peer_name: String,
    /// What it is for.
    pub kind: ChannelKind,
    /// Whether this end asked for the channel.
    pub opened_here: bool,
    /// The user's side.
    pub host: Arc<dyn ChannelHost>,
    node: Weak<Node>,
    /// Where the user was last seen.
    user: Arc<LastSeen>,
    /// That of the outgoing half, for those who do not hold its lock.
    state: AtomicU8,
    tx: Mutex<Tx>,
    rx: Mutex<Rx>,
    /// In the list of channels that need service.
    pub(crate) in_service: AtomicBool,
    frames_out: AtomicU64,
    bytes_out: AtomicU64,
    grants: AtomicU64,
}

/// Live figures of a channel.
#[derive(Clone, Debug)]
pub struct ChannelFigures {
    /// Where it is in its life.
    pub state: State,
    /// Frames handed in, and bytes in them.
    pub frames_out: u64,
    /// Bytes in the frames handed in.
    pub bytes_out: u64,
    /// Times that frames were granted as taken.
    pub grants: u64,
    /// What the sender has to tell.
    pub sender: SenderFigures,
    /// Packets that came twice.
    pub duplicates: u64,
    /// Packets that came with the mark of a relay.
    pub marks_in: u64,
    /// Flows that the other end has now.
    pub flows_in: usize,
    /// Packets that were taken although others before them were missing.
    pub early: u64,
    /// Frames of the other end that were lost for good.
    pub lost_in: u64,
}

/// For whom a channel is made.
pub(crate) enum Wanted<'a> {
    /// For the user of this node, to that life of a node with that name.
    Here(Incarnation, &'a str, ChannelKind),
    /// For the node that sent this OPEN.
    There(&'a Open),
}

impl Channel {
    pub(crate) fn new(node: &Arc<Node>, names: Names, wanted: &Wanted<'_>) -> Arc<Self> {
        let (host, sink) = node.host.channel();
        let settings = node.settings.load_full();
        let now = Instant::now();
        let mut incoming = Incoming::new(&settings, names);
        let (outgoing, peer_name, kind) = match wanted {
            Wanted::Here(life, name, kind) => {
                (Outgoing::asking(settings, names, *life, now).of_kind(*kind), *name, *kind)
            }
            Wanted::There(open) => {
                incoming.open(open.index);
                (Outgoing::granting(settings, names, open, now), &*open.name, open.kind)
            }
        };
        if kind == ChannelKind::Distribution && node.config.flows {
            incoming.join_fragments();
        }
        Arc::new(Self {
            index: names.index,
            peer: names.peer,
            peer_name: peer_name.to_string(),
            kind,
            opened_here: matches!(wanted, Wanted::Here(..)),
            host,
            node: Arc::downgrade(node),
            user: node.workers.user().clone(),
            state: AtomicU8::new(outgoing.state() as u8),
            tx: Mutex::new(Tx {
                half: outgoing,
                on: Vec::new(),
                user_waits: false,
                held: BTreeSet::new(),
                retained: 0,
            }),
            rx: Mutex::new(Rx { half: incoming, sink }),
            in_service: AtomicBool::new(false),
            frames_out: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            grants: AtomicU64::new(0),
        })
    }

    /// Where the channel is in its life.
    pub fn state(&self) -> State {
        match self.state.load(Ordering::SeqCst) {
            0 => State::Opening,
            1 => State::Open,
            2 => State::Closing,
            _ => State::Closed,
        }
    }

    /// The life of the node at the other end; may become a newer one while the channel is being opened.
    pub fn peer_incarnation(&self) -> Incarnation {
        self.tx.lock().half.peer_incarnation()
    }

    /// Live figures.
    pub fn figures(&self) -> ChannelFigures {
        let tx = self.tx.lock();
        let rx = self.rx.lock();
        ChannelFigures {
            state: tx.half.state(),
            frames_out: self.frames_out.load(Ordering::Relaxed),
            bytes_out: self.bytes_out.load(Ordering::Relaxed),
            grants: self.grants.load(Ordering::Relaxed),
            sender: tx.half.sender().map(Sender::figures).unwrap_or_default(),
            duplicates: rx.half.receiver().duplicates(),
            marks_in: rx.half.marks(),
            flows_in: rx.half.receiver().flows(),
            early: rx.half.receiver().early(),
            lost_in: rx.half.receiver().lost(),
        }
    }

    /// The flows that have sent most, the first of them first: at most so many.
    pub fn talkers(&self, most: usize) -> Vec<FlowFigures> {
        let tx = self.tx.lock();
        let mut flows: Vec<_> = tx.half.sender().into_iter().flat_map(Sender::flows).collect();
        drop(tx);
        flows.sort_unstable_by_key(|flow| std::cmp::Reverse((flow.bytes, flow.key)));
        flows.truncate(most);
        flows
    }

    /// Hands in what `push` puts into the sender, which returns the bytes: frames in order. Also gives
    /// the flows that are over their quota by now, whose senders are to be held back until
    /// [`ChannelHost::resume`].
    pub fn send(
        self: &Arc<Self>,
        frames: u64,
        push: impl FnOnce(&mut Sender) -> u64,
    ) -> (SendStatus, Vec<u64>) {
        let closed = (SendStatus::Closed, Vec::new());
        let Some(node) = self.node.upgrade() else { return closed };
        self.user.here();
        let links;
        let status;
        let hold;
        {
            let now = Instant::now();
            let mut tx = self.tx.lock();
            let Some(sender) = tx.half.sender_mut() else { return closed };
            sender.begin_batch(now);
            if let Some(news) = self.rx.try_lock().and_then(|mut rx| rx.half.take_piggyback()) {
                sender.push_ack(news.next, news.credit);
            }
            let bytes = push(sender);
            self.bytes_out.fetch_add(bytes, Ordering::Relaxed);
            self.frames_out.fetch_add(frames, Ordering::Relaxed);
            sender.end_batch();
            hold = sender.take_hold();
            links = self.announce(&node, &mut tx, now);
            tx.user_waits = true;
            let ready = self.user_may_go_on(&node, &mut tx);
            status = if ready { SendStatus::Ready } else { SendStatus::Full };
        }
        links.flush();
        self.want_service(&node);
        (status, hold)
    }

    /// Gives a link packets of one level, up to so many bytes; returns how many. Called by whoever writes
    /// to the link, on any thread.
    pub(crate) fn pull(
        self: &Arc<Self>,
        link: &Link,
        level: Level,
        bytes: usize,
        now: Instant,
        packets: &mut Vec<Packet>,
    ) -> usize {
        let mut guard = self.tx.lock();
        let tx = &mut *guard;
        let Some(way) = tx.on.iter().position(|(on, _)| on.id == link.id) else {
            link.remove_own(self.index.0);
            return 0;
        };
        let mut taken = 0;
        let mut ready = 0;
        if let Some(sender) = tx.half.sender_mut() {
            while taken < bytes
                && let Some(packet) = sender.poll_on(way, now, level)
            {
                taken += packet.len();
                packets.push(packet);
            }
            ready = sender.ready_on(way);
            tx.on[way].1 = ready;
            // What waited behind a fence goes over all ways.
            let more = |(way, (_, told)): (usize, &(_, u8))| sender.ready_on(way) & !told != 0;
            let others_have_more = tx.on.len() > 1 && tx.on.iter().enumerate().any(more);
            if tx.user_waits || sender.has_resume() || others_have_more {
                link.wake_later(self);
            }
        }
        link.own_done(self.index.0, level, taken, ready);
        taken
    }

    /// Hands in the one frame of this flow that `push` puts into the sender, unless the channel is full or
    /// the flow over its quota: then nothing is taken, and [`ChannelHost::writable`] says when to try
    /// again. For channels with many senders, none of which knows of the others.
    pub fn post(self: &Arc<Self>, flow: u64, push: impl FnOnce(&mut Sender) -> u64) -> SendStatus {
        let Some(node) = self.node.upgrade() else { return SendStatus::Closed };
        let now = Instant::now();
        let mut guard = self.tx.lock();
        let tx = &mut *guard;
        let room = self.room(&node, tx, flow);
        let links = match tx.half.sender_mut() {
            Some(sender) if room == SendStatus::Ready => {
                sender.begin_batch(now);
                let bytes = push(sender);
                sender.end_batch();
                tx.held.extend(sender.take_hold());
                self.bytes_out.fetch_add(bytes, Ordering::Relaxed);
                self.frames_out.fetch_add(1, Ordering::Relaxed);
                self.announce(&node, tx, now)
            }
            _ => Flush::default(),
        };
        drop(guard);
        links.flush();
        if room != SendStatus::Closed {
            self.want_service(&node);
        }
        room
    }

    /// Whether [`Channel::post`] would take a frame of this flow now. If not, [`ChannelHost::writable`] says
    /// when.
    pub fn has_room(self: &Arc<Self>, flow: u64) -> SendStatus {
        let Some(node) = self.node.upgrade() else { return SendStatus::Closed };
        let room = self.room(&node, &mut self.tx.lock(), flow);
        if room == SendStatus::Full {
            self.want_service(&node);
        }
        room
    }

    /// A user that was told `Full` before stays to be told.
    fn room(&self, node: &Node, tx: &mut Tx, flow: u64) -> SendStatus {
        if tx.half.sender().is_none() {
            return SendStatus::Closed;
        }
        if tx.held.contains(&flow) {
            return SendStatus::Full;
        }
        let waited = std::mem::replace(&mut tx.user_waits, true);
        if !self.user_may_go_on(node, tx) {
            return SendStatus::Full;
        }
        tx.user_waits = waited;
        SendStatus::Ready
    }

    /// Closes the channel from this end if everything that was handed in has been acknowledged; whether
    /// it has ended.
    pub fn close_if_idle(self: &Arc<Self>) -> bool {
        let Some(node) = self.node.upgrade() else { return true };
        let now = Instant::now();
        let mut tx = self.tx.lock();
        if tx.half.sender().is_some_and(|sender| !sender.is_idle()) {
            return false;
        }
        if tx.half.close(ResetReason::Unused, now) {
            self.rx.lock().half.end();
            node.channels.closing(self.index);
            self.carry_on(&node, tx, now);
            self.want_service(&node);
        }
        true
    }

    /// Closes the channel from this end. Safe from any thread; the user is not told.
    pub fn close(self: &Arc<Self>, reason: ResetReason) {
        let Some(node) = self.node.upgrade() else { return };
        let now = Instant::now();
        let mut tx = self.tx.lock();
        self.let_go(&node, &mut tx, now);
        if tx.half.close(reason, now) {
            self.rx.lock().half.end();
            node.channels.closing(self.index);
            self.carry_on(&node, tx, now);
            self.want_service(&node);
        }
    }

    /// The VM has taken frames of this cost.
    pub fn grant(self: &Arc<Self>, cost: u64) {
        let Some(node) = self.node.upgrade() else { return };
        self.grants.fetch_add(1, Ordering::Relaxed);
        let (ack, wants) = {
            let mut rx = self.rx.lock();
            rx.half.grant(cost);
            (rx.half.poll_ack(), rx.half.wants_service())
        };
        self.send_ack(&node, ack);
        if wants {
            self.want_service(&node);
        }
    }

    /// Runs `f` on the user's sink, in order with everything received. For threads of the user.
    pub fn with_sink<T>(&self, f: impl FnOnce(&mut dyn ChannelSink) -> T) -> T {
        self.user.here();
        f(self.rx.lock().sink.as_mut())
    }

    // ===== to the network =====

    /// Sends what the outgoing half has to send. On a thread of the runtime.
    fn carry_on(self: &Arc<Self>, node: &Arc<Node>, mut tx: MutexGuard<'_, Tx>, now: Instant) {
        if tx.half.is_unconfirmed() && self.rx.lock().half.is_over() {
            tx.half.confirm_end();
        }
        let links = self.announce(node, &mut tx, now);
        self.state.store(tx.half.state() as u8, Ordering::SeqCst);
        let writable = self.user_may_go_on(node, &mut tx);
        drop(tx);
        links.flush();
        if writable {
            self.host.writable();
        }
    }

    /// Takes the channel out of the table when neither half has anything left to do.
    fn forget_if_over(&self, node: &Node) {
        let (state, farewell) = {
            let mut tx = self.tx.lock();
            (tx.half.state(), tx.half.take_farewell())
        };
        self.state.store(state as u8, Ordering::SeqCst);
        if state == State::Closed && (farewell.is_some() || self.rx.lock().half.is_over()) {
            node.channels.remove(self.index, farewell);
        }
    }

    /// Lets the links that lead to the peer know what there is to send; flush them afterwards, without the
    /// lock.
    fn announce(self: &Arc<Self>, node: &Node, tx: &mut Tx, now: Instant) -> Flush {
        let hash = u64::from(self.index.0);
        let unchanged = |links: &mut dyn Iterator<Item = &Arc<Link>>| {
            links.map(|link| link.id).eq(tx.on.iter().map(|(on, _)| on.id))
        };
        if !node.with_ways(self.peer, hash, unchanged) {
            let ways: Vec<_> = node.with_ways(self.peer, hash, |links| links.cloned().collect());
            for (on, _) in tx.on.drain(..) {
                if ways.iter().all(|link| link.id != on.id) {
                    on.remove_own(self.index.0);
                }
            }
            if let Some(sender) = tx.half.sender_mut() {
                sender.set_ways(ways.len());
            }
            tx.on.extend(ways.into_iter().map(|link| (link, 0)));
        }
        let Tx { half, on, .. } = tx;
        let Some((first, _)) = on.first() else { return Flush::default() };
        let mut flush = Flush { first: Some(first.clone()), others: Vec::new() };
        while let Some(signal) = half.poll_signal(now) {
            first.queue_control(signal);
        }
        for (way, (link, told)) in on.iter_mut().enumerate() {
            *told = half.ready_on(way);
            link.set_own(self, *told);
            if way > 0 && *told != 0 {
                flush.others.push(link.clone());
            }
        }
        flush
    }

    /// The channel is about to be closed here: what may leave does so without it.
    fn let_go(&self, node: &Node, tx: &mut Tx, now: Instant) {
        let Some(sender) = tx.half.sender_mut() else { return };
        let Some(link) = node.next_hop(self.peer, u64::from(self.index.0)) else { return };
        let lane = Lane { pair: u64::from(self.index.0), label: 0, level: Level::Normal };
        while let Some(packet) = sender.poll_packet(now) {
            link.queue_transit(lane, packet, now);
        }
    }

    fn send_ack(&self, node: &Node, ack: Option<Packet>) {
        if let Some(ack) = ack
            && let Some(link) = node.next_hop(self.peer, u64::from(self.index.0))
        {
            link.queue_control(ack);
            link.flush(INLINE_BUDGET);
        }
    }

    /// Sends OPEN for the first time, or leaves that to the service if it is too early.
    pub(crate) fn open(self: &Arc<Self>, node: &Arc<Node>) {
        let mut tx = self.tx.lock();
        tx.half.hold_open(!node.channels.may_open(self.peer));
        self.carry_on(node, tx, Instant::now());
        self.want_service(node);
    }

    /// Confirms an OPEN, for the first time or again.
    pub(crate) fn confirm_open(self: &Arc<Self>, node: &Arc<Node>) {
        let mut tx = self.tx.lock();
        tx.half.confirm_open();
        self.carry_on(node, tx, Instant::now());
    }

    /// Whether the user, if it was told `Full`, may now hand in more; counts as told.
    fn user_may_go_on(&self, node: &Node, tx: &mut Tx) -> bool {
        let over = self.count_retained(node, tx);
        let sender = tx.half.sender();
        // Who is held back has sent more before it stops; that must not count against all others.
        let held = sender.is_some_and(Sender::holds_back);
        let limit = node.config.channel_queue * if held { HELD_QUEUE } else { 1 };
        let queued = sender.map_or(usize::MAX, |sender| sender.queued_bytes().0);
        if !tx.user_waits || over || queued > limit {
            return false;
        }
        tx.user_waits = false;
        true
    }

    /// Brings the node's count of retained bytes up to date; whether this channel has its share.
    fn count_retained(&self, node: &Node, tx: &mut Tx) -> bool {
        let now = tx.half.sender().map_or(0, |sender| {
            let (waiting, unacked) = sender.queued_bytes();
            waiting + unacked
        });
        let was = std::mem::replace(&mut tx.retained, now);
        let total = if now >= was {
            node.retained.fetch_add(now - was, Ordering::Relaxed) + (now - was)
        } else {
            node.retained.fetch_sub(was - now, Ordering::Relaxed) - (was - now)
        };
        !may_hold_more(node.config.retransmit_memory, total, now)
    }

    fn want_service(self: &Arc<Self>, node: &Node) {
        if !self.in_service.load(Ordering::Relaxed) && !self.in_service.swap(true, Ordering::SeqCst)
        {
            node.service.add(self.clone());
        }
    }
}

impl Rx {
    /// Tells the user of the end, once, if it is time; `true` then.
    fn poll_end(&mut self, now: Instant) -> bool {
        let Some(reason) = self.half.poll_end(now) else { return false };
        self.sink.flush();
        self.sink.closed(reason);
        true
    }

    fn tell_end(&mut self, reason: ResetReason) {
        if self.half.end() {
            self.sink.flush();
            self.sink.closed(reason);
        }
    }
}
