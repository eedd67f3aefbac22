//! Packets that are lost for good, with a channel that lives on (`OnLoss::Notify`) and one that does not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chatter_core::channel::incoming::Incoming;
use chatter_core::channel::life::Outgoing;
use chatter_core::channel::options::SendOptions;
use chatter_core::channel::receive::{ReceiveError, Sink};
use chatter_core::channel::{Loss, Names, OnLoss, SERVICE_INTERVAL, Settings};
use chatter_core::flow::FlowKey;
use chatter_core::ids::{ChannelIndex, Incarnation, NodeId};
use chatter_core::wire::data::{Ack, ChannelKind, Item, Open, next_item};
use chatter_core::wire::next_packet;
use chatter_core::wire::packet::Packet;
use chatter_core::wire::reader::Reader;
use chatter_core::wire::routed::RoutedHeader;
use proptest::prelude::*;

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);
const AT_A: ChannelIndex = ChannelIndex(7);
const AT_B: ChannelIndex = ChannelIndex(8);
const WINDOW: u64 = 256 * 1024;
const GAP: Duration = Duration::from_secs(10);

#[expect(clippy::disallowed_methods, reason = "any base of virtual time")]
fn start() -> Instant {
    Instant::now()
}

fn settings(me: NodeId, on_loss: OnLoss) -> Arc<Settings> {
    Arc::new(Settings {
        me,
        incarnation: Incarnation(1),
        name: String::new(),
        window: WINDOW,
        max_frame: 1 << 20,
        setup_retry: Duration::from_millis(250),
        flow_quota: 256 * 1024,
        gap_timeout: GAP,
        on_loss,
    })
}

/// What B's user has got: frames, losses by sender, and the cost of what it can grant.
#[derive(Default)]
struct User {
    frames: Vec<Vec<u8>>,
    lost: BTreeMap<u64, u64>,
    cost: u64,
}

impl Sink for User {
    fn frame(&mut self, _: Option<u32>, frame: &[u8], cost: u64) {
        self.frames.push(frame.to_vec());
        self.cost += cost;
    }
    fn frame_start(&mut self, _: Option<u32>, _: usize) {}
    fn frame_part(&mut self, _: Option<u32>, _: &[u8]) {}
    fn frame_end(&mut self, _: Option<u32>, cost: u64) {
        self.cost += cost;
    }
    fn handshake(&mut self, _: &[u8], _: u64) {}
    fn lost(&mut self, sender: u64) {
        *self.lost.entry(sender).or_default() += 1;
    }
}

/// A channel from A to B, over a way that swallows chosen packets.
struct Pipe {
    now: Instant,
    out: Outgoing,
    incoming: Incoming,
    user: User,
    /// These never arrive as they are; what tells of their loss does, unless all is swallowed.
    swallowed: BTreeSet<u64>,
    all: bool,
}

impl Pipe {
    fn new(here: OnLoss, there: OnLoss) -> Self {
        let now = start();
        let open = Open {
            index: AT_B,
            epoch: 2,
            incarnation: Incarnation(1),
            window: WINDOW,
            kind: ChannelKind::Messages,
            name: String::new(),
        };
        let names = Names { index: AT_A, epoch: 1, peer: B };
        let out = Outgoing::granting(settings(A, here), names, &open, now);
        let names = Names { index: AT_B, epoch: 2, peer: A };
        let mut incoming = Incoming::new(&settings(B, there), names);
        incoming.open(AT_A);
        let user = User::default();
        Self { now, out, incoming, user, swallowed: BTreeSet::new(), all: false }
    }

    fn push(&mut self, key: FlowKey, frame: &[u8], droppable: bool) {
        let options = SendOptions { flow: key, droppable, ..SendOptions::default() };
        let sender = self.out.sender_mut().unwrap();
        sender.begin_batch(self.now);
        sender.push_frame(&options, &[frame], frame.len());
        sender.end_batch();
    }

    /// One round of service at both ends, and what they send.
    fn step(&mut self) -> Result<(), Fault> {
        self.now += SERVICE_INTERVAL;
        if let Some(loss) = self.out.handle_timeout(self.now, true) {
            return Err(Fault::Here(loss));
        }
        while let Some(packet) = self.out.poll_packet(self.now) {
            self.carry(&packet)?;
        }
        self.incoming.grant(std::mem::take(&mut self.user.cost));
        if let Some(loss) = self.incoming.handle_timeout(self.now, true) {
            return Err(Fault::There(loss));
        }
        if let Some(ack) = self.incoming.poll_ack() {
            let bytes = ack.to_vec();
            let packet = next_packet(&mut &bytes[..]).unwrap().unwrap();
            let mut r = Reader::new(packet.body);
            RoutedHeader::read(&mut r).unwrap();
            let ack = Ack::decode(r.rest()).unwrap();
            self.out.handle_ack(self.now, &ack, false);
        }
        Ok(())
    }

