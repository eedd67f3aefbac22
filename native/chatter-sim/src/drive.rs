//! The loop around a host's control plane: calls at the promised time, and carrying out what it wants.

use chatter_core::control::ControlEvent;
use chatter_core::ids::LinkId;
use chatter_core::wire::{PacketType, next_packet};

use crate::heap::Event;
use crate::world::World;

/// Where the origin is in the packet of an LSP.
const LSP_ORIGIN: std::ops::Range<usize> = 12..20;

impl World {
    pub(crate) fn control_timer(&mut self, at: usize, life: u32) {
        let host = &mut self.hosts[at];
        if !host.alive || host.life != life {
            return;
        }
        // Of several promises only the earliest counts.
        if host.timer.is_none_or(|promised| promised > self.now) {
            return;
        }
        host.timer = None;
        let now = self.clock.instant(self.now);
        if host.control.poll_timeout().is_some_and(|due| due <= now) {
            for (link, entry) in &host.links {
                host.control.handle_alive(self.clock.instant(entry.heard), *link);
            }
            host.control.handle_timeout(now);
        }
        self.drive(at);
    }

    /// Carries out what the control plane wants, in the order that its contract asks for.
    pub(crate) fn drive(&mut self, at: usize) {
        let host = &mut self.hosts[at];
        if let Some(table) = host.control.poll_table() {
            host.table = table;
        }
        while let Some((link, packet)) = self.hosts[at].control.poll_transmit() {
            if packet.get(3) == Some(&(PacketType::Lsp as u8)) {
                self.counts.lsp_bytes += packet.len() as u64;
                let me = self.hosts[at].id.0;
                if packet.get(LSP_ORIGIN) == Some(&me.to_be_bytes()) {
                    self.lsp_lens.insert(me, packet.len());
                }
            }
            if let Some(entry) = self.hosts[at].links.get_mut(&link) {
                entry.queue.push_control(packet.into());
                self.mark_dirty(at, link);
            }
        }
        while let Some(event) = self.hosts[at].control.poll_event() {
            self.control_event(at, &event);
        }
        self.schedule(at);
    }

    fn schedule(&mut self, at: usize) {
        let host = &mut self.hosts[at];
        let Some(due) = host.control.poll_timeout() else { return };
        let due = self.clock.nanos(due).max(self.now);
        if host.timer.is_none_or(|promised| due < promised) {
            host.timer = Some(due);
            self.heap.push(due, Event::Control { host: at as u32, life: host.life });
        }
    }

    fn control_event(&mut self, at: usize, event: &ControlEvent) {
        self.note_link(at, event);
        match event {
            ControlEvent::NodeUp { id, incarnation, .. } => {
                let peer = self.ids[id];
                self.trace.line(self.now, format_args!("n{at} n{peer} up, life {incarnation}"));
                self.checker.node_up(at, peer, *incarnation);
                self.end_former_lives(at, *id, *incarnation);
                self.take_up_open(at, *id);
            }
            ControlEvent::NodeDown { id, incarnation, .. } => {
                let peer = self.ids[id];
                self.trace.line(self.now, format_args!("n{at} n{peer} down, life {incarnation}"));
                self.checker.node_down(at, peer, *incarnation);
                self.end_life(at, *id, *incarnation);
            }
            ControlEvent::NodeLost { id } => {
                let peer = self.ids[id];
                self.trace.line(self.now, format_args!("n{at} n{peer} has no route"));
            }
            ControlEvent::NodeFound { id } => {
                let peer = self.ids[id];
                self.trace.line(self.now, format_args!("n{at} n{peer} has a route again"));
                self.take_up_open(at, *id);
            }
            ControlEvent::RouteChanged { ids } => self.routes_changed(at, ids),
            ControlEvent::Dial { neighbour, spec, dial_seq } => {
                self.dial(at, *neighbour, spec, *dial_seq);
            }
            ControlEvent::NameClash { incarnation, .. } => {
                self.trace.line(self.now, format_args!("n{at} name clash with {incarnation}"));
            }
            ControlEvent::Reborn { incarnation } => {
                self.trace.line(self.now, format_args!("n{at} is reborn as {incarnation}"));
            }
            ControlEvent::NodeNamed { .. }
            | ControlEvent::LinkUp { .. }
            | ControlEvent::LinkDown { .. }
            | ControlEvent::CloseLink { .. } => {}
        }
    }

    /// Takes the packets of a record.
    pub(crate) fn record(&mut self, at: usize, link: LinkId, mut record: &[u8]) {
        loop {
            match next_packet(&mut record) {
                Ok(None) => break,
                Ok(Some(packet)) if packet.kind.is_routed() => self.routed(at, packet),
                Ok(Some(packet)) => {
                    let now = self.clock.instant(self.now);
                    let result =
                        self.hosts[at].control.handle_packet(now, link, packet.kind, packet.body);
                    if let Err(error) = result {
                        self.checker.malformed(at, &error.to_string());
                    }
                    self.drive(at);
                }
                Err(error) => {
                    self.checker.malformed(at, &error.to_string());
                    break;
                }
            }
        }
        if let Some(entry) = self.hosts[at].links.get_mut(&link) {
            entry.heard = self.now;
        }
        self.end_read(at);
    }
}
