//! Binaries of the VM that are sent from where they are: a term of its own keeps each alive, and the
//! VM never moves or changes the bytes of a binary that has a second reference.

use bytes::Bytes;
use rustler::{Binary, OwnedEnv};

/// Below this length a copy is cheaper than a reference.
const PIN_MIN: usize = 4 * 1024;

struct Pinned {
    /// Holds a reference to the binary; its other parts are never looked at again.
    _env: OwnedEnv,
    bytes: *const [u8],
}

// SAFETY: the bytes are immutable and live as long as `_env`; an environment that belongs to no process
// may be freed on any thread.
unsafe impl Send for Pinned {}

impl AsRef<[u8]> for Pinned {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `_env` keeps the binary alive as long as `self`.
        unsafe { &*self.bytes }
    }
}

/// The bytes of a binary, without copying them if they are many.
pub(crate) fn bytes(binary: &Binary<'_>) -> Bytes {
    if binary.len() < PIN_MIN {
        return Bytes::copy_from_slice(binary.as_slice());
    }
    let env = OwnedEnv::new();
    let bytes = env.run(|inner| {
        // A reference, not a copy: binaries of this size are reference-counted.
        let term = binary.to_term(inner);
        Binary::from_term(term).map(|copy| copy.as_slice() as *const [u8])
    });
    match bytes {
        Ok(bytes) => Bytes::from_owner(Pinned { _env: env, bytes }),
        Err(_) => Bytes::copy_from_slice(binary.as_slice()),
    }
}
