//! A whole cluster in one thread: hosts, the network between them, and what happens next.

use std::collections::BTreeMap;

use chatter_core::control::{Control, ControlConfig};
use chatter_core::dialer::NeighbourSpec;
use chatter_core::ids::NodeId;

use crate::channels::Channels;
use crate::check::Checker;
use crate::heap::{Event, Heap};
use crate::host::{Host, HostConditions, identity};
use crate::network::Network;
use crate::rng::Random;
use crate::scenario::{Dialler, Scenario};
use crate::time::{Clock, MS, Nanos};
use crate::trace::Trace;
use crate::users::Users;

/// How often the bounds are looked at.
const SAMPLE_EVERY: Nanos = 200 * MS;

/// What a run has counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Events of the simulation.
    pub events: u64,
    /// Records that came through a connection.
    pub records: u64,
    /// Bytes of packets put on links.
    pub bytes: u64,
    /// Bytes of LSPs and their packet headers among them.
    pub lsp_bytes: u64,
    /// Packets relayed.
    pub relayed: u64,
    /// Packets that relays could not pass on, or lost by a fault.
    pub relay_drops: u64,
    /// Messages sent by users.
    pub sent: u64,
    /// Messages taken by users.
    pub delivered: u64,
    /// Connections between users that came up, counted at either end.
    pub sessions: u64,
    /// Links that came up, counted at either end.
    pub links: u64,
    /// Faults that began.
    pub faults: u64,
}

/// A defect that is planted into a run, to see that it is found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mutant {
    /// The n-th message that is delivered is not.
    Drop(u64),
    /// The n-th message that is delivered is delivered twice.
    Repeat(u64),
    /// The n-th message that is delivered is held until the next one was.
    Swap(u64),
    /// The n-th message that is delivered is of a former life of its writer.
    Stale(u64),
    /// A message is delivered once more after the n-th end of a connection.
    Late(u64),
}

/// A cluster that is being simulated.
pub struct World {
    pub(crate) scenario: Scenario,
    pub(crate) clock: Clock,
    pub(crate) now: Nanos,
    pub(crate) heap: Heap,
    pub(crate) rng: Random,
    pub(crate) net: Network,
    pub(crate) hosts: Vec<Host>,
    pub(crate) ids: BTreeMap<NodeId, usize>,
    /// Links that have something to write.
    pub(crate) dirty: Vec<(usize, chatter_core::ids::LinkId)>,
    /// Faults that are in effect, by their place in the scenario.
    pub(crate) active: Vec<usize>,
    /// The users send.
    pub(crate) loaded: bool,
    /// They do so without breaks.
    pub(crate) steady: bool,
    pub(crate) last_session: u64,
    /// The length of the last LSP of each node, packet header included.
    pub(crate) lsp_lens: BTreeMap<u64, usize>,
    pub(crate) control_config: ControlConfig,
    /// What happened.
    pub trace: Trace,
    /// What was wrong with it.
    pub checker: Checker,
    /// Figures.
    pub counts: Counts,
    /// A planted defect.
    pub mutant: Option<Mutant>,
}

impl World {
    /// A cluster at time 0: all nodes start, dial, and talk.
    pub fn new(scenario: Scenario) -> Self {
        let control_config = ControlConfig {
            max_dial_backoff_ms: scenario.limits.max_dial_backoff_ms,
            ..ControlConfig::default()
        };
        let mut world = Self {
            clock: Clock::new(),
            now: 0,
            heap: Heap::default(),
            rng: Random::new(scenario.seed),
            net: Network::new(&scenario.edges, scenario.limits.socket),
            hosts: Vec::new(),
            ids: BTreeMap::new(),
            dirty: Vec::new(),
            active: Vec::new(),
            loaded: true,
            steady: false,
            last_session: 0,
            lsp_lens: BTreeMap::new(),
            control_config,
            trace: Trace::default(),
            checker: Checker::new(scenario.nodes, scenario.promise),
            counts: Counts::default(),
            mutant: None,
            scenario,
        };
        for at in 0..world.scenario.nodes {
            let host = world.make_host(at, 0);
            world.ids.insert(host.id, at);
            world.hosts.push(host);
        }
        for at in 0..world.scenario.nodes {
            world.begin_life(at);
        }
        for at in 0..world.scenario.faults.len() {
            let fault = world.scenario.faults[at];
            world.heap.push(fault.at, Event::Fault { at: at as u32, begins: true });
            if fault.lasts > 0 && fault.lasts != Nanos::MAX {
                let end = fault.at + fault.lasts;
                world.heap.push(end, Event::Fault { at: at as u32, begins: false });
            }
        }
        world.heap.push(SAMPLE_EVERY, Event::Sample);
        world
    }

