//! Messages to many nodes: the calls of `chatter_broadcast` and of those who send. `small` sends those
//! that are small, and `fetch` takes what has come.

use bytes::Bytes;
use chatter_core::broadcast::payload::{Packed, pack};
use chatter_core::broadcast::{SendError, Targets};
use chatter_core::ids::NodeId;
use chatter_net::node::Node;
use rustler::{Atom, Binary, Encoder, Env, LocalPid, NifResult, Reference, Term};

use crate::atoms;
use crate::host::bin;
use crate::info::ask;
use crate::node::{current, set_broadcaster};
use crate::pinned;

/// `broadcast_send(all | [Name], Type, Body) -> ok | full | {error, too_large | not_started}`, for bodies
/// up to 64 KiB.
#[rustler::nif]
fn broadcast_send<'a>(
    env: Env<'a>,
    targets: Term<'a>,
    kind: &str,
    body: Binary<'a>,
) -> NifResult<Term<'a>> {
    send(env, targets, kind, &body)
}

/// The same for larger ones.
#[rustler::nif(schedule = "DirtyCpu")]
fn broadcast_send_large<'a>(
    env: Env<'a>,
    targets: Term<'a>,
    kind: &str,
    body: Binary<'a>,
) -> NifResult<Term<'a>> {
    send(env, targets, kind, &body)
}

fn send<'a>(env: Env<'a>, targets: Term<'a>, kind: &str, body: &Binary<'a>) -> NifResult<Term<'a>> {
    let Some(node) = current() else { return Ok(env.error_tuple(atoms::not_started())) };
    let targets = if targets.is_atom() {
        Targets::All
    } else {
        let names: Vec<&str> = targets.decode()?;
        Targets::Nodes(names.iter().map(|name| id_of(&node, name)).collect())
    };
    Ok(match node.broadcast(&targets, kind, &pack(pinned::bytes(body))) {
        Ok(()) => atoms::ok().encode(env),
        Err(SendError::Full) => atoms::full().encode(env),
        Err(SendError::TooLarge) => env.error_tuple(atoms::too_large()),
    })
}

/// The node that a name means, whether it can be reached or not.
pub(crate) fn id_of(node: &Node, name: &str) -> NodeId {
    if name == node.me.name {
        return node.me.id;
    }
    node.id_of(name).unwrap_or_else(|| NodeId::for_name(name))
}

/// `broadcast_dispatched(Ticket, Seq, unchanged | Body) -> ok`: what travels on in place of a message.
#[rustler::nif]
fn broadcast_dispatched(ticket: u64, seq: u64, body: Term) -> NifResult<Atom> {
    let changed: Option<Packed> = if body.is_atom() {
        None
    } else {
        let body: Binary = body.decode()?;
        Some(pack(Bytes::copy_from_slice(body.as_slice())))
    };
    if let Some(node) = current() {
        node.broadcast_dispatched(ticket, seq, changed);
    }
    Ok(atoms::ok())
}

/// `broadcast_handled([Type]) -> ok`: messages of these types go on only after `broadcast_dispatched`.
#[rustler::nif]
fn broadcast_handled(kinds: Vec<String>) -> Atom {
    if let Some(node) = current() {
        node.set_broadcast_handled(kinds);
    }
    atoms::ok()
}

/// `broadcast_owner(Pid) -> ok`: who fetches.
#[rustler::nif]
fn broadcast_owner(pid: LocalPid) -> Atom {
    set_broadcaster(pid);
    atoms::ok()
}

/// `broadcast_figures() -> [{Key, Count}]`.
#[rustler::nif]
fn broadcast_figures() -> Vec<(Atom, u64)> {
    let Some(node) = current() else { return Vec::new() };
    let (stats, (own, kept)) = node.broadcast_figures();
    let (hearers, _) = node.broadcast_reach();
    vec![
        (atoms::sent(), stats.sent),
        (atoms::tree_packets(), stats.tree_packets),
        (atoms::packets_in(), stats.packets_in),
        (atoms::delivered(), stats.delivered),
        (atoms::duplicates(), stats.duplicates),
        (atoms::replanned(), stats.replanned),
        (atoms::busy(), stats.busy),
        (atoms::unreachable(), stats.unreachable),
        (atoms::lost(), stats.lost),
        (atoms::gaps(), stats.gaps),
        (atoms::damaged(), stats.damaged),
        (atoms::proofs(), hearers as u64),
        (atoms::casts(), stats.casts),
        (atoms::cast_targets(), stats.cast_targets),
        (atoms::cast_acked(), stats.cast_acked),
        (atoms::left_to_links(), stats.left_to_links),
        (atoms::casts_in(), stats.casts_in),
        (atoms::cast_messages(), stats.cast_messages),
        (atoms::hellos_out(), stats.hellos_out),
        (atoms::hellos_in(), stats.hellos_in),
        (atoms::naks_out(), stats.naks_out),
        (atoms::naks_in(), stats.naks_in),
        (atoms::naks_suppressed(), stats.naks_suppressed),
        (atoms::repairs(), stats.repairs),
        (atoms::proofs_lost(), stats.proofs_lost),
        (atoms::repairs_of_others(), stats.repairs_of_others),
        (atoms::rate_cuts(), stats.rate_cuts),
        (atoms::over_rate(), stats.over_rate),
        (atoms::unsent(), stats.unsent),
        (atoms::casts_dropped(), stats.casts_dropped),
        (atoms::over_datagram(), stats.over_datagram),
        (atoms::own_bytes(), own as u64),
        (atoms::kept_bytes(), kept as u64),
    ]
}

/// `addresses(Ref) -> boolean()`: whether `{Ref, [{Name, [{Ip, Port}]}]}` will come: where nodes say they
/// can be dialled.
#[rustler::nif]
fn addresses<'a>(env: Env<'a>, reference: Reference<'a>) -> bool {
    ask(env, reference, |env, _node, control, _now| {
        let topology = control.topology();
        let nodes: Vec<Term> = topology
            .nodes
            .values()
            .map(|node| {
                let at: Vec<Term> = node
                    .addresses
                    .iter()
                    .map(|at| (bin_bytes(env, at.ip()), at.port()).encode(env))
                    .collect();
                (bin(env, &node.name), at).encode(env)
            })
            .collect();
        nodes.encode(env)
    })
}

fn bin_bytes(env: Env, ip: std::net::IpAddr) -> Term {
    match ip {
        std::net::IpAddr::V4(ip) => rustler::NewBinary::from_slice(env, &ip.octets()).into(),
        std::net::IpAddr::V6(ip) => rustler::NewBinary::from_slice(env, &ip.octets()).into(),
    }
}
