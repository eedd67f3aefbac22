//! Discovery among many nodes on one segment, in virtual time: who is found and when, what it costs, who
//! is dialled, and that recordings find nobody.
#![expect(clippy::disallowed_methods, reason = "any base of virtual time")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use chatter_core::discovery::{Discovery, DiscoveryConfig, Health, View, Watch};
use chatter_core::ids::{Incarnation, NodeId};
use chatter_core::wire::beacon::{Beacon, MAX_SEEN};
use proptest::prelude::*;

const LIFE: Incarnation = Incarnation(7);
const STEP: Duration = Duration::from_millis(5);

/// How long a link takes until everybody knows of it.
const SETTLE: Duration = Duration::from_millis(150);

fn config() -> DiscoveryConfig {
    DiscoveryConfig { beacon: Duration::from_secs(10), max_nodes: 4_096, links: Some(2) }
}

/// Beacons that are heard at the next step by everybody on the segment, unless they are lost.
struct Segment {
    config: DiscoveryConfig,
    now: Instant,
    nodes: BTreeMap<NodeId, Discovery>,
    links: Vec<(Instant, NodeId, NodeId)>,
    loss: u64,
    random: u64,
    /// When beacons were sent.
    sent: Vec<Instant>,
    recorded: Vec<(NodeId, Beacon)>,
}

impl Segment {
    fn new(loss_percent: u64) -> Self {
        Self {
            config: config(),
            now: Instant::now(),
            nodes: BTreeMap::new(),
            links: Vec::new(),
            loss: loss_percent,
            random: 0x9e37_79b9_7f4a_7c15,
            sent: Vec::new(),
            recorded: Vec::new(),
        }
    }

    fn start(&mut self, ids: impl Iterator<Item = u64>) {
        for id in ids {
            let node = Discovery::new(self.config, NodeId(id), LIFE, id + 1, self.now);
            self.nodes.insert(NodeId(id), node);
        }
    }

    fn lost(&mut self) -> bool {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % 100 < self.loss
    }

    fn run(&mut self, span: Duration) {
        let end = self.now + span;
        while self.now < end {
            self.step();
        }
    }

    fn step(&mut self) {
        self.now += STEP;
        let now = self.now;
        let mut sent = Vec::new();
        for (id, node) in &mut self.nodes {
            node.handle_timeout(now);
            if let Some(seen) = node.poll_beacon(now) {
                sent.push((*id, beacon(*id, seen)));
            }
        }
        for (from, beacon) in &sent {
            self.sent.push(now);
            let ids: Vec<_> = self.nodes.keys().copied().filter(|id| id != from).collect();
            for id in ids {
                if !self.lost() {
                    self.nodes.get_mut(&id).unwrap().handle_beacon(now, *from, LIFE, beacon);
                }
            }
        }
        self.recorded.extend(sent);
        if self.config.links.is_some() {
            self.dial();
        }
    }

    fn dial(&mut self) {
        let now = self.now;
        let known: Vec<_> = self.links.iter().filter(|(at, ..)| *at + SETTLE <= now).collect();
        let mut component: BTreeMap<NodeId, NodeId> =
            self.nodes.keys().map(|id| (*id, *id)).collect();
        for (_, a, b) in known {
            let (a, b) = (component[a], component[b]);
            component.values_mut().filter(|of| **of == b).for_each(|of| *of = a);
        }
        let links = self.links.clone();
        let mut dialled = Vec::new();
        for (id, node) in &mut self.nodes {
            let linked = |to: NodeId| {
                links.iter().any(|(_, a, b)| (*a, *b) == (*id, to) || (*a, *b) == (to, *id))
            };
            let view = View {
                routed: &|to| component.get(&to) == Some(&component[id]),
                linked: &linked,
                links: links.iter().filter(|(_, a, b)| a == id || b == id).count(),
            };
            if let Some(name) = node.poll_dial(now, &view) {
                let to = NodeId(name.trim_start_matches('n').parse().unwrap());
                assert!(to != *id && !linked(to), "{id} dials {to}");
                if component.contains_key(&to) {
                    dialled.push((now, *id, to));
                } else {
                    node.handle_dial_failed(now, &name);
                }
            }
        }
        self.links.extend(dialled);
    }

