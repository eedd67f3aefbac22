//! The receiving side of flows: items in order of their sequence numbers, each once; those that are ahead
//! wait; large frames are put together, and so are the fragments of the VM that follow each other
//! (`fragments`).

use std::collections::BTreeMap;

use bytes::Bytes;
use rustc_hash::FxHashMap;

use super::fragments::Run;
use super::item_cost;
use super::receive::{ReceiveError, Sink};
use crate::wire::data::{Item, TOTAL_LEN};

/// Flows that a peer may have at a time; it retires its own long before.
const MAX_PEER_FLOWS: usize = 64 * 1024;

/// What frames in no order are called for the sink; it may put them behind others of that name.
const LOOSE: u32 = u32::MAX;

/// What of a large frame there is.
struct Assembly {
    /// Bytes that are missing. None are between two fragments.
    left: usize,
    /// Cost of the parts since `round` of [`Held`] began.
    cost: u64,
    round: u64,
    /// Cost of those before, which counts as consumed.
    advanced: u64,
    /// The fragments of the VM that it is made of.
    run: Option<Run>,
}

impl Assembly {
    fn charge(&mut self, cost: u64, held: &mut Held) {
        if self.round != held.round {
            self.round = held.round;
            self.advanced += std::mem::take(&mut self.cost);
        }
        self.cost += cost;
        held.cost += cost;
    }

    /// All of it is there: hands it over.
    fn finish(mut self, id: Option<u32>, held: &mut Held, sink: &mut dyn Sink) {
        self.charge(0, held);
        if let Some((at, number)) = self.run.and_then(|run| run.renumbered()) {
            sink.frame_fix(id, at, &number);
        }
        held.cost -= self.cost;
        held.debt += self.advanced;
        held.with_user += self.cost + self.advanced;
        sink.frame_end(id, self.cost + self.advanced);
    }
}

/// Parts of frames that are not whole yet, and what the user has.
struct Held {
    /// What the parts cost, unless it counts as consumed.
    cost: u64,
    /// The rest of the window must stay for what completes them.
    limit: u64,
    /// Counts how often all of it came to count as consumed.
    round: u64,
    /// What counted as consumed of frames that are whole by now: the user will grant it once more.
    debt: u64,
    /// What the user was given and has not granted.
    with_user: u64,
}

/// An item that is kept until those before it are there.
enum Kept {
    Frame(Bytes),
    First(u32, Bytes),
    More(Bytes),
    Handshake(Bytes),
    End,
    Void(u32),
    Lost(u32, u64),
}

impl Kept {
    fn of(item: &Item<'_>) -> Option<Self> {
        Some(match item {
            Item::Frame(body) => Self::Frame(Bytes::copy_from_slice(body)),
            Item::First { total, part } => Self::First(*total, Bytes::copy_from_slice(part)),
            Item::More(part) => Self::More(Bytes::copy_from_slice(part)),
            Item::Handshake(message) => Self::Handshake(Bytes::copy_from_slice(message)),
            Item::End => Self::End,
            Item::Void { cost } => Self::Void(*cost),
            Item::Lost { cost, sender } => Self::Lost(*cost, *sender),
            Item::Ack { .. } | Item::Flow { .. } => return None,
        })
    }

    fn item(&self) -> Item<'_> {
        match self {
            Self::Frame(body) => Item::Frame(body),
            Self::First(total, part) => Item::First { total: *total, part },
            Self::More(part) => Item::More(part),
            Self::Handshake(message) => Item::Handshake(message),
            Self::End => Item::End,
            Self::Void(cost) => Item::Void { cost: *cost },
            Self::Lost(cost, sender) => Item::Lost { cost: *cost, sender: *sender },
        }
    }
}

#[derive(Default)]
struct Flow {
    /// The sequence number of the next item.
    next: u32,
    ahead: BTreeMap<u32, Kept>,
    assembly: Option<Assembly>,
}

impl Flow {
    /// Whether fragments are being put together.
    fn has_run(&self) -> bool {
        self.assembly.as_ref().is_some_and(|open| open.run.is_some())
    }

    /// What does not go on with the fragments so far has come: they go to the sink as one.
    fn end_run(&mut self, id: Option<u32>, held: &mut Held, sink: &mut dyn Sink) {
        if self.assembly.as_ref().is_some_and(|open| open.left == 0)
            && let Some(whole) = self.assembly.take()
        {
            whole.finish(id, held, sink);
        }
    }
}

/// The flows of a channel as its receiver knows them.
pub(super) struct InFlows {
    flows: FxHashMap<u32, Flow>,
    /// What belongs to no flow.
    fences: Flow,
    max_frame: usize,
    /// The frames are those of a VM, whose fragments are put together.
    joins: bool,
    /// Flows that wait for a further fragment.
    runs: Vec<u32>,
    /// Parts of frames that are not whole.
    held: Held,
    /// Items that are ahead, and bytes in them.
    kept: usize,
    kept_bytes: usize,
    /// Cost that counts as consumed already.
    consumed: u64,
}

