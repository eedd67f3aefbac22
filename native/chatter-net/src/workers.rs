//! The threads of a node: each runs a single-threaded runtime of its own, and every link lives on one
//! of them.
//!
//! A shared, work-stealing runtime would hand a socket that became readable from the thread that
//! polls to another one; on the way of a message that hop costs more than everything else here.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Handle};
use tokio::sync::{Notify, oneshot};

use crate::affinity::{Follower, LastSeen};
use crate::pace::Pace;
use crate::thread_policy;

/// The threads of a node.
pub(crate) struct Workers {
    handles: Vec<Handle>,
    next: AtomicUsize,
    user: Arc<LastSeen>,
}

/// What ends the threads; kept apart, since only the one who stops the node may use it.
pub(crate) struct Stopper {
    stops: Vec<oneshot::Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Starts `count` threads, which poll for `busy_poll` after something has come in.
    pub(crate) fn start(count: usize, busy_poll: Duration) -> io::Result<(Self, Stopper)> {
        let mut handles = Vec::with_capacity(count);
        let mut stopper = Stopper { stops: Vec::new(), threads: Vec::new() };
        let user = Arc::<LastSeen>::default();
        for n in 0..count.max(1) {
            let runtime =
                Builder::new_current_thread().enable_all().on_thread_unpark(note_awake).build()?;
            handles.push(runtime.handle().clone());
            let (stop, stopped) = oneshot::channel();
            stopper.stops.push(stop);
            let thread = std::thread::Builder::new().name(format!("chatter-{n}"));
            let poller = BusyPoll::new(busy_poll);
            let user = user.clone();
            stopper.threads.push(thread.spawn(move || {
                POLLER.set(Some(poller.clone()));
                POLICY.set(thread_policy::is_normal().then(|| Policy::new(user)));
                runtime.spawn(poller.run());
                // Ends, and with it all tasks of this thread, when told to or when nobody could tell.
                let _ = runtime.block_on(stopped);
            })?);
        }
        Ok((Self { handles, next: AtomicUsize::new(0), user }, stopper))
    }

    /// The thread of the control plane and of everything that is not a link.
    pub(crate) fn main(&self) -> &Handle {
        &self.handles[0]
    }

    /// Where the user was last seen; for who is called by it.
    pub(crate) fn user(&self) -> &Arc<LastSeen> {
        &self.user
    }

    /// The thread for the next link. The control plane's comes last: it has work of its own.
    pub(crate) fn for_link(&self) -> &Handle {
        let n = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        &self.handles[n % self.handles.len()]
    }
}

impl Stopper {
    /// Ends all threads and waits for them. Not for a thread of the node.
    pub(crate) fn stop(self) {
        drop(self.stops);
        for thread in self.threads {
            // A panic there has been reported by its task already.
            thread.join().ok();
        }
    }
}

thread_local! {
    static POLLER: RefCell<Option<Arc<BusyPoll>>> = const { RefCell::new(None) };
    /// Of the threads of a node whose policy may be changed.
    static POLICY: RefCell<Option<Policy>> = const { RefCell::new(None) };
}

/// How the kernel is to treat a thread of a node, by what passes through it.
struct Policy {
    pace: Pace,
    follower: Option<Follower>,
}

impl Policy {
    fn new(user: Arc<LastSeen>) -> Self {
        Self { pace: Pace::new(Instant::now()), follower: Follower::new(user) }
    }
}

/// Polls sockets for a short while after something has come in, before the thread goes to sleep.
///
/// Traffic comes in bursts and answers follow questions: whoever was just busy will soon be again.
/// Waking a sleeping thread takes 10 µs and more where the processor has to be told by an interrupt
/// (ARCHITECTURE.md has the figures); the BEAM's schedulers spin for the same reason. Others that want
/// the processor get it: every round yields.
struct BusyPoll {
    span: Duration,
    base: Instant,
    /// Until when to poll, in µs since `base`.
    until_us: AtomicU64,
    /// Until when not to poll, likewise.
    paused_us: AtomicU64,
    polling: AtomicBool,
    wake: Notify,
}

/// Whoever gets the processor for so long when we yield has work to do. Then a sleeping thread, which
/// takes the processor over when it is woken, is sooner there than one that waits for its turn again:
/// polling pauses.
const CONTENDED_US: u64 = 250;
const PAUSE_US: u64 = 20_000;

impl BusyPoll {
    fn new(span: Duration) -> Arc<Self> {
        Arc::new(Self {
            span,
            base: Instant::now(),
            until_us: AtomicU64::new(0),
            paused_us: AtomicU64::new(0),
            polling: AtomicBool::new(false),
            wake: Notify::new(),
        })
    }

    fn now_us(&self) -> u64 {
        self.base.elapsed().as_micros() as u64
    }

    fn note(&self) {
        let now = self.now_us();
        if now < self.paused_us.load(Ordering::Relaxed) {
            return;
        }
        self.until_us.store(now + self.span.as_micros() as u64, Ordering::Relaxed);
        if !self.polling.swap(true, Ordering::Relaxed) {
            self.wake.notify_one();
        }
    }

    /// A task that is ready whenever nothing else is: so the runtime looks at its sockets again
    /// instead of sleeping.
    async fn run(self: Arc<Self>) {
        loop {
            self.wake.notified().await;
            let mut now = self.now_us();
            while now < self.until_us.load(Ordering::Relaxed) {
                tokio::task::yield_now().await;
                let before = self.now_us();
                std::thread::yield_now();
                now = self.now_us();
                if now - before > CONTENDED_US {
                    self.paused_us.store(now + PAUSE_US, Ordering::Relaxed);
                    break;
                }
            }
            self.polling.store(false, Ordering::Relaxed);
        }
    }
}

/// Data has passed through this thread, if it is one of a node, and some of it was pressing, or none.
///
/// While there is bulk alone the thread waits for its turn when it is woken. Else it would take the processor
/// from those that fill the queue it is to empty, or empty the one that it is to fill, for every little that
/// they do. And it may have to run where these do.
pub(crate) fn note_pace(now: Instant, pressing: bool) {
    POLICY.with_borrow_mut(|policy| {
        let Some(Policy { pace, follower }) = policy else { return };
        if let Some(calm) = pace.note(now, pressing) {
            thread_policy::set_batch(calm);
        }
        if let Some(follower) = follower {
            follower.note(now, pace.is_calm());
        }
    });
}

/// This thread has slept.
fn note_awake() {
    POLICY.with_borrow_mut(|policy| {
        if let Some(follower) = policy.as_mut().and_then(|policy| policy.follower.as_mut()) {
            follower.awake();
        }
    });
}

/// Something has come in on this thread.
pub(crate) fn note_activity() {
    POLLER.with_borrow(|poller| {
        if let Some(poller) = poller
            && !poller.span.is_zero()
        {
            poller.note();
        }
    });
}
