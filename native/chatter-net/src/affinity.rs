//! On which processor a thread of a node runs: while there is bulk alone and processors are scarce, on that of
//! the thread of the user which fills its queue, or empties it.
//!
//! What two threads of a node hand to each other then stays in the cache of one processor. Else the kernel
//! spreads the threads of all nodes over the processors as these fall idle for a moment, and each message
//! crosses from one to the other several times on its way. While a processor is free, two that work at the
//! same time are worth more than a cache that they share: so the thread goes where it likes from time to time,
//! and it is looked at how long it has to wait for its turns.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::thread_policy::{self, Processors, Waited};

/// For so long it is looked at how long the thread waits for a processor.
const LOOK: Duration = Duration::from_millis(10);

/// Processors are scarce if it waits for one of so many parts of that.
const SCARCE_PART: u32 = 8;

/// How long that is believed.
const BELIEVED: Duration = Duration::from_millis(200);

/// The user is followed at most so often, and is gone if it has not been seen for so long.
const STEP: Duration = Duration::from_millis(1);
const GONE: Duration = Duration::from_millis(5);

/// Where a thread of the user was last seen, which hands something over or takes it.
#[derive(Default)]
pub(crate) struct LastSeen(AtomicUsize);

impl LastSeen {
    /// The calling thread is one of the user.
    pub(crate) fn here(&self) {
        if let Some(processor) = thread_policy::processor() {
            self.0.store(processor + 1, Ordering::Relaxed);
        }
    }

    /// The processor, if any was seen since this was asked last.
    fn take(&self) -> Option<usize> {
        self.0.swap(0, Ordering::Relaxed).checked_sub(1)
    }
}

/// What there is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Move {
    /// Run on this processor only.
    To(usize),
    /// Run anywhere again.
    Free,
}

#[derive(Clone, Copy)]
enum State {
    /// There is not bulk alone.
    Off,
    /// Runs anywhere. Since then; and how long the thread had waited for a processor, ever, by then.
    Looking { since: Instant, waited: Duration },
    /// Runs where the user was seen. Until then; when that was looked for last, and when it was seen.
    With { processor: usize, until: Instant, looked: Instant, seen: Instant },
}

/// Decides; no system call is made here.
struct Decision(State);

impl Decision {
    /// Data has passed. `waited` tells how long the thread has waited for a processor, ever.
    fn note(
        &mut self,
        now: Instant,
        calm: bool,
        user: impl FnOnce() -> Option<usize>,
        waited: impl FnOnce() -> Duration,
    ) -> Option<Move> {
        let (state, action) = match self.0 {
            State::Off if calm => {
                user();
                (State::Looking { since: now, waited: waited() }, None)
            }
            State::Off => (State::Off, None),
            State::Looking { .. } if !calm => (State::Off, None),
            State::Looking { since, waited: before } => {
                let span = now.saturating_duration_since(since);
                if span < LOOK {
                    return None;
                }
                let waited = waited();
                match user() {
                    Some(processor) if (waited - before.min(waited)) * SCARCE_PART >= span => {
                        let with = State::With {
                            processor,
                            until: now + BELIEVED,
                            looked: now,
                            seen: now,
                        };
                        (with, Some(Move::To(processor)))
                    }
                    _ => (State::Looking { since: now, waited }, None),
                }
            }
            State::With { .. } if !calm => (State::Off, Some(Move::Free)),
            State::With { until, .. } if now >= until => {
                (State::Looking { since: now, waited: waited() }, Some(Move::Free))
            }
            State::With { looked, .. } if now.saturating_duration_since(looked) < STEP => {
                return None;
            }
            State::With { processor, until, seen, .. } => match user() {
                Some(other) => (
                    State::With { processor: other, until, looked: now, seen: now },
                    (other != processor).then_some(Move::To(other)),
                ),
                None if now.saturating_duration_since(seen) < GONE => {
                    (State::With { processor, until, looked: now, seen }, None)
                }
                None => (State::Looking { since: now, waited: waited() }, Some(Move::Free)),
            },
        };
        self.0 = state;
        action
    }

    /// Whether the thread follows a user although no data has passed for long.
    fn is_stale(&self, now: impl FnOnce() -> Instant) -> bool {
        matches!(self.0, State::With { looked, .. } if now().saturating_duration_since(looked) > GONE)
    }
}

/// Keeps the thread that made it where it should be. See the [module](self).
pub(crate) struct Follower {
    user: Arc<LastSeen>,
    /// Where the thread may run.
    allowed: Processors,
    waited: Waited,
    decision: Decision,
}

impl Follower {
    /// `None` where the system does not tell what is needed, or there is no choice.
    pub(crate) fn new(user: Arc<LastSeen>) -> Option<Self> {
        let allowed = Processors::of_this_thread().filter(|allowed| allowed.len() > 1)?;
        Some(Self { user, allowed, waited: Waited::new()?, decision: Decision(State::Off) })
    }

    /// Data has passed through this thread, and it is bulk alone, or not.
    pub(crate) fn note(&mut self, now: Instant, calm: bool) {
        let Self { user, allowed, waited, decision } = self;
        let was_free = !matches!(decision.0, State::With { .. });
        let seen = || user.take().filter(|at| allowed.has(*at));
        if let Some(action) = decision.note(now, calm, seen, || waited.so_far()) {
            self.go(action, was_free);
        }
    }

    fn go(&mut self, action: Move, was_free: bool) {
        // Who runs the node may have said something else since.
        if was_free && let Some(now) = Processors::of_this_thread() {
            self.allowed = now;
        }
        match action {
            Move::To(processor) if self.allowed.has(processor) => {
                thread_policy::run_on(&Processors::only(processor));
            }
            Move::To(_) => {}
            Move::Free => thread_policy::run_on(&self.allowed),
        }
    }

