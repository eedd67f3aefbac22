//! Many `Control`s on one virtual clock, joined by wires with delays. Nothing sleeps; equal seeds give
//! equal runs.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chatter_core::control::{CloseReason, Control, ControlConfig, ControlEvent, LinkUp};
use chatter_core::dialer::{NeighbourId, NeighbourSpec};
use chatter_core::ids::{Incarnation, LinkId, NodeId};
use chatter_core::routes::ForwardingTable;
use chatter_core::wire::identity::Identity;
use chatter_core::wire::{Packet, PacketType, next_packet};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng, SeedableRng};

pub fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

pub fn us(us: u64) -> Duration {
    Duration::from_micros(us)
}

/// The start of virtual time: the only look at a clock.
#[expect(clippy::disallowed_methods, reason = "virtual time has to start somewhere")]
pub fn start() -> Instant {
    Instant::now()
}

pub fn address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 29999))
}

pub fn identity(name: &str, incarnation: u64) -> Identity {
    Identity {
        id: NodeId::for_name(name),
        incarnation: Incarnation(incarnation),
        name: name.to_owned(),
        hold_ms: 1_000,
        hidden: false,
        listen: true,
        addresses: vec![address()],
        dial_seq: 0,
    }
}

/// A seed from the environment, or the given one; printed, so that a failure can be repeated.
pub fn seed(default: u64) -> u64 {
    let seed = std::env::var("CHATTER_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(default);
    println!("CHATTER_SEED={seed}");
    seed
}

pub struct Random(Xoshiro256PlusPlus);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(Xoshiro256PlusPlus::seed_from_u64(seed))
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.0.next_u64() % limit as u64) as usize
    }
}

/// Both ends of a link.
pub struct Wire {
    pub ends: [(usize, LinkId); 2],
    pub open: bool,
    pub silent: bool,
    pub delay: Duration,
    last: [Instant; 2],
    /// Which ends were told that the link is up; packets to an end wait for that.
    told: [bool; 2],
}

pub struct Host {
    pub name: String,
    pub control: Control,
    pub alive: bool,
    /// Held up: gets no calls until this time.
    pub paused_until: Option<Instant>,
    pub table: Arc<ForwardingTable>,
    pub events: Vec<(Instant, ControlEvent)>,
    pub published: usize,
    wires: BTreeMap<LinkId, usize>,
    next_link: u32,
    /// What the events say: life, and whether lost.
    told: BTreeMap<NodeId, (Incarnation, bool)>,
    links_told: BTreeMap<LinkId, NodeId>,
}

enum Action {
    Packet { wire: usize, end: usize, bytes: Vec<u8> },
    Down { wire: usize, end: usize },
}

pub struct Sim {
    pub now: Instant,
    pub hosts: Vec<Host>,
    pub wires: Vec<Wire>,
    /// Whether `Dial` events make wires (else they fail nowhere and just time out).
    pub dial: bool,
    pub delay: Duration,
    pub packets: usize,
    /// Packets for which this says true get lost: from, to, kind, body.
    #[expect(clippy::type_complexity, reason = "used once")]
    pub lose: Option<Box<dyn FnMut(usize, usize, PacketType, &[u8]) -> bool>>,
    pub config: ControlConfig,
    queue: BTreeMap<(Instant, u64), Action>,
    timeouts: Vec<Option<Instant>>,
    counter: u64,
    seed: u64,
}

impl Sim {
    pub fn new(names: usize, seed: u64) -> Self {
        Self::with_config(names, seed, ControlConfig::default())
    }

    pub fn with_config(names: usize, seed: u64, config: ControlConfig) -> Self {
        let mut sim = Self {
            now: start(),
            hosts: Vec::new(),
            wires: Vec::new(),
            dial: false,
            delay: us(200),
            packets: 0,
            lose: None,
            config,
            queue: BTreeMap::new(),
            timeouts: Vec::new(),
            counter: 0,
            seed,
        };
        for at in 0..names {
            let name = format!("n{at}@sim");
            let host = sim.host(name, 1);
            sim.hosts.push(host);
            sim.timeouts.push(None);
            sim.drain(at);
        }
        sim
    }

