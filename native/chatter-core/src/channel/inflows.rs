//! The receiving side of flows: items in order of their sequence numbers, each once; those that are ahead
//! wait; large frames are put together.

use std::collections::BTreeMap;

use bytes::Bytes;
use rustc_hash::FxHashMap;

use super::item_cost;
use super::receive::{ReceiveError, Sink};
use crate::wire::data::{Item, TOTAL_LEN};

/// Flows that a peer may have at a time; it retires its own long before.
const MAX_PEER_FLOWS: usize = 64 * 1024;

/// What frames in no order are called for the sink; it may put them behind others of that name.
const LOOSE: u32 = u32::MAX;

/// What of a large frame there is.
struct Assembly {
    left: usize,
    /// Cost of the parts so far that has not been granted.
    cost: u64,
}

/// Parts of frames that are not whole yet.
struct Held {
    /// What they cost that has not been granted.
    cost: u64,
    limit: u64,
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

/// The flows of a channel as its receiver knows them.
pub(super) struct InFlows {
    flows: FxHashMap<u32, Flow>,
    /// What belongs to no flow.
    fences: Flow,
    max_frame: usize,
    /// Parts of frames that are not whole, and what of them is held before they count as consumed: the
    /// rest of the window must stay for what completes them.
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
            held: Held { cost: 0, limit: max_held },
            kept: 0,
            kept_bytes: 0,
            consumed: 0,
        }
    }

    /// Items that are ahead, and bytes in them.
    pub(super) fn kept(&self) -> (usize, usize) {
        (self.kept, self.kept_bytes)
    }

    /// Flows known.
    pub(super) fn len(&self) -> usize {
        self.flows.len()
    }

    /// Cost of items since this was asked last that nobody will grant.
    pub(super) fn take_consumed(&mut self) -> u64 {
        std::mem::take(&mut self.consumed)
    }

    /// Takes an item that belongs to no flow.
    pub(super) fn fence(
        &mut self,
        item: &Item<'_>,
        sink: &mut dyn Sink,
    ) -> Result<(), ReceiveError> {
        let max_frame = self.max_frame;
        self.consumed += take(&mut self.fences, None, item, max_frame, &mut self.held, sink)?;
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
        self.consumed += take(&mut none, Some(LOOSE), item, max_frame, &mut self.held, sink)?;
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
        let max_frame = self.max_frame;
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
        self.consumed += take(flow, Some(id), item, max_frame, &mut self.held, sink)?;
        flow.next = flow.next.wrapping_add(1);
        while let Some(kept) = flow.ahead.remove(&flow.next) {
            let item = kept.item();
            over |= matches!(item, Item::End);
            self.kept -= 1;
            self.kept_bytes -= len(&item);
            self.consumed += take(flow, Some(id), &item, max_frame, &mut self.held, sink)?;
            flow.next = flow.next.wrapping_add(1);
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

/// Takes an item that is in order. Returns the cost that nobody will grant.
fn take(
    flow: &mut Flow,
    id: Option<u32>,
    item: &Item<'_>,
    max_frame: usize,
    held: &mut Held,
    sink: &mut dyn Sink,
) -> Result<u64, ReceiveError> {
    let check = |len: usize| {
        let too_long = ReceiveError::FrameTooLong { len, limit: max_frame };
        if len > max_frame { Err(too_long) } else { Ok(()) }
    };
    match item {
        Item::Frame(frame) => {
            check(frame.len())?;
            sink.frame(id, frame, item_cost(frame.len()));
        }
        Item::First { total, part } => {
            let total = *total as usize;
            check(total)?;
            if flow.assembly.is_some() || part.len() >= total {
                return Err(ReceiveError::Parts);
            }
            sink.frame_start(id, total);
            flow.assembly = Some(Assembly { left: total, cost: 0 });
            return take_part(flow, id, part, item_cost(part.len() + TOTAL_LEN), held, sink);
        }
        Item::More(part) => {
            return take_part(flow, id, part, item_cost(part.len()), held, sink);
        }
        Item::Handshake(message) => sink.handshake(message, item_cost(message.len())),
        Item::End => return Ok(item_cost(0)),
        Item::Void { cost } => return Ok(u64::from(*cost)),
        // What is not of a flow cannot be done without.
        Item::Lost { .. } if id.is_none() => return Err(ReceiveError::Parts),
        Item::Lost { cost, sender } => {
            sink.lost(*sender);
            return Ok(u64::from(*cost));
        }
        Item::Ack { .. } | Item::Flow { .. } => {}
    }
    Ok(0)
}

fn take_part(
    flow: &mut Flow,
    id: Option<u32>,
    part: &[u8],
    cost: u64,
    held: &mut Held,
    sink: &mut dyn Sink,
) -> Result<u64, ReceiveError> {
    let assembly = flow.assembly.as_mut().ok_or(ReceiveError::Parts)?;
    assembly.left = assembly.left.checked_sub(part.len()).ok_or(ReceiveError::Parts)?;
    assembly.cost += cost;
    held.cost += cost;
    sink.frame_part(id, part);
    if assembly.left == 0 {
        held.cost -= assembly.cost;
        sink.frame_end(id, assembly.cost);
        flow.assembly = None;
    } else if held.cost >= held.limit {
        // A frame larger than the window, or many at a time, would wait for credit for ever: what has been
        // put together counts as consumed. `max_frame` bounds it.
        held.cost -= assembly.cost;
        return Ok(std::mem::take(&mut assembly.cost));
    }
    Ok(0)
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
