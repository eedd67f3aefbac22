//! The incoming half of one end of a channel: the receiver, and the end of the channel as its user sees
//! it. The user is told of the end once, after the data before it.

use std::time::{Duration, Instant};

use super::receive::{AckNeed, Piggyback, ReceiveError, Receiver, Sink};
use super::{Loss, Names, OnLoss, Patience, Settings};
use crate::ids::{ChannelIndex, NodeId};
use crate::wire::PacketType;
use crate::wire::data::{Reset, ResetReason};
use crate::wire::packet::Packet;
use crate::wire::routed::{FLAG_ACK_NOW, FLAG_FENCE, FLAG_MARKED, MARK_DELAYED, RoutedHeader};

/// A RESET that came before data waits so long for it.
const RESET_GRACE: Duration = Duration::from_millis(500);

/// Bytes after which a mark is told at once, and not with the next acknowledgement: while packets are
/// marked, an acknowledgement for each would be too many.
const MARK_ACK_BYTES: u64 = 64 * 1024;

/// The other end has ended the channel; data is still under way.
struct PendingEnd {
    last: u64,
    reason: ResetReason,
    until: Instant,
}

/// The incoming half of one end of a channel. See the [module](self).
///
/// * in: [`Incoming::open`] when the other end's index is known, [`Incoming::handle_data`],
///   [`Incoming::grant`], [`Incoming::handle_reset`], [`Incoming::end`];
/// * out: [`Incoming::poll_ack`] and [`Incoming::poll_end`] after each of these.
pub struct Incoming {
    receiver: Receiver,
    me: NodeId,
    peer: NodeId,
    /// The other end's index, once known: before, nothing is taken.
    peer_index: Option<ChannelIndex>,
    ack_due: bool,
    /// Relays have marked packets that came since the last acknowledgement.
    marked: bool,
    marks: u64,
    /// The number that is missing, and for how long.
    gap: (u64, Patience),
    gap_timeout: Duration,
    pending: Option<PendingEnd>,
    /// The user has been told of the end, or has caused it.
    over: bool,
}

impl Incoming {
    /// The half of a channel whose other end is not known yet.
    pub fn new(settings: &Settings, names: Names) -> Self {
        let mut receiver = Receiver::new(settings.window, settings.max_frame);
        let mut gap_timeout = settings.gap_timeout;
        if settings.on_loss == OnLoss::Notify {
            // It is for the other end to give up what is missing, and to say so.
            receiver.bear_loss();
            gap_timeout *= 3;
        }
        Self {
            receiver,
            me: settings.me,
            peer: names.peer,
            peer_index: None,
            ack_due: false,
            marked: false,
            marks: 0,
            gap: (0, Patience::default()),
            gap_timeout,
            pending: None,
            over: false,
        }
    }

    /// The other end's index is known: data is taken from now on.
    pub fn open(&mut self, peer_index: ChannelIndex) {
        self.peer_index = Some(peer_index);
    }

    /// The frames are those of a VM: see [`Receiver::join_fragments`].
    pub fn join_fragments(&mut self) {
        self.receiver.join_fragments();
    }

    /// The receiver, for its figures.
    pub fn receiver(&self) -> &Receiver {
        &self.receiver
    }

    /// Whether the user has been told of the end, or has caused it: nothing is delivered any more.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Packets that came with the mark of a relay.
    pub fn marks(&self) -> u64 {
        self.marks
    }

    /// Takes the content of a DATA packet; frames go to `sink`, acknowledgements in it to `acks`, for
    /// the other half. After an error the channel must be ended.
    pub fn handle_data(
        &mut self,
        header: &RoutedHeader,
        content: &[u8],
        sink: &mut dyn Sink,
        acks: &mut Vec<Piggyback>,
    ) -> Result<(), ReceiveError> {
        if self.over || self.peer_index.is_none() {
            // Data that overtook OPENED comes again.
            return Ok(());
        }
        let is_fence = header.flags & FLAG_FENCE != 0;
        let need = self.receiver.handle_data(header.number, is_fence, content, sink, acks)?;
        self.ack_due |= need == AckNeed::Now || header.flags & FLAG_ACK_NOW != 0;
        if header.mutable & MARK_DELAYED != 0 {
            self.marks += 1;
            self.marked = true;
            self.ack_due |= self.receiver.untold_bytes() >= MARK_ACK_BYTES;
        }
        Ok(())
    }

    /// The user has taken frames of this cost.
    pub fn grant(&mut self, cost: u64) {
        self.ack_due |= self.receiver.grant(cost) == AckNeed::Now;
    }

    /// What to put on the back of data, if there is news.
    pub fn take_piggyback(&mut self) -> Option<Piggyback> {
        if self.ack_due || self.marked { None } else { self.receiver.take_piggyback() }
    }

    /// Regular service: what has not been told for a while is to be told now. A packet that is missing
    /// for too long, while there was a route (`routed`), is a loss: the channel cannot go on.
    pub fn handle_timeout(&mut self, now: Instant, routed: bool) -> Option<Loss> {
        self.ack_due |= self.has_news();
        let next = self.receiver.next_number();
        if !routed || !self.receiver.has_gap() || self.over || next != self.gap.0 {
            self.gap = (next, Patience::default());
            return None;
        }
        let waited = self.gap.1.wait(now);
        (waited >= self.gap_timeout).then(|| Loss { packets: self.receiver.missing() })
    }

    /// Whether something is under way that needs regular service.
    pub fn wants_service(&self) -> bool {
        self.pending.is_some() || self.has_news() || (self.receiver.has_gap() && !self.over)
    }

    /// The acknowledgement to send now, if one is due.
    pub fn poll_ack(&mut self) -> Option<Packet> {
        if !std::mem::take(&mut self.ack_due) {
            return None;
        }
        let channel = self.peer_index?;
        let content = self.receiver.take_ack().encode();
        let flags = if std::mem::take(&mut self.marked) { FLAG_MARKED } else { 0 };
        let header = RoutedHeader { flags, ..RoutedHeader::to(self.peer, self.me, channel) };
        Some(header.packet(PacketType::Ack, &content).into())
    }

    /// The other end has ended the channel: what is still under way is taken first, for a while.
    pub fn handle_reset(&mut self, now: Instant, reset: &Reset) {
        match &mut self.pending {
            _ if self.over => {}
            // Said again, when nothing is under way any more.
            Some(pending) => pending.last = pending.last.min(reset.last),
            None => {
                let until = now + RESET_GRACE;
                self.pending = Some(PendingEnd { last: reset.last, reason: reset.reason, until });
            }
        }
    }

    /// Ends the channel from this side. `true` if the user had not been told yet and is to be, unless
    /// it is the cause.
    pub fn end(&mut self) -> bool {
        self.pending = None;
        !std::mem::replace(&mut self.over, true)
    }

    /// Why the channel has ended, once all that comes before it is there, or was waited for in vain:
    /// the user is to be told.
    pub fn poll_end(&mut self, now: Instant) -> Option<ResetReason> {
        let pending = self.pending.as_ref()?;
        if self.receiver.next_number() < pending.last && now < pending.until {
            return None;
        }
        let reason = pending.reason;
        self.end();
        Some(reason)
    }

    fn has_news(&self) -> bool {
        let news = self.marked || self.receiver.has_news();
        news && !self.over && self.pending.is_none()
    }
}
