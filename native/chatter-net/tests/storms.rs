//! Link-state packets over links that cannot take them as fast as they are made.

mod net;

use std::sync::atomic::Ordering;

use net::{LONG, Peer, Proxy, config, link, until};

/// Given a neighbour that reads nothing while a node makes thousands of LSPs, expect no more of them to be
/// queued than `control_queue` allows and none dropped, and the neighbour to have the newest when it reads.
#[test]
fn a_storm_waits_as_one_mark() {
    let with = |name: &str| {
        let mut config = config(name);
        config.control_queue = 4 << 10;
        config.control.hold_ms = LONG.as_millis() as u32;
        // LSPs of some length: the kernel takes many small ones.
        config.advertise = (0..8).map(|at| [10, 0, 0, at].into()).collect();
        Peer::with(config)
    };
    let (a, b, c) = (with("a"), with("b"), with("c"));
    let proxy = Proxy::new(b.address());
    link(&a, &c);
    a.dial(proxy.address);
    until("all reach all", || a.reaches(&b) && c.reaches(&b) && b.reaches(&c));
    let to_b = a.node.links().into_iter().find(|l| l.peer.id == b.node.me.id).expect("a link");
    proxy.freeze(true);
    let blocked = || to_b.stats.blocked.load(Ordering::Relaxed);
    let (was_blocked, mut made) = (blocked(), 0);
    until("the link has too much", || {
        for at in 0..200 {
            assert!(
                a.node.with_control(move |control, now| control.set_overload(now, at % 2 == 0))
            );
        }
        made += 200;
        blocked() > was_blocked && to_b.control_bytes() > 4 << 10
    });
    let queued = to_b.control_bytes();
    for at in 0..2_000 {
        until("room", || {
            a.node.with_control(move |control, now| control.set_overload(now, at % 2 == 0))
        });
    }
    // The last one can be told from all before.
    a.node.with_control(|control, now| control.set_name(now, "last@test"));
    until("c has the newest", || has_last(&c, &a));
    // HELLOs come in addition, a few.
    assert!(to_b.control_bytes() <= queued + 4_096, "{made}: {} bytes", to_b.control_bytes());
    assert_eq!(to_b.queue_figures().dropped, 0, "nothing dropped");
    assert!(!has_last(&b, &a));
    proxy.freeze(false);
    until("b has the newest", || has_last(&b, &a));
    assert!(a.reaches(&b) && !to_b.is_closed());
}

fn has_last(of: &Peer, node: &Peer) -> bool {
    let (tell, told) = std::sync::mpsc::channel();
    let id = node.node.me.id;
    of.node.with_control(move |control, _| {
        let topology = control.topology();
        tell.send(topology.nodes.get(&id).is_some_and(|node| &*node.name == "last@test")).ok();
    });
    told.recv_timeout(LONG).unwrap_or(false)
}
