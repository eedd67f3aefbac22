//! How, and where, the kernel schedules the thread that calls (sched(7)). Linux only; elsewhere nothing happens.

use std::fs::File;
use std::time::Duration;

/// Whether the thread is scheduled as most are: other policies are somebody's choice, and stay.
pub(crate) fn is_normal() -> bool {
    #[cfg(target_os = "linux")]
    // SAFETY: no memory is involved; 0 is the calling thread.
    return unsafe { libc::sched_getscheduler(0) } == libc::SCHED_OTHER;
    #[cfg(not(target_os = "linux"))]
    false
}

/// Has the thread, when it is woken, wait for its turn (`SCHED_BATCH`) instead of taking the processor from
/// another one that is at work, or not any longer. Needs no privilege; should it fail, nothing changes.
pub(crate) fn set_batch(batch: bool) {
    #[cfg(target_os = "linux")]
    {
        let policy = if batch { libc::SCHED_BATCH } else { libc::SCHED_OTHER };
        let param = libc::sched_param { sched_priority: 0 };
        // SAFETY: `param` is read, and lives as long as the call; 0 is the calling thread.
        unsafe { libc::sched_setscheduler(0, policy, &raw const param) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = batch;
}

/// The number of the processor that the calling thread runs on.
pub(crate) fn processor() -> Option<usize> {
    #[cfg(target_os = "linux")]
    // SAFETY: no memory is involved.
    return usize::try_from(unsafe { libc::sched_getcpu() }).ok();
    #[cfg(not(target_os = "linux"))]
    None
}

/// A set of processors.
pub(crate) struct Processors(#[cfg(target_os = "linux")] libc::cpu_set_t);

#[cfg(target_os = "linux")]
impl Processors {
    /// Where the calling thread may run.
    pub(crate) fn of_this_thread() -> Option<Self> {
        let mut this = Self::none();
        // SAFETY: the set is written, and is as large as is said; 0 is the calling thread.
        let got =
            unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut this.0) };
        (got == 0).then_some(this)
    }

    fn none() -> Self {
        // SAFETY: it is an array of integers, for which zero is a value: no processor.
        Self(unsafe { std::mem::zeroed() })
    }

    /// This processor alone, of the first 1,024; of none if it is not one of these.
    pub(crate) fn only(processor: usize) -> Self {
        let mut this = Self::none();
        if processor < libc::CPU_SETSIZE as usize {
            // SAFETY: the number is within the set.
            unsafe { libc::CPU_SET(processor, &mut this.0) };
        }
        this
    }

    pub(crate) fn has(&self, processor: usize) -> bool {
        // SAFETY: the number is within the set.
        processor < libc::CPU_SETSIZE as usize && unsafe { libc::CPU_ISSET(processor, &self.0) }
    }

    /// How many processors.
    pub(crate) fn len(&self) -> usize {
        // SAFETY: the set is read.
        unsafe { libc::CPU_COUNT(&self.0) as usize }
    }
}

#[cfg(not(target_os = "linux"))]
impl Processors {
    pub(crate) fn of_this_thread() -> Option<Self> {
        None
    }

    pub(crate) fn only(_processor: usize) -> Self {
        Self()
    }

    pub(crate) fn has(&self, _processor: usize) -> bool {
        false
    }

    pub(crate) fn len(&self) -> usize {
        0
    }
}

/// Has the calling thread run on these processors only. Needs no privilege; should it fail, as for a
/// processor that is gone, nothing changes.
pub(crate) fn run_on(processors: &Processors) {
    #[cfg(target_os = "linux")]
    // SAFETY: the set is read, and is as large as is said; 0 is the calling thread.
    unsafe {
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const processors.0);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = processors;
}

/// How long the thread that made it has waited for a processor, although it could have run: the second number
/// of `/proc/thread-self/schedstat`.
pub(crate) struct Waited(File);

impl Waited {
    /// `None` where the system does not tell.
    pub(crate) fn new() -> Option<Self> {
        let this = Self(File::open("/proc/thread-self/schedstat").ok()?);
        this.read().map(|_| this)
    }

    /// Since the thread began.
    pub(crate) fn so_far(&self) -> Duration {
        self.read().unwrap_or_default()
    }

    fn read(&self) -> Option<Duration> {
        #[cfg(unix)]
        {
            let mut text = [0; 64];
            let len = std::os::unix::fs::FileExt::read_at(&self.0, &mut text, 0).ok()?;
            let text = std::str::from_utf8(&text[..len]).ok()?;
            text.split_whitespace().nth(1)?.parse().ok().map(Duration::from_nanos)
        }
        #[cfg(not(unix))]
        None
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// Given a thread, expect that its policy can be changed and changed back.
    #[test]
    fn the_policy_goes_back_and_forth() {
        // Not the thread of the test: somebody may have started all of them with another policy.
        std::thread::spawn(|| {
            set_batch(false);
            assert!(is_normal());
            set_batch(true);
            assert!(!is_normal());
            set_batch(false);
            assert!(is_normal());
        })
        .join()
        .unwrap();
    }

    /// Given a thread that is sent to one processor, expect it to be there, and to be allowed elsewhere again
    /// afterwards.
    #[test]
    fn a_thread_goes_where_it_is_sent() {
        std::thread::spawn(|| {
            let allowed = Processors::of_this_thread().unwrap();
            let first = (0..1024).find(|n| allowed.has(*n)).unwrap();
            run_on(&Processors::only(first));
            assert_eq!(processor(), Some(first));
            assert_eq!(Processors::of_this_thread().unwrap().len(), 1);
            run_on(&allowed);
            assert_eq!(Processors::of_this_thread().unwrap().len(), allowed.len());
        })
        .join()
        .unwrap();
    }

    /// Given two threads that share a processor, expect each to have waited while the other ran.
    #[test]
    fn who_shares_a_processor_waits() {
        if Waited::new().is_none() {
            return eprintln!("this system does not tell how long threads wait");
        }
        let allowed = Processors::of_this_thread().unwrap();
        let first = (0..1024).find(|n| allowed.has(*n)).unwrap();
        let busy = move || {
            run_on(&Processors::only(first));
            let waited = Waited::new().unwrap();
            let (before, began) = (waited.so_far(), std::time::Instant::now());
            while began.elapsed() < Duration::from_millis(200) {}
            waited.so_far() - before
        };
        let threads = [std::thread::spawn(busy), std::thread::spawn(busy)];
        let waited: Duration = threads.map(|thread| thread.join().unwrap()).into_iter().sum();
        assert!(waited > Duration::from_millis(100), "{waited:?} of 200 ms each");
    }
}
