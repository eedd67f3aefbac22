//! What of the control plane can be set.

use std::time::Duration;

use crate::dialer::DialerConfig;
use crate::lsdb::LsdbLimits;

/// Times and limits of [`Control`](super::Control). The defaults suit a local network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ControlConfig {
    /// Milliseconds between HELLOs on a link, at most 65,535. Default 250. Less finds silent losses
    /// sooner and costs packets.
    pub hello_ms: u16,
    /// Milliseconds of silence after which a link is down, at least three times `hello_ms`. Default
    /// 1,000. The larger value of both ends is used.
    pub hold_ms: u32,
    /// The longest `hold_ms` that a peer may impose. Default 60,000; a longer one is cut to it.
    pub max_hold_ms: u32,
    /// A timer that fires this many milliseconds late shows that this process was held up: nobody is
    /// judged for the time lost. Default 50.
    pub late_ms: u32,
    /// Milliseconds that a node may have no route before it is down. Default 500.
    pub unreachable_ms: u32,
    /// Milliseconds from the first own LSP to the second, between the next eight, and between later ones
    /// while links keep changing. Default 10, 100, 1,000.
    pub originate_ms: [u32; 3],
    /// Milliseconds that news of a link which came up or changed waits for more of its kind. Default 50:
    /// when much starts at once, each LSP is flooded once or twice instead of once for each link. Nobody
    /// waits for it but new nodes; news of lost links does not wait, nor do the ends of a new link.
    pub gather_ms: u32,
    /// Milliseconds without a new own LSP after which the next one goes out at once again. Default
    /// 2,000.
    pub originate_quiet_ms: u32,
    /// Milliseconds from the first run of shortest paths to the second, between the next eight, and
    /// between later ones while LSPs keep coming. Default 5, 50, 100. Changes of own links are never held up.
    pub spf_ms: [u32; 3],
    /// Milliseconds without a run after which the next one happens at once again. Default 500.
    pub spf_quiet_ms: u32,
    /// Seconds after which the own LSP is repeated, ± 25 %. Default 900.
    pub refresh_s: u32,
    /// Seconds after which an LSP that was not repeated is dropped. Default 3,600.
    pub max_age_s: u32,
    /// Milliseconds that the digest of a neighbour may differ until a SUMMARY is sent to it. Default
    /// 1,000. Doubles up to `max_resync_ms` while that does not help. Also until the SUMMARY of a new
    /// link is repeated, should it not be answered.
    pub resync_ms: u32,
    /// The longest time between two such repairs. Default 60,000.
    pub max_resync_ms: u32,
    /// LSPs held. Default 4,096. At the limit LSPs of further nodes are refused and counted
    /// ([`Control::lsdb_refused`](super::Control::lsdb_refused)).
    pub max_nodes: usize,
    /// Links at a time, at most [`MAX_NEIGHBOURS`](crate::wire::lsp::MAX_NEIGHBOURS) (more is taken for
    /// that: no LSP states more). Default 1,024. At the limit a further link is closed ([`CloseReason::TooManyLinks`](super::CloseReason)).
    pub max_links: usize,
    /// Neighbours that can be asked for. Default 1,024. At the limit
    /// [`Control::connect`](super::Control::connect) refuses.
    pub max_neighbours: usize,
    /// Milliseconds until a failed dial is repeated, ± 25 %; doubles with each failure. Default 50.
    pub dial_backoff_ms: u32,
    /// The longest such wait, ± 25 %. Default 1,000: nodes that were cut off find each other soon.
    pub max_dial_backoff_ms: u32,
    /// Milliseconds that a link must be up for the wait to start over. Default 5,000.
    pub dial_stable_ms: u32,
    /// Milliseconds after which a dial without an answer counts as failed. Default 10,000.
    pub dial_timeout_ms: u32,
}

impl Default for ControlConfig {
    fn default() -> Self {
        Self {
            hello_ms: 250,
            hold_ms: 1_000,
            max_hold_ms: 60_000,
            late_ms: 50,
            unreachable_ms: 500,
            originate_ms: [10, 100, 1_000],
            gather_ms: 50,
            originate_quiet_ms: 2_000,
            spf_ms: [5, 50, 100],
            spf_quiet_ms: 500,
            refresh_s: 900,
            max_age_s: 3_600,
            resync_ms: 1_000,
            max_resync_ms: 60_000,
            max_nodes: 4_096,
            max_links: 1_024,
            max_neighbours: 1_024,
            dial_backoff_ms: 50,
            max_dial_backoff_ms: 1_000,
            dial_stable_ms: 5_000,
            dial_timeout_ms: 10_000,
        }
    }
}

/// Seconds below which an LSP is neither aged by others nor passed on, and for which a PURGE is kept.
const MIN_AGE_S: u32 = 60;

impl ControlConfig {
    pub(super) fn lsdb_limits(&self) -> LsdbLimits {
        LsdbLimits {
            max_nodes: self.max_nodes,
            max_age_s: self.max_age_s,
            min_age_s: MIN_AGE_S.min(self.max_age_s),
            purge_keep_s: MIN_AGE_S,
        }
    }

    pub(super) fn dialer(&self) -> DialerConfig {
        DialerConfig {
            backoff_min: ms(self.dial_backoff_ms),
            backoff_max: ms(self.max_dial_backoff_ms),
            stable: ms(self.dial_stable_ms),
            timeout: ms(self.dial_timeout_ms),
            max_neighbours: self.max_neighbours,
        }
    }
}

/// Milliseconds as a duration.
pub(super) fn ms(ms: u32) -> Duration {
    Duration::from_millis(ms.into())
}
