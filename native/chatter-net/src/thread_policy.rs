//! How the kernel schedules the thread that calls (sched(7)). Linux only; elsewhere nothing happens.

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
}
