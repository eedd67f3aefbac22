//! What a channel has received, on its way to the BEAM: collected during a read, then one message to
//! the input process with all frames, each an exact-size binary of its own.
//!
//! Until the input process is there, frames wait here; the channel's credit bounds them.

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

/// Frames from this length on are put into a binary of their own at once.
const LARGE: usize = 4 * 1024;

/// See the [module](self).
pub(crate) struct BeamSink {
    host: Arc<BeamChannel>,
    env: OwnedEnv,
    input: Option<LocalPid>,
    owner: Option<LocalPid>,
    frames: Vec<Frame>,
    small: Vec<u8>,
    cost: u64,
    handshakes: Vec<(Vec<u8>, u64)>,
    assembly: Option<(OwnedBinary, usize)>,
    closed: Option<ResetReason>,
}

impl BeamSink {
    pub(crate) fn new(host: Arc<BeamChannel>) -> Self {
        Self {
            host,
            env: OwnedEnv::new(),
            input: None,
            owner: None,
            frames: Vec::new(),
            small: Vec::new(),
            cost: 0,
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

    /// The process that takes frames; returns those that have come so far with their cost, and
    /// whether the channel is over after them.
    pub(crate) fn set_input<'a>(
        &mut self,
        env: Env<'a>,
        input: LocalPid,
    ) -> (Vec<Term<'a>>, u64, Option<Atom>) {
        self.input = Some(input);
        let frames = make_frames(env, &mut self.frames, &self.small);
        self.small.clear();
        (frames, std::mem::take(&mut self.cost), self.closed.map(reason_atom))
    }

    fn add_large(&mut self, binary: OwnedBinary, cost: u64) {
        self.frames.push(Frame::Large(binary));
        self.cost += cost;
    }
}

fn make_frames<'a>(env: Env<'a>, frames: &mut Vec<Frame>, small: &[u8]) -> Vec<Term<'a>> {
    frames
        .drain(..)
        .map(|frame| match frame {
            Frame::Small { start, len } => {
                NewBinary::from_slice(env, &small[start..start + len]).into()
            }
            Frame::Large(binary) => binary.release(env).to_term(env),
        })
        .collect()
}

/// Why a channel ended, as nodedown will give it.
pub(crate) fn reason_atom(reason: ResetReason) -> Atom {
    match reason {
        ResetReason::Closed | ResetReason::Unknown => atoms::connection_closed(),
        ResetReason::Refused => atoms::connection_refused(),
        ResetReason::Protocol => atoms::protocol_error(),
        ResetReason::Unreachable => atoms::node_unreachable(),
        ResetReason::Restarted => atoms::node_restarted(),
    }
}

impl Sink for BeamSink {
    fn frame(&mut self, frame: &[u8], cost: u64) {
        if frame.len() >= LARGE {
            return self.add_large(OwnedBinary::from_slice(frame), cost);
        }
        let start = self.small.len();
        self.small.extend_from_slice(frame);
        self.frames.push(Frame::Small { start, len: frame.len() });
        self.cost += cost;
    }

    fn frame_start(&mut self, total: usize) {
        self.assembly = Some((OwnedBinary::new(total), 0));
    }

    fn frame_part(&mut self, part: &[u8]) {
        if let Some((binary, filled)) = &mut self.assembly {
            binary.as_mut_slice()[*filled..*filled + part.len()].copy_from_slice(part);
            *filled += part.len();
        }
    }

    fn frame_end(&mut self, cost: u64) {
        if let Some((binary, _)) = self.assembly.take() {
            self.add_large(binary, cost);
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
        let Some(input) = self.input else { return };
        if self.frames.is_empty() {
            return;
        }
        let (frames, small) = (&mut self.frames, &self.small);
        let cost = std::mem::take(&mut self.cost);
        let _ = self.env.send_and_clear(&input, |env| {
            (atoms::chatter_in(), make_frames(env, frames, small), cost).encode(env)
        });
        self.small.clear();
    }

    fn closed(&mut self, reason: ResetReason) {
        if self.closed.is_some() {
            return;
        }
        self.closed = Some(reason);
        let reason = reason_atom(reason);
        // The input process has frames before it in its mailbox: it ends the connection after them.
        if let Some(input) = self.input {
            let _ = self
                .env
                .send_and_clear(&input, |env| (atoms::chatter_closed(), reason).encode(env));
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
