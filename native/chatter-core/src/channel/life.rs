//! The outgoing half of one end of a channel: its life from OPEN to RESET_ACK, and the sender while it
//! is open. RESET says how much data comes before it, which it may overtake.
//!
//! ```text
//!            OPENED               close                            RESET_ACK, RESET
//! Opening ------------> Open ------------------------> Closing ---------------------> Closed
//!    |                   |  RESET, node gone                                            ^
//!    +-------------------+--------------------------------------------------------------+
//! ```

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::farewell::Farewell;
use super::send::{Route, Sender};
use super::{Loss, Names, OnLoss, Patience, Settings};
use crate::ids::{ChannelIndex, Incarnation};
use crate::wire::PacketType;
use crate::wire::data::{Ack, ChannelKind, Open, Opened, Reset, ResetReason};
use crate::wire::packet::Packet;
use crate::wire::routed::RoutedHeader;

/// A RESET is sent so many times before the channel is forgotten; then it is a farewell.
const RESET_TRIES: u32 = 8;

/// Answers (OPENED, RESET_ACK) that wait to be sent: a peer that repeats itself gets no more than these.
const MAX_ANSWERS: usize = 4;

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

/// The outgoing half of one end of a channel. See the [module](self).
///
/// * in: [`Outgoing::handle_opened`] and its kin, [`Outgoing::close`], frames by
///   [`Outgoing::sender_mut`];
/// * out: [`Outgoing::poll_packet`] until `None` after each of these, as long as there is a route.
pub struct Outgoing {
    settings: Arc<Settings>,
    names: Names,
    /// What OPEN says that the channel is for.
    kind: ChannelKind,
    state: State,
    /// The life of the node at the other end: that of the tables, until one has granted the channel.
    peer_incarnation: Incarnation,
    peer_index: ChannelIndex,
    peer_epoch: u64,
    /// While open.
    sender: Option<Sender>,
    /// OPENED and RESET_ACK that are to be sent.
    answers: VecDeque<(PacketType, ChannelIndex, Vec<u8>)>,
    /// When OPEN or RESET is to be sent, for the first time or again; and how often it was.
    ask_at: Option<Instant>,
    asked: u32,
    /// OPEN has to wait.
    held: bool,
    /// What RESET says.
    reason: ResetReason,
    last: u64,
    /// Data is under way, and nothing is heard of it.
    unheard: Patience,
    /// The first packet that is not acknowledged, and how long it has been that.
    stuck: (Option<u64>, Patience),
    farewell: Option<Farewell>,
    /// The other end's RESET, until it is confirmed: its index, and why.
    unconfirmed: Option<(ChannelIndex, ResetReason)>,
}

impl Outgoing {
    /// The end that asks for a channel, of the life that the tables name. OPEN is to be sent at `now`.
    pub fn asking(
        settings: Arc<Settings>,
        names: Names,
        peer_incarnation: Incarnation,
        now: Instant,
    ) -> Self {
        Self {
            settings,
            names,
            kind: ChannelKind::Distribution,
            state: State::Opening,
            peer_incarnation,
            peer_index: ChannelIndex::UNKNOWN,
            peer_epoch: 0,
            sender: None,
            answers: VecDeque::new(),
            ask_at: Some(now),
            asked: 0,
            held: false,
            reason: ResetReason::Closed,
            last: 0,
            unheard: Patience::default(),
            stuck: Default::default(),
            farewell: None,
            unconfirmed: None,
        }
    }

    /// The end that grants what `open` asks for. OPENED is sent by [`Outgoing::confirm_open`].
    pub fn granting(settings: Arc<Settings>, names: Names, open: &Open, now: Instant) -> Self {
        let mut this = Self::asking(settings, names, open.incarnation, now);
        this.begin(open.index, open.epoch, open.window);
        this
    }

    /// The same for a channel of another kind than distribution.
    pub fn of_kind(self, kind: ChannelKind) -> Self {
        Self { kind, ..self }
    }

    /// Where the channel is in its life.
    pub fn state(&self) -> State {
        self.state
    }

    /// The life of the node at the other end.
    pub fn peer_incarnation(&self) -> Incarnation {
        self.peer_incarnation
    }

    /// The other end's index; `UNKNOWN` before OPENED.
    pub fn peer_index(&self) -> ChannelIndex {
        self.peer_index
    }

    /// The sender while the channel is open.
    pub fn sender(&self) -> Option<&Sender> {
        self.sender.as_ref()
    }

    /// The sender while the channel is open.
    pub fn sender_mut(&mut self) -> Option<&mut Sender> {
        self.sender.as_mut()
    }

    /// Whether OPEN has to wait: the other end has not confirmed the end of a channel before
    /// ([`Table::may_open`](super::table::Table::may_open)).
    pub fn hold_open(&mut self, hold: bool) {
        self.held = hold;
    }

