//! Broadcasts in a large network of which almost a third dies: each message of a node that lives on once
//! and in order at everybody who stays connected with it, and hardly more sends than there are receivers.
//!
//! `CHATTER_NODES` nodes, ten times as many broadcasts; `make soak-broadcast` has 1,000 and 10,000.
//! `CHATTER_SEED` repeats a run: all instants, victims and delays come from it.
//!
//! Every node has a table of its own, made by the code that makes it in a real one. What is made up is how
//! nodes learn of a death: instead of flooding, each gets a new table at an instant of its own, up to
//! 50 ms after the neighbours have noticed. That is at once for seven deaths of eight (a process that is
//! killed), and after a hold time of a second for the eighth (a machine that is gone). Until then packets to
//! the dead vanish, and tables lead there. A table that is made while others have died meanwhile leaves
//! these out too: nobody learns the same thing twice.

mod broadcast_net;

use std::collections::BTreeMap;
use std::time::Duration;

use broadcast_net::{World, clumps};
use chatter_core::broadcast::Targets;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

const MS: Duration = Duration::from_millis(1);

/// A broadcast so often, on average; and so a node dies every 0.67 s. `CHATTER_EVERY_MS` changes it:
/// `make soak-broadcast` has 2, so that 15 nodes die each second.
///
/// Custody of a message is kept on all the way to a dead target until that is given up, and relays die
/// meanwhile. So sends grow with the deaths a second, by as much as the nodes before do not know who
/// of the targets behind a relay has the message.
const EVERY: Duration = Duration::from_millis(20);

/// Longer than anything is kept: targets without a route, messages behind one that is missing.
const AFTERWARDS: Duration = Duration::from_secs(20);

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Act {
    Send,
    Kill,
    KillSilently,
}

/// Given so many nodes, and that 30 % of them are killed at random instants while they broadcast, expect
/// the above, and nothing kept in the end.
#[test]
fn a_third_dies() {
    let nodes = setting("CHATTER_NODES", 150) as usize;
    let seed = setting("CHATTER_SEED", 1);
    println!("CHATTER_SEED={seed} CHATTER_NODES={nodes}");
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut world = World::new(nodes, &clumps(nodes, 8, nodes, &mut rng), seed);
    world.spread = MS;
    world.sends = Some(BTreeMap::new());
    world.late = Some(Vec::new());

    let broadcasts = 10 * nodes;
    let every = setting("CHATTER_EVERY_MS", EVERY.as_millis() as u64);
    let length = Duration::from_millis(every) * broadcasts as u32;
    let mut acts: Vec<(Duration, Act)> = Vec::new();
    let mut instant =
        |act| (Duration::from_nanos(rng.random_range(0..length.as_nanos() as u64)), act);
    acts.extend((0..broadcasts).map(|_| instant(Act::Send)));
    let kill = |at| if at % 8 == 0 { Act::KillSilently } else { Act::Kill };
    acts.extend((0..nodes * 3 / 10).map(|at| instant(kill(at))));
    acts.sort_unstable();

    let mut wanted = BTreeMap::new();
    let mut parts = world.parts();
    for (when, act) in acts {
        world.run(when - world.now);
        let alive: Vec<usize> = (0..nodes).filter(|at| world.nodes[*at].alive).collect();
        let at = alive[rng.random_range(0..alive.len())];
        match act {
            Act::Send => {
                assert!(world.send(at, &Targets::All, 20), "seed {seed}: the window is full");
                // Without those who are dead and not yet known to be.
                let others = alive.iter().filter(|o| **o != at && parts[**o] == parts[at]).count();
                wanted.insert((at, world.nodes[at].sent), others as u64);
                continue;
            }
            Act::Kill => world.kill(at),
            Act::KillSilently => world.kill_silently(at, 1_000 * MS),
        }
        parts = world.parts();
    }
    world.run(AFTERWARDS);

    let alive: Vec<usize> = (0..nodes).filter(|at| world.nodes[*at].alive).collect();
    let mut delivered = 0;
    for ((at, _), log) in &world.log {
        for ((origin, _), numbers) in log {
            let rising = numbers.windows(2).all(|pair| pair[0] < pair[1]);
            assert!(rising, "seed {seed}: {at} got from {origin}: {numbers:?}");
            delivered += numbers.len();
        }
    }
    // Links are never made, so whoever is connected now always was.
    let mut checked = 0;
    for origin in &alive {
        let all: Vec<u64> = (1..=world.nodes[*origin].sent).collect();
        for at in alive.iter().filter(|at| *at != origin && parts[**at] == parts[*origin]) {
            assert_eq!(world.got(*at, *origin), all, "seed {seed}: {at} from {origin}");
            checked += all.len();
        }
        assert_eq!(world.nodes[*origin].core.bytes(), (0, 0), "seed {seed}: {origin} keeps some");
    }

    let sends = world.sends.take().unwrap_or_default();
    let ratios = wanted.iter().map(|(message, wanted)| {
        sends.get(message).copied().unwrap_or(0) as f64 / (*wanted).max(1) as f64
    });
    let worst = ratios.fold(0.0, f64::max);
    let (sent, least): (u64, u64) = (sends.values().sum(), wanted.values().sum());
    let ratio = sent as f64 / least as f64;
    let mut late = world.late.take().unwrap_or_default();
    late.sort_unstable();
    let figure = |f: fn(&chatter_core::broadcast::BroadcastStats) -> u64| -> u64 {
        alive.iter().map(|at| f(&world.nodes[*at].core.stats())).sum()
    };
    println!(
        "{} of {nodes} nodes live, {} of them connected with the most; {broadcasts} broadcasts, \
         {delivered} delivered, {checked} of them for certain; {sent} sends are {ratio:.4} of those \
         needed, for one message at most {worst:.2}; late p50 {:?}, p99 {:?}, at most {:?}; \
         {} planned anew, {} repeated, {} targets given up",
        alive.len(),
        alive
            .iter()
            .map(|a| alive.iter().filter(|b| parts[*a] == parts[**b]).count())
            .max()
            .unwrap_or(0),
        late[late.len() / 2],
        late[late.len() * 99 / 100],
        late[late.len() - 1],
        figure(|stats| stats.replanned),
        figure(|stats| stats.duplicates),
        figure(|stats| stats.lost),
    );
    assert!(ratio <= 1.05, "seed {seed}: {sent} sends for {least}");
}
