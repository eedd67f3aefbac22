//! Broadcasts by multicast: datagrams that are lost, heard by some only, in one direction only or by
//! nobody, while nodes die; each message once, in the order of its origin, at everybody who stays.
//! Seeds are in the messages of failures.

mod broadcast_net;

use std::collections::BTreeSet;
use std::time::Duration;

use broadcast_net::{World, graph, id, mesh};
use chatter_core::broadcast::{BroadcastConfig, BroadcastStats, Targets};
use chatter_core::wire::datagram::kind;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn config() -> BroadcastConfig {
    BroadcastConfig { multicast_rate: Some(2_500_000), ..BroadcastConfig::default() }
}

/// A mesh, all on one segment.
fn segment(nodes: usize, seed: u64) -> World {
    let mut world = World::with_config(nodes, &mesh(nodes), seed, config());
    world.segment(&(0..nodes).collect::<Vec<_>>());
    world
}

fn all(world: &World) -> Vec<usize> {
    (0..world.nodes.len()).collect()
}

fn total(world: &World, figure: impl Fn(&BroadcastStats) -> u64) -> u64 {
    world.nodes.iter().map(|node| figure(&node.core.stats())).sum()
}

/// Everybody alive has all that those alive have sent in their present lives, in order, once.
fn check(world: &World, seed: u64) {
    for origin in all(world) {
        let sent: Vec<u64> = (1..=world.nodes[origin].sent).collect();
        for at in all(world).into_iter().filter(|at| *at != origin) {
            if world.nodes[at].alive && world.nodes[origin].alive {
                assert_eq!(world.got(at, origin), sent, "seed {seed}: {at} from {origin}");
            }
        }
    }
}

/// Nothing is kept by anybody who is alive.
fn check_empty(world: &World, seed: u64) {
    for at in all(world).into_iter().filter(|at| world.nodes[*at].alive) {
        assert_eq!(world.nodes[at].core.bytes(), (0, 0), "seed {seed}: {at}");
    }
}

/// Given nodes that hear each other, expect one datagram for each message and one packet over a link,
/// and nothing twice.
#[test]
fn one_datagram_for_all() {
    let mut world = segment(8, 1);
    for _ in 0..50 {
        assert!(world.send(0, &Targets::All, 50));
        world.run(30 * MS);
    }
    check(&world, 1);
    check_empty(&world, 1);
    assert_eq!((world.casts(), world.packets()), (50, 50));
    let stats = world.nodes[0].core.stats();
    assert_eq!((stats.casts, stats.cast_targets, stats.cast_acked), (50, 300, 300));
    assert_eq!(total(&world, |stats| stats.duplicates + stats.left_to_links + stats.repairs), 0);
    assert_eq!(total(&world, |stats| stats.cast_messages), 300);
}

/// Given a line of nodes of which the three first share a segment, expect a datagram for these only and
/// no link used twice.
#[test]
fn others_by_links() {
    let edges = [(0, 1), (1, 2), (2, 3), (3, 4)];
    let mut world = World::with_config(5, &edges, 2, config());
    world.segment(&[0, 1, 2]);
    for _ in 0..20 {
        assert!(world.send(0, &Targets::All, 50));
        world.run(30 * MS);
    }
    check(&world, 2);
    check_empty(&world, 2);
    assert_eq!(world.casts(), 20);
    assert_eq!(world.packets(), 20 * 4, "{:?}", world.carried);
}

/// Given subnets behind a gateway, expect one datagram on each.
#[test]
fn each_subnet_by_its_gateway() {
    // 0 to 3, 4 to 7, 8 to 11; 0 links to 4 and 8, and each gateway to the others of its subnet.
    let mut edges = vec![(0, 4), (0, 8)];
    edges.extend([0, 4, 8].iter().flat_map(|gate| (1..4).map(move |at| (*gate, gate + at))));
    let mut world = World::with_config(12, &edges, 3, config());
    [0, 4, 8].iter().for_each(|gate| world.segment(&[*gate, gate + 1, gate + 2, gate + 3]));
    for _ in 0..20 {
        assert!(world.send(0, &Targets::All, 50));
        world.run(30 * MS);
    }
    check(&world, 3);
    check_empty(&world, 3);
    assert_eq!(world.casts(), 20 * 3);
    // To each gateway, and to one random node on each subnet.
    assert_eq!(world.packets(), 20 * (2 + 3));
}