    fn host(&mut self, name: String, incarnation: u64) -> Host {
        self.seed = self.seed.wrapping_add(1);
        let me = identity(&name, incarnation);
        Host {
            control: Control::new(self.config, me, self.seed, self.now),
            name,
            alive: true,
            paused_until: None,
            table: Arc::default(),
            events: Vec::new(),
            published: 0,
            wires: BTreeMap::new(),
            next_link: 0,
            told: BTreeMap::new(),
            links_told: BTreeMap::new(),
        }
    }

    pub fn id(&self, at: usize) -> NodeId {
        self.hosts[at].control.identity().id
    }

    pub fn at(&self, id: NodeId) -> usize {
        (0..self.hosts.len()).find(|&at| self.id(at) == id).expect("a node of the simulation")
    }

    pub fn incarnation(&self, at: usize) -> Incarnation {
        self.hosts[at].control.identity().incarnation
    }

    /// A new life of a node, with no links; the old one must be dead.
    pub fn restart(&mut self, at: usize) {
        assert!(!self.hosts[at].alive);
        let incarnation = self.incarnation(at).0 + 1;
        self.hosts[at] = self.host(self.hosts[at].name.clone(), incarnation);
        self.drain(at);
    }

    /// A new life under any name and incarnation, with no links; the old one must be dead, or never
    /// have had any.
    pub fn replace(&mut self, at: usize, name: &str, incarnation: u64) {
        self.hosts[at] = self.host(name.to_owned(), incarnation);
        self.drain(at);
    }

    /// A node's wish for a link to another, dialled whenever it is not there.
    pub fn wish(&mut self, at: usize, to: usize) {
        let spec = NeighbourSpec::Name(self.hosts[to].name.clone());
        let now = self.now;
        self.hosts[at].control.connect(now, spec, None, true).expect("room for a wish");
        self.drain(at);
    }

    /// A node's process dies: all its connections break.
    pub fn kill(&mut self, at: usize) {
        self.hosts[at].alive = false;
        self.timeouts[at] = None;
        for wire in self.wires_of(at) {
            self.cut(wire);
        }
    }

    pub fn wires_of(&self, at: usize) -> Vec<usize> {
        let touches = |wire: &Wire| wire.open && wire.ends.iter().any(|(end, _)| *end == at);
        (0..self.wires.len()).filter(|&wire| touches(&self.wires[wire])).collect()
    }

    pub fn wire_between(&self, a: usize, b: usize) -> Option<usize> {
        self.wires_of(a).into_iter().find(|&w| self.wires[w].ends.iter().any(|(end, _)| *end == b))
    }

    /// A link that `a` dialled comes up at both ends.
    pub fn join(&mut self, a: usize, b: usize) -> usize {
        let wire = self.wire(a, b);
        self.up(wire, 0, None, 0);
        self.up(wire, 1, None, 0);
        wire
    }

    pub fn wire(&mut self, a: usize, b: usize) -> usize {
        let mut new_link = |at: usize| {
            self.hosts[at].next_link += 1;
            (at, LinkId(self.hosts[at].next_link))
        };
        let ends = [new_link(a), new_link(b)];
        let (delay, last) = (self.delay, [self.now; 2]);
        self.wires.push(Wire { ends, open: true, silent: false, delay, last, told: [false; 2] });
        for (at, link) in ends {
            self.hosts[at].wires.insert(link, self.wires.len() - 1);
        }
        self.wires.len() - 1
    }

    /// Tells one end that the handshake is complete; end 0 has dialled.
    pub fn up(&mut self, wire: usize, end: usize, neighbour: Option<NeighbourId>, dial_seq: u64) {
        let (at, link) = self.wires[wire].ends[end];
        if !self.hosts[at].wires.contains_key(&link) {
            return;
        }
        self.wires[wire].told[end] = true;
        let (peer_at, _) = self.wires[wire].ends[1 - end];
        let peer = self.hosts[peer_at].control.identity().clone();
        let we_dialled = end == 0;
        let up = LinkUp { link, peer, we_dialled, neighbour, dial_seq, remote: address() };
        self.hosts[at].control.handle_link_up(self.now, up);
        self.drain(at);
    }

    /// The connection breaks; both ends notice at once.
    pub fn cut(&mut self, wire: usize) {
        if !std::mem::take(&mut self.wires[wire].open) {
            return;
        }
        for (at, link) in self.wires[wire].ends {
            if self.hosts[at].alive && self.hosts[at].wires.remove(&link).is_some() {
                self.hosts[at].control.handle_link_down(self.now, link);
                self.drain(at);
            }
        }
    }

