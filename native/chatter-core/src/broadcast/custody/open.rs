//! Telling the node before which few targets are left.
//!
//! A target that is gone is waited for by every node on the way to it, up to the origin, until it is given
//! up. Should one of these die meanwhile, the node before it sends again to all targets behind it that it
//! knows nothing of. So it is told that nearly all of them have the messages.

use std::time::{Duration, Instant};

use super::{Custodies, Custody, Parent};
use crate::ids::NodeId;
use crate::wire::bcast::BcastAck;

/// Messages that are kept for so long have something in their way.
const LOOK_AFTER: Duration = Duration::from_millis(300);

/// The node before is told when at most one in so many targets is open, or a single one.
const FEW: usize = 8;

/// Up to which custody all that are left have been looked at.
#[derive(Default)]
pub(super) struct Reports {
    looked_at: u64,
}

impl Custodies {
    /// Looks at what has been kept for long.
    pub(super) fn look(&mut self, now: Instant) {
        while let Some((id, _)) = self.next_to_look_at().filter(|(_, at)| *at <= now) {
            self.reports.looked_at = id;
            self.report(id);
        }
    }

    /// When there is something to look at.
    pub(super) fn next_look(&self) -> Option<Instant> {
        self.next_to_look_at().map(|(_, at)| at)
    }

    // They are numbered in the order of their times.
    fn next_to_look_at(&self) -> Option<(u64, Instant)> {
        let (id, custody) = self.custodies.range(self.reports.looked_at + 1..).next()?;
        Some((*id, custody.since + LOOK_AFTER))
    }

    /// Fewer targets of a custody are open than before.
    pub(super) fn report_if_looked_at(&mut self, id: u64) {
        if id <= self.reports.looked_at {
            self.report(id);
        }
    }

    /// Tells which targets are open, if they are few and it was not told.
    fn report(&mut self, id: u64) {
        let Some(custody) = self.custodies.get_mut(&id) else { return };
        let Parent::Link(parent, number) = custody.parent else { return };
        if custody.reported || !custody.is_nearly_done() {
            return;
        }
        custody.reported = true;
        let mut open: Vec<NodeId> = Vec::with_capacity(custody.open());
        open.extend((custody.local > 0).then_some(self.me));
        let transfers = custody.transfers.iter().filter_map(|number| self.transfers.get(number));
        open.extend(transfers.flat_map(|transfer| &transfer.targets).map(|target| target.id));
        let parked = self.parked.iter().filter(|parked| parked.custody == id);
        open.extend(parked.map(|parked| parked.target.id));
        self.out.push_back((parent, BcastAck::open_packet(number, &open)));
    }
}

impl Custody {
    fn open(&self) -> usize {
        self.behind + usize::from(self.local > 0)
    }

    /// What waits for datagrams or for the user is not looked at: it is sent over links soon, or done.
    fn is_nearly_done(&self) -> bool {
        let few = (self.total / FEW).max(1);
        let open = self.open();
        let waits = self.casts > 0 || self.dispatch_by.is_some();
        open > 0 && open <= few && open < self.total && !waits
    }
}
