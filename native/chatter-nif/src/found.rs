//! What multicast has found, and under which addresses nodes are known.

use std::net::SocketAddr;
use std::time::Instant;

use chatter_net::multicast::Multicast;
use chatter_net::node::Node;
use rustler::{Atom, Encoder, Env, NewBinary, Reference, Term};

use crate::atoms;
use crate::config::address_bytes;
use crate::host::bin;
use crate::info::{ask, map, millis};
use crate::node::current;

/// `found() -> [Map]`: the nodes found by multicast.
#[rustler::nif]
fn found(env: Env) -> Vec<Term> {
    let Some(node) = current() else { return Vec::new() };
    let Some(multicast) = &node.multicast else { return Vec::new() };
    let now = Instant::now();
    let one = |found: chatter_core::discovery::Found| {
        map(
            env,
            vec![
                (atoms::name(), bin(env, &found.name)),
                (atoms::id(), bin(env, &found.id.to_string())),
                (atoms::incarnation(), found.incarnation.0.encode(env)),
                (atoms::addresses(), addresses(env, &found.addresses).encode(env)),
                (atoms::heard_ms(), millis(now, found.heard).encode(env)),
                (atoms::hears_us_ms(), millis(now, found.hears_us).encode(env)),
            ],
        )
    };
    multicast.found().into_iter().map(one).collect()
}

/// `found_at(Name) -> [{Ip, Port}]`: where a node that was found can be dialled.
#[rustler::nif]
fn found_at<'a>(env: Env<'a>, name: &str) -> Vec<Term<'a>> {
    let Some(node) = current() else { return Vec::new() };
    let found = node.multicast.as_ref().map(|multicast| multicast.addresses(name));
    addresses(env, &found.unwrap_or_default())
}

/// `net_ids(Ref) -> boolean()`: whether `{Ref, {[{Ip, Port}], [{Name, [{Ip, Port}]}]}}` will come: the
/// addresses of this node, and those of all others that are reachable or found.
#[rustler::nif]
fn net_ids<'a>(env: Env<'a>, reference: Reference<'a>) -> bool {
    ask(env, reference, |env, node, control, _now| {
        let mut others: Vec<Term> = control
            .addresses()
            .map(|lsp| (bin(env, &lsp.name), addresses(env, &lsp.addresses)).encode(env))
            .collect();
        let found = node.multicast.as_ref().map(|multicast| multicast.found()).unwrap_or_default();
        let unrouted = found.iter().filter(|found| node.table().route(found.id).is_none());
        others
            .extend(unrouted.map(|found| {
                (bin(env, &found.name), addresses(env, &found.addresses)).encode(env)
            }));
        (addresses(env, &node.me.addresses), others).encode(env)
    })
}

fn addresses<'a>(env: Env<'a>, addresses: &[SocketAddr]) -> Vec<Term<'a>> {
    let bytes =
        |address: &SocketAddr| Term::from(NewBinary::from_slice(env, &address_bytes(address)));
    addresses.iter().map(|address| (bytes(address), address.port()).encode(env)).collect()
}

/// The figures of multicast; `undefined` without it.
pub(crate) fn multicast_figures<'a>(env: Env<'a>, node: &Node) -> Term<'a> {
    node.multicast
        .as_ref()
        .map_or_else(|| atoms::undefined().encode(env), |multicast| figures(env, node, multicast))
}

fn figures<'a>(env: Env<'a>, node: &Node, multicast: &Multicast) -> Term<'a> {
    let interfaces: Vec<Term> = multicast.interfaces().iter().map(|name| bin(env, name)).collect();
    let mut pairs = vec![
        (atoms::interfaces(), interfaces.encode(env)),
        (atoms::rate(), node.broadcast_reach().1.encode(env)),
        (atoms::nodes(), multicast.found().len().encode(env)),
    ];
    // The names are those of the fields of a struct: a fixed list as well.
    let counters = multicast.stats.all().into_iter();
    pairs.extend(counters.filter_map(|(name, count)| {
        Atom::from_str(env, name).ok().map(|name| (name, count.encode(env)))
    }));
    map(env, pairs)
}
