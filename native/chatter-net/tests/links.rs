//! Links between nodes over real sockets: who gets one, which one is kept, and what strangers can do.

mod net;

use std::io::{Read, Write};
use std::net::{Ipv6Addr, TcpStream};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use chatter_core::control::ControlEvent;
use chatter_core::crypto::handshake::{HandshakeConfig, Initiator};
use chatter_core::ids::NodeId;
use chatter_net::config::{ListenPort, NetConfig};
#[cfg(target_os = "linux")]
use chatter_net::transport::Transport;
use net::{Peer, closed, config, expect, key, link, stream, until};

/// Given two nodes, over IPv4 and over IPv6, expect a link, names and ids known at both ends.
#[test]
fn two_nodes_link() {
    for ipv6 in [false, true] {
        let mut there = config("b");
        if ipv6 {
            there.listen_address = Some(Ipv6Addr::LOCALHOST.into());
        }
        let (a, b) = (Peer::new("a"), Peer::with(there));
        link(&a, &b);
        assert_eq!(a.node.id_of("b@test"), Some(NodeId::for_name("b@test")));
        assert_eq!(b.node.id_of("a@test"), Some(a.node.me.id));
        assert_eq!(a.node.links()[0].remote, b.address());
        assert_eq!(b.node.links()[0].peer.name, "a@test");
        until("both ends use it", || a.up_links() == 1 && b.up_links() == 1);
        assert_eq!(a.count_events(|e| matches!(e, ControlEvent::NodeUp { .. })), 1);
    }
}

#[cfg(target_os = "linux")]
fn on_one_host(name: &str) -> NetConfig {
    NetConfig { unix_sockets: true, ..config(name) }
}

/// Given two nodes of one host, expect a Unix socket if both want one, and TCP otherwise; data flows.
#[cfg(target_os = "linux")]
#[test]
fn nodes_of_one_host_use_a_unix_socket() {
    let cases = [
        (true, true, Transport::Unix),
        (true, false, Transport::Tcp),
        (false, true, Transport::Tcp),
    ];
    for (here, there, expected) in cases {
        let a = Peer::with(NetConfig { unix_sockets: here, ..config("a") });
        let b = Peer::with(NetConfig { unix_sockets: there, ..config("b") });
        link(&a, &b);
        assert_eq!(a.node.links()[0].transport, expected, "{here} {there}");
        until("the same at both ends", || {
            b.node.links().first().is_some_and(|link| link.transport == expected)
        });
        let (from, to) = a.open(&b);
        let sending = stream(&from, 0..2_000);
        expect(&to, 0..2_000);
        sending.join().unwrap();
    }
}

/// Given a node on all addresses, expect its Unix socket at each of them.
#[cfg(target_os = "linux")]
#[test]
fn a_unix_socket_stands_for_the_addresses_of_its_node() {
    let b = Peer::with(NetConfig { listen_address: None, ..on_one_host("b") });
    let port = b.node.port.unwrap();
    for address in [[127, 0, 0, 1], [127, 0, 0, 7]] {
        let a = Peer::with(on_one_host("a"));
        a.dial((address, port).into());
        until("a link", || a.up_links() == 1);
        assert_eq!(a.node.links()[0].transport, Transport::Unix);
    }
}

/// Given the end of the peer, expect the link over a Unix socket to be down at once, not after the
/// hold time; given garbage, expect it to be refused and counted.
#[cfg(target_os = "linux")]
#[test]
fn a_unix_socket_ends_with_its_node() {
    use std::os::linux::net::SocketAddrExt;
    let (a, b) = (Peer::with(on_one_host("a")), Peer::with(on_one_host("b")));
    let name = format!("chatter:127.0.0.1:{}", b.node.port.unwrap());
    let at = std::os::unix::net::SocketAddr::from_abstract_name(name).unwrap();
    let mut stranger = std::os::unix::net::UnixStream::connect_addr(&at).unwrap();
    stranger.write_all(&[7; 4096]).unwrap();
    until("refused", || b.node.stats.refused.load(Ordering::Relaxed) == 1);
    link(&a, &b);
    until("both ends use it", || a.up_links() == 1 && b.up_links() == 1);
    drop(b);
    assert!(until("down", || a.up_links() == 0) < Duration::from_millis(500));
}

/// Given a node on all addresses, expect it to answer over IPv4 and IPv6, and to keep one link of two.
#[test]
fn all_addresses() {
    let there = NetConfig { listen_address: None, ..config("b") };
    let (a, b) = (Peer::new("a"), Peer::with(there));
    let port = b.node.port.unwrap();
    a.dial(([127, 0, 0, 1], port).into());
    a.dial((Ipv6Addr::LOCALHOST, port).into());
    one_link(&a, &b);
}

