//! A thousand links in one process: a node, and as many peers written by hand on the handshake alone.

mod net;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use chatter_core::crypto::handshake::{H2_PREFIX_LEN, HandshakeConfig, Initiator, h2_len};
use chatter_core::crypto::record::RECORD_HEADER_LEN;
use chatter_core::crypto::{ClusterKey, Sealer};
use chatter_core::ids::{Incarnation, NodeId};
use chatter_core::wire::hello::{HELLO_SYNCED, Hello};
use chatter_core::wire::identity::Identity;
use chatter_core::wire::{PacketType, next_packet, packet_header};
use net::{Peer, config, key, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Links that the limit of open files allows: two sockets each.
fn affordable(wanted: usize) -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let files = limits.lines().find(|line| line.starts_with("Max open files"));
    let soft = files.and_then(|line| line.split_whitespace().nth(3)?.parse().ok());
    wanted.min((soft.unwrap_or(1024_usize) - 100) / 2)
}

fn resident_kib() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0) * 4
}

fn some_identity(n: usize) -> Identity {
    let name = format!("peer{n}@test");
    Identity {
        id: NodeId::for_name(&name),
        incarnation: Incarnation(1),
        name,
        hold_ms: 20_000,
        hidden: false,
        listen: false,
        addresses: Vec::new(),
        dial_seq: 1,
    }
}

fn hello(sealer: &mut Sealer, seq: u32, echo_seq: u32) -> Vec<u8> {
    let flags = HELLO_SYNCED;
    let hello =
        Hello { flags, interval_ms: 1_000, hold_ms: 20_000, seq, echo_seq, ..Hello::default() };
    let body = hello.to_bytes();
    let mut record = Vec::new();
    sealer.seal_from(&packet_header(PacketType::Hello, body.len()), &body, &mut record).unwrap();
    record
}

/// One peer: shakes hands, answers HELLOs, ends when the node does.
async fn peer(n: usize, hub: std::net::SocketAddr, key: ClusterKey, ended: Arc<AtomicUsize>) {
    let mut entropy = [0; 32];
    entropy[..8].copy_from_slice(&n.to_be_bytes());
    let mut stream = TcpStream::connect(hub).await.unwrap();
    let (initiator, h1) = Initiator::new(&key, HandshakeConfig::new(true), entropy).unwrap();
    stream.write_all(&h1).await.unwrap();
    let mut prefix = [0; H2_PREFIX_LEN];
    stream.read_exact(&mut prefix).await.unwrap();
    let mut h2 = vec![0; h2_len(&prefix).unwrap()];
    h2[..H2_PREFIX_LEN].copy_from_slice(&prefix);
    stream.read_exact(&mut h2[H2_PREFIX_LEN..]).await.unwrap();
    let (mut established, h3) = initiator.read_h2(&h2, &some_identity(n).encode()).unwrap();
    stream.write_all(&h3).await.unwrap();
    let mut seq = 0;
    loop {
        let mut header = [0; RECORD_HEADER_LEN];
        if stream.read_exact(&mut header).await.is_err() {
            break;
        }
        let opener = &mut established.session.opener;
        let mut body = vec![0; opener.record_len(&header).unwrap()];
        stream.read_exact(&mut body).await.unwrap();
        let mut record = &*opener.open_in_place(header, &mut body).unwrap();
        while let Some(packet) = next_packet(&mut record).unwrap() {
            if packet.kind == PacketType::Hello {
                let heard = Hello::decode(packet.body).unwrap();
                seq += 1;
                let answer = hello(&mut established.session.sealer, seq, heard.seq);
                if stream.write_all(&answer).await.is_err() {
                    break;
                }
            }
        }
    }
    ended.fetch_add(1, Ordering::SeqCst);
}

/// Given a thousand peers, expect a thousand links in use, that stay, at a modest price in memory, and
/// that all end when the node stops.
#[test]
fn a_thousand_links() {
    let count = affordable(1_000);
    let mut hub = config("hub");
    hub.max_links = 1_024;
    hub.control.max_links = 1_024;
    hub.control.hello_ms = 1_000;
    hub.control.hold_ms = 20_000;
    hub.max_half_open = 256;
    let hub = Peer::with(hub);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let peers = runtime.handle().clone();
    // All peers live on this thread, until the test ends.
    std::thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
    let ended = Arc::new(AtomicUsize::new(0));
    let before = resident_kib();
    let start = std::time::Instant::now();
    for first in (0..count).step_by(100) {
        // No more at once than may be half open.
        for n in first..(first + 100).min(count) {
            peers.spawn(peer(n, hub.address(), key('f'), ended.clone()));
        }
        until("a hundred more links", || hub.node.links().len() >= (first + 100).min(count));
    }
    until("all links in use", || hub.up_links() == count);
    let took = start.elapsed();
    let each = (resident_kib() - before) as f64 / count as f64;
    println!("{count} links in {took:?}, {each:.1} KiB each, both ends and all buffers");
    assert!(each < 200.0, "{each} KiB a link");
    let heard = hub.node.links()[0].stats.packets_in.load(Ordering::Relaxed);
    until("two more HELLOs", || {
        hub.node.links().iter().all(|l| l.stats.packets_in.load(Ordering::Relaxed) >= heard + 2)
    });
    assert_eq!((hub.up_links(), ended.load(Ordering::SeqCst)), (count, 0));
    hub.node.stop(Duration::from_millis(100));
    until("all ended", || ended.load(Ordering::SeqCst) == count);
}
