//! Packets under way: kept until they are acknowledged, and handed out again when they are lost.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use super::build;
use crate::wire::packet::Packet;

/// A packet is taken for lost when so many later ones of its label have arrived before it (RFC 9002,
/// 6.1.1). Those of other labels may overtake it at every relay.
const REORDER_THRESHOLD: usize = 3;

/// Packets that are sent again at once after a change of the way, before any answer: enough for a short
/// gap, few enough for a way that may be thinner than the one before.
const FIRST_ROUND: usize = 16;

/// What takes the place of a packet that is given up.
pub(super) struct Instead {
    /// From when on.
    pub(super) from: Instant,
    /// It is late then, not lost.
    pub(super) late: bool,
    pub(super) packet: Packet,
}

struct Unacked {
    number: u64,
    /// Packets of one label take one way, and do not overtake each other.
    label: u16,
    /// `None` once a range has acknowledged it: the receiver keeps what it has acknowledged.
    packet: Option<Packet>,
    /// What is sent in its place from some time on.
    instead: Option<Box<Instead>>,
    /// When it was handed out first, and last.
    first_at: Instant,
    sent_at: Instant,
    /// The other end can do without it.
    droppable: bool,
    /// It was handed out more than once: which copy an acknowledgement means is not known.
    resent: bool,
    /// It is in the list of those to hand out again.
    queued: bool,
}

/// The way back after a probe timeout or a change of the way. The answer to a probe shows that the way
/// is open, and nothing about the packets behind it, because it has the number of a packet that was
/// lost. They are handed out again in rounds, each twice as large as the one before and only after all
/// of that was acknowledged.
struct Recovery {
    /// Packets from this number on were handed out later.
    until: u64,
    /// The first packet behind the present round.
    round_end: u64,
    /// Packets of the present round.
    round: usize,
    /// Packets may be late instead of lost: it ends when one arrives that was not sent again.
    doubted: bool,
    /// What was handed out since then is not handed out again.
    since: Instant,
}

/// What an acknowledgement has brought.
#[derive(Default)]
pub(super) struct Progress {
    /// Anything new at all.
    pub(super) any: bool,
    /// Bytes that are not under way any more.
    pub(super) acked: usize,
    /// The round trip of the last packet that was sent once.
    pub(super) rtt: Option<Duration>,
    /// What the gaps say.
    pub(super) gaps: Gaps,
}

/// Packets that later ones have overtaken.
#[derive(Clone, Copy, Default)]
pub(super) struct Gaps {
    /// Some were found to be lost, and are sent again.
    pub(super) lost: bool,
    /// Some may be late; from then on they are lost.
    pub(super) judge_at: Option<Instant>,
}

/// The packets of a sender that are not acknowledged.
#[derive(Default)]
pub(super) struct Flight {
    unacked: VecDeque<Unacked>,
    bytes: usize,
    /// Ranges of the last acknowledgement: what they cover is dealt with.
    ranges: Vec<(u64, u64)>,
    /// The highest numbers that ranges have acknowledged, by label, the lowest of them first: what is
    /// below that was overtaken by as many.
    highest: FxHashMap<u16, [u64; REORDER_THRESHOLD]>,
    /// Numbers to hand out again; those acknowledged in the meantime are passed over.
    resend: VecDeque<u64>,
    recovery: Option<Recovery>,
    retransmits: u64,
}

impl Flight {
    /// Bytes that are not acknowledged.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The first packet that is not acknowledged.
    pub(super) fn first(&self) -> Option<u64> {
        self.unacked.front().map(|first| first.number)
    }

    /// Whether packets wait to be handed out again.
    pub(super) fn has_resends(&self) -> bool {
        !self.resend.is_empty()
    }

    /// Whether everything is acknowledged.
    pub(super) fn is_empty(&self) -> bool {
        self.unacked.is_empty()
    }

    /// Packets handed out more than once so far.
    pub(super) fn retransmits(&self) -> u64 {
        self.retransmits
    }

    /// Whether a packet is not acknowledged.
    pub(super) fn contains(&mut self, number: u64) -> bool {
        self.entry(number).is_some_and(|entry| entry.packet.is_some())
    }

    /// A packet was handed out for the first time.
    pub(super) fn push(
        &mut self,
        now: Instant,
        number: u64,
        label: u16,
        (packet, droppable): (Packet, bool),
        instead: Option<Instead>,
    ) {
        self.bytes += packet.len();
        self.unacked.push_back(Unacked {
            number,
            label,
            packet: Some(packet),
            instead: instead.map(Box::new),
            first_at: now,
            sent_at: now,
            droppable,
            resent: false,
            queued: false,
        });
    }

