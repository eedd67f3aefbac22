//! Edges, and the TCP connections on them: ordered streams of records that take time, stand still while
//! the edge is cut, and end by being closed or reset.

use std::collections::VecDeque;

use chatter_core::ids::LinkId;

use crate::heap::{Event, Heap};
use crate::rng::Random;
use crate::scenario::EdgeSpec;
use crate::time::{MS, Nanos, S};

/// Sent bytes that the kernel may hold back before they leave, as a time: see `TCP_NOTSENT_LOWAT`.
const UNSENT: Nanos = 2 * MS;

/// TCP sends a lost segment again after this.
const RETRANSMIT: Nanos = 200 * MS;

/// What a connection carries. The bytes of a handshake are not encrypted; the steps are the real ones.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Record {
    Syn,
    SynAck,
    /// First message of the link handshake.
    H1,
    /// The second: who the end that was dialled is.
    H2(Vec<u8>),
    /// The third: who dialled.
    H3(Vec<u8>),
    /// One or more packets.
    Data(Vec<u8>),
    /// Cannot be opened.
    Damaged,
    Fin,
    Reset,
}

impl Record {
    fn len(&self) -> usize {
        match self {
            Self::H2(bytes) | Self::H3(bytes) | Self::Data(bytes) => bytes.len() + 19,
            _ => 40,
        }
    }
}

/// How far an end of a connection is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum EndState {
    /// Connection or handshake are under way.
    Setup,
    /// A link.
    Up(LinkId),
    /// Closed here.
    Closed,
}

/// One end of a connection.
#[derive(Clone, Debug)]
pub(crate) struct End {
    pub(crate) host: usize,
    /// The life of the host that has the socket.
    pub(crate) life: u32,
    pub(crate) state: EndState,
    /// Bytes on their way to this end that its process has not taken.
    pub(crate) untaken: usize,
    /// The other end waits for room.
    pub(crate) blocks_other: bool,
    last_arrival: Nanos,
    held: VecDeque<Record>,
}

/// A connection; end 0 has dialled.
#[derive(Clone, Debug)]
pub(crate) struct Wire {
    pub(crate) edge: usize,
    pub(crate) ends: [End; 2],
    /// For which neighbour, and the number of the dial.
    pub(crate) dialled: (chatter_core::dialer::NeighbourId, u64),
}

impl Wire {
    pub(crate) fn new(
        edge: usize,
        ends: [(usize, u32); 2],
        dialled: (chatter_core::dialer::NeighbourId, u64),
    ) -> Self {
        let end = |(host, life)| End {
            host,
            life,
            state: EndState::Setup,
            untaken: 0,
            blocks_other: false,
            last_arrival: 0,
            held: VecDeque::new(),
        };
        Self { edge, ends: ends.map(end), dialled }
    }
}

/// An edge as it is now.
#[derive(Clone, Debug)]
pub(crate) struct Edge {
    pub(crate) spec: EdgeSpec,
    /// What faults make of it.
    pub(crate) now: Conditions,
    /// The direction towards each end is busy until then.
    busy: [Nanos; 2],
    /// Since when nothing passes towards each end.
    cut_since: [Option<Nanos>; 2],
}

/// What faults make of an edge.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Conditions {
    /// Towards which end nothing passes.
    pub(crate) cut: [bool; 2],
    pub(crate) delay: Nanos,
    pub(crate) jitter: Nanos,
    pub(crate) loss_ppm: u32,
    /// What happens to packets within records, which TCP does not know.
    pub(crate) leak_ppm: u32,
    pub(crate) scramble_ppm: u32,
    /// Bytes a second; 0 for no bound.
    pub(crate) rate: u64,
    /// The next record towards this end is damaged.
    pub(crate) corrupt: [bool; 2],
}

impl Edge {
    pub(crate) fn new(spec: EdgeSpec) -> Self {
        let now = Conditions { delay: spec.delay, rate: spec.rate, ..Conditions::default() };
        Self { spec, now, busy: [0; 2], cut_since: [None; 2] }
    }
}

/// Whether an end may write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Room {
    Yes,
    /// At this time.
    At(Nanos),
    /// When the other end has taken some.
    Later,
}

/// All edges and connections.
pub(crate) struct Network {
    pub(crate) edges: Vec<Edge>,
    pub(crate) wires: Vec<Wire>,
    records: Vec<Option<Record>>,
    free: Vec<u32>,
    socket: usize,
    /// Which end of an edge a host is.
    sides: Vec<[usize; 2]>,
}

impl Network {
    pub(crate) fn new(edges: &[EdgeSpec], socket: usize) -> Self {
        Self {
            edges: edges.iter().cloned().map(Edge::new).collect(),
            wires: Vec::new(),
            records: Vec::new(),
            free: Vec::new(),
            socket,
            sides: edges.iter().map(|edge| edge.ends).collect(),
        }
    }

    /// Which end of its edge (0 or 1) an end of a connection is at.
    pub(crate) fn side(&self, wire: usize, end: usize) -> usize {
        let wire = &self.wires[wire];
        usize::from(self.sides[wire.edge][1] == wire.ends[end].host)
    }

