//! Two ends of a channel and the network between them, in virtual time: packets are lost, late, out of
//! order and doubled as a seed says. Every end is driven as the I/O side drives it: acknowledgements
//! now, with data, or within 20 ms; frames handed in while the sender is not held back.
#![allow(dead_code, reason = "each test file uses a part")]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use chatter_core::channel::CHUNK_LEN;
use chatter_core::channel::options::SendOptions;
use chatter_core::channel::receive::{AckNeed, Receiver, Sink};
use chatter_core::channel::send::{Route, Sender};
use chatter_core::ids::{ChannelIndex, NodeId};
use chatter_core::wire::data::{Ack, Item, next_item};
use chatter_core::wire::next_packet;
use chatter_core::wire::reader::Reader;
use chatter_core::wire::routed::FLAG_FENCE;
use chatter_core::wire::routed::RoutedHeader;

/// How often an end is served while something is under way.
const SERVICE: Duration = Duration::from_millis(20);

/// Small, fast, and the same everywhere (splitmix64).
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    pub fn per_mille(&mut self, n: u64) -> bool {
        self.below(1000) < n
    }
}

/// What the network does and what the ends are like.
#[derive(Clone, Debug)]
pub struct Setting {
    pub window: u64,
    pub max_frame: usize,
    /// Per mille of packets, of data and of acknowledgements.
    pub loss: u64,
    pub doubled: u64,
    pub delay_us: u64,
    /// Up to this much more, for each packet on its own: the cause of disorder.
    pub jitter_us: u64,
    /// Nothing arrives before this: the way is stuck, and all that was sent comes then.
    pub stuck_us: u64,
    /// The VM takes what is there after up to this long.
    pub vm_us: u64,
    /// The way changes so often, and what is under way is lost.
    pub route_changes: u32,
}

impl Setting {
    pub fn calm() -> Self {
        Self {
            window: 1 << 20,
            max_frame: 1 << 30,
            loss: 0,
            doubled: 0,
            delay_us: 1_000,
            jitter_us: 0,
            stuck_us: 0,
            vm_us: 0,
            route_changes: 0,
        }
    }
}

/// One thing that a user hands in.
#[derive(Clone, PartialEq, Eq)]
pub enum Unit {
    Frame(Bytes),
    Handshake(Bytes),
}

#[derive(Default)]
struct Collect {
    units: Vec<(Unit, u64)>,
    part: Vec<u8>,
    total: usize,
}

impl Sink for Collect {
    fn frame(&mut self, _: Option<u32>, frame: &[u8], cost: u64) {
        self.units.push((Unit::Frame(Bytes::copy_from_slice(frame)), cost));
    }
    fn frame_start(&mut self, _: Option<u32>, total: usize) {
        assert!(self.part.is_empty() && self.total == 0);
        self.total = total;
    }
    fn frame_part(&mut self, _: Option<u32>, part: &[u8]) {
        self.part.extend_from_slice(part);
    }
    fn frame_end(&mut self, _: Option<u32>, cost: u64) {
        assert_eq!(self.part.len(), std::mem::take(&mut self.total));
        self.units.push((Unit::Frame(std::mem::take(&mut self.part).into()), cost));
    }
    fn handshake(&mut self, message: &[u8], cost: u64) {
        self.units.push((Unit::Handshake(Bytes::copy_from_slice(message)), cost));
    }
}

struct End {
    sender: Sender,
    receiver: Receiver,
    sink: Collect,
    to_send: VecDeque<Vec<Unit>>,
    /// Handed in at the other end, and not yet come out here.
    expected: VecDeque<Unit>,
    /// What the VM has not taken yet.
    ungranted: u64,
    taking: bool,
    serving: bool,
    // What an observer of the line knows.
    granted: u64,
    sent: u64,
    highest: u64,
    flight: BTreeMap<u64, u64>,
    in_flight: u64,
}

/// Counts of one direction.
#[derive(Clone, Copy, Default, Debug)]
pub struct Counts {
    pub data: u64,
    pub data_lost: u64,
    pub ack_lost: u64,
    pub retransmits: u64,
}

enum Event {
    Data(usize, Bytes),
    Ack(usize, Ack),
    Serve(usize),
    Take(usize),
    RouteChange,
}

