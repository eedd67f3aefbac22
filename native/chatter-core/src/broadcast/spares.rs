//! CASTs of others, kept a short while for nodes that miss them.
//!
//! Who has sent a CAST answers the first NAK for it. When somebody asks again, that NAK or its answer got
//! lost, or the sender is gone: then everybody who has it answers after a random time, unless another
//! does so first.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use crate::ids::{Incarnation, NodeId};
use crate::wire::bcast::{Batch, Target};
use crate::wire::cast::{Cast, Gap};

/// CASTs are kept for so long; by then their senders have turned to links.
const KEEP: Duration = Duration::from_secs(1);

/// At most so many bytes of them; the oldest go first.
const MAX_BYTES: usize = 256 * 1024;

/// What one counts for besides its messages.
const OVERHEAD: usize = 512;

/// One is sent again after this to twice this, drawn at random, and so often at most.
const DELAY_US: u64 = 1_000;
const MAX_REPAIRS: u8 = 2;

/// Origin, its life, the last number.
type Key = (NodeId, Incarnation, u64);

struct Spare {
    batch: Batch,
    targets: Vec<Target>,
    /// Who has asked for it.
    asked: BTreeSet<NodeId>,
    /// How often somebody has, since it was last heard.
    times: u32,
    due: Option<Instant>,
    repairs: u8,
}

/// See the [module](self).
pub(super) struct Spares {
    rng: Xoshiro256PlusPlus,
    spares: BTreeMap<Key, Spare>,
    /// In the order in which they came.
    ages: VecDeque<(Instant, Key)>,
    /// Those that are to be sent again, by when.
    due: BTreeSet<(Instant, Key)>,
    bytes: usize,
}

impl Spares {
    pub fn new(me: NodeId, life: Incarnation) -> Self {
        Self {
            rng: Xoshiro256PlusPlus::seed_from_u64(me.0 ^ !life.0),
            spares: BTreeMap::new(),
            ages: VecDeque::new(),
            due: BTreeSet::new(),
            bytes: 0,
        }
    }

    /// A CAST whose last number is `last` was heard: nobody has to send it again now.
    pub fn heard(&mut self, now: Instant, cast: &Cast, last: u64) {
        let Cast { batch, targets } = cast;
        let key = (batch.origin, batch.incarnation, last);
        if let Some(spare) = self.spares.get_mut(&key) {
            spare.times = 0;
            if let Some(at) = spare.due.take() {
                self.due.remove(&(at, key));
            }
            return;
        }
        let (batch, targets) = (batch.clone(), targets.clone());
        self.bytes += batch.messages.len() + OVERHEAD;
        let (asked, times, due, repairs) = (BTreeSet::new(), 0, None, 0);
        self.spares.insert(key, Spare { batch, targets, asked, times, due, repairs });
        self.ages.push_back((now, key));
        self.forget(now);
    }

    /// A node asks for something by multicast.
    pub fn handle_nak(
        &mut self,
        now: Instant,
        from: NodeId,
        origin: NodeId,
        life: Incarnation,
        gap: Gap,
    ) {
        let first = (origin, life, gap.after.saturating_add(1));
        let asked_for = self
            .spares
            .range_mut(first..=(origin, life, u64::MAX))
            .take_while(|(_, spare)| spare.batch.first <= gap.upto);
        for (key, spare) in asked_for {
            if !spare.targets.iter().any(|target| target.id == from) {
                continue;
            }
            spare.asked.insert(from);
            spare.times += 1;
            if spare.times > 1 && spare.repairs < MAX_REPAIRS && spare.due.is_none() {
                let delay = self.rng.random_range(DELAY_US..=2 * DELAY_US);
                let at = now + Duration::from_micros(delay);
                spare.due = Some(at);
                self.due.insert((at, *key));
            }
        }
    }

    /// What is to be sent again now, and to those who have asked for it.
    pub fn poll(&mut self, now: Instant) -> Option<(&Batch, Vec<Target>)> {
        self.forget(now);
        let (_, key) = self.due.first().filter(|(at, _)| *at <= now).copied()?;
        self.due.pop_first();
        let spare = self.spares.get_mut(&key)?;
        (spare.due, spare.times) = (None, 0);
        spare.repairs += 1;
        let asked = std::mem::take(&mut spare.asked);
        let targets = spare.targets.iter().filter(|target| asked.contains(&target.id));
        Some((&spare.batch, targets.copied().collect()))
    }

    /// When there is something to poll.
    pub fn timeout(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    fn forget(&mut self, now: Instant) {
        while let Some((at, key)) = self.ages.front().copied() {
            if self.bytes <= MAX_BYTES && now.saturating_duration_since(at) < KEEP {
                break;
            }
            self.ages.pop_front();
            if let Some(spare) = self.spares.remove(&key) {
                self.bytes -= spare.batch.messages.len() + OVERHEAD;
                if let Some(at) = spare.due {
                    self.due.remove(&(at, key));
                }
            }
        }
    }
}
