//! The allocator of what is not the VM's.
//!
//! Buffers of packets are allocated in one thread and freed in another, many thousand times a second. With
//! the allocator of the C library the one that freed gave pages back to the kernel, and the other one
//! had them faulted in again.

use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Gives free memory back to the kernel, which otherwise happens when more is allocated, if ever: for after
/// a need that will not come again.
pub(crate) fn give_back() {
    // SAFETY: it may be called at any time, by any thread.
    unsafe { libmimalloc_sys::mi_collect(true) };
}
