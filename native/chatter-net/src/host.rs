//! What this crate wants from whoever embeds it.

use std::sync::Arc;

use chatter_core::channel::receive::Sink;
use chatter_core::control::ControlEvent;
use chatter_core::dialer::NeighbourId;
use chatter_core::wire::data::ResetReason;

use crate::channel::Channel;

/// The embedder of a node. Called from the runtime's threads only, never with a lock held that a
/// call into the node could want.
pub trait Host: Send + Sync + 'static {
    /// Something happened that the embedder may act upon: links, nodes, dials to resolve.
    fn event(&self, event: &ControlEvent);
    /// None of the addresses of a neighbour became a link.
    fn dial_failed(&self, neighbour: NeighbourId);
    /// Another node opened a channel to this one. `false` refuses it.
    fn accept(&self, channel: Arc<Channel>) -> bool;
    /// There are broadcasts to be taken with [`crate::node::Node::take_broadcasts`].
    fn broadcasts(&self) {}
    /// Makes the user's side of a channel.
    fn channel(&self) -> (Arc<dyn ChannelHost>, Box<dyn ChannelSink>);
}

/// The user of one channel: what does not need to be in order with its data.
/// Called from the runtime's threads only.
pub trait ChannelHost: Send + Sync + 'static {
    /// The other node granted the channel.
    fn opened(&self);
    /// The channel takes frames again after it was full.
    fn writable(&self);
    /// Flows that were over their quota have got below half of it: their senders may go on.
    fn resume(&self, flows: Vec<u64>);
    /// For the embedder to find its own type again.
    fn as_any(&self) -> &(dyn std::any::Any + Send + Sync);
}

/// The user of one channel: its data, in order. Called under the lock of the receiving half.
pub trait ChannelSink: Sink + Send + 'static {
    /// Hands over what was put since the last time. Called from the runtime's threads only.
    fn flush(&mut self);
    /// The channel has ended; nothing comes after. Called from the runtime's threads only.
    fn closed(&mut self, reason: ResetReason);
    /// For the embedder to find its own type again.
    fn as_any_mut(&mut self) -> &mut dyn std::any::Any;
}