    /// Confirms an OPEN, for the first time or again.
    pub fn confirm_open(&mut self) {
        if self.state != State::Open {
            return;
        }
        let opened = Opened {
            index: self.names.index,
            epoch: self.names.epoch,
            incarnation: self.settings.incarnation,
            window: self.settings.window,
            open_epoch: self.peer_epoch,
        };
        self.answer(PacketType::Opened, self.peer_index, opened.encode());
    }

    /// The other end grants the channel; `true` if it is open from now on.
    pub fn handle_opened(&mut self, opened: &Opened) -> bool {
        if self.state != State::Opening || opened.open_epoch != self.names.epoch {
            return false;
        }
        if opened.incarnation < self.peer_incarnation {
            // A former life said so before it ended.
            return false;
        }
        // The node may have been restarted since the tables named it: the channel is with the life that
        // has granted it.
        self.peer_incarnation = opened.incarnation;
        self.begin(opened.index, opened.epoch, opened.window);
        true
    }

    /// Whether this OPENED is of another grant than the one that the channel has: another life has got an
    /// OPEN that was sent twice. It must be told that nobody comes.
    pub fn is_stranger(&self, opened: &Opened) -> bool {
        let known = (self.peer_index, self.peer_epoch);
        self.state != State::Opening && (opened.index, opened.epoch) != known
    }

    /// Takes an acknowledgement; `marked` if it tells of packets that relays have marked.
    pub fn handle_ack(&mut self, now: Instant, ack: &Ack, marked: bool) {
        self.unheard.reset();
        if let Some(sender) = self.sender.as_mut() {
            if marked {
                sender.handle_mark(now);
            }
            sender.handle_ack(now, ack);
        }
    }

    /// A relay says that it dropped a packet of this channel.
    pub fn handle_unreachable(&mut self, now: Instant, number: u64) {
        if let Some(sender) = self.sender.as_mut() {
            sender.handle_unreachable(now, number);
        }
    }

    /// The other end says that the channel is over: nothing more is sent. It is confirmed when the other
    /// half has taken what is still under way, see [`Outgoing::confirm_end`]. Returns the state before.
    pub fn handle_reset(&mut self, reset: &Reset) -> State {
        self.unconfirmed = Some((reset.from_index, reset.reason));
        self.over()
    }

    /// Whether the other end waits to hear that this end has seen the end as well.
    pub fn is_unconfirmed(&self) -> bool {
        self.unconfirmed.is_some()
    }

    /// This end's user has been told of the end ([`Incoming::is_over`](super::incoming::Incoming::is_over)):
    /// the other end may begin anew.
    pub fn confirm_end(&mut self) {
        if let Some((to_index, reason)) = self.unconfirmed.take() {
            let content = self.reset(to_index, reason, 0).encode();
            self.answer(PacketType::ResetAck, to_index, content);
        }
    }

    /// The other end has confirmed that the channel is over.
    pub fn handle_reset_ack(&mut self) {
        if self.state == State::Closing {
            self.over();
        }
    }

    /// The way to the other node has changed: all that was not answered is sent again.
    pub fn handle_route_change(&mut self, now: Instant) {
        match self.sender.as_mut() {
            Some(sender) => sender.handle_route_change(now),
            None => self.ask_at = self.ask_at.map(|_| now),
        }
    }

    /// Ends the channel from this side; RESET is to be sent at `now`. `false` if it has ended already.
    /// Data that has not left is gone: what shall still leave must be polled before.
    pub fn close(&mut self, reason: ResetReason, now: Instant) -> bool {
        if matches!(self.state, State::Closing | State::Closed) {
            return false;
        }
        self.last = self.sender.take().map_or(0, |sender| sender.next_number());
        self.reason = reason;
        self.state = State::Closing;
        self.asked = 0;
        self.ask_at = Some(now);
        true
    }

    /// The channel is over, and there is nobody to be told. Returns the state before.
    pub fn over(&mut self) -> State {
        self.sender = None;
        self.ask_at = None;
        std::mem::replace(&mut self.state, State::Closed)
    }

    /// The channel is over, and the other end does not know: what is left to be said comes from
    /// [`Outgoing::take_farewell`].
    pub fn give_up(&mut self, reason: ResetReason) {
        if self.state != State::Closed {
            self.farewell = Some(Farewell {
                names: self.names,
                peer_index: self.peer_index,
                peer_incarnation: self.peer_incarnation,
                reason,
            });
        }
        self.over();
    }

    /// What is left to be said of a channel that is over: to be kept in
    /// [`Farewells`](super::farewell::Farewells) when it is [removed](super::table::Table::remove).
    pub fn take_farewell(&mut self) -> Option<Farewell> {
        self.farewell.take()
    }

