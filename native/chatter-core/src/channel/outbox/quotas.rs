//! Whose senders are held back: those of flows that have more queued than their share.

use super::Outbox;

/// Senders are held back only while all flows together have so many quotas queued: a backlog of one flow
/// stops no other, and a fast link is not to wait for the sender.
const HOLD_FROM: usize = 8;

/// Flows that may have a whole quota queued each. Of more, each may have less.
const WHOLE_QUOTAS: usize = 64;

impl Outbox {
    /// Flows that are over their quota since this was asked last: their senders are to be held back.
    pub(in crate::channel) fn take_hold(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.hold)
    }

    /// Flows that have got below half of their quota again.
    pub(in crate::channel) fn take_resume(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.resume)
    }

    /// Whether senders are being held back.
    pub(in crate::channel) fn holds_back(&self) -> bool {
        self.held > 0
    }

    /// Whether [`Outbox::take_resume`] has something.
    pub(in crate::channel) fn has_resume(&self) -> bool {
        !self.resume.is_empty()
    }

    /// What a flow may have queued while others have a backlog as well: a quota, or less when they are many,
    /// so that all together stay below the bound of the channel.
    pub(super) fn share(&self) -> usize {
        let backlogs = self.ways[..self.used].iter().map(|way| way.levels.backlogs());
        let many = backlogs.sum::<usize>().max(1);
        self.quota.min(self.quota.saturating_mul(WHOLE_QUOTAS) / many)
    }

    pub(super) fn check_quota(&mut self, slot: u32) {
        let share = self.share();
        let over = self.bytes > self.quota.saturating_mul(HOLD_FROM);
        if let Some(flow) = self.flows.get_mut(slot).filter(|_| over)
            && flow.queued > share
            && !flow.held
        {
            flow.held = true;
            self.held += 1;
            self.counts.held += 1;
            self.hold.push(flow.key);
        }
    }

    /// Less of a flow is queued than before.
    pub(super) fn check_resume(&mut self, slot: u32) {
        let share = self.share();
        let Some(flow) = self.flows.get_mut(slot) else { return };
        if flow.held && flow.queued < share / 2 {
            flow.held = false;
            self.held -= 1;
            self.resume.push(flow.key);
        }
    }
}
