//! Links: probes, holds, duplicates, lives, and who is to blame for silence.

mod routing_sim;

use chatter_core::control::{
    CloseReason, Control, ControlConfig, ControlEvent, DisconnectTarget, LinkState, LinkUp,
};
use chatter_core::ids::{Incarnation, LinkId};
use chatter_core::wire::PacketType;
use chatter_core::wire::hello::ByeReason;
use chatter_core::wire::identity::Identity;
use routing_sim::{Sim, address, identity, ms, start, us};

fn up(link: u32, peer: Identity) -> LinkUp {
    let (link, remote) = (LinkId(link), address());
    LinkUp { link, peer, we_dialled: true, neighbour: None, dial_seq: link.0.into(), remote }
}

fn events(control: &mut Control) -> Vec<ControlEvent> {
    std::iter::from_fn(|| control.poll_event()).collect()
}

/// Given two fresh nodes and a new link, expect routes at both ends after one round trip.
#[test]
fn a_new_link_has_a_route_after_one_round_trip() {
    let mut sim = Sim::new(2, 1);
    sim.delay = ms(5);
    sim.join(0, 1);
    sim.run_for(ms(10));
    assert!(sim.hosts[0].control.is_reachable(sim.id(1)));
    assert!(sim.hosts[1].control.is_reachable(sim.id(0)));
    assert_eq!(sim.hosts[0].table.nodes(), vec![sim.id(1)]);
}

/// Given a node to which forty links come up one after the other, so that its LSPs are throttled, expect
/// each of them to carry packets after one round trip nevertheless.
#[test]
fn a_new_link_does_not_wait_for_throttled_lsps() {
    let mut sim = Sim::new(41, 1);
    sim.delay = ms(2);
    for at in 1..41 {
        sim.join(at, 0);
        sim.run_for(ms(4));
        assert!(sim.hosts[0].control.is_reachable(sim.id(at)), "{at}");
        assert!(sim.hosts[at].control.is_reachable(sim.id(0)), "{at}");
    }
}

/// Given wires with known delays, expect those round trips and their metrics.
#[test]
fn hello_measures_the_round_trip() {
    for (delay_us, metric) in [(100, 10), (450, 10), (2_000, 20), (9_000, 50), (200_000, 300)] {
        let mut sim = Sim::new(2, 1);
        sim.delay = us(delay_us);
        sim.join(0, 1);
        sim.run_for(ms(3_000));
        let info = &sim.hosts[0].control.links()[0];
        assert_eq!(info.srtt_us, Some(2 * delay_us as u32));
        assert_eq!((info.metric, info.state), (metric, LinkState::Up));
    }
}

/// Given a round trip that wobbles around a bound, expect the metric to stay; given one that stays
/// beyond, expect it to follow after a while.
#[test]
fn the_metric_does_not_follow_every_wobble() {
    let mut sim = Sim::new(2, 1);
    sim.delay = us(450);
    let wire = sim.join(0, 1);
    for at in 0..100 {
        sim.wires[wire].delay = us(if at % 2 == 0 { 400 } else { 600 });
        sim.run_for(ms(100));
        assert_eq!(sim.hosts[0].control.links()[0].metric, 10);
    }
    sim.wires[wire].delay = ms(2);
    sim.run_for(ms(5_000));
    assert_eq!(sim.hosts[0].control.links()[0].metric, 20);
    assert_eq!(sim.hosts[1].table.route(sim.id(0)).map(|route| route.distance), Some(20));
}

/// Given a link that falls silent, expect it to be closed after the hold, and the node to be down after
/// the other hold.
#[test]
fn silence_ends_a_link_and_then_a_node() {
    let mut sim = Sim::new(2, 1);
    let wire = sim.join(0, 1);
    sim.run_for(ms(2_000));
    sim.wires[wire].silent = true;
    let silent = sim.now;
    sim.run_for(ms(3_000));
    assert_eq!(sim.closes(0), vec![CloseReason::HoldExpired]);
    let when = |wanted: fn(&ControlEvent) -> bool| {
        let (at, _) = sim.hosts[0].events.iter().find(|(_, e)| wanted(e)).expect("the event");
        *at - silent
    };
    let down = when(|event| matches!(event, ControlEvent::LinkDown { .. }));
    assert!(down > ms(740) && down <= ms(1_001), "{down:?}");
    let node_down = when(|event| matches!(event, ControlEvent::NodeDown { .. }));
    assert_eq!(node_down, down + ms(500));
}

/// Given ends with different holds, expect both to use the larger.
#[test]
fn the_larger_hold_counts() {
    let now = start();
    let mut control = Control::new(ControlConfig::default(), identity("me@x", 1), 1, now);
    let mut peer = identity("peer@x", 1);
    peer.hold_ms = 3_000;
    control.handle_link_up(now, up(1, peer));
    let mut at = now;
    while !control.links().is_empty() {
        at = control.poll_timeout().expect("a timer");
        control.handle_timeout(at);
        while control.poll_transmit().is_some() {}
    }
    assert_eq!(at, now + ms(3_000));
}

