//! Sending small messages to many nodes, each in one short call: the names of the targets and of the type
//! are looked up when they change, and the message is encoded behind those that wait for the same targets.

use std::cell::RefCell;
use std::sync::{Arc, Weak};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use chatter_core::broadcast::payload::{PACK_MIN, Packed, pack};
use chatter_core::broadcast::{SendError, Targets};
use chatter_core::routes::ForwardingTable;
use chatter_net::node::Node;
use rustler::sys::ErlNifTerm;
use rustler::{Atom, Term};

use crate::atoms;
use crate::broadcast::id_of;
use crate::etf;
use crate::node::with_current;

/// Bytes of the longest message that is sent this way.
const SMALL: usize = 4 * 1024;

/// Types whose messages a handler encodes.
static ENCODED: ArcSwapOption<Vec<ErlNifTerm>> = ArcSwapOption::const_empty();

thread_local! {
    static LAST: RefCell<Last> = RefCell::default();
}

/// What the message before was sent to, and its type. Atoms are never made anew, so their terms are
/// enough to know them by.
#[derive(Default)]
struct Last {
    names: Vec<ErlNifTerm>,
    /// The routes by which the names were looked up.
    table: Weak<ForwardingTable>,
    targets: Option<Targets>,
    kind: Option<ErlNifTerm>,
    text: String,
    body: Vec<u8>,
}

/// `broadcast_small(all | [Node], Message) -> ok | full | unsuited`: `unsuited` is what has to be sent by
/// `broadcast_send/3`, or is none at all.
#[rustler::nif]
fn broadcast_small(targets: Term, message: Term) -> Atom {
    let sent = |node: &Node| LAST.with_borrow_mut(|last| last.send(node, &targets, &message));
    with_current(sent).flatten().unwrap_or_else(atoms::unsuited)
}

/// `broadcast_encoded([Type]) -> ok`: messages of these types are not for `broadcast_small/2`.
#[rustler::nif]
fn broadcast_encoded(kinds: Vec<Atom>) -> Atom {
    let kinds: Vec<_> = kinds.into_iter().map(Atom::as_c_arg).collect();
    ENCODED.store(Some(Arc::new(kinds)));
    atoms::ok()
}

impl Last {
    fn send(&mut self, node: &Node, targets: &Term, message: &Term) -> Option<Atom> {
        let (kind, rest) = etf::elements(message)?.split_first()?;
        if rest.is_empty() {
            return None;
        }
        self.take_kind(message, *kind)?;
        self.body.clear();
        // No NetIDs.
        let arity = u8::try_from(rest.len() + 1).ok()?;
        self.body.extend_from_slice(&[0, etf::VERSION, etf::SMALL_TUPLE, arity]);
        etf::put_atom(self.text.as_bytes(), &mut self.body)?;
        for element in rest {
            etf::put(&etf::beside(message, *element), &mut self.body, SMALL)?;
        }
        if targets.is_atom() {
            return if atoms::all() == *targets { self.give(node, &Targets::All) } else { None };
        }
        self.take_targets(node, targets)?;
        let targets = self.targets.take()?;
        let result = self.give(node, &targets);
        self.targets = Some(targets);
        result
    }

    fn give(&self, node: &Node, targets: &Targets) -> Option<Atom> {
        let small = self.body.len() < PACK_MIN;
        if small && node.gather_broadcast(targets, &self.text, &self.body) {
            return Some(atoms::ok());
        }
        let body = Bytes::copy_from_slice(&self.body);
        let body = if small { Packed { body, lz4: false } } else { pack(body) };
        match node.broadcast(targets, &self.text, &body) {
            Ok(()) => Some(atoms::ok()),
            Err(SendError::Full) => Some(atoms::full()),
            Err(SendError::TooLarge) => None,
        }
    }

    fn take_kind(&mut self, message: &Term, kind: ErlNifTerm) -> Option<()> {
        if ENCODED.load().as_ref().is_some_and(|encoded| encoded.contains(&kind)) {
            return None;
        }
        if self.kind != Some(kind) {
            self.kind = None;
            let term = etf::beside(message, kind);
            let mut text = std::mem::take(&mut self.text).into_bytes();
            text.clear();
            if term.is_atom() {
                etf::put_text(&term, &mut text)?;
                self.text = String::from_utf8(text).ok()?;
                self.kind = Some(kind);
            }
        }
        self.kind.map(|_| ())
    }

    fn take_targets(&mut self, node: &Node, list: &Term) -> Option<()> {
        if node.has_table(&self.table) && self.is_list(list) {
            return Some(());
        }
        self.targets = None;
        self.names.clear();
        // Before the names are looked up: should there be a newer one meanwhile, they are once more.
        self.table = Arc::downgrade(&node.table());
        let (mut ids, mut text) = (Vec::new(), Vec::new());
        let mut rest = *list;
        while let Ok((name, tail)) = rest.list_get_cell() {
            text.clear();
            if !name.is_atom() {
                return None;
            }
            etf::put_text(&name, &mut text)?;
            ids.push(id_of(node, str::from_utf8(&text).ok()?));
            self.names.push(name.as_c_arg());
            rest = tail;
        }
        self.targets = rest.is_empty_list().then_some(Targets::Nodes(ids));
        self.targets.as_ref().map(|_| ())
    }

    /// Whether the list has the names known, in their order.
    fn is_list(&self, list: &Term) -> bool {
        let (mut rest, mut names) = (*list, self.names.iter());
        while let Ok((name, tail)) = rest.list_get_cell() {
            if names.next() != Some(&name.as_c_arg()) {
                return false;
            }
            rest = tail;
        }
        names.next().is_none() && rest.is_empty_list() && self.targets.is_some()
    }
}
