//! Channels as Erlang holds them. A channel dies with the processes that hold it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use chatter_core::channel::CHUNK_LEN;
use chatter_core::channel::options::SendOptions;
use chatter_core::channel::send::Sender;
use chatter_core::flow::FrameReader;
use chatter_core::wire::data::{ChannelKind, ITEM_HEADER_LEN, ResetReason};
use chatter_net::channel::{Channel, SendStatus, State};
use parking_lot::Mutex;
use rustler::{
    Atom, Binary, Encoder, Env, ListIterator, LocalPid, Monitor, NifResult, NifUnitEnum, Resource,
    ResourceArc, Term,
};

use crate::atoms;
use crate::host::{BeamChannel, senders};
use crate::manners::Manners;
use crate::node::current;
use crate::pinned;
use crate::sink::{BeamSink, fetched_end};
use crate::waiting::Taken;

/// Bytes, or frames, that use up a whole time slice: what is done for them, in the NIF and by the VM
/// before or after it, takes about a millisecond.
const BYTES_PER_SLICE: usize = 1024 * 1024;
const FRAMES_PER_SLICE: usize = 1500;

/// Tells the VM what share of a time slice a call has used up.
pub(crate) fn charge(env: Env, bytes: usize, frames: usize) {
    let percent = bytes * 100 / BYTES_PER_SLICE + frames * 100 / FRAMES_PER_SLICE;
    rustler::schedule::consume_timeslice(env, percent.clamp(1, 100) as i32);
}

/// A channel in the hands of Erlang.
pub(crate) struct ChannelRef {
    pub(crate) channel: Arc<Channel>,
    /// `mf_getstat` must show progress while the other node is known to be alive.
    ticks: AtomicU64,
    /// Finds the flows of frames; only the controller comes here. `None` if all frames are one flow.
    reader: Option<Mutex<FrameReader>>,
    /// Fetched from the sink, not yet handed over; only the input process comes here.
    taken: Mutex<Taken>,
}

#[rustler::resource_impl]
impl Resource for ChannelRef {
    const IMPLEMENTS_DOWN: bool = true;

    fn down<'a>(&'a self, _env: Env<'a>, _pid: LocalPid, _monitor: Monitor) {
        self.channel.close(ResetReason::Closed);
    }
}

impl Drop for ChannelRef {
    fn drop(&mut self) {
        self.channel.close(ResetReason::Closed);
    }
}

impl ChannelRef {
    pub(crate) fn new(channel: Arc<Channel>) -> Self {
        let flows = current().is_none_or(|node| node.config.flows);
        let reader = flows.then(Mutex::default);
        let this = Self { channel, ticks: AtomicU64::new(0), reader, taken: Mutex::default() };
        if let Some(host) = this.host() {
            host.set_names(this.channel.index.0, &this.channel.peer_name);
        }
        this
    }

    fn host(&self) -> Option<&BeamChannel> {
        self.channel.host.as_any().downcast_ref()
    }

    fn with_sink<T>(&self, f: impl FnOnce(&mut BeamSink) -> T) -> NifResult<T> {
        self.channel
            .with_sink(|sink| sink.as_any_mut().downcast_mut().map(f))
            .ok_or(rustler::Error::BadArg)
    }
}

/// What Erlang calls the kinds of channels.
#[derive(NifUnitEnum)]
enum Kind {
    Distribution,
    Messages,
}

impl From<Kind> for ChannelKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Distribution => Self::Distribution,
            Kind::Messages => Self::Messages,
        }
    }
}

/// `open(NodeName, Kind) -> {ok, Channel, Index} | {error, no_route | not_started}`.
#[rustler::nif]
fn open<'a>(env: Env<'a>, name: &str, kind: Kind) -> NifResult<Term<'a>> {
    let Some(node) = current() else { return Ok(env.error_tuple(atoms::not_started())) };
    let Some(channel) = node.id_of(name).and_then(|id| node.open_channel(id, kind.into())) else {
        return Ok(env.error_tuple(atoms::no_route()));
    };
    let index = channel.index.0;
    let channel = ResourceArc::new(ChannelRef::new(channel));
    if let Some(host) = channel.host() {
        host.set_owner(env.pid());
    }
    channel.with_sink(|sink| sink.set_owner(env.pid()))?.ok();
    channel.monitor(Some(env), &env.pid());
    node.begin_open(&channel.channel);
    Ok((atoms::ok(), channel, index).encode(env))
}

