//! Figures and views, as maps. What the control plane owns is asked for and arrives as a message
//! `{Ref, Result}`, so that no scheduler waits for its task.

use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use chatter_core::control::{Control, LinkState};
use chatter_core::wire::data::ChannelKind;
use chatter_net::channel::{Channel, State};
use chatter_net::link::Link;
use chatter_net::node::Node;
use chatter_net::transport::Transport;
use rustler::{Atom, Encoder, Env, NewBinary, OwnedEnv, Reference, Term};

use crate::atoms;
use crate::found::multicast_figures;
use crate::host::{bin, encode_spec, senders};
use crate::node::current;

/// Flows shown of a channel.
const TALKERS: usize = 5;

type Pairs<'a> = Vec<(rustler::Atom, Term<'a>)>;

pub(crate) fn map<'a>(env: Env<'a>, pairs: Pairs<'a>) -> Term<'a> {
    pairs.into_iter().fold(rustler::Term::map_new(env), |map, (key, value)| {
        // Only a map that is none could fail here.
        map.map_put(key, value).unwrap_or(map)
    })
}

/// `nodes() -> [Name]`: every named node with a route.
#[rustler::nif]
fn nodes(env: Env) -> Vec<Term> {
    let Some(node) = current() else { return Vec::new() };
    let table = node.table();
    table
        .routes()
        .filter(|(id, route)| *id != node.me.id && !route.name.is_empty())
        .map(|(_, route)| bin(env, &route.name))
        .collect()
}

/// `neighbours() -> [Name]`: the nodes at the other ends of live links.
#[rustler::nif]
fn neighbours(env: Env) -> Vec<Term> {
    let Some(node) = current() else { return Vec::new() };
    let table = node.table();
    // A node that got its name later has it in its LSP.
    let name = |link: &Link| match table.route(link.peer.id) {
        Some(route) if !route.name.is_empty() => bin(env, &route.name),
        _ => bin(env, &link.peer.name),
    };
    let links = node.links();
    let live = links.iter().filter(|link| !link.is_closed());
    live.map(|link| name(link)).filter(|name| *name != bin(env, "")).collect()
}

/// `is_reachable(Name) -> boolean()`.
#[rustler::nif]
fn is_reachable(name: &str) -> bool {
    current().is_some_and(|node| node.id_of(name).is_some())
}

/// `address(Name) -> {Ip, Port} | none`: the other end of the link that leads to a node.
#[rustler::nif]
fn address<'a>(env: Env<'a>, name: &str) -> Term<'a> {
    let remote = current().and_then(|node| node.id_of(name).and_then(|id| node.remote_of(id)));
    let Some(remote) = remote else { return atoms::none().encode(env) };
    let ip = match remote.ip() {
        IpAddr::V4(ip) => NewBinary::from_slice(env, &ip.octets()),
        IpAddr::V6(ip) => NewBinary::from_slice(env, &ip.octets()),
    };
    (Term::from(ip), remote.port()).encode(env)
}

/// `route(Name) -> [Name]`: the hops, the named node last; empty if there is no route.
#[rustler::nif]
fn route<'a>(env: Env<'a>, name: &str) -> Vec<Term<'a>> {
    let Some(node) = current() else { return Vec::new() };
    let table = node.table();
    let path = table.id_of(name).and_then(|id| table.path(id)).unwrap_or_default();
    path.iter()
        .map(|id| table.route(*id).map_or_else(|| bin(env, ""), |route| bin(env, &route.name)))
        .collect()
}

/// `links(Ref) -> boolean()`: whether `{Ref, [LinkMap]}` will come.
#[rustler::nif]
fn links<'a>(env: Env<'a>, reference: Reference<'a>) -> bool {
    ask(env, reference, |env, node, control, now| {
        let links: Vec<Term> = control
            .links()
            .iter()
            .filter_map(|info| {
                let live = node.links().into_iter().find(|link| link.id == info.link)?;
                let mut pairs = link_figures(env, &live);
                let state = if info.state == LinkState::Up { atoms::up() } else { atoms::sync() };
                pairs.extend([
                    (atoms::state(), state.encode(env)),
                    (atoms::dialled(), info.we_dialled.encode(env)),
                    (atoms::metric(), info.metric.encode(env)),
                    (atoms::since_ms(), millis(now, info.since).encode(env)),
                    (atoms::rtt_us(), optional(env, info.srtt_us)),
                ]);
                Some(map(env, pairs))
            })
            .collect();
        links.encode(env)
    })
}

