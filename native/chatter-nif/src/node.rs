//! The node of this VM: one at a time, started and stopped with the distribution.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use chatter_core::control::DisconnectTarget;
use chatter_core::dialer::{NeighbourId, NeighbourSpec};
use chatter_core::ids::NodeId;
use chatter_net::node::Node;
use rustler::{Atom, Binary, Encoder, Env, LocalPid, NifResult, NifTaggedEnum, Term};
use tracing::Level;

use crate::atoms;
use crate::config::{StartConfig, socket_address};
use crate::host::{self, BeamHost, bin};
use crate::log;

struct Running {
    node: Arc<Node>,
    host: Arc<BeamHost>,
}

static RUNNING: ArcSwapOption<Running> = ArcSwapOption::const_empty();

/// The node, if one is started.
pub(crate) fn current() -> Option<Arc<Node>> {
    RUNNING.load().as_ref().map(|running| running.node.clone())
}

/// What `f` makes of the node, if one is started: for short calls that come often.
pub(crate) fn with_current<T>(f: impl FnOnce(&Node) -> T) -> Option<T> {
    RUNNING.load().as_ref().map(|running| f(&running.node))
}

/// `node_start(Config) -> {ok, #{port => Port | none, id => Id}} | {error, Line | already_started}`.
/// Events go to the caller.
#[rustler::nif(schedule = "DirtyCpu")]
fn node_start<'a>(env: Env<'a>, config: StartConfig<'a>) -> Term<'a> {
    if RUNNING.load().is_some() {
        return env.error_tuple(atoms::already_started());
    }
    let config = match config.into_net() {
        Ok(config) => config,
        Err(error) => return env.error_tuple(bin(env, &error.to_string())),
    };
    let host = Arc::new(BeamHost::default());
    host.set_owner(env.pid());
    log::set_owner(env.pid());
    let node = match Node::start(config, host.clone()) {
        Ok(node) => node,
        Err(error) => return env.error_tuple(bin(env, &error.to_string())),
    };
    host.node.set(Arc::downgrade(&node)).ok();
    let port = node.port.map_or_else(|| atoms::none().encode(env), |port| port.encode(env));
    let id = bin(env, &node.me.id.to_string());
    RUNNING.store(Some(Arc::new(Running { node, host })));
    (atoms::ok(), [(atoms::port(), port), (atoms::id(), id)].as_slice()).encode(env)
}

/// `node_stop(DrainMs) -> ok`: gives queued data so long to leave, then ends everything.
#[rustler::nif(schedule = "DirtyIo")]
fn node_stop(drain_ms: u64) -> Atom {
    if let Some(running) = RUNNING.swap(None) {
        running.node.stop(Duration::from_millis(drain_ms));
    }
    atoms::ok()
}

/// `set_owner() -> boolean()`: events and log lines go to the caller from now on; whether a node runs.
#[rustler::nif]
fn set_owner(env: Env) -> bool {
    log::set_owner(env.pid());
    let running = RUNNING.load();
    if let Some(running) = running.as_ref() {
        running.host.set_owner(env.pid());
    }
    running.is_some()
}

/// `pulse() -> ok`: the VM runs.
#[rustler::nif]
fn pulse() -> Atom {
    if let Some(running) = RUNNING.load().as_ref() {
        running.node.pulse();
    }
    atoms::ok()
}

/// `set_name(Name) -> ok`: the name that a node without one has by now; empty for none again.
#[rustler::nif]
fn set_name(name: String) -> Atom {
    if let Some(running) = RUNNING.load().as_ref() {
        running.node.set_name(name);
    }
    atoms::ok()
}

/// `drain(Drain) -> ok | {error, not_started | busy}`: asks the others not to relay through this node.
#[rustler::nif]
fn drain(env: Env, on: bool) -> Term {
    match current() {
        None => env.error_tuple(atoms::not_started()),
        Some(node) if node.drain_transit(on) => atoms::ok().encode(env),
        Some(_) => env.error_tuple(atoms::busy()),
    }
}

