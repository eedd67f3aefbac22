//! The BEAM as the embedder of a node: events become messages.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use chatter_core::control::ControlEvent;
use chatter_core::dialer::{NeighbourId, NeighbourSpec};
use chatter_core::wire::data::ChannelKind;
use chatter_net::channel::Channel;
use chatter_net::host::{ChannelHost, ChannelSink, Host};
use chatter_net::node::Node;
use parking_lot::Mutex;
use rustler::{Encoder, Env, LocalPid, OwnedEnv, ResourceArc, Term};

use crate::atoms;
use crate::channel::ChannelRef;
use crate::sink::BeamSink;

/// The process that gets channels for messages which others open. It comes before any node, and stays.
static MESSAGE_ACCEPTOR: Mutex<Option<LocalPid>> = Mutex::new(None);

/// Names [`MESSAGE_ACCEPTOR`].
pub(crate) fn set_message_acceptor(pid: LocalPid) {
    *MESSAGE_ACCEPTOR.lock() = Some(pid);
}

/// The process that gets the events of a node.
type Owner = Arc<Mutex<Option<LocalPid>>>;

/// See the [module](self).
#[derive(Default)]
pub(crate) struct BeamHost {
    owner: Owner,
    acceptor: Mutex<Option<LocalPid>>,
    broadcaster: Mutex<Option<LocalPid>>,
    pub(crate) node: OnceLock<Weak<Node>>,
}

impl BeamHost {
    /// The process that gets events.
    pub(crate) fn set_owner(&self, pid: LocalPid) {
        *self.owner.lock() = Some(pid);
    }

    /// The process that gets channels which others open.
    pub(crate) fn set_acceptor(&self, pid: LocalPid) {
        *self.acceptor.lock() = Some(pid);
    }

    /// The process that takes broadcasts.
    pub(crate) fn set_broadcaster(&self, pid: LocalPid) {
        *self.broadcaster.lock() = Some(pid);
    }

    /// The name of the other end of any channel to that node.
    fn channel_peer_name(&self, id: chatter_core::ids::NodeId) -> Option<String> {
        let node = self.node.get()?.upgrade()?;
        let channel = node.channels.to(id).into_iter().next()?;
        Some(channel.peer_name.clone())
    }

    fn encode<'a>(&self, env: Env<'a>, event: &ControlEvent) -> Option<Term<'a>> {
        let term = match event {
            ControlEvent::NodeUp { name, .. } => (atoms::node_up(), bin(env, name)).encode(env),
            ControlEvent::NodeDown { name, .. } => (atoms::node_down(), bin(env, name)).encode(env),
            ControlEvent::NodeLost { id } => {
                let name = self.channel_peer_name(*id)?;
                (atoms::node_lost(), bin(env, &name)).encode(env)
            }
            ControlEvent::NodeFound { id } => {
                let table = self.node.get()?.upgrade()?.table();
                (atoms::node_found(), bin(env, &table.route(*id)?.name)).encode(env)
            }
            ControlEvent::NodeNamed { former, name, .. } => {
                (atoms::node_named(), bin(env, former), bin(env, name)).encode(env)
            }
            ControlEvent::NameClash { name, .. } => {
                (atoms::name_clash(), bin(env, name)).encode(env)
            }
            ControlEvent::Dial { neighbour, spec, dial_seq } => {
                (atoms::dial(), neighbour.0, encode_spec(env, spec), *dial_seq).encode(env)
            }
            _ => return None,
        };
        Some(term)
    }
}

/// Keys of flows as Erlang knows their senders: the ID and the serial of a local process.
pub(crate) fn senders(keys: Vec<u64>) -> Vec<(u32, u32)> {
    keys.into_iter().map(|key| ((key >> 32) as u32, key as u32)).collect()
}

/// A string of the network as a binary: never an atom.
pub(crate) fn bin<'a>(env: Env<'a>, text: &str) -> Term<'a> {
    rustler::NewBinary::from_slice(env, text.as_bytes()).into()
}

pub(crate) fn encode_spec<'a>(env: Env<'a>, spec: &NeighbourSpec) -> Term<'a> {
    match spec {
        NeighbourSpec::Name(name) => (atoms::name(), bin(env, name)).encode(env),
        NeighbourSpec::Address(host, port) => (atoms::address(), bin(env, host), *port).encode(env),
    }
}

