//! Nodes: lives, losses, purges, and a database that heals itself.

mod routing_sim;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use chatter_core::control::{ControlConfig, ControlEvent};
use chatter_core::ids::{Incarnation, NodeId};
use chatter_core::wire::PacketType;
use chatter_core::wire::lsp::{Lsp, Neighbour};
use routing_sim::{Random, Sim, address, ms, start, us};

/// A ring of `n` nodes at rest.
fn ring(n: usize) -> Sim {
    let mut sim = Sim::new(n, 1);
    for at in 0..n {
        sim.join(at, (at + 1) % n);
    }
    sim.run_for(ms(4_000));
    sim
}

fn line(n: usize) -> Sim {
    let mut sim = Sim::new(n, 1);
    for at in 1..n {
        sim.join(at - 1, at);
    }
    sim.run_for(ms(4_000));
    sim
}

/// The story of a node as another saw it: `+` up, `-` down with the life, `?` lost, `!` found.
fn story(sim: &Sim, at: usize, id: NodeId) -> String {
    let word = |event: &ControlEvent| match event {
        ControlEvent::NodeUp { incarnation, .. } => format!("+{incarnation}"),
        ControlEvent::NodeDown { incarnation, .. } => format!("-{incarnation}"),
        ControlEvent::NodeLost { .. } => "?".to_owned(),
        ControlEvent::NodeFound { .. } => "!".to_owned(),
        _ => String::new(),
    };
    sim.node_events(at, id).iter().map(word).collect()
}

/// Given a node that restarts within the hold, next to some and far from others, expect exactly one
/// NodeDown of the old life and then one NodeUp of the new everywhere.
#[test]
fn a_restart_is_one_down_and_one_up() {
    for pause in [1, 20, 200, 450, 3_000] {
        let mut sim = ring(7);
        sim.dial = true;
        let id = sim.id(3);
        sim.kill(3);
        sim.run_for(ms(pause));
        sim.restart(3);
        sim.wish(3, 2);
        sim.wish(4, 3);
        sim.run_for(ms(4_000));
        for at in (0..7).filter(|&at| at != 3) {
            let lives: String =
                story(&sim, at, id).chars().filter(|c| !matches!(c, '?' | '!')).collect();
            assert_eq!(lives, "+1-1+2", "n{at} after {pause} ms");
            assert!(sim.hosts[at].control.is_reachable(id));
        }
    }
}

/// Given a node whose machine vanished and which dials again in a new life before anybody noticed,
/// expect the same, once the silence has been noticed.
#[test]
fn an_unnoticed_restart_is_one_down_and_one_up() {
    let mut sim = ring(6);
    let id = sim.id(3);
    for wire in sim.wires_of(3) {
        sim.wires[wire].silent = true;
        sim.wires[wire].open = false;
    }
    sim.hosts[3].alive = false;
    sim.dial = true;
    sim.run_for(ms(100));
    sim.restart(3);
    sim.wish(3, 2);
    let back = sim.run_until(ms(4_000), |sim| {
        let route = sim.hosts[0].table.route(id);
        route.is_some_and(|route| route.incarnation == Incarnation(2))
    });
    assert!(back <= ms(2_000), "{back:?}");
    sim.run_for(ms(4_000));
    for at in (0..6).filter(|&at| at != 3) {
        let lives: String = story(&sim, at, id).chars().filter(|c| *c != '?').collect();
        assert_eq!(lives, "+1-1+2", "n{at}");
    }
}

/// Given a node without a route for less than the hold, expect it lost and found but never down; for
/// longer, expect it down after the hold.
#[test]
fn lost_and_found_within_the_hold_is_no_down() {
    for (pause, expected) in [(300, "+1?!"), (900, "+1?-1+1")] {
        let mut sim = line(3);
        let id = sim.id(2);
        let wire = sim.wire_between(1, 2).expect("a wire");
        sim.cut(wire);
        sim.run_for(ms(pause));
        sim.join(1, 2);
        sim.run_for(ms(2_000));
        assert_eq!(story(&sim, 1, id), expected, "{pause}");
    }
}