    /// The next packet to hand out again, and whether it takes the place of one that is given up just now:
    /// because it is late (`true`), or because it was lost.
    pub(super) fn poll_resend(&mut self, now: Instant) -> Option<(Packet, Option<bool>)> {
        while let Some(number) = self.resend.pop_front() {
            let Some(entry) = self.entry(number) else { continue };
            entry.queued = false;
            let Some(mut packet) = entry.packet.clone() else { continue };
            entry.sent_at = now;
            entry.resent = true;
            let before = packet.len();
            let mut given_up = None;
            if entry.instead.as_ref().is_some_and(|instead| now >= instead.from)
                && let Some(instead) = entry.instead.take()
            {
                packet = instead.packet;
                entry.packet = Some(packet.clone());
                given_up = Some(instead.late);
            }
            self.bytes = self.bytes - before + packet.len();
            self.retransmits += 1;
            return Some((packet, given_up));
        }
        None
    }

    /// Gives up all packets that were handed out for the first time so long ago: markers take their places,
    /// and go out at once. How many frames they had; or how many packets are lost, if the other end cannot
    /// do without one of them.
    pub(super) fn give_up(
        &mut self,
        now: Instant,
        after: Duration,
        sender: impl Fn(u32) -> u64,
    ) -> Result<u64, u64> {
        let mut markers = Vec::new();
        let mut frames = 0;
        let mut needed = false;
        let mut lost = 0;
        for entry in &self.unacked {
            let Some(packet) = entry.packet.as_ref() else { continue };
            if entry.first_at + after > now {
                break;
            }
            lost += 1;
            match build::lost(packet, &sender).filter(|_| entry.droppable) {
                Some((marker, count)) => {
                    frames += count;
                    markers.push((entry.number, marker));
                }
                None => needed = true,
            }
        }
        if needed {
            return Err(lost);
        }
        for (number, marker) in markers {
            let Some(entry) = self.entry(number) else { continue };
            let before = entry.packet.as_ref().map_or(0, Packet::len);
            entry.droppable = false;
            entry.first_at = now;
            entry.instead = None;
            let len = marker.len();
            entry.packet = Some(marker);
            self.bytes = self.bytes - before + len;
            self.queue_again(number);
        }
        Ok(frames)
    }

    /// All packets below `next` have arrived, and those in `ranges`. A gap counts as lost if it was last
    /// filled `resend_after` ago.
    pub(super) fn handle_ack(
        &mut self,
        now: Instant,
        next: u64,
        ranges: &[(u64, u64)],
        resend_after: Duration,
        late_after: Duration,
    ) -> Progress {
        let mut progress = Progress::default();
        let before = self.bytes;
        while let Some(first) = self.unacked.pop_front_if(|first| first.number < next) {
            progress.any = true;
            self.forget(now, &first, &mut progress);
        }
        if ranges.is_empty() {
            self.ranges.clear();
            self.highest.clear();
        } else {
            progress.any |= self.handle_ranges(ranges);
            progress.gaps = self.resend_gaps(now, resend_after, late_after);
        }
        progress.acked = before - self.bytes;
        progress
    }

    /// Nothing was heard for the probe timeout: the first packet goes out again, the others by and by.
    pub(super) fn probe(&mut self, now: Instant) {
        self.start_recovery(now, 1, true);
    }

    /// The way has changed: all that is not acknowledged may have been lost, and goes out again in
    /// rounds.
    pub(super) fn handle_route_change(&mut self, now: Instant) {
        self.resend.clear();
        self.unacked.iter_mut().for_each(|entry| entry.queued = false);
        self.recovery = None;
        self.start_recovery(now, FIRST_ROUND, false);
    }

    /// Begins the next round of the recovery when the last one is acknowledged. To be called after
    /// progress.
    pub(super) fn recover(&mut self) {
        let Some(first) = self.unacked.front().map(|first| first.number) else {
            self.recovery = None;
            return;
        };
        let Some(recovery) = self.recovery.as_mut().filter(|r| first < r.until) else {
            self.recovery = None;
            return;
        };
        if first >= recovery.round_end {
            recovery.round = recovery.round.saturating_mul(2);
            self.next_round();
        }
    }

