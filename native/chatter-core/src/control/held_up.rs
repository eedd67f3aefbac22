//! Having been held up, stopped or swapped out, for so long that the peers have closed every link.
//!
//! The others are about to give this node up, or have done so: one of them is enough, since its
//! `global` makes all others disconnect. Their channels to it are over, and it does not know. Found out
//! one channel at a time, while the others open new ones, it would tell some of them that it has lost
//! the rest, and those would be cut off too. So it ends all of them at once, as soon as the last link
//! that it had is gone. A pause of the whole network closes no links, and ends nothing.

use std::collections::BTreeSet;
use std::time::Instant;

use super::Control;
use super::config::ms;
use crate::ids::LinkId;

/// Woken, and not yet sure whether the others have given this node up.
#[derive(Clone, Debug)]
pub(super) struct HeldUp {
    /// Links from before that are still in use.
    links: BTreeSet<LinkId>,
    /// What the peers had closed is known by then: a link that is left has been used by its peer.
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
        let Some(held_up) = &mut self.held_up else { return };
        held_up.links.remove(&link);
        let given_up = held_up.links.is_empty();
        if held_up.until <= self.now {
            self.held_up = None;
        } else if given_up {
            self.held_up = None;
            self.forget_routes();
        }
    }
}
