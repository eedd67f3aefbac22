//! Channels that end and begin anew between two nodes, over a network that loses, doubles and reorders
//! every packet, OPEN and RESET as well; while each node by itself gives the other up, finds it again, or
//! is restarted. Expected: nothing begins before both have seen the end of what was before, what is
//! delivered belongs to the session and the lives at both ends, in order and once, and when faults are
//! over there is one session that both ends are in.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chatter_core::channel::incoming::Incoming;
use chatter_core::channel::life::{Outgoing, State};
use chatter_core::channel::options::SendOptions;
use chatter_core::channel::receive::Sink;
use chatter_core::channel::table::{OpenVerdict, Table};
use chatter_core::channel::{Names, OnLoss, SERVICE_INTERVAL, Settings};
use chatter_core::ids::{ChannelIndex, Incarnation, NodeId};
use chatter_core::relay::{self, Content, Routed};
use chatter_core::wire::data::{Ack, Open, ResetReason};
use chatter_core::wire::next_packet;
use chatter_core::wire::packet::Packet;
use chatter_core::wire::routed::RoutedHeader;
use proptest::prelude::*;

const MS: Duration = Duration::from_millis(1);

#[derive(Clone, Copy, Debug)]
enum Step {
    Send(usize, u8),
    Close(usize),
    GiveUp(usize),
    FindAgain(usize),
    Restart(usize),
}

/// What the network does, per mille.
#[derive(Clone, Copy, Debug)]
struct Faults {
    loss: u64,
    doubled: u64,
    delay_ms: u64,
}

/// Frames of a session as they come out: session, the life that is meant, count.
struct Frames {
    session: u64,
    life: Incarnation,
    next: u64,
}

impl Sink for Frames {
    fn frame(&mut self, _: Option<u32>, frame: &[u8], _: u64) {
        let number = |at: usize| u64::from_be_bytes(frame[at..at + 8].try_into().unwrap());
        assert_eq!(number(0), self.session, "of another session");
        assert_eq!(number(8), self.life.0, "for another life");
        assert_eq!(number(16), self.next, "lost, repeated or out of order");
        self.next += 1;
    }
    fn frame_start(&mut self, _: Option<u32>, _: usize) {}
    fn frame_part(&mut self, _: Option<u32>, _: &[u8]) {}
    fn frame_end(&mut self, _: Option<u32>, _: u64) {}
    fn handshake(&mut self, _: &[u8], _: u64) {}
}

/// One end of a channel and its user.
struct End {
    out: Outgoing,
    inc: Incoming,
    frames: Frames,
    sent: u64,
    /// The session has begun: who asked was granted it, who granted it has got data.
    begun: bool,
    /// The user has been told of the end, or has caused it.
    ended: bool,
    /// When a user that got no data gives up.
    patience: Instant,
}

struct Node {
    id: NodeId,
    life: Incarnation,
    settings: Arc<Settings>,
    table: Table<u32>,
    ends: BTreeMap<u32, End>,
    reachable: bool,
    /// The life of the other as its control plane knows it.
    peer_life: Incarnation,
}

struct World {
    now: Instant,
    rng: u64,
    nodes: [Node; 2],
    under_way: BTreeMap<(Instant, u64), (usize, Vec<u8>)>,
    serial: u64,
    faults: Faults,
}

fn node(id: u64, life: u64, peer_life: u64) -> Node {
    let settings = Settings {
        me: NodeId(id),
        incarnation: Incarnation(life),
        name: String::new(),
        window: 1 << 20,
        max_frame: 1 << 20,
        setup_retry: 250 * MS,
        flow_quota: 256 * 1024,
        gap_timeout: Duration::from_secs(10),
        on_loss: OnLoss::End,
    };
    Node {
        id: NodeId(id),
        life: Incarnation(life),
        settings: Arc::new(settings),
        table: Table::new(100),
        ends: BTreeMap::new(),
        reachable: true,
        peer_life: Incarnation(peer_life),
    }
}

impl World {
    #[expect(clippy::disallowed_methods, reason = "any base of virtual time")]
    fn new(seed: u64, faults: Faults) -> Self {
        Self {
            now: Instant::now(),
            rng: seed,
            nodes: [node(1, 100, 100), node(2, 100, 100)],
            under_way: BTreeMap::new(),
            serial: 0,
            faults,
        }
    }