impl Host for BeamHost {
    fn event(&self, event: &ControlEvent) {
        let Some(owner) = *self.owner.lock() else { return };
        let mut env = OwnedEnv::new();
        let Some(event) = env.run(|e| self.encode(e, event).map(|term| env.save(term))) else {
            return;
        };
        // The owner may be between two lives; its successor asks for the state.
        let _ =
            env.send_and_clear(&owner, |env| (atoms::chatter_event(), event.load(env)).encode(env));
    }

    fn dial_failed(&self, neighbour: NeighbourId) {
        let Some(owner) = *self.owner.lock() else { return };
        let _ = OwnedEnv::new().send_and_clear(&owner, |env| {
            (atoms::chatter_event(), (atoms::dial_failed(), neighbour.0)).encode(env)
        });
    }

    fn accept(&self, channel: Arc<Channel>) -> bool {
        let acceptor = match channel.kind {
            ChannelKind::Distribution => &self.acceptor,
            ChannelKind::Messages => &MESSAGE_ACCEPTOR,
        };
        let Some(acceptor) = *acceptor.lock() else { return false };
        let (index, name) = (channel.index.0, channel.peer_name.clone());
        let channel = ResourceArc::new(ChannelRef::new(channel));
        OwnedEnv::new()
            .send_and_clear(&acceptor, |env| {
                (atoms::chatter_accept(), channel, index, bin(env, &name)).encode(env)
            })
            .is_ok()
    }

    fn broadcasts(&self) {
        let Some(pid) = *self.broadcaster.lock() else { return };
        let _ =
            OwnedEnv::new().send_and_clear(&pid, |env| (atoms::chatter_broadcasts(),).encode(env));
    }

    fn channel(&self) -> (Arc<dyn ChannelHost>, Box<dyn ChannelSink>) {
        let host =
            Arc::new(BeamChannel { node_owner: self.owner.clone(), ..BeamChannel::default() });
        (host.clone(), Box::new(BeamSink::new(host)))
    }
}

/// The user's side of one channel: which processes it belongs to.
#[derive(Default)]
pub(crate) struct BeamChannel {
    index: AtomicU32,
    owner: Mutex<Option<LocalPid>>,
    controller: Mutex<Option<LocalPid>>,
    governor: Mutex<Option<LocalPid>>,
    node_owner: Owner,
    peer_name: OnceLock<String>,
}

impl BeamChannel {
    /// Known once the channel is made: what the messages to its owner carry, and who is at the other end.
    pub(crate) fn set_names(&self, index: u32, peer_name: &str) {
        self.index.store(index, Ordering::Relaxed);
        let _ = self.peer_name.set(peer_name.to_owned());
    }

    /// Tells of frames of the other end that were lost for good, by sender.
    pub(crate) fn lost(&self, losses: BTreeMap<u64, u64>) {
        let Some(owner) = *self.node_owner.lock() else { return };
        let name = self.peer_name.get().map_or("", String::as_str);
        for (key, count) in losses {
            let sender = senders(vec![key])[0];
            let _ = OwnedEnv::new().send_and_clear(&owner, |env| {
                let event = (atoms::lost(), bin(env, name), sender, count);
                (atoms::chatter_event(), event).encode(env)
            });
        }
    }

    pub(crate) fn index(&self) -> u32 {
        self.index.load(Ordering::Relaxed)
    }

    pub(crate) fn set_owner(&self, pid: LocalPid) {
        *self.owner.lock() = Some(pid);
    }

    pub(crate) fn set_governor(&self, pid: LocalPid) {
        *self.governor.lock() = Some(pid);
    }

    pub(crate) fn set_controller(&self, pid: LocalPid) {
        *self.controller.lock() = Some(pid);
    }
}

impl ChannelHost for BeamChannel {
    fn opened(&self) {
        let Some(owner) = *self.owner.lock() else { return };
        let index = self.index();
        let _ = OwnedEnv::new()
            .send_and_clear(&owner, |env| (atoms::chatter(), index, atoms::opened()).encode(env));
    }

    fn writable(&self) {
        let Some(controller) = *self.controller.lock() else { return };
        let _ = OwnedEnv::new()
            .send_and_clear(&controller, |env| atoms::chatter_writable().encode(env));
    }

    fn resume(&self, flows: Vec<u64>) {
        let Some(governor) = *self.governor.lock() else { return };
        let _ = OwnedEnv::new()
            .send_and_clear(&governor, |env| (atoms::chatter_resume(), senders(flows)).encode(env));
    }

    fn as_any(&self) -> &(dyn Any + Send + Sync) {
        self
    }
}
