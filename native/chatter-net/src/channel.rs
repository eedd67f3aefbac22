//! A channel as its user and the links see it: the two halves of the core under one short lock each,
//! the way to the other node, and the opening and closing.
//!
//! Locks: `tx` before `rx`, and no lock is held while a link is flushed or the user is called, except
//! that the user's sink is called under `rx`, which keeps its data in order.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use chatter_core::channel::receive::{AckNeed, Piggyback, Receiver};
use chatter_core::channel::send::{Route, Sender};
use chatter_core::ids::{ChannelIndex, Incarnation, NodeId};
use chatter_core::wire::PacketType;
use chatter_core::wire::data::{Ack, Open, Opened, Reset, ResetReason};
use chatter_core::wire::packet::Packet;
use chatter_core::wire::routed::{HOP_LIMIT, RoutedHeader};
use parking_lot::Mutex;

use crate::host::{ChannelHost, ChannelSink};
use crate::link::{INLINE_BUDGET, Link};
use crate::node::Node;

/// A RESET is sent so many times before the channel is forgotten without an answer.
const RESET_TRIES: u32 = 8;

/// A RESET that came before data waits so long for it.
const RESET_GRACE: Duration = Duration::from_millis(500);

/// Where a channel is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum State {
    /// OPEN has been sent.
    Opening = 0,
    /// Both ends know each other's index.
    Open = 1,
    /// Ended here; waiting for the other end to confirm.
    Closing = 2,
    /// Over.
    Closed = 3,
}

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

pub(crate) struct Tx {
    /// `None` until the other end's index is known, and after the end.
    sender: Option<Sender>,
    peer_index: ChannelIndex,
    peer_epoch: u64,
    /// The user was told `Full`.
    user_waits: bool,
    /// What this channel counts for in [`Node::retained`].
    retained: usize,
    /// When OPEN or RESET was last sent, and how often.
    asked_at: Option<Instant>,
    asked: u32,
    reason: ResetReason,
    last: u64,
}

pub(crate) struct Rx {
    pub(crate) receiver: Receiver,
    pub(crate) sink: Box<dyn ChannelSink>,
    pending_reset: Option<(u64, ResetReason, Instant)>,
    told_closed: bool,
}

/// One end of a channel.
pub struct Channel {
    /// This end's index.
    pub index: ChannelIndex,
    /// This end's epoch.
    pub epoch: u64,
    /// The node at the other end.
    pub peer: NodeId,
    /// Its life, as a number that may become a newer one while the channel is being opened.
    peer_incarnation: AtomicU64,
    /// Its name; empty if it has none yet.
    pub peer_name: String,
    /// Whether this end asked for the channel.
    pub opened_here: bool,
    /// The user's side.
    pub host: Arc<dyn ChannelHost>,
    node: Weak<Node>,
    state: AtomicU8,
    tx: Mutex<Tx>,
    rx: Mutex<Rx>,
    /// In the list of channels that need service.
    pub(crate) in_service: AtomicBool,
    frames_out: AtomicU64,
    bytes_out: AtomicU64,
    grants: AtomicU64,
}

/// How a channel is made.
pub(crate) struct Parts {
    pub index: ChannelIndex,
    pub epoch: u64,
    pub peer: NodeId,
    pub peer_incarnation: Incarnation,
    pub peer_name: String,
    /// The OPEN that is granted, for the end that was asked.
    pub open: Option<Open>,
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
    /// Bytes that wait for credit.
    pub waiting_bytes: usize,
    /// Bytes that wait for an acknowledgement.
    pub unacked_bytes: usize,
    /// Packets sent again.
    pub retransmits: u64,
    /// Packets that came twice.
    pub duplicates: u64,
    /// Smoothed round trip in µs, delayed acknowledgements included; 0 if not known.
    pub srtt_us: u64,
}

