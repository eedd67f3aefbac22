//! Nodes that broadcast, over links that take time and break, in virtual time. Every node learns of a
//! change of the network at a time of its own, so tables disagree for a while.
#![allow(dead_code, reason = "each test file uses a part")]

mod map;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use chatter_core::broadcast::payload::Packed;
use chatter_core::broadcast::{Arrival, Broadcast, BroadcastConfig, Delivery, SendError, Targets};
use chatter_core::ids::{Incarnation, NodeId};
use chatter_core::lsdb::Lsdb;
use chatter_core::wire::bcast::{Bcast, next_message};
use chatter_core::wire::cast::CastAck;
use chatter_core::wire::datagram::{MAX_MESSAGE_BODY, kind};
use chatter_core::wire::routed::ROUTED_HEADER_LEN;
use chatter_core::wire::{PACKET_HEADER_LEN, PacketType, next_packet};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

#[allow(unused_imports, reason = "each test file uses a part")]
pub use map::{Links, clumps, graph, id, lsdb, mesh, place, table, table_from};

#[expect(clippy::disallowed_methods, reason = "any base of virtual time")]
pub fn start() -> Instant {
    use std::sync::OnceLock;
    static START: OnceLock<Instant> = OnceLock::new();
    *START.get_or_init(Instant::now)
}

enum Event {
    Packet {
        from: usize,
        to: usize,
        link: u32,
        bytes: Vec<u8>,
    },
    Datagram {
        from: usize,
        to: usize,
        kind: u8,
        body: Vec<u8>,
    },
    Routed {
        from: usize,
        to: usize,
        bytes: Vec<u8>,
    },
    /// The neighbours of a node that has gone silently give it up.
    Missed {
        at: usize,
    },
    Table {
        at: usize,
        life: u64,
    },
    Timer {
        at: usize,
        life: u64,
    },
}

struct Entry(Duration, u64, Event);

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

pub struct Node {
    pub core: Broadcast,
    pub alive: bool,
    timer: Option<Duration>,
    /// Which state of the network its table is made from.
    version: u64,
    /// How many messages it has sent in this life.
    pub sent: u64,
}

/// What one life of a receiver got from one life of an origin, in order.
pub type Log = BTreeMap<(usize, u64), BTreeMap<(usize, u64), Vec<u64>>>;

pub struct World {
    pub now: Duration,
    pub nodes: Vec<Node>,
    pub lives: Vec<u64>,
    /// Links by their ends, the lower first, with a number that a link never gets again.
    pub links: Links,
    /// Those of them that are gone, and nobody knows it yet.
    unnoticed: Links,
    /// What all nodes are about to learn, and how often that has changed.
    map: Option<Lsdb>,
    version: u64,
    pub log: Log,
    /// When the last delivery was.
    pub last: Duration,
    /// BCAST packets sent over each pair of ends.
    pub carried: BTreeMap<(usize, usize), u64>,
    /// How often each number of an origin was sent over a link, if asked for.
    pub sends: Option<BTreeMap<(usize, u64), u64>>,
    pub rng: Xoshiro256PlusPlus,
    /// Who hears whose datagrams: first the sender.
    pub hears: BTreeSet<(usize, usize)>,
    /// Of a hundred datagrams so many are lost on their way to each.
    pub datagram_loss: u32,
    /// Datagrams sent, by kind.
    pub datagrams: BTreeMap<u8, u64>,
    /// How late each number of an origin came to each receiver, if asked for.
    pub late: Option<Vec<Duration>>,
    sent_at: BTreeMap<(usize, u64), Duration>,
    /// Of so many packets one is lost, if any.
    pub lose: Option<u32>,
    /// How late nodes learn of changes, at most.
    pub lag: Duration,
    /// By how much links may be slower than [`HOP`].
    pub spread: Duration,
    config: BroadcastConfig,
    next_link: u32,
    heap: BinaryHeap<Reverse<Entry>>,
    count: u64,
}

pub const HOP: Duration = Duration::from_micros(200);

/// Counts the messages in a packet.
fn count(sends: &mut BTreeMap<(usize, u64), u64>, packet: &[u8]) {
    let packet = next_packet(&mut &packet[..]).unwrap().unwrap();
    let batch = Bcast::decode(packet.body).unwrap().batch;
    let (mut rest, mut seq) = (&batch.messages[..], batch.first);
    while next_message(&mut rest).unwrap().is_some() {
        *sends.entry((place(batch.origin), seq)).or_default() += 1;
        seq += 1;
    }
}