/// Given a fifth of all datagrams lost for each of 8 receivers, expect everything everywhere, once and
/// in order, and soon.
#[test]
fn a_fifth_lost() {
    for seed in 0..10 {
        let mut world = segment(9, seed);
        world.datagram_loss = 20;
        world.late = Some(Vec::new());
        for round in 0..3_000u64 {
            while !world.send(0, &Targets::All, 60) {
                world.run(MS);
            }
            world.pause(3_000);
            if round % 1_000 == 999 {
                world.beacons();
            }
        }
        world.run(10 * SECOND);
        check(&world, seed);
        check_empty(&world, seed);
        let mut late = world.late.take().unwrap();
        late.sort_unstable();
        let p99 = late[late.len() * 99 / 100];
        assert!(p99 <= 100 * MS, "seed {seed}: {p99:?}");
        let naks = total(&world, |stats| stats.naks_out);
        assert!(total(&world, |stats| stats.repairs) > 0 && naks > 0, "seed {seed}");
        assert!(naks <= 3 * world.casts(), "seed {seed}: {naks} for {}", world.casts());
        assert!(world.nodes[0].core.stats().rate_cuts > 0, "seed {seed}");
        assert!(world.casts() > 100, "seed {seed}: {}", world.casts());
    }
}

/// Given datagrams that get through nowhere, to some only, or in one direction only, though all have
/// shown that they heard each other, expect everything everywhere with no settings changed, and most
/// datagrams not even sent.
#[test]
fn multicast_that_does_not_work() {
    for seed in 0..60 {
        let mut world = segment(8, seed);
        world.hears = match seed % 3 {
            0 => BTreeSet::new(),
            1 => world.hears.iter().copied().filter(|(from, to)| from < to).collect(),
            _ => {
                let deaf = (seed / 3) as usize % 7 + 1;
                world.hears.iter().copied().filter(|(_, to)| *to > deaf).collect()
            }
        };
        for round in 0..400 {
            let origin = if seed % 2 == 0 { 0 } else { round % 8 };
            assert!(world.send(origin, &Targets::All, 40));
            world.pause(20_000);
        }
        world.run(10 * SECOND);
        check(&world, seed);
        check_empty(&world, seed);
        if seed % 3 == 0 {
            let lost = total(&world, |stats| stats.proofs_lost);
            assert!(lost > 0 && world.casts() < 200, "seed {seed}: {}", world.casts());
        }
    }
}

/// Given one whose datagrams all others hear while it hears none of theirs, expect links to be used.
#[test]
fn one_way_from_the_start() {
    let mut world = World::with_config(4, &mesh(4), 5, config());
    world.hears = [(0, 1), (0, 2), (0, 3)].into();
    world.beacons();
    for _ in 0..20 {
        assert!(world.send(0, &Targets::All, 40));
        world.run(10 * MS);
    }
    check(&world, 5);
    assert_eq!((world.casts(), world.packets()), (0, 60));
}

/// Given no beacons and no datagrams for half a minute, expect links to be used; given messages all the
/// time, expect acknowledgements to prove as much as beacons.
#[test]
fn proofs_expire() {
    let mut world = segment(5, 6);
    for _ in 0..100 {
        assert!(world.send(0, &Targets::All, 40));
        world.run(SECOND);
    }
    assert_eq!(world.casts(), 100, "all of them got datagrams now and then");
    world.run(31 * SECOND);
    assert_eq!(world.nodes[0].core.hearers(world.instant()), 0);
    assert!(world.send(0, &Targets::All, 40));
    world.run(SECOND);
    assert_eq!(world.casts(), 100);
    world.beacons();
    assert_eq!(world.nodes[0].core.hearers(world.instant()), 4);
    assert!(world.send(0, &Targets::All, 40));
    world.run(SECOND);
    assert_eq!(world.casts(), 101);
    check(&world, 6);
}

