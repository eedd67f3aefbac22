//! The sending half of a channel: frames in, numbered packets out; kept until acknowledged.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::build::{PREFIX_LEN, Part};
use super::flight::{Flight, Instead};
use super::flows::Progress;
use super::options::SendOptions;
pub use super::outbox::MAX_WAYS;
use super::outbox::Outbox;
pub use super::outbox::{FlowCounts, FlowFigures};
use super::way::Outgoing;
use super::window::Window;
use super::{CHUNK_LEN, Loss};
use crate::ids::{ChannelIndex, NodeId};
use crate::sched::fair::Level;
use crate::wire::data::{Ack, item};
use crate::wire::packet::Packet;
use crate::wire::routed::{
    FLAG_ACK_NOW, FLAG_FENCE, FLAG_HIGH, FLAG_LOW, FLAG_URGENT, MAX_TIME_LEFT_MS, RoutedHeader,
    TIME_LEFT_SHIFT,
};

/// A packet of which a relay says that it could not pass it on is sent again after this long: by then
/// there is another way, or tables are still being computed.
const NOTICE_WAIT: Duration = Duration::from_millis(20);

/// What is kept back of the window and of the credit for what is not bulk, in bytes; a flow that fills
/// both must not stop the others.
const RESERVE: usize = 64 * 1024;

/// Where a channel's packets go.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// This node.
    pub source: NodeId,
    /// The node at the other end.
    pub destination: NodeId,
    /// The other end's index of the channel.
    pub channel: ChannelIndex,
}

/// Live figures of a sender.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SenderFigures {
    /// Bytes of packets that wait for credit or for the congestion window.
    pub waiting_bytes: usize,
    /// Bytes of packets that wait for an acknowledgement.
    pub unacked_bytes: usize,
    /// Packets handed out more than once so far.
    pub retransmits: u64,
    /// Smoothed time from handing a packet out to its acknowledgement, delayed acknowledgements
    /// included; `None` before the first one.
    pub srtt: Option<Duration>,
    /// Bytes that may be under way; `None` while only the credit bounds them.
    pub window: Option<usize>,
    /// Acknowledgements that told of packets which relays had marked.
    pub marks: u64,
    /// Times that the window was halved.
    pub window_cuts: u64,
    /// What the flows have come to.
    pub flows: FlowCounts,
    /// How long packets wait here before they leave for the first time, smoothed, and at most.
    pub queue_delay: Duration,
    /// The longest of these.
    pub max_queue_delay: Duration,
}

/// The sending half of a channel.
///
/// * in: [`Sender::push_frame`], [`Sender::push_handshake`], [`Sender::push_ack`], then
///   [`Sender::end_batch`]; [`Sender::handle_ack`], [`Sender::handle_route_change`],
///   [`Sender::handle_unreachable`], [`Sender::handle_timeout`];
/// * out, after each of these: [`Sender::ready`], and [`Sender::poll_level`] when a link has room; or
///   [`Sender::ready_on`] and [`Sender::poll_on`] for each of several ways.
pub struct Sender {
    route: Route,
    outbox: Outbox,
    flight: Flight,
    window: Window,
    next_number: u64,
    /// Fences that have left.
    fences: u32,
    /// Levels at which the next packet waits for credit or for the window, as bits.
    blocked: u8,
    /// Sum of the costs of all items handed out so far, and the bound that the receiver set for it.
    sent_offset: u64,
    credit: u64,
    /// What the receiver granted at first.
    granted: u64,
    /// The receiver is to be asked for its credit.
    ask_credit: bool,
    /// Bytes sent since the receiver was last asked to acknowledge at once.
    unasked: usize,
    probe: Option<Instant>,
    /// Probes since there was progress.
    probes: u32,
    marks: u64,
    /// How long packets wait here, smoothed, and at most.
    delay: Duration,
    max_delay: Duration,
}

impl Sender {
    /// `credit` is what the other end granted when the channel was opened, `quota` what a flow may have
    /// queued before its sender is to be held back, in bytes.
    pub fn new(route: Route, credit: u64, quota: usize) -> Self {
        Self {
            route,
            outbox: Outbox::new(quota),
            flight: Flight::default(),
            window: Window::new(credit),
            next_number: 1,
            fences: 0,
            blocked: 0,
            sent_offset: 0,
            credit,
            granted: credit,
            ask_credit: false,
            unasked: 0,
            probe: None,
            probes: 0,
            marks: 0,
            delay: Duration::ZERO,
            max_delay: Duration::ZERO,
        }
    }