impl InFlows {
    pub(super) fn new(max_frame: usize, max_held: u64) -> Self {
        Self {
            flows: FxHashMap::default(),
            fences: Flow::default(),
            max_frame,
            joins: false,
            runs: Vec::new(),
            held: Held { cost: 0, limit: max_held, round: 0, debt: 0, with_user: 0 },
            kept: 0,
            kept_bytes: 0,
            consumed: 0,
        }
    }

    /// The frames of flows may be fragments of a VM.
    pub(super) fn join_fragments(&mut self) {
        self.joins = true;
    }

    /// Items that are ahead, and bytes in them.
    pub(super) fn kept(&self) -> (usize, usize) {
        (self.kept, self.kept_bytes)
    }

    /// Flows known.
    pub(super) fn len(&self) -> usize {
        self.flows.len()
    }

    /// Cost of items since this was asked last that counts as consumed.
    ///
    /// A frame larger than the window, or many at a time, would wait for credit for ever: what has been put
    /// together counts as consumed, but not while the user has enough to take for more credit to come of that.
    /// `max_frame` bounds it.
    pub(super) fn take_consumed(&mut self) -> u64 {
        let Held { cost, limit, with_user, .. } = self.held;
        if cost >= limit && with_user <= limit {
            self.consumed += std::mem::take(&mut self.held.cost);
            self.held.round += 1;
        }
        std::mem::take(&mut self.consumed)
    }

    /// The user grants what it was given; what of it had counted as consumed before does not count again.
    pub(super) fn grant(&mut self, cost: u64) {
        self.held.with_user = self.held.with_user.saturating_sub(cost);
        let paid = cost.min(self.held.debt);
        self.held.debt -= paid;
        self.consumed += cost - paid;
    }

    /// Takes an item that belongs to no flow.
    pub(super) fn fence(
        &mut self,
        item: &Item<'_>,
        sink: &mut dyn Sink,
    ) -> Result<(), ReceiveError> {
        // What it changes, such as the atoms that a VM knows, must not be seen by frames before it.
        for id in self.runs.drain(..) {
            if let Some(flow) = self.flows.get_mut(&id) {
                flow.end_run(Some(id), &mut self.held, sink);
            }
        }
        let max_frame = self.max_frame;
        let joins = false;
        self.consumed += Taking { max_frame, joins, held: &mut self.held, sink }.take(
            &mut self.fences,
            None,
            item,
        )?;
        Ok(())
    }

    /// Takes an item that is in no order with others.
    pub(super) fn loose(
        &mut self,
        item: &Item<'_>,
        sink: &mut dyn Sink,
    ) -> Result<(), ReceiveError> {
        if !matches!(item, Item::Frame(_) | Item::Void { .. } | Item::Lost { .. }) {
            return Err(ReceiveError::Parts);
        }
        let max_frame = self.max_frame;
        let mut none = Flow::default();
        self.consumed += Taking { max_frame, joins: false, held: &mut self.held, sink }.take(
            &mut none,
            Some(LOOSE),
            item,
        )?;
        Ok(())
    }

    /// Takes an item of a flow.
    pub(super) fn item(
        &mut self,
        id: u32,
        sequence: u32,
        item: &Item<'_>,
        sink: &mut dyn Sink,
    ) -> Result<(), ReceiveError> {
        if !self.flows.contains_key(&id) && self.flows.len() >= MAX_PEER_FLOWS {
            return Err(ReceiveError::Flows);
        }
        let flow = self.flows.entry(id).or_default();
        let ahead = sequence.wrapping_sub(flow.next) as i32;
        if ahead > 0 {
            if let Some(kept) = Kept::of(item) {
                self.kept += 1;
                self.kept_bytes += len(item);
                if flow.ahead.insert(sequence, kept).is_some() {
                    return Err(ReceiveError::Parts);
                }
            }
            return Ok(());
        }
        if ahead < 0 {
            // Packets come once, and so do their items: a peer that counts wrongly.
            return Err(ReceiveError::Parts);
        }
        let mut over = matches!(item, Item::End);
        let (max_frame, joins) = (self.max_frame, self.joins);
        let mut taking = Taking { max_frame, joins, held: &mut self.held, sink };
        let had_run = flow.has_run();
        self.consumed += taking.take(flow, Some(id), item)?;
        flow.next = flow.next.wrapping_add(1);
        while let Some(kept) = flow.ahead.remove(&flow.next) {
            let item = kept.item();
            over |= matches!(item, Item::End);
            self.kept -= 1;
            self.kept_bytes -= len(&item);
            self.consumed += taking.take(flow, Some(id), &item)?;
            flow.next = flow.next.wrapping_add(1);
        }
        let has_run = flow.has_run();
        if has_run && !had_run {
            self.runs.push(id);
        } else if had_run && !has_run {
            self.runs.retain(|run| *run != id);
        }
        if over {
            if flow.assembly.is_some() || !flow.ahead.is_empty() {
                return Err(ReceiveError::Parts);
            }
            self.flows.remove(&id);
        }
        Ok(())
    }
}

