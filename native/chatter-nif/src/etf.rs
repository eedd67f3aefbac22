//! Small terms as Erlang's external term format, written into a buffer of ours: asking the VM for a binary
//! costs more than all the rest of sending one.
//!
//! What is rare in small messages is left to the VM: pids, references, ports, functions, bit strings,
//! integers beyond 64 bits, improper lists, atoms beyond ASCII.

use rustler::sys::{ErlNifCharEncoding, ErlNifTerm, enif_get_atom, enif_get_tuple};
use rustler::types::map::MapIterator;
use rustler::{Binary, Term, TermType};

/// The version that every encoded term begins with.
pub(crate) const VERSION: u8 = 131;

pub(crate) const NEW_FLOAT: u8 = 70;
pub(crate) const SMALL_INTEGER: u8 = 97;
pub(crate) const INTEGER: u8 = 98;
pub(crate) const SMALL_TUPLE: u8 = 104;
pub(crate) const NIL: u8 = 106;
pub(crate) const LIST: u8 = 108;
pub(crate) const BINARY: u8 = 109;
const SMALL_BIG: u8 = 110;
const MAP: u8 = 116;
pub(crate) const SMALL_ATOM_UTF8: u8 = 119;

/// How deep a term may be.
const MAX_DEPTH: usize = 16;

/// Room for the longest atom in Latin-1, and a zero.
const ATOM_ROOM: usize = 256;

/// The elements of a tuple, as they are in the memory of the VM.
pub(crate) fn elements<'a>(term: &Term<'a>) -> Option<&'a [ErlNifTerm]> {
    let (mut arity, mut first) = (0, std::ptr::null());
    // SAFETY: the term is of this environment; on success `first` points to `arity` terms, which live as
    // long as it.
    unsafe {
        let env = term.get_env().as_c_arg();
        if enif_get_tuple(env, term.as_c_arg(), &mut arity, &mut first) != 1 {
            return None;
        }
        if arity == 0 {
            return Some(&[]);
        }
        Some(std::slice::from_raw_parts(first, arity as usize))
    }
}

/// A term of the same environment as another.
pub(crate) fn beside<'a>(term: &Term<'a>, raw: ErlNifTerm) -> Term<'a> {
    // SAFETY: it comes out of that term, so it lives in the same environment.
    unsafe { Term::new(term.get_env(), raw) }
}

/// The text of an atom, if it is ASCII.
pub(crate) fn put_text(atom: &Term, out: &mut Vec<u8>) -> Option<()> {
    let mut text = [0_u8; ATOM_ROOM];
    // SAFETY: the buffer has the length that is told.
    let len = unsafe {
        enif_get_atom(
            atom.get_env().as_c_arg(),
            atom.as_c_arg(),
            text.as_mut_ptr().cast(),
            ATOM_ROOM as u32,
            ErlNifCharEncoding::ERL_NIF_LATIN1,
        )
    };
    // The zero is counted.
    let text = text.get(..usize::try_from(len).ok()?.checked_sub(1)?)?;
    text.is_ascii().then(|| out.extend_from_slice(text))
}

/// Appends the header of an atom with this text.
pub(crate) fn put_atom(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    out.extend_from_slice(&[SMALL_ATOM_UTF8, u8::try_from(text.len()).ok()?]);
    out.extend_from_slice(text);
    Some(())
}

/// Appends a term, without the version in front. `None`, and `out` is of no use any more, if it has
/// something that is left to the VM, or would make `out` longer than `limit`.
pub(crate) fn put(term: &Term, out: &mut Vec<u8>, limit: usize) -> Option<()> {
    put_at(term, out, limit, 0)
}

fn put_at(term: &Term, out: &mut Vec<u8>, limit: usize, depth: usize) -> Option<()> {
    if depth > MAX_DEPTH {
        return None;
    }
    match term.get_type() {
        TermType::Atom => {
            let at = out.len();
            out.extend_from_slice(&[SMALL_ATOM_UTF8, 0]);
            put_text(term, out)?;
            out[at + 1] = u8::try_from(out.len() - at - 2).ok()?;
        }
        TermType::Integer => put_integer(term.decode().ok()?, out),
        TermType::Float => {
            out.push(NEW_FLOAT);
            out.extend_from_slice(&term.decode::<f64>().ok()?.to_be_bytes());
        }
        TermType::Binary => {
            let binary = Binary::from_term(*term).ok()?;
            if out.len() + binary.len() > limit {
                return None;
            }
            out.push(BINARY);
            out.extend_from_slice(&(binary.len() as u32).to_be_bytes());
            out.extend_from_slice(binary.as_slice());
        }
        TermType::Tuple => {
            let elements = elements(term)?;
            out.extend_from_slice(&[SMALL_TUPLE, u8::try_from(elements.len()).ok()?]);
            for element in elements {
                put_at(&beside(term, *element), out, limit, depth + 1)?;
            }
        }
        TermType::List => put_list(term, out, limit, depth)?,
        TermType::Map => {
            out.push(MAP);
            out.extend_from_slice(&(term.map_size().ok()? as u32).to_be_bytes());
            for (key, value) in term.decode::<MapIterator>().ok()? {
                put_at(&key, out, limit, depth + 1)?;
                put_at(&value, out, limit, depth + 1)?;
            }
        }
        _ => return None,
    }
    (out.len() <= limit).then_some(())
}

fn put_integer(n: i64, out: &mut Vec<u8>) {
    if let Ok(small) = u8::try_from(n) {
        out.extend_from_slice(&[SMALL_INTEGER, small]);
    } else if let Ok(n) = i32::try_from(n) {
        out.push(INTEGER);
        out.extend_from_slice(&n.to_be_bytes());
    } else {
        let bytes = n.unsigned_abs().to_le_bytes();
        let len = 8 - n.unsigned_abs().leading_zeros() as usize / 8;
        out.extend_from_slice(&[SMALL_BIG, len as u8, u8::from(n < 0)]);
        out.extend_from_slice(&bytes[..len]);
    }
}

fn put_list(term: &Term, out: &mut Vec<u8>, limit: usize, depth: usize) -> Option<()> {
    if !term.is_empty_list() {
        let at = out.len();
        out.extend_from_slice(&[LIST, 0, 0, 0, 0]);
        let (mut rest, mut count) = (*term, 0_u32);
        while let Ok((head, tail)) = rest.list_get_cell() {
            put_at(&head, out, limit, depth + 1)?;
            count += 1;
            rest = tail;
        }
        if !rest.is_empty_list() {
            return None;
        }
        out[at + 1..at + 5].copy_from_slice(&count.to_be_bytes());
    }
    out.push(NIL);
    Some(())
}
