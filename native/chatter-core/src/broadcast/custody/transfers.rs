//! Messages on their way to neighbours, and targets that wait for a way.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Custodies;
use crate::broadcast::BroadcastStats;
use crate::broadcast::plan::plan;
use crate::ids::{LinkId, NodeId};
use crate::routes::ForwardingTable;
use crate::wire::bcast::{BCAST_HOPS, Bcast, Fate, MAX_TARGETS, Target};

/// By how much a link that is silent is given up sooner than a target without a route, at least.
const SOONER: Duration = Duration::from_millis(500);

/// What a neighbour had no memory for is sent again after this long.
const BUSY_RETRY: Duration = Duration::from_millis(100);

/// Messages on their way over one link.
pub(super) struct Transfer {
    pub custody: u64,
    pub child: NodeId,
    pub link: LinkId,
    pub targets: Vec<Target>,
    pub sent: Instant,
}

/// A target that nothing can be sent to for now.
pub(super) struct Parked {
    pub custody: u64,
    pub target: Target,
    pub since: Instant,
    /// Not to be tried before, if the neighbour was busy.
    pub retry: Option<Instant>,
}

/// What a neighbour has not answered for so long is planned anew: a full queue on the way may have dropped
/// it, or somebody behind takes nothing. When a node behind has gone silently, it takes until its links are
/// given up, and then `patience` until it is: nothing is gained by sending to all behind again before.
fn resend_after(patience: Duration) -> Duration {
    (2 * patience).saturating_sub(SOONER).max(patience)
}

impl Custodies {
    /// Plans for targets of a custody and sends to them.
    pub fn send_out(
        &mut self,
        now: Instant,
        id: u64,
        targets: &[Target],
        table: &ForwardingTable,
        stats: &mut BroadcastStats,
    ) {
        self.send_since(now, now, id, targets, table, stats);
    }

    /// The same; those without a route have had none since `since`.
    fn send_since(
        &mut self,
        now: Instant,
        since: Instant,
        id: u64,
        targets: &[Target],
        table: &ForwardingTable,
        stats: &mut BroadcastStats,
    ) {
        let Some(custody) = self.custodies.get_mut(&id) else { return };
        let plan = plan(table, targets);
        for (child, targets) in plan.sends {
            let Some(link) = table.link_to(child) else { continue };
            for targets in targets.chunks(MAX_TARGETS) {
                self.next_number += 1;
                let number = self.next_number;
                let packet = Bcast::packet(&custody.batch, custody.hop_limit, number, targets);
                self.out.push_back((child, packet));
                stats.tree_packets += 1;
                custody.behind += targets.len();
                custody.transfers.push(number);
                let targets = targets.to_vec();
                self.transfers
                    .insert(number, Transfer { custody: id, child, link, targets, sent: now });
            }
        }
        custody.behind += plan.unreachable.len();
        for target in plan.unreachable {
            self.parked.push(Parked { custody: id, target, since, retry: None });
        }
        self.touched.insert(id);
    }

    /// A neighbour tells that a transfer is done, or not taken.
    pub fn handle_ack(&mut self, now: Instant, from: NodeId, fate: Fate, number: u64) {
        if self.transfers.get(&number).is_none_or(|transfer| transfer.child != from) {
            return;
        }
        let Some(Transfer { custody: id, targets, .. }) = self.end_transfer(number) else { return };
        if fate == Fate::Busy
            && let Some(custody) = self.custodies.get_mut(&id)
        {
            custody.behind += targets.len();
            // If it went in a circle while routes changed: from here it begins anew.
            custody.hop_limit = BCAST_HOPS;
            let retry = Some(now + BUSY_RETRY);
            let parked =
                |target: &Target| Parked { custody: id, target: *target, since: now, retry };
            self.parked.extend(targets.iter().map(parked));
        }
        self.done_behind(id, targets.len());
    }