/// `topology(Ref) -> boolean()`: whether `{Ref, {[{Id, Name}], [{Id, Id, Metric}]}}` will come.
#[rustler::nif]
fn topology<'a>(env: Env<'a>, reference: Reference<'a>) -> bool {
    ask(env, reference, |env, _node, control, _now| {
        let topology = control.topology();
        let nodes: Vec<Term> = topology
            .nodes
            .iter()
            .map(|(id, node)| (bin(env, &id.to_string()), bin(env, &node.name)).encode(env))
            .collect();
        let edges: Vec<Term> = topology
            .edges
            .iter()
            .map(|(a, b, metric)| {
                (bin(env, &a.to_string()), bin(env, &b.to_string()), *metric).encode(env)
            })
            .collect();
        (nodes, edges).encode(env)
    })
}

/// `info(Ref) -> boolean()`: whether `{Ref, Map}` will come.
#[rustler::nif]
fn info<'a>(env: Env<'a>, reference: Reference<'a>) -> bool {
    ask(env, reference, |env, node, control, _now| {
        let neighbours: Vec<Term> = control
            .neighbours()
            .iter()
            .map(|n| (encode_spec(env, &n.spec), n.persistent, n.failures).encode(env))
            .collect();
        let stats = &node.stats;
        let count =
            |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed).encode(env);
        let port = node.port.map_or_else(|| atoms::none().encode(env), |port| port.encode(env));
        map(
            env,
            vec![
                (atoms::name(), bin(env, &node.me.name)),
                (atoms::id(), bin(env, &node.me.id.to_string())),
                (atoms::incarnation(), node.life().0.encode(env)),
                (atoms::port(), port),
                (atoms::nodes(), node.table().len().encode(env)),
                (atoms::lsdb_size(), control.lsdb_len().encode(env)),
                (atoms::links(), node.links().len().encode(env)),
                (atoms::channels(), node.channels.all().len().encode(env)),
                (atoms::neighbours(), neighbours.encode(env)),
                (atoms::draining(), control.is_overloaded().encode(env)),
                (atoms::transit_packets(), count(&stats.transit_packets)),
                (atoms::transit_idle_ms(), (node.transit().0.as_millis() as u64).encode(env)),
                (atoms::relay_drops(), count(&stats.relay_drops)),
                (atoms::rescued(), count(&stats.rescued)),
                (atoms::unreachable_notices(), count(&stats.unreachable_notices)),
                (atoms::refused_connections(), count(&stats.refused)),
                (atoms::evicted_handshakes(), count(&stats.evicted)),
                (atoms::multicast(), multicast_figures(env, node)),
            ],
        )
    })
}

/// `channels(Name) -> [ChannelMap]`: the channels to a node.
#[rustler::nif]
fn channels<'a>(env: Env<'a>, name: &str) -> Vec<Term<'a>> {
    let Some(node) = current() else { return Vec::new() };
    node.channels
        .all()
        .iter()
        .filter(|channel| channel.peer_name == name)
        .map(|channel| channel_figures(env, channel))
        .collect()
}

fn transport_atom(transport: Transport) -> Atom {
    match transport {
        Transport::Tcp => atoms::tcp(),
        Transport::Unix => atoms::unix(),
    }
}

fn link_figures<'a>(env: Env<'a>, link: &Link) -> Pairs<'a> {
    let queues = link.queue_figures();
    let micros = |delay: Duration| (delay.as_micros() as u64).encode(env);
    let s = &link.stats;
    let count =
        |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed).encode(env);
    vec![
        (atoms::peer(), bin(env, &link.peer.name)),
        (atoms::peer_id(), bin(env, &link.peer.id.to_string())),
        (atoms::remote(), bin(env, &link.remote.to_string())),
        (atoms::transport(), transport_atom(link.transport).encode(env)),
        (atoms::bytes_in(), count(&s.bytes_in)),
        (atoms::bytes_out(), count(&s.bytes_out)),
        (atoms::packets_in(), count(&s.packets_in)),
        (atoms::packets_out(), count(&s.packets_out)),
        (atoms::relayed(), count(&s.relayed)),
        (atoms::blocked(), count(&s.blocked)),
        (atoms::queued_own(), queues.own_bytes.encode(env)),
        (atoms::own_delay_us(), micros(queues.own_delay)),
        (atoms::queued_transit(), queues.transit_bytes.encode(env)),
        (atoms::transit_delay_us(), micros(queues.transit_delay)),
        (atoms::dropped(), queues.dropped.encode(env)),
        (atoms::marked(), queues.marked.encode(env)),
        (atoms::late(), queues.late.encode(env)),
    ]
}

