//! Whose a frame of the VM is: what of the order between frames has to be kept.
//!
//! Erlang keeps the order of signals of a pair of processes, of whatever kind they are. One receiver may be
//! addressed by identifier, by name and by alias, and a DOWN may come from a name; what a frame says of
//! its receiver is therefore no key. The sending process is: a [`FlowKey::Flow`] is everything that one process
//! sends to one node. What has no sender, changes the state that frames of all senders share (the VM's
//! cache of atoms), or cannot be read, is a [`FlowKey::Fence`]: after all that was before it, before all
//! that comes later. What only adds to the cache is a [`FlowKey::Lead`]: what comes later may refer to it,
//! and nothing before it minds. What the receiver has already, it is not sent again (`atoms`).
//!
//! [`FrameReader`] finds the key in the frame as the VM made it: the distribution header and the control
//! message of the Erlang distribution protocol (`erl_dist_protocol` and `erl_ext_dist` of ERTS), of which it
//! reads what stands before the sender. It builds no terms, believes no length, and has no errors: a
//! frame that it does not know is a fence.

mod atoms;
mod control;
mod cursor;
mod header;
mod reader;

pub mod fragment;

pub use reader::{FrameReader, MAX_OPEN};

/// What a frame must keep its place among.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FlowKey {
    /// The frames of one process: ID (upper half) and serial (lower half) of its identifier. Node and creation
    /// are those of the sending node in all frames of a channel and are left out.
    Flow(u64),
    /// The frames of one process before it, and all frames of the channel after it.
    Lead(u64),
    /// All frames of the channel.
    Fence,
}

/// What [`FrameReader::read`] finds out about a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reading {
    /// Where its place is.
    pub key: FlowKey,
    /// A whole message to a process, name or alias that changes no cache: the only frames that may be lost
    /// or late without harm to the connection. Only true of a flow's.
    pub droppable: bool,
}

impl Reading {
    const FENCE: Reading = Reading { key: FlowKey::Fence, droppable: false };
}