    fn random(&mut self) -> u64 {
        self.rng = self.rng.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.rng;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn post(&mut self, from: usize, packet: &Packet) {
        if self.random() % 1000 < self.faults.loss {
            return;
        }
        let copies = 1 + u64::from(self.random() % 1000 < self.faults.doubled);
        for _ in 0..copies {
            let delay = Duration::from_millis(1 + self.random() % self.faults.delay_ms);
            self.serial += 1;
            let key = (self.now + delay, self.serial);
            self.under_way.insert(key, (1 - from, packet.to_vec()));
        }
    }

    fn add(&mut self, at: usize, wanted: Option<&Open>) -> u32 {
        let (index, epoch) = (ChannelIndex(self.random() as u32 | 1), self.random());
        let now = self.now;
        let peer = self.nodes[1 - at].id;
        let node = &mut self.nodes[at];
        let names = Names { index, epoch, peer };
        let mut inc = Incoming::new(&node.settings, names);
        let settings = node.settings.clone();
        let (mut out, session, life, other) = match wanted {
            None => {
                let life = node.peer_life;
                (Outgoing::asking(settings, names, life, now), epoch, life, None)
            }
            Some(open) => {
                inc.open(open.index);
                let out = Outgoing::granting(settings, names, open, now);
                (out, open.epoch, open.incarnation, Some((open.index, open.epoch)))
            }
        };
        out.hold_open(!node.table.may_open(peer));
        assert!(node.table.insert(index, (peer, life), other, index.0));
        let frames = Frames { session, life: node.life, next: 0 };
        let end = End {
            out,
            inc,
            frames,
            sent: 0,
            begun: false,
            ended: false,
            patience: now + 7_000 * MS,
        };
        node.ends.insert(index.0, end);
        index.0
    }

    /// The user learns of a channel: the one before must be over, at both ends.
    fn begin(&mut self, at: usize, index: u32) {
        let session = self.nodes[at].ends[&index].frames.session;
        for (side, node) in self.nodes.iter().enumerate() {
            let others = node.ends.values().filter(|end| end.begun && !end.ended);
            let other = others.map(|end| end.frames.session).find(|other| *other != session);
            assert_eq!(other, None, "{at} begins {session} while {side} is in another session");
        }
        let end = self.nodes[at].ends.get_mut(&index).unwrap();
        assert!(!end.begun && !end.ended);
        end.begun = true;
    }

    fn carry_on(&mut self, at: usize, index: u32) {
        let now = self.now;
        let node = &mut self.nodes[at];
        let Some(end) = node.ends.get_mut(&index) else { return };
        end.ended |= end.inc.poll_end(now).is_some();
        if end.inc.is_over() {
            end.out.confirm_end();
        }
        let mut packets = Vec::new();
        if node.reachable {
            packets.extend(std::iter::from_fn(|| end.out.poll_packet(now)));
            packets.extend(end.inc.poll_ack());
        }
        let farewell = end.out.take_farewell();
        let over = end.inc.is_over() || farewell.is_some();
        if end.out.state() == State::Closed && over {
            node.table.remove(now, ChannelIndex(index), farewell);
            node.ends.remove(&index);
        }
        for packet in packets {
            self.post(at, &packet);
        }
    }

    fn close(&mut self, at: usize, index: u32) {
        let now = self.now;
        let node = &mut self.nodes[at];
        let Some(end) = node.ends.get_mut(&index) else { return };
        end.inc.end();
        end.ended = true;
        if end.out.close(ResetReason::Closed, now) {
            node.table.closing(ChannelIndex(index));
        }
        self.carry_on(at, index);
    }

    /// The control plane of `at` has lost a life of the other node.
    fn gone(&mut self, at: usize, reason: ResetReason, life: impl Fn(Incarnation) -> bool) {
        let indexes: Vec<u32> = self.nodes[at].ends.keys().copied().collect();
        for index in indexes {
            let end = self.nodes[at].ends.get_mut(&index).unwrap();
            if life(end.out.peer_incarnation()) {
                match reason {
                    ResetReason::Unreachable => end.out.give_up(reason),
                    _ => _ = end.out.over(),
                }
                end.inc.end();
                end.ended = true;
                self.carry_on(at, index);
            }
        }
    }

    fn arrive(&mut self, at: usize, bytes: &[u8]) {
        let packet = next_packet(&mut &bytes[..]).unwrap().unwrap();
        let me = self.nodes[at].id;
        let Routed::Mine(header, content) = relay::read(packet, me).unwrap() else { panic!() };
        let now = self.now;
        let node = &mut self.nodes[at];
        let known = node.table.get(header.channel, header.source).copied();
        let mut answer = None;
        match (content, known) {
            (Content::Data(content), Some(index)) => self.data(at, index, &header, content),
            (Content::Data(_), None) => answer = Some(relay::unknown_channel(me, &header)),
            (Content::Ack(ack), Some(index)) => {
                node.ends.get_mut(&index).unwrap().out.handle_ack(now, &ack, false);
                self.carry_on(at, index);
            }
            (Content::Open(open), _) => self.open(at, &header, &open),
            (Content::Opened(opened), Some(index)) => {
                let end = node.ends.get_mut(&index).unwrap();
                if end.out.handle_opened(&opened) {
                    end.inc.open(opened.index);
                    let here = ChannelIndex(index);
                    node.table.learn(here, opened.incarnation, opened.index, opened.epoch);
                    self.begin(at, index);
                    self.send(at, index, 1);
                } else if end.out.is_stranger(&opened) {
                    let unknown = ResetReason::Unknown;
                    answer = Some(relay::refuse(me, &header, opened.index, unknown));
                }
            }
            (Content::Opened(opened), None) => {
                answer = Some(relay::refuse(me, &header, opened.index, ResetReason::Unknown));
            }
            (Content::Reset(reset), _) => {
                if let Some(index) = node.table.find_reset(header.source, &reset).copied() {
                    let end = node.ends.get_mut(&index).unwrap();
                    end.out.handle_reset(&reset);
                    end.inc.handle_reset(now, &reset);
                    self.carry_on(at, index);
                } else {
                    node.table.farewells().handle_confirmed(header.source, &reset);
                    answer = Some(relay::confirm_reset(me, &header, &reset));
                }
                self.held(at, &header);
            }
            (Content::ResetAck(reset), _) => {
                if let Some(index) = node.table.find_reset(header.source, &reset).copied() {
                    node.ends.get_mut(&index).unwrap().out.handle_reset_ack();
                    self.carry_on(at, index);
                } else {
                    node.table.farewells().handle_confirmed(header.source, &reset);
                }
                self.held(at, &header);
            }
            _ => {}
        }
        if let Some(answer) = answer.filter(|_| self.nodes[at].reachable) {
            self.post(at, &answer);
        }
    }

    fn data(&mut self, at: usize, index: u32, header: &RoutedHeader, content: &[u8]) {
        let (mut acks, now) = (Vec::new(), self.now);
        let end = &self.nodes[at].ends[&index];
        if !end.begun && !end.ended {
            self.begin(at, index);
        }
        let end = self.nodes[at].ends.get_mut(&index).unwrap();
        let (begun, before) = (end.begun && !end.ended, end.frames.next);
        end.inc.handle_data(header, content, &mut end.frames, &mut acks).unwrap();
        assert!(begun || end.frames.next == before, "delivered outside of the session");
        for ack in acks {
            let ack = Ack { next: ack.next, credit: ack.credit, ranges: Vec::new() };
            end.out.handle_ack(now, &ack, false);
        }
        self.carry_on(at, index);
    }

    fn open(&mut self, at: usize, header: &RoutedHeader, open: &Open) {
        let (now, node) = (self.now, &mut self.nodes[at]);
        let life = Some(node.peer_life);
        match node.table.judge_open(now, header.source, open, life) {
            OpenVerdict::Known(index) => {
                node.ends.get_mut(&index).unwrap().out.confirm_open();
                self.carry_on(at, index);
            }
            OpenVerdict::Stale | OpenVerdict::Wait => {}
            OpenVerdict::New(_) => {
                self.gone(at, ResetReason::Restarted, |life| life < open.incarnation);
                let index = self.add(at, Some(open));
                self.nodes[at].ends.get_mut(&index).unwrap().out.confirm_open();
                self.carry_on(at, index);
            }
        }
    }

    fn held(&mut self, at: usize, header: &RoutedHeader) {
        if let Some(open) = self.nodes[at].table.take_held(header.source) {
            self.open(at, header, &open);
        }
    }

    /// Both nodes are served; the first one opens a channel whenever it has none.
    fn serve(&mut self) {
        let now = self.now;
        for at in 0..2 {
            let peer = self.nodes[1 - at].id;
            let indexes: Vec<u32> = self.nodes[at].ends.keys().copied().collect();
            for index in indexes {
                let node = &mut self.nodes[at];
                let hold = !node.table.may_open(peer);
                let end = node.ends.get_mut(&index).unwrap();
                end.out.hold_open(hold);
                end.out.handle_timeout(now, node.reachable);
                end.inc.handle_timeout(now, node.reachable);
                let given_up = !end.begun && now >= end.patience;
                self.carry_on(at, index);
                if given_up {
                    self.close(at, index);
                }
            }
            let node = &mut self.nodes[at];
            let (me, reachable) = (node.id, node.reachable);
            while let Some((_, packet)) =
                self.nodes[at].table.farewells().poll_packet(now, me, |_| reachable)
            {
                self.post(at, &packet);
            }
        }
        let asks = self.nodes[0].ends.values().any(|end| !end.ended);
        if self.nodes[0].reachable && !asks {
            let index = self.add(0, None);
            self.carry_on(0, index);
        }
    }

    fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            let tick = self.now + SERVICE_INTERVAL;
            while let Some(entry) = self.under_way.first_entry().filter(|e| e.key().0 <= tick) {
                self.now = self.now.max(entry.key().0);
                let (to, bytes) = entry.remove();
                self.arrive(to, &bytes);
            }
            self.now = tick;
            self.serve();
        }
    }

    fn send(&mut self, at: usize, index: u32, frames: u8) {
        let end = self.nodes[at].ends.get_mut(&index).unwrap();
        let (session, life) = (end.frames.session, end.out.peer_incarnation());
        for _ in 0..frames {
            let Some(sender) = end.out.sender_mut() else { break };
            let parts = [session, life.0, end.sent].map(u64::to_be_bytes);
            sender.push_frame(&SendOptions::default(), &[&parts[0], &parts[1], &parts[2]], 24);
            sender.end_batch();
            end.sent += 1;
        }
        self.carry_on(at, index);
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Send(at, frames) => {
                let living = self.nodes[at].ends.iter().find(|(_, end)| end.begun && !end.ended);
                if let Some(index) = living.map(|(index, _)| *index) {
                    self.send(at, index, frames);
                }
            }
            Step::Close(at) => {
                let open = self.nodes[at].ends.iter().find(|(_, end)| !end.ended);
                if let Some(index) = open.map(|(index, _)| *index) {
                    self.close(at, index);
                }
            }
            Step::GiveUp(at) => {
                self.nodes[at].reachable = false;
                self.gone(at, ResetReason::Unreachable, |_| true);
            }
            Step::FindAgain(at) => self.find_again(at),
            Step::Restart(at) => {
                let life = self.nodes[at].life.0 + 1;
                let peer_life = self.nodes[1 - at].life.0;
                self.nodes[at] = node(self.nodes[at].id.0, life, peer_life);
                // The other learns of it now, or by an OPEN, or when it finds the node again.
                if self.random().is_multiple_of(2) {
                    self.find_again(1 - at);
                }
            }
        }
    }

    fn find_again(&mut self, at: usize) {
        let (peer, life, now) = (self.nodes[1 - at].id, self.nodes[1 - at].life, self.now);
        let node = &mut self.nodes[at];
        node.reachable = true;
        node.peer_life = life;
        self.gone(at, ResetReason::Restarted, |known| known < life);
        self.nodes[at].table.farewells().handle_reachable(now, peer, life);
    }
}

