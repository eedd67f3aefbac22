//! Connections and links of a host: dialling, handshakes, records in and out, and their ends.

use std::time::Instant;

use chatter_core::control::{ControlEvent, LinkUp};
use chatter_core::dialer::{NeighbourId, NeighbourSpec};
use chatter_core::ids::LinkId;
use chatter_core::sched::Turn;
use chatter_core::wire::identity::Identity;
use chatter_core::wire::packet::Packet;

use crate::heap::Event;
use crate::host::Host;
use crate::host::{Link, address, scheduler};
use crate::network::{EndState, Record, Room, Wire};
use crate::time::{Nanos, S};
use crate::world::World;

/// How long a dial with its handshake, or a handshake alone, may take.
const SETUP_TIMEOUT: Nanos = 5 * S;

/// Bytes of packets that share a record at most.
const RECORD_BYTES: usize = 32 * 1024;

impl World {
    /// Sends a record from this end of a connection.
    fn send_record(&mut self, wire: usize, end: usize, record: Record) {
        self.net.send((self.now, &mut self.heap, &mut self.rng), (wire, end), record);
    }

    /// Dials for the control plane of a host.
    pub(crate) fn dial(&mut self, at: usize, id: NeighbourId, spec: &NeighbourSpec, seq: u64) {
        let NeighbourSpec::Name(name) = spec else { return };
        let other = self.hosts.iter().position(|host| host.name == *name);
        let edge = other.and_then(|other| self.scenario.edge_between(at, other));
        let (Some(other), Some(edge)) = (other, edge) else {
            let now = self.clock.instant(self.now);
            self.hosts[at].control.handle_dial_failed(now, id);
            return;
        };
        let ends = [(at, self.hosts[at].life), (other, 0)];
        self.net.wires.push(Wire::new(edge, ends, (id, seq)));
        let wire = self.net.wires.len() - 1;
        let timeout = Event::SetupTimeout { wire: wire as u32, end: 0 };
        self.heap.push(self.now + SETUP_TIMEOUT, timeout);
        self.send_record(wire, 0, Record::Syn);
    }

    /// A record has come to this end of a connection.
    pub(crate) fn arrive(&mut self, wire: usize, end: usize, record: u32) {
        let Some(record) = self.net.take(wire, end, record) else { return };
        self.counts.records += 1;
        if self.net.has_freed(wire, end) {
            let event = Event::Writable { wire: wire as u32, end: 1 - end as u8 };
            self.heap.push(self.now, event);
        }
        let side = &mut self.net.wires[wire].ends[end];
        let at = side.host;
        let host = &self.hosts[at];
        if host.now.dark {
            return;
        }
        if record == Record::Syn {
            (side.life, side.state) = (host.life, EndState::Setup);
        }
        let is_there = host.alive && side.life == host.life && side.state != EndState::Closed;
        if !is_there {
            side.state = EndState::Closed;
            if !matches!(record, Record::Fin | Record::Reset) {
                self.send_record(wire, end, Record::Reset);
            }
            return;
        }
        let what = (wire as u64) << 1 | end as u64;
        match record {
            Record::Data(bytes) => {
                self.trace.mix_bytes(self.now, what, &bytes);
                if let EndState::Up(link) = side.state {
                    self.record(at, link, &bytes);
                }
            }
            Record::Damaged => self.broken(wire, end, true),
            Record::Fin | Record::Reset => self.broken(wire, end, false),
            Record::Syn | Record::SynAck | Record::H1 | Record::H2(_) | Record::H3(_) => {
                self.trace.mix(self.now, what, 1);
                self.handshake(wire, end, record);
            }
        }
    }

    fn handshake(&mut self, wire: usize, end: usize, record: Record) {
        let at = self.net.wires[wire].ends[end].host;
        match record {
            Record::Syn => {
                let timeout = Event::SetupTimeout { wire: wire as u32, end: end as u8 };
                self.heap.push(self.now + SETUP_TIMEOUT, timeout);
                self.send_record(wire, end, Record::SynAck);
            }
            Record::SynAck => self.send_record(wire, end, Record::H1),
            Record::H1 => {
                let me = self.hosts[at].control.identity().encode();
                self.send_record(wire, end, Record::H2(me));
            }
            Record::H2(peer) => {
                let dial_seq = self.net.wires[wire].dialled.1;
                let me = self.hosts[at].control.identity().clone();
                let me = Identity { dial_seq, ..me }.encode();
                self.send_record(wire, end, Record::H3(me));
                self.adopt(wire, end, &peer);
            }
            Record::H3(peer) => self.adopt(wire, end, &peer),
            _ => {}
        }
    }

