//! One direction of a channel with many flows, over a network in which the packets of each label keep
//! their order and those of different labels overtake each other, get lost and come twice, in virtual
//! time. What comes out is checked frame by frame, what is sent packet by packet.
#![allow(dead_code, reason = "each test file uses a part")]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use chatter_core::channel::options::SendOptions;
use chatter_core::channel::receive::{AckNeed, Receiver, Sink};
use chatter_core::channel::send::{Route, Sender};
use chatter_core::flow::FlowKey;
use chatter_core::ids::{ChannelIndex, NodeId};
use chatter_core::sched::fair::Level;
use chatter_core::wire::data::{Ack, Item, fences, next_item};
use chatter_core::wire::next_packet;
use chatter_core::wire::reader::Reader;
use chatter_core::wire::routed::{FLAG_FENCE, RoutedHeader};

use crate::channel_pipe::Rng;

const SERVICE: Duration = Duration::from_millis(20);

/// Bytes of a frame that say which one it is.
pub const MARK: usize = 4;

pub fn sender(window: u64, quota: usize) -> Sender {
    let route = Route { source: NodeId(1), destination: NodeId(2), channel: ChannelIndex(3) };
    Sender::new(route, window, quota)
}

#[expect(clippy::disallowed_methods, reason = "any base of virtual time")]
pub fn start() -> Instant {
    Instant::now()
}

pub fn read(packet: &[u8]) -> (RoutedHeader, &[u8]) {
    let packet = next_packet(&mut &packet[..]).unwrap().unwrap();
    let mut r = Reader::new(packet.body);
    (RoutedHeader::read(&mut r).unwrap(), r.rest())
}

