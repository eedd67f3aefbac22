//! A packet that has not left, and what is queued for one of the equally short ways.

use std::time::{Duration, Instant};

use super::build::{Building, Part};
use crate::sched::fair::{LEVELS, Level, Levels};

/// A packet on its way out.
pub(super) struct Outgoing {
    pub(super) part: Part,
    pub(super) level: Level,
    /// Somebody may wait for it: it is urgent, and not only of flows that send bulk.
    pub(super) pressing: bool,
    /// Of its flow; 0 if it is of several.
    pub(super) label: u16,
    pub(super) fence: bool,
    /// How long it is wanted; and whether it is sent again when it is lost.
    pub(super) deadline: Option<Duration>,
    pub(super) reliable: bool,
    /// The flow and the sequence number of its only item, if it may be given up.
    pub(super) alone: Option<(u32, u32)>,
    /// When it was handed in.
    pub(super) since: Option<Instant>,
    /// Where it was queued.
    pub(super) place: Place,
}

#[derive(Clone, Copy)]
pub(super) enum Place {
    /// In the queue of the flow of this slot.
    Own(u32),
    /// Among the urgent ones, as the one of this serial number.
    Urgent(u64),
    Fence,
    /// Behind the urgent packet of this serial number.
    Lead(u64),
}

impl Outgoing {
    pub(super) fn new(
        part: Part,
        level: Level,
        label: u16,
        since: Option<Instant>,
        place: Place,
    ) -> Self {
        let (deadline, alone) = (None, None);
        let fence = matches!(place, Place::Fence | Place::Lead(_));
        let pressing = matches!(level, Level::High | Level::Urgent);
        Self { part, level, pressing, label, fence, deadline, reliable: true, alone, since, place }
    }

    pub(super) fn serial(&self) -> u64 {
        if let Place::Urgent(serial) = self.place { serial } else { 0 }
    }

    /// Whether it may be given up: then [`Outgoing::void`] takes its place.
    pub(super) fn is_optional(&self) -> bool {
        self.deadline.is_some() || !self.reliable
    }

    /// What takes its place when it is given up.
    pub(super) fn void(&self) -> Part {
        Part::void(self.alone, self.part.cost)
    }
}

/// What is queued for one way.
#[derive(Default)]
pub(super) struct Way {
    pub(super) levels: Levels<u32, Outgoing>,
    /// What was polled and could not leave yet, by level.
    pub(super) stash: [Option<Outgoing>; LEVELS],
    /// Small frames of several flows that will share an urgent packet, and its serial number.
    pub(super) urgent: Building,
    pub(super) urgent_serial: u64,
    pub(super) urgent_pressing: bool,
    /// Counts the times that nothing urgent was left.
    pub(super) round: u64,
}

impl Way {
    /// Levels that have something, as bits.
    pub(super) fn ready(&self) -> u8 {
        let stashed = self.stash.iter().zip(Level::ALL).filter(|(out, _)| out.is_some());
        stashed.fold(self.levels.ready(), |set, (_, level)| set | level.bit())
    }

    /// The next packet of a level.
    pub(super) fn pop(&mut self, level: Level) -> Option<Outgoing> {
        if let Some(out) = self.stash[level as usize].take() {
            return Some(out);
        }
        let (_, out, _) = self.levels.pop(level)?;
        self.round += u64::from(level == Level::Urgent && !self.levels.has_urgent());
        Some(out)
    }

    /// Takes all of a level out, in order.
    pub(super) fn take(&mut self, level: Level) -> impl Iterator<Item = Outgoing> {
        let stashed = self.stash[level as usize].take();
        let queued = std::iter::from_fn(move || self.levels.pop(level).map(|(_, out, _)| out));
        stashed.into_iter().chain(queued)
    }

    /// The serial number of the first urgent packet that has not left.
    pub(super) fn first_urgent(&self) -> Option<u64> {
        let stashed = self.stash[Level::Urgent as usize].as_ref();
        let first = stashed.or_else(|| self.levels.front_urgent()).map(Outgoing::serial);
        first.or_else(|| (!self.urgent.is_empty()).then_some(self.urgent_serial))
    }
}