    /// Regular service: probes of the sender. OPEN and RESET are repeated by themselves; a RESET that
    /// is not confirmed becomes a farewell. Data of which nothing was heard for too long, while there was
    /// a route (`routed`), is a loss: the channel cannot go on.
    pub fn handle_timeout(&mut self, now: Instant, routed: bool) -> Option<Loss> {
        if self.state == State::Closing {
            self.count_tries(now);
        }
        let sender = self.sender.as_mut()?;
        sender.handle_timeout(now);
        let first = sender.first_unacked();
        if !routed || first.is_none() {
            self.unheard.reset();
            self.stuck.1.reset();
            return None;
        }
        let after = self.settings.gap_timeout;
        match self.settings.on_loss {
            OnLoss::End => {
                let waited = self.unheard.wait(now);
                (waited >= after).then_some(Loss { packets: 1 })
            }
            OnLoss::Notify => {
                let (stuck, patience) = &mut self.stuck;
                if first != std::mem::replace(stuck, first) {
                    patience.reset();
                }
                if patience.wait(now) < after {
                    return None;
                }
                // What tells of the loss has the same time to arrive.
                patience.reset();
                sender.give_up(now, after).err()
            }
        }
    }

    fn count_tries(&mut self, now: Instant) {
        // Without a route nobody asks for RESET: the tries that were due are over all the same.
        while let Some(at) = self.ask_at.filter(|at| now >= *at + self.settings.setup_retry) {
            self.ask_at = Some(at + self.settings.setup_retry);
            self.asked += 1;
        }
        if self.ask_at.is_some_and(|at| now >= at) && self.asked >= RESET_TRIES {
            self.give_up(self.reason);
        }
    }

    /// When [`Outgoing::handle_timeout`] and then [`Outgoing::poll_packet`] want to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.ask_at.into_iter().chain(self.sender.as_ref().and_then(Sender::poll_timeout)).min()
    }

    /// Whether something is under way that needs regular service.
    pub fn wants_service(&self) -> bool {
        match self.state {
            State::Opening | State::Closing => true,
            State::Open => self.sender.as_ref().is_some_and(|sender| !sender.is_idle()),
            State::Closed => false,
        }
    }

    /// The next packet about the channel itself; it is urgent.
    pub fn poll_signal(&mut self, now: Instant) -> Option<Packet> {
        if let Some((kind, index, content)) = self.answers.pop_front() {
            return Some(self.packet(kind, index, &content));
        }
        if self.sender.is_some() {
            return None;
        }
        let held = self.held && self.state == State::Opening;
        if held || self.ask_at.is_none_or(|at| now < at) {
            return None;
        }
        self.asked += 1;
        self.ask_at = Some(now + self.settings.setup_retry);
        match self.state {
            State::Opening => {
                let open = Open {
                    index: self.names.index,
                    epoch: self.names.epoch,
                    incarnation: self.settings.incarnation,
                    window: self.settings.window,
                    kind: self.kind,
                    name: self.settings.name.clone(),
                };
                Some(self.packet(PacketType::Open, ChannelIndex::UNKNOWN, &open.encode()))
            }
            State::Closing => {
                let content = self.reset(self.peer_index, self.reason, self.last).encode();
                Some(self.packet(PacketType::Reset, self.peer_index, &content))
            }
            State::Open | State::Closed => None,
        }
    }

    /// Levels at which data may leave now, as bits.
    pub fn ready(&self) -> u8 {
        self.sender.as_ref().map_or(0, Sender::ready)
    }

    /// Levels at which data may leave now over one of the ways of [`Sender::set_ways`], as bits.
    pub fn ready_on(&self, way: usize) -> u8 {
        self.sender.as_ref().map_or(0, |sender| sender.ready_on(way))
    }

    /// The next packet, whatever it is about.
    pub fn poll_packet(&mut self, now: Instant) -> Option<Packet> {
        self.poll_signal(now).or_else(|| self.sender.as_mut()?.poll_packet(now))
    }

    fn begin(&mut self, peer_index: ChannelIndex, peer_epoch: u64, credit: u64) {
        self.peer_index = peer_index;
        self.peer_epoch = peer_epoch;
        let route =
            Route { source: self.settings.me, destination: self.names.peer, channel: peer_index };
        self.sender = Some(Sender::new(route, credit, self.settings.flow_quota));
        self.state = State::Open;
        self.ask_at = None;
    }

    fn answer(&mut self, kind: PacketType, to: ChannelIndex, content: Vec<u8>) {
        if self.answers.len() < MAX_ANSWERS {
            self.answers.push_back((kind, to, content));
        }
    }

    fn reset(&self, to_index: ChannelIndex, reason: ResetReason, last: u64) -> Reset {
        Reset { from_index: self.names.index, to_index, last, reason }
    }

    fn packet(&self, kind: PacketType, channel: ChannelIndex, content: &[u8]) -> Packet {
        let header = RoutedHeader::to(self.names.peer, self.settings.me, channel);
        Packet::from(header.packet(kind, content))
    }
}
