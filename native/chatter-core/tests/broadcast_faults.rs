//! Broadcasts while nodes die and links break: each message once, in the order of its origin, at
//! everybody who stays. Seeds are in the messages of failures.

mod broadcast_net;

use std::time::Duration;

use broadcast_net::{World, graph, id, mesh};
use bytes::Bytes;
use chatter_core::broadcast::payload::Packed;
use chatter_core::broadcast::{BroadcastConfig, Targets};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

const MS: Duration = Duration::from_millis(1);

/// Everything that every life of a receiver got from every life of an origin is in order, and nothing
/// came twice.
fn check_order(world: &World, seed: u64) {
    for ((at, _), log) in &world.log {
        for ((origin, _), numbers) in log {
            let rising = numbers.windows(2).all(|pair| pair[0] < pair[1]);
            assert!(rising, "seed {seed}: {at} got from {origin}: {numbers:?}");
        }
    }
}

/// `at` got all that the present life of `origin` has sent.
fn check_all(world: &World, at: usize, origin: usize, seed: u64) {
    let all: Vec<u64> = (1..=world.nodes[origin].sent).collect();
    assert_eq!(world.got(at, origin), all, "seed {seed}: {at} from {origin}");
}

/// Given a quiet network, expect N - 1 sends for each broadcast, and everything kept to be let go.
#[test]
fn steady() {
    for seed in 0..20 {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let nodes = rng.random_range(2..50);
        let chords = rng.random_range(0..3 * nodes);
        let edges = graph(nodes, chords, &mut rng);
        let mut world = World::new(nodes, &edges, seed);
        for round in 0..20 {
            assert!(world.send(round % nodes, &Targets::All, 50));
            world.run(20 * MS);
        }
        for origin in 0..nodes {
            for at in (0..nodes).filter(|at| *at != origin) {
                check_all(&world, at, origin, seed);
            }
            assert_eq!(world.nodes[origin].core.bytes(), (0, 0), "seed {seed}");
        }
        assert_eq!(world.packets(), 20 * (nodes as u64 - 1), "seed {seed}");
    }
}

/// Given lists of targets that differ and many messages at once, expect each to get its own ones in order.
#[test]
fn lists() {
    let mut world = World::new(6, &graph(6, 3, &mut Xoshiro256PlusPlus::seed_from_u64(1)), 1);
    let lists: [&[usize]; 4] = [&[1, 2], &[2, 3, 4], &[5], &[0, 1, 5]];
    let mut wanted = vec![Vec::new(); 6];
    for number in 1..=2_000u64 {
        let list = lists[number as usize * 7 % 11 % 4];
        list.iter().for_each(|at| wanted[*at].push(number));
        let targets = Targets::Nodes(list.iter().map(|at| id(*at)).collect());
        assert!(world.send(0, &targets, 10));
    }
    world.run(1_000 * MS);
    for (at, wanted) in wanted.iter().enumerate() {
        assert_eq!(world.got(at, 0), wanted, "{at}");
    }
}

/// Given messages of all sizes, expect them whole; given more than is allowed, a refusal.
#[test]
fn large_messages() {
    let config = BroadcastConfig { window: 1 << 20, max_message: 3 << 20, ..Default::default() };
    let mut world = World::with_config(4, &mesh(4), 7, config);
    for pad in [0, 15_000, 15_865, 15_872, 15_873, 16_384, 40_000, (3 << 20) - 8] {
        while !world.send(0, &Targets::All, pad) {
            world.run(MS);
        }
    }
    world.run(1_000 * MS);
    (1..4).for_each(|at| check_all(&world, at, 0, 7));
    let now = world.instant();
    let body = Packed { body: Bytes::from(vec![0; (3 << 20) + 1]), lz4: false };
    assert!(world.nodes[0].core.send(now, &Targets::All, "t", &body).is_err());
}