/// Given a killed relay of a ring, expect all others to have new routes at once, with `RouteChanged`
/// for those that went through it, and nobody else lost.
#[test]
fn a_killed_relay_only_reroutes() {
    let mut sim = ring(8);
    for host in &mut sim.hosts {
        host.events.clear();
    }
    let dead = sim.id(3);
    sim.kill(3);
    let took = sim.run_until(ms(1_000), |sim| {
        sim.hosts[2].table.route(sim.id(4)).is_some_and(|route| route.hops == 6)
    });
    assert!(took <= ms(10), "{took:?}");
    sim.run_for(ms(1_000));
    let changed = sim.hosts[2]
        .events
        .iter()
        .any(|(_, e)| matches!(e, ControlEvent::RouteChanged { ids } if ids.contains(&sim.id(4))));
    assert!(changed);
    for at in (0..8).filter(|&at| at != 3) {
        for other in (0..8).filter(|&other| other != at) {
            let expected = if sim.id(other) == dead { "?-1" } else { "" };
            assert_eq!(story(&sim, at, sim.id(other)), expected);
        }
    }
}

/// Given a node that stops, expect it down everywhere at once, without having been lost.
#[test]
fn a_stopped_node_is_down_at_once() {
    let mut sim = ring(6);
    let (id, now) = (sim.id(3), sim.now);
    sim.hosts[3].control.stop(now);
    sim.drain(3);
    sim.run_for(ms(20));
    for at in (0..6).filter(|&at| at != 3) {
        assert_eq!(story(&sim, at, id), "+1-1", "n{at}");
    }
    assert!(sim.hosts[3].table.is_empty());
    assert_eq!(sim.hosts[3].control.poll_timeout(), None);
    sim.run_for(ms(70_000));
    assert_eq!(sim.hosts[0].control.lsdb_len(), 5, "the purge itself is forgotten");
}

/// Given an overloaded node in a square, expect traffic to pass on the other side, and the node itself
/// to be reached still; given no other way, expect it to relay as before: nobody is cut off.
#[test]
fn an_overloaded_node_relays_only_where_it_must() {
    let mut sim = ring(4);
    let now = sim.now;
    sim.hosts[1].control.set_overload(now, true);
    sim.drain(1);
    sim.run_for(ms(1_000));
    assert_eq!(sim.hosts[0].table.path(sim.id(2)), Some(vec![sim.id(3), sim.id(2)]));
    assert!(sim.hosts[0].control.is_reachable(sim.id(1)));
    assert!(sim.hosts[1].control.is_reachable(sim.id(3)), "its own traffic goes on");
    assert!(sim.hosts[0].control.topology().nodes[&sim.id(1)].overload);
    let wire = sim.wire_between(0, 3).expect("a wire");
    sim.cut(wire);
    sim.run_for(ms(1_000));
    assert_eq!(sim.hosts[0].table.path(sim.id(2)), Some(vec![sim.id(1), sim.id(2)]));
    assert_eq!(story(&sim, 0, sim.id(2)), "+1");
}

/// Given a node whose user shows no life, expect all others to know it in their tables, the relay to go
/// on, and the first sign of life to take it back.
#[test]
fn a_silent_node_is_known_and_relays() {
    let mut sim = line(4);
    let silent = |sim: &Sim, at: usize, of: usize| {
        sim.hosts[at].control.table().route(sim.id(of)).expect("a route").silent
    };
    for is in [true, false] {
        let now = sim.now;
        sim.hosts[1].control.set_silent(now, is);
        sim.drain(1);
        sim.run_for(ms(2_500));
        for at in [0, 2, 3] {
            assert_eq!(silent(&sim, at, 1), is, "at {at}");
            assert!((0..4).all(|of| of == at || of == 1 || !silent(&sim, at, of)));
        }
        assert!(sim.hosts[0].control.is_reachable(sim.id(3)));
    }
}

/// Given a node that gets a name, another one, and none again while it runs, expect the others to be told
/// and to find it by that name, and no node to go down.
#[test]
fn a_node_may_get_its_name_later() {
    let mut sim = line(3);
    let id = sim.id(0);
    for (former, name) in [("n0@sim", "late@sim"), ("late@sim", ""), ("", "again@sim")] {
        let now = sim.now;
        sim.hosts[2].events.clear();
        sim.hosts[0].control.set_name(now, name);
        sim.drain(0);
        sim.run_for(ms(2_500));
        let named =
            ControlEvent::NodeNamed { id, former: Arc::from(former), name: Arc::from(name) };
        let events: Vec<_> = sim.hosts[2].events.iter().map(|(_, event)| event.clone()).collect();
        assert_eq!(events, vec![named]);
        let found = sim.hosts[2].table.id_of(name);
        assert_eq!(found, Some(id).filter(|_| !name.is_empty()));
    }
    sim.kill(0);
    sim.run_for(ms(1_000));
    let down = sim.node_events(2, id).pop();
    assert!(matches!(down, Some(ControlEvent::NodeDown { name, .. }) if &*name == "again@sim"));
}