fn some_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..2usize, 1..20u8).prop_map(|(at, n)| Step::Send(at, n)),
        2 => (0..2usize).prop_map(Step::Close),
        1 => (0..2usize).prop_map(Step::GiveUp),
        2 => (0..2usize).prop_map(Step::FindAgain),
        1 => (0..2usize).prop_map(Step::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_500))]

    #[test]
    fn sessions_follow_each_other(
        seed: u64,
        loss in prop_oneof![Just(0), 0..500u64],
        doubled in prop_oneof![Just(0), 0..500u64],
        delay_ms in prop_oneof![Just(1), 1..40u64, 1..400u64],
        steps in prop::collection::vec((some_step(), 0..600u64), 1..30),
    ) {
        let mut world = World::new(seed, Faults { loss, doubled, delay_ms });
        world.run(100 * MS);
        for (step, wait) in steps {
            world.step(step);
            world.run(Duration::from_millis(wait));
        }
        world.faults = Faults { loss: 0, doubled: 0, delay_ms: 1 };
        world.find_again(0);
        world.find_again(1);
        world.run(Duration::from_secs(20));
        let sessions = world.nodes.each_ref().map(|node| {
            assert!(!node.table.has_farewells());
            let living = node.ends.values().filter(|end| end.begun && !end.ended);
            living.map(|end| end.frames.session).collect::<Vec<_>>()
        });
        prop_assert_eq!(sessions[0].len(), 1);
        prop_assert_eq!(&sessions[0], &sessions[1]);
        prop_assert_eq!([0, 1].map(|at| world.nodes[at].table.len()), [1, 1]);
        for at in 0..2 {
            let before = world.nodes[1 - at].ends.values().next().unwrap().frames.next;
            world.step(Step::Send(at, 10));
            world.run(Duration::from_secs(1));
            let after = world.nodes[1 - at].ends.values().next().unwrap().frames.next;
            prop_assert_eq!(after, before + 10);
        }
    }
}