    fn start_recovery(&mut self, now: Instant, round: usize, doubted: bool) {
        let Some(last) = self.unacked.back() else { return };
        // What a change of the way has made certain stays so.
        let doubted = doubted && self.recovery.as_ref().is_none_or(|r| r.doubted);
        let until = last.number + 1;
        self.recovery = Some(Recovery { until, round_end: 0, round, doubted, since: now });
        self.next_round();
    }

    fn next_round(&mut self) {
        let Some(recovery) = self.recovery.as_mut() else { return };
        let (until, round, since) = (recovery.until, recovery.round, recovery.since);
        let lost = |entry: &&Unacked| {
            let again = entry.resent && entry.sent_at >= since;
            entry.packet.is_some() && entry.number < until && !again
        };
        let lost = self.unacked.iter().filter(lost).map(|entry| entry.number);
        let numbers: Vec<u64> = lost.take(round).collect();
        recovery.round_end = numbers.last().map_or(until, |last| last + 1);
        numbers.into_iter().for_each(|number| self.queue_again(number));
    }

    /// Notes what `ranges` acknowledge; whether there was anything new. Costs as much as there is new,
    /// not as there is in the ranges.
    fn handle_ranges(&mut self, ranges: &[(u64, u64)]) -> bool {
        let mut any = false;
        let Some(first) = self.unacked.front().map(|first| first.number) else { return any };
        let known = std::mem::replace(&mut self.ranges, ranges.to_vec());
        for &(from, to) in ranges {
            let seen = known.iter().find(|k| k.0 <= from && from < k.1).map_or(from, |k| k.1);
            for number in seen.max(first)..to {
                let Some(entry) = self.entry(number) else { break };
                if let Some(packet) = entry.packet.take() {
                    let label = entry.label;
                    self.bytes -= packet.len();
                    any = true;
                    let highest = self.highest.entry(label).or_default();
                    if number > highest[0] {
                        highest[0] = number;
                        highest.sort_unstable();
                    }
                }
            }
        }
        any
    }

    /// Queues what the last acknowledgement shows to be lost: overtaken by three of its label, and not sent
    /// within `resend_after`; or overtaken by any, and not sent within `late_after`.
    pub(super) fn resend_gaps(
        &mut self,
        now: Instant,
        resend_after: Duration,
        late_after: Duration,
    ) -> Gaps {
        let mut gaps = Gaps::default();
        let Some(first) = self.unacked.front().map(|first| first.number) else { return gaps };
        let ranges = std::mem::take(&mut self.ranges);
        let mut gap = first;
        for &(from, to) in &ranges {
            for number in gap..from {
                let Some(entry) = self.entry(number) else { break };
                let lost_at = entry.sent_at + resend_after;
                if entry.packet.is_none() || entry.queued {
                    continue;
                }
                let (label, sent_at) = (entry.label, entry.sent_at);
                // Others may overtake it, but not by much: nothing of its own may follow for long.
                let mut lost_at = lost_at;
                if self.highest.get(&label).is_none_or(|highest| number > highest[0]) {
                    lost_at = sent_at + late_after;
                }
                if now >= lost_at {
                    self.queue_again(number);
                    gaps.lost = true;
                } else {
                    gaps.judge_at = Some(gaps.judge_at.map_or(lost_at, |at| at.min(lost_at)));
                }
            }
            gap = gap.max(to);
        }
        self.ranges = ranges;
        gaps
    }

    /// A packet has been acknowledged, with all before it.
    fn forget(&mut self, now: Instant, first: &Unacked, progress: &mut Progress) {
        let Some(packet) = &first.packet else { return };
        self.bytes -= packet.len();
        if first.resent {
            return;
        }
        progress.rtt = Some(now.saturating_duration_since(first.sent_at));
        let number = first.number;
        let late = |r: &Recovery| r.doubted && (r.round_end..r.until).contains(&number);
        if self.recovery.as_ref().is_some_and(late) {
            // It was not sent again, and is there: packets are late, not lost.
            self.recovery = None;
        }
    }

    fn entry(&mut self, number: u64) -> Option<&mut Unacked> {
        let first = self.unacked.front()?.number;
        self.unacked.get_mut(usize::try_from(number.checked_sub(first)?).ok()?)
    }

    fn queue_again(&mut self, number: u64) {
        if let Some(entry) = self.entry(number)
            && entry.packet.is_some()
            && !entry.queued
        {
            entry.queued = true;
            self.resend.push_back(number);
        }
    }
}