/// Given other traffic only, expect a link to stay.
#[test]
fn any_traffic_keeps_a_link() {
    let now = start();
    let mut control = Control::new(ControlConfig::default(), identity("me@x", 1), 1, now);
    control.handle_link_up(now, up(1, identity("peer@x", 1)));
    for tenth in 1..100 {
        control.handle_alive(now + ms(tenth * 100), LinkId(1));
        while let Some(at) = control.poll_timeout().filter(|at| *at <= now + ms(tenth * 100)) {
            control.handle_timeout(at);
        }
    }
    assert_eq!(control.links().len(), 1);
}

/// Given a process that was held up for ten seconds, expect it not to blame its neighbours; given more
/// silence after that, expect it to.
#[test]
fn a_starved_process_blames_nobody() {
    let now = start();
    let mut control = Control::new(ControlConfig::default(), identity("me@x", 1), 1, now);
    control.handle_link_up(now, up(1, identity("peer@x", 1)));
    let awake = now + ms(10_000);
    control.handle_timeout(awake);
    assert_eq!(control.links().len(), 1);
    let mut at = awake;
    while !control.links().is_empty() {
        at = control.poll_timeout().expect("a timer");
        control.handle_timeout(at);
    }
    assert!(at > awake + ms(500) && at <= awake + ms(1_000));
}

/// Given nodes that are held up at random for up to 400 ms, expect no link and no node to go down.
#[test]
fn short_starvation_is_not_noticed() {
    let mut sim = Sim::new(5, 7);
    for at in 0..5 {
        sim.join(at, (at + 1) % 5);
    }
    sim.run_for(ms(1_000));
    let mut random = routing_sim::Random::new(7);
    for _ in 0..500 {
        let (at, time) = (random.below(5), 50 + random.below(350) as u64);
        sim.pause(at, ms(time));
        sim.run_for(ms(500));
    }
    let down = |event: &ControlEvent| {
        matches!(event, ControlEvent::LinkDown { .. } | ControlEvent::NodeLost { .. })
    };
    assert!(sim.hosts.iter().all(|host| !host.events.iter().any(|(_, e)| down(e))));
}

fn orders(of: &[(usize, usize)]) -> Vec<Vec<(usize, usize)>> {
    if of.is_empty() {
        return vec![Vec::new()];
    }
    let first = |at: usize| {
        let mut rest = of.to_vec();
        let chosen = rest.remove(at);
        orders(&rest).into_iter().map(move |tail| [vec![chosen], tail].concat())
    };
    (0..of.len()).flat_map(first).collect()
}

/// Given two links between two nodes, dialled by both or twice by one, in each order in which the four
/// ends can come up, expect both nodes to keep the same one.
#[test]
fn both_ends_keep_the_same_of_two_links() {
    for (second_dialler, same) in [(1, false), (0, true)] {
        for order in orders(&[(0, 0), (0, 1), (1, 0), (1, 1)]) {
            for pause in [us(0), us(100), ms(1)] {
                let mut sim = Sim::new(2, 1);
                let wires = [sim.wire(0, 1), sim.wire(second_dialler, 1 - second_dialler)];
                for (wire, end) in &order {
                    sim.up(wires[*wire], *end, None, 10 + *wire as u64);
                    sim.run_for(pause);
                }
                sim.run_for(ms(100));
                let lower_dialled = usize::from(sim.id(1) < sim.id(0));
                let kept = wires[if same { 1 } else { lower_dialled }];
                for at in 0..2 {
                    let links: Vec<_> =
                        sim.hosts[at].control.links().iter().map(|info| info.link).collect();
                    let (_, link) = *sim.wires[kept].ends.iter().find(|e| e.0 == at).expect("end");
                    assert_eq!(links, vec![link], "n{at}, {order:?}, {pause:?}");
                    assert!(sim.hosts[at].control.is_reachable(sim.id(1 - at)));
                    assert!(sim.closes(at).iter().all(|r| *r == CloseReason::Duplicate));
                }
            }
        }
    }
}

/// Given a peer in another life, newer or older, while a link to it lives, expect it to be refused with
/// the reason, and the link that is there to be probed; when that is lost, expect the newer life to be
/// taken in.
#[test]
fn one_life_at_a_time() {
    let now = start();
    let mut control = Control::new(ControlConfig::default(), identity("me@x", 1), 1, now);
    control.handle_link_up(now, up(1, identity("peer@x", 5)));
    while control.poll_transmit().is_some() {}
    for (link, life) in [(2, 6), (3, 4)] {
        events(&mut control);
        control.handle_link_up(now, up(link, identity("peer@x", life)));
        let closed = ControlEvent::CloseLink { link: LinkId(link), reason: CloseReason::Clash };
        assert_eq!(events(&mut control), vec![closed]);
        let sent: Vec<_> = std::iter::from_fn(|| control.poll_transmit()).collect();
        let bye = [0, 0, 1, PacketType::Bye as u8, ByeReason::Clash as u8].to_vec();
        assert_eq!(sent[0], (LinkId(link), bye));
        assert_eq!((sent[1].0, sent[1].1[3]), (LinkId(1), PacketType::Hello as u8));
    }
    control.handle_link_down(now, LinkId(1));
    control.handle_link_up(now, up(4, identity("peer@x", 6)));
    assert_eq!(control.links()[0].peer.incarnation, Incarnation(6));
}