    /// The handshake is complete at this end.
    fn adopt(&mut self, wire: usize, end: usize, peer: &[u8]) {
        let peer = Identity::decode(peer).expect("BUG! own identity cannot be read");
        let at = self.net.wires[wire].ends[end].host;
        let (neighbour, seq) = self.net.wires[wire].dialled;
        let host = &mut self.hosts[at];
        host.next_link += 1;
        let link = LinkId(host.next_link);
        self.net.wires[wire].ends[end].state = EndState::Up(link);
        let queue = scheduler(self.scenario.limits.relay_queue);
        let (heard, peer_id) = (self.now, peer.id);
        let waiting = Vec::new();
        let new =
            Link { wire, end, peer: peer_id, queue, heard, dirty: false, wakes_at: 0, waiting };
        host.links.insert(link, new);
        let we_dialled = end == 0;
        let up = LinkUp {
            link,
            dial_seq: if we_dialled { seq } else { peer.dial_seq },
            peer,
            we_dialled,
            neighbour: we_dialled.then_some(neighbour),
            remote: address(),
        };
        let now = self.clock.instant(self.now);
        host.control.handle_link_up(now, up);
        self.drive(at);
    }

    /// The other end has closed or reset the connection, or what it sent cannot be opened.
    fn broken(&mut self, wire: usize, end: usize, ours: bool) {
        let side = &mut self.net.wires[wire].ends[end];
        let at = side.host;
        let was = std::mem::replace(&mut side.state, EndState::Closed);
        self.net.forget_held(wire, end);
        if ours {
            self.send_record(wire, end, Record::Reset);
        }
        let now = self.clock.instant(self.now);
        match was {
            EndState::Up(link) => {
                let mut gone = self.hosts[at].links.remove(&link);
                if let Some(gone) = &mut gone {
                    self.rescue_transit(at, gone.queue.take_transit());
                }
                let waiting = gone.map(|link| link.waiting);
                self.hosts[at].control.handle_link_down(now, link);
                self.drive(at);
                self.links_have_room(at, &waiting.unwrap_or_default());
            }
            EndState::Setup if end == 0 => {
                let neighbour = self.net.wires[wire].dialled.0;
                self.hosts[at].control.handle_dial_failed(now, neighbour);
                self.drive(at);
            }
            EndState::Setup | EndState::Closed => {}
        }
    }

    pub(crate) fn setup_timeout(&mut self, wire: usize, end: usize) {
        let side = &self.net.wires[wire].ends[end];
        let host = &self.hosts[side.host];
        if side.state == EndState::Setup && host.alive && side.life == host.life {
            self.broken(wire, end, true);
        }
    }

    /// The control plane wants a link closed.
    pub(crate) fn close_link(&mut self, at: usize, link: LinkId) {
        self.flush(at, link);
        let Some(mut gone) = self.hosts[at].links.remove(&link) else { return };
        self.rescue_transit(at, gone.queue.take_transit());
        self.net.wires[gone.wire].ends[gone.end].state = EndState::Closed;
        self.net.forget_held(gone.wire, gone.end);
        self.send_record(gone.wire, gone.end, Record::Fin);
        self.links_have_room(at, &gone.waiting);
    }

    /// Both ends of all connections on an edge are reset.
    pub(crate) fn reset_edge(&mut self, edge: usize) {
        for wire in 0..self.net.wires.len() {
            let open = |end: usize| self.net.wires[wire].ends[end].state != EndState::Closed;
            if self.net.wires[wire].edge == edge && (open(0) || open(1)) {
                for end in 0..2 {
                    self.send_record(wire, end, Record::Reset);
                }
            }
        }
    }

    /// The sockets of a host are gone; its kernel says so unless the machine is gone as well.
    pub(crate) fn close_sockets(&mut self, at: usize, tell: bool) {
        for wire in 0..self.net.wires.len() {
            for end in 0..2 {
                let side = &mut self.net.wires[wire].ends[end];
                if side.host == at && side.state != EndState::Closed {
                    side.state = EndState::Closed;
                    if tell {
                        self.send_record(wire, end, Record::Reset);
                    }
                }
            }
        }
    }

    // ===== out =====

    /// A link has something to write.
    pub(crate) fn mark_dirty(&mut self, at: usize, link: LinkId) {
        if let Some(entry) = self.hosts[at].links.get_mut(&link)
            && !std::mem::replace(&mut entry.dirty, true)
        {
            self.dirty.push((at, link));
        }
    }

