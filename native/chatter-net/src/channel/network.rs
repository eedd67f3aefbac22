//! What a channel hears from the network, from the control plane and from its service; on the runtime's
//! threads.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use chatter_core::channel::life::State;
use chatter_core::channel::receive::{Piggyback, ReceiveError};
use chatter_core::channel::send::Sender;
use chatter_core::wire::data::{Ack, Opened, Reset, ResetReason};
use chatter_core::wire::routed::RoutedHeader;

use super::Channel;
use crate::node::Node;

impl Channel {
    pub(crate) fn handle_data(
        self: &Arc<Self>,
        node: &Arc<Node>,
        header: &RoutedHeader,
        content: &[u8],
        acks: &mut Vec<Piggyback>,
    ) {
        let ack = {
            let mut guard = self.rx.lock();
            let rx = &mut *guard;
            if let Err(error) = rx.half.handle_data(header, content, rx.sink.as_mut(), acks) {
                drop(guard);
                tracing::error!(peer = %self.peer_name, %error, "channel reset");
                let lost = error == ReceiveError::Lost;
                return self.fail(if lost { ResetReason::Lost } else { ResetReason::Protocol });
            }
            rx.half.poll_ack()
        };
        self.send_ack(node, ack);
        for ack in acks.drain(..) {
            let ack = Ack { next: ack.next, credit: ack.credit, ranges: Vec::new() };
            self.handle_ack(node, &ack, false);
        }
        self.want_service(node);
    }

    /// Hands over to the user what a read has brought.
    pub(crate) fn flush_sink(self: &Arc<Self>, now: Instant) {
        let ended = {
            let mut rx = self.rx.lock();
            rx.sink.flush();
            rx.poll_end(now)
        };
        if ended && let Some(node) = self.node.upgrade() {
            self.carry_on(&node, self.tx.lock(), now);
            self.forget_if_over(&node);
        }
    }

    /// Takes an acknowledgement; `marked` if it tells of packets that relays have marked.
    pub(crate) fn handle_ack(self: &Arc<Self>, node: &Arc<Node>, ack: &Ack, marked: bool) {
        let mut tx = self.tx.lock();
        let now = Instant::now();
        tx.half.handle_ack(now, ack, marked);
        self.carry_on(node, tx, now);
    }

    /// Takes an OPENED; `false` if who granted must be told that nobody comes.
    pub(crate) fn handle_opened(self: &Arc<Self>, node: &Arc<Node>, opened: &Opened) -> bool {
        let mut tx = self.tx.lock();
        if !tx.half.handle_opened(opened) {
            return !tx.half.is_stranger(opened);
        }
        self.rx.lock().half.open(opened.index);
        self.state.store(tx.half.state() as u8, Ordering::SeqCst);
        drop(tx);
        node.channels.learn(self.index, opened);
        self.host.opened();
        true
    }

    pub(crate) fn handle_reset(self: &Arc<Self>, node: &Arc<Node>, reset: &Reset) {
        let now = Instant::now();
        self.tx.lock().half.handle_reset(reset);
        {
            let mut rx = self.rx.lock();
            rx.half.handle_reset(now, reset);
            rx.poll_end(now);
        }
        self.carry_on(node, self.tx.lock(), now);
        self.forget_if_over(node);
        // If data is still under way, the channel stays in the table for it.
        self.want_service(node);
    }

    pub(crate) fn handle_reset_ack(self: &Arc<Self>, node: &Arc<Node>) {
        self.tx.lock().half.handle_reset_ack();
        self.forget_if_over(node);
    }

    /// A relay says that it dropped a packet of this channel.
    pub(crate) fn handle_unreachable(self: &Arc<Self>, node: &Node, number: u64) {
        self.tx.lock().half.handle_unreachable(Instant::now(), number);
        self.want_service(node);
    }

    /// The node at the other end is gone: its life is over, or it could not be reached for too long.
    /// Then it has to be told, should it come back.
    pub(crate) fn peer_gone(self: &Arc<Self>, node: &Arc<Node>, reason: ResetReason) {
        {
            let mut tx = self.tx.lock();
            match reason {
                ResetReason::Unreachable => tx.half.give_up(reason),
                _ => _ = tx.half.over(),
            }
            self.count_retained(node, &mut tx);
            for (on, _) in tx.on.drain(..) {
                on.remove_own(self.index.0);
            }
        }
        self.rx.lock().tell_end(reason);
        self.forget_if_over(node);
    }

    /// The channel cannot go on: the user is told.
    fn fail(self: &Arc<Self>, reason: ResetReason) {
        self.rx.lock().tell_end(reason);
        self.close(reason);
    }

    /// The way to the other node has changed.
    pub(crate) fn handle_route_change(self: &Arc<Self>, node: &Arc<Node>) {
        let now = Instant::now();
        let mut tx = self.tx.lock();
        tx.half.handle_route_change(now);
        self.carry_on(node, tx, now);
    }

    /// A link has taken something from the channel, or is gone. On a thread of the runtime.
    pub(crate) fn wake_user(self: &Arc<Self>) {
        let Some(node) = self.node.upgrade() else { return };
        let (writable, resume, links) = {
            let mut tx = self.tx.lock();
            let several = tx.on.len() > 1;
            let links = several.then(|| self.announce(&node, &mut tx, Instant::now()));
            let mut resume = tx.half.sender_mut().map(Sender::take_resume).unwrap_or_default();
            let resumed = resume.extract_if(.., |flow| tx.held.remove(flow)).count() > 0;
            let writable = self.user_may_go_on(&node, &mut tx) || resumed;
            (writable, resume, links.unwrap_or_default())
        };
        links.flush();
        if !resume.is_empty() {
            self.host.resume(resume);
        }
        if writable {
            self.host.writable();
        }
    }

    /// A link is gone: what is left goes another way, now or when there is one.
    pub(crate) fn leave_link(self: &Arc<Self>) {
        let Some(node) = self.node.upgrade() else { return };
        let mut tx = self.tx.lock();
        tx.on.clear();
        self.carry_on(&node, tx, Instant::now());
    }

    /// Regular service while something is under way; `false` when it is not needed any more.
    pub(crate) fn handle_timer(self: &Arc<Self>, node: &Arc<Node>, now: Instant) -> bool {
        let routed = node.next_hop(self.peer, u64::from(self.index.0)).is_some();
        let (ack, missing) = {
            let mut rx = self.rx.lock();
            let missing = rx.half.handle_timeout(now, routed);
            rx.poll_end(now);
            (rx.half.poll_ack(), missing)
        };
        self.send_ack(node, ack);
        let mut tx = self.tx.lock();
        if tx.half.state() == State::Opening {
            tx.half.hold_open(!node.channels.may_open(self.peer));
        }
        let unheard = tx.half.handle_timeout(now, routed);
        let waits = tx.user_waits && tx.half.sender().is_some();
        let wants = tx.half.wants_service() || waits;
        self.carry_on(node, tx, now);
        if let Some(loss) = missing.or(unheard) {
            let packets = loss.packets;
            tracing::error!(peer = %self.peer_name, packets, "packets lost for good: channel reset");
            self.fail(ResetReason::Lost);
        }
        self.forget_if_over(node);
        wants || self.rx.lock().half.wants_service()
    }
}