/// Given nodes that die one after the other while all broadcast, as long as the others stay connected,
/// expect those who stay to get everything of each other.
#[test]
fn deaths() {
    for seed in 0..200 {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let nodes = rng.random_range(4..40);
        let edges = if seed % 4 == 0 { mesh(nodes) } else { graph(nodes, 3 * nodes, &mut rng) };
        let mut world = World::new(nodes, &edges, seed);
        let mut left = nodes * 3 / 10;
        for _ in 0..200 {
            let from = rng.random_range(0..nodes);
            if world.nodes[from].alive {
                world.send(from, &Targets::All, 20);
            }
            world.run(Duration::from_micros(rng.random_range(0..2_000)));
            let victim = rng.random_range(0..nodes);
            if left > 0 && rng.random_range(0..10) == 0 && world.nodes[victim].alive {
                let links = world.links.clone();
                world.kill(victim);
                if world.is_connected() {
                    left -= 1;
                } else {
                    world.nodes[victim].alive = true;
                    world.links = links;
                }
            }
        }
        // What the dead have left is kept for the gap timeout.
        world.run(15_000 * MS);
        check_order(&world, seed);
        let alive: Vec<usize> = (0..nodes).filter(|at| world.nodes[*at].alive).collect();
        for origin in &alive {
            for at in alive.iter().filter(|at| *at != origin) {
                check_all(&world, *at, *origin, seed);
            }
            assert_eq!(world.nodes[*origin].core.bytes(), (0, 0), "seed {seed}: {origin}");
        }
    }
}

/// Given a network that is cut in two for a second, again and again, expect nothing to be missing.
#[test]
fn partitions() {
    for seed in 0..60 {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let nodes = rng.random_range(4..20);
        let mut world = World::new(nodes, &graph(nodes, nodes, &mut rng), seed);
        for _ in 0..4 {
            let middle = rng.random_range(1..nodes);
            let across: Vec<(usize, usize)> = world
                .links
                .keys()
                .copied()
                .filter(|(a, b)| (*a < middle) != (*b < middle))
                .collect();
            across.iter().for_each(|(a, b)| world.cut(*a, *b));
            for _ in 0..50 {
                world.send(rng.random_range(0..nodes), &Targets::All, 20);
                world.run(20 * MS);
            }
            across.iter().for_each(|(a, b)| world.link(*a, *b));
            world.run(200 * MS);
        }
        world.run(10_000 * MS);
        check_order(&world, seed);
        for origin in 0..nodes {
            // Before the first table after the cut, All meant everybody; later only this side. What was
            // sent to a node must have arrived there.
            for at in (0..nodes).filter(|at| *at != origin) {
                let stats = world.nodes[at].core.stats();
                assert_eq!((stats.gaps, stats.damaged), (0, 0), "seed {seed}: {at}");
            }
            let stats = world.nodes[origin].core.stats();
            assert_eq!(stats.lost, 0, "seed {seed}: {origin}");
            assert_eq!(world.nodes[origin].core.bytes(), (0, 0), "seed {seed}: {origin}");
        }
    }
}

/// Given nodes that restart, expect their later life to get nothing that was meant for the former one.
#[test]
fn restarts() {
    for seed in 0..60 {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let nodes = rng.random_range(4..12);
        let mut world = World::new(nodes, &mesh(nodes), seed);
        let mut first_after = vec![0u64; nodes];
        for _ in 0..20 {
            let victim = rng.random_range(1..nodes);
            for _ in 0..5 {
                world.send(0, &Targets::All, 20);
                world.run(Duration::from_micros(rng.random_range(0..1_000)));
            }
            world.kill(victim);
            world.run(Duration::from_millis(rng.random_range(1..4_000)));
            world.restart(victim);
            first_after[victim] = world.nodes[0].sent + 1;
            for other in (0..nodes).filter(|other| *other != victim) {
                if world.nodes[other].alive {
                    world.link(victim, other);
                }
            }
            world.run(100 * MS);
        }
        world.run(30_000 * MS);
        check_order(&world, seed);
        for (at, first) in first_after.iter().enumerate().skip(1) {
            let all: Vec<u64> = ((*first).max(1)..=world.nodes[0].sent).collect();
            assert_eq!(world.got(at, 0), all, "seed {seed}: {at}");
        }
    }
}

/// Given a window that is small, expect refusals until there is room, and nothing lost.
#[test]
fn window() {
    let config = BroadcastConfig { window: 20_000, ..Default::default() };
    let mut world = World::with_config(3, &mesh(3), 3, config);
    let mut refused = 0;
    for _ in 0..500 {
        while !world.send(0, &Targets::All, 1_000) {
            refused += 1;
            assert!(world.nodes[0].core.bytes().0 < 20_000 + 17_000);
            world.run(MS / 10);
        }
    }
    world.run(100 * MS);
    assert!(refused > 10);
    (1..3).for_each(|at| check_all(&world, at, 0, 3));
}

