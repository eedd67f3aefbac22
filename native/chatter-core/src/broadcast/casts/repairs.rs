//! Requests for what is missing, and what is sent again because of them.

use std::time::{Duration, Instant};

use super::{Casts, Datagram, Key};
use crate::broadcast::BroadcastStats;
use crate::broadcast::custody::Custodies;
use crate::ids::NodeId;
use crate::routes::ForwardingTable;
use crate::wire::bcast::{Batch, Target};
use crate::wire::cast::{Cast, Nak};
use crate::wire::datagram::kind;

/// A CAST is sent so often besides the first time.
const MAX_REPAIRS: u8 = 3;

/// Those who ask for the same at about the same time get one answer.
const REPAIR_PAUSE: Duration = Duration::from_millis(10);

/// With so few left who have not got it, links are cheaper than another datagram for all.
const FEW: usize = 2;

impl Casts {
    /// Sends a NAK, if the rate allows it.
    pub fn send_nak(&mut self, now: Instant, nak: &Nak, stats: &mut BroadcastStats) {
        let body = nak.encode();
        if self.pace.may_send(now, body.len()) {
            stats.naks_out += 1;
            self.out.push_back(Datagram { kind: kind::NAK, body, cast: None });
        }
    }

    /// Sends messages of others to nodes that miss them, if the rate allows it. It is up to who has sent
    /// them first whether they arrive.
    pub fn send_spare(
        &mut self,
        now: Instant,
        batch: &Batch,
        targets: &[Target],
        stats: &mut BroadcastStats,
    ) {
        let body = Cast::encode(batch, targets);
        if !targets.is_empty() && self.pace.may_send(now, body.len()) {
            stats.repairs_of_others += 1;
            self.out.push_back(Datagram { kind: kind::CAST, body, cast: None });
        }
    }

    /// Somebody misses messages: sends again what this node has sent of them.
    pub fn handle_nak(
        &mut self,
        now: Instant,
        from: NodeId,
        nak: &Nak,
        custodies: &mut Custodies,
        table: &ForwardingTable,
        stats: &mut BroadcastStats,
    ) {
        for (origin, life, gap) in &nak.gaps {
            let from_key = (*origin, *life, gap.after + 1, 0);
            let keys: Vec<Key> = self
                .sent
                .range(from_key..=(*origin, *life, u64::MAX, u64::MAX))
                .take_while(|(_, sent)| sent.first <= gap.upto)
                .map(|(key, _)| *key)
                .collect();
            for key in keys {
                self.note_missed(key);
                self.repair(now, from, key, custodies, table, stats);
            }
        }
    }

    fn repair(
        &mut self,
        now: Instant,
        from: NodeId,
        key: Key,
        custodies: &mut Custodies,
        table: &ForwardingTable,
        stats: &mut BroadcastStats,
    ) {
        let Some(sent) = self.sent.get(&key) else { return };
        let asked = sent.waiting.get(&from).is_some_and(|w| w.received.is_none());
        let missing: Vec<Target> = sent.missing().copied().collect();
        if missing.is_empty() {
            return;
        }
        if missing.len() <= FEW {
            if asked {
                stats.repairs += 1;
                self.leave(now, key, |id, _| *id == from, custodies, table, stats);
            }
            return;
        }
        let again = now.saturating_duration_since(sent.sent) >= REPAIR_PAUSE || sent.repairs == 0;
        let Some(batch) = custodies.batch(sent.custody) else { return };
        if !again || sent.repairs >= MAX_REPAIRS {
            return;
        }
        let body = Cast::encode(&batch, &missing);
        if !self.pace.may_send(now, body.len()) {
            return;
        }
        stats.repairs += 1;
        self.out.push_back(Datagram { kind: kind::CAST, body, cast: Some(key) });
        // However often it is sent again, links are not far behind.
        let timeout = self.timeout(missing.iter().map(|target| target.id));
        let due = (now + timeout).min(sent.began + timeout * 2);
        if let Some(sent) = self.sent.get_mut(&key) {
            self.due.remove(&(sent.due, key));
            self.due.insert((due, key));
            (sent.sent, sent.due) = (now, due);
            sent.repairs += 1;
        }
    }
}
