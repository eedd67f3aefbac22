//! Own messages on their way out: numbered, put together into batches, chained for each target.

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use lru::LruCache;
use thiserror::Error;

use super::payload::Packed;
use crate::ids::{Incarnation, NodeId};
use crate::routes::ForwardingTable;
use crate::wire::bcast::{BATCH_BYTES, Batch, Message, Part, Target, put_message};

/// How long a batch waits for more while others are under way.
const GATHER: Duration = Duration::from_millis(1);

/// Bytes of a part of a message that is cut: room is left for the type.
const PART_BYTES: usize = BATCH_BYTES - 512;

/// Whom a message is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Targets {
    /// Every other node that can be reached when the message leaves.
    All,
    /// These.
    Nodes(Vec<NodeId>),
}

/// Why a message was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum SendError {
    /// Too much is under way: again a little later.
    #[error("too many broadcasts are under way")]
    Full,
    /// The message is over its limit, or its type over 255 bytes.
    #[error("the message is too large")]
    TooLarge,
}

struct Open {
    targets: Targets,
    messages: Vec<u8>,
    count: u64,
    since: Instant,
}

/// A batch that is to be sent.
pub(super) struct Ready {
    targets: Targets,
    first: u64,
    last: u64,
    messages: Vec<u8>,
}

pub(super) struct Outbox {
    life: Incarnation,
    /// The number of the last message.
    seq: u64,
    open: Option<Open>,
    /// The last number that each target was sent, and in which life.
    chain: LruCache<NodeId, (Incarnation, u64)>,
    /// What is left of a message that is being cut: where it goes on.
    cut_at: usize,
}

impl Outbox {
    pub fn new(life: Incarnation, nodes: NonZeroUsize) -> Self {
        let chain = LruCache::new(nodes);
        Self { life, seq: 0, open: None, chain, cut_at: 0 }
    }

    pub fn life_tag(&self) -> u16 {
        Target::life_tag(self.life)
    }

    pub fn begin_life(&mut self, life: Incarnation) {
        self.life = life;
        self.seq = 0;
        self.chain.clear();
    }

    /// Adds a message. To be called with the same one until it is `None`; each batch is to be sent.
    pub fn append(
        &mut self,
        now: Instant,
        targets: &Targets,
        kind: &str,
        packed: &Packed,
    ) -> Option<Ready> {
        loop {
            let rest = &packed.body[self.cut_at..];
            if self.cut_at > 0 && rest.is_empty() {
                self.cut_at = 0;
                return None;
            }
            let (part, kind, body) = match (self.cut_at, rest.len() <= PART_BYTES) {
                (0, true) => (Part::Whole, kind, rest),
                (0, false) => (Part::First, kind, &rest[..PART_BYTES]),
                (_, true) => (Part::Last, "", rest),
                (_, false) => (Part::More, "", &rest[..PART_BYTES]),
            };
            let len = body.len() + kind.len() + 5;
            let fits =
                |open: &Open| open.targets == *targets && open.messages.len() + len <= BATCH_BYTES;
            if self.open.as_ref().is_some_and(|open| !fits(open)) {
                return self.close();
            }
            let open = self.open.get_or_insert_with(|| Open {
                targets: targets.clone(),
                messages: Vec::new(),
                count: 0,
                since: now,
            });
            put_message(&mut open.messages, &Message { part, lz4: packed.lz4, kind, body });
            open.count += 1;
            if part == Part::Whole {
                return None;
            }
            self.cut_at += body.len();
        }
    }

    /// Adds a message to the batch that is open. Whether it could: there is one, for these targets, and with
    /// room.
    pub fn gather(&mut self, targets: &Targets, kind: &str, body: &[u8]) -> bool {
        let len = body.len() + kind.len() + 5;
        let Some(open) = &mut self.open else { return false };
        if self.cut_at > 0
            || body.len() > PART_BYTES
            || kind.len() > 255
            || open.messages.len() + len > BATCH_BYTES
            || open.targets != *targets
        {
            return false;
        }
        let message = Message { part: Part::Whole, lz4: false, kind, body };
        put_message(&mut open.messages, &message);
        open.count += 1;
        true
    }

    /// When a batch has waited long enough.
    pub fn timeout(&self) -> Option<Instant> {
        self.open.as_ref().map(|open| open.since + GATHER)
    }

    /// Ends the batch that is being gathered.
    pub fn close(&mut self) -> Option<Ready> {
        let Open { targets, messages, count, .. } = self.open.take()?;
        let first = self.seq + 1;
        self.seq += count;
        Some(Ready { targets, first, last: self.seq, messages })
    }

    /// Finds the lives of the targets, and chains the batch to what they got before. Also how many of
    /// them nobody knows.
    pub fn address(
        &mut self,
        ready: Ready,
        me: NodeId,
        table: &ForwardingTable,
    ) -> (Batch, Vec<Target>, u64) {
        let ids = match ready.targets {
            Targets::All => table.nodes(),
            Targets::Nodes(ids) => ids,
        };
        let mut seen = HashSet::with_capacity(ids.len());
        let (mut targets, mut unknown) = (Vec::with_capacity(ids.len()), 0);
        for id in ids {
            if !seen.insert(id) {
                continue;
            }
            let chained = self.chain.get(&id).copied();
            let route = table.route(id).map(|route| route.incarnation);
            // A node that has just lost its route may be there again soon.
            let life = if id == me { Some(self.life) } else { route.or(chained.map(|(l, _)| l)) };
            let Some(life) = life else {
                unknown += 1;
                continue;
            };
            let prev = chained.filter(|(known, _)| *known == life).map_or(0, |(_, prev)| prev);
            let life_tag = Target::life_tag(life);
            targets.push(Target { id, life: life_tag, direct: false, links_only: false, prev });
            self.chain.put(id, (life, ready.last));
        }
        let batch = Batch {
            origin: me,
            incarnation: self.life,
            first: ready.first,
            messages: ready.messages.into(),
        };
        (batch, targets, unknown)
    }
}