fn forged(sim: &Sim, at: usize, incarnation: u64, seq: u64) -> Lsp {
    Lsp {
        overload: false,
        purge: false,
        silent: false,
        lifetime_s: 3_600,
        origin: sim.id(at),
        incarnation: Incarnation(incarnation),
        seq,
        name: "forged@sim".into(),
        addresses: vec![address()],
        neighbours: vec![Neighbour { id: NodeId(1), metric: 1, incarnation: Incarnation(1) }],
    }
}

fn inject(sim: &mut Sim, at: usize, from: usize, lsp: &Lsp) {
    let link = sim.hosts[at].control.link_to(sim.id(from)).expect("a link");
    let (now, body) = (sim.now, lsp.encode());
    let result = sim.hosts[at].control.handle_packet(now, link, PacketType::Lsp, &body);
    result.expect("it can be read");
    sim.drain(at);
}

/// Given a false LSP of a living node's present life, with a higher seq, the same seq, or as a PURGE,
/// expect its origin to overrule it.
#[test]
fn an_origin_fights_back() {
    for (seq, purge) in [(500, false), (1, false), (900, true)] {
        let mut sim = line(4);
        let mut lsp = forged(&sim, 0, 1, seq);
        lsp.purge = purge;
        if purge {
            lsp.neighbours.clear();
        }
        inject(&mut sim, 2, 3, &lsp);
        sim.run_for(ms(3_000));
        for at in 1..4 {
            assert!(sim.hosts[at].control.is_reachable(sim.id(0)));
            assert_eq!(sim.hosts[at].control.lsdb_digest(), sim.hosts[0].control.lsdb_digest());
        }
        assert_eq!(sim.hosts[3].control.topology().nodes[&sim.id(0)].name.as_ref(), "n0@sim");
    }
}

/// Given two different LSPs under one number, expect all nodes to end with the origin's next one.
#[test]
fn two_lsps_under_one_number_are_sorted_out() {
    let mut sim = line(4);
    for seq in 1..8 {
        let lsp = forged(&sim, 0, 1, seq);
        inject(&mut sim, 3, 2, &lsp);
    }
    sim.run_for(ms(4_000));
    let digest = sim.hosts[0].control.lsdb_digest();
    assert!(sim.hosts.iter().all(|host| host.control.lsdb_digest() == digest));
    assert!(sim.hosts[3].control.is_reachable(sim.id(0)));
}

/// Given LSPs that got lost on a link that stays up, expect the digests to give it away and the database
/// to be repaired within two seconds.
#[test]
fn a_lost_lsp_is_repaired() {
    let mut sim = line(4);
    let losing = Rc::new(Cell::new(true));
    let still = Rc::clone(&losing);
    sim.lose = Some(Box::new(move |from, to, kind, _| {
        still.get() && (from, to, kind) == (1, 2, PacketType::Lsp)
    }));
    let now = sim.now;
    sim.hosts[0].control.set_overload(now, true);
    sim.drain(0);
    sim.run_for(ms(100));
    losing.set(false);
    let overloaded = |sim: &Sim| sim.hosts[3].control.topology().nodes[&sim.id(0)].overload;
    assert!(!overloaded(&sim));
    let took = sim.run_until(ms(2_000), overloaded);
    assert!(took > ms(500), "{took:?}");
}

/// Given more nodes than the database may hold, expect it to stay at its limit and to count.
#[test]
fn a_full_database_refuses_further_nodes() {
    let config = ControlConfig { max_nodes: 5, ..ControlConfig::default() };
    let mut sim = Sim::with_config(9, 1, config);
    for at in 1..9 {
        sim.join(at - 1, at);
    }
    sim.run_for(ms(20_000));
    for host in &sim.hosts {
        assert!(host.control.lsdb_len() <= 5);
    }
    assert!(sim.hosts.iter().any(|host| host.control.lsdb_refused() > 0));
    assert!(sim.packets < 9 * 20 * 4 * 2 * 4, "{} packets: repairs must back off", sim.packets);
}

