//! What this node is responsible for: messages, kept until all their targets behind it have them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::changes::changed;
use super::payload::Packed;
use super::plan::plan;
use super::{BroadcastStats, DISPATCH_TIMEOUT};
use crate::ids::{Incarnation, LinkId, NodeId};
use crate::routes::ForwardingTable;
use crate::wire::bcast::{BCAST_HOPS, Batch, Bcast, BcastAck, Fate, MAX_TARGETS, Target};
use crate::wire::packet::Packet;

/// By how much a link that is silent is given up sooner than a target without a route, at least.
const SOONER: Duration = Duration::from_millis(500);

/// What a neighbour had no memory for is sent again after this long.
const BUSY_RETRY: Duration = Duration::from_millis(100);

/// Where messages came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Parent {
    /// This node is their origin.
    Own,
    /// A neighbour, who is told when they are complete, under which number.
    Link(NodeId, u64),
    /// A datagram; `answers` tell who wants to know.
    Cast,
}

struct Custody {
    batch: Batch,
    /// What it counts for.
    len: usize,
    hop_limit: u8,
    parent: Parent,
    /// Transfers to neighbours, messages for this node, and parked targets that are not done.
    open: usize,
    /// Numbers of messages that the user may change, and what became of those that it has.
    changes: BTreeMap<u64, Option<Packed>>,
    waits_for: usize,
    deferred: Vec<Target>,
    dispatch_by: Option<Instant>,
}

/// Messages on their way over one link.
struct Transfer {
    custody: u64,
    child: NodeId,
    link: LinkId,
    targets: Vec<Target>,
    sent: Instant,
}

/// A target that nothing can be sent to for now.
struct Parked {
    custody: u64,
    target: Target,
    since: Instant,
    /// Not to be tried before, if the neighbour was busy.
    retry: Option<Instant>,
}

pub(super) struct Custodies {
    custodies: BTreeMap<u64, Custody>,
    transfers: BTreeMap<u64, Transfer>,
    parked: Vec<Parked>,
    /// Those that may be complete.
    touched: BTreeSet<u64>,
    next_custody: u64,
    /// Numbers of another life of this node must not be taken for those of this one.
    next_number: u64,
    acks: BTreeMap<(NodeId, Fate), Vec<u64>>,
    out: VecDeque<(NodeId, Packet)>,
    bytes: usize,
    own_bytes: usize,
    /// Those that wait for changes.
    deferred: BTreeSet<u64>,
}

/// What a packet costs besides its messages.
const OVERHEAD: usize = 256;

/// What a neighbour has not answered for so long is planned anew: a full queue on the way may have dropped
/// it, or somebody behind takes nothing. When a node behind has gone silently, it takes until its links are
/// given up, and then `patience` until it is: nothing is gained by sending to all behind again before.
fn resend_after(patience: Duration) -> Duration {
    (2 * patience).saturating_sub(SOONER).max(patience)
}