fn channel_figures<'a>(env: Env<'a>, channel: &Channel) -> Term<'a> {
    let f = channel.figures();
    let state = match f.state {
        State::Opening => atoms::opening(),
        State::Open => atoms::open(),
        State::Closing => atoms::closing(),
        State::Closed => atoms::closed(),
    };
    let micros = |delay: Duration| (delay.as_micros() as u64).encode(env);
    let levels = [atoms::high(), atoms::urgent(), atoms::normal(), atoms::low()];
    let packets = levels.into_iter().zip(f.sender.flows.packets);
    let packets = packets.map(|(level, count)| (level, count.encode(env))).collect();
    let talkers: Vec<Term> = channel
        .talkers(TALKERS)
        .into_iter()
        .map(|flow| {
            let sender = senders(vec![flow.key])[0];
            let figures = vec![
                (atoms::sender(), sender.encode(env)),
                (atoms::frames(), flow.items.encode(env)),
                (atoms::bytes(), flow.bytes.encode(env)),
                (atoms::queued(), flow.queued.encode(env)),
            ];
            map(env, figures)
        })
        .collect();
    let kind = match channel.kind {
        ChannelKind::Distribution => atoms::distribution(),
        ChannelKind::Messages => atoms::messages(),
    };
    let srtt_us = f.sender.srtt.map_or(0, |srtt| srtt.as_micros() as u64);
    let open = || atoms::credit().encode(env);
    let window = f.sender.window.map_or_else(open, |bytes| bytes.encode(env));
    map(
        env,
        vec![
            (atoms::state(), state.encode(env)),
            (atoms::kind(), kind.encode(env)),
            (atoms::opened_here(), channel.opened_here.encode(env)),
            (atoms::frames_out(), f.frames_out.encode(env)),
            (atoms::bytes_out(), f.bytes_out.encode(env)),
            (atoms::grants(), f.grants.encode(env)),
            (atoms::waiting_bytes(), f.sender.waiting_bytes.encode(env)),
            (atoms::unacked_bytes(), f.sender.unacked_bytes.encode(env)),
            (atoms::retransmits(), f.sender.retransmits.encode(env)),
            (atoms::duplicates(), f.duplicates.encode(env)),
            (atoms::srtt_us(), srtt_us.encode(env)),
            (atoms::window(), window),
            (atoms::window_cuts(), f.sender.window_cuts.encode(env)),
            (atoms::marks_out(), f.sender.marks.encode(env)),
            (atoms::marks_in(), f.marks_in.encode(env)),
            (atoms::queue_delay_us(), micros(f.sender.queue_delay)),
            (atoms::max_queue_delay_us(), micros(f.sender.max_queue_delay)),
            (atoms::flows(), f.sender.flows.flows.encode(env)),
            (atoms::flows_retired(), f.sender.flows.retired.encode(env)),
            (atoms::flows_in(), f.flows_in.encode(env)),
            (atoms::fences(), f.sender.flows.fences.encode(env)),
            (atoms::chunks(), f.sender.flows.chunks.encode(env)),
            (atoms::held(), f.sender.flows.held.encode(env)),
            (atoms::late(), f.sender.flows.late.encode(env)),
            (atoms::given_up(), f.sender.flows.given_up.encode(env)),
            (atoms::lost(), f.sender.flows.lost.encode(env)),
            (atoms::lost_in(), f.lost_in.encode(env)),
            (atoms::early(), f.early.encode(env)),
            (atoms::packets(), map(env, packets)),
            (atoms::talkers(), talkers.encode(env)),
        ],
    )
}

pub(crate) fn millis(now: Instant, since: Instant) -> u64 {
    now.saturating_duration_since(since).as_millis() as u64
}

fn optional<'a>(env: Env<'a>, value: Option<u32>) -> Term<'a> {
    value.map_or_else(|| atoms::undefined().encode(env), |value| value.encode(env))
}

/// Has the control plane's task make an answer and send it to the caller.
pub(crate) fn ask<'a>(
    env: Env<'a>,
    reference: Reference<'a>,
    answer: impl for<'b> FnOnce(Env<'b>, &Node, &mut Control, Instant) -> Term<'b> + Send + 'static,
) -> bool {
    let Some(node) = current() else { return false };
    let mut out = OwnedEnv::new();
    let reference = out.save(Term::from(reference));
    let caller = env.pid();
    let asked = node.clone();
    asked.with_control(move |control, now| {
        // A caller that has died does not want to know any more.
        let _ = out.send_and_clear(&caller, |env| {
            let answer = answer(env, &node, control, now);
            (reference.load(env), answer).encode(env)
        });
    })
}