/// `take(Channel) -> {ok, [{Message, Cost}]} | {error, Reason}`: the caller takes the handshake.
#[rustler::nif]
fn take<'a>(env: Env<'a>, channel: ResourceArc<ChannelRef>) -> NifResult<Term<'a>> {
    if let Some(host) = channel.host() {
        host.set_owner(env.pid());
    }
    channel.monitor(Some(env), &env.pid());
    Ok(match channel.with_sink(|sink| sink.set_owner(env.pid()))? {
        Ok(messages) => {
            let messages: Vec<Term> = messages
                .iter()
                .map(|(message, cost)| {
                    let message: Term = rustler::NewBinary::from_slice(env, message).into();
                    (message, *cost).encode(env)
                })
                .collect();
            (atoms::ok(), messages).encode(env)
        }
        Err(reason) => env.error_tuple(reason),
    })
}

/// `controller(Channel, Pid) -> ok`: who fetches from the VM; the channel dies with it.
#[rustler::nif]
fn controller(env: Env, channel: ResourceArc<ChannelRef>, pid: LocalPid) -> Atom {
    if let Some(host) = channel.host() {
        host.set_controller(pid);
    }
    if channel.monitor(Some(env), &pid).is_none() {
        channel.channel.close(ResetReason::Closed);
    }
    atoms::ok()
}

/// `governor(Channel, Pid) -> ok`: who is told of senders that may go on.
#[rustler::nif]
fn governor(channel: ResourceArc<ChannelRef>, pid: LocalPid) -> Atom {
    if let Some(host) = channel.host() {
        host.set_governor(pid);
    }
    atoms::ok()
}

/// `input(Channel) -> ok`: the caller fetches frames from now on.
#[rustler::nif]
fn input(env: Env, channel: ResourceArc<ChannelRef>) -> NifResult<Atom> {
    channel.with_sink(|sink| sink.set_input(env.pid()))?;
    Ok(atoms::ok())
}

/// `fetch(Channel, Granted) -> {Frames, Cost, more | idle | Reason}`: grants the cost of the frames
/// before and gives the next ones. After `idle`, `{chatter_ready, Index}` tells when there are more.
#[rustler::nif]
fn fetch<'a>(env: Env<'a>, channel: ResourceArc<ChannelRef>, granted: u64) -> NifResult<Term<'a>> {
    if granted > 0 {
        channel.channel.grant(granted);
    }
    let mut taken = channel.taken.lock();
    let refilled = taken.is_empty();
    let (more, closed) =
        if refilled { channel.with_sink(|sink| sink.take(&mut taken))? } else { (true, None) };
    let (frames, cost) = taken.fetch(env);
    charge(env, cost as usize, frames.len());
    let state = match closed {
        _ if more || !taken.is_empty() => atoms::more(),
        Some(_) if !frames.is_empty() => atoms::more(),
        Some(reason) => fetched_end(reason),
        None => atoms::idle(),
    };
    Ok((frames, cost, state).encode(env))
}

/// `handshake(Channel, Message) -> ok | closed`.
#[rustler::nif]
fn handshake(channel: ResourceArc<ChannelRef>, message: Binary) -> Atom {
    let (status, _) = channel.channel.send(0, |sender| {
        sender.push_handshake(message.as_slice());
        message.len() as u64
    });
    status_atom(status)
}