/// Given a link that flaps a hundred times a second, expect at most about two own LSPs a second, and the
/// right tables at the end.
#[test]
fn flapping_is_damped() {
    let mut sim = ring(6);
    let lsps = Rc::new(Cell::new(0));
    let count = Rc::clone(&lsps);
    sim.lose = Some(Box::new(move |from, to, kind, body| {
        let own = Lsp::decode(body).is_ok_and(|lsp| lsp.origin == NodeId::for_name("n0@sim"));
        if kind == PacketType::Lsp && own && (from, to) == (0, 5) {
            count.set(count.get() + 1);
        }
        false
    }));
    for _ in 0..60 * 100 {
        match sim.wire_between(0, 1) {
            Some(wire) => sim.cut(wire),
            None => {
                sim.join(0, 1);
            }
        }
        sim.run_for(ms(10));
    }
    assert!(lsps.get() <= 130, "{} LSPs", lsps.get());
    assert_eq!(story(&sim, 4, sim.id(0)), "+1");
    if sim.wire_between(0, 1).is_none() {
        sim.join(0, 1);
    }
    sim.run_for(ms(3_000));
    assert_eq!(sim.hosts[1].table.route(sim.id(0)).map(|route| route.hops), Some(1));
}

/// Given two hours, expect living nodes to repeat their LSPs and a vanished one to be forgotten.
#[test]
fn lsps_are_repeated_and_age() {
    let config = ControlConfig { hello_ms: 10_000, hold_ms: 40_000, ..ControlConfig::default() };
    let mut sim = Sim::with_config(4, 1, config);
    for at in 1..4 {
        sim.join(at - 1, at);
    }
    sim.run_for(ms(4_000));
    sim.kill(3);
    sim.run_for(Duration::from_secs(3_000));
    assert_eq!(sim.hosts[0].control.lsdb_len(), 4);
    sim.run_for(Duration::from_secs(4_200));
    assert_eq!(sim.hosts[0].control.lsdb_len(), 3);
    assert_eq!(story(&sim, 0, sim.id(2)), "+1");
    assert_eq!(sim.hosts[0].table.len(), 2);
}

fn trace(seed: u64) -> Vec<String> {
    let mut sim = Sim::new(12, seed);
    let (mut random, begin) = (Random::new(seed), sim.now);
    for _ in 0..60 {
        let (a, b) = (random.below(12), random.below(12));
        match sim.wire_between(a, b) {
            _ if a == b => {}
            Some(wire) => sim.cut(wire),
            None => {
                sim.join(a, b);
            }
        }
        sim.run_for(us(random.below(300_000) as u64));
    }
    let line =
        |(at, event): &(std::time::Instant, ControlEvent)| format!("{:?} {event:?}", *at - begin);
    let events = sim.hosts.iter().flat_map(|host| host.events.iter().map(line));
    events.chain([format!("{} packets", sim.packets)]).collect()
}

/// Given equal seeds, expect equal runs, event by event.
#[test]
fn equal_inputs_have_equal_outputs() {
    let _ = start();
    assert_eq!(trace(5), trace(5));
    assert!(trace(5).len() > 100);
}

/// Given a node that is held up for so long that its peers close its links, expect that it sees the end of
/// all of them at one time, before it sees any of them again; and all see each other in the end.
#[test]
fn a_node_given_up_sees_all_ends_at_once() {
    for pause in [1_300, 1_400, 2_000, 4_000] {
        let mut sim = ring(6);
        let before = sim.now;
        sim.pause(3, ms(pause));
        sim.run_for(ms(pause + 20));
        sim.join(2, 3);
        sim.join(3, 4);
        sim.run_for(ms(6_000));
        let mut downs = Vec::new();
        let mut first_up = None;
        for (at, event) in sim.hosts[3].events.iter().filter(|(at, _)| *at > before) {
            match event {
                ControlEvent::NodeDown { .. } => downs.push(*at),
                ControlEvent::NodeUp { .. } => first_up = first_up.or(Some(*at)),
                _ => {}
            }
        }
        assert_eq!(downs.len(), 5, "after {pause} ms: {:?}", sim.hosts[3].events);
        assert!(downs.iter().all(|at| *at == downs[0] && first_up.is_none_or(|up| *at <= up)));
        for at in (0..6).filter(|&at| at != 3) {
            let sees: String = story(&sim, 3, sim.id(at));
            assert_eq!(sees.replace(['?', '!'], ""), "+1-1+1", "n{at} after {pause} ms");
            assert!(sim.hosts[at].control.is_reachable(sim.id(3)));
        }
    }
}

