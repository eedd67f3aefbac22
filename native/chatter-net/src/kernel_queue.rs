//! What of a link waits in the kernel, where nothing can overtake it any more: it is kept short.
//!
//! Two bounds of TCP work together: of the bytes that are not sent yet (`TCP_NOTSENT_LOWAT`), and on thin
//! links of all that are outstanding (`SO_SNDBUF`), which [`Outstanding`] finds. Both are looked at only when
//! a new segment buffer of the kernel is begun, which takes up to 64 KiB; so on links that are not fast each
//! batch ends the one that it is in (`MSG_EOR`).
//!
//! A Unix socket holds what the system gives it, and more while there is bulk alone ([`Pace`]).

use std::time::{Duration, Instant};

use chatter_core::sched::outstanding::{Outstanding, Sample};

use crate::pace::Pace;
use crate::transport::WriteHalf;

/// Bounds of the bytes taken from the scheduler for one write: few enough that what is queued later can
/// still overtake, enough that a system call is worth its cost. Between them, what the link carries in
/// [`LOWAT_TIME`].
const FILL_BYTES: usize = 128 * 1024;
const FILL_MIN: usize = 16 * 1024;

/// Unsent bytes that the kernel may hold: what the link carries in [`LOWAT_TIME`], within these bounds.
/// More would be a queue behind the scheduler; less, and the link idles until the writer is awake.
pub(crate) const LOWAT_START: u32 = 64 * 1024;
const LOWAT_MIN: f64 = 16.0 * 1024.0;
const LOWAT_MAX: f64 = 2048.0 * 1024.0;
const LOWAT_TIME: Duration = Duration::from_micros(500);

/// The rate of a link is taken anew after so many bytes.
const RATE_BYTES: usize = 1024 * 1024;

/// While a link is full, its connection is looked at so often.
const SAMPLE_EVERY: Duration = Duration::from_millis(100);

/// Writes of at least so many bytes have segment buffers of their own while the bound of unsent bytes is at
/// most so large: smaller ones should share packets, and fast links need large buffers.
const APART_LEAST: usize = 8 * 1024;
const APART_LOWAT: u32 = 32 * 1024;

/// What a Unix socket may hold while there is bulk alone, the records of the kernel included: so many times
/// the bound of unsent bytes, which is what the link carries in 2 ms, and at most so many bytes. Its writer is
/// woken only when three quarters are free, and what is left must last until it runs.
const CALM_LOWATS: usize = 4;
const CALM_DEPTH: usize = 2 * 1024 * 1024;

/// See the [module](self).
pub(crate) struct KernelQueue {
    pace: Pace,
    /// What a Unix socket held at first, which is the least; and holds now.
    shallow: Option<usize>,
    depth: usize,
    rate_since: Instant,
    rate_bytes: usize,
    lowat: u32,
    /// `None` if the system cannot bound what is outstanding, or take a bound back.
    outstanding: Option<Outstanding>,
    sampled: Instant,
    /// The link had nothing to send since then.
    idle: bool,
    bound: Option<u32>,
}

impl KernelQueue {
    pub(crate) fn new(socket: &WriteHalf) -> Self {
        let now = Instant::now();
        Self {
            pace: Pace::new(now),
            shallow: socket.depth(),
            depth: socket.depth().unwrap_or(0),
            rate_since: now,
            rate_bytes: 0,
            lowat: LOWAT_START,
            outstanding: socket.can_bound().then(Outstanding::default),
            sampled: now,
            idle: true,
            bound: None,
        }
    }

    /// Bytes to take from the scheduler for one write.
    pub(crate) fn batch(&self) -> usize {
        (self.lowat as usize).clamp(FILL_MIN, FILL_BYTES)
    }

    /// Whether a write of so many bytes should share nothing with the next one.
    pub(crate) fn is_apart(&self, len: usize) -> bool {
        len >= APART_LEAST && self.lowat <= APART_LOWAT
    }