/// Given messages that do not fit a datagram, and more than the rate allows, expect links.
#[test]
fn large_and_many_by_links() {
    let limits = BroadcastConfig { multicast_rate: Some(20_000), ..config() };
    let mut world = World::with_config(6, &mesh(6), 7, limits);
    world.segment(&[0, 1, 2, 3, 4, 5]);
    for pad in [1_300, 1_400, 20_000, 100_000] {
        assert!(world.send(0, &Targets::All, pad));
        world.run(50 * MS);
    }
    assert_eq!(world.casts(), 0);
    for _ in 0..1_000 {
        assert!(world.send(0, &Targets::All, 400));
        world.run(2 * MS);
    }
    world.run(SECOND);
    check(&world, 7);
    check_empty(&world, 7);
    let stats = world.nodes[0].core.stats();
    assert!(stats.over_rate > 500 && stats.over_datagram >= 4, "{stats:?}");
    // 20,000 bytes a second for two seconds and a little, of 500 bytes.
    assert!((40..120).contains(&world.casts()), "{}", world.casts());
}

/// Given lists of targets that differ, small and large messages in turns, loss and several origins,
/// expect each target to get its own ones in order.
#[test]
fn lists() {
    for seed in 0..20 {
        let mut world = segment(7, seed);
        world.datagram_loss = 15;
        let mut wanted = vec![vec![Vec::new(); 7]; 7];
        for _ in 0..500 {
            let origin = world.rng.random_range(0..3);
            let chosen: Vec<usize> = (0..7).filter(|_| world.rng.random_range(0..3) > 0).collect();
            let pad = if world.rng.random_range(0..8) == 0 { 3_000 } else { 60 };
            let targets = Targets::Nodes(chosen.iter().map(|at| id(*at)).collect());
            assert!(world.send(origin, &targets, pad));
            let number = world.nodes[origin].sent;
            chosen.iter().for_each(|at| wanted[*at][origin].push(number));
            world.pause(3_000);
        }
        world.run(10 * SECOND);
        for (at, wanted) in wanted.iter().enumerate() {
            for (origin, wanted) in wanted.iter().enumerate() {
                assert_eq!(world.got(at, origin), wanted, "seed {seed}: {at} from {origin}");
            }
        }
        check_empty(&world, seed);
        assert!(world.casts() > 50, "seed {seed}");
    }
}

/// Given a node that was idle for long and then sends one message that gets lost everywhere, expect it to
/// be noticed, without another behind it.
#[test]
fn a_lost_last_message() {
    let mut world = segment(6, 8);
    assert!(world.send(0, &Targets::All, 40));
    world.run(SECOND);
    let heard = std::mem::take(&mut world.hears);
    assert!(world.send(0, &Targets::All, 40));
    let sent = world.now;
    world.run(SECOND);
    check(&world, 8);
    assert!(world.last - sent <= 200 * MS, "{:?}", world.last - sent);
    world.hears = heard;
    assert!(world.send(0, &Targets::All, 40));
    world.run(SECOND);
    check(&world, 8);
    assert_eq!(world.casts(), 3, "once is not enough to lose trust");
}

/// Given a last message that gets lost everywhere once, expect the nodes to learn so from how far the
/// sender says to have sent, and to get it by one more datagram, ahead of the time for links.
#[test]
fn a_lost_last_message_is_told_of() {
    for seed in 0..20 {
        let mut world = segment(8, seed);
        for _ in 0..50 {
            assert!(world.send(0, &Targets::All, 40));
            world.run(10 * MS);
        }
        assert_eq!(total(&world, |stats| stats.hellos_out), 0, "seed {seed}: all acknowledged");
        let heard = std::mem::take(&mut world.hears);
        assert!(world.send(0, &Targets::All, 40));
        world.hears = heard;
        let sent = world.now;
        world.run(SECOND);
        check(&world, seed);
        check_empty(&world, seed);
        assert!(world.last - sent <= 25 * MS, "seed {seed}: {:?}", world.last - sent);
        let stats = world.nodes[0].core.stats();
        assert_eq!(
            (stats.hellos_out, stats.repairs, stats.left_to_links),
            (1, 1, 0),
            "seed {seed}"
        );
        assert_eq!(total(&world, |stats| stats.hellos_in), 6, "seed {seed}");
        // One more if somebody asks again just as the answer comes.
        assert!(world.casts() <= 53, "seed {seed}: {}", world.casts());
        let naks = total(&world, |stats| stats.naks_out);
        assert!((1..=3).contains(&naks), "seed {seed}: {naks}");
    }
}