/// Given a link to itself, expect a node to close it; given one to a namesake, to report that as well.
#[test]
fn own_id_is_refused() {
    let now = start();
    let mut control = Control::new(ControlConfig::default(), identity("me@x", 5), 1, now);
    control.handle_link_up(now, up(1, identity("me@x", 5)));
    let reason = CloseReason::OwnId;
    assert_eq!(events(&mut control), vec![ControlEvent::CloseLink { link: LinkId(1), reason }]);
    control.handle_link_up(now, up(2, identity("me@x", 4)));
    let (name, incarnation) = ("me@x".into(), Incarnation(4));
    let closed = ControlEvent::CloseLink { link: LinkId(2), reason: CloseReason::Clash };
    let clash = ControlEvent::NameClash { name, incarnation };
    assert_eq!(events(&mut control), vec![closed, clash]);
    assert!(control.links().is_empty());
}

/// Given a packet that cannot be read, or that is not for the control plane, expect the link to go.
#[test]
fn bad_packets_end_the_link() {
    for (kind, body) in [(PacketType::Hello, &[1, 2, 3][..]), (PacketType::Data, &[0; 40][..])] {
        let now = start();
        let mut control = Control::new(ControlConfig::default(), identity("me@x", 5), 1, now);
        control.handle_link_up(now, up(1, identity("peer@x", 5)));
        assert!(control.handle_packet(now, LinkId(1), kind, body).is_err());
        let reason = CloseReason::BadPacket;
        let closed = ControlEvent::CloseLink { link: LinkId(1), reason };
        assert!(events(&mut control).contains(&closed));
        assert_eq!(control.handle_packet(now, LinkId(1), kind, body), Ok(()), "not in use");
    }
}

/// Given the limit of links, expect a further one to be closed and the others to stay.
#[test]
fn links_have_a_limit() {
    let now = start();
    let config = ControlConfig { max_links: 2, ..ControlConfig::default() };
    let mut control = Control::new(config, identity("me@x", 5), 1, now);
    for (link, name) in [(1, "a@x"), (2, "b@x"), (3, "c@x")] {
        control.handle_link_up(now, up(link, identity(name, 1)));
    }
    assert_eq!(control.links().len(), 2);
    let reason = CloseReason::TooManyLinks;
    let closed = ControlEvent::CloseLink { link: LinkId(3), reason };
    assert_eq!(events(&mut control).last(), Some(&closed));
}

/// Given a disconnect, expect the peer to hear BYE and both links to be down at once.
#[test]
fn disconnect_says_bye() {
    let mut sim = Sim::new(2, 1);
    sim.join(0, 1);
    sim.run_for(ms(500));
    let (now, target) = (sim.now, DisconnectTarget::Node(sim.id(1)));
    sim.hosts[0].control.disconnect(now, &target);
    sim.drain(0);
    sim.run_for(us(200));
    assert_eq!(sim.closes(0), vec![CloseReason::Disconnect]);
    assert_eq!(sim.closes(1), vec![CloseReason::PeerBye]);
}

/// Given a link that cannot take more, expect HELLOs only, and then one LSP per origin.
#[test]
fn a_blocked_link_gets_the_newest_lsp_once() {
    let mut sim = Sim::new(3, 1);
    sim.join(0, 1);
    sim.join(1, 2);
    sim.run_for(ms(3_000));
    let link = sim.hosts[1].control.link_to(sim.id(2)).expect("a link");
    let now = sim.now;
    sim.hosts[1].control.handle_link_blocked(now, link, true);
    for flip in 0..6 {
        let now = sim.now;
        sim.hosts[0].control.set_overload(now, flip % 2 == 0);
        sim.drain(0);
        sim.run_for(ms(1_100));
    }
    assert!(!sim.hosts[2].control.topology().nodes[&sim.id(0)].overload);
    let now = sim.now;
    sim.hosts[0].control.set_overload(now, true);
    sim.drain(0);
    sim.run_for(ms(1_100));
    let now = sim.now;
    sim.hosts[1].control.handle_link_blocked(now, link, false);
    let lsps = std::iter::from_fn(|| sim.hosts[1].control.poll_transmit())
        .filter(|(to, packet)| *to == link && packet[3] == PacketType::Lsp as u8)
        .count();
    assert!((1..=3).contains(&lsps), "{lsps}");
}
