//! What a frame is handed in with.

use std::time::Duration;

use crate::flow::FlowKey;

/// Which frames go first. A lower class is sure of an eighth of a link.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Class {
    /// Before all others.
    High,
    /// As the scheduler finds fair.
    #[default]
    Normal,
    /// After all others.
    Low,
}

/// What a frame is handed in with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SendOptions {
    /// What it must stay in order with.
    pub flow: FlowKey,
    /// Whether it goes first.
    pub class: Class,
    /// Nobody wants it any more after so long; at most [`MAX_TIME_LEFT_MS`] ms are told to relays. Where
    /// it is found to be late it is dropped. For frames of at most [`CHUNK_LEN`] bytes.
    ///
    /// [`MAX_TIME_LEFT_MS`]: crate::wire::routed::MAX_TIME_LEFT_MS
    /// [`CHUNK_LEN`]: super::CHUNK_LEN
    pub deadline: Option<Duration>,
    /// Sent again when it is lost. Without it, for frames of at most [`CHUNK_LEN`] bytes.
    ///
    /// [`CHUNK_LEN`]: super::CHUNK_LEN
    pub reliable: bool,
    /// Handed over after all earlier frames of its flow; otherwise when it comes (but never before an
    /// earlier fence), for frames of at most [`CHUNK_LEN`] bytes.
    ///
    /// [`CHUNK_LEN`]: super::CHUNK_LEN
    pub ordered: bool,
    /// Its receiver can do without it, should it be lost for good: see [`OnLoss`](super::OnLoss). For frames
    /// of at most [`CHUNK_LEN`] bytes.
    ///
    /// [`CHUNK_LEN`]: super::CHUNK_LEN
    pub droppable: bool,
}

impl SendOptions {
    /// Whether its frame is a packet of its own, which may be given up.
    pub(super) fn is_plain(&self) -> bool {
        self.deadline.is_none() && self.reliable && self.ordered
    }
}

impl Default for SendOptions {
    /// All such frames are one flow.
    fn default() -> Self {
        Self {
            flow: FlowKey::Flow(0),
            class: Class::default(),
            deadline: None,
            reliable: true,
            ordered: true,
            droppable: false,
        }
    }
}