/// Given that every node is held up at once, as when the machine under them is, expect nobody to be
/// given up.
#[test]
fn a_pause_of_all_ends_nothing() {
    let mut sim = ring(6);
    for at in 0..6 {
        sim.pause(at, ms(4_000));
    }
    sim.run_for(ms(8_000));
    for at in 0..6 {
        for other in (0..6).filter(|&other| other != at) {
            assert_eq!(story(&sim, at, sim.id(other)), "+1", "n{at} of n{other}");
        }
    }
}

/// Given a node that is held up for less than the hold, expect nobody to notice, even where peers have
/// closed its links.
#[test]
fn a_shorter_pause_is_forgiven() {
    for pause in [300, 700, 850, 990] {
        let mut sim = ring(6);
        sim.pause(3, ms(pause));
        sim.run_for(ms(pause + 20));
        for other in [2, 4] {
            if sim.wire_between(3, other).is_none_or(|wire| !sim.wires[wire].open) {
                sim.join(3, other);
            }
        }
        sim.run_for(ms(6_000));
        for at in (0..6).filter(|&at| at != 3) {
            assert_eq!(story(&sim, 3, sim.id(at)).replace(['?', '!'], ""), "+1", "{pause} ms");
            assert_eq!(story(&sim, at, sim.id(3)).replace(['?', '!'], ""), "+1", "{pause} ms");
        }
    }
}

/// Given a node that is held up while another dies, expect it to give that one up as long after it heard
/// of the death as always: the time before is not added.
#[test]
fn what_is_heard_after_a_pause_is_not_forgiven_it() {
    let mut sim = line(3);
    sim.kill(2);
    sim.pause(0, ms(900));
    let woken = sim.now + ms(900);
    sim.run_for(ms(3_000));
    let down = sim.hosts[0].events.iter().find_map(|(at, event)| {
        matches!(event, ControlEvent::NodeDown { id, .. } if *id == sim.id(2)).then_some(*at)
    });
    let took = down.expect("a NodeDown") - woken;
    assert!(took >= ms(500) && took <= ms(520), "{took:?}");
}

/// Given a chosen next hop for a destination, expect it to be followed from where it leads nearer, the
/// computed way to be the alternate, and the computed way where it does not, when it drains, when its link
/// is lost, and when the choice is taken back.
#[test]
fn static_routes_are_followed_where_they_lead_nearer() {
    // 0 - 1 - 3 is short; 2 is nearer to 3 than 0 is; 4 hangs on 0 and is nearer to nothing.
    let mut sim = Sim::new(5, 1);
    sim.join(0, 1);
    sim.join(1, 3);
    sim.join(2, 3);
    sim.join(0, 4);
    sim.delay = ms(1);
    let slow = sim.join(0, 2);
    sim.run_for(ms(4_000));
    let link = |sim: &Sim, to: usize| sim.hosts[0].control.link_to(sim.id(to)).expect("a link");
    let hops = |sim: &Sim| {
        let route = sim.hosts[0].table.route(sim.id(3)).expect("a route");
        (route.next_hops.clone(), route.alternate)
    };
    let choose = |sim: &mut Sim, via: Option<usize>| {
        let routes = via.map(|via| (sim.id(3), sim.id(via))).into_iter().collect();
        let now = sim.now;
        sim.hosts[0].control.set_static_routes(now, routes);
        sim.drain(0);
        sim.run_for(ms(1_000));
    };
    let (short, chosen) = (link(&sim, 1), link(&sim, 2));
    assert_eq!(hops(&sim), (vec![short], Some(chosen)));
    choose(&mut sim, Some(2));
    assert_eq!(hops(&sim), (vec![chosen], Some(short)));
    choose(&mut sim, Some(4));
    assert_eq!(hops(&sim).0, vec![short], "not nearer");
    choose(&mut sim, Some(2));
    for (drains, expected) in [(true, short), (false, chosen)] {
        let now = sim.now;
        sim.hosts[2].control.set_overload(now, drains);
        sim.drain(2);
        sim.run_for(ms(1_500));
        assert_eq!(hops(&sim).0, vec![expected], "drains: {drains}");
    }
    choose(&mut sim, None);
    assert_eq!(hops(&sim).0, vec![short]);
    choose(&mut sim, Some(2));
    sim.cut(slow);
    sim.run_for(ms(1_000));
    assert_eq!(hops(&sim).0, vec![short]);
}
