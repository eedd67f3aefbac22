//! The sending half of a channel: frames in, numbered packets out; kept until acknowledged.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::CHUNK_LEN;
use super::build::Builder;
use super::flight::Flight;
use super::window::Window;
use crate::ids::{ChannelIndex, NodeId};
use crate::wire::data::Ack;
use crate::wire::packet::Packet;

/// A packet of which a relay says that it could not pass it on is sent again after this long: by then
/// there is another way, or tables are still being computed.
const NOTICE_WAIT: Duration = Duration::from_millis(20);

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
}

/// The sending half of a channel.
///
/// * in: [`Sender::push_frame`], [`Sender::push_handshake`], [`Sender::push_ack`], then
///   [`Sender::end_batch`]; [`Sender::handle_ack`], [`Sender::handle_route_change`],
///   [`Sender::handle_unreachable`], [`Sender::handle_timeout`];
/// * out: [`Sender::poll_packet`] until `None` after each of these.
pub struct Sender {
    builder: Builder,
    flight: Flight,
    window: Window,
    /// Sum of the costs of all items handed out so far, and the bound that the receiver set for it.
    sent_offset: u64,
    credit: u64,
    /// The receiver is to be asked for its credit.
    ask_credit: bool,
    /// Bytes sent since the receiver was last asked to acknowledge at once.
    unasked: usize,
    probe: Option<Instant>,
    /// Probes since there was progress.
    probes: u32,
    marks: u64,
}

impl Sender {
    /// `credit` is what the other end granted when the channel was opened, in bytes.
    pub fn new(route: Route, credit: u64) -> Self {
        Self {
            builder: Builder::new(route),
            flight: Flight::default(),
            window: Window::new(credit),
            sent_offset: 0,
            credit,
            ask_credit: false,
            unasked: 0,
            probe: None,
            probes: 0,
            marks: 0,
        }
    }

    /// Whether packets wait for credit or for the window: then no more frames should be fetched from
    /// the VM.
    pub fn is_held_back(&self) -> bool {
        !self.builder.is_empty()
    }

    /// Whether everything that was pushed has been acknowledged.
    pub fn is_idle(&self) -> bool {
        self.builder.is_empty() && self.flight.is_empty()
    }

    /// Bytes of packets that wait to be sent, and of those that wait for an acknowledgement.
    pub fn queued_bytes(&self) -> (usize, usize) {
        (self.builder.waiting_bytes(), self.flight.bytes())
    }

    /// Live figures.
    pub fn figures(&self) -> SenderFigures {
        SenderFigures {
            waiting_bytes: self.builder.waiting_bytes(),
            unacked_bytes: self.flight.bytes(),
            retransmits: self.flight.retransmits(),
            srtt: self.window.srtt(),
            window: self.window.bytes(),
            marks: self.marks,
            window_cuts: self.window.cuts(),
        }
    }

    /// Packets handed out more than once so far.
    pub fn retransmits(&self) -> u64 {
        self.flight.retransmits()
    }

    /// The number of the next packet.
    pub fn next_number(&self) -> u64 {
        self.builder.next_number()
    }

    /// Says how many bytes will be pushed until the end of the batch, so that room is made once.
    pub fn expect(&mut self, bytes: usize) {
        self.builder.expect(bytes);
    }

    /// Takes one frame of the VM, given in pieces of `total` bytes in all. They are copied.
    pub fn push_frame(&mut self, pieces: &[&[u8]], total: usize) {
        self.builder.push_frame(pieces, total);
    }

    /// Takes one frame of the VM of more than [`CHUNK_LEN`] bytes, given in pieces of `total` bytes in
    /// all. Large pieces are not copied: they are kept until acknowledged.
    pub fn push_large_frame(&mut self, pieces: &[Bytes], total: usize) {
        self.builder.push_large_frame(pieces, total);
    }

    /// Takes one message of the distribution handshake (at most [`CHUNK_LEN`] bytes are kept).
    pub fn push_handshake(&mut self, message: &[u8]) {
        self.builder.push_handshake(message);
    }

    /// Puts an acknowledgement on the back of the data that is being built. It costs no credit.
    pub fn push_ack(&mut self, next: u64, credit: u64) {
        self.builder.push_ack(next, credit);
    }

    /// Ends the packet that is being built.
    pub fn end_batch(&mut self) {
        self.builder.end_batch();
    }

    /// The next packet to put on a link, resends first.
    pub fn poll_packet(&mut self, now: Instant) -> Option<Packet> {
        if let Some(packet) = self.flight.poll_resend(now) {
            return Some(packet);
        }
        if std::mem::take(&mut self.ask_credit) {
            return Some(self.builder.credit_probe());
        }
        let next = self.builder.front()?;
        let (cost, len) = (next.cost, next.len());
        if self.sent_offset + cost > self.credit || !self.window.admits(self.flight.bytes(), len) {
            // The acknowledgement with more credit may get lost: this end has to ask for it then.
            self.arm(now);
            return None;
        }
        let built = self.builder.pop()?;
        let number = built.number;
        self.sent_offset += cost;
        let ack_now = self.asks_for_ack(len);
        let packet = built.into_packet(ack_now);
        self.flight.push(now, number, packet.clone());
        self.arm(now);
        Some(packet)
    }

    /// Takes an acknowledgement. Old ones do no harm: everything in them only grows.
    pub fn handle_ack(&mut self, now: Instant, ack: &Ack) {
        let under_way = self.flight.bytes();
        let after = self.window.resend_after();
        let progress = self.flight.handle_ack(now, ack.next, &ack.ranges, after);
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
        self.ask_credit = self.flight.is_empty() && self.is_held_back();
        self.probes = 0;
        self.probe = (!self.is_idle()).then_some(now + self.window.probe_after(0));
    }

    /// A relay says that it dropped the packet of this number: the probe comes sooner.
    pub fn handle_unreachable(&mut self, now: Instant, number: u64) {
        if self.flight.contains(number) {
            self.look_again(Some(now + NOTICE_WAIT));
        }
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
        let gaps = self.flight.resend_gaps(now, self.window.resend_after());
        if gaps.lost {
            self.window.cut(now, self.flight.bytes());
            self.probe = Some(now + self.window.probe_after(self.probes));
            return self.look_again(gaps.judge_at);
        }
        self.probes = self.probes.saturating_add(1);
        self.probe = Some(now + self.window.probe_after(self.probes));
        if self.flight.is_empty() {
            self.ask_credit = true;
        } else {
            self.flight.probe(now);
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