    /// Whether this end of a connection may write.
    pub(crate) fn room(&mut self, now: Nanos, wire: usize, end: usize) -> Room {
        let side = self.side(wire, 1 - end);
        let socket = self.socket;
        let (edge, other) = (self.wires[wire].edge, &mut self.wires[wire].ends[1 - end]);
        if other.untaken >= socket {
            other.blocks_other = true;
            return Room::Later;
        }
        match self.edges[edge].busy[side] {
            busy if busy > now + UNSENT => Room::At(busy - UNSENT),
            _ => Room::Yes,
        }
    }

    /// Sends a record from this end to the other.
    pub(crate) fn send(
        &mut self,
        (now, heap, rng): (Nanos, &mut Heap, &mut Random),
        (wire, end): (usize, usize),
        record: Record,
    ) {
        let other = &mut self.wires[wire].ends[1 - end];
        other.untaken += record.len();
        let side = self.side(wire, 1 - end);
        let edge = self.wires[wire].edge;
        let held = !self.wires[wire].ends[1 - end].held.is_empty();
        if held || self.edges[edge].now.cut[side] {
            self.wires[wire].ends[1 - end].held.push_back(record);
            return;
        }
        self.launch((now, heap, rng), (wire, end), record);
    }

    /// Puts a record on the way, behind all others.
    fn launch(
        &mut self,
        (now, heap, rng): (Nanos, &mut Heap, &mut Random),
        (wire, end): (usize, usize),
        mut record: Record,
    ) {
        let side = self.side(wire, 1 - end);
        let edge = &mut self.edges[self.wires[wire].edge];
        let mut leaves = now;
        if let Some(takes) = (record.len() as u64 * S).checked_div(edge.now.rate) {
            leaves = now.max(edge.busy[side]) + takes;
            edge.busy[side] = leaves;
        }
        let mut at = leaves + edge.now.delay + rng.below(edge.now.jitter);
        let mut again = RETRANSMIT;
        while rng.chance(edge.now.loss_ppm) {
            at += again;
            again *= 2;
        }
        if matches!(record, Record::Data(_)) && std::mem::take(&mut edge.now.corrupt[side]) {
            // A short record (a goodbye) may be shorter than what stands for a damaged one.
            let other = &mut self.wires[wire].ends[1 - end];
            other.untaken = other.untaken + Record::Damaged.len() - record.len();
            record = Record::Damaged;
        }
        let other = &mut self.wires[wire].ends[1 - end];
        other.last_arrival = other.last_arrival.max(at);
        let at = other.last_arrival;
        let record = self.keep(record);
        heap.push(at, Event::Arrive { wire: wire as u32, end: 1 - end as u8, record });
    }

    /// Keeps a record under a number.
    pub(crate) fn keep(&mut self, record: Record) -> u32 {
        let Some(at) = self.free.pop() else {
            self.records.push(Some(record));
            return (self.records.len() - 1) as u32;
        };
        self.records[at as usize] = Some(record);
        at
    }

    /// Takes a record that has arrived.
    pub(crate) fn take(&mut self, wire: usize, end: usize, record: u32) -> Option<Record> {
        let taken = self.records[record as usize].take()?;
        self.free.push(record);
        let end = &mut self.wires[wire].ends[end];
        end.untaken -= taken.len();
        Some(taken)
    }

    /// Takes a record out that was kept, but not sent.
    pub(crate) fn release_kept(&mut self, record: u32) -> Option<Record> {
        let taken = self.records[record as usize].take()?;
        self.free.push(record);
        Some(taken)
    }

    /// Whether the other end waited for the room that there is now at this end.
    pub(crate) fn has_freed(&mut self, wire: usize, end: usize) -> bool {
        let socket = self.socket;
        let end = &mut self.wires[wire].ends[end];
        let freed = end.blocks_other && end.untaken <= socket / 2;
        end.blocks_other &= !freed;
        freed
    }

    /// New conditions on an edge. What TCP has held back goes on when it next tries.
    pub(crate) fn change(
        &mut self,
        (now, heap, rng): (Nanos, &mut Heap, &mut Random),
        edge: usize,
        conditions: Conditions,
    ) {
        let corrupt = self.edges[edge].now.corrupt;
        self.edges[edge].now = Conditions { corrupt, ..conditions };
        for side in 0..2 {
            if conditions.cut[side] {
                self.edges[edge].cut_since[side].get_or_insert(now);
            } else if let Some(since) = self.edges[edge].cut_since[side].take() {
                let wait = rng.below((now - since).min(60 * S)).max(MS);
                self.release((now, heap, rng), (edge, side), wait);
            }
        }
    }

    fn release(
        &mut self,
        (now, heap, rng): (Nanos, &mut Heap, &mut Random),
        (edge, side): (usize, usize),
        wait: Nanos,
    ) {
        // What TCP sends later does not occupy the edge until then.
        let busy = self.edges[edge].busy;
        for wire in 0..self.wires.len() {
            if self.wires[wire].edge != edge {
                continue;
            }
            for end in 0..2 {
                if self.side(wire, end) == side {
                    let held = std::mem::take(&mut self.wires[wire].ends[end].held);
                    for record in held {
                        self.launch((now + wait, heap, rng), (wire, 1 - end), record);
                    }
                }
            }
        }
        self.edges[edge].busy = busy;
    }

    /// Nobody will ever read what is held back for this end.
    pub(crate) fn forget_held(&mut self, wire: usize, end: usize) {
        self.wires[wire].ends[end].held.clear();
    }

    /// Bytes held back or under way for this end.
    pub(crate) fn untaken(&self, wire: usize, end: usize) -> usize {
        self.wires[wire].ends[end].untaken
    }
}
