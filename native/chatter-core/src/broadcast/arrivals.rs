//! What has arrived for the user of this node and waits to be taken.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};

use crate::ids::{Incarnation, NodeId};
use crate::wire::bcast::next_message;

/// A message for the user of this node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Delivery {
    /// Who sent it first.
    pub origin: NodeId,
    /// Its number there.
    pub seq: u64,
    /// Its type.
    pub kind: Box<str>,
    /// What it says.
    pub body: Bytes,
    /// To be named in [`Broadcast::dispatched`](super::Broadcast::dispatched), if others wait for what
    /// becomes of it here.
    pub ticket: Option<u64>,
    pub(super) life: Incarnation,
    pub(super) custody: u64,
}

/// Whole messages of one origin that follow each other. Nobody waits for what becomes of them here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Run {
    /// Who sent them first.
    pub origin: NodeId,
    /// The number of the first one there.
    pub first: u64,
    /// How many they are, at least one.
    pub count: u64,
    /// They themselves, none of them compressed, read with [`next_message`].
    pub messages: Bytes,
    pub(super) life: Incarnation,
    pub(super) custody: u64,
}

/// See the variants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Arrival {
    /// A message by itself.
    One(Delivery),
    /// Many that arrived together.
    Run(Run),
}

impl Arrival {
    /// The bytes in it.
    pub fn len(&self) -> usize {
        match self {
            Self::One(delivery) => delivery.body.len(),
            Self::Run(run) => run.messages.len(),
        }
    }

    /// Whether it has no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// See the [module](self).
#[derive(Default)]
pub(super) struct Arrivals {
    queue: VecDeque<Arrival>,
}

impl Arrivals {
    pub fn push(&mut self, arrival: Arrival) {
        self.queue.push_back(arrival);
    }

    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub fn next_len(&self) -> usize {
        self.queue.front().map_or(0, Arrival::len)
    }

    pub fn pop(&mut self) -> Option<Arrival> {
        self.queue.pop_front()
    }

    /// The next message by itself, and whether no other of its run is left.
    pub fn pop_one(&mut self) -> Option<(Delivery, bool)> {
        let Some(Arrival::Run(run)) = self.queue.front_mut() else {
            return match self.queue.pop_front()? {
                Arrival::One(delivery) => Some((delivery, true)),
                Arrival::Run(_) => None,
            };
        };
        let mut rest = &run.messages[..];
        // They were read before, so no error can come of it.
        let message = next_message(&mut rest).ok().flatten()?;
        let delivery = Delivery {
            origin: run.origin,
            seq: run.first,
            kind: message.kind.into(),
            body: run.messages.slice_ref(message.body),
            ticket: None,
            life: run.life,
            custody: run.custody,
        };
        let read = run.messages.len() - rest.len();
        run.messages.advance(read);
        run.first += 1;
        run.count -= 1;
        let last = run.count == 0;
        if last {
            self.queue.pop_front();
        }
        Some((delivery, last))
    }
}
