//! What stands before the control message: the distribution header (`erl_ext_dist`).

use super::cursor::Cursor;

const VERSION: u8 = 131;
const NORMAL: u8 = b'D';
const FIRST_FRAGMENT: u8 = b'E';
const NEXT_FRAGMENT: u8 = b'F';
const PASS_THROUGH: u8 = b'p';

/// In the four bits of an atom: it is new in the cache.
const NEW_ENTRY: u8 = 0x8;
/// The same in both halves of a byte.
const NEW_ENTRIES: u8 = NEW_ENTRY | NEW_ENTRY << 4;
/// In the four bits after those of the last atom: lengths of texts have two bytes.
const LONG_ATOMS: u8 = 0x1;
/// At most one byte tells how many atoms a header refers to: so many bytes have their bits.
const MAX_FLAGS: usize = 255 / 2 + 1;

/// The header of a frame. Of the first three the control message follows.
pub(super) enum Header {
    /// A whole signal.
    Whole {
        /// It changes the cache of atoms.
        updates: bool,
    },
    /// The first part of a signal.
    First { sequence: u64, fragment: u64, updates: bool },
    /// A further part of one: nothing is in it but the payload.
    Next { sequence: u64, fragment: u64 },
}

impl Header {
    /// Leaves the cursor at the control message. `None`: this is no header.
    #[inline]
    pub(super) fn read(c: &mut Cursor<'_>) -> Option<Header> {
        match c.array()? {
            [VERSION, NORMAL] => Some(Header::Whole { updates: skip_atoms(c)? }),
            [VERSION, FIRST_FRAGMENT] => {
                let (sequence, fragment) = (c.u64()?, c.u64()?);
                // A header with damaged atoms is still the first part of its sequence; that there is no control
                // message will be seen.
                let updates = skip_atoms(c).unwrap_or(true);
                Some(Header::First { sequence, fragment, updates })
            }
            [VERSION, NEXT_FRAGMENT] => {
                Some(Header::Next { sequence: c.u64()?, fragment: c.u64()? })
            }
            [PASS_THROUGH, VERSION] => Some(Header::Whole { updates: false }),
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

/// Leaves out the atoms that the frame refers to, and tells whether one of them is new in the cache.
#[inline]
fn skip_atoms(c: &mut Cursor<'_>) -> Option<bool> {
    let count = usize::from(c.u8()?);
    if count == 0 {
        return Some(false);
    }
    let len = count / 2 + 1;
    match c.slice(len) {
        Some(flags) => skip_texts(c, Atoms::new(count, flags)?, flags),
        None => {
            let mut copy = [0; MAX_FLAGS];
            let flags = &mut copy[..len];
            for byte in flags.iter_mut() {
                *byte = c.u8()?;
            }
            skip_texts(c, Atoms::new(count, flags)?, flags)
        }
    }
}

#[inline]
fn skip_texts(c: &mut Cursor<'_>, atoms: Atoms, flags: &[u8]) -> Option<bool> {
    if !atoms.is_any_new {
        c.skip(atoms.count)?;
        return Some(false);
    }
    for at in 0..atoms.count {
        let half = flags[at / 2] >> (4 * (at % 2));
        c.skip(1)?;
        if half & NEW_ENTRY != 0 {
            let len = if atoms.is_long { c.u16()?.into() } else { c.u8()?.into() };
            c.skip(len)?;
        }
    }
    Some(true)
}
