//! What stands before the control message: the distribution header (`erl_ext_dist`).

use super::atoms::{Places, Updates};
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
/// At most one byte tells how many atoms a header refers to: so many bytes have their bits.
const MAX_FLAGS: usize = 255 / 2 + 1;

/// What is to be sent instead of the beginning of a frame.
#[derive(Debug, Default)]
pub(super) struct Rewriting {
    /// Empty if the frame goes as it is.
    pub(super) bytes: Vec<u8>,
    /// How many bytes of the frame these stand for.
    pub(super) instead_of: usize,
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
    pub(super) fn read(
        c: &mut Cursor<'_>,
        places: &mut Places,
        out: &mut Rewriting,
    ) -> Option<Header> {
        out.bytes.clear();
        match c.array()? {
            [VERSION, NORMAL] => {
                Some(Header::Whole { updates: atoms(c, places, &[VERSION, NORMAL], out)? })
            }
            [VERSION, FIRST_FRAGMENT] => {
                let (sequence, fragment) = (c.u64()?, c.u64()?);
                let mut start = [VERSION, FIRST_FRAGMENT].to_vec();
                start.extend(sequence.to_be_bytes());
                start.extend(fragment.to_be_bytes());
                // A header with damaged atoms is still the first part of its sequence; that there is no control
                // message will be seen.
                let updates = atoms(c, places, &start, out).unwrap_or(Updates::Replaced);
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

/// Leaves out the atoms that the frame refers to, and tells what they do to the cache of the receiver. `start`
/// is what the header has before them.
#[inline]
fn atoms(
    c: &mut Cursor<'_>,
    places: &mut Places,
    start: &[u8],
    out: &mut Rewriting,
) -> Option<Updates> {
    let count = usize::from(c.u8()?);
    if count == 0 {
        return Some(Updates::None);
    }
    let len = count / 2 + 1;
    let mut copy = [0; MAX_FLAGS];
    let flags = match c.slice(len) {
        Some(flags) => flags,
        None => {
            for byte in &mut copy[..len] {
                *byte = c.u8()?;
            }
            &copy[..len]
        }
    };
    let atoms = Atoms::new(count, flags)?;
    if !atoms.is_any_new && places.is_plain() {
        c.skip(count)?;
        return Some(Updates::None);
    }
    let rewritten = rewrite(c, &atoms, flags, places, start, out);
    if rewritten.is_none() {
        out.bytes.clear();
    }
    rewritten
}

/// Makes a header of its own for a frame, where an atom may be elsewhere or need no text.
fn rewrite(
    c: &mut Cursor<'_>,
    atoms: &Atoms,
    flags: &[u8],
    places: &mut Places,
    start: &[u8],
    out: &mut Rewriting,
) -> Option<Updates> {
    let bytes = &mut out.bytes;
    bytes.extend_from_slice(start);
    bytes.push(atoms.count as u8);
    let flags_at = bytes.len();
    bytes.extend_from_slice(flags);
    out.instead_of = bytes.len();
    let (mut updates, mut is_changed) = (Updates::None, false);
    for number in 0..atoms.count {
        let (byte, shift) = (number / 2, 4 * (number % 2));
        let half = flags[byte] >> shift & 0xf;
        let place = usize::from(half & SEGMENT) << 8 | usize::from(c.u8()?);
        out.instead_of += 1;
        let mut new_half = 0;
        let at = bytes.len();
        // Its number there, and its text if it is new.
        bytes.push(0);
        if half & NEW_ENTRY != 0 {
            let len = if atoms.is_long { c.u16()?.into() } else { usize::from(c.u8()?) };
            if atoms.is_long {
                bytes.extend((len as u16).to_be_bytes());
            } else {
                bytes.push(len as u8);
            }
            let text = bytes.len();
            c.copy(len, bytes)?;
            out.instead_of += bytes.len() - at - 1;
            let its = places.fill(place, &bytes[text..]);
            updates = updates.max(its);
            if its == Updates::None {
                bytes.truncate(at + 1);
            } else {
                new_half = NEW_ENTRY;
            }
        }
        let to = places.of(place);
        bytes[at] = to as u8;
        new_half |= (to >> 8) as u8;
        bytes[flags_at + byte] ^= (half ^ new_half) << shift;
        is_changed |= half != new_half || to != place;
    }
    if !is_changed {
        bytes.clear();
    }
    Some(updates)
}