    fn carry(&mut self, packet: &Packet) -> Result<(), Fault> {
        let bytes = packet.to_vec();
        let packet = next_packet(&mut &bytes[..]).unwrap().unwrap();
        let mut r = Reader::new(packet.body);
        let header = RoutedHeader::read(&mut r).unwrap();
        let content = r.rest();
        if self.all || (self.swallowed.contains(&header.number) && !tells_of_loss(content)) {
            return Ok(());
        }
        let mut acks = Vec::new();
        let taken = self.incoming.handle_data(&header, content, &mut self.user, &mut acks);
        taken.map_err(Fault::Refused)
    }

    fn run(&mut self, time: Duration) -> Result<(), Fault> {
        let until = self.now + time;
        while self.now < until {
            self.step()?;
        }
        Ok(())
    }

    fn is_idle(&self) -> bool {
        self.out.sender().is_some_and(|sender| sender.is_idle())
    }
}

#[derive(Debug, PartialEq)]
enum Fault {
    Here(Loss),
    There(Loss),
    Refused(ReceiveError),
}

fn tells_of_loss(content: &[u8]) -> bool {
    let mut items = content.get(4..).unwrap_or_default();
    let mut found = false;
    while let Some(item) = next_item(&mut items).unwrap() {
        found |= matches!(item, Item::Lost { .. });
    }
    found
}

/// A frame that says whose it is and which.
fn frame(sender: u64, number: u32, len: usize) -> Vec<u8> {
    let mut frame = [&sender.to_be_bytes()[..], &number.to_be_bytes()].concat();
    frame.resize(12 + len, number as u8);
    frame
}

fn read(frame: &[u8]) -> (u64, u32) {
    let (sender, rest) = frame.split_at(8);
    let number = rest[..4].try_into().unwrap();
    (u64::from_be_bytes(sender.try_into().unwrap()), u32::from_be_bytes(number))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Given frames of several senders and packets that are swallowed for good, expect the rest of each sender
    /// in order and once, as many losses told of as frames are missing, and no credit gone with them.
    #[test]
    fn the_rest_arrives(
        frames in prop::collection::vec((1_u64..6, 0_usize..4_000, 0_u8..4), 1..400),
        swallowed in prop::collection::btree_set(1_u64..200, 0..40),
    ) {
        let mut pipe = Pipe::new(OnLoss::Notify, OnLoss::Notify);
        pipe.swallowed = swallowed;
        let mut sent: BTreeMap<u64, u32> = BTreeMap::new();
        for (sender, len, pause) in frames {
            let number = sent.entry(sender).or_default();
            let frame = frame(sender, *number, len);
            *number += 1;
            pipe.push(FlowKey::Flow(sender), &frame, true);
            if pause == 0 {
                prop_assert_eq!(pipe.step(), Ok(()));
            }
        }
        for _ in 0..20 {
            prop_assert_eq!(pipe.run(GAP), Ok(()));
        }
        prop_assert!(pipe.is_idle());
        let mut got: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
        for (sender, number) in pipe.user.frames.iter().map(|frame| read(frame)) {
            got.entry(sender).or_default().push(number);
        }
        for (sender, count) in &sent {
            let here = got.remove(sender).unwrap_or_default();
            prop_assert!(here.is_sorted_by(|a, b| a < b), "{sender}: {here:?}");
            let lost = pipe.user.lost.remove(sender).unwrap_or_default();
            prop_assert_eq!(here.len() as u64 + lost, u64::from(*count), "of {}", sender);
        }
        prop_assert_eq!((got.len(), pipe.user.lost.len()), (0, 0));
        // Three windows more.
        let before = pipe.user.frames.len();
        pipe.swallowed.clear();
        for number in 0..3 * WINDOW as u32 / 4_096 {
            pipe.push(FlowKey::Flow(9), &frame(9, number, 4_096), true);
            prop_assert_eq!(pipe.step(), Ok(()));
        }
        prop_assert_eq!(pipe.run(GAP), Ok(()));
        prop_assert_eq!(pipe.user.frames.len() - before, 3 * WINDOW as usize / 4_096);
    }
}

