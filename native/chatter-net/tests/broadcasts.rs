//! How a user is told of broadcasts that have come.

mod net;

use std::sync::atomic::Ordering;

use chatter_core::broadcast::Targets;
use chatter_core::broadcast::payload::Packed;
use chatter_net::broadcast::Again;
use net::{Peer, link, until};

fn told(peer: &Peer) -> usize {
    peer.host.broadcasts.load(Ordering::SeqCst)
}

fn broadcast(peer: &Peer, len: usize) {
    let body = Packed { body: vec![7; len].into(), lz4: false };
    peer.node.broadcast(&Targets::All, "t", &body).unwrap();
}

/// Takes until that many bytes have come, and nothing is left; what was said last.
fn take(peer: &Peer, bytes: usize) -> Again {
    let (mut len, mut last) = (0, Again::WhenTold);
    until("all have come", || {
        let (taken, again) = peer.node.take_broadcasts(1 << 20, 1_000);
        len += taken.iter().map(|arrival| arrival.len()).sum::<usize>();
        last = again;
        len >= bytes
    });
    last
}

/// Given a user that takes many bytes at once, expect it to look for the next ones without being told, and to
/// be told of them again once it has found little.
#[test]
fn bulk_is_looked_for() {
    let (a, b) = (Peer::new("bulk-from"), Peer::new("bulk-to"));
    link(&a, &b);
    until("they reach each other", || a.reaches(&b) && b.reaches(&a));

    broadcast(&a, 10);
    until("told of the first", || told(&b) == 1);
    assert_eq!(take(&b, 10), Again::WhenTold, "one small message is no bulk");

    broadcast(&a, 8 * 1024);
    until("told of the second", || told(&b) == 2);
    assert_eq!(take(&b, 8 * 1024), Again::Soon);

    broadcast(&a, 10);
    until("the third is there", || b.node.next_broadcast_len() > 0);
    assert_eq!(told(&b), 2, "it is looked for");
    assert_eq!(take(&b, 10), Again::WhenTold);

    broadcast(&a, 10);
    until("told of the fourth", || told(&b) == 3);
}
