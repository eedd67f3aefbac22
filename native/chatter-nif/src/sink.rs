//! What a channel has received, on its way to the BEAM.
//!
//! Frames wait here, bounded by the channel's credit, until the input process fetches them; it is
//! told once that there are some. They become binaries in its own call: on a scheduler, whose
//! allocators need no lock, each an exact-size binary of its own.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use chatter_core::channel::receive::Sink;
use chatter_core::wire::data::ResetReason;
use chatter_net::host::ChannelSink;
use rustler::{Atom, Encoder, LocalPid, NewBinary, OwnedBinary, OwnedEnv, Term};

use crate::atoms;
use crate::host::BeamChannel;
use crate::waiting::{Taken, Waiting};

/// What all frames that are not whole may have reserved before their bytes have come, and what one has in
/// any case. More than that grows as the bytes come: a peer may announce anything.
const RESERVED: usize = 64 * 1024 * 1024;
const RESERVED_LEAST: usize = 64 * 1024;

/// Senders that are told apart of those whose frames one read shows to be lost; the rest are one.
const MAX_LOSSES: usize = 256;

/// A frame that is being put together.
struct Assembly {
    binary: OwnedBinary,
    /// How long the binary was at first.
    reserved: usize,
    filled: usize,
    /// How long it is to become, as far as is known.
    total: usize,
}

impl Assembly {
    fn new(total: usize, reserve: usize) -> Self {
        let reserved = total.min(reserve.max(RESERVED_LEAST));
        Self { binary: OwnedBinary::new(reserved), reserved, filled: 0, total }
    }

    /// Adds a part.
    fn push(&mut self, part: &[u8]) {
        let end = self.filled + part.len();
        if end > self.binary.len() {
            self.binary.realloc_or_copy((2 * self.binary.len()).min(self.total).max(end));
        }
        self.binary.as_mut_slice()[self.filled..end].copy_from_slice(part);
        self.filled = end;
    }

    /// Changes what has been added.
    fn fix(&mut self, at: usize, bytes: &[u8]) {
        if let Some(old) = self.binary.as_mut_slice().get_mut(at..at + bytes.len()) {
            old.copy_from_slice(bytes);
        }
    }

    /// All of it. The VM must not get a byte more: it compares the length of what is in a frame with that of
    /// the binary to decide whether to copy it.
    fn into_binary(mut self) -> OwnedBinary {
        if self.filled < self.binary.len() {
            self.binary.realloc_or_copy(self.filled);
        }
        self.binary
    }
}

/// See the [module](self).
pub(crate) struct BeamSink {
    host: Arc<BeamChannel>,
    env: OwnedEnv,
    input: Option<LocalPid>,
    owner: Option<LocalPid>,
    waiting: Waiting,
    /// The input process has been told and has not fetched everything since.
    told: bool,
    handshakes: Vec<(Vec<u8>, u64)>,
    /// Frames that are being put together, by flow.
    assemblies: HashMap<Option<u32>, Assembly>,
    /// What these have reserved at first.
    reserved: usize,
    /// Frames that were lost for good since the owner of the node was told of them, by sender.
    losses: BTreeMap<u64, u64>,
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
            waiting: Waiting::default(),
            told: true,
            handshakes: Vec::new(),
            assemblies: HashMap::new(),
            reserved: 0,
            losses: BTreeMap::new(),
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

    /// Moves the next frames that wait into an empty `taken`; tells why the channel is over, if it is and
    /// nothing is left. When nothing is left, the input process will be told of the next frames.
    pub(crate) fn take(&mut self, taken: &mut Taken) -> (bool, Option<ResetReason>) {
        taken.refill(&mut self.waiting);
        let more = !self.waiting.is_empty();
        self.told = more;
        (more, self.closed.filter(|_| !more))
    }
}

/// Why a channel ended, for who fetches from it: whether the life of the other node was given up or is
/// over, which all nodes see by themselves, or this channel alone has ended.
pub(crate) fn fetched_end(reason: ResetReason) -> Atom {
    match reason {
        ResetReason::Unknown
        | ResetReason::Unreachable
        | ResetReason::Restarted
        | ResetReason::Stopped => atoms::node_gone(),
        _ => reason_atom(reason),
    }
}

/// Why a channel ended, as nodedown will give it.
pub(crate) fn reason_atom(reason: ResetReason) -> Atom {
    match reason {
        // A node that is gone ends its connections as if its sockets had been closed.
        ResetReason::Closed
        | ResetReason::Unknown
        | ResetReason::Unreachable
        | ResetReason::Restarted
        | ResetReason::Stopped => atoms::connection_closed(),
        ResetReason::Refused => atoms::connection_refused(),
        ResetReason::Protocol => atoms::protocol_error(),
        ResetReason::Lost => atoms::packets_lost(),
        ResetReason::Unused => atoms::unused(),
    }
}

impl Sink for BeamSink {
    fn frame(&mut self, flow: Option<u32>, frame: &[u8], cost: u64) {
        self.waiting.push(flow, frame, cost);
    }

    fn frame_start(&mut self, flow: Option<u32>, total: usize) {
        let assembly = Assembly::new(total, RESERVED.saturating_sub(self.reserved));
        self.reserved += assembly.reserved;
        self.assemblies.insert(flow, assembly);
    }

    fn frame_part(&mut self, flow: Option<u32>, part: &[u8]) {
        if let Some(assembly) = self.assemblies.get_mut(&flow) {
            assembly.push(part);
        }
    }

    fn frame_fix(&mut self, flow: Option<u32>, at: usize, bytes: &[u8]) {
        if let Some(assembly) = self.assemblies.get_mut(&flow) {
            assembly.fix(at, bytes);
        }
    }

    fn frame_end(&mut self, flow: Option<u32>, cost: u64) {
        if let Some(assembly) = self.assemblies.remove(&flow) {
            self.reserved -= assembly.reserved;
            self.waiting.push_large(flow, assembly.into_binary(), cost);
        }
    }

    fn handshake(&mut self, message: &[u8], cost: u64) {
        self.handshakes.push((message.to_vec(), cost));
    }

    fn lost(&mut self, sender: u64) {
        let known = self.losses.len() < MAX_LOSSES || self.losses.contains_key(&sender);
        *self.losses.entry(if known { sender } else { 0 }).or_default() += 1;
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
        if !self.losses.is_empty() {
            self.host.lost(std::mem::take(&mut self.losses));
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
