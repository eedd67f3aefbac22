//! Virtual time: nanoseconds since the start of the run.

use std::time::{Duration, Instant};

/// Nanoseconds of virtual time.
pub type Nanos = u64;

/// A microsecond.
pub const US: Nanos = 1_000;
/// A millisecond.
pub const MS: Nanos = 1_000_000;
/// A second.
pub const S: Nanos = 1_000_000_000;

/// Turns virtual time into what the core takes for a clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    base: Instant,
}

impl Clock {
    /// A clock at 0.
    #[expect(clippy::disallowed_methods, reason = "virtual time has to start somewhere")]
    pub fn new() -> Self {
        Self { base: Instant::now() }
    }

    /// The instant of a virtual time.
    pub fn instant(self, at: Nanos) -> Instant {
        self.base + Duration::from_nanos(at)
    }

    /// The virtual time of an instant.
    pub fn nanos(self, at: Instant) -> Nanos {
        at.saturating_duration_since(self.base).as_nanos() as Nanos
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}
