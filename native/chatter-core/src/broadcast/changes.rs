//! What becomes of messages that the user of this node has changed on their way.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::payload::Packed;
use crate::wire::bcast::{BATCH_BYTES, Batch, Message, next_message, put_message};

/// The messages of a batch with changes by number in place of them; `None` if there are none, or if the
/// messages have grown too much for a packet: then they go on as they came.
pub(super) fn changed(batch: &Batch, changes: &BTreeMap<u64, Option<Packed>>) -> Option<Bytes> {
    if changes.values().all(Option::is_none) {
        return None;
    }
    let mut out = Vec::with_capacity(batch.messages.len());
    let (mut rest, mut seq) = (&batch.messages[..], batch.first);
    while let Ok(Some(message)) = next_message(&mut rest) {
        match changes.get(&seq).and_then(Option::as_ref) {
            Some(Packed { body, lz4 }) => {
                put_message(&mut out, &Message { lz4: *lz4, body, ..message });
            }
            None => put_message(&mut out, &message),
        }
        seq += 1;
    }
    (out.len() <= 2 * BATCH_BYTES).then(|| out.into())
}