    fn all_found(&self) -> bool {
        self.nodes.values().all(|node| node.found().count() == self.nodes.len() - 1)
    }

    fn is_one(&self) -> bool {
        let mut reached = BTreeSet::from([*self.nodes.keys().next().unwrap()]);
        loop {
            let before = reached.len();
            for (_, a, b) in &self.links {
                if reached.contains(a) || reached.contains(b) {
                    reached.extend([*a, *b]);
                }
            }
            if reached.len() == before {
                return before == self.nodes.len();
            }
        }
    }

    /// Steps until `test` holds; how long that took.
    fn until(&mut self, limit: Duration, test: impl Fn(&Self) -> bool) -> Duration {
        let start = self.now;
        while !test(self) {
            assert!(self.now - start < limit, "not within {limit:?}");
            self.step();
        }
        self.now - start
    }
}

fn beacon(id: NodeId, seen: Vec<(NodeId, Incarnation)>) -> Beacon {
    let address = ([10, 0, 0, id.0 as u8], 29_999).into();
    Beacon { name: format!("n{}", id.0), port: 29_999, addresses: vec![address], seen }
}

/// Given nodes that start at once, expect all to be found within a second, one network with about as
/// many links as wished, and few beacons once it is there.
#[test]
fn started_at_once() {
    for count in [2, 16, 40] {
        let mut segment = Segment::new(0);
        segment.start(1..count + 1);
        let found = segment.until(Duration::from_secs(1), Segment::all_found);
        let one = segment.until(Duration::from_secs(2), Segment::is_one);
        segment.run(Duration::from_secs(30));
        let links = segment.links.len() as u64;
        println!("{count} nodes: found after {found:?}, one network {one:?} later, {links} links");
        assert!(links < 2 * count, "{links} links of {count} nodes");
        let from = segment.now;
        segment.run(Duration::from_secs(60));
        let busiest = (0..60)
            .map(|s| {
                let second = from + Duration::from_secs(s)..from + Duration::from_secs(s + 1);
                segment.sent.iter().filter(|at| second.contains(at)).count()
            })
            .max()
            .unwrap();
        assert!(count > 16 || busiest <= 10, "{busiest} beacons in a second");
    }
}

/// Given one beacon in five lost, expect all to be found all the same, and nobody to be forgotten.
#[test]
fn with_loss() {
    let mut segment = Segment::new(20);
    segment.start(1..17);
    segment.until(Duration::from_secs(3), Segment::is_one);
    segment.until(Duration::from_secs(45), Segment::all_found);
    segment.run(Duration::from_secs(120));
    let found: usize = segment.nodes.values().map(|node| node.found().count()).sum();
    assert!(found >= 16 * 15 - 2, "{found}");
}

/// Given a node that starts among others, expect both sides to find each other within half a second.
#[test]
fn a_newcomer() {
    let mut segment = Segment::new(0);
    segment.start(1..16);
    segment.run(Duration::from_secs(40));
    segment.start(16..17);
    let took = segment
        .until(Duration::from_millis(500), |segment| segment.all_found() && segment.is_one());
    println!("newcomer: {took:?}");
}

