//! The messages of one origin at one receiver: each once, in the order of the origin.

use std::collections::BTreeMap;
use std::time::Instant;

use bytes::{Bytes, BytesMut};

use super::payload::{Packed, unpack};
use crate::ids::Incarnation;
use crate::wire::bcast::{Part, next_message};
use crate::wire::cast::Gap;

/// A message, or a part of one, that is kept.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub part: Part,
    pub lz4: bool,
    pub kind: Box<str>,
    pub body: Bytes,
    /// The custody that waits until it is delivered.
    pub custody: u64,
}

/// What becomes of a piece.
#[derive(Debug)]
pub(super) enum Taken {
    /// It belongs to a message that goes on; done with.
    Part(Piece),
    /// A whole message, with its number.
    Whole(u64, Piece),
    /// Nothing can be made of it.
    Damaged(Piece),
}

struct Held {
    prev: u64,
    piece: Piece,
}

struct Assembly {
    lz4: bool,
    kind: Box<str>,
    body: BytesMut,
}

/// See the [module](self).
pub(super) struct Order {
    pub incarnation: Incarnation,
    /// All up to this number were delivered, or are not for this node.
    highest: u64,
    /// Whole messages that the user has not taken yet, and the last that it has.
    waiting: u64,
    taken: u64,
    held: BTreeMap<u64, Held>,
    assembly: Option<Assembly>,
    /// The highest number that a sender says to have sent.
    told: u64,
    /// Since when something is held.
    pub gap_since: Option<Instant>,
    limit: usize,
}

impl Order {
    pub fn new(incarnation: Incarnation, limit: usize) -> Self {
        let (held, assembly) = (BTreeMap::new(), None);
        let (highest, waiting, taken, told) = (0, 0, 0, 0);
        Self { incarnation, highest, waiting, taken, held, assembly, told, gap_since: None, limit }
    }

    /// All up to this number that were for this node have arrived.
    pub fn received(&self) -> u64 {
        self.highest
    }

    /// All up to this number the user has taken.
    pub fn taken(&self) -> u64 {
        if self.waiting == 0 { self.highest } else { self.taken }
    }

    /// The user has taken so many messages, up to `last`.
    pub fn delivered(&mut self, last: u64, count: u64) {
        self.waiting = self.waiting.saturating_sub(count);
        self.taken = self.taken.max(last);
    }

    /// What is known to be missing, at most `limit` gaps, and the highest number that is here; should
    /// gaps be left out, the highest one before them.
    pub fn gaps(&self, limit: usize) -> (Vec<Gap>, u64) {
        let (mut gaps, mut highest) = (Vec::new(), self.highest);
        for (seq, held) in &self.held {
            if held.prev > highest {
                if gaps.len() == limit {
                    break;
                }
                gaps.push(Gap { after: highest, upto: held.prev });
            }
            highest = *seq;
        }
        (gaps, highest)
    }

    /// A sender says that it has sent messages for this node up to `last`.
    pub fn told(&mut self, last: u64) {
        self.told = self.told.max(last);
    }

    /// The number after which something is missing, as far as is known.
    pub fn missing_after(&self) -> Option<u64> {
        (!self.held.is_empty() || self.told > self.highest).then_some(self.highest)
    }

    /// What is known to be missing, at most `limit` gaps: those of [`Order::gaps`], and what a sender
    /// has told of besides.
    pub fn missing(&self, limit: usize) -> Vec<Gap> {
        let (mut gaps, highest) = self.gaps(limit);
        if gaps.len() < limit && self.told > highest {
            gaps.push(Gap { after: highest, upto: self.told });
        }
        gaps
    }

    /// Whether a piece has come already.
    pub fn is_known(&self, seq: u64) -> bool {
        seq <= self.highest || self.held.contains_key(&seq)
    }

