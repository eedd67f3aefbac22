//! `tracing` events become messages to `chatter_node`, which hands them to Erlang's `logger`.
//!
//! Events may come from any thread, schedulers included, from which no message may be sent: they go
//! through a bounded queue to a thread of their own. A full queue loses the line, not the caller.

use std::fmt::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use parking_lot::Mutex;
use rustler::{Encoder, LocalPid, OwnedEnv};
use tracing::field::{Field, Visit};
use tracing::span;
use tracing::{Event, Level, Metadata, Subscriber};

use crate::atoms;

/// Lines that wait for the thread.
const QUEUE: usize = 256;

static QUEUE_IN: OnceLock<SyncSender<(Level, String)>> = OnceLock::new();
static OWNER: Mutex<Option<LocalPid>> = Mutex::new(None);

/// Most verbose level let through: 1 error .. 5 trace.
static LEVEL: AtomicU8 = AtomicU8::new(3);

/// Installs the subscriber; a second call (the module was loaded again) does nothing.
pub(crate) fn install() {
    QUEUE_IN.get_or_init(|| {
        let (tx, rx) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new().name("chatter-log".into());
        // Without the thread nothing is logged; the node works.
        thread.spawn(move || forward(&rx)).ok();
        tracing::subscriber::set_global_default(ToErlang).ok();
        tx
    });
}

/// Who gets the lines, and from which level on.
pub(crate) fn set_owner(owner: LocalPid) {
    *OWNER.lock() = Some(owner);
}

/// Sets the most verbose level that is let through.
pub(crate) fn set_level(level: Level) {
    LEVEL.store(rank(level), Ordering::Relaxed);
}

fn rank(level: Level) -> u8 {
    match level {
        Level::ERROR => 1,
        Level::WARN => 2,
        Level::INFO => 3,
        Level::DEBUG => 4,
        Level::TRACE => 5,
    }
}

fn forward(lines: &Receiver<(Level, String)>) {
    let mut env = OwnedEnv::new();
    while let Ok((level, line)) = lines.recv() {
        let Some(owner) = *OWNER.lock() else { continue };
        let level = match level {
            Level::ERROR => atoms::error(),
            Level::WARN => atoms::warning(),
            Level::INFO => atoms::info(),
            _ => atoms::debug(),
        };
        // The owner may just be gone; its successor says who it is.
        let _ = env.send_and_clear(&owner, |env| (atoms::chatter_log(), level, line).encode(env));
    }
}

struct ToErlang;

#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing to a String cannot fail.
        let _ = if field.name() == "message" {
            write!(self.message, "{value:?}")
        } else {
            write!(self.fields, " {}={value:?}", field.name())
        };
    }
}

impl Subscriber for ToErlang {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("chatter")
            && rank(*metadata.level()) <= LEVEL.load(Ordering::Relaxed)
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        line.message.push_str(&line.fields);
        if let Some(queue) = QUEUE_IN.get() {
            queue.try_send((*event.metadata().level(), line.message)).ok();
        }
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}
