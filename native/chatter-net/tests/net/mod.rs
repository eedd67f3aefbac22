//! Nodes on loopback for the tests of this crate: a host that collects what it is told, waiting with a
//! deadline, a proxy that can freeze a link, and a client written by hand.
#![allow(dead_code, reason = "each test file uses a part")]

use std::any::Any;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use chatter_core::channel::options::SendOptions;
use chatter_core::channel::receive::Sink;
use chatter_core::channel::{CHUNK_LEN, OnLoss};
use chatter_core::control::{ControlConfig, ControlEvent, LinkInfo, LinkState};
use chatter_core::crypto::ClusterKey;
use chatter_core::dialer::NeighbourId;
use chatter_core::dialer::NeighbourSpec;
use chatter_core::wire::data::{ChannelKind, ResetReason};
use chatter_net::channel::{Channel, SendStatus};
use chatter_net::config::{ListenPort, NetConfig};
use chatter_net::host::{ChannelHost, ChannelSink, Host};
use chatter_net::node::Node;
use parking_lot::Mutex;

/// Far more than anything here takes on a busy machine.
pub const LONG: Duration = Duration::from_secs(30);

/// Waits until `test` holds; panics with `what` at the deadline. Returns how long it took.
pub fn until(what: &str, mut test: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !test() {
        assert!(start.elapsed() < LONG, "not within {LONG:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
    start.elapsed()
}

pub fn key(last: char) -> ClusterKey {
    let digits = format!("d7119a5e0382fe40b56c2190ee1377ca08f35ba644dd19608f32e1049d56b82{last}");
    ClusterKey::parse(digits.as_bytes()).unwrap()
}

pub fn config(name: &str) -> NetConfig {
    NetConfig {
        name: format!("{name}@test"),
        listen_address: Some(Ipv4Addr::LOCALHOST.into()),
        listen_port: ListenPort::Fixed(0),
        unix_sockets: false,
        advertise: Vec::new(),
        multicast: None,
        key: key('f'),
        encryption: true,
        control: ControlConfig {
            hello_ms: 100,
            hold_ms: 1_000,
            unreachable_ms: 300,
            max_dial_backoff_ms: 200,
            ..ControlConfig::default()
        },
        routes: Vec::new(),
        channel_window: 1 << 20,
        retransmit_memory: 256 << 20,
        setup_retry: Duration::from_millis(250),
        gap_timeout: Duration::from_secs(10),
        on_loss: OnLoss::End,
        busy_poll: Duration::ZERO,
        max_frame: 64 << 20,
        max_channels: 100,
        control_queue: 64 << 10,
        relay_queue: 16 << 20,
        channel_queue: 1 << 20,
        flow_quota: 256 << 10,
        flows: true,
        broadcast: Default::default(),
        max_half_open: 16,
        max_links: 64,
        handshake_timeout: Duration::from_secs(5),
        workers: 1,
    }
}

/// The user of a channel.
#[derive(Default)]
pub struct User {
    pub opened: AtomicBool,
    pub writable: AtomicUsize,
    /// Flows that may go on.
    pub resumed: Mutex<Vec<u64>>,
    inbox: Mutex<Inbox>,
}

#[derive(Default)]
struct Inbox {
    frames: Vec<Vec<u8>>,
    cost: u64,
    closed: Option<ResetReason>,
}

struct UserSink {
    user: Arc<User>,
    part: Vec<u8>,
}

impl ChannelHost for User {
    fn opened(&self) {
        self.opened.store(true, Ordering::SeqCst);
    }
    fn writable(&self) {
        self.writable.fetch_add(1, Ordering::SeqCst);
    }
    fn resume(&self, flows: Vec<u64>) {
        self.resumed.lock().extend(flows);
    }
    fn as_any(&self) -> &(dyn Any + Send + Sync) {
        self
    }
}

impl Sink for UserSink {
    fn frame(&mut self, _: Option<u32>, frame: &[u8], cost: u64) {
        let mut inbox = self.user.inbox.lock();
        assert_eq!(inbox.closed, None, "a frame after the end");
        inbox.frames.push(frame.to_vec());
        inbox.cost += cost;
    }
    fn frame_start(&mut self, _: Option<u32>, _: usize) {}
    fn frame_part(&mut self, _: Option<u32>, part: &[u8]) {
        self.part.extend_from_slice(part);
    }
    fn frame_end(&mut self, _: Option<u32>, cost: u64) {
        let frame = std::mem::take(&mut self.part);
        self.frame(None, &frame, cost);
    }
    fn handshake(&mut self, message: &[u8], cost: u64) {
        self.frame(None, message, cost);
    }
}

impl ChannelSink for UserSink {
    fn flush(&mut self) {}
    fn closed(&mut self, reason: ResetReason) {
        assert_eq!(self.user.inbox.lock().closed.replace(reason), None, "closed twice");
    }
    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

/// A host that notes everything, and resolves addresses and what was found by multicast.
#[derive(Default)]
pub struct TestHost {
    node: OnceLock<Weak<Node>>,
    pub events: Mutex<Vec<ControlEvent>>,
    pub accepted: Mutex<Vec<Arc<Channel>>>,
    pub refuse: AtomicBool,
    /// How many times it was told of broadcasts.
    pub broadcasts: AtomicUsize,
}

impl Host for TestHost {
    fn event(&self, event: &ControlEvent) {
        self.events.lock().push(event.clone());
        if let ControlEvent::Dial { neighbour, spec, dial_seq } = event {
            let Some(node) = self.node.get().and_then(Weak::upgrade) else { return };
            match spec {
                NeighbourSpec::Address(host, port) => {
                    let ip: IpAddr = host.parse().unwrap();
                    node.dial(*neighbour, *dial_seq, vec![SocketAddr::new(ip, *port)]);
                }
                NeighbourSpec::Name(name) => {
                    match node.multicast.as_ref().map(|multicast| multicast.addresses(name)) {
                        Some(found) if !found.is_empty() => node.dial(*neighbour, *dial_seq, found),
                        _ => node.dial_failed(*neighbour),
                    }
                }
            }
        }
    }

    fn dial_failed(&self, _neighbour: NeighbourId) {}

    fn accept(&self, channel: Arc<Channel>) -> bool {
        if self.refuse.load(Ordering::SeqCst) {
            return false;
        }
        self.accepted.lock().push(channel);
        true
    }

    fn broadcasts(&self) {
        self.broadcasts.fetch_add(1, Ordering::SeqCst);
    }

    fn channel(&self) -> (Arc<dyn ChannelHost>, Box<dyn ChannelSink>) {
        let user = Arc::new(User::default());
        (user.clone(), Box::new(UserSink { user, part: Vec::new() }))
    }
}

/// A started node; stopped when dropped.
pub struct Peer {
    pub node: Arc<Node>,
    pub host: Arc<TestHost>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.node.stop(Duration::ZERO);
    }
}

impl Peer {
    pub fn new(name: &str) -> Self {
        Self::with(config(name))
    }

    pub fn with(config: NetConfig) -> Self {
        let host = Arc::new(TestHost::default());
        let node = Node::start(config, host.clone()).expect("a node");
        host.node.set(Arc::downgrade(&node)).unwrap();
        Self { node, host }
    }

    pub fn address(&self) -> SocketAddr {
        let ip = self.node.config.listen_address.unwrap_or(Ipv4Addr::LOCALHOST.into());
        SocketAddr::new(ip, self.node.port.unwrap())
    }

    pub fn dial(&self, to: SocketAddr) {
        let spec = NeighbourSpec::Address(to.ip().to_string(), to.port());
        assert!(self.node.with_control(move |control, now| {
            control.connect(now, spec, None, true);
        }));
    }

    /// What the control plane says of the links.
    pub fn link_infos(&self) -> Vec<LinkInfo> {
        let (tx, rx) = std::sync::mpsc::channel();
        let asked = self.node.with_control(move |control, _| {
            tx.send(control.links()).ok();
        });
        if asked { rx.recv_timeout(LONG).unwrap_or_default() } else { Vec::new() }
    }

    pub fn up_links(&self) -> usize {
        self.link_infos().iter().filter(|link| link.state == LinkState::Up).count()
    }

    pub fn reaches(&self, other: &Self) -> bool {
        self.node.table().route(other.node.me.id).is_some()
    }

    /// Opens a channel and waits until both ends have it.
    pub fn open(&self, other: &Self) -> (Arc<Channel>, Arc<Channel>) {
        until("a route both ways", || self.reaches(other) && other.reaches(self));
        let before = other.host.accepted.lock().len();
        let here =
            self.node.open_channel(other.node.me.id, ChannelKind::Distribution).expect("a channel");
        self.node.begin_open(&here);
        until("the channel is open", || user(&here).opened.load(Ordering::SeqCst));
        until("it is accepted", || other.host.accepted.lock().len() > before);
        let there = other.host.accepted.lock().last().unwrap().clone();
        (here, there)
    }

    pub fn count_events(&self, test: impl Fn(&ControlEvent) -> bool) -> usize {
        self.host.events.lock().iter().filter(|event| test(event)).count()
    }
}

/// Links the two and waits for it.
pub fn link(a: &Peer, b: &Peer) {
    a.dial(b.address());
    until("a link", || a.reaches(b) && b.reaches(a));
}

pub fn user(channel: &Channel) -> &User {
    channel.host.as_any().downcast_ref().unwrap()
}

pub fn closed(channel: &Channel) -> Option<ResetReason> {
    user(channel).inbox.lock().closed
}

/// Takes what is there, as the VM would, and grants it.
pub fn take(channel: &Arc<Channel>) -> Vec<Vec<u8>> {
    let (frames, cost) = {
        let mut inbox = user(channel).inbox.lock();
        (std::mem::take(&mut inbox.frames), std::mem::take(&mut inbox.cost))
    };
    if cost > 0 {
        channel.grant(cost);
    }
    frames
}

/// Frame `i` of a stream: its number and some bytes that follow from it.
pub fn frame(i: u32) -> Vec<u8> {
    let len = match i % 50 {
        49 => 200_000,
        n if n % 10 == 9 => 5_000,
        n => n as usize * 3,
    };
    let mut frame = i.to_be_bytes().to_vec();
    frame.resize(4 + len, i as u8);
    frame
}

pub fn send(channel: &Arc<Channel>, frame: &[u8]) -> SendStatus {
    let (status, _) = channel.send(1, |sender| {
        if frame.len() > CHUNK_LEN {
            sender.push_large_frame(
                &SendOptions::default(),
                &[Bytes::copy_from_slice(frame)],
                frame.len(),
            );
        } else {
            sender.push_frame(&SendOptions::default(), &[frame], frame.len());
        }
        frame.len() as u64
    });
    status
}

/// Sends frames `range`, waiting when the channel is full, on a thread of its own.
pub fn stream(channel: &Arc<Channel>, range: std::ops::Range<u32>) -> std::thread::JoinHandle<()> {
    let channel = channel.clone();
    std::thread::spawn(move || {
        let mut told = 0;
        for i in range {
            match send(&channel, &frame(i)) {
                SendStatus::Ready => {}
                SendStatus::Full => {
                    let user = user(&channel);
                    until("writable again", || user.writable.load(Ordering::SeqCst) > told);
                    told += 1;
                }
                SendStatus::Closed => panic!("closed at frame {i}: {:?}", closed(&channel)),
            }
        }
    })
}

/// Takes frames `range` in order, and nothing behind them.
pub fn expect(channel: &Arc<Channel>, range: std::ops::Range<u32>) {
    assert_eq!(expect_some(channel, range.start, range.end), range.end);
}

/// Takes frames from `next` on, in order, until it has those below `end`. Returns the next one: there
/// may be more in one go.
pub fn expect_some(channel: &Arc<Channel>, mut next: u32, end: u32) -> u32 {
    until("all frames", || {
        // Asked first: frames may come, and then the end, after those here have been taken.
        let over = closed(channel).is_some();
        for got in take(channel) {
            assert!(got == frame(next), "frame {next}: {} bytes {:?}", got.len(), &got[..4]);
            next += 1;
        }
        assert!(next >= end || !over, "closed at {next}");
        next >= end
    });
    next
}

/// Passes bytes between those who connect and `target`, until frozen or cut.
pub struct Proxy {
    pub address: SocketAddr,
    pub frozen: Arc<AtomicBool>,
    over: Arc<AtomicBool>,
}

impl Proxy {
    pub fn new(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Self {
            address: listener.local_addr().unwrap(),
            frozen: Arc::default(),
            over: Arc::default(),
        };
        let (frozen, over) = (proxy.frozen.clone(), proxy.over.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                let (Ok(near), Ok(far)) = (stream, TcpStream::connect(target)) else { continue };
                for (from, to) in
                    [(near.try_clone(), far.try_clone()), (far.try_clone(), near.try_clone())]
                {
                    let (frozen, over) = (frozen.clone(), over.clone());
                    let (from, to) = (from.unwrap(), to.unwrap());
                    std::thread::spawn(move || pass(&from, &to, &frozen, &over));
                }
            }
        });
        proxy
    }

    pub fn freeze(&self, frozen: bool) {
        self.frozen.store(frozen, Ordering::SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        TcpStream::connect(self.address).ok();
    }
}

fn pass(mut from: &TcpStream, mut to: &TcpStream, frozen: &AtomicBool, over: &AtomicBool) {
    from.set_read_timeout(Some(Duration::from_millis(5))).ok();
    from.set_nodelay(true).ok();
    to.set_nodelay(true).ok();
    let mut buffer = [0; 64 * 1024];
    while !over.load(Ordering::SeqCst) {
        if frozen.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) if to.write_all(&buffer[..n]).is_ok() => {}
            Ok(_) => break,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    from.shutdown(Shutdown::Both).ok();
    to.shutdown(Shutdown::Both).ok();
}
