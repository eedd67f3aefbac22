//! Channels between nodes over real sockets, directly and through relays: order, ends, holding back,
//! and what becomes of them when nodes and links go.

mod net;

use std::sync::atomic::Ordering;
use std::time::Duration;

use chatter_core::channel::options::SendOptions;
use chatter_core::control::ControlEvent;
use chatter_core::flow::FlowKey;
use chatter_core::wire::data::{ChannelKind, ResetReason};
use chatter_net::channel::SendStatus;
use chatter_net::config::NetConfig;
use net::{
    Peer, Proxy, closed, config, expect, expect_some, frame, link, send, stream, take, until, user,
};

/// A and B, linked through R only.
fn line() -> (Peer, Peer, Peer) {
    let (a, r, b) = (Peer::new("a"), Peer::new("r"), Peer::new("b"));
    link(&a, &r);
    link(&b, &r);
    (a, r, b)
}

fn no_channels(peers: &[&Peer]) {
    until("tables are empty", || peers.iter().all(|peer| peer.node.channels.all().is_empty()));
}

/// Given two nodes, directly and with a relay between them, expect frames both ways at once in order,
/// and an end that both see, after which neither knows the channel.
#[test]
fn frames_both_ways_and_the_end() {
    for relayed in [false, true] {
        let (a, r, b) = line();
        if !relayed {
            link(&a, &b);
        }
        let (here, there) = a.open(&b);
        assert_eq!((&*here.peer_name, &*there.peer_name), ("b@test", "a@test"));
        assert!(here.opened_here && !there.opened_here);
        let sending = [stream(&here, 0..1_000), stream(&there, 5_000..6_000)];
        std::thread::scope(|scope| {
            scope.spawn(|| expect(&there, 0..1_000));
            scope.spawn(|| expect(&here, 5_000..6_000));
        });
        sending.into_iter().for_each(|thread| thread.join().unwrap());
        let through_r =
            r.node.links().iter().any(|l| l.stats.relayed.load(Ordering::Relaxed) > 900);
        assert_eq!(through_r, relayed);
        assert_eq!(here.figures().sender.retransmits + there.figures().sender.retransmits, 0);
        here.close(ResetReason::Closed);
        until("the other end is told", || closed(&there) == Some(ResetReason::Closed));
        no_channels(&[&a, &b]);
        assert_eq!(closed(&here), None, "who closes is not told");
        assert_eq!(send(&there, &frame(1)), SendStatus::Closed);
        assert_eq!(send(&here, &frame(1)), SendStatus::Closed);
    }
}

/// Given frames and then the end right behind them, expect all frames before the end.
#[test]
fn the_end_does_not_overtake() {
    let (a, _r, b) = line();
    for _ in 0..20 {
        let (here, there) = a.open(&b);
        for i in 0..40 {
            assert_ne!(send(&here, &frame(i)), SendStatus::Closed);
        }
        here.close(ResetReason::Closed);
        expect(&there, 0..40);
        until("the end", || closed(&there).is_some());
    }
    no_channels(&[&a, &b]);
}

/// Given channels that both ends open at once, expect all of them to work, each by itself.
#[test]
fn channels_are_separate() {
    let (a, _r, b) = line();
    let pairs: Vec<_> = (0..10).map(|i| if i % 2 == 0 { a.open(&b) } else { b.open(&a) }).collect();
    let sending: Vec<_> =
        (0..).zip(&pairs).map(|(i, (from, _))| stream(from, i * 1_000..i * 1_000 + 100)).collect();
    for (i, (_, to)) in (0..).zip(&pairs) {
        expect(to, i * 1_000..i * 1_000 + 100);
    }
    sending.into_iter().for_each(|thread| thread.join().unwrap());
    pairs.iter().for_each(|(here, _)| here.close(ResetReason::Closed));
    no_channels(&[&a, &b]);
}

/// Given a host that accepts nothing, or has its fill of channels, expect REFUSED at the other end.
#[test]
fn refused_channels() {
    let (a, b) = (Peer::new("a"), Peer::with(NetConfig { max_channels: 2, ..config("b") }));
    link(&a, &b);
    b.host.refuse.store(true, Ordering::SeqCst);
    let refused = || {
        let channel = a.node.open_channel(b.node.me.id, ChannelKind::Distribution).unwrap();
        a.node.begin_open(&channel);
        until("refused", || closed(&channel) == Some(ResetReason::Refused));
        no_channels(&[&a]);
    };
    refused();
    no_channels(&[&b]);
    b.host.refuse.store(false, Ordering::SeqCst);
    let (_one, _two) = (a.open(&b), a.open(&b));
    let channel = a.node.open_channel(b.node.me.id, ChannelKind::Distribution).unwrap();
    a.node.begin_open(&channel);
    until("one too many is refused", || closed(&channel) == Some(ResetReason::Refused));
    assert_eq!(b.node.channels.all().len(), 2);
}