/// Given a node that stops, expect it to be forgotten after three and a half intervals; and a new life
/// of it to be found anew.
#[test]
fn silence_and_new_lives() {
    let mut segment = Segment::new(0);
    segment.start(1..4);
    segment.run(Duration::from_secs(20));
    let gone = segment.nodes.remove(&NodeId(3)).unwrap();
    segment.links.clear();
    segment.run(Duration::from_secs(22));
    assert!(segment.nodes[&NodeId(1)].found().any(|found| found.id == NodeId(3)));
    segment.run(Duration::from_secs(14));
    assert!(segment.nodes.values().all(|node| node.found().count() == 1));
    drop(gone);
    let now = segment.now;
    let one = segment.nodes.get_mut(&NodeId(1)).unwrap();
    one.handle_beacon(now, NodeId(2), Incarnation(8), &beacon(NodeId(2), vec![]));
    assert_eq!(one.found().count(), 0);
    let ours = vec![(NodeId(1), LIFE)];
    assert!(one.handle_beacon(now, NodeId(2), Incarnation(8), &beacon(NodeId(2), ours.clone())));
    // What the former life has sent comes too late.
    assert!(!one.handle_beacon(now, NodeId(2), LIFE, &beacon(NodeId(2), ours)));
    assert!(one.hears_us(now, NodeId(2), Incarnation(8)) && !one.hears_us(now, NodeId(2), LIFE));
}

/// Given everything that was ever sent on the segment, played to a node that starts later, expect it to
/// find and to dial nobody, and to send at most one beacon a second more.
#[test]
fn recordings_find_nobody() {
    let mut segment = Segment::new(0);
    segment.start(1..17);
    segment.run(Duration::from_secs(30));
    let recorded = std::mem::take(&mut segment.recorded);
    assert!(recorded.len() > 60);
    let now = segment.now;
    // The same node as one of them, but a later life.
    let mut late = Discovery::new(config(), NodeId(5), Incarnation(8), 1, now);
    let mut beacons = 0;
    for second in 0..20 {
        let now = now + Duration::from_secs(second);
        for (from, beacon) in &recorded {
            assert!(!late.handle_beacon(now, *from, LIFE, beacon));
        }
        for ms in 0..200 {
            let now = now + STEP * ms;
            beacons += usize::from(late.poll_beacon(now).is_some());
            let view = View { routed: &|_| false, linked: &|_| false, links: 0 };
            assert_eq!(late.poll_dial(now, &view), None);
            assert_eq!(late.found().count(), 0);
        }
    }
    assert!(late.len() == 15 && beacons <= 8, "{beacons} beacons, {} heard", late.len());
}

/// Given nearly twice as many nodes as a seen list holds, expect each to know all the time of all that it
/// is heard.
#[test]
fn seen_lists_take_turns() {
    let mut segment = Segment::new(0);
    let count = 2 * MAX_SEEN - 2;
    segment.config.links = None;
    segment.start(1..count as u64 + 1);
    segment.run(Duration::from_secs(40));
    for _ in 0..12 {
        segment.run(Duration::from_secs(3));
        for (me, node) in &segment.nodes {
            let others = segment.nodes.keys().filter(|id| *id != me);
            let heard = others.filter(|id| node.hears_us(segment.now, **id, LIFE)).count();
            assert_eq!(heard, count - 1, "{me}");
        }
    }
}

/// Given more nodes than are remembered, expect the others to be left out and counted.
#[test]
fn nodes_are_bounded() {
    let now = Instant::now();
    let mut node =
        Discovery::new(DiscoveryConfig { max_nodes: 10, ..config() }, NodeId(0), LIFE, 1, now);
    for id in 1..100 {
        node.handle_beacon(now, NodeId(id), LIFE, &beacon(NodeId(id), vec![(NodeId(0), LIFE)]));
    }
    assert_eq!((node.len(), node.found().count(), node.left_out()), (10, 10, 89));
}