    /// The thread has slept, and may be where it was sent by data that came to an end.
    pub(crate) fn awake(&mut self) {
        if self.decision.is_stale(Instant::now) {
            self.decision = Decision(State::Off);
            thread_policy::run_on(&self.allowed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A thread for which all of the time from `from` to `to` passes with bulk, every tenth of a millisecond;
    /// what it was told to do, and when, in milliseconds from the start.
    struct Thread {
        decision: Decision,
        start: Instant,
        waited: Duration,
    }

    impl Thread {
        fn new() -> Self {
            let start = Instant::now();
            Self { decision: Decision(State::Off), start, waited: Duration::ZERO }
        }

        fn pass(
            &mut self,
            ms: std::ops::Range<u32>,
            share: u32,
            user: Option<usize>,
        ) -> Vec<(u32, Move)> {
            let mut moves = Vec::new();
            for tenth in ms.start * 10..ms.end * 10 {
                let now = self.start + tenth * MS / 10;
                self.waited += MS / 10 * share / 100;
                let waited = self.waited;
                let action = self.decision.note(now, true, || user, || waited);
                moves.extend(action.map(|action| (tenth.div_ceil(10), action)));
            }
            moves
        }
    }

    /// Given bulk and a thread that waits for a quarter of the time, expect it to follow the user, and to be
    /// free again from time to time; and at once when there is not bulk alone any more.
    #[test]
    fn follows_while_processors_are_scarce() {
        let mut thread = Thread::new();
        assert_eq!(thread.pass(0..150, 25, Some(3)), [(10, Move::To(3))]);
        assert_eq!(thread.pass(150..152, 25, Some(1)), [(150, Move::To(1))]);
        assert_eq!(thread.pass(152..215, 25, Some(1)), [(210, Move::Free)]);
        assert_eq!(thread.pass(215..225, 25, Some(1)), [(220, Move::To(1))]);
        let now = thread.start + 225 * MS;
        assert_eq!(thread.decision.note(now, false, || Some(1), || MS), Some(Move::Free));
        assert_eq!(thread.decision.note(now, false, || Some(1), || MS), None);
    }

    /// Given bulk and a thread that hardly waits, expect it to be left alone; and a user that is followed to
    /// be given up when it is not seen any more.
    #[test]
    fn is_free_while_there_are_processors() {
        let mut thread = Thread::new();
        assert_eq!(thread.pass(0..500, 5, Some(3)), []);
        assert_eq!(thread.pass(500..520, 50, Some(3)).len(), 1);
        let now = thread.start + 520 * MS;
        assert!(!thread.decision.is_stale(|| now), "data has just passed");
        assert!(thread.decision.is_stale(|| now + 2 * GONE), "it has long been over");
        let moves = thread.pass(520..540, 50, None);
        assert!(matches!(moves[..], [(524..=526, Move::Free)]), "{moves:?}");
        assert_eq!(thread.pass(540..600, 50, None), [], "nobody to follow");
    }

    /// Given more threads than processors, all busy, expect one through which bulk passes to be sent to the
    /// processor of its user; and to be free again when it has slept without any.
    #[test]
    fn a_thread_among_many_runs_where_its_user_does() {
        let over = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let user = Arc::<LastSeen>::default();
        let Some(mut follower) = Follower::new(user.clone()) else {
            return eprintln!(
                "this system has one processor, or does not tell how long threads wait"
            );
        };
        let all = follower.allowed.len();
        let at = (0..1024).filter(|n| follower.allowed.has(*n)).nth(1).unwrap();
        let busy = (0..2 * all).map(|n| {
            let (over, user) = (over.clone(), user.clone());
            std::thread::spawn(move || {
                if n == 0 {
                    thread_policy::run_on(&Processors::only(at));
                }
                while !over.load(Ordering::Relaxed) {
                    if n == 0 {
                        user.here();
                    }
                    std::hint::black_box(n);
                }
            })
        });
        let busy: Vec<_> = busy.collect();
        let began = Instant::now();
        let is_with =
            || Processors::of_this_thread().is_some_and(|now| now.len() == 1 && now.has(at));
        while !is_with() && began.elapsed() < Duration::from_secs(20) {
            follower.note(Instant::now(), true);
        }
        let was_with = is_with();
        over.store(true, Ordering::Relaxed);
        std::thread::sleep(2 * GONE);
        follower.awake();
        busy.into_iter().for_each(|thread| thread.join().unwrap());
        assert!(was_with, "it waits for turns, and the user is seen");
        assert_eq!(Processors::of_this_thread().unwrap().len(), all);
    }

    /// Given a node whose threads were bound to other processors while it ran, expect that to be kept.
    #[test]
    fn the_operator_has_the_last_word() {
        std::thread::spawn(|| {
            let Some(mut follower) = Follower::new(Arc::default()) else {
                return eprintln!(
                    "this system has one processor, or does not tell how long threads wait"
                );
            };
            let mut all = (0..1024).filter(|n| follower.allowed.has(*n));
            let (first, second) = (all.next().unwrap(), all.next().unwrap());
            let is_at =
                |at| Processors::of_this_thread().is_some_and(|now| now.len() == 1 && now.has(at));
            thread_policy::run_on(&Processors::only(first));
            follower.go(Move::To(second), true);
            assert!(is_at(first), "the other one is not allowed any more");
            follower.go(Move::Free, false);
            assert!(is_at(first), "nor are all");
        })
        .join()
        .unwrap();
    }
}
