//! Terms out of Erlang's external term format, of the kinds that small messages mostly have. The VM looks
//! every atom up in a table that all its threads share, which costs as much as the rest of a small
//! message; here that is done once for all messages that are read together.

use rustler::sys::{ErlNifTerm, enif_make_list_from_array, enif_make_tuple_from_array};
use rustler::{Atom, Encoder, Env, NewBinary, Term};

use crate::etf;

/// How deep a term may be.
const MAX_DEPTH: usize = 16;

/// How many atoms are remembered.
const MAX_ATOMS: usize = 16;

/// Reads terms; remembers the atoms of those read before.
pub(crate) struct Terms<'a, 'm> {
    env: Env<'a>,
    atoms: Vec<(&'m [u8], ErlNifTerm)>,
    /// Elements of the tuples and lists that are being read.
    open: Vec<ErlNifTerm>,
}

impl<'a, 'm> Terms<'a, 'm> {
    pub(crate) fn new(env: Env<'a>) -> Self {
        Self { env, atoms: Vec::new(), open: Vec::new() }
    }

    /// The term that the bytes behind the version are. `None` if they are not exactly one, or have something
    /// that is left to the VM, such as atoms that do not exist.
    pub(crate) fn read(&mut self, bytes: &'m [u8]) -> Option<Term<'a>> {
        self.open.clear();
        let mut rest = bytes;
        let term = self.next(&mut rest, 0)?;
        // SAFETY: it was made in this environment.
        rest.is_empty().then(|| unsafe { Term::new(self.env, term) })
    }

    fn next(&mut self, rest: &mut &'m [u8], depth: usize) -> Option<ErlNifTerm> {
        if depth > MAX_DEPTH {
            return None;
        }
        let [tag] = take(rest)?;
        let term = match tag {
            etf::SMALL_INTEGER => take::<1>(rest)?[0].encode(self.env).as_c_arg(),
            etf::INTEGER => i32::from_be_bytes(take(rest)?).encode(self.env).as_c_arg(),
            etf::NEW_FLOAT => {
                let n = f64::from_be_bytes(take(rest)?);
                n.is_finite().then(|| n.encode(self.env).as_c_arg())?
            }
            etf::BINARY => {
                let len = u32::from_be_bytes(take(rest)?) as usize;
                let (bytes, behind) = rest.split_at_checked(len)?;
                *rest = behind;
                Term::from(NewBinary::from_slice(self.env, bytes)).as_c_arg()
            }
            etf::SMALL_ATOM_UTF8 => {
                let [len] = take(rest)?;
                let (text, behind) = rest.split_at_checked(len.into())?;
                *rest = behind;
                self.atom(text)?
            }
            etf::SMALL_TUPLE => {
                let [arity] = take(rest)?;
                let first = self.elements(rest, arity.into(), depth)?;
                let elements = &self.open[first..];
                // SAFETY: all of them were made in this environment.
                let tuple = unsafe {
                    enif_make_tuple_from_array(self.env.as_c_arg(), elements.as_ptr(), arity.into())
                };
                self.open.truncate(first);
                tuple
            }
            etf::NIL => self.list(self.open.len()),
            etf::LIST => {
                let count = u32::from_be_bytes(take(rest)?);
                let first = self.elements(rest, count, depth)?;
                // Improper ones are rare.
                if take(rest)? != [etf::NIL] {
                    return None;
                }
                self.list(first)
            }
            _ => return None,
        };
        Some(term)
    }

    /// Reads so many terms to the end of `open`; where the first one is.
    fn elements(&mut self, rest: &mut &'m [u8], count: u32, depth: usize) -> Option<usize> {
        let first = self.open.len();
        for _ in 0..count {
            let term = self.next(rest, depth + 1)?;
            self.open.push(term);
        }
        Some(first)
    }

    /// Makes a list of what is open from a place on.
    fn list(&mut self, first: usize) -> ErlNifTerm {
        let elements = &self.open[first..];
        // SAFETY: all of them were made in this environment.
        let list = unsafe {
            let count = elements.len() as u32;
            enif_make_list_from_array(self.env.as_c_arg(), elements.as_ptr(), count)
        };
        self.open.truncate(first);
        list
    }

    fn atom(&mut self, text: &'m [u8]) -> Option<ErlNifTerm> {
        if let Some((_, known)) = self.atoms.iter().find(|(known, _)| *known == text) {
            return Some(*known);
        }
        if !text.is_ascii() {
            return None;
        }
        let atom = Atom::existing_from_bytes(self.env, text).ok()?.as_c_arg();
        if self.atoms.len() < MAX_ATOMS {
            self.atoms.push((text, atom));
        }
        Some(atom)
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, behind) = rest.split_first_chunk()?;
    *rest = behind;
    Some(*taken)
}
