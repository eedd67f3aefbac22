//! The control message: which process it is from.

use super::cursor::Cursor;

// Tags of the external term format (`erl_ext_dist`) that may stand in front of the sender.
const SMALL_INTEGER: u8 = 97;
const INTEGER: u8 = 98;
const SMALL_BIG: u8 = 110;
const SMALL_TUPLE: u8 = 104;
const ATOM_CACHE_REF: u8 = 82;
const ATOM: u8 = 100;
const SMALL_ATOM: u8 = 115;
const ATOM_UTF8: u8 = 118;
const SMALL_ATOM_UTF8: u8 = 119;
const PID: u8 = 103;
const NEW_PID: u8 = 88;
const NEW_REFERENCE: u8 = 114;
const NEWER_REFERENCE: u8 = 90;

/// What a control message says of its frame.
pub(super) struct Control {
    /// ID and serial of the sending process.
    pub(super) from: u64,
    /// A message, not a signal that something depends on.
    pub(super) is_message: bool,
}

/// What is known of an operation.
#[derive(Clone, Copy)]
struct Shape {
    /// Elements of the tuple, with the operation itself.
    arity: u8,
    /// Another arity that occurs.
    or_arity: u8,
    /// Terms between the operation and the sender.
    before_from: u8,
    is_message: bool,
}

/// Operations by their number (`erl_dist_protocol`). Those without an entry name no sender: SEND (2),
/// SEND_TT (12) and GROUP_LEADER (7); or are not known.
static SHAPES: [Option<Shape>; 38] = {
    const fn signal(arity: u8, before_from: u8) -> Option<Shape> {
        Some(Shape { arity, or_arity: arity, before_from, is_message: false })
    }
    const fn message(arity: u8) -> Option<Shape> {
        Some(Shape { arity, or_arity: arity, before_from: 0, is_message: true })
    }
    let mut shapes = [None; 38];
    shapes[1] = signal(3, 0); // LINK
    shapes[3] = signal(4, 0); // EXIT
    shapes[4] = signal(3, 0); // UNLINK
    shapes[6] = message(4); // REG_SEND
    shapes[8] = signal(4, 0); // EXIT2
    shapes[13] = signal(5, 0); // EXIT_TT
    shapes[16] = message(5); // REG_SEND_TT
    shapes[18] = signal(5, 0); // EXIT2_TT
    shapes[19] = signal(4, 0); // MONITOR_P
    shapes[20] = signal(4, 0); // DEMONITOR_P
    shapes[21] = signal(5, 0); // MONITOR_P_EXIT
    shapes[22] = message(3); // SEND_SENDER
    shapes[23] = message(4); // SEND_SENDER_TT
    shapes[24] = signal(3, 0); // PAYLOAD_EXIT
    shapes[25] = signal(4, 0); // PAYLOAD_EXIT_TT
    shapes[26] = signal(3, 0); // PAYLOAD_EXIT2
    shapes[27] = signal(4, 0); // PAYLOAD_EXIT2_TT
    shapes[28] = signal(4, 0); // PAYLOAD_MONITOR_P_EXIT
    shapes[29] = signal(6, 1); // SPAWN_REQUEST: a reference first
    shapes[30] = signal(7, 1); // SPAWN_REQUEST_TT
    shapes[31] = signal(5, 3); // SPAWN_REPLY: from the new process, the result
    shapes[32] = signal(6, 3); // SPAWN_REPLY_TT
    shapes[33] = message(3); // ALIAS_SEND
    shapes[34] = message(4); // ALIAS_SEND_TT
    shapes[35] = signal(4, 1); // UNLINK_ID: its number first
    shapes[36] = signal(4, 1); // UNLINK_ID_ACK
    // ALTACT_SIG_SEND: flags first, and a token or not. An exit signal as well as a message.
    shapes[37] = Some(Shape { arity: 4, or_arity: 5, before_from: 1, is_message: false });
    shapes
};

impl Control {
    /// Reads as far as the sender. `None`: there is none, or this is not understood.
    #[inline]
    pub(super) fn read(c: &mut Cursor<'_>) -> Option<Control> {
        let [tuple, arity, tag, operation] = c.array()?;
        if tuple != SMALL_TUPLE || tag != SMALL_INTEGER {
            return None;
        }
        let shape = (*SHAPES.get(usize::from(operation))?)?;
        if arity != shape.arity && arity != shape.or_arity {
            return None;
        }
        for _ in 0..shape.before_from {
            skip_term(c)?;
        }
        let tag = c.u8()?;
        Some(Control { from: pid(c, tag)?, is_message: shape.is_message })
    }
}

/// ID and serial of an identifier whose tag has been read. `None` also for the name that a DOWN may have.
#[inline]
fn pid(c: &mut Cursor<'_>, tag: u8) -> Option<u64> {
    let creation_len = match tag {
        NEW_PID => 4,
        PID => 1,
        _ => return None,
    };
    let node = c.u8()?;
    skip_atom(c, node)?;
    let id_and_serial = c.u64()?;
    c.skip(creation_len)?;
    Some(id_and_serial)
}

/// Leaves out an atom whose tag has been read.
#[inline]
fn skip_atom(c: &mut Cursor<'_>, tag: u8) -> Option<()> {
    let len = match tag {
        ATOM_CACHE_REF => 1,
        SMALL_ATOM_UTF8 | SMALL_ATOM => c.u8()?.into(),
        ATOM_UTF8 | ATOM => c.u16()?.into(),
        _ => return None,
    };
    c.skip(len)
}

/// Leaves out a number, a reference, an identifier or an atom. There are no other terms in front of a sender.
fn skip_term(c: &mut Cursor<'_>) -> Option<()> {
    match c.u8()? {
        SMALL_INTEGER => c.skip(1),
        INTEGER => c.skip(4),
        SMALL_BIG => {
            let len: usize = c.u8()?.into();
            c.skip(1 + len)
        }
        tag @ (NEWER_REFERENCE | NEW_REFERENCE) => {
            let words: usize = c.u16()?.into();
            let node = c.u8()?;
            skip_atom(c, node)?;
            c.skip(if tag == NEWER_REFERENCE { 4 } else { 1 })?;
            c.skip(4 * words)
        }
        tag @ (NEW_PID | PID) => pid(c, tag).map(|_| ()),
        tag => skip_atom(c, tag),
    }
}
