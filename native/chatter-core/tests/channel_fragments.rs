//! Fragments of the VM that follow each other reach the VM as one, by the VM's own rules for fragments, at
//! the right side of each change of its atoms, and with the credit of all of them.

mod channel_mesh;
mod channel_pipe;

use std::collections::{BTreeMap, HashMap, VecDeque};

use channel_mesh::{read, sender, start};
use channel_pipe::{Rng, seeds};
use chatter_core::channel::options::SendOptions;
use chatter_core::channel::receive::{Receiver, Sink};
use chatter_core::channel::send::Sender;
use chatter_core::flow::FlowKey;
use chatter_core::flow::fragment::{self, HEADER_LEN};
use chatter_core::wire::routed::FLAG_FENCE;

const WINDOW: u64 = 8 * 1024 * 1024;
const MAX_FRAME: usize = 1024 * 1024;
const PAYLOAD: usize = 64 * 1024;

/// As the VM behaves: a first fragment says how many there are, and each of the others must be the next.
#[derive(Default)]
struct Vm {
    parts: HashMap<Option<u32>, Vec<u8>>,
    /// By sequence: the number that must come next, and what there is.
    open: BTreeMap<u64, (u64, Vec<u8>)>,
    /// How often its atoms have changed.
    atoms: u8,
    /// Whole signals by sender.
    signals: BTreeMap<u64, Vec<Vec<u8>>>,
    /// Frames, and the longest.
    frames: usize,
    longest: usize,
    ungranted: u64,
    /// Bytes in what was not granted, and the most that were.
    untaken: usize,
    most: usize,
}

impl Vm {
    fn put(&mut self, frame: &[u8], cost: u64) {
        self.frames += 1;
        self.longest = self.longest.max(frame.len());
        self.ungranted += cost;
        self.untaken += frame.len();
        self.most = self.most.max(self.untaken);
        let Some(fragment) = fragment::read(frame) else {
            match frame {
                [b'A', ..] => self.atoms += 1,
                [b'D', atoms, sender, rest @ ..] => {
                    assert_eq!(*atoms, self.atoms, "read with the wrong atoms");
                    self.signals.entry(u64::from(*sender)).or_default().push(rest.to_vec());
                }
                _ => panic!("no frame: {:?}", &frame[..frame.len().min(20)]),
            }
            return;
        };
        let (sequence, body) = (fragment.sequence, &frame[HEADER_LEN..]);
        if fragment.is_first {
            assert_eq!(body[0], self.atoms, "read with the wrong atoms");
            let before = self.open.insert(sequence, (fragment.number, body[1..].to_vec()));
            assert!(before.is_none(), "a second first fragment");
        } else {
            let (next, all) = self.open.get_mut(&sequence).expect("a fragment of nothing");
            assert_eq!(fragment.number, *next, "not the next fragment");
            all.extend_from_slice(body);
        }
        let open = self.open.get_mut(&sequence).unwrap();
        open.0 -= 1;
        if open.0 == 0 {
            let (_, signal) = self.open.remove(&sequence).unwrap();
            self.signals.entry(sequence).or_default().push(signal);
        }
    }
}

impl Sink for Vm {
    fn frame(&mut self, _: Option<u32>, frame: &[u8], cost: u64) {
        self.put(frame, cost);
    }
    fn frame_start(&mut self, flow: Option<u32>, _: usize) {
        assert!(self.parts.insert(flow, Vec::new()).is_none());
    }
    fn frame_part(&mut self, flow: Option<u32>, part: &[u8]) {
        self.parts.get_mut(&flow).unwrap().extend_from_slice(part);
    }
    fn frame_fix(&mut self, flow: Option<u32>, at: usize, bytes: &[u8]) {
        self.parts.get_mut(&flow).unwrap()[at..at + bytes.len()].copy_from_slice(bytes);
    }
    fn frame_end(&mut self, flow: Option<u32>, cost: u64) {
        let frame = self.parts.remove(&flow).unwrap();
        self.put(&frame, cost);
    }
    fn handshake(&mut self, _: &[u8], _: u64) {}
}

/// The frames of a signal, as the VM makes them. It reads its atoms when the first leaves.
fn fragments(sender: u64, signal: &[u8]) -> Vec<Vec<u8>> {
    let count = signal.len().div_ceil(PAYLOAD);
    let header = |kind, at: usize| {
        [&[131, kind][..], &sender.to_be_bytes(), &((count - at) as u64).to_be_bytes()].concat()
    };
    let all = signal.chunks(PAYLOAD).enumerate();
    all.map(|(at, part)| match at {
        0 => [&header(b'E', 0)[..], &[0], part].concat(),
        _ => [&header(b'F', at)[..], part].concat(),
    })
    .collect()
}

fn options(flow: FlowKey) -> SendOptions {
    SendOptions { flow, ..SendOptions::default() }
}

struct Load {
    senders: u64,
    /// Processes that share a flow.
    shared: bool,
    /// Out of 1,000 frames, how many change the atoms.
    changes: u64,
    frames: usize,
}

