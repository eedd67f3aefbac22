//! What is logged about connections that do not become links: one line that names the address, then
//! silence about that address for a while. Strangers decide how often they come, so both the lines
//! and the memory for them are bounded.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use parking_lot::Mutex;

use crate::establish::EstablishError;

/// One line per address and this time.
const PER_ADDRESS: Duration = Duration::from_secs(10);

/// Addresses remembered; at the limit all are forgotten.
const MAX_ADDRESSES: usize = 256;

/// Lines per [`PER_ADDRESS`] about all addresses together.
const MAX_LINES: u32 = 20;

/// Refusals and failures of sockets are counted apart: who just hangs up now and then, which is worth
/// a look only when searching, must not silence the line about what else comes from his address.
#[derive(Default)]
pub(crate) struct Complaints {
    refused: Mutex<State>,
    failed: Mutex<State>,
}

#[derive(Default)]
struct State {
    addresses: HashMap<IpAddr, (Duration, u64)>,
    window: Duration,
    lines: u32,
}

impl Complaints {
    pub(crate) fn log(
        &self,
        now: Duration,
        remote: SocketAddr,
        error: &EstablishError,
        dialled: bool,
    ) {
        let state = match error {
            EstablishError::Io(_) => &self.failed,
            _ => &self.refused,
        };
        let Some(suppressed) = state.lock().admit(now, remote.ip()) else { return };
        let direction = if dialled { "to" } else { "from" };
        match error {
            // A neighbour that is not up yet, or a port scanner: worth a look only when searching.
            EstablishError::Io(_) => {
                tracing::info!("connection {direction} {remote}: {error}");
            }
            _ => tracing::warn!(
                "connection {direction} {remote} refused: {error} ({suppressed} more from there)"
            ),
        }
    }
}

impl State {
    /// Whether a line may be written now, and how many were left out since the last one.
    fn admit(&mut self, now: Duration, address: IpAddr) -> Option<u64> {
        if now >= self.window + PER_ADDRESS {
            (self.window, self.lines) = (now, 0);
        }
        if self.addresses.len() >= MAX_ADDRESSES && !self.addresses.contains_key(&address) {
            self.addresses.clear();
        }
        let fresh = !self.addresses.contains_key(&address);
        let (last, suppressed) = self.addresses.entry(address).or_insert((now, 0));
        if self.lines >= MAX_LINES || (!fresh && now < *last + PER_ADDRESS) {
            *suppressed += 1;
            return None;
        }
        self.lines += 1;
        *last = now;
        Some(std::mem::take(suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_per_address_and_bounded_memory() {
        let mut state = State::default();
        let at = |n: u8| IpAddr::from([10, 0, 0, n]);
        assert_eq!(state.admit(Duration::ZERO, at(1)), Some(0));
        assert_eq!(state.admit(Duration::from_secs(1), at(1)), None);
        assert_eq!(state.admit(Duration::from_secs(1), at(2)), Some(0));
        assert_eq!(state.admit(Duration::from_secs(11), at(1)), Some(1));
        for n in 0..10_000u32 {
            state.admit(Duration::from_secs(12), IpAddr::from(n.to_be_bytes()));
        }
        assert!(state.addresses.len() <= MAX_ADDRESSES && state.lines <= MAX_LINES);
    }
}
