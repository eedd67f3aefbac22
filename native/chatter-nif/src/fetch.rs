//! Messages of other nodes on their way to `chatter_broadcast`: many of one type that follow each other
//! are one binary, and become terms together.

use std::time::{Duration, Instant};

use chatter_core::broadcast::Arrival;
use chatter_core::ids::NodeId;
use chatter_core::wire::bcast::next_message;
use chatter_net::broadcast::Again;
use chatter_net::node::Node;
use rustler::{Atom, Binary, Encoder, Env, Error, NewBinary, NifResult, Term};

use crate::atoms;
use crate::etf;
use crate::host::bin;
use crate::node::current;
use crate::terms::Terms;

/// Bytes, and messages or binaries with many of them, that one call of `broadcast_fetch` gives: well below
/// a millisecond.
const FETCH_BYTES: usize = 256 * 1024;
const FETCH_COUNT: usize = 256;

/// Longer messages are for `broadcast_fetch_large`, on a dirty scheduler.
const LARGE: usize = 64 * 1024;

/// How long one call of `broadcast_decode` goes on, looked at after so many messages, the longest message
/// that it takes, and how many of them.
const DECODE_TIME: Duration = Duration::from_micros(200);
const DECODE_STEP: usize = 8;
const DECODE_LEN: usize = 1024;
const DECODE_COUNT: usize = 1024;

/// Messages of one origin and type that follow each other.
struct Section<'m> {
    origin: NodeId,
    kind: &'m str,
    parts: Vec<&'m [u8]>,
    count: u64,
}

/// `broadcast_fetch() -> {[One | Many], more | large | idle}` with `One :: {Origin, Type, Body, none |
/// {Ticket, Seq}}` and `Many :: {Origin, Type, Run, Count}`, where `Run` is as many messages as they stand
/// in packets. After `idle` the owner gets `chatter_broadcasts` when there are some;
/// after `soon` it asks again by itself.
#[rustler::nif]
fn broadcast_fetch(env: Env) -> Term {
    let Some(node) = current() else { return nothing(env) };
    if node.next_broadcast_len() > LARGE {
        return (Vec::<Term>::new(), atoms::large()).encode(env);
    }
    // Of several small ones before a large one, all are taken with it: at most one is large.
    fetch(env, &node, LARGE)
}

/// The same when the next one is large.
#[rustler::nif(schedule = "DirtyCpu")]
fn broadcast_fetch_large(env: Env) -> Term {
    current().map_or_else(|| nothing(env), |node| fetch(env, &node, FETCH_BYTES))
}

fn nothing(env: Env) -> Term {
    (Vec::<Term>::new(), atoms::idle()).encode(env)
}

fn fetch<'a>(env: Env<'a>, node: &Node, bytes: usize) -> Term<'a> {
    let (taken, again) = node.take_broadcasts(bytes, FETCH_COUNT);
    let mut out =
        Out { env, node, messages: Vec::with_capacity(taken.len()), section: None, last: None };
    for arrival in &taken {
        match arrival {
            Arrival::One(one) => {
                out.end_section();
                let ticket = match one.ticket {
                    Some(ticket) => (ticket, one.seq).encode(env),
                    None => atoms::none().encode(env),
                };
                let body: Term = NewBinary::from_slice(env, &one.body).into();
                out.push(one.origin, &one.kind, body, ticket);
            }
            Arrival::Run(run) => {
                let mut rest = &run.messages[..];
                while let Some((kind, part, count)) = same(&mut rest) {
                    out.add(run.origin, kind, part, count);
                }
            }
        }
    }
    out.end_section();
    let again = match again {
        Again::AtOnce => atoms::more(),
        Again::Soon => atoms::soon(),
        Again::WhenTold => atoms::idle(),
    };
    (out.messages, again).encode(env)
}

/// Splits off the messages that have the type of the first one.
fn same<'m>(rest: &mut &'m [u8]) -> Option<(&'m str, &'m [u8], u64)> {
    let all = *rest;
    // They were read before, so no error can come of it.
    let kind = next_message(rest).ok()??.kind;
    let mut count = 1;
    let mut ahead = *rest;
    while next_message(&mut ahead).ok().flatten().is_some_and(|next| next.kind == kind) {
        *rest = ahead;
        count += 1;
    }
    Some((kind, &all[..all.len() - rest.len()], count))
}