    /// Whether packets wait to be sent.
    pub fn is_held_back(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Whether everything that was pushed has been acknowledged.
    pub fn is_idle(&self) -> bool {
        self.outbox.is_empty() && self.flight.is_empty()
    }

    /// Bytes of packets that wait to be sent, and of those that wait for an acknowledgement.
    pub fn queued_bytes(&self) -> (usize, usize) {
        (self.outbox.bytes(), self.flight.bytes())
    }

    /// Live figures.
    pub fn figures(&self) -> SenderFigures {
        SenderFigures {
            waiting_bytes: self.outbox.bytes(),
            unacked_bytes: self.flight.bytes(),
            retransmits: self.flight.retransmits(),
            srtt: self.window.srtt(),
            window: self.window.bytes(),
            marks: self.marks,
            window_cuts: self.window.cuts(),
            flows: self.outbox.counts(),
            queue_delay: self.delay,
            max_queue_delay: self.max_delay,
        }
    }

    /// All flows that are known.
    pub fn flows(&self) -> impl Iterator<Item = FlowFigures> {
        self.outbox.flows()
    }

    /// The number of the next packet.
    pub fn next_number(&self) -> u64 {
        self.next_number
    }

    /// A batch of frames is going to be handed in.
    pub fn begin_batch(&mut self, now: Instant) {
        self.outbox.begin_batch(now);
    }

    /// Says how many bytes will be pushed until the end of the batch, so that room is made once.
    pub fn expect(&mut self, bytes: usize) {
        self.outbox.expect(bytes);
    }

    /// Takes one frame, given in pieces of `total` bytes in all. They are copied.
    pub fn push_frame(&mut self, options: &SendOptions, pieces: &[&[u8]], total: usize) {
        if total > CHUNK_LEN {
            let pieces: Vec<Bytes> = pieces.iter().map(|p| Bytes::copy_from_slice(p)).collect();
            return self.push_large_frame(options, &pieces, total);
        }
        let progress = self.progress();
        self.outbox.push_small(options, pieces, total, progress);
    }

    /// Takes one frame of more than [`CHUNK_LEN`] bytes, given in pieces of `total` bytes in all. Large
    /// pieces are not copied: they are kept until acknowledged.
    pub fn push_large_frame(&mut self, options: &SendOptions, pieces: &[Bytes], total: usize) {
        let progress = self.progress();
        self.outbox.push_large(options, pieces, total, progress);
    }

    /// Takes one message of the distribution handshake (at most [`CHUNK_LEN`] bytes are kept).
    pub fn push_handshake(&mut self, message: &[u8]) {
        let message = &message[..message.len().min(CHUNK_LEN)];
        self.outbox.push_fence(item::HANDSHAKE, &[message], message.len());
    }

    /// Puts an acknowledgement on the back of the data that is being built. It costs no credit.
    pub fn push_ack(&mut self, next: u64, credit: u64) {
        self.outbox.push_ack(next, credit);
    }

    /// Ends the packets that are being built.
    pub fn end_batch(&mut self) {
        self.outbox.end_batch();
    }

    /// Flows that got over their quota since this was asked last: their senders are to be held back.
    pub fn take_hold(&mut self) -> Vec<u64> {
        self.outbox.take_hold()
    }

    /// Flows of which [`Sender::take_hold`] has told, and that are below half of their quota again.
    pub fn take_resume(&mut self) -> Vec<u64> {
        self.outbox.take_resume()
    }

    /// Whether flows are over their quota, and their senders held back.
    pub fn holds_back(&self) -> bool {
        self.outbox.holds_back()
    }

    /// Whether [`Sender::take_resume`] has something.
    pub fn has_resume(&self) -> bool {
        self.outbox.has_resume()
    }

    /// How many equally short ways lead to the other node, each over a link of its own: 1 at first, at
    /// most [`MAX_WAYS`]. A flow stays on one of them.
    pub fn set_ways(&mut self, ways: usize) {
        self.outbox.set_ways(ways);
    }

    /// Levels at which packets may leave now, over whatever way, as bits.
    pub fn ready(&self) -> u8 {
        (0..self.outbox.ways()).fold(0, |set, way| set | self.ready_on(way))
    }

    /// Levels at which packets may leave now over a way, as bits.
    pub fn ready_on(&self, way: usize) -> u8 {
        let again = self.flight.has_resends() || self.ask_credit;
        let again = if again { Level::Urgent.bit() } else { 0 };
        self.outbox.ready(way) & !self.blocked | again
    }

    /// The next packet of any level and way, the most urgent first.
    pub fn poll_packet(&mut self, now: Instant) -> Option<Packet> {
        loop {
            let ready = self.ready();
            let level = *Level::ALL.iter().find(|level| ready & level.bit() != 0)?;
            if let Some(packet) = self.poll_level(now, level) {
                return Some(packet);
            }
        }
    }

    /// The next packet of a level, of whatever way.
    pub fn poll_level(&mut self, now: Instant, level: Level) -> Option<Packet> {
        (0..self.outbox.ways()).find_map(|way| self.poll_on(way, now, level))
    }

    /// The next packet of a level for a way. `None` if it has nothing, or must wait for credit or the
    /// window.
    pub fn poll_on(&mut self, way: usize, now: Instant, level: Level) -> Option<Packet> {
        if level == Level::Urgent {
            if let Some((packet, given_up)) = self.flight.poll_resend(now) {
                if let Some(late) = given_up {
                    self.outbox.give_up(late);
                }
                return Some(packet);
            }
            if std::mem::take(&mut self.ask_credit) {
                return Some(self.credit_probe());
            }
        }
        if self.blocked & level.bit() != 0 {
            return None;
        }
        let mut out = self.outbox.poll(way, level)?;
        let (cost, len) = (out.part.cost, out.part.len());
        if !self.admits(&out) {
            // The acknowledgement with more credit may get lost: this end has to ask for it then.
            self.blocked |= level.bit() | out.level.bit();
            self.outbox.put_back(way, out);
            self.arm(now);
            return None;
        }
        self.outbox.left(&out);
        let waited = out.since.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.note_delay(waited);
        let left = out.deadline.map(|deadline| deadline.saturating_sub(waited));
        if left == Some(Duration::ZERO) {
            out.part = out.void();
            (out.deadline, out.reliable) = (None, true);
            self.outbox.give_up(true);
        }
        let number = self.next_number;
        self.next_number += 1;
        self.sent_offset += cost;
        let ack_now = self.asks_for_ack(len);
        let (label, fence) = (out.label, out.fence);
        let flags = flags_of(out.level)
            | if out.pressing || out.level != Level::Urgent { 0 } else { FLAG_LOW }
            | if ack_now { FLAG_ACK_NOW } else { 0 }
            | if fence { FLAG_FENCE } else { 0 };
        let header = RoutedHeader {
            flags,
            mutable: left.map_or(0, time_left) << TIME_LEFT_SHIFT,
            label,
            number,
            ..self.header()
        };
        let instead = out.is_optional().then(|| {
            let from = if out.reliable { left.map_or(now, |left| now + left) } else { now };
            let header = RoutedHeader { mutable: 0, ..header };
            Instead {
                from,
                late: out.reliable,
                packet: out.void().into_packet(header, self.fences),
            }
        });
        let droppable = out.part.droppable && !fence;
        let packet = out.part.into_packet(header, self.fences);
        self.fences = self.fences.wrapping_add(u32::from(fence));
        self.flight.push(now, number, label, (packet.clone(), droppable), instead);
        self.arm(now);
        Some(packet)
    }

    /// Takes an acknowledgement. Old ones do no harm: everything in them only grows.
    pub fn handle_ack(&mut self, now: Instant, ack: &Ack) {
        let under_way = self.flight.bytes();
        let after = self.window.resend_after();
        let late = self.window.late_after();
        let progress = self.flight.handle_ack(now, ack.next, &ack.ranges, after, late);
        if let Some(rtt) = progress.rtt {
            self.window.sample(rtt);
        }
        if progress.gaps.lost {
            self.window.cut(now, under_way);
        } else {
            self.window.grow(progress.acked, under_way);
        }
        if progress.any || ack.credit > self.credit {
            self.credit = self.credit.max(ack.credit);
            self.probes = 0;
            self.probe = Some(now + self.window.probe_after(0));
            self.flight.recover();
        }
        self.blocked = 0;
        if self.is_idle() {
            self.probe = None;
        }
        self.look_again(progress.gaps.judge_at);
    }

    /// The receiver has got packets that relays had marked. To be told before the acknowledgement that
    /// says so.
    pub fn handle_mark(&mut self, now: Instant) {
        self.marks += 1;
        self.window.cut(now, self.flight.bytes());
    }

    /// The way to the destination has changed: all that is not acknowledged may have been lost.
    pub fn handle_route_change(&mut self, now: Instant) {
        self.flight.handle_route_change(now);
        self.ask_credit = self.flight.is_empty() && self.blocked != 0;
        self.blocked = 0;
        self.probes = 0;
        self.probe = (!self.is_idle()).then_some(now + self.window.probe_after(0));
    }

    /// A relay says that it dropped the packet of this number: the probe comes sooner.
    pub fn handle_unreachable(&mut self, now: Instant, number: u64) {
        if self.flight.contains(number) {
            self.look_again(Some(now + NOTICE_WAIT));
        }
    }

    /// The first packet that is not acknowledged.
    pub fn first_unacked(&self) -> Option<u64> {
        self.flight.first()
    }

    /// Gives up the packets that were sent so long ago and have not been acknowledged. The other end is told
    /// what was in them.
    ///
    /// # Errors
    /// One of them has what the other end cannot do without: nothing is given up.
    pub fn give_up(&mut self, now: Instant, after: Duration) -> Result<(), Loss> {
        let outbox = &self.outbox;
        let frames = self.flight.give_up(now, after, |id| outbox.key_of(id));
        let frames = frames.map_err(|packets| Loss { packets })?;
        self.outbox.lose(frames);
        Ok(())
    }

    /// When [`Sender::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.probe
    }

