//! Frame after frame of one channel, in the order in which the VM gives them.

use std::collections::HashMap;

use super::atoms::{Places, Updates};
use super::control::Control;
use super::cursor::Cursor;
use super::header::{Header, Rewriting};
use super::{FlowKey, Reading};

/// Senders whose signals in parts a [`FrameReader`] remembers at a time. There is one for each process that the
/// VM has stopped in the middle of a large signal. The parts of a further one are fences.
pub const MAX_OPEN: usize = 16_384;

/// Reads the frames of one channel in one direction. It remembers whose the signals are of which further
/// parts will come: these carry a sequence number and no sender.
#[derive(Debug, Default)]
pub struct FrameReader {
    /// Sender by sequence number, at most [`MAX_OPEN`].
    open: HashMap<u64, u64>,
    places: Places,
    rewriting: Rewriting,
}

impl FrameReader {
    /// A reader for a channel on which nothing has been sent yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The place of the next frame, whose bytes are `pieces` one after the other, cut anywhere. An empty frame,
    /// and whatever is not understood, is a fence.
    #[inline]
    pub fn read(&mut self, pieces: &[&[u8]]) -> Reading {
        let mut c = Cursor::new(pieces);
        match Header::read(&mut c, &mut self.places, &mut self.rewriting) {
            Some(Header::Whole { updates: Updates::None }) => match Control::read(&mut c) {
                Some(Control { from, is_message }) => {
                    Reading { key: FlowKey::Flow(from), droppable: is_message }
                }
                None => Reading::FENCE,
            },
            Some(Header::Whole { updates: Updates::Fresh }) => match Control::read(&mut c) {
                Some(Control { from, .. }) => {
                    Reading { key: FlowKey::Lead(from), droppable: false }
                }
                None => Reading::FENCE,
            },
            Some(Header::First { sequence, fragment, updates }) => {
                self.first_part(&mut c, sequence, fragment, updates)
            }
            Some(Header::Next { sequence, fragment }) => self.next_part(sequence, fragment),
            Some(Header::Whole { updates: Updates::Replaced }) | None => Reading::FENCE,
        }
    }

    /// What has to be sent instead of the first bytes of the frame that was read last, and of how many; `None`
    /// if the frame goes as it is. In such a header atoms are where the receiver has them.
    #[inline]
    pub fn rewritten(&self) -> Option<(&[u8], usize)> {
        let Rewriting { bytes, instead_of } = &self.rewriting;
        (!bytes.is_empty()).then_some((bytes, *instead_of))
    }

    /// How many signals are under way in parts.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// Parts count down to 1. Only the first one can change the cache: the parts after a fence are its
    /// sender's again. If there is no sender, they are fences like it, as all unknown sequences are.
    #[cold]
    fn first_part(
        &mut self,
        c: &mut Cursor<'_>,
        sequence: u64,
        fragment: u64,
        updates: Updates,
    ) -> Reading {
        self.open.remove(&sequence);
        let Some(Control { from, .. }) = Control::read(c) else {
            return Reading::FENCE;
        };
        if fragment > 1 && self.open.len() < MAX_OPEN {
            self.open.insert(sequence, from);
        }
        let key = match updates {
            Updates::None => FlowKey::Flow(from),
            Updates::Fresh | Updates::Replaced => FlowKey::Fence,
        };
        Reading { key, droppable: false }
    }

    #[cold]
    fn next_part(&mut self, sequence: u64, fragment: u64) -> Reading {
        let from = match fragment {
            1 => self.open.remove(&sequence),
            _ => self.open.get(&sequence).copied(),
        };
        Reading { key: from.map_or(FlowKey::Fence, FlowKey::Flow), droppable: false }
    }
}
