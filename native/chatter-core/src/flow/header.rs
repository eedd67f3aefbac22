//! What stands before the control message: the distribution header (`erl_ext_dist`).

use super::cursor::Cursor;

pub(super) const VERSION: u8 = 131;
const NORMAL: u8 = b'D';
pub(super) const FIRST_FRAGMENT: u8 = b'E';
pub(super) const NEXT_FRAGMENT: u8 = b'F';
const PASS_THROUGH: u8 = b'p';

/// In the four bits of an atom: it is new in the cache.
const NEW_ENTRY: u8 = 0x8;
/// The same in both halves of a byte.
const NEW_ENTRIES: u8 = NEW_ENTRY | NEW_ENTRY << 4;
/// In the four bits after those of the last atom: lengths of texts have two bytes.
const LONG_ATOMS: u8 = 0x1;
/// The other three: which eighth of the cache the atom is in. A byte says where in that.
const SEGMENT: u8 = 0x7;
/// Atoms that a cache holds.
const CACHE_LEN: usize = 8 * 256;
/// At most one byte tells how many atoms a header refers to: so many bytes have their bits.
const MAX_FLAGS: usize = 255 / 2 + 1;

/// What a frame does to the cache of atoms.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Updates {
    /// Nothing.
    None,
    /// It fills places that were empty: frames before it cannot refer to them.
    Fresh,
    /// It changes what places hold, or nobody knows.
    Replaced,
}

/// The places of the cache that are not empty.
#[derive(Debug)]
pub(super) struct Cache([u64; CACHE_LEN / 64]);

impl Default for Cache {
    fn default() -> Self {
        Self([0; CACHE_LEN / 64])
    }
}

impl Cache {
    /// Fills a place; whether it was empty.
    fn fill(&mut self, at: usize) -> bool {
        let bit = 1 << (at % 64);
        let before = self.0[at / 64];
        self.0[at / 64] = before | bit;
        before & bit == 0
    }
}

/// The header of a frame. Of the first three the control message follows.
pub(super) enum Header {
    /// A whole signal.
    Whole { updates: Updates },
    /// The first part of a signal.
    First { sequence: u64, fragment: u64, updates: Updates },
    /// A further part of one: nothing is in it but the payload.
    Next { sequence: u64, fragment: u64 },
}

impl Header {
    /// Leaves the cursor at the control message. `None`: this is no header.
    #[inline]
    pub(super) fn read(c: &mut Cursor<'_>, cache: &mut Cache) -> Option<Header> {
        match c.array()? {
            [VERSION, NORMAL] => Some(Header::Whole { updates: skip_atoms(c, cache)? }),
            [VERSION, FIRST_FRAGMENT] => {
                let (sequence, fragment) = (c.u64()?, c.u64()?);
                // A header with damaged atoms is still the first part of its sequence; that there is no control
                // message will be seen.
                let updates = skip_atoms(c, cache).unwrap_or(Updates::Replaced);
                Some(Header::First { sequence, fragment, updates })
            }
            [VERSION, NEXT_FRAGMENT] => {
                Some(Header::Next { sequence: c.u64()?, fragment: c.u64()? })
            }
            [PASS_THROUGH, VERSION] => Some(Header::Whole { updates: Updates::None }),
            _ => None,
        }
    }
}

/// What is known of the atoms that a frame refers to.
struct Atoms {
    count: usize,
    /// One of them is new in the cache.
    is_any_new: bool,
    is_long: bool,
}

impl Atoms {
    /// `flags`: four bits for each atom, the low half of a byte first, and four for the header itself.
    #[inline]
    fn new(count: usize, flags: &[u8]) -> Option<Atoms> {
        let (last, pairs) = flags.split_last()?;
        let (its_atom, own) = match count % 2 {
            0 => (0, last & 0xf),
            _ => (last & NEW_ENTRY, last >> 4),
        };
        let any = pairs.iter().fold(its_atom, |any, pair| any | (pair & NEW_ENTRIES));
        Some(Atoms { count, is_any_new: any != 0, is_long: own & LONG_ATOMS != 0 })
    }
}

/// Leaves out the atoms that the frame refers to, and tells what they do to the cache.
#[inline]
fn skip_atoms(c: &mut Cursor<'_>, cache: &mut Cache) -> Option<Updates> {
    let count = usize::from(c.u8()?);
    if count == 0 {
        return Some(Updates::None);
    }
    let len = count / 2 + 1;
    match c.slice(len) {
        Some(flags) => skip_texts(c, Atoms::new(count, flags)?, flags, cache),
        None => {
            let mut copy = [0; MAX_FLAGS];
            let flags = &mut copy[..len];
            for byte in flags.iter_mut() {
                *byte = c.u8()?;
            }
            skip_texts(c, Atoms::new(count, flags)?, flags, cache)
        }
    }
}

#[inline]
fn skip_texts(
    c: &mut Cursor<'_>,
    atoms: Atoms,
    flags: &[u8],
    cache: &mut Cache,
) -> Option<Updates> {
    if !atoms.is_any_new {
        c.skip(atoms.count)?;
        return Some(Updates::None);
    }
    let mut updates = Updates::Fresh;
    for at in 0..atoms.count {
        let half = flags[at / 2] >> (4 * (at % 2));
        let place = usize::from(half & SEGMENT) << 8 | usize::from(c.u8()?);
        if half & NEW_ENTRY != 0 {
            if !cache.fill(place) {
                updates = Updates::Replaced;
            }
            let len = if atoms.is_long { c.u16()?.into() } else { c.u8()?.into() };
            c.skip(len)?;
        }
    }
    Some(updates)
}