impl Custodies {
    pub fn new(life: Incarnation) -> Self {
        Self {
            custodies: BTreeMap::new(),
            transfers: BTreeMap::new(),
            parked: Vec::new(),
            touched: BTreeSet::new(),
            next_custody: 0,
            next_number: life.0,
            acks: BTreeMap::new(),
            out: VecDeque::new(),
            bytes: 0,
            own_bytes: 0,
            deferred: BTreeSet::new(),
        }
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn own_bytes(&self) -> usize {
        self.own_bytes
    }

    pub fn batch(&self, custody: u64) -> Option<Batch> {
        self.custodies.get(&custody).map(|custody| custody.batch.clone())
    }

    pub fn add(&mut self, batch: Batch, hop_limit: u8, parent: Parent) -> u64 {
        self.next_custody += 1;
        let len = batch.messages.len() + OVERHEAD;
        self.bytes += len;
        self.own_bytes += if parent == Parent::Own { len } else { 0 };
        let custody = Custody {
            batch,
            len,
            hop_limit,
            parent,
            open: 0,
            changes: BTreeMap::new(),
            waits_for: 0,
            deferred: Vec::new(),
            dispatch_by: None,
        };
        self.custodies.insert(self.next_custody, custody);
        self.touched.insert(self.next_custody);
        self.next_custody
    }

    /// Sends a transfer of a neighbour back.
    pub fn refuse(&mut self, from: NodeId, number: u64) {
        self.acks.entry((from, Fate::Busy)).or_default().push(number);
    }

    /// A message of the custody waits to be delivered here, or a datagram to be acknowledged.
    pub fn wait(&mut self, custody: u64) {
        if let Some(custody) = self.custodies.get_mut(&custody) {
            custody.open += 1;
        }
    }

    /// One that waited has been.
    pub fn delivered(&mut self, custody: u64) {
        if let Some(known) = self.custodies.get_mut(&custody) {
            known.open -= 1;
            if known.open == 0 {
                self.touched.insert(custody);
            }
        }
    }

    pub fn set_changes(&mut self, custody: u64, seqs: Vec<u64>) {
        if let Some(custody) = self.custodies.get_mut(&custody) {
            custody.waits_for = seqs.len();
            custody.changes = seqs.into_iter().map(|seq| (seq, None)).collect();
        }
    }

    /// Whether the custody waits for what the user makes of a message.
    pub fn wants(&self, custody: u64, seq: u64) -> bool {
        self.custodies.get(&custody).is_some_and(|custody| custody.changes.contains_key(&seq))
    }

    /// Sends nothing before all changes are there.
    pub fn defer(&mut self, now: Instant, id: u64, targets: Vec<Target>) {
        if let Some(custody) = self.custodies.get_mut(&id) {
            self.deferred.insert(id);
            custody.deferred = targets;
            custody.dispatch_by = Some(now + DISPATCH_TIMEOUT);
        }
    }

    /// One change is there; the targets to send to, if it was the last.
    pub fn dispatched(
        &mut self,
        id: u64,
        seq: u64,
        changed: Option<Packed>,
    ) -> Option<Vec<Target>> {
        let custody = self.custodies.get_mut(&id)?;
        custody.dispatch_by?;
        *custody.changes.get_mut(&seq)? = changed;
        custody.waits_for = custody.waits_for.saturating_sub(1);
        if custody.waits_for > 0 {
            return None;
        }
        self.deferred.remove(&id);
        Some(custody.end_changes())
    }

    /// Those that have waited for changes long enough, with their targets.
    pub fn expire_dispatch(&mut self, now: Instant) -> Vec<(u64, Vec<Target>)> {
        let mut due = Vec::new();
        let custodies = &mut self.custodies;
        self.deferred.retain(|id| {
            let Some(custody) = custodies.get_mut(id) else { return false };
            let late = custody.dispatch_by.is_none_or(|by| by <= now);
            if late {
                due.push((*id, custody.end_changes()));
            }
            !late
        });
        due
    }

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
                custody.open += 1;
                let targets = targets.to_vec();
                self.transfers
                    .insert(number, Transfer { custody: id, child, link, targets, sent: now });
            }
        }
        for target in plan.unreachable {
            custody.open += 1;
            self.parked.push(Parked { custody: id, target, since, retry: None });
        }
        self.touched.insert(id);
    }

    /// A neighbour tells what became of a transfer.
    pub fn handle_ack(&mut self, now: Instant, from: NodeId, fate: Fate, number: u64) {
        if self.transfers.get(&number).is_none_or(|transfer| transfer.child != from) {
            return;
        }
        let Some(transfer) = self.transfers.remove(&number) else { return };
        if fate == Fate::Busy
            && let Some(custody) = self.custodies.get_mut(&transfer.custody)
        {
            custody.open += transfer.targets.len();
            // If it went in a circle while routes changed: from here it begins anew.
            custody.hop_limit = BCAST_HOPS;
            let retry = Some(now + BUSY_RETRY);
            let custody = transfer.custody;
            let parked = |target: &Target| Parked { custody, target: *target, since: now, retry };
            self.parked.extend(transfer.targets.iter().map(parked));
        }
        self.delivered(transfer.custody);
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
            let Some(transfer) = self.transfers.remove(&number) else { continue };
            self.send_out(now, transfer.custody, &transfer.targets, table, stats);
            self.delivered(transfer.custody);
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
            targets.iter().for_each(|_| self.delivered(custody));
        }
    }

    /// Sends again what is not answered, tries busy neighbours again, and gives up targets that have had no route for too long.
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
        late.iter().for_each(|parked| self.delivered(parked.custody));
    }

    /// When [`Custodies::expire`] or [`Custodies::expire_dispatch`] has something to do.
    pub fn timeout(&self, patience: Duration) -> Option<Instant> {
        let parked = self.parked.iter().map(|p| p.retry.unwrap_or(p.since + patience)).min();
        // The first came first, and all wait equally long.
        let dispatch = self.deferred.first().and_then(|id| self.custodies.get(id)?.dispatch_by);
        let resend = self.transfers.values().next().map(|t| t.sent + resend_after(patience));
        [parked, dispatch, resend].into_iter().flatten().min()
    }

    /// Ends what is complete.
    pub fn settle(&mut self) {
        while let Some(id) = self.touched.pop_first() {
            let done = |custody: &Custody| custody.open == 0 && custody.dispatch_by.is_none();
            if !self.custodies.get(&id).is_some_and(done) {
                continue;
            }
            let Some(custody) = self.custodies.remove(&id) else { continue };
            let len = custody.len;
            self.bytes -= len;
            match custody.parent {
                Parent::Link(parent, number) => {
                    self.acks.entry((parent, Fate::Done)).or_default().push(number);
                }
                Parent::Own => self.own_bytes -= len,
                Parent::Cast => {}
            }
        }
    }

    pub fn poll_transmit(&mut self) -> Option<(NodeId, Packet)> {
        if self.out.is_empty() {
            let ((to, fate), numbers) = self.acks.pop_first()?;
            self.out.extend(BcastAck::packets(fate, &numbers).map(|packet| (to, packet)));
        }
        self.out.pop_front()
    }
}

impl Custody {
    /// Puts the changes in; the targets that waited for them. The bytes that the custody counts for are
    /// those that came.
    fn end_changes(&mut self) -> Vec<Target> {
        self.dispatch_by = None;
        if let Some(messages) = changed(&self.batch, &std::mem::take(&mut self.changes)) {
            self.batch.messages = messages;
        }
        std::mem::take(&mut self.deferred)
    }
}
