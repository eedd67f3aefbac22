//! What a channel has received, on its way to the BEAM.
//!
//! Frames wait here, bounded by the channel's credit, until the input process fetches them; it is
//! told once that there are some. They become binaries in its own call: on a scheduler, whose
//! allocators need no lock, each an exact-size binary of its own.

use std::collections::VecDeque;
use std::sync::Arc;

use chatter_core::channel::receive::Sink;
use chatter_core::wire::data::ResetReason;
use chatter_net::host::ChannelSink;
use rustler::{Atom, Encoder, Env, LocalPid, NewBinary, OwnedBinary, OwnedEnv, Term};

use crate::atoms;
use crate::host::BeamChannel;

/// A frame that waits: small ones share a buffer until their binaries are made.
enum Frame {
    Small { start: usize, len: usize },
    Large(OwnedBinary),
}

/// Frames from this length on are put into a binary of their own at once: copying twice would cost
/// more than a lock.
const LARGE: usize = 8 * 1024;

/// Bytes of small frames, and frames, that one call turns into binaries: well below a millisecond.
const FETCH_BYTES: usize = 256 * 1024;
const FETCH_FRAMES: usize = 256;

/// Frames that the input process has taken and not yet turned into binaries.
#[derive(Default)]
pub(crate) struct Taken {
    frames: VecDeque<(Frame, u64)>,
    small: Vec<u8>,
}

impl Taken {
    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Turns the next frames into binaries; also gives their cost.
    pub(crate) fn fetch<'a>(&mut self, env: Env<'a>) -> (Vec<Term<'a>>, u64) {
        let mut frames = Vec::with_capacity(self.frames.len().min(FETCH_FRAMES));
        let (mut bytes, mut total_cost) = (0, 0);
        while bytes < FETCH_BYTES && frames.len() < FETCH_FRAMES {
            let Some((frame, cost)) = self.frames.pop_front() else { break };
            total_cost += cost;
            frames.push(match frame {
                Frame::Small { start, len } => {
                    bytes += len;
                    NewBinary::from_slice(env, &self.small[start..start + len]).into()
                }
                Frame::Large(binary) => binary.release(env).to_term(env),
            });
        }
        (frames, total_cost)
    }
}

/// What is reserved for a frame before its bytes have come: all of a fragment of the VM, but not what
/// a peer only announces.
const ASSEMBLY_START: usize = 1024 * 1024;

/// A frame that is being put together.
struct Assembly {
    binary: OwnedBinary,
    filled: usize,
    total: usize,
}

impl Assembly {
    /// Adds a part; the receiver has checked that the parts make up no more than the total.
    fn push(&mut self, part: &[u8]) {
        let end = self.filled + part.len();
        if end > self.binary.len() {
            self.binary.realloc_or_copy((2 * self.binary.len()).max(end).min(self.total));
        }
        self.binary.as_mut_slice()[self.filled..end].copy_from_slice(part);
        self.filled = end;
    }
}

/// See the [module](self).
pub(crate) struct BeamSink {
    host: Arc<BeamChannel>,
    env: OwnedEnv,
    input: Option<LocalPid>,
    owner: Option<LocalPid>,
    waiting: Taken,
    /// The input process has been told and has not fetched everything since.
    told: bool,
    handshakes: Vec<(Vec<u8>, u64)>,
    assembly: Option<Assembly>,
    closed: Option<ResetReason>,
}

impl BeamSink {
    /// Tells the input process that there is something to fetch, unless it knows.
    fn tell(&mut self) {
        if let Some(input) = self.input
            && !self.told
        {
            self.told = true;
            // Not a bare atom: a message without a heap is freed by the receiver at once, and since this
            // thread has allocated it, by waking a further thread each time; others go with the next
            // garbage collection, many together. A dead input process takes the channel with it.
            let index = self.host.index();
            let _ = self.env.run(|env| env.send(&input, (atoms::chatter_ready(), index)));
            self.env.clear();
        }
    }