    pub(crate) fn flush_dirty(&mut self) {
        while let Some((at, link)) = self.dirty.pop() {
            if let Some(entry) = self.hosts[at].links.get_mut(&link) {
                entry.dirty = false;
                self.flush(at, link);
            }
        }
    }

    /// Writes what is queued on a link as far as there is room.
    fn flush(&mut self, at: usize, link: LinkId) {
        while let Some(entry) = self.hosts[at].links.get_mut(&link) {
            if entry.queue.is_empty() {
                break;
            }
            let (wire, end) = (entry.wire, entry.end);
            match self.net.room(self.now, wire, end) {
                Room::Yes => {}
                Room::At(when) => {
                    if entry.wakes_at <= self.now {
                        entry.wakes_at = when;
                        let event = Event::Writable { wire: wire as u32, end: end as u8 };
                        self.heap.push(when, event);
                    }
                    break;
                }
                Room::Later => break,
            }
            let bytes = self.fill_record(at, link);
            if bytes.is_empty() {
                continue;
            }
            self.counts.bytes += bytes.len() as u64;
            self.send_record(wire, end, Record::Data(bytes));
        }
        self.wake_waiting(at, link);
    }

    /// Takes the packets of the next record out of the queues.
    fn fill_record(&mut self, at: usize, link: LinkId) -> Vec<u8> {
        let now = self.clock.instant(self.now);
        let mut bytes = Vec::new();
        let mut held_back: Option<Packet> = None;
        let Some(entry) = self.hosts[at].links.get(&link) else { return bytes };
        let faults = self.net.edges[self.net.wires[entry.wire].edge].now;
        let mut put = |packet: &Packet| {
            bytes.extend_from_slice(&packet.head);
            bytes.extend_from_slice(&packet.body);
            bytes.len()
        };
        let mut len = 0;
        while len < RECORD_BYTES
            && let Some(packet) = next_packet(&mut self.hosts[at], link, now)
        {
            if self.rng.chance(faults.leak_ppm) {
                continue;
            }
            if self.rng.chance(faults.scramble_ppm) {
                if self.rng.chance(500_000) {
                    put(&packet);
                } else if let Some(before) = held_back.replace(packet) {
                    put(&before);
                    continue;
                } else {
                    continue;
                }
            }
            len = put(&packet);
            if let Some(before) = held_back.take() {
                len = put(&before);
            }
        }
        if let Some(last) = held_back {
            put(&last);
        }
        bytes
    }

    /// This end of a connection may have room to write again.
    pub(crate) fn writable(&mut self, wire: usize, end: usize) {
        let side = &self.net.wires[wire].ends[end];
        let at = side.host;
        if let EndState::Up(link) = side.state
            && self.hosts[at].alive
            && self.hosts[at].life == side.life
        {
            self.mark_dirty(at, link);
        }
    }

    fn wake_waiting(&mut self, at: usize, link: LinkId) {
        let Some(entry) = self.hosts[at].links.get_mut(&link) else { return };
        if !entry.waiting.is_empty() {
            let waiting = std::mem::take(&mut entry.waiting);
            self.links_have_room(at, &waiting);
        }
    }

    /// What the control plane of a host has decided about links.
    pub(crate) fn note_link(&mut self, at: usize, event: &ControlEvent) {
        match event {
            ControlEvent::LinkUp { link, peer } => {
                self.counts.links += 1;
                let peer = self.ids[peer];
                self.trace.line(self.now, format_args!("n{at} link {link} to n{peer} up"));
            }
            ControlEvent::LinkDown { link, peer } => {
                let peer = self.ids[peer];
                self.trace.line(self.now, format_args!("n{at} link {link} to n{peer} down"));
            }
            ControlEvent::CloseLink { link, reason } => {
                self.trace.line(self.now, format_args!("n{at} closes link {link}: {reason:?}"));
                self.close_link(at, *link);
            }
            _ => {}
        }
    }
}

/// The packet whose turn it is on a link.
fn next_packet(host: &mut Host, link: LinkId, now: Instant) -> Option<Packet> {
    loop {
        match host.links.get_mut(&link)?.queue.next(now)? {
            Turn::Packet(packet) => return Some(packet),
            Turn::Own { channel, level, .. } => {
                if let Some(packet) = World::pull(host, link, channel, level, now) {
                    return Some(packet);
                }
            }
        }
    }
}
