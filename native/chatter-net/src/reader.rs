//! The receiving side of a link: one task that reads, opens records and dispatches their packets.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use chatter_core::crypto::record::{MAX_RECORD_PLAIN, Opener, RECORD_HEADER_LEN, TAG_LEN};

use crate::dispatch::Dispatch;
use crate::driver::Input;
use crate::link::Link;
use crate::node::Node;
use crate::transport::ReadHalf;
use crate::workers::note_activity;

/// The buffer of an idle link, and of one that has much to read, in bytes. A thousand idle links
/// should not hold a thousand large buffers; a busy one should not pay a system call per record.
const SMALL_BUFFER: usize = 8 * 1024;
const LARGE_BUFFER: usize = 256 * 1024;

/// A record of any length fits the buffer.
const MAX_RECORD: usize = RECORD_HEADER_LEN + MAX_RECORD_PLAIN + TAG_LEN;

/// Reads until the link ends, then reports it.
pub(crate) async fn run(node: Arc<Node>, link: Arc<Link>, mut socket: ReadHalf, opener: Opener) {
    let reason = tokio::select! {
        biased;
        () = link.close.notified() => None,
        reason = read_loop(&node, &link, &mut socket, opener) => Some(reason),
    };
    if let Some(reason) = reason {
        tracing::debug!(link = %link.id, peer = %link.peer.name, reason, "link ended");
    }
    link.close();
    node.remove_link(&link);
    node.rescue_transit(&link);
    node.control.send(Input::LinkDown(link.id)).await.ok();
    for channel in link.take_channels() {
        channel.leave_link();
    }
}

struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

async fn read_loop(
    node: &Arc<Node>,
    link: &Arc<Link>,
    socket: &mut ReadHalf,
    mut opener: Opener,
) -> &'static str {
    let mut dispatch = Dispatch::new(node.clone(), link.clone());
    let mut buffer = Buffer { bytes: vec![0; SMALL_BUFFER], start: 0, end: 0 };
    loop {
        let n = match socket.read(&mut buffer.bytes[buffer.end..]).await {
            Ok(0) => return "closed by the peer",
            Ok(n) => n,
            Err(_) => return "socket error",
        };
        buffer.end += n;
        link.stats.bytes_in.fetch_add(n as u64, Ordering::Relaxed);
        loop {
            match next_record(&mut buffer, &mut opener) {
                Ok(Some(record)) => {
                    if let Err(error) = dispatch.record(record).await {
                        tracing::error!(peer = %link.peer.name, %error, "malformed packet: link closed");
                        return "malformed packet";
                    }
                }
                Ok(None) => break,
                Err(reason) => return reason,
            }
        }
        link.heard_ms.store(node.now_ms(), Ordering::Relaxed);
        // Not after mere acknowledgements: nobody waits for what comes after them.
        if dispatch.end_read() {
            note_activity();
        }
        buffer.make_room();
    }
}

/// Opens the next record of which all bytes are there.
fn next_record<'a>(
    buffer: &'a mut Buffer,
    opener: &mut Opener,
) -> Result<Option<&'a [u8]>, &'static str> {
    let Some(header) = buffer.bytes[buffer.start..buffer.end].first_chunk::<RECORD_HEADER_LEN>()
    else {
        return Ok(None);
    };
    let header = *header;
    let len = opener.record_len(&header).map_err(|_| "malformed record")?;
    let body = buffer.start + RECORD_HEADER_LEN;
    if body + len > buffer.end {
        return Ok(None);
    }
    buffer.start = body + len;
    match opener.open_in_place(header, &mut buffer.bytes[body..body + len]) {
        Ok(plain) => Ok(Some(plain)),
        Err(_) => Err("forged record"),
    }
}

impl Buffer {
    /// Moves what is left to the front, and grows or shrinks as the last read suggests.
    fn make_room(&mut self) {
        let full = self.end == self.bytes.len();
        self.bytes.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        if full && self.bytes.len() < LARGE_BUFFER {
            self.bytes.resize((self.bytes.len() * 4).clamp(MAX_RECORD, LARGE_BUFFER), 0);
        } else if self.end == self.bytes.len() {
            self.bytes.resize(MAX_RECORD.max(2 * self.end), 0);
        }
    }
}