    /// Data is about to be written, and some of it is pressing, or none.
    pub(crate) fn fill(&mut self, socket: &WriteHalf, now: Instant, pressing: bool) {
        if self.shallow.is_some() && self.pace.note(now, pressing).is_some() {
            self.fit_depth(socket);
        }
    }

    fn fit_depth(&mut self, socket: &WriteHalf) {
        let Some(shallow) = self.shallow else { return };
        let mut depth = shallow;
        if self.pace.is_calm() {
            depth = (self.lowat as usize * CALM_LOWATS).min(CALM_DEPTH).max(shallow);
        }
        if depth != self.depth {
            self.depth = depth;
            socket.set_depth(depth);
        }
    }

    /// So many bytes were written.
    pub(crate) fn wrote(&mut self, bytes: usize) {
        self.rate_bytes += bytes;
    }

    /// A batch was written as a whole: fits the bound of unsent bytes to the rate that the link has now.
    pub(crate) fn tune(&mut self, socket: &WriteHalf) {
        if self.rate_bytes < RATE_BYTES {
            return;
        }
        let now = Instant::now();
        let elapsed = now.duration_since(self.rate_since).as_secs_f64().max(1e-6);
        let bytes = self.rate_bytes as f64 / elapsed * LOWAT_TIME.as_secs_f64();
        let lowat = bytes.clamp(LOWAT_MIN, LOWAT_MAX) as u32;
        (self.rate_since, self.rate_bytes) = (now, 0);
        if lowat.abs_diff(self.lowat) > self.lowat / 4 {
            self.lowat = lowat;
            socket.set_lowat(lowat);
            self.fit_depth(socket);
        }
    }

    /// There was nothing more to write.
    pub(crate) fn drained(&mut self) {
        self.idle = true;
    }

    /// The socket was full: fits the bound of outstanding bytes to the way.
    pub(crate) fn blocked(&mut self, socket: &WriteHalf) {
        let Some(outstanding) = &mut self.outstanding else { return };
        let at = Instant::now();
        if at.duration_since(self.sampled) < SAMPLE_EVERY {
            return;
        }
        self.sampled = at;
        let Some(state) = socket.tcp_state() else { return };
        let idle = std::mem::take(&mut self.idle);
        let sample =
            Sample { at, acked: state.acked, busy: state.busy, min_rtt: state.min_rtt, idle };
        let bound = outstanding.sample(sample);
        let is_near = |(new, old): (u32, u32)| new.abs_diff(old) <= old / 8;
        if bound != self.bound && !bound.zip(self.bound).is_some_and(is_near) {
            socket.bound_outstanding(bound);
            self.bound = bound;
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use chatter_core::sched::CALM;
    use tokio::net::UnixStream;

    use super::*;
    use crate::transport::Connection;

    /// Given a fast Unix socket, expect it to hold more while there is bulk alone, and no more than at first as
    /// soon as something is pressing; and a slow one never.
    #[tokio::test]
    async fn a_fast_unix_socket_is_deep_for_bulk_alone() {
        let (one, _other) = UnixStream::pair().unwrap();
        let runtime = tokio::runtime::Handle::current();
        let (_read, write) = Connection::Unix(one).split(&runtime).unwrap();
        let at_first = write.depth().unwrap();
        let start = Instant::now();
        let mut queue = KernelQueue::new(&write);
        let mut calm = 0;
        let mut turn = |queue: &mut KernelQueue| {
            calm += 4;
            queue.fill(&write, start + calm * CALM, false);
            let depth = write.depth().unwrap();
            queue.fill(&write, start + (calm + 1) * CALM, true);
            assert_eq!(write.depth(), Some(at_first), "something is pressing");
            depth
        };
        queue.wrote(1024 * RATE_BYTES);
        queue.tune(&write);
        assert!(turn(&mut queue) > at_first);
        assert!(turn(&mut queue) > at_first);
        queue.wrote(RATE_BYTES);
        queue.rate_since = Instant::now() - Duration::from_millis(100);
        queue.tune(&write);
        assert_eq!(turn(&mut queue), at_first, "10 MB/s");
    }
}
