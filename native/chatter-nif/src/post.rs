//! Channels that carry messages of processes without a connection.

use std::time::Duration;

use bytes::Bytes;
use chatter_core::channel::CHUNK_LEN;
use chatter_core::channel::options::{Class, SendOptions};
use chatter_core::flow::FlowKey;
use rustler::{
    Atom, Binary, Env, ListIterator, NifResult, NifTuple, NifUnitEnum, ResourceArc, Term,
};

use crate::channel::{ChannelRef, charge, status_atom};
use crate::pinned;

/// What Erlang calls the classes.
#[derive(NifUnitEnum)]
enum Priority {
    High,
    Normal,
    Low,
}

/// How a frame is to be carried: `{Flow, Priority, Reliable, Ordered, LeftMs}`, 0 for no deadline.
#[derive(NifTuple)]
pub(crate) struct PostOptions {
    flow: u64,
    priority: Priority,
    reliable: bool,
    ordered: bool,
    left_ms: u64,
}

impl From<&PostOptions> for SendOptions {
    fn from(options: &PostOptions) -> Self {
        Self {
            flow: FlowKey::Flow(options.flow),
            class: match options.priority {
                Priority::High => Class::High,
                Priority::Normal => Class::Normal,
                Priority::Low => Class::Low,
            },
            deadline: (options.left_ms > 0).then(|| Duration::from_millis(options.left_ms)),
            reliable: options.reliable,
            ordered: options.ordered,
            droppable: true,
        }
    }
}

/// `post(Channel, Options, Frame) -> ok | full | closed`: hands in one frame, a list of binaries, if there
/// is room for its flow.
#[rustler::nif]
fn post<'a>(
    env: Env<'a>,
    channel: ResourceArc<ChannelRef>,
    options: PostOptions,
    frame: Term<'a>,
) -> NifResult<Atom> {
    let pieces: Vec<Binary> =
        frame.decode::<ListIterator>()?.map(Binary::from_term).collect::<NifResult<_>>()?;
    let total: usize = pieces.iter().map(|piece| piece.len()).sum();
    let status = channel.channel.post(options.flow, |sender| {
        let options = SendOptions::from(&options);
        if total > CHUNK_LEN {
            let pieces: Vec<Bytes> = pieces.iter().map(pinned::bytes).collect();
            sender.push_large_frame(&options, &pieces, total);
        } else {
            let pieces: Vec<&[u8]> = pieces.iter().map(Binary::as_slice).collect();
            sender.push_frame(&options, &pieces, total);
        }
        total as u64
    });
    charge(env, total, 1);
    Ok(status_atom(status))
}

/// `room(Channel, Flow) -> ok | full | closed`: whether `post/3` would take a frame of that flow; if not,
/// the controller gets `chatter_writable` when it would.
#[rustler::nif]
fn room(channel: ResourceArc<ChannelRef>, flow: u64) -> Atom {
    status_atom(channel.channel.has_room(flow))
}

/// `close_idle(Channel) -> boolean()`: closes it if all that was handed in has been acknowledged.
#[rustler::nif]
fn close_idle(channel: ResourceArc<ChannelRef>) -> bool {
    channel.channel.close_if_idle()
}
