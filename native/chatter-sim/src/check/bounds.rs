//! Everything has a limit.

use super::{Kind, Violations};
use crate::time::Nanos;

/// Reports a value that is over its limit.
pub(super) fn check(
    now: Nanos,
    (at, what): (usize, &str),
    value: u64,
    limit: u64,
    violations: &mut Violations,
) {
    if value > limit {
        violations.report(now, Kind::Bound, format!("n{at}: {what} is {value}, over {limit}"));
    }
}