    pub fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        while self.step(end) {}
        self.now = end;
    }

    /// Runs until `done`; panics after `limit`. Returns how long it took.
    pub fn run_until(&mut self, limit: Duration, mut done: impl FnMut(&Self) -> bool) -> Duration {
        let (begin, end) = (self.now, self.now + limit);
        while !done(self) {
            assert!(self.step(end), "not within {limit:?}");
        }
        self.now - begin
    }

    fn step(&mut self, end: Instant) -> bool {
        let packet_at = self.queue.keys().next().map(|(at, _)| *at);
        let timer = |at: usize| Some((self.timeouts[at]?, at));
        let timer = (0..self.hosts.len()).filter_map(timer).min();
        let packet_first = packet_at.is_some_and(|p| timer.is_none_or(|(t, _)| p <= t));
        let Some(next) = (if packet_first { packet_at } else { timer.map(|(t, _)| t) }) else {
            return false;
        };
        if next > end {
            return false;
        }
        self.now = self.now.max(next);
        if packet_first {
            if let Some((_, action)) = self.queue.pop_first() {
                self.act(action);
            }
        } else if let Some((_, at)) = timer {
            self.hosts[at].paused_until = None;
            self.hosts[at].control.handle_timeout(self.now);
            self.drain(at);
        }
        true
    }

    fn act(&mut self, action: Action) {
        let (Action::Packet { wire, end, .. } | Action::Down { wire, end }) = action;
        let (at, link) = self.wires[wire].ends[end];
        if !self.hosts[at].alive || !self.hosts[at].wires.contains_key(&link) {
            return;
        }
        if let Some(until) = self.hosts[at].paused_until.filter(|until| *until > self.now) {
            return self.push(until, action);
        }
        if !self.wires[wire].told[end] && matches!(action, Action::Packet { .. }) {
            return self.push(self.now + us(50), action);
        }
        match action {
            Action::Packet { bytes, .. } => {
                let mut record = bytes.as_slice();
                while let Some(Packet { kind, body }) =
                    next_packet(&mut record).expect("own packet")
                {
                    let result = self.hosts[at].control.handle_packet(self.now, link, kind, body);
                    result.expect("own packets can be read");
                }
                self.packets += 1;
            }
            Action::Down { .. } => {
                self.hosts[at].wires.remove(&link);
                self.hosts[at].control.handle_link_down(self.now, link);
            }
        }
        self.drain(at);
    }

    /// Holds a node up: no calls until then, what comes in waits.
    pub fn pause(&mut self, at: usize, time: Duration) {
        self.hosts[at].paused_until = Some(self.now + time);
        self.timeouts[at] = Some(self.now + time + us(1));
    }

    fn push(&mut self, at: Instant, action: Action) {
        self.counter += 1;
        self.queue.insert((at, self.counter), action);
    }

    fn send(&mut self, from: usize, link: LinkId, action: impl FnOnce(usize, usize) -> Action) {
        let Some(&wire) = self.hosts[from].wires.get(&link) else { return };
        let end = usize::from(self.wires[wire].ends[0] == (from, link));
        let wired = &mut self.wires[wire];
        if wired.silent || !wired.open {
            return;
        }
        wired.last[end] = wired.last[end].max(self.now + wired.delay);
        let at = wired.last[end];
        self.push(at, action(wire, end));
    }

    /// Carries out what a node wants, and checks that its story is consistent.
    pub fn drain(&mut self, at: usize) {
        if let Some(table) = self.hosts[at].control.poll_table() {
            self.hosts[at].table = table;
            self.hosts[at].published += 1;
        }
        while let Some((link, bytes)) = self.hosts[at].control.poll_transmit() {
            if !self.is_lost(at, link, &bytes) {
                self.send(at, link, |wire, end| Action::Packet { wire, end, bytes });
            }
        }
        let mut dials = Vec::new();
        while let Some(event) = self.hosts[at].control.poll_event() {
            self.hosts[at].check(&event);
            if let ControlEvent::CloseLink { link, .. } = event {
                self.send(at, link, |wire, end| Action::Down { wire, end });
                self.hosts[at].wires.remove(&link);
            }
            if let ControlEvent::Dial { neighbour, spec, dial_seq } = &event {
                dials.push((*neighbour, spec.clone(), *dial_seq));
            }
            self.hosts[at].events.push((self.now, event));
        }
        self.timeouts[at] = self.hosts[at].control.poll_timeout();
        if let Some(until) = self.hosts[at].paused_until {
            self.timeouts[at] = Some(until + us(1));
        }
        if self.dial {
            dials.into_iter().for_each(|dial| self.dial(at, dial));
        }
    }

    fn dial(&mut self, at: usize, (neighbour, spec, seq): (NeighbourId, NeighbourSpec, u64)) {
        let name = match spec {
            NeighbourSpec::Name(name) | NeighbourSpec::Address(name, _) => name,
        };
        match (0..self.hosts.len()).find(|&to| self.hosts[to].name == name && self.hosts[to].alive)
        {
            Some(to) => {
                let wire = self.wire(at, to);
                self.up(wire, 0, Some(neighbour), seq);
                self.up(wire, 1, None, seq);
            }
            None => {
                self.hosts[at].control.handle_dial_failed(self.now, neighbour);
                self.drain(at);
            }
        }
    }

    fn is_lost(&mut self, from: usize, link: LinkId, bytes: &[u8]) -> bool {
        let Some(&wire) = self.hosts[from].wires.get(&link) else { return false };
        let end = usize::from(self.wires[wire].ends[0] == (from, link));
        let (to, _) = self.wires[wire].ends[end];
        let Some(lose) = &mut self.lose else { return false };
        let mut record = bytes;
        let packet = next_packet(&mut record).expect("own packet").expect("one packet");
        lose(from, to, packet.kind, packet.body)
    }

    /// Events about nodes only, without their times.
    pub fn node_events(&self, at: usize, id: NodeId) -> Vec<ControlEvent> {
        let about = |event: &ControlEvent| match event {
            ControlEvent::NodeUp { id: other, .. }
            | ControlEvent::NodeLost { id: other }
            | ControlEvent::NodeFound { id: other }
            | ControlEvent::NodeDown { id: other, .. } => *other == id,
            _ => false,
        };
        self.hosts[at].events.iter().map(|(_, e)| e.clone()).filter(about).collect()
    }

    pub fn closes(&self, at: usize) -> Vec<CloseReason> {
        let reason = |event: &ControlEvent| match event {
            ControlEvent::CloseLink { reason, .. } => Some(*reason),
            _ => None,
        };
        self.hosts[at].events.iter().filter_map(|(_, event)| reason(event)).collect()
    }
}