impl World {
    pub fn new(nodes: usize, edges: &[(usize, usize)], seed: u64) -> Self {
        Self::with_config(nodes, edges, seed, BroadcastConfig::default())
    }

    pub fn with_config(
        nodes: usize,
        edges: &[(usize, usize)],
        seed: u64,
        config: BroadcastConfig,
    ) -> Self {
        let lives = vec![1_000_000; nodes];
        let node = |at: usize| Node {
            core: Broadcast::new(config, id(at), Incarnation(lives[at])),
            alive: true,
            timer: None,
            version: 0,
            sent: 0,
        };
        let mut world = Self {
            now: Duration::ZERO,
            nodes: (0..nodes).map(node).collect(),
            lives,
            links: Links::new(),
            unnoticed: Links::new(),
            map: None,
            version: 0,
            log: BTreeMap::new(),
            last: Duration::ZERO,
            carried: BTreeMap::new(),
            sends: None,
            rng: Xoshiro256PlusPlus::seed_from_u64(seed),
            hears: BTreeSet::new(),
            datagram_loss: 0,
            datagrams: BTreeMap::new(),
            late: None,
            sent_at: BTreeMap::new(),
            lose: None,
            lag: Duration::from_millis(50),
            spread: Duration::ZERO,
            config,
            next_link: 0,
            heap: BinaryHeap::new(),
            count: 0,
        };
        for ((a, b), number) in edges.iter().zip(1..) {
            world.links.insert((*a.min(b), *a.max(b)), number);
            world.next_link = number;
        }
        world.version = 1;
        for at in 0..nodes {
            world.set_table(at);
        }
        world
    }

    pub fn instant(&self) -> Instant {
        start() + self.now
    }

    fn push(&mut self, at: Duration, event: Event) {
        self.count += 1;
        self.heap.push(Reverse(Entry(at, self.count, event)));
    }

    pub fn link(&mut self, a: usize, b: usize) {
        self.next_link += 1;
        self.links.insert((a.min(b), a.max(b)), self.next_link);
        self.changed();
    }

    pub fn cut(&mut self, a: usize, b: usize) {
        self.links.remove(&(a.min(b), a.max(b)));
        self.changed();
    }

    pub fn kill(&mut self, at: usize) {
        self.end(at);
        self.changed();
    }

    /// The same, and for so long nobody notices.
    pub fn kill_silently(&mut self, at: usize, hold: Duration) {
        let ended = self.end(at);
        self.unnoticed.extend(ended);
        self.push(self.now + hold, Event::Missed { at });
    }

    fn end(&mut self, at: usize) -> Links {
        self.nodes[at].alive = false;
        self.links.extract_if(.., |(a, b), _| *a == at || *b == at).collect()
    }

    /// A new life, without links yet.
    pub fn restart(&mut self, at: usize) {
        self.lives[at] = 1_000_000 + self.now.as_micros() as u64 + 1;
        self.map = None;
        let core = Broadcast::new(self.config, id(at), Incarnation(self.lives[at]));
        self.nodes[at] = Node { core, alive: true, timer: None, version: 0, sent: 0 };
    }

    /// All learn of what has changed, each at its own time.
    fn changed(&mut self) {
        self.map = None;
        self.version += 1;
        for at in 0..self.nodes.len() {
            let lag = self.rng.random_range(0..=self.lag.as_micros() as u64);
            let life = self.lives[at];
            self.push(self.now + Duration::from_micros(lag), Event::Table { at, life });
        }
    }

    fn set_table(&mut self, at: usize) {
        // The last one that came was made from all that is known now.
        if self.nodes[at].alive && self.nodes[at].version != self.version {
            self.nodes[at].version = self.version;
            let known =
                || self.links.iter().chain(&self.unnoticed).map(|(e, n)| (*e, *n)).collect();
            let map = self.map.get_or_insert_with(|| lsdb(&known(), &self.lives));
            let table = table_from(at, map, |ends| {
                self.links.get(&ends).or_else(|| self.unnoticed.get(&ends)).copied()
            });
            let now = self.instant();
            self.nodes[at].core.set_table(now, Arc::new(table));
            self.carry_out(at);
        }
    }