/// Brings over all that was handed in, in packets that overtake each other. The VM takes what there is now
/// and then, and when nothing else can be done.
fn bring_over(rng: &mut Rng, out: &mut Sender, receiver: &mut Receiver, takes: u64) -> Vm {
    let (mut vm, mut line, now) = (Vm::default(), Vec::new(), start());
    let mut credit = 0;
    loop {
        while line.len() < 4
            && let Some(packet) = out.poll_packet(now)
        {
            line.push(packet.to_vec());
        }
        if line.is_empty() {
            if out.is_idle() {
                break;
            }
            assert!(vm.ungranted > 0, "waits for ever");
        } else {
            let packet = line.remove(rng.below(line.len() as u64) as usize);
            let (header, content) = read(&packet);
            let is_fence = header.flags & FLAG_FENCE != 0;
            let acks = &mut Vec::new();
            receiver.handle_data(header.number, is_fence, content, &mut vm, acks).unwrap();
        }
        if line.is_empty() || rng.per_mille(takes) {
            let _ = receiver.grant(std::mem::take(&mut vm.ungranted));
            vm.untaken = 0;
        }
        let ack = receiver.take_ack();
        assert!(ack.credit >= credit, "credit is taken back");
        credit = ack.credit;
        out.handle_ack(now, &ack);
    }
    assert!(vm.open.is_empty() && vm.parts.is_empty());
    // All that has come was granted by the VM, or counts as consumed: once.
    let _ = receiver.grant(std::mem::take(&mut vm.ungranted));
    let credit = receiver.take_ack().credit;
    let _ = receiver.grant(1);
    assert_eq!(receiver.take_ack().credit, credit, "something was not granted");
    vm
}

/// Sends signals of several processes, whose fragments take turns. Returns the VM that got them, and how
/// many frames there were.
fn run(rng: &mut Rng, load: &Load) -> (Vm, usize) {
    let mut out = sender(WINDOW, usize::MAX / 2);
    let mut receiver = Receiver::new(WINDOW, MAX_FRAME);
    receiver.join_fragments();
    let mut expected = BTreeMap::<u64, Vec<Vec<u8>>>::new();
    let mut open: BTreeMap<u64, Vec<Vec<u8>>> = BTreeMap::new();
    let (mut atoms, mut frames, mut started) = (0u8, 0, 0);
    while started < load.frames || !open.is_empty() {
        let from = 1 + rng.below(load.senders);
        let key = FlowKey::Flow(if load.shared { 0 } else { from });
        if rng.per_mille(load.changes) {
            atoms = atoms.wrapping_add(1);
            let flow = if load.shared { key } else { FlowKey::Fence };
            out.push_frame(&options(flow), &[b"A"], 1);
        } else if let Some(rest) = open.get_mut(&from) {
            let mut frame = rest.remove(0);
            if frame[1] == b'E' {
                frame[HEADER_LEN] = atoms;
            }
            out.push_frame(&options(key), &[&frame], frame.len());
            if rest.is_empty() {
                open.remove(&from);
            }
        } else if started < load.frames {
            started += 1;
            let most = [10, 1_000, 200_000, 500_000, 3_000_000][rng.below(5) as usize];
            let signal: Vec<u8> = (0..rng.below(most) as usize + 1).map(|at| at as u8).collect();
            expected.entry(from).or_default().push(signal.clone());
            if signal.len() > PAYLOAD {
                open.insert(from, fragments(from, &signal));
                continue;
            }
            let frame = [&[b'D', atoms, from as u8], &signal[..]].concat();
            out.push_frame(&options(key), &[&frame], frame.len());
        } else {
            continue;
        }
        frames += 1;
        out.end_batch();
    }
    let vm = bring_over(rng, &mut out, &mut receiver, 100);
    assert!(vm.signals == expected, "signals are lost, changed or out of order");
    (vm, frames)
}

/// Given signals of several processes, expect each as it was, in the order of its sender.
#[test]
fn the_vm_gets_its_signals() {
    seeds("--test channel_fragments the_vm_gets_its_signals", 40, |seed| {
        let mut rng = Rng(seed);
        let load = Load {
            senders: 1 + rng.below(5),
            shared: rng.per_mille(300),
            changes: [0, 5, 100][rng.below(3) as usize],
            frames: 40,
        };
        run(&mut rng, &load);
    });
}

/// Given that nothing comes between them, expect the fragments of each signal as one frame, up to
/// `max_frame`.
#[test]
fn each_signal_is_one_frame() {
    let mut rng = Rng(7);
    let load = Load { senders: 3, shared: false, changes: 0, frames: 60 };
    let (vm, frames) = run(&mut rng, &load);
    let signals: usize = vm.signals.values().map(Vec::len).sum();
    let long = vm.signals.values().flatten().filter(|signal| signal.len() > MAX_FRAME - PAYLOAD);
    // What is over the limit goes on as it comes.
    let more: usize =
        long.map(|signal| (signal.len() + PAYLOAD - MAX_FRAME).div_ceil(PAYLOAD) + 1).sum();
    assert!(vm.frames <= signals + more, "{} frames for {signals} signals", vm.frames);
    assert!(vm.longest <= MAX_FRAME && vm.longest > MAX_FRAME - PAYLOAD && frames > 3 * signals);
}

/// Given a user that takes what there is only when it must, expect that no more waits for it than the window
/// and a frame of each sender, and that signals far larger than the window get through.
#[test]
fn credit_is_bounded() {
    let window = 256 * 1024;
    let mut out = sender(window, usize::MAX / 2);
    let mut receiver = Receiver::new(window, 64 * MAX_FRAME);
    receiver.join_fragments();
    let mut queues: Vec<_> = (1..=4)
        .map(|from| (from, (0..8).flat_map(|_| fragments(from, &vec![0; MAX_FRAME])).collect()))
        .collect::<Vec<(u64, VecDeque<Vec<u8>>)>>();
    while queues.iter().any(|(_, queue)| !queue.is_empty()) {
        for (from, queue) in &mut queues {
            if let Some(frame) = queue.pop_front() {
                out.push_frame(&options(FlowKey::Flow(*from)), &[&frame], frame.len());
            }
        }
        out.end_batch();
    }
    let vm = bring_over(&mut Rng(1), &mut out, &mut receiver, 0);
    assert_eq!(vm.frames, 32);
    assert!(vm.most <= window as usize + 4 * MAX_FRAME, "{} bytes wait", vm.most);
}
