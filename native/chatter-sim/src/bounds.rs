//! Looks at everything that must have a limit.

use crate::channels::MAX_CHANNELS;
use crate::world::World;

impl World {
    pub(crate) fn check_bounds(&mut self) {
        let limits = self.scenario.limits;
        // Of a frame that is larger than the window, all waits at once.
        let inbox = limits.window + limits.window / 4 + self.scenario.load.large;
        let batch = self.scenario.load.batch * (self.scenario.load.large + 1024);
        let nodes = self.scenario.nodes as u64;
        for at in 0..self.hosts.len() {
            let host = &self.hosts[at];
            if !host.alive {
                continue;
            }
            let mut found: Vec<(&str, u64, u64)> = Vec::new();
            for link in host.links.values() {
                let transit = link.queue.transit_bytes() as u64;
                found.push(("transit queue", transit, limits.relay_queue as u64));
            }
            for channel in host.channels.all.values() {
                let ahead = channel.inc.receiver().ahead_bytes();
                found.push(("reorder buffer", ahead, limits.window + limits.window / 2));
                found.push(("inbox", channel.inbox.waiting, inbox));
            }
            for channel in host.channels.all.values() {
                let waiting = channel.out.sender().map_or(0, |sender| sender.queued_bytes().0);
                found.push(("own queue", waiting as u64, limits.channel_queue as u64 + batch));
            }
            let retained = host.channels.retained as u64;
            found.push(("retained", retained, limits.retransmit_memory as u64 + 8 * batch));
            found.push(("LSDB", host.control.lsdb_len() as u64, nodes));
            found.push(("channels", host.channels.all.len() as u64, MAX_CHANNELS as u64));
            for (what, value, limit) in found {
                if value > limit {
                    self.checker.bound(at, what, value, limit);
                }
            }
        }
        for wire in 0..self.net.wires.len() {
            for end in 0..2 {
                let untaken = self.net.untaken(wire, end);
                // What was written while there was room, and the record that filled it.
                let limit = limits.socket + 2 * 64 * 1024;
                if untaken > limit {
                    let at = self.net.wires[wire].ends[end].host;
                    self.checker.bound(at, "socket", untaken as u64, limit as u64);
                }
            }
        }
    }
}