    /// Sends the next number to nodes, with so many bytes behind it. `false`: too much is under way.
    pub fn send(&mut self, from: usize, targets: &Targets, pad: usize) -> bool {
        let now = self.instant();
        let node = &mut self.nodes[from];
        let mut body = (node.sent + 1).to_be_bytes().to_vec();
        body.resize(8 + pad, 0x5a);
        // Half of them the short way, where it is open.
        let gathered = node.sent.is_multiple_of(2) && node.core.gather(targets, "t", &body);
        let packed = Packed { body: Bytes::from(body), lz4: false };
        let sent = if gathered { Ok(()) } else { node.core.send(now, targets, "t", &packed) };
        match sent {
            Ok(()) => {
                node.sent += 1;
                if self.late.is_some() {
                    self.sent_at.insert((from, node.sent), self.now);
                }
            }
            Err(SendError::Full) => return false,
            Err(error) => panic!("{error}"),
        }
        if !gathered {
            self.carry_out(from);
        }
        true
    }

    /// What a node takes next: many at a time at one half of them, one by one at the others.
    fn take(&mut self, at: usize) -> Vec<(NodeId, Bytes)> {
        let core = &mut self.nodes[at].core;
        if at.is_multiple_of(2) {
            let one = |delivery: Delivery| (delivery.origin, delivery.body);
            return core.poll_delivery().map(one).into_iter().collect();
        }
        match core.poll_arrival() {
            None => Vec::new(),
            Some(Arrival::One(delivery)) => vec![(delivery.origin, delivery.body)],
            Some(Arrival::Run(run)) => {
                let (mut rest, mut taken) = (&run.messages[..], Vec::new());
                while let Some(message) = next_message(&mut rest).unwrap() {
                    taken.push((run.origin, run.messages.slice_ref(message.body)));
                }
                assert_eq!(taken.len() as u64, run.count);
                taken
            }
        }
    }

    pub fn carry_out(&mut self, at: usize) {
        let now = self.instant();
        loop {
            let taken = self.take(at);
            if taken.is_empty() {
                break;
            }
            for (origin, body) in taken {
                let origin = place(origin);
                let number = u64::from_be_bytes(*body.first_chunk().unwrap());
                let receiver = (at, self.lives[at]);
                let life = self.lives[origin];
                let log = self.log.entry(receiver).or_default();
                log.entry((origin, life)).or_default().push(number);
                self.last = self.now;
                if let Some(late) = &mut self.late {
                    late.push(self.now - self.sent_at[&(origin, number)]);
                }
            }
        }
        self.nodes[at].core.end_deliveries(now);
        while let Some((to, packet)) = self.nodes[at].core.poll_transmit() {
            let to = place(to);
            let Some(link) = self.links.get(&(at.min(to), at.max(to))).copied() else { continue };
            let bytes = packet.to_vec();
            if bytes[3] == PacketType::Bcast as u8 {
                *self.carried.entry((at, to)).or_default() += 1;
                if let Some(sends) = &mut self.sends {
                    count(sends, &bytes);
                }
            }
            if self.lose.is_some_and(|share| self.rng.random_range(0..share) == 0) {
                continue;
            }
            let delay = HOP + self.spread * (link % 16) / 16;
            self.push(self.now + delay, Event::Packet { from: at, to, link, bytes });
        }
        while let Some((to, packet)) = self.nodes[at].core.poll_routed(now) {
            let lost = self.lose.is_some_and(|share| self.rng.random_range(0..share) == 0);
            if !lost {
                let bytes = packet.to_vec();
                self.push(self.now + 2 * HOP, Event::Routed { from: at, to: place(to), bytes });
            }
        }
        while let Some(datagram) = self.nodes[at].core.poll_datagram() {
            assert!(datagram.body.len() <= MAX_MESSAGE_BODY);
            *self.datagrams.entry(datagram.kind).or_default() += 1;
            let others: Vec<usize> =
                self.hears.range((at, 0)..(at + 1, 0)).map(|(_, to)| *to).collect();
            for to in others {
                if self.rng.random_range(0..100) < self.datagram_loss {
                    continue;
                }
                let delay = Duration::from_micros(self.rng.random_range(50..500));
                let (kind, body) = (datagram.kind, datagram.body.clone());
                self.push(self.now + delay, Event::Datagram { from: at, to, kind, body });
            }
        }
        let next = self.nodes[at].core.poll_timeout();
        if let Some(next) = next.map(|next| next - start()) {
            let sooner = self.nodes[at].timer.is_none_or(|timer| next < timer);
            if sooner {
                self.nodes[at].timer = Some(next);
                let life = self.lives[at];
                self.push(next.max(self.now), Event::Timer { at, life });
            }
        }
    }