    pub(crate) fn new(host: Arc<BeamChannel>) -> Self {
        Self {
            host,
            env: OwnedEnv::new(),
            input: None,
            owner: None,
            waiting: Taken::default(),
            told: true,
            handshakes: Vec::new(),
            assembly: None,
            closed: None,
        }
    }

    /// The process that takes the handshake; returns what has come so far, or that it is over.
    pub(crate) fn set_owner(&mut self, owner: LocalPid) -> Result<Vec<(Vec<u8>, u64)>, Atom> {
        self.owner = Some(owner);
        match self.closed {
            Some(reason) => Err(reason_atom(reason)),
            None => Ok(std::mem::take(&mut self.handshakes)),
        }
    }

    /// The process that fetches frames; it counts as told.
    pub(crate) fn set_input(&mut self, input: LocalPid) {
        self.input = Some(input);
        self.told = true;
    }

    /// Exchanges all frames that wait against an empty `taken`; tells why the channel is over, if it
    /// is. The input process will be told of the next frames.
    pub(crate) fn take(&mut self, taken: &mut Taken) -> Option<ResetReason> {
        taken.small.clear();
        std::mem::swap(&mut self.waiting, taken);
        self.told = false;
        self.closed
    }
}

/// Why a channel ended, as nodedown will give it.
pub(crate) fn reason_atom(reason: ResetReason) -> Atom {
    match reason {
        // A node that is gone ends its connections as if its sockets had been closed.
        ResetReason::Closed
        | ResetReason::Unknown
        | ResetReason::Unreachable
        | ResetReason::Restarted => atoms::connection_closed(),
        ResetReason::Refused => atoms::connection_refused(),
        ResetReason::Protocol => atoms::protocol_error(),
        ResetReason::Lost => atoms::packets_lost(),
    }
}

impl Sink for BeamSink {
    fn frame(&mut self, frame: &[u8], cost: u64) {
        let frame = if frame.len() >= LARGE {
            Frame::Large(OwnedBinary::from_slice(frame))
        } else {
            let start = self.waiting.small.len();
            self.waiting.small.extend_from_slice(frame);
            Frame::Small { start, len: frame.len() }
        };
        self.waiting.frames.push_back((frame, cost));
    }

    fn frame_start(&mut self, total: usize) {
        let binary = OwnedBinary::new(total.min(ASSEMBLY_START));
        self.assembly = Some(Assembly { binary, filled: 0, total });
    }

    fn frame_part(&mut self, part: &[u8]) {
        if let Some(assembly) = &mut self.assembly {
            assembly.push(part);
        }
    }

    fn frame_end(&mut self, cost: u64) {
        if let Some(assembly) = self.assembly.take() {
            self.waiting.frames.push_back((Frame::Large(assembly.binary), cost));
        }
    }

    fn handshake(&mut self, message: &[u8], cost: u64) {
        self.handshakes.push((message.to_vec(), cost));
    }
}

impl ChannelSink for BeamSink {
    fn flush(&mut self) {
        if let Some(owner) = self.owner {
            let index = self.host.index();
            for (message, cost) in self.handshakes.drain(..) {
                // A dead owner takes the channel with it.
                let _ = self.env.send_and_clear(&owner, |env| {
                    let message: Term = NewBinary::from_slice(env, &message).into();
                    (atoms::chatter(), index, (atoms::handshake(), message, cost)).encode(env)
                });
            }
        }
        if !self.waiting.is_empty() {
            self.tell();
        }
    }

    fn closed(&mut self, reason: ResetReason) {
        if self.closed.is_some() {
            return;
        }
        self.closed = Some(reason);
        let reason = reason_atom(reason);
        // The input process finds out when it has fetched everything: it ends the connection then.
        if self.input.is_some() {
            self.tell();
        } else if let Some(owner) = self.owner {
            let index = self.host.index();
            let _ = self.env.send_and_clear(&owner, |env| {
                (atoms::chatter(), index, (atoms::closed(), reason)).encode(env)
            });
        }
    }

    fn as_any_mut(&mut self) -> &mut dyn std::any::Any {
        self
    }
}
