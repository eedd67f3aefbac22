//! Channels that other nodes ask for: granted, refused, or taken up when they have waited long enough.

use std::sync::Arc;

use chatter_core::channel::table::OpenVerdict;
use chatter_core::ids::{ChannelIndex, NodeId};
use chatter_core::relay;
use chatter_core::wire::data::{Open, ResetReason};
use chatter_core::wire::routed::RoutedHeader;

use crate::channel::Wanted;
use crate::link::INLINE_BUDGET;
use crate::node::Node;

impl Node {
    /// `source` asks for a channel.
    pub(crate) fn open_asked(self: &Arc<Self>, source: NodeId, open: &Open) {
        let life = self.table().route(source).map(|route| route.incarnation);
        match self.channels.judge_open(source, open, life) {
            OpenVerdict::Known(channel) => channel.confirm_open(self),
            OpenVerdict::Stale | OpenVerdict::Wait => {}
            OpenVerdict::New(former) => {
                for channel in former {
                    channel.peer_gone(self, ResetReason::Restarted);
                }
                self.grant(source, open);
            }
        }
    }

    /// Takes up what `source` has asked for and had to wait for.
    pub(crate) fn take_up_open(self: &Arc<Self>, source: NodeId) {
        if let Some(open) = self.channels.take_held(source) {
            self.open_asked(source, &open);
        }
    }

    fn grant(self: &Arc<Self>, source: NodeId, open: &Open) {
        match self.add_channel(source, &Wanted::There(open)) {
            Some(channel) if self.host.accept(channel.clone()) => channel.confirm_open(self),
            Some(channel) => channel.close(ResetReason::Refused),
            None => {
                let asked = RoutedHeader::to(self.me.id, source, ChannelIndex::UNKNOWN);
                let refusal = relay::refuse(self.me.id, &asked, open.index, ResetReason::Refused);
                if let Some(link) = self.next_hop(source, 0) {
                    link.queue_control(refusal);
                    link.flush(INLINE_BUDGET);
                }
            }
        }
    }
}
