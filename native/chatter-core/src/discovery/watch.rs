//! Whether a multicast socket still works: it must hear what it sent itself.
//!
//! A socket that was opened before its network was there, or whose group membership was lost with a
//! link, stays open and silent. Nobody but its own beacon, which comes back to it, can tell.

use std::time::{Duration, Instant};

/// What was sent comes back within this time.
const ECHO: Duration = Duration::from_secs(1);

/// A socket that stays silent is opened anew after this time, and twice as long each time after, to
/// the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// What is to be done about a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Health {
    /// Nothing: it hears itself, or there was no time to.
    Fine,
    /// Open it anew, and send a beacon.
    Silent,
}

/// Watches the socket of one interface, over its successors too.
#[derive(Clone, Debug)]
pub struct Watch {
    /// The first beacon that was not heard yet.
    sent: Option<Instant>,
    reopened: Option<Instant>,
    pause: Duration,
}

impl Default for Watch {
    fn default() -> Self {
        Self { sent: None, reopened: None, pause: FIRST_PAUSE }
    }
}

impl Watch {
    /// A beacon was sent, or should have been: sending failed.
    pub fn sent(&mut self, now: Instant) {
        self.sent.get_or_insert(now);
    }

    /// A datagram of our own came back.
    pub fn heard(&mut self) {
        self.sent = None;
        self.pause = FIRST_PAUSE;
    }

    /// Looks. After [`Health::Silent`] the socket counts as new.
    pub fn check(&mut self, now: Instant) -> Health {
        let silent = self.sent.is_some_and(|at| now.saturating_duration_since(at) >= ECHO);
        let rested = self.reopened.is_none_or(|at| now.saturating_duration_since(at) >= self.pause);
        if !silent || !rested {
            return Health::Fine;
        }
        self.pause = (self.pause * 2).min(MAX_PAUSE);
        self.reopened = Some(now);
        self.sent = None;
        Health::Silent
    }
}