    /// The virtual time.
    pub fn now(&self) -> Nanos {
        self.now
    }

    /// The scenario.
    pub fn scenario(&self) -> &Scenario {
        &self.scenario
    }

    /// The users stop sending, or go on.
    pub fn set_loaded(&mut self, loaded: bool) {
        self.loaded = loaded;
    }

    /// Lets everything happen that happens before `end`.
    pub fn run_until(&mut self, end: Nanos) {
        while let Some((at, event)) = self.heap.pop_before(end) {
            debug_assert!(at >= self.now, "time goes back");
            self.now = at;
            self.checker.now = at;
            self.counts.events += 1;
            self.handle(event);
            self.flush_dirty();
        }
        self.now = self.now.max(end);
        self.checker.now = self.now;
    }

    fn handle(&mut self, event: Event) {
        if let Some(host) = self.host_of(event)
            && self.hosts[host].now.paused
        {
            return self.hosts[host].stash.push(event);
        }
        match event {
            Event::Arrive { wire, end, record } => {
                self.arrive(wire as usize, end.into(), record);
            }
            Event::Writable { wire, end } => self.writable(wire as usize, end.into()),
            Event::SetupTimeout { wire, end } => self.setup_timeout(wire as usize, end.into()),
            Event::Control { host, life } => self.control_timer(host as usize, life),
            Event::Service { host, life } => self.service(host as usize, life),
            Event::Load { host, life } => self.load_turn(host as usize, life),
            Event::Transit { host, life, record } => self.late_transit(host as usize, life, record),
            Event::Resume { host } => self.resume(host as usize),
            Event::Fault { at, begins } => self.fault(at as usize, begins),
            Event::Sample => {
                self.check_bounds();
                self.heap.push(self.now + SAMPLE_EVERY, Event::Sample);
            }
        }
    }

    /// The host whose process has to run for this.
    fn host_of(&self, event: Event) -> Option<usize> {
        match event {
            Event::Arrive { wire, end, .. }
            | Event::Writable { wire, end }
            | Event::SetupTimeout { wire, end } => {
                Some(self.net.wires[wire as usize].ends[usize::from(end)].host)
            }
            Event::Control { host, .. }
            | Event::Service { host, .. }
            | Event::Load { host, .. }
            | Event::Transit { host, .. } => Some(host as usize),
            Event::Resume { .. } | Event::Fault { .. } | Event::Sample => None,
        }
    }

    /// A process that stood still goes on: what has come in meanwhile is read, and timers are late.
    fn resume(&mut self, at: usize) {
        if self.hosts[at].now.paused {
            return;
        }
        let mut stash = std::mem::take(&mut self.hosts[at].stash);
        if self.rng.chance(500_000) {
            stash.sort_by_key(|event| !matches!(event, Event::Control { .. }));
        }
        for event in stash {
            self.handle(event);
            self.flush_dirty();
        }
    }

    pub(crate) fn make_host(&mut self, at: usize, life: u32) -> Host {
        let name = format!("n{at}@sim");
        let me = identity(&name, life, self.now);
        let (id, incarnation) = (me.id, me.incarnation);
        let now = self.clock.instant(self.now);
        let control = Control::new(self.control_config, me, self.rng.any(), now);
        Host {
            channels: Channels::new(&self.scenario.limits, id, incarnation, &name),
            name,
            id,
            life,
            incarnation,
            alive: true,
            control,
            table: Default::default(),
            links: BTreeMap::new(),
            next_link: 0,
            timer: None,
            now: HostConditions::default(),
            stash: Vec::new(),
            users: Users::default(),
        }
    }

    /// A host's process has started.
    pub(crate) fn begin_life(&mut self, at: usize) {
        let (life, incarnation) = (self.hosts[at].life, self.hosts[at].incarnation);
        self.trace.line(self.now, format_args!("n{at} begins life {life}"));
        self.checker.life(at, incarnation);
        self.users_begin(at);
        for edge in 0..self.scenario.edges.len() {
            let spec = &self.scenario.edges[edge];
            let other = match (spec.ends, spec.dialler) {
                ([first, second], Dialler::First | Dialler::Both) if first == at => second,
                ([first, second], Dialler::Second | Dialler::Both) if second == at => first,
                _ => continue,
            };
            let metric = spec.metric;
            let wanted = NeighbourSpec::Name(self.hosts[other].name.clone());
            let now = self.clock.instant(self.now);
            self.hosts[at].control.connect(now, wanted, metric, true);
            self.drive(at);
        }
        self.drive(at);
    }
}