/// `transit() -> {IdleMs, Bytes}`: since when nothing was passed on for others, and what waits to be.
#[rustler::nif]
fn transit() -> (u64, usize) {
    current().map_or((0, 0), |node| {
        let (idle, bytes) = node.transit();
        (idle.as_millis() as u64, bytes)
    })
}

/// `set_acceptor(Pid) -> ok`: who gets the channels that others open.
#[rustler::nif]
fn set_acceptor(pid: LocalPid) -> Atom {
    if let Some(running) = RUNNING.load().as_ref() {
        running.host.set_acceptor(pid);
    }
    atoms::ok()
}

/// The process that takes broadcasts.
pub(crate) fn set_broadcaster(pid: LocalPid) {
    if let Some(running) = RUNNING.load().as_ref() {
        running.host.set_broadcaster(pid);
    }
}

/// `set_message_acceptor() -> ok`: the caller gets the channels for messages that others open.
#[rustler::nif]
fn set_message_acceptor(env: Env) -> Atom {
    host::set_message_acceptor(env.pid());
    atoms::ok()
}

/// `set_log_level(error | warning | notice | info | debug | none) -> ok`.
#[rustler::nif]
fn set_log_level(level: Atom) -> Atom {
    log::set_level(if level == atoms::debug() {
        Level::DEBUG
    } else if level == atoms::info() || level == atoms::notice() {
        Level::INFO
    } else if level == atoms::warning() {
        Level::WARN
    } else {
        Level::ERROR
    });
    atoms::ok()
}

/// A neighbour as Erlang writes it.
#[derive(NifTaggedEnum)]
enum Spec {
    Name(String),
    Address(String, u16),
}

impl From<Spec> for NeighbourSpec {
    fn from(spec: Spec) -> Self {
        match spec {
            Spec::Name(name) => Self::Name(name),
            Spec::Address(host, port) => Self::Address(host, port),
        }
    }
}

/// `connect(Spec, Metric, Persistent) -> ok | {error, not_started | busy}`; metric 0 is by round trip.
#[rustler::nif]
fn connect<'a>(env: Env<'a>, spec: Spec, metric: u32, persistent: bool) -> Term<'a> {
    command(env, move |control, now| {
        let (spec, metric) = (NeighbourSpec::from(spec), (metric > 0).then_some(metric));
        if control.connect(now, spec.clone(), metric, persistent).is_none() {
            tracing::error!(neighbour = ?spec, "not dialled: 1,024 neighbours are wanted already");
        }
    })
}

/// `disconnect(Spec) -> ok | {error, not_started | busy}`: forgets the neighbour, closes its link.
#[rustler::nif]
fn disconnect<'a>(env: Env<'a>, spec: Spec) -> Term<'a> {
    command(env, move |control, now| {
        let spec = NeighbourSpec::from(spec);
        if let NeighbourSpec::Name(name) = &spec {
            control.disconnect(now, &DisconnectTarget::Node(NodeId::for_name(name)));
        }
        control.disconnect(now, &DisconnectTarget::Spec(spec));
    })
}

fn command<'a>(
    env: Env<'a>,
    f: impl FnOnce(&mut chatter_core::control::Control, Instant) + Send + 'static,
) -> Term<'a> {
    match current() {
        None => env.error_tuple(atoms::not_started()),
        Some(node) if node.with_control(f) => atoms::ok().encode(env),
        Some(_) => env.error_tuple(atoms::busy()),
    }
}

/// `dial(Neighbour, Seq, [{Ip, Port}]) -> ok`: the addresses of a neighbour that was to be resolved;
/// none means that it could not be.
#[rustler::nif]
fn dial(neighbour: u32, seq: u64, addresses: Vec<(Binary, u16)>) -> NifResult<Atom> {
    let addresses: Vec<SocketAddr> =
        addresses.iter().filter_map(|(address, port)| socket_address(address, *port)).collect();
    if let Some(node) = current() {
        if addresses.is_empty() {
            node.dial_failed(NeighbourId(neighbour));
        } else {
            node.dial(NeighbourId(neighbour), seq, addresses);
        }
    }
    Ok(atoms::ok())
}