/// See the [module](self).
pub struct Pipe {
    pub now: Instant,
    start: Instant,
    pub rng: Rng,
    pub setting: Setting,
    ends: [End; 2],
    counts: [Counts; 2],
    events: BinaryHeap<Reverse<(Instant, u64)>>,
    bodies: BTreeMap<u64, Event>,
    serial: u64,
    /// Packets under way from before it are lost.
    life: u64,
    /// Extra faults of a test: `true` loses the packet.
    pub lose: Box<dyn FnMut(&Fate) -> bool>,
}

/// What a test's own fault sees of a packet.
#[derive(Debug)]
pub enum Fate {
    Data { to: usize, number: u64 },
    Ack { to: usize, credit: u64 },
}

impl Pipe {
    #[expect(clippy::disallowed_methods, reason = "any base of virtual time")]
    pub fn new(seed: u64, setting: Setting, to_send: [Vec<Vec<Unit>>; 2]) -> Self {
        let now = Instant::now();
        let expected = to_send.clone().map(|batches| batches.concat());
        let [a, b] = to_send;
        let [from_a, from_b] = expected;
        let end = |me: u64, to_send: Vec<Vec<Unit>>, expected: Vec<Unit>| End {
            sender: Sender::new(
                Route {
                    source: NodeId(me),
                    destination: NodeId(1 - me),
                    channel: ChannelIndex(me as u32 + 7),
                },
                setting.window,
                256 * 1024,
            ),
            receiver: Receiver::new(setting.window, setting.max_frame),
            sink: Collect::default(),
            to_send: to_send.into(),
            expected: expected.into(),
            ungranted: 0,
            taking: false,
            serving: false,
            granted: setting.window,
            sent: 0,
            highest: 0,
            flight: BTreeMap::new(),
            in_flight: 0,
        };
        let mut pipe = Self {
            now,
            start: now,
            rng: Rng(seed),
            ends: [end(0, a, from_b), end(1, b, from_a)],
            counts: [Counts::default(); 2],
            events: BinaryHeap::new(),
            bodies: BTreeMap::new(),
            serial: 0,
            life: 0,
            lose: Box::new(|_| false),
            setting,
        };
        for _ in 0..pipe.setting.route_changes {
            let at = Duration::from_micros(pipe.rng.below(100_000));
            pipe.at(at, Event::RouteChange);
        }
        pipe
    }

    /// Until everything has come out and is acknowledged; returns how long that took.
    pub fn run(&mut self, limit: Duration) -> Duration {
        self.hand_in(0);
        self.hand_in(1);
        while !self.is_done() {
            let Some(Reverse((at, serial))) = self.events.pop() else {
                panic!("nothing will happen any more, but {}", self.left())
            };
            self.now = at;
            let took = at - self.start;
            assert!(took <= limit, "not done after {limit:?}: {}", self.left());
            if let Some(event) = self.bodies.remove(&serial) {
                self.happen(event);
            }
        }
        for end in &self.ends {
            assert_eq!(end.sender.queued_bytes(), (0, 0));
            assert_eq!(end.receiver.ahead_bytes(), 0);
            assert!(end.sink.part.is_empty());
        }
        self.now - self.start
    }

    pub fn counts(&self, end: usize) -> Counts {
        Counts { retransmits: self.ends[end].sender.figures().retransmits, ..self.counts[end] }
    }

    fn is_done(&self) -> bool {
        self.ends
            .iter()
            .all(|end| end.to_send.is_empty() && end.expected.is_empty() && end.sender.is_idle())
    }

    fn left(&self) -> String {
        let left = self.ends.each_ref().map(|end| {
            (end.to_send.len(), end.expected.len(), end.sender.queued_bytes(), end.sender.is_idle())
        });
        format!("to send, to come, (waiting, unacknowledged), idle: {left:?}")
    }