/// Given nodes that die and start again while others broadcast and datagrams get lost, expect those who
/// stay to get everything of each other.
#[test]
fn deaths() {
    for seed in 0..100 {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let nodes = rng.random_range(4..16);
        let edges = if seed % 2 == 0 { mesh(nodes) } else { graph(nodes, 2 * nodes, &mut rng) };
        let mut world = World::with_config(nodes, &edges, seed, config());
        world.segment(&(0..nodes).collect::<Vec<_>>());
        world.datagram_loss = if seed % 3 == 0 { 0 } else { 10 };
        let mut left = nodes * 3 / 10;
        for _ in 0..200 {
            let from = rng.random_range(0..nodes);
            if world.nodes[from].alive {
                assert!(world.send(from, &Targets::All, 20));
            }
            world.run(Duration::from_micros(rng.random_range(0..5_000)));
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
        world.run(30 * SECOND);
        check(&world, seed);
        check_empty(&world, seed);
    }
}

/// Given a receiver that starts again while datagrams for its former life are under way, expect nothing of
/// that life in the new one, and everything that is sent to the new one.
#[test]
fn restart() {
    for seed in 0..30 {
        let mut world = segment(5, seed);
        for _ in 0..20 {
            assert!(world.send(0, &Targets::All, 30));
            world.pause(2_000);
        }
        // All have left, not all are acknowledged.
        world.run(2 * MS);
        world.kill(4);
        world.restart(4);
        (0..4).for_each(|at| world.link(at, 4));
        for _ in 0..20 {
            assert!(world.send(0, &Targets::All, 30));
            world.pause(20_000);
        }
        world.beacons();
        let before = world.nodes[0].sent;
        for _ in 0..20 {
            assert!(world.send(0, &Targets::All, 30));
            world.run(10 * MS);
        }
        world.run(10 * SECOND);
        let got = world.got(4, 0);
        assert!(got.windows(2).all(|pair| pair[0] + 1 == pair[1]), "seed {seed}: {got:?}");
        assert_eq!(got.last(), Some(&60), "seed {seed}");
        assert!(got[0] > 20 && got[0] <= before, "seed {seed}: {got:?}");
        check_empty(&world, seed);
    }
}

/// Given a sender that dies when a node knows that it misses a message, expect a neighbour to have it.
#[test]
fn gaps_are_fetched_from_neighbours() {
    let mut fetched = 0;
    for seed in 0..20 {
        let mut world = segment(6, seed);
        let heard = world.hears.clone();
        world.hears.remove(&(0, 3));
        assert!(world.send(0, &Targets::All, 1_000));
        world.hears = heard;
        world.run(MS / 2);
        assert!(world.send(0, &Targets::All, 1_000));
        world.run(MS * 8 / 5);
        world.kill(0);
        world.run(SECOND);
        // Two who got a message over links had it ahead of the death as well.
        for at in 1..6 {
            assert_eq!(world.got(at, 0), [1, 2], "seed {seed}: {at}");
        }
        let repairs = total(&world, |stats| stats.repairs_of_others);
        assert!(repairs <= 3, "seed {seed}: {repairs}");
        fetched += u64::from(repairs > 0);
    }
    assert!(fetched >= 10, "{fetched}");
}

/// Given several who miss the same, expect fewer to ask than miss it.
#[test]
fn requests_are_suppressed() {
    let mut world = segment(12, 9);
    let heard = world.hears.clone();
    let mut naks = 0;
    for _ in 0..50 {
        // Of two messages the first is lost everywhere.
        let before = world.datagrams.get(&kind::NAK).copied().unwrap_or(0);
        world.hears = BTreeSet::new();
        assert!(world.send(0, &Targets::All, 1_000));
        world.hears = heard.clone();
        world.run(MS / 2);
        assert!(world.send(0, &Targets::All, 1_000));
        world.run(SECOND);
        naks += world.datagrams.get(&kind::NAK).copied().unwrap_or(0) - before;
    }
    check(&world, 9);
    assert!((50..50 * 5).contains(&naks), "{naks} requests for 50 losses at ten nodes");
    assert!(total(&world, |stats| stats.naks_suppressed) > 100);
    assert!(total(&world, |stats| stats.repairs) >= 50);
}