/// What items are taken with whose turn it is.
struct Taking<'t> {
    max_frame: usize,
    joins: bool,
    held: &'t mut Held,
    sink: &'t mut dyn Sink,
}

impl Taking<'_> {
    /// Takes an item that is in order. Returns the cost that nobody will grant.
    fn take(
        &mut self,
        flow: &mut Flow,
        id: Option<u32>,
        item: &Item<'_>,
    ) -> Result<u64, ReceiveError> {
        match item {
            Item::Frame(frame) => {
                self.check(frame.len())?;
                let cost = item_cost(frame.len());
                if let Some(body) = self.next_fragment(flow, id, frame, frame.len()) {
                    self.part(flow, id, body, cost, frame.len() - body.len())?;
                    return Ok(0);
                }
                self.held.with_user += cost;
                self.sink.frame(id, frame, cost);
            }
            Item::First { total, part } => {
                let total = *total as usize;
                self.check(total)?;
                let cost = item_cost(part.len() + TOTAL_LEN);
                if part.len() >= total || flow.assembly.as_ref().is_some_and(|open| open.left > 0) {
                    return Err(ReceiveError::Parts);
                }
                if let Some(body) = self.next_fragment(flow, id, part, total) {
                    self.part(flow, id, body, cost, part.len() - body.len())?;
                    return Ok(0);
                }
                let run = if self.joins { Run::begin(part, total) } else { None };
                let expected = run.as_ref().map_or(total, |run| run.expected_len());
                self.sink.frame_start(id, expected.clamp(total, self.max_frame.max(total)));
                flow.assembly = Some(Assembly { left: total, cost: 0, round: 0, advanced: 0, run });
                self.part(flow, id, part, cost, 0)?;
            }
            Item::More(part) => self.part(flow, id, part, item_cost(part.len()), 0)?,
            Item::Handshake(message) => {
                let cost = item_cost(message.len());
                self.held.with_user += cost;
                self.sink.handshake(message, cost);
            }
            Item::End => {
                flow.end_run(id, self.held, self.sink);
                return Ok(item_cost(0));
            }
            Item::Void { cost } => {
                flow.end_run(id, self.held, self.sink);
                return Ok(u64::from(*cost));
            }
            // What is not of a flow cannot be done without.
            Item::Lost { .. } if id.is_none() => return Err(ReceiveError::Parts),
            Item::Lost { cost, sender } => {
                flow.end_run(id, self.held, self.sink);
                self.sink.lost(*sender);
                return Ok(u64::from(*cost));
            }
            Item::Ack { .. } | Item::Flow { .. } => {}
        }
        Ok(0)
    }

    fn check(&self, len: usize) -> Result<(), ReceiveError> {
        let limit = self.max_frame;
        if len > limit { Err(ReceiveError::FrameTooLong { len, limit }) } else { Ok(()) }
    }

    /// What is left of a frame of `total` bytes that goes on with the fragments before it, of which this is
    /// the beginning. Anything else ends those.
    fn next_fragment<'f>(
        &mut self,
        flow: &mut Flow,
        id: Option<u32>,
        frame: &'f [u8],
        total: usize,
    ) -> Option<&'f [u8]> {
        let open = flow.assembly.as_mut().filter(|open| open.left == 0)?;
        let run = open.run.as_mut()?;
        if run.len() + total <= self.max_frame
            && let Some(body) = run.next(frame, total)
        {
            open.left = total;
            return Some(body);
        }
        flow.end_run(id, self.held, self.sink);
        None
    }

    /// Takes a part of a frame, of which some bytes are left out.
    fn part(
        &mut self,
        flow: &mut Flow,
        id: Option<u32>,
        part: &[u8],
        cost: u64,
        skipped: usize,
    ) -> Result<(), ReceiveError> {
        let open = flow.assembly.as_mut().ok_or(ReceiveError::Parts)?;
        let len = part.len() + skipped;
        open.left = open.left.checked_sub(len).ok_or(ReceiveError::Parts)?;
        open.charge(cost, self.held);
        self.sink.frame_part(id, part);
        if open.left == 0
            && open.run.as_ref().is_none_or(Run::is_whole)
            && let Some(whole) = flow.assembly.take()
        {
            whole.finish(id, self.held, self.sink);
        }
        Ok(())
    }
}

fn len(item: &Item<'_>) -> usize {
    match item {
        Item::Frame(body) | Item::More(body) | Item::Handshake(body) => body.len(),
        Item::First { part, .. } => part.len(),
        Item::Ack { .. } | Item::Flow { .. } | Item::End => 0,
        Item::Void { .. } | Item::Lost { .. } => 0,
    }
}

/// What an item uses up of the credit.
pub(super) fn cost(item: &Item<'_>) -> u64 {
    match item {
        Item::First { part, .. } => item_cost(part.len() + TOTAL_LEN),
        Item::Void { cost } | Item::Lost { cost, .. } => u64::from(*cost),
        Item::Ack { .. } | Item::Flow { .. } => 0,
        other => item_cost(len(other)),
    }
}