/// Given a user that takes nothing, expect the sender to be held back when the window and the channel's
/// queue are full, without a retransmit; when it goes on taking, expect all frames.
#[test]
fn a_slow_user_holds_the_sender() {
    let (a, _r, b) = line();
    let (here, there) = a.open(&b);
    let (mut sent, mut told) = (0, 0);
    loop {
        while send(&here, &frame(sent)) == SendStatus::Ready {
            sent += 1;
            assert!(sent < 10_000, "never full");
        }
        sent += 1;
        // What the window has room for may still leave the queue.
        std::thread::sleep(Duration::from_millis(300));
        let before = std::mem::replace(&mut told, user(&here).writable.load(Ordering::SeqCst));
        if told == before {
            break;
        }
    }
    let figures = here.figures();
    let size: usize = (0..sent).map(|i| frame(i).len()).sum();
    let most = (2 << 20) + 2 * frame(49).len();
    assert!(size < most, "{size} bytes went into a window and a queue of 1 MiB each");
    assert!(figures.sender.waiting_bytes < most - (1 << 20), "{figures:?}");
    assert!(figures.sender.unacked_bytes < most - (1 << 20), "{figures:?}");
    expect(&there, 0..sent);
    until("writable", || user(&here).writable.load(Ordering::SeqCst) == told + 1);
    let sending = stream(&here, sent..sent + 300);
    expect(&there, sent..sent + 300);
    sending.join().unwrap();
    assert_eq!(here.figures().sender.retransmits, 0);
}

/// Given a node that stops, expect the other ends of its channels, also behind a relay, to be told
/// within a second.
#[test]
fn a_stopped_node_ends_channels() {
    let (a, _r, b) = line();
    let (here, there) = a.open(&b);
    let sending = stream(&there, 0..50);
    sending.join().unwrap();
    b.node.stop(net::LONG);
    let took = until("the end", || closed(&here).is_some());
    assert!(took < Duration::from_secs(1), "took {took:?}");
    let mut next = 0;
    for got in take(&here) {
        assert!(got == frame(next));
        next += 1;
    }
    assert_eq!(next, 50, "what was sent before the stop is there");
    no_channels(&[&a]);
}

/// Given a link that falls silent, expect the channel's end at both ends after hold and unreachable
/// times, once, and not before.
#[test]
fn a_silent_cut_ends_channels_in_time() {
    let (a, b) = (Peer::new("a"), Peer::new("b"));
    let proxy = Proxy::new(b.address());
    a.dial(proxy.address);
    let (here, there) = a.open(&b);
    proxy.freeze(true);
    let took = until("both ends are told", || closed(&here).is_some() && closed(&there).is_some());
    assert_eq!(closed(&here), Some(ResetReason::Unreachable));
    assert_eq!(closed(&there), Some(ResetReason::Unreachable));
    let (least, most) = (Duration::from_millis(900), Duration::from_millis(1_000 + 300 + 1_500));
    assert!((least..most).contains(&took), "took {took:?}");
    no_channels(&[&a, &b]);
    let down = |e: &ControlEvent| matches!(e, ControlEvent::NodeDown { .. });
    assert_eq!((a.count_events(down), b.count_events(down)), (1, 1));
}

/// Given two relays, and traffic while one of them is stopped, or falls silent, expect every frame
/// once, and no end of the channel.
#[test]
fn a_lost_relay_loses_nothing() {
    for silent in [false, true] {
        let (a, b) = (Peer::new("a"), Peer::new("b"));
        let (r1, r2) = (Peer::new("r1"), Peer::new("r2"));
        let mut relays = [Some(r1), Some(r2)];
        let proxies = relays.each_ref().map(|relay| {
            let relay = relay.as_ref().unwrap();
            let proxy = Proxy::new(relay.address());
            a.dial(proxy.address);
            b.dial(proxy.address);
            until("links", || relay.reaches(&a) && relay.reaches(&b));
            proxy
        });
        let (here, there) = a.open(&b);
        let sending = stream(&here, 0..3_000);
        let next = expect_some(&there, 0, 300);
        // The one that carries it.
        let carried = |relay: &Option<Peer>| {
            let links = relay.as_ref().map(|relay| relay.node.links()).unwrap_or_default();
            links.iter().map(|l| l.stats.relayed.load(Ordering::Relaxed)).sum::<u64>()
        };
        let victim = usize::from(carried(&relays[1]) > carried(&relays[0]));
        if silent {
            proxies[victim].freeze(true);
        } else {
            relays[victim] = None;
        }
        expect(&there, next..3_000);
        sending.join().unwrap();
        assert_eq!((closed(&here), closed(&there)), (None, None), "silent: {silent}");
        let down = |e: &ControlEvent| matches!(e, ControlEvent::NodeDown { id, .. } if *id == b.node.me.id);
        assert_eq!(a.count_events(down), 0);
    }
}