impl Channel {
    pub(crate) fn new(node: &Arc<Node>, parts: Parts) -> Arc<Self> {
        let (host, sink) = node.host.channel();
        let config = &node.config;
        let (state, sender, peer_index, peer_epoch) = match &parts.open {
            None => (State::Opening, None, ChannelIndex::UNKNOWN, 0),
            Some(open) => {
                let route =
                    Route { source: node.me.id, destination: parts.peer, channel: open.index };
                (State::Open, Some(Sender::new(route, open.window)), open.index, open.epoch)
            }
        };
        Arc::new(Self {
            index: parts.index,
            epoch: parts.epoch,
            peer: parts.peer,
            peer_incarnation: AtomicU64::new(parts.peer_incarnation.0),
            peer_name: parts.peer_name,
            opened_here: parts.open.is_none(),
            host,
            node: Arc::downgrade(node),
            state: AtomicU8::new(state as u8),
            tx: Mutex::new(Tx {
                sender,
                peer_index,
                peer_epoch,
                user_waits: false,
                retained: 0,
                asked_at: None,
                asked: 0,
                reason: ResetReason::Closed,
                last: 0,
            }),
            rx: Mutex::new(Rx {
                receiver: Receiver::new(config.channel_window, config.max_frame),
                sink,
                pending_reset: None,
                told_closed: false,
            }),
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

    /// The other end's index and epoch, once known.
    pub(crate) fn peer_key(&self) -> (ChannelIndex, u64) {
        let tx = self.tx.lock();
        (tx.peer_index, tx.peer_epoch)
    }

    /// The life of the node at the other end.
    pub fn peer_incarnation(&self) -> Incarnation {
        Incarnation(self.peer_incarnation.load(Ordering::SeqCst))
    }

    /// Live figures.
    pub fn figures(&self) -> ChannelFigures {
        let tx = self.tx.lock();
        let (waiting_bytes, unacked_bytes) =
            tx.sender.as_ref().map_or((0, 0), Sender::queued_bytes);
        ChannelFigures {
            state: self.state(),
            frames_out: self.frames_out.load(Ordering::Relaxed),
            bytes_out: self.bytes_out.load(Ordering::Relaxed),
            grants: self.grants.load(Ordering::Relaxed),
            waiting_bytes,
            unacked_bytes,
            retransmits: tx.sender.as_ref().map_or(0, Sender::retransmits),
            duplicates: self.rx.lock().receiver.duplicates(),
            srtt_us: tx
                .sender
                .as_ref()
                .and_then(Sender::srtt)
                .map_or(0, |srtt| srtt.as_micros() as u64),
        }
    }

    /// Hands in what `push` puts into the sender: frames in order.
    pub fn send(
        self: &Arc<Self>,
        frames: u64,
        push: impl FnOnce(&mut Sender) -> u64,
    ) -> SendStatus {
        let Some(node) = self.node.upgrade() else { return SendStatus::Closed };
        let link;
        let status;
        {
            let mut tx = self.tx.lock();
            let Some(sender) = tx.sender.as_mut() else { return SendStatus::Closed };
            if let Some(news) = self.rx.try_lock().and_then(|mut rx| rx.receiver.take_piggyback()) {
                sender.push_ack(news.next, news.credit);
            }
            let bytes = push(sender);
            self.bytes_out.fetch_add(bytes, Ordering::Relaxed);
            self.frames_out.fetch_add(frames, Ordering::Relaxed);
            sender.end_batch();
            link = self.transmit(&node, sender, Instant::now());
            tx.user_waits = true;
            let ready = self.user_may_go_on(&mut tx, link.as_ref());
            status = if ready { SendStatus::Ready } else { SendStatus::Full };
        }
        if let Some(link) = link {
            link.flush(INLINE_BUDGET);
        }
        self.want_service(&node);
        status
    }

    /// Closes the channel from this end. Safe from any thread; the user is not told.
    pub fn close(self: &Arc<Self>, reason: ResetReason) {
        let Some(node) = self.node.upgrade() else { return };
        let mut tx = self.tx.lock();
        if matches!(self.state(), State::Closing | State::Closed) {
            return;
        }
        self.state.store(State::Closing as u8, Ordering::SeqCst);
        tx.last = tx.sender.take().map_or(0, |sender| sender.next_number());
        self.count_retained(&mut tx);
        tx.reason = reason;
        tx.asked = 0;
        tx.asked_at = None;
        drop(tx);
        self.rx.lock().told_closed = true;
        self.ask(&node, Instant::now());
        self.want_service(&node);
    }

    /// The VM has taken frames of this cost.
    pub fn grant(self: &Arc<Self>, cost: u64) {
        let Some(node) = self.node.upgrade() else { return };
        self.grants.fetch_add(1, Ordering::Relaxed);
        let mut rx = self.rx.lock();
        match rx.receiver.grant(cost) {
            AckNeed::Now => {
                let ack = rx.receiver.take_ack();
                drop(rx);
                self.send_ack(&node, &ack);
            }
            AckNeed::Soon => {
                drop(rx);
                self.want_service(&node);
            }
            AckNeed::None => {}
        }
    }

    /// Runs `f` on the user's sink, in order with everything received.
    pub fn with_sink<T>(&self, f: impl FnOnce(&mut dyn ChannelSink) -> T) -> T {
        f(self.rx.lock().sink.as_mut())
    }

    // ===== from the network; on the runtime's threads =====

    pub(crate) fn handle_data(
        self: &Arc<Self>,
        node: &Arc<Node>,
        number: u64,
        content: &[u8],
        acks: &mut Vec<Piggyback>,
    ) {
        let ack = {
            let mut guard = self.rx.lock();
            let rx = &mut *guard;
            if rx.told_closed {
                return;
            }
            match rx.receiver.handle_data(number, content, rx.sink.as_mut(), acks) {
                Ok(AckNeed::Now) => Some(rx.receiver.take_ack()),
                Ok(_) => None,
                Err(error) => {
                    drop(guard);
                    tracing::error!(peer = %self.peer_name, %error, "channel reset");
                    return self.fail(ResetReason::Protocol);
                }
            }
        };
        if let Some(ack) = ack {
            self.send_ack(node, &ack);
        }
        for ack in acks.drain(..) {
            let ack = Ack { next: ack.next, credit: ack.credit, ranges: Vec::new() };
            self.handle_ack(node, &ack);
        }
        self.want_service(node);
    }

    /// Hands over to the user what a read has brought.
    pub(crate) fn flush_sink(self: &Arc<Self>, now: Instant) {
        let mut rx = self.rx.lock();
        rx.sink.flush();
        let Some((last, reason, until)) = rx.pending_reset else { return };
        if rx.receiver.next_number() >= last || now >= until {
            rx.pending_reset = None;
            rx.tell_closed(reason);
            drop(rx);
            if let Some(node) = self.node.upgrade() {
                node.channels.remove(self.index);
            }
        }
    }

    pub(crate) fn handle_ack(self: &Arc<Self>, node: &Arc<Node>, ack: &Ack) {
        let mut tx = self.tx.lock();
        let Some(sender) = tx.sender.as_mut() else { return };
        let now = Instant::now();
        sender.handle_ack(now, ack);
        let link = self.transmit(node, sender, now);
        let writable = self.user_may_go_on(&mut tx, link.as_ref());
        drop(tx);
        if let Some(link) = link {
            link.flush(INLINE_BUDGET);
        }
        if writable {
            self.host.writable();
        }
    }

    pub(crate) fn handle_opened(self: &Arc<Self>, node: &Arc<Node>, opened: &Opened) {
        let mut tx = self.tx.lock();
        if self.state() != State::Opening || opened.open_epoch != self.epoch {
            return;
        }
        // The node may have been restarted since the tables named it: the channel is with the life that
        // has granted it.
        self.peer_incarnation.store(opened.incarnation.0, Ordering::SeqCst);
        tx.peer_index = opened.index;
        tx.peer_epoch = opened.epoch;
        let route = Route { source: node.me.id, destination: self.peer, channel: opened.index };
        tx.sender = Some(Sender::new(route, opened.window));
        self.state.store(State::Open as u8, Ordering::SeqCst);
        drop(tx);
        self.host.opened();
    }

    pub(crate) fn handle_reset(self: &Arc<Self>, node: &Arc<Node>, reset: &Reset) {
        let index = reset.from_index;
        self.send_control(
            node,
            PacketType::ResetAck,
            index,
            &self.reset_content(index, reset.reason, 0),
        );
        {
            let mut tx = self.tx.lock();
            tx.sender = None;
            self.count_retained(&mut tx);
            if self.state() == State::Closing {
                drop(tx);
                return node.channels.remove(self.index);
            }
            self.state.store(State::Closed as u8, Ordering::SeqCst);
        }
        let mut rx = self.rx.lock();
        if rx.receiver.next_number() < reset.last {
            // Data is still under way: the channel stays in the table for it.
            rx.pending_reset = Some((reset.last, reset.reason, Instant::now() + RESET_GRACE));
            drop(rx);
            self.want_service(node);
        } else {
            rx.tell_closed(reset.reason);
            drop(rx);
            node.channels.remove(self.index);
        }
    }

    pub(crate) fn handle_reset_ack(&self, node: &Node) {
        if self.state() == State::Closing {
            self.state.store(State::Closed as u8, Ordering::SeqCst);
            node.channels.remove(self.index);
        }
    }

    /// The other node is gone, or the channel cannot go on: the user is told.
    pub(crate) fn fail(self: &Arc<Self>, reason: ResetReason) {
        let gone = matches!(reason, ResetReason::Unreachable | ResetReason::Restarted);
        let was = self.state();
        if gone {
            let Some(node) = self.node.upgrade() else { return };
            {
                let mut tx = self.tx.lock();
                tx.sender = None;
                self.count_retained(&mut tx);
            }
            self.state.store(State::Closed as u8, Ordering::SeqCst);
            node.channels.remove(self.index);
        }
        if matches!(was, State::Opening | State::Open) {
            self.rx.lock().tell_closed(reason);
        }
        if !gone {
            self.close(reason);
        }
    }

    /// The way to the other node has changed.
    pub(crate) fn handle_route_change(self: &Arc<Self>, node: &Arc<Node>) {
        let now = Instant::now();
        let mut tx = self.tx.lock();
        if let Some(sender) = tx.sender.as_mut() {
            sender.handle_route_change(now);
            let link = self.transmit(node, sender, now);
            let writable = self.user_may_go_on(&mut tx, link.as_ref());
            drop(tx);
            if let Some(link) = link {
                link.flush(INLINE_BUDGET);
            }
            if writable {
                self.host.writable();
            }
        } else {
            tx.asked_at = None;
            drop(tx);
            self.ask(node, now);
        }
    }

    /// A link that was full has room again, or is gone.
    pub(crate) fn link_has_room(self: &Arc<Self>) {
        let writable = {
            let mut tx = self.tx.lock();
            self.user_may_go_on(&mut tx, None)
        };
        if writable {
            self.host.writable();
        }
    }

    /// Regular service while something is under way; `false` when it is not needed any more.
    pub(crate) fn handle_timer(self: &Arc<Self>, node: &Arc<Node>, now: Instant) -> bool {
        match self.state() {
            State::Opening | State::Closing => {
                self.ask(node, now);
                self.state() != State::Closed
            }
            State::Closed => {
                self.flush_sink(now);
                self.rx.lock().pending_reset.is_some()
            }
            State::Open => self.serve_open(node, now),
        }
    }

    fn serve_open(self: &Arc<Self>, node: &Arc<Node>, now: Instant) -> bool {
        let ack = {
            let mut rx = self.rx.lock();
            rx.receiver.has_news().then(|| rx.receiver.take_ack())
        };
        if let Some(ack) = ack {
            self.send_ack(node, &ack);
        }
        let mut tx = self.tx.lock();
        let Some(sender) = tx.sender.as_mut() else { return true };
        sender.handle_timeout(now);
        let busy = !sender.is_idle();
        let link = self.transmit(node, sender, now);
        let writable = self.user_may_go_on(&mut tx, link.as_ref());
        let waits = tx.user_waits;
        drop(tx);
        if let Some(link) = link {
            link.flush(INLINE_BUDGET);
        }
        if writable {
            self.host.writable();
        }
        busy || waits
    }

    // ===== to the network =====

    /// Moves packets from the sender to the link that leads to the peer; flush it afterwards,
    /// without the lock.
    fn transmit(&self, node: &Node, sender: &mut Sender, now: Instant) -> Option<Arc<Link>> {
        let link = node.next_hop(self.peer, u64::from(self.index.0))?;
        link.queue_own(self.index.0, std::iter::from_fn(|| sender.poll_packet(now)));
        Some(link)
    }

    fn send_ack(&self, node: &Node, ack: &Ack) {
        let index = self.tx.lock().peer_index;
        self.send_control(node, PacketType::Ack, index, &ack.encode());
    }

    fn send_control(&self, node: &Node, kind: PacketType, index: ChannelIndex, content: &[u8]) {
        let Some(link) = node.next_hop(self.peer, u64::from(self.index.0)) else { return };
        let header = RoutedHeader {
            flags: 0,
            hop_limit: HOP_LIMIT,
            mutable: 0,
            destination: self.peer,
            source: node.me.id,
            channel: index,
            number: 0,
        };
        // RESET must not overtake the data before it; the others may be late without harm.
        let packet = Packet::from(header.packet(kind, content));
        if kind == PacketType::Ack {
            link.queue_control(packet);
        } else {
            link.queue_own(self.index.0, std::iter::once(packet));
        }
        link.flush(INLINE_BUDGET);
    }

    fn reset_content(&self, to_index: ChannelIndex, reason: ResetReason, last: u64) -> Vec<u8> {
        Reset { from_index: self.index, to_index, last, reason }.encode()
    }

    /// Sends OPEN or RESET if its time has come; gives up a RESET after some tries.
    fn ask(self: &Arc<Self>, node: &Arc<Node>, now: Instant) {
        let (kind, index, content) = {
            let mut tx = self.tx.lock();
            if tx.asked_at.is_some_and(|at| now < at + node.config.setup_retry) {
                return;
            }
            tx.asked_at = Some(now);
            tx.asked += 1;
            match self.state() {
                State::Opening => {
                    let open = Open {
                        index: self.index,
                        epoch: self.epoch,
                        incarnation: node.me.incarnation,
                        window: node.config.channel_window,
                        name: node.me.name.clone(),
                    };
                    (PacketType::Open, ChannelIndex::UNKNOWN, open.encode())
                }
                State::Closing if tx.asked > RESET_TRIES => {
                    drop(tx);
                    return self.handle_reset_ack(node);
                }
                State::Closing => {
                    let content = self.reset_content(tx.peer_index, tx.reason, tx.last);
                    (PacketType::Reset, tx.peer_index, content)
                }
                _ => return,
            }
        };
        self.send_control(node, kind, index, &content);
    }

    /// Sends OPEN for the first time.
    pub(crate) fn open(self: &Arc<Self>, node: &Arc<Node>) {
        self.ask(node, Instant::now());
        self.want_service(node);
    }

    /// Confirms an OPEN, for the first time or again.
    pub(crate) fn confirm_open(&self, node: &Node) {
        let (peer_index, peer_epoch) = self.peer_key();
        let opened = Opened {
            index: self.index,
            epoch: self.epoch,
            incarnation: node.me.incarnation,
            window: node.config.channel_window,
            open_epoch: peer_epoch,
        };
        self.send_control(node, PacketType::Opened, peer_index, &opened.encode());
    }

    /// Whether the user, if it was told `Full`, may now hand in more; counts as told. If only the link
    /// is in the way, it will call [`Channel::link_has_room`].
    fn user_may_go_on(self: &Arc<Self>, tx: &mut Tx, link: Option<&Arc<Link>>) -> bool {
        let over = self.count_retained(tx);
        let held = tx.sender.as_ref().is_none_or(Sender::is_held_back);
        if !tx.user_waits || held || over || link.is_some_and(|link| link.is_full(self)) {
            return false;
        }
        tx.user_waits = false;
        true
    }

    /// Brings the node's count of retained bytes up to date; whether it is over its budget.
    fn count_retained(&self, tx: &mut Tx) -> bool {
        let Some(node) = self.node.upgrade() else { return false };
        let now = tx.sender.as_ref().map_or(0, |sender| {
            let (waiting, unacked) = sender.queued_bytes();
            waiting + unacked
        });
        let was = std::mem::replace(&mut tx.retained, now);
        let total = if now >= was {
            node.retained.fetch_add(now - was, Ordering::Relaxed) + (now - was)
        } else {
            node.retained.fetch_sub(was - now, Ordering::Relaxed) - (was - now)
        };
        total > node.config.retransmit_memory
    }

    fn want_service(self: &Arc<Self>, node: &Node) {
        if !self.in_service.load(Ordering::Relaxed) && !self.in_service.swap(true, Ordering::SeqCst)
        {
            node.service.add(self.clone());
        }
    }
}

impl Rx {
    fn tell_closed(&mut self, reason: ResetReason) {
        if !self.told_closed {
            self.told_closed = true;
            self.sink.flush();
            self.sink.closed(reason);
        }
    }
}