impl Host {
    /// Up and down alternate for links and for nodes, and a table with the node is there first.
    fn check(&mut self, event: &ControlEvent) {
        match event {
            ControlEvent::LinkUp { link, peer } => {
                assert_eq!(self.links_told.insert(*link, *peer), None);
            }
            ControlEvent::LinkDown { link, peer } => {
                assert_eq!(self.links_told.remove(link), Some(*peer));
            }
            ControlEvent::NodeUp { id, incarnation, .. } => {
                assert_eq!(self.told.insert(*id, (*incarnation, false)), None, "{id} up twice");
                assert_eq!(self.table.route(*id).map(|r| r.incarnation), Some(*incarnation));
            }
            ControlEvent::NodeDown { id, incarnation, .. } => {
                let told = self.told.remove(id).map(|(life, _)| life);
                assert_eq!(told, Some(*incarnation), "{id} was not up");
            }
            ControlEvent::NodeLost { id } => {
                let node = self.told.get_mut(id).expect("up before lost");
                assert!(!std::mem::replace(&mut node.1, true));
            }
            ControlEvent::NodeFound { id } => {
                let node = self.told.get_mut(id).expect("up before found");
                assert!(std::mem::replace(&mut node.1, false));
            }
            ControlEvent::RouteChanged { ids } => {
                assert!(ids.iter().all(|id| self.told.contains_key(id)));
                assert!(ids.is_sorted() && !ids.is_empty());
            }
            ControlEvent::NodeNamed { id, former, name } => {
                assert!(self.told.contains_key(id) && former != name);
            }
            ControlEvent::CloseLink { .. }
            | ControlEvent::Dial { .. }
            | ControlEvent::NameClash { .. }
            | ControlEvent::Reborn { .. } => {}
        }
    }
}
