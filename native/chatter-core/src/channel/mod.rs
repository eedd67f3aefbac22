//! The data plane between two nodes. Each end of a channel is a pair of halves: [`life::Outgoing`]
//! (opening and closing, and a [`send::Sender`] while it is open) and [`incoming::Incoming`] (a
//! [`receive::Receiver`], and the end as its user sees it). The channels of a node are in a
//! [`table::Table`].
//!
//! The sender cuts frames into numbered packets and keeps each until it is acknowledged, because the
//! source is the only place that survives every relay. The receiver hands frames over in order, each
//! once, and grants credit as the VM takes them. Order is kept within a flow: what the sender queues
//! for one does not hold up another, nor does a packet that is missing ([`FlowKey`](crate::flow::FlowKey)).
//!
//! Both halves are driven by whichever thread has the bytes, under one short lock each; what one half
//! has for the other is a result that the caller hands on.

use std::time::{Duration, Instant};

use crate::ids::{ChannelIndex, Incarnation, NodeId};

mod build;
mod flight;
mod flows;
mod fragments;
mod inflows;
mod outbox;
mod way;
mod window;

pub mod budget;
pub mod farewell;
pub mod incoming;
pub mod life;
pub mod options;
pub mod receive;
pub mod send;
pub mod table;

/// Target size of a DATA packet's content, and the size of a chunk of a large frame, in bytes. A
/// packet is the unit of scheduling: smaller ones hold others up for less time, larger ones cost less.
pub const CHUNK_LEN: usize = 16 * 1024;

/// Small messages share packets of at most so many bytes: two frames of 4 KiB and their headers. On thin
/// links, what one flow sends at a time is what all others wait for.
pub const BATCH_LEN: usize = 8 * 1024 + 512;

/// How often channels that want service get it; also the longest delay of an acknowledgement.
pub const SERVICE_INTERVAL: Duration = Duration::from_millis(20);

/// Credit that one item uses up: its body and its header, so that many empty frames are not free.
pub fn item_cost(body_len: usize) -> u64 {
    (body_len + crate::wire::data::ITEM_HEADER_LEN) as u64
}

/// What all channels of a node have in common.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node.
    pub me: NodeId,
    /// Its life.
    pub incarnation: Incarnation,
    /// Its full name, at most 255 bytes; may be empty.
    pub name: String,
    /// Credit that each channel grants, in bytes.
    pub window: u64,
    /// Largest frame accepted, in bytes; a larger one ends the channel.
    pub max_frame: usize,
    /// An OPEN or RESET that is not answered is sent again after this long.
    pub setup_retry: Duration,
    /// What a flow may have queued before its sender is to be held back, in bytes.
    pub flow_quota: usize,
    /// A packet that is missing for so long while there is a route, though it was asked for, is lost:
    /// [`OnLoss`] says what then.
    pub gap_timeout: Duration,
    /// What is done about packets that are lost for good.
    pub on_loss: OnLoss,
}

/// What is done about packets that are lost for good.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnLoss {
    /// The channel ends.
    #[default]
    End,
    /// If the user of the other end can do without what was in them, that user is told and the channel
    /// goes on; else it ends. Both ends must want it so.
    Notify,
}

/// Time in which something is awaited, as this process has lived through it: a process that was held up
/// must not blame others for the time in which it did not look.
#[derive(Clone, Copy, Debug, Default)]
struct Patience {
    waited: Duration,
    looked_at: Option<Instant>,
}

impl Patience {
    /// It has come, or is not awaited.
    fn reset(&mut self) {
        *self = Self::default();
    }

    /// It is awaited still; to be told every [`SERVICE_INTERVAL`]. How long by now.
    fn wait(&mut self, now: Instant) -> Duration {
        let step = self.looked_at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.waited += step.min(5 * SERVICE_INTERVAL);
        self.looked_at = Some(now);
        self.waited
    }
}

/// Packets that are lost for good.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Loss {
    /// How many, as far as is known.
    pub packets: u64,
}

/// What one end of a channel is called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Names {
    /// This end's index: packets to it carry this. Not `UNKNOWN`.
    pub index: ChannelIndex,
    /// Random; tells the channel from all earlier ones.
    pub epoch: u64,
    /// The node at the other end.
    pub peer: NodeId,
}