/// The two agree on one link, lose nothing if a slower dial of higher rank still replaces it, and agree
/// on one link in the end.
fn one_link(a: &Peer, b: &Peer) {
    agreed(a, b);
    let (here, there) = a.open(b);
    let sending = stream(&here, 0..100);
    expect(&there, 0..100);
    sending.join().unwrap();
    agreed(a, b);
    assert_eq!((closed(&here), closed(&there)), (None, None));
}

fn agreed(a: &Peer, b: &Peer) {
    until("one link at both ends", || {
        let (at_a, at_b) = (a.link_infos(), b.link_infos());
        at_a.len() == 1
            && at_b.len() == 1
            && at_a[0].we_dialled != at_b[0].we_dialled
            && a.node.links().len() == 1
            && b.node.links().len() == 1
            && a.reaches(b)
            && b.reaches(a)
    });
}

/// Given dials from both ends at once, again and again, expect both to keep the same one link.
#[test]
fn simultaneous_dials_become_one() {
    for round in 0..8 {
        let (a, b) = (Peer::new(&format!("a{round}")), Peer::new(&format!("b{round}")));
        let (to_a, to_b) = (a.address(), b.address());
        std::thread::scope(|scope| {
            scope.spawn(|| a.dial(to_b));
            scope.spawn(|| b.dial(to_a));
        });
        one_link(&a, &b);
    }
}

/// Given a node that dials itself, expect no link and no more dials.
#[test]
fn own_address() {
    let a = Peer::new("a");
    a.dial(a.address());
    let is_dial = |e: &ControlEvent| matches!(e, ControlEvent::Dial { .. });
    until("a dial", || a.count_events(is_dial) == 1);
    until("no link is left", || {
        a.count_events(|e| matches!(e, ControlEvent::CloseLink { .. })) >= 1
            && a.node.links().is_empty()
    });
    assert_eq!(a.count_events(is_dial), 1);
}

/// Given another key, or encryption at one end only, expect no link, and a count at both ends; given
/// encryption off at both, expect a link.
#[test]
fn settings_must_agree() {
    let clear = |name| NetConfig { encryption: false, ..config(name) };
    let other = |name| NetConfig { key: key('e'), ..config(name) };
    for (here, there) in
        [(config("a"), other("b")), (config("a"), clear("b")), (clear("a"), config("b"))]
    {
        let (a, b) = (Peer::with(here), Peer::with(there));
        a.dial(b.address());
        let refused = |p: &Peer| p.node.stats.refused.load(Ordering::Relaxed);
        until("refusals at both ends", || refused(&a) >= 2 && refused(&b) >= 2);
        assert!(a.node.links().is_empty() && b.node.links().is_empty());
        assert!(!a.reaches(&b) && !b.reaches(&a));
    }
    let (a, b) = (Peer::with(clear("a")), Peer::with(clear("b")));
    link(&a, &b);
    let (here, there) = a.open(&b);
    let sending = stream(&here, 0..100);
    expect(&there, 0..100);
    sending.join().unwrap();
}

/// Given a node that stops and starts again on its port, expect the neighbour to see its end once, to
/// dial again, and to see the new life.
#[test]
fn reconnect_after_a_restart() {
    let a = Peer::new("a");
    let b = Peer::new("b");
    let (port, life) = (b.node.port.unwrap(), b.node.me.incarnation);
    link(&a, &b);
    let (here, _) = a.open(&b);
    drop(b);
    let took = until("the end is seen", || {
        closed(&here).is_some() && a.node.table().route(NodeId::for_name("b@test")).is_none()
    });
    assert!(took < Duration::from_secs(2), "took {took:?}");
    let down = |e: &ControlEvent| matches!(e, ControlEvent::NodeDown { .. });
    until("node down", || a.count_events(down) == 1);
    let b = Peer::with(NetConfig { listen_port: ListenPort::Fixed(port), ..config("b") });
    assert!(b.node.me.incarnation > life);
    until("a link again", || a.reaches(&b) && b.reaches(&a));
    let (here, there) = a.open(&b);
    assert_eq!(here.peer_incarnation(), b.node.me.incarnation);
    let sending = stream(&there, 0..10);
    expect(&here, 0..10);
    sending.join().unwrap();
    assert_eq!(a.count_events(down), 1);
}