    fn at(&mut self, after: Duration, event: Event) {
        self.serial += 1;
        self.events.push(Reverse((self.now + after, self.serial)));
        self.bodies.insert(self.serial, event);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Data(to, packet) => self.arrive(to, &packet),
            Event::Ack(to, ack) => self.acked(to, &ack),
            Event::Serve(end) => self.serve(end),
            Event::Take(end) => self.take(end),
            Event::RouteChange => self.route_change(),
        }
    }

    fn route_change(&mut self) {
        self.life += 1;
        let under_way =
            |_: &u64, event: &mut Event| matches!(event, Event::Data(..) | Event::Ack(..));
        let lost: Vec<Event> =
            self.bodies.extract_if(.., under_way).map(|(_, event)| event).collect();
        for event in lost {
            match event {
                Event::Data(to, _) => self.counts[1 - to].data_lost += 1,
                Event::Ack(to, _) => self.counts[to].ack_lost += 1,
                _ => {}
            }
        }
        for end in 0..2 {
            self.ends[end].sender.handle_route_change(self.now);
            self.transmit(end);
        }
    }

    fn hand_in(&mut self, at: usize) {
        loop {
            let end = &mut self.ends[at];
            if end.sender.is_held_back() {
                return;
            }
            let Some(batch) = end.to_send.pop_front() else { return };
            if let Some(news) = end.receiver.take_piggyback() {
                end.sender.push_ack(news.next, news.credit);
            }
            for unit in batch {
                match unit {
                    Unit::Frame(frame) => {
                        let (total, third) = (frame.len(), frame.len() / 3);
                        if total > CHUNK_LEN {
                            let pieces = [frame.slice(..third), frame.slice(third..)];
                            end.sender.push_large_frame(&SendOptions::default(), &pieces, total);
                        } else {
                            end.sender.push_frame(
                                &SendOptions::default(),
                                &[&frame[..third], &frame[third..]],
                                total,
                            );
                        }
                    }
                    Unit::Handshake(message) => end.sender.push_handshake(&message),
                }
            }
            end.sender.end_batch();
            self.transmit(at);
            self.want_service(at);
        }
    }

    fn transmit(&mut self, from: usize) {
        while let Some(packet) = self.ends[from].sender.poll_packet(self.now) {
            let packet = Bytes::from(packet.to_vec());
            self.observe(from, &packet);
            let number = number_of(&packet);
            self.counts[from].data += 1;
            if self.is_lost(&Fate::Data { to: 1 - from, number }) {
                self.counts[from].data_lost += 1;
                continue;
            }
            let delay = self.delay();
            self.at(delay, Event::Data(1 - from, packet.clone()));
            if self.rng.per_mille(self.setting.doubled) {
                let delay = self.delay();
                self.at(delay, Event::Data(1 - from, packet));
            }
        }
    }

    /// Checks what leaves against what an observer of the line knows.
    fn observe(&mut self, from: usize, packet: &Bytes) {
        let window = self.setting.window;
        let end = &mut self.ends[from];
        let (number, cost) = (number_of(packet), cost_of(packet));
        if number > end.highest {
            assert_eq!(number, end.highest + 1, "a number was left out");
            end.highest = number;
            end.sent += cost;
            end.flight.insert(number, cost);
            end.in_flight += cost;
        }
        assert!(end.sent <= end.granted, "credit exceeded by {}", end.sent - end.granted);
        assert!(end.in_flight <= window, "{} under way in a window of {window}", end.in_flight);
    }

    fn is_lost(&mut self, fate: &Fate) -> bool {
        (self.lose)(fate) || self.rng.per_mille(self.setting.loss)
    }

    fn delay(&mut self) -> Duration {
        let jitter = self.rng.below(self.setting.jitter_us + 1);
        let stuck = Duration::from_micros(self.setting.stuck_us);
        let free = (self.start + stuck).saturating_duration_since(self.now);
        free + Duration::from_micros(self.setting.delay_us + jitter)
    }

    fn arrive(&mut self, to: usize, packet: &[u8]) {
        let end = &mut self.ends[to];
        let mut acks = Vec::new();
        let (header, content) = header_of(packet);
        let is_fence = header.flags & FLAG_FENCE != 0;
        let need = end
            .receiver
            .handle_data(header.number, is_fence, content, &mut end.sink, &mut acks)
            .expect("an honest peer");
        assert!(end.receiver.ahead_bytes() <= 6 * self.setting.window);
        for (unit, cost) in end.sink.units.drain(..) {
            assert!(end.expected.pop_front() == Some(unit), "not what was sent, or out of order");
            end.ungranted += cost;
        }
        if end.ungranted > 0 && !std::mem::replace(&mut end.taking, true) {
            let after = Duration::from_micros(self.rng.below(self.setting.vm_us + 1));
            self.at(after, Event::Take(to));
        }
        self.tell(to, need);
        for ack in acks {
            let ack = Ack { next: ack.next, credit: ack.credit, ranges: Vec::new() };
            self.acked(to, &ack);
        }
    }

    fn take(&mut self, at: usize) {
        let end = &mut self.ends[at];
        end.taking = false;
        let cost = std::mem::take(&mut end.ungranted);
        let need = end.receiver.grant(cost);
        self.tell(at, need);
    }

    fn tell(&mut self, from: usize, need: AckNeed) {
        match need {
            AckNeed::None => {}
            AckNeed::Soon => self.want_service(from),
            AckNeed::Now => {
                let ack = self.ends[from].receiver.take_ack();
                assert_eq!(Ack::decode(&ack.encode()), Ok(ack.clone()));
                let to = 1 - from;
                if self.is_lost(&Fate::Ack { to, credit: ack.credit }) {
                    self.counts[to].ack_lost += 1;
                    return;
                }
                let delay = self.delay();
                self.at(delay, Event::Ack(to, ack));
            }
        }
    }

    fn acked(&mut self, at: usize, ack: &Ack) {
        let end = &mut self.ends[at];
        end.granted = end.granted.max(ack.credit);
        let left = end.flight.split_off(&ack.next);
        let acked = std::mem::replace(&mut end.flight, left);
        end.in_flight -= acked.values().sum::<u64>();
        for &(from, to) in &ack.ranges {
            let told = end.flight.extract_if(from..to, |_, _| true);
            end.in_flight -= told.map(|(_, cost)| cost).sum::<u64>();
        }
        end.sender.handle_ack(self.now, ack);
        self.transmit(at);
        self.hand_in(at);
    }

    fn want_service(&mut self, end: usize) {
        if !std::mem::replace(&mut self.ends[end].serving, true) {
            self.at(SERVICE, Event::Serve(end));
        }
    }

    fn serve(&mut self, at: usize) {
        self.ends[at].serving = false;
        if self.ends[at].receiver.has_news() {
            self.tell(at, AckNeed::Now);
        }
        self.ends[at].sender.handle_timeout(self.now);
        self.transmit(at);
        if !self.ends[at].sender.is_idle() {
            self.want_service(at);
        }
    }
}