    /// A neighbour tells which targets of a transfer are open: all others are forgotten.
    pub fn handle_open(&mut self, from: NodeId, number: u64, open: &[NodeId]) {
        let known = self.transfers.get_mut(&number).filter(|transfer| transfer.child == from);
        let Some(transfer) = known else { return };
        let (id, before) = (transfer.custody, transfer.targets.len());
        transfer.targets.retain(|target| open.contains(&target.id));
        let left = transfer.targets.len();
        if left == 0 {
            self.end_transfer(number);
        }
        self.done_behind(id, before - left);
    }

    fn end_transfer(&mut self, number: u64) -> Option<Transfer> {
        let transfer = self.transfers.remove(&number)?;
        if let Some(custody) = self.custodies.get_mut(&transfer.custody) {
            custody.transfers.retain(|other| *other != number);
        }
        Some(transfer)
    }

    /// Plans anew what went over links that are gone, and for targets that had no route.
    pub fn replan(&mut self, now: Instant, table: &ForwardingTable, stats: &mut BroadcastStats) {
        let gone = |(number, transfer): (&u64, &Transfer)| {
            (table.link_to(transfer.child) != Some(transfer.link)).then_some(*number)
        };
        let gone: Vec<u64> = self.transfers.iter().filter_map(gone).collect();
        self.send_again(now, gone, table, stats);
        self.retry(now, table, stats, true);
    }

    fn send_again(
        &mut self,
        now: Instant,
        numbers: Vec<u64>,
        table: &ForwardingTable,
        stats: &mut BroadcastStats,
    ) {
        stats.replanned += numbers.len() as u64;
        for number in numbers {
            let Some(transfer) = self.end_transfer(number) else { continue };
            self.send_out(now, transfer.custody, &transfer.targets, table, stats);
            self.done_behind(transfer.custody, transfer.targets.len());
        }
    }

    /// Sends to parked targets: all, or those whose time has come.
    fn retry(
        &mut self,
        now: Instant,
        table: &ForwardingTable,
        stats: &mut BroadcastStats,
        all: bool,
    ) {
        let due = |parked: &mut Parked| parked.retry.map_or(all, |at| at <= now);
        let due: Vec<Parked> = self.parked.extract_if(.., due).collect();
        let mut groups: BTreeMap<(u64, Instant), Vec<Target>> = BTreeMap::new();
        for parked in due {
            groups.entry((parked.custody, parked.since)).or_default().push(parked.target);
        }
        for ((custody, since), targets) in groups {
            self.send_since(now, since, custody, &targets, table, stats);
            self.done_behind(custody, targets.len());
        }
    }

    /// Sends again what is not answered, tries busy neighbours again, gives up targets that have had no
    /// route for too long, and tells which are open.
    pub fn expire(
        &mut self,
        now: Instant,
        patience: Duration,
        table: &ForwardingTable,
        stats: &mut BroadcastStats,
    ) {
        // In the order of their numbers, they are in that of their times.
        let resend = resend_after(patience);
        let silent = self.transfers.iter().take_while(|(_, t)| t.sent + resend <= now);
        let silent: Vec<u64> = silent.map(|(number, _)| *number).collect();
        self.send_again(now, silent, table, stats);
        self.retry(now, table, stats, false);
        let late = |parked: &mut Parked| parked.retry.is_none() && parked.since + patience <= now;
        let late: Vec<Parked> = self.parked.extract_if(.., late).collect();
        stats.lost += late.len() as u64;
        late.iter().for_each(|parked| self.done_behind(parked.custody, 1));
        self.look(now);
    }

    /// When [`Custodies::expire`] or [`Custodies::expire_dispatch`] has something to do.
    pub fn timeout(&self, patience: Duration) -> Option<Instant> {
        let parked = self.parked.iter().map(|p| p.retry.unwrap_or(p.since + patience)).min();
        // The first came first, and all wait equally long.
        let dispatch = self.deferred.first().and_then(|id| self.custodies.get(id)?.dispatch_by);
        let resend = self.transfers.values().next().map(|t| t.sent + resend_after(patience));
        [parked, dispatch, resend, self.next_look()].into_iter().flatten().min()
    }
}