/// `send(Channel, Frames) -> Status | {hold, [Sender], Status}`, Status `ok | full | closed`. Frames are
/// lists of binaries, the last one first. Senders, each `{Id, Serial}` of a local process, have too much
/// queued, until the governor gets `{chatter_resume, [Sender]}`.
#[rustler::nif]
fn send<'a>(
    env: Env<'a>,
    channel: ResourceArc<ChannelRef>,
    frames: Term<'a>,
) -> NifResult<Term<'a>> {
    let mut list: Vec<Term> = Vec::with_capacity(64);
    list.extend(frames.decode::<ListIterator>()?);
    let mut pieces: Vec<Binary> = Vec::with_capacity(4 * list.len());
    let mut ends: Vec<(usize, usize)> = Vec::with_capacity(list.len());
    for frame in list.iter().rev() {
        let mut total = 0;
        for piece in frame.decode::<ListIterator>()? {
            let piece = Binary::from_term(piece)?;
            total += piece.len();
            pieces.push(piece);
        }
        ends.push((pieces.len(), total));
    }
    let bytes: usize = ends.iter().map(|(_, total)| total).sum();
    let mut reader = channel.reader.as_ref().map(Mutex::lock);
    let manners = Manners::now();
    let (status, hold) = channel.channel.send(ends.len() as u64, |sender| {
        sender.expect(bytes + ends.len() * ITEM_HEADER_LEN);
        let mut start = 0;
        let mut slices: Vec<&[u8]> = Vec::new();
        for &(end, total) in &ends {
            slices.clear();
            slices.extend(pieces[start..end].iter().map(Binary::as_slice));
            let (options, rewritten) = match reader.as_mut() {
                Some(reader) => (manners.of(reader.read(&slices)), reader.rewritten()),
                None => (SendOptions::default(), None),
            };
            if let Some((header, instead_of)) = rewritten {
                push_rewritten(sender, &options, (header, instead_of), &pieces[start..end], total);
            } else if total > CHUNK_LEN {
                let pieces: Vec<Bytes> = pieces[start..end].iter().map(pinned::bytes).collect();
                sender.push_large_frame(&options, &pieces, total);
            } else {
                sender.push_frame(&options, &slices, total);
            }
            start = end;
        }
        bytes as u64
    });
    charge(env, bytes, ends.len());
    let status = status_atom(status);
    if hold.is_empty() || reader.is_none() {
        return Ok(status.encode(env));
    }
    Ok((atoms::hold(), senders(hold), status).encode(env))
}

/// Sends a frame with other first bytes than it has.
fn push_rewritten(
    sender: &mut Sender,
    options: &SendOptions,
    (header, instead_of): (&[u8], usize),
    pieces: &[Binary],
    total: usize,
) {
    let total = total - instead_of + header.len();
    let is_large = total > CHUNK_LEN;
    let mut left_out = instead_of;
    // What is to be left out of each.
    let rest = pieces.iter().map(|piece| {
        let without = left_out.min(piece.len());
        left_out -= without;
        (piece, without)
    });
    if is_large {
        let rest = rest.map(|(piece, without)| pinned::bytes(piece).slice(without..));
        let pieces: Vec<Bytes> =
            std::iter::once(Bytes::copy_from_slice(header)).chain(rest).collect();
        sender.push_large_frame(options, &pieces, total);
    } else {
        let rest = rest.map(|(piece, without)| &piece.as_slice()[without..]);
        let pieces: Vec<&[u8]> = std::iter::once(header).chain(rest).collect();
        sender.push_frame(options, &pieces, total);
    }
}

/// `grant(Channel, Cost) -> ok`: the VM has taken frames of that cost.
#[rustler::nif]
fn grant(channel: ResourceArc<ChannelRef>, cost: u64) -> Atom {
    channel.channel.grant(cost);
    atoms::ok()
}

/// `close(Channel) -> ok`.
#[rustler::nif]
fn close(channel: ResourceArc<ChannelRef>) -> Atom {
    channel.channel.close(ResetReason::Closed);
    atoms::ok()
}

/// `stat(Channel) -> {Received, Sent, Pending}` for `mf_getstat`: received grows at every call while
/// the channel is up, since the link state knows that the other node is alive and that its VM runs.
#[rustler::nif]
fn stat(channel: ResourceArc<ChannelRef>) -> (u64, u64, u64) {
    let figures = channel.channel.figures();
    let silent = current().is_none_or(|node| node.is_peer_silent(channel.channel.peer));
    let alive = u64::from(matches!(figures.state, State::Open) && !silent);
    let ticks = channel.ticks.fetch_add(alive, Ordering::Relaxed) + alive;
    (ticks + figures.grants, figures.frames_out, figures.sender.waiting_bytes as u64)
}

pub(crate) fn status_atom(status: SendStatus) -> Atom {
    match status {
        SendStatus::Ready => atoms::ok(),
        SendStatus::Full => atoms::full(),
        SendStatus::Closed => atoms::closed(),
    }
}
