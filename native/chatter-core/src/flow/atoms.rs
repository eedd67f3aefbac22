//! Where the atoms of a connection are in the cache of its receiver.
//!
//! A cache has 2,048 places, and the VM puts an atom where its number leads, whatever is there. Two atoms
//! with the same place that messages name by turns replace each other for ever, and with every change all
//! that comes later has to wait for all that was before. So headers are rewritten on their way: an atom
//! stays where the receiver has it, and a further one gets a free place, until there is none.

use std::collections::HashMap;
use std::sync::Arc;

/// Atoms that a cache holds.
const PLACES: usize = 8 * 256;

/// What a frame, or a new atom of the VM, does to the cache of the receiver.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Updates {
    /// Nothing: what it names is there.
    None,
    /// It fills places that were empty: frames before it cannot refer to them.
    Fresh,
    /// It changes what places hold, or nobody knows.
    Replaced,
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Places {
    /// Where the receiver has what the VM has at a place; the same place until it is filled.
    of: [u16; PLACES],
    /// Places that the VM has filled.
    filled: [bool; PLACES],
    /// How many of them are others at the receiver.
    moved: usize,
    /// What the receiver has, by place; and where.
    held: HashMap<u16, Arc<[u8]>>,
    known: HashMap<Arc<[u8]>, u16>,
    /// Where to look for a place next.
    hand: usize,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            of: std::array::from_fn(|place| place as u16),
            filled: [false; PLACES],
            moved: 0,
            held: HashMap::new(),
            known: HashMap::new(),
            hand: 0,
        }
    }
}

impl Places {
    /// Whether every atom is where the VM has it.
    #[inline]
    pub(super) fn is_plain(&self) -> bool {
        self.moved == 0
    }

    /// Where the receiver has what the VM has at a place below [`PLACES`].
    #[inline]
    pub(super) fn of(&self, place: usize) -> usize {
        usize::from(self.of[place])
    }

    /// The VM puts an atom at a place below [`PLACES`]; where [`Places::of`] now has it, and what that changes.
    pub(super) fn fill(&mut self, place: usize, text: &[u8]) -> Updates {
        let (to, updates) = match self.known.get(text) {
            Some(to) => (usize::from(*to), Updates::None),
            None => self.take(place),
        };
        self.moved -= usize::from(self.of(place) != place);
        self.moved += usize::from(to != place);
        self.of[place] = to as u16;
        self.filled[place] = true;
        if updates != Updates::None {
            let text: Arc<[u8]> = text.into();
            if let Some(before) = self.held.insert(to as u16, text.clone()) {
                self.known.remove(&before);
            }
            self.known.insert(text, to as u16);
        }
        updates
    }

    /// A place for a new atom that the VM has at `place`.
    fn take(&mut self, place: usize) -> (usize, Updates) {
        if !self.is_held(place) {
            return (place, Updates::Fresh);
        }
        let (to, updates) = if self.known.len() < PLACES {
            (self.next_place(|at| !self.is_held(at)), Updates::Fresh)
        } else {
            // Those of the VM, but for the one that goes: one less than there are.
            let mut in_use = [false; PLACES];
            for other in (0..PLACES).filter(|other| *other != place && self.filled[*other]) {
                in_use[self.of(other)] = true;
            }
            (self.next_place(|at| !in_use[at]), Updates::Replaced)
        };
        self.hand = (to + 1) % PLACES;
        (to, updates)
    }

    fn is_held(&self, place: usize) -> bool {
        self.held.contains_key(&(place as u16))
    }

    /// The next place that will do, of which there is one.
    fn next_place(&self, will_do: impl Fn(usize) -> bool) -> usize {
        let mut places = (self.hand..PLACES).chain(0..self.hand);
        places.find(|at| will_do(*at)).unwrap_or(self.hand)
    }
}