/// Given more peers than `max_links`, expect as many links and the others refused, with the first ones
/// undisturbed.
#[test]
fn max_links_is_kept() {
    let mut hub = config("hub");
    hub.max_links = 3;
    let hub = Peer::with(hub);
    let first: Vec<_> = (0..3).map(|i| Peer::new(&format!("n{i}"))).collect();
    first.iter().for_each(|peer| link(peer, &hub));
    let late = Peer::new("late");
    late.dial(hub.address());
    until("a refusal", || hub.node.stats.refused.load(Ordering::Relaxed) >= 2);
    assert_eq!(hub.node.links().len(), 3);
    assert!(first.iter().all(|peer| peer.reaches(&hub) && hub.reaches(peer)));
}

/// The node closes the connection; how long that took.
fn closed_after(stream: &mut TcpStream) -> Duration {
    let start = Instant::now();
    stream.set_read_timeout(Some(net::LONG)).unwrap();
    let mut byte = [0; 1];
    match stream.read(&mut byte) {
        Ok(0) => {}
        Ok(_) => panic!("an answer for a stranger"),
        Err(e) => assert!(!matches!(e.kind(), std::io::ErrorKind::WouldBlock), "{e}"),
    }
    start.elapsed()
}

/// Given strangers that connect and say nothing, more than may be half open, expect the oldest to be
/// thrown out for the newer ones, and a real peer to come in among them.
#[test]
fn stalled_strangers_keep_nobody_out() {
    let mut there = config("b");
    there.max_half_open = 4;
    there.handshake_timeout = net::LONG;
    let b = Peer::with(there);
    let mut stalled: Vec<_> = (0..20).map(|_| TcpStream::connect(b.address()).unwrap()).collect();
    until("evictions", || b.node.stats.evicted.load(Ordering::Relaxed) >= 16);
    let a = Peer::new("a");
    link(&a, &b);
    stalled.extend((0..20).map(|_| TcpStream::connect(b.address()).unwrap()));
    until("more evictions", || b.node.stats.evicted.load(Ordering::Relaxed) >= 36);
    for stream in &mut stalled[..32] {
        assert!(closed_after(stream) < Duration::from_secs(5));
    }
    assert!(a.reaches(&b) && a.node.links().len() == 1 && b.node.links().len() == 1);
}

/// Given a valid H1 that comes byte by byte, too slowly, expect the end at the handshake timeout,
/// however lively it is.
#[test]
fn a_slow_drip_times_out() {
    let mut there = config("b");
    there.handshake_timeout = Duration::from_millis(300);
    let b = Peer::with(there);
    let (_, h1) = Initiator::new(&key('f'), HandshakeConfig::new(true), [1; 32]).unwrap();
    let mut stream = TcpStream::connect(b.address()).unwrap();
    let start = Instant::now();
    for byte in h1 {
        if stream.write_all(&[byte]).is_err() || start.elapsed() > Duration::from_secs(3) {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    closed_after(&mut stream);
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert_eq!(b.node.stats.refused.load(Ordering::Relaxed), 1);
}

/// Given garbage, half a handshake, and a recorded H1, expect no answer to those without the key, no
/// link, and live links undisturbed.
#[test]
fn strangers_disturb_nobody() {
    let mut there = config("b");
    there.handshake_timeout = Duration::from_millis(500);
    let (a, b) = (Peer::new("a"), Peer::with(there));
    link(&a, &b);
    let (here, there) = a.open(&b);
    let sending = stream(&here, 0..500);
    let (_, h1) = Initiator::new(&key('f'), HandshakeConfig::new(true), [1; 32]).unwrap();
    let (_, wrong) = Initiator::new(&key('e'), HandshakeConfig::new(true), [1; 32]).unwrap();
    for i in 0..60_usize {
        let mut stream = TcpStream::connect(b.address()).unwrap();
        match i % 4 {
            0 => stream.write_all(&[i as u8; 300]).unwrap(),
            1 => stream
                .write_all(b"GET / HTTP/1.1\r\nHost: chatter\r\n\r\n".repeat(3).as_slice())
                .unwrap(),
            2 => stream.write_all(&wrong).unwrap(),
            _ => {
                // Somebody recorded it and cannot finish: an answer, and the end at the timeout.
                stream.write_all(&h1).unwrap();
                let mut h2 = [0; 2];
                stream.read_exact(&mut h2).unwrap();
                continue;
            }
        }
        closed_after(&mut stream);
    }
    expect(&there, 0..500);
    sending.join().unwrap();
    until("all refused", || b.node.stats.refused.load(Ordering::Relaxed) == 60);
    assert_eq!(b.node.links().len(), 1);
    assert_eq!(closed(&here), None);
}
