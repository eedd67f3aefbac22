//! What this node is responsible for: messages, kept until all their targets behind it have them.
//! `transfers` sends them to neighbours, and again; `open` tells the node before which few targets are left.

mod open;
mod transfers;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use super::DISPATCH_TIMEOUT;
use super::changes::changed;
use super::payload::Packed;
use crate::ids::{Incarnation, NodeId};
use crate::wire::bcast::{Batch, BcastAck, Fate, Target};
use crate::wire::packet::Packet;
use open::Reports;
use transfers::{Parked, Transfer};

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
    since: Instant,
    /// Targets that came with it, this node among them.
    total: usize,
    /// Messages for this node that are not delivered.
    local: usize,
    /// Targets of datagrams that have not acknowledged.
    casts: usize,
    /// Targets that a neighbour is to reach, or that nothing can be sent to for now.
    behind: usize,
    /// Transfers to neighbours that are not done.
    transfers: Vec<u64>,
    /// Whether the node before was told which targets are open.
    reported: bool,
    /// Numbers of messages that the user may change, and what became of those that it has.
    changes: BTreeMap<u64, Option<Packed>>,
    waits_for: usize,
    deferred: Vec<Target>,
    dispatch_by: Option<Instant>,
}

pub(super) struct Custodies {
    me: NodeId,
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
    reports: Reports,
}

/// What a packet costs besides its messages.
const OVERHEAD: usize = 256;

impl Custodies {
    pub fn new(me: NodeId, life: Incarnation) -> Self {
        Self {
            me,
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
            reports: Reports::default(),
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

    /// Messages for `total` targets, this node among them, have come.
    pub fn add(
        &mut self,
        now: Instant,
        batch: Batch,
        hop_limit: u8,
        parent: Parent,
        total: usize,
    ) -> u64 {
        self.next_custody += 1;
        let len = batch.messages.len() + OVERHEAD;
        self.bytes += len;
        self.own_bytes += if parent == Parent::Own { len } else { 0 };
        let custody = Custody {
            batch,
            len,
            hop_limit,
            parent,
            since: now,
            total,
            local: 0,
            casts: 0,
            behind: 0,
            transfers: Vec::new(),
            reported: false,
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

    /// A message of the custody waits to be delivered here.
    pub fn wait(&mut self, custody: u64) {
        if let Some(custody) = self.custodies.get_mut(&custody) {
            custody.local += 1;
        }
    }

    /// One that waited has been.
    pub fn delivered(&mut self, id: u64) {
        if let Some(custody) = self.custodies.get_mut(&id) {
            custody.local -= 1;
            self.touched.insert(id);
        }
    }

    /// A target of the custody is to acknowledge a datagram.
    pub fn cast(&mut self, custody: u64) {
        if let Some(custody) = self.custodies.get_mut(&custody) {
            custody.casts += 1;
        }
    }

    /// One has, or is left to links.
    pub fn cast_done(&mut self, id: u64) {
        if let Some(custody) = self.custodies.get_mut(&id) {
            custody.casts -= 1;
            self.touched.insert(id);
        }
    }

    /// So many targets have the messages, or are gone, or were sent to again.
    fn done_behind(&mut self, id: u64, targets: usize) {
        if let Some(custody) = self.custodies.get_mut(&id) {
            custody.behind -= targets;
            self.touched.insert(id);
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

    /// Ends what is complete.
    pub fn settle(&mut self) {
        while let Some(id) = self.touched.pop_first() {
            if !self.custodies.get(&id).is_some_and(Custody::is_done) {
                self.report_if_looked_at(id);
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
    fn is_done(&self) -> bool {
        self.local + self.casts + self.behind == 0 && self.dispatch_by.is_none()
    }

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
