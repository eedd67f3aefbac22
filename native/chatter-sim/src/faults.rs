//! Faults, as they begin and end. What is in effect follows from all that are active, so that faults
//! of one kind may overlap.

use crate::heap::Event;
use crate::host::HostConditions;
use crate::network::Conditions;
use crate::scenario::Fault;
use crate::time::{Nanos, S};
use crate::world::World;

/// How long after the end of what was done to a node the ends of its connections are excused: it has to
/// find its way back, which takes up to 8 s when its machine was dark, and stalled users see the end up
/// to 4 s late.
const EXCUSED: Nanos = 12 * S;

impl World {
    pub(crate) fn fault(&mut self, at: usize, begins: bool) {
        let timed = self.scenario.faults[at];
        let words = self.scenario.describe(&timed);
        let verb = if begins { "begins" } else { "ends" };
        self.trace.line(self.now, format_args!("fault {verb}: {words}"));
        if begins {
            self.counts.faults += 1;
            self.active.push(at);
        } else {
            self.active.retain(|active| *active != at);
        }
        if let Some(host) = timed.harms() {
            self.checker.harmed(host, timed.at.saturating_add(timed.lasts).saturating_add(EXCUSED));
        }
        if let Fault::Stall(host) = timed.fault {
            self.checker
                .stalled(host, timed.at.saturating_add(timed.lasts).saturating_add(EXCUSED));
        }
        match timed.fault {
            Fault::Reset(edge) => self.reset_edge(edge),
            Fault::Blink(host) => {
                for edge in self.scenario.edges_of(host) {
                    self.reset_edge(edge);
                }
            }
            Fault::Corrupt(edge, side) => self.net.edges[edge].now.corrupt[side] = true,
            Fault::Disconnect(host) => self.disconnect_users(host),
            Fault::Cut(edge)
            | Fault::OneWay(edge, _)
            | Fault::Delay(edge, _)
            | Fault::Jitter(edge, _)
            | Fault::Loss(edge, _)
            | Fault::Leak(edge, _)
            | Fault::Scramble(edge, _)
            | Fault::Rate(edge, _) => self.update_edge(edge),
            Fault::Kill(host)
            | Fault::PowerOff(host)
            | Fault::Stop(host)
            | Fault::Pause(host)
            | Fault::Stall(host)
            | Fault::Drain(host)
            | Fault::Drop(host, _)
            | Fault::Double(host, _)
            | Fault::Reorder(host, _) => self.update_host(host, begins.then_some(timed.fault)),
        }
        if timed.lasts == 0 {
            self.active.retain(|active| *active != at);
        }
    }

    fn update_edge(&mut self, edge: usize) {
        let spec = &self.net.edges[edge].spec;
        let mut now = Conditions { delay: spec.delay, rate: spec.rate, ..Conditions::default() };
        for active in &self.active {
            match self.scenario.faults[*active].fault {
                Fault::Cut(at) if at == edge => now.cut = [true; 2],
                Fault::OneWay(at, side) if at == edge => now.cut[side] = true,
                Fault::Delay(at, by) if at == edge => now.delay += by,
                Fault::Jitter(at, by) if at == edge => now.jitter = now.jitter.max(by),
                Fault::Loss(at, ppm) if at == edge => now.loss_ppm = now.loss_ppm.max(ppm),
                Fault::Leak(at, ppm) if at == edge => now.leak_ppm = now.leak_ppm.max(ppm),
                Fault::Scramble(at, ppm) if at == edge => {
                    now.scramble_ppm = now.scramble_ppm.max(ppm);
                }
                Fault::Rate(at, rate) if at == edge => {
                    now.rate = if now.rate == 0 { rate } else { now.rate.min(rate) };
                }
                _ => {}
            }
        }
        self.net.change((self.now, &mut self.heap, &mut self.rng), edge, now);
    }

    /// What faults make of a host now.
    pub(crate) fn host_conditions(&self, host: usize) -> HostConditions {
        let mut now = HostConditions::default();
        for active in &self.active {
            match self.scenario.faults[*active].fault {
                Fault::Kill(at) | Fault::Stop(at) if at == host => now.down = true,
                Fault::PowerOff(at) if at == host => (now.down, now.dark) = (true, true),
                Fault::Pause(at) if at == host => now.paused = true,
                Fault::Stall(at) if at == host => now.stalled = true,
                Fault::Drain(at) if at == host => now.draining = true,
                Fault::Drop(at, ppm) if at == host => now.drop_ppm = now.drop_ppm.max(ppm),
                Fault::Double(at, ppm) if at == host => now.double_ppm = now.double_ppm.max(ppm),
                Fault::Reorder(at, ppm) if at == host => {
                    now.reorder_ppm = now.reorder_ppm.max(ppm);
                }
                _ => {}
            }
        }
        now
    }

    fn update_host(&mut self, at: usize, new: Option<Fault>) {
        let (was, now) = (self.hosts[at].now, self.host_conditions(at));
        if now.down && self.hosts[at].alive {
            if matches!(new, Some(Fault::Stop(_))) && !was.paused {
                let instant = self.clock.instant(self.now);
                self.close_channels(at);
                self.hosts[at].control.stop(instant);
                self.drive(at);
            }
            self.flush_dirty();
            self.die(at, !now.dark);
        }
        self.hosts[at].now = now;
        if !now.down && !self.hosts[at].alive {
            let mut host = self.make_host(at, self.hosts[at].life + 1);
            host.now = now;
            self.hosts[at] = host;
            self.begin_life(at);
        }
        if was.paused && !now.paused {
            self.heap.push(self.now, Event::Resume { host: at as u32 });
        }
        if was.stalled && !now.stalled {
            self.users_take(at);
        }
        if self.hosts[at].alive {
            let instant = self.clock.instant(self.now);
            self.hosts[at].control.set_overload(instant, now.draining);
            self.drive(at);
        }
    }

    /// The process of a host dies.
    fn die(&mut self, at: usize, tell: bool) {
        self.trace.line(self.now, format_args!("n{at} dies"));
        let host = &mut self.hosts[at];
        host.alive = false;
        host.links.clear();
        for event in std::mem::take(&mut host.stash) {
            if let Event::Arrive { wire, end, record } = event {
                self.net.take(wire as usize, end.into(), record);
            }
        }
        self.users_die(at);
        self.checker.died(at);
        self.close_sockets(at, tell);
    }
}