    /// A packet that was overtaken did not come late either, and is sent again; or nothing was heard for
    /// the probe timeout: sends the first unacknowledged packet again, or asks for the credit that
    /// everything waits for.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.probe.is_none_or(|at| now < at) {
            return;
        }
        if self.is_idle() {
            self.probe = None;
            return;
        }
        let gaps =
            self.flight.resend_gaps(now, self.window.resend_after(), self.window.late_after());
        if gaps.lost {
            self.window.cut(now, self.flight.bytes());
            self.probe = Some(now + self.window.probe_after(self.probes));
            return self.look_again(gaps.judge_at);
        }
        self.probes = self.probes.saturating_add(1);
        self.probe = Some(now + self.window.probe_after(self.probes));
        if !self.flight.is_empty() {
            self.flight.probe(now);
        } else if std::mem::take(&mut self.blocked) != 0 {
            self.ask_credit = true;
        }
    }

    /// Whether a packet may leave: there is credit for it, and room in the window. What is not bulk may
    /// use what is reserved.
    fn admits(&self, out: &Outgoing) -> bool {
        let bulk = matches!(out.level, Level::Normal | Level::Low);
        // A small grant is needed whole.
        let spare = if bulk && self.granted >= 8 * RESERVE as u64 { RESERVE } else { 0 };
        let extra = if bulk { 0 } else { RESERVE };
        let under_way = self.flight.bytes().saturating_sub(extra);
        self.sent_offset + out.part.cost + spare as u64 <= self.credit
            && self.window.admits(under_way, out.part.len())
    }

    /// A DATA packet outside the numbering: the receiver takes it for a repeated one, and tells how
    /// far it is and what credit there is.
    fn credit_probe(&self) -> Packet {
        let head = vec![0; PREFIX_LEN];
        let part = Part { head, body: Bytes::new(), cost: 0, droppable: true };
        let flags = flags_of(Level::Urgent);
        part.into_packet(RoutedHeader { flags, ..self.header() }, self.fences)
    }

    fn header(&self) -> RoutedHeader {
        let Route { source, destination, channel } = self.route;
        RoutedHeader::to(destination, source, channel)
    }

    fn note_delay(&mut self, waited: Duration) {
        self.delay = (self.delay * 7 + waited) / 8;
        self.max_delay = self.max_delay.max(waited);
    }

    fn progress(&self) -> Progress {
        Progress {
            last_number: self.next_number - 1,
            first_unacked: self.flight.first().unwrap_or(self.next_number),
            urgent: self.outbox.urgent_left(),
        }
    }

    /// Calls for service no later than `at`.
    fn look_again(&mut self, at: Option<Instant>) {
        self.probe = self.probe.into_iter().chain(at).min();
    }

    fn arm(&mut self, now: Instant) {
        let after = self.window.probe_after(self.probes);
        self.probe.get_or_insert(now + after);
    }

    /// Whether a packet of so many bytes, about to be sent, asks for an acknowledgement at once: four
    /// times per window, lest the window waits for acknowledgements that are delayed.
    fn asks_for_ack(&mut self, len: usize) -> bool {
        let Some(window) = self.window.bytes() else { return false };
        self.unasked += len;
        let full = !self.window.admits(self.flight.bytes() + len, CHUNK_LEN);
        let ask = self.unasked >= if full { window / 16 } else { window / 4 };
        if ask {
            self.unasked = 0;
        }
        ask
    }
}

fn flags_of(level: Level) -> u8 {
    match level {
        Level::High => FLAG_HIGH,
        Level::Urgent => FLAG_URGENT,
        Level::Normal => 0,
        Level::Low => FLAG_LOW,
    }
}

/// As it stands in the header: at least a millisecond, and at most what fits.
fn time_left(left: Duration) -> u16 {
    u16::try_from(left.as_millis()).unwrap_or(u16::MAX).clamp(1, MAX_TIME_LEFT_MS)
}