struct Out<'a, 'm> {
    env: Env<'a>,
    node: &'m Node,
    messages: Vec<Term<'a>>,
    section: Option<Section<'m>>,
    /// Mostly many follow each other that are of one origin and type: they share the terms.
    last: Option<(NodeId, Term<'a>, &'m str, Term<'a>)>,
}

impl<'a, 'm> Out<'a, 'm> {
    fn add(&mut self, origin: NodeId, kind: &'m str, part: &'m [u8], count: u64) {
        match &mut self.section {
            Some(section) if section.origin == origin && section.kind == kind => {
                section.parts.push(part);
                section.count += count;
            }
            _ => {
                self.end_section();
                self.section = Some(Section { origin, kind, parts: vec![part], count });
            }
        }
    }

    fn end_section(&mut self) {
        let Some(section) = self.section.take() else { return };
        let len = section.parts.iter().map(|part| part.len()).sum();
        let mut run = NewBinary::new(self.env, len);
        let mut rest = run.as_mut_slice();
        for part in &section.parts {
            let (here, behind) = rest.split_at_mut(part.len());
            here.copy_from_slice(part);
            rest = behind;
        }
        let count = section.count.encode(self.env);
        self.push(section.origin, section.kind, run.into(), count);
    }

    fn push(&mut self, origin: NodeId, kind: &'m str, body: Term<'a>, more: Term<'a>) {
        let from = match self.last {
            Some((known, from, ..)) if known == origin => from,
            _ => self.name_of(origin),
        };
        let text = match self.last {
            Some((_, _, known, text)) if known == kind => text,
            _ => bin(self.env, kind),
        };
        self.last = Some((origin, from, kind, text));
        self.messages.push((from, text, body, more).encode(self.env));
    }

    fn name_of(&self, origin: NodeId) -> Term<'a> {
        if origin == self.node.me.id {
            return bin(self.env, &self.node.me.name);
        }
        match self.node.table().route(origin).filter(|route| !route.name.is_empty()) {
            Some(route) => bin(self.env, &route.name),
            None => bin(self.env, &origin.to_string()),
        }
    }
}

/// `broadcast_decode(Type, Run, At) -> {Messages, Bad, Next}`: the messages of a run from a place on, in
/// their order and as far as this call takes them; how many of them are none of that type; and where it
/// goes on. If `Next` is `At`, the message there is not for this call: it is long, has NetIDs, or is no
/// plain tuple.
#[rustler::nif]
fn broadcast_decode<'a>(
    env: Env<'a>,
    kind: Atom,
    run: Binary<'a>,
    at: usize,
) -> NifResult<Term<'a>> {
    let mut rest = run.as_slice().get(at..).ok_or(Error::BadArg)?;
    let (mut messages, mut bad) = (Vec::with_capacity(256), 0_u64);
    let mut terms = Terms::new(env);
    let began = Instant::now();
    for n in 1..=DECODE_COUNT {
        let mut ahead = rest;
        let Ok(Some(message)) = next_message(&mut ahead) else { break };
        let Some(plain) = plain(message.body) else { break };
        let is_kind = |term: &Term| {
            etf::elements(term).and_then(|all| all.first().copied()) == Some(kind.as_c_arg())
        };
        let term = terms.read(&plain[1..]).or_else(|| Some(env.binary_to_term(plain)?.0));
        match term.filter(is_kind) {
            Some(term) => messages.push(term),
            None => bad += 1,
        }
        rest = ahead;
        if n % DECODE_STEP == 0 && began.elapsed() > DECODE_TIME {
            break;
        }
    }
    Ok((messages, bad, run.len() - rest.len()).encode(env))
}

/// The encoded tuple of a message that is short, and has no NetIDs.
fn plain(body: &[u8]) -> Option<&[u8]> {
    match body {
        [0, term @ ..] if body.len() <= DECODE_LEN => {
            term.starts_with(&[etf::VERSION, etf::SMALL_TUPLE]).then_some(term)
        }
        _ => None,
    }
}