/// Given a found node that cannot be dialled, expect it to be left alone ever longer, and its address
/// not to be given out meanwhile.
#[test]
fn failed_dials_wait() {
    let start = Instant::now();
    let mut node = Discovery::new(config(), NodeId(0), LIFE, 1, start);
    let view = View { routed: &|_| false, linked: &|_| false, links: 0 };
    let mut dials = Vec::new();
    for ms in (0..300_000).step_by(10) {
        let now = start + Duration::from_millis(ms);
        node.handle_beacon(now, NodeId(1), LIFE, &beacon(NodeId(1), vec![(NodeId(0), LIFE)]));
        if let Some(name) = node.poll_dial(now, &view) {
            assert_eq!(node.addresses(now, &name).len(), 1);
            dials.push(now);
            node.handle_dial_failed(now, &name);
            assert_eq!(node.addresses(now, &name), []);
        }
    }
    assert!((8..=14).contains(&dials.len()), "{} dials in 5 minutes", dials.len());
    assert!(dials.last().unwrap().duration_since(dials[dials.len() - 2]).as_secs() >= 40);
}

/// Given links as wished and routes to all, expect no dial; given static links, never one.
#[test]
fn enough_is_enough() {
    let start = Instant::now();
    for (links, wished, expected) in
        [(2, Some(2), 0), (1, Some(2), 1), (0, None, 0), (0, Some(0), 0)]
    {
        let mut node = Discovery::new(
            DiscoveryConfig { links: wished, ..config() },
            NodeId(0),
            LIFE,
            1,
            start,
        );
        let mut dials = 0;
        for ms in (0..1_000).step_by(10) {
            let now = start + Duration::from_millis(ms);
            node.handle_beacon(now, NodeId(1), LIFE, &beacon(NodeId(1), vec![(NodeId(0), LIFE)]));
            let view = View { routed: &|_| true, linked: &|_| false, links };
            dials += usize::from(node.poll_dial(now, &view).is_some());
            node.poll_beacon(now);
            assert!(node.poll_timeout() > now, "nothing to do, and no rest");
        }
        assert_eq!(dials, expected, "{links} links of {wished:?}");
    }
}

/// Given a socket that hears itself, expect nothing; once it does not, expect it to be opened anew after
/// a second, and then ever more rarely.
#[test]
fn silent_sockets() {
    let start = Instant::now();
    let mut watch = Watch::default();
    let mut reopened = Vec::new();
    for s in 0..2_000 {
        let now = start + Duration::from_millis(s * 500);
        if s % 4 == 0 {
            watch.sent(now);
            if s < 400 {
                watch.heard();
            }
        }
        if watch.check(now) == Health::Silent {
            reopened.push((now - start).as_secs());
        }
    }
    assert_eq!(reopened[0], 201);
    assert!((15..=25).contains(&reopened.len()), "{reopened:?}");
    watch.sent(start + Duration::from_secs(2_000));
    watch.heard();
    assert_eq!(watch.check(start + Duration::from_secs(2_010)), Health::Fine);
}

proptest! {
    /// Given any beacons of any lives in any order, expect only those found that said that they hear
    /// this life, in their newest life.
    #[test]
    fn only_who_hears_us(
        beacons in prop::collection::vec((1..5_u64, 1..4_u64, 0..3_u64), 1..60)
    ) {
        let start = Instant::now();
        let mut node = Discovery::new(config(), NodeId(0), LIFE, 1, start);
        let mut truth: BTreeMap<u64, (u64, bool)> = BTreeMap::new();
        for (id, life, seen) in beacons {
            let seen = match seen {
                0 => vec![],
                1 => vec![(NodeId(0), Incarnation(6))],
                _ => vec![(NodeId(9), LIFE), (NodeId(0), LIFE)],
            };
            let hears = seen.len() == 2;
            node.handle_beacon(start, NodeId(id), Incarnation(life), &beacon(NodeId(id), seen));
            let known = truth.entry(id).or_insert((0, false));
            if life > known.0 {
                *known = (life, hears);
            } else if life == known.0 {
                known.1 |= hears;
            }
        }
        let found: Vec<_> = node.found().map(|found| (found.id.0, found.incarnation.0)).collect();
        let expected: Vec<_> = truth
            .iter()
            .filter(|(_, (_, found))| *found)
            .map(|(id, (life, _))| (*id, *life))
            .collect();
        prop_assert_eq!(found, expected);
    }
}