    /// Takes the messages of a batch behind `prev` at once, and tells how many they are. `None`, and nothing
    /// is taken, unless all of them can be delivered now, as they stand: they are the next ones, whole and
    /// not compressed.
    pub fn accept_run(&mut self, prev: u64, first: u64, messages: &[u8]) -> Option<u64> {
        let next = prev <= self.highest && self.highest < first;
        if !next || !self.held.is_empty() || self.assembly.is_some() {
            return None;
        }
        let (mut rest, mut count) = (messages, 0);
        while let Some(message) = next_message(&mut rest).ok()? {
            let plain = message.part == Part::Whole && !message.lz4;
            if !plain || message.body.len() > self.limit {
                return None;
            }
            count += 1;
        }
        if count == 0 {
            return None;
        }
        self.highest = first + count - 1;
        self.waiting += count;
        Some(count)
    }

    /// Takes a piece that is not known; `out` gets what can be delivered now.
    pub fn accept(
        &mut self,
        now: Instant,
        seq: u64,
        prev: u64,
        piece: Piece,
        out: &mut Vec<Taken>,
    ) {
        if prev > self.highest {
            self.held.insert(seq, Held { prev, piece });
            self.gap_since.get_or_insert(now);
            return;
        }
        self.take(seq, piece, out);
        self.take_held(now, out);
    }

    /// Gives up what is missing in front of the first piece held. Whether there was any.
    pub fn skip(&mut self, now: Instant, out: &mut Vec<Taken>) -> bool {
        let Some(first) = self.held.values().next() else { return false };
        self.highest = first.prev;
        self.assembly = None;
        self.take_held(now, out);
        true
    }

    /// The custodies that wait for pieces held; they will not be delivered.
    pub fn into_custodies(self) -> impl Iterator<Item = u64> {
        self.held.into_values().map(|held| held.piece.custody)
    }

    fn take_held(&mut self, now: Instant, out: &mut Vec<Taken>) {
        let mut moved = false;
        while let Some(next) = self.held.first_entry() {
            if next.get().prev > self.highest {
                break;
            }
            let (seq, held) = next.remove_entry();
            self.take(seq, held.piece, out);
            moved = true;
        }
        if self.held.is_empty() {
            self.gap_since = None;
        } else if moved {
            self.gap_since = Some(now);
        }
    }

    fn take(&mut self, seq: u64, mut piece: Piece, out: &mut Vec<Taken>) {
        self.highest = seq;
        let (limit, before) = (self.limit, out.len());
        let unpacked = |body, lz4| unpack(Packed { body, lz4 }, limit);
        match piece.part {
            Part::Whole => {
                self.assembly = None;
                match unpacked(std::mem::take(&mut piece.body), piece.lz4) {
                    Some(body) => out.push(Taken::Whole(seq, Piece { body, ..piece })),
                    None => out.push(Taken::Damaged(piece)),
                }
            }
            Part::First => {
                let body = BytesMut::from(&piece.body[..]);
                let kind = std::mem::take(&mut piece.kind);
                self.assembly = Some(Assembly { lz4: piece.lz4, kind, body });
                out.push(Taken::Part(piece));
            }
            Part::More | Part::Last => {
                let fits = |a: &Assembly| a.body.len() + piece.body.len() <= limit;
                let Some(mut assembly) = self.assembly.take().filter(fits) else {
                    return out.push(Taken::Damaged(piece));
                };
                assembly.body.extend_from_slice(&piece.body);
                if piece.part == Part::More {
                    self.assembly = Some(assembly);
                    return out.push(Taken::Part(piece));
                }
                match unpacked(assembly.body.freeze(), assembly.lz4) {
                    Some(body) => {
                        out.push(Taken::Whole(seq, Piece { body, kind: assembly.kind, ..piece }));
                    }
                    None => out.push(Taken::Damaged(piece)),
                }
            }
        }
        if let Some(Taken::Whole(..)) = out.get(before) {
            self.waiting += 1;
        }
    }
}