fn header_of(packet: &[u8]) -> (RoutedHeader, &[u8]) {
    let packet = next_packet(&mut &packet[..]).unwrap().unwrap();
    let mut r = Reader::new(packet.body);
    (RoutedHeader::read(&mut r).unwrap(), r.rest())
}

fn number_of(packet: &[u8]) -> u64 {
    header_of(packet).0.number
}

/// By the rule of docs/wire-format.md, without the crate's help.
fn cost_of(packet: &[u8]) -> u64 {
    let mut content = &header_of(packet).1[4..];
    let mut cost = 0;
    while let Some(item) = next_item(&mut content).unwrap() {
        cost += match item {
            Item::Frame(body) | Item::More(body) | Item::Handshake(body) => 4 + body.len() as u64,
            Item::First { part, .. } => 8 + part.len() as u64,
            Item::End => 4,
            Item::Void { cost } | Item::Lost { cost, .. } => u64::from(cost),
            Item::Ack { .. } | Item::Flow { .. } => 0,
        };
    }
    cost
}

/// Seeds to run: `CHATTER_SEED` for one, else `CHATTER_SEEDS` or `count` of them. A failing run ends
/// with the line that names its seed.
pub fn seeds(test: &str, count: u64, run: impl Fn(u64)) {
    struct Name<'a>(&'a str, u64);
    impl Drop for Name<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("failed with: CHATTER_SEED={} cargo test {}", self.1, self.0);
            }
        }
    }
    let number = |name: &str| std::env::var(name).ok().map(|v| v.parse::<u64>().expect("a number"));
    let (first, count) = match number("CHATTER_SEED") {
        Some(seed) => (seed, 1),
        None => (1, number("CHATTER_SEEDS").unwrap_or(count)),
    };
    println!("{test}: seeds {first} to {}", first + count - 1);
    for seed in first..first + count {
        let name = Name(test, seed);
        run(seed);
        drop(name);
    }
}