    /// Lets up to so many microseconds pass.
    pub fn pause(&mut self, most: u64) {
        let time = self.rng.random_range(0..most);
        self.run(Duration::from_micros(time));
    }

    /// Lets time pass.
    pub fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while self.heap.peek().is_some_and(|Reverse(entry)| entry.0 <= until) {
            let Some(Reverse(Entry(when, _, event))) = self.heap.pop() else { break };
            self.now = when;
            match event {
                Event::Packet { from, to, link, bytes } => {
                    let same = self.links.get(&(from.min(to), from.max(to))) == Some(&link);
                    if !same || !self.nodes[to].alive {
                        continue;
                    }
                    let packet = next_packet(&mut &bytes[..]).unwrap().unwrap();
                    let now = self.instant();
                    let core = &mut self.nodes[to].core;
                    core.handle_packet(now, id(from), packet.kind, packet.body).unwrap();
                    self.carry_out(to);
                }
                Event::Datagram { from, to, kind, body } => {
                    if self.nodes[to].alive {
                        let now = self.instant();
                        self.nodes[to].core.handle_datagram(now, id(from), kind, &body).unwrap();
                        self.carry_out(to);
                    }
                }
                Event::Routed { from, to, bytes } => {
                    if self.nodes[to].alive && self.nodes[from].alive {
                        let ack = &bytes[PACKET_HEADER_LEN + ROUTED_HEADER_LEN..];
                        let (now, ack) = (self.instant(), CastAck::decode(ack).unwrap());
                        self.nodes[to].core.handle_cast_ack(now, id(from), &ack);
                        self.carry_out(to);
                    }
                }
                Event::Missed { at } => {
                    self.unnoticed.retain(|(a, b), _| *a != at && *b != at);
                    self.changed();
                }
                Event::Table { at, life } if self.lives[at] == life => self.set_table(at),
                Event::Timer { at, life } if self.lives[at] == life && self.nodes[at].alive => {
                    self.nodes[at].timer = None;
                    let now = self.instant();
                    self.nodes[at].core.handle_timeout(now);
                    self.carry_out(at);
                }
                Event::Table { .. } | Event::Timer { .. } => {}
            }
        }
        self.now = until;
    }

    /// These hear each other, and know it.
    pub fn segment(&mut self, members: &[usize]) {
        let pairs = members.iter().flat_map(|a| members.iter().map(|b| (*a, *b)));
        self.hears.extend(pairs.filter(|(a, b)| a != b));
        self.beacons();
    }

    /// Beacons: whoever hears another that hears it is told so.
    pub fn beacons(&mut self) {
        let now = self.instant();
        for (a, b) in self.hears.clone() {
            let both = self.hears.contains(&(b, a));
            if both && self.nodes[a].alive && self.nodes[b].alive {
                let life = Incarnation(self.lives[b]);
                self.nodes[a].core.handle_hears(now, id(b), life);
            }
        }
    }

    /// Datagrams with messages that were sent.
    pub fn casts(&self) -> u64 {
        self.datagrams.get(&kind::CAST).copied().unwrap_or(0)
    }

    /// Whether the living are connected.
    pub fn is_connected(&self) -> bool {
        let parts = self.parts();
        let mut alive =
            (0..self.nodes.len()).filter(|at| self.nodes[*at].alive).map(|at| parts[at]);
        let first = alive.next();
        alive.all(|part| Some(part) == first)
    }

    /// For each node, the lowest one that it is connected with.
    pub fn parts(&self) -> Vec<usize> {
        let mut around: Vec<Vec<usize>> = vec![Vec::new(); self.nodes.len()];
        for (a, b) in self.links.keys() {
            around[*a].push(*b);
            around[*b].push(*a);
        }
        let mut parts = vec![usize::MAX; self.nodes.len()];
        for first in 0..parts.len() {
            let mut next = vec![first];
            while let Some(at) = next.pop() {
                if parts[at] == usize::MAX {
                    parts[at] = first;
                    next.extend(&around[at]);
                }
            }
        }
        parts
    }

    /// What a living node got from the present life of another.
    pub fn got(&self, at: usize, origin: usize) -> &[u64] {
        let log = self.log.get(&(at, self.lives[at]));
        log.and_then(|log| log.get(&(origin, self.lives[origin]))).map_or(&[], Vec::as_slice)
    }

    /// BCAST packets sent so far.
    pub fn packets(&self) -> u64 {
        self.carried.values().sum()
    }
}
