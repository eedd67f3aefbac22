//! Having been held up, stopped or swapped out, for so long that the peers have closed its links.
//!
//! The others are about to give this node up, or have done so: one of them is enough, since its
//! `global` makes all others disconnect. Their channels to it are over, and it does not know. Found out
//! one channel at a time, while the others open new ones, it would tell some of them that it has lost
//! the rest, and those would be cut off too. So it ends all of them at once, as soon as one of the links
//! that it had is gone: peers that ran have closed all of them, but may not get that through. A pause
//! of the whole network closes no links, and ends nothing.

use std::collections::BTreeSet;
use std::time::Instant;

use super::Control;
use super::config::ms;
use crate::ids::LinkId;

/// Woken, and not yet sure whether the others have given this node up.
#[derive(Clone, Debug)]
pub(super) struct HeldUp {
    /// The links from before.
    links: BTreeSet<LinkId>,
    /// What the peers had closed is known by then; what goes later has other reasons.
    until: Instant,
}

impl Control {
    /// Takes the time of a call. Must come first: what follows may be news that nobody was there for.
    pub(super) fn advance(&mut self, now: Instant) {
        let config = &self.config;
        // The pause began up to a HELLO after the last call: a shorter one than the hold is forgiven.
        let hold = ms(config.hold_ms) + ms(config.hello_ms.into());
        let gap = now.saturating_duration_since(self.now);
        self.now = self.now.max(now);
        if gap >= hold && !self.links.is_empty() {
            let links = self.links.keys().copied().collect();
            self.held_up = Some(HeldUp { links, until: self.now + ms(config.hold_ms) });
        }
    }

    /// A link is not in use any longer.
    pub(super) fn gone_after_held_up(&mut self, link: LinkId) {
        let was_there = |held_up: &HeldUp| held_up.links.contains(&link);
        let Some(held_up) = self.held_up.take_if(|held_up| was_there(held_up)) else { return };
        if self.now < held_up.until {
            self.forget_routes();
        }
    }
}
