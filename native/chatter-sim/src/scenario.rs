//! A scenario is data: who is there, what breaks when, who talks to whom.

use crate::time::{MS, Nanos, S, US};

/// Who dials an edge.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dialler {
    /// The first of its two nodes.
    First,
    /// The second.
    Second,
    /// Both, so that one of two connections has to go.
    Both,
}

/// A way between two nodes on which a link is wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EdgeSpec {
    /// The nodes, by number.
    pub ends: [usize; 2],
    /// Time from one end to the other.
    pub delay: Nanos,
    /// Bytes a second, each way; 0 for no bound.
    pub rate: u64,
    /// The metric that a node asks for when it dials; `None`: by round trip time.
    pub metric: Option<u32>,
    /// Who dials.
    pub dialler: Dialler,
}

/// What breaks. Edges and nodes are given by number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Nothing passes the edge, and nobody is told.
    Cut(usize),
    /// Nothing passes the edge towards its first (0) or second (1) node.
    OneWay(usize, usize),
    /// The connections on the edge are reset.
    Reset(usize),
    /// All connections of a node are reset at once.
    Blink(usize),
    /// The next record towards that end of the edge is damaged: opening it fails, which ends the link.
    Corrupt(usize, usize),
    /// The edge takes so much longer.
    Delay(usize, Nanos),
    /// The edge takes up to so much longer, differently for each record.
    Jitter(usize, Nanos),
    /// So many of a million records are lost on the edge and sent again by TCP.
    Loss(usize, u32),
    /// The edge passes so many bytes a second.
    Rate(usize, u64),
    /// So many of a million packets vanish on the edge, whatever they are. TCP does not do that; the
    /// protocol has to live with it all the same.
    Leak(usize, u32),
    /// So many of a million packets come twice on the edge, or change places with the next.
    Scramble(usize, u32),
    /// The node's process dies, its kernel closes the connections; it comes back with a new life.
    Kill(usize),
    /// The node's machine dies without a word; it comes back with a new life.
    PowerOff(usize),
    /// The node leaves properly; it comes back with a new life.
    Stop(usize),
    /// The node's process stands still (SIGSTOP).
    Pause(usize),
    /// The users on the node take no messages.
    Stall(usize),
    /// The node asks not to be used as a relay.
    Drain(usize),
    /// The node loses so many of a million packets that it should relay.
    Drop(usize, u32),
    /// The node relays so many of a million packets twice.
    Double(usize, u32),
    /// The node holds so many of a million packets up that it relays: others overtake them.
    Reorder(usize, u32),
    /// The users on the node close their connections.
    Disconnect(usize),
}

/// A fault, when it begins and how long it lasts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TimedFault {
    /// When it begins.
    pub at: Nanos,
    /// How long it lasts; [`Nanos::MAX`] for ever. 0 for what happens in a moment.
    pub lasts: Nanos,
    /// What it is.
    pub fault: Fault,
}

/// What the users send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Load {
    /// How often a node's users get their turn.
    pub every: Nanos,
    /// Messages at most in one turn of one pair.
    pub batch: u64,
    /// Bytes at most in most messages.
    pub size: u64,
    /// So many of a million messages are large.
    pub large_ppm: u32,
    /// Bytes at most in a large one.
    pub large: u64,
}

/// Limits that a scenario sets; the others are the defaults of Chatter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Credit of a channel in bytes.
    pub window: u64,
    /// Bytes of transit queued per link.
    pub relay_queue: usize,
    /// Bytes of own traffic per link.
    pub channel_queue: usize,
    /// Bytes that all channels of a node keep.
    pub retransmit_memory: usize,
    /// Bytes that a connection takes before its reader has taken any.
    pub socket: usize,
    /// The longest wait between two dials.
    pub max_dial_backoff_ms: u32,
}

/// What the checkers may expect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Promise {
    /// The faults leave a route between all nodes that are alive: no connection between two nodes that
    /// were not harmed themselves may end.
    Route,
    /// Anything may break.
    Anything,
}

/// A whole scenario. `Display` and `FromStr` are its text form.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Scenario {
    /// Decides all that is random in the run.
    pub seed: u64,
    /// How many nodes.
    pub nodes: usize,
    /// Where links are wanted.
    pub edges: Vec<EdgeSpec>,
    /// Pairs of nodes that talk; the first opens the channel.
    pub pairs: Vec<[usize; 2]>,
    /// What they say.
    pub load: Load,
    /// Limits.
    pub limits: Limits,
    /// What breaks, in the order of time.
    pub faults: Vec<TimedFault>,
    /// What may be expected.
    pub promise: Promise,
    /// How long after the last fault everything has to be in order again.
    pub settle: Nanos,
}

impl Default for Load {
    fn default() -> Self {
        Self { every: 50 * MS, batch: 3, size: 200, large_ppm: 2_000, large: 60_000 }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            window: 8 * 1024 * 1024,
            relay_queue: 8 * 1024 * 1024,
            channel_queue: 1024 * 1024,
            retransmit_memory: 256 * 1024 * 1024,
            socket: 1024 * 1024,
            max_dial_backoff_ms: 1_000,
        }
    }
}

impl Default for EdgeSpec {
    fn default() -> Self {
        Self { ends: [0, 1], delay: 200 * US, rate: 0, metric: None, dialler: Dialler::First }
    }
}

impl Scenario {
    /// Nodes without edges, pairs and faults.
    pub fn new(seed: u64, nodes: usize) -> Self {
        Self {
            seed,
            nodes,
            edges: Vec::new(),
            pairs: Vec::new(),
            load: Load::default(),
            limits: Limits::default(),
            faults: Vec::new(),
            promise: Promise::Anything,
            settle: 8 * S,
        }
    }

    /// Adds an edge unless there is one between the two already.
    pub fn edge(&mut self, a: usize, b: usize) -> &mut Self {
        if a != b && self.edge_between(a, b).is_none() {
            self.edges.push(EdgeSpec { ends: [a, b], ..EdgeSpec::default() });
        }
        self
    }

    /// The edge between two nodes.
    pub fn edge_between(&self, a: usize, b: usize) -> Option<usize> {
        self.edges.iter().position(|edge| edge.ends == [a, b] || edge.ends == [b, a])
    }

    /// The edges of a node.
    pub fn edges_of(&self, node: usize) -> Vec<usize> {
        (0..self.edges.len()).filter(|at| self.edges[*at].ends.contains(&node)).collect()
    }

    /// Adds a fault. The faults have to be in the order of time.
    pub fn fault(&mut self, at: Nanos, fault: Fault, lasts: Nanos) -> &mut Self {
        self.faults.push(TimedFault { at, lasts, fault });
        self
    }

    /// When the last fault is over; those that last for ever count from their beginning.
    pub fn calm_at(&self) -> Nanos {
        let end = |fault: &TimedFault| match fault.lasts {
            Nanos::MAX => fault.at,
            lasts => fault.at + lasts,
        };
        self.faults.iter().map(end).max().unwrap_or(0)
    }
}

/// A pause shorter than this must not be noticed: links hold for 1 s and are probed every 250 ms.
pub const UNNOTICED_PAUSE: Nanos = 700 * MS;

impl TimedFault {
    /// The node whose connections may end by it.
    pub fn harms(&self) -> Option<usize> {
        match self.fault {
            Fault::Kill(at) | Fault::PowerOff(at) | Fault::Stop(at) | Fault::Disconnect(at) => {
                Some(at)
            }
            Fault::Pause(at) if self.lasts > UNNOTICED_PAUSE => Some(at),
            _ => None,
        }
    }
}