/// Given relays without memory, expect them to be asked again until they have some, and nothing lost.
#[test]
fn busy_relay() {
    let config = BroadcastConfig { window: 1 << 20, memory: 30_000, ..Default::default() };
    let mut world = World::with_config(3, &[(0, 1), (1, 2)], 3, config);
    for _ in 0..300 {
        while !world.send(0, &Targets::All, 1_000) {
            world.run(MS);
        }
    }
    world.run(20_000 * MS);
    assert!(world.nodes[1].core.stats().busy > 0);
    (1..3).for_each(|at| check_all(&world, at, 0, 3));
}

/// Given links that lose a tenth of all packets, acknowledgements as well, expect nothing to be missing.
#[test]
fn packets_lost() {
    for seed in 0..40 {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let nodes = rng.random_range(2..12);
        let config = BroadcastConfig { gap_timeout: 600_000 * MS, ..Default::default() };
        let edges = graph(nodes, nodes, &mut rng);
        let mut world = World::with_config(nodes, &edges, seed, config);
        world.lose = Some(10);
        for _ in 0..100 {
            let from = rng.random_range(0..nodes);
            world.send(from, &Targets::All, 20);
            world.run(5 * MS);
        }
        world.run(120_000 * MS);
        check_order(&world, seed);
        for origin in 0..nodes {
            for at in (0..nodes).filter(|at| *at != origin) {
                check_all(&world, at, origin, seed);
            }
            assert_eq!(world.nodes[origin].core.bytes(), (0, 0), "seed {seed}");
        }
    }
}

/// Given a target that is gone, expect the nodes on the way to it to forget all others that are behind them
/// while they wait for it: when one of them goes too, nothing is sent again to those who have the message.
#[test]
fn only_open_targets_again() {
    // 0 to 2 over 1 or 3; 2 to 4..14.
    let mut edges = vec![(0, 1), (1, 2), (0, 3), (2, 3)];
    edges.extend((4..14).map(|leaf| (2, leaf)));
    let mut world = World::new(14, &edges, 1);
    world.kill_silently(4, 60_000 * MS);
    assert!(world.send(0, &Targets::All, 20));
    world.run(500 * MS);
    // One to each, also to the one that is gone; that one is not counted.
    assert_eq!(world.packets(), 12);
    let used = if world.carried.contains_key(&(1, 2)) { 1 } else { 3 };
    world.kill(used);
    world.run(1_000 * MS);
    // From 0 over the other to 2, to try the one that is gone again.
    assert_eq!(world.packets(), 14, "{:?}", world.carried);
    world.run(90_000 * MS);
    for at in (1..14).filter(|at| ![4, used].contains(at)) {
        check_all(&world, at, 0, 1);
        assert_eq!(world.nodes[at].core.stats().duplicates, 0, "{at}");
        assert_eq!(world.nodes[at].core.bytes(), (0, 0), "{at}");
    }
    assert_eq!(world.nodes[0].core.bytes(), (0, 0));
}

/// Given a type that a relay changes, expect those behind it to get what it made of a message; given a
/// relay that does not answer, the message as it was, after a while.
#[test]
fn changed_on_the_way() {
    let body =
        |text: &'static str| Packed { body: Bytes::from_static(text.as_bytes()), lz4: false };
    for answers in [true, false] {
        let mut world = World::new(3, &[(0, 1), (1, 2)], 1);
        world.nodes[1].core.set_handled(["t".to_owned()]);
        let now = world.instant();
        let text = "12345678 as it was";
        world.nodes[0].core.send(now, &Targets::All, "t", &body(text)).unwrap();
        let (_, packet) = world.nodes[0].core.poll_transmit().unwrap();
        let packet = packet.to_vec();
        let read = chatter_core::wire::next_packet(&mut &packet[..]).unwrap().unwrap();
        let relay = &mut world.nodes[1].core;
        relay.handle_packet(now, id(0), read.kind, read.body).unwrap();
        assert!(relay.poll_transmit().is_none(), "it waits");
        let delivery = relay.poll_delivery().unwrap();
        let ticket = delivery.ticket.unwrap();
        if answers {
            relay.dispatched(now, ticket, delivery.seq, Some(body("12345678 changed")));
        } else {
            relay.handle_timeout(now + Duration::from_secs(2));
        }
        let (to, packet) = relay.poll_transmit().unwrap();
        assert_eq!(to, id(2));
        let packet = packet.to_vec();
        let wanted = if answers { &b"12345678 changed"[..] } else { text.as_bytes() };
        assert!(packet.ends_with(wanted), "{}", String::from_utf8_lossy(&packet));
    }
}
