//! Limits of broadcasts.

use std::time::Duration;

/// Limits of [`Broadcast`](super::Broadcast).
#[derive(Clone, Copy, Debug)]
pub struct BroadcastConfig {
    /// Bytes of own messages that not all targets have yet; beyond it [`Broadcast::send`](super::Broadcast::send) refuses.
    pub window: usize,
    /// Bytes of messages kept for others; beyond it new ones are sent back, to come again later.
    pub memory: usize,
    /// Bytes of the largest message.
    pub max_message: usize,
    /// How long a target may be without a route until it is given up. A silent link must be given up half
    /// a second sooner.
    pub patience: Duration,
    /// How long a missing message holds up those behind it.
    pub gap_timeout: Duration,
    /// Origins, and targets, that are remembered; the one that was silent longest is forgotten.
    pub max_nodes: usize,
    /// Bytes a second that may be sent by multicast; `None`: there is no multicast.
    pub multicast_rate: Option<u64>,
}

impl Default for BroadcastConfig {
    fn default() -> Self {
        Self {
            window: 4 << 20,
            memory: 64 << 20,
            max_message: 16 << 20,
            patience: Duration::from_millis(2_500),
            gap_timeout: Duration::from_secs(10),
            max_nodes: 8_192,
            multicast_rate: None,
        }
    }
}