/// Given a relay whose way to B is stuck and whose queue is small, expect it to drop and count what is
/// for B, to hold no more than its queue, and to go on for C; when B comes back, expect every frame.
#[test]
fn a_stuck_link_stops_nobody_else() {
    let patient = |name: &str| {
        let mut config = config(name);
        config.control.hold_ms = 20_000;
        config.channel_window = 32 << 20;
        config.relay_queue = 256 << 10;
        config
    };
    let (a, r) = (Peer::with(patient("a")), Peer::with(patient("r")));
    let (b, c) = (Peer::with(patient("b")), Peer::with(patient("c")));
    link(&a, &r);
    link(&c, &r);
    let proxy = Proxy::new(b.address());
    r.dial(proxy.address);
    // Each channel begins with a small window: only many of them fill the relay.
    let to_b: Vec<_> = (0..16).map(|_| a.open(&b)).collect();
    let (to_c, at_c) = a.open(&c);
    proxy.freeze(true);
    let large = vec![7; 100_000];
    let mut sent = 0;
    let dropped = || {
        let figures = r.node.links().iter().map(|l| l.queue_figures()).collect::<Vec<_>>();
        assert!(figures.iter().all(|f| f.transit_bytes <= 256 << 10), "{figures:?}");
        figures.iter().map(|f| f.dropped).sum::<u64>()
    };
    until("drops", || {
        if here_is_room(sent) {
            assert_ne!(send(&to_b[sent % to_b.len()].0, &large), SendStatus::Closed);
            sent += 1;
        }
        dropped() > 10
    });
    let sending = stream(&to_c, 0..1_000);
    expect(&at_c, 0..1_000);
    sending.join().unwrap();
    assert!(dropped() > 10);
    proxy.freeze(false);
    let mut got = 0;
    let took = until("all frames at B", || {
        for frame in to_b.iter().flat_map(|(_, at_b)| take(at_b)) {
            assert!(frame == large);
            got += 1;
        }
        got == sent
    });
    println!(
        "{sent} frames of 100 kB, {} drops, back in {took:?}, {:?}",
        dropped(),
        to_b[0].0.figures()
    );
    let window = to_b.iter().filter_map(|(to_b, _)| to_b.figures().sender.window).min();
    assert!(window.is_some_and(|bytes| bytes < 512 << 10), "drops halve windows: {window:?}");
    assert!(to_b.iter().all(|(to_b, _)| closed(to_b).is_none()) && closed(&at_c).is_none());
}

/// No more than the windows: 30 MB.
fn here_is_room(sent: usize) -> bool {
    sent < 300
}

/// Given several threads that post to one channel without knowing of each other, expect nothing taken
/// when it is full, room to be told of, each thread's frames in order, and an end only when all have
/// arrived.
#[test]
fn posts_of_many() {
    const EACH: u32 = 2_000;
    let (a, _r, b) = line();
    let (here, there) = a.open(&b);
    let refused = std::sync::atomic::AtomicUsize::new(0);
    let post = |thread: u32| {
        for i in 0..EACH {
            let mut frame = vec![thread as u8; 10_000];
            frame[..4].copy_from_slice(&i.to_be_bytes());
            loop {
                let told = user(&here).writable.load(Ordering::SeqCst);
                let status = here.post(u64::from(thread), |sender| {
                    let flow = FlowKey::Flow(u64::from(thread));
                    let options = SendOptions { flow, ..SendOptions::default() };
                    sender.push_frame(&options, &[&frame], frame.len());
                    frame.len() as u64
                });
                match status {
                    SendStatus::Ready => break,
                    SendStatus::Full => {
                        refused.fetch_add(1, Ordering::SeqCst);
                        assert!(!here.close_if_idle(), "closed with frames under way");
                        until("room", || {
                            user(&here).writable.load(Ordering::SeqCst) > told
                                || here.has_room(u64::from(thread)) == SendStatus::Ready
                        });
                    }
                    SendStatus::Closed => panic!("closed: {:?}", closed(&here)),
                }
            }
        }
    };
    std::thread::scope(|scope| {
        (0..4).for_each(|thread| _ = scope.spawn(move || post(thread)));
        until("the channel is full", || refused.load(Ordering::SeqCst) > 4);
        let mut next = [0; 4];
        until("all frames", || {
            for frame in take(&there) {
                let i = u32::from_be_bytes(frame[..4].try_into().unwrap());
                let expected = &mut next[usize::from(frame[4])];
                assert_eq!((i, frame.len()), (*expected, 10_000));
                *expected += 1;
            }
            next == [EACH; 4]
        });
    });
    until("all is acknowledged", || here.close_if_idle());
    until("the end", || closed(&there) == Some(ResetReason::Unused));
    no_channels(&[&a, &b]);
    assert_eq!(here.has_room(0), SendStatus::Closed);
}
