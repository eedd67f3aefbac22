//! How far this node has sent: said once after the last of a series of CASTs, to those who have not
//! acknowledged it by then. Who has missed it learns so from this and asks for it, ahead of the time at
//! which it would be left to links. (A tail loss probe, as that of RFC 8985 for TCP.)

use std::collections::BTreeMap;
use std::time::Instant;

use super::{Casts, Datagram};
use crate::broadcast::BroadcastStats;
use crate::ids::{Incarnation, NodeId};
use crate::wire::cast::{CastHello, MAX_HELLO_TARGETS};
use crate::wire::datagram::kind;

impl Casts {
    /// Sends CAST_HELLOs, if it is time to and somebody has not acknowledged, as far as the rate allows.
    pub fn send_hello(&mut self, now: Instant, stats: &mut BroadcastStats) {
        if self.hello_at.is_none_or(|at| at > now) {
            return;
        }
        self.hello_at = None;
        let mut lasts: BTreeMap<(NodeId, Incarnation), BTreeMap<(NodeId, u16), u64>> =
            BTreeMap::new();
        for ((origin, life, last, _), sent) in &self.sent {
            let waiting = lasts.entry((*origin, *life)).or_default();
            waiting.extend(sent.missing().map(|target| ((target.id, target.life), *last)));
        }
        for ((origin, incarnation), waiting) in lasts {
            let targets: Vec<_> =
                waiting.into_iter().map(|((id, life), l)| (id, life, l)).collect();
            for targets in targets.chunks(MAX_HELLO_TARGETS) {
                let body = CastHello { origin, incarnation, targets: targets.to_vec() }.encode();
                if self.pace.may_send(now, body.len()) {
                    stats.hellos_out += 1;
                    self.out.push_back(Datagram { kind: kind::CAST_HELLO, body, cast: None });
                }
            }
        }
    }
}