/// Given one packet that is swallowed, expect the loss to be told of when its time is over and no sooner,
/// and what others have sent to arrive long before.
#[test]
fn a_loss_is_told_in_time() {
    let mut pipe = Pipe::new(OnLoss::Notify, OnLoss::Notify);
    pipe.swallowed = BTreeSet::from([1]);
    pipe.push(FlowKey::Flow(5), &frame(5, 0, 10), true);
    assert_eq!(pipe.step(), Ok(()));
    for sender in [5, 6] {
        pipe.push(FlowKey::Flow(sender), &frame(sender, 1, 10), true);
    }
    assert_eq!(pipe.run(GAP - Duration::from_millis(200)), Ok(()));
    let frames = |pipe: &Pipe| pipe.user.frames.iter().map(|f| read(f)).collect::<Vec<_>>();
    assert_eq!(frames(&pipe), [(6, 1)]);
    assert!(pipe.user.lost.is_empty());
    assert_eq!(pipe.run(Duration::from_millis(400)), Ok(()));
    assert_eq!(frames(&pipe), [(6, 1), (5, 1)]);
    assert_eq!(pipe.user.lost, BTreeMap::from([(5, 1)]));
    assert_eq!(pipe.out.sender().unwrap().figures().flows.lost, 1);
    assert_eq!(pipe.incoming.receiver().lost(), 1);
}

/// Given a way that swallows everything for a while, expect one report of everything when it is open again; and
/// an end if it stays so.
#[test]
fn silence_is_borne_for_a_while() {
    let mut pipe = Pipe::new(OnLoss::Notify, OnLoss::Notify);
    pipe.all = true;
    for number in 0..10 {
        pipe.push(FlowKey::Flow(5), &frame(5, number, 1_000), true);
    }
    assert_eq!(pipe.run(GAP + Duration::from_secs(4)), Ok(()));
    pipe.all = false;
    assert_eq!(pipe.run(Duration::from_secs(4)), Ok(()));
    assert_eq!((pipe.user.frames.len(), &pipe.user.lost), (0, &BTreeMap::from([(5, 10)])));
    pipe.push(FlowKey::Flow(5), &frame(5, 10, 1_000), true);
    assert_eq!(pipe.run(Duration::from_secs(1)), Ok(()));
    assert_eq!(pipe.user.frames.len(), 1);
    pipe.all = true;
    pipe.push(FlowKey::Flow(5), &frame(5, 11, 1_000), true);
    assert_eq!(pipe.run(2 * GAP - Duration::from_secs(1)), Ok(()));
    assert!(matches!(pipe.run(Duration::from_secs(2)), Err(Fault::Here(_))));
}

/// Given the loss of what the other end cannot do without (a frame, a fence, a part of a large frame), expect
/// the channel to end.
#[test]
fn what_is_needed_ends_the_channel() {
    // The parts of a large frame leave behind what is small.
    let needed: [(FlowKey, usize, bool, u64); 3] = [
        (FlowKey::Flow(5), 10, false, 1),
        (FlowKey::Fence, 10, true, 1),
        (FlowKey::Flow(5), 40_000, true, 2),
    ];
    for (key, len, droppable, number) in needed {
        let mut pipe = Pipe::new(OnLoss::Notify, OnLoss::Notify);
        pipe.swallowed = BTreeSet::from([number]);
        pipe.push(key, &frame(5, 0, len), droppable);
        pipe.push(FlowKey::Flow(6), &frame(6, 0, 10), true);
        assert_eq!(pipe.run(GAP - Duration::from_millis(200)), Ok(()), "{key:?} {len}");
        let end = pipe.run(Duration::from_millis(400));
        assert!(matches!(end, Err(Fault::Here(_))), "{key:?} {len}: {end:?}");
        assert!(pipe.user.lost.is_empty());
    }
}

/// Given ends that are not of one mind, expect the channel to end.
#[test]
fn both_ends_must_bear_it() {
    let mut pipe = Pipe::new(OnLoss::Notify, OnLoss::End);
    pipe.swallowed = BTreeSet::from([1]);
    pipe.push(FlowKey::Flow(5), &frame(5, 0, 10), true);
    assert_eq!(pipe.run(2 * GAP), Err(Fault::Refused(ReceiveError::Lost)));
    let mut pipe = Pipe::new(OnLoss::End, OnLoss::Notify);
    pipe.swallowed = BTreeSet::from([1]);
    pipe.push(FlowKey::Flow(5), &frame(5, 0, 10), true);
    assert!(matches!(pipe.run(2 * GAP), Err(Fault::Here(_))));
}