/// By the rule of docs/wire-format.md.
fn cost(mut items: &[u8]) -> u64 {
    let mut cost = 0;
    while let Some(item) = next_item(&mut items).unwrap() {
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

/// One frame that was handed in.
struct Sent {
    key: Option<u64>,
    /// Fences before it, and leads.
    fences: usize,
    leads: usize,
    is_lead: bool,
    ordered: bool,
    optional: bool,
    len: usize,
}

/// Checks what comes out against what was handed in.
#[derive(Default)]
pub struct Checker {
    sent: Vec<Sent>,
    taken: HashSet<usize>,
    /// Ordered frames of each flow that have not come out.
    pending: BTreeMap<u64, VecDeque<usize>>,
    /// Frames behind so many fences that must come out and have not.
    required: Vec<usize>,
    fences_sent: usize,
    fences_taken: usize,
    leads_sent: usize,
    leads_taken: usize,
    parts: BTreeMap<Option<u32>, (usize, Vec<u8>)>,
    /// Cost that the VM has not granted.
    pub ungranted: u64,
    /// In which order flows have come out.
    pub order: Vec<Option<u64>>,
}

impl Checker {
    /// A frame of so many bytes that is handed in with these options.
    pub fn frame(&mut self, options: &SendOptions, len: usize) -> Bytes {
        let key = match options.flow {
            FlowKey::Flow(key) | FlowKey::Lead(key) => Some(key),
            FlowKey::Fence => None,
        };
        let id = self.sent.len();
        let optional = options.deadline.is_some() || !options.reliable;
        let (ordered, fences) = (options.ordered, self.fences_sent);
        if key.is_none() {
            self.fences_sent += 1;
        }
        self.required.resize(self.fences_sent + 1, 0);
        self.required[fences] += usize::from(!optional && key.is_some());
        if let Some(key) = key
            && ordered
        {
            self.pending.entry(key).or_default().push_back(id);
        }
        let len = len.max(MARK);
        let (leads, is_lead) = (self.leads_sent, matches!(options.flow, FlowKey::Lead(_)));
        self.leads_sent += usize::from(is_lead);
        self.sent.push(Sent { key, fences, leads, is_lead, ordered, optional, len });
        let mut bytes = vec![id as u8; len];
        bytes[..MARK].copy_from_slice(&(id as u32).to_be_bytes());
        bytes.into()
    }

    pub fn is_done(&self) -> bool {
        self.required.iter().all(|left| *left == 0)
            && self.fences_taken == self.fences_sent
            && self.parts.is_empty()
    }

    /// Optional frames that did not come out.
    pub fn missing(&self) -> usize {
        self.sent.len() - self.taken.len()
    }

    fn take(&mut self, frame: &[u8], cost: u64) {
        let id = u32::from_be_bytes(frame[..MARK].try_into().unwrap()) as usize;
        let sent = &self.sent[id];
        assert_eq!(frame.len(), sent.len, "another length");
        assert!(frame[MARK..].iter().all(|byte| *byte == id as u8), "other bytes");
        assert!(self.taken.insert(id), "frame {id} came twice");
        assert_eq!(self.fences_taken, sent.fences, "frame {id} crossed a fence");
        assert!(self.leads_taken >= sent.leads, "frame {id} before a lead");
        if sent.is_lead {
            assert_eq!(self.leads_taken, sent.leads, "lead {id} before another");
            self.leads_taken += 1;
        }
        self.ungranted += cost;
        self.order.push(sent.key);
        let Some(key) = sent.key else {
            assert_eq!(self.required[..=sent.fences].iter().sum::<usize>(), 0, "fence {id} early");
            self.fences_taken += 1;
            return;
        };
        self.required[sent.fences] -= usize::from(!sent.optional);
        if sent.ordered {
            let pending = self.pending.get_mut(&key).unwrap();
            while let Some(first) = pending.pop_front() {
                if first == id {
                    return;
                }
                assert!(self.sent[first].optional, "frame {id} before {first} of its flow");
            }
            panic!("frame {id} out of order");
        }
    }
}

impl Sink for Checker {
    fn frame(&mut self, _: Option<u32>, frame: &[u8], cost: u64) {
        self.take(frame, cost);
    }
    fn frame_start(&mut self, flow: Option<u32>, total: usize) {
        assert!(self.parts.insert(flow, (total, Vec::new())).is_none(), "two of one flow");
    }
    fn frame_part(&mut self, flow: Option<u32>, part: &[u8]) {
        self.parts.get_mut(&flow).unwrap().1.extend_from_slice(part);
    }
    fn frame_end(&mut self, flow: Option<u32>, cost: u64) {
        let (total, frame) = self.parts.remove(&flow).unwrap();
        assert_eq!(frame.len(), total);
        self.take(&frame, cost);
    }
    fn handshake(&mut self, _: &[u8], _: u64) {
        panic!("nobody sent one");
    }
}

/// What the network does.
#[derive(Clone, Debug)]
pub struct Weather {
    /// Per mille of packets, of data and of acknowledgements.
    pub loss: u64,
    pub doubled: u64,
    pub delay_us: u64,
    /// Up to this much more for each label.
    pub spread_us: u64,
    /// The VM takes what is there after up to this long.
    pub vm_us: u64,
    /// Packets that leave at a time; the next ones a tenth of a millisecond later.
    pub burst: usize,
}

enum Event {
    Data(Bytes),
    Ack(Ack),
    Serve,
    Take,
    Pull,
}

/// See the [module](self).
pub struct Mesh {
    pub now: Instant,
    start: Instant,
    pub rng: Rng,
    pub weather: Weather,
    pub sender: Sender,
    pub receiver: Receiver,
    pub checker: Checker,
    /// Flows whose senders are held back.
    pub held: HashSet<u64>,
    ways: usize,
    events: BinaryHeap<Reverse<(Instant, u64)>>,
    bodies: BTreeMap<u64, Event>,
    serial: u64,
    serving: bool,
    taking: bool,
    pulling: bool,
    window: u64,
    granted: u64,
    spent: u64,
    /// Costs, and whether it was a fence, by number.
    costs: Vec<(u64, bool)>,
    fences: u32,
    /// When the last packet of each label arrives.
    lanes: BTreeMap<u16, Instant>,
    /// Extra faults of a test: `true` loses the packet.
    pub lose: Box<dyn FnMut(&RoutedHeader) -> bool>,
}

impl Mesh {
    pub fn new(seed: u64, window: u64, quota: usize, weather: Weather) -> Self {
        let now = start();
        Self {
            now,
            start: now,
            rng: Rng(seed),
            weather,
            sender: sender(window, quota),
            receiver: Receiver::new(window, 1 << 30),
            checker: Checker::default(),
            held: HashSet::new(),
            ways: 1,
            events: BinaryHeap::new(),
            bodies: BTreeMap::new(),
            serial: 0,
            serving: false,
            taking: false,
            pulling: false,
            window,
            granted: window,
            spent: 0,
            costs: Vec::new(),
            fences: 0,
            lanes: BTreeMap::new(),
            lose: Box::new(|_| false),
        }
    }

    /// Hands frames in, as one batch.
    pub fn push(&mut self, frames: &[(SendOptions, usize)]) {
        self.sender.begin_batch(self.now);
        for (options, len) in frames {
            let frame = self.checker.frame(options, *len);
            let (len, third) = (frame.len(), frame.len() / 3);
            if len > chatter_core::channel::CHUNK_LEN {
                let pieces = [frame.slice(..third), frame.slice(third..)];
                self.sender.push_large_frame(options, &pieces, len);
            } else {
                self.sender.push_frame(options, &[&frame[..third], &frame[third..]], len);
            }
        }
        self.sender.end_batch();
        self.note_held();
        self.pull();
    }

    /// There are so many equally short ways now.
    pub fn set_ways(&mut self, ways: usize) {
        self.ways = ways;
        self.sender.set_ways(ways);
        self.pull();
    }

    /// Lets time pass.
    pub fn run_for(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(Reverse((at, serial))) = self.events.peek().copied()
            && at <= until
        {
            self.events.pop();
            self.now = at;
            if let Some(event) = self.bodies.remove(&serial) {
                self.happen(event);
            }
        }
        self.now = until;
    }

    /// Until all is there and acknowledged.
    pub fn finish(&mut self, limit: Duration) {
        while !(self.checker.is_done() && self.sender.is_idle()) {
            let took = self.now - self.start;
            let parts: Vec<_> =
                self.checker.parts.values().map(|(total, part)| (part.len(), *total)).collect();
            let figures = self.sender.figures();
            let receiver = (self.receiver.ahead_bytes(), self.receiver.has_gap());
            let credit = (self.spent, self.granted, self.checker.ungranted, self.sender.ready());
            assert!(
                took < limit,
                "not done after {limit:?}: {figures:?}, parts there: {parts:?}, ahead {receiver:?}, \
                 credit {credit:?}"
            );
            self.run_for(Duration::from_millis(10));
        }
        self.run_for(Duration::from_secs(5));
        assert_eq!(self.sender.queued_bytes(), (0, 0));
        assert_eq!((self.receiver.ahead_bytes(), self.receiver.has_gap()), (0, false));
        assert!(self.held.is_empty(), "held for ever");
        assert_eq!(self.sender.ready(), 0);
        let flows = self.sender.figures().flows;
        assert!(self.checker.missing() as u64 <= flows.late + flows.given_up);
        assert!(self.sender.flows().all(|flow| flow.queued == 0));
        assert!(self.receiver.flows() <= flows.flows, "flows that nobody sends");
    }

    fn note_held(&mut self) {
        for key in self.sender.take_hold() {
            assert!(self.held.insert(key), "held twice");
        }
        for key in self.sender.take_resume() {
            assert!(self.held.remove(&key), "resumed without being held");
        }
    }

    fn at(&mut self, after: Duration, event: Event) {
        self.serial += 1;
        self.events.push(Reverse((self.now + after, self.serial)));
        self.bodies.insert(self.serial, event);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Data(packet) => self.arrive(&packet),
            Event::Ack(ack) => {
                self.granted = self.granted.max(ack.credit);
                self.sender.handle_ack(self.now, &ack);
                self.pull();
            }
            Event::Serve => {
                self.serving = false;
                if self.receiver.has_news() {
                    self.tell(AckNeed::Now);
                }
                self.sender.handle_timeout(self.now);
                self.pull();
            }
            Event::Take => {
                self.taking = false;
                let cost = std::mem::take(&mut self.checker.ungranted);
                let need = self.receiver.grant(cost);
                self.tell(need);
            }
            Event::Pull => {
                self.pulling = false;
                self.pull();
            }
        }
    }

    /// What links do: each takes packets of levels that have some, as many as it likes.
    fn pull(&mut self) {
        for _ in 0..self.weather.burst {
            let way = if self.ways > 1 { self.rng.below(self.ways as u64) as usize } else { 0 };
            let ready = self.sender.ready_on(way);
            if ready == 0 && self.ways > 1 {
                continue;
            }
            let some: Vec<Level> =
                Level::ALL.into_iter().filter(|level| ready & level.bit() != 0).collect();
            let Some(first) = some.first() else { break };
            let turn = self.rng.per_mille(200);
            let any = self.rng.below(some.len() as u64) as usize;
            let level = if turn { some[any] } else { *first };
            if let Some(packet) = self.sender.poll_on(way, self.now, level) {
                self.leave(packet.to_vec().into());
            }
            self.note_held();
        }
        if self.sender.ready() != 0 && !std::mem::replace(&mut self.pulling, true) {
            self.at(Duration::from_micros(100), Event::Pull);
        }
        if !self.sender.is_idle() {
            self.serve();
        }
    }

    fn leave(&mut self, packet: Bytes) {
        let (header, mut items) = read(&packet);
        let before = fences(&mut items).unwrap();
        let is_fence = header.flags & FLAG_FENCE != 0;
        let cost = cost(items);
        match (header.number as usize).checked_sub(1) {
            None => assert!(items.is_empty(), "a question for credit"),
            Some(at) if at == self.costs.len() => {
                assert_eq!(before, self.fences, "not all fences before it");
                self.costs.push((cost, is_fence));
                self.fences += u32::from(is_fence);
                self.spent += cost;
                assert!(self.spent <= self.granted, "over the credit");
                assert!(self.sender.queued_bytes().1 <= 2 * self.window as usize + 200_000);
            }
            Some(at) => assert_eq!(self.costs[at], (cost, is_fence), "sent again as another"),
        }
        if (self.lose)(&header) || self.rng.per_mille(self.weather.loss) {
            return;
        }
        let copies = 1 + u64::from(self.rng.per_mille(self.weather.doubled));
        for _ in 0..copies {
            let spread = self.rng.below(self.weather.spread_us + 1);
            let lane = self.lanes.entry(header.label).or_insert(self.now);
            let after = Duration::from_micros(self.weather.delay_us + spread);
            *lane = (*lane).max(self.now + after);
            let after = *lane - self.now;
            self.at(after, Event::Data(packet.clone()));
        }
    }

    fn arrive(&mut self, packet: &[u8]) {
        let (header, content) = read(packet);
        let is_fence = header.flags & FLAG_FENCE != 0;
        let (receiver, checker) = (&mut self.receiver, &mut self.checker);
        let taken =
            receiver.handle_data(header.number, is_fence, content, checker, &mut Vec::new());
        let need = taken.expect("an honest peer");
        assert!(self.receiver.ahead_bytes() <= 6 * self.window);
        if self.checker.ungranted > 0 && !std::mem::replace(&mut self.taking, true) {
            let after = Duration::from_micros(self.rng.below(self.weather.vm_us + 1));
            self.at(after, Event::Take);
        }
        self.tell(need);
    }

    fn tell(&mut self, need: AckNeed) {
        match need {
            AckNeed::None => {}
            AckNeed::Soon => self.serve(),
            AckNeed::Now => {
                let ack = self.receiver.take_ack();
                if !self.rng.per_mille(self.weather.loss) {
                    let after = Duration::from_micros(self.weather.delay_us);
                    self.at(after, Event::Ack(ack));
                }
            }
        }
    }

    fn serve(&mut self) {
        if !std::mem::replace(&mut self.serving, true) {
            self.at(SERVICE, Event::Serve);
        }
    }
}
